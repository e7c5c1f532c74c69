"""TAPIR: what a student finds hard, in the mix of tasks that is wanted, a larger share of it in every round.

Source: TAPIR, arXiv:2405.13448. Its text was not to be had, so threshold, rounds, shares and everything else that is a
number is ours. Ours too: new items are judged like the pool and kept where they are hard, a student that does not get
better is held back, and all arms train on equal tokens in every round.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, NamedTuple

import pandas as pd
from pydantic import Field, model_validator

from workbench.methods.base import Amounts, Evidence, Method
from workbench.runs.errors import spoken
from workbench.runs.recipe import Alignment, Evaluation, Primary, Recipe
from workbench.runs.recipe_parts import Count, Name, Place, Positive, PositiveOrZero, Section, require_known
from workbench.runs.run import Run
from workbench.signals.difficulty import measure_difficulty
from workbench.tasks.task import Task, load_tasks

NAMED = ["student", "task", "question_id"]
Share = Annotated[float, Field(ge=0, le=1)]


class Curriculum(Section):
    """What is taught in rounds, and how it is chosen.

    pool: questions of each task that the teacher writes beforehand or, of an open task, that its file has. shares: the
    mix of tasks that is wanted; none: all alike. styles: the technique in which answers are rewritten, by task; none:
    plainly. n_items: of all tasks together, for each student, arm, seed and round. hard_shares: how much of a round is
    newly written and hard, round by round. threshold: harder than this is hard, in the judge's points. n_shown: hard
    questions that the teacher is shown. n_tries: new questions written for each that is wanted, of which the hard ones
    are taken. promotion: by how much a student's score on the pool must have grown for the next hard share; else it is
    held back. max_spread: how far a judging model may contradict itself, in points. aligned_teacher: the folder of a
    teacher that writes for the arm of that name, as an alignment left it. instructions: a file of open instructions,
    whose mix of tasks is shown too.
    """

    pool: Annotated[dict[Name, Count], Field(min_length=1)]
    shares: dict[Name, Positive] = {}
    styles: dict[Name, Name] = {}
    n_items: Count
    hard_shares: Annotated[list[Share], Field(min_length=1)] = [0.3, 0.6, 0.9]
    threshold: PositiveOrZero = 0.0
    n_shown: Count = 2
    n_tries: Count = 3
    promotion: PositiveOrZero = 0.01
    max_spread: Positive = 2.0
    aligned_teacher: str = ""
    instructions: Place = ""

    @model_validator(mode="after")
    def _grows(self):
        if self.hard_shares != sorted(self.hard_shares):
            raise ValueError(f"hard_shares must not fall from round to round, got {self.hard_shares}; order them")
        return self


class Ingredients(NamedTuple):
    """What an arm does: choose by difficulty, keep the mix, judge in every round, rewrite, and write new items."""

    difficulty: bool = True
    balance: bool = True
    rounds: bool = True
    style: bool = True
    new: bool = True
    teacher: str = "teacher"


ARMS = {
    "curriculum": Ingredients(),
    "no_difficulty": Ingredients(difficulty=False),
    "no_balance": Ingredients(balance=False),
    "no_rounds": Ingredients(rounds=False),
    "no_style": Ingredients(style=False),
    "pool": Ingredients(difficulty=False, balance=False, rounds=False, style=False, new=False),
    "aligned_teacher": Ingredients(teacher="aligned"),
}


class Arms(Evaluation):
    """The evaluation of these arms."""

    KNOWN_ARMS: ClassVar[tuple[str, ...]] = ("base", *ARMS)

    primary: Primary = Primary(a="curriculum", b="pool")


class TapirRecipe(Recipe):
    """A recipe with what the method adds; nothing is aligned, so it has no section alignment."""

    TEACHES_OPEN: ClassVar[bool] = True

    evaluation: Arms
    alignment: Alignment = Field(
        default=Alignment(beta=0.1, learning_rate=1e-6, n_epochs=1, batch_size=1, max_length=1), exclude=True
    )
    curriculum: Curriculum

    @model_validator(mode="before")
    @classmethod
    def _aligns_nobody(cls, values):
        if isinstance(values, dict) and values.get("alignment"):
            raise ValueError("a curriculum aligns nobody, so alignment has no use here; leave that section out")
        return values

    @model_validator(mode="after")
    def _names_its_tasks(self):
        names, settings = self.tasks.names, self.curriculum
        for key in ("pool", "shares", "styles"):
            require_known(f"curriculum.{key}", getattr(settings, key), names)
        if missing := [name for name in names if name not in settings.pool]:
            raise ValueError(f"curriculum.pool lacks the task {missing[0]!r}; say how many questions of it to write")
        if missing := [name for name in names if settings.shares and name not in settings.shares]:
            raise ValueError(f"curriculum.shares lacks the task {missing[0]!r}; give its share too")
        wanted = settings.n_items * len(settings.hard_shares)
        if "pool" in self.evaluation.arms and (there := sum(settings.pool.values())) < wanted:
            raise ValueError(
                f"curriculum.pool holds {there} questions, but the arm 'pool' takes {wanted} (n_items for each of "
                "hard_shares); write more, or lower n_items"
            )
        if ("aligned_teacher" in self.evaluation.arms) != bool(settings.aligned_teacher):
            raise ValueError(
                "evaluation.arms has 'aligned_teacher' if and only if curriculum.aligned_teacher names its folder; "
                "set both or neither"
            )
        return self

    def n_seeds_of(self, task: str) -> int:
        """Return how many of a task's examples are its seed questions: of an open one all of its pool."""
        shown = self.drafting.n_seed_questions
        return max(shown, self.curriculum.pool[task]) if self._is_open(task) else shown


def failed(answers: pd.DataFrame, tasks: Mapping[str, Task], judged: pd.DataFrame | None) -> pd.DataFrame:
    """Return which validation questions were answered wrongly or, where tasks are open, worse than their reference.

    Args:
        answers: Greedy ones, as answer_questions returns them.
        judged: The same, their reference in the teacher's place, as measure_difficulty returns them; None where answers
            are checked.

    Returns:
        Columns student, task, question_id, failed; what was not judged is left out.
    """
    if judged is not None:
        known = judged.dropna(subset="difficulty")
        return known[NAMED].assign(failed=known["difficulty"] > 0)
    targets = {(name, row.item_id): row.target for name, task in tasks.items() for row in task.validation.itertuples()}
    rows = answers[["task", "question_id", "answer"]].itertuples(index=False, name=None)
    return answers[NAMED].assign(failed=[not tasks[of].answers.same(said, targets[of, one]) for of, one, said in rows])


def plan_of(recipe: TapirRecipe) -> Amounts:
    """Return what a run of a recipe does, a task; every round is taken to be written and judged for every learner."""
    settings, n_tasks, n_seeds = recipe.curriculum, len(recipe.tasks.names), len(recipe.seeds)
    styles, pool, rounds = 1 + bool(settings.styles), sum(settings.pool.values()) / n_tasks, len(settings.hard_shares)
    arms = [ARMS[arm] for name in recipe.models.students for arm in recipe.trained_arms(name)]
    written = sum(arm.new for arm in arms) * n_seeds * sum(settings.hard_shares) * settings.n_items / n_tasks
    written *= settings.n_tries
    again = sum(arm.difficulty and arm.rounds for arm in arms) * n_seeds * (rounds - 1)
    asked = (len(recipe.models.students) + again) * pool + written
    return Amounts(recipe.drafting.n_seed_questions, styles, 0, in_rounds=written, asked_in_rounds=asked)


def evidence_of(run: Run, student: str) -> list[Evidence]:
    """Return whether difficulty tells failure on held-out questions, and whether what was taught is hard and mixed."""
    arm, judged = run.recipe.evaluation.primary.a, run.read("held-out/judged") if run.recipe.is_open else None
    told = run.read("held-out/difficulty").dropna(subset="difficulty")
    told = told[told["student"] == student]
    told = told.merge(failed(run.read("held-out/greedy"), load_tasks(run.recipe), judged), on=NAMED)
    rounds = range(1, len(run.recipe.curriculum.hard_shares) + 1)
    written = [run.read(f"round-{n}/examples", "candidates") for n in rounds]
    new = pd.concat(written).dropna(subset="difficulty")
    new = new[(new["student"] == student) & (new["arm"] == arm)]
    rare = run.read("drafts").drop_duplicates("question_id")["task"].value_counts().idxmin()
    examples = run.read("examples")
    shares = (examples["task"] == rare)[examples["student"] == student].groupby(examples["arm"]).mean()
    mix = "; ".join(f"{spoken(name)} {100 * share:.0f} %" for name, share in shares.items())
    return [
        Evidence(
            "Did we find what is hard for the student?",
            told["difficulty"],
            told["question_id"],
            ", the chance that a failed held-out question is judged harder than another",
            f"{told['failed'].sum()} of {len(told)} failed{', judged against the reference' * run.recipe.is_open}.",
            unit="",
            positive=told["failed"],
        ),
        Evidence(
            "Was it taught what is hard, in the mix wanted?",
            new["hard"][new["taken"]].astype(float),
            new["question_id"][new["taken"]],
            " of the new items taken are hard",
            f"Of all that were written {100 * new['hard'].mean():.0f} % are. Of what was taught, {rare} is: {mix}.",
            chance=float(new["hard"].mean()),
        ),
    ]


TAPIR = Method(
    name="tapir",
    recipe=TapirRecipe,
    notebooks=("08_curriculum", "05_evaluation"),
    signal=measure_difficulty,
    pair_rules={},
    aligned_on="",
    story="The teacher's and the student's answers to a pool of questions were judged; from those on which the student "
    "falls behind, the teacher wrote new ones in the mix of tasks that was wanted, a larger share in every round",
    source="TAPIR, arXiv:2405.13448",
    plan=plan_of,
    evidence=evidence_of,
)
