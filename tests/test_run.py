import errno
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

from workbench.runs import cache, schemas
from workbench.runs import run as run_module
from workbench.runs.cache import Cache, StoreError, atomic_write, record_test_access
from workbench.runs.recipe import Recipe
from workbench.runs.run import open_run, runs_table


@pytest.fixture
def run(runs, recipe):
    return open_run("demo", recipe)


def curve(*values: float) -> pd.DataFrame:
    row = {"stage": "drafting", "arm": "tailored", "student": "s", "seed": 0, "metric": "loss"}
    return schemas.build([row | {"step": step, "value": value} for step, value in enumerate(values)], "curve")


def finish(run, name: str, inputs: dict, **parents: str):
    stage = run.stage(name)
    fp = stage.fingerprint(inputs)
    assert not stage.finished(fp)
    stage.write("curve", curve(1.0, 0.5))
    stage.finish(fp, counts={"curve": 2}, seconds=1.5, tokens=20, parents=parents)
    return stage


# Runs


def test_a_run_keeps_its_recipe(run, recipe):
    assert open_run("demo").recipe == recipe and open_run("demo", recipe).path == run.path


def test_a_run_refused_before_any_work_takes_the_mended_recipe(run, recipe_values):
    (run.path / "reports").mkdir()
    recipe_values["alignment"]["beta"] = 0.2
    assert open_run("demo", Recipe.model_validate(recipe_values)).recipe.alignment.beta == 0.2
    assert open_run("demo").recipe.alignment.beta == 0.2


def test_another_recipe_is_refused_with_the_difference(run, recipe_values):
    run.stage("drafting").path.mkdir()
    recipe_values["alignment"]["beta"] = 0.2
    recipe_values["models"]["students"]["mover"] = "data/pocket/mover"
    with pytest.raises(StoreError) as error:
        open_run("demo", Recipe.model_validate(recipe_values))
    assert "alignment.beta 0.1 -> 0.2" in str(error.value) and "take another --name" in str(error.value)
    assert "models.students.mover absent -> data/pocket/mover" in str(error.value)
    assert "learning_rate" not in str(error.value)
    assert open_run("demo").recipe.alignment.beta == 0.1


def test_an_unknown_run_names_the_known_ones(run):
    with pytest.raises(StoreError, match=r"no run 'dmeo' \(there are: demo\); begin it with: workbench run"):
        open_run("dmeo")


@pytest.mark.parametrize("name", ["", "../demo", "a/b", ".hidden"])
def test_a_name_that_is_no_folder_name_is_refused(runs, recipe, name):
    with pytest.raises(StoreError, match="choose another"):
        open_run(name, recipe)


# Stages


def test_a_stage_is_finished_only_by_its_manifest(run, capsys):
    stage = run.stage("drafting")
    fp = stage.fingerprint({"model": "a"})
    assert not stage.finished(fp)
    stage.write("curve", curve(1.0))
    assert not stage.finished(fp) and (stage.path / "curve.parquet").exists()
    with pytest.raises(StoreError, match="no finished drafting"):
        stage.read("curve")
    stage.finish(fp, counts={"drafts": 120}, seconds=2, tokens=30, parents={})
    assert stage.finished(fp)
    assert f"reusing 120 drafts from run demo (fingerprint {fp[:4]}...)" in capsys.readouterr().out
    pd.testing.assert_frame_equal(stage.read("curve"), curve(1.0))


def test_the_manifest_says_where_the_result_came_from(run):
    stage = finish(run, "drafting", {"model": "a"}, teacher="f00d")
    manifest = stage.manifest
    assert manifest["parents"] == {"teacher": "f00d"} and manifest["seeds"] == [0, 1]
    assert manifest["recipe"]["alignment"]["beta"] == 0.1 and manifest["versions"]["trl"]
    assert manifest["files"] == {"curve": run_module.file_sha256(stage.path / "curve.parquet")}
    timings = json.loads((run.path / "timings.json").read_text(encoding="utf-8"))
    assert timings == {"drafting": {"seconds": 1.5, "tokens": 20}}


def test_equal_frames_are_equal_files(run, recipe):
    other = open_run("other", recipe)
    written = [finish(r, "drafting", {}).path / "curve.parquet" for r in (run, other)]
    assert written[0].read_bytes() == written[1].read_bytes()


def test_a_stage_of_other_inputs_is_moved_aside_not_deleted(run):
    first = finish(run, "drafting", {"model": "a"}).manifest["fingerprint"]
    for model in ("b", "a", "c"):
        finish(run, "drafting", {"model": model})
    aside = sorted(path.name for path in run.path.glob("drafting.superseded-*"))
    assert len(aside) == 3 and {f"drafting.superseded-{first[:8]}", f"drafting.superseded-{first[:8]}-2"} < set(aside)
    assert all((run.path / name / "curve.parquet").is_file() for name in aside)


def test_partial_work_stays_for_the_same_inputs_and_leaves_for_others(run):
    stage = run.stage("training")
    stage.finished(stage.fingerprint({"model": "a"}))
    (stage.path / "checkpoint").mkdir()
    stage.finished(stage.fingerprint({"model": "a"}))
    assert (stage.path / "checkpoint").is_dir()
    stage.finished(stage.fingerprint({"model": "b"}))
    assert not (stage.path / "checkpoint").exists()
    assert len(list(run.path.glob("training.superseded-*/checkpoint"))) == 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is not what its manifest describes"),
        (lambda path: path.write_bytes(b"PAR1"), "is not what its manifest describes"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_a_corrupt_parquet_file_is_named_with_the_fix(run, damage, says):
    stage = finish(run, "drafting", {})
    damage(stage.path / "curve.parquet")
    with pytest.raises(StoreError) as error:
        stage.read("curve")
    assert "curve.parquet" in str(error.value) and says in str(error.value)
    assert "rename the folder" in str(error.value) and "--to drafting" in str(error.value)


def test_a_corrupt_manifest_is_named(run):
    stage = finish(run, "drafting", {})
    (stage.path / "manifest.json").write_bytes(b'{"fing')
    with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
        stage.read("curve")


def test_a_frame_that_breaks_its_schema_is_not_stored(run):
    stage = run.stage("drafting")
    with pytest.raises(schemas.RecordError):
        stage.write("curve", curve(1.0).assign(step=0.5))
    assert not stage.path.exists()


def test_a_missing_upstream_names_the_notebook_and_the_command(run):
    with pytest.raises(StoreError) as error:
        run.stage("probing").require("drafting")
    assert "notebooks/01_drafting.ipynb" in str(error.value) and "--name demo --to drafting" in str(error.value)


def test_an_upstream_built_from_what_has_since_changed_is_refused(run):
    drafting = finish(run, "drafting", {"model": "a"})
    finish(run, "probing", {}, drafting=drafting.manifest["fingerprint"])
    assert run.stage("alignment").require("probing").read("curve").shape[0] == 2
    finish(run, "drafting", {"model": "b"})
    with pytest.raises(StoreError, match=r"probing of run demo was built from an earlier drafting.*02_preference"):
        run.stage("alignment").require("probing")


def test_an_unknown_stage_is_refused(run):
    with pytest.raises(StoreError, match="no stage 'probe'; the stages are drafting, probing"):
        run.stage("probe")


# Files


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch, call):
    path = tmp_path / "manifest.json"
    atomic_write(path, b"old")
    monkeypatch.setattr(cache.os, call, no_space)
    with pytest.raises(StoreError, match=r"manifest\.json could not be written \(No space left.*free some space"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_while_a_stage_is_written_loses_nothing_earlier(run, monkeypatch):
    drafting = finish(run, "drafting", {})
    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "fsync", no_space)
        with pytest.raises(StoreError, match="free some space"):
            finish(run, "probing", {}, drafting=drafting.manifest["fingerprint"])
    assert drafting.read("curve").shape[0] == 2 and not run.stage("probing").manifest
    finish(run, "probing", {}, drafting=drafting.manifest["fingerprint"])


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


def test_a_corrupt_sqlite_file_is_named_and_can_be_renamed(run):
    finish(run, "drafting", {})
    run.items.put_many("probe", {"a": {"n": 1}})
    run.items.close()
    path = run.items.path
    path.write_bytes(b"not a database" * 600)
    with pytest.raises(StoreError, match=r"items\.sqlite is damaged .*no finished stage is lost"):
        run.items.get_many("probe", ["a"])
    path.rename(path.with_suffix(".damaged"))
    assert run.items.get_many("probe", ["a"]) == {}
    run.items.put_many("probe", {"a": {"n": 2}})
    assert run.items.get_many("probe", ["a"]) == {"a": {"n": 2}} and run.stage("drafting").read("curve").shape[0] == 2


def test_a_page_overwritten_in_the_middle_is_an_error_not_an_answer(runs):
    items = Cache(runs / "items.sqlite")
    payloads = {f"k{n}": {"text": "x" * 200} for n in range(500)}
    items.put_many("probe", payloads)
    items.close()
    data = bytearray(items.path.read_bytes())
    data[8192:16384] = b"\xff" * 8192
    items.path.write_bytes(data)
    with pytest.raises(StoreError, match="is damaged"):
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
    with pytest.raises(StoreError, match=r"items\.sqlite could not be written .*free some space"):
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
    with pytest.raises(StoreError, match=r"looks\.json is damaged"):
        record_test_access("sha", "bbh", "b")


def test_the_table_of_runs(run, recipe):
    finish(run, "drafting", {})
    compared = {"a": "tailored", "b": "untailored", "shots": 0, "difference": 0.1, "low": 0.05, "high": 0.15}
    verdict = {"decision": "better", "primary": {"a": "tailored", "b": "untailored", "shots": 0}}
    verdict["comparisons"] = [compared | {"shots": 3, "difference": 0.9}, compared]
    (run.path / "verdict.json").write_text(json.dumps(verdict), encoding="utf-8")
    (open_run("half", recipe).path / "verdict.json").write_text("{", encoding="utf-8")
    table = runs_table().set_index("name")
    assert table.loc["demo"].to_dict() == {
        "recipe": "small",
        "stages": "drafting",
        "decision": "better",
        "difference": 0.1,
        "low": 0.05,
        "high": 0.15,
        "seconds": 1.5,
    }
    assert table.loc["half", "decision"] == "unreadable (StoreError)"


def test_no_runs_is_an_empty_table(runs):
    assert runs_table().empty and "decision" in runs_table().columns
