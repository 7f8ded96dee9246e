"""Experiments: every row has one, runs are kept, killed runs go on, failures don't spread."""

import dataclasses
import types

import numpy as np
import pytest
import torch

from emilib import models
from emilib.cache import Cache
from emilib.features import FeatureSet, FeatureSplits
from emilib.metrics import mean_pearson
from emilib.models import TAEMI
from emilib.models.build import build
from emilib.models.earlier import Savchenko2025, search_weights
from emilib.study import claims
from emilib.study import experiments as study
from emilib.study.experiments import Experiment, ExperimentError
from emilib.training import loop as training
from emilib.training.loop import Recipe

RECIPE = Recipe(epochs=3, batch_size=8, lr=1e-2)
PROFILE = types.SimpleNamespace(
    dual_stage={"width": 8, "segments": 2, "heads": 2, "layers": 1, "audio_hidden": 4},
    taemi={"width": 8, "heads": 2},
    dual_stage_recipe=dataclasses.replace(RECIPE, ema_decay=0.9),
    taemi_recipe=dataclasses.replace(RECIPE, schedule="warmup_cosine", patience=2),
    baseline={},
    baseline_recipe=RECIPE,
    earlier={
        "Yu2024": {"width": 8, "layers": 1},
        "Zhang2024": {"width": 8, "layers": 1},
        "TFN": {"width": 2, "text_width": 4, "hidden": 4},
        "MulT": {"width": 8, "heads": 2, "layers": 1},
        "MISA": {"width": 8},
    },
    earlier_recipe=RECIPE,
    taemi_encoders=None,
    taemi_fine_tune=False,
    savchenko_recipe=dataclasses.replace(RECIPE, loss="1-pearson"),
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


FEATURES = {
    "ours": splits("ours", 1),
    "ours, start": splits("ours", 5),
    "ours, one_way": splits("ours", 6),
    "official": splits("official", 4),
}
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
    for table in ("A2", "A3", "A4", "B2", "B3", "B4"):
        for claim in claims.rows(table):
            serving = [e for e in listed.values() if (table, claim.row) in e.rows]
            assert len(serving) == 1, (table, claim.row)
            assert claim in serving[0].claims
    assert all(e.model or e.members for e in listed.values())
    assert len([e for e in listed.values() if e.model == "TAEMI"]) == 8


def test_ablations_change_one_setting():
    listed = study.experiments(PROFILE)
    full = listed["taemi"]
    for name, experiment in listed.items():
        if experiment.model != "TAEMI" or name in ("taemi", "taemi_release"):
            continue
        changed = set(experiment.model_args.items()) - set(full.model_args.items())
        assert len(changed) == 1, name
        assert (experiment.recipe, experiment.features) == (full.recipe, full.features)


def test_a4_changes_one_thing_of_the_full_model():
    listed = study.experiments(PROFILE)
    full = listed["dual_stage_vat"]
    parts = [e for e in listed.values() if ("A4", e.rows[0][1]) in e.rows and e is not full]
    assert len(parts) == len(claims.rows("A4")) - 1 == 7
    for part in parts:
        settings = set(part.model_args.items()) ^ set(full.model_args.items())
        recipe = part.recipe != full.recipe
        assert len(settings) + recipe + (part.features != full.features) == 1, part.name
        assert part.modalities == full.modalities


def test_the_release_is_taemi_in_the_form_of_its_release():
    listed = study.experiments(PROFILE)
    widths = {"frames_dim": 5, "audio_dim": 6, "text_dim": 4}
    experiment, dims = listed["taemi_release"], {"frames": 5, "audio": 6, "text": 4}
    built = build(experiment.model, dims, 6, **experiment.model_args)
    expected = TAEMI.release(**widths, **PROFILE.taemi)
    assert {n: p.shape for n, p in built.named_parameters()} == {
        n: p.shape for n, p in expected.named_parameters()
    }
    assert listed["taemi_release"].recipe.clip_by == "value"


def test_the_leak_of_savchenko_is_its_own_number(tmp_path):
    listed = study.experiments(PROFILE)
    pair = [listed["savchenko_2025"], listed["savchenko_2025_leaked"]]
    features = {
        "ours": dataclasses.replace(
            FEATURES["ours"], validation=FEATURES["ours"].train.select(range(12))
        )
    }
    results = study.run(pair, (0, 1), features, Cache(tmp_path), workers=1)
    honest, leaked = (results[e.name] for e in pair)
    model = results.model("savchenko_2025", seed=1)
    assert isinstance(model, Savchenko2025)
    validation = features["ours"].validation
    np.testing.assert_allclose(
        training.predict(model, validation), honest.predictions[1], atol=1e-6
    )
    members = np.stack([training.predict(m, validation) for m in model.members.values()])
    weights = search_weights(members, validation.target)
    expected = np.einsum("me,mne->ne", weights, members)
    np.testing.assert_allclose(leaked.predictions[1], expected, atol=1e-5)
    # No weights on the grid do better on the clips they were found on.
    assert (results.rho(pair[1].name) >= results.rho(pair[0].name) - 1e-9).all()
    assert leaked.seeds == honest.seeds
    assert leaked.folders == []


def test_every_experiment_of_the_tables_trains(tmp_path):
    listed = study.experiments(PROFILE)
    quick = {
        name: dataclasses.replace(e, recipe=e.recipe and dataclasses.replace(e.recipe, epochs=1))
        for name, e in listed.items()
    }
    results = study.run(quick, (0,), FEATURES, Cache(tmp_path), workers=1)
    assert set(results.names) == set(listed)
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
    original = study.code_version
    files = []

    def changed(*names):
        files.extend(names)
        return original(*names) + "x"

    monkeypatch.setattr(study, "code_version", changed)
    study.run([LINEAR], (0,), FEATURES, cache, workers=1)
    assert len(trained) == 2
    assert {"models/earlier.py", "models/output.py", "training/loop.py"} <= set(files)


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
    dims = {"frames": 5, "audio": 6, "text": 4}
    model = build(experiment.model, dims, 3, **experiment.model_args)
    assert isinstance(model, models.DualStage)
    batch = next(FEATURES["ours"].train.batches(4))
    assert model(**batch.inputs()).intensity.shape == (4, 3)
