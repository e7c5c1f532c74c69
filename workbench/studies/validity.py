"""Does the probe tell the truth? Drafts grouped by preference score, a student trained on each group, and its gain.

ARTE (arXiv:2406.19227) prefers what works as a demonstration and never asks whether that is what helps in training.
Here group k holds the k-th best rationale of every draft question, so that all groups ask the same questions, and the
gain is counted on validation questions outside the preference set.

Other studies, too, train students outside a run's arms and ask them held-out questions: `train_and_ask`.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.loop import prompts
from workbench.loop.arms import examples_of_arm
from workbench.loop.writing import AskJob, complete_job
from workbench.models.backends import tune_sft
from workbench.models.loading import fingerprint_model, resolve
from workbench.models.start import Model
from workbench.models.trl import tuned
from workbench.runs.cache import atomic_write, read_json, write_json
from workbench.runs.errors import RunError
from workbench.runs.recipe import Recipe
from workbench.runs.recipe_engines import Engines
from workbench.runs.run import Run, fingerprint
from workbench.runs.seeding import stream, stream_seed
from workbench.runs.workers import run_jobs
from workbench.tasks.answers import Answers
from workbench.tasks.task import Task, load_tasks
from workbench.verdict.intervals import percentiles, rank_correlation

N_RESAMPLES = 4000
BEFORE, AFTER = "untailored", "tailored"
LENGTH, FORMAT = ("n_tokens", "correct"), ("n_steps", "digits")
LEAST_FREE = 3  # degrees of freedom that a partial correlation must leave


@dataclass(frozen=True)
class FineTuneJob:
    """A student trained on some rows, or left as it is, and then asked questions.

    Attributes:
        recipe: Its training section says how to train, its evaluation section how long answers may be.
        student: Name in the recipe.
        rows: Columns prompt and completion to train on; None leaves the student as it is.
        asked: Each question's prompt: what prompts share, and the rest.
        targets: How answers are read and the right one, in the order of asked.
        seed: Orders the rows.
        folder: Holds the student until it is asked. What it answered is kept beside it, with the ending .json.
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


def answer_trials(recipe: Recipe, trials: list[FineTuneJob], describe: str) -> list[list[tuple[str, bool]]]:
    """Return for each trial what was written to each question and whether its answer is right, in the order asked."""
    return run_jobs(_run_trial, trials, recipe.compute.workers, describe)


def _run_trial(trial: FineTuneJob) -> list[tuple[str, bool]]:
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
        recipe: How to train.
        sets: Of each its name (student, seed and what else tells it from the others), its rows (prompt and completion;
            None leaves the student as it is) and the batches of an epoch (0: as many as the rows fill).
        at: Where in the run's folder, with what names a set in braces.
        describe: What the progress is called.

    Returns:
        One answer a row: what names the set, task, item_id, correct.
    """
    names, asked, targets = held_out(run, load_tasks(run.recipe))
    trials = []
    for own, rows, n_batches in sets:
        folder = run.path / at.format(**own)
        trials.append(FineTuneJob(recipe, own["student"], rows, asked, targets, own["seed"], folder, n_batches))
    items = {"task": names, "item_id": [f"{n:04}" for n in range(len(names))]}
    answered = zip(sets, answer_trials(recipe, trials, describe), strict=True)
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
    named = [(tasks[row.task], row.question) for row in texts.itertuples()]
    asked = [prompts.naive_prompt(task.description, question, task.prompts) for task, question in named]
    return pd.DataFrame({"prompt": asked, "completion": texts["rationale"].to_numpy()})


def train_on_groups(
    run: Run, seeds: list[int], signals: pd.DataFrame | None = None, name: str = "validity"
) -> pd.DataFrame:
    """Train every student on every group under every seed; the outcome is kept in the run's folder as NAME.csv.

    Args:
        run: With finished drafting and probing.
        seeds: Training seeds; they also settle ties between rationales of one question.
        signals: What drafts are ranked by, a frame "signals"; the run's own unless given. Drafts without a
            signal belong to no group.
        name: Also of the folder that holds what the students answered.

    Returns:
        Columns student, task, group (1 is best), seed, score (mean preference score), n_tokens, n_steps and digits
        (means of a rationale, see format_of), correct (share of right rationales), before and after (accuracy), gain
        (after - before), n (questions asked).
    """
    if len(seeds) < 2:
        raise RunError(f"An interval needs two training seeds or more, got {len(seeds)}; ask for more.")
    scored, tasks = ranked(run, seeds, signals), load_tasks(run.recipe)
    sets = [({"student": student, "group": 0, "seed": 0}, None, 0) for student in run.recipe.models.students]
    for (student, seed, group), own in scored.groupby(["student", "seed", "group"], sort=False):
        rows = training_rows(own.sort_values("draft_id"), tasks)
        sets.append(({"student": student, "group": group, "seed": seed}, rows, 0))
    answered = train_and_ask(run, run.recipe, sets, name + "/{student}-{group}-{seed}", "training on groups")
    keys = ["student", "task", "group", "seed"]
    like = {"score": ("value", "mean")} | {what: (what, "mean") for what in (*LENGTH, *FORMAT)}
    described = scored.groupby(keys, as_index=False).agg(**like)
    # Where no answer of a group can be checked, it is as its task is.
    described["correct"] = described["correct"].fillna(
        described.groupby(["student", "task"])["correct"].transform("mean")
    )
    described["correct"] = described["correct"].fillna(0.0)
    right = answered.groupby(keys, as_index=False).agg(after=("correct", "mean"), n=("correct", "size"))
    before = right[right["group"] == 0].rename(columns={"after": "before"})[["student", "task", "before"]]
    table = described.merge(before, on=["student", "task"]).merge(right, on=keys)
    table.insert(len(table.columns) - 1, "gain", table["after"] - table["before"])
    atomic_write(run.path / f"{name}.csv", table.to_csv(index=False, float_format="%.6f").encode())
    return table


def stored(run: Run, name: str = "validity") -> pd.DataFrame | None:
    """Return the stored outcome of train_on_groups; None if there is none."""
    path = run.path / f"{name}.csv"
    return pd.read_csv(path) if path.is_file() else None


def ranked(run: Run, seeds: list[int], signals: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return every draft with student, seed, score `value` and group: 1 is the best of its question."""
    drafts = run.read("drafts")
    signals = run.read("signals") if signals is None else signals
    own = signals[signals["item_kind"] == "rationale"][["draft_id", "student", "value"]].merge(drafts, on="draft_id")
    own = own[own["answer"] != ""]
    own["correct"] = own["correct"].astype(float).where(own["gold"] != "")
    if own.groupby(["student", "question_id"]).size().max() < 2:
        raise RunError(
            f"Run {run.name} has one rationale for each question, so none is better than another; begin another run "
            "with synthesis.n_responses of 2 or more."
        )
    own = own.assign(**pd.DataFrame([format_of(text) for text in own["rationale"]], own.index, FORMAT))
    frames = []
    for seed in seeds:
        # A shuffled order settles ties at random.
        order = own.iloc[stream(seed, "validity").permutation(len(own))]
        rank = order.groupby(["student", "question_id"])["value"].rank(method="first", ascending=False).astype(int)
        frames.append(order.assign(seed=seed, group=rank))
    return pd.concat(frames, ignore_index=True)


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
    chosen = run.read("preference_set")
    probed = set(chosen[chosen["chosen"]]["item_id"])
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


def predictive_validity(table: pd.DataFrame) -> pd.DataFrame:
    """Return how well the score of a group predicts its gain: for each student, and for all of them together.

    Score and gain are averaged over seeds; Spearman's rank correlation is taken within student and task and averaged.
    Intervals: percentile bootstrap, 95 %, over (student, task) blocks for all students; for one student, over its
    training seeds.

    Returns:
        Columns student, correlation, low, high, n (groups), and of all students alone (else nan) linear (Pearson's
        correlation within student and task, where groups that hardly differ in score weigh less), partial (that with
        the mean length of a rationale and the share of right ones held fixed: a preference that is only "longer" or
        "right" leaves nothing there) and partial_format (with the number of steps and the share of digits held fixed
        too, which takes away part of a preference that is one for a format).
    """
    rng = np.random.default_rng(0)
    rows, blocks = [], []
    for student, own in table.groupby("student", sort=False):
        wide = own.pivot(index="seed", columns=["task", "group"], values=["score", "gain"]).sort_index(axis=1)
        # Shape (seeds, tasks, groups).
        scores, gains = (wide[of].to_numpy().reshape(len(wide), own["task"].nunique(), -1) for of in ("score", "gain"))
        drawn = rng.integers(len(gains), size=(N_RESAMPLES, len(gains)))
        # Means of the same shares in another order differ in the last digits, stored ones in the sixth: those are ties.
        pairs = [(scores.mean(0), gains.mean(0)), (scores[drawn].mean(1), gains[drawn].mean(1))]
        block, again = (rank_correlation(*(np.round(values, 5) for values in pair)) for pair in pairs)
        blocks.append(block)
        rows.append({"student": student} | _mean_of(block, again) | {"n": scores[0].size})
    values = np.concatenate(blocks)
    again = values[rng.integers(len(values), size=(N_RESAMPLES, len(values)))]
    whole = {"student": "all students"} | _mean_of(values, again)
    for name, covariates in {"linear": (), "partial": LENGTH, "partial_format": (*LENGTH, *FORMAT)}.items():
        whole[name] = partial_correlation(table, covariates)
    return pd.DataFrame([*rows, whole | {"n": sum(row["n"] for row in rows)}])


def _mean_of(correlations: np.ndarray, again: np.ndarray) -> dict:
    """Return the mean of what is not nan, with the interval of the same over draws, one a row."""
    low, high = percentiles(pd.DataFrame(again).mean(axis=1))
    return {"correlation": float(pd.Series(correlations).mean()), "low": low, "high": high}


def partial_correlation(table: pd.DataFrame, covariates: Sequence[str] = LENGTH) -> float:
    """Return the correlation of score and gain left when the covariates are regressed out, within blocks.

    It is nan when there are too few groups for that many covariates.
    """
    blocks = ["student", "task"]
    means = table.groupby([*blocks, "group"])[["score", "gain", *covariates]].mean()
    centred = means - means.groupby(blocks).transform("mean")
    held = centred[list(covariates)].to_numpy()
    held = held / np.where(held.std(axis=0) > 0, held.std(axis=0), 1.0)
    rest = [centred[name] - held @ np.linalg.pinv(held) @ centred[name] for name in ("score", "gain")]
    free = len(means) - means.groupby(blocks).ngroups - (np.linalg.matrix_rank(held) if covariates else 0)
    if free < LEAST_FREE or min(np.std(one) for one in rest) <= 1e-12:
        return float("nan")
    return float(np.corrcoef(*rest)[0, 1])


def left_over(whole: Mapping) -> str:
    """Return in a sentence what of the correlation is left when length, correctness and format are held fixed."""
    if np.isnan(whole["partial"]):
        return "There are too few groups to hold length, correctness and format fixed."
    said = f"The linear correlation is {whole['linear']:+.2f}; with length and correctness held fixed"
    said += f" {whole['partial']:+.2f} is left"
    if np.isnan(whole["partial_format"]):
        return f"{said}; there are too few groups to hold format fixed too."
    return f"{said}, with the number of steps and the share of digits held fixed too {whole['partial_format']:+.2f}."
