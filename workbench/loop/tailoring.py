"""Tailoring: every teacher writes the examples that students are trained on, with the plain prompt.

Source: ARTE, arXiv:2406.19227, section 3.3 and appendix F. Where the paper contradicts itself, questions are written at
temperature 1 and rationales greedily, as appendix F says.
"""

import itertools

import pandas as pd

from workbench.loop import prompts
from workbench.loop.alignment import models_of
from workbench.loop.arms import draft_examples
from workbench.loop.writing import Draw, Guards, Writer, as_read, example_of, write_rationales
from workbench.models.engine import Completion, Decoding
from workbench.models.start import Model, run_engine_jobs
from workbench.runs import schemas
from workbench.runs.identity import looks_at
from workbench.runs.recipe import Tailoring
from workbench.runs.run import Frames
from workbench.runs.schemas import text_id
from workbench.runs.workers import Job
from workbench.tasks.task import Task

VERSION = 4
EVERY_STUDENT = ""  # the student of examples that no student's preference went into


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
        drafts: For the arms that take drafts as they are.
        signals: By which these arms choose.
        others: The signals that arms name, where they are others.
    """
    recipe = teacher.recipe
    teachers = {key: teacher.trained(folder) for key, folder in models_of(aligned, "teachers").items()}
    if "untailored" in recipe.evaluation.arms:
        teachers[(EVERY_STUDENT, "untailored")] = teacher.among_trained
    jobs = []
    for ((student, arm), model), seed, task in itertools.product(teachers.items(), recipe.seeds, tasks.values()):
        said = f"{arm} examples of {task.name} for {student or 'every student'}, seed {seed}"
        whose = {"student": student, "arm": arm, "seed": seed}
        jobs.append(Job(said, (model, whose, task, writer, settings, top_p, guards)))
    written = run_engine_jobs(_write_one, jobs, teacher.among_trained, "writing examples")
    rows = [row for own in written for row in own] + draft_examples(recipe, tasks, drafts, signals, others)
    frame = schemas.build(rows, "examples")
    dropped = frame.loc[~frame["kept"], "drop_reason"].value_counts(sort=False)
    frame.attrs["counts"] = {"examples": frame["kept"].sum()}
    frame.attrs["counts"] |= {f"examples dropped, {why}": n for why, n in dropped.items()}
    return frame


def _write_one(
    teacher: Model, whose: dict, task: Task, writer: Writer, settings: Tailoring, top_p: float, guards: Guards
) -> list[dict]:
    engine, decoding = teacher.start(), Decoding(settings.max_new_tokens, settings.question_temperature, top_p)
    draw = Draw(whose["seed"], "tailoring")
    written = writer(engine, task, settings.n_examples, decoding, draw, guards.of(task))
    guards.refuse_copies(task, written)
    asked = [
        (prompts.naive_prompt(task.description, question, task.prompts), f"tailored/{task.name}/{text_id(question)}")
        for question in [one.question for one in written if not one.drop_reason]
    ]
    decoding = Decoding(settings.max_new_tokens, settings.rationale_temperature, top_p)
    completions = iter(write_rationales(engine, asked, decoding, whose["seed"]))
    rows = []
    for n, one in enumerate(written):
        completion = Completion("", 0, True) if one.drop_reason else next(completions)
        item = {"question_id": text_id(one.question)} | as_read(task, one.question, completion)
        name = "{arm}/{student}/{seed}".format_map(whose) + f"/{task.name}/{n}"
        rows.append(example_of(task, name, whose, item, one.drop_reason))
    return rows
