"""Transcripts: from text files where they exist, else from openai-whisper where its weights are.
Nothing is downloaded. Whisper invents words for silence, so it never gets a silent window."""

import os
import pickle
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import islice

import numpy as np
import pandas as pd
import torch

from emilib import SAMPLE_RATE
from emilib.cache import Cache, code_version, file_sum, key
from emilib.features import checkpoints, store
from emilib.workers import ordered_map

WINDOW = 30 * SAMPLE_RATE  # samples that Whisper takes at once
SHORTEST = SAMPLE_RATE // 10  # samples; no word is shorter, but Whisper hears one
NO_SPEECH = 0.6  # probability of no speech above which a window has no text; Whisper's own
SILENCE = 1e-6  # mean square of the loudest 50 ms: -60 dB of full scale
DEFAULT_MODEL = "turbo"  # both papers


def transcripts(clips, decode, cache: Cache, workers=1, progress=None) -> tuple[pd.Series, str]:
    """The words of each clip, and one line that names their source.

    clips : DataFrame of `emilib.corpus.read`; those without a text file go to Whisper
    decode : from a clip's paths (audio, video), either of them None, to its waveform (S,) float32
        at 16 kHz, or None; runs in `workers` processes, some clips ahead
    progress : called with (clips done, clips in all) while Whisper works

    The words are a Series of str, or None where no text is known, indexed by id.
    """
    words = pd.Series(clips["transcript"].tolist(), index=clips["id"], dtype=object)
    missing = clips[clips["transcript"].isna()]
    if missing.empty:
        return words, f"Text: from the text files of all {len(clips)} clips."
    read = len(clips) - len(missing)
    files = f"from {read} text files, " if read else ""
    if (path := checkpoints.whisper_file()) is None:
        without = f"{files or 'none, '}{len(missing)} of {len(clips)} clips have no text"
        hint = f"to have it, {checkpoints.how_to_get(DEFAULT_MODEL)}"
        return words, f"Text: {without}, as Whisper's weights are not on this machine; {hint}."
    paths = missing.set_index("id")[["audio", "video"]]

    def produce(ids) -> Iterator[dict]:
        model = load_whisper(path)
        rows = paths.loc[list(ids)].itertuples(index=False, name=None)
        waveforms = ordered_map(decode, rows, workers, lambda row: None)
        # No batch has windows of two shards: one of them may come from an earlier run.
        while shard := list(islice(waveforms, store.SHARD)):
            for text in transcribe(model, shard):
                yield {"words": np.frombuffer(text.encode(), np.uint8)}

    parts, ids = {"heard": heard_key(clips)}, missing["id"].tolist()
    stores = store.build(cache, "transcripts", parts, ids, produce, ["words"], progress=progress)
    words.loc[ids] = [bytes(stores["words"][id_]).decode() for id_ in ids]
    return words, f"Text: {files}from Whisper ({path.name}) for {len(missing)} clips."


def heard_key(clips: pd.DataFrame) -> str:
    """Changes when the words that Whisper hears may; "" where it hears none. Whisper is not run."""
    missing, path = clips[clips["transcript"].isna()], checkpoints.whisper_file()
    if missing.empty or path is None:
        return ""
    files = missing[["audio", "video"]].to_numpy().ravel()
    sizes = [os.path.getsize(file) if isinstance(file, str) else -1 for file in files]
    ids, code = missing["id"].tolist(), code_version("features/transcripts.py", "corpus/media.py")
    weights, whisper = file_sum(path), version("openai-whisper")
    return key(weights=weights, ids=ids, sizes=sizes, whisper=whisper, code=code)


def load_whisper(path, device=None):
    """A Whisper model from a checkpoint file in its own format. Raises ValueError for another."""
    import whisper

    try:
        return whisper.load_model(str(path), device=device).eval()
    except (LookupError, TypeError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path}: expected a Whisper checkpoint, got {error}") from error


def transcribe(model, waveforms: Iterable, batch_size=16) -> list[str]:
    """Words of each waveform, by `whisper.decode` on batches of windows of 30 s.

    model : of `load_whisper`; waveforms : (S,) float32 at 16 kHz, or None for no audio

    Returns a list of str: "" where there is no audio, where no window is longer than `SHORTEST`
    and louder than `SILENCE`, and where the model hears no speech.
    """
    texts: list[list[str]] = []

    def windows() -> Iterator[tuple[int, np.ndarray]]:
        for clip, waveform in enumerate(waveforms):
            texts.append([])
            for start in range(0, 0 if waveform is None else len(waveform), WINDOW):
                window = waveform[start : start + WINDOW]
                if len(window) >= SHORTEST and not silent(window):
                    yield clip, window

    remaining = windows()
    while batch := list(islice(remaining, batch_size)):
        results = decode_windows(model, [window for _, window in batch])
        for (clip, _), result in zip(batch, results, strict=True):
            if result.no_speech_prob <= NO_SPEECH and result.text:
                texts[clip].append(result.text)
    return [" ".join(words) for words in texts]


def silent(waveform: np.ndarray) -> bool:
    """Whether no 50 ms of a waveform (S,) are louder than `SILENCE`."""
    piece = SAMPLE_RATE // 20
    energy = np.square(waveform, dtype=np.float64)
    return np.add.reduceat(energy, range(0, len(energy), piece)).max() / piece <= SILENCE


def decode_windows(model, windows: list) -> list:
    """whisper.DecodingResult of each window (S,) float32 of English, all in one batch."""
    import whisper

    # One at a time: the floor of a spectrogram depends on the loudest value of its input.
    padded = (whisper.pad_or_trim(torch.from_numpy(w).to(model.device)) for w in windows)
    mels = [whisper.log_mel_spectrogram(window, n_mels=model.dims.n_mels) for window in padded]
    on_gpu = model.device.type == "cuda"
    options = whisper.DecodingOptions(language="en", without_timestamps=True, fp16=on_gpu)
    return whisper.decode(model, torch.stack(mels), options)
