"""Checkpoints in the published formats, small and random, against transformers called directly."""

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    GteConfig,
    GteForMaskedLM,
    GteModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForPreTraining,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
)

from emilib import profiles
from emilib.features import checkpoints as manifest
from emilib.features import encoders, loading
from emilib.models.end_to_end import EndToEnd
from emilib.models.taemi import TAEMI
from emilib.pipeline import Workspace

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
PICTURE = {"image_size": 32, "patch_size": 8}
SOUND = {  # the layer-norm architecture of wav2vec2-large, narrow
    **SIZES,
    "conv_dim": (8,) * 7,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_codevectors_per_group": 4,
    "codevector_dim": 8,
    "proj_codevector_dim": 8,
}
TEXTS = ["I really admire what you did.", "oh no", "we did it, we did it!"]
AUDEERING = "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"
ACCEPTANCE = [0.5460754, 0.6062266, 0.40431657]  # arousal, dominance, valence of a second of zeros


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    torch.manual_seed(0)


@pytest.fixture
def nothing_here(monkeypatch, tmp_path):
    """A machine without any weights."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(manifest.WEIGHTS, raising=False)


def smooth(height, width):
    coarse = torch.rand(2, 3, 6, 7) * 255
    return torch.nn.functional.interpolate(coarse, size=(height, width)).to(torch.uint8)


def sounds():
    lengths = torch.tensor([6000, 4000, 1500])
    valid = torch.arange(6000) < lengths[:, None]
    return (torch.randn(3, 6000) * 0.02 + 0.1) * valid, valid


def clip_folder(folder):
    config = CLIPConfig(text_config={**SIZES, "vocab_size": 30}, vision_config={**SIZES, **PICTURE})
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor.save_pretrained(folder)
    return model.vision_model, processor


def vit_folder(folder):
    model = ViTModel(ViTConfig(**SIZES, **PICTURE), add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]  # not the family's
    processor = ViTImageProcessorPil(
        size={"height": 32, "width": 32}, resample=2, image_mean=mean, image_std=std
    )
    processor.save_pretrained(folder)
    return model, processor


def processed(processor, images):
    pictures = list(images.permute(0, 2, 3, 1).numpy())
    return processor(pictures, return_tensors="pt")["pixel_values"]


def sound_folder(folder, normalise=True, **changes):
    """As published: with the heads of pretraining beside the network."""
    model = Wav2Vec2ForPreTraining(Wav2Vec2Config(**{**SOUND, **changes})).eval()
    model.save_pretrained(folder)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalise, return_attention_mask=True)
    extractor.save_pretrained(folder)
    return model.wav2vec2, extractor


def emotion_folder(folder, legacy=False):
    """The published names of the weights, written without this project's class."""
    folder.mkdir(exist_ok=True)
    config = Wav2Vec2Config(**SOUND, num_labels=3, final_dropout=0.1)
    network = Wav2Vec2Model(config).eval()
    head = {
        "classifier.dense.weight": torch.randn(16, 16) * 0.5,
        "classifier.dense.bias": torch.randn(16),
        "classifier.out_proj.weight": torch.randn(3, 16),
        "classifier.out_proj.bias": torch.randn(3),
    }
    weights = {f"wav2vec2.{k}": v.contiguous() for k, v in network.state_dict().items()} | head
    if legacy:  # the names of torch's older weight norm, and torch's older file
        old = {"parametrizations.weight.original0": "weight_g"}
        old["parametrizations.weight.original1"] = "weight_v"
        for new, name in old.items():
            weights = {key.replace(new, name): value for key, value in weights.items()}
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    written = {**config.to_dict(), "architectures": ["Wav2Vec2ForSpeechClassification"]}
    (folder / "config.json").write_text(json.dumps(written))
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return network, head


def text_folder(folder, model_class, config_class):
    tokenizer = loading.wordpiece(TEXTS, 80)
    model = model_class(config_class(vocab_size=len(tokenizer), pad_token_id=0, **SIZES)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


# ------------------------------------------------------------------------------------- vision


@torch.no_grad()
@pytest.mark.parametrize("make", [clip_folder, vit_folder])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_pictures_of_the_right_size_give_what_transformers_gives(tmp_path, make, pool):
    model, processor = make(tmp_path)
    images = smooth(32, 32)
    hidden = model(pixel_values=processed(processor, images)).last_hidden_state
    expected = hidden[:, 0] if pool == "cls" else hidden.mean(dim=1)
    encoder = loading.pretrained("vision", str(tmp_path), pool=pool).eval()
    assert encoder.dim == 16
    torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("make", [clip_folder, vit_folder])
@pytest.mark.parametrize("shape", [(40, 59), (70, 41), (90, 90)])
def test_other_sizes_are_resized_and_cut_as_the_processor_does(tmp_path, make, shape):
    """Within one grey level of PIL; the ViT stretches, CLIP cuts the middle out."""
    _, processor = make(tmp_path)
    encoder = loading.pretrained("vision", str(tmp_path))
    images = smooth(*shape)
    difference = (encoder.pixels(images) - processed(processor, images)) * encoder.std
    assert difference.abs().max() <= 1.01


@torch.no_grad()
def test_settings_given_win_and_are_kept_when_saved(tmp_path):
    clip_folder(tmp_path / "a")
    encoder = loading.pretrained("vision", tmp_path / "a", pool="mean", shortest_edge=40).eval()
    loading.save_encoder(encoder, tmp_path / "b")
    again = loading.load_encoder(tmp_path / "b").eval()
    images = smooth(50, 60)
    assert again.settings["shortest_edge"] == 40
    torch.testing.assert_close(again(images), encoder(images), atol=0, rtol=0)


def test_without_a_preprocessor_file_the_family_decides(tmp_path):
    clip_folder(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    settings = loading.pretrained("vision", tmp_path).settings
    assert settings["mean"] == encoders.CLIP_MEAN
    assert settings["resample"] == "bicubic"


@pytest.mark.parametrize(
    ("change", "words"),
    [({"resample": 0}, "resample"), ({"rescale_factor": 1.0}, "scaled by 1/255")],
)
def test_preprocessing_that_is_not_offered_is_refused(tmp_path, change, words):
    vit_folder(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=words):
        loading.pretrained("vision", tmp_path)


# -------------------------------------------------------------------------------------- audio


@torch.no_grad()
@pytest.mark.parametrize("normalise", [True, False])
def test_sound_gives_what_transformers_gives(tmp_path, normalise):
    model, extractor = sound_folder(tmp_path, normalise)
    waveform, valid = sounds()
    clips = [w[v].numpy() for w, v in zip(waveform, valid, strict=True)]
    inputs = extractor(clips, sampling_rate=16000, padding=True, return_tensors="pt")
    expected = model(**inputs).last_hidden_state
    encoder = loading.pretrained("audio", tmp_path).eval()
    hidden, steps = encoder(waveform, valid)
    assert type(encoder) is encoders.AudioEncoder
    assert encoder.settings["normalise"] is normalise
    torch.testing.assert_close(hidden[steps], expected[steps], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_network_with_group_norm_hears_each_clip_alone(tmp_path):
    """wav2vec2-large (without lv60) is one: padding would change its states by more than 1."""
    model, extractor = sound_folder(
        tmp_path, feat_extract_norm="group", do_stable_layer_norm=False, conv_bias=False
    )
    waveform, valid = sounds()
    hidden, steps = loading.pretrained("audio", tmp_path).eval()(waveform, valid)
    for row in range(3):
        clip = waveform[row][valid[row]].numpy()
        inputs = extractor(clip, sampling_rate=16000, return_tensors="pt")
        expected = model(inputs["input_values"]).last_hidden_state[0]
        torch.testing.assert_close(hidden[row, steps[row]], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("legacy", [False, True], ids=["safetensors", "bin"])
def test_emotion_logits_are_the_head_of_every_step(tmp_path, legacy):
    network, head = emotion_folder(tmp_path, legacy)
    waveform, valid = sounds()
    encoder = loading.pretrained("audio", tmp_path).eval()
    found, steps = encoder(waveform, valid)
    assert encoder.dim == found.shape[-1] == 16 + 3
    w1, b1, w2, b2 = (value.double().numpy() for value in head.values())
    for row in range(3):
        sound = waveform[row][valid[row]]
        sound = (sound - sound.mean()) / torch.sqrt(sound.var(correction=0) + 1e-7)
        hidden = network(sound[None]).last_hidden_state[0]
        torch.testing.assert_close(found[row, steps[row], :16], hidden, atol=1e-4, rtol=1e-4)
        for step, state in enumerate(hidden.double().numpy()):
            inner = [math.tanh(sum(w1[i] * state) + b1[i]) for i in range(16)]
            logits = [sum(w2[k] * inner) + b2[k] for k in range(3)]
            np.testing.assert_allclose(found[row, step, 16:], logits, atol=2e-4)


@torch.no_grad()
def test_pooling_before_the_head_is_what_the_published_network_does_and_differs(tmp_path):
    network, head = emotion_folder(tmp_path)
    model = loading.pretrained("audio", tmp_path).eval().model
    hidden = network(torch.randn(1, 6000)).last_hidden_state
    w1, b1, w2, b2 = head.values()
    expected = torch.tanh(hidden.mean(dim=1) @ w1.T + b1) @ w2.T + b2
    torch.testing.assert_close(model.classifier(hidden.mean(dim=1)), expected)
    assert (model.classifier(hidden).mean(dim=1) - expected).abs().max() > 1e-3


@torch.no_grad()
def test_an_emotion_encoder_is_saved_and_goes_into_taemi(tmp_path):
    emotion_folder(tmp_path / "a")
    encoder = loading.pretrained("audio", tmp_path / "a").eval()
    loading.save_encoder(encoder, tmp_path / "b")
    again = loading.load_encoder(tmp_path / "b").eval()
    waveform, valid = sounds()
    assert torch.equal(again(waveform, valid)[0], encoder(waveform, valid)[0])
    text_folder(tmp_path / "t", GteModel, GteConfig)
    text = loading.pretrained("text", tmp_path / "t")
    fusion = TAEMI(frames_dim=5, audio_dim=19, text_dim=16, width=16, heads=2)
    model = EndToEnd(again, text, fusion, frozen=("audio", "text")).eval()
    out = model(torch.randn(3, 4, 5), waveform, text.tokens(TEXTS), waveform_valid=valid)
    assert out.intensity.shape == (3, 6)


def test_a_head_that_is_not_in_the_checkpoint_is_not_made_up(tmp_path):
    sound_folder(tmp_path)
    with pytest.raises(ValueError, match=r"4 are not in the checkpoint, classifier\.dense"):
        loading.pretrained("audio", tmp_path, emotion=True)
    other = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**SOUND, num_labels=3))
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="would be random"):
        loading.pretrained("audio", tmp_path, emotion=True)


def test_the_head_can_be_left_away(tmp_path):
    emotion_folder(tmp_path)
    assert loading.pretrained("audio", tmp_path, emotion=False).dim == 16


def test_another_sampling_rate_is_refused(tmp_path):
    sound_folder(tmp_path)
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a network for 16000 Hz, came one for 8000"):
        loading.pretrained("audio", tmp_path)


@pytest.mark.weights
@pytest.mark.skipif(
    manifest.available(manifest.get(AUDEERING)) == "no", reason="the audeering weights are not here"
)
@torch.no_grad()
def test_the_published_network_gives_its_published_values():
    encoder = loading.pretrained("audio", AUDEERING).eval()
    assert encoder.dim == 1027
    second = torch.zeros(1, 16000)
    states, steps = encoder(second, torch.ones_like(second, dtype=torch.bool))
    assert steps.all()
    found = encoder.model.classifier(states[..., :1024].mean(dim=1))[0]
    torch.testing.assert_close(found, torch.tensor(ACCEPTANCE), atol=1e-4, rtol=1e-4)


# --------------------------------------------------------------------------------------- text


@torch.no_grad()
@pytest.mark.parametrize(
    ("published", "plain", "config"),
    [
        (BertForPreTraining, BertModel, BertConfig),
        (GteForMaskedLM, GteModel, GteConfig),
        (GteModel, GteModel, GteConfig),
    ],
)
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_words_give_what_transformers_gives(tmp_path, published, plain, config, pool):
    text_folder(tmp_path, published, config)
    model = plain.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    tokens = AutoTokenizer.from_pretrained(tmp_path)(TEXTS, padding=True, return_tensors="pt")
    mask = tokens["attention_mask"]
    hidden = model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
    expected = hidden[:, 0]
    if pool == "mean":
        expected = torch.stack([h[m.bool()].mean(dim=0) for h, m in zip(hidden, mask, strict=True)])
    encoder = loading.pretrained("text", tmp_path, pool=pool).eval()
    torch.testing.assert_close(encoder(**encoder.tokens(TEXTS)), expected, atol=1e-5, rtol=1e-4)
    loading.save_encoder(encoder, tmp_path / "again")
    again = loading.load_encoder(tmp_path / "again").eval()
    assert torch.equal(again(**again.tokens(TEXTS)), encoder(**encoder.tokens(TEXTS)))


@torch.no_grad()
def test_words_do_not_depend_on_the_padding(tmp_path):
    text_folder(tmp_path, GteModel, GteConfig)
    encoder = loading.pretrained("text", tmp_path).eval()
    alone = torch.cat([encoder(**encoder.tokens([text])) for text in TEXTS])
    torch.testing.assert_close(encoder(**encoder.tokens(TEXTS)), alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_old_names_in_berts_file_are_understood(tmp_path):
    model = text_folder(tmp_path, BertForPreTraining, BertConfig)
    weights = load_file(tmp_path / "model.safetensors")
    renames = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    for new, old in renames:
        weights = {key.replace(new, old): value + 0.1 for key, value in weights.items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = loading.pretrained("text", tmp_path).model.embeddings.LayerNorm.weight
    torch.testing.assert_close(found, model.bert.embeddings.LayerNorm.weight + 0.2)


# ---------------------------------------------------------------- what can't be had, or not used


@pytest.mark.parametrize(
    ("role", "make"),
    [
        ("vision", lambda f: text_folder(f, BertModel, BertConfig)),
        ("vision", sound_folder),
        ("audio", clip_folder),
        ("audio", lambda f: text_folder(f, GteModel, GteConfig)),
        ("text", vit_folder),
        ("text", emotion_folder),
    ],
)
def test_a_checkpoint_of_another_family_is_refused_in_one_sentence(tmp_path, role, make):
    make(tmp_path)
    with pytest.raises(ValueError, match=f"expected weights for {role} .* came a") as caught:
        loading.pretrained(role, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_of_a_checkpoint_is_never_run(tmp_path):
    config = {"model_type": "new", "auto_map": {"AutoConfig": "configuration.NewConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "configuration.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    )
    with pytest.raises(ValueError, match="code of its own, which is never run"):
        loading.pretrained("text", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_damaged_and_incomplete_weights_are_refused(tmp_path):
    vit_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged or do not fit") as caught:
        loading.pretrained("vision", tmp_path)
    assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    weights = load_file(path)
    del weights["embeddings.cls_token"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 are not in the checkpoint, embeddings\.cls_token"):
        loading.pretrained("vision", tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"not on this machine .*safetensors"):
        loading.pretrained("vision", tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    text_folder(tmp_path, BertModel, BertConfig)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="tokenizer of the text encoder is not on this machine"):
        loading.pretrained("text", tmp_path)
    loading.wordpiece([*TEXTS, "some words that the network has never seen"], 200).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="take both from one checkpoint"):
        loading.pretrained("text", tmp_path)


@pytest.mark.parametrize(
    "entry", [e for e in manifest.CHECKPOINTS if e.role != "speech"], ids=lambda e: e.name
)
def test_missing_weights_say_what_how_large_and_where(nothing_here, monkeypatch, tmp_path, entry):
    monkeypatch.setenv(manifest.WEIGHTS, str(tmp_path / "weights"))
    with pytest.raises(ValueError) as caught:
        loading.pretrained(entry.role, entry.name)
    said = str(caught.value)
    for word in (entry.name, entry.size, entry.licence, entry.revision or "", *entry.files):
        assert word in said
    assert f"$EMI_WEIGHTS/{entry.name}" in said
    assert str(tmp_path / "weights") in said
    assert "\n" not in said
    assert not re.search(r"\. [A-Z]", said)


# ----------------------------------------------------------------------------------- manifest


@pytest.mark.parametrize("below", [AUDEERING, AUDEERING.split("/")[1]])
def test_weights_are_found_below_the_folder_of_the_environment(
    nothing_here, monkeypatch, tmp_path, below
):
    (tmp_path / below).parent.mkdir(parents=True, exist_ok=True)
    emotion_folder(tmp_path / below)
    assert manifest.available(manifest.get(AUDEERING)) == "no"
    monkeypatch.setenv(manifest.WEIGHTS, str(tmp_path))
    assert manifest.available(manifest.get(AUDEERING)) == "folder"
    assert loading.pretrained("audio", AUDEERING).dim == 19


def test_identity_is_that_of_the_bytes(monkeypatch, tmp_path):
    vit_folder(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    vit_folder(tmp_path / "c")  # other random weights, files of the same size
    first, same, other = (manifest.identity(str(tmp_path / name)) for name in "abc")
    assert first == same != other
    monkeypatch.delenv(manifest.WEIGHTS, raising=False)
    entry = manifest.get("bert-base-uncased")
    assert manifest.identity(entry.name) == f"bert-base-uncased@{entry.revision}"
    assert manifest.identity(entry.name, "abc") == "bert-base-uncased@abc"


def test_the_manifest_is_complete(nothing_here):
    table = manifest.table()
    assert len(table) == len(manifest.CHECKPOINTS) == table["checkpoint"].nunique()
    paper = profiles.get("paper")
    for role in ("vision", "audio", "text"):
        entry = manifest.get(getattr(paper, role)["checkpoint"])
        assert entry.role == role
        assert "A" in entry.paper
    marked = table.loc[table["non-commercial"] != "", "checkpoint"]
    assert list(marked) == [AUDEERING]
    assert (table["here"] == "no").all()
    for entry in manifest.CHECKPOINTS:
        digits = 64 if entry.role == "speech" else 40
        assert entry.revision is None or re.fullmatch(f"[0-9a-f]{{{digits}}}", entry.revision)


def test_whispers_sum_is_the_one_in_its_address():
    import whisper

    entry = manifest.get("turbo")
    assert f"/{entry.revision}/{entry.files[0]}" in whisper._MODELS["turbo"]


def test_a_profile_names_checkpoints_and_their_settings(monkeypatch, tmp_path):
    vit_folder(tmp_path / "v")
    profile = dataclasses.replace(
        profiles.get("paper"), vision={"checkpoint": str(tmp_path / "v"), "pool": "mean"}
    )
    workspace = Workspace(profile, corpus=tmp_path, home=tmp_path / "home")
    assert workspace.all_steps.untrained("vision").settings["pool"] == "mean"
    first = workspace.all_steps.identity("vision")
    assert first["weights"] == manifest.identity(str(tmp_path / "v"))
    small = Workspace("smoke", home=tmp_path / "home")
    assert small.all_steps.identity("vision") == profiles.SMALL_VISION  # keys stay what they were
