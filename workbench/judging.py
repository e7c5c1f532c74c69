"""A judge: another model answers what the examples ask. Does it come to the teacher's answers?

Most tasks have no rule that could check a question somebody just made up; then this tells whether aligning the teacher
cost right answers. The judge reads the question and never the answer that is judged, so nothing in that can sway it.
What its word is worth is measured: it answers validation questions too, whose answers are known. Ours; ARTE has no
judge.
"""

from typing import NamedTuple

import pandas as pd

from workbench import prompts
from workbench.asking import AskJob, answer_job
from workbench.figures_base import percent
from workbench.inference import wilson
from workbench.items import atomic_write
from workbench.notebook import share_of
from workbench.recipe import Recipe, canonical_json
from workbench.starting import engine_mark, model_mark, run_engine_jobs
from workbench.store import Run, StoreError, fingerprint, read_json
from workbench.tasks import Task, load_tasks

VERSION = 1
FILE = "judgements.json"
NOBODY = (
    "This recipe names no judge; with models: {judge: ...} another model would answer the examples' questions here."
)


class Judged(NamedTuple):
    """What a judge says.

    Attributes:
        examples: The kept examples, with `said` (the judge's answer, "" where none could be read) and `agrees` (missing
            there).
        validation: Columns task, item_id, target, said, right: the judge on questions whose answers are known.
    """

    examples: pd.DataFrame
    validation: pd.DataFrame


def judge(run: Run) -> Judged | None:
    """Let the judge answer every question of the examples once, greedily, or return what it answered before.

    Returns:
        None if the recipe names no judge.

    Raises:
        JobError: If the judge's engine fails; what was answered is kept, so the same call goes on.
        StoreError: If the run's alignment is not finished.
    """
    if not run.recipe.models.judge:
        return None
    asked, key = _asked(run)
    path = run.path / FILE
    found = read_json(path)
    if key not in found:
        found[key] = _answers(run.recipe, asked)
        atomic_write(path, canonical_json(found).encode())
    return _compare(run, found[key])


def stored(run: Run) -> Judged | None:
    """Return what the judge said of the run's examples as they are now; None if it was not asked."""
    if not run.recipe.models.judge or not (found := read_json(run.path / FILE)):
        return None
    _, key = _asked(run)
    return _compare(run, found[key]) if key in found else None


def _validation(recipe: Recipe, task: Task) -> pd.DataFrame:
    return task.validation.head(recipe.preference_set.n_validation)


def _examples(run: Run) -> pd.DataFrame:
    examples = run.stage("training").require("alignment").read("examples")
    kept = examples[examples["kept"]]
    if kept.empty:
        raise StoreError(f"Run {run.name} kept no example, so there is nothing to judge; see why they were dropped.")
    return kept.reset_index(drop=True)


def _asked(run: Run) -> tuple[dict[str, list[str]], str]:
    """Return the questions by task, and the key of all that can change what the judge answers."""
    recipe, examples = run.recipe, _examples(run)
    asked = {}
    for name, task in load_tasks(recipe).items():
        own = examples.loc[examples["task"] == name, "question"]
        asked[name] = list(dict.fromkeys([*_validation(recipe, task)["question"], *own]))
    who = [model_mark(recipe, "judge", recipe.models.judge), engine_mark(recipe, "judge"), recipe.models.dtype]
    given = recipe.section_json("tasks", "evaluation.max_new_tokens")
    return asked, fingerprint([VERSION, who, given, asked])


def _answers(recipe: Recipe, asked: dict[str, list[str]]) -> dict[str, dict[str, str]]:
    """Return the judge's answers by task and question."""
    tasks = load_tasks(recipe)
    jobs = []
    for name, questions in asked.items():
        task = tasks[name]
        texts = [("", prompts.naive_prompt(task.description, question)) for question in questions]
        readers = [task.answers] * len(texts)
        jobs.append(AskJob(recipe, recipe.models.judge, f"the judge, {name}", texts, readers, role="judge"))
    answered = run_engine_jobs(answer_job, jobs, recipe, "judge", "asking the judge")
    return {
        name: {question: said for question, (said, _) in zip(asked[name], answers, strict=True)}
        for name, answers in zip(asked, answered, strict=True)
    }


def _compare(run: Run, said: dict[str, dict[str, str]]) -> Judged:
    tasks, examples = load_tasks(run.recipe), _examples(run)
    examples["said"] = [said[row.task][row.question] for row in examples.itertuples()]
    same = [tasks[row.task].answers.same(row.answer, row.said) for row in examples.itertuples()]
    examples["agrees"] = pd.array(same, dtype="boolean")
    examples.loc[examples["said"] == "", "agrees"] = pd.NA
    rows = [
        {"task": name, "item_id": item.item_id, "target": item.target, "said": said[name][item.question]}
        for name, task in tasks.items()
        for item in _validation(run.recipe, task).itertuples()
    ]
    known = pd.DataFrame(rows)
    known["right"] = [tasks[row.task].answers.same(row.said, row.target) for row in known.itertuples()]
    return Judged(examples, known)


def by_arm(judged: Judged) -> pd.DataFrame:
    """Return what the judge says of each student's arms: columns student, arm, the judge agrees (in words), no answer.

    Intervals are over questions; examples to which the judge had no answer are counted apart.
    """
    rows = []
    for (student, arm), own in judged.examples.groupby(["student", "arm"]):
        known = own[own["agrees"].notna()]
        agrees = share_of(known["agrees"].astype(bool), known["question_id"])
        row = {"student": student or "every student", "arm": arm, "the judge agrees": agrees}
        rows.append(row | {"no answer": len(own) - len(known)})
    return pd.DataFrame(rows)


def reliability(judged: Judged) -> str:
    """Return in sentences what the judge's word is worth: on known questions, and where a rule checks the examples."""
    n_right, n = int(judged.validation["right"].sum()), len(judged.validation)
    low, high = wilson(n_right / n, n)
    said = f"On {n} validation questions, whose answers are known, the judge is right in {percent(n_right / n)} "
    said += f"(95 % interval {percent(low)} to {percent(high)})."
    examples = judged.examples
    checked = examples[(examples["gold"] != "") & examples["agrees"].notna()]
    for right, what in ((True, "right"), (False, "wrong")):
        own = checked[checked["correct"] == right]
        if len(own):
            said += f" Of {len(own)} examples that are {what} by rule, it agrees with {percent(own['agrees'].mean())}."
    return said
