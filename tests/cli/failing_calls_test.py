"""Calls of the system that fail, one after another: the n-th write, fsync, rename, open, mmap, allocation of a run.

A test run tries each of the few calls of a kind and an even choice of the many; `--every` tries every one (scripts/torture.sh
--faults). Whatever fails, the program ends with one line of error, or goes on where it can do without; the newest
checkpoint is whole; and the run, resumed, ends in the bits of the run that nothing disturbed.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time
import unittest

import harness
from harness import BINARY, ROOT, CliTest, environment

SHIM = os.environ.get("SWITCHYARD_FAIL_SHIM", str(ROOT / "build" / "tests" / "libfail_shim.so"))
STEPS, EVERY = 4, 2
GONE = 60  # seconds in which a run is over, whatever happens
KINDS = ("write", "fsync", "rename", "open", "open_read", "mmap", "large", "malloc")
MODES = ("once", "from")


class Fault(collections.namedtuple("Fault", "call nth mode ranks child", defaults=("once", 1, None))):
    """child: of several ranks the one whose calls fail. mode flip: a bit of what is written to a checkpoint changes."""

    def variables(self):
        of_child = {} if self.child is None else {"SHIM_CHILD": str(self.child)}
        if self.mode == "flip":
            of_child["SHIM_PATH"] = "/.tmp_step_"
        return {"SHIM_CALL": self.call, "SHIM_N": str(self.nth), "SHIM_MODE": self.mode, **of_child}


class Sweep:
    """Runs in one directory that has data and a configuration."""

    def __init__(self, directory, config):
        self.dir, self.config = pathlib.Path(directory), config
        self.lock = threading.Lock()
        self.numbers = 0
        self.whole = {}
        self.went_on = collections.Counter()  # calls that the program could do without, by kind

    def train(self, out, *more, ranks=1, **variables):
        """`variables`: of the environment."""
        shim = {"LD_PRELOAD": SHIM, **variables} if variables else {}
        nproc = ["--nproc", str(ranks)] if ranks > 1 else []
        return subprocess.run([BINARY, "train", self.config, "--out", out, *nproc, *more], cwd=self.dir, text=True,
                              env={**environment(), "OMP_NUM_THREADS": "1", **shim}, stdin=subprocess.DEVNULL,
                              capture_output=True, check=False, timeout=GONE, errors="replace")

    def files(self, out):
        """What two runs that did the same have alike."""
        run = self.dir / out
        files = {path.name: path.read_bytes() for path in sorted((run / "checkpoints" / "latest").glob("*.safetensors"))}
        # What ranks say to each other at the start is counted to the first step of a process.
        files["steps"] = [{key: value for key, value in harness.without_timing(line).items() if key != "sent_bytes"}
                          for line in self.metrics(run)]
        files["names"] = sorted(entry.name for entry in (run / "checkpoints").iterdir())
        return files

    @staticmethod
    def metrics(run):
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    def whole_run(self, ranks):
        with self.lock:
            if ranks not in self.whole:
                done = self.train(f"whole{ranks}", ranks=ranks)
                if done.returncode != 0:
                    raise AssertionError(done.stderr)
                self.whole[ranks] = self.files(f"whole{ranks}")
            return self.whole[ranks]

    def count(self, call, ranks=1, child=None, mode="once"):
        """How often a run that goes well makes the call."""
        counted = self.dir / f"count_{call}"
        fault = Fault(call, 0, mode, ranks, child)
        done = self.train(f"counted_{call}", ranks=ranks, SHIM_COUNT=str(counted), **fault.variables())
        if done.returncode != 0:
            raise AssertionError(done.stderr)
        shutil.rmtree(self.dir / f"counted_{call}")
        return int(counted.read_text())

    def suffer(self, fault):
        """Raises AssertionError where a promise is not kept."""
        whole = self.whole_run(fault.ranks)
        with self.lock:
            self.numbers += 1
            out = f"run{self.numbers}"
        try:
            run = self.train(out, ranks=fault.ranks, **fault.variables())
        except subprocess.TimeoutExpired as expired:
            raise AssertionError(f"{fault}: still there after {GONE} s\n{expired.stderr}") from expired

        def require(condition, what):
            if not condition:
                raise AssertionError(f"{what}: {fault}\nexit code {run.returncode}\n{run.stdout[-500:]}\n{run.stderr}")

        errors = [line for line in run.stderr.splitlines() if re.match(r"error:|libgomp: ", line)]
        for trace in ("terminate called", "std::", "dumped", "internal error"):
            require(trace not in run.stderr, "not a line for people")
        require(run.returncode in (0, 1, 2), "another exit code")
        require(len(errors) == (run.returncode != 0), "not one line of error")
        checkpoints = self.dir / out / "checkpoints"
        saved = re.findall(r"(?m)^saved (.*)$", run.stdout)
        if saved:
            require((self.dir / saved[-1]).is_dir(), "what was said to be saved is not there")
        if (checkpoints / "latest").exists():
            opened = subprocess.run([BINARY, "inspect", str(checkpoints / "latest")], capture_output=True, text=True,
                                    check=False, timeout=GONE)
            require(opened.returncode == 0, f"the newest checkpoint is not whole: {opened.stderr}")
        else:
            require(not saved, "a checkpoint was saved, and latest names none")
        if fault.mode == "flip":
            require(run.returncode == 2 and re.search(r"/\.tmp_step_\d+/.* read back as", errors[0]), "the flip was not seen")
        if run.returncode == 0:
            self.went_on[fault.call] += 1
            if fault.call == "open_read":
                # One of the kernel's files; of checkpoints that cannot be compared, each has its own.
                warnings = re.findall(r"(?m)^warning: (.*): cannot be (?:read|opened): Too many open files; ", run.stderr)
                require(len(warnings) == 1 or (warnings and all(name.endswith("/run.json") for name in warnings)),
                        "not one line of warning")
        resumed = self.train(out, "--resume", "auto", ranks=fault.ranks)
        require(resumed.returncode == 0, f"cannot be resumed: {resumed.stderr}")
        require(self.files(out) == whole, "the resumed run is not the undisturbed one")
        shutil.rmtree(self.dir / out)
        return errors[0] if errors else "went on"

    def faults(self, call, most, mode="once", ranks=1, child=None):
        """Every n, or `most` of them, evenly spaced, the first and the last among them."""
        count = self.count(call, ranks, child, mode)
        if count == 0:
            raise AssertionError(f"no call of {call} was counted")
        step = max(1.0, (count - 1) / max(1, most - 1))
        chosen = sorted({min(count, 1 + round(i * step)) for i in range(min(count, most))})
        return [Fault(call, nth, mode, ranks, child) for nth in chosen]


@unittest.skipIf(harness.SANITIZED, "the sanitizers have an allocator of their own")
class FailingCalls(CliTest):
    def setUp(self):
        super().setUp()
        self.assertTrue(os.path.exists(SHIM), f"{SHIM} is not there; build fail_shim, or set SWITCHYARD_FAIL_SHIM")
        config = self.write_config(parallel__threads=1, train__steps=STEPS, train__eval_every=2, train__global_batch_size=4,
                                   checkpoint__every=EVERY, checkpoint__keep=1)
        self.sweep = Sweep(self.dir, config)

    def suffer(self, faults):
        failed = []
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(self.sweep.suffer, fault) for fault in faults]:
                try:
                    future.result()
                except AssertionError as error:
                    failed.append(str(error))
        self.assertEqual(len(failed), 0, f"{len(failed)} of {len(faults)} failed; first:\n" + "\n".join(failed[:12]))

    def test_writes(self):
        self.suffer(self.sweep.faults("write", 24) + self.sweep.faults("write", 6, "from"))

    def test_a_flipped_bit_in_a_checkpoint_is_seen_before_it_counts(self):
        self.suffer(self.sweep.faults("write", 16, "flip") + self.sweep.faults("write", 3, "flip", ranks=2, child=1))

    def test_without_verifying_the_line_says_so_and_a_flipped_bit_is_found_by_who_reads(self):
        flip = Fault("write", 1, "flip").variables()  # of the first file in a checkpoint, the weights
        run = self.sweep.train("unread", "--set", "checkpoint.verify=false", "--set", f"train.steps={EVERY}", **flip)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertRegex(run.stdout, rf"(?m)^saved unread/checkpoints/step_{EVERY:06}, not read back$")
        self.assertNotIn("not read back", self.sweep.train("read", "--set", f"train.steps={EVERY}").stdout)
        opened = subprocess.run([BINARY, "inspect", "unread"], cwd=self.dir, capture_output=True, text=True, check=False, timeout=GONE)
        self.assertEqual(opened.returncode, 2, opened.stdout)
        self.assertIn("model.safetensors", opened.stderr)

    def test_fsync(self):
        self.suffer(self.sweep.faults("fsync", 30) + self.sweep.faults("fsync", 4, "from"))

    def test_rename(self):
        self.suffer(self.sweep.faults("rename", 100) + self.sweep.faults("rename", 3, "from"))

    def test_open(self):
        self.suffer(self.sweep.faults("open", 100) + self.sweep.faults("open_read", 12) + self.sweep.faults("open_read", 3, "from"))

    def test_memory(self):
        self.suffer(self.sweep.faults("mmap", 8) + self.sweep.faults("large", 8) + self.sweep.faults("malloc", 16)
                    + self.sweep.faults("malloc", 6, "from"))

    def test_no_memory_amid_a_directory(self):
        """Out of the standard library's walk through one comes no exception that could be caught."""
        def inspect(run, **variables):
            return subprocess.run([BINARY, "inspect", run], cwd=self.dir, text=True, capture_output=True, check=False, timeout=GONE,
                                  env={**environment(), "LD_PRELOAD": SHIM, "SHIM_CALL": "malloc", **variables})

        counts = {}
        for run, steps in (("none", 0), ("many", 200)):
            for step in range(steps + 1):
                (self.dir / run / "checkpoints" / (f"step_{step:06}" if step else "")).mkdir(parents=True)
            counted = self.dir / "count"
            self.assertIn("holds no checkpoint", inspect(run, SHIM_COUNT=str(counted)).stderr)
            counts[run] = int(counted.read_text())
        # Behind the walk each of them is looked into, with more allocations: an eighth is amid the walk. 16 in a row are all
        # those of an entry or two.
        first = counts["none"] + (counts["many"] - counts["none"]) // 8
        for nth in range(first, first + 16):
            for mode in MODES:
                with self.subTest(nth=nth, mode=mode):
                    run = inspect("many", SHIM_N=str(nth), SHIM_MODE=mode)
                    self.assertEqual(run.returncode, 1, run.stderr)
                    self.assertRegex(run.stderr, r"\Aerror: out of memory; .*\n\Z")

    def test_two_ranks(self):
        faults = []
        for call in ("write", "fsync", "open", "malloc"):
            for child in (0, 1):
                faults += self.sweep.faults(call, 3, ranks=2, child=child)
        self.suffer(faults)


def run_sweep(arguments):
    class Place(FailingCalls):
        def runTest(self):
            pass

    place = Place()
    place.setUp()
    begin, failed, tried = time.monotonic(), 0, collections.Counter()
    for call in arguments.calls:
        for mode in (*MODES, "flip") if call == "write" else MODES:
            most = 10**9 if call not in ("malloc", "large") else arguments.allocations
            faults = place.sweep.faults(call, most, mode)
            with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
                futures = {pool.submit(place.sweep.suffer, fault): fault for fault in faults}
                for future in concurrent.futures.as_completed(futures):
                    tried[call] += 1
                    try:
                        line = future.result()
                        if arguments.verbose:
                            print(futures[future].variables(), "->", line, flush=True)
                    except AssertionError as error:
                        failed += 1
                        print(f"FAILED: {error}\n", flush=True)
    what = ", ".join(f"{tried[call]} {call}" for call in arguments.calls)
    print(f"faults: {sum(tried.values())} calls failed ({what}) in {time.monotonic() - begin:.0f} s; the program went on after "
          f"{sum(place.sweep.went_on.values())}; {failed} promises broken")
    place.doCleanups()
    return 1 if failed else 0


if __name__ == "__main__":
    if "--every" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--every", action="store_true", required=True)
        parser.add_argument("--calls", nargs="+", choices=KINDS, default=KINDS)
        parser.add_argument("--allocations", type=int, default=200, help="of malloc and of large, evenly spaced")
        parser.add_argument("--jobs", type=int, default=2)
        parser.add_argument("--verbose", action="store_true")
        sys.exit(run_sweep(parser.parse_args()))
    harness.main()
