"""Trials: a student trained on some rows, or left as it is, and then asked held-out questions; outside a run's arms."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from workbench.answers import Answers
from workbench.asking import AskJob, complete_job
from workbench.launching import tune_sft
from workbench.models import fingerprint_model, resolve
from workbench.pool import run_jobs
from workbench.recipe import Recipe
from workbench.recipe_engines import Engines
from workbench.seeding import stream_seed
from workbench.store import fingerprint
from workbench.tuning import tuned


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        recipe: Its training section says how to train, its evaluation section how long answers may be.
        student: Name in the recipe.
        rows: Columns prompt and completion to train on; None leaves the student as it is.
        asked: (what prompts share, the rest) of each question's prompt.
        targets: How answers are read and the right one, in the order of asked.
        seed: Orders the rows.
        folder: Where the trained student is kept, so that a trial that was killed is not trained again.
        n_batches: An epoch; 0 takes as many as the rows fill.
    """

    recipe: Recipe
    student: str
    rows: pd.DataFrame | None = field(repr=False)
    asked: list[tuple[str, str]] = field(repr=False)
    targets: list[tuple[Answers, str]] = field(repr=False)
    seed: int
    folder: Path
    n_batches: int = 0

    def __repr__(self) -> str:
        return f"trial {self.folder.name}"


def run_trials(recipe: Recipe, trials: list[Trial], describe: str) -> list[list[bool]]:
    """Return for each trial which questions were answered right, in the order asked."""
    return [[right for _, right in told] for told in answer_trials(recipe, trials, describe)]


def answer_trials(recipe: Recipe, trials: list[Trial], describe: str) -> list[list[tuple[str, bool]]]:
    """Return for each trial what was written to each question and whether its answer is right, in the order asked."""
    return run_jobs(_run_trial, trials, recipe.compute.workers, describe)


def _run_trial(trial: Trial) -> list[tuple[str, bool]]:
    recipe, ref = trial.recipe, trial.recipe.models.students[trial.student]
    if trial.rows is not None:
        rows = trial.rows[["prompt", "completion"]]
        n_batches = trial.n_batches or max(1, round(len(rows) / recipe.training.batch_size))
        settings = recipe.section_json("training", "models.dtype")
        inputs = [fingerprint_model(resolve(ref)), settings, trial.seed, rows.to_numpy().tolist()]
        key = fingerprint([*inputs, n_batches] if trial.n_batches else inputs)
        seed = stream_seed(trial.seed, "trial", trial.student)
        ref = str(tuned(trial.folder, key, lambda work: tune_sft(recipe, ref, rows, n_batches, work, seed)).folder)
    # Training and asking take turns here, in several processes, which suits transformers alone.
    recipe = recipe.model_copy(update={"engines": Engines()})
    texts = [completion.text for completion in complete_job(AskJob(recipe, ref, repr(trial), trial.asked, []))]
    return [
        (text, answers.same(answers.read(text), target))
        for text, (answers, target) in zip(texts, trial.targets, strict=True)
    ]
