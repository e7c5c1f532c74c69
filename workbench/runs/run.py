"""Runs that remember: a folder per run, and in it a folder per step, each readable without this library.

A step is a function called with arguments. What decides whether it is computed again is read off them, so that no list
of inputs is kept by hand.
"""

import ast
import importlib.metadata
import inspect
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from workbench.runs import cluster, progress, schemas
from workbench.runs.cache import ITEMS, LOCK, LOOKS, atomic_write, held, read_json, runs_folder, write_json
from workbench.runs.errors import RunError, in_our_words, spoken, visible
from workbench.runs.identity import content_of, file_sha256, fingerprint, function_of, identify, unlike
from workbench.runs.recipe import Recipe, flatten, parse_yaml, project_root, recipe_class
from workbench.runs.recipe_file import load_recipe

SCHEMA_NUMBER = 2  # raise by hand when the meaning of a stored frame changes: finished steps are then computed again
MANIFEST, BEGUN, AGAIN, NEXT, SUPERSEDED = "manifest.json", "begun.json", "again", ".next", ".superseded-"
VERDICT = "verdict.json"
ENDED = "✓ "  # before the line that a step leaves when it is done
OF_RUN = "run:"  # before the name of a run that stands where a recipe does
SAMPLE, SHIPPED = "sample", "shipped.json"  # the run that the project ships, and what marks such a run
SAMPLES = {SAMPLE: "run", f"{SAMPLE}-signals": "signals", f"{SAMPLE}-goodhart": "goodhart"}  # folders in data/samples
KEPT = "recipe.json"  # the recipe that a run was begun with, sealed: recipe.yaml beside it is there to be read
BEFORE_WORK = {"recipe.yaml", KEPT, "reports", LOCK}  # what a run's folder holds that was refused before any work
OLD_STAGES = ("drafting", "probing", "alignment", "training", "evaluation")
COLUMNS = ["name", "recipe", "steps", "decision", "difference", "low", "high", "seconds"]
VERSIONED = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy", "pandas", "pyarrow", "scipy")


class Frames(dict[str, pd.DataFrame]):
    """What a step made that makes several frames, by name, and the folder it lies in, with models where it trained."""

    def __init__(self, frames: Mapping[str, pd.DataFrame], path: Path):
        super().__init__(frames)
        self.path = path


class Run:
    """One run: its recipe and its steps.

    Attributes:
        watching: Called with a step's name, returns a context in which the step is computed; it shows how far it is.
    """

    def __init__(self, name: str, path: Path, recipe: Recipe):
        self.name, self.path, self.recipe = name, path, recipe
        self.watching: Callable[[str], AbstractContextManager] = lambda step: nullcontext()

    def __repr__(self) -> str:
        steps = ", ".join(map(spoken, self.steps())) or "nothing yet"
        return f"Run {self.name} of recipe {self.recipe.name}, finished: {steps}"

    @in_our_words()
    def step(self, name: str, function: Callable, *arguments):
        """Return function(*arguments), computed once, and again only when something that goes into it is another.

        Args:
            name: The step's, which is its folder in the run; with slashes, as "round-2/scores", folders in folders.
            function: Returns a frame, or several by name. What is in `attrs["counts"]` of a frame is kept with it. It
                gets the step's folder if it has a parameter `folder`, to leave models there.
            arguments: Frames count by their content, sections of a recipe by their values, models and tasks by their
                files (anything with a `key`), functions by name and version, your own ones by their text.

        Returns:
            The frame or Frames, as they will be read back.

        Raises:
            RunError: If it cannot be told whether an argument is another, or the disk is full.

        Example:
            rows = work.step("rows", wb.loop.equal_tokens, students, tasks, examples)
        """
        if self.is_shipped:
            return self.result(name)
        (key, inputs), step = self.key_of(function, arguments), Step(self, name)
        if not step.holds(key):
            with hold(self.name):
                step.settle()
                # While this one waited, or before it was killed.
                if not step.holds(key):
                    self._compute(step, key, function, inputs, arguments)
                    return step.result()
        # Of work on another result, which was stopped and which nobody waits for any more.
        progress.forget(step.folder)
        print(f"{ENDED}{spoken(name)}: stored, {step.in_words()}")
        return step.result()

    def key_of(self, function: Callable, arguments) -> tuple[str, dict]:
        """Return what tells a step that is this function called so from every other, and what identifies its inputs."""
        names, settings = list(inspect.signature(function).parameters), getattr(function, "looks_at", ())
        names += [str(place) for place in range(len(names), len(arguments))]
        inputs = {name: identify(argument, name) for name, argument in zip(names, arguments, strict=False)}
        inputs |= {"recipe": self.recipe.section_json(*settings)} if settings else {}
        return fingerprint({"schema": SCHEMA_NUMBER, "function": function_of(function), "inputs": inputs}), inputs

    def _compute(self, step: "Step", key: str, function: Callable, inputs: dict, arguments) -> None:
        folder, began = step.begin(key), time.monotonic()
        given = {"folder": folder} if "folder" in inspect.signature(function).parameters else {}
        with progress.of(folder, self.watching(step.name)), cluster.carrying(self.recipe.compute) as ran:
            made = function(*arguments, **given)
            parents, seconds = self._parents(step.name, inputs), time.monotonic() - began
            step.finish(key, function, inputs, parents, made, seconds, ran)
        print(f"{ENDED}{spoken(step.name)}: {step.in_words()}, {step.manifest['seconds']:.0f} s")

    @in_our_words()
    def read(self, name: str, frame: str = "") -> pd.DataFrame:
        """Return a frame of a finished step.

        Args:
            name: The step's.
            frame: Its name where the step made several; empty for the one that is called like the step.

        Raises:
            RunError: If the step is not finished, was made from something that is another now, has no such frame, or
                a file is not what was written; naming what to do.
        """
        step = Step(self, name)
        step.require()
        return step.frame(frame or name.rsplit("/", 1)[-1])

    @in_our_words()
    def result(self, name: str):
        """Return what a finished step returned; raises as `read` does."""
        step = Step(self, name)
        step.require()
        return step.result()

    def has(self, name: str) -> bool:
        """Say whether a step is finished."""
        return bool(Step(self, name).manifest)

    def manifest(self, name: str) -> dict:
        """Return what is recorded of a finished step; {} when it is not finished."""
        return Step(self, name).manifest

    def counts(self, name: str) -> dict[str, int]:
        """Return what a finished step counted; {} when it is not finished."""
        return self.manifest(name).get("counts", {})

    @property
    def verdict(self) -> dict:
        """The run's verdict as stored; {} when there is none."""
        return read_json(self.path / VERDICT, schemas.Verdict)

    @in_our_words()
    def steps(self) -> list[str]:
        """Return the finished steps, in the order in which they were finished."""
        found = [path.parent for path in self.path.rglob(MANIFEST) if not is_aside(path.parent.relative_to(self.path))]
        ordered = sorted(found, key=lambda path: (path / MANIFEST).stat().st_mtime_ns)
        return [path.relative_to(self.path).as_posix() for path in ordered]

    @property
    def is_shipped(self) -> bool:
        """Whether this is a finished run to be looked at: its steps are as they are, whatever goes into them now."""
        return (self.path / SHIPPED).is_file()

    def stands(self, name: str) -> bool:
        """Say whether a step is finished, made from what now lies upstream of it, and not to be computed again."""
        step = Step(self, name)
        try:
            return bool(step.require()) and not (step.path / AGAIN).exists()
        except RunError:
            return False

    def made_from(self, name: str) -> list[str]:
        """Return a step and the finished ones that were made from it, through others too."""
        # Not by the times of files: those of a copied run are in any order.
        found, parents = [name], {step: set(self.manifest(step)["parents"]) for step in self.steps()}
        while more := [step for step, of in parents.items() if step not in found and of & set(found)]:
            found += more
        return found

    @in_our_words()
    def again(self, name: str) -> None:
        """Have a step computed again when it is next called; a finished result stays until the new one is whole."""
        step = Step(self, name)
        if step.manifest:
            (step.path / AGAIN).touch()
        else:
            step.move_aside()

    def _parents(self, of: str, inputs: dict) -> dict[str, list[str]]:
        """Return the steps whose frames are among the inputs, with the content of those frames."""
        contents = set(_contents_in(inputs))
        parents = {}
        for name in self.steps():
            with suppress(RunError):  # damaged, and in the way of nothing that is not made from it
                made = self.manifest(name)
                # A folder that somebody renamed holds no step of its new name.
                if name != of and made.get("step", name) == name:
                    parents[name] = sorted(contents & set(made["contents"].values()))
        return {name: found for name, found in parents.items() if found}


class Step:
    """One step of a run on disk: its frames, and a manifest written last, so that a step with a manifest is whole."""

    def __init__(self, run: Run, name: str):
        part = r"[A-Za-z0-9][A-Za-z0-9._-]*"
        if not re.fullmatch(f"{part}(/{part})*", name) or is_aside(Path(name)) or name == "reports":
            raise RunError(
                f"A step's name has letters, digits, '.', '_', '-' and, between folders, '/', got {name!r}; choose "
                "another."
            )
        self.run, self.name, self.path = run, name, run.path / name

    @property
    def manifest(self) -> dict:
        """What is recorded of the finished step; {} when it is not finished."""
        return read_json(self.path / MANIFEST, schemas.Manifest)

    @property
    def folder(self) -> Path:
        """Where the step is computed: beside what it replaces, which stays until the new one is whole."""
        return self.path.with_name(self.path.name + NEXT) if self.manifest else self.path

    def holds(self, key: str) -> bool:
        """Say whether the finished result is of this key, and not to be computed again."""
        return self.manifest.get("key") == key and not (self.path / AGAIN).exists()

    def settle(self) -> None:
        """Give a whole result its place, where a kill came after the old one was moved aside and before that."""
        whole = self.path.with_name(self.path.name + NEXT)
        if not self.path.exists() and (whole / MANIFEST).is_file():
            whole.rename(self.path)

    def begin(self, key: str) -> Path:
        """Return the folder to work in; unfinished work of the same key is in it, of another one is moved aside."""
        folder = self.folder
        if folder.exists() and read_json(folder / BEGUN).get("key") != key:
            _rename(folder, self.path, read_json(folder / BEGUN).get("key", "unknown"))
        write_json(folder / BEGUN, {"key": key})
        return folder

    def finish(
        self, key: str, function: Callable, inputs: dict, parents: dict, made, seconds: float, jobs: Iterable = ()
    ) -> None:
        """Write frames and manifest into the working folder, and let it take the place of what was there before.

        Args:
            parents: Steps that it was made from, with the content of their frames.
            made: A frame, or several by name.
            seconds: Wall time of the work done now; work resumed from a killed run is not in it.
            jobs: Of a cluster: where each one ran, and how often it was run again.
        """
        folder, last = self.folder, self.name.rsplit("/", 1)[-1]
        frames = dict(made) if isinstance(made, Mapping) else {last: made}
        counts = {what: int(n) for frame in frames.values() for what, n in frame.attrs.get("counts", {}).items()}
        tokens = sum(map(_tokens, frames.values()))
        contents = {name: _write(folder / f"{name}.parquet", name, frame) for name, frame in frames.items()}
        manifest = {
            "step": self.name,
            "run": self.run.name,
            "key": key,
            "function": function_of(function),
            "schema": SCHEMA_NUMBER,
            "inputs": inputs,
            "parents": parents,
            "single": not isinstance(made, Mapping),
            "counts": counts or {spoken(name): len(frame) for name, frame in frames.items()},
            "contents": contents,
            "files": {name: file_sha256(folder / f"{name}.parquet") for name in frames},
            "others": {path.relative_to(folder).as_posix(): file_sha256(path) for path in _others(folder, frames)},
            "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
            "git_commit": _git_commit(),
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "tokens": tokens,
        }
        write_json(folder / MANIFEST, manifest | ({"jobs": list(jobs)} if jobs else {}))
        progress.end()
        if folder != self.path:
            self.move_aside()
            folder.rename(self.path)

    def move_aside(self) -> None:
        """Rename the step's folder, whole or unfinished; nothing is deleted."""
        if self.path.exists():
            (self.path / AGAIN).unlink(missing_ok=True)
            _rename(self.path, self.path, (self.manifest or read_json(self.path / BEGUN)).get("key", "unknown"))

    def require(self, seen: frozenset[str] = frozenset()) -> dict:
        """Return the manifest of the step, which is finished and was made from what now lies upstream of it.

        Args:
            seen: Steps that are being looked at already; two that hold the same frame may name each other.

        Raises:
            RunError: If it is not, naming the notebook and the command that make it so.
        """
        manifest = self.manifest
        if not manifest:
            raise RunError(f"Run {self.run.name} has no finished step {self.name!r} yet; {self._make_it()}")
        for parent, built_from in manifest["parents"].items():
            if parent in seen:
                continue
            there = Step(self.run, parent).require(seen | {self.name})["contents"].values()
            if not set(built_from) <= set(there):
                raise RunError(
                    f"{self.name} of run {self.run.name} was made from earlier {parent}; bring it up to date: "
                    f"{self._make_it()}"
                )
        return manifest

    @in_our_words()
    def frame(self, name: str) -> pd.DataFrame:
        """Return one frame of the finished step, checked against what was written."""
        files = self.manifest["files"]
        if name not in files:
            raise RunError(f"Step {self.name} has no frame {name!r}; it has {', '.join(files)}.")
        path = self.path / f"{name}.parquet"
        if unlike(path, files[name]):
            fault = "is not what its manifest describes" if path.is_file() else "is missing"
            raise RunError(f"{path} {fault}; rename the folder {self.path} and compute it again: {self._make_it()}")
        return pd.read_parquet(path)

    def result(self):
        """Return the frame of the finished step, or its Frames."""
        frames = {name: self.frame(name) for name in self.manifest["files"]}
        return next(iter(frames.values())) if self.manifest["single"] else Frames(frames, self.path)

    def in_words(self) -> str:
        """Return what the finished step counted, all that was dropped together."""
        counts, why = self.manifest["counts"], [what for what in self.manifest["counts"] if " dropped, " in what]
        counts = {what: n for what, n in counts.items() if what not in why} | {"dropped": sum(map(counts.get, why))}
        return ", ".join(f"{n:,} {what}" for what, n in counts.items() if n) or f"0 {next(iter(counts), 'rows')}"

    def _make_it(self) -> str:
        notebook = notebook_of(self.name)
        open_it = f"open notebooks/{notebook}.ipynb or " if notebook else ""
        return f"{open_it}run: workbench run {self.run.path / 'recipe.yaml'} --name {self.run.name}"


@in_our_words()
def restore(run: Run) -> list[str]:
    """Bring back what a finished result was made from, where that was moved aside; return the names of these steps.

    The result is the last one in force that something upstream was taken from; where there is none, the last one that
    was moved aside. What stands in the way is moved aside in turn, so that a second call undoes the first.

    Raises:
        RunError: If nothing was moved aside, or a part of it is not there any more.
    """
    aside = sorted(run.path.rglob(f"*{SUPERSEDED}*/{MANIFEST}"), key=lambda path: -path.stat().st_mtime_ns)
    waiting = [run.path / name for name in reversed(run.steps()) if not run.stands(name)]
    if not aside:
        raise RunError(f"Nothing of run {run.name} was moved aside, so there is nothing to bring back.")
    plan: dict[str, Path] = {}
    _collect(run, [*waiting, aside[0].parent][0], [path.parent for path in aside], plan)
    moved = {name: folder for name, folder in plan.items() if folder != run.path / name}
    with hold(run.name):
        for name, folder in moved.items():
            Step(run, name).move_aside()
            folder.rename(run.path / name)
    return list(moved)


def _collect(run: Run, folder: Path, aside: list[Path], plan: dict[str, Path]) -> None:
    """Add to the plan a step's result and all that it was made from: name -> folder in which that lies now."""
    manifest = read_json(folder / MANIFEST)
    plan[manifest["step"]] = folder
    for parent, built_from in manifest["parents"].items():
        if parent in plan:
            continue
        there = [run.path / parent, *(path for path in aside if read_json(path / MANIFEST)["step"] == parent)]
        for place in there:
            if set(built_from) <= set(read_json(place / MANIFEST).get("contents", {}).values()):
                _collect(run, place, aside, plan)
                break
        else:
            raise RunError(
                f"The {parent} that {manifest['step']} of run {run.name} was made from is not there any more, so it "
                f"cannot be brought back; compute it again: {Step(run, manifest['step'])._make_it()}"
            )


@in_our_words()
def take_over(work: Run, source: Run, steps: Iterable[str]) -> None:
    """Copy finished steps of another run into one that is begun; what its recipe changes is computed anew later."""
    for step in steps:
        # A step is whole when its manifest is there, so that comes last.
        unfinished = shutil.ignore_patterns(MANIFEST, AGAIN)
        shutil.copytree(source.path / step, work.path / step, ignore=unfinished, dirs_exist_ok=True)
        shutil.copy2(source.path / step / MANIFEST, work.path / step)


def steps_in(notebook: str, always: bool = False) -> list[str]:
    """Return the names of a notebook's steps, in order; always: without those of one branch alone; [] if not there."""
    path = project_root() / "notebooks" / f"{notebook}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.is_file() else []
    # What only a notebook understands, such as %time or !ls, is no Python.
    code = [re.sub(r"(?m)^(\s*)[%!].*", r"\1pass", "".join(c["source"])) for c in cells if c["cell_type"] == "code"]
    return list(dict.fromkeys(_steps_of(ast.parse("\n".join(code)).body, always)))


def _steps_of(statements: list[ast.stmt], always: bool) -> Iterator[str]:
    for node in statements:
        if always and isinstance(node, ast.If):
            other = set(_steps_of(node.orelse, always))
            yield from (name for name in _steps_of(node.body, always) if name in other)
        elif always and isinstance(node, ast.For | ast.With):
            yield from _steps_of(node.body, always)
        else:
            yield from re.findall(r"\.step\('([^']+)'", ast.unparse(node))


def notebook_of(step: str) -> str:
    """Return the notebook in which a step is made, "" if none of the numbered ones has it."""
    names = sorted(path.stem for path in (project_root() / "notebooks").glob("[0-9]*.ipynb"))
    return next((name for name in names if step in steps_in(name)), "")


def _contents_in(inputs) -> Iterator[str]:
    """Yield the contents of the frames among what `identify` returned."""
    if isinstance(inputs, Mapping):
        if set(inputs) == {"frame"} and isinstance(inputs["frame"], str):
            yield inputs["frame"]
        for one in inputs.values():
            yield from _contents_in(one)
    elif isinstance(inputs, list):
        for one in inputs:
            yield from _contents_in(one)


def _write(path: Path, name: str, frame: pd.DataFrame) -> str:
    """Check a frame against its schema, if it has one, and store it; return its content as it will be read back."""
    frame = (schemas.check(frame, name) if name in schemas.SCHEMAS else frame).reset_index(drop=True)
    frame.attrs = {}
    atomic_write(path, frame.to_parquet(index=False))
    return content_of(pd.read_parquet(path))


def _others(folder: Path, frames) -> list[Path]:
    """Return what lies in a step's folder besides its frames and what belongs to the work on it."""
    known = {*(f"{name}.parquet" for name in frames), MANIFEST, BEGUN, progress.FOLDER}
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in files if path.relative_to(folder).parts[0] not in known]


def _rename(folder: Path, base: Path, key: str) -> None:
    """Rename a folder to a name that says that it was superseded."""
    name, n = f"{base.name}{SUPERSEDED}{key[:8]}", 1
    target = base.with_name(name)
    while target.exists():
        n += 1
        target = base.with_name(f"{name}-{n}")
    folder.rename(target)
    print(f"the earlier {base.name} is kept in {target.name}")


def _tokens(frame: pd.DataFrame) -> int:
    counted = frame["n_tokens"].sum() if "n_tokens" in frame else 0
    return int(frame.attrs.get("tokens", counted))


def is_aside(path: Path) -> bool:
    """Say whether a path in a run's folder belongs to what was superseded or is not finished."""
    return any(SUPERSEDED in part or part.endswith(NEXT) for part in path.parts)


def path_of(name: str) -> Path:
    """Return the folder of a run of that name; a RunError if no run can be called so."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise RunError(
            "A run's name has up to 100 letters, digits, '.', '_' and '-' and begins with a letter or digit, got "
            f"{visible(name, 120)!r}; choose another."
        )
    if name.lower().startswith((ITEMS, f"{Path(LOOKS).stem}.")):
        raise RunError(f"{name!r} is a file that all runs share, or one beside it; choose another --name.")
    return runs_folder() / name


@contextmanager
def hold(name: str, wait: bool = False) -> Iterator[None]:
    """Compute a run in this process, and those it starts, alone while the block lasts; raises as `cache.held`."""
    with held(path_of(name) / LOCK, f"Run {name}", wait):
        yield


@in_our_words()
def open_run(name: str, recipe: Recipe | None = None) -> Run:
    """Open a run, or begin it when a recipe is given and there is none of that name, or none with any work in it.

    The runs of SAMPLES ship with the project; one is copied where runs are kept when it is first opened.

    Raises:
        RunError: If the run was begun with another recipe or its own was edited since (naming what differs), was made
            by a workbench that kept runs otherwise, or does not exist and no recipe is given.
    """
    path = path_of(name)
    file = path / "recipe.yaml"
    if type(recipe) is Recipe:  # without what its method adds, so unlike the same one read back
        recipe = recipe_class(recipe.method).model_validate(recipe.model_dump())
    if name in SAMPLES and not path.exists():
        source, made = project_root() / "data" / "samples" / SAMPLES[name], path.with_name(f".{name}.{os.getpid()}")
        shutil.copytree(source, made, ignore=shutil.ignore_patterns("*.py", "__pycache__")).rename(path)
    if old := [stage for stage in OLD_STAGES if "fingerprint" in read_json(path / stage / MANIFEST)]:
        raise RunError(
            f"Run {name} was made by an earlier workbench, which kept a folder {old[0]}/ where there are steps now; it "
            "is left as it is: take another name, and read its Parquet files with pandas."
        )
    if file.is_file():
        stored, has_work = load_recipe(str(file)), set(os.listdir(path)) - BEFORE_WORK
        # None where an earlier workbench began it.
        if begun_with := read_json(path / KEPT, schemas.Kept).get("recipe"):
            begun_with = recipe_class(begun_with.get("method")).model_validate(begun_with)
        if has_work and (edited := _difference(begun_with or stored, stored)):
            raise RunError(f"{file} was edited since the run was begun; undo: {edited}; or give a copy to another run.")
        if recipe is None or recipe == stored:
            return Run(name, path, stored)
        if has_work and recipe.without_limits() != stored.without_limits():
            raise RunError(
                f"Run {name} was begun with another recipe; take another --name or undo: {_difference(stored, recipe)}."
            )
    elif recipe is None:
        known = sorted(found.parent.name for found in runs_folder().glob("*/recipe.yaml"))
        raise RunError(
            f"There is no run {name!r} (there are: {', '.join(known) or 'none'}); "
            f"begin it in the first notebook of a method, or with: workbench run RECIPE --name {name}"
        )
    with hold(name):
        write_json(path / KEPT, {"recipe": recipe.model_dump()})
        atomic_write(file, recipe.to_yaml().encode("utf-8"))
    return Run(name, path, recipe)


def _difference(stored: Recipe, asked: Recipe) -> str:
    """Return what differs in two recipes, what may be set anew under way left out; "" for nothing."""
    old, new = (dict(flatten(one.without_limits().model_dump())) for one in (stored, asked))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {old.get(key, 'absent')} -> {new.get(key, 'absent')}" for key in keys)


@in_our_words()
def runs_table() -> pd.DataFrame:
    """Return one row per run: its recipe, finished steps, the primary comparison and the seconds it took."""
    rows = [_run_row(path.parent) for path in sorted(runs_folder().glob("*/recipe.yaml"))]
    return pd.DataFrame(rows, columns=COLUMNS)


def _run_row(path: Path) -> dict:
    row = {"name": path.name}
    try:
        row["recipe"] = parse_yaml((path / "recipe.yaml").read_text(encoding="utf-8"))["name"]
        run = Run(path.name, path, None)
        manifests = [run.manifest(name) for name in run.steps()]
        row |= {"steps": len(manifests), "seconds": sum(made["seconds"] for made in manifests)}
        verdict = read_json(path / VERDICT)
        row["decision"] = verdict.get("decision", "")
        primary = verdict.get("primary", {})
        for compared in verdict.get("comparisons", []):
            if all(compared[key] == primary[key] for key in ("a", "b", "shots")):
                row |= {key: compared[key] for key in ("difference", "low", "high")}
    except (RunError, OSError, KeyError, TypeError, ValueError) as error:
        # One damaged run must not hide the others.
        row["decision"] = f"unreadable ({type(error).__name__})"
    return row


def _git_commit() -> str:
    """Return the project's commit, with "+changes" when the tree differs from it; "" outside git."""
    try:
        command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
        return subprocess.run(command, cwd=project_root(), capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
