"""Speech from eSpeak NG; it is GPL-3, so only the program `espeak_program.py` loads it."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy.signal import lfilter

from emilib import SAMPLE_RATE

FEMININE, MASCULINE = ("f1", "f2", "f3", "f4", "f5"), ("m1", "m2", "m3", "m4", "m6", "m7", "m8")


def say(requests: list[dict]) -> list[tuple]:
    """Speak English. Returns for each (samples (S,) int16, Hz, [(time in s, phoneme), ...]).

    A request has `text` and
    voice : one of FEMININE or MASCULINE
    pitch, range : 0 to 99; 50 is the voice's own
    rate : words a minute, 80 to 450
    pause : further silence between words, in units of 10 ms

    Raises CalledProcessError when the program fails.
    """
    command = [sys.executable, "-P", str(Path(__file__).resolve().with_name("espeak_program.py"))]
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    answers, spoken = io.BytesIO(subprocess.check_output(command, input=lines.encode())), []
    for answer in map(json.loads, iter(answers.readline, b"")):
        samples = np.frombuffer(answers.read(answer["size"]), "<i2")
        spoken.append((samples, answer["rate"], answer["phonemes"]))
    return spoken


def request(words: str, person, prosody: dict[str, float]) -> dict:
    """What `say` takes; prosody is the difference from the person's habit in [-1, 1]."""
    return {
        "text": words,
        "voice": person.voice,
        "pitch": round(np.clip(50 + person.pitch + 36 * prosody["pitch"], 2, 98)),
        "range": round(np.clip(50 + 46 * prosody["range"], 2, 98)),
        "rate": round(person.rate + 48 * prosody["rate"]),
        "pause": round(6 * prosody["pause"]),
    }


def colour(samples: np.ndarray, prosody: dict[str, float], rng) -> np.ndarray:
    """int16 samples as float32 with loudness, tremor, breath, brightness, which eSpeak lacks."""

    def smooth(share: float, values):  # a one-pole low-pass
        return lfilter(np.array([share], np.float32), np.array([1, share - 1], np.float32), values)

    sound = samples.astype(np.float32) / 32768
    dull = smooth(0.33, sound)
    bright = 1.2 * prosody["brightness"]
    sound = sound + np.float32(bright if bright > 0 else 0.6 * bright) * (sound - dull)
    if prosody["breath"] > 0:
        envelope = np.sqrt(smooth(0.0028, sound**2))
        hiss = np.diff(rng.standard_normal(len(sound) + 1, np.float32))  # few low frequencies
        sound = sound + np.float32(0.5 * prosody["breath"]) * envelope * hiss
    if prosody["tremor"] > 0:
        swing = np.sin((2 * np.pi * 6.5 / SAMPLE_RATE) * np.arange(len(sound), dtype=np.float32))
        sound = sound * (1 - np.float32(0.4 * prosody["tremor"]) * (1 + swing))
    return np.float32(0.7 * 10 ** (8 * prosody["loudness"] / 20)) * sound
