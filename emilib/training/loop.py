"""The training loop: any fusion model on any features, with the recipes of both papers."""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import math
import time
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from emilib import workers
from emilib.cache import atomic_write, key, rank
from emilib.features.feature_set import FeatureSet
from emilib.metrics import pearson
from emilib.models.contrastive import sgdr
from emilib.progress import epoch_bar
from emilib.training.recipes import Recipe
from emilib.training.ridge import MeansRidge

CLIPPING = {"norm": nn.utils.clip_grad_norm_, "value": nn.utils.clip_grad_value_}
OPTIMIZERS = {"adamw": torch.optim.AdamW, "sgd": partial(torch.optim.SGD, momentum=0.9)}
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class TargetScale:
    """Standardised targets y' of targets y: y = shift + factor y', of those that leave [0, 1].

    The papers' learning rates are for labels in [0, 1]. ρ is the same.
    """

    shift: np.ndarray  # (E,) float64
    factor: np.ndarray

    @classmethod
    def of(cls, target: np.ndarray, by: str = "sd") -> "TargetScale | None":
        """The scale of training targets (N, E): to mean 0 and "sd" 1, or the "range" [0, 1] for
        models that end in a sigmoid; None where all targets lie within [0, 1]."""
        low, high = target.min(axis=0), target.max(axis=0)
        wide = (low < 0) | (high > 1)
        if not wide.any():
            return None
        shift = target.mean(axis=0) if by == "sd" else low
        factor = target.std(axis=0) if by == "sd" else high - low
        return cls(np.where(wide, shift, 0.0), np.where(wide & (factor > 0), factor, 1.0))

    def transform(self, target: np.ndarray) -> np.ndarray:
        """y' of y, (N, E)."""
        return (target - self.shift) / self.factor

    def inverse_transform(self, prediction: np.ndarray) -> np.ndarray:
        """y of y', (..., E) float64, which keeps small changes of a large number."""
        return self.shift + self.factor * prediction.astype(np.float64)

    def to_dict(self) -> dict:
        """As lists, for JSON."""
        return {"shift": self.shift.tolist(), "factor": self.factor.tolist()}

    @classmethod
    def from_dict(cls, lists: dict | None) -> "TargetScale | None":
        """The scale that `to_dict` wrote; None of None."""
        return None if lists is None else cls(*(np.array(lists[k]) for k in ("shift", "factor")))


@dataclasses.dataclass
class Result:
    """A trained model, and what `predict` needs beside it; `model` alone, saved, lacks the ridge.

    history : a row an epoch: epoch, step, lr, loss, rho and "rho <target>" (NaN where
        validation clips were not looked at), seconds; ρ is the model's alone
    """

    model: nn.Module  # in evaluation mode, with the averaged weights where the recipe has EMA
    history: pd.DataFrame
    epoch: int  # that the weights are of, counted from 1
    seconds: float  # of all parts of a resumed run, and of a training beforehand
    parameters: int  # that are trained
    scale: TargetScale | None = None  # turns outputs into targets; None where they are targets
    moments: dict | None = None  # the training clips', where the recipe standardised features
    ridge: MeansRidge | None = None  # which has a share in predictions, where the recipe says so

    def predict(self, data: FeatureSet, batch_size: int = 64) -> np.ndarray:
        """(N, E) predictions in the order of `data` and the range of the targets: not clipped."""
        data = standardised(data, self.moments)
        output = predict(self.model, data, batch_size)
        output = output if self.scale is None else self.scale.inverse_transform(output)
        if self.ridge is None:
            return output
        share = self.ridge.share
        return (1 - share) * output + share * self.ridge.predict(data)


def fit(
    model, train, valid=None, recipe=None, seed=0, checkpoint=None, device=None, progress=None
) -> Result:
    """Train `model` in place and return it with its history.

    model : an initialised nn.Module; `seed` draws the order of the clips and the dropout
    train, valid : FeatureSet; `valid` is for the history, early stopping and the best epoch, None
        trains all epochs and keeps the last weights; where the recipe has a ridge, its share then
        comes from a training beforehand on four fifths of the clips
    recipe : Recipe; None takes `Recipe.auto` of the training clips
    checkpoint : folder; a killed run resumes after its last finished epoch
    device : None is the first GPU where there is one, else the CPU
    progress : True draws a bar with loss and ρ; a function is called with each epoch's record,
        while `model` holds the weights of that epoch as trained, not averaged

    Targets that leave [0, 1] are standardised for the training, see `TargetScale` (brought to
    [0, 1] for a model whose `sigmoid` is True). Raises
    ValueError for data without clips or targets, `valid` of other widths or targets, a model of
    another number of targets, a checkpoint of another run; RuntimeError for a loss of NaN.
    """
    check_data(train, valid)
    bounded = any(getattr(module, "sigmoid", False) for module in model.modules())
    scale = TargetScale.of(train.target, "range" if bounded else "sd")
    recipe, share, beforehand = recipe or Recipe.auto(train), 0.5, 0.0
    if recipe.ridge and valid is None and len(train) >= 20:
        order = np.random.default_rng(seed).permutation(len(train))
        held, rest = (train.select(rows) for rows in np.split(order, [len(order) // 5]))
        folder, bar = checkpoint and Path(checkpoint) / "held_out", progress is True or None
        apart = fit(deepcopy(model), rest, held, recipe, seed, folder, device, bar)
        share, beforehand = apart.ridge.share, apart.seconds
    moments = train.moments() if recipe.standardise and train.scaling is None else None
    train, valid = standardised(train, moments), standardised(valid, moments)
    scaled = train if scale is None else train.with_target(scale.transform(train.target))
    device = torch.device(workers.device() if device is None else device)
    gpus = [device.index or 0] if device.type == "cuda" else []
    trained = [p for p in model.to(device).parameters() if p.requires_grad]
    groups = parameter_groups(model, recipe)
    optimizer = OPTIMIZERS[recipe.optimizer](groups, recipe.lr, fused=True)
    steps = math.ceil(math.ceil(len(train) / recipe.batch_size) / recipe.accumulate)
    schedule = make_schedule(optimizer, recipe, steps)
    half = HALF.get(recipe.mixed_precision) if gpus else None
    scaler = torch.amp.GradScaler(device.type, enabled=half == torch.float16)
    parts, average, judged = [model, optimizer, schedule, scaler], None, model
    if recipe.ema_decay is not None:
        # Eq. 11 begins as the parameters after the first step (not stated in the paper). Buffers
        # are copied: an average would truncate those that are integers.
        average = AveragedModel(model, use_buffers=False).requires_grad_(False)
        parts, judged = [*parts, average], average.module

    data = [part.fingerprint() for part in (train, valid) if part is not None]
    identity = key(recipe=recipe, seed=seed, data=data)
    history, best, best_epoch = load_state(checkpoint, identity, parts) or ([], None, 0)

    plain = contextlib.nullcontext(progress or (lambda record: None))
    with epoch_bar(recipe.epochs) if progress is True else plain as report:
        for record in history:  # epochs before this run was killed
            report(dict(record))
        for epoch in range(len(history) + 1, recipe.epochs + 1):
            if valid is not None and epoch > best_epoch + max(
                recipe.patience or epoch, recipe.judge_every
            ):
                break
            start, rho = time.perf_counter(), np.full(train.num_targets, np.nan)
            order = torch.Generator().manual_seed(derived_seed(seed, epoch))
            options = {"shuffle": True, "generator": order, "device": device}
            with torch.random.fork_rng(gpus), no_denormals():
                torch.manual_seed(derived_seed(seed, epoch, 1))  # dropout
                batches = scaled.batches(recipe.batch_size, **options)
                loss, lr = _train(
                    model, batches, recipe, half, average, optimizer, schedule, scaler
                )
                if not math.isfinite(loss):
                    hint = "lower the learning rate or clip the gradient"
                    raise RuntimeError(f"the loss became {loss} in epoch {epoch}: {hint}")
                due = epoch % recipe.judge_every == 0 or epoch == recipe.epochs
                if valid is not None and due:  # ρ is the same in either range of the targets
                    prediction = predict(judged, valid, max(64, recipe.batch_size))
                    rho = pearson(valid.target, prediction)
            record = {"epoch": epoch, "step": schedule.last_epoch, "lr": lr, "loss": loss}
            record["rho"] = float(rho.mean())
            record |= {f"rho {n}": float(r) for n, r in zip(train.targets, rho, strict=True)}
            before = (r["rho"] for r in history if not math.isnan(r["rho"]))
            if record["rho"] > max(before, default=-math.inf):
                best_epoch = epoch
                best = deepcopy(judged.state_dict()) if recipe.keep == "best" else None
            history.append(record | {"seconds": time.perf_counter() - start})
            save_state(checkpoint, identity, parts, (history, best, best_epoch))
            report(dict(history[-1]))

    model.load_state_dict(judged.state_dict() if best is None else best)
    table = pd.DataFrame(history)
    epoch = len(table) if best is None else best_epoch
    size, seconds = sum(p.numel() for p in trained), beforehand + float(table["seconds"].sum())
    result = Result(model.eval(), table, epoch, seconds, size, scale, moments)
    if recipe.ridge:
        ridge = MeansRidge(train, share)
        if valid is not None:
            ridge.share = ridge.share_of(result.predict(valid), valid)
        result.ridge = ridge
    return result


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """The trained parameters for AdamW, with their weight decay.

    With `decay` "matrices" only the weights of linear layers and of attention's projections decay:
    not convolutions, LSTM, GRU, gates, norms, biases and tokens.
    """
    rates = {p: recipe.weight_decay for p in model.parameters() if p.requires_grad}
    if recipe.decay == "matrices":
        matrices = set()
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and "gate" not in name.split("."):
                matrices.add(module.weight)
            elif isinstance(module, nn.MultiheadAttention):
                matrices.add(module.in_proj_weight)
        rates = {p: rate if p in matrices else 0.0 for p, rate in rates.items()}
    groups = {rate: [p for p in rates if rates[p] == rate] for rate in rates.values()}
    return [{"params": params, "weight_decay": rate} for rate, params in groups.items()]


def _train(model, batches, recipe: Recipe, half, average, optimizer, schedule, scaler):
    """One epoch; returns the mean loss over its clips, and the rate of its last step."""
    losses, sizes = [], []
    model.train()
    while group := list(itertools.islice(batches, recipe.accumulate)):
        clips = sum(map(len, group))
        for batch in group:
            with torch.autocast(batch.target.device.type, half, enabled=half is not None):
                output = model(**batch.inputs())
            prediction, target = output.intensity.float(), batch.target
            if prediction.shape != target.shape:
                count = f"num_targets={target.shape[1]}"
                raise ValueError(f"expected a model of {count}, got {prediction.shape[1]} outputs")
            loss = LOSSES[recipe.loss](prediction, target)
            # Some earlier solutions have a term of their own, e.g. members trained as if alone.
            if getattr(output, "auxiliary_loss", None) is not None:
                loss = loss + output.auxiliary_loss.float()
            scaler.scale(loss * (len(batch) / clips)).backward()  # the mean over the step's clips
            losses.append(loss.detach())
            sizes.append(len(batch))
        if recipe.clip is not None:
            scaler.unscale_(optimizer)
            CLIPPING[recipe.clip_by](model.parameters(), recipe.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        lr = optimizer.param_groups[0]["lr"]
        schedule.step()
        if average is not None:
            gamma, step = recipe.ema_decay, schedule.last_epoch
            if recipe.ema_warmup:
                gamma = min(gamma, (1 + step) / (10 + step))
            average.multi_avg_fn = get_ema_multi_avg_fn(gamma)
            average.update_parameters(model)  # Eq. 11
    losses = torch.stack(losses).double().cpu().numpy()  # read once: a GPU need not wait each step
    return float(np.average(losses, weights=sizes)), float(lr)


def predict(model: nn.Module, data: FeatureSet, batch_size: int = 64) -> np.ndarray:
    """(N, E) float32 predictions of `model` in the order of `data`; not clipped to [0, 1]."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    with torch.inference_mode(), no_denormals():
        batches = data.batches(batch_size, device=device)
        rows = [model(**batch.inputs()).intensity.float().cpu() for batch in batches]
    model.train(was_training)
    return torch.cat(rows).numpy()


@contextlib.contextmanager
def no_denormals():
    """Numbers too small to be normal, with which a CPU is many times slower, count as 0."""
    before = (torch.tensor(1e-310, dtype=torch.float64) * 1).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def standardised(data: FeatureSet | None, moments: dict | None) -> FeatureSet | None:
    """`data` standardised by these moments, if there are any and it is not standardised yet."""
    as_it_is = data is None or moments is None or data.scaling is not None
    return data if as_it_is else data.standardised(moments)


def check_data(train: FeatureSet, valid: FeatureSet | None) -> None:
    """Raise ValueError for what no model can be trained on, or judged on."""
    for name, data in (("train", train), ("valid", train if valid is None else valid)):
        if len(data) == 0 or data.target is None:
            raise ValueError(f"{name}: expected clips with targets, got {data}; pass target")
        same = data.dims | train.dims == train.dims | data.dims  # either may lack a modality
        if data.num_targets != train.num_targets or not same:
            raise ValueError(f"{name}: expected targets and widths of train, {train}, got {data}")


def derived_seed(*numbers: int) -> int:
    """A 63-bit seed, e.g. of (seed, epoch) for the order of clips, (seed, epoch, 1) for dropout."""
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
    """Write an unfinished run into the folder `checkpoint`, where there is one, on rank 0."""
    if checkpoint is None or rank() != 0:
        return
    stream = io.BytesIO()
    torch.save((identity, [part.state_dict() for part in parts], rest), stream)
    payload = stream.getvalue()
    # torch.load does not notice a flipped bit, so the file begins with its digest.
    atomic_write(Path(checkpoint) / "epoch.pt", hashlib.sha256(payload).digest() + payload)


def load_state(checkpoint, identity: str, parts: list) -> tuple | None:
    """Bring `parts` to what `save_state` wrote and return the rest; None for nothing intact.

    What is damaged is removed. Raises ValueError for the checkpoint of another run.
    """
    if checkpoint is None or not (path := Path(checkpoint) / "epoch.pt").exists():
        return None
    content = path.read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        path.unlink(missing_ok=True)
        return None
    saved, states, rest = torch.load(io.BytesIO(content[32:]), "cpu", weights_only=True)
    if saved != identity:
        got = "got one of another run; pass another folder or delete this one"
        raise ValueError(f"{checkpoint}: expected a checkpoint of this run, {got}")
    for part, state in zip(parts, states, strict=True):
        part.load_state_dict(state)
    return rest
