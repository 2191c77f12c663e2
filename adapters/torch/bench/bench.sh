#!/usr/bin/env bash
# Times the extractor's inner loop against a one-pass PyTorch script (bench.py), in turns on the same
# tokens, and prints tokens/s, ratios, the share of time outside libtorch, and peak memory.
#
#   adapters/torch/bench/bench.sh [topk|jumprelu|job …]      PERCENT=25 for a quarter of the tokens
#
# job is a whole extraction on a server of its own (job.py), with bin/featuremill and bin/extractor.
#
# Needs: the flags of libtorch.sh env in the environment (make bench sets them), gcc, SmolLM2's GGUF
# (FEATUREMILL_TEST_SMOLLM2, else the cache), and Python with torch 2.7.1, transformers 4.56.2, gguf and
# safetensors (PYTHON, default python3).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/featuremill
model=${FEATUREMILL_TEST_SMOLLM2:-$(ls "$cache"/models/*/SmolLM2-135M-Instruct*.gguf 2>/dev/null | head -1)}
[ -n "$model" ] || { echo "bench.sh: no SmolLM2 GGUF: run make demo once, or set FEATUREMILL_TEST_SMOLLM2" >&2; exit 1; }
python=${PYTHON:-python3}
"$python" -c 'import torch, transformers, gguf, safetensors' 2>/dev/null ||
	{ echo "bench.sh: $python lacks torch, transformers, gguf or safetensors: pip install torch==2.7.1 transformers==4.56.2 gguf safetensors, or set PYTHON" >&2; exit 1; }

work=$cache/bench
mkdir -p "$work"
echo 'int mkl_serv_intel_cpu_true(void) { return 1; }' | gcc -shared -fPIC -x c - -o "$work/switch.so"
(cd "$here" && go build -o "$work/bench" .)
for architecture in "${@:-topk}"; do
	if [ "$architecture" = job ]; then
		PYTHONDONTWRITEBYTECODE=1 "$python" "$here/job.py" --program "$here/../../../bin/featuremill" --model "$model" --folder "$work" --switch "$work/switch.so" \
			--dataset "$cache/datasets/sotu/sotu.jsonl" --sae "$here/../../../cmd/featuremill/demo/sae"
		continue
	fi
	PYTHONDONTWRITEBYTECODE=1 "$python" "$here/bench.py" --model "$model" --folder "$work" --architecture "$architecture" \
		--bench "$work/bench" --switch "$work/switch.so" --percent "${PERCENT:-100}" ${THREADS:+--threads "$THREADS"} ${BATCH:+--batch "$BATCH"}
done
