"""`DualStage` against its equations."""

import numpy as np
import torch

from emilib import MODALITIES
from emilib.models import DualStage
from emilib.models.dual_stage import present_softmax
from emilib.models.temporal import positions

SMALL = {
    **{"frames_dim": 5, "audio_dim": 7, "text_dim": 4, "num_targets": 3, "width": 16},
    **{"segments": 4, "tcn_width": 12, "audio_hidden": 6, "layers": 1, "heads": 2, "dropout": 0.0},
}


def build(**changes):
    torch.manual_seed(0)
    return DualStage(**{**SMALL, **changes})


def batch(clips=4):
    """Ragged inputs with noise in padding; clip 2 lacks audio, clip 3 is shorter than M."""
    g = torch.Generator().manual_seed(0)
    lengths = torch.tensor([[9, 30], [6, 18], [12, 5], [2, 3]])
    inputs = {
        "frames": torch.randn(4, 12, 5, generator=g),
        "audio": torch.randn(4, 30, 7, generator=g),
        "text": torch.randn(4, 4, generator=g),
        "frames_valid": torch.arange(12) < lengths[:, :1],
        "audio_valid": torch.arange(30) < lengths[:, 1:],
        "present": torch.ones(4, 3, dtype=torch.bool),
    }
    inputs["present"][2, 1] = False
    return {name: value[:clips] for name, value in inputs.items()}


def test_softmax_over_what_is_present_in_numpy():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, 3, generator=generator, dtype=torch.float64) * 30
    real = torch.rand(50, 3, generator=generator) < 0.6
    real[0] = False
    got = present_softmax(scores, real).numpy()
    for score, there, row in zip(scores.numpy(), real.numpy(), got, strict=True):
        expected = np.zeros(3)
        if there.any():
            exponent = np.exp(score[there] - score[there].max())
            expected[there] = exponent / exponent.sum()
        np.testing.assert_allclose(row, expected, atol=1e-14)
        assert (row[~there] == 0).all()


def test_weights_come_from_the_quality_scores():
    """Eq. 7 and 8: the softmax of each modality's own MLP, and Eq. 9's sum of what they weigh."""
    model = build().double().eval()
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in batch(2).items()}
    seen = {}
    model.encoder.register_forward_pre_hook(lambda _, args: seen.update(fused=args[0]))
    states = {}
    for name, module in model.mapping.items():
        module.register_forward_hook(lambda _m, _i, o, name=name: states.update({name: o}))
    weights = model(**inputs).weights
    scores = torch.cat(
        [model.quality[name](states[name]).expand(2, 4, 1) for name in MODALITIES], -1
    )
    torch.testing.assert_close(weights, scores.softmax(-1))
    mapped = torch.stack([states[name].expand(2, 4, 16) for name in MODALITIES], 2)
    expected = torch.einsum("bmk,bmkw->bmw", weights, mapped)
    torch.testing.assert_close(seen["fused"], expected + positions(expected))


def test_without_quality_the_weights_are_uniform_over_what_is_there():
    weights = build(quality=False).eval()(**batch()).weights
    torch.testing.assert_close(weights[0], torch.full((4, 3), 1 / 3))
    torch.testing.assert_close(weights[2], torch.tensor([[0.5, 0.0, 0.5]]).expand(4, 3))
    # Clip 3 has two frames and three audio steps: the other segments have text alone.
    assert weights[3].gt(0).sum(0).tolist() == [2, 3, 4]


def test_concat_has_no_weights_and_differs():
    model = build(fusion="concat")
    assert model.quality is None
    assert model(**batch()).weights is None


def test_intensity_is_the_mean_of_the_segments_outputs():
    model = build().eval()
    seen = {}
    model.head.register_forward_hook(lambda _m, _i, out: seen.update(steps=out))
    inputs = batch()
    inputs["present"][:, 2] = False
    inputs["present"][3, 1] = False  # two frames in four segments: two are valid
    out = model(**inputs)
    torch.testing.assert_close(out.intensity[0], seen["steps"][0].mean(0))
    there = out.weights[3].sum(-1) > 0
    assert there.sum() == 2
    torch.testing.assert_close(out.intensity[3], seen["steps"][3][there].mean(0))


def test_time_base_without_segment_pooling_is_the_clips_frames():
    model = build(segment_pooling=False).eval()
    inputs = batch()
    inputs["present"][1, 0] = False  # without frames: M segments
    valid = model(**inputs).weights.sum(-1) > 0
    assert valid.sum(1).tolist() == [9, 4, 12, 2]
