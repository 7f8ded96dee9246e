"""The progress bar of training: what it shows, and where it keeps quiet."""

import io

import numpy as np
import pytest

from emilib.features import FeatureSet
from emilib.models import for_features
from emilib.progress import epoch_bar
from emilib.study import Recipe, fit

VARIABLES = ("EMI_PROGRESS", "JPY_PARENT_PID", "JPY_SESSION_NAME", "WORLD_SIZE", "RANK")


def watch(monkeypatch, terminal=True):
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", screen)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return screen


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
    screen = watch(monkeypatch, terminal)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with epoch_bar(3) as tell:
        tell({"loss": 0.5, "rho": float("nan")})
        tell({"loss": 0.25, "rho": 0.125})
    last = screen.getvalue().split("\r")[-1]
    assert ("loss 0.2500, ρ 0.125" in last and "2/3" in last) == drawn
    assert drawn or screen.getvalue() == ""


def test_fit_draws_a_bar_or_calls_a_function(monkeypatch):
    screen, draw, told = watch(monkeypatch), np.random.default_rng(0), []
    data = FeatureSet.from_arrays(range(9), text=draw.normal(size=(9, 2)), target=draw.random(9))
    settings = (for_features("MeanLinear", data, modality="text"), data, data, Recipe(epochs=4))
    fit(*settings, progress=told.append)
    assert [record["epoch"] for record in told] == [1, 2, 3, 4]
    assert screen.getvalue() == ""
    fit(*settings, progress=True)
    assert "4/4" in screen.getvalue().split("\r")[-1]
