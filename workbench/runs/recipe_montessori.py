"""The sections of a recipe that Montessori-Instruct needs: how instructions are synthesised, how influence is taken."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from workbench.runs.recipe_parts import (
    Count,
    CountOrZero,
    Name,
    Positive,
    PositiveOrZero,
    Section,
    Text,
    require_distinct,
)

TopP = Annotated[float, Field(gt=0, le=1)]


class Synthesis(Section):
    """How instructions are synthesised: few-shot prompts of their own, several instructions (siblings) for each.

    A prompt shows n_seeds seed questions and n_own of those written before, once there are as many. Of what is written,
    anything shorter or longer than the limits, with a forbidden word, or that begins with a sign is dropped; so is what
    shares more than near_duplicate of its words, in order, with a seed or something written before (ROUGE-L; 0: only
    what reads the same but for case, punctuation and blanks). n_responses answers are written to each instruction.
    seeds_from names for a task the task whose seed questions and description its instructions are written from.
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
    seeds_from: dict[Name, Name] = {}

    @model_validator(mode="after")
    def _limits_fit(self):
        require_distinct("forbidden_words", self.forbidden_words)
        if self.max_characters < self.min_characters:
            raise ValueError(
                f"max_characters must be at least min_characters ({self.min_characters}), got {self.max_characters}; "
                "raise it"
            )
        return self


class Influence(Section):
    """How local data influence is measured, and on what.

    The first n_warm_up questions of a task, with their responses, warm the student up (with adapters, if its folder
    holds one, these alone) for n_steps of AdamW; the others are scored. The reference set is the preference set, with
    answers that are written, in n_tries, by the student or the teacher (those that are right) or are the bare target.
    sign says whether pairs are formed by the influence with the step at zero gradient subtracted or without, or (ours)
    by whether a sibling helps more or less than the mean of its siblings, which forms pairs of siblings that all help.
    batch_means 0 takes the reference loss as a mean over tokens; n as the mean of the means of batches of n texts.
    """

    way: Literal["exact", "first_order", "screen"] = "exact"
    sign: Literal["corrected", "raw", "relative"] = "corrected"
    reference: Literal["student", "teacher", "target"] = "student"
    n_tries: Count = 8
    n_warm_up: Count = 16
    n_steps: Count = 10
    batch_size: Count = 8
    learning_rate: Positive = 3.0e-4
    batch_means: CountOrZero = 0
    n_calibrate: Annotated[int, Field(ge=2)] = 16
    doubt: PositiveOrZero = 2.0


# Left out of a recipe of another method, so that its fingerprints stay what they were.
OptionalSynthesis = Annotated[Synthesis, Field(exclude_if=lambda section: section == Synthesis())]
OptionalInfluence = Annotated[Influence, Field(exclude_if=lambda section: section == Influence())]


def require_fit(synthesis: Synthesis, influence: Influence, n_questions: int, tasks: list[str]) -> None:
    """Refuse sections that do not fit the rest of a recipe."""
    if influence.n_warm_up >= n_questions:
        raise ValueError(
            f"influence.n_warm_up must leave some of the drafting.n_questions ({n_questions}) to be scored, got "
            f"{influence.n_warm_up}; lower it"
        )
    for name in synthesis.seeds_from:
        if name not in tasks:
            known = ", ".join(tasks)
            raise ValueError(f"synthesis.seeds_from names {name!r}, which is none of the tasks {known}; correct it")
