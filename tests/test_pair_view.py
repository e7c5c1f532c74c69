import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from probed_run import form_pairs, recipe_of, write_run

from workbench.notebook.pair_view import Evidence, Lookup, columns, interval, word_differences
from workbench.runs.errors import RunError
from workbench.runs.run import open_run
from workbench.verdict.intervals import wilson


@pytest.fixture
def seen(runs):
    work = form_pairs(write_run())
    return Evidence.of_run(work), work.read("pairs")


def kinds(pairs, kind):
    return pairs[pairs["kind"] == kind].to_dict("records")


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_pieces_of_a_comparison_put_together_are_the_texts(left, right):
    for text, pieces in zip((left, right), word_differences(left, right), strict=True):
        assert "".join(piece for _, piece in pieces) == text
        assert all(piece for _, piece in pieces)
        assert all(a[0] != b[0] for a, b in zip(pieces, pieces[1:], strict=False))


@given(st.text(max_size=60))
def test_a_text_does_not_differ_from_itself(text):
    assert not any(differs for side in word_differences(text, text) for differs, _ in side)


def test_words_that_the_other_side_lacks_are_marked():
    left, right = word_differences("one apple, two pears", "one apple, three pears and more")
    assert [piece for differs, piece in left if differs] == ["two"]
    assert [piece for differs, piece in right if differs] == ["three", "and more"]


def test_texts_too_long_to_compare_come_whole(monkeypatch):
    monkeypatch.setattr("workbench.notebook.pair_view.MOST_COMPARED", 5)
    assert word_differences("a b c", "a b d") == ([(False, "a b c")], [(False, "a b d")])


def test_heat_holds_the_answers_and_puts_the_deciding_questions_first(seen):
    evidence, pairs = seen
    lookup = Lookup(evidence)
    for pair in kinds(pairs, "rationale"):
        heat = lookup.heat(pair)
        assert heat.ids[:2] == [pair["chosen_id"], pair["rejected_id"]] and len(heat.ids) == 4
        assert heat.scores[0].mean() == pytest.approx(pair["score_chosen"])
        assert heat.scores[1].mean() == pytest.approx(pair["score_rejected"])
        difference = heat.scores[0] - heat.scores[1]
        assert (difference[: heat.n_decisive] != 0).all() and (difference[heat.n_decisive :] == 0).all()
        assert (np.diff(difference[: heat.n_decisive]) <= 0).all()
        probes = evidence.probes.set_index(["student", "draft_id", "item_id"])
        for column, question in enumerate(heat.questions):
            probe = probes.loc[(pair["student"], pair["chosen_id"], question["item_id"])]
            assert heat.answers[0][column] == probe["answer"] and heat.scores[0, column] == probe["correct"]
            assert question["question"] and question["target"]


def test_heat_of_a_pair_of_questions_is_the_mean_over_their_rationales(seen):
    evidence, pairs = seen
    (pair, *_) = kinds(pairs, "question")
    heat = Lookup(evidence).heat(pair)
    assert heat.ids == [pair["chosen_id"], pair["rejected_id"]] and not any(map(any, heat.answers))
    assert heat.scores.mean(axis=1) == pytest.approx([pair["score_chosen"], pair["score_rejected"]])


def test_heat_as_plain_values_has_none_where_nothing_was_asked(seen):
    evidence, pairs = seen
    (pair, *_) = kinds(pairs, "rationale")
    # One answer of the chosen side is missing.
    missing = evidence.probes.index[evidence.probes["draft_id"] == pair["chosen_id"]][0]
    some = Lookup(evidence._replace(probes=evidence.probes.drop(index=missing)))
    plain = some.heat(pair).plain()
    assert sum(score is None for score in plain["scores"][0]) == 1
    assert Lookup(evidence._replace(probes=evidence.probes.head(0))).heat(pair) is None


def test_a_side_has_its_technique_its_answer_and_its_signals_with_intervals(seen):
    evidence, pairs = seen
    (pair, *_) = kinds(pairs, "rationale")
    side = Lookup(evidence).side(pair, "chosen")
    (signal,) = side["signals"]
    assert side["technique"] in ("tally", "meter", "story") and side["correct"] and side["answer"] == side["gold"]
    assert signal["value"] == pair["score_chosen"] and signal["n"] == 8
    assert (signal["low"], signal["high"]) == wilson(pair["score_chosen"], 8)


def test_the_interval_of_other_signals_is_from_the_standard_error():
    low, high = interval({"signal": "influence", "item_kind": "rationale", "value": 0.1, "stderr": 0.05, "n": 9})
    assert (low, high) == pytest.approx((0.1 - 0.098, 0.1 + 0.098), abs=1e-3)


def test_a_word_is_worth_most_where_chosen_is_wrong_and_rejected_right(seen):
    evidence, pairs = seen
    found = columns(pairs, evidence.drafts)
    technique = pairs["chosen_id"].map(evidence.drafts.set_index("draft_id")["technique"])
    expected = (technique == "diary") & (pairs["kind"] == "rationale")
    assert found["wrong"].tolist() == expected.tolist()
    unsure = 1 - pairs["p_chosen"]
    assert found["worth"].to_numpy() == pytest.approx((unsure + expected).to_numpy())
    assert columns(pairs.assign(p_chosen=np.nan), evidence.drafts)["worth"].min() == 0.5


def test_a_run_without_probes_names_the_notebook(runs):
    with pytest.raises(RunError, match="02_preference_probing|01_drafting"):
        Evidence.of_run(open_run("new", recipe_of()))
