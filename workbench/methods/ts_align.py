"""TS-Align: a small reward model ranks what a policy writes, a large one orders best and worst, and both others learn.

Source: TS-Align, arXiv:2405.20215. Its text was not to be had, so all that is a number is ours: samples, prompts,
rounds, margins, weights and rates. Ours too: all arms of a seed and round are aligned on equally many pairs, calls of
the teacher are counted in each, and a round says whether reward and right answers part. In recipes the policies are
`models.students`, and `models.teacher` writes their prompts.
"""

from typing import Annotated, ClassVar, Literal, NamedTuple

import pandas as pd
from pydantic import Field, model_validator

from workbench.methods.base import Amounts, Evidence, Method
from workbench.runs.recipe import Evaluation, Primary, Recipe
from workbench.runs.recipe_parts import Count, Lora, NamedPlace, Place, Positive, PositiveOrZero, Section, Tuning
from workbench.runs.run import Run

VERSION = 1
UPDATE = Tuning(lora=Lora(rank=8, alpha=16.0), learning_rate=1.0e-3, n_epochs=2, batch_size=16, max_length=1024)


class Rewards(Section):
    """Who rewards, and what is mined in a round.

    student: the small reward model that ranks all samples (folder or hub id). teacher: the large one that orders two
    of them; "" for models.judge where that is named, else for whoever checks answers that are known. successor: a
    student reward model as a run left it, for the arm of that name. n_prompts: of each task, for each seed and round,
    none of them twice; n_samples: of each prompt. n_held_out: validation questions of each task on which the reward
    models are compared. margin: by how much an updated student is to put the chosen ahead. teacher_margin: a pair whose
    teacher's rewards lie no further apart is dropped. update: how the student reward model is trained on.
    """

    student: NamedPlace
    teacher: Place = ""
    successor: str = ""
    n_rounds: Count = 2
    n_prompts: Count
    n_samples: Annotated[int, Field(ge=2)] = 8
    temperature: Positive = 1.0
    n_held_out: Count = 40
    margin: Positive = 1.0
    teacher_margin: PositiveOrZero = 0.0
    update: Tuning = UPDATE


class Ingredients(NamedTuple):
    """What an arm does: who ranks all samples, whether the teacher orders the pair, whether the student learns from it.

    Without the order the pair stands as the ranking has it; without it and without learning no teacher is asked.
    """

    ranks: Literal["student", "teacher", "successor"] = "student"
    reranks: bool = True
    updates: bool = True


ARMS = {
    "ts_align": Ingredients(),
    "no_reranking": Ingredients(reranks=False),
    "no_update": Ingredients(updates=False),
    "student_only": Ingredients(reranks=False, updates=False),
    "teacher_only": Ingredients("teacher", reranks=False, updates=False),
    "successor": Ingredients("successor", reranks=False, updates=False),
}


class Arms(Evaluation):
    """The evaluation of these arms."""

    KNOWN_ARMS: ClassVar[tuple[str, ...]] = ("base", *ARMS)

    primary: Primary = Primary(a="ts_align", b="base")


class TsAlignRecipe(Recipe):
    """A recipe with what the method adds; policies are aligned, so alignment holds for them and for no teacher."""

    evaluation: Arms
    rewards: Rewards

    @model_validator(mode="after")
    def _has_prompts(self):
        settings, there = self.rewards, self.drafting.n_questions
        if (wanted := settings.n_rounds * settings.n_prompts) > there:
            raise ValueError(
                f"drafting.n_questions must be at least rewards.n_rounds times n_prompts ({wanted}), so that no prompt "
                f"comes twice, got {there}; write more or lower these"
            )
        if settings.n_held_out > self.preference_set.n_validation:
            raise ValueError(
                f"rewards.n_held_out must be at most preference_set.n_validation ({self.preference_set.n_validation}), "
                f"got {settings.n_held_out}; lower it"
            )
        if ("successor" in self.evaluation.arms) != bool(settings.successor):
            raise ValueError(
                "evaluation.arms has 'successor' if and only if rewards.successor names its folder; set both or neither"
            )
        if self.alignment.sft_weight and self.compute.launcher != "none":
            raise ValueError("alignment.sft_weight is for one process; set it to 0 or take out compute.launcher")
        return self


def best_and_worst(samples: pd.DataFrame) -> pd.DataFrame:
    """Return the best and the worst rewarded sample of each learner's prompt, the first of those that are level.

    Args:
        samples: Columns student, arm, seed, task, question_id, question, gold, prompt, text, reward.

    Returns:
        The columns that name a prompt, and chosen, rejected, reward_chosen, reward_rejected, drop_reason: "" or why
        there is nothing to compare.
    """
    named = ["student", "arm", "seed", "task", "question_id", "question", "gold", "prompt"]
    known = samples.dropna(subset="reward").sort_values("reward", ascending=False, kind="stable")
    by_prompt = known.groupby(named, sort=False)
    best = by_prompt.first().rename(columns={"text": "chosen", "reward": "reward_chosen"})
    worst = by_prompt.last().rename(columns={"text": "rejected", "reward": "reward_rejected"})
    sides = [best[["chosen", "reward_chosen"]], worst[["rejected", "reward_rejected"]]]
    # In the order of the prompts, which sorting by reward has lost.
    pairs = samples[named].drop_duplicates().merge(pd.concat(sides, axis=1).reset_index(), on=named, how="left")
    level = pairs["reward_chosen"] == pairs["reward_rejected"]
    alike = by_prompt["text"].nunique().reindex(pd.MultiIndex.from_frame(pairs[named])).to_numpy() == 1
    reasons = pd.Series("", index=pairs.index).mask(level, "rewards alike").mask(alike, "samples alike")
    return pairs.assign(drop_reason=reasons.mask(pairs["reward_chosen"].isna(), "no reward"))


def plan_of(recipe: TsAlignRecipe) -> Amounts:
    """Return what a run of a recipe does, a task; a policy's alignment counts as its training, rewards are left out."""
    settings, models = recipe.rewards, recipe.models.students
    n_policies = sum(len(recipe.trained_arms(name)) for name in models) * len(recipe.seeds)
    # All samples of the prompts, and two of what is held out, before the first round and after each.
    of_prompts = settings.n_rounds * settings.n_prompts * settings.n_samples
    asked = n_policies * (of_prompts + 2 * settings.n_held_out * (settings.n_rounds + 1))
    return Amounts(recipe.drafting.n_seed_questions, 0, 0, asked_in_rounds=asked)


def evidence_of(run: Run, student: str) -> list[Evidence]:
    """Return how often both reward models order held-out pairs alike, and what the policy's texts gained in a round."""
    n_rounds = run.recipe.rewards.n_rounds
    moved = pd.concat([run.read(f"round-{n}/compared").assign(round=n) for n in range(1, n_rounds + 1)])
    moved = moved[(moved["student"] == student) & (moved["arm"] == run.recipe.evaluation.primary.a)]
    last = moved[(moved["round"] == n_rounds) & moved["n_pairs"].gt(0)]
    before, after = (100 * moved.groupby("round")[f"gold_{when}"].mean() for when in ("before", "after"))
    return [
        Evidence(
            "Do the small and the large reward model agree?",
            last["agreement_after"],
            last["seed"],
            " of held-out pairs they order alike",
            f"Before the last update {100 * last['agreement_before'].mean():.0f} %.",
        ),
        Evidence(
            "Did the policy learn what is rewarded?",
            moved["reward_after"] - moved["reward_before"],
            moved["seed"],
            " more reward on held-out questions in a round, by the small model",
            f"Right answers to them: {before.iloc[0]:.0f} % before, {after.iloc[-1]:.0f} % after.",
            chance=0.0,
            unit="",
        ),
    ]


TS_ALIGN = Method(
    name="ts-align",
    recipe=TsAlignRecipe,
    notebooks=("09_ts_align", "05_evaluation"),
    signal=best_and_worst,
    pair_rules={},
    aligned_on="",
    story="Of several samples of the policy a small reward model took best and worst, a large one ordered the two, the "
    "policy was aligned to these pairs and the small model learned their order, round after round",
    source="TS-Align, arXiv:2405.20215",
    plan=plan_of,
    evidence=evidence_of,
)
