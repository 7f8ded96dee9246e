"""Features of clips as ragged arrays, and the padded, masked batches that models take.

Dimension key: N clips, B clips of a batch, T steps, D width, E targets.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from emilib import EMOTIONS, MODALITIES
from emilib.features.store import Rows


def target_names(count: int) -> tuple[str, ...]:
    """Names of targets without a name: six are the emotions, others are numbered."""
    return EMOTIONS if count == len(EMOTIONS) else tuple(f"target {i}" for i in range(count))


@dataclasses.dataclass(kw_only=True)
class Batch:
    """Clips padded to the longest of them. A modality that the whole set lacks is None."""

    frames: torch.Tensor | None = None  # (B, T, D)
    frames_valid: torch.Tensor | None = None  # (B, T) bool, True = real
    audio: torch.Tensor | None = None  # (B, T, D)
    audio_valid: torch.Tensor | None = None  # (B, T) bool, True = real
    text: torch.Tensor | None = None  # (B, D), zeros where missing
    present: torch.Tensor  # (B, 3) bool in the order of MODALITIES
    target: torch.Tensor | None = None  # (B, E)
    index: torch.Tensor  # (B,) long, position in the set

    def inputs(self) -> dict:
        """The six arguments every model is called with."""
        names = ("frames", "audio", "text", "frames_valid", "audio_valid", "present")
        return {name: getattr(self, name) for name in names}

    def __len__(self):
        return len(self.index)


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

    def transform(self, values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """The same of a padded batch (B, T, D) on its device; padding is zero."""
        mean, spread = (values.new_tensor(numbers) for numbers in (self.mean, self.spread))
        return ((values - mean) / spread).masked_fill(~valid[..., None], 0.0)


@dataclasses.dataclass(repr=False, eq=False)
class FeatureSet:
    """Features and targets of N clips, of any width, from this project's encoders or not.

    Build one with `from_arrays`. `present` (N, 3) bool says which of frames, audio and text each
    clip has; `dims` gives the width of each modality the set has.
    """

    ids: list[str]
    frames: Sequence | None
    audio: Sequence | None
    text: np.ndarray | None
    target: np.ndarray | None
    dims: dict[str, int]
    names: tuple[str, ...] | None = None

    def __post_init__(self):
        self.names = None if self.names is None else tuple(self.names)
        self._fingerprint: str | None = None
        steps = np.zeros((len(self.ids), 3), int)
        for column, sequences in enumerate((self.frames, self.audio)):
            if sequences is not None:
                steps[:, column] = [_length(sequences, row) for row in range(len(self))]
        if self.text is not None:
            steps[:, 2] = ~np.isnan(self.text).any(axis=1)
        self.present = steps > 0
        self._lengths = steps.max(axis=1, initial=1)

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
        ids, widths = [str(i) for i in ids], dict(dims or {})
        frames = _checked_sequences("frames", frames, frames_valid, len(ids), widths)
        audio = _checked_sequences("audio", audio, audio_valid, len(ids), widths)
        text = _checked_matrix("text", text, ids)
        if target is not None and np.ndim(target) == 1:
            target = np.asarray(target)[:, None]
        target = _checked_matrix("target", target, ids)
        if names is not None and target is not None and len(names) != target.shape[1]:
            raise ValueError(
                f"names: expected one for each of {target.shape[1]} targets, got {len(names)}"
            )
        columns = {"frames": frames, "audio": audio, "text": text}
        widths["text"] = 0 if text is None else text.shape[1]
        widths = {m: widths[m] for m in MODALITIES if columns[m] is not None and widths[m]}
        if ids and not widths:
            raise ValueError("expected at least one of frames, audio and text, got none")
        return cls(ids, **columns, target=target, dims=widths, names=names)

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
        return dataclasses.replace(self, target=target)

    def select(self, indices) -> "FeatureSet":
        """The clips at `indices` (integers or a bool mask), in that order."""
        indices = np.asarray(indices)
        indices = np.flatnonzero(indices) if indices.dtype == bool else indices.astype(int)
        names = ("ids", *MODALITIES, "target")
        return dataclasses.replace(self, **{n: _pick(getattr(self, n), indices) for n in names})

    def only(self, *modalities: str) -> "FeatureSet":
        """The same clips with only these modalities."""
        unknown = set(modalities) - set(MODALITIES)
        if unknown:
            raise ValueError(f"expected modalities among {MODALITIES}, got {sorted(unknown)}")
        dims = {m: d for m, d in self.dims.items() if m in modalities}
        if not dims and len(self):
            raise ValueError(f"expected one of {sorted(self.dims)}, got {modalities}")
        others = {m: None for m in MODALITIES if m not in modalities}
        view = dataclasses.replace(self, **others, dims=dims)
        if self._fingerprint is not None:
            view.known_as(f"{self._fingerprint} {' '.join(sorted(dims))}")
        return view

    def moments(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Mean and standard deviation (D,) of each modality's columns, over all real steps."""
        result = {}
        for name in self.dims:
            pieces = [self.text[self.present[:, 2]]] if name == "text" else getattr(self, name)
            # A clip at a time: all of them may be more than fits into memory.
            count = sum(len(a) for a in pieces if a is not None)
            mean = sum(a.sum(axis=0, dtype=np.float64) for a in pieces if a is not None) / count
            squares = sum(((a - mean) ** 2).sum(axis=0) for a in pieces if a is not None)
            spread = np.sqrt(squares / count)
            # A constant column stays at its mean.
            result[name] = (mean, np.where(spread > 0, spread, 1.0))
        return result

    def standardised(self, moments: dict[str, tuple[np.ndarray, np.ndarray]]) -> "FeatureSet":
        """Each column minus a mean, over a standard deviation: those of `moments` of other clips.

        Encoders' features have large constant parts; without this a fusion model spends its
        training on finding where the variation is. Take the moments of the training clips.
        """
        unknown = set(self.dims) - set(moments)
        if unknown:
            raise ValueError(f"expected moments of {sorted(self.dims)}, got none of {unknown}")
        columns = {m: Standardised(getattr(self, m), *moments[m]) for m in self.dims}
        if "text" in columns:
            columns["text"] = columns["text"][:]
        return dataclasses.replace(self, **columns)

    def fingerprint(self) -> str:
        """Hex digest of ids, features and targets: equal for equal content."""
        if self._fingerprint is not None:  # kept: the features may be many gigabytes
            return self._fingerprint
        arrays = []
        for sequences in (self.frames, self.audio):
            if isinstance(sequences, Standardised):
                arrays += [sequences.mean, sequences.spread]
                sequences = sequences.raw
            arrays += sequences or ()
        digest = hashlib.sha256("\0".join(self.ids).encode())
        for array in (*arrays, self.text, self.target):
            digest.update(b"none" if array is None else repr(array.shape).encode())
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        if self.names not in (None, EMOTIONS):
            digest.update("\0".join(self.names).encode())
        self._fingerprint = digest.hexdigest()[:32]
        return self._fingerprint

    def known_as(self, name: str) -> None:
        """Take `name` for the fingerprint, where it contains all that determines the content."""
        self._fingerprint = name

    def lengths(self) -> np.ndarray:
        """(N,) steps of the longest sequence of each clip, at least 1."""
        return self._lengths

    def batches(
        self, batch_size: int, shuffle=False, generator=None, device=None, bucket=True
    ) -> Iterator[Batch]:
        """The clips as batches of up to `batch_size`.

        shuffle : a new order each time, drawn from `generator` (torch.Generator) if there is one
        bucket : when shuffling, group clips of similar length (padding a batch to 350 steps in
            place of 600 halves the time of an LSTM); the batches come in random order. Without
            shuffling the clips keep their order.
        """
        for indices in batch_order(self.lengths(), batch_size, shuffle, generator, bucket):
            yield self.batch(indices, device)

    def batch(self, indices, device=None) -> Batch:
        """The clips at `indices` as one Batch on `device`."""
        indices = np.asarray(indices)
        present = self.present[indices]
        tensors = {"present": torch.from_numpy(present), "index": torch.from_numpy(indices).long()}
        for name in ("frames", "audio"):
            if getattr(self, name) is not None:
                padded = _padded(getattr(self, name), indices, self.dims[name], device)
                tensors[name], tensors[f"{name}_valid"] = padded
        if self.text is not None:
            rows = np.where(present[:, 2:], self.text[indices], 0.0)
            tensors["text"] = torch.from_numpy(rows.astype(np.float32))
        if self.target is not None:
            tensors["target"] = torch.from_numpy(self.target[indices].astype(np.float32))
        return to_device(Batch(**tensors), device)


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


def to_device(batch, device):
    """The batch with every tensor on `device`; None leaves them where they are."""
    if device is None:
        return batch
    tensors = {name: value for name, value in vars(batch).items() if value is not None}
    moved = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
    return dataclasses.replace(batch, **moved)


def batch_order(lengths, batch_size: int, shuffle, generator, bucket) -> list[np.ndarray]:
    """Positions of the clips of each batch, of N clips of these lengths; see `batches`."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    order = np.arange(len(lengths))
    if shuffle:
        order = torch.randperm(len(lengths), generator=generator).numpy()
    if shuffle and bucket:
        # Sorting within stretches of several batches keeps the draw random while clips of
        # one batch have about one length.
        stretches = _cut(order, 8 * batch_size)
        order = np.concatenate([p[np.argsort(lengths[p], kind="stable")] for p in stretches])
    batches = _cut(order, batch_size)
    if shuffle and bucket:
        turn = torch.randperm(len(batches), generator=generator).tolist()
        batches = [batches[i] for i in turn]
    return batches


def _cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[i : i + size] for i in range(0, len(order), size)]


def _padded(sequences: Sequence, indices, dim: int, device):
    """(B, T, D) float32, zero where padded, and (B, T) bool; T is at least 1.

    Half precision is widened, and features are standardised, on the device.
    """
    scaled = isinstance(sequences, Standardised)
    raw = sequences.raw if scaled else sequences
    arrays = [raw[i] for i in indices]
    lengths = np.array([0 if a is None else len(a) for a in arrays], int)
    valid = np.arange(lengths.max(initial=1)) < lengths[:, None]
    real = [a for a in arrays if a is not None]
    half = all(a.dtype == np.float16 for a in real)
    values = np.zeros((*valid.shape, dim), np.float16 if half else np.float32)
    if real:
        values[valid] = np.concatenate(real)
    values = torch.from_numpy(values).to(device, non_blocking=True).float()
    valid = torch.from_numpy(valid).to(device, non_blocking=True)
    return (sequences.transform(values, valid) if scaled else values), valid


def _length(sequence: Sequence, row: int) -> int:
    """Steps of a clip, 0 for None; a sequence on a disk is not read."""
    sequence = getattr(sequence, "raw", sequence)
    if isinstance(sequence, Rows):
        return sequence.length(row)
    return 0 if sequence[row] is None else len(sequence[row])


def _pick(sequence, rows: Sequence[int]):
    if isinstance(sequence, Standardised):
        return Standardised(_pick(sequence.raw, rows), sequence.mean, sequence.spread)
    if isinstance(sequence, Rows):
        return Rows(sequence.store, _pick(sequence.ids, rows), sequence.convert)
    if isinstance(sequence, list):
        return [sequence[row] for row in rows]
    return sequence if sequence is None else sequence[rows]


def _checked_sequences(name: str, arrays, valid, count: int, widths: dict):
    """Float arrays (T, D) or None, without masked steps; `widths` gets D if it lacks it."""
    if arrays is None:
        if valid is not None:
            raise ValueError(f"{name}_valid: expected None where there is no {name}, got masks")
        return None
    for what, values in ((name, arrays), (f"{name}_valid", valid)):
        if values is not None and len(values) != count:
            raise ValueError(f"{what}: expected one for each of {count} ids, got {len(values)}")
    checked: list = [None] * count
    for position, array in enumerate(arrays):
        if array is None:
            continue
        array, where = np.asarray(array), f"{name}[{position}]: expected"
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
            got = f"{array.dtype} of shape {array.shape}"
            raise ValueError(f"{where} a (T, D) float array or None, got {got}")
        if valid is not None:
            mask = np.asarray(valid[position])
            if mask.dtype != bool or mask.shape != array.shape[:1]:
                raise ValueError(
                    f"{name}_valid[{position}]: expected ({len(array)},) bool, True where a step "
                    f"is real, got {mask.dtype} of shape {mask.shape}"
                )
            array = array[mask]
        width = widths.setdefault(name, array.shape[1])
        if array.shape[1] != width:
            raise ValueError(
                f"{where} width {width} like the other clips, got {array.shape[1]}; one set holds "
                "features of one encoder"
            )
        # A store's features were checked when they were extracted; reading them may take long.
        if not isinstance(arrays, Rows) and not np.isfinite(array).all():
            raise ValueError(
                f"{where} finite features, got NaN or infinity; use None for a clip without {name}"
            )
        checked[position] = array if len(array) else None
    if name not in widths:
        return None
    return arrays if isinstance(arrays, Rows) and valid is None else checked


def _checked_matrix(name: str, array, ids: Sequence[str]):
    """(N, D) floats; finite but for rows of text that are all NaN."""
    if array is None:
        return None
    array = np.asarray(array, dtype=np.float64 if name == "target" else None)
    floats = np.issubdtype(array.dtype, np.floating)
    if array.ndim != 2 or len(array) != len(ids) or not floats:
        raise ValueError(
            f"{name}: expected a ({len(ids)}, D) float array, one row an id, got {array.dtype} of "
            f"shape {array.shape}"
        )
    bad = ~np.isfinite(array).all(axis=1)
    if name == "text":
        bad &= ~np.isnan(array).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        hint = "use a row of NaN for a clip without words" if name == "text" else "leave it out"
        raise ValueError(
            f"{name}: expected finite numbers, got {array[row][~np.isfinite(array[row])][0]} for "
            f"clip {ids[row]!r}; {hint}"
        )
    return array
