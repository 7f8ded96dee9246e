"""The embedded corpus: real media files of invented people, in the layout of Hume-Vidmimic2.
Drawn heads, voices, and the real set's defects. The same parameters give the same corpus with any
number of worker processes: each clip has its own generators."""

import contextlib
import functools
import json
import math
import os
import pickle
import shutil
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
from emilib.cache import atomic_write, file_sum, key, locked, sweep
from emilib.corpus.layout import CorpusError
from emilib.synthetic import face, generative_model, voice
from emilib.workers import ordered_map

GENERATOR = 3  # raise it when the same parameters no longer give the same corpus
# Formats, drawn for each clip by share: `size` is height and width in pixels (mostly as small as
# what the encoders take), `fps` frames a second, `sound` the codec in the mp4. `lies`: what the
# rate field says in clips where it lies. Lengths in seconds.
FILMING = json.loads(Path(__file__).with_name("filming.json").read_text("utf-8"))
# The notice in synthetic.json, and where the labels of each split are written.
STATEMENT, LABELS = (generative_model.DATA[name] for name in ("statement", "labels"))
TOO_SHORT = 200  # samples at SAMPLE_RATE; wav2vec2's convolutions need 400
TAKE = 24  # clips that are spoken by one process


def make(
    folder, train=1600, validation=800, test=240, seed=0, workers=None, progress=lambda *_: None
) -> Path:
    """Write the embedded corpus into `folder` and return its path.

    train, validation, test : clips of each split
    workers : processes; None = one a core, 1 = this process
    progress : called as progress(done, total) in clips

    Only what is missing or damaged is made. `synthetic.json` has the parameters, the hidden
    `.synthetic/` facts, defects, persons and clean signals, and the labels of the test clips.
    Raises CorpusError when the folder holds anything else than this corpus.
    """
    folder = Path(folder)
    counts = {"train": train, "validation": validation, "test": test}
    if min(counts.values()) < 0 or train + validation < 1:
        raise CorpusError(f"expected clips, at least one of them labelled, got {counts}")
    design = vars(generative_model.DESIGN)
    parameters = {"statement": STATEMENT, **counts, "seed": seed, "design": design}
    parameters |= {"filming": FILMING, "generator": GENERATOR}
    notes = [folder / "synthetic.json", folder / ".synthetic" / "parameters.json"]
    text = json.dumps(parameters, indent=2) + "\n"
    # In this order, and without hidden files: another run may be writing its notes at this moment.
    foreign = folder.is_file() or any(path.name[0] != "." for path in folder.glob("*"))
    if foreign and not any(n.is_file() and n.read_bytes() == text.encode() for n in notes):
        wanted = "expected a new folder, or one whose synthetic.json has the same parameters"
        raise CorpusError(f"{folder}: {wanted}, got something else; name another or delete it")
    for note in notes:  # two, so that a damaged one does not turn the folder into a foreign one
        atomic_write(note, text)
    drawn = generative_model.draw(**counts, seed=seed)
    with locked(folder / ".synthetic" / ".lock"):  # another run may be at work here
        sweep(folder, folder / ".synthetic", folder / ".synthetic" / "notes")
        every = list(generative_model.clips(drawn))
        intact = ordered_map(functools.partial(_is_finished, folder), every, workers)
        missing = [clip for clip, is_intact in zip(every, intact, strict=True) if not is_intact]
        takes = [missing[i : i + TAKE] for i in range(0, len(missing), TAKE)]
        done = len(drawn.id) - len(missing)
        progress(done, len(drawn.id))
        for filmed in ordered_map(functools.partial(film_clips, folder, seed), takes, workers):
            done += filmed
            progress(done, len(drawn.id))
    people = {name: getattr(drawn, name) for name in ("id", "split", "person")}
    tables = {".synthetic/people.csv": pd.DataFrame(people)}
    tables[".synthetic/signals.csv"] = generative_model.signals(drawn)
    for split, name in LABELS.items():
        rows = np.array(drawn.split) == split
        index = pd.Index(np.array(drawn.id)[rows], name="id" if split == "test" else "Filename")
        tables[name] = pd.DataFrame(drawn.label[rows], index, EMOTIONS).reset_index()
    for name, table in tables.items():
        atomic_write(folder / name, table.to_csv(index=False))
    return folder


def _note(folder: Path, clip) -> Path:
    return folder / ".synthetic" / "notes" / f"{clip.id}.json"


def _is_finished(folder: Path, clip) -> bool:
    """True when the clip was finished and its note and files are what was written."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        facts = json.loads(_note(folder, clip).read_bytes())
        sums = {name: _sum(folder / name) for name in facts["files"]}
        return facts.pop("sum") == key(**facts) and facts["files"] == sums
    return False


def _sum(path: Path) -> str:
    """SHA-256 of a file, or of all that a folder holds."""
    if path.is_file():
        return file_sum(path)
    return key(files={p.name: file_sum(p) for p in path.iterdir()})


def film_clips(folder: Path, seed: int, clips: list) -> int:
    """Film clips of `generative_model.clips`, spoken by one process; returns their number."""
    draws = [np.random.default_rng([seed, 2, clip.number]) for clip in clips]
    persons = [_person(seed, int(clip.person)) for clip in clips]
    pairs = zip(clips, draws, strict=True)
    words = [generative_model.sentence(c.strength, c.topic, rng) for c, rng in pairs]
    prosody = [dict(zip(generative_model.PROSODY, clip.prosody, strict=True)) for clip in clips]
    spoken = voice.say(list(map(voice.request, words, persons, prosody)))
    with threadpool_limits(1):  # the same bits with any number of threads
        for parts in zip(clips, draws, persons, words, prosody, spoken, strict=True):
            _film_clip(folder, seed, *parts)
    return len(clips)


def _film_clip(folder: Path, seed: int, clip, rng, person, words, prosody, spoken) -> None:
    """Write all files of one clip; last, that it is finished."""
    samples, rate, phonemes = spoken
    ratio = Fraction(SAMPLE_RATE, rate)
    samples = resample_poly(samples.astype(np.float32), ratio.numerator, ratio.denominator)
    sound, phonemes = _sound(clip, person, voice.colour(samples, prosody, rng), phonemes, rng)
    seconds = len(sound) / SAMPLE_RATE
    formats = FILMING["formats"]
    form = formats[rng.choice(len(formats), p=[f["share"] for f in formats])]
    size, fps = form["size"], form["fps"]
    stated = int(rng.choice(FILMING["lies"])) if clip.defect == "lying_rate" else fps
    thumbs = rng.random() < FILMING["thumbs"]
    ticks = np.arange(max(int(seconds * fps), 1))  # times of the frames, in 1 / stated s
    if stated != fps:  # frames come when they come, as from a browser's recorder
        ticks = (ticks + rng.uniform(-0.25, 0.25, len(ticks))) * stated / fps
        ticks = np.round(ticks).astype(int) - round(ticks[0])
    motion = face.move(clip, seed, ticks * (1 / stated), seconds, phonemes, rng)
    frames = face.render(person.face, motion, size, rng, empty=clip.defect == "no_face")

    root = folder / "test_data" if clip.split == "test" else folder
    files = {  # where they belong, whether the clip has them or not
        "video": root / "raw" / f"{clip.id}.mp4",
        "faces": root / "face_images" / clip.id,
        "audio": folder / "audio" / f"{clip.id}.mp3",
        "text": folder / "text" / f"{clip.id}.txt",
        "official_vision": folder / "vit" / f"{clip.id}.pkl",
        "official_audio": folder / "wav2vec2" / f"{clip.id}.pkl",
    }
    _note(folder, clip).unlink(missing_ok=True)
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    _write_sound(files, clip, sound)
    _write_video(files, clip, frames, ticks, stated, sound, form["sound"])
    _spoil(files["video"], clip.defect, rng)
    transcript = "" if clip.defect == "empty_transcript" else words
    if clip.defect in ("silent", "too_short_audio"):  # speech recognisers invent words there
        transcript = "Thank you." if rng.random() < 0.5 else ""
    if clip.defect != "no_audio_track":
        files["text"].write_text(transcript)
    _write_faces(files, clip, frames, face.boxes(motion, size), thumbs, rng)
    written = {str(p.relative_to(folder)): _sum(p) for p in files.values() if p.exists()}
    facts = {"id": clip.id, "split": clip.split, "defect": clip.defect, "words": words, "fps": fps}
    facts |= {"size": size, "seconds": seconds, "frames": len(frames), "thumbs_db": thumbs}
    facts["files"] = written
    atomic_write(_note(folder, clip), json.dumps({**facts, "sum": key(**facts)}))


def _person(seed: int, number: int) -> SimpleNamespace:
    """A face, a habitual voice (pitch in eSpeak units, rate in words a minute), a room's hiss."""
    rng = np.random.default_rng([seed, 3, number])
    look = face.appearance(rng)
    name = str(rng.choice(voice.FEMININE if look.feminine else voice.MASCULINE))
    pitch, rate, hiss = rng.uniform(-6, 6), rng.uniform(214, 230), 10 ** rng.uniform(-4.0, -3.0)
    return SimpleNamespace(face=look, voice=name, pitch=pitch, rate=rate, hiss=hiss)


def _sound(clip, person, speech, phonemes, rng):
    """Returns (samples float32 in [-1, 1] at SAMPLE_RATE, [(time in s, phoneme), ...])."""
    lead, tail = rng.uniform(*FILMING["lead"]), rng.uniform(*FILMING["tail"])
    seconds = lead + len(speech) / SAMPLE_RATE + tail
    seconds = np.clip(seconds, FILMING["shortest"], FILMING["longest"])
    sound, start = np.zeros(round(seconds * SAMPLE_RATE), np.float32), round(lead * SAMPLE_RATE)
    spoken = speech[: len(sound) - start]
    sound[start : start + len(spoken)] = spoken
    sound += person.hiss * rng.standard_normal(len(sound), dtype=np.float32)
    if clip.defect == "silent":
        sound[:] = 0
    return np.clip(sound, -1, 1), [(lead + time, name) for time, name in phonemes]


def _write_sound(files, clip, sound) -> None:
    """audio/ID.mp3 and wav2vec2/ID.pkl; neither for a clip without an audio track."""
    if clip.defect == "no_audio_track":
        return
    if clip.defect == "too_short_audio":
        sound = sound[:TOO_SHORT]
    else:
        files["official_audio"].write_bytes(_official(_sound_features(sound), 768))
    with av.open(str(files["audio"]), "w", format="mp3") as mp3:
        options = {"compression_level": "9"}  # the fastest
        audio = mp3.add_stream("libmp3lame", rate=SAMPLE_RATE, options=options)
        audio.layout, audio.bit_rate = "mono", 32000
        _encode_sound(mp3, audio, np.round(sound * 32767).astype(np.int16), "s16p")


def _write_video(files, clip, frames, ticks, stated: int, sound, codec: str) -> None:
    """An mp4 of H.264 and sound, which is that of the mp3 file unless `codec` is aac."""
    rate = SAMPLE_RATE
    if clip.defect == "too_short_audio":  # an AAC packet has 1024 samples: 341 at 16 kHz
        sound, rate, codec = sound[:TOO_SHORT], 48000, "aac"
    faststart = {"movflags": "+faststart"}  # the index first: a cut file can still be read
    output = av.open(str(files["video"]), "w", format="mp4", options=faststart)
    with contextlib.ExitStack() as stack:
        container = stack.enter_context(output)
        options = {"preset": "ultrafast", "crf": "24", "threads": "1"}  # one thread: repeatable
        video = container.add_stream("libx264", rate=stated, options=options)
        if clip.defect == "rotated":  # lies on its side, and says so, as phones write it
            frames = np.rot90(frames, axes=(1, 2))
            video.set_display_rotation(-90)
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        video.codec_context.time_base = Fraction(1, stated)
        if clip.defect == "no_audio_track":
            codec = None
        elif codec == "aac":
            audio = container.add_stream("aac", rate=rate, options={"aac_coder": "fast"})
            audio.layout, audio.bit_rate = "mono", 48000
        else:
            mp3 = stack.enter_context(av.open(str(files["audio"])))
            audio = container.add_stream_from_template(mp3.streams.audio[0])
        for image, tick in zip(frames, ticks, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = int(tick), Fraction(1, stated)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if codec == "aac":
            _encode_sound(container, audio, sound, "fltp")
        elif codec:
            for packet in mp3.demux(audio=0):
                if packet.size:  # what LAME puts before the sound comes before zero
                    packet.pts = packet.dts = packet.pts - mp3.streams.audio[0].start_time
                    packet.stream = audio
                    container.mux(packet)


def _encode_sound(container, stream, sound, layout: str) -> None:
    frame = av.AudioFrame.from_ndarray(sound[None], format=layout, layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = stream.rate, 0, Fraction(1, stream.rate)
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _spoil(video: Path, defect: str, rng) -> None:
    """Damage the finished mp4 where the clip's defect says so."""
    if defect == "unreadable":
        os.truncate(video, 200)  # the index is longer than that
    elif defect == "damaged":
        with av.open(str(video)) as container:
            packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
        if rng.random() < 0.5:
            start, size = packets[len(packets) // 2]
            os.truncate(video, start + size // 2)
            return
        data = bytearray(video.read_bytes())
        for start, size in packets[len(packets) // 3 : 2 * len(packets) // 3]:
            data[start : start + size] = b"\xff" * size  # also the lengths of the units within
        video.write_bytes(data)


def _write_faces(files, clip, frames, boxes, thumbs: bool, rng) -> None:
    """face_images/ID/<int>.jpg and vit/ID.pkl; without a face nothing, or an empty folder."""
    folder = files["faces"]
    shutil.rmtree(folder, ignore_errors=True)
    if clip.defect != "no_face" or rng.random() < 0.5:
        folder.mkdir()
    if clip.defect == "no_face":
        return
    pixels = []
    for number, (frame, (left, top, right, bottom)) in enumerate(zip(frames, boxes, strict=True)):
        crop = Image.fromarray(frame[top:bottom, left:right])
        crop.save(folder / f"{number + 1}.jpg", quality=90)
        # 16 x 16 green pixels, nearly the luminance, stand for the official ViT.
        pixels.append(crop.getchannel(1).resize((16, 16), Image.Resampling.BOX))
    if thumbs:
        (folder / "Thumbs.db").write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(504))
    pixels = np.stack(pixels).reshape(len(pixels), 256).astype(np.float32)
    pixels = (pixels - pixels.mean(axis=1, keepdims=True)) / 40
    files["official_vision"].write_bytes(_official(pixels, 384))


def _official(features: np.ndarray, width: int) -> bytes:
    """Pickle of tanh of features (T, D) in a fixed random projection: stands for an encoder."""
    projected = np.tanh(features @ _projection(features.shape[1], width))
    return pickle.dumps(projected.astype(np.float16), protocol=4)


@functools.cache
def _projection(*shape: int) -> np.ndarray:
    projection = np.random.default_rng(shape).standard_normal(shape) / math.sqrt(shape[0])
    return projection.astype(np.float32)


def _sound_features(sound: np.ndarray) -> np.ndarray:
    """(T, 96), ten a second: mean and spread of log band energies; stand for wav2vec2's 50."""
    window, step = 400, 160
    padded = np.pad(sound, (0, max(0, 1600 + window - len(sound))))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, window)[::step]
    spectrum = np.abs(np.fft.rfft(pieces * np.hanning(window), axis=1)).astype(np.float32)
    edges = np.unique(np.round(np.geomspace(2, 201, 49)).astype(int))
    bands = np.log(1e-3 + np.add.reduceat(spectrum, edges[:-1], axis=1))
    blocks = bands[: len(bands) // 10 * 10].reshape(-1, 10, bands.shape[1])
    return np.concatenate([blocks.mean(axis=1), 2 * blocks.std(axis=1)], axis=1) / 3
