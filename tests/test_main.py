"""The command line: what it refuses, what it says, and that its exit status tells the truth."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import PROJECT
from simulated import predictions_of

from workbench import methods
from workbench.cli import doctor
from workbench.cli.main import DONE, FAILED, REFUSED, main, parser
from workbench.report import cost_estimate, plan
from workbench.runs import schemas
from workbench.runs.cache import runs_folder
from workbench.runs.recipe import Recipe, format_yaml
from workbench.runs.recipe_file import load_recipe
from workbench.runs.run import open_run, steps_in
from workbench.verdict.power import ASSUMED, design_of, simulate


@pytest.fixture
def small(tmp_path, recipe_values) -> str:
    """A recipe file whose models do not exist."""
    path = tmp_path / "small.yaml"
    recipe_values["models"] = {"teacher": "data/no/teacher", "students": {"counter": "data/no/counter"}}
    recipe_values["preference_set"] = {"n_validation": 8, "n_items": 4}
    path.write_text(format_yaml(recipe_values))
    return str(path)


def outcome(capsys, *arguments: str) -> tuple[int, str, str]:
    """Return exit status, stdout and stderr of a command."""
    try:
        status = main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def as_it_is(frame: pd.DataFrame) -> pd.DataFrame:
    """A step."""
    return frame


class Teacher:
    """Somebody whom a step can tell from others."""

    key = "0123456789"


def written_by(teacher: Teacher, frame: pd.DataFrame) -> pd.DataFrame:
    """A step of a model."""
    return frame


def test_importing_the_package_takes_no_time_and_brings_nothing_heavy():
    code = (
        "import sys, time; began = time.perf_counter(); import workbench; spent = time.perf_counter() - began;"
        "print(spent, sorted({'torch', 'pandas', 'plotly', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    spent, heavy = done.stdout.split(" ", 1)
    assert float(spent) < 1 and heavy.strip() == "[]"


def test_the_package_lists_its_contents_and_nothing_else():
    import workbench

    assert dir(workbench) == sorted(workbench.__all__) and 15 <= len(workbench.__all__) <= 40
    for name in workbench.__all__:
        value = getattr(workbench, name)
        assert value.__doc__ and not name.startswith("_"), name
    with pytest.raises(AttributeError, match="workbench has no 'drft'"):
        _ = workbench.drft


def test_without_a_name_the_run_worked_on_last_is_taken(capsys, runs, recipe):
    for command in ((), ("watch",), ("summary",), ("trace", "3fa9")):
        status, _, error = outcome(capsys, *command)
        assert status == FAILED and "There is no run in" in error and "workbench run arte-demo --name demo" in error
    assert not runs.exists()
    for n, name in enumerate(("b", "c", "a")):
        work = open_run(name, recipe)
        work.step("numbers", as_it_is, pd.DataFrame({"n": [1]}))
        for path in (work.path, work.path / "numbers"):
            os.utime(path, (n, n))
    capsys.readouterr()
    for command in ((), ("watch",)):
        status, said, _ = outcome(capsys, *command)
        assert status == DONE and said.startswith("Run a") and "numbers is finished, questions has not begun" in said
    os.utime(runs / "b" / "numbers", (9, 9))
    status, _, error = outcome(capsys, "trace", "3fa9")
    assert status == FAILED and "run b" in error.lower()


def test_what_was_moved_aside_is_brought_back(capsys, runs, recipe):
    status, _, error = outcome(capsys, "restore", "a")
    assert status == FAILED and "There is no run 'a'" in error
    work = open_run("a", recipe)
    for n in (1, 2):
        work.step("numbers", as_it_is, pd.DataFrame({"n": range(n)}))
    status, said, _ = outcome(capsys, "restore", "a")
    assert status == DONE and said.endswith("Brought back: numbers.\n") and len(work.read("numbers")) == 1


def test_help_reads_well(capsys):
    status, said, _ = outcome(capsys, "--help")
    assert status == DONE
    for command in "run runs plan study trace export doctor".split():
        assert re.search(rf"^    {command}\s", said, re.MULTILINE), command
    assert "arte-demo --name demo" in said and "Traceback" not in said
    named = re.findall(r"^  workbench (?:run|plan) (\S+)", said, re.MULTILINE)
    assert len(named) >= 5 and all((PROJECT / "notebooks" / "recipes" / f"{name}.yaml").is_file() for name in named)
    status, said, _ = outcome(capsys, "run", "--help")
    assert status == DONE and "exit status" in said and "alignment.beta 0.05" in said
    assert all(len(line) <= 120 for line in said.splitlines())


def test_the_plan_knows_every_step_of_every_method():
    made = {step for method in methods.ALL.values() for name in method.notebooks for step in steps_in(name)}
    assert {step for steps in plan.STEPS.values() for step in steps} == made


def test_a_misspelt_parameter_is_refused_before_anything_runs(capsys, runs, small):
    status, said, error = outcome(capsys, "run", small, "--name", "a", "-p", "alignment.bta", "0.1")
    assert status == REFUSED and said == ""
    assert "did you mean alignment.beta?" in error and "Traceback" not in error
    assert not (runs / "a").exists()


def test_all_faults_of_a_recipe_are_said_at_once(capsys, runs, small):
    wrong = ("-p", "alignment.learning_rate", "fast", "-p", "seeds", "[1]", "-p", "evaluation.margin", "2")
    status, _, error = outcome(capsys, "run", small, "--name", "a", *wrong)
    assert status == REFUSED and not runs.exists()
    assert "got 'fast' (text)" in error and "seeds" in error and "evaluation.margin" in error


@pytest.mark.parametrize("command", [("run", "arte-dmo", "--name", "a"), ("plan", "arte-dmo")])
def test_an_unknown_recipe_is_refused(capsys, runs, command):
    status, _, error = outcome(capsys, *command)
    assert status == REFUSED and "did you mean arte-demo" in error


def test_another_recipe_under_the_same_name_is_refused_showing_the_difference(capsys, runs, small):
    open_run("a", load_recipe(small)).step("mine", as_it_is, pd.DataFrame({"n": [1]}))
    status, _, error = outcome(capsys, "run", small, "--name", "a", "-p", "alignment.beta", "0.7")
    assert status == REFUSED and "alignment.beta 0.1 -> 0.7" in error and "another --name" in error


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--from", "drawing"), "--from must be a part of one of 01_drafting, "),
        (("--to", "0"), "05_evaluation, got '0'; correct it"),
        (("--from", "training", "--to", "probing"), "--from training comes after --to probing; the order is 01_"),
        (("--form", "drafting"), "usage:"),
        (("--method", "no/file.py"), "--method must be a Python file that sets METHOD, got 'no/file.py'"),
    ],
)
def test_an_unknown_notebook_option_or_method_is_refused(capsys, runs, small, wrong, said):
    status, _, error = outcome(capsys, "run", small, "--name", "a", *wrong)
    assert status == REFUSED and said in error and "Traceback" not in error
    assert not (runs / "a" / "reports").exists()


def test_from_needs_the_steps_before(capsys, runs, small):
    status, _, error = outcome(capsys, "run", small, "--name", "a", "--from", "training")
    assert status == FAILED and error.count("\n") == 1
    assert "no finished step 'questions' yet; open notebooks/01_drafting.ipynb or run: workbench run" in error


METHOD = """
from dataclasses import replace
from workbench.methods import ALL, FIRST
METHOD = replace(ALL[FIRST], name="mine", notebooks=("01_drafting", "05_evaluation"))
"""


def test_a_method_of_ones_own_is_brought_before_the_recipe_is_read(capsys, runs, small, tmp_path, monkeypatch):
    # So that both are afterwards as they were.
    monkeypatch.setitem(methods.ALL, "mine", None)
    monkeypatch.setenv(methods.FROM_FILE, "")
    file = tmp_path / "mine.py"
    given = ("run", small, "--name", "a", "-p", "method", "mine", "--method", str(file), "--from", "04")
    file.write_text("METHOD = 1")
    status, _, error = outcome(capsys, *given)
    assert status == REFUSED and f"{file} sets no METHOD; write, say: METHOD = replace(ALL[" in error
    file.write_text(METHOD)
    status, _, error = outcome(capsys, *given)
    assert status == REFUSED and "--from must be a part of one of 01_drafting, 05_evaluation, got '04'" in error
    # The process in which notebooks are computed brings it again.
    code = "from workbench.methods import ALL; print(ALL['mine'].notebooks)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "('01_drafting', '05_evaluation')"


def test_a_method_that_is_not_there_is_refused(capsys, runs, small):
    status, _, error = outcome(capsys, "run", small, "--name", "a", "-p", "method", "mine")
    assert status == REFUSED and f"method must be one of {', '.join(methods.ALL)}, got 'mine'" in error


def test_a_missing_model_folder_is_one_sentence_and_no_traceback(runs, small):
    command = [sys.executable, "-m", "workbench", "run", small, "--name", "a"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == FAILED
    assert "data/no/" in done.stderr and "make pocket" in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert not list((runs / "a").glob("questions*"))


def test_runs_is_one_row_a_run(capsys, runs, small):
    status, said, _ = outcome(capsys, "runs")
    assert status == DONE and "no runs" in said and "begin one: workbench run RECIPE --name NAME" in said
    run = open_run("a", load_recipe(small))
    primary = {"a": "tailored", "b": "untailored", "shots": 0}
    compared = primary | {"difference": 0.123, "low": -0.05, "high": 0.2}
    verdict = {"decision": "undecided", "primary": primary, "comparisons": [compared]}
    (run.path / "verdict.json").write_text(json.dumps(verdict))
    status, said, _ = outcome(capsys, "runs")
    assert status == DONE and "undecided" in said and "+12.3" in said


@pytest.mark.parametrize("path", sorted((PROJECT / "notebooks" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_can_be_planned_without_its_models(capsys, path):
    status, said, _ = outcome(capsys, "plan", path.stem)
    assert status == DONE and "All numbers are estimates" in said
    for stage in plan.STEPS:
        assert f"\n{stage} " in said


def test_plan_says_what_the_verdict_can_find(capsys):
    status, said, _ = outcome(capsys, "plan", "arte-demo", "--detect", "0.2")
    said = " ".join(said.split())
    assert status == DONE and "assumed, no run was named" in said
    assert "Finds with power 0.8: a true difference of" in said and "A difference of 20 points needs 3 seeds:" in said
    more = outcome(capsys, "plan", "arte-demo", "--detect", "0.2", "-p", "evaluation.n_items", "1000")[1]
    assert found_points(more) < found_points(said)


def test_plan_says_what_does_not_fit(capsys, monkeypatch):
    monkeypatch.setattr(plan, "memory_here", lambda: {"free in this machine": 80e9})
    said = outcome(capsys, "plan", "arte-paper")[1]
    assert "Memory here: 80 GB free in this machine." in said
    assert "Does not fit here to generate: teacher." in said and "Does not fit here to train: teacher." in said
    monkeypatch.setattr(plan, "memory_here", lambda: {"free in this machine": 80e9, "free on 8 GPUs": 2e12})
    assert "Does not fit" not in outcome(capsys, "plan", "arte-paper")[1]


def found_points(said: str) -> float:
    return float(re.search(r"a true difference of ([\d.]+) points", " ".join(said.split()))[1])


@pytest.fixture
def evaluated(runs, small):
    """A run whose evaluation is simulated; its seeds hardly differ."""
    changes = {"seeds": "[0, 1, 2, 3, 4]", "evaluation.n_items": "600"}
    run = open_run("done", load_recipe(small, changes))
    world, design = ASSUMED._replace(seed_sd=0.0), design_of(run.recipe)
    made = simulate(world, design, 0.1, np.random.default_rng(0), 1)
    frame = predictions_of(made, design, 0).assign(student="counter")
    run.step("predictions", as_it_is, schemas.build(frame.to_dict("records"), "predictions"))
    return run


def test_plan_takes_the_spread_of_a_run(capsys, evaluated):
    assumed = outcome(capsys, "plan", "arte")[1]
    status, said, _ = outcome(capsys, "plan", "arte", "--run", "done")
    assert status == DONE and "seen in run done, student counter" in " ".join(said.split())
    assert found_points(said) < found_points(assumed)


def test_plan_refuses_a_difference_that_is_no_share(capsys):
    status, _, error = outcome(capsys, "plan", "arte", "--detect", "5")
    assert status == REFUSED and "must lie between 0 and 1" in error


def test_trace_says_what_it_could_not_find(capsys, runs, small):
    status, _, error = outcome(capsys, "trace", "nobody", "abcd")
    assert status == FAILED and "There is no run 'nobody'" in error
    open_run("a", load_recipe(small))
    status, _, error = outcome(capsys, "trace", "a", "abcd")
    assert status == FAILED and "nothing of the id 'abcd'" in error


def test_trace_of_a_beginning_that_fits_several_asks_for_more(capsys, runs, small):
    run = open_run("a", load_recipe(small))
    draft = {name: "" for name in schemas.SCHEMAS["drafts"].columns}
    draft |= {"correct": True, "finished": True, "n_tokens": 1}
    ids = ("abcd1", "abcd2")
    run.step("drafts", as_it_is, pd.DataFrame([draft | {"draft_id": one} for one in ids]))
    status, _, error = outcome(capsys, "trace", "a", "abcd")
    assert status == FAILED and "begins 2 ids" in error
    status, said, _ = outcome(capsys, "trace", "a", "abcd2")
    assert status == DONE and "draft abcd2" in said and "<- teacher data/no/teacher\n" in said
    run.step("questions", written_by, Teacher(), schemas.build([], "questions"))
    assert "<- teacher data/no/teacher (01234567)\n" in outcome(capsys, "trace", "a", "abcd2")[1]


def test_doctor_looks_at_everything_and_changes_nothing(capsys, runs):
    status, said, _ = outcome(capsys, "doctor")
    assert status == DONE and not runs_folder().exists()
    for what in ("python", "cores", "memory", "disk", "packages", "gpu", "models", "browser"):
        assert f" {what} " in said


def test_doctor_names_what_is_not_the_tested_version(monkeypatch):
    real = doctor.importlib.metadata.version

    def version(name):
        if name == "trl":
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "scipy" else real(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    said = doctor.in_words()
    assert "trl is missing" in said and "scipy is 0.0.1" in said and "LOOK" in said


def test_the_parser_knows_no_abbreviations():
    with pytest.raises(SystemExit):
        parser().parse_args(["run", "arte-demo", "--na", "x"])


def test_doctor_names_each_engine_and_how_to_install_it(capsys, runs, monkeypatch):
    from workbench.models import start

    monkeypatch.setattr(start, "is_here", lambda engine: engine == "transformers")
    said = outcome(capsys, "doctor")[1]
    assert "transformers 5" in said and "make openai" in said and "make vllm-cpu (with a GPU: make vllm-gpu)" in said


def test_plan_says_what_engines_can_do_and_what_a_server_costs(recipe_values):
    server = {"engine": "openai", "price_in": 1000.0, "price_out": 1000.0, "budget_tokens": 500}
    of = Recipe.model_validate(recipe_values | {"engines": {"teacher": server, "student": "vllm"}})
    teacher, student = plan._engines(of)[1:]
    frame = cost_estimate.estimate(of)
    asked = frame[frame["stage"] == "drafting"]
    assert f"{(asked['read'].sum() + asked['new'].sum()) / 1000:,.2f} in money" in teacher
    assert "over the budget of 500" in teacher and "openai; can also: weights;" in teacher
    assert "vllm; can also: weights, folders" in student and "in money" not in student


def test_home_is_where_a_command_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WORKBENCH_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    status, said, _ = outcome(capsys, "--home", "own", "runs")
    assert status == DONE and f"There are no runs in {tmp_path / 'own' / 'data' / 'runs'} yet" in said
    assert outcome(capsys, "--home", "nowhere", "runs")[0] == FAILED
