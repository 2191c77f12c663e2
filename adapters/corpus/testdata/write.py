"""Writes the small datasets of this folder as their users' tools write them.

    python -m venv V && V/bin/pip install pyarrow==26.0.1 numpy==2.4.6 datasets==5.0.1 zstandard==0.25.0 && V/bin/python write.py
"""

import gzip
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import zstandard
from datasets import Dataset, DatasetDict
import pyarrow.parquet as pq

HERE = pathlib.Path(__file__).parent
N = 500


def text(i):
    if i % 97 == 5:
        return None
    return f"row {i} of the union: café 你好 😀 " * (1 + i % 7)


def ids(i):
    return None if i % 97 == 5 else [(i * 31 + k) % 50000 for k in range(i % 23)]


table = pa.table({
    "text": pa.array([text(i) for i in range(N)], pa.large_string()),
    "year": pa.array([1800 + i % 200 for i in range(N)], pa.int32()),
    "score": pa.array([i / 4 for i in range(N)], pa.float64()),
    "ok": pa.array([i % 2 == 0 for i in range(N)], pa.bool_()),
    "tags": pa.array([[f"t{i}", "x"] if i % 3 else [] for i in range(N)], pa.list_(pa.string())),
    "meta": pa.array([{"a": i, "b": "y"} for i in range(N)], pa.struct([("a", pa.int64()), ("b", pa.string())])),
})
pq.write_table(table, HERE / "v1.parquet", row_group_size=120, data_page_size=512, compression="snappy")
pq.write_table(table, HERE / "v2.parquet", row_group_size=120, data_page_size=512, compression="zstd", data_page_version="2.0", use_dictionary=False, write_page_index=True)

tokens = pa.table({
    "input_ids": pa.array([ids(i) for i in range(N)], pa.list_(pa.int32())),
    "attention_mask": pa.array([[1] * len(ids(i) or []) for i in range(N)], pa.list_(pa.int8())),
})
pq.write_table(tokens, HERE / "tokens.parquet", row_group_size=200, data_page_size=256)
pq.write_table(pa.table({"input_ids": pa.array([[1, -2]], pa.list_(pa.int64()))}), HERE / "negative.parquet")
pq.write_table(pa.table({"input_ids": pa.array([[1, None]], pa.list_(pa.int64()))}), HERE / "nulls.parquet")
pq.write_table(pa.table({"a": ["x"], "b": ["y"], "n": [1]}), HERE / "columns.parquet")

base = np.arange(12).reshape(3, 4) * 1000
for name, dtype in {"i8": "<i8", "i4be": ">i4", "u2": "<u2"}.items():
    np.save(HERE / f"{name}.npy", base.astype(dtype))
np.save(HERE / "float.npy", base.astype("<f4"))
np.save(HERE / "fortran.npy", np.asfortranarray(base))
np.save(HERE / "flat.npy", base.reshape(-1))
np.save(HERE / "negative.npy", -base)
np.save(HERE / "huge.npy", base + 2**40)

# Arrow: what save_to_disk writes (streams, shards, splits), and what other writers write.
few = {"text": [text(i) for i in range(40)], "year": [1800 + i for i in range(40)], "input_ids": [ids(i) for i in range(40)]}
shutil.rmtree(HERE / "saved", ignore_errors=True)
DatasetDict(train=Dataset.from_dict(few), test=Dataset.from_dict({k: v[:7] for k, v in few.items()})).save_to_disk(HERE / "saved", num_shards={"train": 2, "test": 1})

small = table.slice(0, 60)
for name, kind, compression in (("stream", pa.ipc.new_stream, None), ("file", pa.ipc.new_file, None), ("zstd", pa.ipc.new_stream, "zstd"), ("lz4", pa.ipc.new_file, "lz4")):
    with kind(str(HERE / f"{name}.arrow"), small.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as out:
        out.write_table(small, max_chunksize=25)
kinds = pa.table({
    "view": pa.array([f"v{i}" * (1 + i) for i in range(30)], pa.string_view()),
    "word": pa.array(["river" if i % 3 else "bank" for i in range(30)]).dictionary_encode(),
    "fixed": pa.array([[i, i + 1] for i in range(30)], pa.list_(pa.uint16(), 2)),
    "large": pa.array([[i] * (i % 4) for i in range(30)], pa.large_list(pa.int64())),
    "bad": pa.array([[-i] for i in range(30)], pa.list_(pa.int64())),
    "holes": pa.array([[1, None] for i in range(30)], pa.list_(pa.int32())),
    "when": pa.array([i * 86400 for i in range(30)], pa.timestamp("s")),
    "null": pa.nulls(30),
})
with pa.ipc.new_stream(str(HERE / "kinds.arrow"), kinds.schema) as out:
    out.write_table(kinds.slice(0, 20))
    out.write_table(kinds.slice(20))

lines = b"".join(b'{"text": "line %d", "n": %d}\n' % (i, i) for i in range(300))
(HERE / "lines.jsonl.gz").write_bytes(gzip.compress(lines[:4000], mtime=0) + gzip.compress(lines[4000:], mtime=0))  # two members
(HERE / "lines.jsonl.zst").write_bytes(zstandard.compress(lines))
(HERE / "bomb.txt.gz").write_bytes(gzip.compress(bytes(100 << 20), mtime=0))
(HERE / "bomb.txt.zst").write_bytes(zstandard.compress(bytes(100 << 20)))
