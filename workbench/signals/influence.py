"""Local data influence: what one optimiser step on one example does to a warmed student's loss on a reference set.

    influence = reference loss before the step minus after it, in nats per token; positive = the example helps

Only completion tokens count, and weights and optimiser state are the same, to the bit, for every candidate. Momentum
and weight decay move the weights even at zero gradient; what that step does to the loss is measured once and
subtracted: `value` is what the example does beyond it, `raw` what the whole step does.

Source: Montessori-Instruct, arXiv:2410.14208. Deviations: the step at zero gradient is subtracted, the sign is turned
(the paper's code stores the loss after the step), and the mean is over tokens, where its code takes means of batches.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.models import loading
from workbench.models.engine import Decoding, Request
from workbench.models.loading import LoadedModel, fingerprint_model, load_tokenizer
from workbench.models.packed_losses import Pack, Text, Texts, single, token_losses
from workbench.models.transformers_engine import TransformersEngine
from workbench.runs import schemas
from workbench.runs.cache import shared_cache
from workbench.runs.errors import ModelError, RunError
from workbench.runs.identity import identify
from workbench.runs.run import fingerprint
from workbench.runs.workers import n_at_once, run_jobs
from workbench.signals.difficulty import Judge
from workbench.signals.warm_up import OptimizerSnapshot, load_warmed, require_fit, texts_of, trainable
from workbench.tasks.contamination import Guard

VERSION = 2
KIND = "influence"


@dataclass(frozen=True)
class Candidate:
    """A text to step on: the key that what is found is stored under, its name, and the text."""

    key: str
    name: str
    text: Text = field(repr=False)


@dataclass(frozen=True)
class JudgedAnswers:
    """What is asked at every stepped weight and who scores the answers, for influence in a judge's points; it is ours.

        influence = mean score after the step minus that after the step at zero gradient; positive = the example helps

    The student answers the reference questions greedily at the stepped weights. With a judge that checks answers, the
    value is how many more of them it answers rightly, as a share; what is not judged both times counts as no change.
    """

    judge: Judge
    # A reference set: columns task, question, target, prompt, and completion, which stands for the teacher's answer
    # where a judge sees two.
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


@dataclass(frozen=True)
class StepJob:
    """Some candidates of one student, for one process."""

    student: str  # model folder or id
    warmed: Path
    device: str
    learning_rate: float
    reference: list[Text] = field(repr=False)
    # What to step on; for the step at zero gradient a single one, whose text is not used.
    candidates: list[Candidate] = field(default_factory=list, repr=False)
    # The reference losses after the step at zero gradient, in nats; empty where they are what is asked for.
    zero: list[float] = field(default_factory=list, repr=False)
    # What is read in place of the losses: a judge's scores, as losses of that sign; None for losses.
    judged: JudgedAnswers | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"{len(self.candidates)} steps of {self.student}"


class SnapshotStudent:
    """A student at its warmed state, in float32: bfloat16 would round a step of a small learning rate away.

    Trained weights and their gradients are one long vector each, which the model's parameters are windows on; so
    AdamW is a handful of operations and putting the weights back is one copy.
    """

    def __init__(self, student: str, warmed: OptimizerSnapshot, device: str, learning_rate: float):
        loaded = loading.load(student, "float32", device, merged=False)
        self.loaded, self.model, self.warmed, self.learning_rate = loaded, loaded.model, warmed, learning_rate
        parameters = trainable(self.model)
        require_fit(warmed, loaded.fingerprint, parameters)
        self.start, self.exp_avg, self.exp_avg_sq = (
            torch.cat([warmed.tensors[kind][name].reshape(-1) for name in parameters]).to(self.model.device)
            for kind in ("weights", "exp_avg", "exp_avg_sq")
        )
        self.weights, self.gradient = self.start.clone(), torch.zeros_like(self.start)
        place = 0
        for parameter in parameters.values():
            window = slice(place, place + parameter.numel())
            parameter.data = self.weights[window].view_as(parameter)
            parameter.grad = self.gradient[window].view_as(parameter)
            place = window.stop
        self.zero_gradient_update = self.adamw_update(self.gradient)

    def gradient_of(self, row: Pack) -> Tensor:
        """Return the gradient of a text's loss, shape (trained,), overwritten by the next call."""
        loss = token_losses(self.model, row).mean()
        self.gradient.zero_()
        loss.backward()
        return self.gradient

    def adamw_update(self, gradient: Tensor) -> Tensor:
        """Return AdamW's movement for a gradient per unit of learning rate, shape (trained,), weight decay left out.

        Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2, as torch.optim.AdamW. Deviation: none.
        """
        adamw, step = self.warmed.adamw, self.warmed.steps + 1
        first = torch.lerp(gradient, self.exp_avg, adamw["beta1"])
        second = (self.exp_avg_sq * adamw["beta2"]).addcmul_(gradient, gradient, value=1 - adamw["beta2"])
        scale = second.div_(1 - adamw["beta2"] ** step).sqrt_().add_(adamw["eps"])
        return first.div_(scale).div_(-(1 - adamw["beta1"] ** step))

    def after_update(self, movement: Tensor, measure: Callable[[], Tensor]) -> Tensor:
        """Return what `measure` gives where a step with this movement leads; the weights are back afterwards."""
        try:
            torch.mul(self.start, 1 - self.learning_rate * self.warmed.adamw["weight_decay"], out=self.weights)
            self.weights.add_(movement, alpha=self.learning_rate)
            return measure()
        finally:
            self.weights.copy_(self.start)


def step_job(job: StepJob) -> dict[str, dict[str, list[float]]]:
    """Compute a job's candidates, store each as it is done, and return what was stored, by key.

    Stored is, for a candidate, `change`: each reference text's loss after the step at zero gradient minus that after
    the step on the candidate, in nats; for the step at zero gradient the losses before (`start`) and after (`zero`) it.
    """
    student = SnapshotStudent(job.student, load_warmed(job.warmed), job.device, job.learning_rate)
    read = partial(job.judged.losses, student.loaded) if job.judged else Texts(student.model, job.reference).losses
    items, done = shared_cache(), {}
    for candidate in job.candidates:
        found = _step_on(student, candidate, job, read) if job.zero else _zero_step(student, job, read)
        items.put_many(KIND, {candidate.key: found})
        done[candidate.key] = found
    return done


def _zero_step(student: SnapshotStudent, job: StepJob, read: Callable[[], Tensor]) -> dict[str, list[float]]:
    start, zero = read(), student.after_update(student.zero_gradient_update, read)
    for when, losses in (("before any step", start), ("after the step at zero gradient", zero)):
        if not job.judged and not torch.isfinite(losses).all():
            raise ModelError(
                f"The reference loss {when} is not finite; warm the student up at a lower learning rate, or lower "
                f"that of the step ({job.learning_rate:g})."
            )
    return {"start": start.tolist(), "zero": zero.tolist()}


def _step_on(
    student: SnapshotStudent, candidate: Candidate, job: StepJob, read: Callable[[], Tensor]
) -> dict[str, list[float]]:
    change = torch.tensor(job.zero, dtype=torch.float64) - student.after_update(_movement_on(student, candidate), read)
    change = change.nan_to_num(0.0) if job.judged else change
    if not torch.isfinite(change).all():
        raise ModelError(
            f"The reference loss after a step on candidate {candidate.name} is not finite; lower the learning rate of "
            "the step, or leave this candidate out."
        )
    return {"change": change.tolist()}


def _movement_on(student: SnapshotStudent, candidate: Candidate) -> Tensor:
    return student.adamw_update(student.gradient_of(single(candidate.text, student.model.device)))


def measure(
    student: str,
    warmed: Path,
    candidates: pd.DataFrame,
    reference: pd.DataFrame,
    guard: Guard,
    name: str = "",
    device: str = "auto",
    workers: int = 1,
    judged: JudgedAnswers | None = None,
) -> pd.DataFrame:
    """Return every candidate's influence on a warmed student; what is finished is kept and never scored again.

    Args:
        student: Model folder or id; with an adapter in the folder, the adapter alone moves.
        candidates: Columns draft_id, item_kind, prompt, completion (without its end token).
        reference: Columns question, prompt, completion; the loss is that of these completions.
        guard: Holds the test set, in which no reference question may be.
        name: What the student is called; its reference otherwise.
        judged: Who scores answers to what, in the order of the reference; None takes the losses of the reference.

    Returns:
        The frame "influences", in the order of the candidates, in nats per reference token, or in a judge's points per
        reference question: value, raw and zero_step (what the step at zero gradient does: raw = value + zero_step),
        stderr of the value over the n reference texts, tokens read for it (answers that are judged left out), and how
        it was measured: "exact" or "judge".

    Raises:
        ModelError: If there is no reference set, it overlaps the guard's sets, or a loss is not finite.
        ModelError: If the warmed state is missing, damaged or does not fit, or a text is too long.
    """
    _require_apart(reference, guard)
    tokenizer, state = load_tokenizer(student), load_warmed(warmed)
    texts, asked = texts_of(tokenizer, candidates), texts_of(tokenizer, reference)
    rate, student_fp = state.adamw["learning_rate"], fingerprint_model(student)
    named = {"signal": "influence", "student": name or student, "student_fp": student_fp}
    named["set_fp"] = fingerprint([asdict(text) for text in asked])
    # All that can change what a step is found to do. Left out: device, processes and library versions, because they
    # change the last digits at most, and how the reference set is averaged, because each of its texts is stored.
    how, source = "judge" if judged else "exact", [KIND, VERSION, student_fp, state.fingerprint, rate, named["set_fp"]]
    if judged:
        source += identify([judged.judge, judged.asked, judged.max_new_tokens])
    job = StepJob(student, Path(warmed), device, rate, asked, judged=judged)
    (zero,) = _found(job, [Candidate(fingerprint([*source, "zero", ""]), "zero gradient", asked[0])], workers)
    given = [
        Candidate(fingerprint([*source, how, asdict(text)]), draft_id, text)
        for draft_id, text in zip(candidates["draft_id"], texts, strict=True)
    ]
    changes = _found(replace(job, zero=zero["zero"]), given, workers)
    frame = candidates[["draft_id", "item_kind"]].assign(**named, how=how)
    return _with_figures(frame, texts, asked, zero, [one["change"] for one in changes])


def _with_figures(
    frame: pd.DataFrame, texts: list[Text], reference: list[Text], zero: dict, changes: list[list[float]]
) -> pd.DataFrame:
    changes = np.reshape(changes, (len(texts), len(reference)))
    # A loss is summed over the tokens of its text, a judge's score is one a text.
    judged = (frame["how"] == "judge").any()
    sizes = np.array([1 if judged else len(text.completion) for text in reference])
    weights = np.full(len(reference), 1 / sizes.sum())
    n_read = np.where(frame["how"] == "exact", sum(map(len, reference)), 0)
    frame = frame.assign(
        value=changes @ weights,
        stderr=[_stderr(change, weights, sizes) for change in changes],
        n=len(reference),
        tokens=np.array([len(text) for text in texts], dtype=int) + n_read,
        zero_step=np.nan_to_num(np.subtract(zero["start"], zero["zero"])) @ weights,
    )
    frame["raw"] = frame["value"] + frame["zero_step"]
    return schemas.build(frame.to_dict("records"), "influences")


def _require_apart(reference: pd.DataFrame, guard: Guard) -> None:
    if reference.empty:
        raise ModelError("There is no reference set; give at least one question with its prompt and completion.")
    for question in reference["question"]:
        if reason := guard.overlap(question):
            raise ModelError(
                f"Reference question {question[:60]!r} is the {reason}, so influence would be measured on what is "
                "tested later; take it out of the reference set."
            )


def _found(job: StepJob, candidates: list[Candidate], workers: int) -> list[dict[str, list[float]]]:
    """Return what is stored of each candidate, after computing what is not, the work shared by the processes."""
    known = shared_cache().get_many(KIND, [candidate.key for candidate in candidates])
    missing = list({one.key: one for one in candidates if one.key not in known}.values())
    # Long texts take longer: dealt in turn by length, all processes end at about the same time.
    missing.sort(key=lambda one: (len(one.text), one.key))
    n_shares = min(n_at_once(workers), len(missing)) if missing else 0
    jobs = [replace(job, candidates=missing[share::n_shares]) for share in range(n_shares)]
    try:
        for done in run_jobs(step_job, jobs, workers, "measuring influence"):
            known |= done
    except RunError as error:
        if isinstance(error.__cause__, ModelError):
            raise error.__cause__ from None
        raise
    return [known[candidate.key] for candidate in candidates]


def _stderr(change: np.ndarray, weights: np.ndarray, sizes: np.ndarray) -> float:
    """Return the standard error of a weighted mean per token over reference texts, as that of a ratio of two sums."""
    if len(sizes) < 2:
        return float("inf")
    off = weights * (change - change @ weights * sizes)
    return float(np.sqrt((off**2).sum() * len(off) / (len(off) - 1)))
