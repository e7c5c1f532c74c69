"""The probability that one draft is better: by hand, against draws from the posterior, and what picking does to it."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from workbench.loop.pairs import outcomes, p_chosen, probability_better

steps = st.lists(st.sampled_from([-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]), max_size=30)


@pytest.mark.parametrize(("won", "lost", "alike"), [(0, 0, 9), (3, 1, 0), (3, 1, 50), (1, 6, 2), (20, 0, 4)])
def test_of_single_drafts_it_is_a_beta_tail(won, lost, alike):
    differences = np.repeat([1.0, -1.0, 0.0], [won, lost, alike])
    assert probability_better(differences) == pytest.approx(stats.beta.sf(0.5, won + 1, lost + 1))


@given(steps)
def test_turned_round_it_is_the_rest(differences):
    values = np.array(differences)
    assert probability_better(values) + probability_better(-values) == pytest.approx(1.0)


@given(steps)
def test_another_question_won_makes_it_surer(differences):
    assert probability_better(np.array([*differences, 1.0])) > probability_better(np.array(differences))


def test_of_means_over_rationales_it_is_near_draws_from_the_posterior():
    generator = np.random.default_rng(0)
    for values in generator.choice([-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0], size=(6, 24)):
        ends = np.array([*values, 1.0, -1.0])
        drawn = (generator.exponential(size=(40_000, len(ends))) @ ends > 0).mean()
        assert probability_better(values) == pytest.approx(drawn, abs=0.012)


def test_questions_not_asked_change_nothing():
    assert probability_better(np.array([1.0, np.nan, 0.5])) == probability_better(np.array([1.0, 0.5]))


def test_two_drafts_named_beforehand_keep_the_promise_and_picked_ones_do_not():
    """Drafts of uniformly drawn worth: of pairs said to be better with about 0.9, nine in ten are."""
    generator = np.random.default_rng(1)
    # Under the prior: who wins a question that the two answer differently.
    leaning = generator.random(20_000)
    differences = np.where(generator.random((20_000, 12)) < leaning[:, None], 1.0, -1.0)
    p = probability_better(differences)
    near = (p > 0.85) & (p < 0.95)
    assert (leaning[near] > 0.5).mean() == pytest.approx(p[near].mean(), abs=0.03)
    alike = (generator.random((2000, 4, 24)) < 0.5).astype(float)
    scores = alike.sum(axis=2) + 1e-6 * generator.random((2000, 4))
    rows = np.arange(2000)
    picked = alike[rows, scores.argmax(axis=1)] - alike[rows, scores.argmin(axis=1)]
    assert 0.25 < (probability_better(picked) >= 0.95).mean() < 0.4  # 0.05 would be right


def test_outcomes_of_drafts_and_questions():
    drafts = pd.DataFrame({"draft_id": ["a", "b", "c"], "question_id": ["q", "q", "r"]})
    right = {"a": [1, 0], "b": [1, 1], "c": [0, 0]}
    rows = [("s", draft, f"i{n}", bool(one)) for draft, ones in right.items() for n, one in enumerate(ones)]
    probes = pd.DataFrame(rows, columns=["student", "draft_id", "item_id", "correct"])
    found = outcomes(probes, drafts)
    assert found["s", "rationale"].loc["a"].tolist() == [1.0, 0.0]
    assert found["s", "question"].loc["q"].tolist() == [1.0, 0.5]
    assert p_chosen(found, "s", "rationale", "b", "a") == pytest.approx(stats.beta.sf(0.5, 2, 1))
    assert p_chosen(found, "s", "question", "q", "r") == pytest.approx(float(probability_better(np.array([1.0, 0.5]))))
    assert np.isnan(p_chosen(found, "s", "rationale", "a", "z")) and np.isnan(
        p_chosen(found, "t", "question", "q", "r")
    )
