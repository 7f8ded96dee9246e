import numpy as np
import pytest
import torch

from emilib.features import FeatureSet


def make(count=10, seed=0, **changes):
    rng = np.random.default_rng(seed)
    arrays = {
        "ids": [f"{i:05d}" for i in range(count)],
        "frames": [rng.normal(size=(3 + i % 4, 5)).astype(np.float32) for i in range(count)],
        "audio": [rng.normal(size=(9 + i, 4)).astype(np.float16) for i in range(count)],
        "text": rng.normal(size=(count, 6)).astype(np.float32),
        "target": rng.uniform(size=(count, 2)),
    }
    arrays["frames"][2] = None
    arrays["text"][4] = np.nan
    return FeatureSet.from_arrays(**{**arrays, **changes})


def test_present_tells_what_each_clip_has():
    data = make()
    expected = np.ones((10, 3), bool)
    expected[2, 0] = expected[4, 2] = False
    assert (data.present == expected).all()
    assert data.dims == {"frames": 5, "audio": 4, "text": 6}
    assert data.num_targets == 2
    assert len(data) == 10


def test_a_batch_holds_the_arrays_and_zeros_elsewhere():
    data = make()
    batch = next(data.batches(10))
    for row in range(10):
        for name in ("frames", "audio"):
            values, valid = getattr(batch, name)[row], getattr(batch, f"{name}_valid")[row]
            array = getattr(data, name)[row]
            steps = 0 if array is None else len(array)
            assert valid.tolist() == [True] * steps + [False] * (len(valid) - steps)
            assert (values[steps:] == 0).all()
            if steps:
                assert np.array_equal(values[:steps].numpy(), array.astype(np.float32))
    assert (batch.text[4] == 0).all()
    assert torch.equal(batch.present, torch.from_numpy(data.present))
    assert np.allclose(batch.target.numpy(), data.target)
    assert set(batch.inputs()) == {
        "frames", "audio", "text", "frames_valid", "audio_valid", "present"
    }  # fmt: skip


def test_a_batch_without_any_frame_has_one_empty_step():
    batch = make().select([2]).batch(np.array([0]))
    assert batch.frames.shape == (1, 1, 5)
    assert not batch.frames_valid.any()


@pytest.mark.parametrize("bucket", [True, False])
def test_shuffled_batches_hold_every_clip_once(bucket):
    data = make(23)
    generator = torch.Generator().manual_seed(1)
    orders = []
    for _ in range(2):
        batches = list(data.batches(4, shuffle=True, generator=generator, bucket=bucket))
        order = torch.cat([b.index for b in batches]).tolist()
        assert sorted(order) == list(range(23))
        orders.append(order)
    assert orders[0] != orders[1]
    generator.manual_seed(1)
    again = [b.index for b in data.batches(4, shuffle=True, generator=generator, bucket=bucket)]
    assert torch.cat(again).tolist() == orders[0]


def test_unshuffled_batches_keep_the_order():
    assert torch.cat([b.index for b in make(7).batches(3)]).tolist() == list(range(7))


def test_buckets_pad_less():
    rng = np.random.default_rng(0)
    audio = [np.ones((int(n), 2), np.float32) for n in rng.integers(10, 600, 200)]
    data = FeatureSet.from_arrays(range(200), audio=audio)

    def padded(bucket):
        generator = torch.Generator().manual_seed(0)
        batches = data.batches(16, shuffle=True, generator=generator, bucket=bucket)
        return sum(b.audio_valid.numel() for b in batches)

    assert padded(True) < 0.75 * padded(False)


def test_select_and_only():
    data = make()
    part = data.select(data.present.all(axis=1))
    assert part.ids == [i for i in data.ids if i not in ("00002", "00004")]
    assert np.array_equal(part.text, data.text[[0, 1, 3, 5, 6, 7, 8, 9]])
    assert len(data.select([])) == 0
    words = data.only("text")
    assert words.frames is None
    assert words.dims == {"text": 6}
    assert words.batch(np.arange(2)).frames is None
    assert not words.present[:, :2].any()


def test_standardised_columns_have_mean_0_and_deviation_1_over_real_steps():
    data = make()
    scaled = data.standardised(data.moments())
    for name in ("frames", "audio"):
        rows = np.concatenate([a for a in getattr(scaled, name) if a is not None])
        np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(rows.std(axis=0), 1, atol=1e-4)
    np.testing.assert_allclose(np.nanmean(scaled.text, axis=0), 0, atol=1e-5)
    assert (scaled.present == data.present).all()
    other = make(seed=1).standardised(data.moments())
    mean, spread = data.moments()["audio"]
    wanted = (make(seed=1).audio[0].astype(float) - mean) / spread
    np.testing.assert_allclose(other.audio[0], wanted, rtol=1e-5)
    constant = FeatureSet.from_arrays("ab", text=np.ones((2, 3)))
    assert (constant.standardised(constant.moments()).text == 0).all()
    with pytest.raises(ValueError, match="lacks"):
        data.standardised(constant.moments())


def test_fingerprint_changes_with_any_content():
    data = make()
    assert data.fingerprint() == make().fingerprint()
    audio = [a.copy() for a in data.audio]
    audio[3][0, 0] += 1
    assert make(audio=audio).fingerprint() != data.fingerprint()
    assert make(target=data.target + 1e-9).fingerprint() != data.fingerprint()
    assert make(ids=[f"x{i}" for i in range(10)]).fingerprint() != data.fingerprint()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": [np.zeros((2, 3))]}, "one array a clip"),
        ({"frames": [np.zeros(3)] * 10}, r"\(T, D\)"),
        ({"audio": [np.zeros((2, 3))] * 9 + [np.zeros((2, 4))]}, "expected width 3"),
        ({"audio": [np.full((2, 3), np.nan)] * 10}, "NaN"),
        ({"audio": [np.zeros((2, 3), int)] * 10}, "float"),
        ({"text": np.zeros((9, 4))}, "one row an id"),
        ({"text": np.array([[np.nan, 1.0]] * 10)}, "NaN or infinite in part"),
        ({"target": np.full((10, 2), np.nan)}, "expected finite numbers"),
        ({"frames": None, "audio": None, "text": None}, "at least one of"),
    ],
)
def test_bad_arrays_are_refused_in_one_sentence(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        make(**changes)
    assert "\n" not in str(caught.value)
