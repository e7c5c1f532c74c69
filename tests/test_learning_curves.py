"""Learning curves measured on a run of the small classroom: which examples, killed and gone on with, added to."""

import multiprocessing
import os
import shutil

import pandas as pd
import pytest
import small_classroom

from workbench.runs.errors import RunError
from workbench.runs.run import open_run
from workbench.studies import learning_curves, trials
from workbench.studies.learning_curves import doubling, measure
from workbench.studies.trials import held_out, usable
from workbench.tasks.task import load_tasks


def first(examples: pd.DataFrame, n: int) -> pd.DataFrame:
    return examples.groupby("task", sort=False).head(n)


@pytest.fixture(scope="module")
def runs_of(small_run, tmp_path_factory):
    return shutil.copytree(small_run, tmp_path_factory.mktemp("curves") / "runs")


@pytest.fixture
def run(runs_of, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(runs_of))
    return open_run("loop")


@pytest.fixture
def trainings(monkeypatch):
    """The numbers of rows of the trainings that were really done."""
    done, tune = [], trials.tune_sft

    def counted(recipe, student, rows, *rest):
        done.append(len(rows))
        return tune(recipe, student, rows, *rest)

    monkeypatch.setattr(trials, "tune_sft", counted)
    return done


@pytest.mark.parametrize(
    ("most", "sizes"), [(160, [5, 10, 20, 40, 80, 160]), (93, [5, 11, 23, 46, 93]), (5, [5]), (3, [3]), (1, [1])]
)
def test_sizes_double(most, sizes):
    assert doubling(most) == sizes


def measure_until_killed(runs: str, kill: tuple[str, int]) -> None:
    os.environ["WORKBENCH_RUNS"] = runs
    small_classroom._arm(*kill)
    measure(open_run("loop"), "pupil", [2], first)


def test_curves_are_measured_killed_gone_on_with_and_added_to(run, runs_of, trainings):
    # The base's answers are recorded first, then those of one trained student after the other.
    process = multiprocessing.get_context("spawn").Process(
        target=measure_until_killed, args=(str(runs_of), ("workbench.runs.cache:Cache.put_many", 3))
    )
    process.start()
    process.join()
    kept = {path.name for path in (run.path / "curves" / "pupil").glob("*.json")}
    assert process.exitcode == -9 and "base-0--1.json" in kept and len(kept) < 5
    table = measure(run, "pupil", [2], first)
    # Two arms, two seeds, two tasks of two examples each; what was trained before the kill is not trained again.
    assert 0 < len(trainings) < 4 and set(trainings) == {4}
    pd.testing.assert_frame_equal(measure(run, "pupil", [2], first), table)
    assert 0 < len(trainings) < 4 and not list((run.path / "curves" / "pupil").glob("*/"))
    n_items = len(held_out(run, load_tasks(run.recipe))[0])
    assert len(table) == (1 + 4) * n_items and set(table["n"]) == {0, 2} and set(table["shots"]) == {0}
    trainings.clear()
    more = measure(run, "pupil", [1, 2], first)
    assert trainings == [2] * 4
    pd.testing.assert_frame_equal(more[more["n"] != 1].reset_index(drop=True), table)
    pd.testing.assert_frame_equal(measure(run, "pupil", [2], first), table)


def test_other_examples_are_trained_on_anew(run, trainings):
    measure(run, "pupil", [1], first)
    trainings.clear()
    last = measure(run, "pupil", [1], lambda examples, n: examples.groupby("task", sort=False).tail(n))
    assert trainings == [2] * 4 and set(last["n"]) == {0, 1}


def test_examples_are_those_kept_for_the_student_under_the_seeds_of_the_run(run):
    examples = usable(run, "pupil")
    assert set(examples["arm"]) == {"untailored", "tailored"} and examples["kept"].all()
    assert set(examples["seed"]) == set(run.recipe.seeds)


def test_what_cannot_be_measured_is_said(run):
    with pytest.raises(RunError, match="its students are pupil"):
        measure(run, "eve", [], first)
    with pytest.raises(RunError, match="must lie between 1 and"):
        measure(run, "pupil", [1, 99], first)
    with pytest.raises(RunError, match="no finished step 'examples'"):
        measure(open_run("empty", run.recipe), "pupil", [], first)
    one = run.recipe.model_copy(update={"seeds": run.recipe.seeds[:1]})
    with pytest.raises(RunError, match="needs two or more"):
        measure(learning_curves.Run("one", run.path, one), "pupil", [], first)
