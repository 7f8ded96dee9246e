import dataclasses
import os

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import pearsonr

from emilib import profiles
from emilib.cache import Cache
from emilib.features import FeatureSet, FeatureSplits
from emilib.metrics import difference, mean_pearson
from emilib.models.earlier import StatisticsMLP
from emilib.study import claims, experiments, fit, fit_savchenko, runs, tuning
from emilib.study.experiments import Experiment, all_experiments
from emilib.study.runs import ExperimentError, run
from emilib.study.savchenko import search_weights
from emilib.training import loop as training
from emilib.training.loop import Recipe, TargetScale

RECIPE = Recipe(epochs=3, batch_size=8, lr=1e-2)
PROFILE = profiles.smoke()
LISTED = all_experiments(PROFILE)


def clips(count, seed, name):
    draw = np.random.default_rng(seed)
    frames, audio = ([draw.normal(size=(2 + i % 7, w)) for i in range(count)] for w in (5, 6))
    text, target = draw.normal(size=(count, 4)), draw.random((count, 6)).round(1)
    frames[3], audio[4], text[2] = None, None, np.nan
    ids = [f"{name}{i:04d}" for i in range(count)]
    return FeatureSet.from_arrays(ids, frames, audio, text, None if name == "3" else target)


def splits(name, seed):
    parts = [clips(24, seed, "1"), clips(12, 77, "2"), clips(5, seed + 2, "3")]
    return FeatureSplits(*parts, fingerprint=f"{name}-{seed}")


KINDS = ("ours", "ours, start", "official")
TRAIN = clips(24, 1, "1")
FEATURES = {name: splits(name, seed) for seed, name in enumerate(KINDS, start=1)}
LINEAR = Experiment("linear", "MeanLinear", {"modality": "audio"}, ("audio",), "official", RECIPE)
SMALL = {"modality": "frames", "hidden": 4}
GRU = Experiment("gru", "LastStepGRU", SMALL, ("frames",), "official", RECIPE)
BOTH = Experiment("both", features="official", members=("linear", "gru"))


@pytest.fixture
def trained(monkeypatch):
    """The models and seeds of the runs that were really trained."""
    calls = []

    def counted(model, train, valid, recipe, seed, *rest):
        calls.append((type(model).__name__, seed))
        return training.fit(model, train, valid, recipe, seed, *rest)

    monkeypatch.setattr(runs, "fit", counted)
    return calls


def test_every_row_has_one_experiment_and_all_train(tmp_path):
    for table in ("A2", "A3", "A4", "B2", "B3", "B4"):
        for claim in claims.rows(table):
            serving = [e for e in LISTED.values() if (table, claim.row) in e.rows]
            assert len(serving) == 1, (table, claim.row)
    assert all(e.model or e.members for e in LISTED.values())
    tuned = all_experiments(dataclasses.replace(PROFILE, taemi_fine_tune=True))
    assert tuned["taemi"].rows == (), "fine-tuned rows serve in place of the frozen ones"
    assert tuned["taemi_tuned"].features == "media"
    assert tuned["taemi_tuned"].rows == LISTED["taemi"].rows
    quick = [
        dataclasses.replace(e, recipe=e.recipe and dataclasses.replace(e.recipe, epochs=1))
        for e in LISTED.values()
    ]
    study = run(quick, (0,), FEATURES, Cache(tmp_path), workers=1)
    assert list(study) == list(LISTED)
    honest, leaked = (study[f"savchenko_2025{end}"].predictions for end in ("", "_leaked"))
    assert (honest != leaked).any()
    for outcome in study.values():
        assert np.isfinite(outcome.predictions).all()
        assert outcome.predictions.shape == (1, 12, 6)
        assert outcome.test_predictions.shape == (1, 5, 6)


@pytest.mark.parametrize(
    ("full", "tables", "count"), [("taemi", "B3 B4", 6), ("dual_stage_vat", "A4", 6)]
)
def test_ablations_change_one_thing_of_the_full_model(full, tables, count):
    full = LISTED[full]
    same = [e for e in LISTED.values() if e.model == full.model and e is not full]
    parts = [e for e in same if e.rows[0][0] in tables and e.modalities == full.modalities]
    assert len(parts) == count
    for part in parts:
        before, after = dict(full.model_args), dict(part.model_args)
        settings = [n for n in before | after if before.get(n) != after.get(n)]
        changed = (part.recipe != full.recipe) + (part.features != full.features)
        assert len(settings) + changed == 1, part.name


def test_results_are_those_of_the_models_and_workers_change_no_bit(tmp_path):
    validation = FEATURES["official"].validation
    study = run([LINEAR, GRU, BOTH], (0, 3), FEATURES, Cache(tmp_path), workers=1)
    linear, gru, both = (study[name] for name in ("linear", "gru", "both"))
    assert linear.ids == validation.ids
    np.testing.assert_array_equal(linear.target, validation.target)
    rho = [mean_pearson(validation.target, p) for p in linear.predictions]
    assert study.summary("linear").per_seed == pytest.approx(rho)
    again = training.predict(study.model("linear", seed=3), validation.only("audio"))
    np.testing.assert_allclose(again, linear.predictions[1], atol=1e-6)
    assert [h["epoch"].tolist() for h in linear.histories] == [[1, 2, 3]] * 2
    mean = (linear.test_predictions + gru.test_predictions) / 2
    np.testing.assert_allclose(both.test_predictions, mean)
    np.testing.assert_allclose(both.predictions, (linear.predictions + gru.predictions) / 2)
    assert both.parameters == linear.parameters + gru.parameters
    delta = study.difference("linear", "gru")
    assert delta.per_seed == pytest.approx(np.subtract(rho, study.summary("gru").per_seed))
    pair, seen = [LINEAR, GRU], []
    alone = run(pair, (0,), FEATURES, Cache(tmp_path / "1"), workers=1)
    report = lambda *counts: seen.append(counts)  # noqa: E731
    spread = run(pair, (0,), FEATURES, Cache(tmp_path / "2"), workers=2, progress=report)
    assert seen == [(0, 2), (1, 2), (2, 2)]
    for name in ("linear", "gru"):
        np.testing.assert_array_equal(alone[name].predictions, spread[name].predictions)


def test_only_what_is_missing_or_changed_is_trained(tmp_path, trained, monkeypatch):
    cache, reports = Cache(tmp_path), []
    first = run([LINEAR, GRU], (0, 1), FEATURES, cache, workers=1)
    report = lambda *counts: reports.append(counts)  # noqa: E731
    second = run([LINEAR, GRU], (0, 1), FEATURES, Cache(tmp_path), 1, report)
    assert (len(trained), reports) == (4, [(4, 4)])
    np.testing.assert_array_equal(first["gru"].predictions, second["gru"].predictions)
    run([LINEAR, GRU], (0, 1, 2), FEATURES, cache, workers=1)
    assert trained[4:] == [("MeanLinear", 2), ("LastStepGRU", 2)]
    renamed = dataclasses.replace(LINEAR, name="again", rows=(("A2", "Wav2Vec2 (baseline)"),))
    run([LINEAR, renamed], (0,), FEATURES, cache, workers=1)
    assert len(trained) == 6
    longer = dataclasses.replace(LINEAR, recipe=dataclasses.replace(RECIPE, epochs=4))
    other = {"official": dataclasses.replace(FEATURES["official"], fingerprint="changed")}
    run([longer], (0,), FEATURES, cache, workers=1)
    run([LINEAR], (0,), other, cache, workers=1)
    monkeypatch.setattr(runs, "code_version", lambda *names: "changed")
    run([LINEAR], (0,), FEATURES, cache, workers=1)
    assert len(trained) == 9


def test_failures_are_named_and_the_rest_is_kept(tmp_path, trained):
    broken = dataclasses.replace(GRU, name="broken", model_args={"modality": "frames", "hidden": 0})
    with pytest.raises(ExperimentError, match=r"2 of 4 .* broken with seed 0"):
        run([broken, LINEAR], (0, 1), FEATURES, Cache(tmp_path), workers=1)
    assert trained == [("MeanLinear", 0), ("MeanLinear", 1)]
    run([LINEAR], (0, 1), FEATURES, Cache(tmp_path), workers=1)
    assert len(trained) == 2
    deaf = FEATURES["official"].train.only("frames")
    deaf = {"official": FeatureSplits(deaf, deaf, deaf, fingerprint="")}
    for features, word in (({}, "no official features"), (deaf, "no sound")):
        with pytest.raises(ValueError, match=word):
            run([LINEAR], (0,), features, Cache(tmp_path))
    fatal = dataclasses.replace(LINEAR, name="fatal", train=lambda *_, **__: os._exit(1))
    with pytest.raises(ExperimentError, match="died"):
        run([GRU, fatal], (0,), FEATURES, Cache(tmp_path), workers=2)


def test_some_rows_have_more_seeds_and_are_compared_on_those_that_both_have(tmp_path):
    embedded = profiles.get("embedded")
    for e in all_experiments(embedded).values():
        wanted = 5 if {"B3", "B4"} & {table for table, _ in e.rows} else 3
        assert not e.model or len(e.seeds_of(embedded.seeds)) >= wanted, e.name
    for few in (profiles.get("embedded", seeds=3), PROFILE):
        assert {e.seeds_of((0, 4)) for e in all_experiments(few).values()} == {(0, 4)}
    more = dataclasses.replace(GRU, least_seeds=4)
    study = run([LINEAR, more], (0, 3), FEATURES, Cache(tmp_path), workers=1)
    assert (study["linear"].seeds, study["gru"].seeds) == ((0, 3), (0, 3, 4, 5))
    rho = [study.summary(name).per_seed for name in ("linear", "gru")]
    gap = study.difference("linear", "gru")
    assert gap.per_seed == pytest.approx(np.subtract(rho[0], rho[1][:2]))
    linear, gru = (study[name].predictions[:2] for name in ("linear", "gru"))
    assert gap == difference(study["gru"].target, linear, gru)


PEARSON = dataclasses.replace(RECIPE, loss="1-pearson")


def test_search_finds_the_best_of_the_grid():
    rng = np.random.default_rng(0)
    target = rng.random((60, 2))
    predictions = np.stack([target + rng.normal(0, s, (60, 2)) for s in (0.4, 0.6, 1.0)])
    weights = search_weights(predictions, target, parts=10)
    grid = [np.array(row) for row in np.ndindex(11, 11, 11) if sum(row) == 10]
    for e in range(2):
        scores = [pearsonr(row @ predictions[:, :, e], target[:, e]).statistic for row in grid]
        best = pearsonr(weights[:, e] @ predictions[:, :, e], target[:, e]).statistic
        assert best == pytest.approx(max(scores))
    useless = np.stack([target, np.zeros_like(target)])
    assert (search_weights(useless, target)[0] > 0).all()


@pytest.mark.parametrize("factor", [1.0, 7.0])
def test_it_is_the_members_fits_by_hand(factor):
    """Members' seeds, folds and weights, spelled out; targets beyond [0, 1] are brought there."""
    data = TRAIN.with_target(factor * TRAIN.target)
    honest, leaked = fit_savchenko(data, data, PEARSON, seed=3, folds=2, hidden=4)
    scale = TargetScale.of(data.target, "range")
    scaled = data if scale is None else data.with_target(scale.transform(data.target))
    order = np.random.default_rng(3).permutation(len(data))
    held_out, members = np.zeros((3, *data.target.shape)), []
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for m, (name, width) in enumerate(data.dims.items()):
            for fold in (order[:12], order[12:], []):
                rows = [i for i in range(len(data)) if i not in fold]
                model = StatisticsMLP(width, name, 6, hidden=4)
                trained = fit(model, scaled.select(rows), recipe=PEARSON, seed=3)
                if len(fold):
                    held_out[m, np.sort(fold)] = trained.predict(scaled.select(np.sort(fold)))
            members.append(trained.predict(data))
    for outcome, predictions, target in (
        (honest, held_out, scaled.target),
        (leaked, members, data.target),
    ):
        weights = search_weights(predictions, target)
        np.testing.assert_allclose(outcome.model.fusion, weights, atol=1e-6)
        expected = np.einsum("me,mne->ne", weights, members)
        if scale is not None:
            expected = scale.inverse_transform(expected)
        np.testing.assert_allclose(outcome.predict(data), expected, atol=1e-4)
    rho = [pearsonr(r.predict(data), data.target).statistic.mean() for r in (honest, leaked)]
    assert rho[1] >= rho[0]  # what makes the leak a leak


def test_the_leak_needs_validation_clips_and_a_killed_run_goes_on(tmp_path):
    data = TRAIN
    options = {"recipe": PEARSON, "folds": 2, "hidden": 4, "checkpoint": tmp_path}
    whole, _ = fit_savchenko(data, data, **options)
    assert len(list(tmp_path.glob("*/epoch.pt"))) == 9
    before = torch.get_rng_state()
    again, leaked = fit_savchenko(data, **options)
    assert torch.equal(torch.get_rng_state(), before), "the caller's draws stay what they were"
    assert leaked is None
    np.testing.assert_array_equal(*(r.predict(data) for r in (whole, again)))


PEOPLE = pd.Series([f"person {i % 8}" for i in range(24)], index=TRAIN.ids)
SPLITS = {"official": dataclasses.replace(FEATURES["official"], train=TRAIN)}


def test_a_quarter_of_the_people_is_scored_and_a_tuned_profile_misses_no_point(monkeypatch):
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
