"""What the command `predict` writes: a table for the terminal, CSV, JSON and pictures."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from .cache import atomic_write
from .predict import EmiPredictor, Prediction
from .progress import report

SHORT = {"frames": "V", "audio": "A", "text": "T"}


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
    predictor = EmiPredictor.from_pretrained(model)
    if not paths:
        raise ValueError("expected at least one video file, came none")
    if text is not None and text.endswith(".txt"):
        text = Path(text).read_text("utf-8")
    found = []
    for prediction in predictor.predictions(paths, text, window, step, workers):
        found.append(prediction)
        said = prediction.reason or f"{prediction.seconds:.1f} s"
        report(f"{len(found)}/{len(paths)} {prediction.clip.name}: {said}")
    windowed = window is not None or step is not None
    table = _windows_table(found) if windowed else predictor.table(found)
    print(f"# {predictor.note}\n{_for_terminal(found, windowed)}", end="")
    if csv_file is not None:
        atomic_write(csv_file, table.to_csv(index=False, float_format="%.6g"))
    if json_file is not None:
        atomic_write(json_file, _as_json(predictor, found))
    if pictures is not None:
        draw(predictor, found, pictures, text)
    failed = [p for p in found if p.reason is not None]
    if failed:
        names = ", ".join(p.clip.name for p in failed)
        raise ValueError(f"{len(failed)} of {len(found)} files could not be predicted: {names}")


def draw(
    predictor: EmiPredictor, found: Sequence[Prediction], folder: Path, text: str | None = None
) -> None:
    """A picture of each clip that could be read: NAME.png, and NAME-over-time.png of windows."""
    from .study import predict_plots

    names = _distinct([Path(p.clip.name).stem for p in found])
    for name, prediction in zip(names, found, strict=True):
        if prediction.reason is not None:
            continue
        look = predictor.look(prediction.clip, text)
        _write(predict_plots.look(look, predictor.note), folder / f"{name}.png")
        if len(prediction.start) > 1:
            figure = predict_plots.over_time(
                prediction.windows(), predictor.emotions, prediction.clip.name, predictor.note
            )
            _write(figure, folder / f"{name}-over-time.png")


def _write(figure, path: Path) -> None:
    from .study.predict_plots import png

    atomic_write(path, png(figure))
    report(f"wrote {path}")


def _distinct(stems: Sequence[str]) -> list[str]:
    """File names without doubles: a, b, a-2."""
    used: dict[str, int] = {}
    names = []
    for stem in stems:
        used[stem] = used.get(stem, 0) + 1
        names.append(stem if used[stem] == 1 else f"{stem}-{used[stem]}")
    return names


def _windows_table(found: Sequence[Prediction]) -> pd.DataFrame:
    """A row a window, and one a file that could not be read, with its reason."""
    tables = []
    for prediction in found:
        rows = prediction.windows()
        if prediction.reason is not None:
            rows = pd.DataFrame([{"start": math.nan}], columns=rows.columns)
        rows.insert(0, "clip", prediction.clip.name)
        rows.insert(1, "status", "ok" if prediction.reason is None else "failed")
        rows["problems"] = "; ".join(prediction.problems)
        rows["reason"] = prediction.reason or ""
        tables.append(rows.astype(object))
    return pd.concat(tables, ignore_index=True)


def _for_terminal(found: Sequence[Prediction], windowed: bool) -> str:
    """Lines of one clip or window each: intensities, largest spread, what is missing, seconds."""
    emotions = found[0].emotions
    width = max(4, *(len(_short(p.clip.name)) for p in found))
    when = f"{'window':>13s}" if windowed else ""
    head = f"{'clip':{width}s}{when} " + "".join(f"{e.replace(' ', '-'):>14s}" for e in emotions)
    lines = [f"{head}   max sd  lacks  took s"]
    for prediction in found:
        name = f"{_short(prediction.clip.name):{width}s}"
        if prediction.reason is not None:
            lines.append(f"{name}  failed: {prediction.reason}")
            continue
        row = prediction.row()
        rows = prediction.windows() if windowed else pd.DataFrame([row])
        for number, values in enumerate(rows.to_dict("records")):
            time = f"{values['start']:6.1f}-{values['end']:<6.1f}" if windowed else ""
            cells = "".join(f"{values[e]:14.3f}" for e in emotions)
            spread = max(values[f"{e} sd"] for e in emotions)
            lacks = "".join(SHORT[m] for m in values["missing"].split(", ") if m) or "-"
            took = f"{prediction.seconds:8.2f}" if number == 0 else ""
            lines.append(f"{name}{time} {cells}{spread:9.3f}  {lacks:5s}{took}")
    lines += _remarks(found)
    return "\n".join(lines) + "\n"


def _short(name: str) -> str:
    """A path relative to the working folder where it lies below it."""
    path = Path(name)
    here = Path(os.getcwd())
    return str(path.relative_to(here)) if path.is_absolute() and here in path.parents else name


def _remarks(found: Sequence[Prediction]) -> list[str]:
    """Problems of each file, and notes once with how many clips they are about."""
    lines = [f"# {_short(p.clip.name)}: {problem}" for p in found for problem in p.problems]
    read = [p for p in found if p.reason is None]
    for note in dict.fromkeys(n for p in read for n in p.notes):
        count = sum(note in p.notes for p in read)
        lines.append(f"# {note}" + ("" if count == len(read) else f" ({count} of {len(read)})"))
    return lines


def _as_json(predictor: EmiPredictor, found: Sequence[Prediction]) -> str:
    clips = []
    for prediction in found:
        clip = prediction.row()
        clip["problems"], clip["notes"] = prediction.problems, prediction.notes
        clip["missing"] = prediction.missing if prediction.reason is None else []
        clip["windows"] = prediction.windows().to_dict("records")
        clips.append(clip)
    document = {"model": predictor.facts, "note": predictor.note, "clips": clips}
    return json.dumps(_no_nan(document), indent=1, ensure_ascii=False) + "\n"


def _no_nan(value):
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {k: _no_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_no_nan(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.item() if hasattr(value, "item") else value
