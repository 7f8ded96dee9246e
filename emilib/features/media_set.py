"""Clips for a model that has its audio network and text encoder inside: waveforms and tokens.

A `MediaSet` goes where a `FeatureSet` goes: `fit` asks both for the same few things.

Dimension key: N clips, B clips of a batch, S samples, T steps, D width, L tokens, E targets.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from emilib import MODALITIES
from emilib.features.encoders import padded
from emilib.features.feature_set import FeatureSet, batch_order, to_device


@dataclasses.dataclass
class MediaBatch:
    """Clips padded to the longest of them."""

    frames: torch.Tensor  # (B, T, D)
    frames_valid: torch.Tensor  # (B, T) bool
    waveform: torch.Tensor  # (B, S)
    waveform_valid: torch.Tensor  # (B, S) bool
    input_ids: torch.Tensor  # (B, L) long
    attention_mask: torch.Tensor  # (B, L) long
    present: torch.Tensor  # (B, 3) bool: frames, audio, text
    target: torch.Tensor | None  # (B, E)
    index: torch.Tensor  # (B,) long, position in the set

    def inputs(self) -> dict:
        """The arguments of `models.end_to_end.EndToEnd`."""
        names = ("frames", "frames_valid", "waveform", "waveform_valid", "present")
        tokens = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return {**{name: getattr(self, name) for name in names}, "tokens": tokens}

    def __len__(self):
        return len(self.index)


@dataclasses.dataclass(repr=False, eq=False)
class MediaSet:
    """N clips: features of their frames, audio at 16 kHz, and tokens.

    features : the same clips with frames and, for their widths, audio and text of the encoders
        that will be inside; targets come from it
    waveforms : (S,) int16 or None, one a clip
    tokens : "input_ids" and "attention_mask" (N, L), L at least 1
    longest : samples at which a waveform is cut, None keeps all
    encoders : the origin of the audio network and the text encoder, by "audio" and "text":
        settings of `loading.pretrained` with their "checkpoint"
    moments : as of `FeatureSet.moments`, for "audio" and "text"
    """

    features: FeatureSet
    waveforms: Sequence
    tokens: Mapping[str, np.ndarray]
    longest: int | None
    encoders: Mapping[str, Mapping]
    moments: Mapping[str, tuple]

    def __post_init__(self):
        counts = {len(self.features), len(self.waveforms), *map(len, self.tokens.values())}
        if len(counts) != 1:
            raise ValueError(f"expected the same clips in every column, got {sorted(counts)} clips")

    ids = property(lambda self: self.features.ids)
    target = property(lambda self: self.features.target)
    num_targets = property(lambda self: self.features.num_targets)
    targets = property(lambda self: self.features.targets)
    dims = property(lambda self: self.features.dims)
    present = property(lambda self: self.features.present)

    def __len__(self):
        return len(self.features)

    def __repr__(self):
        return f"MediaSet({len(self)} clips; {self.num_targets} targets)"

    def with_target(self, target: np.ndarray) -> "MediaSet":
        """The same clips with other numbers (N, E) as targets."""
        return dataclasses.replace(self, features=self.features.with_target(target))

    def fingerprint(self) -> str:
        """That of the features, which names the encoders and all they read."""
        return f"{self.features.fingerprint()} as media"

    def only(self, *modalities: str) -> "MediaSet":
        """The set itself: a model with encoders inside takes all three modalities."""
        if set(modalities) != set(MODALITIES):
            raise ValueError(f"expected all of {MODALITIES}, got {modalities}")
        return self

    def batches(
        self, batch_size: int, shuffle=False, generator=None, device=None, bucket=True
    ) -> Iterator[MediaBatch]:
        """As `FeatureSet.batches`, in the same order."""
        lengths = self.features.lengths()
        for indices in batch_order(lengths, batch_size, shuffle, generator, bucket):
            yield self.batch(indices, device)

    def batch(self, indices, device=None) -> MediaBatch:
        """The clips at `indices` on `device`. A clip without audio is a single zero."""
        plain = self.features.batch(indices)
        silent = np.zeros(1, np.int16)
        heard = [self.waveforms[i] if self.present[i, 1] else None for i in indices]
        sounds = [silent if sound is None else sound[: self.longest] for sound in heard]
        waveform, valid = padded([torch.from_numpy(sound).float() / 32768 for sound in sounds])
        tokens = {n: torch.from_numpy(np.asarray(ids)[indices]) for n, ids in self.tokens.items()}
        used = max(1, int(tokens["attention_mask"].sum(dim=1).max()))
        shared = ("frames", "frames_valid", "present", "target", "index")
        batch = MediaBatch(
            **{name: getattr(plain, name) for name in shared},
            waveform=waveform,
            waveform_valid=valid,
            **{name: ids[:, :used] for name, ids in tokens.items()},
        )
        return to_device(batch, device)
