"""Writes the golden files of this folder with the public libraries that define the formats.

    python golden.py        # in this folder; rewrites quant/, llama/, sae/ and dtypes.safetensors

Pinned: numpy 2.4.6, torch 2.7.1, safetensors 0.8.0, gguf 0.19.0, transformers 4.56.2, sae-lens 6.54.0. The weights are random.
"""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
torch.set_num_threads(1)


def fresh(*parts: str) -> Path:
    folder = HERE.joinpath(*parts)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def dtypes() -> None:
    """Float16 and bfloat16 of every kind, and what they are in float32."""
    bits = torch.arange(0, 65536, 7, dtype=torch.int32).to(torch.int16)
    f64 = torch.tensor([0.1, -1e300, 1e-46, 1 + 2**-24, 1 + 3 * 2**-24, float("inf")], dtype=torch.float64)
    halves, brains = bits.view(torch.float16), bits.clone().view(torch.bfloat16)
    save_file(
        {
            "f16": halves, "bf16": brains, "f64": f64,
            "f16.want": halves.float().view(torch.int32), "bf16.want": brains.float().view(torch.int32), "f64.want": f64.float().view(torch.int32),
            "i64": torch.tensor([[1, -2], [3, 2**40]]), "i32": torch.tensor([-1, 2], dtype=torch.int32),
            "u8": torch.tensor([0, 255], dtype=torch.uint8), "bool": torch.tensor([True, False]),
            "f8": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn), "scalar": torch.tensor(7.5), "empty": torch.zeros(0, 3),
        },
        HERE / "dtypes.safetensors", metadata={"format": "pt", "note": "golden"},
    )


def quant() -> None:
    """Each quantisation as gguf writes it, and as gguf reads it back."""
    folder, rng = fresh("quant"), np.random.default_rng(7)
    values = (rng.standard_normal((6, 64)) * np.array([[1e-6], [1e-3], [1], [30], [1e3], [0]])).astype(np.float32)
    writer, want = gguf.GGUFWriter(folder / "types.gguf", "test"), {}
    for kind in ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]:
        t = gguf.GGMLQuantizationType[kind]
        packed = gguf.quants.quantize(values, t)
        writer.add_tensor(kind, packed, raw_dtype=t)
        want[kind] = torch.from_numpy(gguf.quants.dequantize(packed, t).copy())
    # Any bytes are a valid block: halves that are subnormal or negative included, NaN and infinities left out. Where the scales lie:
    scales = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2],
              "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0]}
    for kind, places in scales.items():
        t = gguf.GGMLQuantizationType[kind]
        elements, size = gguf.GGML_QUANT_SIZES[t]
        raw = rng.integers(0, 256, size=(200 if elements == 32 else 12, 2 * size if elements == 256 else size), dtype=np.uint8)
        finite = np.ones(len(raw), bool)
        for place in places:
            for block in range(0, raw.shape[1], size):
                finite &= np.isfinite(raw[:, block + place : block + place + 2].copy().view(np.float16)[:, 0])
        raw = raw[finite]
        writer.add_tensor(kind + ".random", raw, raw_dtype=t)
        want[kind + ".random"] = torch.from_numpy(gguf.quants.dequantize(raw, t).copy())
    # gguf does not read Q8_K, which files rarely hold: our reading of llama.cpp's block_q8_K, float32 d, 256 signed bytes, 16 sums.
    block = rng.integers(-128, 128, size=(3, 256), dtype=np.int8)
    d = np.array([[0.25], [-3e-5], [1e30]], np.float32)
    raw = np.concatenate([d.view(np.uint8), block.view(np.uint8), rng.integers(0, 256, size=(3, 32), dtype=np.uint8)], axis=1)
    writer.add_tensor("Q8_K.random", raw, raw_dtype=gguf.GGMLQuantizationType.Q8_K)
    want["Q8_K.random"] = torch.from_numpy(d * block.astype(np.float32))
    t = gguf.GGMLQuantizationType.IQ2_XXS
    writer.add_tensor("unread", np.zeros((2, gguf.GGML_QUANT_SIZES[t][1]), np.uint8), raw_dtype=t)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(want, folder / "want.safetensors")


def permute(w: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's row order of q and k (convert_hf_to_gguf.py, LlamaModel.permute)."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def write_gguf(path: Path, config, state: dict, factors: torch.Tensor | None) -> None:
    w = gguf.GGUFWriter(path, "llama")
    w.add_name("tiny")
    w.add_block_count(config.num_hidden_layers)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    w.add_rope_freq_base(config.rope_theta)
    w.add_rope_dimension_count(config.head_dim)
    w.add_vocab_size(config.vocab_size)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    w.add_token_types([3, 3] + [1] * (config.vocab_size - 2))
    w.add_token_merges(["t 1", "t 2"])
    w.add_bos_token_id(0)
    w.add_eos_token_id(1)
    w.add_add_bos_token(True)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, t in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if ".q_proj." in name:
            t = permute(t, config.num_attention_heads)
        if ".k_proj." in name:
            t = permute(t, config.num_key_value_heads)
        w.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), t.float().contiguous().numpy())
    if factors is not None:
        w.add_tensor("rope_freqs.weight", factors.float().numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def llama() -> None:
    """Tiny Llamas as folders and as GGUF, with the same weights; transformers must read both alike."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    folder = fresh("llama")
    base = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=64,
                vocab_size=24, max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=5e5, bos_token_id=0, eos_token_id=1)
    scaling = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    cases = {
        "untied": dict(base, tie_word_embeddings=False),
        "tied": dict(base, tie_word_embeddings=True, rope_scaling=scaling),
        "bias": dict(base, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    }
    for name, settings in cases.items():
        torch.manual_seed(len(name))
        config = LlamaConfig(**settings)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn_like(p).bfloat16().float())
        scaled = model.model.rotary_emb.inv_freq.clone()  # bfloat16() would round it
        model = model.bfloat16()
        model.save_pretrained(folder / name, max_shard_size="24KB" if name == "untied" else "1GB")
        (folder / name / "generation_config.json").unlink(missing_ok=True)
        state = model.state_dict()
        factors = None
        if name == "tied":
            plain = 1.0 / (config.rope_theta ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim))
            factors = plain / scaled
        write_gguf(folder / f"{name}.gguf", config, state, factors)
        if name != "bias":  # transformers has no names for a GGUF's biases
            again = AutoModelForCausalLM.from_pretrained(folder, gguf_file=f"{name}.gguf").state_dict()
            for key, t in state.items():
                assert torch.equal(again[key].float(), t.float()), key


def sae() -> None:
    """SAELens folders, and the weights after SAELens's own folds."""
    from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
    from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    folder = fresh("sae")
    d_in, d_sae = 6, 10

    def metadata() -> SAEMetadata:
        return SAEMetadata(model_name="tiny", hook_name="blocks.3.hook_resid_post", prepend_bos=False, context_size=128,
                           seqpos_slice=(1, None), exclude_special_tokens=[0, 1], dataset_path="none")

    def randomise(model, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=g).to(p.dtype))
            model.W_dec[3] = 0  # a dead row: norms clamp at 1e-8
            if hasattr(model, "threshold"):
                model.threshold.abs_()

    def parts(model) -> dict:
        return {k: v.detach().float().clone().contiguous() for k, v in model.state_dict().items()}

    common = dict(d_in=d_in, d_sae=d_sae, metadata=metadata())
    cases = {
        "standard": (StandardSAE, StandardSAEConfig(**common, apply_b_dec_to_input=False)),
        "standard-bf16-layer-norm": (StandardSAE, StandardSAEConfig(**common, dtype="bfloat16", normalize_activations="layer_norm")),
        "standard-f16-constant-norm": (StandardSAE, StandardSAEConfig(**common, dtype="float16", normalize_activations="constant_norm_rescale")),
        "standard-expected-average": (StandardSAE, StandardSAEConfig(**common, normalize_activations="expected_average_only_in")),
        "topk": (TopKSAE, TopKSAEConfig(**common, k=4)),
        "topk-rescaled": (TopKSAE, TopKSAEConfig(**common, k=4, rescale_acts_by_decoder_norm=True)),
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig(**common)),
        "jumprelu-expected-average": (JumpReLUSAE, JumpReLUSAEConfig(**common, normalize_activations="expected_average_only_in")),
        "abstopk": (AbsTopKSAE, AbsTopKSAEConfig(**common, k=4)),
    }
    for seed, (name, (kind, config)) in enumerate(cases.items()):
        model = kind(config)
        randomise(model, seed)
        model.save_model(folder / name)
        want = {f"open.{k}": v for k, v in parts(SAE.load_from_disk(folder / name)).items()}
        if "expected-average" in name:
            model = SAE.load_from_disk(folder / name, dtype="float32")
            model.fold_activation_norm_scaling_factor(0.37)
            want |= {f"scaled.{k}": v for k, v in parts(model).items()}
        if not name.endswith("topk"):
            model = SAE.load_from_disk(folder / name, dtype="float32")
            model.fold_W_dec_norm()
            want |= {f"normed.{k}": v for k, v in parts(model).items()}
        save_file(want, folder / name / "want.safetensors")

    model = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=3, rescale_acts_by_decoder_norm=True))
    randomise(model, 99)
    model.topk_threshold.fill_(0.25)
    model.save_inference_model(folder / "batchtopk")
    save_file({f"open.{k}": v for k, v in parts(SAE.load_from_disk(folder / "batchtopk")).items()}, folder / "batchtopk" / "want.safetensors")

    # The flat form, as SAELens 3 and 4 wrote it.
    flat = dict(d_in=d_in, d_sae=d_sae, dtype="torch.float32", device="cuda", model_name="gpt2-small", hook_point="blocks.7.hook_resid_pre", hook_point_layer=7,
                hook_point_head_index=None, activation_fn_str="relu", normalize_activations=None, context_size=256, dataset_path="x", finetuning_scaling_factor=False)
    old = {
        "old-standard": flat,
        "old-topk": dict(flat, activation_fn_str="topk", activation_fn_kwargs={"k": 5}, normalize_activations="layer_norm", prepend_bos=False, apply_b_dec_to_input=False),
        "old-normalised": dict(flat, normalize_activations=True),
        "old-finetuned": dict(flat, finetuning_scaling_factor=True),
    }
    for name, config in old.items():
        target = fresh("sae", name)
        weights = load_file(folder / "standard" / "sae_weights.safetensors")
        if name == "old-standard":
            weights["scaling_factor"] = torch.ones(d_sae)  # written by every training for a while
        if name == "old-finetuned":
            weights["scaling_factor"] = torch.linspace(0.5, 2, d_sae)
        save_file(weights, target / "sae_weights.safetensors")
        (target / "cfg.json").write_text(json.dumps(config))
        if name == "old-finetuned":  # SAELens 6 cannot load it; SAELens 5 multiplied activations before decoding
            weights["W_dec"] = weights["W_dec"] * weights.pop("scaling_factor").unsqueeze(1)
            want = {f"open.{k}": v for k, v in weights.items()}
        else:
            want = {f"open.{k}": v for k, v in parts(SAE.load_from_disk(target)).items()}
        save_file(want, target / "want.safetensors")
    save_file({"sparsity": torch.linspace(-10, -1, d_sae)}, folder / "standard" / "sparsity.safetensors")
    (folder / "standard" / "activation_scaler.json").write_text('{"scaling_factor": null}')
    (folder / "jumprelu" / "activation_scaler.json").write_text('{"scaling_factor": 0.5}')  # left over: this SAE is folded
    (folder / "jumprelu-expected-average" / "activation_scaler.json").write_text('{"scaling_factor": 0.37}')


if __name__ == "__main__":
    dtypes()
    quant()
    llama()
    sae()
