"""Checkpoints in the published formats, small and random, against transformers called directly."""

import json

import pytest
import small_checkpoints as small
import torch
import transformers
from safetensors.torch import load_file, save_file

from emilib.features import checkpoints, loading
from emilib.features.encoders import padded
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
def no_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    torch.manual_seed(0)


def pictures(height=32, width=32):
    coarse = torch.rand(2, 3, 6, 7) * 255  # smooth pictures
    return torch.nn.functional.interpolate(coarse, size=(height, width)).to(torch.uint8)


def sounds():
    clips = [torch.randn(n) * 0.02 + 0.1 for n in (6000, 4000, 1500)]
    return clips, *padded(clips)


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


# ------------------------------------------------------------------------------ what is refused


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


def test_another_sampling_rate_and_a_head_that_is_not_there_are_refused(tmp_path):
    small.sound_folder(tmp_path)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path)
    refused("audio", tmp_path, "8000 Hz")
    small.sound_folder(tmp_path)
    rewrite(tmp_path / "config.json", architectures=["EmotionWav2Vec2"])
    refused("audio", tmp_path, r"lacks 4 .*classifier\.dense")


def test_code_of_a_checkpoint_is_never_run(tmp_path):
    (tmp_path / "configuration.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = {"model_type": "new", "auto_map": {"AutoConfig": "configuration.NewConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused("text", tmp_path, "never run")
    small.text_folder(tmp_path)
    remote = {"AutoModel": "configuration.New", "AutoConfig": "configuration.NewConfig"}
    rewrite(tmp_path / "config.json", auto_map=remote)
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
