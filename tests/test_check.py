"""What is refused before a run begins: pickles of other kinds and widths, splits without files."""

import io
import os
import pickle
import time

import numpy as np
import pytest

from emilib.corpus import CorpusError, audit, defects, feature_files, read
from emilib.corpus.layout import HEADER

LABELS = "0,0.5,1,0,0.25,0.333"


class Runs:
    """A pickle that would run a command when it is read."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.fixture
def corpus(tmp_path):
    for split, ids in (("train", range(6)), ("valid", range(6, 9))):
        rows = [f"{i:05d},{LABELS}" for i in ids]
        (tmp_path / f"{split}_split.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    for folder, width in (("vit", 12), ("wav2vec2", 20)):
        (tmp_path / folder).mkdir()
        for i in range(9):
            put(tmp_path, folder, i, np.ones((5 + i, width), np.float32))
    return tmp_path


def put(corpus, folder, number, content, protocol=4):
    path = corpus / folder / f"{number:05d}.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def found_by_audit(corpus):
    table = audit(corpus, workers=1)
    return table[table["defect"] == "bad features"].set_index("id")["detail"].to_dict()


def test_a_good_corpus_has_nothing_to_say(corpus):
    assert defects.before_a_run(corpus) == []


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("shape", [(3, 4), (700, 768), (768,)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ">f8"])
def test_a_shape_is_that_of_the_whole_array(tmp_path, protocol, shape, dtype):
    (tmp_path / "vit").mkdir()
    path = put(tmp_path, "vit", 0, np.ones(shape, dtype), protocol)
    assert feature_files.feature_shape(path) == feature_files.load_features(path).shape
    assert feature_files.feature_shape(path) == (shape if len(shape) == 2 else (1, *shape))


def test_the_numbers_of_a_large_array_are_not_read(tmp_path, monkeypatch):
    (tmp_path / "vit").mkdir()
    path = put(tmp_path, "vit", 0, np.ones((5000, 1000), np.float32))
    read_bytes = []

    class Counting(feature_files._Skipping):
        def read(self, count):
            got = super().read(count)
            read_bytes.append(0 if count >= self.LONG else count)
            return got

    assert feature_files._unpickled(path, Counting).shape == (5000, 1000)
    assert sum(read_bytes) < 1000
    assert path.stat().st_size > 20_000_000


def test_mixed_widths_are_one_sentence_with_the_file(corpus):
    odd = put(corpus, "wav2vec2", 4, np.ones((5, 24), np.float32))
    with pytest.raises(CorpusError) as caught:
        defects.before_a_run(corpus)
    assert str(caught.value).startswith(f"{odd} is 24 wide and 8 of 9 files in wav2vec2/ are 20")
    assert found_by_audit(corpus) == {"00004": f"{odd}: width 24, most clips have 20"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": 1}, "holds dict; expected a T x D array of numbers"),
        ([[1.0, 2.0]], "holds list; expected a T x D array"),
        (np.array(["words"]), "holds <U5; expected a T x D array"),
        (np.zeros((2, 3, 4)), r"holds an array of shape \(2, 3, 4\); expected T x D"),
    ],
)
def test_a_pickle_of_something_else_is_one_sentence(corpus, content, says):
    path = put(corpus, "vit", 7, content)
    with pytest.raises(CorpusError, match=rf"{path} {says}.* Remove or replace the file"):
        defects.before_a_run(corpus)
    assert list(found_by_audit(corpus)) == ["00007"]


def test_a_pickle_that_would_run_code_is_refused_and_not_run(corpus, tmp_path_factory):
    trace = tmp_path_factory.mktemp("trace") / "was-here"
    path = put(corpus, "vit", 2, Runs(trace))
    with pytest.raises(CorpusError, match=rf"{path} names posix.system; expected .*, not run"):
        defects.before_a_run(corpus)
    assert "names posix.system" in found_by_audit(corpus)["00002"]
    assert not trace.exists()
    pickle.load(io.BytesIO(path.read_bytes()))  # it would have run
    assert trace.exists()


def test_damaged_pickles_are_noted_and_left_out(corpus):
    path = put(corpus, "vit", 3, np.ones((300, 768), np.float32))
    path.write_bytes(path.read_bytes()[:-5000])
    (corpus / "vit/00004.pkl").write_bytes(b"")
    for number in (0, 1, 2, 5, 6, 7, 8):
        put(corpus, "vit", number, np.ones((2, 768), np.float32))
    notes = defects.before_a_run(corpus)
    assert notes == ["Damaged pickles in vit/ that are left out: 00003.pkl, 00004.pkl."]
    assert set(found_by_audit(corpus)) == {"00003", "00004"}


def test_a_split_without_any_file_is_refused(corpus):
    for folder in ("vit", "wav2vec2"):
        for number in (6, 7, 8):
            (corpus / folder / f"{number:05d}.pkl").unlink()
    with pytest.raises(CorpusError, match=r"None of the 3 validation clips of .* has a file"):
        defects.before_a_run(corpus)


def test_ids_without_files_and_files_without_id_are_said(corpus):
    (corpus / "vit/00000.pkl").unlink()
    (corpus / "wav2vec2/00000.pkl").unlink()
    put(corpus, "vit", 99, np.ones((2, 12), np.float32))
    assert defects.before_a_run(corpus) == [
        "Ids in a split file without any file (1): 00000.",
        "Files without a row in a split file (1): 00099.",
    ]


def test_what_reading_refuses_is_refused_here(corpus):
    (corpus / "train_split.csv").write_text(f"{HEADER}\n00000,0,0,many,0,0,0\n")
    with pytest.raises(CorpusError, match="line 2: Determination is 'many', not a number"):
        defects.before_a_run(corpus)


def test_a_thousand_heads_take_less_than_a_second(corpus):
    clips = read(corpus)
    path = put(corpus, "vit", 0, np.ones((350, 768), np.float32))
    clips["official_audio"] = str(path)
    start = time.process_time()
    for _ in range(1000 // len(clips)):
        defects.check_official(clips.assign(official_vision=None))
    assert time.process_time() - start < 1
