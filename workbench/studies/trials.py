"""Students trained outside a run's arms and asked held-out questions, for the studies that need it: `train_and_ask`.

Held out are the validation questions outside the preference set, on which no signal has seen the student.
"""

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from workbench.loop import prompts
from workbench.loop.arms import examples_of_arm
from workbench.loop.writing import AskJob, complete_job
from workbench.models.backends import tune_sft
from workbench.models.loading import fingerprint_model, resolve
from workbench.models.start import Model
from workbench.models.trl import tuned
from workbench.runs import progress
from workbench.runs.cache import read_json, write_json
from workbench.runs.errors import RunError
from workbench.runs.recipe import Recipe
from workbench.runs.recipe_parts import Engines
from workbench.runs.run import Run, fingerprint
from workbench.runs.seeding import stream_seed
from workbench.runs.workers import run_jobs
from workbench.tasks.answers import Answers
from workbench.tasks.task import Task, load_tasks

BEFORE, AFTER = "untailored", "tailored"
LENGTH, FORMAT = ("n_tokens", "correct"), ("n_steps", "digits")


@dataclass(frozen=True)
class FineTuneJob:
    """A student trained on some rows, or left as it is, and then asked questions."""

    recipe: Recipe  # its training section says how to train, its evaluation section how long answers may be
    student: str
    # Columns prompt and completion to train on; None leaves the student as it is.
    rows: pd.DataFrame | None = field(repr=False)
    asked: list[tuple[str, str]] = field(repr=False)  # each question's prompt: what prompts share, and the rest
    # How answers are read and the right one, in the order of asked.
    targets: list[tuple[Answers, str]] = field(repr=False)
    seed: int
    folder: Path  # holds the student until it is asked. What it answered is kept beside it, with the ending .json.
    n_batches: int = 0  # an epoch; 0 takes as many as the rows fill

    def __repr__(self) -> str:
        return f"trial {self.folder.name}"


def run_trial(trial: FineTuneJob) -> list[tuple[str, bool]]:
    """Return what was written to each question and whether its answer is right, in the order asked."""
    recipe, ref = trial.recipe, trial.recipe.models.students[trial.student]
    rows = None if trial.rows is None else trial.rows[["prompt", "completion"]]
    lines = None if rows is None else rows.to_numpy().tolist()
    settings = recipe.section_json("training", "models.dtype")
    training = [fingerprint_model(resolve(ref)), settings, trial.seed, lines, trial.n_batches]
    asked = [recipe.section_json("evaluation.max_new_tokens"), trial.asked, [[repr(a), t] for a, t in trial.targets]]
    key, path = fingerprint([training, asked]), trial.folder.parent / f"{trial.folder.name}.json"
    if (known := read_json(path)).get("key") == key:
        return [tuple(one) for one in known["answers"]]
    if rows is not None:
        n_batches = trial.n_batches or max(1, round(len(rows) / recipe.training.batch_size))
        seed = stream_seed(trial.seed, "trial", trial.student)
        train = lambda work: tune_sft(recipe, ref, rows, n_batches, work, seed)  # noqa: E731
        ref = str(tuned(trial.folder, fingerprint(training), train).folder)
    # Training and asking take turns here, in several processes, which suits transformers alone.
    recipe = recipe.model_copy(update={"engines": Engines()})
    job = AskJob(Model(recipe, "student", ref), repr(trial), trial.asked, recipe.evaluation.max_new_tokens)
    written = zip(complete_job(job), trial.targets, strict=True)
    told = [(one.text, reader.same(reader.read(one.text), target)) for one, (reader, target) in written]
    write_json(path, {"key": key, "answers": told})
    shutil.rmtree(trial.folder, ignore_errors=True)
    return told


def train_and_ask(
    run: Run, recipe: Recipe, sets: list[tuple[dict, pd.DataFrame | None, int]], at: str, describe: str
) -> pd.DataFrame:
    """Train a student anew on every set of rows and ask it the held-out questions.

    What was answered once is kept in the run's folder, so that a killed study goes on where it was.

    Args:
        run: Whose held-out questions are asked.
        sets: Of each its name (student, seed and what else tells it from the others), its rows (prompt and completion;
            None leaves the student as it is) and the batches of an epoch (0: as many as the rows fill).
        at: Where in the run's folder, with what names a set in braces.

    Returns:
        One answer a row: what names the set, task, item_id, correct.
    """
    names, asked, targets = held_out(run, load_tasks(run.recipe))
    trials = []
    for own, rows, n_batches in sets:
        folder = run.path / at.format(**own)
        trials.append(FineTuneJob(recipe, own["student"], rows, asked, targets, own["seed"], folder, n_batches))
    items = {"task": names, "item_id": [f"{n:04}" for n in range(len(names))]}
    with progress.of(run.path / Path(at).parts[0], run.watching(describe)):
        answered = zip(sets, run_jobs(run_trial, trials, recipe.compute.workers, describe), strict=True)
    frames = [pd.DataFrame(own | items | {"correct": [right for _, right in told]}) for (own, *_), told in answered]
    return pd.concat(frames, ignore_index=True)


def usable(run: Run, student: str) -> pd.DataFrame:
    """Return the kept examples of the arms BEFORE and AFTER that were written for a student, under the run's seeds."""
    recipe = run.recipe
    if student not in recipe.models.students:
        known = ", ".join(recipe.models.students)
        raise RunError(f"Run {run.name} has no student {student!r}; its students are {known}.")
    if missing := {BEFORE, AFTER} - set(recipe.evaluation.arms):
        raise RunError(f"Run {run.name} has no arm {min(missing)!r}, which is compared; take a run that has it.")
    if len(recipe.seeds) < 2:
        raise RunError(f"Run {run.name} has one seed, and an interval needs two or more; take a run with more.")
    made = run.read("examples")
    made = made[made["kept"] & made["seed"].isin(recipe.seeds)]
    return pd.concat([examples_of_arm(made, student, arm) for arm in (BEFORE, AFTER)], ignore_index=True)


def training_rows(texts: pd.DataFrame, tasks: dict[str, Task]) -> pd.DataFrame:
    """Return prompt and completion of texts with task, question and rationale."""
    return pd.DataFrame({"prompt": prompts.naive_prompts(tasks, texts), "completion": texts["rationale"].to_numpy()})


def format_of(rationale: str) -> tuple[int, float]:
    """Return how many parts a text has between commas, stops, semicolons and line ends, and its share of digits.

    Blanks do not count.

    Example:
        >>> format_of("abc 1, de.")
        (2, 0.125)
    """
    parts = [part for part in re.split(r"[.,;]+(?=\s|$)|\n+", rationale) if part.strip()]
    dense = re.sub(r"\s", "", rationale)
    return len(parts), sum(map(str.isdigit, dense)) / max(1, len(dense))


def held_out(run: Run, tasks: dict[str, Task]) -> tuple[list[str], list[tuple[str, str]], list[tuple[Answers, str]]]:
    """Return task, prompt and target (as jobs take them) of the validation questions outside the preference set."""
    probed = set(run.read("preference_set").query("chosen")["item_id"])
    found = [
        (name, ("", prompts.naive_prompt(task.description, item.question, task.prompts)), (task.answers, item.target))
        for name, task in tasks.items()
        for item in task.validation.itertuples()
        if item.item_id not in probed
    ]
    if not found:
        raise RunError(
            f"The preference set of run {run.name} holds all its validation questions, so none is held out; begin "
            "another run with a smaller preference_set.n_items."
        )
    names, asked, targets = map(list, zip(*found, strict=True))
    return names, asked, targets
