#!/usr/bin/env bash
# Latent Prototype Routing beside the routers that it replaces: trains Mixtral, Qwen3-MoE and DeepSeek-V3, each with its
# own router and with LPR, on the same data with the same seeds, evaluates them and prints test loss, Gini and min-max
# (configs/sweeps/lpr_small.json, lpr_paper.json). What is done is not done again; a run that was interrupted goes on. At the
# small scale LPR has the quantile bias on top, and each layout is there with that bias alone, with LPR's prototypes beside a
# linear gate and that bias, and with its own balancing, too (docs/results.md says why); at the paper's scale LPR is as
# published, prototypes as drawn and scaled to the unit sphere, and with that bias.
#
#   scripts/reproduce_lpr.sh --scale small --corpus DIR     models of 5 M parameters, 64 experts, 8 active, 5 M tokens
#   scripts/reproduce_lpr.sh --scale paper --launcher "mpirun -np 8"      the published set-up, on 8 GPUs
#
#   --corpus DIR     small: c4-train.DOMAIN.json.gz and c4-validation.DOMAIN.json.gz of prose, reference, technical,
#                    legal and code (or set CORPUS); needed until the tokens are there
#   --out DIR        where the runs go (default: runs/lpr_SCALE)
#   --steps N        shorter runs, to try things out
#
# Other options are those of `switchyard sweep`: --seeds 1,2,3, --only PATTERN, --jobs N, --threads N, --launcher WORDS,
# --set a.b=value, --dry-run. PYTHON: the interpreter for the tools (default: python3); --scale small needs its module
# 'tokenizers' once.
set -euo pipefail
usage() { sed -n '2,21s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
fail() {
  echo "reproduce_lpr: $*" >&2
  exit 2
}

scale="" corpus=${CORPUS-} out="" options=() dry=false
while (($#)); do
  case $1 in
    --scale | --corpus | --out | --steps)
      (($# > 1)) || fail "$1 needs a value"
      case $1 in
        --scale) scale=$2 ;;
        --corpus) corpus=$2 ;;
        --out) out=$2 ;;
        --steps) options+=(--set "train.steps=$2") ;;
      esac
      shift 2
      ;;
    --dry-run) dry=true; options+=("$1"); shift ;;
    -h | --help) usage; exit 0 ;;
    *) options+=("$1"); shift ;;
  esac
done
[[ $scale == small || $scale == paper ]] || fail "--scale must be small or paper"
# What the caller named is seen from where the caller is.
root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
source "$root/scripts/common.sh"
[[ -z $corpus ]] || corpus=$(seen_from "$root" "$corpus")
[[ -z $out ]] || out=$(seen_from "$root" "$out")
[[ ${SWITCHYARD_BIN-} != */* ]] || SWITCHYARD_BIN=$(realpath -ms "$SWITCHYARD_BIN")
[[ ${PYTHON-} != */* ]] || PYTHON=$(realpath -ms "$PYTHON")
cd "$root"

python=${PYTHON:-python3}
binary=${SWITCHYARD_BIN:-build/switchyard}
domains=(prose reference technical legal code)
[[ -n $out ]] || out=runs/lpr_$scale

if [[ ! -x $binary ]]; then
  say "build"
  scripts/setup.sh
  cmake --preset cpu --log-level=WARNING > /dev/null
  cmake --build --preset cpu --target switchyard
fi

say "data"
if [[ $scale == small ]]; then
  shards=data/lpr_small
  complete=true
  for domain in "${domains[@]}"; do
    for split in train val test; do has_split "$shards/$domain" $split || complete=false; done
  done
  if [[ -n $corpus ]]; then
    for domain in "${domains[@]}"; do
      for split in train:train test:train val:validation; do
        if has_split "$shards/$domain" "${split%:*}"; then
          refuse_other_input "$shards/$domain" "${split%:*}" "$corpus/c4-${split#*:}.$domain.json.gz"
        fi
      done
    done
  fi
  if $complete; then
    echo "$shards is there"
  else
    [[ -n $corpus ]] || fail "no tokens in $shards yet: give --corpus DIR, which holds c4-train.DOMAIN.json.gz and" \
      "c4-validation.DOMAIN.json.gz for ${domains[*]}"
    for domain in "${domains[@]}"; do
      for split in train validation; do
        file=$corpus/c4-$split.$domain.json.gz
        [[ -f $file ]] || fail "$file: no such file; --corpus DIR must hold it"
      done
    done
    # One tokenizer for all domains, of all their training text. The shards that this writes are not used.
    if [[ ! -f $shards/bpe/tokenizer.json ]]; then
      do_it "$python" tools/prepare_data.py --input "$corpus"/c4-train.*.json.gz --train-bpe 8192 \
        --out "$shards/bpe" --overwrite
      do_it rm -f "$shards"/bpe/train_*.bin
    fi
    # Choices are made by the validation files. What is reported is the loss over documents of the training files that
    # are kept from training.
    for domain in "${domains[@]}"; do
      to=(--tokenizer "$shards/bpe/tokenizer.json" --out "$shards/$domain" --overwrite)
      has_split "$shards/$domain" test ||
        do_it "$python" tools/prepare_data.py --input "$corpus/c4-train.$domain.json.gz" --val-fraction 0.15 \
          --held-out test "${to[@]}"
      has_split "$shards/$domain" val ||
        do_it "$python" tools/prepare_data.py --input "$corpus/c4-validation.$domain.json.gz" --split-name val "${to[@]}"
    done
  fi
elif compgen -G 'data/fineweb/train_*.bin' > /dev/null && compgen -G 'data/c4val/val_*.bin' > /dev/null; then
  echo "data/fineweb and data/c4val are there"
else
  cat << 'HELP'
The published runs read 1.1 billion tokens of FineWeb and are judged on C4's validation split, both with Qwen3's tokenizer.
To get them (some 6 GB of Parquet and 0.5 GB of JSON; pip install huggingface_hub first):

  hf download HuggingFaceFW/fineweb --repo-type dataset --include 'sample/10BT/00[0-2]_*.parquet' \
    --local-dir data/raw/fineweb
  hf download allenai/c4 --repo-type dataset --include 'en/c4-validation.*.json.gz' --local-dir data/raw/c4
  hf download Qwen/Qwen3-0.6B tokenizer.json --local-dir data/raw/qwen3
  tools/prepare_data.py --input 'data/raw/fineweb/sample/10BT/*.parquet' --tokenizer data/raw/qwen3/tokenizer.json \
    --out data/fineweb
  tools/prepare_data.py --input 'data/raw/c4/en/c4-validation.*.json.gz' --tokenizer data/raw/qwen3/tokenizer.json \
    --out data/c4val --split-name val
HELP
  $dry || fail "data/fineweb/train_*.bin and data/c4val/val_*.bin are not there; the lines above get them"
fi

sweep_and_report "configs/sweeps/lpr_$scale.json"
