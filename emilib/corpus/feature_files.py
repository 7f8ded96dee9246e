"""Features from files; nothing that a pickle may hold is run.

`load_features` reads the organisers' pickle of one clip, `read_features` a whole data set that has
features in place of media:

- a pickle of the MMSA family (MOSI, MOSEI, CH-SIMS; aligned or not): {train, valid, test} ->
  {vision, audio, text: (N, T, D), id, regression_labels, raw_text, and where the file has them
  vision_lengths, audio_lengths, and text_bert (N, 3, T), whose second row says what is real}
- safetensors with the same arrays, as "train/vision" or "valid/audio_lengths"; what is no array is
  JSON in the metadata: "train/id", "train/raw_text", and "targets", the names of the labels
- a folder with a CSV as of `user_dataset`, and vision/ID.npy, audio/ID.npy, text/ID.npy (or .npz)
"""

import codecs
import json
import math
import mmap
import os
import pickle
import pickletools
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from emilib.corpus import layout, user_dataset
from emilib.corpus.layout import CorpusError
from emilib.corpus.media import MediaError


class _Array(np.ndarray):
    """An array that takes no state larger than the bytes that came with it."""

    def __setstate__(self, state):
        shape, dtype, _, content = state[1:]
        if math.prod(shape) * (1 if dtype.hasobject else dtype.itemsize) != len(content):
            raise pickle.UnpicklingError(f"it states {shape} for {len(content)} bytes or objects")
        super().__setstate__(state)


def _reconstruct(name, shape, kind):
    if shape != (0,):  # NumPy's own pickles begin with an empty array
        raise pickle.UnpicklingError(f"it begins with an array of shape {shape}")
    return _Array(0)


# What NumPy's own pickles name (its modules moved): it takes memory for what is in the file alone.
_frombuffer = np.zeros(1).__reduce_ex__(5)[0]
_scalar = np.float64(0).__reduce__()[0]
_ALLOWED = {
    "ndarray": "ndarray",  # named, not called
    "dtype": np.dtype,
    "_reconstruct": _reconstruct,
    "_frombuffer": _frombuffer,
    "scalar": lambda dtype, content: _scalar(dtype, content),
}
NAMES = {"frames": ("vision", "frames"), "audio": ("audio",), "text": ("text",)}
LABELS = ("regression_labels", "labels", "target")
POOLS = {"mean": lambda t: t.mean(axis=0), "cls": lambda t: t[0], "last": lambda t: t[-1]}
PICKLES, HDF5 = (".pkl", ".pickle"), (".h5", ".hdf5", ".csd")


class _ArrayUnpickler(pickle.Unpickler):
    """Admits what NumPy arrays are made of, and nothing else."""

    def find_class(self, module, name):
        if module.partition(".")[0] == "numpy" and name in _ALLOWED:
            return _ALLOWED[name]
        if (module, name) == ("_codecs", "encode"):  # protocol 2: the bytes of an array
            return codecs.encode
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not run")


def load_features(path):
    """The organisers' features of a clip, (T, D) float32; MediaError for anything else."""
    array = _unpickled(path, MediaError)
    is_array = isinstance(array, np.ndarray)
    if not is_array or array.dtype.kind not in "fiub" or array.ndim not in (1, 2):
        got = f"{array.dtype} {array.shape}" if is_array else type(array).__name__
        raise MediaError(f"{path} holds {got}; expected a T x D array of numbers.")
    return np.ascontiguousarray(np.atleast_2d(array), dtype=np.float32)


def holds_features(source) -> bool:
    """Whether a path is a feature file, or a folder (or its CSV) with features and no media."""
    source = Path(source)
    if source.suffix.lower() in (*PICKLES, *HDF5, ".safetensors"):
        return source.is_file()
    folder = source.parent if source.is_file() else source
    if any((folder / name).is_file() for name in layout.SPLIT_FILES.values()):
        return False
    suffixes = {path.suffix.lower() for path in folder.rglob("*")}
    return bool(suffixes & {".npy", ".npz"}) and not suffixes & set(layout.MEDIA_SUFFIXES)


def state(source, pattern="**/*") -> list:
    """The path, and name, size and age of its files; of a CSV, of all that lies beside it."""
    folder = Path(source).parent if Path(source).suffix.lower() == ".csv" else Path(source)
    files = [path for path in (folder, *sorted(folder.glob(pattern))) if path.is_file()]
    return [str(source), *[(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]]


def read_features(source, pool="mean"):
    """A data set of features: the table of its clips, and their arrays by modality and id.

    source : path in one of the forms above
    pool : of a clip's tokens, "mean" of the real ones, "cls" (the first) or "last"

    Returns the table as of `corpus.read`, with the targets of test clips where the file has them
    and a column `group`, who is in the clip; and {modality: {id: (T, D) float32, or None}}, text
    (1, D). Padding is left out: what the lengths say, else rows of zeros at either end; attrs
    "notes" say of how many clips. Raises CorpusError, one sentence, for what has no such form.
    """
    source = Path(source)
    _expect(pool in POOLS, "text pool", f"one of {', '.join(POOLS)}", repr(pool))
    table, rows = _joined(source, *_parts(source))
    notes, arrays = [], {}
    for modality in NAMES:
        real, said = _without_padding(f"{source}: {modality}", *rows[modality])
        present = [steps for steps in real if steps is not None]
        if modality == "text" and any(len(steps) > 1 for steps in present):
            said.insert(0, f"pooled over each clip's real tokens ({pool})")
            real = [steps if steps is None else POOLS[pool](steps)[None] for steps in real]
        widths = sorted({steps.shape[1] for steps in present})
        _expect(len(widths) < 2, f"{source}: {modality}", "one width", widths)
        if widths:
            arrays[modality] = dict(zip(table["id"], real, strict=True))
            notes.append(f"{modality}, {widths[0]} wide: {', '.join(said) or 'no padding'}.")
    _expect(arrays, source, "features of vision, audio or text", "nothing but zeros")
    about = {"folder": str(source), "notes": notes, "modalities": list(arrays)}
    table.attrs.update(about, transcript_source="the words in the file")
    return table, arrays


def _unpickled(path, error_class):
    try:
        if not os.path.isfile(path):
            raise FileNotFoundError("No such file")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for code, value, _ in pickletools.genops(data):  # also finds claims beyond the file
                if code.name.endswith("PUT") and value > len(data):
                    raise pickle.UnpicklingError(f"it numbers an object {value}")
            data.seek(0)
            return _ArrayUnpickler(data, encoding="latin1").load()  # Python 2 wrote some
    except Exception as error:  # no such file; and damaged bytes raise almost anything
        raise error_class(f"{path} is no readable pickle of arrays: {error}.") from error


def _parts(source):
    """{split: {name: a row a clip}}, named as MMSA does, and the names of the targets or None."""
    suffix, names, parts = source.suffix.lower(), None, {}
    if suffix in PICKLES:
        parts = _unpickled(source, CorpusError)
        nested = isinstance(parts, dict) and all(isinstance(p, dict) for p in parts.values())
        _expect(nested, source, "dicts of arrays by split", f"a {type(parts).__name__}")
    elif suffix == ".safetensors":
        try:
            with safe_open(source, framework="np") as file:
                entries = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                words = file.metadata() or {}
            words = {n: x for n, x in words.items() if "/" in n or n == "targets"}
            entries |= {name: json.loads(text) for name, text in words.items()}
        except (SafetensorError, ValueError) as error:
            raise CorpusError(f"{source} is no readable safetensors file: {error}.") from error
        names = entries.pop("targets", None)
        for entry, rows in entries.items():
            split, _, name = entry.partition("/")
            parts.setdefault(split, {})[name] = rows
    else:
        written = "a pickle, safetensors, or .npy files with a CSV, written from it"
        _expect(suffix not in HDF5, source, written, "HDF5, which is not read")
        path = user_dataset.table_of(source)
        table, findings = user_dataset.read_table(path)
        wrong = [detail for *_, what, detail in findings if what.startswith(("label", "duplicate"))]
        _expect(not wrong, path, "a row a clip with numbers as labels", wrong[:1])
        cells, names = layout.read_rows(path), table.attrs["targets"]
        group = next((c for c in cells if c.lower() in user_dataset.GROUPS), cells.columns[0])
        groups = dict(zip(cells.iloc[:, 0], cells[group], strict=True))
        for split, rows in table.groupby("split"):
            part = {"id": rows["id"].tolist(), "raw_text": rows["transcript"].tolist()}
            part["group"] = [groups.get(id_, id_) for id_ in part["id"]]
            for name in (name for known in NAMES.values() for name in known):
                if (path.parent / name).is_dir():
                    part[name] = [_array(path.parent / name / id_) for id_ in part["id"]]
            parts[split] = part | {LABELS[0]: rows[names].to_numpy(float)}
    return parts, names


def _joined(source, parts, names):
    """The table of all splits, and of each modality the clips' arrays and lengths, or None."""
    parts = {user_dataset.SPLIT_NAMES.get(str(s).lower(), s): part for s, part in parts.items()}
    _expect({"train", "validation"} <= set(parts), source, "train, valid, test", list(parts))
    tables, values = [], {modality: ([], []) for modality in NAMES}
    for split in (s for s in layout.SPLITS if s in parts):
        part, where = parts[split], f"{source}: {split}"
        label = next((name for name in LABELS if name in part), None)
        _expect(label, where, LABELS[0], f"only {', '.join(part)}")
        target = np.asarray(part[label], float)
        target, none = target.reshape(len(target), -1), [None] * len(target)
        finite = split == "test" or np.isfinite(target).all()
        _expect(finite, f"{where} {label}", "finite numbers", "others")
        numbered = [f"target {n}" for n in range(target.shape[1])]
        names = names or (["sentiment"] if len(numbered) == 1 else numbered)
        tokens = np.asarray(part.get("text_bert", 0))
        if tokens.ndim == 3:  # their numbers, which are real, segments
            part = {"text_lengths": tokens[:, 1].sum(axis=1), **part}
        ids = part.get("id", [f"{split}_{n}" for n in range(len(target))])
        ids = ["$_$".join(map(str, np.ravel(id_))) for id_ in ids]  # VIDEO$_$CLIP, or both apart
        groups = part.get("group", [id_.split("$_$")[0] for id_ in ids])
        columns = {"id": ids, "transcript": list(part.get("raw_text", none)), "group": groups}
        for modality, known in NAMES.items():
            name = next((name for name in known if name in part), modality)
            for rows, own in zip(values[modality], (name, f"{name}_lengths"), strict=True):
                columns[own] = part.get(own, none)
                rows += list(columns[own])
        for name, rows in columns.items():
            _expect(len(rows) == len(none), f"{where} {name}", len(none), len(rows))
        table = pd.DataFrame({n: columns[n] for n in ("id", "transcript", "group")}, dtype=object)
        tables.append(table.assign(split=split).join(pd.DataFrame(target, columns=names)))
    table = pd.concat(tables, ignore_index=True)
    twice = table["id"][table["id"].duplicated()].tolist()
    _expect(not twice, source, "one clip an id", f"two of {twice[:3]}")
    table[[c for c in layout.FILE_COLUMNS if c != "transcript"]] = None
    table.attrs["targets"] = list(names)
    return table, values


def _array(stem):
    """The array in STEM.npy, or the first one in STEM.npz; None where there is neither."""
    path = next(filter(os.path.isfile, (f"{stem}.npy", f"{stem}.npz")), None)
    try:
        # mapped: a header may claim any shape
        array = None if path is None else np.load(path, mmap_mode="r", allow_pickle=False)
        return array[array.files[0]] if hasattr(array, "files") else array
    except (OSError, ValueError, IndexError) as error:
        raise CorpusError(f"{path} is no readable array: {error}.") from error


def _without_padding(where, rows, lengths):
    """The real steps of each clip, (T, D) float32 or None, and what is to be said of it."""
    result, count = [], Counter()
    for steps, length in zip(rows, lengths, strict=True):
        steps = np.atleast_2d(np.zeros((0, 1)) if steps is None else np.asarray(steps, np.float32))
        _expect(steps.ndim == 2, where, "(T, D) a clip", steps.shape)
        finite = np.isfinite(steps)
        count["values not finite, taken as 0"] += int(finite.size - finite.sum())
        steps = np.where(finite, steps, 0)
        filled = np.flatnonzero(steps.any(axis=1))
        if not len(filled) or length == 0:
            count["clips without"] += 1
            result.append(None)
            continue
        first, end, known = filled[0], filled[-1] + 1, "by rows of zeros"
        if length is not None:
            length, known = min(int(length), len(steps)), "by the file's lengths"
            # In front where the zeros are there, and what is beyond the length is not all zeros.
            ahead = end > length and first >= len(steps) - length
            first, end = (len(steps) - length, len(steps)) if ahead else (0, length)
        count[f"clips padded in front ({known})"] += first > 0
        count[f"clips padded behind ({known})"] += end < len(steps)
        result.append(steps[first:end])
    return result, [f"{n} {what}" for what, n in count.items() if n]


def _expect(holds, where, expected, got):
    if not holds:
        raise CorpusError(f"{where}: expected {expected}, got {got}.")
