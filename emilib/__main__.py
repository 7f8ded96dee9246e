"""The command line: the same functions as in the notebooks, for scripts and clusters.

``accelerate launch -m emilib features ...`` shares the work of `features`, `pretrain`, `run` and
`tables` among processes, GPUs and machines that see one ``EMI_HOME``. Results go to stdout,
progress to stderr. Exit codes: 0 done, 1 it could not be done, 2 the command was not understood.
"""

import dataclasses
import math
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from emilib import cache
from emilib.progress import Counter


@dataclasses.dataclass(frozen=True)
class Source:
    profile: Literal["smoke", "embedded", "paper"] = "embedded"  # sizes, encoders and seeds
    # folder in the layout of Hume-Vidmimic2, or of your own videos with a CSV; or features in place
    # of them; without it the embedded corpus
    corpus: Path | None = None
    # face crops or whole frames; by default what the profile says
    visual: Literal["faces", "video"] | None = None
    corpus_seed: int | None = None  # of the embedded corpus; 0 by default

    def workspace(self):
        from emilib import profiles
        from emilib.pipeline import Workspace

        profile = profiles.get(self.profile, self.visual, corpus_seed=self.corpus_seed)
        return Workspace(profile, self.corpus)


DEFAULT = Source()
Folder = Positional[Path]


def corpus(
    folder: Folder, train: int = 1600, validation: int = 800, test: int = 240, seed: int = 0
) -> None:
    """Make the embedded corpus in FOLDER: drawn faces, synthetic voices, the real set's layout."""
    from emilib.synthetic import film

    print(film.make(folder, train, validation, test, seed=seed, progress=Counter("clips")))


def audit(folder: Folder, ids: Annotated[bool, arg(help="a line a defect, as CSV")] = False):
    """What is broken in the corpus in FOLDER: how many clips have which defect, and which."""
    from emilib.corpus import audit as defects_of
    from emilib.corpus.defects import report

    defects = defects_of(folder)
    print(defects.to_csv(index=False).strip() if ids else report(defects))


def faces(folder: Folder) -> None:
    """Write face crops of the corpus in FOLDER into its face_images/; a line a clip."""
    from emilib.corpus import faces as finder
    from emilib.corpus import read

    print(finder.write(read(folder)).to_string(index=False, float_format="{:.2f}".format))


def features(source: Source = DEFAULT, kind: Literal["ours", "official"] = "ours") -> None:
    """Features of all clips into the store."""
    splits = source.workspace().features(kind)
    for split in ("train", "validation", "test"):
        print(f"{split:12s}{getattr(splits, split)}")


def pretrain(source: Source = DEFAULT) -> None:
    """Stage I: vision-text and audio-text contrastive pretraining."""
    workspace = source.workspace()
    for side in ("frames", "audio"):
        history = workspace.contrast(side).history
        loss = f"{len(history)} steps, loss {history[-1]['loss']:.3f}" if history else ""
        print(f"{side:8s}{loss or 'no two clips have it and words'}")


def run(*names: Positional[str], source: Source = DEFAULT) -> None:
    """Train experiments, all of them without a name; prints mean ρ on validation over the seeds."""
    workspace = source.workspace()
    results = workspace.results(names or None)
    print(f"# {workspace.corpus_name}")
    for name in results:
        estimate = results.summary(name)
        spread = "" if math.isnan(estimate.sd) else f" ± {estimate.sd:.4f}"
        print(f"{name:24s}{estimate.value:z8.4f}{spread}, seeds: {len(estimate.per_seed)}")


def tune(source: Source = DEFAULT) -> None:
    """Score rates, decays and epochs for every row on held-out training people.

    A profile whose rows are tuned, as `embedded` is, takes the best from now on.
    """
    from emilib.study import tuning

    workspace = source.workspace()
    scores, profile = workspace.tune(), workspace.profile
    if profile.tuned and workspace.has_media:  # those of a feature file are kept with its results
        tuning.write(scores, f"{workspace.corpus_name}, {profile.name}, {profile.corpus_size}")
    print(scores.loc[scores.groupby("experiment")["rho"].idxmax()].to_string(index=False))


def tables(*names: Positional[str], source: Source = DEFAULT) -> None:
    """Tables A1 ... B4, all without a name, reported beside measured; trains what is missing."""
    from emilib.study.tables import render_text

    known = source.workspace().tables()
    if unknown := set(names) - set(known):
        raise ValueError(f"expected tables among {', '.join(known)}, got {', '.join(unknown)}")
    print("\n\n".join(render_text(known[name]) for name in names or known))


def replicate(source: Source = DEFAULT, corpora: int = 3, seeds: int = 2) -> None:
    """Headline differences on several draws of the embedded corpus: which verdicts survive?

    Writes emilib/study/replication.csv, which notebook 06 shows.
    """
    from emilib import profiles
    from emilib.pipeline import Workspace
    from emilib.study import replication

    results = {}
    for seed in range(corpora):
        workspace = Workspace(profiles.get(source.profile, source.visual, seeds, seed))
        if source.corpus or not workspace.embedded:
            raise ValueError("expected the embedded corpus, which can be drawn again: no --corpus")
        results[seed] = workspace.results(replication.names(workspace.experiments()))
    size = {f"{s} clips": workspace.profile.corpus_size[s] for s in ("train", "validation")}
    table = replication.replicate(results).assign(profile=source.profile, seeds=seeds, **size)
    table.to_csv(replication.PATH, index=False, float_format="%.6g")
    print(table.to_string(index=False, float_format="{:z.3f}".format))


def bench(
    repeats: Annotated[int, arg(help="timed runs")] = 5,
    scale: Annotated[float, arg(help="of the batches; small on a CPU")] = 1.0,
) -> None:
    """How fast the papers' encoders run on this machine, with random weights."""
    from emilib.features.rates import throughput

    rates = throughput(repeats, scale)
    print(rates.to_string(index=False, float_format="{:.2f}".format))


def predict(
    *clips: Annotated[Positional[Path], arg(help="video or sound files")],
    model: Annotated[str, arg(help="folder of `export`, or OWNER/NAME on the hub")],
    text: Annotated[str | None, arg(help="the words, a .txt, or a folder with NAME.txt")] = None,
    window: Annotated[float | None, arg(help="s; a row for each window")] = None,
    step: Annotated[float | None, arg(help="s from window to window; half of it")] = None,
    json: Annotated[Path | None, arg(help="write everything found to FILE")] = None,
    csv: Annotated[Path | None, arg(help="write the table to FILE")] = None,
    picture: Annotated[Path | None, arg(help="folder for a picture of each clip")] = None,
) -> None:
    """Six intensities of each clip, with their spread over seeds. Exit code 1 if a file failed.

    Example: python -m emilib predict clip.mp4 more/*.mp4 --model models/taemi --csv table.csv
    """
    from emilib.predict.report import predict_files

    predict_files(clips, model, text, window, step, json, csv, picture)


def export(name: Positional[str], folder: Folder, source: Source = DEFAULT) -> None:
    """Write an experiment of `run` into FOLDER for `predict`; trains it where it is missing."""
    from emilib.export import predictor_of

    print(predictor_of(source.workspace(), name).save_pretrained(folder))


_RunOrCheck = tyro.conf.create_mutex_group(required=True)


def submit(
    run: Annotated[str | None, _RunOrCheck, arg(help="experiment, as in the command run")] = None,
    check: Annotated[Path | None, _RunOrCheck, arg(help="only validate this CSV")] = None,
    source: Source = DEFAULT,
    out: Annotated[Path, arg(help="CSV to write")] = Path("submission.csv"),
) -> None:
    """The challenge's CSV of a run, the mean over its seeds, a row for every test clip.

    With --check nothing is made, and problems go to stdout; --corpus then names the test clips.

    Example: python -m emilib submit --run taemi --corpus DIR --out submission.csv

    Example: python -m emilib submit --check submission.csv --corpus DIR
    """
    from emilib import submission

    if check is None:
        sentences, path, stream = submission.make(source.workspace(), run, out), out, sys.stderr
    else:
        sentences, path, stream = submission.validate(check, source.corpus), check, sys.stdout
    for sentence in sentences[:20]:
        print(sentence, file=stream)
    if wrong := len(submission.problems(sentences)):
        raise ValueError(f"{path} is no valid submission, problems: {wrong}")
    print(path if check is None else f"{path} is a valid submission")


COMMANDS = (corpus, audit, faces, features, pretrain, tune, run, tables)
COMMANDS += (replicate, export, predict, submit, bench)


def main() -> int:
    """Run the command of `sys.argv`; the exit code."""
    commands = {command.__name__: command for command in COMMANDS}
    options = {"description": __doc__, "config": (tyro.conf.OmitArgPrefixes,)}
    try:
        if cache.rank() != 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - to the end of the process
        tyro.extras.subcommand_cli_from_dict(commands, prog="python -m emilib", **options)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"emilib: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
