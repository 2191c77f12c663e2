#!/usr/bin/env python3
"""Makes sample.txt, the text that an SAE is tested on when it is linked to a model: a document a line, out of the middle of
State of the Union addresses of seven years (the speeches are in the public domain).

  cmd/featuremill/demo/fetch.sh      # fetches the speeches, and checks them by digest
  python3 adapters/worker/sample.py
"""

import hashlib
import json
import os
import pathlib

YEARS = (1794, 1821, 1847, 1862, 1881, 1905, 1962)
SHA256 = "4cc657a29b2a90520d0440e95caf09e5deb01d68dc9e9df566d49542159a8ddf"

cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
with open(cache / "featuremill/datasets/sotu/sotu-excerpts.jsonl", encoding="utf-8") as f:
    speeches = {row["year"]: row["text"] for row in map(json.loads, f)}
text = "".join(speeches[year] + "\n" for year in YEARS).encode()
found = hashlib.sha256(text).hexdigest()
if found != SHA256:
    raise SystemExit(f"sample.txt would have sha256 {found}, expected {SHA256}; nothing was written")
(pathlib.Path(__file__).parent / "sample.txt").write_bytes(text)
