from types import SimpleNamespace

import ipywidgets
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from emilib.plots import clip_plots, notebook, style, verdicts

CORPUS = "embedded corpus: drawn faces, synthetic voices"


def texts(figure):
    return [t.get_text().replace("\n", " ") for f in (figure, *figure.axes) for t in f.texts]


def test_differences_are_drawn_as_they_are_to_the_same_bytes(tmp_path):
    rows = ["Text", "Audio", "Vision", "line to beat: ridge"]
    table = pd.DataFrame({"row": rows, "reference": "Text", "here": [0.6, 0.5, 0.7, 0.55]})
    names = ["delta_paper", "delta_here", "delta_low", "delta_high"]
    none = [np.nan] * 4  # of the reference and of the line
    table[names] = [none, [-0.04, -0.1, -0.2, -0.01], [-0.1, 0.1, 0.0, 0.2], none]
    table["verdict"] = ["", "as claimed", "not resolved", ""]
    table.attrs["name"] = "B4"
    figure = verdicts.differences(table, CORPUS)
    title = "Table 4 of paper B: 1 of 2 differences hold here"
    assert {CORPUS, title, " ridge "} <= set(texts(figure))
    axes = figure.axes[0]
    bars = axes.containers[0][2][0].get_segments()
    np.testing.assert_allclose([bar[:, 0] for bar in bars], [[0.0, 0.2], [-0.2, -0.01]], atol=1e-12)
    drawn = {c.get_label(): c.get_offsets()[:, 0].tolist() for c in axes.collections}
    assert drawn["paper (Hume-Vidmimic2)"] == [-0.1, -0.04]
    assert (drawn["here, resolved"], drawn["here, not resolved"]) == ([-0.1], [0.1])
    assert axes.lines[-2].get_xdata()[0] == pytest.approx(-0.05), "the line to beat"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Vision", "Audio"]
    turned = table.assign(verdict=table["verdict"].replace("not resolved", "the opposite"))
    turned.attrs["name"] = "B4"
    assert f"{title}, 1 turn round" in texts(verdicts.differences(turned))
    with pytest.raises(ValueError, match="differences"):
        verdicts.differences(table[:1])
    for run in "12":
        style.save(verdicts.differences(table, CORPUS), tmp_path / run, "b4", table)
    assert (tmp_path / "1/b4.svg").read_bytes() == (tmp_path / "2/b4.svg").read_bytes()
    back = pd.read_csv(tmp_path / "1" / "b4.csv")
    np.testing.assert_allclose(back["delta_here"], table["delta_here"])
    shown = notebook.show(figure)
    again = verdicts.differences(table, CORPUS)
    assert (shown.png, shown.svg) == tuple(style.rendered(again, kind) for kind in ("png", "svg"))
    data, about = shown._repr_mimebundle_()
    assert title in data["image/svg+xml"]  # letters, not outlines
    assert {kind["alt"] for kind in about.values()} == {title}


def test_names_stand_at_the_ends_of_lines_and_an_envelope_holds_every_peak():
    axes = Figure().subplots()
    style.label_ends(axes, {"b": (1, 0.5), "a": (1, 0.5), "d": (1, 0.0), "c": (1, 1.0)})
    heights = {text.get_text(): text.xy[1] for text in axes.texts}
    assert (heights["d"], heights["c"]) == (0, 1)  # where their lines end
    assert abs(heights["a"] - heights["b"]) == pytest.approx(0.045)  # which ended at one place
    assert heights["a"] + heights["b"] == pytest.approx(1)
    waveform = np.random.default_rng(0).standard_normal(10_007)
    time, low, high = style.envelope(waveform, 1000, points=90)
    assert (len(time), low.min(), high.max()) == (90, waveform.min(), waveform.max())
    for start, bottom, top in zip(time, low, high, strict=True):
        assert bottom <= waveform[round(start * 1000)] <= top
    assert style.evenly(31, 4).tolist() == [0, 10, 20, 30]
    assert style.evenly(2, 4).tolist() == [0, 1]


def test_a_card_shows_what_a_clip_has_and_lacks_and_a_long_title_stays_inside():
    images, sound = np.zeros((12, 4, 4, 3), np.uint8), np.sin(np.arange(32_000))
    clip = {"images": images, "times": np.arange(12) / 6, "waveform": sound, "duration": 2.0}
    clip, labels = SimpleNamespace(sample_rate=16_000, **clip), pd.Series({"Awe": 0.5, "Joy": 0.0})
    words = "$5 and \\frac{$"  # no formula
    figure = clip_plots.clip_card(clip, "Clip 1", labels, words, ["silent"], CORPUS)
    style.rendered(figure, "png")
    assert {f"“{words}”", "0.50", "0.00", "silent", CORPUS} <= set(texts(figure))
    assert len(figure.axes[0].images) == clip_plots.MOST_FACES
    bars = next(axes for axes in figure.axes if axes.patches).patches
    assert [bar.get_width() for bar in bars] == [0.5, 0]
    level = figure.axes[2].images[0]  # a tone of 16 kHz / 2 pi; the picture's first row is the top
    share = 1 - level.get_array().mean(axis=1).argmax() / (len(level.get_array()) - 1)
    assert share * 8000 == pytest.approx(16_000 / (2 * np.pi), abs=40)
    clip.images = clip.waveform = None
    figure = clip_plots.clip_card(clip, "Clip 1", labels * np.nan, np.nan, [], CORPUS)
    assert {"no frame could be decoded", "no sound", "no labels", "no words"} <= set(texts(figure))
    title = "Trained on everything, evaluated with a part of it; what is heard is worth $5 and $6"
    figure, _ = style.canvas(5, 2, f"{title} \\frac{{$", CORPUS)
    style.rendered(figure, "png")
    for text in figure.texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert 0 <= box.y0 < box.y1 <= figure.bbox.y1
    first, second = (text.get_window_extent() for text in figure.texts)
    assert second.y1 <= first.y0


def test_a_front_end_gets_drop_downs_and_source_is_shown_without_docstrings(monkeypatch):
    code = notebook.show_source(notebook.pick).data
    assert '"""' not in code
    compile(code.removeprefix("```python").removesuffix("```"), "shown", "exec")
    frame = pd.DataFrame({"what": ["a|b", "c"], "rho": [-0.12345, np.nan]})
    lines = notebook.show_table(frame, digits=2).data.splitlines()
    assert lines == ["| what | rho |", "| :-- | --: |", "| a\\|b | −0.12 |", "| c | – |"]
    groups = {"short": {"one": 1, "two": 2}, "empty": {}, "long": {"three": 3}}
    drawn, displayed = [], []
    draw = lambda key: drawn.append(key) or Figure(figsize=(1, 1))  # noqa: E731
    assert isinstance(notebook.pick(groups, draw, play=pytest.fail), notebook.Picture)
    assert drawn == [1]
    request = SimpleNamespace(get_parent=lambda: {"metadata": {"cellId": "c084"}})
    monkeypatch.setattr(notebook, "get_ipython", lambda: request)
    monkeypatch.setattr(notebook, "display", lambda *parts: displayed.extend(parts))
    clip = notebook.pick(groups, draw, first=2).children[0]
    group = next(part for part in displayed if isinstance(part, ipywidgets.Dropdown))
    assert (group.value, clip.value) == ("short", 2)
    assert [label for label, _ in group.options] == ["short (2)", "long (1)"]
    clip.value = 1
    group.value = "long"
    assert (clip.value, drawn[1:]) == (3, [2, 1, 3])
    monkeypatch.setenv("EMI_WIDGETS", "off")
    assert not notebook.live()
    present = np.array([[1, 0, 0], [1, 1, 1], [0, 1, 1]], bool)
    groups = {"everything": {"b": 1}, "no sound, no words": {"a": 0}, "no face": {"c": 2}}
    assert notebook.gap_groups("abc", present) == groups
