"""Learning curves: how often a student is right after so many examples, untailored or tailored.

Every size trains the student anew, by the run's training section, on part of what the run's teachers wrote for a seed.
It is asked the validation questions outside the preference set: the teacher was aligned to that set, and a study must
not spend looks at the test set. What the curves say of one example is in worth. Source: ours; ARTE has one size.
"""

import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from workbench import prompts
from workbench.arms import examples_of_arm
from workbench.items import StoreError, atomic_write
from workbench.models import fingerprint_model, resolve
from workbench.store import Run, fingerprint
from workbench.tasks import as_written, load_tasks
from workbench.trials import Trial, run_trials
from workbench.validity import held_out
from workbench.verdict import BASE_SEED

BASE, BEFORE, AFTER = "base", "untailored", "tailored"
LEAST = 5  # examples a task, about where the sizes begin
VERSION = 1


def first(examples: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return the first n examples of each task, in the order they were written: each size holds the smaller ones."""
    return examples.groupby("task", sort=False).head(n)


def doubling(most: int) -> list[int]:
    """Return sizes that double from about LEAST up to all there are.

    Example:
        >>> doubling(93)
        [5, 11, 23, 46, 93]
    """
    return [most // 2**k for k in range(most.bit_length(), -1, -1) if most // 2**k >= min(LEAST, most)]


def usable(run: Run, student: str) -> pd.DataFrame:
    """Return the kept examples of both arms that were written for a student, under the run's seeds.

    Raises:
        StoreError: If the run has no such student or arm, fewer than two seeds, or no finished alignment.
    """
    recipe = run.recipe
    if student not in recipe.models.students:
        known = ", ".join(recipe.models.students)
        raise StoreError(f"Run {run.name} has no student {student!r}; its students are {known}.")
    if missing := {BEFORE, AFTER} - set(recipe.evaluation.arms):
        raise StoreError(f"Run {run.name} has no arm {min(missing)!r}, which is compared; take a run that has it.")
    if len(recipe.seeds) < 2:
        raise StoreError(f"Run {run.name} has one seed, and an interval needs two or more; take a run with more.")
    made = run.stage("training").require("alignment").read("examples")
    made = made[made["kept"] & made["seed"].isin(recipe.seeds)]
    return pd.concat([examples_of_arm(made, student, arm) for arm in (BEFORE, AFTER)], ignore_index=True)


def measure(
    run: Run,
    student: str,
    sizes: Sequence[int] = (),
    subset: Callable[[pd.DataFrame, int], pd.DataFrame] = first,
) -> pd.DataFrame:
    """Train a student on subsets of each arm and seed, and ask it held-out questions.

    Steps follow the rows: a size below a batch gets one step an epoch. Sizes count examples, not tokens. Answers are
    kept in the run's folder, size by size, so a second call is free, and more sizes can be added; the trained students
    are not kept.

    Args:
        run: With finished alignment, and the arms untailored and tailored.
        student: Name in the recipe.
        sizes: Examples a task; none means doubling up to all that each arm, seed and task has.
        subset: Takes the examples of one arm and seed and a size, returns those to train on.

    Returns:
        One answer a row: student, arm, n (examples a task; 0 for base), seed, shots (0), task, item_id, correct, key.
    """
    recipe, examples, tasks = run.recipe, usable(run, student), load_tasks(run.recipe)
    sizes = _checked(run, examples, sizes)
    names, questions, targets = held_out(run, tasks)
    settings = recipe.section_json("training", "tasks", "models.dtype", "evaluation.max_new_tokens")
    model = fingerprint_model(resolve(recipe.models.students[student]))
    shared = [VERSION, model, settings, questions, [target for _, target in targets]]
    descriptions = {name: task.description for name, task in as_written(recipe, tasks).items()}
    path, table, wanted = _path(run, student), stored(run, student), []
    folder = path.with_suffix("")
    for n in [0, *sizes]:
        known, keys, trials = set() if table is None else set(table["key"]), [], []
        for arm, seed, rows in _training_sets(recipe.seeds, examples, n, subset, descriptions):
            key = fingerprint([shared, arm, n, seed, None if rows is None else rows.to_numpy().tolist()])
            wanted.append(key)
            if key not in known:
                keys.append({"student": student, "arm": arm, "n": n, "seed": seed, "key": key})
                trials.append(Trial(recipe, student, rows, questions, targets, seed, folder / f"{arm}-{n}-{seed}"))
        if trials:
            items = {"shots": 0, "task": names, "item_id": [f"{at:04}" for at in range(len(names))]}
            right = run_trials(recipe, trials, f"training on {n} examples a task")
            frames = [pd.DataFrame({**key, **items, "correct": one}) for key, one in zip(keys, right, strict=True)]
            table = pd.concat([table, *frames], ignore_index=True)
            _keep(table, path)
            # Not earlier, and not where nothing was missing: a killed call goes on from what it had trained.
            shutil.rmtree(folder, ignore_errors=True)
    return table[table["key"].isin(wanted)].sort_values(["n", "arm", "seed"], kind="stable").reset_index(drop=True)


def _keep(table: pd.DataFrame, path: Path) -> None:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    atomic_write(path, buffer.getvalue())


def stored(run: Run, student: str) -> pd.DataFrame | None:
    """Return all answers kept for a student, of every size and subset that was measured; None if there are none."""
    return pd.read_parquet(_path(run, student)) if _path(run, student).is_file() else None


def _path(run: Run, student: str) -> Path:
    return run.path / "curves" / f"{student}.parquet"


def _checked(run: Run, examples: pd.DataFrame, sizes: Sequence[int]) -> list[int]:
    groups = pd.MultiIndex.from_product([(BEFORE, AFTER), run.recipe.seeds, run.recipe.tasks.names])
    counts = examples.groupby(["arm", "seed", "task"]).size().reindex(groups, fill_value=0)
    most, (arm, seed, task) = int(counts.min()), counts.idxmin()
    sizes = sorted(set(sizes)) or doubling(most)
    if not most or sizes[0] < 1 or sizes[-1] > most:
        raise StoreError(
            f"Sizes must lie between 1 and {most}: so many usable examples of {task} has arm {arm!r}, seed {seed} of "
            f"run {run.name}; lower them, or begin a run with a larger tailoring.n_examples."
        )
    return sizes


def _training_sets(
    seeds: list[int],
    examples: pd.DataFrame,
    n: int,
    subset: Callable[[pd.DataFrame, int], pd.DataFrame],
    descriptions: dict[str, str],
) -> Iterator[tuple[str, int, pd.DataFrame | None]]:
    """Yield arm, seed and rows of every student of a size; the base is trained on nothing."""
    if not n:
        yield BASE, BASE_SEED, None
        return
    for seed, arm in product(seeds, (BEFORE, AFTER)):
        own = subset(examples[(examples["arm"] == arm) & (examples["seed"] == seed)], n)
        prompt = [prompts.naive_prompt(descriptions[row.task], row.question) for row in own.itertuples()]
        yield arm, seed, pd.DataFrame({"prompt": prompt, "completion": own["rationale"].to_numpy()})
