"""What methods in rounds share: learners that go on from round to round, and the frames of rounds as one."""

from collections.abc import Mapping, Sequence

import pandas as pd

from workbench.loop.alignment import models_of
from workbench.models.start import Model
from workbench.runs.run import Frames
from workbench.signals.difficulty import Key

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
