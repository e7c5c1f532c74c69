import numpy as np
import pandas as pd
import pytest

from workbench import figures
from workbench.seeding import stream
from workbench.store import StoreError, open_run
from workbench.validity import agreement, partial_correlation, validity_of

STUDENTS, TASKS, GROUPS, SEEDS = ("s", "t", "u"), ("sums", "moves"), range(1, 5), (1, 2, 3)


def outcome(slope: float, by_length: float = 0.0, noise: float = 0.01) -> pd.DataFrame:
    """Groups whose gain is slope x score + by_length x length; length follows the score when by_length is not 0."""
    rng = stream(0, "validity", slope, by_length)
    rows = []
    for student in STUDENTS:
        for task in TASKS:
            for group in GROUPS:
                score = 0.9 - 0.2 * group + 0.02 * rng.standard_normal()
                n_tokens = 40 + (20 * score if by_length else 0) + 3 * rng.standard_normal()
                for seed in SEEDS:
                    gain = slope * score + by_length * n_tokens + noise * rng.standard_normal()
                    rows.append(
                        (
                            student,
                            task,
                            group,
                            seed,
                            score,
                            n_tokens,
                            0.5 + 0.1 * rng.random(),
                            0.4,
                            0.4 + gain,
                            gain,
                            60,
                        )
                    )
    columns = ["student", "task", "group", "seed", "score", "n_tokens", "correct", "before", "after", "gain", "n"]
    return pd.DataFrame(rows, columns=columns)


def test_a_probe_that_tells_the_truth_is_believed():
    found = agreement(outcome(0.5)).set_index("student")
    assert (found["correlation"] > 0.9).all()
    assert found.loc["all students", "low"] > 0.8 and found.loc["all students", "partial"] > 0.8


def test_a_probe_that_says_the_opposite_is_not():
    assert agreement(outcome(-0.5)).set_index("student").loc["all students", "high"] < -0.8


def test_a_probe_without_meaning_leaves_the_question_open():
    found = agreement(outcome(0.0, noise=0.05)).set_index("student").loc["all students"]
    assert found["low"] < 0 < found["high"]


def test_longer_helps_is_not_taken_for_a_preference():
    table = outcome(0.0, by_length=0.01, noise=0.001)
    found = agreement(table).set_index("student").loc["all students"]
    assert found["correlation"] > 0.4 and abs(partial_correlation(table)) < 0.4


def test_groups_that_all_score_alike_say_nothing():
    table = outcome(0.5).assign(score=0.5)
    assert np.isnan(agreement(table).set_index("student").loc["s", "correlation"])


def test_the_figure_says_what_was_found():
    table = outcome(0.5)
    figure = figures.probe_validity(table, agreement(table))
    assert "Rank correlation" in figures.sentence(figure) and "all students" in figures.sentence(figure)
    assert len(figure.data) == len(STUDENTS) * len(TASKS)


def test_what_was_not_made_yet_is_named(runs, recipe):
    with pytest.raises(StoreError, match="workbench validity mine"):
        validity_of(open_run("mine", recipe))
