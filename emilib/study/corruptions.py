"""Features and media that are changed on purpose: a modality missing, noisy, covered or wrong.

Dimension key: T steps, S samples of a waveform or pixels of a side.
"""

import dataclasses
import zlib
from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

from emilib import MODALITIES
from emilib.cache import code_version
from emilib.features.feature_set import FeatureSet, FeatureSplits
from emilib.features.store import Rows

GREY = 128  # of what covers a face
# How a level reads: a share of the clips, of the picture's area for the cover and of its side for
# the blur, of a clip's frames where some are lost.
KINDS = dict.fromkeys(("missing", "covered", "lost to noise", "wrong words"), "{level:.0%}")
KINDS |= {"white noise": "{level:g} dB", "blur": "{level:.1%}"}


@dataclasses.dataclass(frozen=True)
class Corruption:
    """One way to change a modality on purpose: a key of `KINDS`, which says what `level` is."""

    kind: str
    modality: str
    level: float

    def __str__(self):
        return f"{self.modality}, {self.kind} {KINDS[self.kind].format(level=self.level)}"


MISSING = tuple(Corruption("missing", m, share) for m in MODALITIES for share in (0.25, 0.5, 1.0))
_LEVELS = {
    ("white noise", "audio"): (20.0, 10.0, 0.0),
    ("blur", "frames"): (0.03, 0.06),
    ("covered", "frames"): (0.25, 0.5),
    ("lost to noise", "frames"): (0.25, 0.5),
    ("wrong words", "text"): (0.25, 0.5, 1.0),
}
SPOILT = tuple(Corruption(*what, level) for what, levels in _LEVELS.items() for level in levels)


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
    """(S,) int16 with white Gaussian noise, `snr` dB below the whole clip's power, clipped."""
    signal = waveform.astype(np.float64)
    deviation = np.sqrt(np.mean(signal**2) / 10 ** (snr / 10)) if len(signal) else 0.0
    noisy = signal + generator.normal(0.0, deviation, len(signal))
    return np.clip(np.rint(noisy), -32768, 32767).astype(np.int16)


def blurred(frames: np.ndarray, share: float, generator=None) -> np.ndarray:
    """(T, 3, S, S) uint8 through a Gaussian whose deviation is this share of the side S."""
    sigma = share * frames.shape[-1]
    smooth = gaussian_filter(frames.astype(np.float32), (0, 0, sigma, sigma), mode="nearest")
    return np.rint(smooth).astype(np.uint8)


def covered(frames: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """(T, 3, S, S) uint8 with a grey square over this share of the area, at one random place."""
    size = frames.shape[-1]
    side = round(size * np.sqrt(share))
    top, left = generator.integers(0, size - side + 1, 2)
    result = frames.copy()
    result[:, :, top : top + side, left : left + side] = GREY
    return result


def noisy_frames(frames: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """(T, 3, S, S) uint8 of which a share of the frames is noise and nothing else."""
    lost = chosen(len(frames), share, int(generator.integers(2**32)))
    result = frames.copy()
    result[lost] = generator.integers(0, 256, result[lost].shape, dtype=np.uint8)
    return result


def corrupt(corruption: Corruption, id_: str, medium: np.ndarray, seed: int = 0) -> np.ndarray:
    """The frames or the waveform of a clip, corrupted; the draw depends on seed and id alone."""
    generator = np.random.default_rng([seed, zlib.crc32(id_.encode())])
    harm = {"white noise": with_noise, "blur": blurred}
    harm |= {"covered": covered, "lost to noise": noisy_frames}
    return harm[corruption.kind](medium, corruption.level, generator)


def corrupted(
    splits: FeatureSplits, corruption: Corruption, encode: Callable, seed: int = 0
) -> FeatureSet:
    """The validation clips with one modality corrupted, standardised as fusion models get them.

    encode(modality, corrupt, parts) : encoded features by id of the clips whose media went through
        ``corrupt(id, medium)``; `parts` is all that determines `corrupt`
    """
    clean, modality = splits.validation, corruption.modality
    if corruption.kind == "missing":
        return without(clean, modality, corruption.level, seed)
    if corruption.kind == "wrong words":
        return wrong_words(clean, corruption.level, seed)
    parts = {"corruption": corruption, "seed": seed, "code": code_version("study/corruptions.py")}
    encoded = encode(modality, lambda id_, medium: corrupt(corruption, id_, medium, seed), parts)
    return dataclasses.replace(clean, **{modality: Rows(encoded, clean.ids)})
