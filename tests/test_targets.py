"""Targets of any name, number and range go from a CSV through training to a prediction."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from test_experiments import PROFILE
from test_training import RECIPE, TRAIN, VALID, clips, small

from emilib import profiles, submission
from emilib.cache import Cache
from emilib.corpus import EMOTIONS, CorpusError, read
from emilib.export import predictor_of
from emilib.features import FeatureSet
from emilib.features.feature_set import FeatureSplits
from emilib.pipeline import Workspace
from emilib.predict import EmiPredictor
from emilib.study import experiments, fit, mean_pearson, runs, tables
from emilib.study.results import Results
from emilib.synthetic.film import make
from emilib.training.loop import TargetScale

WIDE = np.array([6.0, 1.0, 1e4, 0.001, 20.0, 1.0])
FROM = np.array([1.0, 0.0, -3e3, -7.0, 0.5, 0.0])


def wide(data):
    return data.with_target(data.target * WIDE + FROM)


def test_a_scale_is_that_of_scikit_learn_and_leaves_the_unit_interval_alone():
    target = wide(TRAIN).target
    for by, reference in (("sd", StandardScaler()), ("range", MinMaxScaler())):
        scale = TargetScale.of(target, by)
        expected = reference.fit_transform(target)
        expected[:, [1, 5]] = target[:, [1, 5]]  # these lie in [0, 1]
        np.testing.assert_allclose(scale.transform(target), expected, atol=1e-9)
        np.testing.assert_allclose(scale.inverse_transform(scale.transform(target)), target)
        again = TargetScale.from_dict(scale.to_dict())
        np.testing.assert_array_equal(again.transform(target), scale.transform(target))
    assert TargetScale.of(TRAIN.target) is None
    assert TargetScale.from_dict(None) is None


def test_a_constant_column_beyond_the_unit_interval_is_moved_only():
    scale = TargetScale.of(np.full((4, 1), 5.0))
    np.testing.assert_array_equal(scale.transform(np.full((4, 1), 5.0)), 0)
    assert scale.factor.tolist() == [1.0]


def test_fit_is_fit_on_standardised_targets_and_predicts_in_the_range_given():
    result = fit(small(), wide(TRAIN), wide(VALID), RECIPE, seed=1)
    scale = TargetScale.of(wide(TRAIN).target)
    by_hand = fit(
        small(), TRAIN.with_target(scale.transform(wide(TRAIN).target)), None, RECIPE, seed=1
    )
    everything = dataclasses.replace(RECIPE, keep="last")
    again = fit(small(), wide(TRAIN), None, everything, seed=1)
    for first, second in zip(again.model.parameters(), by_hand.model.parameters(), strict=True):
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-3)
    learnt = scale.transform(again.predict(VALID))
    np.testing.assert_allclose(learnt, by_hand.predict(VALID), atol=1e-3)
    rho = mean_pearson(wide(VALID).target, result.predict(VALID))
    assert rho == pytest.approx(result.history.loc[result.epoch - 1, "rho"], abs=1e-5)
    assert rho > 0.5
    spread = result.predict(VALID).std(axis=0) / wide(VALID).target.std(axis=0)
    assert ((spread > 0.05) & (spread < 1.5)).all()


def test_targets_within_the_unit_interval_are_trained_on_as_they_are():
    result = fit(small(), TRAIN, None, RECIPE, seed=1)
    assert result.scale is None
    trainer_target = TRAIN.batch(range(3)).target
    torch.testing.assert_close(trainer_target, torch.from_numpy(TRAIN.target[:3]).float())


def test_names_go_along_with_a_set():
    names = ("a", "b b", "c", "d", "e", "f")
    data = FeatureSet.from_arrays(
        TRAIN.ids, TRAIN.frames, None, TRAIN.text, TRAIN.target, names=names
    )
    assert data.select([0, 1]).only("text").targets == names
    assert data.with_target(data.target).standardised(data.moments()).targets == names
    assert data.fingerprint() != TRAIN.fingerprint()
    assert TRAIN.targets == EMOTIONS
    named = FeatureSet.from_arrays(
        TRAIN.ids, TRAIN.frames, None, TRAIN.text, TRAIN.target, names=EMOTIONS
    )
    assert named.fingerprint() == TRAIN.fingerprint()
    with pytest.raises(ValueError, match="names: expected one for each of 6 targets, got 2"):
        FeatureSet.from_arrays("ab", text=np.ones((2, 1)), target=np.ones((2, 6)), names="xy")
    history = fit(small(), data, data, dataclasses.replace(RECIPE, epochs=1)).history
    assert "rho b b" in history


def test_clips_that_all_lack_a_modality_have_its_width_where_it_is_known():
    test = FeatureSet.from_arrays("xy", [None, None], dims=TRAIN.dims)
    assert test.dims["frames"] == TRAIN.dims["frames"]
    assert test.batch([0, 1]).frames.shape == (2, 1, 5)
    assert not test.present.any()
    with pytest.raises(ValueError, match="expected width 5 like the other clips, got 4"):
        FeatureSet.from_arrays("x", [np.ones((2, 4))], dims=TRAIN.dims)


# ---- experiments and tables ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def features():
    generator = np.random.default_rng(0)

    def part(count, seed):
        data = clips(count, seed)
        audio = [generator.normal(size=(4, 6)) for _ in range(count)]
        target = data.target[:, :2] * [6, 1] + [1, 0]
        return FeatureSet.from_arrays(
            data.ids, data.frames, audio, data.text, target, names=("valence", "size")
        )

    return {"ours": FeatureSplits(part(24, 1), part(12, 2), part(3, 3), "x", "ours")}


def test_savchenko_is_brought_into_the_range_of_its_sigmoid_and_back(features, tmp_path):
    listed = experiments.all_experiments(PROFILE)
    chosen = {n: listed[n] for n in ("savchenko_2025", "savchenko_2025_leaked", "yu_2024")}
    results = runs.run(chosen, (0,), features, Cache(tmp_path), workers=1)
    target = features["ours"].train.target
    for name in chosen:
        outcome = results[name]
        assert outcome.targets == ("valence", "size")
        np.testing.assert_array_equal(outcome.target, features["ours"].validation.target)
        if name != "yu_2024":
            inside = (outcome.predictions[..., 0] >= target[:, 0].min()) & (
                outcome.predictions[..., 0] <= target[:, 0].max()
            )
            assert inside.all()
    raw = results.model("yu_2024")(**features["ours"].validation.batch(range(12)).inputs())
    np.testing.assert_allclose(
        results["yu_2024"].scale.inverse_transform(raw.intensity.detach().numpy()),
        results["yu_2024"].predictions[0],
        atol=1e-4,
    )


def test_rows_that_cannot_be_trained_say_why(features):
    listed = experiments.all_experiments(PROFILE)
    chosen = {n: e for n, e in listed.items() if e.features in ("ours", "official")}
    without = runs.untrainable(chosen, features)
    assert without == dict.fromkeys(
        ("vit_baseline", "wav2vec2_baseline", "baseline_average"), "no official features"
    )
    results = Results(chosen, {}, without)
    a2 = tables.table("A2", results)
    here = tables.display(a2).set_index("Row")["ρ here"]
    assert here["ViT (baseline)"] == "–, no official features"
    assert here["ViT (ours)"] == tables.NO_RESULT
    assert tables.complete({"A2": a2}, ["A2"]) == [
        "A2, ViT (ours): no result",
        "A2, Wav2Vec2 (ours): no result",
    ]
    with pytest.raises(ValueError, match="no official features"):
        results["vit_baseline"]


def test_one_official_modality_serves_its_own_row_only(features):
    one = {"official": dataclasses.replace(features["ours"], train=TRAIN.only("frames"))}
    listed = {
        n: e for n, e in experiments.all_experiments(PROFILE).items() if e.features == "official"
    }
    reason = "no sound in the official features"
    assert runs.untrainable(listed, one) == {
        "wav2vec2_baseline": reason,
        "baseline_average": reason,
    }


# ---- a folder of one's own ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of an embedded corpus under other names, with two targets from 1 to 7 and words."""
    made = read(make(tmp_path_factory.mktemp("made") / "corpus", 14, 6, 0, workers=1))
    root = tmp_path_factory.mktemp("own")
    rows = []
    for number, row in enumerate(made.itertuples()):
        shutil.copy(row.video, root / f"take {number}.mp4")
        split = ("train", "train", "train", "val", "test")[number % 5]
        values = ["", ""] if split == "test" else [1 + 6 * row.Joy, 7 - 0.3 * number]
        rows.append([f"take {number}.mp4", *values, split, row.transcript or ""])
    columns = ["file", "valence", "arousal", "split", "text"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "labels.csv", index=False)
    return root


@pytest.fixture(scope="module")
def workspace(folder, tmp_path_factory):
    recipe = dataclasses.replace(profiles.get("smoke").taemi_recipe, epochs=1)
    profile = dataclasses.replace(
        profiles.get("smoke"), seeds=(0, 1), workers=1, taemi_recipe=recipe
    )
    return Workspace(profile, folder, tmp_path_factory.mktemp("home"))


def test_a_workspace_has_the_targets_of_the_csv(workspace, folder):
    assert workspace.targets == ("valence", "arousal")
    assert workspace.corpus_name == f"corpus {folder.name}"
    assert not workspace.has_official
    assert workspace.partitions["clips"].tolist() == [12, 4, 4]
    named = Workspace(workspace.profile, folder / "labels.csv", workspace.home)
    assert named.folder == workspace.folder
    assert named.reader.key == workspace.reader.key
    ours = workspace.features("ours", "start")
    assert ours.validation.targets == ("valence", "arousal")
    assert ours.train.target.max() > 6


def test_an_own_data_set_is_trained_on_and_predicted_in_its_range(workspace, folder, tmp_path):
    results = workspace.results(["taemi", "vit_baseline"])
    assert results.names == ["taemi"]
    assert results.lacking == {"vit_baseline": "no official features"}
    outcome = results["taemi"]
    assert outcome.targets == ("valence", "arousal")
    assert outcome.test_predictions.shape == (2, 4, 2)
    train = workspace.features("ours").train.target
    predictor = predictor_of(workspace, "taemi")
    kept = EmiPredictor.from_pretrained(predictor.save_pretrained(tmp_path / "model"))
    assert kept.emotions == ("valence", "arousal")
    clip = workspace.clips.query("split == 'validation'").iloc[0]
    row = kept.predict([clip["video"]], text=[clip["transcript"]]).iloc[0]
    place = outcome.ids.index(clip["id"])
    expected = outcome.predictions.mean(axis=0)[place]
    np.testing.assert_allclose([row["valence"], row["arousal"]], expected, atol=0.1)
    assert abs(row["arousal"] - train[:, 1].mean()) < 3 * train[:, 1].std()
    card = (tmp_path / "model/README.md").read_text()
    assert "From a short video to 2 targets in the range of its corpus: valence, arousal." in card


def test_a_submission_is_refused(workspace, tmp_path):
    with pytest.raises(CorpusError, match=r"has the targets valence, arousal; a submission is of"):
        submission.make(workspace, "taemi", tmp_path / "submission.csv")
    with pytest.raises(CorpusError, match="has the targets valence, arousal"):
        submission.test_ids(workspace.source)
