"""Alignment: the teacher is tuned by DPO to each student's preference pairs, once for every arm.

Source: ARTE, arXiv:2406.19227, section 3.3, and Montessori-Instruct, arXiv:2410.14208, section 3, through TRL's
DPOTrainer. Ours: the control teacher, aligned to the same pairs with half of them flipped.
"""

from functools import partial
from pathlib import Path

import pandas as pd

from workbench.models.backends import tune_dpo
from workbench.models.start import Model
from workbench.models.trl import TuneJob, model_folder, tune_all
from workbench.runs import schemas
from workbench.runs.identity import fingerprint, identify
from workbench.runs.recipe import Alignment, Recipe
from workbench.runs.run import Frames
from workbench.runs.seeding import stream_seed

VERSION = 3


def align_teachers(
    teacher: Model, by_arm: dict[str, pd.DataFrame], settings: Alignment, seed: int, folder: Path
) -> dict[str, pd.DataFrame]:
    """Align the teacher to the pairs of every arm and student.

    Args:
        seed: Names the draws; the same for all arms of a student, which differ in the pairs alone.

    Returns:
        "teachers": student, arm, and the model's name in the folder; "curve": as its schema describes it; "pairs_used":
        the pairs with the arm that they were used in.

    Raises:
        ValueError: If a student left no pair for an arm.
    """
    recipe = teacher.recipe.model_copy(update={"alignment": settings})
    jobs = []
    for arm, pairs in by_arm.items():
        for student in recipe.models.students:
            own = pairs[pairs["student"] == student].reset_index(drop=True)
            _require_pairs(own, student, arm)
            whose = {"student": student, "arm": arm}
            jobs.append(dpo_job(teacher, recipe, own, stream_seed(seed, "dpo", student), whose, folder))
    at_once = recipe.compute.trained_at_once
    frame, points = tune_all(jobs, at_once, "aligning teachers", "aligned teachers")
    curve = [{"stage": "alignment", "seed": seed, **point} for point in points if point["metric"] != "tokens"]
    used = pd.concat([pairs.assign(arm=arm) for arm, pairs in by_arm.items()], ignore_index=True)
    return {"teachers": frame, "curve": schemas.build(curve, "curve"), "pairs_used": used}


def dpo_job(model: Model, recipe: Recipe, pairs: pd.DataFrame, seed: int, whose: dict, folder: Path) -> TuneJob:
    """Return what aligns a model, which is the recipe's teacher, to pairs; `whose` names the result and its folder."""
    pairs = pairs[["prompt", "chosen", "rejected"]].reset_index(drop=True)
    key = fingerprint([VERSION, model.key, identify(recipe.alignment), seed, pairs.to_numpy().tolist()])
    names = list(whose.values())
    train = partial(tune_dpo, recipe, pairs, seed=seed)
    return TuneJob(f"DPO for {', '.join(map(str, names))}", whose, folder / model_folder(*names), key, train)


def _require_pairs(own: pd.DataFrame, student: str, arm: str) -> None:
    if own.empty:
        raise ValueError(
            f"Student {student} left no preference pair for the arm {arm} (every group tied or of one sign, "
            "or dropped by the rule or by reviews); lower pairs.min_gap and pairs.min_probability, draft more "
            "questions or probe on a larger preference set."
        )
    if arm == "random_pairs" and not own["flipped"].any():
        raise ValueError(
            f"Student {student} left a single preference pair, of which no half can be flipped; draft more "
            "questions, or take random_pairs out of evaluation.arms."
        )


def models_of(trained: Frames, name: str) -> dict[tuple, Path]:
    """Return the folders of trained models by what tells them apart: (student, arm), or (student, arm, seed).

    Args:
        trained: What the step returned.
        name: Of the frame that lists them.
    """
    frame = trained[name]
    keys = frame.drop(columns="model").itertuples(index=False, name=None)
    return {key: trained.path / model for key, model in zip(keys, frame["model"], strict=True)}
