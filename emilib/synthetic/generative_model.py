"""What every clip of the embedded corpus shows, sounds like, says and is labelled; no media.

The corpus mimics how Hume-Vidmimic2 came about. There are some eighty *seed performances*; a
participant watches one and mimics it before a webcam; annotators then mark which emotions they see.
For clip n with seed k(n), emotion e and channel m in (face V, voice A, words T)

    c_m[n, e]  = sqrt(h) * s[k(n), e] + sqrt(1 - h) * u_m[n, e]          content of a channel
    L[n, e]    = w_V c_V[n, e] + w_A c_A[n, e] + w_T c_T[n, e] + noise   what annotators react to
    p[n, e]    = clip(gain * (L[n, e] - threshold[e]), 0, 1)
    label      = k / N,   k ~ Binomial(N, p),   N uniform in 3..9        share of annotators

s and u are independent, non-negative, mostly zero and heavy-tailed (a gamma variable that is
present with probability `present`), scaled to unit variance: most emotions are absent. threshold[e]
is set so that the share of labels above zero is that of the real training set. The contents are
then *expressed*, each with its losses (`expressions.json`): action units saturate and are shared
between emotions, eight prosody values carry six emotions, words come in three strengths and at most
three phrases a clip. The identity of the person is independent of all of this.

How much a modality tells about the label is therefore a parameter put in by hand (`Design`); the
ranking of the modalities on this corpus says nothing about people.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy.stats import gamma

from emilib import EMOTIONS

# FACS: ten units of the face, lids drooping (43), and the head: turned to either side (51, 52), up
# (53), down (54), tilted (55).
ACTION_UNITS = (
    *("au1", "au2", "au4", "au5", "au6", "au12", "au15", "au17", "au24", "au26"),
    *("au43", "au51", "au52", "au53", "au54", "au55"),
)
PROSODY = ("pitch", "range", "rate", "loudness", "tremor", "breath", "pause", "brightness")
ONE_SIDED = [PROSODY.index(name) for name in ("tremor", "breath", "pause")]  # cannot be negative
STRENGTHS = ("slight", "plain", "strong")

# Amplitudes of action units and changes of prosody at full intensity of an emotion, after the FACS
# literature's usual prototypes: smiles (6, 12) serve four emotions, raised brows (1, 2) three.
# {} in a phrase takes a word of strength; the words around it are shared on purpose.
_BANKS = json.loads(Path(__file__).with_name("expressions.json").read_text("utf-8"))
FACE = pd.DataFrame(_BANKS["face"], ACTION_UNITS, EMOTIONS).fillna(0.0)
VOICE = pd.DataFrame(_BANKS["voice"], PROSODY, EMOTIONS).fillna(0.0)
WORDING, STRENGTH_WORDS, TOPICS = (_BANKS[n] for n in ("phrases", "strengths", "topics"))

# Mutually exclusive defects, with their share among the labelled and test clips, in the order in
# which a small corpus gets them. The shares are those of the real set or a little above.
DEFECT_RATES = {
    "no_face": 0.04,
    "no_audio_track": 0.02,
    "silent": 0.02,
    "empty_transcript": 0.02,
    "lying_rate": 0.06,
    "damaged": 0.02,
    "too_short_audio": 0.01,
    "unreadable": 0.003,
    "rotated": 0.004,
}
NO_VOICE = ("no_audio_track", "silent", "too_short_audio")
NO_WORDS = (*NO_VOICE, "empty_transcript")  # without a voice there is nothing to transcribe


@dataclass(frozen=True)
class Design:
    """The parameters of the corpus as a statistical object; see the module's equations."""

    seeds: int = 80  # seed performances
    people: int = 60  # persons, each in several clips of every split
    shared: float = 0.2  # h: share of a content's variance that comes from the seed
    weight_face: float = 0.22  # w_V
    weight_voice: float = 0.38  # w_A
    weight_words: float = 0.52  # w_T
    noise: float = 0.30  # standard deviation of what no channel tells
    gain: float = 0.8  # how fast annotators agree above the threshold
    present: float = 0.35  # probability that s or u is not zero
    tail: float = 2.0  # shape of the gamma variable; smaller is heavier-tailed
    annotators: tuple[int, int] = (3, 9)  # fewest and most
    # Share of labels above zero in the real training set, in the order of EMOTIONS.
    nonzero: tuple[float, ...] = (0.447, 0.364, 0.325, 0.101, 0.382, 0.325)
    squash: float = 0.7  # intensity = 1 - exp(-squash * content), in [0, 1)
    face_noise: float = 0.15  # spread of an action unit that means nothing
    voice_noise: float = 0.08  # spread of a prosody value that means nothing
    ambiguous: float = 0.10  # share of phrases that could mean another emotion too
    phrases: int = 3  # most phrases about emotions in a clip
    strengths: tuple[float, float, float] = (0.3, 1.1, 2.2)  # content from which STRENGTHS begin


@dataclass
class Performances:
    """N clips before they are filmed."""

    id: list[str]
    split: list[str]
    defect: list[str]  # "" = none
    person: np.ndarray  # (N,) int
    seed: np.ndarray  # (N,) int
    topic: np.ndarray  # (N,) int
    action_units: np.ndarray  # (N, 16) in [0, 1], amplitude at the peak
    prosody: np.ndarray  # (N, 8) in [-1, 1], difference from the person's habitual voice
    strength: np.ndarray  # (N, 6) int, 0 = the emotion is not spoken of, 1..3 = STRENGTHS
    label: np.ndarray  # (N, 6) in [0, 1]; NaN for test and unlabelled clips
    latent_label: np.ndarray  # (N, 6), the same for every clip, never written to the corpus

    def clips(self) -> list[SimpleNamespace]:
        """A namespace for each clip: its `number`, and its row of every field."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return [
            SimpleNamespace(number=n, **{name: rows[n] for name, rows in columns.items()})
            for n in range(len(self.id))
        ]

    def signals(self) -> pd.DataFrame:
        """id, split, frames_* (action units), audio_* (8 of prosody), text_* (6 x 3 counts)."""
        columns = {"id": self.id, "split": self.split}
        columns |= {f"frames_{n}": self.action_units[:, j] for j, n in enumerate(ACTION_UNITS)}
        columns |= {f"audio_{n}": self.prosody[:, j] for j, n in enumerate(PROSODY)}
        for e, emotion in enumerate(EMOTIONS):
            for level, strength in enumerate(STRENGTHS, 1):
                name = f"text_{emotion.lower().replace(' ', '_')}_{strength}"
                columns[name] = (self.strength[:, e] == level).astype(int)
        return pd.DataFrame(columns)


def draw(
    train=400, validation=240, test=60, unlabelled=0, seed=0, design: Design | None = None
) -> Performances:
    """Draw the clips of a corpus: signals and labels, without rendering anything (0.1 s).

    Mean Pearson correlation on the 240 validation clips of regressions fitted on the clean signals
    of the 400 training clips, mean over corpus seeds 0-9 (in brackets the spread between seeds):

    |              | V          | A          | T          | V+A  | V+T  | A+T  | V+A+T      |
    |--------------|------------|------------|------------|------|------|------|------------|
    | ridge        | .32 (.017) | .46 (.015) | .58 (.023) | .50  | .63  | .68  | .70 (.011) |
    | kernel ridge | .34 (.018) | .47 (.017) | .58 (.025) | .52  | .63  | .69  | .71 (.014) |

    Labels above zero, in the order of EMOTIONS, over the same seeds: .46 .37 .32 .10 .38 .33.
    """
    design, rng = design or Design(), np.random.default_rng([seed, 1])
    # Five-digit ids: train and validation share one shuffled range, the others follow.
    split = rng.permutation(["train"] * train + ["validation"] * validation).tolist()
    split += ["test"] * test + ["unlabelled"] * unlabelled
    shared = _shared_contents(design, rng)
    seeds = rng.integers(design.seeds, size=len(split))
    contents = _contents(shared[seeds], design, rng)
    label = _annotate(contents, design, rng)
    topics = rng.permutation(np.arange(design.seeds) % len(TOPICS))
    person = rng.integers(design.people, size=len(split))
    defect = _defects(split, rng)
    return Performances(
        id=[f"{i:05d}" for i in range(len(split))],
        split=split,
        defect=defect,
        person=person,
        seed=seeds,
        topic=topics[seeds],
        action_units=_hide(_express_face(contents[0], design, rng), defect, ("no_face",)),
        prosody=_hide(_express_voice(contents[1], design, rng), defect, NO_VOICE),
        strength=_hide(_express_words(contents[2], design), defect, NO_WORDS),
        label=np.where(np.isin(split, ("train", "validation"))[:, None], label, np.nan),
        latent_label=label,
    )


def sentence(strength: np.ndarray, topic: int, rng: np.random.Generator, design: Design) -> str:
    """The words of a clip: a phrase about its topic and one for every emotion spoken of.

    strength : (6,) int in 0..3
    """
    about_topic, phrases = str(rng.choice(list(TOPICS.values())[topic])), []
    for e in np.flatnonzero(strength):
        bank = _BANKS["ambiguous"] if rng.random() < design.ambiguous else WORDING
        phrase = str(rng.choice(bank[EMOTIONS[e]]))
        phrases.append(phrase.format(rng.choice(STRENGTH_WORDS[strength[e] - 1])))
    phrases = phrases or [str(rng.choice(_BANKS["neutral"]))]
    phrases = [phrases[i] for i in rng.permutation(len(phrases))]
    phrases.insert(int(rng.integers(len(phrases) + 1)), about_topic)
    return " ".join(p[0].upper() + p[1:] + "." for p in phrases)


def _sparse(probability: np.ndarray, design: Design) -> np.ndarray:
    """Quantile function of a content: unit variance, zero below 1 - present, gamma above."""
    mean = design.present * design.tail
    spread = np.sqrt(mean * (design.tail + 1) - mean**2)
    above = np.maximum(probability - (1 - design.present), 0) / design.present
    return gamma.ppf(above, design.tail) / spread


def _shared_contents(design: Design, rng) -> np.ndarray:
    """(seeds, 6): every corpus has the same values, in another order, so that corpora are alike."""
    grid = (np.arange(design.seeds) + 0.5) / design.seeds
    return np.stack([_sparse(rng.permutation(grid), design) for _ in EMOTIONS], axis=1)


def _contents(shared: np.ndarray, design: Design, rng) -> np.ndarray:
    """c: (3, N, 6), contents of face, voice and words, mixed from the seed's part and their own."""
    own = _sparse(rng.random((3, *shared.shape)), design)
    return np.sqrt(design.shared) * shared + np.sqrt(1 - design.shared) * own


def _population(contents: np.ndarray, design: Design, rng):
    """What annotators react to, L (N, 6), and the number of annotators of each clip (N, 1)."""
    weights = np.array([design.weight_face, design.weight_voice, design.weight_words])
    noise = design.noise * rng.standard_normal(contents.shape[1:])
    fewest, most = design.annotators
    annotators = rng.integers(fewest, most + 1, size=(contents.shape[1], 1))
    return np.tensordot(weights, contents, axes=1) + noise, annotators


def _annotate(contents: np.ndarray, design: Design, rng) -> np.ndarray:
    """(N, 6) share of annotators who marked the emotion."""
    latent, annotators = _population(contents, design, rng)
    agreement = np.clip(design.gain * (latent - _thresholds(design)), 0, 1)
    return rng.binomial(annotators, agreement) / annotators


def _thresholds(design: Design, population: int = 8000) -> np.ndarray:
    """(6,) thresholds that give the wanted share of labels above zero, by bisection."""
    rng = np.random.default_rng(0)
    shared = _shared_contents(design, rng)[rng.integers(design.seeds, size=population)]
    latent, annotators = _population(_contents(shared, design, rng), design, rng)
    low, high = np.full(len(EMOTIONS), -3.0), np.full(len(EMOTIONS), 8.0)
    for _ in range(30):
        middle = (low + high) / 2
        none = (1 - np.clip(design.gain * (latent - middle), 0, 1)) ** annotators
        too_many = (1 - none).mean(axis=0) > np.array(design.nonzero)
        low, high = np.where(too_many, middle, low), np.where(too_many, high, middle)
    return (low + high) / 2


def _intensity(content: np.ndarray, design: Design) -> np.ndarray:
    return 1 - np.exp(-design.squash * content)


def _express_face(content: np.ndarray, design: Design, rng) -> np.ndarray:
    amplitude = _intensity(content, design) @ FACE.to_numpy().T
    amplitude = amplitude + design.face_noise * np.abs(rng.standard_normal(amplitude.shape))
    return 1 - np.exp(-1.5 * amplitude)  # a muscle saturates


def _express_voice(content: np.ndarray, design: Design, rng) -> np.ndarray:
    change = _intensity(content, design) @ VOICE.to_numpy().T
    change = change + design.voice_noise * rng.standard_normal(change.shape)
    change[:, ONE_SIDED] = np.maximum(change[:, ONE_SIDED], 0)
    return np.tanh(change)


def _express_words(content: np.ndarray, design: Design) -> np.ndarray:
    strength = np.digitize(content, design.strengths)
    rank = np.argsort(np.argsort(-content, axis=1, kind="stable"), axis=1)
    return np.where(rank < design.phrases, strength, 0)


def _defects(split: list[str], rng) -> list[str]:
    """One defect name or "" a clip. Every kind at least once, but never over a quarter of clips."""
    clips = [i for i, name in enumerate(split) if name != "unlabelled"]
    order, room = rng.permutation(clips), len(clips) // 4
    defect, used = [""] * len(split), 0
    for name, rate in DEFECT_RATES.items():
        count = min(max(1, round(rate * len(clips))), room - used)
        for i in order[used : used + count]:
            defect[i] = name
        used += count
    return defect


def _hide(expressed: np.ndarray, defect: list[str], hiding: tuple[str, ...]) -> np.ndarray:
    """Zero where a defect keeps the channel from being expressed."""
    return np.where(np.isin(defect, hiding)[:, None], 0, expressed)
