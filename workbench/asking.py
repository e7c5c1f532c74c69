"""Asking a model many questions: one job a model and task, greedy, batched, its answers parsed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from workbench.answers import Answers
from workbench.generation import Completion
from workbench.items import shared_items
from workbench.recipe import Recipe
from workbench.starting import Role, start_engine
from workbench.writing import answer_questions


@dataclass(frozen=True)
class AskJob:
    """One model and what to ask it: (what questions share, the rest) of each prompt, and how to read each answer.

    compared and role are as in starting.choice_of.
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


def answer_job(job: AskJob) -> list[tuple[str, int]]:
    """Return the model's answer to each question as read ("" when it has none), and the tokens it took."""
    read = zip(job.readers, complete_job(job), strict=True)
    return [(answers.read(completion.text), completion.n_tokens) for answers, completion in read]


def complete_job(job: AskJob) -> list[Completion]:
    """Return what the model writes to each question."""
    engine = start_engine(job.recipe, job.role, job.model, job.compared)
    return answer_questions(engine, job.asked, job.recipe.evaluation.max_new_tokens, shared_items())
