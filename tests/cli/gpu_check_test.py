"""What measures a GPU, without one: bench_cuda on the emulator runs every case; scripts/gpu_check.sh goes through its
stages with binaries that it is given, says what failed and goes on.

CTest sets SWITCHYARD_BENCH_CUDA, SWITCHYARD_BENCH_EXCHANGE, SWITCHYARD_CUDA_TEST and SWITCHYARD_DEVICE_BIN.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import unittest

import harness
from harness import ROOT, CliTest

BENCH_CUDA = os.environ.get("SWITCHYARD_BENCH_CUDA", "")
BENCH_EXCHANGE = os.environ.get("SWITCHYARD_BENCH_EXCHANGE", "")
CUDA_TEST = os.environ.get("SWITCHYARD_CUDA_TEST", "")
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


# A cuda_test of suites A and B: in A, `c` accesses what it must not, after which `d` fails as well, and B is well.
SUITES = """case "$*" in
*--gtest_list_tests*) printf 'Running main()\\nA.\\n  b\\n  c\\n  d\\nB/0.  # TypeParam = float\\n  e\\n'; exit;;
*=A.c|*=A.\\*) ;;
*=A.d) echo "[ RUN      ] A.d"; echo "[       OK ] A.d (1 ms)"; exit;;
*) echo "[ RUN      ] B/0.e"; echo "[       OK ] B/0.e, where TypeParam = float (1 ms)"; exit;;
esac
echo "[ RUN      ] A.b"; echo "[       OK ] A.b (1 ms)"; echo "[ RUN      ] A.c"
[ -z "$CUDA_LAUNCH_BLOCKING" ] || { echo 'C++ exception with description "CUDA: rope: an illegal memory access" thrown in the test body.'; exit 1; }
kill -SEGV $$"""
# A bench_cuda of five cases: the second ends what its process can do, the fourth the process.
CASES = """import json, os, sys
def value(name, otherwise):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else otherwise
names = ["zero", "one", "two", "three", "four"]
if "--list" in sys.argv:
    sys.exit(print(*[f"rows {name}" for name in names], sep="\\n"))
begin = int(value("--skip", 0))
cases = [{"kernel": "product"}, {"kernel": "copy"}]
for name in names[begin:begin + int(value("--count", 9))]:
    if name == "three":
        os.abort()
    cases.append({"kernel": name} if name != "one" else {"kernel": name, "error": "illegal"})
    with open(value("--json", os.devnull), "w") as file:
        json.dump({"measured": False, "product_flops": 1.0 + begin, "cases": cases}, file)
    if name == "one":
        print("one   FAILED: illegal, at once" if os.environ.get("CUDA_LAUNCH_BLOCKING") else "one   FAILED: illegal")
        sys.exit(9)
"""


class GpuCheck(CliTest):
    def setUp(self):
        super().setUp()
        self.bundle = self.dir / "bundle"
        (self.bundle / "bin").mkdir(parents=True)
        self.out = self.dir / "out"
        self.program("switchyard", 'echo "switchyard of a test"')
        self.program("bench_cuda", "echo nothing; exit 7")
        self.cuda_test('echo "[ RUN      ] A.b"; echo "[       OK ] A.b (1 ms)"')

    def program(self, name, script, place=None, shell="/bin/sh"):
        path = (place or self.bundle / "bin") / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(f"#!{shell}\n{script}\n")
        path.chmod(0o755)

    def cuda_test(self, script):
        self.program("cuda_test", f"case $1 in --gtest_list_tests) printf 'A.\\n  b\\n'; exit;; esac; {script}")

    def command(self, *options):
        return [str(ROOT / "scripts" / "gpu_check.sh"), "--from", str(self.bundle), "--out", str(self.out), *options]

    def results(self):
        """-> the summary's stages by name, and its text."""
        summary = json.loads((self.out / "summary.json").read_text())
        self.assertIn("| stage | result |", (self.out / "summary.md").read_text())
        return {stage["stage"]: stage for stage in summary["stages"]}, (self.out / "summary.txt").read_text()

    def check(self, only, *options, code=0, **variables):
        done = subprocess.run(self.command("--only", only, *options), text=True, capture_output=True, timeout=SLOW,
                              env={**harness.environment(), **variables})
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        stages, text = self.results()
        self.assertTrue(done.stdout.endswith(text), done.stdout)
        return stages, text

    def test_a_stage_that_fails_hides_no_other(self):
        stages, _ = self.check("kernels,tests", code=1)
        self.assertEqual(stages["build"]["result"], "ok")
        self.assertEqual(stages["tests"]["result"], "ok")
        self.assertEqual(stages["tests"]["remark"], "1 tests of 1 suites passed")
        self.assertEqual(stages["kernels"]["result"], "failed")

    def test_a_suite_that_dies_hides_nothing_and_is_looked_into(self):
        self.program("cuda_test", SUITES)
        self.program("compute-sanitizer", 'echo "========= COMPUTE-SANITIZER"; echo "========= Invalid __global__ read of size 4 bytes"; exit 9',
                     self.dir / "path")
        stages, text = self.check("tests", code=1, PATH=f"{self.dir / 'path'}:{os.environ['PATH']}")
        self.assertEqual(stages["tests"]["remark"], "2 tests of 2 suites passed; 1 suites failed, 2 of their tests have not passed, "
                                                    "the first: A.c")
        self.assertEqual(stages["tests"]["findings"], [
            "A.c: CUDA: rope: an illegal memory access (in its suite: killed by signal 11)", "A.d: passes alone",
            "  memcheck, A.c: Invalid __global__ read of size 4 bytes"])
        self.assertIn("A.d: passes alone", text)
        self.assertIn("A.d: passes alone", (self.out / "summary.md").read_text())

    def test_kernels_go_on_after_an_error_that_ends_a_process(self):
        self.program("bench_cuda", CASES, shell="/usr/bin/env python3")
        stages, _ = self.check("kernels", code=1)
        kernels = json.loads((self.out / "kernels.json").read_text())
        self.assertEqual([case["kernel"] for case in kernels["cases"]], ["product", "copy", "zero", "one", "two", "three", "four"])
        self.assertEqual([case["kernel"] for case in kernels["cases"] if "error" in case], ["one", "three"])
        self.assertEqual(kernels["product_flops"], 1)  # of the first process
        self.assertEqual(stages["kernels"]["findings"], [
            "one: illegal; alone, each kernel waited for: illegal, at once",
            "three: killed by signal 6; alone, each kernel waited for: killed by signal 6: no output"])

    def test_a_stage_has_a_time_limit(self):
        self.program("bench_cuda", "sleep 600")
        stages, _ = self.check("kernels,tests", "--limit", "2", code=4)
        self.assertEqual(stages["kernels"]["result"], "incomplete")
        self.assertEqual(stages["tests"]["result"], "ok")

    def test_a_call_whose_time_is_over_is_gone_on_with(self):
        count = f'echo "$*" >> "{self.dir}/calls"'
        suites = "case $1 in --gtest_list_tests) printf 'A.\\n  b\\nB.\\n  b\\n'; exit;; esac; "
        well = 'echo "[ RUN      ] A.b"; echo "[       OK ] A.b (1 ms)"'
        self.program("cuda_test", f'{suites}{count}; case $* in *=B*) [ -e "{self.dir}/fast" ] || exec sleep 600;; esac; {well}')
        stages, _ = self.check("tests,initcheck", "--budget", "13", "--jobs", "1", code=4, PATH="/usr/bin:/bin")
        self.assertEqual((stages["tests"]["result"], stages["initcheck"]["result"]), ("incomplete", "incomplete"))
        self.assertEqual(stages["initcheck"]["remark"], "no time was left")
        (self.dir / "fast").touch()
        for _ in range(2):  # and what is at its end is not done again
            stages, _ = self.check("tests")
            self.assertEqual(stages["tests"]["remark"], "2 tests of 2 suites passed")
            self.assertEqual((self.dir / "calls").read_text().split(), ["--gtest_filter=A.*", "--gtest_filter=B.*", "--gtest_filter=B.*"])
        self.check("tests", "--again")
        self.assertEqual(len((self.dir / "calls").read_text().split()), 5)
        self.program("switchyard", 'echo "another program"')
        stages, _ = self.check("build")
        self.assertEqual(list(stages), ["build"])
        self.assertTrue((self.out / "earlier_1" / "summary.md").exists())

    def test_a_call_that_is_ended_leaves_its_summary(self):
        self.cuda_test(f'echo $$ > "{self.dir}/pid"; exec sleep 600')
        process = subprocess.Popen(self.command("--only", "tests"), stdout=subprocess.DEVNULL)
        end = time.monotonic() + harness.TIMEOUT
        while not (self.dir / "pid").exists() and time.monotonic() < end:
            time.sleep(0.05)
        process.terminate()
        self.assertEqual(process.wait(harness.TIMEOUT), 4)
        stages, _ = self.results()
        self.assertEqual((stages["build"]["result"], stages["tests"]["result"]), ("ok", "incomplete"))
        self.assertEqual(stages["tests"]["remark"], "ended by SIGTERM")
        self.assertFalse(os.path.exists(f"/proc/{(self.dir / 'pid').read_text().strip()}"))

    def test_a_driver_that_is_too_old_is_said_first_and_alone(self):
        (self.bundle / "bundle.txt").write_text("commit 1234567, built 2026-11-29 on x86_64\ntoolkit 13.0.88\n")
        path = f"{self.dir / 'path'}:{os.environ['PATH']}"
        self.program("nvidia-smi", 'echo "NVIDIA H100, 570.86.15, 81559 MiB, 9.0"', self.dir / "path")
        stages, _ = self.check("card,tests", code=1, PATH=path)
        self.assertEqual(list(stages), ["card"])
        self.assertEqual(stages["card"]["remark"], "driver 570.86.15 is too old for programs of CUDA 13.0.88: R580 or newer is wanted")
        self.program("nvidia-smi", 'echo "NVIDIA H100, 580.65.06, 81559 MiB, 9.0"', self.dir / "path")
        stages, _ = self.check("card,tests", PATH=path)
        self.assertEqual(stages["tests"]["result"], "ok")
        self.assertIn("commit 1234567", (self.out / "summary.md").read_text())

    def test_tests_that_ran_nowhere_are_skipped_and_not_passed(self):
        # As GoogleTest prints it where an environment is skipped.
        self.cuda_test('echo "[  SKIPPED ] no CUDA device can be used"; echo "[  PASSED  ] 132 tests."')
        stages, _ = self.check("tests")
        self.assertEqual(stages["tests"]["result"], "skipped")
        self.assertIn("no CUDA device", stages["tests"]["remark"])

    def test_runs_without_a_device_are_no_success(self):
        # What it says of runs on the CPU stays as it is.
        self.program("switchyard", 'case "$*" in *"--device cuda"*)'
                     '  echo "error: --device cuda: no CUDA device can be used" >&2; exit 2;; esac\n'
                     f'exec "{harness.BINARY}" "$@"')
        stages, _ = self.check("cli", "--smoke")
        self.assertEqual(stages["cli"]["result"], "skipped")
        self.assertEqual(stages["cli"]["remark"], "no CUDA device can be used")

    @unittest.skipIf(harness.SANITIZED, "whole runs take too long under the sanitizers")
    @unittest.skipUnless(DEVICE_BINARY, "SWITCHYARD_DEVICE_BIN is not set")
    def test_what_heals_a_failed_training_is_said(self):
        self.program("switchyard", 'case "$SWITCHYARD_NO_WGMMA $*" in " "*"--device cuda"*)'
                     '  echo "error: CUDA: linear: an illegal memory access" >&2; exit 1;; esac\n'
                     f'exec "{DEVICE_BINARY}" "$@"')
        stages, _ = self.check("curve", "--smoke", code=1)
        self.assertIn("bfloat16 on the card: error: CUDA: linear: an illegal memory access", stages["curve"]["remark"])
        self.assertTrue(stages["curve"]["remark"].endswith("; healed by SWITCHYARD_NO_WGMMA=1"), stages["curve"]["remark"])

    def use_emulator(self):
        if DEVICE_BINARY == harness.BINARY:
            self.skipTest("this program is not built for the emulator")
        for name, path in (("switchyard", DEVICE_BINARY), ("bench_exchange", BENCH_EXCHANGE), ("bench_cuda", BENCH_CUDA),
                           ("cuda_test", CUDA_TEST)):
            (self.bundle / "bin" / name).unlink(missing_ok=True)
            shutil.copy(path, self.bundle / "bin" / name)

    @unittest.skipIf(harness.SANITIZED, "whole runs take too long under the sanitizers")
    @unittest.skipUnless(BENCH_CUDA and BENCH_EXCHANGE and CUDA_TEST and DEVICE_BINARY, "SWITCHYARD_CUDA_TEST and others are not set")
    def test_whole_from_a_bundle_on_a_bare_machine(self):
        """All stages, on two emulated cards: in a directory that holds what the page says and no more, with a PATH that holds no
        compiler, no cmake and no git, as a user who owns that directory alone, where the test may become one."""
        self.use_emulator()
        for name in ("scripts", "tools", "configs", "tests/cli", "docs"):
            shutil.copytree(ROOT / name, self.dir / "bare" / name, ignore=shutil.ignore_patterns("__pycache__"))
        place = self.dir / "bare"
        (self.bundle / "bundle.txt").write_text("commit 1234567, built 2026-11-29 on x86_64\ntoolkit 13.0.88\n")
        self.program("nvidia-smi", 'echo "NVIDIA E100, 580.65.06, 81559 MiB, 9.0"', self.dir / "path")
        self.program("compute-sanitizer", 'while [ "${1#--}" != "$1" ]; do shift 2; done; exec "$@"', self.dir / "path")
        # Of 45 suites three, of the cases those of one kernel: other tests run all of them.
        os.rename(self.bundle / "bin" / "cuda_test", self.bundle / "bin" / "all_tests")
        self.program("cuda_test", """here=$(dirname "$0")
case $1 in --gtest_list_tests) exec "$here/all_tests" --gtest_filter='CudaDeviceGroup.*:CudaTopK.*:*CudaRope.*' --gtest_list_tests;; esac
exec "$here/all_tests" "$@\"""")
        os.rename(self.bundle / "bin" / "bench_cuda", self.bundle / "bin" / "all_cases")
        self.program("bench_cuda", 'exec "$(dirname "$0")/all_cases" --only rope "$@"')
        for name in ("bash", "sh", "dirname", "env", "ldd", "sed"):
            (self.dir / "path" / name).symlink_to(shutil.which(name))
        self.dir.chmod(0o755)
        before, python = [], sys.executable
        if os.geteuid() == 0 and shutil.which("setpriv"):
            other = [shutil.which("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups"]
            pythons = [path for path in (python, "/usr/bin/python3") if os.path.exists(path) and
                       subprocess.run([*other, "/bin/sh", "-c", f"{path} -c pass"], capture_output=True, check=False).returncode == 0]
            if pythons:  # one that lies in root's own directory is not for others
                before, python = other, pythons[0]
                os.chown(place, 65534, 65534)
        (self.dir / "path" / "python3").symlink_to(python)
        done = subprocess.run([*before, "scripts/gpu_check.sh", "--from", str(self.bundle), "--out", "results", "--smoke"], cwd=place,
                              text=True, capture_output=True, timeout=SLOW,
                              env={"PATH": str(self.dir / "path"), "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "2",
                                   "OMP_WAIT_POLICY": "passive", "SIMT_DEVICES": "2"})
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.out = place / "results"
        stages, text = self.results()
        without_pytorch = stages.pop("transformers")
        self.assertEqual((len(stages), {stage["result"] for stage in stages.values()}), (13, {"ok"}), text)
        self.assertIn(without_pytorch["remark"], ("PyTorch is not installed", "transformers is not installed",
                                                  "this PyTorch finds no CUDA device"))
        self.assertEqual(stages["memcheck"]["remark"], "9 of 9 without an error")
        self.assertIn("no measurement", text)
        markdown = (self.out / "summary.md").read_text()
        self.assertIn("NVIDIA E100, driver 580.65.06, CUDA none", markdown)
        self.assertIn("commit 1234567", markdown)
        self.assertEqual(re.findall("^## (.*)", markdown, re.M),
                         ["Kernels", "Whole training steps", "Several cards", "The loss curve in bfloat16"])
        self.check_steps(json.loads((self.out / "steps.json").read_text()))
        self.check_curve(json.loads((self.out / "curve.json").read_text()))
        self.check_two_ranks(stages["ranks"]["remark"], json.loads((self.out / "scaling.json").read_text()))

    def check_steps(self, runs):
        self.assertEqual([run["name"] for run in runs], ["qwen3_moe_0.6b", "32_layers", "6_of_32_layers"])
        for run in runs:
            self.assertEqual(run["refused"], [])
            self.assertNotIn("reached", run)  # of a tiny model
            self.assertAlmostEqual(run["utilisation"], 3 * run["flops_per_token"] * run["tokens_per_second"] /
                                   json.loads((self.out / "kernels.json").read_text())["product_flops"])

    def check_curve(self, curve):
        self.assertEqual({len(losses) for losses in curve["losses"].values()}, {3})
        self.assertEqual(len(curve["losses"]), 4)
        self.assertEqual([pair.get("bar") for pair in curve["pairs"]], [0.005, None, None, None])

    def check_two_ranks(self, remark, scaling):
        self.assertRegex(remark, "alone by NCCL: same bits, recorded too; two ranks on two cards: losses of one rank "
                                 r"to \S+, same bits again and by rows, recorded; one killed: all gone after \d+ s")
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
        self.use_emulator()
        self.cuda_test('echo "[ RUN      ] A.b"; echo "[       OK ] A.b (1 ms)"')
        stages, _ = self.check("ranks,scaling", "--smoke", SIMT_DEVICES="1", SIMT_NCCL_VERSION="22907")
        self.assertEqual((stages["ranks"]["result"], stages["scaling"]["result"]), ("ok", "skipped"))
        self.assertRegex(stages["ranks"]["remark"], "two ranks skipped: 2 ranks: --nproc 2: .* has 1 CUDA device for 2 ranks")
        self.assertEqual(stages["scaling"]["remark"], "CUDA devices: 1; several are wanted")
        stages, _ = self.check("ranks", "--smoke", "--again", SIMT_DEVICES="1", SIMT_NCCL_VERSION="23001")
        self.assertRegex(stages["ranks"]["remark"], r"two ranks on one card \(experimental\): .*all gone after")

    def test_no_nccl_is_no_failure(self):
        self.cuda_test('echo "cuda_device_group_test.cpp:7: Skipped"; echo "there is no NCCL here"; '
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
