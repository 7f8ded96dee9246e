import pickle
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from emilib import MODALITIES
from emilib.features import FeatureSet
from emilib.features.feature_set import MediaSet
from emilib.features.store import Rows, Store, write_shard

WIDTHS = {"frames": 5, "audio": 4, "text": 6}
# Steps of frames and of audio (None: the clip lacks them), and whether there are words.
STEPS = st.one_of(st.none(), st.integers(1, 9))
CLIPS = st.lists(st.tuples(STEPS, STEPS, st.booleans()), min_size=1, max_size=12)


def arrays(clips, seed=0):
    draw = np.random.default_rng(seed)

    def sequence(steps, width, dtype):
        return None if steps is None else draw.normal(3, 2, (steps, width)).astype(dtype)

    text = draw.normal(size=(len(clips), WIDTHS["text"])).astype(np.float32)
    text[[not spoken for *_, spoken in clips]] = np.nan
    return {
        "ids": [f"{i:05d}" for i in range(len(clips))],
        "frames": [sequence(steps, WIDTHS["frames"], np.float32) for steps, *_ in clips],
        "audio": [sequence(steps, WIDTHS["audio"], np.float16) for _, steps, _ in clips],
        "text": text,
        "target": draw.uniform(size=(len(clips), 2)),
    }


def make(clips=None, seed=0, **changes):
    clips = clips or [(3 + i % 4, 9 + i, i != 4) if i != 2 else (None, 9, True) for i in range(10)]
    return FeatureSet.from_arrays(**{"dims": WIDTHS, **arrays(clips, seed), **changes})


@given(CLIPS, st.booleans(), st.sampled_from(["none", "first", "mean"]))
@settings(deadline=None, max_examples=60)
def test_a_batch_holds_what_a_loop_copies(clips, scaled, reference):
    data = make(clips)
    present = np.array([[f is not None, a is not None, t] for f, a, t in clips])
    np.testing.assert_array_equal(data.present, present)
    steps = [[1 if n is None else n for n in clip[:2]] for clip in clips]
    assert data.lengths.tolist() == [max(pair) for pair in steps]
    rows = np.random.default_rng(1).permutation(len(clips))
    widths = {m: WIDTHS[m] for c, m in enumerate(MODALITIES) if present[:, c].any()}
    moments = {m: (np.arange(d) + 1.0, np.arange(d) + 2.0) for m, d in widths.items()}
    moments["text"] = (np.ones(6), np.full(6, 2.0))
    given_data = make(clips, dims=None, frame_reference=reference)
    if scaled:
        given_data = given_data.standardised(moments)
    batch = given_data.batch(rows, device="cpu")
    assert batch.index.tolist() == rows.tolist()
    assert torch.equal(batch.present, torch.from_numpy(present[rows]))
    np.testing.assert_array_equal(batch.target, data.target[rows].astype(np.float32))
    for column, name in enumerate(("frames", "audio")):
        values, valid = getattr(batch, name), getattr(batch, f"{name}_valid")
        if name not in widths:
            assert values is valid is None
            continue
        expected = np.zeros((len(rows), max(clips[r][column] or 1 for r in rows), WIDTHS[name]))
        real = np.zeros(expected.shape[:2], bool)
        for position, row in enumerate(rows):
            for step in range(clips[row][column] or 0):
                value = getattr(data, name)[row][step].astype(float)
                if name == "frames" and reference != "none":
                    own = data.frames[row].astype(float)
                    value = value - (own[0] if reference == "first" else own.mean(axis=0))
                mean, spread = moments[name]
                expected[position, step] = (value - mean) / spread if scaled else value
                real[position, step] = True
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(valid, real)
        assert values.dtype == torch.float32
    text = (data.text - 1) / 2 if scaled else data.text
    np.testing.assert_allclose(batch.text, np.nan_to_num(text)[rows], rtol=1e-5, atol=1e-6)
    names = {"frames", "audio", "text", "frames_valid", "audio_valid", "present"}
    assert set(batch.inputs()) == names


@given(st.integers(1, 60), st.integers(1, 9), st.booleans())
@settings(deadline=None, max_examples=40)
def test_batches_hold_every_clip_once(count, size, shuffle):
    data = make([(1 + 7 * i % 11, None, True) for i in range(count)])

    def order(seed):
        generator = torch.Generator().manual_seed(seed)
        return [b.index.tolist() for b in data.batches(size, shuffle, generator)]

    batches = order(1)
    assert sorted([*chain(*batches)]) == list(range(count))
    assert sorted(map(len, batches))[1:] == [size] * (len(batches) - 1)
    assert order(1) == batches
    assert shuffle or [*chain(*batches)] == list(range(count))
    assert not shuffle or count < 20 or order(2) != batches


@given(CLIPS)
@settings(deadline=None, max_examples=40)
def test_moments_are_those_of_scikit_learn(clips):
    data = make([*clips, (2, 3, True)], dims=None)
    moments = data.moments()
    scaled = data.standardised(moments)
    for name in MODALITIES:
        column = getattr(data, name)
        present = [a for a in column if a is not None]
        raw = column[data.present[:, 2]] if name == "text" else np.concatenate(present)
        judge = StandardScaler().fit(raw.astype(np.float64))
        np.testing.assert_allclose(moments[name][0], judge.mean_, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(moments[name][1], judge.scale_, rtol=1e-6)
        expected = judge.transform(raw.astype(np.float64))
        np.testing.assert_allclose(scaled.scaled(name, raw), expected, rtol=1e-4, atol=1e-5)
    again = scaled.moments()["audio"]
    np.testing.assert_allclose(again[0], np.zeros(4), atol=1e-4)


@pytest.mark.parametrize("reference", ["first", "mean"])
def test_frames_are_scaled_by_the_moments_of_what_is_left_of_them(reference):
    data = make(frame_reference=reference)
    data = data.standardised(data.moments())
    batch = data.batch(range(len(data)))
    frames = batch.frames[batch.frames_valid].double()
    np.testing.assert_allclose(frames.mean(dim=0), np.zeros(5), atol=1e-5)
    np.testing.assert_allclose(frames.std(dim=0, correction=0), np.ones(5), atol=1e-5)
    shifted = [None if f is None else f + i for i, f in enumerate(data.frames)]  # other people
    other = make(frames=shifted, frame_reference=reference).standardised(data.scaling)
    pair = (each.batch([0, 2, 5]).frames for each in (other, data))
    np.testing.assert_allclose(*pair, atol=1e-4)
    scaled = data.scaled("frames", data.frames[5])
    np.testing.assert_allclose(scaled, batch.frames[5][:4], atol=1e-5)
    constant = FeatureSet.from_arrays("ab", text=np.full((2, 3), 7.0))
    assert (constant.standardised(constant.moments()).batch([0, 1]).text == 0).all()
    with pytest.raises(ValueError, match="moments"):
        make().standardised(constant.moments())


def test_parts_and_views_and_a_fingerprint_that_changes_with_any_content():
    data = make(names=("calm", "loud"))
    mask = data.present.all(axis=1)
    for part in (data.select(mask), data.select(np.flatnonzero(mask))):
        assert part.ids == [i for i in data.ids if i not in ("00002", "00004")]
        np.testing.assert_array_equal(part.text, data.text[mask])
        np.testing.assert_array_equal(part.target, data.target[mask])
        np.testing.assert_array_equal(part.frames[2], data.frames[3])
    assert len(data.select([])) == 0
    scaled = data.standardised(data.moments())
    whole, part = scaled.batch([9]), scaled.select([9, 3]).batch([0])
    assert torch.equal(whole.audio, part.audio)
    words = data.only("text")
    assert (words.frames, words.audio, words.dims) == (None, None, {"text": 6})
    assert not words.present[:, :2].any()
    assert words.batch([0, 1]).frames is None
    others = data.with_target(data.target[:, ::-1])
    np.testing.assert_array_equal(others.batch([3]).target, data.batch([3]).target.flip(1))
    for view in (words, others, scaled, data.select(mask)):
        assert view.targets == ("calm", "loud")
    for wrong in ({"smell"}, {"frames"}):
        with pytest.raises(ValueError, match="expected"):
            words.only(*wrong)
    data = make()
    moments = data.moments()
    audio, text = [None if a is None else a.copy() for a in data.audio], data.text.copy()
    audio[3][0, 0] += 1
    text[0, 0] += 1
    other = moments | {"audio": (moments["audio"][0] + 1, moments["audio"][1])}
    changes = [{"audio": audio}, {"text": text}, {"target": data.target + 1e-9}]
    changes += [{"ids": "abcdefghij"}, {"names": ("a", "b")}, {"frame_reference": "first"}]
    variants = [data, *(make(**change) for change in changes), data.only("text")]
    variants += [data.standardised(moments), data.standardised(other), data.select([9, *range(9)])]
    assert len({v.fingerprint() for v in variants}) == len(variants)
    assert make().fingerprint() == data.fingerprint()


def test_rows_of_a_store_are_read_a_batch_at_a_time_and_padded_arrays_without_padding(tmp_path):
    plain, columns = make(), {}
    for name in ("frames", "audio"):
        write_shard(tmp_path / name, plain.ids, list(getattr(plain, name)))
        columns[name] = Rows(Store([tmp_path / name]), plain.ids)
    stored = make(**columns)
    assert stored.frames is columns["frames"]
    assert stored.fingerprint() == plain.fingerprint()
    order = [9, 2, 0]
    for data in (stored.select(order), pickle.loads(pickle.dumps(stored)).select(order)):
        batch, expected = data.batch([0, 1, 2]), plain.batch(order)
        for name in ("frames", "audio", "present"):
            assert torch.equal(getattr(batch, name), getattr(expected, name))
    data, padded = make(), {}
    batch = data.batch(range(10))
    for name in ("frames", "audio"):
        padded[f"{name}_valid"] = valid = getattr(batch, f"{name}_valid")
        padded[name] = getattr(batch, name).masked_fill(~valid[..., None], np.nan).numpy()
    again = make(**padded)
    assert again.frames[2] is None
    for name, tensor in batch.inputs().items():
        assert torch.equal(again.batch(range(10)).inputs()[name], tensor)


BAD_TEXT = np.where(np.arange(60).reshape(10, 6) == 7, np.inf, 1.0)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"frames": [np.zeros((2, 3))]}, "10 ids, got 1"),
        ({"audio": [np.zeros((2, 4))] * 9 + [np.zeros((2, 3))]}, r"audio\[9\].* width 4"),
        ({"audio": [np.full((2, 4), np.inf)] * 10}, "finite"),
        ({"audio_valid": [[True] * 9] * 9}, "audio_valid: .*10 ids, got 9"),
        ({"audio": [np.zeros((2, 4), int)] * 10}, "float"),
        ({"text": BAD_TEXT}, "'00001'"),
        ({"target": np.full((10, 2), np.nan)}, "finite"),
        ({"names": ["one"]}, "names"),
        ({"frame_reference": "last"}, "frame_reference: expected one of"),
        ({"frames": None, "audio": None, "text": None}, "at least one of"),
    ],
)
def test_bad_arrays_are_refused_in_one_sentence(changes, word):
    with pytest.raises(ValueError, match=word) as error:
        make(**changes)
    assert "\n" not in str(error.value)


def test_a_batch_of_media_is_that_of_features_with_waveforms_and_tokens():
    draw = np.random.default_rng(0)
    waveforms = [draw.normal(0, 999, 400 + 50 * i).astype(np.int16) for i in range(10)]
    waveforms[5] = None
    mask = (np.arange(8) < np.arange(1, 11)[:, None] % 7).astype(int)
    tokens = {"input_ids": draw.integers(1, 50, (10, 8)), "attention_mask": mask}
    data, rows = MediaSet.of(make(), waveforms, tokens, {}), [3, 0, 5, 4]
    batch, plain = data.batch(rows, "cpu"), make().batch(rows)
    for name in ("frames", "frames_valid", "present", "target", "index"):
        assert torch.equal(getattr(batch, name), getattr(plain, name))
    assert batch.waveform.shape == batch.waveform_valid.shape == (4, 600)
    for position, row in enumerate(rows):
        expected = np.zeros(1) if row == 5 else waveforms[row]
        real = batch.waveform_valid[position]
        np.testing.assert_array_equal(batch.waveform[position, real] * 32768, expected)
        assert (batch.waveform[position, ~real] == 0).all()
    assert batch.input_ids.shape == batch.attention_mask.shape == (4, 6)
    np.testing.assert_array_equal(batch.input_ids, tokens["input_ids"][rows, :6])
    assert set(batch.inputs()) >= {"waveform", "waveform_valid", "tokens", "present"}
    part = data.select(rows).batch([1, 3])
    assert torch.equal(part.waveform, data.batch([0, 4]).waveform)
    assert torch.equal(part.input_ids, data.batch([0, 4]).input_ids)
    assert data.only(*MODALITIES) is data
    words = data.only("text")
    assert words.dims == data.dims, "the encoders of the others stay"
    assert not words.present[:, :2].any()
    assert torch.equal(words.batch(rows).input_ids, batch.input_ids)
    assert (words.batch(rows).waveform == 0).all()
    np.testing.assert_array_equal(data.only("audio").present[:, 1:], data.present[:, 1:] & [1, 0])
