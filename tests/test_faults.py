"""A fault at every place that reads or writes, and damage to every file: one clear error or the right result."""

import re
import time

import pytest
from benchmarks.long_runs import lives, store
from conftest import PROJECT
from faults import DAMAGE, ERRORS, Fault, damage, fall, files_of, in_a_folder, live, places, require, whole
from reliability_table import table

PLACES = sorted(places())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of runs that nothing happened to, what came of it, and how often each place touched a file."""
    folder = tmp_path_factory.mktemp("unbroken") / "runs"
    with in_a_folder(folder), Fault().put_in() as noted:
        wanted = live()
    return folder, wanted, noted.met


def test_every_place_that_touches_files_is_met(unbroken):
    """A function that is added to what remembers is found by the syntax trees and must be used here."""
    assert len(PLACES) >= 30 and not set(PLACES) - set(unbroken[2])


@pytest.mark.parametrize("place", PLACES)
def test_a_fault_is_said_or_borne_and_the_same_comes_out_afterwards(unbroken, tmp_path, place):
    at = PLACES.index(place)
    n = unbroken[2][place] if at % 2 else 1 + unbroken[2][place] // 2
    assert fall(tmp_path / "runs", place, n, ERRORS[at % len(ERRORS)], unbroken[1]) in ("said", "borne")


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_to_any_file_is_said_or_made_good(unbroken, tmp_path, how):
    folder, wanted, _ = unbroken
    files = files_of(folder)
    assert len(files) >= 15
    for at, name in enumerate(files):
        if at % len(DAMAGE) == list(DAMAGE).index(how):
            damage(folder, tmp_path / str(at), name, how, wanted)


def test_a_clock_that_was_set_back_changes_nothing(unbroken, tmp_path, monkeypatch):
    whole(tmp_path / "runs")
    now, now_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: now() - 11 * 86_400)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() - 11 * 86_400 * 10**9)
    require(whole(tmp_path / "runs"), unbroken[1])


def test_many_runs_in_one_process_leave_no_handle_and_no_thread(tmp_path):
    found = lives(tmp_path, 7)
    assert found["handles"][0] == found["handles"][1] and found["threads"][0] == found["threads"][1]
    assert found["MB"][1] - found["MB"][0] < 20


def test_a_large_store_opens_at_once_and_is_not_read_into_memory(tmp_path):
    found = store(tmp_path, 40_000)
    assert found["open"] < 1 and found["memory, MB"] < 5 < found["file, MB"]


def test_the_table_in_the_docs_is_what_was_counted_and_every_test_it_names_is_there():
    text = (PROJECT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\btest_\w+(?=[`\[])", text))
    there = [path.read_text(encoding="utf-8") for path in (PROJECT / "tests").glob("test_*.py")]
    assert table() in text and len(named) > 40
    assert not {name for name in named if not any(f"def {name}(" in one for one in there)}
