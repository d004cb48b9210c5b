"""Which rank computes on which CUDA device, what is refused and said of it, and what ends a rank that waits for its device.

The devices are the emulator's: SIMT_DEVICES of them, as tests/simt says.
"""

import os
import re
import unittest

import harness
import mpi_test
from harness import CliTest

DEVICE_BINARY = os.environ.get("SWITCHYARD_DEVICE_BIN", "")


@unittest.skipUnless(DEVICE_BINARY and DEVICE_BINARY != harness.BINARY, "this binary's devices are not the emulator's")
class DevicesOfRanks(CliTest):
    binary, patience = DEVICE_BINARY, 10

    def config(self, **changes):
        return self.write_config(**{"train__steps": 2, "train__seq_len": 16, "train__micro_batch_size": 1, "train__global_batch_size": 4,
                                    "train__eval_every": 0, "data__validation": None, "checkpoint__every": 2, "parallel__threads": 1,
                                    **changes})

    def run_on(self, devices, *arguments, device="cuda", **variables):
        self.variables = {"SIMT_DEVICES": str(devices), **variables}
        return self.run_binary(*arguments, "--device", device)

    def train(self, devices, ranks, out="run", **more):
        return self.run_on(devices, "train", self.config(), "--out", out, "--nproc", ranks, **more)

    def assert_refused(self, done, line):
        """One line, once, exit code 2, and nothing is left."""
        self.assertEqual(done.code, 2, str(done))
        errors = [each for each in done.err.splitlines() if "error" in each]
        self.assertEqual(len(errors), 1, str(done))
        self.assertRegex(errors[0], line, str(done))
        self.assertFalse((self.dir / "run").exists())

    def assert_goes(self, done, *names):
        self.assertEqual(done.code, 0, str(done))
        for name in names:
            self.assertRegex(done.err, name, str(done))
        return done

    def mpirun(self, devices, *ranks):
        """A rank each of the variables in `ranks`."""
        command = [mpi_test.MPIRUN, "--oversubscribe", "--bind-to", "none"]
        run = [self.binary, "train", str(self.config()), "--out", "run"]
        for i, (device, variables) in enumerate(ranks):
            command += [":"] * (i > 0) + ["-n", "1", "env", f"SIMT_DEVICES={devices}",
                                          *(f"{name}={value}" for name, value in variables.items()), *run, "--device", device]
        done = mpi_test.launch(command, directory=self.dir)
        return harness.Finished(command, done.returncode, done.stdout, done.stderr)

    # --- which device -------------------------------------------------------------------------------------------------

    def test_each_rank_takes_its_own_and_the_log_says_so(self):
        done = self.assert_goes(self.train(3, 2))
        lines = [line for line in done.err.splitlines() if "GPU" in line]
        self.assertEqual(len(lines), 2, str(done))
        for rank, line in enumerate(lines):
            self.assertRegex(line, rf"rank {rank}: GPU {rank}, the emulator, 0000:{rank + 1}0:00.0(, NUMA node \d+)?, cores [0-9,-]+$")

    def test_evaluation_goes_the_same_way(self):
        self.assert_goes(self.train(2, 2))
        self.variables = {}
        arguments = ("eval", "run", "--data", "data/val.bin", "--json", "-")
        one = self.run_on(1, *arguments)
        two = self.assert_goes(self.run_on(2, *arguments, "--nproc", 2), "rank 1: GPU 1, the emulator")
        loss = re.compile(r'"loss": [0-9.]+')
        self.assertEqual(loss.findall(one.out), loss.findall(two.out))
        self.assertGreater(len(loss.findall(one.out)), 0)
        refused = self.run_on(1, *arguments, "--nproc", 2)
        self.assertEqual(refused.code, 2, str(refused))
        self.assertRegex(refused.err, r"--nproc 2: \S+ has 1 CUDA device for 2 ranks; start 1 rank, or use --device cpu")

    @mpi_test.HAS_MPI
    @mpi_test.HAS_MPIRUN
    def test_a_rank_that_sees_one_device_takes_that(self):
        ranks = [("cuda", {"CUDA_VISIBLE_DEVICES": device}) for device in (1, 0)]
        self.assert_goes(self.mpirun(2, *ranks), r"rank 0: GPU 0, the emulator, 0000:20", r"rank 1: GPU 0, the emulator, 0000:10")

    def test_the_cpu_is_for_as_many_ranks_as_there_are(self):
        done = self.assert_goes(self.train(1, 2, device="cpu"))
        self.assertNotIn("GPU", done.err)

    def test_auto_is_devices_where_there_are_some(self):
        self.assert_goes(self.train(2, 2, device="auto"), "rank 1: GPU 1")

    @mpi_test.HAS_MPI
    @mpi_test.HAS_MPIRUN
    def test_auto_is_the_cpu_for_all_where_one_has_no_device(self):
        done = self.mpirun(2, ("auto", {}), ("auto", {"CUDA_VISIBLE_DEVICES": ""}))
        self.assert_goes(done, r"all ranks compute on the CPU, since not all have a device: rank 1 \(host \S+\): "
                                    "CUDA_VISIBLE_DEVICES, which is \"\", shows no CUDA device")
        self.assertNotIn("GPU", done.err)

    # --- what is refused ----------------------------------------------------------------------------------------------

    def test_fewer_devices_than_ranks(self):
        for device in ("cuda", "auto"):
            self.assert_refused(self.train(2, 4, device=device),
                                r"--nproc 4: \S+ has 2 CUDA devices for 4 ranks; start 2 ranks, or use --device cpu$")

    def test_no_device(self):
        self.assert_refused(self.train(0, 2), "--device cuda: there is no CUDA device on this machine; or use --device cpu$")

    @mpi_test.HAS_MPI
    @mpi_test.HAS_MPIRUN
    def test_ranks_that_differ(self):
        refusals = (
            ("cuda", {"CUDA_VISIBLE_DEVICES": ""}, r"--device cuda: rank 1 \(host \S+\): "
                                    "CUDA_VISIBLE_DEVICES, which is \"\", shows no CUDA device"),
            ("cuda", {"CUDA_VISIBLE_DEVICES": "0,1"}, r"rank 0 \(host \S+\) and rank 1 \(host \S+\) would compute on the same device: GPU 0 "
                                                    r"of \S+, the emulator, 0000:20:00.0; give each rank its own"),
            ("cuda", {"SIMT_NCCL_VERSION": "22703"}, r"rank 0 \(host \S+\) has NCCL 2.28.\d, rank 1 \(host \S+\) has 2.27.3; install one"),
            ("cpu", {}, "--device: cuda for rank 0 and cpu for rank 1; give all ranks the same"),
        )
        for device, variables, line in refusals:
            with self.subTest(line):
                first = {"CUDA_VISIBLE_DEVICES": "1"} if "same device" in line else {}
                self.assert_refused(self.mpirun(2, ("cuda", first), (device, variables)), line)

    def test_fewer_devices_than_ranks_because_of_what_they_are_shown(self):
        self.assert_refused(self.train(2, 2, CUDA_VISIBLE_DEVICES="1"),
                            r"--nproc 2: \S+ has 1 CUDA device for 2 ranks \(CUDA_VISIBLE_DEVICES is 1\); start 1 rank, or use")

    def test_devices_that_are_one(self):
        self.assert_refused(self.train(2, 2, SIMT_SAME_UUID="1"), "has 1 CUDA device for 2 ranks")

    def test_an_old_nccl(self):
        self.assert_refused(self.train(2, 2, SIMT_NCCL_VERSION="21701"),
                            "NCCL 2.17.1 is too old for ranks on devices; install 2.18 or newer, or use --device cpu$")

    # --- what is warned of --------------------------------------------------------------------------------------------

    def test_two_ranks_share_a_device_where_nccl_lets_them_and_it_is_asked_for(self):
        share = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}
        self.assert_refused(self.train(1, 2, **share, SIMT_NCCL_VERSION="22907"), "1 CUDA device for 2 ranks")
        self.assert_refused(self.train(1, 2, SIMT_NCCL_VERSION="23001"), "1 CUDA device for 2 ranks")
        self.assert_goes(self.train(1, 2, **share, SIMT_NCCL_VERSION="23001"),
                         r"rank 0 \(host \S+\) and rank 1 \(host \S+\) share GPU 0 .*experimental")

    def test_devices_that_do_not_reach_each_other(self):
        self.assert_goes(self.train(3, 2, SIMT_NO_PEERS="1"), "GPUs 0 and 1 of .*, of ranks 0 and 1, do not reach each other's memory")

    # --- memory -------------------------------------------------------------------------------------------------------

    def memory(self):
        """What a rank plans for, and what its operators take beside that, in bytes."""
        done = self.assert_goes(self.train(2, 2))
        entry = {name.strip(): float(mib) for name, mib in re.findall(r"  (\w[\w ]+?) +([0-9.]+) MiB$", done.err, re.M)}
        for path in sorted((self.dir / "run").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        (self.dir / "run").rmdir()
        return int((entry["total"] - entry["workspace"]) * 2**20), int(entry["workspace"] * 2**20)

    def test_the_rank_with_least_memory_is_named_before_any_is_taken(self):
        planned, _ = self.memory()
        done = self.train(2, 2, SIMT_DEVICE_BYTES=f"{100 * planned},{planned // 2}")
        self.assert_refused(done, r"error: rank 1 \(host \S+, GPU 1\): too little memory: the run needs [0-9.]+ MiB on the emulator.*, "
                                  rf"of which {planned // 2 / 2**20:.1f} MiB are free")

    def test_memory_that_runs_out_later_is_said_with_what_was_left(self):
        """With as much as is planned for, and no more: what operators take beside that is found out as they run."""
        planned, _ = self.memory()
        # The table's figures are rounded to a tenth of a MiB; the least that is not refused is found to 4 KiB.
        low, high = planned // 2, planned + (1 << 18)
        while high - low > 4096:
            middle = (low + high) // 2
            done = self.train(2, 2, f"run{middle}", SIMT_DEVICE_BYTES=f"{100 * planned},{middle}")
            if done.code == 2:
                low = middle
            else:
                high, last = middle, done
        self.assertEqual(last.code, 1, str(last))
        errors = [line for line in last.err.splitlines() if "error" in line]
        self.assertEqual(len(errors), 1, str(last))
        self.assertRegex(errors[0], r"rank 1: out of device memory: .* needs [0-9.]+ MiB, [0-9.]+ MiB are free; use a smaller model")

    # --- waiting ------------------------------------------------------------------------------------------------------

    def test_an_error_that_the_library_meets_ends_all(self):
        """Seen by a rank that waits for its device, or that waits for another one, which hangs in its own."""
        # Up to call 6 ranks rehearse a step.
        for call, place in ((8, r"step 1, (sum of gradients|exchange of devices \d+)"), (11, "step 1, exchange")):
            with self.subTest(place):
                done = self.train(2, 2, f"run{call}", SIMT_NCCL_REMOTE_ERROR_AFTER=f"{call}@1", SIMT_NCCL_REMOTE_ERROR_RETURNS="1")
                self.assertEqual(done.code, 1, str(done))
                errors = [line for line in done.err.splitlines() if line.startswith("error")]
                self.assertEqual(len(errors), 1, str(done))
                self.assertRegex(errors[0], rf"rank 1: NCCL [0-9.]+ has met 'remote .*' while ranks exchanged: .*\({place}")


if __name__ == "__main__":
    harness.main()
