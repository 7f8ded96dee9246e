"""Faces: drawn ones at known places, one person among others, and crops as they are kept."""

import dataclasses
import shutil

import numpy as np
import pytest
from conftest import portrait, sine, write_media

from emilib import profiles
from emilib.cache import Cache
from emilib.corpus import CorpusError, faces, media, read
from emilib.predict.clip import Clip, MediaSettings, read_clip
from emilib.reader import CorpusReader
from emilib.synthetic import face


def scene(*people):
    """Drawn people as (person, size, left, top) on a wall, and the squares around their faces."""
    image, squares = np.full((240, 400, 3), 90, np.uint8), []
    for person, size, left, top in people:
        motion, rng = np.zeros((1, len(face.MOTION))), np.random.default_rng(person)
        motion[0, face.MOTION.index("au12")] = left / 400  # smiles more, further to the right
        picture = face.render(face.appearance(rng), motion, (size, size), rng)[0]
        image[top : top + size, left : left + size] = picture
        squares.append(face.boxes(motion, (size, size))[0] + np.tile([left, top], 2))
    return image, squares


@pytest.mark.parametrize(("size", "scale"), [(60, 1), (200, 1), (100, 5)])
def test_drawn_faces_are_found_where_they_were_pasted(size, scale):
    for person in range(6):
        image, [known] = scene((person, size, 20 * person, 5 * person))
        image = image.repeat(scale, axis=0).repeat(scale, axis=1)
        [box] = faces.find(image)
        a, b = np.array(faces.square(box, image.shape)), scale * known
        both = np.prod(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]))
        assert both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both) > 0.75
    assert len(faces.find(np.zeros((3, 2000, 3), np.uint8))) == len(faces.find(scene()[0])) == 0


def test_one_person_is_followed_past_another_through_a_gap_and_a_cut():
    moves = [[(1, 110, 10 + 20 * t, 10), (2, 110, 260 - 20 * t, 125)] for t in range(8)]
    frames = [scene(*people) for people in (*moves, [], [(2, 110, 150, 10)], [(1, 130, 200, 90)])]
    crops = [faces.crops(image) for image, _ in frames]
    rows = faces.follow(crops)
    assert rows[8:] == [None, None, 0]
    for (boxes, _), row, (_, squares) in zip(crops[:8], rows[:8], frames[:8], strict=True):
        middles = [box.reshape(2, 2).mean(axis=0) for box in (boxes[row], squares[0])]
        np.testing.assert_allclose(*middles, atol=12)
    assert faces.follow([]) == []


def test_crops_of_own_clips_reach_the_store_prediction_and_face_images(tmp_path):
    for name, last in (("all", 10), ("half", 5), ("none", 0)):  # frames with a face, of ten
        make = lambda n, *size, last=last: portrait(n if n < last else None, *size)  # noqa: E731
        options = {"size": (120, 160), "rate": 10, "make": make}
        write_media(tmp_path / f"{name}.mp4", np.arange(10) / 10, sine(300, 1), **options)
    others = [f"other{n}" for n in range(9)]  # a set has at least 8 + 4 clips
    for name in others:
        shutil.copy(tmp_path / "none.mp4", tmp_path / f"{name}.mp4")
    rows = ["file,x,split", "all,1,train", "half,2,train", "none,3,val"]
    rows += [f"{name},{n},{'train' if n < 6 else 'val'}" for n, name in enumerate(others)]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    profile = dataclasses.replace(profiles.smoke(), fps=10)
    reader, ids = CorpusReader(tmp_path, Cache(tmp_path / "cache"), 1), ["all", "half", "none"]
    rows = list(reader.decoded(ids, profile=profile, kept=None))
    assert [row["seen"].tolist() for row in rows] == [[1] * 10, [1] * 5 + [0] * 5, [0] * 10]
    assert (rows[0]["frames"].shape, rows[2]["frames"]) == ((10, 3, 64, 64), None)
    profile = dataclasses.replace(profile, visual="video")
    [row] = reader.decoded(["half"], profile=profile, kept=None)
    assert (len(row["frames"]), row["seen"]) == (10, None)
    clip = read_clip(Clip(tmp_path / "half.mp4"), MediaSettings(10, 64, "faces", 1))
    np.testing.assert_array_equal(clip.frames, rows[1]["frames"])
    assert (len(clip.times), clip.notes) == (5, ["A face was found in 5 of 10 frames."])
    shares = faces.write(read(tmp_path), workers=1).set_index("id")["share"]
    assert shares[ids].to_list() == [1, 0.5, 0]
    assert not shares[others].any()
    pictures = media.face_frames(read(tmp_path).set_index("id")["faces"]["half"], 1.0, None)
    direct = faces.decode(tmp_path / "half.mp4", None).images
    assert pictures.shape == (5, 160, 160, 3)
    assert np.abs(pictures - direct.astype(int)).mean() < 3  # JPEG
    with pytest.raises(CorpusError, match="remove it"):
        faces.write(read(tmp_path))
