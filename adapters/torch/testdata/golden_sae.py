"""Writes sae/NAME/{cfg.json,sae_weights.safetensors} and sae/NAME.golden.safetensors.

torch 2.7.1, sae-lens 6.54.0, safetensors (any). Run in this folder: python golden_sae.py
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

D_IN, D_SAE, K, TOKENS = 24, 200, 12, 32
NORMALISATIONS = ["none", "expected_average_only_in", "constant_norm_rescale", "layer_norm"]
SCALE = 0.31


def build(architecture, normalisation, **options):
    common = dict(d_in=D_IN, d_sae=D_SAE, dtype="float32", device="cpu", normalize_activations=normalisation, reshape_activations="none")
    common.update(options)
    sae = {
        "standard": lambda: StandardSAE(StandardSAEConfig(**common)),
        "topk": lambda: TopKSAE(TopKSAEConfig(k=K, **common)),
        "jumprelu": lambda: JumpReLUSAE(JumpReLUSAEConfig(**common)),
    }[architecture]()
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(D_IN, D_SAE) / D_IN**0.5)
        sae.b_enc.copy_(torch.randn(D_SAE) * 0.3 - 0.3)
        sae.W_dec.copy_(torch.randn(D_SAE, D_IN) * (0.2 + torch.rand(D_SAE, 1)) / D_IN**0.5)
        sae.b_dec.copy_(torch.randn(D_IN) * 0.4)
        if architecture == "jumprelu":
            sae.threshold.copy_(torch.rand(D_SAE) * 1.5 - 0.3)
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    return sae


def main():
    shutil.rmtree("sae", ignore_errors=True)
    cases = [(a, n, {}, "none") for a in ("standard", "topk", "jumprelu") for n in NORMALISATIONS]
    cases += [
        ("standard", "none", {"apply_b_dec_to_input": False}, "none"),
        ("topk", "layer_norm", {"rescale_acts_by_decoder_norm": True}, "none"),
        ("topk", "none", {"rescale_acts_by_decoder_norm": True}, "decoder-norm"),
        ("standard", "none", {}, "decoder-norm"),
        ("jumprelu", "constant_norm_rescale", {}, "decoder-norm"),
    ]
    for seed, (architecture, normalisation, options, fold) in enumerate(cases):
        torch.manual_seed(seed)
        name = "-".join([architecture, normalisation, *(k.split("_")[0] for k in options), *([] if fold == "none" else ["fold"])])
        sae = build(architecture, normalisation, **options)
        folder = Path("sae") / name
        sae.save_model(folder)
        if normalisation == "expected_average_only_in":
            sae.fold_activation_norm_scaling_factor(SCALE)
        if fold == "decoder-norm":
            sae.fold_W_dec_norm()
        x = torch.randn(TOKENS, D_IN) * torch.exp(torch.randn(TOKENS, 1)) + 0.5
        with torch.no_grad():
            acts = sae.encode(x)
            decode = sae.decode(acts)
            recon = sae(x)
        save_file({"x": x, "acts": acts, "decode": decode, "recon": recon}, f"sae/{name}.golden.safetensors", {"fold": fold})
        print(name, "L0", (acts > 0).float().sum(-1).mean().item())


if __name__ == "__main__":
    main()
