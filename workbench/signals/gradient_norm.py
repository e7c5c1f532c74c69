"""How hard a draft pulls at a student: the length of the gradient of its loss, one pass forward and one backward.

Source: the control of GRACE, OpenReview m276fke38H, and of data pruning (Paul et al. 2021, arXiv:2107.07075). Its claim
is that a text which moves the student little teaches it little: larger is better.
"""

import numpy as np
import pandas as pd
import torch

from workbench.models import loading
from workbench.models.packed_losses import single, token_losses
from workbench.models.start import Model
from workbench.runs.errors import ModelError
from workbench.signals.influence_of_drafts import texts_to_learn
from workbench.signals.warm_up import texts_of, trainable
from workbench.tasks.task import Task

VERSION = 1


def measure_gradients(student: Model, tasks: dict[str, Task], drafts: pd.DataFrame) -> pd.DataFrame:
    """Return the L2 norm of the gradient of each finished draft's mean loss a token, over all weights that are trained.

    Weights are read in float32 and do not move; the gradient is neither clipped nor projected.

    Returns:
        Columns draft_id, signal, value (nan where the draft is too long or the norm not finite), n (tokens counted) and
        tokens (read).
    """
    loaded = loading.load(student.ref, "float32", student.recipe.compute.device, merged=False)
    parameters, rows = trainable(loaded.model), texts_to_learn(tasks, drafts)
    found = []
    for row in rows.to_dict("records"):
        try:
            (text,) = texts_of(loaded.tokenizer, pd.DataFrame([row]))
        except ModelError:
            found.append((row["draft_id"], "gradient_norm", np.nan, 0, 0))
            continue
        loaded.model.zero_grad(set_to_none=True)
        token_losses(loaded.model, single(text, loaded.model.device)).mean().backward()
        parts = [parameter.grad.norm().double() for parameter in parameters.values() if parameter.grad is not None]
        norm = float(torch.stack(parts).norm())
        value = norm if np.isfinite(norm) else np.nan
        found.append((row["draft_id"], "gradient_norm", value, len(text.completion), len(text)))
    return pd.DataFrame(found, columns=["draft_id", "signal", "value", "n", "tokens"])
