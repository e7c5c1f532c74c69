"""Training: the student learns from each arm's examples, at equal tokens and equal optimiser steps.

Source: ARTE, arXiv:2406.19227, section 3.3, through TRL's SFTTrainer. Ours: matched budgets, several seeds.
"""

import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from workbench.loop import prompts
from workbench.loop.arms import examples_of_arm
from workbench.models.backends import tune_sft
from workbench.models.loading import fingerprint_model, load_tokenizer, resolve
from workbench.models.trl import Tuned, completion_tokens, student_folder, tuned
from workbench.runs import schemas
from workbench.runs.recipe import Recipe
from workbench.runs.run import Run, Stage, fingerprint
from workbench.runs.schemas import text_id
from workbench.runs.seeding import stream, stream_seed
from workbench.runs.workers import run_jobs
from workbench.tasks.task import as_written, load_tasks

VERSION = 2


@dataclass(frozen=True)
class _Job:
    recipe: Recipe
    student: str
    arm: str
    seed: int
    rows: pd.DataFrame = field(repr=False)
    n_batches: int
    folder: Path

    def __repr__(self) -> str:
        return f"SFT of {self.student}, {self.arm}, seed {self.seed}"


def train(run: Run) -> dict[str, pd.DataFrame]:
    """Train every student on every arm and seed, or reuse what the run has.

    Returns:
        rows and curve, as their schemas describe them.
    """
    recipe, stage = run.recipe, run.stage("training")
    alignment = stage.require("alignment")
    students = {name: fingerprint_model(resolve(ref)) for name, ref in recipe.models.students.items()}
    parents = {"alignment": alignment.manifest["fingerprint"], **students}
    sections = recipe.section_json("training", "seeds", "evaluation.arms", "models.dtype")
    mark = stage.fingerprint({"version": VERSION, "recipe": sections, **parents})
    if stage.finished(mark):
        return {name: stage.read(name) for name in ("rows", "curve")}
    start = time.monotonic()
    rows = match_budgets(recipe, alignment.read("examples"))
    results = _train_all(recipe, stage, rows, students)
    curve = [
        {"stage": "training", "arm": job.arm, "student": job.student, "seed": job.seed, **point}
        for job, result in results
        for point in [
            *result.curve,
            {"step": result.steps, "metric": "tokens", "value": float(result.n_tokens)},
        ]
    ]
    frames = {"rows": stage.write("rows", rows), "curve": stage.write("curve", schemas.build(curve, "curve"))}
    counts = {"training rows": len(rows), "trained students": len(results)}
    n_tokens = sum(result.n_tokens for _, result in results)
    stage.finish(mark, counts, time.monotonic() - start, n_tokens, parents)
    return frames


def match_budgets(recipe: Recipe, examples: pd.DataFrame) -> pd.DataFrame:
    """Return the rows each student is trained on: per student, seed and task, arms get equal completion tokens."""
    kept = examples[examples["kept"]]
    frames = []
    for student in recipe.models.students:
        arms = recipe.trained_arms(student)
        own = pd.concat([examples_of_arm(kept, student, arm).assign(arm=arm) for arm in arms])
        frames.append(equal_rows(recipe, student, own, arms))
    return schemas.check(pd.concat(frames, ignore_index=True), "rows")


def equal_rows(recipe: Recipe, student: str, examples: pd.DataFrame, arms: list[str]) -> pd.DataFrame:
    """Return the rows of one student, so that per seed and task its arms get equal completion tokens.

    The budget is what the arm with the fewest tokens has; the others take their examples in a random order until the
    next one would go over it, so that arms differ by less than one example a task.

    Args:
        recipe: Names seeds, tasks and the student's model.
        student: Name in the recipe.
        examples: Those that may be used, with the arm each is for.
        arms: All that are wanted.
    """
    descriptions = {name: task.description for name, task in as_written(recipe, load_tasks(recipe)).items()}
    tokenizer = load_tokenizer(recipe.models.students[student])
    examples = examples.assign(n_tokens=completion_tokens(tokenizer, examples["rationale"].tolist()))
    frames = []
    for seed, task in itertools.product(recipe.seeds, recipe.tasks.names):
        group = examples[(examples["seed"] == seed) & (examples["task"] == task)]
        totals = group.groupby("arm")["n_tokens"].sum()
        missing = [arm for arm in arms if arm not in totals.index]
        if missing:
            raise ValueError(
                f"Arm {missing[0]} has no usable example of {task} for {student}, seed {seed}; "
                "raise tailoring.n_examples or look at why they were dropped in 03_teacher_alignment."
            )
        for arm in arms:
            part = group[group["arm"] == arm]
            rng = stream(seed, "training rows", student, arm, task)
            taken = _take(part.iloc[rng.permutation(len(part))], int(totals[arms].min()))
            frames.append(_rows(taken, student, arm, descriptions[task]))
    return pd.concat(frames, ignore_index=True)


def _take(examples: pd.DataFrame, budget: int) -> pd.DataFrame:
    """Return the first examples, up to the one that would go over the budget.

    Going on with shorter ones after it would give arms that must leave examples out shorter ones than the others have.
    """
    return examples[examples["n_tokens"].cumsum() <= budget]


def _rows(examples: pd.DataFrame, student: str, arm: str, description: str) -> pd.DataFrame:
    rows = pd.DataFrame(
        {
            "row_id": [text_id(f"{student}/{one}") for one in examples["example_id"]],
            "arm": arm,
            "student": student,
            "seed": examples["seed"].to_numpy(),
            "task": examples["task"].to_numpy(),
            "example_id": examples["example_id"].to_numpy(),
            "prompt": [prompts.naive_prompt(description, question) for question in examples["question"]],
            "completion": examples["rationale"].to_numpy(),
            "n_tokens": examples["n_tokens"].to_numpy(),
        }
    )
    return rows


def equal_steps(recipe: Recipe, rows: pd.DataFrame) -> int:
    """Return the batches an epoch for all arms: those of the fewest rows; others get more rows a batch."""
    return max(1, round(rows.groupby("arm").size().min() / recipe.training.batch_size))


def _train_all(recipe: Recipe, stage: Stage, rows: pd.DataFrame, students: dict[str, str]) -> list[tuple[_Job, Tuned]]:
    jobs = []
    for (student, seed), group in rows.groupby(["student", "seed"], sort=False):
        n_batches = equal_steps(recipe, group)
        for arm, own in group.groupby("arm", sort=False):
            folder = student_folder(stage.path, student, arm, int(seed))
            jobs.append(_Job(recipe, student, arm, int(seed), own.reset_index(drop=True), n_batches, folder))
    section = recipe.section_json("training", "models.dtype")
    keyed = [
        (
            job,
            fingerprint(
                [VERSION, students[job.student], section, job.seed, job.n_batches]
                + job.rows[["prompt", "completion"]].to_numpy().tolist()
            ),
        )
        for job in jobs
    ]
    at_once = recipe.compute.trained_at_once
    return list(zip(jobs, run_jobs(_train_one, keyed, at_once, "training students"), strict=True))


def _train_one(keyed: tuple[_Job, str]) -> Tuned:
    job, key = keyed
    # One seed for all arms of a student: they differ in the rows alone.
    seed = stream_seed(job.seed, "sft", job.student)
    ref = job.recipe.models.students[job.student]
    return tuned(job.folder, key, lambda work: tune_sft(job.recipe, ref, job.rows, job.n_batches, work, seed))
