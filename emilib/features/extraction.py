"""Frozen encoders over many clips: frames of many clips in one batch, audio and text by length.

No batch reaches beyond a group of `store.SHARD` clips. So the features of a clip are the same to
the bit whichever shards existed before, however many processes made them, and whether the run was
killed; large encoders on another number of cores differ in last bits, as on a GPU (TF32, bf16).
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice, pairwise

import numpy as np
import torch

from emilib import SAMPLE_RATE, workers
from emilib.features.encoders import padded
from emilib.features.store import SHARD

SMALL = 5_000_000  # parameters of encoders for which one thread is enough
LONGEST = 30.0  # s of audio that a network sees at once; attention grows with the square of it


@dataclasses.dataclass(frozen=True)
class Batching:
    """The size of a batch of each encoder, and its precision. The defaults suit a CPU."""

    frames: int = 256
    sounds: int = 8  # waveforms, and
    seconds: float = 240.0  # of audio with the padding
    tokens: int = 2048  # of text with the padding
    precision: str | None = None  # None is single; "bf16" is autocast (features are in float16)

    @classmethod
    def on(cls, device, **fields) -> "Batching":
        """The defaults on a device; `fields` replace some of them."""
        if torch.device(device).type == "cuda":
            large = {"frames": 128, "sounds": 32, "seconds": 480.0, "tokens": 8192}
            fields = {**large, "precision": "bf16", **fields}
        return cls(**fields)


def extract(encoders, frames, waveforms, texts, audio_every=1, device=None, batching=None):
    """Features of clips in their order, as dicts of half-precision arrays or None.

    encoders : "vision", "audio" and "text"
    frames, waveforms : (T, 3, H, W) uint8, and (S,) int16 at 16 kHz, one a clip, or None
    texts : transcripts, "" where there is none
    audio_every : hidden states of the audio that are averaged into one step
    device : None is the GPU of this rank where there is one, else the CPU

    Yields {"frames": (T, D), "audio": (T, D), "text": (1, D)}; holds `store.SHARD` clips at most.
    """
    device = torch.device(device or workers.device())
    batching = batching or Batching.on(device)
    for encoder in encoders.values():
        encoder.to(device).eval()
    size = sum(p.numel() for encoder in encoders.values() for p in encoder.parameters())
    small = device.type == "cpu" and size <= SMALL
    clips = zip(frames, waveforms, texts, strict=True)
    while group := list(islice(clips, SHARD)):
        pictures, sounds, words = zip(*group, strict=True)
        jobs = {"frames": (encode_frames, encoders["vision"], pictures, batching)}
        jobs["audio"] = (encode_waveforms, encoders["audio"], sounds, audio_every, batching)
        jobs["text"] = (encode_texts, encoders["text"], words, batching)
        with workers.one_thread() if small else contextlib.nullcontext():
            limit = {"initializer": torch.set_num_threads, "initargs": (torch.get_num_threads(),)}
            with ThreadPoolExecutor(len(jobs) if small else 1, **limit) as pool:
                results = [pool.submit(*job).result for job in jobs.values()]
            columns = [result() for result in results]
        for row in zip(*columns, strict=True):
            yield dict(zip(jobs, row, strict=True))


@torch.inference_mode()
def encode_frames(encoder, clips: Sequence, batching: Batching | None = None) -> list:
    """(T, D) float16 of each clip's frames, None where it has none; a batch is of one size."""
    device = encoder.model.device
    batching = batching or Batching.on(device)
    result, vectors = [None] * len(clips), {}
    seen = [i for i, clip in enumerate(clips) if clip is not None and len(clip)]
    seen.sort(key=lambda i: clips[i].shape[1:])
    for _, same in groupby(seen, key=lambda i: clips[i].shape[1:]):
        places = ((i, t) for i in same for t in range(len(clips[i])))
        while batch := list(islice(places, batching.frames)):
            images = np.stack([clips[i][t] for i, t in batch])
            with _autocast(device, batching):
                rows = encoder(torch.from_numpy(images).to(device)).half()
            vectors |= zip(batch, rows, strict=True)
    for i in seen:
        result[i] = torch.stack([vectors[i, t] for t in range(len(clips[i]))]).cpu().numpy()
    return result


@torch.inference_mode()
def encode_waveforms(encoder, clips: Sequence, every=1, batching=None) -> list:
    """(T, D) float16 of each clip's audio; None where it is missing or shorter than one step.

    every : hidden states averaged into one row; the last row may be the mean of fewer

    Audio longer than `LONGEST` goes through the network in pieces, see `pieces`.
    """
    device = encoder.model.device
    batching = batching or Batching.on(device)
    result, cut, waves, states = [None] * len(clips), [], {}, {}
    for i, clip in enumerate(clips):
        if clip is not None and len(clip) >= encoder.shortest:
            wave, valid = padded([torch.from_numpy(clip).float() / 32768])
            waves[i] = encoder.normalised(wave, valid)[0]
            cut += [(i, start, stop) for start, stop in pieces(encoder, len(clip))]
    limit = round(batching.seconds * SAMPLE_RATE)
    for batch in _by_length(cut, lambda piece: piece[2] - piece[1], batching.sounds, limit):
        waveform, valid = padded([waves[i][start:stop] for i, start, stop in batch])
        with _autocast(device, batching):
            hidden, steps = encoder.encode(waveform.to(device), valid.to(device))
        for piece, rows, count in zip(batch, hidden, steps.sum(dim=1).tolist(), strict=True):
            states[piece] = rows[:count].float()
    for i, own in groupby(cut, key=lambda piece: piece[0]):
        groups = torch.cat([states.pop(piece) for piece in own]).split(every)
        result[i] = torch.stack([group.mean(dim=0) for group in groups]).half().cpu().numpy()
    return result


def pieces(encoder, samples: int) -> list[tuple[int, int]]:
    """Start and stop of each piece that so many samples are cut into, about `LONGEST` at most.

    They begin on the grid of the encoder's steps, and each takes in the samples that its last step
    reaches over: joined again they have the steps of the whole. A step attends to its piece alone.
    """
    stride, shortest = encoder.stride, encoder.shortest
    steps = int(encoder.steps(torch.tensor(samples)))
    count = math.ceil(steps / ((round(LONGEST * SAMPLE_RATE) - shortest) // stride + 1))
    if count < 2:
        return [(0, samples)]
    borders = [steps * k // count for k in range(count + 1)]
    return [(a * stride, (b - 1) * stride + shortest) for a, b in pairwise(borders)]


@torch.inference_mode()
def encode_texts(encoder, texts: Sequence[str], batching: Batching | None = None) -> list:
    """(1, D) float16 of each transcript; None where it is empty."""
    device = encoder.model.device
    batching = batching or Batching.on(device)
    result = [None] * len(texts)
    spoken = [i for i, text in enumerate(texts) if text]
    if not spoken:
        return result
    tokens = encoder.tokens([texts[i] for i in spoken])
    lengths = tokens["attention_mask"].sum(dim=1).tolist()
    for batch in _by_length(range(len(spoken)), lengths.__getitem__, len(spoken), batching.tokens):
        batch.sort()
        longest = max(lengths[row] for row in batch)
        rows = {name: ids[batch, :longest].to(device) for name, ids in tokens.items()}
        with _autocast(device, batching):
            vectors = encoder(**rows).half()
        for row, vector in zip(batch, vectors.cpu().numpy(), strict=True):
            result[spoken[row]] = vector[None]
    return result


def _autocast(device: torch.device, batching: Batching):
    return torch.autocast(device.type, torch.bfloat16, enabled=batching.precision == "bf16")


def _by_length(items: Iterable, length: Callable[..., int], most: int, total: int) -> list[list]:
    """Batches of items of similar length: at most `most` items, and `total` with the padding."""
    batches: list[list] = []
    for item in sorted(items, key=length):
        size = len(batches[-1]) if batches else most
        if size == most or (size + 1) * length(item) > total:
            batches.append([])
        batches[-1].append(item)
    return batches
