"""How often does the verdict err? Whole runs are simulated, every arm, item, seed and number of shots, and decided on.

How the runs are simulated stands in simulation.py. The decisions are made by the functions that the verdict uses, for
many runs at once; some of the runs also go through the verdict itself, which must decide the same.

    workbench calibrate RUN

At the spread assumed without a run (2 points over seeds, 10 over items of an arm), 2,000 runs a row, level 95 %:
arte-demo (3 seeds, 200 items) said "better" in 0.9 % of the runs without a difference, in 1.3 % when seeds differed
twice as much, and found 10 points in 40 %; coverage was 97.1 to 98.2 %. arte (5 seeds, 400 items) said it in 1.7 and
2.3 %, found 5 points in 46 % and 10 points in 96 %, said "no difference" in 3.4 % at the margin;
coverage 95.0 to 96.5 %.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench.inference import (
    BETTER,
    SAME,
    UNDECIDED,
    WORSE,
    Spread,
    decide,
    half_width,
    sign_flip_p_values,
    spread,
    wilson,
)
from workbench.simulation import Design, Simulated, World, predictions_of, simulate
from workbench.verdict import VerdictError, verdict

SHORT = {BETTER: "better", WORSE: "worse", SAME: "no difference", UNDECIDED: "undecided"}
CHUNK = 1_000_000  # answers simulated at once


class Decided(NamedTuple):
    """The decisions on many runs, with the primary difference and its half width.

    compared has one list a comparison, each by itself; adjusted the further comparisons, corrected for their number by
    Holm's method; tasks one list a task, corrected likewise.
    """

    compared: list[list[str]]
    adjusted: list[list[str]]
    tasks: list[list[str]]
    difference: np.ndarray
    half: np.ndarray


def decisions(run: Simulated, design: Design) -> Decided:
    """Decide on every simulated run as the verdict does, through the same intervals, tests and rule.

    What the verdict works out besides (exact p-values, how much more would settle it) is left out.
    """
    tables = [_difference(run, design, other, shots) for other, shots in design.compared]
    spreads = [spread(table, design.columns) for table in tables]
    found = []
    for of in spreads:
        half, inner = half_width(of, design.alpha), half_width(of, 2 * design.alpha)
        found.append([decide(*row, design.margin) for row in zip(of.mean, half, inner, strict=True)])
    held = _corrected(tables[1:], spreads[1:], design)
    return Decided(found, held, _per_task(tables[0], design), spreads[0].mean, half_width(spreads[0], design.alpha))


def _difference(run: Simulated, design: Design, other: str, shots: int) -> np.ndarray:
    return run.answers[design.a, shots].astype(np.int8) - run.answers[other, shots].astype(np.int8)


def _per_task(table: np.ndarray, design: Design) -> list[list[str]]:
    """Decide task by task, Holm's correction included; shape of the table (repeats, n_seeds, items)."""
    starts = range(0, len(design.tasks) * design.n_items, design.n_items)
    tables = [table[..., start : start + design.n_items] for start in starts]
    return _corrected(tables, [spread(own, ["task"] * design.n_items) for own in tables], design)


def _corrected(tables: list[np.ndarray], spreads: list[Spread], design: Design) -> list[list[str]]:
    """Decide on several comparisons with Holm's correction, as `verdict.adjusted` does, for many runs at once."""
    m = len(tables)
    if not m:
        return []
    levels = []
    for table, of in zip(tables, spreads, strict=True):
        flips = sign_flip_p_values(table.sum(axis=1, dtype=int))
        # p <= alpha / k for how many k: Holm compares the smallest p with alpha / m, the next with alpha / (m - 1).
        below = [
            (flips <= design.alpha / k) & (np.abs(of.mean) >= half_width(of, design.alpha / k)) for k in range(1, m + 1)
        ]
        levels.append(np.sum(below, axis=0))
    order = np.argsort(-np.array(levels), axis=0, kind="stable")
    passed = np.take_along_axis(np.array(levels), order, axis=0) >= np.arange(m, 0, -1)[:, None]
    rejected = np.empty_like(passed)
    np.put_along_axis(rejected, order, np.logical_and.accumulate(passed, axis=0), axis=0)
    found = []
    for of, clear in zip(spreads, rejected, strict=True):
        half, inner = half_width(of, design.alpha), half_width(of, 2 * design.alpha)
        wide = np.where(clear | (np.abs(of.mean) <= half), half, 1.0)
        found.append([decide(*row, design.margin) for row in zip(of.mean, wide, inner, strict=True)])
    return found


def verdict_on(run: Simulated, design: Design, repeat: int) -> tuple[list[str], list[str], list[str]]:
    """Pass one simulated run through the verdict itself; return what it decides, in the order of `Decided`."""
    settings = {
        "arms": list(design.arms),
        "shots": list(design.shots),
        "margin": design.margin,
        "alpha": design.alpha,
        "primary": {"a": design.a, "b": design.b, "shots": design.shots[0]},
    }
    result = verdict(predictions_of(run, design, repeat), settings, recipe="", run="", models="", student="s")
    tasks = {row["task"]: row["decision"] for row in result["per_task"]}
    compared = result["comparisons"]
    held = [row["decision_adjusted"] for row in compared[1:]]
    return [row["decision"] for row in compared], held, [tasks[name] for name in design.tasks]


def calibrate(
    world: World,
    design: Design,
    repeats: int = 2000,
    differences: Sequence[float] | None = None,
    seed: int = 0,
    n_checked: int = 2,
) -> pd.DataFrame:
    """Return how often each decision is reached, one row a true difference.

    Args:
        world: How answers vary.
        design: What is decided on.
        repeats: Simulated runs a row.
        differences: True differences as shares; by default 0, half the margin, the margin and twice the margin, and 0
            once more with seeds that differ twice as much, by two points at least.
        seed: Of the simulation.
        n_checked: So many runs of each row also go through the verdict itself.

    Returns:
        Columns difference, seed_sd, repeats, the shares better, worse, no difference and undecided of the primary
        comparison, coverage of its interval, half_width (mean), any_other_alone (at least one further comparison says
        "better" when each is taken alone), any_other_better (the same, by Holm), any_task_better (at least one task, by
        Holm).

    Raises:
        VerdictError: If the verdict decides otherwise than was counted, which would be an error of ours.
    """
    if differences is None:
        steps = [(size * design.margin, world) for size in (0, 0.5, 1, 2)]
        steps.append((0.0, world._replace(seed_sd=max(2 * world.seed_sd, 0.02))))
    else:
        steps = [(size, world) for size in differences]
    generator = np.random.default_rng(seed)
    return pd.DataFrame([_row(where, design, size, generator, repeats, n_checked) for size, where in steps])


def _row(world, design, difference, generator, repeats, n_checked) -> dict:
    n_answers = len(design.arms) * len(design.shots) * design.n_seeds * design.n_items * len(design.tasks)
    parts, true = [], 0.0
    for size in _chunks(repeats, max(1, CHUNK // n_answers)):
        run = simulate(world, design, difference, generator, size)
        parts.append(decisions(run, design))
        true = run.difference
        for repeat in range(min(n_checked, size) if len(parts) == 1 else 0):
            first = parts[0]
            counted = [[row[repeat] for row in rows] for rows in (first.compared, first.adjusted, first.tasks)]
            if list(verdict_on(run, design, repeat)) != counted:
                raise VerdictError("The verdict decides otherwise than the simulation counted; please report it.")
    primary, *others = (np.concatenate([part.compared[i] for part in parts]) for i in range(len(design.compared)))
    held, tasks = (np.concatenate([getattr(p, name) for p in parts], axis=-1) for name in ("adjusted", "tasks"))
    means, halves = (np.concatenate([getattr(part, name) for part in parts]) for name in ("difference", "half"))
    return {
        "difference": true,
        "seed_sd": world.seed_sd,
        "repeats": repeats,
        **{short: float((primary == said).mean()) for said, short in SHORT.items()},
        "coverage": float((np.abs(means - true) <= halves).mean()),
        "half_width": float(halves.mean()),
        "any_other_alone": float((np.array(others) == BETTER).any(axis=0).mean()) if others else 0.0,
        "any_other_better": float((held == BETTER).any(axis=0).mean()) if others else 0.0,
        "any_task_better": float((tasks == BETTER).any(axis=0).mean()),
    }


def _chunks(total: int, size: int) -> Iterator[int]:
    edges = [*range(0, total, size), total]
    yield from (end - start for start, end in pairwise(edges))


def in_words(table: pd.DataFrame, world: World, design: Design) -> str:
    """Return the table of `calibrate` as text, in per cent with Monte Carlo standard errors, and what it says."""
    n = int(table["repeats"].iloc[0])
    shares = [*SHORT.values(), "coverage", "any_other_alone", "any_other_better", "any_task_better"]
    shown = pd.DataFrame({"true": [f"{100 * d:+.1f}" for d in table["difference"]]})
    shown["seed sd"] = [f"{100 * sd:.1f}" for sd in table["seed_sd"]]
    for name in shares:
        shown[name.replace("_", " ")] = [f"{100 * p:.1f} ±{100 * _error(p, n):.1f}" for p in table[name]]
    shown["half width"] = [f"{100 * half:.1f}" for half in table["half_width"]]
    facts = (
        f"{design.a} minus {design.b}, {design.shots[0]} shots; {design.n_seeds} seeds, {design.n_items} items for "
        f"each of {len(design.tasks)} tasks, margin {100 * design.margin:g} points, "
        f"level {100 * (1 - design.alpha):g} %. "
        f"Spread {world.in_words()}. {n:,} simulated runs a row; shares in per cent ± Monte Carlo standard error. "
        "'any other alone': at least one of the further comparisons, each taken alone; 'any other better': the same, "
        "corrected for their number by Holm's method; 'any task better': at least one task, corrected likewise."
    )
    said = _findings(table, design, n)
    return "\n\n".join([textwrap.fill(facts, 100), shown.to_string(index=False), textwrap.fill(said, 100)])


def _findings(table: pd.DataFrame, design: Design, n: int) -> str:
    said = []
    for row in table[table["difference"] == 0].to_dict("records"):
        low, high = wilson(row["better"], n)
        said.append(
            f"With no true difference and a seed spread of {100 * row['seed_sd']:.1f} points, 'better' is said falsely "
            f"in {100 * row['better']:.1f} % of the runs (95 % interval {100 * low:.1f} to {100 * high:.1f} %; at most "
            f"{100 * design.alpha:g} % is wanted). At least one further comparison says it falsely in "
            f"{100 * row['any_other_alone']:.1f} % when each is taken alone, in {100 * row['any_other_better']:.1f} % "
            "by Holm's correction."
        )
    for row in table[(table["difference"] - design.margin).abs() < 1e-9].to_dict("records"):
        low, high = wilson(row["no difference"], n)
        said.append(
            "At a true difference of the margin, 'no difference' is said falsely in "
            f"{100 * row['no difference']:.1f} % ({100 * low:.1f} to {100 * high:.1f} %)."
        )
    return " ".join(said)


def _error(share: float, n: int) -> float:
    """Return the Monte Carlo standard error of a share; one more hit and one more miss keep it from zero."""
    p = (share * n + 1) / (n + 2)
    return float(np.sqrt(p * (1 - p) / n))
