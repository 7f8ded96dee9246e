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

How much a modality tells about the label is therefore a parameter put in by hand (`DESIGN`); the
ranking of the modalities on this corpus says nothing about people. So is what the channels have in
common, h: two contents of a clip correlate by h, and a contrast of face or voice with words (Stage
I of paper A) finds nothing else about emotions.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy.stats import gamma

from emilib import EMOTIONS

# FACS: ten units of the face, lids drooping (43), the head turned to either side (51, 52), up (53),
# down (54), tilted (55).
ACTION_UNITS = (
    *("au1", "au2", "au4", "au5", "au6", "au12", "au15", "au17", "au24", "au26"),
    *("au43", "au51", "au52", "au53", "au54", "au55"),
)
PROSODY = ("pitch", "range", "rate", "loudness", "tremor", "breath", "pause", "brightness")
ONE_SIDED = [PROSODY.index(name) for name in ("tremor", "breath", "pause")]  # cannot be negative
STRENGTHS = ("slight", "plain", "strong")

# Action units and prosody at full intensity of an emotion, after the FACS literature's prototypes.
# {} in a phrase takes a word of strength. A clip has one defect at most, about as often as there.
DATA = json.loads(Path(__file__).with_name("expressions.json").read_text("utf-8"))
FACE = pd.DataFrame(DATA["face"], ACTION_UNITS, EMOTIONS).fillna(0.0)
VOICE = pd.DataFrame(DATA["voice"], PROSODY, EMOTIONS).fillna(0.0)
WORDING, STRENGTH_WORDS, TOPICS = (DATA[name] for name in ("phrases", "strengths", "topics"))
NO_VOICE = ("no_audio_track", "silent", "too_short_audio")
NO_WORDS = (*NO_VOICE, "empty_transcript")  # without a voice there is nothing to transcribe


# The parameters of the module's equations; the file says what each is.
DESIGN = SimpleNamespace(**{name: value for name, (value, _) in DATA["design"].items()})


def draw(train=1600, validation=800, test=240, seed=0) -> SimpleNamespace:
    """Draw the N clips of a corpus: signals and labels, without rendering anything (0.1 s).

    Returns lists `id` and `split`, and arrays:
    defect : (N,) name, "" = none; person, seed, topic : (N,) int
    action_units : (N, 16) in [0, 1], amplitude at the peak
    prosody : (N, 8) in [-1, 1], difference from the person's habitual voice
    strength : (N, 6) int, 0 = the emotion is not spoken of, 1..3 = STRENGTHS
    label : (N, 6) in [0, 1]
    """
    rng = np.random.default_rng([seed, 1])
    # Five-digit ids: train and validation share one shuffled range, test follows.
    split = rng.permutation(["train"] * train + ["validation"] * validation).tolist()
    split += ["test"] * test
    seen = DESIGN.seeds - round(DESIGN.unseen * DESIGN.seeds)
    allowed = np.where(np.isin(split, "train"), seen, DESIGN.seeds)
    seeds, contents, latent, annotators = _perform(rng, len(split), allowed)
    agreement = np.clip(DESIGN.gain * (latent - _thresholds()), 0, 1)
    label = rng.binomial(annotators, agreement) / annotators
    topics = rng.permutation(np.arange(DESIGN.seeds) % len(TOPICS))
    person, first = np.zeros(len(split), int), 0
    for name, clips in (("train", train), ("validation", validation), ("test", test)):
        persons = max(1, round(DESIGN.people * clips / len(split)))
        person[np.isin(split, name)] = first + rng.integers(persons, size=clips)
        first += persons
    # Every kind of defect occurs at least once, but never in more than a quarter of the clips.
    order, used, defect = rng.permutation(len(split)), 0, np.full(len(split), "", object)
    for name, rate in DATA["defects"].items():
        count = min(max(1, round(rate * len(split))), len(split) // 4 - used)
        defect[order[used : used + count]] = name
        used += count

    def expressed(values, *hiding):  # zero where a defect hides the channel
        return np.where(np.isin(defect, hiding)[:, None], 0, values)

    intensity = 1 - np.exp(-DESIGN.squash * contents)
    face, voice = intensity[0] @ FACE.to_numpy().T, intensity[1] @ VOICE.to_numpy().T
    face += DESIGN.face_noise * np.abs(rng.standard_normal(face.shape))
    voice += DESIGN.voice_noise * rng.standard_normal(voice.shape)
    voice[:, ONE_SIDED] = np.maximum(voice[:, ONE_SIDED], 0)
    strength = np.digitize(contents[2], DESIGN.strengths)
    rank = np.argsort(np.argsort(-contents[2], axis=1, kind="stable"), axis=1)
    drawn = {"split": split, "defect": defect, "person": person, "seed": seeds}
    return SimpleNamespace(
        **drawn,
        id=[f"{i:05d}" for i in range(len(split))],
        topic=topics[seeds],
        action_units=expressed(1 - np.exp(-1.5 * face), "no_face"),  # a muscle saturates
        prosody=expressed(np.tanh(voice), *NO_VOICE),
        strength=expressed(np.where(rank < DESIGN.phrases, strength, 0), *NO_WORDS),
        label=label,
    )


def clips(drawn: SimpleNamespace) -> list[SimpleNamespace]:
    """A namespace for each clip that `draw` returned: its `number`, and its row of every field."""
    rows = ({name: rows[n] for name, rows in vars(drawn).items()} for n in range(len(drawn.id)))
    return [SimpleNamespace(number=n, **row) for n, row in enumerate(rows)]


def signals(drawn: SimpleNamespace) -> pd.DataFrame:
    """id, split, frames_* (action units), audio_* (8 of prosody), text_* (6 x 3 counts)."""
    columns = {"id": drawn.id, "split": drawn.split}
    columns |= {f"frames_{n}": drawn.action_units[:, j] for j, n in enumerate(ACTION_UNITS)}
    columns |= {f"audio_{n}": drawn.prosody[:, j] for j, n in enumerate(PROSODY)}
    for emotion, strength in zip(EMOTIONS, drawn.strength.T, strict=True):
        for level, name in enumerate(STRENGTHS, 1):
            column = f"text_{emotion.lower().replace(' ', '_')}_{name}"
            columns[column] = (strength == level).astype(int)
    return pd.DataFrame(columns)


def sentence(strength: np.ndarray, topic: int, rng: np.random.Generator) -> str:
    """The words of a clip: a phrase about its topic, one for each emotion of strength (6,) > 0."""
    about_topic, phrases = str(rng.choice(list(TOPICS.values())[topic])), []
    for e in np.flatnonzero(strength):
        bank = DATA["ambiguous"] if rng.random() < DESIGN.ambiguous else WORDING
        phrase = str(rng.choice(bank[EMOTIONS[e]]))
        phrases.append(phrase.format(rng.choice(STRENGTH_WORDS[strength[e] - 1])))
    phrases = phrases or [str(rng.choice(DATA["neutral"]))]
    phrases = [phrases[i] for i in rng.permutation(len(phrases))]
    phrases.insert(int(rng.integers(len(phrases) + 1)), about_topic)
    return " ".join(p[0].upper() + p[1:] + "." for p in phrases)


def _sparse(probability: np.ndarray) -> np.ndarray:
    """Quantile function of a content: unit variance, zero below 1 - present, gamma above."""
    mean = DESIGN.present * DESIGN.tail
    spread = np.sqrt(mean * (DESIGN.tail + 1) - mean**2)
    above = np.maximum(probability - (1 - DESIGN.present), 0) / DESIGN.present
    return gamma.ppf(above, DESIGN.tail) / spread


def _perform(rng, count: int, allowed=DESIGN.seeds):
    """Seeds (N,), contents c (3, N, 6), what annotators react to L (N, 6), and how many (N, 1)."""
    # s: the same values in every corpus, in another order, so that corpora are alike.
    grid = (np.arange(DESIGN.seeds) + 0.5) / DESIGN.seeds
    shared = np.stack([_sparse(rng.permutation(grid)) for _ in EMOTIONS], axis=1)
    seeds = rng.integers(allowed, size=count)
    own = _sparse(rng.random((3, count, len(EMOTIONS))))
    contents = np.sqrt(DESIGN.shared) * shared[seeds] + np.sqrt(1 - DESIGN.shared) * own
    weights = np.array([DESIGN.weight_face, DESIGN.weight_voice, DESIGN.weight_words])
    noise = DESIGN.noise * rng.standard_normal((count, len(EMOTIONS)))
    annotators = rng.integers(*DESIGN.annotators, size=(count, 1), endpoint=True)
    return seeds, contents, np.tensordot(weights, contents, axes=1) + noise, annotators


def _thresholds() -> np.ndarray:
    """(6,) thresholds that give the wanted share of labels above zero, by bisection."""
    _, _, latent, annotators = _perform(np.random.default_rng(0), 8000)
    low, high = np.full(len(EMOTIONS), -3.0), np.full(len(EMOTIONS), 8.0)
    for _ in range(30):
        middle = (low + high) / 2
        none = (1 - np.clip(DESIGN.gain * (latent - middle), 0, 1)) ** annotators
        too_many = (1 - none).mean(axis=0) > np.array(DESIGN.nonzero)
        low, high = np.where(too_many, middle, low), np.where(too_many, high, middle)
    return (low + high) / 2
