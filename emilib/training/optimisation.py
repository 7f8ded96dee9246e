"""What a recipe's settings are in torch: seeds, losses, optimiser, schedules and averages."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from emilib.models.contrastive import sgdr
from emilib.training.recipes import Recipe


def derived_seed(*numbers: int) -> int:
    """A 63-bit seed from whole numbers, far from those of neighbouring numbers.

    Epochs are counted from 1. Epoch t of a run with seed s draws the order of its clips from
    ``derived_seed(s, t)`` and the dropout of rank r from ``derived_seed(s, t, 1 + r)``: an epoch is
    the same whether it follows another or a restart, and whatever the caller draws in between.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def pearson_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - mean ρ over the columns of a batch; a constant column counts as ρ 0.

    prediction, target : (B, E)
    """
    p = prediction - prediction.mean(dim=0)
    y = target - target.mean(dim=0)
    # The root of zero has no finite slope; the small number keeps it away from there.
    scale = ((p * p).sum(dim=0) * (y * y).sum(dim=0) + 1e-12).sqrt()
    return 1 - ((p * y).sum(dim=0) / scale).mean()


LOSSES = {"mse": F.mse_loss, "1-pearson": pearson_loss}


def ema_decay(recipe: Recipe, step: int) -> float:
    """γ of Eq. 11 of paper A at a step counted from 1."""
    if not recipe.ema_warmup:
        return recipe.ema_decay
    return min(recipe.ema_decay, (1 + step) / (10 + step))


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)


def make_schedule(optimizer, recipe: Recipe, steps_per_epoch: int):
    """The learning rate's schedule, to be stepped after every step of the optimiser."""
    if recipe.schedule == "warmup_cosine":
        from transformers import get_cosine_schedule_with_warmup

        warmup = round(recipe.warmup_epochs * steps_per_epoch)
        return get_cosine_schedule_with_warmup(optimizer, warmup, recipe.epochs * steps_per_epoch)
    if recipe.schedule == "sgdr":
        return sgdr(optimizer, steps_per_epoch, recipe.cycle_epochs, recipe.min_lr)
    return LambdaLR(optimizer, lambda step: 1.0)
