#!/usr/bin/env bash
# From a fresh checkout to a trained and evaluated mixture of experts: installs what is missing, builds (some minutes on two
# cores), makes a small corpus of four domains, tokenizes it, trains for about two minutes, evaluates.
# Steps that are done are not done again, and a run that was interrupted goes on where it stopped.
#
#   scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1-}" in
  "") ;;
  -h | --help) sed -n '2,6s/^# \{0,1\}//p' scripts/quickstart.sh; exit 0 ;;
  *) echo "quickstart: unknown option '$1'; there are none" >&2; exit 2 ;;
esac

domains=(finance legal code general)
raw=data/quickstart_raw
shards=data/quickstart
run=runs/quickstart
source scripts/common.sh

say "1/5 what it needs"
scripts/setup.sh

say "2/5 build"
cmake --preset cpu --log-level=WARNING > /dev/null
cmake --build --preset cpu --target switchyard

say "3/5 data"
if [[ -d $raw ]]; then
  echo "$raw is there"
else
  rm -rf "$raw.partial"
  python3 tools/make_sample_corpus.py --out "$raw.partial" > /dev/null
  mv "$raw.partial" "$raw"
  echo "$raw: made-up text of ${#domains[@]} domains, $(du -sh "$raw" | cut -f 1)"
fi
for domain in "${domains[@]}"; do
  for split in train:train validation:val; do
    if has_split "$shards/$domain" "${split#*:}"; then
      echo "$shards/$domain/${split#*:}_*.bin is there"
    else
      python3 tools/prepare_data.py --input "$raw/$domain-${split%:*}.json.gz" --tokenizer bytes \
        --out "$shards/$domain" --split-name "${split#*:}" --overwrite
    fi
  done
done

say "4/5 train (about two minutes)"
state=$(progress "$run")
trap : INT  # Ctrl-C is the trainer's: it saves and stops
code=0
case $state in
  new) build/switchyard train configs/quickstart.json --out "$run" || code=$? ;;
  finished) echo "$run has been trained; remove it to train anew" ;;
  *)
    echo "$run was interrupted; it goes on from $state"
    build/switchyard train configs/quickstart.json --out "$run" --resume auto || code=$?
    ;;
esac
trap - INT
if ((code > 128)); then
  echo "Stopped at $(progress "$run"); scripts/quickstart.sh goes on from there."
fi
((code == 0)) || exit "$code"

say "5/5 evaluate"
build/switchyard eval "$run/checkpoints/latest" --json "$run/eval.json"

python3 - "$run" << 'PYTHON'
import json, sys
run = sys.argv[1]
report = json.load(open(f"{run}/eval.json"))
steps = [json.loads(line) for line in open(f"{run}/metrics.jsonl")]
balance = report["balance"]
print(f"""
Done. The model began with a loss of {steps[0]["loss"]:.2f} and was trained on {steps[-1]["tokens"] / 1e6:.1f} million \
tokens; on {report["tokens"]:,} that it has not seen:

  loss           {report["loss"]:.4f} nats a token
  perplexity     {report["perplexity"]:.3f}
  bits per byte  {report["bits_per_byte"]:.3f}
  Gini           {balance["gini"]:.3f}   how unevenly tokens fall on experts: 0 all alike, near 1 all on one
  min-max        {balance["min_max"]:.3f}   load of the idlest expert as a share of the busiest one's

The run is in {run}: config.json, metrics.jsonl (one line a step), eval.json and checkpoints/.

What to try next:
  build/switchyard inspect {run}/checkpoints/latest
  build/switchyard train configs/quickstart.json --out runs/no_balance --set router.balance_coef=0
  tools/prepare_data.py --help       (your own text)
  build/switchyard train --help""")
PYTHON
