"""Does the probe tell the truth? Drafts grouped by preference score, a student trained on each group, and its gain.

ARTE (arXiv:2406.19227) prefers what works as a demonstration and never asks whether that is what helps in training.
Here group k holds the k-th best rationale of every draft question, so that all groups ask the same questions, and the
gain is counted on validation questions outside the preference set.

Trials: a student trained on some rows, or left as it is, and then asked held-out questions; outside a run's arms.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from workbench.loop import prompts
from workbench.loop.writing import AskJob, complete_job
from workbench.models.backends import tune_sft
from workbench.models.loading import fingerprint_model, resolve
from workbench.models.start import Model
from workbench.models.trl import tuned
from workbench.runs.cache import atomic_write, read_json
from workbench.runs.errors import RunError
from workbench.runs.recipe import Recipe
from workbench.runs.recipe_engines import Engines
from workbench.runs.run import Run, fingerprint
from workbench.runs.seeding import stream, stream_seed
from workbench.runs.workers import run_jobs
from workbench.tasks.answers import Answers
from workbench.tasks.task import Task, load_tasks


@dataclass(frozen=True)
class FineTuneJob:
    """One trial.

    Attributes:
        recipe: Its training section says how to train, its evaluation section how long answers may be.
        student: Name in the recipe.
        rows: Columns prompt and completion to train on; None leaves the student as it is.
        asked: (what prompts share, the rest) of each question's prompt.
        targets: How answers are read and the right one, in the order of asked.
        seed: Orders the rows.
        folder: Holds the student until it is asked, so that a trial that was killed is not trained again. What it
            answered is kept beside the folder, with the ending .json; the trained student is not.
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


def fine_tune_and_test(recipe: Recipe, trials: list[FineTuneJob], describe: str) -> list[list[bool]]:
    """Return for each trial which questions were answered right, in the order asked."""
    return [[right for _, right in told] for told in answer_trials(recipe, trials, describe)]


def answer_trials(recipe: Recipe, trials: list[FineTuneJob], describe: str) -> list[list[tuple[str, bool]]]:
    """Return for each trial what was written to each question and whether its answer is right, in the order asked."""
    return run_jobs(_run_trial, trials, recipe.compute.workers, describe)


def _run_trial(trial: FineTuneJob) -> list[tuple[str, bool]]:
    recipe, ref = trial.recipe, trial.recipe.models.students[trial.student]
    rows = None if trial.rows is None else trial.rows[["prompt", "completion"]]
    settings = recipe.section_json("training", "models.dtype")
    lines = None if rows is None else rows.to_numpy().tolist()
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
    model, longest = Model(recipe, "student", ref), recipe.evaluation.max_new_tokens
    texts = [completion.text for completion in complete_job(AskJob(model, repr(trial), trial.asked, longest))]
    told = [
        (text, answers.same(answers.read(text), target))
        for text, (answers, target) in zip(texts, trial.targets, strict=True)
    ]
    atomic_write(path, json.dumps({"key": key, "answers": told}, ensure_ascii=False).encode())
    shutil.rmtree(trial.folder, ignore_errors=True)
    return told


N_RESAMPLES = 4000
LENGTH, FORMAT = ("n_tokens", "correct"), ("n_steps", "digits")
LEAST_FREE = 3  # degrees of freedom that a partial correlation must leave


def train_on_groups(
    run: Run, seeds: list[int], signals: pd.DataFrame | None = None, name: str = "validity"
) -> pd.DataFrame:
    """Train every student on every group under every seed; the outcome is kept in the run's folder as validity.csv.

    Args:
        run: With finished drafting and probing.
        seeds: Training seeds; ties between rationales of one question are settled by them too.
        signals: What drafts are ranked by, a frame "signals"; the run's own unless given. Drafts without a
            signal belong to no group.
        name: Of the file, and of the folder that holds what the students answered.

    Returns:
        Columns student, task, group (1 is best), seed, score (mean preference score), n_tokens, n_steps and digits
        (means of a rationale, see format_of), correct (share of right rationales), before and after (accuracy), gain
        (after - before), n (questions asked).
    """
    if len(seeds) < 2:
        raise RunError(f"An interval needs two training seeds or more, got {len(seeds)}; ask for more.")
    recipe, tasks = run.recipe, load_tasks(run.recipe)
    scored = ranked(run, seeds, signals)
    names, asked, targets = held_out(run, tasks)
    folder = run.path / name
    trials = [
        FineTuneJob(recipe, student, None, asked, targets, 0, folder / f"{student}-before")
        for student in recipe.models.students
    ]
    keys = [(student, 0, 0) for student in recipe.models.students]
    for (student, seed, group), own in scored.groupby(["student", "seed", "group"], sort=False):
        path = folder / f"{student}-{group}-{seed}"
        trials.append(FineTuneJob(recipe, student, _rows(own, tasks), asked, targets, seed, path))
        keys.append((student, seed, group))
    answered = pd.DataFrame(
        fine_tune_and_test(recipe, trials, "training on groups"), index=pd.MultiIndex.from_tuples(keys)
    )
    right = answered.T.groupby(names).mean()
    described = scored.groupby(["student", "task", "group", "seed"], as_index=False).agg(
        score=("value", "mean"), **{name: (name, "mean") for name in (*LENGTH, *FORMAT)}
    )
    described["before"] = [right.loc[row.task, (row.student, 0, 0)] for row in described.itertuples()]
    described["after"] = [right.loc[row.task, (row.student, row.seed, row.group)] for row in described.itertuples()]
    counts = pd.Series(names).value_counts()
    described = described.assign(gain=described["after"] - described["before"], n=described["task"].map(counts))
    atomic_write(run.path / f"{name}.csv", described.to_csv(index=False, float_format="%.6f").encode())
    return described


def stored(run: Run, name: str = "validity") -> pd.DataFrame | None:
    """Return the stored outcome of train_on_groups; None if there is none."""
    path = run.path / f"{name}.csv"
    return pd.read_csv(path) if path.is_file() else None


def ranked(run: Run, seeds: list[int], signals: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return every draft with student, seed, score `value` and group: 1 is the best of its question.

    Raises:
        RunError: If every question has a single rationale, so that there is nothing to rank.
    """
    drafts = run.read("drafts")
    signals = run.read("signals") if signals is None else signals
    own = signals[signals["item_kind"] == "rationale"][["draft_id", "student", "value"]].merge(drafts, on="draft_id")
    own = own[own["answer"] != ""]
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
    """Return task, prompt and target (as jobs take them) of the validation questions outside the preference set.

    Raises:
        RunError: If there is none.
    """
    chosen = run.read("preference_set")
    probed = set(chosen[chosen["chosen"]]["item_id"])
    found = [
        (name, ("", prompts.naive_prompt(task.description, item.question)), (task.answers, item.target))
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


def _rows(drafts: pd.DataFrame, tasks: dict[str, Task]) -> pd.DataFrame:
    drafts = drafts.sort_values("draft_id")
    asked = [prompts.naive_prompt(tasks[row.task].description, row.question) for row in drafts.itertuples()]
    return pd.DataFrame({"prompt": asked, "completion": drafts["rationale"].to_numpy()})


def predictive_validity(table: pd.DataFrame) -> pd.DataFrame:
    """Return how well the score of a group predicts its gain: for each student, and for all of them together.

    Score and gain are averaged over seeds; Spearman's rank correlation is taken within student and task and averaged.
    Groups that hardly differ in score weigh in it as much as those that do; in `linear`, Pearson's correlation within
    student and task, they weigh less. `partial` is that with the mean length of a rationale and the share of right ones
    held fixed, by linear regression within student and task: a preference that is only "longer" or "right" leaves
    nothing there. `partial_format` holds the number of steps and the share of digits fixed as well. Where the
    preference is one for a format, as planted in the pocket students, that takes part of the preference itself away.
    Intervals: percentile bootstrap, 95 %, over (student, task) blocks for all students; for one student, over its
    training seeds.

    Returns:
        Columns student, correlation, low, high, n (groups); linear, partial and partial_format of all students alone,
        else nan.
    """
    rng = np.random.default_rng(0)
    rows, blocks = [], []
    for student, own in table.groupby("student", sort=False):
        scores, gains = (_by_seed(own, what) for what in ("score", "gain"))
        blocks.append(_rank_correlations(scores.mean(0), gains.mean(0)))
        drawn = rng.integers(len(gains), size=(N_RESAMPLES, len(gains)))
        again = _rank_correlations(scores[drawn].mean(1), gains[drawn].mean(1))
        rows.append(_row(student, blocks[-1], again) | {"n": scores[0].size})
    values = np.concatenate(blocks)
    whole = _row("all students", values, values[rng.integers(len(values), size=(N_RESAMPLES, len(values)))])
    for name, covariates in {"linear": (), "partial": LENGTH, "partial_format": (*LENGTH, *FORMAT)}.items():
        whole[name] = partial_correlation(table, covariates)
    return pd.DataFrame([*rows, whole | {"n": sum(row["n"] for row in rows)}])


def _row(student: str, found: np.ndarray, again: np.ndarray) -> dict:
    draws = _mean(again)
    known = draws[~np.isnan(draws)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return {"student": student, "correlation": float(_mean(found)), "low": low, "high": high}


def _by_seed(table: pd.DataFrame, what: str) -> np.ndarray:
    """Return one student's values, shape (seeds, tasks, groups)."""
    wide = table.pivot(index="seed", columns=["task", "group"], values=what).sort_index(axis=1)
    return wide.to_numpy().reshape(len(wide), table["task"].nunique(), -1)


def _rank_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation along the last axis; nan where one side is all alike and so says nothing."""
    # Means of the same shares in another order differ in the last digits, and stored ones in the sixth: those are ties.
    ranks = [stats.rankdata(np.round(values, 5), axis=-1) for values in (a, b)]
    x, y = (rank - rank.mean(-1, keepdims=True) for rank in ranks)
    size = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.divide((x * y).sum(-1), size, out=np.full(size.shape, np.nan), where=size > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean along the last axis of what is not nan; nan where nothing is."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(-1), known.sum(-1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


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
    if np.isnan(whole["partial"]) and np.isnan(whole["partial_format"]):
        return "There are too few groups to hold length, correctness and format fixed."
    said = f"The linear correlation is {whole['linear']:+.2f}; with length and correctness held fixed"
    said = f"{said} {whole['partial']:+.2f} is left"
    if np.isnan(whole["partial_format"]):
        return f"{said}; there are too few groups to hold format fixed too."
    return f"{said}, with the number of steps and the share of digits held fixed too {whole['partial_format']:+.2f}."
