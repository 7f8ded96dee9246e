"""What a run of a profile takes: operations, disk, memory and hours, before it starts.
resources.csv holds a formula for each stage. Operations are counted from the sizes of the published
networks, a multiplication with its addition as two, three forward passes a training step."""

from pathlib import Path

import numpy as np
import pandas as pd

from emilib.study.experiments import MEDIA, all_experiments

SUSTAINED = 100e12  # operations a second in bf16: a third of an A100's peak, an eighth of an H200's
RECURRENT = 2e12  # the same for Stage II, which waits for an LSTM's hundreds of small steps
DECODING = 12.7  # seconds of 720p video a core decodes in a second; measured


def transformer(layers: int, width: int, tokens: float) -> float:
    """Operations of a forward pass; inner layers are four times as wide as the states."""
    return layers * 2 * tokens * (12 * width**2 + 2 * tokens * width)


def wav2vec2(seconds: float, clips: float, layers: int = 24) -> float:
    """Operations of a wav2vec2-large (12 layers: paper B's) for clips of `seconds` in all."""
    # 50 hidden states a second; its convolutions have 512 channels at 3,200, 1,600, ... 50 steps.
    front = 2 * 512**2 * (3 * (1600 + 800 + 400 + 200) + 2 * (100 + 50)) + 2 * 512 * 10 * 3200
    return clips * transformer(layers, 1024, 50 * seconds / clips) + front * seconds


VIT = transformer(12, 768, 197) + 2 * 196 * 768 * 16 * 16 * 3  # ViT-B/16, a frame of 196 patches
BERT = transformer(12, 768, 32)  # a transcript of usual length
ACTIVATIONS = 68 * 50 * 1024 / 1e9  # GB of a second of sound and a layer
WHISPER = transformer(32, 1280, 1500)  # the encoder of turbo, a window of 30 s
LSTM = 2 * 2 * 4 * 512 * (1024 + 512) * 50  # of the dual-stage network, a second: most of a run


def estimate(profile, partitions: pd.DataFrame, transcribe: float = 0.0, cores: int = 1):
    """A row a stage: stage, what, pflop, hours on one GPU, disk in GB, gpu (its memory) in GB.

    profile : with the published checkpoints, as `profiles.paper`
    partitions : columns split, clips, seconds
    transcribe : clips without a text, which Whisper transcribes
    cores : that decode
    """
    by_split = partitions.set_index("split")[["clips", "seconds"]].astype(float)
    (clips, seconds), (train, heard) = by_split.sum(), by_split.loc["train"]
    frames, plan = seconds * profile.fps, profile.stage_one["frames"]
    known = {"clips": clips, "seconds": seconds, "train": train, "train_seconds": heard}
    known |= {"frames": frames, "silent": transcribe, "cores": cores, "plan": plan}
    known |= {"hours_of_media": seconds / 3600, "passes": 4 if plan.chunk else 3}
    known |= {"windows": max(1.0, seconds / clips / 30), "again": bool(profile.stored_frames) * 1.0}
    known["stored"] = min(profile.stored_frames or frames, frames / clips) * clips
    known["side"] = (profile.visual == "faces" and profile.face_size) or profile.image_size
    known |= {"shown": min(8, profile.stored_frames or 8), "batch": plan.chunk or plan.batch_size}
    known["longest"] = profile.max_seconds or heard / train
    trained = [e for e in all_experiments(profile).values() if e.model is not None]
    for kind in ("fused", "tuned"):
        rows = [e for e in trained if (e.features == MEDIA) == (kind == "tuned")]
        recipes = [e.recipe for e in rows for _ in e.seeds_of(profile.seeds)]  # a run each
        known |= {kind: len(recipes), f"{kind}_rows": len(rows)}
        known[f"{kind}_epochs"] = sum(r.epochs for r in recipes)
        known[f"{kind}_batch"] = recipes[0].batch_size if recipes else 0
    table = pd.read_csv(Path(__file__).with_name("resources.csv"), dtype=str)
    needed = {"transcripts": transcribe, "fine-tuning": known["tuned"]}
    table = table[[bool(needed.get(s, True)) for s in table["stage"]]].reset_index(drop=True)
    table["what"] = [what.format(**known) for what in table["what"]]
    for name in ("pflop", "more_hours", "disk", "gpu"):
        values = [pd.eval(f, "pandas", "python", known, globals()) for f in table[name]]
        table[name] = np.array(values, float)
    rate = np.where(table["stage"] == "Stage II", RECURRENT, SUSTAINED)
    table.insert(3, "hours", table["pflop"] / rate / 3600 + table.pop("more_hours"))
    return table.assign(pflop=table["pflop"] / 1e15)


def text(table: pd.DataFrame) -> str:
    """The table of `estimate` as text, with its sum and what it rests on."""
    total = {**table.sum(numeric_only=True), "stage": "all", "what": "", "gpu": table["gpu"].max()}
    columns = ["stage", "pflop", "hours", "disk", "gpu", "what"]
    shown = pd.concat([table, pd.DataFrame([total])])[columns]
    shown = shown.to_string(index=False, float_format="{:,.1f}".format)
    rates = f"{SUSTAINED / 1e12:.0f} TFLOP/s in bf16 ({RECURRENT / 1e12:.0f} in Stage II)"
    return (
        f"{shown}\nCounted, not measured: hours of one GPU that sustains {rates}; disk, gpu in GB."
    )
