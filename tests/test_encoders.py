"""Encoders against transformers' own forward passes, Pillow, and single clips."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_checkpoints import SOUND, TEXTS
from test_loading import sounds
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from emilib.features.encoders import AudioEncoder, resize, resize_in_passes
from emilib.features.loading import small_text, small_vision, wordpiece
from emilib.profiles import SMALL_AUDIO, SMALL_TEXT, SMALL_VISION

GROUP = {**SOUND, "feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}


def network(config):
    torch.manual_seed(0)
    return Wav2Vec2Model(Wav2Vec2Config(**config)).eval()


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


def test_pictures_of_floats_and_unknown_pools_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        small_vision(SMALL_VISION)(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="pool"):
        small_text(SMALL_TEXT, TEXTS, pool="last")


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
    encoder = small_text(SMALL_TEXT, TEXTS, pool, max_tokens=6).eval()
    texts = [TEXTS[0] * 9, *TEXTS]
    tokens = encoder.tokens(texts)
    assert tokens["input_ids"].shape == (4, 6)
    assert tokens["attention_mask"].sum(dim=1).tolist() == [6, 6, 4, 6]
    alone = torch.cat([encoder(**encoder.tokens([text])) for text in texts])
    torch.testing.assert_close(encoder(**tokens), alone, atol=1e-5, rtol=1e-4)


def test_the_vocabulary_is_the_same_whatever_the_order_of_texts():
    tokenizer = wordpiece(TEXTS, 80)
    assert wordpiece(TEXTS[::-1], 80).get_vocab() == tokenizer.get_vocab()
    assert wordpiece(TEXTS, 45).get_vocab().items() < tokenizer.get_vocab().items()
    assert len(wordpiece(TEXTS, 45)) == 45
    assert "did" in tokenizer.get_vocab()
    assert tokenizer.decode(tokenizer("Oh NO")["input_ids"], skip_special_tokens=True) == "oh no"
