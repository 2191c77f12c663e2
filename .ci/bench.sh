#!/usr/bin/env bash
# The benchmarks that README quotes. Each section prints what it measured beside what it is held against.
#
#   .ci/bench.sh [log] [work] [relay] [fold] [features] [loading] [extractor] [job]      none: all of them
#
# log, extractor and job compare two programs in one run; the others are held against a limit, so they
# want a quiet machine, and also say how much CPU time was used. PostgreSQL syncs to the disk everywhere.
set -euo pipefail
cd "$(dirname "$0")/.."

benchmark() { # package, name: runs a Go benchmark once, and keeps its figures
	figures=$(go test -run '^$' -bench "$2" -benchtime 1x -timeout 30m "$1" | tee >(cat >&2)) || return
}

figure() { # line, unit
	awk -v line="$1" -v unit="$2" '$1 ~ line { for (i = 3; i < NF; i += 2) if ($(i + 1) == unit) print $i }' <<<"$figures"
}

at_most() { # what, value, limit, unit
	awk -v what="$1" -v v="$2" -v limit="$3" -v unit="$4" 'BEGIN { printf "%-44s %10.2f %-9s %5.2f of the limit of %g   %s\n", what, v, unit, v / limit, limit, (v <= limit ? "ok" : "MISSED"); exit !(v <= limit) }'
}

at_least() { # what, value, goal, unit
	awk -v what="$1" -v v="$2" -v goal="$3" -v unit="$4" 'BEGIN { printf "%-44s %10.0f %-9s %5.2f of the goal of %g   %s\n", what, v, unit, v / goal, goal, (v >= goal ? "ok" : "MISSED"); exit !(v >= goal) }'
}

log() { go run ./adapters/postgres/bench; }

work() {
	benchmark ./adapters/postgres '^BenchmarkClaim$' || return
	at_most "a claim among 250,000 open rows, p95" "$(figure BenchmarkClaim 1-claimers-p95-ms)" 5 ms
}

relay() {
	benchmark ./adapters/relay '^BenchmarkRelay$' || return
	at_least "log to broker" "$(figure BenchmarkRelay events/s)" 20000 events/s
}

fold() {
	benchmark ./projections/features '^BenchmarkFold$' || return
	local ok=0
	at_most "20 M postings to tables" "$(awk '/Fold\/tables/ { print $3 / 1e9 }' <<<"$figures")" 20 s || ok=1
	at_most "peak memory of the process" "$(figure Fold/tables peak-MiB)" 1024 MiB || ok=1
	printf '%-44s %10.2f\n' "to tables ÷ the engine alone" "$(awk '/Fold\/engine/ { e = $3 } /Fold\/tables/ { print $3 / e }' <<<"$figures")"
	return $ok
}

features() {
	benchmark ./projections/features '^BenchmarkQueries$' || return
	at_most "slowest of all sorts × filters, p95" "$(figure BenchmarkQueries worst-p95-ms)" 50 ms
}

with_libtorch() { # command…
	local environment tokens
	environment=$(adapters/torch/libtorch.sh env)
	tokens=$(adapters/tokenizer/build.sh env)
	eval "$environment"
	export CGO_LDFLAGS="$CGO_LDFLAGS ${tokens#CGO_LDFLAGS=}"
	"$@"
}

# A warm model of 512 MB in two shards of float32: bound, and through a first forward pass to its middle layer.
loading() (
	with_libtorch benchmark ./adapters/torch '^BenchmarkLoading$' || return
	ok=0
	at_most "load and first forward ÷ cp to /dev/null" "$(figure BenchmarkLoading ready/cp)" 2 "of cp" || ok=1
	at_most "memory that is no file's" "$(figure BenchmarkLoading anonymous-MiB)" 16 MiB || ok=1
	return $ok
)

extractor() (with_libtorch adapters/torch/bench/bench.sh)

# A whole extraction on a warm server: the self-test, its repetition, and all of it until the tables are there.
job() (with_libtorch adapters/torch/bench/bench.sh job)

sections=("$@")
[ $# -gt 0 ] || sections=(log work relay fold features loading extractor job)
missed=()
for section in "${sections[@]}"; do
	case $section in
	log | work | relay | fold | features | loading | extractor | job) ;;
	*)
		echo "bench.sh: no section $section; there are log, work, relay, fold, features, loading, extractor, job" >&2
		exit 2
		;;
	esac
	echo "== $section"
	"$section" || missed+=("$section")
done
[ ${#missed[@]} -eq 0 ] || { echo "missed or failed: ${missed[*]}" >&2; exit 1; }
