"""Ten lines without settings: on made sets of a public kind they find what a ridge finds."""

import dataclasses

import numpy as np
import pytest
import torch

from emilib.features import FeatureSet
from emilib.metrics import mean_pearson
from emilib.models import for_features
from emilib.study import Recipe, fit
from emilib.study.representation import ridge

TERMS = {  # of the label: what text, sound and frames tell, and two products
    "linear": (1.0, 0.6, 0.5, 0.0, 0.0),
    "interaction": (0.9, 0.4, 0.3, 0.6, 0.4),
    "sequence": (0.8, 0.8, 0.6, 0.0, 0.0),
    "last": (0.8, 0.6, 0.5, 0.5, 0.0),
}


def public_style(kind, seed=0, train=1300, test=1000, widths=(768, 74, 47), steps=(8, 8)):
    """Training and test clips as in public benchmarks: a text vector, sequences, one label.

    kind : what of a clip's sound and frames tells of the label. "linear", "interaction": the mean;
        "sequence": an eighth of the steps, which a column marks; "last": the last step
    widths : of text, sound and frames, with few strong directions and many weak ones, constant
        parts, and columns of very different sizes; steps : least and most of sound and frames

    The label is clipped to [-3, 3]; a third of its variance is noise.
    """
    rng = np.random.default_rng([seed, *kind.encode()])
    count = train + test
    lengths, arrays, told = rng.integers(steps[0], steps[1] + 1, count), {}, []
    for name, width in zip(("text", "audio", "frames"), widths, strict=True):
        strength = np.arange(1, width + 1) ** -0.5
        weight = strength * rng.normal(size=width)
        mix = strength[:, None] * np.linalg.qr(rng.normal(size=(width, width)))[0]
        constant, size = 3 * rng.normal(size=width), np.exp(rng.normal(size=width))
        clips, part = [], []
        for length in np.ones(count, int) if name == "text" else lengths:
            hidden = rng.normal(size=width) + rng.normal(size=(length, width))
            tells = np.ones(length, bool)
            if kind in ("sequence", "last"):
                long = max(1, length // 8) if kind == "sequence" else 1
                start = rng.integers(length - long + 1) if kind == "sequence" else length - 1
                tells = (np.arange(length) - start) // long == 0
            part.append((hidden[tells] @ weight).mean())
            features = hidden @ mix + constant
            if kind == "sequence":
                features[:, 0] = constant[0] + 2.0 * tells
            clips.append((features * size).astype(np.float32))
        arrays[name] = np.concatenate(clips) if name == "text" else clips
        told.append(np.array(part) / np.std(part))
    text, audio, frames = told
    label = np.stack([*told, text * audio, audio * frames], axis=1) @ TERMS[kind]
    label = 1.1 * label / label.std() + 0.8 * rng.normal(size=count)
    data = FeatureSet.from_arrays(range(count), **arrays, target=label.clip(-3, 3))
    return data.select(range(train)), data.select(range(train, count))


def time_means(data):
    """(N, D): the text vector, and the means over time of sound and frames."""
    means = [np.stack([a.mean(axis=0) for a in steps]) for steps in (data.audio, data.frames)]
    return np.concatenate([data.text, *means], axis=1).astype(float)


def rho_of_ridge(train, test):
    return mean_pearson(test.target, ridge(time_means(train), train.target, time_means(test)))


def rho_of_default(name, train, test, seed=0):
    torch.manual_seed(seed)
    return mean_pearson(test.target, fit(for_features(name, train), train, seed=seed).predict(test))


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
    train, test = public_style("linear", train=40, test=20, widths=(12, 5, 4), steps=(3, 6))
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
