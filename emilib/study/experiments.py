"""The rows of the tables as data: experiments.csv lists them, an `Experiment` is one of them.

One experiment may serve several rows (the full TAEMI stands in B2, B3 and B4) and is trained once,
by `emilib.study.runs.run_one`.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from emilib.study import claims
from emilib.study.savchenko import fit_savchenko
from emilib.training.recipes import Recipe

MEDIA = "media"  # the features of an experiment that trains its encoders
_LETTERS = {"V": "frames", "A": "audio", "T": "text"}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is trained for one or more rows.

    model : name of a class in `emilib.models`; None where nothing is trained, only `members` read
    model_args : its settings beside the widths, which come from the features
    modalities : among "frames", "audio", "text": all the model is given
    features : "ours", of the Stage I encoders; "ours, start", "ours, one_way" and "ours, paper_b"
        of encoders at another stage; "official", the organisers'; or "media", waveforms and words
        for encoders that are trained with the model
    rows : (table, row) it serves, rows as in `claims`
    members : names of experiments whose predictions are averaged
    leaked : the predictions of its one member with fusion weights from the validation clips
    train : called in place of building the model and `fit`, with (train, valid, recipe, seed,
        checkpoint, device, **model_args); gives Results `honest` and `leaked`, as `fit_savchenko`
    """

    name: str
    model: str | None = None
    model_args: Mapping = dataclasses.field(default_factory=dict)
    modalities: tuple[str, ...] = ("frames", "audio", "text")
    features: str = "ours"
    recipe: Recipe | None = None
    rows: tuple[tuple[str, str], ...] = ()
    members: tuple[str, ...] = ()
    leaked: bool = False
    train: Callable | None = None

    @property
    def claims(self) -> tuple[claims.Claim, ...]:
        """What the papers report for its rows."""
        return tuple(claims.reported(table, row) for table, row in self.rows)


def all_experiments(profile) -> dict[str, Experiment]:
    """Every row of A2, A3, A4, B2, B3 and B4, by name of experiment.

    profile : gives settings of the models, `dual_stage`, `taemi`, `baseline` and `earlier`, to
        which a row adds its own; and recipes, `dual_stage_recipe`, `taemi_recipe`,
        `baseline_recipe`, `earlier_recipe` and `savchenko_recipe`
    """
    table = pd.read_csv(
        Path(__file__).with_name("experiments.csv"), dtype=str, keep_default_na=False
    )
    listed = [_experiment(profile, **row) for row in table.to_dict("records")]
    if profile.taemi_fine_tune:
        # Encoders of their own serve the tables. The same with frozen encoders are there to be
        # looked into and used: all of them, and all seeds, take one and the same features.
        frozen = [e for e in listed if e.model == "TAEMI"]
        listed = [dataclasses.replace(e, rows=()) if e in frozen else e for e in listed]
        for e in frozen:
            listed.append(dataclasses.replace(e, name=f"{e.name}_tuned", features=MEDIA))
    return {experiment.name: experiment for experiment in listed}


def _experiment(
    profile, name, model, settings, input, features, recipe, recipe_change, rows, members
) -> Experiment:
    modalities = tuple(_LETTERS[letter] for letter in input.split("+"))
    common = {
        "DualStage": {**profile.dual_stage, "modalities": modalities},
        "TAEMI": profile.taemi,
        "LastStepGRU": profile.baseline,
    }.get(model, profile.earlier.get(model, {}))
    change = {
        k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(settings or "{}").items()
    }
    if features == "taemi":
        features = "ours" if profile.taemi_encoders is None else "ours, paper_b"
    if recipe:
        recipe = getattr(profile, f"{recipe}_recipe")
        recipe = dataclasses.replace(recipe, **json.loads(recipe_change or "{}"))
    return Experiment(
        name,
        model or None,
        {**common, **change},
        modalities,
        features,
        recipe or None,
        tuple(tuple(row.split(": ", 1)) for row in rows.split("; ")),
        tuple(members.split(" + ")) if members else (),
        leaked=name.endswith("_leaked"),
        train=fit_savchenko if model == "Savchenko2025" else None,
    )
