"""Frozen encoders over many clips: frames of many clips in one batch, audio and text by length.

No batch reaches beyond a group of `store.SHARD` clips. So the features of a clip are the same to
the bit whichever shards existed before, however many processes decoded, and whether the run was
killed. A GPU gives the features of a CPU: the root mean square of the difference, over the standard
deviation of all values, is at most 0.005 (TF32, rounding in another order) or 0.03 (bf16).
"""

import dataclasses
import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice, pairwise

import numpy as np
import torch

from emilib import SAMPLE_RATE, workers
from emilib.features.encoders import VisionEncoder, padded
from emilib.features.store import SHARD
from emilib.progress import report

LONGEST = 30.0  # s of audio that a network sees at once; attention grows with the square of it


@dataclasses.dataclass(frozen=True)
class Batching:
    """The size of a batch of each encoder, and its precision. The defaults suit a CPU.

    frames : pictures
    sounds, seconds : waveforms, and seconds of audio with the padding
    tokens : tokens of text with the padding
    precision : None is single precision; "bf16" is autocast to it (features are kept in float16)
    compile : `torch.compile` for the pictures, always in full batches, so that it compiles once
    """

    frames: int = 256
    sounds: int = 8
    seconds: float = 240.0
    tokens: int = 2048
    precision: str | None = None
    compile: bool = False

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
    texts: Iterable[str],
    audio_every: int = 1,
    device=None,
    batching: Batching | None = None,
) -> Iterator[dict]:
    """Features of clips in their order, as dicts of half-precision arrays or None.

    encoders : "vision", "audio" and "text"
    frames : (T, 3, H, W) uint8 or None, one a clip
    waveforms : (S,) int16 at 16 kHz or None, one a clip
    texts : transcripts, "" where there is none
    audio_every : hidden states of the audio that are averaged into one step
    device : None is the GPU of this rank where there is one, else the CPU
    batching : None is `Batching.on(device)`

    Reads `store.SHARD` clips at a time and holds no more.
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
        columns = (
            encode_frames(vision, pictures, batching),
            encode_waveforms(encoders["audio"], sounds, audio_every, batching),
            encode_texts(encoders["text"], words, batching),
        )
        for row in zip(*columns, strict=True):
            yield dict(zip(("frames", "audio", "text"), row, strict=True))


def compiled(encoder: VisionEncoder) -> VisionEncoder:
    """The same weights behind `torch.compile`, for batches of one shape."""
    network = torch.compile(encoder.model, dynamic=False)
    return VisionEncoder(network, **encoder.settings).to(encoder.model.device).eval()


@torch.inference_mode()
def encode_frames(encoder, clips: Sequence, batching: Batching | None = None) -> list:
    """(T, D) float16 of each clip's frames; None where it has none.

    Batches hold frames of one size, of as many clips as it takes to fill them.
    """
    device, batching = _defaults(encoder, batching)
    seen = [i for i, clip in enumerate(clips) if clip is not None and len(clip)]
    seen.sort(key=lambda i: clips[i].shape[1:])
    batches = []
    for _, same in groupby(seen, key=lambda i: clips[i].shape[1:]):
        places = [(i, t) for i in same for t in range(len(clips[i]))]
        starts = range(0, len(places), batching.frames)
        batches += [places[k : k + batching.frames] for k in starts]

    def encode(batch, room):
        rows = [clips[i][t] for i, t in batch]
        if batching.compile:
            rows += [np.zeros_like(rows[0])] * (room - len(rows))
        images = _on_device(torch.from_numpy(np.stack(rows)), device)
        with _autocast(device, batching):
            return encoder(images)[: len(batch)].half()

    encoded = [values for _, values in within_memory(batches, encode, batching.frames, "frame")]
    result = [None] * len(clips)
    if seen:
        borders = np.cumsum([len(clips[i]) for i in seen])[:-1]
        for i, rows in zip(seen, np.split(torch.cat(encoded).cpu().numpy(), borders), strict=True):
            result[i] = rows
    return result


@torch.inference_mode()
def encode_waveforms(
    encoder, clips: Sequence, every: int = 1, batching: Batching | None = None
) -> list:
    """(T, D) float16 of each clip's audio; None where it is missing or shorter than one step.

    every : hidden states averaged into one row; the last row may be the mean of fewer

    Audio longer than `LONGEST` goes through the network in pieces, see `pieces`.
    """
    device, batching = _defaults(encoder, batching)
    heard = [i for i, c in enumerate(clips) if c is not None and len(c) >= encoder.shortest]
    cut = [(i, *ends) for i in heard for ends in pieces(encoder, len(clips[i]))]
    normalise = encoder.settings["normalise"]
    # Mean and variance of the int16 samples on the scale from -1 to 1.
    moments = {
        i: (clips[i].mean(dtype=np.float64) / 2**15, clips[i].var(dtype=np.float64) / 2**30)
        for i in (heard if normalise else ())
    }

    def encode(batch, room):
        rows = [torch.from_numpy(clips[i][start:stop]) for i, start, stop in batch]
        values, valid = (_on_device(tensor, device) for tensor in padded(rows))
        own = torch.tensor([moments[i] for i, *_ in batch], device=device) if normalise else None
        with _autocast(device, batching):
            hidden, steps = encoder(values.float() / 32768, valid, own)
        counts = steps.sum(dim=1).tolist()
        return [states[:count].float() for states, count in zip(hidden, counts, strict=True)]

    limit = round(batching.seconds * SAMPLE_RATE)
    batches = _by_length(cut, lambda piece: piece[2] - piece[1], batching.sounds, limit)
    states = {}
    for batch, values in within_memory(batches, encode, batching.sounds, "waveform"):
        states |= zip(batch, values, strict=True)
    result = [None] * len(clips)
    for i, own in groupby(cut, key=lambda piece: piece[0]):
        whole = torch.cat([states.pop(piece) for piece in own])
        full, width = len(whole) // every, whole.shape[1]
        means = whole[: full * every].view(full, every, width).mean(dim=1)
        if full * every < len(whole):
            means = torch.cat([means, whole[full * every :].mean(dim=0, keepdim=True)])
        result[i] = means.half().cpu().numpy()
    return result


def pieces(encoder, samples: int) -> list[tuple[int, int]]:
    """Start and stop of each piece that so many samples are cut into, about `LONGEST` at most.

    The pieces are of about equal length and begin on the grid of the encoder's steps; each takes
    in the samples that its last step reaches over. Joined again they have as many steps as the
    whole would have, and what the convolutions see of it is the same; a step attends to its own
    piece alone. The waveform is normalised as a whole.
    """
    stride, shortest = encoder.stride, encoder.shortest
    steps = int(encoder.steps(torch.tensor(samples)))
    longest = (round(LONGEST * SAMPLE_RATE) - shortest) // stride + 1
    count = math.ceil(steps / longest)
    if count < 2:
        return [(0, samples)]
    borders = [steps * k // count for k in range(count + 1)]
    return [(a * stride, (b - 1) * stride + shortest) for a, b in pairwise(borders)]


@torch.inference_mode()
def encode_texts(encoder, texts: Sequence[str], batching: Batching | None = None) -> list:
    """(1, D) float16 of each transcript; None where it is empty."""
    device, batching = _defaults(encoder, batching)
    result = [None] * len(texts)
    spoken = [i for i, text in enumerate(texts) if text]
    if not spoken:
        return result
    tokens = encoder.tokens([texts[i] for i in spoken])
    lengths = tokens["attention_mask"].sum(dim=1).tolist()

    def encode(batch, room):
        longest = max(lengths[row] for row in batch)
        rows = {name: _on_device(ids[batch, :longest], device) for name, ids in tokens.items()}
        with _autocast(device, batching):
            return encoder(**rows).half()

    count = len(spoken)
    buckets = _by_length(range(count), lengths.__getitem__, count, batching.tokens)
    batches = [sorted(bucket) for bucket in buckets]
    for batch, values in within_memory(batches, encode, count, "transcript"):
        for row, vector in zip(batch, values.cpu().numpy(), strict=True):
            result[spoken[row]] = vector[None]
    return result


def _defaults(encoder, batching: Batching | None) -> tuple[torch.device, Batching]:
    device = encoder.model.device
    return device, batching or Batching.on(device)


def _autocast(device: torch.device, batching: Batching):
    return torch.autocast(device.type, torch.bfloat16, enabled=batching.precision == "bf16")


def _on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On a GPU from pinned memory: the copy runs while the next batch is put together."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _by_length(items: Iterable, length: Callable[..., int], most: int, total: int) -> list[list]:
    """Batches of items of similar length: at most `most` items, and `total` with the padding."""
    batches = []
    for item in sorted(items, key=length):
        full = batches and len(batches[-1]) == most
        if not batches or full or (len(batches[-1]) + 1) * length(item) > total:
            batches.append([])
        batches[-1].append(item)
    return batches


def within_memory(
    batches: Sequence[list], encode: Callable, room: int, what: str
) -> Iterator[tuple[list, object]]:
    """(batch, encode(batch, room)) in order, in halves where the device's memory runs out.

    room : items a batch may have. The next call begins with full batches again, so that a shard
        does not depend on the shards before it

    Raises RuntimeError when not even one item fits.
    """
    waiting = deque(batches)
    while waiting:
        batch = waiting.popleft()
        if len(batch) > room:
            waiting.appendleft(batch[room:])
            batch = batch[:room]
        try:
            values = encode(batch, room)
        except torch.OutOfMemoryError as error:
            if room == 1:
                raise RuntimeError(
                    f"expected device memory for at least one {what}, got too little "
                    f"({str(error).splitlines()[0]}); end what else uses this device, or run "
                    "without it (CUDA_VISIBLE_DEVICES=)"
                ) from error
        else:
            yield batch, values
            continue
        # Not in the handler above: a handled exception keeps the tensors of what failed.
        torch.cuda.empty_cache()
        room = max(1, min(room, len(batch)) // 2)
        waiting.appendleft(batch)
        report_once(f"too little device memory for full batches: now {room} {what}s at a time")


report_once = functools.cache(report)
