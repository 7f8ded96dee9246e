"""One line at a time about what is going on, for a person who waits.

A notebook run headless has no terminal: the runner names a file in ``EMI_PROGRESS`` and shows
what is appended to it. Without that file the line goes to stderr, so that results stay alone on
stdout.
"""

import contextlib
import io
import os
import sys
import time

from . import ranks


def report(text: str) -> None:
    """Say `text` as one line; of several ranks only the first speaks."""
    if not ranks.first():
        return
    target = os.environ.get("EMI_PROGRESS")
    if target:
        with open(target, "a", encoding="utf-8") as stream:
            stream.write(text.rstrip("\n") + "\n")
    elif "JPY_PARENT_PID" not in os.environ:
        # In a notebook's kernel, or a process it started, a stray line would become part of the
        # committed outputs.
        print(text, file=sys.stderr, flush=True)


def quietly(function, *arguments, **options):
    """``function(...)`` without what it prints: hub mixins announce every folder they read."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments, **options)


class Counter:
    """Reports `done/total` of a stage, at most once in `every` seconds and at the end.

    An instance is a callback ``counter(done, total)``.
    """

    def __init__(self, stage: str, every: float = 10.0):
        self.stage = stage
        self.every = every
        self.last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - self.last >= self.every:
            self.last = now
            report(f"{self.stage} {done}/{total}")
