"""Simulated runs: what is put in comes out again, and what is said to be found is found."""

import numpy as np
import pytest
import simulated
from scipy import stats

from workbench.runs.errors import DataError
from workbench.runs.recipe import TAILORED_FOR
from workbench.runs.recipe_file import load_recipe
from workbench.verdict import power
from workbench.verdict.intervals import BETTER, spread
from workbench.verdict.power import (
    ASSUMED,
    ExperimentDesign,
    VarianceModel,
    decisions,
    design_of,
    estimate_variance,
    items_needed,
    minimum_detectable_effect,
    simulate,
)

DESIGN = ExperimentDesign(
    "tailored",
    "untailored",
    ("base", "untailored", "random_pairs", "tailored"),
    (0, 3),
    ("counting", "moves"),
    n_seeds=5,
    n_items=100,
    margin=0.05,
    alpha=0.05,
)
WORLD = VarianceModel({("counting", 0): 0.25, ("moves", 0): 0.6}, 0.15, 0.1, 0.04, "made up")


def predictions_of(run, repeat: int = 0):
    return simulated.predictions_of(run, DESIGN, repeat)


def test_design_is_that_of_the_recipe(recipe_values, recipe):
    design = design_of(recipe)
    assert (design.a, design.b, design.n_seeds, design.n_items) == ("tailored", "untailored", 2, 4)
    assert design.shots == (0, 3) and design.compared[0] == ("untailored", 0) and len(design.compared) == 6


def test_the_design_leaves_out_what_the_first_student_has_no_arm_of():
    design = design_of(load_recipe("arte-ablations"))
    cohort = {arm for arm in design.arms if arm.startswith(TAILORED_FOR)}
    assert cohort == {"tailored_for_story-strong"}


def test_covariance_of_answers_is_that_of_the_bivariate_normal():
    for correlation, threshold in ((0.1, -0.4), (0.5, 1.0), (0.9, 0.0)):
        both = stats.multivariate_normal(cov=[[1, correlation], [correlation, 1]]).cdf([threshold] * 2)
        wanted = both - stats.norm.cdf(threshold) ** 2
        assert power._covariance(correlation, np.array([threshold])) == pytest.approx(wanted, abs=1e-6)


def test_accuracies_and_the_difference_are_those_asked_for():
    run = simulate(WORLD, DESIGN, 0.1, np.random.default_rng(0), 400)
    for arm in DESIGN.arms:
        found = run.answers[arm, 0].mean(axis=(0, 1)).reshape(2, -1).mean(axis=1)
        assert found == pytest.approx([0.25 + 0.1 * (arm == "tailored"), 0.6 + 0.1 * (arm == "tailored")], abs=0.012)
    assert run.difference == pytest.approx(0.1)
    assert run.answers["base", 0].shape == (400, 1, 200)
    # No accuracy passes 1, and the true difference says so.
    assert simulate(WORLD, DESIGN, 0.9, np.random.default_rng(0), 1).difference < 0.7


def test_the_spread_expected_is_the_spread_drawn():
    run = simulate(WORLD, DESIGN, 0.0, np.random.default_rng(1), 1500)
    table = run.answers["tailored", 0].astype(int) - run.answers["untailored", 0]
    drawn, wanted = spread(table, DESIGN.columns), WORLD.spread(DESIGN)
    for name, tolerance in (("ms_seed", 0.1), ("ms_item", 0.05), ("ms_noise", 0.03)):
        assert np.mean(getattr(drawn, name)) == pytest.approx(getattr(wanted, name), rel=tolerance), name
    assert np.std(drawn.mean) == pytest.approx(wanted.stderr, rel=0.08)


def test_a_run_tells_how_its_answers_vary():
    run = simulate(WORLD, DESIGN, 0.0, np.random.default_rng(2), 25)
    worlds = [estimate_variance(predictions_of(run, n), DESIGN, "it") for n in range(25)]
    squares = {name: np.mean([getattr(w, name) ** 2 for w in worlds]) for name in VarianceModel._fields[1:4]}
    for name, square in squares.items():
        assert square**0.5 == pytest.approx(getattr(WORLD, name), rel=0.25), name
    assert np.mean([w.accuracy["moves", 0] for w in worlds]) == pytest.approx(0.6, abs=0.02)
    assert set(worlds[0].accuracy) == {(task, shots) for task in DESIGN.tasks for shots in DESIGN.shots}


def test_answers_that_never_vary_are_told_so():
    frame = predictions_of(simulate(WORLD, DESIGN, 0.0, np.random.default_rng(0), 1)).assign(correct=False)
    world = estimate_variance(frame, DESIGN, "it")
    assert (world.difficulty_sd, world.item_sd, world.seed_sd) == (0.0, 0.0, 0.0)
    assert minimum_detectable_effect(world, DESIGN) is not None


def test_a_task_that_was_not_seen_counts_as_the_mean():
    other = DESIGN._replace(tasks=("moves", "dates"))
    assert WORLD.accuracies(other, 0) == pytest.approx([0.6, 0.425])


def test_a_run_of_one_seed_tells_nothing():
    run = simulate(WORLD, DESIGN._replace(n_seeds=1), 0.0, np.random.default_rng(0), 1)
    with pytest.raises(DataError, match="two or more seeds"):
        estimate_variance(predictions_of(run), DESIGN, "it")


def test_a_difference_said_to_be_found_in_four_of_five_is():
    size = minimum_detectable_effect(WORLD, DESIGN)
    run = simulate(WORLD, DESIGN, size, np.random.default_rng(3), 500)
    said = decisions(run, DESIGN).compared[0]
    assert np.mean([decision == BETTER for decision in said]) == pytest.approx(0.8, abs=0.07)


def test_items_needed_are_just_enough():
    for n_seeds in (5, 12):
        design = DESIGN._replace(n_seeds=n_seeds)
        n = items_needed(ASSUMED, design, 0.06)
        assert minimum_detectable_effect(ASSUMED, design._replace(n_items=n)) <= 0.061
        assert minimum_detectable_effect(ASSUMED, design._replace(n_items=int(0.9 * n))) > 0.06
    assert items_needed(ASSUMED, DESIGN._replace(n_seeds=2), 0.06) is None
    assert items_needed(ASSUMED, DESIGN._replace(n_seeds=12), 0.06) < items_needed(ASSUMED, DESIGN, 0.06)
