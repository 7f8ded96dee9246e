"""Small random checkpoints in the formats and under the names of the papers' large ones."""

from pathlib import Path

import torch
from test_pretrained import (
    AUDEERING,
    clip_folder,
    emotion_folder,
    sound_folder,
    text_folder,
    vit_folder,
)
from test_speech import write_whisper
from transformers import BertConfig, BertForPreTraining, GteConfig, GteForMaskedLM


def write(folder) -> Path:
    """A folder for ``EMI_WEIGHTS`` that holds a checkpoint for every name of the manifest."""
    folder = Path(folder)
    makers = {
        "openai/clip-vit-base-patch16": clip_folder,
        "google/vit-base-patch16-224-in21k": vit_folder,
        "facebook/wav2vec2-large-lv60": sound_folder,
        AUDEERING: emotion_folder,
        "bert-base-uncased": lambda place: text_folder(place, BertForPreTraining, BertConfig),
        "alibaba-nlp-community/gte-base-en-v1.5": lambda place: text_folder(
            place, GteForMaskedLM, GteConfig
        ),
    }
    torch.manual_seed(0)
    for name, make in makers.items():
        place = folder / name
        place.mkdir(parents=True)
        make(place)
    write_whisper(folder / "large-v3-turbo.pt")
    return folder
