"""Tables of both papers, the paper's number beside the one trained here.

`table` makes a DataFrame of plain numbers from results; `display` makes the text a person reads;
`write` keeps both. All are pure functions: nothing here trains, and no number is typed in.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from emilib import models
from emilib.cache import atomic_write
from emilib.metrics import Estimate
from emilib.study import claims
from emilib.study.experiments import Experiment
from emilib.study.results import Results

PARTITION_TABLES = ("A1", "B1")
RESULT_TABLES = ("A2", "A3", "A4", "B2", "B3", "B4")
NO_RESULT = "no result"
PROVENANCE = ("specified", "inferred", "unknown")  # what is public of a system of B2
_TRAINED = "trained here"
_DASH = "–"
_COLUMNS = (
    "row modality paper here sd low high seeds reference delta_paper delta_here delta_sd delta_low "
    "delta_high parameters seconds status"
)
# What a table is about, and the row the others are compared with, paired over seeds and clips; in
# A2 each of "ours" is compared with the baseline of its modality.
_ABOUT = pd.read_csv(Path(__file__).with_name("tables.csv"), index_col="name", dtype=str).fillna("")
_BASELINE = {"ViT (ours)": "ViT (baseline)", "Wav2Vec2 (ours)": "Wav2Vec2 (baseline)"}
# Classes of `emilib.models` for rows of B2 that are not called as the class is.
_MODELS = {
    "ViT (baseline)": "LastStepGRU",
    "Wav2Vec2 (baseline)": "MeanLinear",
    "ViT + Wav2Vec2 (baseline)": "LateAverage",
    "Savchenko 2025, leaked": "Savchenko2025",
}


def table(
    name: str,
    results: Results | None = None,
    corpus: str = "",
    partitions: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One table as numbers, a row a row of the paper.

    name : one of `claims.TABLES`
    results : of `experiments.run`, for all but A1 and B1
    corpus : what the numbers were trained on, and what they can't be compared with: it stands in
        the caption
    partitions : for A1 and B1; columns `split` ("train", "validation", "test"), `clips`, `seconds`

    Columns of result tables: row, modality, paper, here (mean over seeds), sd (over seeds),
    low, high (95 % bootstrap interval over validation clips), seeds, reference (the row of the
    differences), delta_paper, delta_here, delta_sd, delta_low, delta_high, parameters, seconds,
    status; of B2 also specified, inferred and unknown: what is public of a system. Of A1 and B1:
    row, paper_seconds, paper_clips, seconds, clips, status.
    `attrs` hold "name" and "caption". Raises ValueError for an unknown table or missing arguments.
    """
    if name not in claims.TABLES:
        raise ValueError(f"expected a table among {', '.join(claims.TABLES)}, got {name!r}")
    if name in PARTITION_TABLES:
        if partitions is None:
            raise ValueError(f"{name} needs `partitions`: clips and seconds of each split")
        frame = _partition_table(name, partitions)
    else:
        if results is None:
            raise ValueError(f"{name} needs `results` of `emilib.study.run`")
        rows = [_row(name, claim, results) for claim in claims.rows(name)]
        frame = pd.DataFrame(rows, columns=_COLUMNS.split())
        if name == "B2":
            marks = [_provenance(row) for row in frame["row"]]
            frame = frame.join(pd.DataFrame(marks, columns=PROVENANCE))
    frame.attrs.update(name=name, caption=_caption(name, corpus, results))
    return frame


def tables(
    results: Results, partitions: pd.DataFrame, corpus: str, names: Sequence[str] = claims.TABLES
) -> dict[str, pd.DataFrame]:
    """All tables of both papers by name; arguments as of `table`."""
    return {name: table(name, results, corpus, partitions) for name in names}


def _partition_table(name: str, partitions: pd.DataFrame) -> pd.DataFrame:
    lacking = {"split", "clips", "seconds"} - set(partitions.columns)
    if lacking:
        raise ValueError(f"partitions: expected columns split, clips, seconds, lacks {lacking}")
    counted = partitions.set_index("split")[["seconds", "clips"]].astype(float)
    counted = counted.reindex(["train", "validation", "test"])
    counted.loc["sum"] = counted.sum(skipna=False)
    rows = []
    for row in ("Train", "Validation", "Test", "Sum"):
        seconds, clips = counted.loc[row.lower()]
        rows.append(
            {
                "row": row,
                "paper_seconds": claims.reported(name, row, "duration").value,
                "paper_clips": claims.reported(name, row, "samples").value,
                "seconds": seconds,
                "clips": clips,
                "status": "counted here" if math.isfinite(clips) else NO_RESULT,
            }
        )
    return pd.DataFrame(rows)


def _row(name: str, claim: claims.Claim, results: Results) -> dict:
    experiment = results.experiment_for(name, claim.row)
    reference = _BASELINE.get(claim.row, "") if name == "A2" else _ABOUT["reference"][name]
    compared = reference if reference != claim.row else ""
    delta = claim.delta
    if delta is None and compared:
        delta = claim.value - claims.reported(name, compared).value
    row = {"row": claim.row, "modality": claim.modality, "paper": claim.value, "seeds": 0}
    row |= {"reference": reference, "delta_paper": delta, "status": _status(experiment, results)}
    if row["status"] != _TRAINED:
        return row
    outcome = results[experiment.name]
    row |= _columns("here sd low high", results.summary(experiment.name))
    row |= {"seeds": len(outcome.seeds), "parameters": float(outcome.parameters)}
    row["seconds"] = float(outcome.seconds.mean())
    other = results.experiment_for(name, compared)
    if other is not None and other.name in results:
        difference = results.difference(experiment.name, other.name)
        row |= _columns("delta_here delta_sd delta_low delta_high", difference)
    return row


def _columns(names: str, estimate: Estimate) -> dict[str, float]:
    values = (estimate.value, estimate.sd, estimate.low, estimate.high)
    return dict(zip(names.split(), values, strict=True))


def _provenance(row: str) -> Sequence[str]:
    """What is specified, inferred and unknown of the system of a row of B2; "" for TAEMI's own."""
    name = _MODELS.get(row, row.replace(" ", ""))
    return getattr(getattr(models, name, None), "provenance", ("",) * 3)


def marks(table: pd.DataFrame) -> pd.DataFrame:
    """What is specified, inferred and unknown of the systems of B2 that others made, a row each."""
    others = table[table["specified"] != ""].drop_duplicates("specified")
    return others[["row", *PROVENANCE]].reset_index(drop=True)


def _status(experiment: Experiment | None, results: Results) -> str:
    if experiment is None or experiment.name not in (results.outcomes | results.lacking):
        return NO_RESULT
    if experiment.name in results:
        return _TRAINED
    return f"{_DASH}, {results.lacking[experiment.name]}"


def _caption(name: str, corpus: str, results: Results | None) -> str:
    about, corpus = _ABOUT.loc[name], corpus or "the corpus at hand"
    subject = f"Table {name[1]} of paper {name[0]}: {about.subject}."
    if name in PARTITION_TABLES:
        return f"{subject} Paper: Hume-Vidmimic2. Here: {corpus}."
    clips = max((len(results[n].ids) for n in results.names), default=0)
    paper = "Paper: reported on Hume-Vidmimic2. "
    if name not in claims.PAPER_TABLES:
        subject, paper = f"Table {name}, which the paper does not have: {about.subject}.", ""
    delta = (
        f"to {about.reference}" if about.reference else "ours minus the baseline of its modality"
    )
    return (
        f"{subject} Mean Pearson ρ over the emotions on validation. {paper}Here: {corpus}; mean ± "
        f"standard deviation over seeds, and the 95 % bootstrap interval over {clips} clips. "
        f"Δ: {delta}, paired over seeds and clips."
    )


def complete(tables: Mapping[str, pd.DataFrame], names: Sequence[str] = claims.TABLES) -> list[str]:
    """Rows of the tables that lack a number, as "B2, Yu 2024: no result"; empty when none.

    A row that can't be trained on its corpus, and says why, lacks nothing. The rows are those of
    `claims`: a row that a table leaves out, and a table that is not there, are reported as well.
    """
    missing = []
    for name in names:
        column = "clips" if name in PARTITION_TABLES else "here"
        frame = tables.get(name, pd.DataFrame(columns=["row"]))
        for row in dict.fromkeys(claim.row for claim in claims.rows(name)):
            matching = frame[frame["row"] == row]
            if len(matching) != 1:
                missing.append(f"{name}, {row}: {len(matching)} such rows")
            elif not math.isfinite(matching[column].iloc[0]):
                status = matching["status"].iloc[0]
                missing += [] if status.startswith(_DASH) else [f"{name}, {row}: {status}"]
    return missing


def display(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text: what the .md and .tex files and the terminal show."""
    if table.attrs["name"] in PARTITION_TABLES:
        shown = {"Partition": table["row"]}
        for place, prefix in (("paper", "paper_"), ("here", "")):
            shown[f"Duration, {place}"] = [_finite(_clock, s) for s in table[f"{prefix}seconds"]]
            shown[f"Clips, {place}"] = [
                _finite("{:,.0f}".format, c) for c in table[f"{prefix}clips"]
            ]
        return pd.DataFrame(shown)
    rows = list(table.itertuples(index=False))
    columns = {
        "Row": [r.row for r in rows],
        "Input": [r.modality for r in rows],
        "ρ paper": [_finite(_reported, r.paper) for r in rows],
        "ρ here": [_spread("{:.3f}", r.here, r.sd, r.status) for r in rows],
        "95 %": [_finite("[{:.2f}, {:.2f}]".format, r.low, r.high) for r in rows],
        "Δ paper": [_finite(_signed, r.delta_paper) for r in rows],
        "Δ here": [_spread("{:+.3f}", r.delta_here, r.delta_sd) for r in rows],
        "Δ 95 %": [_finite("[{:+.2f}, {:+.2f}]".format, r.delta_low, r.delta_high) for r in rows],
    }
    if table.attrs["name"] not in claims.PAPER_TABLES:
        del columns["ρ paper"], columns["Δ paper"]
    if table.attrs["name"] == "B2":
        columns["Params"] = [_finite(_count, r.parameters) for r in rows]
        columns["Train"] = [_finite(_duration, r.seconds) for r in rows]
    return pd.DataFrame(columns)


def render_text(table: pd.DataFrame, width: int = 100) -> str:
    """Caption and table for a terminal of `width` columns; the Δ columns go where it is narrow."""
    shown = display(table)
    text = _aligned(shown)
    same_input = ["Input"] if "Input" in shown and shown["Input"].nunique() == 1 else []
    for column in (*same_input, "Δ 95 %", "Input", "Δ paper", "Δ here"):
        if max(map(len, text.splitlines())) <= width or column not in shown:
            continue
        shown = shown.drop(columns=column)
        text = _aligned(shown)
    return "\n".join([*textwrap.wrap(table.attrs["caption"], width), "", text])


def write(
    tables: Mapping[str, pd.DataFrame], folder, endings: Sequence[str] = ("md", "tex", "csv")
) -> list[Path]:
    """NAME.md, NAME.tex and NAME.csv for each table into `folder`; returns the paths.

    endings : among "md", "tex", "csv" (plain numbers) and "txt" (as `render_text`)
    """
    formats = {
        "md": _markdown,
        "tex": _latex,
        "csv": lambda frame: frame.to_csv(index=False, float_format="%.6g"),
        "txt": lambda frame: render_text(frame) + "\n",
    }
    written = []
    for name, frame in tables.items():
        for ending in endings:
            written.append(Path(folder) / f"{name}.{ending}")
            atomic_write(written[-1], formats[ending](frame))
    return written


_LEFT = ("Row", "Input", "Partition")


def _aligned(shown: pd.DataFrame, between: str = "  ") -> str:
    """Lines of equal width: heads, a rule, rows; words to the left, numbers to the right."""
    columns = []
    for name in shown.columns:
        cells = [name, *shown[name]]
        width = max(map(len, cells))
        columns.append([c.ljust(width) if name in _LEFT else c.rjust(width) for c in cells])
    lines = [between.join(cells) for cells in zip(*columns, strict=True)]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def _markdown(table: pd.DataFrame) -> str:
    shown = display(table).map(lambda cell: cell.replace("|", "\\|"))
    head, _, *body = _aligned(shown, " | ").splitlines()
    rule = [
        ":".ljust(len(cell), "-") if name in _LEFT else ":".rjust(len(cell), "-")
        for name, cell in zip(shown.columns, head.split(" | "), strict=True)
    ]
    lines = "".join(f"| {line} |\n" for line in (head, " | ".join(rule), *body))
    text = f"{lines}\n{table.attrs['caption']}\n"
    if table.attrs["name"] != "B2":
        return text
    heads = ("System", "Specified by its paper", "Inferred here", "Unknown")
    rows = [heads, (":---",) * len(heads), *marks(table).itertuples(index=False, name=None)]
    note = "Sizes are those of the profile `paper`; the small profiles are narrower."
    return f"{text}\n{note}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


_LATEX = {"ρ": r"$\rho$", "Δ": r"$\Delta$", "±": r"$\pm$", "–": "--", "−": "$-$"}


def _latex(table: pd.DataFrame) -> str:
    """A booktabs table (the document needs \\usepackage{booktabs})."""
    shown = display(table)
    alignment = ["l" if name in _LEFT else "r" for name in shown.columns]
    text = shown.to_latex(
        index=False,
        escape=True,
        caption=table.attrs["caption"].replace("%", r"\%").replace("&", r"\&"),
        label=f"tab:{table.attrs['name']}",
        column_format="".join(alignment),
        position="htbp",
    )
    for symbol, command in _LATEX.items():
        text = text.replace(symbol, command)
    return text


def _finite(form: Callable[..., str], *values: float) -> str:
    """The numbers as text with a proper minus sign; a dash where one is NaN."""
    return form(*values).replace("-", "−") if all(map(math.isfinite, values)) else _DASH


def _spread(form: str, value: float, sd: float, otherwise: str = _DASH) -> str:
    if not math.isfinite(value):
        return otherwise
    return _finite(form.format, value) + (f" ± {sd:.3f}" if math.isfinite(sd) else "")


def _reported(value: float) -> str:
    """With the decimals the paper gives, at least two."""
    return f"{value:.2f}" if round(value, 2) == value else f"{value:g}"


def _signed(value: float) -> str:
    return f"{value:+.2f}" if round(value, 2) == round(value, 4) else f"{value:+.4f}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _count(value: float) -> str:
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value / 1e3:.1f} k"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
