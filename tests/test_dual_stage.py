"""`DualStage` against its equations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_models import clips

from emilib import MODALITIES
from emilib.models import DualStage
from emilib.models.dual_stage import present_softmax
from emilib.models.temporal import positions

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


def naive_pool(states, length, segments):
    parts = [[t for t in range(length) if t * segments // length == m] for m in range(segments)]
    return torch.stack([states[part].mean(0) for part in parts])


def test_softmax_over_what_is_present_in_numpy():
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
            pooled = [naive_pool(after[states][i].detach(), n, 4) for i, n in enumerate(lengths)]
            h[name] = torch.stack(pooled)
    scores = [model.quality[name](h[name]) for name in MODALITIES]
    torch.testing.assert_close(weights, torch.cat(scores, -1).softmax(-1))
    mapped = torch.stack([after[name].expand(2, 4, 16) for name in MODALITIES], 2)
    expected = torch.einsum("bmk,bmkw->bmw", weights, mapped)
    torch.testing.assert_close(seen["fused"], expected + positions(expected))


def test_without_quality_the_weights_are_uniform_over_what_is_there():
    weights = build(quality=False)(**batch()).weights
    torch.testing.assert_close(weights[0], torch.full((4, 3), 1 / 3))
    torch.testing.assert_close(weights[2], torch.tensor([[0.5, 0.0, 0.5]]).expand(4, 3))
    # Clip 3 has two frames and three audio steps: the other segments have text alone.
    assert weights[3].gt(0).sum(0).tolist() == [2, 3, 4]
    assert build(fusion="concat")(**batch()).weights is None


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


def test_time_base_without_segment_pooling_is_the_clips_frames():
    out = build(segment_pooling=False)(**batch({1: [0, 1, 1]}))  # without frames: M segments
    assert (out.weights.sum(-1) > 0).sum(1).tolist() == [9, 4, 12, 2]
