"""Ranks under mpirun: the checks that group_checks.h makes of any transport, between processes that mpirun starts; runs of the
binary; and what is said of copies that do not know each other.

CTest sets SWITCHYARD_MPI_RANKS (a binary that makes the checks; empty in a build without MPI).
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from harness import BINARY, ROOT, CliTest, environment, processes_of

RANKS = os.environ.get("SWITCHYARD_MPI_RANKS", str(ROOT / "build" / "tests" / "parallel_mpi_ranks"))
MPIRUN = shutil.which("mpirun")
# mpirun refuses to run as root and to start more ranks than cores, and binds them to cores, unless it is told otherwise.
MPI_ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}
LAUNCHERS = ("OMPI_", "PMI_", "PMIX_", "SLURM_", "MV2_")
TIMEOUT = 120  # seconds; the checks take one


@contextlib.contextmanager
def mpi_environment():
    """What an mpirun is given. Two that begin or end at once make and remove the same directory of Open MPI's sessions, and
    one of them gives up: each has one of its own, whose path is short, since sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="mpi-", dir="/tmp", ignore_cleanup_errors=True) as sessions:
        yield {**MPI_ENVIRONMENT, "OMPI_MCA_orte_tmpdir_base": sessions}


def launch(command, variables=None, directory=None):
    clean = {key: value for key, value in environment().items() if not key.startswith(LAUNCHERS)}
    with mpi_environment() as of_mpi:
        return subprocess.run(["timeout", "-k", "5", str(TIMEOUT), *command], env={**clean, **of_mpi, **(variables or {})},
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


class Machines:
    """Two machines as far as MPI and the program can tell: a network and a host name each, and a cable between them. Needs root."""

    ADDRESSES = ("10.77.0.1", "10.77.0.2")

    def __init__(self, directory):
        self.names = [f"switchyard{os.getpid()}{letter}" for letter in "ab"]
        self.host_names = [directory / f"host name of {number}" for number in range(2)]
        self.agent = directory / "agent"

    def run(self, *command):
        subprocess.run(list(map(str, command)), check=True, capture_output=True)

    def start(self):
        for number, (name, host_name) in enumerate(zip(self.names, self.host_names)):
            self.run("ip", "netns", "add", name)
            host_name.touch()
            self.run("unshare", f"--uts={host_name}", "hostname", f"machine{number}")
        self.run("ip", "link", "add", "cable", "netns", self.names[0], "type", "veth", "peer", "name", "cable", "netns", self.names[1])
        for name, address in zip(self.names, self.ADDRESSES):
            self.run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for link in ("lo", "cable"):
                self.run("ip", "-n", name, "link", "set", link, "up")
        # In place of ssh: HOST COMMAND...
        places = "\n".join(f"  {address}) {self.enter(number)} bash -c \"$*\" ;;" for number, address in enumerate(self.ADDRESSES))
        self.agent.write_text(f"#!/bin/bash\nhost=$1\nshift\ncase $host in\n{places}\nesac\n")
        self.agent.chmod(0o755)

    def enter(self, number):
        return f"nsenter --net=/run/netns/{self.names[number]} '--uts={self.host_names[number]}'"

    def cut(self):
        self.run("ip", "-n", self.names[1], "link", "set", "cable", "down")

    def stop(self):
        for name, host_name in zip(self.names, self.host_names):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
            subprocess.run(["umount", host_name], check=False, capture_output=True)

    def mpirun(self, ranks, *command):
        each = ranks // 2
        return ["nsenter", f"--net=/run/netns/{self.names[0]}", f"--uts={self.host_names[0]}", MPIRUN, "-n", str(ranks), "--host",
                ",".join(f"{address}:{each}" for address in self.ADDRESSES), "--bind-to", "none", "--mca", "plm_rsh_agent",
                str(self.agent), "--mca", "btl", "tcp,self", "--mca", "oob_tcp_if_include", "cable", "--mca", "btl_tcp_if_include",
                "cable", *map(str, command)]


@HAS_MPI
@HAS_MPIRUN
class TwoMachines(CliTest):
    def setUp(self):
        super().setUp()
        plain = tempfile.TemporaryDirectory(prefix="switchyard-machines-")  # mpirun's agent may hold no space
        self.addCleanup(plain.cleanup)
        self.machines = Machines(pathlib.Path(plain.name))
        self.addCleanup(self.machines.stop)
        try:
            self.machines.start()
        except (OSError, subprocess.CalledProcessError) as error:
            self.skipTest(f"two networks on one machine cannot be made here: {error}")

    def test_a_run_is_the_one_of_one_machine(self):
        config = self.write_config(parallel__threads=1, parallel__expert=2, train__global_batch_size=16)
        run = launch(self.machines.mpirun(4, BINARY, "train", config, "--out", "tcp4"), directory=self.dir)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        self.ok("train", config, "--out", "shm4", "--nproc", 4)
        self.assertEqual(self.losses("tcp4"), self.losses("shm4"))
        self.assertEqual(self.weights("tcp4"), self.weights("shm4"))

    def test_a_machine_that_is_cut_off_ends_all_ranks(self):
        config = self.write_config(parallel__threads=1, parallel__patience=5, train__steps=100000, train__global_batch_size=8)
        out = self.dir / "cut"
        clean = {key: value for key, value in environment().items() if not key.startswith(LAUNCHERS)}
        of_mpi = contextlib.ExitStack()
        self.addCleanup(of_mpi.close)
        process = subprocess.Popen(self.machines.mpirun(4, BINARY, "train", config, "--out", out), cwd=self.dir,
                                   env={**clean, **of_mpi.enter_context(mpi_environment())}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                   start_new_session=True)
        self.addCleanup(process.wait)
        self.addCleanup(lambda: os.killpg(process.pid, signal.SIGKILL))  # mpirun itself waits for the machine that is gone
        self.wait_until(lambda: (out / "checkpoints" / "latest").exists(), "no checkpoint")
        self.machines.cut()
        self.wait_until(lambda: not processes_of(str(out), program=BINARY), "ranks are left")
        os.set_blocking(process.stderr.fileno(), False)
        errors = re.findall(r"error: rank .*", process.stderr.read())
        self.assertEqual(len(errors), 1, errors)
        # What was last heard of it: it is told once a second, and the first checkpoint may be sooner.
        self.assertRegex(errors[0], r"rank [23] \(host machine1, process \d+\) .* last (.*during step \d+|before the first step), "
                                    r".*the last checkpoint is ")

    def wait_until(self, ready, otherwise):
        for _ in range(10 * 60):
            if ready():
                return
            time.sleep(0.1)
        self.fail(f"{otherwise} after 60 s")


if __name__ == "__main__":
    unittest.main()
