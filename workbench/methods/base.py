"""What a method is: one object that says everything in which it differs from the others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from workbench.loop.pairs import Rule
from workbench.runs.recipe import Recipe
from workbench.runs.run import Run


@dataclass(frozen=True)
class Method:
    """A way to ask students what they want to be taught, and to align a teacher to what they say.

    Attributes:
        name: As recipes name it.
        recipe: The class of its recipes, with the sections that it adds.
        notebooks: What `workbench run` runs, in order; names without ending.
        signal: From what was asked to one value for every student and draft, higher is better; see the notebooks for
            its arguments.
        pair_rules: How scores become pairs, by kind, in the order in which pairs are formed.
        aligned_on: Kind of the pairs that the teacher is aligned to where an arm does not say; "" means all.
        story: How a tailored set comes about, for its card.
        source: The paper.
        plan: Numbers of what it does, for an estimate of cost; see `Amounts`.
        evidence: What a run shows of one student before the verdict, for the first rungs of its result card; None where
            pairs are formed and a teacher is aligned to them: what is then looked at is the same for all.
    """

    name: str
    recipe: type[Recipe]
    notebooks: tuple[str, ...]
    signal: Callable[..., pd.DataFrame]
    pair_rules: Mapping[str, Rule]
    aligned_on: str
    story: str
    source: str
    plan: Callable[[Recipe], "Amounts"]
    evidence: Callable[[Run, str], list["Evidence"]] | None = None


class Evidence(NamedTuple):
    """Numbers behind one rung of a result card: a mean or, with positive, how well values tell positives from others.

    Attributes:
        asks: The question that the rung answers.
        values: A number each.
        clusters: What belongs together, for the interval: the question, or the seed.
        of: What the number is, written behind it: " of held-out pairs".
        says: One sentence more.
        chance: What the number is if there is nothing; for an AUC one half.
        unit: As `spell` takes it, "%" or "".
        positive: Truth values; the number is then an AUC.
    """

    asks: str
    values: pd.Series
    clusters: pd.Series
    of: str
    says: str
    chance: float = 0.5
    unit: str = "%"
    positive: pd.Series | None = None


@dataclass(frozen=True)
class Amounts:
    """What a method does of each kind of work, a task; what no method differs in is read off the recipe.

    Attributes:
        shown: Questions that a prompt for new ones shows.
        rationales: Of each draft question.
        pairs: That a student's signals form, about.
        side: "rationale" or "question": what both sides of most pairs are.
        probes: One-shot probes of a student; 0 where it is not asked so.
        steps: Texts that a student takes a step on, warm-up included.
        reads: Texts that it reads after these steps, all of them together.
        reference: Answers written for its reference set; 0 where none are.
        reference_by: "student" or "teacher": who writes them.
        in_rounds: Questions that the teacher writes and answers in rounds, for all that are taught together.
        asked_in_rounds: Answers to these and to the pool, of all that are taught.
    """

    shown: int
    rationales: int
    pairs: float
    side: str = "rationale"
    probes: int = 0
    steps: float = 0.0
    reads: float = 0.0
    reference: int = 0
    reference_by: str = "teacher"
    in_rounds: float = 0.0
    asked_in_rounds: float = 0.0
