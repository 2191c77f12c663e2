"""Featuremill's extractor against a one-pass PyTorch script, taking turns on the same tokens.

torch 2.7.1, transformers 4.56.2, gguf 0.17, safetensors (any). See bench.sh.

The job: SmolLM2-135M float32, resid_post of layer 8, an SAE of 9,216 latents at L0 ≈ 40 (top-k 40, or
jumprelu), 512 × 128 tokens → latent, sequence, offset, activation of every firing, norms of every token.
The PyTorch side does the same maths in as few passes as PyTorch allows (9 layers, no head, sdpa attention,
inference mode, one matrix product and one topk or nonzero) and stops at NumPy arrays; Featuremill also sorts
and writes its artifact. Three workers: featuremill, PyTorch with MKL told that the CPU is Intel's and with
OpenMP's idle threads asleep (as featuremill does both), PyTorch as it comes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
D_SAE, L0, LAYER, ROWS, SEQ = 9216, 40, 8, 512, 128


def prepare(model, folder):
    """Tokens and two random SAEs; the jumprelu's thresholds are set for the wanted L0 on real activations."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    decoder = load(model)
    d = decoder.config.hidden_size
    ids = torch.randint(260, decoder.config.vocab_size, (ROWS, SEQ))
    save_file({"input_ids": ids}, folder / "tokens.safetensors")
    w = torch.randn(d, D_SAE) / d**0.5
    b_dec = torch.randn(d) * 0.1
    weights = {"W_enc": w, "b_enc": torch.randn(D_SAE) * 0.1, "W_dec": w.T.contiguous(), "b_dec": b_dec}
    with torch.inference_mode():
        x = decoder(ids[:32])[:, 1:].flatten(0, 1)
        z = (x - b_dec) @ w + weights["b_enc"]
    threshold = z.kthvalue(int(len(z) * (1 - L0 / D_SAE)), dim=0).values.clamp(min=0.01)
    config = {
        "d_in": d, "d_sae": D_SAE, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.0", "hook_name": f"blocks.{LAYER}.hook_resid_post"},
    }
    for name, extra, more in (("topk", {"k": L0, "rescale_acts_by_decoder_norm": False}, {}), ("jumprelu", {}, {"threshold": threshold})):
        (folder / name).mkdir(exist_ok=True)
        save_file({k: v.clone() for k, v in (weights | more).items()}, folder / name / "sae_weights.safetensors")
        (folder / name / "cfg.json").write_text(json.dumps(config | extra | {"architecture": name}))


def load(model):
    """ids → residual stream after layer LAYER, with the weights of the GGUF and no layer more."""
    sys.path.insert(0, str(HERE.parent / "testdata"))
    import torch
    from golden_smollm2 import load as load_gguf

    whole = load_gguf(model)
    decoder = whole.model
    decoder.layers = decoder.layers[: LAYER + 1]
    decoder.norm = torch.nn.Identity()
    decoder.config.num_hidden_layers = LAYER + 1
    decoder.config._attn_implementation = "sdpa"

    def run(ids):
        return decoder(input_ids=ids, use_cache=False).last_hidden_state

    run.config = decoder.config
    return run


def pytorch_worker(o):
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(o.threads)
    decoder = load(o.model)
    ids = load_file(o.folder / "tokens.safetensors")["input_ids"]
    sae = load_file(o.folder / o.architecture / "sae_weights.safetensors")
    results = []

    @torch.inference_mode()
    def job(first, last):
        results.clear()
        for at in range(first, last, o.batch):
            part = ids[at : min(at + o.batch, last)]
            x = decoder(part).flatten(0, 1)
            norms = x.norm(dim=-1)
            z = torch.addmm(sae["b_enc"], x - sae["b_dec"], sae["W_enc"])
            if o.architecture == "topk":
                values, latents = z.topk(L0, dim=-1)
                latents, order = latents.sort(dim=-1)
                values = values.gather(-1, order).relu()
                tokens = torch.arange(len(x)).repeat_interleave(L0)
                latents, values = latents.flatten(), values.flatten()
                fires = values > 0
                tokens, latents, values = tokens[fires], latents[fires], values[fires]
            else:
                z = torch.where(z > sae["threshold"], z, 0).relu_()
                tokens, latents = z.nonzero(as_tuple=True)
                values = z[tokens, latents]
            results.append((
                latents.to(torch.int32).numpy(), (at + tokens // SEQ).to(torch.int32).numpy(),
                (tokens % SEQ).to(torch.int16).numpy(), values.numpy(), norms.numpy(),
            ))

    for line in sys.stdin:
        first, last = map(int, line.split())
        start, cpu = time.perf_counter(), time.process_time()
        job(first, last)
        seconds = time.perf_counter() - start
        peak = next(int(text.split()[1]) << 10 for text in open("/proc/self/status") if text.startswith("VmHWM"))
        print(json.dumps({
            "seconds": seconds, "cpu": time.process_time() - cpu, "sparse": 0, "tokens": (last - first) * SEQ, "postings": sum(len(r[0]) for r in results), "peak_rss": peak,
        }), flush=True)


class Worker:
    def __init__(self, name, command, environment=None):
        self.name, self.seconds, self.cpu, self.sparse, self.tokens, self.postings, self.last = name, 0.0, 0.0, 0.0, 0, 0, {}
        self.rates = []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | (environment or {}))

    def run(self, first, last, count=True):
        self.process.stdin.write(f"{first} {last}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended")
        self.last = json.loads(line)
        if count:
            self.seconds += self.last["seconds"]
            self.cpu += self.last["cpu"]
            self.sparse += self.last["sparse"]
            self.tokens += self.last["tokens"]
            self.postings += self.last["postings"]
            self.rates.append(self.last["tokens"] / self.last["seconds"])


def compare(o):
    folder = o.folder
    if not (folder / "jumprelu" / "cfg.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, __file__, "--prepare", "--model", o.model, "--folder", str(folder)], check=True)
    python = [sys.executable, __file__, "--worker", "--model", o.model, "--folder", str(folder), "--architecture", o.architecture, "--threads", str(o.threads)]
    workers = [
        Worker("featuremill", [o.bench, "-model", o.model, "-sae", str(folder / o.architecture), "-in", str(folder / "tokens.safetensors"), "-threads", str(o.threads)]),
        Worker("pytorch + switch", [*python, "--batch", str(o.batch)], {"LD_PRELOAD": o.switch, "OMP_WAIT_POLICY": "passive"}),
        Worker("pytorch", [*python, "--batch", str(o.batch)]),
    ]
    for w in workers:
        w.run(0, 64, count=False)
    rows = ROWS * o.percent // 100
    for at in range(0, rows, o.slice):
        for w in workers if at // o.slice % 2 == 0 else workers[::-1]:
            w.run(at, min(at + o.slice, rows))
    ours = workers[0]
    print(f"{o.architecture}, {rows} x {SEQ} tokens, {D_SAE} latents, {o.threads} threads, profile {json.dumps(ours.last['profile'])}")
    for w in workers:
        best = sorted(w.rates)[-max(1, len(w.rates) // 4)]
        print(f"  {w.name:18} {w.tokens / w.seconds:7.0f} tokens/s (upper quartile {best:6.0f})   {1000 * w.cpu / w.tokens:.3f} CPU ms/token   L0 {w.postings / w.tokens:5.1f}   peak {w.last['peak_rss'] / 2**20:5.0f} MiB")
    print(f"  ratio to pytorch + switch: {workers[1].seconds / ours.seconds:.2f}   to pytorch as it comes: {workers[2].seconds / ours.seconds:.2f}   (by CPU time {workers[1].cpu / ours.cpu:.2f}, {workers[2].cpu / ours.cpu:.2f})")
    print(f"  outside libtorch and kernels (sparse output, sort, artifact): {100 * ours.sparse / ours.seconds:.1f} % of the time")
    for w in workers:
        w.process.stdin.close()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--model", required=True)
    p.add_argument("--folder", type=Path, required=True)
    p.add_argument("--architecture", default="topk")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--batch", type=int, default=16, help="sequences of a batch on the PyTorch side: the fastest of 8, 16, 32, 64 here")
    p.add_argument("--slice", type=int, default=64)
    p.add_argument("--percent", type=int, default=100)
    p.add_argument("--bench")
    p.add_argument("--switch")
    p.add_argument("--prepare", action="store_true")
    p.add_argument("--worker", action="store_true")
    o = p.parse_args()
    if o.prepare:
        prepare(o.model, o.folder)
    elif o.worker:
        pytorch_worker(o)
    else:
        compare(o)


if __name__ == "__main__":
    main()
