"""The stages of scripts/gpu_check.sh: what each does, for how long at most, and in which call. Each returns a remark, or raises
Skip, Fail or Incomplete with one. Standard library alone.
"""

import os
import re
import shutil
import subprocess
import tarfile

from bench_gpu_steps import healed
from gpu_check_jobs import read_json, run_jobs
from gpu_check_suites import (Fail, Incomplete, Skip, check_cli, check_kernels, check_suites, check_with_sanitizer, job_of,
                              last_line, once, read_gtest, what_heals)

# By the major version of CUDA, the first driver that runs it:
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
OLDEST_DRIVER = {12: 525, 13: 580}
LEAST_FREE = 4 << 30  # bytes on disk, for unpacked binaries and the checkpoints of tiny models


def question_card(query):
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, timeout=60,
                              check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    return (done.stdout.strip() or None) if done.returncode == 0 else None, (done.stdout + done.stderr).strip()


def toolkit_of(check):
    """"13.0.88" of the bundle or of the nvcc that will build; None: not known."""
    if check.source:
        for directory in (check.source, check.unpacked):
            if text := read_text(os.path.join(directory, "bundle.txt")):
                match = re.search(r"^toolkit (\d+\.\d+\S*)", text, re.M)
                return match[1] if match else None
        return None
    try:
        match = re.search(r"release (\d+\.\d+)", subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=False).stdout)
    except OSError:
        return None
    return match[1] if match else None


def read_text(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def why_the_driver_is_too_old(driver, toolkit):
    if not driver or not toolkit:
        return None
    oldest = OLDEST_DRIVER.get(int(toolkit.split(".")[0]))
    if oldest is None or int(driver.split(".")[0]) >= oldest:
        return None
    return f"driver {driver} is too old for programs of CUDA {toolkit}: R{oldest} or newer is wanted"


def card(stage):
    said, why = question_card("name,driver_version,memory.total,compute_cap")
    if said is None:
        raise Fail("nvidia-smi is not there: no driver of NVIDIA's" if shutil.which("nvidia-smi") is None
                   else f"nvidia-smi: {why or 'no answer'}")
    print(said)
    driver = said.splitlines()[0].split(",")[1].strip()
    if why := why_the_driver_is_too_old(driver, toolkit_of(stage.check)):
        stage.check.hopeless = True
        raise Fail(why)
    stage.check.hold_a_context()
    return said.splitlines()[0]


def build(stage):
    check = stage.check
    for directory in {check.out, check.work}:
        if (free := shutil.disk_usage(directory).free) < LEAST_FREE and not check.smoke:
            check.hopeless = True
            raise Fail(f"{directory}: {free / (1 << 30):.1f} GiB are free on its disk, {LEAST_FREE >> 30} are wanted")
    if check.source:
        unpack(check)
        print(read_text(os.path.join(check.unpacked, "bundle.txt")), end="")
    else:
        architecture = check.options.arch or (question_card("compute_cap")[0] or "").split("\n")[0].replace(".", "")
        if not architecture:
            raise Fail("nvidia-smi names no card to build for; --arch does")
        for command, advice in (
                (["cmake", "--preset", "cuda", "-B", check.build, f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"],
                 "cannot be configured here; make a bundle where it can: scripts/gpu_check.sh --bundle DIR, then --from DIR"),
                (["cmake", "--build", check.build, "--target", "switchyard", "cuda_test", "bench_cuda", "bench_exchange"], "cannot be built")):
            job = job_of(stage, "cmake", command, stage.seconds)
            if not run_jobs([job], 1, stage.deadline, lambda _: None, echo=True):
                raise Incomplete("the time was over")
            if job.code != 0:
                raise Fail(advice)
    lacking = check.find_libraries()
    if lacking:
        raise Fail(f"the binaries lack: {'; '.join(lacking[:3])}")
    check.compare_identity()
    job = once(stage, "version", [check.switchyard, "--version"], 60)
    if job is None or job.code != 0:
        raise Fail(f"switchyard --version: {last_line(job) if job else 'no answer'}")
    return last_line(job)


def unpack(check):
    os.makedirs(check.unpacked, exist_ok=True)
    if os.path.isdir(os.path.join(check.source, "bin")):
        for name in ("bin", "lib", "bundle.txt"):
            path, to = os.path.join(check.source, name), os.path.join(check.unpacked, name)
            if os.path.isdir(path):
                shutil.copytree(path, to, dirs_exist_ok=True)
            elif os.path.exists(path):
                shutil.copy(path, to)
        return
    path = os.path.join(check.source, "switchyard-gpu.tar.xz")
    try:
        with tarfile.open(path) as archive:  # by Python, since a bare machine may have no xz
            if hasattr(tarfile, "data_filter"):
                archive.extractall(check.unpacked, filter="data")
            else:  # an older Python knows no filter
                archive.extractall(check.unpacked)
    except (OSError, tarfile.TarError) as error:
        raise Fail(f"{check.source} holds no bundle of gpu_check.sh --bundle: {error}") from None


def tool(stage, name, *arguments, python="python3", variables=None):
    """A program of tools/, shown as it runs. -> its job"""
    job = job_of(stage, stage.name, [python, "-B", os.path.join(stage.check.root, "tools", name), *arguments], stage.seconds,
                 variables=variables or {})
    if not run_jobs([job], 1, stage.deadline, lambda _: None, echo=True):
        raise Incomplete(f"the time was over: {last_line(job)}")
    return job


def ended_well(job):
    if job.code != 0:
        raise Fail(last_line(job) if job.code == 1 else f"{job.how_it_ended()}: {last_line(job)}")
    return last_line(job)


def curve(stage):
    return ended_well(tool(stage, "check_gpu_curve.py", "--binary", stage.check.switchyard, *stage.check.smoke, "--json",
                           stage.path("curve.json")))


def steps(stage):
    kernels = stage.path("kernels.json")
    given = ["--kernels", kernels] if (read_json(kernels) or {}).get("product_flops") else []
    return ended_well(tool(stage, "bench_gpu_steps.py", "--binary", stage.check.switchyard, *given, *stage.check.smoke, "--keep", "--json",
                           stage.path("steps.json")))


def devices(stage):
    job = once(stage, "devices", [stage.check.bench_exchange, "--devices"], 60)
    if job is None or job.code != 0 or not last_line(job).isdigit():
        raise Fail(f"bench_exchange --devices: {last_line(job) if job else 'no answer'}")
    return int(last_line(job))


def ranks(stage):
    """NCCL by a rank alone, recorded too; then two ranks: on two cards, or on one where NCCL lets them."""
    job = once(stage, "alone", [stage.check.cuda_test, "--gtest_filter=CudaDeviceGroup.*"], 90)
    if job is None:
        raise Incomplete("the time was over")
    found = read_gtest(job.text())
    if job.code != 0:
        line = re.search(r".*(?:failure|failed with).*", job.text(), re.I)
        raise Fail(f"a rank alone does not exchange with itself by NCCL: {line[0] if line else job.how_it_ended()}")
    if found["nothing"] or found["skipped"]:
        # The reason of a test stands on a line of its own.
        reason = re.search(r"^(?:\[  SKIPPED \] )?((?:there is no|no CUDA|CUDA_VISIBLE).*)", job.text(), re.M)
        raise Skip(reason[1] if reason else "skipped")
    if not found["passed"]:
        raise Fail("cuda_test ran no test of NCCL")
    alone, count = "alone by NCCL: same bits, recorded too", devices(stage)
    if count == 0:
        raise Skip("there is no CUDA device")

    def two(**switch):
        name = "_".join(["ranks", *switch])
        return job_of(stage, name, ["python3", "-B", os.path.join(stage.check.root, "tools", "check_gpu_ranks.py"), "--binary",
                                    stage.check.switchyard, "--devices", str(count)], stage.seconds, variables=switch)
    job = two()
    if not run_jobs([job], 1, stage.deadline, lambda _: None, echo=True):
        raise Incomplete(f"{alone}; the time was over for two ranks")
    if job.code == 3:
        return f"{alone}; two ranks skipped: {last_line(job)}"
    if job.code != 0:
        heals = what_heals(stage, "ranks", lambda switch: two(**{switch: "1"}))
        if heals is not None:
            stage.finding(f"two ranks: {last_line(job)}; {healed(heals)}")
        raise Fail(last_line(job))
    return f"{alone}; {last_line(job)}"


def scaling(stage):
    count = devices(stage)
    if count < 2:
        raise Skip(f"CUDA devices: {count}; several are wanted")
    return ended_well(tool(stage, "bench_gpu_ranks.py", "--binary", stage.check.switchyard, "--exchange", stage.check.bench_exchange,
                           "--devices", str(count), *stage.check.smoke, "--keep", "--json", stage.path("scaling.json")))


def transformers(stage):
    # With the libraries that PyTorch brings, not those that our programs are given.
    python = stage.check.python_with("torch", "transformers") or stage.check.python_with("torch") or "python3"
    ours = stage.path("steps.json")
    job = tool(stage, "bench_transformers.py", os.path.join(stage.check.root, "configs", "qwen3_moe_0.6b.json"), "--device", "cuda",
               "--micro-batch", "32", *(["--steps-json", ours] if os.path.exists(ours) else []), "--keep", "--json",
               stage.path("transformers.json"), python=python, variables={"LD_LIBRARY_PATH": stage.check.library_path})
    if job.code == 3:
        raise Skip(last_line(job).removeprefix("no comparison with transformers: "))
    return ended_well(job)


# name -> (what runs, seconds that it may take, call); in each call first what is most worth knowing.
STAGES = {
    "card": (card, 60, 0),  # 0: in every call
    "build": (build, 1800, 0),
    "tests": (check_suites, 200, 1),  # does each kernel compute what it should
    "curve": (curve, 150, 1),  # does a model learn
    "kernels": (check_kernels, 400, 1),
    "steps": (steps, 400, 2),
    "cli": (check_cli, 300, 2),
    "ranks": (ranks, 250, 2),
    "memcheck": (lambda stage: check_with_sanitizer(stage, "memcheck"), 300, 3),
    "racecheck": (lambda stage: check_with_sanitizer(stage, "racecheck"), 400, 3),
    "transformers": (transformers, 400, 4),
    "scaling": (scaling, 580, 4),
    "synccheck": (lambda stage: check_with_sanitizer(stage, "synccheck"), 300, 4),
    "initcheck": (lambda stage: check_with_sanitizer(stage, "initcheck"), 120, 4),
}
FILES = {"kernels", "steps", "scaling", "transformers", "curve"}  # stages that leave NAME.json
