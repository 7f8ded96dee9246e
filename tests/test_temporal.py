"""Temporal parts of paper A against loops, NumPy, torch's own layers and invariants."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from emilib.models.temporal import TCN, BiLSTM, DifferenceGate, pool_segments, positions


def ragged(lengths, dim, seed=0):
    """Random (B, T, D) with noise in the padding, and its mask."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(lengths), max(lengths), dim, generator=generator)
    valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return values, valid


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
    """One layer against convolution by loops in NumPy."""
    torch.manual_seed(1)
    tcn = TCN(3, 3, 3, (2,), dropout=0.0).double()
    frames = torch.randn(1, 7, 3, dtype=torch.float64)
    valid = torch.tensor([[True] * 5 + [False] * 2])
    got = tcn(frames, valid)[0, :5].detach().numpy()

    def convolve(x, conv):
        weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
        out = np.zeros_like(x)
        for t in range(len(x)):
            out[t] = bias
            for k in range(3):
                source = t + 2 * (k - 1)
                if 0 <= source < len(x):
                    out[t] += weight[:, :, k] @ x[source]
        return out

    gelu = lambda x: nn.functional.gelu(torch.from_numpy(x)).numpy()  # noqa: E731
    project, conv = tcn.project, tcn.layers[0]["conv"]
    x = frames[0, :5].numpy() @ project.weight.detach().numpy().T + project.bias.detach().numpy()
    normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    # The clip alone: padding is as if it were not there.
    expected = x + gelu(convolve(normed, conv))
    np.testing.assert_allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("make", [lambda: TCN(5, 6, dropout=0.0), lambda: BiLSTM(5, 3)])
def test_padding_never_reaches_real_steps(make):
    torch.manual_seed(0)
    module = make()
    values, valid = ragged([9, 4, 1], 5)
    together = module(values, valid)
    assert together[~valid].eq(0).all()
    spoilt = values.masked_fill(~valid.unsqueeze(-1), float("nan"))
    torch.testing.assert_close(module(spoilt, valid), together)
    for row, length in enumerate([9, 4, 1]):
        alone = module(values[row : row + 1, :length], valid[row : row + 1, :length])
        torch.testing.assert_close(together[row, :length], alone[0], atol=1e-6, rtol=1e-5)


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
    lengths = [7, 3, 1]
    values, valid = ragged(lengths, 5)
    values = values.double()
    got = mine(values, valid)
    for row, length in enumerate(lengths):
        expected, _ = other(values[row : row + 1, :length])
        torch.testing.assert_close(got[row, :length], expected[0])


def test_gate_is_equation_6_in_numpy():
    torch.manual_seed(0)
    gate = DifferenceGate(4).double()
    states = torch.randn(2, 5, 4, dtype=torch.float64)
    weight, bias = gate.gate.weight.detach().numpy(), gate.gate.bias.detach().numpy()
    h = states.numpy()
    expected = np.empty_like(h)
    for b in range(2):
        for t in range(5):
            change = h[b, t] - h[b, t - 1] if t else np.zeros(4)
            alpha = 1 / (1 + np.exp(-(weight @ np.concatenate([h[b, t], change]) + bias)))
            expected[b, t] = alpha * h[b, t]
    np.testing.assert_allclose(gate(states).detach().numpy(), expected, atol=1e-12)


def naive_pool(frames, real, segments):
    """Eq. 5 by loops: segment m holds the steps t with m L / M <= t < (m + 1) L / M."""
    length = max(np.flatnonzero(real)) + 1 if real.any() else 0
    out, filled = np.zeros((segments, frames.shape[1])), np.zeros(segments, bool)
    for m in range(segments):
        inside = [
            t for t in range(length) if real[t] and m * length <= t * segments < (m + 1) * length
        ]
        if inside:
            out[m], filled[m] = frames[inside].mean(0), True
    return out, filled


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    segments=st.integers(1, 16),
    hole=st.integers(0, 11),
)
def test_pool_segments_is_equation_5(lengths, segments, hole):
    frames, valid = ragged([12, *lengths], 3)
    valid[:, hole] = False  # steps inside a clip may be missing
    counts = torch.tensor([max(1, segments - i) for i in range(len(frames))])
    spoilt = frames.double().masked_fill(~valid.unsqueeze(-1), float("nan"))
    of_each = pool_segments(spoilt, valid, segments), pool_segments(spoilt, valid, counts)
    for row in range(len(frames)):
        for (pooled, real), count in zip(of_each, (segments, int(counts[row])), strict=True):
            expected, filled = naive_pool(frames[row].double().numpy(), valid[row].numpy(), count)
            np.testing.assert_allclose(pooled[row, :count].numpy(), expected, atol=1e-12)
            np.testing.assert_array_equal(real[row, :count].numpy(), filled)
            assert not real[row, count:].any()
            assert not pooled[row, count:].any()


def test_positions_are_those_of_the_transformer_paper():
    got = positions(torch.empty(1, 9, 6)).numpy()
    for step in range(9):
        for pair in range(3):
            angle = step / 10000 ** (2 * pair / 6)
            np.testing.assert_allclose(got[step, 2 * pair], np.sin(angle), atol=1e-6)
            np.testing.assert_allclose(got[step, 2 * pair + 1], np.cos(angle), atol=1e-6)
    assert positions(torch.empty(1, 4, 5)).shape == (4, 5)
