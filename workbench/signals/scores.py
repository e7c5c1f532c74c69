"""From what was asked of a student to one value for every draft; no model is asked, and nothing here loads any.

Source: ARTE, arXiv:2406.19227, equations 1 to 4, for share_right; Montessori-Instruct, arXiv:2410.14208, for as_signal.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from workbench.runs import schemas
from workbench.runs.identity import fingerprint

if TYPE_CHECKING:  # looking at pairs must not load torch
    from workbench.models.start import Model

VERSION = 1
SIGNAL = "one_shot"


def share_right(probes: pd.DataFrame, drafts: pd.DataFrame, students: Mapping[str, "Model"]) -> pd.DataFrame:
    """Return preference scores of rationales (s_r) and of questions (s_q, the mean over a question's rationales).

    A score is the share of the preference questions answered right: in [0, 1], higher is better. The standard error is
    over preference questions, which all drafts of a task share: of s_r by the binomial formula, of s_q by the spread of
    each question's mean over the rationales.
    """
    known = probes.merge(drafts[["draft_id", "question_id"]], on="draft_id")
    known["correct"] = known["correct"].astype(float)
    of_drafts = known.groupby(["student", "draft_id"], sort=False).agg(
        value=("correct", "mean"), n=("correct", "size"), tokens=("n_tokens", "sum")
    )
    of_drafts["stderr"] = np.sqrt(of_drafts["value"] * (1 - of_drafts["value"]) / of_drafts["n"])
    by_item = known.groupby(["student", "question_id", "item_id"], sort=False)["correct"].mean()
    of_questions = known.groupby(["student", "question_id"], sort=False).agg(
        value=("correct", "mean"), n=("correct", "size"), tokens=("n_tokens", "sum")
    )
    by_question = by_item.groupby(["student", "question_id"], sort=False)
    of_questions["stderr"] = (by_question.std(ddof=0) / np.sqrt(by_question.size())).reindex(of_questions.index)
    of_questions.index.names = ["student", "draft_id"]
    both = pd.concat([of_drafts.assign(item_kind="rationale"), of_questions.assign(item_kind="question")])
    asked = fingerprint(sorted(probes["item_id"].unique()))
    both = both.reset_index().assign(signal=SIGNAL, set_fp=asked)
    both["student_fp"] = both["student"].map({name: model.fingerprint for name, model in students.items()})
    return both[list(schemas.SCHEMAS["signals"].columns)]


def self_consistency(probes: pd.DataFrame, drafts: pd.DataFrame, students: Mapping[str, "Model"]) -> pd.DataFrame:
    """Return how far a student answers after a draft as it does after the others of the task: no right answer needed.

    A draft's value on a preference question is the share of the task's other drafts after which it was answered alike,
    and its value the mean over questions: in [0, 1]. An answer that cannot be read is like no other. The arguments are
    those of share_right.

    Source: teaching assistant in the loop, arXiv:2406.05322, its first signal: the agreement among sampled answers to
    one item. Deviation: the answers after other drafts stand for the samples, since they are there already.
    """
    rows = probes.merge(drafts[["draft_id", "task"]], on="draft_id")
    asked = ["student", "task", "item_id"]
    alike = rows[rows["parsed"]].groupby([*asked, "answer"])["draft_id"].transform("size").reindex(rows.index) - 1
    others = rows.groupby(asked)["draft_id"].transform("size") - 1
    share = (alike.fillna(0.0) / others.where(others > 0)).rename("correct")
    return share_right(probes.assign(correct=share.to_numpy()), drafts, students).assign(signal="self_consistency")


def as_signal(influences: pd.DataFrame, sign: str) -> pd.DataFrame:
    """Return influences as signals; sign is "corrected", or "raw" for the step at zero gradient left in."""
    signals = influences[list(schemas.SCHEMAS["signals"].columns)]
    return signals.assign(value=influences["raw"]) if sign == "raw" else signals
