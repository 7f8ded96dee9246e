"""From clips to features: encoders, the feature store, batches with masks."""

from importlib import import_module

__all__ = ["Batch", "FeatureSet", "FeatureSplits"]


def __getattr__(name):
    """The names above, imported when first used: torch stays out of `import emilib.features`."""
    if name in __all__:
        return getattr(import_module(f"{__name__}.feature_set"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
