import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from workbench.loop import prompts
from workbench.loop.pairs import build_pairs, flip_half
from workbench.runs import schemas
from workbench.runs.recipe import Recipe
from workbench.tasks.task import Task

SEEDS = pd.DataFrame({"item_id": ["s1", "s2", "s3"], "question": ["A?", "B?", "C?"], "target": ["1", "2", "3"]})
TECHNIQUES = ("tally", "meter", "story", "diary")


def task(name: str = "sums") -> Task:
    return Task(name, "Add up.", {t: f"Think {t}." for t in TECHNIQUES}, SEEDS, SEEDS, SEEDS, "0")


@pytest.fixture
def of(recipe_values):
    def build(students=("s",), **pairs) -> Recipe:
        recipe_values["models"]["students"] = {student: "data/pocket/x" for student in students}
        recipe_values["pairs"] = {"n_question_pairs": 50} | pairs
        return Recipe.model_validate(recipe_values)

    return build


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
            "signal": "icl",
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


def pairs_of(recipe, scores, kind=None, **given) -> tuple[pd.DataFrame, dict]:
    pairs, counts = build_pairs(recipe, {"sums": task()}, *frames(scores, **given))
    return (pairs[pairs["kind"] == kind] if kind else pairs), counts


def test_the_best_rationale_of_a_question_against_its_worst(of):
    scores = {"q1": [0.25, 1.0, 0.5, 0.75], "q2": [0.5, 0.25, 0.0, 0.125]}
    pairs, counts = pairs_of(of(), scores, "rationale")
    assert pairs[["chosen_id", "rejected_id"]].to_numpy().tolist() == [["q1/1", "q1/0"], ["q2/0", "q2/2"]]
    assert pairs["score_gap"].tolist() == [0.75, 0.5] and not pairs["flipped"].any()
    assert (pairs["score_chosen"] - pairs["score_rejected"] == pairs["score_gap"]).all()
    assert pairs["chosen"].tolist() == [" meter <ans>1</ans>", " tally <ans>1</ans>"]
    assert counts["rationale groups"] == 2 and counts["ties for chosen or rejected"] == 0


def test_the_technique_is_erased_from_the_prompt(of):
    pairs, _ = pairs_of(of(), {"q1": [0.25, 1.0, 0.5, 0.75]}, "rationale")
    assert pairs["prompt"].tolist() == [prompts.naive_prompt("Add up.", "q1?")]
    assert not any(text in pairs["prompt"].iloc[0] for text in task().techniques.values())


def test_groups_that_yield_no_pair_are_counted(of):
    scores = {"tied": [0.5] * 4, "close": [0.5, 0.5, 0.5, 0.6], "apart": [0.0, 0.2, 0.5, 1.0]}
    pairs, counts = pairs_of(of(min_gap=0.2), scores, "rationale")
    assert pairs["chosen_id"].tolist() == ["apart/3"]
    assert counts["rationale groups"] == 3
    assert counts["rationale groups all tied"] == 1 == counts["rationale groups below min_gap"]
    assert pairs_of(of(min_gap=0.0), scores, "rationale")[1]["rationale groups below min_gap"] == 0


def test_a_text_is_not_preferred_to_itself(of):
    same = ["x <ans>1</ans>", "x <ans>1</ans>"]
    pairs, counts = pairs_of(of(), {"q": [0.0, 1.0]}, "rationale", texts=same)
    assert pairs.empty and counts["pairs of equal texts"] == 1


def test_ties_are_broken_at_random_counted_and_the_same_every_time(of):
    scores = {f"q{n:03}": [1.0, 1.0, 0.0, 1.0] for n in range(240)}
    pairs, counts = pairs_of(of(), scores, "rationale")
    assert counts["ties for chosen or rejected"] == 240 == len(pairs)
    assert (pairs["rejected_id"].str[-1] == "2").all()
    seen = pairs["chosen_id"].str[-1].value_counts().reindex(["0", "1", "3"], fill_value=0)
    assert stats.chisquare(seen).pvalue > 0.001
    pd.testing.assert_frame_equal(pairs_of(of(), scores, "rationale")[0], pairs)
    # A tie's outcome hangs on its question and student alone, not on what else was drafted.
    fewer = pairs_of(of(), dict(list(scores.items())[100:150]), "rationale")[0]
    both = fewer.merge(pairs, on="pair_id")
    assert len(both) == 50 and (both["chosen_x"] == both["chosen_y"]).all()


def test_question_pairs_come_from_the_top_and_the_bottom_quarter(of):
    scores = {f"q{n:02}": [n / 40] for n in range(40)}
    pairs, counts = pairs_of(of(), scores, "question")
    assert len(pairs) == 10 and counts["question pairs without a gap"] == 0
    assert set(pairs["chosen_id"]) == {f"q{n}" for n in range(30, 40)}
    assert set(pairs["rejected_id"]) == {f"q0{n}" for n in range(10)}
    # Drawn at random, not the best with the worst in order.
    assert pairs["chosen_id"].tolist() != sorted(pairs["chosen_id"])
    expected = prompts.question_prompt("Add up.", [("A?", "1"), ("B?", "2"), ("C?", "3")], 5)
    assert set(pairs["prompt"]) == {expected}
    assert pairs["chosen"].str.fullmatch(r" <input>q\d\d\?</input><target>1</target>").all()


@pytest.mark.parametrize(("asked", "quantile", "made"), [(3, 0.25, 3), (50, 0.5, 10), (50, 0.1, 2), (0, 0.25, 0)])
def test_as_many_question_pairs_as_asked_for_and_as_there_are(of, asked, quantile, made):
    scores = {f"q{n:02}": [n / 20] for n in range(20)}
    pairs, _ = pairs_of(of(n_question_pairs=asked, quantile=quantile), scores, "question")
    used = [*pairs["chosen_id"], *pairs["rejected_id"]]
    assert len(pairs) == made and len(set(used)) == 2 * made
    assert (pairs["score_gap"] > 0).all()


def test_question_pairs_without_a_gap_are_counted(of):
    pairs, counts = pairs_of(of(), {f"q{n}": [0.5] for n in range(8)}, "question")
    assert pairs.empty and counts["question pairs without a gap"] == 2
    pairs, counts = pairs_of(of(min_gap=0.9), {f"q{n}": [n / 8] for n in range(8)}, "question")
    assert pairs.empty and counts["question pairs without a gap"] == 2


def test_dropped_questions_form_no_pair(of):
    questions, drafts, signals, probes = frames({f"q{n}": [n / 8] for n in range(8)})
    questions.loc[7, ["kept", "drop_reason"]] = [False, "written before"]
    drafts, signals = drafts[drafts["question_id"] != "q7"], signals[~signals["draft_id"].str.startswith("q7")]
    pairs, _ = build_pairs(of(), {"sums": task()}, questions, drafts, signals, probes)
    assert len(pairs) and "q7" not in {*pairs["chosen_id"], *pairs["rejected_id"]}


def test_each_student_gets_pairs_by_its_own_scores(of):
    scores = {"q1": [0.25, 1.0, 0.5, 0.75], "q2": [0.5, 0.25, 0.0, 0.125]}
    questions, drafts, signals, probes = frames(scores)
    turned = frames({q: [1 - v for v in values] for q, values in scores.items()}, student="t")[2]
    both = pd.concat([signals, turned], ignore_index=True)
    pairs, counts = build_pairs(of(("s", "t")), {"sums": task()}, questions, drafts, both, probes)
    own = {name: part.reset_index(drop=True) for name, part in pairs.groupby("student")}
    assert own["s"]["chosen_id"].tolist() == own["t"]["rejected_id"].tolist()
    assert pairs["pair_id"].is_unique and counts["rationale groups"] == 4


def test_nothing_but_ties_gives_an_empty_frame_in_form(of):
    pairs, _ = pairs_of(of(), {"q": [0.5, 0.5]})
    assert pairs.empty and list(pairs.columns) == list(schemas.SCHEMAS["pairs"].columns)


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


def test_a_pair_says_how_probable_it_is(of):
    rights = {"q/0": "111111", "q/1": "110001", "r/0": "100000", "r/1": "011000"}
    pairs, counts = build_pairs(of(), {"sums": task()}, *probed(rights))
    by_hand = {"q": stats.beta.sf(0.5, 4, 1), "r": stats.beta.sf(0.5, 3, 2)}
    assert dict(zip(pairs["chosen_id"].str[0], pairs["p_chosen"], strict=True)) == pytest.approx(by_hand)
    assert counts["rationale pairs below min_probability"] == 0


def test_undecided_pairs_are_dropped_and_counted(of):
    rights = {"q/0": "111111", "q/1": "110001", "r/0": "100000", "r/1": "011000"}
    pairs, counts = build_pairs(of(min_probability=0.9), {"sums": task()}, *probed(rights))
    assert pairs["chosen_id"].tolist() == ["q/0"] and counts["rationale pairs below min_probability"] == 1
    # A flipped pair's chosen side is as improbable as the other was probable.
    turned = flip_half(pd.concat([pairs, pairs], ignore_index=True), 0)
    assert sorted(turned["p_chosen"]) == pytest.approx([1 - pairs["p_chosen"].iloc[0], pairs["p_chosen"].iloc[0]])


def test_pairs_of_a_signal_without_probes_are_kept(of):
    pairs, counts = pairs_of(of(min_probability=0.9), {"q1": [0.25, 1.0]})
    assert len(pairs) == 1 and pairs["p_chosen"].isna().all() and counts["rationale pairs below min_probability"] == 0


@pytest.fixture
def some_pairs(of):
    return lambda n: pairs_of(of(), {f"q{i:03}": [i / 100, i / 100 + 0.5] for i in range(n)}, "rationale")[0]


@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_exactly_half_are_flipped(some_pairs, n):
    pairs = some_pairs(n)
    flipped = schemas.check(flip_half(pairs, 3), "pairs")
    assert flipped["flipped"].sum() == n // 2 and not pairs["flipped"].any()
    kept = flipped[~flipped["flipped"]]
    pd.testing.assert_frame_equal(kept, pairs.loc[kept.index])


def test_flipping_turns_everything_round_and_twice_changes_nothing(some_pairs):
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
