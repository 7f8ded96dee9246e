"""A predictor as a folder: weights in safetensors, config.json, and a model card."""

import dataclasses
import json
from pathlib import Path
from textwrap import shorten

import numpy as np
from huggingface_hub import ModelCard, ModelCardData, snapshot_download
from safetensors.numpy import load_file, save_file

from emilib import EMOTIONS, SAMPLE_RATE, models
from emilib.cache import atomic_write
from emilib.features.checkpoints import refuse_traps, strings
from emilib.features.loading import load_encoder, save_encoder
from emilib.predict.clip import MediaSettings
from emilib.progress import quietly
from emilib.training.loop import TargetScale

STATED = {"kind": "emilib predictor", "format": 1}  # of the folder, in config.json
ROLES = {"vision": "frames", "audio": "audio", "text": "text"}  # encoder → modality
# All parts of a predictor; a hub repository may hold more, which is not fetched.
FILES = ["config.json", "README.md", "*.safetensors", "*/*.json", "*/*.txt"]
LIMITS = {  # what the models can't know, by whether their corpus is synthetic
    True: "It knows only drawn faces and synthetic voices: what it says about real people means "
    "nothing.",
    False: "It knows people who mimic a performance before a webcam, as its corpus shows them; "
    "other situations, languages and cameras are untried.",
}


def save(predictor, folder: Path) -> Path:
    """Write an `EmiPredictor`; `config.json` last, so that a folder with it is complete."""
    for role, encoder in predictor.encoders.items():
        (folder / role).mkdir(parents=True, exist_ok=True)
        save_encoder(encoder, folder / role)
    for seed, model in predictor.models.items():
        model.save_pretrained(folder / f"seed-{seed}")
        (folder / f"seed-{seed}" / "README.md").unlink(missing_ok=True)  # the hub's empty card
    moments = {f"{name}.mean": mean for name, (mean, _) in predictor.moments.items()}
    moments |= {f"{name}.sd": sd for name, (_, sd) in predictor.moments.items()}
    save_file(moments, folder / "moments.safetensors")
    config = STATED | {"model": type(model).__name__, "seeds": list(predictor.models)}
    config |= {name: list(getattr(predictor, name)) for name in ("modalities", "emotions")}
    config["scale"] = None if predictor.scale is None else predictor.scale.to_dict()
    config |= {"media": dataclasses.asdict(predictor.settings), "facts": predictor.facts}
    atomic_write(folder / "README.md", str(_card(config)))
    # safetensors writes files that only their owner may read; a model is there to be shared.
    for path in folder.rglob("*.safetensors"):
        path.chmod((folder / "README.md").stat().st_mode)
    atomic_write(folder / "config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    return folder


def load(source, make):
    """`make` of what is in a folder or a hub repository; else ValueError."""
    try:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            folder = Path(snapshot_download(str(source), allow_patterns=FILES))
        refuse_traps(folder)
        config = json.loads((folder / "config.json").read_text("utf-8"))
        if stated := {key: config.get(key) for key in STATED if config.get(key) != STATED[key]}:
            raise ValueError(f"config.json: expected {STATED}, got {stated}")
        for role in ROLES:  # without them transformers would take a pickle
            if not list((folder / role).glob("*.safetensors")):
                raise ValueError(f"expected *.safetensors in {role}, got none")
        fusion, arrays = getattr(models, config["model"]), load_file(folder / "moments.safetensors")
        parts = {seed: str(folder / f"seed-{seed}") for seed in config["seeds"]}
        encoders = {role: _encoder(folder / role, role) for role in ROLES}
        fused = {s: quietly(fusion.from_pretrained, p, strict=True) for s, p in parts.items()}
        moments = {m: (arrays[f"{m}.mean"], arrays[f"{m}.sd"]) for m in config["modalities"]}
        about = {name: tuple(config[name]) for name in ("modalities", "emotions")}
        about |= {"facts": config["facts"], "scale": TargetScale.from_dict(config["scale"])}
        predictor = make(encoders, fused, moments, MediaSettings(**config["media"]), **about)
        _try(predictor)
        if not (text := "".join([predictor.note, *strings(config)])).isprintable():
            raise ValueError(f"config.json: expected printable text, got {text!a}")
        return predictor
    except Exception as error:  # of many kinds, by what the folder lacks
        wanted = "expected the folder of a complete predictor, or a model on the Hugging Face hub"
        how = "make one with `python -m emilib export taemi FOLDER`"
        raise ValueError(f"{wanted}, got {source}: {shorten(str(error), 300)}; {how}") from error


def _encoder(folder: Path, role: str):
    encoder = load_encoder(folder)
    if not type(encoder).__name__.lower().startswith(role):
        raise ValueError(f"{folder}: expected an encoder for {role}, got {type(encoder).__name__}")
    count = sum(len(load_file(path)) for path in folder.glob("*.safetensors"))
    if count != (wanted := len(encoder.model.state_dict())):
        raise ValueError(f"{folder}: expected {wanted} tensors, as of config.json, got {count}")
    return encoder


def _try(predictor) -> None:
    """Refuse parts that do not fit each other, and weights that are not finite."""
    for part in (*predictor.encoders.values(), *predictor.models.values()):
        if bad := [name for name, x in part.state_dict().items() if not x.isfinite().all()]:
            raise ValueError(f"expected finite weights, got NaN or infinity in {bad[0]}")
    side = min(predictor.settings.image_size, 256)
    frames, sound = np.zeros((1, 3, side, side), np.uint8), np.zeros(SAMPLE_RATE, np.int16)
    words = ["well" if "text" in predictor.modalities else ""]
    _, intensity = predictor._run(predictor._encode(frames, [slice(0, 1)], [sound], words))
    shape = (len(predictor.models), 1, len(predictor.emotions))
    if intensity.shape != shape or not np.isfinite(intensity).all():
        got = f"{intensity.shape} with {np.isfinite(intensity).mean():.0%} of them finite"
        raise ValueError(f"expected finite intensities of shape {shape}, got {got}")


def _card(config: dict) -> ModelCard:
    facts = config["facts"]
    free = facts["synthetic"] and all(e["licence"] == "MIT" for e in facts["encoders"].values())
    tags = ["emotional-mimicry-intensity", "multimodal"]
    data = ModelCardData(license="mit" if free else "other", library_name="emilib", tags=tags)
    more = {"limits": LIMITS[facts["synthetic"]], "six": tuple(config["emotions"]) == EMOTIONS}
    more["template_path"] = str(Path(__file__).with_name("card.md"))
    return ModelCard.from_template(data, **facts, **config, **more)
