import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from emilib.features import encoders, loading
from emilib.profiles import SMALL_AUDIO, SMALL_TEXT, SMALL_VISION

VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
LARGE_STYLE = {  # the layer-norm architecture of wav2vec2-large, narrow
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
TEXTS = ["I really admire what you did.", "oh no", "we did it, we did it!"]


def pictures(count=3, side=32):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (count, 3, side, side), dtype=np.uint8))


def sounds():
    lengths = torch.tensor([8000, 5000, 1500])
    waveform = torch.randn(3, 8000, generator=torch.Generator().manual_seed(0))
    return waveform, torch.arange(8000) < lengths[:, None], lengths


@torch.no_grad()
def test_vision_is_the_class_token_or_the_mean_of_the_model():
    model = ViTModel(ViTConfig(**VIT), add_pooling_layer=False).eval()
    images = pictures()
    hidden = model(pixel_values=(images / 255 - 0.5) / 0.5).last_hidden_state
    for pool, expected in (("cls", hidden[:, 0]), ("mean", hidden.mean(dim=1))):
        found = encoders.VisionEncoder(model, pool)(images)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


SIZES = [  # of pictures (height, width), and what they are brought to
    ((160, 160), (224, 224)),
    ((720, 1280), (224, 224)),
    ((97, 131), (224, 224)),
    ((33, 17), (64, 64)),
    ((224, 300), (224, 224)),
    ((480, 640), (256, 341)),
    ((223, 225), (224, 224)),
]
RESAMPLES = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@pytest.fixture(params=["bytes", "float"])
def way(request, monkeypatch):
    """Resizing as on a CPU, and as on a GPU."""
    monkeypatch.setattr(encoders, "_has_byte_kernel", lambda device: request.param == "bytes")
    return request.param


@pytest.mark.parametrize("resample", RESAMPLES)
@pytest.mark.parametrize(("size", "wanted"), SIZES)
def test_resizing_is_within_one_grey_level_of_pil(way, size, wanted, resample):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    images = torch.from_numpy(picture).permute(2, 0, 1)[None]
    found = encoders.resize(images, wanted, resample)[0].permute(1, 2, 0).numpy().astype(float)
    expected = Image.fromarray(picture).resize(wanted[::-1], RESAMPLES[resample])
    away = np.abs(found - np.asarray(expected, float))
    # Noise has ties in both passes, which may be rounded the other way twice.
    assert away.max() <= 2
    assert (away > 1).mean() < 1e-4
    assert (found == found.round()).all()


@pytest.mark.parametrize(("size", "wanted"), SIZES)
def test_both_ways_of_resizing_agree(size, wanted, monkeypatch):
    images = torch.from_numpy(
        np.random.default_rng(1).integers(0, 256, (2, 3, *size), dtype=np.uint8)
    )
    found = encoders.resize(images, wanted)
    assert found.dtype == torch.uint8
    monkeypatch.setattr(encoders, "_has_byte_kernel", lambda device: False)
    other = encoders.resize(images, wanted)
    away = (found.float() - other).abs()
    assert away.max() <= 2
    assert (away > 1).float().mean() < 1e-4


def test_attention_is_torchs_own():
    config = ViTConfig(**VIT)
    config._attn_implementation = "eager"
    model = ViTModel(config, add_pooling_layer=False)
    assert model.config._attn_implementation == "eager"
    encoder = encoders.VisionEncoder(model)
    assert encoder.model.config._attn_implementation == "sdpa"
    sound = loading.small_audio(SMALL_AUDIO)
    words = loading.small_text(SMALL_TEXT, TEXTS)
    assert {e.model.config._attn_implementation for e in (sound, words)} == {"sdpa"}


@torch.no_grad()
def test_pixels_equal_the_image_processor():
    model = ViTModel(ViTConfig(**VIT), add_pooling_layer=False)
    images = pictures()
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    expected = processor(list(images.permute(0, 2, 3, 1).numpy()), return_tensors="pt")
    found = encoders.VisionEncoder(model).pixels(images)
    torch.testing.assert_close(found, expected["pixel_values"], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("config", [LARGE_STYLE, SMALL_AUDIO], ids=["large", "small"])
def test_a_padded_masked_waveform_equals_the_clip_alone(config):
    torch.manual_seed(0)
    encoder = encoders.AudioEncoder(Wav2Vec2Model(Wav2Vec2Config(**config))).eval()
    waveform, valid, lengths = sounds()
    hidden, steps = encoder(waveform, valid)
    assert steps.sum(dim=1).tolist() == encoder.steps(lengths).tolist()
    for row, length in enumerate(lengths.tolist()):
        alone, all_valid = encoder(waveform[row : row + 1, :length], valid[row : row + 1, :length])
        assert all_valid.all()
        torch.testing.assert_close(hidden[row, steps[row]], alone[0], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_what_lies_in_the_padding_changes_nothing():
    encoder = loading.small_audio(SMALL_AUDIO).eval()
    waveform, valid, _ = sounds()
    hidden, steps = encoder(waveform, valid)
    other, _ = encoder(waveform.masked_fill(~valid, 7.0), valid)
    assert torch.equal(hidden[steps], other[steps])


@torch.no_grad()
def test_normalising_equals_the_feature_extractor():
    model = Wav2Vec2Model(Wav2Vec2Config(**LARGE_STYLE)).eval()
    waveform, valid, lengths = sounds()
    waveform = waveform * 0.01 + 0.2
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    clips = [w[:n].numpy() for w, n in zip(waveform, lengths.tolist(), strict=True)]
    inputs = extractor(clips, sampling_rate=16000, padding=True, return_tensors="pt")
    expected = model(**inputs).last_hidden_state
    hidden, steps = encoders.AudioEncoder(model)(waveform, valid)
    torch.testing.assert_close(hidden[steps], expected[steps], atol=1e-4, rtol=1e-4)


def test_shortest_is_what_the_convolutions_need():
    published = encoders.AudioEncoder(Wav2Vec2Model(Wav2Vec2Config(**LARGE_STYLE)))
    assert published.shortest == 400  # the figure of wav2vec 2.0
    assert published.stride == 320
    for encoder in (published, loading.small_audio(SMALL_AUDIO)):
        shortest = encoder.shortest
        assert int(encoder.steps(torch.tensor(shortest))) == 1
        assert int(encoder.steps(torch.tensor(shortest - 1))) == 0
        with pytest.raises(ValueError, match=f"at least {shortest} samples"):
            encoder(torch.zeros(1, shortest), torch.arange(shortest)[None] < shortest - 1)


@torch.no_grad()
def test_text_is_pooled_over_real_tokens():
    encoder = loading.small_text(SMALL_TEXT, TEXTS, pool="mean", max_tokens=64).eval()
    together = encoder(**encoder.tokens(TEXTS))
    alone = torch.cat([encoder(**encoder.tokens([t])) for t in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_the_vocabulary_is_the_same_whatever_the_order_of_texts():
    first = loading.wordpiece(TEXTS, 80).get_vocab()
    assert loading.wordpiece(TEXTS[::-1], 80).get_vocab() == first
    assert len(first) <= 80
    tokenizer = loading.wordpiece(TEXTS, 80)
    assert tokenizer.decode(tokenizer("Oh NO")["input_ids"], skip_special_tokens=True) == "oh no"


@torch.no_grad()
@pytest.mark.parametrize("role", ["vision", "audio", "text"])
def test_saved_and_read_back_gives_the_same_features(tmp_path, role):
    if role == "vision":
        encoder, inputs = loading.small_vision(SMALL_VISION, pool="mean"), (pictures(side=64),)
    elif role == "audio":
        encoder, inputs = loading.small_audio(SMALL_AUDIO), sounds()[:2]
    else:
        encoder = loading.small_text(SMALL_TEXT, TEXTS, max_tokens=64)
        inputs = tuple(encoder.tokens(TEXTS).values())
    loading.save_encoder(encoder, tmp_path)
    again = loading.load_encoder(tmp_path)
    assert again.settings == encoder.settings
    first, second = encoder.eval()(*inputs), again.eval()(*inputs)
    if role == "audio":
        first, second = first[0], second[0]
    assert torch.equal(first, second)


@torch.no_grad()
@pytest.mark.parametrize("family", ["clip", "vit", "wav2vec2", "bert"])
def test_a_checkpoint_folder_gives_what_transformers_gives(tmp_path, family):
    torch.manual_seed(0)
    if family == "clip":
        config = {k: v for k, v in VIT.items() if k != "image_size"}
        model = CLIPVisionModel(CLIPVisionConfig(image_size=32, **config))
        model.save_pretrained(tmp_path)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (encoders.CLIP_MEAN, encoders.CLIP_STD))
        pixels = (pictures() / 255 - mean) / std
        expected = model.eval()(pixel_values=pixels).last_hidden_state[:, 0]
        found = loading.pretrained("vision", str(tmp_path)).eval()(pictures())
    elif family == "vit":
        model = ViTModel(ViTConfig(**VIT), add_pooling_layer=False)
        model.save_pretrained(tmp_path)
        pixels = (pictures() / 255 - 0.5) / 0.5
        expected = model.eval()(pixel_values=pixels).last_hidden_state[:, 0]
        found = loading.pretrained("vision", str(tmp_path)).eval()(pictures())
    elif family == "wav2vec2":
        model = Wav2Vec2Model(Wav2Vec2Config(**LARGE_STYLE))
        model.save_pretrained(tmp_path)
        waveform = sounds()[0]
        scaled = (waveform - waveform.mean(1, keepdim=True)) / waveform.std(1, keepdim=True)
        expected = model.eval()(scaled).last_hidden_state
        valid = torch.ones(3, 8000, dtype=torch.bool)
        found = loading.pretrained("audio", str(tmp_path)).eval()(waveform, valid)[0]
    else:
        tokenizer = loading.wordpiece(TEXTS, 80)
        sizes = {k: v for k, v in SMALL_TEXT.items() if k != "vocab_size"}
        model = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes), add_pooling_layer=False)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        tokens = AutoTokenizer.from_pretrained(tmp_path)(TEXTS, padding=True, return_tensors="pt")
        expected = model.eval()(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).last_hidden_state[:, 0]
        encoder = loading.pretrained("text", str(tmp_path)).eval()
        found = encoder(**encoder.tokens(TEXTS))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_of_another_family_is_refused(tmp_path):
    ViTModel(ViTConfig(**VIT), add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected weights for audio"):
        loading.pretrained("audio", str(tmp_path))


def test_a_missing_checkpoint_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="put the checkpoint's folder on disk") as caught:
        loading.pretrained("vision", str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)


def test_an_unknown_folder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "encoder.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a vit, clip, wav2vec2 or bert"):
        loading.load_encoder(tmp_path)


@pytest.mark.parametrize("bad", [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_pictures_of_another_kind_are_refused(bad):
    with pytest.raises(ValueError, match="uint8"):
        loading.small_vision(SMALL_VISION)(bad)


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pool"):
        loading.small_vision(SMALL_VISION, pool="max")
