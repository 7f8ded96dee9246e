"""eSpeak NG as a program: requests on standard input, a line each, speech on standard output.
A request is the JSON of one of `voice.say`. The answer is a line of JSON, with `size` in bytes,
`rate` in Hz and `phonemes` ((time in s, name) each), and then the samples, int16."""

import ctypes
import json
import os
import sys

import espeakng_loader

SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: hand the samples to a callback
OPTIONS = 0x0001 | 0x8000  # report phonemes; do not exit on errors
PHONEME, END = 7, 0  # event types
PARAMETERS = {"rate": 1, "pitch": 3, "range": 4, "pause": 7}
UTF8 = 1


class Event(ctypes.Structure):
    _numbers = ("type", "id", "text_position", "length", "milliseconds", "sample")
    _fields_ = [(name, ctypes.c_int) for name in _numbers]
    _fields_ += [("user_data", ctypes.c_void_p), ("string", ctypes.c_char * 8)]


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))
def receive(wave, count, events):
    if count > 0:
        samples.extend(ctypes.string_at(wave, 2 * count))
    i = 0
    while events[i].type != END:
        if events[i].type == PHONEME:
            name = events[i].string.decode("utf-8", "ignore")
            phonemes.append((events[i].milliseconds / 1000, name))
        i += 1
    return 0


if __name__ == "__main__":
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path().encode()
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, data, OPTIONS)
    library.espeak_SetSynthCallback(receive)
    library.espeak_ListVoices(None)  # reads their files, which every child would do again
    for line in sys.stdin:
        if os.fork():
            if os.wait()[1]:
                raise SystemExit(f"eSpeak NG failed with {line}")
            continue
        request, samples, phonemes = json.loads(line), bytearray(), []
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        if library.espeak_SetVoiceByName(f"en-us+{request['voice']}".encode()) != 0:
            raise SystemExit(f"eSpeak NG has no voice {request['voice']!r}")
        for name, number in PARAMETERS.items():
            library.espeak_SetParameter(number, request[name], 0)
        text = request["text"].encode()
        library.espeak_Synth(text, len(text) + 1, 0, 0, 0, UTF8, None, None)
        answer = {"size": len(samples), "phonemes": phonemes, "rate": rate}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + samples)
        sys.stdout.buffer.flush()
        os._exit(0)
