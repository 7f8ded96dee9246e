"""Features of clips as ragged arrays, and the padded, masked batches models take.

Dimension key: N clips, B clips of a batch, T steps, D width, E targets.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from emilib.corpus.layout import EMOTIONS
from emilib.features.store import Rows

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


def _real_steps(name: str, arrays, valid, count: int):
    """The arrays without the steps where a mask is False; each mask (T,) bool, as its array."""
    if arrays is None or valid is None:
        if valid is not None:
            raise ValueError(f"{name}_valid: expected None where there is no {name}, came masks")
        return arrays
    if not len(arrays) == len(valid) == count:
        raise ValueError(
            f"{name}_valid: expected one mask for each of the {count} clips, came {len(valid)} "
            f"masks for {len(arrays)} arrays"
        )
    kept = []
    for position, (array, mask) in enumerate(zip(arrays, valid, strict=True)):
        array = None if array is None else np.asarray(array)
        mask = None if array is None else np.asarray(mask)
        if array is not None and (mask.dtype != bool or mask.shape != array.shape[:1]):
            raise ValueError(
                f"{name}_valid[{position}]: expected ({len(array)},) bool, True where a step is "
                f"real, came {mask.dtype} of shape {mask.shape}"
            )
        kept.append(None if array is None else array[mask])
    return kept


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
        # What a store holds was looked at when it was made, and may be too much to read again.
        if not isinstance(arrays, Rows) and not np.isfinite(array).all():
            raise ValueError(
                f"{name}[{position}]: expected finite features, came NaN or infinity; "
                "give None for a clip without this modality"
            )
        checked.append(array if len(array) else None)  # no step at all = not there
    if width == 0:
        return None, 0
    return arrays if isinstance(arrays, Rows) else checked, width


class Standardised(Sequence):
    """Clips' (T, D) arrays, each column minus a mean, over a spread, when they are read.

    raw : the arrays as they were, which may lie on a disk; mean, spread : (D,)
    """

    def __init__(self, raw: Sequence, mean: np.ndarray, spread: np.ndarray):
        self.raw, self.mean, self.spread = raw, mean, spread

    def __len__(self):
        return len(self.raw)

    def __getitem__(self, row: int) -> np.ndarray | None:
        array = self.raw[row]
        return None if array is None else ((array - self.mean) / self.spread).astype(np.float32)

    def length(self, row: int) -> int:
        """Steps of a clip, 0 where it has none."""
        return _length(self.raw, row)

    def pick(self, rows: Sequence[int]) -> "Standardised":
        """Some of the clips."""
        return Standardised(_pick(self.raw, rows), self.mean, self.spread)

    def __call__(self, values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """The same of a padded batch (B, T, D) on its device; padding is zero."""
        mean, spread = (
            torch.from_numpy(numbers.astype(np.float32)).to(values.device)
            for numbers in (self.mean, self.spread)
        )
        return ((values - mean) / spread).masked_fill(~valid[..., None], 0.0)


def _length(sequence: Sequence, row: int) -> int:
    """Steps of a clip, 0 for None; without reading it where the sequence knows."""
    if hasattr(sequence, "length"):
        return sequence.length(row)
    return 0 if sequence[row] is None else len(sequence[row])


def _pick(sequence, rows: Sequence[int]):
    if sequence is None or isinstance(sequence, np.ndarray):
        return sequence if sequence is None else sequence[rows]
    if hasattr(sequence, "pick"):
        return sequence.pick(rows)
    return [sequence[row] for row in rows]


def _pad(arrays: Sequence, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T, D) zeros-padded values and (B, T) bool; T is at least 1. Half precision stays half."""
    lengths = [0 if a is None else len(a) for a in arrays]
    steps = max(1, *lengths) if lengths else 1
    half = all(a is None or a.dtype == np.float16 for a in arrays)
    values = np.zeros((len(arrays), steps, dim), np.float16 if half else np.float32)
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
        self._fingerprint: str | None = None
        self._views: dict = {}
        count = len(ids)
        here = np.zeros((count, 3), bool)
        for column, sequences in enumerate((frames, audio)):
            if sequences is not None:
                here[:, column] = [_length(sequences, row) > 0 for row in range(count)]
        if text is not None:
            here[:, 2] = ~np.isnan(text).any(axis=1)
        self.present = here

    @classmethod
    def from_arrays(
        cls,
        ids,
        frames=None,
        audio=None,
        text=None,
        target=None,
        *,
        frames_valid=None,
        audio_valid=None,
        names=None,
        dims=None,
    ) -> "FeatureSet":
        """A set from plain arrays.

        ids : N names
        frames, audio : one (T, D) float array a clip, None where the clip lacks it; or None. One
            padded (N, T, D) array will do, with a mask. `store.Rows` stay on their disk, and are
            read a batch at a time.
        text : (N, D) float, a row of NaN where the clip has no words; or None
        target : (N, E) float, in any range, or (N,) for a single target; or None
        frames_valid, audio_valid : one (T,) bool mask a clip, True where a step is real; other
            steps are left out, and a clip without a real step lacks the modality. None: all are
        names : of the E targets; None: see `target_names`
        dims : widths of the modalities, as of another set's `dims`; then all clips may lack one

        Raises ValueError when the numbers of clips or the widths disagree, when all modalities
        are missing, or when a feature or target is not finite.
        """
        ids = [str(i) for i in ids]
        known = dims or {}
        frames = _real_steps("frames", frames, frames_valid, len(ids))
        audio = _real_steps("audio", audio, audio_valid, len(ids))
        frames, frames_dim = _sequences("frames", frames, len(ids), known.get("frames", 0))
        audio, audio_dim = _sequences("audio", audio, len(ids), known.get("audio", 0))
        if target is not None and np.ndim(target) == 1:
            target = np.asarray(target)[:, None]
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
        if len(ids) and frames is None and audio is None and text is None:
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
        everything = (self.ids, self.frames, self.audio, self.text, self.target)
        columns = (_pick(values, indices) for values in everything)
        return FeatureSet(*columns, dict(self.dims), self.names)

    def moments(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Mean and standard deviation (D,) of each modality's columns, over all real steps."""
        found = {}
        for name in self.dims:
            pieces = getattr(self, name)
            if name == "text":
                pieces = [self.text[self.present[:, 2]]]
            # A clip at a time: all of them may be more than fits into memory.
            count = sum(len(a) for a in pieces if a is not None)
            total = sum(a.sum(axis=0, dtype=np.float64) for a in pieces if a is not None)
            mean = total / count
            squares = sum(((a - mean) ** 2).sum(axis=0) for a in pieces if a is not None)
            spread = np.sqrt(squares / count)
            # A column that never changes is left at its mean, not divided by nothing.
            found[name] = (mean, np.where(spread > 0, spread, 1.0))
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
        columns = {
            name: None if values is None else Standardised(values, *moments[name])
            for name, values in (("frames", self.frames), ("audio", self.audio))
        }
        text = self.text
        if text is not None:
            mean, spread = moments["text"]
            text = ((text - mean) / spread).astype(np.float32)
        rest = {"text": text, "target": self.target, "dims": self.dims, "names": self.names}
        return FeatureSet(self.ids, **columns, **rest)

    def only(self, *modalities: str) -> "FeatureSet":
        """The same clips with only these modalities."""
        unknown = set(modalities) - set(MODALITIES)
        if unknown:
            raise ValueError(f"expected modalities among {MODALITIES}, came {sorted(unknown)}")
        if modalities not in self._views:
            self._views[modalities] = self._view(modalities)
        return self._views[modalities]

    def _view(self, modalities: tuple[str, ...]) -> "FeatureSet":
        kept = {m: getattr(self, m) if m in modalities else None for m in MODALITIES}
        dims = {m: d for m, d in self.dims.items() if m in modalities}
        if not dims and len(self):
            raise ValueError(f"the set has none of {modalities}; it has {sorted(self.dims)}")
        view = FeatureSet(self.ids, **kept, target=self.target, dims=dims, names=self.names)
        if self._fingerprint is not None:
            view.known_as(f"{self._fingerprint} {' '.join(sorted(dims))}")
        return view

    def fingerprint(self) -> str:
        """Hex digest of ids, features and targets: equal for equal content."""
        if self._fingerprint is None:  # reading many gigabytes again for each run would take long
            self._fingerprint = self._digest()
        return self._fingerprint

    def known_as(self, name: str) -> None:
        """Take `name` for the fingerprint, where all that determines the content is in it."""
        self._fingerprint = name

    def _digest(self) -> str:
        digest = hashlib.sha256()

        def add(array):
            digest.update(b"none" if array is None else repr(array.shape).encode())
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())

        digest.update("\0".join(self.ids).encode())
        for sequences in (self.frames, self.audio):
            if isinstance(sequences, Standardised):
                add(sequences.mean)
                add(sequences.spread)
                sequences = sequences.raw
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
                steps = [_length(sequences, row) for row in range(len(self))]
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
        for indices in batch_order(self.lengths(), batch_size, shuffle, generator, bucket):
            yield self.batch(indices, device)

    def batch(self, indices, device=None) -> Batch:
        """The clips at `indices` as one Batch on `device`."""
        tensors = {}
        for name in ("frames", "audio"):
            sequences, tensors[name], tensors[f"{name}_valid"] = getattr(self, name), None, None
            if sequences is not None:
                padded = self._padded(name, sequences, indices, device)
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
        return batch if device is None else to_device(batch, device)

    def _padded(self, name: str, sequences: Sequence, indices, device):
        """Values (B, T, D) float32 and mask of one modality, standardised on the device."""
        raw = sequences.raw if isinstance(sequences, Standardised) else sequences
        values, valid = _pad([raw[i] for i in indices], self.dims[name])
        if device is not None:
            values = values.to(device, non_blocking=True)
            valid = valid.to(device, non_blocking=True)
        values = values.float()
        return (sequences(values, valid) if raw is not sequences else values), valid


def to_device(batch, device):
    """Every tensor of a batch on `device`; the batch itself, changed."""
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if value is not None:
            setattr(batch, field.name, value.to(device, non_blocking=True))
    return batch


def batch_order(lengths, batch_size: int, shuffle, generator, bucket) -> list[np.ndarray]:
    """Positions of the clips of each batch, of N clips of these lengths; see `batches`."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, came {batch_size}")
    count = len(lengths)
    if not shuffle:
        return [np.arange(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
    order = torch.randperm(count, generator=generator).numpy()
    if bucket:
        # Sorting within stretches of several batches keeps the draw random while clips of
        # one batch have about one length.
        stretch = 8 * batch_size
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
