"""How often does the verdict err? Whole runs are simulated, every arm, item, seed and number of shots, and decided on.

The decisions are made by the functions that the verdict uses, for many runs at once; the study `calibrate` shows them
for a recipe. An answer is right when a normal score passes a threshold. The score adds up how easy the item is (for all
arms), how well it suits the arm, what the seed did to the arm, and chance; the threshold sets the accuracy. So the true
difference is known exactly and no probability leaves [0, 1]. How much each part weighs is taken from a finished run or
assumed. Seeds shift an arm on all tasks alike, and arms are taken to be drawn independently of each other.

At the spread assumed without a run (2 points over seeds, 10 over items of an arm), 2,000 runs a row, level 95 %:
arte-demo (3 seeds, 200 items) said "better" in 0.9 % of the runs without a difference, in 1.3 % when seeds differed
twice as much, and found 10 points in 40 %; coverage was 97.1 to 98.2 %. arte (5 seeds, 400 items) said it in 1.7 and
2.3 %, found 5 points in 46 % and 10 points in 96 %, said "no difference" in 3.4 % at the margin;
coverage 95.0 to 96.5 %.
"""

from __future__ import annotations

import textwrap
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, special, stats

from workbench.runs.errors import DataError
from workbench.runs.recipe import Recipe
from workbench.verdict import intervals
from workbench.verdict.intervals import BETTER, VarianceComponents, chance_of_better, decide, half_width, holm, spread
from workbench.verdict.verdict import answers, counted

SHORT = {BETTER: "better", intervals.WORSE: "worse", intervals.SAME: "no difference", intervals.UNDECIDED: "undecided"}
CHUNK = 1_000_000  # answers simulated at once


class ExperimentDesign(NamedTuple):
    """What of a recipe the decision depends on; n_items is per task, the first number of shots is the primary one."""

    a: str
    b: str
    arms: tuple[str, ...]
    shots: tuple[int, ...]
    tasks: tuple[str, ...]
    n_seeds: int
    n_items: int
    margin: float
    alpha: float

    @property
    def columns(self) -> np.ndarray:
        """The task of every item."""
        return np.repeat(np.asarray(self.tasks, dtype=object), self.n_items)

    @property
    def compared(self) -> list[tuple[str, int]]:
        """The other arm and the shots of every comparison, the primary one first."""
        others = [self.b, *(arm for arm in self.arms if arm not in (self.a, self.b))]
        return [(other, shots) for shots in self.shots for other in others]


def design_of(recipe: Recipe) -> ExperimentDesign:
    """Return what of a recipe the decision on its first student depends on."""
    rule, student = recipe.evaluation, next(iter(recipe.models.students))
    main, sizes = rule.primary, (len(recipe.seeds), rule.n_items)
    shots = (main.shots, *(n for n in rule.shots if n != main.shots))
    sets = (tuple(recipe.arms_of(student)), shots, tuple(recipe.tasks.names))
    return ExperimentDesign(main.a, main.b, *sets, *sizes, rule.margin, rule.alpha)


class VarianceModel(NamedTuple):
    """How answers vary, in standard deviations of an accuracy: over items for all arms, over items for one, over seeds.

    accuracy is that of every arm when nothing differs, by (task, shots).
    """

    accuracy: Mapping[tuple[str, int], float]
    difficulty_sd: float
    item_sd: float
    seed_sd: float
    source: str

    def accuracies(self, design: ExperimentDesign, shots: int) -> np.ndarray:
        """Return the accuracy on each task of a design, within 2 and 98 %; an unknown task counts as the mean."""
        usual = float(np.mean(list(self.accuracy.values())))
        return np.clip([self.accuracy.get((task, shots), usual) for task in design.tasks], 0.02, 0.98)

    def spread(self, design: ExperimentDesign) -> VarianceComponents:
        """Return what spread of the primary difference is to be expected when nothing differs."""
        p = self.accuracies(design, design.shots[0])
        shared = self.difficulty_sd**2 + self.item_sd**2 + self.seed_sd**2
        noise = 2 * max(float(np.mean(p * (1 - p))) - shared, 0.01)
        n_items, n_seeds = design.n_items * len(design.tasks), design.n_seeds
        ms_seed, ms_item = n_items * 2 * self.seed_sd**2 + noise, n_seeds * 2 * self.item_sd**2 + noise
        return VarianceComponents(0.0, ms_seed, ms_item, noise, n_seeds, n_items, len(design.tasks))

    def in_words(self) -> str:
        """Return where the spread comes from and what it is, in points of accuracy."""
        return (
            f"{self.source}: accuracy {100 * np.mean(list(self.accuracy.values())):.0f} %; standard deviations in "
            f"points: {100 * self.seed_sd:.1f} over seeds of one arm, {100 * self.item_sd:.1f} over items of one arm, "
            f"{100 * self.difficulty_sd:.1f} over items of all arms"
        )


# The middle of the settings that intervals.py was calibrated at.
ASSUMED = VarianceModel({("any", 0): 0.4}, 0.25 / 3**0.5, 0.1, 0.02, "assumed, no run was named")


def estimate_variance(predictions: pd.DataFrame, design: ExperimentDesign, source: str) -> VarianceModel:
    """Measure how the answers of a finished run vary, for one student.

    Variance components by the method of moments, averaged over the trained arms at the primary shots, none below zero.
    With few seeds the spread over seeds is itself uncertain: a table at twice that spread belongs beside the result.
    The design names arms and shots; its tasks and numbers need not be those of the predictions.
    """
    main = design.shots[0]
    tables = [answers(predictions, arm, main) for arm in design.arms if arm != "base"]
    if len({len(table) for table in tables}) > 1 or len(tables[0]) < 2:
        raise DataError("The trained arms need the same two or more seeds; evaluate all of them.")
    tasks = tables[0].columns.get_level_values("task")
    stack = np.stack([table.to_numpy() for table in tables])
    of = spread(stack, tasks)
    over_seeds = max(float(np.mean(of.ms_seed - of.ms_noise)) / of.n_items, 0.0)
    means = pd.DataFrame(stack.mean(axis=1).T, index=pd.Index(tasks, name="task"))
    within = (means - means.groupby(level="task").transform("mean")).to_numpy()
    products = within.T @ within / max(of.n_items - of.n_tasks, 1)
    over_items = max(float(np.mean(np.diag(products) - of.ms_noise / of.n_seeds)), 0.0)
    pairs = ~np.eye(len(tables), dtype=bool)
    shared = float(products[pairs].mean()) if pairs.any() else over_items
    shared = float(np.clip(shared, 0.0, over_items))
    own = counted(predictions)
    own = own[(own["arm"] == design.b) & own["shots"].isin(design.shots)]
    accuracy = {key: float(share) for key, share in own.groupby(["task", "shots"])["correct"].mean().items()}
    return VarianceModel(accuracy, shared**0.5, (over_items - shared) ** 0.5, over_seeds**0.5, source)


def _covariance(correlation: float, thresholds: np.ndarray) -> float:
    """Return the covariance of two answers whose scores correlate so, averaged over the thresholds.

    The bivariate normal distribution function at equal thresholds, by Owen's T.
    """
    alone = stats.norm.cdf(thresholds)
    ratio = np.sqrt((1 - correlation) / (1 + correlation))
    return float(np.mean(alone * (1 - alone) - 2 * special.owens_t(thresholds, ratio)))


def _weights(world: VarianceModel, design: ExperimentDesign) -> tuple[float, float, float, float]:
    """Return the shares of the score's variance: item for all arms, item for one arm, seed, chance."""
    thresholds = stats.norm.ppf(world.accuracies(design, design.shots[0]))

    def share(variance: float) -> float:
        lacking = lambda r: _covariance(r, thresholds) - variance  # noqa: E731
        return 0.98 if lacking(0.98) < 0 else float(optimize.brentq(lacking, 0.0, 0.98))

    both = share(world.difficulty_sd**2 + world.item_sd**2)
    difficulty = min(share(world.difficulty_sd**2), both)
    seed = min(share(world.seed_sd**2), 0.99 - both)
    return difficulty, both - difficulty, seed, 1.0 - both - seed


class Simulated(NamedTuple):
    """Answers of many runs by (arm, shots), each of shape (repeats, n_seeds or 1, items), and the true difference."""

    answers: dict[tuple[str, int], np.ndarray]
    difference: float


def simulate(
    world: VarianceModel, design: ExperimentDesign, difference: float, generator: np.random.Generator, repeats: int
) -> Simulated:
    """Draw the answers of whole runs in which arm a is better than every other arm by the difference, at all shots.

    All other arms, the untrained one included, have one accuracy, so at a difference of 0 every "better" is false.
    """
    difficulty, suits, seed, chance = np.sqrt(_weights(world, design))
    n = design.n_items * len(design.tasks)
    draw = lambda *shape: generator.standard_normal(shape, dtype=np.float32)  # noqa: E731
    items, made, gaps = difficulty * draw(repeats, 1, n), {}, {}
    for arm in design.arms:
        own = items + suits * draw(repeats, 1, n)
        if arm != "base":
            own = own + seed * draw(repeats, design.n_seeds, 1)
        left = chance if arm != "base" else (chance**2 + seed**2) ** 0.5
        for shots in design.shots:
            level = world.accuracies(design, shots)
            above = np.clip(level + difference, 0.005, 0.995)
            gaps[shots] = float(np.mean(above - level))
            threshold = stats.norm.ppf(above if arm == design.a else level).repeat(design.n_items)
            made[arm, shots] = own + left * draw(*own.shape[:2], n) + threshold.astype(np.float32) > 0
    return Simulated(made, gaps[design.shots[0]])


def minimum_detectable_effect(world: VarianceModel, design: ExperimentDesign) -> float | None:
    """Return the smallest true difference found "better" in four of five runs; None when none below 1 is."""
    sizes = np.arange(1, 1000) / 1000
    enough = sizes[chance_of_better(world.spread(design), sizes, design.alpha) >= intervals.POWER]
    return float(enough[0]) if len(enough) else None


def items_needed(world: VarianceModel, design: ExperimentDesign, difference: float) -> int | None:
    """Return how many items a task find a true difference in four of five runs; None when no number does."""
    finds = lambda n: chance_of_better(world.spread(design._replace(n_items=n)), difference, design.alpha)  # noqa: E731
    n = bisect_left(range(intervals.MAX_ITEMS + 1), intervals.POWER, lo=2, key=finds)
    return n if n <= intervals.MAX_ITEMS else None


def detection_in_words(world: VarianceModel, design: ExperimentDesign, wanted: float) -> str:
    """Return what difference a design finds with power 0.8, and the items and seeds that a wanted one needs."""
    finds = minimum_detectable_effect(world, design)
    able = f"a true difference of {100 * finds:.1f} points" if finds else "no true difference, however large"
    size = f"{design.n_seeds} seeds, {design.n_items} items for each of {len(design.tasks)} tasks"
    counts = sorted({3, 5, 8, 12, design.n_seeds})
    needs = {n: items_needed(world, design._replace(n_seeds=n), wanted) for n in counts}
    ways = "; ".join(f"{n} seeds: {f'{k:,} items a task' if k else 'no number of items'}" for n, k in needs.items())
    finding = f"Finds with power {intervals.POWER:g}: {able} ({size}). Spread {world.in_words()}."
    needing = f"A difference of {100 * wanted:g} points needs {ways}."
    return "\n".join(textwrap.fill(line, 100) for line in (finding, needing))


class Decided(NamedTuple):
    """The decisions on many runs (a list a comparison or task), with the primary difference and its half width."""

    compared: list[list[str]]  # each by itself
    adjusted: list[list[str]]  # the further ones, corrected for their number by Holm's method
    tasks: list[list[str]]  # corrected likewise
    difference: np.ndarray
    half: np.ndarray


def decisions(run: Simulated, design: ExperimentDesign) -> Decided:
    """Decide on every simulated run as the verdict does, through the same intervals, tests and rule."""
    mine = {shots: run.answers[design.a, shots].astype(np.int8) for shots in design.shots}
    tables = [mine[shots] - run.answers[other, shots] for other, shots in design.compared]
    spreads = [spread(table, design.columns) for table in tables]
    compared = [_decided(of, half_width(of, design.alpha), design) for of in spreads]
    held = _corrected(tables[1:], spreads[1:], design)
    return Decided(compared, held, _per_task(tables[0], design), spreads[0].mean, half_width(spreads[0], design.alpha))


def _decided(of: VarianceComponents, half: np.ndarray, design: ExperimentDesign) -> list[str]:
    return [decide(*row, design.margin) for row in zip(of.mean, half, half_width(of, 2 * design.alpha), strict=True)]


def _per_task(table: np.ndarray, design: ExperimentDesign) -> list[list[str]]:
    """Decide task by task, Holm's correction included; shape of the table (repeats, n_seeds, items)."""
    tables = np.split(table, len(design.tasks), axis=-1)
    return _corrected(tables, [spread(own, ["task"] * design.n_items) for own in tables], design)


def _corrected(
    tables: list[np.ndarray], spreads: list[VarianceComponents], design: ExperimentDesign
) -> list[list[str]]:
    """Decide on several comparisons with Holm's correction, as `verdict.adjusted` does, for many runs at once."""
    m, levels = len(tables), []
    for table, of in zip(tables, spreads, strict=True):
        flips = intervals.sign_flip_p_values(table.sum(axis=1, dtype=int))
        # p <= alpha / k for how many k: Holm compares the smallest p with alpha / m, the next with alpha / (m - 1).
        alphas = [design.alpha / k for k in range(1, m + 1)]
        levels.append(sum((flips <= alpha) & (np.abs(of.mean) >= half_width(of, alpha)) for alpha in alphas))
    # The largest p-value that passes as many.
    passed = holm(design.alpha / np.maximum(levels, 0.5)) <= design.alpha * (1 + 1e-9) if m else []
    found = []
    for of, clear in zip(spreads, passed, strict=True):
        half = half_width(of, design.alpha)
        found.append(_decided(of, np.where(clear | (np.abs(of.mean) <= half), half, 1.0), design))
    return found


def calibrate(
    world: VarianceModel,
    design: ExperimentDesign,
    repeats: int = 2000,
    differences: Sequence[float] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how often each decision is reached, one row a true difference.

    Args:
        differences: True ones, as shares; by default 0, half the margin, the margin and twice the margin, and 0 once
            more with seeds that differ twice as much, by two points at least.

    Returns:
        Columns difference, seed_sd, repeats, the shares better, worse, no difference and undecided of the primary
        comparison, coverage and half_width (mean) of its interval, and how often "better" is said by at least one
        further comparison, each taken alone (any_other_alone) or by Holm (any_other_better), or task (any_task_better).
    """
    steps = [(size, world) for size in differences or [size * design.margin for size in (0, 0.5, 1, 2)]]
    if differences is None:
        steps.append((0.0, world._replace(seed_sd=max(2 * world.seed_sd, 0.02))))
    generator = np.random.default_rng(seed)
    return pd.DataFrame([_row(where, design, size, generator, repeats) for size, where in steps])


def _row(
    world: VarianceModel, design: ExperimentDesign, difference: float, generator: np.random.Generator, repeats: int
) -> dict:
    n_answers = len(design.arms) * len(design.shots) * design.n_seeds * design.n_items * len(design.tasks)
    size, frames = max(1, CHUNK // n_answers), []
    for start in range(0, repeats, size):
        run = simulate(world, design, difference, generator, min(size, repeats - start))
        made = decisions(run, design)
        primary, *others = made.compared
        covered = np.abs(made.difference - run.difference) <= made.half
        frame = pd.DataFrame({"said": primary, "coverage": covered, "half_width": made.half})
        several = {"any_other_alone": others, "any_other_better": made.adjusted, "any_task_better": made.tasks}
        frames.append(frame.assign(**{name: np.isin(rows, [BETTER]).any(axis=0) for name, rows in several.items()}))
    runs = pd.concat(frames)
    said = {short: float((runs["said"] == decision).mean()) for decision, short in SHORT.items()}
    row = {"difference": run.difference, "seed_sd": world.seed_sd, "repeats": repeats} | said
    return row | runs.drop(columns="said").mean().to_dict()
