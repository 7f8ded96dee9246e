"""Training without settings: the recipe of a number of clips, and features of any scale."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from emilib.features import FeatureSet
from emilib.metrics import mean_pearson
from emilib.models import for_features
from emilib.study import Recipe, fit
from emilib.training.ridge import MeansRidge


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


TERMS = {  # of the label: what text, sound and frames tell, and the product of text and sound
    "linear": (1.0, 0.6, 0.5, 0.0),
    "interaction": (0.9, 0.4, 0.3, 0.9),
    "sequence": (0.8, 0.8, 0.6, 0.0),
}


def public_style(kind, train=800, test=800):
    """Training and test clips as in public benchmarks: a text vector, sequences, one label.

    Sound and frames tell of the label by their mean, or of "sequence" by the quarter of the steps
    that a column marks. The label is clipped to [-3, 3]; a third of its variance is noise.
    """
    rng, widths = np.random.default_rng([0, *kind.encode()]), {"text": 40, "audio": 12, "frames": 8}
    count, arrays, told = train + test, {}, []
    for name, width in widths.items():
        weight, mix = rng.normal(size=width), np.linalg.qr(rng.normal(size=(width, width)))[0]
        hidden = rng.normal(size=(count, 1, width))
        if name != "text":
            hidden = hidden + rng.normal(size=(count, 8, width))
        tells = slice(2, 4) if kind == "sequence" and name != "text" else slice(None)
        told.append((hidden[:, tells] @ weight).mean(axis=1))
        steps = hidden @ mix * np.exp(rng.normal(size=width)) + 3 * rng.normal(size=width)
        if kind == "sequence":
            steps[:, tells, 0] += 5
        arrays[name] = steps[:, 0] if name == "text" else list(steps)
    text, audio, frames = (part / part.std() for part in told)
    label = np.stack([text, audio, frames, text * audio], axis=1) @ TERMS[kind]
    label = 1.1 * label / label.std() + 0.8 * rng.normal(size=count)
    data = FeatureSet.from_arrays(range(count), **arrays, target=label.clip(-3, 3))
    return data.select(range(train)), data.select(range(train, count))


@pytest.mark.parametrize(
    ("name", "kind"),
    [*(("TAEMI", k) for k in TERMS), pytest.param("DualStage", "linear", marks=pytest.mark.slow)],
)
def test_without_settings_it_is_as_good_as_a_ridge_on_the_means(name, kind):
    train, test = public_style(kind)
    x, test_x = (
        np.hstack([d.text, np.mean(d.audio, 1), np.mean(d.frames, 1)]) for d in (train, test)
    )
    baseline = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 25))).fit(x, train.target)
    line = baseline.predict(test_x).reshape(-1, 1)
    torch.manual_seed(0)
    result = fit(for_features(name, train), train)
    by_itself = result.ridge.predict(test.standardised(result.moments))
    np.testing.assert_allclose(by_itself, line, atol=1e-5)
    alone = dataclasses.replace(result, ridge=None).predict(test)
    both = result.ridge.share * line + (1 - result.ridge.share) * alone
    np.testing.assert_allclose(result.predict(test), both, atol=1e-5)
    rho = [mean_pearson(test.target, p) for p in (both, line, alone)]
    assert rho[0] > rho[1] - 0.01
    assert kind == "interaction" or rho[0] > rho[2] + 0.01


def test_the_share_of_the_ridge_has_the_least_squared_error():
    rng, data = np.random.default_rng(0), clips(60, 0)
    ridge, valid = MeansRidge(data.select(range(30))), data.select(range(30, 60))
    network = valid.target + rng.normal(size=valid.target.shape)
    shares = np.linspace(0, 1, 1001)[:, None, None]
    errors = shares * ridge.predict(valid) + (1 - shares) * network - valid.target
    best = shares[np.square(errors).sum(axis=(1, 2)).argmin()].item()
    assert ridge.share_of(network, valid) == pytest.approx(best, abs=6e-4)
    assert ridge.share_of(valid.target, valid) == 0
    assert ridge.share_of(ridge.predict(valid), valid) == 0.5  # nothing to choose
