"""A run that is killed at random moments, and resumed until it ends, is the run that nobody killed: no sample is lost or
seen twice, what was said to be saved is there, and the newest checkpoint is whole after every kill.

The loss, the gradient's norm and the experts' loads of each step are compared bit for bit, so that a step with other samples
is seen; metrics.jsonl has each step once. A test run has 20 kills; `--kills N` makes N (scripts/torture.sh --kills N).
"""

import argparse
import json
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
import zlib

import harness
from harness import BINARY, CliTest, environment

STEPS, EVERY = 40, 2
RESUMES = 200  # of one run: a guard against a machine on which no run comes forward


class NotWhole(AssertionError):
    pass


def check_whole(checkpoint):
    """Sizes and sums of its files are those of its manifest, and there are no others."""
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    found = sorted(path.name for path in checkpoint.iterdir())
    if found != sorted([*files, "manifest.json"]):
        raise NotWhole(f"{checkpoint} holds {found}")
    for name, entry in files.items():
        content = (checkpoint / name).read_bytes()
        if (len(content), f"{zlib.crc32(content):08x}") != (entry["bytes"], entry["crc32"]):
            raise NotWhole(f"{checkpoint / name} is not what the manifest says")


class Killing:
    """Runs of one configuration in one directory, one after another."""

    def __init__(self, directory, config, seed):
        self.dir, self.config, self.rng = pathlib.Path(directory), config, random.Random(seed)
        self.kills = self.runs = self.numbers = self.during_save = 0
        begin = time.monotonic()
        done = self.start("whole").communicate()
        self.duration = time.monotonic() - begin  # of an undisturbed run, start included
        self.whole = self.outcome("whole", done)

    def start(self, out):
        return subprocess.Popen([BINARY, "train", self.config, "--out", out, "--resume", "auto"], cwd=self.dir,
                                env={**environment(), "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def outcome(self, out, said):
        run = self.dir / out
        log = (run / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in log.splitlines()]
        if [line["step"] for line in lines] != list(range(1, STEPS + 1)):
            raise AssertionError(f"metrics.jsonl has the steps {[line['step'] for line in lines]}\n{said}")
        latest = run / "checkpoints" / "latest"
        check_whole(latest)
        state = json.loads((latest / "run.json").read_text())
        return {"steps": [harness.without_timing(line) for line in lines],
                "files": {path.name: path.read_bytes() for path in sorted(latest.glob("*.safetensors"))},
                "state": [state[key] for key in ("step", "tokens", "samples", "seed", "updates")],
                "names": sorted(entry.name for entry in (run / "checkpoints").iterdir())}

    def check_after_kill(self, out, said):
        checkpoints = self.dir / out / "checkpoints"
        saved = [int(step) for step in re.findall(r"(?m)^saved .*step_(\d+)$", said)]
        latest = checkpoints / "latest"
        if not latest.exists():
            if saved:
                raise AssertionError(f"step {saved[-1]} was said to be saved, and latest is not there")
            return
        if latest.is_symlink() and saved and int(latest.resolve().name[5:]) < saved[-1]:
            raise AssertionError(f"step {saved[-1]} was said to be saved, latest is {latest.resolve().name}")
        check_whole(latest)
        self.during_save += any(entry.name.startswith(".tmp_") for entry in checkpoints.iterdir())

    def one_run(self, most):
        """A run to its end, killed up to so many times on the way."""
        self.numbers += 1
        out, kills = f"run{self.numbers}", 0
        for _ in range(RESUMES):
            process = self.start(out)
            if kills < most:
                try:
                    said = process.communicate(timeout=self.rng.uniform(0, 0.7) * self.duration)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    said = process.communicate()
            else:
                said = process.communicate(timeout=harness.TIMEOUT)
            if process.returncode == -signal.SIGKILL:
                kills += 1
                self.kills += 1
                self.check_after_kill(out, said[0])
                continue
            if process.returncode != 0:
                raise AssertionError(f"after {kills} kills exit code {process.returncode}\n{said[1]}")
            outcome = self.outcome(out, said[1])
            differ = [key for key, value in self.whole.items() if outcome[key] != value]
            if differ:
                raise AssertionError(f"after {kills} kills the run is not the one that nobody killed: {differ}; it has "
                                     f"{outcome['names']}, {outcome['state']}")
            self.runs += 1
            return
        raise AssertionError(f"not at its end after {RESUMES} resumes")


class Kills(CliTest):
    def killing(self, seed):
        return Killing(self.dir, self.write_config(parallel__threads=1, train__steps=STEPS, train__eval_every=10,
                                                   train__warmup_ratio=0.1, checkpoint__every=EVERY), seed)

    def test_twenty_kills(self):
        killing = self.killing(5)
        while killing.kills < 20:
            killing.one_run(20 - killing.kills)

    def test_a_checkpoint_that_is_not_whole_is_seen(self):
        """The check above would tell."""
        self.killing(1)
        state = next(iter(sorted((self.dir / "whole" / "checkpoints").glob("step_*")))) / "state.safetensors"
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
        with self.assertRaises(NotWhole):
            check_whole(state.parent)


def run_kills(arguments):
    class Place(Kills):
        def runTest(self):
            pass

    place = Place()
    place.setUp()
    begin = time.monotonic()
    killing = place.killing(arguments.seed)
    while killing.kills < arguments.kills:
        killing.one_run(arguments.kills - killing.kills)
        if killing.runs % 10 == 0:
            print(f"{killing.kills} kills, {killing.runs} runs ended as they should", flush=True)
    print(f"kills: {killing.kills} at random moments of {killing.runs} runs in {time.monotonic() - begin:.0f} s, {killing.during_save} "
          "of them while a checkpoint was written; every run ended in the same bits, every checkpoint was whole")
    place.doCleanups()
    return 0


if __name__ == "__main__":
    if "--kills" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--kills", type=int)
        parser.add_argument("--seed", type=int, default=1)
        sys.exit(run_kills(parser.parse_args()))
    harness.main()
