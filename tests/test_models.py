"""What holds for every model in every setting: padding, absence, company, gradients, saving."""

import functools
import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emilib import MODALITIES, models
from emilib.models.earlier import Yu2025

DIMS = {"frames": 6, "audio": 7, "text": 5}
LONGEST = {"frames": 6, "audio": 9}
SIZES = {  # small enough to be trained here in a second
    "TAEMI": {"width": 8, "heads": 2},
    "DualStage": {
        **{"width": 8, "segments": 4, "tcn_width": 8, "tcn_dilations": (1, 2)},
        **{"audio_hidden": 4, "layers": 1, "heads": 2},
    },
    "LastStepGRU": {"hidden": 12},
    "LateAverage": {"hidden": 12},
    "Yu2024": {"width": 8, "heads": 2, "dilations": (1, 2)},
    "Zhang2024": {"width": 8, "heads": 2, "members": 2},
    "TFN": {"width": 6, "text_width": 8, "hidden": 16},
    "MulT": {"width": 8, "heads": 2, "layers": 1},
    "MISA": {"width": 8},
}
SETTINGS = {
    "TAEMI": [
        *({"anchor": "audio"}, {"anchor": "frames"}, {"fusion": "self_attention"}),
        *({"fusion": "concat"}, {"missing_tokens": False}, {"text_in_fusion": "projected"}),
        *({"self_attention_norm": "pre"}, {"projection": False}),
        {"projection": False, "self_attention": False, "attention_norm": True},
        {"explicit_missing": ("frames", "text"), "hidden": 5},
    ],
    "DualStage": [
        *({"fusion": "concat"}, {"quality": False}, {"gate": False}, {"segment_pooling": False}),
        *({"modalities": ("frames",)}, {"modalities": ("audio", "text")}),
    ],
    "MeanLinear": [{"modality": "text"}],
    "StatisticsMLP": [{"modality": "audio"}],
    "Yu2024": [{"max_steps": 3}],
    "Zhang2024": [{"max_steps": 3}],
    "MulT": [{"max_steps": 3}],
    "MISA": [{"max_steps": 3}],
}
CASES = {
    f"{name} {change or ''}".strip(): (name, change)
    for name in models.MODELS
    for change in [{}, *SETTINGS.get(name, [])]
}
every_model = pytest.mark.parametrize("case", CASES)
few = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


def build(case, **changes):
    name, change = CASES[case]
    torch.manual_seed(1)
    return models.build(name, DIMS, 3, **SIZES.get(name, {}), **change, **changes)


@functools.cache
def ready(case):
    return build(case).eval()


def still(case):
    """The same model without dropout of any kind, in training mode."""
    model = build(case).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    model.modality_dropout = 0.0
    return model


def clips(frames, audio, present, seed=0):
    """A padded batch with noise in its padding, and which clips have which modality."""
    g = torch.Generator().manual_seed(seed)
    b = len(frames)
    return {
        "frames": torch.randn(b, max(frames), 6, generator=g),
        "audio": torch.randn(b, max(audio), 7, generator=g),
        "text": torch.randn(b, 5, generator=g),
        "frames_valid": torch.arange(max(frames)) < torch.tensor(frames)[:, None],
        "audio_valid": torch.arange(max(audio)) < torch.tensor(audio)[:, None],
        "present": torch.tensor(present, dtype=torch.bool),
    }


def batch(present=((1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0))):
    return clips([4, 1, 6, 3], [2, 9, 5, 1], present)


@st.composite
def batches(draw):
    """Lengths from 0 (masked throughout) and any pattern of presence, of 1 to 4 clips."""
    count = draw(st.integers(1, 4))
    lengths = {n: [draw(st.integers(0, most)) for _ in range(count)] for n, most in LONGEST.items()}
    for name in lengths:
        lengths[name][0] = max(1, lengths[name][0])  # features have at least one step
    present = draw(st.lists(st.tuples(*[st.booleans()] * 3), min_size=count, max_size=count))
    return clips(*lengths.values(), present, seed=draw(st.integers(0, 99)))


def real_steps(data):
    present = data["present"]
    return {
        "frames": data["frames_valid"] & present[:, :1],
        "audio": data["audio_valid"] & present[:, 1:2],
        "text": present[:, 2],
    }


def same(output, other, rows=slice(None), **tolerance):
    """Intensity and weights of two outputs agree."""
    torch.testing.assert_close(output.intensity, other.intensity[rows], **tolerance)
    if output.weights is not None and output.weights.shape[1:] == other.weights.shape[1:]:
        torch.testing.assert_close(output.weights, other.weights[rows], **tolerance)


@every_model
@few
@given(data=batches(), filler=st.sampled_from([float("nan"), float("inf"), 1e30]))
def test_content_of_padding_and_of_absent_modalities_changes_nothing(case, data, filler):
    expected = ready(case)(**data)
    assert expected.intensity.shape == (len(data["text"]), 3)
    assert expected.intensity.isfinite().all()
    spoilt = {
        n: data[n].masked_fill(~real[..., None], filler) for n, real in real_steps(data).items()
    }
    same(ready(case)(**data | spoilt), expected, rtol=0, atol=0)


@every_model
@few
@given(data=batches(), longer=st.integers(1, 4), random=st.randoms())
def test_order_company_and_length_of_a_batch_change_nothing(case, data, longer, random):
    close = {"rtol": 1e-4, "atol": 2e-6}
    expected = ready(case)(**data)
    order = list(range(len(data["text"])))
    random.shuffle(order)
    same(ready(case)(**{k: v[order] for k, v in data.items()}), expected, order, **close)
    padded = {n: F.pad(data[n], (0, 0, 0, longer)) for n in LONGEST}
    padded |= {f"{n}_valid": F.pad(data[f"{n}_valid"], (0, longer)) for n in LONGEST}
    same(ready(case)(**data | padded), expected, **close)
    for row in order:
        alone = {k: v[row : row + 1] for k, v in data.items()}
        for name in LONGEST:  # cut to the clip's own length
            steps = max(1, int(alone[f"{name}_valid"].sum()))
            alone |= {n: alone[n][:, :steps] for n in (name, f"{name}_valid")}
        same(ready(case)(**alone), expected, slice(row, row + 1), **close)


@every_model
@pytest.mark.parametrize("lacking", MODALITIES)
def test_absent_is_the_same_as_none(case, lacking):
    data = batch([[name != lacking for name in MODALITIES]] * 4)
    none = {n: None for n in (lacking, f"{lacking}_valid", "present") if n in data}
    expected = ready(case)(**data)
    full = ready(case)(**data | {"present": None})
    if lacking in ready(case).dims:
        assert not torch.allclose(full.intensity, expected.intensity, atol=1e-5), "it is read"
        if set(ready(case).dims) == {lacking}:
            return
    same(ready(case)(**data | none), expected)


@every_model
def test_nothing_at_all_is_one_answer(case):
    out = ready(case)(**batch([[0, 0, 0]] * 4)).intensity
    torch.testing.assert_close(out, out[:1].expand(4, -1))


@every_model
@few
@given(data=batches())
def test_gradients_are_finite(case, data):
    model = build(case).train()
    out = model(**data)
    loss = out.intensity.square().sum() + (getattr(out, "auxiliary_loss", None) or 0)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every_model
def test_every_parameter_is_trained(case):
    model, data = still(case), batch([[1, 1, 1], [0, 0, 0], [1, 1, 1], [0, 1, 1]])
    out = model(**data)
    (out.intensity.square().sum() + (getattr(out, "auxiliary_loss", None) or 0)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # softmax of one score, keys of one step (text), and tokens that nothing asks for are constant
    allowed = ("quality", "attention.in_proj", "attention.text", "missing", "norm")
    assert [n for n in without if not any(part in n for part in allowed)] == []


@every_model
def test_evaluation_is_training_without_dropout(case):
    model, data = still(case), batch()
    with torch.no_grad():
        trained = model(**data).intensity
        torch.testing.assert_close(model.eval()(**data).intensity, trained, rtol=1e-4, atol=1e-5)


@every_model
def test_overfits_a_batch(case):
    model = still(case)
    read = [name in model.dims for name in MODALITIES]
    # A model of one modality cannot tell apart clips that lack it.
    data = batch() if sum(read) > 1 else batch([[1, 1, 1]] * 4)
    target = torch.rand(4, 3, generator=torch.Generator().manual_seed(2))
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(600):
        error = F.mse_loss(model(**data).intensity, target)
        if error < 1e-3:
            break
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    assert error < 1e-3


@every_model
def test_saves_and_loads(case, tmp_path):
    model, data = ready(case), batch()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_targets"] == 3
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**data).intensity, model(**data).intensity)


@every_model
def test_features_of_another_precision(case):
    model, data = ready(case), batch()
    half = {k: v.half() if v.is_floating_point() else v for k, v in data.items()}
    out = model(**half).intensity
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, model(**data).intensity, rtol=2e-2, atol=2e-2)
    double = build(case).double().eval()(**data).intensity
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), model(**data).intensity, rtol=1e-3, atol=1e-4)


@functools.cache
def has_bf16_lstm():
    """A CPU without AMX or AVX512-BF16 has no such kernel."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            torch.nn.LSTM(4, 4)(torch.zeros(2, 1, 4))
    except RuntimeError:
        return False
    return True


@every_model
def test_mixed_precision_is_close_with_finite_gradients(case):
    model, data = still(case), batch()
    if not has_bf16_lstm() and any(isinstance(m, torch.nn.RNNBase) for m in model.modules()):
        pytest.skip("this CPU has no bf16 LSTM")
    exact = model(**data).intensity
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**data).intensity
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.1)
    out.float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


NAN, INF = float("nan"), float("inf")
BAD = [  # modality that must be read, what is changed, key word of the error
    ("frames", {"frames": torch.zeros(4, 6, 9)}, "width 6"),
    ("audio", {"audio": torch.zeros(4, 9, 9)}, "audio_dim=9"),
    ("text", {"text": torch.zeros(4, 1, 5)}, "shape"),
    ("audio", {"audio": torch.zeros(4, 0, 7)}, "at least one clip and one step"),
    ("audio", {"audio": torch.zeros(4, 9, 7).long()}, "floating point"),
    ("frames", {"frames": [[0.0]]}, "list"),
    ("text", {"text": torch.full((4, 5), NAN)}, "finite text"),
    ("frames", {"frames": torch.full((4, 6, 6), INF)}, "finite frames"),
    ("frames", {"frames_valid": torch.ones(4, 6)}, "frames_valid as torch.bool"),
    ("audio", {"audio_valid": torch.ones(4, 8, dtype=torch.bool)}, "audio_valid of shape"),
    *((n, {"present": torch.ones(4, 2, dtype=torch.bool)}, "present of shape") for n in DIMS),
    ("text", {"present": torch.ones(4, 3)}, "present as torch.bool"),
    ("audio", {"frames": None, "audio": None, "text": None}, "at least one"),
]


@every_model
def test_bad_input_is_refused(case):
    for reads, change, word in BAD:
        if reads in ready(case).dims:
            with pytest.raises(ValueError, match=word):
                ready(case)(**batch([[1, 1, 1]] * 4) | change)


def test_clips_of_unequal_number_are_refused():
    with pytest.raises(ValueError, match="number of clips"):
        ready("TAEMI")(**batch() | {"text": torch.zeros(3, 5)})


@pytest.mark.parametrize(
    "case", ["DualStage", "LastStepGRU", "Hallmen2024", "MISA", "Yu2024 {'max_steps': 3}"]
)
def test_a_mask_with_a_hole_is_refused_where_order_counts(case):
    data = batch([[1, 1, 1]] * 4)
    data["frames_valid"][2, 3] = data["audio_valid"][1, 3] = False
    with pytest.raises(ValueError, match="real step after padding"):
        ready(case)(**data)


@pytest.mark.parametrize(
    ("case", "change", "word"),
    [
        ("TAEMI", {"anchor": "video"}, "anchor"),
        ("TAEMI", {"fusion": "sum"}, "fusion"),
        ("TAEMI", {"text_in_fusion": "both"}, "text_in_fusion"),
        ("TAEMI", {"self_attention_norm": "mid"}, "self_attention_norm"),
        ("TAEMI", {"modality_dropout": 1.0}, "modality_dropout"),
        ("TAEMI", {"explicit_missing": ("video",)}, "explicit_missing"),
        ("DualStage", {"modalities": ()}, "modalities"),
        ("DualStage", {"modalities": "text"}, "modalities"),
        ("DualStage", {"fusion": "product"}, "product"),
        ("MeanLinear", {"modality": "video"}, "video"),
    ],
)
def test_settings_out_of_range_are_refused(case, change, word):
    cls = getattr(models, case)
    with pytest.raises(ValueError, match=word):
        cls(**change)


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        *[(n, {"width": 9, "heads": 2}, "heads 2") for n in ("TAEMI", "DualStage", "MulT", "MISA")],
        ("DualStage", {"segments": 0}, "segments"),
        ("LastStepGRU", {"layers": 0}, "layers"),
        ("Zhang2024", {"members": 0}, "members"),
        ("Yu2024", {"max_steps": 0}, "max_steps"),
        ("TAEMI-2", {}, "TAEMI-2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, change, word):
    with pytest.raises(ValueError, match=word):
        models.build(name, DIMS, 3, **change)


def test_every_earlier_system_states_its_provenance():
    others = [getattr(models, n) for n in models.MODELS if n not in ("TAEMI", "DualStage")]
    for cls in [*others, Yu2025]:
        assert all(cls.provenance), cls
    assert len({cls.provenance for cls in others}) == len(others) - 1  # StatisticsMLP is a member
