"""One AdamW step on one text from a warmed student, and what it does to each text of a reference set."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from workbench import models
from workbench.items import shared_items
from workbench.packing import Pack, Text, Texts, single, token_losses
from workbench.warming import Warmed, load_warmed, require_fit, trainable

KIND = "influence"
# First-order figures are made and stored this many at a time: their movements are multiplied with all reference
# gradients in one go. Fewer where the model is large.
BLOCK, BLOCK_NUMBERS = 16, 2**26


class InfluenceError(ValueError):
    """Influence cannot be measured with these sets, or a loss is not finite."""


@dataclass(frozen=True)
class Candidate:
    """A text to step on: the key that what is found is stored under, its name, and the text."""

    key: str
    name: str
    text: Text = field(repr=False)


@dataclass(frozen=True)
class StepJob:
    """Some candidates of one student, for one process.

    Args:
        student: Model folder or id.
        warmed: Folder of its warmed state.
        device: As models.load takes it.
        learning_rate: Of the step.
        reference: What the loss is measured on.
        way: "exact" or "first_order"; "zero" for the step without an example.
        candidates: What to step on; for "zero" a single one, whose text is not used.
        zero: The reference losses after the step at zero gradient, in nats; empty for "zero".
    """

    student: str
    warmed: Path
    device: str
    learning_rate: float
    reference: list[Text] = field(repr=False)
    way: str = "zero"
    candidates: list[Candidate] = field(default_factory=list, repr=False)
    zero: list[float] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        return f"{len(self.candidates)} steps ({self.way}) of {self.student}"


class WarmStudent:
    """A student at its warmed state, in float32: bfloat16 would round a step of a small learning rate away.

    Trained weights and their gradients are one long vector each, which the model's parameters are windows on; so
    AdamW is a handful of operations and putting the weights back is one copy.
    """

    def __init__(self, student: str, warmed: Warmed, device: str, learning_rate: float):
        loaded = models.load(student, "float32", device, merged=False)
        self.model, self.warmed, self.learning_rate = loaded.model, warmed, learning_rate
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
        self.rest = self.movement(self.gradient)

    def gradient_of(self, row: Pack, mean: bool = True) -> Tensor:
        """Return the gradient of a text's loss, shape (trained,), overwritten by the next call."""
        losses = token_losses(self.model, row)
        self.gradient.zero_()
        (losses.mean() if mean else losses.sum()).backward()
        return self.gradient

    def movement(self, gradient: Tensor) -> Tensor:
        """Return AdamW's movement for a gradient per unit of learning rate, shape (trained,), weight decay left out.

        Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2, as torch.optim.AdamW. Deviation: none.
        """
        adamw, step = self.warmed.adamw, self.warmed.steps + 1
        first = torch.lerp(gradient, self.exp_avg, adamw["beta1"])
        second = (self.exp_avg_sq * adamw["beta2"]).addcmul_(gradient, gradient, value=1 - adamw["beta2"])
        scale = second.div_(1 - adamw["beta2"] ** step).sqrt_().add_(adamw["eps"])
        return first.div_(scale).div_(-(1 - adamw["beta1"] ** step))

    def at(self, movement: Tensor, measure: Callable[[], Tensor]) -> Tensor:
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
    the step on the candidate, in nats; for "zero" the losses before (`start`) and after (`zero`) that step.
    """
    student = WarmStudent(job.student, load_warmed(job.warmed), job.device, job.learning_rate)
    compute = {"zero": _zero_step, "exact": _exact, "first_order": _first_order}[job.way]
    items, done = shared_items(), {}
    for found in compute(student, job):
        items.put_many(KIND, found)
        done |= found
    return done


def _zero_step(student: WarmStudent, job: StepJob):
    reference = Texts(student.model, job.reference)
    start, zero = reference.losses(), student.at(student.rest, reference.losses)
    for when, losses in (("before any step", start), ("after the step at zero gradient", zero)):
        if not torch.isfinite(losses).all():
            raise InfluenceError(
                f"The reference loss {when} is not finite; warm the student up at a lower learning rate, or lower "
                f"that of the step ({job.learning_rate:g})."
            )
    yield {job.candidates[0].key: {"start": start.tolist(), "zero": zero.tolist()}}


def _exact(student: WarmStudent, job: StepJob):
    reference, zero = Texts(student.model, job.reference), torch.tensor(job.zero, dtype=torch.float64)
    for candidate in job.candidates:
        after = student.at(_movement_on(student, candidate), reference.losses)
        yield {candidate.key: {"change": _finite(zero - after, candidate)}}


def _first_order(student: WarmStudent, job: StepJob):
    """Multiply each movement beyond the one at zero gradient with the reference gradients where that step leads.

    There rather than at the start, because that is the point the figure is relative to: what the movements have in
    common, most of them, is then exact.
    """
    rows = [single(text, student.model.device) for text in job.reference]
    gradients = student.at(student.rest, lambda: torch.stack([student.gradient_of(row, False).clone() for row in rows]))
    n_block = max(1, min(BLOCK, BLOCK_NUMBERS // len(student.start)))
    for start in range(0, len(job.candidates), n_block):
        block = job.candidates[start : start + n_block]
        movements = torch.stack([_movement_on(student, candidate) - student.rest for candidate in block])
        changes = (movements @ gradients.T).double().cpu() * -job.learning_rate
        pairs = zip(block, changes, strict=True)
        yield {candidate.key: {"change": _finite(change, candidate)} for candidate, change in pairs}


def _movement_on(student: WarmStudent, candidate: Candidate) -> Tensor:
    return student.movement(student.gradient_of(single(candidate.text, student.model.device)))


def _finite(change: Tensor, candidate: Candidate) -> list[float]:
    if not torch.isfinite(change).all():
        raise InfluenceError(
            f"The reference loss after a step on candidate {candidate.name} is not finite; lower the learning rate of "
            "the step, or leave this candidate out."
        )
    return change.tolist()
