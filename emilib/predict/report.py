"""What the command `predict` writes: a table for the terminal, CSV and JSON."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from emilib.cache import atomic_write
from emilib.predict.predictor import EmiPredictor
from emilib.progress import report


def predict_files(
    paths: Sequence[Path], model, text, window, step, json_file, csv_file, pictures_folder
) -> None:
    """The command: ValueError at the end, all being written, where a file could not be read."""
    texts = words_of(paths, text)
    predictor, predictions = EmiPredictor.from_pretrained(model), []
    for prediction in predictor.predictions(paths, texts, window, step):
        predictions.append(prediction)
        outcome = prediction.reason or f"{prediction.seconds:.1f} s"
        report(f"{len(predictions)}/{len(paths)} {prediction.clip.name}: {outcome}")
    clips = [prediction.row() for prediction in predictions]
    windows = [prediction.windows().to_dict("records") for prediction in predictions]
    cut, pairs = window is not None or step is not None, zip(clips, windows, strict=True)
    rows = [{**clip, **part} for clip, parts in pairs for part in (cut and parts) or [{}]]
    table = pd.DataFrame(rows)
    shown = table.filter(["clip", "start", "end"]).round(1)
    for emotion in predictor.emotions:
        spread = table[f"{emotion} sd"].map(" ±{:.2f}".format)
        shown[emotion] = table[emotion].map("{:.2f}".format) + spread
    shown = shown.join(table[["status", "missing"]])
    print(f"# {predictor.note}\n{shown.to_string(index=False)}")
    for clip in clips:
        print(f"# {clip['clip']}: {clip['reason']} {clip['problems']} {clip['notes']}")
    if csv_file is not None:
        atomic_write(csv_file, table.to_csv(index=False, float_format="%.6g"))
    if json_file is not None:
        for clip, prediction, rows in zip(clips, predictions, windows, strict=True):
            lists = {name: getattr(prediction, name) for name in ("problems", "notes", "missing")}
            clip |= lists | {"windows": rows}
        document = {"model": predictor.facts, "note": predictor.note, "clips": clips}
        # pandas writes null for NaN
        text = pd.Series(document).to_json(double_precision=15, force_ascii=False, indent=1)
        atomic_write(json_file, text + "\n")
    if pictures_folder is not None:
        from emilib.predict import pictures  # Matplotlib starts slowly

        pictures.draw(predictor, predictions, pictures_folder)
    if failed := [prediction.clip.name for prediction in predictions if prediction.reason]:
        count = f"{len(failed)} of {len(clips)}"
        raise ValueError(f"{count} files could not be predicted: {', '.join(failed)}")


def words_of(paths: Sequence[Path], text: str | None) -> list[str | None]:
    """The words of each clip, None where none are known.
    text : for one clip the words or a .txt with them; or a folder with NAME.txt for NAME.mp4"""
    if text is not None and os.path.isdir(text):
        files = [Path(text) / f"{Path(path).stem}.txt" for path in paths]
        return [file.read_text("utf-8") if file.is_file() else None for file in files]
    if text is not None and len(paths) > 1:
        raise ValueError(f"--text: expected a folder, got one text for {len(paths)} clips")
    return [Path(text).read_text("utf-8") if text and text.endswith(".txt") else text] * len(paths)
