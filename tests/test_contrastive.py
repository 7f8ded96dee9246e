"""Stage I of paper A against double loops and Eq. 10."""

import math

import pytest
import torch
from torch import nn

from emilib.models import contrastive
from emilib.models.contrastive import ContrastivePair, contrastive_loss, recall_at

GROUPS = torch.tensor([3, 1, 3, 2, 1, 3])


def embeddings(clips=6, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randn(2, clips, width, generator=generator, dtype=torch.float64)
    return nn.functional.normalize(sides, dim=-1).unbind()


def eq1(queries, keys, scale, groups=None):
    """Eq. 1 by two loops; clips of an equal transcript stay out of each other's denominator."""
    total = 0.0
    for i, query in enumerate(queries):
        terms = [torch.exp(scale * (query * key).sum()) for key in keys]
        left = [
            t for j, t in enumerate(terms) if j == i or groups is None or groups[i] != groups[j]
        ]
        total = total - torch.log(terms[i] / sum(left))
    return total / len(queries)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("groups", [None, GROUPS])
def test_loss_and_gradient_are_those_of_a_double_loop(symmetric, groups):
    leaves = [*embeddings(), torch.tensor(9.0, dtype=torch.float64)]
    media, text, scale = leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    loss = contrastive_loss(*leaves, symmetric=symmetric, same_text=groups)
    expected = eq1(media, text, scale, groups)
    if symmetric:
        expected = (expected + eq1(text, media, scale, groups)) / 2
    torch.testing.assert_close(loss, expected)
    slopes = [torch.autograd.grad(value, leaves) for value in (loss, expected)]
    torch.testing.assert_close(*slopes)


def test_loss_does_not_lose_precision_under_autocast():
    media, text = (side.float() for side in embeddings(64, 32))
    exact = contrastive_loss(media, text, 100.0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(contrastive_loss(media, text, 100.0), exact)


def test_text_groups_ignore_case_and_spacing_only():
    groups = contrastive.text_groups(["Well done!", " well  DONE!", "well done", "", "  "])
    kinds = torch.tensor([0, 0, 1, 2, 2])
    assert torch.equal(groups[:, None] == groups, kinds[:, None] == kinds)


def test_pair_pools_projects_and_normalises():
    torch.manual_seed(0)
    pair = ContrastivePair(6, 5, width=4, segments=2)
    states, valid = torch.randn(2, 6, 6), torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    states[1, 3:] = torch.nan
    media, text, scale = pair(states, torch.randn(2, 5), valid)
    # Clip 1 has three steps in two segments: steps 0 and 1, and step 2.
    pooled = torch.stack([states[0].mean(0), (states[1, :2].mean(0) + states[1, 2]) / 2])
    expected = pooled @ pair.media_head.weight.T
    torch.testing.assert_close(media, expected / expected.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(scale, torch.tensor(1 / 0.07))
    torch.testing.assert_close(pair(pooled, torch.randn(2, 5))[0], media)  # pooled before
    change = ContrastivePair(6, 5, width=4, segments=2, reference="first")
    change.load_state_dict(pair.state_dict())
    expected = (pooled - states[:, 0]) @ pair.media_head.weight.T
    got = change(states, torch.randn(2, 5), valid)[0]
    with pytest.raises(ValueError, match="expected reference as one of"):
        ContrastivePair(6, 5, reference="mean")
    torch.testing.assert_close(got, expected / expected.norm(dim=-1, keepdim=True))
    with pytest.raises(ValueError, match="real step in every clip"):
        pair(states, torch.randn(2, 5), valid & valid[:, 3:4])


def test_eq1_to_the_letter_is_a_dot_product_at_a_fixed_temperature():
    settings = {"learn_temperature": False, "cosine": False, "width": None, "temperature": 0.5}
    media, text = embeddings()
    pair = ContrastivePair(4, 4, **settings).double()
    assert [p.requires_grad for p in pair.parameters()] == [False]
    embedded = pair(2 * media, 3 * text)
    loss = contrastive_loss(*embedded, symmetric=False)
    torch.testing.assert_close(loss, eq1(2 * media, 3 * text, torch.tensor(2.0)))
    with pytest.raises(ValueError, match="got 1024 and 768"):
        ContrastivePair(1024, 768, width=None)


def test_scale_is_bounded_and_can_come_back():
    pair = ContrastivePair(6, 5)
    pair.log_scale.data.fill_(20.0)
    pair.logit_scale.backward()
    torch.testing.assert_close(pair.logit_scale, torch.tensor(100.0))
    assert pair.log_scale.grad > 0


@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_recall_is_that_of_sorted_lists(groups, k):
    media, text = embeddings(seed=3)
    hits = 0
    for i in range(6):
        nearest = sorted(range(6), key=lambda j, i=i: -float(text[i] @ media[j]))[:k]
        own = [j for j in range(6) if j == i or (groups is not None and groups[i] == groups[j])]
        hits += any(j in own for j in nearest)
    assert recall_at(media, text, k, groups) == pytest.approx(hits / 6)
    same = torch.ones(5, 3) / math.sqrt(3)
    assert recall_at(same, same, 4) == 0, "collapsed"
