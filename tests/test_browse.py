"""Pickers: a still picture where nobody can choose, and what a choice changes elsewhere."""

import base64
import os
import re
import types
from queue import Empty

import jupyter_client
import numpy as np
import pandas as pd
import pytest
import torch
from IPython.display import Audio, Image, Markdown, Video
from matplotlib.figure import Figure
from test_media import sine, write

from emilib.features import FeatureSet
from emilib.models import TAEMI, DualStage
from emilib.plots import browse

CORPUS = "embedded corpus: drawn faces, synthetic voices"
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def widgets(monkeypatch):
    monkeypatch.setenv("EMI_WIDGETS", "on")


@pytest.fixture(autouse=True)
def _no_switch(monkeypatch):
    monkeypatch.delenv("EMI_WIDGETS", raising=False)


# ------------------------------------------------------------------------------------- live


def answers(client, code, metadata):
    content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}}
    content |= {"allow_stdin": False, "stop_on_error": True}
    request = client.session.msg("execute_request", content, metadata=metadata)
    client.shell_channel.send(request)
    printed = []
    while True:
        message = client.get_iopub_msg(timeout=120)
        if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
            continue
        printed.append(message["content"].get("text", ""))
        assert message["msg_type"] != "error", message["content"]
        if message["content"].get("execution_state") == "idle":
            return "".join(printed).strip()


def test_a_real_kernel_is_live_when_the_request_names_a_cell():
    # As a run of notebooks started from within JupyterLab inherits it.
    environment = os.environ | {"JPY_SESSION_NAME": "/some/notebook.ipynb"}
    manager, client = jupyter_client.manager.start_new_kernel(env=environment)
    try:
        code = "from emilib.plots.browse import live\nprint(live())"
        assert answers(client, code, {}) == "False"
        assert answers(client, code, {"cellId": "c084", "trusted": True}) == "True"
        with pytest.raises(Empty):
            client.get_iopub_msg(timeout=0.1)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_the_switch_has_the_last_word(monkeypatch):
    assert not browse.live()
    monkeypatch.setenv("EMI_WIDGETS", "on")
    assert browse.live()
    shell = types.SimpleNamespace(get_parent=lambda: {"metadata": {"cellId": "a"}})
    monkeypatch.setattr(browse, "get_ipython", lambda: shell)
    monkeypatch.setenv("EMI_WIDGETS", "off")
    assert not browse.live()
    monkeypatch.delenv("EMI_WIDGETS")
    assert browse.live()
    monkeypatch.setenv("EMI_WIDGETS", "maybe")
    with pytest.raises(ValueError, match="EMI_WIDGETS is 'maybe'; it may be on, off or unset"):
        browse.live()


# ------------------------------------------------------------------------------------- pick

GROUPS = {"short": {"one": 1, "two": 2}, "empty": {}, "long": {"three": 3}}


def numbered(drawn):
    def draw(key):
        drawn.append(key)
        figure = Figure(figsize=(1, 1))
        figure.text(0, 0, f"picture {key}")
        return figure

    return draw


def test_without_a_live_front_end_there_is_the_first_picture_alone():
    drawn = []
    still = browse.pick(GROUPS, numbered(drawn), play=lambda key: pytest.fail("nobody listens"))
    assert isinstance(still, Image)
    assert still.data.startswith(b"\x89PNG")
    assert drawn == [1]
    browse.pick(GROUPS, numbered(drawn), first=3)
    assert drawn == [1, 3]


def test_a_choice_draws_that_one(widgets):
    drawn = []
    picker = browse.pick(GROUPS, numbered(drawn), lambda key: [Markdown(f"**{key}**")], first=2)
    assert (picker.group.value, picker.choice.value, drawn) == ("short", 2, [2])
    assert [label for label, _ in picker.group.options] == ["short (2)", "long (1)"]
    before = picker.output.outputs
    picker.choice.value = 1
    assert drawn == [2, 1]
    text, picture = (output["data"] for output in picker.output.outputs)
    assert text["text/markdown"] == "**1**"
    assert picture["image/png"] != before[1]["data"]["image/png"]
    picker.group.value = "long"
    assert (picker.choice.value, drawn) == (3, [2, 1, 3])
    picker.group.value = "short"
    assert (picker.choice.value, drawn) == (1, [2, 1, 3, 1])


def test_a_saved_notebook_keeps_the_still_picture_beside_the_widget(widgets):
    picker = browse.pick(GROUPS, numbered([]))
    data, _ = picker._repr_mimebundle_()
    assert data[WIDGET]["model_id"] == picker.box.model_id
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")


def test_an_error_takes_the_place_of_the_picture(widgets):
    def draw(key):
        if key == 2:
            raise OSError("the disk is gone")
        return Figure(figsize=(1, 1))

    picker = browse.pick(GROUPS, draw)
    with pytest.raises(OSError, match="the disk is gone"):
        picker.choice.value = 2
    (output,) = picker.output.outputs
    assert (output["output_type"], output["evalue"]) == ("error", "the disk is gone")


def test_nothing_to_choose_from_is_said():
    with pytest.raises(ValueError, match="nothing to choose from"):
        browse.pick({"none": {}}, numbered([]))
    with pytest.raises(ValueError, match="9 is not among the choices"):
        browse.pick(GROUPS, numbered([]), first=9)


# ------------------------------------------------------------------------------- the corpus


@pytest.fixture
def corpus(tmp_path):
    for folder in ("raw", "audio"):
        (tmp_path / folder).mkdir()
    moving = tmp_path / "raw" / "00001.mp4"
    write(moving, np.arange(15) / 5, sound=sine(440, 3, 16000))
    write(tmp_path / "audio" / "00001.wav", sound=sine(440, 3, 16000), sound_codec="pcm_s16le")
    broken = tmp_path / "raw" / "00003.mp4"
    broken.write_bytes(b"no video at all")
    rows = [
        ("00001", "train", str(moving), str(tmp_path / "audio" / "00001.wav"), "Oh, well.", 0.5),
        ("00002", "test", None, None, None, np.nan),
        ("00003", "train", str(broken), None, "", 0.0),
    ]
    clips = pd.DataFrame(rows, columns=["id", "split", "video", "audio", "transcript", "Awe"])
    clips.attrs["targets"] = ["Awe"]
    defects = [
        ("00003", "train", "unreadable", f"{broken}: no media file"),
        ("00009", "", "missing id", "no row: only in raw"),
    ]
    defects = pd.DataFrame(defects, columns=["id", "split", "defect", "detail"])
    return types.SimpleNamespace(clips=clips, folder=tmp_path, corpus_name=CORPUS), defects


def texts(figure):
    return [t.get_text() for holder in (figure, *figure.axes) for t in holder.texts]


def test_a_clip_is_drawn_and_its_very_bytes_are_played(corpus, widgets):
    ws, defects = corpus
    picker = browse.clip_browser(ws, defects)
    assert [name for _, name in picker.group.options] == ["train", "test", "unreadable"]
    assert picker.choice.value == "00001"
    video, sound, _ = (output["data"] for output in picker.output.outputs)
    for player, column in ((video, "video"), (sound, "audio")):
        kept = re.search(r"data:(\S+);base64,([\w+/=]+)", player["text/html"])
        with open(ws.clips[column][0], "rb") as file:
            assert base64.b64decode(kept[2]) == file.read()
        assert str(ws.folder) not in player["text/html"]
    figure = picker.draw("00001")
    assert {"Clip 00001, train, 3.0 s", "“Oh, well.”", "none", "0.50", CORPUS} <= {*texts(figure)}
    assert len(figure.axes[0].images) == browse.corpus_plots.MOST_FACES
    labels = next(axes for axes in figure.axes if axes.patches)
    assert [bar.get_width() for bar in labels.patches] == [0.5]


def test_what_a_clip_lacks_is_said(corpus, widgets):
    ws, defects = corpus
    picker = browse.clip_browser(ws, defects, first="00002")
    said = [output["data"].get("text/markdown") for output in picker.output.outputs]
    assert said == ["This clip has no video.", "This clip has no sound file of its own.", None]
    expected = {
        "Clip 00002, test, of unknown length",
        "no frame could be decoded",
        "no sound",
        "no labels",
        "no words",
    }
    assert expected <= {*texts(picker.draw("00002"))}
    picker.group.value = "unreadable"
    assert picker.choice.value == "00003"
    assert "can't be played" in picker.output.outputs[0]["data"]["text/markdown"]
    assert "unreadable: raw/00003.mp4: no media file" in texts(picker.draw("00003"))


def test_the_browser_without_a_front_end_is_a_picture_of_any_clip(corpus):
    ws, defects = corpus
    for id_ in ("00001", "00003"):
        assert isinstance(browse.clip_browser(ws, defects, first=id_), Image)


def test_sound_in_a_file_of_its_own_comes_before_the_videos(corpus):
    clip = corpus[0].clips.iloc[0]
    quiet = write(
        corpus[0].folder / "quiet.flac", sound=sine(440, 4, 16000) / 9, sound_codec="flac"
    )
    assert len(browse.decode_clip(clip).images) == 15
    other = clip.copy()
    other["audio"] = str(quiet)
    assert np.abs(browse.decode_clip(other).waveform).max() < 0.1
    other["video"] = None
    alone = browse.decode_clip(other)
    assert alone.images is None
    assert alone.duration == pytest.approx(4, abs=0.05)


def test_files_that_are_too_large_or_not_for_browsers_are_not_sent(tmp_path, monkeypatch):
    old = write(tmp_path / "00004.avi", np.arange(5) / 5, codec="mpeg4", rate=5)
    assert "(mpeg4)" in browse.video_player(str(old)).data
    odd = write(tmp_path / "00005.mp4", np.arange(5) / 5, codec="mpeg4", rate=5)
    assert "Browsers do not play" in browse.video_player(str(odd)).data
    good = write(tmp_path / "00006.mp4", np.arange(5) / 5)
    sound = write(tmp_path / "00006.mp3", sound=sine(440, 1, 16000), sound_codec="mp3")
    assert isinstance(browse.video_player(str(good)), Video)
    assert isinstance(browse.sound_player(str(sound)), Audio)
    monkeypatch.setattr(browse, "LARGEST_MB", 0)
    for path, player in ((good, browse.video_player), (sound, browse.sound_player)):
        said = player(str(path)).data
        assert f"{path.name} has 0 MB and is not sent to the browser" in said


# ------------------------------------------------------------------------------- the models


@pytest.fixture
def clips():
    """Four clips, of which the others than the first lack frames, sound and words."""
    random = np.random.default_rng(0)
    frames = [random.normal(size=(8, 3)) for _ in range(4)]
    audio = [random.normal(size=(20, 4)) for _ in range(4)]
    text = random.normal(size=(4, 5))
    frames[1] = audio[2] = None
    text[2:] = np.nan
    ids = ["00001", "00002", "00003", "00004"]
    data = FeatureSet.from_arrays(ids, frames, audio, text, target=random.random((4, 6)))
    pictures = random.integers(0, 255, (8, 3, 6, 6)).astype("uint8")
    sound = random.integers(-900, 900, 25_600).astype("int16")
    ws = types.SimpleNamespace(
        clips=pd.DataFrame({"id": ids, "transcript": ["Oh.", "Ah.", None, ""]}),
        media={"frames": dict.fromkeys(ids, pictures), "waveform": dict.fromkeys(ids, sound)},
        profile=types.SimpleNamespace(fps=5.0),
        seconds=pd.Series(1.6, index=ids),
        corpus_name=CORPUS,
    )
    return ws, data


def steps(axes):
    return [patch.get_data().values for patch in axes.patches]


def test_groups_say_what_the_clips_lack(clips):
    assert browse.gap_groups(clips[1]) == {
        "everything": {"00001": 0},
        "no face": {"00002": 1},
        "no sound, no words": {"00003": 2},
        "no words": {"00004": 3},
    }


def test_weights_of_the_chosen_clip_are_drawn(clips, widgets):
    ws, data = clips
    torch.manual_seed(0)
    model = DualStage(3, 4, 5, width=8, segments=4, audio_hidden=4)
    picker = browse.weights_picker(ws, model, data, first="00002")
    assert (picker.group.value, picker.choice.value) == ("no face", 1)
    shown = {1: ("clip 00002: “Ah.”", "no face"), 2: ("clip 00003: no words", "no sound")}
    for row, (title, gap) in shown.items():
        figure = picker.draw(row)
        assert figure.axes[0].get_title() == title
        assert gap in texts(figure)
        with torch.no_grad():
            expected = model.eval()(**data.batch([row]).inputs()).weights[0].numpy()
        drawn = next(axes for axes in figure.axes if len(axes.patches) == 3)
        np.testing.assert_allclose(np.stack(steps(drawn), axis=1), expected)


def test_attention_over_the_chosen_clip_is_drawn(clips, widgets):
    ws, data = clips
    torch.manual_seed(0)
    model = TAEMI(3, 4, 5, width=8, heads=2)
    picker = browse.attention_picker(ws, model, data)
    assert picker.choice.value == 0
    with torch.no_grad():
        attention = model.eval()(**data.batch([0]).inputs()).attention
    over_frames, over_sound = (axes for axes in picker.draw(0).axes if len(axes.patches) == 3)
    np.testing.assert_allclose(steps(over_frames)[0], attention["frames"][0, 0] * 8, rtol=1e-5)
    np.testing.assert_allclose(steps(over_sound)[1], attention["audio"][0, 1] * 20, rtol=1e-5)
    picker.group.value = "no face"
    assert {"no face in this clip", "the token is all there is"} <= {*texts(picker.draw(1))}
    assert isinstance(picker.output.outputs[0]["data"]["image/png"], str)


def test_a_clip_with_neither_frames_nor_sound_has_a_length(clips):
    ws, data = clips
    data.present[0] = (False, False, True)
    assert browse.seen(ws, data, 0)["seconds"] == 1.6
