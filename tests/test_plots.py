"""Figures draw what they are given; pickers show the first choice, and in a front end any other."""

import base64
import os
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import jupyter_client
import numpy as np
import pandas as pd
import pytest
from conftest import sine
from conftest import write_media as write
from IPython.display import Audio, Image, Video
from matplotlib.figure import Figure

from emilib.plots import browse, corpus_plots, notebook, style

CORPUS = "embedded corpus: drawn faces, synthetic voices"


def texts(figure):
    return [t.get_text().replace("\n", " ") for f in (figure, *figure.axes) for t in f.texts]


def table():
    """Three rows like those of Table B4, the last without a result, the first the reference."""
    columns = ["row", "reference", "paper", "here", "low", "high", "status"]
    columns += ["delta_paper", "delta_here", "delta_low", "delta_high"]
    nan = np.nan
    rows = [
        ["Text", "Text", 0.55, 0.40, 0.35, 0.5, "", nan, nan, nan, nan],
        ["Audio", "Text", 0.51, 0.30, 0.25, 0.35, "", -0.04, -0.1, -0.2, -0.01],
        ["Vision", "Text", 0.39, nan, nan, nan, "not trained", -0.16, nan, nan, nan],
    ]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["name"] = "B4"
    return frame


def test_tables_are_drawn_as_they_are():
    figure = style.reported_and_here(table(), CORPUS)
    axes = figure.axes[0]
    np.testing.assert_allclose(
        axes.collections[0].get_offsets()[:, 0].astype(float), table()["paper"]
    )
    line, _, (bars,) = axes.containers[0]
    np.testing.assert_allclose(line.get_xdata().astype(float), table()["here"])
    np.testing.assert_allclose(bars.get_segments()[1][:, 0], [0.25, 0.35], atol=1e-12)
    assert {CORPUS, "not trained", "Table 4 of paper B: paper and here"} <= set(texts(figure))
    axes = style.differences(table()).axes[0]
    assert axes.containers[0].lines[0].get_xdata() == [-0.1]
    assert axes.get_xlabel() == "ρ minus that of Text"
    with pytest.raises(ValueError, match="differences"):
        style.differences(table()[:1])


def test_curves_hold_their_numbers():
    runs = [pd.DataFrame({"epoch": [1, 2], "loss": [3.0, 1.0], "rho": [0.1, r]}) for r in (0, 0.4)]
    loss, rho = style.learning_curves({"one": runs}).axes
    np.testing.assert_allclose(loss.lines[-1].get_ydata(), [3, 1])
    np.testing.assert_allclose(rho.lines[2].get_ydata(), [0.1, 0.2])
    assert [tuple(line.get_xydata()[0]) for line in rho.lines[3:]] == [(1, 0.1), (2, 0.4)]


def test_files_are_the_same_bytes_each_time(tmp_path):
    for run in "12":
        style.save(style.differences(table(), CORPUS), tmp_path / run, "b4", table())
    first, second = ((tmp_path / run / "b4.svg").read_bytes() for run in "12")
    assert first == second
    assert ET.fromstring(first).tag.endswith("svg")
    back = pd.read_csv(tmp_path / "1" / "b4.csv")
    np.testing.assert_allclose(back["here"], table()["here"])
    pictures = [notebook.show(style.differences(table())) for _ in range(2)]
    assert pictures[0].data == pictures[1].data
    assert pictures[0].alt.startswith("Table 4")


def test_sound_and_spectrogram_show_every_peak_and_tone():
    waveform = np.random.default_rng(0).standard_normal(10_007)
    time, low, high = style.envelope(waveform, 1000, points=90)
    assert (len(time), low.min(), high.max()) == (90, waveform.min(), waveform.max())
    for start, bottom, top in zip(time, low, high, strict=True):
        assert bottom <= waveform[round(start * 1000)] <= top
    level, step = corpus_plots.spectrogram(np.sin(np.arange(16_000) * np.pi / 8), 16_000)
    assert (step, level.shape[1], level.max()) == (0.010, 100, 0)
    assert abs(level[:, 50].argmax() * 8000 / (len(level) - 1) - 1000) < 20
    assert level.min() == corpus_plots.FLOOR_DB
    assert style.shown_frames(31, 4).tolist() == [0, 10, 20, 30]
    assert style.shown_frames(2, 4).tolist() == [0, 1]


def card(labels, words=None, **parts):
    empty = {"images": None, "waveform": None, "sample_rate": 16_000, "duration": np.nan}
    media = SimpleNamespace(**(empty | parts))
    labels = pd.Series(labels, index=["Awe", "Joy"])
    return corpus_plots.clip_card(media, "Clip 1", labels, words, ["silent: all of it"], CORPUS)


def test_a_card_shows_what_a_clip_has_and_says_what_it_lacks():
    images, sound = np.zeros((12, 4, 4, 3), np.uint8), np.sin(np.arange(32_000))
    parts = {"images": images, "times": np.arange(12) / 6, "waveform": sound, "duration": 2.0}
    figure = card([0.5, 0.0], "Oh, well.", **parts)
    assert {"“Oh, well.”", "0.50", "0.00", "silent: all of it", CORPUS} <= set(texts(figure))
    assert len(figure.axes[0].images) == corpus_plots.MOST_FACES
    bars = next(axes for axes in figure.axes if axes.patches).patches
    assert [bar.get_width() for bar in bars] == [0.5, 0]
    lacking = {"no frame could be decoded", "no sound", "no labels", "no words"}
    assert lacking <= set(texts(card([np.nan, np.nan], np.nan)))


# ---------------------------------------------------------------------------- code and tables


def test_source_is_shown_without_docstrings_and_tables_aligned():
    code = notebook.code_of(browse.pick)
    assert '"""' not in code
    compile(code, "shown", "exec")
    frame = pd.DataFrame({"what": ["a|b", "c"], "rho": [-0.12345, np.nan]})
    lines = notebook.show_table(frame, digits=2).data.splitlines()
    assert lines == ["| what | rho |", "| :-- | --: |", "| a\\|b | −0.12 |", "| c | – |"]
    with pytest.raises(ValueError, match="mismatch"):
        notebook.show_table(frame, ["one"])


# ------------------------------------------------------------------------------------ pickers

GROUPS = {"short": {"one": 1, "two": 2}, "empty": {}, "long": {"three": 3}}


def answers(client, code, metadata):
    content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}}
    content |= {"allow_stdin": False, "stop_on_error": True}
    request = client.session.msg("execute_request", content, metadata=metadata)
    client.shell_channel.send(request)
    printed = ""
    while True:
        message = client.get_iopub_msg(timeout=120)
        if message["parent_header"].get("msg_id") == request["header"]["msg_id"]:
            printed += message["content"].get("text", "")
            assert message["msg_type"] != "error", message["content"]
            if message["content"].get("execution_state") == "idle":
                return printed.strip()


def test_a_kernel_is_live_when_the_request_names_a_cell(monkeypatch):
    # As a run of notebooks started from within JupyterLab inherits it.
    environment = os.environ | {"JPY_SESSION_NAME": "/some/notebook.ipynb", "EMI_WIDGETS": ""}
    manager, client = jupyter_client.manager.start_new_kernel(env=environment)
    try:
        code = "from emilib.plots.browse import live\nprint(live())"
        assert answers(client, code, {}) == "False"
        assert answers(client, code, {"cellId": "c084"}) == "True"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    for switch, expected in (("on", True), ("off", False), ("", False)):
        monkeypatch.setenv("EMI_WIDGETS", switch)
        assert browse.live() == expected
    monkeypatch.setenv("EMI_WIDGETS", "maybe")
    with pytest.raises(ValueError, match="EMI_WIDGETS"):
        browse.live()


def picker(monkeypatch, switch, **options):
    """What `pick` returns, and the keys it has drawn so far."""
    monkeypatch.setenv("EMI_WIDGETS", switch)
    drawn = []

    def draw(key):
        drawn.append(key)
        figure = Figure(figsize=(1, 1))
        figure.text(0, 0, f"picture {key}")
        return figure

    return browse.pick(GROUPS, draw, **options), drawn


def test_a_choice_draws_that_one_and_nobody_sees_the_first(monkeypatch):
    still, drawn = picker(monkeypatch, "off", play=lambda key: pytest.fail("nobody listens"))
    assert isinstance(still, Image)
    assert (still.alt, drawn) == ("picture 1", [1])
    live, drawn = picker(monkeypatch, "on", first=2)
    assert (live.group.value, live.choice.value, drawn) == ("short", 2, [2])
    assert [label for label, _ in live.group.options] == ["short (2)", "long (1)"]
    live.choice.value = 1
    live.group.value = "long"
    assert (live.choice.value, drawn) == (3, [2, 1, 3])
    data, _ = live._repr_mimebundle_()  # a notebook saved without its widgets
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == live.model_id
    with pytest.raises(ValueError, match="9"):
        picker(monkeypatch, "on", first=9)


def test_groups_follow_splits_defects_and_gaps():
    clips = pd.DataFrame({"id": ["1", "2", "3"], "split": ["train", "test", "train"]})
    defects = pd.DataFrame({"id": ["3", "9", "3"], "defect": ["silent", "silent", "no face"]})
    groups = browse.clip_groups(clips, defects)
    assert {name: list(ids) for name, ids in groups.items()} == {
        "train": ["1", "3"],
        "test": ["2"],
        "no face": ["3"],
        "silent": ["3"],
    }
    present = np.array([[1, 0, 0], [1, 1, 1], [0, 1, 1]], bool)
    assert browse.gap_groups("abc", present) == {
        "everything": {"b": 1},
        "no sound, no words": {"a": 0},
        "no face": {"c": 2},
    }


def test_players_hold_the_file_or_say_why_not(tmp_path, monkeypatch):
    good = write(tmp_path / "1.mp4", np.arange(5) / 5)
    sound = write(tmp_path / "1.mp3", sound=sine(440, 1, 16000), sound_codec="mp3")
    video, audio = browse.players(str(good), str(sound))
    assert isinstance(video, Video)
    assert isinstance(audio, Audio)
    assert base64.b64encode(good.read_bytes()).decode() in video._repr_html_()
    assert base64.b64encode(sound.read_bytes()).decode() in audio._repr_html_()
    odd = write(tmp_path / "2.mp4", np.arange(5) / 5, codec="mpeg4", rate=5)
    old = write(tmp_path / "3.avi", np.arange(5) / 5, codec="h264", rate=5)
    (tmp_path / "4.mp4").write_bytes(b"no video at all")
    reasons = {odd: "mpeg4", old: "3.avi", tmp_path / "4.mp4": "can't be played"}
    for path, reason in reasons.items():
        assert reason in browse.players(str(path), None)[0].data
    none, silent = browse.players(None, float("nan"))
    assert "no video" in none.data
    assert "no sound file" in silent.data
    monkeypatch.setattr(browse, "LARGEST_MB", 0)
    for path, player in zip((good, sound), browse.players(str(good), str(sound)), strict=True):
        assert f"{path.name} has 0 MB" in player.data
