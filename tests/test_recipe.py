import json
from functools import cache, reduce
from operator import getitem

import pytest
from conftest import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from workbench.runs.cache import runs_folder
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
        (
            "evaluation.arms",
            "[base, tailored]",
            "evaluation.primary names 'untailored', which is none of base, tailored",
        ),
        (
            "evaluation.arms",
            "[untailored, tailored, best_by_magic]",
            "evaluation.arms: 'best_by_magic' names 'magic', which is none of one_shot, self_consistency, surprisal, ",
        ),
        (
            "evaluation.arms",
            "[untailored, tailored, tailored_for_nobody]",
            "evaluation.arms: 'tailored_for_nobody' names 'nobody', which is none of counter; correct it",
        ),
        ("alignment.tasks", "[navigate]", "alignment.tasks names 'navigate', which is none of "),
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


def test_an_unknown_name_lists_the_shipped_ones():
    with pytest.raises(RecipeError, match=r"no recipe 'artedemo'; did you mean arte-demo\? The shipped recipes are a"):
        load_recipe("artedemo")
    with pytest.raises(RecipeError, match=r"There is no file .*mine\.YAML; correct the path, or give the name of a"):
        load_recipe("mine.YAML")


@pytest.fixture
def own(tmp_path, monkeypatch, recipe_values):
    """A person's own project, which looks like ours, with a recipe and what it names beside it; we stand elsewhere."""
    folder, elsewhere = tmp_path / "own" / "recipes", tmp_path / "elsewhere"
    for made in (folder / "student", tmp_path / "own" / "notebooks", elsewhere):
        made.mkdir(parents=True)
    (tmp_path / "own" / "pyproject.toml").touch()
    (folder / "quiz.csv").write_text("q,a\nx?,1\n")
    (elsewhere / "more.csv").write_text("q,a\ny?,2\n")
    source = {"path": "quiz.csv", "test": "more.csv", "answer_type": "number"}
    recipe_values["tasks"] = {"names": ["quiz", "other"], "sources": {"quiz": source}}
    recipe_values["tasks"]["sources"]["other"] = {"path": "nowhere", "test": "student", "answer_type": "number"}
    recipe_values["models"]["students"] = {"counter": "student", "mover": "nowhere/student"}
    (folder / "mine.YAML").write_text(format_yaml(recipe_values), encoding="utf-8")
    monkeypatch.chdir(elsewhere)
    return folder


def test_places_are_looked_for_in_the_project_beside_the_recipe_and_here(own):
    recipe = load_recipe(str(own / "mine.YAML"))
    quiz, other = recipe.tasks.sources["quiz"], recipe.tasks.sources["other"]
    assert (quiz.path, quiz.test) == (str(own / "quiz.csv"), str(own.parents[1] / "elsewhere" / "more.csv"))
    assert recipe.models.teacher == "data/pocket/teacher" and (other.path, other.test) == ("nowhere", "student")
    assert recipe.models.students == {"counter": str(own / "student"), "mover": "nowhere/student"}


def test_the_project_is_where_the_library_lies_and_runs_are_kept_where_one_stands(own, monkeypatch):
    monkeypatch.delenv("WORKBENCH_RUNS", raising=False)
    monkeypatch.chdir(own.parent)
    assert project_root() == PROJECT and runs_folder() == own.parent / "data" / "runs"
    runs_folder().mkdir(parents=True)
    monkeypatch.chdir(own.parent / "notebooks")
    assert runs_folder() == own.parent / "data" / "runs"
    monkeypatch.chdir(PROJECT / "notebooks")
    assert runs_folder() == PROJECT / "data" / "runs"


def test_a_recipe_survives_its_own_yaml(load, recipe, tmp_path):
    path = tmp_path / "again.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(str(path)) == recipe


SHIPPED = sorted((PROJECT / "notebooks" / "recipes").glob("*.yaml"))
TEXTS = st.one_of(
    st.text(max_size=8), st.sampled_from(["no", "5e-7", "a: b", "# x", "~", "1", "2026-01-01", "a\u2028b"])
)
VALUES = st.one_of(st.booleans(), st.integers(0, 9), st.floats(0, 1), TEXTS)
SOURCES = st.fixed_dictionaries(
    {"answer_type": st.sampled_from(["number", "exact", "tagged", "regex"])},
    optional={"path": TEXTS, "generator": TEXTS, "level": st.integers(0, 2), "split": TEXTS, "description": TEXTS}
    | {"reply_pattern": TEXTS, "licence": TEXTS, "duplicates": st.sampled_from(["refuse", "drop"])},
)


@cache
def shipped(path) -> tuple[type[Recipe], str]:
    recipe = load_recipe(str(path))
    return type(recipe), recipe.to_yaml()


def paths(values: dict, above: tuple = ()) -> list[tuple]:
    """Return the keys that lead to every value; names of students may hold dots."""
    return [
        path
        for key, value in values.items()
        for path in (paths(value, (*above, key)) if isinstance(value, dict) and value else [(*above, key)])
    ]


@given(path=st.sampled_from(SHIPPED), data=st.data())
@settings(max_examples=15)
def test_what_is_accepted_can_be_read_again(path, data):
    """Or a run could be begun and never be opened again."""
    kind, text = shipped(path)
    values = parse_yaml(text)
    keys = st.sampled_from(paths(values))
    for (*above, last), value in data.draw(st.dictionaries(keys, VALUES, max_size=2)).items():
        reduce(getitem, above, values)[last] = value
    if data.draw(st.booleans()):
        values["tasks"]["sources"] = {values["tasks"]["names"][0]: data.draw(SOURCES)}
    try:
        changed = kind.model_validate(values)
    except ValidationError:
        return
    assert kind.model_validate(parse_yaml(changed.to_yaml())) == changed


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


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("evaluation", {"arms": ["base", "distilled"], "primary": {"a": "distilled", "b": "base"}}, "add that"),
        ("training", {"backend": "unsloth"}, "needs training.backend trl and no compute.launcher; set them so"),
        ("compute", {"launcher": "accelerate"}, "needs training.backend trl and no compute.launcher; set them so"),
    ],
)
def test_an_arm_of_distillation_needs_untailored_questions_and_trl_in_this_process(
    recipe_values, section, values, said
):
    recipe_values["evaluation"]["arms"] = ["base", "untailored", "tailored", "distilled"]
    Recipe.model_validate(recipe_values)
    recipe_values.setdefault(section, {}).update(values)
    with pytest.raises(ValueError, match=f"evaluation.arms has 'distilled'.*{said}"):
        Recipe.model_validate(recipe_values)


def test_racing_is_of_the_method_that_probes_and_leaves_older_fingerprints():
    plain = load_recipe("arte-demo")
    assert "probing" not in plain.model_dump() and plain.probing.rule == "uniform"
    raced = load_recipe("arte-demo", {"probing.rule": "racing", "probing.error": "0.2"})
    assert raced.model_dump()["probing"] == {"rule": "racing", "error": 0.2}
    with pytest.raises(RecipeError, match="probing.error must be less than 0.5, got 0.5"):
        load_recipe("arte-demo", {"probing.error": "0.5"})
    with pytest.raises(RecipeError, match="probing"):
        load_recipe("montessori", {"probing.rule": "racing"})


def test_an_override_reaches_a_student_whose_name_holds_dots(recipe_values, tmp_path):
    recipe_values["models"]["students"] = {"tiny-1.1b": "data/pocket/a", "b": "data/pocket/b"}
    path = tmp_path / "dots.yaml"
    path.write_text(format_yaml(recipe_values))
    changed = load_recipe(
        str(path), {"models.students.tiny-1.1b": "data/pocket/c", "models.students.b": "data/pocket/d"}
    )
    assert changed.models.students == {"tiny-1.1b": "data/pocket/c", "b": "data/pocket/d"}
