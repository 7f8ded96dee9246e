"""Training without settings: the recipe of a number of clips, and features of any scale."""

import dataclasses

import numpy as np
import pytest
import torch

from emilib.features import FeatureSet
from emilib.models import for_features
from emilib.study import Recipe, fit


def clips(count, seed):
    """A text vector, sequences and one label in [-3, 3]; columns of very different sizes."""
    rng, arrays = np.random.default_rng(seed), {}
    label = rng.normal(size=count)
    for name, width in (("text", 12), ("audio", 5), ("frames", 4)):
        of_width = np.random.default_rng(width)
        constant, size = 3 * of_width.normal(size=width), np.exp(of_width.normal(size=width))
        steps = [1 if name == "text" else rng.integers(3, 7) for _ in range(count)]
        values = [y + rng.normal(size=(n, width)) for y, n in zip(label, steps, strict=True)]
        arrays[name] = [((v + constant) * size).astype(np.float32) for v in values]
    arrays["text"] = np.concatenate(arrays["text"])
    return FeatureSet.from_arrays(range(count), **arrays, target=label.clip(-3, 3))


def test_the_recipe_depends_on_the_number_of_clips_alone_and_forgets_its_beginning():
    for clips in (1, 8, 150, 1300, 2000, 10_000):
        recipe = Recipe.auto(range(clips))
        steps = -(-clips // recipe.batch_size)
        assert recipe.batch_size in (16, 32, 64, 128)
        assert recipe.epochs >= 8
        assert abs(recipe.epochs * steps - 300) <= max(steps, 8 * steps - 300)
        rates = recipe.lr * (1 + np.cos(np.pi * np.linspace(0, 1, recipe.epochs * steps))) / 2
        assert np.prod(1 - rates * recipe.weight_decay) == pytest.approx(np.exp(-3), rel=0.1)
    assert not any(getattr(Recipe, n)().standardise for n in ("dual_stage", "taemi", "hallmen"))


@pytest.mark.parametrize("name", ["TAEMI", "DualStage"])
def test_it_standardises_what_is_not_and_predicts_in_the_features_own_units(name):
    train, test = clips(40, 0), clips(20, 1)
    moments, models = train.moments(), []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(for_features(name, train))
    recipe = dataclasses.replace(Recipe.auto(train), epochs=2)
    raw = fit(models[0], train, test, recipe)
    by_hand = fit(models[1], *(data.standardised(moments) for data in (train, test)), recipe)
    assert by_hand.moments is None
    np.testing.assert_array_equal(raw.predict(test), by_hand.predict(test.standardised(moments)))
    np.testing.assert_array_equal(raw.history["rho"], by_hand.history["rho"])
