# shellcheck shell=bash
# What scripts share that prepare data, train and may be called again. Sourced, from the repository's root.

say() { printf '\n== %s\n' "$*"; }

# seen_from DIRECTORY PATH: prints PATH, which is relative to where we are, relative to the directory if it lies in it.
seen_from() {
  local path
  path=$(realpath -ms "$2")
  echo "${path#"$1"/}"
}

# has_split DIRECTORY SPLIT: prepare_data.py names a split in meta.json once its shards are whole.
has_split() {
  python3 - "$1/meta.json" "$2" << 'PYTHON'
import json, os, sys
path, split = sys.argv[1:]
sys.exit(not (os.path.exists(path) and split in json.load(open(path))["splits"]))
PYTHON
}

# made_of_other_input DIRECTORY SPLIT FILE: prints what a split that is there was made of, where that is not FILE as it is
# now. A meta.json of earlier tools has the paths alone.
made_of_other_input() {
  PYTHONPATH=tools python3 -B - "$1/meta.json" "$2" "$3" << 'PYTHON'
import json, os, sys
from documents import fingerprint
path, split, file = sys.argv[1:]
made = json.load(open(path))["splits"][split] if os.path.exists(path) else {}
if [os.path.realpath(each) for each in made.get("inputs", [file])] != [os.path.realpath(file)]:
    print(", ".join(made["inputs"]))
elif os.path.exists(file) and made.get("fingerprints", [fingerprint(file)]) != [fingerprint(file)]:
    print(made["inputs"][0], "before that was changed")
PYTHON
}

# refuse_other_input DIRECTORY SPLIT FILE: ends the script where the tokens that are there are of another text.
refuse_other_input() {
  local other
  other=$(made_of_other_input "$@")
  [[ -z $other ]] || fail "$1: split $2 was made of $other, not of $3; remove the directory to make it anew, or leave --corpus out"
}

# progress RUN: prints "new", "finished" or "step N of M", from the run's own configuration and its latest checkpoint.
progress() {
  python3 - "$1" << 'PYTHON'
import json, os, re, sys
run = sys.argv[1]
if not os.path.exists(f"{run}/config.json"):
    sys.exit(print("new"))
steps = json.load(open(f"{run}/config.json"))["train"]["steps"]
latest = re.search(r"step_(\d+)$", os.path.realpath(f"{run}/checkpoints/latest"))
done = int(latest[1]) if latest else 0
print("finished" if done >= steps else f"step {done} of {steps}")
PYTHON
}

# do_it COMMAND...: runs it, or shows it where $dry is true.
# shellcheck disable=SC2154  # dry is the script's
do_it() {
  if $dry; then
    printf ' %q' "$@" | sed 's/^ //'
    echo
  else
    "$@"
  fi
}

# sweep_and_report SPEC: the sweep, and the page of what it has; where runs have failed, of the others, and its exit code.
# shellcheck disable=SC2154  # binary, python, out and options are the script's
sweep_and_report() {
  local status=0 runs=()
  "$binary" sweep "$1" --out "$out" "${options[@]}" || status=$?
  ((status < 2)) || return $status
  for run in "$out"/*_seed*; do
    if $dry || [[ -s $run/metrics.jsonl ]]; then runs+=("$run"); fi
  done
  if ((${#runs[@]})); then
    do_it "$python" tools/report.py "${runs[@]}" --out "$out/report.html"
  fi
  return $status
}
