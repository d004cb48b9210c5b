#!/usr/bin/env python3
"""Measures what several ranks cost and save on one machine, as ratios of runs that take turns; prints a table.

scripts/bench_ranks.sh builds what it needs first. Tokens/s are those of metrics.jsonl, the median of the steps behind the
first one, and of rounds. Memory is the largest resident set of a process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

import run_config
from bench_report import make_shard

WARM_UP = 1  # steps that are not counted


class Case:
    """Two ways to run that take turns, and the ratio that is asked for."""

    def __init__(self, name, bar, base, other, ratio):
        self.name, self.bar, self.base, self.other, self.ratio = name, bar, base, other, ratio


def way(ranks, threads, sequences, **parallel):
    return {"ranks": ranks, "threads": threads, "sequences": sequences, **parallel}


def speed(runs):
    return statistics.median(run["speed"] for run in runs)


def speedup(base, other):
    return speed(other) / speed(base)


def memory(runs):
    return max(run["memory"] for run in runs) / 2**20


def memory_share(base, other):
    return memory(other) / memory(base)


CASES = {
    "experts": Case("2 ranks x 1 thread over 1 rank x 2 threads, expert 2, 16 sequences a step: tokens/s", ">= 0.90",
                    way(1, 2, 16), way(2, 1, 16, expert=2), speedup),
    "data": Case("2 ranks x 1 thread over 1 rank x 2 threads, expert 1, 64 sequences a step: tokens/s", ">= 0.85",
                 way(1, 2, 64), way(2, 1, 64), speedup),
    "weak": Case("weak scaling, 1 to 2 ranks of 1 thread, 16 sequences a rank and step: tokens/s a rank", ">= 0.85",
                 way(1, 1, 16), way(2, 1, 32), lambda base, other: speedup(base, other) / 2),
    "memory": Case("memory of a rank, zero 1, expert 2, over that of one process: 16 sequences a step, 8 of them a rank's", "<= 0.60",
                   way(1, 2, 16, micro=16), way(2, 1, 16, expert=2, zero=1, micro=8), memory_share),
    "memory_4": Case("the same in micro-batches of 4 sequences everywhere", "", way(1, 2, 16), way(2, 1, 16, expert=2, zero=1),
                     memory_share),
    "memory_4_2": Case("the same, one process in micro-batches of 4 and ranks of 2", "", way(1, 2, 16),
                       way(2, 1, 16, expert=2, zero=1, micro=2), memory_share),
    "zero_2": Case("the same with zero 2", "", way(1, 2, 16), way(2, 1, 16, expert=2, zero=2, micro=2), memory_share),
    "four": Case("4 ranks over 2 ranks on the same cores, 32 sequences a step, expert 2: time", "<= 1.5",
                 way(2, 1, 32, expert=2), way(4, 1, 32, expert=2), lambda base, other: 1 / speedup(base, other)),
    "eight": Case("8 ranks over 2 ranks on the same cores, 32 sequences a step, expert 2: time", "<= 1.5",
                  way(2, 1, 32, expert=2), way(8, 1, 32, expert=2), lambda base, other: 1 / speedup(base, other)),
}


def run_once(args, given, directory):
    out = os.path.join(directory, "run")
    subprocess.run(["rm", "-rf", out], check=True)
    settings = {"train.steps": args.steps + WARM_UP, "train.global_batch_size": given["sequences"],
                "parallel.threads": given["threads"], "parallel.expert": given.get("expert", 1),
                "parallel.zero": given.get("zero", 1), "train.dtype": args.dtype, "checkpoint.every_minutes": 0}
    if "micro" in given:
        settings["train.micro_batch_size"] = given["micro"]
    command = [args.binary, "train", args.config, "--out", out]
    if given["ranks"] > 1:
        command += ["--nproc", str(given["ranks"])]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"bench: '{' '.join(command)}' ended with exit code {done.returncode}: {done.stderr[-500:]}")
    with open(os.path.join(out, "metrics.jsonl")) as file:
        steps = [json.loads(line) for line in file][WARM_UP:]
    for step in steps:
        for kind, ideal in step.get("ideal_bytes", {}).items():
            if step["sent_bytes"][kind] != ideal:
                sys.exit(f"bench: {kind}: {step['sent_bytes'][kind]} bytes were sent, the formula says {ideal}")
    memory = steps[-1].get("memory_bytes_by_rank", [steps[-1]["memory_bytes"]])
    waits = [sum(step["wait_seconds"]) / given["ranks"] / (step["tokens"] / step["step"] / step["tokens_per_second"])
             for step in steps if "wait_seconds" in step]
    return {"speed": statistics.median(step["tokens_per_second"] for step in steps), "memory": max(memory),
            "wait": statistics.median(waits) if waits else 0.0}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="the switchyard executable")
    parser.add_argument("--config", default="configs/bench_cpu_86m.json")
    parser.add_argument("--steps", type=int, default=3, help="that are counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="default: all")
    args = parser.parse_args()
    make_shard("data/bench/train.bin", run_config.read(args.config)["model"]["vocab_size"])

    print(f"{args.config}, {args.dtype}, {len(os.sched_getaffinity(0))} cores, medians of {args.rounds} rounds of {args.steps} steps\n")
    print("| | bar | measured | tokens/s | MiB | wait |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        for name in args.cases or CASES:
            case = CASES[name]
            base, other = [], []
            for _ in range(args.rounds):
                base.append(run_once(args, case.base, directory))
                other.append(run_once(args, case.other, directory))
            wait = statistics.median(run["wait"] for run in other)
            print(f"| {case.name} | {case.bar} | {case.ratio(base, other):.2f} | {speed(base):.0f}, {speed(other):.0f} "
                  f"| {memory(base):.0f}, {memory(other):.0f} | {wait:.0%} |", flush=True)


if __name__ == "__main__":
    main()
