"""The work a recipe comes to: generations, tokens, seconds and bytes, stage by stage; estimates, all of it."""

import math
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from safetensors import safe_open

from workbench.loop import prompts
from workbench.methods import ALL
from workbench.methods.base import Amounts
from workbench.models.engine import Decoding, Request
from workbench.models.loading import load_tokenizer, resolve
from workbench.models.start import Role, choice_of, models_of, start_engine
from workbench.runs.recipe import ALIGNED_ARMS, DISTILLED, Recipe, project_root
from workbench.runs.recipe_parts import ROLES
from workbench.runs.workers import Job, n_processes, run_jobs
from workbench.signals.by_name import PASSES as PASSES_A_DRAFT
from workbench.signals.by_name import named_in
from workbench.tasks.task import load_tasks

JUDGED = "answers of the judge"
SPARE = 1.25  # calls for questions, for each question kept
# Tokens of a question and of what frames it; completions are taken to use this part of max_new_tokens.
QUESTION_TOKENS = {"pocket": 45, "real": 90}
COMPLETION_PART = {"pocket": 0.25, "real": 0.5}
# Training a token is three forward passes' work; DPO adds one, of the reference.
PASSES, DPO_PASSES = 3, 4
# Bytes a parameter: AdamW with float32 master weights and moments; DPO of all weights holds the frozen reference too.
TRAINING_BYTES, HELD_BYTES = 16, {"float32": 4, "bfloat16": 2, "auto": 4}
ADAPTER_PART = 0.01  # what an adapter's parameters are of a model's


class Throughput(NamedTuple):
    """What this machine, or one GPU, does with a model: tokens generated and read a second, the mean completion, tokens
    trained on a second, and the mean prompt of a question alone; 0 for what is not known."""

    new: float
    read: float
    completion: float = 0.0
    trained: float = 0.0
    prompt: float = 0.0


# For a million parameters: one of two CPU cores that are both at work with pocket models, as measured; one GPU of 312
# TFLOP/s (A100, bfloat16), of which generating reaches 15 % and reading 35 %, at two operations a parameter and token.
RATES = {"pocket": Throughput(3_900.0, 12_800.0), "real": Throughput(23.4e6, 54.6e6)}


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
    for count in (work.drafting, work.probing, work.alignment, work.training, work.evaluation):
        count()
    return pd.DataFrame([row | {"seconds": _seconds(recipe, row, measured or {})} for row in work.rows])


def _seconds(recipe: Recipe, row: Mapping, measured: Mapping[str, Throughput]) -> float:
    """Return the seconds of one kind of work; none of what only a server does."""
    if row["work"] == JUDGED and recipe.engines.judge.engine == "openai":
        return 0.0
    if not (rates := measured.get(row["model"])):
        n = n_processes(recipe.compute.workers) if recipe.profile == "pocket" else 1
        speed = n * 1e6 / parameters_of(row["model"])
        rates = Throughput(*(rate * speed for rate in RATES[recipe.profile][:2]))
    passes = DPO_PASSES if row["stage"] == "alignment" else PASSES
    of_training = passes / PASSES / rates.trained if rates.trained else passes / rates.read
    return row["new"] / rates.new + row["read"] / rates.read + row["trained"] * of_training


class _Work:
    """Counts what each stage of a recipe comes to, kind by kind, into `rows`; all numbers taken are those of a task."""

    def __init__(self, recipe: Recipe, measured: Mapping[str, Throughput]):
        self.recipe, self.measured, self.rows = recipe, measured, []
        self.amounts: Amounts = ALL[recipe.method].plan(recipe)
        # A prompt is a question and as much again, which frames it.
        prompts_seen = [one.prompt / 2 for one in measured.values() if one.prompt]
        self.question = prompts_seen[0] if prompts_seen else QUESTION_TOKENS[recipe.profile]

    def add(self, *named: str, n: float = 0, prompt: float = 0, new: float = 0, read: float = 0, trained: float = 0):
        """Add generations, each with so many tokens of its prompt and new ones, and tokens read and trained on."""
        tasks = len(self.recipe.tasks.names)
        n = round(n * tasks)
        counts = {"generations": n, "read": round(n * prompt + tasks * read), "new": round(n * new)}
        row = dict(zip(("stage", "work", "model"), named, strict=True))
        self.rows.append(row | counts | {"trained": round(tasks * trained)})

    def questions(self, stage: str, work: str, n: float, n_sets: int = 1) -> None:
        """Add the calls that make n questions for each set."""
        per_call, prompt = self.recipe.drafting.questions_per_call, (self.amounts.shown + 1) * self.question
        calls = max(1, n / per_call * SPARE) * n_sets
        self.add(stage, work, self.recipe.models.teacher, n=calls, prompt=prompt, new=per_call * self.question)

    def answers(self, stage: str, work: str, model: str, n: float, longest: int, shots: Sequence[int] = (0,)) -> None:
        """Add n answers, or rationales, of at most so many tokens, after so many examples on average."""
        new = self.written(model, longest)
        shown = sum(shots) / len(shots) * (self.question + new)
        self.add(stage, work, model, n=n, prompt=2 * self.question + shown, new=new)

    def written(self, model: str, longest: int) -> int:
        """Return the tokens of a completion."""
        tried = self.measured[model].completion if model in self.measured else 0
        usual = tried or longest * COMPLETION_PART[self.recipe.profile]
        return max(1, round(min(usual, longest)))

    def example(self, longest: int) -> int:
        """Return the tokens of a question with the teacher's rationale, as they are trained on."""
        return 2 * self.question + self.written(self.recipe.models.teacher, longest)

    def drafting(self) -> None:
        settings, teacher = self.recipe.drafting, self.recipe.models.teacher
        self.questions("drafting", "questions", settings.n_questions)
        n = settings.n_questions * self.amounts.rationales
        self.answers("drafting", "rationales", teacher, n, settings.max_new_tokens)

    def probing(self) -> None:
        settings, amounts, models = self.recipe.preference_set, self.amounts, self.recipe.models
        longest = self.recipe.evaluation.max_new_tokens
        is_chosen = settings.selection == "irt" and (amounts.probes or amounts.steps)
        for model in (settings.responders or models.students.values()) if is_chosen else []:
            n, work = settings.n_validation * len(settings.shots), "answers for the preference set"
            self.answers("probing", work, model, n, longest, settings.shots)
        for name, model in models.students.items():
            if amounts.probes:
                self.answers("probing", "one-shot probes", model, amounts.probes, longest, [1])
                self.other_signals(name, model)
            if amounts.reference:
                writer = model if amounts.reference_by == "student" else models.teacher
                self.answers("probing", f"reference answers for {name}", writer, amounts.reference, longest)
            if amounts.steps:
                text = self.example(self.recipe.drafting.max_new_tokens)
                read, trained = amounts.reads * text, amounts.steps * text
                self.add("probing", f"influence on {name}", model, read=read, trained=trained)

    def other_signals(self, name: str, model: str) -> None:
        """Add what signals that the recipe names beside the probes, or instead of them, ask of each draft."""
        drafts = self.recipe.drafting.n_questions * self.amounts.rationales
        text, asked = self.example(self.recipe.drafting.max_new_tokens), self.recipe.preference_set.n_items
        for signal in named_in(self.recipe):
            forward, backward = PASSES_A_DRAFT[signal]
            if forward is None and backward:
                longest = self.recipe.evaluation.max_new_tokens
                self.answers("probing", f"{signal}, answers after training", model, drafts * asked, longest)
            read, trained = drafts * (forward or 0) * text, drafts * backward * text
            if read or trained:
                self.add("probing", f"{signal} of drafts, {name}", model, read=read, trained=trained)

    def rounds(self) -> None:
        """Add what is written, answered and judged in rounds."""
        recipe, amounts, models = self.recipe, self.amounts, self.recipe.models
        if amounts.in_rounds:
            self.questions("alignment", "questions of all rounds", amounts.in_rounds)
            n, longest = amounts.in_rounds * amounts.rationales, recipe.drafting.max_new_tokens
            self.answers("alignment", "rationales of all rounds", models.teacher, n, longest)
        student, n = next(iter(models.students.values())), amounts.asked_in_rounds
        self.answers("alignment", "answers of those taught", student, n, recipe.evaluation.max_new_tokens)
        if models.judge:
            self.answers("alignment", JUDGED, models.judge, 2 * n, recipe.evaluation.max_new_tokens)

    def alignment(self) -> None:
        if self.amounts.asked_in_rounds:
            self.rounds()
        if not self.amounts.pairs:
            return
        recipe, amounts, teacher = self.recipe, self.amounts, self.recipe.models.teacher
        n_students, longest = len(recipe.models.students), recipe.tailoring.max_new_tokens
        n_aligned = sum(arm in ALIGNED_ARMS for arm in recipe.evaluation.arms) * n_students
        side = (amounts.shown + 1) * self.question if amounts.side == "question" else self.example(longest)
        trained = amounts.pairs * n_aligned * 2 * side * recipe.alignment.n_epochs
        self.add("alignment", f"DPO, {n_aligned} teachers for {n_students} students", teacher, trained=trained)
        n_sets = (n_aligned + ("untailored" in recipe.evaluation.arms)) * len(recipe.seeds)
        n = recipe.tailoring.n_examples * n_sets
        self.questions("alignment", "tailored and control questions", recipe.tailoring.n_examples, n_sets)
        self.answers("alignment", "tailored and control rationales", teacher, n, longest)
        if judge := recipe.models.judge:
            n += recipe.preference_set.n_validation
            self.answers("alignment", JUDGED, judge, n, recipe.evaluation.max_new_tokens)

    def training(self) -> None:
        recipe = self.recipe
        text = self.example(recipe.tailoring.max_new_tokens)
        for name, model in recipe.models.students.items():
            n_arms, n_seeds = len(recipe.trained_arms(name)), len(recipe.seeds)
            trained = recipe.tailoring.n_examples * text * recipe.training.n_epochs * n_arms * n_seeds
            self.add("training", f"SFT of student {name}, {n_arms} arms x {n_seeds} seeds", model, trained=trained)
            if DISTILLED in recipe.evaluation.arms:
                n = recipe.tailoring.n_examples * recipe.training.n_epochs * n_seeds
                longest = recipe.tailoring.max_new_tokens
                self.answers("training", f"answers of student {name} in distillation", model, n, longest)
                self.add("training", f"the teacher reads these of {name}", recipe.models.teacher, read=n * text)

    def evaluation(self) -> None:
        recipe, settings = self.recipe, self.recipe.evaluation
        for name, model in recipe.models.students.items():
            n_models = len(recipe.trained_arms(name)) * len(recipe.seeds) + ("base" in settings.arms)
            n = settings.n_items * len(settings.shots) * n_models
            work = f"answers, {n_models} models"
            self.answers("evaluation", work, model, n, settings.max_new_tokens, settings.shots)
            if recipe.is_open:
                self.answers("evaluation", JUDGED, recipe.models.judge, 2 * n, settings.max_new_tokens)


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
    # Role, model, bytes a parameter of all weights in training, rank of an adapter.
    roles = [("teacher", models.teacher, TRAINING_BYTES + held, recipe.alignment.lora.rank)]
    rank = recipe.training.lora.rank
    roles += [(f"student {name}", ref, TRAINING_BYTES, rank) for name, ref in models.students.items()]
    if models.judge and recipe.engines.judge.engine != "openai":
        roles.append(("judge", models.judge, 0, 0))
    rows = []
    for role, model, whole, rank in roles:
        n, a_parameter = parameters_of(model), held + ADAPTER_PART * TRAINING_BYTES if rank else whole
        needs = {"generate": n * held, "train": n * a_parameter}
        rows.append({"role": role, "model": model, "parameters": n} | needs)
    return rows


def measure(recipe: Recipe) -> dict[str, Throughput]:
    """Return what this machine does with every model of the recipe whose folder is here, by folder.

    A full batch of validation questions is answered greedily by the engine of the model's role. A server is not tried
    out, since that may cost money, and transformers stands in for it.

    Raises:
        ModelError: If a model's folder is there but cannot be loaded.
    """
    roles: dict[str, Role] = {ref: role for role in reversed(ROLES) for ref in models_of(recipe, role)}
    here = [ref for ref in roles if (project_root() / Path(ref).expanduser()).is_dir()]
    return {ref: _tried_at_once(recipe, roles[ref], ref) for ref in here}


def _tried_at_once(recipe: Recipe, role: Role, ref: str) -> Throughput:
    """Return what all processes of a run do together: beside one another each is slower than alone."""
    if choice_of(recipe, role, compared=True).engine != "transformers":
        return _tried(recipe, role, ref)  # vLLM works in one process with all cores; neither is a server
    jobs = [Job(f"{ref}, tried out", (recipe, role, ref))] * n_processes(recipe.compute.workers)
    tried = run_jobs(_tried, jobs, recipe.compute.workers, "trying out")
    return tried[0]._replace(new=sum(one.new for one in tried), read=sum(one.read for one in tried))


def _tried(recipe: Recipe, role: Role, ref: str) -> Throughput:
    tokenizer = load_tokenizer(resolve(ref))
    longest = recipe.drafting.max_new_tokens if role == "teacher" else recipe.evaluation.max_new_tokens
    with closing(start_engine(recipe, role, ref, compared=True)) as engine:
        requests = [Request(engine.render(prompt)) for prompt in _questions(recipe)]
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
    return Throughput(new, n_read / reading, n_new / len(requests), prompt=n_read / len(requests))


def _questions(recipe: Recipe) -> list[str]:
    """Return prompts of the recipe's validation questions, one batch at most, from all tasks alike."""
    tasks, size = load_tasks(recipe).values(), recipe.compute.batch_size
    columns = [(task, task.validation["question"].head(-(-size // len(tasks)))) for task in tasks]
    named = [(task, question) for task, column in columns for question in column][:size]
    return [prompts.naive_prompt(task.description, question, task.prompts) for task, question in named]


def _timed(work, *arguments):
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result
