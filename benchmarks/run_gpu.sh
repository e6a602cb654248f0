#!/usr/bin/env bash
# All that is measured on one GPU, unattended. A part that fails or hangs does not stop the others.
#     bash benchmarks/run_gpu.sh [PART ...]    default: all of tests sample sample-cfg train-128 train batches bookkeeping sizes
# Results go to $OUT, by default benchmarks/results/<name of the GPU>. PYTHON chooses the interpreter; it needs torch,
# torchvision, timm, torchdiffeq, scikit-learn, pytest and matplotlib. A part takes some minutes, eight at most (LIMIT, s).
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-480}
name=$(nvidia-smi --query-gpu=name --format=csv,noheader --id=0 | tr -cs '[:alnum:]\n' '-') || exit 1
out=${OUT:-benchmarks/results/$name}
mkdir -p "$out"
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
failed=0

measure() { # part, then the benchmark's arguments
    local part=$1
    shift
    timeout "$LIMIT" "$PYTHON" benchmarks/throughput.py "$@" --json "$out/$part.json" 2>&1 | tee "$out/$part.txt"
}

fast="--precision bf16 --compile"
for part in "${@:-tests sample sample-cfg train-128 train batches bookkeeping sizes}"; do
    for part in $part; do
        echo "== $part"
        case $part in
        tests) timeout "$LIMIT" "$PYTHON" -m pytest -m gpu -rs 2>&1 | tee "$out/tests.txt" ;;
        train) measure train train $fast --compare --combostoc-type UNSYNC_ALL UNSYNC_VEC --rounds 5 ;;
        train-128) measure train-128 train $fast --data-path random --batch-size 128 --rounds 3 ;;
        sample) measure sample sample $fast --compare --num-sampling-steps 50 --rounds 3 ;;
        sample-cfg) measure sample-cfg sample $fast --compare --num-sampling-steps 50 --rounds 3 --cfg-scale 1.5 ;;
        batches) measure batches batches $fast --rounds 3 --plot "$out/batches.png" ;;
        bookkeeping)
            timeout "$LIMIT" "$PYTHON" benchmarks/bookkeeping.py $fast --json "$out/$part.json" 2>&1 | tee "$out/$part.txt"
            ;;
        sizes) measure sizes sizes $fast --batch-size 32 --rounds 2 ;;
        *) echo "unknown part $part" >&2 && false ;;
        esac || { echo "== $part failed" && failed=1; }
    done
done
exit $failed
