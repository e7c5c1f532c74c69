"""ARTE: the student's one-shot accuracy with each draft as its only demonstration is its preference.

Source: ARTE, arXiv:2406.19227.
"""

from typing import Annotated, Literal

from pydantic import Field

from workbench.loop.pairs import best_against_worst, top_against_bottom
from workbench.methods.base import Amounts, Method
from workbench.runs.recipe import ONE_SHOT, SIGNALS, Recipe
from workbench.runs.recipe_parts import Section
from workbench.signals.scores import share_right

N_TECHNIQUES = 4  # that a task has, unless its file names others


class Probing(Section):
    """Which probes are asked: all, or by racing so many that a question's best draft surely beats its worst.

    error: how probable it may be then, by the answers so far, that it does not; larger asks less.
    """

    rule: Literal["uniform", "racing"] = "uniform"
    error: Annotated[float, Field(gt=0, lt=0.5)] = 0.1


class ArteRecipe(Recipe):
    """A recipe with what the method adds. signal: what forms the pairs; ARTE's own is one-shot accuracy."""

    # Left out where nothing is set, so that fingerprints of older recipes stay what they were.
    signal: Annotated[Literal[SIGNALS], Field(exclude_if=lambda name: name == ONE_SHOT)] = ONE_SHOT
    probing: Annotated[Probing, Field(exclude_if=lambda probing: probing == Probing())] = Probing()


def plan(recipe: Recipe) -> Amounts:
    """Return what a run of a recipe does, a task."""
    n, drafts = recipe.drafting.n_questions, recipe.drafting.n_questions * N_TECHNIQUES
    of_questions = min(recipe.pairs.n_question_pairs, int(n * recipe.pairs.quantile))
    probes = drafts * recipe.preference_set.n_items
    return Amounts(recipe.drafting.n_seed_questions, N_TECHNIQUES, n + of_questions, probes=probes)


ARTE = Method(
    name="arte",
    recipe=ArteRecipe,
    notebooks=(
        "01_drafting",
        "02_preference_probing",
        "03_teacher_alignment",
        "04_student_training",
        "05_evaluation",
    ),
    signal=share_right,
    pair_rules={"rationale": best_against_worst, "question": top_against_bottom},
    aligned_on="",
    story="The teacher drafted questions and several rationales of each; the student answered held-out preference "
    "questions with each draft as its one demonstration; best and worst drafts became pairs",
    source="ARTE, arXiv:2406.19227",
    plan=plan,
)
