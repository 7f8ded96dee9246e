"""Speech from eSpeak NG, in a process of its own.

eSpeak NG is GPL-3, so the process that imports this module never loads it: `Speaker` starts
`espeak_program.py`, and only that program imports `espeakng_loader`.
"""

import base64
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy.signal import lfilter

FEMININE, MASCULINE = ("f1", "f2", "f3", "f4", "f5"), ("m1", "m2", "m3", "m4", "m6", "m7", "m8")
PROGRAM = Path(__file__).resolve().with_name("espeak_program.py")


class SpeechError(RuntimeError):
    """The speech program could not say an utterance."""


class Speaker:
    """A running speech program, until `close`."""

    def __init__(self):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.program = subprocess.Popen([sys.executable, "-P", str(PROGRAM)], **pipes)

    def close(self) -> None:
        self.program.communicate()  # ends its input, on which it ends

    def say(self, text: str, voice: str, pitch=50, range=50, rate=175, pause=0):
        """Speak English. Returns (samples (S,) int16, Hz, [(time in s, phoneme), ...]).

        voice : one of FEMININE or MASCULINE
        pitch, range : 0 to 99; 50 is the voice's own
        rate : words a minute, 80 to 450
        pause : further silence between words, in units of 10 ms

        Raises SpeechError when the program fails.
        """
        request = dict(text=text, voice=voice, pitch=pitch, range=range, rate=rate, pause=pause)
        try:
            print(json.dumps(request), file=self.program.stdin, flush=True)
            answer = json.loads(self.program.stdout.readline() or '{"error": "it has ended"}')
        except OSError as error:
            answer = {"error": error}
        if "error" in answer:
            raise SpeechError(f"The speech program cannot say {text!r}: {answer['error']}")
        samples = np.frombuffer(base64.b64decode(answer["samples"]), "<i2")
        return samples, answer["rate"], answer["phonemes"]


def perform(speaker: Speaker, words: str, person, prosody: dict[str, float], rng):
    """Speak with prosody, each value the difference from the person's habit in [-1, 1].

    Returns (samples (S,) float32, sample rate in Hz, [(time in s, phoneme), ...]).
    """
    samples, rate, phonemes = speaker.say(
        words,
        person.voice,
        pitch=round(np.clip(50 + person.pitch + 36 * prosody["pitch"], 2, 98)),
        range=round(np.clip(50 + 46 * prosody["range"], 2, 98)),
        rate=round(person.rate + 48 * prosody["rate"]),
        pause=round(6 * prosody["pause"]),
    )
    # Loudness, tremor, breath and brightness, which eSpeak NG has no parameter for.
    sound = samples.astype(np.float32) / 32768
    dull = lfilter([0.25], [1, -0.75], sound).astype(np.float32)  # one-pole low-pass
    bright = 1.2 * prosody["brightness"]
    sound = sound + (bright if bright > 0 else 0.6 * bright) * (sound - dull)
    envelope = np.sqrt(lfilter([0.002], [1, -0.998], sound**2))
    hiss = np.diff(rng.standard_normal(len(sound) + 1))  # differences: no low frequencies
    sound = sound + 0.5 * prosody["breath"] * envelope * hiss
    swing = 0.5 + 0.5 * np.sin(2 * np.pi * 6.5 * np.arange(len(sound)) / rate)
    sound = sound * (1 - 0.8 * prosody["tremor"] * swing)
    return (0.7 * 10 ** (8 * prosody["loudness"] / 20) * sound).astype(np.float32), rate, phonemes
