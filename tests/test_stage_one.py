"""Pretraining against plain loops, single clips, restarts and Eq. 10."""

import dataclasses
import functools
import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_contrastive import eq1

from emilib.features.encoders import AudioEncoder, padded
from emilib.features.loading import small_audio, small_text, small_vision
from emilib.models.contrastive import ContrastivePair, contrastive_loss
from emilib.profiles import SMALL_AUDIO
from emilib.training import contrastive_pretraining as stage_one
from emilib.training import self_supervised as pretraining
from emilib.training.contrastive_pretraining import Clips, pretrain, usable
from emilib.training.loop import one_thread
from emilib.training.recipes import StageOne, WarmStart
from emilib.training.self_supervised import log_mel, warm_audio, warm_text, warm_vision

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZE["intermediate_size"] = 32
WORDS = ["what a lovely surprise", "this is far too hard", "we won the game", "i am so sorry"]
COLOURS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)]
PLAN = StageOne(
    epochs=4, cycle_epochs=2, lr_max=3e-3, lr_min=1e-4, batch_size=4, width=8, audio_seconds=0.5
)


@pytest.fixture(autouse=True)
def one_thread_seeded():
    torch.manual_seed(0)
    with one_thread():
        yield


def initial_pair(media_dim, text_dim, plan, seed):
    """The heads as a run of `pretrain` with this seed begins."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ContrastivePair(media_dim, text_dim, plan.width, plan.segments).eval()


def vision():
    return small_vision({**SIZE, "image_size": 16, "patch_size": 8, "hidden_dropout_prob": 0.1})


def audio() -> AudioEncoder:
    conv = {"conv_dim": (8, 8), "conv_kernel": (40, 16), "conv_stride": (20, 16)}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 4}
    return small_audio({**SMALL_AUDIO, **SIZE, **conv, **positions})


def text():
    config = {**SIZE, "vocab_size": 80, "max_position_embeddings": 16}
    return small_text(config, WORDS, max_tokens=16)


def encoder(side):
    return vision() if side == "frames" else audio()


def same(first, second) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def clips(count=9) -> Clips:
    """Colour and loudness follow the sentence; lengths differ; nothing is missing."""
    generator = torch.Generator().manual_seed(0)
    frames, waveforms, texts = [], [], []
    for i in range(count):
        sentence = i % len(WORDS)
        noise = torch.randint(0, 20, (3 + i, 3, 16, 16), generator=generator)
        colour = torch.tensor(COLOURS[sentence]).view(3, 1, 1)
        frames.append((200 * colour + noise).to(torch.uint8))
        sound = torch.randn(4000 + 900 * i, generator=generator)
        waveforms.append(0.02 * 3.0**sentence * sound)
        texts.append(WORDS[sentence])
    return Clips([f"{i:05d}" for i in range(count)], frames, waveforms, texts)


def naive_log_mel(waveform, hop, bands, size=1024, rate=16000):
    """The same with NumPy's FFT, each band a triangle over the frequencies of the bins."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    sound, bins = np.pad(waveform, size // 2), np.arange(size // 2 + 1) * rate / size
    mels = np.linspace(*(2595 * math.log10(1 + f / 700) for f in (50, 7600)), bands + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    weights = [np.interp(bins, edges[i : i + 3], [0, 1, 0]) for i in range(bands)]
    starts = range(0, len(waveform) - hop + 1, hop)
    power = [np.abs(np.fft.rfft(sound[s : s + size] * window)) ** 2 for s in starts]
    return np.log(np.array(power) @ np.transpose(weights) + 1e-4)


@pytest.mark.parametrize(("hop", "bands"), [(640, 64), (500, 20)])
def test_log_mel_is_that_of_loops(hop, bands):
    waveform = np.random.default_rng(0).normal(0, 0.1, (2, 4100)).astype(np.float32)
    got = log_mel(torch.from_numpy(waveform), hop, bands)
    assert got.shape == (2, 4100 // hop, bands)
    for row, sound in zip(got, waveform, strict=True):
        np.testing.assert_allclose(row, naive_log_mel(sound, hop, bands), atol=2e-3)


STEPS = dict.fromkeys(("vision_steps", "audio_steps", "text_steps"), 60)
STEPS |= {"vision_batch": 16, "audio_batch": 4, "text_batch": 8}
SHORT = WarmStart(**STEPS, audio_seconds=0.25, lr=3e-3, change_size=4, mel_bands=16)


def moving_squares(count=6, steps=8):
    """A bright square that moves: what changes between two frames can be seen in them."""
    frames = torch.full((count, steps, 3, 16, 16), 20, dtype=torch.uint8)
    for i, t in np.ndindex(count, steps):
        left = (2 * t + i) % 12
        frames[i, t, :, 4:10, left : left + 5] = 220
    return list(frames)


STARTS = {  # start, encoder, clips, and a bound of the first losses, which are blind guesses
    "vision": (warm_vision, vision, moving_squares, 0.9),
    "audio": (warm_audio, audio, lambda: clips().waveforms, 0.9),
    "text": (warm_text, text, lambda: WORDS * 4, 2.5),
}


@pytest.mark.parametrize("role", STARTS)
def test_a_start_learns_and_repeats_itself(role):
    start, make, data, blind = STARTS[role]
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        encoder = make()
        runs.append((start(encoder, data(), SHORT, seed=5), encoder))
    (losses, first), (again, second) = runs
    assert len(losses) == 60
    assert np.mean(losses[:5]) > blind
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert losses == again
    assert same(first, second)
    with pytest.raises(ValueError, match="got none"):
        start(make(), [], SHORT, 0)


def test_masked_sound_does_not_reach_the_prediction(monkeypatch):
    """With every step masked two different sounds give one loss: the mask covers its step."""
    plan = dataclasses.replace(SHORT, audio_steps=1, masked_share=5.0)
    monkeypatch.setattr(pretraining, "log_mel", lambda w, hop, n: torch.ones(len(w), 99, n))
    losses = []
    for loudness in (0.01, 0.3):
        torch.manual_seed(0)
        sounds = [loudness * torch.randn(5000)]
        torch.manual_seed(1)
        losses += warm_audio(audio(), sounds, plan, seed=0)
    assert losses[0] == losses[1]


def test_clips_without_words_or_media_are_left_out():
    some = clips(6)
    some.texts[0], some.frames[1], some.waveforms[2] = "", None, None
    some.frames[3], some.waveforms[4] = some.frames[3][:0], torch.zeros(100)
    assert usable(some, vision()) == [2, 4, 5]
    assert usable(some, audio()) == [1, 3, 5]


@given(count=st.integers(1, 3000), seed=st.integers(0, 99))
def test_drawn_frames_are_one_of_each_stretch(count, seed):
    picked = stage_one.drawn_frames(count, torch.Generator().manual_seed(seed))
    stretches = min(8, count)
    assert len(picked) == stretches
    for k, frame in enumerate(picked):
        assert count * k // stretches <= frame < count * (k + 1) // stretches


@pytest.mark.parametrize("side", ["frames", "audio"])
@pytest.mark.parametrize(("symmetric", "chunk"), [(True, None), (False, None), (True, 4)])
def test_the_loss_is_equation_1_and_duplicates_are_not_negatives(side, symmetric, chunk):
    some = clips(6)  # sentences 0, 1, 2, 3, 0, 1
    some.texts[4] = "What a  lovely surprise"  # the same words
    changes = {"symmetric": symmetric, "chunk": chunk, "audio_seconds": 5.0}
    plan = dataclasses.replace(PLAN, epochs=1, batch_size=6, train_encoders=False, **changes)
    media, words = encoder(side).eval(), text().eval()
    (step,) = pretrain(media, words, some, plan, seed=0).history
    pair = initial_pair(media.dim, words.dim, plan, seed=0)
    assert step["logit_scale"] == pytest.approx(1 / 0.07, rel=0.01)
    with torch.no_grad():
        if side == "frames":
            rows = [pair.embed_media(media(frames)[None]) for frames in some.frames]
        else:
            rows = [pair.embed_media(*media(*padded([sound]))) for sound in some.waveforms]
        sides = torch.cat(rows), pair.embed_text(words(**words.tokens(some.texts)))
        expected, blind = (  # with duplicates as negatives it is another number
            np.mean([eq1(*s, pair.logit_scale, g) for s in (sides, sides[::-1])[: 1 + symmetric]])
            for g in ([0, 1, 2, 3, 0, 1], None)
        )
    assert step["loss"] == pytest.approx(expected, rel=1e-4)
    assert abs(blind - step["loss"]) > 0.05


@given(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_chunks_give_the_gradient_of_the_whole_batch(rows, chunk, symmetric, duplicates):
    torch.manual_seed(rows)
    chunked = deepcopy(whole := ContrastivePair(5, 4, 3, segments=2))
    media, words = torch.randn(rows, 6, 5), torch.randn(rows, 4)
    groups = torch.arange(rows) // (2 if duplicates else 1)
    loss = contrastive_loss(*whole(media, words), symmetric, groups)
    loss.backward()
    chunks = [range(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]

    def embed(number):
        part = slice(chunks[number].start, chunks[number].stop)
        return chunked(media[part], words[part])[:2]

    loss_of = functools.partial(contrastive_loss, symmetric=symmetric, same_text=groups)
    parameters = list(chunked.parameters())
    got = stage_one.chunked_gradient(embed, chunks, chunked, loss_of, parameters)
    assert got == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    for a, b in zip(whole.parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("side", ["frames", "audio"])
def test_a_killed_run_goes_on_to_the_same_bits(side, tmp_path):
    media, words = encoder(side), text()
    whole = pretrain(media, words, clips(), PLAN, seed=3)
    for step, row in enumerate(whole.history):  # 9 clips: two batches of 4, one is left out
        cosine = math.cos(math.pi * (step % 4) / 4)
        expected = PLAN.lr_min + (PLAN.lr_max - PLAN.lr_min) * (1 + cosine) / 2  # Eq. 10
        assert row["lr"] == pytest.approx(expected, rel=1e-12)
        assert (row["step"], row["epoch"]) == (step, step // 2)

    def kill(done, total):
        assert total == 8
        if done == 5:  # in the middle of the third epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(media, words, clips(), PLAN, seed=3, checkpoint=tmp_path, progress=kill)
    torch.manual_seed(99)  # whatever else has drawn meanwhile
    done, settings = [], {"checkpoint": tmp_path, "progress": lambda step, _: done.append(step)}
    resumed = pretrain(media, words, clips(), PLAN, seed=3, **settings)
    assert done == [5, 6, 7, 8]  # two epochs were kept
    assert resumed.history == whole.history
    for name in ("media", "text", "pair"):
        assert same(getattr(resumed, name), getattr(whole, name)), name
