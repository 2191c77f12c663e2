#!/usr/bin/env python3
"""Prove that an artifact is plain Parquet: read it with pyarrow and print what Go compares.

Made with Python 3.11, pyarrow 26.0.1; any pyarrow from 14 on should do.
Usage: read_artifact.py FILE
"""
import base64
import hashlib
import json
import struct
import sys

import pyarrow.parquet as pq


def sinks(text):
    raw = base64.b64decode(text + "=" * (-len(text) % 4))
    values, at = [], 0
    while at < len(raw):
        value = shift = 0
        while True:
            byte = raw[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        values.append(value)
    out, sequence = [], 0
    for step, offset in zip(values[::2], values[1::2]):
        sequence += step
        out.append((sequence, offset))
    return out


file = pq.ParquetFile(sys.argv[1])
table = file.read()
pairs = {k.decode(): v.decode() for k, v in file.schema_arrow.metadata.items()} if file.schema_arrow.metadata else {}
content = hashlib.sha256()
for l, s, o, a in zip(*(table.column(i).to_pylist() for i in range(4))):
    content.update(struct.pack("<IIHf", l, s, o, a))
for s, o in sinks(pairs["featuremill.sinks"]):
    content.update(struct.pack("<IH", s, o))
groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
print(json.dumps({
    "columns": [[f.name, str(f.type)] for f in table.schema],
    "rows": table.num_rows,
    "content": content.hexdigest(),
    "metadata": {k: v for k, v in pairs.items() if k.startswith("featuremill.")},
    "groups": [[g.num_rows, g.column(0).statistics.min, g.column(0).statistics.max] for g in groups],
    "compression": sorted({g.column(i).compression for g in groups for i in range(4)}),
    "encodings": [sorted(set(g.column(i).encodings)) for g in groups[:1] for i in range(4)],
    "sorting": [[c.column_index, c.descending] for g in groups[:1] for c in g.sorting_columns],
}))
