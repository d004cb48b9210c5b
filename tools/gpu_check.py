#!/usr/bin/env python3
"""Checks and measures switchyard on a GPU, and says in one table what came out. scripts/gpu_check.sh calls it.

  scripts/gpu_check.sh                                 builds with nvcc for the card that is there, runs every stage
  scripts/gpu_check.sh --bundle DIR                    makes a bundle of binaries, on a machine where switchyard can be built
  scripts/gpu_check.sh --from DIR --out DIR --call 1   uses it, for ten minutes at most; then --call 2, 3, 4

A call whose time is over leaves its summary, and the same call again goes on where it ended. What DIR holds of the same
program is kept: a stage that came to its end is not run again. Exit code 1 if a stage failed; 4 if none did, but the time was
over for one.
"""

import argparse
import ctypes
import datetime
import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import gpu_check_summary
from gpu_check_jobs import CutOff, raise_on_signals, read_json, write_json
from gpu_check_stages import FILES, STAGES, question_card
from gpu_check_suites import Fail, Incomplete, Skip

CALLS = sorted({call for _, _, call in STAGES.values() if call})
MARGIN = 8  # seconds of the budget that are left for the end: processes to kill, the summary
KEPT = "state.json"
HELD = "import ctypes, sys; c = ctypes.CDLL('libcuda.so.1'); c.cuInit(0); x = ctypes.c_void_p(); " \
       "c.cuDevicePrimaryCtxRetain(ctypes.byref(x), 0); sys.stdin.read()"


class Stage:
    """One stage that runs."""

    def __init__(self, check, name, seconds):
        self.check, self.name, self.seconds = check, name, seconds
        self.deadline = time.monotonic() + seconds
        self.findings, self.finished = [], True

    def path(self, *names):
        path = os.path.join(self.check.out, *names)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def finding(self, line):
        """What a person wants to know of a failure beside the remark."""
        print(line, flush=True)
        self.findings.append(line)


class Check:
    def __init__(self, options, root, work):
        self.options, self.root, self.work = options, root, work
        self.begun = time.monotonic()
        self.out = os.path.abspath(options.out)
        os.makedirs(self.out, exist_ok=True)
        self.smoke = ["--smoke"] if options.smoke else []
        self.source = os.path.abspath(options.source) if options.source else None
        self.unpacked, self.build = os.path.join(work, "bundle"), os.path.join(root, "build-gpu")
        base = os.path.join(self.unpacked, "bin") if self.source else self.build
        self.switchyard, self.bench_cuda = os.path.join(base, "switchyard"), os.path.join(base, "bench_cuda")
        self.bench_exchange = os.path.join(base, "bench_exchange")
        self.cuda_test = os.path.join(base, *([] if self.source else ["tests"]), "cuda_test")
        cores = len(os.sched_getaffinity(0))
        self.at_once = options.jobs or max(1, min(4, cores))
        # Of processes that run beside others: what they compare with is computed on the CPU.
        self.shared = {"OMP_NUM_THREADS": str(max(1, cores // self.at_once)), "OMP_WAIT_POLICY": "passive"}
        self.library_path = os.environ.get("LD_LIBRARY_PATH", "")  # without what is found below: PyTorch brings its own
        self.hopeless = False  # nothing can run
        self.holder = None
        self.state = read_json(os.path.join(self.out, KEPT), {})
        self.state.setdefault("stages", {})

    # --- what there is on the machine ---

    def pythons(self):
        places = [os.environ.get(name, "") + "/bin" for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if os.environ.get(name)]
        places += os.environ.get("PATH", "").split(os.pathsep) + glob.glob("/opt/*/bin") + glob.glob("/*venv*/bin") + glob.glob("/root/*/bin")
        found = [os.path.join(place, "python3") for place in places if os.access(os.path.join(place, "python3"), os.X_OK)]
        return list(dict.fromkeys(found))

    def python_with(self, *modules):
        code = f"import importlib.util as u; raise SystemExit(not all(u.find_spec(name) for name in {modules!r}))"
        for python in self.pythons():
            try:
                if subprocess.run([python, "-c", code], capture_output=True, timeout=60, check=False).returncode == 0:
                    return python
            except (OSError, subprocess.TimeoutExpired):
                continue
        return None

    def toolkits(self):
        nvcc = shutil.which("nvcc")
        return [*([os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))] if nvcc else []), "/usr/local/cuda",
                *sorted(glob.glob("/usr/local/cuda-*"), reverse=True)]

    def directory_of(self, library):
        """Where a file of that name lies: in a toolkit, or in NVIDIA's packages of any Python that is found. None: nowhere."""
        places = [f"{toolkit}/{name}" for toolkit in self.toolkits() for name in ("lib64", "targets/x86_64-linux/lib")]
        prefixes = [prefix for python in self.pythons()
                    for prefix in (os.path.dirname(os.path.dirname(python)), os.path.dirname(os.path.dirname(os.path.realpath(python))))]
        for prefix in dict.fromkeys([*prefixes, "/usr", "/usr/local", os.path.expanduser("~/.local")]):
            places += sorted(glob.glob(f"{prefix}/lib/python3*/*-packages/nvidia/*/lib"), reverse=True)
        return next((place for place in places if os.path.exists(f"{place}/{library}")), None)

    def find_libraries(self):
        """Sets LD_LIBRARY_PATH to what cuBLAS and NCCL need, and nothing else. -> what is missing"""
        def missing():
            lines = []
            for program in (self.switchyard, self.bench_cuda, self.bench_exchange, self.cuda_test):
                if not os.path.exists(program):
                    continue
                done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
                lines += [" ".join(line.split()) for line in (done.stdout + done.stderr).splitlines() if "not found" in line]
            return list(dict.fromkeys(lines))
        wanted = [line.split()[0] for line in missing()]
        try:
            ctypes.CDLL("libnccl.so.2")
        except OSError:
            wanted.append("libnccl.so.2")
        found = [self.directory_of(name) for name in wanted]
        path = list(dict.fromkeys([*filter(None, found), *filter(None, self.library_path.split(":"))]))
        if path:
            os.environ["LD_LIBRARY_PATH"] = ":".join(path)
        return missing()

    def sanitizer(self):
        places = [f"{toolkit}/{name}" for toolkit in self.toolkits() for name in ("bin/compute-sanitizer", "compute-sanitizer/compute-sanitizer")]
        return shutil.which("compute-sanitizer") or next((path for path in places if os.access(path, os.X_OK)), None)

    def hold_a_context(self):
        """Where the driver is unloaded when nobody uses it, each start of a program would take seconds more. Not where a card
        takes one process alone."""
        said, _ = question_card("persistence_mode,compute_mode")
        if said and "Disabled" in said and "Exclusive" not in said and self.holder is None:
            self.holder = subprocess.Popen([sys.executable, "-c", HELD], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                           stderr=subprocess.DEVNULL)

    def close(self):
        if self.holder is not None:
            self.holder.stdin.close()
            try:
                self.holder.wait(5)
            except subprocess.TimeoutExpired:
                self.holder.kill()

    # --- what is known ---

    def compare_identity(self):
        """Results of another program, card or size are put aside."""
        said, _ = question_card("name,driver_version")
        if said:
            self.state["card"], self.state["driver"] = (word.strip() for word in said.splitlines()[0].split(",")[:2])
        digest = hashlib.sha256(repr((self.state.get("card"), bool(self.smoke))).encode())
        for program in (self.switchyard, self.bench_cuda, self.bench_exchange, self.cuda_test):
            if os.path.exists(program):
                with open(program, "rb") as file:
                    digest.update(file.read())
        identity = digest.hexdigest()[:16]
        if self.state.get("identity") not in (None, identity):
            number = next(n for n in range(1, 1000) if not os.path.exists(os.path.join(self.out, f"earlier_{n}")))
            print(f"{self.out} holds results of another program, card or size: they are put into earlier_{number}")
            os.mkdir(os.path.join(self.out, f"earlier_{number}"))
            for name in (KEPT, "summary.txt", "summary.json", "summary.md", "units", "logs", *(f"{stage}.json" for stage in FILES)):
                if os.path.exists(os.path.join(self.out, name)):
                    os.rename(os.path.join(self.out, name), os.path.join(self.out, f"earlier_{number}", name))
            os.makedirs(os.path.join(self.out, "logs"))
            self.state["stages"] = {name: self.state["stages"][name] for name in ("card",) if name in self.state["stages"]}
        bundle = ""
        if self.source and os.path.exists(os.path.join(self.unpacked, "bundle.txt")):
            with open(os.path.join(self.unpacked, "bundle.txt")) as file:
                bundle = file.read()
        commit = re.search(r"^commit (\S+?),", bundle, re.M)
        self.state |= {"identity": identity, "commit": commit[1] if commit else self.git_commit(), "smoke": bool(self.smoke)}

    def git_commit(self):
        try:
            done = subprocess.run(["git", "-C", self.root, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        except OSError:
            return "unknown"
        return done.stdout.strip() or "unknown"

    def forget(self, name):
        self.state["stages"].pop(name, None)
        for path in (os.path.join("units", f"{name}.json"), *([f"{name}.json"] if name in FILES else [])):
            if os.path.exists(os.path.join(self.out, path)):
                os.remove(os.path.join(self.out, path))

    def left(self):
        return self.options.budget - MARGIN - (time.monotonic() - self.begun) if self.options.budget else float("inf")

    # --- one stage after the other ---

    def run_stage(self, name):
        what, limit, _ = STAGES[name]
        seconds = min(limit, self.options.limit or limit, self.left())
        known = self.state["stages"].get(name)
        if known and known["finished"] and name not in ("card", "build"):
            print(f"{known['result']}, known from {known['date']}: {known['remark']}")
            return
        if seconds < 2:
            self.note(name, "incomplete", 0, "no time was left", [], False, known)
            return
        stage, start = Stage(self, name, seconds), time.monotonic()
        try:
            result, remark = "ok", what(stage)
        except Skip as why:
            result, remark, stage.finished = "skipped", str(why), False
        except Fail as why:
            result, remark = "failed", str(why)
        except Incomplete as why:
            result, remark, stage.finished = "time limit" if name in ("card", "build") else "incomplete", str(why), False
        except CutOff as why:
            self.note(name, "incomplete", time.monotonic() - start, str(why), stage.findings, False, known)
            raise
        except Exception as error:  # a mistake of the check hides no other stage
            result, remark = "failed", f"{type(error).__name__}: {error}"
        self.note(name, result, time.monotonic() - start, remark, stage.findings, stage.finished, known)

    def note(self, name, result, seconds, remark, findings, finished, before):
        print(f"{name}: {result}: {remark}", flush=True)
        if before and not before["finished"]:
            seconds += before["seconds"]
        self.state["stages"][name] = {"stage": name, "result": result, "seconds": round(seconds), "remark": remark, "findings": findings,
                                      "finished": finished, "date": datetime.date.today().isoformat()}
        self.summarise()

    def summarise(self):
        write_json(os.path.join(self.out, KEPT), self.state)
        return gpu_check_summary.write(self.out, [self.state["stages"][name] for name in STAGES if name in self.state["stages"]], self.state)

    def run(self, names):
        os.makedirs(os.path.join(self.out, "logs"), exist_ok=True)
        if self.options.again:
            for name in names:
                self.forget(name)
        self.state["command"] = " ".join(["scripts/gpu_check.sh", *sys.argv[1:]])
        try:
            if "build" not in names:  # what was built before
                self.find_libraries()
                self.compare_identity()
            for name in names:
                print(f"\n== {name}", flush=True)
                self.run_stage(name)
                if self.hopeless or (name == "build" and self.state["stages"]["build"]["result"] != "ok"):
                    break  # whatever came next would say the same in more words
        except CutOff as why:
            print(why, flush=True)
        print("\n" + self.summarise(), end="")
        results = {self.state["stages"].get(name, {}).get("result", "incomplete") for name in names}
        return 1 if "failed" in results or "time limit" in results else 4 if "incomplete" in results else 0


def seconds_of(text):
    if not re.fullmatch("[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"{text}: seconds are wanted")
    return int(text)


def read_options():
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--call", type=int, choices=CALLS, help="; ".join(
        f"{call}: {', '.join(name for name, stage in STAGES.items() if stage[2] == call)}" for call in CALLS) + "; without it: all")
    parser.add_argument("--only", metavar="STAGE,STAGE", help=f"of: {' '.join(STAGES)}")
    parser.add_argument("--out", default="gpu_check", metavar="DIR", help="where results go: summary.md, summary.txt, summary.json, log.txt, "
                        "the JSON of the benchmarks, logs/ (gpu_check); may be that of --from")
    parser.add_argument("--from", dest="source", metavar="DIR", help="a bundle: the machine needs a driver, cuBLAS and Python alone")
    parser.add_argument("--bundle", metavar="DIR", help="make one (with --arch)")
    parser.add_argument("--arch", metavar="LIST", help="CMAKE_CUDA_ARCHITECTURES; default: the card's, in a bundle all that are usual")
    parser.add_argument("--budget", type=seconds_of, metavar="SECONDS", help="of the whole call; each stage gets its limit or what is left "
                        "(with --call 590, else no end)")
    parser.add_argument("--limit", type=seconds_of, metavar="SECONDS", help="no stage may take longer")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes that share the card while nothing is timed (4, or the cores)")
    parser.add_argument("--again", action="store_true", help="run what is known as well")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: to see that the stages run; no measurement")
    options = parser.parse_args()
    if options.call and options.only:
        parser.error("--call and --only: one of them")
    for name in filter(None, (options.only or "").split(",")):
        if name not in STAGES:
            parser.error(f"--only {name}: there are {' '.join(STAGES)}")
    options.budget = options.budget or (590 if options.call else None)
    return options


class Tee:
    """Standard output, and log.txt."""

    def __init__(self, log):
        self.log, self.out = log, sys.stdout

    def write(self, text):
        self.log.write(text)
        self.log.flush()
        return self.out.write(text)

    def flush(self):
        self.out.flush()


def main():
    options = read_options()
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    os.chdir(root)
    asked = set(filter(None, (options.only or "").split(",")))
    names = [name for name, (_, _, call) in STAGES.items()
             if (name in asked or (name == "build" and options.source) if asked else options.call in (None, call) or call == 0)]
    raise_on_signals()
    work = tempfile.mkdtemp(prefix="gpu_check_")
    os.environ["TMPDIR"] = tempfile.tempdir = work  # of whatever is killed nothing stays
    try:
        check = Check(options, root, work)
        with open(os.path.join(check.out, "log.txt"), "a") as log:
            sys.stdout = Tee(log)
            try:
                code = check.run(names)
            finally:
                check.close()
                sys.stdout = sys.stdout.out
    finally:
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
