"""Encoders from nothing, a folder or a published checkpoint; no code of a checkpoint runs."""

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from PIL.Image import Resampling
from safetensors import SafetensorError
from tokenizers import normalizers, pre_tokenizers
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from emilib import SAMPLE_RATE
from emilib.features import checkpoints
from emilib.features.encoders import AudioEncoder, EmotionHead, TextEncoder, VisionEncoder

# The progress bars of a loaded checkpoint would be saved into notebooks.
transformers.utils.logging.disable_progress_bar()

ROLES = {"clip": "vision", "clip_vision_model": "vision", "vit": "vision", "wav2vec2": "audio"}
ROLES |= {"bert": "text", "gte": "text"}  # of the model types that are read


class EmotionWav2Vec2(transformers.Wav2Vec2PreTrainedModel):
    """A wav2vec2 with an `EmotionHead`: A = Concat(H_a, Z_a) of paper B, 3.3.
    Reads the published checkpoint `audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim`, for
    which transformers has no class. The published network pools over time before its head; here
    the head sees every step (the two differ: the head is not linear)."""

    def __init__(self, config: transformers.Wav2Vec2Config):
        super().__init__(config)
        self.wav2vec2 = transformers.Wav2Vec2Model(config)
        self.classifier = EmotionHead(config.hidden_size, config.num_labels, config.final_dropout)
        self.dim = config.hidden_size + config.num_labels
        self.post_init()

    def forward(self, input_values, attention_mask=None) -> BaseModelOutput:
        """input_values (B, S), attention_mask (B, S) long; states are (B, T, D + outputs)."""
        hidden = self.wav2vec2(input_values, attention_mask=attention_mask).last_hidden_state
        return BaseModelOutput(torch.cat([hidden, self.classifier(hidden)], dim=-1))


def small_vision(config: dict, pool="cls") -> VisionEncoder:
    """A ViT of these `ViTConfig` arguments, with random weights."""
    model = transformers.ViTModel(transformers.ViTConfig(**config), add_pooling_layer=False)
    return VisionEncoder(model, pool)


def small_audio(config: dict) -> AudioEncoder:
    """A wav2vec2 of these `Wav2Vec2Config` arguments, with random weights."""
    model = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**config))
    return AudioEncoder(model, normalise=False)


def small_text(config: dict, texts: Sequence[str], pool="cls", max_tokens=128) -> TextEncoder:
    """A BERT of these `BertConfig` arguments, its WordPiece vocabulary made from `texts`."""
    tokenizer = wordpiece(texts, config["vocab_size"], max_tokens)
    config = {**config, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model = transformers.BertModel(transformers.BertConfig(**config), add_pooling_layer=False)
    return TextEncoder(model, tokenizer, pool, max_tokens)


def wordpiece(texts: Sequence[str], size: int, max_tokens=128) -> transformers.BertTokenizerFast:
    """A lower-case WordPiece vocabulary: every letter, then the most frequent words."""
    normal, cut = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    split = (cut.pre_tokenize_str(normal.normalize_str(text)) for text in texts)
    counts = Counter(word for words in split for word, _ in words)
    letters = sorted(set("".join(counts)))
    words = sorted(counts.keys() - set(letters), key=lambda word: (-counts[word], word))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    pieces = [*pieces, *(f"##{letter}" for letter in letters), *words][:size]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    return transformers.BertTokenizerFast(vocab, model_max_length=max_tokens)


def save_encoder(encoder: nn.Module, folder) -> None:
    """Write the model in Hugging Face format, with the settings and the tokenizer beside it."""
    # Of several ranks transformers lets only the first write; here each writes what it has trained.
    encoder.model.should_save_on_this_rank = lambda is_main_process: is_main_process
    encoder.model.save_pretrained(folder)
    del encoder.model.should_save_on_this_rank
    (Path(folder) / "encoder.json").write_text(json.dumps(encoder.settings))
    if isinstance(encoder, TextEncoder):
        encoder.tokenizer.save_pretrained(folder)


def load_encoder(folder) -> nn.Module:
    """The encoder that `save_encoder` wrote; raises as `pretrained` does."""
    settings = json.loads((Path(folder) / "encoder.json").read_text())
    model_type = transformers.PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    return pretrained(ROLES.get(model_type, "an encoder"), folder, **settings)


def pretrained(role: str, source: str, revision: str | None = None, **settings) -> nn.Module:
    """The encoder for `role` ("vision", "audio", "text") from a hub name or a local folder.

    source : a folder, or a name: looked for below ``EMI_WEIGHTS``, in the hub's cache, on the hub
    revision : a commit on the hub; None is that of `checkpoints.csv`
    settings : of the encoder; the rest is read from the checkpoint's own preprocessor settings

    Raises ValueError when the weights are missing, damaged, incomplete, or of another family.
    """
    place, commit = checkpoints.locate(str(source), revision)
    options = {"revision": commit, "trust_remote_code": False}
    with _one_sentence(source, revision):
        model = _network(place, check(role, source, revision), options)
        if role == "text":
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, **options)
            # Without its files transformers makes an empty tokenizer and does not complain.
            if len(tokenizer) <= len(tokenizer.all_special_tokens):
                raise OSError("no tokenizer.json and no vocab.txt")
            return TextEncoder(model, tokenizer, **settings)
        if role == "audio":
            if "normalise" not in settings:
                extractor = transformers.AutoFeatureExtractor.from_pretrained(place, **options)
                settings["normalise"], rate = extractor.do_normalize, extractor.sampling_rate
                if rate != SAMPLE_RATE:
                    raise ValueError(f"{source}: expected {SAMPLE_RATE} Hz, got {rate} Hz")
            return AudioEncoder(model, **settings)
        if "mean" not in settings:
            stated = transformers.AutoImageProcessor.from_pretrained(place, **options)
            edge = stated.size.shortest_edge if stated.do_center_crop else None
            colours = {"mean": stated.image_mean, "std": stated.image_std}
            way = {"resample": Resampling(stated.resample).name.lower(), "shortest_edge": edge}
            settings = {**colours, **way, **settings}
        return VisionEncoder(model, **settings)


def check(role: str, source: str, revision: str | None = None) -> dict:
    """The config.json of a checkpoint, as a dict; nothing else of it is read or downloaded.
    Arguments as of `pretrained`. Raises ValueError where the file is missing or damaged, where it
    is of another family than the role's, and where it names code."""
    place, commit = checkpoints.locate(str(source), revision)
    if checkpoints.folder(str(source)) is not None:
        checkpoints.refuse_traps(place)
    with _one_sentence(source, revision):
        config = transformers.PreTrainedConfig.get_config_dict(place, revision=commit)[0]
    model_type = config.get("model_type")
    if ROLES.get(model_type) != role or "auto_map" in checkpoints.strings(config):
        remote = "; code of a checkpoint is never run" if "auto_map" in config else ""
        wanted = ", ".join(name for name in ROLES if ROLES[name] == role)
        got = f"got a checkpoint of type {model_type!r}{remote}"
        raise ValueError(f"{source}: expected weights for {role} ({wanted}), {got}")
    return config


def _network(place: str, config: dict, options: dict) -> nn.Module:
    network, options = transformers.AutoModel, {**options, "output_loading_info": True}
    declared = {"Wav2Vec2ForSpeechClassification", EmotionWav2Vec2.__name__}
    if declared & set(config.get("architectures") or ()):
        network = EmotionWav2Vec2
    elif config["model_type"] == "clip":
        network = transformers.CLIPVisionModel  # the vision tower alone
    elif config["model_type"] in ("vit", "bert", "gte"):
        options["add_pooling_layer"] = False
    model, report = network.from_pretrained(place, dtype=torch.float32, **options)
    # The vector for masked steps is used in training only, and some checkpoints lack it.
    lacking = sorted(k for k in report["missing_keys"] if not k.endswith("masked_spec_embed"))
    if lacking:
        got = f"the checkpoint lacks {len(lacking)} ({lacking[0]}, ...); name one of the same kind"
        raise ValueError(f"{place}: expected all weights of a {type(model).__name__}, but {got}")
    return model


@contextlib.contextmanager
def _one_sentence(source, revision: str | None):
    """Errors of missing and damaged files as a ValueError that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        hint = checkpoints.how_to_get(str(source), revision)
        raise ValueError(f"{source}: files are missing or damaged ({reason}); {hint}") from error
