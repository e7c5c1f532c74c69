"""The judge: another model's answers beside those of the examples, asked once, of the engine the recipe names."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from local_server import LocalServer
from small_classroom import recipe_of

from workbench.models.openai_engine import KEY_VARIABLE, URL_VARIABLE
from workbench.models.start import check
from workbench.notebook.session import preflight
from workbench.report import cost_estimate, plan
from workbench.runs.cache import runs_folder
from workbench.runs.errors import ModelError, RunError
from workbench.runs.recipe import Recipe
from workbench.runs.run import Run, open_run
from workbench.signals import judge as judge_module
from workbench.tasks.task import load_tasks
from workbench.verdict import in_words


@pytest.fixture(scope="module")
def made(small_run, tmp_path_factory):
    """A folder of runs with one whose examples are written."""
    return shutil.copytree(small_run, tmp_path_factory.mktemp("judged") / "runs")


@pytest.fixture
def run(made, small_models, monkeypatch) -> Run:
    monkeypatch.setenv("WORKBENCH_RUNS", str(made))
    opened = open_run("loop")
    for folder in opened.path.glob(f"{judge_module.STEP}*"):
        shutil.rmtree(folder)
    return of(opened, str(small_models / "teacher"))


def judged_by(recipe: Recipe, judge: str, **engine) -> Recipe:
    values = recipe.model_dump()
    values["models"]["judge"] = judge
    values["engines"] = {"judge": engine} if engine else {}
    return Recipe.model_validate(values)


def of(run: Run, judge: str, **engine) -> Run:
    """Return the same run under a recipe with that judge."""
    return Run(run.name, run.path, judged_by(run.recipe, judge, **engine))


def test_a_recipe_without_a_judge_is_as_it_was_and_asks_nobody(recipe_values, run):
    recipe = Recipe.model_validate(recipe_values)
    assert "judge" not in recipe.to_yaml()
    without = Run(run.name, run.path, recipe)
    assert judge_module.judge(without) is judge_module.stored(without) is None
    assert "judge" not in " ".join(row["role"] for row in cost_estimate.memory(recipe))
    assert not any("judge" in line for line in plan._engines(recipe))
    recipe_values["engines"] = {"judge": "vllm"}
    with pytest.raises(ValueError, match="engines.judge is set, but models.judge names no model; add it there"):
        Recipe.model_validate(recipe_values)


def test_answers_are_compared_with_the_examples_and_with_what_is_known(run, monkeypatch):
    assert judge_module.stored(run) is None
    examples, validation = judge_module.judge(run)
    kept = run.read("examples").query("kept")
    assert list(examples["example_id"]) == list(kept["example_id"])
    tasks = load_tasks(run.recipe)
    for row in examples.itertuples():
        assert (
            pd.isna(row.agrees) if not row.said else row.agrees == tasks[row.task].answers.alike(row.answer, row.said)
        )
    assert list(validation["right"]) == [
        tasks[row.task].answers.same(row.said, row.target) for row in validation.itertuples()
    ]
    # One question has one answer, whoever wrote it down.
    assert (examples.groupby(["task", "question"])["said"].nunique() == 1).all()
    table = in_words.by_arm(judge_module.Judged(examples, validation))
    assert set(table["arm"]) == {arm.replace("_", " ") for arm in kept["arm"]} and "every student" in set(
        table["student"]
    )
    said = in_words.reliability(judge_module.Judged(examples, validation))
    assert f"On {len(validation)} validation questions" in said and "right by rule, it agrees with" in said
    # Asked again, the answers are at hand, and no engine is started.
    monkeypatch.setattr(judge_module, "run_engine_jobs", None)
    assert judge_module.judge(run).examples.equals(examples)
    assert judge_module.stored(run).validation.equals(validation)


def test_another_judge_and_other_examples_are_judged_anew(run, small_models):
    first = judge_module.judge(run)
    babbled = judge_module.judge(of(run, str(small_models / "babbler")))
    assert babbled.validation["right"].mean() < first.validation["right"].mean()
    assert len(list(run.path.glob(f"{judge_module.STEP}.superseded-*"))) == 1


def test_a_chat_server_judges_and_what_it_answered_is_kept_when_it_fails(run, monkeypatch):
    def fault(n: int, prompt: str) -> str:
        return "500" if n == 10 else ""

    with LocalServer(lambda body: "I count them: <ans>2</ans>", fault, key="sk-judge", served=("big",)) as server:
        monkeypatch.setenv(URL_VARIABLE, server.url)
        monkeypatch.setenv(KEY_VARIABLE, "sk-judge")
        by_server = of(run, "big", engine="openai", endpoint="chat", max_retries=0, max_concurrency=1)
        check(by_server.recipe)
        with pytest.raises(RunError, match="all answers so far are kept"):
            judge_module.judge(by_server)
        assert len(server.answered) == 10 and judge_module.stored(by_server) is None
        judged = judge_module.judge(by_server)
        assert len(server.answered) == len(set(server.answered)), "a question was asked twice"
        rationales = [text for text in run.read("examples")["rationale"] if text]
        assert not any(text in prompt for prompt in server.prompts for text in rationales)
    assert set(judged.validation.query("task == 'object_counting'")["said"]) == {"2"}
    with pytest.raises(ModelError, match="no server at"):
        check(by_server.recipe)


def test_refusals_are_asked_again(run, monkeypatch):
    asked = []
    monkeypatch.setattr(
        judge_module, "run_engine_jobs", lambda fn, jobs, *_: asked.append(len(jobs)) or refuse_one(fn, jobs)
    )

    def refuse_one(fn, jobs):
        first, *others = map(fn, jobs)
        return [[replace(first[0], text="") if len(asked) == 1 else first[0], *first[1:]], *others]

    once = judge_module.judge(run)
    assert judge_module.stored(run) is None and (once.validation["said"] == "").any()
    again = judge_module.judge(run)
    assert len(asked) == 2 and judge_module.stored(run).examples.equals(again.examples)


def test_what_a_judge_said_is_known_without_it(run, small_models, tmp_path):
    gone = tmp_path / "gone"
    shutil.copytree(small_models / "teacher", gone)
    by_copy = of(run, str(gone))
    said = judge_module.judge(by_copy)
    shutil.rmtree(gone)
    assert judge_module.stored(by_copy).examples.equals(said.examples)
    with pytest.raises(ModelError, match="gone does not exist"):
        judge_module.judge(by_copy)


def test_a_judge_that_is_not_here_stops_the_run_before_it_begins(small_models, runs, tmp_path):
    open_run("new", judged_by(recipe_of(small_models), str(tmp_path / "nowhere")))
    with pytest.raises(ModelError, match="nowhere does not exist"):
        preflight("new")


def test_answers_that_cannot_be_read_are_counted_apart(run):
    judged = judge_module.judge(run)
    silent = judge_module.Judged(
        judged.examples.assign(said="", agrees=pd.array([pd.NA] * len(judged.examples))),
        judged.validation.assign(said="", right=False),
    )
    said = in_words.reliability(silent)
    assert "to 20 it had no readable answer" in said and "agrees with" not in said
    table = in_words.by_arm(silent)
    assert set(table["the judge agrees"]) == {"none (n = 0)"} and table["no answer"].sum() == len(silent.examples)


def test_the_plan_counts_the_judge(run, monkeypatch):
    priced = of(run, "big", engine="openai", endpoint="chat", price_in=1000.0, price_out=1000.0).recipe
    frame = cost_estimate.estimate(priced).query("work == @cost_estimate.JUDGED")
    assert list(frame["model"]) == ["big"] and list(frame["stage"]) == ["alignment"]
    # A server's time and memory are not this machine's.
    assert list(frame["seconds"]) == [0] and "judge" not in [row["role"] for row in cost_estimate.memory(priced)]
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    (line,) = [line for line in plan._engines(priced) if line.startswith("  judge")]
    assert f"{(frame['read'].sum() + frame['new'].sum()) / 1000:,.2f} in money" in line and "trained models" not in line
    assert f"set base_url or {URL_VARIABLE} first" in line
    (row,) = [row for row in cost_estimate.memory(run.recipe) if row["role"] == "judge"]
    assert row["generate"] > 0 and row["train"] == 0


def test_the_card_tells_what_the_judge_found(run):
    from workbench.report import cards
    from workbench.report.facts import Facts

    least = {"decision": "", "student": "", "models": "", "warnings": [], "primary": {}, "comparisons": []}
    (run.path / "verdict.json").write_text(json.dumps(least | {"students": {}}))
    card = cards.TEMPLATES.get_template("card.md.j2")

    def said() -> str:
        return "".join(card.blocks["writing"](card.new_context({"facts": Facts(run, "pupil")})))

    assert "| tailored |" in said() and "the judge" not in said()
    judge_module.judge(run)
    assert set(Facts(run, "pupil").judged.examples["student"]) <= {"pupil", ""}
    assert "the judge (teacher) comes to the same answer" in said() and "the judge is right in" in said()
    assert runs_folder() in run.path.parents
