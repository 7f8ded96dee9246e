"""TAEMI with its encoders trained inside, from checkpoints in the published formats."""

import dataclasses

import numpy as np
import pytest
import small_checkpoints
import torch

from emilib import profiles
from emilib.features.media_set import MediaSet
from emilib.study import Recipe, fit
from emilib.study.training import predict
from emilib.workspace import Workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    weights = small_checkpoints.write(tmp_path_factory.mktemp("weights"))
    paper, smoke = profiles.paper(), profiles.smoke()
    named = {
        role: {**config, "checkpoint": str(weights / config["checkpoint"])}
        for role, config in paper.taemi_encoders.items()
    }
    profile = dataclasses.replace(
        smoke,
        warm_start=None,
        taemi_encoders=named,
        taemi_fine_tune=True,
        taemi_recipe=dataclasses.replace(smoke.taemi_recipe, epochs=2),
        seeds=(0,),
        workers=1,
        corpus_size={"train": 12, "validation": 10, "test": 4},
    )
    return Workspace(profile, home=tmp_path_factory.mktemp("home"))


def test_the_fusion_alone_predicts_what_it_predicted_with_its_encoders(workspace):
    """Encoders are trained, saved, read back, and give features that the fusion knows."""
    outcome = workspace.results(["taemi"])["taemi"]
    features = workspace.features_of("taemi")
    assert features.validation.ids == outcome.ids
    again = predict(workspace.results(["taemi"]).model("taemi"), features.validation)
    np.testing.assert_allclose(again, outcome.predictions[0], atol=5e-3)
    assert np.ptp(again, axis=0).max() > 0.02


def test_the_encoders_are_trained(workspace):
    before, after = (workspace.encoders(stage) for stage in ("paper_b", "tuned"))
    for role, same in (("vision", True), ("audio", False), ("text", False)):
        pairs = zip(before[role].parameters(), after[role].parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == same, role


def test_a_batch_of_media_is_that_of_features_with_sound_and_words(workspace):
    data, cached = (
        splits.train
        for splits in (workspace._media_features(), workspace.features("ours", "paper_b"))
    )
    rows = np.array([3, 0, 7])
    batch, plain = data.batch(rows), cached.batch(rows)
    assert torch.equal(batch.frames, plain.frames)
    assert torch.equal(batch.present, plain.present)
    assert torch.equal(batch.target, plain.target)
    for row, sound, real in zip(rows, batch.waveform, batch.waveform_valid, strict=True):
        expected = workspace.media["waveform"][data.ids[row]]
        if expected is not None:
            np.testing.assert_array_equal(sound[real] * 32768, expected[: 12 * 16000])
    assert batch.input_ids.shape == batch.attention_mask.shape
    assert batch.attention_mask.sum(dim=1).max() == batch.input_ids.shape[1]


def test_batches_come_in_the_order_of_features(workspace):
    data = workspace._media_features().train
    orders = []
    for one in (data, data.features):
        generator = torch.Generator().manual_seed(3)
        batches = one.batches(4, shuffle=True, generator=generator)
        orders.append([b.index.tolist() for b in batches])
    assert orders[0] == orders[1]


def test_one_clip_too_few_is_noticed(workspace):
    data = workspace._media_features().train
    with pytest.raises(ValueError, match="expected the same clips"):
        MediaSet(
            data.features,
            data.waveforms,
            {"input_ids": data.tokens["input_ids"][1:]},
            None,
            data.encoders,
            data.moments,
        )


def test_a_batch_is_learnt_by_heart(workspace):
    from emilib.study.experiments import build, with_encoders

    splits = workspace._media_features()
    experiment = workspace.experiments()["taemi"]
    torch.manual_seed(0)
    experiment = dataclasses.replace(
        experiment, model_args={**experiment.model_args, "modality_dropout": 0.0}
    )
    fusion = build(experiment, splits.train.dims, splits.train.num_targets)
    model = with_encoders(fusion, splits.train)
    recipe = Recipe(epochs=40, batch_size=12, lr=3e-3)
    history = fit(model, splits.train, None, recipe, seed=0).history
    assert history["loss"].iloc[-1] < 0.3 * history["loss"].iloc[0]
