"""A run watched from outside: while it lives, when it is killed, when it stops with an error, and when it is done."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from conftest import PROJECT

from workbench.cli.main import DONE, FAILED, main
from workbench.notebook import watch
from workbench.notebook.session import record_status
from workbench.notebook.watch import RunMonitor, look, spark_lines, visible
from workbench.runs import progress
from workbench.runs.cache import StoreError
from workbench.runs.recipe_file import load_recipe
from workbench.runs.run import NOTEBOOKS, open_run

EVIL = "\x1b[31m<img src=x onerror=alert(1)>\u202egpj\x07\r"
# Drafts for real and stops for ever after the second batch, so that there is somebody to kill.
DRAFTING = """
import time
from workbench.runs import progress as heartbeat
from workbench.runs.cache import Cache
heartbeat.EVERY_S = 0
put, calls = Cache.put_many, []
def once_more(self, *arguments):
    put(self, *arguments)
    calls.append(1)
    if len(calls) == 2:
        time.sleep(600)
Cache.put_many = once_more
from workbench.loop.drafting import draft
from workbench.runs.run import open_run
draft(open_run("watched"))
"""


@pytest.fixture
def work(runs):
    overrides = {"drafting.n_questions": "4", "tasks.names": "[web_of_lies]", "compute.workers": "1"}
    return open_run("watched", load_recipe("arte-demo", overrides))


@pytest.fixture
def begun(work, monkeypatch):
    """The run with its drafting begun in this process."""
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    work.stage("drafting").finished("f" * 16)
    yield work
    progress.end()


def finish(work, stage: str) -> None:
    work.stage(stage).finished("f" * 16)
    work.stage(stage).finish("f" * 16, {"things": 3}, 2.0, 10, {})


def wait_for(what, seconds: float = 120):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.2)
    raise AssertionError("waited in vain")


def test_a_run_that_is_killed_is_said_to_be_gone_and_how_to_go_on(work, capsys):
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen([sys.executable, "-c", DRAFTING], env=env, cwd=PROJECT, stderr=subprocess.PIPE)
    try:
        signs = lambda: [sign for sign in progress.read(work.path / "drafting") if sign["texts"]]  # noqa: E731
        wait_for(lambda: signs() or process.poll() is not None)
        now = look(work)
        assert now.state == "working", process.stderr.read() if process.poll() is not None else now
        row = now.stages.set_index("stage").loc["drafting"]
        assert row["items"].endswith(f"of about {watch.n_items(work.recipe, 'drafting')}") and row["tokens"]
        assert row["rate"].endswith("a second") and now.texts and now.doing
        assert main(["watch", "watched", "--once"]) == DONE
        assert "drafting is being computed" in capsys.readouterr().out
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
    finish(work, "drafting")
    assert look(work).state == "between stages" and "probing has not begun" in look(work).said
    work.stage("probing").finished("f" * 16)
    assert look(work).state == "working" and look(work).stages["state"].tolist()[:2] == ["finished", "working"]
    late = look(work, time.time() + 100)
    assert late.state == "silent" and "though process" in late.said and "for 100 s" in late.said
    record_status(work.path / "metrics.json", NOTEBOOKS["probing"], {"status": "failed", "error": f"no {EVIL}"})
    stopped = look(work)
    assert stopped.state == "stopped" and "Finished items are kept" in stopped.said and "\x1b" not in stopped.said
    progress.end()
    for stage in NOTEBOOKS:
        finish(work, stage)
    assert look(work).state == "finished" and set(look(work).stages["state"]) == {"finished"}


def test_an_error_of_an_earlier_try_is_not_taken_for_one_of_this(work):
    record_status(work.path / "metrics.json", NOTEBOOKS["drafting"], {"status": "failed", "error": "disk full"})
    old = time.time() - 60
    os.utime(work.path / "metrics.json", (old, old))
    work.stage("drafting").finished("f" * 16)
    assert look(work).state == "working"
    progress.end()


def test_a_cell_that_stops_says_so_though_its_kernel_lives(begun):
    from workbench.notebook import display

    with pytest.raises(ValueError, match="no such luck"), display.watch(begun, "drafting"):
        raise ValueError("no such luck")
    now = look(begun)
    assert now.state == "stopped" and "ValueError: no such luck" in now.said


def test_time_left_comes_from_new_items_and_half_trained_models_count_as_halves(begun, monkeypatch):
    total = watch.n_items(begun.recipe, "drafting")
    progress.found(total // 2)
    progress.made([{"text": "a", "n_tokens": 3}] * (total // 4))
    (sign,) = progress.read(begun.path / "drafting")
    row = look(begun, sign["began"] + 10).stages.iloc[0]
    left = (total - total // 2 - total // 4) / (total // 4) * 10
    assert row["time left"] == f"about {left:.0f} s" and row["tokens"] == f"{3 * (total // 4):,}"
    progress.end()
    begun.stage("training").finished("f" * 16)
    progress.jobs("training", 1, 4)
    progress.steps("x", 5, 10)
    (sign,) = progress.read(begun.path / "training")
    row = look(begun, sign["began"] + 30).stages.set_index("stage").loc["training"]
    assert row["items"] == "1 of 4 jobs" and row["time left"] == "about 50 s"


def test_the_curve_joins_finished_models_and_those_in_training(begun):
    progress.end()
    stage = begun.stage("alignment")
    stage.finished("f" * 16)
    student = next(iter(begun.recipe.models.students))
    there = stage.path / "teachers" / f"{student}-random_pairs"
    there.mkdir(parents=True)
    (there / "tuned.json").write_text('{"curve": [{"step": 1, "metric": "rewards/margins", "value": 0.25}]}')
    progress.steps(f"{student}-tailored", 2, 9, {"rewards/margins": 0.5, "loss": float("nan"), "epoch": 1})
    curve = look(begun).curve
    assert sorted(curve[["arm", "step", "value"]].itertuples(index=False, name=None)) == [
        ("random_pairs", 1, 0.25),
        ("tailored", 2, 0.5),
    ]
    shown = RunMonitor("watched")
    assert "Reward margin at the last step" in watch.figures.sentence(shown.figure())
    assert "rewards/margins, tailored: 0.5 to 0.5 in 2 steps" in look(begun).in_words()


def test_spark_lines_show_a_fall_as_a_fall():
    rows = [("training", "tailored", "a", 0, step, "loss", 2.0 - step / 10) for step in range(11)]
    (line,) = spark_lines(pd.DataFrame(rows, columns="stage arm student seed step metric value".split()))
    assert line.startswith("loss, tailored: 2 to 1 in 10 steps") and line.endswith("▁")
    assert "█" in line


def test_what_a_model_wrote_acts_on_no_terminal_and_on_no_page(begun):
    progress.made([{"text": EVIL * 50, "n_tokens": 1}])
    now = look(begun)
    said = now.in_words()
    assert all(letter.isprintable() or letter == "\n" for letter in said)
    assert all(len(line) < 130 for line in said.splitlines()[8:])
    assert "<img" not in now.to_html() and "&lt;img" in now.to_html()
    assert visible("a\x1b[31mb\n\u202ec\u200b", 20) == "a [31mb c"


def test_a_terminal_is_redrawn_until_the_run_is_finished(begun, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True

    def meanwhile(_):
        progress.end()
        for stage in NOTEBOOKS:
            finish(begun, stage)

    monkeypatch.setattr(watch.time, "sleep", meanwhile)
    assert watch.watch("watched", False, screen) is True
    first, second = screen.getvalue().split("\x1b[2J\x1b[H")[1:]
    assert "Ctrl-C stops watching" in first and "all stages are finished" in second


def test_ctrl_c_leaves_the_run_alone(begun, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    before = progress.read(begun.path / "drafting")
    monkeypatch.setattr(watch, "look", interrupted)
    assert main(["watch", "watched"]) == DONE
    assert "the run was left alone" in capsys.readouterr().out
    assert progress.read(begun.path / "drafting") == before


def test_a_run_that_is_not_there_is_refused(runs, capsys):
    assert main(["watch", "nobody"]) == FAILED
    assert "There is no run 'nobody'" in capsys.readouterr().err
    with pytest.raises(StoreError):
        RunMonitor("nobody")


def test_the_view_follows_the_run_and_stops_when_told(begun, monkeypatch):
    monkeypatch.setattr(watch, "REFRESH_S", 0.01)
    shown = RunMonitor("watched")
    view, keep_looking = shown.view()
    table, _, stop = view.children
    assert "drafting is being computed" in table.value

    async def lesson():
        task = asyncio.ensure_future(keep_looking())
        progress.made([{"text": "<b>new</b>", "n_tokens": 1}])
        await asyncio.sleep(0.1)
        assert "&lt;b&gt;new&lt;/b&gt;" in table.value and not task.done()
        stop.click()
        await asyncio.wait_for(task, 5)

    asyncio.run(lesson())


def test_headless_it_is_a_plain_table(begun, monkeypatch):
    shown = []
    monkeypatch.setattr(watch, "show", lambda what, caption: shown.append(what))
    watched = RunMonitor("watched")
    monkeypatch.setattr(watched, "view", None)
    watched.show()
    assert len(shown) == 1 and "probing not begun" in shown[0] and "drafting is being computed" in repr(watched)
