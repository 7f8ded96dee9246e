"""How fast the papers' encoders run on this machine: published sizes, random weights."""

import dataclasses
import time

import pandas as pd
import torch
from transformers import AutoModel, BertConfig, CLIPVisionConfig, Wav2Vec2Config

from emilib import SAMPLE_RATE, workers
from emilib.features import extraction
from emilib.features.encoders import AudioEncoder, TextEncoder, VisionEncoder
from emilib.features.loading import wordpiece

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
LARGE |= {"intermediate_size": 4096, "feat_extract_norm": "layer", "conv_bias": True}
WAV2VEC2 = Wav2Vec2Config(**LARGE, do_stable_layer_norm=True)
CONFIGS = (CLIPVisionConfig(patch_size=16), WAV2VEC2, BertConfig())


def throughput(repeats=3, scale=1.0) -> pd.DataFrame:
    """Columns what, unit, rate (a second) of the three encoders; `scale` is of the batches."""
    device = workers.device()
    plan = extraction.Batching.on(device)
    frames, sounds = (max(1, round(scale * n)) for n in (plan.frames, plan.sounds))
    plan = dataclasses.replace(plan, frames=frames, sounds=sounds)
    with torch.random.fork_rng(devices=[]):
        vit, wav2vec2, bert = (AutoModel.from_config(c).to(device).eval() for c in CONFIGS)
    vision, audio = VisionEncoder(vit).to(device), AudioEncoder(wav2vec2)
    texts = ["word " * 30] * (2 * frames)
    text = TextEncoder(bert, wordpiece(texts, bert.config.vocab_size), max_tokens=32)
    side = vit.config.image_size
    pictures = [torch.zeros(frames, 3, side, side, dtype=torch.uint8).numpy()]
    waves = [torch.arange(12 * SAMPLE_RATE).short().numpy()] * sounds
    jobs = {
        ("ViT-B/16", "frames", frames): (extraction.encode_frames, vision, pictures),
        ("wav2vec2-large", "s of audio", 12 * sounds): (extraction.encode_waveforms, audio, waves),
        ("BERT-base", "texts", len(texts)): (extraction.encode_texts, text, texts),
    }
    rows = []
    for (what, unit, count), (encode, encoder, clips) in jobs.items():
        encode(encoder, clips, batching=plan)
        began = time.perf_counter()
        for _ in range(repeats):
            encode(encoder, clips, batching=plan)  # waits: its result is on the CPU
        rows.append((what, unit, count * repeats / (time.perf_counter() - began)))
    return pd.DataFrame(rows, columns=["what", "unit", "rate"])
