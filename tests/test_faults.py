"""A small run that is killed, damaged, doubled and cramped comes to the same files as one in peace.

It is killed once; ``pytest tests/test_faults.py --faults 100`` kills it a hundred times and damages
every kind of file ten times.
"""

import dataclasses
import multiprocessing
import pickle
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import sine, write_media
from hypothesis import given, settings
from hypothesis import strategies as st

from emilib import EMOTIONS, cache, profiles
from emilib.corpus import CorpusError, read
from emilib.corpus.feature_files import load_features
from emilib.corpus.media import MediaError, decode

ROWS = ("wav2vec2_baseline", "dual_stage_vat", "taemi")
# Times, and what is nobody's result.
VARY = {"meta.json", "history.csv", cache.SUMS, "synthetic.json", "parameters.json"}
# A server that has imported everything forks the runs: an import takes longer than a small run.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["test_faults", "emilib.pipeline", "emilib.synthetic.film"])


def work(home: Path, most: int = 0) -> None:
    """From nothing to results, with all that is kept; most : bytes that a file may have."""
    import torch

    from emilib.pipeline import Workspace

    torch.set_num_threads(1)
    if most:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    counts, recipe = {"train": 8, "validation": 4, "test": 2}, {}
    profile = profiles.smoke()
    for name in ("dual_stage_recipe", "taemi_recipe", "baseline_recipe"):
        recipe[name] = dataclasses.replace(getattr(profile, name), epochs=3)
    steps = dict.fromkeys(("vision_steps", "audio_steps", "text_steps"), 2)
    start = dataclasses.replace(profile.warm_start, **steps)
    settings = {"corpus_size": counts, "seeds": (0,), "workers": 1, "warm_start": start}
    workspace = Workspace(dataclasses.replace(profile, **settings, **recipe), home=home)
    try:
        workspace.require()
        for step in workspace.steps:
            step.stores if step.columns else step.folder()
        results = workspace.results(ROWS)
        assert np.isfinite([results.summary(name).value for name in ROWS]).all()
    except Exception as error:
        (home.parent / f"{home.name}.error").write_text(f"{type(error).__name__}: {error}"[:4000])
        raise SystemExit(1) from None


def start(home: Path, most: int = 0):
    process = CONTEXT.Process(target=work, args=(home, most))
    process.start()
    return process


def finish(*processes) -> None:
    for process in processes:
        process.join(240)
        if process.is_alive():
            process.kill()
            pytest.fail("a run hangs")


def contents(home: Path) -> dict:
    """Digest of each file of the corpus, of steps and results."""
    paths = [path for path in home.rglob("*") if path.is_file() and ".locks" not in path.parts]
    paths = [path for path in paths if path.name not in VARY and path.name != ".lock"]
    return {path.relative_to(home).as_posix(): cache.file_sum(path) for path in paths}


def assert_same(home: Path, whole: Path, what: str) -> None:
    error = home.with_name(f"{home.name}.error")
    assert not error.exists(), f"{what}: {error.read_text()}"
    expected, got = contents(whole), contents(home)
    wrong = [name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name)]
    assert wrong == [], f"{what}: {len(wrong)} of {len(expected)} files differ"


@pytest.fixture(scope="module")
def faults(request) -> int:
    return request.config.getoption("--faults")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The home of a run in peace, and its seconds."""
    home = tmp_path_factory.mktemp("peace") / "home"
    begun = time.monotonic()
    finish(run := start(home))
    assert run.exitcode == 0, home.with_name("home.error").read_text()
    return home, time.monotonic() - begun


@pytest.mark.slow
def test_killed_runs_go_on_to_the_same_files(whole, faults, tmp_path):
    home, seconds = whole
    draw, kills, rounds = random.Random(0), 0, 0
    while kills < faults:
        rounds += 1
        mine, killed = tmp_path / f"home{rounds}", 0
        while True:
            run = start(mine)
            if kills + killed < faults:
                run.join(draw.uniform(0, 0.8 * seconds))
                run.kill()
            finish(run)
            if run.exitcode != -signal.SIGKILL:
                break
            killed += 1
        kills += killed
        cache.sweep(*(path for path in mine.rglob("*") if path.is_dir()))
        unfinished = list(mine.rglob("*.unfinished"))
        assert unfinished == []
        assert_same(mine, home, f"{killed} kills, round {rounds}")
        shutil.rmtree(mine)


def harmed(content: bytes, draw: random.Random) -> bytes | None:
    """A flipped bit (twice as often as others), a part, nothing, no file."""
    place = draw.randrange(max(1, len(content)))
    flipped = bytearray(content or b"?")
    flipped[place] ^= 1 << draw.randrange(8)
    return draw.choice([bytes(flipped), bytes(flipped), content[:place], b"", None])


def kinds(home: Path) -> dict[str, list[Path]]:
    """Files that are kept, by kind: the step and the name, without numbers of clips."""
    result = {}
    for name in contents(home):
        path = home / name
        place = path.relative_to(home / "smoke").parts
        kind = f"{place[1]} {path.name}" if place[0] == "cache" else f"corpus {path.suffix}"
        result.setdefault(kind, []).append(path)
    for path in home.rglob(cache.SUMS):
        result.setdefault(f"sums {path.parent.parent.name}", []).append(path)
    return result


def test_damaged_files_are_made_again(whole, faults, tmp_path):
    home, _ = whole
    for number in range(max(1, faults // 10)):
        draw, mine = random.Random(number), tmp_path / f"home{number}"
        shutil.copytree(home, mine)
        harms = {}
        for kind, paths in kinds(mine).items():
            path = draw.choice(sorted(paths))
            before = path.read_bytes()
            after = harms[kind] = harmed(before, draw)
            path.unlink() if after is None else path.write_bytes(after)
        finish(start(mine))
        assert_same(mine, home, f"round {number}, damaged: {', '.join(harms)}")
        shutil.rmtree(mine)


@pytest.mark.slow
def test_two_runs_in_one_home_both_finish(whole, tmp_path):
    home, _ = whole
    runs = [start(tmp_path / "home") for _ in range(2)]
    finish(*runs)
    assert_same(tmp_path / "home", home, "two at once")
    assert [run.exitcode for run in runs] == [0, 0]


@pytest.mark.slow
def test_a_small_disk_says_so_and_spoils_nothing(whole, tmp_path):
    home, _ = whole
    mine, error = tmp_path / "home", tmp_path / "home.error"
    for most in (2_000, 200_000):
        finish(run := start(mine, most))
        assert run.exitcode == 1
        assert "File too large" in error.read_text()
        error.unlink()
    finish(start(mine))
    assert_same(mine, home, "after a small disk")


EDITS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=3), st.integers(0, 3)),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, edits) -> bytes:
    """Some bytes at some places are replaced by others."""
    for share, new, gone in edits:
        place = int(share * len(content))
        content = content[:place] + new + content[place + gone :]
    return content


def check(examples: int, whole: bytes, path: Path, call, refusal) -> None:
    """`call` succeeds on edited bytes at `path`, or refuses them in a sentence that names it."""

    @given(EDITS)
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    def attempt(edits):
        path.write_bytes(edited(whole, edits))
        try:
            call()
        except refusal as error:
            if str(path.parent) not in str(error):
                raise

    attempt()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_give_an_array_or_are_refused(protocol, faults, tmp_path):
    whole, path = pickle.dumps(np.ones((7, 5), np.float16), protocol), tmp_path / "features.pkl"
    check(25 * faults, whole, path, lambda: load_features(path).shape[1], MediaError)


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "sound.wav", "sound.flac"])
def test_media_are_decoded_or_refused(name, faults, tmp_path):
    path, times = tmp_path / name, np.arange(12) / 25 if name.startswith("film") else ()
    codec = {".wav": "pcm_s16le", ".flac": "flac"}.get(path.suffix, "aac")
    whole = write_media(path, times, sine(300, 0.4), sound_codec=codec).read_bytes()

    def sampled():
        media = decode(path, size=16)
        assert media.images is None or media.images.shape == (len(media.times), 16, 16, 3)
        assert (np.diff(media.times) > 0).all()
        assert np.isfinite(media.duration)
        assert media.waveform is None or np.isfinite(media.waveform).all()

    check(25 * faults, whole, path, sampled, MediaError)


def test_csvs_are_read_or_refused(faults, tmp_path):
    rows = [f"{i:05d},{','.join(['0.5'] * len(EMOTIONS))}" for i in range(4)]
    table = "\n".join([f"Filename,{','.join(EMOTIONS)}", *rows, ""]).encode()
    (tmp_path / "valid_split.csv").write_bytes(table.replace(b"0000", b"valid"))
    (tmp_path / "text").mkdir()
    for name in ("00000", "valid0"):
        (tmp_path / "text" / f"{name}.txt").write_text("hello")
    check(25 * faults, table, tmp_path / "train_split.csv", lambda: read(tmp_path), CorpusError)


def test_a_damaged_note_of_a_step_is_a_step_to_be_made_again(faults, tmp_path):
    kept, parts = cache.Cache(tmp_path), {"a": 1}
    folder = kept.step("kind", parts, lambda folder: (folder / "value").write_text("5"))
    whole = (folder / cache.SUMS).read_bytes()

    def again():
        if not cache.Cache(tmp_path).has("kind", parts):
            cache.Cache(tmp_path).step("kind", parts, lambda f: (f / "value").write_text("5"))
        assert (folder / "value").read_text() == "5"

    check(25 * faults, whole, folder / cache.SUMS, again, ())
