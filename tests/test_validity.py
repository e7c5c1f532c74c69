import numpy as np
import pandas as pd
import pytest

from workbench import figures
from workbench.runs.run import open_run
from workbench.runs.seeding import stream
from workbench.studies.validity import (
    FORMAT,
    LENGTH,
    format_of,
    left_over,
    partial_correlation,
    predictive_validity,
    stored,
)

STUDENTS, TASKS, GROUPS, SEEDS = ("s", "t", "u"), ("sums", "moves"), range(1, 5), (1, 2, 3)


def outcome(slope: float, by_length: float = 0.0, noise: float = 0.01, by_digits: float = 0.0) -> pd.DataFrame:
    """Groups whose gain is slope x score + by_length x length + by_digits x digits.

    Length and digits follow the score where they count.
    """
    rng = stream(0, "validity", slope, by_length)
    rows = []
    for student in STUDENTS:
        for task in TASKS:
            for group in GROUPS:
                score = 0.9 - 0.2 * group + 0.02 * rng.standard_normal()
                n_tokens = 40 + (20 * score if by_length else 0) + 3 * rng.standard_normal()
                digits = 0.2 + (0.3 * score if by_digits else 0) + 0.03 * rng.standard_normal()
                like = {"n_tokens": n_tokens, "digits": digits, "n_steps": 4 + rng.random(), "correct": 0.5}
                like["correct"] += 0.1 * rng.random()
                for seed in SEEDS:
                    gain = slope * score + by_length * n_tokens + by_digits * digits + noise * rng.standard_normal()
                    keys = {"student": student, "task": task, "group": group, "seed": seed, "score": score}
                    rows.append(keys | like | {"before": 0.4, "after": 0.4 + gain, "gain": gain, "n": 60})
    return pd.DataFrame(rows)


def test_a_probe_that_tells_the_truth_is_believed():
    found = predictive_validity(outcome(0.5)).set_index("student")
    assert (found["correlation"] > 0.9).all()
    assert found.loc["all students", "low"] > 0.8 and found.loc["all students", "partial"] > 0.8


def test_a_probe_that_says_the_opposite_is_not():
    assert predictive_validity(outcome(-0.5)).set_index("student").loc["all students", "high"] < -0.8


def test_a_probe_without_meaning_leaves_the_question_open():
    found = predictive_validity(outcome(0.0, noise=0.05)).set_index("student").loc["all students"]
    assert found["low"] < 0 < found["high"]


def test_longer_helps_is_not_taken_for_a_preference():
    table = outcome(0.0, by_length=0.01, noise=0.001)
    found = predictive_validity(table).set_index("student").loc["all students"]
    assert found["correlation"] > 0.4 and abs(partial_correlation(table)) < 0.4


def test_a_format_that_helps_is_not_taken_for_a_preference():
    table = outcome(0.0, by_digits=0.5, noise=0.001)
    found = predictive_validity(table).set_index("student").loc["all students"]
    assert found["partial"] > 0.7 and abs(found["partial_format"]) < 0.4
    assert partial_correlation(table, (*LENGTH, *FORMAT)) == pytest.approx(found["partial_format"])
    assert f"held fixed too {found['partial_format']:+.2f}." in left_over(found)


def test_a_preference_is_left_when_format_is_held_fixed():
    assert predictive_validity(outcome(0.5)).iloc[-1]["partial_format"] > 0.8


def test_too_few_groups_for_so_many_explanations_are_not_tried():
    """Eight groups of one student: two task means, two or four explanations."""
    found = predictive_validity(outcome(0.5).query("student == 's'")).iloc[-1]
    assert found["partial"] > 0.5 and np.isnan(found["partial_format"])
    assert "too few groups to hold format fixed too" in left_over(found)
    assert left_over(predictive_validity(outcome(0.5).query("student == 's' and task == 'sums'")).iloc[-1]).startswith(
        "There are"
    )


def test_format_by_hand():
    assert format_of(" Tally: a cat 1, two dogs 3. <ans>3</ans>") == (3, 3 / 33)
    assert format_of("1.5 and 2\n\nno") == (2, 3 / 9) and format_of("") == (0, 0.0)


def test_equal_gains_are_ties_although_their_last_digits_differ():
    table = outcome(0.0, noise=0.0)
    table["gain"] = table["seed"].map({1: 0.1, 2: 0.2, 3: 0.3}) + 1e-7 * table["group"]
    assert np.isnan(predictive_validity(table).set_index("student").loc["s", "correlation"])


def test_groups_that_all_score_alike_say_nothing():
    table = outcome(0.5).assign(score=0.5)
    assert np.isnan(predictive_validity(table).set_index("student").loc["s", "correlation"])


def test_linear_correlation_within_blocks_by_hand():
    # Levels of the blocks do not count, nor does what varies where the score does not, but for its share of the size.
    scores = np.array([[1.0, 0.0, -1.0], [5.0, 5.0, 5.0]])
    gains = np.array([[2.0, 0.0, -2.0], [9.0, 3.0, 3.0]])
    x, y = scores - scores.mean(1, keepdims=True), gains - gains.mean(1, keepdims=True)
    cells = [("s", task, group) for task in ("sums", "moves") for group in (1, 2, 3)]
    table = pd.DataFrame(cells, columns=["student", "task", "group"]).assign(score=scores.ravel(), gain=gains.ravel())
    assert partial_correlation(table, ()) == pytest.approx((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()))
    assert np.isnan(partial_correlation(table.assign(score=5.0), ()))
    assert predictive_validity(outcome(0.5)).iloc[-1]["linear"] > 0.9


def test_the_figure_says_what_was_found():
    table = outcome(0.5)
    found = predictive_validity(table)
    figure = figures.probe_validity(table, found, left_over(found.iloc[-1]))
    assert "Rank correlation" in figures.sentence(figure) and "all students" in figures.sentence(figure)
    assert left_over(found.iloc[-1]) in figures.sentence(figure)
    assert len(figure.data) == len(STUDENTS) * len(TASKS)


def test_what_was_not_made_yet_is_not_there(runs, recipe):
    run = open_run("mine", recipe)
    assert stored(run) is None
    table = outcome(0.5)
    table.to_csv(run.path / "validity.csv", index=False)
    assert len(stored(run)) == len(table)
