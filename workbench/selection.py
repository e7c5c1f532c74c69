"""Is it worth choosing the preference questions by an item response fit? Chosen ones against random ones.

ARTE (arXiv:2406.19227, section 3.2) chooses them so and does not compare. Here some drafts are asked all validation
questions. Pairs are formed from one half of these, by the questions of that half that the fit chooses or by as many at
random, at the recipe's ratio; the other half says whether it confirms the pairs.
"""

import textwrap

import pandas as pd

from workbench.recipe import Recipe
from workbench.reproduction import AT_RANDOM, BY_IRT, ReproductionError, halves, shown
from workbench.seeding import stream
from workbench.signals.icl import probe_drafts
from workbench.store import Run
from workbench.tasks import load_tasks


def probe_validation(run: Run, n_questions: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Ask drafts of a run all validation questions; what the run has asked already is not asked again.

    Args:
        run: With finished probing and a preference set chosen by an item response fit.
        n_questions: So many drafted questions a task, drawn at random, with all their rationales.

    Returns:
        probes, the drafts that were asked, and the validation questions, all of them marked as chosen.
    """
    items = run.stage("probing").read("preference_set").assign(chosen=True)
    if items["discrimination"].isna().any():
        raise ReproductionError(
            f"The preference set of run {run.name} was drawn at random, so there is no fit to compare with; take a run "
            "with preference_set.selection=irt."
        )
    drafts = run.stage("drafting").read("drafts")
    parts = []
    for task, own in drafts.groupby("task", sort=False):
        questions = own["question_id"].unique()
        drawn = stream(run.recipe.seeds[0], "selection", task).permutation(questions)[:n_questions]
        parts.append(own[own["question_id"].isin(drawn)])
    asked = pd.concat(parts, ignore_index=True)
    return probe_drafts(run.recipe, load_tasks(run.recipe), asked, items), asked, items


def compare_selection(
    recipe: Recipe, probes: pd.DataFrame, drafts: pd.DataFrame, items: pd.DataFrame, n_splits: int = 50
) -> pd.DataFrame:
    """Return how often fresh questions confirm pairs formed by questions that the fit chooses, and by random ones.

    Args:
        recipe: Says how large a share of the validation questions is chosen.
        probes: Of the drafts on all validation questions.
        drafts: Those that were asked.
        items: The validation questions with their discrimination.
        n_splits: Random halves of the validation questions.

    Returns:
        As reproduction.halves, for the two choices of questions alone.
    """
    settings = recipe.preference_set
    share = settings.n_items / settings.n_validation
    found = halves(probes, drafts, items, n_splits, recipe.pairs.quantile, share=share)
    return found[found["questions"].isin([AT_RANDOM, BY_IRT])].reset_index(drop=True)


def in_words(run: Run, n_questions: int, n_splits: int) -> str:
    """Return the comparison as text, in per cent."""
    probes, drafts, items = probe_validation(run, n_questions)
    settings, n = run.recipe.preference_set, drafts.groupby("task")["question_id"].nunique().max()
    facts = (
        f"{n} drafted questions a task, asked all {settings.n_validation} validation questions. Pairs are formed from "
        f"a random half of these: by the {settings.n_items / settings.n_validation:.0%} that tell responders apart "
        f"best, or by as many at random; {n_splits} splits. agreement: the fresh half has the same side ahead, in per "
        "cent (a tie counts half, 50 is chance). gain: minus random questions. Brackets: 95 % intervals over the "
        "drafted questions; which validation questions there are is taken as given."
    )
    table = compare_selection(run.recipe, probes, drafts, items, n_splits)
    return "\n\n".join([textwrap.fill(facts, 100), shown(table)])
