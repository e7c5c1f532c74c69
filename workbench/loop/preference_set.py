"""The preference set: the validation questions on which a student's preference is measured.

Source: ARTE, arXiv:2406.19227, section 3.2: those that tell several models apart best, by an item response fit.
"""

import numpy as np
import pandas as pd

from workbench.loop import prompts
from workbench.loop.item_response import fit_2pl
from workbench.loop.writing import AskJob, generate_answers
from workbench.models.start import run_engine_jobs
from workbench.runs import schemas
from workbench.runs.recipe import Recipe
from workbench.runs.seeding import stream
from workbench.tasks.task import Task


def responders_of(recipe: Recipe) -> list[str]:
    """Return the models whose answers tell the validation questions apart."""
    return recipe.preference_set.responders or list(recipe.models.students.values())


def choose_preference_set(recipe: Recipe, tasks: dict[str, Task], exemplars: pd.DataFrame) -> pd.DataFrame:
    """Return the validation questions of every task with their fit, the most discriminating ones chosen."""
    settings = recipe.preference_set
    validation = {name: task.validation.head(settings.n_validation) for name, task in tasks.items()}
    fits = {}
    if settings.selection == "irt":
        for name, right in _answer_sheets(recipe, tasks, validation, exemplars).items():
            fits[name] = fit_2pl(right)
    frames = []
    for name, items in validation.items():
        a, b = fits.get(name, (np.full(len(items), np.nan), np.full(len(items), np.nan)))
        if name in fits:
            order = np.argsort(-a, kind="stable")
        else:
            order = stream(recipe.seeds[0], "preference set", name).permutation(len(items))
        chosen = np.zeros(len(items), dtype=bool)
        chosen[order[: settings.n_items]] = True
        frames.append(items.assign(task=name, discrimination=a, difficulty=b, chosen=chosen))
    columns = list(schemas.SCHEMAS["preference_set"].columns)
    return pd.concat(frames, ignore_index=True)[columns]


def _answer_sheets(
    recipe: Recipe, tasks: dict[str, Task], validation: dict[str, pd.DataFrame], exemplars: pd.DataFrame
) -> dict[str, np.ndarray]:
    """Return for each task who answered what correctly, shape (responders x shots, questions)."""
    jobs, names = [], []
    for model in responders_of(recipe):
        for name, task in tasks.items():
            worked = exemplars[exemplars["task"] == name][["question", "rationale"]]
            shown = list(worked.itertuples(index=False, name=None))
            asked = [
                ("", prompts.few_shot_prompt(task.description, shown[:n], question))
                for n in recipe.preference_set.shots
                for question in validation[name]["question"]
            ]
            jobs.append(AskJob(recipe, model, f"{model}, {name}", asked, [task.answers] * len(asked)))
            names.append(name)
    answers = run_engine_jobs(generate_answers, jobs, recipe, "student", "asking the responders")
    sheets: dict[str, list] = {name: [] for name in tasks}
    for name, found in zip(names, answers, strict=True):
        targets = list(validation[name]["target"]) * len(recipe.preference_set.shots)
        right = [tasks[name].answers.same(answer, target) for (answer, _), target in zip(found, targets, strict=True)]
        sheets[name].append(np.reshape(right, (len(recipe.preference_set.shots), -1)))
    return {name: np.concatenate(rows).astype(float) for name, rows in sheets.items()}
