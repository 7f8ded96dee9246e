"""Drawn people: a shaded head with ten action units (`drawing`, about a millisecond a frame)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from emilib.synthetic import drawing
from emilib.synthetic.drawing import BOB, BUN, CURLY, EYE_Y, LONG, PARTED, SPAN

_PALETTE = json.loads(Path(__file__).with_name("palette.json").read_text("utf-8"))
COLOURS = {name: np.array(rows) for name, rows in _PALETTE.items()}  # RGB in [0, 1]
# Columns of a motion array (T, 19): ten action units and the eyelids in [0, 1], lips rounded by
# speech, head rotation in radians, head position and gaze in head units.
MOTION = (
    *("au1", "au2", "au4", "au5", "au6", "au12", "au15", "au17", "au24", "au26"),
    *("blink", "pucker", "yaw", "pitch", "roll", "x", "y", "gaze_x", "gaze_y"),
)
GRAIN = 0.008  # spread of the camera's noise
_COLOURS = ("skin", "hair", "iris", "wall", "shirt", "light")
_NUMBERS = ("style", "beard", "glasses", "width", "height", "eye_x", "eye_size", "nose", "mouth")
_NUMBERS += ("brow", "hairline", "part", "window")
_TURNS = ("yaw", "pitch", "roll")
_SINES = tuple(f"{function}_{turn}" for turn in _TURNS for function in ("cos", "sin"))
# All that a frame is drawn from: appearance, motion, and the sines of the head's rotation.
FRAME = np.dtype(
    [(name, float, 3) for name in _COLOURS]
    + [(name, float) for name in (*_NUMBERS, *MOTION, *_SINES)]
)


class Appearance(SimpleNamespace):
    """What a person looks like, and the room behind. Lengths are in head units, see `drawing`."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Appearance:
        feminine = rng.random() < 0.5
        women, men = [PARTED, BOB, LONG, CURLY, BUN], [0, 0, 0, 1, 1, 1, 1, 4, 4, 6]
        style = rng.choice(women if feminine else men)
        skin = COLOURS["skin"]
        tone = rng.uniform(0, len(skin) - 1.001)
        low = int(tone)
        dark = tone > 2.4  # dark skin comes with dark hair mostly

        def tint(name, shades, low, high):
            return COLOURS[name][rng.integers(shades)] * rng.uniform(low, high)

        hair = tint("hair", 2 if dark else 5, 0.85, 1.15)
        lamp = np.array([rng.choice([-1, 1]) * rng.uniform(0.25, 0.6), rng.uniform(-0.7, -0.4), 1])
        return cls(
            skin=skin[low] * (low + 1 - tone) + skin[low + 1] * (tone - low),
            hair=hair,
            iris=COLOURS["iris"][rng.choice([0, 3]) if dark else rng.integers(4)],
            wall=tint("wall", 5, 0.88, 1.04),
            shirt=tint("shirt", 7, 0.85, 1.15),
            light=lamp / np.linalg.norm(lamp),  # towards the lamp
            style=int(style),  # drawing.CROPPED .. BALD
            feminine=feminine,
            beard=0.0 if feminine or rng.random() < 0.55 else rng.uniform(0.35, 0.9),
            glasses=rng.random() < 0.18,
            width=rng.uniform(0.60, 0.66),  # half the head's
            height=rng.uniform(0.82, 0.89),  # half the head's
            eye_x=rng.uniform(0.235, 0.265),
            eye_size=rng.uniform(0.105, 0.122),
            nose=rng.uniform(0.075, 0.10),
            mouth=rng.uniform(0.20, 0.235),  # half its width at rest
            brow=rng.uniform(0.012, 0.018) + (0 if feminine else 0.006),  # half its thickness
            hairline=rng.uniform(-0.60, -0.52),
            part=rng.choice([-1, 1]) * rng.uniform(0.1, 0.3),  # of the hair
            window=rng.uniform(-1.0, 1.0),  # where light falls on the wall
        )


def render(appearance: Appearance, motion, size: tuple[int, int], rng, empty=False) -> np.ndarray:
    """Frames of a motion (T, 19): (T, height, width, 3) uint8 RGB.

    size : height and width in pixels; rng : of the camera's noise; empty : the room alone
    """
    if motion.ndim != 2 or motion.shape[1] != len(MOTION):
        raise ValueError(f"motion: expected (T, {len(MOTION)}), got {motion.shape}")
    p = np.recarray(len(motion), FRAME)
    for name in (*_COLOURS, *_NUMBERS):
        p[name] = getattr(appearance, name)
    for name, column in zip(MOTION, motion.T, strict=True):
        p[name] = column
    for turn in _TURNS:
        p[f"cos_{turn}"], p[f"sin_{turn}"] = np.cos(p[turn]), np.sin(p[turn])
    # Drawn once a clip and read at a moving offset: far cheaper than noise for each pixel.
    grain = (GRAIN * rng.standard_normal(1 << 14)).astype(np.float32)
    # Allocated here: code that allocates takes Numba seconds longer to compile.
    frames = np.empty((len(motion), *size, 3), np.uint8)
    drawing.render(frames, p.view(np.ndarray), _bumps(p), grain, empty)
    return frames


def head_box(motion: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(T, 4) squares around the face in pixels: left, top, right, bottom (may be outside)."""
    scale = min(size) / SPAN
    x = size[1] / 2 + motion[:, MOTION.index("x")] * scale
    y = size[0] / 2 + (motion[:, MOTION.index("y")] + 0.02) * scale
    half = 0.94 * scale
    return np.stack([x - half, y - half, x + half, y + half], axis=1)


def _bumps(p: np.recarray) -> np.ndarray:
    """The relief of half a face, (T, K, 5): height, u, v, 1 / width, 1 / height."""
    half, _, _, _ = drawing.mouth_geometry.py_func(p)
    lifted = 0.17 - 0.05 * p.au12 - 0.03 * p.au6
    fold = -0.008 - 0.020 * p.au12 - 0.006 * p.au6
    bumps = (
        (0.130, 0.0, 0.13, p.nose, 0.10),  # tip of the nose
        (0.085, 0.0, -0.04, 0.055, 0.20),  # its bridge
        (0.040, 0.0, 0.40, 0.20, 0.10),  # around the mouth
        (0.055, 0.0, 0.70, 0.17, 0.11),  # chin
        (-0.025 - 0.03 * p.au17, 0.0, 0.575, 0.13, 0.04),  # fold above the chin
        (-0.03 * p.au4, 0.0, -0.24, 0.025, 0.07),  # between the brows
        (0.035, p.nose * 0.9, 0.155, 0.045, 0.04),  # wing of the nose
        (0.03 + 0.055 * p.au6 + 0.045 * p.au12, 0.32, lifted, 0.15, 0.12),  # cheek
        (0.045, p.eye_x, -0.27 - 0.04 * p.au2, 0.17, 0.06),  # brow ridge
        (-0.055, p.eye_x, EYE_Y, 0.15, 0.085),  # socket
        (fold, half + 0.055, 0.33, 0.03, 0.12),  # nose to mouth
    )
    table = np.array([[np.broadcast_to(number, len(p)) for number in bump] for bump in bumps])
    table[:, 3:] = 1.0 / table[:, 3:]  # multiplying is cheaper than dividing for every pixel
    return np.ascontiguousarray(table.transpose(2, 0, 1))
