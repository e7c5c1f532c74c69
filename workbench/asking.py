"""Asking a model many questions: one job a model and task, greedy, batched, its answers parsed."""

from dataclasses import dataclass, field

from workbench import prompts
from workbench.engines import TransformersEngine
from workbench.items import shared_items
from workbench.recipe import Recipe
from workbench.writing import answer_questions


@dataclass(frozen=True)
class AskJob:
    """One model and what to ask it: (what questions share, the rest) of each prompt."""

    recipe: Recipe
    model: str
    name: str
    asked: list[tuple[str, str]] = field(repr=False)

    def __repr__(self) -> str:
        return f"{len(self.asked)} questions to {self.name}"


def answer_job(job: AskJob) -> list[tuple[str, int]]:
    """Return the model's parsed answer to each question ("" when it has none), and the tokens it took."""
    compute = job.recipe.compute
    engine = TransformersEngine(job.model, job.recipe.models.dtype, compute.device, compute.batch_size)
    items = shared_items()
    completions = answer_questions(engine, job.asked, job.recipe.evaluation.max_new_tokens, items)
    return [(prompts.parse_answer(completion.text), completion.n_tokens) for completion in completions]
