"""Encoders against transformers' own processors and forward passes, Pillow, and single clips."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_checkpoints import PICTURE, SIZES, SOUND, TEXTS
from transformers import (
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from emilib.features.encoders import (
    AudioEncoder,
    EmotionHead,
    TextEncoder,
    VisionEncoder,
    padded,
    resize,
    resize_in_passes,
)
from emilib.features.loading import small_audio, small_text, small_vision, wordpiece
from emilib.profiles import SMALL_AUDIO, SMALL_TEXT, SMALL_VISION

GROUP = {**SOUND, "feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}


def network(config, seed=0):
    torch.manual_seed(seed)
    return Wav2Vec2Model(Wav2Vec2Config(**config)).eval()


def vit():
    torch.manual_seed(0)
    return ViTModel(ViTConfig(**SIZES, **PICTURE), add_pooling_layer=False).eval()


def pictures(height, width, count=2):
    draw = np.random.default_rng(0)
    return torch.from_numpy(draw.integers(0, 256, (count, 3, height, width), np.uint8))


def sounds():
    generator = torch.Generator().manual_seed(0)
    clips = [0.02 * torch.randn(n, generator=generator) + 0.1 for n in (6000, 4000, 1500)]
    return clips, *padded(clips)


# -------------------------------------------------------------------------------------- vision

SIZES_OF_PICTURES = [  # (height, width), and what they are resized to
    ((160, 160), (224, 224)),
    ((720, 1280), (224, 224)),
    ((97, 131), (224, 224)),
    ((33, 17), (64, 64)),
    ((224, 300), (224, 224)),
    ((480, 640), (256, 341)),
    ((64, 80), (64, 80)),
]


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
@pytest.mark.parametrize("way", [resize, resize_in_passes])
@pytest.mark.parametrize(("size", "wanted"), SIZES_OF_PICTURES)
def test_resizing_is_within_one_grey_level_of_pillow(way, size, wanted, resample):
    images = pictures(*size, count=1)
    resized = way(images, wanted, resample)[0].permute(1, 2, 0).numpy().astype(float)
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    expected = picture.resize(wanted[::-1], Image.Resampling[resample.upper()])
    away = np.abs(resized - np.asarray(expected, float))
    # Noise has ties in both passes, which may be rounded the other way twice.
    assert away.max() <= 2
    assert (away > 1).mean() < 1e-4
    assert (resized == resized.round()).all()


@torch.no_grad()
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_vision_is_the_class_token_or_the_mean_of_the_model(pool):
    model, images = vit(), pictures(32, 32)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    scaled = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    hidden = model(pixel_values=scaled).last_hidden_state
    expected = hidden[:, 0] if pool == "cls" else hidden.mean(dim=1)
    encoder = VisionEncoder(model, pool, mean, std)
    torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)
    assert encoder.dim == 16


@pytest.mark.parametrize("bad", [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_what_is_no_batch_of_pictures_is_refused(bad):
    with pytest.raises(ValueError, match="uint8"):
        small_vision(SMALL_VISION)(bad)


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"pool": "max"}, {"shortest_edge": 31}):
        with pytest.raises(ValueError, match="expected"):
            VisionEncoder(vit(), **wrong)
    with pytest.raises(ValueError, match="pool"):
        small_text(SMALL_TEXT, TEXTS, pool="last")


def test_attention_is_torchs_own():
    model = vit()
    model.set_attn_implementation("eager")
    encoders = [VisionEncoder(model), small_audio(SMALL_AUDIO), small_text(SMALL_TEXT, TEXTS)]
    assert {e.model.config._attn_implementation for e in encoders} == {"sdpa"}


# --------------------------------------------------------------------------------------- audio


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


@torch.no_grad()
@pytest.mark.parametrize("config", [SOUND, GROUP], ids=["layer", "group"])
def test_a_piece_is_normalised_by_the_moments_of_the_whole(config):
    encoder, (clips, *_) = AudioEncoder(network(config)), sounds()
    whole = clips[0].double()
    moments = torch.tensor([[whole.mean(), whole.var(correction=0)]] * 2)
    waveform, valid = padded([clips[0][:3000], clips[0][3000:]])
    hidden, steps = encoder(waveform, valid, moments)
    plain = AudioEncoder(encoder.model, normalise=False)
    scaled = ((whole - whole.mean()) / whole.std(correction=0)).float()
    for row, piece in enumerate((scaled[:3000], scaled[3000:])):
        expected, _ = plain(*padded([piece]))
        torch.testing.assert_close(hidden[row, steps[row]], expected[0], atol=1e-4, rtol=1e-3)


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


def test_the_emotion_head_is_two_linear_layers_with_a_tanh_between():
    head = EmotionHead(4, 3).eval()
    states = torch.randn(2, 5, 4)
    (w1, b1), (w2, b2) = ((m.weight, m.bias) for m in (head.dense, head.out_proj))
    expected = torch.tanh(states @ w1.T + b1) @ w2.T + b2
    torch.testing.assert_close(head(states), expected)
    assert not torch.equal(head.train()(states), head(states))  # dropout


# ---------------------------------------------------------------------------------------- text


@torch.no_grad()
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_words_are_pooled_over_real_tokens(pool):
    encoder = small_text(SMALL_TEXT, TEXTS, pool, max_tokens=64).eval()
    tokens = encoder.tokens(TEXTS)
    hidden = encoder.model(**tokens).last_hidden_state
    real = [h[m.bool()] for h, m in zip(hidden, tokens["attention_mask"], strict=True)]
    expected = torch.stack([h[0] if pool == "cls" else h.mean(dim=0) for h in real])
    torch.testing.assert_close(encoder(**tokens), expected, atol=1e-5, rtol=1e-4)
    alone = torch.cat([encoder(**encoder.tokens([text])) for text in TEXTS])
    torch.testing.assert_close(expected, alone, atol=1e-5, rtol=1e-4)


def test_long_words_are_cut():
    encoder = TextEncoder(small_text(SMALL_TEXT, TEXTS).model, wordpiece(TEXTS, 80), max_tokens=6)
    tokens = encoder.tokens([TEXTS[0] * 9, "oh"])
    assert tokens["input_ids"].shape == (2, 6)
    assert tokens["attention_mask"].sum(dim=1).tolist() == [6, 3]


def test_the_vocabulary_is_the_same_whatever_the_order_of_texts():
    tokenizer = wordpiece(TEXTS, 80)
    assert wordpiece(TEXTS[::-1], 80).get_vocab() == tokenizer.get_vocab()
    assert wordpiece(TEXTS, 45).get_vocab().items() < tokenizer.get_vocab().items()
    assert len(wordpiece(TEXTS, 45)) == 45
    assert "did" in tokenizer.get_vocab()
    assert tokenizer.decode(tokenizer("Oh NO")["input_ids"], skip_special_tokens=True) == "oh no"
