"""What the notebooks show code, figures, tables and a choice of clips with."""

import inspect
import os
import re
import textwrap
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import pandas as pd
from IPython import get_ipython
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from emilib.plots.style import rendered


def show_source(*objects) -> Markdown:
    """The code of classes or functions as Markdown, with comments, without docstrings."""
    # A docstring with a body behind it, and the blank line between the two.
    docstring = re.compile(r'^( *)"""[\s\S]*?"""\n\n?(?=\1\S)', re.M)
    code = [docstring.sub("", textwrap.dedent(inspect.getsource(x))).rstrip() for x in objects]
    return Markdown("\n\n".join(f"```python\n{text}\n```" for text in code))


class Picture:
    """A figure as SVG and, for front ends that do not trust a notebook's SVG, as PNG."""

    def __init__(self, figure: Figure, alt: str):
        self.svg, self.png, self.alt = rendered(figure, "svg"), rendered(figure, "png"), alt

    def __repr__(self):
        return self.alt

    def _repr_mimebundle_(self, **options):
        data = {"image/svg+xml": self.svg.decode(), "image/png": b64encode(self.png).decode()}
        return data, {kind: {"alt": self.alt} for kind in data}


def show(figure: Figure, alt: str | None = None) -> Picture:
    """A figure as a picture, with a text for those who can't see it (its title by default)."""
    titles = (text.get_text() for text in figure.texts)
    return Picture(figure, alt or next(filter(None, titles), ""))


def show_table(rows, columns: Sequence[str] | None = None, digits=3, caption="") -> Markdown:
    """A table as Markdown: a DataFrame (without its index), a mapping, or a list of rows.
    columns : the headings; digits : decimals of floats; caption : a paragraph above the table.
    NaN is shown as a dash, no rows as a sentence."""
    frame = pd.DataFrame(list(rows.items()) if isinstance(rows, Mapping) else rows)
    if frame.empty:
        return Markdown(f"{caption}\n\n*None in this set.*".strip())
    if columns is not None:
        frame = frame.set_axis(list(columns), axis=1)
    numbers = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    lines = [list(map(str, frame.columns)), ["--:" if number else ":--" for number in numbers]]
    lines += [[_cell(value, digits) for value in row] for row in frame.itertuples(index=False)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return Markdown(f"{caption}\n\n{table}" if caption else table)


def _cell(value, digits: int) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:z.{digits}f}".replace("-", "−")
    return str(value).replace("|", "\\|").replace("\n", " ")


def behind(summary: str, content: Markdown) -> Markdown:
    """Markdown that opens with a click on its summary."""
    return Markdown(f"<details><summary>{summary}</summary>\n\n{content.data}\n\n</details>")


def live() -> bool:
    """Whether a front end that shows widgets asked for the cell that runs: such send a cell's id.

    nbclient, and so papermill, nbconvert and nbval, send none. EMI_WIDGETS=on or off overrides it.
    """
    request = getattr(get_ipython(), "get_parent", dict)() or {}  # a terminal has no requests
    seen = "on" if "cellId" in request.get("metadata", {}) else "off"
    return (os.environ.get("EMI_WIDGETS") or seen) == "on"


def pick(groups: Mapping[str, Mapping], draw: Callable, play: Callable = lambda _: (), first=None):
    """Drop-downs for a group and a clip in a live front end, elsewhere the first choice's picture.

    groups : name of a group → text of a choice → key; only the chosen key is drawn
    draw : key → Figure; play : key → what stands above it in a live front end, such as players
    first : key to begin with; None for the first of the first group
    """
    groups = {name: dict(choices) for name, choices in groups.items() if choices}
    begin = next(n for n, c in groups.items() if first is None or first in c.values())
    first = next(iter(groups[begin].values())) if first is None else first
    if not live():
        return show(draw(first))
    names = [(f"{name} ({len(choices)})", name) for name, choices in groups.items()]
    group = ipywidgets.Dropdown(options=names, value=begin, description="among")
    clip = ipywidgets.Dropdown(description="clip")
    ipywidgets.dlink((group, "value"), (clip, "options"), lambda name: list(groups[name].items()))
    clip.value = first

    def show_choice(key) -> None:
        display(*play(key), show(draw(key)))

    display(group)
    return ipywidgets.interactive(show_choice, key=clip)


def gap_groups(ids: Sequence[str], present) -> dict[str, dict[str, int]]:
    """Rows by what `present` (N, 3) says clips lack, complete ones first, as `pick` takes them."""
    groups = {"everything": {}}
    for row, (id_, exists) in enumerate(zip(ids, present, strict=True)):
        missing = zip(("no face", "no sound", "no words"), exists, strict=True)
        gaps = [text for text, one in missing if not one]
        groups.setdefault(", ".join(gaps) or "everything", {})[id_] = row
    return groups
