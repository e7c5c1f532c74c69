"""What a recipe will cost before it runs, in words: models, memory, stages, time, and what its verdict can find."""

import os
import textwrap
from collections.abc import Iterable
from pathlib import Path

import psutil

from workbench.models.backends import check
from workbench.models.openai_engine import URL_VARIABLE
from workbench.models.start import models_of
from workbench.report.cost_estimate import JUDGED, RATES, estimate, memory
from workbench.runs.recipe import Recipe, project_root
from workbench.runs.recipe_parts import ROLES
from workbench.runs.run import open_run
from workbench.tasks.task import load_tasks
from workbench.verdict.power import (
    ASSUMED,
    ExperimentDesign,
    VarianceModel,
    design_of,
    detection_in_words,
    estimate_variance,
)

# What asks a role's server, by stage or by work.
ASKED_OF = {"teacher": ("stage", "drafting"), "student": ("stage", "probing"), "judge": ("work", JUDGED)}
STEPS = {
    "drafting": ("questions", "drafts", "exemplars"),
    "probing": (
        *("preference_set", "reference", "probes", "influences", "signals", "labels", "held-out"),
        *("round-1/answers", "round-1/difficulty", "judge/steady", "judge/steered"),
        *("held-out/teacher", "held-out/sampled", "held-out/greedy", "held-out/difficulty", "held-out/judged"),
    ),
    "alignment": (
        *("pairs", "reviewed", "teachers", "examples"),
        *("round-1/prompts", "round-1/samples", "round-1/rewards", "round-1/mined"),
    ),
    "training": ("rows", "students"),
    "evaluation": ("predictions",),
}


def world_of(run: str, design: ExperimentDesign) -> VarianceModel:
    """Return how the answers of a finished run vary, those of its first student; what is assumed when run is "".

    Raises:
        RunError: If there is no such run or its evaluation is not finished.
        DataError: If its predictions lack an arm or the primary shots of the design.
    """
    if not run:
        return ASSUMED
    work = open_run(run)
    predictions = work.read("predictions")
    student = next(iter(work.recipe.models.students))
    return estimate_variance(
        predictions[predictions["student"] == student], design, f"seen in run {run}, student {student}"
    )


def in_words(recipe: Recipe, run: str = "", detect: float = 0.0) -> str:
    """Return the plan as text: models, stages, totals, what the estimate rests on, and what the verdict can find.

    Args:
        recipe: What is to be done.
        run: A finished run whose spread is taken and whose times are put beside the estimate; "" for assumed ones.
        detect: The true difference wanted, as a share; 0 for the recipe's margin.
    """
    design = design_of(recipe)
    finds = detection_in_words(world_of(run, design), design, detect or design.margin)
    lines = [f"Plan of recipe {recipe.name} ({recipe.profile} models). All numbers are estimates.", ""]
    lines += [*_models(recipe), "", *_engines(recipe), "", *_stages(recipe, run), ""]
    lines += [textwrap.fill(_basis(recipe), 100), "", "What the verdict can find", finds]
    return "\n".join(lines + _refusal(recipe))


def _refusal(recipe: Recipe) -> list[str]:
    """Return why the run would be refused for its tasks, as far as their items are in this machine."""
    files = [project_root() / Path(source.path).expanduser() for source in recipe.tasks.sources.values() if source.path]
    try:
        if all(file.exists() for file in files):
            load_tasks(recipe)
        if all((project_root() / ref).is_dir() for role in ROLES for ref in models_of(recipe, role)):
            check(recipe)
    except (ValueError, OSError) as fault:
        return ["", f"As things stand the run would be refused: {fault}"]
    return []


def _models(recipe: Recipe) -> list[str]:
    """Return a line for each model, and what will not fit into this machine."""
    lines = ["Models                                              parameters   to generate   to train"]
    rows, has = memory(recipe), memory_here()
    for row in rows:
        name = f"{row['role']}: {row['model']}"
        held = f"{_bytes(row['generate']):>11}{_bytes(row['train']) if row['train'] else '-':>11}"
        lines.append(f"  {name:<48}{_count(row['parameters']):>12}   {held}")
    lines.append(f"Memory here: {', '.join(f'{_bytes(size)} {where}' for where, size in has.items())}.")
    for work in ("generate", "train"):
        too_large = [row["role"] for row in rows if row[work] > max(has.values())]
        if too_large:
            lines.append(f"Does not fit here to {work}: {', '.join(too_large)}.")
    return lines


def _engines(recipe: Recipe) -> list[str]:
    """Return a line for each role's engine: what it can do, and what a server's prices make of the estimate."""
    lines, frame = ["Engines"], estimate(recipe)
    for role, (column, name) in ASKED_OF.items():
        if role == "judge" and not recipe.models.judge:
            continue
        choice = getattr(recipe.engines, role)
        line = f"  {role:<8} {choice.engine}; can also: {', '.join(choice.capabilities) or 'nothing but write'}"
        line += "" if choice.engine == "transformers" else "; times below are those of transformers"
        if choice.engine == "openai":
            asked = frame[frame[column] == name]
            n_in, n_out = asked["read"].sum(), asked["new"].sum()
            cost = (n_in * choice.price_in + n_out * choice.price_out) / 1e6
            line += f"; {name}: it reads {_count(n_in)} tokens and writes {_count(n_out)}"
            line += f", {cost:,.2f} in money" if cost else ""
            over = 0 < choice.budget_tokens < n_in + n_out
            line += f"; over the budget of {choice.budget_tokens:g}, so it will stop on the way" if over else ""
            line += "" if choice.base_url or os.environ.get(URL_VARIABLE) else f"; set base_url or {URL_VARIABLE} first"
            compared = "; what is compared with trained models is computed by transformers here"
            line += compared if role != "judge" else ""
        lines.append(line)
    return lines


def memory_here() -> dict[str, float]:
    """Return the bytes that are free in this machine and on its GPUs."""
    import torch

    has = {"free in this machine": float(psutil.virtual_memory().available)}
    if torch.cuda.is_available():
        free = sum(torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count()))
        has[f"free on {torch.cuda.device_count()} GPUs"] = float(free)
    return has


def _stages(recipe: Recipe, run: str) -> list[str]:
    """Return the work of each stage with its total, and beside it what a run took."""
    frame, here = estimate(recipe), recipe.profile == "pocket"
    took = _took(run) if run else {}
    columns = ["generations", "new", "trained"]
    head = f"{'Stage and work':<54}{'generations':>12}{'new tokens':>12}{'trained':>10}"
    lines = [head + f"{'time' if here else 'GPU hours':>11}" + (f"{'took':>9}" if run else "")]
    for stage in STEPS:
        own = frame[frame["stage"] == stage]
        lines.append(f"{stage:<54}{'':>34}{_time(own['seconds'].sum(), here):>11}{_beside(took.get(stage))}")
        for row in own.to_dict("records"):
            work = f"{row['work']}, {Path(row['model']).name}"
            lines.append(f"  {work[:50]:<52}{_counts(row[name] for name in columns)}")
    total = _time(frame["seconds"].sum(), here)
    lines.append(f"{'Total':<54}{_counts(frame[columns].sum())}{total:>11}{_beside(sum(took.values()))}")
    if took:
        lines.append(f"What run {run} took is less where it found items or models of other runs finished.")
    return lines


def _took(run: str) -> dict[str, float]:
    """Return the seconds of each stage of a run, as far as its steps are finished."""
    work = open_run(run)
    stage_of = {step: stage for stage, steps in STEPS.items() for step in steps}
    parts, seconds = {"pool": "drafting", "held-out": "probing"}, dict.fromkeys(STEPS, 0.0)
    for step in work.steps():
        stage = stage_of.get(step) or parts.get(step.partition("/")[0])
        if step.startswith("round-") and not stage:
            stage = "training" if step.endswith("/students") else "alignment"
        if stage:
            seconds[stage] += work.manifest(step).get("seconds", 0.0)
    return seconds


def _beside(seconds: float | None) -> str:
    return f"{_time(seconds, True):>9}" if seconds else ""


def _counts(numbers: Iterable[float]) -> str:
    return "".join(f"{_count(n):>{width}}" for n, width in zip(numbers, (12, 12, 10), strict=True))


def _basis(recipe: Recipe) -> str:
    """Return what the estimate rests on."""
    rates, rest = RATES[recipe.profile], "; training a token is taken as three times the work of reading one. "
    if recipe.profile == "pocket":
        return (
            f"Time on this machine, start of the notebooks aside. Assumed: one core generates {rates.new:,.0f} "
            f"and reads {rates.read:,.0f} tokens a second with a million parameters{rest}Finished items are reused, so "
            "a second run takes less. Models that are here are tried out by: workbench rehearse."
        )
    return (
        f"GPU hours of one A100, assuming that it generates {_count(rates.new)} and reads {_count(rates.read)} "
        f"tokens a second with a million parameters{rest}Parameters of models that are not here are read from their "
        "names; memory to train is AdamW's in mixed precision, of all weights or of an adapter, without activations. "
        "Models that are here are tried out by: workbench rehearse."
    )


def _count(n: float) -> str:
    if n < 1e6:
        return f"{n:,.0f}" if n else "-"
    return f"{n / 1e9:.3g} B" if n >= 1e9 else f"{n / 1e6:.3g} M"


def _bytes(n: float) -> str:
    return f"{n / 1e9:.0f} GB" if n >= 1e10 else f"{n / 1e9:.1f} GB" if n >= 1e8 else f"{n / 1e6:.0f} MB"


def _time(seconds: float, pocket: bool) -> str:
    if not pocket:
        return f"{seconds / 3600:,.1f}"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
