#!/usr/bin/env python3
"""Fold our postings in plain Python: the definitions of the package once more, by another hand.

Reads a folder: corpus.json, cases.json (artifacts and options of each case) and the artifacts, which are plain Parquet.
Prints JSON: for each case every latent and the summary. Slow and simple on purpose: no code or trick is
shared with the Go side. Made with Python 3.11 and pyarrow 26.0.1 (only to read Parquet).

Usage: fold_reference.py FOLDER > expected.json
"""
import base64
import json
import math
import os
import struct
import sys
import unicodedata
from collections import Counter, defaultdict

import pyarrow.parquet as pq

M64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
PERCENTS = [1, 5, 10, 25, 50, 75, 90, 95, 99]
STOP = set(
    """
    a an the this that these those
    and or but nor so yet if than then because while although
    of in on at by for to from with without into onto over under about as up down out off between through during before after
    i you he she it we they me him her us them my your his its our their who whom whose which what
    am is are was were be been being do does did done doing have has had having
    will would shall should can could may might must
    not no there here when where why how all any both each more most other some such only own same too very just
    """.split()
)


def mix(x):
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & M64
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & M64
    return x ^ x >> 31


def hashed(seed, *values):
    h = mix(seed + GOLDEN & M64)
    for v in values:
        h = mix(h ^ (v + GOLDEN & M64))
    return h


def bits(f):
    return struct.unpack("<I", struct.pack("<f", f))[0]


# --- vocabulary ---------------------------------------------------------------------------------


def byte_level():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in printable}
    others = [b for b in range(256) if b not in printable]
    table.update({chr(256 + i): b for i, b in enumerate(others)})
    return table


BYTES = byte_level()


def letter(c):
    return unicodedata.category(c)[0] in "LM"


def number(c):
    return unicodedata.category(c)[0] == "N"


def script(c, *names):
    return any(unicodedata.name(c, "").startswith(n) for n in names)


class Token:
    def __init__(self, piece, special):
        raw = b"".join(bytes([BYTES[c]]) if c in BYTES else c.encode() for c in piece)
        self.special = special
        self.partial = self.single = self.punctuation = self.number = self.stop = False
        self.continues = self.ends = False
        if special:
            return
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            self.partial = True
            return
        word = text.strip()
        self.single = len(word) == 0 or len(word) == 1 and not script(word, "CJK UNIFIED")
        self.punctuation = not any(letter(c) or number(c) for c in word)
        self.number = len(word) > 0 and all(number(c) for c in word)
        self.stop = word.lower() in STOP
        start = text[1:2] if text[:1] in ("'", "’") else text[:1]
        self.continues = bool(start) and letter(start) and not script(start, "CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
        self.ends = bool(text) and (letter(text[-1]) or number(text[-1]))

    def junk(self, before, filters):
        return (
            filters["Special"] and self.special
            or filters["SingleChar"] and self.single
            or filters["Punctuation"] and self.punctuation
            or filters["Numbers"] and self.number
            or filters["StopWords"] and self.stop
            or filters["Fragments"] and (self.partial or self.continues and before is not None and before.ends)
        )


# --- corpus -------------------------------------------------------------------------------------


class Sequence:
    def __init__(self, number, raw):
        self.number = number
        self.tokens = raw["Tokens"]
        self.pieces = raw["Pieces"]
        self.inserted = set(raw["Inserted"] or [])

    def piece(self, offset):
        at = 0
        for i, p in enumerate(self.pieces):
            if p["Token"] <= offset:
                at = i
        return at

    def document(self, offset):
        """Row, and the bounds of the document in this sequence."""
        at = self.piece(offset)
        start = 0 if at == 0 else self.pieces[at]["Token"]
        end = self.pieces[at + 1]["Token"] if at + 1 < len(self.pieces) else len(self.tokens)
        return self.pieces[at]["Row"], start, end

    def context(self, offset):
        start = self.document(offset)[1]
        return tuple(self.tokens[max(start, offset - 8) : offset + 1])


def counted_offsets(s, o):
    n = len(s.tokens)
    if o.get("Seqpos"):
        q = o["Seqpos"]
        allowed = set(range(n)[slice(q.get("Start"), q.get("Stop"), q.get("Step") or 1)])
    else:
        allowed = set(range(o["SkipFirst"], n))
    excluded = set(o.get("ExcludeTokens") or [])
    return [p for p in range(n) if p in allowed and p not in s.inserted and s.tokens[p] not in excluded]


def read_sinks(text):
    raw = base64.b64decode(text + "=" * (-len(text) % 4))
    values, value, shift = [], 0, 0
    for b in raw:
        value |= (b & 0x7F) << shift
        shift += 7
        if b < 0x80:
            values.append(value)
            value = shift = 0
    out, sequence = set(), 0
    for step, offset in zip(values[::2], values[1::2]):
        sequence += step
        out.add((sequence, offset))
    return out


# --- the fold -----------------------------------------------------------------------------------


def linear_bin(x, top):
    return min(max(math.ceil(x * 50 / top) - 1, 0), 49)


def interpretability(examples):
    first = [e["Activations"] for e in examples if e["Kind"] == "top"][:10]
    if len(first) < 2:
        return 0.0
    patterns = [[a / max(w) > 0.3 for a in w] for w in first]
    cosines = []
    for i in range(len(patterns)):
        for j in range(i):
            both = sum(1 for a, b in zip(patterns[i], patterns[j]) if a and b)
            cosines.append(both / math.sqrt(sum(patterns[i]) * sum(patterns[j])))
    s = sum(sum(1 for a in w if a > 0.01) / len(w) for w in first) / len(first)
    score = s / 0.1 if s < 0.1 else 1.0 if s <= 0.3 else max(0.0, (1 - s) / 0.7)
    return min(max(0.7 * sum(cosines) / len(cosines) + 0.3 * score, 0.0), 1.0)


def fold(folder, corpus, case):
    o, latents = case["options"], corpus["latents"]
    postings = defaultdict(dict)  # latent -> (sequence, offset) -> activation
    sinks, covered = set(), []
    for name in case["artifacts"]:
        file = pq.ParquetFile(os.path.join(folder, name))
        pairs = {k.decode(): v.decode() for k, v in file.metadata.metadata.items()}
        sinks |= read_sinks(pairs["featuremill.sinks"])
        first = int(pairs["featuremill.first_sequence"])
        covered += range(first, first + int(pairs["featuremill.sequences"]))
        table = file.read()
        for l, s, p, a in zip(*(table.column(c).to_pylist() for c in ("latent", "sequence", "offset", "activation"))):
            postings[l][s, p] = a
    sequences = {n: Sequence(n, corpus["sequences"][n]) for n in covered}
    vocabulary = [Token(p, i in corpus["vocabulary"]["specials"]) for i, p in enumerate(corpus["vocabulary"]["pieces"])]

    counted = {n: counted_offsets(s, o) for n, s in sequences.items()}
    is_counted = {(n, p) for n, ps in counted.items() for p in ps}
    occurrences = Counter(sequences[n].tokens[p] for n, p in is_counted)
    document_tokens = Counter(sequences[n].document(p)[0] for n, p in is_counted)
    total = len(is_counted)
    rows = {sequences[n].pieces[sequences[n].piece(p)]["Row"] for n in covered for p in range(len(sequences[n].tokens))}

    def eligible(at):
        n, p = at
        s = sequences[n]
        if at not in is_counted or at in sinks:
            return False
        start = s.document(p)[1]
        before = vocabulary[s.tokens[p - 1]] if p > start else None
        return not vocabulary[s.tokens[p]].junk(before, o["Filters"])

    preview = o.get("Preview", False)
    top_k = min(o["TopExamples"], 5) if preview else o["TopExamples"]
    per_interval = 0 if preview else o["ExamplesPerInterval"]
    non_firing = 0 if preview else o["NonFiring"]
    l0 = Counter({at: 0 for at in is_counted})
    out = []
    for index in range(latents):
        fires = postings.get(index, {})
        mine = {at: a for at, a in fires.items() if at in is_counted}
        order = sorted(mine)
        for at in order:
            l0[at] += 1

        def example(kind, rank, n, p, activation, interval=-1, collapsed=1):
            s = sequences[n]
            row, start, end = s.document(p)
            a, b = max(start, p - o["Prefix"]), min(end, p + o["Suffix"] + 1)
            return {
                "Kind": kind, "Rank": rank, "Interval": interval, "Activation": activation, "Row": row, "Sequence": n, "Offset": p,
                "Piece": s.piece(p), "Start": a, "End": b, "Activations": [fires.get((n, q), 0.0) for q in range(a, b)], "Collapsed": collapsed,
            }

        result = {"Index": index, "Firings": len(mine), "Interval": None}
        out.append(result)
        if not mine:
            if total:
                result["Interval"] = {"Low": 0.0, "High": min(1.0, 3 / total)}
            continue
        values = [mine[at] for at in order]
        n = len(values)
        top = max(values)
        mean = math.fsum(values) / n
        per_document = Counter(sequences[s].document(p)[0] for s, p in order)
        result.update(
            Density=n / total,
            FiringSequences=len({s for s, _ in order}),
            FiringDocuments=len(per_document),
            ActivationFrequency=len({s for s, _ in order}) / len(covered),
            Max=top,
            Mean=mean,
            Std=math.sqrt(math.fsum((v - mean) ** 2 for v in values) / n),
            Quantiles=[sorted(values)[-(-p * n // 100) - 1] for p in PERCENTS],
            LogHistogram=[{"Bin": b, "Count": c} for b, c in sorted(Counter(bits(v) >> 21 for v in values).items())],
            SinkFirings=sum(1 for at in order if at in sinks),
            SinkShare=sum(1 for at in order if at in sinks) / n,
        )
        linear = [0] * 50
        for v in values:
            linear[linear_bin(v, top)] += 1
        result["LinearHistogram"] = linear
        result["IntervalShares"] = [sum(linear[10 * i : 10 * i + 10]) / n for i in range(5)]
        if len(per_document) >= 5:
            p, d = n / total, len(document_tokens)
            squares = math.fsum((per_document.get(row, 0) - p * t) ** 2 for row, t in document_tokens.items())
            e = 1.959963984540054 * math.sqrt(d / (d - 1) * squares) / total
            result["Interval"] = {"Low": max(0.0, p - e), "High": min(1.0, p + e)}

        by_token = defaultdict(list)
        for s, p in order:
            by_token[sequences[s].tokens[p]].append(mine[s, p])
        ids = sorted(by_token, key=lambda t: (-len(by_token[t]), t))
        result["DistinctTokens"] = len(ids)
        result["Tokens"] = [
            {"ID": t, "Count": len(by_token[t]), "Share": len(by_token[t]) / n, "Rate": len(by_token[t]) / occurrences[t], "Mean": math.fsum(by_token[t]) / len(by_token[t])}
            for t in ids[: o["TopTokens"]]
        ]

        can = [at for at in order if eligible(at)]
        best = {}
        for at in can:  # ascending: of equal ones the first stays
            row = sequences[at[0]].document(at[1])[0]
            if row not in best or mine[at] > mine[best[row]]:
                best[row] = at
        ranked = sorted(best.items(), key=lambda item: (-mine[item[1]], item[0]))
        groups = {}
        for _, at in ranked:
            groups.setdefault(sequences[at[0]].context(at[1]), []).append(at)
        chosen = [(ats[0], len(ats)) for ats in groups.values()][:top_k]
        examples = [example("top", i, *at, mine[at], collapsed=c) for i, (at, c) in enumerate(chosen)]
        taken = {at for at, _ in chosen}

        rank = 0
        for interval in range(5):
            inside = [at for at in can if at not in taken and linear_bin(mine[at], top) // 10 == interval]
            inside.sort(key=lambda at: hashed(o["Seed"], 1, index, *at))
            for at in inside[:per_interval]:
                examples.append(example("interval", rank, *at, mine[at], interval=interval))
                rank += 1

        used = []
        for j in range(64 * non_firing):
            if len(used) == non_firing:
                break
            s = covered[hashed(o["Seed"], 2, index, j) % len(covered)]
            if s in used or not counted[s]:
                continue
            p = counted[s][hashed(o["Seed"], 3, index, j) % len(counted[s])]
            e = example("non_firing", len(used), s, p, 0.0)
            if any((s, q) in fires for q in range(e["Start"], e["End"])):
                continue
            used.append(s)
            examples.append(e)
        result["Examples"] = examples
        result["InterpretabilityScore"] = interpretability(examples)

    alive = [r for r in out if r["Firings"]]
    decades = ["1", "1.2589254117941673", "1.5848931924611136", "1.9952623149688795", "2.5118864315095801", "3.1622776601683795",
               "3.9810717055349722", "5.0118723362727229", "6.3095734448019325", "7.9432823472428150"]
    borders = [(k, float(decades[k % 10] + "e" + str(k // 10))) for k in range(-120, 1)]
    density = Counter(max((k for k, b in borders if b <= r["Density"]), default=-120) for r in alive)
    firings = sum(r["Firings"] for r in out)
    summary = {
        "Latents": latents, "Alive": len(alive), "Dead": latents - len(alive), "Sequences": len(covered),
        "Tokens": sum(len(s.tokens) for s in sequences.values()), "CountedTokens": total,
        "SinkTokens": sum(1 for at in is_counted if at in sinks), "Documents": len(rows), "CountedDocuments": len(document_tokens),
        "Postings": sum(len(p) for p in postings.values()), "Firings": firings,
        "LogDensity": [{"Bin": k, "Latents": c} for k, c in sorted(density.items())],
        "L0": [{"L0": k, "Tokens": c} for k, c in sorted(Counter(l0.values()).items())],
        "MeanL0": firings / total if total else 0.0,
    }
    return {"name": case["name"], "latents": out, "summary": summary}


def main():
    folder = sys.argv[1]
    with open(os.path.join(folder, "corpus.json")) as f:
        corpus = json.load(f)
    with open(os.path.join(folder, "cases.json")) as f:
        cases = json.load(f)
    json.dump([fold(folder, corpus, c) for c in cases], sys.stdout, separators=(",", ":"))
    sys.stdout.write("\n")


main()
