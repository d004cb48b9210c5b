"""Faults of the real program: a rank of a training run is broken at a step and a place, in one of many ways, while it starts,
trains, or goes on from a checkpoint. Every time all processes are gone within a minute, one line says which rank and where,
`latest` is a whole checkpoint, and the resumed run ends in the bits of one that was not disturbed.

A test run does a few; python3 tests/cli/ranks_fault_test.py --faults 200 --seed 1 [--launcher mpirun] [--jobs 3] does so many
at random. CTest sets SWITCHYARD_FAULTS (the program with tests/faults.cpp) and SWITCHYARD_MPI_RANKS (empty in a build without
MPI).
"""

import argparse
import collections
import concurrent.futures
import contextlib
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import unittest

import harness
from harness import BINARY, ROOT, SANITIZED, CliTest, environment, processes_of
from mpi_test import HAS_MPI, HAS_MPIRUN, LAUNCHERS, MPIRUN, launch, mpi_environment

FAULTS = os.environ.get("SWITCHYARD_FAULTS", str(ROOT / "build" / "tests" / "switchyard_faults"))
GONE = 60  # seconds in which everyone is gone, whatever happens
STEPS, EVERY = 8, 2  # a checkpoint every second step
RESUMED_AT = 4       # the checkpoint that resumed runs go on from
PATIENCE = 3
KINDS = ("kill", "stop", "hang", "throw", "exit", "sigterm", "full_disk", "no_memory")
PLACES = ("forward of layer", "classifier", "backward of layer", "sum of gradients", "optimizer", "exchange",
          "evaluation batch", "checkpoint file", "reading back of checkpoint file")
START = ("configuration", "which run it is", "opening of domain", "memory of the model", "run directory", "exchange",
         "looking for the token of the run directory")
NEW, OLD = START + ("initial weights",), START + ("checksum of checkpoint file", "reading of weights", "reading of moments")
# Where ranks that mpirun has started do not know each other yet, nor has the monitor heard of them.
MEETING = ("start of MPI", "meeting of the ranks")
# Exit codes where the system ends the rank. mpirun reports how that rank ended, or, if it comes first, how another did.
DEATHS = {"kill": {1, 137}, "exit": {1, 3}, "sigterm": {1, 143}}


class Fault(collections.namedtuple("Fault", "ranks rank step place nth kind resumed launcher", defaults=(False, "--nproc"))):
    """Step 0: before the first."""

    def variable(self):
        return f"rank={self.rank},step={self.step},place={self.place},nth={self.nth},kind={self.kind}"


def any_fault(rng, launcher):
    ranks = rng.choice((2, 2, 3, 4))
    when = rng.choice(("training", "training", "training", "start", "resumed start", "resumed training"))
    resumed = when.startswith("resumed")
    nth, kind = rng.randrange(1, 3), rng.choice(KINDS)
    if when.endswith("training"):
        step, place = rng.randrange(RESUMED_AT + 1 if resumed else 1, STEPS - 1), rng.choice(PLACES)
    else:
        step, place = 0, rng.choice((OLD if resumed else NEW) + (MEETING if launcher == "mpirun" else ()))
        nth = rng.randrange(1, 12) if place == "exchange" else 1
        if place in MEETING and kind == "full_disk":
            kind = "kill"  # MPI itself writes files, and says in its own way that it cannot
    return Fault(ranks, rng.randrange(ranks), step, place, nth, kind, resumed, launcher)


class Campaign:
    """Runs in one directory that has data, a configuration, and a whole run for each number of ranks."""

    def __init__(self, directory, config):
        self.dir, self.config = pathlib.Path(directory), config
        self.lock = threading.Lock()
        self.numbers = 0
        self.slowest = 0.0
        self.whole = {}

    def command(self, ranks, out, *more, launcher="--nproc", binary=BINARY, **variables):
        """The command, ended. Whatever is left after so long is killed, and subprocess.TimeoutExpired raised."""
        train = [binary, "train", self.config, "--out", out, *more]
        clean = {key: value for key, value in environment().items() if not key.startswith(LAUNCHERS)}
        if launcher == "mpirun":
            train = [MPIRUN, "--oversubscribe", "--bind-to", "none", "-n", str(ranks), *train]
        else:
            train += ["--nproc", str(ranks)]
        try:
            with mpi_environment() if launcher == "mpirun" else contextlib.nullcontext({}) as of_mpi:
                return subprocess.run(train, cwd=self.dir, env={**clean, **of_mpi, "OMP_NUM_THREADS": "1", **variables},
                                      stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=GONE)
        except subprocess.TimeoutExpired:
            for process in processes_of(out, "train"):
                os.kill(process, signal.SIGKILL)
            raise

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

    def copy_to_resume(self, ranks, out):
        """A run of which no checkpoint is newer than RESUMED_AT."""
        shutil.copytree(self.dir / f"whole{ranks}", self.dir / out, symlinks=True)
        checkpoints = self.dir / out / "checkpoints"
        for step in range(RESUMED_AT + EVERY, STEPS + 1, EVERY):
            shutil.rmtree(checkpoints / f"step_{step:06d}")
        for name in ("latest", "best"):
            (checkpoints / name).unlink(missing_ok=True)
        (checkpoints / "latest").symlink_to(f"step_{RESUMED_AT:06d}")

    def suffer(self, fault):
        """Raises AssertionError where one of the promises is not kept. The line that was printed, if one was."""
        whole = self.whole_run(fault.ranks)
        with self.lock:
            self.numbers += 1
            out = f"run{self.numbers}of{os.getpid()}"
        more = ()
        if fault.resumed:
            self.copy_to_resume(fault.ranks, out)
            more = ("--resume", "auto")
        begin = time.monotonic()
        try:
            run = self.command(fault.ranks, out, *more, launcher=fault.launcher, binary=FAULTS, SWITCHYARD_FAULT=fault.variable())
        except subprocess.TimeoutExpired as expired:
            raise AssertionError(f"{fault}: still there after {GONE} s\n{expired.stderr}") from expired
        everything = f"{fault}\nexit code {run.returncode} after {time.monotonic() - begin:.1f} s\n{run.stderr}"

        def require(condition, what):
            if not condition:
                raise AssertionError(f"{what}\n{everything}")

        # mpirun may be gone a moment before the ranks that it has killed are.
        while processes_of(out, "train") and time.monotonic() < begin + GONE:
            time.sleep(0.1)
        seconds = time.monotonic() - begin
        require(processes_of(out, "train") == [], "processes are left")
        fired = re.search(r"(?m)^fault: (?:step (\d+)|before the first step), (.*)$", run.stderr)
        require(fired, "the fault did not happen")
        step = int(fired[1] or 0)
        line = self.check_end(fault, run, step, fired[2], require)

        checkpoints = self.dir / out / "checkpoints"
        kept = max(RESUMED_AT if fault.resumed else 0, (step - 1) // EVERY * EVERY)  # the newest that was whole before
        if kept > 0 or (checkpoints / "latest").exists():
            latest = (checkpoints / "latest").resolve()
            require(int(latest.name[5:]) >= kept, "a checkpoint is lost")
            opened = subprocess.run([BINARY, "inspect", str(latest)], capture_output=True, text=True, check=False, timeout=GONE)
            require(opened.returncode == 0, f"the checkpoint is not whole: {opened.stderr}")
        resumed = self.command(fault.ranks, out, "--resume", "auto", launcher=fault.launcher)
        require(resumed.returncode == 0, f"cannot be resumed: {resumed.stderr}")
        require(self.weights(out) == whole, "the resumed run ends in other bits")
        shutil.rmtree(self.dir / out)
        with self.lock:
            self.slowest = max(self.slowest, seconds)
        return line

    @staticmethod
    def check_end(fault, run, step, place, require):
        """The exit code, and the one line of error, which it returns."""
        errors = [line for line in run.stderr.splitlines() if line.startswith("error:")]
        if fault.kind == "sigterm" and step > 0:
            require(errors == [] and run.returncode == 128 + 15, "not as it should be after a signal")
            return None
        by_mpirun = fault.launcher == "mpirun"
        if by_mpirun and fault.kind in DEATHS:
            require(run.returncode in DEATHS[fault.kind], "another exit code")
            # Before the first step nothing holds up mpirun when it ends the ranks that are left, and so it may be the only one
            # to say how it came.
            if step == 0 and errors == []:
                named = rf"process rank {fault.rank} |Process name: \[\[\d+,1\],{fault.rank}\]"
                if fault.kind != "exit" or place != "start of MPI":  # then it knows no more than the code
                    require(re.search(named, run.stderr), "nobody names the rank")
                return None
        else:
            require(run.returncode == (2 if fault.kind == "full_disk" else 1), "another exit code")
        require(len(errors) == 1, "not one line of error")
        line = errors[0]
        if fault.kind == "full_disk" and fault.rank == 0 and "rank" not in line:
            # What rank 0 finds before the first step, as a process alone says it.
            require(step == 0 and "File too large" in line, "a line without the cause")
            return line
        if place in MEETING and fault.kind in ("hang", "stop"):
            require(re.search(rf"rank {fault.rank}\b|MPI has not started", line), "a line without the rank")
            return line
        require(re.search(rf"rank {fault.rank}\b", line) or (fault.kind == "hang" and place.startswith("exchange") and
                                                             "all ranks wait" in line), "a line without the rank")
        where = rf"step {step}\b" if step > 0 else "before the first step"
        # What a full disk spoils is written later, and mpirun's ranks are known by what they have said last.
        if fault.kind == "full_disk" or (by_mpirun and fault.kind in ("kill", "exit", "sigterm", "stop")):
            where = r"step \d+\b|before the first step"
        require(re.search(where, line), "a line without the step")
        return line


class Workplace(CliTest):
    def make_campaign(self):
        self.assertTrue(os.access(FAULTS, os.X_OK), f"{FAULTS} is not there; build it, or set SWITCHYARD_FAULTS")
        config = self.write_config(parallel__threads=1, parallel__patience=PATIENCE, train__steps=STEPS, train__eval_every=2,
                                   train__global_batch_size=8, checkpoint__every=EVERY, checkpoint__keep=0)
        return Campaign(self.dir, config)


    def suffer(self, faults):
        campaign = self.make_campaign()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:  # most of them wait for most of their time
            for fault, future in [(fault, pool.submit(campaign.suffer, fault)) for fault in faults]:
                with self.subTest(fault=fault):
                    future.result()


class Faults(Workplace):
    def test_a_few(self):
        self.suffer([Fault(2, 1, 3, "backward of layer", 2, "kill"), Fault(2, 0, 5, "optimizer", 1, "exit"),
                     Fault(2, 1, 4, "forward of layer", 1, "throw"), Fault(2, 0, 4, "sum of gradients", 1, "no_memory"),
                     Fault(2, 0, 3, "backward of layer", 1, "hang"), Fault(2, 1, 5, "classifier", 1, "stop"),
                     Fault(2, 1, 3, "forward of layer", 1, "sigterm"), Fault(2, 1, 4, "optimizer", 1, "full_disk"),
                     Fault(2, 1, 4, "checkpoint file", 1, "kill"), Fault(2, 0, 4, "reading back of checkpoint file", 1, "throw"),
                     Fault(2, 1, 0, "opening of domain", 1, "kill"), Fault(2, 0, 0, "exchange", 1, "no_memory"),
                     Fault(2, 1, 0, "reading of moments", 1, "throw", resumed=True)])


@unittest.skipIf(SANITIZED, "MPI itself leaks")
@HAS_MPI
@HAS_MPIRUN
class FaultsUnderMpirun(Workplace):
    def test_a_few(self):
        self.suffer([Fault(2, 1, 3, "backward of layer", 2, "kill", launcher="mpirun"),
                     Fault(2, 1, 0, "meeting of the ranks", 1, "throw", launcher="mpirun"),
                     Fault(2, 1, 0, "reading of weights", 1, "kill", resumed=True, launcher="mpirun")])

    def test_two_builds_that_differ_do_not_train_together(self):
        """The program with faults in it, where none happens, is another build."""
        config = self.write_config()
        run = launch([MPIRUN, "--oversubscribe", "--bind-to", "none", "-n", "1", BINARY, "train", config, "--out", "run", ":",
                      "-n", "1", FAULTS, "train", config, "--out", "run"], directory=self.dir)
        self.assertEqual(run.returncode, 2, run.stdout + run.stderr)
        errors = [line for line in run.stderr.splitlines() if line.startswith("error:")]
        self.assertEqual(errors, ["error: the program of rank 1 is not that of rank 0; start the same build everywhere"])
        self.assertFalse((self.dir / "run").exists())


def run_campaign(arguments):
    class Place(Workplace):
        def runTest(self):
            pass

    place = Place()
    place.setUp()
    campaign = place.make_campaign()
    rng = random.Random(arguments.seed)
    faults = [any_fault(rng, arguments.launcher) for _ in range(arguments.faults)]
    begin, failed, done = time.monotonic(), 0, collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {pool.submit(campaign.suffer, fault): fault for fault in faults}
        for future in concurrent.futures.as_completed(futures):
            fault = futures[future]
            try:
                line = future.result()
                done[fault.kind] += 1
                if arguments.verbose:
                    print(fault.variable(), "resumed" if fault.resumed else "", "->", line, flush=True)
            except AssertionError as error:
                failed += 1
                print(f"FAILED: {error}\n", flush=True)
    print(f"{len(faults)} faults in {time.monotonic() - begin:.0f} s, {failed} failed; the longest run was gone after "
          f"{campaign.slowest:.1f} s; passed: {', '.join(f'{done[kind]} {kind}' for kind in KINDS)}; "
          f"{sum(fault.step == 0 for fault in faults)} before the first step, {sum(fault.resumed for fault in faults)} of a "
          "resumed run")
    place.doCleanups()
    return 1 if failed else 0


if __name__ == "__main__":
    if "--faults" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--faults", type=int)
        parser.add_argument("--seed", type=int, default=1)
        parser.add_argument("--launcher", choices=("--nproc", "mpirun"), default="--nproc")
        parser.add_argument("--jobs", type=int, default=3)
        parser.add_argument("--verbose", action="store_true")
        sys.exit(run_campaign(parser.parse_args()))
    harness.main()
