"""The training loop: schedules and EMA against their formulas, resume to the same bits."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from emilib.features import FeatureSet
from emilib.metrics import mean_pearson, pearson
from emilib.models import Output
from emilib.training import loop
from emilib.training.loop import epochs, fit, predict
from emilib.training.optimisation import derived_seed, ema_decay, pearson_loss
from emilib.training.recipes import Recipe


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
    with loop.one_thread():
        yield


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_bits(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def recorded(monkeypatch):
    """What the optimiser got and did, a row a step: (rate, gradients, parameters after it)."""
    rows, step = [], torch.optim.AdamW.step

    def record(self, *args, **kwargs):
        (group,) = self.param_groups
        gradients = [p.grad.clone() for p in group["params"]]
        step(self, *args, **kwargs)
        rows.append((group["lr"], gradients, [p.detach().clone() for p in group["params"]]))

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    return rows


def test_it_learns_and_records_each_epoch():
    result = fit(small(), TRAIN, VALID, RECIPE, seed=1)
    history = result.history
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    assert history["step"].tolist() == [5, 10, 15, 20, 25, 30]
    assert history["loss"].iloc[-1] < 0.5 * history["loss"].iloc[0]
    assert result.parameters == 9 * 16 + 16 + 16 * 6 + 6
    assert result.seconds == pytest.approx(history["seconds"].sum())
    assert not result.model.training
    best = history.loc[history["epoch"] == result.epoch].iloc[0]
    assert best["rho"] == history["rho"].max()
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


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_is_a_plain_loop_to_the_bit(accumulate):
    """The same weights and losses as torch's parts in twenty lines."""
    recipe = Recipe(epochs=3, batch_size=16, lr=1e-2, clip=0.05, accumulate=accumulate)
    model, losses = small(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01, fused=True)
    for epoch in (1, 2, 3):
        order = torch.Generator().manual_seed(derived_seed(4, epoch))
        torch.manual_seed(derived_seed(4, epoch, 1))
        batches = list(TRAIN.batches(16, shuffle=True, generator=order))
        summed = 0.0
        for start in range(0, len(batches), accumulate):
            step = batches[start : start + accumulate]
            for batch in step:
                loss = F.mse_loss(model(**batch.inputs()).intensity, batch.target)
                (loss * (len(batch) / sum(map(len, step)))).backward()
                summed += loss.item() * len(batch)
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(summed / len(TRAIN))
    result = fit(small(), TRAIN, recipe=recipe, seed=4)
    assert same_bits(weights(result.model), weights(model))
    np.testing.assert_allclose(result.history["loss"], losses, rtol=1e-12)


def test_predictions_are_in_the_order_of_the_data():
    model = small().train()
    whole = predict(model, VALID, batch_size=7)
    assert model.training
    single = np.concatenate([predict(model, VALID.select([i])) for i in range(len(VALID))])
    np.testing.assert_allclose(whole, single, atol=1e-6)
    with pytest.raises(ValueError, match="at least one clip"):
        predict(model, VALID.select([]))


def test_the_seed_decides_the_bits_and_nothing_drawn_outside_does():
    disturbed, plain, other = small(), small(), small()
    torch.manual_seed(5)
    expected = torch.rand(7)
    torch.manual_seed(5)
    for record in epochs(disturbed, TRAIN, VALID, RECIPE, seed=3):
        if record["epoch"] == 1:
            assert torch.equal(torch.rand(7), expected), "the caller's draws stay what they were"
        torch.rand(7)
    fit(plain, TRAIN, VALID, RECIPE, seed=3)
    fit(other, TRAIN, VALID, RECIPE, seed=4)
    assert same_bits(weights(disturbed), weights(plain))
    assert not same_bits(weights(other), weights(plain))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_after", [1, 5])
@pytest.mark.parametrize("schedule", ["constant", "warmup_cosine", "sgdr"])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, killed_after, schedule):
    recipe = dataclasses.replace(RECIPE, schedule=schedule, cycle_epochs=2)

    def kill(record):
        if record["epoch"] == killed_after:
            raise Killed

    with pytest.raises(Killed):
        fit(small(), TRAIN, VALID, recipe, 2, checkpoint=tmp_path / "run", progress=kill)
    torch.manual_seed(1234)  # nothing of the first process is left
    records = []
    resumed = fit(
        small(7), TRAIN, VALID, recipe, 2, checkpoint=tmp_path / "run", progress=records.append
    )
    whole = fit(small(), TRAIN, VALID, recipe, 2)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert same_bits(weights(resumed.model), weights(whole.model))
    assert resumed.epoch == whole.epoch
    pd.testing.assert_frame_equal(
        resumed.history.drop(columns="seconds"), whole.history.drop(columns="seconds")
    )


def test_a_finished_run_is_not_trained_again_and_a_damaged_one_is(tmp_path, recorded):
    whole = fit(small(), TRAIN, VALID, RECIPE, checkpoint=tmp_path)
    steps = len(recorded)
    again = fit(small(3), TRAIN, VALID, RECIPE, checkpoint=tmp_path)
    assert same_bits(weights(again.model), weights(whole.model))
    assert len(recorded) == steps
    path = tmp_path / "epoch.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    fit(small(), TRAIN, VALID, RECIPE, checkpoint=tmp_path)
    assert len(recorded) == 2 * steps
    for change in ({"seed": 1}, {"valid": TRAIN}, {"recipe": dataclasses.replace(RECIPE, lr=1.0)}):
        with pytest.raises(ValueError, match="another run"):
            fit(
                small(),
                **{"train": TRAIN, "valid": VALID, "recipe": RECIPE} | change,
                checkpoint=tmp_path,
            )


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_is_equation_11_at_every_step(monkeypatch, recorded, warmup):
    recipe = dataclasses.replace(RECIPE, ema_decay=0.8, ema_warmup=warmup, epochs=3)
    averages, update = [], AveragedModel.update_parameters

    def traced(self, model):
        update(self, model)
        averages.append([p.clone() for p in self.module.parameters()])

    monkeypatch.setattr(AveragedModel, "update_parameters", traced)
    result = fit(small(), TRAIN, None, recipe)
    assert len(averages) == len(recorded) == 15
    expected = [p.double() for p in recorded[0][2]]  # begins as the first step's parameters
    for step, ((_, _, parameters), average) in enumerate(zip(recorded, averages, strict=True), 1):
        gamma = min(0.8, (1 + step) / (10 + step)) if warmup else 0.8
        assert ema_decay(recipe, step) == gamma
        if step > 1:
            pairs = zip(expected, parameters, strict=True)
            expected = [gamma * e + (1 - gamma) * p for e, p in pairs]
        for got, e in zip(average, expected, strict=True):
            torch.testing.assert_close(got.double(), e, atol=1e-6, rtol=0)
    for got, last in zip(result.model.parameters(), averages[-1], strict=True):
        assert torch.equal(got, last)
    assert result.model.count.item() == 5


def test_the_averaged_weights_are_validated_and_returned():
    recipe = dataclasses.replace(RECIPE, ema_decay=0.95, epochs=2, keep="last")
    stream = epochs(model := small(), TRAIN, VALID, recipe)
    records = [next(stream), next(stream)]
    trained = mean_pearson(VALID.target, predict(model, VALID))
    assert list(stream) == []
    averaged = mean_pearson(VALID.target, predict(model, VALID))
    assert records[-1]["rho"] == pytest.approx(averaged, abs=1e-9)
    assert abs(trained - averaged) > 1e-4


def cosine(low, high, done):
    return low + (high - low) * (1 + math.cos(math.pi * done)) / 2


RATES = {  # of 5 steps an epoch, 4 epochs
    "constant": lambda t: 1e-3,
    "warmup_cosine": lambda t: 1e-3 * t / 5 if t < 5 else cosine(0, 1e-3, (t - 5) / 15),
    "sgdr": lambda t: cosine(1e-5, 1e-3, (t % 10) / 10),  # Eq. 10
}


@pytest.mark.parametrize("schedule", RATES)
def test_the_rate_follows_its_formula_at_every_step(recorded, schedule):
    settings = {"schedule": schedule, "cycle_epochs": 2, "min_lr": 1e-5}
    result = fit(small(), TRAIN, None, Recipe(epochs=4, batch_size=16, lr=1e-3, **settings))
    expected = [RATES[schedule](t) for t in range(20)]
    np.testing.assert_allclose([rate for rate, _, _ in recorded], expected, rtol=1e-9)
    np.testing.assert_allclose(result.history["lr"], expected[4::5], rtol=1e-9)


def test_early_stopping_keeps_the_best_epoch(monkeypatch):
    script = [0.1, 0.5, 0.4, 0.3, 0.5, 0.9]
    rho = iter(script)
    monkeypatch.setattr(loop, "pearson", lambda target, prediction: np.full(6, next(rho)))
    recipe = Recipe(epochs=6, batch_size=16, lr=1e-2, patience=3)
    trained = []
    stream = epochs(model := small(), TRAIN, VALID, recipe)
    for _ in stream:
        trained.append(weights(model))
    assert len(trained) == 5  # the third epoch without a better one is the last: 0.9 is never seen
    assert same_bits(weights(model), trained[1])
    rho = iter(script)
    last = fit(small(), TRAIN, VALID, dataclasses.replace(recipe, keep="last", patience=None))
    assert last.epoch == 6
    assert not same_bits(weights(last.model), trained[1])


@pytest.mark.parametrize("clip_by", ["norm", "value"])
def test_gradients_are_clipped(recorded, clip_by):
    fit(small(), TRAIN, None, Recipe(epochs=1, batch_size=16, clip=1e-3, clip_by=clip_by))
    for _, gradients, _ in recorded:
        gradient = torch.cat([g.flatten() for g in gradients])
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
    recipe = Recipe(epochs=8, batch_size=32, lr=1e-2, loss="1-pearson")
    history = fit(small(), TRAIN, VALID, recipe).history
    assert history["rho"].iloc[-1] > history["rho"].iloc[0] + 0.1


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
    assert (b.accumulate, b.loss, b.mixed_precision) == (1, "mse", "fp16")
    assert (Recipe.savchenko().batch_size, Recipe.savchenko().loss) == (512, "1-pearson")


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": "linear"},
        {"epochs": 0},
        {"accumulate": 1.5},
        {"lr": 0.0},
        {"clip": -1.0},
        {"ema_decay": 1.0},
        {"patience": 0},
        {"loss": "l1"},
    ],
)
def test_recipes_are_checked(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Recipe(**change)


def test_unfit_data_are_refused():
    bare = FeatureSet.from_arrays(["a"], text=np.zeros((1, 4)))
    fewer = VALID.with_target(VALID.target[:, :5])
    wide = FeatureSet.from_arrays(["a"], text=np.zeros((1, 9)), target=np.zeros((1, 6)))
    for train, valid, message in (
        (bare, None, "train.*targets"),
        (TRAIN, bare, "valid.*targets"),
        (TRAIN.select([]), None, "train.*one clip"),
        (TRAIN, fewer, "valid.*6 targets"),
        (TRAIN, wide, "valid.*text of width 4"),
        (TRAIN.with_target(TRAIN.target[:, :5]), None, "num_targets=5"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(small(), train, valid)


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
    with loop.no_denormals():
        assert (tiny * 1).item() == 0
        with loop.no_denormals():
            pass
        assert (tiny * 1).item() == 0, "the inner one restores what it met"
    with pytest.raises(ZeroDivisionError), loop.no_denormals():
        1 / 0  # noqa: B018
    assert (tiny * 1).item() > 0
