"""Faults of the real program: a rank of a training run is broken at a step and a place, in one of many ways. Every time all
processes are gone within a minute, one line says which rank and where, `latest` is a whole checkpoint, and the resumed run
ends in the bits of one that was not disturbed.

A test run does a few; python3 tests/cli/ranks_fault_test.py --faults 200 --seed 1 [--jobs 3] does so many at random.
CTest sets SWITCHYARD_FAULTS (the program with tests/faults.cpp).
"""

import argparse
import collections
import concurrent.futures
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import harness
from harness import BINARY, ROOT, CliTest, environment

FAULTS = os.environ.get("SWITCHYARD_FAULTS", str(ROOT / "build" / "tests" / "switchyard_faults"))
GONE = 60  # seconds in which everyone is gone, whatever happens
STEPS, EVERY = 8, 2  # a checkpoint every second step
PATIENCE = 3
KINDS = ("kill", "stop", "hang", "throw", "exit", "sigterm", "full_disk", "no_memory")
PLACES = ("forward of layer", "classifier", "backward of layer", "sum of gradients", "optimizer", "exchange",
          "evaluation batch", "checkpoint file", "reading back of checkpoint file")


class Fault(collections.namedtuple("Fault", "ranks rank step place nth kind")):
    def variable(self):
        return f"rank={self.rank},step={self.step},place={self.place},nth={self.nth},kind={self.kind}"


def any_fault(rng):
    ranks = rng.choice((2, 2, 3, 4))
    step = rng.randrange(1, STEPS - 2)
    return Fault(ranks, rng.randrange(ranks), step, rng.choice(PLACES), rng.randrange(1, 3), rng.choice(KINDS))


class Campaign:
    """Runs in one directory that has data, a configuration, and a whole run for each number of ranks."""

    def __init__(self, directory, config):
        self.dir, self.config = pathlib.Path(directory), config
        self.lock = threading.Lock()
        self.numbers = 0
        self.slowest = 0.0
        self.whole = {}

    def command(self, ranks, out, *more, binary=BINARY, **variables):
        return subprocess.run([binary, "train", self.config, "--out", out, "--nproc", str(ranks), *more], cwd=self.dir,
                              env={**environment(), "OMP_NUM_THREADS": "1", **variables}, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, check=False, timeout=GONE)

    def weights(self, out):
        latest = (self.dir / out / "checkpoints" / "latest").resolve()
        if latest.name != f"step_{STEPS:06d}":
            raise AssertionError(f"{out} ends with {latest.name}")
        return {path.name: path.read_bytes() for path in sorted(latest.glob("*.safetensors"))}

    def whole_run(self, ranks):
        with self.lock:
            if ranks not in self.whole:
                run = self.command(ranks, f"whole{ranks}")
                if run.returncode != 0:
                    raise AssertionError(run.stderr)
                self.whole[ranks] = self.weights(f"whole{ranks}")
            return self.whole[ranks]

    def alive(self, out):
        """Processes that were started for this run, by their command line."""
        found = []
        for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes().split(b"\0")
            except OSError:
                continue
            if out.encode() in words and b"train" in words:
                found.append(int(entry.parent.name))
        return found

    def suffer(self, fault):
        """Raises AssertionError where one of the promises is not kept. The line that was printed, if one was."""
        whole = self.whole_run(fault.ranks)
        with self.lock:
            self.numbers += 1
            out = f"run{self.numbers}of{os.getpid()}"
        begin = time.monotonic()
        try:
            run = self.command(fault.ranks, out, binary=FAULTS, SWITCHYARD_FAULT=fault.variable())
        except subprocess.TimeoutExpired as expired:
            raise AssertionError(f"{fault}: still there after {GONE} s\n{expired.stderr}") from expired
        seconds = time.monotonic() - begin
        everything = f"{fault}\nexit code {run.returncode} after {seconds:.1f} s\n{run.stderr}"

        def require(condition, what):
            if not condition:
                raise AssertionError(f"{what}\n{everything}")

        require(self.alive(out) == [], "processes are left")
        fired = re.search(r"(?m)^fault: (?:step (\d+)|before)", run.stderr)
        require(fired, "the fault did not happen")
        errors = [line for line in run.stderr.splitlines() if line.startswith("error:")]
        line = None
        if fault.kind == "sigterm":
            require(errors == [] and run.returncode == 128 + 15, "not as it should be after a signal")
        else:
            require(len(errors) == 1, "not one line of error")
            line = errors[0]
            require(run.returncode == (2 if fault.kind == "full_disk" else 1), "another exit code")
            require(re.search(rf"rank {fault.rank}\b", line) or (fault.kind == "hang" and fault.place == "exchange" and
                                                                 "all ranks wait" in line), "a line without the rank")
            # What a full disk spoils is written later.
            step = r"\d+" if fault.kind == "full_disk" else fired[1]
            require(re.search(rf"step {step}\b", line), "a line without the step")

        checkpoints = self.dir / out / "checkpoints"
        kept = (int(fired[1]) - 1) // EVERY * EVERY  # the newest checkpoint that was whole before
        if kept > 0 or (checkpoints / "latest").exists():
            latest = (checkpoints / "latest").resolve()
            require(int(latest.name[5:]) >= kept, "a checkpoint is lost")
            opened = subprocess.run([BINARY, "inspect", str(latest)], capture_output=True, text=True, check=False, timeout=GONE)
            require(opened.returncode == 0, f"the checkpoint is not whole: {opened.stderr}")
        resumed = self.command(fault.ranks, out, "--resume", "auto")
        require(resumed.returncode == 0, f"cannot be resumed: {resumed.stderr}")
        require(self.weights(out) == whole, "the resumed run ends in other bits")
        shutil.rmtree(self.dir / out)
        with self.lock:
            self.slowest = max(self.slowest, seconds)
        return line


class Workplace(CliTest):
    def make_campaign(self):
        self.assertTrue(os.access(FAULTS, os.X_OK), f"{FAULTS} is not there; build it, or set SWITCHYARD_FAULTS")
        config = self.write_config(parallel__threads=1, parallel__patience=PATIENCE, train__steps=STEPS, train__eval_every=2,
                                   train__global_batch_size=8, checkpoint__every=EVERY)
        return Campaign(self.dir, config)


class Faults(Workplace):
    def test_a_few(self):
        campaign = self.make_campaign()
        faults = [Fault(2, 1, 3, "backward of layer", 2, "kill"), Fault(2, 0, 5, "optimizer", 1, "exit"),
                  Fault(2, 1, 4, "forward of layer", 1, "throw"), Fault(2, 0, 4, "sum of gradients", 1, "no_memory"),
                  Fault(2, 0, 3, "backward of layer", 1, "hang"), Fault(2, 1, 5, "classifier", 1, "stop"),
                  Fault(2, 1, 3, "forward of layer", 1, "sigterm"), Fault(2, 1, 4, "optimizer", 1, "full_disk"),
                  Fault(2, 1, 4, "checkpoint file", 1, "kill"), Fault(2, 0, 4, "reading back of checkpoint file", 1, "throw")]
        with concurrent.futures.ThreadPoolExecutor(2) as pool:  # most of them wait for most of their time
            for fault, future in [(fault, pool.submit(campaign.suffer, fault)) for fault in faults]:
                with self.subTest(fault=fault):
                    future.result()


def run_campaign(arguments):
    class Place(Workplace):
        def runTest(self):
            pass

    place = Place()
    place.setUp()
    campaign = place.make_campaign()
    rng = random.Random(arguments.seed)
    faults = [any_fault(rng) for _ in range(arguments.faults)]
    begin, failed, done = time.monotonic(), 0, collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {pool.submit(campaign.suffer, fault): fault for fault in faults}
        for future in concurrent.futures.as_completed(futures):
            fault = futures[future]
            try:
                line = future.result()
                done[fault.kind] += 1
                if arguments.verbose:
                    print(fault.variable(), "->", line, flush=True)
            except AssertionError as error:
                failed += 1
                print(f"FAILED: {error}\n", flush=True)
    print(f"{len(faults)} faults in {time.monotonic() - begin:.0f} s, {failed} failed; the longest run was gone after "
          f"{campaign.slowest:.1f} s; passed: {', '.join(f'{done[kind]} {kind}' for kind in KINDS)}")
    place.doCleanups()
    return 1 if failed else 0


if __name__ == "__main__":
    if "--faults" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--faults", type=int)
        parser.add_argument("--seed", type=int, default=1)
        parser.add_argument("--jobs", type=int, default=3)
        parser.add_argument("--verbose", action="store_true")
        sys.exit(run_campaign(parser.parse_args()))
    harness.main()
