"""The studies by the command: listed, explained, refused in one sentence, and run on a whole run."""

import json
import re

import nbformat
import pytest
from test_main import outcome, small
from test_notebook_style import STUDIES

from workbench.cli.main import DONE, FAILED, REFUSED
from workbench.runs.recipe_file import load_recipe
from workbench.runs.run import open_run

__all__ = ["small"]  # a fixture

NAMES = [path.stem for path in STUDIES]


def test_every_study_is_listed_by_its_first_heading(capsys):
    status, said, _ = outcome(capsys, "study")
    assert status == DONE
    for path in STUDIES:
        head = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].removeprefix("# ")
        assert re.search(rf"^{path.stem} +{re.escape(head)}$", said, re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_each_says_what_it_takes(capsys, name):
    status, said, _ = outcome(capsys, "study", name)
    assert status == DONE and f"workbench study {name} RUN" in said and "-p " in said and "-p run" not in said


def test_what_a_study_does_not_know_is_refused_before_anything_runs(capsys, runs, small):
    status, _, error = outcome(capsys, "study", "signls")
    assert status == REFUSED and "did you mean signals?" in error
    status, _, error = outcome(capsys, "study", "signals", "a", "-p", "sedes", "3", "-p", "asked", "few")
    assert status == REFUSED and "sedes is not a parameter of study signals; did you mean seeds?" in error
    assert "asked must be of type int, got 'few' (str)" in error and error.count("\n") == 1
    status, _, error = outcome(capsys, "study", "signals", "a", "-p", "run", "b")
    assert status == REFUSED and not runs.exists()
    status, _, error = outcome(capsys, "study", "signals", "a")
    assert status == FAILED and "There is no run 'a'" in error


@pytest.mark.slow
def test_a_study_that_cannot_be_made_is_one_sentence(capsys, runs, small):
    run = open_run("new", load_recipe(small))
    status, _, error = outcome(capsys, "study", "goodhart", "new")
    assert status == FAILED and "no finished step 'examples'" in error and error.count("\n") == 1
    assert json.loads((run.path / "metrics.json").read_text())["goodhart"]["status"] == "failed"
