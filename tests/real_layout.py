"""A small folder exactly as participants receive Hume-Vidmimic2, with every defect it has.

Ids, files, lengths, rates and gaps are those of the real set; pictures, tones and words are not.
"""

import io
import pickle
import random
import tempfile
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from conftest import picture, sine, write_media
from PIL import Image

from emilib.corpus.layout import HEADER

LABELLED_IDS, TEST_IDS = range(12660), range(12660, 17246)
SHORT_IDS = ("02404", "10155")  # shorter than wav2vec2's convolutions
SHORTEST, LONGEST = 0.064, 1249.92  # s
MOST_FACES = 2591
FACE_RATE, FACE_SIDE = 30, 160
RATES = (1000, 90, 250, 500)  # what frame-rate fields say, whatever the time stamps do
WIDTHS = {"vit": 192, "wav2vec2": 512}  # neither ours nor the embedded corpus's
RATE = 16000  # Hz
FPS = 12
X264 = {"preset": "ultrafast", "g": "250", "bf": "0"}
WORDS = ["well", "that", "was", "really", "great", "today", "everyone", "felt", "happy", "then"]
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
    for number, id_ in enumerate(built.kind):
        wider = 8 if mixed_widths and number % 5 == 0 else 0
        _clip(built, id_, np.random.default_rng([seed, number]), number, wider)
    for split, name in (("train", "train_split.csv"), ("validation", "valid_split.csv")):
        shares = np.random.default_rng(seed).integers(-9, 7, (counts[split], 6)).clip(0) / 6
        ids = [i for i, s in built.split.items() if s == split]
        rows = [
            ",".join([i, *(f"{v:.3g}" for v in row)]) for i, row in zip(ids, shares, strict=True)
        ]
        (folder / name).write_text("\n".join([HEADER, *rows]) + "\n")
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


def _clip(built, id_, draw, number, wider):
    kind, split = built.kind[id_], built.split[id_]
    inside = built.folder / "test_data" if split == "test" else built.folder
    seconds = {"shortest": SHORTEST, "longest": LONGEST}.get(kind, draw.uniform(1.5, 3))
    sound = _sound(kind, seconds, draw)
    _video(_ready(inside / "raw" / f"{id_}.mp4"), kind, seconds, sound, built.rates.get(id_), draw)
    _faces(inside / "face_images" / id_, kind, seconds, number, draw)
    if split != "test":  # test clips have only what their mp4 has
        if sound is not None:
            _sound_file(_ready(built.folder / "audio" / f"{id_}.mp3"), kind, sound)
        _features(built.folder, id_, kind, draw, wider)
    if kind != "no transcript":
        words = " ".join(draw.choice(WORDS, 6))
        empty = kind in ("empty transcript", "shortest", "too short", "no sound")
        words = "Thank you." if kind == "silent" else words  # recognisers invent words there
        _ready(built.folder / "text" / f"{id_}.txt").write_text("" if empty else words)


def _ready(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _sound(kind, seconds, draw):
    if kind == "no sound":
        return None
    samples = 200 if kind == "too short" else round(min(seconds, 3) * RATE)
    tone = sine(draw.uniform(100, 400), 3)[:, :samples]
    return tone * (0 if kind == "silent" else draw.uniform(0.3, 1))


def _video(path, kind, seconds, sound, lie, draw):
    if kind == "unreadable video":
        path.write_bytes(b"no video in here" * 20)
    elif kind == "longest":
        _long_video(path)
    else:
        shade, rate = draw.integers(50), FACE_RATE if kind == "shortest" else lie or FPS
        # a packet of 1024 samples at 48 kHz is 341 at 16 kHz
        times = np.arange(max(1, int(seconds * FPS))) / FPS
        write_media(
            path,
            times,
            sound,
            size=(96, 96),
            rate=rate,
            clock=Fraction(1, rate),
            sound_rate=3 * RATE if kind == "too short" else RATE,
            make=lambda number, *size: picture(number + shade, *size),
            options=X264,
        )


def _long_video(path):
    """A small picture a second, and one coded frame of sound again and again."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as out:
        video, audio = out.add_stream("libx264", rate=1, options=X264), out.add_stream("aac", RATE)
        video.height, video.width, video.pix_fmt = 32, 32, "yuv420p"
        audio.layout = "mono"
        for second in range(int(LONGEST)):
            frame = av.VideoFrame.from_ndarray(picture(second, 32, 32), format="rgb24")
            frame.pts, frame.time_base = second, Fraction(1)
            out.mux(video.encode(frame))
        out.mux(video.encode())
        coded = _steady("aac", "a.mp4")
        for number in range(round(LONGEST * RATE / AAC_FRAME)):
            packet = av.Packet(coded)
            packet.stream, packet.time_base = audio, Fraction(1, RATE)
            packet.pts = packet.dts = number * AAC_FRAME
            packet.duration = AAC_FRAME
            out.mux(packet)


def _steady(codec, name):
    """One coded frame from the middle of a tone; without a bit reservoir it stands for itself."""
    with tempfile.TemporaryDirectory() as folder:
        write_media(Path(folder) / name, sound=sine(200, 2, amplitude=0.2), sound_codec=codec)
        with av.open(str(Path(folder) / name)) as container:
            frames = [bytes(packet) for packet in container.demux() if packet.size]
    return frames[len(frames) // 2]


def _sound_file(path, kind, sound):
    if kind == "unreadable sound":
        path.write_bytes(b"no sound in here" * 20)
    elif kind == "longest":
        path.write_bytes(_steady("libmp3lame", "a.mp3") * round(LONGEST * RATE / MP3_FRAME))
    elif kind in ("sound in mp4", "shortest"):
        write_media(path.with_suffix(".mp4"), sound=sound)
    else:
        write_media(path, sound=sound, sound_codec="libmp3lame")


def _faces(folder, kind, seconds, number, draw):
    if kind == "no face folder":
        return
    folder.mkdir(parents=True)
    if kind == "only Thumbs.db" or number % 3 == 0:
        (folder / "Thumbs.db").write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(504))
    count = 0 if kind == "only Thumbs.db" else min(round(seconds * FACE_RATE), MOST_FACES)
    faces = [_jpeg(picture(shade, FACE_SIDE, FACE_SIDE)) for shade in draw.integers(50, size=8)]
    for k in range(count):
        (folder / f"{k}.jpg").write_bytes(faces[k % len(faces)])


def _jpeg(image):
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=85)
    return data.getvalue()


def _features(folder, id_, kind, draw, wider):
    lacking = {
        "vit": ("no face folder", "only Thumbs.db", "unreadable video"),
        "wav2vec2": ("no sound", "too short", "unreadable sound"),
    }
    for name, kinds in lacking.items():
        rows = 1 if kind == "shortest" else draw.integers(10, 40)
        array = draw.normal(size=(rows, WIDTHS[name] + wider)).astype(np.float32)
        if kind not in kinds:
            path = _ready(folder / name / f"{id_}.pkl")
            path.write_bytes(pickle.dumps(array, protocol=2 if name == "vit" else 4))
