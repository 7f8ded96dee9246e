"""Transcripts: from text files where they are, else from openai-whisper where its weights are.

Nothing is ever downloaded. Whisper invents words for silence ("Thank you."), so a window without
sound is never shown to it, and a window that it takes for no speech gives no text.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from emilib import workers as processes
from emilib.cache import Cache, code_version, file_sum, key
from emilib.corpus import media
from emilib.features import checkpoints as manifest
from emilib.features import store

SAMPLE_RATE = 16000  # Hz, what Whisper takes
WINDOW = 30 * SAMPLE_RATE  # samples, what Whisper takes at once
SHORTEST = SAMPLE_RATE // 10  # samples; nobody says a word in less, but Whisper hears one
NO_SPEECH = 0.6  # probability of no speech from which on a window has no text; Whisper's own
DEFAULT_MODEL = "turbo"  # both papers
_TURBO = manifest.get(DEFAULT_MODEL)
HOW_TO_GET = (
    f"download {_TURBO.files[0]} ({_TURBO.size}, {_TURBO.licence}) with `whisper.load_model"
    f"('{_TURBO.name}')` on a machine with network and put it into ~/.cache/whisper or into the "
    f"folder {manifest.WEIGHTS}"
)


@dataclass
class Window:
    """One piece of a clip of at most 30 s: `clip` is the position of the clip."""

    clip: int
    samples: object  # (S,) float32


def transcripts(
    clips,
    weights=None,
    language="en",
    batch_size=16,
    device=None,
    workers=0,
    progress=None,
    cache: Cache | None = None,
):
    """The words of each clip, and one line that says where they come from.

    clips : DataFrame of `emilib.corpus.read`
    weights : a Whisper checkpoint (.pt), or the name of one that is already on this machine; None
        takes `turbo` where it is, and does without it where it is not
    language : what is spoken, None lets Whisper guess for each window (not stated in the papers)
    workers : processes that decode the sound for Whisper, 0 does it in this one
    progress : called with (clips done, clips in all) while Whisper works
    cache : where Whisper's words are kept, by shards: what a killed run had heard is not asked
        again. None keeps nothing

    Returns a Series of str or None (no text known) in the order of `clips`, indexed by id, and the
    line. A text file is taken as it is; only clips without one go to Whisper.
    Raises ValueError where `weights` are asked for and not there.
    """
    words = pd.Series(clips["transcript"].tolist(), index=clips["id"], dtype=object)
    missing = clips[clips["transcript"].isna()]
    from_files = len(clips) - len(missing)
    if missing.empty:
        return words, f"Text: from the text files of all {len(clips)} clips."
    path = find_weights(weights)
    if path is None:
        start = f"Text: from {from_files} text files, " if from_files else "Text: none, "
        return words, (
            f"{start}{len(missing)} of {len(clips)} clips have no text, as Whisper's weights are "
            f"not here; to have it, {HOW_TO_GET}."
        )

    def listen(ids):
        model = load_whisper(path, device)
        rows = missing.set_index("id").loc[list(ids)]
        return _listen(model, _sounds(rows, workers), language, batch_size)

    ids = missing["id"].tolist()
    if cache is None:
        found = {}
        for id_, text in zip(ids, listen(ids), strict=True):
            found[id_] = text
            if progress is not None:
                progress(len(found), len(ids))
    else:
        found = _kept(cache, _parts(missing, path, language), ids, listen, progress)
    words.loc[ids] = [found[id_] for id_ in ids]
    files = f"from {from_files} text files, " if from_files else ""
    return words, f"Text: {files}from Whisper ({path.name}) for {len(missing)} clips."


def _kept(cache, parts, ids, listen, progress) -> dict[str, str]:
    """Words by id from the store, as bytes of UTF-8; shards that are missing are listened to."""

    def produce(missing):
        for text in listen(missing):
            yield {"words": np.frombuffer(text.encode(), np.uint8)}

    made = store.build(cache, "transcripts", parts, ids, produce, ("words",), progress=progress)
    return {id_: bytes(row).decode() for id_, row in made["words"].items()}


def heard_key(clips, language="en") -> str:
    """Changes with what `transcripts` would have Whisper say of these clips; "" for nothing.

    Whisper is not asked.
    """
    missing, path = clips[clips["transcript"].isna()], find_weights()
    if missing.empty or path is None:
        return ""
    return key(**_parts(missing, path, language))


def _parts(clips, path, language) -> dict:
    """All that determines what Whisper hears in these clips."""
    paths = clips[["audio", "video"]].to_numpy().ravel()
    sizes = [os.path.getsize(path) if isinstance(path, str) else -1 for path in paths]
    return {
        "weights": file_sum(path),
        "language": language,
        "clips": key(ids=clips["id"].tolist(), sizes=sizes),
        "whisper": version("openai-whisper"),
        "code": code_version("features/transcripts.py", "corpus/media.py"),
    }


def find_weights(weights=None):
    """Path of a Whisper checkpoint on this machine.

    weights : a path, or a name Whisper knows (`turbo`, `tiny.en`, ...), looked for in the folder
        EMI_WEIGHTS (and its subfolder whisper) and in Whisper's cache; None means `turbo`.
    Returns None where nothing was asked for and nothing is there; raises ValueError where a
    checkpoint was asked for by name or path and is not there.
    """
    if weights is not None and Path(weights).is_file():
        return Path(weights)
    name = DEFAULT_MODEL if weights is None else str(weights)
    folders = _weight_folders()
    for folder in folders:
        candidate = folder / _checkpoint_name(name)
        if candidate.is_file():
            return candidate
    if weights is None:
        return None
    places = ", ".join(str(folder) for folder in folders)
    raise ValueError(
        f"There are no Whisper weights {name}: neither a file of this path nor "
        f"{_checkpoint_name(name)} in {places}; {HOW_TO_GET}."
    )


def _weight_folders():
    home = os.environ.get("EMI_WEIGHTS")
    own = [Path(home), Path(home) / "whisper"] if home else []
    cache = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    return [*own, Path(cache) / "whisper"]


def _checkpoint_name(name):
    """turbo -> large-v3-turbo.pt: two of Whisper's names stand for another file."""
    name = {"turbo": "large-v3-turbo", "large": "large-v3"}.get(name, name)
    return name if name.endswith(".pt") else f"{name}.pt"


def load_whisper(path, device=None):
    """A Whisper model from a checkpoint file in its own format. Raises ValueError for another."""
    import pickle

    import whisper

    try:
        return whisper.load_model(str(path), device=device).eval()
    except (LookupError, TypeError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{path} is no Whisper checkpoint (a dict of dims and model_state_dict): {error}."
        ) from error


def _listen(model, waveforms: Iterator, language, batch_size) -> Iterator[str]:
    """Words of each waveform. No batch has windows of two shards, as one of them may be kept."""
    while shard := list(islice(waveforms, store.SHARD)):
        yield from transcribe(model, shard, language, batch_size)


def transcribe(
    model, waveforms: Iterable, language="en", batch_size=16, silence=media.SILENCE
) -> list[str]:
    """Words of each waveform, by `whisper.decode` on batches of windows of 30 s.

    model : of `load_whisper`; waveforms : iterable of (S,) float32 at 16 kHz, or None for no sound.
    It is taken as it comes: no more than a batch of windows is in memory.

    Returns a list of str: "" where there is no sound, where no window is longer than `SHORTEST`
    and louder than `silence` (the model isn't asked), and where the model takes it for no speech.
    """
    texts, batch = [], []
    for clip, waveform in enumerate(waveforms):
        texts.append([])
        batch += [Window(clip, samples) for samples in _loud_windows(waveform, silence)]
        while len(batch) >= batch_size:
            _decode_batch(model, batch[:batch_size], language, texts)
            batch = batch[batch_size:]
    if batch:
        _decode_batch(model, batch, language, texts)
    return [" ".join(pieces) for pieces in texts]


def _loud_windows(waveform, silence):
    """Pieces of at most 30 s that are long and loud enough to hold speech."""
    if waveform is None:
        return []
    pieces = [waveform[start : start + WINDOW] for start in range(0, len(waveform), WINDOW)]
    return [
        piece
        for piece in pieces
        if len(piece) >= SHORTEST and media.loudness(piece, SAMPLE_RATE) > silence
    ]


def _decode_batch(model, windows, language, texts):
    """Append the words of each window to those of its clip."""
    from emilib.features.extraction import within_memory

    def decode(batch, room):
        return decode_windows(model, batch, language)

    batches = within_memory([windows], decode, len(windows), "window")
    for batch, results in batches:
        for window, result in zip(batch, results, strict=True):
            if result.no_speech_prob <= NO_SPEECH and result.text:
                texts[window.clip].append(result.text)


def decode_windows(model, windows, language="en"):
    """whisper.DecodingResult of each window, all in one batch."""
    import torch
    import whisper

    mels = [
        # One at a time: the spectrogram's floor hangs on the loudest value of what is given.
        whisper.log_mel_spectrogram(
            whisper.pad_or_trim(torch.from_numpy(window.samples).to(model.device)),
            n_mels=model.dims.n_mels,
        )
        for window in windows
    ]
    options = whisper.DecodingOptions(
        # an English-only checkpoint knows no other language
        language=language if model.is_multilingual else "en",
        without_timestamps=True,
        fp16=model.device.type == "cuda",
    )
    return whisper.decode(model, torch.stack(mels), options)


def sound_of(clip):
    """Waveform at 16 kHz of a (audio path, video path) pair, None where neither gives one."""
    for path in clip:
        if path is not None:
            try:
                waveform = media.decode(path, frames=False, sample_rate=SAMPLE_RATE).waveform
            except media.MediaError:
                continue  # an unreadable clip has no words; the audit names it
            if waveform is not None:
                return waveform
    return None


def _sounds(clips, workers) -> Iterator:
    """Waveforms of the clips in order, decoded some clips ahead by `workers` processes."""
    pairs = list(zip(clips["audio"], clips["video"], strict=True))
    yield from processes.ordered_map(sound_of, pairs, workers)
