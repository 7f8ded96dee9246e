"""Input missing or corrupted on purpose: what it costs models, what papers claim."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter

from emilib import MODALITIES, metrics
from emilib.cache import Cache, code_version, single_process
from emilib.features.feature_set import FeatureSet, FeatureSplits
from emilib.features.store import Rows
from emilib.progress import Counter
from emilib.study.runs import Results
from emilib.training.loop import no_denormals
from emilib.workers import device

# What the papers claim without showing it, and what tests it here: if the claim holds,
# the experiment `first` loses less than `second` under corruptions of these `kinds`.
HYPOTHESES = pd.read_csv(Path(__file__).with_name("hypotheses.csv"), dtype=str)
_CODE = code_version("study/robustness.py")
GREY = 128  # of what covers a face
_TABLE = pd.read_csv(Path(__file__).with_name("corruptions.csv"), dtype=str)
KINDS = dict(zip(_TABLE["kind"], _TABLE["reads"], strict=True))  # how a level reads


@dataclasses.dataclass(frozen=True)
class Corruption:
    """One way to change a modality on purpose: a key of `KINDS`, which says what `level` is."""

    kind: str
    modality: str
    level: float

    def __str__(self):
        return f"{self.modality}, {self.kind} {KINDS[self.kind].format(level=self.level)}"


_LEVELS = [(c, float(level)) for c in _TABLE.itertuples() for level in c.levels.split()]
ALL = [Corruption(c.kind, c.modality, level) for c, level in _LEVELS]
MISSING, SPOILT = (tuple(c for c in ALL if (c.kind == "missing") == gone) for gone in (True, False))


def chosen(count: int, share: float, seed: int = 0) -> np.ndarray:
    """(count,) bool, True for a random share; of one seed a smaller share is part of a larger."""
    mask = np.zeros(count, bool)
    mask[np.random.default_rng(seed).permutation(count)[: round(share * count)]] = True
    return mask


def without(data: FeatureSet, modality: str, share: float = 1.0, seed: int = 0) -> FeatureSet:
    """A share of the clips lacks a modality from now on; its width stays known."""
    gone, values = chosen(len(data), share, seed), getattr(data, modality)
    if modality == "text":
        return dataclasses.replace(data, text=np.where(gone[:, None], np.nan, values))
    values = [None if lost else array for array, lost in zip(values, gone, strict=True)]
    return dataclasses.replace(data, **{modality: values})


def wrong_words(data: FeatureSet, share: float = 1.0, seed: int = 0) -> FeatureSet:
    """A share of the clips that have words gets those of another clip."""
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(data.present[:, 2]))
    wrong, text = chosen(len(rows), share, seed), data.text.copy()
    text[rows[wrong]] = data.text[np.roll(rows, 1)[wrong]]
    return dataclasses.replace(data, text=text)


def with_noise(waveform: np.ndarray, snr: float, generator: np.random.Generator) -> np.ndarray:
    """(T,) int16 with white Gaussian noise, `snr` dB below the whole clip's power, clipped."""
    signal = waveform.astype(np.float64)
    deviation = np.sqrt(np.mean(signal**2) / 10 ** (snr / 10)) if len(signal) else 0.0
    noisy = signal + generator.normal(0.0, deviation, len(signal))
    return np.clip(np.rint(noisy), -32768, 32767).astype(np.int16)


def blurred(frames: np.ndarray, share: float, generator=None) -> np.ndarray:
    """(T, 3, H, W) uint8 through a Gaussian whose deviation is this share of the side."""
    sigma = share * frames.shape[-1]
    smooth = gaussian_filter(frames.astype(np.float32), (0, 0, sigma, sigma), mode="nearest")
    return np.rint(smooth).astype(np.uint8)


def covered(frames: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """(T, 3, H, W) uint8 with a grey square over this share of the area, at one random place."""
    result, size = frames.copy(), frames.shape[-1]
    side = round(size * np.sqrt(share))
    top, left = generator.integers(0, size - side + 1, 2)
    result[:, :, top : top + side, left : left + side] = GREY
    return result


def noisy_frames(frames: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """(T, 3, H, W) uint8 of which a share of the frames is noise and nothing else."""
    lost, result = chosen(len(frames), share, int(generator.integers(2**32))), frames.copy()
    result[lost] = generator.integers(0, 256, result[lost].shape, dtype=np.uint8)
    return result


def corrupt(corruption: Corruption, id_: str, medium: np.ndarray, seed: int = 0) -> np.ndarray:
    """The frames or the waveform of a clip, corrupted; the draw depends on seed and id alone."""
    generator = np.random.default_rng([seed, zlib.crc32(id_.encode())])
    harm = {"white noise": with_noise, "blur": blurred}
    harm |= {"covered": covered, "lost to noise": noisy_frames}
    return harm[corruption.kind](medium, corruption.level, generator)


def corrupted(splits: FeatureSplits, corruption: Corruption, encode, seed: int = 0) -> FeatureSet:
    """The validation clips with one modality corrupted before `encode`, then standardised."""
    clean, modality = splits.validation, corruption.modality
    if corruption.kind == "missing":
        return without(clean, modality, corruption.level, seed)
    if corruption.kind == "wrong words":
        return wrong_words(clean, corruption.level, seed)
    parts = {"corruption": corruption, "seed": seed, "code": _CODE}
    encoded = encode(modality, lambda id_, medium: corrupt(corruption, id_, medium, seed), parts)
    return dataclasses.replace(clean, **{modality: Rows(encoded, clean.ids)})


def intensity_and_weights(model: torch.nn.Module, data: FeatureSet, batch_size: int = 64):
    """Intensities (N, E) of a model, and its quality weights (N, 3), None where it has none.
    A weight (paper A, Eq. 8) is the mean over a clip's segments that have anything; NaN of none."""
    on, intensity, weights = next(model.parameters()).device, [], []
    with torch.inference_mode(), no_denormals():
        for batch in data.batches(batch_size, device=on):
            output = model.eval()(**batch.inputs())
            intensity.append(output.intensity.cpu().numpy())
            if output.weights is not None:
                counts = (output.weights.sum(dim=2) > 0).sum(dim=1, keepdim=True)
                weights.append((output.weights.sum(dim=1) / counts).cpu().numpy())
    return np.concatenate(intensity), np.concatenate(weights) if weights else None


class Measurements:
    """Predictions of experiments on clean and corrupted clips, and what can be read from them.

    intensity, weights, present : (corruption, experiment) → (S, N, E), (S, N, 3) for those that
        have weights, and (N, 3) bool, which modalities the clips then have; None is clean
    """

    def __init__(self, target, intensity: Mapping, weights: Mapping, present: Mapping):
        self.target = target
        self.intensity, self.weights, self.present = intensity, weights, present
        # ρ of each seed (S,), and on each draw of clips, common to all (R, S).
        self._rho = functools.cache(lambda *key: metrics.measure(self.target, self.intensity[key]))

    def rho(self, *terms: tuple[int, Corruption | None, str]) -> metrics.Estimate:
        """Sum of signed ρ, paired over clips and seeds; terms are (sign, corruption, name).
        Of models with different numbers of seeds, the first seeds, which all have."""
        measured = [(sign, *self._rho(*key)) for sign, *key in terms]
        seeds = min(len(each) for _, each, _ in measured)
        each = sum(sign * each[:seeds] for sign, each, _ in measured)
        drawn = sum(sign * drawn[:, :seeds].mean(axis=1) for sign, _, drawn in measured)
        return metrics.summarise(each, drawn, bound=len(terms))

    def weight_change(self, corruption: Corruption, name: str) -> metrics.Estimate:
        """Weight of the corrupted modality minus that before, over clips that have both."""
        column, keys = MODALITIES.index(corruption.modality), ((corruption, name), (None, name))
        both = np.all([self.present[key][:, column] for key in keys], axis=0)
        change = np.subtract(*(self.weights[key][:, both, column] for key in keys))
        rows = np.random.default_rng(0).integers(0, both.sum(), (metrics.RESAMPLES, both.sum()))
        return metrics.summarise(change.mean(axis=1), change.mean(axis=0)[rows].mean(axis=1))


def measure(results: Results, queries: Mapping, validation: Callable, cache: Cache) -> Measurements:
    """Run models on corrupted clips, by `queries` (corruption → names, None first); kept."""

    @functools.cache
    def trained(name: str) -> list[torch.nn.Module]:
        return [results.model(name, seed).to(device()) for seed in results[name].seeds]

    def make(corruption: Corruption | None, names: Sequence[str], folder: Path) -> None:
        arrays = {}
        for name in names:
            experiment = results[name].experiment
            with single_process():  # the other ranks wait for this step, and make no shards of it
                clips = validation(corruption, experiment.features).only(*experiment.modalities)
            outputs = [intensity_and_weights(model, clips) for model in trained(name)]
            intensity, weights = zip(*outputs, strict=True)
            scale, intensity = results[name].scale, np.stack(intensity)
            intensity = intensity if scale is None else scale.inverse_transform(intensity)
            arrays |= {f"intensity {name}": intensity, f"present {name}": clips.present}
            if weights[0] is not None:
                arrays[f"weights {name}"] = np.stack(weights)
        np.savez(folder / "predictions.npz", **arrays)

    progress = Counter("robustness: corruptions")
    measured = {"intensity": {}, "weights": {}, "present": {}}
    for number, (corruption, names) in enumerate(queries.items(), 1):
        runs = {name: [folder.name for folder in results[name].folders] for name in names}
        parts = {"corruption": corruption, "results": runs, "code": _CODE}
        folder = cache.shared_step("robustness", parts, functools.partial(make, corruption, names))
        with np.load(folder / "predictions.npz", allow_pickle=False) as stored:
            for title in stored.files:
                what, name = title.split(" ")
                measured[what][corruption, name] = stored[title]
        progress(number, len(queries))
    return Measurements(results[queries[None][0]].target, **measured)
