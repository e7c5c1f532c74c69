"""A run watched from outside: while it lives, when it is killed, when it stops with an error, and when it is done."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pandas as pd
import pytest
from conftest import PROJECT

from workbench import methods
from workbench.cli.main import DONE, FAILED, main
from workbench.notebook import watch
from workbench.notebook.watch import look, spark_lines, visible
from workbench.runs import progress
from workbench.runs.recipe_file import load_recipe
from workbench.runs.run import NEXT, Step, open_run, steps_in

EVIL = "\x1b[31m<img src=x onerror=alert(1)>\u202egpj\x07\r"
# Drafts for real and stops for ever after the second batch, so that there is somebody to kill.
DRAFTING = """
import time
from workbench.runs import progress as heartbeat
from workbench.runs.cache import Cache, runs_folder
heartbeat.EVERY_S = 0
put, calls = Cache.put_many, []
def once_more(self, *arguments):
    put(self, *arguments)
    calls.append(1)
    if len(calls) == 2:
        (runs_folder() / "hangs").touch()
        time.sleep(600)
Cache.put_many = once_more
from notebook_steps import compute
from workbench.runs.run import open_run
compute("drafting", open_run("watched"))
"""


@pytest.fixture
def work(runs):
    overrides = {"drafting.n_questions": "4", "tasks.names": "[web_of_lies]", "compute.workers": "1"}
    return open_run("watched", load_recipe("arte-demo", overrides))


@pytest.fixture
def begun(work, monkeypatch):
    """The run with its first step begun in this process."""
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    begin(work, "questions")
    yield work
    progress.end()


def begin(work, step: str):
    folder = Step(work, step).begin("f" * 16)
    progress.begin(folder)
    return folder


def things(n: int) -> dict[str, pd.DataFrame]:
    return {"things": pd.DataFrame({"n_tokens": [5] * n})}


def finish(work, *steps: str) -> None:
    for step in steps:
        work.step(step, things, 3)


def written(now) -> str:
    out = io.StringIO()
    now.write(out)
    return out.getvalue()


def row_of(now, step: str) -> pd.Series:
    return now.steps.set_index("step").loc[step]


def wait_for(what, seconds: float = 120):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.2)
    raise AssertionError("waited in vain")


def test_a_run_that_is_killed_is_said_to_be_gone_and_how_to_go_on(work, runs, capsys):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])}
    process = subprocess.Popen([sys.executable, "-c", DRAFTING], env=env, cwd=PROJECT, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: (runs / "hangs").exists() or process.poll() is not None)
        now = look(work)
        assert now.state == "working", process.stderr.read() if process.poll() is not None else now
        (row,) = now.steps[now.steps["state"] == "working"].to_dict("records")
        assert row["items"].endswith(" items") and row["tokens"]
        assert row["rate"].endswith("a second") and now.texts and now.doing
        assert main(["watch", "watched"]) == DONE
        assert f"{row['step']} is being computed" in capsys.readouterr().out
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    now = look(work, time.time() + 30)
    assert now.state == "gone" and not now.doing and now.texts
    (age,) = (int(word) for word in now.said.split() if word.isdigit() and int(word) < 1000)
    assert 30 <= age < 600 and f"process {process.pid}" in now.said
    assert now.said.endswith(f"to go on: workbench run {work.path / 'recipe.yaml'} --name watched")
    assert main(["watch", "watched"]) == FAILED
    assert "no sign of life for" in capsys.readouterr().out


def test_every_state_has_its_words(work):
    assert look(work).state == "not begun" and "begin with: workbench run" in look(work).said
    finish(work, "questions")
    assert look(work).state == "between steps"
    assert "questions is finished, drafts has not begun; to go on: workbench run" in look(work).said
    drafts = begin(work, "drafts")
    assert look(work).state == "working" and look(work).steps["state"].tolist()[:2] == ["finished", "working"]
    assert row_of(look(work), "questions")[["items", "tokens"]].tolist() == ["3 things", "15"]
    late = look(work, time.time() + 100)
    assert late.state == "silent" and "though process" in late.said and "of drafts for 100 s" in late.said
    with pytest.raises(ValueError, match="^no "), progress.of(drafts, nullcontext()):
        raise ValueError(f"no {EVIL}")
    stopped = look(work)
    assert stopped.state == "stopped" and "Finished items are kept" in stopped.said and "\x1b" not in stopped.said
    finish(work, *watch.expected_steps(work))
    assert look(work).state == "finished" and set(look(work).steps["state"]) == {"finished"}


def test_there_is_a_row_for_every_step_of_the_methods_notebooks_and_of_ones_own(work, monkeypatch):
    of_first, of_other = (
        [step for name in method.notebooks for step in steps_in(name)] for method in list(methods.ALL.values())[:2]
    )
    finish(work, "round-2/scores")
    assert look(work).steps["step"].tolist() == [*of_first, "round-2/scores"]
    assert {"drafts", "signals", "teachers", "predictions"} <= {*of_first} & {*of_other} and of_first != of_other
    monkeypatch.setitem(methods.ALL, work.recipe.method, list(methods.ALL.values())[1])
    assert look(work).steps["step"].tolist() == [*of_other, "round-2/scores"]


def test_a_step_that_is_computed_again_is_at_work_until_the_new_one_is_whole(begun):
    progress.end()
    finish(begun, *watch.expected_steps(begun))
    assert begin(begun, "pairs").name == f"pairs{NEXT}"
    now = look(begun)
    assert now.state == "working" and now.said.startswith("pairs is being computed")
    assert row_of(now, "pairs")["state"] == "working" and not now.steps["step"].duplicated().any()


def test_work_that_was_stopped_and_is_no_longer_wanted_is_no_news(begun):
    progress.end()
    finish(begun, *watch.expected_steps(begun))
    with pytest.raises(ValueError, match="no such luck"):
        begun.step("pairs", breaks)
    assert look(begun).state == "stopped"
    finish(begun, "pairs")
    assert look(begun).state == "finished"


def breaks() -> pd.DataFrame:
    raise ValueError("no such luck")


def not_as_described() -> pd.DataFrame:
    return pd.DataFrame({"draft_id": [1]})


@pytest.mark.parametrize(
    ("function", "said"),
    [(breaks, "ValueError: no such luck"), (not_as_described, "DataError: The frame 'drafts' breaks")],
)
def test_a_cell_that_stops_says_so_though_its_kernel_lives(work, function, said):
    with pytest.raises(ValueError, match=said.partition(": ")[2]):
        work.step("drafts", function)
    now = look(work)
    assert now.state == "stopped" and f"drafts was stopped ({said}" in now.said


def test_items_are_counted_and_half_trained_models_count_as_halves(begun):
    progress.found(5)
    progress.made([{"text": "a", "n_tokens": 3}] * 4)
    (sign,) = progress.read(begun.path / "questions")
    row = row_of(look(begun, sign["began"] + 10), "questions")
    assert row[["items", "rate", "time left", "tokens"]].tolist() == ["9 items", "0.4 a second", "", "12"]
    progress.end()
    begin(begun, "students")
    progress.jobs("training", 1, 4)
    progress.steps("x", 5, 10)
    (sign,) = progress.read(begun.path / "students")
    row = row_of(look(begun, sign["began"] + 30), "students")
    assert row["items"] == "1 of 4 jobs" and row["time left"] == "about 50 s"


def test_a_model_in_training_has_a_spark_line_for_each_metric(begun):
    progress.steps("s-tailored", 1, 9, {"rewards/margins": 0.25, "loss": float("nan"), "epoch": 1})
    progress.steps("s-tailored", 2, 9, {"rewards/margins": 0.5, "loss": 0.7})
    now = look(begun)
    assert now.curve[1].startswith("loss, s-tailored: 0.7 to 0.7 in 2 steps") and len(now.curve) == 2
    assert "rewards/margins, s-tailored: 0.25 to 0.5 in 2 steps  ▁█" in written(now)
    assert now.doing == ["starting, step 2 of 9"]


def test_spark_lines_show_a_fall_as_a_fall():
    (line,) = spark_lines("s-tailored", [(step, "loss", 2.0 - step / 100) for step in range(101)])
    assert line.startswith("loss, s-tailored: 2 to 1 in 100 steps  █") and line.endswith("▁")
    assert len(line.rpartition(" ")[2]) <= watch.SPARK_POINTS


def test_what_a_model_wrote_acts_on_no_terminal(begun):
    progress.made([{"text": EVIL * 50, "n_tokens": 1}])
    now = look(begun)
    said = written(now)
    assert all(letter.isprintable() or letter == "\n" for letter in said)
    assert all(len(line) < 130 for line in said.partition("Last written:")[2].splitlines())
    assert visible("a\x1b[31mb\n\u202ec\u200b", 20) == "a [31mb c"


def test_on_a_terminal_a_text_keeps_to_its_line_and_no_count_is_a_zero(begun, monkeypatch):
    progress.made([{"text": "a long text " * 50, "n_tokens": 1}])
    progress.end()
    begun.step("pairs", lambda: {"things": pd.DataFrame({"x": [1]})})
    monkeypatch.setenv("COLUMNS", "72")
    screen = io.StringIO()
    screen.isatty = lambda: True
    look(begun).write(screen)
    assert max(map(len, re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue()).splitlines()[2:])) <= 72
    assert row_of(look(begun), "pairs")["tokens"] == ""


def test_a_terminal_is_redrawn_until_the_run_is_finished(begun, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True

    def meanwhile(_):
        progress.end()
        finish(begun, *watch.expected_steps(begun))

    monkeypatch.setattr(watch.time, "sleep", meanwhile)
    assert watch.watch("watched", screen) is True
    first, second = screen.getvalue().split("\x1b[2J\x1b[H")[1:]
    assert "Ctrl-C stops watching" in first and "all steps are finished" in second


def test_ctrl_c_leaves_the_run_alone(begun, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    before = progress.read(begun.path / "questions")
    monkeypatch.setattr(watch, "look", interrupted)
    assert main(["watch", "watched"]) == DONE
    assert "the run was left alone" in capsys.readouterr().out
    assert progress.read(begun.path / "questions") == before


def test_a_run_that_is_not_there_is_refused(runs, capsys):
    assert main(["watch", "nobody"]) == FAILED
    assert "There is no run 'nobody'" in capsys.readouterr().err
