"""How fast the papers' encoders run on this machine, and how near to its peak.

The networks have the published sizes, written out below, and random weights: nothing is
downloaded, and the speed is the same. They go through the code that extraction uses, copies to
and from the device included.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel, Wav2Vec2Config, Wav2Vec2Model

from emilib import workers
from emilib.features.encoders import (
    CLIP_MEAN,
    CLIP_STD,
    SAMPLE_RATE,
    AudioEncoder,
    VisionEncoder,
)
from emilib.features.extraction import (
    Batching,
    compiled,
    encode_frames,
    encode_texts,
    encode_waveforms,
)
from emilib.features.loading import small_text

VIT = {  # openai/clip-vit-base-patch16
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
WAV2VEC2 = {  # facebook/wav2vec2-large-lv60; its convolutions are the class's defaults
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
BERT = {  # bert-base-uncased
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
WHISPER = {"n_mels": 128, "n_ctx": 1500, "n_state": 1280, "n_head": 20, "n_layer": 32}  # turbo
SECONDS = 12.0  # of sound a clip; paper B cuts there
TOKENS = 32  # of text a clip
SIDE = 4096  # of the square matrices that measure the peak


def throughput(
    repeats: int = 3,
    device=None,
    precision: str | None = "default",
    scale: float = 1.0,
    compile: bool = False,
) -> pd.DataFrame:
    """Rates of the four encoders on a device, the peak of its matrix product, and shares of it.

    repeats : timed passes of each after one that is not; the median counts
    device : None is the first GPU where there is one, else the CPU
    precision : None, "bf16", or what extraction takes on this device
    scale : batch sizes are those of extraction times this; small for a slow machine
    compile : the ViT through `torch.compile`

    Columns: what, items (a pass), rate (a second), unit, gflop (an item), tflops (a second), share
    (of the measured peak in the same precision). FLOPs are counted by torch on the forward pass.
    """
    device = torch.device(device or workers.device())
    fields = {} if precision == "default" else {"precision": precision}
    batching = _scaled(Batching.on(device, compile=compile, **fields), scale)
    rows = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for job in (_product, _vision, _audio, _text, _whisper):
            what, unit, items, flop, run = job(device, batching)
            rows.append((what, items, items / _seconds(run, repeats, device), unit, flop))
    table = pd.DataFrame(rows, columns=["what", "items", "rate", "unit", "gflop"])
    table["gflop"] /= 1e9
    table["tflops"] = table["rate"] * table["gflop"] / 1e3
    table["share"] = table["tflops"] / table["tflops"].iloc[0]
    return table


def _scaled(batching: Batching, scale: float) -> Batching:
    counts = {name: max(1, round(getattr(batching, name) * scale)) for name in ("frames", "sounds")}
    return dataclasses.replace(batching, **counts)


def flops(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of a call."""
    counter = FlopCounterMode(display=False)
    # The plain form of attention: the fused kernels of a CPU are unknown to the counter.
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def _product(device, batching):
    """Two square matrices: the peak that the encoders are measured by."""
    dtype = torch.bfloat16 if batching.precision == "bf16" else torch.float32
    left, right = (torch.randn(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    return "matrix product", "products", 1, 2 * SIDE**3, lambda: left @ right


def _vision(device, batching):
    config = CLIPVisionConfig(**VIT)
    with torch.device("meta"):
        plain = CLIPVisionModel(config).eval()
        side = config.image_size
        flop = flops(lambda: plain(pixel_values=torch.empty(1, 3, side, side)))
    encoder = VisionEncoder(CLIPVisionModel(config), "cls", CLIP_MEAN, CLIP_STD).to(device).eval()
    encoder = compiled(encoder) if batching.compile else encoder
    pictures = np.zeros((batching.frames, 3, side, side), np.uint8)
    run = lambda: encode_frames(encoder, [pictures], batching)  # noqa: E731
    return "ViT-B/16", "frames", batching.frames, flop, run


def _audio(device, batching):
    config, samples = Wav2Vec2Config(**WAV2VEC2), round(SECONDS * SAMPLE_RATE)
    with torch.device("meta"):
        plain = Wav2Vec2Model(config).eval()
        flop = flops(lambda: plain(torch.empty(1, samples))) / SECONDS
    encoder = AudioEncoder(Wav2Vec2Model(config)).to(device).eval()
    noise = np.random.default_rng(0).normal(0, 1000, samples).astype(np.int16)
    sounds = [noise] * batching.sounds
    run = lambda: encode_waveforms(encoder, sounds, batching=batching)  # noqa: E731
    return "wav2vec2-large", "seconds of sound", SECONDS * batching.sounds, flop, run


def _text(device, batching):
    words = "word " * (TOKENS - 2)
    encoder = small_text(BERT, [words], max_tokens=TOKENS).eval()
    with torch.device("meta"):
        plain = type(encoder.model)(encoder.model.config, add_pooling_layer=False).eval()
        flop = flops(lambda: plain(input_ids=torch.zeros(1, TOKENS, dtype=torch.long)))
    encoder.to(device)
    texts = [words] * max(1, min(batching.tokens // TOKENS, 2 * batching.frames))
    run = lambda: encode_texts(encoder, texts, batching)  # noqa: E731
    return "BERT-base", "sequences", len(texts), flop, run


def _whisper(device, batching):
    from whisper.model import AudioEncoder as WhisperEncoder

    shape = (WHISPER["n_mels"], 2 * WHISPER["n_ctx"])
    with torch.device("meta"):
        plain = WhisperEncoder(*WHISPER.values()).eval()
        flop = flops(lambda: plain(torch.empty(1, *shape)))
    encoder = WhisperEncoder(*WHISPER.values()).to(device).eval()
    count = max(1, batching.sounds // 2)
    # As `whisper.decode` does: half precision on a GPU, else single.
    mel = torch.zeros(count, *shape, device=device)
    mel = mel.half() if device.type == "cuda" else mel
    return "Whisper turbo, encoder", "windows of 30 s", count, flop, lambda: encoder(mel)


def _seconds(run: Callable[[], object], repeats: int, device) -> float:
    """Median time of a call; the first, which compiles and allocates, is not counted."""
    taken = []
    for turn in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        if turn:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _wait(device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
