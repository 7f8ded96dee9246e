"""What a run of a profile takes: operations, room on the disk, memory and hours, before it starts.

Operations are counted from the sizes of the published networks; hours follow from them and from a
rate that a GPU is supposed to sustain. None of it was measured on a GPU.
"""

import dataclasses
import math

import pandas as pd

from emilib.features import checkpoints as manifest

SUSTAINED = 100e12  # operations a second in bf16: a third of an A100's peak, an eighth of an H200's
RECURRENT = 2e12  # the same for Stage II, which waits for an LSTM's hundreds of small steps
DECODING = 12.7  # seconds of 720p video a core decodes in a second; measured
STEPS = 50  # hidden states a second of wav2vec2
PIXELS = 3  # bytes
WINDOW = 30.0  # s that Whisper takes at once
BACKWARD = 3  # a training step is a forward pass and a backward pass of twice its operations


@dataclasses.dataclass(frozen=True)
class Network:
    """A published Transformer, as far as its operations go."""

    layers: int
    width: int
    inner: int
    parameters: float  # millions

    def operations(self, tokens: float, front: float = 0.0) -> float:
        """Of one forward pass over one sequence; a multiplication with its addition is two.

        front : of what comes before the layers
        """
        weights = 4 * self.width**2 + 2 * self.width * self.inner
        attention = 2 * tokens * self.width
        return self.layers * 2 * tokens * (weights + attention) + front


VIT = Network(12, 768, 3072, 86)  # ViT-B/16, of CLIP and of google/vit-base-patch16-224-in21k
WAV2VEC2 = Network(24, 1024, 4096, 317)
EMOTION = Network(12, 1024, 4096, 165)  # the first half of a wav2vec2-large
BERT = Network(12, 768, 3072, 110)
WHISPER = Network(32, 1280, 5120, 809)  # the encoder of turbo; parameters with its decoder
VIT_TOKENS, PATCHES = 197, 2 * 196 * 768 * 16 * 16 * 3
WHISPER_TOKENS = 1500
WORDS = 32  # tokens of a usual transcript
# The convolutions of wav2vec2 a second of sound: 512 channels at 3,200, 1,600, ... 50 steps.
CONVOLUTIONS = 2 * 512**2 * (3 * (1600 + 800 + 400 + 200) + 2 * (100 + 50)) + 2 * 512 * 10 * 3200


def vit(frames: float) -> float:
    """Operations for so many frames."""
    return frames * VIT.operations(VIT_TOKENS, PATCHES)


def sound(network: Network, seconds: float, clips: float) -> float:
    """Operations for clips that last `seconds` together."""
    tokens = STEPS * seconds / clips
    return clips * network.operations(tokens, CONVOLUTIONS * seconds / clips)


def needs(profile, partitions: pd.DataFrame, transcribe: float = 0.0, cores: int = 1):
    """A row a stage: what it does, PFLOP, hours on one GPU, GB on the disk, GB of GPU memory.

    profile : with the published checkpoints, as `profiles.paper`
    partitions : columns split, clips, seconds
    transcribe : clips without a text, which Whisper is to hear
    cores : that decode
    """
    by_split = partitions.set_index("split")
    clips, seconds = float(by_split["clips"].sum()), float(by_split["seconds"].sum())
    train, train_seconds = (float(by_split.loc["train", c]) for c in ("clips", "seconds"))
    frames = seconds * profile.fps
    side = profile.image_size
    if profile.visual == "faces" and profile.face_size is not None:
        side = profile.face_size
    kept = min(profile.stored_frames or math.inf, frames / clips) * clips
    decoding = seconds / DECODING / 3600 / cores
    rows = [
        {
            "stage": "decoding",
            "what": f"{seconds / 3600:.1f} h of media on {cores} cores; some frames are kept",
            "pflop": 0.0,
            "hours": decoding,
            "disk": (kept * side**2 * PIXELS + seconds * 32_000) / 1e9,
            "gpu": 0.0,
        }
    ]
    if transcribe:
        windows = transcribe * max(1.0, seconds / clips / WINDOW)
        work = windows * WHISPER.operations(WHISPER_TOKENS)
        what = f"Whisper turbo on {transcribe:.0f} clips without a text"
        rows.append(_row("transcripts", what, work, 0.0, 6.0))
    rows += [_stage_one(profile, train, train_seconds), _features(profile, clips, seconds, cores)]
    rows += _stage_two(profile, train, train_seconds)
    return pd.DataFrame(rows)


def _row(stage, what, work, disk, gpu, rate=SUSTAINED, more_hours=0.0) -> dict:
    return {
        "stage": stage,
        "what": what,
        "pflop": work / 1e15,
        "hours": work / rate / 3600 + more_hours,
        "disk": disk,
        "gpu": gpu,
    }


def _stage_one(profile, clips: float, seconds: float) -> dict:
    """Both sides, twice: symmetric, and Eq. 1 to the letter for Table A4."""
    plan = profile.stage_one["frames"]
    passes = BACKWARD + (1 if plan.chunk else 0)  # chunks are embedded twice
    shown = min(8, profile.stored_frames or 8) * clips
    once = vit(shown) + sound(WAV2VEC2, seconds, clips) + 2 * clips * BERT.operations(WORDS)
    work = 2 * plan.epochs * passes * once
    # Weights, gradients, their sum in double precision, two moments: 24 bytes a parameter.
    states = (WAV2VEC2.parameters + BERT.parameters) * 24 / 1000
    memory = states + _activations(WAV2VEC2, plan.chunk or plan.batch_size, plan.audio_seconds)
    what = f"4 contrastive runs of {plan.epochs} epochs, {clips:.0f} clips"
    return _row("Stage I", what, work, 3 * 2.0, memory)


def _activations(network: Network, clips: int, seconds: float) -> float:
    """GB that training holds of a batch of sound: about 34 bytes a token, width and layer in half
    precision, and as much again for the convolutions before.
    """
    return 2 * 34 * clips * seconds * STEPS * network.width * network.layers / 1e9


def _features(profile, clips: float, seconds: float, cores: int) -> dict:
    """Four kinds: after Stage I, the same by Eq. 1, without Stage I, and paper B's encoders."""
    frames = seconds * profile.fps
    of_a = vit(frames) + sound(WAV2VEC2, seconds, clips) + clips * BERT.operations(WORDS)
    of_b = vit(frames) + sound(EMOTION, seconds, clips) + clips * BERT.operations(WORDS)
    per_kind = (frames * VIT.width + seconds * STEPS * WAV2VEC2.width) * 2 / 1e9
    again = 4 * seconds / DECODING / 3600 / cores if profile.stored_frames else 0.0
    what = f"4 kinds of features of {clips:.0f} clips, {frames:.0f} frames; decodes again for each"
    return _row("features", what, 3 * of_a + of_b, 4 * per_kind, 6.0, more_hours=again)


def _stage_two(profile, clips: float, seconds: float) -> list[dict]:
    """Fusion on kept features, and with encoders that are trained where there are such."""
    from emilib.study.experiments import MEDIA, all_experiments

    listed = [e for e in all_experiments(profile).values() if e.model is not None]
    tuned = [e for e in listed if e.features == MEDIA]
    kept = [e for e in listed if e.features != MEDIA]
    # The BiLSTM of the dual-stage network over the sound, at its default width: most of a run.
    hidden = 512
    lstm = 2 * 2 * 4 * hidden * (WAV2VEC2.width + hidden) * STEPS * seconds
    runs, epochs, what = _runs(kept, profile)
    rows = [_row("Stage II", what, BACKWARD * lstm * epochs, runs * 0.1, 8.0, RECURRENT)]
    if tuned:
        runs, epochs, what = _runs(tuned, profile)
        once = sound(EMOTION, seconds, clips) + clips * BERT.operations(WORDS)
        parameters = EMOTION.parameters + BERT.parameters
        longest = profile.max_seconds or seconds / clips
        # Weights, gradients and two moments; on the disk the weights of each run.
        memory = parameters * 16 / 1000
        memory += _activations(EMOTION, tuned[0].recipe.batch_size, longest)
        disk = runs * parameters * 4 / 1000
        rows.append(_row("fine-tuning", what, BACKWARD * once * epochs, disk, memory))
    return rows


def _runs(listed: list, profile) -> tuple[int, int, str]:
    """Runs and epochs of some experiments, and both as text."""
    runs = len(listed) * len(profile.seeds)
    epochs = sum(e.recipe.epochs for e in listed) * len(profile.seeds)
    words = f"{runs} runs of {len(listed)} experiments, {epochs} epochs if none stops early"
    return runs, epochs, words


def weights_gb(profile) -> float:
    """GB of the checkpoints that a profile names, to be downloaded once."""
    roles = [profile.vision, profile.audio, profile.text, *(profile.taemi_encoders or {}).values()]
    found = (manifest.get(config["checkpoint"]) for config in roles if "checkpoint" in config)
    return sum(entry.megabytes for entry in found if entry is not None) / 1000


def markdown(found: pd.DataFrame) -> str:
    """The table of `needs` for a README."""
    total = found[["pflop", "hours", "disk"]].sum().to_dict()
    last = {"stage": "all", "what": "", "gpu": found["gpu"].max(), **total}
    lines = [
        "| stage | what | PFLOP | hours | disk GB | GPU GB |",
        "| :--- | :--- | ---: | ---: | ---: | ---: |",
    ]
    for row in [*found.to_dict("records"), last]:
        numbers = f"{row['pflop']:,.0f} | {row['hours']:.1f} | {row['disk']:.0f} | {row['gpu']:.0f}"
        lines.append(f"| {row['stage']} | {row['what']} | {numbers} |")
    return "\n".join(lines)


def text(found: pd.DataFrame) -> str:
    """The table of `needs` as text, with its sum and what it rests on."""
    lines = [f"{'stage':12s}{'PFLOP':>8s}{'hours':>8s}{'disk GB':>9s}{'GPU GB':>8s}  what"]
    for row in found.itertuples():
        numbers = f"{row.pflop:8,.0f}{row.hours:8.1f}{row.disk:9.1f}{row.gpu:8.0f}"
        lines.append(f"{row.stage:12s}{numbers}  {row.what}")
    total = f"{found['pflop'].sum():8,.0f}{found['hours'].sum():8.1f}{found['disk'].sum():9.1f}"
    lines.append(f"{'all':12s}{total}{found['gpu'].max():8.0f}")
    lines.append(
        f"Counted, not measured: hours are of one GPU that sustains {SUSTAINED / 1e12:.0f} TFLOP/s "
        f"in bf16 ({RECURRENT / 1e12:.0f} in Stage II, whose LSTM runs in small steps)."
    )
    return "\n".join(lines)
