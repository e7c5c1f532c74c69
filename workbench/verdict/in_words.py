"""Shares, means, verdicts and what a judge said, in sentences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from workbench.verdict.intervals import BETTER, SAME, UNDECIDED, WORSE, clustered_mean, wilson

if TYPE_CHECKING:  # looking at pairs must not load torch
    from workbench.signals.judge import Judged


def opened_in_words(times: int) -> str:
    """Return what it means that a test set was opened so many times, this look included."""
    if times == 1:
        return "The test set was opened once, by this run: nothing can have been chosen by an earlier result on it."
    return (
        f"The test set has been opened {times} times, each time with another recipe, other models or other code; "
        "whatever was chosen after an earlier look (a setting, or which run to report) may suit these items by chance, "
        "and neither the intervals nor the p-values allow for that: confirm it on items that nobody has looked at."
    )


def sentence(result: Mapping) -> str:
    """Return a verdict (or one student's block of it) in two to four plain sentences."""
    main, primary = result["comparisons"][0], result["primary"]
    alpha, margin = primary["alpha"], primary["margin"]
    on = "On pocket models, for" if result.get("models") == "pocket" else "For"
    size = f"{main['n_seeds']} seeds, {main['n_items']} items, {main['shots']} shots"
    facts = f"{level(alpha)} interval {interval(main, points)}, {size}"
    said = [f"{on} student {result['student']}, {_finding(main, margin)} ({facts}, sign-flip p {_p(main['p_value'])})."]
    accuracies = ", ".join(
        f"{arm_name(arm)} {percent_in_tenths(row['accuracy'])}" for arm, row in result["arms"].items()
    )
    said.append(f"Right answers: {accuracies}.")
    rest = [row for row in result["comparisons"][1:] if row["shots"] == main["shots"] or row["b"] == main["b"]]
    if rest:
        others = "; ".join(_against(row, with_shots=row["shots"] != main["shots"]) for row in rest)
        said.append(f"{arm_name(main['a']).capitalize()} {others}.")
    if main["decision"] == UNDECIDED:
        said.append(_what_would_settle(main["more_needed"]))
    return " ".join(said)


def _finding(row: Mapping, margin: float) -> str:
    """Return the decision of one comparison as a clause."""
    a, b, size = arm_name(row["a"]), arm_name(row["b"]), f"{abs(100 * row['difference']):.1f} points"
    if row["decision"] in (BETTER, WORSE):
        small = f", less than the {100 * margin:g} points that count" if abs(row["difference"]) < margin else ""
        return f"{a} is {row['decision']} than {b} by {size}{small}"
    if row["decision"] == SAME:
        none = f"there is no difference larger than {100 * margin:g} points between {a} and {b}"
        return f"{none}: {points(row['difference'])} points"
    return f"it is undecided whether {a} is better than {b}: {points(row['difference'])} points"


def _against(row: Mapping, with_shots: bool) -> str:
    """Return one of the other comparisons as a clause."""
    other = arm_name(row["b"]) + (f" with {row['shots']} shots" if with_shots else "")
    return f"against {other}: {decision_in_words(row)} ({points(row['difference'])}, {interval(row, points)})"


def decision_in_words(row: Mapping) -> str:
    """Return the decision of a comparison and, where that is another, the one corrected for their number."""
    own, held = row["decision"], row.get("decision_adjusted", row["decision"])
    return own if own == held else f"{own} taken alone, {held} corrected for the number of comparisons"


def _what_would_settle(more: Mapping) -> str:
    ways = [f"{more[key]} more {key}" for key in ("seeds", "items") if more[key]]
    if not ways:
        return "Nothing within reach would settle it at the difference and spread seen."
    joined = (" together with " if more["together"] else " or ").join(ways)
    return f"At the difference and spread seen, {joined} would settle it in about four of five repeats."


def arm_name(name: str) -> str:
    return name.replace("_", " ")


def points(share: float) -> str:
    """Return a difference of shares in points, with its sign."""
    return f"{100 * share:+.1f}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def percent_in_tenths(share: float) -> str:
    return f"{100 * share:.1f} %"


def interval(row: Mapping, form: Callable[[float], str]) -> str:
    """Return the bounds low and high of a row, in the form of `points` or `percent`."""
    return f"{form(row['low'])} to {form(row['high'])}"


def spell(value: float, low: float, high: float, form: str = "%") -> str:
    """Return a number with its interval, as "0.97 (0.94 to 0.99)"; the form "%" is for shares."""
    number, least, most = (percent(one) if form == "%" else format(one, form) for one in (value, low, high))
    return f"{number} (no interval)" if math.isnan(low) else f"{number} ({least} to {most})"


def level(alpha: float) -> str:
    return f"{100 * (1 - alpha):g} %"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def share_of(right: pd.Series, clusters: pd.Series | None = None) -> str:
    """Return a share in words, with its 95 % interval.

    Args:
        right: Truth values.
        clusters: What the rows share, for example the question; without it rows count as independent.

    Example:
        >>> share_of(pd.Series([True, True, False, True]))
        '75 % (95 % interval 30 to 95 %, n = 4)'
    """
    if len(right) == 0:
        return "none (n = 0)"
    mean, n = float(right.mean()), len(right) if clusters is None else clusters.nunique()
    low, high = wilson(mean, n)
    # A share of 0 or 1 shows no spread between clusters; then each counts as one observation.
    if clusters is not None and n > 1 and mean not in (0.0, 1.0):
        mean, low, high = clustered_mean(right.astype(float), clusters)
    return f"{100 * mean:.0f} % (95 % interval {100 * max(low, 0):.0f} to {100 * min(high, 1):.0f} %, n = {len(right)})"


def mean_of(values: pd.Series, clusters: pd.Series | None = None) -> str:
    """Return a mean in words, with its 95 % t interval.

    Args:
        values: Numbers.
        clusters: What the rows share, for example the question; without it rows count as independent.

    Example:
        >>> mean_of(pd.Series([1.0, 2.0, 3.0]))
        '2.00 (95 % interval -0.48 to 4.48, n = 3)'
    """
    own = values.index.to_series() if clusters is None else clusters
    if own.nunique() < 2:
        return f"{values.mean():.2f} (n = {len(values)}, too few for an interval)"
    mean, low, high = clustered_mean(values, own)
    return f"{mean:.2f} (95 % interval {low:.2f} to {high:.2f}, n = {len(values)})"


def by_arm(judged: Judged) -> pd.DataFrame:
    """Return what the judge says of each student's arms: columns student, arm, the judge agrees (in words), no answer.

    Intervals are over questions; examples to which the judge had no answer are counted apart.
    """
    rows = []
    for (student, arm), own in judged.examples.groupby(["student", "arm"]):
        known = own[own["agrees"].notna()]
        agrees = share_of(known["agrees"].astype(bool), known["question_id"])
        rows.append((student or "every student", arm, agrees, len(own) - len(known)))
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
