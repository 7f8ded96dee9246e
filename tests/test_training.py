import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from test_models import SIZES
from torch import nn

from emilib import models
from emilib.features import FeatureSet
from emilib.metrics import mean_pearson, pearson
from emilib.models import Output
from emilib.training import loop
from emilib.training.loop import derived_seed, fit, pearson_loss, predict
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
        penalty = 0.1 * self.net[0].weight.square().sum() if self.training else None
        return Output(self.net(torch.cat([mean, text], dim=-1)), auxiliary_loss=penalty)


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


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_bits(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def cosine(low, high, done):
    return low + (high - low) * (1 + math.cos(math.pi * done)) / 2


CASES = {  # settings, and the rate at step t from 0, of 5 steps an epoch and 4 epochs
    "accumulated": ({"accumulate": 2, "clip": 0.05}, lambda t: 1e-2),
    "matrices": ({"decay": "matrices", "weight_decay": 5.0}, lambda t: 1e-2),
    "sgd": ({"optimizer": "sgd", "weight_decay": 0.0}, lambda t: 1e-2),
    "by value": ({"clip": 0.01, "clip_by": "value", "ema_decay": 0.8}, lambda t: 1e-2),
    "warm-up": (
        {"schedule": "warmup_cosine", "ema_decay": 0.9, "ema_warmup": True},
        lambda t: 1e-2 * t / 5 if t < 5 else cosine(0, 1e-2, (t - 5) / 15),
    ),
    "Eq. 10": (
        {"schedule": "sgdr", "cycle_epochs": 2, "min_lr": 1e-4},
        lambda t: cosine(1e-4, 1e-2, (t % 10) / 10),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_a_plain_loop(case):
    """Rates, gradients, clipping, steps and averages of Eq. 11, each by its formula."""
    settings, rate = CASES[case]
    recipe = Recipe(epochs=4, batch_size=16, lr=1e-2, **settings)
    model, losses, rates, average = small(), [], [], None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.0)
    moments = [0.0 for _ in model.parameters()]
    decays = [p for p in model.parameters() if recipe.decay == "all" or p.ndim == 2]
    for epoch in (1, 2, 3, 4):
        order = torch.Generator().manual_seed(derived_seed(4, epoch))
        torch.manual_seed(derived_seed(4, epoch, 1))
        batches, summed = list(TRAIN.batches(16, shuffle=True, generator=order)), 0.0
        for start in range(0, len(batches), recipe.accumulate):
            group = batches[start : start + recipe.accumulate]
            for batch in group:
                out = model(**batch.inputs())
                loss = F.mse_loss(out.intensity, batch.target) + out.auxiliary_loss
                (loss * (len(batch) / sum(map(len, group)))).backward()
                summed += loss.item() * len(batch)
            gradients = [p.grad for p in model.parameters()]
            norm = torch.cat([g.flatten() for g in gradients]).norm()
            for gradient in gradients if recipe.clip else ():
                if recipe.clip_by == "value":
                    gradient.clamp_(-recipe.clip, recipe.clip)
                else:
                    gradient.mul_(min(1.0, recipe.clip / (norm + 1e-6)))
            optimizer.param_groups[0]["lr"] = rate(len(rates))
            rates.append(rate(len(rates)))
            with torch.no_grad():
                for parameter in decays:
                    parameter.mul_(1 - rates[-1] * recipe.weight_decay)
            if recipe.optimizer == "adamw":
                optimizer.step()
            else:
                moments = [0.9 * m + g for m, g in zip(moments, gradients, strict=True)]
                for parameter, moment in zip(model.parameters(), moments, strict=True):
                    parameter.data -= rates[-1] * moment
            optimizer.zero_grad()
            now, step = [p.detach().clone() for p in model.parameters()], len(rates)
            warm = (1 + step) / (10 + step) if recipe.ema_warmup else 1.0
            gamma = min(recipe.ema_decay or 0.0, warm)
            pairs = zip(average or now, now, strict=True)
            average = [gamma * a + (1 - gamma) * p for a, p in pairs]
        losses.append(summed / len(TRAIN))
    result = fit(small(), TRAIN, recipe=recipe, seed=4)
    got = [parameter.detach() for parameter in result.model.parameters()]
    torch.testing.assert_close(got, average, atol=2e-6, rtol=0)
    np.testing.assert_allclose(result.history["loss"], losses, rtol=1e-5)
    per_epoch = len(rates) // 4
    np.testing.assert_allclose(result.history["lr"], rates[per_epoch - 1 :: per_epoch], rtol=1e-9)
    assert result.history["step"].tolist() == [per_epoch * epoch for epoch in (1, 2, 3, 4)]
    assert result.history["rho"].isna().all()
    assert (result.epoch, result.model.count.item()) == (4, 5)


# What stays as it is, though it has two dimensions or more, by a part of its name.
STAYS = ("lstm", "gru", "gate", "conv", "project.frames", "project.audio", "project.text")


@pytest.mark.parametrize("name", ["DualStage", "TAEMI", "MulT", "MISA", "LastStepGRU"])
def test_only_matrices_of_linear_layers_and_attention_decay(name):
    model = getattr(models, name)(**SIZES[name])
    spared = STAYS if name in ("MulT", "DualStage") else STAYS[:3]  # of MulT they are convolutions
    wanted = {
        n for n, p in model.named_parameters() if p.ndim == 2 and not any(s in n for s in spared)
    }
    decayed, rest = loop.parameter_groups(model, Recipe(weight_decay=0.3, decay="matrices"))
    if decayed["weight_decay"] == 0:
        decayed, rest = rest, decayed
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == wanted != set()
    assert len(decayed["params"]) + len(rest["params"]) == len(names)
    (everything,) = loop.parameter_groups(model, Recipe(weight_decay=0.3))
    assert len(everything["params"]) == len(names)


def test_it_learns_records_each_epoch_and_the_seed_alone_decides_the_bits():
    result = fit(small(), TRAIN, VALID, RECIPE, seed=1)
    history = result.history
    assert history["loss"].iloc[-1] < 0.5 * history["loss"].iloc[0]
    assert result.parameters == 9 * 16 + 16 + 16 * 6 + 6
    assert result.seconds == pytest.approx(history["seconds"].sum())
    assert not result.model.training
    best = history.loc[history["epoch"] == result.epoch].iloc[0]
    assert best["rho"] == history["rho"].max()
    prediction = result.predict(VALID)
    alone = [predict(result.model, VALID.select([i])) for i in range(len(VALID))]
    np.testing.assert_allclose(prediction, np.concatenate(alone), atol=1e-6)
    assert mean_pearson(VALID.target, prediction) == pytest.approx(best["rho"], abs=1e-6)
    assert best["rho Joy"] == pytest.approx(pearson(VALID.target, prediction)[5], abs=1e-6)
    model, drawn = small(), []
    torch.manual_seed(5)
    expected = torch.rand(12)
    torch.manual_seed(5)
    fit(model, TRAIN, VALID, RECIPE, 3, progress=lambda _: drawn.append(torch.rand(2)))
    assert torch.equal(torch.cat(drawn), expected), "the caller's draws stay what they were"
    plain, other = (fit(small(), TRAIN, VALID, RECIPE, seed).model for seed in (3, 4))
    assert same_bits(weights(model), weights(plain))
    assert not same_bits(weights(other), weights(plain))


def test_early_stopping_keeps_the_best_epoch(monkeypatch):
    script = [0.1, 0.5, 0.4, 0.3, 0.5, 0.9]
    rho = iter(script)
    monkeypatch.setattr(loop, "pearson", lambda target, prediction: np.full(6, next(rho)))
    recipe = Recipe(epochs=6, batch_size=16, lr=1e-2, patience=3)
    model, trained = small(), []
    result = fit(model, TRAIN, VALID, recipe, progress=lambda _: trained.append(weights(model)))
    assert len(trained) == 5  # the third epoch without a better one is the last: 0.9 is never seen
    assert same_bits(weights(model), trained[1])
    assert result.epoch == 2
    rho = iter(script)
    last = fit(small(), TRAIN, VALID, dataclasses.replace(recipe, keep="last", patience=None))
    assert last.epoch == 6
    assert not same_bits(weights(last.model), trained[1])
    rho, recipe = iter([0.5, 0.9]), dataclasses.replace(recipe, epochs=5, judge_every=4)
    rarely = fit(small(), TRAIN, VALID, recipe)  # judged after its fourth epoch and its last
    assert rarely.history["rho"].isna().tolist() == [True, True, True, False, False]
    assert rarely.epoch == 5
    assert same_bits(weights(rarely.model), trained[4])


@pytest.mark.parametrize(
    ("schedule", "after"), [("constant", 1), ("warmup_cosine", 3), ("sgdr", 5)]
)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, schedule, after):
    recipe = dataclasses.replace(RECIPE, schedule=schedule, cycle_epochs=2, decay="matrices")

    def kill(record):
        if record["epoch"] == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(small(), TRAIN, VALID, recipe, 2, checkpoint=tmp_path, progress=kill)
    torch.manual_seed(1234)  # nothing of the first process is left
    records = []
    resumed = fit(small(7), TRAIN, VALID, recipe, 2, tmp_path, progress=records.append)
    whole = fit(small(), TRAIN, VALID, recipe, 2)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert same_bits(weights(resumed.model), weights(whole.model))
    assert resumed.epoch == whole.epoch
    histories = (result.history.drop(columns="seconds") for result in (resumed, whole))
    pd.testing.assert_frame_equal(*histories)


def test_a_finished_run_is_not_trained_again_and_a_damaged_one_is(tmp_path):
    def run(**change):
        settings = {"train": TRAIN, "valid": VALID, "recipe": RECIPE, "seed": 0} | change
        return fit(small(), **settings, checkpoint=tmp_path).history["seconds"].tolist()

    first = run()
    assert run() == first
    path = tmp_path / "epoch.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert run() != first
    for change in ({"seed": 1}, {"valid": TRAIN}, {"recipe": dataclasses.replace(RECIPE, lr=1.0)}):
        with pytest.raises(ValueError, match="another run"):
            run(**change)


def test_pearson_loss_is_one_minus_mean_rho():
    prediction = torch.from_numpy(np.random.default_rng(0).normal(size=(32, 6))).requires_grad_()
    target = torch.from_numpy(np.random.default_rng(1).random((32, 6)))
    loss = pearson_loss(prediction, target)
    expected = 1 - mean_pearson(target.numpy(), prediction.detach().numpy())
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    assert torch.autograd.gradcheck(lambda p: pearson_loss(p, target), prediction)
    constant = torch.zeros(32, 6, requires_grad=True)
    pearson_loss(constant, target.float()).backward()
    assert torch.isfinite(constant.grad).all()
    model = small(dropout=0.0)
    loss = 1 - mean_pearson(TRAIN.target, predict(model, TRAIN))
    loss += 0.1 * model.net[0].weight.square().sum().item()
    history = fit(model, TRAIN, recipe=Recipe(epochs=1, batch_size=70, loss="1-pearson")).history
    assert history["loss"].item() == pytest.approx(loss, abs=1e-5)


def test_unfit_recipes_data_and_losses_are_refused_and_denormals_are_zero_inside():
    for change in ({"schedule": "linear"}, {"epochs": 0}, {"clip": -1.0}, {"loss": "l1"}):
        with pytest.raises(ValueError, match=next(iter(change))):
            Recipe(**change)
    bare, none = FeatureSet.from_arrays(["a"], text=np.zeros((1, 4))), TRAIN.select([])
    wide = FeatureSet.from_arrays(["a"], text=np.zeros((1, 9)), target=np.zeros((1, 6)))
    few, fewer = (data.with_target(data.target[:, :5]) for data in (TRAIN, VALID))
    pairs = [(bare, None), (TRAIN, bare), (none, None), (TRAIN, fewer), (TRAIN, wide), (few, None)]
    for train, valid in pairs:
        with pytest.raises(ValueError, match=r"expected .* targets|num_targets=5"):
            fit(small(), train, valid)
    model = small()
    with pytest.raises(RuntimeError, match="nan in epoch 2"):
        fit(model, TRAIN, None, RECIPE, progress=lambda _: model.net[0].bias.data.fill_(math.nan))
    tiny = torch.tensor(1e-310, dtype=torch.float64)
    assert (tiny * 1).item() > 0
    with loop.no_denormals():
        with loop.no_denormals():
            pass  # the inner one restores what it met
        assert (tiny * 1).item() == 0
    assert (tiny * 1).item() > 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_on_a_gpu(precision, tmp_path):
    recipe = dataclasses.replace(RECIPE, mixed_precision=precision, clip=100.0)
    result = fit(small(), TRAIN, VALID, recipe, checkpoint=tmp_path)
    plain = fit(small(), TRAIN, VALID, dataclasses.replace(recipe, mixed_precision=None))
    assert abs(result.history["rho"].max() - plain.history["rho"].max()) < 0.05
