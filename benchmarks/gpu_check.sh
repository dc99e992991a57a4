#!/usr/bin/env bash
# Everything that only a machine with a GPU can show, in one call of at most 9.5 minutes, without
# network: builds (or takes the libraries that are there), tests, benchmarks, profiles, and
# compute-sanitizer's four tools.
#
#   benchmarks/gpu_check.sh        logs, records and summary.txt in runs/gpu_check
#   OUT=folder PYTHON=python3.12 TIME=570 benchmarks/gpu_check.sh
#
# A step that fails does not stop the others; the exit status is 0 if all passed. Needs Python with
# torch (CUDA) and pytest; for the build setuptools and nvcc; compute-sanitizer comes with the CUDA
# toolkit.
set -u -o pipefail
cd "$(dirname "$0")/.."

OUT=${OUT:-runs/gpu_check}
PYTHON=${PYTHON:-python3}
DEADLINE=$((SECONDS + ${TIME:-570} - 15))
mkdir -p "$OUT"
: >"$OUT/summary.txt"
failures=0

record() {  # result, seconds, step
  printf '%-28s %4ss  %s\n' "$1" "$2" "$3" | tee -a "$OUT/summary.txt"
}

# step NAME LIMIT COMMAND...: at most LIMIT seconds and never beyond the deadline; the output goes
# to $OUT/NAME.log.
step() {
  local name=$1 limit=$2 started=$SECONDS status=0
  shift 2
  if ((DEADLINE - SECONDS < limit)); then limit=$((DEADLINE - SECONDS)); fi
  if ((limit < 5)); then
    record 'no time left' 0 "$name"
    failures=$((failures + 1))
    return
  fi
  timeout --kill-after=5 "$limit" "$@" >"$OUT/$name.log" 2>&1 || status=$?
  case $status in
    0) record 'passed' $((SECONDS - started)) "$name" ;;
    124 | 137) record "ran out of its $limit s" $((SECONDS - started)) "$name" ;;
    *) record "FAILED with status $status" $((SECONDS - started)) "$name" ;;
  esac
  if ((status != 0)); then
    failures=$((failures + 1))
    tail -n 15 "$OUT/$name.log" | sed 's/^/    /'
  fi
}

# Where toolkits are that are not on the PATH; the first that has what is asked for.
find_tool() {
  local place
  for place in "$(command -v "$1")" "${CUDA_HOME:-}/bin/$1" "${CUDA_HOME:-}/compute-sanitizer/$1" \
    /usr/local/cuda*/bin/"$1" /usr/local/cuda*/compute-sanitizer/"$1"; do
    if [[ -x $place ]]; then
      echo "$place"
      return
    fi
  done
}

clocks() {
  local fields=name,driver_version,power.limit,temperature.gpu,ecc.mode.current
  fields+=,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,clocks_event_reasons.active
  nvidia-smi --format=csv --query-gpu="$fields"
}

machine() {
  date --iso-8601=seconds
  git log -1 --format='%H %s' 2>/dev/null
  nvidia-smi
  clocks
  lscpu | grep -E 'Model name|^CPU\(s\)'
  local nvcc
  nvcc=$(find_tool nvcc)
  if [[ -n $nvcc ]]; then "$nvcc" --version; fi
  "$PYTHON" -c 'import sys, torch as t; print(sys.version, t.__version__, t.version.cuda)
print(t.cuda.get_device_properties(0))'
}

# For this GPU alone, in place, as `make build` does; not if the libraries were brought along.
build() {
  if [[ -f pairloss/_C.so && -f pairloss/_C_cuda.so ]]; then
    echo 'pairloss/_C.so and pairloss/_C_cuda.so are there: not built again'
    # It is for one version of torch, which may be another here.
    ONLY_AUTOGRAD=1 "$PYTHON" setup.py build_ext --inplace || return
  else
    TORCH_CUDA_ARCH_LIST=native FORCE_CUDA=1 "$PYTHON" setup.py build_ext --inplace || return
  fi
  "$PYTHON" -m pairloss.env_report &&
    "$PYTHON" -c 'from pairloss import _library as it; it.require("cpu"); it.require("cuda")'
}

# compute-sanitizer's tool on a short run. Every tensor is an allocation of its own, so that no
# access beyond one lands in another.
sanitize() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$SANITIZER" --tool "$1" --error-exitcode 1 \
    --kernel-regex kns=pairloss "$PYTHON" -m benchmarks.gpu_sanitize_case
}

# bench NAME SIZES...: so that a record is there even if the larger sizes run out of time.
bench() {
  local record=$OUT/benchmarks-$1.json
  shift
  "$PYTHON" -m benchmarks --device cuda --seconds 1 --patience 1 --json "$record" --sizes "$@"
}

pytest() {
  "$PYTHON" -m pytest tests -q --continue-on-collection-errors -p no:cacheprovider \
    --durations=10 "$@"
}

SANITIZER=$(find_tool compute-sanitizer)
export OUT PYTHON SANITIZER
export -f clocks machine build sanitize bench pytest find_tool

# The limits add up to more than there is. What comes last gets what is left.
step machine 20 bash -c machine
step build 150 bash -c build
step tests-cuda 150 bash -c 'pytest -m "cuda and not two_torch"'
step benchmarks-small 100 bash -c 'bench small 16x10 128x34 1024x34 128x4096'
step benchmarks-large 140 bash -c 'bench large 1024x4096 4096x10 8192x34 16384x34 16384x128'
step profile 30 "$PYTHON" -m benchmarks.gpu_profile
if [[ -n $SANITIZER ]]; then
  for tool in memcheck racecheck initcheck synccheck; do
    step "sanitizer-$tool" 60 bash -c "sanitize $tool"
  done
else
  record 'skipped: not found' 0 compute-sanitizer
fi
step clocks-after 10 bash -c clocks
step tests-other 120 bash -c 'pytest -m "not cuda and not slow and not two_torch"'

echo "$failures of $(wc -l <"$OUT/summary.txt") steps did not pass; logs in $OUT"
((failures == 0))
