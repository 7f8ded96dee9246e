"""Frames, waveform and words to features, by members of the papers' encoder families.

Three thin modules hold a Hugging Face model and what must be done around it: resizing and
normalising pictures, masks over padded sound, tokens. The same classes serve the large
pretrained checkpoints and the small networks of the embedded profile.

Dimension key: B clips or frames, S samples, T steps, D width.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPVisionModel,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)
from transformers.utils import logging as transformers_logging

# The bars of a loaded checkpoint would be saved into notebooks.
transformers_logging.disable_progress_bar()

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF_MEAN, HALF_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # google/vit-* and the small ViT
SAMPLE_RATE = 16_000  # Hz, of every wav2vec2


class VisionEncoder(nn.Module):
    """One vector a frame (papers A 3.1, B 3.2): the class token, or the mean over all tokens.

    pool : "cls" (A: hidden width 768 of CLIP ViT-B/16) or "mean" (release of B)
    """

    def __init__(self, model: PreTrainedModel, pool="cls", mean=HALF_MEAN, std=HALF_STD):
        super().__init__()
        if pool not in ("cls", "mean"):
            raise ValueError(f"pool: expected 'cls' or 'mean', came {pool!r}")
        self.model = model
        self.settings = {"pool": pool, "mean": tuple(mean), "std": tuple(std)}
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)

    @property
    def dim(self) -> int:
        return self.model.config.hidden_size

    @property
    def image_size(self) -> int:
        return self.model.config.image_size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) uint8, any size; returns (B, D)."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images: expected (B, 3, H, W) uint8, came {images.dtype} {tuple(images.shape)}"
            )
        hidden = self.model(pixel_values=self.pixels(images)).last_hidden_state  # (B, 1+P, D)
        return hidden[:, 0] if self.settings["pool"] == "cls" else hidden.mean(dim=1)

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Resized (antialiased bicubic, on the device) and normalised pictures, float."""
        size = (self.image_size, self.image_size)
        if tuple(images.shape[-2:]) != size:
            # On uint8 this is within one grey level of PIL's bicubic and several times faster.
            images = F.interpolate(
                images.contiguous(memory_format=torch.channels_last),
                size=size,
                mode="bicubic",
                antialias=True,
            )
        return (images - self.mean) / self.std


class AudioEncoder(nn.Module):
    """Hidden states of a wav2vec2 over a padded batch of waveforms (papers A 3.1, B 3.3).

    normalise : bring each waveform to zero mean and unit variance, as the feature extractors of
        the large checkpoints do. It removes loudness; the small network goes without.
    """

    def __init__(self, model: PreTrainedModel, normalise=True):
        super().__init__()
        self.model = model
        self.settings = {"normalise": bool(normalise)}

    @property
    def dim(self) -> int:
        return self.model.config.hidden_size

    @property
    def shortest(self) -> int:
        """Samples that make one step: what the convolutions need at least."""
        length = 1
        kernels, strides = self.model.config.conv_kernel, self.model.config.conv_stride
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            length = (length - 1) * stride + kernel
        return length

    @property
    def stride(self) -> int:
        """Samples from one step to the next: 320 (20 ms) in the published networks."""
        return math.prod(self.model.config.conv_stride)

    def steps(self, samples: torch.Tensor) -> torch.Tensor:
        """How many hidden states come from so many samples."""
        return self.model._get_feat_extract_output_lengths(samples)

    def forward(self, waveform: torch.Tensor, valid: torch.Tensor):
        """waveform (B, S) float, valid (B, S) bool; returns (B, T, D) and (B, T) bool.

        Raises ValueError for a clip shorter than `shortest` samples.
        """
        lengths = valid.sum(dim=1)
        if int(lengths.min()) < self.shortest:
            raise ValueError(
                f"waveform: expected at least {self.shortest} samples "
                f"({self.shortest / SAMPLE_RATE * 1000:.0f} ms), came {int(lengths.min())}; "
                "treat such a clip as having no sound"
            )
        if self.settings["normalise"]:
            waveform = _standardise(waveform, valid)
        waveform = waveform * valid
        output = self.model(waveform, attention_mask=valid.long())
        hidden = output.last_hidden_state  # (B, T, D)
        steps = torch.arange(hidden.shape[1], device=hidden.device)
        return hidden, steps < self.steps(lengths)[:, None]


def _standardise(waveform: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    count = valid.sum(dim=1, keepdim=True)
    mean = (waveform * valid).sum(dim=1, keepdim=True) / count
    variance = ((waveform - mean).square() * valid).sum(dim=1, keepdim=True) / count
    return (waveform - mean) / torch.sqrt(variance + 1e-7)  # 1e-7 as in the HF extractor


class TextEncoder(nn.Module):
    """One vector a transcript: the class token, or the mean over tokens (A 3.1, B 3.3)."""

    def __init__(self, model: PreTrainedModel, tokenizer, pool="cls", max_tokens=128):
        super().__init__()
        if pool not in ("cls", "mean"):
            raise ValueError(f"pool: expected 'cls' or 'mean', came {pool!r}")
        self.model = model
        self.tokenizer = tokenizer
        self.settings = {"pool": pool, "max_tokens": int(max_tokens)}

    @property
    def dim(self) -> int:
        return self.model.config.hidden_size

    def tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, (B, T) long, cut at `max_tokens`."""
        encoded = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.settings["max_tokens"],
            return_tensors="pt",
        )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, T) long twice; returns (B, D)."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.settings["pool"] == "cls":
            return hidden[:, 0]
        weight = attention_mask[..., None].to(hidden.dtype)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


# ---------------------------------------------------------------- small networks, from nothing


def small_vision(config: dict, pool="cls") -> VisionEncoder:
    """A ViT of the given `ViTConfig` arguments with random weights."""
    return VisionEncoder(ViTModel(ViTConfig(**config), add_pooling_layer=False), pool)


def small_audio(config: dict) -> AudioEncoder:
    """A wav2vec2 of the given `Wav2Vec2Config` arguments with random weights."""
    return AudioEncoder(Wav2Vec2Model(Wav2Vec2Config(**config)), normalise=False)


def small_text(config: dict, texts: Sequence[str], pool="cls", max_tokens=128) -> TextEncoder:
    """A BERT of the given `BertConfig` arguments, its WordPiece vocabulary made from `texts`."""
    tokenizer = wordpiece(texts, config["vocab_size"], max_tokens)
    config = {**config, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model = BertModel(BertConfig(**config), add_pooling_layer=False)
    return TextEncoder(model, tokenizer, pool, max_tokens)


def wordpiece(texts: Sequence[str], size: int, max_tokens=128) -> BertTokenizerFast:
    """A lower-case WordPiece vocabulary of up to `size` pieces, the same for the same texts.

    It holds every letter, as a word and within one, and then the words by how often they occur.
    (The trainer of the tokenizers library breaks ties at random, so it can't be used here.)
    """
    from tokenizers import normalizers, pre_tokenizers

    normaliser = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        words = splitter.pre_tokenize_str(normaliser.normalize_str(text))
        counts.update(word for word, _ in words)
    letters = sorted(set("".join(counts)))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += letters + [f"##{letter}" for letter in letters]
    by_count = sorted(counts, key=lambda word: (-counts[word], word))
    words = [word for word in by_count if word not in letters]
    pieces += words[: max(0, size - len(pieces))]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    return BertTokenizerFast(vocab=vocab, do_lower_case=True, model_max_length=max_tokens)


# ------------------------------------------------------------------------------ saved to a folder


def save_encoder(encoder: nn.Module, folder) -> None:
    """Write the model in Hugging Face format, with the settings and the tokenizer beside it."""
    folder = Path(folder)
    encoder.model.save_pretrained(folder)
    (folder / "encoder.json").write_text(json.dumps(encoder.settings))
    if isinstance(encoder, TextEncoder):
        encoder.tokenizer.save_pretrained(folder)


def load_encoder(folder) -> nn.Module:
    """The encoder that `save_encoder` wrote."""
    folder = Path(folder)
    settings = json.loads((folder / "encoder.json").read_text())
    kind = AutoConfig.from_pretrained(folder).model_type
    if kind == "vit":
        return VisionEncoder(ViTModel.from_pretrained(folder, add_pooling_layer=False), **settings)
    if kind == "clip_vision_model":
        return VisionEncoder(CLIPVisionModel.from_pretrained(folder), **settings)
    if kind == "wav2vec2":
        return AudioEncoder(Wav2Vec2Model.from_pretrained(folder), **settings)
    if kind == "bert":
        model = BertModel.from_pretrained(folder, add_pooling_layer=False)
        return TextEncoder(model, AutoTokenizer.from_pretrained(folder), **settings)
    raise ValueError(f"{folder}: expected a vit, clip, wav2vec2 or bert encoder, came {kind!r}")


# ----------------------------------------------------------------- pretrained, by name or folder


def pretrained(role: str, source: str, **settings) -> nn.Module:
    """The encoder for `role` ("vision", "audio", "text") from a hub name or a local folder.

    Raises ValueError, in one sentence, when the weights can't be had or belong to another family.
    """
    families = {
        "vision": ("clip", "clip_vision_model", "vit"),
        "audio": ("wav2vec2",),
        "text": ("bert",),
    }
    try:
        kind = AutoConfig.from_pretrained(source).model_type
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source}: the {role} encoder's weights are not on this machine and could not be "
            f"downloaded; put the checkpoint's folder on disk and give its path, or go online "
            f"({str(error).splitlines()[0]})"
        ) from error
    if kind not in families[role]:
        raise ValueError(
            f"{source}: expected weights for {role} ({', '.join(families[role])}), "
            f"came a checkpoint of type {kind!r}"
        )
    if kind == "vit":
        model = ViTModel.from_pretrained(source, add_pooling_layer=False)
        return VisionEncoder(model, **settings)
    if kind in ("clip", "clip_vision_model"):
        model = CLIPVisionModel.from_pretrained(source)
        return VisionEncoder(model, mean=CLIP_MEAN, std=CLIP_STD, **settings)
    if kind == "wav2vec2":
        return AudioEncoder(Wav2Vec2Model.from_pretrained(source), **settings)
    model = BertModel.from_pretrained(source, add_pooling_layer=False)
    return TextEncoder(model, AutoTokenizer.from_pretrained(source), **settings)
