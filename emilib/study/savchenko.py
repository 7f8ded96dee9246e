"""Savchenko 2025 [28] as its authors train it: members alone, then a search for fusion weights."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from emilib import MODALITIES
from emilib.features.feature_set import FeatureSet
from emilib.metrics import pearson
from emilib.models import for_features
from emilib.training.loop import Result, TargetScale, check_data, fit
from emilib.training.recipes import Recipe


def fit_savchenko(
    train, valid=None, recipe=None, seed=0, checkpoint=None, device=None, *, folds=5, hidden=64
) -> tuple[Result, Result | None]:
    """Train a `StatisticsMLP` of each modality, folds + 1 times, and search the fusion weights.

    valid : only for the weights that leak; other arguments and errors as in `fit`
    folds : not stated in the paper; hidden : width of a member

    Returns the same members with two kinds of weights: honest, of held-out folds of the training
    clips; and leaked, of the validation clips, as in the original, whose score is too high by
    construction (None without such clips). The history, a mean over all, has no ρ.
    """
    check_data(train, valid)
    recipe = recipe or Recipe.savchenko()
    # Members end in a sigmoid: targets beyond [0, 1] are brought there.
    scale = TargetScale.of(train.target, "range")
    scaled = train if scale is None else train.with_target(scale.transform(train.target))
    order = np.random.default_rng(seed).permutation(len(train))
    known = [m for m in MODALITIES if m in train.dims]
    held_out, members, trained = np.full((len(known), *train.target.shape), np.nan), {}, []

    def fit_member(name: str, data: FeatureSet) -> Result:
        model = for_features("StatisticsMLP", data, modality=name, hidden=hidden)
        folder = None if checkpoint is None else Path(checkpoint) / f"{len(trained):03d}"
        trained.append(fit(model, data, None, recipe, seed, folder, device))
        return trained[-1]

    def fused(predictions, target) -> Result:
        model, targets = for_features("Savchenko2025", train, hidden=hidden), train.num_targets
        for name, result in members.items():
            model.members[name].load_state_dict(result.model.state_dict())
        weights = np.zeros((3, targets))
        weights[[MODALITIES.index(m) for m in known]] = search_weights(predictions, target)
        model.fusion.copy_(torch.from_numpy(weights))
        history = pd.concat([r.history for r in trained]).groupby("epoch").mean().reset_index()
        size, seconds = sum(p.numel() for p in model.parameters()), sum(r.seconds for r in trained)
        return Result(model.eval(), history, len(history), seconds, size, scale)

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        for column, name in enumerate(known):
            for fold in map(np.sort, np.array_split(order, folds)):
                result = fit_member(name, scaled.select(np.setdiff1d(order, fold)))
                held_out[column, fold] = result.predict(scaled.select(fold))
            members[name] = fit_member(name, scaled)
        honest = fused(held_out, scaled.target)
        if valid is None:
            return honest, None
        return honest, fused([m.predict(valid) for m in members.values()], valid.target)


def search_weights(predictions, target, parts: int = 20) -> np.ndarray:
    """Weights (M, E) in steps of 1 / parts with the highest Pearson correlation for each emotion.
    predictions (M, N, E) of M members, target (N, E); a weight's column sums to 1. A search on the
    clips that are scored afterwards is a leak: pass predictions of held-out training clips."""
    grid = np.array(list(product(range(parts + 1), repeat=len(predictions))))
    grid = grid[grid.sum(axis=1) == parts] / parts  # (K, M)
    rho = [pearson(target, np.tensordot(weights, predictions, 1)) for weights in grid]
    return grid[np.argmax(rho, axis=0)].T
