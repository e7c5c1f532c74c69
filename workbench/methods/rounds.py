"""What methods in rounds share: learners that go on from round to round, and the frames of rounds as one."""

from collections.abc import Mapping, Sequence

import pandas as pd

from workbench.loop.alignment import models_of
from workbench.loop.writing import why_dropped
from workbench.models.start import Model
from workbench.runs.run import Frames
from workbench.runs.schemas import text_id
from workbench.signals.difficulty import Key
from workbench.tasks.task import Task

VERSION = 2


def learners_of(students: Mapping[str, Model]) -> dict[Key, Model]:
    """Return every learner as it begins: each student in each arm and seed, untrained."""
    return {
        Key(name, arm, seed): model.among_trained
        for name, model in students.items()
        for arm in model.recipe.trained_arms(name)
        for seed in model.recipe.seeds
    }


def go_on(learners: Mapping[Key, Model], trained: Frames) -> dict[Key, Model]:
    """Return the learners as a round's training left them."""
    return {Key(*key): learners[key].trained(folder) for key, folder in models_of(trained, "students").items()}


def together(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return frames of one kind, of all tasks or rounds, as one."""
    return pd.concat(parts, ignore_index=True)


def example_of(task: Task, key: Key, item: dict, n: str) -> dict:
    """Return a learner's example, as its schema has it, from what was asked and answered; n tells it from others."""
    copied = ("question_id", "question", "rationale", "answer", "gold", "correct", "n_tokens")
    known = {"example_id": text_id(f"{'/'.join(map(str, key))}/{task.name}/{n}"), **key._asdict(), "task": task.name}
    finished = item.get("finished", True)
    reason = why_dropped(item["answer"], finished)
    written = {name: item[name] for name in copied} | {"style": task.style(item["rationale"])}
    return known | written | {"finished": finished, "kept": not reason, "drop_reason": reason}
