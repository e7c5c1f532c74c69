"""The work a recipe comes to: generations, tokens, seconds and bytes, stage by stage; estimates, all of it."""

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from safetensors import safe_open

from workbench.loop import prompts
from workbench.methods import ALL
from workbench.methods.base import Amounts
from workbench.models.engine import Decoding, Request
from workbench.models.loading import load, load_tokenizer, render, resolve
from workbench.models.start import Role, choice_of, sharing, start_engine
from workbench.models.transformers_engine import TransformersEngine
from workbench.runs.recipe import ALIGNED_ARMS, Recipe, project_root
from workbench.runs.workers import n_processes, one_thread
from workbench.tasks.task import load_tasks

JUDGED = "answers of the judge"
SPARE = 1.25  # calls for questions, for each question kept
# Tokens of a question and of what frames it; completions are taken to use this part of max_new_tokens.
QUESTION_TOKENS = {"pocket": 45, "real": 90}
COMPLETION_PART = {"pocket": 0.25, "real": 0.5}
# Training a token is three forward passes' work; DPO adds one, of the reference.
PASSES, DPO_PASSES = 3, 4
# Bytes a parameter: AdamW with float32 master weights and moments; DPO of all weights holds the frozen reference too.
TRAINING_BYTES, HELD_BYTES = 16, {"float32": 4, "bfloat16": 2}
ADAPTER_PART = 0.01  # what an adapter's parameters are of a model's


class Throughput(NamedTuple):
    """What this machine, or one GPU, does with a model: tokens generated and read a second, and the mean completion;
    0 for a mean that is not known."""

    new: float
    read: float
    completion: float = 0.0


# For a million parameters: one CPU core with pocket models, as measured; one GPU of 312 TFLOP/s (A100, bfloat16), of
# which generating reaches 15 % and reading 35 %, at two operations a parameter and token.
RATES = {"pocket": Throughput(6_700.0, 22_000.0), "real": Throughput(23.4e6, 54.6e6)}


def estimate(recipe: Recipe, measured: Mapping[str, Throughput] | None = None) -> pd.DataFrame:
    """Return one row for each kind of work, in the order of the stages.

    Args:
        recipe: What is to be done.
        measured: What models that were tried out do, as `measure` returns it; assumed for the others.

    Returns:
        Columns stage, work, model, generations, read (tokens of prompts), new (generated tokens), trained (tokens, all
        epochs), seconds (of one GPU for real models, of this machine for pocket ones and those that were tried out).
    """
    work = _Work(recipe, measured or {})
    rows = [*work.drafting(), *work.probing(), *work.alignment(), *work.training(), *work.evaluation()]
    return pd.DataFrame([row | {"seconds": work.seconds(row)} for row in rows])


@dataclass(frozen=True)
class _Work:
    """Counts what each stage of a recipe comes to."""

    recipe: Recipe
    measured: Mapping[str, Throughput] = field(default_factory=dict)

    @property
    def amounts(self) -> Amounts:
        return ALL[self.recipe.method].plan(self.recipe)

    @property
    def n_tasks(self) -> int:
        return len(self.recipe.tasks.names)

    @property
    def question(self) -> int:
        """The tokens of a question."""
        return QUESTION_TOKENS[self.recipe.profile]

    def written(self, model: str, max_new_tokens: int) -> int:
        """Return the tokens of a completion."""
        tried = self.measured[model].completion if model in self.measured else 0
        usual = tried or max_new_tokens * COMPLETION_PART[self.recipe.profile]
        return max(1, round(min(usual, max_new_tokens)))

    def seconds(self, row: Mapping) -> float:
        """Return the seconds of one kind of work; none of what only a server does."""
        if row["work"] == JUDGED and self.recipe.engines.judge.engine == "openai":
            return 0.0
        if not (rates := self.measured.get(row["model"])):
            n = n_processes(self.recipe.compute.workers) if self.recipe.profile == "pocket" else 1
            speed = n * 1e6 / parameters_of(row["model"])
            rates = Throughput(*(rate * speed for rate in RATES[self.recipe.profile][:2]))
        passes = DPO_PASSES if row["stage"] == "alignment" else PASSES
        return row["new"] / rates.new + (row["read"] + passes * row["trained"]) / rates.read

    def questions(self, stage: str, work: str, n_wanted: int, n_sets: int) -> dict:
        per_call = self.recipe.drafting.questions_per_call
        calls = max(1, n_wanted / per_call * SPARE) * n_sets
        shown = (self.amounts.shown + 1) * self.question
        return _row(stage, work, self.recipe.models.teacher, calls, shown, per_call * self.question)

    def drafting(self) -> list[dict]:
        settings, teacher = self.recipe.drafting, self.recipe.models.teacher
        n, new = settings.n_questions * self.amounts.rationales, self.written(teacher, settings.max_new_tokens)
        return [
            self.questions("drafting", "questions", settings.n_questions, self.n_tasks),
            _row("drafting", "rationales", teacher, n * self.n_tasks, 2 * self.question, new),
        ]

    def probing(self) -> list[dict]:
        settings, amounts, models = self.recipe.preference_set, self.amounts, self.recipe.models
        longest, rows = self.recipe.evaluation.max_new_tokens, []
        for model in (settings.responders or models.students.values()) if settings.selection == "irt" else []:
            n, new = settings.n_validation * len(settings.shots) * self.n_tasks, self.written(model, longest)
            rows.append(self.answers("probing", "answers for the preference set", model, n, settings.shots, new))
        for name, model in models.students.items():
            if amounts.probes:
                n, new = amounts.probes * self.n_tasks, self.written(model, longest)
                rows.append(self.answers("probing", "one-shot probes", model, n, [1], new))
            if amounts.reference:
                writer = model if amounts.reference_by == "student" else models.teacher
                n, new = amounts.reference * self.n_tasks, self.written(writer, longest)
                rows.append(self.answers("probing", f"reference answers for {name}", writer, n, [0], new))
            if amounts.steps:
                text = 2 * self.question + self.written(models.teacher, self.recipe.drafting.max_new_tokens)
                trained, read = amounts.steps * self.n_tasks * text, amounts.reads * self.n_tasks * text
                row = _row("probing", f"influence on {name}", model, trained=trained)
                rows.append(row | {"read": round(read)})
        return rows

    def answers(self, stage: str, work: str, model: str, n: float, shots: list[int], new: int) -> dict:
        shown = sum(shots) / len(shots) * (self.question + new)
        return _row(stage, work, model, n, 2 * self.question + shown, new)

    def alignment(self) -> list[dict]:
        recipe, amounts, teacher = self.recipe, self.amounts, self.recipe.models.teacher
        n_students, new = len(recipe.models.students), self.written(teacher, recipe.tailoring.max_new_tokens)
        n_aligned = sum(arm in ALIGNED_ARMS for arm in recipe.evaluation.arms) * n_students
        side = (amounts.shown + 1) * self.question if amounts.side == "question" else 2 * self.question + new
        trained = amounts.pairs * self.n_tasks * n_aligned * 2 * side * recipe.alignment.n_epochs
        n_sets = (n_aligned + ("untailored" in recipe.evaluation.arms)) * len(recipe.seeds) * self.n_tasks
        n_examples = recipe.tailoring.n_examples * n_sets
        rows = [
            _row("alignment", f"DPO, {n_aligned} teachers for {n_students} students", teacher, trained=trained),
            self.questions("alignment", "tailored and control questions", recipe.tailoring.n_examples, n_sets),
            self.answers("alignment", "tailored and control rationales", teacher, n_examples, [0], new),
        ]
        if judge := recipe.models.judge:
            n = n_examples + recipe.preference_set.n_validation * self.n_tasks
            new = self.written(judge, recipe.evaluation.max_new_tokens)
            rows.append(self.answers("alignment", JUDGED, judge, n, [0], new))
        return rows

    def training(self) -> list[dict]:
        recipe, rows = self.recipe, []
        text = 2 * self.question + self.written(recipe.models.teacher, recipe.tailoring.max_new_tokens)
        for name, model in recipe.models.students.items():
            n_arms, n_seeds = len(recipe.trained_arms(name)), len(recipe.seeds)
            trained = recipe.tailoring.n_examples * self.n_tasks * text * recipe.training.n_epochs * n_arms * n_seeds
            work = f"SFT of student {name}, {n_arms} arms x {n_seeds} seeds"
            rows.append(_row("training", work, model, trained=trained))
        return rows

    def evaluation(self) -> list[dict]:
        recipe, settings, rows = self.recipe, self.recipe.evaluation, []
        for name, model in recipe.models.students.items():
            n_models = len(recipe.trained_arms(name)) * len(recipe.seeds) + ("base" in settings.arms)
            n, new = settings.n_items * self.n_tasks * len(settings.shots) * n_models, settings.max_new_tokens
            work = f"answers, {n_models} models"
            rows.append(self.answers("evaluation", work, model, n, settings.shots, self.written(model, new)))
        return rows


def _row(
    stage: str, work: str, model: str, n: float = 0, prompt: float = 0, new: float = 0, trained: float = 0
) -> dict:
    """Return n generations, each with so many tokens of its prompt and new ones, or so many trained tokens in all."""
    n = round(n)
    counts = {"generations": n, "read": round(n * prompt), "new": round(n * new), "trained": round(trained)}
    return {"stage": stage, "work": work, "model": model} | counts


def parameters_of(ref: str) -> float:
    """Return how many parameters a model has: counted in its folder, else read from its name, else a usual size.

    Example:
        >>> parameters_of("somebody/Model-2.5b-it")
        2500000000.0
    """
    counted = 0
    for file in (project_root() / Path(ref).expanduser()).glob("*.safetensors"):
        with safe_open(file, framework="np") as weights:
            names = weights.keys()
            counted += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    sizes = re.findall(r"(?<![a-z\d.])(\d+(?:\.\d+)?)\s?([bm])(?![a-z\d])", ref.lower())
    usual = 1e6 if "pocket" in ref.lower() else 7e9
    return float(counted) or max((float(n) * (1e9 if unit == "b" else 1e6) for n, unit in sizes), default=usual)


def memory(recipe: Recipe) -> list[dict]:
    """Return for each model here its role, model, parameters, and bytes to generate and to train.

    Activations are left out, and 0 is for a model that is not trained. A model without its adapter is DPO's reference.
    """
    held, models = HELD_BYTES[recipe.models.dtype], recipe.models
    adapted = {"teacher": recipe.alignment.lora.rank}
    roles = {"teacher": models.teacher} | {f"student {name}": ref for name, ref in models.students.items()}
    if models.judge and recipe.engines.judge.engine != "openai":
        roles["judge"] = models.judge
    rows = []
    for role, model in roles.items():
        a_parameter = TRAINING_BYTES + (held if role == "teacher" else 0)
        if adapted.get(role, recipe.training.lora.rank):
            a_parameter = held + ADAPTER_PART * TRAINING_BYTES
        n = parameters_of(model)
        needs = {"generate": n * held, "train": 0.0 if role == "judge" else n * a_parameter}
        rows.append({"role": role, "model": model, "parameters": n} | needs)
    return rows


def measure(recipe: Recipe) -> dict[str, Throughput]:
    """Return what this machine does with every model of the recipe whose folder is here, by folder.

    A full batch of validation questions is answered greedily by the engine of the model's role. A server is not tried
    out, since that may cost money, and transformers stands in for it.

    Raises:
        ModelError: If a model's folder is there but cannot be loaded.
    """
    models = recipe.models
    roles: dict[str, Role] = {models.judge: "judge"} | dict.fromkeys(models.students.values(), "student")
    roles |= {models.teacher: "teacher"}
    here = [ref for ref in roles if ref and (project_root() / Path(ref).expanduser()).is_dir()]
    return {ref: _tried(recipe, roles[ref], ref) for ref in here}


def _tried(recipe: Recipe, role: Role, ref: str) -> Throughput:
    own_engine, tokenizer = choice_of(recipe, role).engine == "vllm", load_tokenizer(resolve(ref))
    requests = [Request(render(tokenizer, prompt)) for prompt in _questions(recipe)]
    longest = recipe.drafting.max_new_tokens if role == "teacher" else recipe.evaluation.max_new_tokens
    # transformers works in several processes of one thread each, vLLM in one with all cores.
    with sharing() if own_engine else one_thread():
        if own_engine:
            engine, processes = start_engine(recipe, role, ref), 1
        else:
            loaded = load(ref, recipe.models.dtype, recipe.compute.device)
            engine = TransformersEngine(loaded, batch_size=recipe.compute.batch_size)
            processes = n_processes(recipe.compute.workers)
        engine.generate(requests[:2], Decoding(2))
        # An engine that remembers prompts reads them faster the second time.
        (reading, _), (again, _), (both, written) = (
            _timed(engine.generate, requests, Decoding(n)) for n in (1, 1, longest)
        )
    n_read = sum(len(tokenizer(request.prompt)["input_ids"]) for request in requests)
    n_new = sum(completion.n_tokens for completion in written)
    # Models that stop at once leave too little to be timed by itself.
    by_itself = n_new > 2 * len(requests) and both > again
    new = (n_new - len(requests)) / (both - again) if by_itself else n_new / both
    return Throughput(new * processes, n_read / reading * processes, n_new / len(requests))


def _questions(recipe: Recipe) -> list[str]:
    """Return prompts of the recipe's validation questions, one batch at most, from all tasks alike."""
    columns = [
        [prompts.naive_prompt(task.description, question) for question in task.validation["question"]]
        for task in load_tasks(recipe).values()
    ]
    dealt = [prompt for row in zip(*columns, strict=False) for prompt in row]
    return list(dict.fromkeys(dealt))[: recipe.compute.batch_size]


def _timed(work, *arguments):
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result
