"""Preference probing: how well a student answers with one draft as its only demonstration.

Source: ARTE, arXiv:2406.19227, sections 3.2 and 3.3, equations 1 to 4. A reply without a tagged answer counts as wrong.
"""

import itertools

import numpy as np
import pandas as pd

from workbench.loop import prompts
from workbench.loop.drafting import finished
from workbench.loop.pairs import rounds, still_racing
from workbench.loop.writing import AskJob, generate_answers
from workbench.models.engine import NATS_OF_ROUNDING, SelfTest, self_test
from workbench.models.loading import precision
from workbench.models.start import Model, choice_of, run_engine_jobs
from workbench.runs import schemas
from workbench.runs.workers import Job
from workbench.tasks.task import Task

VERSION = 4
N_TESTED = 4
N_RACING = 4  # drafts of a question, as a rule
PROBES_PER_JOB = 40_000  # a prompt and its tokens take some kilobytes while a job lasts


def probe_drafts(
    students: dict[str, Model],
    tasks: dict[str, Task],
    drafts: pd.DataFrame,
    preference_set: pd.DataFrame,
    max_new_tokens: int,
    error: float = 0.0,
) -> pd.DataFrame:
    """Return one row for every student, draft and chosen question: what was answered after that one demonstration.

    With an error drafts race: all are asked a few questions at a time, and those of a draft question no more when it is
    settled which of them is better (see still_racing), so that draft questions differ in their numbers of probes.

    Each student's engine is tested first, where its weights are here: a few probes together, again, and one by one.

    Args:
        drafts: Columns draft_id, task, question, rationale.
        error: Above 0: drafts race, and need the column question_id too.

    Raises:
        RunError: If an engine does not agree with itself.
    """
    drafts = finished(drafts)
    jobs, whose, chosen = [], [], preference_set[preference_set["chosen"]]
    for student, model in students.items():
        for name, task in tasks.items():
            own, items = drafts[drafts["task"] == name], chosen[chosen["task"] == name]
            n_drafts = max(1, PROBES_PER_JOB // max(1, len(items)))
            # Drafts that race against each other stay together.
            place = pd.factorize(own["question_id"])[0] * N_RACING if error else np.arange(len(own))
            for _, part in own.groupby(place // n_drafts):
                given = (student, model, task, part, items, max_new_tokens, error, student not in whose)
                jobs.append(Job(f"{len(part)} drafts of {name} to {student}", given))
                whose.append(student)
    done = run_engine_jobs(_probe_job, jobs, next(iter(students.values())), "probing")
    probes = pd.concat([frame for frame, _ in done], ignore_index=True) if done else schemas.build([], "probes")
    probes.attrs["counts"] = {"probes": len(probes), "probes without an answer": (~probes["parsed"]).sum()}
    for student, (_, test) in zip(whose, done, strict=True):
        if test and (test.n_apart or test.nats > NATS_OF_ROUNDING[precision(students[student].recipe.models.dtype)]):
            print(f"Self-test of {student}: {test}.")
            probes.attrs["counts"][f"self-test texts of {student} that differ between batches"] = test.n_apart
    return probes


def _test(model: Model, asked: list[tuple[str, str]]) -> SelfTest | None:
    """Test the engine of a student on some of its probes; a server is taken as it is."""
    if choice_of(model.recipe, "student", model.compared).engine == "openai":
        return None
    engine, step = model.start(), max(1, len(asked) // N_TESTED)
    return self_test(engine, [engine.render("".join(one)) for one in asked[::step][:N_TESTED]])


def _probe_job(
    student: str,
    model: Model,
    task: Task,
    drafts: pd.DataFrame,
    items: pd.DataFrame,
    longest: int,
    error: float,
    is_first: bool,
) -> tuple[pd.DataFrame, SelfTest | None]:
    """Return the probes of one job; the prompts are made here, since those of all jobs at once fill the memory."""
    test, rows, racing = None, [], drafts
    for block in rounds(items) if error else [items]:
        pairs = list(itertools.product(racing.itertuples(), block.itertuples()))
        asked = [
            prompts.one_shot_prompt(task.description, draft.question, draft.rationale, item.question, task.prompts)
            for draft, item in pairs
        ]
        test = _test(model, asked) if asked and is_first and not rows else test
        answers = generate_answers(AskJob(model, student, asked, longest, [task.answers] * len(asked)))
        rows += [
            {
                "student": student,
                "draft_id": draft.draft_id,
                "item_id": item.item_id,
                "answer": answer,
                "correct": task.answers.same(answer, item.target),
                "parsed": bool(answer),
                "n_tokens": n_tokens,
            }
            for (draft, item), (answer, n_tokens) in zip(pairs, answers, strict=True)
        ]
        if error and rows:
            racing = still_racing(pd.DataFrame(rows), racing, error)
        if racing.empty:
            break
    return schemas.build(rows, "probes"), test
