"""Frames, waveform and words to features, by members of the papers' encoder families.

Three thin modules hold a Hugging Face model and what must be done around it: resizing and
normalising pictures, masks over padded sound, tokens. The same classes serve the large
pretrained checkpoints (listed in `manifest`) and the small networks of the embedded profile.
No code of a checkpoint is ever run.

Dimension key: B clips or frames, S samples, T steps, D width.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    Wav2Vec2PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from emilib.features import checkpoints as manifest

# The bars of a loaded checkpoint would be saved into notebooks.
transformers_logging.disable_progress_bar()

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF_MEAN, HALF_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # google/vit-* and the small ViT
SAMPLE_RATE = 16_000  # Hz, of every wav2vec2


class VisionEncoder(nn.Module):
    """One vector a frame (papers A 3.1, B 3.2): the class token, or the mean over all tokens.

    pool : "cls" (A: hidden width 768 of CLIP ViT-B/16) or "mean" (release of B)
    mean, std : of each colour, on a scale from 0 to 1
    resample : "bicubic" or "bilinear"
    shortest_edge : pixels the shorter side is brought to before the square is cut from the middle;
        None stretches the whole picture to the square
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pool="cls",
        mean=HALF_MEAN,
        std=HALF_STD,
        resample="bicubic",
        shortest_edge: int | None = None,
    ):
        super().__init__()
        if pool not in ("cls", "mean"):
            raise ValueError(f"pool: expected 'cls' or 'mean', came {pool!r}")
        if resample not in ("bicubic", "bilinear"):
            raise ValueError(f"resample: expected 'bicubic' or 'bilinear', came {resample!r}")
        size = model.config.image_size
        if shortest_edge is not None and shortest_edge < size:
            raise ValueError(
                f"shortest_edge: expected at least the network's {size} pixels, came "
                f"{shortest_edge}"
            )
        self.model = _fused_attention(model)
        self.settings = {
            "pool": pool,
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
        """Resized (on the device, see `resize`) and normalised pictures, float."""
        side, shortest = self.image_size, self.settings["shortest_edge"]
        size = (side, side)
        if shortest is not None:
            height, width = images.shape[-2:]
            short = min(height, width)
            size = (shortest * height // short, shortest * width // short)
        images = resize(images, size, self.settings["resample"])
        top, left = (size[0] - side) // 2, (size[1] - side) // 2
        images = images[..., top : top + side, left : left + side]
        return (images - self.mean) / self.std


def resize(images: torch.Tensor, size: tuple[int, int], resample="bicubic") -> torch.Tensor:
    """Pictures (B, 3, H, W) uint8 at another size, antialiased; whole numbers from 0 to 255.

    On a CPU torch has a fast kernel for bytes; elsewhere it has none, and the same is done in
    float: across, then down, each pass rounded to bytes as there and in Pillow. In one pass
    bicubic on noise was up to 31 grey levels off. Either way is within one grey level of Pillow,
    two in a pixel of ten thousand, where both passes meet a tie. (Pillow 13 goes down first where
    the height shrinks more than the width; on noise that shows.)
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    options = {"mode": resample, "antialias": True}
    if _has_byte_kernel(images.device):
        return F.interpolate(
            images.contiguous(memory_format=torch.channels_last), size=size, **options
        )
    images = images.float()
    for step in ((images.shape[-2], size[1]), size):
        if tuple(images.shape[-2:]) != tuple(step):
            images = F.interpolate(images, size=step, **options).round().clamp(0, 255)
    return images


def _has_byte_kernel(device: torch.device) -> bool:
    return device.type == "cpu"


def _fused_attention(model: PreTrainedModel) -> PreTrainedModel:
    """torch's scaled dot product attention, where the class has it."""
    if model._supports_sdpa:
        model.set_attn_implementation("sdpa")
    return model


class AudioEncoder(nn.Module):
    """Hidden states of a wav2vec2 over a padded batch of waveforms (papers A 3.1, B 3.3).

    normalise : bring each waveform to zero mean and unit variance, as the feature extractors of
        the large checkpoints do. It removes loudness; the small network goes without.
    """

    def __init__(self, model: PreTrainedModel, normalise=True):
        super().__init__()
        self.model = _fused_attention(model)
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

    def forward(self, waveform: torch.Tensor, valid: torch.Tensor, moments=None):
        """waveform (B, S) float, valid (B, S) bool; returns (B, T, D) and (B, T) bool.

        moments : mean and variance (B, 2) of the whole sounds where `waveform` holds pieces of
            them, to normalise by; None takes those of each row

        Raises ValueError for a clip shorter than `shortest` samples.
        """
        lengths = valid.sum(dim=1)
        if int(lengths.min()) < self.shortest:
            raise ValueError(
                f"waveform: expected at least {self.shortest} samples "
                f"({self.shortest / SAMPLE_RATE * 1000:.0f} ms), came {int(lengths.min())}; "
                "treat such a clip as having no sound"
            )
        if self.model.config.feat_extract_norm == "group" and not valid.all():
            return self._one_by_one(waveform, valid, lengths, moments)
        if self.settings["normalise"]:
            waveform = _standardise(waveform, valid, moments)
        waveform = waveform * valid
        output = self.model(waveform, attention_mask=valid.long())
        hidden = output.last_hidden_state  # (B, T, D)
        steps = torch.arange(hidden.shape[1], device=hidden.device)
        return hidden, steps < self.steps(lengths)[:, None]

    def _one_by_one(self, waveform, valid, lengths: torch.Tensor, moments):
        """Group norm mixes padding into every step, mask or not: so here is none."""
        given = [None] * len(lengths) if moments is None else moments.split(1)
        alone = [
            self(sound[None, :length], real[None, :length], known)
            for sound, real, length, known in zip(
                waveform, valid, lengths.tolist(), given, strict=True
            )
        ]
        hidden = nn.utils.rnn.pad_sequence([h[0] for h, _ in alone], batch_first=True)
        real = nn.utils.rnn.pad_sequence([r[0] for _, r in alone], batch_first=True)
        return hidden, real


def padded(waveforms: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, S) zero-padded values, of the type of the waveforms, and (B, S) bool."""
    lengths = torch.tensor([len(w) for w in waveforms])
    values = nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True)
    return values, torch.arange(values.shape[1]) < lengths[:, None]


def _standardise(waveform: torch.Tensor, valid: torch.Tensor, moments=None) -> torch.Tensor:
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
    emotion network (arousal, dominance, valence), here applied to every step. The dropout is
    not stated in the paper.
    """

    def __init__(self, dim: int = 1024, outputs: int = 3, dropout: float = 0.1):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, outputs)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.dense(self.dropout(hidden_states)))
        return self.out_proj(self.dropout(x))


class EmotionWav2Vec2(Wav2Vec2PreTrainedModel):
    """A wav2vec2 with an `EmotionHead`: A = Concat(H_a, Z_a) of paper B, 3.3.

    Reads the published checkpoint `audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim`, whose
    weights are named `wav2vec2.*` and `classifier.*`. transformers has no class for it:
    `Wav2Vec2ForSequenceClassification` would take a random head in place of the published one.
    The published network pools over time before its head; here the head sees every step (the
    two differ: the head is not linear).
    """

    def __init__(self, config: Wav2Vec2Config):
        super().__init__(config)
        self.wav2vec2 = Wav2Vec2Model(config)
        self.classifier = EmotionHead(config.hidden_size, config.num_labels, config.final_dropout)
        self.post_init()

    def forward(self, input_values, attention_mask=None) -> BaseModelOutput:
        """input_values (B, S), attention_mask (B, S) long; states are (B, T, D + outputs)."""
        hidden = self.wav2vec2(input_values, attention_mask=attention_mask).last_hidden_state
        return BaseModelOutput(torch.cat([hidden, self.classifier(hidden)], dim=-1))


class EmotionEncoder(AudioEncoder):
    """Hidden states and emotion logits of an `EmotionWav2Vec2`: 1024 + 3 values a step (B 3.3)."""

    @property
    def dim(self) -> int:
        return self.model.config.hidden_size + self.model.config.num_labels


class TextEncoder(nn.Module):
    """One vector a transcript: the class token, or the mean over tokens (A 3.1, B 3.3)."""

    def __init__(self, model: PreTrainedModel, tokenizer, pool="cls", max_tokens=128):
        super().__init__()
        if pool not in ("cls", "mean"):
            raise ValueError(f"pool: expected 'cls' or 'mean', came {pool!r}")
        self.model = _fused_attention(model)
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
    # Of several ranks transformers would let only the first write, and the others say nothing:
    # but here a rank writes what it alone has trained.
    encoder.model.should_save_on_this_rank = lambda is_main_process: is_main_process
    encoder.model.save_pretrained(folder)
    del encoder.model.should_save_on_this_rank
    (folder / "encoder.json").write_text(json.dumps(encoder.settings))
    if isinstance(encoder, TextEncoder):
        encoder.tokenizer.save_pretrained(folder)


def load_encoder(folder) -> nn.Module:
    """The encoder that `save_encoder` wrote."""
    folder = Path(folder)
    settings = json.loads((folder / "encoder.json").read_text())
    config = AutoConfig.from_pretrained(folder)
    kind = config.model_type
    if kind == "vit":
        return VisionEncoder(ViTModel.from_pretrained(folder, add_pooling_layer=False), **settings)
    if kind == "clip_vision_model":
        return VisionEncoder(CLIPVisionModel.from_pretrained(folder), **settings)
    if kind == "wav2vec2" and _has_emotion_head(config.to_dict()):
        return EmotionEncoder(EmotionWav2Vec2.from_pretrained(folder), **settings)
    if kind == "wav2vec2":
        return AudioEncoder(Wav2Vec2Model.from_pretrained(folder), **settings)
    if kind in ("bert", "gte"):
        model = _text_class(kind, folder).from_pretrained(folder, add_pooling_layer=False)
        return TextEncoder(model, AutoTokenizer.from_pretrained(folder), **settings)
    raise ValueError(
        f"{folder}: expected a vit, clip, wav2vec2 or bert encoder (or gte), came {kind!r}"
    )


# ----------------------------------------------------------------- pretrained, by name or folder

FAMILIES = {
    "vision": ("clip", "clip_vision_model", "vit"),
    "audio": ("wav2vec2",),
    "text": ("bert", "gte"),
}
# `architectures` of a checkpoint with an emotion head: as published, and as saved from here.
EMOTION_ARCHITECTURES = ("Wav2Vec2ForSpeechClassification", EmotionWav2Vec2.__name__)
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, as in preprocessor_config.json


def pretrained(role: str, source: str, revision: str | None = None, **settings) -> nn.Module:
    """The encoder for `role` ("vision", "audio", "text") from a hub name or a local folder.

    source : a folder, or a name on the hub, which is first looked for below the folder
        ``EMI_WEIGHTS``, then in the Hugging Face cache, then downloaded
    revision : a commit on the hub; None is that of the manifest
    settings : of the encoder; what is not given is read from the checkpoint's own preprocessor
        settings. For "audio", `emotion` True demands an emotion head, False leaves it away; by
        default a checkpoint that says it has one gets it.

    Raises ValueError, in one sentence, when the weights can't be had, are damaged or incomplete,
    or belong to another family.
    """
    source = str(source)
    config = check(role, source, revision)
    kind = config["model_type"]
    if role == "vision":
        return _pretrained_vision(kind, source, revision, settings)
    if role == "audio":
        return _pretrained_audio(config, source, revision, settings)
    model_class = _text_class(kind, source)
    model = _weights(model_class, role, source, revision, add_pooling_layer=False)
    tokenizer = _pretrained_tokenizer(source, revision, model.config.vocab_size)
    return TextEncoder(model, tokenizer, **settings)


def check(role: str, source: str, revision: str | None = None) -> dict:
    """The config.json of a checkpoint; ValueError where it is not there or of another family.

    Nothing but this file is read or downloaded.
    """
    if role not in FAMILIES:
        raise ValueError(f"role: expected one of {', '.join(FAMILIES)}, came {role!r}")
    config = _config_of(role, source, revision)
    kind = config.get("model_type")
    if kind not in FAMILIES[role]:
        remote = "; it needs code of its own, which is never run" if "auto_map" in config else ""
        raise ValueError(
            f"{source}: expected weights for {role} ({', '.join(FAMILIES[role])}), "
            f"came a checkpoint of type {kind!r}{remote}"
        )
    return config


def _pretrained_tokenizer(source: str, revision: str | None, vocabulary: int):
    place, commit = manifest.locate(source, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=commit)
        # Without its files transformers makes an empty tokenizer and says nothing.
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise OSError("no tokenizer.json and no vocab.txt")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(_missing("text", source, revision, error, "the tokenizer")) from error
    if len(tokenizer) > vocabulary:
        raise ValueError(
            f"{place}: expected a tokenizer of at most the {vocabulary} pieces that the network "
            f"knows, came one of {len(tokenizer)}; take both from one checkpoint"
        )
    return tokenizer


def _pretrained_vision(kind, source, revision, settings):
    if kind == "vit":
        model = _weights(ViTModel, "vision", source, revision, add_pooling_layer=False)
        found = {}
    else:
        model = _weights(CLIPVisionModel, "vision", source, revision)
        found = {"mean": CLIP_MEAN, "std": CLIP_STD}
    found |= _picture_settings(_preprocessor(source, revision), model.config.image_size, source)
    return VisionEncoder(model, **{**found, **settings})


def _pretrained_audio(config, source, revision, settings):
    emotion = settings.pop("emotion", None)
    emotion = _has_emotion_head(config) if emotion is None else emotion
    encoder_class, model_class = (
        (EmotionEncoder, EmotionWav2Vec2) if emotion else (AudioEncoder, Wav2Vec2Model)
    )
    model = _weights(model_class, "audio", source, revision)
    found = _preprocessor(source, revision)
    rate = found.get("sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise ValueError(f"{source}: expected a network for {SAMPLE_RATE} Hz, came one for {rate}")
    return encoder_class(model, **{"normalise": found.get("do_normalize", True), **settings})


def _has_emotion_head(config: dict) -> bool:
    return not set(EMOTION_ARCHITECTURES).isdisjoint(config.get("architectures") or ())


def _text_class(kind: str, source) -> type[PreTrainedModel]:
    if kind == "bert":
        return BertModel
    if not hasattr(transformers, "GteModel"):
        raise ValueError(
            f"{source}: model type 'gte' needs transformers 5.18 or newer, here is "
            f"{transformers.__version__}; install the version that environment.yml names"
        )
    return transformers.GteModel


def _config_of(role: str, source: str, revision: str | None) -> dict:
    """config.json as it stands: no class is chosen by it, and no code of the checkpoint runs."""
    place, commit = manifest.locate(source, revision)
    try:
        return PreTrainedConfig.get_config_dict(place, revision=commit)[0]
    except (OSError, ValueError) as error:
        raise ValueError(_missing(role, source, revision, error)) from error


def _weights(model_class, role: str, source: str, revision: str | None, **options):
    """A model with every weight from the checkpoint, in single precision."""
    place, commit = manifest.locate(source, revision)
    try:
        model, report = model_class.from_pretrained(
            place, revision=commit, output_loading_info=True, dtype=torch.float32, **options
        )
    except OSError as error:
        raise ValueError(_missing(role, source, revision, error)) from error
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{place}: the {role} encoder's weights are damaged or do not fit its config.json "
            f"({_first_line(error)}); download the checkpoint again"
        ) from error
    # The vector for masked steps is only used in training, and some checkpoints are without it.
    lacking = sorted(k for k in report["missing_keys"] if not k.endswith("masked_spec_embed"))
    if lacking:
        raise ValueError(
            f"{place}: expected all weights of a {model_class.__name__}, but {len(lacking)} are "
            f"not in the checkpoint, {lacking[0]} among them, and would be random; give a "
            f"checkpoint of the same architecture"
        )
    return model


def _missing(role, source, revision, error, what="weights") -> str:
    whose = (
        f"the {role} encoder's weights" if what == "weights" else f"{what} of the {role} encoder"
    )
    verb = "are" if what == "weights" else "is"
    tried = "" if manifest.folder(source) is not None else " and could not be downloaded"
    return (
        f"{source}: {whose} {verb} not on this machine{tried} ({_first_line(error)}); "
        f"{manifest.how_to_get(source, revision)}"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _preprocessor(source: str, revision: str | None) -> dict:
    """preprocessor_config.json; empty where the checkpoint has none."""
    place, commit = manifest.locate(source, revision)
    try:
        path = cached_file(place, "preprocessor_config.json", revision=commit)
    except OSError:  # the family's own values are taken
        return {}
    return json.loads(Path(path).read_text("utf-8"))


def _picture_settings(found: dict, side: int, source: str) -> dict:
    """Settings of a `VisionEncoder` from preprocessor_config.json; only those that it has."""
    settings = {}
    if (
        not found.get("do_rescale", True)
        or abs(found.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6
    ):
        raise ValueError(f"{source}: expected pictures scaled by 1/255, came another scale")
    if not found.get("do_normalize", True):
        settings |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    elif "image_mean" in found:
        settings |= {"mean": found["image_mean"], "std": found["image_std"]}
    if "resample" in found:
        number = found["resample"]
        if number not in RESAMPLING:
            raise ValueError(
                f"{source}: expected resample 2 (bilinear) or 3 (bicubic) in "
                f"preprocessor_config.json, came {number!r}"
            )
        settings["resample"] = RESAMPLING[number]
    size = found.get("size")
    if isinstance(size, dict):
        size = size.get("shortest_edge")
    if found.get("do_center_crop", False):
        settings["shortest_edge"] = side if size is None else int(size)
    return settings
