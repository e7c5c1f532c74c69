"""The rounds of TAPIR: what is planned, written and chosen. Where its numbers come from: see tapir.

Everywhere a pool is the teacher's answers to it, `judged` and `taught` are its difficulties and the examples of each
round so far, and a plan is what plan_rounds returns.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from workbench.loop import prompts
from workbench.loop.writing import Draw, Guards, OnePrompt, Writer, example_of
from workbench.methods.tapir import ARMS, Curriculum
from workbench.models.engine import Decoding
from workbench.models.start import Model, run_engine_jobs
from workbench.runs import schemas
from workbench.runs.recipe import Tailoring
from workbench.runs.schemas import text_id
from workbench.runs.seeding import stream
from workbench.runs.workers import Job
from workbench.signals.difficulty import WHOSE, Key, rows_of
from workbench.tasks.contamination import normalise
from workbench.tasks.task import Task

VERSION = 2
PLAIN = "plain"
Rule = Callable[[int, Mapping[str, float], float, Mapping[str, int]], pd.DataFrame]


def techniques_of(tasks: Mapping[str, Task], styles: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return by task how the teacher answers: plainly and, where the recipe names a style for the task, in that.

    Raises:
        ValueError: If a task has no technique of that name.
    """
    for name, style in styles.items():
        if style not in tasks[name].techniques:
            known = ", ".join(tasks[name].techniques)
            raise ValueError(f"curriculum.styles asks for {style!r} in {name}, which has {known}; take one of these.")
    own = {name: {style: tasks[name].techniques[style]} for name, style in styles.items()}
    return {name: {PLAIN: ""} | own.get(name, {}) for name in tasks}


def given_questions(task: Task, n: int) -> pd.DataFrame:
    """Return the first n seed questions of a task as its pool: questions, as their schema describes them."""
    rows = [
        {"task": task.name, "question_id": row.item_id, "question": row.question, "drafted_target": row.target}
        | {"reply": "", "prompt_id": "", "call": 0, "index": place, "kept": True, "drop_reason": ""}
        for place, row in enumerate(task.seeds.head(n).itertuples())
    ]
    frame = schemas.build(rows, "questions")
    frame.attrs["counts"] = {"questions": len(frame)}
    return frame


def apportion(n: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Return whole numbers that add up to n, each less than one from its share: largest remainders get the rest."""
    exact = {name: n * share / sum(shares.values()) for name, share in shares.items()}
    numbers = {name: math.floor(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: numbers[name] - exact[name])
    return numbers | {name: numbers[name] + 1 for name in by_remainder[: n - sum(numbers.values())]}


def plan_round(n: int, shares: Mapping[str, float], hard_share: float, spare: Mapping[str, int]) -> pd.DataFrame:
    """Return how many items of each task a round has, and how many of them are newly written.

    Args:
        hard_share: How much is to be newly written; more is, where the pool has no more.
        spare: Items of the pool that are left, by task.
    """
    rows = []
    for task, items in apportion(n, shares).items():
        from_pool = min(items - round(hard_share * items), spare.get(task, 0))
        rows.append({"task": task, "items": items, "from_pool": from_pool, "written": items - from_pool})
    return pd.DataFrame(rows)


def level_of(scores: Sequence[float], promotion: float) -> int:
    """Return how often a learner was promoted: after each round in which its score grew by more than that."""
    return sum(now - before > promotion for before, now in itertools.pairwise(scores))


def plan_rounds(
    n_round: int,
    rule: Rule,
    learners: Mapping[Key, Model],
    pool: pd.DataFrame,
    judged: Sequence[pd.DataFrame],
    taught: Sequence[pd.DataFrame],
    settings: Curriculum,
) -> pd.DataFrame:
    """Return what every learner is taught in a round, counted from 1, by task.

    Returns:
        Columns student, arm, seed, hard_share, held_back (in how many rounds it was), task, items, from_pool, written,
        hard (questions of the pool that are hard for it).
    """
    questions = pool.drop_duplicates("question_id")
    sizes, frames = questions.groupby("task", sort=False).size().to_dict(), []
    for key in learners:
        arm, own = ARMS[key.arm], _of(judged, key)
        level = n_round - 1
        if arm.difficulty and arm.rounds:
            level = level_of([frame["score_student"].mean() for frame in own], settings.promotion)
        hard_share = settings.hard_shares[level]
        if not arm.rounds:
            hard_share = float(np.mean(settings.hard_shares)) if arm.new else 0.0
        left = questions[~questions["question_id"].isin(_taught(taught, key))]
        spare = left.groupby("task", sort=False).size().to_dict()
        shares = (settings.shares or dict.fromkeys(sizes, 1.0)) if arm.balance else sizes if arm.new else spare
        frame = rule(settings.n_items, shares, hard_share, spare)
        hard = own[-1][own[-1]["difficulty"] > settings.threshold]["task"].value_counts()
        known = key._asdict() | {"hard_share": hard_share, "held_back": n_round - 1 - level}
        frames.append(frame.assign(**known, hard=frame["task"].map(hard).fillna(0).astype(int)))
    plan = pd.concat(frames, ignore_index=True)
    plan.attrs["counts"] = {what.replace("_", " "): plan[what].sum() for what in ("items", "from_pool", "written")}
    return plan


def _of(frames: Sequence[pd.DataFrame], key: Key) -> list[pd.DataFrame]:
    """Return one learner's rows of each frame that has some."""
    return [own for frame in frames if len(own := rows_of(frame, key))]


def _taught(taught: Sequence[pd.DataFrame], key: Key) -> set[str]:
    return {question for frame in _of(taught, key) for question in frame["question_id"]}


def write_alike(
    n_round: int,
    teachers: Mapping[str, Model],
    tasks: Mapping[str, Task],
    plan: pd.DataFrame,
    pool: pd.DataFrame,
    judged: Sequence[pd.DataFrame],
    settings: Curriculum,
    tailoring: Tailoring,
    guards: Guards,
) -> pd.DataFrame:
    """Return new questions for every learner, several for each that is planned, written after some that it finds hard.

    A learner that finds nothing of a task hard, or whose arm does not ask, has any questions of the pool shown instead.

    Returns:
        Columns student, arm, seed, teacher, task, question_id, question, kept (all are).
    """
    known, plain = frozenset(map(normalise, pool["question"])), pool[pool["technique"] == PLAIN]
    jobs, wanted = [], 0
    for cell in plan[plan["written"] > 0].to_dict("records"):
        key, arm = Key(*(cell[name] for name in WHOSE)), ARMS[cell["arm"]]
        own, shown = _of(judged, key)[-1], plain[plain["task"] == cell["task"]]
        hard = shown["question_id"].isin(own[own["difficulty"] > settings.threshold]["question_id"])
        shown = shown[hard] if arm.difficulty and hard.any() else shown
        shown = list(shown[["question", "answer"]].itertuples(index=False, name=None))
        n = cell["written"] * settings.n_tries
        wanted += n
        writer = _AfterSome({}, 1, shown=shown, n_shown=settings.n_shown, seed=key.seed, known=known)
        said = f"{n} new questions of {cell['task']} for {'-'.join(map(str, key))}, round {n_round}"
        draw = Draw(key.seed, f"curriculum/{n_round}")
        jobs.append(Job(said, (teachers[arm.teacher], key, tasks[cell["task"]], n, writer, draw, tailoring, guards)))
    parts = run_engine_jobs(_write_lot, jobs, teachers["teacher"], "writing new questions")
    columns = [*WHOSE, "teacher", "task", "question_id", "question", "kept"]
    frame = pd.DataFrame([row for part in parts for row in part], columns=columns)
    frame.attrs["counts"] = {"new questions": len(frame), "wanted": wanted}
    return frame.astype({"kept": bool, "seed": "int64"})


@dataclass(frozen=True, kw_only=True)
class _AfterSome(OnePrompt):
    """A prompt for each call, after other ones of the questions that may be shown; of a reply the first is read."""

    shown: Sequence[tuple[str, str]]
    n_shown: int
    seed: int
    known: frozenset[str]
    most: ClassVar[int] = 1

    def prompt(self, task: Task, name: str) -> str:
        # Arms share their draws, so that they differ in what they do alone.
        places = stream(self.seed, name).permutation(len(self.shown))[: self.n_shown]
        return prompts.question_prompt(task.description, [self.shown[place] for place in places], 1, task.prompts)


def _write_lot(
    teacher: Model, key: Key, task: Task, n: int, writer: Writer, draw: Draw, tailoring: Tailoring, guards: Guards
) -> list[dict]:
    decoding = Decoding(tailoring.max_new_tokens, tailoring.question_temperature)
    written = writer(teacher.start(), task, n, decoding, draw, guards.of(task))
    guards.refuse_copies(task, written)
    kept = [one.question for one in written if not one.drop_reason]
    named = key._asdict() | {"teacher": ARMS[key.arm].teacher, "task": task.name, "kept": True}
    return [named | {"question_id": text_id(f"{task.name}/{one}"), "question": one} for one in kept]


def _style(arm: str, task: str, styles: Mapping[str, str]) -> str:
    return styles.get(task, PLAIN) if ARMS[arm].style else PLAIN


def explained(questions: pd.DataFrame, drafts: Mapping[str, pd.DataFrame], styles: Mapping[str, str]) -> pd.DataFrame:
    """Return new questions with the teacher's answers, each in the style that its arm and task ask for.

    Args:
        questions: As write_alike returns them.
        drafts: Answers by teacher.
    """
    ways = [_style(arm, task, styles) for arm, task in questions[["arm", "task"]].to_numpy()]
    answers = pd.concat([frame.assign(teacher=name) for name, frame in drafts.items()], ignore_index=True)
    on = ["teacher", "task", "question_id", "question", "technique"]
    return questions.assign(technique=ways).merge(answers, on=on, how="left", validate="many_to_one")


def choose_items(
    n_round: int,
    plan: pd.DataFrame,
    pool: pd.DataFrame,
    new: pd.DataFrame,
    difficulty: pd.DataFrame,
    taught: Sequence[pd.DataFrame],
    tasks: Mapping[str, Task],
    settings: Curriculum,
) -> dict[str, pd.DataFrame]:
    """Return what every learner is taught in a round: some of the pool, and the first new items that are hard for it.

    Where too few are hard, others fill the place; an arm that does not go by difficulty takes the first ones.

    Args:
        new: New questions with answers, as explained returns them.

    Returns:
        "examples": as their schema describes them; "candidates": the new items with difficulty, hard and taken.
    """
    on = [*WHOSE, "task", "question_id"]
    new = new.merge(difficulty[[*on, "difficulty"]], on=on, how="left", validate="one_to_one")
    new["hard"] = new["difficulty"] > settings.threshold
    rows, taken = [], []
    for cell in plan.to_dict("records"):
        key, task, arm = Key(*(cell[name] for name in WHOSE)), tasks[cell["task"]], ARMS[cell["arm"]]
        old = pool[(pool["task"] == task.name) & (pool["technique"] == _style(key.arm, task.name, settings.styles))]
        old = old[~old["question_id"].isin(_taught(taught, key))]
        order = stream(key.seed, "from the pool", n_round, task.name).permutation(len(old))
        own = rows_of(new[new["task"] == task.name], key)
        own = own.sort_values("hard", ascending=False, kind="stable") if arm.difficulty else own
        items = pd.concat([old.iloc[order[: cell["from_pool"]]], own.head(cell["written"])])
        taken += own.head(cell["written"]).index.tolist()
        name = f"{'/'.join(map(str, key))}/{task.name}/{n_round}"
        drawn = enumerate(items.to_dict("records"))
        rows += [example_of(task, f"{name}/{n}", key._asdict(), item) for n, item in drawn]
    examples, new = schemas.build(rows, "examples"), new.assign(taken=new.index.isin(taken))
    examples.attrs["counts"] = {"examples": examples["kept"].sum(), "new items": new["taken"].sum()}
    examples.attrs["counts"] |= {"new items that are hard": (new["taken"] & new["hard"]).sum()}
    examples.attrs["counts"] |= {"new items not judged": new["difficulty"].isna().sum()}
    return {"examples": examples, "candidates": new}
