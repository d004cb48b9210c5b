#!/usr/bin/env bash
# What docs/reliability.md promises, tried longer than a test run can. Each part says in its last line what it did.
# The first two need a build (preset cpu); fuzzing builds what it needs, and goes on from what an earlier call has left in
# runs/torture.
#
#   scripts/torture.sh --kills N            N SIGKILLs at random moments of tiny runs, each resumed to its end
#   scripts/torture.sh --faults             every single write, fsync, rename, open, mmap of a run fails, once and for good;
#                                           of allocations some hundred
#   scripts/torture.sh --fuzz N [MINUTES]   until N executions in all, over all readers of files and with those of
#                                           tests/fuzz/executions, or so many minutes
#
# Of fuzzing: TORTURE_ROUND_SECONDS (60) is how long a reader has its turn, TORTURE_MAX_BYTES (512) how long an input gets,
# TORTURE_JOBS (the number of cores) how many readers have their turn at the same time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | sed '/^set/d'; }
refuse() { echo "torture: $1" >&2; exit 2; }
whole() { [[ $2 =~ ^[1-9][0-9]*$ ]] || refuse "$1 $2: give a whole number above 0"; }

state=runs/torture

# Executions so far of a target: over all calls on this machine, and those of which tests/fuzz/executions tells.
executions() { cat "$state/fuzz/$1.executions" 2>/dev/null || echo 0; }
executions_before() { sed -n "s/^$1 //p" tests/fuzz/executions; }

fuzz() {
  local goal=$1 minutes=${2-0} seconds=${TORTURE_ROUND_SECONDS-60} bytes=${TORTURE_MAX_BYTES-512}
  local total target done before log i j
  local jobs=${TORTURE_JOBS-$(nproc)} now pids status
  whole TORTURE_ROUND_SECONDS "$seconds"
  whole TORTURE_MAX_BYTES "$bytes"
  whole TORTURE_JOBS "$jobs"
  # Readers would go on for the rest of their turn when the script is told to end.
  trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
  cmake --preset fuzz --log-level=WARNING > /dev/null
  cmake --build --preset fuzz --parallel "$(nproc)"
  mkdir -p "$state/fuzz"
  # Stacks of allocations cost most of the time, and are in the report of a crash that is replayed without this. What an
  # execution frees stays in quarantine until its end, and in a cache.
  export ASAN_OPTIONS="${ASAN_OPTIONS-malloc_context_size=0:quarantine_size_mb=4:max_malloc_fill_size=0}"
  local begin=$SECONDS targets=()
  for target in build-fuzz/tests/fuzz/fuzz_*; do
    if [[ -x $target && -f $target ]]; then targets+=("${target##*/fuzz_}"); fi
  done
  total=0
  for target in "${targets[@]}"; do total=$((total + $(executions "$target") + $(executions_before "$target"))); done
  # Each reader in turn, as long as the others, so many at a time as there are cores.
  for ((i = 0; total < goal && (minutes == 0 || SECONDS - begin < 60 * minutes); i = (i + jobs) % ${#targets[@]})); do
    now=() pids=() status=0
    for ((j = 0; j < jobs && j < ${#targets[@]}; j++)); do
      target=${targets[(i + j) % ${#targets[@]}]}
      mkdir -p "$state/fuzz/$target"
      "build-fuzz/tests/fuzz/fuzz_$target" -max_total_time="$seconds" -max_len="$bytes" -entropic=0 -timeout=10 \
        -detect_leaks=0 -print_final_stats=1 -artifact_prefix="$state/fuzz/${target}_" "$state/fuzz/$target" "tests/fuzz/corpus/$target" \
        > "$state/fuzz/$target.log" 2>&1 &
      now+=("$target") pids+=("$!")
    done
    for j in "${!now[@]}"; do
      target=${now[j]} log="$state/fuzz/${now[j]}.log"
      if ! wait "${pids[j]}"; then
        tail -40 "$log"
        echo "torture: the reader $target failed; the input is in $state/fuzz, the report in $log" >&2
        status=1
        continue
      fi
      done=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
      echo $(($(executions "$target") + done)) > "$state/fuzz/$target.executions"
      total=$((total + done))
    done
    ((status == 0)) || return 1
  done
  for target in "${targets[@]}"; do
    mkdir -p "$state/fuzz/$target"
    done=$(executions "$target") before=$(executions_before "$target")
    echo "$target: $((before + done)) executions, $done of them here, $(find "$state/fuzz/$target" -type f | wc -l) inputs kept"
  done
  echo "fuzz: $total executions of $goal, no fault"
}

case "${1-}" in
  -h | --help | "") usage ;;
  --kills)
    whole --kills "${2-}"
    exec python3 -B tests/cli/kills_test.py --kills "$2"
    ;;
  --faults) exec python3 -B tests/cli/failing_calls_test.py --every ;;
  --fuzz)
    whole --fuzz "${2-}"
    [[ -z ${3-} ]] || whole MINUTES "$3"
    fuzz "$2" "${3-0}"
    ;;
  *) refuse "unknown option '$1'; --help lists them" ;;
esac
