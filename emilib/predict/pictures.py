"""Pictures of predictions, for the command; apart from it, because Matplotlib starts slowly."""

from collections.abc import Sequence
from pathlib import Path

from emilib.cache import atomic_write
from emilib.plots import clip_plots, style
from emilib.predict.predictor import EmiPredictor
from emilib.progress import report


def draw(predictor: EmiPredictor, predictions: Sequence, folder: Path) -> None:
    """NAME.png of each clip, and NAME-over-time.png of windows; a second NAME is NAME-2."""
    stems = [Path(prediction.clip.name).stem for prediction in predictions]
    for place, prediction in enumerate(predictions):
        if prediction.reason is not None:
            continue
        name, before = stems[place], stems[:place].count(stems[place])
        name = f"{name}-{before + 1}" if before else name
        figures = {name: clip_plots.explained(predictor.look(prediction.clip), predictor.note)}
        if len(prediction.start) > 1:
            figures[f"{name}-over-time"] = clip_plots.over_time(
                prediction.windows(), predictor.emotions, prediction.clip.name, predictor.note
            )
        for file, figure in figures.items():
            atomic_write(folder / f"{file}.png", style.rendered(figure, "png"))
            report(f"wrote {folder / file}.png")
