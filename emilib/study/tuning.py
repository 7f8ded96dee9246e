"""Rate, decay and epochs of everything that is trained: one small search, the same for every row.

First every rate with every decay at the fewest epochs, then more epochs at the best of these. Each
point is trained on three quarters of the training people and scored on the clips of the others;
validation and test clips are not read. tuning.csv keeps all scores, and profiles that are `tuned`
train each row at its best point.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from emilib.cache import Cache, atomic_write, key
from emilib.features.feature_set import FeatureSplits
from emilib.metrics import mean_pearson
from emilib.study.experiments import TUNING
from emilib.study.runs import run

GRID = {"lr": (1e-3, 3e-3), "weight_decay": (0.1, 1.0), "epochs": (8, 16)}
SEED = 0  # of the draw of people, and of the runs


def inner_splits(splits: FeatureSplits, people: pd.Series) -> FeatureSplits:
    """Training clips as training and validation clips of different people, 3 to 1."""
    plain = dataclasses.replace(splits.train, scaling=None)
    own = people.loc[plain.ids]
    drawn = np.random.default_rng(SEED).permutation(np.unique(own))
    held_out = own.isin(drawn[: len(drawn) // 4]).to_numpy()
    if not held_out.any() or held_out.all():
        raise ValueError(f"expected training clips of at least 4 people, got {len(drawn)}")
    train, scored, none = (plain.select(rows) for rows in (~held_out, held_out, []))
    moments = train.moments()
    sets = [data.standardised(moments) for data in (train, scored, none)]
    return FeatureSplits(*sets, key(of=splits.fingerprint, scored=scored.ids))


def tune(experiments, features: Mapping, people, cache: Cache, **options) -> pd.DataFrame:
    """ρ of each experiment at its points of `GRID`: columns experiment, those of the grid, rho."""
    inner = {kind: inner_splits(splits, people) for kind, splits in features.items()}
    experiments = list(experiments)

    def score(points: list[list[dict]]) -> pd.DataFrame:  # those of each experiment
        rows, tried = [], []
        for experiment, own in zip(experiments, points, strict=True):
            for point in own:
                name = f"{experiment.name}, {point}"
                recipe = dataclasses.replace(experiment.recipe, **point)
                tried.append(dataclasses.replace(experiment, name=name, recipe=recipe, rows=()))
                rows.append({"experiment": experiment.name, **point})
        results = run(tried, (SEED,), inner, cache, **options)
        outcomes = (results[experiment.name] for experiment in tried)
        rho = [round(mean_pearson(o.target, o.predictions[0]), 4) for o in outcomes]
        return pd.DataFrame(rows).assign(rho=rho)

    short, *longer = GRID["epochs"]
    at_first = itertools.product(*{**GRID, "epochs": [short]}.values())
    first = [dict(zip(GRID, values, strict=True)) for values in at_first]
    table = score([first] * len(experiments))
    best = table.loc[table.groupby("experiment", sort=False)["rho"].idxmax(), list(GRID)]
    points = best.to_dict("records")
    table = pd.concat([table, score([[{**p, "epochs": n} for n in longer] for p in points])])
    sets = next(iter(inner.values()))
    counts = [(len(s), people.loc[s.ids].nunique()) for s in (sets.train, sets.validation)]
    clips, scored = (f"{n} training clips of {owners} people" for n, owners in counts)
    table.attrs["note"] = f"trained on {clips}, rho on {scored}, seed {SEED}"
    return table


def write(table: pd.DataFrame, about: str, path: Path = TUNING) -> None:
    """Write the scores as CSV, and in a first line with a # what they were measured on."""
    atomic_write(path, f"# {about}; {table.attrs['note']}\n{table.to_csv(index=False)}")
