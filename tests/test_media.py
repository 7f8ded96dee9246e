import math
import os
import pickle
from fractions import Fraction
from pathlib import PosixPath

import av
import numpy as np
import pytest
from conftest import damage, noise, sine, write_media
from scipy.signal import resample_poly

from emilib.corpus import media
from emilib.corpus.feature_files import load_features
from emilib.corpus.media import MediaError, decode, stated_seconds


def brute_force(path, fps):
    """Exactly what `decode` promises, over all frames by plain PyAV, in whole 90 kHz ticks."""
    first, fps = {}, Fraction(fps or 1000)
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            slot = (round(frame.time * 90000) + 90) * fps // 90000
            first.setdefault(slot, (frame.time, frame.to_ndarray(format="rgb24")))
    return [first[slot] for slot in sorted(first)]


RHYTHMS = {
    "25": np.arange(40) / 25,
    "29.97": np.arange(45) * 1001 / 30000,
    "3": np.arange(8) / 3,
    "variable": np.cumsum(np.random.default_rng(1).uniform(0.01, 0.3, 25)),
    "milliseconds": np.floor(np.arange(45) * 1000 / 30) / 1000,
}


@pytest.mark.parametrize("fps", [5, 1, 7.5, 30, None])
@pytest.mark.parametrize("rhythm", RHYTHMS)
def test_frames_are_those_of_a_brute_force_choice(tmp_path, fps, rhythm):
    times = RHYTHMS[rhythm] - RHYTHMS[rhythm][0]
    path = write_media(tmp_path / "a.mp4", times)
    result, expected = decode(path, fps=fps), brute_force(path, fps)
    np.testing.assert_allclose(result.times, [time for time, _ in expected], atol=1e-6)
    np.testing.assert_array_equal(result.images, [image for _, image in expected])
    assert result.problems == ["no sound track"]
    assert result.duration == pytest.approx(times[-1] * len(times) / (len(times) - 1), rel=1e-3)


def test_time_begins_with_the_file_late_sound_keeps_it_and_a_hole_becomes_silence(tmp_path):
    bare = decode(write_media(tmp_path / "a.h264", np.arange(50) / 25))  # it has no clock
    assert any("time stamp" in problem for problem in bare.problems)
    path = write_media(tmp_path / "a.mpg", np.arange(50) / 25, codec="mpeg1video")
    assert brute_force(path, 5)[0][0] > 0.1  # a program stream begins late
    for result in (bare, decode(path)):
        np.testing.assert_allclose(result.times, np.arange(10) / 5, atol=1e-6)
    path = write_media(tmp_path / "a.mkv", np.arange(50) / 25, sine(440, 1), sound_start=0.7)
    result = decode(path)
    loud = np.flatnonzero(np.abs(result.waveform) > 0.1)[0] / 16000
    assert loud == pytest.approx(0.7, abs=0.08)
    assert any("silence" in problem for problem in result.problems)
    # a file whose time stamps jump by half a second in the middle
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        audio = out.add_stream("pcm_s16le", rate=16000)
        audio.layout = "mono"
        for begin, start in ((0, 0), (16000, 24000)):
            piece = (sine(440, 2)[:, begin : begin + 16000] * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            out.mux(audio.encode(frame))
        out.mux(audio.encode())
    waveform = decode(tmp_path / "a.mkv").waveform
    assert len(waveform) == pytest.approx(40000, abs=40)
    assert np.abs(waveform[16200:23800]).max() == 0
    assert np.abs(waveform[24200:]).max() > 0.4


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [(False, False), (True, False), (False, True)])
def test_images_follow_the_display_matrix(tmp_path, degrees, mirror):
    """Pixel by pixel: x' = a x + c y, y' = b x + d y, then moved to where both begin with 0."""
    path = write_media(tmp_path / "a.mp4", [0], rotation=(degrees, *mirror), size=(16, 32))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        data = frame.side_data.get("DISPLAYMATRIX")
        plain = frame.to_ndarray(format="rgb24")
    matrix = [1, 0, 0, 0, 1] if data is None else np.frombuffer(bytes(data), "<i4") // 65536
    a, b, _, c, d, *_ = map(int, matrix)
    y, x = np.mgrid[: plain.shape[0], : plain.shape[1]]
    column, line = a * x + c * y, b * x + d * y
    column, line = column - column.min(), line - line.min()
    expected = np.empty((line.max() + 1, column.max() + 1, 3), np.uint8)
    expected[line, column] = plain
    np.testing.assert_array_equal(decode(path).images[0], expected)


def test_damaged_frames_are_dropped_counted_and_the_rest_goes_on(tmp_path):
    path = write_media(tmp_path / "a.mp4", np.arange(60) / 25, make=noise, options={"g": "10"})
    damage(path, 0.4, 0.5)
    good, bad = [], 0
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for packet in container.demux(video=0):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                bad += 1
                continue
            bad += sum(frame.is_corrupt for frame in frames)
            good += [frame.time for frame in frames if not frame.is_corrupt]
    result = decode(path, fps=None)
    assert result.damaged == bad > 0
    np.testing.assert_allclose(result.times, good, atol=1e-6)
    assert result.times[-1] > 2.3  # the end of the file was reached
    assert result.problems[0].startswith(f"{bad} damaged frames")
    _, first = np.unique(np.floor((result.times + 1e-3) * 5), return_index=True)
    # a damaged frame gives its slot to the next good one
    np.testing.assert_array_equal(decode(path).times, result.times[first])


@pytest.mark.parametrize("rotation", [None, (90, False, False)])
def test_size_is_the_middle_square_of_an_image_made_small(tmp_path, rotation):
    path = write_media(tmp_path / "a.mp4", np.arange(25) / 25, size=(120, 200), rotation=rotation)
    result, full = decode(path, size=30).images, decode(path).images.astype(float)
    full = full[:, :, 40:160] if rotation is None else full[:, 40:160]
    np.testing.assert_array_equal(decode(path, size=120).images, full)
    means = full.reshape(5, 30, 4, 30, 4, 3).mean(axis=(2, 4))
    assert np.abs(result - means).mean() < 4
    assert np.corrcoef(result.ravel(), means.ravel())[0, 1] > 0.98


def test_max_seconds_stops_early_and_loudness_is_known(tmp_path):
    sound = sine(440, 20)  # lies behind the pictures in the file, not between them
    path = write_media(tmp_path / "a.mkv", np.arange(500) / 25, sound, sound_codec="pcm_s16le")
    result = decode(path, max_seconds=1.0)
    assert (len(result.images), len(result.waveform)) == (5, 16000)
    assert result.duration == pytest.approx(1.0)
    assert decode(path).problems == []
    assert decode(path, sound=False).waveform is None
    assert stated_seconds(path) == pytest.approx(20, abs=0.1)
    late = np.zeros(16000)
    late[12000:12800] = 0.1
    waveforms = np.zeros(16000), np.zeros(0), np.ones(16000), sine(440, 1)[0], late
    levels = [media.loudness(waveform, 16000) for waveform in waveforms]
    sine_level = 20 * math.log10(0.5 / math.sqrt(2))
    assert levels == pytest.approx([-math.inf, -math.inf, 0, sine_level, -20], abs=0.05)


@pytest.mark.parametrize(("rate", "ratio"), [(48000, (1, 3)), (8000, (2, 1))])
def test_resampling_agrees_with_scipy(tmp_path, rate, ratio):
    tones = sum(sine(hertz, 1, rate, amplitude=0.1) for hertz in (110, 440, 1500, 3000))
    options = {"sound_codec": "pcm_s16le", "sound_rate": rate}
    result = decode(write_media(tmp_path / "a.wav", sound=tones, **options)).waveform
    expected = resample_poly(tones[0], *ratio)
    assert len(result) == len(expected)
    assert np.abs(result - expected)[200:-200].max() < 2e-3


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1", "7.1", "hexadecagonal"])
def test_channels_are_averaged(tmp_path, layout):
    channels = {"mono": 1, "stereo": 2, "5.1": 6, "7.1": 8}.get(layout, 16)
    sound = np.concatenate([sine(200 + 100 * c, 1) for c in range(channels)])
    options = {"sound_codec": "pcm_s16le", "layout": layout}
    path = write_media(tmp_path / "a.wav", sound=sound, **options)
    np.testing.assert_allclose(decode(path).waveform, sound.mean(axis=0), atol=1e-4)


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", ">f8"])
@pytest.mark.parametrize("shape", [(3, 4), (700, 768), (768,)])
def test_features_of_any_protocol(tmp_path, protocol, dtype, shape):
    array = np.asfortranarray(np.arange(math.prod(shape)).reshape(shape) % 251).astype(dtype)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(array, protocol=protocol))
    result, expected = load_features(tmp_path / "a.pkl"), np.atleast_2d(array).astype(np.float32)
    np.testing.assert_array_equal(result, expected, strict=True)


class Trap(PosixPath):
    """Is created as a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (str(self),)


@pytest.mark.parametrize("wrap", [list, np.array])
def test_a_pickle_that_would_run_something_is_refused_without_running_it(tmp_path, wrap):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(wrap([Trap(tmp_path / "sprung")])))
    with pytest.raises(MediaError, match=r"a\.pkl .*posix\.mkdir"):
        load_features(tmp_path / "a.pkl")
    assert not (tmp_path / "sprung").exists()
    pickle.loads((tmp_path / "a.pkl").read_bytes())
    assert (tmp_path / "sprung").exists()  # the plain unpickler has


NO_FEATURES = [({"features": 1}, "dict"), (np.array(["a", "b"]), "<U1")]
NO_FEATURES.append((np.zeros((2, 2, 2)), r"\(2, 2, 2\)"))


@pytest.mark.parametrize(("content", "word"), NO_FEATURES)
def test_no_features(tmp_path, content, word):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(MediaError, match=rf"(?s)(?=.*{word}).*a\.pkl"):
        load_features(tmp_path / "a.pkl")
