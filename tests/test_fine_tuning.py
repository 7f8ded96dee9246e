"""TAEMI with its encoders trained inside, from checkpoints in the published formats."""

import dataclasses

import numpy as np
import pytest
import small_checkpoints
import torch

from emilib import profiles
from emilib.pipeline import Workspace
from emilib.training.loop import predict


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    weights = small_checkpoints.write(tmp_path_factory.mktemp("weights"))
    paper, smoke = profiles.paper(), profiles.smoke()
    named = {
        role: {**config, "checkpoint": str(weights / config["checkpoint"])}
        for role, config in paper.taemi_encoders.items()
    }
    named["text"] |= {"pool": "mean"}
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


def test_the_saved_model_predicts_what_it_predicted(workspace):
    """Encoders are trained, saved and read back with the fusion; the table's rows are theirs."""
    results = workspace.results(["taemi_tuned"])
    outcome, data = results["taemi_tuned"], workspace.features_of("taemi_tuned").validation
    assert data.ids == outcome.ids
    again = predict(results.model("taemi_tuned"), data)
    np.testing.assert_allclose(again, outcome.predictions[0], atol=1e-4)
    assert ("B2", "TAEMI") in outcome.experiment.rows
    assert workspace.experiments()["taemi"].rows == ()
    before, after = workspace.encoders("paper_b"), results.model("taemi_tuned")
    for role, module in (("audio", after.audio), ("text", after.text)):
        pairs = zip(before[role].parameters(), module.parameters(), strict=True)
        assert not all(torch.equal(a, b) for a, b in pairs), role
