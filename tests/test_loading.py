"""Checkpoints in the published formats, small and random, against transformers called directly."""

import json
import math

import numpy as np
import pytest
import small_checkpoints as small
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    GteModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
)

from emilib.features import checkpoints, loading
from emilib.features.encoders import CLIP_MEAN, AudioEncoder, padded
from emilib.profiles import SMALL_AUDIO, SMALL_TEXT, SMALL_VISION

ACCEPTANCE = [0.5460754, 0.6062266, 0.40431657]  # arousal, dominance, valence of a second of zeros
FOLDERS = {
    "clip": (small.clip_folder, "vision"),
    "vit": (small.vit_folder, "vision"),
    "wav2vec2": (small.sound_folder, "audio"),
    "emotion": (small.emotion_folder, "audio"),
    "bert": (small.text_folder, "text"),
    "gte": (small.gte_folder, "text"),
}
every_folder = pytest.mark.parametrize("kind", FOLDERS)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    torch.manual_seed(0)


def pictures(height=32, width=32):
    coarse = torch.rand(2, 3, 6, 7) * 255  # smooth pictures
    return torch.nn.functional.interpolate(coarse, size=(height, width)).to(torch.uint8)


def sounds():
    clips = [torch.randn(n) * 0.02 + 0.1 for n in (6000, 4000, 1500)]
    return clips, *padded(clips)


def inputs(role, encoder):
    if role == "text":
        return tuple(encoder.tokens(small.TEXTS).values())
    return (pictures(50, 60),) if role == "vision" else sounds()[1:]


# ----------------------------------------------------------------------- what the networks give


@torch.no_grad()
@pytest.mark.parametrize("kind", ["clip", "vit"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_pictures_give_what_transformers_gives(tmp_path, kind, pool):
    """Pixels within one grey level of the processor's; the ViT stretches, CLIP cuts the middle."""
    model, processor = FOLDERS[kind][0](tmp_path)
    encoder = loading.pretrained("vision", tmp_path, pool=pool).eval()

    def processed(images):
        arrays = list(images.permute(0, 2, 3, 1).numpy())
        return processor(arrays, return_tensors="pt")["pixel_values"]

    hidden = model(pixel_values=processed(images := pictures())).last_hidden_state
    expected = hidden[:, 0] if pool == "cls" else hidden.mean(dim=1)
    torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-4)
    for size in ((40, 59), (70, 41), (90, 90)):
        away = (encoder.pixels(images := pictures(*size)) - processed(images)) * encoder.std
        assert away.abs().max() <= 1.01


@torch.no_grad()
@pytest.mark.parametrize("normalise", [True, False])
def test_sound_gives_what_transformers_gives(tmp_path, normalise):
    model, extractor = small.sound_folder(tmp_path, normalise)
    clips, waveform, valid = sounds()
    arrays = [clip.numpy() for clip in clips]
    tensors = extractor(arrays, sampling_rate=16000, padding=True, return_tensors="pt")
    expected = model(**tensors).last_hidden_state
    encoder = loading.pretrained("audio", tmp_path).eval()
    hidden, steps = encoder(waveform, valid)
    assert type(encoder) is AudioEncoder
    torch.testing.assert_close(hidden[steps], expected[steps], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("legacy", [False, True], ids=["safetensors", "bin"])
def test_emotion_logits_are_the_head_of_every_step(tmp_path, legacy):
    network, head = small.emotion_folder(tmp_path, legacy)
    clips, waveform, valid = sounds()
    encoder = loading.pretrained("audio", tmp_path).eval()
    states, steps = encoder(waveform, valid)
    assert encoder.dim == states.shape[-1] == 16 + 3
    w1, b1, w2, b2 = (value.double().numpy() for value in head.values())
    for row, sound in enumerate(clips):
        sound = (sound - sound.mean()) / torch.sqrt(sound.var(correction=0) + 1e-7)
        hidden = network(sound[None]).last_hidden_state[0]
        torch.testing.assert_close(states[row, steps[row], :16], hidden, atol=1e-4, rtol=1e-4)
        for step, state in enumerate(hidden.double().numpy()):
            inner = [math.tanh(sum(w1[i] * state) + b1[i]) for i in range(16)]
            logits = [sum(w2[k] * inner) + b2[k] for k in range(3)]
            np.testing.assert_allclose(states[row, step, 16:], logits, atol=2e-4)
    assert loading.pretrained("audio", tmp_path, emotion=False).dim == 16


@pytest.mark.weights
@pytest.mark.skipif(
    checkpoints.available(small.AUDEERING) == "no",
    reason="needs the audeering weights",
)
@torch.no_grad()
def test_the_published_network_gives_its_published_values():
    encoder = loading.pretrained("audio", small.AUDEERING).eval()
    assert encoder.dim == 1027
    states, _ = encoder(*padded([torch.zeros(16000)]))
    pooled = encoder.model.classifier(states[..., :1024].mean(dim=1))[0]
    torch.testing.assert_close(pooled, torch.tensor(ACCEPTANCE), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "plain"), [("bert", BertModel), ("gte", GteModel)])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_words_give_what_transformers_gives(tmp_path, kind, plain, pool):
    FOLDERS[kind][0](tmp_path)
    model = plain.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokens = tokenizer(small.TEXTS, padding=True, return_tensors="pt")
    tokens.pop("token_type_ids", None)
    hidden = model(**tokens).last_hidden_state
    real = [h[m.bool()] for h, m in zip(hidden, tokens["attention_mask"], strict=True)]
    expected = torch.stack([h[0] if pool == "cls" else h.mean(dim=0) for h in real])
    encoder = loading.pretrained("text", tmp_path, pool=pool).eval()
    torch.testing.assert_close(
        encoder(**encoder.tokens(small.TEXTS)), expected, atol=1e-5, rtol=1e-4
    )


def test_the_old_names_in_berts_file_are_understood(tmp_path):
    model = small.text_folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
        weights = {key.replace(new, old): value + 0.1 for key, value in weights.items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    norm = loading.pretrained("text", tmp_path).model.embeddings.LayerNorm.weight
    torch.testing.assert_close(norm, model.bert.embeddings.LayerNorm.weight + 0.2)


# ------------------------------------------------------------------------- saved and read back


@torch.no_grad()
@pytest.mark.parametrize("kind", [*FOLDERS, "small vision", "small audio", "small text"])
def test_saved_and_read_back_gives_the_same_features(tmp_path, kind):
    if kind in FOLDERS:
        make, role = FOLDERS[kind]
        make(tmp_path)
        settings = {"pool": "mean", "shortest_edge": 40} if kind == "clip" else {}
        encoder = loading.pretrained(role, tmp_path, **settings)
    else:
        role = kind.split()[1]
        encoder = {
            "vision": lambda: loading.small_vision(SMALL_VISION, pool="mean"),
            "audio": lambda: loading.small_audio(SMALL_AUDIO),
            "text": lambda: loading.small_text(SMALL_TEXT, small.TEXTS, max_tokens=64),
        }[role]()
    loading.save_encoder(encoder, tmp_path / "again")
    again = loading.load_encoder(tmp_path / "again")
    assert type(again) is type(encoder)
    assert again.settings == encoder.settings
    batch = inputs(role, encoder)
    first, second = encoder.eval()(*batch), again.eval()(*batch)
    assert torch.equal(*((pair[0] if role == "audio" else pair) for pair in (first, second)))
    weights = again.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in encoder.state_dict().items())


def test_each_of_several_ranks_saves_what_it_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    loading.save_encoder(loading.small_vision(SMALL_VISION), tmp_path)
    assert (tmp_path / "model.safetensors").exists()


def test_without_a_preprocessor_file_the_family_decides(tmp_path):
    small.clip_folder(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    settings = loading.pretrained("vision", tmp_path).settings
    assert (settings["mean"], settings["resample"]) == (CLIP_MEAN, "bicubic")


# ------------------------------------------------------------------------------ what is refused


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(role, folder, match, **settings):
    with pytest.raises(ValueError, match=match) as error:
        loading.pretrained(role, folder, **settings)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("role", ["vision", "audio", "text"])
@every_folder
def test_a_checkpoint_of_another_family_is_refused(tmp_path, kind, role):
    make, right = FOLDERS[kind]
    make(tmp_path)
    if role != right:
        refused(role, tmp_path, f"weights for {role}")
    (tmp_path / "encoder.json").write_text("{}")
    rewrite(tmp_path / "config.json", model_type="gpt2")
    with pytest.raises(ValueError, match="gpt2"):
        loading.load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"resample": 0}, "resample"),
        ({"rescale_factor": 1.0}, "1/255"),
        ({"do_rescale": 0}, "1/255"),
    ],
)
def test_preprocessing_that_is_not_offered_is_refused(tmp_path, change, word):
    small.vit_folder(tmp_path)
    rewrite(tmp_path / "preprocessor_config.json", **change)
    refused("vision", tmp_path, word)


def test_another_sampling_rate_is_refused(tmp_path):
    small.sound_folder(tmp_path)
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path)
    refused("audio", tmp_path, "8000 Hz")


def test_a_head_that_the_checkpoint_lacks_is_not_random(tmp_path):
    small.sound_folder(tmp_path)
    refused("audio", tmp_path, r"lacks 4 .*classifier\.dense", emotion=True)
    other = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**small.SOUND, num_labels=3))
    other.save_pretrained(tmp_path)
    refused("audio", tmp_path, "random", emotion=True)


def test_code_of_a_checkpoint_is_never_run(tmp_path):
    (tmp_path / "configuration.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    )
    config = {"model_type": "new", "auto_map": {"AutoConfig": "configuration.NewConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused("text", tmp_path, "never run")
    small.text_folder(tmp_path)
    remote = {"AutoModel": "configuration.New", "AutoConfig": "configuration.NewConfig"}
    rewrite(tmp_path / "config.json", auto_map=remote)
    assert loading.pretrained("text", tmp_path).dim == 16  # by transformers' own class
    assert not (tmp_path / "ran").exists()


def test_damaged_and_incomplete_weights_are_refused(tmp_path):
    small.vit_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("vision", tmp_path, "damaged")
    path.write_bytes(whole)
    weights = load_file(path)
    del weights["embeddings.cls_token"]
    save_file(weights, path, metadata={"format": "pt"})
    refused("vision", tmp_path, r"lacks 1 .*embeddings\.cls_token")
    path.unlink()
    refused("vision", tmp_path, "not .*on this machine|cannot be found")
    refused("vision", tmp_path / "nothing", "put the checkpoint's folder on disk")


def test_a_tokenizer_that_is_missing_or_of_another_network_is_refused(tmp_path):
    small.text_folder(tmp_path, BertModel, BertConfig)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    refused("text", tmp_path, "tokenizer")
    texts = [*small.TEXTS, "some words that the network has never seen"]
    loading.wordpiece(texts, 200).save_pretrained(tmp_path)
    refused("text", tmp_path, "take both from one checkpoint")
