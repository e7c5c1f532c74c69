"""The reference set of local data influence: questions with the answers whose loss a step is to lower, per student.

Whose answers? The reference loss stands for what the student is tested on, its chance of a right answer by the plain
prompt. Where the answers are the student's own (some of n_tries samples, those that are right), that is exact to first
order: the gradient of the log-probability of answering right, rationales summed over, is the mean gradient of the
log-probability of right replies drawn from the student itself. The teacher's right answers are nearest to the paper,
which takes those of a stronger model; they reward what brings the student closer to the teacher's way of writing. The
bare target rewards answering at once, without any step.
"""

from dataclasses import dataclass

import pandas as pd

from workbench.loop import prompts
from workbench.models.engine import Decoding, Request
from workbench.models.start import run_engine_jobs, start_engine
from workbench.runs import schemas
from workbench.runs.cache import shared_cache
from workbench.runs.recipe import Recipe
from workbench.tasks.contamination import BY_DEFINITION, Guard, guard_for
from workbench.tasks.task import Task, all_test_items, guard_of_sets

BARE = " <ans>{}</ans>"


@dataclass(frozen=True)
class _Answer:
    recipe: Recipe
    role: str
    model: str
    student: str
    task: Task
    questions: pd.DataFrame

    def __repr__(self) -> str:
        return f"reference answers of {self.task.name} by the {self.role} {self.student}".rstrip()


def build_reference(
    recipe: Recipe, tasks: dict[str, Task], chosen: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return every student's reference set, and how many questions were left out and why.

    Questions that the calibrated levels of the guard take for copies of a test item are left out: they are right most
    times, not always. What is a test item by definition stays, for `measure` to refuse.

    Args:
        recipe: Says whose answers.
        tasks: The recipe's tasks.
        chosen: Columns task, item_id, question, target; outside every test set.

    Returns:
        The frame "reference" and counts.
    """
    apart = [_apart_from_test(recipe, task, chosen[chosen["task"] == name]) for name, task in tasks.items()]
    kept = pd.concat(apart, ignore_index=True)
    role = recipe.influence.reference
    if role == "target":
        rows = [_row(tasks[one["task"]], name, one, BARE.format(one["target"])) for name, one in _of_all(recipe, kept)]
    else:
        models = {n: ref if role == "student" else recipe.models.teacher for n, ref in recipe.models.students.items()}
        jobs = [
            _Answer(recipe, role, model, student, task, kept[kept["task"] == name])
            for student, model in models.items()
            for name, task in tasks.items()
        ]
        rows = [row for found in run_engine_jobs(_answer, jobs, recipe, role, "reference answers") for row in found]
    reference = schemas.build(rows, "reference")
    counts = {"reference questions like a test item, left out": len(chosen) - len(kept)}
    counts["reference questions never answered right, left out"] = len(kept) * len(recipe.models.students) - len(rows)
    return reference, counts


def guard_of_tests(recipe: Recipe, tasks: dict[str, Task]) -> Guard:
    """Return the guard of every test set, by the levels that never take another question for the same."""
    sets = tuple((f"{n} test", tuple(all_test_items(recipe, task)[0]["question"])) for n, task in tasks.items())
    return guard_for(sets, BY_DEFINITION, recipe.guard.false_positive_rate)


def _apart_from_test(recipe: Recipe, task: Task, questions: pd.DataFrame) -> pd.DataFrame:
    guard = guard_of_sets(recipe, {"test": all_test_items(recipe, task)[0]["question"]})
    found = [guard.find(question) for question in questions["question"]]
    return questions[[one is None or one.level in BY_DEFINITION for one in found]]


def _of_all(recipe: Recipe, questions: pd.DataFrame) -> list[tuple[str, dict]]:
    return [(student, one) for student in recipe.models.students for one in questions.to_dict("records")]


def _answer(job: _Answer) -> list[dict]:
    """Return the questions of a job with the first right one of n_tries sampled answers."""
    recipe, task, asked = job.recipe, job.task, job.questions.to_dict("records")
    engine, n_tries = start_engine(recipe, job.role, job.model), recipe.influence.n_tries
    requests = [
        Request(engine.render(prompts.naive_prompt(task.description, one["question"])), f"reference/{name}/{n}")
        for one in asked
        for name in [one["item_id"]]
        for n in range(n_tries)
    ]
    decoding = Decoding(recipe.evaluation.max_new_tokens, 1.0)
    texts = [one.text for one in engine.generate(requests, decoding, recipe.seeds[0], shared_cache())]
    rows = []
    for at, one in enumerate(asked):
        tries = texts[at * n_tries : (at + 1) * n_tries]
        right = [text for text in tries if task.answers.same(task.answers.read(text), one["target"])]
        rows += [_row(task, job.student, one, text) for text in right[:1]]
    return rows


def _row(task: Task, student: str, item: dict, completion: str) -> dict:
    prompt = prompts.naive_prompt(task.description, item["question"])
    copied = {name: item[name] for name in ("task", "item_id", "question", "target")}
    return {"student": student, **copied, "prompt": prompt, "completion": completion}
