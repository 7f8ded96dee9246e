"""What a run of a profile takes: operations, disk, memory and hours, before it starts.

Operations are counted from the sizes of the published networks; hours follow from them and from a
rate that a GPU is assumed to sustain. None of it was measured on a GPU.
"""

import dataclasses
import math

import pandas as pd

from emilib.study.experiments import MEDIA, all_experiments

SUSTAINED = 100e12  # operations a second in bf16: a third of an A100's peak, an eighth of an H200's
RECURRENT = 2e12  # the same for Stage II, which waits for an LSTM's hundreds of small steps
DECODING = 12.7  # seconds of 720p video a core decodes in a second; measured
STEPS = 50  # hidden states a second of wav2vec2
BACKWARD = 3  # a training step is a forward pass and a backward pass of twice its operations
WORDS = 32  # tokens of a usual transcript
# The convolutions of wav2vec2 a second of sound: 512 channels at 3,200, 1,600, ... 50 steps.
CONVOLUTIONS = 2 * 512**2 * (3 * (1600 + 800 + 400 + 200) + 2 * (100 + 50)) + 2 * 512 * 10 * 3200


@dataclasses.dataclass(frozen=True)
class Network:
    """A published Transformer, as far as its operations go; parameters in millions."""

    layers: int
    width: int
    inner: int
    parameters: float

    def operations(self, tokens: float, front: float = 0.0) -> float:
        """Of a forward pass over a sequence, a multiplication with its addition as two.

        front : of what comes before the layers
        """
        weights = 4 * self.width**2 + 2 * self.width * self.inner
        return self.layers * 2 * tokens * (weights + 2 * tokens * self.width) + front


VIT = Network(12, 768, 3072, 86)  # ViT-B/16, of CLIP and of google/vit-base-patch16-224-in21k
WAV2VEC2 = Network(24, 1024, 4096, 317)
EMOTION = Network(12, 1024, 4096, 165)  # the first half of a wav2vec2-large
BERT = Network(12, 768, 3072, 110)
WHISPER = Network(32, 1280, 5120, 809)  # the encoder of turbo; parameters with its decoder


def vit(frames: float) -> float:
    """Operations of `VIT` for so many frames of 196 patches."""
    return frames * VIT.operations(197, front=2 * 196 * 768 * 16 * 16 * 3)


def sound(network: Network, seconds: float, clips: float) -> float:
    """Operations of a wav2vec2 for clips that last `seconds` together."""
    each = seconds / clips
    return clips * network.operations(STEPS * each, CONVOLUTIONS * each)


def estimate(profile, partitions: pd.DataFrame, transcribe: float = 0.0, cores: int = 1):
    """A row a stage: stage, what, pflop, hours on one GPU, disk in GB, gpu (its memory) in GB.

    profile : with the published checkpoints, as `profiles.paper`
    partitions : columns split, clips, seconds
    transcribe : clips without a text, which Whisper transcribes
    cores : that decode
    """
    by_split = partitions.set_index("split")[["clips", "seconds"]].astype(float)
    (clips, seconds), (train, heard) = by_split.sum(), by_split.loc["train"]
    frames, decoding = seconds * profile.fps, seconds / DECODING / 3600 / cores
    words, plan = clips * BERT.operations(WORDS), profile.stage_one["frames"]
    rows = []

    def add(stage, what, work, disk, gpu, rate=SUSTAINED, hours=0.0) -> None:
        hours += work / rate / 3600
        rows.append(
            dict(stage=stage, what=what, pflop=work / 1e15, hours=hours, disk=disk, gpu=gpu)
        )

    side = profile.image_size
    if profile.visual == "faces" and profile.face_size is not None:
        side = profile.face_size
    stored = min(profile.stored_frames or math.inf, frames / clips) * clips
    what = f"{seconds / 3600:.1f} h of media on {cores} cores; some frames are kept"
    disk = (stored * side**2 * 3 + seconds * 32_000) / 1e9
    add("decoding", what, 0.0, disk, 0.0, hours=decoding)
    if transcribe:
        windows = transcribe * max(1.0, seconds / clips / 30)  # of 30 s, 1,500 tokens
        what = f"Whisper turbo on {transcribe:.0f} clips without a text"
        add("transcripts", what, windows * WHISPER.operations(1500), 0.0, 6.0)

    shown = min(8, profile.stored_frames or 8) * train
    once = vit(shown) + sound(WAV2VEC2, heard, train) + 2 * train * BERT.operations(WORDS)
    passes = BACKWARD + (1 if plan.chunk else 0)  # chunks are embedded twice
    # Weights, gradients, their sum in double precision, two moments: 24 bytes a parameter.
    memory = (WAV2VEC2.parameters + BERT.parameters) * 24 / 1000
    memory += _activations(WAV2VEC2, plan.chunk or plan.batch_size, plan.audio_seconds)
    # Both sides, twice: symmetric, and Eq. 1 to the letter for Table A4.
    what = f"4 contrastive runs of {plan.epochs} epochs, {train:.0f} clips"
    add("Stage I", what, 2 * plan.epochs * passes * once, 3 * 2.0, memory)

    # After Stage I, the same by Eq. 1, without Stage I, and paper B's encoders.
    work = 3 * sound(WAV2VEC2, seconds, clips) + sound(EMOTION, seconds, clips)
    disk = 4 * (frames * VIT.width + seconds * STEPS * WAV2VEC2.width) * 2 / 1e9
    what = f"4 kinds of features of {clips:.0f} clips, {frames:.0f} frames; decodes again for each"
    again = 4 * decoding if profile.stored_frames else 0.0
    add("features", what, work + 4 * (vit(frames) + words), disk, 6.0, hours=again)

    listed = [e for e in all_experiments(profile).values() if e.model is not None]
    for stage, trained in (("Stage II", False), ("fine-tuning", True)):
        chosen = [e for e in listed if (e.features == MEDIA) == trained]
        runs = len(chosen) * len(profile.seeds)
        epochs = sum(e.recipe.epochs for e in chosen) * len(profile.seeds)
        what = f"{runs} runs of {len(chosen)} experiments, {epochs} epochs if none stops early"
        if not trained:
            # The BiLSTM of the dual-stage network, at its default width: most of a run.
            lstm = 2 * 2 * 4 * 512 * (WAV2VEC2.width + 512) * STEPS * heard
            add(stage, what, BACKWARD * lstm * epochs, runs * 0.1, 8.0, RECURRENT)
        elif chosen:
            once = sound(EMOTION, heard, train) + train * BERT.operations(WORDS)
            parameters, longest = EMOTION.parameters + BERT.parameters, profile.max_seconds
            # Weights, gradients and two moments; on the disk the weights of each run.
            memory = parameters * 16 / 1000
            memory += _activations(EMOTION, chosen[0].recipe.batch_size, longest or heard / train)
            add(stage, what, BACKWARD * once * epochs, runs * parameters * 4 / 1000, memory)
    return pd.DataFrame(rows)


def _activations(network: Network, clips: int, seconds: float) -> float:
    """GB that training holds of a batch of sound: about 34 bytes a token, width and layer in half
    precision, and as much again for the convolutions before.
    """
    return 2 * 34 * clips * seconds * STEPS * network.width * network.layers / 1e9


def text(table: pd.DataFrame) -> str:
    """The table of `estimate` as text, with its sum and what it rests on."""
    total = table.sum(numeric_only=True).to_frame().T.assign(stage="all", what="")
    total["gpu"] = table["gpu"].max()
    lines = [f"{'stage':12s}{'PFLOP':>8s}{'hours':>8s}{'disk GB':>9s}{'GPU GB':>8s}  what"]
    for row in pd.concat([table, total]).itertuples():
        numbers = f"{row.pflop:8,.0f}{row.hours:8.1f}{row.disk:9.1f}{row.gpu:8.0f}"
        lines.append(f"{row.stage:12s}{numbers}  {row.what}".rstrip())
    return "\n".join(lines) + (
        f"\nCounted, not measured: hours are of one GPU that sustains {SUSTAINED / 1e12:.0f} "
        f"TFLOP/s in bf16 ({RECURRENT / 1e12:.0f} in Stage II, whose LSTM runs in small steps)."
    )
