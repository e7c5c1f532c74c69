"""Do new questions confirm a pair? Pairs are formed from half of the preference set and looked at with the other half.

From stored probe outcomes alone; no model is asked anything. Ours: ARTE keeps every pair and does not look again.

Is it worth choosing the preference questions by an item response fit? Chosen ones against random ones.

ARTE (arXiv:2406.19227, section 3.2) chooses them so and does not compare. Here some drafts are asked all validation
questions. Pairs are formed from one half of these, by the questions of that half that the fit chooses or by as many at
random, at the recipe's ratio; the other half says whether it confirms the pairs.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from workbench.loop.pairs import outcomes, probability_better
from workbench.models.start import students_of
from workbench.runs.recipe import Recipe
from workbench.runs.run import Run
from workbench.runs.seeding import stream
from workbench.signals.one_shot import probe_drafts
from workbench.tasks.task import load_tasks

LEAST = (0.8, 0.9, 0.95)
PAPER, GAP, LIKELY = "paper's rule", "widest gaps", "p_chosen >= {:g}"
ALL, BY_IRT, AT_RANDOM = "half of the questions", "some of these, by discrimination", "as many of these, at random"
COLUMNS = ["student", "kind", "questions", "rule", "pairs", "agreement", "low", "high", "gain", "gain_low", "gain_high"]


class ReproductionError(ValueError):
    """What is missing for looking at pairs again, and what to do about it."""


class ResponseMatrix(NamedTuple):
    """One student's answers on one task: right (questions, drafts, items), nan where a question has fewer drafts."""

    right: np.ndarray
    discrimination: np.ndarray


class Formed(NamedTuple):
    """Pairs formed from some items: which question each is of, its gap, its probability, and whether others agree."""

    group: np.ndarray
    gap: np.ndarray
    probability: np.ndarray
    agrees: np.ndarray


def sheets(probes: pd.DataFrame, drafts: pd.DataFrame, preference_set: pd.DataFrame) -> dict[str, list[ResponseMatrix]]:
    """Return the probe outcomes of every student as one table a task."""
    found: dict[str, list[ResponseMatrix]] = {}
    known = preference_set[preference_set["chosen"]].set_index("item_id")["discrimination"]
    for (student, kind), table in outcomes(probes, drafts).items():
        for _, own in drafts.groupby("task") if kind == "rationale" else ():
            rows = table.reindex(own["draft_id"]).dropna(axis=1, how="all")
            place = own.groupby("question_id").cumcount().to_numpy()
            question = pd.factorize(own["question_id"])[0]
            right = np.full((question.max() + 1, place.max() + 1, rows.shape[1]), np.nan)
            right[question, place] = rows.to_numpy()
            if right.shape[2] < 4:
                raise ReproductionError(
                    f"Student {student} was probed on {right.shape[2]} questions of a task; halves need 4 or more."
                )
            found.setdefault(student, []).append(ResponseMatrix(right, known.reindex(rows.columns).to_numpy()))
    return found


def _rationale_pairs(right: np.ndarray, used: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the questions whose drafts differ, and outcomes of the best minus the worst, shape (pairs, items)."""
    scores = right[:, :, used].mean(axis=2)
    # A tie is broken at random: steps of a score are much larger.
    scores = scores + 1e-9 * rng.random(scores.shape)
    rows = np.arange(len(scores))
    best, worst = right[rows, np.nanargmax(scores, axis=1)], right[rows, np.nanargmin(scores, axis=1)]
    return rows, best - worst


def _question_pairs(
    right: np.ndarray, used: np.ndarray, rng: np.random.Generator, quantile: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same for questions of the top quantile against questions of the bottom one, drawn at random."""
    means = np.nanmean(right, axis=1)
    scores = means[:, used].mean(axis=1) + 1e-9 * rng.random(len(means))
    order, n_end = np.argsort(scores), int(len(means) * quantile)
    bottom, top = rng.permutation(order[:n_end]), rng.permutation(order[len(order) - n_end :])
    return top, means[top] - means[bottom]


def _form(make: Callable, tasks: list[ResponseMatrix], pick: list[np.ndarray], fresh: list[np.ndarray], rng) -> Formed:
    """Form pairs by make from the items picked of every task, and see whether the fresh items agree (a tie is half)."""
    parts, offset = [], 0
    for sheet, used, other in zip(tasks, pick, fresh, strict=True):
        group, differences = make(sheet.right, used, rng)
        gap = differences[:, used].mean(axis=1)
        kept = gap > 1e-12
        agrees = (np.sign(differences[kept][:, other].mean(axis=1).round(12)) + 1) / 2
        parts.append((offset + group[kept], gap[kept], probability_better(differences[kept][:, used]), agrees))
        offset += len(sheet.right)
    return Formed(*(np.concatenate(part) for part in zip(*parts, strict=True)))


class _Sums:
    """Agreement and number of pairs by rule, summed for each question over the splits."""

    def __init__(self, n_groups: int):
        self.n_groups, self.sums = n_groups, {}

    def add(self, rule, formed: Formed, weight: np.ndarray) -> None:
        agreed = np.bincount(formed.group, weight * formed.agrees, self.n_groups)
        counted = np.bincount(formed.group, weight, self.n_groups)
        before = self.sums.get(rule, (0.0, 0.0))
        self.sums[rule] = before[0] + agreed, before[1] + counted

    def estimate(self, rule, against) -> tuple[float, ...]:
        """Return pairs in all, agreement and its interval, and the gain over another rule and its interval."""
        share, parts = self._share(rule)
        other, other_parts = self._share(against)
        low, high = _interval(share, parts)
        gain = () if rule == against else (share - other, *_interval(share - other, parts - other_parts))
        return float(np.sum(self.sums[rule][1])), share, max(low, 0.0), min(high, 1.0), *(gain or (np.nan,) * 3)

    def _share(self, rule) -> tuple[float, np.ndarray]:
        agreed, counted = self.sums[rule]
        total = counted.sum()
        if total == 0:
            return float("nan"), np.full(self.n_groups, np.nan)
        share = float(agreed.sum() / total)
        return share, (agreed - share * counted) / total


def _interval(value: float, parts: np.ndarray) -> tuple[float, float]:
    """Return the 95 % t interval of a ratio of sums over questions, from each question's part in its error."""
    n = len(parts)
    half = stats.t.ppf(0.975, n - 1) * np.sqrt((parts**2).sum() * n / (n - 1)) if n > 1 else np.nan
    return float(value - half), float(value + half)


def _splits(tasks: list[ResponseMatrix], n_splits: int, rng: np.random.Generator) -> Iterator[tuple[list, list]]:
    for _ in range(n_splits):
        orders = [rng.permutation(sheet.right.shape[2]) for sheet in tasks]
        yield [order[: len(order) // 2] for order in orders], [order[len(order) // 2 :] for order in orders]


def split_half_reliability(
    probes: pd.DataFrame,
    drafts: pd.DataFrame,
    preference_set: pd.DataFrame,
    n_splits: int = 50,
    quantile: float = 0.25,
    seed: int = 0,
    share: float = 0.5,
) -> pd.DataFrame:
    """Return how often a fresh half of the preference set agrees with pairs formed from the other half.

    Rules are compared at equal numbers of pairs. Of the paper's rule's pairs that many are drawn at random, which on
    average agree as often as all of them. By discrimination and at random, the same number of questions (a share of a
    half) is picked, and all pairs are taken.

    Args:
        probes: A run's stored outcomes.
        drafts: The drafts that were probed.
        preference_set: Says how well each question tells responders apart.
        n_splits: Random halves.
        quantile: As in the recipe, for pairs of questions.
        seed: Of the halves.
        share: Of the questions of a half, those picked by discrimination and at random.

    Returns:
        One row a student, kind, choice of questions and rule. pairs is the mean number a split, agreement the share of
        pairs whose direction the fresh half confirms (a tie counts half, so 0.5 is chance), gain that minus the paper's
        rule's (for questions by discrimination: minus questions at random). low and high are 95 % intervals over the
        drafted questions; which preference questions there are is taken as given.
    """
    rows = []
    for student, tasks in sheets(probes, drafts, preference_set).items():
        of_questions = lambda right, used, rng: _question_pairs(right, used, rng, quantile)  # noqa: E731
        for kind, make in (("rationale", _rationale_pairs), ("question", of_questions)):
            rng = stream(seed, "halves", student, kind)
            sums = _Sums(sum(len(sheet.right) for sheet in tasks))
            for used, fresh in _splits(tasks, n_splits, rng):
                formed = _form(make, tasks, used, fresh, rng)
                _add_rules(sums, formed)
                if all(np.isfinite(sheet.discrimination).all() for sheet in tasks):
                    for name, pick in _picked(tasks, used, rng, share).items():
                        of_picked = _form(make, tasks, pick, fresh, rng)
                        sums.add((name, PAPER), of_picked, np.ones(len(of_picked.gap)))
            rows += [_row(student, kind, sums, key, n_splits) for key in sums.sums]
    return pd.DataFrame(rows, columns=COLUMNS)


def _add_rules(sums: _Sums, formed: Formed) -> None:
    sums.add((ALL, PAPER), formed, np.ones(len(formed.gap)))
    ordered = np.argsort(-formed.gap, kind="stable")
    for least in LEAST:
        enough = formed.probability >= least
        widest = np.zeros(len(enough))
        widest[ordered[: enough.sum()]] = 1.0
        sums.add((ALL, LIKELY.format(least)), formed, enough.astype(float))
        sums.add((ALL, f"{GAP}, as many as {LIKELY.format(least)}"), formed, widest)


def _picked(
    tasks: list[ResponseMatrix], used: list[np.ndarray], rng: np.random.Generator, share: float
) -> dict[str, list[np.ndarray]]:
    """Return a share of the items used, those that tell responders apart best, and as many at random."""
    sizes = [max(1, round(share * len(own))) for own in used]
    best = [own[np.argsort(-sheet.discrimination[own])][:n] for sheet, own, n in zip(tasks, used, sizes, strict=True)]
    return {AT_RANDOM: [rng.permutation(own)[:n] for own, n in zip(used, sizes, strict=True)], BY_IRT: best}


def _row(student: str, kind: str, sums: _Sums, key: tuple[str, str], n_splits: int) -> dict:
    questions, rule = key
    against = (ALL, PAPER) if questions == ALL else (AT_RANDOM, PAPER)
    n, *numbers = sums.estimate(key, against)
    return dict(zip(COLUMNS, (student, kind, questions, rule, n / n_splits, *numbers), strict=True))


def selection_bias(
    probes: pd.DataFrame, drafts: pd.DataFrame, preference_set: pd.DataFrame, n_shuffles: int = 50, seed: int = 0
) -> pd.DataFrame:
    """Return how many pairs of rationales reach a probability, and how many would if no draft differed from another.

    For the second, the outcomes on every item are dealt anew among the drafts of a question: what is left is chance and
    the picking of the best and the worst.

    Returns:
        One row a student and least probability: seen and null (shares of the questions that form a pair), pairs.
    """
    rows = []
    for student, tasks in sheets(probes, drafts, preference_set).items():
        rng = stream(seed, "inflation", student)
        seen = _probabilities(tasks, rng)
        null = np.concatenate([_probabilities([_dealt(sheet, rng) for sheet in tasks], rng) for _ in range(n_shuffles)])
        for least in LEAST:
            shares = {"seen": float((seen >= least).mean()), "null": float((null >= least).mean())}
            rows.append({"student": student, "least": least, **shares, "pairs": len(seen)})
    return pd.DataFrame(rows)


def _probabilities(tasks: list[ResponseMatrix], rng: np.random.Generator) -> np.ndarray:
    everything = [np.arange(sheet.right.shape[2]) for sheet in tasks]
    return _form(_rationale_pairs, tasks, everything, everything, rng).probability


def _dealt(sheet: ResponseMatrix, rng: np.random.Generator) -> ResponseMatrix:
    # Missing drafts stay where they are, at the end of their question.
    order = np.argsort(np.where(np.isnan(sheet.right), 2.0, rng.random(sheet.right.shape)), axis=1)
    return sheet._replace(right=np.take_along_axis(sheet.right, order, axis=1))


def in_words(
    probes: pd.DataFrame, drafts: pd.DataFrame, preference_set: pd.DataFrame, n_splits: int, quantile: float
) -> str:
    """Return both tables as text, in per cent."""
    table = split_half_reliability(probes, drafts, preference_set, n_splits, quantile)
    facts = (
        f"Pairs formed from one random half of the preference set, looked at with the other; {n_splits} splits. "
        "agreement: the fresh half has the same side ahead, in per cent (a tie counts half, 50 is chance). gain: minus "
        "the paper's rule at an equal number of pairs; for questions by discrimination, minus as many at random. "
        "Brackets: 95 % intervals over the drafted questions."
    )
    if set(table["questions"]) == {ALL}:
        facts += " The preference set was drawn at random, so there is no discrimination to choose questions by."
    null = selection_bias(probes, drafts, preference_set)
    said = [
        f"{row.student}: of {row.pairs} pairs of rationales {100 * row.seen:.0f} % have p_chosen >= {row.least:g}; if "
        f"the drafts of a question did not differ, {100 * row.null:.0f} % would."
        for row in null.itertuples()
    ]
    return "\n\n".join([textwrap.fill(facts, 100), shown(table), "\n".join(said)])


def shown(table: pd.DataFrame) -> str:
    """Return what `halves` found as text, shares in per cent."""
    said = table[["student", "kind", "questions", "rule"]].copy()
    said["pairs"] = [f"{n:.1f}" for n in table["pairs"]]
    said["agreement"] = [_percent(*row) for row in table[["agreement", "low", "high"]].to_numpy()]
    said["gain"] = [_percent(*row) for row in table[["gain", "gain_low", "gain_high"]].to_numpy()]
    return said.to_string(index=False)


def _percent(value: float, low: float, high: float) -> str:
    return "" if np.isnan(value) else f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def probe_validation(run: Run, n_questions: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Ask drafts of a run all validation questions; what the run has asked already is not asked again.

    Args:
        run: With finished probing and a preference set chosen by an item response fit.
        n_questions: So many drafted questions a task, drawn at random, with all their rationales.

    Returns:
        probes, the drafts that were asked, and the validation questions, all of them marked as chosen.
    """
    items = run.read("preference_set").assign(chosen=True)
    if items["discrimination"].isna().any():
        raise ReproductionError(
            f"The preference set of run {run.name} was drawn at random, so there is no fit to compare with; take a run "
            "with preference_set.selection=irt."
        )
    drafts = run.read("drafts")
    parts = []
    for task, own in drafts.groupby("task", sort=False):
        questions = own["question_id"].unique()
        drawn = stream(run.recipe.seeds[0], "selection", task).permutation(questions)[:n_questions]
        parts.append(own[own["question_id"].isin(drawn)])
    asked = pd.concat(parts, ignore_index=True)
    students, longest = students_of(run.recipe), run.recipe.evaluation.max_new_tokens
    return probe_drafts(students, load_tasks(run.recipe), asked, items, longest), asked, items


def compare_selection(
    recipe: Recipe, probes: pd.DataFrame, drafts: pd.DataFrame, items: pd.DataFrame, n_splits: int = 50
) -> pd.DataFrame:
    """Return how often fresh questions confirm pairs formed by questions that the fit chooses, and by random ones.

    Args:
        recipe: Says how large a share of the validation questions is chosen.
        probes: Of the drafts on all validation questions.
        drafts: Those that were asked.
        items: The validation questions with their discrimination.
        n_splits: Random halves of the validation questions.

    Returns:
        As reproduction.halves, for the two choices of questions alone.
    """
    settings = recipe.preference_set
    share = settings.n_items / settings.n_validation
    found = split_half_reliability(probes, drafts, items, n_splits, recipe.pairs.quantile, share=share)
    return found[found["questions"].isin([AT_RANDOM, BY_IRT])].reset_index(drop=True)


def selection_in_words(run: Run, n_questions: int, n_splits: int) -> str:
    """Return the comparison as text, in per cent."""
    probes, drafts, items = probe_validation(run, n_questions)
    settings, n = run.recipe.preference_set, drafts.groupby("task")["question_id"].nunique().max()
    facts = (
        f"{n} drafted questions a task, asked all {settings.n_validation} validation questions. Pairs are formed from "
        f"a random half of these: by the {settings.n_items / settings.n_validation:.0%} that tell responders apart "
        f"best, or by as many at random; {n_splits} splits. agreement: the fresh half has the same side ahead, in per "
        "cent (a tie counts half, 50 is chance). gain: minus random questions. Brackets: 95 % intervals over the "
        "drafted questions; which validation questions there are is taken as given."
    )
    table = compare_selection(run.recipe, probes, drafts, items, n_splits)
    return "\n\n".join([textwrap.fill(facts, 100), shown(table)])
