"""New questions from few-shot prompts that differ: each shows other seeds and earlier instructions, and has siblings.

Source: Montessori-Instruct, arXiv:2410.14208, section 3 and official code (examples, siblings, filters, ROUGE-L).
Deviations: the form asked for is ours; what is kept is not rewritten (the code lower-cases it); copies of known items
are dropped by the guard; near-duplicates are looked for among all that was written before and all seeds.
"""

import math
import re
from dataclasses import dataclass

from workbench.loop import prompts
from workbench.loop.writing import SPARE, Draw, Written, write_questions
from workbench.models.engine import Decoding, Engine
from workbench.runs.recipe_parts import Section
from workbench.runs.seeding import stream
from workbench.tasks.contamination import Guard, NearDuplicates, normalise
from workbench.tasks.task import Task, seed_pairs

VERSION = 1
MAX_ROUNDS = 10
FIRST = 0.25  # of the calls: what they bring is shown to the others
NEAR = "nearly a seed or one written before"


@dataclass(frozen=True)
class FewShotPrompts:
    """New questions as siblings of few-shot prompts; `settings` is a recipe's section synthesis."""

    settings: Section

    def prompt(self, task: Task, own: list[tuple[str, str]], seed: int, call: str) -> str:
        """Return the prompt of one call: seed questions and, once there are enough, some written before."""
        settings = self.settings
        pool = seed_pairs(task, len(task.seeds))
        n_own = settings.n_own if len(own) >= settings.n_own else 0
        rng = stream(seed, "examples", task.name, call)
        shown = [pool[at] for at in rng.permutation(len(pool))[: settings.n_seeds + settings.n_own - n_own]]
        shown += [own[at] for at in rng.permutation(len(own))[:n_own]]
        return prompts.question_prompt(task.description, shown, 1, task.prompts)

    def __call__(
        self, engine: Engine, task: Task, n: int, decoding: Decoding, draw: Draw, guard: Guard
    ) -> list[Written]:
        """Return instructions until n are kept or MAX_ROUNDS are over; those not kept say why.

        The siblings of a call stay together, so some more may be kept. Call i draws its examples and each sibling from
        streams of their own; what was written before is that of earlier rounds.
        """
        n_siblings = self.settings.n_siblings
        written: list[Written] = []
        sieve = _Sieve(self.settings, guard, seed_pairs(task, len(task.seeds)))
        for round_ in range(MAX_ROUNDS):
            own = [(one.question, one.target) for one in written if not one.drop_reason]
            n_calls = math.ceil((n - len(own)) / n_siblings * (SPARE if round_ else FIRST))
            first = written[-1].call + 1 if written else 0
            calls = range(first, first + max(1, n_calls))
            asked = {call: self.prompt(task, own, draw.seed, f"{draw.stream}/{call}") for call in calls}
            named = [
                (prompt, f"{draw.stream}/{task.name}/{call}/{sibling}")
                for call, prompt in asked.items()
                for sibling in range(n_siblings)
            ]
            completions = iter(write_questions(engine, named, decoding, draw.seed))
            for call, prompt in asked.items():
                for sibling in range(n_siblings):
                    written.append(sieve.read(next(completions).text, call, sibling, prompt))
                if sum(not one.drop_reason for one in written) >= n:
                    return written
        return written


class _Sieve:
    """What was written so far, and whether a reply adds something usable to it."""

    def __init__(self, settings: Section, guard: Guard, seeds: list[tuple[str, str]]):
        self.settings, self.guard = settings, guard
        self.known: set[str] = set()
        self.near = NearDuplicates(settings.near_duplicate) if settings.near_duplicate else None
        self.forbidden = re.compile(rf"\b({'|'.join(map(re.escape, settings.forbidden_words))})s?\b", re.IGNORECASE)
        for question, _ in seeds if self.near else []:
            self.near.add(question)

    def read(self, reply: str, call: int, sibling: int, prompt: str) -> Written:
        """Return the instruction of a reply, kept or with the reason why not; the reply is kept as it was written."""
        pairs = prompts.parse_questions(prompts.went_on(prompt, reply))
        if not pairs:
            return Written("", "", reply, call, sibling, "not in the form asked for", prompt)
        # The last one, as the paper has it: a reply may think aloud first.
        question, target = pairs[-1]
        reason = self._filtered(question) or self.guard.overlap(question)
        if not reason and normalise(question) in self.known:
            reason = "written before"
        if not reason and self.near and self.near.holds(question):
            reason = NEAR
        self.known.add(normalise(question))
        if not reason and self.near:
            self.near.add(question)
        return Written(question, target, reply, call, sibling, reason, prompt)

    def _filtered(self, question: str) -> str:
        settings = self.settings
        if not settings.min_characters <= len(question) <= settings.max_characters:
            return "too short" if len(question) < settings.min_characters else "too long"
        if settings.forbidden_words and self.forbidden.search(question):
            return "a forbidden word"
        return "" if question[0].isalnum() and question[0].isascii() else "begins with a sign"
