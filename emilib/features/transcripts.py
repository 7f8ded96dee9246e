"""Transcripts: from text files where they exist, else from openai-whisper where its weights are.

Nothing is ever downloaded. Whisper invents words for silence ("Thank you."), so it never gets a
silent window, and a window that it takes for no speech yields no text.
"""

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from emilib import SAMPLE_RATE
from emilib.cache import Cache, code_version, file_sum, key
from emilib.features import checkpoints, store
from emilib.features.extraction import within_memory
from emilib.workers import ordered_map

WINDOW = 30 * SAMPLE_RATE  # samples that Whisper takes at once
SHORTEST = SAMPLE_RATE // 10  # samples; no word is shorter, but Whisper hears one
NO_SPEECH = 0.6  # probability of no speech above which a window has no text; Whisper's own
SILENCE = 1e-6  # mean square of the loudest 50 ms: -60 dB of full scale
DEFAULT_MODEL = "turbo"  # both papers


def transcripts(
    clips: pd.DataFrame,
    decode: Callable,
    cache: Cache,
    weights=None,
    language: str | None = "en",
    batch_size=16,
    device=None,
    workers: int | None = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[pd.Series, str]:
    """The words of each clip, and one line that names their source.

    clips : DataFrame of `emilib.corpus.read`
    decode : from a clip's paths (audio, video), either of them None, to its waveform (S,) float32
        at 16 kHz, or None; runs in `workers` processes, some clips ahead
    cache : keeps Whisper's words by shards: a run after a kill goes on from there
    weights : a Whisper checkpoint (.pt), or the name of one that is already on this machine; None
        takes `turbo` where it is, and does without it where it is not
    language : spoken in the clips, None lets Whisper guess for each window (the papers do not say)
    progress : called with (clips done, clips in all) while Whisper works

    Returns a Series of str or None (no text known) in the order of `clips`, indexed by id, and the
    line. A text file is taken as it is; only clips without one go to Whisper.
    Raises ValueError where `weights` names a checkpoint that does not exist.
    """
    words = pd.Series(clips["transcript"].tolist(), index=clips["id"], dtype=object)
    missing = clips[clips["transcript"].isna()]
    if missing.empty:
        return words, f"Text: from the text files of all {len(clips)} clips."
    read = len(clips) - len(missing)
    files = f"from {read} text files" if read else ""
    path = find_weights(weights)
    if path is None:
        return words, (
            f"Text: {files or 'none'}, {len(missing)} of {len(clips)} clips have no text, as "
            "Whisper's weights are not on this machine; to have it, "
            f"{checkpoints.how_to_get(DEFAULT_MODEL)}."
        )
    ids = missing["id"].tolist()
    paths = missing.set_index("id")[["audio", "video"]]

    def produce(wanted) -> Iterator[dict]:
        model = load_whisper(path, device)
        waveforms = ordered_map(
            decode, paths.loc[list(wanted)].itertuples(index=False, name=None), workers
        )
        # No batch has windows of two shards: one of them may come from an earlier run.
        while shard := list(islice(waveforms, store.SHARD)):
            for text in transcribe(model, shard, language, batch_size):
                yield {"words": np.frombuffer(text.encode(), np.uint8)}

    parts = _parts(missing, path, language)
    stores = store.build(cache, "transcripts", parts, ids, produce, ["words"], progress=progress)
    words.loc[ids] = [bytes(stores["words"][id_]).decode() for id_ in ids]
    source = f"Whisper ({path.name}) for {len(missing)} clips"
    return words, f"Text: {files + ', ' if files else ''}from {source}."


def heard_key(clips: pd.DataFrame, language: str | None = "en") -> str:
    """Changes when the words that Whisper hears may; "" where it hears none. Whisper is not run."""
    missing, path = clips[clips["transcript"].isna()], find_weights()
    return "" if missing.empty or path is None else key(**_parts(missing, path, language))


def _parts(clips: pd.DataFrame, path: Path, language: str | None) -> dict:
    """All that determines the words that Whisper hears in these clips."""
    paths = clips[["audio", "video"]].to_numpy().ravel()
    sizes = [os.path.getsize(path) if isinstance(path, str) else -1 for path in paths]
    return {
        "weights": file_sum(path),
        "language": language,
        "clips": key(ids=clips["id"].tolist(), sizes=sizes),
        "whisper": version("openai-whisper"),
        "code": code_version("features/transcripts.py", "corpus/media.py"),
    }


def find_weights(weights=None) -> Path | None:
    """Path of a Whisper checkpoint on this machine, see `checkpoints.whisper_file`.

    None for `weights` looks for `turbo`, and is None where that does not exist; any other raises
    ValueError where it does not exist.
    """
    path = checkpoints.whisper_file(str(weights or DEFAULT_MODEL))
    if path is None and weights is not None:
        raise ValueError(
            f"expected Whisper weights {weights}, a file or a name Whisper knows, got nothing in "
            f"${checkpoints.WEIGHTS} or Whisper's cache; {checkpoints.how_to_get(DEFAULT_MODEL)}"
        )
    return path


def load_whisper(path, device=None):
    """A Whisper model from a checkpoint file in its own format. Raises ValueError for another."""
    import whisper

    try:
        return whisper.load_model(str(path), device=device).eval()
    except (LookupError, TypeError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{path}: expected a Whisper checkpoint (a dict of dims and model_state_dict), got "
            f"another file: {error}"
        ) from error


def transcribe(model, waveforms: Iterable, language="en", batch_size=16) -> list[str]:
    """Words of each waveform, by `whisper.decode` on batches of windows of 30 s.

    model : of `load_whisper`; waveforms : iterable of (S,) float32 at 16 kHz, or None for no audio,
    read one at a time: no more than a batch of windows is in memory.

    Returns a list of str: "" where there is no audio, where no window is longer than `SHORTEST`
    and louder than `SILENCE` (the model does not see it), and where the model hears no speech.
    """
    texts: list[list[str]] = []

    def windows() -> Iterator[tuple[int, np.ndarray]]:
        for clip, waveform in enumerate(waveforms):
            texts.append([])
            for start in range(0, 0 if waveform is None else len(waveform), WINDOW):
                window = waveform[start : start + WINDOW]
                if len(window) >= SHORTEST and not silent(window):
                    yield clip, window

    def decode(batch: list, _) -> list:
        return decode_windows(model, [window for _, window in batch], language)

    remaining = windows()
    while batch := list(islice(remaining, batch_size)):
        for part, results in within_memory([batch], decode, len(batch), "window"):
            for (clip, _), result in zip(part, results, strict=True):
                if result.no_speech_prob <= NO_SPEECH and result.text:
                    texts[clip].append(result.text)
    return [" ".join(words) for words in texts]


def silent(waveform: np.ndarray) -> bool:
    """Whether no 50 ms of a waveform (S,) are louder than `SILENCE`."""
    piece = SAMPLE_RATE // 20
    energy = np.square(waveform, dtype=np.float64)
    return np.add.reduceat(energy, range(0, len(energy), piece)).max() / piece <= SILENCE


def decode_windows(model, windows: list, language="en") -> list:
    """whisper.DecodingResult of each window (S,) float32, all in one batch."""
    import whisper

    mels = [
        # One at a time: the floor of a spectrogram depends on the loudest value of its input.
        whisper.log_mel_spectrogram(
            whisper.pad_or_trim(torch.from_numpy(window).to(model.device)),
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
