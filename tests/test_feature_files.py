import dataclasses
import json
import pickle

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from test_media import Trap

from emilib import pipeline, profiles
from emilib.corpus import CorpusError
from emilib.corpus.feature_files import holds_features, read_features
from emilib.study import tables, tuning

WIDTHS = {"vision": (9, 5), "audio": (14, 3), "text": (7, 4)}  # steps and width


def written(path, front=False, lengths=True, protocol=4, **changes):
    """An MMSA pickle; the real steps of each clip by id and modality."""
    draw, parts, real = np.random.default_rng(0), {}, {}
    for split, count in (("train", 12), ("valid", 5), ("test", 3)):
        target = draw.uniform(-3, 3, count).astype(np.float32)
        ids = [f"{split}{n // 2}$_${n % 2}" for n in range(count)]
        part = {"id": ids, "raw_text": np.array([f"word {id_}" for id_ in ids])}
        part["regression_labels"] = target
        for name, (steps, width) in WIDTHS.items():
            array, counts = np.zeros((count, steps, width), np.float32), []
            for row, id_ in enumerate(ids):
                counts.append(int(draw.integers(1, steps + 1)))
                values = (draw.normal(size=(counts[-1], width)) + target[row]).astype(np.float32)
                place = slice(steps - counts[-1], None) if front else slice(counts[-1])
                array[row, place] = real[id_, name] = values
            mask = np.arange(steps) < np.array(counts)[:, None]
            mine = {"text_bert": np.stack([mask * 7.0, mask, mask * 0.0], axis=1)}
            mine = mine if name == "text" else {f"{name}_lengths": counts}
            part |= {name: array} | (mine if lengths else {})
        parts[split] = part | {name: change(part) for name, change in changes.items()}
    path.write_bytes(pickle.dumps(parts, protocol=protocol))
    return parts, real


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize(("lengths", "protocol"), [(True, 2), (False, 5)])
def test_a_pickle_gives_the_real_steps_of_each_clip(tmp_path, front, lengths, protocol):
    parts, real = written(tmp_path / "mosi.pkl", front, lengths, protocol)
    table, arrays = read_features(tmp_path / "mosi.pkl")
    for (id_, name), values in real.items():
        expected = values.mean(axis=0, keepdims=True) if name == "text" else values
        modality = {"vision": "frames"}.get(name, name)
        np.testing.assert_allclose(arrays[modality][id_], expected, rtol=1e-6)
    expected = np.concatenate([part["regression_labels"] for part in parts.values()])
    np.testing.assert_array_equal(table["sentiment"], expected)
    assert table["split"].value_counts().to_dict() == {"train": 12, "validation": 5, "test": 3}
    known = ["train0$_$1", "train0", "word train0$_$1"]
    assert table.loc[1, ["id", "group", "transcript"]].tolist() == known
    [note] = [note for note in table.attrs["notes"] if note.startswith("audio, 3 wide")]
    padded = sum(len(values) < 14 for (_, name), values in real.items() if name == "audio")
    known = "the file's lengths" if lengths else "rows of zeros"
    assert f"{padded} clips padded {'in front' if front else 'behind'} (by {known})" in note


@pytest.mark.parametrize(("pool", "row"), [("cls", 0), ("last", -1)])
def test_the_token_that_is_asked_for(tmp_path, pool, row):
    _, real = written(tmp_path / "a.pkl")
    _, arrays = read_features(tmp_path / "a.pkl", pool)
    np.testing.assert_array_equal(arrays["text"]["train3$_$0"][0], real["train3$_$0", "text"][row])


def test_safetensors_and_a_folder_say_the_same(tmp_path):
    parts, real = written(tmp_path / "a.pkl")
    expected, arrays = read_features(tmp_path / "a.pkl")
    tensors, words, folder = {}, {"targets": '["sentiment"]', "format": "pt"}, tmp_path / "folder"
    for split, part in parts.items():
        for name, values in part.items():
            if name in ("id", "raw_text"):
                words[f"{split}/{name}"] = json.dumps(list(values))
            else:
                tensors[f"{split}/{name}"] = np.asarray(values)
    save_file(tensors, tmp_path / "a.safetensors", words)
    (id_, _), *_ = real
    for (clip, name), values in real.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        save = np.savez if clip == id_ else np.save
        save(folder / name / clip, values)
    columns = expected[["id", "sentiment", "split", "group", "transcript"]]
    columns.rename(columns={"transcript": "text"}).to_csv(folder / "labels.csv", index=False)
    for source in (tmp_path / "a.safetensors", folder, folder / "labels.csv"):
        assert holds_features(source)
        table, same = read_features(source)
        both = [t.set_index("id").loc[expected["id"]] for t in (table, expected)]
        both = [t[t["split"] != "test"] for t in both]  # a CSV's test labels are not read
        for column in ("split", "group", "transcript", "sentiment"):
            assert both[0][column].tolist() == pytest.approx(both[1][column].tolist()), column
        for modality, by_id in arrays.items():
            for clip, values in by_id.items():
                np.testing.assert_allclose(same[modality][clip], values, rtol=1e-6)
    (folder / "clip.mp4").touch()
    assert not holds_features(folder), "media are read where there are any"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": lambda part: ["same"] * len(part["id"])}, "one clip an id"),
        ({"vision": lambda part: part["vision"][1:]}, "train vision.*expected 12, got 11"),
        ({"regression_labels": lambda part: part["regression_labels"] * np.nan}, "finite"),
        ({"audio": lambda part: np.ones((len(part["id"]), 2, 2, 2))}, r"\(T, D\) a clip"),
        ({"raw_text": lambda part: [Trap("/sprung")]}, "posix.mkdir, which is not run"),
    ],
)
def test_what_has_no_such_form_is_refused(tmp_path, changes, message):
    written(tmp_path / "a.pkl", **changes)
    with pytest.raises(CorpusError, match=message):
        read_features(tmp_path / "a.pkl")


def test_lengths_count_more_than_zeros_and_other_forms_are_refused(tmp_path):
    files = {"a.h5": b"", "a.safetensors": b"cut", "a.pkl": pickle.dumps({"train": {}})}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorpusError, match=r"HDF5|no readable safeten|got \['train'\]"):
            read_features(tmp_path / name)
    with pytest.raises(CorpusError, match="text pool: expected one of mean, cls, last, got 'max'"):
        read_features(tmp_path / "a.pkl", "max")

    def sound(part):
        array = np.ones((len(part["id"]), 14, 3))
        array[0], array[1, 4:], array[2, 0, 0] = 0, 0, -np.inf
        return array

    lengths = {"audio_lengths": lambda part: [6] * len(part["id"])}
    written(tmp_path / "a.pkl", audio=sound, **lengths)
    table, arrays = read_features(tmp_path / "a.pkl")
    first, second, third = list(arrays["audio"].values())[:3]
    assert first is None
    assert (len(second), second[3].all(), second[4].any()) == (6, True, False)
    assert (third[0, 0], np.isfinite(third).all()) == (0, True)
    assert "3 clips without" in table.attrs["notes"][1], "one in each split"
    assert "3 values not finite" in table.attrs["notes"][1]


def test_from_a_feature_file_to_tables(tmp_path, monkeypatch):
    """Tuned on its own training people, every row of B2 that needs no encoder of ours."""
    listed, names = pipeline.all_experiments, ("vit_baseline", "taemi", "dual_stage_no_stage_one")
    few = lambda profile: {n: e for n, e in listed(profile).items() if n in names}  # noqa: E731
    monkeypatch.setattr(pipeline, "all_experiments", few)
    monkeypatch.setattr(tuning, "GRID", {"lr": (1e-3, 1e-2), "epochs": (1, 2)})
    parts, _ = written(tmp_path / "mosi.pkl")
    profile = dataclasses.replace(profiles.embedded(), workers=1, seeds=(0,), more_seeds=False)
    place = (tmp_path / "mosi.pkl", tmp_path / "home")
    ws = pipeline.Workspace(profile, *place)
    assert ws.plan()["done"].sum() == 0
    results = ws.results()
    scores = pd.read_csv(next(place[1].rglob("tuning.csv")), comment="#")
    assert scores["experiment"].value_counts().to_dict() == {"vit_baseline": 3, "taemi": 3}
    best = scores.loc[scores[scores["experiment"] == "taemi"]["rho"].idxmax()]
    recipe = results["taemi"].experiment.recipe
    assert (recipe.lr, recipe.epochs) == (best["lr"], best["epochs"])
    assert results.lacking == {"dual_stage_no_stage_one": "no encoders"}
    again = pipeline.Workspace(profile, *place).plan()
    assert again["done"].tolist() == again["all"].tolist()
    b2 = tables.table("B2", results, ws.corpus_name).set_index("row")
    assert b2.loc[["ViT (baseline)", "TAEMI"], ["here", "test"]].notna().all(axis=None)
    sentiment = tables.sentiment(results, ws.corpus_name).set_index("Row")
    error = np.abs(results["taemi"].test_predictions[0, :, 0] - parts["test"]["regression_labels"])
    assert sentiment.loc["TAEMI", "MAE"] == pytest.approx(error.mean())
    with pytest.raises(ValueError, match="expected media, got features"):
        ws.encoders("start")
