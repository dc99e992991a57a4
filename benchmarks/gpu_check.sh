#!/usr/bin/env bash
# Everything that only a machine with a GPU can show, in one call of at most 9.5 minutes, without
# network: builds (or takes the libraries that are there), tests, benchmarks, profiles, and
# compute-sanitizer's four tools.
#
#   benchmarks/gpu_check.sh        logs, records and summary.txt in runs/gpu_check
#   benchmarks/gpu_check.sh tests sanitizers     these parts alone; all are
#                                                tests benchmarks profile sanitizers autotune others
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
PARTS=${*:-tests benchmarks profile sanitizers autotune others}
for part in $PARTS; do
  case $part in
    tests | benchmarks | profile | sanitizers | autotune | others) ;;
    *)
      echo "expected tests, benchmarks, profile, sanitizers, autotune or others, got $part" >&2
      exit 2
      ;;
  esac
done
export PYTHONUNBUFFERED=1 # a step that is cut off has printed what it knew
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
  # As by ^C, upon which pytest still says what has failed.
  timeout --signal=INT --kill-after=10 "$limit" "$@" >"$OUT/$name.log" 2>&1 || status=$?
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

wanted() {
  [[ " $PARTS " == *" $1 "* ]]
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

# Whether the libraries are there, and have machine code for this GPU: else the driver compiles
# every kernel anew.
fits() {
  [[ -f pairloss/_C.so && -f pairloss/_C_cuda.so ]] && "$PYTHON" -c '
import json, sys, torch
major, minor = torch.cuda.get_device_capability()
archs = json.load(open("pairloss/_build_info.json"))["cuda_archs"]
built = [tuple(map(int, arch.removesuffix("+PTX").split("."))) for arch in archs]
sys.exit(not any(a == major and b <= minor for a, b in built))'
}

loads() {
  "$PYTHON" -c 'from pairloss import _library as it; it.require("cpu"); it.require("cuda")'
}

# For this GPU alone, in place, as `make build` does; not if libraries that fit were brought along.
build() {
  if fits && loads; then
    echo 'pairloss/_C.so and pairloss/_C_cuda.so are there and fit: not built again'
    # It is for one version of torch, which may be another here.
    "$PYTHON" -c 'import sys; from pairloss import _library as it
sys.exit(not it.status().autograd_loaded)' ||
      ONLY_AUTOGRAD=1 "$PYTHON" setup.py build_ext --inplace || return
  else
    TORCH_CUDA_ARCH_LIST=native FORCE_CUDA=1 "$PYTHON" setup.py build_ext --inplace || return
  fi
  "$PYTHON" -m pairloss.env_report && loads
}

# compute-sanitizer's tool on a short run. Every tensor is an allocation of its own, so that no
# access beyond one lands in another.
sanitize() {
  local tool=$1 options=() sizes=(--small)
  case $tool in
    # What torch asks of the driver and is refused is no error of ours, whose launches all raise.
    memcheck) options=(--report-api-errors no) sizes=() ;;
    # Copies read what kernels have written that are not looked at.
    initcheck) options=(--check-api-memory-access no) ;;
  esac
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$SANITIZER" --tool "$tool" --error-exitcode 1 "${options[@]}" \
    --kernel-name kns=pairloss "$PYTHON" -m benchmarks.gpu_sanitize_case "${sizes[@]}"
}

# bench NAME ARGUMENTS...: so that a record is there even if the larger sizes run out of time.
bench() {
  local record=$OUT/benchmarks-$1.json
  shift
  "$PYTHON" -m benchmarks --device cuda --seconds 1 --patience 1 --json "$record" "$@"
}

# After a kernel has failed, all that follows in its process fails too: so some failures are enough,
# and with pytest-xdist there are several processes.
pytest() {
  local apart=()
  if "$PYTHON" -c 'import xdist' 2>/dev/null; then apart=(-n 6 --dist loadfile); fi
  "$PYTHON" -m pytest -q --continue-on-collection-errors -p no:cacheprovider --durations=10 \
    --tb=short --maxfail=25 "${apart[@]}" "$@"
}

SANITIZER=$(find_tool compute-sanitizer)
export OUT PYTHON SANITIZER
export -f clocks machine build fits loads sanitize bench pytest find_tool

# The limits add up to more than there is: what comes last gets what is left.
step machine 20 bash -c machine
step build 150 bash -c build
if wanted tests; then
  step tests-device 60 bash -c 'pytest tests/test_pair_kl_hinge_cuda.py -m "not slow"'
  step tests-cuda 180 bash -c 'pytest tests -m "cuda and not slow and not two_torch" \
    --deselect tests/test_pair_kl_hinge_cuda.py'
  step tests-cuda-slow 60 bash -c 'pytest tests -m "cuda and slow and not two_torch"'
fi
if wanted benchmarks; then
  few=(--without 'compile max-autotune')
  step benchmarks-small 80 bash -c 'bench small "$@" --sizes 16x10 128x34 1024x34 128x4096' - "${few[@]}"
  step benchmarks-large 100 bash -c \
    'bench large "$@" --sizes 16384x34 16384x128 4096x10 8192x34 1024x4096 8192x4096' - "${few[@]}"
fi
if wanted profile; then step profile 30 "$PYTHON" -m benchmarks.gpu_profile; fi
if wanted sanitizers; then
  if [[ -n $SANITIZER ]]; then
    for tool in memcheck racecheck initcheck synccheck; do
      step "sanitizer-$tool" 60 bash -c "sanitize $tool"
    done
  else
    record 'skipped: not found' 0 compute-sanitizer
  fi
fi
if wanted autotune; then # compiles for a minute and more at each size
  step benchmarks-autotune 180 bash -c 'bench autotune --no-memory --sizes 1024x34 16384x34 8192x4096 \
    --methods pairloss eager compile "compile max-autotune"'
fi
step clocks-after 10 bash -c clocks
if wanted others; then
  step tests-others 120 bash -c 'pytest tests -m "not cuda and not slow and not two_torch"'
fi

echo "$failures of $(wc -l <"$OUT/summary.txt") steps did not pass; logs in $OUT"
((failures == 0))
