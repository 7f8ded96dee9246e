import json
import subprocess
import sys

import av
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import portrait, write_media
from hypothesis import given
from hypothesis import strategies as st

from emilib import EMOTIONS, SAMPLE_RATE
from emilib import __main__ as command_line
from emilib.corpus.media import MediaError
from emilib.export import predictor_of
from emilib.plots import clip_plots, style
from emilib.predict import Clip, EmiPredictor
from emilib.predict import predictor as predictor_module
from emilib.predict.clip import windows_of
from emilib.predict.report import words_of
from emilib.runner import ROOT
from emilib.training.loop import predict as predict_features

E, SPREADS = list(EMOTIONS), [f"{e} sd" for e in EMOTIONS]


@pytest.fixture(autouse=True)
def _no_whisper(monkeypatch, tmp_path):
    """Words are what a test gives, also on a machine that has Whisper's weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("EMI_WEIGHTS", raising=False)


@pytest.fixture(scope="module")
def predictor(workspace):
    return predictor_of(workspace, "taemi")


@pytest.fixture(scope="module")
def folder(predictor, tmp_path_factory):
    return predictor.save_pretrained(tmp_path_factory.mktemp("model") / "taemi")


def make_video(path, seconds=3.0, picture=True, sound=True, fps=10):
    """A face and noise; no two moments are alike."""
    wave = np.random.default_rng(0).normal(0, 0.1, (1, round(seconds * SAMPLE_RATE)))
    times = np.arange(round(seconds * fps)) / fps if picture else ()
    options = {"rate": fps, "codec": "mpeg4", "options": {}, "make": portrait}
    return write_media(path, times, wave if sound else None, **options)


def copied(source, path, kinds=("video", "audio"), **options):
    """Streams of a file in another one."""
    with av.open(str(source)) as old, av.open(str(path), "w", options=options) as new:
        streams = {s: new.add_stream_from_template(s) for s in old.streams if s.type in kinds}
        for packet in old.demux(*streams):
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                new.mux(packet)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("video") / "short.mp4")


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("video") / "long.mp4", seconds=32.5, fps=2)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, video):
    base = tmp_path_factory.mktemp("mixed")
    paths = {n: base / f"{n}.mp4" for n in ("both", "mute", "blind", "zero", "none", "locked")}
    make_video(paths["both"], 2.0)
    make_video(paths["mute"], 2.5, sound=False)
    make_video(paths["blind"], 3.0, picture=False)
    paths["zero"].touch()
    key = "00112233445566778899aabbccddeeff"
    locked = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": key, "encryption_kid": key}
    copied(video, paths["locked"], **locked)  # half of its noise passes for sound
    return paths


def test_prediction_equals_the_workspaces_features_and_models(workspace, predictor):
    data = workspace.features("ours").validation
    position = int(np.flatnonzero(data.present.all(axis=1))[0])
    row = workspace.clips.set_index("id").loc[data.ids[position]]
    clip = Clip(row["video"], row["audio"], row["faces"], row["transcript"])
    [prediction] = predictor.predictions(clip)
    results = workspace.results(["taemi"])
    models = [results.model("taemi", seed) for seed in workspace.profile.seeds]
    expected = [predict_features(model, data)[position] for model in models]
    # Features are kept in half precision, and a batch's padding moves their last bit.
    np.testing.assert_allclose(prediction.intensity[:, 0], expected, atol=2e-3)
    assert np.std(expected) > 5e-3
    row = predictor.predict(clip).iloc[0]
    mean, spread = np.mean(expected, axis=0).clip(0, 1), np.std(expected, axis=0, ddof=1)
    np.testing.assert_allclose(row[E].astype(float), mean, atol=2e-3)
    np.testing.assert_allclose(row[SPREADS].astype(float), spread, atol=3e-3)


def test_a_saved_predictor_gives_the_same_numbers_and_says_what_it_is(predictor, folder, video):
    again, threads, found = EmiPredictor.from_pretrained(folder), torch.get_num_threads(), []
    for count, one in enumerate((predictor, again), 1):
        torch.set_num_threads(count)
        found.append(next(one.predictions(video, text="So happy.")).intensity)
    torch.set_num_threads(threads)
    np.testing.assert_array_equal(*found)
    assert (again.note, again.settings) == (predictor.note, predictor.settings)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".md"}
    assert len({path.stat().st_mode for path in files}) == 1
    card, config = (folder / "README.md").read_text(), (folder / "config.json").read_text()
    facts = json.loads(config)["facts"]
    emotions = [f"| {e} | {r:.3f} |\n" for e, r in facts["rho_of_each"].items()]
    parts = [f"{facts['rho']:.3f} ± {facts['rho_sd']:.3f}", "license: mit", "seeds 0, 1"]
    for part in (*parts, "drawn faces and synthetic voices", "| vision |", "14 train", *emotions):
        assert part in card
    assert "Whisper" not in card, "advice for the machine that wrote it"


def test_each_bad_file_is_a_row_and_company_changes_no_number(predictor, mixed, monkeypatch):
    table = predictor.predict(list(mixed.values())).set_index(np.array(list(mixed)))
    assert table["status"].tolist() == ["ok"] * 3 + ["failed"] * 3
    assert table["missing"].tolist() == ["text", "audio, text", "frames, text", "", "", ""]
    assert table["problems"].tolist()[:3] == ["", "no sound track", "no picture"]
    assert table[E].iloc[:3].to_numpy(float).min() >= 0
    assert table[E].iloc[3:].isna().all(axis=None)
    for name, reason in (("zero", "empty"), ("none", "no file"), ("locked", "encrypted")):
        assert reason in table.loc[name, "reason"]
    assert "drawn faces and synthetic voices" in table.attrs["note"]
    for method in (predictor.without, predictor.over_time, predictor.look):
        with pytest.raises(MediaError, match="empty"):
            method(mixed["zero"])
    paths = [mixed[name] for name in ("both", "mute", "blind", "zero")]
    first = predictor.predict(paths).set_index("clip")
    monkeypatch.setattr(predictor_module, "FEW", 1)  # now in other processes
    second = predictor.predict(paths[::-1]).set_index("clip")
    columns = [*E, *SPREADS, "missing", "problems", "reason"]
    assert first[columns].equals(second.loc[first.index, columns])


SLOW = ("matplotlib", "numba", "sklearn", "whisper")
COMMAND = """
import sys
from emilib.__main__ import main
code = main()
print(*(name for name in {SLOW} if name in sys.modules), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.slow
def test_a_clip_from_the_shell_waits_for_no_library_that_it_does_not_need(folder, video):
    command = [sys.executable, "-c", COMMAND.replace("{SLOW}", str(SLOW))]
    command += ["predict", video, "--model", folder]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stderr.splitlines()[1:] == [""]
    assert "Empathic Pain" in result.stdout


def test_arguments_that_make_no_sense_are_refused(workspace, predictor):
    for name in ("baseline_average", "vit_baseline", "savchenko_2025_leaked", "x"):
        with pytest.raises(ValueError, match=f"got '{name}'"):
            predictor_of(workspace, name)
    for paths, text in ((["a.mp4", "b.mp4"], "words"), (["a.mp4"], ["a", "b"]), ([], None)):
        with pytest.raises(ValueError, match="expected"):
            predictor.predict(paths, text)
    for window, step in ((0.5, None), (90, None), (None, 13), (12, 0)):
        with pytest.raises(ValueError, match="expected a window"):
            predictor.predict("a.mp4", window=window, step=step)


def test_without_a_modality_is_as_if_the_clip_had_none(predictor, video, tmp_path):
    table = predictor.without(video, text="I am going to win.")
    muted = copied(video, tmp_path / "muted.mp4", ["video"])
    blind = copied(video, tmp_path / "blind.mp4", ["audio"])
    clips = {"all": video, "without frames": blind, "without audio": muted, "without text": video}
    assert list(table.index) == list(clips)
    for name, path in clips.items():
        text = "" if name == "without text" else "I am going to win."
        alone = predictor.predict(path, text=text)[E].to_numpy(float)[0]
        np.testing.assert_allclose(table.loc[name], alone, atol=1e-5, err_msg=name)
    assert len(table.round(6).drop_duplicates()) == 4


def test_look_gives_attention_or_weights_over_the_clip(predictor, video, workspace, mixed):
    look = predictor.look(video, text="I am happy.")
    assert look.images.shape == (15, 3, 64, 64)
    np.testing.assert_allclose(look.times, np.arange(15) / 5, atol=0.02)
    for name in ("frames", "audio"):
        attention, borders = look.attention[name], look.attention_borders[name]
        assert attention.shape[:2] == (2, 4)
        np.testing.assert_allclose(attention.sum(axis=-1), 1, atol=1e-5)
        assert len(borders) == attention.shape[-1] + 1
        assert (np.diff(borders) >= 0).all()
        assert borders[[0, -1]] == pytest.approx([0, look.end], abs=0.1)
    assert look.weights is None
    figure = clip_plots.explained(look, predictor.note)
    assert "attention\nover frames" in [axes.get_ylabel() for axes in figure.axes]
    look = predictor_of(workspace, "dual_stage_vat").look(mixed["mute"], text="Fine.")
    assert (look.attention, look.weights.shape) == (None, (2, 6, 3))
    np.testing.assert_allclose(look.weights.sum(axis=2), 1, atol=1e-6)
    assert (look.weights[:, :, 1] == 0).all()
    np.testing.assert_allclose(look.weight_borders, np.linspace(0, look.end, 7))
    assert list(look.without.index) == ["all", "without frames", "without text"]
    assert style.rendered(clip_plots.explained(look), "png").startswith(b"\x89PNG")


@given(st.floats(1, 3600), st.floats(1, 30), st.floats(0.1, 1))
def test_windows_cover_the_clip(duration, window, share):
    starts, ends = windows_of(duration, window, share * window)
    assert starts[0] == 0
    assert ends[-1] == pytest.approx(duration)
    assert (starts[1:] <= ends[:-1] + 1e-9).all()
    assert (np.diff(starts) > 0).all()
    assert (np.diff(starts) <= share * window + 1e-6).all()
    assert len(starts) == 1 or np.allclose(ends - starts, window)


def test_a_long_clip_is_the_mean_of_its_windows_and_looked_at_in_one(predictor, long_video):
    table = predictor.over_time(long_video, text="Well.", window=12, step=6)
    np.testing.assert_allclose(table["start"], [0, 6, 12, 18, 20.5], atol=0.5)
    np.testing.assert_allclose(table["end"].iloc[-1], 32.5, atol=0.5)
    row = predictor.predict(long_video, text="Well.").iloc[0]
    assert row["windows"] == 5
    inside = [e for e in E if table[e].min() > 0]  # else a window is cut at 0, and so is their mean
    np.testing.assert_allclose(row[inside].astype(float), table[inside].mean(), atol=1e-6)
    assert len(inside) > 2
    figure = clip_plots.over_time(table, predictor.emotions, "long.mp4", predictor.note)
    [mesh], [dots] = figure.axes[0].collections, figure.axes[0].lines
    np.testing.assert_allclose(mesh.get_array().T, table[E].to_numpy(float))
    strongest = dots.get_ydata() - 0.5
    np.testing.assert_array_equal(strongest, table[E].to_numpy(float).argmax(axis=1))
    look = predictor.look(long_video, text="Well.", start=18.0)
    assert (look.start, look.end) == (18.0, 30.0)
    assert 18 <= look.times.min() < look.times.max() <= 30
    assert look.attention_borders["audio"][0] == 18
    np.testing.assert_allclose(look.without.loc["all"], table.loc[3, E].astype(float), atol=1e-6)
    assert predictor.look(long_video, start=90.0).end == look.prediction.duration


def test_words_of_the_command(tmp_path):
    (tmp_path / "a.txt").write_text("I am glad.")
    clips = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for text, words in ((str(tmp_path), ["I am glad.", None]), (None, [None, None])):
        assert words_of(clips, text) == words
    for text, words in ((str(tmp_path / "a.txt"), "I am glad."), ("Well." * 100, "Well." * 100)):
        assert words_of(clips[:1], text) == [words]
    with pytest.raises(ValueError, match="folder"):
        words_of(clips, "Well.")


def test_the_command_writes_table_files_and_pictures(
    folder, mixed, long_video, tmp_path, monkeypatch, capsys
):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["emilib", "predict", *map(str, arguments)])
        return command_line.main(), *capsys.readouterr()

    out, model = tmp_path / "out", ("--model", folder)
    files = ("--json", out / "a.json", "--csv", out / "a.csv")
    code, printed, progress = run(mixed["both"], long_video, *model, *files)
    assert code == 0
    assert "1/2" in progress
    assert "1/2" not in printed
    clips = json.loads((out / "a.json").read_text())["clips"]
    assert [len(clip["windows"]) for clip in clips] == [1, 5]
    assert (out / "a.csv").read_text().startswith("clip,status,Admiration,Amusement")
    windows = ("--window", "12", "--step", "12", "--picture", out, "--csv", out / "b.csv")
    code, printed, progress = run(long_video, mixed["zero"], *model, *windows)
    assert code == 1
    assert "1 of 2 files could not be predicted" in progress
    lines = [line for line in printed.splitlines() if line.strip().startswith(str(long_video))]
    *rows, failed = pd.read_csv(out / "b.csv").to_dict("records")
    assert (len(rows), failed["status"]) == (3, "failed")
    for line, row in zip(lines, rows, strict=True):
        assert line.split()[-2:] == ["ok", "text"]
        for emotion in E:
            assert f"{row[emotion]:.2f} ±{row[f'{emotion} sd']:.2f}" in line
    assert {path.name for path in out.glob("*.png")} == {"long.png", "long-over-time.png"}
