"""Pairs looked at again: simulated students of known taste, where the better draft is known."""

import numpy as np
import pandas as pd
import pytest

from workbench.runs.errors import DataError
from workbench.studies.pair_reliability import (
    ALL,
    AT_RANDOM,
    BY_IRT,
    GAP,
    LIKELY,
    PAPER,
    replay,
    selection_bias,
    split_half_reliability,
)


def stored(effect: float, n_questions: int = 40, n_items: int = 24, sharp=None, key: int = 0, students=("s",)) -> tuple:
    """Return probes, drafts and preference set; drafts of a question differ in worth by the effect (a deviation).

    Args:
        sharp: How much each item tells drafts apart, shape (n_items,); None for all alike and none known.
    """
    generator = np.random.default_rng(key)
    told = np.ones(n_items) if sharp is None else np.asarray(sharp)
    drafts = pd.DataFrame(
        [("t", f"q{q:03}/{d}", f"q{q:03}") for q in range(n_questions) for d in range(4)],
        columns=["task", "draft_id", "question_id"],
    )
    ease = generator.uniform(-0.2, 0.2, n_items)
    rows = []
    for student in students:
        worth = effect * generator.standard_normal(len(drafts))
        right = generator.random((len(drafts), n_items)) < 0.5 + ease + worth[:, None] * told
        rows += [
            (student, draft, f"i{n:02}", one)
            for draft, row in zip(drafts["draft_id"], right, strict=True)
            for n, one in enumerate(row)
        ]
    probes = pd.DataFrame(rows, columns=["student", "draft_id", "item_id", "correct"])
    known = np.full(n_items, np.nan) if sharp is None else told
    items = pd.DataFrame({"item_id": [f"i{n:02}" for n in range(n_items)], "discrimination": known, "chosen": True})
    return probes, drafts, items


def by_rule(table: pd.DataFrame, kind: str = "rationale") -> pd.DataFrame:
    return table[table["kind"] == kind].set_index(["questions", "rule"])


def test_drafts_that_do_not_differ_are_confirmed_by_chance():
    """Many drawn worlds, so that the interval's promise itself is looked at."""
    tables = [
        by_rule(split_half_reliability(*stored(0.0, 30, 16, key=key), n_splits=10)).loc[(ALL, PAPER)]
        for key in range(30)
    ]
    found = pd.DataFrame(tables)
    assert found["agreement"].mean() == pytest.approx(0.5, abs=0.025)
    assert ((found["low"] <= 0.5) & (0.5 <= found["high"])).mean() > 0.75


def test_what_the_rule_says_is_likely_is_confirmed_more_often_when_drafts_differ():
    table = by_rule(split_half_reliability(*stored(0.15, 80), n_splits=20))
    paper, likely = table.loc[(ALL, PAPER)], table.loc[(ALL, LIKELY.format(0.95))]
    widest = table.loc[(ALL, f"{GAP}, as many as {LIKELY.format(0.95)}")]
    assert paper["agreement"] > 0.65 and likely["agreement"] > paper["agreement"]
    assert likely["gain"] == pytest.approx(likely["agreement"] - paper["agreement"]) and likely["gain_low"] > 0
    assert likely["pairs"] == widest["pairs"] < paper["pairs"] <= 80
    assert np.isnan(paper["gain"]) and paper["low"] < paper["agreement"] < paper["high"]


def test_pairs_of_questions_are_looked_at_too():
    found = by_rule(split_half_reliability(*stored(0.2, 80), n_splits=10), "question").loc[(ALL, PAPER)]
    assert found["pairs"] == pytest.approx(20, abs=1) and found["agreement"] > 0.6


def test_items_that_tell_drafts_apart_form_better_pairs_than_random_ones():
    """Half of the items do not tell drafts apart at all, and the discrimination says which."""
    sharp = np.r_[np.full(12, 1.6), np.zeros(12)]
    table = by_rule(split_half_reliability(*stored(0.15, 80, sharp=sharp), n_splits=20))
    best, random = table.loc[(BY_IRT, PAPER)], table.loc[(AT_RANDOM, PAPER)]
    assert best["agreement"] > random["agreement"] and best["gain_low"] > 0
    useless = by_rule(
        split_half_reliability(*stored(0.15, 80, sharp=sharp, key=1)[:2], stored(0, 1, sharp=1.6 - sharp)[2], 20)
    )
    assert useless.loc[(BY_IRT, PAPER), "gain_high"] < 0


def test_without_a_fit_there_is_nothing_to_choose_by():
    assert set(split_half_reliability(*stored(0.1), n_splits=2)["questions"]) == {ALL}


def test_inflation_shows_what_picking_alone_does():
    none = selection_bias(*stored(0.0, 150), n_shuffles=10).set_index("least")
    assert 0.25 < none.loc[0.95, "null"] < 0.42
    # Drafts that do not differ look just as decided.
    assert none.loc[0.95, "seen"] == pytest.approx(none.loc[0.95, "null"], abs=0.12)
    some = selection_bias(*stored(0.2, 150), n_shuffles=10).set_index("least")
    assert some.loc[0.95, "seen"] > some.loc[0.95, "null"] + 0.2


def test_the_same_seed_gives_the_same_halves_and_students_do_not_mix():
    frames = stored(0.15, students=("s", "t"))
    both = split_half_reliability(*frames, n_splits=3)
    pd.testing.assert_frame_equal(split_half_reliability(*frames, n_splits=3), both)
    alone = split_half_reliability(frames[0][frames[0]["student"] == "t"], *frames[1:], n_splits=3)
    pd.testing.assert_frame_equal(both[both["student"] == "t"].reset_index(drop=True), alone)


def test_questions_with_fewer_drafts_are_taken_as_they_are():
    probes, drafts, items = stored(0.2, 20)
    lost = drafts["draft_id"].isin(["q003/2", "q003/3", "q007/0"])
    table = split_half_reliability(
        probes[~probes["draft_id"].isin(drafts[lost]["draft_id"])], drafts[~lost], items, n_splits=3
    )
    assert table["agreement"].between(0, 1).all() and len(selection_bias(probes, drafts[~lost], items)) == 3


def test_too_few_questions_are_refused():
    with pytest.raises(DataError, match="3 questions"):
        split_half_reliability(*stored(0.1, n_items=3))


@pytest.mark.parametrize(("effect", "asked", "right"), [(0.0, (0.5, 1.0), 0.6), (0.3, (0.1, 0.45), 0.95)])
def test_a_race_asks_little_where_drafts_differ_and_nearly_all_where_they_do_not(effect, asked, right):
    probes, drafts, items = stored(effect, students=("s", "t"))
    found = replay(probes, drafts, items.assign(task="t"), 0.1).set_index("student")
    assert list(found.index) == ["s", "t"] and found["asked"].between(*asked).all()
    assert (1 - found["wrong"] >= right).all() and found["low"].le(found["wrong"]).all()
    strict = replay(probes, drafts, items.assign(task="t"), 0.001).set_index("student")
    assert (strict["asked"] > found["asked"]).all() and (strict["gap"] >= found["gap"]).all()
    assert (strict["wrong"] <= found["wrong"]).all()


def test_halves_of_a_race_are_refused():
    probes, drafts, items = stored(0.3)
    cut = probes[~((probes["draft_id"].str[:4] == "q000") & (probes["item_id"] == "i23"))]
    with pytest.raises(DataError, match="The drafts of s raced: halves need a run with probing.rule uniform"):
        split_half_reliability(cut, drafts, items, 2)
