import copy
import functools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emilib import MODALITIES, models
from emilib.features import FeatureSet
from emilib.models import for_features
from emilib.study import Recipe, fit

DIMS = {"frames": 6, "audio": 7, "text": 5}
LONGEST = {"frames": 6, "audio": 9}
SIZES = {  # small enough to be trained here in a second
    "TAEMI": {"width": 8, "heads": 2},
    "DualStage": {"width": 8, "segments": 4, "tcn_width": 8, "audio_hidden": 4, "layers": 1},
    "LastStepGRU": {"hidden": 12},
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
        *({"self_attention_norm": "pre"}, {"projection": False, "attention_norm": True}),
        {"self_attention": False, "explicit_missing": ("frames", "text"), "hidden": 5},
    ],
    "DualStage": [
        *({"fusion": "concat"}, {"quality": False}, {"gate": False}, {"segment_pooling": False}),
        *({"modalities": ("frames",)}, {"modalities": ("audio", "text")}),
        {"scored": "mapped", "step_loss": False, "sigmoid": True},
    ],
    **{"MeanLinear": [{"modality": "text"}], "StatisticsMLP": [{"modality": "audio"}]},
    **{name: [{"max_steps": 3}] for name in ("Yu2024", "Zhang2024", "MulT", "MISA")},
}
CASES = {
    f"{name} {change or ''}".strip(): (name, change)
    for name in models.MODELS
    for change in [{}, *SETTINGS.get(name, [])]
}
every_model = pytest.mark.parametrize("case", CASES)
EASY = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
few = settings(max_examples=12, **EASY)


def make(name, **changes):
    data = SimpleNamespace(dims=DIMS, num_targets=3)
    torch.manual_seed(1)
    return models.for_features(name, data, **SIZES.get(name, {}) | changes)


@functools.cache
def ready(case):
    return make(CASES[case][0], **CASES[case][1]).eval()


def still(case):
    """The same model without dropout of any kind, in training mode."""
    model = copy.deepcopy(ready(case)).train()
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
    lengths = [[draw(st.integers(0, m)) for _ in range(count)] for m in LONGEST.values()]
    for steps in lengths:
        steps[0] = max(1, steps[0])  # features have at least one step
    present = draw(st.lists(st.tuples(*[st.booleans()] * 3), min_size=count, max_size=count))
    return clips(*lengths, present, seed=draw(st.integers(0, 99)))


def loss(out):
    return out.intensity.float().square().sum() + (out.auxiliary_loss or 0)


def same(output, other, rows=slice(None), **tolerance):
    """Intensity and weights of two outputs agree."""
    torch.testing.assert_close(output.intensity, other.intensity[rows], **tolerance)
    if output.weights is not None and output.weights.shape[1:] == other.weights.shape[1:]:
        torch.testing.assert_close(output.weights, other.weights[rows], **tolerance)


@every_model
@few
@given(data=batches(), filler=st.sampled_from([float("nan"), float("inf"), 1e30]))
def test_padding_and_absent_modalities_reach_neither_output_nor_gradient(case, data, filler):
    expected, present = ready(case)(**data), data["present"]
    assert expected.intensity.shape == (len(data["text"]), 3)
    assert expected.intensity.isfinite().all()
    real = {n: data[f"{n}_valid"] & present[:, [i]] for i, n in enumerate(LONGEST)}
    real["text"] = present[:, 2]
    spoilt = {n: data[n].masked_fill(~valid[..., None], filler) for n, valid in real.items()}
    same(ready(case)(**data | spoilt), expected, rtol=0, atol=0)
    model = copy.deepcopy(ready(case)).train()
    loss(model(**data | spoilt)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


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
    nothing = ready(case)(**batch([[0, 0, 0]] * 4)).intensity
    torch.testing.assert_close(nothing, nothing[:1].expand(4, -1))


@every_model
def test_every_parameter_is_trained(case):
    model, data = still(case), batch([[1, 1, 1], [0, 0, 0], [1, 1, 1], [0, 1, 1]])
    loss(model(**data)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # softmax of one score, keys of one step (text), and tokens that nothing asks for are constant
    allowed = ("quality", "attention.in_proj", "attention.text", "missing", "norm")
    assert [n for n in without if not any(part in n for part in allowed)] == []
    with torch.no_grad():  # evaluation is training without dropout
        trained = model(**data).intensity
        torch.testing.assert_close(model.eval()(**data).intensity, trained, rtol=1e-4, atol=1e-5)


@every_model
def test_weights_are_saved_and_keep_their_meaning(case, tmp_path):
    ready(case).save_pretrained(tmp_path)
    loaded = type(ready(case)).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**batch()).intensity, ready(case)(**batch()).intensity)
    name, changes = CASES[case]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in models.MODELS[name](**changes).parameters())
    out = ready(case)(**batch())
    kept = json.loads(KEPT.read_text())[case]
    assert parameters == kept["parameters"]
    torch.testing.assert_close(out.intensity, torch.tensor(kept["intensity"]), atol=1e-4, rtol=0)


@every_model
def test_other_precisions_are_close_with_finite_gradients(case):
    model, data = still(case), batch()
    exact = model(**data).intensity
    half = {k: v.half() if v.is_floating_point() else v for k, v in data.items()}
    torch.testing.assert_close(model(**half).intensity, exact, rtol=2e-2, atol=2e-2)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            out = model(**data)
    except RuntimeError:
        pytest.skip("this CPU has no bf16 LSTM")
    torch.testing.assert_close(out.intensity.float(), exact, rtol=0.1, atol=0.1)
    loss(out).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


BAD = [  # modality that must be read, what is changed, key word of the error
    ("frames", {"frames": torch.zeros(4, 6, 9)}, "width 6"),
    ("audio", {"audio": torch.zeros(4, 0, 7)}, "at least one clip and one step"),
    ("text", {"text": torch.full((4, 5), torch.nan)}, "finite text"),
    ("frames", {"frames": torch.full((4, 6, 6), torch.inf)}, "finite frames"),
    ("frames", {"frames_valid": torch.ones(4, 6)}, r"frames_valid as torch\.bool"),
    ("audio", {"audio_valid": torch.ones(4, 8, dtype=torch.bool)}, "audio_valid as"),
    *((n, {"present": torch.ones(4, 2, dtype=torch.bool)}, r"\(4, 3\)") for n in DIMS),
    ("audio", {"frames": None, "audio": None, "text": None}, "at least one"),
]


@every_model
def test_bad_input_is_refused(case):
    data = batch([[1, 1, 1]] * 4)
    for reads, change, word in BAD:
        if reads in ready(case).dims:
            with pytest.raises(ValueError, match=word):
                ready(case)(**data | change)
    if case in ("DualStage", "LastStepGRU", "Hallmen2024", "MISA"):  # where order counts
        data["frames_valid"][2, 3] = data["audio_valid"][1, 3] = False
        with pytest.raises(ValueError, match="real step after padding"):
            ready(case)(**data)
    if len(ready(case).dims) == 3:
        with pytest.raises(ValueError, match="number of clips"):
            ready(case)(**data | {"text": torch.zeros(3, 5)})


KEPT = Path(__file__).with_name("kept_outputs.json")


WIDTHS = {"frames": 5, "audio": 3, "text": 7}
CLIPS = 24


def regression(targets=2, lacking=()):
    """A regression with gaps: clip 0 lacks frames, clip 1 sound, clip 2 words, clip 3 all."""
    draw = np.random.default_rng(0)
    target = draw.normal(size=(CLIPS, targets))
    arrays = {"target": target}
    for name, gaps in (("frames", (0, 3)), ("audio", (1, 3))):
        columns = [np.resize(row, WIDTHS[name]) for row in target]
        noisy = [mix + 0.1 * draw.normal(size=(draw.integers(2, 7), len(mix))) for mix in columns]
        arrays[name] = [None if i in gaps else steps for i, steps in enumerate(noisy)]
    arrays["text"] = np.stack([np.resize(row, WIDTHS["text"]) for row in target])
    arrays["text"][[2, 3]] = np.nan
    arrays = {name: array for name, array in arrays.items() if name not in lacking}
    return FeatureSet.from_arrays(range(CLIPS), **arrays)


def trained(name, data, epochs=2):
    torch.manual_seed(0)
    model = for_features(name, data, **SIZES.get(name, {}))
    return fit(model, data, None, Recipe(epochs=epochs, batch_size=8, lr=1e-2), seed=0)


@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_learns_any_width_and_targets_and_does_without_a_modality(name):
    data = regression(9)
    result = trained(name, data, epochs=20)
    assert result.predict(data).shape == (CLIPS, 9)
    assert result.history["loss"].iloc[-1] < 0.95 * result.history["loss"].iloc[0]
    for lacking in WIDTHS:
        data, reads = regression(1, lacking=[lacking]), ready(name).dims
        if list(reads) == [lacking]:
            with pytest.raises(ValueError, match=lacking):
                trained(name, data)
            continue
        assert np.isfinite(trained(name, data).predict(data)).all()
        few = regression(9, lacking=[lacking])  # to predict, more may lack than in training
        assert lacking not in reads or np.isfinite(result.predict(few)).all()


def test_what_does_not_fit_is_refused():
    for name, lacking in (("TAMEI", []), ("TAEMI", ["target"]), ("Yu2024", ["frames", "audio"])):
        with pytest.raises(ValueError, match=r"TAMEI|targets|frames or audio"):
            for_features(name, regression(lacking=lacking))
    with pytest.raises(ValueError, match="num_targets"):
        fit(for_features("MeanLinear", regression(2)), regression(1), recipe=Recipe(epochs=1))
