"""A student warmed up: some steps of SFT, and AdamW's state after them, from which one more step is measured.

The loop is our own: TRL's trainer splits the parameters into groups and keeps AdamW's state in a pickle, while here
the loss of a step and of a warm-up step must be the same code, and nothing pickled is ever read.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.models import loading
from workbench.models.packed_losses import Text, single, token_losses
from workbench.models.trl import Tuned, encode, tuned
from workbench.runs import cluster
from workbench.runs.cache import atomic_write
from workbench.runs.errors import ModelError
from workbench.runs.run import file_sha256, fingerprint
from workbench.runs.seeding import stream

VERSION = 1
STATE = "warmed.safetensors"
KINDS = ("weights", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class WarmUp:
    """How a student is warmed up: AdamW, its rate rising linearly over all steps to learning_rate.

    Source: Montessori-Instruct, arXiv:2410.14208, official code. Deviation: the gradient is clipped, as TRL's SFT does.
    """

    n_steps: int
    batch_size: int
    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class OptimizerSnapshot:
    """Weights after a warm-up and AdamW's state with them, one parameter group."""

    student: str  # fingerprint of the model folder it was warmed from
    steps: int
    adamw: dict[str, float]  # learning_rate, beta1, beta2, eps and weight_decay of the next step
    tensors: dict[str, dict[str, Tensor]]  # for each of KINDS the trained parameters by name
    fingerprint: str = ""


def trainable(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that are trained, by name: an adapter's alone when the model has one, else all."""
    named = dict(model.named_parameters())
    adapter = {name: parameter for name, parameter in named.items() if "lora_" in name}
    for name, parameter in named.items():
        parameter.requires_grad_(not adapter or name in adapter)
    return adapter or named


def texts_of(tokenizer: PreTrainedTokenizerBase, rows: pd.DataFrame) -> list[Text]:
    """Return prompts and completions (without their end token) as SFT sees them.

    Raises:
        ModelError: If one has no prompt, or is longer than the tokenizer's model_max_length.
    """
    limit = tokenizer.model_max_length
    texts = [Text(*ids) for ids in encode(tokenizer, list(rows["prompt"]), list(rows["completion"]))]
    for text, prompt in zip(texts, rows["prompt"], strict=True):
        if not text.prompt or len(text) > limit:
            raise ModelError(
                f"The text that begins {prompt[:40]!r} has a prompt of {len(text.prompt)} tokens and a completion of "
                f"{len(text.completion)}; the student reads 1 to {limit} together, so shorten it or leave it out."
            )
    return texts


def warm_up(student: str, rows: pd.DataFrame, settings: WarmUp, seed: int, folder: Path, device: str = "auto") -> Tuned:
    """Warm a student up into a folder, or return what the folder holds if it was made from the same.

    Args:
        student: Model folder or id; with an adapter in the folder, only the adapter is trained.
        rows: The warm-up set, columns prompt and completion (without its end token).
        folder: Where the state goes; read it with load_warmed.

    Raises:
        ModelError: If there are no rows, one is too long, or a loss is not finite.
    """
    if rows.empty:
        raise ModelError("The warm-up set is empty; give at least one prompt with its completion.")
    source = loading.fingerprint_model(student)
    key = fingerprint([VERSION, source, asdict(settings), seed, rows[["prompt", "completion"]].to_numpy().tolist()])
    return tuned(folder, key, lambda work: _warm(student, source, rows, settings, seed, work, device))


def _warm(student: str, source: str, rows: pd.DataFrame, settings: WarmUp, seed: int, work: Path, device: str) -> dict:
    loaded = loading.load(student, "float32", device, merged=False)
    model, parameters = loaded.model, trainable(loaded.model)
    texts = texts_of(loaded.tokenizer, rows)
    adamw, curve, n_tokens = adamw_of(parameters, settings), [], 0
    for step, loss, n_counted in take_steps(model, texts, adamw, settings, stream(seed, "warm-up"), rising=True):
        n_tokens += n_counted
        curve.append({"step": step, "metric": "loss", "value": loss})
    state = {name: adamw.state[parameter] for name, parameter in parameters.items()}
    tensors = {"weights": {name: parameter.detach() for name, parameter in parameters.items()}}
    tensors |= {kind: {name: state[name][kind] for name in state} for kind in KINDS[1:]}
    following = {name: getattr(settings, name) for name in ("learning_rate", "beta1", "beta2", "eps", "weight_decay")}
    save_warmed(OptimizerSnapshot(source, settings.n_steps, following, tensors), work)
    return {"curve": curve, "n_tokens": n_tokens, "steps": settings.n_steps}


def adamw_of(parameters: dict[str, torch.nn.Parameter], settings: WarmUp) -> torch.optim.AdamW:
    """Return the optimiser of a warm-up, fresh."""
    betas = (settings.beta1, settings.beta2)
    decay = settings.weight_decay
    return torch.optim.AdamW(parameters.values(), settings.learning_rate, betas, settings.eps, decay)


def take_steps(
    model: PreTrainedModel,
    texts: list[Text],
    adamw: torch.optim.AdamW,
    settings: WarmUp,
    rng: np.random.Generator,
    rising: bool = False,
) -> Iterator[tuple[int, float, int]]:
    """Train on texts in an order of rng, over and over; yield each step's number, loss a token and tokens counted.

    The rate is that of the settings, or rises to it linearly over all steps.

    Raises:
        ModelError: If a loss is not finite.
    """
    parameters, waiting = adamw.param_groups[0]["params"], []
    for step in range(1, settings.n_steps + 1):
        while len(waiting) < settings.batch_size:
            waiting += rng.permutation(len(texts)).tolist()
        batch, waiting = [texts[at] for at in waiting[: settings.batch_size]], waiting[settings.batch_size :]
        n_counted = sum(len(text.completion) for text in batch)
        loss = 0.0
        for text in batch:
            part = token_losses(model, single(text, model.device)).sum() / n_counted
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        if not torch.isfinite(norm):
            raise ModelError(f"Loss or gradient of step {step} is not finite; lower the learning rate.")
        adamw.param_groups[0]["lr"] = settings.learning_rate * (step if rising else settings.n_steps) / settings.n_steps
        adamw.step()
        adamw.zero_grad()
        yield step, loss, n_counted


def save_warmed(warmed: OptimizerSnapshot, folder: Path) -> None:
    """Write a warmed state into the folder as safetensors."""
    flat = {
        f"{kind}/{name}": tensor.cpu().contiguous() for kind in KINDS for name, tensor in warmed.tensors[kind].items()
    }
    facts = {"student": warmed.student, "steps": warmed.steps, "adamw": warmed.adamw}
    atomic_write(Path(folder) / STATE, save(flat, metadata={"warmed": json.dumps(facts)}))


def load_warmed(folder: Path) -> OptimizerSnapshot:
    """Read a warmed state; a ModelError if there is none, or it is damaged."""
    path = (loading.resolve(folder) if cluster.inside() else Path(folder)) / STATE
    if not path.is_file():
        raise ModelError(f"There is no warmed state {path}; make it with warm_up.")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["warmed"])
            tensors: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
            for key in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                kind, _, name = key.partition("/")
                tensors[kind][name] = file.get_tensor(key)
        return OptimizerSnapshot(facts["student"], facts["steps"], facts["adamw"], tensors, file_sha256(path)[:16])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"The warmed state {path} is damaged ({error}); remove its folder, warm up again.") from error


def require_fit(warmed: OptimizerSnapshot, source: str, parameters: dict[str, torch.nn.Parameter]) -> None:
    """Check that a warmed state belongs to the student whose folder has this fingerprint, and to what is trained of it.

    Raises:
        ModelError: If it was warmed from another model, or its tensors are not those of the parameters.
    """
    if warmed.student != source:
        raise ModelError(f"The warmed state was made from model {warmed.student}, not {source}; warm this one up.")
    wanted = {name: parameter.shape for name, parameter in parameters.items()}
    shapes = {kind: {name: tensor.shape for name, tensor in warmed.tensors[kind].items()} for kind in KINDS}
    if wrong := [kind for kind in KINDS if shapes[kind] != wanted]:
        raise ModelError(
            f"The warmed state's {' and '.join(wrong)} do not fit the model's {len(wanted)} parameters; warm this "
            "student up again."
        )
