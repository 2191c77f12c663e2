"""Trains the demo's sparse autoencoder with sae-lens: layer 8's residual stream of SmolLM2, 3,072 latents, top-k 48.

    bash fetch.sh
    python -m venv v && v/bin/pip install sae-lens==6.54.0 torch==2.7.1 transformers==4.56.2 gguf==0.19.0 tokenizers==0.22.2
    v/bin/python train_sae.py [--threads 2] [--activations FILE]

Writes sae/ in SAELens' folder form: cfg.json, sae_weights.safetensors (float16), sparsity.safetensors,
and training.json, the record of the run. --activations keeps the model's activations between runs.

Every tenth speech is held out: nothing of it is trained on, and the FVU that counts is measured there,
with the saved float16 weights, as sae-lens loads them.
"""

import argparse
import json
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import torch
from sae_lens import SAE, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file

import smollm2

SEED = 1790
HOOK = f"blocks.{smollm2.HOOK_LAYER}.hook_resid_post"
D_SAE, K = 3072, 48
TRAIN_SEQUENCES, HELD_OUT_SEQUENCES = 3440, 320  # of 127 usable positions each, less the sinks
EPOCHS, BATCH = 4, 1024
LEARNING_RATE = 1e-3
OUT = Path(__file__).parent / "sae"


def held_out(row):
    return row % 10 == 5


def sequences():
    """Chunks of the speeches in a fixed random order: what is trained on, and what is held out."""
    all_chunks = smollm2.chunks(smollm2.load_tokenizer(), smollm2.load_speeches())
    order = torch.randperm(len(all_chunks), generator=torch.Generator().manual_seed(SEED)).tolist()
    shuffled = [all_chunks[i] for i in order]
    train = [c for c in shuffled if not held_out(c[0])][:TRAIN_SEQUENCES]
    test = [c for c in shuffled if held_out(c[0])][:HELD_OUT_SEQUENCES]
    return train, test


@torch.no_grad()
def residuals(model, chunk_list, batch=16):
    """float32 [sequences, context, d_model] at HOOK."""
    taps = smollm2.Taps(model, [HOOK])
    ids = torch.tensor([c[1] for c in chunk_list])
    out = torch.empty(*ids.shape, model.config.hidden_size)
    started = time.time()
    for i in range(0, len(ids), batch):
        model.model(ids[i:i + batch], use_cache=False)
        out[i:i + batch] = taps.values[HOOK]
        if i // batch % 20 == 0:
            print(f"  activations {i + batch}/{len(ids)} sequences, {(i + batch) * ids.shape[1] / (time.time() - started):.0f} tokens/s", flush=True)
    return out


@torch.no_grad()
def score(sae, x):
    """FVU = Σ‖x−x̂‖² / Σ‖x−x̄‖², mean number of firing latents, and each latent's firings, over x [tokens, d_in]."""
    error = torch.zeros((), dtype=torch.float64)
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.int64)
    for part in x.split(4096):
        acts = sae.encode(part)
        error += (part - sae.decode(acts)).double().square().sum()
        fired += (acts != 0).sum(dim=0)
    total = sum((p.double() - x.double().mean(dim=0)).square().sum() for p in x.split(65536))
    return (error / total).item(), fired.sum().item() / len(x), fired


def batches(x, seed):
    """Endless epochs over x, each in a new order, as sae-lens' trainer wants them."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(x), generator=generator)
        for i in range(0, len(x) - BATCH + 1, BATCH):
            yield x[order[i:i + BATCH]]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--activations", type=Path, help="safetensors file that keeps the activations")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    started = time.time()

    train_chunks, test_chunks = sequences()
    if args.activations and args.activations.exists():
        kept = load_file(args.activations)
        train_x, test_x = kept["train"], kept["test"]
    else:
        model = smollm2.load_model(layers=smollm2.HOOK_LAYER + 1)
        train_x, test_x = residuals(model, train_chunks), residuals(model, test_chunks)
        if args.activations:
            save_file({"train": train_x, "test": test_x}, args.activations)
    seconds_activations = time.time() - started  # of reading them, where they were kept

    train_keep, test_keep = smollm2.sinks_left_out(train_x), smollm2.sinks_left_out(test_x)
    train, test = train_x[train_keep], test_x[test_keep]
    del train_x, test_x
    sinks = 1 - train_keep[:, 1:].float().mean().item()
    print(f"{len(train)} tokens to train on, {len(test)} held out; {sinks:.2%} of the positions after the first are sinks", flush=True)

    cfg = TopKTrainingSAEConfig(
        d_in=train.shape[1], d_sae=D_SAE, k=K, dtype="float32", device="cpu",
        apply_b_dec_to_input=True,
        normalize_activations="expected_average_only_in",  # the trainer folds the factor in at the end
        rescale_acts_by_decoder_norm=True,  # folded in when the inference form is saved
        decoder_init_norm=0.1,
        aux_loss_coefficient=1.0,
        metadata=SAEMetadata(
            model_name=smollm2.MODEL_NAME, model_class_name="AutoModelForCausalLM",
            hook_name=HOOK, hook_head_index=None,
            context_size=smollm2.CONTEXT, prepend_bos=smollm2.PREPEND_BOS, seqpos_slice=[1, None],
            dataset_path="sotu.jsonl", exclude_special_tokens=False,
        ),
    )
    sae = TopKTrainingSAE(cfg)
    scale = train.shape[1] ** 0.5 / train.norm(dim=-1).mean().item()
    sae.b_dec.data = train.mean(dim=0) * scale  # so that the encoder starts on centred activations

    steps = EPOCHS * (len(train) // BATCH)
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=steps * BATCH, train_batch_size_samples=BATCH,
            lr=LEARNING_RATE, lr_warm_up_steps=min(100, steps // 10), lr_decay_steps=steps // 3,
            lr_scheduler_name="constant", lr_end=LEARNING_RATE / 100,
            # Steps without firing before the auxiliary loss revives a latent. Tried: with 200 one latent is
            # dead and one rare (density < 1e-4), FVU 0.116; with 1000, sae-lens' default, 99 and 60, FVU 0.121.
            dead_feature_window=1000, feature_sampling_window=10 * steps,
            logger=LoggingConfig(log_to_wandb=False),
            n_batches_for_norm_estimate=100,
        ),
        sae, batches(train, SEED),
    )
    trainer.activation_scaler.scaling_factor = scale  # of all tokens, instead of an estimate from some
    before = time.time()
    trainer.fit()
    seconds_training = time.time() - before

    save(sae, args.out)
    saved = SAE.load_from_disk(str(args.out))
    for name, w in saved.state_dict().items():
        assert torch.isfinite(w).all(), name
    fvu_train, l0_train, fired_train = score(saved, train)
    fvu_test, l0_test, fired_test = score(saved, test)
    frequency = fired_train.double() / len(train)
    save_file({"sparsity": torch.log10(frequency + 1e-10).float()}, args.out / "sparsity.safetensors")

    record = {
        "fvu_held_out": fvu_test, "fvu_train": fvu_train,
        "l0_held_out": l0_test, "l0_train": l0_train,
        "dead_in_training_tokens": int((fired_train == 0).sum()),
        "silent_in_held_out_tokens": int((fired_test == 0).sum()),
        "density_below_1e-4_in_training_tokens": int(((fired_train > 0) & (frequency < 1e-4)).sum()),
        "tokens_train": len(train), "tokens_held_out": len(test),
        "tokens_seen": steps * BATCH, "epochs": EPOCHS, "steps": steps, "batch": BATCH,
        "learning_rate": LEARNING_RATE, "dead_feature_window": trainer.cfg.dead_feature_window, "sinks_share": sinks, "activation_scale_folded_in": scale,
        "held_out_rows": sorted({c[0] for c in test_chunks}),
        "train_rows": len({c[0] for c in train_chunks}),
        "seed": SEED,
        "seconds_activations": round(seconds_activations, 1), "seconds_training": round(seconds_training, 1),
        "threads": args.threads, "python": platform.python_version(),
        "versions": {p: version(p) for p in ("torch", "sae-lens", "transformers", "tokenizers", "gguf", "safetensors", "numpy")},
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def save(sae, out):
    """SAELens' inference form, scale and decoder norms folded in, the weights rounded to float16."""
    shutil.rmtree(out, ignore_errors=True)
    weights, cfg_path = sae.save_inference_model(out)
    save_file({k: v.half().contiguous() for k, v in load_file(weights).items()}, weights)
    cfg = json.loads(cfg_path.read_text())
    # The file holds float16; the maths is float32: sae-lens converts to cfg's dtype as it loads.
    assert cfg["architecture"] == "topk" and cfg["dtype"] == "float32"
    assert cfg["normalize_activations"] == "none"
    cfg["rescale_acts_by_decoder_norm"] = False  # the rows of W_dec have norm 1 now
    cfg_path.write_text(json.dumps(cfg, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
