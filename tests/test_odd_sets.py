"""Every notebook goes through tiny sets that lack a modality or have odd targets."""

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import portrait, sine, write_media

from emilib import EMOTIONS, runner, workers
from emilib.plots import notebook, style

SPLITS = ["train"] * 8 + ["val"] * 4
WORDS = list("abcdefghijkl")
WIDTHS = {"vision": (6, 5), "audio": (9, 3), "text": (4, 4)}  # steps and width


def own_clips(folder, pictures=True, sound=True, **columns):
    """Twelve clips of 0.8 s and their CSV; without pictures they are sound files."""
    folder.mkdir()
    names = [f"clip{n}.{'mp4' if pictures else 'wav'}" for n in range(len(SPLITS))]
    for n, name in enumerate(names):
        wave = sine(200 + 40 * n, 0.8) if sound else None
        options = {} if pictures else {"sound_codec": "pcm_s16le"}
        times = np.arange(0, 0.8, 0.2) if pictures else ()
        options |= {"make": lambda k, *size, n=n: portrait(k + 4 * n, *size), "size": (120, 160)}
        write_media(folder / name, times, wave, **options)
    table = pd.DataFrame({"file": names, "split": SPLITS, **columns})
    table.to_csv(folder / "labels.csv", index=False)
    return folder


def feature_file(path, target, has):
    """An MMSA pickle of 8, 4 and 3 clips that are zeros where they lack a modality."""
    draw, parts, ends = np.random.default_rng(0), {}, {"train": 8, "valid": 12, "test": 15}
    for split, end in ends.items():
        rows = target[max([e for e in ends.values() if e < end], default=0) : end]
        parts[split] = {"id": [f"{split}$_${n}" for n in range(len(rows))]}
        parts[split] |= {"regression_labels": rows, "raw_text": ["oh"] * len(rows)}
        for name, shape in WIDTHS.items():
            parts[split][name] = draw.normal(size=(len(rows), *shape)) * (name in has)
    path = path.with_suffix(".pkl")
    path.write_bytes(pickle.dumps(parts))
    return path


DRAW = np.random.default_rng(1)
MANY = {f"t{n}": DRAW.normal(size=12) for n in range(20)} | {"t3": 4.0}
ONE_CLASS = {name: float(name == "Joy") for name in EMOTIONS}
# Chapters about made-up data and worlds are the same for every set.
NO_SET = "00-15 00-17 00-19 00-21 00-22 cell-77 cell-78 c093 c095 c095b c095d c096 c098 own-41"
NO_SET += " 00-25 own-43 own-43b own-43d own-43f own-43g own-47 own-48"
NO_SET += " w01 w03 w05 w07 w09 w09a w10 w12 w13a w14 w16 w18"
EVERY, OF_MEDIA, OF_FEATURES = "00 01 02 03 04 05 06 07 08", "00 01 02 03 08", "04 05 06 07"
DEAF = {"sound": False, "speaker": "ann", "text": WORDS, **MANY}
BLIND = {"pictures": False, "text": WORDS, **ONE_CLASS}
NEGATIVE = {"target": -DRAW.random(15), "has": ("vision", "audio")}
ALONE = {"target": DRAW.normal(size=(15, 20)), "has": ("vision",)}
SETS = {  # name: notebooks, what makes it
    "no sound, one speaker, 20 targets, one constant": (EVERY, own_clips, DEAF),
    "no words, 1 target": (OF_MEDIA, own_clips, {"joy": DRAW.random(12)}),
    "no frames, one class of label": (OF_MEDIA, own_clips, BLIND),
    "features without words, all negative": (OF_FEATURES, feature_file, NEGATIVE),
    "features of frames alone, 20 targets": (OF_FEATURES, feature_file, ALONE),
}


def drawn(figure, kind):
    """All that a figure holds is drawn, which finds what can't be, and not laid out or kept."""
    figure.set_layout_engine("none")
    figure.draw_without_rendering()
    return kind.encode()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where all sets are at work: what needs no corpus is made once."""
    return tmp_path_factory.mktemp("odd")


@pytest.mark.parametrize("name", SETS)
def test_every_cell_runs(name, home, monkeypatch):
    numbers, make, settings = SETS[name]
    corpus = make(home / f"set {list(SETS).index(name)}", **settings)
    settings = {"PROFILE": "smoke", "SEEDS": "1", "HOME": str(home), "CORPUS": str(corpus)}
    for variable, value in settings.items():
        monkeypatch.setenv(f"EMI_{variable}", value)
    monkeypatch.setattr(workers, "count", lambda: 1)
    monkeypatch.setattr(style, "save", lambda figure, folder, name, data: data.to_csv())
    monkeypatch.setattr(notebook, "rendered", drawn)
    monkeypatch.chdir(runner.ROOT / "notebooks")
    media, failures = corpus.is_dir(), []
    for path in runner.discover(Path.cwd()):
        if path.name[:2] not in numbers.split():
            continue
        space = {"__name__": "__main__", "display": lambda *shown: None}
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            tags, source = cell["metadata"].get("tags", []), "".join(cell["source"])
            if cell["cell_type"] != "code" or cell["id"] in NO_SET.split():
                continue
            try:
                if media or runner.MEDIA_TAG not in tags:
                    exec(compile(source, path.name, "exec"), space)
            except Exception as error:
                failures.append(f"{path.name}, {cell['id']}: {error!r}")
    assert not failures, "\n".join(failures)
