"""The embedded corpus: real media files of invented people, in the layout of Hume-Vidmimic2.

`generative_model.py` decides what the clips show, say and are labelled; here they are filmed: a
shaded head (`face.py`) whose action units rise and fall, lips that follow the phonemes of eSpeak NG
(`voice.py`), prosody that follows the emotions, and the defects of the real set.

The same parameters give the same decoded frames, waveforms, words and labels, whatever the number
of worker processes: every clip has random generators of its own, seeded by the corpus seed and its
number, and every utterance is spoken by a fresh process.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import pickle
import shutil
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pandas as pd
from PIL import Image
from scipy.signal import resample_poly
from threadpoolctl import threadpool_limits

from emilib import EMOTIONS, SAMPLE_RATE
from emilib.cache import atomic_write
from emilib.corpus.layout import CorpusError
from emilib.synthetic import face
from emilib.synthetic.generative_model import PROSODY, TOPICS, Design, Performances, draw, sentence
from emilib.synthetic.motion import move
from emilib.synthetic.voice import Speaker, Voice, perform
from emilib.workers import ordered_map

GENERATOR = 1  # raise it when the same parameters no longer give the same corpus
STATEMENT = (
    "This corpus is synthetic: rendered heads and synthesised speech. How much each modality tells "
    "about the labels is a parameter of the generator and says nothing about people."
)
FILMING = {  # how clips are recorded; each choice is drawn for each clip
    "sizes": [(160, 160), (192, 192), (224, 224), (160, 208)],  # height, width in pixels
    "size_shares": [0.78, 0.08, 0.04, 0.10],
    "rates": [10, 12, 25, 30],  # frames a second
    "rate_shares": [0.70, 0.22, 0.04, 0.04],
    "lies": [90, 250, 500, 1000],  # what the rate field says in clips where it lies
    "shortest": 2.0,  # s
    "longest": 8.0,  # s: the recording stops, whatever is still being said
    "thumbs": 0.10,  # share of face folders with a Thumbs.db
}
TOO_SHORT = 200  # samples at SAMPLE_RATE; wav2vec2's convolutions need 400
CROP = 112  # pixels, side of a face crop


def make(
    folder, train=400, validation=240, test=60, unlabelled=0, seed=0, workers=None, progress=None
) -> Path:
    """Write the embedded corpus into `folder` and return its path.

    train, validation, test : clips of each split
    unlabelled : further clips, mp4 and words only, in `unlabelled/`
    workers : processes; None = one a core, 1 = this process
    progress : called as progress(done, total) in clips

    A finished corpus with the same parameters is recognised and returned at once; after a kill, or
    where files of a clip are missing, only that is made again. Beside the real layout there are
    `synthetic.json` (parameters) and the hidden `.synthetic/` (manifest of the defects, for tests;
    clean signals of each clip).
    Raises CorpusError when the folder holds anything else than this corpus.
    """
    folder, design = Path(folder), Design()
    counts = {"train": train, "validation": validation, "test": test, "unlabelled": unlabelled}
    if min(counts.values()) < 0 or train + validation < 1:
        raise CorpusError(f"expected clips, at least one of them labelled, got {counts}")
    parameters = {**counts, "seed": seed, "design": asdict(design), "filming": FILMING}
    _claim(folder, json.loads(json.dumps({**parameters, "generator": GENERATOR})))
    performances = draw(**counts, seed=seed, design=design)
    clips = performances.clips()
    missing = [clip for clip in clips if not _is_finished(folder, clip)]
    film = functools.partial(film_clip, folder, seed, design)
    filmed = itertools.chain([None], ordered_map(film, missing, workers))
    try:
        for done, _ in enumerate(filmed, len(clips) - len(missing)):
            if progress is not None:
                progress(done, len(clips))
    finally:
        if _speaker.cache_info().currsize:  # an interrupted one would answer the wrong request next
            _speaker().close()
            _speaker.cache_clear()
    _write_tables(folder, performances)
    return folder


# ---- the folder ---------------------------------------------------------------------------------


def _claim(folder: Path, parameters: dict) -> None:
    """Take an empty folder, or recognise this very corpus in it."""
    note = folder / "synthetic.json"
    if not note.exists():
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise CorpusError(
                f"{folder}: expected a new or empty folder, or an embedded corpus (which has a "
                "synthetic.json), got something else; name another folder"
            )
        text = json.dumps({"statement": STATEMENT, **parameters}, indent=2)
        atomic_write(note, text + "\n")
    try:
        present = json.loads(note.read_text())
    except ValueError as error:
        raise CorpusError(f"{note} is damaged ({error}); delete {folder} to make it anew") from None
    for name, value in parameters.items():
        if present.get(name) != value:
            raise CorpusError(
                f"{folder} holds another embedded corpus: {name}: expected {value}, got "
                f"{present.get(name)}; name another folder or delete it"
            )


def _files(folder: Path, clip) -> dict[str, Path]:
    """Where the files of a clip belong, whether it has them or not."""
    root = folder / {"test": "test_data", "unlabelled": "unlabelled"}.get(clip.split, "")
    words = root if clip.split == "unlabelled" else folder
    files = {"text": words / "text" / f"{clip.id}.txt", "video": root / "raw" / f"{clip.id}.mp4"}
    if clip.split != "unlabelled":
        files["faces"] = root / "face_images" / clip.id
        files["official_vision"] = folder / "vit" / f"{clip.id}.pkl"
        files["audio"] = folder / "audio" / f"{clip.id}.mp3"
        files["official_audio"] = folder / "wav2vec2" / f"{clip.id}.pkl"
    return files


def _hidden(folder: Path, clip) -> tuple[Path, Path]:
    """Notes on a finished clip: the sizes of its files, and its entry of the manifest."""
    return tuple(folder / ".synthetic" / kind / f"{clip.id}.json" for kind in ("done", "clips"))


def _is_finished(folder: Path, clip) -> bool:
    """True when the clip was finished and everything it wrote is still there."""
    try:
        sizes = json.loads(_hidden(folder, clip)[0].read_text())
    except (FileNotFoundError, ValueError):
        return False
    return all(_size(folder / path) == size for path, size in sizes.items())


def _size(path: Path) -> int | None:
    """Bytes of a file, entries of a folder, None where there is nothing."""
    if not path.exists():
        return None
    return len(os.listdir(path)) if path.is_dir() else path.stat().st_size


def _write_tables(folder: Path, performances: Performances) -> None:
    """The CSVs of the splits, the clean signals and the manifest; always last."""
    table = pd.DataFrame(performances.label, columns=list(EMOTIONS))
    table.insert(0, "Filename", performances.id)
    for split, name in (("train", "train_split.csv"), ("validation", "valid_split.csv")):
        rows = table[np.array(performances.split) == split]
        atomic_write(folder / name, rows.to_csv(index=False))
    signals = performances.signals()
    atomic_write(folder / ".synthetic" / "signals.csv", signals.to_csv(index=False))
    notes = [_hidden(folder, clip)[1].read_text() for clip in performances.clips()]
    manifest = {"clips": {entry["id"]: entry for entry in map(json.loads, notes)}}
    atomic_write(folder / ".synthetic" / "manifest.json", json.dumps(manifest, indent=1))


# ---- one clip -----------------------------------------------------------------------------------

_speaker = functools.cache(Speaker)  # one speech program for each process


def film_clip(folder: Path, seed: int, design: Design, clip) -> None:
    """Write all files of one clip of `Performances.clips`; last, that it is finished."""
    rng = np.random.default_rng([seed, 2, clip.number])
    person = _person(seed, int(clip.person))
    words = sentence(clip.strength, clip.topic, rng, design)
    sound, rate, phonemes = _sound(clip, person, words, rng)
    seconds = len(sound) / rate
    shot = _shot(clip, seconds, rng)
    motion = move(clip, seed, shot.ticks * (1 / shot.stated), seconds, phonemes, rng)
    empty = clip.defect == "no_face"
    frames = face.render(person.appearance, motion, shot.size, rng, empty)

    files, (note, entry) = _files(folder, clip), _hidden(folder, clip)
    note.unlink(missing_ok=True)
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    _write_video(files["video"], clip, frames, shot, sound, rate)
    _spoil(files["video"], clip.defect, rng)
    transcript = _transcript(clip, words, rng)
    if transcript is not None:
        files["text"].write_text(transcript)
    if clip.split != "unlabelled":
        with threadpool_limits(1):  # the same bits with any number of threads
            _write_faces(files, clip, frames, motion, shot, rng)
            _write_sound(files, clip, sound, rate)
    facts = {"id": clip.id, "split": clip.split, "defect": clip.defect, "person": int(clip.person)}
    facts |= {"seed": int(clip.seed), "topic": list(TOPICS)[clip.topic], "words": words}
    facts |= {"fps": float(shot.fps), "stated_fps": float(shot.stated), "size": shot.size}
    facts |= {"seconds": seconds, "frames": len(frames), "thumbs_db": shot.thumbs}
    atomic_write(entry, json.dumps(facts))
    sizes = {str(path.relative_to(folder)): _size(path) for path in files.values()}
    atomic_write(note, json.dumps({path: size for path, size in sizes.items() if size is not None}))


@functools.lru_cache(maxsize=256)
def _person(seed: int, number: int) -> SimpleNamespace:
    """Appearance, voice, and hiss (spread of the noise in the person's room)."""
    rng = np.random.default_rng([seed, 3, number])
    appearance = face.Appearance.draw(rng)
    voice = Voice.draw(appearance.feminine, rng)
    return SimpleNamespace(appearance=appearance, voice=voice, hiss=10 ** rng.uniform(-4.0, -3.0))


def _shot(clip, seconds: float, rng) -> SimpleNamespace:
    """How a clip is recorded: size, frames a second, what the rate field states, and `ticks`.

    ticks : (T,) times of the frames, in units of 1 / stated s
    """
    size = FILMING["sizes"][rng.choice(len(FILMING["sizes"]), p=FILMING["size_shares"])]
    fps = FILMING["rates"][rng.choice(len(FILMING["rates"]), p=FILMING["rate_shares"])]
    count = max(int(seconds * fps), 1)
    stated = int(rng.choice(FILMING["lies"])) if clip.defect == "lying_rate" else fps
    thumbs = bool(rng.random() < FILMING["thumbs"])
    ticks = np.arange(count)
    if stated != fps:  # frames come when they come, as from a browser's recorder
        ticks = np.round((ticks + rng.uniform(-0.25, 0.25, count)) * stated / fps).astype(int)
        ticks -= ticks[0]
    return SimpleNamespace(size=size, fps=fps, stated=stated, ticks=ticks, thumbs=thumbs)


# ---- sound and words ----------------------------------------------------------------------------


def _sound(clip, person, words: str, rng):
    """Returns (samples float32 in [-1, 1], rate in Hz, [(time in s, phoneme), ...])."""
    prosody = dict(zip(PROSODY, clip.prosody, strict=True))
    voice, rate, phonemes = perform(_speaker(), words, person.voice, prosody, rng)
    lead, tail = rng.uniform(0.1, 0.3), rng.uniform(0.2, 0.4)
    seconds = np.clip(lead + len(voice) / rate + tail, FILMING["shortest"], FILMING["longest"])
    sound = np.zeros(round(seconds * rate), np.float32)
    start = round(lead * rate)
    spoken = voice[: len(sound) - start]
    sound[start : start + len(spoken)] = spoken
    sound += person.hiss * rng.standard_normal(len(sound), dtype=np.float32)
    if clip.defect == "silent":
        sound[:] = 0
    return np.clip(sound, -1, 1), rate, [(lead + time, name) for time, name in phonemes]


def _transcript(clip, words: str, rng) -> str | None:
    """What a participant's speech recogniser made of the clip; None = no file."""
    if clip.defect == "no_audio_track":
        return None
    if clip.defect == "empty_transcript":
        return ""
    if clip.defect in ("silent", "too_short_audio"):  # recognisers invent words there
        return "Thank you." if rng.random() < 0.5 else ""
    return words


# ---- files --------------------------------------------------------------------------------------


def _write_video(path: Path, clip, frames, shot, sound, rate: int) -> None:
    """H.264 and AAC in an mp4."""
    if clip.defect == "rotated":
        frames = np.rot90(frames, axes=(1, 2))
    if clip.defect == "too_short_audio":  # an AAC packet has 1024 samples: 341 at 16 kHz
        sound, rate = sound[:TOO_SHORT], 48000
    faststart = {"movflags": "+faststart"}  # the index first: a cut file can still be read
    with av.open(str(path), "w", format="mp4", options=faststart) as container:
        options = {"preset": "ultrafast", "crf": "26", "threads": "1"}  # one thread: repeatable
        video = container.add_stream("libx264", rate=shot.stated, options=options)
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        video.codec_context.time_base = Fraction(1, shot.stated)
        if clip.defect != "no_audio_track":
            audio = container.add_stream("aac", rate=rate, options={"aac_coder": "fast"})
            audio.layout, audio.bit_rate = "mono", 48000
        for image, tick in zip(frames, shot.ticks, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = int(tick), Fraction(1, shot.stated)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if clip.defect != "no_audio_track":
            _encode_sound(container, audio, sound, "fltp", 1024)


def _encode_sound(container, stream, sound, layout: str, step: int) -> None:
    """Encode samples in frames as long as the codec's, each with its time stamp."""
    for start in range(0, len(sound), step):
        piece = np.ascontiguousarray(sound[None, start : start + step])
        frame = av.AudioFrame.from_ndarray(piece, format=layout, layout="mono")
        frame.sample_rate, frame.pts = stream.rate, start
        frame.time_base = Fraction(1, stream.rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _spoil(video: Path, defect: str, rng) -> None:
    """Damage the finished mp4 where the clip's defect says so."""
    if defect == "damaged" and rng.random() < 0.5:
        os.truncate(video, int(0.6 * video.stat().st_size))
    elif defect == "damaged":
        with av.open(str(video)) as container:
            packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
        data = bytearray(video.read_bytes())
        for start, size in packets[len(packets) // 3 : 2 * len(packets) // 3]:
            inside = max(size - 8, 0)  # lengths and headers of the units stay
            data[start + 8 : start + 8 + inside] = rng.bytes(inside)
        video.write_bytes(data)
    elif defect == "unreadable":
        os.truncate(video, 200)  # the index is longer than that
    elif defect == "rotated":
        # The display matrix of a quarter turn, as phones write it; PyAV cannot. It is nine 32-bit
        # numbers in the header of the first track, the picture's (ISO 14496-12, 8.3.2).
        data, one = bytearray(video.read_bytes()), 0x10000
        header = data.index(b"tkhd") + 4
        matrix = header + (52 if data[header] == 1 else 40)
        quarter = np.array([0, one, 0, -one, 0, 0, 0, 0, 0x40000000], ">i4")
        data[matrix : matrix + 36] = quarter.tobytes()
        video.write_bytes(data)


def _write_faces(files, clip, frames, motion, shot, rng) -> None:
    """face_images/ID/<int>.jpg and vit/ID.pkl; without a face nothing, or an empty folder."""
    folder = files["faces"]
    shutil.rmtree(folder, ignore_errors=True)
    if clip.defect != "no_face" or rng.random() < 0.5:
        folder.mkdir()
    if clip.defect == "no_face":
        return
    crops = _crops(frames, face.head_box(motion, shot.size))
    for i, crop in enumerate(crops, 1):
        Image.fromarray(crop).save(folder / f"{i}.jpg", quality=85)
    if shot.thumbs:
        (folder / "Thumbs.db").write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(504))
    files["official_vision"].write_bytes(_pickled(_face_features(crops)))


def _crops(frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(T, CROP, CROP, 3) uint8: the boxes, moved inside the picture."""
    height, width = frames.shape[1:3]
    crops = np.empty((len(frames), CROP, CROP, 3), np.uint8)
    for i, (left, top, right, bottom) in enumerate(boxes):
        side = min(right - left, bottom - top, height, width)
        left, top = min(max(left, 0), width - side), min(max(top, 0), height - side)
        box = (left, top, left + side, top + side)
        image = Image.fromarray(frames[i])
        crops[i] = image.resize((CROP, CROP), Image.Resampling.BILINEAR, box=box)
    return crops


def _write_sound(files, clip, sound, rate: int) -> None:
    """audio/ID.mp3 at 16 kHz and wav2vec2/ID.pkl; neither for a clip without an audio track."""
    if clip.defect == "no_audio_track":
        return
    ratio = Fraction(SAMPLE_RATE, rate)
    sound = resample_poly(sound, ratio.numerator, ratio.denominator).astype(np.float32)
    if clip.defect == "too_short_audio":
        sound = sound[:TOO_SHORT]
    else:
        files["official_audio"].write_bytes(_pickled(_sound_features(sound)))
    samples = np.clip(np.round(sound * 32767), -32768, 32767).astype(np.int16)
    with av.open(str(files["audio"]), "w", format="mp3") as container:
        options = {"compression_level": "7"}
        audio = container.add_stream("libmp3lame", rate=SAMPLE_RATE, options=options)
        audio.layout, audio.bit_rate = "mono", 32000
        _encode_sound(container, audio, samples, "s16p", 576)


# ---- the organisers' features -------------------------------------------------------------------


@functools.cache
def _projection(inputs: int, outputs: int) -> np.ndarray:
    """Fixed random projection; the same in every corpus, like a published encoder."""
    rng = np.random.default_rng([inputs, outputs])
    return (rng.standard_normal((inputs, outputs)) / math.sqrt(inputs)).astype(np.float32)


def _face_features(crops: np.ndarray) -> np.ndarray:
    """(T, 384): tanh of 16 x 16 green pixels, projected; stands for the official ViT."""
    side = CROP // 16
    green = crops[..., 1].reshape(len(crops), 16, side, 16, side)  # nearly the luminance
    pixels = green.mean(axis=(2, 4), dtype=np.float32).reshape(len(crops), 256)
    pixels = (pixels - pixels.mean(axis=1, keepdims=True)) / 40
    return np.tanh(pixels @ _projection(256, 384))


def _sound_features(sound: np.ndarray) -> np.ndarray:
    """(T, 768), ten a second: tanh of projected log band energies, mean and spread.

    Stands for the official wav2vec2, which has 50 a second; ten keep the corpus small.
    """
    window, step = 400, 160
    padded = np.pad(sound, (0, max(0, 1600 + window - len(sound))))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, window)[::step]
    spectrum = np.abs(np.fft.rfft(pieces * np.hanning(window), axis=1)).astype(np.float32)
    edges = np.unique(np.round(np.geomspace(2, 201, 49)).astype(int))
    bands = np.log(1e-3 + np.add.reduceat(spectrum, edges[:-1], axis=1))
    blocks = bands[: len(bands) // 10 * 10].reshape(-1, 10, bands.shape[1])
    both = np.concatenate([blocks.mean(axis=1), 2 * blocks.std(axis=1)], axis=1) / 3
    return np.tanh(both @ _projection(both.shape[1], 768))


def _pickled(features: np.ndarray) -> bytes:
    return pickle.dumps(np.ascontiguousarray(features, np.float32), protocol=4)
