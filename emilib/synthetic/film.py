"""The embedded corpus: real media files of invented people, in the layout of Hume-Vidmimic2.

`make` writes it, `draw` gives its signals and labels without rendering. What the clips show, say
and are labelled is decided in `script.py`; here they are filmed: a shaded head (`face.py`) whose
action units rise and fall, lips that follow the phonemes of eSpeak NG (`voice.py`), prosody that
follows the emotions, and the defects of the real set.

The same parameters give the same decoded frames, waveforms, words and labels, whatever the number
of worker processes: every clip has random generators of its own, seeded by the corpus seed and its
number, and every utterance is spoken by a fresh process.
"""

from __future__ import annotations

import functools
import json
import math
import os
import pickle
import shutil
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import pandas as pd
from PIL import Image
from scipy.signal import lfilter, resample_poly
from threadpoolctl import threadpool_limits

from emilib import workers as processes
from emilib.corpus.layout import EMOTIONS, CorpusError
from emilib.synthetic import face
from emilib.synthetic.generative_model import (
    ACTION_UNITS,
    PROSODY,
    TOPICS,
    Design,
    Performances,
    draw,
    sentence,
)
from emilib.synthetic.voice import FEMININE, VOICES, Speaker, Utterance

__all__ = ["Design", "Filming", "Performances", "draw", "make"]

GENERATOR = 1  # raise it when the same parameters no longer give the same corpus
STATEMENT = (
    "This corpus is synthetic: rendered heads and synthesised speech. How much each modality tells "
    "about the labels is a parameter of the generator and says nothing about people."
)
MP3_RATE = 16000  # Hz, as in the real set
TOO_SHORT = 200  # samples at MP3_RATE; wav2vec2's convolutions need 400
CROP = 112  # pixels, side of a face crop


@dataclass(frozen=True)
class Filming:
    """How clips are recorded; each choice is drawn a clip."""

    sizes: tuple = ((160, 160), (192, 192), (224, 224), (160, 208))  # height, width in pixels
    size_shares: tuple = (0.78, 0.08, 0.04, 0.10)
    rates: tuple = (10, 12, 25, 30)  # frames a second
    rate_shares: tuple = (0.70, 0.22, 0.04, 0.04)
    lies: tuple = (90, 250, 500, 1000)  # what the rate field says in clips with a lying one
    shortest: float = 2.0  # s
    longest: float = 8.0  # s: the recording stops, whatever is still being said
    thumbs: float = 0.10  # share of face folders with a Thumbs.db


@dataclass(frozen=True)
class _Clip:
    """All that is needed to film one clip."""

    number: int
    id: str
    split: str
    defect: str
    person: int
    seed: int
    topic: int
    action_units: tuple
    prosody: tuple
    strength: tuple


@dataclass(frozen=True)
class _Parameters:
    """What determines the corpus, and nothing else."""

    train: int
    validation: int
    test: int
    unlabelled: int
    seed: int
    design: Design
    filming: Filming
    generator: int = GENERATOR

    def json(self) -> dict:
        return json.loads(json.dumps(asdict(self)))


def make(
    folder,
    train: int = 400,
    validation: int = 240,
    test: int = 60,
    unlabelled: int = 0,
    seed: int = 0,
    workers: int | None = None,
    progress=None,
) -> Path:
    """Write the embedded corpus into `folder` and return its path.

    train, validation, test : clips of each split
    unlabelled : further clips, mp4 and words only, in `unlabelled/`
    workers : processes; None = one a core, 1 = this process. A script that calls this
        with several needs the usual `if __name__ == "__main__":`
    progress : called as progress(done, total) in clips

    A corpus that is there already with the same parameters is recognised and returned at once;
    after a kill, or where files of a clip have gone, only what is missing is made. Beside the
    real layout there are `synthetic.json` (parameters) and the hidden `.synthetic/` (manifest of
    the defects, for tests; clean signals a clip).
    Raises CorpusError when the folder holds anything else than this corpus.
    """
    if min(train, validation, test, unlabelled) < 0 or train + validation < 1:
        raise CorpusError(
            f"The embedded corpus needs counts of clips that are not negative and at least one "
            f"labelled clip, but got train={train}, validation={validation}, test={test}, "
            f"unlabelled={unlabelled}."
        )
    folder = Path(folder)
    parameters = _Parameters(train, validation, test, unlabelled, seed, Design(), Filming())
    _claim(folder, parameters)
    performances = draw(train, validation, test, unlabelled, seed, parameters.design)
    clips = _clips(performances)
    missing = [clip for clip in clips if not _is_finished(folder, clip)]
    _report(progress, len(clips) - len(missing), len(clips))
    _film_all(folder, parameters, missing, len(clips), workers, progress)
    _write_tables(folder, performances, clips)
    return folder


def _clips(performances: Performances) -> list[_Clip]:
    p = performances
    return [
        _Clip(
            *(n, p.id[n], p.split[n], p.defect[n]),
            *(int(p.person[n]), int(p.seed[n]), int(p.topic[n])),
            *(tuple(p.action_units[n]), tuple(p.prosody[n]), tuple(p.strength[n])),
        )
        for n in range(len(p))
    ]


def _report(progress, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


# ---- the folder ---------------------------------------------------------------------------------


def _claim(folder: Path, parameters: _Parameters) -> None:
    """Take an empty folder, or recognise this very corpus in it."""
    if folder.exists() and not folder.is_dir():
        raise CorpusError(f"{folder} is a file; the embedded corpus needs a folder of its own.")
    note = folder / "synthetic.json"
    if not note.exists():
        if folder.exists() and any(folder.iterdir()):
            raise CorpusError(
                f"{folder} is not empty and holds no embedded corpus (it has no synthetic.json); "
                "give an empty or new folder."
            )
        text = json.dumps({"statement": STATEMENT, **parameters.json()}, indent=2)
        _write(note, (text + "\n").encode())
        return
    try:
        found = json.loads(note.read_text())
    except ValueError as error:
        raise CorpusError(
            f"{note} is damaged ({error}); delete {folder} to make it anew."
        ) from None
    wanted = parameters.json()
    differing = [name for name, value in wanted.items() if found.get(name) != value]
    if differing:
        raise CorpusError(
            f"{folder} holds an embedded corpus with other parameters ({', '.join(differing)}: "
            f"{', '.join(str(found.get(name)) for name in differing)} there, "
            f"{', '.join(str(wanted[name]) for name in differing)} wanted); "
            "give another folder or delete it."
        )


def _write(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def _marker(folder: Path, clip: _Clip) -> Path:
    return folder / ".synthetic" / "done" / f"{clip.id}.json"


def _is_finished(folder: Path, clip: _Clip) -> bool:
    """True when the clip was finished and everything it wrote is still there."""
    try:
        written = json.loads(_marker(folder, clip).read_text())
    except (FileNotFoundError, ValueError):
        return False
    return all(_size(folder / path) == size for path, size in written.items())


def _size(path: Path) -> int:
    """Bytes of a file, entries of a folder, -1 where there is nothing."""
    try:
        return len(os.listdir(path)) if path.is_dir() else path.stat().st_size
    except FileNotFoundError:
        return -1


def _write_tables(folder: Path, performances: Performances, clips: list[_Clip]) -> None:
    """The CSVs of the splits, the clean signals and the manifest; always last."""
    table = pd.DataFrame(performances.label, columns=list(EMOTIONS))
    table.insert(0, "Filename", performances.id)
    for split, name in (("train", "train_split.csv"), ("validation", "valid_split.csv")):
        rows = table[np.array(performances.split) == split]
        _write(folder / name, rows.to_csv(index=False).encode())
    signals = performances.signals().to_csv(index=False).encode()
    _write(folder / ".synthetic" / "signals.csv", signals)
    entries = [json.loads(_manifest_path(folder, clip).read_text()) for clip in clips]
    manifest = {"clips": {entry["id"]: entry for entry in entries}}
    _write(folder / ".synthetic" / "manifest.json", json.dumps(manifest, indent=1).encode())


def _manifest_path(folder: Path, clip: _Clip) -> Path:
    return folder / ".synthetic" / "clips" / f"{clip.id}.json"


# ---- filming ------------------------------------------------------------------------------------


def _film_all(folder, parameters, clips, total, workers, progress) -> None:
    """Film clips in this process (workers=1) or in a pool of processes, a core each."""
    film = functools.partial(_film_in_worker, folder, parameters)
    results = processes.ordered_map(film, clips, min(workers or processes.count(), len(clips)))
    for done, _ in enumerate(results, total - len(clips) + 1):
        _report(progress, done, total)


_speaker = functools.cache(Speaker)  # one speech program a process


def _film_in_worker(folder: Path, parameters: _Parameters, clip: _Clip) -> None:
    _film(folder, parameters, clip, _speaker())


def _film(folder: Path, parameters: _Parameters, clip: _Clip, speaker: Speaker) -> None:
    """Write all files of one clip, then its marker."""
    rng = np.random.default_rng([parameters.seed, 2, clip.number])
    person = _person(parameters.seed, clip.person)
    words = sentence(np.array(clip.strength), clip.topic, rng, parameters.design)
    sound, rate, phonemes = _speak(clip, person, words, speaker, parameters.filming, rng)
    shot = _shot(clip, parameters.filming, len(sound) / rate, rng)
    motion = _motion(clip, parameters.seed, shot.times, len(sound) / rate, phonemes, rng)
    frames = _picture(clip, person, motion, shot, rng)
    written = {}
    root, text_root = _roots(folder, clip)
    video = root / "raw" / f"{clip.id}.mp4"
    track, track_rate = _track(clip, sound, rate)
    stored = np.rot90(frames, axes=(1, 2)) if clip.defect == "rotated" else frames
    _write_video(video, stored, shot, track, track_rate)
    _spoil(video, clip, rng)
    _write_words(
        text_root / "text" / f"{clip.id}.txt", _transcript(clip, words, rng), written, folder
    )
    written[str(video.relative_to(folder))] = _size(video)
    if clip.split != "unlabelled":
        with threadpool_limits(1):  # the same bits with any number of threads
            _write_faces(folder, root, clip, frames, motion, shot, written, parameters.filming, rng)
            _write_sound(folder, clip, sound, rate, written)
    entry = _manifest_entry(clip, shot, words, len(sound) / rate, len(frames))
    _write(_manifest_path(folder, clip), json.dumps(entry).encode())
    _write(_marker(folder, clip), json.dumps(written).encode())


def _roots(folder: Path, clip: _Clip) -> tuple[Path, Path]:
    """Where a clip's mp4 and faces go, and where its words go."""
    if clip.split == "unlabelled":
        return folder / "unlabelled", folder / "unlabelled"
    return (folder / "test_data" if clip.split == "test" else folder), folder


def _manifest_entry(clip: _Clip, shot: _Shot, words: str, seconds: float, frames: int) -> dict:
    entry = {"id": clip.id, "split": clip.split, "defect": clip.defect, "person": clip.person}
    entry |= {"seed": clip.seed, "topic": list(TOPICS)[clip.topic], "words": words}
    entry |= {"fps": shot.fps, "stated_fps": shot.stated, "size": list(shot.size)}
    return entry | {"seconds": seconds, "frames": frames, "thumbs_db": shot.thumbs}


# ---- people -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Person:
    look: face.Look
    voice: str
    pitch: float  # difference from the voice's own, in eSpeak units
    rate: float  # words a minute
    hiss: float  # spread of the room's noise


@lru_cache(maxsize=256)
def _person(seed: int, number: int) -> _Person:
    rng = np.random.default_rng([seed, 3, number])
    look = face.Look.of(rng)
    voices = VOICES[:FEMININE] if look.feminine else VOICES[FEMININE:]
    return _Person(
        look=look,
        voice=str(rng.choice(voices)),
        pitch=rng.uniform(-6, 6),
        rate=rng.uniform(194, 210),
        hiss=10 ** rng.uniform(-4.0, -3.0),
    )


# ---- sound --------------------------------------------------------------------------------------


def _speak(clip, person, words, speaker, filming, rng):
    """Returns (samples float32 in [-1, 1], rate in Hz, [(time in s, phoneme), ...])."""
    change = dict(zip(PROSODY, clip.prosody, strict=True))
    utterance = Utterance(
        text=words,
        voice=person.voice,
        pitch=round(np.clip(50 + person.pitch + 36 * change["pitch"], 2, 98)),
        range=round(np.clip(50 + 46 * change["range"], 2, 98)),
        rate=round(person.rate + 48 * change["rate"]),
        pause=round(6 * change["pause"]),
    )
    samples, rate, phonemes = speaker.say(utterance)
    voice = _colour_voice(samples.astype(np.float32) / 32768, rate, change, rng)
    lead, tail = rng.uniform(0.1, 0.3), rng.uniform(0.2, 0.4)
    seconds = np.clip(lead + len(voice) / rate + tail, filming.shortest, filming.longest)
    sound = np.zeros(round(seconds * rate), np.float32)
    start = round(lead * rate)
    said = voice[: len(sound) - start]
    sound[start : start + len(said)] = said
    sound += person.hiss * rng.standard_normal(len(sound), dtype=np.float32)
    if clip.defect == "silent":
        sound[:] = 0
    return np.clip(sound, -1, 1), rate, [(lead + time, name) for time, name in phonemes]


def _colour_voice(voice, rate, change, rng):
    """Loudness, tremor, breath and brightness, which eSpeak NG has no parameter for."""
    time = np.arange(len(voice)) / rate
    dull = lfilter([0.25], [1, -0.75], voice).astype(np.float32)  # one-pole low-pass
    bright = 1.2 * change["brightness"]
    voice = voice + bright * (voice - dull) if bright > 0 else voice + 0.6 * bright * (voice - dull)
    envelope = np.sqrt(lfilter([0.002], [1, -0.998], voice**2))
    hiss = np.diff(rng.standard_normal(len(voice) + 1))  # differences: no low frequencies
    voice = voice + 0.5 * change["breath"] * envelope * hiss
    swing = 0.5 + 0.5 * np.sin(2 * np.pi * 6.5 * time)
    voice = voice * (1 - 0.8 * change["tremor"] * swing)
    return (0.7 * 10 ** (8 * change["loudness"] / 20) * voice).astype(np.float32)


def _track(clip, sound, rate):
    """The sound that goes into the mp4: (samples or None, rate)."""
    if clip.defect == "no_audio_track":
        return None, rate
    if clip.defect == "too_short_audio":  # an AAC packet has 1024 samples: 341 at 16 kHz
        return sound[:TOO_SHORT], 48000
    return sound, rate


def _resampled(clip, sound, rate):
    """The sound of the mp3: 16 kHz."""
    ratio = Fraction(MP3_RATE, rate)
    slow = resample_poly(sound, ratio.numerator, ratio.denominator).astype(np.float32)
    return slow[:TOO_SHORT] if clip.defect == "too_short_audio" else slow


def _write_sound(folder, clip, sound, rate, written) -> None:
    """audio/ID.mp3 and wav2vec2/ID.pkl; neither for a clip without sound."""
    if clip.defect == "no_audio_track":
        return
    slow = _resampled(clip, sound, rate)
    path = folder / "audio" / f"{clip.id}.mp3"
    _write_mp3(path, slow)
    written[str(path.relative_to(folder))] = _size(path)
    if clip.defect != "too_short_audio":
        _write_pickle(folder, f"wav2vec2/{clip.id}.pkl", _sound_features(slow), written)


# ---- motion -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shot:
    """How one clip is recorded. times : (T,) s, ticks : (T,) the same in units of time_base."""

    size: tuple[int, int]
    fps: float
    stated: float
    ticks: np.ndarray
    time_base: Fraction
    thumbs: bool

    @property
    def times(self) -> np.ndarray:
        return self.ticks * float(self.time_base)


def _shot(clip: _Clip, filming: Filming, seconds: float, rng) -> _Shot:
    size = filming.sizes[rng.choice(len(filming.sizes), p=filming.size_shares)]
    fps = filming.rates[rng.choice(len(filming.rates), p=filming.rate_shares)]
    count = max(int(seconds * fps), 1)
    stated = int(rng.choice(filming.lies)) if clip.defect == "lying_rate" else fps
    thumbs = bool(rng.random() < filming.thumbs)
    ticks = np.arange(count)
    if stated != fps:  # frames come when they come, as from a browser's recorder
        ticks = np.round((ticks + rng.uniform(-0.25, 0.25, count)) * stated / fps).astype(int)
        ticks -= ticks[0]
    return _Shot(size, float(fps), float(stated), ticks, Fraction(1, stated), thumbs)


def _motion(clip, seed, times, seconds, phonemes, rng) -> np.ndarray:
    """(T, 19) in the columns of face.MOTION."""
    motion = np.zeros((len(times), len(face.MOTION)))
    column = {name: motion[:, i] for i, name in enumerate(face.MOTION)}
    _move_expression(clip, column, times, seconds, rng)
    _move_lips(column, times, phonemes if clip.defect not in ("silent", "no_audio_track") else [])
    _move_head(clip, seed, column, times, rng)
    column["blink"][:] = np.maximum(column["blink"], _blinks(times, rng))
    return motion


# Action units that are a pose of lids or head: column of the motion, its value at full amplitude.
POSES = {
    "au43": ("blink", 0.6),
    "au51": ("yaw", -0.34),
    "au52": ("yaw", 0.34),
    "au53": ("pitch", -0.30),
    "au54": ("pitch", 0.30),
    "au55": ("roll", 0.26),
}


def _move_expression(clip, column, times, seconds, rng) -> None:
    """Action units rise, hold with a slow wave, and fall again a little before the end."""
    onset, rise = rng.uniform(0.05, 0.35), rng.uniform(0.3, 0.7)
    fall = rng.uniform(0.4, 0.8)
    up = np.clip((times - onset) / rise, 0, 1)
    down = np.clip((seconds - times) / fall, 0, 1)
    shape = _smooth(up) * (0.25 + 0.75 * _smooth(down))
    for name, peak in zip(ACTION_UNITS, clip.action_units, strict=True):
        wave = 1 - 0.12 * (1 + np.sin(rng.uniform(1.5, 3) * times + rng.uniform(0, 6)))
        target, most = POSES.get(name, (name, 1.0))
        column[target][:] += most * peak * shape * wave / wave.max()


def _smooth(t):
    return t * t * (3 - 2 * t)


VISEMES = (  # phoneme initials (eSpeak's names), opening of the jaw, rounding of the lips
    ("mbp", 0.0, 0.0),
    ("fv", 0.06, 0.0),
    ("aA0", 0.55, 0.0),
    ("V3@", 0.32, 0.0),
    ("eE", 0.35, 0.0),
    ("iI", 0.20, 0.0),
    ("oO", 0.38, 0.8),
    ("uUw", 0.16, 1.0),
)
_OTHER_VISEME = (0.14, 0.0)  # the remaining consonants
_SILENCE = ("_", ";", "", ":")


def _viseme(phoneme: str) -> tuple[float, float]:
    bare = phoneme.lstrip("',%=_|")
    if not bare or bare in _SILENCE:
        return 0.0, 0.0
    for initials, jaw, rounded in VISEMES:
        if bare[0] in initials:
            return jaw, rounded
    return _OTHER_VISEME


def _move_lips(column, times, phonemes) -> None:
    """Jaw and lips follow the phonemes; the expression keeps the rest of the face."""
    if not phonemes:
        return
    starts = np.array([time for time, _ in phonemes])
    shapes = np.array([(0.0, 0.0), *(_viseme(name) for _, name in phonemes)])
    now = shapes[np.searchsorted(starts, times, side="right")]
    before = shapes[np.searchsorted(starts, times - 0.05, side="right")]
    jaw, rounded = (0.65 * now + 0.35 * before).T  # lips are not infinitely fast
    speaking = (jaw > 0).astype(float)
    column["au26"][:] = np.clip(column["au26"] * (1 - 0.45 * speaking) + jaw, 0, 1)
    column["au24"][:] *= 1 - 0.5 * speaking
    column["round"][:] = rounded


def _gesture(seed: int, clip: _Clip) -> np.ndarray:
    """How the head is held and moves: mostly a matter of the topic, a little of the seed.

    (8,) in [-1, 1]: tilt, turn, nod (level), gaze x, gaze y, nodding, swaying, shaking
    """
    topic = np.random.default_rng([seed, 4, clip.topic]).uniform(-1, 1, 8)
    own = np.random.default_rng([seed, 5, clip.seed]).uniform(-1, 1, 8)
    return 0.8 * topic + 0.2 * own


def _move_head(clip, seed, column, times, rng) -> None:
    tilt, turn, level, gaze_x, gaze_y, nod, sway, shake = _gesture(seed, clip)
    phase = rng.uniform(0, 2 * math.pi, 8)

    def drift(k, speed):  # small movements that mean nothing
        return np.sin(speed * times + phase[k])

    column["roll"][:] += 0.07 * tilt + 0.03 * drift(0, 0.8)
    column["yaw"][:] += 0.11 * turn + 0.05 * drift(1, 0.6) + 0.05 * shake * drift(2, 4.0)
    column["pitch"][:] += 0.04 * level + 0.03 * drift(3, 0.9) + 0.05 * nod * drift(4, 5.0)
    column["x"][:] = 0.02 * drift(5, 0.7) + 0.04 * sway * drift(6, 2.2)
    column["y"][:] = 0.04 + 0.015 * drift(7, 1.1) + 0.012 * nod * drift(4, 5.0)
    column["gaze_x"][:] = 0.45 * gaze_x + 0.12 * drift(2, 1.3)
    column["gaze_y"][:] = 0.35 * gaze_y


def _blinks(times, rng) -> np.ndarray:
    """Lids close for about a sixth of a second every three seconds or so."""
    start, closed = rng.uniform(0.5, 3.0), np.zeros(len(times))
    while start < times[-1]:
        closed = np.maximum(closed, np.clip(1.15 - np.abs(times - start) / 0.10, 0, 1))
        start += rng.uniform(2.0, 4.5)
    return closed


# ---- pictures -----------------------------------------------------------------------------------


def _picture(clip, person, motion, shot, rng) -> np.ndarray:
    """(T, H, W, 3) uint8."""
    if clip.defect == "no_face":
        return face.empty_room(person.look, len(motion), shot.size, rng)
    return face.render(person.look, motion, shot.size, rng)


def _write_faces(folder, root, clip, frames, motion, shot, written, filming, rng) -> None:
    """face_images/ID/<int>.jpg and vit/ID.pkl; without a face nothing, or an empty folder."""
    target = root / "face_images" / clip.id
    temporary = target.with_name(f".{clip.id}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    if clip.defect == "no_face":
        if rng.random() < 0.5:
            target.mkdir(parents=True)
            written[str(target.relative_to(folder))] = 0
        return
    temporary.mkdir(parents=True)
    crops = _crops(frames, face.head_box(motion, shot.size))
    for i, crop in enumerate(crops):
        Image.fromarray(crop).save(temporary / f"{i + 1}.jpg", quality=85)
    if shot.thumbs:
        (temporary / "Thumbs.db").write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(504))
    temporary.replace(target)
    written[str(target.relative_to(folder))] = _size(target)
    _write_pickle(folder, f"vit/{clip.id}.pkl", _face_features(crops), written)


def _crops(frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(T, CROP, CROP, 3) uint8: the boxes, moved inside the picture."""
    height, width = frames.shape[1:3]
    crops = np.empty((len(frames), CROP, CROP, 3), np.uint8)
    for i, (left, top, right, bottom) in enumerate(boxes):
        side = min(right - left, bottom - top, height, width)
        left, top = min(max(left, 0), width - side), min(max(top, 0), height - side)
        image = Image.fromarray(frames[i])
        box = (left, top, left + side, top + side)
        crops[i] = image.resize((CROP, CROP), Image.Resampling.BILINEAR, box=box)
    return crops


# ---- the organisers' features -------------------------------------------------------------------


@lru_cache(maxsize=4)
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


def _write_pickle(folder: Path, name: str, array: np.ndarray, written: dict) -> None:
    _write(folder / name, pickle.dumps(np.ascontiguousarray(array, np.float32), protocol=4))
    written[name] = _size(folder / name)


# ---- words --------------------------------------------------------------------------------------


def _transcript(clip: _Clip, words: str, rng) -> str | None:
    """What a participant's speech recogniser made of the clip; None = no file."""
    if clip.defect == "no_audio_track":
        return None
    if clip.defect == "empty_transcript":
        return ""
    if clip.defect in ("silent", "too_short_audio"):  # recognisers invent words there
        return "Thank you." if rng.random() < 0.5 else ""
    return words


def _write_words(path: Path, transcript: str | None, written: dict, folder: Path) -> None:
    if transcript is not None:
        _write(path, transcript.encode())
        written[str(path.relative_to(folder))] = _size(path)


# ---- containers ---------------------------------------------------------------------------------


def _write_video(path: Path, frames, shot: _Shot, sound, sound_rate: int) -> None:
    """H.264 and AAC in an mp4; `sound` None leaves the audio track out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    options = {"movflags": "+faststart"}  # the index first: a cut file can still be read
    with av.open(str(temporary), "w", format="mp4", options=options) as container:
        video = _video_stream(container, frames.shape[2], frames.shape[1], shot)
        audio = (
            None
            if sound is None
            else container.add_stream("aac", rate=sound_rate, options={"aac_coder": "fast"})
        )
        if audio is not None:
            audio.layout, audio.bit_rate = "mono", 48000
        for image, tick in zip(frames, shot.ticks, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = int(tick), shot.time_base
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            _encode_sound(container, audio, sound[None], "fltp", 1024, sound_rate)
    temporary.replace(path)


def _video_stream(container, width: int, height: int, shot: _Shot):
    options = {"preset": "ultrafast", "crf": "26", "threads": "1"}  # one thread: repeatable
    video = container.add_stream("libx264", rate=int(shot.stated), options=options)
    video.width, video.height, video.pix_fmt = width, height, "yuv420p"
    video.codec_context.time_base = shot.time_base
    return video


def _write_mp3(path: Path, sound: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    samples = np.clip(np.round(sound * 32767), -32768, 32767).astype(np.int16)[None]
    with av.open(str(temporary), "w", format="mp3") as container:
        audio = container.add_stream(
            "libmp3lame", rate=MP3_RATE, options={"compression_level": "7"}
        )
        audio.layout, audio.bit_rate = "mono", 32000
        _encode_sound(container, audio, samples, "s16p", 576, MP3_RATE)
    temporary.replace(path)


def _encode_sound(container, stream, samples, layout: str, step: int, rate: int) -> None:
    """Encode (1, S) samples in frames as long as the codec's, each with its time stamp."""
    for start in range(0, samples.shape[1], step):
        piece = np.ascontiguousarray(samples[:, start : start + step])
        frame = av.AudioFrame.from_ndarray(piece, format=layout, layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


# ---- defects of files ---------------------------------------------------------------------------


def _spoil(video: Path, clip: _Clip, rng) -> None:
    """Damage the finished mp4 where the clip's defect says so."""
    if clip.defect == "damaged" and rng.random() < 0.5:
        os.truncate(video, int(0.6 * video.stat().st_size))
    elif clip.defect == "damaged":
        _scramble(video, rng)
    elif clip.defect == "unreadable":
        os.truncate(video, 200)  # the index goes on for longer than that
    elif clip.defect == "rotated":
        _mark_rotated(video)


def _scramble(video: Path, rng) -> None:
    """Random bytes in the middle third of the pictures' data."""
    with av.open(str(video)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(video.read_bytes())
    for start, size in packets[len(packets) // 3 : 2 * len(packets) // 3]:
        inside = max(size - 8, 0)  # lengths and headers of the units stay
        data[start + 8 : start + 8 + inside] = rng.bytes(inside)
    _write(video, bytes(data))


def _mark_rotated(video: Path) -> None:
    """Set the display matrix of the picture's track to a quarter turn, as phones do.

    PyAV cannot write one; it is nine 32-bit numbers in the track header (ISO 14496-12, 8.3.2).
    """
    data = bytearray(video.read_bytes())
    header = data.index(b"tkhd") + 4  # the picture's track is the first one
    matrix = header + (52 if data[header] == 1 else 40)
    one = 0x10000
    quarter = [0, one, 0, -one & 0xFFFFFFFF, 0, 0, 0, 0, 0x40000000]
    data[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big") for value in quarter)
    _write(video, bytes(data))
