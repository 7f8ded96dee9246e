"""What Stage I and `fit` share: seeds, losses, schedules, checkpoints."""

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from emilib.cache import atomic_write, rank
from emilib.models.contrastive import sgdr
from emilib.training.recipes import Recipe


def derived_seed(*numbers: int) -> int:
    """A 63-bit seed from whole numbers, far from those of neighbouring numbers.

    Epoch t, from 1, of a run with seed s draws the order of its clips from ``derived_seed(s, t)``
    and dropout from ``derived_seed(s, t, 1)``: it is the same after another epoch or a restart.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def pearson_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - mean ρ over the columns of a batch (B, E); a constant column counts as ρ 0."""
    p = prediction - prediction.mean(dim=0)
    y = target - target.mean(dim=0)
    # The root of zero has no finite slope; the small number keeps it away from there.
    scale = ((p * p).sum(dim=0) * (y * y).sum(dim=0) + 1e-12).sqrt()
    return 1 - ((p * y).sum(dim=0) / scale).mean()


LOSSES = {"mse": F.mse_loss, "1-pearson": pearson_loss}


def make_schedule(optimizer, recipe: Recipe, steps_per_epoch: int):
    """The learning rate's schedule, to be stepped after every step of the optimiser."""
    if recipe.schedule == "warmup_cosine":
        from transformers import get_cosine_schedule_with_warmup

        warmup = round(recipe.warmup_epochs * steps_per_epoch)
        return get_cosine_schedule_with_warmup(optimizer, warmup, recipe.epochs * steps_per_epoch)
    if recipe.schedule == "sgdr":
        return sgdr(optimizer, steps_per_epoch, recipe.cycle_epochs, recipe.min_lr)
    return LambdaLR(optimizer, lambda step: 1.0)


def save_state(checkpoint, identity: str, parts: list, rest: tuple) -> None:
    """Write an unfinished run into the folder `checkpoint`, where there is one, on the first rank.

    parts : modules, optimisers and others with a `state_dict`; rest : plain data and tensors
    """
    if checkpoint is None or rank() != 0:
        return
    stream = io.BytesIO()
    torch.save((identity, [part.state_dict() for part in parts], rest), stream)
    payload = stream.getvalue()
    # torch.load does not notice a flipped bit, so the file begins with its digest.
    atomic_write(Path(checkpoint) / "epoch.pt", hashlib.sha256(payload).digest() + payload)


def load_state(checkpoint, identity: str, parts: list) -> tuple | None:
    """Bring `parts` to what `save_state` wrote, and return the rest; None where nothing is intact.

    Raises ValueError for the checkpoint of another run.
    """
    if checkpoint is None or not (path := Path(checkpoint) / "epoch.pt").exists():
        return None
    content = path.read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        return None
    saved, states, rest = torch.load(io.BytesIO(content[32:]), "cpu", weights_only=True)
    if saved != identity:
        raise ValueError(
            f"{checkpoint}: expected a checkpoint of this run, got one of another run (settings, "
            "seed, data or model differ); pass another folder or delete this one"
        )
    for part, state in zip(parts, states, strict=True):
        part.load_state_dict(state)
    return rest
