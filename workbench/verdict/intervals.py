"""Intervals and tests for tables of seeds x items, in plain numpy and scipy: what the verdict stands on.

Calibrated by simulation (`python -m tests.test_verdict 4000`: 4,000 runs a row, two tasks, base accuracy 0.40, level
0.95, margin 0.05; the study `calibrate` simulates the whole decision of a recipe). No difference, 48 settings (2, 3, 5
seeds; 100, 400 items; item spread 0, 0.1; seed spread of each arm 0 to 0.04): coverage 0.950 to 0.995, "better" in 0.2
to 2.3 % of the runs, "worse" in 0.3 to 2.6 %. A true difference of the margin, 12 settings (3, 5 seeds; 400, 1,500
items): equivalence claimed in 0.1 to 4.2 %, coverage 0.950 to 0.986. With few seeds of little spread the interval is
wider than need be: 0.075 to either side at 3 seeds, 400 items and no spread over seeds, 0.042 at 5 seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, special, stats

BETTER, WORSE, SAME, UNDECIDED = "better", "worse", "no difference larger than the margin", "undecided"
N_FLIPS = 10_000
POWER = 0.8
N_QUANTILES = 20  # of the seeds' mean square, where a chance is worked out
MAX_SEEDS, MAX_ITEMS = 200, 100_000


class VarianceComponents(NamedTuple):
    """The mean of a seeds x items table and its mean squares (two-way, one value a cell, both sides random)."""

    mean: np.ndarray | float
    ms_seed: np.ndarray | float
    ms_item: np.ndarray | float
    ms_noise: np.ndarray | float
    n_seeds: int
    n_items: int
    n_tasks: int

    def at(self, n_seeds: np.ndarray, n_items: np.ndarray) -> VarianceComponents:
        """Return what is expected with other numbers of seeds and items, the variance components staying as seen."""
        seed = max(self.ms_seed - self.ms_noise, 0.0) / self.n_items
        item = max(self.ms_item - self.ms_noise, 0.0) / self.n_seeds
        noise = self.ms_noise
        return self._replace(
            ms_seed=n_items * seed + noise, ms_item=n_seeds * item + noise, n_seeds=n_seeds, n_items=n_items
        )

    @property
    def stderr(self) -> float:
        """The standard error of the mean: seeds and items joined, what they share counted once."""
        joined = self.ms_seed + np.maximum(self.ms_item - self.ms_noise, 0.0)
        return np.sqrt(np.maximum(joined, self.ms_item) / (self.n_seeds * self.n_items))


def spread(scores: np.ndarray, tasks: Sequence[str]) -> VarianceComponents:
    """Measure how a table of scores varies over seeds and, within tasks, over items.

    Args:
        scores: One score a seed and item, shape (n_seeds, n_items); two seeds or more. Axes before these two hold
            tables of their own, and then mean and mean squares have one value each.
        tasks: The task of each item, shape (n_items,).

    Example:
        >>> float(spread(np.array([[1.0, 0.0], [1.0, 0.0]]), ["t", "t"]).mean)
        0.5
    """
    scores = np.asarray(scores, dtype=float)
    n_seeds, n_items = scores.shape[-2:]
    codes, names = pd.factorize(np.asarray(tasks, dtype=object))
    if n_items - len(names) < 1:  # one item a task leaves nothing to compare within tasks
        codes, names = np.zeros(n_items, dtype=int), ["all"]
    in_task = np.eye(len(names))[codes]
    centred = scores - (scores @ in_task / in_task.sum(axis=0))[..., codes]
    item_means = centred.mean(axis=-2)
    dof = n_items - len(names)
    # Tables without a difference would claim certainty: at least two items are taken to differ by one.
    ms_item = n_seeds * np.maximum((item_means**2).sum(axis=-1), 2.0) / dof
    noise = ((centred - item_means[..., None, :]) ** 2).sum(axis=(-2, -1))
    ms_seed = n_items * scores.mean(axis=-1).var(axis=-1, ddof=1)
    mean = scores.mean(axis=(-2, -1))
    return VarianceComponents(mean, ms_seed, ms_item, noise / (dof * (n_seeds - 1)), n_seeds, n_items, len(names))


def half_width(of: VarianceComponents, alpha: float) -> np.ndarray | float:
    """Return half the width of the 1 - alpha interval of the mean.

    The seed means give a t interval with n_seeds - 1 degrees of freedom, which holds all spread but what seeds share:
    the items. Their component is added in squares with its own quantile, and the result is never narrower than the
    interval over items alone. (A Satterthwaite interval missed up to 10 % with three seeds.)

    Source: Graybill and Wang 1980, modified large samples for a sum of variance components. Deviation: t quantiles for
    their F constants, and the floor.
    """
    # As stats.t.ppf to the last digit, and a hundred times as fast: calibration asks for millions.
    over_seeds = special.stdtrit(of.n_seeds - 1, 1 - alpha / 2) ** 2 * of.ms_seed
    quantile = special.stdtrit(of.n_items - of.n_tasks, 1 - alpha / 2) ** 2
    joined = over_seeds + quantile * np.maximum(of.ms_item - of.ms_noise, 0.0)
    return np.sqrt(np.maximum(joined, quantile * of.ms_item) / (of.n_seeds * of.n_items))


def interval_p_value(of: VarianceComponents) -> float:
    """Return the smallest alpha at which the interval leaves out zero."""
    if of.mean == 0.0:
        return 1.0
    gap = lambda log_alpha: float(half_width(of, np.exp(log_alpha))) - abs(of.mean)  # noqa: E731
    smallest = np.log(1e-9)
    return 1e-9 if gap(smallest) < 0 else float(np.exp(optimize.brentq(gap, smallest, 0.0)))


def sign_flip_p_value(differences: np.ndarray, seed: int = 0, n_flips: int = N_FLIPS) -> float:
    """Return the two-sided sign-flip p-value over items, from a difference an item: a mean or sum over seeds.

    If two arms were alike, each item's difference could as well have had the other sign. All sign patterns count when
    the differences are whole numbers or the patterns no more than n_flips, otherwise that many are drawn. The seeds are
    taken as they are: this says whether the items agree, and the interval says whether new seeds would.

    Example:
        >>> sign_flip_p_value(np.array([1.0, 1.0, 1.0, 0.0]))
        0.25
    """
    values = np.asarray(differences, dtype=float)
    values = values[values != 0.0]
    if np.array_equal(values, np.round(values)):
        return float(sign_flip_p_values(values))
    settings = {"permutation_type": "samples", "alternative": "greater", "n_resamples": n_flips, "rng": seed}
    size = lambda flipped, axis: np.abs(flipped.sum(axis=axis))  # noqa: E731
    return float(stats.permutation_test((values,), size, vectorized=True, batch=1000, **settings).pvalue)


def sign_flip_null(differences: np.ndarray) -> np.ndarray:
    """Return how probable each sum is when every item's whole-numbered difference may have either sign.

    The characteristic function of the sum is a product of cosines, one an item; its Fourier transform counts all sign
    patterns at once. Of differences of shape (..., n_items), the probabilities of the sums -reach to reach, shape
    (..., 2 reach + 1); reach is the largest sum there can be.

    Example:
        >>> sign_flip_null(np.array([1, 1])).round(6).tolist()
        [0.25, 0.0, 0.5, 0.0, 0.25]
    """
    sizes = np.abs(np.asarray(differences)).astype(int)
    reach = int(sizes.sum(axis=-1).max(initial=0))
    angles = 2 * np.pi * np.arange(2 * reach + 1) / (2 * reach + 1)
    waves = np.ones((*sizes.shape[:-1], 2 * reach + 1))
    for size in range(1, int(sizes.max(initial=0)) + 1):
        waves *= np.cos(size * angles) ** (sizes == size).sum(axis=-1)[..., None]
    return np.fft.fftshift(np.fft.ifft(waves).real, axes=-1).clip(0.0)


def sign_flip_p_values(differences: np.ndarray) -> np.ndarray:
    """Return the exact p-values of `sign_flip_p_value` for whole numbers, shape (..., n_items) -> (...)."""
    differences = np.asarray(differences)
    null = sign_flip_null(differences)
    reach = null.shape[-1] // 2
    extreme = np.abs(np.arange(-reach, reach + 1)) >= np.abs(differences.sum(axis=-1))[..., None] - 1e-9
    return np.clip((null * extreme).sum(axis=-1), 2.0 ** -differences.shape[-1], 1.0)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return Holm's adjusted p-values, in the order given; further axes hold tests that are adjusted by themselves.

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    stepped = np.maximum.accumulate((np.sort(p, axis=0).T * np.arange(len(p), 0, -1)).T)
    ranks = np.argsort(np.argsort(p, axis=0, kind="stable"), axis=0)
    return np.take_along_axis(np.minimum(stepped, 1.0), ranks, axis=0)


def wilson(share: float, n: float, alpha: float = 0.05) -> tuple[float, float]:
    """Return Wilson's interval for a share seen in n independent trials."""
    if n <= 0:
        return 0.0, 1.0
    z = stats.norm.ppf(1 - alpha / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    low = 0.0 if share == 0.0 else float(centre - half)
    return low, 1.0 if share == 1.0 else float(centre + half)


def decide(difference: float, half: float, half_equivalence: float, margin: float) -> str:
    """Return the decision: the 1 - alpha interval against zero, then the 1 - 2 alpha interval against the margin."""
    if abs(difference) > half:
        return BETTER if difference > 0 else WORSE
    return SAME if abs(difference) + half_equivalence < margin else UNDECIDED


def chance_to_settle(of: VarianceComponents, difference: float, margin: float, alpha: float) -> np.ndarray | float:
    """Return the probability that a run of this spread and true difference ends in anything but "undecided"."""
    shown = _as_shown(of)
    half, inner = half_width(shown, alpha), margin - half_width(shown, 2 * alpha)
    inner = np.clip(inner, 0.0, half)
    below = lambda x: stats.norm.cdf((x - difference) / np.expand_dims(of.stderr, -1))  # noqa: E731
    return (1.0 - (below(half) - below(-half)) + (below(inner) - below(-inner))).mean(axis=-1)


def chance_of_better(of: VarianceComponents, difference: np.ndarray | float, alpha: float) -> np.ndarray | float:
    """Return the probability that a run of this spread and true difference says "better": its power."""
    gap = np.expand_dims(difference, -1) - half_width(_as_shown(of), alpha)
    return stats.norm.cdf(gap / np.expand_dims(of.stderr, -1)).mean(axis=-1)


def _as_shown(of: VarianceComponents) -> VarianceComponents:
    """Return the spread as repeats would measure it, on a new last axis: with few seeds theirs varies widely."""
    wide = VarianceComponents(*(np.expand_dims(value, -1) for value in of))
    quantiles = (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES
    dof = wide.n_seeds - 1
    return wide._replace(ms_seed=wide.ms_seed * stats.chi2.ppf(quantiles, dof) / dof)


def sample_size_needed(of: VarianceComponents, margin: float, alpha: float) -> dict:
    """Return how many more seeds, or items, would settle an undecided comparison in four of five repeats.

    At the difference and spread seen, which are themselves uncertain. Each number is for adding that alone; None means
    that this alone would not do. When neither does, "together" is True and both are added.
    """
    seeds = np.arange(of.n_seeds + 1, MAX_SEEDS)
    items = np.unique(np.geomspace(of.n_items + 1, MAX_ITEMS, 400).astype(int))
    settles = lambda s, i: chance_to_settle(of.at(s, i), of.mean, margin, alpha) >= POWER  # noqa: E731
    least = lambda enough: int(enough[0]) if len(enough) else None  # noqa: E731
    more_seeds = least((seeds - of.n_seeds)[settles(seeds, of.n_items)])
    more_items = least((items - of.n_items)[settles(of.n_seeds, items)])
    if more_seeds is None and more_items is None:
        times = np.arange(1, 100)
        grown = least(times[settles((times + 1) * of.n_seeds, (times + 1) * of.n_items)])
        if grown:
            return {"seeds": grown * of.n_seeds, "items": grown * of.n_items, "together": True}
    return {"seeds": more_seeds, "items": more_items, "together": False}


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray | float:
    """Return Spearman's correlation along the last axis; nan where one side is all alike and so says nothing."""
    x, y = (ranks - ranks.mean(-1, keepdims=True) for ranks in (stats.rankdata(values, axis=-1) for values in (a, b)))
    with np.errstate(invalid="ignore"):
        return (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))


def percentiles(draws: np.ndarray) -> tuple[float, float]:
    """Return the 95 % percentile interval of bootstrap draws; those that are nan say nothing, nan where all are."""
    known = np.asarray(draws)[np.isfinite(draws)]
    return tuple(np.percentile(known, [2.5, 97.5]).tolist()) if len(known) else (float("nan"),) * 2


def clustered_half_width(parts: np.ndarray, clusters: np.ndarray, alpha: float = 0.05) -> float:
    """Return half the width of an estimate's t interval, from each observation's part in its error.

    Parts of one cluster (drafts of one question) belong together. It is nan with fewer than two clusters.
    """
    sums = pd.Series(parts).groupby(np.asarray(clusters, dtype=object)).sum().to_numpy()
    if len(sums) < 2:
        return float("nan")
    stderr = np.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1))
    return float(stats.t.ppf(1 - alpha / 2, len(sums) - 1) * stderr)


def clustered_mean(values: np.ndarray, clusters: np.ndarray, alpha: float = 0.05) -> tuple[float, float, float]:
    """Return a mean and its t interval when values of one cluster (drafts of one question) belong together.

    The interval is nan with fewer than two clusters.
    """
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    half = clustered_half_width(values - mean, clusters, alpha) / len(values)
    return mean, mean - half, mean + half


def mean_within_tasks(
    values: np.ndarray, tasks: np.ndarray, clusters: np.ndarray, alpha: float = 0.05
) -> tuple[float, float, float]:
    """Return the mean over tasks of each task's mean, tasks weighing the same, and its clustered t interval.

    Tasks differ in difficulty: where groups have them in unlike shares, plain means compare tasks and not groups.
    """
    rows = pd.DataFrame({"value": np.asarray(values, dtype=float), "task": np.asarray(tasks)})
    own = rows.groupby("task")["value"]
    mean, parts = own.mean().mean(), (rows["value"] - own.transform("mean")) / own.transform("size") / own.ngroups
    half = clustered_half_width(parts.to_numpy(), clusters, alpha)
    return float(mean), float(mean - half), float(mean + half)


def difference_within_tasks(
    values: np.ndarray, positive: np.ndarray, tasks: np.ndarray, clusters: np.ndarray, alpha: float = 0.05
) -> tuple[float, float, float]:
    """Return how much larger values are where positive, compared within task, and its clustered t interval.

    A task weighs by how many of both kinds it has, as in a regression with an effect for every task; nan without one
    that has both.
    """
    rows = pd.DataFrame({"value": np.asarray(values, dtype=float), "positive": np.asarray(positive, dtype=float)})
    apart = rows - rows.groupby(np.asarray(tasks)).transform("mean")
    if not (weight := (apart["positive"] ** 2).sum()):
        return (float("nan"),) * 3
    slope = float((apart["positive"] * apart["value"]).sum() / weight)
    parts = apart["positive"] * (apart["value"] - slope * apart["positive"]) / weight
    half = clustered_half_width(parts.to_numpy(), clusters, alpha)
    return slope, slope - half, slope + half


def auc(
    scores: np.ndarray, positive: np.ndarray, clusters: np.ndarray, alpha: float = 0.05
) -> tuple[float, float, float]:
    """Return the area under the ROC curve and its interval, clustered.

    The area is the chance that a positive scores above a negative, ties counting half.

    Source: DeLong 1988 for the components, Obuchowski 1997 for the clusters. Deviation: covariances within a cluster
    enter through its summed contributions, with a t quantile.

    Raises:
        ValueError: If there is no positive or no negative.
    """
    scores, positive = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        raise ValueError(f"an AUC needs positives and negatives, got {n_positive} and {n_negative}; pass both.")
    ranks = stats.rankdata(scores)
    among_own = np.empty(len(scores))
    among_own[positive], among_own[~positive] = stats.rankdata(scores[positive]), stats.rankdata(scores[~positive])
    beaten = ranks - among_own
    area = float(beaten[positive].sum() / (n_positive * n_negative))
    part = np.where(positive, (beaten / n_negative - area) / n_positive, (1 - beaten / n_positive - area) / n_negative)
    half = clustered_half_width(part, clusters, alpha)
    return area, max(area - half, 0.0), min(area + half, 1.0)
