#!/usr/bin/env bash
# Which router balances without losing quality: trains one very small model (configs/lpr_tiny) with each of several
# routers on the same data, with three seeds, evaluates every run and prints means, standard errors and paired
# differences (configs/sweeps/lpr_tiny.json). What is done is not done again; a run that was interrupted goes on. Most of
# a minute a run on one core.
#
#   scripts/compare_routers.sh --corpus DIR [options of `switchyard sweep`: --only '^lpr', --seeds 1,2, --jobs 2, --dry-run]
#
#   --corpus DIR     what tools/debian_corpus.py makes, or c4-train.DOMAIN.json.gz and c4-validation.DOMAIN.json.gz of
#                    prose, reference, technical, legal and code (or set CORPUS); needed until the tokens are in data/corpus_bytes
#   --out DIR        where the runs go (default: runs/lpr_tiny)
#
# PYTHON: the interpreter for the tools (default: python3).
set -euo pipefail
usage() { sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
fail() {
  echo "compare_routers: $*" >&2
  exit 2
}

corpus=${CORPUS-} out="" options=() dry=false
while (($#)); do
  case $1 in
    --corpus | --out)
      (($# > 1)) || fail "$1 needs a value"
      case $1 in
        --corpus) corpus=$2 ;;
        --out) out=$2 ;;
      esac
      shift 2
      ;;
    --dry-run) dry=true; options+=("$1"); shift ;;
    -h | --help) usage; exit 0 ;;
    *) options+=("$1"); shift ;;
  esac
done
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
shards=data/corpus_bytes
[[ -n $out ]] || out=runs/lpr_tiny

[[ -x $binary ]] || fail "$binary: no such program; cmake --build --preset cpu --target switchyard makes it"
for domain in prose reference technical legal code; do
  for split in train:train validation:val; do
    file=$corpus/c4-${split%:*}.$domain.json.gz
    if has_split "$shards/$domain" "${split#*:}"; then
      [[ -z $corpus ]] || refuse_other_input "$shards/$domain" "${split#*:}" "$file"
      continue
    fi
    [[ -n $corpus ]] || fail "no tokens in $shards/$domain yet: give --corpus DIR"
    do_it "$python" tools/prepare_data.py --input "$file" --tokenizer bytes \
      --out "$shards/$domain" --split-name "${split#*:}" --resume
  done
done

sweep_and_report configs/sweeps/lpr_tiny.json
