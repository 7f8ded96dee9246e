"""Extraction against single clips, plain loops, other batches, restarts and another device."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from test_stage_one import WORDS, audio, text, vision
from torch._dynamo.testing import CompileCounter

from emilib.cache import Cache
from emilib.features import encoders as encoders_module
from emilib.features import extraction
from emilib.features.encoders import (
    AudioEncoder,
    VisionEncoder,
)
from emilib.features.extraction import (
    Batching,
    encode_frames,
    encode_texts,
    encode_waveforms,
    extract,
)
from emilib.features.loading import small_audio, small_text, small_vision
from emilib.features.store import SHARD, build
from emilib.profiles import SMALL_AUDIO, SMALL_TEXT, SMALL_VISION

SMALL = Batching(frames=10, sounds=3, seconds=2.0, tokens=20)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def close(found, expected, tolerance=2e-3):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def spy(monkeypatch, module, seen):
    """Keep the shape of the first input of every pass through a module."""
    forward = module.forward

    def looked_at(first=None, *rest, **named):
        first = named["input_ids"] if first is None else first
        seen.append(tuple(first.shape))
        return forward(**named) if named else forward(first, *rest)

    monkeypatch.setattr(module, "forward", looked_at)


@pytest.fixture(scope="module")
def extracted():
    """40 clips (more than one shard) encoded together, with what they were made of."""
    torch.manual_seed(0)
    encoders = {"vision": vision(), "audio": audio(), "text": text()}
    random = np.random.default_rng(0)
    frames = [random.integers(0, 255, (1 + i % 7, 3, 16, 16), np.uint8) for i in range(40)]
    sounds = [random.normal(0, 3000, 1000 + 431 * (i * 7 % 40)).astype(np.int16) for i in range(40)]
    texts = [WORDS[i % 4] + " really" * (i % 3) for i in range(40)]
    frames[3], sounds[5], texts[7] = None, None, ""
    frames[8], sounds[9] = frames[8][:0], sounds[9][:300]
    frames[34], sounds[34], texts[34] = None, None, ""
    rows = list(extract(encoders, iter(frames), iter(sounds), texts, device="cpu"))
    return encoders, frames, sounds, texts, rows


def test_missing_media_give_none_and_order_is_kept(extracted):
    _, frames, sounds, _, rows = extracted
    assert len(rows) == 40
    assert [i for i, r in enumerate(rows) if r["frames"] is None] == [3, 8, 34]
    assert [i for i, r in enumerate(rows) if r["audio"] is None] == [5, 9, 34]
    assert [i for i, r in enumerate(rows) if r["text"] is None] == [7, 34]
    for clip, row in zip(frames, rows, strict=True):
        assert row["frames"] is None or len(row["frames"]) == len(clip)
    assert all(r["text"].shape == (1, 16) for r in rows if r["text"] is not None)
    arrays = [a for r in rows for a in r.values() if a is not None]
    assert {a.dtype for a in arrays} == {np.dtype(np.float16)}
    assert all(np.isfinite(a).all() for a in arrays)
    lengths = [len(s) for i, s in enumerate(sounds) if s is not None and i != 9]
    assert len(set(lengths)) > 30  # so padding was at work


def test_a_clip_in_a_batch_equals_the_clip_alone(extracted):
    encoders, frames, sounds, texts, rows = extracted
    for i in (0, 6, 11, 31, 33, 39):
        (alone,) = extract(encoders, [frames[i]], [sounds[i]], [texts[i]], device="cpu")
        for name, features in alone.items():
            close(features, rows[i][name])


def test_features_are_those_of_the_encoders(extracted):
    encoders, frames, sounds, texts, rows = extracted
    with torch.no_grad():
        for i in (1, 20, 38):
            seen = encoders["vision"](torch.from_numpy(frames[i]))
            sound = torch.from_numpy(sounds[i] / 32768).float()[None]
            heard, valid = encoders["audio"](sound, torch.ones_like(sound, dtype=torch.bool))
            read = encoders["text"](**encoders["text"].tokens([texts[i]]))
            assert valid.all()
            for name, one in (("frames", seen), ("audio", heard[0]), ("text", read)):
                close(rows[i][name], one.numpy())


def test_an_encoder_in_training_mode_has_no_dropout(extracted):
    encoders, frames, sounds, texts, rows = extracted
    for module in encoders.values():
        module.train()
    (again,) = extract(encoders, frames[:1], sounds[:1], texts[:1], device="cpu")
    close(again["frames"], rows[0]["frames"])


def test_columns_of_different_length_are_refused(extracted):
    with pytest.raises(ValueError, match="zip"):
        list(extract(extracted[0], [None, None], [None], ["a", "b"], device="cpu"))


@pytest.mark.parametrize("fields", [{"frames": 0}, {"seconds": -1.0}, {"precision": "fp8"}])
def test_batching_that_cannot_be_is_refused(fields):
    with pytest.raises(ValueError, match="expected"):
        Batching(**fields)


# -------------------------------------------------------------------------------------- batches


def test_frames_of_many_clips_fill_a_batch(extracted, monkeypatch):
    encoders, frames, *_, rows = extracted
    seen = []
    spy(monkeypatch, encoders["vision"], seen)
    clips = list(frames[:12])
    clips[4] = np.zeros((4, 3, 20, 24), np.uint8)  # another size, so another batch
    found = encode_frames(encoders["vision"], clips, SMALL)
    count = sum(len(clip) for clip in clips if clip is not None and clip.shape[-1] == 16)
    expected = [10] * (count // 10) + [count % 10]
    assert seen == [(n, 3, 16, 16) for n in expected] + [(4, 3, 20, 24)]
    for i, features in enumerate(found):
        if i == 4:
            close(features, encode_frames(encoders["vision"], [clips[4]])[0])
        elif clips[i] is not None and len(clips[i]):
            close(features, rows[i]["frames"])
        else:
            assert features is None


def test_padded_sound_has_a_bound(extracted, monkeypatch):
    encoders, _, sounds, _, rows = extracted
    seen = []
    spy(monkeypatch, encoders["audio"], seen)
    found = encode_waveforms(encoders["audio"], sounds, batching=SMALL)
    limit = SMALL.seconds * 16000
    assert all(count <= SMALL.sounds and count * samples <= limit for count, samples in seen)
    assert seen[0][0] == SMALL.sounds  # the short ones: by number
    assert seen[-1][0] == 1  # the long ones: by length
    assert [samples for _, samples in seen] == sorted(samples for _, samples in seen)
    for features, row in zip(found, rows, strict=True):
        assert (features is None) == (row["audio"] is None)
        if features is not None:
            close(features, row["audio"])


def test_padded_tokens_have_a_bound(extracted, monkeypatch):
    encoders, *_, texts, rows = extracted
    seen = []
    spy(monkeypatch, encoders["text"], seen)
    found = encode_texts(encoders["text"], texts, SMALL)
    assert len(seen) > 3
    assert all(count == 1 or count * tokens <= SMALL.tokens for count, tokens in seen)
    assert [tokens for _, tokens in seen] == sorted(tokens for _, tokens in seen)
    for features, row in zip(found, rows, strict=True):
        assert (features is None) == (row["text"] is None)
        if features is not None:
            close(features, row["text"])


def test_no_more_than_a_shard_is_asked_for(extracted):
    encoders, frames, sounds, texts, _ = extracted
    asked = []

    def one_by_one(clips):
        for clip in clips:
            asked.append(1)
            yield clip

    made = extract(encoders, one_by_one(frames * 2), iter(sounds * 2), texts * 2, device="cpu")
    next(made)
    assert len(asked) == SHARD
    for _ in range(SHARD):
        next(made)
    assert len(asked) == 2 * SHARD


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_averages_are_those_of_a_loop(every):
    states = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([states[k : k + every].mean(dim=0) for k in range(0, 20, every)])
    torch.testing.assert_close(extraction._averaged(states, every), expected)
    torch.testing.assert_close(extraction._averaged(states[:1], every), states[:1])


# ----------------------------------------------------------------------------------- long sound


def test_pieces_cover_the_steps_of_the_whole(monkeypatch):
    encoder = audio()
    monkeypatch.setattr(extraction, "LONGEST", 1.0)
    for samples in (encoder.shortest, 15_999, 16_000, 16_400, 35_000, 100_003):
        cut = extraction.pieces(encoder, samples)
        lengths = torch.tensor([stop - start for start, stop in cut])
        assert lengths.max() <= 16_000
        assert encoder.steps(lengths).sum() == encoder.steps(torch.tensor(samples))
        assert cut[0][0] == 0
        assert samples - encoder.stride < cut[-1][1] <= samples
        if len(cut) > 1:
            assert lengths.max() - lengths.min() <= encoder.stride


@torch.no_grad()
def test_the_convolutions_see_the_whole_in_its_pieces(monkeypatch):
    encoder = audio().eval()
    monkeypatch.setattr(extraction, "LONGEST", 0.5)
    sound = torch.randn(1, 30_000, generator=torch.Generator().manual_seed(0))
    convolutions = encoder.model.feature_extractor
    joined = [convolutions(sound[:, a:b]) for a, b in extraction.pieces(encoder, 30_000)]
    assert len(joined) == 4
    torch.testing.assert_close(torch.cat(joined, dim=-1), convolutions(sound))


def test_long_sound_is_the_states_of_its_pieces_normalised_as_a_whole(monkeypatch):
    torch.manual_seed(0)
    small = audio()
    encoder = AudioEncoder(small.model, normalise=True).eval()
    monkeypatch.setattr(extraction, "LONGEST", 0.5)
    random = np.random.default_rng(0)
    loudness = np.linspace(100, 8000, 30_000)  # pieces of their own would be scaled differently
    long = (random.normal(0, 1, 30_000) * loudness + 500).astype(np.int16)
    short = random.normal(0, 3000, 5000).astype(np.int16)
    found = encode_waveforms(encoder, [long, None, short], 3, SMALL)
    for sound, features in ((long, found[0]), (short, found[2])):
        scaled = (sound - sound.mean()) / sound.std()
        rows = []
        for start, stop in extraction.pieces(encoder, len(sound)):
            piece = torch.from_numpy(scaled[start:stop]).float()[None]
            with torch.no_grad():
                rows.append(small(piece, torch.ones_like(piece, dtype=torch.bool))[0][0])
        close(features, extraction._averaged(torch.cat(rows), 3).numpy())
    assert len(found[0]) == -(-int(encoder.steps(torch.tensor(30_000))) // 3)


# ------------------------------------------------------------------------------ too little memory


def forgetful(monkeypatch, module, most):
    """A module on a device that has no memory for more than `most` items."""
    forward = module.forward

    def limited(first=None, *rest, **named):
        if len(first if first is not None else named["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 EiB.")
        return forward(**named) if named else forward(first, *rest)

    monkeypatch.setattr(module, "forward", limited)


def test_out_of_memory_halves_the_batches_and_goes_on(extracted, monkeypatch):
    encoders, frames, sounds, texts, rows = extracted
    said = []
    monkeypatch.setattr(extraction, "_say_once", said.append)
    for encoder in encoders.values():
        forgetful(monkeypatch, encoder, 3)
    again = list(extract(encoders, frames, sounds, texts, device="cpu"))
    for row, other in zip(rows, again, strict=True):
        for name, features in row.items():
            assert (features is None) == (other[name] is None)
            if features is not None:
                close(other[name], features)
    assert "cpu: too little memory for full batches, now 3 frames at a time" in said
    assert any(line.endswith("waveforms at a time") for line in said)


def test_a_line_about_memory_is_said_once(monkeypatch, capsys):
    monkeypatch.delenv("EMI_PROGRESS", raising=False)
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    extraction._say_once.cache_clear()
    for _ in range(2):
        extraction._say_once("too little")
    assert capsys.readouterr().err == "too little\n"


def test_one_item_that_does_not_fit_is_said_so(extracted, monkeypatch):
    encoders, frames, *_ = extracted
    forgetful(monkeypatch, encoders["vision"], 0)
    with pytest.raises(RuntimeError, match=r"one frame at a time on cpu.*Tried.*end what else"):
        encode_frames(encoders["vision"], frames[:3])


# --------------------------------------------------------------------------------------- compile


def test_every_batch_of_a_compiled_network_is_full(extracted, monkeypatch):
    encoders, frames, *_, rows = extracted
    seen = []
    spy(monkeypatch, encoders["vision"], seen)
    found = encode_frames(encoders["vision"], frames[:12], dataclasses.replace(SMALL, compile=True))
    assert set(seen) == {(10, 3, 16, 16)}
    for features, row in zip(found, rows, strict=False):
        if features is not None:
            close(features, row["frames"])


def test_a_network_is_compiled_once_and_gives_the_same_features(extracted, monkeypatch):
    """With a compiler that changes nothing: torch's own takes half a minute on a CPU."""
    encoders, frames, *_, rows = extracted
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    network = extraction.compiled(encoders["vision"])
    assert isinstance(network, VisionEncoder)
    batching = dataclasses.replace(SMALL, compile=True)
    for part in (slice(0, 5), slice(5, 12)):
        found = encode_frames(network, frames[part], batching)
        for features, row in zip(found, rows[part], strict=True):
            if features is not None:
                close(features, row["frames"])
    assert counter.frame_count == 1


# ---------------------------------------------------------------------------------------- shards


def test_a_killed_run_goes_on_with_the_missing_shards_to_the_same_bits(extracted, tmp_path):
    encoders, frames, sounds, texts, _ = extracted
    ids = [f"{i:05d}" for i in range(100)]
    decoded = []

    def run(folder, stop_after=None):
        def decode(wanted):
            for number, id_ in enumerate(wanted):
                if number == stop_after:
                    raise KeyboardInterrupt
                decoded.append(id_)
                yield frames[int(id_) % 40]

        def produce(wanted):
            heard = (sounds[int(i) % 40] for i in wanted)
            words = [texts[int(i) % 40] for i in wanted]
            yield from extract(encoders, decode(wanted), heard, words, 2, device="cpu")

        names = ("frames", "audio", "text")
        return build(Cache(folder), "features", {}, ids, produce, names)

    whole = run(tmp_path / "whole")
    decoded.clear()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stop_after=2 * SHARD + 5)
    decoded.clear()
    again = run(tmp_path / "killed")
    assert decoded == ids[2 * SHARD :]
    for name, stored in again.items():
        for id_ in ids:
            one, other = stored[id_], whole[name][id_]
            assert (one is None) == (other is None)
            assert one is None or one.tobytes() == other.tobytes()


# --------------------------------------------------------------------------------- other devices


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ]
)
def device(request, monkeypatch):
    """A device beside the CPU; where there is none, the CPU on a GPU's way through the code."""
    monkeypatch.setattr(encoders_module, "_has_byte_kernel", lambda device: False)
    return request.param


def families():
    """An encoder of each kind, with pictures to be resized and long sound.

    Not the tiny ones from above: oneDNN's bf16 convolution is wrong for their 8 channels.
    """
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    frames = [random.integers(0, 256, (n, 3, 80, 112), np.uint8) for n in (1, 5, 12)]
    sounds = [random.normal(0, 3000, n).astype(np.int16) for n in (2000, 9000, 40_000)]
    made = {
        "vision": small_vision(SMALL_VISION),
        "audio": AudioEncoder(small_audio(SMALL_AUDIO).model, normalise=True),
        "text": small_text(SMALL_TEXT, WORDS, max_tokens=64),
    }
    return made, frames, sounds, WORDS[:3]


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_another_device_gives_the_same_features(device, precision, monkeypatch):
    monkeypatch.setattr(extraction, "LONGEST", 1.0)
    encoders, *clips = families()
    with monkeypatch.context() as plain:
        plain.setattr(encoders_module, "_has_byte_kernel", lambda device: device.type == "cpu")
        expected = list(extract(encoders, *clips, device="cpu"))
    batching = Batching.on(device, precision=precision, frames=8)
    found = list(extract(encoders, *clips, device=device, batching=batching))
    for name in ("frames", "audio", "text"):
        ours, theirs = (np.concatenate([row[name] for row in rows]) for rows in (found, expected))
        assert ours.dtype == np.float16
        assert ours.shape == theirs.shape
        error = np.sqrt(np.square(ours.astype(float) - theirs).mean()) / theirs.astype(float).std()
        assert error <= extraction.TOLERANCE[precision], name
        if precision == "bf16":
            assert error > 1e-4, f"{name} was not computed in bf16"
    assert next(encoders["vision"].parameters()).device.type == device


def test_what_a_gpu_gets_by_default():
    assert Batching.on("cuda").precision == "bf16"
    assert Batching.on("cuda", precision=None).precision is None
    assert Batching.on("cpu") == Batching()
    assert Batching.on("cuda", compile=True).compile
