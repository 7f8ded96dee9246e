"""The list of dependencies and run_all.sh: what is read, what is installed, what a failure says."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rattler import MatchSpec

from emilib import environment

ROOT = environment.ROOT
TOOLS = ["bash", "dirname", "df", "awk", "sed", "cksum", "tr", "cat", "mkdir", "rm", "cp", "sleep"]
TOOLS += ["grep", "tail", "flock", "env", "chmod"]
LISTED = {Requirement(line).name for line in environment.dependencies()[1]}


# ------------------------------------------------------------------ environment.yml


def test_conda_part_is_python_and_pip():
    conda, _ = environment.dependencies()
    specs = {MatchSpec(text).name.normalized: MatchSpec(text) for text in conda}
    assert set(specs) == {"python", "pip"}
    assert ">=3.11" in str(specs["python"].version)


def test_pip_part_is_exact_and_free_of_options():
    _, pip = environment.dependencies()
    for line in pip:
        requirement = Requirement(line)
        assert [s.operator for s in requirement.specifier] == ["=="], line
        assert requirement.url is None, line
    assert "torch==2.13.0" in pip
    assert len({canonicalize_name(name) for name in LISTED}) == len(pip), "a package twice"


def test_every_dependency_has_its_reason():
    items = re.findall(r"^ *- (?!pip:|conda-forge)(.*)$", environment.FILE.read_text(), re.M)
    conda, pip = environment.dependencies()
    assert len(items) == len(conda) + len(pip)
    for item in items:
        _, _, reason = item.partition("#")
        assert len(reason.split()) >= 1, f"no reason beside {item!r}"


def test_own_reader_agrees_with_a_yaml_parser():
    yaml = pytest.importorskip("yaml")
    read = yaml.safe_load(environment.FILE.read_text())["dependencies"]
    assert environment.dependencies() == ([x for x in read if isinstance(x, str)], read[-1]["pip"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dependencies:\n  - python\n", "'pip:' list"),
        ("dependencies:\n  - pip:\n    numpy==1\n", "line 3"),
        ("dependencies:\n  - pip:\n    - -r other.txt\n", "line 3"),
        ("dependencies: [python, pip]\n", "'pip:' list"),
    ],
)
def test_other_forms_of_the_list_are_refused(tmp_path, text, message):
    (tmp_path / "environment.yml").write_text(text)
    with pytest.raises(ValueError, match=message):
        environment.dependencies(tmp_path / "environment.yml")


def _imported(sources):
    modules = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                modules.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.add(node.module.split(".")[0])
    return modules - set(sys.stdlib_module_names) - {"emilib"}


def _package_sources():
    for path in sorted((ROOT / "emilib").rglob("*.py")):
        yield path.read_text()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                yield re.sub(r"^[%!].*$", "", cell.source, flags=re.M)


def test_what_is_imported_is_listed_and_what_is_listed_is_used():
    owners = importlib.metadata.packages_distributions()
    listed = {canonicalize_name(name) for name in LISTED}
    imported = _imported(_package_sources())
    for module in sorted(imported):
        names = {canonicalize_name(name) for name in owners.get(module, [module])}
        assert names & listed, f"{module} is imported, and environment.yml does not list it"

    by_tests = _imported(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    used = {canonicalize_name(n) for m in imported | by_tests for n in owners.get(m, [m])}
    named = "".join(
        (ROOT / name).read_text() for name in ("run_all.sh", "pyproject.toml", "CONTRIBUTING.md")
    )
    for name in sorted(listed - used):
        assert name in named.lower(), f"{name} is listed, and nothing uses or names it"


def test_check_tells_what_is_missing_and_what_differs(tmp_path):
    numpy = importlib.metadata.version("numpy")
    path = tmp_path / "environment.yml"
    path.write_text(
        f"dependencies:\n  - pip:\n    - numpy=={numpy}\n"
        "    - scipy==0.1\n    - no-such-thing-here==1.0\n"
    )
    same, other, missing = environment.check(path)
    assert same == ("numpy", numpy, numpy)
    assert same.fits
    assert not other.fits
    assert missing.found is None
    assert environment.Row("torch", "2.13.0", "2.13.0+cpu").fits


def test_room_is_checked(tmp_path, monkeypatch):
    monkeypatch.delenv("EMI_MIN_FREE_GB", raising=False)
    free = environment.require_room(tmp_path / "not" / "yet", need_gb=0)
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free / 1e9, rel=0.2)
    monkeypatch.setenv("EMI_MIN_FREE_GB", "9999999")
    with pytest.raises(OSError, match=r"needs 1e\+07 GB and .* GB free"):
        environment.require_room(tmp_path)


# ------------------------------------------------------------------ run_all.sh

# Stands for a Python: -m venv and pip are played, the rest is the real one.
PYTHON_STUB = """#!/usr/bin/env bash
case "$*" in
    *version_info*) echo ${STUB_VERSION:-3.11} ;;
    *ensurepip*) exit ${STUB_NO_ENSUREPIP:-0} ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo venv >>"$STUB_LOG" ;;
    "-m pip install"*)
        echo pip >>"$STUB_LOG"
        echo "${STUB_PIP_SAYS:-}"
        [ -z "${STUB_PIP_SLEEP:-}" ] || sleep "$STUB_PIP_SLEEP"
        exit ${STUB_PIP_STATUS:-0} ;;
    *emilib.runner*)
        shift
        echo "runner: $*"
        echo "PYTHONPATH=$PYTHONPATH OFFLINE=${HF_HUB_OFFLINE:-}" ;;
    *--version*) echo "Python ${STUB_VERSION:-3.11}" ;;
    *) exec REAL "$@" ;;
esac
"""
CONDA_STUB = """#!/usr/bin/env bash
echo "conda $*" >>"$STUB_LOG"
[ -z "${STUB_CONDA_FAILS:-}" ] || exit 1
while [ "$1" != --prefix ]; do shift; done
mkdir -p "$2/bin" && cp "$(dirname "$0")/python3.11" "$2/bin/python"
"""


class Checkout:
    """A copy of what run_all.sh needs, and a PATH on which only stubs and plain tools lie."""

    def __init__(self, folder: Path):
        self.root = folder / "a check out"
        self.bin = folder / "bin"
        self.log = folder / "stub.log"
        (self.root / "emilib").mkdir(parents=True)
        (self.root / "notebooks").mkdir()
        (self.root / "notebooks" / "03_tiny.ipynb").write_text("{}")
        for name in ("run_all.sh", "environment.yml", "emilib/environment.py"):
            shutil.copy(ROOT / name, self.root / name)
        self.bin.mkdir()
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        self.add("python3.11", PYTHON_STUB.replace("REAL", sys.executable))

    def add(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(self, *arguments, cwd="/", **variables):
        keep = {"PATH": str(self.bin), "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C"}
        return subprocess.run(
            [str(self.root / "run_all.sh"), *arguments],
            env={**keep, "STUB_LOG": str(self.log), **variables},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def refused(self, *arguments, **variables) -> str:
        """The one sentence of a run that must fail."""
        done = self.run(*arguments, **variables)
        assert done.returncode == 1, done.stdout + done.stderr
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("run_all.sh: ")
        assert lines[0].endswith((".", ")."))
        return lines[0]

    def calls(self) -> list[str]:
        text = self.log.read_text() if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        return text.split("\n")[:-1]


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_help_names_every_option(checkout):
    done = checkout.run("--help")
    assert done.returncode == 0
    for option in ("--profile", "--corpus", "--only", "--fresh", "--test", "EMI_ENV", "PYTHON"):
        assert option in done.stdout
    assert not (checkout.root / "runs").exists()


def test_options_are_refused_before_anything_is_made(checkout, tmp_path):
    assert "--profile is 'nonsense'; expected one of" in checkout.refused("--profile", "nonsense")
    assert "unknown option '--fast'" in checkout.refused("--fast")
    assert "--corpus needs a value" in checkout.refused("--corpus")
    assert "no notebook '17'" in checkout.refused("--only", "17")
    assert "needs the data set" in checkout.refused("--profile=paper")
    assert "EMI_ENV is 'old'" in checkout.refused(EMI_ENV="old")
    assert "does not exist" in checkout.refused("--corpus", str(tmp_path / "nowhere"))
    (tmp_path / "corpus").mkdir()
    assert "has no CSV; it must hold train_split.csv" in checkout.refused(
        "--corpus", str(tmp_path / "corpus")
    )
    (tmp_path / "corpus" / "train_split.csv").touch()
    assert "no valid_split.csv" in checkout.refused(f"--corpus={tmp_path / 'corpus'}")
    assert not (checkout.root / "runs").exists()


def test_machines_that_cannot_do_it(checkout, tmp_path):
    said = checkout.refused(STUB_VERSION="3.8")
    assert "Python 3.11 or newer is needed, and the one found is 3.8 (python3.11)" in said
    assert "the one found is 2.7" in checkout.refused(STUB_VERSION="2.7")
    assert "ensurepip is missing" in checkout.refused(STUB_NO_ENSUREPIP="1")
    said = checkout.refused(PYTHON=str(tmp_path / "none"))
    assert f"found is none at {tmp_path / 'none'}" in said
    said = checkout.refused(EMI_MIN_FREE_GB="9999999")
    assert re.search(r"needs 9999999 GB and .* has \d+ GB free", said)
    (tmp_path / "file").touch()
    assert "can't be made" in checkout.refused(EMI_HOME=str(tmp_path / "file" / "home"))
    (checkout.bin / "python3.11").unlink()
    assert "found is none;" in checkout.refused()
    assert checkout.calls() == []


def test_first_run_installs_and_the_second_does_not(checkout, tmp_path):
    corpus = tmp_path / "a corpus"
    corpus.mkdir()
    for name in ("train_split.csv", "valid_split.csv"):
        (corpus / name).touch()
    options = ("--profile", "smoke", "--corpus", "a corpus", "--only", "03", "--fresh")
    done = checkout.run(*options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert checkout.calls() == ["venv", "pip", "pip"]
    expected = f"emilib.runner --profile smoke --fresh --corpus {corpus} --only 03"
    assert f"runner: {expected}\n" in done.stdout
    assert f"PYTHONPATH={checkout.root} OFFLINE=1" in done.stdout
    requirements = (checkout.root / "runs/logs/requirements.txt").read_text().split()
    assert requirements == environment.dependencies()[1]

    assert checkout.run().returncode == 0
    assert checkout.calls() == [], "nothing is installed twice"
    assert "OFFLINE=\n" in checkout.run("--profile", "paper", "--corpus", str(corpus)).stdout

    with open(checkout.root / "environment.yml", "a") as stream:
        stream.write("      - tiny==1.0 # new\n")
    assert checkout.run().returncode == 0
    assert checkout.calls() == ["venv", "pip", "pip"], "another list, another environment"
    with open(checkout.root / "environment.yml", "a") as stream:
        stream.write("# a comment\n")
    checkout.run()
    assert checkout.calls() == [], "a comment is no other list"


def test_an_interrupted_installation_is_noticed(checkout):
    command = [str(checkout.root / "run_all.sh")]
    variables = {"PATH": str(checkout.bin), "STUB_LOG": str(checkout.log), "STUB_PIP_SLEEP": "2"}
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        while not (checkout.log.exists() and "pip" in checkout.log.read_text()):
            assert process.poll() is None
        process.kill()
    checkout.calls()
    done = checkout.run()
    assert done.returncode == 0
    assert "Another installation is at work" in done.stdout or not shutil.which("flock")
    assert "unfinished" in done.stdout
    assert checkout.calls()[-3:] == ["venv", "pip", "pip"]


@pytest.mark.parametrize(
    ("pip_says", "sentence"),
    [
        ("Retrying after connection broken by 'NewConnectionError'", "registry does not answer"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: No matching distribution found for torch==2.13.0", "has no torch==2.13.0 for"),
        ("(from versions: none) No matching distribution found for av==1", "does not answer, or"),
        ("something else", "pip could not install the packages"),
    ],
)
def test_an_installation_that_fails(checkout, pip_says, sentence):
    said = checkout.refused(STUB_PIP_STATUS="1", STUB_PIP_SAYS=pip_says)
    assert sentence in said
    assert "http" not in said
    assert pip_says in (checkout.root / "runs/logs/setup.log").read_text()
    assert checkout.run().returncode == 0, "the next run installs again"


def test_the_real_pip_without_a_registry(checkout):
    """What pip says of a closed port is recognised."""
    (checkout.root / "environment.yml").write_text("dependencies:\n  - pip:\n    - no-such==1\n")
    said = checkout.refused(
        PYTHON=sys.executable,
        EMI_ENV="venv",
        PIP_CONFIG_FILE=os.devnull,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_RETRIES="1",
    )
    assert "registry does not answer" in said
    assert "127.0.0.1" not in said


def test_conda_is_used_where_it_is(checkout):
    checkout.add("conda", CONDA_STUB)
    done = checkout.run()
    assert done.returncode == 0, done.stderr
    prefix, listed = checkout.root / "runs/env", checkout.root / "environment.yml"
    assert checkout.calls() == [f"conda env create --prefix {prefix} --file {listed}", "pip"]
    assert not (checkout.root / ".venv").exists()
    assert checkout.run().returncode == 0
    assert checkout.calls() == []

    shutil.rmtree(prefix)
    done = checkout.run(STUB_CONDA_FAILS="1")
    assert "conda could not make the environment" in done.stderr
    assert done.returncode == 0
    assert checkout.calls()[1:] == ["venv", "pip", "pip"]


def test_the_current_environment(checkout):
    (checkout.bin / "python").symlink_to(checkout.bin / "python3.11")
    done = checkout.run(EMI_ENV="current")
    assert done.returncode == 0, done.stderr
    assert checkout.calls() == []
    assert not (checkout.root / ".venv").exists()

    with open(checkout.root / "environment.yml", "a") as stream:
        stream.write("      - no-such-thing-here==1.0\n")
    done = checkout.run(EMI_ENV="current")
    assert done.returncode == 1
    assert "no-such-thing-here==1.0" in done.stderr
    assert len(done.stderr.splitlines()) == 1
