"""The command line: the same functions as in the notebooks, for scripts and clusters.

``accelerate launch -m emilib features ...`` shares the work of `features`, `pretrain`, `run` and
`tables` among processes, GPUs and machines that see one ``EMI_HOME``.

Results go to stdout, progress to stderr. Exit codes: 0 done, 1 it could not be done (one sentence
says why), 2 the command was not understood.
"""

import dataclasses
import math
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from emilib import cache
from emilib.progress import Counter

ProfileName = Annotated[
    Literal["smoke", "embedded", "paper"], tyro.conf.arg(help="sizes, encoders and seeds")
]
CorpusDir = Annotated[
    Path | None,
    tyro.conf.arg(
        help="folder in the layout of Hume-Vidmimic2, or of your own videos with a CSV; without it "
        "the embedded corpus"
    ),
]
Visual = Annotated[
    Literal["faces", "video"] | None,
    tyro.conf.arg(help="face crops or whole frames; by default what the profile says"),
]


def _workspace(profile, corpus, visual=None):
    from emilib import profiles
    from emilib.pipeline import Workspace

    return Workspace(profiles.get(profile, visual), corpus)


def corpus(
    folder: Annotated[Path, tyro.conf.Positional],
    train: int = 400,
    validation: int = 240,
    test: int = 60,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Make the embedded corpus in FOLDER: drawn faces, synthetic voices, the real set's layout.

    Example: python -m emilib corpus /tmp/emi --train 40 --validation 24 --test 8
    """
    from emilib.synthetic import film as synthetic

    made = synthetic.make(
        folder, train, validation, test, seed=seed, workers=workers, progress=Counter("clips")
    )
    print(made)


def audit(
    folder: Annotated[Path, tyro.conf.Positional],
    workers: int | None = None,
    ids: Annotated[bool, tyro.conf.arg(help="one line a defect, as CSV: id, what, where")] = False,
) -> None:
    """What is broken in the corpus in FOLDER: how many clips have which defect, and which.

    Example: python -m emilib audit /data/hume-vidmimic2 --ids
    """
    from emilib.corpus import audit as run_audit
    from emilib.corpus.defects import report

    found = run_audit(folder, workers=workers)
    if ids:
        print(found.to_csv(index=False), end="")
        return
    print(report(found))


def features(
    profile: ProfileName = "embedded",
    corpus: CorpusDir = None,
    visual: Visual = None,
    kind: Literal["ours", "official"] = "ours",
    compile: Annotated[bool, tyro.conf.arg(help="the ViT, with torch.compile; for a GPU")] = False,
) -> None:
    """Features of all clips into the store, made where they are missing.

    Example: python -m emilib features --profile smoke
    """
    workspace = _workspace(profile, corpus, visual)
    workspace.profile = dataclasses.replace(workspace.profile, compile_vision=compile)
    made = workspace.features(kind)
    for split in ("train", "validation", "test"):
        print(f"{split:12s}{getattr(made, split)}")


def pretrain(
    profile: ProfileName = "embedded", corpus: CorpusDir = None, visual: Visual = None
) -> None:
    """Stage I: vision-text and audio-text contrastive pretraining.

    Example: python -m emilib pretrain --profile smoke
    """
    workspace = _workspace(profile, corpus, visual)
    for side in ("frames", "audio"):
        history = workspace.contrast(side).history
        print(f"{side:8s}{len(history)} steps, loss {history[-1]['loss']:.3f}")


def run(
    *names: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(help="experiments, all of them without a name")
    ],
    profile: ProfileName = "embedded",
    corpus: CorpusDir = None,
    visual: Visual = None,
) -> None:
    """Train experiments where they are missing; prints mean ρ on validation over the seeds.

    Example: python -m emilib run taemi dual_stage_vat --profile smoke
    """
    workspace = _workspace(profile, corpus, visual)
    results = workspace.results(names or None)
    print(f"# {workspace.corpus_name}, {len(workspace.profile.seeds)} seeds")
    for name in results.names:
        estimate = results.summary(name)
        spread = "" if math.isnan(estimate.sd) else f" ± {estimate.sd:.4f}"
        print(f"{name:24s}{estimate.value:8.4f}{spread}")


def tables(
    *names: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(help="A1 ... B4, all of them without a name")
    ],
    profile: ProfileName = "embedded",
    corpus: CorpusDir = None,
    visual: Visual = None,
) -> None:
    """Every table of both papers, reported beside measured; trains what is missing.

    Example: python -m emilib tables B3 B4
    """
    from emilib.study.tables import render_text

    made = _workspace(profile, corpus, visual).tables()
    unknown = [name for name in names if name not in made]
    if unknown:
        raise ValueError(f"no table {', '.join(unknown)}; there are {', '.join(made)}")
    print("\n\n".join(render_text(made[name]) for name in names or made))


def bench(
    what: Annotated[
        Literal["training", "features"], tyro.conf.arg(help="a Stage II step, or the encoders")
    ] = "training",
    repeats: Annotated[int | None, tyro.conf.arg(help="timed runs; 9 of a step, 3 else")] = None,
    threads: Annotated[int | None, tyro.conf.arg(help="of torch; default: its own")] = None,
    device: str | None = None,
    precision: Annotated[
        Literal["default", "float32", "bf16"], tyro.conf.arg(help="of the encoders")
    ] = "default",
    scale: Annotated[float, tyro.conf.arg(help="of the encoders' batches; small on a CPU")] = 1.0,
    compile: Annotated[bool, tyro.conf.arg(help="the ViT, with torch.compile")] = False,
    out: Annotated[Path | None, tyro.conf.arg(help="write the encoders' table to FILE")] = None,
) -> None:
    """Time of a Stage II training step, or rates of the papers' encoders, with random weights.

    A step stands beside a bare BiLSTM and Transformer; encoders beside the peak of this device.

    Example: python -m emilib bench --threads 1

    Example: python -m emilib bench --what features --scale 0.03 --repeats 1
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    print(f"# torch {torch.__version__}, {torch.get_num_threads()} threads")
    if what == "training":
        from emilib.study.bench import stage_two

        for row in stage_two(repeats or 9, device).itertuples():
            print(f"{row.what:42s}{1000 * row.seconds:9.1f} ms  x {row.ratio:.3f}")
        return
    from emilib.features.rates import throughput

    wanted = {"float32": None}.get(precision, precision)
    found = throughput(repeats or 3, device, wanted, scale, compile)
    for row in found.itertuples():
        rate = f"{row.rate:12.2f} {row.unit}/s"
        print(f"{row.what:24s}{rate:34s}{row.tflops:9.3f} TFLOP/s  {row.share:6.1%} of the peak")
    if out is not None:
        found.to_csv(out, index=False)


_TEXT_HELP = "the clip's words, a .txt with them, or a folder with NAME.txt for each NAME.mp4"


def predict(
    *clips: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="video or sound files")],
    model: Annotated[str, tyro.conf.arg(help="folder of `export`, or OWNER/NAME on the hub")],
    text: Annotated[str | None, tyro.conf.arg(help=_TEXT_HELP)] = None,
    window: Annotated[float | None, tyro.conf.arg(help="s; a row for each window")] = None,
    step: Annotated[float | None, tyro.conf.arg(help="s from window to window; half of it")] = None,
    json: Annotated[Path | None, tyro.conf.arg(help="write everything found to FILE")] = None,
    csv: Annotated[Path | None, tyro.conf.arg(help="write the table to FILE")] = None,
    picture: Annotated[Path | None, tyro.conf.arg(help="folder for a picture of each clip")] = None,
    workers: int | None = None,
) -> None:
    """Six intensities of each clip, with their spread over seeds. Exit code 1 if a file failed.

    Examples:
      python -m emilib export taemi models/taemi
      python -m emilib predict clip.mp4 more/*.mp4 --model models/taemi --csv found.csv
      python -m emilib predict talk.mp4 --model models/taemi --window 12 --step 6 --picture pictures
    """
    from emilib.predict.report import predict_files

    predict_files(clips, model, text, window, step, json, csv, picture, workers)


def export(
    experiment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help="as in `run`: taemi, ...")],
    folder: Annotated[Path, tyro.conf.Positional],
    profile: ProfileName = "embedded",
    corpus: CorpusDir = None,
    visual: Visual = None,
) -> None:
    """Write a trained experiment into FOLDER for `predict`; trains it where it is missing.

    Example: python -m emilib export taemi models/taemi --profile embedded
    """
    from emilib.export import predictor_of

    predictor = predictor_of(_workspace(profile, corpus, visual), experiment)
    print(predictor.save_pretrained(folder))


_SubmitOrCheck = tyro.conf.create_mutex_group(required=True)


def submit(
    run: Annotated[
        str | None, _SubmitOrCheck, tyro.conf.arg(help="experiment, as in the command run")
    ] = None,
    check: Annotated[
        Path | None, _SubmitOrCheck, tyro.conf.arg(help="only validate this CSV")
    ] = None,
    profile: ProfileName = "embedded",
    corpus: CorpusDir = None,
    visual: Visual = None,
    out: Annotated[Path, tyro.conf.arg(help="CSV to write")] = Path("submission.csv"),
) -> None:
    """The challenge's CSV of a run, trained where it is missing: a row for every test clip.

    Values are means over the seeds. Prints the CSV's path; the exit code is 1 if it has a problem.
    With --check nothing is made, and problems go to stdout; --corpus then names the test clips.

    Example: python -m emilib submit --run taemi --corpus DIR --out submission.csv

    Example: python -m emilib submit --check submission.csv --corpus DIR
    """
    from emilib import submission

    if check is not None:
        found, path, stream = submission.validate(check, corpus), check, sys.stdout
    else:
        workspace, path, stream = _workspace(profile, corpus, visual), out, sys.stderr
        found = submission.make(workspace, run, out)
        seeds = len(workspace.profile.seeds)
        print(f"{run}, {workspace.corpus_name}: mean of {seeds} seeds", file=sys.stderr)
    most = 20
    for sentence in found[:most]:
        print(sentence, file=stream)
    if len(found) > most:
        print(f"and {len(found) - most} more", file=stream)
    wrong = len(submission.problems(found))
    if wrong:
        raise ValueError(f"{path} is no valid submission: {wrong} problem{'s'[: wrong - 1]}")
    print(path if check is None else f"{path} is a valid submission")


COMMANDS = (
    corpus,
    audit,
    features,
    pretrain,
    run,
    tables,
    export,
    predict,
    submit,
    bench,
)


def main() -> int:
    """Run the command of `sys.argv`; returns the exit code."""
    commands = {command.__name__: command for command in COMMANDS}
    try:
        if cache.rank() != 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - to the end of the process
        tyro.extras.subcommand_cli_from_dict(commands, prog="python -m emilib", description=__doc__)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"emilib: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
