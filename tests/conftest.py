"""What tests of several rooms share: a tiny corpus with its features, a writer of media files."""

import dataclasses
import os
from fractions import Fraction

import av
import numpy as np
import pytest

from emilib import profiles

os.environ["OMP_NUM_THREADS"] = "1"  # the number of threads moves last bits
CLOCK = Fraction(1, 90000)
# Files whose one test takes long, begun first: another process does the many short ones meanwhile.
LONG = ("test_ranks", "test_odd_sets", "test_faults", "test_predict", "test_pipeline")


def pytest_addoption(parser):
    text = "kills in tests/test_faults.py, and a tenth as many rounds of damage"
    parser.addoption("--faults", type=int, default=1, metavar="N", help=text)


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """The embedded corpus in 25 clips, at work in the smallest profile with two seeds."""
    from emilib.pipeline import Workspace  # loads torch, which few of the test files need

    smoke, counts = profiles.smoke(), {"train": 14, "validation": 8, "test": 3}
    steps = dict.fromkeys(("vision_steps", "audio_steps", "text_steps"), 2)
    changes = {"warm_start": dataclasses.replace(smoke.warm_start, **steps), "seeds": (0, 1)}
    profile = dataclasses.replace(smoke, corpus_size=counts, workers=1, **changes)
    base = tmp_path_factory.getbasetemp()  # of one process; they share what is above it
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return Workspace(profile, home=base / "home")


def picture(number, height, width):
    """A picture that shows its number (grey level) and which way is up (bright top left)."""
    image = np.full((height, width, 3), 20 + 4 * (number % 50), np.uint8)
    image[: height // 4, : width // 2] = (250, 30, 30)
    return image


def noise(number, height, width):
    """Pictures with much to encode, so that damaged bytes fall into coded pictures."""
    return np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)


def portrait(number, height, width):
    """A drawn face that moves a little with its number; the empty room for None."""
    from emilib.synthetic import face  # Numba takes seconds to import

    motion, rng = np.zeros((1, len(face.MOTION))), np.random.default_rng(5)
    for name, size, speed in (("x", 0.1, 0.3), ("yaw", 0.2, 0.2), ("au12", 0.4, 1.0)):
        motion[0, face.MOTION.index(name)] = size * np.sin(speed * (number or 0)) + size / 2
    settings = {"size": (height, width), "rng": rng, "empty": number is None}
    return face.render(face.appearance(rng), motion, **settings)[0]


def sine(hertz, seconds, rate=16000, channels=1, amplitude=0.5):
    """(channels, S) float32."""
    wave = amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return np.tile(wave.astype(np.float32), (channels, 1))


def write_media(
    path,
    times=(),
    sound=None,
    size=(64, 96),
    codec="libx264",
    rate=25,
    rotation=None,
    sound_codec="aac",
    sound_rate=16000,
    sound_start=0.0,
    layout=None,
    options=None,
    make=picture,
    clock=CLOCK,
):
    """A media file with a picture at each of `times` (s) and `sound` (channels, S), if given."""
    front = {"movflags": "+faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=front) as out:
        video = audio = None
        if len(times):
            video = out.add_stream(codec, rate=rate, options=options or {"g": "250", "bf": "0"})
            video.height, video.width, video.pix_fmt = *size, "yuv420p"
            if codec == "libx264":
                video.codec_context.time_base = clock  # x264 states it as the frame rate
            if rotation is not None:
                video.set_display_rotation(*rotation)
        if sound is not None:
            sound = np.asarray(sound, np.float32)
            audio = out.add_stream(sound_codec, rate=sound_rate)
            audio.layout = layout = layout or ("mono" if len(sound) == 1 else "stereo")
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(make(number, *size), format="rgb24")
            frame.time_base = clock if codec == "libx264" else Fraction(1, rate)
            frame.pts = round(time / frame.time_base)
            out.mux(video.encode(frame))
        if video is not None:
            out.mux(video.encode())
        if audio is not None:
            resampler = av.AudioResampler(audio.codec_context.format, audio.layout, sound_rate)
            for begin in range(0, sound.shape[1], 1024):
                # packed: planes of eight channels and more crash PyAV
                piece = sound[:, begin : begin + 1024].T.reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(piece.copy(), format="flt", layout=layout)
                frame.sample_rate, frame.time_base = sound_rate, Fraction(1, sound_rate)
                frame.pts = begin + round(sound_start * sound_rate)
                for ready in resampler.resample(frame):
                    out.mux(audio.encode(ready))
            out.mux(audio.encode())
    return path


def damage(path, start, end, flips=60, seed=0):
    """Flip all bits of `flips` bytes at random places within a share of the file."""
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    for place in rng.integers(int(start * len(data)), int(end * len(data)), flips):
        data[place] ^= 0xFF
    path.write_bytes(data)
    return path
