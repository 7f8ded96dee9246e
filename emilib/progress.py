"""One line at a time about what is going on, for a person who waits.

A notebook run headless has no terminal: the runner names a file in ``EMI_PROGRESS`` and shows
what is appended to it. Without that file the line goes to stderr, so that results stay alone on
stdout.
"""

import contextlib
import io
import math
import os
import sys
import time

from tqdm import tqdm

from emilib import cache


def report(text: str) -> None:
    """Say `text` as one line; of several ranks only the first speaks."""
    if not cache.is_main():
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


def _unwatched() -> bool:
    """Whether this is a notebook's kernel that no person looks at, such as the runner's.

    Kernels that JupyterLab starts are told the name of their session; headless ones are not.
    """
    kernel = "JPY_PARENT_PID" in os.environ
    return "EMI_PROGRESS" in os.environ or (kernel and "JPY_SESSION_NAME" not in os.environ)


@contextlib.contextmanager
def epoch_bar(total: int):
    """A callback that takes training records and draws a text bar on stderr: epoch, loss, ρ.

    total : epochs. In JupyterLab it is the same bar of text. Nothing is drawn in a notebook that
    is run headless, nor by any rank but the first. A log file gets a line every ten seconds.
    """
    settings = {"total": total, "desc": "training", "unit": "epoch", "file": sys.stderr}
    log = not (sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ)
    settings["mininterval"] = 10.0 if log else 0.1
    with tqdm(disable=_unwatched() or cache.rank() != 0, **settings) as bar:

        def tell(record: dict) -> None:
            rho = record["rho"]
            known = "" if math.isnan(rho) else f", ρ {rho:.3f}"
            bar.set_postfix_str(f"loss {record['loss']:.4f}{known}", refresh=False)
            bar.update()

        yield tell


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
