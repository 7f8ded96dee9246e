"""What a run of a profile takes: operations, disk, memory and hours, before it starts.

Operations are counted from the sizes of the published networks, a multiplication with its addition
as two; hours follow from a rate that a GPU is assumed to sustain. None was measured on a GPU.
"""

import pandas as pd

from emilib.study.experiments import MEDIA, all_experiments

SUSTAINED = 100e12  # operations a second in bf16: a third of an A100's peak, an eighth of an H200's
RECURRENT = 2e12  # the same for Stage II, which waits for an LSTM's hundreds of small steps
DECODING = 12.7  # seconds of 720p video a core decodes in a second; measured
STEPS = 50  # hidden states a second of wav2vec2
BACKWARD = 3  # a training step is a forward pass and a backward pass of twice its operations
MILLIONS = {"wav2vec2": 317, "emotion": 165, "bert": 110}  # parameters


def transformer(layers: int, width: int, tokens: float) -> float:
    """Operations of a forward pass; the inner layer is four times as wide as the states."""
    return layers * 2 * tokens * (12 * width**2 + 2 * tokens * width)


def vit(frames: float) -> float:
    """Operations of a ViT-B/16 for so many frames of 196 patches of 16 × 16 pixels."""
    return frames * (transformer(12, 768, 197) + 2 * 196 * 768 * 16 * 16 * 3)


def bert(clips: float, tokens: int = 32) -> float:
    """Operations of a BERT for transcripts of this length."""
    return clips * transformer(12, 768, tokens)


def wav2vec2(seconds: float, clips: float, layers: int = 24) -> float:
    """Operations of a wav2vec2-large (12 layers: paper B's) for clips that last `seconds` in all.

    Its convolutions have 512 channels at 3,200, 1,600, ... 50 steps a second.
    """
    front = 2 * 512**2 * (3 * (1600 + 800 + 400 + 200) + 2 * (100 + 50)) + 2 * 512 * 10 * 3200
    return clips * transformer(layers, 1024, STEPS * seconds / clips) + front * seconds


def estimate(profile, partitions: pd.DataFrame, transcribe: float = 0.0, cores: int = 1):
    """A row a stage: stage, what, pflop, hours on one GPU, disk in GB, gpu (its memory) in GB.

    profile : with the published checkpoints, as `profiles.paper`
    partitions : columns split, clips, seconds
    transcribe : clips without a text, which Whisper transcribes
    cores : that decode
    """
    by_split = partitions.set_index("split")[["clips", "seconds"]].astype(float)
    (clips, seconds), (train, heard) = by_split.sum(), by_split.loc["train"]
    frames, decoding, plan = (
        seconds * profile.fps,
        seconds / DECODING / 3600 / cores,
        profile.stage_one["frames"],
    )
    listed = [e for e in all_experiments(profile).values() if e.model is not None]
    fused, tuned = ([e for e in listed if (e.features == MEDIA) == kind] for kind in (False, True))
    rows = []

    def add(stage, what, work, disk, gpu, rate=SUSTAINED, hours=0.0) -> None:
        hours += work / rate / 3600
        rows.append(
            dict(stage=stage, what=what, pflop=work / 1e15, hours=hours, disk=disk, gpu=gpu)
        )

    def activations(clips, seconds, layers) -> float:
        # About 34 bytes a token, width and layer in half precision, and as much for convolutions.
        return 2 * 34 * clips * seconds * STEPS * 1024 * layers / 1e9

    def runs(experiments) -> tuple[int, int, str]:
        count = len(experiments) * len(profile.seeds)
        epochs = sum(e.recipe.epochs for e in experiments) * len(profile.seeds)
        listing = f"{count} runs of {len(experiments)} experiments"
        return count, epochs, f"{listing}, {epochs} epochs if none stops early"

    side = (profile.visual == "faces" and profile.face_size) or profile.image_size
    stored = min(profile.stored_frames or frames, frames / clips) * clips
    what = f"{seconds / 3600:.1f} h of media on {cores} cores; some frames are kept"
    disk = (stored * side**2 * 3 + seconds * 32_000) / 1e9
    add("decoding", what, 0.0, disk, 0.0, hours=decoding)
    if transcribe:  # windows of 30 s, 1,500 tokens
        work = transcribe * max(1.0, seconds / clips / 30) * transformer(32, 1280, 1500)
        add(
            "transcripts", f"Whisper turbo on {transcribe:.0f} clips without a text", work, 0.0, 6.0
        )
    shown = min(8, profile.stored_frames or 8) * train
    once = vit(shown) + wav2vec2(heard, train) + bert(2 * train)
    passes = BACKWARD + (1 if plan.chunk else 0)  # chunks are embedded twice
    # Weights, gradients, their sum in double precision, two moments: 24 bytes a parameter.
    memory = (MILLIONS["wav2vec2"] + MILLIONS["bert"]) * 24 / 1000
    memory += activations(plan.chunk or plan.batch_size, plan.audio_seconds, 24)
    what = (
        f"4 contrastive runs of {plan.epochs} epochs, {train:.0f} clips"  # Eq. 1 to the letter too
    )
    add("Stage I", what, 2 * plan.epochs * passes * once, 6.0, memory)
    # After Stage I, the same by Eq. 1, without Stage I, and paper B's encoders.
    work = 4 * (vit(frames) + bert(clips))
    work += 3 * wav2vec2(seconds, clips) + wav2vec2(seconds, clips, layers=12)
    disk = 4 * (frames * 768 + seconds * STEPS * 1024) * 2 / 1e9
    what = f"4 kinds of features of {clips:.0f} clips, {frames:.0f} frames; decodes again for each"
    add("features", what, work, disk, 6.0, hours=4 * decoding if profile.stored_frames else 0.0)
    # The BiLSTM of the dual-stage network, at its default width: most of a run.
    lstm, (count, epochs, what) = 2 * 2 * 4 * 512 * (1024 + 512) * STEPS * heard, runs(fused)
    add("Stage II", what, BACKWARD * lstm * epochs, count * 0.1, 8.0, RECURRENT)
    if tuned:
        once, parameters = (
            wav2vec2(heard, train, 12) + bert(train),
            MILLIONS["emotion"] + MILLIONS["bert"],
        )
        longest, (count, epochs, what) = profile.max_seconds or heard / train, runs(tuned)
        # Weights, gradients and two moments; on the disk the weights of each run.
        memory = parameters * 16 / 1000 + activations(tuned[0].recipe.batch_size, longest, 12)
        add("fine-tuning", what, BACKWARD * once * epochs, count * parameters * 4 / 1000, memory)
    return pd.DataFrame(rows)


def text(table: pd.DataFrame) -> str:
    """The table of `estimate` as text, with its sum and what it rests on."""
    total = pd.DataFrame([{**table.sum(numeric_only=True), "stage": "all", "what": ""}])
    table = pd.concat([table, total.assign(gpu=table["gpu"].max())])
    shown = table[["stage", "pflop", "hours", "disk", "gpu", "what"]].to_string(
        index=False, float_format="{:,.1f}".format
    )
    rates = f"{SUSTAINED / 1e12:.0f} TFLOP/s in bf16 ({RECURRENT / 1e12:.0f} in Stage II)"
    return (
        f"{shown}\nCounted, not measured: hours of one GPU that sustains {rates}; disk, gpu in GB."
    )
