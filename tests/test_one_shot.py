from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from workbench.loop import preference_set, prompts
from workbench.loop.pairs import rounds, still_racing
from workbench.loop.preference_set import choose_preference_set, responders_of
from workbench.models.engine import NATS_OF_ROUNDING, Completion, Engine, SelfTest, self_test
from workbench.models.start import students_of
from workbench.models.transformers_engine import TransformersEngine
from workbench.runs import schemas
from workbench.runs.errors import ModelError
from workbench.runs.identity import fingerprint
from workbench.runs.recipe import PreferenceSet, Recipe
from workbench.runs.recipe_parts import Prompts
from workbench.signals import one_shot
from workbench.signals.scores import share_right
from workbench.tasks.task import Task

# Right answers of one student: two questions, two rationales each, four items.
RIGHT = {"q1-a": [1, 1, 1, 0], "q1-b": [1, 0, 0, 0], "q2-a": [1, 1, 1, 1], "q2-b": [0, 1, 0, 1]}


def drafts() -> pd.DataFrame:
    return pd.DataFrame({"draft_id": list(RIGHT), "question_id": [draft[:2] for draft in RIGHT]})


def probes(right=RIGHT, student: str = "s") -> pd.DataFrame:
    rows = [
        {
            "student": student,
            "draft_id": draft,
            "item_id": f"i{n}",
            "answer": "3" if ok else "",
            "correct": bool(ok),
            "parsed": bool(ok),
            "n_tokens": 10 + n,
        }
        for draft, answers in right.items()
        for n, ok in enumerate(answers)
    ]
    return schemas.build(rows, "probes")


def scored(frame=None, students=None) -> pd.DataFrame:
    frame = probes() if frame is None else frame
    models = {name: SimpleNamespace(fingerprint=of) for name, of in (students or {"s": "fp-of-s"}).items()}
    signals = share_right(frame, drafts(), models)
    return schemas.check(signals, "signals").set_index(["student", "item_kind", "draft_id"])


def test_s_r_is_the_share_of_items_right_under_a_draft():
    signals = scored()
    expected = {"q1-a": 3 / 4, "q1-b": 1 / 4, "q2-a": 1.0, "q2-b": 2 / 4}
    for draft, value in expected.items():
        row = signals.loc[("s", "rationale", draft)]
        assert row["value"] == value and row["n"] == 4 and row["tokens"] == 10 + 11 + 12 + 13
        assert row["stderr"] == pytest.approx(np.sqrt(value * (1 - value) / 4))


def test_s_q_is_the_mean_of_its_rationales_scores():
    signals = scored()
    for question, value in {"q1": (3 / 4 + 1 / 4) / 2, "q2": (1 + 1 / 2) / 2}.items():
        row = signals.loc[("s", "question", question)]
        assert row["value"] == value and row["n"] == 8 and row["tokens"] == 92
    # Items, not answers, are the sample: q1's items are right 2, 1, 1 and 0 times out of two.
    assert signals.loc[("s", "question", "q1"), "stderr"] == pytest.approx(np.std([1, 0.5, 0.5, 0]) / np.sqrt(4))


def test_the_drafts_of_a_question_race_until_the_best_beats_the_worst():
    # Five questions that only one of two has right: P(Beta(6, 1) > 1/2) = 0.984; two: P(Beta(3, 1) > 1/2) = 0.875.
    right = {"q1-a": [1] * 5, "q1-b": [0] * 5, "q2-a": [1] * 5, "q2-b": [1, 1, 1, 0, 0], "q3-a": [1] * 5}
    racing = pd.DataFrame({"draft_id": list(right), "question_id": [draft[:2] for draft in right]})
    assert list(still_racing(probes(right), racing, 0.05)["draft_id"]) == ["q2-a", "q2-b", "q3-a"]
    assert list(still_racing(probes(right), racing, 0.15)["draft_id"]) == ["q3-a"], "one alone has nobody to beat"
    assert list(still_racing(probes(right), racing, 0.01)["draft_id"]) == list(right)
    alike = {"q-a": [1, 0, 1], "q-b": [0, 1, 1], "q-c": [1, 1, 0]}
    racing = pd.DataFrame({"draft_id": list(alike), "question_id": "q"})
    assert len(still_racing(probes(alike), racing, 0.49)) == 3, "nobody is ahead"


def test_rounds_take_every_question_once():
    items = pd.DataFrame({"item_id": list("abcdefghi")})
    assert ["".join(one["item_id"]) for one in rounds(items)] == ["abcd", "efgh", "i"]


def test_signals_name_student_model_and_set():
    signals = scored().reset_index()
    assert set(signals["student_fp"]) == {"fp-of-s"} and set(signals["set_fp"]) == {
        fingerprint(["i0", "i1", "i2", "i3"])
    }
    assert set(signals["signal"]) == {"one_shot"} and len(signals) == 6


def test_students_are_scored_apart():
    turned = {draft: [1 - ok for ok in answers] for draft, answers in RIGHT.items()}
    both = pd.concat([probes(), probes(turned, "t")], ignore_index=True)
    signals = scored(both, {"s": "1", "t": "2"})
    assert signals.loc[("s", "rationale", "q1-a"), "value"] == 0.75
    assert signals.loc[("t", "rationale", "q1-a"), "value"] == 0.25
    assert signals.loc[("t", "question", "q2"), "value"] == 0.25 and len(signals) == 12


def test_the_order_of_probes_changes_no_score():
    shuffled = probes().sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(scored(shuffled).sort_index(), scored().sort_index())


def test_a_reply_without_an_answer_is_wrong():
    frame = probes()
    assert not frame.loc[~frame["parsed"], "correct"].any()
    with pytest.raises(AssertionError):
        pd.testing.assert_series_equal(scored()["value"], scored(frame.assign(correct=True))["value"])


def task(name: str, n: int) -> Task:
    questions = [f"{name} {i}?" for i in range(n)]
    items = pd.DataFrame(
        {
            "item_id": [schemas.text_id(q) for q in questions],
            "question": questions,
            "target": [str(i) for i in range(n)],
        }
    )
    return Task(name, "Add.", {"plain": "Do."}, items.head(3), items, items, "0")


AT_RANDOM = PreferenceSet(n_validation=12, n_items=5, selection="random")


def chosen_of(tasks, settings=AT_RANDOM) -> pd.DataFrame:
    return schemas.check(choose_preference_set([], tasks, pd.DataFrame(), settings, 8, 0), "preference_set")


def test_a_balanced_set_has_no_answer_more_often_than_its_share_of_the_best_first(monkeypatch):
    """Of ten questions seven are answered No, and those tell the students apart best."""
    fitted = np.array([9, 8, 7, 6, 5, 4, 3, 1.5, 2, 1]), np.zeros(10)
    monkeypatch.setattr("workbench.loop.preference_set.fit_2pl", lambda right: fitted)
    monkeypatch.setattr("workbench.loop.preference_set._answer_sheets", lambda *_: {"walks": None})
    walks = task("walks", 10)
    walks.validation["target"] = ["No"] * 7 + ["Yes"] * 3
    settings = PreferenceSet(n_validation=10, n_items=5)
    answers = {
        balanced: list(
            chosen_of({"walks": walks}, settings.model_copy(update={"balanced": balanced})).query("chosen").index
        )
        for balanced in (False, True)
    }
    # Of five, seven tenths are 3.5 and three tenths 1.5, both rounded up: at most four No and two Yes.
    assert answers == {False: [0, 1, 2, 3, 4], True: [0, 1, 2, 3, 8]}
    assert "balanced" not in settings.model_dump(), "fingerprints of older recipes stay what they were"


def test_a_random_preference_set_has_the_size_asked_for_and_no_fit():
    tasks = {name: task(name, 20) for name in ("sums", "products")}
    chosen = chosen_of(tasks)
    assert chosen.groupby("task")["chosen"].agg(["size", "sum"]).to_numpy().tolist() == [[12, 5], [12, 5]]
    assert chosen["discrimination"].isna().all() and chosen.attrs["counts"] == {"preference questions": 10}
    # Another task added does not reshuffle this one.
    alone = chosen_of({"sums": tasks["sums"]})
    pd.testing.assert_frame_equal(alone, chosen[chosen["task"] == "sums"].reset_index(drop=True))


def test_irt_takes_the_questions_that_tell_responders_apart(monkeypatch):
    able = np.tile([1.0, 0.0], 8)
    rng = np.random.default_rng(0)
    sheet = rng.integers(0, 2, (16, 12)).astype(float)
    telling = [1, 4, 5, 8, 11]
    sheet[:, telling] = able[:, None]
    monkeypatch.setattr(preference_set, "_answer_sheets", lambda *given: {"sums": sheet})
    chosen = chosen_of({"sums": task("sums", 20)}, AT_RANDOM.model_copy(update={"selection": "irt"}))
    assert np.flatnonzero(chosen["chosen"]).tolist() == telling
    assert chosen["discrimination"].notna().all() and chosen["difficulty"].notna().all()


def test_probes_computed_in_parts_are_those_computed_at_once(recipe, monkeypatch):
    tasks = {name: task(name, 6) for name in ("sums", "products")}
    chosen = pd.concat([one.validation.assign(task=name, chosen=True) for name, one in tasks.items()])
    texts = [(name, f"{name}-{n}", f"{n}?", f"Because {n}.") for name in tasks for n in range(5)]
    all_drafts = pd.DataFrame(texts, columns=["task", "draft_id", "question", "rationale"])
    students = students_of(recipe.model_copy(update={"compute": recipe.compute.model_copy(update={"workers": 1})}))
    monkeypatch.setattr(one_shot, "_test", lambda job, asked: None)
    # In place of a student, something that depends on the whole prompt.
    monkeypatch.setattr(one_shot, "generate_answers", lambda job: [(str(len(a + b) % 6), len(a)) for a, b in job.asked])
    at_once = one_shot.probe_drafts(students, tasks, all_drafts, chosen, 8)
    assert len(at_once) == 10 * 6 and at_once["correct"].nunique() == 2
    monkeypatch.setattr(one_shot, "PROBES_PER_JOB", 13)
    pd.testing.assert_frame_equal(one_shot.probe_drafts(students, tasks, all_drafts, chosen, 8), at_once)


def test_responders_are_the_students_unless_named(recipe_values):
    def named(**more) -> list[str]:
        return [one.ref for one in responders_of(Recipe.model_validate(recipe_values | more))]

    assert named() == ["data/pocket/counter"]
    assert named(preference_set={"responders": ["a/b", "c"]}) == ["a/b", "c"]


class Fickle(Engine):
    """Writes another text whenever it is asked so many at once; one that is steady says how far its numbers are."""

    model_name, prompts, nats = "fickle", Prompts(), 0.0

    def __init__(self, fickle_on: set[str] = frozenset(), nats: float = 0.0):
        self.fickle_on, self.nats = fickle_on, nats

    def identity(self):
        return ["fickle"]

    def batch_difference(self, prompts):
        return self.nats

    def generate(self, requests, decoding, *_):
        n = len(requests)
        return [Completion(f"{n if one.prompt in self.fickle_on else 0}", 1, True) for one in requests]


def test_an_engine_that_does_not_agree_with_itself_is_named_and_above_a_limit_refused():
    asked = ["a", "b", "c", "d"]
    assert self_test(Fickle(), asked) == SelfTest(4, 0, 0.0)
    assert self_test(Fickle({"a", "b"}), asked).n_apart == 2
    with pytest.raises(ModelError, match="fickle does not agree with itself: 3 of 4 greedy texts differ"):
        self_test(Fickle({"a", "b", "c"}), asked)
    with pytest.raises(ModelError, match="log-probabilities by 0.7 nats, where at most 50% and 0.5 are allowed"):
        self_test(Fickle(nats=0.7), asked)


def test_a_shipped_student_agrees_with_itself(recipe_values):
    engine = TransformersEngine("data/pocket/tally-strong", device="cpu")
    question = "I have two cats, a dog and three birds. How many animals do I have?"
    asked = [prompts.naive_prompt("Count.", question[: -n or None]) for n in range(0, 8, 2)]
    found = self_test(engine, [engine.render(one) for one in asked])
    assert found.n == 4 and found.n_apart == 0 and 0 <= found.nats < NATS_OF_ROUNDING["float32"]
