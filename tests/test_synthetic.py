"""The embedded corpus: statistics of its design, and the files of one small corpus."""

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from emilib import EMOTIONS
from emilib.corpus import CorpusError, read
from emilib.corpus.feature_files import load_features
from emilib.corpus.media import decode
from emilib.synthetic import face
from emilib.synthetic.film import film_clip, make
from emilib.synthetic.generative_model import (
    ACTION_UNITS,
    DEFECT_RATES,
    FACE,
    STRENGTH_WORDS,
    TOPICS,
    WORDING,
    Design,
    draw,
    sentence,
)
from emilib.synthetic.motion import POSES
from emilib.synthetic.voice import Speaker, SpeechError, Utterance

COUNTS = dict(train=12, validation=6, test=3, unlabelled=1)
V, A, T = "frames_", "audio_", "text_"


# ---- design: signals and labels -----------------------------------------------------------------


def ridge_rho(drawn, prefixes):
    """Mean Pearson correlation on validation of ridge on the clean signals of train."""
    signals = drawn.signals()
    x = signals[[name for name in signals if name.startswith(prefixes)]].to_numpy(float)
    train, valid = np.array(drawn.split) == "train", np.array(drawn.split) == "validation"
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 3, 7)))
    guess = ridge.fit(x[train], drawn.label[train]).predict(x[valid])
    pairs = zip(guess.T, drawn.label[valid].T, strict=True)
    return np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs])


@pytest.mark.parametrize(
    ("modalities", "low", "high"),
    [((V,), 0.25, 0.36), ((A,), 0.40, 0.52), ((T,), 0.55, 0.66), ((V, A, T), 0.66, 0.76)],
)
def test_each_modality_tells_its_share_of_the_label(modalities, low, high):
    assert low < np.mean([ridge_rho(draw(seed=seed), modalities) for seed in range(5)]) < high


def test_labels_are_shares_of_annotators_with_the_real_share_of_zeros():
    label = draw(train=6000, validation=0, test=0, seed=1).label
    np.testing.assert_allclose((label > 0).mean(axis=0), Design().nonzero, atol=0.03)
    assert (np.median(label, axis=0) == 0).all()
    assert set(np.unique(label)) <= {k / n for n in range(3, 10) for k in range(n + 1)}


def test_seeds_explain_labels_and_topics_and_identity_explains_nothing():
    drawn = draw(train=6000, validation=0, test=0, seed=2)

    def explained(groups):  # share of the labels' variance between groups
        frame = pd.DataFrame(drawn.label)
        return (frame.groupby(groups).transform("mean").var() / frame.var()).mean()

    by_chance = (Design().people - 1) / 6000
    assert explained(drawn.person) < 2 * by_chance
    assert explained(drawn.seed) > 5 * by_chance
    assert pd.Series(drawn.topic).groupby(drawn.seed).nunique().max() == 1
    assert len(set(drawn.topic)) == len(TOPICS)


def test_ids_interleave_train_and_validation_and_a_seed_draws_the_same_again():
    counts = {"train": 60, "validation": 40, "test": 5, "unlabelled": 3}
    drawn, again, other = (draw(**counts, seed=seed) for seed in (4, 4, 5))
    assert drawn.id == [f"{i:05d}" for i in range(108)]
    assert drawn.split[100:] == ["test"] * 5 + ["unlabelled"] * 3
    assert drawn.split[:100].count("train") == 60
    assert 20 < drawn.split[:50].count("train") < 40
    assert np.isnan(drawn.label[100:]).all()
    pd.testing.assert_frame_equal(drawn.signals(), again.signals())
    np.testing.assert_array_equal(drawn.label, again.label)
    assert not drawn.signals().equals(other.signals())


def test_every_defect_occurs_at_its_rate_and_hides_its_channel():
    drawn = draw(seed=6)
    signals, defect = drawn.signals(), np.array(drawn.defect)
    for name, rate in DEFECT_RATES.items():
        assert (defect == name).sum() == max(1, round(rate * 700))
    for name, prefix in {"no_face": V, "silent": A, "empty_transcript": T}.items():
        columns = [column for column in signals if column.startswith(prefix)]
        assert (signals.loc[defect == name, columns] == 0).all(axis=None)
        assert signals.loc[defect == "", columns].to_numpy().any()
    for clips, kinds in ((48, len(DEFECT_RATES)), (20, 5)):  # but never over a quarter
        few = [name for name in draw(train=clips, validation=0, test=0).defect if name]
        assert len(set(few)) == kinds
        assert len(few) <= clips // 4


def test_a_sentence_has_a_phrase_for_each_emotion_and_its_strength():
    words = {e: set(" ".join(p).lower().split()) - {"{}"} for e, p in WORDING.items()}
    for emotion in EMOTIONS:  # no word gives an emotion away
        others = set().union(*(w for e, w in words.items() if e != emotion))
        assert len(words[emotion] & others) >= 4

    strength, design = np.array([0, 3, 0, 1, 0, 0]), Design(ambiguous=0)
    text = sentence(strength, 2, np.random.default_rng(0), design)
    phrases = {phrase.strip().lower() for phrase in text.split(".")} - {""}
    assert len(phrases) == 3
    for emotion, level in (("Amusement", 3), ("Empathic Pain", 1)):
        levels = [p.format(w) for p in WORDING[emotion] for w in STRENGTH_WORDS[level - 1]]
        assert phrases & {phrase.lower() for phrase in levels}
    assert phrases & {phrase.lower() for phrase in TOPICS["kitchen"]}


# ---- face ---------------------------------------------------------------------------------------


def still(empty=False, **values):
    """One picture of one person, (160, 160, 3) int."""
    motion = np.array([[values.get(name, 0.0) for name in face.MOTION]])
    person = face.Appearance.draw(np.random.default_rng(3))
    return face.render(person, motion, (160, 160), np.random.default_rng(0), empty)[0].astype(int)


def pixel(position):
    return round(80 + position * 160 / face.SPAN)


@pytest.mark.parametrize(
    ("moved", "low", "high"),
    [
        ({name: 0.7 * value for name, value in FACE["Joy"].items() if value > 0}, 0.15, 0.5),
        ({"au1": 1.0}, -0.6, -0.2),
        ({"au4": 1.0}, -0.4, -0.1),
        ({"au5": 1.0}, -0.4, 0.0),
        ({"au15": 1.0}, 0.3, 0.6),
        ({"au26": 1.0}, 0.35, 0.7),
        ({"blink": 1.0}, -0.25, 0.05),
    ],
)
def test_action_units_move_their_part_of_the_face(moved, low, high):
    """The centre of mass of what changes, in head units."""
    change = np.abs(still(**moved) - still()).sum(axis=2).astype(float)
    y, x = (np.indices(change.shape) + 0.5 - 80) * face.SPAN / 160
    assert low < np.average(y, weights=change) < high
    assert abs(np.average(x, weights=change)) < 0.08


def test_every_action_unit_shows_and_an_empty_room_has_nobody():
    for unit in ACTION_UNITS:
        column, most = POSES.get(unit, (unit, 1.0))
        assert np.abs(still(**{column: most}) - still()).max() > 40, unit
    room = still(empty=True)
    np.testing.assert_array_equal(room, still(empty=True, au26=1.0, yaw=0.3))
    assert np.ptp(room, axis=(0, 1)).max() < 80 < np.ptp(still(), axis=(0, 1)).min()


def test_corners_of_the_mouth_go_up_in_a_smile_and_down_in_sorrow():
    def seam(picture, x):  # row of the darkest place between the lips, x beside the middle
        return picture[pixel(0.30) : pixel(0.60), pixel(x)].sum(axis=1).argmin()

    smile, sorrow, broad = still(au12=0.5), still(au15=1.0), still(au12=1.0)
    assert seam(smile, 0.21) < seam(smile, 0) - 1
    assert seam(sorrow, 0.19) > seam(sorrow, 0) + 1
    cheek = broad[pixel(0.25) : pixel(0.5), pixel(0.42)].sum(axis=1)
    assert np.abs(np.diff(cheek)).max() < 90, "a line beyond the mouth's corners"
    with pytest.raises(ValueError, match="motion"):
        face.render(None, np.zeros((2, 3)), (160, 160), None)


# ---- voice --------------------------------------------------------------------------------------


@pytest.fixture
def speaker():
    speaker = Speaker()
    yield speaker
    speaker.close()


def test_speech_repeats_to_the_bit_whatever_was_said_before(speaker):
    first, second = Utterance("I really admire you.", "f2"), Utterance("So that is that.", "m3", 70)
    spoken = [speaker.say(u) for u in (first, second, first)]
    speaker.close()
    other = Speaker()
    again = [other.say(u) for u in (second, first)]
    other.close()
    for a, b in ((spoken[0], spoken[2]), (spoken[0], again[1]), (spoken[1], again[0])):
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:] == b[1:]


def test_prosody_is_heard(speaker):
    def say(**how):
        samples, rate, phonemes = speaker.say(Utterance("my mother and the baby", "m1", **how))
        times = [time for time, _ in phonemes]
        assert times == sorted(times)
        assert times[-1] < len(samples) / rate
        return samples.astype(float), rate

    def pitch(samples, rate):  # of the loudest tenth of a second, by autocorrelation
        width = rate // 10
        power = np.convolve(samples**2, np.ones(width), "valid")
        piece = samples[power.argmax() :][:width]
        correlation = np.correlate(piece, piece, "full")[width - 1 :]
        lags = slice(rate // 400, rate // 60)
        return rate / (rate // 400 + correlation[lags].argmax())

    plain, rate = say()
    assert pitch(*say(pitch=80)) > 1.2 * pitch(*say(pitch=20))
    assert len(say(rate=140)[0]) > 1.3 * len(say(rate=230)[0])
    assert len(say(pause=6)[0]) > len(plain) + 0.1 * rate


def test_an_unknown_voice_and_a_dead_program_are_errors(speaker):
    with pytest.raises(ValueError, match="voice"):
        speaker.say(Utterance("hello", "nobody"))
    assert len(speaker.say(Utterance("hello", "f1"))[0]) > 1000
    speaker.program.kill()
    speaker.program.wait()
    with pytest.raises(SpeechError, match="hello"):
        speaker.say(Utterance("hello", "f1"))


# ---- files --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    calls, folder = [], tmp_path_factory.mktemp("embedded") / "corpus"
    progress = lambda *numbers: calls.append(numbers)  # noqa: E731
    assert make(folder, **COUNTS, seed=3, workers=1, progress=progress) == folder
    total = sum(COUNTS.values())
    assert calls == [(done, total) for done in range(total + 1)]
    return folder


@pytest.fixture(scope="session")
def manifest(corpus):
    return json.loads((corpus / ".synthetic" / "manifest.json").read_text())["clips"]


def video_path(corpus, entry):
    root = {"test": corpus / "test_data", "unlabelled": corpus / "unlabelled"}
    return root.get(entry["split"], corpus) / "raw" / f"{entry['id']}.mp4"


def test_layout_and_labels_are_those_of_the_real_set(corpus, manifest):
    clips, drawn = read(corpus), draw(**COUNTS, seed=3)
    assert clips["split"].value_counts().to_dict() == dict(train=12, validation=6, test=3)
    for name in ("train_split.csv", "valid_split.csv"):
        header = (corpus / name).read_text().splitlines()[0]
        assert header == "Filename,Admiration,Amusement,Determination,Empathic Pain,Excitement,Joy"
    for row in clips.itertuples():
        if manifest[row.id]["defect"] in ("", "lying_rate"):
            for path in (row.video, row.audio, row.faces, row.official_vision, row.official_audio):
                assert Path(path).exists()
            assert row.transcript == manifest[row.id]["words"]
    labels = clips.set_index("id")[list(EMOTIONS)].reindex(drawn.id).astype(float)
    np.testing.assert_allclose(labels, drawn.label)
    for kind in ("raw", "text"):
        assert len(list((corpus / "unlabelled" / kind).iterdir())) == 1
    assert "synthetic" in json.loads((corpus / "synthetic.json").read_text())["statement"]
    signals = pd.read_csv(corpus / ".synthetic" / "signals.csv", dtype={"id": str})
    assert len(signals) == sum(COUNTS.values())


def test_media_are_sound_and_mp3_has_the_sound_of_the_mp4(corpus, manifest):
    for entry in [e for e in manifest.values() if e["defect"] == ""][:6]:
        path = video_path(corpus, entry)
        with av.open(str(path)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert container.streams.audio[0].codec_context.name == "aac"
            times = [frame.time for frame in container.decode(video=0)]
        assert (np.diff(times) > 0).all()
        assert len(times) == entry["frames"]
        media = decode(path, fps=5, size=None)
        assert 1.8 <= media.duration <= 8.3
        assert media.images.shape[1:3] == tuple(entry["size"])
        assert media.damaged == 0
        assert media.measured_fps == pytest.approx(entry["fps"], rel=0.02)
        if entry["split"] != "unlabelled":
            mp3 = decode(corpus / "audio" / f"{entry['id']}.mp3", frames=False).waveform
            n = min(len(mp3), len(media.waveform)) // 800 * 800
            assert n / 16000 == pytest.approx(entry["seconds"], abs=0.1)
            energy = [(w[:n].reshape(-1, 800) ** 2).mean(axis=1) for w in (mp3, media.waveform)]
            assert np.corrcoef(np.sqrt(energy))[0, 1] > 0.97


def test_face_crops_and_official_features(corpus, manifest):
    thumbs = []
    for row in read(corpus).itertuples():
        entry = manifest[row.id]
        if entry["defect"] == "no_face":
            continue
        names = sorted(int(path.stem) for path in Path(row.faces).glob("*.jpg"))
        assert names == list(range(1, entry["frames"] + 1))
        thumbs.append((Path(row.faces) / "Thumbs.db").exists())
        assert thumbs[-1] == entry["thumbs_db"]
        features = load_features(row.official_vision)
        assert features.shape == (entry["frames"], 384)
        assert np.abs(features).max() <= 1
        if row.official_audio:
            assert load_features(row.official_audio).shape[1] == 768
        with Image.open(Path(row.faces) / "1.jpg") as crop:
            assert crop.size == (112, 112)
    assert any(thumbs)


def test_defects_are_really_there(corpus, manifest):
    clips = read(corpus).set_index("id")
    entries = {entry["defect"]: entry for entry in manifest.values()}
    assert {"no_face", "no_audio_track", "silent", "empty_transcript", "lying_rate"} <= set(entries)
    faces = clips.faces[entries["no_face"]["id"]]
    assert not isinstance(faces, str) or not any(Path(faces).iterdir())
    name = entries["no_audio_track"]["id"]
    with av.open(str(video_path(corpus, entries["no_audio_track"]))) as container:
        assert not container.streams.audio
    assert not (corpus / "audio" / f"{name}.mp3").exists()
    assert not (corpus / "text" / f"{name}.txt").exists()
    silent = corpus / "audio" / f"{entries['silent']['id']}.mp3"
    assert np.abs(decode(silent, frames=False).waveform).max() < 1e-3
    assert clips.transcript[entries["empty_transcript"]["id"]] == ""
    lying = decode(video_path(corpus, entries["lying_rate"]))
    assert lying.declared_fps > 3 * lying.measured_fps


def film(folder, defect, number=0):
    """Video and sound of one clip with a defect that a small corpus does not have."""
    clip = draw(**COUNTS, seed=3).clips()[number]
    clip.defect = defect
    film_clip(folder, 0, Design(), clip)
    return folder / "raw" / f"{clip.id}.mp4", folder / "audio" / f"{clip.id}.mp3"


def test_defects_of_files(tmp_path):
    intact = film(tmp_path / "intact", "")[0]
    whole = decode(intact, fps=None)
    assert (whole.damaged, whole.problems) == (0, [])
    for number in range(3):
        media = decode(film(tmp_path / "damaged", "damaged", number)[0], fps=None)
        assert media.damaged or media.problems
    with pytest.raises(ValueError):
        decode(film(tmp_path / "unreadable", "unreadable")[0])
    rotated = decode(film(tmp_path / "rotated", "rotated")[0])
    assert rotated.rotation % 360 in (90, 270)
    assert np.abs(rotated.images.astype(int) - decode(intact).images).mean() < 3
    for path in film(tmp_path / "short", "too_short_audio"):  # for an audio encoder
        assert 0 < len(decode(path, frames=False).waveform) < 400


def assert_same_corpus(a, b):
    """Same files; media may differ in bytes, but not in what they decode to."""
    files, others = ({p.relative_to(r) for p in r.rglob("*") if p.is_file()} for r in (a, b))
    assert files == others
    for name in files:
        if (a / name).read_bytes() != (b / name).read_bytes():
            assert name.suffix in (".mp4", ".mp3"), name
            x, y = (decode(root / name, fps=None, frames=name.suffix == ".mp4") for root in (a, b))
            np.testing.assert_array_equal(x.images, y.images, err_msg=str(name))
            np.testing.assert_array_equal(x.waveform, y.waveform, err_msg=str(name))


def test_two_workers_make_the_same_corpus(corpus, tmp_path):
    assert_same_corpus(corpus, make(tmp_path / "other", **COUNTS, seed=3, workers=2))


def test_an_interrupted_corpus_is_finished_to_the_same_and_then_left_alone(corpus, tmp_path):
    copy, calls, total = tmp_path / "copy", [], sum(COUNTS.values())
    shutil.copytree(corpus, copy)
    names = [name for name in read(copy).id if (copy / "raw" / f"{name}.mp4").exists()]
    (copy / "raw" / f"{names[0]}.mp4").unlink()
    (copy / ".synthetic" / "done" / f"{names[1]}.json").unlink()
    (copy / "raw" / f"{names[2]}.mp4").write_bytes(b"cut")
    (copy / "train_split.csv").unlink()
    progress = lambda done, _: calls.append(done)  # noqa: E731
    make(copy, **COUNTS, seed=3, workers=1, progress=progress)
    assert calls == [total - 3, total - 2, total - 1, total]
    assert_same_corpus(corpus, copy)
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.mp4")}
    make(copy, **COUNTS, seed=3, progress=progress)
    assert calls[4:] == [total]
    assert before == {path: path.stat().st_mtime_ns for path in copy.rglob("*.mp4")}


def test_a_foreign_folder_is_refused(tmp_path, corpus):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(CorpusError, match=r"synthetic\.json"):
        make(tmp_path, train=2, validation=1, test=0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(CorpusError, match="seed: expected 4, got 3"):
        make(corpus, **COUNTS, seed=4)
    with pytest.raises(CorpusError, match=r"synthetic\.json"):
        make(tmp_path / "thesis.tex")
    with pytest.raises(CorpusError, match="-1"):
        make(tmp_path / "new", train=-1)
