"""Features of clips as ragged arrays, and the padded, masked batches models take.

Dimension key: N clips, B clips of a batch, T steps, D width, E targets.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ..corpus.layout import EMOTIONS

MODALITIES = ("frames", "audio", "text")


def target_names(count: int) -> tuple[str, ...]:
    """Names of targets that nobody has named: six are the emotions, others are numbered."""
    return EMOTIONS if count == len(EMOTIONS) else tuple(f"target {i}" for i in range(count))


@dataclasses.dataclass
class Batch:
    """Clips padded to the longest of them. A modality the set lacks altogether is None."""

    frames: torch.Tensor | None  # (B, T, D)
    frames_valid: torch.Tensor | None  # (B, T) bool, True = real
    audio: torch.Tensor | None  # (B, T, D)
    audio_valid: torch.Tensor | None  # (B, T) bool, True = real
    text: torch.Tensor | None  # (B, D), zeros where missing
    present: torch.Tensor  # (B, 3) bool in the order of MODALITIES
    target: torch.Tensor | None  # (B, E)
    index: torch.Tensor  # (B,) long, position in the set

    def inputs(self) -> dict:
        """The six arguments every model is called with."""
        names = ("frames", "audio", "text", "frames_valid", "audio_valid", "present")
        return {name: getattr(self, name) for name in names}

    def __len__(self):
        return len(self.index)


def _sequences(name: str, arrays, count: int, width: int):
    """Check a list of (T, D) arrays or None; returns it as float arrays of one width.

    width : D where it is known, 0 where the first array says it
    """
    if arrays is None:
        return None, 0
    if len(arrays) != count:
        raise ValueError(
            f"{name}: expected one array a clip, {count} for the {count} ids, came {len(arrays)}"
        )
    checked = []
    for position, array in enumerate(arrays):
        if array is None:
            checked.append(None)
            continue
        array = np.asarray(array)
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
            raise ValueError(
                f"{name}[{position}]: expected a (T, D) float array or None, "
                f"came {array.dtype} of shape {array.shape}"
            )
        if width and array.shape[1] != width:
            raise ValueError(
                f"{name}[{position}]: expected width {width} like the other clips, "
                f"came {array.shape[1]}; one set holds features of one encoder"
            )
        width = array.shape[1]
        if not np.isfinite(array).all():
            raise ValueError(
                f"{name}[{position}]: expected finite features, came NaN or infinity; "
                "give None for a clip without this modality"
            )
        checked.append(array if len(array) else None)  # no step at all = not there
    if width == 0:
        return None, 0
    return checked, width


def _pad(arrays: Sequence, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T, D) zeros-padded values and (B, T) bool; T is at least 1."""
    lengths = [0 if a is None else len(a) for a in arrays]
    steps = max(1, *lengths) if lengths else 1
    values = np.zeros((len(arrays), steps, dim), np.float32)
    for row, array in enumerate(arrays):
        if array is not None:
            values[row, : len(array)] = array
    valid = np.arange(steps) < np.array(lengths)[:, None]
    return torch.from_numpy(values), torch.from_numpy(valid)


class FeatureSet:
    """Features and targets of N clips, of any width, from this project's encoders or not.

    Build one with `from_arrays`. `present` (N, 3) bool says which of frames, audio and text each
    clip has; `dims` gives the width of each modality the set has.
    """

    def __init__(self, ids, frames, audio, text, target, dims, names=None):
        self.ids = ids
        self.names = None if names is None else tuple(names)
        self.frames = frames
        self.audio = audio
        self.text = text
        self.target = target
        self.dims = dims
        count = len(ids)
        here = np.zeros((count, 3), bool)
        for column, sequences in enumerate((frames, audio)):
            if sequences is not None:
                here[:, column] = [a is not None for a in sequences]
        if text is not None:
            here[:, 2] = ~np.isnan(text).any(axis=1)
        self.present = here

    @classmethod
    def from_arrays(
        cls, ids, frames=None, audio=None, text=None, target=None, names=None, dims=None
    ) -> "FeatureSet":
        """A set from plain arrays.

        ids : N names
        frames, audio : one (T, D) float array a clip, None where the clip lacks it; or None
        text : (N, D) float, a row of NaN where the clip has no words; or None
        target : (N, E) float, in any range; or None
        names : of the E targets; None: see `target_names`
        dims : widths of the modalities, as of another set's `dims`; then all clips may lack one

        Raises ValueError when the numbers of clips or the widths disagree, when all modalities
        are missing, or when a feature or target is not finite.
        """
        ids = [str(i) for i in ids]
        known = dims or {}
        frames, frames_dim = _sequences("frames", frames, len(ids), known.get("frames", 0))
        audio, audio_dim = _sequences("audio", audio, len(ids), known.get("audio", 0))
        text, target = _matrix("text", text, len(ids)), _matrix("target", target, len(ids))
        if text is not None:
            missing = np.isnan(text).all(axis=1)
            if not np.isfinite(text[~missing]).all():
                raise ValueError(
                    "text: expected finite rows, or a row that is all NaN for a clip without "
                    "words; came a row that is NaN or infinite in part"
                )
        if target is not None and not np.isfinite(target).all():
            row = int(np.argwhere(~np.isfinite(target))[0, 0])
            raise ValueError(
                f"target: expected finite numbers, came {target[row].tolist()} for clip "
                f"{ids[row]!r}; leave such clips out"
            )
        if frames is None and audio is None and text is None:
            raise ValueError("expected at least one of frames, audio and text, came none")
        if names is not None and target is not None and len(names) != target.shape[1]:
            raise ValueError(
                f"names: expected one for each of {target.shape[1]} targets, came {len(names)}"
            )
        dims = {"frames": frames_dim, "audio": audio_dim}
        dims["text"] = 0 if text is None else text.shape[1]
        dims = {name: dim for name, dim in dims.items() if dim}
        return cls(ids, frames, audio, text, target, dims, names)

    def __len__(self):
        return len(self.ids)

    def __repr__(self):
        widths = ", ".join(f"{name} {dim}" for name, dim in self.dims.items())
        return f"FeatureSet({len(self)} clips: {widths}; {self.num_targets} targets)"

    @property
    def num_targets(self) -> int:
        return 0 if self.target is None else self.target.shape[1]

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets."""
        return target_names(self.num_targets) if self.names is None else self.names

    def with_target(self, target: np.ndarray) -> "FeatureSet":
        """The same clips and features with other numbers (N, E) as targets."""
        return FeatureSet(
            self.ids, self.frames, self.audio, self.text, target, self.dims, self.names
        )

    def select(self, indices) -> "FeatureSet":
        """The clips at `indices` (integers or a bool mask), in that order."""
        indices = np.asarray(indices)
        indices = np.flatnonzero(indices) if indices.dtype == bool else indices.astype(int)

        def pick(values):
            if values is None:
                return None
            return (
                values[indices] if isinstance(values, np.ndarray) else [values[i] for i in indices]
            )

        columns = (pick(v) for v in (self.ids, self.frames, self.audio, self.text, self.target))
        return FeatureSet(*columns, dict(self.dims), self.names)

    def moments(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Mean and standard deviation (D,) of each modality's columns, over all real steps."""
        found = {}
        for name in self.dims:
            if name == "text":
                rows = self.text[self.present[:, 2]]
            else:
                rows = np.concatenate([a for a in getattr(self, name) if a is not None])
            rows = rows.astype(np.float64)
            # A column that never changes is left at its mean, not divided by nothing.
            found[name] = (rows.mean(axis=0), np.where(rows.std(axis=0) > 0, rows.std(axis=0), 1.0))
        return found

    def standardised(self, moments: dict[str, tuple[np.ndarray, np.ndarray]]) -> "FeatureSet":
        """Each column minus a mean, over a standard deviation: those of `moments` of other clips.

        Encoders' features have large constant parts; without this a fusion model spends its
        training on finding where the variation is. Take the moments of the training clips.
        """
        unknown = set(self.dims) - set(moments)
        if unknown:
            raise ValueError(
                f"standardised: expected moments of {sorted(self.dims)}, lacks {unknown}"
            )

        def scale(name, values):
            mean, spread = moments[name]
            return ((values - mean) / spread).astype(np.float32)

        columns = {
            name: None
            if getattr(self, name) is None
            else [None if a is None else scale(name, a) for a in getattr(self, name)]
            for name in ("frames", "audio")
        }
        text = None if self.text is None else scale("text", self.text)
        return FeatureSet(
            self.ids, columns["frames"], columns["audio"], text, self.target, self.dims, self.names
        )

    def only(self, *modalities: str) -> "FeatureSet":
        """The same clips with only these modalities."""
        unknown = set(modalities) - set(MODALITIES)
        if unknown:
            raise ValueError(f"expected modalities among {MODALITIES}, came {sorted(unknown)}")
        kept = {m: getattr(self, m) if m in modalities else None for m in MODALITIES}
        dims = {m: d for m, d in self.dims.items() if m in modalities}
        if not dims:
            raise ValueError(f"the set has none of {modalities}; it has {sorted(self.dims)}")
        return FeatureSet(
            self.ids, kept["frames"], kept["audio"], kept["text"], self.target, dims, self.names
        )

    def fingerprint(self) -> str:
        """Hex digest of ids, features and targets: equal for equal content."""
        digest = hashlib.sha256()

        def add(array):
            digest.update(b"none" if array is None else repr(array.shape).encode())
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())

        digest.update("\0".join(self.ids).encode())
        for sequences in (self.frames, self.audio):
            for array in sequences or ():
                add(array)
        add(self.text)
        add(self.target)
        if self.names not in (None, EMOTIONS):
            digest.update("\0".join(self.names).encode())
        return digest.hexdigest()[:32]

    def lengths(self) -> np.ndarray:
        """(N,) steps of the longest sequence of each clip: what a batch is padded to."""
        longest = np.ones(len(self), int)
        for sequences in (self.frames, self.audio):
            if sequences is not None:
                steps = [0 if a is None else len(a) for a in sequences]
                longest = np.maximum(longest, steps)
        return longest

    def batches(
        self, batch_size: int, shuffle=False, generator=None, device=None, bucket=True
    ) -> Iterator[Batch]:
        """The clips as batches of up to `batch_size`.

        shuffle : a new order each time, drawn from `generator` (torch.Generator) where given
        bucket : when shuffling, group clips of similar length (padding a batch to 350 steps in
            place of 600 halves the time of an LSTM); the batches come in random order. Without
            shuffling the clips keep their order.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, came {batch_size}")
        for indices in self._order(batch_size, shuffle, generator, bucket):
            yield self.batch(indices, device)

    def batch(self, indices, device=None) -> Batch:
        """The clips at `indices` as one Batch on `device`."""
        tensors = {}
        for name in ("frames", "audio"):
            sequences, tensors[name], tensors[f"{name}_valid"] = getattr(self, name), None, None
            if sequences is not None:
                padded = _pad([sequences[i] for i in indices], self.dims[name])
                tensors[name], tensors[f"{name}_valid"] = padded
        text = None
        if self.text is not None:
            rows = self.text[indices].astype(np.float32)
            rows[~self.present[indices, 2]] = 0.0
            text = torch.from_numpy(rows)
        target = None
        if self.target is not None:
            target = torch.from_numpy(self.target[indices].astype(np.float32))
        batch = Batch(
            **tensors,
            text=text,
            present=torch.from_numpy(self.present[indices]),
            target=target,
            index=torch.as_tensor(np.asarray(indices), dtype=torch.long),
        )
        if device is not None:
            for field in dataclasses.fields(batch):
                value = getattr(batch, field.name)
                if value is not None:
                    setattr(batch, field.name, value.to(device, non_blocking=True))
        return batch

    def _order(self, batch_size, shuffle, generator, bucket) -> list[np.ndarray]:
        count = len(self)
        if not shuffle:
            return [np.arange(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
        order = torch.randperm(count, generator=generator).numpy()
        if bucket:
            # Sorting within stretches of several batches keeps the draw random while clips of
            # one batch have about one length.
            lengths, stretch = self.lengths(), 8 * batch_size
            pieces = [order[i : i + stretch] for i in range(0, count, stretch)]
            order = np.concatenate([p[np.argsort(lengths[p], kind="stable")] for p in pieces])
        batches = [order[i : i + batch_size] for i in range(0, count, batch_size)]
        if bucket:
            turn = torch.randperm(len(batches), generator=generator).tolist()
            batches = [batches[i] for i in turn]
        return batches


def _matrix(name: str, array, count: int):
    if array is None:
        return None
    array = np.asarray(array, dtype=np.float64 if name == "target" else None)
    if array.ndim != 2 or len(array) != count or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"{name}: expected a ({count}, D) float array, one row an id, "
            f"came {array.dtype} of shape {array.shape}"
        )
    return array


@dataclasses.dataclass
class FeatureSplits:
    """The three partitions of a corpus as features of one kind.

    name : "ours" (encoders of Stage I) or "official" (the organisers' features)
    moments : of the training clips, where the features have been standardised by them
    fingerprint : changes when any feature, id or target does
    """

    train: FeatureSet
    validation: FeatureSet
    test: FeatureSet
    fingerprint: str
    name: str
    moments: dict | None = None
