import json
import re

import pytest
from conftest import PROJECT

from data.pocket.make.classroom import TASKS
from workbench.runs.errors import DataError
from workbench.runs.recipe import Recipe
from workbench.runs.run import file_sha256
from workbench.tasks.contamination import normalise
from workbench.tasks.task import GENERAL_TECHNIQUES, SETS, copied_items, load_task, load_tasks, load_test_items


def rows(*numbers: int) -> list[dict]:
    return [{"input": f"What is {n} plus one?", "target": str(n + 1)} for n in numbers]


OWN = {"seeds": rows(1, 2, 3), "validation": rows(*range(4, 10)), "test": rows(*range(10, 20))}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sums.json").write_text(json.dumps(OWN))
    return tmp_path


@pytest.fixture
def of(recipe_values, folder):
    """Build the recipe for the folder's one task, with changes."""

    def build(**changes) -> Recipe:
        recipe_values["tasks"] = {"folder": str(folder), "names": ["sums"]}
        recipe_values["preference_set"] = {"n_validation": 6, "n_items": 2}
        for section, values in changes.items():
            recipe_values.setdefault(section, {}).update(values)
        return Recipe.model_validate(recipe_values)

    return build


def test_our_own_format(of, folder):
    task = load_tasks(of())["sums"]
    assert [len(getattr(task, name)) for name in SETS] == [3, 6, 10]
    assert list(task.test.columns) == ["item_id", "question", "target"]
    assert task.seeds.iloc[0].to_dict()["question"] == "What is 1 plus one?" and task.seeds.iloc[0]["target"] == "2"
    assert task.sha256 == file_sha256(folder / "sums.json") and task.techniques == GENERAL_TECHNIQUES
    assert "sums" in task.description
    # Nothing here can be solved or told a style by rule.
    assert task.solve("What is 1 plus one?") == "" == task.style("Forwards : 1")


def test_a_file_of_examples_is_split_the_same_way_every_time(of, folder):
    (folder / "sums.json").write_text(json.dumps({"canary": "x", "examples": rows(*range(30))}))
    task, again = load_tasks(of())["sums"], load_tasks(of())["sums"]
    assert [len(getattr(task, name)) for name in SETS] == [3, 6, 21]
    parts = [set(getattr(task, name)["question"]) for name in SETS]
    assert len(set.union(*parts)) == 30 == sum(map(len, parts))
    assert all(getattr(task, name).equals(getattr(again, name)) for name in SETS)
    assert list(task.seeds["question"]) != [row["input"] for row in rows(0, 1, 2)]
    # More validation items leave the seeds as they were.
    wider = load_tasks(of(preference_set={"n_validation": 10}))["sums"]
    assert wider.seeds.equals(task.seeds) and wider.validation["question"].head(6).equals(task.validation["question"])


def test_the_same_question_twice_is_one_item(of, folder):
    (folder / "sums.json").write_text(json.dumps(OWN | {"test": rows(10, 11, 10, 12, 13)}))
    assert len(load_tasks(of())["sums"].test) == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"There is no task file .*sums\.json; check tasks\.folder"),
        ("", r"is not JSON in UTF-8 .*; correct the file"),
        ("{'a': 1}", "is not JSON in UTF-8"),
        ("[]", "must hold an object with `examples`"),
        ("{}", "must hold an object with `examples`"),
        ({"examples": []}, "has no items under"),
        ({"examples": "text"}, "has no items under"),
        (OWN | {"test": []}, "has no items under 'test'; each is an object with `input` and `target`"),
        (OWN | {"seeds": None}, "has no items under 'seeds'"),
        (OWN | {"test": [{"question": "a", "answer": "b"}]}, "item 0 of 'test' must have texts `input` and `target`"),
        (OWN | {"test": [*rows(1), {"input": "a", "target": 3}]}, "item 1 of 'test' must have texts"),
        (OWN | {"validation": ["text"]}, "item 0 of 'validation' must have texts"),
        (OWN | {"validation": [{"input": " ", "target": "3"}]}, "item 0 of 'validation' must have texts"),
        (OWN | {"solver": "sudoku"}, r"names the solver 'sudoku'; there are object_counting,"),
        (OWN | {"solver": ["navigate"]}, r"names the solver \['navigate'\]"),
        (OWN | {"techniques": ["think"]}, "`techniques` must be an object of name and text"),
        (OWN | {"techniques": {"think": 3}}, "`techniques` must be an object of name and text"),
        (OWN | {"test": rows(1, 2)}, "Task sums has 2 test items, the recipe asks for 4; lower the recipe's number"),
        (OWN | {"validation": rows(1)}, "Task sums has 1 validation items, the recipe asks for 6"),
        ({"examples": rows(1, 2, 3, 4, 5)}, "holds 5 examples, but the recipe asks for 3 seeds, 6 validation"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(of, folder, content, said):
    path = folder / "sums.json"
    path.unlink()
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=said) as raised:
        load_tasks(of())
    assert "\n" not in str(raised.value) and ("sums" in str(raised.value))


def test_a_file_not_in_utf8_is_refused(of, folder):
    (folder / "sums.json").write_bytes('{"test": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="is not JSON in UTF-8"):
        load_tasks(of())


def test_test_items_from_elsewhere_leave_out_what_is_used_here(of, folder, tmp_path):
    outside = tmp_path / "bbh"
    outside.mkdir()
    near_copy = {"input": "what is 4 PLUS one", "target": "5"}
    (outside / "sums.json").write_text(json.dumps({"examples": [*rows(1), near_copy, *rows(*range(50, 60))]}))
    recipe = of(evaluation={"bbh_dir": str(outside)})
    items, sha256 = load_test_items(recipe, load_tasks(recipe)["sums"])
    assert list(items["target"]) == ["51", "52", "53", "54"] and sha256 == file_sha256(outside / "sums.json")
    own, own_sha256 = load_test_items(of(evaluation={"bbh_dir": ""}), load_tasks(recipe)["sums"])
    assert len(own) == 4 and own_sha256 == file_sha256(folder / "sums.json")
    (outside / "sums.json").write_text("{}")
    with pytest.raises(DataError, match="must hold an object"):
        load_test_items(recipe, load_tasks(recipe)["sums"])


def leaking(folder) -> None:
    """Write a task whose validation set holds a test item in other words, and another with other numbers."""
    things = "apples figs plums pears nuts cups hats pens pins bags".split()
    asked = [
        f"Ann has {a} {things[n % 10]} and {b} {things[n // 10]}?" for n in range(100) for a, b in [(n, 3 * n + 1)]
    ]
    sets = {"seeds": asked[:3], "validation": asked[3:9], "test": asked[9:]}
    sets["validation"][0] = "Ann owns 40 apples plus 121 nuts?"
    items = {name: [{"input": q, "target": "x"} for q in questions] for name, questions in sets.items()}
    (folder / "sums.json").write_text(json.dumps(items))


def test_test_items_that_copy_a_validation_item_are_left_out_or_refused(of, folder):
    leaking(folder)
    recipe = of(guard={"false_positive_rate": 0.1}, evaluation={"n_items": 91})
    task = load_tasks(recipe)["sums"]
    copied = "Ann has 40 apples and 121 nuts?"
    assert list(copied_items(recipe, task)) == [copied]
    assert copied in list(task.test["question"]) and copied not in list(load_test_items(recipe, task)[0]["question"])
    plain = of(guard={"levels": ["exact", "normalised"]})
    assert copied in list(load_test_items(plain, task)[0]["question"])
    strict = of(guard={"levels": ["exact", "near"], "test_overlap": "refuse"})
    with pytest.raises(
        DataError, match=r"1 of the 91 test items of sums copy what the run sees before .*'Ann has"
    ) as e:
        load_test_items(strict, task)
    assert "same as a validation item in nearly all of its telling words" in str(e.value) and "\n" not in str(e.value)


def test_the_general_techniques_are_four_and_differ():
    assert len(GENERAL_TECHNIQUES) == 4 == len(set(GENERAL_TECHNIQUES.values()))


@pytest.mark.parametrize("name", TASKS)
def test_our_solvers_answer_every_real_item(name, test_data, recipe):
    """The halves of BIG-Bench Hard at hand, which nobody here wrote."""
    task = load_task(PROJECT / "data" / "pocket" / "tasks" / f"{name}.json", recipe)
    examples = json.loads((test_data / "bbh" / f"{name}.json").read_text(encoding="utf-8"))["examples"]
    assert len(examples) > 100
    wrong = [e for e in examples if task.solve(e["input"]) != e["target"]]
    assert not wrong, f"{len(wrong)} of {len(examples)}, the first: {wrong[0]}"
    bbh = recipe.evaluation.model_copy(update={"bbh_dir": str(test_data / "bbh"), "n_items": 1000})
    items, _ = load_test_items(recipe.model_copy(update={"evaluation": bbh}), task)
    # Few short expressions exist, so some of ours are BIG-Bench Hard's too; enough are left to evaluate on.
    used = {normalise(question) for part in ("seeds", "validation") for question in getattr(task, part)["question"]}
    assert not used & set(items["question"].map(normalise)) and len(items) >= 100


@pytest.mark.parametrize("name", TASKS)
def test_every_word_of_the_real_items_is_one_the_generator_uses(name, test_data):
    from data.pocket.make.questions import TEST_SIZES, write
    from workbench.runs.seeding import stream

    def words(text: str) -> set[str]:
        return set(re.findall(r"\w+|[^\w\s]", text))

    examples = json.loads((test_data / "bbh" / f"{name}.json").read_text(encoding="utf-8"))["examples"]
    real = set().union(*(words(e["input"]) for e in examples))
    rng = stream(3, "vocabulary", name)
    known: set[str] = set()
    for _ in range(3000):
        known |= words(write(name, rng, TEST_SIZES[name]))
    assert not real - known
