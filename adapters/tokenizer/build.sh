#!/usr/bin/env bash
# Builds the static library behind this package, once for each state of its sources and lock file.
#
#   build.sh        build if needed (a no-op of milliseconds when current); prints the library's path
#   build.sh env    the same, then prints NAME=VALUE lines for cgo, to be joined with other CGO_LDFLAGS
#
# The library is kept in ${XDG_CACHE_HOME:-~/.cache}/featuremill/tokenizer/<digest>/, so that a second
# clone does not compile it again, and the changed path of a changed library makes Go link anew.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
rust="$here/rust"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/featuremill/tokenizer"

if ! command -v cargo >/dev/null; then
	PATH="$HOME/.cargo/bin:$PATH"
fi
if ! command -v cargo >/dev/null; then
	echo "build.sh: cargo is missing: install Rust 1.85 or newer (https://rustup.rs)" >&2
	exit 1
fi

digest="$( (cd "$rust" && sha256sum Cargo.toml Cargo.lock src/*.rs; uname -sm; rustc --version) | sha256sum | cut -c1-16)"
dir="$cache/$digest"
lib="$dir/libfeaturemill_tokenizer.a"

if [ ! -f "$lib" ]; then
	mkdir -p "$cache"
	exec 9>"$cache/lock" # two builds at once would compile everything twice
	flock 9
	if [ ! -f "$lib" ]; then
		echo "building the tokenizer library (about 100 s of CPU, once)" >&2
		CARGO_TARGET_DIR="$cache/target" cargo build --quiet --release --locked --manifest-path "$rust/Cargo.toml" >&2
		mkdir -p "$dir"
		cp "$cache/target/release/libfeaturemill_tokenizer.a" "$lib.tmp"
		mv "$lib.tmp" "$lib"
		rm -rf "$cache/target" # 300 MB that only the next change of the lock file would use
	fi
	flock -u 9
fi

case "${1:-}" in
env) echo "CGO_LDFLAGS=-L$dir" ;;
*) echo "$lib" ;;
esac
