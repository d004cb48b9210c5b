#!/usr/bin/env bash
# Measures what several ranks cost and save on this machine: builds, trains configs/bench_cpu_86m.json in pairs of ways that take
# turns, and prints their ratios as a table. Some 20 minutes on two cores; leave the machine alone while it runs.
#
#   scripts/bench_ranks.sh [--rounds N] [--steps N] [--dtype float32|bfloat16] [experts data weak memory memory_4 memory_4_2
#                                                        zero_2 four eight]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1-}" in
  -h | --help) sed -n '2,6s/^# \{0,1\}//p' scripts/bench_ranks.sh; exit 0 ;;
esac

scripts/setup.sh
cmake --preset cpu --log-level=WARNING > /dev/null
cmake --build --preset cpu --target switchyard
exec python3 tools/bench_ranks.py --binary build/switchyard "$@"
