"""Difficulty: by how much a student's answer to a question is judged worse than the teacher's.

Source: TAPIR, arXiv:2405.13448 (model fitting difficulty), whose text was not to be had; its public descriptions state
the difference with both signs. Here it is the teacher's score minus the student's: positive is hard for this student.
Judges that are models: see judging.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench.tasks.task import Task

VERSION = 1


class Key(NamedTuple):
    """Who is taught: a student, the arm in which it is, and the seed of its data and training."""

    student: str
    arm: str
    seed: int


WHOSE = list(Key._fields)


def rows_of(frame: pd.DataFrame, key: Key) -> pd.DataFrame:
    """Return the rows of one learner."""
    return frame[(frame[WHOSE] == list(key)).all(axis=1)]


def checked(task: Task, gold: str, text: str) -> float:
    """Return 1 for a text whose answer is right and 0 for any other; nan where no answer is known."""
    return float(task.answers.same(task.answers.read(text), gold)) if gold else np.nan


# Scores the teacher's and a student's answer to each question: from the columns task, question, gold, teacher and
# student (their texts) to score_teacher, score_student and order_gap, missing where not judged. An argument of steps,
# so that its fields say all of it.
Judge = Callable[[pd.DataFrame], pd.DataFrame]


@dataclass(frozen=True)
class CheckingJudge:
    """Scores 1 for a right answer and 0 for any other; what has no known answer is not judged."""

    tasks: Mapping[str, Task]

    def __call__(self, asked: pd.DataFrame) -> pd.DataFrame:
        """Return the scores; see `Judge`. There is no order, so order_gap is 0."""
        scores = pd.DataFrame(index=asked.index)
        for side in ("teacher", "student"):
            rows = asked[["task", "gold", side]].itertuples(index=False, name=None)
            scores[f"score_{side}"] = [checked(self.tasks[task], gold, text) for task, gold, text in rows]
        return scores.assign(order_gap=np.where(scores["score_teacher"].isna(), np.nan, 0.0))


def measure_difficulty(judge: Judge, taught: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """Return how hard each question is for each learner, in the judge's points; positive is hard.

    Args:
        taught: The teacher's answers: columns task, question_id, question, gold, rationale; with student, arm and seed
            where learners were asked their own.
        answers: As answer_questions returns them.

    Returns:
        Columns student, arm, seed, task, question_id, score_teacher, score_student, difficulty and order_gap (by how
        much the two orders contradict each other), means over samples; missing where no sample was judged. No row is
        left out.
    """
    on = ["task", "question_id", *(WHOSE if set(WHOSE) <= set(taught.columns) else [])]
    asked = answers.rename(columns={"text": "student_text"}).merge(taught, on=on, how="left", validate="many_to_one")
    asked = asked[[*WHOSE, "task", "question_id", "question", "gold", "rationale", "student_text"]]
    shown = asked[["task", "question", "gold"]].assign(teacher=asked["rationale"], student=asked["student_text"])
    # Learners that write the same are judged once.
    different = shown.drop_duplicates()
    scored = different.join(judge(different))
    scores = shown.merge(scored, on=list(shown.columns), how="left", validate="many_to_one")
    scores = asked[[*WHOSE, "task", "question_id"]].join(scores[["score_teacher", "score_student", "order_gap"]])
    frame = scores.groupby([*WHOSE, "task", "question_id"], sort=False).mean().reset_index()
    frame["difficulty"] = frame["score_teacher"] - frame["score_student"]
    judged = frame["difficulty"].notna()
    frame.attrs["counts"] = {"questions judged": judged.sum(), "questions not judged": (~judged).sum()}
    return frame
