"""`switchyard doctor`: this machine as it is, and made worse by limits, variables and programs of other names."""

import ast
import json
import os
import pathlib
import re
import resource
import socket
import stat
import subprocess
import sys
import time
import unittest

import harness

DEVICE_BINARY = os.environ.get("SWITCHYARD_DEVICE_BIN")


class Doctor(harness.CliTest):
    def json_of(self, *arguments, code=0, env=None, **popen):
        finished = subprocess.run([self.binary, "doctor", "--json", *map(str, arguments)], cwd=self.dir, text=True,
                                  env=env or harness.environment(), capture_output=True, timeout=harness.TIMEOUT, **popen)
        self.assertEqual(finished.returncode, code, finished.stdout + finished.stderr)
        self.assertEqual(finished.stderr, "")
        return json.loads(finished.stdout)

    def ids(self, report):
        return {finding["id"]: finding for finding in report["findings"]}

    def environment(self, **variables):
        return {**harness.environment(), **variables}

    def program(self, name, text):
        """A program of that name, first in the PATH of the environment that is returned."""
        folder = self.dir / "bin"
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        return self.environment(PATH=f"{folder}:{os.environ['PATH']}")

    def test_says_what_the_machine_is_and_leaves_nothing_behind(self):
        before = sorted(self.dir.rglob("*"))
        start = time.monotonic()
        finished = self.ok("doctor")
        # A few seconds where nobody else computes, and was seen to take nine beside fifteen other programs on two cores.
        self.assertLess(time.monotonic() - start, 30, finished)
        self.assertEqual(sorted(self.dir.rglob("*")), before)
        names = [line[:18].strip() for line in finished.out.split("\n\n")[0].splitlines()]
        for name in ("processor", "instructions", "cores", "threads", "products", "rates", "memory", "disk", "limits",
                     "/dev/shm", "devices", "MPI", "Python of tools/"):
            self.assertIn(name, names, finished)
        self.assertRegex(finished.out, r"products [\d.]+ GFLOP/s in float32, [\d.]+ in bfloat16; copies [\d.]+ GB/s")
        self.assertRegex(finished.out, r"writes \d+ MB/s, reads \d+ MB/s")
        for line in finished.out.split("\n\n")[1].splitlines():
            self.assertRegex(line, r"^(fails|slow|note): [^;]+; .+|^Nothing was found")

    def test_json_agrees_with_the_system_and_names_nobody(self):
        finished = self.ok("doctor", "--json", "--quick", "--dir", self.dir)
        report = json.loads(finished.out)
        self.assertEqual(report["memory"]["total"], os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        self.assertEqual(report["limits"]["open_files"], resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self.assertEqual(report["cores"]["threads"], 2)  # the harness sets OMP_NUM_THREADS
        self.assertEqual(report["cores"]["variables"]["OMP_NUM_THREADS"], "2")
        cores = [core for part in report["cores"]["usable"].split(",")
                 for core in range(int(part.split("-")[0]), int(part.split("-")[-1]) + 1)]
        self.assertEqual(set(cores), os.sched_getaffinity(0))
        self.assertEqual(report["rates"]["not_measured"], "--quick")
        self.assertEqual(report["disk"]["write_bytes_per_second"], 0)
        for private in (str(self.dir), os.path.expanduser("~") + "/", socket.gethostname() + "."):
            self.assertNotIn(private, finished.out)

    def test_a_directory_that_cannot_be_written_is_an_end(self):
        (self.dir / "file").write_text("")
        finding = self.ids(self.json_of("--quick", "--dir", "file", code=1))["directory-not-writable"]
        self.assertEqual((finding["severity"], finding["what"]),
                         ("impossible", "runs cannot be written to the directory of runs: it is no directory"))
        finished = self.run_binary("doctor", "--quick", "--dir", "file")
        self.assertEqual(finished.code, 1, finished)
        self.assertIn("\nimpossible: runs cannot be written to file: it is no directory;", finished.out)
        self.json_of("--quick", "--dir", "runs/that/are/not/there")

    def test_limits_of_the_process(self):
        def few_files():
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        finding = self.ids(self.json_of("--quick", preexec_fn=few_files))["few-open-files"]
        self.assertIn("may open 64 files: --nproc starts at most 56 ranks", finding["what"])
        finding = self.ids(self.json_of("--quick", "--nproc", 60, code=1, preexec_fn=few_files))["open-files"]
        self.assertEqual(finding["severity"], "impossible")

        def small_files():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        self.assertIn("1 MiB", self.ids(self.json_of("--quick", preexec_fn=small_files))["file-size"]["what"])

    def test_more_threads_than_cores(self):
        cores = len(os.sched_getaffinity(0))
        env = self.environment(OMP_NUM_THREADS=str(4 * cores), OMP_WAIT_POLICY="active")
        found = self.ids(self.json_of("--quick", env=env))
        self.assertTrue({"threads-above-cores", "threads-above-quota"} & set(found), found)
        self.assertIn("active-waiting", found)
        # A run says the same, once.
        config = self.write_config(parallel__threads=4 * cores, train__steps=1)
        err = self.ok("train", config).err
        self.assertEqual(len(re.findall(rf"warning: {4 * cores} threads ", err)), 1, err)
        self.assertNotIn("threads on", self.ok("train", self.write_config(parallel__threads=1, train__steps=1), "--out",
                                               "other").err)

    def test_one_core_of_several(self):
        if len(os.sched_getaffinity(0)) < 3:
            self.skipTest("a process is bound to few cores where it may use less than half of three or more")
        found = self.ids(self.json_of("--quick", preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})))
        self.assertIn("bound-to-few-cores", found)

    def test_threads_that_are_bound_still_have_all_cores(self):
        """The program starts itself again to wait more briefly, and must not take the first thread's core for all."""
        env = self.environment(OMP_PROC_BIND="true")
        del env["OMP_WAIT_POLICY"]
        report = self.json_of("--quick", env=env)
        self.assertEqual(report["cores"]["variables"]["GOMP_SPINCOUNT"], "1000")  # it has started itself again
        self.assertEqual(report["cores"]["usable"], self.json_of("--quick")["cores"]["usable"])
        self.assertIn("ranks-bound-alike", self.ids(self.json_of("--quick", "--nproc", 2, env=env)))

    def test_an_mpirun_of_another_mpi(self):
        report = self.json_of("--quick", env=self.program("mpirun", "echo 'HYDRA build details:'"))
        if not report["mpi"]["built"]:
            self.assertIn("built-without-mpi", self.ids(report))
        elif "Open MPI" in report["mpi"]["library"]:
            self.assertIn("mpi-mismatch", self.ids(report))
        report = self.json_of("--quick", env=self.program("mpirun", "exit 1"))
        self.assertEqual(report["mpi"]["mpirun"], "")

    def test_python_modules(self):
        """What python3 says is checked against the tools' own imports, so that no module is forgotten."""
        local = {path.stem for path in (harness.ROOT / "tools").iterdir()}
        needed = {}
        for path in sorted((harness.ROOT / "tools").glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                    [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
                for name in {name.split(".")[0] for name in names}:
                    if name not in sys.stdlib_module_names and name not in local:
                        needed.setdefault(name, set()).add(path.name)
        source = (harness.ROOT / "src" / "machine" / "measure.cpp").read_text()
        table = re.search(r"kModules\[\] = \{(.*?)\};", source, re.DOTALL)[1]
        listed = {}
        for name, rest in re.findall(r'\{"(\w+)",(.*?)\}', table, re.DOTALL):
            listed[name] = set(re.findall(r"\w+\.py", rest))
        self.assertEqual(listed, needed)
        report = self.json_of("--quick")
        self.assertEqual(set(report["python"]["modules"]), set(needed))
        # A python3 that has them all, and one that has none of them.
        some = self.program("python3", "shift 2; echo 3.99.0; for name in \"$@\"; do echo 1.2; done")
        report = self.json_of("--quick", env=some)
        self.assertEqual((report["python"]["version"], report["python"]["modules"]["torch"]), ("3.99.0", "1.2"))
        self.assertNotIn("no-python-module", self.ids(report))
        none = self.program("python3", "exit 1")
        self.assertIn("no-python", self.ids(self.json_of("--quick", env=none)))

    def test_usage(self):
        self.fails(2, "doctor", "--nproc", 0, names=["--nproc"])
        self.fails(2, "doctor", "--fast", names=["--fast"])
        self.assertIn("Exit code 0; 1 where no run could end well here", self.ok("help", "doctor").out)
        self.assertIn("doctor", self.ok("help").out)

    @unittest.skipUnless(DEVICE_BINARY, "SWITCHYARD_DEVICE_BIN is not set")
    def test_a_program_with_devices_names_them(self):
        finished = subprocess.run([DEVICE_BINARY, "doctor", "--json"], cwd=self.dir, env=self.environment(), text=True,
                                  capture_output=True, timeout=harness.TIMEOUT)
        self.assertEqual(finished.returncode, 0, finished.stdout + finished.stderr)
        cuda = json.loads(finished.stdout)["cuda"]
        self.assertTrue(cuda["built"])
        self.assertGreaterEqual(cuda["toolkit_cuda"], 12000)
        if cuda["devices"]:
            self.assertRegex(cuda["devices"][0]["capability"], r"^\d+\.\d$")
            self.assertGreater(json.loads(finished.stdout)["rates"]["device_copy_bytes_per_second"], 0)
        else:
            self.assertTrue(cuda["unusable"])


if __name__ == "__main__":
    unittest.main()
