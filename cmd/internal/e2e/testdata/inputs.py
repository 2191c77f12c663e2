"""Writes what the tests in this folder's parent extract from, and what Python makes of it:

  model/            a random Llama with two key/value heads for four query heads, and its tokenizer
  sae/              a top-k SAE of blocks.1.hook_resid_post, trained here on the texts
  texts.jsonl       rows of text; each is one sequence
  few.jsonl         the first rows of them
  postings.golden.safetensors   every activation of the SAE on few.jsonl: row, offset, latent, value

torch 2.7.1, transformers 4.56.2, tokenizers 0.22 or newer, sae-lens 6.54.0, safetensors (any).
Run in this folder: python inputs.py (a minute on two cores).
"""

import json
import random
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from sae_lens import TopKSAE, TopKSAEConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

ROWS, FEW = 416, 48
VOCAB, WIDTH, LATENTS, K = 512, 32, 128, 8
LAYER = 1
STEPS, BATCH = 3000, 1024

SUBJECTS = "The river|A tired sailor|My neighbour|The old mill|Nobody|Every winter|The first train|A flock of geese|The committee|An honest clerk|Her brother|The lighthouse".split("|")
VERBS = "carried|forgot|repaired|counted|sold|watched|painted|buried|measured|followed|borrowed|weighed".split("|")
OBJECTS = "seven barrels of salt|the north wall|a letter from Trieste|two copper coins|the map of the delta|an unpaid bill|the bell rope|a crate of oranges|the ledger|a broken oar|the morning paper|forty sheep".split("|")
PLACES = "before the flood|in the market of Ghent|under the bridge|at half past nine|without a word|in 1887|behind the station|for the third time|while it rained|on the way to Bergen|by candlelight|near the quarry".split("|")
ASIDES = "It was, they said, a mistake.|Nobody asked why!|Was it worth 250 crowns?|The price had doubled.|“Later,” she answered.|That was all.|He did not return until May.|Prices rose again.".split("|")


def texts():
    r = random.Random(1)
    out = []
    for _ in range(ROWS):
        sentences = []
        for _ in range(r.randint(2, 5)):
            sentences.append(f"{r.choice(SUBJECTS)} {r.choice(VERBS)} {r.choice(OBJECTS)} {r.choice(PLACES)}.")
            if r.random() < 0.4:
                sentences.append(r.choice(ASIDES))
        out.append(" ".join(sentences))
    return out


def tokenizer(rows):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(rows, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<bos>", "<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return t


def llama():
    torch.manual_seed(2)
    m = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=1024, rms_norm_eps=1e-5, initializer_range=0.25, bos_token_id=0, eos_token_id=1,
        tie_word_embeddings=True, attn_implementation="eager")).eval()
    with torch.no_grad():
        for key, p in m.named_parameters():
            if "norm" in key:
                p.copy_(1 + 0.3 * torch.randn_like(p))
    return m


def residual(m, ids):
    """The residual stream after LAYER, [tokens, WIDTH]: hidden state 0 is the embedding."""
    with torch.no_grad():
        return m(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER + 1][0]


def train(x):
    """Plain top-k training: reconstruct, unit decoder rows, latents that never fire are set anew."""
    torch.manual_seed(3)
    sae = TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=LATENTS, k=K, dtype="float32", device="cpu", normalize_activations="none",
                                reshape_activations="none", rescale_acts_by_decoder_norm=False))
    sae.cfg.metadata.hook_name = f"blocks.{LAYER}.hook_resid_post"
    sae.cfg.metadata.model_name = "e2e-llama"
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(0))
        sae.b_enc.zero_()
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(LATENTS, WIDTH), dim=1))
        sae.W_enc.copy_(sae.W_dec.T)
    for p in sae.parameters():
        p.requires_grad_(True)
    optimiser = torch.optim.Adam(sae.parameters(), lr=3e-3)
    fired = torch.zeros(LATENTS)
    for step in range(STEPS):
        batch = x[torch.randint(0, len(x), (BATCH,))]
        acts = sae.encode(batch)
        acts = acts.to_dense() if acts.is_sparse else acts
        fired += (acts > 0).sum(0)
        loss = (sae.decode(acts) - batch).pow(2).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_dec, dim=1))
            if step % 300 == 299:
                if step < STEPS // 2:
                    wrong = (batch - sae.decode(acts)).pow(2).sum(1)
                    for latent in (fired == 0).nonzero().flatten():
                        towards = torch.nn.functional.normalize(batch[torch.multinomial(wrong, 1)] - sae.b_dec, dim=1)
                        sae.W_dec[latent] = towards
                        sae.W_enc[:, latent] = towards
                        sae.b_enc[latent] = 0
                fired.zero_()
    with torch.no_grad():
        left = (sae.decode(sae.encode(x)) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    print(f"FVU {left:.3f} on {len(x)} tokens")
    return sae


def main():
    rows = texts()
    for name, part in (("texts.jsonl", rows), ("few.jsonl", rows[:FEW])):
        Path(name).write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in part))
    t, m = tokenizer(rows), llama()
    shutil.rmtree("model", ignore_errors=True)
    m.save_pretrained("model")
    t.save("model/tokenizer.json")
    ids = [[0] + t.encode(row).ids for row in rows]
    print("tokens of a row:", min(map(len, ids)), "to", max(map(len, ids)), "in all", sum(map(len, ids)))
    acts = [residual(m, row) for row in ids]
    sae = train(torch.cat([a[1:] for a in acts]))
    shutil.rmtree("sae", ignore_errors=True)
    sae.save_model("sae")

    found = {"row": [], "offset": [], "latent": [], "value": []}
    with torch.no_grad():
        for row in range(FEW):
            encoded = sae.encode(acts[row])
            encoded = encoded.to_dense() if encoded.is_sparse else encoded
            offset, latent = encoded.nonzero(as_tuple=True)
            found["row"].append(torch.full_like(offset, row, dtype=torch.uint8))
            found["offset"].append(offset.to(torch.uint8))
            found["latent"].append(latent.to(torch.uint8))
            found["value"].append(encoded[offset, latent])
    save_file({k: torch.cat(v).contiguous() for k, v in found.items()}
              | {"ids": torch.tensor([i for row in ids[:FEW] for i in row], dtype=torch.int32)}, "postings.golden.safetensors")


if __name__ == "__main__":
    main()
