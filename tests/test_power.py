"""The whole decision, simulated: as the verdict decides, rarely wrong; the study `calibrate` does it at length."""

import numpy as np
import pytest
from simulated import verdict_on

from workbench.verdict import power
from workbench.verdict.intervals import BETTER, SAME, WORSE
from workbench.verdict.power import (
    ASSUMED,
    ExperimentDesign,
    VarianceModel,
    calibrate,
    decisions,
    simulate,
)

DESIGN = ExperimentDesign(
    "tailored",
    "untailored",
    ("base", "untailored", "random_pairs", "tailored"),
    (0, 3),
    ("counting", "moves", "dates"),
    n_seeds=3,
    n_items=40,
    margin=0.05,
    alpha=0.05,
)
SHARES = ["better", "worse", "no difference", "undecided"]


@pytest.mark.parametrize(("difference", "n_items"), [(0.2, 40), (-0.2, 40), (0.0, 800)])
def test_many_runs_at_once_are_decided_as_the_verdict_decides_one(difference, n_items):
    design = DESIGN._replace(n_items=n_items)
    world = VarianceModel({("counting", 0): 0.3, ("moves", 0): 0.5}, 0.1, 0.05, 0.01, "made up")
    run = simulate(world, design, difference, np.random.default_rng(5), 2)
    found = decisions(run, design)
    seen = set()
    for repeat in range(2):
        made = verdict_on(run, design, repeat)
        assert list(made) == [[row[repeat] for row in rows] for rows in (found.compared, found.adjusted, found.tasks)]
        seen |= {one for decided in made for one in decided}
    assert {0.2: BETTER, -0.2: WORSE, 0.0: SAME}[difference] in seen


def test_holm_holds_a_task_back_that_would_pass_alone():
    """Found among simulated runs: a task whose own interval leaves out zero and which is not called better."""
    run = simulate(ASSUMED._replace(seed_sd=0.0), DESIGN, 0.12, np.random.default_rng(0), 300)
    table = run.answers["tailored", 0].astype(int) - run.answers["untailored", 0]
    corrected = np.array(power._per_task(table, DESIGN)) == BETTER
    one = DESIGN._replace(tasks=DESIGN.tasks[:1])
    alone = [power._per_task(table[..., 40 * n : 40 * (n + 1)], one)[0] for n in range(3)]
    alone = np.array(alone) == BETTER
    assert not (corrected & ~alone).any() and (alone & ~corrected).any()


def test_the_further_comparisons_are_corrected_for_their_number():
    """Nine of them, nothing true: taken alone one of them too often says "better", corrected in one run of twenty."""
    wide = DESIGN._replace(arms=(*DESIGN.arms, "question_only", "rationale_only"), n_seeds=5)
    assert len(wide.compared) == 10
    (row,) = calibrate(ASSUMED, wide, 600, [0.0]).to_dict("records")
    assert row["any_other_alone"] > 0.05 > row["any_other_better"] > 0.0, row
    (row,) = calibrate(ASSUMED, wide, 100, [0.25]).to_dict("records")
    assert row["any_other_better"] > 0.8, row


def test_rarely_wrong_and_honest_about_it():
    """400 runs a row: the bounds leave three Monte Carlo standard errors (0.011 at a share of 0.05)."""
    table = calibrate(ASSUMED, DESIGN, 400)
    assert np.allclose(table[SHARES].sum(axis=1), 1.0)
    null = table[table["difference"] == 0]
    assert list(null["seed_sd"]) == [0.02, 0.04]
    for name in ("better", "worse", "any_task_better", "any_other_better"):
        assert null[name].max() <= 0.05 + 0.033, table
    assert table["coverage"].min() >= 0.95 - 0.033, table
    at_margin = table[np.isclose(table["difference"], 0.05)].iloc[0]
    assert at_margin["no difference"] <= 0.05 + 0.033
    assert table["better"].iloc[3] > table["better"].iloc[0]


def test_the_same_seed_gives_the_same_table():
    made = [calibrate(ASSUMED, DESIGN, 30, [0.1], seed) for seed in (1, 1, 2)]
    assert made[0].equals(made[1]) and not made[0].equals(made[2])


def test_repeats_are_all_counted_however_they_are_cut(monkeypatch):
    monkeypatch.setattr(power, "CHUNK", 7 * 4 * 2 * 3 * 120)
    (row,) = calibrate(ASSUMED, DESIGN, 30, [0.1]).to_dict("records")
    assert row["repeats"] == 30 and sum(row[name] for name in SHARES) == pytest.approx(1.0)
    assert (np.array([row[name] * 30 for name in SHARES]) % 1).round(6).tolist() == [0.0] * 4


def test_a_recipe_without_base_and_further_shots_is_decided_too():
    small = DESIGN._replace(arms=("tailored", "untailored"), shots=(0,), tasks=("moves",))
    (row,) = calibrate(ASSUMED, small, 20, [0.3]).to_dict("records")
    assert row["any_other_better"] == 0.0 and row["better"] > 0.5
