"""What the command `predict` writes: a table for the terminal, CSV, JSON and pictures."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from emilib.cache import atomic_write
from emilib.predict.prediction import Prediction
from emilib.predict.predictor import EmiPredictor
from emilib.progress import report


def predict_files(
    paths: Sequence[Path],
    model: str,
    text: str | None = None,
    window: float | None = None,
    step: float | None = None,
    json_file: Path | None = None,
    csv_file: Path | None = None,
    pictures: Path | None = None,
    workers: int | None = None,
) -> None:
    """Predict files and print a table; arguments as in the command.

    Raises ValueError at the end, when everything is written, where a file could not be read.
    """
    texts = words_of(paths, text)
    predictor, predictions = EmiPredictor.from_pretrained(model), []
    for prediction in predictor.predictions(paths, texts, window, step, workers):
        predictions.append(prediction)
        outcome = prediction.reason or f"{prediction.seconds:.1f} s"
        report(f"{len(predictions)}/{len(paths)} {prediction.clip.name}: {outcome}")
    windowed = window is not None or step is not None
    table = windows_table(predictions) if windowed else predictor.table(predictions)
    print(f"# {predictor.note}\n{_for_terminal(predictions, windowed)}")
    if csv_file is not None:
        atomic_write(csv_file, table.to_csv(index=False, float_format="%.6g"))
    if json_file is not None:
        atomic_write(json_file, _as_json(predictor, predictions))
    if pictures is not None:
        from emilib.predict.pictures import draw

        draw(predictor, predictions, pictures)
    failed = [p.clip.name for p in predictions if p.reason is not None]
    if failed:
        count = f"{len(failed)} of {len(predictions)}"
        raise ValueError(f"{count} files could not be predicted: {', '.join(failed)}")


def words_of(paths: Sequence[Path], text: str | None) -> list[str | None]:
    """The words of each clip, None where none are known.

    text : the words themselves or a .txt with them, for one clip; or a folder, in which the words
        of NAME.mp4 are in NAME.txt, where they are known

    Raises ValueError for one text and several clips, and where there is no such file or folder.
    """
    if text is None:
        return [None] * len(paths)
    if Path(text).is_dir():
        files = [Path(text) / f"{Path(path).stem}.txt" for path in paths]
        return [file.read_text("utf-8") if file.is_file() else None for file in files]
    if len(paths) > 1:
        raise ValueError(
            f"--text: expected a folder, in which the words of NAME.mp4 are in NAME.txt, got one "
            f"text for {len(paths)} clips"
        )
    if text.endswith(".txt"):
        if not Path(text).is_file():
            raise ValueError(f"--text: there is no file {text}")
        text = Path(text).read_text("utf-8")
    return [text]


def windows_table(predictions: Sequence[Prediction]) -> pd.DataFrame:
    """A row a window, and one a file that could not be read, with its reason."""
    tables = []
    for prediction in predictions:
        rows = prediction.windows()
        if prediction.reason is not None:
            rows = pd.DataFrame([{"start": math.nan}], columns=rows.columns)
        rows.insert(0, "clip", prediction.clip.name)
        rows.insert(1, "status", "ok" if prediction.reason is None else "failed")
        rows["problems"] = "; ".join(prediction.problems)
        rows["reason"] = prediction.reason or ""
        tables.append(rows.astype(object))
    return pd.concat(tables, ignore_index=True)


def _for_terminal(predictions: Sequence[Prediction], windowed: bool) -> str:
    """A line a clip or window: intensities ± sd over seeds, what is damaged or missing."""
    lines, remarks = [], []
    width = max(len(prediction.clip.name) for prediction in predictions)
    for prediction in predictions:
        name, row = prediction.clip.name.ljust(width), prediction.row()
        failure = [] if prediction.reason is None else [f"failed: {prediction.reason}"]
        remarks += [f"# {name.strip()}: {remark}" for remark in failure + prediction.problems]
        if failure:
            lines.append({"clip": name, "lacks": "failed"})
            continue
        for part in prediction.windows().to_dict("records") if windowed else [row]:
            line = {"clip": name}
            if windowed:
                line["window"] = f"{part['start']:.1f}-{part['end']:.1f}"
            line |= {emotion: _with_spread(part, emotion) for emotion in prediction.emotions}
            line |= {"took s": f"{prediction.seconds:.2f}", "damaged": str(prediction.damaged)}
            lines.append(line | {"lacks": part["missing"] or "-"})
    read = [prediction for prediction in predictions if prediction.reason is None]
    for note in dict.fromkeys(note for prediction in read for note in prediction.notes):
        count = sum(note in prediction.notes for prediction in read)
        part = f" ({count} of {len(read)} clips)" if count < len(read) else ""
        remarks.append(f"# {note}{part}")
    table = pd.DataFrame(lines).fillna("")
    last = table.pop("lacks")
    return "\n".join([table.assign(lacks=last).to_string(index=False), *remarks])


def _with_spread(row: dict, emotion: str) -> str:
    spread = row[f"{emotion} sd"]
    return f"{row[emotion]:.2f}" + ("" if math.isnan(spread) else f" ±{spread:.2f}")


def _as_json(predictor: EmiPredictor, predictions: Sequence[Prediction]) -> str:
    clips = [
        {
            **prediction.row(),
            "problems": prediction.problems,
            "notes": prediction.notes,
            "missing": prediction.missing if prediction.reason is None else [],
            "windows": prediction.windows().to_dict("records"),
        }
        for prediction in predictions
    ]
    document = pd.Series({"model": predictor.facts, "note": predictor.note, "clips": clips})
    # pandas writes null for NaN and numbers for NumPy's; json indents and keeps "/" as it is.
    plain = json.loads(document.to_json(double_precision=15))
    return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"
