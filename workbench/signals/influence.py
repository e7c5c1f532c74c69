"""Local data influence: what one optimiser step on one example does to a warmed student's loss on a reference set.

    influence = reference loss before the step minus after it, in nats per token; positive = the example helps

Only completion tokens count, and weights and optimiser state are the same, to the bit, for every candidate. Momentum
and weight decay move the weights even at zero gradient; what that step does to the loss is measured once and
subtracted: `value` is what the example does beyond it, `raw` what the whole step does.

Source: Montessori-Instruct, arXiv:2410.14208. Deviations: the step at zero gradient is subtracted, the sign is turned
(the paper's code stores the loss after the step), and the mean is over tokens unless means of batches are asked for.
"""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from os import cpu_count
from pathlib import Path

import numpy as np
import pandas as pd

from workbench import records
from workbench.guard import Guard
from workbench.items import shared_items
from workbench.models import fingerprint_model, load_tokenizer, resolve
from workbench.packing import Text
from workbench.pool import JobError, run_jobs
from workbench.signals.stepping import KIND, Candidate, InfluenceError, StepJob, step_job
from workbench.store import fingerprint
from workbench.warming import WarmingError, load_warmed, texts_of

VERSION = 1  # raise by hand when a figure can change; test_influence.py fails when the code did and this did not
WAYS = ("exact", "first_order", "screen")


@dataclass(frozen=True)
class InfluenceSettings:
    """How influence is measured.

    Args:
        way: "exact" takes the step and evaluates. "first_order" puts every example's gradient through AdamW as that
            step would and multiplies the movement with the reference gradient. "screen" does so for all candidates
            and takes the step for a sample, from which it learns how far first order is off and by what factor, and
            for all whose sign or place among their siblings is then in doubt (see in_doubt).
        learning_rate: Of the one step; 0 means that of the warmed state.
        batch_means: 0 takes the mean over all reference tokens; n the mean of the means of batches of n texts, as the
            paper's code does.
        n_calibrate: Size of that sample.
        doubt: How many times that error a first-order figure must be from zero, and from its siblings', to stand.
            The error is relative to the gross effect: what the step does to each reference text, signs left out.
    """

    way: str = "exact"
    learning_rate: float = 0.0
    batch_means: int = 0
    n_calibrate: int = 16
    doubt: float = 2.0

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise ValueError(f"way must be {', '.join(WAYS[:-1])} or {WAYS[-1]}, got {self.way!r}; choose one.")
        numbers = (self.learning_rate, self.batch_means, self.doubt)
        if not all(0 <= number < float("inf") for number in numbers) or self.n_calibrate < 2:
            raise ValueError(
                f"learning_rate, batch_means and doubt must be finite and >= 0 and n_calibrate >= 2, got {self}; "
                "correct these."
            )


def measure(
    student: str,
    warmed: Path,
    candidates: pd.DataFrame,
    reference: pd.DataFrame,
    guard: Guard,
    settings: InfluenceSettings,
    name: str = "",
    device: str = "auto",
    workers: int = 1,
) -> pd.DataFrame:
    """Return every candidate's influence on a warmed student; what is finished is kept and never scored again.

    Args:
        student: Model folder or id; with an adapter in the folder, the adapter alone moves.
        warmed: Folder that warm_up made for this student.
        candidates: Columns draft_id, item_kind, prompt, completion (without its end token), and, for a screen that
            minds their order, group: candidates of one group will be ranked against each other.
        reference: Columns question, prompt, completion; the loss is that of these completions.
        guard: Holds the test set, in which no reference question may be.
        settings: How.
        name: What the student is called; its reference otherwise.
        device: As models.load takes it.
        workers: Processes; 0 means one per core.

    Returns:
        The frame "influences" of records, in the order of the candidates, in nats per reference token: value, raw and
        zero_step (what the step at zero gradient does: raw = value + zero_step), stderr of the value over the n
        reference texts, tokens read for it, and how: "exact" or "first_order".

    Raises:
        InfluenceError: If there is no reference set, it overlaps the guard's sets, or a loss is not finite.
        WarmingError: If the warmed state is missing, damaged or does not fit, or a text is too long.
    """
    _require_apart(reference, guard)
    tokenizer = load_tokenizer(student)
    texts, reference_texts = texts_of(tokenizer, candidates), texts_of(tokenizer, reference)
    state = load_warmed(warmed)
    rate = settings.learning_rate or state.adamw["learning_rate"]
    student_fp, set_fp = fingerprint_model(resolve(student)), fingerprint([asdict(text) for text in reference_texts])
    steps = _Steps(
        StepJob(student, Path(warmed), device, rate, reference_texts),
        [VERSION, student_fp, state.fingerprint, rate, set_fp],
        workers,
    )
    names = list(candidates["draft_id"])
    weights = reference_weights([len(text.completion) for text in reference_texts], settings.batch_means)
    if settings.way == "screen":
        changes, how = _screen(steps, names, texts, list(candidates.get("group", names)), weights, settings)
    else:
        changes, how = steps.changes(settings.way, names, texts), [settings.way] * len(texts)
    named = {"signal": "influence", "student": name or student, "student_fp": student_fp, "set_fp": set_fp}
    frame = candidates[["draft_id", "item_kind"]].assign(**named)
    return _with_figures(frame, steps, texts, changes, how, weights)


def _with_figures(
    frame: pd.DataFrame, steps: "_Steps", texts: list[Text], changes: np.ndarray, how: list[str], weights: np.ndarray
) -> pd.DataFrame:
    reference = steps.job.reference
    n_read = sum(map(len, reference))
    frame = frame.assign(
        value=changes @ weights,
        stderr=[_stderr(change, weights, reference) for change in changes],
        n=len(reference),
        tokens=[len(text) + (n_read if one == "exact" else 0) for text, one in zip(texts, how, strict=True)],
        zero_step=steps.zero_step @ weights,
        how=how,
    )
    frame["raw"] = frame["value"] + frame["zero_step"]
    return records.build(frame.to_dict("records"), "influences")


def _require_apart(reference: pd.DataFrame, guard: Guard) -> None:
    if reference.empty:
        raise InfluenceError("There is no reference set; give at least one question with its prompt and completion.")
    for question in reference["question"]:
        if reason := guard.overlap(question):
            raise InfluenceError(
                f"Reference question {question[:60]!r} is the {reason}, so influence would be measured on what is "
                "tested later; take it out of the reference set."
            )


class _Steps:
    """What steps on texts do to the reference set: read from the finished items, computed where they lack it.

    Attributes:
        zero_step: Loss of each reference text before the step at zero gradient minus after it, in nats.
    """

    def __init__(self, job: StepJob, identity: list, workers: int):
        self.job, self.identity, self.workers = job, identity, workers
        (found,) = self._found([Candidate(self._key("zero"), "zero gradient", job.reference[0])])
        self.job = replace(job, zero=found["zero"])
        self.zero_step = np.subtract(found["start"], found["zero"])

    def changes(self, way: str, names: Sequence[str], texts: Sequence[Text]) -> np.ndarray:
        """Return each reference text's loss after the step at zero gradient minus that after the step on a text.

        Shape (texts, reference texts), in nats; texts alike are computed once.
        """
        job = replace(self.job, way=way)
        given = [Candidate(self._key(way, text), name, text) for name, text in zip(names, texts, strict=True)]
        found = [one["change"] for one in self._found(given, job)]
        return np.reshape(found, (len(texts), len(self.job.reference)))

    def _key(self, way: str, text: Text | None = None) -> str:
        """Return the hash of all that can change what a step is found to do.

        Left out: device, processes and library versions, because they change the last digits at most, and how the
        reference set is averaged, because what is stored is kept text by text.
        """
        return fingerprint([KIND, *self.identity, way, asdict(text) if text else ""])

    def _found(self, candidates: list[Candidate], job: StepJob | None = None) -> list[dict[str, list[float]]]:
        """Return what is known of each candidate, after computing what is not, the work shared by the processes."""
        job = job or self.job
        known = shared_items().get_many(KIND, [candidate.key for candidate in candidates])
        missing = list({one.key: one for one in candidates if one.key not in known}.values())
        # Long texts take longer: dealt in turn by length, all processes end at about the same time.
        missing.sort(key=lambda one: (len(one.text), one.key))
        n_shares = min(self.workers or cpu_count(), len(missing))
        jobs = [replace(job, candidates=missing[share::n_shares]) for share in range(n_shares)]
        try:
            for done in run_jobs(step_job, jobs, self.workers, "measuring influence"):
                known |= done
        except JobError as error:
            if isinstance(error.__cause__, InfluenceError | WarmingError):
                raise error.__cause__ from None
            raise
        return [known[candidate.key] for candidate in candidates]


def reference_weights(n_tokens: Sequence[int], batch_means: int = 0) -> np.ndarray:
    """Return the weight of each reference text's summed loss in the reference loss, shape (texts,).

    Args:
        n_tokens: Completion tokens of each text.
        batch_means: 0 for the mean over all tokens; n for the mean of the means of batches of n texts.

    Example:
        >>> reference_weights([1, 3], 0).tolist(), reference_weights([1, 4], 1).tolist()
        ([0.25, 0.25], [0.5, 0.125])
    """
    size = batch_means or len(n_tokens)
    batches = [list(n_tokens[start : start + size]) for start in range(0, len(n_tokens), size)]
    return np.concatenate([np.full(len(batch), 1 / sum(batch) / len(batches)) for batch in batches])


def _stderr(change: np.ndarray, weights: np.ndarray, reference: list[Text]) -> float:
    """Return the standard error of a weighted mean per token over reference texts, as that of a ratio of two sums."""
    if len(reference) < 2:
        return float("inf")
    n_tokens = np.array([len(text.completion) for text in reference])
    off = weights * (change - change @ weights * n_tokens)
    return float(np.sqrt((off**2).sum() * len(off) / (len(off) - 1)))


def _screen(
    steps: _Steps,
    names: list[str],
    texts: list[Text],
    groups: list[Hashable],
    weights: np.ndarray,
    settings: InfluenceSettings,
) -> tuple[np.ndarray, list[str]]:
    """Return changes as _Steps does, exact where first order leaves a doubt, and how each was found."""
    changes = steps.changes("first_order", names, texts)
    # By the hash of the text: the same sample whatever the order, and one that no one chose.
    keys = [fingerprint(asdict(text)) for text in texts]
    sampled = sorted(set(keys))[: settings.n_calibrate]
    sample = [keys.index(key) for key in sampled]
    exact = steps.changes("exact", [names[at] for at in sample], [texts[at] for at in sample]) @ weights
    # What first order leaves out grows with all that a step does to the reference texts, not with what is left of it
    # where some gain and others lose; so errors are taken, and weighed, relative to that.
    gross = np.maximum(np.abs(changes * weights).sum(axis=1), np.finfo(float).tiny)
    first, found = changes[sample] @ weights / gross[sample], exact / gross[sample]
    # Curvature makes long movements do less than first order says; one factor brings both onto one scale.
    scale = (found @ first) / (first @ first) if first.any() else 1.0
    changes *= scale
    error = np.sqrt(((found - scale * first) ** 2).mean()) if sample else 0.0
    doubted = in_doubt(changes @ weights, groups, settings.doubt * error * gross)
    doubted |= np.isin(keys, sampled)
    at = np.flatnonzero(doubted)
    changes[at] = steps.changes("exact", [names[i] for i in at], [texts[i] for i in at])
    return changes, ["exact" if one else "first_order" for one in doubted]


def in_doubt(values: np.ndarray, groups: Sequence[Hashable], tolerance: np.ndarray) -> np.ndarray:
    """Return which figures must be computed exactly, as booleans of shape (candidates,).

    A sign is in doubt where a figure is within its tolerance of zero; an order, where two figures of a group differ
    by no more than the root of the sum of their squared tolerances.

    Example:
        >>> in_doubt(np.array([0.5, 3.0, 4.2, -4.0]), ["a", "a", "a", "b"], np.ones(4)).tolist()
        [True, True, True, False]
    """
    doubted, labels = np.abs(values) <= tolerance, pd.Series(list(groups), dtype=object)
    for members in labels.groupby(labels, sort=False).indices.values():
        own, tolerances = values[members], tolerance[members]
        near = np.abs(own[:, None] - own) <= np.hypot(tolerances[:, None], tolerances)
        np.fill_diagonal(near, False)
        doubted[members] |= near.any(axis=1)
    return doubted
