"""What the command `predict` writes: a table for the terminal, CSV, JSON and pictures."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from emilib.cache import atomic_write
from emilib.predict.predictor import SPOKEN, EmiPredictor, Prediction
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
    if not paths:
        raise ValueError("expected at least one video file, came none")
    texts = words_of(paths, text)
    predictor = EmiPredictor.from_pretrained(model)
    found = []
    for prediction in predictor.predictions(paths, texts, window, step, workers):
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
        draw(predictor, found, pictures)
    failed = [p for p in found if p.reason is not None]
    if failed:
        names = ", ".join(p.clip.name for p in failed)
        raise ValueError(f"{len(failed)} of {len(found)} files could not be predicted: {names}")


def words_of(paths: Sequence[Path], text: str | None) -> list[str | None]:
    """The words of each clip, None where none are given.

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
            f"--text: one text for {len(paths)} clips; give a folder, in which the words of "
            "NAME.mp4 are in NAME.txt"
        )
    if text.endswith(".txt"):
        if not Path(text).is_file():
            raise ValueError(f"--text: there is no file {text}")
        text = Path(text).read_text("utf-8")
    return [text]


def draw(predictor: EmiPredictor, found: Sequence[Prediction], folder: Path) -> None:
    """A picture of each clip that could be read: NAME.png, and NAME-over-time.png of windows."""
    from emilib.plots import predict_plots

    names = _distinct([Path(p.clip.name).stem for p in found])
    for name, prediction in zip(names, found, strict=True):
        if prediction.reason is not None:
            continue
        look = predictor.look(prediction.clip)
        _write(predict_plots.look(look, predictor.note), folder / f"{name}.png")
        if len(prediction.start) > 1:
            figure = predict_plots.over_time(
                prediction.windows(), predictor.emotions, prediction.clip.name, predictor.note
            )
            _write(figure, folder / f"{name}-over-time.png")


def _write(figure, path: Path) -> None:
    from emilib.plots.predict_plots import png

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
    """A line a clip or window: intensities ± sd over seeds, seconds, what is damaged or missing."""
    names, folder = _names(found)
    emotions = found[0].emotions
    width = max(4, *map(len, names))
    when = f"{'window':>15s}" if windowed else ""
    head = f"{'clip':{width}s}{when}" + "".join(f"{e:>15s}" for e in emotions)
    lines = [f"# files in {folder}"] if folder else []
    lines.append(f"{head}   took s  damaged  lacks")
    for name, prediction in zip(names, found, strict=True):
        if prediction.reason is not None:
            lines.append(f"{name:{width}s}  failed: {prediction.reason}")
            continue
        row = prediction.row()
        rows = prediction.windows() if windowed else pd.DataFrame([row])
        for number, values in enumerate(rows.to_dict("records")):
            start = f"{name:{width}s}"
            start += f"{values['start']:8.1f}-{values['end']:<6.1f}" if windowed else ""
            cells = "".join(f"{_with_spread(values, e):>15s}" for e in emotions)
            once = f"{prediction.seconds:9.2f}{prediction.damaged:9d}" if not number else " " * 18
            lacks = ", ".join(SPOKEN[m] for m in values["missing"].split(", ") if m) or "-"
            lines.append(f"{start}{cells}{once}  {lacks}")
    lines += _remarks(found, names)
    return "\n".join(lines) + "\n"


def _with_spread(values: dict, emotion: str) -> str:
    spread = values[f"{emotion} sd"]
    return f"{values[emotion]:.2f}" + ("" if math.isnan(spread) else f" ±{spread:.2f}")


def _names(found: Sequence[Prediction]) -> tuple[list[str], str | None]:
    """What to call each clip, and the folder where all lie, which need not be said each time."""
    paths = [Path(prediction.clip.name) for prediction in found]
    folders = {str(path.parent) for path in paths}
    if len(folders) == 1:
        return [path.name for path in paths], None if folders == {"."} else folders.pop()
    return [_short(path) for path in paths], None


def _short(path: Path) -> str:
    """A path relative to the working folder where it lies below it."""
    here = Path(os.getcwd())
    return str(path.relative_to(here)) if path.is_absolute() and here in path.parents else str(path)


def _remarks(found: Sequence[Prediction], names: Sequence[str]) -> list[str]:
    """Problems of each file, and notes once with how many clips they are about."""
    clips = zip(names, found, strict=True)
    lines = [f"# {name}: {problem}" for name, p in clips for problem in p.problems]
    read = [p for p in found if p.reason is None]
    for note in dict.fromkeys(n for p in read for n in p.notes):
        count = sum(note in p.notes for p in read)
        lines.append(
            f"# {note}" + ("" if count == len(read) else f" ({count} of {len(read)} clips)")
        )
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
