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


# ------------------------------------------------------------------------------------- formats that others' loaders convert


def hub(root: Path):
    """Makes SAELens's loaders read a folder as if it were the repository they ask for."""
    from huggingface_hub.errors import EntryNotFoundError
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def get(repo_id, filename, subfolder=None, **_):
        path = root / subfolder / filename if subfolder else root / filename
        if not path.exists():
            raise EntryNotFoundError(str(path))
        return str(path)

    def shapes(repo_id, filename):
        from safetensors.torch import load_file

        return {k: list(v.shape) for k, v in load_file(root / filename).items()}

    loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = get, shapes
    return loaders


def converted(fmt: str, case: str, loader: str, root: Path, repo: str, folder: str, path: str, options: dict | None = None, overrides: dict | None = None,
              scale: float | None = None, x=None, reference="sae-lens 6.54.0") -> None:
    """What SAELens computes with what its loader makes of the files (its own from_pretrained, without the network)."""
    import sae_lens as sl

    loaders = hub(root)
    cfg, state, _ = loaders.NAMED_PRETRAINED_SAE_LOADERS[loader](repo, folder, device="cpu", cfg_overrides={"dtype": "float32", "device": "cpu"} | (overrides or {}))
    cfg = loaders.handle_config_defaulting(cfg)
    model = sl.saes.sae.SAE.get_sae_class_for_architecture(cfg["architecture"])(sl.saes.sae.SAE.get_sae_config_class_for_architecture(cfg["architecture"]).from_dict(cfg))
    model.process_state_dict_for_loading(state)
    model.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    if scale is not None:
        model.fold_activation_norm_scaling_factor(scale)
    x = inputs(fmt + case, N, D_IN) if x is None else x
    with torch.no_grad():
        acts = model.encode(x)
        expect(fmt, case, x, acts, model.decode(acts.clone()), model(x), reference, path=path, options=options)


def matrices(name: str, d_in=D_IN, d_sae=D_SAE, d_out=None) -> dict:
    d_out, g = d_out or d_in, seeded(name)
    return {
        "W_enc": torch.randn(d_in, d_sae, generator=g) * 1.5 * d_in**-0.5, "b_enc": torch.randn(d_sae, generator=g) * 0.4,
        "W_dec": torch.randn(d_sae, d_out, generator=g) * 0.3, "b_dec": torch.randn(d_out, generator=g) * 0.5,
        "threshold": torch.rand(d_sae, generator=g) * 1.2,
    }


def ours(fmt: str, case: str, w: dict, x, path: str, options=None, kind="standard", k=0, subtract=False, norm="none", transcoder=False, skip=None) -> None:
    """The definition in float64: u = norm(x) (− b_dec), z = u·W_enc + b_enc, what kind keeps of it, ŷ = norm⁻¹(acts·W_dec + b_dec)."""
    w = {k: v.double().numpy() for k, v in w.items() if isinstance(v, torch.Tensor)}
    x64 = x.double().numpy()
    if norm == "layer_norm":
        mean, std = x64.mean(-1, keepdims=True), x64.std(-1, ddof=1, keepdims=True)
        u, back = (x64 - mean) / (std + 1e-5), lambda y: y * std + mean
    elif norm == "constant_norm_rescale":
        by = x64.shape[-1] ** 0.5 / np.linalg.norm(x64, axis=-1, keepdims=True)
        u, back = x64 * by, lambda y: y / by
    else:
        u, back = x64, lambda y: y
    z = (u - w["b_dec"] if subtract else u) @ w["W_enc"] + w["b_enc"]
    acts = np.maximum(z, 0)
    if kind == "jumprelu":
        acts = acts * (z > w["threshold"])
    if kind == "topk":
        keep = np.argsort(-z, axis=-1)[:, :k]
        mask = np.zeros_like(z)
        np.put_along_axis(mask, keep, 1, -1)
        acts = acts * mask
    y = acts @ w["W_dec"] + w["b_dec"]
    decode = y if transcoder else back(y)
    expect(fmt, case, x, acts, decode, decode if skip is None else decode + x64 @ skip.double().numpy().T, "our reading", path=path, options=options)


def gemma_scope() -> None:
    fresh("gemma_scope")

    def write(root: Path, folder: str, w: dict, deflate: bool = False, lower: bool = False):
        (root / folder).mkdir(parents=True)
        arrays = {("w_" + k[2:] if lower and k.startswith("W_") else k): v.numpy() for k, v in w.items()}
        (np.savez_compressed if deflate else np.savez)(root / folder / "params.npz", **arrays)

    for case, repo, folder, change in [
        ("res", "gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82", {}),
        ("res-deflated", "gemma-scope-9b-it-res", "layer_20/width_16k/average_l0_91", dict(deflate=True, lower=True)),
        ("mlp", "gemma-scope-2b-pt-mlp", "layer_3/width_16k/average_l0_60", {}),
        ("att", "gemma-scope-9b-pt-att", "layer_3/width_16k/average_l0_60", dict(deflate=True)),
    ]:
        root = HERE / "gemma_scope" / case / repo
        write(root, folder, matrices("gs" + case), **change)
        x = inputs("gs" + case, N, 4, D_IN // 4) if case == "att" else None
        converted("gemma_scope", case, "gemma_2", root, "google/" + repo, folder, f"{repo}/{folder}", overrides=dict(d_in=D_IN, d_sae=D_SAE), x=x)

    root, folder = HERE / "gemma_scope" / "embedding" / "gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_6"
    w = matrices("gs-embedding")
    w["W_enc"] *= D_IN**0.5
    write(root, folder, w)
    converted("gemma_scope", "embedding", "gemma_2", root, "google/gemma-scope-2b-pt-res", folder, f"gemma-scope-2b-pt-res/{folder}", overrides=dict(d_in=D_IN, d_sae=D_SAE))

    root, folder = HERE / "gemma_scope" / "transcoder" / "gemma-scope-2b-pt-transcoders", "layer_5/width_16k/average_l0_41"
    write(root, folder, matrices("gs-transcoder"))
    converted("gemma_scope", "transcoder", "gemma_2_transcoder", root, "google/gemma-scope-2b-pt-transcoders", folder, f"gemma-scope-2b-pt-transcoders/{folder}", overrides=dict(d_in=D_IN, d_out=D_IN, d_sae=D_SAE))


def gemma_scope_2() -> None:
    fresh("gemma_scope_2")
    for case, folder, config, affine in [
        ("resid_post", "resid_post/layer_12_width_16k_l0_small", {"hf_hook_point_in": "model.layers.12.output"}, False),
        ("attn_out", "attn_out_all/layer_2_width_16k_l0_big", None, False),
        ("mlp_out", "mlp_out/layer_2_width_16k_l0_big", {"hf_hook_point_in": "model.layers.2.post_feedforward_layernorm.output"}, False),
        ("transcoder", "transcoder_all/layer_0_width_16k_l0_big", None, False),
        ("transcoder-affine", "transcoder/layer_4_width_262k_l0_small_affine", {"hf_hook_point_in": "model.layers.4.pre_feedforward_layernorm.output", "hf_hook_point_out": "model.layers.4.post_feedforward_layernorm.output", "affine_connection": True}, True),
    ]:
        root = HERE / "gemma_scope_2" / case / "gemma-scope-2-1b-pt"
        (root / folder).mkdir(parents=True)
        w = {(k[0].lower() + k[1:]): v for k, v in matrices("gs2" + case).items()}
        if affine:
            w["affine_skip_connection"] = torch.randn(D_IN, D_IN, generator=seeded("affine")) * 0.2
        save_file({k: v.contiguous() for k, v in w.items()}, root / folder / "params.safetensors")
        if config:
            (root / folder / "config.json").write_text(json.dumps({"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt"} | config))
        x = inputs("gs2" + case, N, 4, D_IN // 4) if case == "attn_out" else None
        if case == "attn_out":  # SAELens 6.54 takes hook_z flat here
            converted("gemma_scope_2", case, "gemma_3", root, "google/gemma-scope-2-1b-pt", folder, f"gemma-scope-2-1b-pt/{folder}", x=x.flatten(1))
        else:
            converted("gemma_scope_2", case, "gemma_3", root, "google/gemma-scope-2-1b-pt", folder, f"gemma-scope-2-1b-pt/{folder}")

    root = HERE / "gemma_scope_2" / "clt-layer" / "gemma-scope-2-1b-pt"
    (root / "clt/width_262k_l0_medium").mkdir(parents=True)
    w = {(k[0].lower() + k[1:]): v for k, v in matrices("gs2-clt").items()}
    w["w_dec"] = torch.randn(D_SAE, 3, D_IN, generator=seeded("clt")) * 0.2
    save_file(w, root / "clt/width_262k_l0_medium/layer_3.safetensors")
    converted("gemma_scope_2", "clt-layer", "gemma_3", root, "google/gemma-scope-2-1b-pt", "clt/width_262k_l0_medium/layer_3", "gemma-scope-2-1b-pt/clt/width_262k_l0_medium/layer_3.safetensors")


def dictionary_learning() -> None:
    fresh("dictionary_learning")

    def write(case: str, dict_class: str, state: dict, trainer: dict | None = None, nested: bool = False) -> Path:
        folder = HERE / "dictionary_learning" / case / "resid_post_layer_3" / "trainer_0"
        folder.mkdir(parents=True)
        config = {"trainer": {"dict_class": dict_class, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 3, "lm_name": MODEL, "submodule_name": "resid_post_layer_3", "trainer_class": "x"} | (trainer or {}),
                  "buffer": {"d_submodule": D_IN, "io": "out", "ctx_len": 128}}
        (folder / "config.json").write_text(json.dumps(config))
        torch.save({"ae": state, "optimizer": {"lr": 1e-3, "state": [torch.zeros(2)]}, "norm_factor": 2.5} if nested else state, folder / "ae.pt")
        return folder

    def linear(w: dict, b_dec: str) -> dict:
        return {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T.contiguous(), b_dec: w["b_dec"]}

    load = lambda case, folder, **more: converted("dictionary_learning", case, "dictionary_learning_1", folder.parent.parent, "x/y", "resid_post_layer_3/trainer_0", "resid_post_layer_3/trainer_0", **more)
    at = "resid_post_layer_3/trainer_0"

    w = matrices("dl-standard")
    load("AutoEncoder", write("AutoEncoder", "AutoEncoder", linear(w, "bias")))
    w = matrices("dl-new")  # SAELens subtracts b_dec here, which the class does not
    write("AutoEncoderNew", "AutoEncoderNew", linear(w, "decoder.bias"))
    ours("dictionary_learning", "AutoEncoderNew", w, inputs("dl-new", N, D_IN), at)
    w, g = matrices("dl-gated"), seeded("dl-gated2")
    gated = {"encoder.weight": w["W_enc"].T.contiguous(), "decoder.weight": w["W_dec"].T.contiguous(), "decoder_bias": w["b_dec"],
             "r_mag": torch.randn(D_SAE, generator=g) * 0.3, "gate_bias": torch.randn(D_SAE, generator=g) * 0.4, "mag_bias": torch.randn(D_SAE, generator=g) * 0.4}
    load("GatedAutoEncoder", write("GatedAutoEncoder", "GatedAutoEncoder", gated))
    load("JumpReluAutoEncoder", write("JumpReluAutoEncoder", "JumpReluAutoEncoder", matrices("dl-jump")))
    w = matrices("dl-topk")
    load("AutoEncoderTopK", write("AutoEncoderTopK", "AutoEncoderTopK", linear(w, "b_dec") | {"k": torch.tensor(6, dtype=torch.int), "threshold": torch.tensor(-1.0)}, {"k": 6}))
    w = matrices("dl-batch")
    folder = write("BatchTopKSAE", "BatchTopKSAE", linear(w, "b_dec") | {"k": torch.tensor(6, dtype=torch.int), "threshold": torch.tensor(0.8)}, {"k": 6})
    load("BatchTopKSAE", folder)
    folder = write("MatryoshkaBatchTopKSAE", "MatryoshkaBatchTopKSAE",
                   {k: v for k, v in matrices("dl-matryoshka").items() if k != "threshold"} | {"k": torch.tensor(6, dtype=torch.int), "threshold": torch.tensor(0.7), "group_sizes": torch.tensor([16, 32])}, {"k": 6, "group_sizes": [16, 32]})
    load("MatryoshkaBatchTopKSAE", folder)
    w = matrices("dl-unset")
    write("BatchTopKSAE-threshold-never-set", "BatchTopKSAE", linear(w, "b_dec") | {"k": torch.tensor(6, dtype=torch.int), "threshold": torch.tensor(-1.0)}, {"k": 6})
    ours("dictionary_learning", "BatchTopKSAE-threshold-never-set", w, inputs("dl-unset", N, D_IN), at, options={"k": 6}, kind="topk", k=6, subtract=True)
    w = matrices("dl-nested")
    write("AutoEncoder-backup", "AutoEncoder", linear(w, "bias"), nested=True)
    folded = w | {"W_enc": w["W_enc"] / 2.5, "W_dec": w["W_dec"] * 2.5, "b_dec": w["b_dec"] * 2.5}
    ours("dictionary_learning", "AutoEncoder-backup", folded, inputs("dl-nested", N, D_IN), at, subtract=True)


def openmoss() -> None:
    for fmt in ["llama_scope", "llama_scope_r1_distill", "llamascopium"]:
        fresh(fmt)
    average = 3.1

    def linear(w: dict) -> dict:
        return {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T.contiguous(), "decoder.bias": w["b_dec"]}

    w = {k: v.bfloat16() for k, v in matrices("llama-scope").items()}
    folder = HERE / "llama_scope" / "jumprelu" / "Llama3_1-8B-Base-L15R-8x"
    (folder / "checkpoints").mkdir(parents=True)
    save_file(linear(w), folder / "checkpoints" / "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps({"d_model": D_IN, "d_sae": D_SAE, "jump_relu_threshold": 0.52, "dataset_average_activation_norm": {"in": average, "out": average},
                                                         "hook_point_in": "blocks.15.hook_resid_post", "hook_point_out": "blocks.15.hook_resid_post", "act_fn": "jumprelu", "norm_activation": "dataset-wise", "dtype": "torch.bfloat16"}))
    converted("llama_scope", "jumprelu", "llama_scope", folder.parent, "fnlp/x", folder.name, folder.name, scale=D_IN**0.5 / average)

    w = matrices("llama-r1")
    for case, norms in [("jumprelu", None), ("jumprelu-norm-in-config", {"in": average, "out": average})]:
        folder = HERE / "llama_scope_r1_distill" / case / "L15R"
        folder.mkdir(parents=True)
        save_file(linear(w) | {"log_jumprelu_threshold": w["threshold"].clamp(min=0.05).log()}, folder / "sae_weights.safetensors")
        config = {"d_model": D_IN, "expansion_factor": D_SAE // D_IN, "hook_point_in": "blocks.15.hook_resid_post", "hook_point_out": "blocks.15.hook_resid_post", "norm_activation": "dataset-wise", "act_fn": "jumprelu", "sae_type": "sae"}
        (folder / "config.json").write_text(json.dumps(config | ({"dataset_average_activation_norm": norms} if norms else {})))
        scale = D_IN**0.5 / average
        converted("llama_scope_r1_distill", case, "llama_scope_r1_distill", folder.parent, "fnlp/x", "L15R", "L15R", scale=scale, options=None if norms else {"scaling_factor": scale})

    def current(case: str, w: dict, config: dict, extra: dict | None = None, threshold=False):
        folder = HERE / "llamascopium" / case
        folder.mkdir(parents=True)
        state = {"W_E": w["W_enc"], "b_E": w["b_enc"], "W_D": w["W_dec"], "b_D": w["b_dec"]} | (extra or {})
        if threshold:
            state["activation_function.log_jumprelu_threshold"] = w["threshold"].log()
        save_file({k: v.contiguous() for k, v in state.items()}, folder / "sae_weights.safetensors")
        base = {"sae_type": "sae", "d_model": D_IN, "expansion_factor": D_SAE / D_IN, "use_decoder_bias": True, "norm_activation": "inference", "sparsity_include_decoder_norm": True,
                "top_k": 6, "hook_point_in": "blocks.4.hook_resid_post", "hook_point_out": "blocks.4.hook_resid_post", "use_glu_encoder": False, "dtype": "torch.float32"}
        (folder / "config.json").write_text(json.dumps(base | config))

    def norms(**values):
        return {f"dataset_average_activation_norm.{k}": torch.tensor(v) for k, v in values.items()}

    w = matrices("moss-relu")
    current("relu", w, {"act_fn": "relu"})
    ours("llamascopium", "relu", w, inputs("moss-relu", N, D_IN), "")
    w = matrices("moss-jump")  # gated by z × ‖W_D row‖, gives z
    w["threshold"] = w["threshold"].clamp(min=0.05)
    current("jumprelu", w, {"act_fn": "jumprelu"}, threshold=True)
    ours("llamascopium", "jumprelu", w | {"threshold": w["threshold"].double() / w["W_dec"].double().norm(dim=1)}, inputs("moss-jump", N, D_IN), "", kind="jumprelu")
    w = matrices("moss-topk")  # chosen by z × ‖W_D row‖; we report activations with the norms folded
    current("topk", w, {"act_fn": "topk"})
    n = w["W_dec"].double().norm(dim=1)
    ours("llamascopium", "topk", {"W_enc": w["W_enc"].double() * n, "b_enc": w["b_enc"].double() * n, "W_dec": w["W_dec"].double() / n[:, None], "b_dec": w["b_dec"]}, inputs("moss-topk", N, D_IN), "", kind="topk", k=6)
    w = matrices("moss-token")
    current("token-wise", w, {"act_fn": "relu", "norm_activation": "token-wise"})
    ours("llamascopium", "token-wise", w, inputs("moss-token", N, D_IN), "", norm="constant_norm_rescale")
    w, s = matrices("moss-dataset"), D_IN**0.5 / 2.25
    current("dataset-wise", w, {"act_fn": "relu", "norm_activation": "dataset-wise"}, norms(**{"blocks.4.hook_resid_post": 2.25}))
    ours("llamascopium", "dataset-wise", w | {"W_enc": w["W_enc"].double() * s, "W_dec": w["W_dec"].double() / s, "b_dec": w["b_dec"].double() / s}, inputs("moss-dataset", N, D_IN), "")
    w, s_in, s_out = matrices("moss-transcoder"), D_IN**0.5 / 2.25, D_IN**0.5 / 0.75
    current("dataset-wise-transcoder", w, {"act_fn": "topk", "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": False, "hook_point_in": "blocks.4.ln2.hook_normalized", "hook_point_out": "blocks.4.hook_mlp_out"},
            norms(**{"blocks.4.ln2.hook_normalized": 2.25, "blocks.4.hook_mlp_out": 0.75}))
    ours("llamascopium", "dataset-wise-transcoder", w | {"W_enc": w["W_enc"].double() * s_in, "W_dec": w["W_dec"].double() / s_out, "b_dec": w["b_dec"].double() / s_out}, inputs("moss-transcoder", N, D_IN), "", kind="topk", k=6, transcoder=True)


def single_files() -> None:
    for fmt in ["openai", "goodfire", "deepseek_r1", "qwen_scope", "connor_rob_hook_z", "mwhanna_transcoder", "mntss_clt", "temporal", "mistudio"]:
        fresh(fmt)

    def folder(fmt: str, case: str, *parts: str) -> Path:
        f = HERE.joinpath(fmt, case, *parts)
        f.mkdir(parents=True)
        return f

    # OpenAI, as sparse_autoencoder/model.py saves a state dict with its activation in it.
    for case, activation, norm, tied in [("topk", "TopK", "layer_norm", False), ("relu", "ReLU", "none", False), ("relu-tied", "ReLU", "none", True)]:
        w = matrices("oa" + case)
        state = {"pre_bias": w["b_dec"], "latent_bias": w["b_enc"], "encoder.weight": w["W_enc"].T.contiguous(), "decoder.weight": w["W_dec"].T.contiguous(),
                 "stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long), "latents_activation_frequency": torch.ones(D_SAE), "latents_mean_square": torch.zeros(D_SAE), "activation": activation}
        if tied:
            del state["decoder.weight"]
            w["W_dec"] = w["W_enc"].T
        if activation == "TopK":
            state["activation_state_dict"] = {"k": 6, "postact_fn": "ReLU"}
        path = "v5_32k/resid_post_mlp/8.pt" if case == "topk" else "v1/mlp_post_act/3.pt"
        (HERE / "openai" / case / path).parent.mkdir(parents=True)
        torch.save(state, HERE / "openai" / case / path, _use_new_zipfile_serialization=case != "relu-tied")
        ours("openai", case, w, inputs("oa" + case, N, D_IN), path, kind="topk" if activation == "TopK" else "standard", k=6, subtract=True, norm=norm)

    w = matrices("goodfire")
    f = folder("goodfire", "standard", "Llama-3.1-8B-Instruct-SAE-l19")
    torch.save({"encoder_linear.weight": torch.nn.Parameter(w["W_enc"].T.contiguous()), "encoder_linear.bias": w["b_enc"], "decoder_linear.weight": w["W_dec"].T, "decoder_linear.bias": w["b_dec"]}, f / "Llama-3.1-8B-Instruct-SAE-l19.pth")
    converted("goodfire", "standard", "goodfire", f, "Goodfire/Llama-3.1-8B-Instruct-SAE-l19", "Llama-3.1-8B-Instruct-SAE-l19.pth", f.name, overrides=dict(d_in=D_IN, d_sae=D_SAE))

    w = {k: v.bfloat16() for k, v in matrices("qresearch").items()}
    f = folder("deepseek_r1", "standard", "DeepSeek-R1-Distill-Llama-8B-SAE-l19")
    torch.save({"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T.contiguous(), "decoder.bias": w["b_dec"]}, f / "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt")
    converted("deepseek_r1", "standard", "deepseek_r1", f, "x/y", "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", f.name, overrides=dict(d_in=D_IN, d_sae=D_SAE))

    w = matrices("qwen")
    f = folder("qwen_scope", "topk", "models--Qwen--SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", "snapshots", "0" * 8)
    state = {"W_enc": w["W_enc"].T.contiguous(), "b_enc": w["b_enc"], "W_dec": w["W_dec"].T.contiguous(), "b_dec": w["b_dec"]}
    torch.save(state, f / "layer7.sae.pt")
    converted("qwen_scope", "topk", "qwen_scope", f, "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", "layer7.sae.pt", str(f.relative_to(HERE / "qwen_scope" / "topk") / "layer7.sae.pt"),
              overrides=dict(d_in=D_IN, d_sae=D_SAE, activation_fn_kwargs={"k": 6}), options={"k": 6})

    w = matrices("connor")
    f = folder("connor_rob_hook_z", "standard")
    torch.save({k: v for k, v in w.items() if k != "threshold"}, f / "gpt2-small_L5_Hcat_z_lr1.pt")
    (f / "gpt2-small_L5_Hcat_z_lr1_cfg.json").write_text(json.dumps({"act_size": D_IN, "dict_size": D_SAE, "act_name": "blocks.5.attn.hook_z", "model_name": "gpt2-small", "seq_len": 128, "enc_dtype": "fp32"}))
    converted("connor_rob_hook_z", "standard", "connor_rob_hook_z", f, "x/y", "gpt2-small_L5_Hcat_z_lr1.pt", "", x=inputs("connor", N, 4, D_IN // 4))

    w = matrices("mwhanna")
    f = folder("mwhanna_transcoder", "transcoder", "qwen3-4b-transcoders")
    for layer in (0, 3):
        save_file({"W_enc": w["W_enc"].T.contiguous(), "b_enc": w["b_enc"] + layer, "W_dec": w["W_dec"], "b_dec": w["b_dec"]}, f / f"layer_{layer}.safetensors")
    (f / "wanb-config.yaml").write_text("".join(f"{k}:\n  desc: null\n  value: {v}\n" for k, v in {"d_model": D_IN, "d_feature": D_SAE, "batch_size": 512}.items()))
    (f / "config.yaml").write_text(f"model_name: {MODEL}\nmodel_kind: transcoder_set\n")
    converted("mwhanna_transcoder", "transcoder", "mwhanna_transcoder", f, "mwhanna/x", "layer_0.safetensors", f.name + "/layer_0.safetensors")

    w = matrices("mntss")
    f = folder("mntss_clt", "clt-layer", "clt-gemma-2-2b-2.5M")
    w["W_dec"] = torch.randn(D_SAE, 3, D_IN, generator=seeded("mntss2")) * 0.2
    save_file({"W_enc_4": w["W_enc"].T.contiguous(), "b_enc_4": w["b_enc"], "b_dec_4": w["b_dec"]}, f / "W_enc_4.safetensors")
    save_file({"W_dec_4": w["W_dec"]}, f / "W_dec_4.safetensors")
    (f / "config.yaml").write_text("model_name: google/gemma-2-2b\nmodel_kind: cross_layer_transcoder\nfeature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n")
    converted("mntss_clt", "clt-layer", "mntss_clt_layer_transcoder", f, "mntss/x", "4", f.name)

    from sae_lens.saes.temporal_sae import TemporalSAE, TemporalSAEConfig

    conf = dict(n_heads=4, n_attn_layers=1, bottleneck_factor=4, sae_diff_type="topk", kval_topk=6, tied_weights=True)
    model = TemporalSAE(TemporalSAEConfig(d_in=D_IN, d_sae=D_SAE, **conf))
    randomise(model, "temporal-ckpt")
    f = folder("temporal", "tied", "gemma-2-2B", "layer_12", "temporal")
    state = {{"W_dec": "D", "b_dec": "b"}.get(k, k): v.detach() * (12 if k == "W_dec" else 1) for k, v in model.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, f / "latest_ckpt.safetensors")
    lines = ["llm:", f"  dimin: {D_IN}", "sae:", f"  exp_factor: {D_SAE / D_IN}", "  scaling_factor: 0.6"] + [f"  {k}: {str(v).lower() if isinstance(v, bool) else v}" for k, v in conf.items()] + ["data:", "  dtype: float32"]
    (f / "conf.yaml").write_text("\n".join(lines) + "\n")
    converted("temporal", "tied", "temporal", f.parent.parent, "canrager/temporalSAEs", "layer_12/temporal", "gemma-2-2B/layer_12/temporal", x=inputs("temporal-ckpt", 3, 7, D_IN))

    # miStudio's training checkpoints hold neither normalisation nor hook.
    hook = "blocks.1.ln2.hook_normalized"
    w = matrices("mistudio-jump")
    w["threshold"] = w["threshold"].clamp(min=0.05)
    f = folder("mistudio", "jumprelu")
    save_file({"model.W_enc": w["W_enc"].T.contiguous(), "model.b_enc": w["b_enc"], "model.W_dec": w["W_dec"].T.contiguous(), "model.b_dec": w["b_dec"], "model.activation.log_threshold": w["threshold"].log(), "optimizer.step": torch.tensor([3])}, f / "checkpoint.safetensors")
    ours("mistudio", "jumprelu", w, inputs("mistudio-jump", N, D_IN), "", options={"normalization": "constant_norm_rescale", "hook": hook}, kind="jumprelu", norm="constant_norm_rescale")
    w, more = matrices("mistudio"), torch.randn(D_IN, generator=seeded("mistudio2")) * 0.5
    f = folder("mistudio", "standard")
    save_file({"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T.contiguous(), "decoder.bias": more, "decoder_bias": w["b_dec"]}, f / "checkpoint.safetensors")
    ours("mistudio", "standard", w | {"b_dec": w["b_dec"].double() + more.double()}, inputs("mistudio", N, D_IN), "", options={"normalization": "none", "architecture": "standard", "hook": hook})

    # SAELens's weights without their cfg.json.
    w = matrices("bare")
    f = folder("saelens", "bare-jumprelu")
    save_file(w, f / "sae_weights.safetensors")
    ours("saelens", "bare-jumprelu", w, inputs("bare", N, D_IN), "", options={"normalization": "layer_norm", "apply_b_dec_to_input": True, "hook": "blocks.1.hook_resid_post"}, kind="jumprelu", subtract=True, norm="layer_norm")


def pickles() -> None:
    """Torch files of every kind of tensor, and what torch reads from them."""
    folder = HERE.parent / "pickles"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    g = seeded("pickles")
    base = torch.randn(6, 5, generator=g)
    from collections import OrderedDict

    tensors = OrderedDict(
        f32=base, f64=base.double(), f16=base.half(), bf16=base.bfloat16(), i64=torch.arange(7), i32=torch.arange(7, dtype=torch.int32), i16=torch.arange(3, dtype=torch.int16),
        i8=torch.tensor([-1, 2], dtype=torch.int8), u8=torch.tensor([1, 255], dtype=torch.uint8), bool=torch.tensor([True, False]), scalar=torch.tensor(2.5), empty=torch.zeros(0, 4),
        turned=base.T, strided=base[::2, 1:4], shared=base[2], parameter=torch.nn.Parameter(base * 2), expanded=torch.tensor([1.5]).expand(4, 3), frozen=torch.nn.Parameter(base + 1, requires_grad=False),
    )
    facts = {"k": 32, "big": 2**40, "negative": -5, "name": "TopK", "flag": True, "nothing": None, "rate": 0.25, "list": [1, 2.5, "x"], "pair": (1, 2), "dtype": torch.float32, "size": base.shape}
    torch.save({"state": tensors, "facts": facts}, folder / "new.pt")
    torch.save({"state": tensors, "facts": facts}, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"state": tensors, "facts": facts}, folder / "protocol4.pt", pickle_protocol=4)
    save_file({f"state.{k}": v.detach().clone().contiguous() for k, v in tensors.items()}, folder / "want.safetensors")
    np.savez(folder / "stored.npz", **{k: v.detach().numpy() for k, v in tensors.items() if v.dtype != torch.bfloat16 and k not in ("turned", "expanded", "strided")})
    np.savez_compressed(folder / "deflated.npz", **{k: v.detach().numpy() for k, v in tensors.items() if v.dtype != torch.bfloat16 and k not in ("turned", "expanded", "strided")})


if __name__ == "__main__":
    import sys

    HERE.mkdir(exist_ok=True)
    for make in [saelens, sparsify, gemma_scope, gemma_scope_2, dictionary_learning, openmoss, single_files, pickles]:
        if len(sys.argv) == 1 or make.__name__ in sys.argv[1:]:
            make()
