"""What somebody else made: model folders, media, pickles and tables that are damaged or a trap.

Each case runs in a process of its own with a limit on memory and time: what it takes is bounded by
what is in the file, not by what the file claims.
"""

import json
import os
import pickle
import resource
import shutil
import signal
import struct
import zlib
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import sine, write_media
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from emilib import EMOTIONS
from emilib.corpus import CorpusError, audit, feature_files, media, read
from emilib.features import light, loading
from emilib.models import TAEMI, DualStage
from emilib.predict import Clip, EmiPredictor
from emilib.predict.clip import MediaSettings, read_clip
from emilib.profiles import SMALL_AUDIO, SMALL_TEXT, SMALL_VISION

MEMORY = 1 << 30  # bytes beyond what the tests have
SECONDS = 20


def bounded(function, *arguments):
    """``function(*arguments)`` in a fork with little memory and time; its error is raised here."""

    def work(pipe):
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY,) * 2)
        signal.alarm(SECONDS)
        torch.set_num_threads(1)
        try:
            pipe.send((function(*arguments), None))
        except Exception as error:
            pipe.send((None, error))

    ours, theirs = get_context("fork").Pipe()
    process = get_context("fork").Process(target=work, args=(theirs,))
    process.start()
    theirs.close()
    try:
        result, error = ours.recv()
    except EOFError:
        process.join()
        pytest.fail(f"the process ended with {process.exitcode}")
    process.join()
    if error is not None:
        raise error
    return result


# ---- model folders ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A predictor of random weights, as `export` writes it."""
    torch.manual_seed(0)
    words = ["well that was fun", "no"]
    encoders = {
        "vision": loading.small_vision(SMALL_VISION),
        "audio": loading.small_audio(SMALL_AUDIO),
        "text": loading.small_text(SMALL_TEXT, words, max_tokens=64),
    }
    widths = {"frames": 96, "audio": 64, "text": 128}
    settings = {f"{name}_dim": width for name, width in widths.items()}
    models = {seed: TAEMI(**settings, width=16) for seed in (0, 1)}
    moments = {m: (np.zeros(width), np.ones(width)) for m, width in widths.items()}
    licences = {role: {"source": "here", "licence": "MIT"} for role in encoders}
    facts = {"experiment": "taemi", "corpus": "nothing", "synthetic": True, "profile": "none"}
    facts |= {"clips": {"train": 0}, "words": "None.", "selected": False, "rho": 0.0}
    facts |= {"rho_sd": 0.1, "rho_of_each": dict.fromkeys(EMOTIONS, 0.0), "version": "0"}
    facts["encoders"] = licences
    media_settings = MediaSettings(5.0, 64, "video", 2)
    predictor = EmiPredictor(encoders, models, moments, media_settings, facts)
    return predictor.save_pretrained(tmp_path_factory.mktemp("model") / "taemi")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def weights(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def pipe_for(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def nan(tensors, name):
    tensors[name].view(-1)[0] = torch.nan


def escaped(folder):
    """`auto_map` in other letters, deep inside."""
    path = folder / "text/config.json"
    text = json.dumps({**json.loads(path.read_text()), "more": [{"auto_map": {"A": "own.M"}}]})
    path.write_text(text.replace("auto_map", "\\u0061uto_map"))


SEED, VISION, TEXT = "seed-1/model.safetensors", "vision/model.safetensors", "text/tokenizer.json"
MODELS = {  # what is done to the folder, and words of the sentence that refuses it
    "code": (escaped, "auto_map"),
    "code of a tokenizer": (
        lambda f: edit(f / "text/tokenizer_config.json", auto_map={"AutoTokenizer": ["own.T", None]}),
        "auto_map",
    ),
    "code, another network": (
        lambda f: edit(f / "text/config.json", model_type="own", auto_map={"AutoModel": "own.M"}),
        "auto_map",
    ),
    "a pipe for the config": (lambda f: pipe_for(f / "config.json"), "pipe"),
    "a pipe for weights": (lambda f: pipe_for(f / SEED), "pipe"),
    "a pipe for words": (lambda f: pipe_for(f / TEXT), "pipe"),
    "no tokenizer": (lambda f: (f / TEXT).unlink(), "tokenizer"),
    "a tensor too few": (
        lambda f: weights(f / SEED, lambda t: t.pop(next(iter(t)))), "Missing key"
    ),
    "a tensor too many": (lambda f: weights(f / SEED, lambda t: t.update(x=torch.ones(1))), "x"),
    "an encoder's tensor too few": (
        lambda f: weights(f / VISION, lambda t: t.pop("layernorm.weight")), "layernorm.weight"
    ),
    "an encoder's layer too many": (
        lambda f: edit(f / "vision/config.json", num_hidden_layers=2), "encoder.layer.2"
    ),
    "another encoder's weights": (
        lambda f: shutil.copy(f / "audio/model.safetensors", f / VISION), "embeddings"
    ),
    "another encoder": (
        lambda f: shutil.copytree(f / "audio", f / "vision", dirs_exist_ok=True), "for vision"
    ),
    "another model's name": (lambda f: edit(f / "config.json", model="DualStage"), "DualStage"),
    "no model's name": (lambda f: edit(f / "config.json", model="MODALITIES"), "from_pretrained"),
    "NaN in weights": (lambda f: weights(f / SEED, lambda t: nan(t, next(iter(t)))), "NaN"),
    "NaN in an encoder": (
        lambda f: weights(f / VISION, lambda t: nan(t, "layernorm.bias")), "NaN"
    ),
    "NaN in the moments": (
        lambda f: weights(f / "moments.safetensors", lambda t: nan(t, "audio.sd")), "finite"
    ),
    "NaN in the scale": (
        lambda f: edit(f / "config.json", scale={"shift": [np.nan] * 6, "factor": [1.0] * 6}),
        "finite",
    ),
    "a scale of two": (
        lambda f: edit(f / "config.json", scale={"shift": [0.0] * 2, "factor": [1.0] * 2}),
        "shape|broadcast",
    ),
    "a target too few": (lambda f: edit(f / "config.json", emotions=["Joy"]), "shape"),
    "escapes in its facts": (
        lambda f: edit(f / "config.json", facts={"corpus": "\x1b]0;owned\x07"}), ""
    ),
    "10,000 seeds": (lambda f: edit(f / "config.json", seeds=list(range(10000))), "seed-2"),
    "deep JSON": (lambda f: (f / "config.json").write_text("[" * 10**6), "recursion"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_folder_that_is_not_what_it_seems_is_refused(model, tmp_path, case):
    spoil, words = MODELS[case]
    folder = shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model/text/own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    spoil(folder)
    with pytest.raises(ValueError, match=f"(?s)expected the folder .*{words}") as caught:
        bounded(EmiPredictor.from_pretrained, folder)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "ran").exists()


def test_facts_are_printed_as_text_or_not_at_all(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    facts = json.loads((folder / "config.json").read_text())["facts"]
    for corpus in ("\x1b[2Jmine", "\x9b2Jmine", "mine\rtheirs"):
        edit(folder / "config.json", facts={**facts, "corpus": corpus})
        with pytest.raises(ValueError, match="printable"):
            EmiPredictor.from_pretrained(folder)
