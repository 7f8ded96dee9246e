"""Clips for a model that has its audio network and text encoder inside: waveforms and tokens.

Dimension key: N clips, B clips of a batch, S samples, L tokens.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from emilib import MODALITIES
from emilib.features.encoders import padded
from emilib.features.feature_set import Batch, FeatureSet


@dataclasses.dataclass(kw_only=True)
class MediaBatch(Batch):
    """Clips padded to the longest of them; audio and text are None."""

    waveform: torch.Tensor  # (B, S)
    waveform_valid: torch.Tensor  # (B, S) bool
    input_ids: torch.Tensor  # (B, L) long
    attention_mask: torch.Tensor  # (B, L) long

    def inputs(self) -> dict:
        """The arguments of `models.end_to_end.EndToEnd`."""
        names = ("frames", "frames_valid", "waveform", "waveform_valid", "present")
        tokens = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return {**{name: getattr(self, name) for name in names}, "tokens": tokens}


@dataclasses.dataclass(repr=False, eq=False, kw_only=True)
class MediaSet(FeatureSet):
    """A `FeatureSet` of N clips with waveforms and tokens for the encoders that will be inside.

    Targets, frames, and which clip has what are those of the features.

    waveforms : (S,) int16 at 16 kHz or None, one a clip
    input_ids, attention_mask : (N, L), L at least 1
    encoders : the origin of the audio network and the text encoder, by "audio" and "text":
        settings of `loading.pretrained` with their "checkpoint"
    """

    waveforms: Sequence
    input_ids: np.ndarray
    attention_mask: np.ndarray
    encoders: Mapping[str, Mapping]

    per_clip = (*FeatureSet.per_clip, "waveforms", "input_ids", "attention_mask")

    @classmethod
    def of(cls, features: FeatureSet, waveforms, tokens: Mapping, encoders) -> "MediaSet":
        """The clips of `features`, with `tokens` as of `TextEncoder.tokens`."""
        values = {f.name: getattr(features, f.name) for f in dataclasses.fields(features)}
        media = {"waveforms": waveforms, "encoders": encoders}
        return cls(**values, **media, **{name: np.asarray(ids) for name, ids in tokens.items()})

    def only(self, *modalities: str) -> "MediaSet":
        """The set itself: a model with encoders inside takes all three modalities."""
        if set(modalities) != set(MODALITIES):
            raise ValueError(f"expected all of {MODALITIES}, got {modalities}")
        return self

    def batch(self, indices, device=None) -> MediaBatch:
        """The clips at `indices` on `device`. A clip without audio is a single zero."""
        plain = dataclasses.replace(super().batch(indices), audio=None, audio_valid=None, text=None)
        silent = np.zeros(1, np.int16)
        heard = [self.waveforms[i] if self.present[i, 1] else None for i in indices]
        sounds = [torch.from_numpy(silent if s is None else s).float() / 32768 for s in heard]
        waveform, valid = padded(sounds)
        mask = torch.from_numpy(self.attention_mask[indices])
        used = max(1, int(mask.sum(dim=1).max()))
        return MediaBatch(
            **vars(plain),
            waveform=waveform,
            waveform_valid=valid,
            input_ids=torch.from_numpy(self.input_ids[indices])[:, :used],
            attention_mask=mask[:, :used],
        ).to(device)
