import pandas as pd
import pytest

from workbench.runs.errors import RecipeError, RunError
from workbench.runs.recipe import format_yaml
from workbench.runs.recipe_file import load_recipe
from workbench.runs.recipe_parts import OWN_SETTINGS, EngineChoice
from workbench.runs.run import open_run


def one_row(n: int) -> pd.DataFrame:
    return pd.DataFrame({"n": [n]})


@pytest.fixture
def load(tmp_path, recipe_values):
    path = tmp_path / "small.yaml"
    path.write_text(format_yaml(recipe_values), encoding="utf-8")
    return lambda overrides=None: load_recipe(str(path), overrides)


def test_an_engine_is_one_line_and_the_roles_are_apart(load):
    assert load().engines.teacher.engine == load().engines.student.engine == "transformers"
    engines = load({"engines": "{teacher: vllm}"}).engines
    assert (engines.teacher.engine, engines.student.engine) == ("vllm", "transformers")
    engines = load({"engines": "{teacher: {engine: openai, max_concurrency: 4}, student: vllm}"}).engines
    assert (engines.teacher.max_concurrency, engines.student.engine) == (4, "vllm")


def test_a_recipe_comes_back_as_it_was_written(load, tmp_path):
    recipe = load(
        {"engines.teacher": "vllm", "engines.student.engine": "openai", "engines.student.max_concurrency": "3"}
    )
    path = tmp_path / "again.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(str(path)) == recipe


def test_a_cap_on_spending_is_no_other_recipe_and_all_else_is(load):
    server = {"engines.teacher.engine": "openai", "engines.teacher.price_in": "1.0"}
    capped, plain = load(server | {"engines.teacher.budget_tokens": "5"}), load(server)
    assert capped != plain and capped.without_limits() == plain.without_limits()
    assert load({**server, "engines.teacher.max_concurrency": "2"}).without_limits() != plain.without_limits()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"engines.teacher": "vlm"}, "engines.teacher.engine must be 'transformers', 'vllm' or 'openai', got 'vlm'"),
        ({"engines.techer": "vllm"}, "did you mean engines.teacher?"),
        ({"engines.teacher": "7"}, "engines.teacher must be a section with engine"),
        (
            {"engines.teacher.max_concurrency": "4"},
            "engines.teacher.max_concurrency is for the engine openai, but this is tr",
        ),
        (
            {"engines.teacher": "{engine: openai, served: m}"},
            "engines.teacher.served (value 'm') is now model_name; rename",
        ),
        ({"engines.judge.n_parallel": "4"}, "engines.judge.n_parallel (value 4) is now max_concurrency; rename it."),
        (
            {"engines.teacher.n_attempts": "6"},
            "n_attempts (value 6) is now max_retries, which does not count the first",
        ),
        ({"engines.teacher": "{engine: openai, budget_money: 1.0}"}, "is now budget_tokens, a cap on tokens; rename"),
        ({"engines.teacher": "{engine: vllm, tensor_parallel_size: 0}"}, "must be greater than or equal to 1, got 0"),
        ({"engines.teacher": "{engine: openai, api_key: sk-1}"}, "engines.teacher.api_key is not a key of a recipe"),
        ({"engines.teacher": "{engine: openai, base_url: localhost}"}, "base_url must begin with http:// or https://"),
        ({"engines.teacher": "{engine: openai, base_url: 'http://me:sk-1@host/v1'}"}, "keys come from OPENAI_API_KEY"),
        ({"engines.teacher": "{engine: openai, endpoint: chat}"}, "cannot be aligned, as 'untailored' needs"),
        ({"engines.student": "{engine: openai, endpoint: chat}"}, "cannot be trained"),
        (
            {"engines.student": "{engine: openai, model_name: m}", "models.students.mover": "data/m"},
            "engines.student.model_name names one model",
        ),
    ],
)
def test_faults_are_named(load, overrides, says):
    with pytest.raises(RecipeError) as error:
        load(overrides)
    assert says in str(error.value)


def test_a_key_written_into_an_address_is_not_repeated(load):
    with pytest.raises(RecipeError) as error:
        load({"engines.teacher": "{engine: openai, base_url: 'http://me:sk-1@host/v1'}"})
    assert "sk-1" not in str(error.value)


def test_a_chat_server_may_draft_where_nothing_is_aligned(load):
    arms = {"evaluation.arms": "[base, most_preferred]", "evaluation.primary": "{a: most_preferred, b: base}"}
    assert load({"engines.teacher": "{engine: openai, endpoint: chat}", **arms}).engines.teacher.capabilities == ()


def test_a_setting_that_is_gone_is_no_fault_where_nobody_set_it(load):
    assert load({"engines.teacher": "{engine: openai, budget_money: 0.0}"}).engines.teacher.engine == "openai"


def test_every_setting_belongs_to_one_engine():
    owned = [name for names in OWN_SETTINGS.values() for name in names]
    assert sorted(["engine", *owned]) == sorted(EngineChoice.model_fields)


def test_a_run_goes_on_with_a_raised_cap_and_with_no_other_change(load, runs):
    server = {"engines.teacher.engine": "openai"}
    capped = load(server | {"engines.teacher.budget_tokens": "5"})
    raised = load(server | {"engines.teacher.budget_tokens": "50"})
    open_run("mine", capped).step("begun", one_row, 1)
    assert open_run("mine", raised).recipe == open_run("mine").recipe == raised
    with pytest.raises(RunError, match=r"undo: engines.teacher.max_concurrency 16 -> 2"):
        open_run("mine", load(server | {"engines.teacher.budget_tokens": "50", "engines.teacher.max_concurrency": "2"}))


def test_a_run_goes_on_with_fewer_rows_at_once_and_the_same_fingerprints(load, runs):
    plain, fewer = load(), load({"training.micro_batch_size": "2", "alignment.micro_batch_size": "1"})
    open_run("mine", plain).step("begun", one_row, 1)
    assert open_run("mine", fewer).recipe.training.micro_batch_size == 2
    assert plain.section_json("training", "alignment") == fewer.section_json("training", "alignment")
