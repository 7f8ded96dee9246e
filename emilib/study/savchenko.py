"""Savchenko 2025 [28] as its authors train it: members alone, then a search for fusion weights."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from emilib import MODALITIES
from emilib.features.feature_set import FeatureSet
from emilib.models.earlier import Savchenko2025, StatisticsMLP
from emilib.training.loop import Result, TargetScale, check_data, count_parameters, fit, reporter
from emilib.training.recipes import Recipe

FOLDS = 5  # held-out folds of the training clips; not stated in the paper


@dataclass
class SavchenkoResult:
    """The same members with two kinds of fusion weights.

    honest : weights from held-out folds of the training clips
    leaked : weights from the validation clips, as in the original, whose score is too high by
        construction; None where no validation clips are given
    """

    honest: Result
    leaked: Result | None


def fit_savchenko(
    train: FeatureSet,
    valid: FeatureSet | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    checkpoint=None,
    device=None,
    progress: bool | Callable[[dict], None] | None = None,
    *,
    folds: int = FOLDS,
    hidden: int = 64,
) -> SavchenkoResult:
    """Train a `StatisticsMLP` of each modality, folds + 1 times, and search the fusion weights.

    valid : only for the weights that leak
    hidden : width of the members
    Other arguments and errors as in `emilib.training.loop.fit`. The history is the mean over all
    members and folds, which see no validation clips: ρ is NaN. Raises ValueError when the training
    clips lack a modality altogether or are fewer than folds.
    """
    check_data(train, valid)
    missing = [name for name in MODALITIES if name not in train.dims]
    if missing:
        raise ValueError(
            f"expected training clips with {', '.join(MODALITIES)}, got none with "
            f"{' or '.join(missing)}; train another model, or a StatisticsMLP of one modality"
        )
    if not 2 <= folds <= len(train):
        raise ValueError(f"expected folds from 2 to {len(train)}, the number of clips, got {folds}")
    start, histories, recipe = time.monotonic(), [], recipe or Recipe.savchenko()
    # Members end in a sigmoid: targets beyond [0, 1] are brought there.
    scale = TargetScale.of(train.target, "range")
    scaled = train if scale is None else train.with_target(scale.transform(train.target))
    dims, targets = {name: train.dims[name] for name in MODALITIES}, train.num_targets
    total = len(dims) * (folds + 1) * recipe.epochs

    order = np.random.default_rng(seed).permutation(len(train))
    held_out, members = np.full((len(dims), *train.target.shape), np.nan), []

    with reporter(progress, total) as report, torch.random.fork_rng([]):
        torch.manual_seed(seed)

        def fit_member(name: str, data: FeatureSet) -> Result:
            model = StatisticsMLP(dims[name], name, targets, hidden=hidden)
            folder = None if checkpoint is None else Path(checkpoint) / f"{len(histories):03d}"
            result = fit(model, data, None, recipe, seed, folder, device, report)
            histories.append(result.history)
            return result

        for column, name in enumerate(dims):
            for fold in np.array_split(order, folds):
                rest, fold = np.setdiff1d(order, fold), np.sort(fold)
                result = fit_member(name, scaled.select(rest))
                held_out[column, fold] = result.predict(scaled.select(fold))
            members.append(fit_member(name, scaled))

    history = pd.concat(histories).groupby("epoch").mean().reset_index()
    history["step"] = history["step"].astype(int)
    seconds = time.monotonic() - start

    def fused(predictions, target) -> Result:
        with torch.random.fork_rng([]):  # its initial weights are overwritten
            model = Savchenko2025(*dims.values(), targets, hidden=hidden)
        for member, result in zip(model.members.values(), members, strict=True):
            member.load_state_dict(result.model.state_dict())
        model.fusion.copy_(torch.from_numpy(search_weights(predictions, target)))
        size = count_parameters(model)
        return Result(model.eval(), history, len(history), seconds, size, scale)

    honest = fused(held_out, scaled.target)
    if valid is None:
        return SavchenkoResult(honest, None)
    return SavchenkoResult(honest, fused([m.predict(valid) for m in members], valid.target))


def search_weights(predictions, target, parts: int = 20) -> np.ndarray:
    """Weights (M, E) in steps of 1 / parts with the highest Pearson correlation for each emotion.

    predictions (M, N, E) of M members, target (N, E); a weight's column sums to 1. A search on the
    clips that are scored afterwards is a leak: pass predictions of held-out training clips.
    """
    predictions, target = np.asarray(predictions, float), np.asarray(target, float)
    steps = product(range(parts + 1), repeat=len(predictions))
    grid = np.array([counts for counts in steps if sum(counts) == parts]) / parts  # (K, M)
    p = predictions - predictions.mean(axis=1, keepdims=True)
    y = target - target.mean(axis=0)
    # Correlation of a weighted sum from the members' covariances: no sum is ever formed.
    covariance = grid @ np.einsum("mne,ne->me", p, y)
    among = np.einsum("mne,lne->mle", p, p)
    variance = np.einsum("km,mle,kl->ke", grid, among, grid)
    scale = np.sqrt(np.clip(variance, 0, None) * (y**2).sum(axis=0))
    rho = np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0)
    return grid[rho.argmax(axis=0)].T
