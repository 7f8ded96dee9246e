"""The earlier solutions: stated sizes, masks, and parts against NumPy, SciPy and torch's layers."""

import itertools
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from torch import nn

from emilib.models import earlier as prior
from emilib.models import multimodal

DIMS = {"frames": 6, "audio": 7, "text": 5}
LENGTHS = {"frames": torch.tensor([4, 1, 6, 3]), "audio": torch.tensor([2, 9, 5, 1])}
STILL = {"dropout": 0.0}
ALL = (6, 7, 5, 3)

# Small models that take what `batch` gives: (make, modalities read, settings without dropout)
MODELS = {
    "MeanLinear": (lambda **k: prior.MeanLinear(7, "audio", 3), ["audio"]),
    "MeanLinear-text": (lambda **k: prior.MeanLinear(5, "text", 3), ["text"]),
    "LastStepGRU": (lambda **k: prior.LastStepGRU(6, "frames", 3, hidden=12), ["frames"]),
    "LateAverage": (lambda **k: prior.LateAverage(6, 7, 3, hidden=12), ["frames", "audio"]),
    "Yu2024": (
        lambda **k: prior.Yu2024(6, 7, 3, width=8, heads=2, dilations=(1, 2), **k),
        ["frames", "audio"],
    ),
    "Hallmen2024": (lambda **k: prior.Hallmen2024(7, 3), ["audio"]),
    "StatisticsMLP": (lambda **k: prior.StatisticsMLP(6, "frames", 3), ["frames"]),
    "Savchenko2025": (lambda **k: prior.Savchenko2025(*ALL), list(DIMS)),
    "Zhang2024": (lambda **k: prior.Zhang2024(*ALL, width=8, heads=2, members=2, **k), list(DIMS)),
    "TFN": (lambda **k: multimodal.TFN(*ALL, width=6, text_width=8, hidden=16, **k), list(DIMS)),
    "MulT": (lambda **k: multimodal.MulT(*ALL, width=8, heads=2, layers=2, **k), list(DIMS)),
    "MISA": (lambda **k: multimodal.MISA(*ALL, width=8, **k), list(DIMS)),
    "MulT-short": (
        lambda **k: multimodal.MulT(*ALL, width=8, heads=2, layers=1, max_steps=3, **k),
        list(DIMS),
    ),
    "Yu2024-short": (
        lambda **k: prior.Yu2024(6, 7, 3, width=8, heads=2, max_steps=3, **k),
        ["frames", "audio"],
    ),
}


def valid_steps(lengths, steps):
    return torch.arange(steps) < lengths[:, None]


def batch():
    torch.manual_seed(0)
    return {
        "frames": torch.randn(4, 6, 6),
        "audio": torch.randn(4, 9, 7),
        "text": torch.randn(4, 5),
        "frames_valid": valid_steps(LENGTHS["frames"], 6),
        "audio_valid": valid_steps(LENGTHS["audio"], 9),
        "present": torch.ones(4, 3, dtype=torch.bool),
    }


def build(name, **settings):
    torch.manual_seed(1)
    return MODELS[name][0](**settings)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_padding_order_and_company_change_nothing(name):
    model, data = build(name).eval(), batch()
    data["present"][1, 0] = data["present"][2, 1] = data["present"][3, 2] = False
    expected = model(**data).intensity
    assert expected.shape == (4, 3)
    assert torch.isfinite(expected).all()

    dirty = {k: v.clone() for k, v in data.items()}
    dirty["frames"][~dirty["frames_valid"]] = float("nan")
    dirty["audio"][~dirty["audio_valid"]] = float("inf")
    dirty["frames"][1], dirty["audio"][2], dirty["text"][3] = float("nan"), 1e30, float("nan")
    assert torch.equal(model(**dirty).intensity, expected)

    longer = {k: F.pad(v, (0, 0, 0, 5)) for k, v in data.items() if k in LENGTHS}
    masks = {k: F.pad(v, (0, 5)) for k, v in data.items() if k.endswith("_valid")}
    close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(model(**{**data, **longer, **masks}).intensity, expected, **close)

    order = torch.tensor([2, 0, 3, 1])
    shuffled = model(**{k: v[order] for k, v in data.items()}).intensity
    torch.testing.assert_close(shuffled, expected[order], **close)
    for clip in range(4):
        one = {k: v[clip : clip + 1] for k, v in data.items()}
        alone = model(**one).intensity
        torch.testing.assert_close(alone, expected[clip : clip + 1], **close)


@every_model
def test_every_subset_of_modalities_is_answered(name):
    model, data = build(name).eval(), batch()
    for size in (1, 2, 3):
        for subset in itertools.combinations(DIMS, size):
            data["present"] = torch.tensor([[m in subset for m in DIMS]] * 4)
            out = model(**data).intensity
            assert torch.isfinite(out).all()
            if not set(subset) & set(MODELS[name][1]):  # nothing it reads: one answer for all
                torch.testing.assert_close(out, out[:1].expand(4, -1))


@every_model
def test_absent_modality_may_be_none(name):
    model, data, read = build(name).eval(), batch(), MODELS[name][1]
    for lacking in read if len(read) > 1 else []:
        data["present"] = torch.tensor([[m != lacking for m in DIMS]] * 4)
        expected = model(**data).intensity
        none = {lacking: None, f"{lacking}_valid": None, "present": None}
        none = {k: v for k, v in none.items() if k in data}
        torch.testing.assert_close(model(**{**data, **none}).intensity, expected)


@every_model
def test_overfits_a_batch(name):
    model, data = build(name, **STILL).train(), batch()
    data["present"][1, 0] = data["present"][3, 2] = False
    if name.startswith(("Statistics", "MeanLinear-")):
        data["present"][:] = True  # a model of one modality can't tell clips without it apart
    target = torch.rand(4, 3)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(600):
        error = F.mse_loss(model(**data).intensity, target)
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        if error.item() < 5e-4:
            break
    assert error.item() < 1e-3


@every_model
def test_saves_and_loads(name, tmp_path):
    model, data = build(name).eval(), batch()
    data["present"][0, 1] = False
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**data).intensity, model(**data).intensity)


@every_model
def test_bad_input_is_one_clear_error(name):
    model, data, read = build(name), batch(), MODELS[name][1]
    wrong = torch.zeros(4, 11) if read[0] == "text" else torch.zeros(4, 6, 11)
    mask = {f"{read[0]}_valid": None} if read[0] != "text" else {}
    with pytest.raises(ValueError, match="width"):
        model(**{**data, read[0]: wrong, **mask})
    with pytest.raises(ValueError, match="at least one"):
        model(**{**data, **dict.fromkeys(read)})
    with pytest.raises(ValueError, match="present"):
        model(**{**data, "present": torch.ones(4, 2, dtype=torch.bool)})


@every_model
def test_every_parameter_is_trained(name):
    model, data = build(name, **STILL).train(), batch()
    data["present"][0, :2] = data["present"][3, 2] = False
    out = model(**data)
    loss = out.intensity.square().sum()
    loss = loss + (getattr(out, "auxiliary_loss", None) or 0)
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@every_model
def test_mixed_precision_gives_finite_gradients(name):
    model, data = build(name).train(), batch()
    data["present"][1, 0] = data["present"][3, 2] = False
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(**data)
    loss = out.intensity.float().square().sum() + (getattr(out, "auxiliary_loss", None) or 0)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# ------------------------------------------------------------------ stated sizes


def test_stated_sizes():
    with torch.device("meta"):
        hallmen, gru, mean = prior.Hallmen2024(), prior.LastStepGRU(), prior.MeanLinear()
        savchenko, tfn, mult = prior.Savchenko2025(), multimodal.TFN(), multimodal.MulT()
    assert (hallmen.lstm.hidden_size, hallmen.lstm.num_layers) == (1027, 2)
    assert not hallmen.lstm.bidirectional
    assert [tuple(p.shape) for p in (hallmen.head[0].weight, hallmen.head[2].weight)] == [
        (2054, 2054),
        (6, 2054),
    ]
    assert isinstance(hallmen.head[1], nn.Tanh)
    assert (gru.gru.input_size, gru.gru.num_layers, gru.gru.bidirectional) == (384, 3, False)
    assert parameters(mean.head) == 768 * 6 + 6
    inputs = {"frames": 4 * 768, "audio": 1027, "text": 768}
    for name, member in savchenko.members.items():
        first, relu, second, sigmoid = member.head
        assert (first.in_features, first.out_features) == (inputs[name], 64)
        assert (second.in_features, second.out_features) == (64, 6)
        assert isinstance(relu, nn.ReLU)
        assert isinstance(sigmoid, nn.Sigmoid)
    assert tfn.head[0][0].in_features == 129 * 33 * 33
    assert len(mult.crossmodal) == 6
    assert mult.head.in_features == 6 * 40


def test_yu2025_is_paper_as_full_model():
    model, data = prior.yu2025(6, 7, 5, 3).eval(), batch()
    assert type(model).__name__ == "DualStage"
    assert model(**data).intensity.shape == (4, 3)
    assert model(**data).weights is not None


def test_every_model_has_its_marks():
    for name, marks in prior.MARKS.items():
        assert all(marks)
        text = re.sub(r"\s+", " ", getattr(prior, name).__doc__)
        for what, sentence in marks._asdict().items():
            assert f"{what}: {sentence}" in text
    assert set(prior.MARKS) >= {n for n in MODELS if "-" not in n} - {"StatisticsMLP"}


# ------------------------------------------------------------------ forward passes written out


def test_mean_linear_and_last_step_are_written_out_per_clip():
    data = batch()
    linear, gru = build("MeanLinear"), build("LastStepGRU").eval()
    hallmen = build("Hallmen2024").eval()
    for clip in range(4):
        heard = data["audio"][clip, : LENGTHS["audio"][clip]]
        seen = data["frames"][clip, : LENGTHS["frames"][clip]]
        torch.testing.assert_close(linear(**data).intensity[clip], linear.head(heard.mean(0)))
        states, hidden = gru.gru(seen)
        torch.testing.assert_close(states[-1], hidden[-1])
        torch.testing.assert_close(gru(**data).intensity[clip], gru.head(states[-1]))
        states, _ = hallmen.lstm(heard)
        expected = hallmen.head(torch.cat([states.mean(0), states[-1]]))
        torch.testing.assert_close(hallmen(**data).intensity[clip], expected)


def test_a_missing_modality_is_the_learned_vector_alone():
    model, data = build("LastStepGRU").eval(), batch()
    data["present"][2, 0] = False
    states, _ = model.gru(model.missing["frames"][None])
    torch.testing.assert_close(model(**data).intensity[2], model.head(states[-1]))


def test_average_of_trained_models():
    frames_model = prior.LastStepGRU(6, "frames", 3, hidden=9, layers=2).eval()
    audio_model, data = build("MeanLinear").eval(), batch()
    both = prior.LateAverage.of(frames_model, audio_model).eval()
    mean = (frames_model(**data).intensity + audio_model(**data).intensity) / 2
    torch.testing.assert_close(both(**data).intensity, mean)
    assert both(**data).auxiliary_loss is None


def test_auxiliary_loss_makes_the_error_of_the_average_that_of_its_members():
    torch.manual_seed(0)
    members, target = [torch.randn(8, 3) for _ in range(4)], torch.randn(8, 3)
    out = prior.average(members, training=True)
    together = F.mse_loss(out.intensity, target) + out.auxiliary_loss
    apart = torch.stack([F.mse_loss(m, target) for m in members]).mean()
    torch.testing.assert_close(together, apart)


def test_long_sequences_become_means_of_segments_and_short_ones_stay():
    x, valid = torch.arange(14.0).view(2, 7, 1), valid_steps(torch.tensor([7, 2]), 7)
    short, real = prior._shorten(x, valid, 3)
    # step t of 7 lies in segment floor(3 t / 7): 0 0 0 1 1 2 2
    assert short[0, :, 0].tolist() == [1.0, 3.5, 5.5]
    assert short[1, :2, 0].tolist() == [7.0, 8.0]
    assert real.tolist() == [[True] * 3, [True, True, False]]
    same, mask = prior._shorten(x, valid, 7)
    assert same is x
    assert mask is valid


def test_clip_statistics_are_numpys():
    x, valid = batch()["frames"], batch()["frames_valid"]
    statistics = prior.clip_statistics(x, valid).numpy()
    for clip, length in enumerate(LENGTHS["frames"]):
        seen = x[clip, :length].numpy()
        parts = [seen.mean(0), seen.std(0), seen.min(0), seen.max(0)]
        np.testing.assert_allclose(statistics[clip], np.concatenate(parts), atol=2e-6)


def test_tensor_fusion_holds_every_product():
    model, data = build("TFN").eval(), batch()
    seen = {}
    model.head.register_forward_pre_hook(lambda _, args: seen.update(cube=args[0]))
    model(**data)
    z = {}
    for name in DIMS:
        x = data[name]
        if name != "text":
            steps = LENGTHS[name]
            x = torch.stack([clip[:n].mean(0) for clip, n in zip(x, steps, strict=True)])
        z[name] = F.pad(model.embed[name](x), (0, 1), value=1.0).detach()
    for clip in range(4):
        product = np.multiply.outer(
            np.multiply.outer(z["text"][clip].numpy(), z["frames"][clip].numpy()),
            z["audio"][clip].numpy(),
        )
        np.testing.assert_allclose(seen["cube"][clip].detach(), product.ravel(), rtol=1e-5)


def test_crossmodal_block_reads_the_source():
    torch.manual_seed(0)
    layer = multimodal.Crossmodal(8, 2, 1, 0.0).eval()
    target, source = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    block = layer.blocks[0]
    asking, answering = F.layer_norm(target, (8,)), F.layer_norm(source, (8,))
    weight, bias = block["attention"].in_proj_weight, block["attention"].in_proj_bias
    q, k, v = (
        F.linear(x, w, b).view(1, -1, 2, 4).transpose(1, 2)
        for x, w, b in zip(
            (asking, answering, answering), weight.chunk(3), bias.chunk(3), strict=True
        )
    )
    read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 3, 8)
    y = F.layer_norm(block["attention"].out_proj(read) + asking, (8,))
    expected = block["feed_forward"](y) + y
    result = layer(target, source, torch.ones(1, 5, dtype=torch.bool))
    torch.testing.assert_close(result, expected)


def test_central_moment_discrepancy_is_numpys():
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 3)), rng.random((30, 3)) ** 2
    moments = lambda v: [v.mean(0)] + [((v - v.mean(0)) ** k).mean(0) for k in range(2, 6)]  # noqa: E731
    pairs = zip(moments(x), moments(y), strict=True)
    expected = sum(cdist(a[None], b[None])[0, 0] for a, b in pairs)
    value = multimodal.central_moment_discrepancy(torch.tensor(x), torch.tensor(y))
    assert value.item() == pytest.approx(expected)
    assert multimodal.central_moment_discrepancy(torch.tensor(x), torch.tensor(x)).item() == 0


def test_misa_losses_vanish_where_they_should():
    torch.manual_seed(0)
    same = torch.rand(6, 4)
    u = {name: torch.randn(6, 4) for name in DIMS}
    shared = dict.fromkeys(DIMS, same)
    private = {name: torch.zeros(6, 4) for name in DIMS}
    similarity, difference, reconstruction = multimodal.misa_losses(u, shared, private, u)
    assert similarity.item() == 0
    assert difference.item() == 0
    assert reconstruction.item() == 0
    private["audio"] = same
    assert multimodal.misa_losses(u, shared, private, u)[1].item() > 0
    zero = {name: x[:1] for name, x in u.items()}
    assert [float(x) for x in multimodal.misa_losses(zero, zero, zero, zero)] == [0.0, 0.0, 0.0]


def test_misa_trains_with_its_regularisers():
    model, data = build("MISA", **STILL), batch()
    assert model.eval()(**data).auxiliary_loss is None
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    history = []
    for _ in range(60):
        loss = model(**data).auxiliary_loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    assert history[-1] < 0.3 * history[0]
    data["present"][:, 0] = False  # no clip has all three: nothing to compare
    assert model(**data).auxiliary_loss.item() == 0


# ------------------------------------------------------------------ Savchenko's fusion


def test_fusion_weights_are_checked():
    model = build("Savchenko2025")
    with pytest.raises(ValueError, match="expected weights"):
        model.set_fusion(np.ones((2, 3)) / 2)
    with pytest.raises(ValueError, match="sum to 1"):
        model.set_fusion(np.ones((3, 3)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: prior.MeanLinear(4, "video"), "modality is 'video'"),
        (lambda: prior.LastStepGRU(4, "frames", layers=0), "layers is 0"),
        (lambda: prior.Zhang2024(width=10, heads=4), "no multiple of heads 4"),
        (lambda: prior.Zhang2024(members=0), "members is 0"),
        (lambda: multimodal.MulT(width=9, heads=2), "no multiple of heads 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_mask_with_a_hole_is_refused_where_order_counts():
    data = batch()
    data["audio_valid"][1, 3] = False
    with pytest.raises(ValueError, match="real step after padding"):
        build("Hallmen2024")(**data)
