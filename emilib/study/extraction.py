"""Frozen encoders over many clips: frames of several clips in one batch, sound by length."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch

from .stage_one import padded

GROUP = 32  # clips whose frames, sounds and words are encoded together
FRAMES = 256  # pictures a forward pass
SOUNDS = 8  # waveforms a forward pass


@torch.inference_mode()
def extract(
    encoders: dict,
    frames: Iterable,
    waveforms: Iterable,
    texts: Sequence[str],
    audio_every: int = 1,
) -> Iterator[dict]:
    """Features of clips in their order, as dicts of half-precision arrays or None.

    encoders : "vision", "audio" and "text"
    frames : (T, 3, H, W) uint8 or None, one a clip
    waveforms : (S,) int16 at 16 kHz or None, one a clip
    texts : transcripts, "" where there is none
    audio_every : hidden states of the sound that are averaged into one step

    Yields {"frames": (T, D), "audio": (T, D), "text": (1, D)}.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for encoder in encoders.values():
        encoder.to(device).eval()
    clips = zip(frames, waveforms, texts, strict=True)
    while group := list(islice(clips, GROUP)):
        pictures, sounds, words = zip(*group, strict=True)
        columns = {
            "frames": encode_frames(encoders["vision"], pictures, device),
            "audio": encode_waveforms(encoders["audio"], sounds, device, audio_every),
            "text": encode_texts(encoders["text"], words, device),
        }
        for row in zip(*columns.values(), strict=True):
            yield dict(zip(columns, row, strict=True))


def _half(features: torch.Tensor) -> np.ndarray:
    return features.to(torch.float16).cpu().numpy()


@torch.inference_mode()
def encode_frames(encoder, clips: Sequence, device="cpu") -> list:
    """(T, D) float16 of each clip's frames; None where it has none."""
    here = [i for i, clip in enumerate(clips) if clip is not None and len(clip)]
    result = [None] * len(clips)
    if not here:
        return result
    flat = torch.from_numpy(np.concatenate([clips[i] for i in here]))
    encoded = [_half(encoder(part.to(device))) for part in flat.split(FRAMES)]
    borders = np.cumsum([len(clips[i]) for i in here])[:-1]
    for i, features in zip(here, np.split(np.concatenate(encoded), borders), strict=True):
        result[i] = features
    return result


@torch.inference_mode()
def encode_waveforms(encoder, clips: Sequence, device="cpu", every: int = 1) -> list:
    """(T, D) float16 of each clip's sound; None where it is missing or shorter than one step.

    every : hidden states averaged into one row; the last row may be the mean of fewer
    """
    result = [None] * len(clips)
    here = [i for i, c in enumerate(clips) if c is not None and len(c) >= encoder.shortest]
    here.sort(key=lambda i: len(clips[i]))  # little padding within a batch
    for start in range(0, len(here), SOUNDS):
        rows = here[start : start + SOUNDS]
        waveforms = [torch.from_numpy(clips[i]).float() / 32768 for i in rows]
        values, valid = padded(waveforms)
        hidden, steps = encoder(values.to(device), valid.to(device))
        for i, states, count in zip(rows, hidden, steps.sum(dim=1).tolist(), strict=True):
            result[i] = _half(_averaged(states[:count], every))
    return result


def _averaged(states: torch.Tensor, every: int) -> torch.Tensor:
    return torch.stack([group.mean(dim=0) for group in states.split(every)])


@torch.inference_mode()
def encode_texts(encoder, texts: Sequence[str], device="cpu") -> list:
    """(1, D) float16 of each transcript; None where it is empty."""
    here = [i for i, text in enumerate(texts) if text]
    result = [None] * len(texts)
    if here:
        tokens = encoder.tokens([texts[i] for i in here])
        encoded = _half(encoder(**{k: v.to(device) for k, v in tokens.items()}))
        for i, vector in zip(here, encoded, strict=True):
            result[i] = vector[None]
    return result
