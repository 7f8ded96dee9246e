"""From clips to features: encoders, the feature store, batches with masks."""

_HOME = {
    "Batch": "feature_set",
    "FeatureSet": "feature_set",
    "FeatureSplits": "feature_set",
}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
