"""What Stage I brought, measured: against loops, random orders and data with a known answer."""

import dataclasses

import numpy as np
import pytest
import torch
from test_stage_one import PLAN, WORDS, text

from emilib.features import FeatureSet
from emilib.study import representation


def test_pooled_leaves_out_what_lacks_a_side():
    random = np.random.default_rng(0)
    frames = [random.normal(size=(n, 5)) for n in (1, 4, 9, 20)]
    frames[2] = None
    texts = [WORDS[0], "", WORDS[1], WORDS[0].upper()]
    data = representation.pooled(
        FeatureSet.from_arrays(range(4), frames), "frames", text(), texts, 3
    )
    assert data.rows.tolist() == [0, 3]
    assert data.groups[0] == data.groups[1]  # the same words
    thirds = [part.mean(axis=0) for part in np.split(frames[3], [7, 14])]
    np.testing.assert_allclose(data.media[1], np.mean(thirds, axis=0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="2 clips with frames"):
        representation.pooled(
            FeatureSet.from_arrays(range(4), frames), "frames", text(), [WORDS[0]] + [""] * 3, 3
        )


def test_heads_alone_bring_random_pairs_together():
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(32, 12, generator=generator)
    data = representation.Pooled(
        np.arange(32), both[:, :8], both @ torch.randn(12, 6), torch.arange(32)
    )
    plan = dataclasses.replace(PLAN, epochs=60, cycle_epochs=60, lr_max=1e-2, batch_size=16)
    before = representation.measures(representation.initial_pair(8, 6, plan), data)
    after = representation.measures(representation.fit_heads(data, plan), data)
    assert after["recall@5"] > 2 * before["recall@5"]
    assert after["alignment"] < before["alignment"]


def test_chance_is_that_of_random_orders():
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8])
    random, hits = np.random.default_rng(0), {1: [], 5: [], 10: []}
    for _ in range(4000):
        order = groups.numpy()[random.permutation(12)]
        query = groups.numpy()[random.integers(12)]
        for k, found in hits.items():
            found.append(query in order[:k])
    expected = representation.chance(groups)
    for k, found in hits.items():
        assert expected[f"recall@{k}"] == pytest.approx(np.mean(found), abs=0.03)
    assert representation.chance(torch.arange(3)) == {
        "recall@1": 1 / 3,
        "recall@5": 1.0,
        "recall@10": 1.0,
    }


def test_dominant_emotion():
    target = np.array([[0.0, 0.5, 0.2], [0, 0, 0], [0.4, 0.4, 0.1], [1, 0, 0]])
    assert representation.dominant(target, "abc").tolist() == ["b", "none", "several", "a"]


def test_neighbour_agreement_is_that_of_loops():
    random = np.random.default_rng(0)
    points = random.normal(size=(30, 4))
    labels = random.choice(np.array(["a", "b", "none", "several"], dtype=object), 30)
    kept = [i for i in range(30) if labels[i] in ("a", "b")]
    shares, expected = [], []
    for i in kept:
        others = [j for j in kept if j != i]

        def cosine(j, i=i):
            return points[i] @ points[j] / np.linalg.norm(points[i]) / np.linalg.norm(points[j])

        nearest = sorted(others, key=cosine, reverse=True)[:5]
        shares.append(np.mean([labels[j] == labels[i] for j in nearest]))
        expected.append(np.mean([labels[j] == labels[i] for j in others]))
    result = representation.neighbour_agreement(points, labels, k=5)
    assert result["clips"] == len(kept)
    assert result["neighbours"] == pytest.approx(np.mean(shares))
    assert result["chance"] == pytest.approx(np.mean(expected))
