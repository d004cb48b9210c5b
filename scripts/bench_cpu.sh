#!/usr/bin/env bash
# Measures training on this machine's processor: builds, measures the rate of plain matrix products, trains some steps
# of configs/bench_cpu_86m.json on random tokens, and prints tokens/s, GFLOP/s, the share of the matrix-product rate and
# the memory. Leave the machine alone while it runs.
#
#   scripts/bench_cpu.sh [--steps N] [--dtype float32|bfloat16] [--sequences N] [--profile]      12 steps, float32
#
# --profile adds a table: what every operator of a step takes, and what it would take at the rates of products and of
# copies that are measured first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1-}" in
  -h | --help) sed -n '2,9s/^# \{0,1\}//p' scripts/bench_cpu.sh; exit 0 ;;
esac

scripts/setup.sh
cmake --preset cpu --log-level=WARNING > /dev/null
cmake --build --preset cpu --target switchyard bench_gemm
exec python3 tools/bench_report.py --binary build/switchyard --gemm build/bench_gemm "$@"
