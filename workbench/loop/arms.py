"""The arms of a run: from which pairs its teacher is aligned, or which drafts or examples its students are trained on.

Source: ARTE, arXiv:2406.19227, section 5 and table 6, for question_only, rationale_only and the three ways to select a
rationale among a question's drafts (random_rationale, most_preferred, task_consistent). Ours: random_pairs,
decided_pairs (the pairs that the probes leave little doubt about), fewer_pairs (as many by the paper's rule) and
examples tailored for another student. How the paper's arms were aligned in detail is not stated; here they differ in
the pairs alone.
"""

from collections.abc import Callable
from itertools import product

import pandas as pd

from workbench.loop.pairs import DECIDED, flip_half
from workbench.loop.writing import example_of
from workbench.runs.recipe import ALIGNED_ARMS, BEST_BY, DISTILLED, TAILORED_FOR, Recipe, takes_drafts
from workbench.runs.seeding import stream
from workbench.tasks.task import Task

VERSION = 3
KIND_OF_ARM = {"question_only": "question", "rationale_only": "rationale"}


def aligned_arms(recipe: Recipe) -> list[str]:
    """Return the arms for which a teacher is aligned to each student."""
    return [arm for arm in ALIGNED_ARMS if arm in recipe.evaluation.arms]


def pairs_by_arm(recipe: Recipe, pairs: pd.DataFrame, kind: str = "") -> dict[str, pd.DataFrame]:
    """Return the pairs that the teachers of each arm are aligned to.

    Args:
        recipe: Names the arms, the tasks of which pairs are used (alignment.tasks; none named: all) and the seed.
        kind: Of the pairs that are used where an arm does not say; "" means all.
    """
    used = pairs[pairs["task"].isin(recipe.alignment.tasks or recipe.tasks.names)]
    return {arm: _pairs_of_arm(used, arm, recipe.seeds[0], KIND_OF_ARM.get(arm, kind)) for arm in aligned_arms(recipe)}


def _pairs_of_arm(pairs: pd.DataFrame, arm: str, seed: int, kind: str) -> pd.DataFrame:
    used = pairs[pairs["kind"] == kind] if kind else pairs
    if arm in ("decided_pairs", "fewer_pairs"):
        used = _thinned(used, seed if arm == "fewer_pairs" else None)
    return flip_half(used, seed) if arm == "random_pairs" else used


def _thinned(pairs: pd.DataFrame, seed: int | None) -> pd.DataFrame:
    """Return the decided pairs or, when there is a seed to draw by, as many of each student and kind at random."""
    decided = pairs["p_chosen"] >= DECIDED
    if seed is None:
        return pairs[decided]
    drawn = [
        index
        for (student, kind), own in pairs.groupby(["student", "kind"], sort=False)
        for index in stream(seed, "fewer pairs", student, kind).permutation(own.index)[: decided[own.index].sum()]
    ]
    return pairs.loc[sorted(drawn)]


def examples_of_arm(examples: pd.DataFrame, student: str, arm: str) -> pd.DataFrame:
    """Return the examples that a student is trained on in an arm; of those for distillation only the questions."""
    if arm.startswith(TAILORED_FOR):
        student, arm = arm.removeprefix(TAILORED_FOR), "tailored"
    arm = "untailored" if arm == DISTILLED else arm
    return examples[(examples["arm"] == arm) & examples["student"].isin([student, ""])]


def draft_examples(
    recipe: Recipe,
    tasks: dict[str, Task],
    drafts: pd.DataFrame,
    signals: pd.DataFrame,
    others: pd.DataFrame | None = None,
) -> list[dict]:
    """Return the examples of the arms that train on drafts as they are: one rationale of each draft question.

    Arms choose by the signals; those that name another find it among the others. A question of which no draft was
    scored is left out.
    """
    asked = [arm for arm in recipe.evaluation.arms if takes_drafts(arm)]
    arms, rows = sorted(asked, key=lambda arm: list(SELECT).index(arm) if arm in SELECT else len(SELECT)), []
    known = {name: own for frame in (others, signals) if frame is not None for name, own in frame.groupby("signal")}
    for student, task, arm in product(recipe.models.students, tasks, arms):
        own = known[arm.removeprefix(BEST_BY)] if arm.startswith(BEST_BY) else signals
        own = own[(own["student"] == student) & (own["item_kind"] == "rationale")]
        scored = drafts[drafts["task"] == task].merge(own[["draft_id", "value"]], on="draft_id")
        for seed in recipe.seeds:
            rng = stream(seed, "select", student, arm, task)
            # A shuffled order settles ties at random.
            shuffled = scored.iloc[rng.permutation(len(scored))]
            chosen = SELECT.get(arm, _most_preferred)(shuffled).sort_values("question_id")
            whose, name = {"student": student, "arm": arm, "seed": seed}, f"{arm}/{student}/{seed}/{task}"
            drawn = enumerate(chosen.to_dict("records"))
            rows += [example_of(tasks[task], f"{name}/{n}", whose, draft) for n, draft in drawn]
    return rows


def _most_preferred(drafts: pd.DataFrame) -> pd.DataFrame:
    return drafts.loc[drafts.dropna(subset="value").groupby("question_id")["value"].idxmax()]


def _task_consistent(drafts: pd.DataFrame) -> pd.DataFrame:
    best = drafts.groupby("technique", sort=False)["value"].mean().idxmax()
    return drafts[drafts["technique"] == best]


SELECT: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "random_rationale": lambda drafts: drafts.drop_duplicates("question_id"),
    "most_preferred": _most_preferred,
    "task_consistent": _task_consistent,
}
