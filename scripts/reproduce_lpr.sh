#!/usr/bin/env bash
# Latent Prototype Routing beside the routers that it replaces: trains Mixtral, Qwen3-MoE and DeepSeek-V3, each with its
# own router and with LPR (prototypes as drawn, and scaled to the unit sphere), on the same data with the same seed,
# evaluates all nine on the validation data and prints test loss, Gini and min-max. What is done is not done again; a run
# that was interrupted goes on. At the small scale LPR has the quantile bias on top (docs/results.md says why), at the
# paper's it is as published.
#
#   scripts/reproduce_lpr.sh --scale small --corpus DIR     models of 5 M parameters, 64 experts, 8 active, 5 M tokens
#   scripts/reproduce_lpr.sh --scale paper                  the published set-up: weeks on a CPU, meant for a GPU
#
#   --corpus DIR     small: c4-train.DOMAIN.json.gz and c4-validation.DOMAIN.json.gz of prose, reference, technical,
#                    legal and code (or set CORPUS); needed until the tokens are there
#   --out DIR        where the runs go (default: runs/lpr_SCALE)
#   --seed N         another seed, for every run (default: 1; the run directories then end in _seedN)
#   --steps N        shorter runs, to try things out
#   --only PATTERN   runs whose name fits a regular expression, for example qwen3_moe or '^mixtral(_lpr)?$'
#   --dry-run        print the commands and do nothing
#
# PYTHON: the interpreter for the tools (default: python3); --scale small needs its module 'tokenizers' once.
set -euo pipefail
usage() { sed -n '2,21s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
fail() {
  echo "reproduce_lpr: $*" >&2
  exit 2
}

scale="" corpus=${CORPUS-} out="" seed=1 steps="" only="" dry=false
while (($#)); do
  case $1 in
    --scale | --corpus | --out | --seed | --steps | --only)
      (($# > 1)) || fail "$1 needs a value"
      case $1 in
        --scale) scale=$2 ;;
        --corpus) corpus=$2 ;;
        --out) out=$2 ;;
        --seed) seed=$2 ;;
        --steps) steps=$2 ;;
        --only) only=$2 ;;
      esac
      shift 2
      ;;
    --dry-run) dry=true; shift ;;
    -h | --help) usage; exit 0 ;;
    *) fail "unknown option '$1'; --help lists them" ;;
  esac
done
[[ $scale == small || $scale == paper ]] || fail "--scale must be small or paper"
[[ $seed =~ ^[0-9]+$ ]] || fail "--seed '$seed' is not a whole number"
[[ -z $steps || $steps =~ ^[1-9][0-9]*$ ]] || fail "--steps '$steps' is not a whole number above 0"
[[ -z $corpus ]] || corpus=$(realpath -m "$corpus")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
binary=${SWITCHYARD_BIN:-build/switchyard}
domains=(prose reference technical legal code)
[[ -n $out ]] || out=runs/lpr_$scale
suffix=""
((seed == 1)) || suffix=_seed$seed
source scripts/common.sh
# do_it COMMAND...: runs it, or shows it.
do_it() {
  if $dry; then
    printf ' %q' "$@" | sed 's/^ //'
    echo
  else
    "$@"
  fi
}

# name, configuration, overrides. "w/ init" of the paper is unit_ball.
if [[ $scale == small ]]; then
  base=configs/lpr_small/%s.json with_lpr=configs/lpr_small/%s_lpr.json
else
  base=configs/%s_0.6b.json with_lpr=configs/%s_lpr_0.6b.json
fi
names=() configs=() overrides=()
for layout in mixtral qwen3_moe deepseek_v3; do
  # shellcheck disable=SC2059  # the formats are ours
  for variant in "::$(printf "$base" $layout)" \
    "_lpr:router.unit_ball=false:$(printf "$with_lpr" $layout)" \
    "_lpr_init:router.unit_ball=true:$(printf "$with_lpr" $layout)"; do
    IFS=: read -r ending override config <<< "$variant"
    [[ $layout$ending =~ $only ]] || continue
    names+=("$layout$ending$suffix")
    configs+=("$config")
    overrides+=("$override")
  done
done
((${#names[@]})) || fail "--only '$only' fits no run"

if ! $dry && [[ ! -x $binary ]]; then
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
    for split in train val; do has_split "$shards/$domain" $split || complete=false; done
  done
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
    for domain in "${domains[@]}"; do
      for split in train:train validation:val; do
        has_split "$shards/$domain" "${split#*:}" ||
          do_it "$python" tools/prepare_data.py --input "$corpus/c4-${split%:*}.$domain.json.gz" \
            --tokenizer "$shards/bpe/tokenizer.json" --out "$shards/$domain" --split-name "${split#*:}" --overwrite
      done
    done
  fi
elif compgen -G 'data/fineweb/train_*.bin' > /dev/null && compgen -G 'data/c4val/val_*.bin' > /dev/null; then
  echo "data/fineweb and data/c4val are there"
else
  cat << 'HELP'
The published runs read 1.1 billion tokens of FineWeb and are judged on C4's validation split, both with Qwen3's tokenizer.
To get them (some 6 GB of Parquet and 0.5 GB of JSON; pip install huggingface_hub first):

  huggingface-cli download HuggingFaceFW/fineweb --repo-type dataset --include 'sample/10BT/00[0-2]_*.parquet' \
    --local-dir data/raw/fineweb
  huggingface-cli download allenai/c4 --repo-type dataset --include 'en/c4-validation.*.json.gz' --local-dir data/raw/c4
  huggingface-cli download Qwen/Qwen3-0.6B tokenizer.json --local-dir data/raw/qwen3
  tools/prepare_data.py --input 'data/raw/fineweb/sample/10BT/*.parquet' --tokenizer data/raw/qwen3/tokenizer.json \
    --out data/fineweb
  tools/prepare_data.py --input 'data/raw/c4/en/c4-validation.*.json.gz' --tokenizer data/raw/qwen3/tokenizer.json \
    --out data/c4val --split-name val
HELP
  $dry || fail "data/fineweb/train_*.bin and data/c4val/val_*.bin are not there; the lines above get them"
fi

steps_of() { python3 -B tools/run_config.py "$1" train.steps; }

runs=()
for i in "${!names[@]}"; do
  run=$out/${names[i]}
  runs+=("$run")
  state=$(progress "$run")
  if [[ $state != new ]]; then
    wanted=${steps:-$(steps_of "${configs[i]}")}
    found=$(steps_of "$run/config.json")
    ((found == wanted)) || fail "$run is a run of $found steps, not of $wanted; remove it, or give another --out"
  fi
  say "$((i + 1))/${#names[@]} ${names[i]}: $state"
  command=("$binary" train "${configs[i]}" --out "$run" --set "train.seed=$seed")
  [[ -z ${overrides[i]} ]] || command+=(--set "${overrides[i]}")
  [[ -z $steps ]] || command+=(--set "train.steps=$steps")
  [[ $state == new ]] || command+=(--resume auto)
  if [[ $state != finished ]]; then
    trap : INT # Ctrl-C is the trainer's: it saves and stops
    code=0
    do_it "${command[@]}" || code=$?
    trap - INT
    if ((code > 128)); then echo "Stopped at $(progress "$run"); the same command goes on from there."; fi
    ((code == 0)) || exit "$code"
  fi
  # A checkpoint that is newer than its evaluation is evaluated anew.
  if [[ ! $run/eval.json -nt $run/checkpoints/latest ]]; then
    do_it "$binary" eval "$run" --json "$run/eval.json"
  fi
done

say "table"
do_it "$python" tools/report.py "${runs[@]}" --markdown --out "$out/report$suffix.html"
