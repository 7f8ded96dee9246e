"""Fusion models of both papers and the solutions before them, as plain `nn.Module`s.

Names are loaded when first used, so that importing this package does not import torch.
"""

from importlib import import_module

_HOME = {
    "Output": "output",
    "DualStage": "dual_stage",
    "TAEMI": "taemi",
    "MeanLinear": "earlier",
    "LastStepGRU": "earlier",
    "LateAverage": "earlier",
    "Yu2024": "earlier",
    "Hallmen2024": "earlier",
    "StatisticsMLP": "earlier",
    "Savchenko2025": "earlier",
    "Zhang2024": "earlier",
    "TFN": "earlier",
    "MulT": "earlier",
    "MISA": "earlier",
    "ContrastivePair": "contrastive",
    "for_features": "build",
}

__all__ = [*_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
