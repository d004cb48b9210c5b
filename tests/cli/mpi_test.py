"""The transport under mpirun: the checks that group_checks.h makes of any transport, between processes that mpirun starts.

CTest sets SWITCHYARD_MPI_RANKS (a binary that makes the checks; empty in a build without MPI).
"""

import os
import pathlib
import re
import shutil
import subprocess
import unittest

from harness import ROOT, environment

RANKS = os.environ.get("SWITCHYARD_MPI_RANKS", str(ROOT / "build" / "tests" / "parallel_mpi_ranks"))
MPIRUN = shutil.which("mpirun")
# mpirun refuses to run as root and to start more ranks than cores, and binds them to cores, unless it is told otherwise.
MPI_ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}
LAUNCHERS = ("OMPI_", "PMI_", "PMIX_", "SLURM_", "MV2_")
TIMEOUT = 120  # seconds; the checks take one


def launch(command, variables=None):
    clean = {key: value for key, value in environment().items() if not key.startswith(LAUNCHERS)}
    return subprocess.run(["timeout", "-k", "5", str(TIMEOUT), *command], env={**clean, **MPI_ENVIRONMENT, **(variables or {})},
                          capture_output=True, text=True, check=False)


@unittest.skipUnless(pathlib.Path(RANKS).is_file(), "this build has no MPI (scripts/setup.sh installs it)")
class MpiTransport(unittest.TestCase):
    def mpirun(self, ranks, *arguments):
        if not MPIRUN:
            self.skipTest("mpirun is not installed (scripts/setup.sh)")
        return launch([MPIRUN, "--oversubscribe", "--bind-to", "none", "-n", str(ranks), RANKS, *arguments])

    def test_checks_hold_between_processes(self):
        for ranks, pieces in ((1, []), (2, []), (2, ["1000"]), (3, ["1000"]), (4, ["1000"])):
            with self.subTest(ranks=ranks, pieces=pieces):
                run = self.mpirun(ranks, *pieces)
                self.assertEqual(run.returncode, 0, run.stdout[-4000:] + run.stderr[-4000:])
                ended = sorted(re.findall(r"rank \d+ of \d+ ends with \d+", run.stdout))
                self.assertEqual(ended, [f"rank {rank} of {ranks} ends with 0" for rank in range(ranks)])

    def test_ranks_that_disagree_end_with_both_sides_named(self):
        run = self.mpirun(2, "disagree")
        self.assertEqual(run.returncode, 1, run.stdout + run.stderr)
        self.assertRegex(run.stderr, r"error: ranks disagree: rank [01] takes \d+ bytes of weights as message 0 from rank "
                                     r"[01], which has sent \d+ bytes of weights")

    def test_copies_that_do_not_know_each_other_are_refused(self):
        """As an mpirun of another MPI, or srun without PMI, starts them: each would be the only rank."""
        for variable in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
            with self.subTest(variable):
                run = launch([RANKS], {variable: "4"})
                self.assertEqual(run.returncode, 2, run.stdout + run.stderr)
                self.assertRegex(run.stderr, rf"(?m)^error: 4 copies were started \({variable}\), but they do not know each "
                                             rf"other: .* --nproc 4$")


if __name__ == "__main__":
    unittest.main()
