"""Frames, waveform and words to features: encoders of the families that both papers use.
Dimension key: B clips or frames, S samples, T steps, D width."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

HALF = (0.5, 0.5, 0.5)  # mean and std of google/vit-* and of the small ViT


class VisionEncoder(nn.Module):
    """One vector a frame (papers A 3.1, B 3.2): the class token, or the mean over all tokens.

    pool : "cls" (A: hidden width 768 of CLIP ViT-B/16) or "mean" (release of B)
    mean, std : of each colour, on a scale from 0 to 1
    resample : "bicubic" or "bilinear"
    shortest_edge : pixels of the shorter side before the middle square is cut; None stretches
    """

    def __init__(
        self, model, pool="cls", mean=HALF, std=HALF, resample="bicubic", shortest_edge=None
    ):
        super().__init__()
        self.model, self.dim = model, model.config.hidden_size
        self.settings = {"pool": _checked_pool(pool), "mean": tuple(mean), "std": tuple(std)}
        self.settings |= {"resample": resample, "shortest_edge": shortest_edge}
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) uint8, any size; returns (B, D)."""
        if images.dtype != torch.uint8:
            raise ValueError(f"images: expected uint8, got {images.dtype}")
        hidden = self.model(pixel_values=self.pixels(images)).last_hidden_state  # (B, 1+P, D)
        return hidden[:, 0] if self.settings["pool"] == "cls" else hidden.mean(dim=1)

    def pixels(self, images: Tensor) -> Tensor:
        """Resized (on the device, see `resize`) and normalised pictures, float."""
        side, edge = self.model.config.image_size, self.settings["shortest_edge"]
        size = (side, side)
        if edge is not None:
            size = tuple(edge * length // min(images.shape[-2:]) for length in images.shape[-2:])
        images = resize(images, size, self.settings["resample"])
        top, left = ((length - side) // 2 for length in size)
        return (images[..., top : top + side, left : left + side] - self.mean) / self.std


def resize(images: Tensor, size: tuple[int, int], resample="bicubic") -> Tensor:
    """Pictures (B, 3, H, W) uint8 at another size, antialiased; whole numbers from 0 to 255."""
    if images.shape[-2:] == size:
        return images
    if images.device.type != "cpu":
        return resize_in_passes(images, size, resample)
    images = images.contiguous(memory_format=torch.channels_last)
    return F.interpolate(images, size=size, mode=resample, antialias=True)


def resize_in_passes(images: Tensor, size: tuple[int, int], resample="bicubic") -> Tensor:
    """As `resize`, in float: across, then down, each pass rounded to bytes as Pillow does."""
    images = images.float()
    for step in ((images.shape[-2], size[1]), size):
        images = F.interpolate(images, size=step, mode=resample, antialias=True)
        images = images.round().clamp(0, 255)
    return images


def _checked_pool(pool: str) -> str:
    if pool not in ("cls", "mean"):
        raise ValueError(f"pool: expected 'cls' or 'mean', got {pool!r}")
    return pool


class AudioEncoder(nn.Module):
    """Hidden states of a wav2vec2 over a padded batch of waveforms (papers A 3.1, B 3.3).

    With a `loading.EmotionWav2Vec2` three emotion logits follow each state: 1024 + 3 values.

    normalise : bring each waveform to zero mean and unit variance, as the feature extractors of
        the large checkpoints do. This removes loudness; the small network goes without.
    shortest : samples of one step, the least that the convolutions can take
    stride : samples from one step to the next, 320 (20 ms) in the published networks
    """

    def __init__(self, model: nn.Module, normalise=True):
        super().__init__()
        self.model, self.dim = model, getattr(model, "dim", model.config.hidden_size)
        self.settings = {"normalise": bool(normalise)}
        kernels, strides = model.config.conv_kernel, model.config.conv_stride
        self.stride, self.shortest = math.prod(strides), 1
        for kernel, stride in zip(kernels[::-1], strides[::-1], strict=True):
            self.shortest = (self.shortest - 1) * stride + kernel

    def steps(self, samples: Tensor) -> Tensor:
        """The number of hidden states for so many samples."""
        return self.model._get_feat_extract_output_lengths(samples)

    def forward(self, waveform: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """waveform (B, S) float, valid (B, S) bool; returns (B, T, D) and (B, T) bool.
        Raises ValueError for a clip shorter than `shortest` samples."""
        return self.encode(self.normalised(waveform, valid), valid)

    def normalised(self, waveform: Tensor, valid: Tensor) -> Tensor:
        """The waveform as the network takes it, where `normalise` is set."""
        if not self.settings["normalise"]:
            return waveform
        count = valid.sum(dim=1, keepdim=True)
        mean = (waveform * valid).sum(dim=1, keepdim=True) / count
        variance = ((waveform - mean).square() * valid).sum(dim=1, keepdim=True) / count
        return (waveform - mean) / torch.sqrt(variance + 1e-7)  # 1e-7 as in the HF extractor

    def encode(self, waveform: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, of waveforms (B, S) that are normalised already, or pieces of them.
        Returns (B, T, D) and (B, T) bool. Raises ValueError for fewer than `shortest` samples."""
        lengths = valid.sum(dim=1)
        if int(lengths.min()) < self.shortest:
            got = f"got {int(lengths.min())}; treat such a clip as having no audio"
            raise ValueError(f"waveform: expected at least {self.shortest} samples, {got}")
        if self.model.config.feat_extract_norm == "group" and not valid.all():
            # Group norm mixes padding into every step, masked or not: encode clip by clip.
            clips = [w[None, :n] for w, n in zip(waveform, lengths, strict=True)]
            states = [self.encode(clip, torch.ones_like(clip, dtype=bool))[0][0] for clip in clips]
            return padded(states)
        hidden = self.model(waveform * valid, attention_mask=valid.long()).last_hidden_state
        steps = torch.arange(hidden.shape[1], device=hidden.device)
        return hidden, steps < self.steps(lengths)[:, None]


def padded(waveforms: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, S, ...) zero-padded values, of the dtype of the waveforms, and (B, S) bool."""
    values = pad_sequence(list(waveforms), batch_first=True)
    lengths = torch.tensor([len(w) for w in waveforms], device=values.device)
    return values, torch.arange(values.shape[1], device=values.device) < lengths[:, None]


class EmotionHead(nn.Module):
    """The auxiliary logits Z_a of paper B, 3.3, for each step of the audio network.
    Linear D → D, tanh, linear D → outputs: the head of the published emotion network (arousal,
    dominance, valence), here applied to every step. The paper does not state the dropout."""

    def __init__(self, dim: int = 1024, outputs: int = 3, dropout: float = 0.1):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, outputs)

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = torch.tanh(self.dense(self.dropout(hidden_states)))
        return self.out_proj(self.dropout(x))


class TextEncoder(nn.Module):
    """One vector a transcript: the class token, or the mean over tokens (A 3.1, B 3.3)."""

    def __init__(self, model: nn.Module, tokenizer, pool="cls", max_tokens=128):
        super().__init__()
        self.model, self.tokenizer, self.dim = model, tokenizer, model.config.hidden_size
        self.settings = {"pool": _checked_pool(pool), "max_tokens": int(max_tokens)}

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, (B, T) long, cut at `max_tokens`."""
        options = {"padding": True, "truncation": True, "return_tensors": "pt"}
        encoded = self.tokenizer(list(texts), max_length=self.settings["max_tokens"], **options)
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T) long twice; returns (B, D)."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.settings["pool"] == "cls":
            return hidden[:, 0]
        weight = attention_mask[..., None].to(hidden.dtype)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)
