"""Do new questions confirm a pair? Pairs are formed from half of the preference set and looked at with the other half.

From stored probe outcomes. Ours: ARTE keeps every pair and does not look again. It chooses the preference questions by
an item response fit (arXiv:2406.19227, section 3.2) and does not compare: here pairs formed by the questions of a half
that the fit chooses stand beside pairs formed by as many at random.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench.loop.pairs import outcomes, probability_better, rounds, still_racing
from workbench.runs.errors import DataError
from workbench.runs.seeding import stream
from workbench.verdict.intervals import clustered_half_width, wilson

LEAST = (0.8, 0.9, 0.95)
PAPER, GAP, LIKELY = "paper's rule", "widest gaps", "probability {:g} or more"
ALL, BY_IRT, AT_RANDOM = "half of the questions", "some of these, by discrimination", "as many of these, at random"
COLUMNS = ["student", "kind", "questions", "rule", "pairs", "agreement", "low", "high", "gain", "gain_low", "gain_high"]


class ResponseMatrix(NamedTuple):
    """One student's answers on one task: right (questions, drafts, items), nan where a question has fewer drafts."""

    right: np.ndarray
    discrimination: np.ndarray


def response_matrices(
    probes: pd.DataFrame, drafts: pd.DataFrame, preference_set: pd.DataFrame
) -> dict[str, list[ResponseMatrix]]:
    """Return the probe outcomes of every student as one table a task, students in the order of the probes."""
    found: dict[str, list[ResponseMatrix]] = {}
    known = preference_set[preference_set["chosen"]].set_index("item_id")["discrimination"]
    for (student, kind), table in outcomes(probes, drafts).items():
        for _, own in drafts.groupby("task") if kind == "rationale" else ():
            rows = table.reindex(own["draft_id"]).dropna(axis=1, how="all")
            if rows.dropna(how="all").isna().any(axis=None):
                raise DataError(f"The drafts of {student} raced: halves need a run with probing.rule uniform.")
            place = own.groupby("question_id").cumcount().to_numpy()
            question = pd.factorize(own["question_id"])[0]
            right = np.full((question.max() + 1, place.max() + 1, rows.shape[1]), np.nan)
            right[question, place] = rows.to_numpy()
            if (n := right.shape[2]) < 4:
                raise DataError(f"Student {student} was probed on {n} questions of a task; halves need 4 or more.")
            found.setdefault(student, []).append(ResponseMatrix(right, known.reindex(rows.columns).to_numpy()))
    return {student: found[student] for student in probes["student"].unique()}


def _rationale_pairs(right: np.ndarray, used: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the questions whose drafts differ, and outcomes of the best minus the worst, shape (pairs, items)."""
    # A tie is broken at random: steps of a score are much larger.
    scores = right[:, :, used].mean(axis=2) + 1e-9 * rng.random(right.shape[:2])
    rows = np.arange(len(scores))
    return rows, right[rows, np.nanargmax(scores, axis=1)] - right[rows, np.nanargmin(scores, axis=1)]


def _question_pairs(
    right: np.ndarray, used: np.ndarray, rng: np.random.Generator, quantile: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same for questions of the top quantile against questions of the bottom one, drawn at random."""
    means = np.nanmean(right, axis=1)
    order, n_end = np.argsort(means[:, used].mean(axis=1) + 1e-9 * rng.random(len(means))), int(len(means) * quantile)
    bottom, top = rng.permutation(order[:n_end]), rng.permutation(order[len(order) - n_end :])
    return top, means[top] - means[bottom]


def _form(
    make: Callable, tasks: list[ResponseMatrix], pick: list[np.ndarray], fresh: list[np.ndarray], rng
) -> pd.DataFrame:
    """Form pairs by make from the items picked of every task, and see whether the fresh items agree (a tie is half).

    Returns:
        Columns group (which question a pair is of), gap, probability, agrees.
    """
    parts, offset = [], 0
    for matrix, used, other in zip(tasks, pick, fresh, strict=True):
        group, differences = make(matrix.right, used, rng)
        gap = differences[:, used].mean(axis=1)
        agrees = (np.sign(differences[:, other].mean(axis=1).round(12)) + 1) / 2
        pairs = pd.DataFrame({"group": offset + group, "gap": gap, "agrees": agrees})
        pairs["probability"] = probability_better(differences[:, used])
        parts.append(pairs[gap > 1e-12])
        offset += len(matrix.right)
    return pd.concat(parts, ignore_index=True)


def split_half_reliability(
    probes: pd.DataFrame,
    drafts: pd.DataFrame,
    preference_set: pd.DataFrame,
    n_splits: int = 50,
    quantile: float = 0.25,
) -> pd.DataFrame:
    """Return how often a fresh half of the preference set agrees with pairs formed from the other half.

    Rules are compared at equal numbers of pairs. Of the paper's rule's pairs that many are drawn at random, which on
    average agree as often as all of them. By discrimination and at random, the same number of questions is picked, and
    all pairs are taken.

    Args:
        preference_set: Says how well each question tells responders apart.
        quantile: As in the recipe, for pairs of questions.

    Returns:
        One row a student, kind, choice of questions and rule. pairs is the mean number a split, agreement the share of
        pairs whose direction the fresh half confirms (a tie counts half, so 0.5 is chance), gain that minus the paper's
        rule's (for questions by discrimination: minus questions at random). low and high are 95 % intervals over the
        drafted questions; which preference questions there are is taken as given.
    """
    rows = []
    for student, tasks in response_matrices(probes, drafts, preference_set).items():
        zeros = partial(np.zeros, (2, sum(len(matrix.right) for matrix in tasks)))
        fitted = all(np.isfinite(matrix.discrimination).all() for matrix in tasks)
        of_questions = partial(_question_pairs, quantile=quantile)
        for kind, make in (("rationale", _rationale_pairs), ("question", of_questions)):
            rng, sums = stream(0, "halves", student, kind), defaultdict(zeros)
            for _ in range(n_splits):
                orders = [rng.permutation(matrix.right.shape[2]) for matrix in tasks]
                used, fresh = zip(*(np.split(order, [len(order) // 2]) for order in orders), strict=True)
                formed = _form(make, tasks, used, fresh, rng)
                for rule, kept in _rules(formed).items():
                    _count(sums[ALL, rule], formed[kept])
                for name, pick in _picked(tasks, used, rng).items() if fitted else ():
                    _count(sums[name, PAPER], _form(make, tasks, pick, fresh, rng))
            rows += [(student, kind, *key, *_estimates(sums, key, n_splits)) for key in sums]
    return pd.DataFrame(rows, columns=COLUMNS)


def _rules(formed: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return by rule which of the pairs count."""
    widest = formed["gap"].rank(method="first", ascending=False).to_numpy()
    rules = {PAPER: np.ones(len(formed), dtype=bool)}
    for least in LEAST:
        enough = (formed["probability"] >= least).to_numpy()
        rules |= {LIKELY.format(least): enough, f"{GAP}, as many as {LIKELY.format(least)}": widest <= enough.sum()}
    return rules


def _count(sums: np.ndarray, formed: pd.DataFrame) -> None:
    """Add to the sums for each question, shape (2, questions): pairs that agree, and pairs."""
    sums += [np.bincount(formed["group"], weight, sums.shape[1]) for weight in (formed["agrees"], None)]


def _estimates(sums: dict[tuple[str, str], np.ndarray], key: tuple[str, str], n_splits: int) -> tuple[float, ...]:
    """Return pairs a split, agreement and its interval, and the gain over the rule's control with its interval."""
    control = (ALL if key[0] == ALL else AT_RANDOM, PAPER)
    (share, parts), (other, other_parts) = (_share(*sums[one]) for one in (key, control))
    half, half_gain = (clustered_half_width(own, np.arange(len(own))) for own in (parts, parts - other_parts))
    gain = share - other if key != control else np.nan
    agreement = (share, max(share - half, 0.0), min(share + half, 1.0))
    return sums[key][1].sum() / n_splits, *agreement, gain, gain - half_gain, gain + half_gain


def _share(agreed: np.ndarray, counted: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the share of pairs that agree, from sums for each question, and each question's part in its error."""
    with np.errstate(invalid="ignore"):
        share = agreed.sum() / counted.sum()
        return share, (agreed - share * counted) / counted.sum()


def _picked(
    tasks: list[ResponseMatrix], used: list[np.ndarray], rng: np.random.Generator
) -> dict[str, list[np.ndarray]]:
    """Return half of the items used, those that tell responders apart best, and as many at random."""
    picked = {AT_RANDOM: [], BY_IRT: []}
    for matrix, own in zip(tasks, used, strict=True):
        n = max(1, round(len(own) / 2))
        picked[AT_RANDOM].append(rng.permutation(own)[:n])
        picked[BY_IRT].append(own[np.argsort(-matrix.discrimination[own])][:n])
    return picked


def selection_bias(
    probes: pd.DataFrame, drafts: pd.DataFrame, preference_set: pd.DataFrame, n_shuffles: int = 50
) -> pd.DataFrame:
    """Return how many pairs of rationales reach a probability, and how many would if no draft differed from another.

    For the second, the outcomes on every item are dealt anew among the drafts of a question: what is left is chance and
    the picking of the best and the worst.

    Returns:
        One row a student and least probability: seen and null (shares of the questions that form a pair), pairs.
    """
    rows = []
    for student, tasks in response_matrices(probes, drafts, preference_set).items():
        rng = stream(0, "inflation", student)
        seen = _probabilities(tasks, rng)
        dealt = ([_dealt(matrix, rng) for matrix in tasks] for _ in range(n_shuffles))
        null = np.concatenate([_probabilities(one, rng) for one in dealt])
        for least in LEAST:
            shares = {"seen": (seen >= least).mean(), "null": (null >= least).mean()}
            rows.append({"student": student, "least": least, **shares, "pairs": len(seen)})
    return pd.DataFrame(rows)


def _probabilities(tasks: list[ResponseMatrix], rng: np.random.Generator) -> np.ndarray:
    everything = [np.arange(matrix.right.shape[2]) for matrix in tasks]
    return _form(_rationale_pairs, tasks, everything, everything, rng)["probability"].to_numpy()


def _dealt(matrix: ResponseMatrix, rng: np.random.Generator) -> ResponseMatrix:
    # Missing drafts stay where they are, at the end of their question.
    order = np.argsort(np.where(np.isnan(matrix.right), 2.0, rng.random(matrix.right.shape)), axis=1)
    return matrix._replace(right=np.take_along_axis(matrix.right, order, axis=1))


def replay(probes: pd.DataFrame, drafts: pd.DataFrame, preference_set: pd.DataFrame, error: float) -> pd.DataFrame:
    """Return what racing at this error would have asked of stored probes, and what would have come of it.

    Args:
        probes: All of them: every draft of a task was asked the same questions.

    Returns:
        A row a student: questions (with drafts that differ), asked (share of the probes), wrong (share of questions
        whose best draft of the race has fewer right than its worst by all probes; low and high, 95 %), ends (share
        whose best and worst are as good and as bad as those of all probes), gap (best minus worst by all probes, as
        share of the largest).
    """
    rows, chosen = [], preference_set[preference_set["chosen"]]
    for student, own in probes.groupby("student", sort=False):
        asked = []
        for task, items in chosen.groupby("task", sort=False):
            racing, seen = drafts[(drafts["task"] == task) & drafts["draft_id"].isin(own["draft_id"])], []
            for block in rounds(items):
                seen.append(own[own["draft_id"].isin(racing["draft_id"]) & own["item_id"].isin(block["item_id"])])
                racing = still_racing(pd.concat(seen), racing, error)
            asked += seen
        raced = pd.concat(asked)
        means = {name: part.groupby("draft_id")["correct"].mean() for name, part in (("raced", raced), ("all", own))}
        table = pd.DataFrame(means).join(drafts.set_index("draft_id")["question_id"])
        told = []
        for _, one in table.groupby("question_id"):
            best, worst = (one["all"][getattr(one["raced"], end)()] for end in ("idxmax", "idxmin"))
            told.append((best, worst, one["all"].max(), one["all"].min()))
        best, worst, high, low = (column[np.ptp(told, axis=1) > 0] for column in np.array(told).T)
        wrong, ends = np.mean(best < worst), np.mean((best == high) & (worst == low))
        row = {"student": student, "questions": len(best), "asked": len(raced) / len(own), "wrong": wrong}
        row |= dict(zip(("low", "high"), wilson(wrong, len(best)), strict=True))
        rows.append(row | {"ends": ends, "gap": (best - worst).sum() / (high - low).sum()})
    return pd.DataFrame(rows)
