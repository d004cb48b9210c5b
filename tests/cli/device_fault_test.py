"""Ranks on devices that break in the middle of a run: all processes are gone within a minute, one line says which rank and
where, `latest` is a whole checkpoint, and the resumed run ends in the bits of one that was not disturbed.

What a rank does on its host breaks at a mark (tests/faults.cpp); the stand-in for NCCL breaks as tests/simt says. CTest sets
SWITCHYARD_DEVICE_FAULTS, the program with tests/faults.cpp and the emulator's devices.
"""

import concurrent.futures
import json
import os
import re
import subprocess
import unittest

import harness
import mpi_test
from harness import CliTest

FAULTS = os.environ.get("SWITCHYARD_DEVICE_FAULTS", "")
DEVICE_BINARY = os.environ.get("SWITCHYARD_DEVICE_BIN", "")
GONE = 60  # seconds in which everyone is gone, whatever happens
STEPS, EVERY = 4, 2
PATIENCE = 3  # seconds; four times that before the first step


def fault(rank, step, place, kind, nth=1):
    return {"SWITCHYARD_FAULT": f"rank={rank},step={step},place={place},nth={nth},kind={kind}"}


# Ranks; what breaks; the line; the newest checkpoint. The first micro-batch of step 1 is recorded, the others are replayed, so
# that what a layer does has marks in step 1 alone.
BROKEN = {
    "killed while it records": (4, fault(2, 1, "backward of layer", "kill"),
                                r"rank 2 .*killed by signal 9 .*step 1, backward of layer 0; no checkpoint", None),
    "throws while it records": (4, fault(3, 1, "forward of layer", "throw"), r"rank 3: .*\(step 1, forward of layer 0\)", None),
    "killed while others wait on their devices": (2, fault(0, 3, "sum of gradients", "kill"),
                                                  r"rank 0 .*killed by signal 9 .*step 3, sum of gradients; the last .*000002", 2),
    "is stopped": (2, fault(1, 3, "optimizer", "stop"), r"rank 1 .*is stopped, for \d+ s, during step 3, optimizer", 2),
    # Who only waits is not to be named: rank 1 waits on its device for rank 0.
    "hangs": (2, fault(0, 3, "sum of gradients", "hang"), r"rank 0 .*come no further for \d+ s, during step 3, sum of gradients", 2),
    # A device that hangs in the middle of what is replayed: by the exchange that it has not come to.
    "hangs on its device": (2, {"SIMT_NCCL_HANGS_AFTER": "110@1", "SIMT_NCCL_PATIENCE": "120"},
                            r"all ranks wait .* the one behind is rank 1 .*step [34], exchange of devices \d+; the last", 2),
    "has no memory left": (2, fault(1, 3, "optimizer", "no_memory"), r"rank 1: out of memory \(step 3, optimizer\)", 2),
    # Whoever ended a communicator would hang: nobody does.
    "meets an error of NCCL, and ending NCCL hangs": (
        2, {"SIMT_NCCL_REMOTE_ERROR_AFTER": "110@1", "SIMT_NCCL_REMOTE_ERROR_RETURNS": "1", "SIMT_NCCL_ABORT_HANGS": "1"},
        r"rank 1: NCCL [0-9.]+ has met 'remote .*\(step [34], ", 2),
    "hangs in the start of NCCL": (2, {"SIMT_NCCL_INIT_HANGS_ON": "1"},
                                   r"all ranks wait for each other, .*none is behind.*before the first step, start of NCCL", None),
}


@unittest.skipIf(harness.SANITIZED, "takes too long under the sanitizers")
@unittest.skipUnless(FAULTS and DEVICE_BINARY != harness.BINARY, "this binary's devices are not the emulator's")
class FaultsOnDevices(CliTest):
    # Work is done when it is waited for, as on a device: then a rank that waits is found in that place.
    environment = {**harness.environment(), "SIMT_DEVICES": "4", "SIMT_STREAMS": "lazy", "OMP_NUM_THREADS": "1"}

    def setUp(self):
        super().setUp()
        model = {**harness.QWEN3_MOE, "num_hidden_layers": 1}
        self.config = self.write_config(model=model, train__steps=STEPS, train__seq_len=8, train__micro_batch_size=1,
                                        train__global_batch_size=4, train__eval_every=0, data__validation=None,
                                        checkpoint__every=EVERY, parallel__threads=1, parallel__patience=PATIENCE, parallel__expert=2)

    def train(self, ranks, out, *more, **variables):
        return subprocess.run([FAULTS, "train", self.config, "--out", out, "--nproc", str(ranks), "--device", "cuda", *more],
                              cwd=self.dir, env={**self.environment, **variables}, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, check=False, timeout=GONE)

    def test_others_are_seen_to_wait_for_a_rank_that_comes_late(self):
        """By two seconds, in the third step. The other one has nothing to do meanwhile: not even half of it may be missing."""
        run = self.train(2, "late", **fault(1, 3, "sum of gradients", "nap"))
        self.assertEqual(run.returncode, 0, run.stderr)
        third = json.loads((self.dir / "late" / "metrics.jsonl").read_text().splitlines()[2])
        spent = third["exchange_seconds"]
        self.assertGreater(spent["largest"] - spent["least"], 1)
        self.assertAlmostEqual(spent["mean"], (spent["least"] + spent["largest"]) / 2)
        self.assertGreater(third["wait_seconds"][0], 1)

    def break_one(self, name, whole):
        ranks, variables, line, newest = BROKEN[name]
        out = name.replace(" ", "_")
        patience = 2 if newest is None else PATIENCE
        run = self.train(ranks, out, "--set", f"parallel.patience={patience}", **variables)
        said = f"{name}: exit code {run.returncode}\n{run.stderr}"
        self.assertEqual(harness.processes_of(out, self.config), [], said)
        self.assertEqual(run.returncode, 1, said)
        errors = [each for each in run.stderr.splitlines() if each.startswith("error:")]
        self.assertEqual(len(errors), 1, said)
        self.assertRegex(errors[0], line, said)
        kept = [path.name for path in self.checkpoints(out)]
        self.assertEqual(kept, [f"step_{newest:06d}"] if newest else [], said)
        if newest is None:
            return
        resumed = self.train(ranks, out, "--resume", "auto")
        self.assertEqual(resumed.returncode, 0, resumed.stderr)
        self.assertEqual(self.weights(out), whole, f"{name}: the resumed run ends in other bits")

    def test_one_line_no_process_and_a_whole_checkpoint(self):
        done = self.train(2, "whole")
        self.assertEqual(done.returncode, 0, done.stderr)
        whole = self.weights("whole")
        with concurrent.futures.ThreadPoolExecutor(len(BROKEN)) as pool:  # most of them wait for most of their time
            for name, future in [(name, pool.submit(self.break_one, name, whole)) for name in BROKEN]:
                with self.subTest(name):
                    future.result()

    def test_a_signal_to_one_rank_ends_all_with_a_checkpoint(self):
        run = self.train(2, "run", **fault(1, 3, "sum of gradients", "sigterm"))
        self.assertEqual(run.returncode, 128 + 15, run.stderr)
        self.assertNotIn("error:", run.stderr)
        self.assertEqual(self.latest("run").name, "step_000003")

    @mpi_test.HAS_MPI
    @mpi_test.HAS_MPIRUN
    def test_under_mpirun(self):
        run = mpi_test.launch([mpi_test.MPIRUN, "--oversubscribe", "--bind-to", "none", "-n", "2", FAULTS, "train", self.config, "--out",
                               "run", "--device", "cuda"],
                              {**self.environment, **fault(1, 3, "sum of gradients", "kill")}, self.dir)
        self.assertEqual(harness.processes_of("run", self.config), [], run.stderr)
        errors = [each for each in run.stderr.splitlines() if each.startswith("error:")]
        self.assertEqual(len(errors), 1, run.stderr)
        # What rank 1 was last heard of may be older than where it was killed.
        self.assertRegex(errors[0], r"rank 1 .*ended without a word, last heard of")
        self.assertEqual(self.latest("run").name, "step_000002")


if __name__ == "__main__":
    harness.main()
