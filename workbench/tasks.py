"""Task files: what a task is, its seed, validation and test items, and which of its questions can be checked."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from workbench.guard import Guard, Overlap, copies, guard_for
from workbench.pocket import problems, rationales
from workbench.recipe import Recipe, project_root
from workbench.records import text_id
from workbench.seeding import stream
from workbench.store import file_sha256

GENERAL_TECHNIQUES = {
    "procedure": "You are an expert in this kind of question. Work through it in a fixed order, one step at a time.",
    "rules": "You are an expert in this kind of question. First recall the rules and facts it needs, then apply them.",
    "plain": "Answer the question below.",
    "exam": "Answer as in an exam: read closely, rule out what cannot be right, then choose.",
}
SETS = ("seeds", "validation", "test")
SEEN = ("seeds", "validation")


class TaskError(ValueError):
    """A task file is missing, empty or not in the format."""


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: Its file's name without the ending.
        description: What the task asks, in a sentence.
        techniques: Name and text of each reasoning technique the teacher is asked for.
        seeds: Columns item_id, question, target; what the teacher sees as examples.
        validation: The same columns; the preference set is chosen from these.
        test: The same columns; opened by the evaluation alone.
        sha256: Of the task file.
        solver: Name of the pocket task whose solver and styles apply, or "".
    """

    name: str
    description: str
    techniques: dict[str, str]
    seeds: pd.DataFrame = field(repr=False)
    validation: pd.DataFrame = field(repr=False)
    test: pd.DataFrame = field(repr=False)
    sha256: str
    solver: str = ""

    def solve(self, question: str) -> str:
        """Return the right answer, or "" when this task or this question cannot be solved by rule."""
        return problems.solve(self.solver, question) if self.solver else ""

    def style(self, rationale: str) -> str:
        """Return which known style a rationale is in, or "". For figures only: no stage decides by it."""
        return rationales.style_of(rationale) if self.solver else ""


def load_tasks(recipe: Recipe) -> dict[str, Task]:
    """Return the recipe's tasks by name, in its order.

    Raises:
        TaskError: If a file is missing, empty, not in the format, or holds too few items for the recipe.
    """
    folder = project_root() / recipe.tasks.folder
    tasks = {name: load_task(folder / f"{name}.json", recipe) for name in recipe.tasks.names}
    for task in tasks.values():
        wanted = {
            "seeds": recipe.drafting.n_seed_questions,
            "validation": recipe.preference_set.n_validation,
            "test": 0 if recipe.evaluation.bbh_dir else recipe.evaluation.n_items,
        }
        for name, n in wanted.items():
            if len(getattr(task, name)) < n:
                raise TaskError(
                    f"Task {task.name} has {len(getattr(task, name))} {name} items, the recipe asks for {n}; "
                    "lower the recipe's number or add items."
                )
    return tasks


def load_task(path: Path, recipe: Recipe) -> Task:
    """Read one task file: our own format, with its sets named, or BIG-Bench Hard's, whose examples are then split.

    A `licence` in the file is said on the cards of what a run makes; nothing else reads it.
    """
    raw = _read(path)
    if "examples" in raw:
        raw = _split(raw, path.stem, recipe)
    sets = {name: _items(raw.get(name, []), path, name) for name in SETS}
    description = raw.get("description") or f"Answer a question of the task {path.stem.replace('_', ' ')}."
    techniques = raw.get("techniques") or GENERAL_TECHNIQUES
    solver = raw.get("solver", "")
    if not isinstance(techniques, dict) or not all(isinstance(text, str) and text for text in techniques.values()):
        raise TaskError(f"{path}: `techniques` must be an object of name and text; correct it or leave it out.")
    if solver and solver not in list(problems.READERS):
        raise TaskError(
            f"{path} names the solver {solver!r}; there are {', '.join(problems.READERS)}, or leave it out."
        )
    return Task(path.stem, str(description), dict(techniques), **sets, sha256=file_sha256(path), solver=solver)


def load_test_items(recipe: Recipe, task: Task) -> tuple[pd.DataFrame, str]:
    """Return the items a run is evaluated on, and the SHA-256 of the file they come from.

    Items that copy a seed or validation item are left out before the first `evaluation.n_items` are taken.

    Raises:
        TaskError: If there are such items and the recipe's guard.test_overlap is refuse, naming the first.
    """
    items, sha256 = all_test_items(recipe, task)
    found = copied_items(recipe, task)
    if found and recipe.guard.test_overlap == "refuse":
        first = "; ".join(f"{text_id(item)} {item[:50]!r}: {one.reason}" for item, one in list(found.items())[:3])
        raise TaskError(
            f"{len(found)} of the {len(items)} test items of {task.name} copy what the run sees before ({first}); take "
            "them out of the task file or set guard.test_overlap to remove."
        )
    return items[~items["question"].isin(list(found))].head(recipe.evaluation.n_items), sha256


def all_test_items(recipe: Recipe, task: Task) -> tuple[pd.DataFrame, str]:
    """Return every item of the file that a run is evaluated on, and the file's SHA-256."""
    if not recipe.evaluation.bbh_dir:
        return task.test, task.sha256
    folder = Path(recipe.evaluation.bbh_dir)
    path = (folder if folder.is_absolute() else project_root() / folder) / f"{task.name}.json"
    return _items(_read(path).get("examples", []), path, "examples"), file_sha256(path)


def copied_items(recipe: Recipe, task: Task) -> dict[str, Overlap]:
    """Return the test questions that copy a seed or validation item, with what they copy."""
    guard = guard_of_sets(recipe, {"test": all_test_items(recipe, task)[0]["question"]})
    return copies(guard, {name: guard_of_sets(recipe, {name: getattr(task, name)["question"]}) for name in SEEN})


def guard_of_sets(recipe: Recipe, sets: dict[str, pd.Series]) -> Guard:
    """Return the guard of these sets with the recipe's settings."""
    frozen = tuple((name, tuple(questions)) for name, questions in sets.items())
    return guard_for(frozen, tuple(recipe.guard.levels), recipe.guard.false_alarms)


def _read(path: Path) -> dict:
    if not path.is_file():
        raise TaskError(f"There is no task file {path}; check tasks.folder, tasks.names or evaluation.bbh_dir.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TaskError(f"{path} is not JSON in UTF-8 ({error}); correct the file.") from None
    if not isinstance(raw, dict) or not ({"examples", "test"} & set(raw)):
        raise TaskError(f"{path} must hold an object with `examples`, as BIG-Bench Hard's files do, or with {SETS}.")
    return raw


def _items(rows: list, path: Path, name: str) -> pd.DataFrame:
    if not isinstance(rows, list) or not rows:
        raise TaskError(f"{path} has no items under {name!r}; each is an object with `input` and `target`.")
    for n, row in enumerate(rows):
        texts = [row.get("input"), row.get("target")] if isinstance(row, dict) else []
        if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
            raise TaskError(
                f"{path}: item {n} of {name!r} must have texts `input` and `target`, got {str(row)[:80]!r}."
            )
    frame = pd.DataFrame({"question": [r["input"] for r in rows], "target": [r["target"] for r in rows]})
    frame.insert(0, "item_id", frame["question"].map(text_id))
    return frame.drop_duplicates("item_id").reset_index(drop=True)


def _split(raw: dict, name: str, recipe: Recipe) -> dict:
    """Split a file of examples into the three sets, by a draw named after the task."""
    examples = raw["examples"]
    if not isinstance(examples, list):
        return raw | {"seeds": [], "validation": [], "test": []}
    order = stream(0, "split", name).permutation(len(examples))
    n_seeds = recipe.drafting.n_seed_questions
    n_validation = recipe.preference_set.n_validation
    if 0 < len(examples) <= n_seeds + n_validation:
        raise TaskError(
            f"Task {name} holds {len(examples)} examples, but the recipe asks for {n_seeds} seeds, {n_validation} "
            "validation items and some to test on; lower preference_set.n_validation or add examples."
        )
    ends = [0, n_seeds, n_seeds + n_validation, len(examples)]
    parts = zip(SETS, ends[:-1], ends[1:], strict=True)
    return raw | {part: [examples[i] for i in order[start:end]] for part, start, end in parts}
