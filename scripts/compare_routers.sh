#!/usr/bin/env bash
# Which router balances without losing quality: trains one very small model (configs/lpr_tiny) with each of several
# routers on the same data, with several seeds, evaluates every run and prints the table and its means over the seeds.
# What is done is not done again; a run that was interrupted goes on. Most of a minute a run on one core.
#
#   scripts/compare_routers.sh --corpus DIR
#
#   --corpus DIR     what tools/debian_corpus.py makes, or c4-train.DOMAIN.json.gz and c4-validation.DOMAIN.json.gz of
#                    prose, reference, technical, legal and code (or set CORPUS); needed until the tokens are there
#   --out DIR        where the runs go (default: runs/lpr_tiny)
#   --seeds "N ..."  seeds (default: "1 2 3")
#   --only PATTERN   routers whose name fits a regular expression, for example '^lpr'
#   --eval-tokens N  validation tokens a domain that a run is judged on at most (default: 200000)
#   --threads N      threads to train and evaluate with (default: 1; another number gives slightly other figures)
#   --dry-run        print the commands and do nothing
#
# PYTHON: the interpreter for the tools (default: python3).
set -euo pipefail
usage() { sed -n '2,18s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
fail() {
  echo "compare_routers: $*" >&2
  exit 2
}

corpus=${CORPUS-} out=runs/lpr_tiny seeds="1 2 3" only="" eval_tokens=200000 threads=1 dry=false
while (($#)); do
  case $1 in
    --corpus | --out | --seeds | --only | --eval-tokens | --threads)
      (($# > 1)) || fail "$1 needs a value"
      case $1 in
        --corpus) corpus=$2 ;;
        --out) out=$2 ;;
        --seeds) seeds=$2 ;;
        --only) only=$2 ;;
        --eval-tokens) eval_tokens=$2 ;;
        --threads) threads=$2 ;;
      esac
      shift 2
      ;;
    --dry-run) dry=true; shift ;;
    -h | --help) usage; exit 0 ;;
    *) fail "unknown option '$1'; --help lists them" ;;
  esac
done
[[ $seeds =~ ^[0-9]+(\ +[0-9]+)*$ ]] || fail "--seeds '$seeds' are not whole numbers"
[[ $eval_tokens =~ ^[1-9][0-9]*$ ]] || fail "--eval-tokens '$eval_tokens' is not a whole number above 0"
[[ $threads =~ ^[1-9][0-9]*$ ]] || fail "--threads '$threads' is not a whole number above 0"
[[ -z $corpus ]] || corpus=$(realpath -m "$corpus")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
binary=${SWITCHYARD_BIN:-build/switchyard}
config=configs/lpr_tiny/qwen3_moe.json
shards=data/corpus_bytes
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

# name, overrides of the configuration.
variants=(
  "softmax_topk"
  "softmax_topk_balance router.balance_coef=0.01"
  "sigmoid_group router.type=sigmoid_group"
  "quantile router.type=quantile"
  "quantile_ema router.type=quantile router.bias_ema=0.9"
  "lpr router.type=lpr router.align_weight=0.1"
  "lpr_quantile router.type=lpr router.reg_coef=0.1 router.bias=quantile router.bias_ema=0.9"
  "lpr_dot_quantile router.type=lpr router.similarity=dot router.reg_coef=0.1 router.bias=quantile router.bias_ema=0.9"
)

chosen=()
for variant in "${variants[@]}"; do
  if [[ ${variant%% *} =~ $only ]]; then chosen+=("$variant"); fi
done
((${#chosen[@]})) || fail "--only '$only' fits no router"

[[ -x $binary ]] || fail "$binary: no such program; cmake --build --preset cpu --target switchyard makes it"
for domain in prose reference technical legal code; do
  for split in train:train validation:val; do
    has_split "$shards/$domain" "${split#*:}" && continue
    [[ -n $corpus ]] || fail "no tokens in $shards/$domain yet: give --corpus DIR"
    do_it "$python" tools/prepare_data.py --input "$corpus/c4-${split%:*}.$domain.json.gz" --tokenizer bytes \
      --out "$shards/$domain" --split-name "${split#*:}" --resume
  done
done

runs=()
for variant in "${chosen[@]}"; do
  read -ra words <<< "$variant"
  for seed in $seeds; do
    run=$out/${words[0]}_seed$seed
    runs+=("$run")
    state=$(progress "$run")
    say "${words[0]}, seed $seed: $state"
    command=("$binary" train "$config" --out "$run" --set "train.seed=$seed" --set "parallel.threads=$threads")
    for override in "${words[@]:1}"; do command+=(--set "$override"); done
    [[ $state == new ]] || command+=(--resume auto)
    [[ $state == finished ]] || do_it "${command[@]}"
    if [[ ! $run/eval.json -nt $run/checkpoints/latest ]]; then
      do_it "$binary" eval "$run" --threads "$threads" --max-tokens "$eval_tokens" --json "$run/eval.json"
    fi
  done
done

say "table"
do_it "$python" tools/report.py "${runs[@]}" --markdown --out "$out/report.html"
do_it "$python" tools/seed_means.py "${runs[@]}"
