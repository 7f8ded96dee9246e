"""What the notebooks show code, figures and tables with."""

import ast
import inspect
import textwrap
from collections.abc import Mapping, Sequence

import pandas as pd
from IPython.display import Image, Markdown
from matplotlib.figure import Figure

from emilib.plots.style import png


def show_source(*objects) -> Markdown:
    """The code of classes or functions as Markdown, with comments, without docstrings."""
    code = []
    for source in (textwrap.dedent(inspect.getsource(object_)) for object_ in objects):
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            named = isinstance(node, ast.ClassDef | ast.FunctionDef)
            if named and ast.get_docstring(node) is not None and len(node.body) > 1:
                first, last = node.body[0].lineno - 1, node.body[0].end_lineno
                last += not (lines[last] or "").strip()  # and the blank line after it
                lines[first:last] = [None] * (last - first)
        code.append("\n".join(line for line in lines if line is not None))
    return Markdown("\n\n".join(f"```python\n{text}\n```" for text in code))


def show(figure: Figure, alt: str | None = None) -> Image:
    """A figure as a PNG picture, with a text for those who can't see it (its title by default)."""
    titles = (text.get_text() for text in figure.texts)
    return Image(png(figure), alt=alt or next(filter(None, titles), None))


def show_table(
    rows, columns: Sequence[str] | None = None, digits: int = 3, caption: str = ""
) -> Markdown:
    """A table as Markdown: a DataFrame (without its index), a mapping, or a list of rows.

    columns : the headings; digits : decimals of floats; caption : a paragraph above the table.
    NaN is shown as a dash.
    """
    frame = pd.DataFrame(list(rows.items()) if isinstance(rows, Mapping) else rows)
    if columns is not None:
        frame = frame.set_axis(list(columns), axis=1)
    numbers = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    lines = [list(map(str, frame.columns)), ["--:" if number else ":--" for number in numbers]]
    lines += [[_cell(value, digits) for value in row] for row in frame.itertuples(index=False)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return Markdown(f"{caption}\n\n{table}" if caption else table)


def _cell(value, digits: int) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.{digits}f}".replace("-", "−")
    return str(value).replace("|", "\\|").replace("\n", " ")
