import pandas as pd
import pytest
from test_pairs import build, frames, task

from workbench.loop.arms import aligned_arms, draft_examples, examples_of_arm, pairs_by_arm
from workbench.runs import schemas
from workbench.runs.recipe import ARMS, Recipe, recipe_class

SCORES = {
    "q1": [0.9, 0.5, 0.1, 0.2],
    "q2": [0.2, 0.8, 0.6, 0.1],
    "q3": [0.7, 0.6, 0.3, 0.0],
    "q4": [0.1, 0.0, 0.0, 0.2],
}


@pytest.fixture
def of(recipe_values):
    """A recipe with these arms and values changed by dotted key."""

    def recipe(arms=ARMS, tasks=("sums",), aligned_on=(), primary="") -> Recipe:
        recipe_values["models"]["students"] = {"s": "data/pocket/s", "t": "data/pocket/t"}
        recipe_values["tasks"]["names"] = list(tasks)
        recipe_values["evaluation"]["arms"] = list(arms)
        recipe_values["alignment"]["tasks"] = list(aligned_on)
        if primary:
            recipe_values["evaluation"]["primary"] = {"a": primary, "b": "base"}
        return recipe_class("arte").model_validate(recipe_values)

    return recipe


@pytest.fixture
def made():
    """The pairs of both students; the other one's scores are the first one's upside down."""
    questions, drafts, signals, probes = frames(SCORES)
    other = signals.assign(student="t", value=1 - signals["value"])
    signals = pd.concat([signals, other], ignore_index=True)
    return drafts, signals, build((questions, drafts, signals, probes))[0]


def test_each_arm_is_aligned_to_its_own_pairs(of, made):
    recipe, (_, _, pairs) = of(), made
    arms = ["tailored", "random_pairs", "question_only", "rationale_only"]
    assert aligned_arms(recipe) == [*arms, "decided_pairs", "fewer_pairs"]
    by_arm = pairs_by_arm(recipe, pairs)
    kinds = {arm: set(by_arm[arm]["kind"]) for arm in arms}
    both = {"question", "rationale"}
    assert kinds == {
        "tailored": both,
        "random_pairs": both,
        "question_only": {"question"},
        "rationale_only": {"rationale"},
    }
    for student, own in by_arm["random_pairs"].groupby("student"):
        assert own["flipped"].sum() == len(own) // 2, student
    assert not by_arm["tailored"]["flipped"].any()
    # A method may align to pairs of one kind; arms that are about the other kind still are.
    by_arm = pairs_by_arm(recipe, pairs, "question")
    assert set(by_arm["tailored"]["kind"]) == {"question"} and set(by_arm["rationale_only"]["kind"]) == {"rationale"}


def test_decided_pairs_stand_against_as_many_of_the_paper_s_rule(of, made):
    recipe, (_, _, pairs) = of(), made
    pairs = pd.concat([pairs, pairs.assign(pair_id=pairs["pair_id"] + "x")], ignore_index=True)
    pairs["p_chosen"] = [0.95 if n % 3 == 0 else float("nan") if n % 3 == 1 else 0.89 for n in range(len(pairs))]
    decided, fewer = (pairs_by_arm(recipe, pairs)[arm] for arm in ("decided_pairs", "fewer_pairs"))
    assert len(decided) and (decided["p_chosen"] == 0.95).all() and (fewer["p_chosen"] != 0.95).any()
    sizes = [own.groupby(["student", "kind"]).size() for own in (decided, fewer)]
    pd.testing.assert_series_equal(*sizes)
    assert set(fewer["pair_id"]) <= set(pairs["pair_id"]) and fewer["pair_id"].is_unique
    pd.testing.assert_frame_equal(pairs_by_arm(recipe, pairs)["fewer_pairs"], fewer)


def test_pairs_of_other_tasks_can_be_kept_back(of, made):
    _, _, pairs = made
    pairs = pd.concat([pairs, pairs.assign(task="moves")], ignore_index=True)
    recipe = of(tasks=("sums", "moves"), aligned_on=["moves"])
    assert set(pairs_by_arm(recipe, pairs)["tailored"]["task"]) == {"moves"}
    assert len(pairs_by_arm(of(tasks=("sums", "moves")), pairs)["tailored"]) == len(pairs)


def test_the_draft_that_a_named_signal_likes_best_is_taken_and_one_not_scored_never(of, made):
    drafts, signals, _ = made
    # Another signal, by which the other way round is better, and which could not score the best of q1 nor any of q4.
    others = signals.assign(signal="surprisal", value=-signals["value"])
    named = drafts.set_index("draft_id")
    ids = others["draft_id"].where(others["item_kind"] == "rationale")
    question, technique = ids.map(named["question_id"]), ids.map(named["technique"])
    others.loc[(question == "q1") & (technique == "story") | (question == "q4"), "value"] = float("nan")
    recipe = of(arms=("base", "best_by_one_shot", "best_by_surprisal", "most_preferred"), primary="best_by_surprisal")
    rows = schemas.build(draft_examples(recipe, {"sums": task()}, drafts, signals, others), "examples")
    technique = drafts.set_index(["question_id", "rationale"])["technique"]
    rows["technique"] = [technique[key] for key in zip(rows["question_id"], rows["rationale"], strict=True)]
    own = rows[(rows["student"] == "s") & (rows["seed"] == 0)].groupby("arm")
    taken = {arm: dict(zip(of_arm["question_id"], of_arm["technique"], strict=True)) for arm, of_arm in own}
    assert taken["best_by_surprisal"] == {"q1": "diary", "q2": "diary", "q3": "diary"}
    assert (
        taken["best_by_one_shot"]
        == taken["most_preferred"]
        == {"q1": "tally", "q2": "meter", "q3": "tally"} | {"q4": "diary"}
    )


def test_three_ways_to_select_a_rationale(of, made):
    drafts, signals, _ = made
    rows = schemas.build(draft_examples(of(), {"sums": task()}, drafts, signals), "examples")
    assert set(rows["student"]) == {"s", "t"} and set(rows["seed"]) == {0, 1}
    assert rows.groupby(["arm", "student", "seed"]).size().eq(4).all()
    technique = drafts.set_index(["question_id", "rationale"])["technique"]
    rows["technique"] = [technique[key] for key in zip(rows["question_id"], rows["rationale"], strict=True)]
    best = rows[(rows["arm"] == "most_preferred") & (rows["student"] == "s")]
    assert dict(zip(best["question_id"], best["technique"], strict=True)) == {
        "q1": "tally",
        "q2": "meter",
        "q3": "tally",
        "q4": "diary",
    }
    # Means over the four questions: tally 0.475, meter 0.475, story 0.25, diary 0.125; the other student's upside down.
    one = rows[rows["arm"] == "task_consistent"].groupby(["student", "seed"])["technique"].unique()
    assert all(len(found) == 1 for found in one)
    assert {found[0] for found in one["s"]} <= {"tally", "meter"} and {found[0] for found in one["t"]} == {"diary"}


def test_random_rationales_differ_by_seed_and_are_spread_evenly(of):
    _, drafts, signals, _ = frames({f"q{n}": [0.9, 0.5, 0.1, 0.2] for n in range(400)})
    rows = draft_examples(of(["base", "untailored", "tailored", "random_rationale"]), {"sums": task()}, drafts, signals)
    rows = pd.DataFrame(rows)
    assert set(rows["arm"]) == {"random_rationale"}
    first, second = (rows[(rows["student"] == "s") & (rows["seed"] == seed)]["rationale"].to_list() for seed in (0, 1))
    assert first != second
    counts = pd.Series(first).value_counts()
    assert len(counts) == 4 and counts.min() > 70  # 100 each with a standard deviation of 8.7


def test_an_arm_takes_its_own_examples_or_those_tailored_for_another_student():
    examples = pd.DataFrame(
        [("untailored", "", "u"), ("tailored", "s", "ts"), ("tailored", "t", "tt"), ("most_preferred", "s", "ms")],
        columns=["arm", "student", "id"],
    )
    found = {arm: list(examples_of_arm(examples, "s", arm)["id"]) for arm in ("untailored", "tailored")}
    assert found == {"untailored": ["u"], "tailored": ["ts"]}
    assert list(examples_of_arm(examples, "s", "tailored_for_t")["id"]) == ["tt"]
    assert examples_of_arm(examples, "t", "most_preferred").empty
    assert list(examples_of_arm(examples, "s", "distilled")["id"]) == found["untailored"]


def test_what_is_tailored_for_itself_is_no_arm_of_its_own(of):
    recipe = of(["base", "untailored", "tailored", "tailored_for_s", "tailored_for_t"])
    assert recipe.trained_arms("s") == ["untailored", "tailored", "tailored_for_t"]
    assert recipe.arms_of("t") == ["base", "untailored", "tailored", "tailored_for_s"]
