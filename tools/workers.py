"""Processes that work for this one and end with it, whatever ends it.

A worker is this file run by Python. It reads pickled messages from its standard input, of which the first is what to do
with the others (a callable of a module in this directory), and writes an answer for each. When its input ends, because
the parent closed it or was killed, it ends at once, in the middle of its work if need be. It has a session of its own, so
that Ctrl-C in a terminal is the parent's alone to handle.
"""

import itertools
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass


class WorkerDied(Exception):
    """A worker ended before it had answered."""


@dataclass
class _Failure:
    error: Exception


class Worker:
    def __init__(self, work):
        flags = ["-B"] if sys.dont_write_bytecode else []
        self.process = subprocess.Popen([sys.executable, *flags, os.path.abspath(__file__)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, start_new_session=True)  # fmt: skip
        self.send(work)

    def send(self, message):
        try:
            pickle.dump(message, self.process.stdin)
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerDied from None

    def answer(self):
        """The next one. Raises what was raised in the worker."""
        try:
            answer = pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise WorkerDied from None
        if isinstance(answer, _Failure):
            raise answer.error
        return answer

    def end(self):
        self.process.kill()  # it holds nothing that is to be saved
        self.process.wait()
        self.process.stdout.close()
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # what it had not read yet


def ordered_answers(messages, count, work):
    """Yields (message, answer) in the order of the messages; `count` workers, with at most two messages each in flight."""
    messages = iter(messages)
    workers, flying = [], deque()
    try:
        for message in itertools.islice(messages, 2 * count):
            if len(workers) < count:
                workers.append(Worker(work))
            worker = workers[len(flying) % count]
            worker.send(message)
            flying.append((worker, message))
        while flying:
            worker, message = flying.popleft()
            answer = worker.answer()
            for following in itertools.islice(messages, 1):
                worker.send(following)
                flying.append((worker, following))
            yield message, answer
    finally:
        for worker in workers:
            worker.end()


def _read_messages(stream, inbox):
    """In a thread of its own, so that the end of the input is seen while work goes on, and the parent never waits."""
    try:
        while True:
            inbox.put(pickle.load(stream))
    finally:
        os._exit(1)


def serve():
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    inbox = queue.SimpleQueue()
    threading.Thread(target=_read_messages, args=(sys.stdin.buffer, inbox), daemon=True).start()

    def answer(message):
        pickle.dump(message, answers)
        answers.flush()

    work = inbox.get()
    work.begin(answer)
    while True:
        message = inbox.get()
        try:
            result = work(message)
        except Exception as error:
            result = _Failure(error)
        answer(result)


if __name__ == "__main__":
    import workers  # by the name under which the parent knows it, so that answers are of the parent's classes

    workers.serve()
