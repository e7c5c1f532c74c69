import pandas as pd
import pytest
from probed_run import form_pairs, recipe_of, write_run
from traitlets import TraitError

from workbench.loop.pairs import build_pairs
from workbench.methods.arte import ARTE
from workbench.notebook.pair_view import Evidence
from workbench.notebook.what_if import FIRST_HALF, OTHER_HALF, RIGHT_ANSWERS, SETTINGS, WhatIf
from workbench.runs.recipe import Pairs
from workbench.tasks.task import load_tasks


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WORKBENCH_RUNS", str(tmp_path_factory.mktemp("runs")))
        work = form_pairs(write_run(recipe=recipe_of(n_questions=12)))
        return work.recipe, load_tasks(work.recipe), Evidence.of_run(work), work.read("pairs")


@pytest.fixture
def what_if(stored):
    return WhatIf(*stored)


def with_rule(stored, **rule) -> pd.DataFrame:
    """Build the pairs anew, as a run with that rule would."""
    recipe, tasks, evidence, _ = stored
    settings = Pairs.model_validate(recipe.pairs.model_dump() | rule)
    return build_pairs(ARTE.pair_rules, tasks, *evidence[:4], settings, recipe.seeds[0])


def test_it_begins_with_the_pairs_of_the_run(what_if, stored):
    pd.testing.assert_frame_equal(what_if.pairs, stored[3])
    summary = what_if.summary()
    assert summary["now"] == summary["then"] and not any(summary[name] for name in ("lost", "new", "turned"))
    assert summary["now"]["pairs"] == len(stored[3]) and sum(summary["now"]["histogram"]) == len(stored[3])
    assert what_if.overrides() == "" and "the same" in what_if.facts()


@pytest.mark.parametrize(
    "rule",
    [
        {"min_gap": 0.3},
        {"min_probability": 0.8},
        {"min_gap": 0.2, "min_probability": 0.9},
        {"quantile": 0.5, "n_question_pairs": 4},
        {"quantile": 0.4, "n_question_pairs": 3, "min_gap": 0.1, "min_probability": 0.7},
    ],
    ids=str,
)
def test_it_gives_the_very_pairs_that_a_run_with_that_rule_would_have(what_if, stored, rule):
    for name, value in rule.items():
        setattr(what_if, name, value)
    pd.testing.assert_frame_equal(what_if.pairs, with_rule(stored, **rule))
    assert dict(part.split("=") for part in what_if.overrides().split("; ")) == {
        f"pairs.{name}": f"{value:g}" for name, value in rule.items()
    }


def test_what_is_lost_new_and_turned_is_counted(what_if, stored):
    what_if.min_gap = 0.4
    lost = what_if.change()
    assert set(lost["change"]) == {"lost"} and set(lost["pair_id"]) == set(
        stored[3].query("score_gap < 0.4")["pair_id"]
    )
    what_if.min_gap = 0.0
    turned = stored[3].copy()
    turned[["chosen_id", "rejected_id"]] = stored[3][["rejected_id", "chosen_id"]].to_numpy()
    turned["pair_id"] = "other " + turned["pair_id"]
    what_if.now = turned
    assert what_if.summary()["turned"] == len(turned) and not what_if.summary()["lost"]
    what_if.now = turned.head(0)
    assert what_if.summary()["new"] == len(turned)


def test_other_signals_are_tried_without_a_model(what_if):
    assert what_if.signals == ["one_shot", FIRST_HALF, OTHER_HALF, RIGHT_ANSWERS]
    halves = {}
    for what_if.signal in (FIRST_HALF, OTHER_HALF):
        halves[what_if.signal] = set(what_if.pairs["pair_id"])
        # A half of eight questions gives scores in steps of a quarter.
        rationales = what_if.pairs.query("kind == 'rationale'")
        assert (rationales["score_chosen"] * 4 % 1 == 0).all()
    assert halves[FIRST_HALF] != halves[OTHER_HALF]
    what_if.signal = RIGHT_ANSWERS
    drafts = what_if.evidence.drafts.set_index("draft_id")
    rationales = what_if.pairs.query("kind == 'rationale'")
    assert len(rationales) and drafts.loc[rationales["chosen_id"], "correct"].all()
    assert not drafts.loc[rationales["rejected_id"], "correct"].any()
    assert RIGHT_ANSWERS in what_if.facts() and what_if.overrides() == ""


def test_impossible_settings_are_refused(what_if):
    with pytest.raises(TraitError, match="one_shot, one_shot, first half"):
        what_if.signal = "reward"
    for name, value in (("min_gap", -0.1), ("min_probability", 1.5), ("quantile", 0.9), ("n_question_pairs", -1)):
        with pytest.raises(TraitError):
            setattr(what_if, name, value)
    assert {name: getattr(what_if, name) for name in SETTINGS} == {
        name: getattr(what_if.recipe.pairs, name) for name in SETTINGS
    }
