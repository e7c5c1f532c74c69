"""Preference probing: how well a student answers with one draft as its only demonstration.

Source: ARTE, arXiv:2406.19227, sections 3.2 and 3.3, equations 1 to 4. A reply without a tagged answer counts as wrong.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from workbench.loop import prompts
from workbench.loop.writing import AskJob, generate_answers
from workbench.models.start import run_engine_jobs
from workbench.runs import schemas
from workbench.runs.recipe import Recipe
from workbench.tasks.task import Task

VERSION = 2  # raise by hand when the scoring changes; test_one_shot.py fails when the code did and this did not
PROBES_PER_JOB = 40_000  # a prompt and its tokens take some kilobytes while a job lasts


@dataclass(frozen=True)
class _Probe:
    """One student, and the drafts of a task to probe it with."""

    recipe: Recipe
    student: str
    task: Task
    drafts: pd.DataFrame = field(repr=False)
    items: pd.DataFrame = field(repr=False)

    def __repr__(self) -> str:
        return f"{len(self.drafts)} drafts of {self.task.name} to {self.student}"


def probe_drafts(recipe: Recipe, tasks: dict[str, Task], drafts: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """Return one row for every student, draft and chosen question."""
    jobs = []
    chosen = chosen[chosen["chosen"]]
    for student in recipe.models.students:
        for name, task in tasks.items():
            own, items = drafts[drafts["task"] == name], chosen[chosen["task"] == name]
            n_drafts = max(1, PROBES_PER_JOB // max(1, len(items)))
            parts = [own.iloc[start : start + n_drafts] for start in range(0, len(own), n_drafts)]
            jobs += [_Probe(recipe, student, task, part, items) for part in parts]
    frames = run_engine_jobs(_probe_job, jobs, recipe, "student", "probing")
    return pd.concat(frames, ignore_index=True) if frames else schemas.build([], "probes")


def _probe_job(job: _Probe) -> pd.DataFrame:
    """Return the probes of one job; the prompts are made here, since those of all jobs at once fill the memory."""
    pairs = list(itertools.product(job.drafts.itertuples(), job.items.itertuples()))
    asked = [
        prompts.one_shot_prompt(job.task.description, draft.question, draft.rationale, item.question)
        for draft, item in pairs
    ]
    model = job.recipe.models.students[job.student]
    found = generate_answers(AskJob(job.recipe, model, repr(job), asked, [job.task.answers] * len(asked)))
    rows = [
        {
            "student": job.student,
            "draft_id": draft.draft_id,
            "item_id": item.item_id,
            "answer": answer,
            "correct": job.task.answers.same(answer, item.target),
            "parsed": bool(answer),
            "n_tokens": n_tokens,
        }
        for (draft, item), (answer, n_tokens) in zip(pairs, found, strict=True)
    ]
    return schemas.build(rows, "probes")


def score(probes: pd.DataFrame, drafts: pd.DataFrame, students: dict[str, str], set_fp: str) -> pd.DataFrame:
    """Return preference scores of rationales (s_r) and of questions (s_q, the mean over a question's rationales).

    The standard error is over preference-set items, which all drafts of a task share: of s_r by the binomial formula,
    of s_q by the spread of each item's mean over the rationales.
    """
    known = probes.merge(drafts[["draft_id", "question_id"]], on="draft_id")
    known["correct"] = known["correct"].astype(float)
    of_drafts = known.groupby(["student", "draft_id"], sort=False).agg(
        value=("correct", "mean"), n=("correct", "size"), tokens=("n_tokens", "sum")
    )
    of_drafts["stderr"] = np.sqrt(of_drafts["value"] * (1 - of_drafts["value"]) / of_drafts["n"])
    by_item = known.groupby(["student", "question_id", "item_id"], sort=False)["correct"].mean()
    of_questions = known.groupby(["student", "question_id"], sort=False).agg(
        value=("correct", "mean"), n=("correct", "size"), tokens=("n_tokens", "sum")
    )
    by_question = by_item.groupby(["student", "question_id"], sort=False)
    of_questions["stderr"] = (by_question.std(ddof=0) / np.sqrt(by_question.size())).reindex(of_questions.index)
    of_questions.index.names = ["student", "draft_id"]
    both = pd.concat([of_drafts.assign(item_kind="rationale"), of_questions.assign(item_kind="question")])
    both = both.reset_index().assign(signal="icl", set_fp=set_fp)
    both["student_fp"] = both["student"].map(students)
    return both[list(schemas.SCHEMAS["signals"].columns)]
