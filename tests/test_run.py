import errno
import functools
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys

import pandas as pd
import pytest
from conftest import PROJECT

from workbench.models.engine import Decoding
from workbench.runs import cache, identity, progress, schemas
from workbench.runs.cache import Cache, atomic_write, record_test_access
from workbench.runs.errors import RunError
from workbench.runs.recipe import Recipe
from workbench.runs.run import open_run, restore, runs_table, steps_in

CALLS: list[str] = []


@pytest.fixture
def run(runs, recipe):
    CALLS.clear()
    yield open_run("demo", recipe)
    progress.end()


def curve(*values: float) -> pd.DataFrame:
    row = {"stage": "drafting", "arm": "tailored", "student": "s", "seed": 0, "metric": "loss"}
    return schemas.build([row | {"step": step, "value": value} for step, value in enumerate(values)], "curve")


def numbers(n: int) -> pd.DataFrame:
    """A step of one frame, which counts."""
    CALLS.append("numbers")
    frame = pd.DataFrame({"n": range(n), "n_tokens": 2})
    frame.attrs["counts"] = {"numbers": n, "odd ones": n // 2}
    return frame


def halves(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A step of several frames."""
    CALLS.append("halves")
    return {"even": frame[frame["n"] % 2 == 0], "odd": frame[frame["n"] % 2 == 1]}


def anything(value) -> pd.DataFrame:
    CALLS.append("anything")
    return pd.DataFrame({"said": ["done"]})


def breaks(n: int) -> pd.DataFrame:
    raise ValueError(f"no such luck with {n}")


# Runs


def test_a_run_keeps_its_recipe(run, recipe):
    assert open_run("demo").recipe == recipe and open_run("demo", recipe).path == run.path


def test_a_run_refused_before_any_work_takes_the_mended_recipe(run, recipe_values):
    (run.path / "reports").mkdir()
    recipe_values["alignment"]["beta"] = 0.2
    assert open_run("demo", Recipe.model_validate(recipe_values)).recipe.alignment.beta == 0.2
    assert open_run("demo").recipe.alignment.beta == 0.2


def test_another_recipe_is_refused_with_the_difference(run, recipe_values):
    run.step("numbers", numbers, 3)
    recipe_values["alignment"]["beta"] = 0.2
    recipe_values["models"]["students"]["mover"] = "data/pocket/mover"
    with pytest.raises(RunError) as error:
        open_run("demo", Recipe.model_validate(recipe_values))
    assert "alignment.beta 0.1 -> 0.2" in str(error.value) and "take another --name" in str(error.value)
    assert "models.students.mover absent -> data/pocket/mover" in str(error.value)
    assert "learning_rate" not in str(error.value)
    assert open_run("demo").recipe.alignment.beta == 0.1


def test_an_unknown_run_names_the_known_ones(run):
    with pytest.raises(RunError, match=r"no run 'dmeo' \(there are: demo\); begin it in the first notebook"):
        open_run("dmeo")


@pytest.mark.parametrize("name", ["", "../demo", "a/b", ".hidden"])
def test_a_name_that_is_no_folder_name_is_refused(runs, recipe, name):
    with pytest.raises(RunError, match="choose another"):
        open_run(name, recipe)


def test_a_run_of_an_earlier_workbench_is_refused_and_nothing_in_it_is_touched(run, recipe):
    (run.path / "drafting").mkdir()
    (run.path / "drafting" / "manifest.json").write_text('{"stage": "drafting", "fingerprint": "f00d"}')
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    for given in (None, recipe):
        with pytest.raises(RunError) as error:
            open_run("demo", given)
        assert "made by an earlier workbench" in str(error.value) and "take another name" in str(error.value)
        assert "drafting/" in str(error.value) and "\n" not in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_a_step_may_be_called_as_a_folder_of_that_workbench_was(run):
    run.step("training", numbers, 3)
    assert open_run("demo").steps() == ["training"]


# Steps: when one is computed


def test_a_step_is_computed_once_and_says_that_it_is_reused(run, capsys):
    made = run.step("numbers", numbers, 3)
    again = open_run("demo").step("numbers", numbers, 3)
    assert CALLS == ["numbers"] and made["n"].tolist() == [0, 1, 2]
    pd.testing.assert_frame_equal(again, made)
    pd.testing.assert_frame_equal(run.read("numbers"), made)
    assert capsys.readouterr().out.splitlines()[-1] == "✓ numbers: stored, 3 numbers, 1 odd ones"


class Keyed:
    """Like a model or a task: known by what its files are."""

    def __init__(self, key: str):
        self.key = key


def with_beta(recipe, beta: float):
    return recipe.alignment.model_copy(update={"beta": beta})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (1, 1.5),
        (None, False),
        ([1, 2], [2, 1]),
        ({"a": {"b": 1}}, {"a": {"b": 2}}),
        (pd.DataFrame({"n": [1, 2]}), pd.DataFrame({"n": [2, 1]})),
        (pd.DataFrame({"n": [1]}), pd.DataFrame({"m": [1]})),
        (pd.DataFrame({"n": [1]}), pd.DataFrame({"n": [1.0]})),
        (Decoding(8), Decoding(9)),
        (Keyed("a"), Keyed("b")),
        (functools.partial(curve, 1.0), functools.partial(curve, 2.0)),
        (numbers, halves),
    ],
    ids=lambda value: type(value).__name__,
)
def test_another_argument_is_computed_again(run, one, other):
    for value in (one, one, other, other):
        run.step("some", anything, value)
    assert len(CALLS) == 2


def test_a_section_of_the_recipe_counts_by_its_values(run):
    for beta in (0.1, 0.1, 0.2):
        run.step("some", anything, with_beta(run.recipe, beta))
    assert len(CALLS) == 2


def test_the_same_said_otherwise_is_the_same(run):
    frame = pd.DataFrame({"n": [1, 2]})
    for value in ({"a": frame, "b": (1, 2)}, {"b": [1, 2], "a": frame.set_axis([7, 8])}):
        run.step("some", anything, value)
    assert len(CALLS) == 1


def test_another_function_or_version_is_computed_again(run, monkeypatch):
    # On one line, where the text of both is the same.
    one, other = (lambda n: numbers(n)), (lambda n: numbers(n + 1))
    for _ in range(2):
        assert len(run.step("some", one, 3)) == 3 and len(run.step("some", other, 3)) == 4
    before = identity.function_of(schemas.text_id)
    monkeypatch.setattr(schemas, "VERSION", 99, raising=False)
    assert identity.function_of(schemas.text_id) != before


@pytest.mark.parametrize(
    ("value", "named"), [(object(), "value"), ({"a": [1, {2}]}, r"value\['a'\]\[1\]"), (range(3), "value")]
)
def test_what_cannot_be_told_from_another_is_refused(run, value, named):
    with pytest.raises(RunError, match=named + r" is \w+, of which a step cannot tell when it is another; give a"):
        run.step("some", anything, value)
    assert not CALLS and not (run.path / "some").exists()


def test_a_function_without_a_text_is_refused(run):
    names = {"__name__": "nowhere"}
    exec("def mine(n): return n", names)
    with pytest.raises(RunError, match="nowhere.mine cannot be read.*define it in a cell or a file"):
        run.step("some", names["mine"], 1)


def test_again_computes_a_step_again_and_leaves_it_in_force_until_then(run):
    run.step("numbers", numbers, 3)
    run.again("numbers")
    assert run.has("numbers") and len(run.read("numbers")) == 3 and not run.stands("numbers")
    for _ in range(2):
        run.step("numbers", numbers, 3)
    assert CALLS == ["numbers"] * 2 and len(list(run.path.glob("numbers.superseded-*"))) == 1
    assert run.stands("numbers") and not list(run.path.rglob("again"))


# Steps: what lies where


def test_the_manifest_says_where_the_result_came_from(run):
    run.step("numbers", numbers, 4)
    run.step("halves", halves, run.read("numbers"))
    manifest = run.manifest("halves")
    content = run.manifest("numbers")["contents"]["numbers"]
    assert manifest["parents"] == {"numbers": [content]} and manifest["inputs"] == {"frame": {"frame": content}}
    assert manifest["function"].startswith("test_run.halves ") and manifest["versions"]["trl"]
    assert manifest["files"] == {
        name: identity.file_sha256(run.path / "halves" / f"{name}.parquet") for name in ("even", "odd")
    }
    assert manifest["tokens"] == 8 and manifest["seconds"] >= 0 and run.manifest("absent") == {}


def test_steps_are_in_the_order_in_which_they_were_finished(run):
    for name in ("b", "round-2/a", "a"):
        run.step(name, numbers, 3)
    assert run.steps() == ["b", "round-2/a", "a"]
    assert repr(run) == "Run demo of recipe small, finished: b, round-2/a, a"


def test_counts_are_those_of_the_frames_or_their_rows(run):
    run.step("numbers", numbers, 5)
    run.step("halves", halves, run.read("numbers"))
    assert run.counts("numbers") == {"numbers": 5, "odd ones": 2} and run.counts("absent") == {}
    assert run.counts("halves") == {"even": 3, "odd": 2}


def test_a_step_of_several_frames_gives_each_by_its_name(run):
    made = run.step("halves", halves, numbers(5))
    again = run.step("halves", halves, numbers(5))
    assert CALLS.count("halves") == 1 and made.path == again.path == run.path / "halves"
    for found in (made, again, run.result("halves")):
        assert list(found) == ["even", "odd"] and found["odd"]["n"].tolist() == [1, 3]
    assert run.read("halves", "even")["n"].tolist() == [0, 2, 4]
    with pytest.raises(RunError, match="has no frame 'halves'; it has even, odd"):
        run.read("halves")


def test_a_name_with_slashes_is_folders_in_folders(run):
    for n in (2, 3):
        run.step("round-2/numbers", numbers, n)
    assert len(run.read("round-2/numbers")) == 3 and run.steps() == ["round-2/numbers"]
    folders = sorted(path.name for path in (run.path / "round-2").iterdir())
    assert folders[0] == "numbers" and folders[1].startswith("numbers.superseded-") and len(folders) == 2


@pytest.mark.parametrize("name", ["", "../demo", "a//b", "/a", "a/", ".hidden", "a.next", "reports"])
def test_a_name_that_is_no_name_of_a_step_is_refused(run, name):
    with pytest.raises(RunError, match="choose another"):
        run.step(name, numbers, 3)
    assert not CALLS


def test_a_step_that_wants_a_folder_gets_its_own(run):
    def leaves_a_model(n: int, folder) -> dict[str, pd.DataFrame]:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(str(n))
        return {"curve": curve(float(n))}

    for n in (1, 2):
        made = run.step("teachers", leaves_a_model, n)
        assert (made.path / "model" / "weights").read_text() == str(n)
    assert made.path == run.path / "teachers"
    (aside,) = run.path.glob("teachers.superseded-*")
    assert (aside / "model" / "weights").read_text() == "1"


def test_equal_frames_are_equal_files(run, recipe):
    files = []
    for of in (run, open_run("other", recipe)):
        of.step("numbers", numbers, 3)
        files.append(of.path / "numbers" / "numbers.parquet")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_frame_that_breaks_its_schema_is_not_stored(run):
    with pytest.raises(schemas.DataError):
        run.step("curve", lambda: curve(1.0).assign(step=0.5))
    assert not run.has("curve") and not list(run.path.rglob("*.parquet"))


def test_how_far_it_is_is_shown_only_while_something_is_computed(run):
    shown = []
    watching = run.watching
    run.watching = lambda step: shown.append(step) or watching(step)
    for _ in range(2):
        run.step("numbers", numbers, 3)
    assert shown == ["numbers"]


# Steps: what was there before


def test_the_old_result_stays_until_the_new_one_is_whole(run, capsys):
    seen = []

    def looks(n: int) -> pd.DataFrame:
        seen.append((len(run.read("numbers")) if run.has("numbers") else 0, (run.path / "numbers.next").is_dir()))
        return numbers(n)

    for n in (3, 4):
        run.step("numbers", looks, n)
    assert seen == [(0, False), (3, True)] and len(run.read("numbers")) == 4
    assert not (run.path / "numbers.next").exists()
    (aside,) = run.path.glob("numbers.superseded-*")
    assert len(pd.read_parquet(aside / "numbers.parquet")) == 3
    assert f"the earlier numbers is kept in {aside.name}" in capsys.readouterr().out


def test_nothing_is_ever_deleted(run):
    run.step("numbers", numbers, 1)
    first = run.manifest("numbers")["key"]
    for n in (2, 1, 3):
        run.step("numbers", numbers, n)
    aside = sorted(path.name for path in run.path.glob("numbers.superseded-*"))
    name = f"numbers.superseded-{first[:8]}"
    assert len(aside) == 3 and {name, f"{name}-2"} < set(aside)
    assert all((run.path / name / "numbers.parquet").is_file() for name in aside)


def test_a_step_that_fails_leaves_the_old_one_readable(run):
    run.step("numbers", numbers, 3)
    with pytest.raises(ValueError, match="no such luck with 4"):
        run.step("numbers", breaks, 4)
    assert len(run.read("numbers")) == 3 and run.steps() == ["numbers"]
    (sign,) = progress.read(run.path / "numbers.next")
    assert sign["stopped"] == "ValueError: no such luck with 4"
    run.step("numbers", numbers, 3)
    assert CALLS == ["numbers"] and progress.read(run.path / "numbers.next") == [], "nobody works on it any more"


def test_a_kill_before_the_new_result_has_its_place_loses_nothing(run):
    run.step("numbers", numbers, 3)
    run.step("numbers", numbers, 4)
    (run.path / "numbers").rename(run.path / "numbers.next")
    assert len(run.step("numbers", numbers, 4)) == 4 and CALLS == ["numbers"] * 2
    assert not (run.path / "numbers.next").exists() and run.steps() == ["numbers"]


@pytest.mark.parametrize("before", [False, True])
def test_partial_work_stays_for_the_same_key_and_leaves_for_another(run, before):
    there = []

    def interrupted(n: int, folder) -> pd.DataFrame:
        there.append((folder / "checkpoint").is_dir())
        (folder / "checkpoint").mkdir(exist_ok=True)
        if len(there) < 4:
            raise KeyboardInterrupt
        return numbers(n)

    if before:
        run.step("numbers", numbers, 9)
    for n in (1, 1, 2):
        with pytest.raises(KeyboardInterrupt):
            run.step("numbers", interrupted, n)
        assert run.has("numbers") is before
    assert len(run.step("numbers", interrupted, 2)) == 2
    assert there == [False, True, False, True]
    assert len(list(run.path.glob("numbers.superseded-*/checkpoint"))) == 1
    assert len(list(run.path.glob("numbers.superseded-*"))) == 1 + before
    assert (run.path / "numbers" / "checkpoint").is_dir() and not (run.path / "numbers.next").exists()


# Steps: what is brought back


def chain(run, n: int) -> None:
    """Compute three steps, each from the one before."""
    run.step("teachers", numbers, n)
    run.step("students", halves, run.read("teachers"))
    run.step("mine", anything, dict(run.result("students")))


def test_what_was_made_from_a_step_is_found_in_a_copied_run_too(run):
    chain(run, 3)
    for time, name in enumerate(reversed(run.steps())):
        os.utime(run.path / name / "manifest.json", (time, time))
    assert run.steps()[0] == "mine" and set(run.made_from("teachers")) == {"teachers", "students", "mine"}


def test_what_a_finished_result_was_made_from_is_brought_back(run):
    chain(run, 3)
    before = {name: run.manifest(name) for name in run.steps()}
    run.step("teachers", numbers, 4)
    assert not run.stands("mine")
    assert restore(run) == ["teachers"] and run.stands("mine")
    assert {name: run.manifest(name) for name in before} == before
    # What was begun only, and what was moved aside with nothing in its place.
    run.step("teachers", numbers, 5)
    (run.path / "students").rename(run.path / "students.superseded-0")
    (run.path / "students").mkdir()
    assert restore(run) == ["students", "teachers"] and run.stands("mine")
    assert {name: run.manifest(name) for name in before} == before
    chain(run, 3)
    assert CALLS.count("halves") == CALLS.count("anything") == 1, "what was brought back is not computed again"


def test_a_second_restore_undoes_the_first(run):
    for n in (3, 4):
        chain(run, n)
    for n in (3, 4, 3):
        assert set(restore(run)) == {"mine", "students", "teachers"}
        assert len(run.read("teachers")) == n and run.stands("mine")


def test_what_cannot_be_brought_back_is_said_and_nothing_is_moved(run):
    with pytest.raises(RunError, match="Nothing of run demo was moved aside"):
        restore(run)
    chain(run, 3)
    run.step("teachers", numbers, 4)
    (aside,) = run.path.glob("teachers.superseded-*")
    (aside / "manifest.json").unlink()
    run.step("other", numbers, 1)
    run.step("other", numbers, 2)
    with pytest.raises(RunError, match="The teachers that students of run demo was made from is not there any more"):
        restore(run)
    assert len(run.read("teachers")) == 4 and run.has("mine")


# Steps: what is refused when it is read


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is not what its manifest describes"),
        (lambda path: path.write_bytes(b"PAR1"), "is not what its manifest describes"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_a_corrupt_parquet_file_is_named_with_the_fix(run, damage, says):
    run.step("numbers", numbers, 3)
    damage(run.path / "numbers" / "numbers.parquet")
    for read in (run.read, run.result, lambda name: run.step(name, numbers, 3)):
        with pytest.raises(RunError) as error:
            read("numbers")
        assert "numbers.parquet" in str(error.value) and says in str(error.value)
        assert "rename the folder" in str(error.value) and "workbench run" in str(error.value)
    (run.path / "numbers").rename(run.path / "damaged")
    assert len(run.step("numbers", numbers, 3)) == 3


def test_a_corrupt_manifest_is_named(run):
    run.step("numbers", numbers, 3)
    (run.path / "numbers" / "manifest.json").write_bytes(b'{"fing')
    with pytest.raises(RunError, match=r"manifest\.json is damaged"):
        run.read("numbers")


def test_a_missing_step_names_the_notebook_and_the_command(run):
    with pytest.raises(RunError) as error:
        run.read("probes")
    assert "no finished step 'probes' yet; open notebooks/02_preference_probing.ipynb or run:" in str(error.value)
    assert str(error.value).endswith(f"workbench run {run.path / 'recipe.yaml'} --name demo")
    with pytest.raises(RunError, match="no finished step 'mine' yet; run: workbench run"):
        run.result("mine")


def test_a_step_is_finished_only_by_its_manifest(run):
    run.step("numbers", numbers, 3)
    (run.path / "numbers" / "manifest.json").unlink()
    assert not run.has("numbers") and run.steps() == []
    with pytest.raises(RunError, match="no finished step 'numbers'"):
        run.read("numbers")


def test_what_was_made_from_what_has_since_changed_is_refused(run):
    run.step("teachers", numbers, 3)
    run.step("students", halves, run.read("teachers"))
    run.step("mine", anything, dict(run.result("students")))
    assert run.read("mine")["said"].tolist() == ["done"]
    run.step("teachers", numbers, 4)
    for name, frame in (("students", "odd"), ("mine", "")):
        with pytest.raises(RunError) as error:
            run.read(name, frame)
        assert "students of run demo was made from earlier teachers; bring it up to date: open" in str(error.value)
        assert "notebooks/04_student_training.ipynb or run: workbench run" in str(error.value)
    run.step("students", halves, run.read("teachers"))
    with pytest.raises(RunError, match="mine of run demo was made from earlier students"):
        run.read("mine")
    run.step("mine", anything, dict(run.result("students")))
    assert len(run.read("mine"))


def test_what_hangs_on_a_step_that_is_gone_is_refused(run):
    run.step("teachers", numbers, 3)
    run.step("students", halves, run.read("teachers"))
    (run.path / "teachers").rename(run.path / "away")
    (run.path / "away" / "manifest.json").unlink()
    with pytest.raises(RunError, match="no finished step 'teachers' yet; open notebooks/03_teacher_alignment"):
        run.read("students", "odd")


def test_the_same_content_computed_again_leaves_what_follows_valid(run):
    run.step("teachers", numbers, 3)
    run.step("students", halves, run.read("teachers"))
    assert len(run.step("teachers", lambda n: numbers(n), 3)) == 3
    assert CALLS.count("numbers") == 2 and len(run.read("students", "odd")) == 1
    run.step("students", halves, run.read("teachers"))
    assert CALLS.count("halves") == 1


def test_two_steps_that_hold_the_same_frame_do_not_wait_for_one_another(run):
    run.step("teachers", numbers, 3)
    run.step("copy", lambda frame: frame, run.read("teachers"))
    run.step("students", halves, run.read("copy"))
    assert set(run.manifest("students")["parents"]) == {"teachers", "copy"} and len(run.read("students", "odd")) == 1


# Files


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch, call):
    path = tmp_path / "manifest.json"
    atomic_write(path, b"old")
    monkeypatch.setattr(cache.os, call, no_space)
    with pytest.raises(RunError, match=r"manifest\.json could not be written \(No space left.*free some space"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("n_written", [0, 1, 2])
def test_a_disk_that_fills_while_a_step_is_written_loses_nothing_earlier(run, monkeypatch, n_written):
    """Full when the step begins, at its frame, at its manifest."""
    run.step("numbers", numbers, 3)
    fsync, left = os.fsync, [2 * n_written]

    def fills(file):
        left[0] -= 1
        return fsync(file) if left[0] >= 0 else no_space()

    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "fsync", fills)
        with pytest.raises(RunError, match="free some space"):
            run.step("numbers", numbers, 4)
    assert len(run.read("numbers")) == 3 and run.steps() == ["numbers"]
    assert len(run.step("numbers", numbers, 4)) == 4


# Finished items


def test_items_come_back_and_are_told_apart(runs):
    items = Cache(runs / "items.sqlite")
    items.put_many("probe", {"a": {"text": "é"}, "b": {"n": 1}})
    items.put_many("draft", {"a": {"n": 2}})
    items.put_many("draft", {})
    assert items.get_many("probe", ["a", "b", "c"]) == {"a": {"text": "é"}, "b": {"n": 1}}
    assert items.get_many("draft", iter(["a", "b"])) == {"a": {"n": 2}}


def test_more_keys_than_one_query_holds(runs):
    items = Cache(runs / "items.sqlite")
    payloads = {f"k{n}": {"n": n} for n in range(1203)}
    items.put_many("probe", payloads)
    assert items.get_many("probe", payloads) == payloads


def test_a_corrupt_sqlite_file_is_named_and_can_be_renamed(run, runs):
    run.step("numbers", numbers, 3)
    items = Cache(runs / "items.sqlite")
    items.put_many("probe", {"a": {"n": 1}})
    items.close()
    items.path.write_bytes(b"not a database" * 600)
    with pytest.raises(RunError, match=r"items\.sqlite is damaged .*no finished stage is lost"):
        items.get_many("probe", ["a"])
    items.path.rename(items.path.with_suffix(".damaged"))
    assert items.get_many("probe", ["a"]) == {}
    items.put_many("probe", {"a": {"n": 2}})
    assert items.get_many("probe", ["a"]) == {"a": {"n": 2}} and len(run.read("numbers")) == 3


def test_a_page_overwritten_in_the_middle_is_an_error_not_an_answer(runs):
    items = Cache(runs / "items.sqlite")
    payloads = {f"k{n}": {"text": "x" * 200} for n in range(500)}
    items.put_many("probe", payloads)
    items.close()
    data = bytearray(items.path.read_bytes())
    data[8192:16384] = b"\xff" * 8192
    items.path.write_bytes(data)
    with pytest.raises(RunError, match="is damaged"):
        items.get_many("probe", payloads)


def test_a_row_whose_checksum_fails_is_missing_counted_and_repaired(runs):
    items = Cache(runs / "items.sqlite")
    items.put_many("probe", {"a": {"n": 1}, "b": {"n": 2}})
    with sqlite3.connect(items.path) as connection:
        connection.execute("UPDATE items SET payload = '{\"n\":7}' WHERE key = 'a'")
    connection.close()
    with pytest.warns(UserWarning, match="1 stored probe items"):
        assert items.get_many("probe", ["a", "b"]) == {"b": {"n": 2}}
    items.put_many("probe", {"a": {"n": 1}})
    assert items.get_many("probe", ["a"]) == {"a": {"n": 1}}


def test_a_full_disk_under_sqlite_keeps_the_earlier_batches(runs):
    items = Cache(runs / "items.sqlite")
    items.put_many("probe", {"a": {"n": 1}})
    items._connection.execute("PRAGMA max_page_count = 8")
    with pytest.raises(RunError, match=r"items\.sqlite could not be written .*free some space"):
        items.put_many("probe", {f"k{n}": {"text": "x" * 2000} for n in range(50)})
    assert items.get_many("probe", ["a", "k0"]) == {"a": {"n": 1}}


WRITER = """
import sys
from pathlib import Path
from workbench.runs.cache import Cache
items = Cache(Path(sys.argv[1]))
for batch in range(int(sys.argv[3])):
    items.put_many("probe", {f"{sys.argv[2]}-{batch}-{n}": {"text": "x" * 500} for n in range(100)})
    print(batch, flush=True)
"""


def writer(path, name: str, batches: int) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(path), name, str(batches)]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)


def test_two_processes_write_at_once(runs):
    path = runs / "items.sqlite"
    processes = [writer(path, name, 20) for name in ("p", "q")]
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    keys = [f"{name}-{batch}-{n}" for name in ("p", "q") for batch in range(20) for n in range(100)]
    assert len(Cache(path).get_many("probe", keys)) == 4000


def test_a_process_killed_while_writing_loses_no_earlier_batch_and_leaves_no_half_one(runs):
    path = runs / "items.sqlite"
    process = writer(path, "p", 100_000)
    for line in process.stdout:
        if int(line) == 12:
            break
    process.send_signal(signal.SIGKILL)
    reported = [12, *map(int, re.findall(r"\d+", process.communicate(timeout=60)[0]))]
    batches = [[f"p-{batch}-{n}" for n in range(100)] for batch in range(max(reported) + 3)]
    stored = [len(Cache(path).get_many("probe", keys)) for keys in batches]
    assert stored[: max(reported) + 1] == [100] * (max(reported) + 1)
    assert set(stored) <= {0, 100}


# The ledger and the table


def test_a_resumed_look_is_not_another_look(runs):
    assert [record_test_access("sha", "bbh", fp) for fp in ("a", "a", "b", "a")] == [1, 1, 2, 2]
    assert record_test_access("other", "pocket", "a") == 1
    ledger = json.loads((runs / "looks.json").read_text(encoding="utf-8"))
    assert ledger["sha"]["name"] == "bbh" and len(ledger["sha"]["looks"]) == 2


def test_a_damaged_ledger_is_never_begun_anew(runs):
    record_test_access("sha", "bbh", "a")
    (runs / "looks.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"looks\.json is damaged"):
        record_test_access("sha", "bbh", "b")


def test_the_table_of_runs(run, recipe):
    for name in ("numbers", "round-2/numbers"):
        run.step(name, numbers, 3)
    compared = {"a": "tailored", "b": "untailored", "shots": 0, "difference": 0.1, "low": 0.05, "high": 0.15}
    verdict = {"decision": "better", "primary": {"a": "tailored", "b": "untailored", "shots": 0}}
    verdict["comparisons"] = [compared | {"shots": 3, "difference": 0.9}, compared]
    (run.path / "verdict.json").write_text(json.dumps(verdict), encoding="utf-8")
    (open_run("half", recipe).path / "verdict.json").write_text("{", encoding="utf-8")
    table = runs_table().set_index("name")
    row = table.loc["demo"].to_dict()
    assert row.pop("seconds") == pytest.approx(sum(run.manifest(name)["seconds"] for name in run.steps()))
    assert row == {
        "recipe": "small",
        "steps": 2,
        "decision": "better",
        "difference": 0.1,
        "low": 0.05,
        "high": 0.15,
    }
    assert table.loc["half", "decision"] == "unreadable (RunError)"


def test_no_runs_is_an_empty_table(runs):
    assert runs_table().empty and "decision" in runs_table().columns


def test_steps_of_a_notebook_that_every_run_makes(tmp_path, monkeypatch):
    code = """
%matplotlib inline
made = work.step("first", f)
if asked:
    !ls
    work.step("only some", f)
for n in range(2):
    work.step("in a loop", f)
    if n:
        work.step("not always", f)
if names:
    work.step("either", f)
else:
    either = work.step(
        "either", g)
"""
    cells = [
        {"cell_type": "code", "source": code.splitlines(keepends=True)},
        {"cell_type": "markdown", "source": ["#"]},
    ]
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "10_own.ipynb").write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr("workbench.runs.run.project_root", lambda: tmp_path)
    assert steps_in("10_own") == ["first", "only some", "in a loop", "not always", "either"]
    assert steps_in("10_own", always=True) == ["first", "in a loop", "either"] and steps_in("none") == []
