"""One sequence through transformers and sae-lens in float32: what the demo compares its own numbers with.

    python parity.py        (versions as in train_sae.py; after fetch.sh; reads sae/)

The sequence is the chunk of 128 tokens of Franklin D. Roosevelt's speech of 1941 that names the four
freedoms. Writes parity.json (what it is, and with what it was made) and parity.safetensors:

    input_ids, attention_mask      I64 [1, 128]
    blocks.8.hook_resid_post       F32 [1, 128, 576]
    latents                        I64 [128, k]   firing latents of each position, ascending; -1 where fewer fire
    activations                    F32 [128, k]   their activations; 0 where fewer fire
    runner_up                      F32 [128]      the (k+1)-th largest pre-activation: a latent may only be missing
                                                  or extra where its value is this close to the k-th
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import torch
from sae_lens import SAE
from safetensors.torch import save_file

import smollm2

HERE = Path(__file__).parent
YEAR, PASSAGE = 1941, "four essential human freedoms"
HOOK = f"blocks.{smollm2.HOOK_LAYER}.hook_resid_post"


def find():
    speeches = smollm2.load_speeches()
    row = next(i for i, s in enumerate(speeches) if s["year"] == YEAR)
    text = speeches[row]["text"]
    encoding = smollm2.load_tokenizer().encode(text, add_special_tokens=False)
    at = text.index(PASSAGE)
    token = next(i for i, (start, end) in enumerate(encoding.offsets) if start <= at < end)
    first = token // smollm2.CONTEXT * smollm2.CONTEXT
    last = first + smollm2.CONTEXT
    return row, speeches[row], first, encoding.ids[first:last], encoding.offsets[first][0], encoding.offsets[last - 1][1]


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    row, speech, first, ids, char_start, char_end = find()
    model = smollm2.load_model(layers=smollm2.HOOK_LAYER + 1)
    taps = smollm2.Taps(model, [HOOK])
    input_ids = torch.tensor([ids])
    model.model(input_ids, use_cache=False)
    x = taps.values[HOOK]

    sae = SAE.load_from_disk(str(HERE / "sae"), dtype="float32")
    k = sae.cfg.k
    acts = sae.encode(x[0])
    pre = (x[0] - sae.b_dec) @ sae.W_enc + sae.b_enc
    latents = torch.full((len(ids), k), -1)
    activations = torch.zeros(len(ids), k)
    for t, row_acts in enumerate(acts):
        firing = row_acts.nonzero()[:, 0]
        latents[t, :len(firing)] = firing
        activations[t, :len(firing)] = row_acts[firing]

    save_file({
        "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), HOOK: x.contiguous(),
        "latents": latents, "activations": activations,
        "runner_up": pre.topk(k + 1).values[:, k].contiguous(),
    }, HERE / "parity.safetensors")
    (HERE / "parity.json").write_text(json.dumps({
        "title": speech["title"], "row": row, "first_token": first,
        "char_start": char_start, "char_end": char_end, "text": speech["text"][char_start:char_end],
        "hook": HOOK, "k": k, "prepend_bos": smollm2.PREPEND_BOS, "dtype": "float32",
        "firing": int((acts != 0).sum()),
        "tensors": "parity.safetensors",
        "model_sha256": sha256(smollm2.GGUF),
        "sae_weights_sha256": sha256(HERE / "sae/sae_weights.safetensors"),
        "made_with": {p: version(p) for p in ("torch", "transformers", "sae-lens", "tokenizers", "gguf")},
    }, indent=1, ensure_ascii=False) + "\n")
    print((HERE / "parity.json").read_text())


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


if __name__ == "__main__":
    main()
