"""Tables of both papers, the paper's number beside the one trained here."""

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from emilib import metrics
from emilib.cache import atomic_write
from emilib.study import claims
from emilib.study.runs import Results

PARTITION_TABLES = ("A1", "B1")
NO_RESULT = "no result"
# What a table is about, and the row the others are compared with, paired over seeds and clips.
_ABOUT = pd.read_csv(Path(__file__).with_name("tables.csv"), index_col="name", dtype=str).fillna("")
# What is public of each system of B2 that others made: no paper lets it be rebuilt to the letter.
PROVENANCE = pd.read_csv(Path(__file__).with_name("provenance.csv"))
# What a network has to beat: see `representation.lines`. These rows have no differences.
LINES = pd.read_csv(Path(__file__).with_name("lines.csv"), dtype=str)
_BASELINE = {"ViT (ours)": "ViT (baseline)", "Wav2Vec2 (ours)": "Wav2Vec2 (baseline)"}  # in A2
_COLUMNS = (
    "row modality kind paper here sd low high test seeds reference delta_paper delta_here delta_sd "
    "delta_low delta_high p verdict parameters seconds status"
)
_LEFT = ("Row", "Input", "Partition")  # columns of words
_DASH = "–"


def table(name, results=None, corpus="the corpus at hand", partitions=None) -> pd.DataFrame:
    """One table as numbers, a row a row of the paper; `attrs` hold "name" and "caption".

    name : one of `claims.TABLES`; ValueError for another
    results : of `emilib.study.run`, for all but A1 and B1
    corpus : what the numbers were trained on, for the caption
    partitions : for A1 and B1; columns `split` ("train", "validation", "test"), `clips`, `seconds`

    Of result tables: here is the mean over seeds, sd their spread, low and high a 95 % bootstrap
    interval over validation clips and seeds, test the mean ρ on test clips where labels are known,
    reference the row of the differences delta_*, p theirs after Holm's correction over the table.
    Last rows, of kind "line", are what a network has to beat.
    """
    if name in PARTITION_TABLES:
        frame = _partition_table(name, partitions)
    else:
        rows = [_row(name, claim, results) for claim in claims.rows(name)]
        frame = pd.DataFrame([*rows, *_lines(name, results)], columns=_COLUMNS.split())
        differences = frame[["delta_here", "p", "delta_paper"]].astype(float).to_numpy().T
        frame["verdict"], frame["p"] = metrics.verdict(*differences), metrics.holm(differences[1])
    if name == "B2":
        blank = dict.fromkeys(PROVENANCE.columns[1:], "")
        frame = frame.merge(PROVENANCE, how="left", on="row").fillna(blank)
    frame.attrs.update(name=name, caption=_caption(name, corpus, results))
    return frame


def sentiment(results: Results, corpus: str) -> pd.DataFrame | None:
    """B2 by `metrics.sentiment`, on test clips if known; None for other targets."""
    one = next(iter(results.values()))
    if one.target.shape[1] > 1 or one.target.min() >= 0:
        return None
    known, target, rows = results.test_labels is not None and len(one.test_ids) > 1, one.target, {}
    if known:
        target = results.test_labels.loc[one.test_ids].to_numpy(float)
    for claim in claims.rows("B2"):
        experiment = results.experiment_for("B2", claim.row)
        if experiment is not None and experiment.name in results:
            outcome = results[experiment.name]
            rows[claim.row] = outcome.test_predictions if known else outcome.predictions
    for line, *sets in _lines_of("B2", results):
        if line.name != "ridge_sum":  # which is no prediction on the target's scale
            rows[line.row] = sets[known][None]
    each = [pd.DataFrame(metrics.sentiment(target, p) for p in ps).mean() for ps in rows.values()]
    frame = pd.DataFrame(each, index=pd.Index(rows, name="Row")).reset_index()
    clips = f"{len(target)} {'test' if known else 'validation'} clips"
    caption = f"The systems of B2 by measures of sentiment, on {clips}, mean over seeds. {corpus}."
    frame.attrs.update(name="sentiment", caption=caption)
    return frame


def tables(results: Results, partitions: pd.DataFrame, corpus: str) -> dict[str, pd.DataFrame]:
    """All tables of both papers by name; arguments as of `table`."""
    return {name: table(name, results, corpus, partitions) for name in claims.TABLES}


def _partition_table(name: str, partitions: pd.DataFrame) -> pd.DataFrame:
    splits = ["train", "validation", "test"]
    here = partitions.set_index("split")[["seconds", "clips"]].astype(float).reindex(splits)
    here.loc["sum"] = here.sum(skipna=False)
    paper = pd.DataFrame(claims.rows(name)).pivot(index="row", columns="quantity", values="value")
    paper = paper.loc[["Train", "Validation", "Test", "Sum"], ["duration", "samples"]]
    frame = paper.set_axis(["paper_seconds", "paper_clips"], axis=1).reset_index()
    frame[["seconds", "clips"]] = here.to_numpy()
    return frame.assign(status=np.where(frame["clips"].notna(), "counted here", NO_RESULT))


def _row(name: str, claim, results: Results) -> dict:
    experiment = results.experiment_for(name, claim.row)
    reference = _ABOUT["reference"][name] or _BASELINE.get(claim.row, "")
    compared, delta = reference if reference != claim.row else "", claim.delta
    if delta is None and compared:
        delta = claim.value - claims.reported(name, compared).value
    row = {"row": claim.row, "modality": claim.modality, "paper": claim.value, "seeds": 0}
    row["kind"] = "paper" if math.isfinite(claim.value) else "beyond the paper"
    row |= {"reference": reference, "delta_paper": delta, "status": NO_RESULT}
    if experiment is None or experiment.name not in results:
        reason = experiment and results.lacking.get(experiment.name)
        return row | {"status": f"{_DASH}, {reason}"} if reason else row
    outcome, rho = results[experiment.name], results.summary(experiment.name)
    row |= {"here": rho.value, "sd": rho.sd, "low": rho.low, "high": rho.high}
    row["test"] = results.test_rho(outcome.test_predictions)
    row |= {"seeds": len(outcome.seeds), "parameters": float(outcome.parameters)}
    row |= {"seconds": float(outcome.seconds.mean()), "status": "trained here"}
    other = results.experiment_for(name, compared)
    if other is not None and other.name in results:
        delta = results.difference(experiment.name, other.name)
        row |= {"delta_here": delta.value, "delta_sd": delta.sd}
        row |= {"delta_low": delta.low, "delta_high": delta.high, "p": delta.p}
    return row


def _lines_of(name: str, results: Results):
    """The lines to beat of a table, with predictions of validation and test clips."""
    predictions = results.lines() if results else {}
    for line in LINES[LINES["tables"].str.contains(name)].itertuples():
        if line.name in predictions:
            counts = [len(next(iter(results.values())).target)]
            yield line, *np.split(predictions[line.name], counts)


def _lines(name: str, results: Results) -> list[dict]:
    rows = []
    for line, valid, test in _lines_of(name, results):
        rho = metrics.estimate(next(iter(results.values())).target, valid)
        row = {"row": line.row, "modality": line.modality, "kind": "line", "here": rho.value}
        row |= {"low": rho.low, "high": rho.high, "test": results.test_rho(test[None])}
        rows.append(row | {"seeds": 0, "reference": "", "status": "regression"})
    return rows


def _caption(name: str, corpus: str, results: Results | None) -> str:
    about = _ABOUT.loc[name]
    if name in PARTITION_TABLES:
        return f"{about.subject} Paper: Hume-Vidmimic2. Here: {corpus}."
    clips = max((len(results[n].ids) for n in results), default=0)
    seeds = max((len(results[n].seeds) for n in results), default=0)
    over = " (one seed: not over seeds)" if seeds == 1 else " and the seeds"
    paper = "Paper: reported on Hume-Vidmimic2. " if name != "A4" else ""
    absent = " and ".join(results.absent if results else ())
    less = f" No clip has {absent}: what reads all three is trained without." if absent else ""
    return (
        f"{about.subject} Mean Pearson ρ over the emotions on validation. {paper}Here: {corpus}; "
        "mean ± standard deviation over seeds, and the 95 % bootstrap interval over "
        f"{clips} clips{over}. Δ: {about.compared}, paired over seeds and clips; p after Holm's "
        f"correction over the table.{less}"
    )


def complete(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Rows that lack a number and do not say why, of all tables, as "B2, Yu 2024: no result"."""
    rows = dict.fromkeys((name, claim.row) for name in claims.TABLES for claim in claims.rows(name))
    for name, frame in tables.items():
        done = frame["clips" if name in PARTITION_TABLES else "here"].notna()
        for row in frame.loc[done | frame["status"].str.startswith(_DASH), "row"]:
            rows.pop((name, row), None)
    return [f"{name}, {row}: {NO_RESULT}" for name, row in rows]


def display(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text: what the .md and .tex files and the terminal show."""
    rows, name = list(table.itertuples(index=False)), table.attrs["name"]
    if name == "sentiment":
        return table.map(lambda x: x if isinstance(x, str) else _finite("{:z.3f}", x))
    if name in PARTITION_TABLES:
        columns = {"Partition": table["row"]}
        for who, prefix in (("paper", "paper_"), ("here", "")):
            columns[f"Duration, {who}"] = table[f"{prefix}seconds"].map(_clock)
            columns[f"Clips, {who}"] = table[f"{prefix}clips"].map("{:,.0f}".format)
        return pd.DataFrame(columns).replace("nan", _DASH)
    columns = {
        "Row": [r.row for r in rows],
        "Input": [r.modality for r in rows],
        "ρ paper": [_reported(r.paper) for r in rows],
        "ρ here": [_spread("{:z.3f}", r.here, r.sd, r.status) for r in rows],
        "95 %": [_finite("[{:z.3f}, {:z.3f}]", r.low, r.high) for r in rows],
        "ρ test": [_finite("{:z.3f}", r.test) for r in rows],
        "Δ paper": [_reported(r.delta_paper, "+") for r in rows],
        "Δ here": [_spread("{:+z.3f}", r.delta_here, r.delta_sd) for r in rows],
        "Δ 95 %": [_finite("[{:+z.3f}, {:+z.3f}]", r.delta_low, r.delta_high) for r in rows],
        "p": [_finite("{:.3f}", r.p) for r in rows],
    }
    if name == "A4":
        del columns["ρ paper"], columns["Δ paper"]
    if name == "B2":
        columns["Params"] = [_scaled(r.parameters, (1e3, "k"), (1e6, "M")) for r in rows]
        columns["Train"] = [_scaled(r.seconds, (1, "s"), (60, "min")) for r in rows]
    return pd.DataFrame(columns)


def in_words(table: pd.DataFrame) -> list[str]:
    """Each difference of a result table as a line, with its interval and verdict."""
    rows, form = table[table["delta_here"].notna()].itertuples(), "{:+z.3f} [{:+z.3f}, {:+z.3f}]"
    return [
        f"{r.row} − {r.reference}: {_finite(form, r.delta_here, r.delta_low, r.delta_high)}, "
        f"p {r.p:.3f}, {r.verdict}; paper {_reported(r.delta_paper, '+')}"
        for r in rows
    ]


def render_text(table: pd.DataFrame) -> str:
    """Caption and table for a terminal of 100 columns; the Δ columns go where it is too narrow."""
    shown = display(table)
    one_input = ["Input"] if "Input" in shown and shown["Input"].nunique() == 1 else []
    for column in [*one_input, "95 %", "Δ 95 %", "Input", "Δ paper", "Train", "Params"]:
        if len(_aligned(shown)[0]) > 100:
            shown = shown.drop(columns=column, errors="ignore")
    return "\n".join([*textwrap.wrap(table.attrs["caption"], 100), "", *_aligned(shown)])


def write(tables: Mapping[str, pd.DataFrame], folder) -> list[Path]:
    """NAME.md, .tex, .csv (plain numbers) and .txt (`render_text`) of each table; the paths."""
    texts = {}
    for name, frame in tables.items():
        texts |= {f"{name}.md": _markdown(frame), f"{name}.tex": _latex(frame)}
        texts[f"{name}.csv"] = frame.to_csv(index=False, float_format="%.6g")
        texts[f"{name}.txt"] = render_text(frame) + "\n"
    for name, text in texts.items():
        atomic_write(Path(folder, name), text)
    return [Path(folder, name) for name in texts]


def _aligned(shown: pd.DataFrame, between: str = "  ") -> list[str]:
    """Lines of equal width: heads, a rule, rows; words to the left, numbers to the right."""
    columns = []
    for name in shown.columns:
        text = pd.Series([name, *shown[name]])
        side = "right" if name in _LEFT else "left"  # of the blanks
        columns.append(text.str.pad(text.str.len().max(), side))
    lines = [between.join(cells) for cells in zip(*columns, strict=True)]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _markdown(table: pd.DataFrame) -> str:
    shown = display(table)
    head, _, *body = _aligned(shown, " | ")
    sides = {True: str.ljust, False: str.rjust}
    pairs = zip(shown.columns, map(len, head.split(" | ")), strict=True)
    rule = " | ".join(sides[name in _LEFT](":", width, "-") for name, width in pairs)
    lines = "".join(f"| {line} |\n" for line in (head, rule, *body))
    text = f"{lines}\n{table.attrs['caption']}\n"
    if table.attrs["name"] != "B2":
        return text
    heads = ("System", "Specified by its paper", "Inferred here", "Unknown")
    systems = PROVENANCE.drop_duplicates("specified").itertuples(index=False, name=None)
    rows = [heads, (":---",) * len(heads), *systems]
    note = "Sizes are those of the profile `paper`; the small profiles are narrower."
    return f"{text}\n{note}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _latex(table: pd.DataFrame) -> str:
    """A booktabs table (the document needs \\usepackage{booktabs})."""
    shown, caption = display(table), table.attrs["caption"].replace("%", r"\%").replace("&", r"\&")
    options = {"index": False, "escape": True, "caption": caption, "position": "htbp"}
    options["column_format"] = "".join("l" if name in _LEFT else "r" for name in shown.columns)
    text = shown.to_latex(label=f"tab:{table.attrs['name']}", **options)
    symbols = {"ρ": r"$\rho$", "Δ": r"$\Delta$", "±": r"$\pm$", "–": "--", "−": "$-$"}
    return text.translate(str.maketrans(symbols))


def _finite(form: str, *values: float) -> str:
    """The numbers as text with a proper minus sign; a dash where one is NaN."""
    return form.format(*values).replace("-", "−") if all(map(math.isfinite, values)) else _DASH


def _spread(form: str, value: float, sd: float, otherwise: str = _DASH) -> str:
    spread = f" ± {sd:.3f}" if math.isfinite(sd) else ""
    return _finite(form, value) + spread if math.isfinite(value) else otherwise


def _reported(value: float, sign: str = "") -> str:
    """With the decimals the paper gives: two or four."""
    return _finite(f"{{:{sign}.{2 if round(value, 2) == round(value, 4) else 4}f}}", value)


def _clock(seconds: float) -> str:
    if math.isnan(seconds):
        return _DASH
    minutes, whole = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{whole:02d}"


def _scaled(value: float, small: tuple[float, str], large: tuple[float, str]) -> str:
    """In the larger unit, as (size, name), from 1 of it on."""
    size, unit = large if value >= large[0] else small
    return _finite(f"{{:.1f}} {unit}", value / size)
