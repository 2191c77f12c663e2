#!/usr/bin/env bash
# The C++ libraries and headers of libtorch 2.1.1, which gotch v0.9.1 was generated for.
#
#   adapters/torch/libtorch.sh fetch          make sure that libtorch is there (seconds when it is)
#   eval "$(adapters/torch/libtorch.sh env)"  set what `go build` needs to compile cgo code against it
#   adapters/torch/libtorch.sh dir            print the folder
#   adapters/torch/libtorch.sh doctor         say what is missing to fetch and build it
#
# For a Makefile:
#   TORCH := adapters/torch/libtorch.sh
#   libtorch: ; @$(TORCH) fetch
#   bin/extractor: libtorch ; eval "$$($(TORCH) env)" && go build -o $@ ./cmd/extractor
#
# LIBTORCH=DIR   use an installed libtorch (DIR/lib, DIR/include); nothing is fetched
# VARIANT=cpu    (default) Linux x86_64, MKL and oneDNN inside; 178 MB to download
# VARIANT=cu121  CUDA 12.1; 2.4 GB to download; an NVIDIA driver is needed to run on cuda:N
#
# The libraries come from Maven (ai.djl.pytorch: the jars hold nothing but the .so files), the
# headers from PyPI's macOS wheel of the same version: no client has to bring Python at run time,
# and both arrive through ordinary package clients, honouring their mirrors. They are kept in the
# user's cache, outside the clone, so that a second clone does not fetch them again. The linker
# writes that folder into the binary (rpath): the binary runs from anywhere, with no environment.
set -euo pipefail

version=2.1.1
variant=${VARIANT:-cpu}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/featuremill/libtorch
wheel_sha256=e312f7e82e49565f7667b0bbf9559ab0c597063d93044740781c02acd5a87978

case $variant in
cpu)
	artifact=pytorch-native-cpu
	jar_sha256=44b36b1da64ed7be0a9f0a2dea568aec8c5724666b3941a38f07c83f361d7a01
	;;
cu121)
	artifact=pytorch-native-cu121
	jar_sha256=${LIBTORCH_CU121_SHA256:-} # not known to us; checked against Maven's own sha1 only when unset
	;;
*)
	echo "libtorch.sh: VARIANT=$variant is not known; it is cpu or cu121" >&2
	exit 1
	;;
esac

# gotch's cgo lines name CUDA's libraries whatever the variant; without CUDA they are satisfied by
# empty archives.
cuda_libraries="cuda cudart cublas cudnn caffe2_nvrtc nvrtc-builtins nvrtc nvToolsExt c10_cuda torch_cuda"

say() { echo "libtorch.sh: $*" >&2; }

die() {
	say "$*"
	exit 1
}

directory() {
	if [ -n "${LIBTORCH:-}" ]; then
		(cd "$LIBTORCH" 2>/dev/null && pwd) || die "LIBTORCH=$LIBTORCH is not a folder"
	else
		echo "$cache/$version-$variant"
	fi
}

stub_directory() {
	if [ -n "${LIBTORCH:-}" ]; then
		echo "$cache/stubs"
	else
		echo "$cache/$version-$variant/stubs"
	fi
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
	grep -q '^#define TORCH_VERSION_MAJOR 2$' "$header" && grep -q '^#define TORCH_VERSION_MINOR 1$' "$header" ||
		die "$1 is libtorch $(sed -n 's/^#define TORCH_VERSION "\(.*\)"/\1/p' "$header"); gotch v0.9.1 needs 2.1"
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

fetch() {
	local target
	target=$(directory)
	if [ -n "${LIBTORCH:-}" ]; then
		check_installed "$target"
		make_stubs "$(stub_directory)"
		return
	fi
	[ -d "$target" ] && return
	[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] ||
		die "no libtorch to fetch for $(uname -s) on $(uname -m): install libtorch $version and set LIBTORCH"

	mkdir -p "$cache"
	exec 8>"$cache/.lock"
	flock 8 # a second clone, or a second make, waits here instead of fetching twice
	[ -d "$target" ] && return
	doctor

	building="$target.$$" # global: the trap runs after this function has returned
	trap 'rm -rf "$building"' EXIT
	mkdir -p "$building/download" "$building/lib"

	say "fetching the libraries of libtorch $version ($variant) with mvn"
	mvn -q -B -ntp -Dstyle.color=never dependency:copy "-Dartifact=ai.djl.pytorch:$artifact:$version:jar:linux-x86_64" \
		"-DoutputDirectory=$building/download" >&2
	say "fetching its headers with pip"
	python3 -m pip -q --disable-pip-version-check --no-cache-dir download --no-deps --only-binary=:all: \
		--platform macosx_11_0_arm64 --python-version 3.11 --implementation cp --abi none \
		-d "$building/download" "torch==$version" >&2

	[ -z "$jar_sha256" ] || check_sha256 "$building/download/$artifact-$version-linux-x86_64.jar" "$jar_sha256"
	check_sha256 "$building/download/torch-$version-cp311-none-macosx_11_0_arm64.whl" "$wheel_sha256"

	python3 - "$building" "$variant" <<'PY'
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
		-e 's/\(AT_BLAS_F2C()\) [01]/\1 0/' "$building/include/ATen/Config.h"
	rm -rf "$building/download"
	check_installed "$building"
	make_stubs "$building/stubs"
	mv -T "$building" "$target"
	say "libtorch $version ($variant) is in $target"
}

env_lines() {
	local dir abi=1
	dir=$(directory)
	[ -e "$dir/lib/libtorch_cpu.so" ] || die "no libtorch in $dir: run '$0 fetch' first"
	grep -q __cxx11 "$dir/lib/libc10.so" || abi=0
	echo "export CGO_ENABLED=1"
	echo "export CGO_CXXFLAGS='-I$dir/include -I$dir/include/torch/csrc/api/include -D_GLIBCXX_USE_CXX11_ABI=$abi -w'"
	echo "export CGO_LDFLAGS='-L$dir/lib -L$(stub_directory) -Wl,--as-needed -Wl,-rpath,$dir/lib'"
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
