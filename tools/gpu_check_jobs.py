"""Commands that scripts/gpu_check.sh runs: each in a process group of its own with a time limit, several at once where asked
for, none of them left when the check ends. Standard library alone.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

KILL_AFTER = 5  # seconds between SIGTERM and SIGKILL


class CutOff(BaseException):
    """The check itself was told to end."""


class Signals:
    """What tells the check to end raises CutOff, but not while a process starts, which nobody would know to end."""
    held, pending = False, None

    @classmethod
    def stop(cls, number, _frame):
        if cls.held:
            cls.pending = number
        else:
            raise CutOff(f"ended by {signal.Signals(number).name}")

    @classmethod
    def hold(cls, held):
        cls.held = held
        if not held and cls.pending is not None:
            number, cls.pending = cls.pending, None
            cls.stop(number, None)


def raise_on_signals():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, Signals.stop)


@dataclasses.dataclass
class Job:
    name: str
    command: list
    log: str  # path; gets standard output and standard error
    limit: float  # seconds
    variables: dict = dataclasses.field(default_factory=dict)  # of the environment, beside those that there are
    progress: tuple = ()  # (path, seconds): a file that is written again at least that often, or the job hangs
    process: subprocess.Popen | None = None
    started: float = 0.0
    seconds: float = 0.0
    code: int | None = None  # None: it was ended
    hung: bool = False  # by its own limit, not by the end of all

    def start(self):
        self.started = time.monotonic()
        with open(self.log, "wb") as log:
            Signals.hold(True)
            try:
                self.process = subprocess.Popen([str(word) for word in self.command], stdin=subprocess.DEVNULL, stdout=log,
                                                stderr=subprocess.STDOUT, start_new_session=True,
                                                env={**os.environ, **self.variables})
            except OSError as error:
                log.write(f"error: {error}\n".encode())
                self.code = 127
            finally:
                Signals.hold(False)

    def poll(self):
        """-> whether it has ended."""
        if self.code is not None:
            return True
        code, self.seconds = self.process.poll(), time.monotonic() - self.started
        if code is not None:
            self.code = code
            self.end()  # what it has left behind
            return True
        if self.seconds > self.limit or self.stands_still():
            self.hung = True
            self.end()
            return True
        return False

    def stands_still(self):
        if not self.progress:
            return False
        path, most = self.progress
        last = max(os.path.getmtime(path) if os.path.exists(path) else 0, time.time() - self.seconds)
        return time.time() - last > most

    def send(self, number):
        """-> whether anybody is left in the group to hear it"""
        if self.process is None:
            return False
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def end(self):
        """Ends the whole group, children of children too."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self.send(number):
                break
            try:
                self.process.wait(KILL_AFTER)
            except subprocess.TimeoutExpired:
                continue
        if self.process is not None:
            self.process.poll()

    def text(self):
        with open(self.log, errors="replace") as file:
            return file.read()

    def how_it_ended(self):
        if self.hung:
            return f"hangs: ended after {self.seconds:.0f} s"
        if self.code is None:
            return "cut off"
        return f"killed by signal {-self.code}" if self.code < 0 else f"exit code {self.code}"


def run_jobs(jobs, at_once, deadline, ended, echo=False):
    """Runs them in their order until `deadline` (of time.monotonic()); calls ended(job) for each that ended by itself or by its own
    limit. -> whether all have. `echo` prints what the jobs write, as they write it."""
    waiting, running = list(jobs), []
    shown = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once and time.monotonic() < deadline:
                job = waiting.pop(0)
                running.append(job)
                job.start()
            for job in list(running):
                done = job.poll()
                if echo:
                    show_new(job, shown)
                if done:
                    running.remove(job)
                    ended(job)
            if running or waiting:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.02)
        return True
    finally:
        for job in running:  # all are told before one is waited for
            job.send(signal.SIGTERM)
        for job in running:
            job.end()
            if echo:
                show_new(job, shown)


def show_new(job, shown):
    if not os.path.exists(job.log):
        return
    with open(job.log, "rb") as file:
        file.seek(shown.get(job.name, 0))
        new = file.read()
    shown[job.name] = shown.get(job.name, 0) + len(new)
    if new:
        sys.stdout.write(new.decode(errors="replace"))
        sys.stdout.flush()


def read_json(path, otherwise=None):
    try:
        with open(path) as file:
            return json.load(file)
    except (FileNotFoundError, ValueError):  # it was never written, or not whole
        return otherwise


def write_json(path, content):
    """All of it or nothing: whoever is cut off while it writes leaves what was there."""
    with open(f"{path}.partial", "w") as file:
        json.dump(content, file, indent=1)
    os.replace(f"{path}.partial", path)
