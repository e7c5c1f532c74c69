"""Tasks from reasoning-gym: items that stay the same, levels, verifiers, and what is refused and why."""

import ast
import inspect
import os
import pickle
import subprocess
import sys

import pytest
import reasoning_gym.factory as library
from conftest import PROJECT

from workbench.runs.errors import DataError
from workbench.runs.identity import identify
from workbench.runs.recipe import Recipe, parse_yaml
from workbench.runs.recipe_parts import Tasks
from workbench.tasks import gym
from workbench.tasks.gym import REFUSED
from workbench.tasks.task import SETS, copied_items, guard_of, load_tasks, load_test_items, task_file

# Arithmetic, algebra, letters, matrices, graphs, games, logic, geometry, cognition and dates.
KINDS = "basic_arithmetic simple_equations spell_backward rotate_matrix shortest_path mini_sudoku".split()
KINDS += "knights_knaves simple_geometry needle_haystack calendar_arithmetic".split()
# Their verifiers take an answer in another form than the library's own.
ALSO_RIGHT = {"chain_sum": lambda t: f"{t}.0", "knights_knaves": lambda t: t.lower(), "needle_haystack": str.upper}


RUNS = {"eval", "exec", "compile", "parse_expr", "sympify", "system", "subprocess", "pickle"}


@pytest.fixture
def of(recipe_values):
    """Build a recipe with one task, `mine`, from a generator."""

    def build(generator="basic_arithmetic", answer_type="tagged", **source) -> Recipe:
        source |= {"generator": generator, "answer_type": answer_type}
        recipe_values["tasks"] = {"names": ["mine"], "sources": {"mine": source}}
        recipe_values["preference_set"] = {"n_validation": 12, "n_items": 2}
        return Recipe.model_validate(recipe_values)

    return build


def load(recipe):
    return load_tasks(recipe)["mine"]


def texts(task) -> list[tuple[str, str]]:
    return [row for part in SETS for row in getattr(task, part)[["question", "target"]].itertuples(False, None)]


@pytest.mark.parametrize("generator", KINDS)
def test_every_kind_gives_apart_sets_and_takes_the_right_answer_alone(of, generator):
    recipe = of(generator)
    task = load(recipe)
    sets = [set(getattr(task, part)["question"]) for part in SETS]
    assert all(len(own) >= n for own, n in zip(sets, (3, 12, recipe.evaluation.n_items), strict=True))
    assert sum(map(len, sets)) == len(set().union(*sets))
    for question, target in texts(task):
        assert task.answers.same(task.answers.read(f"So <ans>{target}</ans>"), target), question
        assert not task.answers.same("another", target) and not task.answers.same("", target), question
    gym._dataset.cache_clear(), gym._item.cache_clear()
    again = load(recipe)
    assert texts(again) == texts(task) and identify(again) == identify(task)
    assert task_file(recipe, "mine") is None and not task.solve(question)


@pytest.mark.parametrize("generator", KINDS)
def test_levels_and_seeds_differ_and_are_another_task(of, generator):
    plain, harder, other = (load(of(generator, **more)) for more in ({}, {"level": 1}, {"seed": 1}))
    assert set(texts(plain)) != set(texts(harder)) and set(texts(plain)) != set(texts(other))
    assert len({plain.sha256, harder.sha256, other.sha256}) == 3


def test_other_processes_make_the_same_items(of):
    code = "import sys; from workbench.tasks import gym\n"
    code += "print([gym._item(name, 0, 3, at) for name in sys.argv[1:] for at in range(8)])"
    made = {
        subprocess.run(
            [sys.executable, "-c", code, *KINDS],
            cwd=PROJECT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(made) == 1


def test_what_a_recipe_asks_for_only_says_how_far_each_set_goes_on(of, recipe_values):
    few = load(of())
    recipe_values["evaluation"]["n_items"] = 40
    many = load(of())
    assert many.sha256 == few.sha256
    for part in SETS:
        own, longer = getattr(few, part), getattr(many, part)
        assert longer.head(len(own)).equals(own)
    assert len(many.test) > len(few.test)


@pytest.mark.parametrize("generator", ALSO_RIGHT)
def test_the_verifier_decides_and_a_target_of_nobody_is_compared_as_text(of, generator):
    task = load(of(generator))
    other = ALSO_RIGHT[generator]
    assert all(task.answers.same(other(target), target) for target in task.test["target"])
    assert task.answers.same("no item's.", "No item's") and not task.answers.same("", "No item's")
    sent = pickle.loads(pickle.dumps(task.answers))
    assert sent == task.answers and sent.same(other(task.test["target"][0]), task.test["target"][0])


def test_an_answer_right_in_another_way_must_be_right_for_every_item_of_the_target(monkeypatch):
    items = {"O": [({"n": 1}, 1.0), ({"n": 2}, 1.0)], "P": [({"n": 1}, 0.9)]}
    monkeypatch.setattr(gym, "_by_target", lambda *key: items)
    monkeypatch.setattr(gym, "_dataset", lambda *key: None)
    marks = {"both": lambda n: 1.0, "one": lambda n: n % 2, "nearly": lambda n: 0.89}
    monkeypatch.setattr(gym, "_mark", lambda dataset, answer, item: marks[answer](item["n"]))
    answers = gym.Verified(generator="any")
    assert answers.same("both", "O") and not answers.same("one", "O")
    assert answers.same("one", "P") and not answers.same("nearly", "P")  # the full mark is that of the target itself


def test_the_guard_keeps_the_test_items_out(of):
    recipe = of("spell_backward")
    task = load(recipe)
    guard = guard_of(recipe, task)
    assert all(guard.overlap(question.upper()) for question in task.test["question"])
    items, sha256 = load_test_items(recipe, task)
    assert sha256 == task.sha256 and not set(items["question"]) & set(copied_items(recipe, task))


def test_answers_may_be_read_in_other_ways_as_long_as_the_verifier_takes_them(of):
    number = load(of(answer_type="number")).answers
    assert number.same(number.read("It makes 4, so the answer is 7."), "7")
    with pytest.raises(DataError, match=r"sources.mine.answer_type exact reads .* of mini_sudoku .* set it to tagged"):
        load(of("mini_sudoku", "exact"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            {"generator": "basic_arithmetik"},
            r"one of \d+ generators .* got 'basic_arithmetik'; the nearest: basic_",
        ),
        ({"generator": "xyzzy"}, r"got 'xyzzy'; the nearest: ab, acre, .*zebra_puzzles\."),
        ({"level": 5}, r"sources.mine.level must be from 0 to 4 for basic_arithmetic, got 5; lower it"),
        ({"generator": "gsm_symbolic", "level": 1}, r"from 0 to 0 for gsm_symbolic, got 1"),
        ({"generator": "knight_swap"}, r"level 0 of knight_swap is one that the library cannot make \(min_nodes must"),
        ({"generator": "puzzle24"}, r"'puzzle24' is refused, because its verifier runs text of items or answers"),
        ({"generator": "composite"}, r"'composite' is refused, because it only mixes others; take another"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(of, source, said):
    with pytest.raises(DataError, match=said):
        load(of(**source))


def test_a_generator_with_too_few_items_says_how_many_there_are(of, recipe_values):
    recipe_values["evaluation"]["n_items"] = 400
    with pytest.raises(DataError, match=r"5000 tries of tower_of_hanoi at level 0 gave .* of 400 test items"):
        load(of("tower_of_hanoi"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"path": "x.csv"}, "path is set beside the generator 'basic_arithmetic'"),
        ({"split": "dev"}, "split is set beside the generator"),
        ({"generator": "", "path": "x.csv", "level": 1}, "level is set without a generator"),
        ({"level": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_of_files_and_of_generators_do_not_mix(of, source, said):
    with pytest.raises(ValueError, match=said):
        of(**source)


def test_a_run_reads_its_own_recipe_again(of):
    recipe = of(level=1)
    assert type(recipe).model_validate(parse_yaml(recipe.to_yaml())) == recipe
    file = recipe.model_copy(update={"tasks": Tasks(names=["a"], sources={"a": {"answer_type": "number"}})})
    assert type(recipe).model_validate(parse_yaml(file.to_yaml())) == file


def test_without_the_library_the_command_is_named(of, monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(DataError, match=r"needs the library reasoning-gym, which is not installed .*; run: make gym"):
        load(of())


def runs_code(dataset: type) -> bool:
    """Say whether a verifier, or what it calls of its own file, hands text to Python or to sympy, which runs it."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(dataset)))
    functions = {one.name: one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)}
    todo, seen = [functions[name] for name in ["score_answer"] if name in functions], set()
    while todo:
        for node in ast.walk(todo.pop()):
            name = getattr(node, "id", getattr(node, "attr", ""))
            own = name in functions
            if not own and name in RUNS:
                return True
            if own and name not in seen:
                seen.add(name)
                todo.append(functions[name])
    return False


def test_every_verifier_that_runs_text_is_refused_by_name():
    code, *_ = REFUSED
    running = {name for name, (dataset, _) in library.DATASETS.items() if runs_code(dataset)}
    assert {"puzzle24", "n_queens", "binary_matrix"} <= running
    # The programs of codeio run where its items are made.
    assert running | {"codeio"} == set(REFUSED[code].split())


def test_a_verifier_decides_in_whatever_form_an_answer_is_asked_for(of, recipe_values):
    recipe_values["prompts"] = {"answer": "said"}
    answers = load(of("chain_sum")).answers
    target = next(target for _, target in texts(load(of("chain_sum"))))
    assert isinstance(answers, gym.Verified) and answers.kind == "exact"
    assert answers.same(answers.read(f"We add. The answer is {target}.0."), target)
