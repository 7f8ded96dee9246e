"""Small worlds with a dial d, from 0 to 1: when does each mechanism pay, cost or do nothing?"""

import dataclasses
import functools
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from emilib import metrics, models
from emilib.cache import Cache, code_version, share, single_process
from emilib.features.feature_set import FeatureSet
from emilib.models.contrastive import ContrastivePair, contrastive_loss
from emilib.progress import Counter
from emilib.training.loop import fit
from emilib.training.recipes import Recipe
from emilib.workers import one_thread, ordered_map

# Each row is a mechanism in a world where the question has a meaning: two models, one claim.
CLAIMS = pd.read_csv(Path(__file__).with_name("worlds.csv"), dtype=str)
STEPS, KEY = 6, 4  # frames of a clip; width of a key
MISSED = 0.3  # share of the training clips that lack something, where that is seen in training
STAGE_TWO = 12  # times as many epochs on the few labelled clips
SHARING = ("frames", "text")  # what Stage I aligns in `alignment`
SMALL_GAP = 0.01  # a difference in ρ below which nobody needs to care


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the map is. Clips are the same for all seeds; a seed is a start and an order."""

    train: int = 4000
    labelled: int = 200  # of these in the world of Stage I; the others are pairs without a label
    test: int = 4000
    epochs: int = 3
    batch_size: int = 128
    dials: tuple[float, ...] = (0.0, 0.5, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


def selection(draw: np.random.Generator, clips: int, dial: float) -> FeatureSet:
    """The words name a moment: each frame has a key and a value, the text the key of one frame.
    The label is own words + own sound + (1 - d) mean of the values + d the value at that moment,
    the last two scaled to the same variance at every d."""
    frames, key, moment = _moments(draw, clips, dial)
    words, sound = draw.normal(size=(clips, 1)), draw.normal(size=(clips, 2, 1))
    label = words[:, 0] + np.sqrt(2) * sound[:, :, 0].mean(axis=1) + 1.5 * moment
    return _clips(frames, sound, np.hstack([key, words]), label + draw.normal(0, 0.5, clips))


def who_knows(draw: np.random.Generator, clips: int, dial: float) -> FeatureSet:
    """One moment counts. In a share d of the clips the sound has its key, else the words."""
    frames, key, moment = _moments(draw, clips, 1.0)
    heard, other = draw.random((clips, 1)) < dial, _keys(draw, clips)
    text, sound = np.where(heard, other, key), np.where(heard, key, other)
    sound = np.repeat(sound[:, None], 2, axis=1)
    return _clips(frames, sound, text, moment + draw.normal(0, 0.3, clips))


def reliability(draw: np.random.Generator, clips: int, dial: float) -> FeatureSet:
    """All modalities show the same signal in noise, whose size changes and can be read.
    Noise has size 2 exp(1.5 d g), g uniform in [-1, 1], drawn for each third of the frames and of
    the sound and for the words; a second feature is d g itself. At d = 0 all noise is alike."""
    signal = draw.normal(size=(clips, 1, 1))

    def seen(parts: int, steps: int) -> np.ndarray:
        level = dial * np.repeat(draw.uniform(-1, 1, (clips, parts, 1)), steps // parts, axis=1)
        noise = 2 * np.exp(1.5 * level) * draw.normal(size=level.shape)
        return np.concatenate([signal + noise, level], axis=2)

    return _clips(seen(3, STEPS), seen(3, 3), seen(1, 1)[:, 0], signal[:, 0, 0])


def missing(draw: np.random.Generator, clips: int, dial: float) -> FeatureSet:
    """A share d of the clips lacks its words, its sound or its frames, one at random."""
    signal, own = draw.normal(size=(clips, 1)), draw.normal(size=(clips, 3))
    parts = [signal + draw.normal(0, 0.5, (clips, 1)) for _ in range(3)]
    parts = [np.hstack([part, own[:, [i]]]) for i, part in enumerate(parts)]
    frames, sound = (np.repeat(part[:, None], 2, axis=1) for part in parts[:2])
    label = signal[:, 0] + 0.5 * own.sum(axis=1) + draw.normal(0, 0.3, clips)
    gone = np.where(draw.random(clips) < dial, draw.integers(0, 3, clips), -1)
    return _clips(frames, sound, parts[2], label, gone)


def alignment(draw: np.random.Generator, clips: int, dial: float) -> FeatureSet:
    """Frames and words share some factors; a share d of what frames tell of the label is shared.
    The words show the shared factors in noise. The rest of the frames' part of the label is in
    factors that only the frames have, and most of what varies in frames is neither."""
    shared, private, nuisance = (draw.normal(size=(clips, n)) for n in (3, 3, 6))
    fixed = np.random.default_rng(0)  # how factors are mixed is the same for all clips
    mixed = np.hstack([shared, private, 2 * nuisance]) @ fixed.normal(0, 0.3, (12, 24))
    frames = mixed[:, None] + draw.normal(0, 0.3, (clips, 2, 24))
    words = np.hstack([shared + draw.normal(size=shared.shape), draw.normal(size=(clips, 3))])
    label = np.sqrt(dial) * shared.sum(axis=1) + np.sqrt(1 - dial) * private.sum(axis=1)
    text = words @ fixed.normal(0, 0.4, (6, 12))
    return _clips(frames, None, text, label + draw.normal(0, 0.5, clips))


WORLDS = {f.__name__: f for f in (selection, reliability, missing, alignment, who_knows)}
WORLDS["missing, seen"] = missing  # as some of the training clips are


def _keys(draw, *shape) -> np.ndarray:
    """Random vectors of length 2, (*shape, KEY)."""
    vectors = draw.normal(size=(*shape, KEY))
    return 2 * vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _moments(draw, clips: int, dial: float):
    """Frames (N, T, KEY + 1) of keys and values, one frame's key, and what the frames tell (N,)."""
    keys, values = _keys(draw, clips, STEPS), draw.normal(size=(clips, STEPS))
    rows, moment = np.arange(clips), draw.integers(0, STEPS, clips)
    told = (1 - dial) * np.sqrt(STEPS) * values.mean(axis=1) + dial * values[rows, moment]
    told /= np.sqrt((1 - dial) ** 2 + dial**2 + 2 * dial * (1 - dial) / np.sqrt(STEPS))
    return np.concatenate([keys, values[..., None]], axis=2), keys[rows, moment], told


def _clips(frames, sound, text, label, gone=None) -> FeatureSet:
    """The arrays of all clips as a set; gone (N,) is the column of `present` that is missing."""
    gone = np.full(len(label), -1) if gone is None else gone
    text = np.where(gone[:, None] == 2, np.nan, text).astype(np.float32)
    media = [None if x is None else x.astype(np.float32) for x in (frames, sound)]
    for column, x in enumerate(media):
        if x is not None:
            pairs = zip(x, gone == column, strict=True)
            media[column] = [None if lost else row for row, lost in pairs]
    return FeatureSet.from_arrays(range(len(label)), *media, text, label, names=("label",))


@functools.lru_cache(maxsize=8)
def clips_of(world: str, dial: float, count: int, part: str) -> FeatureSet:
    """Clips of a world for "train", "tune" or "test", the same each time."""
    seed = [list(WORLDS).index(world), round(100 * dial), ("train", "tune", "test").index(part)]
    return WORLDS[world](np.random.default_rng(seed), count, dial)


_moments_of = functools.lru_cache(maxsize=2)(FeatureSet.moments)
# The models of CLAIMS: classes of `emilib.models`, what each changes in their sizes, their recipes.
SETTINGS = json.loads(Path(__file__).with_name("worlds.json").read_text("utf-8"))
_CODE = code_version("study/worlds.py", "training/loop.py", "features/feature_set.py", "models")


def encode(pairs: FeatureSet, sets: list, seed: int, size: Size, epochs: int) -> list:
    """`sets` as a linear encoder to 12 numbers a modality sees them, after Stage I on `pairs`."""
    torch.manual_seed(0)
    encoders = torch.nn.ModuleDict({m: torch.nn.Linear(pairs.dims[m], 12) for m in SHARING})
    torch.manual_seed(seed)
    pair = ContrastivePair(12, 12, width=8, segments=1)
    optimizer = torch.optim.AdamW([*encoders.parameters(), *pair.parameters()], 0.01)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in pairs.batches(size.batch_size, shuffle=True, generator=order):
            frames, text = (encoders[m](getattr(batch, m)) for m in SHARING)
            contrastive_loss(*pair(frames, text, batch.frames_valid)).backward()
            optimizer.step()
            optimizer.zero_grad()
    encoders.requires_grad_(False)
    for number, data in enumerate(sets):
        arrays = {m: torch.from_numpy(np.stack(getattr(data, m))) for m in SHARING}
        frames, text = (encoders[m](x).numpy() for m, x in arrays.items())
        sets[number] = FeatureSet.from_arrays(data.ids, frames, None, text, data.target)
    return sets


def train(world: str, dial: float, model: str, seed: int, size: Size) -> dict:
    """Train one model in one world; predictions (N, 1) of the test clips by (model, dial).
    In the worlds of missing modalities the dial is that of the test clips, so one run serves all.
    With "averaged" weights come those that the same run ended with, "no_ema"."""
    dials, epochs, last = [dial], size.epochs, {}
    if world.startswith("missing"):
        dial, dials = (MISSED if world.endswith("seen") else 0.0), size.dials
    sets = [clips_of(world, dial, size.train, "train")]
    sets += [clips_of(world, d, size.test, "test") for d in dials]
    kind, change = SETTINGS["models"][model]
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if world == "alignment":
            few, pretrained = sets[0].select(range(size.labelled)), epochs * (model == "aligned")
            sets = encode(sets[0], [few, *sets[1:]], seed, size, pretrained)
            epochs *= STAGE_TWO
        moments = _moments_of(sets[0])
        sets = [data.standardised(moments) for data in sets]
        net = models.for_features(kind, sets[0], **SETTINGS["sizes"][kind] | change)
    recipe = SETTINGS["recipes"].get(model, SETTINGS["recipes"][kind])
    recipe = Recipe(epochs=epochs, batch_size=size.batch_size, **recipe)

    def keep_last(record):  # as trained, not averaged
        if record["epoch"] == epochs and model == "averaged":
            last.update({name: value.clone() for name, value in net.state_dict().items()})

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel is slower on so few steps
        result = fit(net, sets[0], None, recipe, seed, device="cpu", progress=keep_last)
        test = list(zip(dials, sets[1:], strict=True))
        predictions = {(model, d): result.predict(data, 500) for d, data in test}
        if last:
            net.load_state_dict(last)
            predictions |= {("no_ema", d): result.predict(data, 500) for d, data in test}
    return predictions


def train_once(job: tuple, cache: Cache, size: Size) -> Path:
    """`train` where `cache` has no result of the job yet, on one thread; its folder."""

    def make(folder: Path) -> None:
        with one_thread():
            predictions = train(*job, size)
        arrays = {f"{model} {dial}": rows for (model, dial), rows in predictions.items()}
        np.savez(folder / "predictions.npz", **arrays)

    parts = {"job": job, "size": dataclasses.replace(size, seeds=()), "code": _CODE}
    parts["settings"] = SETTINGS
    with single_process():
        return cache.step("world", parts, make)


def measure(cache: Cache, size: Size | None = None, workers: int | None = None) -> pd.DataFrame:
    """`compare` of all models that CLAIMS names; trains what `cache` lacks."""
    size, jobs, predictions = size or Size(), {}, {}
    for world, *pair in CLAIMS[["world", "first", "second"]].itertuples(index=False):
        dials = [0.0] if world.startswith("missing") else size.dials
        runs = itertools.product([world], dials, [m for m in pair if m != "no_ema"], size.seeds)
        jobs |= dict.fromkeys(runs)
    jobs = sorted(jobs, key=lambda job: job[:2])  # a worker draws the clips of a world once
    run, mine = functools.partial(train_once, cache=cache, size=size), share(jobs)
    progress = Counter("worlds: training runs")
    for done, _ in enumerate(ordered_map(run, mine, workers), 1):
        progress(done, len(mine))
    for job in jobs:
        with np.load(run(job) / "predictions.npz", allow_pickle=False) as stored:
            for name in stored.files:
                model, dial = name.split(" ")
                predictions.setdefault((job[0], float(dial), model), []).append(stored[name])
    return compare(predictions, size)


def compare(predictions: dict, size: Size) -> pd.DataFrame:
    """The difference that each mechanism makes in its worlds, over the dial.

    predictions : one (N, 1) a seed, by (world, dial, model)

    Returns a row a claim and dial: CLAIMS, dial, rho (without the mechanism), value, sd, low and
    high (95 %, paired over clips and seeds), p after Holm's correction over all rows, and verdict:
    "pays" or "costs" if resolved, else "below .01" if the interval is, else "not resolved".
    """

    @functools.cache
    def rho(world: str, dial: float, model: str):
        target = clips_of(world, dial, size.test, "test").target
        return metrics.measure(target, np.stack(predictions[world, dial, model]))

    rows = []
    for claim in CLAIMS.itertuples(index=False):
        for dial in size.dials:
            sides = [rho(claim.world, dial, model) for model in (claim.first, claim.second)]
            (a, drawn_a), (b, drawn_b) = sides
            gap = metrics.summarise(a - b, (drawn_a - drawn_b).mean(axis=1))
            numbers = {name: getattr(gap, name) for name in ("value", "sd", "low", "high", "p")}
            rows.append({**claim._asdict(), "dial": dial, "rho": b.mean(), **numbers})
    table = pd.DataFrame(rows)
    words = metrics.verdict(table["value"], table["p"], 1)
    small = (words == "not resolved") & (table["low"] > -SMALL_GAP) & (table["high"] < SMALL_GAP)
    words = pd.Series(np.where(small, "below .01", words))
    words = words.replace({"as claimed": "pays", "the opposite": "costs"})
    return table.assign(p=metrics.holm(table["p"]), verdict=words)
