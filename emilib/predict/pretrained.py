"""A predictor as a folder: weights in safetensors, config.json, and a model card."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
from huggingface_hub import ModelCard, ModelCardData, snapshot_download
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as safetensors_bytes
from torch import nn

from emilib import EMOTIONS, __version__, models
from emilib.cache import atomic_write
from emilib.features.loading import load_encoder, save_encoder
from emilib.predict.clip import MediaSettings, first_line
from emilib.progress import quietly
from emilib.training.loop import TargetScale

FORMAT = 1  # of the folder
KIND = "emilib predictor"
HOW_TO_EXPORT = "make one with `python -m emilib export taemi FOLDER`"
ROLES = {"vision": "frames", "audio": "audio", "text": "text"}  # encoder → modality
CONFIG = {"model", "seeds", "media", "facts", "modalities", "emotions"}  # what config.json needs
STATED = {"experiment", "corpus", "synthetic", "rho", "rho_sd"}  # facts told with every number
# All parts of a predictor; a hub repository may hold more, which is not fetched.
FILES = ["config.json", "README.md", "*.safetensors", "*/*.json", "*/*.txt"]


def save(predictor, folder: Path) -> Path:
    """Write an `EmiPredictor`; `config.json` last, so that a folder with it is complete."""
    for role, encoder in predictor.encoders.items():
        (folder / role).mkdir(parents=True, exist_ok=True)
        save_encoder(encoder, folder / role)
    for seed, model in predictor.models.items():
        model.save_pretrained(folder / f"seed-{seed}")
        (folder / f"seed-{seed}" / "README.md").unlink(missing_ok=True)  # the hub's empty card
    arrays = {}
    for modality, (mean, spread) in predictor.moments.items():
        arrays[f"{modality}.mean"] = np.ascontiguousarray(mean, np.float64)
        arrays[f"{modality}.sd"] = np.ascontiguousarray(spread, np.float64)
    atomic_write(folder / "moments.safetensors", safetensors_bytes(arrays))
    config = {
        "kind": KIND,
        "format": FORMAT,
        "model": type(model).__name__,
        "seeds": list(predictor.models),
        "modalities": list(predictor.modalities),
        "emotions": list(predictor.emotions),
        "scale": None if predictor.scale is None else predictor.scale.to_dict(),
        "media": dataclasses.asdict(predictor.settings),
        "facts": predictor.facts,
    }
    atomic_write(folder / "README.md", str(_card(config)))
    # safetensors writes files that only their owner may read; a model is there to be shared.
    for path in folder.rglob("*.safetensors"):
        path.chmod((folder / "README.md").stat().st_mode)
    atomic_write(folder / "config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    return folder


def load(source) -> dict:
    """The arguments of `EmiPredictor` from a folder or a hub repository.

    Raises ValueError as `EmiPredictor.from_pretrained` does.
    """
    folder = _folder_of(source)
    config = _read_config(folder)
    for role in ROLES:
        _check_plain(folder / role)
    try:
        arrays = load_file(folder / "moments.safetensors")
        seeds = {int(seed): folder / f"seed-{seed}" for seed in config["seeds"]}
        return {
            "encoders": {role: load_encoder(folder / role) for role in ROLES},
            "models": {seed: _load_model(config["model"], path) for seed, path in seeds.items()},
            "moments": {m: (arrays[f"{m}.mean"], arrays[f"{m}.sd"]) for m in ROLES.values()},
            "settings": MediaSettings(**config["media"]),
            "scale": TargetScale.from_dict(config.get("scale")),
            **{name: config[name] for name in ("facts", "modalities", "emotions")},
        }
    except SafetensorError as error:
        raise ValueError(f"{folder} has damaged weights: {first_line(error)}") from error
    except (OSError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{folder} is no complete predictor: {first_line(error)}; {HOW_TO_EXPORT}"
        ) from error


def limits(facts: dict) -> str:
    """What the models can't know, in one sentence."""
    if facts["synthetic"]:
        return (
            "It knows only drawn faces and synthetic voices: what it says about real people means "
            "nothing."
        )
    return (
        "It knows people who mimic a performance before a webcam, as its corpus shows them; other "
        "situations, languages and cameras are untried."
    )


def _card(config: dict) -> ModelCard:
    facts, count = config["facts"], len(config["emotions"])
    free = facts["synthetic"] and all(e["licence"] == "MIT" for e in facts["encoders"].values())
    targets = f"{count} target{'s' * (count != 1)} in the range of its corpus"
    if tuple(config["emotions"]) == EMOTIONS:
        targets = "six intensities in [0, 1]"
    data = ModelCardData(
        license="mit" if free else "other",
        library_name="emilib",
        tags=["emotional-mimicry-intensity", "multimodal"],
    )
    template = str(Path(__file__).with_name("card.md"))
    more = {"targets": targets, "limits": limits(facts)}
    return ModelCard.from_template(data, template_path=template, **facts, **config, **more)


def _folder_of(source) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{source}: expected the folder of a model, got a file; {HOW_TO_EXPORT}")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        raise ValueError(f"There is no folder {source}; {HOW_TO_EXPORT}")
    try:
        return Path(snapshot_download(str(source), allow_patterns=FILES))
    except (OSError, ValueError) as error:  # the hub's own errors derive from these
        raise ValueError(
            f"{source} is neither a folder nor a model on the Hugging Face hub "
            f"({first_line(error)}); {HOW_TO_EXPORT}"
        ) from error


def _read_config(folder: Path) -> dict:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict) or config.get("kind") != KIND:
        raise ValueError(
            f'{folder}: expected a config.json with "kind": "{KIND}", got none; {HOW_TO_EXPORT}'
        )
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{folder}: expected format {FORMAT}, which emilib {__version__} reads, got "
            f"{config.get('format')!r}; take the version of emilib that wrote it"
        )
    facts = config.get("facts")
    lacking = (CONFIG - set(config)) | (STATED - set(facts if isinstance(facts, dict) else ()))
    if lacking:
        names = ", ".join(sorted(lacking))
        raise ValueError(f"{folder}/config.json lacks {names}; {HOW_TO_EXPORT}")
    return config


def _check_plain(folder: Path) -> None:
    """Refuse an encoder that would need a pickle or code of its own to be loaded."""
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} has no *.safetensors weights; {HOW_TO_EXPORT}")
    for path in folder.glob("*.json"):
        if '"auto_map"' in path.read_text("utf-8", errors="replace"):
            raise ValueError(f"{path} asks for code of its own to be run, which is not done here")


def _load_model(name: str, folder: Path) -> nn.Module:
    if name not in models.__all__ or name in ("Output", "ContrastivePair", "for_features"):
        raise ValueError(f"model {name!r} is unknown to this version ({__version__})")
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"{folder.name} has no model.safetensors")
    return quietly(getattr(models, name).from_pretrained, str(folder))
