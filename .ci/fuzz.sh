#!/usr/bin/env bash
# Runs every fuzz target for the given time; the formats that strangers' weights come in, ten times as long.
#
#   .ci/fuzz.sh 1m [package…]       none: all of them
#   .ci/fuzz.sh --list [package…]   only says which targets there are
#
# All targets are run, whatever fails; the failures are named at the end.
set -euo pipefail
time=$1; shift
packages=("$@"); [ $# -gt 0 ] || packages=(./...)
long='^Fuzz(Pickle|Torch|NPZ|Zip|Safetensors|GGUF)'

# Packages with targets. A package that does not compile must not pass for one without targets: go test says so.
mapfile -t packages < <(go list -f '{{$p := .}}{{range .TestGoFiles}}{{$p.Dir}}/{{.}} {{$p.ImportPath}}{{"\n"}}{{end}}{{range .XTestGoFiles}}{{$p.Dir}}/{{.}} {{$p.ImportPath}}{{"\n"}}{{end}}' "${packages[@]}" |
	while read -r file package; do [ -z "$package" ] || ! grep -q '^func Fuzz' "$file" || echo "$package"; done | sort -u)
failed=()
for package in "${packages[@]}"; do
	if ! targets=$(go test -list '^Fuzz' "$package"); then
		failed+=("$package (does not build)")
		continue
	fi
	for target in $(grep '^Fuzz' <<<"$targets" || true); do
		for_how_long=$time
		if [[ $target =~ $long ]]; then
			for_how_long=$(sed -E 's/^([0-9]+)/\10/' <<<"$time")
		fi
		if [ "$time" = --list ]; then
			echo "$package $target"
			continue
		fi
		echo "== $package $target for $for_how_long"
		# Left alone, Go spends its first minute on making one interesting input smaller.
		go test -run '^$' -fuzzminimizetime 1s -fuzz "^$target\$" -fuzztime "$for_how_long" "$package" || failed+=("$package $target")
	done
done
[ ${#failed[@]} -eq 0 ] || { printf 'failed: %s\n' "${failed[@]}" >&2; exit 1; }
