"""How ranks are started and how they end: a program of nothing but marks and barriers fails in every way, with --nproc and
under mpirun. However it fails, there is one line of error, an exit code, and soon no process.

CTest sets SWITCHYARD_RANKS_DEMO (the program: tests/parallel_ranks_demo.cpp).
"""

import os
import pathlib
import re
import signal
import subprocess
import time
import unittest

from harness import ROOT, SANITIZED, environment
from mpi_test import LAUNCHERS, MPIRUN, mpi_environment

DEMO = os.environ.get("SWITCHYARD_RANKS_DEMO", str(ROOT / "build" / "tests" / "parallel_ranks_demo"))
MPI_RANKS = os.environ.get("SWITCHYARD_MPI_RANKS")  # empty in a build without MPI
GONE = 60  # seconds in which everyone is gone, whatever happens
RANKS = 3
PATIENCE = "1"
WHERE = r"step 3, forward of layer 1"


def clean_environment(**variables):
    return {**{key: value for key, value in environment().items() if not key.startswith(LAUNCHERS)}, **variables}


def is_alive(process):
    try:
        state = pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


class Ranks(unittest.TestCase):
    # Seconds that ranks may take to die after whoever started them has ended: --nproc waits for each of them.
    STRAGGLE = 0

    def setUp(self):
        self.assertTrue(os.access(DEMO, os.X_OK), f"{DEMO} is not there; build it, or set SWITCHYARD_RANKS_DEMO")

    def finish(self, process):
        """Waits for the end; (code, standard output, error lines). Nothing of the run is left behind."""
        try:
            out, err = process.communicate(timeout=GONE)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            self.fail(f"no end after {GONE} s: {process.args}\n{out}\n{err}")
        end = time.monotonic() + self.STRAGGLE
        for number in re.findall(r"process (\d+)", out):
            while is_alive(int(number)) and time.monotonic() < end:
                time.sleep(0.02)
            self.assertFalse(is_alive(int(number)), f"process {number} is left\n{out}\n{err}")
        self.everything = f"{process.args}\nexit code {process.returncode}\n{out}\n{err}"
        for trace in ("Sanitizer", "runtime error:"):
            self.assertNotIn(trace, err, self.everything)
        return process.returncode, out, [line for line in err.splitlines() if line.startswith("error:")]

    def start(self, *arguments, launcher=(), nproc=RANKS, **variables):
        return subprocess.Popen([*launcher, DEMO, str(nproc), *arguments], env=clean_environment(**variables),
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def check(self, code, line, *arguments, **start):
        """A run that ends with this code and one line of error that matches all of it; None: no error."""
        found, out, errors = self.finish(self.start(*arguments, **start))
        self.assertIn(found, code if isinstance(code, tuple) else (code,), self.everything)
        self.assertEqual(len(errors), 0 if line is None else 1, self.everything)
        if line is not None:
            self.assertRegex(errors[0], f"^error: {line}$", self.everything)
        return out


class Nproc(Ranks):
    def test_the_normal_end(self):
        out = self.check(0, None, "5")
        self.assertEqual(len(set(re.findall(r"process (\d+)", out))), RANKS)
        self.check(0, None, "5", nproc=0)
        self.check(0, None, "2", nproc=8)

    def test_an_exception_of_any_rank(self):
        for rank in range(RANKS):
            with self.subTest(rank=rank):
                self.check(1, rf"rank {rank}: the test has broken this rank \({WHERE}\)", "5", str(rank), "3", "throw")
        self.check(2, "the test does not like its input", "5", "0", "0", "input")
        self.check(2, rf"rank 0: the test does not like its input \({WHERE}\)", "5", "0", "3", "input")
        self.check(2, rf"rank 2: the test does not like its input \({WHERE}\)", "5", "2", "3", "input")

    def test_what_all_ranks_find_is_said_as_one_process_says_it(self):
        """99: every rank."""
        self.check(2, "the test does not like its input", "5", "99", "0", "input")
        self.check(1, r"rank 0: the test has broken this rank \(.*\)", "5", "99", "3", "throw")

    def test_a_rank_that_ends_without_a_word(self):
        ended = rf"rank {{}} \(host \S+, process \d+\) {{}} during {WHERE}; the last checkpoint is 2"
        for rank, kind, how in ((0, "exit", "ended with exit code 3"), (2, "exit", "ended with exit code 3"),
                                (0, "kill", r"was killed by signal 9 \(SIGKILL\)"),
                                (1, "kill", r"was killed by signal 9 \(SIGKILL\)"),
                                (1, "abort", r"was killed by signal 6 \(SIGABRT\)")):
            with self.subTest(rank=rank, kind=kind):
                self.check(1, ended.format(rank, how), "5", str(rank), "3", kind)

    def test_a_rank_that_ends_before_the_first_step(self):
        self.check(1, r"rank 1 \(.*\) was killed by signal 9 \(SIGKILL\) before the first step, start.*", "5", "1", "0",
                   "kill")

    def test_a_rank_that_is_stopped_or_hangs(self):
        self.check(1, rf"rank 1 \(.*\) is stopped, for \d+ s, during {WHERE}; the last checkpoint is 2",
                   "5", "1", "3", "stop", "--patience", PATIENCE)
        self.check(1, rf"rank 0 \(.*\) has come no further for \d+ s, during {WHERE}; .* parallel\.patience; the last "
                      "checkpoint is 2", "5", "0", "3", "hang", "--patience", PATIENCE)

    def test_ranks_that_wait_for_each_other(self):
        self.check(1, r"all ranks wait for each other, .*; the one behind is rank 1 \(.*\), during step \d+, exchange .*",
                   "5", "1", "3", "deadlock", "--patience", PATIENCE)

    def test_slow_work_is_no_hang(self):
        """Nine marks of some 0.5 s each at a patience of three seconds, of which a busy machine may take its part."""
        self.check(0, None, "3", "--patience", "3", "--milliseconds", "500")

    def test_signals_reach_all_ranks(self):
        for to_one in (False, True):
            with self.subTest(to_one=to_one):
                process = self.start("100000")
                numbers = [int(process.stdout.readline().split()[1]) for _ in range(RANKS)]
                time.sleep(0.3)  # their handlers are set before they print; some steps are done then
                os.kill(numbers[1] if to_one else process.pid, signal.SIGTERM)
                code, _, errors = self.finish(process)
                self.assertEqual((code, errors), (128 + signal.SIGTERM, []), self.everything)
                self.assertFalse(any(is_alive(number) for number in numbers))

    def test_a_signal_that_ranks_do_not_handle_ends_them_without_an_error(self):
        process = self.start("100000")
        for _ in range(RANKS):
            process.stdout.readline()
        process.send_signal(signal.SIGUSR1)
        code, _, errors = self.finish(process)
        self.assertEqual((code, errors), (128 + signal.SIGUSR1, []), self.everything)

    def test_ranks_do_not_outlive_the_parent(self):
        process = self.start("100000")
        numbers = [int(process.stdout.readline().split()[1]) for _ in range(RANKS)]
        process.kill()
        process.communicate(timeout=GONE)
        end = time.monotonic() + GONE
        while any(is_alive(number) for number in numbers):
            self.assertLess(time.monotonic(), end, f"of {numbers} some are left")
            time.sleep(0.02)

    def test_either_nproc_or_a_launcher(self):
        self.check(2, r"--nproc 3: 2 copies of the program were started already \(OMPI_COMM_WORLD_SIZE\); use either .*",
                   "5", OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="0")
        self.check(2, None, "5", OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="1")


@unittest.skipIf(MPI_RANKS == "" or SANITIZED, "this build has no MPI (scripts/setup.sh installs it)")
class Mpirun(Ranks):
    STRAGGLE = GONE  # mpirun sends SIGKILL and does not wait: on a busy machine it is gone before they are

    def setUp(self):
        super().setUp()
        if not MPIRUN:
            self.skipTest("mpirun is not installed (scripts/setup.sh)")

    def check(self, code, line, *arguments, **start):
        launcher = [MPIRUN, "--oversubscribe", "--bind-to", "none", "-n", str(RANKS)]
        with mpi_environment() as of_mpi:
            return super().check(code, line, *arguments, launcher=launcher, nproc=0, **of_mpi, **start)

    def test_the_normal_end(self):
        out = self.check(0, None, "5")
        self.assertEqual(len(set(re.findall(r"process (\d+)", out))), RANKS)

    def test_an_exception_of_any_rank(self):
        for rank in range(RANKS):
            with self.subTest(rank=rank):
                self.check(1, rf"rank {rank}: the test has broken this rank \({WHERE}\)", "5", str(rank), "3", "throw")
        self.check(2, rf"rank 1: the test does not like its input \({WHERE}\)", "5", "1", "3", "input")

    def test_a_rank_that_ends_without_a_word(self):
        """Rank 0 is the one in whose process the monitor is. mpirun makes 137 of signal 9, but another rank's 1 may reach
        it first."""
        for rank in range(RANKS):
            with self.subTest(rank=rank):
                self.check((1, 137), rf"rank {rank} \(host \S+, process \d+\) ended without a word, last heard of .*", "5",
                           str(rank), "3", "kill")

    def test_a_rank_that_is_stopped_or_hangs(self):
        for rank, kind, line in ((0, "stop", "is stopped, or its machine is gone, last heard of .*"),
                                 (2, "stop", "has not been heard of for .*"),
                                 (1, "hang", rf"has come no further for \d+ s, during {WHERE}; .*")):
            with self.subTest(rank=rank, kind=kind):
                self.check(1, rf"rank {rank} \(.*\) {line}", "5", str(rank), "3", kind, "--patience", PATIENCE)


if __name__ == "__main__":
    unittest.main(verbosity=2)
