"""What the pipeline reads of a corpus: its clips, words, lengths, decoded media and pickles."""

import contextlib
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from emilib import workers
from emilib.cache import Cache, code_version, file_sum, key
from emilib.corpus import defects, faces, feature_files, layout, media, read
from emilib.corpus import user_dataset as own
from emilib.features import transcripts as speech
from emilib.progress import Counter

OFFICIAL = {"frames": "official_vision", "audio": "official_audio"}
_DECODED = ("frames", "waveform", "seen")  # of `decode`
LEAST_CLIPS = {"train": 8, "validation": 4}  # a ridge, a quarter held out, an interval


class CorpusReader:
    """The clips of a corpus folder: their table, words, lengths, and the key of all of it."""

    has_media, official_columns = True, tuple(OFFICIAL)

    def __init__(self, source: Path, cache: Cache, processes: int):
        self.source, self.cache, self.processes = source, cache, processes
        self.folder = source.parent if source.is_file() else source

    @property
    def is_synthetic(self) -> bool:
        marked = (self.folder / "synthetic.json").exists()
        return marked and own.table_of(self.source) is None  # a CSV of one's own beside it counts

    @functools.cached_property
    def people(self) -> pd.Series | None:
        """Who is in each clip, by id, as the generator of the embedded corpus notes it."""
        table = self._noted("people.csv")
        return None if table is None else table["person"]

    @functools.cached_property
    def test_labels(self) -> pd.DataFrame | None:
        """Labels of the test clips, by id, which only the embedded corpus' generator knows."""
        return self._noted("test_labels.csv")

    @functools.cached_property
    def signals(self) -> pd.DataFrame | None:
        """What the generator expressed in frames_*, audio_* and text_* of each clip, by id."""
        return self._noted("signals.csv")

    def _noted(self, name: str) -> pd.DataFrame | None:
        path = self.folder / ".synthetic" / name
        if not (self.is_synthetic and path.exists()):
            return None
        return pd.read_csv(path, dtype={"id": str}).set_index("id")

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        """`corpus.read` of the folder. Raises ValueError for too few clips to train and judge."""
        return _large_enough(read(self.source), self.source)

    @functools.cached_property
    def clips(self) -> pd.DataFrame:
        """`table` with all transcripts; where they come from is ``attrs["transcript_source"]``."""
        settings = {"workers": self.processes, "progress": Counter("words by Whisper: clips")}
        words, source = speech.transcripts(self.table, media.sound_of, self.cache, **settings)
        clips = self.table.assign(transcript=words.to_numpy())
        clips.attrs["transcript_source"] = source
        return clips

    def texts(self, ids: Sequence[str]) -> list[str]:
        """Words of clips; "" where they have none."""
        words = self.clips.set_index("id")["transcript"].loc[list(ids)]
        return [text if isinstance(text, str) else "" for text in words]

    def ids(self, split: str | None = None) -> list[str]:
        table = self.table if split is None else self.table[self.table["split"] == split]
        return table["id"].tolist()

    @property
    def has_official(self) -> bool:
        """Some training clip has features of the organisers, so their baselines can be trained."""
        train = self.table[self.table["split"] == "train"]
        return bool(train[list(OFFICIAL.values())].notna().any(axis=None))

    @functools.cached_property
    def key(self) -> str:
        """Hex digest that changes when the content of a CSV, a transcript or a file does.
        A file is read again when its size or age changes. Of face crops, millions of files, it only
        counts which clips have a folder of them. The embedded corpus is known by its parameters:
        its files may differ in bytes."""
        heard = speech.heard_key(self.table)
        if self.is_synthetic:
            return key(heard=heard, synthetic=file_sum(self.folder / "synthetic.json"))
        table = own.table_of(self.source)
        texts = [*self.folder.glob("*.csv"), *self.folder.rglob("text/*.txt")]
        files = self.table.set_index("id")[["video", "audio", *OFFICIAL.values()]].stack().dropna()
        stats = ((path, os.stat(path)) for path in files)
        parts = {"files": [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]}

        def make(folder: Path) -> None:
            sums = workers.ordered_map(file_sum, files, self.processes)
            (folder / "sums.json").write_text(json.dumps(list(sums)))

        return key(
            heard=heard,
            table=None if table is None else table.name,
            texts={p.relative_to(self.folder).as_posix(): file_sum(p) for p in texts},
            files=list(files.index),
            sums=file_sum(self.cache.shared_step("sums", parts, make) / "sums.json"),
            faces=self.table["faces"].notna().tolist(),
        )

    @functools.cached_property
    def seconds(self) -> pd.Series:
        """Length of each clip in seconds, by id; NaN where neither picture nor sound opens."""

        def make(folder: Path) -> None:
            defects.durations(self.table, self.processes).to_json(folder / "seconds.json")

        parts = {"corpus": self.key, "code": code_version("corpus/defects.py", "corpus/media.py")}
        text = (self.cache.shared_step("durations", parts, make) / "seconds.json").read_text()
        return pd.Series(json.loads(text), dtype=float).loc[self.table["id"]]

    def partitions(self, longest: float | None = None) -> pd.DataFrame:
        """`split`, `clips` and `seconds` of each partition, clips counted up to `longest` s."""
        lengths = self.table.assign(seconds=self.seconds.clip(upper=longest).to_numpy())
        grouped = lengths.groupby("split", sort=False)["seconds"]
        counts = grouped.agg(clips="size", seconds=lambda seconds: seconds.sum(min_count=1))
        return counts.reindex(layout.SPLITS, fill_value=0).rename_axis("split").reset_index()

    def decoded(self, ids: Sequence[str], **settings) -> Iterator[dict]:
        """`decode` of clips, some clips ahead."""
        files = self.table.set_index("id")[["video", "audio", "faces"]].loc[list(ids)]
        rows = files.astype(object).where(files.notna(), None).to_dict("records")
        settings["looked"] = bool(self.table["faces"].notna().any())
        work, lethal = functools.partial(decode, **settings), dict.fromkeys(_DECODED)
        return workers.ordered_map(work, rows, self.processes, lambda row: lethal)

    def official(self, ids: Sequence[str]) -> Iterator[dict]:
        """Frames and audio (T, D) float16 of the organisers' pickles.
        None without one, and for one that can't be used: the audit lists them as "bad features"."""
        rows, widths = self.table.set_index("id").loc[list(ids)].to_dict("records"), {}
        for row in rows:
            arrays = {}
            for name, column in OFFICIAL.items():
                array = _readable(feature_files.load_features, row[column])
                usable = array is not None and array.size and np.isfinite(array).all()
                arrays[name] = array.astype(np.float16) if usable else None
                if usable and array.shape[1] != (width := widths.setdefault(name, array.shape[1])):
                    got = f"got {array.shape[1]}; take the features of one encoder"
                    raise ValueError(f"{row[column]}: expected {width} values a step, {got}")
            yield arrays


class FeatureReader(CorpusReader):
    """The same of features in place of media, see `feature_files.read_features`."""

    has_media, is_synthetic, has_official, signals = False, False, True, None
    clips = property(lambda self: self.table)
    official_columns = property(lambda self: tuple(self.table.attrs["modalities"]))
    seconds = property(lambda self: pd.Series(np.nan, self.table["id"]))

    def __init__(self, source: Path, cache: Cache, pool: str):
        super().__init__(source, cache, 1)
        self.folder, self.pool = source, pool

    @functools.cached_property
    def key(self) -> str:
        """Hex digest that changes when a file's name, size or age does."""
        return key(files=feature_files.state(self.source), pool=self.pool)

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        return _large_enough(feature_files.read_features(self.source, self.pool)[0], self.source)

    @functools.cached_property
    def people(self) -> pd.Series:
        """Who is in each clip, by id; each clip somebody else where a quarter of the training
        people may be nobody, or a single clip."""
        groups = self.table.set_index("id", drop=False)
        sizes = groups.loc[groups["split"] == "train", "group"].value_counts()
        few = len(sizes) < 4 or (len(sizes) < 8 and sizes.min() < 2)
        return groups["id" if few else "group"]

    @functools.cached_property
    def test_labels(self) -> pd.DataFrame | None:
        test = self.table[self.table["split"] == "test"].set_index("id")
        labels = test[self.table.attrs["targets"]]
        return None if labels.isna().any(axis=None) else labels

    def official(self, ids: Sequence[str]) -> Iterator[dict]:
        """Frames and audio (T, D) and text (1, D) of clips, float32; None where they lack it."""
        arrays = feature_files.read_features(self.source, self.pool)[1] if ids else {}
        yield from ({name: by_id[id_] for name, by_id in arrays.items()} for id_ in ids)


def _large_enough(table: pd.DataFrame, source: Path) -> pd.DataFrame:
    counts = {split: int((table["split"] == split).sum()) for split in LEAST_CLIPS}
    if any(counts[split] < least for split, least in LEAST_CLIPS.items()):
        least, got = [" and ".join(f"{n} {s}" for s, n in c.items()) for c in (LEAST_CLIPS, counts)]
        raise ValueError(f"{source}: expected at least {least} clips, got {got}; add clips")
    return table


def decode(files: dict, looked: bool, profile, kept: int | None, sound=True) -> dict:
    """Frames (T, 3, S, S) uint8 and waveform (S,) int16 of a clip; None for what can't be read.

    files : paths or None as "video", "audio" and "faces"
    looked : whether the corpus has face crops: then a clip without crops has no frames. Where it
        has none and the profile wants them, faces are searched in the video, and "seen" (T,)
        uint8 is 1 for the frames, of those at `Profile.fps`, in which one was found
    kept : frames, evenly spaced; None keeps all
    """
    longest, frames, waveform, seen = profile.max_seconds, None, None, None
    shown = not looked or bool(layout.face_paths(files["faces"]))
    crops = looked and shown and profile.visual == "faces"
    wanted = {"frames": shown and not crops, "sound": sound and files["audio"] is None}
    search = profile.visual == "faces" and not looked
    face_size = profile.face_size or profile.image_size
    if any(wanted.values()):
        size, read_video = profile.image_size, media.decode
        if search:
            size, read_video = face_size, faces.decode
        limits = {"fps": profile.fps, "size": size, "max_seconds": longest}
        if result := _readable(read_video, files["video"], **limits, **wanted):
            frames, waveform, seen = result.images, result.waveform, result.seen
    if sound and files["audio"] is not None:
        result = _readable(media.decode, files["audio"], frames=False, max_seconds=longest)
        waveform = result.waveform if result else None
    if crops:
        stated = (_readable(media.stated_seconds, files[name]) for name in ("video", "audio"))
        duration = next((s for s in stated if s is not None), math.nan)
        frames = media.face_frames(files["faces"], duration, profile.fps, face_size)
        if frames is not None and longest is not None:
            frames = frames[: math.ceil(longest * profile.fps)]
    if frames is not None:
        if kept is not None and len(frames) > kept:
            frames = frames[np.linspace(0, len(frames) - 1, kept).round().astype(int)]
        frames = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
    if waveform is not None:
        waveform = media.as_int16(waveform)
    seen = None if seen is None else seen.astype(np.uint8)
    return dict(zip(_DECODED, (frames, waveform, seen), strict=True))


def _readable(function: Callable, path, **options):
    """``function(path)``; None without a path and for a file that the audit calls unreadable."""
    with contextlib.suppress(media.MediaError):
        return function(path, **options) if isinstance(path, str) else None
