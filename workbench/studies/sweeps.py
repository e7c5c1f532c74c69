"""Sweeps: one recipe in several settings, gathered in one table.

The sweep NAME is the runs NAME-1, NAME-2 and so on, evaluated on validation items unless asked otherwise, and
NAME-chosen, the best of them on test items, which nobody has chosen by. Nothing else is kept of a sweep: what its
settings are is read off the recipes of its runs.
"""

import itertools
import re

import pandas as pd

from workbench.runs.cache import runs_folder
from workbench.runs.errors import RunError
from workbench.runs.recipe import flatten
from workbench.runs.run import VERDICT, Run, open_run
from workbench.verdict.intervals import BETTER, UNDECIDED, WORSE, holm
from workbench.verdict.verdict import verdict_of

CHOSEN = "chosen"


def runs_of(name: str) -> list[Run]:
    """Return the runs of a sweep's settings, in order; a RunError if there are none."""
    names = [path.parent.name for path in runs_folder().glob("*/recipe.yaml")]
    numbers = [re.fullmatch(rf"{re.escape(name)}-(\d+)", one) for one in names]
    found = sorted(int(number[1]) for number in numbers if number)
    if not found:
        raise RunError(f"There is no sweep {name!r}; begin it: workbench sweep RECIPE -p KEY VALUE,VALUE --name {name}")
    return [open_run(f"{name}-{number}") for number in found]


def settings_of(works: list[Run]) -> pd.DataFrame:
    """Return what the recipes of several runs differ in, a row a run: column run, and the keys of the recipe."""
    flat = [dict(flatten(work.recipe.model_dump())) for work in works]
    keys = [key for key in dict.fromkeys(itertools.chain(*flat)) if len({str(one.get(key)) for one in flat}) > 1]
    rows = [{"run": work.name} | {key: one.get(key) for key in keys} for work, one in zip(works, flat, strict=True)]
    return pd.DataFrame(rows)


def results(name: str) -> pd.DataFrame:
    """Return the primary comparison of every setting of a sweep, and of the chosen one.

    Returns:
        A row a run and student: run, the keys that differ, student, items (which), n_items, difference, low, high (as
        shares), p_value, p_adjusted (Holm's, for all settings and students; the chosen one stands alone), decision
        (better and worse only where p_adjusted allows it).

    Raises:
        RunError: If there is no such sweep, or one of its runs has no verdict yet.
    """
    works = runs_of(name)
    settings = settings_of(works)
    table = pd.concat([_compared(work).merge(settings, on="run") for work in works], ignore_index=True)
    table["p_adjusted"] = holm(list(table["p_value"]))
    chosen = f"{name}-{CHOSEN}"
    if (runs_folder() / chosen / VERDICT).is_file():
        work = open_run(chosen)
        flat, last = dict(flatten(work.recipe.model_dump())), _compared(work)
        last[list(settings.columns[1:])] = [[flat.get(key) for key in settings.columns[1:]]] * len(last)
        table = pd.concat([table, last.assign(p_adjusted=last["p_value"])], ignore_index=True)
    sure = (table["p_adjusted"] <= table.pop("alpha")) | ~table["decision"].isin([BETTER, WORSE])
    table["decision"] = table["decision"].where(sure, UNDECIDED)
    named = ["run", *settings.columns.drop("run"), "student", "items", "n_items", "difference", "low", "high"]
    return table[[*named, "p_value", "p_adjusted", "decision"]]


def _compared(work: Run) -> pd.DataFrame:
    verdict, rows = verdict_of(work), []
    for student in work.recipe.models.students:
        block = verdict["students"][student] if "students" in verdict else verdict
        row = block["comparisons"][0]
        known = {key: row[key] for key in ("difference", "low", "high", "p_value", "decision")}
        own = {"run": work.name, "student": student, "items": work.recipe.evaluation.items}
        n_items = block["arms"][row["a"]]["n_items"]
        rows.append(own | {"n_items": n_items, "alpha": work.recipe.evaluation.alpha} | known)
    return pd.DataFrame(rows)


def best(table: pd.DataFrame) -> str:
    """Return the run whose setting has the largest difference, on the mean over students; the first of those alike."""
    return str(table.groupby("run", sort=False)["difference"].mean().idxmax())
