"""Signs of life: what they hold, that they are whole, rare and never in the way, and that they go with the step."""

import os
import time

import pandas as pd
import pytest

from workbench.runs import progress
from workbench.runs.cache import Cache
from workbench.runs.run import Step, open_run
from workbench.runs.workers import run_jobs


@pytest.fixture
def step(runs, recipe):
    """A step of a run, begun in this process."""
    begun = Step(open_run("watched", recipe), "drafts-of-mine")
    progress.begin(begun.begin("f" * 16))
    yield begun
    progress.end()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(progress, "EVERY_S", 0.0)


def double(n: int) -> int:
    """A job that records an item, for processes that import this module."""
    items = Cache(progress.folder().parent / "items.sqlite")
    items.put_many("completion", {str(n): {"text": f"text {n}", "n_tokens": n, "finished": True}})
    time.sleep(0.05)
    return 2 * n


def test_a_step_says_that_it_lives_from_its_beginning_to_its_end(step):
    (sign,) = progress.read(step.path)
    assert sign["main"] and sign["pid"] == os.getpid() and progress.is_there(sign)
    step.finish("f" * 16, double, {}, {}, pd.DataFrame({"n": [1]}), 1.0)
    assert progress.read(step.path) == [] and not (step.path / progress.FOLDER).exists()


def test_a_step_that_replaces_another_gives_its_signs_beside_it(step):
    step.finish("f" * 16, double, {}, {}, pd.DataFrame({"n": [1]}), 1.0)
    progress.begin(folder := step.begin("e" * 16))
    assert len(progress.read(folder)) == 1 and progress.read(step.path) == []
    step.finish("e" * 16, double, {}, {}, pd.DataFrame({"n": [2]}), 1.0)
    assert step.manifest["key"] == "e" * 16 and not (step.path / progress.FOLDER).exists()


def test_items_tokens_and_last_texts_are_counted(step, impatient, tmp_path):
    items = Cache(tmp_path / "items.sqlite")
    long = {"text": "x" * 5000, "n_tokens": 7, "finished": True}
    items.put_many("completion", {str(n): {**long, "text": f"text {n}"} for n in range(5)} | {"long": long})
    items.get_many("completion", ["0", "1", "absent"])
    (sign,) = progress.read(step.path)
    assert (sign["items"], sign["fresh"], sign["tokens"]) == (8, 6, 42)
    assert sign["texts"][:2] == ["text 3", "text 4"] and len(sign["texts"][2]) == progress.N_CHARACTERS


@pytest.mark.parametrize("workers", [1, 2])
def test_every_process_of_a_step_gives_its_own_signs(step, impatient, workers):
    assert run_jobs(double, [1, 2, 3, 4], workers, "doubling") == [2, 4, 6, 8]
    main, *others = progress.read(step.path)
    assert main["main"] and main["jobs"] == [4, 4]
    assert len(others) >= (workers > 1) and os.getpid() not in {sign["pid"] for sign in others}
    if workers == 1:
        assert main["items"] == 4 and main["tokens"] == 10


def test_they_are_written_at_most_once_a_second(step, monkeypatch):
    written = []
    monkeypatch.setattr(progress.os, "replace", lambda *_: written.append(time.monotonic()))
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        progress.made([{"text": "t", "n_tokens": 1}])
    assert len(written) <= 2


def test_a_full_disk_or_a_missing_folder_stops_nothing(step, impatient, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress.os, "replace", full)
    progress.made([{"text": "t", "n_tokens": 1}])
    monkeypatch.undo()
    for path in (step.path / progress.FOLDER).iterdir():
        path.unlink()
    (step.path / progress.FOLDER).rmdir()
    progress.jobs("writing", 1, 2)
    assert progress.read(step.path) == []


def test_half_a_file_is_no_sign(step):
    (step.path / progress.FOLDER / "99999.json").write_text('{"main": tr')
    assert len(progress.read(step.path)) == 1


def test_a_process_that_has_the_id_of_another_is_not_taken_for_it(step):
    (sign,) = progress.read(step.path)
    assert progress.is_there(sign) is True
    assert progress.is_there({**sign, "born": sign["born"] - 100}) is False
    assert progress.is_there({**sign, "host": "elsewhere"}) is None


def test_without_a_step_nothing_is_written(runs, tmp_path):
    progress.end()
    progress.made([{"text": "t"}])
    progress.steps("m", 1, 2, {"loss": 1.0})
    assert progress.folder() is None and not list(tmp_path.rglob("*.json"))
