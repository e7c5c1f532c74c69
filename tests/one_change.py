"""One setting changed at a time: what each step reads of a recipe, and which steps are another then.

Both are taken from the code: every setting that the class of a recipe has, and whatever a step looks at while it is
computed. So a setting that is added is held to it at once.
"""

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import pandas as pd
import pytest
from notebook_steps import compute

from workbench.runs import identity
from workbench.runs.errors import RunError
from workbench.runs.identity import content_of
from workbench.runs.recipe import Recipe
from workbench.runs.recipe_parts import Section
from workbench.runs.run import Run, Step
from workbench.tasks.task import load_tasks

READ = Run.read
Reads = dict[str, set[tuple[str, str]]]  # by step: class of the section, setting
REFUSED = (RunError, ValueError)


def called(section: Section) -> str:
    """Return the name of a section; that of a recipe is the same for all methods."""
    return "Recipe" if isinstance(section, Recipe) else type(section).__name__


class Setting(NamedTuple):
    """A setting of a recipe: the keys that lead to it, the class of its section, its value and its annotation."""

    path: tuple[str, ...]
    section: str
    value: Any
    annotation: Any

    @property
    def name(self) -> tuple[str, str]:
        return self.section, self.path[-1]


class _NotThere(Exception):
    """A step that the run has not."""


class _Enough(Exception):
    """All steps that were wanted are others."""


@contextmanager
def recording(reads: Reads) -> Iterator[None]:
    """Note which settings each step looks at while it is computed."""
    computing, compute_step, get = [], Run._compute, object.__getattribute__

    def noted(run, step, *arguments):
        computing.append(step.name)
        try:
            compute_step(run, step, *arguments)
        finally:
            computing.pop()

    def look(section, name):
        value = get(section, name)
        if computing and name in type(section).model_fields and not isinstance(value, Section):
            reads.setdefault(computing[-1], set()).add((called(section), name))
        return value

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Run, "_compute", noted)
        patched.setattr(Section, "__getattribute__", look)
        yield


def settings_of(section: Section, under: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Yield every setting of a recipe, those too that are left out where they are not set."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from settings_of(value, (*under, name))
        else:
            yield Setting((*under, name), called(section), value, field.annotation)


def others(setting: Setting, places: dict[str, str]) -> Iterator[Any]:
    """Yield other values of a setting's kind.

    Args:
        setting: To be changed.
        places: For a file or folder, and "" for none, another one.
    """
    value = setting.value
    if isinstance(value, bool):
        yield not value
    elif get_origin(setting.annotation) is Literal:
        yield from (one for one in get_args(setting.annotation) if one != value)
    elif isinstance(value, int):
        yield from (value + 1, value - 1, 0)
    elif isinstance(value, float):
        yield from (value / 2, 0.25, value + 1)
    elif isinstance(value, str):
        yield from [places[value]] if value in places else []
        yield f"{value}x"
    elif isinstance(value, dict):
        for key, one in value.items():
            yield value | {key: one + 1 if isinstance(one, int | float) else places.get(one, f"{one}x")}
            yield {name: kept for name, kept in value.items() if name != key}
        yield value | {"plain": "Think."}
        yield value | {"teacher": "a licence"}
        yield value | {"object_counting": {"answer_type": "number"}}
        yield {"coin_flip": 1}
        yield {"web_of_lies": 2.0, "object_counting": 1.0}
    elif isinstance(value, list):
        yield from ([*value, more] for more in ("random_rationale", 7, 1, "x", *places.values()))
        yield from ([*value[:-1], last / 2] for last in value[-1:] if isinstance(last, float))
        yield from (value[:at] + value[at + 1 :] for at in reversed(range(len(value))))
        yield value[::-1]


def changed(recipe: Recipe, setting: Setting, places: dict[str, str]) -> Iterator[Recipe]:
    """Yield the recipe with other values of one setting, as far as they are valid."""
    for value in others(setting, places):
        values = recipe.model_dump()
        part = values
        for key in setting.path[:-1]:
            part = part.setdefault(key, {})
        part[setting.path[-1]] = value
        try:
            if value != setting.value:
                yield type(recipe).model_validate(values)
        except ValueError:
            continue


class Replay:
    """A finished run gone through again with other recipes or files, nothing computed: every frame is as it was."""

    def __init__(self, run: Run, stages: tuple[str, ...]):
        self.run, self.stages = run, stages
        self.keys = {name: run.manifest(name)["key"] for name in run.steps()}
        self.kept: dict[Any, Any] = {}  # frames as they were read
        self.contents: dict[int, tuple[pd.DataFrame, str]] = {}

    def others(self, recipe: Recipe, wanted: frozenset[str] = frozenset()) -> set[str]:
        """Return the steps that are another under a recipe, even if all that they are made from came out the same.

        Where steps are wanted, it looks no further when all of them are.

        Raises:
            RunError, ValueError: If the recipe is refused before any step is another.
        """
        found: set[str] = set()
        tasks = cache(lambda: load_tasks(recipe))

        def step(run: Run, name: str, function, *arguments):
            if self.keys.get(name) != run.key_of(function, arguments)[0]:
                found.add(name)
            if wanted and wanted <= found:
                raise _Enough
            if name not in self.keys:
                raise _NotThere
            return self._once(("result", name), lambda: Step(self.run, name).result())

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Run, "step", step)
            patched.setattr(Run, "read", lambda run, *names: self._once(names, lambda: READ(self.run, *names)))
            patched.setattr(identity, "content_of", self._content_of)
            patched.setattr("workbench.inspect", lambda work: None)
            patched.setattr("workbench.verdict.decide", lambda work: {})
            for place in ("workbench", "workbench.loop.writing", "workbench.verdict.evaluation"):
                patched.setattr(f"{place}.load_tasks", lambda _: tasks())
            for stage in self.stages:
                try:
                    compute(stage, Run(self.run.name, self.run.path, recipe))
                except _Enough:
                    return found
                except Exception:
                    # What comes after in this notebook is made from frames that would be others by now.
                    if not found:
                        raise
        return found

    def _once(self, name: Any, make: Callable[[], Any]) -> Any:
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def _content_of(self, frame: pd.DataFrame) -> str:
        if id(frame) not in self.contents:
            self.contents[id(frame)] = frame, content_of(frame)  # the frame too, so that its id is not given again
        return self.contents[id(frame)][1]


# What a step may look at without being another step for it, and why.
HARMLESS = {
    "Compute": "where it is computed, and how much at once, decides near-ties at most",
    "micro_batch_size": "how many rows are computed at once changes no result",
    "Recipe.name": "names the account of what is spent",
    "PreferenceSet.n_validation in predictions": "compared with the number of items; which these are is in the tasks",
    "Drafting.n_seed_questions in predictions": "as n_validation",
    "Synthesis.n_seeds in predictions": "as n_validation",
    "Tasks.names in predictions": "which tasks there are is among the arguments; their order is that of the rows",
    "Tasks.folder in predictions": "for the ledger of looks; the items themselves are among the arguments",
    "Models.students in teachers": "their names stand in the pairs",
    "Models.teacher in students": "TS-Align puts the policy that is aligned there, whose files count",
    "Models.students in examples": "their names stand in the signals and teachers",
}
# Without another setting, no other value of these is valid here.
NOT_ALONE = {"bbh_dir", "items", "load_in_4bit"}


def is_harmless(step: str, name: tuple[str, str]) -> bool:
    """Say whether a step may look at a setting that does not make it another."""
    section, setting = name
    dotted = ".".join(name)
    return bool({section, setting, dotted, f"{dotted} in {step.rpartition('/')[2]}"} & set(HARMLESS))


def places_of(classroom: Path) -> dict[str, str]:
    """Return for the folders of the small classroom, and for none, other ones."""
    teacher, student, babbler = (str(classroom / name) for name in ("teacher", "student", "babbler"))
    tasks = shutil.copytree(classroom / "tasks", classroom / "tasks-2", dirs_exist_ok=True)
    return {teacher: student, student: babbler, "": babbler, str(classroom / "tasks"): str(tasks)}


def changes_of(recipe: Recipe, wanted: dict, places: dict[str, str], replay: Replay) -> dict:
    """Return by section and setting which steps are another when it is changed, anywhere in the recipe.

    Other values are tried until all wanted steps were another: one may end the notebook before it reaches some of them.

    None stands for a setting of which no other value is valid by itself, or all are refused.

    Args:
        recipe: Of the run.
        wanted: The steps that must be others, by section and setting; these are changed.
        places: As places_of returns them.
        replay: Of the run.
    """
    found: dict[tuple[str, str], set[str] | None] = dict.fromkeys(wanted)
    for setting in (one for one in settings_of(recipe) if one.name in wanted):
        for other in changed(recipe, setting, places):
            try:
                with redirect_stdout(io.StringIO()):
                    now = replay.others(other, frozenset(wanted[setting.name]))
                found[setting.name] = (found[setting.name] or set()) | now
                if wanted[setting.name] <= found[setting.name]:
                    break
            except REFUSED:
                continue
    return found


def overlooked(run: Run, reads: Reads, stages: tuple[str, ...], classroom: Path) -> set[tuple[str, tuple[str, str]]]:
    """Change each setting that a step of a finished run looked at, and go through the run with every frame as it was.

    Args:
        run: The run, of the small classroom.
        reads: What its steps looked at while they were computed, as `recording` notes it.
        stages: Of its method, in order.
        classroom: The folder with its tasks and models.

    Returns:
        Steps with a setting that they looked at, and that makes them no other steps.
    """
    replay, wanted = Replay(run, stages), {}
    for step, names in reads.items():
        for name in (one for one in names if not is_harmless(step, one)):
            wanted.setdefault(name, set()).add(step)
    assert len(wanted) > 25 and replay.others(run.recipe) == set()
    others = changes_of(run.recipe, wanted, places_of(classroom), replay)
    untried = {name for name, changed in others.items() if changed is None and name[1] not in NOT_ALONE}
    assert not untried, f"no other value of {untried} is valid: name one in `others`"
    return {
        (step, name)
        for name, changed in others.items()
        for step in wanted[name] - (changed or set())
        if changed is not None and name[1] not in NOT_ALONE
    }
