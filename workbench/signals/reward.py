"""Rewards: one number for an answer, from a reward model, from a judge, or from the answer that is known.

Source: TS-Align, arXiv:2405.20215, in which a small reward model ranks and a large one orders; its text was not to be
had. Higher is better; rewards of one scorer are compared within a question, never with those of another scorer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import call

import numpy as np
import pandas as pd

from workbench.models.loading import fingerprint_model
from workbench.models.trl import encode
from workbench.runs.cache import shared_cache
from workbench.runs.identity import fingerprint
from workbench.runs.recipe import Recipe
from workbench.runs.workers import Job, run_jobs
from workbench.signals.difficulty import checked
from workbench.signals.judging import ModelJudge
from workbench.signals.reward_models import load_reward, rewards_of
from workbench.tasks.task import Task

VERSION = 1
KIND = "reward"


# Gives answers their rewards, shape (n,), higher is better, nan where there is none: from the columns task,
# question_id, question, gold, prompt (what the policy was asked) and text (its answer). An argument of steps.
Scorer = Callable[[pd.DataFrame], np.ndarray]


@dataclass(frozen=True)
class CheckingReward:
    """1 for a right answer and 0 for any other; nothing where no answer is known."""

    tasks: Mapping[str, Task]

    def __call__(self, asked: pd.DataFrame) -> np.ndarray:
        """Return the rewards; see `Scorer`."""
        rows = asked[["task", "gold", "text"]].itertuples(index=False, name=None)
        return np.array([checked(self.tasks[task], gold, text) for task, gold, text in rows], dtype=float)


@dataclass(frozen=True)
class JudgeReward:
    """A judge's points of an answer minus those of the first answer to the same question, both orders asked."""

    judge: ModelJudge

    def __call__(self, asked: pd.DataFrame) -> np.ndarray:
        """Return the rewards; see `Scorer`. The first answer to a question has 0."""
        first = asked.groupby(["task", "question_id"], sort=False)["text"].transform("first")
        apart = (asked["text"] != first).to_numpy()
        sides = asked[["task", "question", "gold"]].assign(teacher=asked["text"], student=first)
        told = self.judge(sides[apart].reset_index(drop=True))
        rewards = np.zeros(len(asked))
        rewards[apart] = told["score_teacher"] - told["score_student"]
        return rewards


@dataclass(frozen=True)
class RewardModel:
    """A sequence-classification model with one label, by its folder or hub id: the label's logit is the reward."""

    recipe: Recipe = field(repr=False)
    ref: str

    @property
    def key(self) -> str:
        """What tells this model from every other: its weights and their precision."""
        return fingerprint([fingerprint_model(self.ref), self.recipe.models.dtype])

    def updated(self, folder) -> "RewardModel":
        """Return the model as an update left it in a folder."""
        return replace(self, ref=str(folder))

    def __call__(self, asked: pd.DataFrame) -> np.ndarray:
        """Return the rewards; see `Scorer`. What was scored before is not scored again.

        Raises:
            ModelError: If the model is none that gives one number, or a text is too long for it.
        """
        items, mark = shared_cache(), self.key
        texts = list(asked[["prompt", "text"]].itertuples(index=False, name=None))
        keys = [fingerprint([VERSION, mark, *text]) for text in texts]
        kept = {key: one["reward"] for key, one in items.get_many(KIND, list(dict.fromkeys(keys))).items()}
        todo = {key: text for key, text in zip(keys, texts, strict=True) if key not in kept}
        if todo:
            model, tokenizer = load_reward(self.ref, self.recipe)
            encoded = encode(tokenizer, *(list(side) for side in zip(*todo.values(), strict=True)))
            rows = sorted(
                ((start + end, key) for key, (start, end) in zip(todo, encoded, strict=True)),
                key=lambda row: (len(row[0]), row[1]),
            )
            size = self.recipe.compute.batch_size
            for at in range(0, len(rows), size):
                part = rows[at : at + size]
                values = rewards_of(model, [ids for ids, _ in part]).tolist()
                made = dict(zip((key for _, key in part), values, strict=True))
                items.put_many(KIND, {key: {"reward": value} for key, value in made.items()})
                kept |= made
        return np.array([kept[key] for key in keys], dtype=float)


def scored(jobs: Sequence[tuple[Scorer, pd.DataFrame]], workers: int) -> list[np.ndarray]:
    """Return the rewards that each scorer gives its texts; reward models in several processes."""
    many = all(isinstance(scorer, RewardModel) for scorer, _ in jobs)
    named = [Job(f"{len(asked)} answers by {type(scorer).__name__}", (scorer, asked)) for scorer, asked in jobs]
    return run_jobs(call, named, workers if many else 1, "scoring answers")


def agreement(margins: np.ndarray, others: np.ndarray) -> float:
    """Return the share of pairs that two scorers order alike, from each one's margins (first minus second).

    Pairs that the other ties or does not judge are left out; those that the first ties count half; nan without any.

    Example:
        >>> agreement(np.array([1.0, -1.0, 0.0, 2.0]), np.array([3.0, 1.0, 1.0, 0.0]))
        0.5
    """
    margins, others = np.asarray(margins, float), np.asarray(others, float)
    known = np.isfinite(margins) & np.isfinite(others) & (others != 0)
    alike = (1 + np.sign(margins[known]) * np.sign(others[known])) / 2
    return float(alike.mean()) if len(alike) else float("nan")
