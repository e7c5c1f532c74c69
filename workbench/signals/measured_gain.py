"""What training really gains: a student trained for some steps, asked questions, and put back. Dear, and the truth.

Source: SOAR, arXiv:2601.18778: accuracy after a short training run minus that before it. Deviations: supervised steps
by AdamW for its reinforcement learning, and of a single draft where it takes groups of 64 pairs; `gains_along` takes
groups, at several lengths of one training.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd
import torch

from workbench.loop import prompts
from workbench.models import loading
from workbench.models.engine import Decoding, Request
from workbench.models.loading import LoadedModel
from workbench.models.packed_losses import Text
from workbench.models.start import Model
from workbench.models.transformers_engine import TransformersEngine
from workbench.runs.cache import shared_cache
from workbench.runs.errors import ModelError
from workbench.runs.identity import fingerprint
from workbench.runs.seeding import stream
from workbench.signals.influence_of_drafts import texts_to_learn
from workbench.signals.warm_up import WarmUp, adamw_of, take_steps, texts_of, trainable
from workbench.tasks.answers import Answers
from workbench.tasks.task import Task

VERSION = 1
KIND = "measured gain"
N_STEPS = 8  # on a single draft


@dataclass(frozen=True)
class Questions:
    """What is asked before and after: prompts, how each answer is read, the right ones, and how long one may be."""

    asked: list[str] = field(repr=False)
    readers: list[Answers] = field(repr=False)
    targets: list[str] = field(repr=False)
    max_new_tokens: int

    @property
    def key(self) -> str:
        """What tells these from others."""
        return fingerprint([self.asked, list(map(repr, self.readers)), self.targets, self.max_new_tokens])


def gains_along(
    student: LoadedModel, texts: list[Text], questions: Questions, how: WarmUp, at: Sequence[int], seed: int
) -> list[list[bool]]:
    """Train a student, ask it after so many steps, and put its weights back.

    Args:
        student: In float32; its trained weights are the same afterwards, to the bit.
        texts: Trained on in a random order, over and over, at a constant rate.
        how: Rate and batch; its steps are those of the last place in `at`.
        at: Numbers of steps, rising; 0 asks the student as it is.
        seed: Orders the texts.

    Returns:
        For each place whether every question was answered right.

    Raises:
        ModelError: If a loss is not finite; the weights are put back then too.
    """
    parameters = trainable(student.model)
    before, found = {name: parameter.detach().clone() for name, parameter in parameters.items()}, {}
    try:
        if 0 in at:
            found[0] = _right(student, questions)
        how = WarmUp(**(asdict(how) | {"n_steps": max(at)}))
        adamw = adamw_of(parameters, how)
        for step, _, _ in take_steps(student.model, texts, adamw, how, stream(seed, "measured gain")):
            if step in at:
                found[step] = _right(student, questions)
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])
        student.model.zero_grad(set_to_none=True)
    return [found[step] for step in at]


def _right(student: LoadedModel, questions: Questions) -> list[bool]:
    # Nothing is kept by the engine: it would take the trained weights for those of the folder.
    engine = TransformersEngine(student)
    requests = [Request(engine.render(prompt)) for prompt in questions.asked]
    told = engine.generate(requests, Decoding(questions.max_new_tokens))
    answered = zip(questions.readers, told, questions.targets, strict=True)
    return [reader.same(reader.read(one.text), target) for reader, one, target in answered]


def measure_gains(
    student: Model,
    tasks: dict[str, Task],
    drafts: pd.DataFrame,
    items: pd.DataFrame,
    learning_rate: float,
    seed: int,
    n_steps: int = N_STEPS,
) -> pd.DataFrame:
    """Return the gain of training on each finished draft alone, counted on the chosen preference questions of its task.

    What is finished is kept, so that a kill costs one draft.

    Args:
        student: Its weights must be here.
        learning_rate: Of the steps; the recipe's, for what the recipe's training gains.

    Returns:
        Columns draft_id, signal, value (accuracy after minus before, in [-1, 1]; nan where the draft is too long or the
        training fails), stderr (over the questions), n (questions) and tokens (trained on).
    """
    loaded = loading.load(student.ref, "float32", student.recipe.compute.device, merged=False)
    rows, chosen = texts_to_learn(tasks, drafts).merge(drafts[["draft_id", "task"]], on="draft_id"), items["chosen"]
    how, found = WarmUp(n_steps, 1, learning_rate), []
    for task, own in rows.groupby("task", sort=False):
        shown = items[chosen & (items["task"] == task)]
        given = prompts.naive_prompts(tasks, shown), [tasks[task].answers] * len(shown), shown["target"].tolist()
        asked = Questions(*given, student.recipe.evaluation.max_new_tokens)
        source = [VERSION, loaded.fingerprint, asked.key, asdict(how), seed]
        before = kept(KIND, source, lambda asked=asked: gains_along(loaded, [], asked, how, [0], seed)[0])
        for row in own[["draft_id", "prompt", "completion"]].to_dict("records"):
            try:
                texts = texts_of(loaded.tokenizer, pd.DataFrame([row]))
                named, given = [*source, row["prompt"], row["completion"]], (loaded, texts, asked, how, [n_steps], seed)
                after = kept(KIND, named, lambda given=given: gains_along(*given)[0])
            except ModelError:
                found.append((row["draft_id"], "measured_gain", np.nan, 0.0, 0, 0))
                continue
            apart = np.subtract(after, before, dtype=float)
            stderr = float(apart.std() / np.sqrt(len(apart)))
            found.append((row["draft_id"], "measured_gain", apart.mean(), stderr, len(apart), n_steps * len(texts[0])))
    return pd.DataFrame(found, columns=["draft_id", "signal", "value", "stderr", "n", "tokens"])


def kept(kind: str, source: list, compute: Callable[[], list]) -> list:
    """Return what is stored of a training, after computing it if it is not there yet; a failure is not stored."""
    key, cache = fingerprint(source), shared_cache()
    if not (known := cache.get_many(kind, [key])):
        cache.put_many(kind, known := {key: {"right": compute()}})
    return known[key]["right"]
