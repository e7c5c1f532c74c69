"""The finished run that ships: small, without a place on the machine that made it, looked at and never changed."""

import os
import re

import papermill
import pytest
from conftest import PROJECT
from test_report import MOST_BYTES, MOST_WORDS, PAGES_OF_PAPER, sheets_of, words_read

from workbench.cli.main import DONE, main
from workbench.report.page import write_report
from workbench.runs.run import SAMPLE, open_run
from workbench.verdict.evaluation import decide, verdict_of

FOLDER = PROJECT / "data" / "samples" / "run"


@pytest.fixture
def sample(runs):
    return open_run(SAMPLE)


def test_it_is_small_and_tells_no_place():
    files = [path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
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


def test_open_shows_its_card_and_writes_its_report(sample, capsys):
    assert main(["open", SAMPLE]) == DONE
    said = capsys.readouterr().out
    assert said.count("Does the student answer better?") == 5 and "BETTER" in said and "NO DIFFERENCE" in said
    # Five students and four tasks: the longest report that recipes at hand make.
    report = sample.path / "reports" / "report.html"
    assert report.stat().st_size < MOST_BYTES and 1_000 < words_read(report) < MOST_WORDS
    assert main(["summary", SAMPLE]) == DONE and capsys.readouterr().out.strip() in said


@pytest.mark.parametrize("name", ["04_student_training", "05_evaluation"])
def test_notebooks_show_it(runs, tmp_path, name):
    before = {path: path.stat().st_mtime_ns for path in FOLDER.rglob("*") if "__pycache__" not in str(path)}
    source, out = PROJECT / "notebooks" / f"{name}.ipynb", tmp_path / "out.ipynb"
    papermill.execute_notebook(source, out, {"run": SAMPLE}, cwd=PROJECT, progress_bar=False)
    assert {path: path.stat().st_mtime_ns for path in FOLDER.rglob("*") if "__pycache__" not in str(path)} == before
    assert os.listdir(runs) == [SAMPLE]
