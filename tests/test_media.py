"""Decoding, against files written here and a brute-force reading of all their frames."""

import math
import os
import pickle
import shutil
from fractions import Fraction

import av
import numpy as np
import psutil
import pytest
from conftest import noise, sine
from conftest import write_media as write
from scipy.signal import resample_poly

from emilib.corpus import media, streams
from emilib.corpus.feature_files import load_features
from emilib.corpus.media import MediaError, decode
from emilib.corpus.media import stated_seconds as probe


def all_frames(path):
    """(time, image) of every frame, by plain PyAV and nothing else."""
    with av.open(str(path)) as container:
        return [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]


def brute_force(path, fps):
    """Exactly what `decode` promises, over the list of all frames, in whole 90 kHz ticks."""
    kept = {}
    for time, image in all_frames(path):
        slot = (round(time * 90000) + 90) * Fraction(fps) // 90000
        kept.setdefault(slot, (time, image))
    return [kept[slot] for slot in sorted(kept)]


def damage(path, start, end, flips=60, seed=0):
    """Overwrite `flips` bytes at random places within a share of the file."""
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    for place in rng.integers(int(start * len(data)), int(end * len(data)), flips):
        data[place] ^= 0xFF
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("fps", [5, 1, 7.5, 30])
@pytest.mark.parametrize("rhythm", ["25", "29.97", "6", "3", "variable", "milliseconds"])
def test_frames_are_those_of_a_brute_force_choice(tmp_path, fps, rhythm):
    rng = np.random.default_rng(1)
    times = {
        "25": np.arange(40) / 25,
        "29.97": np.arange(45) * 1001 / 30000,
        "6": np.arange(15) / 6,
        "3": np.arange(8) / 3,
        "variable": np.cumsum(rng.uniform(0.01, 0.3, 25)) - 0.01,
        "milliseconds": np.floor(np.arange(45) * 1000 / 30) / 1000,
    }[rhythm]
    times = times - times[0]
    path = write(tmp_path / "a.mp4", times)
    got = decode(path, fps=fps)
    expected = brute_force(path, fps)
    np.testing.assert_allclose(got.times, [time for time, _ in expected], atol=1e-6)
    np.testing.assert_array_equal(got.images, [image for _, image in expected])
    assert got.problems == ["no sound track"]
    assert got.measured_fps == pytest.approx((len(times) - 1) / (times[-1] - times[0]), rel=1e-3)


def test_five_a_second_from_twenty_five_is_every_fifth(tmp_path):
    path = write(tmp_path / "a.mp4", np.arange(50) / 25)
    got = decode(path)
    np.testing.assert_allclose(got.times, np.arange(10) / 5, atol=1e-6)
    np.testing.assert_array_equal(got.images, [image for _, image in all_frames(path)][::5])


def test_no_rate_keeps_every_frame(tmp_path):
    path = write(tmp_path / "a.mp4", np.arange(13) / 25)
    assert decode(path, fps=None).images.shape == (13, 64, 96, 3)
    with pytest.raises(ValueError, match="fps"):
        decode(path, fps=0)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_lying_rate_field_changes_nothing(tmp_path, suffix):
    times = np.arange(40) / 25
    honest = decode(write(tmp_path / f"a.{suffix}", times, clock=Fraction(1, 25)))
    lying = decode(write(tmp_path / f"b.{suffix}", times, rate=1000, clock=Fraction(1, 1000)))
    assert lying.declared_fps == pytest.approx(1000)
    assert honest.declared_fps == pytest.approx(25, rel=0.05)
    assert lying.measured_fps == pytest.approx(25)
    assert honest.duration == pytest.approx(lying.duration) == pytest.approx(1.6)
    np.testing.assert_allclose(lying.times, honest.times, atol=1e-6)


def test_missing_time_stamps_are_made_up_and_said(tmp_path):
    path = write(tmp_path / "a.h264", np.arange(50) / 25)  # a bare stream has no clock
    got = decode(path)
    assert any("no usable time stamp" in problem for problem in got.problems)
    np.testing.assert_allclose(got.times, np.arange(10) / 5, atol=1e-6)


def test_time_begins_with_the_file(tmp_path):
    path = write(tmp_path / "a.mpg", np.arange(50) / 25, codec="mpeg1video")
    with av.open(str(path)) as container:
        assert container.start_time > 100_000  # a program stream begins late
    got = decode(path)
    assert got.times[0] == pytest.approx(0, abs=1e-6)
    assert len(got.times) == 10


@pytest.mark.parametrize("codec", ["libx265", "mpeg4", "libvpx-vp9"])
def test_other_codecs(tmp_path, codec):
    suffix = "webm" if "vp9" in codec else "mov"
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {"deadline": "realtime"}
    path = write(tmp_path / f"a.{suffix}", np.arange(25) / 25, codec=codec, options=options)
    got = decode(path, size=(32, 48))
    assert got.images.shape == (5, 32, 48, 3)
    assert got.damaged == 0


def bright_corner(image):
    """Which quarter of an image is the red one: (bottom?, right?)."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    red = image[..., 0].astype(int) - image[..., 2]
    means = {
        (y, x): red[y * height : (y + 1) * height, x * width : (x + 1) * width].mean()
        for y in (0, 1)
        for x in (0, 1)
    }
    return max(means, key=means.get)


@pytest.mark.parametrize(
    ("rotation", "turned"),
    [
        ((0,), lambda image: image),
        ((90,), lambda image: np.rot90(image, 1)),
        ((180,), lambda image: np.rot90(image, 2)),
        ((270,), lambda image: np.rot90(image, 3)),
        ((0, True), lambda image: image[:, ::-1]),
        ((0, False, True), lambda image: image[::-1]),
    ],
)
def test_rotation_is_applied(tmp_path, rotation, turned):
    path = write(tmp_path / "a.mp4", [0, 0.2], rotation=rotation)
    plain = all_frames(path)[0][1]  # plain PyAV does not turn
    expected = turned(plain)
    got = decode(path)
    np.testing.assert_array_equal(got.images[0], expected)
    small = decode(path, size=(40, 30)).images
    assert small.shape[1:] == (40, 30, 3)
    assert bright_corner(small[0]) == bright_corner(expected)
    if rotation in ((90,), (270,)):
        assert got.images.shape[1:] == (96, 64, 3)
        assert (got.rotation - rotation[0]) % 360 == 0


@pytest.mark.parametrize("degrees", [90, 270])
@pytest.mark.parametrize("mirror", [(True, False), (False, True)])
def test_a_turn_with_a_mirror_follows_the_matrix(tmp_path, degrees, mirror):
    """Pixel by pixel: x' = a x + c y, y' = b x + d y, then moved to where both begin with 0."""
    path = write(tmp_path / "a.mp4", [0], rotation=(degrees, *mirror), size=(16, 32))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        matrix = np.frombuffer(bytes(frame.side_data["DISPLAYMATRIX"]), "<i4") // 65536
        plain = frame.to_ndarray(format="rgb24")
    a, b, c, d = matrix[[0, 1, 3, 4]]
    y, x = np.mgrid[: plain.shape[0], : plain.shape[1]]
    column, line = a * x + c * y, b * x + d * y
    column, line = column - column.min(), line - line.min()
    expected = np.empty((line.max() + 1, column.max() + 1, 3), np.uint8)
    expected[line, column] = plain
    np.testing.assert_array_equal(decode(path).images[0], expected)


def test_damaged_frames_are_dropped_counted_and_the_rest_goes_on(tmp_path):
    path = write(tmp_path / "a.mp4", np.arange(60) / 25, make=noise, options={"g": "10"})
    damage(path, 0.4, 0.5)
    good = []
    bad = 0
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
    got = decode(path, fps=None)
    assert bad > 0
    assert got.damaged == bad
    np.testing.assert_allclose(got.times, good, atol=1e-6)
    assert got.times[-1] > 2.3  # the end of the file was reached
    assert got.problems[0].startswith(f"{bad} damaged frames of")


def test_a_damaged_frame_gives_its_slot_to_the_next_good_one(tmp_path):
    path = write(tmp_path / "a.mp4", np.arange(60) / 25, make=noise, options={"g": "10"})
    damage(path, 0.4, 0.5)
    every = decode(path, fps=None).times
    expected = {}
    for time in every:
        expected.setdefault(int((time + 1e-3) * 5), time)
    np.testing.assert_allclose(decode(path).times, list(expected.values()), atol=1e-9)


def same(got, expected):
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(got, name), value, err_msg=name)


@pytest.fixture
def decoded(monkeypatch):
    """Number of pictures that came out of decoders since the last look."""
    count = [0]
    add = streams.Pictures.add

    def counting(sink, frame):
        count[0] += 1
        add(sink, frame)

    def look():
        found, count[0] = count[0], 0
        return found

    monkeypatch.setattr(streams.Pictures, "add", counting)
    return look


B_FRAMES = {"g": "30", "bf": "3", "b-pyramid": "normal", "sc_threshold": "0"}


@pytest.mark.parametrize("threads", [1, 0])
@pytest.mark.parametrize(("name", "fps"), [("a.mp4", 5), ("a.mkv", 5), ("a.mp4", 12.5)])
def test_sparse_gives_the_same_from_fewer_pictures(tmp_path, decoded, name, fps, threads):
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.choice([1 / 30, 1 / 25, 1 / 10], 150))
    sound = sine(440, 6, 16000)
    path = write(tmp_path / name, times, sound, make=noise, options=B_FRAMES)
    options = {"fps": fps, "size": 48, "threads": threads}
    expected, full = decode(path, **options), decoded()
    same(decode(path, **options, sparse=True), expected)
    assert full == 150
    assert decoded() < 0.9 * full
    assert expected.measured_fps == pytest.approx(149 / (times[-1] - times[0]), rel=1e-3)
    same(
        decode(path, **options, max_seconds=3.0, sparse=True),
        decode(path, **options, max_seconds=3.0),
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"options": {"g": "250", "bf": "0"}}),  # each picture is needed for the next
        ("a.avi", {"options": B_FRAMES}),  # no time stamps
        ("a.mpg", {"codec": "mpeg1video", "options": {"bf": "2"}}),  # not H.264
        ("a.mp4", {"options": B_FRAMES, "rotation": (90, False, False)}),
    ],
)
def test_sparse_of_any_file_is_the_same(tmp_path, name, options):
    path = write(tmp_path / name, np.arange(60) / 25, **options)
    same(decode(path, sparse=True), decode(path))
    same(decode(path, fps=None, sparse=True), decode(path, fps=None))


@pytest.mark.parametrize("seed", range(4))
def test_sparse_gives_up_where_there_is_damage(tmp_path, decoded, seed):
    path = write(tmp_path / "a.mp4", np.arange(60) / 25, make=noise, options=B_FRAMES)
    damage(path, 0.3, 0.6, seed=seed)
    expected, full = decode(path), decoded()
    assert expected.damaged
    same(decode(path, sparse=True), expected)
    assert decoded() > full


def test_truncated_file_gives_what_is_there(tmp_path):
    path = write(tmp_path / "a.mp4", np.arange(60) / 25, make=noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    got = decode(path)
    assert 3 <= len(got.images) < 12


def test_size_bounds_what_is_kept(tmp_path):
    path = write(tmp_path / "a.mp4", np.arange(25) / 25, size=(120, 200))
    got = decode(path, size=(30, 50))
    assert got.images.shape == (5, 30, 50, 3)
    full = decode(path).images.astype(float).reshape(5, 30, 4, 50, 4, 3).mean(axis=(2, 4))
    inside = np.abs(got.images - full)[:, 10:, 30:]  # away from the corner's edge
    assert inside.max() < 6


def test_max_seconds_stops_early(tmp_path):
    sound = sine(440, 20, 16000)  # lies behind the pictures in the file, not between them
    path = write(tmp_path / "a.mkv", np.arange(500) / 25, sound, sound_codec="pcm_s16le")
    got = decode(path, max_seconds=1.0)
    assert len(got.images) == 5
    assert len(got.waveform) == 16000
    assert got.duration == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "codec", "rate", "channels"),
    [
        ("a.mp4", "aac", 44100, 2),
        ("a.mp4", "aac", 16000, 1),
        ("a.mp3", "libmp3lame", 44100, 2),
        ("a.mp3", "libmp3lame", 16000, 1),
        ("a.flac", "flac", 48000, 1),
        ("a.wav", "pcm_s16le", 8000, 2),
    ],
)
def test_waveform_is_mono_16_khz_of_the_same_tone(tmp_path, name, codec, rate, channels):
    path = tmp_path / name
    write(path, sound=sine(440, 2, rate, channels), sound_codec=codec, sound_rate=rate)
    got = decode(path, frames=False)
    assert got.images is None
    assert got.waveform.dtype == np.float32
    assert got.waveform.ndim == 1
    assert len(got.waveform) == pytest.approx(32000, abs=1700)  # a codec pads by a block
    middle = got.waveform[8000:24000]
    spectrum = np.abs(np.fft.rfft(middle))
    assert np.argmax(spectrum) == 440  # one second: a bin is a hertz
    assert np.sqrt(2) * middle.std() == pytest.approx(0.5, rel=0.06)  # LAME alone takes 5 %


def test_resampling_agrees_with_scipy(tmp_path):
    rng = np.random.default_rng(0)
    time = np.arange(48000) / 48000
    tones = sum(
        rng.uniform(0.05, 0.1) * np.sin(2 * np.pi * hertz * time + rng.uniform(0, 6))
        for hertz in (110, 440, 1500, 3000)
    )
    path = tmp_path / "a.wav"
    write(path, sound=tones[None], sound_codec="pcm_s16le", sound_rate=48000)
    got = decode(path, frames=False).waveform
    expected = resample_poly(tones, 1, 3)
    assert len(got) == len(expected)
    assert np.abs(got - expected)[200:-200].max() < 2e-3


def test_channels_are_averaged(tmp_path):
    both = np.concatenate([sine(300, 1, 16000), sine(700, 1, 16000)])
    path = tmp_path / "a.wav"
    write(path, sound=both, sound_codec="pcm_s16le")
    np.testing.assert_allclose(decode(path).waveform, both.mean(axis=0), atol=1e-4)


def test_late_sound_keeps_time_with_the_picture(tmp_path):
    sound = sine(440, 1, 16000)
    path = write(tmp_path / "a.mkv", np.arange(50) / 25, sound, sound_start=0.7)
    got = decode(path)
    loud = np.flatnonzero(np.abs(got.waveform) > 0.1)[0] / 16000
    assert loud == pytest.approx(0.7, abs=0.08)
    assert any("filled with silence" in problem for problem in got.problems)


def test_a_hole_in_the_sound_becomes_silence(tmp_path):
    """A file whose time stamps jump by half a second in the middle."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        audio = out.add_stream("pcm_s16le", rate=16000)
        audio.layout = "mono"
        for begin, start in ((0, 0), (16000, 24000)):
            piece = (sine(440, 2, 16000)[:, begin : begin + 16000] * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            out.mux(audio.encode(frame))
        out.mux(audio.encode())
    waveform = decode(path).waveform
    assert len(waveform) == pytest.approx(40000, abs=40)
    assert np.abs(waveform[16200:23800]).max() == 0
    assert np.abs(waveform[24200:]).max() > 0.4


def test_no_sound_track_is_none(tmp_path):
    got = decode(write(tmp_path / "a.mp4", [0, 0.04]))
    assert got.waveform is None
    assert "no sound track" in got.problems
    assert decode(tmp_path / "a.mp4", frames=False).waveform is None


def test_sound_only_and_picture_only(tmp_path):
    path = write(tmp_path / "a.mp4", np.arange(25) / 25, sine(440, 1, 16000))
    assert decode(path, sound=False).waveform is None
    assert decode(path, frames=False).images is None
    assert decode(path).problems == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "There is no file"),
        (b"", r"is empty \(0 bytes\)"),
        (b"Dear diary, this is no video.\n" * 50, "no media file that FFmpeg can open"),
        (bytes(range(256)) * 8, "no media file that FFmpeg can open"),
    ],
)
def test_no_media(tmp_path, content, says):
    path = tmp_path / "bad.mp4"
    if content is not None:
        path.write_bytes(content)
    for read in (decode, probe):
        with pytest.raises(MediaError, match=says) as caught:
            read(path)
        assert "bad.mp4" in str(caught.value)


def test_a_file_without_its_index_is_no_media(tmp_path):
    path = write(tmp_path / "a.mp4", np.arange(25) / 25)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MediaError, match=r"a\.mp4"):
        decode(path)


def test_a_container_without_a_stream_is_no_media(tmp_path):
    path = write(tmp_path / "a.mp4", np.arange(5) / 25)
    path.write_bytes(path.read_bytes().replace(b"trak", b"free"))
    for read in (decode, probe):
        with pytest.raises(MediaError, match=r"a\.mp4 holds neither picture nor sound"):
            read(path)


def test_a_colon_in_the_name_is_no_address(tmp_path):
    path = tmp_path / "http:x.mp4"
    write(tmp_path / "a.mp4", [0, 0.2])
    shutil.move(tmp_path / "a.mp4", path)
    assert len(decode(path).images) == 2


def test_stated_seconds(tmp_path):
    path = write(tmp_path / "a.mp4", np.arange(50) / 25, sine(440, 2, 16000))
    assert probe(path) == pytest.approx(2, abs=0.1)


def test_files_are_closed(tmp_path):
    good = write(tmp_path / "a.mp4", np.arange(10) / 25, sine(440, 1, 16000))
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video" * 40)
    process = psutil.Process(os.getpid())
    decode(good)
    before = process.num_fds()
    for _ in range(50):
        decode(good, size=(16, 16), max_seconds=0.2)
        with pytest.raises(MediaError):
            decode(bad)
    assert process.num_fds() == before


def test_loudness_of_known_waveforms():
    assert media.loudness(np.zeros(16000), 16000) == -math.inf
    assert media.loudness(np.zeros(0), 16000) == -math.inf
    assert media.loudness(np.ones(16000), 16000) == pytest.approx(0)
    assert media.loudness(sine(440, 1, 16000)[0], 16000) == pytest.approx(-9.03, abs=0.05)
    late = np.zeros(16000)
    late[12000:12800] = 0.1
    assert media.loudness(late, 16000) == pytest.approx(-20)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", ">f4"])
def test_features_of_any_protocol(tmp_path, protocol, dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(array, protocol=protocol))
    got = load_features(tmp_path / "a.pkl")
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, array.astype(np.float32))


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_features_of_old_and_new_numpy(tmp_path, module):
    data = pickle.dumps(np.eye(3, dtype=np.float32), protocol=2)
    for name in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        data = data.replace(name, module)
    assert module in data
    (tmp_path / "a.pkl").write_bytes(data)
    np.testing.assert_array_equal(load_features(tmp_path / "a.pkl"), np.eye(3))


def test_fortran_order_and_vectors(tmp_path):
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(array))
    np.testing.assert_array_equal(load_features(tmp_path / "a.pkl"), array)
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(np.arange(5.0)))
    assert load_features(tmp_path / "b.pkl").shape == (1, 5)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: [t], lambda t: np.array([t, 1])])
def test_a_pickle_that_would_run_something_is_refused_without_running_it(tmp_path, wrap):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(wrap(Trap(tmp_path / "sprung"))))
    with pytest.raises(MediaError, match=r"a\.pkl names posix\.mkdir"):
        load_features(tmp_path / "a.pkl")
    assert not (tmp_path / "sprung").exists()
    pickle.loads((tmp_path / "a.pkl").read_bytes())  # the plain unpickler would have
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickle.dumps({"features": 1}), "holds dict"),
        (pickle.dumps(np.array(["a", "b"])), "holds <U1"),
        (pickle.dumps(np.array([None, 1], dtype=object)), "holds object"),
        (pickle.dumps(np.zeros((2, 2, 2))), r"shape \(2, 2, 2\); expected T x D"),
        (pickle.dumps(np.float32(1)), "holds float32|shape"),
        (pickle.dumps(np.zeros((4, 4)))[:-20], "pickle"),
        (b"", "pickle"),
        (b"this is no pickle", "pickle"),
    ],
)
def test_no_features(tmp_path, content, says):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(MediaError, match=says) as caught:
        load_features(tmp_path / "a.pkl")
    assert "a.pkl" in str(caught.value)


def test_missing_features(tmp_path):
    with pytest.raises(MediaError, match="There is no file"):
        load_features(tmp_path / "a.pkl")
