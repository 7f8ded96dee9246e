"""One line at a time about what is going on, for a person who waits."""

import contextlib
import io
import math
import os
import sys
import time

from tqdm import tqdm

from emilib import cache


def report(text: str) -> None:
    """Say `text` as one line, to the runner's file ``EMI_PROGRESS`` or stderr; rank 0 speaks."""
    if not cache.is_main():
        return
    if target := os.environ.get("EMI_PROGRESS"):
        with open(target, "a", encoding="utf-8") as stream:
            stream.write(text.rstrip("\n") + "\n")
    elif "JPY_PARENT_PID" not in os.environ:
        print(text, file=sys.stderr, flush=True)


def quietly(function, *arguments, **options):
    """``function(...)`` without what it prints: hub mixins announce every folder they read."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments, **options)


@contextlib.contextmanager
def epoch_bar(total: int):
    """A callback that draws training records as a bar in a terminal and in JupyterLab."""
    watched = sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ
    hidden = not watched or "EMI_PROGRESS" in os.environ or cache.rank() != 0
    with tqdm(total=total, disable=hidden, desc="training", unit="epoch", file=sys.stderr) as bar:

        def tell(record: dict) -> None:
            known = "" if math.isnan(record["rho"]) else f", ρ {record['rho']:.3f}"
            bar.set_postfix_str(f"loss {record['loss']:.4f}{known}", refresh=False)
            bar.update()

        yield tell


class Counter:
    """A callback ``counter(done, total)`` that reports a stage every 10 s, and at its end."""

    def __init__(self, stage: str):
        self.stage, self.last = stage, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - self.last >= 10.0:
            self.last = now
            report(f"{self.stage} {done}/{total}")
