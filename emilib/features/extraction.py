"""Frozen encoders over many clips: frames of many clips in one batch, sound and words by length.

No batch reaches beyond a group of `store.SHARD` clips. So the features of a clip are the same to
the bit whichever shards were there before, however many processes decoded, and whether the run
was killed. A GPU gives the features of a CPU within `TOLERANCE`, by precision.
"""

import dataclasses
import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice, pairwise

import numpy as np
import torch

from emilib import workers
from emilib.features.encoders import SAMPLE_RATE, VisionEncoder, padded
from emilib.features.store import SHARD
from emilib.progress import report

LONGEST = 30.0  # s of sound that a network sees at once; attention grows with the square of it
# Root mean square of the difference to single precision on a CPU, over the standard deviation of
# all values: what TF32 and rounding in another order may do, and bf16.
TOLERANCE = {None: 5e-3, "bf16": 3e-2}


@dataclasses.dataclass(frozen=True)
class Batching:
    """How much goes through an encoder at once, and how.

    frames : pictures
    sounds, seconds : waveforms, and seconds of sound with the padding
    tokens : tokens of text with the padding
    precision : None is single precision; "bf16" is autocast to it (features are kept in float16)
    compile : `torch.compile` for the pictures, always in full batches, so that it compiles once

    The defaults suit a CPU; `on` knows those for a device.
    """

    frames: int = 256
    sounds: int = 8
    seconds: float = 240.0
    tokens: int = 2048
    precision: str | None = None
    compile: bool = False

    def __post_init__(self):
        if self.precision not in TOLERANCE:
            raise ValueError(f"precision: expected None or 'bf16', came {self.precision!r}")
        least = min(self.frames, self.sounds, self.seconds, self.tokens)
        if least <= 0:
            raise ValueError(f"batching: expected sizes above 0, came {least}")

    @classmethod
    def on(cls, device, **fields) -> "Batching":
        """The defaults on a device; `fields` replace some of them."""
        if torch.device(device).type == "cuda":
            large = {"frames": 128, "sounds": 32, "seconds": 480.0, "tokens": 8192}
            fields = {**large, "precision": "bf16", **fields}
        return cls(**fields)


@torch.inference_mode()
def extract(
    encoders: dict,
    frames: Iterable,
    waveforms: Iterable,
    texts: Sequence[str],
    audio_every: int = 1,
    device=None,
    batching: Batching | None = None,
) -> Iterator[dict]:
    """Features of clips in their order, as dicts of half-precision arrays or None.

    encoders : "vision", "audio" and "text"
    frames : (T, 3, H, W) uint8 or None, one a clip
    waveforms : (S,) int16 at 16 kHz or None, one a clip
    texts : transcripts, "" where there is none
    audio_every : hidden states of the sound that are averaged into one step
    device : None is the GPU of this rank where there is one, else the CPU
    batching : None is `Batching.on(device)`

    `frames` and `waveforms` are asked for `store.SHARD` clips at a time, and no more are held.
    Yields {"frames": (T, D), "audio": (T, D), "text": (1, D)}.
    """
    device = torch.device(device or workers.device())
    batching = batching or Batching.on(device)
    for encoder in encoders.values():
        encoder.to(device).eval()
    vision = compiled(encoders["vision"]) if batching.compile else encoders["vision"]
    clips = zip(frames, waveforms, texts, strict=True)
    while group := list(islice(clips, SHARD)):
        pictures, sounds, words = zip(*group, strict=True)
        columns = {
            "frames": encode_frames(vision, pictures, batching),
            "audio": encode_waveforms(encoders["audio"], sounds, audio_every, batching),
            "text": encode_texts(encoders["text"], words, batching),
        }
        for row in zip(*columns.values(), strict=True):
            yield dict(zip(columns, row, strict=True))


def compiled(encoder: VisionEncoder) -> VisionEncoder:
    """The same weights behind `torch.compile`, for batches of one shape."""
    network = torch.compile(encoder.model, dynamic=False)
    return VisionEncoder(network, **encoder.settings).to(encoder.model.device).eval()


# -------------------------------------------------------------------------------------- frames


@torch.inference_mode()
def encode_frames(encoder, clips: Sequence, batching: Batching | None = None) -> list:
    """(T, D) float16 of each clip's frames; None where it has none.

    Batches hold frames of one size, of as many clips as it takes to fill them.
    """
    device, batching = _prepared(encoder, batching)
    here = [i for i, clip in enumerate(clips) if clip is not None and len(clip)]
    here.sort(key=lambda i: clips[i].shape[1:])
    places = [(i, t) for i in here for t in range(len(clips[i]))]
    batches = []
    for _, same in groupby(places, key=lambda place: clips[place[0]].shape[1:]):
        same = list(same)
        batches += [same[k : k + batching.frames] for k in range(0, len(same), batching.frames)]

    def encode(batch, room):
        rows = [clips[i][t] for i, t in batch]
        if batching.compile:
            rows += [np.zeros_like(rows[0])] * (room - len(rows))
        images = _on_device(torch.from_numpy(np.stack(rows)), device)
        with _autocast(device, batching):
            return encoder(images)[: len(batch)].half()

    found = within_memory(batches, encode, batching.frames, "frame", device)
    result = [None] * len(clips)
    if here:
        features = torch.cat([values for _, values in found]).cpu().numpy()
        borders = np.cumsum([len(clips[i]) for i in here])[:-1]
        for i, rows in zip(here, np.split(features, borders), strict=True):
            result[i] = rows
    return result


# --------------------------------------------------------------------------------------- sound


@dataclasses.dataclass(frozen=True)
class _Piece:
    clip: int
    start: int
    stop: int

    def __len__(self):
        return self.stop - self.start


@torch.inference_mode()
def encode_waveforms(
    encoder, clips: Sequence, every: int = 1, batching: Batching | None = None
) -> list:
    """(T, D) float16 of each clip's sound; None where it is missing or shorter than one step.

    every : hidden states averaged into one row; the last row may be the mean of fewer

    Sound longer than `LONGEST` goes through the network in pieces, see `pieces`.
    """
    device, batching = _prepared(encoder, batching)
    here = [i for i, c in enumerate(clips) if c is not None and len(c) >= encoder.shortest]
    cut = [_Piece(i, *ends) for i in here for ends in pieces(encoder, len(clips[i]))]
    limit = round(batching.seconds * SAMPLE_RATE)
    moments = {i: _moments(clips[i]) for i in here} if encoder.settings["normalise"] else None

    def encode(batch, room):
        rows = [torch.from_numpy(clips[p.clip][p.start : p.stop]) for p in batch]
        values, valid = (_on_device(tensor, device) for tensor in padded(rows))
        known = moments and torch.tensor([moments[p.clip] for p in batch], device=device)
        with _autocast(device, batching):
            hidden, steps = encoder(values.float() / 32768, valid, known)
        counts = steps.sum(dim=1).tolist()
        return [states[:count].float() for states, count in zip(hidden, counts, strict=True)]

    batches = list(_by_length(cut, len, batching.sounds, limit))
    states = {}
    for batch, found in within_memory(batches, encode, batching.sounds, "waveform", device):
        states |= zip(batch, found, strict=True)
    result = [None] * len(clips)
    for i, own in groupby(cut, key=lambda piece: piece.clip):
        whole = torch.cat([states.pop(piece) for piece in own])
        result[i] = _averaged(whole, every).half().cpu().numpy()
    return result


def pieces(encoder, samples: int) -> list[tuple[int, int]]:
    """Start and stop of each piece that so many samples are cut into, none over `LONGEST`.

    The pieces are of about equal length and begin on the grid of the encoder's steps; each takes
    in the samples that its last step reaches over. Joined again they have as many steps as the
    whole would have, and what the convolutions see of it is the same; a step attends to its own
    piece alone. The sound is normalised as a whole.
    """
    steps = int(encoder.steps(torch.tensor(samples)))
    longest = (round(LONGEST * SAMPLE_RATE) - encoder.shortest) // encoder.stride + 1
    count = math.ceil(steps / longest)
    if count < 2:
        return [(0, samples)]
    borders = [steps * k // count for k in range(count + 1)]
    stride, shortest = encoder.stride, encoder.shortest
    return [(a * stride, (b - 1) * stride + shortest) for a, b in pairwise(borders)]


def _moments(waveform: np.ndarray) -> tuple[float, float]:
    """Mean and variance of int16 samples on the scale from -1 to 1."""
    return waveform.mean(dtype=np.float64) / 2**15, waveform.var(dtype=np.float64) / 2**30


def _averaged(states: torch.Tensor, every: int) -> torch.Tensor:
    """Means of groups of `every` rows; the last may be of fewer."""
    full = len(states) - len(states) % every
    means = [states[:full].unflatten(0, (-1, every)).mean(dim=1)] if full else []
    if full < len(states):
        means.append(states[full:].mean(dim=0, keepdim=True))
    return torch.cat(means)


# --------------------------------------------------------------------------------------- words


@torch.inference_mode()
def encode_texts(encoder, texts: Sequence[str], batching: Batching | None = None) -> list:
    """(1, D) float16 of each transcript; None where it is empty."""
    device, batching = _prepared(encoder, batching)
    result = [None] * len(texts)
    here = [i for i, text in enumerate(texts) if text]
    if not here:
        return result
    tokens = encoder.tokens([texts[i] for i in here])
    lengths = tokens["attention_mask"].sum(dim=1).tolist()

    def encode(batch, room):
        longest = max(lengths[row] for row in batch)
        rows = {name: _on_device(ids[batch, :longest], device) for name, ids in tokens.items()}
        with _autocast(device, batching):
            return encoder(**rows).half()

    buckets = _by_length(range(len(here)), lengths.__getitem__, len(here), batching.tokens)
    batches = [sorted(bucket) for bucket in buckets]
    for batch, found in within_memory(batches, encode, len(here), "transcript", device):
        for row, vector in zip(batch, found.cpu().numpy(), strict=True):
            result[here[row]] = vector[None]
    return result


# -------------------------------------------------------------------------------------- batches


def _prepared(encoder, batching: Batching | None) -> tuple[torch.device, Batching]:
    device = encoder.model.device
    return device, batching or Batching.on(device)


def _autocast(device: torch.device, batching: Batching):
    wanted = batching.precision == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def _on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Onto a GPU from pinned memory: the copy runs while the next batch is put together."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _by_length(
    items: Iterable, length: Callable[..., int], most: int, total: int
) -> Iterator[list]:
    """Batches of items of similar length: `most` of them, and `total` with the padding."""
    batch = []
    for item in sorted(items, key=length):
        if batch and (len(batch) == most or (len(batch) + 1) * length(item) > total):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def within_memory(
    batches: Sequence[list], encode: Callable, room: int, what: str, device: torch.device
) -> Iterator[tuple[list, object]]:
    """(batch, encode(batch, room)) in order, in halves where the device's memory runs out.

    room : items a batch may have; the next call begins with full batches again, so that what is
        made of a shard does not depend on the shards before it

    Raises RuntimeError when not even one item fits.
    """
    waiting = deque(batches)
    while waiting:
        batch = waiting.popleft()
        if len(batch) > room:
            waiting.appendleft(batch[room:])
            batch = batch[:room]
        try:
            found = encode(batch, room)
        except torch.OutOfMemoryError as error:
            if room == 1:
                raise RuntimeError(
                    f"expected memory for one {what} at a time on {device}, which is too little "
                    f"({str(error).splitlines()[0]}); end what else uses this device, or run "
                    "without it (CUDA_VISIBLE_DEVICES=)"
                ) from error
        else:
            yield batch, found
            continue
        # Not above: a handled exception keeps the tensors of what failed.
        torch.cuda.empty_cache()
        room = max(1, min(room, len(batch)) // 2)
        waiting.appendleft(batch)
        _say_once(f"{device}: too little memory for full batches, now {room} {what}s at a time")


_say_once = functools.cache(report)
