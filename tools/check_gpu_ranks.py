#!/usr/bin/env python3
"""Checks two ranks on devices of this machine: they train as one rank does, to the same bits each time and by rows, and end where one is killed.

    tools/check_gpu_ranks.py --binary build-cuda/switchyard --devices 1

With one device both compute on it, which NCCL 2.30 and newer allow where NCCL_MULTI_RANK_GPU_ENABLE=1 is set, and which NVIDIA
calls experimental. Exit code 3 and a line where they cannot. Tiny models, random tokens. Standard library alone.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from bench_gpu_steps import ROOT, SMOKE, read_steps, settings
from bench_report import make_shard

LIMIT = 120  # seconds that a run may take
GONE = 60  # seconds in which all are gone after one is killed
STEPS = 6
# One rank adds the same numbers in another order; float32, steps that each start from weights which differ already.
NEAR = 1e-3
TIMES = {"tokens_per_second", "wall_time", "train_seconds", "memory_bytes", "product_rate_share", "step_seconds", "seconds",
         "memory_bytes_by_rank", "wait_seconds", "exchange_seconds"}


def stop(code, line):
    print(line)
    sys.exit(code)


class Runs:
    def __init__(self, args, directory):
        self.args, self.directory = args, directory
        self.shared = args.devices < 2
        self.environment = dict(os.environ)
        if self.shared:
            self.environment |= {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_MAX_CTAS": "4"}
        shard = os.path.join(directory, "data", "train.bin")
        make_shard(shard, SMOKE["model.vocab_size"])
        self.overrides = {**SMOKE, "data.train": [shard], "data.validation": [], "train.eval_every": 0, "train.dtype": "float32",
                          "train.micro_batch_size": 1, "train.global_batch_size": 4}

    def start(self, name, ranks, steps, **changes):
        command = [self.args.binary, "train", os.path.join(ROOT, "configs", "qwen3_moe_0.6b.json"), "--device", "cuda", "--out",
                   os.path.join(self.directory, name), *settings({**self.overrides, "train.steps": steps, "checkpoint.every": 2, **changes})]
        if ranks > 1:
            command += ["--nproc", str(ranks), "--set", f"parallel.expert={ranks}"]
        return subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, text=True, errors="replace")

    def finish(self, process, limit):
        try:
            return process.communicate(timeout=limit)[1]
        except subprocess.TimeoutExpired:
            process.kill()  # the system ends its ranks
            process.communicate()
            return None

    def run(self, name, ranks, **changes):
        process = self.start(name, ranks, STEPS, **changes)
        said = self.finish(process, LIMIT)
        if said is None:
            stop(1, f"{ranks} ranks have not ended after {LIMIT} s")
        if process.returncode != 0:
            line = next((line for line in said.splitlines() if "error" in line), f"exit code {process.returncode}")
            stop(3 if process.returncode == 2 and ranks > 1 else 1, f"{ranks} ranks: {line.removeprefix('error: ')}")
        return said

    def steps(self, name):
        return read_steps(os.path.join(self.directory, name, "metrics.jsonl"))

    def weights(self, name):
        latest = pathlib.Path(self.directory, name, "checkpoints", "latest")
        return {path.name: path.read_bytes() for path in sorted(latest.glob("*.safetensors"))}


def children(process):
    return [int(word) for word in pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def check_killed(runs):
    """-> seconds until all were gone."""
    process = runs.start("killed", 2, 1_000_000)
    end = time.monotonic() + LIMIT
    while process.poll() is None and len(runs.steps("killed")) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    ranks = children(process) if process.poll() is None else []
    if len(ranks) != 2 or len(runs.steps("killed")) < 3:
        runs.finish(process, 0)
        stop(1, "two ranks that were to be killed have not come to step 3")
    os.kill(ranks[1], signal.SIGKILL)
    start = time.monotonic()
    said = runs.finish(process, GONE)
    if said is None:
        stop(1, f"{GONE} s after one of two ranks was killed the other is there")
    left = [rank for rank in ranks if os.path.exists(f"/proc/{rank}")]
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    if process.returncode != 1 or left or len(errors) != 1 or "was killed by signal 9" not in errors[0]:
        stop(1, f"after one of two ranks was killed: exit code {process.returncode}, processes {left}, {errors}")
    print(errors[0])
    return time.monotonic() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True, help="the switchyard executable")
    parser.add_argument("--devices", type=int, required=True, help="that there are")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        runs = Runs(args, directory)
        runs.run("one", 1)
        recorded = "replayed as a CUDA graph" in runs.run("two_1", 2)
        runs.run("two_2", 2)  # names of one length: ranks tell each other paths, whose bytes are counted
        one, two, again = (runs.steps(name) for name in ("one", "two_1", "two_2"))
        far = max(abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(one, two))
        print(f"losses of one rank {[step['loss'] for step in one]}\nlosses of two {[step['loss'] for step in two]}")
        if len(two) != STEPS or not far <= NEAR:
            stop(1, f"losses of two ranks are {far:.1e} from those of one, {NEAR:.0e} is the most")
        without_times = [[{key: value for key, value in step.items() if key not in TIMES} for step in steps] for steps in (two, again)]
        if json.dumps(without_times[0]) != json.dumps(without_times[1]) or runs.weights("two_1") != runs.weights("two_2"):
            stop(1, "two ranks that do the same again end in other bits")
        runs.run("two_3", 2, **{"parallel.token_exchange": "rows"})
        if runs.weights("two_1") != runs.weights("two_3"):
            stop(1, "two ranks end in other bits where tokens go by rows")
        if not recorded:
            stop(1, "two ranks did not record their exchanges")
        seconds = check_killed(runs)
    where = "two ranks on one card (experimental)" if runs.shared else "two ranks on two cards"
    print(f"{where}: losses of one rank to {far:.0e}, same bits again and by rows, recorded; one killed: all gone after {seconds:.0f} s")


if __name__ == "__main__":
    main()
