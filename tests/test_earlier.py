"""The earlier solutions: stated sizes, masks, and parts against NumPy, SciPy and torch's layers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from torch import nn

from emilib import models
from emilib.models import earlier, multimodal

DATA = SimpleNamespace(dims={"frames": 6, "audio": 7, "text": 5}, num_targets=3)
DIMS = DATA.dims
LENGTHS = {"frames": torch.tensor([4, 1, 6, 3]), "audio": torch.tensor([2, 9, 5, 1])}


def batch():
    torch.manual_seed(0)
    return {
        "frames": torch.randn(4, 6, 6),
        "audio": torch.randn(4, 9, 7),
        "text": torch.randn(4, 5),
        "frames_valid": torch.arange(6) < LENGTHS["frames"][:, None],
        "audio_valid": torch.arange(9) < LENGTHS["audio"][:, None],
        "present": torch.ones(4, 3, dtype=torch.bool),
    }


def build(name, **change):
    torch.manual_seed(1)
    return models.for_features(name, DATA, **change).eval()


def test_stated_sizes():
    with torch.device("meta"):
        hallmen, gru, mean = earlier.Hallmen2024(), earlier.LastStepGRU(), earlier.MeanLinear()
        savchenko, tfn, mult = earlier.Savchenko2025(), multimodal.TFN(), multimodal.MulT()
    lstm = hallmen.lstm
    assert (lstm.hidden_size, lstm.num_layers, lstm.bidirectional) == (1027, 2, False)
    sizes = [tuple(layer.weight.shape) for layer in (hallmen.head[0], hallmen.head[2], mean.head)]
    assert sizes == [(2054, 2054), (6, 2054), (6, 768)]
    assert isinstance(hallmen.head[1], nn.Tanh)
    assert (gru.gru.input_size, gru.gru.num_layers, gru.gru.bidirectional) == (384, 3, False)
    inputs = {"frames": 4 * 768, "audio": 1027, "text": 768}
    for name, member in savchenko.members.items():
        first, relu, second, sigmoid = member.head
        assert (first.in_features, second.in_features, second.out_features) == (inputs[name], 64, 6)
        assert (type(relu), type(sigmoid)) == (nn.ReLU, nn.Sigmoid)
    assert tfn.head[0][0].in_features == 129 * 33 * 33
    assert len(mult.crossmodal) == 6
    assert mult.head.in_features == 6 * 40


def test_mean_linear_and_last_step_are_written_out_per_clip():
    data = batch()
    linear, gru = build("MeanLinear"), build("LastStepGRU", hidden=12)
    hallmen = build("Hallmen2024")
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
    model, data = build("LastStepGRU", hidden=12), batch()
    data["present"][2, 0] = False
    states, _ = model.gru(model.missing["frames"][None])
    torch.testing.assert_close(model(**data).intensity[2], model.head(states[-1]))


def test_auxiliary_loss_makes_the_error_of_the_average_that_of_its_members():
    torch.manual_seed(0)
    members, target = [torch.randn(8, 3) for _ in range(4)], torch.randn(8, 3)
    out = earlier.average(members, training=True)
    together = F.mse_loss(out.intensity, target) + out.auxiliary_loss
    apart = torch.stack([F.mse_loss(m, target) for m in members]).mean()
    torch.testing.assert_close(together, apart)


def test_clip_statistics_are_numpys():
    x, valid = batch()["frames"], batch()["frames_valid"]
    statistics = earlier.clip_statistics(x, valid).numpy()
    for clip, length in enumerate(LENGTHS["frames"]):
        seen = x[clip, :length].numpy()
        parts = [seen.mean(0), seen.std(0), seen.min(0), seen.max(0)]
        np.testing.assert_allclose(statistics[clip], np.concatenate(parts), atol=2e-6)


def test_tensor_fusion_holds_every_product():
    model, data = build("TFN", width=6, text_width=8, hidden=16), batch()
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
