"""Anybody's arrays: every model trains on any width, any number of targets, with gaps."""

import numpy as np
import pytest
import torch
from test_models import SIZES, ready

from emilib.features import FeatureSet
from emilib.models import MODELS, for_features
from emilib.study import Recipe, fit

WIDTHS = {"frames": 5, "audio": 3, "text": 7}
CLIPS = 24
every_model = pytest.mark.parametrize("name", MODELS)


def clips(targets=2, lacking=()):
    """A regression with gaps: clip 0 lacks frames, clip 1 sound, clip 2 words, clip 3 all."""
    draw = np.random.default_rng(0)
    target = draw.normal(size=(CLIPS, targets))
    arrays = {"target": target}
    for name, gaps in (("frames", (0, 3)), ("audio", (1, 3))):
        columns = [np.resize(row, WIDTHS[name]) for row in target]
        noisy = [mix + 0.1 * draw.normal(size=(draw.integers(2, 7), len(mix))) for mix in columns]
        arrays[name] = [None if i in gaps else steps for i, steps in enumerate(noisy)]
    arrays["text"] = np.stack([np.resize(row, WIDTHS["text"]) for row in target])
    arrays["text"][[2, 3]] = np.nan
    arrays = {name: array for name, array in arrays.items() if name not in lacking}
    return FeatureSet.from_arrays(range(CLIPS), **arrays)


def trained(name, data, epochs=2):
    torch.manual_seed(0)
    model = for_features(name, data, **SIZES.get(name, {}))
    return fit(model, data, None, Recipe(epochs=epochs, batch_size=8, lr=1e-2), seed=0)


@every_model
def test_every_model_learns_any_width_and_targets_and_does_without_a_modality(name):
    data = clips(9)
    result = trained(name, data, epochs=20)
    assert result.predict(data).shape == (CLIPS, 9)
    assert result.history["loss"].iloc[-1] < 0.95 * result.history["loss"].iloc[0]
    for lacking in WIDTHS:
        data, reads = clips(1, lacking=[lacking]), ready(name).dims
        if list(reads) == [lacking]:
            with pytest.raises(ValueError, match=lacking):
                trained(name, data)
            continue
        assert np.isfinite(trained(name, data).predict(data)).all()
        few = clips(9, lacking=[lacking])  # clips to predict may lack more than those of training
        assert lacking not in reads or np.isfinite(result.predict(few)).all()


def test_for_features_takes_widths_and_settings():
    dual_stage = for_features("DualStage", clips(9, lacking=["audio"]), **SIZES["DualStage"])
    assert (dual_stage.dims, dual_stage.head.out_features) == ({"frames": 5, "text": 7}, 9)
    gru = for_features("LastStepGRU", clips(), modality="audio", hidden=4)
    assert (gru.gru.input_size, gru.gru.hidden_size) == (3, 4)


def test_what_does_not_fit_is_refused():
    for name, lacking in (("TAMEI", []), ("TAEMI", ["target"]), ("Yu2024", ["frames", "audio"])):
        with pytest.raises(ValueError, match=r"TAMEI|targets|frames or audio"):
            for_features(name, clips(lacking=lacking))
    with pytest.raises(ValueError, match="num_targets"):
        fit(for_features("MeanLinear", clips(2)), clips(1), recipe=Recipe(epochs=1))
