"""What a recipe will cost before it runs: generations, tokens, time and memory, stage by stage; all of it estimates."""

import json
import math
import os
import re
import struct
import textwrap
from pathlib import Path

import pandas as pd

from workbench.recipe import ALIGNED_ARMS, Recipe, project_root
from workbench.simulation import ASSUMED, Design, World, design_of, detection_in_words, seen
from workbench.store import open_run

N_TECHNIQUES = 4  # rationales per draft question
SPARE = 1.25  # calls for questions, for each question kept
# Tokens of a question and of what frames it; completions are taken to use this part of max_new_tokens.
QUESTION_TOKENS = {"pocket": 45, "real": 90}
COMPLETION_PART = {"pocket": 0.6, "real": 0.5}
# One CPU core with pocket models, as measured: generated, read and trained tokens a second, for a million parameters.
CPU_RATES = {"new": 4_000.0, "read": 60_000.0, "trained": 11_000.0}
STAGE_START_S = 6.0  # processes that import torch and load models
# One GPU of 312 TFLOP/s (A100) in bfloat16: the part of that which generating, reading and training reach.
GPU_FLOPS = 312e12
GPU_MEMORY = 80e9
GPU_PARTS = {"new": 0.15, "read": 0.4, "trained": 0.35}
# Bytes a parameter: AdamW with float32 master weights and moments; DPO holds the frozen reference too.
TRAINING_BYTES, REFERENCE_BYTES = 16, {"float32": 4, "bfloat16": 2}
STAGES = ("drafting", "probing", "alignment", "training", "evaluation")


def estimate(recipe: Recipe) -> pd.DataFrame:
    """Return one row for each kind of work, in the order of the stages.

    Returns:
        Columns stage, work, model, generations, read (tokens of prompts), new (generated tokens), trained (tokens, all
        epochs), seconds (of one GPU for real models, of this machine for pocket ones).
    """
    rows = [*_drafting(recipe), *_probing(recipe), *_alignment(recipe), *_training(recipe), *_evaluation(recipe)]
    frame = pd.DataFrame(rows).fillna(0)
    frame["seconds"] = [_seconds(recipe, row) for row in frame.to_dict("records")]
    return frame


def n_items(recipe: Recipe, stage: str) -> int:
    """Return about how many items a stage records; 0 for training, which records none."""
    rows = {"drafting": _drafting, "probing": _probing, "alignment": _alignment, "evaluation": _evaluation}
    return int(sum(row.get("generations", 0) for row in rows[stage](recipe))) if stage in rows else 0


def _sizes(recipe: Recipe) -> tuple[int, int, int, int]:
    """Return the numbers of tasks, students and seeds, and the tokens of a question."""
    tokens = QUESTION_TOKENS[recipe.profile]
    return len(recipe.tasks.names), len(recipe.models.students), len(recipe.seeds), tokens


def _written(recipe: Recipe, max_new_tokens: int) -> int:
    return max(1, round(max_new_tokens * COMPLETION_PART[recipe.profile]))


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
    per_call, shown = recipe.drafting.questions_per_call, recipe.drafting.n_seed_questions
    tokens = _sizes(recipe)[3]
    calls = max(1, n_wanted / per_call * SPARE) * n_sets
    return _row(stage, "questions", recipe.models.teacher, calls, (shown + 1) * tokens, per_call * tokens)


def _drafting(recipe: Recipe) -> list[dict]:
    n_tasks, _, _, tokens = _sizes(recipe)
    n, new = recipe.drafting.n_questions, _written(recipe, recipe.drafting.max_new_tokens)
    return [
        _questions(recipe, "drafting", n, n_tasks),
        _row("drafting", "rationales", recipe.models.teacher, n * N_TECHNIQUES * n_tasks, 2 * tokens, new),
    ]


def _probing(recipe: Recipe) -> list[dict]:
    n_tasks, _, _, tokens = _sizes(recipe)
    settings, new = recipe.preference_set, _written(recipe, recipe.evaluation.max_new_tokens)
    rows = []
    if settings.selection == "irt":
        shown = sum(settings.shots) / len(settings.shots) * (tokens + new)
        asked = settings.n_validation * len(settings.shots) * n_tasks
        for model in settings.responders or recipe.models.students.values():
            rows.append(_row("probing", "answers for the preference set", model, asked, 2 * tokens + shown, new))
    drafts = recipe.drafting.n_questions * N_TECHNIQUES * n_tasks
    for model in recipe.models.students.values():
        rows.append(_row("probing", "one-shot probes", model, drafts * settings.n_items, 3 * tokens + new, new))
    return rows


def _alignment(recipe: Recipe) -> list[dict]:
    n_tasks, n_students, n_seeds, tokens = _sizes(recipe)
    teacher, new = recipe.models.teacher, _written(recipe, recipe.tailoring.max_new_tokens)
    per_task = recipe.drafting.n_questions + min(
        recipe.pairs.n_question_pairs, int(recipe.drafting.n_questions * recipe.pairs.quantile)
    )
    aligned = [arm for arm in recipe.evaluation.arms if arm in ALIGNED_ARMS]
    n_pairs = per_task * n_tasks * n_students
    rows = [
        {
            "stage": "alignment",
            "work": f"DPO, {len(aligned)} teachers for each of {n_students} students",
            "model": teacher,
            "trained": round(n_pairs * 2 * (2 * tokens + new) * recipe.alignment.n_epochs * len(aligned)),
        }
    ]
    writers = len(aligned) * n_students + ("untailored" in recipe.evaluation.arms)
    n_sets = writers * n_seeds * n_tasks
    n_examples = recipe.tailoring.n_examples * n_sets
    asked = _questions(recipe, "alignment", recipe.tailoring.n_examples, n_sets)
    written = _row("alignment", "tailored and control rationales", teacher, n_examples, 2 * tokens, new)
    return [*rows, asked | {"work": "tailored and control questions"}, written]


def _training(recipe: Recipe) -> list[dict]:
    n_tasks, _, n_seeds, tokens = _sizes(recipe)
    new = _written(recipe, recipe.tailoring.max_new_tokens)
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


def _evaluation(recipe: Recipe) -> list[dict]:
    n_tasks, _, n_seeds, tokens = _sizes(recipe)
    new = _written(recipe, recipe.evaluation.max_new_tokens)
    shots = recipe.evaluation.shots
    shown = sum(shots) / len(shots) * (tokens + new)
    rows = []
    for name, model in recipe.models.students.items():
        n_models = len(recipe.trained_arms(name)) * n_seeds + ("base" in recipe.evaluation.arms)
        asked = recipe.evaluation.n_items * n_tasks * len(shots) * n_models
        rows.append(_row("evaluation", f"answers, {n_models} models", model, asked, 2 * tokens + shown, new))
    return rows


def _seconds(recipe: Recipe, row: dict) -> float:
    """Return the seconds of one kind of work: of this machine for pocket models, of one GPU for real ones."""
    n = {kind: row[kind] for kind in ("new", "read", "trained")}
    parameters = parameters_of(row["model"])
    if recipe.profile == "pocket":
        cores = recipe.compute.workers or os.cpu_count() or 1
        return sum(n[kind] / CPU_RATES[kind] for kind in n) * parameters / 1e6 / cores
    # A token costs 2 operations a parameter forwards and 4 backwards; DPO adds a forward pass of the reference.
    costs = {"new": 2, "read": 2, "trained": 8 if row["stage"] == "alignment" else 6}
    return sum(n[kind] * costs[kind] * parameters / (GPU_FLOPS * GPU_PARTS[kind]) for kind in n)


def parameters_of(ref: str) -> float:
    """Return how many parameters a model has: counted in its folder, else read from its name, else a usual size.

    Example:
        >>> parameters_of("somebody/Model-2.5b-it")
        2500000000.0
    """
    path = Path(ref).expanduser()
    folder = path if path.is_absolute() else project_root() / path
    if counted := sum(map(_count_parameters, folder.glob("*.safetensors"))):
        return float(counted)
    sizes = re.findall(r"(?<![a-z\d.])(\d+(?:\.\d+)?)\s?([bm])(?![a-z\d])", ref.lower())
    usual = 1e6 if "pocket" in ref.lower() else 7e9
    return max((float(n) * (1e9 if unit == "b" else 1e6) for n, unit in sizes), default=usual)


def _count_parameters(path: Path) -> int:
    """Return the number of values in a safetensors file, from its header alone."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    total = 0
    for name, entry in header.items():
        if name != "__metadata__":
            size = 1
            for n in entry["shape"]:
                size *= n
            total += size
    return total


def memory(recipe: Recipe) -> list[dict]:
    """Return for each model what holding it takes to generate and to train, in bytes."""
    held = REFERENCE_BYTES[recipe.models.dtype]
    roles = {"teacher": recipe.models.teacher, **{f"student {n}": ref for n, ref in recipe.models.students.items()}}
    rows = []
    for role, model in roles.items():
        parameters = parameters_of(model)
        training = TRAINING_BYTES + (held if role == "teacher" else 0)
        rows.append(
            {
                "role": role,
                "model": model,
                "parameters": parameters,
                "generate": parameters * held,
                "train": parameters * training,
            }
        )
    return rows


def world_of(run: str, design: Design) -> World:
    """Return how the answers of a finished run vary, those of its first student; what is assumed when run is "".

    Raises:
        StoreError: If there is no such run or its evaluation is not finished.
        VerdictError: If its predictions lack an arm or the primary shots of the design.
    """
    if not run:
        return ASSUMED
    work = open_run(run)
    predictions = work.stage("evaluation").read("predictions")
    student = next(iter(work.recipe.models.students))
    return seen(predictions[predictions["student"] == student], design, f"seen in run {run}, student {student}")


def in_words(recipe: Recipe, run: str = "", detect: float = 0.0) -> str:
    """Return the plan as text: models, stages, totals, what the estimate rests on, and what the verdict can find.

    Args:
        run: A finished run whose spread over seeds and items is taken; "" for the spread that is assumed.
        detect: The true difference wanted, as a share; 0 for the recipe's margin.
    """
    design = design_of(recipe)
    finds = detection_in_words(world_of(run, design), design, detect or design.margin)
    frame = estimate(recipe)
    pocket = recipe.profile == "pocket"
    lines = [f"Plan of recipe {recipe.name} ({recipe.profile} models). All numbers are estimates.", ""]
    lines += ["Models                                              parameters   to generate   to train"]
    for row in memory(recipe):
        name = f"{row['role']}: {row['model']}"
        held = f"{_bytes(row['generate']):>11}{_bytes(row['train']):>11}"
        lines.append(f"  {name:<48}{_count(row['parameters']):>12}   {held}")
    unit = "time" if pocket else "GPU hours"
    lines += ["", f"{'Stage and work':<54}{'generations':>12}{'new tokens':>12}{'trained':>10}{unit:>11}"]
    for stage in STAGES:
        own = frame[frame["stage"] == stage]
        lines.append(f"{stage:<54}{'':>34}{_time(own['seconds'].sum() + (STAGE_START_S if pocket else 0), pocket):>11}")
        for row in own.to_dict("records"):
            counts = f"{_count(row['generations']):>12}{_count(row['new']):>12}{_count(row['trained']):>10}"
            lines.append(f"  {_short(row['work'] + ', ' + Path(row['model']).name, 50):<52}{counts}")
    seconds = frame["seconds"].sum() + (STAGE_START_S * len(STAGES) if pocket else 0)
    totals = (
        f"{_count(frame['generations'].sum()):>12}{_count(frame['new'].sum()):>12}{_count(frame['trained'].sum()):>10}"
    )
    lines += [f"{'Total':<54}{totals}{_time(seconds, pocket):>11}", "", textwrap.fill(_basis(recipe), 100)]
    lines += ["", "What the verdict can find", finds]
    return "\n".join(lines)


def _basis(recipe: Recipe) -> str:
    if recipe.profile == "pocket":
        cores = recipe.compute.workers or os.cpu_count() or 1
        return (
            f"Time on this machine with {cores} processes. Assumed for one core and a million parameters: "
            f"{CPU_RATES['new']:,.0f} generated, {CPU_RATES['read']:,.0f} read and {CPU_RATES['trained']:,.0f} trained "
            "tokens a second. Finished items are reused, so a second run takes less."
        )
    largest = max(memory(recipe), key=lambda row: row["train"])
    n_gpus = math.ceil(largest["train"] / GPU_MEMORY)
    return (
        f"GPU hours of one A100 (80 GB, {GPU_FLOPS / 1e12:.0f} TFLOP/s in bfloat16), assuming that generating reaches "
        f"{GPU_PARTS['new']:.0%} of that, reading prompts {GPU_PARTS['read']:.0%} and training "
        f"{GPU_PARTS['trained']:.0%}, {QUESTION_TOKENS['real']} tokens a question and completions of half of "
        "max_new_tokens. Memory to train is for full fine-tuning with AdamW in mixed precision; adapters need less. "
        f"Parameters are read from the names. Training the {largest['role']} in full needs {n_gpus} such GPUs at once."
    )


def _short(text: str, n: int) -> str:
    return text if len(text) <= n else text[: n - 3] + "..."


def _count(n: float) -> str:
    if not n:
        return "-"
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:,.0f}"


def _bytes(n: float) -> str:
    return f"{n / 1e9:.0f} GB" if n >= 1e10 else f"{n / 1e9:.1f} GB" if n >= 1e8 else f"{n / 1e6:.0f} MB"


def _time(seconds: float, pocket: bool) -> str:
    if not pocket:
        return f"{seconds / 3600:,.1f}"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
