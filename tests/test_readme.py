"""README.md: its tables are those in figures/tables, and what it names can be found and called."""

import dataclasses
import functools
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from emilib import __main__ as command_line
from emilib import environment, profiles, runner
from emilib.models import MODELS as CLASSES
from emilib.study import claims, experiments, mean_pearson
from emilib.synthetic import generative_model as script

ROOT = environment.ROOT
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
TABLES = ROOT / "figures" / "tables"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
SPANS = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", TEXT, flags=re.M | re.S))
LINES = [
    line.partition("  #")[0].strip()
    for kind, text in BLOCKS
    if not kind
    for line in text.splitlines()
]
COMMANDS = [line for line in [*LINES, *SPANS] if line.startswith(("./run_all.sh", "python -m "))]
# A README shows what these make; they are there after a run, or in a corpus folder.
MADE = ("runs/", ".venv/", "figures/", "result/", "~/")
CORPUS = ("raw/", "audio/", "face_images/", "vit/", "wav2vec2/", "text/", "test_data/")
CORPUS += ("train_split.csv", "valid_split.csv", "test_split.csv")
HUB_NAMES = ("openai/", "facebook/", "audeering/", "google/")


# ------------------------------------------------------------------ tables


def shown(text):
    """What stands between the markers, by table."""
    found = re.findall(r"<!-- table (\w+) -->\n(.*?)\n<!-- /table -->", text, re.DOTALL)
    assert [name for name, _ in found] == list(claims.TABLES)
    return dict(found)


def in_folder():
    files = {name: TABLES / f"{name}.md" for name in claims.TABLES}
    return {n: p.read_text(encoding="utf-8").strip() for n, p in files.items() if p.is_file()}


def committed():
    """The tables of the last commit, {} where there is no git. A run of one's own replaces figures/
    by what this machine trained; the README still shows the tables it was committed with."""
    git, tables = shutil.which("git"), {}
    for name in claims.TABLES if git else ():
        command = [git, "-C", str(ROOT), "show", f"HEAD:./figures/tables/{name}.md"]
        result = subprocess.run(command, capture_output=True)
        if result.returncode == 0:
            tables[name] = result.stdout.decode().strip()
    return tables


def test_tables_are_those_of_the_default_run():
    here, how = in_folder(), "run ./run_all.sh, then python -m emilib.runner --update-notebooks"
    missing = sorted(set(claims.TABLES) - set(here))
    assert not missing, f"figures/tables lacks {missing}: {how}"
    in_readme = shown(TEXT)
    if in_readme != here and in_readme != committed():
        differ = [name for name in claims.TABLES if in_readme[name] != here[name]]
        pytest.fail(f"README.md and figures/tables differ in {differ}: {how}")


@pytest.fixture
def written(tmp_path):
    """A README with markers, and a folder of tables."""
    markers = "\n".join(f"# {n}\n<!-- table {n} -->\nold\n<!-- /table -->" for n in claims.TABLES)
    (tmp_path / "README.md").write_text(f"before\n{markers}\nafter\n", encoding="utf-8")
    for name in claims.TABLES:
        (tmp_path / f"{name}.md").write_text(f"| {name} ρ \\1 |\n\nCaption.\n", encoding="utf-8")
    return tmp_path / "README.md", tmp_path


def test_tables_are_put_between_the_markers(written):
    readme, folder = written
    before = readme.read_text(encoding="utf-8")
    assert runner.update_readme(readme, folder)
    after = readme.read_text(encoding="utf-8")
    assert shown(after) == {name: f"| {name} ρ \\1 |\n\nCaption." for name in claims.TABLES}
    expected = before
    for name in claims.TABLES:
        expected = expected.replace("\nold\n", f"\n| {name} ρ \\1 |\n\nCaption.\n", 1)
    assert after == expected
    assert not runner.update_readme(readme, folder), "a fixed point"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<!-- table B2 -->", ""),
        ("<!-- table A3 -->\nold\n<!-- /table -->", "<!-- table A3 -->\nold"),
        ("after", "<!-- table A1 -->\n<!-- /table -->"),
    ],
)
def test_markers_that_are_missing_or_double_are_refused(written, old, new):
    readme, folder = written
    spoilt = readme.read_text(encoding="utf-8").replace(old, new)
    readme.write_text(spoilt, encoding="utf-8")
    with pytest.raises(ValueError, match=r"must hold <!-- table \w\d --> and then <!-- /table -->"):
        runner.update_readme(readme, folder)
    assert readme.read_text(encoding="utf-8") == spoilt


def test_a_missing_table_is_refused(written):
    readme, folder = written
    before = readme.read_text(encoding="utf-8")
    (folder / "B4.md").unlink()
    with pytest.raises(ValueError, match=r"There is no .*B4\.md"):
        runner.update_readme(readme, folder)
    assert readme.read_text(encoding="utf-8") == before


# ------------------------------------------------------------------ commands


def test_the_readme_names_both_scripts():
    named = {shlex.split(line)[0] for line in COMMANDS}
    assert named == {"./run_all.sh", "python"}
    assert {"./run_all.sh", "./run_all.sh --test"} <= set(LINES), "the two commands"


@pytest.mark.parametrize(
    "line",
    sorted({line for line in [*COMMANDS, *SPANS] if line.startswith(("./run_all.sh", "--"))}),
)
def test_options_of_run_all_exist(line):
    """Every option is in the script's own help, with a value it takes."""
    usage = subprocess.run(
        ["bash", str(ROOT / "run_all.sh"), "--help"], capture_output=True, text=True, check=True
    ).stdout
    options = dict(re.findall(r"^  (--[\w-]+)(?: ([A-Z]+))? ", usage, re.MULTILINE))
    words = [word for word in shlex.split(line) if word != "./run_all.sh"]
    while words:
        option = words.pop(0)
        assert option in options, f"run_all.sh has no {option}"
        if not options[option]:
            continue
        assert words, f"{option} needs a value"
        value = words.pop(0)
        if option == "--profile":
            assert value in profiles.NAMES
        elif option == "--only":
            assert list(ROOT.glob(f"notebooks/{value}_*.ipynb"))
        elif option == "--visual":
            assert value in ("faces", "video")
        elif option in ("--seeds", "--processes"):
            assert value.isdigit() or value == "N"
        else:
            assert (option, value) == ("--corpus", "DIR")


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("python")])
def test_commands_are_understood(line, monkeypatch, capsys):
    """The real parser reads each command; what it would call only notes its arguments."""
    _, _, module, *arguments = shlex.split(line)
    assert module == "emilib"
    called = []

    def noting(function):
        @functools.wraps(function)
        def note(*args, **kwargs):
            called.append((function.__name__, args))

        return note

    noted = tuple(noting(command) for command in command_line.COMMANDS)
    monkeypatch.setattr(command_line, "COMMANDS", noted)
    monkeypatch.setattr(sys, "argv", ["emilib", *arguments])
    if arguments == ["--help"]:
        with pytest.raises(SystemExit, match=r"^0$"):
            command_line.main()
        assert "corpus" in capsys.readouterr().out
        return
    assert command_line.main() == 0
    [(name, positional)] = called
    assert name == arguments[0]
    known = {"run": experiments.all_experiments(profiles.get("embedded")), "tables": claims.TABLES}
    assert set(positional) <= set(known[name]) if name in known else True


def test_a_command_that_does_not_exist_is_noticed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["emilib", "features", "--no-such-option", "1"])
    with pytest.raises(SystemExit, match=r"^2$"):
        command_line.main()
    capsys.readouterr()


# ------------------------------------------------------------------ files, names, numbers


def _paths():
    """Local links, and code spans that look like a path."""
    links = [t for t in re.findall(r"\]\(([^)\s]+)\)", TEXT) if not t.startswith("http")]
    spans = [s for s in SPANS if re.fullmatch(r"~?[\w./*-]+", s) and ("/" in s or "." in s[1:])]
    named = {p for p in [*links, *spans] if not re.match(r"\w+\.\w+\(", p)}
    return sorted(named - {"./run_all.sh"})


def test_paths_exist():
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
    checked = []
    for path in _paths():
        if path.startswith("#"):
            assert path[1:] in anchors, path
        elif not path.startswith((*MADE, *CORPUS, *HUB_NAMES)):
            assert (ROOT / path).exists(), f"README.md names {path}, which is not there"
            checked.append(path)
    assert {"CONTRIBUTING.md", "LICENSE", "notebooks/06_tables.ipynb"} <= set(checked)


def test_every_notebook_is_listed():
    listed = set(re.findall(r"`(notebooks/\S+\.ipynb)`", TEXT))
    assert listed == {p.relative_to(ROOT).as_posix() for p in runner.discover(ROOT / "notebooks")}


def test_checkpoints_are_those_of_the_paper_profile():
    profile = profiles.get("paper")
    for config in (profile.vision, profile.audio, profile.text):
        assert f"`{config['checkpoint']}`" in TEXT


def test_variables_are_read_somewhere():
    code = [ROOT / "run_all.sh", *(ROOT / "emilib").rglob("*.py")]
    read = "".join(path.read_text(encoding="utf-8") for path in code)
    named = set(re.findall(r"\bEMI_[A-Z_]+\b", TEXT))
    assert named
    assert all(name in read for name in named)


def test_parameters_of_the_corpus_are_the_designs():
    fields = dataclasses.asdict(script.Design())
    named = dict(re.findall(r"`(\w+) = ([\d.]+)`", TEXT))
    assert {"weight_face", "weight_voice", "weight_words", "noise"} <= set(named)
    for name, value in named.items():
        assert float(value) == fields[name], f"Design.{name} is {fields[name]}"
    sizes = profiles.get("embedded").corpus_size
    first = "{train} training, {validation} validation and {test} test clips".format(**sizes)
    assert first in TEXT
    kinds = ("no_face", "no_audio_track", "silent", "empty_transcript", "lying_rate")
    said = re.search(r"Some clips have defects:.*?\n\n", TEXT, re.DOTALL).group()
    assert re.findall(r"\((\d+) %\)", " ".join(said.split())) == [
        f"{100 * script.DEFECT_RATES[kind]:.0f}" for kind in kinds
    ]


def test_ceilings_are_those_measured():
    """Ridge regressions on the generator's clean signals, over ten corpora, measured anew."""
    letters = {"V": "frames_", "A": "audio_", "T": "text_"}
    [(head, row)] = re.findall(r"^\| modalities \|(.*)\|\n.*\n\| ρ \|(.*)\|$", TEXT, re.MULTILINE)
    sets, said = ([c.strip() for c in cells.split("|")] for cells in (head, row))
    assert sets == ["V", "A", "T", "V+A", "V+T", "A+T", "V+A+T"]
    rho = np.zeros((10, len(sets)))
    for seed in range(len(rho)):
        drawn = script.draw(seed=seed)
        signals, split = drawn.signals(), np.array(drawn.split)
        train, valid = split == "train", split == "validation"
        for j, used in enumerate(sets):
            prefixes = tuple(letters[letter] for letter in used.split("+"))
            x = signals[[c for c in signals if c.startswith(prefixes)]].to_numpy(float)
            ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 3, 7)))
            guess = ridge.fit(x[train], drawn.label[train]).predict(x[valid])
            rho[seed, j] = mean_pearson(drawn.label[valid], guess)
    measured = [f"{value:.2f}" for value in rho.mean(axis=0)]
    close = np.allclose(np.array(said, float), rho.mean(axis=0), atol=0.008)
    assert close, f"README.md says {said}, measured is {measured}"


def test_the_examples_run(tmp_path, capsys):
    code = "\n".join(text for kind, text in BLOCKS if kind == "python")
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    names = runpy.run_path(str(tmp_path / "example.py"))
    rho, *others, shapes = capsys.readouterr().out.splitlines()
    assert 0.2 < float(rho) <= 1, "the labels are in the words: ten epochs must find something"
    assert [line.split()[0] for line in others] == list(names["sizes"])
    assert all(-1 <= float(line.split()[1]) <= 1 for line in others)
    assert names["output"].weights.shape == (8, 4, 3)
    assert "(8, 6)" in shapes.replace("[", "(").replace("]", ")")


def test_models_that_are_known_by_name_are_listed():
    listed = re.search(r"`for_features` knows (.*?);", TEXT, re.DOTALL).group(1)
    assert re.findall(r"`(\w+)`", listed) == list(CLASSES)
