"""Montessori-Instruct: what one optimiser step on a draft does to the student's reference loss is its preference.

Source: Montessori-Instruct, arXiv:2410.14208.
"""

from typing import Annotated

from pydantic import Field, model_validator

from workbench.loop.pairs import helpful_against_harmful
from workbench.methods.base import Amounts, Method
from workbench.runs.recipe import Recipe
from workbench.runs.recipe_parts import Count, CountOrZero, Influence, Section, Text, TopP, require_distinct
from workbench.signals.scores import as_signal


class Synthesis(Section):
    """How instructions are synthesised: few-shot prompts of their own, several instructions (siblings) for each.

    A prompt shows n_seeds seed questions and n_own of those written before, once there are as many. Of what is written,
    anything shorter or longer than the limits, with a forbidden word, or that begins with a sign is dropped; so is what
    shares more than near_duplicate of its words, in order, with a seed or something written before (ROUGE-L; 0: only
    what reads the same but for case, punctuation and blanks). n_responses answers are written to each instruction.
    """

    n_seeds: Count = 6
    n_own: CountOrZero = 2
    n_siblings: Annotated[int, Field(ge=2)] = 4
    n_responses: Count = 1
    near_duplicate: Annotated[float, Field(ge=0, lt=1)] = 0.7
    min_characters: Count = 6
    max_characters: Count = 400
    forbidden_words: list[Text] = []
    top_p: TopP = 1.0

    @model_validator(mode="after")
    def _limits_fit(self):
        require_distinct("forbidden_words", self.forbidden_words)
        if self.max_characters < self.min_characters:
            raise ValueError(
                f"max_characters must be at least min_characters ({self.min_characters}), got {self.max_characters}; "
                "raise it"
            )
        return self


class MontessoriRecipe(Recipe):
    """A recipe with what the method adds."""

    synthesis: Synthesis = Synthesis()
    influence: Influence = Influence()

    @model_validator(mode="after")
    def _some_are_scored(self):
        if self.influence.n_warm_up >= self.drafting.n_questions:
            raise ValueError(
                f"influence.n_warm_up must leave some of the drafting.n_questions ({self.drafting.n_questions}) to be "
                f"scored, got {self.influence.n_warm_up}; lower it"
            )
        return self

    @property
    def n_seeds_wanted(self) -> int:
        """How many seed questions a task must have."""
        return max(self.drafting.n_seed_questions, self.synthesis.n_seeds)


def plan(recipe: MontessoriRecipe) -> Amounts:
    """Return what a run of a recipe does, a task; with signs as by a coin, n siblings form n (n - 1) / 4 pairs."""
    synthesis, settings, n_reference = recipe.synthesis, recipe.influence, recipe.preference_set.n_items
    n_tasks, scored = len(recipe.tasks.names), recipe.drafting.n_questions - settings.n_warm_up
    steps = scored * synthesis.n_responses
    written = settings.reference != "target"
    return Amounts(
        shown=synthesis.n_seeds + synthesis.n_own,
        rationales=synthesis.n_responses,
        pairs=scored * (synthesis.n_siblings - 1) / 4,
        side="question",
        steps=steps + settings.n_steps * settings.batch_size / n_tasks,
        # The references of all tasks are read after each step; what is written to be judged is not in it.
        reads=steps * n_reference * n_tasks,
        reference=n_reference * settings.n_tries if written else 0,
        reference_by=settings.reference if written else "teacher",
    )


MONTESSORI = Method(
    name="montessori",
    recipe=MontessoriRecipe,
    notebooks=("07_influence", "04_student_training", "05_evaluation"),
    signal=as_signal,
    pair_rules={"question": helpful_against_harmful, "rationale": helpful_against_harmful},
    aligned_on="question",
    story="The teacher wrote instructions, several to each prompt, and responses; what one optimiser step on each did "
    "to the student's loss on reference answers was measured; siblings that help and siblings that harm became pairs",
    source="Montessori-Instruct, arXiv:2410.14208",
    plan=plan,
)
