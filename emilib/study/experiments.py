"""The rows of the tables as data: every row is an `Experiment`.

One experiment may serve several rows (the full TAEMI stands in B2, B3 and B4) and is trained once,
by `emilib.study.runs.run_one`.
"""

import dataclasses
from collections.abc import Callable, Mapping

from emilib.models import taemi
from emilib.study import claims
from emilib.study.savchenko import fit_savchenko
from emilib.training.recipes import Recipe

MEDIA = "media"  # the features of an experiment that trains its encoders
_LETTERS = {"V": "frames", "A": "audio", "T": "text"}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is trained for one or more rows.

    model : name of a class in `emilib.models`; None where nothing is trained, only `members` read
    model_args : its settings beside the widths, which come from the features
    modalities : among "frames", "audio", "text": all the model is given
    features : "ours", of the Stage I encoders; "ours, start", "ours, one_way" and "ours, paper_b"
        of encoders at another stage; "official", the organisers'; or "media", waveforms and words
        for encoders that are trained with the model
    rows : (table, row) it serves, rows as in `claims`
    members : names of experiments whose predictions are averaged
    leaked : the predictions of its one member with fusion weights from the validation clips
    train : called in place of building the model and `fit`, with (train, valid, recipe, seed,
        checkpoint, device, **model_args); gives Results `honest` and `leaked`, as `fit_savchenko`
    """

    name: str
    model: str | None = None
    model_args: Mapping = dataclasses.field(default_factory=dict)
    modalities: tuple[str, ...] = ("frames", "audio", "text")
    features: str = "ours"
    recipe: Recipe | None = None
    rows: tuple[tuple[str, str], ...] = ()
    members: tuple[str, ...] = ()
    leaked: bool = False
    train: Callable | None = None

    @property
    def claims(self) -> tuple[claims.Claim, ...]:
        """What the papers report for its rows."""
        return tuple(claims.reported(table, row) for table, row in self.rows)


def all_experiments(profile) -> dict[str, Experiment]:
    """Every row of A2, A3, A4, B2, B3 and B4, by name of experiment.

    profile : gives settings of the models, `dual_stage`, `taemi`, `baseline` and `earlier`, and
        recipes, `dual_stage_recipe`, `taemi_recipe`, `baseline_recipe`, `earlier_recipe` and
        `savchenko_recipe`
    """
    listed = (*_baselines(profile), *_dual_stage(profile), *_taemi(profile), *_earlier(profile))
    return {experiment.name: experiment for experiment in listed}


def _modalities(letters: str) -> tuple[str, ...]:
    return tuple(_LETTERS[letter] for letter in letters.split("+"))


def _baselines(profile) -> list[Experiment]:
    """The organisers' models on the organisers' features, and the mean of their predictions."""
    common = {"features": "official", "recipe": profile.baseline_recipe}
    vit = Experiment(
        "vit_baseline",
        "LastStepGRU",
        {"modality": "frames", **profile.baseline},
        ("frames",),
        rows=(("A2", "ViT (baseline)"), ("B2", "ViT (baseline)")),
        **common,
    )
    wav2vec2 = Experiment(
        "wav2vec2_baseline",
        "MeanLinear",
        {"modality": "audio"},
        ("audio",),
        rows=(("A2", "Wav2Vec2 (baseline)"), ("B2", "Wav2Vec2 (baseline)")),
        **common,
    )
    average = Experiment(
        "baseline_average",
        modalities=("frames", "audio"),
        features="official",
        rows=(("B2", "ViT + Wav2Vec2 (baseline)"),),
        members=(vit.name, wav2vec2.name),
    )
    return [vit, wav2vec2, average]


def _dual_stage(profile) -> list[Experiment]:
    """Tables A2 and A3, and A4: one part of the full model left out or exchanged at a time."""
    recipe = profile.dual_stage_recipe
    rows = {
        "V": (("A2", "ViT (ours)"),),
        "A": (("A2", "Wav2Vec2 (ours)"),),
        "V+A": (("A3", "V+A"),),
        "V+T": (("A3", "V+T"),),
        "A+T": (("A3", "A+T"),),
        # Nothing is known of Yu 2025 beyond that it is a later version of paper A.
        "V+A+T": (("A3", "V+A+T"), ("A4", "Full model"), ("B2", "Yu 2025")),
    }
    changes = {
        "no_stage_one": ("w/o Stage I", {}, "ours, start", recipe),
        "one_way": ("Eq. 1 in place of symmetric", {}, "ours, one_way", recipe),
        "uniform": ("Uniform weights", {"quality": False}, "ours", recipe),
        "concat": ("Concat in place of sum", {"fusion": "concat"}, "ours", recipe),
        "no_gate": ("w/o difference gate", {"gate": False}, "ours", recipe),
        "no_segments": ("w/o segment pooling", {"segment_pooling": False}, "ours", recipe),
        "no_ema": ("w/o EMA", {}, "ours", dataclasses.replace(recipe, ema_decay=None)),
    }

    def experiment(name, letters, change, features, recipe, rows):
        modalities = _modalities(letters)
        settings = {**profile.dual_stage, "modalities": modalities, **change}
        name = f"dual_stage_{name}"
        return Experiment(name, "DualStage", settings, modalities, features, recipe, rows)

    return [
        *(
            experiment(letters.replace("+", "").lower(), letters, {}, "ours", recipe, served)
            for letters, served in rows.items()
        ),
        *(
            experiment(name, "V+A+T", change, features, changed, (("A4", row),))
            for name, (row, change, features, changed) in changes.items()
        ),
    ]


def _taemi(profile) -> list[Experiment]:
    """Tables B3 and B4, and TAEMI in the form of its release."""
    recipe, full = profile.taemi_recipe, "TAEMI (full)"
    by_value = dataclasses.replace(recipe, clip_by="value")
    form = dict(taemi.RELEASE)
    changes = {
        "": ({}, recipe, ("B2", "TAEMI"), ("B3", full), ("B4", "Text-anchored")),
        "_concat": ({"fusion": "concat"}, recipe, ("B3", "Simple feature concat")),
        "_self_attention": (
            {"fusion": "self_attention"},
            recipe,
            ("B3", "w/o text-anchored cross-attention"),
        ),
        "_no_tokens": ({"missing_tokens": False}, recipe, ("B3", "w/o learnable missing tokens")),
        "_no_dropout": ({"modality_dropout": 0.0}, recipe, ("B3", "w/o modality dropout")),
        "_vision_anchor": ({"anchor": "frames"}, recipe, ("B4", "Vision-anchored")),
        "_audio_anchor": ({"anchor": "audio"}, recipe, ("B4", "Audio-anchored")),
        "_release": (form, by_value, ("B2", "TAEMI, as released")),
    }
    features = "ours" if profile.taemi_encoders is None else "ours, paper_b"
    frozen = [
        Experiment(
            f"taemi{name}",
            "TAEMI",
            {**profile.taemi, **change},
            features=features,
            recipe=changed,
            rows=tuple(rows),
        )
        for name, (change, changed, *rows) in changes.items()
    ]
    if not profile.taemi_fine_tune:
        return frozen
    # Encoders of their own serve the tables. The same with frozen encoders are there to be looked
    # into and used: all of them, and all seeds, take one and the same features.
    tuned = [dataclasses.replace(e, name=f"{e.name}_tuned", features=MEDIA) for e in frozen]
    return [*(dataclasses.replace(e, rows=()) for e in frozen), *tuned]


def _earlier(profile) -> list[Experiment]:
    """The earlier solutions of B2, and the fusion models both papers discuss."""
    listed = []
    rows = ("Yu 2024", "Hallmen 2024", "Savchenko 2025", "Zhang 2024", "TFN", "MulT", "MISA")
    for row in rows:
        model, savchenko = row.replace(" ", ""), row.startswith("Savchenko")
        listed.append(
            Experiment(
                row.lower().replace(" ", "_"),
                model,
                dict(profile.earlier.get(model, {})),
                _modalities(claims.reported("B2", row).modality),
                recipe=profile.savchenko_recipe if savchenko else profile.earlier_recipe,
                rows=(("B2", row),),
                train=fit_savchenko if savchenko else None,
            )
        )
    leaked = (("B2", "Savchenko 2025, leaked"),)
    members = ("savchenko_2025",)
    return [
        *listed,
        Experiment("savchenko_2025_leaked", rows=leaked, members=members, leaked=True),
    ]
