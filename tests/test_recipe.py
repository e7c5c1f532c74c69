import json

import pytest
from conftest import PROJECT

from workbench.runs.errors import RecipeError
from workbench.runs.recipe import Recipe, flatten, format_yaml, parse_yaml, project_root
from workbench.runs.recipe_file import load_recipe


@pytest.fixture
def load(tmp_path, recipe_values):
    """Load the small recipe with overrides."""
    path = tmp_path / "small.yaml"
    path.write_text(format_yaml(recipe_values), encoding="utf-8")
    return lambda overrides=None: load_recipe(str(path), overrides)


def faults(load, overrides) -> list[str]:
    with pytest.raises(RecipeError) as error:
        load(overrides)
    return str(error.value).splitlines()[1:]


def test_defaults_are_the_papers(load):
    recipe = load()
    assert (recipe.preference_set.n_validation, recipe.preference_set.n_items) == (100, 40)
    assert recipe.pairs.quantile == 0.25 and recipe.tailoring.rationale_temperature == 0
    assert (recipe.evaluation.primary.a, recipe.evaluation.primary.b) == ("tailored", "untailored")


def test_overrides_are_read_as_yaml(load):
    recipe = load({"alignment.beta": "0.05", "seeds": "[3, 4, 5]", "models.students.mover": "data/m"})
    assert recipe.alignment.beta == 0.05 and recipe.seeds == [3, 4, 5]
    assert list(recipe.models.students) == ["counter", "mover"]


def test_numbers_and_words_are_read_as_yaml_1_2_has_them(load):
    recipe = load({"alignment.learning_rate": "5e-7", "models.judge": "no"})
    assert recipe.alignment.learning_rate == 5e-7 and recipe.models.judge == "no"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("alignment.betta", "1", "alignment.betta is not a key of a recipe (value 1); did you mean alignment.beta?"),
        ("beta", "1", "did you mean alignment.beta?"),
        ("models.licences.mover", "mit", "licences names 'mover', which is none of teacher, counter"),
        ("batch_sise", "1", "known here: name, profile, seeds"),
        ("alignmnt.beta", "1", "did you mean alignment?"),
        ("alignment.beta", "0", "alignment.beta must be greater than 0, got 0"),
        ("alignment.beta", ".inf", "alignment.beta must be a finite number, got inf"),
        ("alignment.beta", "true", "alignment.beta must be a valid number, got True (a truth value)."),
        ("training.n_epochs", "1.5", "training.n_epochs must be a valid integer, got 1.5 (a number)."),
        ("training.n_epochs", "'3'", "got '3' (text). Remove the quotes: 3."),
        ("alignment.beta", "'5e-7'", "got '5e-7' (text). Remove the quotes: 5e-7."),
        ("training.n_epochs", "many", "training.n_epochs must be a valid integer, got 'many' (text)."),
        ("pairs.quantile", "0.6", "pairs.quantile must be less than or equal to 0.5, got 0.6"),
        ("pairs.quantile", ".nan", "got nan"),
        ("compute.device", "tpu", "compute.device must be 'auto', 'cpu' or 'cuda', got 'tpu'"),
        ("compute", "1", "compute must be a section with workers"),
        ("name", "2026-01-01", "name must be a valid string, got"),
        ("name", "2026-13-01", "cannot be read as YAML (month must be in 1..12)"),
        ("models.students", "{1: a}", "models.students.1 must be a valid string, got 1 (a whole number)."),
        ("seeds", "[1]", "seeds must have at least 2 items, not 1, got [1] (a list)."),
        ("seeds", "[1, 1]", "seeds must all differ, got [1, 1]; remove the repeats"),
        ("seeds", "[1, -2]", "seeds.1 must be greater than or equal to 0, got -2"),
        ("models.students", "{}", "models.students must have at least 1 item, not 0"),
        (
            "models.students",
            "{a/b: c}",
            "models.students.a/b must match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$', got 'a/b'",
        ),
        ("evaluation.arms", "[base, tailord]", "evaluation.arms names 'tailord', which is none of base, untailored"),
        ("evaluation.arms", "[base, tailored]", "evaluation.primary names the arm 'untailored'"),
        (
            "evaluation.arms",
            "[untailored, tailored, tailored_for_nobody]",
            "evaluation.arms names 'tailored_for_nobody', but the students are counter; correct or remove it.",
        ),
        ("alignment.tasks", "[navigate]", "alignment.tasks names 'navigate', which is not among tasks.names"),
        ("guard.levels", "[exact, fuzzy]", "guard.levels.1 must be 'exact', 'normalised', 'options'"),
        ("guard.levels", "[near, near]", "guard.levels must all differ"),
        ("guard.levels", "[]", "guard.levels must have at least 1 item, not 0"),
        (
            "guard.false_alarms",
            "0.02",
            "guard.false_alarms is not a key of a recipe (value 0.02); it is called guard.false_positive_rate now",
        ),
        ("guard.false_positive_rate", "0.0", "guard.false_positive_rate must be greater than 0, got 0.0"),
        ("guard.test_overlap", "keep", "guard.test_overlap must be 'remove' or 'refuse', got 'keep'"),
        ("evaluation.primary.shots", "7", "evaluation.primary.shots must be one of shots [0, 3], got 7"),
        ("evaluation.primary.b", "tailored", "evaluation.primary must compare two different arms"),
        ("preference_set.n_items", "200", "n_items must be at most n_validation (100), got 200; lower it"),
        ("name.first", "x", "name holds a single value"),
        ("alignment.scheduler", "[", "cannot be read as YAML"),
        ("drafting", "{}", "drafting.n_questions is missing; add it: a whole number."),
    ],
)
def test_each_fault_says_key_value_allowed_and_fix(load, key, value, says):
    assert any(says in line for line in faults(load, {key: value})), faults(load, {key: value})


@pytest.mark.parametrize("key", ["evaluation.shots", "preference_set.shots"])
def test_more_shots_than_there_are_seed_questions_are_refused(load, key):
    (line,) = faults(load, {key: "[0, 5]"})
    assert line.startswith(f"{key} asks for 5 shots, but only the drafting.n_seed_questions (3)")
    assert load({key: "[0, 5]", "drafting.n_seed_questions": "5"}).drafting.n_seed_questions == 5


def test_all_faults_come_at_once(load):
    lines = faults(load, {"alignment.beta": "-1", "alignment.betta": "1", "seeds": "[1]", "evaluation.shots": "[]"})
    assert len(lines) == 4


def test_a_missing_section_is_described(load, recipe_values, tmp_path):
    del recipe_values["training"]
    path = tmp_path / "without.yaml"
    path.write_text(format_yaml(recipe_values), encoding="utf-8")
    with pytest.raises(RecipeError, match="training is missing; add it: a section with learning_rate, n_epochs"):
        load_recipe(str(path))


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "", "\x00"])
def test_a_file_that_is_no_recipe_is_named(tmp_path, text):
    path = tmp_path / "odd.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"odd\.yaml"):
        load_recipe(str(path))


def test_an_unknown_name_lists_the_shipped_ones(tmp_path, monkeypatch):
    recipes = tmp_path / "notebooks" / "recipes"
    recipes.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    (recipes / "arte.yaml").touch()
    monkeypatch.chdir(recipes)
    assert project_root() == tmp_path
    with pytest.raises(RecipeError, match=r"no recipe 'arts'; did you mean arte\? The shipped recipes are arte"):
        load_recipe("arts")


def test_a_recipe_survives_its_own_yaml(load, recipe, tmp_path):
    path = tmp_path / "again.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(str(path)) == recipe


def test_a_recipe_cannot_be_changed(recipe):
    with pytest.raises(ValueError, match="frozen"):
        recipe.alignment.beta = 1.0


def test_section_json_covers_what_is_named_and_nothing_else(load):
    recipe, other = load(), load({"alignment.beta": "0.2"})
    assert json.loads(recipe.section_json("seeds", "models.teacher")) == {
        "models.teacher": "data/pocket/teacher",
        "seeds": [0, 1],
    }
    assert recipe.section_json("training") == other.section_json("training")
    assert recipe.section_json("alignment") != other.section_json("alignment")


def test_flatten_names_every_value():
    assert dict(flatten({"a": {"b": 1, "c": {}}, "d": [2]})) == {"a.b": 1, "a.c": {}, "d": [2]}


@pytest.mark.parametrize("path", sorted((PROJECT / "notebooks" / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_validate_and_are_named_as_their_file(path):
    assert isinstance(recipe := load_recipe(str(path)), Recipe) and recipe.name == path.stem


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path):
    demo = PROJECT / "notebooks" / "recipes" / "arte-demo.yaml"
    text = demo.read_text() + "engines: {teacher: vllm}\ncompute: {workers: 1}\n"
    (tmp_path / "twice.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r'YAML \(line \d\d: found duplicate key "compute"\); correct the file'):
        load_recipe(str(tmp_path / "twice.yaml"))


def test_what_two_sections_share_may_be_written_once(tmp_path):
    text = (PROJECT / "notebooks" / "recipes" / "arte-demo.yaml").read_text()
    assert "compute:\n" in text
    (tmp_path / "merged.yaml").write_text(text.replace("compute:\n", "compute:\n  <<: {workers: 1}\n"))
    assert load_recipe(str(tmp_path / "merged.yaml")).compute.workers == 1


BAD_FILES = {
    "0: 1\n0: 2\n": "line 2: found duplicate key",
    "a: {b: 1, b: 2}\n": "line 1: found duplicate key",
    "? {a: 1}\n: 2\n": "line 1: found unhashable key",
    "? [1]\n: 2\n": r"\(1,\) is not a key of a recipe",
    "0: 1\n": "0 is not a key of a recipe",
    "name: !!python/object/apply:os.getcwd []\n": "line 1: could not determine a constructor for the tag",
    "name: a\n---\nname: b\n": "line 2: but found another document",
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_what_yaml_allows_and_a_recipe_does_not_is_refused_in_words(tmp_path, text):
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(RecipeError, match=BAD_FILES[text]):
        load_recipe(str(tmp_path / "odd.yaml"))


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS, "line 5: .*aliases for more than 20,000 values"),
        ("[" * 3000, "more than 300 open brackets"),
        ("{a: " * 2000, "more than 300 open brackets"),
        ("".join(" " * i + "a:\n" for i in range(400)), "line 30: nested deeper than 30 levels"),
        ("- " * 2000 + "a", "nested deeper than 30 levels"),
        ("a: " + "x" * 300_000, "300,003 characters, of at most 200,000"),
    ],
    ids=["laughs", "lists", "mappings", "lines", "dashes", "long"],
)
def test_yaml_that_would_not_come_to_an_end_is_refused_at_once(tmp_path, text, says):
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(RecipeError, match=rf"odd\.yaml cannot be read as YAML \(.*{says}"):
        load_recipe(str(tmp_path / "odd.yaml"))


def test_what_a_recipe_holds_reaches_no_terminal_raw(load):
    (line,) = faults(load, {"\x1b[2Jx": "1"})
    assert "\x1b" not in line and "[2Jx is not a key" in line
    (line,) = faults(load, {"evaluation.arms": ["a" * 9_000]})
    assert len(line) < 500


@pytest.mark.parametrize(
    ("key", "value"),
    [("seeds", [0, 2**200]), ("evaluation.n_items", 10**30), ("compute.workers", 100_000)],
)
def test_numbers_that_nothing_here_can_hold_are_refused(load, key, value):
    (line,) = faults(load, {key: value})
    assert line.startswith(key) and "must be less than or equal to" in line


def test_texts_that_look_like_other_values_survive_being_written():
    texts = ["no", "5e-7", "0o17", "~", "", " a ", "2026-01-01", "a: b #c", "'", "=", "<<", "é\n\tb", "1:30", "- x"]
    assert parse_yaml(format_yaml({"texts": texts})) == {"texts": texts}
