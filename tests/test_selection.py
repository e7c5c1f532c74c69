"""Questions chosen by item response against random ones: on made probes, and asked for real."""

import numpy as np
import pandas as pd
import pytest
from small_classroom import compute, recipe_of
from test_pair_reliability import stored

from workbench.runs.errors import DataError
from workbench.runs.recipe import Recipe
from workbench.runs.run import open_run
from workbench.studies.pair_reliability import AT_RANDOM, BY_IRT, probe_validation, split_half_reliability


def compared(*frames: pd.DataFrame) -> pd.DataFrame:
    """Return what pairs of rationales are worth by 40 of 100 questions, those the fit chooses or as many at random."""
    found = split_half_reliability(*frames, n_splits=10, share=0.4).query("kind == 'rationale'")
    return found.set_index("questions").loc[[AT_RANDOM, BY_IRT]]


def test_questions_that_tell_drafts_apart_are_worth_choosing():
    """40 of the 100 questions tell drafts apart, and the fit knows which; then that it has them the wrong way round."""
    sharp = np.r_[np.full(40, 1.6), np.zeros(60)]
    probes, drafts, items = stored(0.15, 60, 100, sharp=sharp)
    table = compared(probes, drafts, items)
    assert table.loc[BY_IRT, "agreement"] > table.loc[AT_RANDOM, "agreement"] and table.loc[BY_IRT, "gain_low"] > 0
    wrong = items.assign(discrimination=1.6 - items["discrimination"])
    table = compared(probes, drafts, wrong)
    assert table.loc[BY_IRT, "gain_high"] < 0


def probed(recipe: Recipe):
    run = open_run("loop", recipe)
    for stage in ("drafting", "probing"):
        compute(stage, run)
    return run


def test_drafts_are_asked_every_validation_question(classroom, runs):
    run = probed(recipe_of(classroom))
    probes, drafts, items = probe_validation(run, 3)
    assert drafts.groupby("task")["question_id"].nunique().eq(3).all()
    assert len(probes) == len(drafts) * 10 and len(items) == 20
    old = run.read("probes")
    both = probes.merge(old, on=["student", "draft_id", "item_id"])
    assert len(both) == len(drafts) * 8 and (both["answer_x"] == both["answer_y"]).all()
    pd.testing.assert_frame_equal(probe_validation(run, 3)[0], probes)


def test_a_random_preference_set_has_nothing_to_compare(classroom, runs):
    values = recipe_of(classroom).model_dump()
    values["preference_set"]["selection"] = "random"
    with pytest.raises(DataError, match="drawn at random"):
        probe_validation(probed(Recipe.model_validate(values)), 2)
