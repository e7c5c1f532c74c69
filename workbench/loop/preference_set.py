"""The preference set: the validation questions on which a student's preference is measured.

Source: ARTE, arXiv:2406.19227, section 3.2: those that tell several models apart best, by an item response fit.
"""

import numpy as np
import pandas as pd

from workbench.loop import prompts
from workbench.loop.item_response import fit_2pl
from workbench.loop.writing import AskJob, generate_answers
from workbench.models.start import Model, run_engine_jobs, students_of
from workbench.runs import schemas
from workbench.runs.recipe import PreferenceSet, Recipe
from workbench.runs.seeding import stream
from workbench.tasks.task import Task

VERSION = 1


def responders_of(recipe: Recipe) -> list[Model]:
    """Return the models whose answers tell the validation questions apart."""
    named = [Model(recipe, "student", ref) for ref in recipe.preference_set.responders]
    return named or list(students_of(recipe).values())


def choose_preference_set(
    responders: list[Model],
    tasks: dict[str, Task],
    exemplars: pd.DataFrame,
    settings: PreferenceSet,
    max_new_tokens: int,
    seed: int,
) -> pd.DataFrame:
    """Return the validation questions of every task with their fit, the most discriminating ones chosen.

    Args:
        responders: Answer all of the validation questions, where settings.selection is "irt".
        exemplars: Worked questions for the prompts with several demonstrations.
    """
    validation = {name: task.validation.head(settings.n_validation) for name, task in tasks.items()}
    fits = {}
    if settings.selection == "irt":
        sheets = _answer_sheets(responders, tasks, validation, exemplars, settings.shots, max_new_tokens)
        fits = {name: fit_2pl(right) for name, right in sheets.items()}
    frames = []
    for name, items in validation.items():
        a, b = fits.get(name, (np.full(len(items), np.nan), np.full(len(items), np.nan)))
        if name in fits:
            order = np.argsort(-a, kind="stable")
        else:
            order = stream(seed, "preference set", name).permutation(len(items))
        if settings.balanced:
            targets = items["target"].iloc[order]
            limit = np.ceil(targets.map(targets.value_counts(normalize=True)) * settings.n_items - 1e-9)
            order = order[(targets.groupby(targets).cumcount() < limit).to_numpy()]
        chosen = np.zeros(len(items), dtype=bool)
        chosen[order[: settings.n_items]] = True
        frames.append(items.assign(task=name, discrimination=a, difficulty=b, chosen=chosen))
    frame = pd.concat(frames, ignore_index=True)[list(schemas.SCHEMAS["preference_set"].columns)]
    frame.attrs["counts"] = {"preference questions": frame["chosen"].sum()}
    return frame


def _answer_sheets(
    responders: list[Model],
    tasks: dict[str, Task],
    validation: dict[str, pd.DataFrame],
    exemplars: pd.DataFrame,
    shots: list[int],
    max_new_tokens: int,
) -> dict[str, np.ndarray]:
    """Return for each task who answered what correctly, shape (responders x shots, questions)."""
    jobs, names = [], []
    for model in responders:
        for name, task in tasks.items():
            worked = exemplars[exemplars["task"] == name][["question", "rationale"]]
            shown = list(worked.itertuples(index=False, name=None))
            asked = [
                ("", prompts.few_shot_prompt(task.description, shown[:n], question, task.prompts))
                for n in shots
                for question in validation[name]["question"]
            ]
            readers = [task.answers] * len(asked)
            jobs.append(AskJob(model, f"{model.ref}, {name}", asked, max_new_tokens, readers))
            names.append(name)
    answered = run_engine_jobs(generate_answers, jobs, responders[0], "asking the responders")
    sheets: dict[str, list] = {name: [] for name in tasks}
    for name, answers in zip(names, answered, strict=True):
        targets = list(validation[name]["target"]) * len(shots)
        right = [tasks[name].answers.same(answer, target) for (answer, _), target in zip(answers, targets, strict=True)]
        sheets[name].append(np.reshape(right, (len(shots), -1)))
    return {name: np.concatenate(rows).astype(float) for name, rows in sheets.items()}
