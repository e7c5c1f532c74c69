"""The reference set of local data influence: questions with the answers whose loss a step is to lower, per student.

Whose answers? The reference loss stands for what the student is tested on, its chance of a right answer by the plain
prompt. Where the answers are the student's own (some of n_tries samples, those that are right), that is exact to first
order: the gradient of the log-probability of answering right, rationales summed over, is the mean gradient of the
log-probability of right replies drawn from the student itself. The teacher's right answers are nearest to the paper,
which takes those of a stronger model; they reward what brings the student closer to the teacher's way of writing. The
bare target rewards answering at once, without any step.
"""

import itertools

import pandas as pd

from workbench.loop import prompts
from workbench.loop.writing import write_rationales
from workbench.models.engine import Decoding
from workbench.models.start import Model, run_engine_jobs
from workbench.runs import schemas
from workbench.runs.identity import looks_at
from workbench.runs.recipe import Recipe
from workbench.runs.workers import Job
from workbench.tasks.contamination import BY_DEFINITION, Guard, guard_for
from workbench.tasks.task import Task, all_test_items, guard_of_sets

VERSION = 1
BARE = " <ans>{}</ans>"


@looks_at("guard", "evaluation.bbh_dir")
def build_reference(
    writers: dict[str, Model] | None,
    students: dict[str, Model],
    tasks: dict[str, Task],
    preference_set: pd.DataFrame,
    n_tries: int,
    max_new_tokens: int,
    seed: int,
) -> pd.DataFrame:
    """Return every student's reference set: its frame, with counts of the questions left out and why.

    Questions that the calibrated levels of the guard take for copies of a test item are left out: they are right most
    times, not always. What is a test item by definition stays, for `measure` to refuse.

    Args:
        writers: Whose right answers are taken, by student; None takes the bare targets.
        preference_set: Its chosen questions are used; they lie outside every test set.
        n_tries: Answers sampled of each question; the first right one is taken.
    """
    recipe, chosen = next(iter(students.values())).recipe, preference_set[preference_set["chosen"]]
    apart = []
    for name, task in tasks.items():
        own = chosen[chosen["task"] == name]
        guard = guard_of_sets(recipe, {"test": all_test_items(recipe, task)[0]["question"]})
        found = [guard.find(question) for question in own["question"]]
        apart.append(own[[one is None or one.level in BY_DEFINITION for one in found]])
    kept = pd.concat(apart, ignore_index=True)
    if writers is None:
        asked = kept.to_dict("records")
        rows = [_row(tasks[one["task"]], name, one, BARE.format(one["target"])) for name in students for one in asked]
    else:
        jobs, decoding = [], Decoding(max_new_tokens, 1.0)
        for student, (name, task) in itertools.product(students, tasks.items()):
            given = (writers[student], student, task, kept[kept["task"] == name], n_tries, decoding, seed)
            jobs.append(Job(f"reference answers of {name} for {student}", given))
        writer = next(iter(writers.values()))
        rows = [row for own in run_engine_jobs(_answer, jobs, writer, "reference answers") for row in own]
    reference = schemas.build(rows, "reference")
    reference.attrs["counts"] = {
        "reference texts": len(reference),
        "reference questions like a test item, left out": len(chosen) - len(kept),
        "reference questions never answered right, left out": len(kept) * len(students) - len(rows),
    }
    return reference


def guard_of_tests(recipe: Recipe, tasks: dict[str, Task]) -> Guard:
    """Return the guard of every test set, by the levels that never take another question for the same."""
    sets = tuple((f"{n} test", tuple(all_test_items(recipe, task)[0]["question"])) for n, task in tasks.items())
    return guard_for(sets, BY_DEFINITION, 0.0)  # these levels need no calibration


def _answer(
    writer: Model, student: str, task: Task, questions: pd.DataFrame, n_tries: int, decoding: Decoding, seed: int
) -> list[dict]:
    """Return the questions with the first right one of n_tries sampled answers."""
    items = questions.to_dict("records")
    asked = [
        (prompts.naive_prompt(task.description, one["question"], task.prompts), f"reference/{one['item_id']}/{n}")
        for one, n in itertools.product(items, range(n_tries))
    ]
    texts = [one.text for one in write_rationales(writer.start(), asked, decoding, seed)]
    rows = []
    for at, one in enumerate(items):
        tries = texts[at * n_tries : (at + 1) * n_tries]
        right = [text for text in tries if task.answers.same(task.answers.read(text), one["target"])]
        rows += [_row(task, student, one, text) for text in right[:1]]
    return rows


def _row(task: Task, student: str, item: dict, completion: str) -> dict:
    prompt = prompts.naive_prompt(task.description, item["question"], task.prompts)
    copied = {name: item[name] for name in ("task", "item_id", "question", "target")}
    return {"student": student, **copied, "prompt": prompt, "completion": completion}
