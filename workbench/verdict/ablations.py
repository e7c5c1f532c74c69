"""What each part of the method is worth: arms against each other, with a paper's direction beside ours, and cohorts.

Source of the directions: ARTE, arXiv:2406.19227, tables 2, 5 and 6: differences of its accuracies, in points.
"""

from typing import NamedTuple

import pandas as pd

from workbench.runs.recipe import TAILORED_FOR, Evaluation
from workbench.verdict.intervals import holm
from workbench.verdict.verdict import arm_accuracy, compare, counted

ALL, OTHERS = "all students", "tailored for others"
KEPT = ("a", "b", "difference", "low", "high", "p_value", "decision", "n_seeds", "n_items")


class Contrast(NamedTuple):
    """Arm a minus arm b; `paper` is what the paper has for it, in points, nan where it has nothing."""

    a: str
    b: str
    paper: float = float("nan")
    where: str = ""


CONTRASTS = (
    Contrast("tailored", "untailored"),
    Contrast("tailored", "random_pairs"),
    Contrast("tailored", "most_preferred", 4.41, "table 2, BBH zero-shot, aligned - original teacher"),
    Contrast("question_only", "most_preferred", 4.18, "table 2, BBH zero-shot, question only - original teacher"),
    Contrast("rationale_only", "most_preferred", 0.39, "table 2, BBH zero-shot, rationale only - original teacher"),
    Contrast("random_rationale", "most_preferred", -0.10, "table 6, 3-shot"),
    Contrast("task_consistent", "most_preferred", 2.08, "table 6, 3-shot"),
    Contrast("decided_pairs", "fewer_pairs"),
    Contrast("tailored", OTHERS),
)


def contrasts(predictions: pd.DataFrame, settings: Evaluation) -> pd.DataFrame:
    """Return every contrast whose arms the predictions have, for each student and for all, an item once a student.

    Where they have none of those, the first arm of the primary comparison stands against every other arm.

    Returns:
        Columns student, a, b, difference, low, high, p_value, p_holm (by sign flips; corrected for the number of a
        student's contrasts), decision, n_seeds, n_items, paper, where; shares of 1, the paper's difference too.
    """
    predictions, rule, rows = _with_others(predictions), (settings.primary.shots, settings.margin, settings.alpha), []
    groups = {student: own for student, own in predictions.groupby("student", sort=False)}
    if len(groups) > 1:
        groups[ALL] = predictions.assign(task=predictions["student"] + "/" + predictions["task"], student=ALL)
    for student, own in groups.items():
        first, arms = settings.primary.a, own["arm"].unique()
        there = [one for one in CONTRASTS if {one.a, one.b} <= set(arms)]
        there = there or [Contrast(first, arm) for arm in arms if arm != first]
        found = []
        for one in there:
            # Of the students, by their tasks, that have both arms.
            tasks = [set(own.loc[own["arm"] == arm, "task"]) for arm in (one.a, one.b)]
            found.append(compare(own[own["task"].isin(set.intersection(*tasks))], one.a, one.b, *rule))
        p_holm = holm([result["p_value"] for result in found])
        for one, result, p in zip(there, found, p_holm, strict=True):
            row = {"student": student} | {key: result[key] for key in KEPT}
            rows.append(row | {"p_holm": float(p), "paper": one.paper / 100, "where": one.where})
    return pd.DataFrame(rows)


def hardest(predictions: pd.DataFrame, shots: int) -> pd.DataFrame:
    """Return the answers to those items that the untrained student, the arm base, gets wrong; without that arm none.

    Its own answers are left out: they are wrong by choice. The other arms had no part in the choice.
    """
    known, keys = counted(predictions), ["student", "task", "item_id"]
    base = known[(known["arm"] == "base") & (known["shots"] == shots)]
    wrong = base.loc[base["correct"] == 0, keys].drop_duplicates()
    return predictions[predictions["arm"] != "base"].merge(wrong, on=keys)


def _with_others(predictions: pd.DataFrame) -> pd.DataFrame:
    """Add an arm whose answers are the mean of those tailored for other students, where there are such."""
    predictions = counted(predictions)
    others = predictions[predictions["arm"].str.startswith(TAILORED_FOR)]
    keys = ["student", "seed", "shots", "task", "item_id"]
    mean = others.groupby(keys, as_index=False)["correct"].mean().assign(arm=OTHERS)
    return pd.concat([predictions, mean], ignore_index=True)


def cohort(predictions: pd.DataFrame, settings: Evaluation) -> pd.DataFrame:
    """Return the accuracy of every student on what was tailored for every student, with intervals.

    Returns:
        Columns student, tailored_for, accuracy, low, high; empty when no arm is tailored for another student.
    """
    rows = []
    for student, own in predictions.groupby("student", sort=False):
        arms = [arm for arm in own["arm"].unique() if arm.startswith(TAILORED_FOR)]
        for arm in ["tailored", *arms] if arms else []:
            found = arm_accuracy(own, arm, settings.primary.shots, settings.alpha)
            of = student if arm == "tailored" else arm.removeprefix(TAILORED_FOR)
            rows.append(found | {"student": student, "tailored_for": of})
    return pd.DataFrame(rows, columns=["student", "tailored_for", "accuracy", "low", "high"])
