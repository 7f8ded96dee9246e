"""Headline differences on several draws of the embedded corpus; see replication.csv."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from emilib import metrics
from emilib.study import claims
from emilib.study.runs import Results

PATH = Path(__file__).with_name("replication.csv")
# The row each of a table's is compared with, and which: all of them, or these.
_COMPARED = {"A3": ("V+A+T", ["T"]), "B3": ("TAEMI (full)", None), "B4": ("Text-anchored", None)}


def differences(experiments: Mapping) -> dict[tuple[str, str], tuple[str, str]]:
    """Names of the experiments that are compared, by (row, reference) of the tables."""
    serving = {row: e.name for e in experiments.values() for row in e.rows}
    return {
        (row, reference): (serving[table, row], serving[table, reference])
        for table, (reference, rows) in _COMPARED.items()
        for row in rows or [claim.row for claim in claims.rows(table)]
        if row != reference
    }


def names(experiments: Mapping) -> list[str]:
    """The experiments of `differences`, each once."""
    return list(dict.fromkeys(name for pair in differences(experiments).values() for name in pair))


def replicate(corpora: Mapping[int, Results]) -> pd.DataFrame:
    """A row a difference of `differences`: on each corpus, and the mean over corpora.

    corpora : results of the same experiments by corpus seed

    same sign says on how many corpora it has the sign of the mean, resolved on how many it is
    resolved alone, after Holm's correction over that corpus. The interval of the mean draws clips
    and corpora; p is after Holm's correction, verdict as of `metrics.verdict`, without a claim.
    """
    first, rows, alone = next(iter(corpora.values())), [], []
    for (row, reference), pair in differences(first.experiments).items():
        gaps = {f"corpus {seed}": results.gap(*pair) for seed, results in corpora.items()}
        each = {name: float(per_seed.mean()) for name, (per_seed, _) in gaps.items()}
        drawn = np.mean([drawn for _, drawn in gaps.values()], axis=0)
        mean = metrics.summarise(np.array([*each.values()]), drawn)
        of_mean = {"mean": mean.value, "low": mean.low, "high": mean.high, "p": mean.p}
        rows.append({"row": row, "reference": reference, **each, **of_mean})
        alone.append([metrics.summarise(*gap).p for gap in gaps.values()])
    table = pd.DataFrame(rows)
    table["same sign"] = np.sign(table[[*each]]).eq(np.sign(table["mean"]), axis=0).sum(axis=1)
    table["resolved"] = (pd.DataFrame(alone).apply(metrics.holm) < metrics.LEVEL).sum(axis=1)
    table["verdict"] = metrics.verdict(table["mean"], table["p"])
    return table.assign(p=metrics.holm(table["p"]))
