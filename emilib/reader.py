"""What the pipeline reads of a corpus: its clips, words, lengths, decoded media and pickles."""

import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from emilib.cache import Cache, code_version
from emilib.corpus import defects, feature_files, layout, media, read
from emilib.corpus import user_dataset as own
from emilib.features import transcripts as speech
from emilib.features.checkpoints import how_to_get
from emilib.progress import Counter


class CorpusReader:
    """The clips of a corpus folder: their table, words, lengths, and the key of all of it.

    source : the folder, or the CSV in it; cache : keeps lengths, and the words Whisper hears
    """

    def __init__(self, source: Path, cache: Cache, workers: int):
        self.source, self.cache, self.workers = source, cache, workers
        self.folder = source.parent if source.is_file() else source

    @property
    def is_synthetic(self) -> bool:
        marked = (self.folder / "synthetic.json").exists()
        return marked and own.table_of(self.source) is None  # a CSV of one's own beside it counts

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        """`corpus.read` of the folder."""
        return read(self.source)

    @functools.cached_property
    def clips(self) -> pd.DataFrame:
        """`table` with all transcripts; where they come from is ``attrs["transcript_source"]``."""
        words, source = speech.transcripts(
            self.table,
            media.sound_of,
            self.cache,
            workers=self.workers,
            progress=Counter("words by Whisper: clips"),
        )
        clips = self.table.assign(transcript=words.reindex(self.table["id"]).to_numpy())
        clips.attrs["transcript_source"] = source
        return clips

    @functools.cached_property
    def unlabelled(self) -> pd.DataFrame:
        """Clips without labels that only pretraining sees; none for most corpora."""
        base = self.folder / "unlabelled"
        rows = []
        for video in sorted(base.glob("raw/*.mp4")):
            text = base / "text" / f"{video.stem}.txt"
            words = text.read_text("utf-8").strip() if text.exists() else ""
            rows.append((f"unlabelled-{video.stem}", "unlabelled", str(video), None, None, words))
        columns = ["id", "split", "video", "audio", "faces", "transcript"]
        return pd.DataFrame(rows, columns=columns)

    def paths(self, ids) -> Iterator[tuple[dict, bool]]:
        """What `decode` takes, of each clip."""
        columns = ["id", "split", "video", "audio", "faces"]
        looked = bool(self.table["faces"].notna().any())
        clips = pd.concat([self.table, self.unlabelled])[columns].set_index("id")
        clips = clips.astype(object).where(clips.notna(), None)
        for row in clips.loc[list(ids)].itertuples(index=False):
            yield row._asdict(), looked and row.split != "unlabelled"

    @functools.cached_property
    def pretraining(self) -> pd.DataFrame:
        """The clips that pretraining may see."""
        return pd.concat([self.clips[self.clips["split"] == "train"], self.unlabelled])

    @property
    def texts(self) -> list[str]:
        """The words that pretraining may see."""
        return [t for t in self.pretraining["transcript"] if isinstance(t, str) and t]

    @property
    def has_official(self) -> bool:
        """Some training clip has features of the organisers, so their baselines can be trained."""
        train = self.table[self.table["split"] == "train"]
        return bool(train[["official_vision", "official_audio"]].notna().any(axis=None))

    @functools.cached_property
    def key(self) -> str:
        """Hex digest that changes when a CSV, a transcript, or a file's name or size does.

        Of face crops, millions of files, it only counts which clips have a folder of them: for
        new crops in old folders take a new folder for results.
        Transcripts are those of the text files, and those that Whisper made where there is none.
        The embedded corpus is known by its parameters: its files may differ in bytes while the
        decoded frames do not.
        """
        digest = hashlib.sha256(speech.heard_key(self.table).encode())
        if self.is_synthetic:
            digest.update((self.folder / "synthetic.json").read_bytes())
            return digest.hexdigest()[:32]
        table = own.table_of(self.source)
        digest.update(b"" if table is None else table.name.encode())
        for path in sorted(self.folder.glob("*.csv")) + sorted(self.folder.rglob("text/*.txt")):
            digest.update(path.relative_to(self.folder).as_posix().encode() + path.read_bytes())
        files = ["id", "video", "audio", "official_vision", "official_audio"]
        for row in self.table[files].itertuples(index=False):
            for path in row[1:]:
                size = os.path.getsize(path) if isinstance(path, str) else -1
                digest.update(f"{row.id}:{size}".encode())
        digest.update(str(self.table["faces"].notna().tolist()).encode())
        return digest.hexdigest()[:32]

    @functools.cached_property
    def seconds(self) -> pd.Series:
        """Length of each clip in seconds, by id; NaN where neither picture nor sound opens."""

        def make(folder: Path) -> None:
            lengths = defects.durations(self.table, self.workers)
            lengths.to_json(folder / "seconds.json", orient="index")

        parts = {"corpus": self.key, "code": code_version("corpus/defects.py")}
        folder = self.cache.shared_step("durations", parts, make)
        lengths = json.loads((folder / "seconds.json").read_text())
        return pd.Series({id_: lengths[id_] for id_ in self.table["id"]}, dtype=float)

    def partitions(self, longest: float | None = None) -> pd.DataFrame:
        """`split`, `clips` and `seconds` of each partition, clips counted up to `longest` s."""
        lengths = self.table.assign(seconds=self.seconds.clip(upper=longest).to_numpy())
        grouped = lengths.groupby("split", sort=False)["seconds"]
        counts = grouped.agg(clips="size", seconds="sum")
        return counts.reindex(layout.SPLITS, fill_value=0).rename_axis("split").reset_index()

    def require_words(self) -> None:
        """Raise ValueError where no clips have words: Stage I aligns sound and frames with them."""
        words = self.table.loc[self.table["split"] == "train", "transcript"]
        count = int(words.fillna("").str.strip().ne("").sum())
        heard = words.isna().any() and speech.find_weights() is not None
        if count < 2 and not heard:
            raise ValueError(
                f"{self.source}: expected words of at least two training clips, got {count}: "
                "Stage I aligns sound and frames with words; give files in text/, in your CSV a "
                f"column text, or Whisper's weights ({how_to_get(speech.DEFAULT_MODEL)})"
            )


def decode(clip: tuple[dict, bool], profile, kept: int | None, sound=True) -> dict:
    """Frames (T, 3, S, S) uint8 and waveform (S,) int16 of a clip; None for what can't be read.

    clip : its paths or None as "video", "audio" and "faces", and whether the corpus looked for
        faces: then a clip without crops has none
    kept : frames, evenly spaced; None keeps all
    """
    paths, looked = clip
    faceless = looked and not layout.face_paths(paths["faces"])
    crops = looked and profile.visual == "faces"
    size = profile.face_size if crops and profile.face_size else profile.image_size
    seconds, frames, waveform = profile.max_seconds, None, None
    wanted = {"frames": not (crops or faceless), "sound": sound and paths["audio"] is None}
    if paths["video"] is not None and any(wanted.values()):
        limits = {"fps": profile.fps, "size": size, "max_seconds": seconds, "sparse": True}
        result = readable(media.decode, paths["video"], **limits, **wanted)
        if result is not None:
            frames, waveform = result.images, result.waveform
    if sound and paths["audio"] is not None:
        result = readable(media.decode, paths["audio"], frames=False, max_seconds=seconds)
        waveform = None if result is None else result.waveform
    if crops and not faceless:
        stated = (readable(media.stated_seconds, paths[k]) for k in ("video", "audio") if paths[k])
        duration = next((s for s in stated if s is not None), math.nan)
        frames = media.face_frames(paths["faces"], duration, profile.fps, size)
        if frames is not None and seconds is not None:
            frames = frames[: math.ceil(seconds * profile.fps)]
    if frames is not None:
        if kept is not None and len(frames) > kept:
            frames = frames[np.linspace(0, len(frames) - 1, kept).round().astype(int)]
        frames = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
    if waveform is not None:
        waveform = np.clip(waveform * 32768, -32768, 32767).astype(np.int16)
    return {"frames": frames, "waveform": waveform}


def pickled(path) -> np.ndarray | None:
    """(T, D) of an official pickle; None without one, and for one that can't be used.

    The audit lists them as "bad features"; a test clip gets its prediction all the same.
    """
    array = readable(feature_files.load_features, path) if isinstance(path, str) else None
    usable = array is not None and array.size and np.isfinite(array).all()
    return array.astype(np.float16) if usable else None


def readable(read: Callable, path, **options):
    """``read(path)``, or None for a file that can't be read; the audit names these files."""
    try:
        return read(path, **options)
    except media.MediaError:
        return None
