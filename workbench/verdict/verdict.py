"""Decide whether tailoring helped; how the intervals are made, and how well they are calibrated: see intervals.py.

Accuracy and its differences are averaged over seeds and over items, every item weighing the same: a task with more
items counts for more. The tasks are those the recipe names, not a sample of tasks, so items are compared with the other
items of their task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from workbench.runs.errors import DataError, RunError, spoken
from workbench.runs.recipe import TAILORED_FOR
from workbench.runs.run import Run
from workbench.verdict import intervals
from workbench.verdict.in_words import JUDGED, level, opened_in_words
from workbench.verdict.intervals import BETTER, UNDECIDED, WORSE, VarianceComponents, decide, half_width, holm, spread
from workbench.verdict.win_rates import win_rate_of

BASE_SEED = -1
UNTRAINED = {"training_tokens": 0, "steps": 0}


def counted(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return predictions with `correct` as a number: 1.0 right, 0.0 wrong or, of open answers, what the judge said.

    An item of which some answer was not judged is left out for all arms: none is compared on easier items.

    Raises:
        DataError: If that leaves no task two items.
    """
    if "judged" not in predictions:
        return predictions.astype({"correct": float})
    missing, keys = predictions["judged"].isna(), ["student", "shots", "task", "item_id"]
    kept = predictions[~missing.groupby([predictions[key] for key in keys]).transform("any")]
    if not kept.drop_duplicates(["task", "item_id"])["task"].duplicated().any():
        raise DataError(
            f"{missing.sum()} of {len(missing)} answers were not judged, which leaves no task two items that all arms "
            "and seeds can be compared on; take another models.judge."
        )
    return kept.assign(correct=kept["judged"])


def whole_sums(table: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the sums over seeds in whole numbers, for which a sign-flip test is exact, and their unit.

    Where ties count half, the unit is one half.
    """
    sums = table.sum(axis=0)
    return (sums, 1.0) if np.array_equal(sums, np.round(sums)) else (2 * sums, 0.5)


def answers(predictions: pd.DataFrame, arm: str, shots: int) -> pd.DataFrame:
    """Return what was answered, as `counted` has it: a row a seed, a column a (task, item_id).

    Raises:
        DataError: If the arm is missing, an item is there twice, or a seed lacks an item, naming the first.
    """
    students = predictions["student"].unique()
    if len(students) > 1:
        raise DataError(f"the predictions hold {len(students)} students ({', '.join(map(str, students))}); pass one.")
    rows = counted(predictions)
    rows = rows[(rows["arm"] == arm) & (rows["shots"] == shots)]
    if rows.empty:
        known = ", ".join(sorted(predictions["arm"].unique())) or "none"
        raise DataError(f"no predictions of arm {arm!r} with {shots} shots (arms there: {known}); run the evaluation.")
    key = ["seed", "task", "item_id"]
    twice = rows[rows.duplicated(key)]
    if len(twice):
        seed, task, item = twice[key].iloc[0]
        raise DataError(f"arm {arm!r} answered item {item!r} of {task!r} twice under seed {seed}; keep one answer.")
    table = rows.pivot(index="seed", columns=["task", "item_id"], values="correct")
    table = table.sort_index(axis=0).sort_index(axis=1)
    missing = np.argwhere(table.isna().to_numpy())
    if len(missing):
        seed, (task, item) = table.index[missing[0][0]], table.columns[missing[0][1]]
        lacking = f"arm {arm!r} lacks item {item!r} of {task!r} under seed {seed}"
        raise DataError(f"{lacking}; evaluate it on the same items.")
    return table


def paired(predictions: pd.DataFrame, a: str, b: str, shots: int) -> pd.DataFrame:
    """Return a minus b, a row a seed and a column an item; the base arm's single answer stands for every seed."""
    left, right = answers(predictions, a, shots), answers(predictions, b, shots)
    odd = left.columns.symmetric_difference(right.columns)
    if len(odd):
        task, item = odd[0]
        lacks = b if odd[0] in left.columns else a
        raise DataError(f"arm {lacks!r} lacks item {item!r} of {task!r}; arms are compared on the same items only.")
    seeds = [table.index for table in (left, right) if list(table.index) != [BASE_SEED]]
    if not seeds or any(len(index) < 2 for index in seeds):
        short = f"arm {(a if len(left) < 2 else b)!r} has one seed"
        raise DataError(f"{short}; an interval needs two or more (five for a reported run): add seeds.")
    odd_seeds = seeds[0].symmetric_difference(seeds[-1])
    if len(odd_seeds):
        lacks = b if odd_seeds[0] in left.index else a
        raise DataError(f"arm {lacks!r} lacks seed {odd_seeds[0]}; train and evaluate it under the same seeds.")
    if left.shape[1] < 2:
        raise DataError(f"arms {a!r} and {b!r} share one item; an interval needs two or more: add test items.")
    return pd.DataFrame(left.to_numpy() - right.to_numpy(), index=seeds[0], columns=left.columns)


def arm_accuracy(predictions: pd.DataFrame, arm: str, shots: int, alpha: float = 0.05) -> dict:
    """Return the accuracy of an arm with a 1 - alpha interval over seeds and items (items alone for a single seed).

    The interval is Wilson's at the number of independent answers that would give the same width, so it stays in [0, 1].
    """
    table = answers(predictions, arm, shots)
    n_seeds, n_items = table.shape
    mean, effective = float(table.to_numpy().mean()), float(n_items)
    if n_seeds > 1 and n_items > 1 and 0.0 < mean < 1.0:
        width = half_width(spread(table.to_numpy(), table.columns.get_level_values("task")), alpha)
        effective = min(mean * (1 - mean) * (stats.norm.ppf(1 - alpha / 2) / width) ** 2, n_seeds * n_items)
    low, high = intervals.wilson(mean, effective, alpha)
    return {"accuracy": mean, "low": low, "high": high, "n_items": n_items, "n_seeds": n_seeds}


def compare(predictions: pd.DataFrame, a: str, b: str, shots: int, margin: float, alpha: float) -> dict:
    """Return the difference in accuracy a - b, its interval, p-value and decision.

    Args:
        predictions: Of one student. Seeds of the same number are paired; the base arm has the single seed -1.
        margin: Differences up to this size do not matter, as a share (0.05 is five points).
        alpha: The interval is 1 - alpha; equivalence is tested at alpha, so by the 1 - 2 alpha interval.

    Returns:
        a, b, shots, difference, low, high, p_value, decision, more_needed (None unless undecided), n_items, n_seeds,
        stderr, seed_sd (of the seed means), low_equivalence, high_equivalence, and the win rate; see win_rate_of.

    Raises:
        DataError: If arms, seeds or items do not match, naming the first that is missing.
    """
    return _compare(predictions, a, b, shots, margin, alpha)[0]


def _compare(
    predictions: pd.DataFrame, a: str, b: str, shots: int, margin: float, alpha: float
) -> tuple[dict, VarianceComponents]:
    table = paired(predictions, a, b, shots)
    of = spread(table.to_numpy(), table.columns.get_level_values("task"))
    half, inner = float(half_width(of, alpha)), float(half_width(of, 2 * alpha))
    decision = decide(of.mean, half, inner, margin)
    row = {
        "a": a,
        "b": b,
        "shots": int(shots),
        "difference": of.mean,
        "low": max(of.mean - half, -1.0),
        "high": min(of.mean + half, 1.0),
        "p_value": intervals.sign_flip_p_value(whole_sums(table.to_numpy())[0]),
        "decision": decision,
        "more_needed": intervals.sample_size_needed(of, margin, alpha) if decision == UNDECIDED else None,
        "n_items": of.n_items,
        "n_seeds": of.n_seeds,
        "stderr": float(of.stderr),
        "seed_sd": float(np.sqrt(of.ms_seed / of.n_items)),
        "low_equivalence": max(of.mean - inner, -1.0),
        "high_equivalence": min(of.mean + inner, 1.0),
    }
    # Where both were judged against a reference, nobody compared them with each other.
    return row | ({} if "judged" in predictions else win_rate_of(table.to_numpy(), half)), of


def adjusted(compared: list[tuple[dict, VarianceComponents]], margin: float, alpha: float) -> list[tuple[float, str]]:
    """Return each comparison's p-value and decision, corrected for the number of comparisons by Holm's method.

    Better and worse need a corrected p-value of at most alpha. What is corrected is the larger of the sign-flip p-value
    and the one at which the interval just leaves out zero. "No difference" is not corrected.
    """
    corrected, held = holm([max(row["p_value"], intervals.interval_p_value(of)) for row, of in compared]), []
    for (row, of), p in zip(compared, corrected, strict=True):
        decision = row["decision"]
        if decision in (BETTER, WORSE) and p > alpha:
            decision = decide(of.mean, 1.0, float(half_width(of, 2 * alpha)), margin)
        held.append((float(p), decision))
    return held


def per_task(predictions: pd.DataFrame, a: str, b: str, shots: int, margin: float, alpha: float) -> pd.DataFrame:
    """Return the comparison task by task; a task counts as better or worse only if Holm's p-value is at most alpha."""
    rows, compared = [], []
    items = answers(predictions, a, shots).columns.get_level_values("task")
    # Of an open task the judge may have left one item, which has no interval.
    for task in items.unique() if "judged" not in predictions else items[items.duplicated()].unique():
        own = predictions[predictions["task"] == task]
        row, of = _compare(own, a, b, shots, margin, alpha)
        means = {f"accuracy_{side}": float(answers(own, row[side], shots).to_numpy().mean()) for side in "ab"}
        rows.append({"task": task} | row | means)
        compared.append((row, of))
    for row, (_, of), (p, decision) in zip(rows, compared, adjusted(compared, margin, alpha), strict=True):
        if row["decision"] != decision:
            row["more_needed"] = intervals.sample_size_needed(of, margin, alpha) if decision == UNDECIDED else None
        row |= {"p_holm": p, "decision": decision}
    return pd.DataFrame(rows)


def verdict(
    predictions: pd.DataFrame,
    settings: Mapping,
    *,
    recipe: str,
    run: str,
    models: str,
    student: str,
    training: pd.DataFrame | None = None,
    test_set: Mapping | None = None,
    warnings: Sequence[str] = (),
) -> dict:
    """Return what verdict.json holds.

    Args:
        predictions: The evaluation's answers, of one student or several.
        settings: The recipe's evaluation section as a mapping: arms, shots, margin, alpha, primary (a, b, shots).
        models: "pocket" or the models' ids.
        student: The recipe's first student; the top level is its verdict.
        training: One row an arm (and student and seed, if there) with tokens and steps; seeds are averaged.
        test_set: name, sha256, times_opened.
    """
    test_set, blocks = dict(test_set or {}), {}
    for name in dict.fromkeys([student, *predictions["student"]]):
        own = predictions[predictions["student"] == name]
        if own.empty:
            raise DataError(f"no predictions of student {name!r}; run the evaluation for it.")
        blocks[name] = _student_verdict(own, settings, _training_of(training, name), test_set)
    top = {"recipe": recipe, "run": run, "models": models} | blocks[student]
    top |= {"warnings": [*warnings, *top["warnings"]], "test_set": test_set}
    return top | ({"students": blocks} if len(blocks) > 1 else {})


def verdict_of(run: Run) -> dict:
    """Return the run's verdict as stored; a RunError if it has none yet."""
    if not (found := run.verdict):
        raise RunError(
            f"Run {run.name} has no verdict yet; run notebooks/05_evaluation.ipynb or: "
            f"workbench run {run.recipe.name} --name {run.name}"
        )
    return found


def _training_of(training: pd.DataFrame | None, student: str) -> dict[str, dict]:
    """Return arm -> training tokens and steps, averaged over seeds."""
    if training is None or training.empty:
        return {}
    own = training[training["student"] == student] if "student" in training else training
    means = own.groupby("arm")[["tokens", "steps"]].mean().round().astype(int)
    return {arm: {"training_tokens": int(row.tokens), "steps": int(row.steps)} for arm, row in means.iterrows()}


def _student_verdict(predictions: pd.DataFrame, settings: Mapping, training: dict, test_set: Mapping) -> dict:
    primary, margin, alpha = dict(settings["primary"]), float(settings["margin"]), float(settings["alpha"])
    a, b, main = primary["a"], primary["b"], int(primary["shots"])
    shots = [main, *(s for s in settings["shots"] if s != main)]
    student = str(predictions["student"].iloc[0])
    own_arms = [arm for arm in settings["arms"] if arm != TAILORED_FOR + student]
    others = [b, *(arm for arm in own_arms if arm not in (a, b))]
    compared = [_compare(predictions, a, other, s, margin, alpha) for s in shots for other in others]
    comparisons = [row for row, _ in compared]
    # The primary comparison was named beforehand and stands alone.
    corrected = [(comparisons[0]["p_value"], comparisons[0]["decision"]), *adjusted(compared[1:], margin, alpha)]
    for row, (p, decision) in zip(comparisons, corrected, strict=True):
        row |= {"p_adjusted": p, "decision_adjusted": decision}
    arms = {}
    for arm in own_arms:
        by_shots = {str(s): arm_accuracy(predictions, arm, s, alpha) for s in shots}
        arms[arm] = by_shots[str(main)] | training.get(arm, UNTRAINED) | {"by_shots": by_shots}
        if "in_form" in predictions:
            own = predictions[(predictions["arm"] == arm) & (predictions["shots"] == main)]
            arms[arm]["in_form"] = float(own["in_form"].mean())
    what = "accuracy" if "judged" not in predictions else JUDGED
    rule = (
        f"{what} of {spoken(a)} minus {spoken(b)}, {main} shots, items weighing the same: better or worse when the "
        f"{level(alpha)} interval over seeds and items leaves out zero; no difference larger than the margin when the "
        f"{level(2 * alpha)} interval lies within +-{100 * margin:g} points; undecided otherwise"
    )
    block = {
        "student": student,
        "decision": comparisons[0]["decision"],
        "primary": primary | {"rule": rule, "margin": margin, "alpha": alpha},
        "arms": arms,
        "comparisons": comparisons,
        "per_task": per_task(predictions, a, b, main, margin, alpha).to_dict("records"),
        "warnings": _warnings(predictions, comparisons[0], arms, test_set),
    }
    if "judged" in predictions:
        block["judged"] = _judged(predictions)
        said = "{not_judged} of {answers} answers were not judged; {items_left} of {items} items are left for all arms."
        block["warnings"] += [said.format(**block["judged"])] if block["judged"]["not_judged"] else []
    # Plain Python values, as JSON holds them.
    text = json.dumps(block, default=lambda value: value.item())
    return json.loads(text, parse_float=lambda digits: round(float(digits), 6))


def _judged(predictions: pd.DataFrame) -> dict[str, int]:
    """Return how many open answers there are, how many were not judged, and how many items that leaves."""
    frames = {"items": predictions, "items_left": counted(predictions)}
    items = {name: len(frame.drop_duplicates(["task", "item_id"])) for name, frame in frames.items()}
    return {"answers": len(predictions), "not_judged": predictions["judged"].isna().sum()} | items


def _warnings(predictions: pd.DataFrame, primary: dict, arms: dict, test_set: Mapping) -> list[str]:
    """Return what a reader of the verdict should hold against it."""
    said = []
    if primary["n_seeds"] < 5:
        said.append(f"{primary['n_seeds']} seeds: a reported run uses five or more, and the intervals are wide for it.")
    if test_set.get("times_opened", 1) > 1:
        said.append(opened_in_words(test_set["times_opened"]))
    trained = {arm: row for arm, row in arms.items() if row["steps"]}
    for column, allowed in (("steps", 0.0), ("training_tokens", 0.02)):
        values = [row[column] for row in trained.values()]
        if values and max(values) - min(values) > allowed * max(values):
            said.append(f"Trained arms differ in {spoken(column)}: {min(values)} to {max(values)}.")
    formed = {spoken(arm): row["in_form"] for arm, row in arms.items() if row.get("in_form", 1) < 0.9}
    said += [f"{100 * s:.0f} % of the answers of {arm} are in the form asked for." for arm, s in formed.items()]
    unread = 1.0 - predictions.groupby("arm")["parsed"].mean().rename(spoken)
    said += [f"{100 * s:.0f} % of the answers of {arm} could not be read." for arm, s in unread.items() if s > 0.1]
    return said
