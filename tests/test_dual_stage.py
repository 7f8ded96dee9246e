import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models import clips
from torch import nn

from emilib import MODALITIES
from emilib.models import DualStage
from emilib.models.dual_stage import present_softmax
from emilib.models.temporal import TCN, BiLSTM, DifferenceGate, pool_segments, positions

SMALL = {
    **{"frames_dim": 6, "audio_dim": 7, "text_dim": 5, "num_targets": 3, "width": 16},
    **{"segments": 4, "tcn_width": 12, "audio_hidden": 6, "layers": 1, "heads": 2, "dropout": 0.0},
}


def build(**changes):
    torch.manual_seed(0)
    return DualStage(**SMALL | changes).eval()


def batch(changes=()):
    """Clip 2 lacks audio, clip 3 is shorter than M; `changes` of `present` by clip."""
    present = {0: [1, 1, 1], 1: [1, 1, 1], 2: [1, 0, 1], 3: [1, 1, 1]} | dict(changes)
    return clips([9, 6, 12, 2], [30, 18, 5, 3], list(present.values()))


def test_softmax_and_uniform_weights_are_over_what_is_present():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, 3, generator=generator, dtype=torch.float64) * 30
    real = torch.rand(50, 3, generator=generator) < 0.6
    real[0] = False
    result = present_softmax(scores, real).numpy()
    for score, present, row in zip(scores.numpy(), real.numpy(), result, strict=True):
        expected = np.zeros(3)
        if present.any():
            exponent = np.exp(score[present] - score[present].max())
            expected[present] = exponent / exponent.sum()
        np.testing.assert_allclose(row, expected, atol=1e-14)
        assert (row[~present] == 0).all()
    weights = build(quality=False)(**batch()).weights
    torch.testing.assert_close(weights[0], torch.full((4, 3), 1 / 3))
    torch.testing.assert_close(weights[2], torch.tensor([[0.5, 0.0, 0.5]]).expand(4, 3))
    # Clip 3 has two frames and three audio steps: the other segments have text alone.
    assert weights[3].gt(0).sum(0).tolist() == [2, 3, 4]
    assert build(fusion="concat")(**batch()).weights is None
    # without segment pooling the time base is the clip's frames
    out = build(segment_pooling=False)(**batch({1: [0, 1, 1]}))  # without frames: M segments
    assert (out.weights.sum(-1) > 0).sum(1).tolist() == [9, 4, 12, 2]


@pytest.mark.parametrize("scored", ["states", "mapped"])
def test_weights_come_from_the_quality_scores(scored):
    """Eq. 7 and 8: the softmax of each modality's own MLP, and Eq. 9's sum of what they weigh."""
    model, inputs = build(scored=scored).double(), {n: x[:2] for n, x in batch().items()}
    seen, after = {}, {}
    model.encoder.register_forward_pre_hook(lambda _, args: seen.update(fused=args[0]))
    for name, module in {**model.mapping, "v": model.tcn, "a": model.lstm}.items():
        module.register_forward_hook(lambda _m, _i, o, name=name: after.update({name: o}))
    weights = model(**inputs).weights
    h = {name: after[name].expand(2, 4, 16) for name in MODALITIES}
    if scored == "states":  # of Eq. 2 and 3, before gate and mapping; the words as they are
        h["text"] = inputs["text"].double()[:, None].expand(2, 4, 5)
        for name, states, lengths in (("frames", "v", (9, 6)), ("audio", "a", (30, 18))):
            x = after[states].detach().numpy()
            pooled = [naive_pool(x[i], np.arange(x.shape[1]) < n, 4) for i, n in enumerate(lengths)]
            h[name] = torch.from_numpy(np.stack([values for values, _ in pooled]))
    scores = [model.quality[name](h[name]) for name in MODALITIES]
    torch.testing.assert_close(weights, torch.cat(scores, -1).softmax(-1))
    mapped = torch.stack([after[name].expand(2, 4, 16) for name in MODALITIES], 2)
    expected = torch.einsum("bmk,bmkw->bmw", weights, mapped)
    torch.testing.assert_close(seen["fused"], expected + positions(expected))


@pytest.mark.parametrize("sigmoid", [False, True])
def test_the_loss_is_that_of_every_step_against_the_clips_label(sigmoid):
    """3.6, with the one label of a clip as y^t; of the mean alone without `step_loss`."""
    model, target, seen = build(sigmoid=sigmoid).train(), torch.rand(4, 3), {}
    model.head.register_forward_hook(lambda _m, _i, out: seen.update(steps=out))
    out, errors = model(**batch()), []
    for steps, y, clip in zip(seen["steps"], target, out.weights, strict=True):
        steps = steps.sigmoid() if sigmoid else steps
        real = [s for s, weights in zip(steps, clip, strict=True) if weights.any()]
        errors.append(torch.stack([(y - s).square() for s in real]).mean())
    loss = F.mse_loss(out.intensity, target) + out.auxiliary_loss
    torch.testing.assert_close(loss, torch.stack(errors).mean())
    assert model.eval()(**batch()).auxiliary_loss is None
    assert build(step_loss=False).train()(**batch()).auxiliary_loss is None


def ragged(lengths, dim):
    """Random (B, T, D) float64 with noise in the padding, and its mask."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(len(lengths), max(lengths), dim, generator=generator).double()
    return values, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize(("kernel", "dilations"), [(3, (1, 2, 4)), (5, (1, 3)), (1, (1,))])
def test_receptive_field_is_what_gradients_reach(kernel, dilations):
    torch.manual_seed(0)
    tcn = TCN(4, 8, kernel, dilations, dropout=0.0).double()
    steps = 2 * tcn.receptive_field + 1
    frames = torch.randn(1, steps, 4, dtype=torch.float64, requires_grad=True)
    middle = steps // 2
    tcn(frames, torch.ones(1, steps, dtype=torch.bool))[0, middle].square().sum().backward()
    reached = frames.grad[0].abs().sum(1).nonzero().flatten()
    half = (tcn.receptive_field - 1) // 2
    assert reached.tolist() == list(range(middle - half, middle + half + 1))


def test_tcn_layer_is_the_written_sum():
    """One layer against a convolution by loops, over the clip alone."""
    torch.manual_seed(1)
    tcn = TCN(3, 3, 3, (2,), dropout=0.0).double()
    frames, valid = ragged([5, 7], 3)
    x, layer = tcn.project(frames[0, :5]), tcn.layers[0]
    normed, convolved = nn.functional.layer_norm(x, (3,)), []
    for t in range(5):
        taps = [layer["conv"].weight[:, :, k] @ normed[s]
                for k, s in enumerate((t - 2, t, t + 2)) if 0 <= s < 5]  # fmt: skip
        convolved.append(layer["conv"].bias + sum(taps))
    expected = x + nn.functional.gelu(torch.stack(convolved))
    torch.testing.assert_close(tcn(frames, valid)[0, :5], expected)


def test_bilstm_is_torchs_lstm_on_each_clip_alone():
    torch.manual_seed(0)
    mine = BiLSTM(5, 4).double()
    other = nn.LSTM(5, 4, bidirectional=True, batch_first=True).double()
    with torch.no_grad():
        for side in ("l0", "l0_reverse"):
            weight = getattr(mine.lstm, f"weight_ih_{side}")
            getattr(other, f"weight_ih_{side}").copy_(weight[:, :5])
            getattr(other, f"bias_ih_{side}").copy_(weight[:, 5])
            getattr(other, f"bias_hh_{side}").zero_()
            getattr(other, f"weight_hh_{side}").copy_(getattr(mine.lstm, f"weight_hh_{side}"))
    values, valid = ragged([7, 3, 1], 5)
    states = mine(values.masked_fill(~valid[..., None], torch.nan), valid)
    assert states[~valid].eq(0).all()
    for row, length in enumerate([7, 3, 1]):
        alone = other(values[row : row + 1, :length])[0][0]
        torch.testing.assert_close(states[row, :length], alone)


def test_gate_is_equation_6_and_positions_those_of_the_transformer_paper():
    torch.manual_seed(0)
    gate = DifferenceGate(4).double()
    states = torch.randn(2, 5, 4, dtype=torch.float64)
    weight, bias = gate.gate.weight.detach().numpy(), gate.gate.bias.detach().numpy()
    h = states.numpy()
    expected = np.empty_like(h)
    for b, t in np.ndindex(2, 5):
        change = h[b, t] - h[b, t - 1] if t else np.zeros(4)
        alpha = 1 / (1 + np.exp(-(weight @ np.concatenate([h[b, t], change]) + bias)))
        expected[b, t] = alpha * h[b, t]
    np.testing.assert_allclose(gate(states).detach().numpy(), expected, atol=1e-12)
    result = positions(torch.empty(1, 9, 6)).numpy()
    for step, pair in np.ndindex(9, 3):
        angle = step / 10000 ** (2 * pair / 6)
        expected = np.sin(angle), np.cos(angle)
        np.testing.assert_allclose(result[step, 2 * pair : 2 * pair + 2], expected, atol=1e-6)
    assert positions(torch.empty(1, 4, 5)).shape == (4, 5)


def naive_pool(frames, real, segments):
    """Eq. 5 by loops: segment m holds the steps t with m L / M <= t < (m + 1) L / M."""
    steps = np.flatnonzero(real)
    length = steps.max() + 1 if len(steps) else 0
    out, filled = np.zeros((segments, frames.shape[1])), np.zeros(segments, bool)
    for m in range(segments):
        inside = [t for t in steps if m * length <= t * segments < (m + 1) * length]
        if inside:
            out[m], filled[m] = frames[inside].mean(0), True
    return out, filled


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(1, 16), st.integers(0, 11))
def test_pool_segments_is_equation_5(lengths, segments, hole):
    frames, valid = ragged([12, *lengths], 3)
    valid[:, hole] = False  # steps inside a clip may be missing
    counts = torch.tensor([max(1, segments - i) for i in range(len(frames))])
    spoilt = frames.masked_fill(~valid.unsqueeze(-1), torch.nan)
    of_each = pool_segments(spoilt, valid, segments), pool_segments(spoilt, valid, counts)
    for row in range(len(frames)):
        for (pooled, real), count in zip(of_each, (segments, int(counts[row])), strict=True):
            expected, filled = naive_pool(frames[row].numpy(), valid[row].numpy(), count)
            np.testing.assert_allclose(pooled[row, :count].numpy(), expected, atol=1e-12)
            np.testing.assert_array_equal(real[row, :count].numpy(), filled)
            assert not real[row, count:].any()
            assert not pooled[row, count:].any()
