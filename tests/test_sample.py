"""The runs that ship: small, without a place on the machine that made them, looked at and never changed."""

import os
import re

import numpy as np
import pandas as pd
import papermill
import pytest
from conftest import PROJECT
from test_report import MOST_BYTES, MOST_WORDS, PAGES_OF_PAPER, raw_names, sheets_of, words_read

from workbench.cli.main import DONE, main
from workbench.notebook import session
from workbench.report.page import notebook_page, write_report
from workbench.runs.errors import RunError
from workbench.runs.run import SAMPLE, SAMPLES, open_run
from workbench.signals.by_name import PASSES
from workbench.studies import goodhart, leaderboard
from workbench.verdict.evaluation import decide, verdict_of

FOLDER = PROJECT / "data" / "samples" / "run"


@pytest.fixture
def sample(runs):
    return open_run(SAMPLE)


def test_it_is_small_and_tells_no_place():
    all_files = [path for folder in SAMPLES.values() for path in FOLDER.with_name(folder).rglob("*")]
    files = [path for path in all_files if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 4_000_000
    for path in files:
        if path.suffix in (".json", ".yaml"):
            assert not re.search(r"[\"' ]/[a-z]+/", path.read_text(encoding="utf-8")), path


def test_every_frame_is_what_its_manifest_says_and_no_step_is_computed(sample):
    assert sample.path == sample.path.parent / SAMPLE and FOLDER not in sample.path.parents
    for name in sample.steps():
        assert sample.stands(name) and sample.step(name, None) is not None

    def different():
        raise AssertionError("computed")

    assert len(sample.step("rows", different)) == len(sample.read("rows"))
    assert decide(sample) == verdict_of(sample) and len(sample.recipe.models.students) == 5
    assert open_run(SAMPLE, sample.recipe).path == sample.path


@pytest.mark.browser
def test_its_report_prints_on_a_few_sheets(sample, chromium):
    assert 1 <= sheets_of(write_report(sample), chromium) <= PAGES_OF_PAPER


@pytest.mark.parametrize("name", SAMPLES)
def test_all_of_its_steps_stand(runs, name):
    run = open_run(name)
    assert run.is_shipped and run.steps() and all(map(run.stands, run.steps()))


def test_a_study_is_shown_of_a_run_that_ships_where_ones_own_lacks_what_it_needs(runs, monkeypatch):
    said = []
    for name, stand_in in (("is_headless", lambda: False), ("_make_ready", lambda: None), ("say", said.append)):
        monkeypatch.setattr(session, name, stand_in)
    assert session.start("none", needs=("probes", "sample-signals")).name == "sample-signals"
    assert "There is no run 'none'" in said[0] and "sample-signals, a run that comes with the project" in said[0]
    # Where nobody is watching it is refused.
    monkeypatch.setattr(session, "is_headless", lambda: True)
    with pytest.raises(RunError, match="There is no run 'none'"):
        session.start("none", needs=("probes", "sample-signals"))


def test_the_study_of_signals_has_the_numbers_that_are_printed(runs, monkeypatch):
    monkeypatch.setattr(leaderboard, "N_RESAMPLES", 2)
    run = open_run("sample-signals")
    signals, costs = leaderboard.signals_of(run, list(PASSES), 2)
    leaders = ["one_shot", "learning_cost", "self_consistency", "answer_likelihood"]
    groups = leaderboard.groups_of(signals, leaders, run.recipe.seeds[0])
    board = leaderboard.board(signals, groups, leaderboard.train(run, groups, [], [], 8, 50))
    printed = pd.read_csv(FOLDER.with_name("signals") / "leaderboard.csv")
    both = printed.merge(board, on=["student", "signal", "steps"], suffixes=("", "_now"), validate="one_to_one")
    assert len(both) == len(printed) == len(board) and list(costs["signal"]) == list(PASSES)
    for number in leaderboard.NUMBERS:
        assert np.allclose(both[number], both[f"{number}_now"], atol=1e-4, equal_nan=True), number


def test_the_study_of_rounds_is_whole(runs):
    run = open_run("sample-goodhart")
    table = goodhart.follow(run, 3, 5, 8)
    found = goodhart.by_round(table)
    assert list(found["round"]) == [0, 1, 2, 3, 4]
    assert found["n_seeds"].eq(5).all() and found["score"].between(0, 1).all()
    assert len(goodhart.findings(table)) == len(run.recipe.models.students)


def test_open_shows_its_card_and_writes_its_report(sample, capsys):
    assert main(["open", SAMPLE]) == DONE
    said = capsys.readouterr().out
    assert said.count("Does the student answer better?") == 5 and "BETTER" in said and "NO DIFFERENCE" in said
    # Five students and four tasks: the longest report that recipes at hand make.
    report = sample.path / "reports" / "report.html"
    assert report.stat().st_size < MOST_BYTES and 1_000 < words_read(report) < MOST_WORDS and not raw_names(report)
    assert main(["summary", SAMPLE]) == DONE and capsys.readouterr().out.strip() in said


@pytest.mark.parametrize("name", ["04_student_training", "05_evaluation"])
def test_notebooks_show_it(runs, tmp_path, name):
    before = {path: path.stat().st_mtime_ns for path in FOLDER.rglob("*") if "__pycache__" not in str(path)}
    source, out = PROJECT / "notebooks" / f"{name}.ipynb", tmp_path / "out.ipynb"
    papermill.execute_notebook(source, out, {"run": SAMPLE}, cwd=PROJECT, progress_bar=False)
    assert {path: path.stat().st_mtime_ns for path in FOLDER.rglob("*") if "__pycache__" not in str(path)} == before
    assert os.listdir(runs) == [SAMPLE] and not raw_names(notebook_page(out))
