"""Drawn people: a shaded head with ten action units (`drawing`, about a millisecond a frame)."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from emilib.synthetic import drawing
from emilib.synthetic.drawing import BOB, BUN, CURLY, LONG, PARTED, SPAN

# Colours are RGB in [0, 1]. A stroke is a round spot on both halves of the face, which makes it
# darker or warmer, or its relief higher; {"one": 0.03, "au6": 0.055} means 0.03 + 0.055 au6.
_PALETTE = json.loads(Path(__file__).with_name("palette.json").read_text("utf-8"))
COLOURS = {name: np.array(rows) for name, rows in _PALETTE["colours"].items()}
# Columns of a motion array (T, 19): ten action units and the eyelids in [0, 1], lips rounded by
# speech, head rotation in radians, head position and gaze in head units.
MOTION = (
    *("au1", "au2", "au4", "au5", "au6", "au12", "au15", "au17", "au24", "au26"),
    *("blink", "pucker", "yaw", "pitch", "roll", "x", "y", "gaze_x", "gaze_y"),
)
GRAIN = 0.008  # spread of the camera's noise


def appearance(rng: np.random.Generator) -> SimpleNamespace:
    """What a person looks like, and the room behind. Lengths are in head units, see `drawing`."""
    feminine = rng.random() < 0.5
    women, men = [PARTED, BOB, LONG, CURLY, BUN], [0, 0, 0, 1, 1, 1, 1, 4, 4, 6]
    style = int(rng.choice(women if feminine else men))
    skin = COLOURS["skin"]
    tone = rng.uniform(0, len(skin) - 1.001)
    low = int(tone)
    dark = tone > 2.4  # dark skin comes with dark hair mostly

    def tint(name, shades, low, high):
        return COLOURS[name][rng.integers(shades)] * rng.uniform(low, high)

    hair = tint("hair", 2 if dark else 5, 0.85, 1.15)
    lamp = np.array([rng.choice([-1, 1]) * rng.uniform(0.25, 0.6), rng.uniform(-0.7, -0.4), 1])
    return SimpleNamespace(
        skin=skin[low] * (low + 1 - tone) + skin[low + 1] * (tone - low),
        hair=hair,
        iris=COLOURS["iris"][rng.choice([0, 3]) if dark else rng.integers(4)],
        wall=tint("wall", 5, 0.88, 1.04),
        shirt=tint("shirt", 7, 0.85, 1.15),
        light=lamp / np.linalg.norm(lamp),  # towards the lamp
        feminine=feminine,
        beard=0.0 if feminine or rng.random() < 0.55 else rng.uniform(0.35, 0.9),
        glasses=rng.random() < 0.18,
        **{name: rng.uniform(*ends) for name, ends in _PALETTE["sizes"].items()},
        brow=rng.uniform(0.012, 0.018) + (0 if feminine else 0.006),  # half its thickness
        hairline=rng.uniform(-0.60, -0.52),
        part=rng.choice([-1, 1]) * rng.uniform(0.1, 0.3),  # of the hair
        window=rng.uniform(-1.0, 1.0),  # where light falls on the wall
        style=style,
        **list(_PALETTE["styles"].values())[style],  # of the hair
    )


def render(person: SimpleNamespace, motion, size: tuple[int, int], rng, empty=False) -> np.ndarray:
    """Frames of a motion (T, 19): (T, height, width, 3) uint8 RGB.

    person : of `appearance`; size : height and width in pixels
    rng : of the camera's noise; empty : the room alone
    """
    p = {name: np.tile(value, (len(motion), 1)) for name, value in vars(person).items()}
    p |= dict(zip(MOTION, motion.T[..., None], strict=True))
    for turn in ("yaw", "pitch", "roll"):
        p[f"cos_{turn}"], p[f"sin_{turn}"] = np.cos(p[turn]), np.sin(p[turn])
    # The mouth: half its width, the height of its centre, the lift of its corners, its opening.
    p["half"] = p["mouth"] * (1.0 + 0.34 * p["au12"] - 0.14 * p["au24"] - 0.28 * p["pucker"])
    p["centre"] = 0.435 + 0.035 * p["au26"] - 0.02 * p["au17"] + 0.015 * p["au12"]
    p["lift"] = 0.026 + 0.115 * p["au12"] - 0.095 * p["au15"]
    p["gap"] = 0.16 * p["au26"] * (1.0 - 0.7 * p["au24"]) + 0.035 * p["au12"] * (1.0 - p["au24"])
    record = np.dtype([(name, float, (3,) if v.shape[1] == 3 else ()) for name, v in p.items()])
    table = np.concatenate(list(p.values()), axis=1).astype(float).view(record)[:, 0]
    # Drawn once a clip and read at a moving offset: far cheaper than noise for each pixel.
    grain = (GRAIN * rng.standard_normal(1 << 14)).astype(np.float32)
    # Allocated here: code that allocates takes Numba seconds longer to compile.
    frames = np.empty((len(motion), *size, 3), np.uint8)
    drawing.render(frames, table, _strokes(p), grain, empty)
    return frames


def _strokes(p: dict) -> np.ndarray:
    """(T, K, 8): relief, dark, warm, u, v, slant, 1 / width, 1 / height of the strokes."""
    names = ("relief", "dark", "warm", "u", "v", "slant", "width", "height")
    strokes = np.zeros((len(p["yaw"]), len(_PALETTE["strokes"]), len(names)))
    for k, stroke in enumerate(_PALETTE["strokes"].values()):
        for column, name in enumerate(names):
            terms = stroke.get(name, 0.0)
            for term, factor in (terms if isinstance(terms, dict) else {"one": terms}).items():
                strokes[:, k, column] += factor * (1.0 if term == "one" else p[term][:, 0])
    strokes[..., 6:] = 1.0 / strokes[..., 6:]  # multiplying is cheaper for every pixel
    return strokes


def boxes(motion: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(T, 4) squares around the face in pixels, inside the picture: left, top, right, bottom."""
    scale = min(size) / SPAN
    side = min(1.88 * scale, *size)
    x = size[1] / 2 + motion[:, MOTION.index("x")] * scale - side / 2
    y = size[0] / 2 + (motion[:, MOTION.index("y")] + 0.02) * scale - side / 2
    x, y = np.clip(x, 0, size[1] - side), np.clip(y, 0, size[0] - side)
    return np.stack([x, y, x + side, y + side], axis=1)
