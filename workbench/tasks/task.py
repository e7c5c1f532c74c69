"""Tasks: what each asks, its seed, validation and test items, how its answers are read, and what can be checked."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from workbench.runs.errors import DataError
from workbench.runs.recipe import Recipe, project_root
from workbench.runs.recipe_parts import Prompts
from workbench.runs.run import file_sha256
from workbench.runs.schemas import text_id
from workbench.runs.seeding import stream
from workbench.tasks import pocket_questions, pocket_styles
from workbench.tasks.answers import Answers
from workbench.tasks.contamination import Guard, Overlap, copies, guard_for
from workbench.tasks.gym import drawn_items
from workbench.tasks.sources import check_golds, items_of, sha256_of

GENERAL_TECHNIQUES = {
    "procedure": "You are an expert in this kind of question. Work through it in a fixed order, one step at a time.",
    "rules": "You are an expert in this kind of question. First recall the rules and facts it needs, then apply them.",
    "plain": "Answer the question below.",
    "exam": "Answer as in an exam: read closely, rule out what cannot be right, then choose.",
}
OPEN_DESCRIPTION = "Follow the instruction."
LAST_LINE = r"(\S[^\n]*)\s*$"
SETS = ("seeds", "validation", "test")
SEEN = ("seeds", "validation")


@dataclass(frozen=True)
class Task:
    """One task."""

    name: str  # its file's name without the ending, or what the recipe calls it
    description: str  # what the task asks, in a sentence
    techniques: dict[str, str]  # name and text of each reasoning technique the teacher is asked for
    seeds: pd.DataFrame = field(repr=False)  # columns item_id, question, target; what the teacher sees as examples
    validation: pd.DataFrame = field(repr=False)  # the same columns; the preference set is chosen from these
    test: pd.DataFrame = field(repr=False)  # the same columns; opened by the evaluation alone
    sha256: str  # of the task file, or of the items where they come from elsewhere
    solver: str = ""  # name of the pocket task whose solver and styles apply, or ""
    answers: Answers = Answers()  # how its answers are read and compared
    prompts: Prompts = Prompts()  # how it is asked

    @property
    def is_open(self) -> bool:
        """Whether the whole reply is the answer, so that a judge alone can say what it is worth."""
        return self.answers.kind == "open"

    def solve(self, question: str) -> str:
        """Return the right answer, or "" when this task or this question cannot be solved by rule."""
        return pocket_questions.solve(self.solver, question) if self.solver else ""

    def majority(self, targets: pd.Series) -> float:
        """Return the share of the most frequent target: what who always answers so has right."""
        return float(targets.map(self.answers.read_gold).value_counts(normalize=True).iloc[0])

    def style(self, rationale: str) -> str:
        """Return which known style a rationale is in, or "". For figures only: no stage decides by it."""
        return pocket_styles.style_of(rationale) if self.solver else ""


def seed_pairs(task: Task, n: int) -> list[tuple[str, str]]:
    """Return the first n seed questions as (question, target)."""
    return list(task.seeds[["question", "target"]].head(n).itertuples(index=False, name=None))


def load_tasks(recipe: Recipe) -> dict[str, Task]:
    """Return the recipe's tasks by name, in its order.

    Raises:
        DataError: If a file or source is missing, empty, not in the format, or holds too few items for the recipe.
    """
    tasks = {name: _as_asked(_task_of(recipe, name), recipe.prompts) for name in recipe.tasks.names}
    for task in tasks.values():
        wanted = {
            "seeds": max(recipe.n_seeds_wanted, recipe.n_seeds_of(task.name)),
            "validation": recipe.preference_set.n_validation,
            "test": 0 if _evaluated_elsewhere(recipe, task) else recipe.evaluation.n_items,
        }
        for name, n in wanted.items():
            if len(getattr(task, name)) < n:
                raise DataError(
                    f"Task {task.name} has {len(getattr(task, name))} {name} items, the recipe asks for {n}; "
                    "lower the recipe's number or add items."
                )
    return tasks


def _as_asked(task: Task, asked: Prompts) -> Task:
    """Return a task as a recipe's prompts ask it: in another form than a tag, a tagged answer is one of any text."""
    answers = task.answers
    if task.is_open:
        cue = "Answer:" if asked.cue == Prompts().cue else asked.cue  # a poem has no steps
        asked = asked.model_copy(update={"answer": "whole", "cue": cue})
    if answers.kind == "tagged" and asked.answer != "tag":
        by_line = {"kind": "regex", "pattern": LAST_LINE}
        answers = replace(answers, **(by_line if asked.answer == "line" else {"kind": "exact"}))
        targets = pd.concat([getattr(task, part)["target"] for part in SETS])
        check_golds(list(targets), answers, f"Task {task.name}", "prompts.answer")
    return replace(task, answers=answers, prompts=asked, techniques=dict(asked.techniques) or task.techniques)


def task_file(recipe: Recipe, name: str) -> Path | None:
    """Return the file of a task in the recipe's folder of tasks, or None when its items come from elsewhere."""
    source = recipe.tasks.sources.get(name)
    elsewhere = source and (source.path or source.generator)
    return None if elsewhere else project_root() / recipe.tasks.folder / f"{name}.json"


def _task_of(recipe: Recipe, name: str) -> Task:
    source, file = recipe.tasks.sources.get(name), task_file(recipe, name)
    answers = Answers(source.answer_type, source.reply_pattern) if source else Answers()
    if file:
        task = replace(load_task(file, recipe), answers=answers)
        targets = pd.concat([getattr(task, part)["target"] for part in SETS])
        check_golds(list(targets), answers, f"Task {name}, {file}", f"tasks.sources.{name}.answer_type")
        return task
    if source.generator:
        wanted = (recipe.n_seeds_wanted, recipe.preference_set.n_validation, recipe.evaluation.n_items)
        raw, answers, sha256 = drawn_items(source, name, dict(zip(SETS, wanted, strict=True)))
    else:
        examples, test = items_of(source, name)
        raw = _split({"examples": examples}, name, recipe, has_test=bool(test))
        raw["test"], sha256 = test or raw["test"], sha256_of([examples, test])
    sets = {part: _items(raw[part], Path(source.path or source.generator), part) for part in SETS}
    usual = OPEN_DESCRIPTION if source.answer_type == "open" else _description(name)
    return Task(name, source.description or usual, dict(GENERAL_TECHNIQUES), **sets, sha256=sha256, answers=answers)


def _description(name: str) -> str:
    return f"Answer a question of the task {name.replace('_', ' ')}."


def load_task(path: Path, recipe: Recipe) -> Task:
    """Read one task file: our own format, with its sets named, or BIG-Bench Hard's, whose examples are then split.

    A `licence` in the file is said on the cards of what a run makes; nothing else reads it.
    """
    raw = _read(path)
    if "examples" in raw:
        raw = _split(raw, path.stem, recipe)
    sets = {name: _items(raw.get(name, []), path, name) for name in SETS}
    description = raw.get("description") or _description(path.stem)
    techniques = raw.get("techniques") or GENERAL_TECHNIQUES
    solver = raw.get("solver", "")
    if not isinstance(techniques, dict) or not all(isinstance(text, str) and text for text in techniques.values()):
        raise DataError(f"{path}: `techniques` must be an object of name and text; correct it or leave it out.")
    if solver and solver not in list(pocket_questions.READERS):
        known = ", ".join(pocket_questions.READERS)
        raise DataError(f"{path} names the solver {solver!r}; there are {known}, or leave it out.")
    return Task(path.stem, str(description), dict(techniques), **sets, sha256=file_sha256(path), solver=solver)


def load_test_items(recipe: Recipe, task: Task) -> tuple[pd.DataFrame, str]:
    """Return the items a run is evaluated on, and the SHA-256 of the file they come from.

    Items that copy a seed or validation item are left out before the first `evaluation.n_items` are taken. Where it is
    validation items that a recipe is evaluated on, as many of those outside the preference set as there are.

    Raises:
        DataError: If there are such items and the recipe's guard.test_overlap is refuse, naming the first, or if no
            validation item is left.
    """
    if recipe.evaluation.items == "validation":
        left = task.validation.iloc[recipe.preference_set.n_validation :]
        if left.empty:
            raise DataError(
                f"Task {task.name} has {len(task.validation)} validation items and all of them are for the preference "
                "set; lower preference_set.n_validation, or set evaluation.items to test."
            )
        return left.head(recipe.evaluation.n_items), f"{task.sha256}/validation"
    items, sha256 = all_test_items(recipe, task)
    found = copied_items(recipe, task)
    if found and recipe.guard.test_overlap == "refuse":
        first = "; ".join(f"{text_id(item)} {item[:50]!r}: {one.reason}" for item, one in list(found.items())[:3])
        raise DataError(
            f"{len(found)} of the {len(items)} test items of {task.name} copy what the run sees before ({first}); take "
            "them out of the task file or set guard.test_overlap to remove."
        )
    return items[~items["question"].isin(list(found))].head(recipe.evaluation.n_items), sha256


def all_test_items(recipe: Recipe, task: Task) -> tuple[pd.DataFrame, str]:
    """Return every item that a run is evaluated on, and the SHA-256 of the file they come from."""
    if not _evaluated_elsewhere(recipe, task):
        return task.test, task.sha256
    path = project_root() / recipe.evaluation.bbh_dir / f"{task.name}.json"
    return _items(_read(path).get("examples", []), path, "examples"), file_sha256(path)


def name_of_test_set(recipe: Recipe, tasks: dict[str, Task]) -> str:
    """Return what the items that a run is evaluated on are called."""
    if recipe.evaluation.items == "validation":
        return "validation items outside the preference set"
    if recipe.evaluation.bbh_dir:
        return "BIG-Bench Hard items"
    generated = all(task.solver for task in tasks.values())
    return "generated items" if generated else f"items of {', '.join(tasks)}"


def _evaluated_elsewhere(recipe: Recipe, task: Task) -> bool:
    """Say whether the task's test items come from evaluation.bbh_dir, which holds those of task files alone."""
    return bool(recipe.evaluation.bbh_dir) and task_file(recipe, task.name) is not None


def copied_items(recipe: Recipe, task: Task) -> dict[str, Overlap]:
    """Return the test questions that copy a seed or validation item, with what they copy."""
    guard = guard_of_sets(recipe, {"test": all_test_items(recipe, task)[0]["question"]})
    return copies(guard, {name: guard_of_sets(recipe, {name: getattr(task, name)["question"]}) for name in SEEN})


def guard_of_sets(recipe: Recipe, sets: dict[str, pd.Series]) -> Guard:
    """Return the guard of these sets with the recipe's settings."""
    frozen = tuple((name, tuple(questions)) for name, questions in sets.items())
    return guard_for(frozen, tuple(recipe.guard.levels), recipe.guard.false_positive_rate)


def _read(path: Path) -> dict:
    if not path.is_file():
        raise DataError(f"There is no task file {path}; check tasks.folder, tasks.names or evaluation.bbh_dir.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not JSON in UTF-8 ({error}); correct the file.") from None
    if not isinstance(raw, dict) or not ({"examples", "test"} & set(raw)):
        raise DataError(f"{path} must hold an object with `examples`, as BIG-Bench Hard's files do, or with {SETS}.")
    return raw


def _items(rows: list, path: Path, name: str) -> pd.DataFrame:
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path} has no items under {name!r}; each is an object with `input` and `target`.")
    for n, row in enumerate(rows):
        texts = [row.get("input"), row.get("target")] if isinstance(row, dict) else []
        if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(f"{path}: item {n} of {name!r} must have texts `input` and `target`, got {str(row)[:80]!r}")
    frame = pd.DataFrame({"question": [r["input"] for r in rows], "target": [r["target"] for r in rows]})
    frame.insert(0, "item_id", frame["question"].map(text_id))
    return frame.drop_duplicates("item_id").reset_index(drop=True)


def _split(raw: dict, name: str, recipe: Recipe, has_test: bool = False) -> dict:
    """Split examples into the three sets, by a draw named after the task; with test items of its own into two."""
    examples = raw["examples"]
    if not isinstance(examples, list):
        return raw | {"seeds": [], "validation": [], "test": []}
    # The same question twice would come to lie in two of the sets.
    first = {str(row.get("input")) if isinstance(row, dict) else n: n for n, row in reversed(list(enumerate(examples)))}
    examples = [examples[n] for n in sorted(first.values())]
    order = stream(0, "split", name).permutation(len(examples))
    n_seeds, n_validation = recipe.n_seeds_of(name), recipe.preference_set.n_validation
    if 0 < len(examples) + has_test <= n_seeds + n_validation:
        raise DataError(
            f"Task {name} holds {len(examples)} examples, but the recipe asks for {n_seeds} seeds, {n_validation} "
            f"validation items{'' if has_test else ' and some to test on'}; lower preference_set.n_validation or add "
            "examples."
        )
    ends = [0, n_seeds, n_seeds + n_validation, len(examples)]
    parts = zip(SETS, ends[:-1], ends[1:], strict=True)
    return raw | {part: [examples[i] for i in order[start:end]] for part, start, end in parts}


def guard_of(recipe: Recipe, task: Task) -> Guard:
    """Return the guard against all that new questions must differ from; the preference set is in validation."""
    sets = {name: getattr(task, name)["question"] for name in ("test", "seeds", "validation")}
    if recipe.evaluation.bbh_dir:
        sets = {"evaluated": all_test_items(recipe, task)[0]["question"], **sets}
    return guard_of_sets(recipe, sets)
