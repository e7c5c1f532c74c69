"""The notebooks run for real, by papermill, on the shipped models: the loop at its smallest, and what goes wrong."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
from conftest import PROJECT
from nbconvert import HTMLExporter
from test_notebook_style import PATHS, STUDIES
from test_report import raw_names

from workbench.cli.main import main
from workbench.methods import ALL, bring
from workbench.notebook import display, headless
from workbench.notebook.display import Progress
from workbench.notebook.session import check_parameters, parse_overrides
from workbench.report.lineage import lineage
from workbench.runs.errors import RecipeError, RunError
from workbench.runs.recipe import Evaluation, format_yaml, parse_yaml
from workbench.runs.recipe_file import load_recipe
from workbench.runs.run import open_run, runs_table, steps_in
from workbench.verdict.in_words import share_of, spoken

pytestmark = pytest.mark.slow

NOTEBOOKS = ALL["arte"].notebooks
DEFAULT_ARMS = Evaluation.model_fields["arms"].default
STEPS = [step for name in NOTEBOOKS for step in steps_in(name)]

# The demo at its smallest: the same models, the least of everything.
TINY = """
seeds: [1, 2]
drafting: {n_questions: 6, questions_per_call: 1, max_new_tokens: 120}
preference_set: {n_validation: 12, n_items: 8, shots: [0, 1]}
pairs: {n_question_pairs: 2}
alignment: {beta: 0.1, learning_rate: 5.0e-5, n_epochs: 1, batch_size: 4, max_length: 512}
tailoring: {n_examples: 8, max_new_tokens: 120}
training: {learning_rate: 1.0e-3, n_epochs: 1, batch_size: 4, max_length: 512}
evaluation: {n_items: 8, max_new_tokens: 120}
"""


def write_tiny(path: Path) -> Path:
    """Write the tiny recipe, with the models and the first task of the demo."""
    demo = parse_yaml((PROJECT / "notebooks" / "recipes" / "arte-demo.yaml").read_text())
    tiny = demo | parse_yaml(TINY) | {"name": "tiny"}
    tiny["tasks"]["names"] = tiny["tasks"]["names"][:1]
    # An arm that chooses drafts by another signal than the one that forms the pairs.
    tiny["evaluation"]["arms"] = [*tiny["evaluation"].get("arms", DEFAULT_ARMS), "best_by_surprisal"]
    path.write_text(format_yaml(tiny))
    return path


def workbench(*arguments: str, **extra: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "workbench", *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env={**os.environ, **extra})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A whole run by the command line, made once; its folder, what the command said, and the recipe's path."""
    folder = tmp_path_factory.mktemp("tiny")
    recipe = write_tiny(folder / "tiny.yaml")
    done = workbench("run", str(recipe), "--name", "tiny", WORKBENCH_RUNS=str(folder / "runs"))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "tiny", done.stdout, recipe


@pytest.fixture
def work(tiny, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tiny[0].parent))
    return open_run("tiny")


def test_the_command_ends_with_the_verdict_and_the_report(tiny):
    path, said, _ = tiny
    verdict = json.loads((path / "verdict.json").read_text())
    *_, last = said.strip().splitlines()
    assert last == f"Report: {path / 'reports' / 'report.html'}"
    assert verdict["decision"].upper() in said and "Does the student answer better?" in said
    for name in NOTEBOOKS:
        assert re.search(rf"^{name} +\d+ s ", said, re.MULTILINE), name


def test_every_notebook_left_an_executed_copy_without_errors(tiny):
    for name in NOTEBOOKS:
        executed = nbformat.read(tiny[0] / "reports" / f"{name}.ipynb", as_version=4)
        outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
        assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code" and cell.source)
        assert not [output for output in outputs if output.output_type == "error"]
        assert [output for output in outputs if "application/vnd.plotly.v1+json" in output.get("data", {})], name


def test_the_report_and_its_notebooks_are_pages_that_ask_nobody_for_anything(tiny):
    report = (tiny[0] / "reports" / "report.html").read_text(encoding="utf-8")
    for name in NOTEBOOKS:
        path = tiny[0] / "reports" / f"{name}.html"
        page = path.read_text(encoding="utf-8")
        assert not raw_names(path)
        assert f'href="{name}.html"' in report and 'class="plotly-graph-div"' in page and "Predict" not in report
        # plotly.js names hosts for its maps; the pages themselves load nothing.
        for text in (report, page):
            assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']?(https?:)?//", text)


@pytest.mark.browser
@pytest.mark.parametrize("made_by", ["workbench", "nbconvert"])
def test_figures_are_drawn_offline(tiny, chromium, tmp_path, made_by):
    from playwright.sync_api import sync_playwright

    path = tiny[0] / "reports" / "05_evaluation.html"
    if made_by == "nbconvert":
        body, _ = HTMLExporter().from_filename(str(tiny[0] / "reports" / "05_evaluation.ipynb"))
        path = tmp_path / "05_evaluation.html"
        path.write_text(body, encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_selector(".main-svg")
        undrawn = (
            "[...document.querySelectorAll('.plotly-graph-div')].filter(d => !d.querySelector('.main-svg')).length"
        )
        figures = page.evaluate("document.querySelectorAll('.plotly-graph-div').length")
        page.wait_for_function(f"{undrawn} == 0")
        browser.close()
    assert figures >= 3
    if made_by == "workbench":
        assert not errors
        assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]


def test_an_arm_is_trained_on_the_drafts_that_another_signal_likes_best(work):
    assert set(work.read("signals")["signal"]) == {"one_shot"}
    others, drafts = work.read("signals", "others"), work.read("drafts")
    own = drafts.merge(others[others["item_kind"] == "rationale"], on="draft_id")
    best = own.loc[own.groupby("question_id")["value"].idxmax()].set_index("question_id")["rationale"]
    chosen = work.read("examples").query("arm == 'best_by_surprisal' and seed == 1").set_index("question_id")
    assert set(others["signal"]) == {"surprisal"} and len(chosen) == len(best) == 6
    assert chosen["rationale"].to_dict() == best.to_dict()


def test_metrics_of_all_notebooks_say_that_they_went_well(tiny):
    metrics = json.loads((tiny[0] / "metrics.json").read_text())
    assert {name: metrics[name]["status"] for name in NOTEBOOKS} == dict.fromkeys(NOTEBOOKS, "ok")


def test_running_again_reuses_every_step_and_says_so(tiny):
    before = (tiny[0] / "verdict.json").read_bytes()
    done = workbench("run", str(tiny[2]), "--name", "tiny", WORKBENCH_RUNS=str(tiny[0].parent))
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^ +✓ [a-z ]+: stored, ", done.stdout, re.MULTILINE)) == len(STEPS)
    assert (tiny[0] / "verdict.json").read_bytes() == before


def test_from_computes_later_steps_again_and_ends_with_the_same_verdict(tiny):
    path = tiny[0]
    before = (path / "verdict.json").read_bytes()
    # A part of the notebook's name that no other has.
    arguments = ("run", str(tiny[2]), "--name", "tiny", "--from", "eval", "--to", "05")
    done = workbench(*arguments, WORKBENCH_RUNS=str(path.parent))
    assert done.returncode == 0, done.stderr
    assert len(list(path.glob("predictions.superseded-*"))) == 1 and not list(path.glob("rows.superseded-*"))
    assert (path / "verdict.json").read_bytes() == before and ": stored, " not in done.stdout
    assert "05_evaluation" in done.stdout and "04_student_training" not in done.stdout


def test_a_notebook_runs_by_papermill_alone(work, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    out = tmp_path / "out.ipynb"
    source = PROJECT / "notebooks" / "02_preference_probing.ipynb"
    # From another folder, as Lab does it.
    papermill.execute_notebook(source, out, {"run": "tiny"}, cwd=PROJECT / "notebooks", progress_bar=False)
    assert "✓ probes: stored, " in out.read_text()


STUDIED = {  # study -> its parameters, as small as makes sense, and one of the numbers it leaves
    "ablations": ({}, "tailored_minus_untailored"),
    "benchmarks": ({}, "rows"),
    "calibrate": ({"repeats": 20, "overrides": "seeds=[1, 2, 3]"}, "false_better"),
    "goodhart": ({"rounds": 1, "probed": 1}, "score_tally-strong"),
    "halves": ({"splits": 2}, "agreement_tally-strong_rationale"),
    "learning_curves": ({"sizes": "1, 2"}, "worth_at_2"),
    "signals": ({"seeds": "1, 2", "lengths": "2", "leaders": "one_shot", "measured": 1, "asked": 4}, "n_groups"),
    "sweep": ({"sweep": "tiny"}, "chosen"),
}


def test_every_study_is_run():
    assert {*STUDIED, "own_method"} == {path.stem for path in STUDIES}


@pytest.mark.parametrize("name", STUDIED)
def test_a_study_runs_on_any_finished_run_and_leaves_a_page_and_numbers(work, capsys, monkeypatch, name):
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    given, number = STUDIED[name]
    for which, beta in (("1", 0.1), ("2", 0.2), ("chosen", 0.2)) if name == "sweep" else ():
        again = Path(shutil.copytree(work.path, work.path.with_name(f"tiny-{which}"))) / "recipe.yaml"
        again.write_text(again.read_text().replace("beta: 0.1", f"beta: {beta}"))
        again.with_suffix(".json").unlink()
    assert (
        main(["study", name, "tiny", *(word for key, value in given.items() for word in ("-p", key, str(value)))]) == 0
    )
    said = capsys.readouterr().out
    found = json.loads((work.path / "metrics.json").read_text())[name]
    assert found["status"] == "ok" and number in found
    page = work.path / "reports" / f"{name}.html"
    assert said.strip().splitlines()[-1].endswith(f"reports/{name}.html") and page.is_file()
    drawn = 'class="plotly-graph-div"' in page.read_text(encoding="utf-8")
    assert (drawn or name == "benchmarks") and not raw_names(page)


def test_a_method_of_ones_own_comes_to_a_verdict_without_touching_the_library(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(ALL, "shorter", None)  # put back when the test ends: other tests go through all methods
    small = "drafting.n_questions=8; tailoring.n_examples=6; evaluation.n_items=8; training.n_epochs=1"
    source, out = PROJECT / "notebooks" / "studies" / "own_method.ipynb", tmp_path / "out.ipynb"
    parameters = {"run": "own", "overrides": small}
    papermill.execute_notebook(source, out, parameters, cwd=PROJECT, progress_bar=False)
    bring(PROJECT / "notebooks" / "studies" / "own_method.py")
    work = open_run("own")
    assert (work.path / "verdict.json").is_file() and not work.has("probes")
    pairs = work.read("pairs").query("kind == 'rationale'")
    assert len(pairs) and (pairs["chosen"].str.len() < pairs["rejected"].str.len()).all()
    # The text of the function is in the step's key, and nothing of it in the recipe.
    assert work.manifest("signals")["function"].startswith("own_method.shorter ")
    assert "own_method.py" not in (work.path / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("02_preference_probing", {"rnu": "tiny"}, "rnu is not a parameter of this notebook; did you mean run?"),
        ("02_preference_probing", {"run": 3}, "run must be of type str, got 3 (int)"),
        ("01_drafting", {"run": "new", "overrides": "alignment.bta=1"}, "did you mean alignment.beta?"),
        ("03_teacher_alignment", {"run": "new"}, "begin it in the first notebook of a method, or with: workbench run"),
    ],
)
def test_a_notebook_refuses_what_it_cannot_use(runs, tmp_path, name, parameters, said):
    source = PROJECT / "notebooks" / f"{name}.ipynb"
    with pytest.raises(papermill.PapermillExecutionError) as raised:
        papermill.execute_notebook(source, tmp_path / "out.ipynb", parameters, cwd=PROJECT, progress_bar=False)
    assert said in raised.value.evalue


def test_the_first_notebook_runs_by_itself(runs, tmp_path):
    source, out = PROJECT / "notebooks" / "00_start_here.ipynb", tmp_path / "out.ipynb"
    parameters = {"n_questions": 3, "n_items": 4}
    papermill.execute_notebook(source, out, parameters, cwd=PROJECT, progress_bar=False)
    assert json.loads((runs / "start-here" / "metrics.json").read_text())["00_start_here"]["status"] == "ok"
    # Its folder is no run.
    assert runs_table().empty


def test_a_failing_cell_is_one_sentence_and_exit_status_1(tiny, tmp_path):
    """The drafts of a finished run are damaged; the next notebook that reads them has to say so."""
    runs = tmp_path / "runs"
    subprocess.run(["cp", "-r", tiny[0].parent, runs], check=True)
    (runs / "tiny" / "drafts" / "drafts.parquet").write_bytes(b"damaged")
    folders = sorted(path.name for path in (runs / "tiny").iterdir())
    for arguments in ([], ["--from", "probing"]):
        done = workbench("run", str(tiny[2]), "--name", "tiny", *arguments, WORKBENCH_RUNS=str(runs))
        assert done.returncode == 1
        assert "drafts.parquet" in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert json.loads((runs / "tiny" / "metrics.json").read_text())["01_drafting"]["status"] == "failed"
    assert sorted(path.name for path in (runs / "tiny").iterdir()) == folders, "what is refused moves nothing"


def test_a_training_row_leads_back_to_its_probes_and_a_draft_on_to_its_rows(work):
    rows = work.read("rows")
    row = rows[rows["arm"] == "tailored"].iloc[0]
    said = lineage(work, row["row_id"])
    for words in (
        row["row_id"],
        row["example_id"],
        "aligned by DPO to",
        "chosen",
        "rejected",
        "preference questions right",
    ):
        assert words in said
    pair = work.read("pairs").query("kind == 'rationale'").iloc[0]
    forth = lineage(work, pair["chosen_id"])
    assert f"pair {pair['pair_id']}" in forth and "training rows" in forth and "preference questions right" in forth
    back = lineage(work, pair["pair_id"])
    assert pair["chosen_id"] in back and pair["rejected_id"] in back and "teacher of arm random pairs" in back


def test_injected_names_are_checked_against_the_parameters_cell(monkeypatch):
    monkeypatch.setenv("WORKBENCH_HEADLESS", "1")
    given = {
        "__annotations__": {"run": str},
        "run": "demo",
        "In": ["", "run: str = 'demo'", "# Parameters\nrun = 'x'\n"],
    }
    check_parameters(given)
    with pytest.raises(RecipeError, match="bta is not a parameter"):
        check_parameters({**given, "In": ["# Parameters\nbta = 1\n"]})
    with pytest.raises(RecipeError, match="run must be of type str, got True"):
        check_parameters({**given, "run": True})


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_parameters_cell_is_help_that_papermill_can_read(path):
    found = papermill.inspect_notebook(path)
    assert found and all(
        entry["help"] and entry["inferred_type_name"] in ("str", "int", "bool") for entry in found.values()
    )
    assert list(found) == re.findall(r"^(\w+):", nbformat.read(path, as_version=4).cells[1].source, re.MULTILINE)


@pytest.mark.parametrize("text", ["alignment.beta", "=3", "a=1; b"])
def test_overrides_that_cannot_be_read_are_refused(text):
    with pytest.raises(RecipeError, match="key=value"):
        parse_overrides(text)


def test_progress_is_a_line_at_most_every_ten_seconds(monkeypatch, capsys):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(display.time, "monotonic", lambda: float(next(clock)))
    shown = Progress("probing", 100)
    for done in range(10, 60, 10):
        shown(done)
    lines = capsys.readouterr().out.splitlines()
    assert 1 <= len(lines) <= 3
    assert re.fullmatch(r"… probing: \d+ of 100, \d+ s, .*left", lines[0])
    shown(100)
    assert re.fullmatch(r"✓ probing: 100, \d+ s\n", capsys.readouterr().out)


def test_of_progress_the_last_line_alone_stays_in_an_executed_notebook(tiny, tmp_path):
    for name in NOTEBOOKS:
        cells = nbformat.read(tiny[0] / "reports" / f"{name}.ipynb", as_version=4).cells
        texts = [one.text for cell in cells for one in cell.get("outputs", []) if one.output_type == "stream"]
        lines = [line for text in texts for line in text.splitlines()]
        assert not [line for line in lines if "%|" in line or line.startswith("… ")]
        said = {line.partition(":")[0] for line in lines if line[:1] == "✓"}
        assert said == {f"✓ {spoken(step)}" for step in steps_in(name)}
    outputs = [nbformat.v4.new_output("stream", text=text) for text in ("… a: 10 s\n", "… a: 20 s\n✓ a: 3, 21 s\n")]
    executed = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("a", outputs=outputs)]), executed)
    headless._clean(executed)
    (output,) = nbformat.read(executed, as_version=4).cells[0].outputs
    assert output.text == "✓ a: 3, 21 s\n"


def test_libraries_draw_no_bars_while_a_step_is_computed(capsys):
    from tqdm.auto import tqdm

    with display.without_bars():
        assert list(tqdm(range(3))) == list(tqdm(range(3), disable=False)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    assert list(tqdm(range(3))) == [0, 1, 2]
    assert "3/3" in capsys.readouterr().err


def test_shares_have_intervals_even_at_the_ends():
    assert share_of(pd.Series([True] * 10)) == "100 % (95 % interval 72 to 100, n = 10)"
    clustered = share_of(pd.Series([True, True, False, False]), pd.Series(["a", "a", "b", "c"]))
    assert (
        clustered.startswith("50 % (95 % interval 0 to 100,") and share_of(pd.Series([], dtype=bool)) == "none (n = 0)"
    )


def test_text_of_a_model_cannot_break_out_of_a_table(monkeypatch):
    shown = []
    monkeypatch.setattr(display, "_display", lambda markup, plain, handle=None: shown.append(markup))
    bad = "<script>alert(1)</script>"
    display.show(pd.DataFrame({"rationale": [bad]}), caption=bad)
    display.show(bad)
    display.say(bad)
    assert len(shown) == 3 and all(bad not in markup and html.escape(bad) in markup for markup in shown)


def test_beginning_again_computes_later_steps_again_and_takes_nothing_away_before(runs, tmp_path, monkeypatch):
    run = open_run("a", load_recipe(str(write_tiny(tmp_path / "tiny.yaml"))))
    monkeypatch.setattr(headless, "steps_in", lambda name, always=False: [f"step-of-{name[:2]}"])
    for name in NOTEBOOKS[1:]:
        run.step(f"step-of-{name[:2]}", lambda: pd.DataFrame({"n": [1]}))
    (run.path / "verdict.json").write_text("{}")
    with pytest.raises(RunError, match="no finished step 'step-of-01'"):
        headless.begin_again(run, NOTEBOOKS[3])
    assert (run.path / "verdict.json").exists() and len(run.steps()) == 4
    run.step("step-of-01", lambda: pd.DataFrame({"n": [1]}))
    headless.begin_again(run, NOTEBOOKS[3])
    assert (run.path / "verdict.json").exists() and len(run.steps()) == 5
    assert [run.stands(f"step-of-0{n}") for n in range(1, 6)] == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("first", "last", "names"),
    [
        ("", "", NOTEBOOKS),
        ("03", "", NOTEBOOKS[2:]),
        ("", "probing", NOTEBOOKS[:2]),
        ("student", "04_student_training", NOTEBOOKS[3:4]),
    ],
)
def test_a_part_of_a_name_says_where_to_begin_and_end(runs, tmp_path, first, last, names):
    run = open_run("a", load_recipe(str(write_tiny(tmp_path / "tiny.yaml"))))
    assert headless.wanted(run, first, last) == list(names)
    with pytest.raises(RunError, match="--to must be a part of one of 01_drafting, .*, got '0'; correct it"):
        headless.wanted(run, first, "0")


def test_what_a_busy_kernel_passes_on_late_is_waited_for(runs, tmp_path, monkeypatch):
    waits = []

    class Client(papermill.clientwrap.PapermillNotebookClient):
        def execute(self, **given):
            waits.extend([self.iopub_timeout, self.startup_timeout])

    monkeypatch.setattr("papermill.engines.PapermillNotebookClient", Client)
    monkeypatch.setattr(headless, "_execute_cell", lambda kernel, code: None)
    run = open_run("a", load_recipe(str(write_tiny(tmp_path / "tiny.yaml"))))
    (run.path / "reports").mkdir()
    headless._run_notebook(run, NOTEBOOKS[0], run.path / "reports", None)
    assert waits == [headless.PATIENCE_S] * 2
