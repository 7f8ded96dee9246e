import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_checkpoints import WORDS, tiny_audio, tiny_text, tiny_vision

from emilib.features import encoders as encoders_module
from emilib.features import extraction
from emilib.features.encoders import AudioEncoder, padded
from emilib.features.extraction import Batching, encode_waveforms, extract
from emilib.features.loading import small_audio, small_text, small_vision
from emilib.features.store import SHARD
from emilib.profiles import SMALL_AUDIO, SMALL_TEXT, SMALL_VISION

SMALL = Batching(frames=10, sounds=3, seconds=2.0, tokens=20)
TOLERANCE = {None: 5e-3, "bf16": 3e-2}  # as extraction promises
NAMES = ("frames", "audio", "text")
INSIDE = {"vision": "forward", "audio": "encode", "text": "forward"}  # what extraction calls


def close(ours, expected, tolerance=2e-3):
    assert (ours is None) == (expected is None)
    if ours is not None:
        assert ours.dtype == np.float16
        np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance)


def all_close(ours, expected):
    for one, other in zip(ours, expected, strict=True):
        close(one, other)


def spy(monkeypatch, module, name):
    """The shapes of the input of every pass."""
    original, seen = getattr(module, name), []

    def watched(*inputs, **named):
        first = [*inputs, *named.values()][0]
        seen.append(tuple(first.shape))
        return original(*inputs, **named)

    monkeypatch.setattr(module, name, watched)
    return seen


@pytest.fixture(scope="module")
def clips():
    """40 clips (more than one shard): encoders, frames, sounds, texts."""
    torch.manual_seed(0)
    encoders = {"vision": tiny_vision(), "audio": tiny_audio(), "text": tiny_text("mean", 32)}
    draw = np.random.default_rng(0)
    frames = [draw.integers(0, 255, (1 + i % 7, 3, 16, 16), np.uint8) for i in range(40)]
    sounds = [draw.normal(0, 3000, 1000 + 431 * (i * 7 % 40)).astype(np.int16) for i in range(40)]
    texts = [WORDS[i % 4] + " really" * (i % 3) for i in range(40)]
    frames[3], sounds[5], texts[7] = None, None, ""
    frames[8], sounds[9] = frames[8][:0], sounds[9][:300]
    frames[34], sounds[34], texts[34] = None, None, ""
    frames[4] = draw.integers(0, 255, (4, 3, 20, 24), np.uint8)  # another size
    return encoders, frames, sounds, texts


@pytest.fixture(scope="module")
def extracted(clips):
    for encoder in clips[0].values():
        encoder.train()  # extraction switches dropout off
    encoders, *media = clips
    return list(extract(encoders, *map(iter, media), device="cpu"))


@torch.no_grad()
def test_features_are_those_of_the_encoders_clip_by_clip(clips, extracted):
    encoders, frames, sounds, texts = clips
    missing = {name: [i for i, r in enumerate(extracted) if r[name] is None] for name in NAMES}
    assert missing == {"frames": [3, 8, 34], "audio": [5, 9, 34], "text": [7, 34]}
    for i, row in enumerate(extracted):
        if row["frames"] is not None:
            close(row["frames"], encoders["vision"](torch.from_numpy(frames[i])).numpy())
        if row["audio"] is not None:
            sound = torch.from_numpy(sounds[i] / 32768).float()
            close(row["audio"], encoders["audio"](*padded([sound]))[0][0].numpy())
        if row["text"] is not None:
            tokens = encoders["text"].tokens([texts[i]])
            close(row["text"], encoders["text"](**tokens).numpy())


def test_batches_are_full_and_their_padding_has_a_bound(clips, extracted, monkeypatch):
    encoders, *media = clips
    seen = {role: spy(monkeypatch, encoders[role], name) for role, name in INSIDE.items()}
    rows = extract(encoders, *(2 * list(column) for column in media), device="cpu", batching=SMALL)
    first = [next(rows) for _ in range(SHARD)]
    for row, expected in zip(first, extracted[:SHARD], strict=True):
        all_close(row.values(), expected.values())
    count = sum(len(c) for c in media[0][:SHARD] if c is not None) - 4
    sizes = [10] * (count // 10) + [count % 10] * (count % 10 > 0)
    assert seen["vision"] == [(n, 3, 16, 16) for n in sizes] + [(4, 3, 20, 24)]
    sounds, limit = seen["audio"], SMALL.seconds * 16000
    assert all(n <= SMALL.sounds and n * samples <= limit for n, samples in sounds)
    assert (sounds[0][0], sounds[-1][0]) == (SMALL.sounds, 1)  # by number, then by length
    assert all(n == 1 or n * tokens <= SMALL.tokens for n, tokens in seen["text"])
    for shapes in (sounds, seen["text"]):
        assert [length for _, length in shapes] == sorted(length for _, length in shapes)


@pytest.mark.parametrize("every", [2, 3, 1000])
def test_steps_are_averaged_in_groups(clips, extracted, every):
    ours = encode_waveforms(clips[0]["audio"], clips[2][:8], every)
    for means, row in zip(ours, extracted, strict=False):
        states = row["audio"]
        if states is not None:
            groups = [states[k : k + every].astype(float) for k in range(0, len(states), every)]
            close(means, np.stack([group.mean(axis=0) for group in groups]))


@given(st.integers(340, 200_000))
@settings(deadline=None, max_examples=60)
def test_pieces_cover_the_steps_of_the_whole(samples):
    encoder = tiny_audio()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "LONGEST", 1.0)
        cut = extraction.pieces(encoder, samples)
    lengths = torch.tensor([stop - start for start, stop in cut])
    assert lengths.max() < 16_000 + encoder.stride  # the rest is no step of its own
    assert encoder.steps(lengths).sum() == encoder.steps(torch.tensor(samples))
    assert cut[0][0] == 0
    assert samples - encoder.stride < cut[-1][1] <= samples
    assert len(cut) == 1 or lengths.max() - lengths.min() <= encoder.stride


@torch.no_grad()
def test_long_audio_is_the_states_of_its_pieces_normalised_as_a_whole(monkeypatch):
    torch.manual_seed(0)
    small = tiny_audio().eval()
    monkeypatch.setattr(extraction, "LONGEST", 0.5)
    draw = np.random.default_rng(0)
    level = np.linspace(100, 8000, 30_000)  # each piece alone would be scaled differently
    long = (draw.normal(0, 1, 30_000) * level + 500).astype(np.int16)
    short = draw.normal(0, 3000, 5000).astype(np.int16)
    encoded = encode_waveforms(AudioEncoder(small.model), [long, None, short], 3, SMALL)
    for sound, features in ((long, encoded[0]), (short, encoded[2])):
        scaled = torch.from_numpy((sound - sound.mean()) / sound.std()).float()
        cut = extraction.pieces(small, len(sound))
        assert len(cut) == (4 if sound is long else 1)
        joined = [small.model.feature_extractor(scaled[None, a:b]) for a, b in cut]
        whole = small.model.feature_extractor(scaled[None])
        torch.testing.assert_close(torch.cat(joined, dim=-1), whole)
        states = torch.cat([small(*padded([scaled[a:b]]))[0][0] for a, b in cut])
        close(features, torch.stack([group.mean(dim=0) for group in states.split(3)]).numpy())


@pytest.mark.parametrize(("limit", "expected"), [(extraction.SMALL, {1}), (0, {3})])
def test_small_encoders_take_one_thread_each(clips, extracted, monkeypatch, limit, expected):
    monkeypatch.setattr(extraction, "SMALL", limit)
    (encoders, *media), seen = clips, set()
    for name in ("encode_frames", "encode_waveforms", "encode_texts"):
        encode = getattr(extraction, name)  # more threads change last bits
        watched = lambda *a, e=encode: seen.add(torch.get_num_threads()) or e(*a)  # noqa: E731
        monkeypatch.setattr(extraction, name, watched)
    torch.set_num_threads(3)
    rows, after = list(extract(encoders, *media, device="cpu")), torch.get_num_threads()
    torch.set_num_threads(1)  # as conftest has it
    assert (seen, after) == (expected, 3)
    for row, other in zip(rows, extracted, strict=True) if limit else ():
        assert all(np.array_equal(row[name], other[name]) for name in NAMES)


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NO_GPU])])
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_another_device_gives_the_same_features(device, precision, monkeypatch):
    """On the CPU in place of a GPU, by the resizing of a GPU. With networks of the usual widths:
    oneDNN's bf16 convolution is wrong for 8 channels."""
    monkeypatch.setattr(extraction, "LONGEST", 1.0)
    torch.manual_seed(0)
    encoders = {
        "vision": small_vision(SMALL_VISION),
        "audio": AudioEncoder(small_audio(SMALL_AUDIO).model, normalise=True),
        "text": small_text(SMALL_TEXT, WORDS, max_tokens=64),
    }
    draw = np.random.default_rng(0)
    frames = [draw.integers(0, 256, (n, 3, 80, 112), np.uint8) for n in (1, 5, 12)]
    sounds = [draw.normal(0, 3000, n).astype(np.int16) for n in (2000, 9000, 40_000)]
    expected = list(extract(encoders, frames, sounds, WORDS[:3], device="cpu"))
    monkeypatch.setattr(encoders_module, "resize", encoders_module.resize_in_passes)
    batching = Batching.on(device, precision=precision, frames=8)
    rows = list(extract(encoders, frames, sounds, WORDS[:3], device=device, batching=batching))
    for name in NAMES:
        ours, theirs = (np.concatenate([r[name] for r in part]) for part in (rows, expected))
        difference = ours.astype(float) - theirs
        error = np.sqrt(np.square(difference).mean()) / theirs.astype(float).std()
        assert error <= TOLERANCE[precision], name
        if precision == "bf16":
            assert error > 1e-4, f"{name} was not computed in bf16"
    assert next(encoders["vision"].parameters()).device.type == device
