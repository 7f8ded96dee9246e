"""The one training loop: any fusion model, any features, the recipes of both papers.

`epochs` is a generator that trains and yields a record an epoch; `fit` runs it to its end. A run
that is given a checkpoint folder and killed goes on from its last finished epoch, to the same bits
on a CPU with the same number of threads. Started by ``accelerate launch`` or ``torchrun`` on
several processes, each takes its share of every batch, and the gradient is that of one process.
"""

import contextlib
import dataclasses
import hashlib
import io
import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from emilib import workers
from emilib.cache import atomic_write, canonical, in_single_process
from emilib.features.feature_set import MODALITIES, Batch, FeatureSet
from emilib.metrics import pearson
from emilib.models.earlier import FOLDS, Savchenko2025
from emilib.models.earlier import fit_savchenko as fit_members
from emilib.progress import epoch_bar
from emilib.training import distributed
from emilib.training.recipes import Recipe


@dataclasses.dataclass
class Result:
    """A trained model.

    model : in evaluation mode, with the averaged weights where the recipe has EMA
    history : one row an epoch: epoch, step, lr, loss, rho, "rho <target>" each, seconds;
        rho is NaN without validation data
    epoch : the epoch the weights are of, counted from 1
    seconds : training time, of all parts of a resumed run
    parameters : number of trained parameters
    scale : how the model's outputs become targets; None where they are targets already
    """

    model: nn.Module
    history: pd.DataFrame
    epoch: int
    seconds: float
    parameters: int
    scale: "TargetScale | None" = None

    def predict(self, data: FeatureSet, batch_size: int = 64) -> np.ndarray:
        """(N, E) predictions in the order of `data` and the range of the targets: not clipped."""
        found = predict(self.model, data, batch_size)
        return found if self.scale is None else self.scale.up(found)


@dataclasses.dataclass(frozen=True)
class TargetScale:
    """Targets as they were given, y, and as a model learns them, y': y = shift + factor y'.

    The squared error of a target that goes from 1 to 7 would drown one that goes from 0 to 1, and
    the papers' learning rates are for labels in [0, 1]. So `fit` standardises each target that
    leaves [0, 1], by the training clips; one that stays there is not touched. ρ is the same.

    shift, factor : (E,) float64, factor above 0
    """

    shift: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, target: np.ndarray, by: str = "sd") -> "TargetScale | None":
        """The scale of training targets (N, E); None where all lie within [0, 1].

        by : "sd", mean 0 and standard deviation 1; "range", smallest 0 and largest 1, for models
            that end in a sigmoid
        """
        low, high = target.min(axis=0), target.max(axis=0)
        wide = (low < 0) | (high > 1)
        if not wide.any():
            return None
        shift = target.mean(axis=0) if by == "sd" else low
        factor = target.std(axis=0) if by == "sd" else high - low
        factor = np.where(factor > 0, factor, 1.0)
        return cls(np.where(wide, shift, 0.0), np.where(wide, factor, 1.0))

    def down(self, target: np.ndarray) -> np.ndarray:
        """y' of y, (N, E)."""
        return (target - self.shift) / self.factor

    def up(self, prediction: np.ndarray) -> np.ndarray:
        """y of y', (..., E) float64, which keeps small changes of a large number."""
        return self.shift + self.factor * prediction.astype(np.float64)

    def plain(self) -> dict:
        """As lists, for JSON; `TargetScale.read` takes it."""
        return {"shift": self.shift.tolist(), "factor": self.factor.tolist()}

    @classmethod
    def read(cls, plain: dict | None) -> "TargetScale | None":
        return None if plain is None else cls(*(np.array(plain[k]) for k in ("shift", "factor")))


def fit(
    model: nn.Module,
    train: FeatureSet,
    valid: FeatureSet | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    checkpoint=None,
    device=None,
    progress: bool | Callable[[dict], None] | None = None,
) -> Result:
    """Train `model` in place and return it with its history.

    Targets that leave [0, 1] are standardised for the training, see `TargetScale`; the result
    predicts in their own range.

    model : initialised already; `seed` draws the order of the clips and the dropout
    valid : for the history, early stopping and the best epoch; None: all epochs, the last weights
    checkpoint : folder; a run killed in it goes on from its last finished epoch
    device : None is the first GPU where there is one, else the CPU
    progress : True draws a bar with loss and ρ; a function is called with each epoch's record

    A `Savchenko2025` is trained as its authors did, see `fit_savchenko`, with `Recipe.savchenko()`
    where none is given; its members are initialised anew from `seed`.
    Raises ValueError for data without targets or with NaN, a model of another number of targets,
    a checkpoint of another run; RuntimeError when the loss is no longer finite.
    """
    if isinstance(model, Savchenko2025):
        options = {"checkpoint": checkpoint, "device": device, "progress": progress}
        hidden = model.members["frames"].head[0].out_features
        found = fit_savchenko(train, valid, recipe, seed, hidden=hidden, **options).honest
        model.load_state_dict(found.model.state_dict())
        return dataclasses.replace(found, model=model.eval())
    trainer = _Trainer(model, train, valid, recipe or Recipe(), seed, checkpoint, device)
    with _told(progress, trainer.recipe.epochs) as tell:
        for record in trainer.run():
            tell(record)
    return trainer.result()


def _told(progress, epochs: int):
    """Context that gives what is called with each record."""
    if progress is True:
        return epoch_bar(epochs)
    return contextlib.nullcontext(progress or (lambda record: None))


@dataclasses.dataclass
class SavchenkoResult:
    """`honest`: weights from held-out folds of training clips; `leaked`: from validation clips."""

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
    **settings,
) -> SavchenkoResult:
    """Savchenko 2025: members trained alone, then weights found on held-out training clips.

    valid : only for the weights the original finds, which leak; None: there are no such
    settings : of `prior.fit_savchenko`: folds, step, hidden

    The history is the mean over all members and folds, which see no validation clips: ρ is NaN.
    Other arguments and errors as in `fit`; all three modalities are needed.
    """
    _check(train, valid)
    start, histories = time.monotonic(), []
    recipe = recipe or Recipe.savchenko()
    runs = len(MODALITIES) * (settings.get("folds", FOLDS) + 1)
    with _told(progress, runs * recipe.epochs) as tell, torch.random.fork_rng([]):
        torch.manual_seed(seed)

        def fit_one(model, data):
            kept = None if checkpoint is None else Path(checkpoint) / f"{len(histories):03d}"
            fitted = fit(model, data, None, recipe, seed, kept, device, tell)
            histories.append(fitted.history)
            return fitted

        # Its members end in a sigmoid: targets beyond [0, 1] are brought there.
        scale = TargetScale.of(train.target, "range")
        scaled = train if scale is None else train.with_target(scale.down(train.target))
        found = fit_members(scaled, fit_one, valid, seed=seed, **settings)
    mean = pd.concat(histories).groupby("epoch").mean().reset_index()
    mean["step"] = mean["step"].astype(int)
    seconds, size = time.monotonic() - start, count_parameters(found.model)
    honest, leaked = (
        None if model is None else Result(model.eval(), mean, len(mean), seconds, size, scale)
        for model in (found.model, found.leaked)
    )
    return SavchenkoResult(honest, leaked)


def epochs(
    model: nn.Module,
    train: FeatureSet,
    valid: FeatureSet | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    checkpoint=None,
    device=None,
) -> Iterator[dict]:
    """The loop of `fit` as a generator of records, one an epoch, keys as in `Result.history`.

    At each record `model` holds the weights of that epoch as trained, not averaged; when the
    generator ends it holds the result's.
    """
    trainer = _Trainer(model, train, valid, recipe or Recipe(), seed, checkpoint, device)
    yield from trainer.run()
    trainer.result()


def predict(model: nn.Module, data: FeatureSet, batch_size: int = 64) -> np.ndarray:
    """(N, E) float32 predictions of `model` in the order of `data`; not clipped to [0, 1]."""
    if len(data) == 0:
        raise ValueError("expected at least one clip to predict, came none")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    rows = []
    with torch.inference_mode(), no_denormals():
        for batch in data.batches(batch_size, device=device):
            rows.append(model(**batch.inputs()).intensity.float().cpu())
    model.train(was_training)
    return torch.cat(rows).numpy()


@contextlib.contextmanager
def no_denormals():
    """Numbers too small to be normal count as 0 in this thread.

    An LSTM's state fades over padding into such numbers, with which a CPU is many times slower.
    """
    before = (torch.tensor(1e-310, dtype=torch.float64) * 1).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextlib.contextmanager
def one_thread():
    """One torch thread: the number of threads changes the last bits of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def pearson_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - mean ρ over the columns of a batch; a constant column counts as ρ 0.

    prediction, target : (B, E)
    """
    p = prediction - prediction.mean(dim=0)
    y = target - target.mean(dim=0)
    # The root of zero has no finite slope; the small number keeps it away from there.
    scale = ((p * p).sum(dim=0) * (y * y).sum(dim=0) + 1e-12).sqrt()
    return 1 - ((p * y).sum(dim=0) / scale).mean()


class _Trainer:
    """State of one run. `run` yields records, `result` is what it came to."""

    def __init__(self, model, train, valid, recipe, seed, checkpoint, device):
        _check(train, valid)
        self.recipe, self.seed, self.train, self.valid = recipe, seed, train, valid
        self.scale = TargetScale.of(train.target)
        if self.scale is not None:  # ρ on `valid` is the same in either range
            self.train = train.with_target(self.scale.down(train.target))
        self.rank, self.world = _ranks()
        if self.world > 1 and recipe.loss != "mse":
            raise ValueError(
                f"loss {recipe.loss!r} is not a mean over clips, so {self.world} processes can't "
                "share a batch: train on one process, or with loss 'mse'"
            )
        if device is None:
            device = workers.device()
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.steps_per_epoch = math.ceil(
            math.ceil(len(train) / recipe.batch_size) / recipe.accumulate
        )
        self.optimizer = _optimizer(self.model, recipe, self.device)
        self.schedule = _schedule(self.optimizer, recipe, self.steps_per_epoch)
        self.average = _average(self.model) if recipe.ema_decay is not None else None
        self.parallel = _parallel(self.model, self.world)
        self.precision = recipe.mixed_precision if self.device.type == "cuda" else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.step, self.history = 0, []
        self.best: dict[str, Tensor] | None = None
        self.best_epoch, self.best_rho = 0, -math.inf
        self.checkpoint = None if checkpoint is None else Path(checkpoint) / "epoch.pt"
        self.identity = _identity(recipe, seed, train, valid, self.model)
        self._resume()

    def run(self) -> Iterator[dict]:
        start = len(self.history)
        yield from self.history  # epochs of an earlier, killed part of this run
        for epoch in range(start + 1, self.recipe.epochs + 1):
            if self._finished():
                return
            began = time.perf_counter()
            # Each epoch draws from a generator of its own, made from seed and epoch: an epoch is
            # the same whether it follows another or a restart, and whatever the caller draws.
            with _drawing_from(self.seed, epoch, self.rank, self.device), no_denormals():
                loss = self._train_epoch(epoch)
                rho = self._validate()
            record = self._record(epoch, loss, rho)
            record["seconds"] = time.perf_counter() - began
            self.history.append(record)
            self._remember(epoch, record["rho"])
            self._save()
            yield dict(record)

    def result(self) -> Result:
        if self.best is not None:
            self.model.load_state_dict(self.best)
        elif self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        self.model.eval()
        history = pd.DataFrame(self.history)
        epoch = len(history) if self.best is None else self.best_epoch
        seconds = float(history["seconds"].sum())
        parameters = count_parameters(self.model)
        return Result(self.model, history, epoch, seconds, parameters, self.scale)

    def _finished(self) -> bool:
        patience = self.recipe.patience
        if patience is None or self.valid is None or not self.history:
            return False
        return len(self.history) - self.best_epoch >= patience

    def _train_epoch(self, epoch: int) -> float:
        self.model.train()
        # The order of the clips is the same in every process.
        order = torch.Generator().manual_seed(_draw(self.seed, epoch))
        recipe, losses, clips = self.recipe, [], []
        stream = self.train.batches(
            recipe.batch_size, shuffle=True, generator=order, device=self.device
        )
        for group in _groups(stream, recipe.accumulate):
            total = sum(len(batch) for batch in group)
            for number, batch in enumerate(group):
                last = number == len(group) - 1
                share, weight = _share(batch, self.rank, self.world)
                quiet = self._no_sync() if not last else contextlib.nullcontext()
                with quiet:
                    loss = self._loss(self.parallel, share)
                    # Mean over all clips of the step, whatever batch or process they are in.
                    self.scaler.scale(loss * (weight * len(batch) / total)).backward()
                losses.append(loss.detach() * weight)
                clips.append(len(batch))
            self._update()
        return self._mean_loss(epoch, losses, clips)

    def _no_sync(self):
        return contextlib.nullcontext() if self.world == 1 else self.parallel.no_sync()

    def _loss(self, model, batch: Batch) -> Tensor:
        autocast = torch.autocast(
            self.device.type,
            dtype=torch.float16 if self.precision == "fp16" else torch.bfloat16,
            enabled=self.precision is not None,
        )
        with autocast:
            output = model(**batch.inputs())
        prediction, target = output.intensity.float(), batch.target
        if prediction.shape != target.shape:
            raise ValueError(
                f"expected a model with {target.shape[1]} outputs, one a target, came one with "
                f"{prediction.shape[1]}: build it with num_targets={target.shape[1]}"
            )
        measure = F.mse_loss if self.recipe.loss == "mse" else pearson_loss
        loss = measure(prediction, target)
        # Some earlier solutions have a term of their own, e.g. members trained as if alone.
        auxiliary = getattr(output, "auxiliary_loss", None)
        return loss if auxiliary is None else loss + auxiliary.float()

    def _update(self) -> None:
        recipe = self.recipe
        if recipe.clip is not None:
            self.scaler.unscale_(self.optimizer)
            parameters = self.model.parameters()
            if recipe.clip_by == "norm":
                nn.utils.clip_grad_norm_(parameters, recipe.clip)
            else:
                nn.utils.clip_grad_value_(parameters, recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.schedule.step()
        self.step += 1
        if self.average is not None:
            self.average.multi_avg_fn = get_ema_multi_avg_fn(ema_decay(recipe, self.step))
            self.average.update_parameters(self.model)

    def _mean_loss(self, epoch: int, losses: list[Tensor], clips: list[int]) -> float:
        """Mean over the epoch's clips. Looked at once an epoch: a GPU need not wait each step."""
        values = torch.stack(losses)
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        values = values.double().cpu().numpy()
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            first = self.step - self.steps_per_epoch + 1 + int(bad[0]) // self.recipe.accumulate
            raise RuntimeError(
                f"the loss became {values[bad[0]]} in epoch {epoch} at step {first}: lower the "
                f"learning rate (now {self.recipe.lr:g}) or clip the gradient"
            )
        return float(np.average(values, weights=clips))

    def _validate(self) -> np.ndarray | None:
        if self.valid is None:
            return None
        model = self.model if self.average is None else self.average.module
        prediction = predict(model, self.valid, max(64, self.recipe.batch_size))
        if not np.isfinite(prediction).all():
            raise RuntimeError(
                f"the model predicts NaN or infinity after step {self.step}: lower the learning "
                f"rate (now {self.recipe.lr:g}) or clip the gradient"
            )
        rho = pearson(self.valid.target, prediction)
        if self.world > 1:  # processes must agree on when to stop, to the last bit
            shared = [rho]
            dist.broadcast_object_list(shared, src=0)
            rho = shared[0]
        return rho

    def _record(self, epoch: int, loss: float, rho: np.ndarray | None) -> dict:
        names = self.train.targets
        each = np.full(len(names), np.nan) if rho is None else rho
        record = {
            "epoch": epoch,
            "step": self.step,
            "lr": float(self.lr),
            "loss": loss,
            "rho": float(each.mean()),
        }
        return record | {f"rho {n}": float(r) for n, r in zip(names, each, strict=True)}

    def _remember(self, epoch: int, rho: float) -> None:
        if self.valid is None or rho <= self.best_rho:
            return
        self.best_rho, self.best_epoch = rho, epoch
        if self.recipe.keep == "best":
            model = self.model if self.average is None else self.average.module
            self.best = deepcopy(model.state_dict())

    def _save(self) -> None:
        if self.checkpoint is None or self.rank != 0:
            return
        state = {
            "identity": self.identity,
            "step": self.step,
            "history": self.history,
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_rho": self.best_rho,
        }
        stream = io.BytesIO()
        torch.save(state, stream)
        payload = stream.getvalue()
        # A flipped bit is not noticed by torch.load, so the file begins with its own sum.
        atomic_write(self.checkpoint, hashlib.sha256(payload).digest() + payload)

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        content = self.checkpoint.read_bytes()
        digest, payload = content[:32], content[32:]
        if hashlib.sha256(payload).digest() != digest:
            return  # spoilt: the run starts anew and overwrites it
        state = torch.load(io.BytesIO(payload), map_location=self.device, weights_only=True)
        if state["identity"] != self.identity:
            raise ValueError(
                f"{self.checkpoint.parent}: the checkpoint is of another run (recipe, seed, data "
                "or model differ); give another folder or delete this one"
            )
        self.step, self.history = state["step"], state["history"]
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.best_rho = state["best_rho"]


def ema_decay(recipe: Recipe, step: int) -> float:
    """γ of Eq. 11 at a step counted from 1."""
    if not recipe.ema_warmup:
        return recipe.ema_decay
    return min(recipe.ema_decay, (1 + step) / (10 + step))


def _check(train: FeatureSet, valid: FeatureSet | None) -> None:
    for name, data in (("train", train), ("valid", valid)):
        if data is None:
            continue
        if len(data) == 0:
            raise ValueError(f"{name}: expected at least one clip, came none")
        if data.target is None:
            raise ValueError(
                f"{name}: expected clips with targets, came a set without; give target"
            )
        if not np.isfinite(data.target).all():
            raise ValueError(f"{name}: expected finite targets, came NaN; leave such clips out")
        for modality in ("frames", "audio"):
            sequences = getattr(data, modality, None)
            if isinstance(sequences, list):  # what lies in a store was looked at when it was made
                _check_finite(name, modality, data.ids, sequences)
    for modality in set(train.dims) & set(valid.dims if valid is not None else ()):
        if train.dims[modality] != valid.dims[modality]:
            raise ValueError(
                f"valid: expected {modality} of width {train.dims[modality]} as in train, came "
                f"{valid.dims[modality]}; take the features of one encoder for both"
            )
    if valid is not None and valid.num_targets != train.num_targets:
        raise ValueError(
            f"valid: expected {train.num_targets} targets as in train, came {valid.num_targets}"
        )


def _check_finite(name: str, modality: str, ids, arrays) -> None:
    for clip, array in zip(ids, arrays, strict=True):
        if array is not None and not np.isfinite(array).all():
            raise ValueError(
                f"{name}: expected finite {modality}, came NaN or infinity in clip {clip!r}; give "
                "None for a clip without this modality"
            )


def _identity(recipe, seed, train, valid, model) -> str:
    """What a checkpoint must agree with to be gone on with."""
    shapes = {name: list(p.shape) for name, p in model.state_dict().items()}
    data = [train.fingerprint(), None if valid is None else valid.fingerprint()]
    return repr(canonical({"recipe": recipe, "seed": seed, "data": data, "model": shapes}))


def _optimizer(model: nn.Module, recipe: Recipe, device: torch.device):
    parameters = [p for p in model.parameters() if p.requires_grad]
    fused = device.type in ("cpu", "cuda") and all(p.is_floating_point() for p in parameters)
    return torch.optim.AdamW(
        parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused
    )


def _schedule(optimizer, recipe: Recipe, steps_per_epoch: int):
    if recipe.schedule == "warmup_cosine":
        from transformers import get_cosine_schedule_with_warmup

        warmup = round(recipe.warmup_epochs * steps_per_epoch)
        return get_cosine_schedule_with_warmup(optimizer, warmup, recipe.epochs * steps_per_epoch)
    if recipe.schedule == "sgdr":
        return CosineAnnealingWarmRestarts(
            optimizer, T_0=recipe.cycle_epochs * steps_per_epoch, eta_min=recipe.min_lr
        )
    return LambdaLR(optimizer, lambda step: 1.0)


def _average(model: nn.Module) -> AveragedModel:
    """Eq. 11. The average begins as the parameters after the first step (not stated in the paper).

    Buffers are copied, not averaged: an average would truncate those that are integers.
    """
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=False)
    return average.requires_grad_(False)


def _draw(*numbers: int) -> int:
    """A 64-bit seed from whole numbers, far from those of neighbouring numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextlib.contextmanager
def _drawing_from(seed: int, epoch: int, rank: int, device: torch.device):
    """torch's global generators seeded for this epoch, and put back afterwards."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(_draw(seed, epoch, 1 + rank))
        yield


def _groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _ranks() -> tuple[int, int]:
    """This process's number and how many there are; joins the group a launcher started."""
    distributed.join()
    if not in_single_process() and dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _parallel(model: nn.Module, world: int) -> nn.Module:
    if world == 1:
        return model
    # A token of a missing modality has no gradient in a batch without such a clip.
    return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)


def _share(batch: Batch, rank: int, world: int) -> tuple[Batch, float]:
    """This process's clips of a batch, and the weight that makes the mean of all processes' mean
    losses the mean over the batch. Without a clip of its own it takes one, at weight 0.
    """
    if world == 1:
        return batch, 1.0
    rows = torch.arange(rank, len(batch), world, device=batch.index.device)
    weight = len(rows) * world / len(batch)
    if len(rows) == 0:
        rows = torch.zeros(1, dtype=torch.long, device=batch.index.device)
    values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    part = {k: None if v is None else v[rows] for k, v in values.items()}
    return type(batch)(**part), weight
