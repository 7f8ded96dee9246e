"""The table of checkpoints, and how they are found, named and asked for."""

import re
import shutil

import pytest
import small_checkpoints as small
import whisper

from emilib import profiles
from emilib.features import checkpoints, loading


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch, tmp_path):
    """A machine without weights and without network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(checkpoints.WEIGHTS, raising=False)


def test_the_table_is_complete():
    table = checkpoints.table()
    assert len(table) == len(checkpoints.CHECKPOINTS) == table["checkpoint"].nunique() == 7
    assert (table["here"] == "no").all()
    assert table.loc[table["non-commercial"] != "", "checkpoint"].tolist() == [small.AUDEERING]
    for role in ("vision", "audio", "text"):
        entry = checkpoints.get(getattr(profiles.get("paper"), role)["checkpoint"])
        assert (entry.role, "A" in entry.paper) == (role, True)
    for entry in checkpoints.CHECKPOINTS:
        digits = 64 if entry.role == "speech" else 40
        assert not entry.revision or re.fullmatch(f"[0-9a-f]{{{digits}}}", entry.revision)
    assert checkpoints.get("gpt2") is None
    turbo = checkpoints.get("turbo")
    assert f"/{turbo.revision}/{turbo.files}" in whisper._MODELS["turbo"]


@pytest.mark.parametrize("below", [small.AUDEERING, small.AUDEERING.split("/")[1]])
def test_weights_are_found_below_the_folder_of_the_environment(monkeypatch, tmp_path, below):
    (tmp_path / below).mkdir(parents=True)
    small.emotion_folder(tmp_path / below)
    entry = checkpoints.get(small.AUDEERING)
    assert not checkpoints.available(entry.name)
    assert checkpoints.locate(entry.name) == (entry.name, entry.revision)
    monkeypatch.setenv(checkpoints.WEIGHTS, str(tmp_path))
    assert checkpoints.available(entry.name)
    assert checkpoints.locate(entry.name) == (str(tmp_path / below), None)
    assert loading.pretrained("audio", entry.name).dim == 19


def test_whispers_file_is_found_where_it_lies(tmp_path, monkeypatch):
    assert checkpoints.whisper_file() is None
    monkeypatch.setenv(checkpoints.WEIGHTS, str(tmp_path / "own"))
    for place in ("cache/whisper", "own/whisper", "own"):  # the later wins
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "large-v3-turbo.pt").write_bytes(b"x")
        assert checkpoints.whisper_file() == tmp_path / place / "large-v3-turbo.pt"
    assert checkpoints.available("turbo")


def test_identity_is_that_of_the_bytes(tmp_path):
    small.vit_folder(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    small.vit_folder(tmp_path / "c")  # other random weights, files of the same size
    first, same, other = (checkpoints.identity(str(tmp_path / name)) for name in "abc")
    assert first == same != other
    entry = checkpoints.get("bert-base-uncased")
    assert checkpoints.identity(entry.name) == f"{entry.name}@{entry.revision}"
    assert checkpoints.identity(entry.name, "abc") == f"{entry.name}@abc"


@pytest.mark.parametrize("name", small.MAKERS)
def test_missing_weights_name_what_how_large_and_where(name):
    entry = checkpoints.get(name)
    with pytest.raises(ValueError) as error:
        loading.pretrained(entry.role, entry.name)
    message, place = str(error.value), f"$EMI_WEIGHTS/{entry.name}"
    for word in (entry.size, entry.licence, entry.revision, *entry.files.split(), place):
        assert word in message
    assert "\n" not in message
