"""Savchenko's procedure: held-out folds, the search for weights, and the leak apart."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from emilib.features import FeatureSet
from emilib.models.earlier import StatisticsMLP
from emilib.study import Recipe, fit, fit_savchenko
from emilib.study.savchenko import search_weights
from emilib.training.loop import TargetScale

RECIPE = Recipe(epochs=3, lr=1e-2, loss="1-pearson")


def clips(count=24, factor=1.0):
    rng = np.random.default_rng(1)
    return FeatureSet.from_arrays(
        [str(i) for i in range(count)],
        frames=[rng.normal(size=(3 + i % 4, 6)).astype("float32") for i in range(count)],
        audio=[rng.normal(size=(2 + i % 5, 7)).astype("float32") for i in range(count)],
        text=rng.normal(size=(count, 5)).astype("float32"),
        target=factor * rng.random((count, 3)),
    )


def test_search_finds_the_best_of_the_grid():
    rng = np.random.default_rng(0)
    target = rng.random((60, 2))
    predictions = np.stack([target + rng.normal(0, s, (60, 2)) for s in (0.4, 0.6, 1.0)])
    weights = search_weights(predictions, target, parts=10)
    grid = [np.array(row) for row in np.ndindex(11, 11, 11) if sum(row) == 10]
    for e in range(2):
        scores = [pearsonr(row @ predictions[:, :, e], target[:, e]).statistic for row in grid]
        best = pearsonr(weights[:, e] @ predictions[:, :, e], target[:, e]).statistic
        assert best == pytest.approx(max(scores))
    useless = np.stack([target, np.zeros_like(target)])
    assert (search_weights(useless, target)[0] > 0).all()


@pytest.mark.parametrize("factor", [1.0, 7.0])
def test_it_is_the_members_fits_by_hand(factor):
    """Members' seeds, folds and weights, spelled out; targets beyond [0, 1] are brought there."""
    data = clips(factor=factor)
    honest, leaked = fit_savchenko(data, data, RECIPE, seed=3, folds=2, hidden=4)
    scale = TargetScale.of(data.target, "range")
    scaled = data if scale is None else data.with_target(scale.transform(data.target))
    order = np.random.default_rng(3).permutation(len(data))
    held_out, members = np.zeros((3, *data.target.shape)), []
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for m, (name, width) in enumerate(data.dims.items()):
            for fold in (order[:12], order[12:], []):
                rows = [i for i in range(len(data)) if i not in fold]
                model = StatisticsMLP(width, name, 3, hidden=4)
                trained = fit(model, scaled.select(rows), recipe=RECIPE, seed=3)
                if len(fold):
                    held_out[m, np.sort(fold)] = trained.predict(scaled.select(np.sort(fold)))
            members.append(trained.predict(data))
    for outcome, predictions, target in (
        (honest, held_out, scaled.target),
        (leaked, members, data.target),
    ):
        weights = search_weights(predictions, target)
        np.testing.assert_allclose(outcome.model.fusion, weights, atol=1e-6)
        expected = np.einsum("me,mne->ne", weights, members)
        if scale is not None:
            expected = scale.inverse_transform(expected)
        np.testing.assert_allclose(outcome.predict(data), expected, atol=1e-4)
    rho = [pearsonr(r.predict(data), data.target).statistic.mean() for r in (honest, leaked)]
    assert rho[1] >= rho[0]  # what makes the leak a leak


def test_the_leak_needs_validation_clips_and_a_killed_run_goes_on(tmp_path):
    data = clips()
    options = {"recipe": RECIPE, "folds": 2, "hidden": 4, "checkpoint": tmp_path}
    whole, _ = fit_savchenko(data, data, **options)
    assert len(list(tmp_path.glob("*/epoch.pt"))) == 9
    before = torch.get_rng_state()
    again, leaked = fit_savchenko(data, **options)
    assert torch.equal(torch.get_rng_state(), before), "the caller's draws stay what they were"
    assert leaked is None
    np.testing.assert_array_equal(*(r.predict(data) for r in (whole, again)))
