"""The progress bar of training: what it shows, and where it keeps quiet."""

import io

import numpy as np
import pytest

from emilib import progress
from emilib.features import FeatureSet
from emilib.models import for_features
from emilib.study import Recipe, fit

RECORDS = [{"loss": 0.5, "rho": float("nan")}, {"loss": 0.25, "rho": 0.125}]


class Screen(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def drawn(monkeypatch):
    """What stands on stderr after two of three epochs, with these variables in the environment."""

    def draw(terminal=True, **variables):
        for name in ("EMI_PROGRESS", "JPY_PARENT_PID", "JPY_SESSION_NAME", "WORLD_SIZE", "RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        screen = Screen(terminal)
        monkeypatch.setattr("sys.stderr", screen)
        with progress.epoch_bar(3) as tell:
            for record in RECORDS:
                tell(record)
        return screen.getvalue()

    return draw


def test_a_terminal_shows_epoch_loss_and_rho(drawn):
    last = drawn().split("\r")[-1]
    assert "2/3" in last
    assert "loss 0.2500, ρ 0.125" in last
    assert "ρ" not in drawn().split("\r")[1], "no validation yet, no ρ"


def test_jupyterlab_shows_the_same_bar_of_text(drawn):
    lab = drawn(terminal=False, JPY_PARENT_PID="1", JPY_SESSION_NAME="a.ipynb")
    assert "loss 0.2500, ρ 0.125" in lab


@pytest.mark.parametrize(
    "variables",
    [
        {"JPY_PARENT_PID": "1"},  # papermill or nbval
        {"JPY_PARENT_PID": "1", "JPY_SESSION_NAME": "a.ipynb", "EMI_PROGRESS": "file"},
        {"WORLD_SIZE": "2", "RANK": "1"},
    ],
)
def test_nothing_is_drawn_where_nobody_looks(drawn, variables):
    assert drawn(**variables) == ""


def test_a_log_has_few_lines(drawn):
    assert drawn(terminal=False).count("\r") <= 2 < drawn().count("\r") + 1


def test_fit_draws_a_bar_or_calls_a_function(monkeypatch):
    for name in ("EMI_PROGRESS", "JPY_PARENT_PID"):
        monkeypatch.delenv(name, raising=False)
    draw = np.random.default_rng(0)
    data = FeatureSet.from_arrays(range(9), text=draw.normal(size=(9, 2)), target=draw.random(9))
    recipe, told = Recipe(epochs=4), []
    model = for_features("MeanLinear", data, modality="text")
    screen = Screen(True)
    monkeypatch.setattr("sys.stderr", screen)
    fit(model, data, data, recipe, progress=told.append)
    assert [record["epoch"] for record in told] == [1, 2, 3, 4]
    assert screen.getvalue() == ""
    result = fit(model, data, data, recipe, progress=True)
    last = screen.getvalue().split("\r")[-1]
    assert "4/4" in last
    assert f"ρ {result.history['rho'].iloc[-1]:.3f}" in last
