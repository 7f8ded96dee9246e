"""Experiments: every row has one, runs are kept, killed runs resume, failures don't spread."""

import dataclasses
import os

import numpy as np
import pytest

from emilib import profiles
from emilib.cache import Cache
from emilib.features import FeatureSet, FeatureSplits
from emilib.metrics import difference, mean_pearson
from emilib.study import claims, runs
from emilib.study.experiments import Experiment, all_experiments
from emilib.study.runs import ExperimentError, run
from emilib.training import loop as training
from emilib.training.loop import Recipe

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


def test_every_row_has_one_experiment():
    for table in ("A2", "A3", "A4", "B2", "B3", "B4"):
        for claim in claims.rows(table):
            serving = [e for e in LISTED.values() if (table, claim.row) in e.rows]
            assert len(serving) == 1, (table, claim.row)
    assert all(e.model or e.members for e in LISTED.values())
    tuned = all_experiments(dataclasses.replace(PROFILE, taemi_fine_tune=True))
    assert tuned["taemi"].rows == (), "fine-tuned rows serve in place of the frozen ones"
    assert tuned["taemi_tuned"].features == "media"
    assert tuned["taemi_tuned"].rows == LISTED["taemi"].rows


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


def test_every_experiment_of_the_tables_trains(tmp_path):
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


def test_results_are_those_of_the_models_in_order_of_clips_and_seeds(tmp_path):
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


def test_workers_change_no_bit(tmp_path):
    pair, seen = [LINEAR, GRU], []
    alone = run(pair, (0,), FEATURES, Cache(tmp_path / "1"), workers=1)
    report = lambda *counts: seen.append(counts)  # noqa: E731
    spread = run(pair, (0,), FEATURES, Cache(tmp_path / "2"), workers=2, progress=report)
    assert seen == [(0, 2), (1, 2), (2, 2)]
    for name in ("linear", "gru"):
        np.testing.assert_array_equal(alone[name].predictions, spread[name].predictions)


def test_failures_are_named_and_the_rest_is_kept(tmp_path, trained):
    broken = dataclasses.replace(GRU, name="broken", model_args={"modality": "frames", "hidden": 0})
    with pytest.raises(ExperimentError, match=r"2 of 4 .* broken with seed 0"):
        run([broken, LINEAR], (0, 1), FEATURES, Cache(tmp_path), workers=1)
    assert trained == [("MeanLinear", 0), ("MeanLinear", 1)]
    run([LINEAR], (0, 1), FEATURES, Cache(tmp_path), workers=1)
    assert len(trained) == 2
    fatal = dataclasses.replace(LINEAR, name="fatal", train=lambda *_, **__: os._exit(1))
    with pytest.raises(ExperimentError, match="died"):
        run([GRU, fatal], (0,), FEATURES, Cache(tmp_path), workers=2)


def test_some_rows_have_more_seeds_and_are_compared_on_those_that_both_have(tmp_path):
    embedded, wanted = profiles.get("embedded"), {"A2": 3, "A3": 3, "A4": 3, "B3": 5, "B4": 5}
    for e in all_experiments(embedded).values():
        for table, _ in e.rows if e.model else ():
            assert len(e.seeds_of(embedded.seeds)) >= wanted.get(table, 3), e.name
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


def test_what_the_features_lack_is_named(tmp_path):
    deaf = FEATURES["official"].train.only("frames")
    deaf = {"official": FeatureSplits(deaf, deaf, deaf, fingerprint="")}
    for features, word in (({}, "no official features"), (deaf, "no sound")):
        with pytest.raises(ValueError, match=word):
            run([LINEAR], (0,), features, Cache(tmp_path))
