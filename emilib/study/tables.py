"""Tables of both papers, the paper's number beside the one trained here.

`table` makes a DataFrame of plain numbers from results; `display` makes the text a person reads;
`write` keeps both. All are pure functions: nothing here trains, and no number is typed in.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from emilib.cache import atomic_write
from emilib.models import earlier as prior
from emilib.study import claims
from emilib.study.experiments import Experiment
from emilib.study.results import Results

PARTITION_TABLES = ("A1", "B1")
RESULT_TABLES = ("A2", "A3", "A4", "B2", "B3", "B4")
NO_RESULT = "no result"
_TRAINED = "trained here"
_DASH = "–"

# The row the others of a table are compared with, paired over seeds and clips; in A2 each of
# "ours" is compared with the baseline of its modality.
_REFERENCE = {
    "A3": "V+A+T",
    "A4": "Full model",
    "B2": "TAEMI",
    "B3": "TAEMI (full)",
    "B4": "Text-anchored",
}
_BASELINE = {"ViT (ours)": "ViT (baseline)", "Wav2Vec2 (ours)": "Wav2Vec2 (baseline)"}
_SUBJECT = {
    "A1": "partitions",
    "A2": "one modality",
    "A3": "combinations of modalities",
    "A4": "what each part of the dual-stage network does, leaving out or exchanging one",
    "B1": "partitions",
    "B2": "comparison with earlier solutions",
    "B3": "what each part of TAEMI does, leaving one out",
    "B4": "which modality asks",
}
_PARTITIONS = {"Train": "train", "Validation": "validation", "Test": "test"}


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
    if name in PARTITION_TABLES:
        if partitions is None:
            raise ValueError(f"{name} needs `partitions`: clips and seconds of each split")
        frame = _partition_table(name, partitions)
    elif name in RESULT_TABLES:
        if results is None:
            raise ValueError(f"{name} needs `results` of experiments.run")
        frame = pd.DataFrame([_row(name, claim, results) for claim in claims.rows(name)])
        if name == "B2":
            frame = frame.join(pd.DataFrame([_marks(row) for row in frame["row"]]))
    else:
        raise ValueError(f"expected a table among {', '.join(claims.TABLES)}, came {name!r}")
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
    by_split = partitions.set_index("split")
    rows = []
    for row, split in [*_PARTITIONS.items(), ("Sum", None)]:
        here = by_split.reindex([split] if split else list(_PARTITIONS.values()))
        known = here["clips"].notna().all()
        rows.append(
            {
                "row": row,
                "paper_seconds": claims.reported(name, row, "duration").value,
                "paper_clips": claims.reported(name, row, "samples").value,
                "seconds": float(here["seconds"].sum()) if known else math.nan,
                "clips": float(here["clips"].sum()) if known else math.nan,
                "status": "counted here" if known else NO_RESULT,
            }
        )
    return pd.DataFrame(rows)


def _row(name: str, claim: claims.Claim, results: Results) -> dict:
    experiment = results.experiment_for(name, claim.row)
    reference = _BASELINE.get(claim.row) if name == "A2" else _REFERENCE[name]
    row = {
        "row": claim.row,
        "modality": claim.modality,
        "paper": claim.value,
        **dict.fromkeys(("here", "sd", "low", "high"), math.nan),
        "seeds": 0,
        "reference": reference or "",
        "delta_paper": _paper_delta(name, claim, reference),
        **dict.fromkeys(("delta_here", "delta_sd", "delta_low", "delta_high"), math.nan),
        **dict.fromkeys(("parameters", "seconds"), math.nan),
        "status": _status(experiment, results),
    }
    if row["status"] != _TRAINED:
        return row
    estimate, outcome = results.summary(experiment.name), results[experiment.name]
    row |= {
        "here": estimate.value,
        "sd": estimate.sd,
        "low": estimate.low,
        "high": estimate.high,
        "seeds": len(outcome.seeds),
        "parameters": float(outcome.parameters),
        "seconds": float(outcome.seconds.mean()),
    }
    other = results.experiment_for(name, reference) if reference else None
    if reference and reference != claim.row and _status(other, results) == _TRAINED:
        delta = results.difference(experiment.name, other.name)
        row |= {
            "delta_here": delta.value,
            "delta_sd": delta.sd,
            "delta_low": delta.low,
            "delta_high": delta.high,
        }
    return row


# Models of B2 as `prior.MARKS` names them.
_SYSTEMS = {
    "ViT (baseline)": "LastStepGRU",
    "Wav2Vec2 (baseline)": "MeanLinear",
    "ViT + Wav2Vec2 (baseline)": "LateAverage",
    "Yu 2024": "Yu2024",
    "Hallmen 2024": "Hallmen2024",
    "Savchenko 2025": "Savchenko2025",
    "Savchenko 2025, leaked": "Savchenko2025",
    "Zhang 2024": "Zhang2024",
    "Yu 2025": "yu2025",
    "TFN": "TFN",
    "MulT": "MulT",
    "MISA": "MISA",
}


def _marks(row: str) -> dict[str, str]:
    """What is specified, inferred and unknown of the system of a row of B2."""
    marks = prior.MARKS.get(_SYSTEMS.get(row, ""))
    return dict.fromkeys(prior.Marks._fields, "") if marks is None else marks._asdict()


def marks(table: pd.DataFrame) -> pd.DataFrame:
    """What is specified, inferred and unknown of the systems of B2 that others made, a row each."""
    others = table[table["specified"] != ""].drop_duplicates("specified")
    return others[["row", *prior.Marks._fields]].reset_index(drop=True)


def _paper_delta(name: str, claim: claims.Claim, reference: str | None) -> float:
    """The Δ the paper prints, or the difference of the two numbers it reports."""
    if claim.delta is not None:
        return claim.delta
    if not reference or reference == claim.row:
        return math.nan
    return claim.value - claims.reported(name, reference).value


def _status(experiment: Experiment | None, results: Results) -> str:
    if experiment is None:
        return NO_RESULT
    if experiment.name in results:
        return _TRAINED
    reason = results.lacking.get(experiment.name)
    return NO_RESULT if reason is None else f"{_DASH}, {reason}"


def _caption(name: str, corpus: str, results: Results | None) -> str:
    subject = f"Table {name[1]} of paper {name[0]}: {_SUBJECT[name]}."
    if name in PARTITION_TABLES:
        text = f"{subject} Paper: Hume-Vidmimic2. Here: {corpus}."
        return text.replace("Here: .", "Here: the corpus at hand.")
    clips = max((len(results[n].ids) for n in results.names), default=0)
    paper = "Paper: reported on Hume-Vidmimic2. "
    if name not in claims.PAPER_TABLES:
        subject, paper = f"Table {name}, which the paper has not: {_SUBJECT[name]}.", ""
    text = (
        f"{subject} Mean Pearson ρ over the emotions on validation. {paper}"
        f"Here: {corpus or 'the corpus at hand'}; mean ± standard deviation over "
        f"seeds, and the 95 % bootstrap interval over {clips} clips."
    )
    if name == "A2":
        return text + " Δ: ours minus the baseline of its modality, paired over seeds and clips."
    return text + f" Δ: to {_REFERENCE[name]}, paired over seeds and clips."


def complete(tables: Mapping[str, pd.DataFrame], names: Sequence[str] = claims.TABLES) -> list[str]:
    """Rows of the tables that lack a number, as "B2, Yu 2024: no result"; empty when none.

    A row that can't be trained on its corpus, and says why, lacks nothing.
    The rows are those of `claims`: a row that a table leaves out, and a table that is not
    there, are found as well.
    """
    missing = []
    for name in names:
        column = "clips" if name in PARTITION_TABLES else "here"
        frame = tables.get(name)
        for row in dict.fromkeys(claim.row for claim in claims.rows(name)):
            found = None if frame is None else frame[frame["row"] == row]
            if found is None or len(found) != 1:
                what = "the table is not there" if found is None else f"{len(found)} such rows"
                missing.append(f"{name}, {row}: {what}")
            elif found["status"].iloc[0].startswith(f"{_DASH}, "):
                continue
            elif not math.isfinite(found[column].iloc[0]):
                missing.append(f"{name}, {row}: {found['status'].iloc[0]}")
    return missing


def display(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text: what the .md and .tex files and the terminal show."""
    if table.attrs["name"] in PARTITION_TABLES:
        return pd.DataFrame(
            {
                "Partition": table["row"],
                "Duration, paper": table["paper_seconds"].map(_clock),
                "Clips, paper": table["paper_clips"].map(_whole),
                "Duration, here": table["seconds"].map(_clock),
                "Clips, here": table["clips"].map(_whole),
            }
        )
    rows = [row._asdict() for row in table.itertuples(index=False)]
    columns = {
        "Row": [row["row"] for row in rows],
        "Input": [row["modality"] for row in rows],
        "ρ paper": [_reported(row["paper"]) for row in rows],
        "ρ here": [_spread(row) for row in rows],
        "95 %": [_interval(row["low"], row["high"]) for row in rows],
        "Δ paper": [_signed(row["delta_paper"]) for row in rows],
        "Δ here": [_delta(row) for row in rows],
        "Δ 95 %": [_interval(row["delta_low"], row["delta_high"], "+") for row in rows],
    }
    if table.attrs["name"] not in claims.PAPER_TABLES:
        del columns["ρ paper"], columns["Δ paper"]
    if table.attrs["name"] == "B2":
        columns["Params"] = [_count(row["parameters"]) for row in rows]
        columns["Train"] = [_duration(row["seconds"]) for row in rows]
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
    unknown = [ending for ending in endings if ending not in formats]
    if unknown:
        raise ValueError(f"endings: expected some of {', '.join(formats)}, came {unknown}")
    written = []
    for name, frame in tables.items():
        for ending in endings:
            path = Path(folder) / f"{name}.{ending}"
            atomic_write(path, formats[ending](frame))
            written.append(path)
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
    lines = _aligned(shown, " | ").splitlines()
    widths = [len(cell) for cell in lines[0].split(" | ")]
    rule = [
        (":" + "-" * (width - 1)) if name in _LEFT else ("-" * (width - 1) + ":")
        for name, width in zip(shown.columns, widths, strict=True)
    ]
    lines[1] = " | ".join(rule)
    body = "\n".join(f"| {line} |" for line in lines)
    text = f"{body}\n\n{table.attrs['caption']}\n"
    return text + _markdown_marks(table) if table.attrs["name"] == "B2" else text


def _markdown_marks(table: pd.DataFrame) -> str:
    heads = ("System", "Specified by its paper", "Inferred here", "Unknown")
    rows = [heads, (":---",) * len(heads), *marks(table).itertuples(index=False, name=None)]
    note = "Sizes are those of the profile `paper`; the small profiles are narrower."
    return f"\n{note}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


_LATEX = {
    "ρ": r"$\rho$",
    "Δ": r"$\Delta$",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
}


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


def _reported(value: float) -> str:
    """With the decimals the paper gives, at least two; a dash for a row beyond the paper."""
    if math.isnan(value):
        return _DASH
    return f"{value:.2f}" if round(value, 2) == value else f"{value:g}"


def _spread(row: dict) -> str:
    if not math.isfinite(row["here"]):
        return row["status"]
    if not math.isfinite(row["sd"]):
        return _minus(f"{row['here']:.3f}")
    return _minus(f"{row['here']:.3f} ± {row['sd']:.3f}")


def _signed(value: float, digits: int = 2) -> str:
    if not math.isfinite(value):
        return _DASH
    fits = round(value, digits) == round(value, 4)
    return _minus(f"{value:+.{digits}f}" if fits or digits > 2 else f"{value:+.4f}")


def _delta(row: dict) -> str:
    text = _signed(row["delta_here"], 3)
    return f"{text} ± {row['delta_sd']:.3f}" if math.isfinite(row["delta_sd"]) else text


def _interval(low: float, high: float, sign: str = "") -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return _DASH
    return _minus(f"[{low:{sign}.2f}, {high:{sign}.2f}]")


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return _DASH
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _whole(value: float) -> str:
    return f"{int(value):,}" if math.isfinite(value) else _DASH


def _count(value: float) -> str:
    if not math.isfinite(value):
        return _DASH
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value / 1e3:.1f} k"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return _DASH
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
