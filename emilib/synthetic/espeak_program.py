"""eSpeak NG as a program: requests on standard input, speech on standard output, a line each.

A request is the JSON of a `voice.Utterance`; the answer has `samples` (base64 of int16, little
endian), `rate` in Hz and `phonemes` ((time in s, name) each), or `error`.

eSpeak NG keeps state from one utterance to the next, so that the second utterance of a process
differs from the same one said first. This program therefore initialises the library once and forks
a fresh child for every utterance: a request always gives the same samples.
"""

import base64
import ctypes
import json
import os
import sys

import espeakng_loader

SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: hand the samples to a callback
OPTIONS = 0x0001 | 0x8000  # report phonemes; do not exit on errors
PHONEME, END = 7, 0  # event types
RATE, VOLUME, PITCH, RANGE, WORD_GAP = 1, 2, 3, 4, 7  # parameters
UTF8 = 1


class Event(ctypes.Structure):
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


Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event)
)


def synthesise(library, text, voice, pitch, range, rate, pause) -> dict:
    samples, phonemes = bytearray(), []

    @Callback
    def receive(wave, count, events):
        if count > 0:
            samples.extend(ctypes.string_at(wave, 2 * count))
        i = 0
        while events[i].type != END:
            if events[i].type == PHONEME:
                name = events[i].string.decode("utf-8", "ignore")
                phonemes.append((events[i].audio_position / 1000, name))
            i += 1
        return 0

    library.espeak_SetSynthCallback(receive)
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    if library.espeak_SetVoiceByName(f"en-us+{voice}".encode()) != 0:
        raise SystemExit(f"eSpeak NG has no voice {voice!r}")
    settings = {RATE: rate, VOLUME: 100, PITCH: pitch, RANGE: range, WORD_GAP: pause}
    for parameter, value in settings.items():
        library.espeak_SetParameter(parameter, int(value), 0)
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 0, 0, UTF8, None, None)
    return {"samples": base64.b64encode(samples).decode(), "phonemes": phonemes}


def serve() -> None:
    """Answer requests until standard input ends."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path()
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), OPTIONS)
    if rate <= 0:
        raise SystemExit(f"eSpeak NG cannot be initialised from {data}")
    for line in sys.stdin:
        if os.fork() == 0:
            answer = synthesise(library, **json.loads(line))
            print(json.dumps({**answer, "rate": rate}), flush=True)
            os._exit(0)
        _, status = os.wait()
        if status != 0:
            print(json.dumps({"error": f"its process ended with status {status}"}), flush=True)


if __name__ == "__main__":
    serve()
