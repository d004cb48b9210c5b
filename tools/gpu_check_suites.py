"""Stages of scripts/gpu_check.sh that are made of many processes: the suites of cuda_test, the cases of bench_cuda, both under
compute-sanitizer, the tests of whole runs. An error of the device ends what its process can do there and nothing else; what is
known of each part is written at once, so that a call that is cut off loses the running parts alone.
"""

import os
import re

from bench_gpu_steps import SWITCHES, healed
from gpu_check_jobs import Job, read_json, run_jobs, write_json

SUITE_SECONDS = 60  # of a suite of cuda_test, or of one of its tests; some seconds are expected
CASE_SECONDS = 60  # of a case of bench_cuda; one is expected
TEST_SECONDS = 120  # of a test of whole runs
MOST_ALONE, MOST_MEMCHECKS = 24, 4  # of what failed: so many are looked into
BLOCKING = {"CUDA_LAUNCH_BLOCKING": "1"}
FAMILIES = ("rows", "model", "moe", "router", "lpr", "attention")  # of bench_cuda --list; those with wgmma last


class Skip(Exception):
    """A stage that cannot run here."""


class Fail(Exception):
    pass


class Incomplete(Exception):
    """Its time was over: the next call goes on."""


class Units:
    """The parts of a stage that are known: a file in `out`, written after each."""

    def __init__(self, stage):
        self.path = stage.path("units", f"{stage.name}.json")
        self.known = read_json(self.path, {})

    def set(self, name, **facts):
        self.known.setdefault(name, {}).update(facts)
        write_json(self.path, self.known)

    def having(self, key, *values):
        return [name for name, facts in self.known.items() if facts.get(key) in values]


def job_of(stage, name, command, limit, **more):
    return Job(name, command, stage.path("logs", f"{stage.name}.{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.log"), limit, **more)


def once(stage, name, command, limit, **more):
    """One command. -> its job, or None where the stage's time ended it."""
    job = job_of(stage, name, command, limit, **more)
    return job if run_jobs([job], 1, stage.deadline, lambda _: None) else None


# --- GoogleTest ---------------------------------------------------------------------------------------------------

def tests_of(stage):
    """{suite: [test]}: what cuda_test holds."""
    job = once(stage, "list", [stage.check.cuda_test, "--gtest_list_tests"], 60)
    if job is None:
        raise Incomplete("the time was over")
    if job.code != 0:
        raise Fail(f"cuda_test --gtest_list_tests: {last_line(job)}: {job.how_it_ended()}")
    suites, suite = {}, None
    for line in job.text().splitlines():
        if match := re.match(r"(\S+)\.(\s+#.*)?$", line):
            suite = suites.setdefault(match[1], [])
        elif suite is not None and (match := re.match(r"  (\S+)", line)):
            suite.append(match[1])
    return suites


def last_line(job):
    lines = [line.strip() for line in job.text().splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def read_gtest(text):
    """What the output of a program of GoogleTest says, of as much as it has printed."""
    ends = {name: end for end, name in re.findall(r"^\[ +(OK|FAILED|SKIPPED) +\] (\S+?)(?:, where .*)? \(\d+ ms\)$", text, re.M)}
    begun = re.findall(r"^\[ RUN +\] (\S+)$", text, re.M)
    # Where the environment of all tests is skipped, none runs, and GoogleTest calls every one passed.
    nothing = re.search(r"^\[  SKIPPED \] (.*)$", text, re.M) if not begun else None
    return {"passed": [name for name, end in ends.items() if end == "OK"], "failed": [name for name, end in ends.items() if end == "FAILED"],
            "skipped": [name for name, end in ends.items() if end == "SKIPPED"], "nothing": nothing[1] if nothing else None,
            "running": begun[-1] if begun and begun[-1] not in ends else None}


def first_error(text, job):
    """In one line: what a failed test says first, else how its process ended."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if match := re.search(r'C\+\+ exception with description "(.*?)("? thrown in .*)?$', line):
            return match[1][:200]
        if line.endswith(": Failure"):
            return " ".join(line.strip() for line in lines[number + 1:number + 4])[:200]
    return f"{job.how_it_ended()}: {last_line(job)}"[:200]


def check_suites(stage):
    """Stage `tests`: each suite is a process; what failed or was not reached runs again, each test a process."""
    suites, units = tests_of(stage), Units(stage)
    if not suites:
        raise Fail("cuda_test holds no test")

    def ended(job):
        text = job.text()
        found = read_gtest(text)
        reached = {*found["passed"], *found["failed"], *found["skipped"]}
        left = [f"{job.name}.{test}" for test in suites[job.name] if f"{job.name}.{test}" not in reached]
        good = job.code == 0 and not found["failed"]
        units.set(job.name, result="ok" if good else "failed", passed=len(found["passed"]), skipped=found["skipped"],
                  nothing=found["nothing"], failed=[] if good else [*found["failed"], *left], seconds=round(job.seconds, 1),
                  ended="" if good else job.how_it_ended(), running=found["running"], error="" if good else first_error(text, job))
        print(f"{job.name}: {units.known[job.name]['result']}, {len(found['passed'])} passed, {job.seconds:.1f} s"
              + ("" if good else f"; {job.how_it_ended()}; {units.known[job.name]['error']}"), flush=True)

    whole = run_jobs([job_of(stage, name, [stage.check.cuda_test, f"--gtest_filter={name}.*"], SUITE_SECONDS, variables=stage.check.shared) for name in suites
                      if name not in units.known], stage.check.at_once, stage.deadline, ended)
    known = [units.known[name] for name in suites if name in units.known]
    failed = [name for name in suites if units.known.get(name, {}).get("result") == "failed"]
    if failed:
        whole = look_into_tests(stage, units, failed) and whole
    passed, skipped = sum(facts["passed"] for facts in known), [test for facts in known for test in facts["skipped"]]
    said = f"{passed} tests of {len(known)} suites passed" + (f", {len(skipped)} skipped" if skipped else "")
    if failed:
        tests = [test for name in failed for test in units.known[name]["failed"]]
        stage.finished = whole
        raise Fail(f"{said}; {len(failed)} suites failed, {len(tests)} of their tests have not passed, the first: {(tests or failed)[0]}")
    if not whole:
        raise Incomplete(f"{said} of {len(suites)}, then the time was over")
    if known and all(facts["nothing"] for facts in known):
        raise Skip(known[0]["nothing"])
    if not passed:
        raise Fail("cuda_test ran no test")
    return said


def look_into_tests(stage, units, failed):
    """Runs what failed again, alone and with each kernel waited for, and what fails then under memcheck. -> whether time was left"""
    alone = [(suite, test) for suite in failed for test in units.known[suite]["failed"]][:MOST_ALONE]
    suite_of = {test: suite for suite, test in alone}

    def ended(job):
        suite = suite_of[job.name]
        good = job.code == 0
        again = {**units.known[suite].get("alone", {}), job.name: "passes alone" if good else first_error(job.text(), job)}
        units.set(suite, alone=again)
    whole = run_jobs([job_of(stage, test, [stage.check.cuda_test, f"--gtest_filter={test}"], SUITE_SECONDS, variables={**stage.check.shared, **BLOCKING})
                      for suite, test in alone if test not in units.known[suite].get("alone", {})],
                     stage.check.at_once, stage.deadline, ended)
    for suite in failed:
        facts = units.known[suite]
        if not facts["failed"]:  # all its tests passed, its process did not
            stage.finding(f"{suite}: {facts['ended']}: {facts['error']}")
        for test in facts["failed"]:
            stage.finding(f"{test}: {facts.get('alone', {}).get(test, 'not run again')}"
                          + (f" (in its suite: {facts['ended']})" if test == facts["running"] else ""))
    still = [test for suite, test in alone if units.known[suite].get("alone", {}).get(test, "passes alone") != "passes alone"]
    return look_with_memcheck(stage, [(test, [stage.check.cuda_test, f"--gtest_filter={test}"]) for test in still]) and whole


def look_with_memcheck(stage, filters):
    """The first lines of memcheck, of each command. -> whether time was left"""
    sanitizer = stage.check.sanitizer()
    if not filters or sanitizer is None:
        return True
    for name, command in filters[:MOST_MEMCHECKS]:
        job = once(stage, f"memcheck.{name}", sanitizer_command(sanitizer, "memcheck", command), 2 * SUITE_SECONDS)
        if job is None:
            return False
        for line in sanitizer_errors(job.text())[:3] or ["nothing is found"]:
            stage.finding(f"  memcheck, {name}: {line}")
    return True


# --- compute-sanitizer --------------------------------------------------------------------------------------------

def sanitizer_command(sanitizer, tool, command):
    return [sanitizer, "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no", "--print-limit", "20", *command]


def sanitizer_errors(text):
    return [line.strip("= ") for line in text.splitlines() if re.match(r"=+ +(Invalid|Error|Race|Barrier|Uninit|Warning: .*[Rr]ace)", line)]


def check_with_sanitizer(stage, tool):
    """Each family of kernels at bench_cuda's tiny sizes, then each suite of cuda_test, as far as the time goes. Tests fill memory
    with NaN first: initcheck would find nothing there."""
    sanitizer = stage.check.sanitizer()
    if sanitizer is None:
        raise Skip("compute-sanitizer is not there")
    units = Units(stage)
    commands = {f"bench_{name}": [stage.check.bench_cuda, "--smoke", "--family", name] for name in FAMILIES}
    if tool != "initcheck":
        # racecheck knows bulk copies and wgmma only in part: what uses them comes last.
        suites = sorted(tests_of(stage), key=lambda name: "Wgmma" in name or "Attention" in name or "Mla" in name)
        commands |= {name: [stage.check.cuda_test, f"--gtest_filter={name}.*"] for name in suites}

    def ended(job):
        errors = sanitizer_errors(job.text())
        result = "failed" if errors or job.code not in (0, None) else "slow" if job.hung else "ok"
        if result == "failed" and not errors:
            errors = [f"{job.how_it_ended()}: {last_line(job)}"]
        units.set(job.name, result=result, errors=errors[:20], seconds=round(job.seconds, 1))
        print(f"{job.name}: {result}, {job.seconds:.0f} s", *errors[:3], sep="\n  ", flush=True)
    whole = run_jobs([job_of(stage, name, sanitizer_command(sanitizer, tool, command), stage.seconds / 2, variables=stage.check.shared)
                      for name, command in commands.items() if name not in units.known], stage.check.at_once, stage.deadline, ended)
    bad, slow = units.having("result", "failed"), units.having("result", "slow")
    for name in bad:
        for line in units.known[name]["errors"][:3]:
            stage.finding(f"{name}: {line}")
    said = f"{len(units.having('result', 'ok'))} of {len(commands)} without an error" + (f", too slow: {', '.join(slow)}" if slow else "")
    stage.finished = whole
    if bad:
        raise Fail(f"{said}; {len(bad)} with, the first: {bad[0]}: {units.known[bad[0]]['errors'][0]}")
    if not whole:
        raise Incomplete(f"{said}, then the time was over")
    return said


# --- bench_cuda ---------------------------------------------------------------------------------------------------

def check_kernels(stage):
    """All cases in one process; after an error that ends its work on the device, a crash or a hang another goes on with the next."""
    path, bench = stage.path("kernels.json"), [stage.check.bench_cuda, *stage.check.smoke]
    listed = once(stage, "list", [*bench, "--list"], 60)
    if listed is None:
        raise Incomplete("the time was over")
    if listed.code != 0:
        raise Fail(f"bench_cuda --list: {last_line(listed)}: {listed.how_it_ended()}")
    names = [line.split(" ", 1)[1] for line in listed.text().splitlines() if " " in line]
    merged = read_json(path, {})
    done = merged.get("done", 0)
    whole = True
    while whole and done < len(names):
        part = os.path.join(stage.check.work, "kernels.json")
        if os.path.exists(part):
            os.remove(part)
        job = job_of(stage, f"from_{done}", [*bench, "--skip", str(done), "--json", part], stage.seconds,
                     progress=(part, CASE_SECONDS))
        whole = run_jobs([job], 1, stage.deadline, lambda _: None, echo=True)
        said = read_json(part)
        if said is None and not whole:
            break
        if said is None:  # not even a product and a copy
            raise Fail(f"bench_cuda: {last_line(job)}: {job.how_it_ended()}")
        new = said["cases"][2:]
        done += len(new)
        if whole and done < len(names) and job.code != 9:
            new.append({"kernel": names[done], "error": job.how_it_ended()})
            done += 1
        merged = {**said, **{key: merged[key] for key in ("product_flops", "copy_bytes_per_second") if key in merged},
                  "cases": [*merged.get("cases", said["cases"][:2]), *new], "done": done}
        write_json(path, merged)
    cases = merged.get("cases", [])
    bad = [number for number, case in enumerate(cases) if "error" in case]
    if bad:
        whole = look_into_cases(stage, bench, path, merged, [number for number in bad if number >= 2]) and whole
    barred = [case for case in cases if "reached" in case]
    said = f"{len(cases) - len(bad)} of {len(names) + 2} cases ran; {sum(case['reached'] for case in barred)} of {len(barred)} bars reached"
    stage.finished = whole
    if bad:
        raise Fail(f"{said}; {len(bad)} failed, the first: {cases[bad[0]]['kernel']}: {cases[bad[0]]['error']}")
    if not whole:
        raise Incomplete(f"{said}, then the time was over")
    return said


def look_into_cases(stage, bench, path, merged, numbers):
    """As look_into_tests, of cases: `numbers` count from the product and the copy on."""
    for number in numbers[:MOST_ALONE // 4]:
        case = merged["cases"][number]
        if "alone" not in case:
            job = once(stage, f"alone.{number}", [*bench, "--skip", str(number - 2), "--count", "1"], 2 * CASE_SECONDS, variables=BLOCKING)
            if job is None:
                return False
            failed = re.search(r"FAILED: (.*)", job.text())
            case["alone"] = "runs alone" if job.code == 0 else failed[1] if failed else f"{job.how_it_ended()}: {last_line(job)}"
            write_json(path, merged)
        stage.finding(f"{case['kernel']}: {case['error']}; alone, each kernel waited for: {case['alone']}")
    return look_with_memcheck(stage, [
        (merged["cases"][number]["kernel"], [stage.check.bench_cuda, "--smoke", "--skip", str(number - 2), "--count", "1"])
        for number in numbers if merged["cases"][number].get("alone", "runs alone") != "runs alone"])


# --- whole runs ---------------------------------------------------------------------------------------------------

def check_cli(stage):
    """tests/cli/device_test.py, each test a process; with --smoke one of them."""
    path = os.path.join(stage.check.root, "tests", "cli", "device_test.py")
    names, of = [], ""
    with open(path) as file:
        for line in file:
            if match := re.match(r"class (\w+)\(CliTest\)", line):
                of = match[1]
            elif match := re.match(r"    def (test_\w+)", line):
                names.append(f"{of}.{match[1]}")
    if stage.check.smoke:
        names = names[:1]
    units = Units(stage)
    variables = {"SWITCHYARD_BIN": stage.check.switchyard, "SWITCHYARD_DEVICE_BIN": stage.check.switchyard}

    def job(name, **switch):
        return job_of(stage, "_".join([name, *switch]), ["python3", "-B", path, "--verbose", name], TEST_SECONDS, variables={**variables, **switch})

    def ended(job):
        text = job.text()
        skipped = re.search(r"skipped '(.*)'", text) or re.search(r'skipped "(.*)"', text)
        result = "failed" if job.code != 0 else "skipped" if skipped else "ok"
        errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Expired)\b.*", text, re.M)
        units.set(job.name, result=result, seconds=round(job.seconds, 1), reason=skipped[1] if result == "skipped" else "",
                  error=(errors[-1] if errors else job.how_it_ended())[:200] if result == "failed" else "")
        print(f"{job.name}: {result}, {job.seconds:.1f} s {units.known[job.name]['reason']}{units.known[job.name]['error']}", flush=True)
    whole = run_jobs([job(name) for name in names if name not in units.known], max(1, stage.check.at_once // 2), stage.deadline, ended)
    bad = units.having("result", "failed")
    for name in bad[:MOST_ALONE // 4]:
        if "heals" not in units.known[name]:
            heals = what_heals(stage, name, lambda switch: job(name, **{switch: "1"}))
            if heals is None:
                whole = False
                break
            units.set(name, heals=heals)
    for name in bad:
        facts = units.known[name]
        stage.finding(f"{name}: {facts['error']}" + (f"; {healed(facts['heals'])}" if "heals" in facts else ""))
    said = ", ".join(f"{len(units.having('result', result))} {result}" for result in ("ok", "failed", "skipped") if units.having("result", result))
    stage.finished = whole
    if bad:
        raise Fail(f"{said}; the first: {bad[0]}")
    without = [facts["reason"] for facts in units.known.values() if "CUDA device" in facts["reason"]]
    if without:
        raise Skip(re.sub(r".*error: (--device cuda: )?", "", without[0]))
    if not whole:
        raise Incomplete(f"{said} of {len(names)}, then the time was over")
    return said


def what_heals(stage, name, job_with):
    """-> the switches with each of which the job succeeds; None where the time was over."""
    heals = []
    for switch in SWITCHES:
        job = job_with(switch)
        if not run_jobs([job], 1, stage.deadline, lambda _: None):
            return None
        if job.code == 0:
            heals.append(switch)
    return heals

