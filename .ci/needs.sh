#!/usr/bin/env bash
# Makes sure that the programs which build Featuremill are there.
#
#   .ci/needs.sh          install what is missing with apt-get (as root on Debian or Ubuntu), else print the one line that would
#   .ci/needs.sh --check  only say what is missing
set -euo pipefail

go_min=1.26 cargo_min=1.85 java_min=17 node_min=18

at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n1)" = "$2" ]; }

missing=()
old=()
need() { # program, package
	command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}

[ -d "$HOME/.cargo/bin" ] && PATH="$PATH:$HOME/.cargo/bin"
look() {
	missing=() old=()
	need go golang
	need g++ g++
	need make make
	need git git
	need ar binutils
	need unzip unzip
	need xz xz-utils
	need curl curl
	need cargo cargo
	need mvn maven
	need java default-jdk-headless
	need python3 python3
	need npm npm
	if command -v python3 >/dev/null 2>&1; then
		python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
		python3 -c 'import ensurepip' >/dev/null 2>&1 || missing+=(python3-venv)
	fi
	if command -v go >/dev/null 2>&1; then
		# Any Go since 1.21 fetches the toolchain that go.mod names.
		v=$(cd / && GOTOOLCHAIN=local go env GOVERSION | sed 's/^go//; s/[^0-9.].*//')
		at_least "$v" 1.21 || old+=("go $v (need 1.21 or newer; $go_min is used)")
	fi
	if command -v cargo >/dev/null 2>&1; then
		v=$(cargo --version 2>/dev/null | awk '{print $2}')
		at_least "${v:-0}" "$cargo_min" || old+=("cargo ${v:-that does not start} (need $cargo_min or newer: https://rustup.rs)")
	fi
	if command -v java >/dev/null 2>&1; then
		v=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n1)
		at_least "${v:-0}" "$java_min" || old+=("java ${v:-?} (need $java_min or newer)")
	fi
	if command -v node >/dev/null 2>&1; then
		v=$(node --version | tr -d v)
		at_least "$v" "$node_min" || old+=("node $v (need $node_min or newer)")
	fi
}

look
if [ ${#missing[@]} -gt 0 ]; then
	line="apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
	if [ "${1:-}" != --check ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && grep -qE '^ID(_LIKE)?=.*(debian|ubuntu)' /etc/os-release; then
		echo "installing: ${missing[*]}" >&2
		apt-get update -qq >&2
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
		look
	fi
fi
if [ ${#missing[@]} -gt 0 ]; then
	echo "Featuremill needs programs that are not here. On Debian or Ubuntu: sudo sh -c '$line'" >&2
	exit 1
fi
if [ ${#old[@]} -gt 0 ]; then
	printf 'Featuremill needs newer programs:\n' >&2
	printf '  %s\n' "${old[@]}" >&2
	exit 1
fi
