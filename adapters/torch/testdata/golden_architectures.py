"""Writes architectures/NAME.safetensors: weights in canonical form, x, and what the reference makes of it.

The metadata `config` is a checkpoint.SAEConfig with the extras of its architecture, `reference` says who computed.
torch 2.7.1, sae-lens 6.54.0, eai-sparsify 1.3.3. Run in this folder: SPARSIFY_DISABLE_TRITON=1 python golden_architectures.py
"""

import json
import os
import shutil
from pathlib import Path

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"

import torch
from safetensors.torch import save_file
from sae_lens import (
    GatedSAE, GatedSAEConfig, JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig, JumpReLUTranscoder, JumpReLUTranscoderConfig,
    MatchingPursuitSAE, MatchingPursuitSAEConfig, SkipTranscoder, SkipTranscoderConfig, StandardSAE, StandardSAEConfig,
    TemporalSAE, TemporalSAEConfig, TopKSAE, TopKSAEConfig, Transcoder, TranscoderConfig,
)
from sparsify import SparseCoder, SparseCoderConfig

D_IN, D_OUT, D_SAE, K, TOKENS, SCALE = 24, 20, 96, 12, 32, 0.31
NORMALISATIONS = ["none", "constant_norm_rescale", "layer_norm"]
OUT = Path("architectures")


def fill(sae):
    """Every parameter that the class has gets random values of a sensible size."""
    size = {"W_enc": D_IN**-0.5, "W_skip": D_IN**-0.5, "b_dec": 0.4, "b_enc": 0.3, "b_gate": 0.5, "b_mag": 0.3, "r_mag": 0.5}
    for name, p in sae.named_parameters():
        if name in size:
            p.copy_(torch.randn_like(p) * size[name] - (0.3 if name in ("b_enc", "b_gate") else 0))
        elif name == "W_dec":
            p.copy_(torch.randn_like(p) * (0.2 + torch.rand(p.shape[0], 1)) / p.shape[1] ** 0.5)
        elif name == "threshold":
            p.copy_(torch.rand_like(p) * 1.5 - 0.3)
        elif name.endswith(".bias"):
            p.copy_(torch.randn_like(p) * 0.1)


def weights(sae):
    names = ["W_enc", "b_enc", "W_dec", "b_dec", "threshold", "b_gate", "b_mag", "r_mag", "W_skip"]
    found = {n: getattr(sae, n).detach().clone().contiguous() for n in names if getattr(sae, n, None) is not None}
    found |= {n: p.detach().clone().contiguous() for n, p in sae.named_parameters() if n.startswith("attn_layers.")}
    return found


def save(name, config, tensors, x, acts, decode, recon, reference):
    rows = x.shape[0] * (x.shape[1] if config.get("Architecture") == "temporal" else 1)
    tensors = tensors | {"x": x, "acts": acts.reshape(rows, -1), "decode": decode.reshape(rows, -1), "recon": recon.reshape(rows, -1)}
    save_file({k: v.contiguous() for k, v in tensors.items()}, OUT / f"{name}.safetensors", {"config": json.dumps(config), "reference": reference})
    print(f"{name}: L0 {(acts > 0).float().sum(-1).mean().item():.1f}, {(OUT / f'{name}.safetensors').stat().st_size} bytes")


def lens(name, sae, architecture, x=None, fold=None, filled=False, **extra):
    if not filled:
        fill(sae)
    if sae.cfg.normalize_activations == "expected_average_only_in":
        sae.fold_activation_norm_scaling_factor(SCALE)
    if fold:
        sae.fold_W_dec_norm()
    if x is None:
        x = torch.randn(TOKENS, D_IN) * torch.exp(torch.randn(TOKENS, 1)) + 0.5
    acts = sae.encode(x)
    decode, recon = sae.decode(acts), sae(x)
    c = sae.cfg
    config = {
        "Architecture": architecture, "DIn": c.d_in, "DSAE": c.d_sae, "DOut": getattr(c, "d_out", c.d_in), "K": getattr(c, "k", 0),
        "RescaleActsByDecoderNorm": getattr(c, "rescale_acts_by_decoder_norm", False), "ApplyBDecToInput": c.apply_b_dec_to_input,
        "Normalization": c.normalize_activations, "Transcoder": "transcoder" in sae.cfg.architecture(), "Reshape": c.reshape_activations, **extra,
    }
    save(name, config, weights(sae), x, acts, decode, recon, "sae-lens 6.54.0")


def sparsify(name, d_out=D_IN, **options):
    sae = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=16, normalize_decoder=False, **options))
    sae.encoder.weight.copy_(torch.randn(D_SAE, D_IN) / D_IN**0.5)
    sae.encoder.bias.copy_(torch.randn(D_SAE) * 0.3 - 0.3)
    sae.W_dec.copy_(torch.randn(D_SAE, D_IN) / D_IN**0.5)
    sae.b_dec.copy_(torch.randn(D_IN) * 0.4)
    tensors = {"W_enc": sae.encoder.weight.T, "b_enc": sae.encoder.bias, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    if sae.W_skip is not None:
        sae.W_skip.copy_(torch.randn(D_IN, D_IN) / D_IN**0.5)
        tensors["W_skip"] = sae.W_skip
    x = torch.randn(TOKENS, D_IN) * torch.exp(torch.randn(TOKENS, 1)) + 0.5
    top, indices, _ = sae.encode(x)
    acts = torch.zeros(TOKENS, D_SAE).scatter_(1, indices, top)
    config = {
        "Architecture": options.get("activation", "topk"), "DIn": D_IN, "DSAE": D_SAE, "DOut": D_IN, "K": 16,
        "ApplyBDecToInput": not sae.cfg.transcode, "Normalization": "none", "Transcoder": sae.cfg.transcode,
    }
    save(name, config, {k: v.detach().clone() for k, v in tensors.items()}, x, acts, sae.decode(top, indices), sae(x).sae_out, "eai-sparsify 1.3.3")


@torch.no_grad()
def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    seed = iter(range(1000))

    def common(**options):
        torch.manual_seed(next(seed))
        return dict(d_in=D_IN, d_sae=D_SAE, dtype="float32", device="cpu", reshape_activations="none") | options

    for n in NORMALISATIONS + ["expected_average_only_in"]:
        lens(f"gated-{n}", GatedSAE(GatedSAEConfig(**common(normalize_activations=n))), "gated", Normalization=n.replace("expected_average_only_in", "none"))
    lens("gated-b_dec-on-output-only", GatedSAE(GatedSAEConfig(**common(apply_b_dec_to_input=False))), "gated")
    lens("gated-fold", GatedSAE(GatedSAEConfig(**common())), "gated", fold=True)
    for n in NORMALISATIONS:
        t = lambda: common(d_out=D_OUT, apply_b_dec_to_input=False, normalize_activations=n)
        lens(f"transcoder-{n}", Transcoder(TranscoderConfig(**t())), "standard")
        lens(f"skip-transcoder-{n}", SkipTranscoder(SkipTranscoderConfig(**t())), "standard")
        lens(f"jumprelu-transcoder-{n}", JumpReLUTranscoder(JumpReLUTranscoderConfig(**t())), "jumprelu")
        lens(f"jumprelu-skip-transcoder-{n}", JumpReLUSkipTranscoder(JumpReLUSkipTranscoderConfig(**t())), "jumprelu")
    z = lambda: torch.randn(TOKENS, 4, D_IN // 4) * torch.exp(torch.randn(TOKENS, 1, 1)) + 0.5
    for n in NORMALISATIONS:
        lens(f"hook_z-{n}", StandardSAE(StandardSAEConfig(**common(reshape_activations="hook_z", normalize_activations=n))), "standard", z())
    lens("hook_z-topk", TopKSAE(TopKSAEConfig(k=K, **common(reshape_activations="hook_z"))), "topk", z())

    for name, options in {
        "none": {}, "threshold": {"residual_threshold": 1.5}, "twelve": {"max_iterations": 12, "stop_on_duplicate_support": False, "residual_threshold": 0.0},
        "revisits": {"stop_on_duplicate_support": False, "residual_threshold": 0.5}, "b_dec-nowhere": {"apply_b_dec_to_input": False},
        "constant_norm_rescale": {"normalize_activations": "constant_norm_rescale"}, "layer_norm": {"normalize_activations": "layer_norm"},
    }.items():
        sae = MatchingPursuitSAE(MatchingPursuitSAEConfig(**common(**options)))
        fill(sae)
        sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_dec, dim=1))
        c = sae.cfg
        lens(f"matching_pursuit-{name}", sae, "matching_pursuit", filled=True, Pursuit={
            "ResidualThreshold": c.residual_threshold, "MaxIterations": c.max_iterations or 0, "StopOnDuplicateSupport": c.stop_on_duplicate_support})

    for name, options in {
        "tied-topk": {}, "untied-topk": {"tied_weights": False}, "tied-relu": {"sae_diff_type": "relu"}, "two-layers": {"n_attn_layers": 2},
        "b_dec-nowhere": {"apply_b_dec_to_input": False}, "untied-b_dec-on-output-only": {"apply_b_dec_to_input": False, "tied_weights": False},
        "constant_scalar_rescale": {"normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": 0.37},
        "constant_norm_rescale": {"normalize_activations": "constant_norm_rescale"}, "layer_norm": {"normalize_activations": "layer_norm"},
    }.items():
        sae = TemporalSAE(TemporalSAEConfig(**(common(d_sae=96, n_heads=2, bottleneck_factor=8, kval_topk=10) | options)))
        fill(sae)
        sae.W_dec.mul_(3)
        c = sae.cfg
        x = torch.randn(3, 11, D_IN) * torch.exp(torch.randn(3, 11, 1)) + 0.5
        lens(f"temporal-{name}", sae, "temporal", x, filled=True, Temporal={
            "Heads": c.n_heads, "BottleneckDim": c.d_sae // c.bottleneck_factor, "TopK": c.kval_topk if c.sae_diff_type == "topk" else 0,
            "Lambda": sae.lam, "Tied": c.tied_weights, "ActivationScale": c.activation_normalization_factor, "Layers": [{}] * c.n_attn_layers})

    for activation in ("topk", "groupmax"):
        for kind, options in {"sae": {}, "transcoder": {"transcode": True}, "skip-transcoder": {"transcode": True, "skip_connection": True}, "skip-sae": {"skip_connection": True}}.items():
            torch.manual_seed(next(seed))
            sparsify(f"sparsify-{activation}-{kind}", activation=activation, **options)


if __name__ == "__main__":
    main()
