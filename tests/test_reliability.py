"""What once fell: files believed unchecked, two runs of one name, keys in files; see docs/reliability.md."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from conftest import PROJECT
from test_run import numbers

from workbench.cli.main import main
from workbench.models import loading
from workbench.notebook.watch import look
from workbench.runs import cache, progress, schemas
from workbench.runs.cache import LOCK, Cache, read_json, temporary_folder, write_json
from workbench.runs.errors import RunError, redact
from workbench.runs.identity import file_sha256
from workbench.runs.recipe_file import load_recipe
from workbench.runs.run import hold, open_run

KEY = 'sk-planted/7d41f0 "é'
VERDICT = {"decision": "undecided", "student": "s", "models": "pocket", "warnings": [], "primary": {}}
VERDICT |= {"comparisons": []}
WAITS = """
import sys
from pathlib import Path
from workbench.runs.cache import held
with held(Path(sys.argv[1]), "Run demo"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(runs, recipe):
    yield open_run("demo", recipe)
    progress.end()


@pytest.fixture
def holder():
    """Start a process that holds a lock until its input ends."""
    started = []

    def start(path) -> subprocess.Popen:
        command = [sys.executable, "-c", WAITS, str(path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=PROJECT, text=True, **pipes))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


# Files that are read back


def test_a_verdict_edited_by_hand_is_not_believed(run):
    write_json(run.path / "verdict.json", VERDICT)
    assert run.verdict == VERDICT
    text = (run.path / "verdict.json").read_text()
    (run.path / "verdict.json").write_text(text.replace("undecided", "better"))
    with pytest.raises(RunError, match=r"verdict\.json is damaged \(it is not what was written.*rename it"):
        _ = run.verdict


def test_a_recipe_edited_in_the_folder_of_a_run_is_refused_with_its_difference(run, recipe):
    path = run.path / "recipe.yaml"
    text = path.read_text()
    path.write_text(edited := text.replace("beta: 0.1", "beta: 0.2"))
    assert open_run("demo").recipe.alignment.beta == 0.2, "nothing is made from it yet"
    run.step("numbers", numbers, 3)
    for given in (None, recipe, load_recipe(str(path))):
        with pytest.raises(RunError, match=r"recipe\.yaml was edited .* undo: alignment\.beta 0\.1 -> 0\.2; or give"):
            open_run("demo", given)
    assert path.read_text() == edited and open_run("other", load_recipe(str(path))).recipe.alignment.beta == 0.2
    path.write_text(f"# read it\n{text}")
    assert open_run("demo").recipe == open_run("demo", run.recipe).recipe == run.recipe
    parts = run.recipe.alignment.model_copy(update={"micro_batch_size": 2})
    limited = run.recipe.model_copy(update={"alignment": parts})
    assert open_run("demo", limited).recipe == open_run("demo").recipe == limited, "a limit may be set under way"
    (run.path / "recipe.json").unlink()
    path.write_text(edited)
    assert open_run("demo").recipe.alignment.beta == 0.2, "an earlier workbench kept none"


@pytest.mark.parametrize("text", ["null", "[]", "3", '"a"', "{", "", "{}", '{"decision": 3}', "[" * 100_000])
@pytest.mark.parametrize("name", ["verdict.json", "numbers/manifest.json", "../looks.json"])
def test_json_of_another_shape_is_damage_and_said_so(run, text, name):
    run.step("numbers", numbers, 3)
    path = run.path / name
    path.write_text(text)
    with pytest.raises(RunError, match="is damaged") as error:
        if name == "verdict.json":
            _ = run.verdict
        elif "looks" in name and text != "{}":
            cache.record_test_access("sha", "bbh", "a")
        else:
            read_json(path, schemas.Manifest)
    assert path.name in str(error.value) and "rename it" in str(error.value) and "\n" not in str(error.value)


def test_what_an_earlier_workbench_wrote_without_a_checksum_is_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(VERDICT))
    assert read_json(tmp_path / "a.json", schemas.Verdict) == VERDICT and read_json(tmp_path / "b.json") == {}


@pytest.mark.parametrize(
    "values", [{}, {"a": {"b": [1, 2.5e-7, None, "é\u2028"]}}, {"n": 0.1 + 0.2, "x": float("nan")}]
)
def test_what_is_written_reads_back(tmp_path, values):
    write_json(tmp_path / "a.json", values)
    assert repr(read_json(tmp_path / "a.json")) == repr(values)


@pytest.mark.parametrize("text", ["{}", "[]", "null", "{", '{"main": true}', '{"main": 1, "at": "now", "jobs": 3}'])
def test_a_sign_of_life_of_another_shape_is_left_out(run, text):
    (run.path / "drafts" / progress.FOLDER).mkdir(parents=True)
    (run.path / "drafts" / progress.FOLDER / "1.json").write_text(text)
    assert progress.read(run.path / "drafts") == []


def test_whatever_lies_in_a_steps_folder_has_its_checksum(run):
    def leaves_a_model(folder) -> pd.DataFrame:
        (folder / "m" / "sub").mkdir(parents=True)
        (folder / "m" / "sub" / "weights").write_text("w")
        return numbers(2)

    run.step("teachers", leaves_a_model)
    assert run.manifest("teachers")["others"] == {"m/sub/weights": file_sha256(run.path / "teachers/m/sub/weights")}


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_another(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"a" * 100)
    os.utime(path, (1, 1))
    for wait_s, letter in ((0, b"b"), (1.1, b"c")):
        time.sleep(wait_s)
        before = file_sha256(path), file_sha256(path)
        path.write_bytes(letter * 100)
        os.utime(path, (1, 1))
        assert file_sha256(path) not in before


NO_ROOM = "[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory"), RuntimeError(NO_ROOM)]
)
def test_too_little_memory_is_said_whoever_notices_it(run, error, monkeypatch, capsys):
    def too_large(*_) -> pd.DataFrame:
        raise error

    with pytest.raises(
        RunError, match="^There is not enough memory, nothing earlier is lost; end other programs, or lower"
    ):
        run.step("numbers", too_large)
    assert len(run.step("numbers", numbers, 3)) == 3
    monkeypatch.setattr(loading, "load_tokenizer", too_large)
    with pytest.raises(type(error)):
        loading.load("data/pocket/teacher")  # and not that the folder is damaged
    monkeypatch.setattr("workbench.runs.run.runs_table", too_large)
    assert main(["runs"]) == 1 and "workbench: There is not enough memory" in capsys.readouterr().err


def test_a_limit_on_memory_is_said_to_be_one(tmp_path):
    items = Cache(tmp_path / "items.sqlite")
    items.put_many("probe", {"a": {"n": 1}})
    items.close()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1_000_000, limits[1]))  # less than there is: nothing more is given
    try:
        with pytest.raises(RunError, match="^There is not enough memory"):
            items.get_many("probe", ["a"])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert items.get_many("probe", ["a"]) == {"a": {"n": 1}}


# Two at once


def test_the_second_run_of_a_name_is_refused_and_told_who_holds_it(run, runs, holder):
    process = holder(run.path / LOCK)
    for work in (lambda: run.step("numbers", numbers, 3), hold("demo").__enter__):
        with pytest.raises(RunError, match=rf"Run demo is in use by process {process.pid} on .* since 20.*--wait"):
            work()
    assert not (run.path / "numbers").exists()


def test_the_second_run_of_a_name_waits_when_told_to(run, holder, capsys):
    process = holder(run.path / LOCK)
    before = time.monotonic()
    subprocess.Popen(["sleep", "1"]).wait()
    process.stdin.close()
    with hold("demo", wait=True):
        assert time.monotonic() - before < 30
    assert len(run.step("numbers", numbers, 3)) == 3


def test_the_lock_of_a_dead_process_is_taken_over(run, holder):
    process = holder(run.path / LOCK)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert str(process.pid) in (run.path / LOCK).read_text()
    with hold("demo"):
        assert str(os.getpid()) in (run.path / LOCK).read_text()
        assert len(run.step("numbers", numbers, 3)) == 3, "held by this process, so free for its steps"


def test_what_a_process_holds_is_free_for_those_it_started(run):
    with hold("demo"):
        child = [sys.executable, "-c", "from workbench.runs.run import hold\nwith hold('demo'): print('in')"]
        assert subprocess.run(child, cwd=PROJECT, capture_output=True, text=True).stdout == "in\n"


@pytest.mark.parametrize("name", ["items.sqlite", "items.sqlite-wal", "ITEMS.sqlite-shm", "looks.json", "looks.lock"])
def test_a_run_cannot_be_called_as_the_files_that_all_runs_share(runs, recipe, name):
    with pytest.raises(RunError, match="all runs share.*choose another"):
        open_run(name, recipe)
    assert not runs.exists()


def test_what_killed_processes_left_in_the_temporary_folder_goes(tmp_path, monkeypatch, holder):
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cache, "LEFT_S", 0)
    dead, alive, foreign = (tmp_path / f"workbench-{name}" for name in ("dead", "alive", "foreign"))
    for folder in (dead, alive, foreign):
        folder.mkdir()
    process = holder(dead / LOCK)
    process.kill()
    process.wait()
    holder(alive / LOCK)
    with temporary_folder() as folder, temporary_folder() as other:
        assert {path.name for path in tmp_path.iterdir()} == {folder.name, other.name, alive.name, foreign.name}
    assert {path.name for path in tmp_path.iterdir()} == {alive.name, foreign.name}


# Keys


@pytest.mark.parametrize("line_end", ["", "\n", "\r\n", "\r"])
def test_a_key_is_redacted_in_every_form_in_all_that_is_written(run, runs, monkeypatch, line_end):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + line_end)
    forms = [KEY, repr(KEY), repr(KEY.encode()), json.dumps(KEY), "sk-planted%2F7d41f0%20%22%C3%A9", str([KEY])]
    for form in forms:
        assert "7d41f0" not in redact(f"a {form} b") and redact(f"a {form} b")[:2] == "a "
    said = " ".join(forms)
    write_json(run.path / "a.json", {"said": said, said: 1})
    Cache(runs / "items.sqlite").put_many("completion", {"k": {"text": said, "model": KEY}})
    with pytest.raises(ValueError, match="sk-planted"):
        run.step("drafts", fails, said)
    files = [path for path in runs.rglob("*") if path.is_file()]
    assert len(files) >= 5 and not [path for path in files if b"7d41f0" in path.read_bytes()]


def fails(said: str) -> pd.DataFrame:
    raise ValueError(said)


def test_a_word_that_any_text_may_have_is_no_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    assert redact("an EMPTY set") == "an EMPTY set"


# Watched and checked


def test_looking_at_a_run_opens_no_database(run, runs, monkeypatch):
    Cache(runs / "items.sqlite").put_many("probe", {"a": {"n": 1}})
    run.step("numbers", numbers, 2)
    monkeypatch.setattr(cache.Database, "_do", lambda *_: pytest.fail("a database was opened"))
    assert look(run).state == "between steps"


def leaves_a_model(folder) -> pd.DataFrame:
    (folder / "m").mkdir()
    (folder / "m" / "model.safetensors").write_bytes(bytes(1000))
    return numbers(2)


def break_json(path) -> None:
    path.write_text(path.read_text().replace("2", "3", 1))


DAMAGE = {
    "numbers/numbers.parquet": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "numbers/manifest.json": break_json,
    "teachers/m/model.safetensors": lambda path: path.write_bytes(bytes(999) + b"x"),
    "verdict.json": lambda path: path.write_text(path.read_text().replace("undecided", "better")),
    "../looks.json": break_json,
    "../items.sqlite": lambda path: path.write_bytes(b"no database" * 500),
    "reviews.sqlite": lambda path: path.write_bytes(b"no database" * 500),
}


@pytest.mark.parametrize("name", ["", *DAMAGE, "teachers/m/model.safetensors gone"])
def test_check_finds_what_is_damaged_and_says_what_to_do(run, runs, name, capsys):
    run.step("numbers", numbers, 2)
    run.step("teachers", leaves_a_model)
    write_json(run.path / "verdict.json", VERDICT)
    cache.record_test_access("2", "bbh", "a")
    items = Cache(runs / "items.sqlite")
    items.put_many("probe", {"a": {"n": 1}})
    items.close()
    path = run.path / name.removesuffix(" gone")
    if name:
        path.unlink() if name.endswith("gone") else DAMAGE[name](path)
    before = {file: file.read_bytes() for file in runs.rglob("*") if file.is_file() and "sqlite" not in file.name}
    status, said = main(["check", "demo"]), capsys.readouterr().out
    assert status == (1 if name else 0), said
    damaged = name.partition("/")[0] if name[:1] in ("n", "t") else ""
    assert f"whole: {', '.join(sorted({'numbers', 'teachers'} - {damaged}))}\n" in said
    assert not name or path.name in said.partition("whole:")[0]
    assert "made anew by the next run: questions, drafts" in said and (damaged in said)
    assert before == {file: file.read_bytes() for file in before}, "it changes nothing"
