#!/usr/bin/env bash
# Builds SeaweedFS's server, a real object store that speaks S3, once into the user's cache.
#
#   s3server.sh                 prints the path of the program; says why and ends with 3 where the module cannot be had
#   s3server.sh run COMMAND…    runs a command with FEATUREMILL_TEST_STORE=http://host:port of a server of its own
set -euo pipefail

version=v0.0.0-20261109003541-7506e5f91cd6
cache=${XDG_CACHE_HOME:-$HOME/.cache}/featuremill
weed=$cache/weed-$version

program() {
	[ -x "$weed" ] && return
	local dir
	dir=$(mktemp -d)
	trap 'rm -rf "$dir"' RETURN
	echo "building the object store (some minutes, once)" >&2
	(
		cd "$dir"
		go mod init objectstore 2>/dev/null
		go get "github.com/seaweedfs/seaweedfs/weed@$version" >&2 || { echo "skipped: the module of the object store cannot be had here" >&2; exit 3; }
		go mod edit -replace github.com/tyler-smith/go-bip39=github.com/cosmos/go-bip39@v1.0.0 # as its own go.mod says
		GOFLAGS=-mod=mod CGO_ENABLED=0 go build -ldflags '-s -w' -o weed github.com/seaweedfs/seaweedfs/weed >&2
	)
	mkdir -p "$cache"
	mv "$dir/weed" "$weed.$$" && mv "$weed.$$" "$weed"
}

if [ "${1:-}" != run ]; then
	program
	echo "$weed"
	exit
fi
shift
program
dir=$(mktemp -d)
free() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
port=$(free)
"$weed" server -dir="$dir" -ip=127.0.0.1 -ip.bind=127.0.0.1 -s3 -s3.port="$port" -master.port="$(free)" -volume.port="$(free)" -filer.port="$(free)" \
	-master.port.grpc="$(free)" -volume.port.grpc="$(free)" -filer.port.grpc="$(free)" -s3.port.grpc="$(free)" \
	-master.volumeSizeLimitMB=256 -volume.max=8 >"$dir/log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null || true; rm -rf "$dir"' EXIT
for _ in $(seq 240); do
	curl -s -o /dev/null "http://127.0.0.1:$port/" && answered=1 && break
	kill -0 "$server" 2>/dev/null || break
	sleep 0.25
done
[ -n "${answered:-}" ] || { tail -20 "$dir/log" >&2; echo "the object store did not start" >&2; exit 1; }
FEATUREMILL_TEST_STORE=http://127.0.0.1:$port "$@"
