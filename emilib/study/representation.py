"""What Stage I brought, measured: retrieval, alignment and uniformity, neighbours (paper A, 3.3).

All of it looks at clips that Stage I did not train on, and at labels only to describe the result.

Dimension key: N clips, T steps, D width of an encoder, W width of the common space.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emilib.features.feature_set import FeatureSet
from emilib.models.contrastive import (
    ContrastivePair,
    alignment,
    contrastive_loss,
    pool_clip,
    recall_at,
    sgdr,
    text_groups,
    uniformity,
)
from emilib.training.contrastive_pretraining import StageOne

RANKS = (1, 5, 10)


@dataclasses.dataclass
class Pooled:
    """Clips that have both sides, one vector each.

    rows : (N,) positions in the set they come from
    media, text : (N, D) float32, the mean over segments, the encoder's text vector
    groups : (N,) long, equal for equal transcripts
    """

    rows: np.ndarray
    media: Tensor
    text: Tensor
    groups: Tensor

    def __len__(self):
        return len(self.rows)


@torch.inference_mode()
def pooled(
    data: FeatureSet, side: str, text_encoder, texts: Sequence[str], segments: int
) -> Pooled:
    """Pooled features of the clips of `data` that have this side and words.

    data : features of the media encoder, in `data.frames` or `data.audio`
    side : "frames" or "audio"
    text_encoder : the text encoder trained with it
    texts : N transcripts in the order of `data`, "" where there is none

    Raises ValueError when fewer than two clips have both.
    """
    if len(texts) != len(data):
        raise ValueError(f"texts: expected one a clip, {len(data)}, came {len(texts)}")
    states = getattr(data, side)
    rows = [i for i, text in enumerate(texts) if text and states and states[i] is not None]
    if len(rows) < 2:
        raise ValueError(f"expected at least 2 clips with {side} and words, came {len(rows)}")
    media = [pool_clip(torch.from_numpy(np.float32(states[i]))[None], None, segments) for i in rows]
    words = [texts[i] for i in rows]
    text = text_encoder.eval()(**text_encoder.tokens(words))
    # Cloned out of inference mode: heads may be trained on them.
    with torch.inference_mode(False):
        return Pooled(np.array(rows), torch.cat(media).clone(), text.clone(), text_groups(words))


def initial_pair(media_dim: int, text_dim: int, plan: StageOne, seed: int = 0) -> ContrastivePair:
    """The heads as a run of `stage_one.pretrain` with this seed begins."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ContrastivePair(media_dim, text_dim, plan.width, plan.segments).eval()


def fit_heads(data: Pooled, plan: StageOne, seed: int = 0) -> ContrastivePair:
    """Heads trained on frozen encoders' features, with the loss and schedule of Stage I.

    What the same training reaches when it may not touch the encoders. Weight decay, clipping and
    the number of steps are those of Stage I on these clips.
    """
    pair = initial_pair(data.media.shape[1], data.text.shape[1], plan, seed).train()
    generator = torch.Generator().manual_seed(seed)
    size = min(plan.batch_size, len(data))
    optimiser = torch.optim.AdamW(pair.parameters(), plan.lr_max, weight_decay=plan.weight_decay)
    schedule = sgdr(optimiser, len(data) // size, plan.cycle_epochs, plan.lr_min)
    for _ in range(plan.epochs):
        order = torch.randperm(len(data), generator=generator)
        for rows in order[: len(order) // size * size].split(size):
            media, text, scale = pair(data.media[rows], data.text[rows])
            groups = data.groups[rows]
            loss = contrastive_loss(media, text, scale, plan.symmetric, same_text=groups)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(pair.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    return pair.eval()


@torch.inference_mode()
def measures(pair: ContrastivePair, data: Pooled) -> dict[str, float]:
    """recall@k text → clip for k of `RANKS`, alignment and uniformity of both sides."""
    media, text, _ = pair(data.media, data.text)
    found = {f"recall@{k}": recall_at(media, text, k, data.groups) for k in RANKS}
    return found | {
        "alignment": alignment(media, text),
        "uniformity media": uniformity(media),
        "uniformity text": uniformity(text),
    }


def chance(groups: Tensor) -> dict[str, float]:
    """recall@k of a random order of the clips: any clip with the same words is a hit."""
    count = len(groups)
    own = (groups[:, None] == groups).sum(1).tolist()
    return {
        f"recall@{k}": float(
            np.mean([1 - math.comb(count - g, k) / math.comb(count, min(k, count)) for g in own])
            if k <= count
            else 1.0
        )
        for k in RANKS
    }


def dominant(target: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(N,) the emotion with the highest label; "none" for all zeros, "several" where it is tied."""
    highest = target.max(axis=1, keepdims=True)
    winners = (target == highest).sum(axis=1)
    best = np.array(list(names), dtype=object)[target.argmax(axis=1)]
    best[winners > 1] = "several"
    best[highest[:, 0] <= 0] = "none"
    return best


def neighbour_agreement(points: np.ndarray, labels: np.ndarray, k: int = 10) -> pd.Series:
    """Share of the k nearest clips that have the clip's own dominant emotion, and by chance.

    points : (N, W), compared by cosine; labels : (N,) of `dominant`; clips labelled "none" or
        "several" are left out. Returns "clips", "neighbours" and "chance"; NaN for too few clips.
    """
    kept = ~np.isin(labels, ("none", "several"))
    points, labels = points[kept], labels[kept]
    count = len(labels)
    if count < 3:
        return pd.Series({"clips": count, "neighbours": np.nan, "chance": np.nan})
    points = points / np.linalg.norm(points, axis=1, keepdims=True)
    similarity = points @ points.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1)[:, : min(k, count - 1)]
    same = labels[:, None] == labels
    expected = (same.sum(axis=1) - 1) / (count - 1)
    return pd.Series(
        {
            "clips": count,
            "neighbours": float(np.take_along_axis(same, nearest, axis=1).mean()),
            "chance": float(expected.mean()),
        }
    )
