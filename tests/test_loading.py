import json
import re
import shutil

import numpy as np
import pytest
import small_checkpoints as small
import torch
import transformers
import whisper
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from small_checkpoints import SOUND, TEXTS
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from emilib import profiles
from emilib.features import checkpoints, loading
from emilib.features.encoders import AudioEncoder, padded, resize, resize_in_passes
from emilib.features.loading import wordpiece
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
SMALL = {
    "small vision": lambda: loading.small_vision(SMALL_VISION, pool="mean"),
    "small audio": lambda: loading.small_audio(SMALL_AUDIO),
    "small text": lambda: loading.small_text(SMALL_TEXT, small.TEXTS, max_tokens=64),
}


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch, tmp_path_factory, request):
    """A machine without network, and but for one test without weights."""
    torch.manual_seed(0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if not request.node.get_closest_marker("weights"):
        empty = tmp_path_factory.mktemp("cache")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(empty / "hub"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(empty))
        monkeypatch.delenv(checkpoints.WEIGHTS, raising=False)


def pictures(height=32, width=32):
    coarse = torch.rand(2, 3, 6, 7) * 255  # smooth pictures
    return torch.nn.functional.interpolate(coarse, size=(height, width)).to(torch.uint8)


def sounds():
    clips = [torch.randn(n) * 0.02 + 0.1 for n in (6000, 4000, 1500)]
    return clips, *padded(clips)


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
    hidden, steps = loading.pretrained("audio", tmp_path).eval()(waveform, valid)
    torch.testing.assert_close(hidden[steps], expected[steps], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_emotion_logits_are_the_head_of_every_step(tmp_path):
    network, head = small.emotion_folder(tmp_path)
    w1, b1, w2, b2 = head.values()
    clips, waveform, valid = sounds()
    encoder = loading.pretrained("audio", tmp_path).eval()
    states, steps = encoder(waveform, valid)
    assert encoder.dim == states.shape[-1] == 16 + 3
    for row, sound in enumerate(clips):
        sound = (sound - sound.mean()) / torch.sqrt(sound.var(correction=0) + 1e-7)
        hidden = network(sound[None]).last_hidden_state[0]
        logits = torch.tanh(hidden @ w1.T + b1) @ w2.T + b2
        expected = torch.cat([hidden, logits], dim=1)
        torch.testing.assert_close(states[row, steps[row]], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.weights
@pytest.mark.skipif(not checkpoints.available(small.AUDEERING), reason="needs these weights")
@torch.no_grad()
def test_the_published_network_gives_its_published_values():
    encoder = loading.pretrained("audio", small.AUDEERING).eval()
    assert encoder.dim == 1027
    states, _ = encoder(*padded([torch.zeros(16000)]))
    pooled = encoder.model.classifier(states[..., :1024].mean(dim=1))[0]
    torch.testing.assert_close(pooled, torch.tensor(ACCEPTANCE), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "plain"), [("bert", "BertModel"), ("gte", "GteModel")])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_words_give_what_transformers_gives(tmp_path, kind, plain, pool):
    FOLDERS[kind][0](tmp_path)
    model = getattr(transformers, plain).from_pretrained(tmp_path, add_pooling_layer=False).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokens = tokenizer(small.TEXTS, padding=True, return_tensors="pt")
    tokens.pop("token_type_ids", None)
    hidden = model(**tokens).last_hidden_state
    real = [h[m.bool()] for h, m in zip(hidden, tokens["attention_mask"], strict=True)]
    expected = torch.stack([h[0] if pool == "cls" else h.mean(dim=0) for h in real])
    encoder = loading.pretrained("text", tmp_path, pool=pool).eval()
    ours = encoder(**encoder.tokens(small.TEXTS))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", [*FOLDERS, *SMALL])
def test_saved_and_read_back_gives_the_same_features(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("RANK", "1")  # each of several ranks saves what it has trained
    monkeypatch.setenv("WORLD_SIZE", "2")
    if kind in FOLDERS:
        make, role = FOLDERS[kind]
        make(tmp_path)
        settings = {"pool": "mean", "shortest_edge": 40} if kind == "clip" else {}
        encoder = loading.pretrained(role, tmp_path, **settings)
    else:
        role, encoder = kind.split()[1], SMALL[kind]()
    loading.save_encoder(encoder, tmp_path / "again")
    again = loading.load_encoder(tmp_path / "again")
    assert type(again) is type(encoder)
    assert again.settings == encoder.settings
    batch = {"vision": lambda: (pictures(50, 60),), "audio": lambda: sounds()[1:]}
    batch = batch.get(role, lambda: tuple(encoder.tokens(small.TEXTS).values()))()
    first, second = encoder.eval()(*batch), again.eval()(*batch)
    assert torch.equal(*((pair[0] if role == "audio" else pair) for pair in (first, second)))


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(role, folder, match):
    with pytest.raises(ValueError, match=match) as error:
        loading.pretrained(role, folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("role", ["vision", "audio", "text"])
@pytest.mark.parametrize("kind", FOLDERS)
def test_a_checkpoint_of_another_family_is_refused(tmp_path, kind, role):
    make, right = FOLDERS[kind]
    make(tmp_path)
    if role != right:
        refused(role, tmp_path, f"weights for {role}")
    (tmp_path / "encoder.json").write_text("{}")
    rewrite(tmp_path / "config.json", model_type="gpt2")
    with pytest.raises(ValueError, match="gpt2"):
        loading.load_encoder(tmp_path)


def test_another_sampling_rate_a_lacking_head_and_code_are_refused(tmp_path):
    small.sound_folder(tmp_path)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path)
    refused("audio", tmp_path, "8000 Hz")
    small.sound_folder(tmp_path)
    rewrite(tmp_path / "config.json", architectures=["EmotionWav2Vec2"])
    refused("audio", tmp_path, r"lacks 4 .*classifier\.dense")
    (tmp_path / "configuration.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = {"model_type": "new", "auto_map": {"AutoConfig": "configuration.NewConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused("text", tmp_path, "never run")
    assert not (tmp_path / "ran").exists()


def test_missing_damaged_and_incomplete_files_are_refused(tmp_path):
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
    refused("vision", tmp_path, "missing")
    refused("vision", tmp_path / "nothing", "name the folder of a checkpoint")
    config = (tmp_path / "config.json").read_bytes()
    for damaged in (config[:-9], b"\xff" + config[1:], b"[" * 10**6):
        (tmp_path / "config.json").write_bytes(damaged)
        refused("vision", tmp_path, r"config\.json: expected JSON")
    small.text_folder(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    refused("text", tmp_path, "tokenizer")


def test_the_table_is_complete():
    table = checkpoints.table()
    assert len(table) == len(checkpoints.CHECKPOINTS) == table["checkpoint"].nunique() == 7
    assert (table["here"] == "no").all()
    assert table.loc[table["non-commercial"] != "", "checkpoint"].tolist() == [small.AUDEERING]
    for role in ("vision", "audio", "text"):
        entry = checkpoints.get(getattr(profiles.get("paper"), role)["checkpoint"])
        assert (entry.role, "A" in entry.paper) == (role, True)
    for entry in checkpoints.CHECKPOINTS:
        digits = 64 if entry.role == "speech" else 40
        assert not entry.revision or re.fullmatch(f"[0-9a-f]{{{digits}}}", entry.revision)
    assert checkpoints.get("gpt2") is None
    turbo = checkpoints.get("turbo")
    assert f"/{turbo.revision}/{turbo.files}" in whisper._MODELS["turbo"]


@pytest.mark.parametrize("below", [small.AUDEERING, small.AUDEERING.split("/")[1]])
def test_weights_are_found_below_the_folder_of_the_environment(monkeypatch, tmp_path, below):
    (tmp_path / below).mkdir(parents=True)
    small.emotion_folder(tmp_path / below)
    entry = checkpoints.get(small.AUDEERING)
    assert not checkpoints.available(entry.name)
    assert checkpoints.locate(entry.name) == (entry.name, entry.revision)
    monkeypatch.setenv(checkpoints.WEIGHTS, str(tmp_path))
    assert checkpoints.available(entry.name)
    assert checkpoints.locate(entry.name) == (str(tmp_path / below), None)
    assert loading.pretrained("audio", entry.name).dim == 19


def test_identity_is_that_of_the_bytes_and_whispers_file_is_found(tmp_path, monkeypatch):
    small.vit_folder(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    small.vit_folder(tmp_path / "c")  # other random weights, files of the same size
    first, same, other = (checkpoints.identity(str(tmp_path / name)) for name in "abc")
    assert first == same != other
    entry = checkpoints.get("bert-base-uncased")
    assert checkpoints.identity(entry.name) == f"{entry.name}@{entry.revision}"
    assert checkpoints.identity(entry.name, "abc") == f"{entry.name}@abc"
    assert checkpoints.whisper_file() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(checkpoints.WEIGHTS, str(tmp_path / "own"))
    for place in ("cache/whisper", "own/whisper", "own"):  # the later wins
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "large-v3-turbo.pt").write_bytes(b"x")
        assert checkpoints.whisper_file() == tmp_path / place / "large-v3-turbo.pt"
    assert checkpoints.available("turbo")


@pytest.mark.parametrize("name", small.MAKERS)
def test_missing_weights_name_what_how_large_and_where(name):
    entry = checkpoints.get(name)
    with pytest.raises(ValueError) as error:
        loading.pretrained(entry.role, entry.name)
    message, place = str(error.value), f"$EMI_WEIGHTS/{entry.name}"
    for word in (entry.size, entry.licence, entry.revision, *entry.files.split(), place):
        assert word in message
    assert "\n" not in message


GROUP = {**SOUND, "feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}


def network(config):
    torch.manual_seed(0)
    return Wav2Vec2Model(Wav2Vec2Config(**config)).eval()


# (height, width), and what they are resized to
SIZES_OF_PICTURES = [(s, (224, 224)) for s in ((160, 160), (720, 1280), (97, 131), (224, 300))]
SIZES_OF_PICTURES += [((33, 17), (64, 64)), ((480, 640), (256, 341)), ((64, 80), (64, 80))]


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
@pytest.mark.parametrize("way", [resize, resize_in_passes])
@pytest.mark.parametrize(("size", "wanted"), SIZES_OF_PICTURES)
def test_resizing_is_within_one_grey_level_of_pillow(way, size, wanted, resample):
    draw = np.random.default_rng(0)
    images = torch.from_numpy(draw.integers(0, 256, (1, 3, *size), np.uint8))
    resized = way(images, wanted, resample)[0].permute(1, 2, 0).numpy().astype(float)
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    expected = picture.resize(wanted[::-1], Image.Resampling[resample.upper()])
    away = np.abs(resized - np.asarray(expected, float))
    # Noise has ties in both passes, which may be rounded the other way twice.
    assert away.max() <= 2
    assert (away > 1).mean() < 1e-4
    assert (resized == resized.round()).all()
    with pytest.raises(ValueError, match="uint8"):
        loading.small_vision(SMALL_VISION)(torch.zeros(1, 3, 8, 8))


@torch.no_grad()
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("config", [SOUND, SMALL_AUDIO, GROUP], ids=["large", "small", "group"])
def test_a_batch_gives_what_transformers_gives_each_clip(config, normalise):
    """Group norm as well: there padding would change the states by more than 1."""
    model, (clips, waveform, valid) = network(config), sounds()
    hidden, steps = AudioEncoder(model, normalise)(waveform, valid)
    other, _ = AudioEncoder(model, normalise)(waveform.masked_fill(~valid, 7.0), valid)
    assert torch.equal(hidden[steps], other[steps])  # whatever the padding holds
    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalise)
    for row, clip in enumerate(clips):
        inputs = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt")
        expected = model(inputs["input_values"]).last_hidden_state[0]
        assert steps[row].tolist() == [n < len(expected) for n in range(hidden.shape[1])]
        torch.testing.assert_close(hidden[row, steps[row]], expected, atol=1e-4, rtol=1e-3)


@given(st.integers(1, 9000))
@settings(deadline=None, max_examples=30)
def test_steps_are_those_of_the_convolutions(samples):
    encoder = AudioEncoder(network(SOUND))
    assert (encoder.shortest, encoder.stride) == (400, 320)  # the figures of wav2vec 2.0
    waveform = torch.zeros(1, samples)
    if samples < 400:
        assert int(encoder.steps(torch.tensor(samples))) <= 0
        with pytest.raises(ValueError, match="at least 400 samples"):
            encoder(waveform, waveform == 0)
    else:
        with torch.no_grad():
            convolved = encoder.model.feature_extractor(waveform)
        assert int(encoder.steps(torch.tensor(samples))) == convolved.shape[-1]


@torch.no_grad()
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_words_alone_give_what_they_give_in_a_batch_and_long_ones_are_cut(pool):
    encoder = loading.small_text(SMALL_TEXT, small.TEXTS, pool, max_tokens=6).eval()
    texts = [small.TEXTS[0] * 9, *small.TEXTS]
    tokens = encoder.tokens(texts)
    assert tokens["input_ids"].shape == (4, 6)
    assert tokens["attention_mask"].sum(dim=1).tolist() == [6, 6, 4, 6]
    alone = torch.cat([encoder(**encoder.tokens([text])) for text in texts])
    torch.testing.assert_close(encoder(**tokens), alone, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="pool"):
        loading.small_text(SMALL_TEXT, small.TEXTS, pool="last")


def test_the_vocabulary_is_the_same_whatever_the_order_of_texts():
    tokenizer = wordpiece(TEXTS, 80)
    assert wordpiece(TEXTS[::-1], 80).get_vocab() == tokenizer.get_vocab()
    assert wordpiece(TEXTS, 45).get_vocab().items() < tokenizer.get_vocab().items()
    assert len(wordpiece(TEXTS, 45)) == 45
    assert "did" in tokenizer.get_vocab()
    assert tokenizer.decode(tokenizer("Oh NO")["input_ids"], skip_special_tokens=True) == "oh no"
