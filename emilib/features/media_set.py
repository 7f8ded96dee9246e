"""Clips for a model that has its audio network and text encoder inside: waveforms and tokens.

It goes where a `FeatureSet` goes: `study.fit` asks both for the same few things.

Dimension key: N clips, B clips of a batch, S samples, T steps, D width, L tokens, E targets.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

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
        """The arguments `models.end_to_end.EndToEnd` is called with."""
        names = ("frames", "frames_valid", "waveform", "waveform_valid", "present")
        tokens = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return {**{name: getattr(self, name) for name in names}, "tokens": tokens}

    def __len__(self):
        return len(self.index)


class MediaSet:
    """N clips: features of their frames, sound at 16 kHz, and tokens.

    features : the same clips with frames and, for their widths, audio and text of the encoders
        that will be inside; targets come from it
    waveforms : (S,) int16 or None, one a clip
    tokens : "input_ids" and "attention_mask" (N, L), L at least 1
    longest : samples at which a waveform is cut, None keeps all
    encoders : what the audio network and the text encoder are made from, by "audio" and "text":
        settings of `encoders.pretrained` with their "checkpoint"
    moments : as of `FeatureSet.moments`, for "audio" and "text"
    """

    def __init__(
        self,
        features: FeatureSet,
        waveforms: Sequence,
        tokens: Mapping[str, np.ndarray],
        longest: int | None,
        encoders: Mapping[str, Mapping],
        moments: Mapping[str, tuple],
    ):
        self.features, self.waveforms, self.longest = features, waveforms, longest
        self.tokens = {name: np.asarray(ids) for name, ids in tokens.items()}
        self.encoders, self.moments = dict(encoders), dict(moments)
        counts = {len(features), len(waveforms), *(len(ids) for ids in self.tokens.values())}
        if len(counts) != 1:
            raise ValueError(f"expected the same clips in everything, came {sorted(counts)} clips")

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
        rest = (self.waveforms, self.tokens, self.longest, self.encoders, self.moments)
        return MediaSet(self.features.with_target(target), *rest)

    def fingerprint(self) -> str:
        """That of the features, which name the encoders and all that these read."""
        return f"{self.features.fingerprint()} as media"

    def only(self, *modalities: str) -> "MediaSet":
        """The set itself: a model with encoders inside takes all three modalities."""
        if set(modalities) != {"frames", "audio", "text"}:
            raise ValueError(f"expected all three modalities, came {', '.join(modalities)}")
        return self

    def batches(
        self, batch_size: int, shuffle=False, generator=None, device=None, bucket=True
    ) -> Iterator[MediaBatch]:
        """As `FeatureSet.batches`, in the same order."""
        lengths = self.features.lengths()
        for indices in batch_order(lengths, batch_size, shuffle, generator, bucket):
            yield self.batch(indices, device)

    def batch(self, indices, device=None) -> MediaBatch:
        """The clips at `indices` on `device`."""
        given = self.features.batch(indices)
        sounds = [self._sound(row) for row in indices]
        lengths = torch.tensor([len(sound) for sound in sounds])
        waveform = torch.nn.utils.rnn.pad_sequence(sounds, batch_first=True)
        tokens = {name: torch.from_numpy(ids[indices]) for name, ids in self.tokens.items()}
        used = max(1, int(tokens["attention_mask"].sum(dim=1).max()))
        batch = MediaBatch(
            frames=given.frames,
            frames_valid=given.frames_valid,
            waveform=waveform,
            waveform_valid=torch.arange(waveform.shape[1]) < lengths[:, None],
            **{name: ids[:, :used] for name, ids in tokens.items()},
            present=given.present,
            target=given.target,
            index=given.index,
        )
        return batch if device is None else to_device(batch, device)

    def _sound(self, row: int) -> torch.Tensor:
        """(S,) float; a single zero for a clip without sound, which `present` says."""
        waveform = self.waveforms[row]
        if waveform is None or not self.present[row, 1]:
            return torch.zeros(1)
        return torch.from_numpy(waveform[: self.longest]).float() / 32768
