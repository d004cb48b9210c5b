#!/usr/bin/env bash
# Builds switchyard and runs every test: first the optimised build (preset cpu), then the same tests under the address
# and undefined-behaviour sanitizers (preset asan). A failing stage does not hide the ones after it.
#
#   scripts/test.sh             everything
#   scripts/test.sh --quick     without the sanitizers
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

presets=(cpu asan)
case "${1-}" in
  "") ;;
  --quick) presets=(cpu) ;;
  -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) echo "test: unknown option '$1'; the only one is --quick" >&2; exit 2 ;;
esac
if (($# > 1)); then
  echo "test: too many arguments; the only one is --quick" >&2
  exit 2
fi

scripts/setup.sh

jobs=$(nproc)
# What one clone has compiled, another one takes from the cache: paths are kept out of what the cache compares.
export CCACHE_BASEDIR="${CCACHE_BASEDIR:-$PWD}" CCACHE_NOHASHDIR="${CCACHE_NOHASHDIR:-1}"
# Tests run side by side: two threads each, which sleep while they wait, are enough to meet every parallel path.
export OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive
# A sanitizer's finding, leaks included, ends a program with 99, which no test takes for an error that it expects.
export ASAN_OPTIONS="exitcode=99:detect_stack_use_after_return=1:strict_string_checks=1"
export UBSAN_OPTIONS="exitcode=99:print_stacktrace=1"
export LSAN_OPTIONS="exitcode=99"

summary=()
failed=false
# stage NAME COMMAND...: runs it and keeps what it came to, and how long it took, for the summary.
stage() {
  local name=$1 start=$SECONDS result=ok
  shift
  echo "== $name"
  "$@" || result=FAILED
  [[ $result == ok ]] || failed=true
  summary+=("$(printf '%-18s %-8s %5d s' "$name" "$result" $((SECONDS - start)))")
  [[ $result == ok ]]
}

# Each skipped test in a log of CTest with its reason, as unittest and GoogleTest write them.
skipped_tests() {
  awk '/ \.\.\. skipped / { print }
       was_skip { reason = $0; was_skip = 0 }
       /: Skipped$/ { was_skip = 1 }
       /^\[  SKIPPED \] .* ms\)$/ {
         sub(/^\[  SKIPPED \] /, ""); sub(/ \([0-9]+ ms\)$/, ""); print $0 ": " reason
       }' "$1"
}

# The last lines of each failed test in a log of CTest, which the output of those that passed would hide.
failed_tests() {
  awk '/^[0-9]+\/[0-9]+ Testing: / { name = $3; n = 0 }
       { line[n++] = $0 }
       /^Test Failed\.$/ {
         print "  failed  " name
         for (i = n > 40 ? n - 40 : 0; i < n; ++i) print "    " line[i]
       }' "$1"
}

skips=()
failures=()
for preset in "${presets[@]}"; do
  directory=build
  [[ $preset == cpu ]] || directory="build-$preset"
  if ! stage "$preset: configure" cmake --preset "$preset" --log-level=WARNING ||
    ! stage "$preset: build" cmake --build --preset "$preset" --parallel "$jobs"; then
    summary+=("$(printf '%-18s %s' "$preset: tests" "NOT RUN, because there is no build")")
    continue
  fi
  stage "$preset: tests" ctest --preset "$preset" --parallel "$jobs" --no-tests=error || true
  log="$directory/Testing/Temporary/LastTest.log"
  if [[ -f $log ]]; then
    summary[-1]+="  $(grep -c '^Test Passed\.$' "$log" || true) of $(grep -c '^Command: ' "$log" || true) passed"
    while IFS= read -r line; do
      skips+=("$preset: $line")
    done < <(skipped_tests "$log")
    while IFS= read -r line; do
      failures+=("$preset: $line")
    done < <(failed_tests "$log")
  fi
done

echo
echo "Summary"
printf '  %s\n' "${summary[@]}"
printf '  %-27s %5d s\n' "everything" "$SECONDS"
for line in "${skips[@]}"; do echo "  skipped  $line"; done
for line in "${failures[@]}"; do echo "$line"; done
((${#presets[@]} > 1)) || echo "  the sanitizers were left out (--quick)"
if $failed; then
  echo "FAILED"
  exit 1
fi
echo "All tests passed."
