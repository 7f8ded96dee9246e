"""How fast the papers' encoders run on this machine, and how near to its peak.

The networks have the published sizes and random weights: nothing is downloaded, and the speed is
the same. They go through the code of extraction, copies to and from the device included.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

import pandas as pd
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, BertConfig, CLIPVisionConfig, Wav2Vec2Config
from whisper.model import AudioEncoder as WhisperEncoder

from emilib import SAMPLE_RATE, workers
from emilib.features import extraction
from emilib.features.encoders import AudioEncoder, TextEncoder, VisionEncoder
from emilib.features.loading import wordpiece

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
LARGE |= {"intermediate_size": 4096, "feat_extract_norm": "layer", "conv_bias": True}
VIT = CLIPVisionConfig(patch_size=16)
WAV2VEC2 = Wav2Vec2Config(**LARGE, do_stable_layer_norm=True)
BERT = BertConfig()
WHISPER = {"n_mels": 128, "n_ctx": 1500, "n_state": 1280, "n_head": 20, "n_layer": 32}  # turbo
SECONDS = 12.0  # of audio a clip; paper B cuts there
TOKENS = 32  # of text a clip
SIDE = 4096  # of the square matrices that measure the peak


def throughput(
    repeats=3, device=None, precision: str | None = "default", scale=1.0, compile=False
) -> pd.DataFrame:
    """Rates of the four encoders on a device, the peak of its matrix product, and shares of it.

    repeats : timed passes of each after one that is not; the median counts
    precision : None, "bf16", or what extraction takes on this device
    scale : of the batch sizes of extraction; small for a slow machine
    compile : the ViT through `torch.compile`

    Columns: what, items (a pass), rate (a second), unit, gflop (an item), tflops (a second), share
    (of the measured peak in the same precision). torch counts the FLOPs of the forward pass.
    """
    device = torch.device(device or workers.device())
    fields = {} if precision == "default" else {"precision": precision}
    plan = extraction.Batching.on(device, compile=compile, **fields)
    counts = {name: max(1, round(scale * getattr(plan, name))) for name in ("frames", "sounds")}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        jobs = _jobs(device, dataclasses.replace(plan, **counts))
        rows = [(*job, items / _seconds(run, repeats, device)) for *job, items, run in jobs]
    rates = pd.DataFrame(rows, columns=["what", "unit", "gflop", "rate"])
    rates["tflops"] = rates["rate"] * rates["gflop"] / 1e3
    rates["share"] = rates["tflops"] / rates["tflops"].iloc[0]
    return rates


def _jobs(device: torch.device, plan: extraction.Batching):
    """(what, unit, GFLOP an item, items, a pass over them), a network at a time."""
    dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
    left, right = torch.randn(2, SIDE, SIDE, device=device).to(dtype)
    yield "matrix product", "products", 2 * SIDE**3 / 1e9, 1, lambda: left @ right

    picture = torch.zeros(1, 3, VIT.image_size, VIT.image_size, dtype=torch.uint8)
    vision = VisionEncoder(AutoModel.from_config(VIT)).to(device).eval()
    vision = extraction.compiled(vision) if plan.compile else vision
    clips = [picture.numpy().repeat(plan.frames, axis=0)]
    run = lambda: extraction.encode_frames(vision, clips, plan)  # noqa: E731
    gflop = flops(lambda: AutoModel.from_config(VIT), picture.float()) / 1e9
    yield "ViT-B/16", "frames", gflop, plan.frames, run

    noise = (1000 * torch.randn(round(SECONDS * SAMPLE_RATE))).short()
    audio = AudioEncoder(AutoModel.from_config(WAV2VEC2)).to(device).eval()
    run = lambda: extraction.encode_waveforms(audio, [noise.numpy()] * plan.sounds, 1, plan)  # noqa: E731
    gflop = flops(lambda: AutoModel.from_config(WAV2VEC2), noise[None].float()) / SECONDS / 1e9
    yield "wav2vec2-large", "seconds of audio", gflop, SECONDS * plan.sounds, run

    texts = ["word " * (TOKENS - 2)] * max(1, min(plan.tokens // TOKENS, 2 * plan.frames))
    bert = lambda: AutoModel.from_config(BERT, add_pooling_layer=False)  # noqa: E731
    text = TextEncoder(bert(), wordpiece(texts, BERT.vocab_size), max_tokens=TOKENS)
    text = text.to(device).eval()
    run = lambda: extraction.encode_texts(text, texts, plan)  # noqa: E731
    gflop = flops(bert, torch.zeros(1, TOKENS, dtype=torch.long)) / 1e9
    yield "BERT-base", "texts", gflop, len(texts), run

    mel = torch.zeros(max(1, plan.sounds // 2), WHISPER["n_mels"], 2 * WHISPER["n_ctx"])
    gflop = flops(lambda: WhisperEncoder(**WHISPER), mel[:1]) / 1e9
    # As `whisper.decode` does: half precision on a GPU, else single.
    mel = mel.to(device, torch.float16 if device.type == "cuda" else torch.float32)
    whisper = WhisperEncoder(**WHISPER).to(device).eval()
    yield "Whisper turbo, encoder", "windows of 30 s", gflop, len(mel), lambda: whisper(mel)


def flops(build: Callable[[], torch.nn.Module], inputs: torch.Tensor) -> int:
    """Floating-point operations of the matrix products and convolutions of a forward pass."""
    with torch.device("meta"):
        network = build().eval()
    counter = FlopCounterMode(display=False)
    # The plain form of attention: the counter does not know the fused kernels of a CPU.
    with counter, sdpa_kernel(SDPBackend.MATH):
        network(inputs.to("meta"))
    return counter.get_total_flops()


def _seconds(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median time of a call; the first, which compiles and allocates, does not count."""
    durations = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(time.perf_counter() - start)
    return statistics.median(durations[1:])
