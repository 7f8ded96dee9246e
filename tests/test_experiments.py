"""Experiments: every row has one, runs are kept, killed runs go on, failures don't spread."""

import dataclasses
import types

import numpy as np
import pytest
import torch

from emilib import models
from emilib.cache import Cache
from emilib.features import FeatureSet, FeatureSplits
from emilib.study import claims, training
from emilib.study import experiments as study
from emilib.study.experiments import Experiment, ExperimentError
from emilib.study.metrics import mean_pearson
from emilib.study.training import Recipe

RECIPE = Recipe(epochs=3, batch_size=8, lr=1e-2)
PROFILE = types.SimpleNamespace(
    dual_stage={"width": 8, "segments": 2, "heads": 2, "layers": 1, "audio_hidden": 4},
    taemi={"width": 8, "heads": 2},
    dual_stage_recipe=dataclasses.replace(RECIPE, ema_decay=0.9),
    taemi_recipe=dataclasses.replace(RECIPE, schedule="warmup_cosine", patience=2),
    baseline={},
    baseline_recipe=RECIPE,
)


def clips(count, seed, name, labelled=True):
    generator = np.random.default_rng(seed)

    def sequences(width):
        return [
            None
            if generator.random() < 0.1
            else generator.normal(size=(generator.integers(2, 9), width)).astype(np.float32)
            for _ in range(count)
        ]

    text = generator.normal(size=(count, 4)).astype(np.float32)
    text[generator.random(count) < 0.1] = np.nan
    return FeatureSet.from_arrays(
        [f"{name}{i:04d}" for i in range(count)],
        frames=sequences(5),
        audio=sequences(6),
        text=text,
        target=generator.random((count, 6)).round(1) if labelled else None,
    )


def splits(name, seed):
    parts = [clips(24, seed, "1"), clips(12, 77, "2"), clips(5, seed + 2, "3", labelled=False)]
    return FeatureSplits(*parts, fingerprint=f"{name}-{seed}", name=name)


FEATURES = {"ours": splits("ours", 1), "official": splits("official", 4)}
LINEAR = Experiment("linear", "MeanLinear", {"modality": "audio"}, ("audio",), "official", RECIPE)
GRU = dataclasses.replace(
    LINEAR,
    name="gru",
    model="LastStepGRU",
    model_args={"modality": "frames", "hidden": 4},
    modalities=("frames",),
)
BOTH = Experiment("both", features="official", members=("linear", "gru"))


@pytest.fixture
def trained(monkeypatch):
    """The seeds of the runs that were really trained."""
    calls = []
    fit = training.fit

    def counted(model, train, valid, recipe, seed, **kwargs):
        calls.append((type(model).__name__, seed))
        return fit(model, train, valid, recipe, seed, **kwargs)

    monkeypatch.setattr(training, "fit", counted)
    return calls


def test_every_row_has_one_experiment():
    listed = study.experiments(PROFILE)
    for table in ("A2", "A3", "B2", "B3", "B4"):
        for claim in claims.rows(table):
            serving = [e for e in listed.values() if (table, claim.row) in e.rows]
            assert len(serving) == 1, (table, claim.row)
            assert claim in serving[0].claims
    not_built = {row for e in listed.values() if not e.built for row in e.rows}
    assert all(table == "B2" for table, _ in not_built)
    assert len([e for e in listed.values() if e.model == "TAEMI"]) == 7


def test_ablations_change_one_setting():
    listed = study.experiments(PROFILE)
    full = listed["taemi"]
    for name, experiment in listed.items():
        if experiment.model != "TAEMI" or name == "taemi":
            continue
        changed = set(experiment.model_args.items()) - set(full.model_args.items())
        assert len(changed) == 1, name
        assert (experiment.recipe, experiment.features) == (full.recipe, full.features)


def test_every_experiment_of_the_tables_trains(tmp_path):
    listed = study.experiments(PROFILE)
    quick = {
        name: dataclasses.replace(e, recipe=e.recipe and dataclasses.replace(e.recipe, epochs=1))
        for name, e in listed.items()
    }
    results = study.run(quick, (0,), FEATURES, Cache(tmp_path), workers=1)
    assert set(results.names) == {name for name, e in listed.items() if e.built}
    for name in results.names:
        assert results[name].predictions.shape == (1, 12, 6)
        assert np.isfinite(results[name].predictions).all()
        assert results[name].test_predictions.shape == (1, 5, 6)


def test_results_are_what_was_trained(tmp_path):
    results = study.run([LINEAR, GRU, BOTH], (0, 3), FEATURES, Cache(tmp_path), workers=1)
    outcome = results["linear"]
    validation = FEATURES["official"].validation
    assert outcome.ids == validation.ids
    np.testing.assert_array_equal(outcome.target, validation.target)
    rho = [mean_pearson(validation.target, p) for p in outcome.predictions]
    assert results.rho("linear") == pytest.approx(rho)
    assert results.summary("linear").value == pytest.approx(np.mean(rho))
    model = results.model("linear", seed=3)
    again = training.predict(model, validation.only("audio"))
    np.testing.assert_allclose(again, outcome.predictions[1], atol=1e-6)
    assert len(outcome.histories) == 2
    assert outcome.histories[0]["epoch"].tolist() == [1, 2, 3]
    both = results["both"]
    np.testing.assert_allclose(
        both.predictions, (outcome.predictions + results["gru"].predictions) / 2
    )
    assert both.parameters == outcome.parameters + results["gru"].parameters
    delta = results.difference("linear", "gru")
    assert delta.per_seed == pytest.approx(results.rho("linear") - results.rho("gru"))
    with pytest.raises(ValueError, match="no result for 'other'; there are: linear, gru, both"):
        results["other"]
    with pytest.raises(ValueError, match="is a mean of"):
        results.model("both")


def test_a_second_run_trains_nothing(tmp_path, trained):
    first = study.run([LINEAR, GRU], (0, 1), FEATURES, Cache(tmp_path), workers=1)
    assert len(trained) == 4
    seen = []
    second = study.run(
        [LINEAR, GRU],
        (0, 1),
        FEATURES,
        Cache(tmp_path),
        workers=1,
        progress=lambda *counts: seen.append(counts),
    )
    assert len(trained) == 4
    assert seen == [(4, 4)]
    np.testing.assert_array_equal(first["gru"].predictions, second["gru"].predictions)
    study.run([LINEAR, GRU], (0, 1, 2), FEATURES, Cache(tmp_path), workers=1)
    assert trained[4:] == [("MeanLinear", 2), ("LastStepGRU", 2)]


def test_name_and_rows_are_no_part_of_the_key_and_settings_are(tmp_path, trained):
    cache = Cache(tmp_path)
    renamed = dataclasses.replace(LINEAR, name="again", rows=(("A2", "Wav2Vec2 (baseline)"),))
    results = study.run([LINEAR, renamed], (0,), FEATURES, cache, workers=1)
    assert len(trained) == 1
    np.testing.assert_array_equal(results["linear"].predictions, results["again"].predictions)
    longer = dataclasses.replace(LINEAR, recipe=dataclasses.replace(RECIPE, epochs=4))
    study.run([longer], (0,), FEATURES, cache, workers=1)
    other = {"official": dataclasses.replace(FEATURES["official"], fingerprint="changed")}
    study.run([LINEAR], (0,), other, cache, workers=1)
    assert len(trained) == 3


def test_the_key_changes_with_the_code(tmp_path, monkeypatch, trained):
    cache = Cache(tmp_path)
    study.run([LINEAR], (0,), FEATURES, cache, workers=1)
    original = study.source_sum
    files = []

    def changed(*names):
        files.extend(names)
        return original(*names) + "x"

    monkeypatch.setattr(study, "source_sum", changed)
    study.run([LINEAR], (0,), FEATURES, cache, workers=1)
    assert len(trained) == 2
    assert {"models/prior.py", "models/output.py", "study/training.py"} <= set(files)


class Killed(BaseException):
    pass


def test_a_killed_study_keeps_what_was_finished(tmp_path, trained):
    def kill(done, total):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        study.run([LINEAR, GRU], (0, 1), FEATURES, Cache(tmp_path), workers=1, progress=kill)
    assert len(trained) == 2
    study.run([LINEAR, GRU], (0, 1), FEATURES, Cache(tmp_path), workers=1)
    assert len(trained) == 4


def test_a_killed_run_goes_on_from_its_last_epoch(tmp_path, monkeypatch):
    record = training._Trainer._record
    trained = []

    def killed_in_epoch_3(self, epoch, *rest):
        trained.append(epoch)
        if trained == [1, 2, 3]:
            raise Killed
        return record(self, epoch, *rest)

    monkeypatch.setattr(training._Trainer, "_record", killed_in_epoch_3)
    with pytest.raises(Killed):
        study.run([GRU], (0,), FEATURES, Cache(tmp_path / "a"), workers=1)
    resumed = study.run([GRU], (0,), FEATURES, Cache(tmp_path / "a"), workers=1)
    assert trained == [1, 2, 3, 3]
    whole = study.run([GRU], (0,), FEATURES, Cache(tmp_path / "b"), workers=1)
    np.testing.assert_array_equal(resumed["gru"].predictions, whole["gru"].predictions)
    assert not list(tmp_path.glob("a/*/*.unfinished"))


def test_workers_change_no_bit(tmp_path):
    alone = study.run([LINEAR, GRU], (0,), FEATURES, Cache(tmp_path / "1"), workers=1)
    seen = []
    spread = study.run(
        [LINEAR, GRU],
        (0,),
        FEATURES,
        Cache(tmp_path / "2"),
        workers=2,
        progress=lambda *counts: seen.append(counts),
    )
    assert seen == [(0, 2), (1, 2), (2, 2)]
    for name in ("linear", "gru"):
        np.testing.assert_array_equal(alone[name].predictions, spread[name].predictions)
        a, b = alone.model(name).state_dict(), spread.model(name).state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_one_failure_does_not_lose_the_others(tmp_path, trained):
    broken = dataclasses.replace(GRU, name="broken", model_args={"modality": "frames", "hidden": 0})
    with pytest.raises(
        ExperimentError, match=r"2 of 4 runs failed.*broken with seed 0: ValueError"
    ):
        study.run([broken, LINEAR], (0, 1), FEATURES, Cache(tmp_path), workers=1)
    assert trained == [("MeanLinear", 0), ("MeanLinear", 1)]
    kept = study.collect({"linear": LINEAR}, (0, 1), FEATURES, Cache(tmp_path))
    assert kept.names == ["linear"]


def test_bad_requests_are_refused(tmp_path):
    cache = Cache(tmp_path)
    with pytest.raises(ValueError, match=r"linear needs features 'official', came \['ours'\]"):
        study.run([LINEAR], (0,), {"ours": FEATURES["ours"]}, cache)
    deaf = {
        name: getattr(FEATURES["official"], name).only("frames")
        for name in ("train", "validation", "test")
    }
    lacking = {"official": FeatureSplits(**deaf, fingerprint="x", name="official")}
    with pytest.raises(ValueError, match="linear needs audio, which the official features"):
        study.run([LINEAR], (0,), lacking, cache)
    with pytest.raises(ValueError, match="both needs 'linear'"):
        study.run([BOTH], (0,), FEATURES, cache)


def test_models_are_built_for_the_features():
    experiment = study.experiments(PROFILE)["dual_stage_vat"]
    model = study.build(experiment, {"frames": 5, "audio": 6, "text": 4}, 3)
    assert isinstance(model, models.DualStage)
    batch = next(FEATURES["ours"].train.batches(4))
    assert model(**batch.inputs()).intensity.shape == (4, 3)
