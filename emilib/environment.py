"""What the project needs from a machine: packages and room on the disk; where results go.
Standard library only: with ``EMI_ENV=current``, run_all.sh runs this file by its path."""

import importlib.metadata
import os
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "environment.yml"
RUN_GB = 3.0  # a default run writes about 2 GB: corpus, features, models, notebooks
TEST_ONLY = {"pytest", "hypothesis", "nbval", "ruff", "py-rattler", "setuptools", "jupyterlab"}


class Row(NamedTuple):
    """One package: the version that environment.yml asks for and the one installed, or None."""

    package: str
    wanted: str
    installed: str | None

    @property
    def fits(self) -> bool:
        # "2.13.0+cpu" is a build of 2.13.0.
        return self.installed is not None and self.installed.split("+")[0] == self.wanted


def requirements(path=FILE) -> list[str]:
    """The lines `package==version` of the pip list in environment.yml."""
    return re.findall(r"^ {6}- (\S+==\S+)", Path(path).read_text("utf-8"), re.M)


def check(path=FILE) -> list[Row]:
    """One Row a requirement, in the file's order: what is wanted, what is installed."""
    rows = []
    for package, wanted in (line.split("==") for line in requirements(path)):
        versions = (d.version for d in importlib.metadata.distributions(name=package))
        rows.append(Row(package, wanted, next(versions, None)))
    return rows


def home() -> Path:
    """Where generated things live: ``EMI_HOME``, or ``runs`` beside the package."""
    return Path(os.environ.get("EMI_HOME") or ROOT / "runs").resolve()


def require_room(folder, need_gb: float = RUN_GB, what: str = "the run") -> float:
    """Free GB (10^9 bytes) on a folder's disk; OSError below `need_gb`, or EMI_MIN_FREE_GB."""
    need_gb = float(os.environ.get("EMI_MIN_FREE_GB") or need_gb)
    folder = Path(folder).absolute()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if free < need_gb:
        got = f"{what} needs {need_gb:g} GB and {folder} has {free:.1f} GB free"
        hint = "Free some space, or set EMI_HOME to a folder on another disk"
        raise OSError(f"Not enough room on the disk: {got}. {hint}.")
    return free


def main() -> int:
    """1 where a package is missing; ``--tests`` counts those that only the tests need."""
    rows = [row for row in check() if "--tests" in sys.argv or row.package not in TEST_ONLY]
    missing = [f"{row.package}=={row.wanted}" for row in rows if row.installed is None]
    for row in rows:
        if row.installed is not None and not row.fits:
            print(f"Note: {row.package} {row.installed}, environment.yml asks for {row.wanted}.")
    if missing:
        message = f"Missing in this environment ({sys.prefix}): {', '.join(missing)}."
        print(f"{message} Install them, or leave EMI_ENV unset.", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
