import json
import re
import shutil
import subprocess
from collections import Counter

import nbformat
import pytest
from bs4 import BeautifulSoup

from emilib import book, environment, runner

ROOT = environment.ROOT
PATHS = runner.discover(ROOT / "notebooks")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
LOADS = {"src", "srcset", "poster", "data", "action", "xlink:href"}  # and <link href>


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The book of the committed notebooks and figures."""
    path = tmp_path_factory.mktemp("book") / "book.html"
    book.write(path, PATHS, ROOT / "notebooks", ROOT / "figures", {"Version": "of a test"})
    return path.read_text("utf-8")


@pytest.fixture(scope="module")
def page(text):
    return BeautifulSoup(text, "html.parser")


def test_nothing_is_loaded_from_elsewhere(text, page):
    for tag in page.find_all(True):
        loaded = LOADS | ({"href"} if tag.name == "link" else set())
        for name in loaded & tag.attrs.keys():
            assert tag[name].startswith("data:"), (tag.name, name, tag[name][:80])
    styles = "".join(re.findall(r"<style>(.*?)</style>", text, re.S))
    scripts = "".join(re.findall(r"<script>(.*?)</script>", text, re.S))
    assert not re.search(r"@import|url\(", styles)
    assert not re.search(r"\bfetch\(|XMLHttpRequest|\bimport\b|https?://(?!www\.w3\.org)", scripts)


def test_pictures_have_words_and_stand_once(page):
    pictures = page.find_all("img", src=True)  # one is filled when clicked
    saved = [cell.source for path in PATHS for cell in nbformat.read(path, 4).cells]
    assert len(pictures) >= sum("plots.save(" in source for source in saved) / 2
    for attrs in pictures:
        assert attrs["alt"].strip(), "a picture without a text"
        assert not attrs["alt"].startswith("Figure in "), "its cell names no text"
    twice = [n for n in Counter(attrs["src"] for attrs in pictures).values() if n > 1]
    assert not twice, "the same picture twice"


def test_every_formula_is_converted(text, page):
    written = 0
    for path in PATHS:
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "markdown":
                words = re.sub(r"```.*?```|`[^`]*`", "", cell.source, flags=re.S)
                written += len(re.findall(r"\$\$.+?\$\$|(?<!\$)\$[^$]+\$(?!\$)", words, re.S))
    formulas = [formula.text for formula in page.find_all("math")]
    assert len(formulas) == written > 50
    assert not [formula for formula in formulas if re.search(r"\\[a-z]|\^|\$", formula)]
    assert "<span>(8)</span></div>" in text, "numbers of equations stand at the margin"


def test_links_lead_somewhere_and_interactive_figures_have_data(page, text):
    ids = [tag["id"] for tag in page.find_all(id=True)]
    assert len(ids) == len(set(ids))
    links = [tag["href"] for tag in page.find_all("a", href=True)]
    assert {f"#ch{number:02}" for number in range(10)} <= set(links)
    for link in links:
        assert link[1:] in ids if link[0] == "#" else link.startswith("http"), link
    found = re.findall(r'class="live" data-name="(\w+)"><script [^>]*>(.*?)</script>', text, re.S)
    assert {name for name, _ in found} == set(book.LIVE)
    assert len(found) == len(book.LIVE)
    for name, data in found:
        assert len(json.loads(data)["rows"]) > 1, name


FAULTS = "<script>window.wrong = []; window.onerror = (text) => window.wrong.push(text)</script>"


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_in_a_browser(text, tmp_path):
    """At two widths: no sideways scrolling, no error, figures that answer, tables that sort."""
    measure = (ROOT / "tests/book_measure.html").read_text()
    probed = text.replace("<head>", f"<head>{FAULTS}").replace("</body>", f"{measure}</body>")
    (tmp_path / "book.html").write_text(probed, "utf-8")
    shutil.copy(ROOT / "tests/book_frames.html", tmp_path / "frames.html")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000"]
    url = (tmp_path / "frames.html").as_uri()
    done = subprocess.run([*command, url], capture_output=True, text=True, timeout=120)
    results = json.loads(re.search("<title>(.*?)</title>", done.stdout)[1] or "[]")
    assert sorted(result.pop("width") for result in results) == [400, 1400]
    assert results == [{"over": 0, "moved": 5, "sorted": True, "wrong": []}] * 2


def notebook(path, *cells, **metadata):
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)


def test_a_failed_and_a_missing_chapter_do_not_stop_the_others(tmp_path):
    v4, source, out = nbformat.v4, tmp_path / "notebooks", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    printed = [v4.new_output("stream", text=f"<b>all</b> in {ROOT}/runs\n")]
    title = v4.new_markdown_cell("# 00 · One & two\n\nGo to [the second](01_second.ipynb).")
    again = v4.new_markdown_cell("## Take home\n\n## Take home")
    good = v4.new_code_cell("print(1)", outputs=printed)
    notebook(source / "00_first.ipynb", title, again, good)
    times = {"duration": 61.0, "end_time": "2020-02-03T04:05:06.7+00:00"}
    notebook(out / "00_first.ipynb", title, again, good, papermill=times)
    trace = {"ename": "KeyError", "evalue": "rho", "traceback": ["\x1b[31mKeyError: rho"]}
    failed = "# NBVAL_CHECK_OUTPUT\nvalues['rho']"
    failed = v4.new_code_cell(failed, outputs=[v4.new_output("error", **trace)])
    notebook(source / "01_second.ipynb", v4.new_markdown_cell("# Second"))
    notebook(out / "01_second.failed.ipynb", v4.new_markdown_cell("# Second"), failed)
    third = v4.new_code_cell("print(3)", outputs=[v4.new_output("stream", text="an old result")])
    notebook(source / "02_third.ipynb", v4.new_markdown_cell("# 2 · Third\n\n$x^2$"), third)
    path = tmp_path / "book.html"
    book.write(path, runner.discover(source), out, tmp_path, {"Corpus": "<mine>"})
    text = path.read_text("utf-8")
    chapters = text.split("<article ")[1:]
    assert "<h1>One &amp; two</h1>" in chapters[0]
    assert "&lt;b&gt;all&lt;/b&gt; in runs" in chapters[0], "escaped, without this machine's path"
    assert 'href="#ch01"' in chapters[0]
    assert re.findall(r'<h2 id="([\w-]+)">', chapters[0]) == ["ch00-take-home", "ch00-take-home-2"]
    assert "Executed 2020-02-03 04:05 UTC in 61 s." in chapters[0]
    assert "ended with an error" in chapters[1]
    assert '<pre class="out">KeyError: rho</pre>' in chapters[1].split("<details")[0]
    assert "has not executed" in chapters[2]
    assert "an old result" not in text
    assert "<dd>&lt;mine&gt;</dd>" in text
    assert "2020-02-03 04:05 UTC, 1.0 minutes" in text


def test_what_is_folded_and_clips_are_part_of_the_file_where_they_are_small(tmp_path):
    drawn = nbformat.v4.new_output("display_data", {"image/png": "AAAA"})
    cases = {"import a\nfrom b import (\n    c,\n)\n\nx = 1": "Set-up"}
    cases["from emilib.pipeline import Workspace\n\nws = Workspace(profile)\nprint(ws)"] = "Set-up"
    cases |= {"import a\n\nx = a.b()": "", "def show(x):\n    return x": ""}
    cases |= {"# NBVAL_CHECK_OUTPUT\nprint(1)": "Check", "show_table(rows)": "Code"}
    cases["def draw(axes):\n    axes.plot([1, 2])"] = "Code"
    for source, word in cases.items():
        assert book.folded(nbformat.v4.new_code_cell(source)) == word, source
    assert book.folded(nbformat.v4.new_code_cell("draw()", outputs=[drawn])) == "Code"
    hidden = nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["remove-input"]})
    assert book.folded(hidden) == "Code"
    (tmp_path / "taemi_attention.csv").write_text("clip,attention\n007,0.5\n008,0.5\n")
    (tmp_path / "007.mp4").write_bytes(b"small")
    (tmp_path / "008.mp4").write_bytes(b"0" * (book.MOST_BYTES + 1))
    source = 'plots.save(figure, ws.figures, "taemi_attention", table)'
    [(name, data)] = book.interactive(source, tmp_path, tmp_path)
    assert name == "attention"
    assert json.loads(data)["videos"] == {"007": "data:video/mp4;base64,c21hbGw="}
    [(_, data)] = book.interactive(source, tmp_path, None)
    assert json.loads(data)["videos"] == {}
    assert list(book.interactive(source, tmp_path / "none", tmp_path)) == []
    assert list(book.interactive('"taemi_attention_2"', tmp_path, None)) == []
