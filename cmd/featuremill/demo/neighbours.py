"""Which tap does the SAE fit, and what do its latents look like? Figures to check the demo's own against.

    python neighbours.py    (versions as in train_sae.py; after fetch.sh; reads sae/, writes neighbours.json)

1. FVU and L0 at the taps of equal width in layers 6 to 10, on 4,096 counted tokens without sinks of speeches
   that were never trained on (and the claimed tap once more with the GGUF's BOS in front).
2. Over the excerpts (a passage of every speech, above 200,000 tokens): how many latents have a top token with
   a share above 0.8, how many below 0.2 over ten speeches or more, and how many a density under 1e-4.
"""

import json
from pathlib import Path

import torch
from sae_lens import SAE

import smollm2
from train_sae import HOOK, score, sequences

HERE = Path(__file__).parent
TOKENS, BOS = 4096, 1
PLACES = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
SHORTEST = 16  # a rest of a speech shorter than this is no sequence


def taps_table(sae):
    hooks = [f"blocks.{layer}.{place}" for layer in range(smollm2.HOOK_LAYER - 2, smollm2.HOOK_LAYER + 3) for place in PLACES]
    model = smollm2.load_model(layers=smollm2.HOOK_LAYER + 3)
    taps = smollm2.Taps(model, hooks)
    ids = torch.tensor([c[1] for c in sequences()[1]])[:40]

    def run(ids, hooks, skip):
        kept = {h: [] for h in hooks}
        for part in ids.split(8):
            model.model(part, use_cache=False)
            for h in hooks:
                kept[h].append(taps.values[h][:, skip:])
        kept = {h: torch.cat(v) for h, v in kept.items()}
        norm = kept[HOOK].norm(dim=-1)
        keep = norm <= smollm2.SINK_NORM * norm[:, 1 - skip:].median()
        keep[:, :1 - skip] = False
        return {h: v[keep][:TOKENS] for h, v in kept.items()}

    table = []
    for hook, x in run(ids, hooks, 0).items():
        fvu, l0, _ = score(sae, x)
        table.append({"hook": hook, "fvu": round(fvu, 4), "l0": round(l0, 2), "median_norm": round(x.norm(dim=-1).median().item(), 2), "tokens": len(x)})
    with_bos = torch.cat([torch.full((len(ids), 1), BOS), ids[:, :-1]], dim=1)
    x = run(with_bos, [HOOK], 1)[HOOK]
    fvu, l0, _ = score(sae, x)
    table.append({"hook": HOOK + " with <|im_start|> in front", "fvu": round(fvu, 4), "l0": round(l0, 2), "median_norm": round(x.norm(dim=-1).median().item(), 2), "tokens": len(x)})
    return table


def latents_table(sae, speeches):
    model = smollm2.load_model(layers=smollm2.HOOK_LAYER + 1)
    taps = smollm2.Taps(model, [HOOK])
    encodings = smollm2.load_tokenizer().encode_batch([s["text"] for s in speeches], add_special_tokens=False)
    n, vocab = sae.cfg.d_sae, model.config.vocab_size
    latents, tokens, rows, sinks = [], [], [], []
    counted = 0
    norms = []
    for row, encoding in enumerate(encodings):
        ids = encoding.ids
        parts = [ids[i:i + smollm2.CONTEXT] for i in range(0, len(ids), smollm2.CONTEXT)]
        parts = [p for p in parts if len(p) >= SHORTEST]
        whole = torch.tensor([p for p in parts if len(p) == smollm2.CONTEXT])
        groups = list(whole.split(16)) if len(whole) else []
        groups += [torch.tensor([p]) for p in parts if len(p) < smollm2.CONTEXT]
        for group in groups:
            model.model(group, use_cache=False)
            x = taps.values[HOOK][:, 1:].flatten(0, 1)
            token = group[:, 1:].flatten()
            counted += len(token)
            norms.append(x.norm(dim=-1))
            acts = sae.encode(x)
            at, latent = acts.nonzero(as_tuple=True)
            latents.append(latent.to(torch.int32))
            tokens.append(token[at].to(torch.int32))
            rows.append(torch.full_like(latent, row, dtype=torch.int16))
            sinks.append(norms[-1][at])
        if row % 20 == 0:
            print(f"  row {row}, {counted} tokens", flush=True)
    latent, token, row, norm = torch.cat(latents).long(), torch.cat(tokens).long(), torch.cat(rows).long(), torch.cat(sinks)
    limit = smollm2.SINK_NORM * torch.cat(norms).median()

    count = torch.bincount(latent, minlength=n)
    pair, times = torch.unique(latent * vocab + token, return_counts=True)
    top = torch.zeros(n, dtype=torch.int64).scatter_reduce_(0, pair // vocab, times, "amax")
    share = top / count.clamp(min=1)
    pair = torch.unique(latent * len(speeches) + row)
    documents = torch.bincount(pair // len(speeches), minlength=n)
    shown = norm <= limit
    pair = torch.unique((latent * len(speeches) + row)[shown])
    without_sinks = torch.bincount(pair // len(speeches), minlength=n)
    density = count / counted
    alive = count > 0
    rare = alive & (density < 1e-4)
    return {
        "speeches": len(speeches), "counted_tokens": counted, "firings": len(latent),
        "sink_share": round((torch.cat(norms) > limit).float().mean().item(), 5),
        "dead": int((~alive).sum()),
        "top_token_share_above_0.8": int((alive & (share > 0.8)).sum()),
        "... with density >= 1e-4 and three speeches": int((alive & (share > 0.8) & ~rare & (without_sinks >= 3)).sum()),
        "top_token_share_below_0.2_in_ten_speeches": int((alive & (share < 0.2) & (documents >= 10)).sum()),
        "density_below_1e-4": int(rare.sum()),
        "... in three speeches without sinks": int((rare & (without_sinks >= 3)).sum()),
        "density_quantiles_1_10_50_90_99": [float(f"{q:.3g}") for q in density.quantile(torch.tensor([.01, .1, .5, .9, .99]))],
        "largest_density": round(density.max().item(), 4),
    }


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    sae = SAE.load_from_disk(str(HERE / "sae"), dtype="float32")
    result = {"taps": taps_table(sae)}
    for line in result["taps"]:
        print(f"{line['hook']:55} FVU {line['fvu']:10.4f}  L0 {line['l0']:6.2f}  norm {line['median_norm']}")
    result["latents"] = latents_table(sae, smollm2.load_speeches(smollm2.EXCERPTS))
    print(json.dumps(result["latents"], indent=1))
    (HERE / "neighbours.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
