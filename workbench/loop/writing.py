"""A teacher at work: new questions from seed questions, and rationales, in batches that can be killed and resumed.

Asking a model many questions: one job a model and task, greedy, batched, its answers parsed.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from workbench.loop import prompts
from workbench.models.engine import Completion, Decoding, Engine, Request
from workbench.models.start import Role, start_engine
from workbench.runs.cache import Cache, shared_cache
from workbench.runs.recipe import Recipe
from workbench.tasks.answers import Answers
from workbench.tasks.contamination import LEVELS, Guard, normalise, reason_of
from workbench.tasks.task import Task

MAX_ROUNDS = 8
TEST_SETS = ("test", "evaluated")
SPARE = 1.25  # calls per question still wanted: some replies are dropped, and a round costs more than a spare call


@dataclass(frozen=True)
class Written:
    """One question a teacher wrote, kept or not; `reply` is its text in the form the teacher writes questions in.

    `prompt` is what it was asked with, where that is not the same for all questions of a task.
    """

    question: str
    target: str
    reply: str
    call: int
    index: int
    drop_reason: str
    prompt: str = ""


def refuse_copies(recipe: Recipe, task: Task, written: list[Written]) -> None:
    """Refuse questions that copy a test item, when the recipe says so.

    Raises:
        ValueError: If there are any, naming the first.
    """
    on_test = {reason_of(level, name) for level in LEVELS for name in TEST_SETS}
    found = [one for one in written if one.drop_reason in on_test]
    if found and recipe.guard.test_overlap == "refuse":
        first = "; ".join(f"{one.question[:60]!r}: {one.drop_reason}" for one in found[:3])
        raise ValueError(
            f"{len(found)} of {len(written)} questions written of {task.name} copy a test item ({first}); begin "
            "another run with guard.test_overlap=remove, which drops them and reuses all that was written so far."
        )


def write_questions(
    engine: Engine,
    task: Task,
    prompt: str,
    n_wanted: int,
    per_call: int,
    decoding: Decoding,
    seed: int,
    stream: str,
    items: Cache,
    guard: Guard,
) -> list[Written]:
    """Return questions until n_wanted are kept or MAX_ROUNDS are over; those not kept say why.

    Call i of the task draws from the stream (seed, stream, task, i), so asking for more never changes the first ones.
    """
    rendered = engine.render(prompt)
    written: list[Written] = []
    known: set[str] = set()
    n_kept = call = 0
    for _ in range(MAX_ROUNDS):
        n_calls = max(8, round((n_wanted - n_kept) / per_call * SPARE))
        requests = [Request(rendered, stream=f"{stream}/{task.name}/{call + i}") for i in range(n_calls)]
        for completion in engine.generate(requests, decoding, seed, items):
            for one in _read_reply(completion, call, known, guard):
                written.append(one)
                n_kept += not one.drop_reason
                if n_kept == n_wanted:
                    return written
            call += 1
    return written


def _read_reply(completion: Completion, call: int, known: set[str], guard: Guard) -> list[Written]:
    found = prompts.parse_questions(completion.text)
    if not found:
        return [Written("", "", completion.text, call, 0, "not in the form asked for")]
    blank = re.match(r"\s*", completion.text)[0]
    read = []
    for index, (question, target) in enumerate(found):
        reason = guard.overlap(question)
        if not reason and normalise(question) in known:
            reason = "written before"
        known.add(normalise(question))
        read.append(Written(question, target, blank + prompts.question_reply(question, target), call, index, reason))
    return read


def write_rationales(
    engine: Engine,
    asked: list[tuple[str, str]],
    decoding: Decoding,
    seed: int,
    items: Cache,
    progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Return a rationale for each (prompt, stream)."""
    requests = [Request(engine.render(prompt), stream=stream) for prompt, stream in asked]
    return engine.generate(requests, decoding, seed, items, progress)


def answer_questions(
    engine: Engine,
    asked: list[tuple[str, str]],
    max_new_tokens: int,
    items: Cache,
    progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Return a model's greedy answer to each (shared beginning, rest) of a prompt."""
    requests = []
    for prefix, rest in asked:
        prompt, shared = engine.render_shared(prefix, rest)
        requests.append(Request(prompt, prefix=shared))
    return engine.generate(requests, Decoding(max_new_tokens), 0, items, progress)


@dataclass(frozen=True)
class AskJob:
    """One model and what to ask it: (what questions share, the rest) of each prompt, and how to read each answer.

    compared and role are as in start.choice_of.
    """

    recipe: Recipe
    model: str
    name: str
    asked: list[tuple[str, str]] = field(repr=False)
    readers: Sequence[Answers] = field(repr=False)
    compared: bool = False
    role: Role = "student"

    def __repr__(self) -> str:
        return f"{len(self.asked)} questions to {self.name}"


def generate_answers(job: AskJob) -> list[tuple[str, int]]:
    """Return the model's answer to each question as read ("" when it has none), and the tokens it took."""
    read = zip(job.readers, complete_job(job), strict=True)
    return [(answers.read(completion.text), completion.n_tokens) for answers, completion in read]


def complete_job(job: AskJob) -> list[Completion]:
    """Return what the model writes to each question."""
    engine = start_engine(job.recipe, job.role, job.model, job.compared)
    return answer_questions(engine, job.asked, job.recipe.evaluation.max_new_tokens, shared_cache())
