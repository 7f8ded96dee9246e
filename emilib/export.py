"""A trained experiment as an `EmiPredictor`, which reads anybody's files."""

import numpy as np

from emilib import __version__, metrics
from emilib.features import checkpoints
from emilib.predict.clip import MediaSettings
from emilib.predict.predictor import EmiPredictor

MINE = {"source": "trained with this project on the training clips", "licence": "MIT"}


def predictor_of(workspace, experiment: str, device=None) -> EmiPredictor:
    """The models of an experiment on a workspace's corpus; trained first where missing.

    Raises ValueError for an experiment without a model of its own (a mean of others), for one on
    the organisers' features, which nothing here can compute for another video, and for one whose
    seeds have encoders of their own.
    """
    known = workspace.experiments()
    if experiment not in known:
        raise ValueError(f"no experiment {experiment!r}; there are {', '.join(known)}")
    chosen = known[experiment]
    kind, *stage = chosen.features.split(", ")
    if chosen.model is None or kind != "ours":
        why = {"official": "reads the official features", "media": "trains its own encoders"}
        why = "is a mean of others" if chosen.model is None else why[kind]
        usable = [n for n, e in known.items() if e.model and e.features.startswith("ours")]
        raise ValueError(
            f"experiment {experiment!r} {why}, so it can't be used on a video; take one of "
            f"{', '.join(usable)}"
        )
    results, profile = workspace.results([experiment]), workspace.profile
    return EmiPredictor(
        workspace.encoders(*stage),
        {seed: results.model(experiment, seed) for seed in profile.seeds},
        workspace.features(kind, *stage).moments,
        MediaSettings(profile.fps, profile.image_size, profile.visual, int(profile.audio_every)),
        _facts(workspace, results, experiment),
        chosen.modalities,
        results[experiment].targets,
        results[experiment].scale,
        device=device,
    )


def _facts(workspace, results, experiment: str) -> dict:
    """What a user of the models has to know."""
    outcome, rho = results[experiment], results.summary(experiment)
    each = np.mean([metrics.pearson(outcome.target, p) for p in outcome.predictions], axis=0)
    encoders = {}
    for role in ("vision", "audio", "text"):
        source = getattr(workspace.profile, role).get("checkpoint")
        known = None if source is None else checkpoints.get(str(source))
        licence = "see its source" if known is None else known.licence
        encoders[role] = MINE if source is None else {"source": str(source), "licence": licence}
    return {
        "experiment": experiment,
        "corpus": workspace.corpus_name,
        "synthetic": bool(workspace.is_synthetic),
        "profile": workspace.profile.name,
        "clips": {split: int(n) for split, n in workspace.clips["split"].value_counts().items()},
        # What follows the comma is advice for that machine.
        "words": workspace.transcript_source.partition(", as Whisper")[0].rstrip(".") + ".",
        "rho": float(rho.value),
        "rho_sd": float(rho.sd),
        "rho_of_each": dict(zip(outcome.targets, map(float, each), strict=True)),
        "encoders": encoders,
        "version": __version__,
    }
