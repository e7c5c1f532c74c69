"""Influence in a judge's points: what one optimiser step does to the judged score of a student's answers.

    influence = mean score after the step minus that after the step at zero gradient; positive = the example helps

The student answers the reference questions greedily at the stepped weights. With a judge that checks answers, the value
is how many more of them it answers rightly, as a share; what is not judged both times counts as no change.

Source: Montessori-Instruct, arXiv:2410.14208, for the step. Ours: a judge's score instead of the reference loss.
"""

from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor

from workbench.models.engine import Decoding, Request
from workbench.models.loading import LoadedModel
from workbench.models.transformers_engine import TransformersEngine
from workbench.signals.difficulty import Judge

VERSION = 1


@dataclass(frozen=True)
class JudgedAnswers:
    """What is asked at every stepped weight, and who scores the answers.

    Attributes:
        asked: A reference set: columns task, question, target, prompt, and completion, which stands for the teacher's
            answer where a judge sees two.
    """

    judge: Judge
    asked: pd.DataFrame = field(repr=False)
    max_new_tokens: int

    def losses(self, student: LoadedModel) -> Tensor:
        """Return minus the score of the student's answer to each question, in the judge's points, shape (n_asked,)."""
        # Nothing is kept: the engine would take the stepped weights for those of the folder.
        engine = TransformersEngine(student)
        requests = [Request(engine.render(prompt)) for prompt in self.asked["prompt"]]
        texts = [one.text for one in engine.generate(requests, Decoding(self.max_new_tokens))]
        shown = self.asked[["task", "question"]].assign(gold=self.asked["target"], teacher=self.asked["completion"])
        scores = self.judge(shown.assign(student=texts))["score_student"]
        return -torch.tensor(scores.to_numpy(float), dtype=torch.float64)
