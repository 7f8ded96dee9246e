"""The tuning grid: training people apart, every point scored once, the best one taken."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from test_experiments import FEATURES, GRU, LINEAR, clips

from emilib import profiles
from emilib.cache import Cache
from emilib.features import FeatureSplits
from emilib.metrics import mean_pearson
from emilib.study import experiments, runs, tuning

TRAIN = clips(24, 1, "1")
PEOPLE = pd.Series([f"person {i % 8}" for i in range(24)], index=TRAIN.ids)
SPLITS = {"official": dataclasses.replace(FEATURES["official"], train=TRAIN)}


def test_a_quarter_of_the_training_people_is_scored():
    whole = FeatureSplits(*[clips(24, s, "1") for s in (1, 2, 3)], fingerprint="x")
    whole.train = whole.train.standardised(whole.train.moments())
    inner = tuning.inner_splits(whole, PEOPLE)
    trained, scored = (set(PEOPLE[s.ids]) for s in (inner.train, inner.validation))
    assert (len(trained), len(scored), trained & scored) == (6, 2, set())
    assert sorted(inner.train.ids + inner.validation.ids) == whole.train.ids
    words = inner.train.text[inner.train.present[:, 2]].astype(float)
    for part in (inner.train, inner.validation):
        np.testing.assert_allclose(part.scaling["text"], [words.mean(0), words.std(0)], rtol=1e-9)
    with pytest.raises(ValueError, match="at least 4 people, got 1"):
        tuning.inner_splits(whole, pd.Series("a", index=TRAIN.ids))


def test_each_point_is_trained_once_scored_kept_and_the_best_taken(tmp_path, monkeypatch):
    calls, fit = [], runs.fit

    def counted(model, train, valid, recipe, *rest):
        assert valid is None, "no clip chooses the epoch"
        calls.append(recipe)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit(model, train, valid, recipe, *rest)

    monkeypatch.setattr(runs, "fit", counted)
    monkeypatch.setattr(tuning, "GRID", {"lr": (1e-3, 1e-1), "epochs": (1, 2)})
    recipe = dataclasses.replace(LINEAR.recipe, keep="last")
    listed = [dataclasses.replace(e, recipe=recipe) for e in (LINEAR, GRU)]
    listed.append(dataclasses.replace(listed[0], name="again"))  # the same under another name
    settings = (listed, SPLITS, PEOPLE, Cache(tmp_path / "cache"))
    with pytest.raises(KeyboardInterrupt):
        tuning.tune(*settings, workers=1)
    scores = tuning.tune(*settings, workers=1)
    assert len(calls) == 2 * 3 + 1, "two of the killed command's runs were kept"
    assert list(scores) == ["experiment", "lr", "epochs", "rho"]
    groups = scores.set_index(["lr", "epochs"]).groupby("experiment")
    by = {name: rows["rho"] for name, rows in groups}
    pd.testing.assert_series_equal(by["linear"], by["again"])
    inner = tuning.inner_splits(SPLITS["official"], PEOPLE)
    train, valid = (s.only("audio") for s in (inner.train, inner.validation))
    assert all(rows.index.tolist()[:2] == [(1e-3, 1), (1e-1, 1)] for rows in by.values())
    assert all(rows.index[2] == (rows[:2].idxmax()[0], 2) for rows in by.values())
    point = dataclasses.replace(listed[0], recipe=dataclasses.replace(recipe, lr=0.1, epochs=1))
    rho = mean_pearson(valid.target, runs.train_model(point, train, valid, 0, None).predict(valid))
    assert by["linear"][0.1, 1] == pytest.approx(rho, abs=1e-4)
    path = tmp_path / "tuning.csv"
    tuning.write(scores, "a corpus", path)
    counts = "trained on 18 training clips of 6 people, rho on 6 training clips of 2 people"
    assert path.read_text().startswith(f"# a corpus; {counts}, seed 0\nexperiment,lr")
    best = experiments.best_points(path)
    assert best["gru"] == dict(zip(("lr", "epochs"), by["gru"].idxmax(), strict=True))
    assert isinstance(best["gru"]["epochs"], int)


def test_a_tuned_profile_takes_the_points_of_the_file_and_misses_none(monkeypatch):
    profile = profiles.get("embedded")
    points = experiments.best_points()
    for name, experiment in experiments.all_experiments(profile).items():
        recipe = experiment.recipe
        if recipe is not None:
            assert {k: getattr(recipe, k) for k in points[name]} == points[name]
            assert (recipe.decay, recipe.selects) == ("matrices", False)
    del points["vit_baseline"]
    monkeypatch.setattr(experiments, "best_points", lambda: points)
    with pytest.raises(ValueError, match="lacks vit_baseline: run"):
        experiments.all_experiments(profile)
