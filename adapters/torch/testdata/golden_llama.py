"""Writes the golden files of tiny random Llamas: llama-*/ and llama-*.golden.safetensors.

torch 2.7.1, transformers 4.56.2, safetensors (any). Run in this folder: python golden_llama.py
"""

import shutil

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

LENGTHS = [100, 20, 1]
SCALED = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "llama-tied": dict(tie_word_embeddings=True, num_key_value_heads=2),
    "llama-untied-llama3": dict(tie_word_embeddings=False, num_key_value_heads=1, rope_scaling=SCALED, rope_theta=500000.0),
    "llama-biases": dict(tie_word_embeddings=False, num_key_value_heads=4, attention_bias=True, mlp_bias=True, head_dim=12),
}


def taps(model, ids, mask, wanted):
    found = {}

    def keep(name, value):
        if name in wanted:
            found[name] = (value[0] if isinstance(value, tuple) else value).detach().clone() * mask[..., None]

    handles = []
    for n, layer in enumerate(model.model.layers):
        handles += [
            layer.register_forward_pre_hook(lambda _m, a, kw, n=n: keep(f"blocks.{n}.hook_resid_pre", a[0] if a else kw["hidden_states"]), with_kwargs=True),
            layer.register_forward_hook(lambda _m, _a, o, n=n: keep(f"blocks.{n}.hook_resid_post", o)),
            layer.self_attn.register_forward_hook(lambda _m, _a, o, n=n: keep(f"blocks.{n}.hook_attn_out", o)),
            layer.mlp.register_forward_hook(lambda _m, _a, o, n=n: keep(f"blocks.{n}.hook_mlp_out", o)),
        ]
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits * mask[..., None]
    for h in handles:
        h.remove()
    return found, logits


def main():
    for seed, (name, options) in enumerate(VARIANTS.items()):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=512, rms_norm_eps=1e-5, initializer_range=0.25, bos_token_id=1, eos_token_id=2,
            attn_implementation="eager", **options,
        )
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for key, p in model.named_parameters():
                if "norm" in key:
                    p.copy_(1 + 0.3 * torch.randn_like(p))
                if key.endswith("bias"):
                    p.copy_(0.3 * torch.randn_like(p))
        shutil.rmtree(name, ignore_errors=True)
        model.save_pretrained(name)
        ids = torch.randint(0, 97, (len(LENGTHS), max(LENGTHS)))
        mask = torch.zeros_like(ids)
        for row, n in enumerate(LENGTHS):
            mask[row, :n] = 1
        wanted = {f"blocks.{n}.hook_resid_post" for n in range(3)}
        wanted |= {"blocks.1.hook_resid_pre", "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"}
        found, logits = taps(model, ids, mask, wanted)
        save_file(
            {"input_ids": ids, "attention_mask": mask, "logits": logits.contiguous()} | {k: v.contiguous() for k, v in found.items()},
            f"{name}.golden.safetensors",
        )


if __name__ == "__main__":
    main()
