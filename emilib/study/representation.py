"""What representations hold: linear probes of the labels, and what Stage I brought (paper A, 3.3).

A probe has no time axis and learns no representation: what it reaches, the features hold.
Retrieval, alignment, uniformity and neighbours look at clips that Stage I did not train on.

Dimension key: N clips, T steps, D width of an encoder, E emotions, W width of the common space.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.impute import SimpleImputer
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from emilib import MODALITIES
from emilib.features.feature_set import FeatureSet, FeatureSplits
from emilib.metrics import pearson
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
from emilib.training.recipes import StageOne

ALPHAS = np.logspace(-1, 5, 25)  # penalties on standardised columns
GAMMAS = (0.1, 0.3, 1.0)  # inverse widths of the kernel, in units of 1 / D
KERNEL_ALPHAS = (0.3, 1.0, 3.0, 10.0)
RANKS = (1, 5, 10)


def clip_statistics(data: FeatureSet, modality: str) -> np.ndarray:
    """One float64 row a clip, from its steps or its text vector.

    modality : "frames", the mean change since the clip's first frame (N, D), which leaves out
        whose face it is; "audio", mean and standard deviation over time (N, 2 D); "text" (N, D)

    A clip without the modality has a row of NaN. Raises ValueError when the whole set lacks it.
    """
    if modality not in data.dims:
        raise ValueError(f"modality: expected one of {sorted(data.dims)}, got {modality!r}")
    if modality == "text":
        return data.text.astype(np.float64)
    rows = np.full((len(data), (1 + (modality == "audio")) * data.dims[modality]), np.nan)
    for row, steps in enumerate(getattr(data, modality)):
        if steps is not None:
            steps = steps.astype(np.float64)
            change = [(steps - steps[0]).mean(axis=0)]
            moments = [steps.mean(axis=0), steps.std(axis=0)]
            rows[row] = np.concatenate(change if modality == "frames" else moments)
    return rows


def ridge(train_x, train_y, valid_x, valid_y) -> np.ndarray:
    """ρ of each emotion on validation, of a ridge regression fitted on training clips.

    train_x, valid_x : (N, D) float, a row of NaN where a clip lacks the modality
    train_y, valid_y : (N, E) labels

    Columns are standardised by the training clips; a missing row is their mean, so it predicts
    the mean label. Each emotion has its own penalty, by leave-one-out on training clips.
    Returns (E,) float64.
    """
    model = _standardised(RidgeCV(ALPHAS, alpha_per_target=True))
    prediction = model.fit(train_x, train_y).predict(valid_x)
    return pearson(valid_y, prediction.reshape(np.shape(valid_y)))  # a vector for one target


def kernel_ridge(train_x, train_y, valid_x, valid_y) -> np.ndarray:
    """As `ridge`, with a Gaussian kernel: bends are allowed.

    Width and penalty are common to all emotions, by cross-validation on training clips.
    """
    grid = {
        "kernelridge__gamma": [gamma / np.shape(train_x)[1] for gamma in GAMMAS],
        "kernelridge__alpha": list(KERNEL_ALPHAS),
    }
    folds = KFold(3, shuffle=True, random_state=0)
    model = _standardised(KernelRidge(kernel="rbf"))
    search = GridSearchCV(model, grid, scoring="neg_mean_squared_error", cv=folds)
    centred = train_y - np.mean(train_y, axis=0)  # a kernel ridge has no intercept
    prediction = search.fit(train_x, centred).predict(valid_x)
    return pearson(valid_y, prediction.reshape(np.shape(valid_y)))


def _standardised(regression):
    # A column that no training clip has a value for stays, as zeros.
    return make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler(), regression)


def probe(splits: FeatureSplits) -> pd.DataFrame:
    """`ridge` on the `clip_statistics` of each modality the splits have, and on all together.

    Returns a DataFrame with the columns modality ("frames", "audio", "text", "all"), and one an
    emotion.
    """
    train, valid = splits.train, splits.validation
    known = [m for m in MODALITIES if m in train.dims and m in valid.dims]
    columns = [{m: clip_statistics(data, m) for m in known} for data in (train, valid)]
    return _probe_table(ridge, columns, splits)


def ceiling(signals: pd.DataFrame, splits: FeatureSplits) -> pd.DataFrame:
    """What the signals behind a synthetic corpus hold: the most that features could hold of them.

    signals : columns id, then frames_*, audio_*, text_*: what the generator expressed in each
        modality, before it was drawn, spoken or worded
    splits : gives the clips of training and validation and their labels

    Of `ridge` and `kernel_ridge` the better mean ρ on validation counts, which sets the bar
    rather too high than too low. Returns a DataFrame as `probe` does. Raises ValueError where
    clips have no signals.
    """
    rows = signals.set_index(signals["id"].astype(str))
    missing = set(splits.train.ids + splits.validation.ids) - set(rows.index)
    if missing:
        raise ValueError(
            f"signals: expected a row for every clip, {len(missing)} lack one, such as "
            f"{min(missing)}; is the table of this corpus?"
        )
    columns = [
        {m: rows.loc[data.ids].filter(regex=f"^{m}_").to_numpy(float) for m in MODALITIES}
        for data in (splits.train, splits.validation)
    ]

    def better(*data):
        return max((ridge(*data), kernel_ridge(*data)), key=np.mean)

    return _probe_table(better, columns, splits)


def _probe_table(
    regress: Callable, columns: Sequence[Mapping[str, np.ndarray]], splits: FeatureSplits
) -> pd.DataFrame:
    train, valid = (dict(part) for part in columns)
    if len(train) > 1:
        for part in (train, valid):
            part["all"] = np.concatenate(list(part.values()), axis=1)
    labels = splits.train.target, splits.validation.target
    rho = [regress(train[m], labels[0], valid[m], labels[1]) for m in train]
    table = pd.DataFrame(rho, columns=list(splits.train.targets))
    table.insert(0, "modality", list(train))
    return table


# ------------------------------------------------------------------------------------ Stage I


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
    clips = zip(texts, getattr(data, side) or [None] * len(data), strict=True)
    both = [
        (i, text, states) for i, (text, states) in enumerate(clips) if text and states is not None
    ]
    if len(both) < 2:
        raise ValueError(f"expected at least 2 clips with {side} and words, got {len(both)}")
    rows, words, states = zip(*both, strict=True)
    media = [pool_clip(torch.from_numpy(np.float32(s))[None], None, segments) for s in states]
    text = text_encoder.eval()(**text_encoder.tokens(list(words)))
    # Cloned out of inference mode: heads may be trained on them.
    with torch.inference_mode(False):
        groups = text_groups(list(words))
        return Pooled(np.array(rows), torch.cat(media).clone(), text.clone(), groups)


def initial_pair(media_dim: int, text_dim: int, plan: StageOne, seed: int = 0) -> ContrastivePair:
    """The heads as a run of `pretrain` with this seed begins."""
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
    return {f"recall@{k}": recall_at(media, text, k, data.groups) for k in RANKS} | {
        "alignment": alignment(media, text),
        "uniformity media": uniformity(media),
        "uniformity text": uniformity(text),
    }


def chance(groups: Tensor) -> dict[str, float]:
    """recall@k of a random order of the clips: any clip with the same words is a hit."""
    count, shares = len(groups), {}
    own = (groups[:, None] == groups).sum(1).tolist()
    for k in RANKS:  # 1 - the share of choices of k clips that hold no hit
        choices = math.comb(count, min(k, count))
        hits = [1 - math.comb(count - g, k) / choices for g in own]
        shares[f"recall@{k}"] = float(np.mean(hits)) if k <= count else 1.0
    return shares


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
    clear = ~np.isin(labels, ("none", "several"))
    points, labels = points[clear], labels[clear]
    count = len(labels)
    if count < 3:
        return pd.Series({"clips": count, "neighbours": np.nan, "chance": np.nan})
    points = points / np.linalg.norm(points, axis=1, keepdims=True)
    similarity = points @ points.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1)[:, : min(k, count - 1)]
    same = labels[:, None] == labels
    return pd.Series(
        {
            "clips": count,
            "neighbours": float(np.take_along_axis(same, nearest, axis=1).mean()),
            "chance": float(((same.sum(axis=1) - 1) / (count - 1)).mean()),
        }
    )
