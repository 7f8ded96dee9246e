"""Frames, waveform and words to features: encoders of the families that both papers use.

Three modules hold a Hugging Face model and what surrounds it: resized and normalised pictures,
masks over padded waveforms, tokens. The same classes serve the large pretrained checkpoints
(`checkpoints.csv`) and the small networks of the embedded profile. No code of a checkpoint runs.

Dimension key: B clips or frames, S samples, T steps, D width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from emilib import SAMPLE_RATE

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF_MEAN, HALF_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # google/vit-* and the small ViT


class VisionEncoder(nn.Module):
    """One vector a frame (papers A 3.1, B 3.2): the class token, or the mean over all tokens.

    pool : "cls" (A: hidden width 768 of CLIP ViT-B/16) or "mean" (release of B)
    mean, std : of each colour, on a scale from 0 to 1
    resample : "bicubic" or "bilinear"
    shortest_edge : pixels of the shorter side before the square is cut from the middle; None
        stretches the whole picture to the square
    """

    def __init__(
        self,
        model: nn.Module,
        pool="cls",
        mean=HALF_MEAN,
        std=HALF_STD,
        resample="bicubic",
        shortest_edge: int | None = None,
    ):
        super().__init__()
        size = model.config.image_size
        if shortest_edge is not None and shortest_edge < size:
            raise ValueError(
                f"shortest_edge: expected at least the network's {size} pixels, got {shortest_edge}"
            )
        self.model = _fused_attention(model)
        self.settings = {
            "pool": _checked_pool(pool),
            "mean": tuple(mean),
            "std": tuple(std),
            "resample": resample,
            "shortest_edge": shortest_edge,
        }
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)

    @property
    def dim(self) -> int:
        return self.model.config.hidden_size

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) uint8, any size; returns (B, D)."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images: expected (B, 3, H, W) uint8, got {images.dtype} {tuple(images.shape)}"
            )
        hidden = self.model(pixel_values=self.pixels(images)).last_hidden_state  # (B, 1+P, D)
        return hidden[:, 0] if self.settings["pool"] == "cls" else hidden.mean(dim=1)

    def pixels(self, images: Tensor) -> Tensor:
        """Resized (on the device, see `resize`) and normalised pictures, float."""
        side, shortest = self.model.config.image_size, self.settings["shortest_edge"]
        size = (side, side)
        if shortest is not None:
            short = min(images.shape[-2:])
            size = tuple(shortest * length // short for length in images.shape[-2:])
        images = resize(images, size, self.settings["resample"])
        top, left = (size[0] - side) // 2, (size[1] - side) // 2
        images = images[..., top : top + side, left : left + side]
        return (images - self.mean) / self.std


def resize(images: Tensor, size: tuple[int, int], resample="bicubic") -> Tensor:
    """Pictures (B, 3, H, W) uint8 at another size, antialiased; whole numbers from 0 to 255.

    On a CPU torch has a fast kernel for bytes; other devices get `resize_in_passes`. Either is
    within one grey level of Pillow, two in a pixel of ten thousand, where both passes meet a tie.
    (Pillow 13 goes down first where the height shrinks more than the width; on noise that shows.)
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    if images.device.type != "cpu":
        return resize_in_passes(images, size, resample)
    images = images.contiguous(memory_format=torch.channels_last)
    return F.interpolate(images, size=size, mode=resample, antialias=True)


def resize_in_passes(images: Tensor, size: tuple[int, int], resample="bicubic") -> Tensor:
    """As `resize`, in float: across, then down, each pass rounded to bytes as Pillow does.

    In one pass, bicubic on noise was up to 31 grey levels off.
    """
    images = images.float()
    for step in ((images.shape[-2], size[1]), size):
        if tuple(images.shape[-2:]) != tuple(step):
            images = F.interpolate(images, size=step, mode=resample, antialias=True)
            images = images.round().clamp(0, 255)
    return images


def _fused_attention(model: nn.Module) -> nn.Module:
    """The model with torch's scaled dot product attention, where its class has it."""
    if model._supports_sdpa:
        model.set_attn_implementation("sdpa")
    return model


def _checked_pool(pool: str) -> str:
    if pool not in ("cls", "mean"):
        raise ValueError(f"pool: expected 'cls' or 'mean', got {pool!r}")
    return pool


class AudioEncoder(nn.Module):
    """Hidden states of a wav2vec2 over a padded batch of waveforms (papers A 3.1, B 3.3).

    With a `loading.EmotionWav2Vec2` three emotion logits follow each state: 1024 + 3 values.

    normalise : bring each waveform to zero mean and unit variance, as the feature extractors of
        the large checkpoints do. This removes loudness; the small network goes without.
    """

    def __init__(self, model: nn.Module, normalise=True):
        super().__init__()
        self.model = _fused_attention(model)
        self.settings = {"normalise": bool(normalise)}

    @property
    def dim(self) -> int:
        return getattr(self.model, "dim", self.model.config.hidden_size)

    @property
    def shortest(self) -> int:
        """Samples of one step: the least that the convolutions can take."""
        length = 1
        kernels, strides = self.model.config.conv_kernel, self.model.config.conv_stride
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            length = (length - 1) * stride + kernel
        return length

    @property
    def stride(self) -> int:
        """Samples from one step to the next: 320 (20 ms) in the published networks."""
        return math.prod(self.model.config.conv_stride)

    def steps(self, samples: Tensor) -> Tensor:
        """The number of hidden states for so many samples."""
        return self.model._get_feat_extract_output_lengths(samples)

    def forward(self, waveform: Tensor, valid: Tensor, moments=None):
        """waveform (B, S) float, valid (B, S) bool; returns (B, T, D) and (B, T) bool.

        moments : mean and variance (B, 2) of the whole waveforms to normalise by, where `waveform`
            holds pieces of them; None takes those of each row

        Raises ValueError for a clip shorter than `shortest` samples.
        """
        lengths = valid.sum(dim=1)
        if int(lengths.min()) < self.shortest:
            raise ValueError(
                f"waveform: expected at least {self.shortest} samples "
                f"({self.shortest / SAMPLE_RATE * 1000:.0f} ms), got {int(lengths.min())}; "
                "treat such a clip as having no audio"
            )
        if self.model.config.feat_extract_norm == "group" and not valid.all():
            return self._one_by_one(waveform, valid, moments)
        if self.settings["normalise"]:
            waveform = _normalised(waveform, valid, moments)
        hidden = self.model(waveform * valid, attention_mask=valid.long()).last_hidden_state
        steps = torch.arange(hidden.shape[1], device=hidden.device)
        return hidden, steps < self.steps(lengths)[:, None]

    def _one_by_one(self, waveform: Tensor, valid: Tensor, moments):
        """Group norm mixes padding into every step, masked or not: encode without padding."""
        clips = []
        for row, length in enumerate(valid.sum(dim=1).tolist()):
            own = None if moments is None else moments[row : row + 1]
            clips.append(self(waveform[row : row + 1, :length], valid[row : row + 1, :length], own))
        hidden = pad_sequence([states[0] for states, _ in clips], batch_first=True)
        return hidden, pad_sequence([real[0] for _, real in clips], batch_first=True)


def padded(waveforms: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, S) zero-padded values, of the dtype of the waveforms, and (B, S) bool."""
    lengths = torch.tensor([len(w) for w in waveforms])
    values = pad_sequence(list(waveforms), batch_first=True)
    return values, torch.arange(values.shape[1]) < lengths[:, None]


def _normalised(waveform: Tensor, valid: Tensor, moments) -> Tensor:
    if moments is None:
        count = valid.sum(dim=1, keepdim=True)
        mean = (waveform * valid).sum(dim=1, keepdim=True) / count
        variance = ((waveform - mean).square() * valid).sum(dim=1, keepdim=True) / count
    else:
        mean, variance = moments.to(waveform.dtype).split(1, dim=1)
    return (waveform - mean) / torch.sqrt(variance + 1e-7)  # 1e-7 as in the HF extractor


class EmotionHead(nn.Module):
    """The auxiliary logits Z_a of paper B, 3.3, for each step of the audio network.

    Linear D → D, tanh, linear D → outputs, dropout before each: the head of the published
    emotion network (arousal, dominance, valence), here applied to every step. The paper does not
    state the dropout.
    """

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
        self.model = _fused_attention(model)
        self.tokenizer = tokenizer
        self.settings = {"pool": _checked_pool(pool), "max_tokens": int(max_tokens)}

    @property
    def dim(self) -> int:
        return self.model.config.hidden_size

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, (B, T) long, cut at `max_tokens`."""
        longest = self.settings["max_tokens"]
        options = {"padding": True, "truncation": True, "return_tensors": "pt"}
        encoded = self.tokenizer(list(texts), max_length=longest, **options)
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T) long twice; returns (B, D)."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.settings["pool"] == "cls":
            return hidden[:, 0]
        weight = attention_mask[..., None].to(hidden.dtype)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)
