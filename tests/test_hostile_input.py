"""What somebody else made: model folders, media, pickles and tables that are damaged or a trap.

Each case runs in a process of its own with a limit on memory and time: what it takes is bounded by
what is in the file, not by what the file claims.
"""

import json
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import zlib
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import av
import in_workers
import numpy as np
import pytest
import torch
from conftest import noise, sine, write_media
from PIL import Image
from safetensors.torch import load_file, save_file

from emilib import EMOTIONS
from emilib.corpus import CorpusError, audit, feature_files, media, read
from emilib.features import loading
from emilib.models import TAEMI
from emilib.predict import Clip, EmiPredictor
from emilib.predict.clip import MediaSettings, read_clip
from emilib.profiles import SMALL_AUDIO, SMALL_TEXT, SMALL_VISION

MEMORY = 1 << 30  # bytes beyond what the tests have
SECONDS = 60


def bounded(function, *arguments):
    """``function(*arguments)`` in a fork with little memory and time; its error is raised here."""

    def work(pipe):
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY,) * 2)
        signal.alarm(SECONDS)
        torch.set_num_threads(1)
        try:
            pipe.send((function(*arguments), None))
        except Exception as error:
            pipe.send((None, error))

    ours, theirs = get_context("fork").Pipe()
    process = get_context("fork").Process(target=work, args=(theirs,))
    process.start()
    theirs.close()
    try:
        result, error = ours.recv()
    except EOFError:
        process.join()
        pytest.fail(f"the process ended with {process.exitcode}")
    process.join()
    if error is not None:
        raise error
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A predictor of random weights, as `export` writes it."""
    torch.manual_seed(0)
    encoders = {"vision": loading.small_vision(SMALL_VISION)}
    encoders["audio"] = loading.small_audio(SMALL_AUDIO)
    encoders["text"] = loading.small_text(SMALL_TEXT, ["well that was fun"], max_tokens=64)
    widths = {"frames": 96, "audio": 64, "text": 128}
    models = {seed: TAEMI(*widths.values(), width=16) for seed in (0, 1)}
    moments = {m: (np.zeros(width), np.ones(width)) for m, width in widths.items()}
    facts = {"experiment": "taemi", "corpus": "nothing", "synthetic": True, "profile": "none"}
    facts |= {"clips": {"train": 0}, "words": "None.", "selected": False, "rho": 0.0}
    facts |= {"rho_sd": 0.1, "rho_of_each": dict.fromkeys(EMOTIONS, 0.0), "version": "0"}
    facts["encoders"] = {role: {"source": "here", "licence": "MIT"} for role in encoders}
    predictor = EmiPredictor(encoders, models, moments, MediaSettings(5.0, 64, "video", 2), facts)
    return predictor.save_pretrained(tmp_path_factory.mktemp("model") / "taemi")


def edit(path, **changes):
    """Change a JSON file; None deletes an entry."""
    entries = {**json.loads(path.read_text()), **changes}
    kept = {k: v for k, v in entries.items() if k not in changes or v is not None}
    path.write_text(json.dumps(kept))


def json_of(name="config.json", **changes):
    return lambda folder: edit(folder / name, **changes)


def tensors(change, name="seed-1/model.safetensors"):
    def spoil(folder):
        values = load_file(folder / name)
        change(values)
        save_file(values, folder / name, metadata={"format": "pt"})

    return spoil


def nan(name, key):
    return tensors(lambda values: values[key or min(values)].view(-1)[:1].fill_(torch.nan), name)


def pipe_for(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def escaped(folder):
    """`auto_map` in other letters, deep inside."""
    edit(folder / "text/config.json", more=[{"auto_map": {"A": "own.M"}}])
    text = (folder / "text/config.json").read_text()
    (folder / "text/config.json").write_text(text.replace("auto_map", "\\u0061uto_map"))


def copied(source, target):
    return lambda folder: shutil.copytree(folder / source, folder / target, dirs_exist_ok=True)


SEED, VISION, TEXT = "seed-1/model.safetensors", "vision/model.safetensors", "text/tokenizer.json"
NET = {"model_type": "own", "auto_map": {"AutoModel": "own.M"}}
CODE = {"AutoTokenizer": ["own.T", None]}
MODELS = {  # what is done to the folder, and words of the sentence that refuses it
    "code": (escaped, "auto_map"),
    "a tokenizer's code": (json_of("text/tokenizer_config.json", auto_map=CODE), "auto_map"),
    "code, another network": (json_of("text/config.json", **NET), "auto_map"),
    "a pipe for the config": (lambda f: pipe_for(f / "config.json"), "pipe"),
    "a pipe for weights": (lambda f: pipe_for(f / SEED), "pipe"),
    "a pipe for words": (lambda f: pipe_for(f / TEXT), "pipe"),
    "no folder": (shutil.rmtree, ""),
    "no moments": (lambda f: (f / "moments.safetensors").unlink(), "moments.safetensors"),
    "no weights": (lambda f: (f / SEED).unlink(), "seed-1"),
    "no header": (lambda f: (f / SEED).write_bytes(b"\0" * 40), "header"),
    "no tokenizer": (lambda f: (f / TEXT).unlink(), "tokenizer"),
    "no encoder": (lambda f: (f / VISION).rename(f / "vision/m.bin"), "safetensors in vision"),
    "no seeds": (json_of(seeds=None), "seeds"),
    "another format": (json_of(format=7), "format.*7"),
    "another kind": (json_of(kind="other"), "kind.*other"),
    "a tensor too few": (tensors(lambda t: t.pop(min(t))), "Missing key.* in state_dict"),
    "a tensor too many": (tensors(lambda t: t.update(x=torch.ones(1))), "x"),
    "an encoder's tensor": (tensors(lambda t: t.pop("layernorm.weight"), VISION), "layernorm.w"),
    "an encoder's layer": (json_of("vision/config.json", num_hidden_layers=2), "tensors"),
    "other weights": (lambda f: shutil.copy(f / "audio/model.safetensors", f / VISION), "embedd"),
    "another encoder": (copied("audio", "vision"), "for vision"),
    "another model's name": (json_of(model="DualStage"), "fusion"),
    "no model's name": (json_of(model="MODALITIES"), "from_pretrained"),
    "a function's name": (json_of(model="build"), "attribute"),
    "NaN in weights": (nan(SEED, None), "NaN"),
    "NaN in an encoder": (nan(VISION, "layernorm.bias"), "NaN"),
    "NaN in the moments": (nan("moments.safetensors", "audio.sd"), "finite"),
    "NaN in the scale": (json_of(scale={"shift": [np.nan] * 6, "factor": [1.0] * 6}), "finite"),
    "a scale of two": (json_of(scale={"shift": [0.0] * 2, "factor": [1.0] * 2}), "shape|broad"),
    "a target too few": (json_of(emotions=["Joy"]), "shape"),
    "escapes in its facts": (json_of(facts={"corpus": "\x1b]0;owned\x07"}), ""),
    "10,000 seeds": (json_of(seeds=list(range(10000))), "seed-2"),
    "deep JSON": (lambda f: (f / "config.json").write_text("[" * 10**6), "recursion"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_folder_that_is_not_what_it_seems_is_refused(model, tmp_path, case):
    spoil, words = MODELS[case]
    folder = shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model/text/own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    spoil(folder)
    with pytest.raises(ValueError, match=f"(?s)expected the folder .*{words}") as caught:
        bounded(EmiPredictor.from_pretrained, folder)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "ran").exists()


def test_facts_are_printed_as_text_or_not_at_all(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    facts = json.loads((folder / "config.json").read_text())["facts"]
    for corpus in ("\x1b[2Jmine", "\x9b2Jmine", "mine\rtheirs"):
        edit(folder / "config.json", facts={**facts, "corpus": corpus})
        with pytest.raises(ValueError, match="printable"):
            EmiPredictor.from_pretrained(folder)


def chunk(kind, content):
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def png(width, height, more=b""):
    """A PNG that claims a size, and holds a few rows at most."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(3 * min(width, 10**5) + 1)))
    return b"\x89PNG\r\n\x1a\n" + head + more + rows + chunk(b"IEND", b"")


# A text of a PNG that unpacks to much more than it is.
LONG_TEXT = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 24), 9))


def film(path, **options):
    options = {"codec": "mpeg4", "rate": 10, "options": {}, **options}
    return write_media(path, np.arange(20) / 10, sine(300, 2), **options)


def huge_box(path):
    """A film whose index states 2^63 bytes."""
    data = film(path).read_bytes()
    place = data.index(b"moov") - 4
    path.write_bytes(data[:place] + struct.pack(">I4sQ", 1, b"moov", 2**63) + data[place + 8 :])


def shifted(path, seconds, every=False):
    """A film whose second half comes so many seconds late; `every`: each packet after the last."""
    count = 0
    with av.open(str(film(path.with_name("plain.mkv")))) as old, av.open(str(path), "w") as new:
        streams = {stream: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                count += every or packet.pts * packet.time_base == 1
                packet.pts += round(seconds * count / packet.time_base)
                packet.dts = packet.pts
                packet.stream = streams[packet.stream]
                new.mux(packet)


def pixels(path, kind, codec="ffv1", width=96, height=64):
    """A film of one picture in any pixel format."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = width, height, kind
        grey = av.VideoFrame.from_ndarray(np.full((height, width), 90, np.uint8), format="gray")
        for packet in (*stream.encode(grey.reformat(format=kind)), *stream.encode()):
            out.mux(packet)


def broken_sound(path):
    sound = sine(300, 1)
    sound[0, 100:200], sound[0, 300] = np.nan, np.inf
    write_media(path, sound=sound, sound_codec="pcm_f32le")


def words(text):
    """A file of this text; NEIGHBOUR stands for the name of a film beside it."""
    return lambda path: path.write_text(
        text.replace("NEIGHBOUR", film(path.with_name("b.mp4")).name)
    )


NO_MEDIA, DIARY = "no media file", "Dear diary, " * 999
CUE = "1\n00:00:00,000 --> 00:00:01,000\nwords\n"
FILMS = {  # ending, how it is made, words of the reason: None where there is a result
    "a box of 2^63 bytes": ("mp4", huge_box, "FFmpeg|decoded"),
    "a picture after 10^12 s": ("mkv", lambda p: shifted(p, 10**12), None),
    "pauses of hours": ("mkv", lambda p: shifted(p, 599, every=True), None),
    "a pause of hours": ("mkv", lambda p: shifted(p, 30000), None),
    "notes": ("txt", words(DIARY), NO_MEDIA),
    "notes called a film": ("mp4", words(DIARY), NO_MEDIA),
    "art": ("ans", words(f"\x1b[1m{DIARY}"), NO_MEDIA),
    "subtitles": ("mp4", words(CUE), NO_MEDIA),
    "a script": ("mp4", words("ffconcat version 1.0\nfile NEIGHBOUR\n"), NO_MEDIA),
    "a playlist": ("mp4", words("#EXTM3U\n#EXTINF:2,\nNEIGHBOUR\n"), NO_MEDIA),
    "2.5 billion pixels": ("mp4", lambda p: p.write_bytes(png(50000, 50000)), NO_MEDIA),
    "72 million pixels": ("mov", lambda p: pixels(p, "gray", "png", 9000, 8000), "pixels"),
    "10^5 x 1": ("mkv", lambda p: pixels(p, "gray", "ffv1", 100_000, 1), "100000 x 1"),
    "NaN in the sound": ("wav", broken_sound, None),
    "a pipe": ("mp4", pipe_for, "no file"),
}
for codec, ending, kinds in (
    ("ffv1", "mkv", "gray10le yuva444p16le gbrp12le bgra yuv411p ya8"),
    ("png", "mov", "monob rgba64be ya16be"),
    ("rawvideo", "mkv", "uyvy422 nv12"),
):
    for kind in kinds.split():
        FILMS[f"pixels {kind}"] = (ending, partial(pixels, kind=kind, codec=codec), None)


@pytest.mark.parametrize("case", FILMS)
def test_a_film_takes_what_is_in_it_or_has_a_reason(tmp_path, case):
    ending, make, reason = FILMS[case]
    make(path := tmp_path / f"clip.{ending}")
    result = bounded(read_clip, Clip(path), MediaSettings(5.0, 64, "video", 2))
    if reason is not None:
        assert str(path) in result.reason
        assert re.search(reason, result.reason)
        return
    assert result.reason is None
    assert 0 < result.duration < 2000
    assert result.frames is None or result.frames.shape[1:] == (3, 64, 64)
    assert result.waveform is None or len(result.waveform) < 2000 * 16000
    if "NaN" in case:
        assert "101 samples" in " ".join(result.problems)
        assert (result.waveform[100:200] == 0).all()
        assert result.waveform.max() > 10000


CROPS = {
    "2.5 billion pixels": lambda p: p.write_bytes(png(50000, 50000)),
    "169 million pixels": lambda p: p.write_bytes(png(13000, 13000)),
    "10^5 x 1": lambda p: p.write_bytes(png(100_000, 1)),
    "a text that unpacks to 16 MB": lambda p: p.write_bytes(png(8, 8, LONG_TEXT)),
    "a broken chunk": lambda p: p.write_bytes(png(8, 8).replace(b"IDAT", b"IDA1")),
    "nothing": lambda p: p.write_bytes(b""),
    "a link to itself": lambda p: p.symlink_to(p),
    "a pipe": pipe_for,
    "a folder": Path.mkdir,
    "words": lambda p: p.write_text("no picture"),
}


@pytest.mark.parametrize("case", CROPS)
@pytest.mark.filterwarnings("error")
def test_a_bad_crop_is_left_out(tmp_path, case):
    (tmp_path / "crops").mkdir()
    video = film(tmp_path / "clip.mp4")
    Image.new("RGB", (20, 20), (200, 0, 0)).save(tmp_path / "crops/1.png")
    CROPS[case](tmp_path / "crops/2.png")
    settings = MediaSettings(5.0, 64, "faces", 2)
    result = bounded(read_clip, Clip(video, faces=tmp_path / "crops"), settings)
    assert result.reason is None
    assert len(result.frames) == 1
    assert (result.frames[0, 0] == 200).all()


@pytest.fixture(scope="module")
def predictor(model):
    return EmiPredictor.from_pretrained(model)


def test_windows_without_anything_do_not_count(predictor, tmp_path):
    times = np.append(np.arange(20) / 10, 40 + np.arange(20) / 10)
    options = {"codec": "mpeg4", "rate": 10, "options": {}, "make": noise}
    path = write_media(tmp_path / "a.mkv", times, **options)
    table = predictor.over_time(path, window=1, step=0.5)
    empty = table["missing"] == "frames, audio, text"
    assert empty.sum() > 64  # whole batches of them
    assert empty.sum() < len(table) - 6
    emotions = list(EMOTIONS)
    assert (table[emotions].isna().all(axis=1) == empty).all()
    row = predictor.predict(path, window=1, step=0.5).iloc[0]
    assert row["missing"] == f"audio, text, all in {empty.sum()} of {len(table)} windows"
    expected = table.loc[~empty, emotions].mean()
    np.testing.assert_allclose(row[emotions].astype(float), expected, atol=1e-6)
    # The first two seconds are a clip of their own.
    alone = write_media(tmp_path / "b.mkv", times[:20], **options)
    alone = predictor.over_time(alone, window=1, step=0.5).loc[:1, emotions]
    np.testing.assert_allclose(table.loc[:1, emotions], alone, atol=1e-6)


def test_a_clip_without_anything_that_the_model_reads_has_a_reason(predictor, tmp_path):
    heard = write_media(tmp_path / "a.wav", sound=sine(300, 0.01), sound_codec="pcm_s16le")
    row = predictor.predict(heard).iloc[0]
    assert row["status"] == "failed"
    assert "a.wav: expected frames or audio or text" in row["reason"]


def test_a_clip_that_ends_its_worker_takes_no_other_with_it(predictor, tmp_path, monkeypatch):
    names = ["a", "lethal", "b", "odd", "c"]
    paths = [film(tmp_path / f"{name}.mp4") for name in names]
    alone = predictor.predict(paths).set_index(np.array(names))
    monkeypatch.setattr("emilib.predict.predictor.FEW", 1)
    monkeypatch.setattr("emilib.workers.count", lambda: 2)
    monkeypatch.setattr("emilib.predict.predictor.read_clip", in_workers.read)
    table = predictor.predict(paths).set_index(np.array(names))
    good = ["a", "b", "c"]
    np.testing.assert_array_equal(table.loc[good, list(EMOTIONS)], alone.loc[good, list(EMOTIONS)])
    assert re.search(r"lethal\.mp4.*ends the process", table.loc["lethal", "reason"])
    assert "odd.mp4: AttributeError" in table.loc["odd", "reason"]
    assert (table["status"] == "failed").sum() == 2


def own_corpus(folder):
    """Films of three people, and a CSV with a target."""
    (folder / "raw").mkdir(parents=True)
    for name in "abc":
        film(folder / f"raw/{name}.mp4")
    (folder / "labels.csv").write_text("file,x,split\na,0,train\nb,1,train\nc,2,val\n")
    return folder


def bad_text(folder):
    (folder / "text").mkdir()
    pipe_for(folder / "text/a.txt")
    (folder / "text/b.txt").write_text("well")


def bad_crop(folder):
    for name in "abc":
        (folder / "face_images" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(folder / "face_images" / name / "1.jpg")
    (folder / "face_images/a/1.jpg").unlink()
    (folder / "face_images/a/1.jpg").symlink_to("1.jpg")


def bad_features(folder):
    for name in "abc":
        (folder / "vit").mkdir(exist_ok=True)
        (folder / f"vit/{name}.pkl").write_bytes(pickle.dumps(np.zeros((3, 4))))
    (folder / "vit/a.pkl").write_bytes(PICKLES["a memo of 2^30"])


CORPORA = {  # what is done to clip a, and the defect that the audit names
    "a pipe for words": (bad_text, "no transcript"),
    "a crop that links to itself": (bad_crop, "no face"),
    "a pickle that claims memory": (bad_features, "bad features"),
    "narrow": (lambda f: pixels(f / "raw/a.mp4", "yuv420p", "mpeg4", 4000, 2), "unreadable"),
    "notes": (lambda f: (f / "raw/a.mp4").write_text("Dear diary"), "unreadable"),
    "a pipe for a film": (lambda f: pipe_for(f / "raw/a.mp4"), "unreadable"),
    "NaN in the sound": (lambda f: (f / "audio").mkdir() or broken_sound(f / "audio/a.wav"), None),
}


@pytest.mark.parametrize("case", CORPORA)
def test_the_audit_names_the_clip_and_goes_on(tmp_path, case):
    spoil, defect = CORPORA[case]
    spoil(own_corpus(tmp_path / "own"))
    table = bounded(audit, tmp_path / "own", 1)
    assert table.attrs["clips"] == 3
    rows = table[table["id"] == "a"]
    assert (defect is None) == rows.empty
    assert defect is None or defect in set(rows["defect"])
    assert set(table.loc[table["id"] != "a", "defect"]) <= {"no face", "no transcript"}


def test_a_row_without_its_file_is_missing_and_the_closest_name_is_told(tmp_path):
    folder = own_corpus(tmp_path / "own")
    (folder / "raw/a.mp4").rename(folder / "raw/Clip_A1.mp4")
    table = (folder / "labels.csv").read_text().splitlines()
    words = [f"{line},well" if number else f"{line},text" for number, line in enumerate(table)]
    (folder / "labels.csv").write_text("\n".join(words).replace("\na,", "\nclip_a,"))
    defects = audit(folder, 1)
    assert defects["defect"].tolist() == ["missing id"] * 2
    details = defects.set_index("id")["detail"]
    assert details["clip_a"] == "no file of any kind; the closest file without a row: raw/Clip_A1"
    assert any("without any file (1): clip_a" in note for note in read(folder).attrs["notes"])


MEMO = b"\x80\x04N" + b"r" + struct.pack("<I", 2**30) + b"."
_RECONSTRUCT = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
_FLOAT = b"cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R"
_OBJECT = b"cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R"
_MANY = b"J" + struct.pack("<i", 2**29)
_EMPTY = _RECONSTRUCT + b"K\x00\x85C\x01b\x87R"
PICKLES = {
    "a memo of 2^30": MEMO,
    "an array never filled": b"\x80\x03cnumpy\nndarray\n" + _MANY + b"\x85\x85R.",
    "reconstructed and never filled": _RECONSTRUCT + _MANY + b"\x85C\x01d\x87R.",
    "a shape without bytes": _EMPTY + b"(K\x01" + _MANY + b"\x85" + _FLOAT + b"\x89C\x00tb.",
    "a shape without objects": _EMPTY + b"(K\x01" + _MANY + b"\x85" + _OBJECT + b"\x89]tb.",
    "a scalar of 2^31": b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n"
    b"X\x0b\x00\x00\x00V2147483647\x85R\x85R.",
    "2^40 bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "a pipe": None,
    "a text of 2^40": b"\x80\x05\x8d" + struct.pack("<Q", 2**40) + b".",
}


@pytest.mark.parametrize("case", PICKLES)
def test_a_pickle_takes_no_more_than_it_holds(tmp_path, case):
    path, content = tmp_path / "a.pkl", PICKLES[case]
    path.write_bytes(content) if content else pipe_for(path)
    for name, error in (("load_features", media.MediaError), ("read_features", CorpusError)):
        with pytest.raises(error, match=r"a\.pkl is no readable pickle|No such file") as caught:
            bounded(getattr(feature_files, name), path)
        assert "memory" not in str(caught.value).lower()
