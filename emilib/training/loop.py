"""The training loop: any fusion model on any features, with the recipes of both papers.

`epochs` is the loop as a generator, one record an epoch; `fit` runs it to its end. With a
checkpoint folder, a killed run resumes after its last finished epoch, to the same bits on a CPU
with the same number of threads. On several processes (``accelerate launch``, ``torchrun``) each
takes its share of every batch, and the gradient is that of one process.
"""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from emilib import workers
from emilib.cache import canonical, rank, world_size
from emilib.features.feature_set import Batch, FeatureSet
from emilib.metrics import pearson
from emilib.progress import epoch_bar
from emilib.training import distributed
from emilib.training.optimisation import (
    LOSSES,
    derived_seed,
    ema_decay,
    make_optimizer,
    make_schedule,
)
from emilib.training.recipes import Recipe
from emilib.training.resume import load_state, save_state
from emilib.training.target_scale import TargetScale


@dataclasses.dataclass
class Result:
    """A trained model.

    model : in evaluation mode, with the averaged weights where the recipe has EMA
    history : one row an epoch: epoch, step, lr, loss, rho, "rho <target>" each, seconds;
        rho is NaN without validation data
    epoch : the epoch the weights are of, counted from 1
    seconds : training time, of all parts of a resumed run
    parameters : number of trained parameters
    scale : turns the model's outputs into targets; None where they are targets already
    """

    model: nn.Module
    history: pd.DataFrame
    epoch: int
    seconds: float
    parameters: int
    scale: TargetScale | None = None

    def predict(self, data: FeatureSet, batch_size: int = 64) -> np.ndarray:
        """(N, E) predictions in the order of `data` and the range of the targets: not clipped."""
        output = predict(self.model, data, batch_size)
        return output if self.scale is None else self.scale.inverse_transform(output)


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
    checkpoint : folder; a killed run resumes after its last finished epoch
    device : None is the first GPU where there is one, else the CPU
    progress : True draws a bar with loss and ρ; a function is called with each epoch's record

    Raises ValueError for data without clips or targets, features of other widths in `valid`, a
    model of another number of targets, a checkpoint of another run; RuntimeError when the loss or
    a prediction is not finite.
    """
    run = _Run(model, train, valid, recipe or Recipe(), seed, checkpoint, device)
    with reporter(progress, run.recipe.epochs) as report:
        for record in run.records():
            report(record)
    return run.result()


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
    run = _Run(model, train, valid, recipe or Recipe(), seed, checkpoint, device)
    yield from run.records()
    run.result()


def reporter(progress: bool | Callable[[dict], None] | None, total: int):
    """Context manager of the function that takes each record; arguments as `progress` of `fit`."""
    if progress is True:
        return epoch_bar(total)
    return contextlib.nullcontext(progress or (lambda record: None))


def predict(model: nn.Module, data: FeatureSet, batch_size: int = 64) -> np.ndarray:
    """(N, E) float32 predictions of `model` in the order of `data`; not clipped to [0, 1]."""
    if len(data) == 0:
        raise ValueError("expected at least one clip to predict, got none")
    device, was_training = next(model.parameters()).device, model.training
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


class _Run:
    """The state of one run between steps."""

    def __init__(self, model, train, valid, recipe, seed, checkpoint, device):
        check_data(train, valid)
        distributed.join()
        if world_size() > 1 and recipe.loss != "mse":
            raise ValueError(
                f"expected loss 'mse' on {world_size()} processes, got {recipe.loss!r}, which is "
                "not a mean over clips that they could share; train on one process"
            )
        self.recipe, self.seed, self.train, self.valid = recipe, seed, train, valid
        self.scale = TargetScale.of(train.target)
        if self.scale is not None:  # ρ on `valid` is the same in either range
            self.train = train.with_target(self.scale.transform(train.target))
        self.device = torch.device(workers.device() if device is None else device)
        self.model = model.to(self.device)
        batches = math.ceil(len(train) / recipe.batch_size)
        self.steps_per_epoch = math.ceil(batches / recipe.accumulate)
        self.optimizer = make_optimizer(model, recipe)
        self.schedule = make_schedule(self.optimizer, recipe, self.steps_per_epoch)
        self.average = None
        if recipe.ema_decay is not None:
            # Eq. 11 begins as the parameters after the first step (not stated in the paper).
            # Buffers are copied: an average would truncate those that are integers.
            self.average = AveragedModel(model, use_buffers=False).requires_grad_(False)
        self.parallel = self.model
        if world_size() > 1:  # a missing modality's token has no gradient in a batch without one
            self.parallel = DistributedDataParallel(model, find_unused_parameters=True)
        self.precision = recipe.mixed_precision if self.device.type == "cuda" else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.history: list[dict] = []
        self.best: dict[str, Tensor] | None = None
        self.checkpoint = None if checkpoint is None else Path(checkpoint) / "epoch.pt"
        self.identity = _identity(recipe, seed, train, valid, model)
        self._restore()
        self.step = len(self.history) * self.steps_per_epoch

    def records(self) -> Iterator[dict]:
        yield from map(dict, self.history)  # epochs before this run was killed
        for epoch in range(len(self.history) + 1, self.recipe.epochs + 1):
            if self._out_of_patience():
                return
            began = time.perf_counter()
            with self._seeded(epoch), no_denormals():
                loss = self._train(epoch)
                rho = self._validate()
            record = {"epoch": epoch, "step": self.step, "lr": float(self.lr), "loss": loss}
            record["rho"] = float(rho.mean())
            record |= {f"rho {n}": float(r) for n, r in zip(self.train.targets, rho, strict=True)}
            record["seconds"] = time.perf_counter() - began
            self.history.append(record)
            if (
                self.valid is not None
                and self.recipe.keep == "best"
                and self._best_epoch() == epoch
            ):
                self.best = deepcopy(self._evaluated().state_dict())
            self._save()
            yield dict(record)

    def result(self) -> Result:
        if self.best is not None:
            self.model.load_state_dict(self.best)
        elif self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        self.model.eval()
        history = pd.DataFrame(self.history)
        epoch = len(history) if self.best is None else self._best_epoch()
        seconds, parameters = float(history["seconds"].sum()), count_parameters(self.model)
        return Result(self.model, history, epoch, seconds, parameters, self.scale)

    def _train(self, epoch: int) -> float:
        """One epoch; returns its mean loss over clips."""
        recipe, losses, sizes = self.recipe, [], []
        self.model.train()
        order = torch.Generator().manual_seed(derived_seed(self.seed, epoch))  # on every rank
        batches = self.train.batches(
            recipe.batch_size, shuffle=True, generator=order, device=self.device
        )
        for group in iter(lambda: list(itertools.islice(batches, recipe.accumulate)), []):
            clips = sum(len(batch) for batch in group)
            for batch in group:
                part, weight = _share(batch)
                waits = world_size() > 1 and batch is not group[-1]
                with self.parallel.no_sync() if waits else contextlib.nullcontext():
                    loss = self._loss(part)
                    # Mean over all clips of the step, whatever batch or process they are in.
                    self.scaler.scale(loss * (weight * len(batch) / clips)).backward()
                losses.append(loss.detach() * weight)
                sizes.append(len(batch))
            self._step()
        return self._mean_loss(epoch, torch.stack(losses), sizes)

    def _loss(self, batch: Batch) -> Tensor:
        half = torch.float16 if self.precision == "fp16" else torch.bfloat16
        with torch.autocast(self.device.type, half, enabled=self.precision is not None):
            output = self.parallel(**batch.inputs())
        prediction, target = output.intensity.float(), batch.target
        if prediction.shape != target.shape:
            raise ValueError(
                f"expected a model with {target.shape[1]} outputs, one a target, got one with "
                f"{prediction.shape[1]}; build it with num_targets={target.shape[1]}"
            )
        loss = LOSSES[self.recipe.loss](prediction, target)
        # Some earlier solutions have a term of their own, e.g. members trained as if alone.
        auxiliary = getattr(output, "auxiliary_loss", None)
        return loss if auxiliary is None else loss + auxiliary.float()

    def _step(self) -> None:
        recipe = self.recipe
        if recipe.clip is not None:
            self.scaler.unscale_(self.optimizer)
            by_norm = recipe.clip_by == "norm"
            clip = nn.utils.clip_grad_norm_ if by_norm else nn.utils.clip_grad_value_
            clip(self.model.parameters(), recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.schedule.step()
        self.step += 1
        if self.average is not None:
            self.average.multi_avg_fn = get_ema_multi_avg_fn(ema_decay(recipe, self.step))
            self.average.update_parameters(self.model)

    def _mean_loss(self, epoch: int, losses: Tensor, sizes: list[int]) -> float:
        """Mean over the epoch's clips; read once an epoch: a GPU need not wait each step."""
        if world_size() > 1:
            dist.all_reduce(losses)
            losses /= world_size()
        values = losses.double().cpu().numpy()
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            first = self.step - self.steps_per_epoch + 1 + int(bad[0]) // self.recipe.accumulate
            raise RuntimeError(
                f"the loss became {values[bad[0]]} in epoch {epoch} at step {first}: lower the "
                f"learning rate (now {self.recipe.lr:g}) or clip the gradient"
            )
        return float(np.average(values, weights=sizes))

    def _validate(self) -> np.ndarray:
        """ρ of each target (E,); NaN without validation data."""
        if self.valid is None:
            return np.full(self.train.num_targets, np.nan)
        prediction = predict(self._evaluated(), self.valid, max(64, self.recipe.batch_size))
        if not np.isfinite(prediction).all():
            raise RuntimeError(
                f"the model predicts NaN or infinity after step {self.step}: lower the learning "
                f"rate (now {self.recipe.lr:g}) or clip the gradient"
            )
        shared = [pearson(self.valid.target, prediction)]
        if world_size() > 1:  # processes must agree on when to stop, to the last bit
            dist.broadcast_object_list(shared, src=0)
        return shared[0]

    def _evaluated(self) -> nn.Module:
        return self.model if self.average is None else self.average.module

    def _best_epoch(self) -> int:
        return 1 + int(np.argmax([record["rho"] for record in self.history]))

    def _out_of_patience(self) -> bool:
        if self.recipe.patience is None or self.valid is None or not self.history:
            return False
        return len(self.history) - self._best_epoch() >= self.recipe.patience

    @contextlib.contextmanager
    def _seeded(self, epoch: int):
        """torch's global generators seeded for this epoch (`derived_seed`), restored afterwards."""
        with torch.random.fork_rng([self.device.index or 0] if self.device.type == "cuda" else []):
            torch.manual_seed(derived_seed(self.seed, epoch, 1 + rank()))
            yield

    def _parts(self) -> dict:
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        return parts | {"scaler": self.scaler, "average": self.average or nn.Module()}

    def _save(self) -> None:
        if self.checkpoint is not None and rank() == 0:
            states = {name: part.state_dict() for name, part in self._parts().items()}
            state = {"history": self.history, "best": self.best, **states}
            save_state(self.checkpoint, self.identity, state)

    def _restore(self) -> None:
        state = None
        if self.checkpoint is not None:
            state = load_state(self.checkpoint, self.identity, self.device)
        if state is not None:
            self.history, self.best = state["history"], state["best"]
            for name, part in self._parts().items():
                part.load_state_dict(state[name])


def check_data(train: FeatureSet, valid: FeatureSet | None) -> None:
    for name, data in {"train": train, "valid": train if valid is None else valid}.items():
        if len(data) == 0:
            raise ValueError(f"{name}: expected at least one clip, got none")
        if data.target is None:
            raise ValueError(f"{name}: expected clips with targets, got none; pass target")
        if data.num_targets != train.num_targets:
            raise ValueError(
                f"{name}: expected {train.num_targets} targets as in train, got {data.num_targets}"
            )
        for modality in set(train.dims) & set(data.dims):
            if train.dims[modality] != data.dims[modality]:
                raise ValueError(
                    f"{name}: expected {modality} of width {train.dims[modality]} as in train, got "
                    f"{data.dims[modality]}; take the features of one encoder for both"
                )


def _identity(recipe, seed, train, valid, model) -> str:
    """Equal for runs that may continue each other's checkpoints."""
    shapes = {name: list(p.shape) for name, p in model.state_dict().items()}
    data = [train.fingerprint(), None if valid is None else valid.fingerprint()]
    return repr(canonical({"recipe": recipe, "seed": seed, "data": data, "model": shapes}))


def _share(batch: Batch) -> tuple[Batch, float]:
    """This process's clips of a batch, and the weight that makes the mean of all processes' mean
    losses the mean over the batch. Without a clip of its own it takes one, at weight 0.
    """
    if world_size() == 1:
        return batch, 1.0
    rows = torch.arange(rank(), len(batch), world_size(), device=batch.index.device)
    weight = len(rows) * world_size() / len(batch)
    rows = rows if len(rows) else torch.zeros_like(batch.index[:1])
    values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return type(batch)(**{k: None if v is None else v[rows] for k, v in values.items()}), weight
