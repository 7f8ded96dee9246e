"""Small random checkpoints in the formats and under the names of the papers' large ones."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
import whisper
from safetensors.torch import save_file

from emilib.features import loading
from emilib.profiles import SMALL_AUDIO

AUDEERING = "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32}
PICTURE = {"image_size": 32, "patch_size": 8}
# the layer-norm architecture of wav2vec2-large, narrow
SOUND = {**SIZES, "conv_dim": (8,) * 7, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
SOUND |= {"conv_bias": True, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
SOUND |= {"num_codevectors_per_group": 4, "codevector_dim": 8, "proj_codevector_dim": 8}
TINY = {**SIZES, "num_hidden_layers": 1}
WORDS = ["what a lovely surprise", "this is far too hard", "we won the game", "i am so sorry"]
TEXTS = ["I really admire what you did.", "oh no", "we did it, we did it!"]


def tiny_vision():
    sizes = {"image_size": 16, "patch_size": 8, "hidden_dropout_prob": 0.1}
    return loading.small_vision({**TINY, **sizes})


def tiny_audio(**changes):
    conv = {"conv_dim": (8, 8), "conv_kernel": (40, 16), "conv_stride": (20, 16)}
    conv |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 4}
    return loading.small_audio({**SMALL_AUDIO, **TINY, **conv, **changes})


def tiny_text(pool="cls", max_tokens=16):
    sizes = {"vocab_size": 90, "max_position_embeddings": 32}
    return loading.small_text({**TINY, **sizes}, WORDS, pool, max_tokens)


def clip_folder(folder):
    """Network of the vision half, and image processor; the file holds both halves."""
    parts = {"text_config": {**SIZES, "vocab_size": 30}, "vision_config": {**SIZES, **PICTURE}}
    model = transformers.CLIPModel(transformers.CLIPConfig(**parts)).eval()
    model.save_pretrained(folder)
    crop = {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}}
    processor = transformers.CLIPImageProcessorPil(**crop)
    processor.save_pretrained(folder)
    return model.vision_model, processor


def vit_folder(folder):
    """Network and image processor, whose settings are not the family's."""
    config = transformers.ViTConfig(**SIZES, **PICTURE)
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    colours = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
    size = {"height": 32, "width": 32}
    processor = transformers.ViTImageProcessorPil(size=size, resample=2, **colours)
    processor.save_pretrained(folder)
    return model, processor


def sound_folder(folder, normalise=True):
    """Network and feature extractor; as published, with the heads of pretraining beside it."""
    model = transformers.Wav2Vec2ForPreTraining(transformers.Wav2Vec2Config(**SOUND)).eval()
    model.save_pretrained(folder)
    options = {"do_normalize": normalise, "return_attention_mask": True}
    extractor = transformers.Wav2Vec2FeatureExtractor(**options)
    extractor.save_pretrained(folder)
    return model.wav2vec2, extractor


def emotion_folder(folder):
    """Network and head weights, under their published names, without this project's class."""
    config = transformers.Wav2Vec2Config(**SOUND, num_labels=3, final_dropout=0.1)
    network = transformers.Wav2Vec2Model(config).eval()
    head = {
        "classifier.dense.weight": torch.randn(16, 16) * 0.5,
        "classifier.dense.bias": torch.randn(16),
        "classifier.out_proj.weight": torch.randn(3, 16),
        "classifier.out_proj.bias": torch.randn(3),
    }
    weights = {f"wav2vec2.{k}": v.contiguous() for k, v in network.state_dict().items()} | head
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
    written = {**config.to_dict(), "architectures": ["Wav2Vec2ForSpeechClassification"]}
    (Path(folder) / "config.json").write_text(json.dumps(written))
    return network, head


def text_folder(folder, kind="Bert", network="BertForPreTraining"):
    """Network with a tokenizer of the words of `TEXTS`."""
    tokenizer = loading.wordpiece(TEXTS, 80)
    config = getattr(transformers, f"{kind}Config")
    config = config(vocab_size=len(tokenizer), pad_token_id=0, **SIZES)
    model = getattr(transformers, network)(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def gte_folder(folder):
    return text_folder(folder, "Gte", "GteForMaskedLM")


def whisper_file(path):
    """A random Whisper in openai-whisper's own file format; its context is the real one."""
    sizes = {"n_mels": 80, "n_audio_ctx": 1500, "n_vocab": 51865, "n_text_ctx": 24}
    width = {"state": 16, "head": 2, "layer": 1}
    sizes |= {f"n_{half}_{name}": n for half in ("audio", "text") for name, n in width.items()}
    dims = whisper.model.ModelDimensions(**sizes)
    torch.manual_seed(0)
    model = whisper.model.Whisper(dims)
    with torch.no_grad():  # its own zero positions would make all clips alike
        model.decoder.positional_embedding.normal_()
    torch.save({"dims": asdict(dims), "model_state_dict": model.state_dict()}, path)
    return path


MAKERS = {
    "openai/clip-vit-base-patch16": clip_folder,
    "google/vit-base-patch16-224-in21k": vit_folder,
    "facebook/wav2vec2-large-lv60": sound_folder,
    AUDEERING: emotion_folder,
    "bert-base-uncased": text_folder,
    "alibaba-nlp-community/gte-base-en-v1.5": gte_folder,
}


def write(folder) -> Path:
    """A folder for ``EMI_WEIGHTS`` with a checkpoint for every name of `checkpoints.csv`."""
    folder = Path(folder)
    torch.manual_seed(0)
    for name, make in MAKERS.items():
        (folder / name).mkdir(parents=True)
        make(folder / name)
    whisper_file(folder / "large-v3-turbo.pt")
    return folder
