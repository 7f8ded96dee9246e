import json
import shutil
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from conftest import damage
from PIL import Image
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from emilib import EMOTIONS
from emilib.cache import Cache
from emilib.corpus import CorpusError, read
from emilib.corpus.media import decode, timing
from emilib.reader import CorpusReader
from emilib.synthetic import face
from emilib.synthetic.film import LABELS, film_clips, make
from emilib.synthetic.generative_model import ACTION_UNITS, DATA, DESIGN, TOPICS, draw, signals
from emilib.synthetic.generative_model import clips as clips_of
from emilib.synthetic.voice import say

COUNTS = dict(train=12, validation=6, test=3)
V, A, T = "frames_", "audio_", "text_"


def ridge_rho(drawn, prefixes):
    """Mean Pearson correlation on validation of ridge on the clean signals of train."""
    x = signals(drawn).filter(regex="|".join(prefixes)).to_numpy(float)
    train, valid = np.array(drawn.split) == "train", np.array(drawn.split) == "validation"
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 3, 7)))
    guess = ridge.fit(x[train], drawn.label[train]).predict(x[valid])
    return pd.DataFrame(guess).corrwith(pd.DataFrame(drawn.label[valid])).mean()


def test_each_modality_tells_its_share_of_labels_that_seeds_explain_and_persons_do_not():
    drawn = draw(train=6000, validation=0, test=0, seed=1)
    np.testing.assert_allclose((drawn.label > 0).mean(axis=0), DESIGN.nonzero, atol=0.03)
    assert set(np.unique(drawn.label)) <= {k / n for n in range(3, 10) for k in range(n + 1)}

    def explained(groups):  # share of the labels' variance between groups
        frame = pd.DataFrame(drawn.label)
        return (frame.groupby(groups).transform("mean").var() / frame.var()).mean()

    by_chance = (DESIGN.people - 1) / 6000
    assert explained(drawn.person) < 2 * by_chance
    assert explained(drawn.seed) > 5 * by_chance
    assert pd.Series(drawn.topic).groupby(drawn.seed).nunique().max() == 1
    assert len(set(drawn.topic)) == len(TOPICS)
    drawn = [draw(seed=seed) for seed in range(3)]
    for modalities, share in (([V], 0.48), ([A], 0.56), ([T], 0.64), ([V, A, T], 0.77)):
        assert abs(np.mean([ridge_rho(one, modalities) for one in drawn]) - share) < 0.04


def test_splits_people_performances_and_defects_are_those_of_the_design():
    drawn, again, other = (draw(seed=seed) for seed in (2, 2, 3))
    pd.testing.assert_frame_equal(signals(drawn), signals(again))
    np.testing.assert_array_equal(drawn.label, again.label)
    assert not signals(drawn).equals(signals(other))
    assert drawn.id == sorted(drawn.id)
    assert 0.5 < drawn.split[:500].count("train") / 500 < 0.8, "splits interleave"
    table = pd.DataFrame({"split": drawn.split, "person": drawn.person, "seed": drawn.seed})
    people = table.groupby("split")["person"].nunique()
    assert table.groupby("person")["split"].nunique().max() == 1
    assert abs(people.sum() - DESIGN.people) <= 1
    expected = table["split"].value_counts() / len(table) * DESIGN.people
    assert (people - expected.reindex(people.index)).abs().max() < 1
    seeds = table.groupby("split")["seed"].unique().map(set)
    assert len(seeds["train"]) == round((1 - DESIGN.unseen) * DESIGN.seeds)
    assert seeds["train"] < seeds["validation"]
    new = ~table["seed"].isin(seeds["train"])
    assert new[table["split"] == "validation"].mean() == pytest.approx(DESIGN.unseen, abs=0.05)
    drawn, rates = draw(seed=6), DATA["defects"]
    columns, defect = signals(drawn), np.array(drawn.defect)
    for name, rate in rates.items():
        assert (defect == name).sum() == max(1, round(rate * 2640))
    for name, prefix in {"no_face": V, "silent": A, "empty_transcript": T}.items():
        channel = columns.filter(like=prefix)
        assert (channel[defect == name] == 0).all(axis=None)
        assert channel[defect == ""].to_numpy().any()
    for clips, kinds in ((48, len(rates)), (20, 5)):  # but never over a quarter
        few = [name for name in draw(train=clips, validation=0, test=0).defect if name]
        assert len(set(few)) == kinds
        assert len(few) <= clips // 4


def still(empty=False, **values):
    """One picture of one person, (160, 160, 3) int."""
    motion = np.array([[values.get(name, 0.0) for name in face.MOTION]])
    person = face.appearance(np.random.default_rng(3))
    return face.render(person, motion, (160, 160), np.random.default_rng(0), empty)[0].astype(int)


def test_every_action_unit_moves_its_part_of_the_face_and_an_empty_room_has_nobody():
    brows, eyes, mouth = ("au1", "au4"), ("au5", "blink"), ("au12", "au15", "au26")
    heights = dict.fromkeys(brows, (-0.6, -0.1)) | dict.fromkeys(eyes, (-0.4, 0.05))
    heights |= dict.fromkeys(mouth, (0.15, 0.7))  # in head units
    for unit in {*ACTION_UNITS, *heights}:
        column, most = face.POSES.get(unit, (unit, 1.0))
        change = np.abs(still(**{column: most}) - still())
        assert change.max() > 40, unit
        y, x = (np.indices(change.shape[:2]) + 0.5 - 80) * face.SPAN / 160
        middle = (np.average(part, weights=change.sum(axis=2)) for part in (y, x))
        if unit in heights:
            assert heights[unit][0] < next(middle) < heights[unit][1], unit
            assert abs(next(middle)) < 0.08, unit

    def seam(x, **unit):  # row of the darkest place between the lips
        return still(**unit)[100:121, 80 + x].sum(axis=1).argmin()

    assert seam(14, au12=0.5) < seam(0, au12=0.5) - 1, "a smile goes up"
    assert seam(13, au15=1.0) > seam(0, au15=1.0) + 1
    room = still(empty=True)
    np.testing.assert_array_equal(room, still(empty=True, au26=1.0, yaw=0.3))
    assert np.ptp(room, axis=(0, 1)).max() < 80 < np.ptp(still(), axis=(0, 1)).min()


def test_speech_repeats_to_the_bit_and_prosody_is_heard():
    def speak(text, voice, pitch=50, range=50, rate=175, pause=0):
        plain = dict(text=text, voice=voice, pitch=pitch, range=range, rate=rate, pause=pause)
        return say([plain, plain])

    (samples, *_), (again, *_) = speak("I really admire you.", "f2")
    np.testing.assert_array_equal(samples, again)

    def mother(**how):
        return speak("my mother and the baby", "m1", **how)[0][0].astype(float)

    def period(samples):  # of the voice in samples: 2.5 to 17 ms at 22,050 Hz, by autocorrelation
        piece = samples[len(samples) // 4 :][:4000]
        return 55 + np.correlate(piece, piece, "full")[len(piece) + 54 : len(piece) + 366].argmax()

    assert period(mother(pitch=20)) > 1.2 * period(mother(pitch=80))
    assert len(mother(rate=140)) > 1.3 * len(mother(rate=230))
    assert len(mother(pause=6)) > len(mother()) + 2000


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return make(tmp_path_factory.mktemp("embedded") / "corpus", **COUNTS, seed=3, workers=1)


def facts(corpus):
    notes = sorted((corpus / ".synthetic" / "notes").iterdir())
    return pd.DataFrame([json.loads(note.read_text()) for note in notes]).set_index("id")


def test_layout_and_labels_are_those_of_the_real_set_and_only_the_reader_knows_more(
    corpus, tmp_path
):
    clips, drawn, known = read(corpus), draw(**COUNTS, seed=3), facts(corpus)
    assert clips["split"].value_counts().to_dict() == COUNTS
    whole = clips[known.defect.reindex(clips["id"]).isin(["", "lying_rate"]).to_numpy()]
    sources = ["video", "audio", "faces", "official_vision", "official_audio"]
    assert all(Path(path).exists() for path in whole[sources].to_numpy().ravel())
    assert whole["transcript"].tolist() == known.words.reindex(whole["id"]).tolist()
    labels = clips.set_index("id")[list(EMOTIONS)].reindex(drawn.id).astype(float)
    test = np.array(drawn.split) == "test"
    np.testing.assert_allclose(labels[~test], drawn.label[~test])
    assert labels[test].isna().all(axis=None)
    reader = CorpusReader(corpus, Cache(tmp_path), 1)
    assert reader.people.to_dict() == dict(zip(drawn.id, drawn.person, strict=True))
    assert reader.test_labels.index.tolist() == np.array(drawn.id)[test].tolist()
    np.testing.assert_allclose(reader.test_labels[list(EMOTIONS)], drawn.label[test])
    labels = {path for path in corpus.rglob("*.csv") if EMOTIONS[0] in path.read_text()}
    assert {path.name for path in labels} == {Path(name).name for name in LABELS.values()}
    copy = shutil.copytree(corpus, tmp_path / "real")
    (copy / "synthetic.json").unlink()
    real = CorpusReader(copy, Cache(tmp_path), 1)
    assert (real.people, real.test_labels) == (None, None)


def test_media_are_whole_and_mp3_has_the_sound_of_the_mp4(corpus):
    known, clips = facts(corpus), read(corpus).set_index("id")
    for entry in known[known.defect == ""].head(6).itertuples():
        media = decode(clips.video[entry.Index], fps=None)
        assert media.images.shape[:3] == (entry.frames, *entry.size)
        assert timing(clips.video[entry.Index])["measured"] == pytest.approx(entry.fps, rel=0.02)
        with Image.open(f"{clips.faces[entry.Index]}/1.jpg") as crop:  # as it was drawn
            assert crop.width == crop.height == round(1.88 / face.SPAN * min(entry.size))
        mp3 = decode(clips.audio[entry.Index], frames=False).waveform
        n = min(len(mp3), len(media.waveform)) // 800 * 800
        assert n / 16000 == pytest.approx(entry.seconds, abs=0.1)
        energy = [(w[:n].reshape(-1, 800) ** 2).mean(axis=1) for w in (mp3, media.waveform)]
        assert np.corrcoef(np.sqrt(energy))[0, 1] > 0.97


def test_defects_are_really_there(tmp_path):
    def film(defect, number=0):  # video and sound of one clip
        clip, folder = clips_of(draw(**COUNTS, seed=3))[number], tmp_path / defect
        clip.defect = defect
        film_clips(folder, 0, [clip])
        return folder / f"raw/{clip.id}.mp4", folder / f"audio/{clip.id}.mp3"

    intact = decode(film("")[0])
    assert (intact.damaged, intact.problems) == (0, [])
    for number in range(6):  # cut short, or with packets that are no pictures
        media = decode(film("damaged", number)[0], fps=None)
        assert media.damaged or media.problems
    with pytest.raises(ValueError):
        decode(film("unreadable")[0])
    rotated = film("rotated")[0]
    with av.open(str(rotated)) as container:
        assert next(container.decode(video=0)).rotation % 360 in (90, 270)
    assert np.abs(decode(rotated).images.astype(int) - intact.images).mean() < 3
    for path in film("too_short_audio"):  # for an audio encoder
        assert 0 < len(decode(path, frames=False).waveform) < 400
    video, audio = film("no_audio_track")
    assert decode(video).waveform is None
    assert not audio.exists()
    assert not any((tmp_path / "no_audio_track/text").iterdir())
    assert np.abs(decode(film("silent")[1], frames=False).waveform).max() < 1e-3
    lying = timing(film("lying_rate")[0])
    assert lying["declared"] > 3 * lying["measured"]
    film("no_face")
    assert not list((tmp_path / "no_face").rglob("*.jpg"))


def test_two_workers_finish_an_interrupted_corpus_and_refuse_a_foreign_one(tmp_path, corpus):
    (tmp_path / "thesis.tex").write_text("mine")
    for place in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(CorpusError, match=r"synthetic\.json"):
            make(place, train=2, validation=1, test=0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(CorpusError, match="same parameters"):
        make(corpus, **COUNTS, seed=4)
    copy, calls = tmp_path / "copy", []
    shutil.copytree(corpus, copy)
    names = [Path(path).stem for path in read(copy)["video"].dropna()]
    next(copy.rglob(f"{names[0]}.mp4")).unlink()
    (copy / ".synthetic" / "notes" / f"{names[1]}.json").unlink()
    next(copy.rglob(f"{names[1]}.mp4")).write_bytes(b"cut")
    damage(next(copy.rglob(f"{names[2]}.mp4")), 0.4, 0.6, flips=1)
    faces = [p for p in copy.rglob("face_images/*/2.jpg") if p.parent.name not in names[:3]]
    damage(faces[0], 0.4, 0.6, flips=1)
    note = copy / ".synthetic" / "notes" / f"{faces[1].parent.name}.json"
    damage(note, 0.1, 0.9, flips=1)  # is not UTF-8
    damage(copy / "synthetic.json", 0.4, 0.6, flips=1)
    (copy / "train_split.csv").unlink()
    progress = lambda done, _: calls.append(done)  # noqa: E731
    make(copy, **COUNTS, seed=3, workers=2, progress=progress)
    assert calls == [16, 21]
    kept, made = (
        {p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()}
        for f in (corpus, copy)
    )
    assert kept == made
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.mp4")}
    make(copy, **COUNTS, seed=3, progress=progress)
    assert before == {path: path.stat().st_mtime_ns for path in copy.rglob("*.mp4")}
