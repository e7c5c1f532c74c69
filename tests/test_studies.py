"""The commands that look back on a run, as they are called; what they find is tested with the modules that find it."""

import pytest
from test_main import outcome, small

from workbench.cli.main import DONE, FAILED, REFUSED
from workbench.cli.studies import COMMANDS
from workbench.runs.recipe_file import load_recipe
from workbench.runs.run import open_run

__all__ = ["small"]  # a fixture


@pytest.mark.parametrize("command", COMMANDS)
def test_each_says_what_it_takes(capsys, command):
    status, said, _ = outcome(capsys, command, "--help")
    assert status == DONE and "RUN" in said


def test_a_run_that_lacks_what_is_asked_of_it_is_told_so(capsys, runs, small):
    open_run("new", load_recipe(small))
    status, _, error = outcome(capsys, "goodhart", "new")
    assert status == FAILED and "no finished alignment" in error
    status, _, error = outcome(capsys, "goodhart", "new", "--student", "eve")
    assert status == FAILED and "has no student 'eve'" in error
    status, _, error = outcome(capsys, "curves", "new", "--student", "eve")
    assert status == FAILED and "has no student 'eve'" in error
    status, _, error = outcome(capsys, "curves", "new", "--sizes", "0")
    assert status == REFUSED and "must be 1 or more, got 0" in error
    for command in ("validity", "halves"):
        status, _, error = outcome(capsys, command, "new", *(("--ask", "2") if command == "halves" else ()))
        assert status == FAILED and "has no finished" in error
    for command in ("validity", "goodhart"):
        status, _, error = outcome(capsys, command, "new", "--seeds", "1")
        assert status == REFUSED and "must be 2 or more for an interval, got 1" in error
