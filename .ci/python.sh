#!/usr/bin/env bash
# The Python that some tests compare with: one with pyarrow (another reader of our Parquet files). Prints its
# path; makes it once, in the user's cache, unless FEATUREMILL_PYTHON names one.
set -euo pipefail
if [ -n "${FEATUREMILL_PYTHON:-}" ]; then
	echo "$FEATUREMILL_PYTHON"
	exit
fi
pyarrow=26.0.1
folder="${XDG_CACHE_HOME:-$HOME/.cache}/featuremill/python/pyarrow-$pyarrow"
if [ ! -x "$folder/bin/python" ]; then
	mkdir -p "$(dirname "$folder")"
	exec 9>"$folder.lock"
	flock 9
	if [ ! -x "$folder/bin/python" ]; then
		rm -rf "$folder" "$folder.new"
		python3 -m venv --without-pip "$folder.new"
		python3 -m pip install --quiet --disable-pip-version-check --only-binary=:all: --target "$("$folder.new/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" "pyarrow==$pyarrow" >&2
		mv "$folder.new" "$folder"
	fi
fi
echo "$folder/bin/python"
