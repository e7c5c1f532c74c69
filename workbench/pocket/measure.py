"""The table the pocket classroom stands on: technique x student, one-shot accuracy and accuracy after fine-tuning.

Demonstrations and training examples come from the generator here, so that every technique is equally right and the
table shows the students alone. No run reads it.
"""

import tempfile
from pathlib import Path

import pandas as pd

from workbench import prompts
from workbench.inference import wilson
from workbench.pocket.problems import TEST_SIZES, write
from workbench.pocket.rationales import STYLES, rationale_for
from workbench.recipe import Recipe
from workbench.seeding import stream
from workbench.tasks import Task, load_tasks
from workbench.trials import Trial, run_trials

MIXED = "all four"
N_DEMONSTRATIONS = 8
N_ASKED = 40


def measure(recipe: Recipe, seed: int, styles: tuple[str, ...] = (*STYLES, MIXED)) -> pd.DataFrame:
    """Return one row for every student, technique and task: shares right with 95 % intervals.

    Args:
        recipe: Its students, tasks and training section are used; questions come from the validation sets.
        seed: Draws demonstrations and training examples.
        styles: Techniques; "all four" trains on an even mixture and has no one-shot accuracy.
    """
    tasks = load_tasks(recipe)
    with tempfile.TemporaryDirectory() as folder:
        trials, labels = [], []
        for student in recipe.models.students:
            for style in styles:
                for when in ("before", "one shot", "trained"):
                    if (when, style) == ("one shot", MIXED):
                        continue
                    rows = _examples(recipe, tasks, style, seed) if when == "trained" else None
                    asked = _questions(recipe, tasks, style if when == "one shot" else "", seed)
                    path = Path(folder) / f"{student}-{style}-{when}"
                    prompts_of = [one for one, _, _ in asked]
                    targets = [(tasks[name].answers, target) for _, target, name in asked]
                    trials.append(Trial(recipe, student, rows, prompts_of, targets, seed, path))
                    labels.append(({"student": student, "technique": style, "when": when}, [t for _, _, t in asked]))
        answered = run_trials(recipe, trials, "measuring")
    table = []
    for (label, of_task), right in zip(labels, answered, strict=True):
        for task, own in pd.Series(right).groupby(pd.Series(of_task), sort=False):
            low, high = wilson(own.mean(), len(own))
            table.append({**label, "task": task, "accuracy": own.mean(), "low": low, "high": high, "n": len(own)})
    return pd.DataFrame(table)


def _worked(task: Task, style: str, rng) -> tuple[str, str]:
    question = write(task.name, rng, TEST_SIZES[task.name])
    return question, f" {rationale_for(task.name, question, style)}"


def _questions(recipe: Recipe, tasks: dict[str, Task], style: str, seed: int) -> list[tuple]:
    """Return (prompt in two parts, target, task): zero-shot, or one-shot with demonstrations in the style."""
    asked = []
    for name, task in tasks.items():
        rng = stream(seed, "measure", "demonstrations", name)
        shown = [_worked(task, style, rng) for _ in range(N_DEMONSTRATIONS)] if style else []
        items = task.validation.head(N_ASKED if style else recipe.preference_set.n_validation)
        for question, target in items[["question", "target"]].itertuples(index=False, name=None):
            plain = ("", prompts.naive_prompt(task.description, question))
            one_shot = [prompts.one_shot_prompt(task.description, *one, question) for one in shown]
            asked += [(prompt, target, name) for prompt in one_shot or [plain]]
    return asked


def _examples(recipe: Recipe, tasks: dict[str, Task], style: str, seed: int) -> pd.DataFrame:
    rows = []
    for name, task in tasks.items():
        rng = stream(seed, "measure", "examples", name)
        for n in range(recipe.tailoring.n_examples):
            question, rationale = _worked(task, STYLES[n % len(STYLES)] if style == MIXED else style, rng)
            rows.append({"prompt": prompts.naive_prompt(task.description, question), "completion": rationale})
    return pd.DataFrame(rows)
