"""What measures a GPU, without one: bench_cuda on the emulator runs every case; scripts/gpu_check.sh goes through its
stages with binaries that it is given, says what failed and goes on.

CTest sets SWITCHYARD_BENCH_CUDA, SWITCHYARD_BENCH_EXCHANGE and SWITCHYARD_DEVICE_BIN.
"""

import json
import os
import pathlib
import subprocess
import unittest

import harness
from harness import ROOT, CliTest

BENCH_CUDA = os.environ.get("SWITCHYARD_BENCH_CUDA", "")
BENCH_EXCHANGE = os.environ.get("SWITCHYARD_BENCH_EXCHANGE", "")
DEVICE_BINARY = os.environ.get("SWITCHYARD_DEVICE_BIN", "")
SLOW = 10 * harness.TIMEOUT


@unittest.skipUnless(BENCH_CUDA, "SWITCHYARD_BENCH_CUDA is not set")
class BenchCuda(CliTest):
    def bench(self, *options):
        return subprocess.run([BENCH_CUDA, *options], cwd=self.dir, text=True, capture_output=True, timeout=SLOW,
                              env=harness.environment())

    def test_every_case_runs(self):
        done = self.bench("--smoke", "--json", "kernels.json")
        if done.returncode == 2 and "CUDA device" in done.stderr:
            self.skipTest(done.stderr.strip())
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertRegex(done.stdout, "EMULATED|SMOKE")
        kernels = json.loads((self.dir / "kernels.json").read_text())
        self.assertFalse(kernels["measured"])
        self.assertGreater(len(kernels["cases"]), 90)
        for case in kernels["cases"]:
            self.assertGreater(case["milliseconds"], 0, case)
            self.assertGreater(case["gb_per_second"], 0, case)
            self.assertEqual("flop" in case["kernel"] or "linear" in case["kernel"] or "attention" in case["kernel"] or
                             "classifier" in case["kernel"] or "product" in case["kernel"], case["tflops"] > 0, case)
        # Every kernel that has a bar: attention, grouped products, norms, rotation, permutation, AdamW.
        barred = {case["kernel"].split("_")[0] for case in kernels["cases"] if "bar" in case}
        self.assertEqual(barred, {"attention", "grouped", "rmsnorm", "layernorm", "rope", "moe", "adamw"})

    def test_nothing_is_measured_on_the_emulator(self):
        done = self.bench("--only", "rmsnorm")
        if "emulator" not in done.stderr:
            self.skipTest("this program is not built for the emulator")
        self.assertEqual(done.returncode, 2, done.stdout + done.stderr)


class GpuCheck(CliTest):
    def setUp(self):
        super().setUp()
        self.bundle = self.dir / "bundle"
        (self.bundle / "bin").mkdir(parents=True)
        self.program("switchyard", 'echo "switchyard of a test"')
        self.program("bench_cuda", "echo nothing; exit 7")
        self.program("cuda_test", 'echo "[  PASSED  ] 12 tests."')

    def program(self, name, script):
        path = self.bundle / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def check(self, only, *options, code=0, **variables):
        """-> the summary's stages by name, and its text."""
        done = subprocess.run([str(ROOT / "scripts" / "gpu_check.sh"), "--from", str(self.bundle), "--out",
                               str(self.dir / "out"), "--only", only, *options], text=True, capture_output=True,
                              timeout=SLOW, env={**harness.environment(), **variables})
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        summary = json.loads((self.dir / "out" / "summary.json").read_text())
        text = (self.dir / "out" / "summary.txt").read_text()
        self.assertTrue(done.stdout.endswith(text), done.stdout)
        return {stage["stage"]: stage for stage in summary["stages"]}, text

    def test_a_stage_that_fails_hides_no_other(self):
        stages, _ = self.check("kernels,tests", code=1)
        self.assertEqual(stages["build"]["result"], "ok")
        self.assertEqual(stages["tests"]["result"], "ok")
        self.assertEqual(stages["tests"]["remark"], "12 tests passed")
        self.assertEqual(stages["kernels"]["result"], "failed")

    def test_a_stage_has_a_time_limit(self):
        self.program("bench_cuda", "sleep 600")
        stages, _ = self.check("kernels,tests", "--limit", "2", code=1)
        self.assertEqual(stages["kernels"]["result"], "time limit")

    def test_tests_that_ran_nowhere_are_skipped_and_not_passed(self):
        # As GoogleTest prints it where an environment is skipped.
        self.program("cuda_test", 'echo "[  SKIPPED ] no CUDA device can be used"; echo "[  PASSED  ] 132 tests."')
        stages, _ = self.check("tests")
        self.assertEqual(stages["tests"]["result"], "skipped")
        self.assertIn("no CUDA device", stages["tests"]["remark"])

    def test_what_failed_is_named_and_runs_without_a_device_are_no_success(self):
        self.program("cuda_test", 'echo "[  FAILED  ] A.b (0 ms)"; echo "[  FAILED  ] A.c (0 ms)"; exit 1')
        # What it says of runs on the CPU stays as it is.
        self.program("switchyard", 'case "$*" in *"--device cuda"*)'
                     '  echo "error: --device cuda: no CUDA device can be used" >&2; exit 2;; esac\n'
                     f'exec "{harness.BINARY}" "$@"')
        stages, _ = self.check("tests,cli", code=1)
        self.assertEqual((stages["tests"]["result"], stages["cli"]["result"]), ("failed", "skipped"))
        self.assertEqual(stages["tests"]["remark"], "2 tests failed, the first: A.b")
        self.assertIn("no CUDA device", stages["cli"]["remark"])

    @unittest.skipIf(harness.SANITIZED, "whole steps take too long under the sanitizers")
    @unittest.skipUnless(BENCH_CUDA and DEVICE_BINARY, "SWITCHYARD_BENCH_CUDA and SWITCHYARD_DEVICE_BIN are not set")
    def test_kernels_and_steps_on_the_emulator(self):
        self.program("bench_cuda", f'exec "{BENCH_CUDA}" --only rope "$@"')
        self.program("switchyard", f'exec "{DEVICE_BINARY}" "$@"')
        if DEVICE_BINARY == harness.BINARY:
            self.skipTest("this program is not built for the emulator")
        stages, text = self.check("kernels,steps", "--smoke")
        self.assertEqual({stage["result"] for stage in stages.values()}, {"ok"}, text)
        self.assertIn("no measurement", text)
        runs = json.loads((self.dir / "out" / "steps.json").read_text())
        self.assertEqual([run["name"] for run in runs], ["qwen3_moe_0.6b", "32_layers", "6_of_32_layers"])
        for run in runs:
            self.assertEqual(run["refused"], [])
            self.assertNotIn("reached", run)  # of a tiny model
            self.assertAlmostEqual(run["utilisation"], 3 * run["flops_per_token"] * run["tokens_per_second"] /
                                   json.loads((self.dir / "out" / "kernels.json").read_text())["product_flops"])

    def use_emulated_ranks(self):
        if DEVICE_BINARY == harness.BINARY:
            self.skipTest("this program is not built for the emulator")
        self.program("switchyard", f'exec "{DEVICE_BINARY}" "$@"')
        self.program("bench_exchange", f'exec "{BENCH_EXCHANGE}" "$@"')

    @unittest.skipIf(harness.SANITIZED, "whole runs take too long under the sanitizers")
    @unittest.skipUnless(BENCH_EXCHANGE and DEVICE_BINARY, "SWITCHYARD_BENCH_EXCHANGE and SWITCHYARD_DEVICE_BIN are not set")
    def test_ranks_and_scaling_on_the_emulator(self):
        self.use_emulated_ranks()
        stages, text = self.check("ranks,scaling", "--smoke", SIMT_DEVICES="2")
        self.assertEqual({stage["result"] for stage in stages.values()}, {"ok"}, text)
        self.assertRegex(stages["ranks"]["remark"], "alone by NCCL: same bits, recorded too; two ranks on two cards: losses of one rank "
                                                    r"to \S+, same bits again, recorded; one killed: all gone after \d+ s")
        scaling = json.loads((self.dir / "out" / "scaling.json").read_text())
        self.assertFalse(scaling["measured"])
        self.assertEqual([(case["ranks"], case["expert"]) for case in scaling["cases"]], [(2, 1), (2, 2)])
        for case in scaling["cases"]:
            self.assertNotIn("reached", case)
            self.assertGreater(min(case["weak"], case["strong"], case["exchanges"], case["in_exchanges"]), 0, case)
        (exchange,) = scaling["exchanges"]
        self.assertEqual([row["what"] for row in exchange["rows"]],
                         ["NCCL's all-gather", "all-gather", "all-gather of unequal parts", "exchange of tokens",
                          "sum to owners, in order", "sum to owners, NCCL's", "sum on all, NCCL's", "all-gather of 4 KiB"])

    @unittest.skipIf(harness.SANITIZED, "whole runs take too long under the sanitizers")
    @unittest.skipUnless(BENCH_EXCHANGE and DEVICE_BINARY, "SWITCHYARD_BENCH_EXCHANGE and SWITCHYARD_DEVICE_BIN are not set")
    def test_two_ranks_on_one_card_are_an_experiment_of_newer_versions(self):
        self.use_emulated_ranks()
        stages, _ = self.check("ranks,scaling", "--smoke", SIMT_DEVICES="1", SIMT_NCCL_VERSION="22907")
        self.assertEqual((stages["ranks"]["result"], stages["scaling"]["result"]), ("ok", "skipped"))
        self.assertRegex(stages["ranks"]["remark"], "two ranks skipped: 2 ranks: --nproc 2: .* has 1 CUDA device for 2 ranks")
        self.assertEqual(stages["scaling"]["remark"], "CUDA devices: 1; several are wanted")
        stages, _ = self.check("ranks", "--smoke", SIMT_DEVICES="1", SIMT_NCCL_VERSION="23001")
        self.assertRegex(stages["ranks"]["remark"], r"two ranks on one card \(experimental\): .*all gone after")

    def test_no_nccl_is_no_failure(self):
        self.program("cuda_test", 'echo "cuda_device_group_test.cpp:7: Skipped"; echo "there is no NCCL here"; '
                     'echo "[  SKIPPED ] CudaDeviceGroup.A (0 ms)"; echo "[  PASSED  ] 0 tests."')
        stages, _ = self.check("ranks")
        self.assertEqual((stages["ranks"]["result"], stages["ranks"]["remark"]), ("skipped", "there is no NCCL here"))

    def test_an_unknown_stage_is_refused(self):
        done = subprocess.run([str(ROOT / "scripts" / "gpu_check.sh"), "--only", "speed"], text=True, capture_output=True)
        self.assertEqual(done.returncode, 2)
        self.assertIn("--only speed", done.stderr)


class Steps(CliTest):
    def test_too_little_memory_is_reported_and_less_is_tried(self):
        """A program that has no memory for more than four sequences."""
        fake = self.dir / "switchyard"
        fake.write_text("""#!/usr/bin/env python3
import json, os, sys, time
given = dict(a.split("=", 1) for a in sys.argv if "=" in a)
if int(given["train.micro_batch_size"]) > 4:
    sys.exit("error: too little memory: the run needs 9 MiB on a card")
out = sys.argv[sys.argv.index("--out") + 1]
os.makedirs(out)
with open(os.path.join(out, "metrics.jsonl"), "w") as file:
    for step in range(6):
        speed = 1.0 if step < 3 else 200.0 + step
        file.write(json.dumps({"tokens_per_second": speed, "flops_per_token": 5e9, "loss": 1.0}) + "\\n")
time.sleep(600)
""")
        fake.chmod(0o755)
        kernels = self.dir / "kernels.json"
        kernels.write_text('{"measured": true, "product_flops": 1e13}')
        done = subprocess.run([str(ROOT / "tools" / "bench_gpu_steps.py"), "--binary", str(fake), "--steps", "3", "--only",
                               "qwen3_moe_0.6b", "--kernels", str(kernels), "--json", "steps.json"], text=True,
                              capture_output=True, cwd=self.dir, timeout=SLOW)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        (run,) = json.loads(pathlib.Path(self.dir / "steps.json").read_text())
        self.assertEqual([refused["micro_batch"] for refused in run["refused"]], [32, 16, 8])
        self.assertIn("too little memory", run["refused"][0]["reason"])
        self.assertEqual((run["micro_batch"], run["tokens_per_second"]), (4, 204.0))  # steps 3 to 5, not the warm-up
        self.assertAlmostEqual(run["utilisation"], 3 * 5e9 * 204 / 1e13)
        self.assertFalse(run["reached"])
        self.assertIn("45 % MISSED", done.stdout)


if __name__ == "__main__":
    unittest.main()
