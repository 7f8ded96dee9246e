"""Features of clips as ragged arrays, and the padded, masked batches that models take.
Dimension key: N clips, B clips of a batch, T steps, D width, E targets, S samples, L tokens."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import torch

from emilib import EMOTIONS, MODALITIES
from emilib.features.encoders import padded
from emilib.features.store import Rows


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

    def to(self, device) -> "Batch":
        """The batch with every tensor on `device`; None leaves them where they are."""
        return type(self)(**{n: None if x is None else x.to(device) for n, x in vars(self).items()})

    def __len__(self):
        return len(self.index)


@dataclasses.dataclass(repr=False, eq=False)
class FeatureSet:
    """Features and targets of N clips, of any width, from this project's encoders or not.

    Build one with `from_arrays`. frames, audio and text are as they were passed; batches have
    frames relative to `frame_reference`, and then all is standardised by `scaling`. `present`
    (N, 3) bool: which modalities a clip has; `lengths` (N,): the steps of its longest sequence.
    """

    ids: list[str]
    frames: Sequence | None  # (T, D) or None, one a clip; None: the whole set lacks it
    audio: Sequence | None  # likewise
    text: np.ndarray | None  # (N, D), a row of NaN where a clip has no words
    target: np.ndarray | None  # (N, E) float64
    dims: dict[str, int]  # width of each modality the set has
    names: tuple[str, ...] = ()
    scaling: dict[str, tuple[np.ndarray, np.ndarray]] | None = None  # see `standardised`
    # What is taken from a clip's frames: its "first" frame, the "mean" over its frames, or "none";
    # what is left tells of the expression, and little of whose face it is.
    frame_reference: str = "none"

    per_clip = ("ids", *MODALITIES, "target")  # what `select` picks from

    def __post_init__(self):
        reference, choices = self.frame_reference, ("none", "first", "mean")
        _expect(reference in choices, "frame_reference", f"one of {choices}", repr(reference))
        steps = np.zeros((len(self.ids), 3), int)
        for column, sequences in enumerate((self.frames, self.audio)):
            if sequences is not None:
                steps[:, column] = [0 if a is None else len(a) for a in sequences]
        if self.text is not None:
            steps[:, 2] = ~np.isnan(self.text).any(axis=1)
        self.present = steps > 0
        self.lengths = steps.max(axis=1, initial=1)
        self._packed = {}

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
        names=(),
        dims=None,
        frame_reference="none",
    ) -> "FeatureSet":
        """A set from plain arrays.

        ids : N names
        frames, audio : one (T, D) float array a clip, None where the clip lacks it; or None.
            `store.Rows` stay on their disk, and are read a batch at a time.
        frames_valid, audio_valid : of padded arrays one (T,) bool mask a clip, True = real; the
            other steps are left out, and a clip without a real one lacks the modality
        text : (N, D) float, a row of NaN where the clip has no words; or None
        target : (N, E) float, in any range, or (N,) for a single target; or None
        names : of the E targets; without: the emotions where there are six, else numbered
        dims : widths of the modalities, as of another set's `dims`; then all clips may lack one
        frame_reference : "none", "first" or "mean", as of the class

        Raises ValueError when the numbers of clips or the widths disagree, when all modalities
        are missing, two ids are the same, or a feature or target is not finite.
        """
        ids, widths = [str(i) for i in ids], dict(dims or {})
        _expect(len(set(ids)) == len(ids), "ids", "a name of its own for each clip", "duplicates")
        columns = {
            "frames": _sequences("frames", frames, frames_valid, len(ids), widths),
            "audio": _sequences("audio", audio, audio_valid, len(ids), widths),
            "text": None if text is None else _matrix("text", np.asarray(text), ids),
        }
        if target is not None:
            target = np.asarray(target, np.float64)
            target = _matrix("target", target[:, None] if target.ndim == 1 else target, ids)
            right, wanted = len(names) in (0, target.shape[1]), f"{target.shape[1]}, one a target"
            _expect(right, "names", wanted, len(names))
        widths["text"] = 0 if text is None else columns["text"].shape[1]
        widths = {m: widths[m] for m in MODALITIES if columns[m] is not None and widths[m]}
        _expect(widths or not ids, "a set", "at least one of frames, audio and text", "none")
        about = {"names": tuple(names), "frame_reference": frame_reference}
        return cls(ids, **columns, target=target, dims=widths, **about)

    def __len__(self):
        return len(self.ids)

    def __repr__(self):
        widths = ", ".join(f"{name} {dim}" for name, dim in self.dims.items())
        return f"{type(self).__name__}({len(self)} clips: {widths}; {self.num_targets} targets)"

    @property
    def num_targets(self) -> int:
        return 0 if self.target is None else self.target.shape[1]

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets."""
        numbered = tuple(f"target {i}" for i in range(self.num_targets))
        return self.names or (EMOTIONS if len(numbered) == len(EMOTIONS) else numbered)

    def with_target(self, target: np.ndarray) -> "FeatureSet":
        """The same clips and features with other numbers (N, E) as targets."""
        return dataclasses.replace(self, target=target)

    def select(self, indices) -> "FeatureSet":
        """The clips at `indices` (integers or a bool mask), in that order."""
        rows = np.arange(len(self))[np.asarray(indices, None if len(indices) else int)]
        columns = {name: getattr(self, name) for name in self.per_clip}
        for name, values in columns.items():
            if values is not None:
                arrays = isinstance(values, np.ndarray)
                columns[name] = values[rows] if arrays else [values[row] for row in rows]
        return dataclasses.replace(self, **columns)

    def only(self, *modalities: str) -> "FeatureSet":
        """The same clips with only these modalities."""
        dims = {m: d for m, d in self.dims.items() if m in modalities}
        if (not dims and len(self)) or not set(modalities) <= set(MODALITIES):
            raise ValueError(f"expected modalities out of {sorted(self.dims)}, got {modalities}")
        others = dict.fromkeys(set(MODALITIES) - set(modalities))
        return dataclasses.replace(self, **others, dims=dims)

    def relative(self, modality: str, array: np.ndarray) -> np.ndarray:
        """Frames (T, D) of a clip without their `frame_reference`; others as they are."""
        if modality != "frames" or self.frame_reference == "none":
            return array
        array = array.astype(np.float32)
        return array - (array[0] if self.frame_reference == "first" else array.mean(axis=0))

    def scaled(self, modality: str, array: np.ndarray) -> np.ndarray:
        """Features (T, D) of a clip of this set, or texts (N, D), as models get them: relative to
        the clip's reference, then standardised; float32 where anything was done."""
        array = self.relative(modality, array)
        if self.scaling is None:
            return array
        mean, spread = self.scaling[modality]
        return ((array - mean) / spread).astype(np.float32)

    def moments(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Mean and deviation (D,) of each modality's columns, over all real steps."""
        result = {}
        for name in self.dims:
            pieces = [self.text[self.present[:, 2]]] if name == "text" else getattr(self, name)
            pieces = [self.scaled(name, array) for array in pieces if array is not None]
            count = sum(map(len, pieces))
            mean = sum(a.sum(axis=0, dtype=np.float64) for a in pieces) / count
            spread = np.sqrt(sum(((a - mean) ** 2).sum(axis=0) for a in pieces) / count)
            result[name] = (mean, np.where(spread > 0, spread, 1.0))  # constant: stays at 0
        return result

    def standardised(self, moments: dict[str, tuple[np.ndarray, np.ndarray]]) -> "FeatureSet":
        """The same set whose batches are (x - mean) / deviation, column by column.

        moments : mean and deviation (D,) by modality, as `moments` of the training clips returns;
            more modalities than the set has do no harm

        Raises ValueError where those of a modality are missing.
        """
        complete = set(self.dims) <= set(moments)
        _expect(complete, "moments", f"those of {sorted(self.dims)}", sorted(moments))
        return dataclasses.replace(self, scaling=moments)

    def fingerprint(self) -> str:
        """Hex digest of everything in the set."""
        facts = [self.ids, self.targets, self.dims, self.lengths.tolist(), self.frame_reference]
        digest = hashlib.sha256(repr(facts).encode())
        moments = chain.from_iterable((self.scaling or {}).values())
        sequences = chain(self.frames or (), self.audio or ())
        for array in chain((self.text, self.target), moments, sequences):
            digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:32]

    def batches(self, batch_size: int, shuffle=False, generator=None, device=None):
        """Yield the clips as `Batch`es of up to `batch_size`, in their order.
        shuffle : clips of similar length a batch, in a random order, drawn from `generator`"""
        order, lengths = torch.arange(len(self)), torch.from_numpy(self.lengths)
        if shuffle:
            # Sorting within stretches of several batches keeps the draw random.
            parts = torch.randperm(len(self), generator=generator).split(8 * batch_size)
            order = torch.cat([part[lengths[part].argsort(stable=True)] for part in parts])
        batches = order.split(batch_size) if len(self) else ()
        if shuffle:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator)]
        for indices in batches:
            yield self.batch(indices.numpy(), device)

    def batch(self, indices, device=None) -> Batch:
        """The clips at `indices` as one Batch on `device`."""
        indices = np.asarray(indices)
        present = self.present[indices]
        tensors = {"present": torch.from_numpy(present), "index": torch.from_numpy(indices).long()}
        for name in ("frames", "audio"):
            if getattr(self, name) is not None:
                tensors[name], tensors[f"{name}_valid"] = self._padded(name, indices, device)
        if self.text is not None:
            rows = np.where(present[:, 2:], self.scaled("text", self.text[indices]), 0.0)
            tensors["text"] = torch.from_numpy(rows.astype(np.float32))
        if self.target is not None:
            tensors["target"] = torch.from_numpy(self.target[indices].astype(np.float32))
        return Batch(**tensors).to(device)

    def _joined(self, name: str, indices) -> tuple[np.ndarray, np.ndarray]:
        """The steps of some clips one after another, and how many each has."""
        empty = np.zeros((0, self.dims[name]), np.float16)
        arrays = (getattr(self, name)[i] for i in indices)
        arrays = [empty if a is None else self.relative(name, a) for a in arrays]
        return np.concatenate([empty, *arrays]), np.array([len(a) for a in arrays], int)

    def _padded(self, name: str, indices, device) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, D) float32, zero where padded, and (B, T) bool; T is at least 1."""
        if isinstance(getattr(self, name), Rows):  # reads these clips alone
            rows, lengths = self._joined(name, indices)
        else:  # once for all batches
            if name not in self._packed:
                self._packed[name] = self._joined(name, range(len(self)))
            rows, lengths = self._packed[name]
            starts, lengths = (np.cumsum(lengths) - lengths)[indices], lengths[indices]
            first = np.cumsum(lengths) - lengths
            rows = rows[np.repeat(starts - first, lengths) + np.arange(lengths.sum())]
        mask = np.arange(lengths.max(initial=1)) < lengths[:, None]
        half = rows.dtype == np.float16
        values = np.zeros((*mask.shape, rows.shape[1]), np.float16 if half else np.float32)
        values[mask] = rows
        values, valid = (torch.from_numpy(x).to(device) for x in (values, mask))
        values = values.float()  # half precision is widened on the device
        if self.scaling is not None:
            mean, spread = (values.new_tensor(moment) for moment in self.scaling[name])
            values = ((values - mean) / spread).masked_fill(~valid[..., None], 0.0)
        return values, valid


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
    """A `FeatureSet` of N clips with waveforms and tokens for the encoders that will be inside."""

    waveforms: Sequence  # (S,) int16 at 16 kHz or None, one a clip
    input_ids: np.ndarray  # (N, L), L at least 1
    attention_mask: np.ndarray  # (N, L)
    encoders: Mapping[str, Mapping]  # "audio", "text": "checkpoint", and settings of `pretrained`

    per_clip = (*FeatureSet.per_clip, "waveforms", "input_ids", "attention_mask")

    @classmethod
    def of(cls, features: FeatureSet, waveforms, tokens: Mapping, encoders) -> "MediaSet":
        """The clips of `features`, with `tokens` as of `TextEncoder.tokens`."""
        values = {f.name: getattr(features, f.name) for f in dataclasses.fields(features)}
        media = {"waveforms": waveforms, "encoders": encoders}
        return cls(**values, **media, **{name: np.asarray(ids) for name, ids in tokens.items()})

    def only(self, *modalities: str) -> "MediaSet":
        """The same clips with only these modalities; the encoders of the others stay inside."""
        if set(modalities) == set(MODALITIES):
            return self
        super().only(*modalities)  # refuses what the set lacks
        gone = {m: [None] * len(self) for m in ("frames", "audio") if m not in modalities}
        gone |= {} if "text" in modalities else {"text": np.full_like(self.text, np.nan)}
        return dataclasses.replace(self, **gone)

    def batch(self, indices, device=None) -> MediaBatch:
        """The clips at `indices` on `device`. A clip without audio is a single zero."""
        plain = dataclasses.replace(super().batch(indices), audio=None, audio_valid=None, text=None)
        silent = np.zeros(1, np.int16)
        heard = [self.waveforms[i] if self.present[i, 1] else None for i in indices]
        sounds = [torch.from_numpy(silent if s is None else s).float() / 32768 for s in heard]
        waveform, valid = padded(sounds)
        mask = torch.from_numpy(self.attention_mask[indices])
        used = max(1, int(mask.sum(dim=1).max()))
        tokens = {"attention_mask": mask[:, :used]}
        tokens["input_ids"] = torch.from_numpy(self.input_ids[indices])[:, :used]
        sound = {"waveform": waveform, "waveform_valid": valid}
        return MediaBatch(**vars(plain), **sound, **tokens).to(device)


@dataclasses.dataclass
class FeatureSplits:
    """The three partitions of a corpus as features of one kind."""

    train: FeatureSet
    validation: FeatureSet
    test: FeatureSet
    fingerprint: str  # changes when any feature, id or target does


def _expect(holds, where: str, expected: str, got) -> None:
    if not holds:
        raise ValueError(f"{where}: expected {expected}, got {got}")


def _sequences(name: str, arrays, valid, count: int, widths: dict):
    """Float arrays (T, D) or None; `widths` gets D if it lacks it."""
    if arrays is None:
        return None
    for part, values in ((name, arrays), (f"{name}_valid", arrays if valid is None else valid)):
        _expect(len(values) == count, part, f"one for each of {count} ids", len(values))
    checked: list = [None] * count
    for position, array in enumerate(arrays):
        if array is None:
            continue
        array, where = np.asarray(array), f"{name}[{position}]"
        right = array.ndim == 2 and np.issubdtype(array.dtype, np.floating)
        got = f"{array.dtype} of shape {array.shape}"
        _expect(right, where, "a (T, D) float array or None", got)
        if valid is not None:
            array = array[np.asarray(valid[position], bool)]
        width = widths.setdefault(name, array.shape[1])
        _expect(array.shape[1] == width, where, f"the other clips' width {width}", array.shape[1])
        # A store's features were checked when they were extracted.
        finite = isinstance(arrays, Rows) or np.isfinite(array).all()
        _expect(finite, where, f"finite features (None: no {name})", "NaN or infinity")
        checked[position] = array if len(array) else None
    if name not in widths:
        return None
    return arrays if isinstance(arrays, Rows) and valid is None else checked


def _matrix(name: str, array: np.ndarray, ids: Sequence[str]) -> np.ndarray:
    """(N, D) floats; finite but for rows of text that are all NaN."""
    right = array.ndim == 2 and len(array) == len(ids) and np.issubdtype(array.dtype, np.floating)
    got = f"{array.dtype} of shape {array.shape}"
    _expect(right, name, f"a ({len(ids)}, D) float array, one row an id", got)
    good = np.isfinite(array).all(axis=1) | ((name == "text") & np.isnan(array).all(axis=1))
    bad = [id_ for id_, row in zip(ids, good, strict=True) if not row]
    _expect(not bad, name, "finite numbers (text: a row of NaN for none)", f"others for {bad[:3]}")
    return array
