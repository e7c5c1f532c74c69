"""What the guard found in a run: copies among the fixed sets and among what teachers wrote, as verdict.json has it."""

from collections import Counter

import pandas as pd

from workbench.runs.errors import spoken
from workbench.runs.recipe import Recipe
from workbench.tasks.contamination import LEVELS, OFF, reason_of
from workbench.tasks.task import Task, all_test_items, copied_items, guard_of

# A reason for which a question was dropped -> the set that it copies, and the level that found it.
SETS = ("seeds", "validation", "test", "evaluated")
_PAIR_OF = {reason_of(level, name): (name, level) for level in LEVELS for name in SETS}
LAST = ("copied", "level", "n", "done")


def overlap_report(recipe: Recipe, tasks: dict[str, Task], questions: pd.DataFrame, examples: pd.DataFrame) -> dict:
    """Return what was compared, with what, and what was found.

    Returns:
        false_positive_rate: The share of independent items that may have been taken for copies, as the recipe has it.
        off: By task, the levels that cannot tell a copy from a sibling there, or that the recipe leaves out.
        found: One row for each task, set, set it overlaps with and level: items, of (how many were compared),
            copied, level, n, done. Nothing in it is used: neither trained on nor asked.
    """
    found, off = [], {}
    for name, task in tasks.items():
        guard = guard_of(recipe, task)
        off[name] = [level for level in LEVELS if guard.thresholds.get(level, OFF) == OFF]
        copied = [one.reason for one in copied_items(recipe, task).values()]
        sets = [("test", len(all_test_items(recipe, task)[0]), copied, "left out of the evaluation")]
        for items, frame in (("drafted questions", questions), ("training examples", examples)):
            reasons = frame.loc[frame["task"] == name, "drop_reason"]
            sets.append((items, len(reasons), reasons, "dropped before use"))
        for items, of, reasons, done in sets:
            counts = Counter(_PAIR_OF[reason] for reason in reasons if reason in _PAIR_OF)
            row = {"task": name, "items": items, "of": of}
            found += [row | dict(zip(LAST, (*pair, n, done), strict=True)) for pair, n in sorted(counts.items())]
    return {"false_positive_rate": recipe.guard.false_positive_rate, "off": off, "found": found}


def overlap_warnings(report: dict) -> list[str]:
    """Return a sentence for each task whose test items overlapped with what the run sees before."""
    tests = [row for row in report["found"] if row["items"] == "test"]
    by_task = {spoken(task): [row for row in tests if row["task"] == task] for task in report["off"]}
    return [
        f"{sum(row['n'] for row in rows)} of the {rows[0]['of']} test items of {task} copy seed or validation items "
        f"and were left out: {', '.join('{n} {copied} ({level})'.format(**row) for row in rows)}."
        for task, rows in by_task.items()
        if rows
    ]
