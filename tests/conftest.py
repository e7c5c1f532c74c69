import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from workbench.runs.recipe import Recipe, parse_yaml, recipe_class

PROJECT = Path(__file__).resolve().parents[1]
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# What runs beside the tests makes single examples slow; that is not a fault of theirs.
settings.register_profile("workbench", deadline=None)
settings.load_profile("workbench")

RECIPE = """
name: small
profile: pocket
seeds: [0, 1]
models: {teacher: data/pocket/teacher, students: {counter: data/pocket/counter}}
tasks: {folder: data/pocket/tasks, names: [object_counting]}
drafting: {n_questions: 4, max_new_tokens: 32}
alignment: {beta: 0.1, learning_rate: 5.0e-5, n_epochs: 1, batch_size: 4, max_length: 64}
tailoring: {n_examples: 4, max_new_tokens: 32}
training: {learning_rate: 1.0e-3, n_epochs: 1, batch_size: 4, max_length: 64}
evaluation: {n_items: 4, max_new_tokens: 32}
"""


# The files that take longest, by minutes; the last ones begun are then short, and no worker waits long for the other.
LONGEST = (
    "notebooks tapir_open lesson shapes montessori tapir three_engines loop cluster ts_align vllm_engine smol backends"
).split()


def pytest_collection_modifyitems(items):
    """Put the files that take longest first; see Makefile."""
    at = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: at.get(item.path.name, len(at)))
    # What is imported by now stays; looking through it again, whenever an engine gives its memory back, took a second.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def reads() -> dict:
    """What each step of the run `whole` looked at in the recipe while it was computed."""
    return {}


@pytest.fixture(autouse=True)
def _environment_stays():
    """What one test leaves in the environment changes what the next one sees: a lab without its widgets, once."""
    before = _ours()
    yield
    left = {name: value for name, value in _ours().items() if before.get(name) != value}
    os.environ.update(before)
    for name in set(left) - set(before):
        del os.environ[name]
    assert not left, f"left in the environment: {left}; take monkeypatch, or put back what was there"


def _ours() -> dict[str, str]:
    own = ("WORKBENCH_", "JUPYTER_", "TQDM_", "OPENAI_")
    return {name: value for name, value in os.environ.items() if name.startswith(own)}


@pytest.fixture
def recipe_values() -> dict:
    """A small valid recipe as plain values, to be changed by the test."""
    return parse_yaml(RECIPE)


@pytest.fixture
def recipe(recipe_values) -> Recipe:
    return recipe_class(None).model_validate(recipe_values)


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """A runs folder of this test's own."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("WORKBENCH_RUNS", str(folder))
    return folder


@pytest.fixture
def seen(monkeypatch) -> list:
    """The trainers that were made, none of which trains."""
    from transformers import Trainer

    trainers: list = []

    def stand(trainer, **_):
        trainers.append(trainer)

    monkeypatch.setattr(Trainer, "train", stand)
    return trainers


def built_once(tmp_path_factory, name: str, build: Callable[[Path], None]) -> Path:
    """Return a folder that the first of the processes that want it builds."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            (unfinished := folder.with_suffix(".unfinished")).mkdir()
            build(unfinished)
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def small_models(tmp_path_factory) -> Path:
    """A folder with the tasks and models of the small classroom, built once; read it only, or copy it."""
    import small_classroom

    return built_once(tmp_path_factory, "small-classroom", small_classroom.build)


@pytest.fixture(scope="module")
def classroom(small_models, tmp_path_factory) -> Path:
    """A copy of the small classroom that the tests of one module may write to."""
    return shutil.copytree(small_models, tmp_path_factory.mktemp("classroom"), dirs_exist_ok=True)


@pytest.fixture(scope="session")
def small_run(small_models, tmp_path_factory) -> Path:
    """A folder of runs with the run "loop" of the small classroom, up to its alignment; read it only, or copy it."""
    import small_classroom

    recipe, stages = small_classroom.recipe_of(small_models), small_classroom.STAGES[:3]
    return built_once(tmp_path_factory, "small-run", lambda runs: small_classroom.run_whole(runs, recipe, stages))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of data from outside the project."""
    named = os.environ.get("WORKBENCH_TEST_DATA")
    folder = Path(named) if named else PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        not_run(f"test data: {folder} is not a folder, set WORKBENCH_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium to drive."""
    found = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if found is None:
        not_run("Chromium: none of " + ", ".join(CHROMIUM_NAMES) + " is on the PATH")
    return found


def not_run(reason: str) -> None:
    """Report a test as not run; in CI that is a failure, or nobody would notice."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"not run for want of {reason}", pytrace=False)
    pytest.skip(f"not run for want of {reason}")
