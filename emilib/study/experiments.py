"""The rows of the tables as data: experiments.csv lists them; one may serve several rows."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from emilib.study.savchenko import fit_savchenko
from emilib.training.recipes import Recipe

TUNING = Path(__file__).with_name("tuning.csv")
MEDIA = "media"  # the features of an experiment that trains its encoders
_LETTERS = {"V": "frames", "A": "audio", "T": "text"}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is trained for one or more rows.

    features : "ours", of the Stage I encoders; "ours, start" and "ours, paper_b", at another stage;
        "official", the organisers'; or "media", waveforms and words for encoders that are trained
    """

    name: str
    model: str | None = None  # a class in `emilib.models`; None where only `members` are read
    model_args: Mapping = dataclasses.field(default_factory=dict)  # beside the features' widths
    modalities: tuple[str, ...] = ("frames", "audio", "text")  # all the model is given
    features: str = "ours"
    recipe: Recipe | None = None
    rows: tuple[tuple[str, str], ...] = ()  # (table, row) it serves, rows as in `claims`
    members: tuple[str, ...] = ()  # experiments whose predictions are averaged
    leaked: bool = False  # those of its member, with fusion weights from the validation clips
    train: Callable | None = None  # in place of building the model and `fit`: `fit_savchenko`
    least_seeds: int = 0  # it is trained with

    def seeds_of(self, seeds: Sequence[int]) -> tuple[int, ...]:
        """These seeds, and numbers after the highest until there are `least_seeds`."""
        after = max(seeds) + 1
        return (*seeds, *range(after, after + self.least_seeds - len(seeds)))


def all_experiments(profile) -> dict[str, Experiment]:
    """Every row of A2, A3, A4, B2, B3 and B4, by name, with settings and recipes of a profile."""
    path = Path(__file__).with_name("experiments.csv")
    rows = pd.read_csv(path, dtype=str, keep_default_na=False).itertuples()
    points = best_points() if profile.tuned else None
    listed = [_experiment(profile, row, points) for row in rows]
    if profile.taemi_fine_tune:
        # Encoders of their own serve the tables; frozen ones are there to be looked into.
        frozen = [e for e in listed if e.model == "TAEMI"]
        listed = [dataclasses.replace(e, rows=()) if e in frozen else e for e in listed]
        listed += [dataclasses.replace(e, name=f"{e.name}_tuned", features=MEDIA) for e in frozen]
    return {experiment.name: experiment for experiment in listed}


def best_points(path=TUNING) -> dict[str, dict]:
    """The fields of `Recipe` with the best ρ in tuning.csv, by name of experiment."""
    table = pd.read_csv(path, comment="#")
    best = table.loc[table.groupby("experiment")["rho"].idxmax()].set_index("experiment")
    return best.drop(columns="rho").to_dict("index")


def _experiment(profile, row, points) -> Experiment:
    modalities = tuple(_LETTERS[letter] for letter in row.input.split("+"))
    common = {"TAEMI": profile.taemi, "LastStepGRU": profile.baseline, **profile.earlier}
    common["DualStage"] = {**profile.dual_stage, "modalities": modalities}
    own = json.loads(row.settings or "{}").items()
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in own}
    features, recipe = row.features, None
    if features == "taemi":
        features = "ours" if profile.taemi_encoders is None else "ours, paper_b"
    if row.recipe:
        changes = json.loads(row.recipe_change or "{}")
        if points is not None and row.name not in points:
            raise ValueError(f"{TUNING.name} lacks {row.name}: run `emilib tune` first")
        changes |= points[row.name] if points else {}
        recipe = dataclasses.replace(getattr(profile, f"{row.recipe}_recipe"), **changes)
    rows = tuple(tuple(served.split(": ", 1)) for served in row.rows.split("; "))
    members, leaked = tuple(filter(None, row.members.split(" + "))), row.name.endswith("_leaked")
    model, settings = row.model or None, {**common.get(row.model, {}), **own}
    train = fit_savchenko if model == "Savchenko2025" else None
    least = int(row.seeds or 0) if profile.more_seeds else 0
    return Experiment(
        row.name, model, settings, modalities, features, recipe, rows, members, leaked, train, least
    )
