"""Tailoring: every teacher writes the examples that students are trained on, with the plain prompt.

Source: ARTE, arXiv:2406.19227, section 3.3 and appendix F. Where the paper contradicts itself, questions are written at
temperature 1 and rationales greedily, as appendix F says.
"""

from collections import Counter
from dataclasses import dataclass, field

import pandas as pd

from workbench.loop import prompts
from workbench.loop.alignment import models_of
from workbench.loop.arms import draft_examples
from workbench.loop.writing import Draw, Guards, Writer, why_dropped, write_rationales
from workbench.models.engine import Completion, Decoding
from workbench.models.start import Model, run_engine_jobs
from workbench.runs import schemas
from workbench.runs.identity import looks_at
from workbench.runs.recipe import Tailoring
from workbench.runs.run import Frames
from workbench.runs.schemas import text_id
from workbench.tasks.task import Task

VERSION = 4
EVERY_STUDENT = ""  # the student of examples that no student's preference went into


@dataclass(frozen=True)
class _Write:
    teacher: Model = field(repr=False)
    student: str
    arm: str
    seed: int
    task: Task
    writer: Writer = field(repr=False)
    settings: Tailoring = field(repr=False)
    top_p: float = field(repr=False)
    guards: Guards = field(repr=False)

    def __repr__(self) -> str:
        return f"{self.arm} examples of {self.task.name} for {self.student or 'every student'}, seed {self.seed}"


@looks_at("seeds", "evaluation.arms")
def write_examples(
    teacher: Model,
    aligned: Frames,
    tasks: dict[str, Task],
    writer: Writer,
    settings: Tailoring,
    guards: Guards,
    drafts: pd.DataFrame,
    signals: pd.DataFrame,
    top_p: float = 1.0,
    others: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return what each teacher writes for every task and seed, as the schema "examples" describes it.

    Args:
        teacher: As it was; it writes for the arm untailored.
        aligned: What align_teachers returned.
        tasks: By name.
        writer: How a teacher is asked for questions, the same for all of them.
        settings: The recipe's section tailoring: how many, and how they are sampled.
        guards: What new questions must differ from.
        drafts: For the arms that take drafts as they are.
        signals: By which these arms choose.
        top_p: Nucleus of sampling.
        others: The signals that arms name, where they are others.
    """
    recipe = teacher.recipe
    teachers = {key: teacher.trained(folder) for key, folder in models_of(aligned, "teachers").items()}
    if "untailored" in recipe.evaluation.arms:
        teachers[(EVERY_STUDENT, "untailored")] = teacher.among_trained
    jobs = [
        _Write(model, student, arm, seed, task, writer, settings, top_p, guards)
        for (student, arm), model in teachers.items()
        for seed in recipe.seeds
        for task in tasks.values()
    ]
    written = run_engine_jobs(_write_one, jobs, teacher.among_trained, "writing examples")
    rows = [row for own in written for row in own] + draft_examples(recipe, tasks, drafts, signals, others)
    frame = schemas.build(rows, "examples")
    dropped = Counter(reason for reason in frame["drop_reason"] if reason)
    frame.attrs["counts"] = {"examples": frame["kept"].sum()}
    frame.attrs["counts"] |= {f"examples dropped, {why}": n for why, n in dropped.items()}
    return frame


def _write_one(job: _Write) -> list[dict]:
    task, settings, engine = job.task, job.settings, job.teacher.start()
    decoding = Decoding(settings.max_new_tokens, settings.question_temperature, job.top_p)
    draw = Draw(job.seed, "tailoring")
    written = job.writer(engine, task, settings.n_examples, decoding, draw, job.guards.of(task))
    job.guards.refuse_copies(task, written)
    asked = [
        (prompts.naive_prompt(task.description, question, task.prompts), f"tailored/{task.name}/{text_id(question)}")
        for question in [one.question for one in written if not one.drop_reason]
    ]
    decoding = Decoding(settings.max_new_tokens, settings.rationale_temperature, job.top_p)
    completions = iter(write_rationales(engine, asked, decoding, job.seed))
    rows = []
    for n, one in enumerate(written):
        completion = Completion("", 0, True) if one.drop_reason else next(completions)
        text, gold = completion.text, task.solve(one.question)
        answer = task.answers.read(text)
        reason = one.drop_reason or why_dropped(answer, completion.finished)
        rows.append(
            {
                "example_id": text_id(f"{job.arm}/{job.student}/{job.seed}/{task.name}/{n}"),
                "arm": job.arm,
                "student": job.student,
                "seed": job.seed,
                "task": task.name,
                "question_id": text_id(one.question),
                "question": one.question,
                "rationale": text,
                "answer": answer,
                "gold": gold,
                "correct": task.answers.same(answer, gold),
                "style": task.style(text),
                "n_tokens": completion.n_tokens,
                "finished": completion.finished,
                "kept": not reason,
                "drop_reason": reason,
            }
        )
    return rows
