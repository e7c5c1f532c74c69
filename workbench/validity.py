"""Does the probe tell the truth? Drafts grouped by preference score, a student trained on each group, and its gain.

ARTE (arXiv:2406.19227) prefers what works as a demonstration and never asks whether that is what helps in training.
Here group k holds the k-th best rationale of every draft question, so that all groups ask the same questions, and the
gain is counted on validation questions outside the preference set.
"""

import numpy as np
import pandas as pd
from scipy import stats

from workbench import prompts
from workbench.items import atomic_write
from workbench.seeding import stream
from workbench.store import Run, StoreError
from workbench.tasks import Task, load_tasks
from workbench.trials import Trial, run_trials

N_RESAMPLES = 4000


def validate(run: Run, seeds: list[int]) -> pd.DataFrame:
    """Train every student on every group under every seed; the outcome is kept in the run's folder as validity.csv.

    Args:
        run: With finished drafting and probing.
        seeds: Training seeds; ties between rationales of one question are settled by them too.

    Returns:
        Columns student, task, group (1 is best), seed, score (mean preference score), n_tokens (mean of a rationale),
        correct (share of right rationales), before and after (accuracy), gain (after - before), n (questions asked).
    """
    recipe, tasks = run.recipe, load_tasks(run.recipe)
    scored = ranked(run, seeds)
    held_out = _held_out(run, tasks)
    asked = [("", prompts.naive_prompt(tasks[name].description, question)) for name, question, _ in held_out]
    targets = [target for _, _, target in held_out]
    folder = run.path / "validity"
    trials = [
        Trial(recipe, student, None, asked, targets, 0, folder / f"{student}-before")
        for student in recipe.models.students
    ]
    keys = [(student, 0, 0) for student in recipe.models.students]
    for (student, seed, group), own in scored.groupby(["student", "seed", "group"], sort=False):
        path = folder / f"{student}-{group}-{seed}"
        trials.append(Trial(recipe, student, _rows(own, tasks), asked, targets, seed, path))
        keys.append((student, seed, group))
    answered = pd.DataFrame(run_trials(recipe, trials, "training on groups"), index=pd.MultiIndex.from_tuples(keys))
    right = answered.T.groupby([name for name, _, _ in held_out]).mean()
    described = scored.groupby(["student", "task", "group", "seed"], as_index=False).agg(
        score=("value", "mean"), n_tokens=("n_tokens", "mean"), correct=("correct", "mean")
    )
    described["before"] = [right.loc[row.task, (row.student, 0, 0)] for row in described.itertuples()]
    described["after"] = [right.loc[row.task, (row.student, row.seed, row.group)] for row in described.itertuples()]
    counts = pd.Series([name for name, _, _ in held_out]).value_counts()
    described = described.assign(gain=described["after"] - described["before"], n=described["task"].map(counts))
    atomic_write(run.path / "validity.csv", described.to_csv(index=False, float_format="%.6f").encode())
    return described


def validity_of(run: Run) -> pd.DataFrame:
    """Return the stored outcome of validate.

    Raises:
        StoreError: If there is none yet.
    """
    path = run.path / "validity.csv"
    if not path.is_file():
        raise StoreError(f"Run {run.name} has no test of its probe yet; make it with: workbench validity {run.name}")
    return pd.read_csv(path)


def ranked(run: Run, seeds: list[int]) -> pd.DataFrame:
    """Return every draft with student, seed, preference score `value` and group: 1 is the best of its question."""
    drafts, signals = run.stage("drafting").read("drafts"), run.stage("probing").read("signals")
    own = signals[signals["item_kind"] == "rationale"][["draft_id", "student", "value"]].merge(drafts, on="draft_id")
    own = own[own["answer"] != ""]
    frames = []
    for seed in seeds:
        # A shuffled order settles ties at random.
        order = own.iloc[stream(seed, "validity").permutation(len(own))]
        rank = order.groupby(["student", "question_id"])["value"].rank(method="first", ascending=False).astype(int)
        frames.append(order.assign(seed=seed, group=rank))
    return pd.concat(frames, ignore_index=True)


def _held_out(run: Run, tasks: dict[str, Task]) -> list[tuple[str, str, str]]:
    """Return (task, question, target) of the validation questions outside the preference set."""
    chosen = run.stage("probing").read("preference_set")
    probed = set(chosen[chosen["chosen"]]["item_id"])
    return [
        (name, item.question, item.target)
        for name, task in tasks.items()
        for item in task.validation.itertuples()
        if item.item_id not in probed
    ]


def _rows(drafts: pd.DataFrame, tasks: dict[str, Task]) -> pd.DataFrame:
    drafts = drafts.sort_values("draft_id")
    asked = [prompts.naive_prompt(tasks[row.task].description, row.question) for row in drafts.itertuples()]
    return pd.DataFrame({"prompt": asked, "completion": drafts["rationale"].to_numpy()})


def agreement(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return how well the score of a group predicts its gain: for each student, and for all of them together.

    Score and gain are averaged over seeds; Spearman's rank correlation is taken within student and task and averaged.
    `partial` holds fixed, by linear regression within student and task, the mean length of a rationale and the share of
    right ones: a preference that is only "longer" or "right" leaves nothing there. Intervals: percentile bootstrap,
    95 %, over (student, task) blocks for all students; for one student, over its training seeds.

    Returns:
        Columns student, correlation, low, high, partial (all students alone, else nan), n (groups).
    """
    rng = np.random.default_rng(seed)
    rows, blocks = [], []
    for student, own in table.groupby("student", sort=False):
        scores, gains = (_by_seed(own, what) for what in ("score", "gain"))
        found = _rank_correlations(scores.mean(0), gains.mean(0))
        drawn = rng.integers(len(gains), size=(N_RESAMPLES, len(gains)))
        draws = _mean(_rank_correlations(scores[drawn].mean(1), gains[drawn].mean(1)))
        low, high = _interval(draws)
        row = {"student": student, "correlation": _mean(found), "low": low, "high": high}
        rows.append(row | {"partial": np.nan, "n": scores[0].size})
        blocks.append(found)
    values = np.concatenate(blocks)
    low, high = _interval(_mean(rng.choice(values, (N_RESAMPLES, len(values)))))
    whole = {"student": "all students", "correlation": _mean(values), "low": low, "high": high}
    return pd.DataFrame([*rows, whole | {"partial": partial_correlation(table), "n": sum(row["n"] for row in rows)}])


def _by_seed(table: pd.DataFrame, what: str) -> np.ndarray:
    """Return one student's values, shape (seeds, tasks, groups)."""
    wide = table.pivot(index="seed", columns=["task", "group"], values=what).sort_index(axis=1)
    return wide.to_numpy().reshape(len(wide), table["task"].nunique(), -1)


def _rank_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation along the last axis; nan where one side is all alike and so says nothing."""
    ranks = [stats.rankdata(values, axis=-1) for values in (a, b)]
    x, y = (rank - rank.mean(-1, keepdims=True) for rank in ranks)
    size = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.divide((x * y).sum(-1), size, out=np.full(size.shape, np.nan), where=size > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean along the last axis of what is not nan; nan where nothing is."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(-1), known.sum(-1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _interval(draws: np.ndarray) -> tuple[float, float]:
    known = draws[~np.isnan(draws)]
    return tuple(np.percentile(known, [2.5, 97.5])) if len(known) else (np.nan, np.nan)


def partial_correlation(table: pd.DataFrame) -> float:
    """Return the correlation of score and gain left when length and correctness are regressed out, within blocks."""
    columns = ["score", "gain", "n_tokens", "correct"]
    means = table.groupby(["student", "task", "group"])[columns].mean()
    centred = means - means.groupby(["student", "task"]).transform("mean")
    held = centred[["n_tokens", "correct"]].to_numpy()
    rest = [centred[name] - held @ np.linalg.lstsq(held, centred[name], rcond=None)[0] for name in ("score", "gain")]
    return float(np.corrcoef(*rest)[0, 1]) if min(np.std(one) for one in rest) > 1e-12 else float("nan")
