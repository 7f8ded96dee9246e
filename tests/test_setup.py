import ast
import importlib.metadata
import json
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
TOOLS = "bash dirname df awk sed cksum cat mkdir rm cp sleep grep tail flock env chmod"
LISTED = {canonicalize_name(Requirement(line).name) for line in environment.requirements()}


def test_the_list_is_exact_and_packages_and_room_are_checked(tmp_path, monkeypatch):
    yaml = pytest.importorskip("yaml")
    *conda, pip = yaml.safe_load(environment.FILE.read_text())["dependencies"]
    assert environment.requirements() == pip["pip"]
    specs = {MatchSpec(text).name.normalized: str(MatchSpec(text).version) for text in conda}
    assert set(specs) == {"python", "pip"}
    assert specs["python"] == ">=3.11,<3.14"
    assert all([s.operator for s in Requirement(line).specifier] == ["=="] for line in pip["pip"])
    assert len(LISTED) == len(pip["pip"]), "a package twice"
    numpy, path = importlib.metadata.version("numpy"), tmp_path / "environment.yml"
    packages = (f"numpy=={numpy}", "scipy==0.1", "no==1")
    path.write_text("".join(f"      - {package} # why\n" for package in packages))
    same, other, missing = environment.check(path)
    assert same == ("numpy", numpy, numpy)
    assert (same.fits, other.fits, missing.fits, missing.installed) == (True, False, False, None)
    assert environment.Row("torch", "2.13.0", "2.13.0+cpu").fits
    monkeypatch.delenv("EMI_MIN_FREE_GB", raising=False)
    free = environment.require_room(tmp_path / "not" / "yet", need_gb=0)
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free / 1e9, rel=0.2)
    monkeypatch.setenv("EMI_MIN_FREE_GB", "9999999")
    with pytest.raises(OSError, match=r"needs 1e\+07 GB and .* GB free"):
        environment.require_room(tmp_path)


def imported(sources):
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"emilib"}


def test_what_is_imported_is_listed_and_what_is_listed_is_used():
    sources = [path.read_text() for path in (ROOT / "emilib").rglob("*.py")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        code = [cell.source for cell in cells if cell.cell_type == "code"]
        sources += [re.sub(r"^[%!].*$", "", text, flags=re.M) for text in code]
    owners = importlib.metadata.packages_distributions()
    modules = imported(sources)
    for module in sorted(modules):
        names = {canonicalize_name(name) for name in owners.get(module, [module])}
        assert names & LISTED, f"{module} is imported, and environment.yml does not list it"
    modules |= imported(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    used = {canonicalize_name(name) for module in modules for name in owners.get(module, [module])}
    others = ("run_all.sh", "pyproject.toml", "CONTRIBUTING.md")
    named = "".join((ROOT / name).read_text() for name in others).lower()
    assert [name for name in LISTED - used if name not in named] == []


INSTALLED = ["venv", "pip uv", "uv --torch-backend=auto -r LIST links= more=", "pip"]


class Checkout:
    """A copy of what run_all.sh needs, and a PATH on which only stubs and plain tools lie."""

    def __init__(self, folder: Path):
        self.root, self.bin, self.log = folder / "a check out", folder / "bin", folder / "stub.log"
        self.listed = str(self.root / "runs/logs/requirements.txt")
        (self.root / "emilib").mkdir(parents=True)
        (self.root / "notebooks").mkdir()
        (self.root / "notebooks" / "03_tiny.ipynb").touch()
        for name in ("run_all.sh", "environment.yml", "emilib/environment.py"):
            shutil.copy(ROOT / name, self.root / name)
        self.bin.mkdir()
        for tool in filter(shutil.which, TOOLS.split()):
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.add("python3.11")

    def add(self, name: str) -> None:
        stub = (ROOT / f"tests/stub_{name.rstrip('.1234567890')}.sh").read_text()
        (self.bin / name).write_text(stub.replace("REAL", sys.executable))
        (self.bin / name).chmod(0o755)

    def extend_list(self, line: str) -> None:
        path = self.root / "environment.yml"
        path.write_text(path.read_text() + line)

    def variables(self, **more) -> dict:
        plain = {"PATH": str(self.bin), "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C"}
        return {**plain, "STUB_LOG": str(self.log), **more}

    def run(self, *arguments, cwd="/", succeeds=True, **more) -> str:
        """What a run prints."""
        command = [str(self.root / "run_all.sh"), *arguments]
        options = {"env": self.variables(**more), "cwd": cwd, "capture_output": True}
        done = subprocess.run(command, text=True, timeout=240, check=False, **options)
        assert done.returncode == (0 if succeeds else 1), done.stdout + done.stderr
        return done.stdout if succeeds else done.stderr

    def refused(self, *arguments, **more) -> str:
        """The one sentence of a run that must fail."""
        said = self.run(*arguments, succeeds=False, **more)
        assert re.fullmatch(r"run_all\.sh: .*\.", said.strip())
        return said

    def calls(self) -> list[str]:
        text = self.log.read_text() if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        return text.replace(self.listed, "LIST").split("\n")[:-1]


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_what_cannot_be_done_is_refused_before_anything_is_made(checkout, tmp_path):
    assert "--dry-run" in checkout.run("--help")
    for arguments, sentence in {
        "--profile nonsense": "--profile is 'nonsense'; expected one of",
        "--fast": "unknown option '--fast'",
        "--corpus": "--corpus needs a value",
        "--only 17": "no notebook '17'",
        "--profile=paper": "needs the data set",
        "--corpus /no/where": "does not exist",
    }.items():
        assert sentence in checkout.refused(*arguments.split())
    assert not (checkout.root / "runs").exists()
    assert "3.11, 3.12 or 3.13 is needed, and there is none;" in checkout.refused(STUB_OLD="1")
    assert "ensurepip is missing" in checkout.refused(STUB_NO_ENSUREPIP="1")
    assert "there is none at /none;" in checkout.refused(PYTHON="/none")
    said = checkout.refused(EMI_MIN_FREE_GB="9999999")
    assert re.search(r"needs 9999999 GB .* has \d+ GB free", said)
    (tmp_path / "file").touch()
    assert "can't be made" in checkout.refused(EMI_HOME=str(tmp_path / "file" / "home"))
    assert checkout.calls() == []


def test_first_run_installs_and_the_second_does_not(checkout, tmp_path):
    (tmp_path / "a corpus").mkdir()
    options = ("--profile", "smoke", "--corpus", "a corpus", "--only=03", "--fresh")
    said = checkout.run(*options, cwd=tmp_path)
    assert checkout.calls() == INSTALLED
    corpus = tmp_path / "a corpus"
    expected = f"emilib.runner --profile smoke --corpus {corpus} --only 03 --fresh"
    assert f"runner: {expected}\n" in said
    assert f"PYTHONPATH={checkout.root} OFFLINE=1" in said
    listed = (checkout.root / "runs/logs/requirements.txt").read_text().split()
    assert listed == environment.requirements()
    assert "OFFLINE=\n" in checkout.run("--profile", "paper", "--corpus", str(corpus))
    said = checkout.run("--features", "a corpus", "--text-pool=cls", cwd=tmp_path)
    assert f"--profile embedded --features {corpus} --text-pool cls\n" in said
    assert checkout.calls() == [], "nothing is installed twice"
    for line, calls in (("      - tiny==1.0 # new\n", INSTALLED), ("# word\n", [])):
        checkout.extend_list(line)
        checkout.run()
        assert checkout.calls() == calls, "another list makes another environment"


def test_an_interrupted_installation_is_noticed(checkout):
    variables = checkout.variables(STUB_PIP_SLEEP="2", STUB_UV_STATUS="1")
    command = [str(checkout.root / "run_all.sh")]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        while not (checkout.log.exists() and "\npip\n" in checkout.log.read_text()):
            assert process.poll() is None
        process.kill()
    checkout.calls()
    assert "Another installation is at work" in checkout.run() or not shutil.which("flock")
    assert checkout.calls()[-4:] == INSTALLED


def test_uv_pip_or_conda_installs_as_is_configured(checkout):
    places = "global.find-links='/a /b'\n:env:.extra-index-url='file:///c'\nglobal.timeout='9'"
    checkout.run(STUB_PIP_CONFIG=places)
    uv = "uv --index-strategy=unsafe-best-match -r LIST links=/a,/b more=file:///c"
    assert checkout.calls() == ["venv", "pip uv", uv, "pip"]
    for failure, calls in ({"STUB_NO_UV": "1"}, []), ({"STUB_UV_STATUS": "1"}, INSTALLED[1:3]):
        shutil.rmtree(checkout.root / ".venv")
        checkout.run(**failure)
        assert checkout.calls() == ["venv", *calls, "pip", "pip"]
    shutil.rmtree(checkout.root / ".venv")
    checkout.add("conda")
    checkout.run()
    prefix, listed = checkout.root / "runs/env", checkout.root / "environment.yml"
    assert checkout.calls() == [f"conda env create --prefix {prefix} --file {listed}", "pip"]
    assert not (checkout.root / ".venv").exists()
    checkout.run()
    assert checkout.calls() == []


def test_an_installation_that_fails(checkout):
    for pip_says, sentence in {
        "Retrying after connection broken by 'NewConnectionError'": "registry does not answer",
        "OSError: [Errno 28] No space left on device": "the disk is full",
        "ERROR: No matching distribution found for torch==2.13.0": "there is no torch==2.13.0",
        "something else": "pip could not install the packages",
    }.items():
        failures = {"STUB_PIP_STATUS": "1", "STUB_UV_STATUS": "1", "STUB_PIP_SAYS": pip_says}
        assert sentence in checkout.refused(**failures)
        assert pip_says in (checkout.root / "runs/logs/setup.log").read_text()
    checkout.run()
    assert checkout.calls()[-4:] == INSTALLED, "the next run installs again"


HEAVY = ("torch", "transformers", "whisper", "av", "numba", "pandas", "scipy", "sklearn")


def loaded_after(code):
    """Which heavy packages are in sys.modules after `code`, in a new process."""
    shown = f"{code}\nimport sys\nprint(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    shown = subprocess.check_output([sys.executable, "-c", shown], text=True, cwd=ROOT)
    return shown.splitlines()[-1].split()


def test_nothing_heavy_is_imported_before_it_is_needed(tmp_path):
    assert loaded_after("import torch")[0] == "torch", "the check itself"
    assert loaded_after("import emilib, emilib.__main__") == []
    code = f"from emilib import submission\nassert submission.validate({str(tmp_path / 's.csv')!r})"
    assert not {"torch", "transformers", "numba"} & set(loaded_after(code))


def printed(shell):
    command = [sys.executable, "-m", "emilib", "--tyro-print-completion", shell]
    return subprocess.check_output(command, text=True, cwd=ROOT)


ASK = """
source <(cat {script} |{pipe}) || exit 1
rule=$(complete -p python) || exit 1
ask() {{
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    $(sed 's/.*-F \\([^ ]*\\) .*/\\1/' <<<"$rule")
    echo "${{COMPREPLY[*]}}"
}}
ask python -m emilib sub
ask python -m emilib features --profile ""
ask python some_script
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_completion_of_notebook_08_completes(tmp_path):
    """bash runs the notebook's line, and the function it registers for `python` answers."""
    assert "#compdef" in printed("zsh")
    text = (ROOT / "notebooks" / "08_your_own_data.ipynb").read_text("utf-8")
    pattern = r'"source <\(python -m emilib --tyro-print-completion bash \|(.*)\)(?:\\n)?"'
    [pipe] = re.findall(pattern, text)
    script = tmp_path / "completion.sh"
    script.write_text(printed("bash"), encoding="utf-8")
    asks = ASK.format(script=script, pipe=json.loads(f'"{pipe}"'))
    result = subprocess.check_output(["bash", "--norc", "-c", asks], text=True)
    command, values, other = result.split("\n")[:3]
    assert command == "submit"
    assert values.split() == ["smoke", "embedded", "paper"]
    assert other == "", "file names complete where this has none"
