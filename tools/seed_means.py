#!/usr/bin/env python3
"""Test loss, Gini and min-max of runs that differ in the seed alone: each seed, and the mean over them.

Runs are grouped by name: what comes before `_seedN`. They need an eval.json each (`switchyard eval RUN --json
RUN/eval.json`), over the same number of tokens.
"""

import argparse
import re
import sys

import figures
from console import UserError
from run_metrics import is_number, load_runs

# What eval.json says, and how many digits a mean has.
COLUMNS = (("test loss", "loss", 4), ("Gini", "gini", 3), ("min-max", "min_max", 3))


def grouped(runs):
    """{name: [(seed, final figures)]}, in the order in which the names first appear."""
    groups, tokens = {}, None
    for run in runs:
        name = re.fullmatch(r"(.+)_seed(\d+)", run.path.resolve().name)
        if not name:
            raise UserError(f"{run.path}: the name does not end in _seedN; runs of several seeds are told apart by it")
        final = run.final()
        if not run.evaluation or not all(is_number(final[key]) for _, key, _ in COLUMNS):
            raise UserError(f"{run.path}: no eval.json with loss and balance; "
                            "switchyard eval RUN --json RUN/eval.json writes it")
        if tokens is None:
            tokens = final["tokens"]
        if final["tokens"] != tokens:
            raise UserError(f"{run.path}: judged on {final['tokens']} tokens, the first run on {tokens}; evaluate all alike")
        groups.setdefault(name[1], []).append((int(name[2]), final))
    return groups, tokens


def rows(groups):
    """Header and [cells] a group; the loss is also shown against the first group's mean."""
    header = ["router", "seeds"]
    for title, _, _ in COLUMNS:
        header += [title, "each seed"]
        if title == "test loss":
            header.append("against the first")
    table, first_loss = [], None
    for name, members in groups.items():
        members = sorted(members, key=lambda member: member[0])
        cells = [name, " ".join(str(seed) for seed, _ in members)]
        for title, key, digits in COLUMNS:
            values = [final[key] for _, final in members]
            mean = sum(values) / len(values)
            cells += [f"{mean:.{digits}f}", " ".join(f"{value:.{digits}f}" for value in values)]
            if title == "test loss":
                first_loss = first_loss or mean
                cells.append(f"{100 * (mean / first_loss - 1):+.2f} %")
        table.append(cells)
    return header, table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN_seedN", help="a run directory")
    arguments = parser.parse_args()
    try:
        groups, tokens = grouped(load_runs(arguments.runs))
    except UserError as error:
        print(f"seed_means.py: {error}", file=sys.stderr)
        return 2
    print(figures.markdown_table(*rows(groups)))
    print(f"judged on {tokens:,} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
