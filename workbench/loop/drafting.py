"""Drafting: the unaligned teacher proposes questions, and a rationale of each by every reasoning technique.

Source: ARTE, arXiv:2406.19227, section 3.1 and appendices A and H. Ours: near-copies of known items are dropped and
counted; the seed questions get a rationale each, for the prompts with several demonstrations.
"""

from collections.abc import Mapping

import pandas as pd

from workbench.loop import prompts
from workbench.loop.writing import Draw, Guards, Writer, Written, as_read, write_rationales
from workbench.models.engine import Decoding
from workbench.models.start import Model, run_engine_jobs
from workbench.runs import schemas
from workbench.runs.schemas import text_id
from workbench.runs.workers import Job
from workbench.tasks.task import Task

VERSION = 5
DRAFTS_A_JOB = 256  # of one task, so that several machines can share it
Techniques = Mapping[str, Mapping[str, str]]  # task -> name -> instruction


def draft_questions(
    teacher: Model, tasks: dict[str, Task], writer: Writer, n: int, sampling: Decoding, guards: Guards, seed: int
) -> pd.DataFrame:
    """Return new questions of every task, until n of each are kept; the dropped ones say why.

    Raises:
        ValueError: If the teacher wrote no usable question of a task, or copies of test items are refused.
    """
    given = (writer, n, sampling, guards, seed)
    jobs = [Job(f"draft questions of {name}", (teacher, task, *given)) for name, task in tasks.items()]
    rows = [row for own in run_engine_jobs(_questions, jobs, teacher, "drafting questions") for row in own]
    frame = schemas.build(rows, "questions")
    dropped = frame.loc[~frame["kept"], "drop_reason"].value_counts(sort=False)
    frame.attrs["counts"] = {"questions": frame["kept"].sum()}
    frame.attrs["counts"] |= {f"questions dropped, {why}": number for why, number in dropped.items()}
    return frame


def _questions(
    teacher: Model, task: Task, writer: Writer, n: int, sampling: Decoding, guards: Guards, seed: int
) -> list[dict]:
    written = writer(teacher.start(), task, n, sampling, Draw(seed, "drafting"), guards.of(task))
    guards.refuse_copies(task, written)
    if all(one.drop_reason for one in written):
        raise ValueError(
            f"The teacher wrote no usable question of {task.name} in {len(written)} tries (the last: "
            f"{written[-1].drop_reason}, {written[-1].reply[:60]!r}); take another models.teacher."
        )
    return [_question(task, one) for one in written]


def _question(task: Task, one: Written) -> dict:
    named = {"task": task.name, "question_id": text_id(f"{task.name}/{one.call}/{one.index}/{one.question}")}
    named |= {"prompt_id": text_id(one.prompt), "drafted_target": one.target, "kept": not one.drop_reason}
    return named | {name: value for name, value in vars(one).items() if name != "target"}


def draft_rationales(
    teacher: Model,
    tasks: dict[str, Task],
    questions: pd.DataFrame,
    techniques: Techniques,
    sampling: Decoding,
    seed: int,
) -> pd.DataFrame:
    """Return a rationale of every kept question by every technique of its task: drafts, as their schema describes them.

    Args:
        questions: As draft_questions returns them.
        techniques: Name and instruction of each, by task; an empty instruction asks plainly.
    """
    kept = questions[questions["kept"]]
    jobs = []
    for name, task in tasks.items():
        own, at_once = kept[kept["task"] == name], max(DRAFTS_A_JOB // len(techniques[name]), 1)
        for start in range(0, max(len(own), 1), at_once):
            said = f"rationales of {name}" + f", from question {start + 1}" * (len(own) > at_once)
            given = (teacher, task, own.iloc[start : start + at_once], techniques[name], sampling, seed)
            jobs.append(Job(said, given))
    rows = [row for own in run_engine_jobs(_rationales, jobs, teacher, "drafting rationales") for row in own]
    frame = schemas.build(rows, "drafts")
    frame.attrs["counts"] = {"drafts": len(frame), "drafts without an answer": (frame["answer"] == "").sum()}
    if n_cut := (~frame["finished"]).sum():
        frame.attrs["counts"] |= {"drafts cut off at the limit": n_cut}
    for name, own in frame.groupby("task", sort=False):
        if not own["finished"].any():
            raise ValueError(
                f"Every rationale of {name} ran into the limit of {sampling.max_new_tokens} tokens; raise "
                "drafting.max_new_tokens, or say in prompts.stop where they end."
            )
    return frame


def finished(drafts: pd.DataFrame) -> pd.DataFrame:
    """Return the drafts that ended by themselves: nobody is asked about the others, and nobody is taught them."""
    return drafts[drafts["finished"]] if "finished" in drafts else drafts


def _rationales(
    teacher: Model, task: Task, questions: pd.DataFrame, techniques: Mapping[str, str], sampling: Decoding, seed: int
) -> list[dict]:
    asked = [
        (question, name, prompts.technique_prompt(task.description, instruction, question["question"], task.prompts))
        for question in questions.to_dict("records")
        for name, instruction in techniques.items()
    ]
    named = [(prompt, f"rationale/{question['question_id']}/{name}") for question, name, prompt in asked]
    completions = write_rationales(teacher.start(), named, sampling, seed)
    rows = []
    for (question, name, prompt), completion in zip(asked, completions, strict=True):
        written_as = f"{task.name}/{text_id(prompt)}/{name}/{question['question_id']}/{completion.text}"
        known = {"draft_id": text_id(written_as), "task": task.name, "question_id": question["question_id"]}
        rows.append(known | {"technique": name} | as_read(task, question["question"], completion))
    return rows


def work_exemplars(teacher: Model, tasks: dict[str, Task], n: int, max_new_tokens: int) -> pd.DataFrame:
    """Return n seed questions of every task with the teacher's rationale where it is right, else the bare target."""
    jobs = [Job(f"seed questions of {name}", (teacher, task, n, max_new_tokens)) for name, task in tasks.items()]
    rows = [row for own in run_engine_jobs(_exemplars, jobs, teacher, "working seed questions") for row in own]
    return schemas.build(rows, "exemplars")


def _exemplars(teacher: Model, task: Task, n: int, max_new_tokens: int) -> list[dict]:
    seeds = task.seeds.head(n)
    asked = [(prompts.naive_prompt(task.description, question, task.prompts), "") for question in seeds["question"]]
    completions = write_rationales(teacher.start(), asked, Decoding(max_new_tokens), 0)
    rows = []
    for seed, completion in zip(seeds.itertuples(), completions, strict=True):
        worked = task.answers.same(task.answers.read(completion.text), seed.target)
        rationale = completion.text if worked else prompts.answer_in_form(seed.target, task.prompts)
        named = {"task": task.name, "item_id": seed.item_id, "question": seed.question}
        rows.append(named | {"rationale": rationale, "worked": worked})
    return rows
