"""Speech from eSpeak NG, in a process of its own.

eSpeak NG is GPL-3, so it is never loaded into the process that imports this module: `Speaker`
starts this very file as a program (`serve`), and only that program imports `espeakng_loader`.

eSpeak NG keeps state from one utterance to the next, so that the second utterance of a process
differs from the same one said first. The program therefore initialises the library once and forks a
fresh child for every utterance: a given request always gives the same samples, whatever was said
before.

Protocol, over the program's standard input and output: a request is one line of JSON; the answer is
a line of JSON (`samples`, `rate`, `phonemes` or `error`) and then 2 * samples bytes, int16 little
endian.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass

VOICES = ("f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m6", "m7", "m8")
FEMININE = 5  # the first five of them


@dataclass(frozen=True)
class Utterance:
    """What to say and how.

    text : English words
    voice : one of VOICES
    pitch, range : 0 to 99; 50 is the voice's own
    rate : words a minute, 80 to 450
    pause : further silence between words, in units of 10 ms
    """

    text: str
    voice: str
    pitch: int = 50
    range: int = 50
    rate: int = 175
    pause: int = 0


class SpeechError(RuntimeError):
    """The speech program could not say an utterance."""


class Speaker:
    """A running speech program; use it as a context manager."""

    def __init__(self):
        self._program = subprocess.Popen(
            [sys.executable, "-P", os.path.abspath(__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Speaker:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the program."""
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            self._program.stdin.close()
        self._program.stdout.close()
        self._program.wait()

    def say(self, utterance: Utterance):
        """Speak. Returns (samples (S,) int16, sample rate in Hz, [(time in s, phoneme), ...]).

        Raises ValueError for a voice that is not in VOICES (eSpeak NG would take another one and
        say nothing), SpeechError when the program fails.
        """
        import numpy as np

        if utterance.voice not in VOICES:
            raise ValueError(f"voice must be one of {', '.join(VOICES)}, not {utterance.voice!r}")
        try:
            self._program.stdin.write(json.dumps(asdict(utterance)).encode() + b"\n")
            self._program.stdin.flush()
            line = self._program.stdout.readline()
        except OSError as error:
            raise SpeechError(f"the speech program has ended: {error}") from error
        if not line:
            raise SpeechError(f"the speech program ended while it was to say {utterance.text!r}")
        answer = json.loads(line)
        if "error" in answer:
            raise SpeechError(f"eSpeak NG could not say {utterance.text!r}: {answer['error']}")
        samples = self._program.stdout.read(2 * answer["samples"])
        return np.frombuffer(samples, "<i2"), answer["rate"], answer["phonemes"]


# ---- the program: everything below runs in the process of its own only --------------------------

_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: hand the samples to a callback
_OPTIONS = 0x0001 | 0x8000  # report phonemes; do not exit on errors
_PHONEME, _END = 7, 0  # event types
_RATE, _VOLUME, _PITCH, _RANGE, _WORD_GAP = 1, 2, 3, 4, 7  # parameters
_UTF8 = 1


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("string", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


def serve() -> None:
    """Answer requests from standard input until it ends."""
    library, rate = _initialise()
    for line in sys.stdin.buffer:
        child = os.fork()
        if child == 0:
            _answer(library, rate, json.loads(line))
        _, status = os.waitpid(child, 0)
        if status != 0:
            _write(
                json.dumps({"error": f"its process ended with status {status}"}).encode() + b"\n"
            )


def _initialise():
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path().encode()
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data, _OPTIONS)
    if rate <= 0:
        raise SystemExit(f"eSpeak NG could not be initialised from {data.decode()}")
    return library, rate


def _answer(library, rate: int, request: dict) -> None:
    """In a forked child: speak, write the answer, end."""
    samples, phonemes = _synthesise(library, **request)
    header = {"samples": len(samples) // 2, "rate": rate, "phonemes": phonemes}
    _write(json.dumps(header).encode() + b"\n" + samples)
    os._exit(0)


def _synthesise(library, text, voice, pitch, range, rate, pause):
    """Returns int16 samples as bytes and [(time in s, phoneme), ...]."""
    samples, phonemes = bytearray(), []

    @_Callback
    def receive(wave, count, events):
        if count > 0:
            samples.extend(ctypes.string_at(wave, 2 * count))
        i = 0
        while events[i].type != _END:
            if events[i].type == _PHONEME:
                name = events[i].string.split(b"\0")[0].decode("utf-8", "ignore")
                phonemes.append((events[i].audio_position / 1000, name))
            i += 1
        return 0

    library.espeak_SetSynthCallback(receive)
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    if library.espeak_SetVoiceByName(f"en-us+{voice}".encode()) != 0:
        raise SystemExit(f"eSpeak NG has no voice {voice!r}")
    settings = {_RATE: rate, _VOLUME: 100, _PITCH: pitch, _RANGE: range, _WORD_GAP: pause}
    for parameter, value in settings.items():
        library.espeak_SetParameter(parameter, int(value), 0)
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None)
    return bytes(samples), phonemes


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    serve()
