"""From clips to features: encoders, the feature store, batches with masks."""

from emilib.features.feature_set import Batch, FeatureSet, FeatureSplits

__all__ = ["Batch", "FeatureSet", "FeatureSplits"]
