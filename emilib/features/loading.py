"""Encoders from nothing, from a folder, or from a published checkpoint, by Hugging Face networks.

Every weight of a loaded network is the checkpoint's own: what is missing, damaged or of another
family is refused. No code of a checkpoint runs.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import normalizers, pre_tokenizers
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPVisionModel,
    PreTrainedConfig,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    Wav2Vec2PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from emilib import SAMPLE_RATE
from emilib.features import checkpoints
from emilib.features.encoders import (
    CLIP_MEAN,
    CLIP_STD,
    AudioEncoder,
    EmotionHead,
    TextEncoder,
    VisionEncoder,
)

# The progress bars of a loaded checkpoint would be saved into notebooks.
transformers_logging.disable_progress_bar()

MODEL_TYPES = {
    "vision": ("clip", "clip_vision_model", "vit"),
    "audio": ("wav2vec2",),
    "text": ("bert", "gte"),
}
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, as in preprocessor_config.json


class EmotionWav2Vec2(Wav2Vec2PreTrainedModel):
    """A wav2vec2 with an `EmotionHead`: A = Concat(H_a, Z_a) of paper B, 3.3.

    Reads the published checkpoint `audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim`, whose
    weights are named `wav2vec2.*` and `classifier.*`. transformers has no class for it:
    `Wav2Vec2ForSequenceClassification` would start a random head without a word. The published
    network pools over time before its head; here the head sees every step (the two differ: the
    head is not linear).
    """

    def __init__(self, config: Wav2Vec2Config):
        super().__init__(config)
        self.wav2vec2 = Wav2Vec2Model(config)
        self.classifier = EmotionHead(config.hidden_size, config.num_labels, config.final_dropout)
        self.dim = config.hidden_size + config.num_labels
        self.post_init()

    def forward(self, input_values, attention_mask=None) -> BaseModelOutput:
        """input_values (B, S), attention_mask (B, S) long; states are (B, T, D + outputs)."""
        hidden = self.wav2vec2(input_values, attention_mask=attention_mask).last_hidden_state
        return BaseModelOutput(torch.cat([hidden, self.classifier(hidden)], dim=-1))


# ------------------------------------------------------------ small networks, random weights


def small_vision(config: dict, pool="cls") -> VisionEncoder:
    """A ViT of these `ViTConfig` arguments."""
    return VisionEncoder(ViTModel(ViTConfig(**config), add_pooling_layer=False), pool)


def small_audio(config: dict) -> AudioEncoder:
    """A wav2vec2 of these `Wav2Vec2Config` arguments."""
    return AudioEncoder(Wav2Vec2Model(Wav2Vec2Config(**config)), normalise=False)


def small_text(config: dict, texts: Sequence[str], pool="cls", max_tokens=128) -> TextEncoder:
    """A BERT of these `BertConfig` arguments, its WordPiece vocabulary made from `texts`."""
    tokenizer = wordpiece(texts, config["vocab_size"], max_tokens)
    config = {**config, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model = BertModel(BertConfig(**config), add_pooling_layer=False)
    return TextEncoder(model, tokenizer, pool, max_tokens)


def wordpiece(texts: Sequence[str], size: int, max_tokens=128) -> BertTokenizerFast:
    """A lower-case WordPiece vocabulary of up to `size` pieces, the same for the same texts.

    It holds every letter, as a word and within one, and then the most frequent words. (The
    trainer of the tokenizers library breaks ties at random.)
    """
    normaliser = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        words = splitter.pre_tokenize_str(normaliser.normalize_str(text))
        counts.update(word for word, _ in words)
    letters = sorted(set("".join(counts)))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += letters + [f"##{letter}" for letter in letters]
    by_count = sorted(counts.keys() - set(letters), key=lambda word: (-counts[word], word))
    pieces += by_count[: max(0, size - len(pieces))]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    return BertTokenizerFast(vocab=vocab, do_lower_case=True, model_max_length=max_tokens)


# ------------------------------------------------------ saved here, or published by others


def save_encoder(encoder: nn.Module, folder) -> None:
    """Write the model in Hugging Face format, with the settings and the tokenizer beside it."""
    folder = Path(folder)
    # With several ranks transformers lets only the first write, silently; but here a rank writes
    # what it alone has trained.
    encoder.model.should_save_on_this_rank = lambda is_main_process: is_main_process
    encoder.model.save_pretrained(folder)
    del encoder.model.should_save_on_this_rank
    (folder / "encoder.json").write_text(json.dumps(encoder.settings))
    if isinstance(encoder, TextEncoder):
        encoder.tokenizer.save_pretrained(folder)


def load_encoder(folder) -> nn.Module:
    """The encoder that `save_encoder` wrote; raises as `pretrained` does."""
    settings = json.loads((Path(folder) / "encoder.json").read_text())
    kind = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    for role, kinds in MODEL_TYPES.items():
        if kind in kinds:
            return pretrained(role, folder, **settings)
    raise ValueError(f"{folder}: expected an encoder out of {MODEL_TYPES}, got {kind!r}")


def pretrained(role: str, source: str, revision: str | None = None, **settings) -> nn.Module:
    """The encoder for `role` ("vision", "audio", "text") from a hub name or a local folder.

    source : a folder, or a name on the hub, looked for below the folder ``EMI_WEIGHTS``, then in
        the Hugging Face cache, and then downloaded
    revision : a commit on the hub; None is that of `checkpoints.csv`
    settings : of the encoder; the rest is read from the checkpoint's own preprocessor settings.
        For "audio", `emotion` True demands an emotion head, False leaves it away; by default a
        checkpoint that declares one gets it.

    Raises ValueError, in one sentence, when the weights are missing, damaged or incomplete, or
    belong to another family.
    """
    config = check(role, source, revision)
    place, commit = checkpoints.locate(str(source), revision)
    declared = {"Wav2Vec2ForSpeechClassification", EmotionWav2Vec2.__name__}
    emotion = settings.pop("emotion", not declared.isdisjoint(config.get("architectures") or ()))
    network, options = AutoModel, {"revision": commit, "trust_remote_code": False}
    if role == "audio" and emotion:
        network = EmotionWav2Vec2
    elif config["model_type"] == "clip":
        network = CLIPVisionModel  # the vision tower alone
    pooler = {"add_pooling_layer": False} if config["model_type"] in ("vit", "bert", "gte") else {}
    with _one_sentence(f"the weights of the {role} encoder", source, revision):
        model, report = network.from_pretrained(
            place, output_loading_info=True, dtype=torch.float32, **options, **pooler
        )
    # The vector for masked steps is used in training only, and some checkpoints lack it.
    lacking = sorted(k for k in report["missing_keys"] if not k.endswith("masked_spec_embed"))
    if lacking:
        raise ValueError(
            f"{place}: expected all weights of a {type(model).__name__}, but the checkpoint lacks "
            f"{len(lacking)} of them ({lacking[0]}, ...), which would be random; name a "
            "checkpoint of the same architecture"
        )
    if role == "text":
        with _one_sentence("the tokenizer", source, revision):
            tokenizer = AutoTokenizer.from_pretrained(place, **options)
            # Without its files transformers makes an empty tokenizer and does not complain.
            if len(tokenizer) <= len(tokenizer.all_special_tokens):
                raise OSError("no tokenizer.json and no vocab.txt")
        if len(tokenizer) > model.config.vocab_size:
            raise ValueError(
                f"{place}: expected a tokenizer of at most the network's {model.config.vocab_size} "
                f"pieces, got one of {len(tokenizer)}; take both from one checkpoint"
            )
        return TextEncoder(model, tokenizer, **settings)
    try:
        path = cached_file(place, "preprocessor_config.json", revision=commit)
        stated = json.loads(Path(path).read_text("utf-8"))
    except OSError:
        stated = {}  # the family's values hold
    if role == "audio":
        rate = stated.get("sampling_rate", SAMPLE_RATE)
        if rate != SAMPLE_RATE:
            raise ValueError(f"{source}: expected a network for {SAMPLE_RATE} Hz, got {rate} Hz")
        return AudioEncoder(model, **{"normalise": stated.get("do_normalize", True), **settings})
    family = {} if config["model_type"] == "vit" else {"mean": CLIP_MEAN, "std": CLIP_STD}
    own = _picture_settings(stated, model.config.image_size, source)
    return VisionEncoder(model, **{**family, **own, **settings})


def check(role: str, source: str, revision: str | None = None) -> dict:
    """The config.json of a checkpoint; ValueError where it is missing or of another family.

    Nothing but this file is read or downloaded.
    """
    place, commit = checkpoints.locate(str(source), revision)
    with _one_sentence(f"the weights of the {role} encoder", source, revision):
        config = PreTrainedConfig.get_config_dict(place, revision=commit)[0]
    kind = config.get("model_type")
    if kind not in MODEL_TYPES[role]:
        remote = "; it needs code of its own, which is never run" if "auto_map" in config else ""
        raise ValueError(
            f"{source}: expected weights for {role} ({', '.join(MODEL_TYPES[role])}), "
            f"got a checkpoint of type {kind!r}{remote}"
        )
    return config


@contextlib.contextmanager
def _one_sentence(what: str, source, revision: str | None):
    """Errors of transformers as a ValueError that says what to do."""
    try:
        yield
    except (OSError, KeyError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        if isinstance(error, OSError):
            tried = "" if checkpoints.folder(str(source)) else " and could not be downloaded"
            hint = checkpoints.how_to_get(str(source), revision)
            message = f"{what} cannot be found on this machine{tried} ({reason}); {hint}"
        else:
            message = f"damaged, or not those of config.json: {what} ({reason}); download it again"
        raise ValueError(f"{source}: {message}") from error


def _picture_settings(stated: dict, side: int, source) -> dict:
    """Settings of a `VisionEncoder` that preprocessor_config.json states."""
    settings = {}
    scale = stated.get("rescale_factor", 1 / 255) if stated.get("do_rescale", True) else 1.0
    number = stated.get("resample", 3)
    if abs(scale * 255 - 1) > 1e-6 or number not in RESAMPLING:
        raise ValueError(
            f"{source}: expected pictures scaled by 1/255 and resample 2 or 3 (bilinear, bicubic) "
            f"in preprocessor_config.json, got {scale} and {number!r}"
        )
    if not stated.get("do_normalize", True):
        settings |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    elif "image_mean" in stated:
        settings |= {"mean": stated["image_mean"], "std": stated["image_std"]}
    if stated.get("do_center_crop", False):
        size = stated.get("size")
        size = size.get("shortest_edge") if isinstance(size, dict) else size
        settings["shortest_edge"] = side if size is None else int(size)
    return {**settings, "resample": RESAMPLING[number]}
