"""`DualStage` against NumPy, invariants, every subset of modalities, training and bad input."""

import json
from itertools import combinations

import numpy as np
import pytest
import torch

from emilib.models import DualStage
from emilib.models.dual_stage import present_softmax
from emilib.models.inputs import MODALITIES
from emilib.models.temporal import positions

SMALL = {
    "frames_dim": 5,
    "audio_dim": 7,
    "text_dim": 4,
    "num_targets": 3,
    "width": 16,
    "segments": 4,
    "tcn_width": 12,
    "audio_hidden": 6,
    "layers": 1,
    "heads": 2,
    "dropout": 0.0,
}
SUBSETS = [s for size in (1, 2, 3) for s in combinations(MODALITIES, size)]
VARIANTS = [
    {},
    {"fusion": "concat"},
    {"quality": False},
    {"gate": False},
    {"segment_pooling": False},
]


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
    return rows(inputs, slice(clips))


def rows(inputs, index):
    return {name: value[index] for name, value in inputs.items()}


@pytest.mark.parametrize("modalities", SUBSETS)
def test_every_subset_has_its_layers_only_and_weights_that_sum_to_one(modalities):
    model = build(modalities=modalities).eval()
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert ("tcn" in names) == ("frames" in modalities)
    assert ("lstm" in names) == ("audio" in modalities)
    assert set(model.mapping) == set(model.quality) == set(modalities)
    inputs = batch()
    out = model(**inputs)
    assert out.intensity.shape == (4, 3)
    assert out.intensity.isfinite().all()
    assert out.weights.shape == (4, 4, 3)
    unused = [i for i, name in enumerate(MODALITIES) if name not in modalities]
    assert out.weights[..., unused].eq(0).all()
    assert out.weights[2, :, 1].eq(0).all()
    total = out.weights.sum(-1)
    assert torch.all((total - 1).abs().lt(1e-6) | total.eq(0))
    if "text" in modalities:  # text reaches every segment
        torch.testing.assert_close(total, torch.ones(4, 4))
    for name in set(MODALITIES) - set(modalities):  # unused inputs may be None
        inputs |= {name: None, f"{name}_valid": None} if name != "text" else {name: None}
    assert torch.equal(model(**inputs).intensity, out.intensity)


@pytest.mark.parametrize("changes", VARIANTS)
def test_padding_and_batch_order_do_not_matter(changes):
    model = build(**changes).eval()
    inputs = batch()
    out = model(**inputs)
    order = torch.tensor([3, 0, 2, 1])
    torch.testing.assert_close(
        model(**rows(inputs, order)).intensity, out.intensity[order], atol=1e-6, rtol=1e-5
    )
    for row in range(4):
        alone = rows(inputs, slice(row, row + 1))
        frames, audio = int(alone["frames_valid"].sum()), int(alone["audio_valid"].sum())
        for name, length in (("frames", frames), ("audio", audio)):
            alone[name] = alone[name][:, :length]
            alone[f"{name}_valid"] = None  # every step is real now
        single = model(**alone)
        torch.testing.assert_close(
            single.intensity[0], out.intensity[row], atol=2e-6, rtol=1e-5, msg=f"clip {row}"
        )


@pytest.mark.parametrize("changes", VARIANTS)
def test_content_of_absent_modalities_and_padding_does_not_matter(changes):
    model = build(**changes).eval()
    inputs = batch()
    inputs["present"] = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0]]).bool()
    out = model(**inputs)
    present = inputs["present"]
    real = {
        "frames": inputs["frames_valid"] & present[:, :1],
        "audio": inputs["audio_valid"] & present[:, 1:2],
        "text": present[:, 2],
    }
    for filler in (float("nan"), 1e4):
        for name, where in real.items():
            inputs[name] = inputs[name].masked_fill(~where.unsqueeze(-1), filler)
        again = model(**inputs)
        assert torch.equal(again.intensity, out.intensity)
        if out.weights is not None:
            assert torch.equal(again.weights, out.weights)


def test_dropping_a_modality_equals_not_passing_it():
    model = build().eval()
    inputs = batch(clips=2)
    for column, name in enumerate(MODALITIES):
        dropped = inputs | {"present": torch.ones(2, 3, dtype=torch.bool)}
        dropped["present"][:, column] = False
        missing = inputs | {name: None, "present": None}
        if name != "text":
            missing[f"{name}_valid"] = None
        out = model(**dropped)
        torch.testing.assert_close(out.intensity, model(**missing).intensity)
        assert out.weights[..., column].eq(0).all()
        full = model(**inputs).intensity
        assert not torch.allclose(out.intensity, full, atol=1e-4)


@pytest.mark.parametrize("changes", VARIANTS)
def test_a_clip_without_anything_gets_a_learned_constant(changes):
    model = build(**changes).train()
    inputs = batch()
    inputs["present"][1] = False
    out = model(**inputs)
    assert out.intensity.isfinite().all()
    if out.weights is not None:
        assert out.weights[1].eq(0).all()
    out.intensity[1].square().sum().backward()
    assert model.nothing.grad.abs().sum() > 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    nobody = model(**inputs | {"present": torch.zeros(4, 3, dtype=torch.bool)})
    torch.testing.assert_close(nobody.intensity[0], out.intensity[1])
    assert nobody.intensity.std(0).lt(1e-6).all()


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
    torch.testing.assert_close(seen["fused"], expected + positions(4, 16, dtype=torch.float64))


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


def test_evaluation_equals_training_without_dropout():
    model, inputs = build(layers=2), batch()
    with torch.no_grad():
        trained = model.train()(**inputs).intensity
        torch.testing.assert_close(model.eval()(**inputs).intensity, trained, atol=1e-5, rtol=1e-4)


def test_every_parameter_learns():
    model = build()
    model(**batch()).intensity.square().sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == ["nothing"]  # used by clips without anything, of which there is none here


@pytest.mark.parametrize("changes", VARIANTS)
def test_overfits_one_batch(changes):
    model, inputs = build(**changes), batch()
    target = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(200):
        loss = torch.nn.functional.mse_loss(model(**inputs).intensity, target)
        if loss < 1e-3:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1e-3


def test_save_and_load(tmp_path):
    model = build(modalities=("audio", "text"), tcn_dilations=(1, 2), fusion="concat").eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["modalities"] == ["audio", "text"]
    again = DualStage.from_pretrained(tmp_path).eval()
    assert again.modalities == ("audio", "text")
    assert torch.equal(again(**batch()).intensity, model(**batch()).intensity)


def test_bf16_autocast_and_half_precision_features():
    model, inputs = build().eval(), batch()
    exact = model(**inputs).intensity
    half = {k: v.half() if v.is_floating_point() else v for k, v in inputs.items()}
    torch.testing.assert_close(model(**half).intensity, exact, atol=1e-2, rtol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**inputs)
    torch.testing.assert_close(out.intensity.float(), exact, atol=0.1, rtol=0.1)


def bad(**changes):
    return batch() | changes


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (bad(frames=torch.zeros(4, 12, 6)), r"frames of width 5, got 6.*frames_dim=6"),
        (bad(text=torch.zeros(4, 1, 4)), r"text of shape \(B, D\), got \(4, 1, 4\)"),
        (bad(audio=torch.zeros(4, 0, 7)), r"audio with at least one clip and one step"),
        (bad(audio=torch.zeros(3, 30, 7)), r"same number of clips .*'audio': 3"),
        (bad(audio=torch.zeros(4, 30, 7).long()), r"audio as floating point, got torch\.int64"),
        (bad(frames=np.zeros((4, 12, 5))), r"frames as a torch\.Tensor .* got ndarray"),
        (bad(frames=None, audio=None, text=None), r"at least one of the modalities"),
        (bad(text=torch.full((4, 4), torch.nan)), r"finite text, but 4 of 4 clips"),
        (bad(frames=torch.full((4, 12, 5), torch.inf)), r"finite frames"),
        (bad(frames_valid=torch.ones(4, 12)), r"frames_valid as torch\.bool .* got torch\.float32"),
        (bad(audio_valid=torch.ones(4, 29).bool()), r"audio_valid of shape \(4, 30\).*\(4, 29\)"),
        (bad(present=torch.ones(4, 2).bool()), r"present of shape \(4, 3\).*got \(4, 2\)"),
        (bad(present=torch.ones(4, 3)), r"present as torch\.bool"),
        (bad(audio_valid=torch.arange(30).expand(4, 30) > 2), r"real step after padding"),
    ],
)
def test_bad_input_says_what_was_expected_and_what_came(inputs, message):
    with pytest.raises(ValueError, match=message):
        build()(**inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": ()}, "non-empty"),
        ({"modalities": "text"}, "sequence"),
        ({"modalities": ("video",)}, "video"),
        ({"heads": 3}, "heads 3"),
        ({"segments": 0}, "segments of at least 1"),
        ({"fusion": "product"}, "product"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
