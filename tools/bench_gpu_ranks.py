#!/usr/bin/env python3
"""Measures what several GPUs of one machine gain: strong and weak scaling of training steps, and the rate of each exchange.

    tools/bench_gpu_ranks.py --binary build-cuda/switchyard --exchange build-cuda/bench_exchange --devices 8

With N ranks a step has 2 N micro-batches. Weak: N ranks over one rank with 2, tokens/s a rank. Strong: over one rank with all
2 N. `waits` is the share of a step in which a rank waited for others, its host or its device (metrics.jsonl), `in_exchanges` the
share that its device was in exchanges, which waits are a part of, and `exchanges` the share that its bytes take at the rates
measured first, as if nothing else ran meanwhile. Standard library alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

import run_config
from bench_gpu_steps import ROOT, SMOKE, attempt
from bench_report import make_shard

CONFIG = "configs/qwen3_moe_0.6b.json"
MICRO_BATCHES = 2  # of a rank and step
SIZES = (32, 16, 8, 4)  # sequences of a micro-batch, tried from the first on
WEAK_BAR = 0.85  # of N times one, where the experts are divided among all, and there are 8
WAIT_BAR = 0.10
# By which of the exchanges that are measured each kind of traffic goes.
GOES_BY = {"gradients": "sum to owners, in order", "weights": "all-gather of unequal parts", "tokens": "exchange of tokens"}


def counts_of_ranks(devices):
    return sorted({n for n in (2, 4, 8) if n <= devices} | {devices})


def measure_exchanges(args, ranks, directory):
    path = os.path.join(directory, "exchange.json")
    done = subprocess.run([args.exchange, "--nproc", str(ranks), "--json", path, *(["--smoke"] if args.smoke else [])],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=args.limit, check=False)
    print(done.stdout, end="")
    if done.returncode != 0:
        sys.exit(f"{args.exchange} ended with exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    with open(path) as file:
        return json.load(file)


class Bench:
    def __init__(self, args, directory, known):
        self.args, self.alone = args, {int(count): value for count, value in known["alone"].items()}
        shard = os.path.join(directory, "data", "train.bin")
        vocab = SMOKE["model.vocab_size"] if args.smoke else run_config.read(os.path.join(ROOT, CONFIG))["model"]["vocab_size"]
        make_shard(shard, vocab)
        self.overrides = {**(SMOKE if args.smoke else {}), "data.train": [shard], "data.validation": [], "train.eval_every": 0}
        self.size = known["size"]

    def steps(self, ranks, micro_batches, size, expert=1):
        overrides = {**self.overrides, "parallel.expert": expert}
        return attempt(self.args.binary, "cuda", CONFIG, overrides, size, 1 if self.args.smoke else self.args.steps, self.args.limit,
                       ranks, micro_batches)

    def find_size(self):
        """The largest micro-batch that one rank has memory for, by which all are measured."""
        for size in (2,) if self.args.smoke else SIZES:
            steps, why = self.steps(1, MICRO_BATCHES, size)
            if steps is not None:
                self.size, self.alone[MICRO_BATCHES] = size, speed(steps)
                return
            print(f"one rank, micro-batch {size}: {why}")
        sys.exit("one rank has no figure")

    def speed_alone(self, micro_batches):
        """Tokens/s of one rank; None where so many micro-batches take too long."""
        if micro_batches not in self.alone:
            steps, why = self.steps(1, micro_batches, self.size)
            if steps is None:
                print(f"one rank with {micro_batches} micro-batches: {why}")
            self.alone[micro_batches] = speed(steps) if steps else None
        return self.alone[micro_batches]

    def case(self, ranks, expert, exchanges):
        result = {"ranks": ranks, "expert": expert, "micro_batch": self.size}
        steps, why = self.steps(ranks, ranks * MICRO_BATCHES, self.size, expert)
        if steps is None:
            return result | {"error": why}
        together = speed(steps)
        seconds = [step["tokens"] / step["step"] / step["tokens_per_second"] for step in steps]
        rate = {row["what"]: row["bytes_per_second"] for row in exchanges["rows"]}
        sent = [sum(step["sent_bytes"][kind] / ranks / rate[what] for kind, what in GOES_BY.items()) for step in steps]
        strong_base = self.speed_alone(ranks * MICRO_BATCHES)
        result |= {"tokens_per_second": together, "weak": together / ranks / self.speed_alone(MICRO_BATCHES),
                   "strong": together / ranks / strong_base if strong_base else None,
                   "waits": statistics.median(sum(step["wait_seconds"]) / ranks / each for step, each in zip(steps, seconds)),
                   "in_exchanges": statistics.median(step["exchange_seconds"]["mean"] / each for step, each in zip(steps, seconds)),
                   "exchanges": statistics.median(took / each for took, each in zip(sent, seconds))}
        for step in steps:
            for kind, ideal in step["ideal_bytes"].items():
                if step["sent_bytes"][kind] != ideal:
                    return result | {"error": f"{kind}: {step['sent_bytes'][kind]} bytes were sent, the formula says {ideal}"}
        if not self.args.smoke and ranks == 8 and expert == 8:
            result["bars"] = {"weak": WEAK_BAR, "waits": WAIT_BAR}
            result["reached"] = result["weak"] >= WEAK_BAR and result["waits"] < WAIT_BAR
        return result


def speed(steps):
    return statistics.median(step["tokens_per_second"] for step in steps)


def shown(strong):
    return "without a figure" if strong is None else f"{strong:.2f}"


def show(case):
    name = f"{case['ranks']} ranks, expert {case['expert']}, micro-batch {case['micro_batch']}: "
    if "tokens_per_second" in case:
        name += (f"{case['tokens_per_second']:.0f} tokens/s, weak {case['weak']:.2f}, strong {shown(case['strong'])}, "
                 f"waits {case['waits']:.0%}, in exchanges {case['in_exchanges']:.0%}, moving bytes {case['exchanges']:.0%}")
    if "reached" in case:
        name += f"; weak >= {WEAK_BAR}, waits < {WAIT_BAR:.0%} {'reached' if case['reached'] else 'MISSED'}"
    print(name + (f"  FAILED: {case['error']}" if "error" in case else ""), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="the switchyard executable")
    parser.add_argument("--exchange", required=True, help="bench_exchange")
    parser.add_argument("--devices", type=int, required=True, help="that there are; at least 2")
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--limit", type=int, default=100, help="seconds that one run may take")
    parser.add_argument("--json", help="write the figures to a file as well")
    parser.add_argument("--smoke", action="store_true", help="tiny models: to see that it runs; no measurement")
    parser.add_argument("--keep", action="store_true", help="with --json: what is in that file is not measured again")
    args = parser.parse_args()
    if args.keep and not args.json:
        parser.error("--keep needs --json")
    results = {"measured": not args.smoke, "exchanges": [], "cases": [], "size": None, "alone": {}}
    if args.keep and os.path.exists(args.json):
        with open(args.json) as file:
            results = json.load(file)
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(args, directory, results)

        def write():  # after each, since a stage's time may end
            results.update(size=bench.size, alone=bench.alone)
            if args.json:
                with open(args.json + ".partial", "w") as file:
                    json.dump(results, file, indent=1)
                os.replace(args.json + ".partial", args.json)

        for ranks in counts_of_ranks(args.devices):
            exchanges = next((one for one in results["exchanges"] if one["ranks"] == ranks), None)
            if exchanges is None:
                exchanges = measure_exchanges(args, ranks, directory)
                results["exchanges"].append(exchanges)
                write()
            if bench.size is None:
                bench.find_size()
            for expert in (1, ranks):
                if (ranks, expert) not in {(case["ranks"], case["expert"]) for case in results["cases"]}:
                    results["cases"].append(bench.case(ranks, expert, exchanges))
                    show(results["cases"][-1])
                    write()
    cases = results["cases"]
    reached = [case["reached"] for case in cases if "reached" in case]
    print("SMOKE: tiny models, no measurement" if args.smoke else
          f"{sum('error' not in case for case in cases)} of {len(cases)} have a figure; {sum(reached)} of {len(reached)} bars reached")
    sys.exit(1 if any("error" in case for case in cases) else 0)


if __name__ == "__main__":
    main()
