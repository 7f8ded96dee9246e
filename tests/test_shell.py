"""What a shell meets: light imports, completion, exit codes."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from emilib import environment

ROOT = environment.ROOT
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
