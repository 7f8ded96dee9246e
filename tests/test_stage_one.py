import dataclasses
import functools
import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_checkpoints import WORDS
from small_checkpoints import tiny_audio as audio
from small_checkpoints import tiny_text as text
from small_checkpoints import tiny_vision as vision
from torch import nn

from emilib.features.encoders import padded
from emilib.models.contrastive import ContrastivePair, contrastive_loss, recall_at, text_groups
from emilib.training import contrastive_pretraining as stage_one
from emilib.training import self_supervised as pretraining
from emilib.training.contrastive_pretraining import Clips, pretrain, usable
from emilib.training.loop import load_state
from emilib.training.recipes import StageOne, WarmStart
from emilib.training.self_supervised import log_mel, warm_audio, warm_text, warm_vision

COLOURS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)]
PLAN = StageOne(
    epochs=4, cycle_epochs=2, lr_max=3e-3, lr_min=1e-4, batch_size=4, width=8, audio_seconds=0.5
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def initial_pair(media_dim, text_dim, plan, seed):
    """The heads as a run of `pretrain` with this seed begins."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        heads = {"temperature": plan.temperature, "cosine": plan.cosine}
        return ContrastivePair(media_dim, text_dim, plan.width, plan.segments, **heads).eval()


def encoder(side):
    if side == "both":
        return [audio(), vision()]
    return vision() if side == "frames" else audio()


def plan_of(side, **changes):
    return dataclasses.replace(PLAN, joint=side == "both", **changes)


def modules_of(result) -> list:
    runs = result if isinstance(result, list) else [result]
    return [module for run in runs for module in (run.media, run.text, run.pair)]


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
SQUARES = torch.full((6, 8, 3, 16, 16), 20, dtype=torch.uint8)
for i, t in np.ndindex(6, 8):  # what changes between two frames can be seen in them
    SQUARES[i, t, :, 4:10, (2 * t + i) % 12 :][..., :5] = 220
STARTS = [(warm_vision, vision, [*SQUARES]), (warm_text, text, WORDS * 4)]
STARTS.append((warm_audio, audio, clips().audio))


@pytest.mark.parametrize(("start", "make", "data"), STARTS)
def test_a_start_learns_and_repeats_itself(start, make, data):
    first = make()
    second = deepcopy(first)
    torch.manual_seed(0)
    losses = start(first, data, SHORT, seed=5)
    torch.manual_seed(0)
    again = start(second, data, SHORT, seed=5)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert (len(losses), losses) == (60, again)
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


def test_clips_without_words_or_media_are_left_out_and_other_encoders_refused():
    some = clips(6)
    some.texts[0], some.frames[1], some.audio[2] = "", None, None
    some.frames[3], some.audio[4] = some.frames[3][:0], torch.zeros(100)
    assert usable(some, vision()) == [2, 4, 5]
    assert usable(some, audio()) == [1, 3, 5]
    for media, side in ((vision(), "both"), (encoder("both"), "frames")):
        with pytest.raises(ValueError, match=f"joint={side == 'both'}, got "):
            pretrain(media, text(), clips(), plan_of(side), seed=0)
    with pytest.raises(ValueError, match=r"optimizer: expected one of .*, got 'adam'"):
        StageOne(optimizer="adam")


@given(count=st.integers(1, 3000), seed=st.integers(0, 99))
def test_drawn_frames_are_one_of_each_stretch(count, seed):
    picked = stage_one.drawn_frames(count, torch.Generator().manual_seed(seed))
    stretches = min(8, count)
    assert len(picked) == stretches
    for k, frame in enumerate(picked):
        assert count * k // stretches <= frame < count * (k + 1) // stretches
    first = stage_one.drawn_frames(count, torch.Generator().manual_seed(seed), "first")
    assert first == [0, *picked[1:]]


LETTER = {"symmetric": False, "cosine": False, "width": None, "mask_duplicates": False}
CHOICES = [{}, {"symmetric": False}, {"chunk": 4}, {"learn_temperature": False, "temperature": 0.2}]
CHOICES += [{**LETTER, "temperature": 3.0}, {**LETTER, "temperature": 3.0, "chunk": 4}]


@pytest.mark.parametrize("side", ["frames", "audio"])
@pytest.mark.parametrize("changes", CHOICES)
def test_the_loss_is_equation_1_and_duplicates_are_not_negatives(side, changes):
    some = clips(6)  # sentences 0, 1, 2, 3, 0, 1
    some.texts[4] = "What a  lovely surprise"  # the same words
    settings = {"epochs": 1, "batch_size": 6, "train_encoders": False, "audio_seconds": 5.0}
    plan = dataclasses.replace(PLAN, **settings, **changes)
    symmetric = plan.symmetric
    media, words = encoder(side).eval(), text().eval()
    (step,) = pretrain(media, words, some, plan, seed=0).history
    pair = initial_pair(media.dim, words.dim, plan, seed=0)
    assert step["logit_scale"] == pytest.approx(1 / plan.temperature, rel=0.01)
    assert (step["logit_scale"] == pair.logit_scale.item()) == (not plan.learn_temperature)
    with torch.no_grad():
        if side == "frames":
            rows = [pair.embed_media(media(frames)[None]) for frames in some.frames]
        else:
            rows = [pair.embed_media(*media(*padded([sound]))) for sound in some.audio]
        sides = torch.cat(rows), pair.embed_text(words(**words.tokens(some.texts)))
        expected, blind = (  # with duplicates as negatives it is another number
            np.mean([eq1(*s, pair.logit_scale, g) for s in (sides, sides[::-1])[: 1 + symmetric]])
            for g in ([0, 1, 2, 3, 0, 1], None)
        )
    if not plan.mask_duplicates:
        expected, blind = blind, expected
    assert step["loss"] == pytest.approx(expected, rel=1e-4)
    assert abs(blind - step["loss"]) > 0.05


@given(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_chunks_give_the_gradient_of_the_whole_batch(rows, chunk, symmetric, duplicates, joint):
    torch.manual_seed(rows)
    whole = nn.ModuleList(ContrastivePair(5, 4, 3, segments=2) for _ in range(1 + joint))
    chunked = deepcopy(whole)
    media, words = torch.randn(2, rows, 6, 5), torch.randn(rows, 4)
    groups = torch.arange(rows) // (2 if duplicates else 1)
    sides = [pair(side, words) for pair, side in zip(whole, media, strict=False)]
    losses = [contrastive_loss(*side, symmetric, groups) for side in sides]
    sum(losses).backward()  # L_v2t + L_a2t
    chunks = [range(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]

    def embed(number):
        part = slice(chunks[number].start, chunks[number].stop)
        sides = [pair(side[part], words[part]) for pair, side in zip(chunked, media, strict=False)]
        return [x for side in sides for x in side[:2]]

    loss_of = functools.partial(stage_one.summands, symmetric=symmetric, same_text=groups)
    parameters = list(chunked.parameters())
    got = stage_one.chunked_gradient(embed, chunks, chunked, loss_of, parameters)
    assert got == pytest.approx([loss.item() for loss in losses], rel=1e-5, abs=1e-6)
    for a, b in zip(whole.parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6)


def test_a_joint_run_is_the_sum_of_both_losses_with_one_text_encoder():
    some, frozen = clips(6), {"epochs": 1, "batch_size": 6, "audio_seconds": 5.0}
    some.frames[5], some.texts[0] = None, ""  # such clips are left out
    joint = plan_of("both", **frozen, optimizer="sgd", clip=None, lr_max=0.5, lr_min=0.5)
    media, words = encoder("both"), text()
    for module in (*media, words):  # without dropout
        for part in module.modules():
            for name in ("p", "dropout", "attention_dropout"):
                if isinstance(getattr(part, name, None), float):
                    setattr(part, name, 0.0)
    runs = pretrain(media, words, some, joint, seed=0)
    assert runs[0].text is runs[1].text
    torch.manual_seed(0)
    pairs = [ContrastivePair(16, 16, PLAN.width, PLAN.segments) for _ in media]
    rows = [1, 2, 3, 4]
    states = words(**words.tokens([some.texts[i] for i in rows]))
    heard = [media[0](*padded([some.audio[i]])) for i in rows]
    hidden = [heard, [(media[1](some.frames[i])[None], None) for i in rows]]
    losses = []
    for pair, side, run in zip(pairs, hidden, runs, strict=True):
        sides = torch.cat([pair.embed_media(*h) for h in side]), pair.embed_text(states)
        losses.append(sum(eq1(*s, pair.logit_scale) for s in (sides, sides[::-1])) / 2)
        assert run.history[0]["loss"] == pytest.approx(losses[-1].item(), rel=1e-4)
    sum(losses).backward()
    for before, after in zip(words.parameters(), runs[0].text.parameters(), strict=True):
        if before.grad is not None:  # one step of gradient descent
            step = before - 0.5 * (before.grad + joint.weight_decay * before)
            torch.testing.assert_close(after, step, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("side", ["frames", "audio", "both"])
def test_a_killed_run_goes_on_to_the_same_bits(side, tmp_path):
    media, words, plan = encoder(side), text(), plan_of(side)
    whole = pretrain(media, words, clips(), plan, seed=3)
    history = whole[1].history if side == "both" else whole.history
    for step, row in enumerate(history):  # 9 clips: two batches of 4, one is left out
        cosine = math.cos(math.pi * (step % 4) / 4)
        expected = PLAN.lr_min + (PLAN.lr_max - PLAN.lr_min) * (1 + cosine) / 2  # Eq. 10
        assert row["lr"] == pytest.approx(expected, rel=1e-12)
        assert (row["step"], row["epoch"]) == (step, step // 2)

    def kill(done, total):
        assert total == 8
        if done == 5:  # in the middle of the third epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(media, words, clips(), plan, seed=3, checkpoint=tmp_path, progress=kill)
    torch.manual_seed(99)  # whatever else has drawn meanwhile
    done, settings = [], {"checkpoint": tmp_path, "progress": lambda step, _: done.append(step)}
    resumed = pretrain(media, words, clips(), plan, seed=3, **settings)
    assert done == [5, 6, 7, 8]  # two epochs were kept
    assert history == (resumed[1].history if side == "both" else resumed.history)
    assert all(map(same, modules_of(resumed), modules_of(whole)))


def test_a_damaged_checkpoint_is_removed_and_made_again(tmp_path):
    media, words, path = vision(), text(), tmp_path / "epoch.pt"
    plan = plan_of("frames", epochs=2, cycle_epochs=1)

    def run():
        return pretrain(media, words, clips(), plan, seed=3, checkpoint=tmp_path)

    whole, intact = run(), path.read_bytes()
    damaged = [b"", intact[:20], intact[: len(intact) // 2]]
    for place in np.random.default_rng(0).integers(0, 8 * len(intact), 40):
        flipped = bytearray(intact)
        flipped[place // 8] ^= 1 << place % 8
        damaged.append(flipped)
    for content in damaged:
        path.write_bytes(content)
        assert load_state(tmp_path, "identity", []) is None
        assert not path.exists()
    path.write_bytes(damaged[-1])
    again = run()
    assert again.history == whole.history
    assert all(map(same, modules_of(again), modules_of(whole)))


GROUPS = torch.tensor([3, 1, 3, 2, 1, 3])


def embeddings(clips=6, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randn(2, clips, width, generator=generator, dtype=torch.float64)
    return nn.functional.normalize(sides, dim=-1).unbind()


def eq1(queries, keys, scale, groups=None):
    """Eq. 1 by two loops; clips of an equal transcript stay out of each other's denominator."""
    total = 0.0
    for i, query in enumerate(queries):
        terms = [torch.exp(scale * (query * key).sum()) for key in keys]
        left = [
            t for j, t in enumerate(terms) if j == i or groups is None or groups[i] != groups[j]
        ]
        total = total - torch.log(terms[i] / sum(left))
    return total / len(queries)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("groups", [None, GROUPS])
def test_loss_and_gradient_are_those_of_a_double_loop(symmetric, groups):
    leaves = [*embeddings(), torch.tensor(9.0, dtype=torch.float64)]
    media, text, scale = leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    loss = contrastive_loss(*leaves, symmetric=symmetric, same_text=groups)
    expected = eq1(media, text, scale, groups)
    if symmetric:
        expected = (expected + eq1(text, media, scale, groups)) / 2
    torch.testing.assert_close(loss, expected)
    slopes = [torch.autograd.grad(value, leaves) for value in (loss, expected)]
    torch.testing.assert_close(*slopes)
    media, text = (side.float() for side in embeddings(64, 32))
    exact = contrastive_loss(media, text, 100.0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(contrastive_loss(media, text, 100.0), exact)


def test_pair_pools_projects_and_normalises():
    torch.manual_seed(0)
    pair = ContrastivePair(6, 5, width=4, segments=2)
    states, valid = torch.randn(2, 6, 6), torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    states[1, 3:] = torch.nan
    media, text, scale = pair(states, torch.randn(2, 5), valid)
    # Clip 1 has three steps in two segments: steps 0 and 1, and step 2.
    pooled = torch.stack([states[0].mean(0), (states[1, :2].mean(0) + states[1, 2]) / 2])
    expected = pooled @ pair.media_head.weight.T
    torch.testing.assert_close(media, expected / expected.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(scale, torch.tensor(1 / 0.07))
    torch.testing.assert_close(pair(pooled, torch.randn(2, 5))[0], media)  # pooled before
    change = ContrastivePair(6, 5, width=4, segments=2, reference="first")
    change.load_state_dict(pair.state_dict())
    expected = (pooled - states[:, 0]) @ pair.media_head.weight.T
    got = change(states, torch.randn(2, 5), valid)[0]
    with pytest.raises(ValueError, match="expected reference as one of"):
        ContrastivePair(6, 5, reference="mean")
    torch.testing.assert_close(got, expected / expected.norm(dim=-1, keepdim=True))
    with pytest.raises(ValueError, match="real step in every clip"):
        pair(states, torch.randn(2, 5), valid & valid[:, 3:4])


def test_eq1_to_the_letter_and_groups_of_equal_words():
    settings = {"learn_temperature": False, "cosine": False, "width": None, "temperature": 0.5}
    media, text = embeddings()
    pair = ContrastivePair(4, 4, **settings).double()
    assert [p.requires_grad for p in pair.parameters()] == [False]
    embedded = pair(2 * media, 3 * text)
    loss = contrastive_loss(*embedded, symmetric=False)
    torch.testing.assert_close(loss, eq1(2 * media, 3 * text, torch.tensor(2.0)))
    with pytest.raises(ValueError, match="got 1024 and 768"):
        ContrastivePair(1024, 768, width=None)
    pair = ContrastivePair(6, 5)  # its scale is bounded, and can come back
    pair.log_scale.data.fill_(20.0)
    pair.logit_scale.backward()
    torch.testing.assert_close(pair.logit_scale, torch.tensor(100.0))
    assert pair.log_scale.grad > 0
    groups = text_groups(["Well done!", " well  DONE!", "well done", "", "  "])
    kinds = torch.tensor([0, 0, 1, 2, 2])
    assert torch.equal(groups[:, None] == groups, kinds[:, None] == kinds)


@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_recall_is_that_of_sorted_lists(groups, k):
    media, text = embeddings(seed=3)
    hits = 0
    for i in range(6):
        nearest = sorted(range(6), key=lambda j, i=i: -float(text[i] @ media[j]))[:k]
        own = [j for j in range(6) if j == i or (groups is not None and groups[i] == groups[j])]
        hits += any(j in own for j in nearest)
    assert recall_at(media, text, k, groups) == pytest.approx(hits / 6)
    same = torch.ones(5, 3) / math.sqrt(3)
    assert recall_at(same, same, 4) == 0, "collapsed"
