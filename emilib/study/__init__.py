"""Study: training, experiments, metrics, tables and figures.

Names are loaded when first used, so that importing this package does not import torch.
"""

from importlib import import_module

_HOME = {
    "Experiment": "emilib.study.experiments",
    "ExperimentError": "emilib.study.runs",
    "Results": "emilib.study.results",
    "run": "emilib.study.runs",
    "Recipe": "emilib.training.recipes",
    "Result": "emilib.training.loop",
    "fit": "emilib.training.loop",
    "fit_savchenko": "emilib.study.savchenko",
    "predict": "emilib.training.loop",
    "mean_pearson": "emilib.metrics",
    "pearson": "emilib.metrics",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
