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
    """A way to ask students what they want to be taught, and to align a teacher to what they say."""

    name: str  # as recipes name it
    recipe: type[Recipe]  # the class of its recipes, with the sections that it adds
    notebooks: tuple[str, ...]  # what `workbench run` runs, in order; names without ending
    # From what was asked to one value for every student and draft, higher is better; see the notebooks for its
    # arguments.
    signal: Callable[..., pd.DataFrame]
    pair_rules: Mapping[str, Rule]  # how scores become pairs, by kind, in the order in which pairs are formed
    aligned_on: str  # kind of the pairs that the teacher is aligned to where an arm does not say; "" means all
    story: str  # how a tailored set comes about, for its card
    source: str  # the paper
    plan: Callable[[Recipe], "Amounts"]  # numbers of what it does, for an estimate of cost; see `Amounts`
    # What a run shows of one student before the verdict, for the first rungs of its result card; None where pairs are
    # formed and a teacher is aligned to them: what is then looked at is the same for all.
    evidence: Callable[[Run, str], list["Evidence"]] | None = None


class Evidence(NamedTuple):
    """Numbers behind a rung of a result card: a mean or, with positive, how well values tell positives from others."""

    asks: str  # the question that the rung answers
    values: pd.Series  # a number each
    clusters: pd.Series  # what belongs together, for the interval: the question, or the seed
    of: str  # what the number is, written behind it: " of held-out pairs"
    says: str  # one sentence more
    chance: float = 0.5  # what the number is if there is nothing; for an AUC one half
    unit: str = "%"  # as `spell` takes it, "%" or ""
    positive: pd.Series | None = None  # truth values; the number is then an AUC


@dataclass(frozen=True)
class Amounts:
    """What a method does of each kind of work, a task; what no method differs in is read off the recipe."""

    shown: int  # questions that a prompt for new ones shows
    rationales: int  # of each draft question
    pairs: float  # that a student's signals form, about
    side: str = "rationale"  # "rationale" or "question": what both sides of most pairs are
    probes: int = 0  # one-shot probes of a student; 0 where it is not asked so
    steps: float = 0.0  # texts that a student takes a step on, warm-up included
    reads: float = 0.0  # texts that it reads after these steps, all of them together
    reference: int = 0  # answers written for its reference set; 0 where none are
    reference_by: str = "teacher"  # "student" or "teacher": who writes them
    in_rounds: float = 0.0  # questions that the teacher writes and answers in rounds, for all that are taught together
    asked_in_rounds: float = 0.0  # answers to these and to the pool, of all that are taught
