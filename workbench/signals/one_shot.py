"""Preference probing: how well a student answers with one draft as its only demonstration.

Source: ARTE, arXiv:2406.19227, sections 3.2 and 3.3, equations 1 to 4. A reply without a tagged answer counts as wrong.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from workbench.loop import prompts
from workbench.loop.writing import AskJob, generate_answers
from workbench.models.start import Model, run_engine_jobs
from workbench.runs import schemas
from workbench.runs.run import fingerprint
from workbench.tasks.task import Task

SIGNAL = "one_shot"
VERSION = 3
PROBES_PER_JOB = 40_000  # a prompt and its tokens take some kilobytes while a job lasts


@dataclass(frozen=True)
class _Probe:
    """One student, and the drafts of a task to probe it with."""

    student: str
    model: Model
    task: Task
    drafts: pd.DataFrame = field(repr=False)
    items: pd.DataFrame = field(repr=False)
    max_new_tokens: int

    def __repr__(self) -> str:
        return f"{len(self.drafts)} drafts of {self.task.name} to {self.student}"


def probe_drafts(
    students: dict[str, Model],
    tasks: dict[str, Task],
    drafts: pd.DataFrame,
    preference_set: pd.DataFrame,
    max_new_tokens: int,
) -> pd.DataFrame:
    """Return one row for every student, draft and chosen question: what was answered after that one demonstration.

    Args:
        students: By name.
        tasks: By name.
        drafts: Columns draft_id, task, question, rationale.
        preference_set: Its chosen questions are asked.
        max_new_tokens: Of an answer.
    """
    jobs, chosen = [], preference_set[preference_set["chosen"]]
    for student, model in students.items():
        for name, task in tasks.items():
            own, items = drafts[drafts["task"] == name], chosen[chosen["task"] == name]
            n_drafts = max(1, PROBES_PER_JOB // max(1, len(items)))
            parts = [own.iloc[start : start + n_drafts] for start in range(0, len(own), n_drafts)]
            jobs += [_Probe(student, model, task, part, items, max_new_tokens) for part in parts]
    frames = run_engine_jobs(_probe_job, jobs, next(iter(students.values())), "probing")
    probes = pd.concat(frames, ignore_index=True) if frames else schemas.build([], "probes")
    probes.attrs["counts"] = {"probes": len(probes), "probes without an answer": (~probes["parsed"]).sum()}
    return probes


def _probe_job(job: _Probe) -> pd.DataFrame:
    """Return the probes of one job; the prompts are made here, since those of all jobs at once fill the memory."""
    pairs = list(itertools.product(job.drafts.itertuples(), job.items.itertuples()))
    asked = [
        prompts.one_shot_prompt(job.task.description, draft.question, draft.rationale, item.question)
        for draft, item in pairs
    ]
    readers = [job.task.answers] * len(asked)
    answers = generate_answers(AskJob(job.model, repr(job), asked, job.max_new_tokens, readers))
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
        for (draft, item), (answer, n_tokens) in zip(pairs, answers, strict=True)
    ]
    return schemas.build(rows, "probes")


def share_right(probes: pd.DataFrame, drafts: pd.DataFrame, students: dict[str, Model]) -> pd.DataFrame:
    """Return preference scores of rationales (s_r) and of questions (s_q, the mean over a question's rationales).

    A score is the share of the preference questions answered right: in [0, 1], higher is better. The standard error is
    over preference questions, which all drafts of a task share: of s_r by the binomial formula, of s_q by the spread of
    each question's mean over the rationales.

    Args:
        probes: One row for every student, draft and preference question.
        drafts: With the question that each belongs to.
        students: By name.
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
    asked = fingerprint(sorted(probes["item_id"].unique()))
    both = both.reset_index().assign(signal=SIGNAL, set_fp=asked)
    both["student_fp"] = both["student"].map({name: model.fingerprint for name, model in students.items()})
    return both[list(schemas.SCHEMAS["signals"].columns)]
