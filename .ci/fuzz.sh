#!/usr/bin/env bash
# Runs every fuzz target for the given time: fuzz.sh 1m [package…]
set -euo pipefail
time=$1; shift
packages=("$@"); [ $# -gt 0 ] || packages=(./...)
for package in $(go list "${packages[@]}"); do
	for target in $(go test -list '^Fuzz' "$package" 2>/dev/null | grep '^Fuzz' || true); do
		echo "== $package $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package"
	done
done
