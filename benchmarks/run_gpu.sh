#!/usr/bin/env bash
# All that is measured on a GPU, unattended, in about twenty minutes; a part that fails does not stop the others.
#     bash benchmarks/run_gpu.sh [FOLDER]      (default: benchmarks/results/<name of the GPU>)
# PYTHON=... chooses the interpreter. It needs torch, torchvision, timm, torchdiffeq, scikit-learn, pytest and matplotlib.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
name=$(nvidia-smi --query-gpu=name --format=csv,noheader --id=0 | tr -cs '[:alnum:]\n' '-') || exit 1
out=${1:-benchmarks/results/$name}
mkdir -p "$out"

measure() { # file, then the benchmark's arguments
    local file=$1
    shift
    echo "== $file: throughput.py $*"
    "$PYTHON" benchmarks/throughput.py "$@" --json "$out/$file.json" 2>&1 | tee "$out/$file.txt"
}

"$PYTHON" -m pytest -m gpu -rs 2>&1 | tee "$out/tests.txt"
fast="--precision bf16 --compile"
measure train-xl-32 train $fast --compare --data-path random --batch-size 32 --combostoc-type UNSYNC_ALL UNSYNC_VEC
measure train-xl-128 train $fast --data-path random --batch-size 128 --rounds 5
measure sample-xl-32 sample $fast --compare --batch-size 32 --num-sampling-steps 50 --rounds 3
measure sample-xl-32-cfg sample $fast --compare --batch-size 32 --num-sampling-steps 50 --rounds 3 --cfg-scale 1.5
measure batches-xl batches $fast --rounds 3 --plot "$out/batches-xl.png"
measure sizes-32 sizes $fast --batch-size 32 --rounds 3
