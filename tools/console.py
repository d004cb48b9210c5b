"""What the tools share with the person at the terminal: one-line errors and a progress display."""

import os
import sys
import time


class UserError(Exception):
    """What the user gave cannot be used. Its text is one line: what, where, what to do. Exit code 2."""


def missing_module(module, needed_for):
    return UserError(
        f"{needed_for} needs the Python module '{module}', which is not installed; run: "
        "pip install -r tools/requirements.txt"
    )


def human_bytes(count):
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


class Progress:
    """A bar on a terminal; elsewhere a line every `LINE_SECONDS`, so that a log stays readable."""

    BAR_SECONDS = 0.2
    LINE_SECONDS = 30.0
    WIDTH = 30

    def __init__(self, total, stream=None, begun=0):
        """`begun`: how much of the total was done before."""
        self.total = max(total, 1)
        self.begun = begun
        self.stream = stream or sys.stderr
        self.tty = self.stream.isatty()
        self.start = self.last = time.monotonic()

    def update(self, done, note):
        now = time.monotonic()
        if now - self.last < (self.BAR_SECONDS if self.tty else self.LINE_SECONDS):
            return
        self.last = now
        share = min(done / self.total, 1.0)
        new = share - self.begun / self.total
        left = (now - self.start) * (1 - share) / new if new > 0 else 0.0
        text = f"{share:4.0%}  {note}  {left:.0f} s left"
        if self.tty:
            bar = "#" * int(share * self.WIDTH)
            columns = os.get_terminal_size(self.stream.fileno()).columns
            self.stream.write("\r" + f"[{bar:<{self.WIDTH}}] {text}"[: columns - 1] + "\x1b[K")
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def close(self):
        if self.tty:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
