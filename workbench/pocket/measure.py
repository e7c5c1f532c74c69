"""The table the pocket classroom stands on: technique x student, one-shot accuracy and accuracy after fine-tuning.

Demonstrations and training examples come from the generator here, so that every technique is equally right and the
table shows the students alone. No run reads it.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from workbench import prompts
from workbench.engines import TransformersEngine
from workbench.inference import wilson
from workbench.models import fingerprint_model, resolve
from workbench.pocket.problems import TEST_SIZES, write
from workbench.pocket.rationales import STYLES, rationale_for
from workbench.pool import run_jobs
from workbench.recipe import Recipe
from workbench.seeding import stream, stream_seed
from workbench.store import fingerprint
from workbench.tasks import Task, load_tasks
from workbench.tuning import tune_sft, tuned
from workbench.writing import answer_questions

MIXED = "all four"
N_DEMONSTRATIONS = 8
N_ASKED = 40


@dataclass(frozen=True)
class _Job:
    recipe: Recipe
    student: str
    style: str
    folder: str
    seed: int

    def __repr__(self) -> str:
        return f"{self.student} and {self.style}"


def measure(recipe: Recipe, seed: int, styles: tuple[str, ...] = (*STYLES, MIXED)) -> pd.DataFrame:
    """Return one row for every student, technique and task: shares right with 95 % intervals.

    Args:
        recipe: Its students, tasks and training section are used; questions come from the validation sets.
        seed: Draws demonstrations and training examples.
        styles: Techniques; "all four" trains on an even mixture and has no one-shot accuracy.
    """
    with tempfile.TemporaryDirectory() as folder:
        jobs = [_Job(recipe, student, style, folder, seed) for student in recipe.models.students for style in styles]
        done = run_jobs(_measure_one, jobs, recipe.compute.workers, "measuring")
    return pd.DataFrame([row for rows in done for row in rows])


def _measure_one(job: _Job) -> list[dict]:
    recipe, tasks = job.recipe, load_tasks(job.recipe)
    ref = recipe.models.students[job.student]
    rows = []
    for name, task in tasks.items():
        found = [("before", ref, [])]
        if job.style != MIXED:
            found.append(("one shot", ref, _demonstrations(job, task)))
        for when, model, shown in found:
            rows.append(_row(job, name, when, _share_right(recipe, model, task, shown)))
    data = _examples(job, tasks)
    n_batches = max(1, round(len(data) / recipe.training.batch_size))
    key = fingerprint([fingerprint_model(resolve(ref)), data.to_numpy().tolist()])
    seed = stream_seed(job.seed, "measure", job.student)
    trained = tuned(
        Path(job.folder) / f"{job.student}-{job.style}",
        key,
        lambda work: tune_sft(recipe, ref, data, n_batches, work, seed),
    )
    for name, task in tasks.items():
        rows.append(_row(job, name, "trained", _share_right(recipe, str(trained.folder), task, [])))
    return rows


def _worked(task: Task, style: str, rng) -> tuple[str, str]:
    question = write(task.name, rng, TEST_SIZES[task.name])
    return question, f" {rationale_for(task.name, question, style)}"


def _demonstrations(job: _Job, task: Task) -> list[tuple[str, str]]:
    rng = stream(job.seed, "measure", "demonstrations", task.name)
    return [_worked(task, job.style, rng) for _ in range(N_DEMONSTRATIONS)]


def _examples(job: _Job, tasks: dict[str, Task]) -> pd.DataFrame:
    rows = []
    for name, task in tasks.items():
        rng = stream(job.seed, "measure", "examples", name)
        for n in range(job.recipe.tailoring.n_examples):
            style = STYLES[n % len(STYLES)] if job.style == MIXED else job.style
            question, rationale = _worked(task, style, rng)
            rows.append({"prompt": prompts.naive_prompt(task.description, question), "completion": rationale})
    return pd.DataFrame(rows)


def _share_right(recipe: Recipe, model: str, task: Task, shown: list[tuple[str, str]]) -> tuple[int, int]:
    """Return how many answers were right and how many questions asked, zero-shot or one-shot with each shown."""
    engine = TransformersEngine(model, recipe.models.dtype, recipe.compute.device, recipe.compute.batch_size)
    asked_of = task.validation.head(N_ASKED if shown else recipe.preference_set.n_validation)
    asked, targets = [], []
    for question, target in asked_of[["question", "target"]].itertuples(index=False, name=None):
        for demonstration in shown:
            asked.append(prompts.one_shot_prompt(task.description, *demonstration, question))
            targets.append(target)
        if not shown:
            asked.append(("", prompts.naive_prompt(task.description, question)))
            targets.append(target)
    completions = answer_questions(engine, asked, recipe.evaluation.max_new_tokens, None)
    answers = [prompts.parse_answer(completion.text) for completion in completions]
    return sum(map(prompts.grade, answers, targets)), len(targets)


def _row(job: _Job, task: str, when: str, counted: tuple[int, int]) -> dict:
    right, n = counted
    low, high = wilson(right / n, n)
    row = {"student": job.student, "technique": job.style, "task": task, "when": when}
    return row | {"accuracy": right / n, "low": low, "high": high, "n": n}
