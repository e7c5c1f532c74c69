"""Pairs by the rules of the methods, and how probable it is that the chosen side is better."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from workbench.loop import prompts
from workbench.loop.pairs import (
    build_pairs,
    flip_half,
    helpful_against_harmful,
    outcomes,
    p_chosen,
    probability_better,
)
from workbench.methods.arte import ARTE
from workbench.runs import schemas
from workbench.runs.recipe import Pairs
from workbench.tasks.task import Task

SEEDS = pd.DataFrame({"item_id": ["s1", "s2", "s3"], "question": ["A?", "B?", "C?"], "target": ["1", "2", "3"]})
TECHNIQUES = ("tally", "meter", "story", "diary")
PROMPT = prompts.question_prompt("Add up.", [("A?", "1"), ("B?", "2"), ("C?", "3")], 5)


def task(name: str = "sums") -> Task:
    return Task(name, "Add up.", {t: f"Think {t}." for t in TECHNIQUES}, SEEDS, SEEDS, SEEDS, "0")


def frames(scores: dict[str, list[float]], student: str = "s", texts=None) -> tuple:
    """Build questions, drafts, signals and no probes from the scores of each question's rationales."""
    questions, drafts, signals = [], [], []
    for question, values in scores.items():
        questions.append(
            {
                "task": "sums",
                "question_id": question,
                "question": f"{question}?",
                "drafted_target": "1",
                "reply": f" <input>{question}?</input><target>1</target>",
                "prompt_id": "p",
                "prompt": PROMPT,
                "call": 0,
                "index": 0,
                "kept": True,
                "drop_reason": "",
            }
        )
        for n, value in enumerate(values):
            draft = f"{question}/{n}"
            drafts.append(
                {
                    "draft_id": draft,
                    "task": "sums",
                    "question_id": question,
                    "question": f"{question}?",
                    "technique": TECHNIQUES[n],
                    "rationale": texts[n] if texts else f" {TECHNIQUES[n]} <ans>1</ans>",
                    "answer": "1",
                    "gold": "1",
                    "correct": True,
                    "n_tokens": 4,
                }
            )
            signals.append(("rationale", draft, value))
        signals.append(("question", question, float(np.mean(values))))
    signals = [
        {
            "draft_id": name,
            "item_kind": kind,
            "signal": "one_shot",
            "student": student,
            "student_fp": "f",
            "set_fp": "f",
            "value": value,
            "stderr": 0.0,
            "n": 4,
            "tokens": 4,
        }
        for kind, name, value in signals
    ]
    built = {"questions": questions, "drafts": drafts, "signals": signals, "probes": []}
    return tuple(schemas.build(rows, name) for name, rows in built.items())


def build(given: tuple, rules=ARTE.pair_rules, **settings) -> tuple[pd.DataFrame, dict]:
    """Form pairs of questions, drafts, signals and probes; return them, and what was counted."""
    pairs = build_pairs(rules, {"sums": task()}, *given, Pairs(**settings), 0)
    return pairs, pairs.attrs["counts"]


def pairs_of(scores, kind=None, texts=None, **settings) -> tuple[pd.DataFrame, dict]:
    pairs, counts = build(frames(scores, texts=texts), **settings)
    return (pairs[pairs["kind"] == kind] if kind else pairs), counts


def test_the_best_rationale_of_a_question_against_its_worst():
    scores = {"q1": [0.25, 1.0, 0.5, 0.75], "q2": [0.5, 0.25, 0.0, 0.125]}
    pairs, counts = pairs_of(scores, "rationale")
    assert pairs[["chosen_id", "rejected_id"]].to_numpy().tolist() == [["q1/1", "q1/0"], ["q2/0", "q2/2"]]
    assert pairs["score_gap"].tolist() == [0.75, 0.5] and not pairs["flipped"].any()
    assert (pairs["score_chosen"] - pairs["score_rejected"] == pairs["score_gap"]).all()
    assert pairs["chosen"].tolist() == [" meter <ans>1</ans>", " tally <ans>1</ans>"]
    assert counts["rationale groups"] == 2 and counts["rationale groups without a pair"] == 0


def test_the_technique_is_erased_from_the_prompt():
    pairs, _ = pairs_of({"q1": [0.25, 1.0, 0.5, 0.75]}, "rationale")
    assert pairs["prompt"].tolist() == [prompts.naive_prompt("Add up.", "q1?")]
    assert not any(text in pairs["prompt"].iloc[0] for text in task().techniques.values())


def test_groups_that_yield_no_pair_are_counted():
    scores = {"tied": [0.5] * 4, "close": [0.5, 0.5, 0.5, 0.6], "apart": [0.0, 0.2, 0.5, 1.0]}
    pairs, counts = pairs_of(scores, "rationale", min_gap=0.2)
    assert pairs["chosen_id"].tolist() == ["apart/3"]
    assert counts["rationale groups"] == 3 and counts["rationale groups without a pair"] == 2
    assert counts["rationale pairs of equal scores"] == 1 == counts["rationale pairs below min_gap"]
    assert pairs_of(scores, "rationale", min_gap=0.0)[1]["rationale pairs below min_gap"] == 0


def test_a_text_is_not_preferred_to_itself():
    same = ["x <ans>1</ans>", "x <ans>1</ans>"]
    pairs, counts = pairs_of({"q": [0.0, 1.0]}, "rationale", texts=same)
    assert pairs.empty and counts["rationale pairs of equal texts"] == 1


def test_ties_are_broken_at_random_and_the_same_every_time():
    scores = {f"q{n:03}": [1.0, 1.0, 0.0, 1.0] for n in range(240)}
    pairs, _ = pairs_of(scores, "rationale")
    assert len(pairs) == 240 and (pairs["rejected_id"].str[-1] == "2").all()
    seen = pairs["chosen_id"].str[-1].value_counts().reindex(["0", "1", "3"], fill_value=0)
    assert stats.chisquare(seen).pvalue > 0.001
    pd.testing.assert_frame_equal(pairs_of(scores, "rationale")[0], pairs)
    # A tie's outcome hangs on its question and student alone, not on what else was drafted.
    fewer = pairs_of(dict(list(scores.items())[100:150]), "rationale")[0]
    both = fewer.merge(pairs, on="pair_id")
    assert len(both) == 50 and (both["chosen_x"] == both["chosen_y"]).all()


def test_question_pairs_come_from_the_top_and_the_bottom_quarter():
    scores = {f"q{n:02}": [n / 40] for n in range(40)}
    pairs, counts = pairs_of(scores, "question")
    assert len(pairs) == 10 and counts["question groups without a pair"] == 0
    assert set(pairs["chosen_id"]) == {f"q{n}" for n in range(30, 40)}
    assert set(pairs["rejected_id"]) == {f"q0{n}" for n in range(10)}
    # Drawn at random, not the best with the worst in order.
    assert pairs["chosen_id"].tolist() != sorted(pairs["chosen_id"])
    assert set(pairs["prompt"]) == {PROMPT}
    assert pairs["chosen"].str.fullmatch(r" <input>q\d\d\?</input><target>1</target>").all()


@pytest.mark.parametrize(("asked", "quantile", "made"), [(3, 0.25, 3), (50, 0.5, 10), (50, 0.1, 2), (0, 0.25, 0)])
def test_as_many_question_pairs_as_asked_for_and_as_there_are(asked, quantile, made):
    scores = {f"q{n:02}": [n / 20] for n in range(20)}
    pairs, _ = pairs_of(scores, "question", n_question_pairs=asked, quantile=quantile)
    used = [*pairs["chosen_id"], *pairs["rejected_id"]]
    assert len(pairs) == made and len(set(used)) == 2 * made
    assert (pairs["score_gap"] > 0).all()


def test_question_pairs_without_a_gap_are_counted():
    pairs, counts = pairs_of({f"q{n}": [0.5] for n in range(8)}, "question")
    assert pairs.empty and counts["question pairs of equal scores"] == 2
    pairs, counts = pairs_of({f"q{n}": [n / 8] for n in range(8)}, "question", min_gap=0.9)
    assert pairs.empty and counts["question pairs below min_gap"] == 2


def test_dropped_questions_form_no_pair():
    questions, drafts, signals, probes = frames({f"q{n}": [n / 8] for n in range(8)})
    questions.loc[7, ["kept", "drop_reason"]] = [False, "written before"]
    drafts, signals = drafts[drafts["question_id"] != "q7"], signals[~signals["draft_id"].str.startswith("q7")]
    pairs, _ = build((questions, drafts, signals, probes))
    assert len(pairs) and "q7" not in {*pairs["chosen_id"], *pairs["rejected_id"]}


def test_each_student_gets_pairs_by_its_own_scores():
    scores = {"q1": [0.25, 1.0, 0.5, 0.75], "q2": [0.5, 0.25, 0.0, 0.125]}
    questions, drafts, signals, probes = frames(scores)
    turned = frames({q: [1 - v for v in values] for q, values in scores.items()}, student="t")[2]
    both = pd.concat([signals, turned], ignore_index=True)
    pairs, counts = build((questions, drafts, both, probes))
    own = {name: part.reset_index(drop=True) for name, part in pairs.groupby("student")}
    assert own["s"]["chosen_id"].tolist() == own["t"]["rejected_id"].tolist()
    assert pairs["pair_id"].is_unique and counts["rationale groups"] == 4


def test_nothing_but_ties_gives_an_empty_frame_in_form():
    pairs, _ = pairs_of({"q": [0.5, 0.5]})
    assert pairs.empty and list(pairs.columns) == list(schemas.SCHEMAS["pairs"].columns)


def test_every_sibling_that_helps_stands_against_every_one_that_harms():
    scores = {"a": [0.5], "b": [0.1], "c": [0.0], "d": [-0.2], "e": [-0.4]}
    pairs, counts = build(frames(scores), {"question": helpful_against_harmful})
    assert set(zip(pairs["chosen_id"], pairs["rejected_id"], strict=True)) == {(x, y) for x in "ab" for y in "de"}
    assert counts["question groups"] == 1 and counts["pairs"] == 4
    pairs, counts = build(frames({"a": [0.5], "b": [0.1]}), {"question": helpful_against_harmful})
    assert pairs.empty and counts["question groups without a pair"] == 1


def probed(rights: dict[str, str], student: str = "s") -> tuple:
    """Build the frames of drafts with these outcomes: "1101" is right on all questions but the third."""
    scores: dict[str, list[float]] = {}
    for draft, marks in rights.items():
        scores.setdefault(draft.split("/")[0], []).append(marks.count("1") / len(marks))
    rows = [
        {
            "student": student,
            "draft_id": draft,
            "item_id": f"i{n}",
            "answer": "x",
            "correct": mark == "1",
            "parsed": True,
            "n_tokens": 1,
        }
        for draft, marks in rights.items()
        for n, mark in enumerate(marks)
    ]
    return *frames(scores, student)[:3], schemas.build(rows, "probes")


def test_a_pair_says_how_probable_it_is():
    rights = {"q/0": "111111", "q/1": "110001", "r/0": "100000", "r/1": "011000"}
    pairs, counts = build(probed(rights))
    by_hand = {"q": stats.beta.sf(0.5, 4, 1), "r": stats.beta.sf(0.5, 3, 2)}
    assert dict(zip(pairs["chosen_id"].str[0], pairs["p_chosen"], strict=True)) == pytest.approx(by_hand)
    assert counts["rationale pairs below min_probability"] == 0


def test_undecided_pairs_are_dropped_and_counted():
    rights = {"q/0": "111111", "q/1": "110001", "r/0": "100000", "r/1": "011000"}
    pairs, counts = build(probed(rights), min_probability=0.9)
    assert pairs["chosen_id"].tolist() == ["q/0"] and counts["rationale pairs below min_probability"] == 1
    # A flipped pair's chosen side is as improbable as the other was probable.
    turned = flip_half(pd.concat([pairs, pairs], ignore_index=True), 0)
    assert sorted(turned["p_chosen"]) == pytest.approx([1 - pairs["p_chosen"].iloc[0], pairs["p_chosen"].iloc[0]])


def test_pairs_of_a_signal_without_probes_are_kept():
    pairs, counts = pairs_of({"q1": [0.25, 1.0]}, min_probability=0.9)
    assert len(pairs) == 1 and pairs["p_chosen"].isna().all() and counts["rationale pairs below min_probability"] == 0


def some_pairs(n: int) -> pd.DataFrame:
    return pairs_of({f"q{i:03}": [i / 100, i / 100 + 0.5] for i in range(n)}, "rationale")[0]


@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_exactly_half_are_flipped(n):
    pairs = some_pairs(n)
    flipped = schemas.check(flip_half(pairs, 3), "pairs")
    assert flipped["flipped"].sum() == n // 2 and not pairs["flipped"].any()
    kept = flipped[~flipped["flipped"]]
    pd.testing.assert_frame_equal(kept, pairs.loc[kept.index])


def test_flipping_turns_everything_round_and_twice_changes_nothing():
    pairs = some_pairs(20)
    flipped = flip_half(pairs, 3)
    turned, before = flipped[flipped["flipped"]], pairs[flipped["flipped"]]
    for one, other in (("chosen", "rejected"), ("chosen_id", "rejected_id"), ("score_chosen", "score_rejected")):
        assert turned[one].tolist() == before[other].tolist() and turned[other].tolist() == before[one].tolist()
    assert turned["score_gap"].tolist() == (-before["score_gap"]).tolist()
    twice = flip_half(flipped, 3)
    pd.testing.assert_frame_equal(twice.drop(columns="flipped"), pairs.drop(columns="flipped"))


@given(st.integers(0, 5))
def test_flipping_is_the_same_for_a_seed_and_by_student(seed):
    rows = {"student": ["a"] * 30 + ["b"] * 9, "chosen": "x", "rejected": "y", "chosen_id": "1", "rejected_id": "2"}
    pairs = pd.DataFrame(
        rows | {"score_chosen": 1.0, "score_rejected": 0.0, "score_gap": 1.0, "p_chosen": 0.9, "flipped": False}
    )
    flipped = flip_half(pairs, seed)
    assert flipped.groupby("student")["flipped"].sum().tolist() == [15, 4]
    pd.testing.assert_frame_equal(flip_half(pairs, seed), flipped)
    assert not flip_half(pairs, seed + 1)["flipped"].equals(flipped["flipped"])
    # One student's flips do not hang on another's pairs.
    alone = flip_half(pairs[pairs["student"] == "b"].reset_index(drop=True), seed)
    assert alone["flipped"].tolist() == flipped["flipped"].tolist()[30:]


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
