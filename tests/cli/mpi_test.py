"""Ranks under mpirun: the checks that group_checks.h makes of any transport, between processes that mpirun starts; runs of the
binary; and what is said of copies that do not know each other.

CTest sets SWITCHYARD_MPI_RANKS (a binary that makes the checks; empty in a build without MPI).
"""

import os
import pathlib
import re
import shutil
import subprocess
import unittest

from harness import BINARY, ROOT, CliTest, environment

RANKS = os.environ.get("SWITCHYARD_MPI_RANKS", str(ROOT / "build" / "tests" / "parallel_mpi_ranks"))
MPIRUN = shutil.which("mpirun")
# mpirun refuses to run as root and to start more ranks than cores, and binds them to cores, unless it is told otherwise.
MPI_ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}
LAUNCHERS = ("OMPI_", "PMI_", "PMIX_", "SLURM_", "MV2_")
TIMEOUT = 120  # seconds; the checks take one


def launch(command, variables=None, directory=None):
    clean = {key: value for key, value in environment().items() if not key.startswith(LAUNCHERS)}
    return subprocess.run(["timeout", "-k", "5", str(TIMEOUT), *command], env={**clean, **MPI_ENVIRONMENT, **(variables or {})},
                          cwd=directory, capture_output=True, text=True, check=False)


def mpirun(ranks, *command, directory=None):
    """The command on so many ranks. They share two cores with other tests, which binding them to cores would not know."""
    return launch([MPIRUN, "--oversubscribe", "--bind-to", "none", "-n", str(ranks), *map(str, command)], directory=directory)


HAS_MPI = unittest.skipUnless(pathlib.Path(RANKS).is_file(), "this build has no MPI (scripts/setup.sh installs it)")
HAS_MPIRUN = unittest.skipUnless(MPIRUN, "mpirun is not installed (scripts/setup.sh)")


@HAS_MPI
@HAS_MPIRUN
class MpiTransport(unittest.TestCase):
    def test_checks_hold_between_processes(self):
        for ranks, pieces in ((1, []), (2, []), (2, ["1000"]), (3, ["1000"]), (4, ["1000"])):
            with self.subTest(ranks=ranks, pieces=pieces):
                run = mpirun(ranks, RANKS, *pieces)
                self.assertEqual(run.returncode, 0, run.stdout[-4000:] + run.stderr[-4000:])
                ended = sorted(re.findall(r"rank \d+ of \d+ ends with \d+", run.stdout))
                self.assertEqual(ended, [f"rank {rank} of {ranks} ends with 0" for rank in range(ranks)])

    def test_cores_are_divided_among_the_ranks_that_share_them(self):
        own = os.sched_getaffinity(0)
        for ranks, mask in ((1, own), (2, own), (1, {min(own)}), (2, {min(own)})):
            with self.subTest(ranks=ranks, mask=mask):
                run = mpirun(ranks, "taskset", "-c", ",".join(map(str, mask)), RANKS)
                self.assertEqual(run.returncode, 0, run.stdout[-4000:] + run.stderr[-4000:])
                self.assertEqual(sorted(re.findall(r"rank \d+ of \d+ may use \d+ cores", run.stdout)),
                                 [f"rank {rank} of {ranks} may use {max(1, len(mask) // ranks)} cores" for rank in range(ranks)])
                warning = f"{ranks} ranks are bound to {len(mask)} of this machine's {len(own)} cores"
                self.assertEqual(warning in run.stderr, 2 * len(mask) < len(own), run.stderr)

    def test_ranks_that_disagree_end_with_both_sides_named(self):
        run = mpirun(2, RANKS, "disagree")
        self.assertEqual(run.returncode, 1, run.stdout + run.stderr)
        self.assertRegex(run.stderr, r"error: ranks disagree: rank [01] takes \d+ bytes of weights as message 0 from rank "
                                     r"[01], which has sent \d+ bytes of weights")


@HAS_MPI
@HAS_MPIRUN
class MpiRun(CliTest):
    def test_a_run_is_the_one_of_as_many_ranks_without_mpi(self):
        """Bit for bit: the transports differ, what ranks add and in which order does not."""
        for ranks, expert in ((2, 1), (4, 2)):
            with self.subTest(ranks=ranks, expert=expert):
                config = self.write_config(parallel__threads=1, parallel__expert=expert, train__global_batch_size=16)
                run = mpirun(ranks, BINARY, "train", config, "--out", f"mpi{ranks}", directory=self.dir)
                self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
                self.ok("train", config, "--out", f"shm{ranks}", "--nproc", ranks)
                self.assert_same_run(f"mpi{ranks}", f"shm{ranks}")

    def test_bad_input_ends_every_rank(self):
        run = mpirun(2, BINARY, "train", self.write_config(train__steps=-1), "--out", "run", directory=self.dir)
        self.assertEqual(run.returncode, 2, run.stdout + run.stderr)
        self.assertIn("train.steps", run.stderr)


class Copies(CliTest):
    def test_that_do_not_know_each_other_are_refused(self):
        """As an mpirun of another MPI, or srun without PMI, starts them: each would take itself for the only rank."""
        config = self.write_config()
        for variable in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
            with self.subTest(variable):
                run = launch([BINARY, "train", config, "--out", "run"], {variable: "4"}, self.dir)
                self.assertEqual(run.returncode, 2, run.stdout + run.stderr)
                self.assertRegex(run.stderr, rf"error: 4 copies were started \({variable}\), but they do not know each other: "
                                             r"this build.* --nproc 4")
                self.assertFalse((self.dir / "run").exists())

    def test_one_copy_is_a_process_alone(self):
        """Whatever started it: no MPI is needed, and none that does not fit its launcher gets in the way."""
        run = launch([BINARY, "train", self.write_config(), "--out", "run"], {"SLURM_STEP_NUM_TASKS": "1"}, self.dir)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)


if __name__ == "__main__":
    unittest.main()
