"""Writes plants/text.safetensors: 48 pieces of State of the Union addresses as SmolLM2's token ids, I32 [48, 127].

The text is what `make demo` fetches; tokens are `extractor tokenize`'s, which another test holds against tokenizers.
python plants_text.py ~/.cache/featuremill/datasets/sotu/sotu.jsonl bin/extractor SmolLM2-135M-Instruct.Q4_1.gguf
"""

import json
import subprocess
import sys

import torch
from safetensors.torch import save_file

ROWS, LENGTH, START = 48, 127, 4000


def main(text, extractor, gguf):
    addresses = [json.loads(line)["text"] for line in open(text)]
    chosen = [a[START : START + 4000] for a in addresses if len(a) > START + 4000][:: max(1, len(addresses) // ROWS)]
    lines = "\n".join(json.dumps({"text": t}) for t in chosen)
    out = subprocess.run([extractor, "tokenize", "--tokenizer", gguf], input=lines, capture_output=True, text=True, check=True).stdout
    ids = [json.loads(line)["ids"][:LENGTH] for line in out.splitlines()]
    ids = [i for i in ids if len(i) == LENGTH][:ROWS]
    save_file({"input_ids": torch.tensor(ids, dtype=torch.int32)}, "plants/text.safetensors")
    print(len(ids))


if __name__ == "__main__":
    main(*sys.argv[1:])
