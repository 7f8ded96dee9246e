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

from emilib.corpus.layout import EMOTIONS, CorpusError, read
from emilib.corpus.media import decode, load_features
from emilib.synthetic import face
from emilib.synthetic import film as synthetic
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
from emilib.synthetic.voice import Speaker, SpeechError, Utterance

COUNTS = dict(train=12, validation=6, test=3, unlabelled=1)
MODALITIES = {
    "V": ("frames_",),
    "A": ("audio_",),
    "T": ("text_",),
    "VAT": ("frames_", "audio_", "text_"),
}


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


@pytest.fixture(scope="module")
def drawn():
    return [draw(seed=seed) for seed in range(5)]


@pytest.mark.parametrize(
    ("modality", "low", "high"),
    [("V", 0.25, 0.36), ("A", 0.40, 0.52), ("T", 0.55, 0.66), ("VAT", 0.66, 0.76)],
)
def test_each_modality_tells_its_share_of_the_label(drawn, modality, low, high):
    rho = np.mean([ridge_rho(one, MODALITIES[modality]) for one in drawn])
    assert low < rho < high


def test_labels_are_shares_of_annotators_with_the_real_share_of_zeros():
    label = draw(train=6000, validation=0, test=0, seed=1).label
    np.testing.assert_allclose((label > 0).mean(axis=0), Design().nonzero, atol=0.03)
    assert (label >= 0).all()
    assert (label <= 1).all()
    assert (np.median(label, axis=0) == 0).all()
    shares = {k / n for n in range(3, 10) for k in range(n + 1)}
    assert set(np.unique(label)) <= shares


def test_identity_tells_nothing_about_labels_and_seeds_do():
    one = draw(train=6000, validation=0, test=0, seed=2)

    def explained(groups):  # share of the labels' variance between groups
        frame = pd.DataFrame(one.label)
        between = frame.groupby(groups).transform("mean")
        return (between.var() / frame.var()).mean()

    by_chance = (Design().people - 1) / 6000
    assert explained(one.person) < 2 * by_chance
    assert explained(one.seed) > 5 * by_chance


def test_topic_is_the_seeds():
    one = draw(seed=3)
    assert pd.Series(one.topic).groupby(one.seed).nunique().max() == 1
    assert len(set(one.topic)) == len(TOPICS)


def test_ids_interleave_train_and_validation_and_end_with_test():
    one = draw(train=60, validation=40, test=5, unlabelled=3)
    assert one.id == [f"{i:05d}" for i in range(108)]
    assert one.split[100:] == ["test"] * 5 + ["unlabelled"] * 3
    first = one.split[:100]
    assert first.count("train") == 60
    assert 20 < first[:50].count("train") < 40
    assert np.isnan(one.label[100:]).all()


def test_draw_repeats_and_differs_between_seeds():
    pd.testing.assert_frame_equal(draw(seed=4).signals(), draw(seed=4).signals())
    np.testing.assert_array_equal(draw(seed=4).label, draw(seed=4).label)
    assert not draw(seed=4).signals().equals(draw(seed=5).signals())


def test_every_defect_occurs_at_its_rate_and_hides_its_channel():
    one = draw(seed=6)
    counts = pd.Series(one.defect).value_counts()
    for name, rate in DEFECT_RATES.items():
        assert counts[name] == max(1, round(rate * 700))
    signals = one.signals()
    defect = np.array(one.defect)
    hidden = {"no_face": "frames_", "silent": "audio_", "empty_transcript": "text_"}
    for name, prefix in hidden.items():
        columns = [c for c in signals if c.startswith(prefix)]
        assert (signals.loc[defect == name, columns] == 0).all(axis=None)
        assert signals.loc[defect == "", columns].to_numpy().any()


def test_small_corpora_have_defects_too_but_not_over_a_quarter():
    for clips, kinds in ((48, len(DEFECT_RATES)), (20, 5)):
        defect = draw(train=clips, validation=0, test=0).defect
        assert len(set(defect) - {""}) == kinds
        assert sum(name != "" for name in defect) <= clips // 4


def test_words_are_shared_between_emotions():
    words = {e: set(" ".join(p).lower().split()) - {"{}"} for e, p in WORDING.items()}
    for emotion in EMOTIONS:
        others = set().union(*(w for e, w in words.items() if e != emotion))
        assert len(words[emotion] & others) >= 4


def test_a_sentence_has_a_phrase_for_each_emotion_and_its_strength():
    design = Design(ambiguous=0)
    strength = np.array([0, 3, 0, 1, 0, 0])
    text = sentence(strength, 2, np.random.default_rng(0), design)
    assert text.count(".") == 3
    phrases = [p.strip().lower() for p in text.split(".")[:3]]

    def said(emotion, level):
        return {
            phrase.format(word).lower()
            for phrase in WORDING[emotion]
            for word in STRENGTH_WORDS[level - 1]
        }

    assert said("Amusement", 3) & set(phrases)
    assert said("Empathic Pain", 1) & set(phrases)
    assert {p.lower() for p in TOPICS["kitchen"]} & set(phrases)


# ---- face ---------------------------------------------------------------------------------------


def still(person=3, **values):
    motion = np.zeros((1, len(face.MOTION)))
    for name, value in values.items():
        motion[0, face.MOTION.index(name)] = value
    look = face.Look.of(np.random.default_rng(person))
    return face.render(look, motion, (160, 160), np.random.default_rng(0))[0].astype(int)


def centre_of_change(a, b):
    """(y, x) in head units of the centre of mass of the difference of two pictures."""
    change = np.abs(a - b).sum(axis=2).astype(float)
    y, x = (np.indices(change.shape) + 0.5 - 80) * face.SPAN / 160
    return (y * change).sum() / change.sum(), (x * change).sum() / change.sum()


def test_joy_changes_the_mouth_and_lifts_its_corners():
    joy = {name: 0.7 * value for name, value in FACE["Joy"].items() if value > 0}
    neutral, joyful = still(), still(**joy)
    y, x = centre_of_change(neutral, joyful)
    assert 0.15 < y < 0.5
    assert abs(x) < 0.08


def seam(picture, x):
    """Row of the darkest place between the lips, x head units beside the face's middle."""
    top, bottom = (round(80 + y * 160 / face.SPAN) for y in (0.30, 0.60))
    column = round(80 + x * 160 / face.SPAN)
    return picture[top:bottom, column].sum(axis=1).argmin()


def test_corners_of_the_mouth_go_up_in_a_smile_and_down_in_sorrow():
    smile, sorrow = still(au12=0.5), still(au15=1.0)
    assert seam(smile, 0.21) < seam(smile, 0) - 1
    assert seam(sorrow, 0.19) > seam(sorrow, 0) + 1


@pytest.mark.parametrize(
    ("unit", "low", "high"),
    [
        ("au1", -0.6, -0.2),
        ("au4", -0.4, -0.1),
        ("au5", -0.4, 0.0),
        ("au15", 0.3, 0.6),
        ("au26", 0.35, 0.7),
        ("blink", -0.25, 0.05),
    ],
)
def test_action_units_move_their_part_of_the_face(unit, low, high):
    neutral, moved = still(), still(**{unit: 1.0})
    y, x = centre_of_change(neutral, moved)
    assert low < y < high
    assert abs(x) < 0.08


def test_every_action_unit_shows():
    neutral = still()
    for unit in ACTION_UNITS:
        column, most = synthetic.POSES.get(unit, (unit, 1.0))
        assert np.abs(still(**{column: most}) - neutral).max() > 40, unit


def test_no_mouth_line_across_the_cheek():
    """A smile may darken the cheeks softly, but draws no line beyond the mouth's corners."""
    picture = still(au12=1.0).sum(axis=2)
    column = round(80 + 0.42 * 160 / face.SPAN)
    cheek = picture[round(80 + 0.25 * 160 / face.SPAN) : round(80 + 0.5 * 160 / face.SPAN), column]
    assert np.abs(np.diff(cheek)).max() < 90


def test_render_says_what_is_wrong_with_its_input():
    look = face.Look.of(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"motion must be \(T, 19\)"):
        face.render(look, np.zeros((2, 3)), (160, 160), np.random.default_rng(0))


# ---- voice --------------------------------------------------------------------------------------


def test_speech_repeats_to_the_bit_whatever_was_said_before():
    first, second = Utterance("I really admire you.", "f2"), Utterance("So that is that.", "m3", 70)
    with Speaker() as speaker:
        said = [speaker.say(u) for u in (first, second, first)]
    with Speaker() as speaker:
        again = [speaker.say(u) for u in (second, first)]
    for a, b in ((0, 2),):
        np.testing.assert_array_equal(said[a][0], said[b][0])
        assert said[a][2] == said[b][2]
    np.testing.assert_array_equal(said[0][0], again[1][0])
    np.testing.assert_array_equal(said[1][0], again[0][0])


def test_prosody_is_heard():
    def say(speaker, **how):
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

    with Speaker() as speaker:
        low, high = say(speaker, pitch=20), say(speaker, pitch=80)
        slow, fast = say(speaker, rate=140), say(speaker, rate=230)
        paused = say(speaker, pause=6)
        plain = say(speaker)
    assert pitch(*high) > 1.2 * pitch(*low)
    assert len(slow[0]) > 1.3 * len(fast[0])
    assert len(paused[0]) > len(plain[0]) + 0.1 * plain[1]


def test_an_unknown_voice_and_a_dead_program_are_errors():
    with Speaker() as speaker:
        with pytest.raises(ValueError, match="not 'nobody'"):
            speaker.say(Utterance("hello", "nobody"))
        assert len(speaker.say(Utterance("hello", "f1"))[0]) > 1000
        speaker._program.kill()
        speaker._program.wait()
        with pytest.raises(SpeechError, match="program"):
            speaker.say(Utterance("hello", "f1"))


# ---- files --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    calls = []

    def note(*progress):
        calls.append(progress)

    folder = tmp_path_factory.mktemp("embedded") / "corpus"
    made = synthetic.make(
        folder,
        **COUNTS,
        seed=3,
        workers=1,
        progress=lambda done, total: calls.append((done, total)),
    )
    total = sum(COUNTS.values())
    assert calls == [(done, total) for done in range(total + 1)]
    assert made == folder
    return folder


@pytest.fixture(scope="session")
def manifest(corpus):
    return json.loads((corpus / ".synthetic" / "manifest.json").read_text())["clips"]


def with_defect(manifest, *names):
    return [entry for entry in manifest.values() if entry["defect"] in names]


def video_path(corpus, entry):
    root = {"test": corpus / "test_data", "unlabelled": corpus / "unlabelled"}
    return root.get(entry["split"], corpus) / "raw" / f"{entry['id']}.mp4"


def test_layout_is_that_of_the_real_set(corpus, manifest):
    clips = read(corpus)
    assert clips["split"].value_counts().to_dict() == dict(train=12, validation=6, test=3)
    for name in ("train_split.csv", "valid_split.csv"):
        header = (corpus / name).read_text().splitlines()[0]
        assert header == "Filename,Admiration,Amusement,Determination,Empathic Pain,Excitement,Joy"
    labels = clips.loc[clips["split"] != "test", list(EMOTIONS)]
    assert labels.notna().all(axis=None)
    for row in clips.itertuples():
        if manifest[row.id]["defect"] in ("", "lying_rate"):
            for path in (row.video, row.audio, row.faces, row.official_vision, row.official_audio):
                assert Path(path).exists()
            assert row.transcript == manifest[row.id]["words"]
    assert len(list((corpus / "unlabelled" / "raw").iterdir())) == 1
    assert len(list((corpus / "unlabelled" / "text").iterdir())) == 1
    assert "synthetic" in json.loads((corpus / "synthetic.json").read_text())["statement"]
    signals = pd.read_csv(corpus / ".synthetic" / "signals.csv", dtype={"id": str})
    assert len(signals) == sum(COUNTS.values())


def test_labels_in_the_csv_are_the_drawn_ones(corpus):
    drawn = draw(**COUNTS, seed=3)
    clips = read(corpus).set_index("id")
    for i, name in enumerate(drawn.id):
        if drawn.split[i] in ("train", "validation"):
            np.testing.assert_allclose(
                clips.loc[name, list(EMOTIONS)].astype(float), drawn.label[i]
            )


def test_media_are_sound(corpus, manifest):
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
        assert np.abs(media.waveform).max() > 0.01


def test_mp3_has_the_sound_of_the_mp4(corpus, manifest):
    entry = next(e for e in manifest.values() if e["defect"] == "" and e["split"] == "train")
    a = decode(corpus / "audio" / f"{entry['id']}.mp3", frames=False).waveform
    b = decode(video_path(corpus, entry), frames=False).waveform
    n = min(len(a), len(b))
    assert n / 16000 == pytest.approx(entry["seconds"], abs=0.1)
    blocks = [np.sqrt((w[: n // 800 * 800].reshape(-1, 800) ** 2).mean(axis=1)) for w in (a, b)]
    assert np.corrcoef(*blocks)[0, 1] > 0.97


def test_face_crops_and_official_features(corpus, manifest):
    seen_thumbs = False
    for row in read(corpus).itertuples():
        entry = manifest[row.id]
        if entry["defect"] == "no_face":
            continue
        names = sorted(path.stem for path in Path(row.faces).glob("*.jpg"))
        assert sorted(names, key=int) == [str(i + 1) for i in range(entry["frames"])]
        assert (Path(row.faces) / "Thumbs.db").exists() == entry["thumbs_db"]
        seen_thumbs |= entry["thumbs_db"]
        features = load_features(row.official_vision)
        assert features.shape == (entry["frames"], 384)
        assert np.abs(features).max() <= 1
        if row.official_audio:
            assert load_features(row.official_audio).shape[1] == 768
    assert seen_thumbs
    with Image.open(next(Path(read(corpus).faces.dropna().iloc[0]).glob("*.jpg"))) as crop:
        assert crop.size == (112, 112)


def test_defects_are_really_there(corpus, manifest):
    clips = read(corpus).set_index("id")
    found = {entry["defect"] for entry in manifest.values()}
    assert {"no_face", "no_audio_track", "silent", "empty_transcript", "lying_rate"} <= found
    for entry in with_defect(manifest, "no_face"):
        faces = clips.faces[entry["id"]]
        assert not isinstance(faces, str) or not any(Path(faces).iterdir())
    for entry in with_defect(manifest, "no_audio_track"):
        with av.open(str(video_path(corpus, entry))) as container:
            assert not container.streams.audio
        assert not (corpus / "audio" / f"{entry['id']}.mp3").exists()
        assert not (corpus / "text" / f"{entry['id']}.txt").exists()
    for entry in with_defect(manifest, "silent"):
        waveform = decode(corpus / "audio" / f"{entry['id']}.mp3", frames=False).waveform
        assert np.abs(waveform).max() < 1e-3
    for entry in with_defect(manifest, "empty_transcript"):
        assert clips.transcript[entry["id"]] == ""
    for entry in with_defect(manifest, "lying_rate"):
        media = decode(video_path(corpus, entry))
        assert media.declared_fps > 3 * media.measured_fps


def film(folder, defect, number=0):
    """Film one clip with a defect that a small corpus does not have."""
    parameters = synthetic._Parameters(1, 0, 0, 0, 0, Design(), synthetic.Filming())
    one = draw(**COUNTS, seed=3)
    one.defect[number] = defect
    clip = synthetic._clips(one)[number]
    with Speaker() as speaker:
        synthetic._film(folder, parameters, clip, speaker)
    return folder / "raw" / f"{clip.id}.mp4", folder / "audio" / f"{clip.id}.mp3"


def test_damaged_and_unreadable_files(tmp_path):
    intact, _ = film(tmp_path / "intact", "")
    whole = decode(intact, fps=None)
    for number in range(3):
        video, _ = film(tmp_path / "damaged", "damaged", number)
        media = decode(video, fps=None)
        assert media.damaged or media.problems
    assert whole.damaged == 0
    assert not whole.problems
    unreadable, _ = film(tmp_path / "unreadable", "unreadable")
    with pytest.raises(ValueError):
        decode(unreadable)


def test_too_short_for_the_audio_encoder(tmp_path):
    video, sound = film(tmp_path, "too_short_audio")
    for path in (video, sound):
        assert 0 < len(decode(path, frames=False).waveform) < 400


def test_rotated_file_is_shown_upright(tmp_path):
    upright = decode(film(tmp_path / "a", "")[0]).images
    rotated = decode(film(tmp_path / "b", "rotated")[0])
    assert rotated.rotation % 360 in (90, 270)
    assert np.abs(rotated.images.astype(int) - upright).mean() < 3


def decoded(path):
    if path.suffix == ".mp4":
        media = decode(path, fps=None)
        return media.images, media.waveform
    return (decode(path, frames=False).waveform,)


def assert_same_corpus(a, b):
    """Same files; media may differ in bytes, but not in what they decode to."""
    files = {p.relative_to(a) for p in a.rglob("*") if p.is_file() and ".synthetic" not in p.parts}
    assert files == {
        p.relative_to(b) for p in b.rglob("*") if p.is_file() and ".synthetic" not in p.parts
    }
    for name in files:
        if (a / name).read_bytes() != (b / name).read_bytes():
            assert name.suffix in (".mp4", ".mp3"), name
            for x, y in zip(decoded(a / name), decoded(b / name), strict=True):
                np.testing.assert_array_equal(x, y, err_msg=str(name))


def test_two_workers_make_the_same_corpus(corpus, tmp_path):
    other = synthetic.make(tmp_path / "other", **COUNTS, seed=3, workers=2)
    assert_same_corpus(corpus, other)


def test_an_interrupted_corpus_is_finished_to_the_same(corpus, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    damaged = [name for name in read(copy).id if (copy / "raw" / f"{name}.mp4").exists()][:3]
    (copy / "raw" / f"{damaged[0]}.mp4").unlink()
    (copy / "text" / f"{damaged[2]}.txt").unlink(missing_ok=True)
    (copy / ".synthetic" / "done" / f"{damaged[1]}.json").unlink()
    (copy / "train_split.csv").unlink()
    calls = []
    synthetic.make(
        copy, **COUNTS, seed=3, workers=1, progress=lambda done, total: calls.append(done)
    )
    assert calls[0] < calls[-1] == sum(COUNTS.values())
    assert_same_corpus(corpus, copy)


def test_a_finished_corpus_is_left_alone(corpus):
    before = {p: p.stat().st_mtime_ns for p in corpus.rglob("*.mp4")}
    calls = []
    synthetic.make(corpus, **COUNTS, seed=3, progress=lambda done, total: calls.append(done))
    assert calls == [sum(COUNTS.values())]
    assert before == {p: p.stat().st_mtime_ns for p in corpus.rglob("*.mp4")}


def test_a_foreign_folder_is_refused(tmp_path, corpus):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(CorpusError, match="not empty and holds no embedded corpus"):
        synthetic.make(tmp_path, train=2, validation=1, test=0)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(CorpusError, match=r"other parameters \(seed: 3 there, 4 wanted\)"):
        synthetic.make(corpus, **COUNTS, seed=4)
    with pytest.raises(CorpusError, match="is a file"):
        synthetic.make(tmp_path / "thesis.tex")
    with pytest.raises(CorpusError, match="not negative"):
        synthetic.make(tmp_path / "new", train=-1)
