"""Signs of life: what they hold, that they are whole, rare and never in the way, and that they go with the stage."""

import os
import time

import pytest

from workbench import heartbeat
from workbench.items import Items
from workbench.pool import run_jobs
from workbench.store import open_run


@pytest.fixture
def stage(runs, recipe):
    """The drafting stage of a run, begun in this process."""
    begun = open_run("watched", recipe).stage("drafting")
    assert not begun.finished("f" * 16)
    yield begun
    heartbeat.end()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.0)


def double(n: int) -> int:
    """A job that records an item, for processes that import this module."""
    items = Items(heartbeat.folder().parent / "items.sqlite")
    items.put_many("completion", {str(n): {"text": f"text {n}", "n_tokens": n, "finished": True}})
    time.sleep(0.05)
    return 2 * n


def test_a_stage_says_that_it_lives_from_its_beginning_to_its_end(stage):
    (sign,) = heartbeat.read(stage.path)
    assert sign["main"] and sign["pid"] == os.getpid() and heartbeat.is_there(sign)
    stage.finish("f" * 16, {"drafts": 1}, 1.0, 0, {})
    assert heartbeat.read(stage.path) == [] and not (stage.path / heartbeat.FOLDER).exists()


def test_items_tokens_and_last_texts_are_counted(stage, impatient, tmp_path):
    items = Items(tmp_path / "items.sqlite")
    long = {"text": "x" * 5000, "n_tokens": 7, "finished": True}
    items.put_many("completion", {str(n): {**long, "text": f"text {n}"} for n in range(5)} | {"long": long})
    items.get_many("completion", ["0", "1", "absent"])
    (sign,) = heartbeat.read(stage.path)
    assert (sign["items"], sign["fresh"], sign["tokens"]) == (8, 6, 42)
    assert sign["texts"][:2] == ["text 3", "text 4"] and len(sign["texts"][2]) == heartbeat.N_CHARACTERS


@pytest.mark.parametrize("workers", [1, 2])
def test_every_process_of_a_stage_gives_its_own_signs(stage, impatient, workers):
    assert run_jobs(double, [1, 2, 3, 4], workers, "doubling") == [2, 4, 6, 8]
    main, *others = heartbeat.read(stage.path)
    assert main["main"] and main["jobs"] == [4, 4]
    assert len(others) >= (workers > 1) and os.getpid() not in {sign["pid"] for sign in others}
    if workers == 1:
        assert main["items"] == 4 and main["tokens"] == 10


def test_they_are_written_at_most_once_a_second(stage, monkeypatch):
    written = []
    monkeypatch.setattr(heartbeat.os, "replace", lambda *_: written.append(time.monotonic()))
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        heartbeat.made([{"text": "t", "n_tokens": 1}])
    assert len(written) <= 2


def test_a_full_disk_or_a_missing_folder_stops_nothing(stage, impatient, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(heartbeat.os, "replace", full)
    heartbeat.made([{"text": "t", "n_tokens": 1}])
    monkeypatch.undo()
    for path in (stage.path / heartbeat.FOLDER).iterdir():
        path.unlink()
    (stage.path / heartbeat.FOLDER).rmdir()
    heartbeat.jobs("writing", 1, 2)
    assert heartbeat.read(stage.path) == []


def test_half_a_file_is_no_sign(stage):
    (stage.path / heartbeat.FOLDER / "99999.json").write_text('{"main": tr')
    assert len(heartbeat.read(stage.path)) == 1


def test_a_process_that_has_the_id_of_another_is_not_taken_for_it(stage):
    (sign,) = heartbeat.read(stage.path)
    assert heartbeat.is_there(sign) is True
    assert heartbeat.is_there({**sign, "born": sign["born"] - 100}) is False
    assert heartbeat.is_there({**sign, "host": "elsewhere"}) is None


def test_without_a_stage_nothing_is_written(runs, tmp_path):
    heartbeat.end()
    heartbeat.made([{"text": "t"}])
    heartbeat.steps("m", 1, 2, {"loss": 1.0})
    heartbeat.stop("why")
    assert heartbeat.folder() is None and not list(tmp_path.rglob("*.json"))
