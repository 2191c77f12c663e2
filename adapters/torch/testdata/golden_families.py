"""Writes families/<case>/ (a tiny random model of each family, as transformers saves it) and families/<case>.golden.safetensors
(what forward hooks on transformers' own modules show of it), and families/<case>.gguf with the same numbers for some.

torch 2.7.1, transformers 4.56.2, gguf 0.19.0, safetensors (any). Run in this folder: python golden_families.py [case …]

A golden file has input_ids and attention_mask [batch, seq], padded on the right, and for every hook the rows of unmasked tokens
only, [tokens, width], in order. Names are TransformerLens' or Hugging Face's; "centred." before one is what it shows with
center_writing_weights. Its metadata say how far transformers' own bfloat16 is off at the last layer, in the mean over tokens.
"""

import copy
import json
import shutil
import sys
from pathlib import Path

import gguf
import torch
import transformers as tf
from safetensors.torch import save_file

torch.set_num_threads(1)
HERE = Path(__file__).parent / "families"
VOCAB, LENGTHS = 41, [16, 6, 1]
LLAMA = dict(
    vocab_size=VOCAB, hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.25, attn_implementation="eager",
)
GPT = dict(vocab_size=VOCAB, n_embd=24, n_layer=3, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2, initializer_range=0.25, attn_implementation="eager")


def llama(**o):
    return tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA | o))


def scaled(kind, head_dim=6, **o):
    return llama(rope_scaling=dict(rope_type=kind, **o), max_position_embeddings=10, head_dim=head_dim)


def gemma3(**o):
    return LLAMA | dict(
        num_hidden_layers=4, head_dim=8, sliding_window=5, sliding_window_pattern=3, query_pre_attn_scalar=20, rope_theta=5000.0, rope_local_base_freq=300.0,
        rope_scaling=dict(rope_type="linear", factor=4.0),
    ) | o


def gemma3_pictures():
    vision = dict(hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4)
    text = gemma3()
    text.pop("attn_implementation")
    return tf.Gemma3ForConditionalGeneration(tf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1, attn_implementation="eager"))


def longrope(**o):
    return dict(type="longrope", short_factor=[1.0, 1.3], long_factor=[1.5, 4.0])


CASES = {
    "llama": lambda: llama(tie_word_embeddings=True),
    "llama-untied-biases": lambda: llama(attention_bias=True, mlp_bias=True, num_key_value_heads=4, head_dim=10),
    "llama-linear": lambda: scaled("linear", factor=3.0),
    "llama-dynamic": lambda: scaled("dynamic", factor=2.0),
    "llama-yarn": lambda: scaled("yarn", factor=4.0, beta_fast=1.0, beta_slow=0.01, head_dim=16),
    "llama-yarn-mscale": lambda: scaled("yarn", factor=4.0, original_max_position_embeddings=8, mscale=1.2, mscale_all_dim=0.7, truncate=False),
    "llama-llama3": lambda: scaled("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=10),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**LLAMA | dict(sliding_window=6, head_dim=8))),
    "mistral-no-window": lambda: tf.MistralForCausalLM(tf.MistralConfig(**LLAMA | dict(sliding_window=None))),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**LLAMA | dict(tie_word_embeddings=True))),
    "qwen2-windows": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**LLAMA | dict(use_sliding_window=True, sliding_window=5, max_window_layers=1))),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**LLAMA | dict(head_dim=10))),
    "gemma": lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**LLAMA | dict(head_dim=8, num_key_value_heads=1))),
    "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**LLAMA | dict(
        head_dim=8, sliding_window=5, query_pre_attn_scalar=20, attn_logit_softcapping=3.0, final_logit_softcapping=4.0))),
    "gemma2-by-head": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**LLAMA | dict(
        head_dim=8, sliding_window=5, query_pre_attn_scalar=8, attn_logit_softcapping=3.0, final_logit_softcapping=4.0))),
    "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**gemma3())),
    "gemma3-by-head": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**gemma3(num_hidden_layers=7, sliding_window_pattern=6, query_pre_attn_scalar=8))),
    "gemma3-pictures": gemma3_pictures,
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**LLAMA | dict(sliding_window=6))),
    "phi3-longrope": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**LLAMA | dict(
        original_max_position_embeddings=8, partial_rotary_factor=0.7, rope_scaling=longrope()))),
    "olmo2": lambda: tf.Olmo2ForCausalLM(tf.Olmo2Config(**LLAMA)),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT)),
    "gpt2-scaled-by-layer": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT | dict(
        scale_attn_by_inverse_layer_idx=True, n_inner=32, activation_function="gelu", tie_word_embeddings=False))),
    "gpt_neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**LLAMA | dict(rotary_pct=0.34, num_key_value_heads=4))),
    "gpt_neox-sequential": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**LLAMA | dict(
        rotary_pct=1.0, rotary_emb_base=500, use_parallel_residual=False, attention_bias=False, hidden_act="gelu_new"))),
    "gptj": lambda: tf.GPTJForCausalLM(tf.GPTJConfig(**GPT | dict(rotary_dim=4))),
    "phi": lambda: tf.PhiForCausalLM(tf.PhiConfig(**LLAMA | dict(partial_rotary_factor=0.7))),
}
ALONE = {"llama-dynamic", "phi3-longrope"}  # in a batch transformers scales by the longest sequence
GGUF = {
    "llama-untied-biases": "LLAMA", "llama-linear": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3", "gemma": "GEMMA", "gemma2-by-head": "GEMMA2", "gemma3-by-head": "GEMMA3", "phi3": "PHI3",
    "olmo2": "OLMO2", "gpt2": "GPT2", "gpt_neox": "GPTNEOX",
}


def randomise(model, seed):
    """Weights so large that windows and caps bite; no bias and no norm's weight left at what it begins as."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            if p.ndim > 1:
                p.copy_(noise * (0.6 if any(k in name for k in ("q_proj", "k_proj", "qkv", "query", "c_attn")) else 0.3))
            elif name.endswith("bias"):
                p.copy_(0.3 * noise)
            else:
                p.copy_(0.3 * noise + (0 if "gemma" in type(model).__name__.lower() else 1))
    return model.eval()


class Parts:
    """Where a family keeps what the hooks are about."""

    def __init__(self, model):
        base = model.base_model
        while inner := getattr(base, "model", None) or getattr(base, "language_model", None):
            base = inner
        self.kind = type(base).__name__
        self.post = "Gemma2" in self.kind or "Gemma3" in self.kind  # norms on both sides
        self.only_post = "Olmo2" in self.kind
        self.parallel = "GPTJ" in self.kind or self.kind == "PhiModel" or ("GPTNeoX" in self.kind and model.config.use_parallel_residual)
        self.layer_norm = any(k in self.kind for k in ("GPT",)) or self.kind == "PhiModel"
        if hasattr(base, "h"):
            self.container, self.layers, self.embedding = "h", base.h, ("wte", base.wte)
        elif "GPTNeoX" in self.kind:
            self.container, self.layers, self.embedding = "layers", base.layers, ("embed_in", base.embed_in)
        else:
            self.container, self.layers, self.embedding = "layers", base.layers, ("embed_tokens", base.embed_tokens)
        self.base = base

    def names(self):
        """Attention, its last projection, the norm before the MLP, the MLP, its last projection."""
        if self.kind == "GPT2Model":
            return "attn", "attn.c_proj", "ln_2", "mlp", "mlp.c_proj"
        if "GPTNeoX" in self.kind:
            return "attention", "attention.dense", "post_attention_layernorm", "mlp", "mlp.dense_4h_to_h"
        if "GPTJ" in self.kind:
            return "attn", "attn.out_proj", "ln_1", "mlp", "mlp.fc_out"
        if self.kind == "PhiModel":
            return "self_attn", "self_attn.dense", "input_layernorm", "mlp", "mlp.fc2"
        norm = "pre_feedforward_layernorm" if self.post else None if self.only_post else "post_attention_layernorm"
        return "self_attn", "self_attn.o_proj", norm, "mlp", "mlp.down_proj"


def eps_of(norm):
    for name in ("variance_epsilon", "eps"):
        if hasattr(norm, name):
            return getattr(norm, name)


def normalized(norm, x, layer_norm):
    x = x.float()
    if layer_norm:
        x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + eps_of(norm)).sqrt()


def taps(model, ids, mask, full=1):
    """Every hook at layer `full`, a few at the others; rows of unmasked tokens."""
    parts, found, handles = Parts(model), {}, []

    def keep(name, value):
        value = value[0] if isinstance(value, tuple) else value
        found[name] = value.detach().float().reshape(*ids.shape, -1)[mask.bool()].clone()

    def on(module, name_in=(), name_out=()):
        def before(_m, args, kwargs):
            x = args[0] if args else kwargs["hidden_states"]
            for name in name_in:
                keep(name, x) if isinstance(name, str) else name(x)

        def after(_m, _a, out):
            for name in name_out:
                keep(name, out)

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))

    name, module = parts.embedding
    on(module, (), (name,))
    scale = model.config.hidden_size**0.5 if parts.kind in ("GemmaModel", "Gemma2Model") else 1
    module.register_forward_hook(lambda _m, _a, out: keep("hook_embed", out * scale))
    attn, o, norm, mlp, down = parts.names()
    prefix = {"h": "transformer.h", "layers": "gpt_neox.layers" if "GPTNeoX" in parts.kind else "model.layers"}[parts.container]
    for n, layer in enumerate(parts.layers):
        tl, hf, short = f"blocks.{n}.", f"{prefix}.{n}", f"{parts.container}.{n}"
        get = layer.get_submodule
        all_of = n == full
        on(layer, [tl + "hook_resid_pre"] if n in (0, full) else [], [tl + "hook_resid_post"] + ([hf] if all_of else []))
        out_of = lambda raw, post: get(post) if parts.post else get(raw)
        on(out_of(attn, "post_attention_layernorm"), (), [tl + "hook_attn_out"])
        if not all_of:
            continue
        on(out_of(mlp, "post_feedforward_layernorm"), (), [tl + "hook_mlp_out"])
        on(get(o), [tl + "attn.hook_z", f"{short}.{o}.input"], [f"{short}.{o}.output"])
        on(get(down), [tl + "mlp.hook_post", f"{hf}.{down}.input"], ())
        on(get(attn), (), [f"{hf}.{attn}"])
        on(get(mlp), [tl + "mlp.hook_in", f"{short}.{mlp}.input"], [f"{hf}.{mlp}"])
        first = "ln_1" if parts.container == "h" else "input_layernorm"
        if not parts.only_post:
            on(get(first), [lambda x, m=get(first), tl=tl: keep(tl + "ln1.hook_normalized", normalized(m, x, parts.layer_norm))], [f"{hf}.{first}"])
            on(get(norm), [lambda x, m=get(norm), tl=tl: keep(tl + "ln2.hook_normalized", normalized(m, x, parts.layer_norm))], [f"{short}.{norm}.output"])
            if not parts.parallel:
                on(get(norm), [tl + "hook_resid_mid", f"{short}.{norm}.input"], ())
        else:
            on(get(mlp), [tl + "hook_resid_mid"], ())
        if parts.post or parts.only_post:
            on(get("post_attention_layernorm"), [f"{short}.post_attention_layernorm.input"], [f"{short}.post_attention_layernorm.output"])
            on(get("post_feedforward_layernorm"), (), [f"{hf}.post_feedforward_layernorm.output"])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    keep("logits", logits)
    for h in handles:
        h.remove()
    module._forward_hooks.clear()
    return found


def centre_writing_weights(model):
    """TransformerLens' center_writing_weights: what writes to the residual stream loses its mean over d_model."""
    parts = Parts(model)
    attn, o, _, mlp, down = parts.names()

    def centre(module, out_last):
        w = module.weight
        w.copy_(w - w.mean(-1 if out_last else 0, keepdim=True))
        if getattr(module, "bias", None) is not None:
            module.bias.copy_(module.bias - module.bias.mean())

    with torch.no_grad():
        centre(parts.embedding[1], True)
        if hasattr(parts.base, "wpe"):
            centre(parts.base.wpe, True)
        for layer in parts.layers:
            for name in (o, down):
                module = layer.get_submodule(name)
                centre(module, isinstance(module, tf.pytorch_utils.Conv1D))


def golden(model, case, ids, mask):
    if case not in ALONE:
        return taps(model, ids, mask)
    rows = []
    for i, n in enumerate(LENGTHS):
        rows.append(taps(model, ids[i : i + 1, :n], mask[i : i + 1, :n]))
    return {k: torch.cat([r[k] for r in rows]) for k in rows[0]}


def permute(w, heads):
    """llama.cpp's row order of q and k."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def write_gguf(case, model):
    """By llama.cpp's conventions, as its converter applies them."""
    arch, c = GGUF[case], model.config
    path = HERE / f"{case}.gguf"
    w = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[arch]])
    w.add_block_count(c.num_hidden_layers)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(getattr(c, "intermediate_size", None) or 4 * c.hidden_size)
    w.add_head_count(c.num_attention_heads)
    d_head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    if hasattr(c, "num_key_value_heads"):
        w.add_head_count_kv(c.num_key_value_heads)
    if arch in ("GPT2", "GPTNEOX"):
        w.add_layer_norm_eps(getattr(c, "layer_norm_eps", None) or c.layer_norm_epsilon)
    else:
        w.add_layer_norm_rms_eps(c.rms_norm_eps)
    if d_head != c.hidden_size // c.num_attention_heads:
        w.add_key_length(d_head)
        w.add_value_length(d_head)
    if arch == "GPTNEOX":
        w.add_rope_dimension_count(int(c.rotary_pct * d_head))
        w.add_parallel_residual(c.use_parallel_residual)
    elif arch != "GPT2":
        w.add_rope_dimension_count(d_head)
        w.add_rope_freq_base(c.rope_theta)
    if getattr(c, "rope_scaling", None):
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(c.rope_scaling["factor"])
    if arch in ("GEMMA2", "GEMMA3", "PHI3"):
        w.add_sliding_window(c.sliding_window)
    if arch == "GEMMA2":
        w.add_attn_logit_softcapping(c.attn_logit_softcapping)
        w.add_final_logit_softcapping(c.final_logit_softcapping)
    if arch == "GEMMA3":
        w.add_float32("gemma3.rope.freq_base_swa", c.rope_local_base_freq)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch], c.num_hidden_layers)
    heads, d = c.num_attention_heads, c.hidden_size
    for name, t in model.state_dict().items():
        if name in ("lm_head.weight", "embed_out.weight") and c.tie_word_embeddings or name.endswith((".attn.bias", ".masked_bias")):
            continue
        if arch == "LLAMA" and ".q_proj." in name:
            t = permute(t, heads)
        if arch == "LLAMA" and ".k_proj." in name:
            t = permute(t, c.num_key_value_heads)
        if arch == "GPT2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            t = t.T
        if arch == "GPTNEOX" and "query_key_value" in name:
            t = t.reshape(heads, 3, d // heads, *t.shape[1:]).transpose(0, 1).reshape(t.shape)
        if arch.startswith("GEMMA") and name.endswith("norm.weight"):
            t = t + 1
        w.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), t.float().contiguous().numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    HERE.mkdir(exist_ok=True)
    for seed, (case, make) in enumerate(CASES.items()):
        if len(sys.argv) > 1 and case not in sys.argv[1:]:
            continue
        torch.manual_seed(seed)
        model = randomise(make(), 1000 + seed)
        folder = HERE / case
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        ids = torch.randint(3, VOCAB, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(seed))
        mask = torch.zeros_like(ids)
        for row, n in enumerate(LENGTHS):
            mask[row, :n] = 1
        found = golden(model, case, ids, mask)
        if case in GGUF:
            write_gguf(case, model)
        if case not in ("llama", "gemma2", "gpt2", "gptj", "phi", "gpt2-scaled-by-layer"):
            found.pop("logits")
        if "-" in case:  # a variant: what differs shows in these
            found = {k: v for k, v in found.items() if ".hook_" in k or k in ("hook_embed", "logits")}
        last = f"blocks.{len(Parts(model).layers) - 1}.hook_resid_post"
        half = golden(copy.deepcopy(model).to(torch.bfloat16), case, ids, mask)[last]
        off = ((half - found[last]).norm(dim=-1) / found[last].norm(dim=-1)).mean().item()
        if Parts(model).layer_norm:
            centre_writing_weights(model)
            for name, value in golden(model, case, ids, mask).items():
                if name.startswith(("hook_embed", "blocks.1.hook", "blocks.1.ln2")):
                    found["centred." + name] = value
        meta = {"family": json.loads((folder / "config.json").read_text())["model_type"], "reference": "transformers " + tf.__version__, "bfloat16": f"{off:.4f}"}
        save_file({"input_ids": ids, "attention_mask": mask} | {k: v.contiguous() for k, v in found.items()}, HERE / f"{case}.golden.safetensors", metadata=meta)
        print(case, len(found))


if __name__ == "__main__":
    main()
