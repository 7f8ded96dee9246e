"""Pictures of predictions, as PNG files."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from emilib.cache import atomic_write
from emilib.plots import predict_plots
from emilib.predict.prediction import Prediction
from emilib.predict.predictor import EmiPredictor
from emilib.progress import report


def draw(predictor: EmiPredictor, predictions: Sequence[Prediction], folder: Path) -> None:
    """A picture of each clip that could be read: NAME.png, and NAME-over-time.png of windows.

    Of clips with one name the second becomes NAME-2.png, and so on.
    """
    used: Counter = Counter()
    for prediction in predictions:
        stem = Path(prediction.clip.name).stem
        used[stem] += 1
        name = stem if used[stem] == 1 else f"{stem}-{used[stem]}"
        if prediction.reason is not None:
            continue
        look = predictor.look(prediction.clip)
        figures = {name: predict_plots.look(look, predictor.note)}
        if len(prediction.start) > 1:
            figures[f"{name}-over-time"] = predict_plots.over_time(
                prediction.windows(), predictor.emotions, prediction.clip.name, predictor.note
            )
        for file, figure in figures.items():
            atomic_write(folder / f"{file}.png", predict_plots.png(figure))
            report(f"wrote {folder / file}.png")
