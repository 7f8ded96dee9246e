"""What the two papers report and where: the one place their numbers stand.

Paper A is *Dual-Stage Cross-Modal Network with Dynamic Feature Fusion for Emotional Mimicry
Intensity Estimation* (8th ABAW, 2025; first version of arXiv 2503.10603). Paper B is *Anchoring
Emotions in Text: Robust Multimodal Fusion for Mimicry Intensity Estimation* (10th ABAW, 2026).

A table is called by paper and number: A2 is Table 2 of paper A. ρ is the mean Pearson correlation
over six emotions on the validation set of Hume-Vidmimic2.
"""

import dataclasses
import math
from collections.abc import Callable

import pandas as pd


@dataclasses.dataclass(frozen=True)
class Claim:
    """One number of one paper.

    where : table or section
    row, modality : the table's row as it is called here, and its modalities; None in running text
    unit : "ρ", "%", "clips", "s" (seconds) or "h" (hours)
    delta : the Δ the table prints beside the value
    """

    paper: str
    where: str
    quantity: str
    value: float
    unit: str = "ρ"
    row: str | None = None
    modality: str | None = None
    delta: float | None = None

    @property
    def table(self) -> str | None:
        """Paper and number, "A2" for Table 2 of paper A; None in running text."""
        return f"{self.paper}{self.where.split()[1]}" if self.where.startswith("Table") else None


def _seconds(text: str) -> int:
    hours, minutes, seconds = map(int, text.split(":"))
    return 3600 * hours + 60 * minutes + seconds


def _table(paper: str, number: int, quantity: str, *rows) -> tuple[Claim, ...]:
    """rows: (row, modality, value) or (row, modality, value, delta)."""
    return tuple(
        Claim(
            paper,
            f"Table {number}",
            quantity,
            value=row[2],
            row=row[0],
            modality=row[1],
            delta=row[3] if len(row) > 3 else None,
        )
        for row in rows
    )


def _partitions(paper: str) -> tuple[Claim, ...]:
    rows = (
        ("Train", "15:07:03", 8072),
        ("Validation", "9:12:02", 4588),
        ("Test", "9:04:05", 4586),
        ("Sum", "33:23:10", 17246),
    )
    return tuple(
        claim
        for row, duration, clips in rows
        for claim in (
            Claim(paper, "Table 1", "duration", _seconds(duration), "s", row),
            Claim(paper, "Table 1", "samples", clips, "clips", row),
        )
    )


CLAIMS: tuple[Claim, ...] = (
    *_partitions("A"),
    *_table(
        "A",
        2,
        "unimodal ρ",
        ("ViT (baseline)", "V", 0.09),
        ("ViT (ours)", "V", 0.16),
        ("Wav2Vec2 (baseline)", "A", 0.24),
        ("Wav2Vec2 (ours)", "A", 0.2734),
    ),
    *_table(
        "A",
        3,
        "multimodal ρ",
        ("V+A", "V+A", 0.2846),
        ("V+T", "V+T", 0.2934),
        ("A+T", "A+T", 0.3518),
        ("V+A+T", "V+A+T", 0.3626),
    ),
    Claim("A", "Abstract", "ρ of the full model", 0.35),
    Claim("A", "Abstract", "gain over the best baseline", 40, "%"),
    Claim("A", "1", "ρ of ViT + GRU", 0.09),
    Claim("A", "1", "ρ of Wav2Vec2 + linear", 0.24),
    Claim("A", "1", "ρ of the average of the baselines", 0.25),
    Claim("A", "1", "videos", 15000, "clips"),
    Claim("A", "1", "hours", 25, "h"),
    Claim("A", "1", "ρ of the full model", 0.35),
    Claim("A", "1", "gain over the best baseline", 40, "%"),
    Claim("A", "4.1", "videos", 15000, "clips"),
    Claim("A", "5.1", "ρ of ViT (ours)", 0.16),
    Claim("A", "5.1", "gain of ViT (ours) over the baseline", 77.8, "%"),
    Claim("A", "5.1", "ρ of Wav2Vec2 (ours)", 0.2734),
    Claim("A", "5.1", "gain of Wav2Vec2 (ours) over the baseline", 13.9, "%"),
    Claim("A", "5.2", "ρ of V+T", 0.2934),
    Claim("A", "5.2", "ρ of V+A", 0.2846),
    Claim("A", "5.2", "gain of V+T over V+A", 3.1, "%"),
    Claim("A", "5.2", "ρ of A+T", 0.3518),
    Claim("A", "5.2", "ρ of the full model", 0.3626),
    Claim("A", "5.2", "gain of the full model over the best unimodal", 27.5, "%"),
    Claim("A", "6", "ρ of the full model", 0.35),
    Claim("A", "6", "gain over the best baseline", 40, "%"),
    *_partitions("B"),
    *_table(
        "B",
        2,
        "comparison ρ",
        ("ViT (baseline)", "V", 0.09),
        ("Wav2Vec2 (baseline)", "A", 0.24),
        ("ViT + Wav2Vec2 (baseline)", "V+A", 0.25),
        ("Yu 2024", "V+A", 0.32),
        ("Hallmen 2024", "A", 0.38),
        ("Savchenko 2025", "V+A+T", 0.44),
        ("Zhang 2024", "V+A+T", 0.46),
        ("Yu 2025", "V+A+T", 0.51),
        ("TAEMI", "V+A+T", 0.55),
    ),
    *_table(
        "B",
        3,
        "leave one out ρ",
        ("Simple feature concat", "V+A+T", 0.45, -0.10),
        ("w/o text-anchored cross-attention", "V+A+T", 0.48, -0.07),
        ("w/o learnable missing tokens", "V+A+T", 0.52, -0.03),
        ("w/o modality dropout", "V+A+T", 0.51, -0.04),
        ("TAEMI (full)", "V+A+T", 0.55),
    ),
    *_table(
        "B",
        4,
        "anchor ρ",
        ("Vision-anchored", "V+A+T", 0.39),
        ("Audio-anchored", "V+A+T", 0.51),
        ("Text-anchored", "V+A+T", 0.55),
    ),
    Claim("B", "1", "ρ of ViT", 0.09),
    Claim("B", "1", "ρ of Wav2Vec2", 0.24),
    Claim("B", "1", "videos", 15000, "clips"),
    Claim("B", "1", "hours", 25, "h"),
    Claim("B", "1", "ρ of TAEMI", 0.55),
    Claim("B", "4.1", "videos", 15000, "clips"),
    Claim("B", "4.2", "ρ of TAEMI", 0.55),
    Claim("B", "4.3", "ρ of simple feature concat", 0.45),
    Claim("B", "4.3", "ρ without text-anchored cross-attention", 0.48),
    Claim("B", "4.3", "gain of cross-attention over self-attention", 0.07),
    Claim("B", "4.3", "ρ without learnable missing tokens", 0.52),
    Claim("B", "4.3", "ρ without modality dropout", 0.51),
    Claim("B", "4.3", "ρ vision-anchored", 0.49),
    Claim("B", "4.3", "ρ audio-anchored", 0.51),
    Claim("B", "4.3", "ρ text-anchored", 0.55),
    Claim("B", "5", "ρ of TAEMI", 0.55),
)


def _beyond(paper: str, number: int, *rows: str) -> tuple[Claim, ...]:
    return tuple(
        Claim(paper, f"Table {number}", "beyond the paper", math.nan, row=row, modality="V+A+T")
        for row in rows
    )


# Rows that neither paper has: what each part of paper A's network does, and what else belongs
# beside the systems of B2. They have no number but the one trained here.
BEYOND: tuple[Claim, ...] = (
    *_beyond(
        "A",
        4,
        "Full model",
        "w/o Stage I",
        "Eq. 1 in place of symmetric",
        "Uniform weights",
        "Concat in place of sum",
        "w/o difference gate",
        "w/o segment pooling",
        "w/o EMA",
    ),
    *_beyond("B", 2, "TAEMI, as released", "Savchenko 2025, leaked", "TFN", "MulT", "MISA"),
)
PAPER_TABLES = ("A1", "A2", "A3", "B1", "B2", "B3", "B4")
TABLES = ("A1", "A2", "A3", "A4", "B1", "B2", "B3", "B4")


def rows(table: str) -> tuple[Claim, ...]:
    """The rows of a table in its order, the paper's before those beyond the paper (value NaN).

    Raises ValueError for a table that is not in TABLES.
    """
    found = tuple(claim for claim in (*CLAIMS, *BEYOND) if claim.table == table)
    if not found:
        raise ValueError(f"expected a table among {', '.join(TABLES)}, came {table!r}")
    return found


def reported(table: str, row: str, quantity: str | None = None) -> Claim:
    """The claim of one row. Raises ValueError when there is none, or several without `quantity`."""
    found = [c for c in rows(table) if c.row == row and quantity in (None, c.quantity)]
    if len(found) != 1:
        names = ", ".join(dict.fromkeys(f"{c.row!r}" for c in rows(table)))
        raise ValueError(f"{table} has {len(found)} numbers for row {row!r}; its rows: {names}")
    return found[0]


def stated(paper: str, where: str, quantity: str) -> float:
    """The number a paper's running text states. Raises ValueError when it states none."""
    for claim in CLAIMS:
        if (claim.paper, claim.where, claim.quantity) == (paper, where, quantity):
            return claim.value
    raise ValueError(f"paper {paper}, {where} states no {quantity!r}")


def _rho(table: str, row: str) -> float:
    return reported(table, row).value


def _gain(new: float, old: float) -> float:
    """Relative gain in per cent."""
    return 100 * (new / old - 1)


def _total(table: str, quantity: str) -> float:
    return sum(reported(table, p, quantity).value for p in ("Train", "Validation", "Test"))


@dataclasses.dataclass(frozen=True)
class Check:
    """A number of a paper that follows from others of it.

    stated : the paper's number
    recompute : what it comes to from the numbers it is about
    digits : decimals the paper gives; it holds when both agree rounded to these
    """

    paper: str
    where: str
    what: str
    stated: float
    recompute: Callable[[], float]
    digits: int = 2

    @property
    def holds(self) -> bool:
        return abs(self.stated - self.recompute()) <= 0.5 * 10**-self.digits * (1 + 1e-9)


def _check_sums(paper: str) -> list[Check]:
    return [
        Check(
            paper,
            "Table 1",
            f"sum of {quantity}",
            reported(f"{paper}1", "Sum", quantity).value,
            lambda quantity=quantity: _total(f"{paper}1", quantity),
            0,
        )
        for quantity in ("duration", "samples")
    ]


def _check_deltas() -> list[Check]:
    return [
        Check(
            "B",
            "Table 3",
            f"Δ of {claim.row}",
            claim.delta,
            lambda claim=claim: claim.value - _rho("B3", "TAEMI (full)"),
        )
        for claim in rows("B3")
        if claim.delta is not None
    ]


_BEST = "gain of the full model over the best unimodal"
CHECKS: tuple[Check, ...] = (
    *_check_sums("A"),
    *_check_sums("B"),
    Check(
        "A",
        "Abstract",
        "ρ of the full model against Table 3",
        stated("A", "Abstract", "ρ of the full model"),
        lambda: _rho("A3", "V+A+T"),
    ),
    Check(
        "A",
        "Abstract",
        "gain in % over the best baseline, from the stated 0.35",
        stated("A", "Abstract", "gain over the best baseline"),
        lambda: _gain(
            stated("A", "Abstract", "ρ of the full model"),
            stated("A", "1", "ρ of the average of the baselines"),
        ),
        0,
    ),
    Check(
        "A",
        "Abstract",
        "gain in % over the best baseline, from Table 3",
        stated("A", "Abstract", "gain over the best baseline"),
        lambda: _gain(_rho("A3", "V+A+T"), stated("A", "1", "ρ of the average of the baselines")),
        0,
    ),
    Check(
        "A",
        "5.1",
        "gain in % of ViT (ours) over the baseline",
        stated("A", "5.1", "gain of ViT (ours) over the baseline"),
        lambda: _gain(_rho("A2", "ViT (ours)"), _rho("A2", "ViT (baseline)")),
        1,
    ),
    Check(
        "A",
        "5.1",
        "gain in % of Wav2Vec2 (ours) over the baseline",
        stated("A", "5.1", "gain of Wav2Vec2 (ours) over the baseline"),
        lambda: _gain(_rho("A2", "Wav2Vec2 (ours)"), _rho("A2", "Wav2Vec2 (baseline)")),
        1,
    ),
    Check(
        "A",
        "5.2",
        "gain in % of V+T over V+A",
        stated("A", "5.2", "gain of V+T over V+A"),
        lambda: _gain(_rho("A3", "V+T"), _rho("A3", "V+A")),
        1,
    ),
    Check(
        "A",
        "5.2",
        "gain in % of the full model over the best unimodal",
        stated("A", "5.2", _BEST),
        lambda: _gain(_rho("A3", "V+A+T"), _rho("A2", "Wav2Vec2 (ours)")),
        1,
    ),
    Check(
        "A",
        "5.2",
        "the same gain in %, over V+A",
        stated("A", "5.2", _BEST),
        lambda: _gain(_rho("A3", "V+A+T"), _rho("A3", "V+A")),
        1,
    ),
    Check(
        "A",
        "1",
        "videos against Table 1",
        stated("A", "1", "videos"),
        lambda: _total("A1", "samples"),
        0,
    ),
    Check(
        "A",
        "1",
        "hours against Table 1",
        stated("A", "1", "hours"),
        lambda: _total("A1", "duration") / 3600,
        0,
    ),
    Check(
        "B",
        "1",
        "videos against Table 1",
        stated("B", "1", "videos"),
        lambda: _total("B1", "samples"),
        0,
    ),
    Check(
        "B",
        "1",
        "hours against Table 1",
        stated("B", "1", "hours"),
        lambda: _total("B1", "duration") / 3600,
        0,
    ),
    *_check_deltas(),
    Check(
        "B",
        "4.3",
        "gain of cross-attention over self-attention",
        stated("B", "4.3", "gain of cross-attention over self-attention"),
        lambda: _rho("B3", "TAEMI (full)") - _rho("B3", "w/o text-anchored cross-attention"),
    ),
    Check(
        "B",
        "4.3",
        "ρ vision-anchored against Table 4",
        stated("B", "4.3", "ρ vision-anchored"),
        lambda: _rho("B4", "Vision-anchored"),
    ),
    Check(
        "B",
        "Table 2",
        "ρ of Yu 2025 against paper A, Table 3",
        _rho("B2", "Yu 2025"),
        lambda: _rho("A3", "V+A+T"),
    ),
)


@dataclasses.dataclass(frozen=True)
class Contradiction:
    """What does not add up.

    places : the places that disagree
    text : what each says, and what is right where that can be told
    here : what is done here about it, "" where nothing needs doing
    check : names (paper, where, what) of the entries of CHECKS that recompute it
    """

    paper: str
    title: str
    places: tuple[str, ...]
    text: str
    here: str = ""
    checks: tuple[tuple[str, str, str], ...] = ()


CONTRADICTIONS: tuple[Contradiction, ...] = (
    Contradiction(
        "A",
        "ρ of the full model",
        ("Abstract", "1", "6", "Table 3"),
        "Abstract, introduction and conclusion say 0.35, Table 3 says 0.3626. Nearest in the "
        "tables to 0.35 is A+T, 0.3518.",
        "Table 3 is taken as the paper's number.",
        (("A", "Abstract", "ρ of the full model against Table 3"),),
    ),
    Contradiction(
        "A",
        "Gain over the best unimodal model",
        ("5.2", "Table 2", "Table 3"),
        "Section 5.2 says +27.5 %. 0.3626 over 0.2734 is +32.6 %; +27.4 % is the gain over V+A.",
        "",
        (
            ("A", "5.2", "gain in % of the full model over the best unimodal"),
            ("A", "5.2", "the same gain in %, over V+A"),
        ),
    ),
    Contradiction(
        "A",
        "Gain over the best baseline",
        ("Abstract", "1", "6", "Table 3"),
        "+40 % follows from 0.35 over 0.25. With the 0.3626 of Table 3 it is +45 %.",
        "",
        (
            ("A", "Abstract", "gain in % over the best baseline, from the stated 0.35"),
            ("A", "Abstract", "gain in % over the best baseline, from Table 3"),
        ),
    ),
    Contradiction(
        "A",
        "The wrong table",
        ("5.1", "Table 2"),
        "Section 5.1 speaks of Table 3; its numbers are in Table 2.",
    ),
    Contradiction(
        "A",
        "Two equations (9)",
        ("3.5", "4.2"),
        "The Transformer's input and the correlation of one emotion are both numbered (9).",
        "Eq. 9 means the Transformer here.",
    ),
    Contradiction(
        "A, B",
        "Size of the data set",
        ("A 1", "A 4.1", "A Table 1", "B 1", "B 4.1", "B Table 1"),
        "15,000 videos and over 25 hours in the text of both; 17,246 clips, 33:23:10 in Table 1.",
        "Table 1 is taken as the paper's number.",
        (
            ("A", "1", "videos against Table 1"),
            ("A", "1", "hours against Table 1"),
            ("B", "1", "videos against Table 1"),
            ("B", "1", "hours against Table 1"),
        ),
    ),
    Contradiction(
        "A",
        "What is fused",
        ("Eq. 4", "Eq. 9"),
        "Eq. 4 concatenates the mapped modalities, Eq. 9 gives a weighted sum to the Transformer. "
        "Both cannot be the fusion.",
        'The weighted sum; fusion="concat" is the other reading.',
    ),
    Contradiction(
        "A",
        "Time base of the sum",
        ("Eq. 9", "Eq. 5", "Eq. 6"),
        "Eq. 9 adds vision, indexed by segment m, audio and weights, indexed by time t, and text "
        "without a time index; and text is 768 wide while audio has the width of a BiLSTM.",
        "All three on the M segments of Eq. 5, after mapping to one width.",
    ),
    Contradiction(
        "A",
        "Steps of the label",
        ("3.6", "4.1"),
        "The loss sums over T time steps against y^t; the data set has one label a clip.",
        "One MSE a clip, on the mean over the steps' outputs.",
    ),
    Contradiction(
        "A",
        "Widths in the contrastive loss",
        ("3.3", "Eq. 1"),
        "Audio 1024 wide and text 768 wide meet in one dot product and no projection is named. "
        "Eq. 1 goes in one direction and its vectors are not normalised.",
        "Projection heads, cosine similarity, both directions; Eq. 1 to the letter is offered.",
    ),
    Contradiction(
        "A",
        "Alignment of audio and frames",
        ("3.1",),
        "Audio windows of 20 ms are said to be strictly aligned with frames at 5 a second, "
        "200 ms apart: ten windows fall on one frame.",
        "Both are pooled to the same segments.",
    ),
    Contradiction(
        "A",
        "Ablations that are not there",
        ("Abstract", "5", "Table 3"),
        "The abstract says that ablations validate the two training stages and the dynamic fusion; "
        "the tables change modalities only. Section 5.2 calls the gain super-additive, and no row "
        "has text alone.",
        "What each part does is measured with runs of its own.",
    ),
    Contradiction(
        "B",
        "ρ with vision as anchor",
        ("4.3", "Table 4"),
        "Section 4.3 says 0.49, Table 4 says 0.39.",
        "Table 4 is taken as the paper's number.",
        (("B", "4.3", "ρ vision-anchored against Table 4"),),
    ),
    Contradiction(
        "B",
        "Width of the fused vector",
        ("3.3",),
        "f is 1792 wide, 768 + 512 + 512, so t is the encoder's vector; the text says t was "
        "projected into the shared space before.",
        "t stays 768 wide in f and its projection asks; the projected text in f is an option.",
    ),
    Contradiction(
        "B",
        "Which modalities have a missing token",
        ("3.4",),
        "Tokens are for a missing visual or textual modality; modality dropout replaces each "
        "modality, audio included.",
        "Every modality has a token.",
    ),
    Contradiction(
        "B",
        "ρ of Yu 2025",
        ("B Table 2", "A Table 3"),
        "Table 2 quotes 0.51. The version of that work that is paper A reports 0.3626; a later "
        "version reports 0.51 on validation and 0.68 on test.",
        "The row shows 0.51 as quoted.",
        (("B", "Table 2", "ρ of Yu 2025 against paper A, Table 3"),),
    ),
    Contradiction(
        "B",
        "Self-attention over one vector",
        ("3.3",),
        "A self-attention layer follows each projection; over the single text vector it attends to "
        "nothing but itself.",
        "No self-attention over the text.",
    ),
    Contradiction(
        "B",
        "Clipping threshold",
        ("4.1",),
        "Gradients are clipped at 100.0, by norm or by value is not said.",
        "By norm; by value, as in the release, is an option.",
    ),
    Contradiction(
        "B",
        "One factor a run",
        ("4.1", "4.3", "Table 3"),
        "Each ablation is said to change one factor. Simple concatenation leaves out self-"
        "and cross-attention, its marks for missing tokens and modality dropout are blank, and "
        "sequences of differing length have no flattened width.",
        "Missing tokens and dropout stay on, sequences are averaged over their real steps.",
    ),
)


def ledger() -> pd.DataFrame:
    """What does not add up, a row each: paper, title, places, text, here, stated, recomputed."""
    by_name = {(c.paper, c.where, c.what): c for c in CHECKS}
    out = []
    for entry in CONTRADICTIONS:
        found = [by_name[name] for name in entry.checks]
        out.append(
            {
                "paper": entry.paper,
                "title": entry.title,
                "places": "; ".join(entry.places),
                "text": entry.text,
                "here": entry.here,
                "stated": ", ".join(f"{c.stated:g}" for c in found),
                "recomputed": ", ".join(f"{c.recompute():.5g}" for c in found),
            }
        )
    return pd.DataFrame(out)


def checks() -> pd.DataFrame:
    """Every number that can be recomputed: paper, where, what, stated, recomputed, holds."""
    return pd.DataFrame(
        {
            "paper": c.paper,
            "where": c.where,
            "what": c.what,
            "stated": c.stated,
            "recomputed": c.recompute(),
            "holds": c.holds,
        }
        for c in CHECKS
    )
