#!/bin/bash
# Everything that only a GPU can show, in order of importance, within $LIMIT seconds (default 470).
#
#   bash tests/gpu/fetch_wheels.sh     where there is a network: what the card's machine lacks, into build/wheels
#   bash tests/gpu/check.sh            on the card's machine, with torch for CUDA and build/wheels carried there
#   python -m tests.gpu.check table=docs/performance.md results=FOLDER/results.json     takes the figures over
#
# Numbers go to $OUT/results.json and results.md as they come, one line each to the screen; profiles.txt has the 25
# dearest kernels of a step of each training. DEVICE=cpu runs all of it small. The exit status is 1 where something isn't
# as it must be.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
export OUT=${OUT:-$PWD/build/gpu-check} LIMIT=${LIMIT:-470} DEVICE=${DEVICE:-cuda}
export PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
# Each part is a fork of one process that has imported everything: it must not have touched the GPU before.
export PYTORCH_NVML_BASED_CUDA_CHECK=1
[ "$DEVICE" = cuda ] || export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # threads that wait for each other, beside other tests
python=${PYTHON:-python3}
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
export TORCHINDUCTOR_CACHE_DIR=$work/inductor XDG_CACHE_HOME=$work/cache TMPDIR=$work
mkdir -p "$OUT"
if [ -d build/wheels ] && ! "$python" -c 'import mlflow, datasets, omegaconf' 2> /dev/null; then
    # Into a folder: torch may be in an environment itself, which an environment made from it wouldn't see
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" build/wheels/*.whl || exit
    export PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
"$python" -m tests.gpu.check 2>&1 | tee "$OUT/log.txt"
