"""Study: training, experiments, metrics, tables and figures.

Names are loaded when first used, so that importing this package does not import torch.
"""

from importlib import import_module

_HOME = {
    "Experiment": "experiments",
    "ExperimentError": "experiments",
    "Results": "experiments",
    "run": "experiments",
    "Recipe": "plans",
    "Result": "training",
    "fit": "training",
    "fit_savchenko": "training",
    "predict": "training",
    "mean_pearson": "metrics",
    "pearson": "metrics",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
