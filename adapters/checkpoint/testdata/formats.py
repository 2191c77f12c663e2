"""Writes formats/: tiny SAEs as their publishers lay them out, each with what it computes.

    SPARSIFY_DISABLE_TRITON=1 python formats.py        # in this folder; rewrites formats/

Pinned: numpy 2.4.6, torch 2.7.1, safetensors 0.8.0, sae-lens 6.54.0, eai-sparsify 1.3.3. The weights are random.

Beside formats/<format>/<case>/ lies <case>.expected.safetensors with float32 x, acts, decode and recon, and as metadata who
computed them ("reference"), which path below the case to open ("path", "" for the case itself), and which facts a person has to
add ("options", a JSON object with the names of checkpoint.SAEFacts). Where no public loader is right, the reference is
"our reading": the definition in plain numpy, float64.
"""

import json
import os
import shutil
import warnings
from pathlib import Path

os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
os.environ.setdefault("WANDB_MODE", "disabled")

import numpy as np
import torch
from safetensors.torch import save_file

warnings.filterwarnings("ignore")
HERE = Path(__file__).parent / "formats"
torch.set_num_threads(1)

N, D_IN, D_SAE, D_OUT = 10, 16, 48, 20
MODEL = "tiny/model"


def fresh(*parts: str) -> Path:
    folder = HERE.joinpath(*parts)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def seeded(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(ord(c) * (i + 1) for i, c in enumerate(name)))


def inputs(name: str, *shape: int) -> torch.Tensor:
    """Rows of very different norms, none of them of mean 0."""
    x = torch.randn(*shape, generator=seeded(name + ".x")) + 0.3
    scales = torch.linspace(0.2, 3, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return x * scales


def expect(fmt: str, case: str, x, acts, decode, recon, reference: str, path: str = "", options: dict | None = None) -> None:
    tensors = {"x": x, "acts": acts, "decode": decode, "recon": recon}
    tensors = {k: torch.as_tensor(v).detach().to(torch.float32).contiguous().clone() for k, v in tensors.items()}
    assert all(torch.isfinite(t).all() for t in tensors.values()), case
    fired = (tensors["acts"] != 0).float().mean()
    assert 0.005 < fired < 0.95, f"{fmt}/{case}: {fired:.3f} of the activations fire"
    meta = {"reference": reference}
    if path:
        meta["path"] = path
    if options:
        meta["options"] = json.dumps(options)
    save_file(tensors, HERE / fmt / f"{case}.expected.safetensors", metadata=meta)


# ---------------------------------------------------------------------------------------------------------------- SAELens


def randomise(model, name: str) -> None:
    g = seeded(name)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if key.startswith("attn_layers"):
                p.copy_(torch.randn(p.shape, generator=g) * (0.05 if key.endswith("bias") else 0.3))
            elif key == "threshold":
                p.copy_(torch.rand(p.shape, generator=g) * 1.5)
            elif key == "r_mag":
                p.copy_(torch.randn(p.shape, generator=g) * 0.4)
            elif p.ndim == 1:
                p.copy_((torch.randn(p.shape, generator=g) * 0.5).to(p.dtype))
            else:
                p.copy_((torch.randn(p.shape, generator=g) * p.shape[0] ** -0.5 * 1.5).to(p.dtype))


def saelens() -> None:
    import sae_lens as sl
    from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig  # noqa: F401 (registers itself)
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE, MatchingPursuitSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.temporal_sae import TemporalSAE, TemporalSAEConfig

    fresh("saelens")
    reference = "sae-lens 6.54.0"

    def meta(hook="blocks.1.hook_resid_post", out=None) -> SAEMetadata:
        more = {"hook_name_out": out} if out else {}
        return SAEMetadata(model_name=MODEL, hook_name=hook, prepend_bos=True, context_size=64, **more)

    def record(case: str, model, x=None, options=None) -> None:
        x = inputs(case, N, D_IN) if x is None else x
        with torch.no_grad():
            acts = model.encode(x)
            decode = model.decode(acts.clone())
            recon = model(x)
        expect("saelens", case, x, acts, decode, recon, reference, options=options)

    base = dict(d_in=D_IN, d_sae=D_SAE)
    trans = dict(base, d_out=D_OUT, apply_b_dec_to_input=False)
    plain = {
        "standard": (sl.StandardSAE, sl.StandardSAEConfig(**base, metadata=meta())),
        "standard-no-b-dec": (sl.StandardSAE, sl.StandardSAEConfig(**base, metadata=meta(), apply_b_dec_to_input=False)),
        "standard-layer-norm": (sl.StandardSAE, sl.StandardSAEConfig(**base, metadata=meta(), normalize_activations="layer_norm")),
        "standard-constant-norm": (sl.StandardSAE, sl.StandardSAEConfig(**base, metadata=meta(), normalize_activations="constant_norm_rescale")),
        "standard-hook-z": (sl.StandardSAE, sl.StandardSAEConfig(**base, metadata=meta("blocks.1.attn.hook_z"), reshape_activations="hook_z")),
        "topk": (sl.TopKSAE, sl.TopKSAEConfig(**base, metadata=meta(), k=6)),
        "topk-rescaled": (sl.TopKSAE, sl.TopKSAEConfig(**base, metadata=meta(), k=6, rescale_acts_by_decoder_norm=True)),
        "topk-layer-norm": (sl.TopKSAE, sl.TopKSAEConfig(**base, metadata=meta(), k=6, normalize_activations="layer_norm")),
        "jumprelu": (sl.JumpReLUSAE, sl.JumpReLUSAEConfig(**base, metadata=meta())),
        "jumprelu-layer-norm": (sl.JumpReLUSAE, sl.JumpReLUSAEConfig(**base, metadata=meta(), normalize_activations="layer_norm")),
        "gated": (sl.GatedSAE, sl.GatedSAEConfig(**base, metadata=meta())),
        "gated-constant-norm": (sl.GatedSAE, sl.GatedSAEConfig(**base, metadata=meta(), normalize_activations="constant_norm_rescale")),
        "transcoder": (sl.Transcoder, sl.TranscoderConfig(**trans, metadata=meta("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"))),
        "transcoder-layer-norm": (sl.Transcoder, sl.TranscoderConfig(**trans, metadata=meta("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"), normalize_activations="layer_norm")),
        "skip_transcoder": (sl.SkipTranscoder, sl.SkipTranscoderConfig(**trans, metadata=meta("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"))),
        "skip_transcoder-layer-norm": (sl.SkipTranscoder, sl.SkipTranscoderConfig(**trans, metadata=meta("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"), normalize_activations="layer_norm")),
        "jumprelu_transcoder": (sl.JumpReLUTranscoder, sl.JumpReLUTranscoderConfig(**trans, metadata=meta("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"))),
        "jumprelu_skip_transcoder": (sl.saes.JumpReLUSkipTranscoder, sl.saes.JumpReLUSkipTranscoderConfig(**trans, metadata=meta("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"))),
        "matching_pursuit": (MatchingPursuitSAE, MatchingPursuitSAEConfig(**base, metadata=meta(), residual_threshold=1e-2, max_iterations=12)),
        "matching_pursuit-residual": (MatchingPursuitSAE, MatchingPursuitSAEConfig(**base, metadata=meta(), residual_threshold=1.5, stop_on_duplicate_support=False, apply_b_dec_to_input=False)),
        "matching_pursuit-support": (MatchingPursuitSAE, MatchingPursuitSAEConfig(**base, metadata=meta(), residual_threshold=0.0)),
    }
    for case, (kind, config) in plain.items():
        model = kind(config)
        randomise(model, case)
        if case.startswith("matching_pursuit"):
            with torch.no_grad():
                model.W_dec /= model.W_dec.norm(dim=-1, keepdim=True)
        model.save_model(HERE / "saelens" / case)
        model = sl.SAE.load_from_disk(HERE / "saelens" / case)
        record(case, model, inputs(case, N, 4, D_IN // 4) if case == "standard-hook-z" else None)

    for case, activation, arch, config in [
        ("standard-expected-average", 0.43, sl.StandardSAE, sl.StandardSAEConfig(**base, metadata=meta(), normalize_activations="expected_average_only_in")),
        ("gated-expected-average", 0.71, sl.GatedSAE, sl.GatedSAEConfig(**base, metadata=meta(), normalize_activations="expected_average_only_in")),
        ("topk-rescaled-expected-average", 0.57, sl.TopKSAE, sl.TopKSAEConfig(**base, metadata=meta(), k=5, rescale_acts_by_decoder_norm=True, normalize_activations="expected_average_only_in")),
    ]:
        model = arch(config)
        randomise(model, case)
        model.save_model(HERE / "saelens" / case)
        model = sl.SAE.load_from_disk(HERE / "saelens" / case)
        model.fold_activation_norm_scaling_factor(activation)
        if case.startswith("gated"):  # one where the factor lies beside it
            (HERE / "saelens" / case / "activation_scaler.json").write_text(json.dumps({"scaling_factor": activation}))
            record(case, model)
        else:
            record(case, model, options={"scaling_factor": activation})

    # What training keeps: batch top-k as it saves for inference and as a checkpoint, thresholds as logarithms.
    for case, kind, config in [
        ("batchtopk", sl.BatchTopKTrainingSAE, sl.BatchTopKTrainingSAEConfig(**base, metadata=meta(), k=5, rescale_acts_by_decoder_norm=True)),
        ("matryoshka_batchtopk", sl.MatryoshkaBatchTopKTrainingSAE, sl.MatryoshkaBatchTopKTrainingSAEConfig(**base, metadata=meta(), k=5, matryoshka_widths=[16, D_SAE])),
    ]:
        model = kind(config)
        randomise(model, case)
        model.topk_threshold.fill_(0.9)
        model.save_inference_model(HERE / "saelens" / case)
        record(case, sl.SAE.load_from_disk(HERE / "saelens" / case))
        saved = sl.SAE.load_from_disk(HERE / "saelens" / case)
        model.save_model(HERE / "saelens" / f"{case}-checkpoint")
        x = inputs(case, N, D_IN)
        with torch.no_grad():
            acts = saved.encode(x)
            expect("saelens", f"{case}-checkpoint", x, acts, saved.decode(acts), saved(x), reference + " (save_inference_model)")

    model = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**base, metadata=meta()))
    randomise(model, "jumprelu-log-threshold")
    case = HERE / "saelens" / "jumprelu-log-threshold"
    model.save_inference_model(case)
    record(case.name, sl.SAE.load_from_disk(case))
    weights = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    weights["log_threshold"] = weights.pop("threshold").clamp(min=1e-3).log()
    save_file(weights, case / "sae_weights.safetensors")

    for case, more in {
        "temporal": dict(tied_weights=True, sae_diff_type="topk", kval_topk=6, normalize_activations="constant_scalar_rescale", activation_normalization_factor=0.6),
        "temporal-untied": dict(tied_weights=False, sae_diff_type="relu", kval_topk=None, n_attn_layers=2, apply_b_dec_to_input=False),
        "temporal-tied-no-b-dec": dict(tied_weights=True, sae_diff_type="topk", kval_topk=None, apply_b_dec_to_input=False),
    }.items():
        model = TemporalSAE(TemporalSAEConfig(**base, metadata=meta(), n_heads=4, bottleneck_factor=4, **more))
        randomise(model, case)
        with torch.no_grad():  # codes are relu(x W / (4 d_in)): keep them of a size at which attention matters
            model.W_dec *= 12
        model.save_model(HERE / "saelens" / case)
        record(case, sl.SAE.load_from_disk(HERE / "saelens" / case), inputs(case, 3, 7, D_IN))

    # The flat form, as SAELens 3 to 5 wrote it.
    flat = dict(d_in=D_IN, d_sae=D_SAE, dtype="torch.float32", device="cuda", model_name=MODEL, hook_point="blocks.1.hook_resid_pre", hook_point_layer=1,
                hook_point_head_index=None, activation_fn_str="relu", normalize_activations=None, context_size=64, dataset_path="x", finetuning_scaling_factor=False)
    for case, change in {
        "old-standard": {},
        "old-gated": dict(architecture="gated"),
        "old-topk": dict(activation_fn_str="topk", activation_fn_kwargs={"k": 5}, normalize_activations="layer_norm", apply_b_dec_to_input=False),
        "old-hook-z": dict(hook_point="blocks.1.attn.hook_z"),
    }.items():
        folder = HERE / "saelens" / case
        model = sl.GatedSAE(sl.GatedSAEConfig(**base)) if case == "old-gated" else sl.StandardSAE(sl.StandardSAEConfig(**base))
        randomise(model, case)
        model.save_model(folder)
        (folder / "cfg.json").write_text(json.dumps(flat | change))
        record(case, sl.SAE.load_from_disk(folder), inputs(case, N, 4, D_IN // 4) if case == "old-hook-z" else None)


# --------------------------------------------------------------------------------------------------------------- sparsify


def sparsify() -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    fresh("sparsify")
    for case, module, settings in [
        ("topk", "layers.3", dict(k=6, expansion_factor=3)),
        ("topk-num-latents", "layers.3.mlp", dict(k=6, num_latents=40)),
        ("groupmax", "layers.0.self_attn", dict(k=6, num_latents=D_SAE, activation="groupmax")),
        ("transcode", "layers.2.mlp", dict(k=6, num_latents=D_SAE, transcode=True)),
        ("transcode-skip", "layers.2.mlp", dict(k=6, num_latents=D_SAE, transcode=True, skip_connection=True)),
        ("skip", "layers.2.mlp", dict(k=6, num_latents=D_SAE, skip_connection=True)),
        ("embedding", "embed_tokens", dict(k=6, num_latents=D_SAE)),
    ]:
        coder = SparseCoder(D_IN, SparseCoderConfig(**settings))
        g = seeded(case)
        with torch.no_grad():
            for p in coder.parameters():
                p.copy_(torch.randn(p.shape, generator=g) * (0.5 if p.ndim == 1 else p.shape[1] ** -0.5 * 1.5))
        root = HERE / "sparsify" / case
        coder.save_to_disk(root / module)
        if case == "topk":  # what a run writes beside its hook points
            (root / "config.json").write_text(json.dumps({"sae": settings, "model": MODEL, "dataset": "x", "ctx_len": 128, "hookpoints": [module]}))
        coder = SparseCoder.load_from_disk(root / module)
        x = inputs(case, N, D_IN)
        with torch.no_grad():
            top, chosen, _ = coder.encode(x)
            acts = torch.zeros(N, coder.num_latents).scatter_(1, chosen, top)
            decode = coder.decode(top, chosen)
            recon = coder(x).sae_out
        expect("sparsify", case, x, acts, decode, recon, "eai-sparsify 1.3.3", path=module)


if __name__ == "__main__":
    import sys

    HERE.mkdir(exist_ok=True)
    for make in [saelens, sparsify]:
        if len(sys.argv) == 1 or make.__name__ in sys.argv[1:]:
            make()
