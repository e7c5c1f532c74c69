"""A teacher at work: new questions from seed questions, and rationales, in batches that can be killed and resumed.

Asking a model many questions: one job a model and task, greedy, batched, its answers parsed.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

from workbench.loop import prompts
from workbench.models.engine import Completion, Decoding, Engine, Request
from workbench.models.start import Model
from workbench.runs.cache import shared_cache
from workbench.runs.recipe import Recipe
from workbench.runs.run import fingerprint
from workbench.runs.schemas import text_id
from workbench.tasks.answers import Answers
from workbench.tasks.contamination import LEVELS, Guard, normalise, reason_of
from workbench.tasks.task import Task, all_test_items, guard_of, load_tasks

VERSION = 3
MAX_ROUNDS = 8
TEST_SETS = ("test", "evaluated")
SPARE = 1.25  # calls per question still wanted: some replies are dropped, and a round costs more than a spare call


@dataclass(frozen=True)
class Written:
    """One question a teacher wrote, kept or not; `reply` is its text in the form the teacher writes questions in.

    `prompt` is what it was asked with.
    """

    question: str
    target: str
    reply: str
    call: int
    index: int
    drop_reason: str
    prompt: str


class Draw(NamedTuple):
    """What random draws of a writer are named by."""

    seed: int
    stream: str


@dataclass(frozen=True)
class Guards:
    """What new questions must differ from: the seeds, validation and test items of their task."""

    recipe: Recipe = field(repr=False)

    @property
    def key(self) -> str:
        """What tells this guard from another: its settings, and every set it guards."""
        tasks = load_tasks(self.recipe)
        sets = {name: [task.sha256, all_test_items(self.recipe, task)[1]] for name, task in tasks.items()}
        return fingerprint([self.recipe.guard.model_dump(), sets])

    def of(self, task: Task) -> Guard:
        """Return the guard of one task."""
        return guard_of(self.recipe, task)

    def refuse_copies(self, task: Task, written: list[Written]) -> None:
        """Refuse questions that copy a test item, when the recipe says so.

        Raises:
            ValueError: If there are any, naming the first.
        """
        on_test = {reason_of(level, name) for level in LEVELS for name in TEST_SETS}
        copies = [one for one in written if one.drop_reason in on_test]
        if copies and self.recipe.guard.test_overlap == "refuse":
            first = "; ".join(f"{one.question[:60]!r}: {one.drop_reason}" for one in copies[:3])
            raise ValueError(
                f"{len(copies)} of {len(written)} questions written of {task.name} copy a test item ({first}); begin "
                "another run with guard.test_overlap=remove, which drops them and reuses all that was written so far."
            )


# A way to have new questions of a task written until so many are kept; an argument of steps: its fields say it all.
Writer = Callable[[Engine, Task, int, Decoding, Draw, Guard], list[Written]]


@dataclass(frozen=True)
class OnePrompt:
    """New questions of a task by one and the same prompt, several to a reply."""

    prompts: dict[str, str]  # what the teacher is told, by task
    per_call: int  # how many questions a reply holds
    known: ClassVar[frozenset[str]] = frozenset()  # questions, normalised, that count as written before
    most: ClassVar[int | None] = None  # so many of a reply are read, if not all

    def prompt(self, task: Task, stream: str) -> str:
        """Return the prompt of the call that draws from a stream."""
        return self.prompts[task.name]

    def __call__(
        self, engine: Engine, task: Task, n: int, decoding: Decoding, draw: Draw, guard: Guard
    ) -> list[Written]:
        """Return questions until n are kept or MAX_ROUNDS are over; those not kept say why.

        Call i of the task draws from the stream (seed, stream, task, i), so asking for more never changes the first.
        """
        written: list[Written] = []
        known, n_kept, call = set(self.known), 0, 0
        for _ in range(MAX_ROUNDS):
            n_calls = max(8, round((n - n_kept) / self.per_call * SPARE))
            streams = [f"{draw.stream}/{task.name}/{call + i}" for i in range(n_calls)]
            asked = [(self.prompt(task, stream), stream) for stream in streams]
            for (prompt, _), completion in zip(asked, write_questions(engine, asked, decoding, draw.seed), strict=True):
                for one in _read_reply(completion, call, known, guard, prompt, self.most):
                    written.append(one)
                    n_kept += not one.drop_reason
                    if n_kept == n:
                        return written
                call += 1
        return written


def _read_reply(
    completion: Completion, call: int, known: set[str], guard: Guard, prompt: str, most: int | None
) -> list[Written]:
    pairs = prompts.parse_questions(prompts.went_on(prompt, completion.text))[:most]
    if not pairs:
        return [Written("", "", completion.text, call, 0, "not in the form asked for", prompt)]
    blank = re.match(r"\s*", completion.text)[0]
    read = []
    for index, (question, target) in enumerate(pairs):
        reason = guard.overlap(question)
        if not reason and normalise(question) in known:
            reason = "written before"
        known.add(normalise(question))
        reply = prompts.question_reply(question, target)
        # What a prompt opened is no part of the reply to it.
        reply = reply.removeprefix(prompts.went_on(prompt, "")) if prompts.went_on(prompt, "") else blank + reply
        read.append(Written(question, target, reply, call, index, reason, prompt))
    return read


def write_questions(engine: Engine, asked: list[tuple[str, str]], decoding: Decoding, seed: int) -> list[Completion]:
    """Return what is written to each (prompt, stream), up to the end of the one question that a prompt has opened."""
    if any(prompts.went_on(prompt, "") for prompt, _ in asked):
        decoding = replace(decoding, stop=(prompts.CLOSED,))
    return write_rationales(engine, asked, decoding, seed)


def why_dropped(answer: str, finished: bool) -> str:
    """Return why nobody is taught a rationale, or "": its end was cut off by the limit of tokens, or it has no answer.

    A number or letter is found in half a sentence too, and the student would learn to stop there.
    """
    if not finished:
        return "cut off at the limit"
    return "" if answer else "rationale without an answer"


def as_read(task: Task, question: str, completion: Completion) -> dict:
    """Return a completion as an answer to a question: rationale, answer, gold, correct, n_tokens and finished."""
    answer, gold = task.answers.read(completion.text), task.solve(question)
    read = {"question": question, "rationale": completion.text, "answer": answer, "gold": gold}
    told = {"n_tokens": completion.n_tokens, "finished": completion.finished}
    return read | {"correct": task.answers.same(answer, gold)} | told


def example_of(task: Task, name: str, whose: Mapping, item: Mapping, drop_reason: str = "") -> dict:
    """Return what a student is taught, as the schema "examples" has it.

    Args:
        name: Tells it from all other examples of the run.
        item: With question_id and what `as_read` returns; drafts of older runs do not say whether they finished.
        drop_reason: Why nobody is taught it; "" leaves that to `why_dropped`.
    """
    copied = ("question_id", "question", "rationale", "answer", "gold", "correct", "n_tokens")
    finished = item.get("finished", True)
    reason = drop_reason or why_dropped(item["answer"], finished)
    known = {"example_id": text_id(name), **whose, "task": task.name} | {column: item[column] for column in copied}
    told = {"style": task.style(item["rationale"]), "finished": finished}
    return known | told | {"kept": not reason, "drop_reason": reason}


def write_rationales(engine: Engine, asked: list[tuple[str, str]], decoding: Decoding, seed: int) -> list[Completion]:
    """Return a rationale for each (prompt, stream)."""
    requests = [Request(engine.render(prompt), stream=stream) for prompt, stream in asked]
    return engine.generate(requests, decoding, seed, shared_cache())


@dataclass(frozen=True)
class AskJob:
    """One model and what to ask it: (what questions share, the rest) of each prompt, and how to read each answer."""

    model: Model
    name: str
    asked: list[tuple[str, str]] = field(repr=False)
    max_new_tokens: int
    readers: Sequence[Answers] = field(default=(), repr=False)

    def __repr__(self) -> str:
        return f"{len(self.asked)} questions to {self.name}"


def generate_answers(job: AskJob) -> list[tuple[str, int]]:
    """Return the model's answer to each question as read ("" when it has none), and the tokens it took."""
    read = zip(job.readers, complete_job(job), strict=True)
    return [(answers.read(completion.text), completion.n_tokens) for answers, completion in read]


def complete_job(job: AskJob) -> list[Completion]:
    """Return what the model writes to each question, greedily."""
    engine, requests = job.model.start(), []
    for prefix, rest in job.asked:
        prompt, shared = engine.render_shared(prefix, rest)
        requests.append(Request(prompt, prefix=shared))
    return engine.generate(requests, Decoding(job.max_new_tokens), 0, shared_cache())
