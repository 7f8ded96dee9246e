"""A small folder exactly as participants receive Hume-Vidmimic2, with every defect it has.

Pictures, voices and words are parts of an embedded corpus; ids, files, lengths, rates and gaps are
those of the real set. Nothing says that it is synthetic: it is read as a real folder.
"""

import functools
import io
import pickle
import random
import tempfile
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from conftest import sine
from conftest import write_media as write
from PIL import Image

from emilib.corpus import feature_files, media, read
from emilib.corpus.layout import HEADER, face_paths
from emilib.synthetic import film as synthetic

LABELLED_IDS, TEST_IDS = range(12660), range(12660, 17246)
SHORT_IDS = ("02404", "10155")  # shorter than wav2vec2's convolutions
SHORTEST, LONGEST = 0.064, 1249.92  # s
MOST_FACES = 2591
FACE_RATE, FACE_SIDE = 30, 160
RATES = (1000, 90, 250, 500)  # what frame-rate fields say, whatever the time stamps do
WIDTHS = {"vit": 192, "wav2vec2": 512}  # neither ours nor the embedded corpus's
RATE = 16000  # Hz
X264 = {"preset": "ultrafast", "g": "250", "bf": "0"}
MP3_FRAME, AAC_FRAME = 576, 1024  # samples; LONGEST is 34,720 of one and 19,530 of the other

# Which clips have what, by their place in the split. Places without a name are healthy.
PLACES = {
    "train": {
        1: "shortest",
        2: "longest",
        3: "unreadable video",
        4: "no sound",
        5: "no face folder",
        6: "only Thumbs.db",
        7: "too short",
        8: "silent",
        9: "lying rate",
        10: "empty transcript",
        11: "no transcript",
        12: "unreadable sound",
        13: "sound in mp4",
        15: "lying rate",
    },
    "validation": {
        1: "lying rate",
        2: "too short",
        3: "no face folder",
        4: "sound in mp4",
        5: "empty transcript",
        6: "no transcript",
    },
    "test": {0: "lying rate", 1: "empty transcript", 2: "only Thumbs.db", 3: "no sound"},
}


@dataclass
class Built:
    """What was built: `kind` is {id: its place's name, or ""}; `rates` those that lie, by id."""

    folder: Path
    kind: dict = field(default_factory=dict)
    split: dict = field(default_factory=dict)
    rates: dict = field(default_factory=dict)

    def ids(self, *kinds, split=None):
        """Ids of these kinds, sorted; of one split where it is named."""
        return sorted(
            i for i, k in self.kind.items() if k in kinds and split in (None, self.split[i])
        )


def build(folder, train=24, validation=16, test=6, mixed_widths=False, seed=0):
    """Make the folder; returns a Built. The first 16, 7 and 4 clips of the splits hold all defects.

    mixed_widths : every fifth official pickle is 8 wider than the others
    """
    folder = Path(folder)
    rng = random.Random(seed)
    built = Built(folder)
    counts = {"train": train, "validation": validation, "test": test}
    for split, ids in _ids(counts, rng).items():
        for place, id_ in enumerate(ids):
            kind = PLACES[split].get(place, "")
            built.kind[id_], built.split[id_] = kind, split
            if kind == "lying rate":
                built.rates[id_] = RATES[len(built.rates) % len(RATES)]
    parts = _parts()
    for number, id_ in enumerate(built.kind):
        wider = 8 if mixed_widths and number % 5 == 0 else 0
        _clip(built, id_, parts[number % len(parts)], number, wider)
    _tables(built, seed)
    return built


def _ids(counts, rng):
    """Ids in no order, as the real split files have them; the two short ones at their places."""
    count = counts["train"] + counts["validation"]
    others = [i for i in LABELLED_IDS if f"{i:05d}" not in SHORT_IDS]
    names = [f"{i:05d}" for i in rng.sample(others, count)]
    ids = {"train": names[: counts["train"]], "validation": names[counts["train"] :]}
    for split, short in zip(ids, SHORT_IDS, strict=True):
        place = next(p for p, kind in PLACES[split].items() if kind == "too short")
        if place < len(ids[split]):
            ids[split][place] = short
    ids["test"] = [f"{i:05d}" for i in TEST_IDS[: counts["test"]]]
    return ids


# ---- parts of an embedded corpus ----------------------------------------------------------------


@dataclass
class _Part:
    video: bytes
    images: np.ndarray  # (T, H, W, 3) uint8
    times: np.ndarray
    mp3: bytes
    sound: np.ndarray  # (S,)
    faces: list  # JPEG bytes, one a picture of the video
    words: str
    features: dict  # of "vit" and "wav2vec2"


@functools.cache
def _parts(count=4):
    """Healthy clips of a small embedded corpus, in pieces; made once a process."""
    with tempfile.TemporaryDirectory() as folder:
        clips = read(synthetic.make(Path(folder) / "corpus", count, 2, 0, workers=1))
        found = [_part(row) for row in clips.itertuples() if _is_whole(row)]
    return found[:count]


def _is_whole(row):
    kinds = (row.video, row.audio, row.faces, row.official_vision, row.official_audio)
    if None in kinds or not row.transcript:
        return False
    try:
        decoded = media.decode(row.video, fps=None)
    except media.MediaError:
        return False
    healthy = decoded.declared_fps < 1.2 * decoded.measured_fps and not decoded.damaged
    return healthy and not decoded.rotation and media.loudness(decoded.waveform, RATE) > -40


def _part(row):
    decoded = media.decode(row.video, fps=None)
    features = {
        name: feature_files.load_features(path)[:, : WIDTHS[name]]
        for name, path in (("vit", row.official_vision), ("wav2vec2", row.official_audio))
    }
    return _Part(
        Path(row.video).read_bytes(),
        decoded.images,
        decoded.times,
        Path(row.audio).read_bytes(),
        decoded.waveform,
        [_jpeg(path) for path in face_paths(row.faces)],
        row.transcript,
        features,
    )


def _jpeg(path):
    data = io.BytesIO()
    with Image.open(path) as picture:
        picture.resize((FACE_SIDE, FACE_SIDE)).save(data, "JPEG", quality=85)
    return data.getvalue()


# ---- one clip -----------------------------------------------------------------------------------


def _clip(built, id_, part, number, wider):
    kind, split = built.kind[id_], built.split[id_]
    inside = built.folder / "test_data" if split == "test" else built.folder
    video = _ready(inside / "raw" / f"{id_}.mp4")
    _video(video, kind, part, built.rates.get(id_))
    if split != "test":  # test clips have only what their mp4 has
        _sound(built.folder, id_, kind, part)
        _features(built.folder, id_, kind, part, wider)
    _faces(inside / "face_images" / id_, kind, part, number)
    if kind != "no transcript":
        words = "" if kind in ("empty transcript", "shortest", "too short", "no sound") else None
        words = "Thank you." if kind == "silent" else words  # recognisers invent words there
        words = part.words if words is None else words
        _ready(built.folder / "text" / f"{id_}.txt").write_text(words)


def _ready(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _video(path, kind, part, rate):
    if kind == "lying rate":
        pictures, times = _every(part, 2)
        _write(path, pictures, times, part.sound[None, : 2 * RATE], rate)
    elif kind == "shortest":
        _write(path, part.images[:1], [0], _loudest(part, AAC_FRAME), FACE_RATE)
    elif kind == "longest":
        _write_long(path, part)
    elif kind in ("no sound", "too short", "silent"):
        pictures, _ = _every(part, 2)
        sound = {"no sound": None, "too short": _loudest(part, 300)}.get(kind, _silence())
        sound_rate = 48000 if kind == "too short" else RATE  # a packet is 341 samples at 16 kHz
        _write(path, pictures, np.arange(len(pictures)) / 25, sound, 25, sound_rate=sound_rate)
    else:
        path.write_bytes(part.video[:200] if kind == "unreadable video" else part.video)


def _every(part, seconds):
    count = int(np.searchsorted(part.times, seconds))
    return part.images[:count], part.times[:count]


def _silence():
    return np.zeros((1, 2 * RATE), np.float32)


def _loudest(part, samples):
    start = max(0, int(np.abs(part.sound).argmax()) - samples // 2)
    return part.sound[None, start : start + samples]


def _write(path, images, times, sound, rate, **options):
    write(
        *(path, times, sound),
        size=images.shape[1:3],
        rate=rate,
        clock=Fraction(1, rate),
        make=lambda number, *_: images[number],
        options=X264,
        **options,
    )


def _write_long(path, part):
    """A small picture a second, and one coded frame of sound again and again."""
    seconds = int(LONGEST)
    small = np.ascontiguousarray(part.images[:, ::4, ::4])
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as out:
        video = out.add_stream("libx264", rate=1, options=X264)
        video.height, video.width, video.pix_fmt = *small.shape[1:3], "yuv420p"
        audio = out.add_stream("aac", rate=RATE)
        audio.layout = "mono"
        for second in range(seconds):
            frame = av.VideoFrame.from_ndarray(small[second % len(small)], format="rgb24")
            frame.pts, frame.time_base = second, Fraction(1)
            out.mux(video.encode(frame))
        out.mux(video.encode())
        coded = _coded_sound(audio, part.sound)
        for number in range(round(LONGEST * RATE / AAC_FRAME)):
            packet = av.Packet(coded)
            packet.stream, packet.time_base = audio, Fraction(1, RATE)
            packet.pts = packet.dts = number * AAC_FRAME
            packet.duration = AAC_FRAME
            out.mux(packet)


def _coded_sound(audio, sound):
    """One packet from the middle of a sound."""
    packets = []
    for start in range(0, len(sound) - AAC_FRAME, AAC_FRAME):
        piece = np.ascontiguousarray(sound[None, start : start + AAC_FRAME])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
        packets += [bytes(packet) for packet in audio.encode(frame)]
    return packets[len(packets) // 2]


def _sound(folder, id_, kind, part):
    if kind == "no sound":
        return
    path = _ready(folder / "audio" / f"{id_}.mp3")
    if kind == "longest":
        path.write_bytes(_long_mp3())
    elif kind == "unreadable sound":
        path.write_bytes(b"no sound in here" * 20)
    elif kind == "sound in mp4":
        write(path.with_suffix(".mp4"), sound=part.sound[None])
    elif kind == "shortest":
        write(path.with_suffix(".mp4"), sound=_loudest(part, round(SHORTEST * RATE)))
    elif kind in ("too short", "silent"):
        sound = _loudest(part, 200) if kind == "too short" else _silence()
        write(path, sound=sound, sound_codec="libmp3lame")
    else:
        path.write_bytes(part.mp3)


@functools.cache
def _long_mp3():
    """Frames of one second, again and again: without a bit reservoir each stands for itself."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "second.mp3"
        write(path, sound=sine(200, 2, RATE, amplitude=0.2), sound_codec="libmp3lame")
        with av.open(str(path)) as container:
            frames = [bytes(packet) for packet in container.demux() if packet.size]
    steady = frames[len(frames) // 2]
    return steady * round(LONGEST * RATE / MP3_FRAME)


def _faces(folder, kind, part, number):
    if kind == "no face folder":
        return
    folder.mkdir(parents=True)
    if kind == "only Thumbs.db" or number % 3 == 0:
        (folder / "Thumbs.db").write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(504))
    if kind == "only Thumbs.db":
        return
    seconds = {"shortest": 2 / FACE_RATE, "longest": MOST_FACES / FACE_RATE, "": part.times[-1]}
    count = round(seconds.get(kind, 2.0) * FACE_RATE)
    step = FACE_RATE * part.times[-1] / (len(part.faces) - 1)  # crops a picture of the video
    for k in range(count):
        place = int(k / step) % len(part.faces)
        (folder / f"{k}.jpg").write_bytes(part.faces[place])


def _features(folder, id_, kind, part, wider):
    lacking = {
        "vit": ("no face folder", "only Thumbs.db", "unreadable video"),
        "wav2vec2": ("no sound", "too short", "unreadable sound"),
    }
    for name, kinds in lacking.items():
        if kind in kinds:
            continue
        rows = part.features[name]
        rows = np.pad(rows, ((0, 0), (0, wider)))
        rows = rows[:1] if kind == "shortest" else rows
        path = _ready(folder / name / f"{id_}.pkl")
        path.write_bytes(pickle.dumps(rows, protocol=2 if name == "vit" else 4))


# ---- the split files ----------------------------------------------------------------------------


def _tables(built, seed):
    """train_split.csv and valid_split.csv, rows in the order of the ids' draw; none for test."""
    for split, name in (("train", "train_split.csv"), ("validation", "valid_split.csv")):
        ids = [i for i, s in built.split.items() if s == split]
        drawn = synthetic.draw(len(ids), 1, 0, 0, seed).label[: len(ids)]
        constant = drawn.std(axis=0) == 0  # an emotion that nobody shows: ρ would have no value
        drawn[-1, constant] = 1 / 3
        rows = [
            f"{i},{','.join(f'{v:.3g}' for v in row)}" for i, row in zip(ids, drawn, strict=True)
        ]
        (built.folder / name).write_text("\n".join([HEADER, *rows]) + "\n")
