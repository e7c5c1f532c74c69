"""Shares, means, verdicts and what a judge said, in sentences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from workbench.runs.errors import spoken as spoken
from workbench.verdict.intervals import clustered_mean, wilson

if TYPE_CHECKING:  # looking at pairs must not load torch
    from workbench.signals.judge import Judged


RIGHT, WRONG, UNCHECKED = STATES = ("right", "wrong", "cannot be checked")
# What a share of open answers counts.
JUDGED = "answers judged better than the reference (a tie counts half)"
ARMS = ("base", "untailored", "random_pairs", "tailored")
UNRECOGNISED = "unrecognised"
NO_COMPARISON = "No comparison:"  # begins a warning that is said before everything else


def opened_in_words(times: int) -> str:
    """Return what it means that a test set was opened so many times, this look included."""
    if not times:
        return "The test set was not opened: these are validation items, on which settings may be chosen."
    if times == 1:
        return "The test set was opened once, by this run: nothing can have been chosen by an earlier result on it."
    return (
        f"The test set has been opened {times} times, each time with another recipe, other models or other code; "
        "whatever was chosen after an earlier look (a setting, or which run to report) may suit these items by chance, "
        "and neither the intervals nor the p-values allow for that: confirm it on items that nobody has looked at."
    )


def decision_in_words(row: Mapping) -> str:
    """Return the decision of a comparison and, where that is another, the one corrected for their number."""
    own, held = row["decision"], row.get("decision_adjusted", row["decision"])
    return own if own == held else f"{own} taken alone, {held} corrected for the number of comparisons"


def shots_in_words(n: int) -> str:
    """Return how students are asked.

    Example:
        >>> shots_in_words(0), shots_in_words(3)
        ('no example in the prompt (0 shots)', '3 examples in the prompt (3 shots)')
    """
    return f"{n or 'no'} example{'s' * (n > 1)} in the prompt ({n} shot{'s' * (n != 1)})"


def what_would_settle(more: Mapping) -> str:
    """Return how much more an undecided comparison needs, in a sentence."""
    ways = [f"{more[key]} more {key}" for key in ("seeds", "items") if more[key]]
    if not ways:
        return "Nothing within reach would settle it at the difference and spread seen."
    joined = (" together with " if more["together"] else " or ").join(ways)
    return f"At the difference and spread seen, {joined} would settle it in about four of five repeats."


def points(share: float) -> str:
    """Return a difference of shares in points, with its sign."""
    return f"{100 * share:+.1f}"


def counted_in(block: Mapping) -> str:
    """Return what the shares of a verdict count."""
    return JUDGED if "judged" in block else "right answers"


def marks_of(predictions: pd.DataFrame) -> pd.Series:
    """Return a sign or word for each answer: right or wrong or, where answers are open, what the judge said."""
    if "judged" not in predictions:
        return predictions["correct"].map({True: "✓", False: "✗"})
    said = {1.0: "(judged better)", 0.5: "(a tie)", 0.0: "(judged worse)"}
    return predictions["judged"].map(said).fillna("(not judged)")


def in_order(rows: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Return rows in the order of all figures, tables and legends, by the first column, then by the next.

    Arms as in ARMS, answers as in STATES, then others as they come. Styles, and the techniques that ask for them: by
    name, what is in none of them last. Students and the rest as they come: steps and verdict keep the recipe's order.
    """

    def places(column: pd.Series) -> pd.Series:
        values = list(column.unique())
        if column.name in ("technique", "style"):
            values.sort(key=lambda style: (style in ("", UNRECOGNISED), style))
        else:
            known = (*ARMS, *STATES)
            values.sort(key=lambda name: known.index(name) if name in known else len(known))
        return column.map({value: place for place, value in enumerate(values)})

    return rows.sort_values(list(columns), key=places, kind="stable")


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def spell(value: float, low: float, high: float, unit: str = "%") -> str:
    """Return a number with its interval, with as many decimals as its width bears: see `decimals`.

    Args:
        value: The number; nan where nothing can be said.
        low: Lower end of its interval; nan where there is none.
        high: Upper end.
        unit: "%" for a share, "points" for a difference of shares, "" for any other number.

    Example:
        >>> spell(0.0425, -0.148, 0.235, "points"), spell(0.94, 0.907, 0.973, ""), spell(0.27, 0.251, 0.29)
        ('+4 points (-15 to +24)', '0.94 (0.91 to 0.97)', '27 % (25 to 29)')
    """
    if math.isnan(value):
        return "not known"
    scale, sign = (1, "") if not unit else (100, "+" if unit == "points" else "")
    n = decimals(scale * low, scale * high) if high > low else 0 if unit else 2
    # Adding zero takes the sign off a zero.
    number, least, most = (f"{round(scale * one, n) + 0.0:{sign}.{n}f}" for one in (value, low, high))
    said = f"{number} {unit}".strip()
    return f"{said} (no interval)" if math.isnan(low) else f"{said} ({least} to {most})"


def decimals(low: float, high: float) -> int:
    """Return how many digits after the point an interval bears, so that half its width is 1 to 10 of the last ones.

    Example:
        >>> decimals(-14.8, 23.5), decimals(2.1, 3.9), decimals(0.91, 0.97)
        (0, 1, 2)
    """
    return max(0, -math.floor(math.log10((high - low) / 2)))


def level(alpha: float) -> str:
    return f"{100 * (1 - alpha):g} %"


def states(rows: pd.DataFrame) -> pd.Series:
    """Return of each draft or example whether its answer is right, wrong or cannot be checked (gold is "")."""
    return rows["correct"].map({True: RIGHT, False: WRONG}).where(rows["gold"] != "", UNCHECKED)


def share_of(right: pd.Series, clusters: pd.Series | None = None) -> str:
    """Return a share in words, with its 95 % interval.

    Args:
        right: Truth values.
        clusters: What the rows share, for example the question; without it rows count as independent.

    Example:
        >>> share_of(pd.Series([True, True, False, True]))
        '75 % (95 % interval 30 to 95, n = 4)'
    """
    if len(right) == 0:
        return "none (n = 0)"
    mean, n = float(right.mean()), len(right) if clusters is None else clusters.nunique()
    low, high = wilson(mean, n)
    # A share of 0 or 1 shows no spread between clusters; then each counts as one observation.
    if clusters is not None and n > 1 and mean not in (0.0, 1.0):
        mean, low, high = clustered_mean(right.astype(float), clusters)
    return _with_n(spell(mean, max(low, 0), min(high, 1)), len(right))


def mean_of(values: pd.Series, clusters: pd.Series | None = None) -> str:
    """Return a mean in words, with its 95 % t interval.

    Args:
        values: Numbers.
        clusters: What the rows share, for example the question; without it rows count as independent.

    Example:
        >>> mean_of(pd.Series([1.0, 2.0, 3.0]))
        '2 (95 % interval 0 to 4, n = 3)'
    """
    own = values.index.to_series() if clusters is None else clusters
    if own.nunique() < 2:
        return f"{values.mean():.2f} (n = {len(values)}, too few for an interval)"
    mean, low, high = clustered_mean(values, own)
    return _with_n(spell(mean, low, high, ""), len(values))


def _with_n(said: str, n: int) -> str:
    return f"{said.replace('(', '(95 % interval ').removesuffix(')')}, n = {n})"


def by_arm(judged: Judged) -> pd.DataFrame:
    """Return what the judge says of each student's arms: columns student, arm, the judge agrees (in words), no answer.

    Intervals are over questions; examples to which the judge had no answer are counted apart.
    """
    rows = []
    for (student, arm), own in judged.examples.groupby(["student", "arm"]):
        known = own[own["agrees"].notna()]
        agrees = share_of(known["agrees"].astype(bool), known["question_id"])
        rows.append((student or "every student", spoken(arm), agrees, len(own) - len(known)))
    return pd.DataFrame(rows, columns=["student", "arm", "the judge agrees", "no answer"])


def reliability(judged: Judged) -> str:
    """Return in sentences what the judge's word is worth: on known questions, and where a rule checks the examples."""
    share, n = float(judged.validation["right"].mean()), len(judged.validation)
    low, high = map(percent, wilson(share, n))
    said = f"On {n} validation questions, whose answers are known, the judge is right in {percent(share)} "
    said += f"(95 % interval {low} to {high})"
    silent = int((judged.validation["said"] == "").sum())
    said += f"; to {silent} it had no readable answer, which counts as wrong." if silent else "."
    examples = judged.examples
    checked = examples[(examples["gold"] != "") & examples["agrees"].notna()]
    for right, what in ((True, "right"), (False, "wrong")):
        own = checked[checked["correct"] == right]
        if len(own):
            agrees = percent(own["agrees"].astype(float).mean())
            said += f" Of {len(own)} answered examples that are {what} by rule, it agrees with {agrees}."
    return said
