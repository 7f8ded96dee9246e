import dataclasses
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from test_training import RECIPE, TRAIN, VALID, small

from emilib import models, submission
from emilib.corpus import CorpusError
from emilib.export import predictor_of
from emilib.pipeline import Workspace
from emilib.predict import EmiPredictor
from emilib.study import fit, mean_pearson
from emilib.training.loop import TargetScale

WIDE = np.array([6.0, 1.0, 1e4, 0.001, 20.0, 1.0])
FROM = np.array([1.0, 0.0, -3e3, -7.0, 0.5, 0.0])


def wide(data):
    return data.with_target(data.target * WIDE + FROM)


def test_a_scale_is_scikit_learns_and_fit_predicts_in_the_range_given():
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
    constant = np.full((4, 1), 5.0)
    np.testing.assert_array_equal(TargetScale.of(constant).transform(constant), 0)
    result = fit(small(), wide(TRAIN), wide(VALID), RECIPE, seed=1)
    scale = TargetScale.of(wide(TRAIN).target)
    scaled = TRAIN.with_target(scale.transform(wide(TRAIN).target))
    by_hand = fit(small(), scaled, None, RECIPE, seed=1)
    again = fit(small(), wide(TRAIN), None, dataclasses.replace(RECIPE, keep="last"), seed=1)
    weights = (dict(result.model.named_parameters()) for result in (again, by_hand))
    torch.testing.assert_close(*weights, atol=1e-4, rtol=1e-3)
    learnt = scale.transform(again.predict(VALID))
    np.testing.assert_allclose(learnt, by_hand.predict(VALID), atol=1e-3)
    rho = mean_pearson(wide(VALID).target, result.predict(VALID))
    assert rho == pytest.approx(result.history.loc[result.epoch - 1, "rho"], abs=1e-5)
    assert rho > 0.5
    spread = result.predict(VALID).std(axis=0) / wide(VALID).target.std(axis=0)
    assert ((spread > 0.05) & (spread < 1.5)).all()
    bounded = models.for_features("TAEMI", wide(TRAIN), width=8, sigmoid=True)
    result = fit(bounded, wide(TRAIN), None, dataclasses.replace(RECIPE, epochs=1))
    assert result.scale.to_dict() == TargetScale.of(wide(TRAIN).target, "range").to_dict()


@pytest.fixture(scope="module")
def own(workspace, tmp_path_factory):
    """A workspace on videos under other names, with two targets from 1 to 7 and words."""
    root = tmp_path_factory.mktemp("own")
    rows = []
    for number, row in enumerate(workspace.clips.query("split != 'test'").itertuples()):
        shutil.copy(row.video, root / f"take {number}.mp4")
        split = ("train", "train", "train", "val", "test")[number % 5]
        values = ["", ""] if split == "test" else [1 + 6 * row.Joy, 7 - 0.3 * number]
        rows.append([f"take {number}.mp4", *values, split, row.transcript or ""])
    columns = ["file", "valence", "arousal", "split", "text"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "labels.csv", index=False)
    recipe = dataclasses.replace(workspace.profile.taemi_recipe, epochs=1)
    plans = workspace.profile.stage_one
    plans = {side: dataclasses.replace(p, epochs=1, cycle_epochs=1) for side, p in plans.items()}
    profile = dataclasses.replace(workspace.profile, stage_one=plans, taemi_recipe=recipe)
    return Workspace(profile, root, tmp_path_factory.mktemp("home"))


def test_an_own_data_set_is_trained_on_and_predicted_in_its_range(own, tmp_path):
    assert own.corpus_name == f"corpus {own.folder.name}"
    assert own.partitions["clips"].tolist() == [14, 4, 4]
    assert re.match(r"Faces were found in (100|9\d)% of the frames of \d+ videos", own.frame_source)
    by_csv = Workspace(own.profile, own.folder / "labels.csv", own.home)
    assert (by_csv.folder, by_csv.reader.key) == (own.folder, own.reader.key)
    results = own.results(["taemi", "vit_baseline"])
    assert list(results) == ["taemi"]
    assert results.lacking == {"vit_baseline": "no official features"}
    outcome, train = results["taemi"], own.features().train.target
    assert outcome.targets == own.targets == ("valence", "arousal")
    assert outcome.test_predictions.shape == (2, 4, 2)
    kept = EmiPredictor.from_pretrained(predictor_of(own, "taemi").save_pretrained(tmp_path / "m"))
    clip = own.clips.query("split == 'validation'").iloc[0]
    row = kept.predict([clip["video"]], text=[clip["transcript"]]).iloc[0]
    expected = outcome.predictions.mean(axis=0)[outcome.ids.index(clip["id"])]
    np.testing.assert_allclose([row["valence"], row["arousal"]], expected, atol=0.1)
    assert abs(row["arousal"] - train[:, 1].mean()) < 3 * train[:, 1].std()
    with pytest.raises(CorpusError, match="got valence, arousal"):
        submission.make(own, "taemi", tmp_path / "submission.csv")
