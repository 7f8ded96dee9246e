"""From a video file to intensities: what was trained on a corpus, used on anybody's clips.

    predictor = EmiPredictor.from_workspace(Workspace("embedded"), "taemi")
    predictor.save_pretrained("models/taemi")
    EmiPredictor.from_pretrained("models/taemi").predict(["clip.mp4"])

Each clip is decoded as the corpus was, encoded by the frozen encoders, standardised by the
training clips' moments, and given to the fusion model of every seed. Clips don't share a batch, so
the other files of a call never change a clip's numbers.

Dimension key: S seeds, W windows of a clip, T steps, E emotions, H heads, M segments.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pandas as pd

from emilib import __version__
from emilib import workers as processes
from emilib.cache import atomic_write
from emilib.corpus import media
from emilib.corpus.layout import EMOTIONS
from emilib.corpus.media import MediaError
from emilib.features import checkpoints as manifest

MODALITIES = ("frames", "audio", "text")
SPOKEN = {"frames": "frames", "audio": "sound", "text": "words"}
SAMPLE_RATE = 16_000  # Hz
WINDOW, STEP = 12.0, 6.0  # s; paper B cuts sound at 12 s
LONGEST = 30.0  # s; a longer clip is never given to a model in one piece
# s that processes which decode have to save before they are started: on two cores two of them
# cost 1.2 s of processor time to start, and half a second to wait for.
WORTH = 1.0
SMALL = 10_000_000  # parameters in all up to which networks take one core
WINDOWS = 32  # windows encoded together
FORMAT = 1  # of the folder that `save_pretrained` writes
KIND = "emilib predictor"
HOW_TO_EXPORT = "make one with `python -m emilib export taemi FOLDER`"
_ROLES = {"vision": "frames", "audio": "audio", "text": "text"}  # encoder → modality
_STATED = {"experiment", "corpus", "synthetic", "rho", "rho_sd"}  # facts said with every number
# Everything a predictor is made of; a hub repository may hold more, which is not fetched.
_FILES = ["config.json", "README.md", "*.safetensors", "*/*.json", "*/*.txt"]


@dataclasses.dataclass(frozen=True)
class Clip:
    """What is known of one clip. A path alone means `Clip(video=path)`.

    video : file with picture, sound or both; None where there is only `audio`
    audio : a sound file to take in place of the video's own sound
    faces : folder of numbered face crops (1.jpg, 2.jpg, ...), for models trained on such
    text : the words that are spoken; "" for none; None to have Whisper listen, where it is
    """

    video: str | Path | None
    audio: str | Path | None = None
    faces: str | Path | None = None
    text: str | None = None

    @property
    def name(self) -> str:
        return str(self.video if self.video is not None else self.audio)


@dataclasses.dataclass(frozen=True)
class MediaSettings:
    """How the clips were decoded that a model learnt from.

    visual : "faces", face crops, or "video", the middle square of whole frames
    audio_every : hidden states of the sound that are averaged into one step
    """

    fps: float
    image_size: int
    visual: str
    audio_every: int


@dataclasses.dataclass
class Prediction:
    """What came out for one clip.

    reason : why nothing came out, one sentence; None where something did. The rest is empty then
    start, end : (W,) s, the windows; one for a clip that was taken whole
    intensity : (S, W, E) as the models give it, not clipped
    present : (W, 3) bool, order frames, audio, text
    damaged : frames and pieces of sound that were left out
    problems : sentences about the file; notes : sentences about how it was read
    text : the words of the clip, None where none are known
    duration : s of the clip; seconds : s that the work took, decoding included
    """

    clip: Clip
    emotions: tuple[str, ...]
    reason: str | None = None
    start: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    end: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    intensity: np.ndarray | None = None
    present: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3), bool))
    damaged: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    text: str | None = None
    duration: float = math.nan
    seconds: float = math.nan

    @property
    def bounded(self) -> bool:
        """The six intensities lie in [0, 1] and are clipped to it; other targets are not."""
        return tuple(self.emotions) == EMOTIONS

    @property
    def missing(self) -> list[str]:
        """Modalities of which the clip has nothing in any window."""
        return [
            m for m, there in zip(MODALITIES, self.present.any(axis=0), strict=True) if not there
        ]

    def row(self) -> dict:
        """One row of `EmiPredictor.predict`."""
        failed = self.reason is not None
        mean = spread = np.full(len(self.emotions), np.nan)
        if not failed:
            mean, spread = _over_seeds(self.intensity.mean(axis=1), self.bounded)
        return {
            "clip": self.clip.name,
            "status": "failed" if failed else "ok",
            **dict(zip(self.emotions, mean.tolist(), strict=True)),
            **{f"{e} sd": s for e, s in zip(self.emotions, spread.tolist(), strict=True)},
            "missing": "" if failed else ", ".join(self.missing),
            "damaged": self.damaged,
            "problems": "; ".join(self.problems),
            "notes": " ".join(self.notes),
            "text": self.text,
            "windows": len(self.start),
            "duration": self.duration,
            "seconds": self.seconds,
            "reason": self.reason or "",
        }

    def windows(self) -> pd.DataFrame:
        """start, end in s, each emotion and its sd over seeds, missing; a row a window."""
        rows = []
        for w in range(len(self.start)):
            mean, spread = _over_seeds(self.intensity[:, w], self.bounded)
            absent = [m for m, there in zip(MODALITIES, self.present[w], strict=True) if not there]
            rows.append([self.start[w], self.end[w], *mean, *spread, ", ".join(absent)])
        spreads = [f"{emotion} sd" for emotion in self.emotions]
        columns = ["start", "end", *self.emotions, *spreads, "missing"]
        return pd.DataFrame(rows, columns=columns)


@dataclasses.dataclass
class Look:
    """What the models of a clip looked at, for `study.predict_plots.look`; means over nothing.

    images : (T, 3, P, P) uint8 or None, with `times` (T,) s from the clip's beginning
    waveform : (N,) int16 at `sample_rate` or None
    start, end : s, the part of the clip this is
    weights : (S, M, 3) of Eq. 8 in paper A, or None; `weight_borders` (M + 1,) s
    attention : "frames" and "audio" → (S, H, T), or None where the clip lacks it or the model has
        none; `attention_borders` → (T + 1,) s
    prediction : of this part; without : as `EmiPredictor.without`, of this part
    """

    prediction: Prediction
    without: pd.DataFrame
    images: np.ndarray | None
    times: np.ndarray
    waveform: np.ndarray | None
    sample_rate: int
    start: float
    end: float
    weights: np.ndarray | None
    weight_borders: np.ndarray | None
    attention: dict[str, np.ndarray | None] | None
    attention_borders: dict[str, np.ndarray]


@dataclasses.dataclass
class _Material:
    """A decoded clip. `frames` are pictures, or `encoded` features where they came as a stream."""

    frames: np.ndarray | None = None  # (T, 3, P, P) uint8
    encoded: np.ndarray | None = None  # (T, D) float16
    times: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    waveform: np.ndarray | None = None  # (N,) int16
    duration: float = math.nan
    damaged: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    long: bool = False  # nothing was kept of it: it has to be streamed
    reason: str | None = None
    seconds: float = 0.0


class EmiPredictor:
    """Encoders, the fusion models of all seeds of one experiment, and how to feed them.

    encoders : "vision", "audio", "text", of `features.encoders`
    models : seed → fusion model
    moments : of the training clips' features, `FeatureSplits.moments`
    modalities : those the models are given
    facts : what a user has to know: corpus, rho, rho_sd, experiment, ...
    emotions : names of the targets; another corpus than the papers' may have others
    scale : `study.training.TargetScale` of the models' outputs; None where they are targets
    device : None is the first GPU where there is one, else the CPU
    """

    def __init__(
        self,
        encoders: dict,
        models: dict,
        moments: dict,
        settings: MediaSettings,
        facts: dict,
        modalities: Sequence[str] = MODALITIES,
        emotions: Sequence[str] = EMOTIONS,
        scale=None,
        device=None,
    ):
        import torch

        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.encoders = {role: e.to(self.device).eval() for role, e in encoders.items()}
        self.models = {int(s): m.to(self.device).eval() for s, m in models.items()}
        self.moments = moments
        self.settings = settings
        self.facts = dict(facts)
        self.modalities = tuple(modalities)
        self.emotions = tuple(emotions)
        self.scale = scale

    def __repr__(self):
        return f"EmiPredictor({self.facts['experiment']!r}, {self.facts['corpus']!r})"

    @property
    def note(self) -> str:
        """Where the model comes from and what it can't know, to be said with every number."""
        facts = self.facts
        said = (
            f"Model {facts['experiment']} of {len(self.models)} seeds, trained on the "
            f"{facts['corpus']}; ρ {facts['rho']:.3f} ± {facts['rho_sd']:.3f} there on validation."
        ).replace("ρ -", "ρ −")
        return f"{said} {_limits(facts)}"

    # ------------------------------------------------------------------ made, kept and found again

    @classmethod
    def from_workspace(cls, workspace, experiment: str, device=None) -> "EmiPredictor":
        """The models of an experiment on a workspace's corpus; trained first where missing.

        Raises ValueError for an experiment without a model of its own (a mean of others), for one
        on the organisers' features, which nothing here can compute for another video, and for one
        whose seeds have encoders of their own.
        """
        known = workspace.experiments()
        if experiment not in known:
            raise ValueError(f"no experiment {experiment!r}; there are {', '.join(known)}")
        chosen = known[experiment]
        kind, *stage = chosen.features.split(", ")
        if chosen.model is None or kind != "ours":
            why = {"official": "reads the official features", "media": "trains its own encoders"}
            why = "is a mean of others" if chosen.model is None else why[kind]
            usable = [n for n, e in known.items() if e.model and e.features.startswith("ours")]
            raise ValueError(
                f"experiment {experiment!r} {why}, so it can't be used on a video; take one of "
                f"{', '.join(usable)}"
            )
        results = workspace.results([experiment])
        profile = workspace.profile
        return cls(
            workspace.encoders(*stage),
            {seed: results.model(experiment, seed) for seed in profile.seeds},
            workspace.features(kind, *stage).moments,
            MediaSettings(
                profile.fps, profile.image_size, profile.visual, int(profile.audio_every)
            ),
            _facts(workspace, results, experiment),
            chosen.modalities,
            results[experiment].targets,
            results[experiment].scale,
            device=device,
        )

    def save_pretrained(self, folder) -> Path:
        """Write weights (safetensors), config.json and a model card into `folder`."""
        from safetensors.numpy import save

        from emilib.features.loading import save_encoder

        folder = Path(folder)
        for role, encoder in self.encoders.items():
            (folder / role).mkdir(parents=True, exist_ok=True)
            save_encoder(encoder, folder / role)
        for seed, model in self.models.items():
            model.save_pretrained(folder / f"seed-{seed}")
            (folder / f"seed-{seed}" / "README.md").unlink(missing_ok=True)  # the hub's empty card
        arrays = {}
        for modality, (mean, spread) in self.moments.items():
            arrays[f"{modality}.mean"] = np.ascontiguousarray(mean, np.float64)
            arrays[f"{modality}.sd"] = np.ascontiguousarray(spread, np.float64)
        atomic_write(folder / "moments.safetensors", save(arrays))
        config = {
            "kind": KIND,
            "format": FORMAT,
            "model": type(next(iter(self.models.values()))).__name__,
            "seeds": list(self.models),
            "modalities": list(self.modalities),
            "emotions": list(self.emotions),
            "scale": None if self.scale is None else self.scale.to_dict(),
            "media": dataclasses.asdict(self.settings),
            "facts": self.facts,
        }
        atomic_write(folder / "README.md", _card(self))
        # safetensors writes files that only their owner may read; a model is there to be given on.
        for path in folder.rglob("*.safetensors"):
            path.chmod((folder / "README.md").stat().st_mode)
        # Last: a folder with it is complete.
        atomic_write(
            folder / "config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n"
        )
        return folder

    @classmethod
    def from_pretrained(cls, source, device=None) -> "EmiPredictor":
        """The predictor in a folder that `save_pretrained` wrote, or in a hub repository.

        source : folder, or a name like owner/model of the Hugging Face hub

        No code from the folder is run and no pickle is read. Raises ValueError, one sentence,
        where there is no such folder or it holds no predictor.
        """
        from safetensors.numpy import load_file

        from emilib.features.loading import load_encoder
        from emilib.training.loop import TargetScale

        folder = _folder_of(source)
        config = _read_config(folder)
        for role in _ROLES:
            _check_plain(folder / role)
        try:
            arrays = load_file(folder / "moments.safetensors")
            moments = {m: (arrays[f"{m}.mean"], arrays[f"{m}.sd"]) for m in _ROLES.values()}
            encoders = {role: load_encoder(folder / role) for role in _ROLES}
            kind = config["model"]
            models = {s: _load_model(kind, folder / f"seed-{int(s)}") for s in config["seeds"]}
            settings = MediaSettings(**config["media"])
            scale = TargetScale.from_dict(config.get("scale"))
            given = config["facts"], config["modalities"], config["emotions"], scale
        except (OSError, KeyError, TypeError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{folder} is no complete predictor: {_first_line(error)}; {HOW_TO_EXPORT}"
            ) from error
        except Exception as error:  # safetensors' own errors derive from Exception alone
            if type(error).__name__ != "SafetensorError":
                raise
            raise ValueError(f"{folder} has damaged weights: {_first_line(error)}") from error
        return cls(encoders, models, moments, settings, *given, device=device)

    # ----------------------------------------------------------------------------------- prediction

    def predict(
        self,
        paths,
        text=None,
        window: float | None = None,
        step: float | None = None,
        workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> pd.DataFrame:
        """Intensities of clips; a row a clip in the order of `paths`.

        paths : one or several of path or `Clip`
        text : the words of the clip; for several clips a list, None where they are not known.
            Without, Whisper listens where its weights are on this machine, else there are none
        window, step : s; cut each clip into windows, every `step` s one, the last one up to the
            clip's end, and take the mean over them. `over_time` gives each. None: a clip up to
            30 s is taken whole, a longer one in windows of 12 s, every 6 s one
        workers : processes that decode, where there are several clips; None is one a core
        progress : called with (clips done, clips in all)

        Columns: clip, status ("ok" or "failed"), each emotion in [0, 1] (mean over the seeds and
        windows, clipped) and "Joy sd" and so on (over seeds), missing, damaged, problems, notes,
        text, windows, duration and seconds (it took), reason (of a failure). A file that can't be
        read is a row with its reason; `attrs["note"]` says what the model is.
        """
        found = self.predictions(paths, text, window, step, workers, progress)
        return self.table(found)

    def table(self, predictions: Iterable[Prediction]) -> pd.DataFrame:
        """`Prediction`s as the DataFrame of `predict`."""
        table = pd.DataFrame([prediction.row() for prediction in predictions])
        table.attrs["note"] = self.note
        return table

    def predictions(
        self, paths, text=None, window=None, step=None, workers=None, progress=None
    ) -> Iterator[Prediction]:
        """`predict` one clip at a time: `Prediction`s in the order of `paths`."""
        window, step = _check_window(window, step)
        clips = _clips(paths, text)
        return self._predictions(clips, window, step, workers, progress)

    def _predictions(self, clips, window, step, workers, progress) -> Iterator[Prediction]:
        read = _read_all(clips, self.settings, _count(workers))
        for done, (clip, material) in enumerate(zip(clips, read, strict=True), 1):
            yield self._predict(clip, material, window, step)
            if progress is not None:
                progress(done, len(clips))

    def over_time(self, path, text: str | None = None, window=WINDOW, step=None) -> pd.DataFrame:
        """Intensities of one clip in sliding windows.

        window, step : s; None for `step` is half a window

        Columns start and end (s), each emotion in [0, 1] and its sd over seeds, missing. Memory
        does not grow with the clip's length. Raises MediaError for a file that can't be read.
        """
        return self._one(path, text, window, step).windows()

    def _one(self, path, text, window=None, step=None) -> Prediction:
        window, step = _check_window(window, step)
        clip = _one_clip(path, text)
        prediction = self._predict(clip, _read(clip, self.settings, threads=0), window, step)
        if prediction.reason is not None:
            raise MediaError(prediction.reason)
        return prediction

    def _predict(self, clip: Clip, material: _Material, window, step) -> Prediction:
        began = time.perf_counter()
        prediction = Prediction(clip, self.emotions, duration=material.duration)
        try:
            material = self._complete(clip, material)
            text, source = self._words(clip)
            starts, ends = _windows(material.duration, window, step)
            found, present, texts = [], [], []
            for first in range(0, len(starts), WINDOWS):
                part = slice(first, first + WINDOWS)
                data, words = self._features(material, starts[part], ends[part], text)
                present.append(data.present)
                texts += words
                found.append(self._run(data))
        except (ValueError, OSError) as error:
            prediction.reason = _first_line(error)
        else:
            prediction.start, prediction.end = starts, ends
            prediction.intensity = np.concatenate(found, axis=1)
            prediction.present = np.concatenate(present)
            prediction.text = _joined(texts)
            prediction.notes = [*material.notes, source]
            if len(starts) > 1:
                prediction.notes.append(_about_windows(len(starts), starts, ends, text))
        prediction.duration = material.duration
        prediction.damaged, prediction.problems = material.damaged, material.problems
        prediction.seconds = material.seconds + time.perf_counter() - began
        return prediction

    def without(self, path, text: str | None = None) -> pd.DataFrame:
        """Which modality mattered: the intensities with each removed in turn.

        Index "all" and "without frames", "without audio", "without text" for those the clip has
        and the model reads; a column an emotion, in [0, 1], mean over seeds (and windows).
        Raises MediaError for a file that can't be read.
        """
        clip = _one_clip(path, text)
        material = self._complete(clip, _read(clip, self.settings, threads=0))
        starts, ends = _windows(material.duration, *_check_window(None, None))
        words, _ = self._words(clip)
        data = self._features(material, starts, ends, words)[0]
        return self._without(data)

    def _without(self, data) -> pd.DataFrame:
        bounded = self.emotions == EMOTIONS
        rows = {"all": _over_seeds(self._run(data).mean(axis=1), bounded)[0]}
        for column, modality in enumerate(MODALITIES):
            if modality in self.modalities and data.present[:, column].any():
                found = self._run(data, removed=modality)
                rows[f"without {modality}"] = _over_seeds(found.mean(axis=1), bounded)[0]
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(self.emotions))

    def look(self, path, text: str | None = None, start: float = 0.0) -> Look:
        """What the models looked at in a clip: weights or attention over time, as arrays.

        start : s; of a clip longer than 30 s the 12 s from here on are shown

        Raises MediaError for a file that can't be read, ValueError for a `start` behind its end.
        """
        clip = _one_clip(path, text)
        began = time.perf_counter()
        material, first = _read(clip, self.settings, threads=0), 0.0
        if material.long:
            material, first = _cut_out(clip, self.settings, start), start
        material = self._complete(clip, material)
        words, source = self._words(clip)
        whole = [np.array([0.0]), np.array([material.duration])]
        data, texts = self._features(material, *whole, words)
        outputs = self._outputs(data)
        intensity = self._intensity(outputs)
        part = [first + border for border in whole]
        prediction = Prediction(
            clip, self.emotions, None, *part, intensity, data.present, material.damaged
        )
        prediction.problems, prediction.notes = material.problems, [*material.notes, source]
        prediction.text, prediction.duration = _joined(texts), material.duration
        prediction.seconds = material.seconds + time.perf_counter() - began
        shown = self._explained(outputs, data, material)
        return Look(
            prediction,
            self._without(data),
            material.frames,
            first + material.times,
            material.waveform,
            SAMPLE_RATE,
            float(first),
            float(first + material.duration),
            *(shown if not first else _moved(shown, first)),
        )

    # ---------------------------------------------------------------------------- the single steps

    def _complete(self, clip: Clip, material: _Material) -> _Material:
        """Stream a long clip, here and not in a worker: its features are small, it is not."""
        if material.reason is not None:
            raise MediaError(material.reason)
        if not material.long:
            return material
        problems: list[str] = []
        size, fps = self.settings.image_size, self.settings.fps
        times, features = [], []
        if clip.video is not None and "frames" in self.modalities:
            for images, when in media.picture_blocks(clip.video, fps, size, problems):
                features.append(self._encode_frames(_channels_first(images)))
                times.append(when)
        waveform = media.sound_on_disk(clip.audio or clip.video, problems, SAMPLE_RATE)
        if not features and waveform is None:
            raise MediaError(f"Nothing in {clip.name} could be decoded: {'; '.join(problems)}.")
        times = np.concatenate(times) if times else np.zeros(0)
        last = times[-1] + 1 / fps if len(times) else 0.0
        sounding = 0.0 if waveform is None else len(waveform) / SAMPLE_RATE
        damaged = sum(int(n) for p in problems for n in re.findall(r"^(\d+) damaged", p))
        return _Material(
            encoded=np.concatenate(features) if features else None,
            times=times,
            waveform=waveform,
            duration=max(last, sounding),
            damaged=damaged,
            problems=problems,
            notes=_about_frames(self.settings, bool(features)),
        )

    def _encode_frames(self, frames: np.ndarray) -> np.ndarray:
        from emilib.features.extraction import encode_frames

        with self._threads():
            return encode_frames(self.encoders["vision"], [frames])[0]

    def _features(self, material: _Material, starts, ends, text: str | None):
        """Standardised features of windows as a FeatureSet, and the words of each window.

        text : the words; None to have Whisper listen to each window
        """
        from emilib.features import extraction
        from emilib.features.feature_set import FeatureSet

        encoded = material.encoded
        if encoded is None and material.frames is not None and "frames" in self.modalities:
            encoded = material.encoded = self._encode_frames(material.frames)
        frames, sounds = [], []
        for start, end in zip(starts, ends, strict=True):
            # Tolerance: the only window of a clip ends where its last frame may begin.
            inside = (material.times >= start) & (material.times < end + media.TIME_TOLERANCE)
            inside = inside if len(starts) > 1 else slice(None)
            frames.append(None if encoded is None else encoded[inside])
            borders = (round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))
            sound = material.waveform
            if sound is not None and len(starts) > 1:
                sound = np.array(sound[slice(*borders)])
            sounds.append(sound)
        audio = [None] * len(sounds)
        if "audio" in self.modalities:
            every = self.settings.audio_every
            with self._threads():
                audio = extraction.encode_waveforms(self.encoders["audio"], sounds, every)
        texts = [text] * len(sounds) if text is not None else self._listen(sounds)
        matrix = None
        if "text" in self.modalities:
            matrix = np.full((len(texts), self.encoders["text"].dim), np.nan, np.float32)
            distinct = [t for t in dict.fromkeys(texts) if t]
            with self._threads():
                vectors = extraction.encode_texts(self.encoders["text"], distinct)
            by_text = dict(zip(distinct, vectors, strict=True))
            for row, words in enumerate(texts):
                if words:
                    matrix[row] = by_text[words][0]
            matrix = matrix if distinct else None
        if matrix is None and all(a is None or not len(a) for a in (*frames, *audio)):
            needed = ", ".join(SPOKEN[m] for m in self.modalities)
            raise ValueError(f"The clip has nothing that this model reads ({needed}).")
        data = FeatureSet.from_arrays(range(len(texts)), frames, audio, matrix)
        return data.standardised(self.moments), texts

    def _threads(self):
        """Small networks take one core: a second one gains nothing, and waits where files that
        are decoded meanwhile need it."""
        from emilib.training.loop import one_thread

        networks = (*self.encoders.values(), *self.models.values())
        size = sum(p.numel() for network in networks for p in network.parameters())
        alone = size < SMALL and self.device.type == "cpu"
        return one_thread() if alone else contextlib.nullcontext()

    def _run(self, data, removed: str | None = None) -> np.ndarray:
        """(S, W, E) intensities, with a modality removed where one is named."""
        return self._intensity(self._outputs(data, removed))

    def _intensity(self, outputs) -> np.ndarray:
        """(S, W, E) in the range of the corpus's targets."""
        found = np.stack([_array(output.intensity) for output in outputs])
        return found if self.scale is None else self.scale.inverse_transform(found)

    def _outputs(self, data, removed: str | None = None) -> list:
        import torch

        from emilib.training.loop import no_denormals

        batch = data.batch(np.arange(len(data)), self.device)
        if removed is not None:
            batch.present[:, MODALITIES.index(removed)] = False
        with torch.inference_mode(), no_denormals(), self._threads():
            return [model(**batch.inputs()) for model in self.models.values()]

    def _explained(self, outputs, data, material: _Material):
        """weights, their borders, attention and its borders, for `Look`."""
        weights = borders = attention = None
        if outputs[0].weights is not None and outputs[0].weights.ndim == 3:
            weights = np.stack([_array(o.weights[0]) for o in outputs])
            borders = np.linspace(0, material.duration, weights.shape[1] + 1)
        spans = {}
        if outputs[0].attention is not None:
            attention = {}
            for name in outputs[0].attention:
                column = MODALITIES.index(name)
                if name == "text" or not data.present[0, column]:
                    attention[name] = None
                    continue
                attention[name] = np.stack([_array(o.attention[name][0]) for o in outputs])
                steps = attention[name].shape[-1]
                spans[name] = self._borders(name, steps, material)
        return weights, borders, attention, spans

    def _borders(self, name: str, steps: int, material: _Material) -> np.ndarray:
        """(T + 1,) s: from when to when each step of a sequence is."""
        if name == "audio":
            length = self.encoders["audio"].stride * self.settings.audio_every / SAMPLE_RATE
            return np.minimum(np.arange(steps + 1) * length, material.duration)
        return np.append(material.times, max(material.duration, material.times[-1]))

    def _words(self, clip: Clip) -> tuple[str | None, str]:
        """The clip's words, None for Whisper to find them, and where they come from."""
        if "text" not in self.modalities:
            return "", "Words are not read by this model."
        if clip.text is not None:
            return clip.text.strip(), "Words as given." if clip.text.strip() else "No words given."
        if self._whisper is None:
            return "", "No words: none were given, and Whisper's weights are not on this machine."
        return None, f"Words by Whisper ({self._whisper[0].name})."

    @functools.cached_property
    def _whisper(self):
        """Path and model of Whisper, or None where its weights are not on this machine."""
        from emilib.features import transcripts as speech

        path = speech.find_weights()
        return None if path is None else (path, speech.load_whisper(path, self.device))

    def _listen(self, sounds: Sequence) -> list[str]:
        from emilib.features import transcripts as speech

        waveforms = [None if s is None else s.astype(np.float32) / 32768 for s in sounds]
        return speech.transcribe(self._whisper[1], waveforms)


# ------------------------------------------------------------------------------------ reading clips


def _clips(paths, text) -> list[Clip]:
    paths = [paths] if isinstance(paths, str | Path | Clip) else list(paths)
    if not paths:
        raise ValueError("expected at least one video file, came none")
    if isinstance(text, str):
        if len(paths) > 1:
            raise ValueError(
                f"one text for {len(paths)} clips: give a list with the words of each, None "
                "where they are not known"
            )
        text = [text]
    text = [None] * len(paths) if text is None else list(text)
    if len(text) != len(paths):
        raise ValueError(f"expected a text for each of {len(paths)} clips, came {len(text)}")
    return [_one_clip(path, words) for path, words in zip(paths, text, strict=True)]


def _one_clip(path, text: str | None) -> Clip:
    clip = path if isinstance(path, Clip) else Clip(path)
    if clip.video is None and clip.audio is None:
        raise ValueError("a Clip needs a video or an audio file, came neither")
    return clip if text is None else dataclasses.replace(clip, text=text)


def _count(workers: int | None) -> int:
    return len(os.sched_getaffinity(0)) if workers is None else int(workers)


def _read_all(clips: Sequence[Clip], settings: MediaSettings, workers: int) -> Iterator[_Material]:
    """Decoded clips in order.

    How long clips take shows only when some are read, so the first are read here. As soon as
    `workers` processes would save more than they cost to start, they read the rest.
    """
    spent = 0.0
    for done, clip in enumerate(clips):
        left = len(clips) - done
        if workers > 1 and done and spent / done * left * (1 - 1 / workers) > WORTH:
            yield from _read_ahead(clips[done:], settings, workers)
            return
        material = _read(clip, settings, threads=0 if workers > 1 else 1)
        spent += material.seconds
        yield material


def _read_ahead(
    clips: Sequence[Clip], settings: MediaSettings, workers: int
) -> Iterator[_Material]:
    """Decoded clips in order, some ahead, in processes that take a core each."""
    done = 0
    try:
        read = functools.partial(_read, settings=settings)
        for material in processes.ordered_map(read, clips, workers, 2 * workers):
            done += 1
            yield material
    except BrokenProcessPool:
        # A file that kills the decoder takes the pool with it: the rest are read one by one.
        yield from (_read_alone(clip, settings) for clip in clips[done:])


def _read_alone(clip: Clip, settings: MediaSettings) -> _Material:
    try:
        return processes.pool(1).submit(_read, clip, settings).result()
    except BrokenProcessPool:
        return _Material(
            reason=f"The process that decoded {clip.name} died: the file makes FFmpeg crash, or "
            "memory ran out."
        )


def _read(clip: Clip, settings: MediaSettings, threads: int = 1) -> _Material:
    """A clip of up to LONGEST s decoded; of a longer one only that it is. Never raises.

    threads : of the video decoder, 0 for all cores; the frames are the same
    """
    began = time.perf_counter()
    try:
        material = _decode(clip, settings, threads)
    except (MediaError, OSError) as error:
        reason = _first_line(error)
        if "could be decoded" in reason:
            reason += " The file is damaged throughout."
        material = _Material(reason=reason)
    material.seconds = time.perf_counter() - began
    return material


def _decode(clip: Clip, settings: MediaSettings, threads: int) -> _Material:
    crops = clip.faces is not None and settings.visual == "faces"
    stated = media.stated_seconds(clip.name)
    if crops and stated > LONGEST:
        raise MediaError(
            f"{clip.name} is {stated:.0f} s long; face crops can be given for clips of up to "
            f"{LONGEST:g} s"
        )
    if stated > LONGEST:
        return _Material(long=True, duration=stated)
    found, pieces = _Material(duration=0.0), []
    if clip.video is not None and not (crops and clip.audio is not None):
        wanted = {"frames": not crops, "sound": clip.audio is None}
        pieces.append(_decoded(clip.video, settings, threads=threads, **wanted))
    if clip.audio is not None:
        pieces.append(_decoded(clip.audio, settings, frames=False))
    for piece in pieces:
        if piece.images is not None:
            found.frames, found.times = _channels_first(piece.images), piece.times
        if piece.waveform is not None:
            found.waveform = media.as_int16(piece.waveform)
        found.duration = max(found.duration, piece.duration)
        found.damaged += piece.damaged
        found.problems += piece.problems
    if crops:
        _take_crops(found, clip, settings, stated)
    elif found.duration > LONGEST:
        return _Material(long=True, duration=found.duration)
    found.notes = _about_frames(settings, found.frames is not None and not crops)
    return found


def _decoded(path, settings: MediaSettings, threads: int = 1, **what):
    found = media.decode(
        path,
        fps=settings.fps,
        size=settings.image_size,
        sample_rate=SAMPLE_RATE,
        max_seconds=LONGEST + 1,
        threads=threads,
        sparse=True,
        **what,
    )
    if found.damaged and threads != 1:
        # What FFmpeg paints over damage depends on its threads; the corpus was read with one.
        return _decoded(path, settings, **what)
    return found


def _take_crops(found: _Material, clip: Clip, settings: MediaSettings, stated: float) -> None:
    images = media.face_frames(clip.faces, stated, settings.fps, settings.image_size)
    if not np.isfinite(found.duration) or found.duration == 0:
        found.duration = stated
    if images is None:
        found.problems.append(f"no face crop can be read in {clip.faces}")
        return
    found.frames = _channels_first(images)
    found.times = np.arange(len(images)) * found.duration / len(images)


def _channels_first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _cut_out(clip: Clip, settings: MediaSettings, start: float) -> _Material:
    """WINDOW s of a long clip from `start` on, with its pictures."""
    problems: list[str] = []
    end = start + WINDOW
    times, images = [], []
    if clip.video is not None:
        blocks = media.picture_blocks(clip.video, settings.fps, settings.image_size, problems)
        for block, when in blocks:
            inside = (when >= start) & (when < end)
            times.append(when[inside])
            images.append(block[inside])
            if when[-1] >= end:
                break
    waveform = media.sound_on_disk(clip.audio or clip.video, problems, SAMPLE_RATE)
    sound = None
    if waveform is not None:
        sound = np.array(waveform[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)])
    times = np.concatenate(times) - start if times else np.zeros(0)
    sounding = 0.0 if sound is None else len(sound) / SAMPLE_RATE
    duration = min(WINDOW, max(sounding, times[-1] + 1 / settings.fps if len(times) else 0.0))
    if start < 0 or not duration:
        raise ValueError(f"start: {clip.name} has nothing at {start:g} s; give a time within it")
    frames = _channels_first(np.concatenate(images)) if len(times) else None
    return _Material(
        frames=frames,
        times=times,
        waveform=sound if sound is not None and len(sound) else None,
        duration=duration,
        problems=problems,
        notes=_about_frames(settings, frames is not None),
    )


def _about_frames(settings: MediaSettings, taken: bool) -> list[str]:
    if settings.visual == "faces" and taken:
        return [
            "Frames are the middle square of the whole picture, as there is no face detector here; "
            "the model learnt from close crops of faces, so take what it makes of frames with "
            "caution, or give face crops."
        ]
    return []


# ----------------------------------------------------------------------------------------- windows


def _check_window(window, step) -> tuple[float | None, float | None]:
    """Window and step in s, None for a clip in one piece where it is short enough."""
    if window is None and step is None:
        return None, None
    window = WINDOW if window is None else float(window)
    step = window / 2 if step is None else float(step)
    if not 1 <= window <= LONGEST:
        raise ValueError(f"window: expected 1 to {LONGEST:g} s, came {window:g}")
    if not 0 < step <= window:
        raise ValueError(
            f"step: expected more than 0 and at most the window of {window:g} s, so that no part "
            f"of the clip is left out, came {step:g}"
        )
    return window, step


def _windows(duration: float, window: float | None, step: float | None):
    """(W,) starts and ends in s that cover a clip; the last window ends with the clip."""
    if window is None:
        window, step = (duration, duration) if duration <= LONGEST else (WINDOW, STEP)
    if not duration > window:
        return np.array([0.0]), np.array([duration])
    count = math.ceil((duration - window) / step - 1e-9)
    starts = np.append(np.arange(count) * step, duration - window)
    return starts, starts + window


def _about_windows(count: int, starts, ends, text: str | None) -> str:
    said = f"Mean over {count} windows of {ends[0] - starts[0]:g} s."
    return f"{said} Each is given all the words." if text else said


def _over_seeds(intensity: np.ndarray, bounded: bool) -> tuple[np.ndarray, np.ndarray]:
    """(S, E) → mean over seeds, clipped to [0, 1] where `bounded`, and sd (NaN for one seed)."""
    spread = np.full(intensity.shape[1], np.nan)
    if len(intensity) > 1:
        spread = intensity.std(axis=0, ddof=1)
    mean = intensity.mean(axis=0)
    return mean.clip(0, 1) if bounded else mean, spread


def _joined(texts: Sequence[str]) -> str | None:
    """The words of all windows: once where every window has the same."""
    distinct = list(dict.fromkeys(t for t in texts if t))
    return " ".join(distinct) or None


def _moved(shown, first: float):
    weights, borders, attention, spans = shown
    borders = None if borders is None else borders + first
    return weights, borders, attention, {name: span + first for name, span in spans.items()}


def _array(tensor) -> np.ndarray:
    return tensor.float().cpu().numpy().astype(np.float64)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


# ------------------------------------------------------------------------- the predictor's folder


def _folder_of(source) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{source} is a file; expected the folder of a model; {HOW_TO_EXPORT}")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        raise ValueError(f"There is no folder {source}; {HOW_TO_EXPORT}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=_FILES))
    except (OSError, ValueError) as error:  # the hub's own errors derive from these
        raise ValueError(
            f"{source} is neither a folder nor a model that the Hugging Face hub gives out "
            f"({_first_line(error)}); {HOW_TO_EXPORT}"
        ) from error


def _read_config(folder: Path) -> dict:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict) or config.get("kind") != KIND:
        raise ValueError(
            f"{folder} is no model of this package: it has no config.json that says "
            f'"kind": "{KIND}"; {HOW_TO_EXPORT}'
        )
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{folder} has format {config.get('format')!r}, this version ({__version__}) reads "
            f"{FORMAT}; take the version of emilib that wrote it"
        )
    lacking = {"model", "seeds", "media", "facts", "modalities", "emotions"} - config.keys()
    facts = config.get("facts")
    lacking |= _STATED - (facts.keys() if isinstance(facts, dict) else set())
    if lacking:
        raise ValueError(
            f"{folder}/config.json lacks {', '.join(sorted(lacking))}; {HOW_TO_EXPORT}"
        )
    return config


def _check_plain(folder: Path) -> None:
    """Refuse an encoder that would need a pickle or code of its own to be loaded."""
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} has no *.safetensors weights; {HOW_TO_EXPORT}")
    for path in folder.glob("*.json"):
        if '"auto_map"' in path.read_text("utf-8", errors="replace"):
            raise ValueError(f"{path} asks for code of its own to be run, which is not done here")


def _load_model(kind: str, folder: Path):
    from emilib import models
    from emilib.progress import quietly

    if kind not in models.__all__ or kind in ("Output", "ContrastivePair"):
        raise ValueError(f"model {kind!r} is unknown to this version ({__version__})")
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"{folder.name} has no model.safetensors")
    return quietly(getattr(models, kind).from_pretrained, str(folder))


# -------------------------------------------------------------------------- facts and the card


def _licence(source: str) -> str:
    known = manifest.get(source)
    return "see its source" if known is None else known.licence


def _facts(workspace, results, experiment: str) -> dict:
    from emilib import metrics

    outcome, rho = results[experiment], results.summary(experiment)
    each = np.mean([metrics.pearson(outcome.target, p) for p in outcome.predictions], axis=0)
    encoders = {}
    for role in _ROLES:
        config = getattr(workspace.profile, role)
        source = config.get("checkpoint")
        encoders[role] = {
            "source": "trained with this project on the training clips"
            if source is None
            else str(source),
            "licence": "MIT" if source is None else _licence(str(source)),
        }
    return {
        "experiment": experiment,
        "corpus": workspace.corpus_name,
        "synthetic": bool(workspace.is_synthetic),
        "profile": workspace.profile.name,
        "clips": {split: int(n) for split, n in workspace.clips["split"].value_counts().items()},
        # What follows the comma is advice for that machine.
        "words": workspace.transcript_source.partition(", as Whisper")[0].rstrip(".") + ".",
        "rho": float(rho.value),
        "rho_sd": float(rho.sd),
        "rho_of_each": dict(zip(outcome.targets, map(float, each), strict=True)),
        "encoders": encoders,
        "version": __version__,
    }


_TERMS = (
    "The weights were learnt from a corpus with terms of its own: ask its owners before you give "
    "them to others."
)


def _limits(facts: dict) -> str:
    if facts["synthetic"]:
        return (
            "It knows only drawn faces and synthetic voices: what it says about real people means "
            "nothing."
        )
    return (
        "It knows people who mimic a performance before a webcam, as its corpus shows them; other "
        "situations, languages and cameras are untried."
    )


def _what(emotions: Sequence[str]) -> str:
    if tuple(emotions) == EMOTIONS:
        return "six intensities in [0, 1]"
    return f"{len(emotions)} target{'s' * (len(emotions) != 1)} in the range of its corpus"


def _card(predictor: EmiPredictor) -> str:
    facts, media_ = predictor.facts, predictor.settings
    free = facts["synthetic"] and all(e["licence"] == "MIT" for e in facts["encoders"].values())
    clips = ", ".join(f"{n} {split}" for split, n in facts["clips"].items())
    visual = {"faces": "face crops", "video": "the middle square of whole frames"}[media_.visual]
    rho = [f"| {e} | {r:.3f} |" for e, r in facts["rho_of_each"].items()]
    encoders = [f"| {r} | {e['source']} | {e['licence']} |" for r, e in facts["encoders"].items()]
    model = type(next(iter(predictor.models.values()))).__name__
    lines = [
        "---",
        f"license: {'mit' if free else 'other'}",
        "library_name: emilib",
        "tags: [emotional-mimicry-intensity, multimodal]",
        "---",
        f"# {model} for emotional mimicry intensity ({facts['experiment']})",
        "",
        f"From a short video to {_what(predictor.emotions)}: {', '.join(predictor.emotions)}.",
        "",
        f"**{_limits(facts)}**",
        "",
        "```",
        "python -m emilib predict clip.mp4 --model THIS_FOLDER",
        "```",
        "",
        "## Data",
        "",
        f"Trained on the {facts['corpus']} (profile {facts['profile']}; clips: {clips}). "
        f"Frames are {visual}, {media_.fps:g} a second, {media_.image_size} pixels wide; sound is "
        f"mono at 16 kHz. {facts['words']}",
        "",
        "## How good it is",
        "",
        f"Mean Pearson ρ on the validation clips of that corpus: {facts['rho']:.3f} ± "
        f"{facts['rho_sd']:.3f} (sd over seeds {', '.join(map(str, predictor.models))}). The epoch "
        "was chosen on the same clips, so it is a little too high.",
        "",
        "| emotion | ρ, mean over seeds |",
        "| :-- | --: |",
        *rho,
        "",
        "## Limits",
        "",
        f"- {_limits(facts)}",
        "- A prediction is the mean over the seeds; their spread says how far training alone moves "
        "it, not how far it is from the truth.",
        "- There is no face detector: of other videos the middle square of the whole picture is "
        "taken" + (", unlike the face crops it learnt from." if media_.visual == "faces" else "."),
        "- Intensities are what annotators would say of a mimicked performance, not what somebody "
        "feels. Do not decide about people with it.",
        "",
        "## Parts",
        "",
        "| encoder | from | licence |",
        "| :-- | :-- | :-- |",
        *encoders,
        "",
        f"Fusion: {model}, one a seed, in `seed-N`. Written by emilib {facts['version']} (MIT).",
        *([] if facts["synthetic"] else ["", _TERMS]),
        "",
    ]
    return "\n".join(lines)
