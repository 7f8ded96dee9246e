"""The progress bar of training: what it shows, and where it keeps quiet."""

import io

import pytest

from emilib.progress import epoch_bar

VARIABLES = ("EMI_PROGRESS", "JPY_PARENT_PID", "JPY_SESSION_NAME", "WORLD_SIZE", "RANK")


@pytest.mark.parametrize(
    ("terminal", "variables", "drawn"),
    [
        (True, {}, True),
        (False, {"JPY_PARENT_PID": "1", "JPY_SESSION_NAME": "a.ipynb"}, True),  # JupyterLab
        (False, {"JPY_PARENT_PID": "1"}, False),  # papermill, nbval
        (True, {"EMI_PROGRESS": "file"}, False),
        (True, {"WORLD_SIZE": "2", "RANK": "1"}, False),
        (False, {}, False),  # a log
    ],
)
def test_the_bar_is_drawn_where_somebody_looks(monkeypatch, terminal, variables, drawn):
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", screen)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with epoch_bar(3) as tell:
        tell({"loss": 0.5, "rho": float("nan")})
        tell({"loss": 0.25, "rho": 0.125})
    last = screen.getvalue().split("\r")[-1]
    assert ("loss 0.2500, ρ 0.125" in last and "2/3" in last) == drawn
    assert drawn or screen.getvalue() == ""
