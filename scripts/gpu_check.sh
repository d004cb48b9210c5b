#!/usr/bin/env bash
# Checks and measures switchyard on a GPU, in one command, and says in one table what came out.
#
#   scripts/gpu_check.sh                         builds with nvcc for the card that is there, runs every stage
#   scripts/gpu_check.sh --bundle DIR            makes a bundle of binaries, on a machine where switchyard can be built
#   scripts/gpu_check.sh --from DIR              uses that bundle: the machine needs a driver, cuBLAS and Python alone
#     --only STAGE,STAGE   of: card build tests cli memcheck racecheck synccheck initcheck kernels steps ranks scaling
#                          transformers
#     --out DIR            where results go: summary.txt, summary.json, log.txt and the JSON of the benchmarks (gpu_check)
#     --arch LIST          CMAKE_CUDA_ARCHITECTURES; default: the card's, in a bundle all that are usual
#     --limit SECONDS      no stage may take longer
#     --smoke              tiny sizes: to see that the stages run; no measurement
#
# Every stage has a time limit, and one that fails does not keep the next from running. Exit code 1 if any failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stages=(card build tests cli memcheck racecheck synccheck initcheck kernels steps ranks scaling transformers)
declare -A limits=([card]=30 [build]=1800 [tests]=300 [cli]=400 [memcheck]=300 [racecheck]=300 [synccheck]=300
  [initcheck]=120 [kernels]=500 [steps]=580 [ranks]=400 [scaling]=580 [transformers]=580)
only='' out=gpu_check from='' bundle='' arch='' limit='' smoke=''
while (($#)); do
  case $1 in
    --only | --out | --from | --bundle | --arch | --limit)
      (($# > 1)) || { echo "gpu_check: $1 needs a value" >&2; exit 2; }
      declare "${1#--}=$2"
      shift 2
      ;;
    --smoke) smoke=--smoke; shift ;;
    -h | --help) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "gpu_check: unknown option '$1'; --help lists them" >&2; exit 2 ;;
  esac
done
for name in ${only//,/ }; do
  [[ " ${stages[*]} " == *" $name "* ]] || { echo "gpu_check: --only $name: there are ${stages[*]}" >&2; exit 2; }
done
[[ -z $limit || $limit =~ ^[1-9][0-9]*$ ]] || { echo "gpu_check: --limit $limit: seconds are wanted" >&2; exit 2; }

# --- the bundle ---------------------------------------------------------------------------------------------------

# Of the C and C++ libraries every machine has its own, of cuBLAS one that fits its driver, of NCCL one that fits its network.
left_out='^(ld-linux.*|libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|libcublas|libcublasLt|libnccl)\.so'

newest_symbol() { # newest_symbol PREFIX FILE...: the newest version of a library's symbols that the files ask for
  local prefix=$1
  shift
  objdump -T "$@" | { grep -oE "\b${prefix}_[0-9.]+" || true; } | sort -uV | tail -n 1
}

make_bundle() {
  local build=build-bundle directory nccl
  cmake --preset cuda -B $build -DSWITCHYARD_NATIVE=OFF -DSWITCHYARD_CUDNN=OFF -DSWITCHYARD_MPI=OFF ${arch:+-DCMAKE_CUDA_ARCHITECTURES="$arch"}
  cmake --build $build --target switchyard cuda_test bench_cuda bench_exchange
  directory=$(mktemp -d)
  trap 'rm -rf "$directory"' RETURN
  mkdir "$directory/bin" "$directory/lib"
  cp $build/switchyard $build/bench_cuda $build/bench_exchange $build/tests/cuda_test "$directory/bin"
  ldd "$directory"/bin/* | awk '$2 == "=>" && $3 ~ /^\// {print $1, $3}' | sort -u | while read -r name path; do
    [[ $name =~ $left_out ]] || cp -L "$path" "$directory/lib/$name"
  done
  strip --strip-unneeded "$directory"/bin/* "$directory"/lib/*
  # shellcheck disable=SC2046,SC2086  # words, one line
  {
    echo "commit $(git rev-parse --short HEAD 2> /dev/null || echo unknown), built $(date -u +%F) on $(uname -m)"
    echo "architectures" $(grep -oh '\bsm_[0-9a-z]*' $build/build.ninja | sort -u)
    echo "toolkit" $(sed -n 's/^set(CMAKE_CUDA_COMPILER_VERSION "\(.*\)")/\1/p' $build/CMakeFiles/*/CMakeCUDACompiler.cmake)
    echo "needs" $(newest_symbol GLIBC "$directory"/*/*) $(newest_symbol GLIBCXX "$directory"/*/*) \
      $(objdump -p "$directory"/bin/switchyard | sed -n 's/^ *NEEDED *\(libcublasLt.*\)/\1/p')
    nccl=$(sed -n 's/^SWITCHYARD_NCCL_HEADER:INTERNAL=//p' $build/CMakeCache.txt)
    if [[ -n $nccl ]]; then
      echo "several ranks by NCCL, header $nccl; libnccl.so.2 is left to the machine"
    else
      echo "several ranks: no, NCCL was not found"
    fi
  } > "$directory/bundle.txt"
  mkdir -p "$bundle"
  # In one stream, so that the kernels, which are in each of the binaries, are stored once.
  tar -C "$directory" -cf - bin lib bundle.txt | xz -9 > "$bundle/switchyard-gpu.tar.xz"
  cat "$directory/bundle.txt"
  du -h "$bundle/switchyard-gpu.tar.xz"
}

if [[ -n $bundle ]]; then
  make_bundle
  exit
fi

# --- what the stages use ------------------------------------------------------------------------------------------

mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ROOT=$PWD OUT=$(cd "$out" && pwd) WORK=$work FROM=$from ARCH=$arch SMOKE=$smoke
BUILD=$ROOT/build-gpu
if [[ -n $from ]]; then
  UNPACKED=$work/bundle
  SWITCHYARD=$UNPACKED/bin/switchyard BENCH_CUDA=$UNPACKED/bin/bench_cuda CUDA_TEST=$UNPACKED/bin/cuda_test
  BENCH_EXCHANGE=$UNPACKED/bin/bench_exchange
else
  UNPACKED=''
  SWITCHYARD=$BUILD/switchyard BENCH_CUDA=$BUILD/bench_cuda CUDA_TEST=$BUILD/tests/cuda_test
  BENCH_EXCHANGE=$BUILD/bench_exchange
fi
TOOLKIT=$(dirname "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")
export ROOT OUT WORK FROM ARCH SMOKE BUILD UNPACKED SWITCHYARD BENCH_CUDA BENCH_EXCHANGE CUDA_TEST TOOLKIT

remark() { echo "$*" > "$WORK/remark"; } # what the summary says beside a stage's result
skip() { remark "$*"; echo "$*"; exit 3; }
fail() { remark "$*"; echo "$*"; exit 1; }

# A directory that holds the library of that name: the toolkit's, or that of a Python package. Printed; nothing where none is
# found.
directory_of() { # directory_of NAME, cublasLt or nccl
  local directory packages
  packages=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))' 2> /dev/null || true)
  for directory in "$TOOLKIT"/../lib64 "$TOOLKIT"/../targets/x86_64-linux/lib /usr/local/cuda/lib64 \
    "$packages"/nvidia/cu13/lib "$packages"/nvidia/cublas/lib "$packages"/nvidia/nccl/lib; do
    if compgen -G "$directory/lib$1.so.*" > /dev/null; then
      (cd "$directory" && pwd)
      return
    fi
  done
}

# Not exported to all: PyTorch brings libraries of its own.
with_libraries() {
  local path='' directory
  for directory in ${UNPACKED:+"$UNPACKED/lib"} "$(directory_of cublasLt)" "$(directory_of nccl)" "${LD_LIBRARY_PATH-}"; do
    path+=${directory:+${path:+:}$directory}
  done
  LD_LIBRARY_PATH=$path "$@"
}

# --- the stages ---------------------------------------------------------------------------------------------------

stage_card() {
  command -v nvidia-smi > /dev/null || fail "nvidia-smi is not there: no driver of NVIDIA's"
  local card
  card=$(nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader) ||
    fail "nvidia-smi: ${card:-no answer}"
  echo "$card"
  remark "${card%%$'\n'*}"
}

stage_build() {
  if [[ -n $FROM ]]; then
    mkdir -p "$UNPACKED"
    if [[ -d $FROM/bin ]]; then
      cp -r "$FROM"/. "$UNPACKED"
    else
      # By Python, since a bare machine may have no xz.
      python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' \
        "$FROM/switchyard-gpu.tar.xz" "$UNPACKED" || fail "$FROM holds no bundle of gpu_check.sh --bundle"
    fi
    [[ ! -f $UNPACKED/bundle.txt ]] || cat "$UNPACKED/bundle.txt"
  else
    local architecture=$ARCH
    [[ -n $architecture ]] || architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
    cmake --preset cuda -B "$BUILD" -DCMAKE_CUDA_ARCHITECTURES="$architecture" ||
      fail "cannot be configured here; make a bundle where it can: scripts/gpu_check.sh --bundle DIR, then --from DIR"
    cmake --build "$BUILD" --target switchyard cuda_test bench_cuda bench_exchange
  fi
  local lacking
  lacking=$(with_libraries ldd "$SWITCHYARD" "$BENCH_CUDA" "$BENCH_EXCHANGE" "$CUDA_TEST" 2>&1 | grep 'not found' | sort -u | head -n 3 || true)
  [[ -z $lacking ]] || fail "the binaries lack: $(tr -s '\t\n ' ' ' <<< "$lacking")"
  remark "$(with_libraries "$SWITCHYARD" --version)"
}

stage_tests() {
  local passed failed
  with_libraries "$CUDA_TEST" --gtest_brief=1 2>&1 | tee "$WORK/tests" || {
    failed=$(sed -n 's/^\[  FAILED  \] \([^ ,]*\).*/\1/p' "$WORK/tests")
    [[ -n $failed ]] || fail "cuda_test ended with: $(tail -n 1 "$WORK/tests")"
    fail "$(wc -l <<< "$failed") tests failed, the first: ${failed%%$'\n'*}"
  }
  # Without a device the environment of all tests is skipped, and GoogleTest calls every test passed.
  local skipped
  skipped=$(grep '^\[  SKIPPED \]' "$WORK/tests" | grep -vm 1 ' ms)$' || true)
  [[ -z $skipped ]] || skip "${skipped#\[  SKIPPED \] }"
  passed=$(sed -n 's/^\[  PASSED  \] \([1-9][0-9]* tests\?\).*/\1/p' "$WORK/tests")
  [[ -n $passed ]] || fail "cuda_test ran no test"
  remark "$passed passed"
}

stage_cli() {
  local result=0
  SWITCHYARD_BIN=$SWITCHYARD SWITCHYARD_DEVICE_BIN=$SWITCHYARD with_libraries \
    python3 -B tests/cli/device_test.py --verbose 2>&1 | tee "$WORK/cli" || result=1
  remark "$(grep -E '^Ran ' "$WORK/cli" || true), $(tail -n 1 "$WORK/cli")"
  ((result == 0)) || exit 1
  ! grep -q 'no CUDA device' "$WORK/cli" || skip "$(grep -o -m 1 'no CUDA device[^;"]*' "$WORK/cli")"
}

# One tool of compute-sanitizer over every family of kernels once (bench_cuda --smoke), then over cuda_test as far as
# the time goes. Tests fill memory with NaN first, so initcheck would find nothing there.
sanitize() {
  local tool=$1 sanitizer result=0 seconds
  sanitizer=$(command -v compute-sanitizer || compgen -G "$TOOLKIT/compute-sanitizer" || true)
  [[ -n $sanitizer ]] || skip "compute-sanitizer is not there"
  local command=("$sanitizer" --tool "$tool" --error-exitcode 9 --report-api-errors no --print-limit 20)
  with_libraries "${command[@]}" "$BENCH_CUDA" --smoke 2>&1 | tee "$WORK/$tool" || result=1
  local said
  said="bench_cuda --smoke: $(grep -E 'SUMMARY' "$WORK/$tool" | tail -n 1 | sed 's/^=* *//' || true)"
  if [[ $tool != initcheck ]]; then
    local code=0
    seconds=$((STAGE_SECONDS - SECONDS - 15)) # before the stage's own limit, which would take the result away
    ((seconds > 0)) || fail "$said; no time was left for cuda_test"
    with_libraries timeout "$seconds" "${command[@]}" "$CUDA_TEST" > "$WORK/$tool.tests" 2>&1 || code=$?
    grep -vE '^\[( RUN|       OK|---)' "$WORK/$tool.tests" || true
    said+="; cuda_test: $(grep -c '^\[       OK' "$WORK/$tool.tests" || true) tests"
    if ((code == 124)); then
      said+=", cut off after $seconds s"
    else
      said+=", $(grep -E 'SUMMARY' "$WORK/$tool.tests" | tail -n 1 | sed 's/^=* *//' || true)"
      ((code == 0)) || result=1
    fi
    ! grep -qE '^=+ (Invalid|Error|Race|Barrier|Uninit)' "$WORK/$tool.tests" || result=1
    remark "$said"
    ((result != 0 || code != 124)) || exit 4
  fi
  remark "$said"
  return $result
}
stage_memcheck() { sanitize memcheck; }
stage_racecheck() { sanitize racecheck; }
stage_synccheck() { sanitize synccheck; }
stage_initcheck() { sanitize initcheck; }

stage_kernels() {
  with_libraries "$BENCH_CUDA" $SMOKE --json "$OUT/kernels.json"
}

stage_steps() {
  local kernels=()
  [[ ! -f $OUT/kernels.json ]] || kernels=(--kernels "$OUT/kernels.json")
  with_libraries python3 -B tools/bench_gpu_steps.py --binary "$SWITCHYARD" "${kernels[@]}" $SMOKE --json "$OUT/steps.json"
}

# NCCL by a rank alone, recorded too; then two ranks: on two cards, or on one where NCCL lets them.
stage_ranks() {
  local alone devices code=0
  with_libraries "$CUDA_TEST" --gtest_filter='CudaDeviceGroup.*' --gtest_brief=1 2>&1 | tee "$WORK/alone" ||
    fail "a rank alone does not exchange with itself by NCCL: $(grep -m 1 -iE 'failure|failed with' "$WORK/alone" || true)"
  # The reason of a test stands on a line of its own, that of all tests behind the word.
  ! grep -q '^\[  SKIPPED' "$WORK/alone" ||
    skip "$(sed -nE 's/^(\[  SKIPPED \] )?((there is no|no CUDA|CUDA_VISIBLE).*)/\2/p' "$WORK/alone" | head -n 1)"
  grep -qE '^\[  PASSED  \] [1-9]' "$WORK/alone" || fail "cuda_test ran no test of NCCL"
  alone="alone by NCCL: same bits, recorded too"
  devices=$(with_libraries "$BENCH_EXCHANGE" --devices)
  ((devices > 0)) || skip "there is no CUDA device"
  with_libraries python3 -B tools/check_gpu_ranks.py --binary "$SWITCHYARD" --devices "$devices" | tee "$WORK/ranks" || code=${PIPESTATUS[0]}
  case $code in
    0) remark "$alone; $(tail -n 1 "$WORK/ranks")" ;;
    3) remark "$alone; two ranks skipped: $(tail -n 1 "$WORK/ranks")" ;;
    *) fail "$(tail -n 1 "$WORK/ranks")" ;;
  esac
}

stage_scaling() {
  local devices
  devices=$(with_libraries "$BENCH_EXCHANGE" --devices)
  ((devices > 1)) || skip "CUDA devices: $devices; several are wanted"
  with_libraries python3 -B tools/bench_gpu_ranks.py --binary "$SWITCHYARD" --exchange "$BENCH_EXCHANGE" --devices "$devices" $SMOKE \
    --json "$OUT/scaling.json"
}

stage_transformers() {
  local steps=()
  [[ ! -f $OUT/steps.json ]] || steps=(--steps-json "$OUT/steps.json")
  python3 -B tools/bench_transformers.py configs/qwen3_moe_0.6b.json --device cuda --micro-batch 32 "${steps[@]}" --json "$OUT/transformers.json"
}

export -f remark skip fail directory_of with_libraries sanitize
for name in "${stages[@]}"; do export -f "stage_$name"; done

# --- one after the other ------------------------------------------------------------------------------------------

: > "$OUT/log.txt"
: > "$WORK/stages"
failed=false
for name in "${stages[@]}"; do
  # A bundle has to be unpacked whatever is asked for.
  [[ -z $only || ",$only," == *",$name,"* || ($name == build && -n $from) ]] || continue
  seconds=${limits[$name]}
  [[ -z $limit ]] || seconds=$((limit < seconds ? limit : seconds))
  printf '\n== %s\n' "$name" | tee -a "$OUT/log.txt"
  rm -f "$WORK/remark"
  start=$SECONDS code=0
  STAGE_SECONDS=$seconds timeout --kill-after=10 "$seconds" bash -euo pipefail -c "stage_$name" 2>&1 | tee "$WORK/output" | tee -a "$OUT/log.txt" ||
    code=${PIPESTATUS[0]}
  case $code in
    0) result=ok ;;
    3) result=skipped ;;
    4) result=incomplete ;;
    124 | 137) result='time limit' failed=true ;;
    *) result=failed failed=true ;;
  esac
  note=$(cat "$WORK/remark" 2> /dev/null || tail -n 1 "$WORK/output")
  printf '%s\t%s\t%s\t%s\n' "$name" "$result" "$((SECONDS - start))" "$note" >> "$WORK/stages"
done
printf '\n'
python3 -B tools/gpu_check_summary.py "$WORK/stages" "$OUT"
! $failed
