#!/usr/bin/env bash
# The C++ libraries and headers of libtorch: 2.1.1, which gotch v0.9.1 was generated for, or a newer one.
#
#   adapters/torch/libtorch.sh fetch          make sure that libtorch is there (seconds when it is)
#   eval "$(adapters/torch/libtorch.sh env)"  set what `go build` needs to compile cgo code against it
#   adapters/torch/libtorch.sh dir            print the folder
#   adapters/torch/libtorch.sh doctor         say what is missing to fetch and build it
#
# TORCH=2.1      (default) libtorch 2.1.1; VARIANT=cpu: MKL and oneDNN inside, 178 MB to download;
#                VARIANT=cu121: CUDA 12.1, 2.4 GB
# TORCH=2.7      libtorch 2.7.1; VARIANT=cpu: 180 MB
# TORCH=2.11     libtorch 2.11.0; VARIANT=cu130: CUDA 13.0, some 2.5 GB; not tried yet on any machine
# LIBTORCH=DIR   use an installed libtorch (DIR/lib, DIR/include) of whatever version; nothing is fetched
#
# CUDA needs an NVIDIA driver to run on cuda:N, and none to build.
#
# The libraries come from Maven (ai.djl.pytorch: the jars hold nothing but the .so files) and the
# headers from PyPI's macOS wheel of the same version, but for 2.11, where both come from PyPI's Linux
# wheel, and CUDA's from the wheels that it asks for. No client has to bring Python at run time, and all
# arrive through ordinary package clients, honouring their mirrors. They are kept in the user's cache,
# outside the clone, so that a second clone does not fetch them again. The linker writes that folder
# into the binary (rpath): the binary runs from anywhere, with no environment.
#
# With a libtorch that is not 2.1, a copy of gotch is fitted to it (gotch.py), and `env` sets a -modfile
# that puts the copy in gotch's place. Both lie in the cache; go.mod does not change.
set -euo pipefail

torch=${TORCH:-2.1}
case $torch in
2.11) variant=${VARIANT:-cu130} ;;
*) variant=${VARIANT:-cpu} ;;
esac
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/featuremill/libtorch

say() { echo "libtorch.sh: $*" >&2; }

die() {
	say "$*"
	exit 1
}

case $torch-$variant in
2.1-cpu)
	version=2.1.1 artifact=pytorch-native-cpu
	jar_sha256=44b36b1da64ed7be0a9f0a2dea568aec8c5724666b3941a38f07c83f361d7a01
	wheel_sha256=e312f7e82e49565f7667b0bbf9559ab0c597063d93044740781c02acd5a87978
	;;
2.1-cu121)
	version=2.1.1 artifact=pytorch-native-cu121
	jar_sha256=${LIBTORCH_CU121_SHA256:-} # not known to us; checked against Maven's own sha1 only when unset
	wheel_sha256=e312f7e82e49565f7667b0bbf9559ab0c597063d93044740781c02acd5a87978
	;;
2.7-cpu)
	version=2.7.1 artifact=pytorch-native-cpu
	jar_sha256=1769928feaaa2389b4aa68390e7787ce1707290258b167d016a200fced4b8c39
	wheel_sha256=aea4fc1bf433d12843eb2c6b2204861f43d8364597697074c8d38ae2507f8730
	;;
2.11-cu130)
	version=2.11.0 artifact=
	wheel_sha256=7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a
	;;
*) die "TORCH=$torch VARIANT=$variant is not known; there are TORCH=2.1 with VARIANT=cpu or cu121, TORCH=2.7 with cpu, TORCH=2.11 with cu130" ;;
esac

# gotch's cgo lines name CUDA's libraries whatever the variant; without CUDA they are satisfied by
# empty archives.
cuda_libraries="cuda cudart cublas cudnn caffe2_nvrtc nvrtc-builtins nvrtc nvToolsExt c10_cuda torch_cuda"

directory() {
	if [ -n "${LIBTORCH:-}" ]; then
		(cd "$LIBTORCH" 2>/dev/null && pwd) || die "LIBTORCH=$LIBTORCH is not a folder"
	else
		echo "$cache/$version-$variant"
	fi
}

# What we add to a libtorch, stubs and a fitted gotch, lies beside it if it is ours, else in a place of its own.
additions() { # its folder
	if [ -n "${LIBTORCH:-}" ]; then
		echo "$cache/own-$(sha256sum <<<"$1 $(headers_version "$1")" | cut -c-12)"
	else
		echo "$1"
	fi
}

headers_version() { # folder
	local include="$1/include/torch" # since 2.9 it is the second file that says so
	cat "$include/csrc/api/include/torch/version.h" "$include/headeronly/version.h" 2>/dev/null |
		awk '/^#define TORCH_VERSION_(MAJOR|MINOR|PATCH) / { v = v dot $3; dot = "." } END { print v }'
}

check_sha256() { # file expected
	local got
	got=$(sha256sum "$1" | cut -d' ' -f1)
	[ "$got" = "$2" ] || die "$(basename "$1") has sha256 $got, expected $2: remove it from the package client's cache and try again"
}

make_stubs() { # folder, written whole or not at all
	[ -d "$1" ] && return
	local building="$1.$$" name
	mkdir -p "$building"
	for name in $cuda_libraries; do ar rcs "$building/lib$name.a"; done
	mv -T "$building" "$1" 2>/dev/null || rm -rf "$building"
}

check_installed() { # folder
	[ -e "$1/lib/libtorch_cpu.so" ] || die "$1/lib/libtorch_cpu.so is missing: LIBTORCH must name the folder that holds lib/ and include/"
	local header="$1/include/torch/csrc/api/include/torch/version.h"
	[ -e "$header" ] || die "$header is missing: the headers of libtorch are needed to build"
	case $(headers_version "$1") in
	2.*) ;;
	*) die "$1 is libtorch $(headers_version "$1"); 2.1 or a newer 2.x is needed" ;;
	esac
}

fits_gotch() { # folder: is this what gotch was generated for?
	case $(headers_version "$1") in 2.1.*) return 0 ;; *) return 1 ;; esac
}

in_module() { (cd "$here/../.." && GOFLAGS='' go "$@"); }

# fit_gotch DIR ADDITIONS: a copy of gotch that compiles with this libtorch.
fit_gotch() {
	[ -d "$2/gotch" ] && return
	local source
	in_module mod download github.com/sugarme/gotch
	source=$(in_module list -m -f '{{.Dir}}' github.com/sugarme/gotch)
	say "fitting gotch to libtorch $(headers_version "$1"); the compiler looks at it two or three times"
	python3 "$here/gotch.py" "$source" "$1/include" "$2/gotch"
}

# modfile ADDITIONS: go.mod with the copy in gotch's place, under the digest of the one that it was made of.
modfile() {
	local digest target
	digest=$(cat "$here/../../go.mod" "$here/../../go.sum" | sha256sum | cut -c-16)
	target="$1/mod/$digest"
	if [ ! -e "$target/go.mod" ]; then
		mkdir -p "$target"
		cp "$here/../../go.sum" "$target/go.sum"
		{
			cat "$here/../../go.mod"
			echo "replace github.com/sugarme/gotch => $1/gotch"
		} >"$target/go.mod.$$"
		mv "$target/go.mod.$$" "$target/go.mod"
	fi
	echo "$target/go.mod"
}

missing_tools() {
	local tool
	for tool in mvn python3 ar g++ sha256sum flock; do
		command -v "$tool" >/dev/null || echo "$tool"
	done
	python3 -m pip --version >/dev/null 2>&1 || echo "pip"
}

doctor() {
	local missing
	missing=$(missing_tools | tr '\n' ' ')
	[ -z "$missing" ] && { say "all there"; return; }
	die "missing: ${missing}(Debian, Ubuntu: apt-get install -y maven python3-pip binutils g++ coreutils util-linux)"
}

# from_jar BUILDING: libraries from Maven, headers from the macOS wheel.
from_jar() {
	mkdir -p "$1/download" "$1/lib"
	say "fetching the libraries of libtorch $version ($variant) with mvn"
	mvn -q -B -ntp -Dstyle.color=never dependency:copy "-Dartifact=ai.djl.pytorch:$artifact:$version:jar:linux-x86_64" \
		"-DoutputDirectory=$1/download" >&2
	say "fetching its headers with pip"
	python3 -m pip -q --disable-pip-version-check --no-cache-dir download --no-deps --only-binary=:all: \
		--platform macosx_11_0_arm64 --python-version 3.11 --implementation cp --abi none \
		-d "$1/download" "torch==$version" >&2

	[ -z "$jar_sha256" ] || check_sha256 "$1/download/$artifact-$version-linux-x86_64.jar" "$jar_sha256"
	check_sha256 "$1/download/torch-$version-cp311-none-macosx_11_0_arm64.whl" "$wheel_sha256"

	python3 - "$1" "$variant" <<'PY'
import gzip, pathlib, shutil, sys, zipfile
building, variant = pathlib.Path(sys.argv[1]), sys.argv[2]
(jar,) = (building / "download").glob("*.jar")
prefix = f"pytorch/{variant}/linux-x86_64/"
with zipfile.ZipFile(jar) as archive:
    for name in archive.namelist():
        base = name.removeprefix(prefix)
        if not name.startswith(prefix) or not base or "/" in base:
            continue
        with archive.open(name) as source:  # the CUDA jars gzip their largest files once more
            stream = gzip.open(source) if base.endswith(".gz") else source
            with open(building / "lib" / base.removesuffix(".gz"), "wb") as target:
                shutil.copyfileobj(stream, target, 1 << 20)
(wheel,) = (building / "download").glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        parts = pathlib.PurePosixPath(name).parts
        if parts[:2] == ("torch", "include") and ".." not in parts and not name.endswith("/"):
            target = building.joinpath(*parts[1:])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
PY
	# The headers are those of macOS: say what the Linux build was made with.
	sed -i -e 's/\(AT_PARALLEL_OPENMP\) [01]/\1 1/' -e 's/\(AT_PARALLEL_NATIVE\) [01]/\1 0/' \
		-e 's/\(AT_MKLDNN_ENABLED()\) [01]/\1 1/' -e 's/\(AT_MKL_ENABLED()\) [01]/\1 1/' \
		-e 's/\(AT_BLAS_F2C()\) [01]/\1 0/' -e 's/\(AT_KLEIDIAI_ENABLED()\) [01]/\1 0/' "$1/include/ATen/Config.h"
	rm -rf "$1/download"
}

# from_linux_wheel BUILDING: the wheels as pip lays them out, where libtorch's own relative paths find
# CUDA's libraries.
from_linux_wheel() {
	local wheel
	say "fetching libtorch $version ($variant) and CUDA's libraries with pip"
	mkdir -p "$1/download"
	python3 -m pip -q --disable-pip-version-check --no-cache-dir download --no-deps --only-binary=:all: \
		--platform manylinux_2_28_x86_64 --python-version 3.11 --implementation cp --abi cp311 -d "$1/download" "torch==$version" >&2
	wheel=$(echo "$1"/download/torch-*.whl)
	check_sha256 "$wheel" "$wheel_sha256"
	python3 -m pip -q --disable-pip-version-check --no-cache-dir install --no-compile --only-binary=:all: \
		--platform manylinux_2_28_x86_64 --python-version 3.11 --implementation cp --abi cp311 --target "$1/site" "$wheel" >&2
	rm -rf "$1/download" "$1"/site/triton
	ln -s site/torch/lib "$1/lib"
	ln -s site/torch/include "$1/include"
}

fetch() {
	local target more
	target=$(directory)
	if [ -n "${LIBTORCH:-}" ]; then
		check_installed "$target"
	elif [ ! -d "$target" ]; then
		download "$target"
	fi
	more=$(additions "$target")
	mkdir -p "$more"
	make_stubs "$more/stubs"
	fits_gotch "$target" || (
		exec 8>"$more/.lock"
		flock 8
		fit_gotch "$target" "$more"
	)
}

download() { # folder
	[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] ||
		die "no libtorch to fetch for $(uname -s) on $(uname -m): install libtorch $version and set LIBTORCH"

	mkdir -p "$cache"
	exec 8>"$cache/.lock"
	flock 8 # a second clone, or a second make, waits here instead of fetching twice
	[ -d "$1" ] && return
	doctor

	building="$1.$$" # global: the trap runs after this function has returned
	trap 'rm -rf "$building"' EXIT
	mkdir -p "$building"
	if [ -n "$artifact" ]; then from_jar "$building"; else from_linux_wheel "$building"; fi
	check_installed "$building"
	mv -T "$building" "$1"
	exec 8>&-
	say "libtorch $version ($variant) is in $1"
}

env_lines() {
	local dir more lib more_flags='' abi=1
	dir=$(directory)
	[ -e "$dir/lib/libtorch_cpu.so" ] || die "no libtorch in $dir: run '$0 fetch' first"
	more=$(additions "$dir")
	grep -q __cxx11 "$dir/lib/libc10.so" || abi=0
	echo "export CGO_ENABLED=1"
	echo "export CGO_CXXFLAGS='-I$dir/include -I$dir/include/torch/csrc/api/include -D_GLIBCXX_USE_CXX11_ABI=$abi -w'"
	# Wheels find one another by paths relative to where a library was opened: that must be no link. What they need in turn is
	# the loader's business, not the linker's.
	lib=$(realpath "$dir/lib")
	[ -z "$artifact" ] && [ -z "${LIBTORCH:-}" ] && more_flags=" -Wl,--allow-shlib-undefined"
	echo "export CGO_LDFLAGS='-L$dir/lib -L$more/stubs -Wl,--as-needed -Wl,-rpath,$lib${more_flags:-}'"
	fits_gotch "$dir" && return
	[ -d "$more/gotch" ] || die "gotch is not fitted to $dir: run '$0 fetch' first"
	echo "export GOFLAGS='-modfile=$(modfile "$more")'"
}

case ${1:-} in
fetch) fetch ;;
env) env_lines ;;
dir) directory ;;
doctor) doctor ;;
*)
	sed -n '2,/^set/p' "$0" | sed -e '/^set/d' -e 's/^# \{0,1\}//'
	exit 1
	;;
esac
