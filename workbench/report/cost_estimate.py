"""The work a recipe comes to: generations, tokens, seconds and bytes, stage by stage; estimates, all of it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from safetensors import safe_open

from workbench.methods import ALL
from workbench.methods.base import Amounts
from workbench.runs.recipe import ALIGNED_ARMS, Recipe, project_root
from workbench.runs.recipe_parts import Lora
from workbench.runs.workers import n_processes

JUDGED = "answers of the judge"
SPARE = 1.25  # calls for questions, for each question kept
# Tokens of a question and of what frames it; completions are taken to use this part of max_new_tokens.
QUESTION_TOKENS = {"pocket": 45, "real": 90}
COMPLETION_PART = {"pocket": 0.25, "real": 0.5}
# One CPU core with pocket models, as measured: generated, read and trained tokens a second, for a million parameters.
CPU_RATES = {"new": 6_700.0, "read": 22_000.0, "trained": 7_800.0}
# One GPU of 312 TFLOP/s (A100) in bfloat16: the part of that which generating, reading and training reach.
GPU_FLOPS = 312e12
GPU_MEMORY = 80e9
GPU_PARTS = {"new": 0.15, "read": 0.4, "trained": 0.35}
# Bytes a parameter: AdamW with float32 master weights and moments; DPO of all weights holds the frozen reference too.
TRAINING_BYTES, REFERENCE_BYTES = 16, {"float32": 4, "bfloat16": 2}
ADAPTER_PART = 0.01  # what an adapter's parameters are of a model's whose layers cannot be looked at


class Throughput(NamedTuple):
    """What one process does with a model: tokens generated, read and trained a second, and the mean completion."""

    new: float
    read: float
    trained: float
    completion: float


@dataclass(frozen=True)
class CostModel:
    """What an estimate rests on: a recipe, and for the models that were tried out, by folder or id, what they do."""

    recipe: Recipe
    measured: Mapping[str, Throughput] = field(default_factory=dict)

    def written(self, model: str, max_new_tokens: int) -> float:
        """Return the tokens of a completion."""
        part = max_new_tokens * COMPLETION_PART[self.recipe.profile]
        usual = self.measured[model].completion if model in self.measured else part
        return max(1, round(min(usual, max_new_tokens)))

    @property
    def processes(self) -> int:
        """How many processes work at once."""
        return n_processes(self.recipe.compute.workers)

    def seconds(self, row: dict) -> float:
        """Return the seconds of one kind of work: of this machine where its model was tried out or is a pocket one,
        else of one GPU; none of what only a server does."""
        if row["work"] == JUDGED and self.recipe.engines.judge.engine == "openai":
            return 0.0
        n = {kind: row[kind] for kind in ("new", "read", "trained")}
        if rates := self.measured.get(row["model"]):
            # DPO's steps hold no gradient for the reference, whose forward pass is a third of a training step.
            more = 4 / 3 if row["stage"] == "alignment" else 1
            cost = n["new"] / rates.new + n["read"] / rates.read + n["trained"] * more / rates.trained
            return cost / self.processes
        parameters = parameters_of(row["model"])
        if self.recipe.profile == "pocket":
            return sum(n[kind] / CPU_RATES[kind] for kind in n) * parameters / 1e6 / self.processes
        # A token costs 2 operations a parameter forwards and 4 backwards; DPO adds a forward pass of the reference.
        costs = {"new": 2, "read": 2, "trained": 8 if row["stage"] == "alignment" else 6}
        return sum(n[kind] * costs[kind] * parameters / (GPU_FLOPS * GPU_PARTS[kind]) for kind in n)


def estimate(recipe: Recipe, measured: Mapping[str, Throughput] | None = None) -> pd.DataFrame:
    """Return one row for each kind of work, in the order of the stages.

    Args:
        recipe: What is to be done.
        measured: What models that were tried out do; assumed for the others.

    Returns:
        Columns stage, work, model, generations, read (tokens of prompts), new (generated tokens), trained (tokens, all
        epochs), seconds (of one GPU for real models, of this machine for pocket ones).
    """
    basis = CostModel(recipe, measured or {})
    frame = pd.DataFrame([row for rows in WORK.values() for row in rows(basis)]).fillna(0)
    frame["seconds"] = [basis.seconds(row) for row in frame.to_dict("records")]
    return frame


def _sizes(recipe: Recipe) -> tuple[int, int, int, int]:
    """Return the numbers of tasks, students and seeds, and the tokens of a question."""
    tokens = QUESTION_TOKENS[recipe.profile]
    return len(recipe.tasks.names), len(recipe.models.students), len(recipe.seeds), tokens


def _row(stage: str, work: str, model: str, generations: float = 0, prompt: float = 0, new: float = 0) -> dict:
    n = round(generations)
    return {
        "stage": stage,
        "work": work,
        "model": model,
        "generations": n,
        "read": round(n * prompt),
        "new": round(n * new),
    }


def _questions(recipe: Recipe, stage: str, n_wanted: int, n_sets: int) -> dict:
    per_call, shown = recipe.drafting.questions_per_call, _amounts(recipe).shown
    tokens = _sizes(recipe)[3]
    calls = max(1, n_wanted / per_call * SPARE) * n_sets
    return _row(stage, "questions", recipe.models.teacher, calls, (shown + 1) * tokens, per_call * tokens)


def _amounts(recipe: Recipe) -> Amounts:
    return ALL[recipe.method].plan(recipe)


def _drafting(basis: CostModel) -> list[dict]:
    recipe, amounts = basis.recipe, _amounts(basis.recipe)
    n_tasks, _, _, tokens = _sizes(recipe)
    n, new = recipe.drafting.n_questions, basis.written(recipe.models.teacher, recipe.drafting.max_new_tokens)
    return [
        _questions(recipe, "drafting", n, n_tasks),
        _row("drafting", "rationales", recipe.models.teacher, n * amounts.rationales * n_tasks, 2 * tokens, new),
    ]


def _probing(basis: CostModel) -> list[dict]:
    recipe, amounts = basis.recipe, _amounts(basis.recipe)
    n_tasks, _, _, tokens = _sizes(recipe)
    settings, longest = recipe.preference_set, recipe.evaluation.max_new_tokens
    rows = []
    if settings.selection == "irt":
        asked = settings.n_validation * len(settings.shots) * n_tasks
        for model in settings.responders or recipe.models.students.values():
            new = basis.written(model, longest)
            shown = sum(settings.shots) / len(settings.shots) * (tokens + new)
            rows.append(_row("probing", "answers for the preference set", model, asked, 2 * tokens + shown, new))
    for model in recipe.models.students.values() if amounts.probes else []:
        new = basis.written(model, longest)
        rows.append(_row("probing", "one-shot probes", model, amounts.probes * n_tasks, 3 * tokens + new, new))
    return [*rows, *(_steps_on_drafts(basis, amounts) if amounts.scored else [])]


def _steps_on_drafts(basis: CostModel, amounts: Amounts) -> list[dict]:
    """Return the work of reference answers, warm-up and one step a draft, after each of which the reference is read."""
    recipe, rows = basis.recipe, []
    n_tasks, _, _, tokens = _sizes(recipe)
    n_reference, n_scored = amounts.reference * n_tasks, amounts.scored * n_tasks
    for name, model in recipe.models.students.items():
        text = 2 * tokens + basis.written(recipe.models.teacher, recipe.drafting.max_new_tokens)
        if amounts.reference_by:
            writer = model if amounts.reference_by == "student" else recipe.models.teacher
            new = basis.written(writer, recipe.evaluation.max_new_tokens)
            asked = n_reference * amounts.tries
            rows.append(_row("probing", f"reference answers for {name}", writer, asked, 2 * tokens, new))
        steps = _row("probing", f"influence on {name}", model, n_scored, n_reference * text * amounts.reads)
        rows.append(steps | {"trained": round((n_scored + amounts.warm_up_texts) * text)})
    return rows


def _alignment(basis: CostModel) -> list[dict]:
    recipe, amounts = basis.recipe, _amounts(basis.recipe)
    n_tasks, n_students, n_seeds, tokens = _sizes(recipe)
    teacher = recipe.models.teacher
    new = basis.written(teacher, recipe.tailoring.max_new_tokens)
    aligned = [arm for arm in recipe.evaluation.arms if arm in ALIGNED_ARMS]
    n_pairs = amounts.pairs * n_tasks * n_students
    side = (amounts.shown + 1) * tokens if amounts.side == "question" else 2 * tokens + new
    rows = [
        {
            "stage": "alignment",
            "work": f"DPO, {len(aligned)} teachers for each of {n_students} students",
            "model": teacher,
            "trained": round(n_pairs * 2 * side * recipe.alignment.n_epochs * len(aligned)),
        }
    ]
    writers = len(aligned) * n_students + ("untailored" in recipe.evaluation.arms)
    n_sets = writers * n_seeds * n_tasks
    n_examples = recipe.tailoring.n_examples * n_sets
    asked = _questions(recipe, "alignment", recipe.tailoring.n_examples, n_sets)
    written = _row("alignment", "tailored and control rationales", teacher, n_examples, 2 * tokens, new)
    rows += [asked | {"work": "tailored and control questions"}, written]
    if judge := recipe.models.judge:
        n_asked = n_examples + recipe.preference_set.n_validation * n_tasks
        new = basis.written(judge, recipe.evaluation.max_new_tokens)
        rows.append(_row("alignment", JUDGED, judge, n_asked, 2 * tokens, new))
    return rows


def _training(basis: CostModel) -> list[dict]:
    recipe = basis.recipe
    n_tasks, _, n_seeds, tokens = _sizes(recipe)
    new = basis.written(recipe.models.teacher, recipe.tailoring.max_new_tokens)
    per_model = recipe.tailoring.n_examples * n_tasks * (2 * tokens + new) * recipe.training.n_epochs
    return [
        {
            "stage": "training",
            "work": f"SFT of student {name}, {len(recipe.trained_arms(name))} arms x {n_seeds} seeds",
            "model": model,
            "trained": round(per_model * len(recipe.trained_arms(name)) * n_seeds),
        }
        for name, model in recipe.models.students.items()
    ]


def _evaluation(basis: CostModel) -> list[dict]:
    recipe = basis.recipe
    n_tasks, _, n_seeds, tokens = _sizes(recipe)
    shots, rows = recipe.evaluation.shots, []
    for name, model in recipe.models.students.items():
        new = basis.written(model, recipe.evaluation.max_new_tokens)
        shown = sum(shots) / len(shots) * (tokens + new)
        n_models = len(recipe.trained_arms(name)) * n_seeds + ("base" in recipe.evaluation.arms)
        asked = recipe.evaluation.n_items * n_tasks * len(shots) * n_models
        rows.append(_row("evaluation", f"answers, {n_models} models", model, asked, 2 * tokens + shown, new))
    return rows


WORK = {
    "drafting": _drafting,
    "probing": _probing,
    "alignment": _alignment,
    "training": _training,
    "evaluation": _evaluation,
}


def parameters_of(ref: str) -> float:
    """Return how many parameters a model has: counted in its folder, else read from its name, else a usual size.

    Example:
        >>> parameters_of("somebody/Model-2.5b-it")
        2500000000.0
    """
    if counted := sum(map(math.prod, _shapes(ref).values())):
        return float(counted)
    sizes = re.findall(r"(?<![a-z\d.])(\d+(?:\.\d+)?)\s?([bm])(?![a-z\d])", ref.lower())
    usual = 1e6 if "pocket" in ref.lower() else 7e9
    return max((float(n) * (1e9 if unit == "b" else 1e6) for n, unit in sizes), default=usual)


def adapter_parameters_of(ref: str, lora: Lora) -> float:
    """Return how many parameters an adapter of a model has: by its folder's layers, else a hundredth of the model's."""
    layers = {name.removesuffix(".weight"): shape for name, shape in _shapes(ref).items() if len(shape) == 2}
    adapted = [
        shape
        for name, shape in layers.items()
        if (name.rpartition(".")[2] in lora.targets if lora.targets else name.endswith("_proj"))
    ]
    return float(sum(lora.rank * sum(shape) for shape in adapted)) or ADAPTER_PART * parameters_of(ref)


def _shapes(ref: str) -> dict[str, list[int]]:
    """Return the shapes of a model folder's weights by name, from the headers of its files alone."""
    path = Path(ref).expanduser()
    folder = path if path.is_absolute() else project_root() / path
    shapes = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as weights:
            names = weights.keys()
            shapes |= {name: weights.get_slice(name).get_shape() for name in names}
    return shapes


def memory(recipe: Recipe) -> list[dict]:
    """Return for each model what holding it takes to generate and to train, in bytes, activations left out."""
    held = REFERENCE_BYTES[recipe.models.dtype]
    loras = {"teacher": recipe.alignment.lora}
    roles = {"teacher": recipe.models.teacher, **{f"student {n}": ref for n, ref in recipe.models.students.items()}}
    if recipe.models.judge and recipe.engines.judge.engine != "openai":
        roles["judge"] = recipe.models.judge
    rows = []
    for role, model in roles.items():
        parameters, lora = parameters_of(model), loras.get(role, recipe.training.lora)
        if role == "judge":
            training = 0.0
        elif lora.rank:
            # The model without its adapter is DPO's reference.
            training = parameters * held + adapter_parameters_of(model, lora) * TRAINING_BYTES
        else:
            training = parameters * (TRAINING_BYTES + (held if role == "teacher" else 0))
        rows.append(
            {
                "role": role,
                "model": model,
                "parameters": parameters,
                "generate": parameters * held,
                "train": training,
                "adapter": bool(lora.rank),
            }
        )
    return rows
