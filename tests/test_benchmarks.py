import json
import sys
from functools import partial

import pytest
from conftest import PROJECT, not_run

from workbench.models.engine import prompt_ids
from workbench.models.packed_losses import Text, Texts
from workbench.models.start import Model
from workbench.models.transformers_engine import TransformersEngine
from workbench.runs.errors import DataError
from workbench.runs.recipe import Recipe
from workbench.studies import benchmarks
from workbench.studies.benchmarks import ask_model

STUDENT = "data/pocket/no-preference"
YAML = """
task: counting
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture
def recipe(recipe_values, tmp_path) -> Recipe:
    rows = [
        {"question": f"I have {words}. How many do I have?", "choices": [" one", " two", " three"], "answer": n}
        for n, words in enumerate(["a chair", "a chair and a table", "a chair, a table and a bed"] * 4)
        for n in [n % 3]
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "counting.yaml").write_text(YAML.format(path=tmp_path / "rows.jsonl"))
    recipe_values["benchmarks"] = {"tasks": ["counting"], "folder": str(tmp_path)}
    recipe_values["compute"] = {"device": "cpu"}
    return Recipe.model_validate(recipe_values)


@pytest.mark.slow
def test_the_harness_scores_a_pocket_model_as_its_likelihoods_say(recipe, tmp_path):
    if benchmarks.importlib.util.find_spec("lm_eval") is None:
        not_run("lm-evaluation-harness: make lm-eval")
    (found,) = ask_model(recipe, STUDENT)
    assert (found["benchmark"], found["metric"], found["n"]) == ("counting", "acc", 12) and found["stderr"] >= 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    engine = TransformersEngine(str(PROJECT / STUDENT), device="cpu")
    texts = [
        Text(prompt, engine.tokenizer(one, add_special_tokens=False)["input_ids"])
        for row in rows
        for prompt in prompt_ids(engine.tokenizer, [engine.render(row["question"])], engine.ends)
        for one in row["choices"]
    ]
    losses = Texts(engine.model, texts).losses().reshape(-1, 3)
    right = [int(three.argmin()) == row["answer"] for three, row in zip(losses, rows, strict=True)]
    assert found["value"] == pytest.approx(sum(right) / 12)
    unknown = recipe.model_copy(update={"benchmarks": recipe.benchmarks.model_copy(update={"tasks": ["countin"]})})
    with pytest.raises(DataError, match="names 'countin', which lm-evaluation-harness does not know; did you mean"):
        ask_model(unknown, STUDENT)


def test_a_missing_harness_is_one_sentence_before_any_model_is_loaded(recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(DataError, match="lm-evaluation-harness, which is not installed; run: make lm-eval, or take"):
        ask_model(recipe, "nowhere")


def test_answers_found_once_are_not_asked_again_unless_something_changed(recipe, runs, tmp_path, monkeypatch):
    asked = []

    def ask_once(recipe, ref):
        asked.append(ref)
        return [{"benchmark": "counting", "metric": "acc", "value": 0.5, "stderr": None, "n": 12}]

    class Run:
        path = tmp_path / "run"

        def result(self, name):
            return name

    Run.path.mkdir()
    Run.recipe = recipe
    student = str(PROJECT / STUDENT)
    model = partial(Model, recipe, "student")
    others = [("s", "random_pairs", 0, model("x")), ("s", "tailored", 1, model("x"))]
    teacher = model(str(PROJECT / "data/pocket/teacher"))
    asked_of = [("s", "base", -1, model(student)), ("s", "tailored", 0, teacher), *others]
    monkeypatch.setattr(benchmarks, "models_of", lambda *_: {})
    monkeypatch.setattr(benchmarks, "everyone", lambda *_: asked_of)
    monkeypatch.setattr(benchmarks, "ask_model", ask_once)
    monkeypatch.setattr(benchmarks.importlib.metadata, "version", lambda name: "1")
    monkeypatch.setattr(benchmarks, "_require_installed", lambda: None)
    frame = benchmarks.ask(Run())
    assert list(frame["arm"]) == ["base", "tailored"] and list(frame.columns) == benchmarks.COLUMNS
    assert benchmarks.ask(Run()).equals(frame) and len(asked) == 2
    (tmp_path / "rows.jsonl").write_text("{}")
    benchmarks.ask(Run())
    assert len(asked) == 4, "another content of the benchmark is another benchmark"
    Run.recipe = recipe.model_copy(update={"benchmarks": type(recipe.benchmarks)()})
    assert benchmarks.ask(Run()).empty


def test_recipes_without_benchmarks_stay_as_they_were(recipe_values):
    assert "benchmarks" not in Recipe.model_validate(recipe_values).to_yaml()
    recipe_values["benchmarks"] = {"n_items": 5}
    with pytest.raises(ValueError, match="n_items is set, but no benchmark is named; add tasks"):
        Recipe.model_validate(recipe_values)
