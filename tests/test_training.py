"""The training loop: schedules and EMA against their formulas, resume to the same bits."""

import dataclasses
import math
import multiprocessing
import os
import socket

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from emilib.features import FeatureSet
from emilib.metrics import mean_pearson, pearson
from emilib.models import TAEMI, DualStage, Output
from emilib.training import loop as training
from emilib.training.loop import Recipe, ema_decay, epochs, fit, pearson_loss, predict


class Small(nn.Module):
    """Mean over frames and the text through a two-layer network with dropout."""

    def __init__(self, dim=5, text=4, targets=6, dropout=0.2):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim + text, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, targets)
        )
        self.register_buffer("count", torch.tensor(5))  # an integer buffer must survive averaging

    def forward(self, frames, audio, text, frames_valid=None, audio_valid=None, present=None):
        real = frames_valid.unsqueeze(-1)
        mean = (frames * real).sum(1) / real.sum(1).clamp_min(1)
        return Output(intensity=self.net(torch.cat([mean, text], dim=-1)))


def small(seed=0, **settings):
    torch.manual_seed(seed)
    return Small(**settings)


def clips(count, seed=0):
    generator = np.random.default_rng(seed)
    weights = np.random.default_rng(99).normal(size=(9, 6))
    frames = [generator.normal(size=(generator.integers(1, 8), 5)) for _ in range(count)]
    text = generator.normal(size=(count, 4))
    inputs = np.concatenate([np.stack([f.mean(0) for f in frames]), text], axis=1)
    target = np.clip(0.3 + 0.2 * inputs @ weights + generator.normal(0, 0.1, (count, 6)), 0, 1)
    return FeatureSet.from_arrays(
        [f"{i:05d}" for i in range(count)],
        frames=[f.astype(np.float32) for f in frames],
        text=text.astype(np.float32),
        target=target,
    )


TRAIN, VALID = clips(70, 1), clips(40, 2)
RECIPE = Recipe(epochs=6, batch_size=16, lr=1e-2, ema_decay=0.9, schedule="warmup_cosine")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_bits(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def without_time(history):
    return history.drop(columns="seconds")


def test_it_learns_and_tells_what_happened():
    result = fit(small(), TRAIN, VALID, RECIPE, seed=1)
    history = result.history
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    assert history["step"].tolist() == [5, 10, 15, 20, 25, 30]
    assert history["loss"].iloc[-1] < 0.5 * history["loss"].iloc[0]
    assert result.parameters == 9 * 16 + 16 + 16 * 6 + 6
    assert result.seconds == pytest.approx(history["seconds"].sum())
    assert not result.model.training
    best = history.loc[history["epoch"] == result.epoch].iloc[0]
    prediction = result.predict(VALID)
    assert prediction.shape == (40, 6)
    assert mean_pearson(VALID.target, prediction) == pytest.approx(best["rho"], abs=1e-6)
    assert best["rho Joy"] == pytest.approx(pearson(VALID.target, prediction)[5], abs=1e-6)


def test_overfits_one_batch():
    few = TRAIN.select(range(8))
    recipe = Recipe(epochs=400, batch_size=8, lr=1e-2, weight_decay=0.0)
    result = fit(small(dropout=0.0), few, recipe=recipe)
    assert result.history["loss"].iloc[-1] < 1e-3
    assert result.epoch == 400
    assert result.history["rho"].isna().all()


def test_predictions_are_in_the_order_of_the_data():
    model = small()
    whole = predict(model, VALID, batch_size=7)
    single = np.concatenate([predict(model, VALID.select([i])) for i in range(len(VALID))])
    np.testing.assert_allclose(whole, single, atol=1e-6)


def test_the_seed_decides_the_bits():
    first, second = (fit(small(), TRAIN, VALID, RECIPE, seed=3) for _ in range(2))
    assert same_bits(weights(first.model), weights(second.model))
    other = fit(small(), TRAIN, VALID, RECIPE, seed=4)
    assert not same_bits(weights(first.model), weights(other.model))


def test_training_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = small(0)
    torch.manual_seed(5)
    stream = epochs(model, TRAIN, VALID, RECIPE)
    next(stream)
    assert torch.equal(torch.rand(3), expected)


def test_drawing_between_epochs_changes_nothing():
    disturbed, plain = small(), small()
    for _ in epochs(disturbed, TRAIN, VALID, RECIPE):
        torch.rand(7)
    fit(plain, TRAIN, VALID, RECIPE)
    assert same_bits(weights(disturbed), weights(plain))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_after", [1, 3, 5])
@pytest.mark.parametrize("schedule", ["constant", "warmup_cosine", "sgdr"])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, killed_after, schedule):
    recipe = dataclasses.replace(RECIPE, schedule=schedule, cycle_epochs=2)

    def kill(record):
        if record["epoch"] == killed_after:
            raise Killed

    with pytest.raises(Killed):
        fit(small(), TRAIN, VALID, recipe, 2, checkpoint=tmp_path / "run", progress=kill)
    torch.manual_seed(1234)  # nothing of the first process is left
    resumed = fit(small(7), TRAIN, VALID, recipe, 2, checkpoint=tmp_path / "run")
    whole = fit(small(), TRAIN, VALID, recipe, 2)
    assert same_bits(weights(resumed.model), weights(whole.model))
    assert resumed.epoch == whole.epoch
    pd.testing.assert_frame_equal(without_time(resumed.history), without_time(whole.history))


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    whole = fit(small(), TRAIN, VALID, RECIPE, checkpoint=tmp_path)
    monkeypatch.setattr(training._Trainer, "_train_epoch", None)
    again = fit(small(3), TRAIN, VALID, RECIPE, checkpoint=tmp_path)
    assert same_bits(weights(again.model), weights(whole.model))


def test_a_spoilt_checkpoint_is_not_used(tmp_path):
    whole = fit(small(), TRAIN, VALID, RECIPE, checkpoint=tmp_path)
    path = tmp_path / "epoch.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    again = fit(small(), TRAIN, VALID, RECIPE, checkpoint=tmp_path)
    assert same_bits(weights(again.model), weights(whole.model))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    fit(small(), TRAIN, VALID, RECIPE, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="another run"):
        fit(small(), TRAIN, VALID, RECIPE, seed=1, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="another run"):
        fit(small(), TRAIN, TRAIN, RECIPE, checkpoint=tmp_path)


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_is_equation_11_at_every_step(monkeypatch, warmup):
    recipe = dataclasses.replace(RECIPE, ema_decay=0.8, ema_warmup=warmup, epochs=3)
    trace = []
    update = training._Trainer._update

    def recorded(self):
        update(self)
        trace.append(
            [
                [p.detach().numpy().copy() for p in model.parameters()]
                for model in (self.model, self.average.module)
            ]
        )

    monkeypatch.setattr(training._Trainer, "_update", recorded)
    result = fit(small(), TRAIN, None, recipe)
    average = [p.astype(np.float64) for p in trace[0][0]]  # begins as the first step's parameters
    for step, (parameters, got) in enumerate(trace, start=1):
        gamma = min(0.8, (1 + step) / (10 + step)) if warmup else 0.8
        assert ema_decay(recipe, step) == gamma
        if step > 1:
            average = [
                gamma * a + (1 - gamma) * p for a, p in zip(average, parameters, strict=True)
            ]
        for a, g in zip(average, got, strict=True):
            np.testing.assert_allclose(g, a, atol=1e-6)
    for a, p in zip(average, result.model.parameters(), strict=True):
        np.testing.assert_allclose(p.detach().numpy(), a, atol=1e-6)
    assert result.model.count.item() == 5
    assert len(trace) == 15


def rates(recipe, monkeypatch):
    """Learning rate of every step."""
    seen = []
    update = training._Trainer._update

    def recorded(self):
        update(self)
        seen.append(self.lr)

    monkeypatch.setattr(training._Trainer, "_update", recorded)
    fit(small(), TRAIN, None, recipe)
    return seen


def test_warmup_and_cosine_at_every_step(monkeypatch):
    recipe = Recipe(epochs=4, batch_size=16, lr=1e-3, schedule="warmup_cosine", warmup_epochs=1)
    warm, total = 5, 20
    expected = [
        1e-3 * t / warm
        if t < warm
        else 1e-3 * 0.5 * (1 + math.cos(math.pi * (t - warm) / (total - warm)))
        for t in range(total)
    ]
    np.testing.assert_allclose(rates(recipe, monkeypatch), expected, rtol=1e-9)


def test_sgdr_is_equation_10_at_every_step(monkeypatch):
    recipe = Recipe(epochs=5, batch_size=16, lr=1e-3, schedule="sgdr", cycle_epochs=2, min_lr=1e-5)
    cycle = 2 * 5
    expected = [
        1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * (t % cycle) / cycle))
        for t in range(25)
    ]
    np.testing.assert_allclose(rates(recipe, monkeypatch), expected, rtol=1e-9)


def test_early_stopping_keeps_the_best_epoch(monkeypatch):
    rho = [0.1, 0.5, 0.4, 0.3, 0.45, 0.9]
    seen = []

    def scripted(self):
        seen.append(weights(self.model))
        return np.full(6, rho[len(seen) - 1])

    monkeypatch.setattr(training._Trainer, "_validate", scripted)
    recipe = Recipe(epochs=6, batch_size=16, lr=1e-2, patience=3)
    result = fit(small(), TRAIN, VALID, recipe)
    assert len(seen) == 5  # the third epoch without a better one is the last: 0.9 is never seen
    assert result.epoch == 2
    assert same_bits(weights(result.model), seen[1])
    seen.clear()
    last = fit(small(), TRAIN, VALID, dataclasses.replace(recipe, keep="last", patience=None))
    assert last.epoch == 6
    assert same_bits(weights(last.model), seen[-1])


def test_accumulated_batches_make_the_step_of_one_large_batch():
    recipe = Recipe(epochs=3, batch_size=70, lr=1e-2)
    large = fit(small(dropout=0.0), TRAIN, None, recipe)
    parts = dataclasses.replace(recipe, batch_size=16, accumulate=5)
    small_batches = fit(small(dropout=0.0), TRAIN, None, parts)
    assert small_batches.history["step"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(small_batches.history["loss"], large.history["loss"], rtol=1e-5)
    for a, b in zip(large.model.parameters(), small_batches.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("clip_by", ["norm", "value"])
def test_gradients_are_clipped(monkeypatch, clip_by):
    seen = []
    step = torch.optim.AdamW.step

    def recorded(self, *args, **kwargs):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        seen.append(torch.cat([g.flatten() for g in gradients]))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    fit(small(), TRAIN, None, Recipe(epochs=1, batch_size=16, clip=1e-3, clip_by=clip_by))
    for gradient in seen:
        if clip_by == "norm":
            assert gradient.norm().item() == pytest.approx(1e-3, rel=1e-2)
        else:
            assert gradient.abs().max().item() <= 1e-3 + 1e-9
            assert gradient.norm().item() > 1e-3


def test_pearson_loss_is_one_minus_mean_rho():
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(32, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.rand(32, 6, generator=generator, dtype=torch.float64)
    loss = pearson_loss(prediction, target)
    expected = 1 - mean_pearson(target.numpy(), prediction.detach().numpy())
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    assert torch.autograd.gradcheck(lambda p: pearson_loss(p, target), prediction)
    constant = torch.zeros(32, 6, requires_grad=True)
    pearson_loss(constant, target.float()).backward()
    assert torch.isfinite(constant.grad).all()


def test_the_correlation_loss_trains():
    recipe = Recipe(epochs=8, batch_size=32, lr=1e-2, loss="1-pearson")
    result = fit(small(), TRAIN, VALID, recipe)
    assert result.history["rho"].iloc[-1] > result.history["rho"].iloc[0] + 0.1


def test_a_models_own_loss_term_is_added():
    @dataclasses.dataclass
    class WithTerm(Output):
        auxiliary_loss: torch.Tensor | None = None

    class Penalised(Small):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            return WithTerm(output.intensity, auxiliary_loss=self.net[0].weight.square().sum())

    recipe = Recipe(epochs=30, batch_size=16, lr=1e-2)
    torch.manual_seed(0)
    result = fit(Penalised(), TRAIN, None, recipe)
    plain = fit(small(), TRAIN, None, recipe)
    assert result.model.net[0].weight.norm() < 0.5 * plain.model.net[0].weight.norm()


def test_presets_are_the_papers():
    a, b = Recipe.dual_stage(), Recipe.taemi()
    assert (a.loss, a.ema_decay) == ("mse", 0.999)
    assert (b.lr, b.weight_decay, b.batch_size, b.epochs) == (1e-4, 0.01, 32, 50)
    assert (b.schedule, b.warmup_epochs, b.patience, b.clip) == ("warmup_cosine", 1.0, 5, 100.0)
    assert (b.accumulate, b.loss) == (1, "mse")
    assert b.mixed_precision is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "linear"}, "schedule: expected one of"),
        ({"epochs": 0}, "epochs: expected a whole number"),
        ({"lr": 0.0}, "lr: expected a number above 0"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"patience": 0}, "patience"),
        ({"loss": "l1"}, "loss: expected one of"),
    ],
)
def test_recipes_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**change)


def test_data_without_targets_or_with_nan_is_refused():
    bare = FeatureSet.from_arrays(["a"], text=np.zeros((1, 4)))
    with pytest.raises(ValueError, match="train: expected clips with targets"):
        fit(small(), bare)
    with pytest.raises(ValueError, match="valid: expected clips with targets"):
        fit(small(), TRAIN, bare)
    with pytest.raises(ValueError, match="at least one clip"):
        fit(small(), TRAIN.select(np.zeros(70, bool)))
    broken = clips(10)
    broken.target[3, 2] = np.nan
    with pytest.raises(ValueError, match="finite targets"):
        fit(small(), broken)
    broken = clips(10)
    broken.frames[4][0, 0] = np.nan
    with pytest.raises(ValueError, match=r"finite frames.*'00004'"):
        fit(small(), broken)


def test_a_loss_that_is_not_finite_names_epoch_and_step():
    class Exploding(Small):
        calls = 0

        def forward(self, *args, **kwargs):
            Exploding.calls += 1
            output = super().forward(*args, **kwargs)
            return Output(output.intensity * (float("nan") if Exploding.calls == 8 else 1.0))

    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="nan in epoch 2 at step 8"):
        fit(Exploding(), TRAIN, None, RECIPE)


def dual_stage(dropout):
    torch.manual_seed(0)
    sizes = {"width": 8, "heads": 2, "layers": 1, "segments": 3, "tcn_width": 6}
    return DualStage(5, 7, 4, modalities=("frames", "text"), dropout=dropout, **sizes)


def taemi(dropout):
    torch.manual_seed(0)
    return TAEMI(
        5, 7, 4, width=8, heads=2, dropout=dropout, attention_dropout=0.0, modality_dropout=0.0
    )


TWO_AS_ONE = {"small": small, "DualStage": dual_stage, "TAEMI": taemi}


def _one_of_two(rank, port, folder, name):
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2"
    )
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    recipe = Recipe(epochs=2, batch_size=23, lr=1e-2, accumulate=2, ema_decay=0.5)
    result = fit(TWO_AS_ONE[name](dropout=0.0), TRAIN, VALID, recipe, device="cpu")
    torch.save(weights(result.model), f"{folder}/{rank}.pt")
    result.history.to_json(f"{folder}/{rank}.json")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", TWO_AS_ONE)
def test_two_processes_train_as_one(name, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_one_of_two, args=(rank, port, str(tmp_path), name))
        for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    recipe = Recipe(epochs=2, batch_size=23, lr=1e-2, accumulate=2, ema_decay=0.5)
    alone = fit(TWO_AS_ONE[name](dropout=0.0), TRAIN, VALID, recipe, device="cpu")
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    assert same_bits(first, second)
    # Not each weight: AdamW makes full steps of the rounding errors of a gradient that is zero.
    together = TWO_AS_ONE[name](dropout=0.0)
    together.load_state_dict(first)
    np.testing.assert_allclose(predict(together, VALID), alone.predict(VALID), atol=1e-4)
    history = pd.read_json(tmp_path / "0.json")
    np.testing.assert_allclose(history["loss"], alone.history["loss"], rtol=1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_on_a_gpu(precision, tmp_path):
    recipe = dataclasses.replace(RECIPE, mixed_precision=precision, clip=100.0)
    result = fit(small(), TRAIN, VALID, recipe, checkpoint=tmp_path)
    plain = fit(small(), TRAIN, VALID, dataclasses.replace(recipe, mixed_precision=None))
    assert abs(result.history["rho"].max() - plain.history["rho"].max()) < 0.05


def test_denormal_numbers_count_as_zero_only_inside():
    tiny = torch.tensor(1e-310, dtype=torch.float64)
    assert (tiny * 1).item() > 0
    with training.no_denormals():
        assert (tiny * 1).item() == 0
        with training.no_denormals():
            pass
        assert (tiny * 1).item() == 0, "the inner one restores what it found"
    assert (tiny * 1).item() > 0
    with pytest.raises(ZeroDivisionError), training.no_denormals():
        1 / 0  # noqa: B018
    assert (tiny * 1).item() > 0
