"""A trained experiment as an `EmiPredictor`, which reads anybody's files."""

import numpy as np

from emilib import __version__, metrics
from emilib.features import checkpoints
from emilib.predict.clip import MediaSettings
from emilib.predict.predictor import EmiPredictor


def predictor_of(workspace, experiment: str) -> EmiPredictor:
    """The models of an experiment of a workspace, trained where missing, if it can read a video."""
    known, profile = workspace.experiments(), workspace.profile
    usable = [n for n, e in known.items() if e.model and e.features.startswith("ours")]
    if experiment not in usable:
        names = ", ".join(usable)
        raise ValueError(f"expected one of {names}, which can read a video, got {experiment!r}")
    chosen, results = known[experiment], workspace.results([experiment])
    kind, *stage = chosen.features.split(", ")
    outcome, rho = results[experiment], results.summary(experiment)
    each = np.mean([metrics.pearson(outcome.target, p) for p in outcome.predictions], axis=0)
    own = {"source": "trained here on the training clips", "licence": "MIT"}
    origins = dict.fromkeys(("vision", "audio", "text"), own)
    for role in origins:
        if source := getattr(profile, role).get("checkpoint"):
            licence = getattr(checkpoints.get(str(source)), "licence", "see its source")
            origins[role] = {"source": str(source), "licence": licence}
    facts = {"experiment": experiment, "corpus": workspace.corpus_name, "profile": profile.name}
    facts |= {"synthetic": bool(workspace.is_synthetic), "selected": chosen.recipe.selects}
    facts["clips"] = workspace.clips["split"].value_counts().to_dict()
    # What follows the comma is advice for that machine.
    facts["words"] = workspace.transcript_source.partition(", as Whisper")[0].rstrip(".") + "."
    facts |= {"rho": float(rho.value), "rho_sd": float(rho.sd)}
    facts["rho_of_each"] = dict(zip(outcome.targets, map(float, each), strict=True))
    facts |= {"encoders": origins, "version": __version__}
    models = {seed: results.model(experiment, seed) for seed in outcome.seeds}
    encoders, features = workspace.encoders(*stage), workspace.features(kind, *stage).train
    how = (profile.fps, profile.image_size, profile.visual, int(profile.audio_every))
    media = MediaSettings(*how, features.frame_reference)
    reads = tuple(m for m in chosen.modalities if m in features.dims)
    about = (reads, outcome.targets, outcome.scale)
    return EmiPredictor(encoders, models, features.scaling, media, facts, *about)
