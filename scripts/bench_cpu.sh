#!/usr/bin/env bash
# Measures training on this machine's processor: builds, measures the rate of plain matrix products, trains some steps
# of configs/bench_cpu_86m.json on random tokens, and prints tokens/s, GFLOP/s, the share of the matrix-product rate and
# the memory. Leave the machine alone while it runs.
#
#   scripts/bench_cpu.sh [--steps N] [--dtype float32|bfloat16]        12 steps, float32
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1-}" in
  -h | --help) sed -n '2,6s/^# \{0,1\}//p' scripts/bench_cpu.sh; exit 0 ;;
esac

scripts/setup.sh
cmake --preset cpu --log-level=WARNING > /dev/null
cmake --build --preset cpu --target switchyard bench_gemm
exec python3 tools/bench_report.py --binary build/switchyard --gemm build/bench_gemm "$@"
