"""The book: the executed notebooks as one HTML file that needs no server and no network.

A chapter that failed says so, one that was not executed stands there without results. Formulas
become MathML; five interactive figures read the CSV files beside the still ones. See ``templates``.
"""

import csv
import html
import json
import os
import platform
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import nbformat
import pandas as pd
from latex2mathml.converter import convert
from nbconvert import TemplateExporter
from nbconvert.filters import Highlight2HTML, strip_ansi
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from emilib import __version__, cache
from emilib.environment import ROOT
from emilib.plots.verdicts import signed, summary

TEMPLATES = Path(__file__).with_name("templates")
PICTURES = ("image/svg+xml", "image/png", "image/jpeg")  # the sharpest first
MOST_BYTES = 400_000  # of a clip's video inside the file
# Interactive figures and the CSV file that each reads; below the cell that saves it.
LIVE = {"temperature": "stage_one_loss", "quality": "dual_stage_weights", "removed": "own_video"}
LIVE |= {"attention": "taemi_attention", "damage": "robustness_costs"}
highlighted = Highlight2HTML(pygments_lexer="python3")


class Prose(IPythonRenderer):
    """Markdown of one chapter: MathML, ids that no other chapter has, links within the book."""

    def __init__(self, chapter: str):
        super().__init__(escape=False)
        self.chapter, self.title, self.sections, self.ids = chapter, "", [], Counter()

    def heading(self, text, level, **attrs):
        plain = re.sub(r"<.*?>", "", text)
        if level == 1 and not self.title:  # the template writes it
            self.title = re.sub(r"^\d+ · ", "", plain)
            return ""
        name = f"{self.chapter}-{re.sub(r'[^a-z0-9]+', '-', plain.lower()).strip('-')}"
        self.ids[name] += 1
        name += f"-{self.ids[name]}" if self.ids[name] > 1 else ""
        self.sections += [(name, plain)] * (level == 2)
        return f'<h{level} id="{name}">{text}</h{level}>\n'

    def link(self, text, url, title=None):
        return super().link(text, re.sub(r"^(\d\d)_\w+\.ipynb$", r"#ch\1", url), title)

    def table(self, text):
        return f'<div class="wide"><table>\n{text}</table></div>\n'

    def table_cell(self, text, align=None, head=False):
        size, tag = len(re.sub(r"<.*?>|[-\d\s.,±+−–\[\]]", "", text)), "th" if head else "td"
        kind = "short" if size < 12 else "middle" if size < 50 else "long"  # digits do not count
        return f'<{tag} class="{kind}" style="text-align: {align or "left"}">{text}</{tag}>\n'

    def inline_math(self, body, display="inline"):
        formula = convert(re.sub(r"\\(math\w+) (\w)", r"\\\1{\2}", body), display=display)
        return formula.replace("&#x0005E;", "ˆ").replace("&#x0007E;", "˜")  # drawn well by any font

    def block_math(self, body):
        number = "".join(f"<span>({n})</span>" for n in re.findall(r"\\tag\{(.*?)\}", body))
        formula = self.inline_math(re.sub(r"\\tag\{.*?\}", "", body), "block")
        return f'<div class="wide formula">{formula}{number}</div>'

    def latex_environment(self, name, body):
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")


def shown(output, prose: Prose, render) -> str:
    """What a cell shows as HTML; "" for plain text."""
    data = output.get("data", {})
    if kind := next((kind for kind in PICTURES if kind in data), ""):
        here = prose.sections[-1][1] if prose.sections else prose.title
        alt = html.escape(output.metadata.get(kind, {}).get("alt") or f"Figure in “{here}”")
        content = data[kind] if kind in PICTURES[1:] else b64encode(data[kind].encode()).decode()
        return f'<img src="data:{kind};base64,{"".join(content.split())}" alt="{alt}">'
    if "text/html" in data:
        return f'<div class="wide">{data["text/html"]}</div>'
    return render(data["text/markdown"]) if "text/markdown" in data else ""


def printed(output) -> str:
    """What a cell prints as plain text, the traceback of an error among it."""
    if output.output_type == "error":
        return strip_ansi("\n".join(output.traceback)) + "\n"
    if output.output_type == "stream":
        return "" if output.name == "stderr" else strip_ansi(output.text)
    rich = {*PICTURES, "text/html", "text/markdown"} & set(output.data)
    return "" if rich else output.data.get("text/plain", "") + "\n"


def folded(cell) -> str:
    """Under which word the code of a cell is folded: a check, mostly imports, a drawing; or ""."""
    source, tags = cell.source, cell.metadata.get("tags", [])
    lines = re.findall(r"^[^\s#)\]}].*", source, re.M)
    if "# NBVAL_CHECK_OUTPUT" in source or "nbval-check-output" in tags:
        return "Check"
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    if 2 * len(imports) > len(lines) or "\nws = Workspace(" in source:
        return "Set-up"
    lists = source.startswith(("show_table(", "show(")) or "remove-input" in tags
    draws = "plots.canvas(" in source or re.search(r"\baxes\.\w+\(", source)
    pictures = any({*PICTURES} & set(output.get("data", {})) for output in cell.outputs)
    return "Code" if lists or draws or pictures else ""


def video(id_: str, videos: Path | None) -> str:
    """A clip as a data URI; "" without a folder of videos, or where it is missing or large."""
    path = Path(videos or "", f"{id_}.mp4")
    fits = videos and path.exists() and path.stat().st_size <= MOST_BYTES
    return f"data:video/mp4;base64,{b64encode(path.read_bytes()).decode()}" if fits else ""


def table(figures: Path, name: str) -> list[dict]:
    """The rows of a figure's CSV file, values as text; none where there is no file."""
    path = figures / f"{name}.csv"
    return list(csv.DictReader(path.read_text("utf-8").splitlines())) if path.exists() else []


def interactive(source: str, figures: Path, videos: Path | None):
    """Name and data as JSON of each interactive figure that stands below a cell."""
    for name, file in LIVE.items():
        if f'"{file}"' in source and (rows := table(figures, file)):
            ids = sorted({row["clip"] for row in rows if "clip" in row})
            clips = {id_: uri for id_ in ids if (uri := video(id_, videos))}
            yield name, json.dumps({"rows": rows, "videos": clips}).replace("</", "<\\/")


def chapter(path: Path, executed: Path, figures: Path, videos: Path | None) -> dict:
    """One notebook for the template: title, sections, cells, when it ran, and what went wrong."""
    copies = {"failed": executed / f"{path.stem}.failed.ipynb", "done": executed / path.name}
    state = next((state for state, copy in copies.items() if copy.exists()), "left out")
    notebook, cells = nbformat.read(copies.get(state, path), 4), []
    prose, ran = Prose(f"ch{path.name[:2]}"), notebook.metadata.get("papermill", {})
    render = MarkdownWithMath(renderer=prose).render
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cells.append({"prose": render(cell.source)})
        elif not {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", [])):
            outputs = cell.outputs if state != "left out" else []
            code = {"source": cell.source, "code": highlighted(cell.source), "folded": folded(cell)}
            code["names"] = re.findall(r"^(?:def|class) (\w+)", cell.source, re.M)
            code["imports"] = re.findall(r"^(?:from|import) (\S+)", cell.source, re.M)
            code["printed"] = "".join(map(printed, outputs)).rstrip()
            code["shown"] = list(filter(None, (shown(o, prose, render) for o in outputs)))
            code["live"] = list(interactive(cell.source, figures, videos)) if outputs else []
            cells.append(code)
    about = {"number": path.name[:2], "title": prose.title, "sections": prose.sections}
    about |= {"seconds": ran.get("duration") or 0, "ended": (ran.get("end_time") or "")[:16]}
    return about | {"state": state, "cells": cells}


def matrix(rows: list[dict]) -> dict:
    """The verdicts of notebook 07 for the cover: groups of columns, and a line a mechanism."""
    columns = list(dict.fromkeys((row["group"], row["column"]) for row in rows))
    cells = {(row["row"], row["group"], row["column"]): row for row in rows}
    lines = {row["row"]: [cells.get((row["row"], *c)) for c in columns] for row in rows}
    words = list(dict.fromkeys(row["verdict"] for row in rows))
    about = {"title": summary(pd.DataFrame(rows)), "groups": Counter(g for g, _ in columns)}
    return about | {"columns": columns, "lines": lines, "words": words, "signed": signed}


def write(path, notebooks: Sequence[Path], executed, figures, facts=None, videos=None) -> None:
    """Write the book to `path`.

    notebooks : the chapters in order; executed : folder of their executed copies
    figures : folder of the CSV files; facts : name → what is said at the foot, beside the time
    videos : folder of ID.mp4, for the clips that a figure shows; None shows no video
    """
    executed, figures = Path(executed), Path(figures)
    chapters = [chapter(notebook, executed, figures, videos) for notebook in notebooks]
    verdicts, clip = table(figures, "worlds_matrix"), [{}, *table(figures, "clip")][-1]
    resources = {name: (TEMPLATES / f"book.{name}").read_text("utf-8") for name in ("css", "js")}
    resources |= {"chapters": chapters, "matrix": verdicts and matrix(verdicts)}
    resources |= {"facts": facts or {}, "clip": video(clip.get("clip", ""), videos)}
    exporter = TemplateExporter(raw_template=(TEMPLATES / "book.html.j2").read_text("utf-8"))
    text, _ = exporter.from_notebook_node(nbformat.v4.new_notebook(), resources)
    cache.atomic_write(path, text.replace(f"{ROOT}{os.sep}", ""))


def of_run(profile, corpus, notebooks, executed: Path, figures: Path) -> Path:
    """Write the book of a run beside the folder of its executed notebooks; returns its path."""
    size, seeds = dict(profile.corpus_size or {}), ", ".join(map(str, profile.seeds))
    seed = size.pop("seed", 0)
    made = f"embedded, seed {seed}: " + ", ".join(f"{n} {split}" for split, n in size.items())
    packages = (f"{n} {metadata.version(n)}" for n in ("torch", "transformers", "numpy"))
    facts = {"Version": f"emilib {__version__}, code {cache.code_version('.')[:12]}"}
    facts |= {"Profile": profile.name, "Corpus": Path(corpus).name if corpus else made}
    facts["Seeds"] = seeds + "; five in Tables B3 and B4" * profile.more_seeds
    facts["Machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    facts["Software"] = f"Python {platform.python_version()}, {', '.join(packages)}"
    # Only the embedded corpus shows nobody: clips of another one stay out of the file.
    videos = None if corpus else executed.parent / f"corpus{profile.suffix}" / "raw"
    path = executed.parent / f"book{profile.suffix}.html"
    write(path, notebooks, executed, figures, facts, videos)
    return path
