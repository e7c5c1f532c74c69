"""Every signal that can be measured on the drafts of a run, by name: what a recipe may choose, and what each costs."""

from collections.abc import Sequence

import pandas as pd

from workbench.models.start import Model
from workbench.runs import schemas
from workbench.runs.identity import fingerprint
from workbench.runs.recipe import BEST_BY, ONE_SHOT, Recipe
from workbench.runs.workers import Job, run_jobs
from workbench.signals import likelihood
from workbench.signals.influence_of_drafts import with_questions
from workbench.signals.measured_gain import N_STEPS, measure_gains
from workbench.signals.scores import self_consistency, share_right
from workbench.tasks.task import Task

VERSION = 1
DRAFTS_PER_JOB = 40
FROM_PROBES = {ONE_SHOT: share_right, "self_consistency": self_consistency}


def named_in(recipe: Recipe) -> list[str]:
    """Return the signals that a recipe asks for, the one that forms pairs first; [] for one-shot accuracy alone."""
    arms = [arm.removeprefix(BEST_BY) for arm in recipe.evaluation.arms if arm.startswith(BEST_BY)]
    names = list(dict.fromkeys([getattr(recipe, "signal", ONE_SHOT), *arms]))
    return names if names != [ONE_SHOT] else []


def measure_signals(
    probes: pd.DataFrame,
    drafts: pd.DataFrame,
    students: dict[str, Model],
    names: Sequence[str],
    teacher: Model,
    tasks: dict[str, Task],
    items: pd.DataFrame,
    seed: int,
) -> dict[str, pd.DataFrame]:
    """Return signals of every draft for every student, and of questions as means over their drafts.

    Args:
        probes: What students answered after each draft; for one_shot and self_consistency.
        teacher: As it was; answer_likelihood asks it.
        items: The preference set; for measured_gain.
        seed: Of the trainings of measured_gain.

    Returns:
        "signals", the first of the names, and "others"; higher is better, and value is nan for a draft that could not
        be scored, which forms no pair and is never chosen. What is read off probabilities has a standard error of 0:
        nothing is drawn.
    """
    frames = [FROM_PROBES[name](probes, drafts, students) for name in names if name in FROM_PROBES]
    others = [name for name in names if name not in FROM_PROBES]
    parts = [drafts.iloc[at : at + DRAFTS_PER_JOB] for at in range(0, len(drafts), DRAFTS_PER_JOB)]
    jobs = [
        Job(f"{len(part)} drafts to {name}: {', '.join(others)}", (others, model, teacher, tasks, part, items, seed))
        for name, model in students.items()
        for part in parts
    ]
    names_of = [name for name in students for _ in parts]
    workers = teacher.recipe.compute.workers
    told = list(zip(names_of, run_jobs(_ask, jobs, workers, "measuring signals"), strict=True)) if others else []
    for student, model in students.items():
        own = [table for name, table in told if name == student]
        for name, of_drafts in pd.concat(own).groupby("signal", sort=False) if own else ():
            asked = fingerprint(sorted(items["item_id"][items["chosen"]])) if name == "measured_gain" else ""
            of_drafts = of_drafts.assign(item_kind="rationale", student=student, set_fp=asked)
            frames.append(with_questions(of_drafts.assign(student_fp=model.fingerprint), drafts))
    table = schemas.build(pd.concat(frames, ignore_index=True).to_dict("records"), "signals")
    scored = table[table["item_kind"] == "rationale"]
    counts = {f"drafts not scored by {name}": own.isna().sum() for name, own in scored.groupby("signal")["value"]}
    first = table[table["signal"] == names[0]].reset_index(drop=True)
    n_scored = (first["item_kind"].eq("rationale") & first["value"].notna()).sum()
    first.attrs["counts"] = {"drafts scored": n_scored} | {k: n for k, n in counts.items() if n}
    return {"signals": first, "others": table[table["signal"] != names[0]].reset_index(drop=True)}


def _ask(
    names: list[str],
    student: Model,
    teacher: Model,
    tasks: dict[str, Task],
    drafts: pd.DataFrame,
    items: pd.DataFrame,
    seed: int,
) -> pd.DataFrame:
    found = []
    if plain := [name for name in names if name in likelihood.NAMES]:
        found.append(likelihood.measure_likelihoods(plain, student, teacher, tasks, drafts).assign(stderr=0.0))
    if "measured_gain" in names:
        rate = student.recipe.training.learning_rate
        found.append(measure_gains(student, tasks, drafts, items, rate, seed))
    return pd.concat(found, ignore_index=True)


# Passes over a text for one draft, forward and backward; None: one for each question asked and token written.
PASSES: dict[str, tuple[float | None, float]] = {
    ONE_SHOT: (None, 0),
    "self_consistency": (None, 0),
    **dict.fromkeys(likelihood.OF_READINGS, (1, 0)),
    "answer_likelihood": (2, 0),
    "answer_likelihood_alone": (1, 0),
    likelihood.GRADIENT: (1, 1),
    "measured_gain": (None, N_STEPS),
    "influence": (None, 1),
}
