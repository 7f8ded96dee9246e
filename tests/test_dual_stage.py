"""`DualStage` against its equations."""

import numpy as np
import torch
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


def test_weights_come_from_the_quality_scores():
    """Eq. 7 and 8: the softmax of each modality's own MLP, and Eq. 9's sum of what they weigh."""
    model, inputs = build().double(), {name: x[:2] for name, x in batch().items()}
    seen, states = {}, {}
    model.encoder.register_forward_pre_hook(lambda _, args: seen.update(fused=args[0]))
    for name, module in model.mapping.items():
        module.register_forward_hook(lambda _m, _i, o, name=name: states.update({name: o}))
    weights = model(**inputs).weights
    scores = [model.quality[name](states[name]).expand(2, 4, 1) for name in MODALITIES]
    torch.testing.assert_close(weights, torch.cat(scores, -1).softmax(-1))
    mapped = torch.stack([states[name].expand(2, 4, 16) for name in MODALITIES], 2)
    expected = torch.einsum("bmk,bmkw->bmw", weights, mapped)
    torch.testing.assert_close(seen["fused"], expected + positions(expected))


def test_without_quality_the_weights_are_uniform_over_what_is_there():
    weights = build(quality=False)(**batch()).weights
    torch.testing.assert_close(weights[0], torch.full((4, 3), 1 / 3))
    torch.testing.assert_close(weights[2], torch.tensor([[0.5, 0.0, 0.5]]).expand(4, 3))
    # Clip 3 has two frames and three audio steps: the other segments have text alone.
    assert weights[3].gt(0).sum(0).tolist() == [2, 3, 4]
    assert build(fusion="concat")(**batch()).weights is None


def test_intensity_is_the_mean_of_the_segments_outputs():
    model, seen = build(), {}
    model.head.register_forward_hook(lambda _m, _i, out: seen.update(steps=out))
    # Clip 3 has two frames in four segments: two are valid.
    out = model(**batch({0: [1, 1, 0], 3: [1, 0, 0]}))
    torch.testing.assert_close(out.intensity[0], seen["steps"][0].mean(0))
    real = out.weights[3].sum(-1) > 0
    assert real.sum() == 2
    torch.testing.assert_close(out.intensity[3], seen["steps"][3][real].mean(0))


def test_time_base_without_segment_pooling_is_the_clips_frames():
    out = build(segment_pooling=False)(**batch({1: [0, 1, 1]}))  # without frames: M segments
    assert (out.weights.sum(-1) > 0).sum(1).tolist() == [9, 4, 12, 2]
