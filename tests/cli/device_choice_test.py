"""Which rank computes on which CUDA device, what is refused and said there. The emulator's devices: SIMT_DEVICES of them."""

import os
import subprocess
import unittest

import harness
from harness import CliTest, tiny_config

DEVICE_BINARY = os.environ.get("SWITCHYARD_DEVICE_BIN", "")
EMULATED = bool(DEVICE_BINARY) and DEVICE_BINARY != harness.BINARY


@unittest.skipUnless(EMULATED, "the devices of this binary, if there are any, are not the emulator's")
class DevicesOfRanks(CliTest):
    def config(self, **changes):
        config = tiny_config()
        config["train"].update(steps=1, seq_len=16, micro_batch_size=1, global_batch_size=4, eval_every=0)
        config["data"]["validation"] = []
        return self.write_config(config, **changes)

    def run_on(self, devices, *arguments, device="cuda", **variables):
        environment = {**harness.environment(), "SIMT_DEVICES": str(devices), **variables}
        done = subprocess.run([DEVICE_BINARY, *map(str, arguments), "--device", device], cwd=self.dir, text=True,
                              capture_output=True, env=environment, timeout=10 * harness.TIMEOUT)
        return harness.Finished(list(map(str, arguments)), done.returncode, done.stdout, done.stderr)

    def refused(self, line, *arguments, **more):
        """One line, once, exit code 2, and nothing is left."""
        done = self.run_on(*arguments, **more)
        self.assertEqual(done.code, 2, str(done))
        errors = [each for each in done.err.splitlines() if "error" in each]
        self.assertEqual(len(errors), 1, str(done))
        self.assertRegex(errors[0], line, str(done))
        self.assertFalse((self.dir / "run").exists())
        return done

    def test_each_rank_takes_its_own_and_the_log_says_so(self):
        done = self.run_on(3, "train", self.config(), "--out", "run", "--nproc", 2)
        self.assertEqual(done.code, 0, str(done))
        lines = [line for line in done.err.splitlines() if "GPU" in line]
        self.assertEqual(len(lines), 2, str(done))
        for rank, line in enumerate(lines):
            self.assertRegex(line, rf"rank {rank}: GPU {rank}, the emulator, 0000:{rank + 1}0:00.0(, NUMA node \d+)?, cores [0-9,-]+$")

    def test_evaluation_goes_the_same_way(self):
        self.ok("train", self.config(), "--out", "trained")
        arguments = ("eval", "trained", "--data", "data/val.bin", "--nproc", 2)
        done = self.run_on(2, *arguments)
        self.assertEqual(done.code, 0, str(done))
        self.assertIn("rank 1: GPU 1, the emulator", done.err)
        self.refused("--nproc 2: .* has 1 CUDA device for 2 ranks", 1, *arguments)

    def test_fewer_devices_than_ranks_are_refused(self):
        for device in ("cuda", "auto"):
            self.refused(r"--nproc 4: \S+ has 2 CUDA devices for 4 ranks; start 2 ranks, or use --device cpu$",
                         2, "train", self.config(), "--out", "run", "--nproc", 4, device=device)

    def test_the_cpu_is_for_as_many_ranks_as_there_are(self):
        done = self.run_on(1, "train", self.config(), "--out", "run", "--nproc", 2, device="cpu")
        self.assertEqual(done.code, 0, str(done))
        self.assertNotIn("GPU", done.err)

    def test_versions_of_nccl(self):
        self.refused("NCCL 2.17.1 is too old for ranks on devices; install 2.18 or newer",
                     2, "train", self.config(), "--out", "run", "--nproc", 2, SIMT_NCCL_VERSION="21701")

    def test_two_ranks_share_a_device_where_nccl_lets_them_and_it_is_asked_for(self):
        arguments = ("train", self.config(), "--out", "run", "--nproc", 2)
        self.refused("1 CUDA device for 2 ranks", 1, *arguments, NCCL_MULTI_RANK_GPU_ENABLE="1", SIMT_NCCL_VERSION="22907")
        done = self.run_on(1, *arguments, NCCL_MULTI_RANK_GPU_ENABLE="1", SIMT_NCCL_VERSION="23001")
        self.assertRegex(done.err, r"rank 0 \(host \S+\) and rank 1 \(host \S+\) share GPU 0 .*experimental")


if __name__ == "__main__":
    unittest.main()
