"""New questions, by the recipe's method: of a task's one prompt, or from few-shot prompts that differ.

By the method montessori each prompt shows other seeds and earlier instructions, and has several siblings.

Source: Montessori-Instruct, arXiv:2410.14208, section 3 and official code (examples, siblings, filters, ROUGE-L).
Deviations: the form asked for is ours; what is kept is not rewritten (the code lower-cases it); copies of known items
are dropped by the guard; near-duplicates are looked for among all that was written before and all seeds.
"""

import math
import re
from dataclasses import replace

from workbench.loop import prompts
from workbench.loop.writing import SPARE, Written, refuse_copies, write_questions
from workbench.models.engine import Decoding, Engine, Request
from workbench.runs.cache import Cache
from workbench.runs.recipe import Recipe
from workbench.runs.recipe_montessori import Synthesis
from workbench.runs.seeding import stream
from workbench.tasks.contamination import Guard, NearDuplicates, normalise
from workbench.tasks.task import Task, guard_of, seed_pairs

MAX_ROUNDS = 10
FIRST = 0.25  # of the calls: what they bring is shown to the others
NEAR = "nearly a seed or one written before"


def instruction_prompt(recipe: Recipe, task: Task, own: list[tuple[str, str]], seed: int, call: str) -> str:
    """Return the few-shot prompt of one call: seed questions and, once there are enough, some written before."""
    settings = recipe.synthesis
    pool = seed_pairs(task, len(task.seeds))
    n_own = settings.n_own if len(own) >= settings.n_own else 0
    rng = stream(seed, "examples", task.name, call)
    shown = [pool[at] for at in rng.permutation(len(pool))[: settings.n_seeds + settings.n_own - n_own]]
    shown += [own[at] for at in rng.permutation(len(own))[:n_own]]
    return prompts.question_prompt(task.description, shown, 1)


def write_new_questions(
    engine: Engine, recipe: Recipe, task: Task, n_wanted: int, decoding: Decoding, seed: int, named: str, items: Cache
) -> list[Written]:
    """Return new questions of a task by the recipe's method, kept and dropped; see write_questions for the streams.

    Raises:
        ValueError: If some copy a test item and the recipe refuses that.
    """
    guard = guard_of(recipe, task)
    if recipe.method == "montessori":
        written = write_instructions(engine, recipe, task, n_wanted, decoding, seed, named, items, guard)
    else:
        per_call = recipe.drafting.questions_per_call
        seeds = seed_pairs(task, recipe.drafting.n_seed_questions)
        prompt = prompts.question_prompt(task.description, seeds, per_call)
        written = write_questions(engine, task, prompt, n_wanted, per_call, decoding, seed, named, items, guard)
        written = [replace(one, prompt=prompt) for one in written]
    refuse_copies(recipe, task, written)
    return written


def write_instructions(
    engine: Engine,
    recipe: Recipe,
    task: Task,
    n_wanted: int,
    decoding: Decoding,
    seed: int,
    named: str,
    items: Cache,
    guard: Guard,
) -> list[Written]:
    """Return instructions until n_wanted are kept or MAX_ROUNDS are over; those not kept say why.

    The siblings of a call stay together, so some more may be kept. Call i draws its examples and each sibling from
    streams of their own; what was written before is that of earlier rounds.
    """
    settings = recipe.synthesis
    written: list[Written] = []
    sieve = _Sieve(settings, guard, seed_pairs(task, len(task.seeds)))
    for round_ in range(MAX_ROUNDS):
        own = [(one.question, one.target) for one in written if not one.drop_reason]
        n_calls = math.ceil((n_wanted - len(own)) / settings.n_siblings * (SPARE if round_ else FIRST))
        first = written[-1].call + 1 if written else 0
        calls = range(first, first + max(1, n_calls))
        asked = {call: instruction_prompt(recipe, task, own, seed, f"{named}/{call}") for call in calls}
        requests = [
            Request(engine.render(prompt), stream=f"{named}/{task.name}/{call}/{sibling}")
            for call, prompt in asked.items()
            for sibling in range(settings.n_siblings)
        ]
        completions = iter(engine.generate(requests, decoding, seed, items))
        for call, prompt in asked.items():
            for sibling in range(settings.n_siblings):
                written.append(sieve.read(next(completions).text, call, sibling, prompt))
            if sum(not one.drop_reason for one in written) >= n_wanted:
                return written
    return written


class _Sieve:
    """What was written so far, and whether a reply adds something usable to it."""

    def __init__(self, settings: Synthesis, guard: Guard, seeds: list[tuple[str, str]]):
        self.settings, self.guard = settings, guard
        self.known: set[str] = set()
        self.near = NearDuplicates(settings.near_duplicate) if settings.near_duplicate else None
        self.forbidden = re.compile(rf"\b({'|'.join(map(re.escape, settings.forbidden_words))})s?\b", re.IGNORECASE)
        for question, _ in seeds if self.near else []:
            self.near.add(question)

    def read(self, reply: str, call: int, sibling: int, prompt: str) -> Written:
        """Return the instruction of a reply, kept or with the reason why not; the reply is kept as it was written."""
        found = prompts.parse_questions(reply)
        if not found:
            return Written("", "", reply, call, sibling, "not in the form asked for", prompt)
        # The last one, as the paper has it: a reply may think aloud first.
        question, target = found[-1]
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
