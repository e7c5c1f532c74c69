"""Mistakes in a notebook: one card where somebody is watching, the full error in a log, and a reply that says error."""

import html
import os
import shutil

import pytest
from conftest import PROJECT
from jupyter_client.manager import start_new_kernel
from lab import write_notebook

from workbench.notebook import mistakes
from workbench.notebook.mistakes import card, in_notebook
from workbench.runs import errors

BAD = "<script>alert(1)</script>"
KINDS = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}


def test_every_error_of_the_workbench_has_a_card():
    assert {kind for kind in mistakes.HEADS if kind.__module__.startswith("workbench")} == KINDS and len(KINDS) == 4
    for kind in mistakes.HEADS:
        made = card(kind(BAD), where=BAD)
        assert mistakes.HEADS[kind] in made and BAD not in made and html.escape(BAD) in made
        assert made.count("<div") == 1 and made.count('role="alert"') == 1


@pytest.mark.parametrize(
    ("said", "here"),
    [
        (
            "Run a was begun with another recipe; take another --name or undo: alignment.beta 0.1 -> 0.5.",
            'Run a was begun with another recipe; in the parameters cell, take another name, run = "…", or undo: '
            "alignment.beta 0.1 -> 0.5.",
        ),
        (
            "to align again: workbench run run:demo --name demo-reviewed",
            'to align again: run = "demo-reviewed" and recipe = "run:demo" in the parameters cell, then all cells.',
        ),
        (
            "open 02.ipynb or run: workbench run a",
            "open 02.ipynb or, in a terminal: workbench run a",
        ),
        ("nothing of the kind", "nothing of the kind"),
    ],
)
def test_a_notebook_is_told_what_a_notebook_can_do(said, here):
    assert in_notebook(said) == here


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """Run code in a kernel as Lab starts it for a notebook of ours; return the reply's status and the outputs."""
    folder = tmp_path_factory.mktemp("kernel")
    write_notebook(folder / "a.ipynb", "import workbench as wb")
    (folder / "ipython" / "profile_default").mkdir(parents=True)
    config = PROJECT / "workbench" / "notebook" / "ipython_kernel_config.json"
    shutil.copy(config, folder / "ipython" / "profile_default")
    own = {"IPYTHONDIR": str(folder / "ipython"), "JPY_SESSION_NAME": str(folder / "a.ipynb")}
    own |= {"WORKBENCH_RUNS": str(folder / "runs"), "PYTHONPATH": str(PROJECT), "WORKBENCH_HEADLESS": ""}
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=240, env={**os.environ, **own})

    def execute(code: str) -> tuple[str, list[dict]]:
        outputs = []

        def hear(message):
            if message["msg_type"] in ("error", "display_data"):
                outputs.append({"type": message["msg_type"], **message["content"]})

        reply = client.execute_interactive(code, timeout=240, output_hook=hear, allow_stdin=False)
        return reply["content"]["status"], outputs

    yield execute
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_after_a_restart_the_setup_cell_is_named(kernel):
    status, (output,) = kernel("work.read('pairs')")
    assert status == "error" and output["type"] == "display_data"
    assert "The kernel is new, and work is made further up." in output["data"]["text/html"]


def test_a_mistake_is_a_card_and_what_comes_after_does_not_run(kernel):
    kernel("import workbench as wb")
    status, (output,) = kernel("wb.open_run('nope')")
    assert status == "error" and output["type"] == "display_data"
    page = output["data"]["text/html"]
    assert "There is no run &#x27;nope&#x27;" in page and "<summary>Where</summary>" in page and "Traceback" in page
    assert output["data"]["text/plain"].startswith("RunError: There is no run 'nope'")


def test_the_setup_cell_itself_shows_its_mistake_as_a_card(kernel):
    kernel("get_ipython().set_custom_exc((), None)")
    status, (output,) = kernel("wb.start('nope')")
    assert status == "error" and output["type"] == "display_data"
    assert "There is no run &#x27;nope&#x27;" in output["data"]["text/html"]


def test_an_interrupt_says_that_what_is_finished_is_kept(kernel):
    stopped = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(200)"
    status, (output,) = kernel(stopped)
    assert status == "error" and "Finished items are kept: run the cell again" in output["data"]["text/html"]


def test_what_is_not_ours_and_what_nobody_watches_is_shown_as_python_does(kernel):
    kernel("import os; import workbench as wb")
    for code in ("absent", "1 / 0", "os.environ['WORKBENCH_HEADLESS'] = '1'; wb.open_run('nope')"):
        status, (output,) = kernel(code)
        assert status == "error" and output["type"] == "error" and output["traceback"], code
