#!/usr/bin/env bash
# Trains the same models on the same tokens with switchyard and with transformers and PyTorch on this machine's processor, in turns,
# and prints a table: tokens/s, their spread, memory, the first losses and how many times as fast switchyard is. Leave the
# machine alone while it runs.
#
#   scripts/bench_peers.sh --install .venv         PyTorch and transformers into a folder of their own first
#   scripts/bench_peers.sh --python .venv/bin/python [--models LIST] [--dtypes LIST] [--ways LIST] [--rounds N] [--steps N]
#                          [--out FILE (.md or .json)]
#   tools/bench_peers.py --help                    all options, and the models
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1-}" in
  -h | --help) sed -n '2,9s/^# \{0,1\}//p' scripts/bench_peers.sh; exit 0 ;;
esac

scripts/setup.sh
cmake --preset cpu --log-level=WARNING > /dev/null
cmake --build --preset cpu --target switchyard
exec python3 tools/bench_peers.py --binary build/switchyard "$@"
