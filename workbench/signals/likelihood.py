"""What a draft is to a student that only reads it: signals of one pass, with no answer written and nothing learned.

A draft is read as SFT sees it, prompt and completion with its end token, alone and without padding: what is read does
not depend on the other drafts. Values are turned so that higher is better by each signal's own claim; what cannot be
scored (too long, or not finite) is nan: not scored, and never the best.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from workbench.loop import prompts
from workbench.models import loading
from workbench.models.loading import LoadedModel
from workbench.models.packed_losses import Text, single, token_losses
from workbench.models.start import Model
from workbench.runs.errors import ModelError
from workbench.signals.influence_of_drafts import texts_to_learn
from workbench.signals.warm_up import texts_of, trainable
from workbench.tasks.task import Task

VERSION = 1
CLIP = 100  # of ranks; of a vocabulary below 1,000 a tenth, where most ranks would be below 100 anyway
TEMPERATURE = 0.7  # of the probabilities in answer_likelihood
QUESTION_SHARE = 0.5  # lambda of learning_cost


@dataclass(frozen=True)
class Reading:
    """What a model makes of one text."""

    n_prompt: int  # tokens of the prompt; those after it are the completion's
    surprisal: np.ndarray  # -log p of every token but the first, in nats, shape (tokens - 1,)
    rank: np.ndarray  # of the same tokens among all, 1 for the likeliest, shape (tokens - 1,)
    # Of every token, what the last layer's mlp.up_proj puts out, of length 1, shape (tokens, width).
    states: Tensor = field(repr=False)
    plain: np.ndarray  # whether a token is no special one, shape (tokens,)
    vocabulary: int  # how many tokens there are

    @property
    def of_completion(self) -> slice:
        """Where the completion's tokens are in surprisal and rank."""
        return slice(self.n_prompt - 1, None)


def read(loaded: LoadedModel, text: Text, temperature: float = 1.0, states: bool = False) -> Reading:
    """Read a text in one forward pass; the states are empty unless asked for."""
    ids = torch.tensor([[*text.prompt, *text.completion]], device=loaded.model.device)
    with torch.inference_mode(), _up_proj(loaded, states) as kept:
        logits = loaded.model(input_ids=ids, use_cache=False).logits[0, :-1].float() / temperature
    at = logits.gather(1, ids[0, 1:, None])
    surprisal = -log_softmax(logits, dim=1).gather(1, ids[0, 1:, None])[:, 0].double().cpu().numpy()
    special = torch.tensor(loaded.tokenizer.all_special_ids, device=ids.device)
    plain = (~torch.isin(ids[0], special)).cpu().numpy()
    outputs = normalize(kept[0][0].double(), dim=1) if states else torch.empty(0)
    rank = 1 + (logits > at).sum(dim=1).cpu().numpy()
    return Reading(len(text.prompt), surprisal, rank, outputs, plain, logits.shape[1])


@contextmanager
def _up_proj(loaded: LoadedModel, wanted: bool) -> Iterator[list[Tensor]]:
    """Keep what the last layer's mlp.up_proj puts out, while the block lasts."""
    kept: list[Tensor] = []
    found = [part for name, part in loaded.model.named_modules() if name.endswith("mlp.up_proj")] if wanted else []
    if wanted and not found:
        raise ModelError(
            f"learning_cost reads the outputs of the last layer's mlp.up_proj, and {loaded.name} "
            f"({type(loaded.model).__name__}) has none; take another signal for this student."
        )
    hooks = [part.register_forward_hook(lambda _, __, output: kept.append(output)) for part in found[-1:]]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def likelihood(reading: Reading) -> float:
    """Return the mean log-probability of the completion's tokens, in nats: minus the mean surprisal."""
    return -float(reading.surprisal[reading.of_completion].mean())


def rank_surprisal(reading: Reading) -> float:
    """Return minus the rank-surprisal ratio: the sum of clipped ranks through the sum of surprisals.

    Source: RSR, arXiv:2601.14249, and official code. Deviations: the sign is turned, so that higher is better, and
    ranks are clipped at a tenth of a vocabulary of less than 1,000.
    """
    at, clip = reading.of_completion, max(1, min(CLIP, reading.vocabulary // 10))
    return -float(np.minimum(reading.rank[at], clip).sum() / max(reading.surprisal[at].sum(), 1e-8))


def learning_cost(reading: Reading) -> float:
    """Return minus the learning cost: (1 - L) a^2 c_AA + L a q c_AQ, L = QUESTION_SHARE.

    a and q are the mean surprisals of the completion's and the prompt's tokens, c_AA and c_AQ the mean cosines between
    states at completion tokens (each with itself too), and at completion and prompt tokens; special tokens are left
    out. nan where nothing is left: the official code puts 0 there, which is its best value.

    Source: SCAS, arXiv:2605.26872, and official code. Deviation: the sign is turned.
    """
    place = np.arange(len(reading.plain))
    answer, question = reading.plain & (place >= reading.n_prompt), reading.plain & (place < reading.n_prompt)
    if not answer.any() or not question[1:].any():
        return float("nan")
    a, q = (float(reading.surprisal[mask[1:]].mean()) for mask in (answer, question))
    # The mean cosine of two sets of vectors of length 1 is the product of their means.
    of_answer, of_question = (reading.states[torch.from_numpy(mask)].mean(0) for mask in (answer, question))
    within, across = float(of_answer @ of_answer), float(of_answer @ of_question)
    return -((1 - QUESTION_SHARE) * a * a * within + QUESTION_SHARE * a * q * across)


def answer_reward(answer: np.ndarray, student: np.ndarray, teacher: np.ndarray | None) -> float:
    """Return mean + 0.01 min of the answer's log-probabilities, minus 3 (mean d + 0.01 max d) for what gives it away.

    d is the teacher's log-probability, knowing the answer, minus the student's, at each token of the explanation.

    Args:
        answer: log p of the answer's tokens for the student, given question and explanation, in nats, shape (n,).
        student: log p of the explanation's tokens for the student, given the question, shape (m,).
        teacher: The same for the teacher, given the question and the answer, shape (m,); None leaves the penalty out.

    Source: RLT, arXiv:2506.08388, and official code. Deviation: no term for tags.
    """
    reward = float(answer.mean() + 0.01 * answer.min())
    if teacher is None or not len(student):
        return reward
    apart = teacher - student
    return reward - 3.0 * float(apart.mean() + 0.01 * apart.max())


# Of a reading, and whether the states are needed.
OF_READINGS: dict[str, tuple[Callable[[Reading], float], bool]] = {
    "surprisal": (likelihood, False),
    "rank_surprisal": (rank_surprisal, False),
    "learning_cost": (learning_cost, True),
}
OF_ANSWERS = ("answer_likelihood", "answer_likelihood_alone")
GRADIENT = "gradient_norm"
NAMES = (*OF_READINGS, *OF_ANSWERS, GRADIENT)


def gradient_norm(loaded: LoadedModel, text: Text) -> float:
    """Return the L2 norm of the gradient of a text's mean loss a token, over all weights that are trained.

    The model is in float32; the gradient is neither clipped nor projected, and no weight moves.

    Source: the control of GRACE, OpenReview m276fke38H, and of data pruning (Paul et al. 2021, arXiv:2107.07075). Its
    claim is that a text which moves the student little teaches it little: larger is better.
    """
    parameters = trainable(loaded.model)
    loaded.model.zero_grad(set_to_none=True)
    token_losses(loaded.model, single(text, loaded.model.device)).mean().backward()
    parts = [parameter.grad.norm().double() for parameter in parameters.values() if parameter.grad is not None]
    return float(torch.stack(parts).norm())


def measure_likelihoods(
    names: Sequence[str], student: Model, teacher: Model | None, tasks: dict[str, Task], drafts: pd.DataFrame
) -> pd.DataFrame:
    """Return what a student's probabilities say of every finished draft.

    Args:
        names: Of NAMES; those of one pass share it.
        student: Its weights must be here.
        teacher: For answer_likelihood, whose penalty asks it; with the student's tokenizer. None where it is not asked.
        drafts: Columns draft_id, question_id, task, question, rationale, gold, answer.

    Returns:
        Columns draft_id, signal, value (higher is better; nan: not scored), n (tokens counted) and tokens (read).

    Raises:
        ModelError: If a model's weights are not here or lack what a signal reads, or the tokenizers differ.
    """
    known = drafts[["draft_id", "task", "question", "answer", "gold"]]
    rows = texts_to_learn(tasks, drafts).merge(known, on="draft_id")
    compute = student.recipe.compute.device
    loaded = loading.load(student.ref, student.recipe.models.dtype, compute)
    exact = loading.load(student.ref, "float32", compute, merged=False) if GRADIENT in names else None
    plain, found = [name for name in names if name in OF_READINGS], []
    states = any(OF_READINGS[name][1] for name in plain)
    for row in rows.itertuples() if plain or exact else ():
        text = _text(loaded, row.prompt, row.completion)
        reading = read(loaded, text, states=states) if text and plain else None
        values = {name: OF_READINGS[name][0](reading) if text else np.nan for name in plain}
        values |= {GRADIENT: gradient_norm(exact, text) if text else np.nan} if exact else {}
        size = (len(text.completion), len(text)) if text else (0, 0)
        found += [(row.draft_id, name, value, *size) for name, value in values.items()]
    if answers := [name for name in names if name in OF_ANSWERS]:
        found += _of_answers(answers, loaded, teacher, tasks, rows)
    table = pd.DataFrame(found, columns=["draft_id", "signal", "value", "n", "tokens"])
    return table.assign(value=table["value"].astype(float).replace([np.inf, -np.inf], np.nan))


def _text(loaded: LoadedModel, prompt: str, completion: str) -> Text | None:
    """Return a text as SFT sees it, or None where it is longer than the model reads."""
    try:
        return texts_of(loaded.tokenizer, pd.DataFrame({"prompt": [prompt], "completion": [completion]}))[0]
    except ModelError:
        return None


def _of_answers(
    names: list[str], loaded: LoadedModel, teacher: Model | None, tasks: dict[str, Task], rows: pd.DataFrame
) -> list[tuple]:
    """Return what `measure_likelihoods` returns of OF_ANSWERS, as tuples."""
    other, found = None, []
    if OF_ANSWERS[0] in names:
        other = loading.load(teacher.ref, teacher.recipe.models.dtype, teacher.recipe.compute.device)
    for row in rows.itertuples():
        task = tasks[row.task]
        # Where no rule solves a question, the draft's own answer stands for the right one.
        right, (explanation, opening) = row.gold or row.answer, parts_of(row.completion, task)
        parts = _ids(loaded, explanation), _ids(loaded, opening), _ids(loaded, right)
        own = _log_probabilities(loaded, row.prompt, [token for part in parts for token in part])
        n_before, n_answer = len(parts[0]), len(parts[2])
        for name in names:
            value, passes, teachers = np.nan, 1, None
            if own is not None and n_answer and name == OF_ANSWERS[0]:
                _require_shared(loaded, other, explanation)
                told = prompts.technique_prompt(task.description, f"The answer is {right}.", row.question, task.prompts)
                teachers, passes = _log_probabilities(other, told, parts[0]), 2
            if own is not None and n_answer and (teachers is not None or passes == 1):
                value = answer_reward(own[-n_answer:], own[:n_before], teachers)
            found.append((row.draft_id, name, value, n_answer, sum(map(len, parts)) * passes))
    return found


def parts_of(rationale: str, task: Task) -> tuple[str, str]:
    """Return a rationale up to where it states its answer, and what a statement in the task's form begins with."""
    _, form, pattern = prompts.FORMS[task.prompts.answer]
    stated = list(re.finditer(pattern, rationale))
    return rationale[: stated[-1].start()] if stated else f"{rationale} ", form.format("\0").partition("\0")[0]


def _log_probabilities(loaded: LoadedModel, prompt: str, ids: list[int]) -> np.ndarray | None:
    """Return log p of some tokens after a prompt, at TEMPERATURE; None where the model does not read so many."""
    text = Text(loaded.tokenizer(loading.render(loaded.tokenizer, prompt))["input_ids"], ids)
    if not text.prompt or len(text) > loaded.tokenizer.model_max_length:
        return None
    reading = read(loaded, text, TEMPERATURE)
    return -reading.surprisal[reading.of_completion]


def _ids(loaded: LoadedModel, text: str) -> list[int]:
    return loaded.tokenizer(text, add_special_tokens=False)["input_ids"]


def _require_shared(student: LoadedModel, teacher: LoadedModel, text: str) -> None:
    if _ids(student, text) != _ids(teacher, text):
        raise ModelError(
            f"answer_likelihood compares the tokens of {student.name} with those of {teacher.name}, which cuts "
            f"{text[:40]!r} into others; take answer_likelihood_alone, which asks the student only."
        )
