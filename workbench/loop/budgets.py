"""Training: the student learns from each arm's examples, at equal tokens and equal optimiser steps.

Source: ARTE, arXiv:2406.19227, section 3.3, through TRL's SFTTrainer. Ours: matched budgets, several seeds.
"""

import itertools
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from workbench.loop import prompts
from workbench.loop.arms import examples_of_arm
from workbench.models.backends import tune_distilled, tune_sft
from workbench.models.loading import load_tokenizer
from workbench.models.start import Model, teacher_of
from workbench.models.trl import TuneJob, completion_tokens, model_folder, tune_all
from workbench.runs import schemas
from workbench.runs.identity import fingerprint, identify, looks_at
from workbench.runs.recipe import DISTILLED, Training
from workbench.runs.schemas import text_id
from workbench.runs.seeding import stream, stream_seed
from workbench.tasks.task import Task

VERSION = 3


@looks_at("seeds", "evaluation.arms")
def equal_tokens(
    students: dict[str, Model], tasks: dict[str, Task], examples: pd.DataFrame, by_task: bool = True
) -> pd.DataFrame:
    """Return the rows each student is trained on: per student, seed and task, arms get equal completion tokens.

    Args:
        students: By name; their tokens count.
        examples: Of all arms; those not kept are left out.
        by_task: Whether arms get equally many of each task, or of all tasks together where they differ in the mix.
    """
    kept, frames = examples[examples["kept"]], []
    for student, model in students.items():
        arms = model.recipe.trained_arms(student)
        own = pd.concat([examples_of_arm(kept, student, arm).assign(arm=arm) for arm in arms])
        frames.append(equal_rows(model, tasks, student, own, arms, by_task))
    rows = schemas.check(pd.concat(frames, ignore_index=True), "rows")
    rows.attrs["counts"] = {"training rows": len(rows)}
    return rows


def equal_rows(
    model: Model,
    tasks: dict[str, Task],
    student: str,
    examples: pd.DataFrame,
    arms: list[str],
    by_task: bool = True,
) -> pd.DataFrame:
    """Return the rows of one student, so that per seed and task its arms get equal completion tokens.

    The budget is what the arm with the fewest tokens has; the others take their examples in a random order until the
    next one would go over it, so that arms differ by less than one example a task.

    Args:
        model: The student's; its recipe names the seeds.
        examples: Those that may be used, with the arm each is for.
    """
    tokenizer = load_tokenizer(model.ref)
    examples = examples.assign(n_tokens=completion_tokens(tokenizer, examples["rationale"].tolist()))
    frames = []
    parts = {task: [task] for task in tasks} if by_task else {"": list(tasks)}
    for seed, task in itertools.product(model.recipe.seeds, parts):
        group = examples[(examples["seed"] == seed) & examples["task"].isin(parts[task])]
        totals = group.groupby("arm")["n_tokens"].sum()
        missing = [arm for arm in arms if arm not in totals.index]
        if missing:
            raise ValueError(
                f"Arm {missing[0]} has no usable example of {task or 'any task'} for {student}, seed {seed}; "
                "raise tailoring.n_examples or look at why they were dropped in 03_teacher_alignment."
            )
        for arm in arms:
            part = group[group["arm"] == arm]
            rng = stream(seed, "training rows", student, arm, task)
            taken = _take(part.iloc[rng.permutation(len(part))], int(totals[arms].min()))
            frames.append(_rows(taken, student, arm, tasks))
    return pd.concat(frames, ignore_index=True)


def _take(examples: pd.DataFrame, budget: int) -> pd.DataFrame:
    """Return the first examples, up to the one that would go over the budget.

    Going on with shorter ones after it would give arms that must leave examples out shorter ones than the others have.
    """
    return examples[examples["n_tokens"].cumsum() <= budget]


def _rows(examples: pd.DataFrame, student: str, arm: str, tasks: dict[str, Task]) -> pd.DataFrame:
    whose = f"{student}/{arm}" if arm == DISTILLED else student  # the untailored examples, a second time
    row_ids = [text_id(f"{whose}/{one}") for one in examples["example_id"]]
    named = examples.assign(row_id=row_ids, arm=arm, student=student, prompt=prompts.naive_prompts(tasks, examples))
    # In distillation the student answers by itself; the tokens are what it may take.
    rows = named.assign(completion="" if arm == DISTILLED else examples["rationale"]).reset_index(drop=True)
    return rows[list(schemas.SCHEMAS["rows"].columns)]


def batches_per_epoch(rows: pd.DataFrame, batch_size: int) -> int:
    """Return the batches an epoch for all arms: those of the fewest rows; others get more rows a batch."""
    return max(1, round(rows.groupby("arm").size().min() / batch_size))


def train_students(
    students: dict[str, Model],
    rows: pd.DataFrame,
    settings: Training,
    begun: Mapping[tuple[str, str, int], Model] | None = None,
    before: pd.DataFrame | None = None,
    *,
    folder: Path,
) -> dict[str, pd.DataFrame]:
    """Train every student on every arm's rows, once a seed, all arms of a seed in equally many steps.

    Args:
        students: By name, as they were.
        rows: As equal_tokens returns them. Those of the arm distilled are trained on by distillation instead.
        begun: Students of an arm and seed that go on from an earlier training.
        before: The curve of that training, which goes on too.

    Returns:
        "students": student, arm, seed, and the model's name in the folder; "curve": as its schema describes it.
    """
    jobs = []
    for (student, seed), group in rows.groupby(["student", "seed"], sort=False):
        seed, recipe = int(seed), students[student].recipe.model_copy(update={"training": settings})
        n_batches = batches_per_epoch(group, settings.batch_size)
        for arm, own in group.groupby("arm", sort=False):
            model = (begun or {}).get((student, arm, seed), students[student])
            own = own.reset_index(drop=True)
            texts = own[["prompt", "completion"]].to_numpy().tolist()
            what = [VERSION, model.key, identify(settings), seed, n_batches, texts]
            # One draw for all arms of a student: they differ in the rows alone.
            drawn = stream_seed(seed, "sft", student)
            tune = tune_distilled if arm == DISTILLED else tune_sft
            what += [teacher_of(recipe).key, recipe.tailoring.max_new_tokens] if arm == DISTILLED else []
            train = partial(tune, recipe, model.ref, own, n_batches, seed=drawn)
            whose, at = {"student": student, "arm": arm, "seed": seed}, folder / model_folder(student, arm, seed)
            jobs.append(TuneJob(f"SFT of {student}, {arm}, seed {seed}", whose, at, fingerprint(what), train))
    at_once = next(iter(students.values())).recipe.compute.trained_at_once
    frame, points = tune_all(jobs, at_once, "training students", "trained students")
    return {"students": frame, "curve": curve_of(points, before)}


def curve_of(points: list[dict], before: pd.DataFrame | None) -> pd.DataFrame:
    """Return the curve of a training, after that of an earlier one of the same students; steps and tokens add up."""
    curve = schemas.build([{"stage": "training", **point} for point in points], "curve")
    if before is None:
        return curve
    whose, is_sum = ["arm", "student", "seed"], before["metric"] == "tokens"
    done = curve[whose].merge(before[is_sum], on=whose, how="left", validate="many_to_one")
    tokens = done["value"].where(curve["metric"] == "tokens", 0.0)
    later = curve.assign(step=curve["step"] + done["step"], value=curve["value"] + tokens)
    return schemas.check(pd.concat([before[~is_sum], later], ignore_index=True), "curve")
