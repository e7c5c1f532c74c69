"""Runs that remember: a folder per run, Parquet frames and a manifest per stage, each readable without this library."""

import hashlib
import importlib.metadata
import io
import json
import os
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import pandas as pd

from workbench.runs import progress, schemas
from workbench.runs.cache import Cache, StoreError, atomic_write, read_json, runs_folder, shared_cache
from workbench.runs.recipe import Recipe, canonical_json, flatten, parse_yaml, project_root
from workbench.runs.recipe_file import load_recipe

SCHEMA_NUMBER = 1  # raise by hand when the meaning of a stored frame changes: finished stages are then computed again

NOTEBOOKS = {
    "drafting": "01_drafting",
    "probing": "02_preference_probing",
    "alignment": "03_teacher_alignment",
    "training": "04_student_training",
    "evaluation": "05_evaluation",
}
FRAMES = {
    "drafting": "questions drafts exemplars",
    "probing": "preference_set reference probes signals influences losses",
    "alignment": "pairs pairs_by_loss examples reviews",
    "training": "rows",
    "evaluation": "predictions",
}
BEFORE_WORK = {"recipe.yaml", "reports"}  # what a run's folder holds that was refused before any work
COLUMNS = ["name", "recipe", "stages", "decision", "difference", "low", "high", "seconds"]
VERSIONED = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy", "pandas", "pyarrow", "scipy")


def fingerprint(value) -> str:
    """Return 16 hex digits that differ whenever the value, written as canonical JSON, differs."""
    return schemas.text_id(canonical_json(value))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_run(name: str, recipe: Recipe | None = None) -> "Run":
    """Open a run, or begin it when a recipe is given and there is none of that name, or none with any work in it.

    Raises:
        StoreError: If the run was begun with another recipe (naming what differs), or does not exist and no recipe
            is given.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise StoreError(f"A run's name has letters, digits, '.', '_' and '-' only, got {name!r}; choose another.")
    path = runs_folder() / name
    file = path / "recipe.yaml"
    if file.is_file():
        stored = load_recipe(str(file))
        if recipe is None or recipe == stored:
            return Run(name, path, stored)
        if set(os.listdir(path)) - BEFORE_WORK and recipe.without_limits() != stored.without_limits():
            raise StoreError(
                f"Run {name} was begun with another recipe; take another --name or undo: {_difference(stored, recipe)}."
            )
    elif recipe is None:
        known = sorted(found.parent.name for found in runs_folder().glob("*/recipe.yaml"))
        raise StoreError(
            f"There is no run {name!r} (there are: {', '.join(known) or 'none'}); "
            f"begin it with: workbench run arte-demo --name {name}"
        )
    atomic_write(file, recipe.to_yaml().encode("utf-8"))
    return Run(name, path, recipe)


def _difference(stored: Recipe, asked: Recipe) -> str:
    old, new = dict(flatten(stored.model_dump())), dict(flatten(asked.model_dump()))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {old.get(key, 'absent')} -> {new.get(key, 'absent')}" for key in keys)


class Run:
    """One run: its recipe, its stages, and the finished items it shares with all other runs."""

    def __init__(self, name: str, path: Path, recipe: Recipe):
        self.name, self.path, self.recipe = name, path, recipe

    def __repr__(self) -> str:
        done = [name for name in NOTEBOOKS if self.stage(name).manifest]
        return f"Run {self.name} of recipe {self.recipe.name}, finished: {', '.join(done) or 'nothing yet'}"

    @cached_property
    def items(self) -> Cache:
        """The record of finished items."""
        return shared_cache()

    def read(self, name: str) -> pd.DataFrame:
        """Return a frame of the run by its name, checked; nothing upstream of it may be newer."""
        stage = next(stage for stage, names in FRAMES.items() if name in names.split())
        return self.stage(stage).require(stage).read(name)

    def stage(self, name: str) -> "Stage":
        """Return a stage by name, begun or not."""
        if name not in NOTEBOOKS:
            raise StoreError(f"There is no stage {name!r}; the stages are {', '.join(NOTEBOOKS)}.")
        return Stage(self, name)


class Stage:
    """One stage of a run: frames, and a manifest written last, so that a stage with a manifest is whole."""

    def __init__(self, run: Run, name: str):
        self.run, self.name, self.path = run, name, run.path / name

    @property
    def manifest(self) -> dict:
        """What is recorded of the finished stage; empty when it is not finished."""
        return read_json(self.path / "manifest.json")

    def fingerprint(self, inputs: Mapping) -> str:
        """Return the fingerprint of this stage for the given inputs (recipe sections, upstream fingerprints, models).

        Leaves out the run's name, where it runs and how many workers: they do not change what comes out.
        """
        return fingerprint({"stage": self.name, "schema": SCHEMA_NUMBER, "inputs": dict(inputs)})

    def finished(self, fingerprint: str) -> bool:
        """Say whether the stage can be reused; if not, make its folder ready for the work with this fingerprint.

        Work of another fingerprint, whole or partial, is moved aside; partial work of the same one stays.
        """
        manifest = self.manifest
        if manifest.get("fingerprint") == fingerprint:
            counts = ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in manifest["counts"].items())
            print(f"reusing {counts or self.name} from run {self.run.name} (fingerprint {fingerprint[:4]}...)")
            return True
        begun = self.path / "begun.json"
        there = (manifest or read_json(begun)).get("fingerprint", "unknown")
        if self.path.exists() and there != fingerprint:
            self.move_aside()
        atomic_write(begun, canonical_json({"fingerprint": fingerprint}).encode())
        progress.begin(self.path)
        return False

    def move_aside(self) -> None:
        """Rename the stage's folder, whole or unfinished; nothing is deleted."""
        there = (self.manifest or read_json(self.path / "begun.json")).get("fingerprint", "unknown")
        name, n = f"{self.name}.superseded-{there[:8]}", 1
        target = self.path.with_name(name)
        while target.exists():
            n += 1
            target = self.path.with_name(f"{name}-{n}")
        self.path.rename(target)
        print(f"the earlier {self.name} of run {self.run.name} is kept in {target.name}")

    def write(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        """Check a frame against its schema and store it; return it as it will be read back."""
        frame = schemas.check(frame, name).reset_index(drop=True)
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        atomic_write(self.path / f"{name}.parquet", buffer.getvalue())
        return pd.read_parquet(buffer)

    def read(self, name: str) -> pd.DataFrame:
        """Return a frame of the finished stage.

        Raises:
            StoreError: If the stage is not finished, has no such frame, or the file is not what was written.
        """
        files = self._finished_manifest("reading it")["files"]
        if name not in files:
            raise StoreError(f"Stage {self.name} has no frame {name!r}; it has {', '.join(files)}.")
        path = self.path / f"{name}.parquet"
        if not path.is_file() or file_sha256(path) != files[name]:
            fault = "is not what its manifest describes" if path.is_file() else "is missing"
            raise StoreError(
                f"{path} {fault}; rename the folder {self.path} and compute the stage again: {self._command()}"
            )
        return pd.read_parquet(path)

    def finish(
        self, fingerprint: str, counts: Mapping[str, int], seconds: float, tokens: int, parents: Mapping[str, str]
    ) -> None:
        """Write the manifest, which makes the stage count as finished.

        Args:
            fingerprint: What was given to `finished`.
            counts: What was made, for example {"drafts": 120}.
            seconds: Wall time of the work done now; work resumed from a killed run is not in it.
            tokens: Tokens generated or trained on.
            parents: Fingerprint of each upstream stage and model, by name.
        """
        timings = self.run.path / "timings.json"
        stages = {**read_json(timings), self.name: {"seconds": round(seconds, 3), "tokens": int(tokens)}}
        atomic_write(timings, _pretty(stages))
        manifest = {
            "stage": self.name,
            "run": self.run.name,
            "fingerprint": fingerprint,
            "schema": SCHEMA_NUMBER,
            "recipe": self.run.recipe.model_dump(),
            "seeds": self.run.recipe.seeds,
            "parents": dict(parents),
            "counts": {name: int(count) for name, count in counts.items()},
            "files": {path.stem: file_sha256(path) for path in sorted(self.path.glob("*.parquet"))},
            "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
            "git_commit": _git_commit(),
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            **stages[self.name],
        }
        atomic_write(self.path / "manifest.json", _pretty(manifest))
        progress.end()

    def require(self, upstream: str) -> "Stage":
        """Return an upstream stage that is finished and was itself built from what now lies upstream of it.

        Raises:
            StoreError: If it is not, naming the notebook and the command that make it so.
        """
        stage = self.run.stage(upstream)
        for parent, built_from in stage._finished_manifest(self.name)["parents"].items():
            if parent in NOTEBOOKS and stage.require(parent).manifest["fingerprint"] != built_from:
                raise StoreError(
                    f"{upstream} of run {self.run.name} was built from an earlier {parent}; bring it up to date with "
                    f"notebooks/{NOTEBOOKS[upstream]}.ipynb or: {stage._command()}"
                )
        return stage

    def _finished_manifest(self, wanted_by: str) -> dict:
        manifest = self.manifest
        if not manifest:
            raise StoreError(
                f"Run {self.run.name} has no finished {self.name}, which {wanted_by} needs; run "
                f"notebooks/{NOTEBOOKS[self.name]}.ipynb or: {self._command()}"
            )
        return manifest

    def _command(self) -> str:
        return f"workbench run {self.run.path / 'recipe.yaml'} --name {self.run.name} --to {self.name}"


def runs_table() -> pd.DataFrame:
    """Return one row per run: its recipe, finished stages, the primary comparison and the seconds it took."""
    return pd.DataFrame(
        [_run_row(path.parent) for path in sorted(runs_folder().glob("*/recipe.yaml"))], columns=COLUMNS
    )


def _run_row(path: Path) -> dict:
    row = {
        "name": path.name,
        "stages": ", ".join(name for name in NOTEBOOKS if (path / name / "manifest.json").exists()),
    }
    try:
        row["recipe"] = parse_yaml((path / "recipe.yaml").read_text(encoding="utf-8"))["name"]
        row["seconds"] = sum(stage["seconds"] for stage in read_json(path / "timings.json").values())
        verdict = read_json(path / "verdict.json")
        row["decision"] = verdict.get("decision", "")
        primary = verdict.get("primary", {})
        for compared in verdict.get("comparisons", []):
            if all(compared[key] == primary[key] for key in ("a", "b", "shots")):
                row |= {key: compared[key] for key in ("difference", "low", "high")}
    except (StoreError, KeyError, TypeError, ValueError) as error:
        # One damaged run must not hide the others.
        row["decision"] = f"unreadable ({type(error).__name__})"
    return row


def _pretty(value) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _git_commit() -> str:
    """Return the project's commit, with "+changes" when the tree differs from it; "" outside git."""
    try:
        command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
        return subprocess.run(command, cwd=project_root(), capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
