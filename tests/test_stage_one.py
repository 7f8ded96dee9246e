"""Pretraining and extraction against plain loops, single clips, restarts and Eq. 10."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from emilib.corpus.layout import EMOTIONS
from emilib.features import FeatureSet
from emilib.features.encoders import AudioEncoder
from emilib.features.loading import small_audio, small_text, small_vision
from emilib.models.contrastive import recall_at
from emilib.pipeline import Workspace
from emilib.study import representation as alignment
from emilib.training import contrastive_pretraining as stage_one
from emilib.training import self_supervised as pretraining
from emilib.training.contrastive_pretraining import (
    Clips,
    StageOne,
    drawn_frames,
    encoded_frames,
    pretrain,
    usable,
)
from emilib.training.self_supervised import WarmStart, log_mel, warm_audio, warm_text, warm_vision

SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
WORDS = ["what a lovely surprise", "this is far too hard", "we won the game", "i am so sorry"]
COLOURS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)]
PLAN = StageOne(
    epochs=4, cycle_epochs=2, lr_max=3e-3, lr_min=1e-4, batch_size=4, width=8, audio_seconds=0.5
)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def vision():
    return small_vision({**SIZE, "image_size": 16, "patch_size": 8, "hidden_dropout_prob": 0.1})


def audio() -> AudioEncoder:
    conv = {"conv_dim": (8, 8), "conv_kernel": (40, 16), "conv_stride": (20, 16)}
    return small_audio(
        {
            **SIZE,
            **conv,
            "conv_bias": True,
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 4,
            "mask_time_prob": 0.0,
            "layerdrop": 0.0,
        }
    )


def text():
    config = {**SIZE, "vocab_size": 80, "max_position_embeddings": 16}
    return small_text(config, WORDS, max_tokens=16)


def encoder(side):
    return vision() if side == "frames" else audio()


def clips(count=9, seed=0) -> Clips:
    """Colour and loudness follow the sentence; lengths differ; nothing is missing."""
    generator = torch.Generator().manual_seed(seed)
    frames, waveforms, texts = [], [], []
    for i in range(count):
        sentence = i % len(WORDS)
        steps = 3 + i
        noise = torch.randint(0, 20, (steps, 3, 16, 16), generator=generator)
        colour = torch.tensor(COLOURS[sentence]).view(3, 1, 1)
        frames.append((200 * colour + noise).to(torch.uint8))
        sound = torch.randn(4000 + 900 * i, generator=generator)
        waveforms.append(0.02 * 3.0**sentence * sound)
        texts.append(WORDS[sentence])
    return Clips([f"{i:05d}" for i in range(count)], frames, waveforms, texts)


# ----------------------------------------------------------------------- the sound's energies


def naive_log_mel(waveform, hop, bands, size=1024, rate=16000):
    """The same by loops over frames, bands and bins, with NumPy's FFT alone."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    sound = np.concatenate([np.zeros(size // 2), waveform, np.zeros(size // 2)])
    low, high = (2595 * math.log10(1 + f / 700) for f in (50, 7600))
    edges = [
        700 * (10 ** ((low + (high - low) * i / (bands + 1)) / 2595) - 1) for i in range(bands + 2)
    ]
    bins = [k * rate / size for k in range(size // 2 + 1)]
    rows = []
    for step in range(len(waveform) // hop):
        power = np.abs(np.fft.rfft(sound[step * hop : step * hop + size] * window)) ** 2
        row = []
        for left, centre, right in zip(edges, edges[1:], edges[2:], strict=False):
            weights = []
            for f in bins:
                if left < f <= centre:
                    weights.append((f - left) / (centre - left))
                elif centre < f < right:
                    weights.append((right - f) / (right - centre))
                else:
                    weights.append(0.0)
            if sum(weights) == 0:
                weights[min(range(len(bins)), key=lambda k: abs(bins[k] - centre))] = 1.0
            row.append(math.log(float(np.dot(weights, power)) + 1e-4))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(("hop", "bands"), [(640, 64), (320, 20), (500, 128)])
def test_log_mel_is_that_of_loops(hop, bands):
    waveform = np.random.default_rng(0).normal(0, 0.1, (2, 4100)).astype(np.float32)
    got = log_mel(torch.from_numpy(waveform), hop, bands)
    assert got.shape == (2, 4100 // hop, bands)
    for row, sound in zip(got, waveform, strict=True):
        np.testing.assert_allclose(row, naive_log_mel(sound, hop, bands), atol=2e-3)


def test_a_tone_is_loudest_in_its_own_band():
    edges = np.linspace(*(2595 * np.log10(1 + f / 700) for f in (50, 7600)), 66)
    centres = 700 * (10 ** (edges[1:-1] / 2595) - 1)
    for tone in (300.0, 1000.0, 4000.0):
        waveform = torch.sin(2 * math.pi * tone * torch.arange(16000) / 16000)[None]
        loudest = log_mel(waveform, 640, 64)[0, 3:-3].argmax(dim=1)
        expected = int(np.abs(centres - tone).argmin())
        assert (loudest - expected).abs().max() <= 1


# -------------------------------------------------------------------- the self-supervised start

SHORT = WarmStart(
    vision_steps=60,
    vision_batch=16,
    audio_steps=60,
    audio_batch=4,
    audio_seconds=0.25,
    text_steps=60,
    text_batch=8,
    lr=3e-3,
    change_size=4,
    mel_bands=16,
)


def first_and_last(losses):
    return float(np.mean(losses[:5])), float(np.mean(losses[-5:]))


def moving_squares(count=6, steps=8):
    """A bright square that moves: what changes between two frames can be seen in them."""
    frames = torch.full((count, steps, 3, 16, 16), 20, dtype=torch.uint8)
    for i in range(count):
        for t in range(steps):
            left = (2 * t + i) % 12
            frames[i, t, :, 4:10, left : left + 5] = 220
    return list(frames)


def test_vision_learns_what_changes():
    losses = warm_vision(vision(), moving_squares(), SHORT, seed=0)
    first, last = first_and_last(losses)
    assert len(losses) == SHORT.vision_steps
    assert first > 0.9  # at the start no better than "nothing changes"
    assert last < 0.8 * first


def test_audio_learns_the_energies_and_works_without_a_mask_vector_of_its_own():
    hearer = audio()
    assert not hasattr(hearer.model, "masked_spec_embed")
    losses = warm_audio(hearer, clips().waveforms, SHORT, seed=0)
    first, last = first_and_last(losses)
    assert len(losses) == SHORT.audio_steps
    assert last < 0.8 * first


def test_text_learns_hidden_words():
    reader = text()
    losses = warm_text(reader, WORDS * 4, SHORT, seed=0)
    first, last = first_and_last(losses)
    assert first == pytest.approx(math.log(len(reader.tokenizer)), rel=0.25)  # all words alike
    assert last < 0.8 * first


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


def test_the_start_repeats_itself():
    def once():
        torch.manual_seed(0)
        seer = vision()
        losses = warm_vision(seer, moving_squares(), dataclasses.replace(SHORT, vision_steps=3), 5)
        return losses, seer.state_dict()

    (first, weights), (second, again) = once(), once()
    assert first == second
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize(
    ("start", "make", "what"),
    [(warm_vision, vision, "frames"), (warm_audio, audio, "sound"), (warm_text, text, "transcr")],
)
def test_a_start_without_data_says_so(start, make, what):
    with pytest.raises(ValueError, match=f"{what}.*has none"):
        start(make(), [], SHORT, 0)


# ----------------------------------------------------------------------------------- one batch


def test_no_label_can_get_in():
    assert {f.name for f in dataclasses.fields(Clips)} == {"ids", "frames", "waveforms", "texts"}
    table = pd.DataFrame({"id": ["00000", "00001", "00002"], "transcript": ["a", None, "c"]})
    table["split"] = ["train", "train", "validation"]
    given = []
    for label in (0.0, 1.0):
        labelled = table.assign(**dict.fromkeys(EMOTIONS, label))
        stores = {
            "frames": {"00000": np.zeros((2, 3, 4, 4), np.uint8), "00001": None},
            "waveform": {"00000": None, "00001": np.array([0, -32768, 16384], np.int16)},
        }
        space = SimpleNamespace(clips=labelled, unlabelled=table[:0], media=stores)
        given.append(Workspace.pretraining_clips(space))
    first, second = given
    assert first.ids == second.ids == ["00000", "00001"]  # training clips alone
    assert first.texts == second.texts == ["a", ""]
    assert first.frames[1] is None
    assert first.waveforms[0] is None
    assert torch.equal(first.waveforms[1], torch.tensor([0.0, -1.0, 0.5]))


def test_clips_without_words_or_media_are_left_out():
    some = clips(6)
    some.texts[0], some.frames[1], some.waveforms[2] = "", None, None
    some.frames[3], some.waveforms[4] = some.frames[3][:0], torch.zeros(100)
    assert usable(some, vision()) == [2, 4, 5]
    assert usable(some, audio()) == [1, 3, 5]


def test_a_frame_of_each_stretch_in_order():
    looker = vision().eval()
    frames = clips(9).frames  # of 3 to 11 frames
    seen = []

    def draw(high):
        seen.append(high)
        return torch.tensor(high - 1)  # always the last of a stretch

    picked = [clip[drawn_frames(len(clip), draw)] for clip in frames]
    hidden, valid = encoded_frames(looker, picked)
    assert hidden.shape == (9, 8, looker.dim)
    assert valid.sum(1).tolist() == [3, 4, 5, 6, 7, 8, 8, 8, 8]
    assert min(seen) == 1
    assert max(seen) == 2  # 11 frames in 8 stretches
    for clip, row, real in zip(frames, hidden, valid, strict=True):
        stretches = int(real.sum())
        ends = [len(clip) * (k + 1) // stretches - 1 for k in range(stretches)]
        torch.testing.assert_close(row[real], looker(clip[ends]), rtol=1e-4, atol=1e-5)
        assert (row[~real] == 0).all()


def test_every_length_gives_distinct_frames():
    for length in (*range(1, 40), 1249, 2591):
        picked = drawn_frames(length, lambda high: torch.randint(high, ()))
        assert picked == sorted(set(picked))
        assert len(picked) == min(8, length)


def naive_loss(media, words, texts, scale, symmetric):
    """Eq. 1 by two loops, equal transcripts left out of each other's denominator."""
    plain = [" ".join(t.lower().split()) for t in texts]

    def direction(queries, keys):
        total = 0.0
        for i, query in enumerate(queries):
            others = [j for j in range(len(keys)) if j == i or plain[j] != plain[i]]
            terms = [math.exp(scale * float(query @ keys[j])) for j in others]
            total -= math.log(math.exp(scale * float(query @ keys[i])) / sum(terms))
        return total / len(queries)

    loss = direction(media, words)
    return (loss + direction(words, media)) / 2 if symmetric else loss


@pytest.mark.parametrize("side", ["frames", "audio"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_duplicates_are_not_negatives(side, symmetric):
    some = clips(6)  # sentences 0, 1, 2, 3, 0, 1
    some.texts[4] = "What a  lovely surprise"  # the same words
    plan = dataclasses.replace(PLAN, train_encoders=False, symmetric=symmetric, audio_seconds=5.0)
    some.frames = [f[:3] for f in some.frames]  # so that every frame is looked at
    run = stage_one._Run(encoder(side), text(), some, plan, 0, torch.device("cpu"))
    rows = [5, 0, 1, 4, 2]
    got = run.gradient(rows)
    with torch.no_grad():
        states = [run.media_states([i], [run.cut(i)]) for i in rows]
        media = torch.cat([run.pair.embed_media(*state) for state in states]).numpy()
        texts = [some.texts[i] for i in rows]
        words = [run.pair.embed_text(run.text(**run.text.tokens([t]))) for t in texts]
        scale = run.pair.logit_scale.item()
    words = torch.cat(words).numpy()
    assert got == pytest.approx(naive_loss(media, words, texts, scale, symmetric), rel=1e-4)
    blind = naive_loss(media, words, list("abcde"), scale, symmetric)
    assert abs(blind - got) > 0.05  # with duplicates as negatives it is another number


@pytest.mark.parametrize("side", ["frames", "audio"])
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_give_the_gradient_of_the_whole_batch(side, chunk):
    rows, found = [5, 0, 1, 4, 2], []
    media, words = encoder(side), text()
    for size in (None, chunk):
        plan = dataclasses.replace(PLAN, chunk=size)
        run = stage_one._Run(media, words, clips(), plan, 0, torch.device("cpu"))
        run.media.eval()  # no dropout, which would be drawn otherwise
        run.text.eval()
        loss = run.gradient(rows)
        found.append((loss, [p.grad for p in run.parameters if p.grad is not None]))
    (whole, expected), (parts, got) = found
    assert parts == pytest.approx(whole, rel=1e-5)
    for g, e in zip((g for g in got if g.any()), (e for e in expected if e.any()), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-3, atol=1e-6)


# ------------------------------------------------------------------------------------ the run


@pytest.mark.parametrize("side", ["frames", "audio"])
def test_learning_rate_follows_equation_10(side):
    history = pretrain(encoder(side), text(), clips(), PLAN, seed=0).history
    per_epoch = 2  # 9 clips in batches of 4, the rest left out
    cycle = PLAN.cycle_epochs * per_epoch
    assert len(history) == PLAN.epochs * per_epoch
    for step, row in enumerate(history):
        cosine = math.cos(math.pi * (step % cycle) / cycle)
        expected = PLAN.lr_min + (PLAN.lr_max - PLAN.lr_min) * (1 + cosine) / 2
        assert row["lr"] == pytest.approx(expected, rel=1e-12)
        assert (row["step"], row["epoch"]) == (step, step // per_epoch)
        assert 0 < row["logit_scale"] <= 100


def same(first, second) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("side", ["frames", "audio"])
def test_a_killed_run_goes_on_to_the_same_bits(side, tmp_path):
    media, words = encoder(side), text()
    whole = pretrain(media, words, clips(), PLAN, seed=3)

    def kill(done, total):
        assert total == 8
        if done == 5:  # in the middle of the third epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(media, words, clips(), PLAN, seed=3, checkpoint=tmp_path, progress=kill)
    torch.manual_seed(99)  # whatever else has drawn meanwhile
    done = []
    resumed = pretrain(
        media,
        words,
        clips(),
        PLAN,
        seed=3,
        checkpoint=tmp_path,
        progress=lambda step, _: done.append(step),
    )
    assert done == [5, 6, 7, 8]  # two epochs were kept
    assert resumed.history == whole.history
    for name in ("media", "text", "pair"):
        assert same(getattr(resumed, name), getattr(whole, name)), name


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    short = dataclasses.replace(PLAN, epochs=1)
    pretrain(vision(), text(), clips(), short, seed=0, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="another plan, seed, side"):
        pretrain(vision(), text(), clips(), short, seed=1, checkpoint=tmp_path)


def test_given_encoders_and_the_callers_draws_stay_as_they_are():
    media, words = vision(), text()
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (media, words)]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    done = pretrain(media, words, clips(), dataclasses.replace(PLAN, epochs=1), seed=0)
    assert torch.equal(torch.rand(3), expected)
    for module, state in zip((media, words), before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert not same(done.media, media)
    assert not same(done.text, words)
    assert not done.media.training


def test_heads_alone():
    plan = dataclasses.replace(PLAN, epochs=1, train_encoders=False)
    media, words = audio(), text()
    done = pretrain(media, words, clips(), plan, seed=0)
    assert same(done.media, media)
    assert same(done.text, words)
    heads = [stage_one.ContrastivePair(media.dim, words.dim, plan.width, plan.segments)]
    assert not same(done.pair, heads[0])
    assert all(p.requires_grad for p in done.pair.parameters())


def test_sentences_find_their_pictures():
    some = clips(16)
    # Long enough to leave the plateau on which two of the four sentences are taken for one.
    plan = dataclasses.replace(PLAN, epochs=150, cycle_epochs=150, lr_max=1e-3, batch_size=8)
    done = pretrain(vision(), text(), some, plan, seed=0)
    losses = [row["loss"] for row in done.history]
    with torch.no_grad():
        hidden = [done.media(f) for f in some.frames]
        media = torch.cat([done.pair.embed_media(h[None]) for h in hidden])
        words = done.pair.embed_text(done.text(**done.text.tokens(some.texts)))
    own = torch.tensor([WORDS.index(t) for t in some.texts])
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])
    assert recall_at(media, words, 1, own) == 1.0  # a quarter by chance


def test_too_few_clips_say_what_is_missing():
    some = clips(3)
    some.texts[:2] = "", ""
    with pytest.raises(ValueError, match=r"of audio needs at least 2 clips .* came 1"):
        pretrain(audio(), text(), some, PLAN, seed=0)


# ------------------------------------------------------------------------- what Stage I brought


def test_before_are_the_heads_the_run_begins_with():
    media, words = vision(), text()
    run = stage_one._Run(media, words, clips(), PLAN, 4, torch.device("cpu"))
    assert same(alignment.initial_pair(media.dim, words.dim, PLAN, seed=4), run.pair)


def test_pooled_leaves_out_what_lacks_a_side():
    random = np.random.default_rng(0)
    frames = [random.normal(size=(n, 5)) for n in (1, 4, 9, 20)]
    frames[2] = None
    texts = [WORDS[0], "", WORDS[1], WORDS[0].upper()]
    data = alignment.pooled(FeatureSet.from_arrays(range(4), frames), "frames", text(), texts, 3)
    assert data.rows.tolist() == [0, 3]
    assert data.groups[0] == data.groups[1]  # the same words
    thirds = [part.mean(axis=0) for part in np.split(frames[3], [7, 14])]
    np.testing.assert_allclose(data.media[1], np.mean(thirds, axis=0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="at least 2 clips with frames and words, came 1"):
        alignment.pooled(
            FeatureSet.from_arrays(range(4), frames), "frames", text(), [WORDS[0]] + [""] * 3, 3
        )


def test_heads_alone_bring_random_pairs_together():
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(32, 12, generator=generator)
    data = alignment.Pooled(np.arange(32), both[:, :8], both @ torch.randn(12, 6), torch.arange(32))
    plan = dataclasses.replace(PLAN, epochs=60, cycle_epochs=60, lr_max=1e-2, batch_size=16)
    before = alignment.measures(alignment.initial_pair(8, 6, plan), data)
    after = alignment.measures(alignment.fit_heads(data, plan), data)
    assert after["recall@5"] > 2 * before["recall@5"]
    assert after["alignment"] < before["alignment"]


def test_chance_is_that_of_random_orders():
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8])
    random, hits = np.random.default_rng(0), {1: [], 5: [], 10: []}
    for _ in range(4000):
        order = groups.numpy()[random.permutation(12)]
        query = groups.numpy()[random.integers(12)]
        for k, found in hits.items():
            found.append(query in order[:k])
    expected = alignment.chance(groups)
    for k, found in hits.items():
        assert expected[f"recall@{k}"] == pytest.approx(np.mean(found), abs=0.03)
    assert alignment.chance(torch.arange(3)) == {
        "recall@1": 1 / 3,
        "recall@5": 1.0,
        "recall@10": 1.0,
    }


def test_dominant_emotion():
    target = np.array([[0.0, 0.5, 0.2], [0, 0, 0], [0.4, 0.4, 0.1], [1, 0, 0]])
    assert alignment.dominant(target, "abc").tolist() == ["b", "none", "several", "a"]


def test_neighbour_agreement_is_that_of_loops():
    random = np.random.default_rng(0)
    points = random.normal(size=(30, 4))
    labels = random.choice(np.array(["a", "b", "none", "several"], dtype=object), 30)
    kept = [i for i in range(30) if labels[i] in ("a", "b")]
    shares, expected = [], []
    for i in kept:
        others = [j for j in kept if j != i]

        def cosine(j, i=i):
            return points[i] @ points[j] / np.linalg.norm(points[i]) / np.linalg.norm(points[j])

        nearest = sorted(others, key=cosine, reverse=True)[:5]
        shares.append(np.mean([labels[j] == labels[i] for j in nearest]))
        expected.append(np.mean([labels[j] == labels[i] for j in others]))
    found = alignment.neighbour_agreement(points, labels, k=5)
    assert found["clips"] == len(kept)
    assert found["neighbours"] == pytest.approx(np.mean(shares))
    assert found["chance"] == pytest.approx(np.mean(expected))
