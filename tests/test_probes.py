import dataclasses

import numpy as np
import pandas as pd
import pytest

from emilib import EMOTIONS
from emilib.features import FeatureSet, FeatureSplits
from emilib.study import representation
from emilib.training import ridge


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _clips(rng, count, weights):
    """Clips whose labels are a linear map of how their frames change; audio says nothing."""
    means = rng.standard_normal((count, 4))
    frames = []
    for mean in means:
        steps = rng.standard_normal((int(rng.integers(2, 9)), 4))
        whose = 5 * rng.standard_normal(4)  # the face at rest, which tells nothing
        frames.append(np.vstack([np.zeros(4), steps - steps.mean(axis=0) + mean]) + whose)
    audio = [rng.standard_normal((5, 3)) for _ in range(count)]
    text = rng.standard_normal((count, 2))
    return FeatureSet.from_arrays(range(count), frames, audio, text, target=means @ weights)


def _splits(rng):
    weights = rng.standard_normal((4, 6))
    train, validation, test = (_clips(rng, n, weights) for n in (80, 50, 4))
    return FeatureSplits(train, validation, test, fingerprint="")


def test_statistics_of_clips_and_ridge_are_their_closed_forms(rng, monkeypatch):
    steps = rng.standard_normal((7, 3))
    words = np.array([[1.0, 2], [3, 4]])
    data = FeatureSet.from_arrays("ab", frames=[steps, None], audio=[steps, None], text=words)
    sound = representation.clip_statistics(data, "audio")
    change = representation.clip_statistics(data, "frames")
    np.testing.assert_allclose(sound[0], [*steps.mean(0), *steps.std(0)], rtol=1e-5)
    moved = steps - steps[0]
    columns = [*moved.mean(0), *moved.std(0), *moved.max(0), *moved.min(0)]
    np.testing.assert_allclose(change[0], columns, rtol=1e-5, atol=1e-6)
    assert np.isnan([*sound[1], *change[1]]).all()
    np.testing.assert_array_equal(representation.clip_statistics(data, "text"), words)
    monkeypatch.setattr(ridge, "ALPHAS", np.array([7.0]))
    x, y = rng.standard_normal((40, 5)) * [1, 10, 0.1, 3, 1] + 4, rng.standard_normal((40, 2))
    valid_x = rng.standard_normal((30, 5))
    z, valid_z = ((a - x.mean(0)) / x.std(0) for a in (x, valid_x))
    weights = np.linalg.solve(z.T @ z + 7 * np.eye(5), z.T @ (y - y.mean(0)))
    expected = valid_z @ weights + y.mean(0)
    np.testing.assert_allclose(representation.ridge(x, y, valid_x), expected, atol=1e-10)


def test_probes_tell_modalities_apart_and_lines_are_ridges_their_sum_and_the_ceiling(rng):
    table = representation.probe(_splits(rng))
    assert table["modality"].tolist() == ["frames", "audio", "text", "all"]
    assert tuple(table.columns[1:]) == EMOTIONS
    mean = table.set_index("modality").mean(axis=1)
    assert mean["frames"] > 0.95
    assert abs(mean["audio"]) < 0.3
    assert abs(mean["text"]) < 0.3
    assert mean["all"] > 0.9
    splits = _splits(rng)
    splits.validation.ids[:], splits.test.ids[:] = (
        [str(start + i) for i in range(n)] for start, n in ((1000, 50), (2000, 4))
    )
    sets = (splits.train, splits.validation, splits.test)
    signals = pd.DataFrame(np.concatenate([s.text for s in sets]), columns=["text_0", "text_1"])
    signals["frames_0"], signals["audio_0"] = rng.standard_normal((2, 134))
    signals.index = [id_ for data in sets for id_ in data.ids]
    lines = representation.lines(splits, signals.sample(frac=1, random_state=0))
    mean, parts = splits.train.target.mean(axis=0), []
    for name in ("frames", "audio", "text"):
        x, *later = (representation.clip_statistics(data, name) for data in sets)
        parts.append(representation.ridge(x, splits.train.target, np.concatenate(later)))
        np.testing.assert_allclose(lines[f"ridge_{name}"], parts[-1])
    np.testing.assert_allclose(lines["ridge_sum"], sum(part - mean for part in parts) + mean)
    np.testing.assert_allclose(lines["ceiling_text"], parts[-1])  # rows are matched by id
    assert lines["ceiling_all"].shape == (54, 6)
    with pytest.raises(KeyError):
        representation.lines(splits, signals.iloc[1:])
    without = representation.lines(dataclasses.replace(splits, test=splits.test.select([])))
    assert set(without) == {f"ridge_{name}" for name in ("frames", "audio", "text", "sum")}
    assert without["ridge_sum"].shape == (50, 6)
