import numpy as np
import pandas as pd
import pytest
import small_checkpoints
import whisper
from hypothesis import given, settings
from hypothesis import strategies as st
from in_workers import DRAW, RATE, SOUNDS, decode

from emilib.cache import Cache
from emilib.corpus import media
from emilib.features import transcripts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "large-v3-turbo.pt"
    small_checkpoints.whisper_file(path)
    model = transcripts.load_whisper(path, "cpu")
    model.folder = path.parent
    return model


@pytest.fixture(autouse=True)
def no_weights_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("EMI_WEIGHTS", raising=False)


def test_a_batch_gives_the_tokens_of_each_window_alone(model):
    for sound, result in zip(SOUNDS, transcripts.decode_windows(model, SOUNDS), strict=True):
        mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(sound), n_mels=80)
        options = whisper.DecodingOptions(language="en", without_timestamps=True, fp16=False)
        alone = whisper.decode(model, mel, options)
        assert result.tokens == alone.tokens != []
        assert result.no_speech_prob == pytest.approx(alone.no_speech_prob, rel=1e-3)


def test_the_words_of_a_clip_are_those_of_its_loud_windows(model, monkeypatch):
    """Whatever the batch size; waveforms are read one at a time."""
    long = DRAW.normal(0, 0.1, 70 * RATE).astype(np.float32)
    long[30 * RATE : 60 * RATE] = 0  # the silent window in the middle is left out
    clips = [*SOUNDS[:2], None, long, np.zeros(RATE, np.float32), SOUNDS[2][:1000]]
    parts = [*SOUNDS[:2], long[: 30 * RATE], long[60 * RATE :]]
    words = [transcripts.decode_windows(model, [part])[0].text for part in parts]
    expected = [*words[:2], "", " ".join(words[2:]), "", ""]
    decode, sizes, read = transcripts.decode_windows, [], []

    def limited(model, windows):
        sizes.append((len(windows), len(read)))
        return decode(model, windows)

    monkeypatch.setattr(transcripts, "decode_windows", limited)
    source = (read.append(1) or clip for clip in clips)
    assert transcripts.transcribe(model, source, batch_size=1) == expected
    assert sizes == [(1, 1), (1, 2), (1, 4), (1, 4)]
    assert transcripts.transcribe(model, clips, batch_size=3) == expected
    result = decode(model, SOUNDS[:1])[0]
    for share, words in ((1.0, result.text), (0.999, "")):
        monkeypatch.setattr(transcripts, "NO_SPEECH", share * result.no_speech_prob)
        assert transcripts.transcribe(model, SOUNDS[:1]) == [words]


@given(st.floats(-80, -40), st.integers(1, 4000), st.integers(0, 4000))
@settings(deadline=None)
def test_silence_is_that_of_the_audit(level, loud, quiet):
    waveform = np.zeros(loud + quiet, np.float32)
    waveform[quiet:] = 10 ** (level / 20)
    assert transcripts.silent(waveform) == (media.loudness(waveform, RATE) <= media.SILENCE)


def table(folder, words):
    paths = [folder / f"{number}.txt" for number in range(len(words))]
    for number, path in enumerate(paths):
        path.write_text(str(number) if number < len(SOUNDS) else "")
    columns = {"audio": map(str, paths), "video": None, "transcript": words}
    return pd.DataFrame({"id": [f"{n:05d}" for n in range(len(words))], **columns}, dtype=object)


@pytest.mark.parametrize("words", [["hello", ""], [None, None], ["hello", None]])
def test_without_weights_words_are_those_of_the_files(tmp_path, words):
    series, _ = transcripts.transcripts(table(tmp_path, words), pytest.fail, Cache(tmp_path))
    assert series.to_dict() == {"00000": words[0], "00001": words[1]}
    assert transcripts.heard_key(table(tmp_path, words)) == ""


@pytest.mark.parametrize("workers", [1, 2])
def test_whisper_fills_in_what_has_no_file_once(model, tmp_path, monkeypatch, workers):
    monkeypatch.setenv("EMI_WEIGHTS", str(model.folder))
    clips = table(tmp_path, [None, "from the file", None, None, None])
    cache, told, heard = Cache(tmp_path / "cache"), [], []
    expected = transcripts.transcribe(model, [SOUNDS[0], SOUNDS[2], SOUNDS[3], None])
    expected.insert(1, "from the file")
    tell = lambda *counts: told.append(counts)  # noqa: E731
    series, line = transcripts.transcripts(clips, decode, cache, workers, tell)
    assert series.tolist() == expected
    assert line == "Text: from 1 text files, from Whisper (large-v3-turbo.pt) for 4 clips."
    assert told[-1] == (4, 4)
    again, _ = transcripts.transcripts(clips, pytest.fail, cache)
    assert again.tolist() == expected
    key = transcripts.heard_key(clips)
    (tmp_path / "0.txt").write_text("3   ")
    transcripts.transcripts(clips, lambda paths: heard.append(1) or decode(paths), cache)
    assert len(heard) == 4  # a file has changed
    assert transcripts.heard_key(clips) != key
