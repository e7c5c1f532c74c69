"""The three lines that a run ends with, from numbers put in by hand; on a whole run they are tested with the loop."""

import pandas as pd
import pytest

from workbench.report.card import _better, _found, _learned

NATIVE = {"student": "ada", "native": "tally", "auc": 0.9, "auc_low": 0.8, "auc_high": 0.95}
SHARES = {
    **{"native_untailored": 0.25, "native_random_pairs": 0.3, "native_tailored": 0.8},
    **{"n_untailored": 100, "n_random_pairs": 100, "n_tailored": 100, "right_untailored": 0.9, "right_tailored": 0.85},
}


def comparison(b: str, shots: int = 0, decision: str = "better") -> dict:
    row = {"a": "tailored", "b": b, "shots": shots, "difference": 0.277, "low": 0.146, "high": 0.407}
    return row | {"decision": decision}


@pytest.mark.parametrize(("low", "word"), [(0.51, " yes: "), (0.5, " not seen: ")])
def test_a_preference_is_found_when_the_interval_lies_above_chance(low, word):
    said = _found(NATIVE | {"auc_low": low}, pd.DataFrame())
    assert word in said and f"AUC 0.90 ({low:.2f} to 0.95)" in said and "tally" in said


def test_without_an_answer_key_the_decided_pairs_are_counted():
    pairs = pd.DataFrame({"p_chosen": [0.95, 0.9, 0.6, 0.2]})
    assert "no answer key: 50 % of 4 pairs" in _found({"student": "ada", "native": ""}, pairs)
    assert "0 % of 0 pairs" in _found({"auc": float("nan")}, pairs.head(0))
    assert "no answer key" in _learned({"student": "ada"})


@pytest.mark.parametrize(("control", "word"), [(0.3, " yes: "), (0.75, " not seen: ")])
def test_the_teacher_has_learned_when_its_share_lies_above_those_of_both_others(control, word):
    said = _learned(NATIVE | SHARES | {"native_random_pairs": control})
    assert word in said and f"25 % of examples before, 80 % after, {100 * control:.0f} % in the control" in said
    assert "90 % of its answers right before, 85 % after" in said


def test_a_small_share_is_learned_a_little():
    few = {"native_untailored": 0.0, "native_random_pairs": 0.0, "native_tailored": 0.1}
    assert " a little: " in _learned(NATIVE | SHARES | few)


def test_the_verdict_stands_beside_the_untrained_student_at_the_same_shots():
    compared = [comparison("untailored"), comparison("random_pairs"), comparison("base"), comparison("base", shots=3)]
    said = _better({"comparisons": compared})
    assert said.startswith("Does the student answer better? better: tailored minus untailored +27.7 points (+14.6 to ")
    assert said.count("minus base") == 1 and "random" not in said
