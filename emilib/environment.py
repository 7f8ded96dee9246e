"""What the project needs from a machine: packages, Python, room on the disk.

Standard library only: run_all.sh runs this file by its path before anything is installed.

    python emilib/environment.py --pip-list environment.yml     # the requirements, one a line
    python emilib/environment.py --check environment.yml        # exit 1 when one is missing
"""

import argparse
import importlib.metadata
import os
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "environment.yml"
OLDEST_PYTHON = (3, 11)
RUN_GB = 1.0  # a default run writes about 0.6 GB: corpus, features, models, notebooks
TEST_ONLY = frozenset(
    {"pytest", "hypothesis", "nbval", "ruff", "py-rattler", "setuptools", "jupyterlab"}
)

_ITEM = re.compile(r"^(?P<indent> *)- +(?P<text>.+)$")


class Row(NamedTuple):
    """One package: the version that environment.yml asks for and the one installed, or None."""

    package: str
    wanted: str
    found: str | None

    @property
    def fits(self) -> bool:
        # "2.13.0+cpu" is a build of 2.13.0.
        return self.found is not None and self.found.split("+")[0] == self.wanted


def dependencies(path=FILE) -> tuple[list[str], list[str]]:
    """The conda specifications and the pip requirements of an environment file.

    Reads the one form that environment.yml has: block lists, a single inline `pip:` list, comments.
    Raises ValueError, naming the line, for anything else inside `dependencies`.
    """
    path = Path(path)
    conda, pip, inside, pip_indent = [], [], False, None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = re.sub(r"(^|\s)#.*$", "", line).rstrip()
        if not line:
            continue
        if not line.startswith((" ", "-")):
            inside = line == "dependencies:"
            continue
        if not inside:
            continue
        item = _ITEM.match(line)
        if item is None or item["text"].startswith(("-", "{", "[")):
            raise ValueError(
                f"{path}, line {number}: expected one '- package' a line, got {line.strip()!r}."
            )
        indent, text = len(item["indent"]), item["text"].strip("\"'")
        if text == "pip:":
            pip_indent = indent
        elif pip_indent is not None and indent > pip_indent:
            pip.append(text)
        else:
            conda.append(text)
    if not pip:
        raise ValueError(f"{path}: expected a 'pip:' list under 'dependencies', found none.")
    return conda, pip


def check(path=FILE) -> list[Row]:
    """One Row a pip requirement, in the file's order: what is wanted, what is installed."""
    rows = []
    for requirement in dependencies(path)[1]:
        package, _, wanted = requirement.partition("==")
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = None
        rows.append(Row(package.strip(), wanted.strip(), found))
    return rows


def home() -> Path:
    """Where generated things live: ``EMI_HOME``, or ``runs`` beside the package."""
    return Path(os.environ.get("EMI_HOME") or ROOT / "runs").resolve()


def figures(profile: str, embedded: bool, home: Path) -> Path:
    """Where figures and tables go: the project's own folder for the default run alone."""
    default = profile == "embedded" and embedded and home == ROOT / "runs"
    return ROOT / "figures" if default else home / profile / "figures"


def free_gb(folder) -> float:
    """Free space in GB (10^9 bytes) on the disk that holds a folder, which need not exist yet."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9


def require_room(folder, need_gb: float = RUN_GB, what: str = "the run") -> float:
    """Free GB at a folder; OSError, with both numbers, when it is less than needed.

    The environment variable EMI_MIN_FREE_GB replaces the need.
    """
    need_gb = float(os.environ.get("EMI_MIN_FREE_GB") or need_gb)
    free = free_gb(folder)
    if free < need_gb:
        raise OSError(
            f"Not enough room on the disk: {what} needs {need_gb:g} GB and {folder} has "
            f"{free:.1f} GB free. Free some space, or set EMI_HOME to a folder on another disk."
        )
    return free


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description="Reads and checks environment.yml.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--pip-list", action="store_true", help="print the pip requirements")
    action.add_argument("--check", action="store_true", help="compare with what is installed")
    parser.add_argument("--tests", action="store_true", help="with --check: for --test as well")
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    if options.pip_list:
        print("\n".join(dependencies(options.file)[1]))
        return 0
    return _report(check(options.file), tests=options.tests)


def _report(rows: list[Row], tests: bool) -> int:
    needed = [row for row in rows if tests or row.package not in TEST_ONLY]
    other = [f"{r.package} {r.found} (wanted {r.wanted})" for r in needed if r.found and not r.fits]
    missing = [f"{row.package}=={row.wanted}" for row in needed if row.found is None]
    if other:
        print(f"Note: other versions than environment.yml asks for: {', '.join(other)}.")
    if missing:
        message = f"Missing in this environment ({sys.prefix}): {', '.join(missing)}."
        print(f"{message} Install them, or leave EMI_ENV unset.", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
