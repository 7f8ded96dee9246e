"""The earlier solutions: stated sizes, and parts against NumPy and torch's layers."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_models import DIMS, batch, ready

from emilib.models import earlier, multimodal

LENGTHS = {"frames": [4, 1, 6, 3], "audio": [2, 9, 5, 1]}
WHOLE = batch([[1, 1, 1]] * 4)


def test_stated_sizes():
    with torch.device("meta"):
        hallmen, savchenko = earlier.Hallmen2024(), earlier.Savchenko2025()
        gru, tfn = earlier.LastStepGRU().gru, multimodal.TFN()
    lstm = hallmen.lstm
    assert (lstm.hidden_size, lstm.num_layers, lstm.bidirectional) == (1027, 2, False)
    assert (gru.input_size, gru.num_layers, gru.bidirectional) == (384, 3, False)
    assert [tuple(hallmen.head[i].weight.shape) for i in (0, 2)] == [(2054, 2054), (6, 2054)]
    sizes = [(m.head[0].in_features, m.head[0].out_features) for m in savchenko.members.values()]
    assert sizes == [(4 * 768, 64), (1027, 64), (768, 64)]
    assert tfn.head[0][0].in_features == 129 * 33 * 33


def test_mean_linear_and_last_step_are_written_out_per_clip():
    linear, gru, hallmen = (ready(name) for name in ("MeanLinear", "LastStepGRU", "Hallmen2024"))
    for clip in range(4):
        heard, seen = (WHOLE[name][clip, : LENGTHS[name][clip]] for name in ("audio", "frames"))
        torch.testing.assert_close(linear(**WHOLE).intensity[clip], linear.head(heard.mean(0)))
        states, _ = gru.gru(seen)
        torch.testing.assert_close(gru(**WHOLE).intensity[clip], gru.head(states[-1]))
        states, _ = hallmen.lstm(heard)
        expected = hallmen.head(torch.cat([states.mean(0), states[-1]]))
        torch.testing.assert_close(hallmen(**WHOLE).intensity[clip], expected)
    states, _ = gru.gru(gru.missing["frames"][None])  # clip 1 lacks frames here
    torch.testing.assert_close(gru(**batch()).intensity[1], gru.head(states[-1]))


def test_auxiliary_loss_makes_the_error_of_the_average_that_of_its_members():
    torch.manual_seed(0)
    members, target = [torch.randn(8, 3) for _ in range(4)], torch.randn(8, 3)
    out = earlier.average(members, training=True)
    together = F.mse_loss(out.intensity, target) + out.auxiliary_loss
    apart = torch.stack([F.mse_loss(m, target) for m in members]).mean()
    torch.testing.assert_close(together, apart)


def test_clip_statistics_are_numpys():
    x, valid = WHOLE["frames"], WHOLE["frames_valid"]
    statistics = earlier.clip_statistics(x, valid).numpy()
    for clip, length in enumerate(LENGTHS["frames"]):
        seen = x[clip, :length].numpy()
        parts = [seen.mean(0), seen.std(0), seen.min(0), seen.max(0)]
        np.testing.assert_allclose(statistics[clip], np.concatenate(parts), atol=2e-6)


def test_tensor_fusion_holds_every_product():
    model, seen = ready("TFN"), {}
    model.head.register_forward_pre_hook(lambda _, args: seen.update(cube=args[0]))
    model(**WHOLE)
    z = {"text": WHOLE["text"]}
    for name, lengths in LENGTHS.items():
        z[name] = torch.stack([x[:n].mean(0) for x, n in zip(WHOLE[name], lengths, strict=True)])
    z = {name: F.pad(model.embed[name](x), (0, 1), value=1.0).detach() for name, x in z.items()}
    for clip in range(4):
        product = np.multiply.outer(z["text"][clip], z["frames"][clip])
        product = np.multiply.outer(product, z["audio"][clip])
        np.testing.assert_allclose(seen["cube"][clip].detach(), product.ravel(), rtol=1e-5)


def test_crossmodal_block_reads_the_source():
    torch.manual_seed(0)
    layer = multimodal.Crossmodal(8, 2, 1, 0.0).eval()
    target, source = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    block = layer.blocks[0]
    query, context = F.layer_norm(target, (8,)), F.layer_norm(source, (8,))
    weights = block["attention"].in_proj_weight.chunk(3)  # its biases are 0 at first
    pairs = zip((query, context, context), weights, strict=True)
    q, k, v = (F.linear(x, w).view(1, -1, 2, 4).transpose(1, 2) for x, w in pairs)
    read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 3, 8)
    y = F.layer_norm(block["attention"].out_proj(read) + query, (8,))
    result = layer(target, source, torch.ones(1, 5, dtype=torch.bool))
    torch.testing.assert_close(result, block["feed_forward"](y) + y)


def test_central_moment_discrepancy_is_numpys():
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 3)), rng.random((30, 3)) ** 2
    expected = np.linalg.norm(x.mean(0) - y.mean(0))
    for k in range(2, 6):
        a, b = (((v - v.mean(0)) ** k).mean(0) for v in (x, y))
        expected += np.linalg.norm(a - b)
    value = multimodal.central_moment_discrepancy(torch.tensor(x), torch.tensor(y))
    assert value.item() == pytest.approx(expected)


@torch.no_grad()
def test_misa_reads_the_end_states_of_both_lstms():
    """Beside torch's own final states, of a clip alone and of the same clip padded."""
    model = multimodal.MISA(frames_dim=4, audio_dim=5, text_dim=6, width=4).eval()
    x, seen = torch.randn(1, 7, 5), []
    model.project["audio"].register_forward_hook(lambda module, args, out: seen.append(args[0]))
    lower, norm, upper = model.recurrent["audio"]
    ones = torch.ones(1, 7, 1)
    states, (first, _) = lower.lstm(torch.cat([x, ones], dim=2).transpose(0, 1))
    _, (second, _) = upper.lstm(torch.cat([norm(states), ones.transpose(0, 1)], dim=2))
    expected = torch.cat([first[0], second[0], first[1], second[1]], dim=1)
    padded = torch.cat([x, torch.full((1, 3, 5), 9.0)], dim=1)
    valid = torch.arange(10)[None] < 7
    for audio, real in ((x, valid[:, :7]), (padded, valid)):
        model(torch.randn(1, 2, 4), audio, torch.randn(1, 6), audio_valid=real)
        torch.testing.assert_close(seen[-1], expected)


def test_misa_losses_are_numpys():
    torch.manual_seed(0)
    u, shared, private, rebuilt = ({n: torch.rand(6, 4) for n in DIMS} for _ in range(4))
    losses = multimodal.misa_losses(u, shared, private, rebuilt)
    unit = [{n: x - x.mean(0) for n, x in d.items()} for d in (shared, private)]
    unit = [{n: x / x.norm(dim=1, keepdim=True) for n, x in d.items()} for d in unit]
    pairs = [(unit[0][n], unit[1][n]) for n in DIMS]
    pairs += [(unit[1][a], unit[1][b]) for a, b in itertools.combinations(DIMS, 2)]
    assert losses[1] == pytest.approx(sum(((a.T @ b) ** 2).mean().item() for a, b in pairs))
    assert losses[2] == pytest.approx(sum(F.mse_loss(u[n], rebuilt[n]).item() for n in DIMS) / 3)
