"""Transcripts: from files, from a small Whisper checkpoint written here, or none."""

import functools
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
import whisper
from conftest import sine
from conftest import write_media as write
from whisper.model import ModelDimensions

from emilib.cache import Cache
from emilib.features import store
from emilib.features import transcripts as speech


def write_whisper(path):
    """A random Whisper in openai-whisper's own file format; its context is the real one."""
    dims = ModelDimensions(
        n_mels=80,
        n_audio_ctx=1500,
        n_audio_state=16,
        n_audio_head=2,
        n_audio_layer=1,
        n_vocab=51865,
        n_text_ctx=24,
        n_text_state=16,
        n_text_head=2,
        n_text_layer=1,
    )
    torch.manual_seed(0)
    model = whisper.model.Whisper(dims)
    with torch.no_grad():  # its own zero positions would make all clips alike
        model.decoder.positional_embedding.normal_()
    torch.save({"dims": asdict(dims), "model_state_dict": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_whisper(tmp_path_factory.mktemp("weights") / "tiny-random.pt")


@pytest.fixture(scope="module")
def model(checkpoint):
    return speech.load_whisper(checkpoint, "cpu")


@pytest.fixture(autouse=True)
def no_weights_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("EMI_WEIGHTS", raising=False)


def waveforms():
    rng = np.random.default_rng(0)
    tone = sine(300, 3, 16000)[0]
    return [tone, rng.normal(0, 0.1, 80000).astype(np.float32), sine(900, 1, 16000)[0]]


def clips(paths, transcripts):
    return pd.DataFrame(
        {
            "id": [f"{n:05d}" for n in range(len(paths))],
            "audio": pd.Series(paths, dtype=object),
            "video": pd.Series([None] * len(paths), dtype=object),
            "transcript": pd.Series(transcripts, dtype=object),
        }
    )


def test_a_batch_gives_the_tokens_of_each_clip_alone(model):
    windows = [speech.Window(n, samples) for n, samples in enumerate(waveforms())]
    together = speech.decode_windows(model, windows)
    for window, result in zip(windows, together, strict=True):
        mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(window.samples), n_mels=80)
        options = whisper.DecodingOptions(language="en", without_timestamps=True, fp16=False)
        alone = whisper.decode(model, mel, options)
        assert result.tokens == alone.tokens
        assert result.tokens
        assert result.no_speech_prob == pytest.approx(alone.no_speech_prob, rel=1e-3)


def test_batch_size_changes_nothing(model):
    sounds = [*waveforms(), None]
    one = speech.transcribe(model, sounds, batch_size=1)
    assert one == speech.transcribe(model, sounds, batch_size=3)
    assert len(one) == 4
    assert all(one[:3])
    assert one[3] == ""


class Silent:
    """Stands in the place of a model; being asked is a failure."""

    def __getattr__(self, name):
        raise AssertionError(f"the model was asked for {name}")


def test_silence_is_empty_without_the_model_being_asked():
    quiet = np.random.default_rng(0).normal(0, 1e-4, 16000).astype(np.float32)
    assert speech.transcribe(Silent(), [np.zeros(16000, np.float32), quiet, None]) == ["", "", ""]


def test_what_the_model_takes_for_no_speech_is_empty(model, monkeypatch):
    found = speech.decode_windows(model, [speech.Window(0, waveforms()[0])])[0]
    assert found.text
    monkeypatch.setattr(speech, "NO_SPEECH", found.no_speech_prob)
    assert speech.transcribe(model, waveforms()[:1]) == [found.text]
    monkeypatch.setattr(speech, "NO_SPEECH", found.no_speech_prob * 0.999)
    assert speech.transcribe(model, waveforms()[:1]) == [""]


def test_a_long_clip_is_the_words_of_its_windows_in_order(model):
    rng = np.random.default_rng(1)
    long = rng.normal(0, 0.1, 70 * 16000).astype(np.float32)
    long[speech.WINDOW : 2 * speech.WINDOW] = 0  # the silent window in the middle is left out
    pieces = [long[: speech.WINDOW], long[2 * speech.WINDOW :]]
    expected = " ".join(t for t in speech.transcribe(model, pieces) if t)
    assert speech.transcribe(model, [long]) == [expected]


def test_waveforms_are_taken_as_they_are_needed(model, monkeypatch):
    """No more than a batch of clips is held: the source is asked one clip at a time."""
    handed, decoded = [], []
    decode = speech.decode_windows

    def source():
        for sound in waveforms():
            handed.append(1)
            yield sound

    def counted(model, windows, language):
        decoded.append((len(windows), len(handed)))
        return decode(model, windows, language)

    monkeypatch.setattr(speech, "decode_windows", counted)
    speech.transcribe(model, source(), batch_size=1)
    assert decoded == [(1, 1), (1, 2), (1, 3)]
    speech.transcribe(model, waveforms() * 2, batch_size=4)
    assert [count for count, _ in decoded[3:]] == [4, 2]


def test_a_blip_is_too_short_for_a_word():
    blip = np.random.default_rng(0).normal(0, 0.3, 1024).astype(np.float32)  # 64 ms
    assert speech.transcribe(Silent(), [blip]) == [""]


def test_the_language_is_guessed_for_each_window(model):
    windows = [speech.Window(n, samples) for n, samples in enumerate(waveforms())]
    together = speech.decode_windows(model, windows, language=None)
    for window, result in zip(windows, together, strict=True):
        mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(window.samples), n_mels=80)
        options = whisper.DecodingOptions(language=None, without_timestamps=True, fp16=False)
        alone = whisper.decode(model, mel, options)
        assert (result.language, result.tokens) == (alone.language, alone.tokens)


def test_too_little_memory_halves_a_batch(model, monkeypatch):
    sounds, decode = [*waveforms(), *waveforms()], speech.decode_windows
    expected = speech.transcribe(model, sounds)

    def limited(model, windows, language):
        if len(windows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(model, windows, language)

    monkeypatch.setattr(speech, "decode_windows", limited)
    assert speech.transcribe(model, sounds) == expected


def test_all_from_text_files():
    words, line = speech.transcripts(clips([None, None], ["hello", ""]))
    assert words.tolist() == ["hello", ""]
    assert words.index.tolist() == ["00000", "00001"]
    assert line == "Text: from the text files of all 2 clips."


def test_neither_text_nor_weights():
    words, line = speech.transcripts(clips([None, None], [None, None]))
    assert words.tolist() == [None, None]
    assert line.startswith("Text: none, 2 of 2 clips have no text, as Whisper's weights are not")
    assert "\n" not in line
    words, line = speech.transcripts(clips([None, None], ["hello", None]))
    assert words.tolist() == ["hello", None]
    assert line.startswith("Text: from 1 text files, 1 of 2 clips have no text")


@pytest.mark.parametrize("workers", [0, 2])
def test_whisper_fills_in_what_has_no_file(checkpoint, model, tmp_path, workers):
    paths = []
    for number, hertz in enumerate((300, 500, 700)):
        path = tmp_path / f"{number}.wav"
        write(path, sound=sine(hertz, 1, 16000), sound_codec="pcm_s16le")
        paths.append(str(path))
    write(tmp_path / "3.wav", sound=np.zeros((1, 16000), np.float32), sound_codec="pcm_s16le")
    (tmp_path / "4.wav").write_bytes(b"no sound in here")
    paths += [str(tmp_path / "3.wav"), str(tmp_path / "4.wav")]
    table = clips(paths, [None, "from the file", None, None, None])
    words, line = speech.transcripts(
        table, weights=str(checkpoint), device="cpu", workers=workers, batch_size=2
    )
    sounds = [speech.sound_of((paths[n], None)) for n in (0, 2)]
    first, third = speech.transcribe(model, sounds)
    assert words.tolist() == [first, "from the file", third, "", ""]
    assert first
    assert line == "Text: from 1 text files, from Whisper (tiny-random.pt) for 4 clips."


def test_words_are_kept_by_shards_and_heard_once(checkpoint, tmp_path, monkeypatch):
    paths = []
    for number in range(5):
        path = tmp_path / f"{number}.wav"
        write(path, sound=sine(300 + 100 * number, 1, 16000), sound_codec="pcm_s16le")
        paths.append(str(path))
    table = clips(paths, [None] * 5)
    options = {"weights": str(checkpoint), "device": "cpu"}
    plain, _ = speech.transcripts(table, **options)
    monkeypatch.setattr(speech.store, "SHARD", 2)
    build = functools.partial(store.build, shard_size=2)
    monkeypatch.setattr(speech.store, "build", build)
    heard, sound_of = [], speech.sound_of

    def listened(pair, stop_after=None):
        if len(heard) == stop_after:
            raise KeyboardInterrupt
        heard.append(pair[0])
        return sound_of(pair)

    cache = Cache(tmp_path / "cache")
    monkeypatch.setattr(speech, "sound_of", functools.partial(listened, stop_after=3))
    with pytest.raises(KeyboardInterrupt):
        speech.transcripts(table, cache=cache, **options)
    heard.clear()
    monkeypatch.setattr(speech, "sound_of", listened)
    words, _ = speech.transcripts(table, cache=cache, **options)
    assert heard == paths[2:]  # the first shard was finished
    assert words.tolist() == plain.tolist()
    assert all(words)
    heard.clear()
    assert speech.transcripts(table, cache=cache, **options)[0].tolist() == plain.tolist()
    assert heard == []
    speech.transcripts(table, cache=cache, language=None, **options)
    assert heard == paths  # another language is another question
    write(tmp_path / "0.wav", sound=sine(300, 2, 16000), sound_codec="pcm_s16le")
    heard.clear()
    speech.transcripts(table, cache=cache, **options)
    assert heard == paths  # a file has changed


def test_sound_of_a_video_where_there_is_no_sound_file(tmp_path):
    path = write(tmp_path / "a.mp4", [0, 0.2], sine(300, 1, 16000), clock=Fraction(1, 25))
    assert len(speech.sound_of((None, str(path)))) == pytest.approx(16000, abs=1100)
    assert speech.sound_of((None, None)) is None


def test_weights_are_found_where_they_lie(checkpoint, tmp_path, monkeypatch):
    assert speech.find_weights(str(checkpoint)) == checkpoint
    assert speech.find_weights() is None
    cache = tmp_path / "cache/whisper"
    cache.mkdir(parents=True)
    (cache / "large-v3-turbo.pt").write_bytes(b"x")
    assert speech.find_weights() == speech.find_weights("turbo") == cache / "large-v3-turbo.pt"
    own = tmp_path / "own"
    own.mkdir()
    (own / "large-v3-turbo.pt").write_bytes(b"x")
    monkeypatch.setenv("EMI_WEIGHTS", str(own))
    assert speech.find_weights() == own / "large-v3-turbo.pt"


def test_names_stand_for_the_files_whisper_itself_uses():
    for name, address in whisper._MODELS.items():
        assert speech._checkpoint_name(name) == address.rsplit("/", 1)[1]


def test_asked_for_and_not_there():
    with pytest.raises(ValueError, match=r"no Whisper weights base.*1\.6 GB.*EMI_WEIGHTS"):
        speech.transcripts(clips([None], [None]), weights="base")


def test_another_file_in_the_place_of_weights(tmp_path):
    torch.save({"model_state_dict": {}}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"these are no weights")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ValueError, match=rf"{name} is no Whisper checkpoint"):
            speech.load_whisper(tmp_path / name, "cpu")
