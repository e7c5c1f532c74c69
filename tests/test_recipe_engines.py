import pytest
import yaml

from workbench.runs.cache import StoreError
from workbench.runs.recipe import RecipeError
from workbench.runs.recipe_engines import OWN_SETTINGS, EngineChoice
from workbench.runs.recipe_file import load_recipe
from workbench.runs.run import open_run


@pytest.fixture
def load(tmp_path, recipe_values):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(recipe_values), encoding="utf-8")
    return lambda overrides=None: load_recipe(str(path), overrides)


def test_an_engine_is_one_line_and_the_roles_are_apart(load):
    assert load().engines.teacher.engine == load().engines.student.engine == "transformers"
    engines = load({"engines": "{teacher: vllm}"}).engines
    assert (engines.teacher.engine, engines.student.engine) == ("vllm", "transformers")
    engines = load({"engines": "{teacher: {engine: openai, n_parallel: 4}, student: vllm}"}).engines
    assert (engines.teacher.n_parallel, engines.student.engine) == (4, "vllm")


def test_a_recipe_comes_back_as_it_was_written(load, tmp_path):
    recipe = load({"engines.teacher": "vllm", "engines.student.engine": "openai", "engines.student.n_parallel": "3"})
    path = tmp_path / "again.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(str(path)) == recipe


def test_caps_on_spending_are_no_other_recipe_and_all_else_is(load):
    server = {"engines.teacher.engine": "openai", "engines.teacher.price_in": "1.0"}
    caps = {"engines.teacher.budget_tokens": "5", "engines.teacher.budget_money": "2.0"}
    capped, plain = load(server | caps), load(server)
    assert capped != plain and capped.without_limits() == plain.without_limits()
    assert load({**server, "engines.teacher.n_parallel": "2"}).without_limits() != plain.without_limits()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"engines.teacher": "vlm"}, "engines.teacher.engine must be one of transformers, vllm, openai, got 'vlm'"),
        ({"engines.techer": "vllm"}, "did you mean engines.teacher?"),
        ({"engines.teacher": "7"}, "engines.teacher must be a section with engine"),
        ({"engines.teacher.n_parallel": "4"}, "engines.teacher.n_parallel is for the engine openai, but this is tr"),
        ({"engines.teacher": "{engine: vllm, tensor_parallel_size: 0}"}, "must be a whole number >= 1"),
        ({"engines.teacher": "{engine: openai, api_key: sk-1}"}, "engines.teacher.api_key is not a key of a recipe"),
        ({"engines.teacher": "{engine: openai, base_url: localhost}"}, "base_url must begin with http:// or https://"),
        ({"engines.teacher": "{engine: openai, base_url: 'http://me:sk-1@host/v1'}"}, "keys come from OPENAI_API_KEY"),
        ({"engines.teacher": "{engine: openai, budget_money: 1.0}"}, "budget_money needs price_in and price_out"),
        ({"engines.teacher": "{engine: openai, endpoint: chat}"}, "cannot be aligned, as 'untailored' needs"),
        ({"engines.student": "{engine: openai, endpoint: chat}"}, "cannot be trained"),
        (
            {"engines.student": "{engine: openai, served: m}", "models.students.mover": "data/m"},
            "engines.student.served names one model",
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


def test_every_setting_belongs_to_one_engine():
    owned = [name for names in OWN_SETTINGS.values() for name in names]
    assert sorted(["engine", *owned]) == sorted(EngineChoice.model_fields)


def test_a_run_goes_on_with_a_raised_cap_and_with_no_other_change(load, runs):
    server = {"engines.teacher.engine": "openai"}
    capped = load(server | {"engines.teacher.budget_tokens": "5"})
    raised = load(server | {"engines.teacher.budget_tokens": "50"})
    (open_run("mine", capped).path / "questions").mkdir()
    assert open_run("mine", raised).recipe == open_run("mine").recipe == raised
    with pytest.raises(StoreError, match=r"undo: engines.teacher.n_parallel 16 -> 2"):
        open_run("mine", load(server | {"engines.teacher.budget_tokens": "50", "engines.teacher.n_parallel": "2"}))
