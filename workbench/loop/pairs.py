"""Preference pairs: what the student's scores say the teacher should have written, and what it should not.

Source: ARTE, arXiv:2406.19227, section 3.3 and appendix G. Where the paper contradicts itself (section 4.1 against
appendix G) question pairs are drawn without replacement from the top and bottom quartile, as the appendix says.

How sure is it that one draft is better than another, given how a student answered the same questions under both?
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import product

import numpy as np
import pandas as pd
from scipy.special import betainc

from workbench.loop import prompts
from workbench.runs import schemas
from workbench.runs.recipe import Pairs
from workbench.runs.schemas import text_id
from workbench.runs.seeding import stream
from workbench.tasks.task import Task

VERSION = 2
DECIDED = 0.9  # the probability that chosen beats rejected from which a pair counts as decided
ASKED_AT_ONCE = 4  # questions between two looks at who still races

Outcomes = Mapping[tuple[str, str], pd.DataFrame]


def probability_better(differences: np.ndarray) -> np.ndarray | float:
    """Return the posterior probability that the mean of paired differences is above zero.

    Questions answered alike under both drafts say nothing of which is better. Those answered differently have a
    Dirichlet posterior: before any is seen, two questions are imagined, one that only the first draft gets right and
    one that only the second does. For single drafts (differences of -1, 0, 1) with n right under the first alone and
    m under the second alone this is P(Beta(n + 1, m + 1) > 1/2). Means over several rationales lie in between; the
    weighted sums of either side are then taken as gamma variables of the same mean and variance.

    It holds for two drafts named beforehand. Of the best and the worst of four it promises too much, since they were
    picked for these very differences: simulated with 24 or 40 questions and four drafts that do not differ, half of
    such pairs reach 0.9, a third 0.95 and one in fifteen 0.99. `selection_bias` measures it for a run's drafts.

    Args:
        differences: Score under the first draft minus under the second, in [-1, 1], shape (..., n_questions); nan where
            a question was not asked.

    Example:
        >>> probability_better(np.array([1.0, 1.0, 1.0, -1.0, 0.0])).round(4).item()
        0.8125

    Source: ours; the binary case is the Bayesian counterpart of McNemar's test.
    """
    values = np.nan_to_num(np.asarray(differences, dtype=float))
    for_first, for_second = values.clip(0.0), -values.clip(None, 0.0)
    means = [side.sum(axis=-1) + 1.0 for side in (for_first, for_second)]
    squares = [(side**2).sum(axis=-1) + 1.0 for side in (for_first, for_second)]
    shapes = [mean**2 / square for mean, square in zip(means, squares, strict=True)]
    scales = [square / mean for mean, square in zip(means, squares, strict=True)]
    return 1.0 - betainc(*shapes, scales[1] / (scales[0] + scales[1]))


def rounds(items: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the questions of each round of a race."""
    return [items.iloc[start : start + ASKED_AT_ONCE] for start in range(0, len(items), ASKED_AT_ONCE)]


def still_racing(probes: pd.DataFrame, racing: pd.DataFrame, error: float) -> pd.DataFrame:
    """Return the drafts to be asked more: those of a question stop when the best of them surely beats the worst.

    Surely is with a probability of at least 1 - error, by probability_better on what all of them were asked. It is
    looked at again and again, and best and worst are picked, so more than this share can be wrong: see replay in
    studies.pair_reliability, which measures it.

    Args:
        probes: Of one student so far.
        racing: Drafts that were asked all of these questions, with question_id.
        error: Tolerated in a question's order.

    Source: ours; a sequential paired test. To ask the best-discriminating questions first needed more of them, and to
    leave out drafts in the middle saved little (docs/results.md).
    """
    right, open_ids = probes.pivot(index="draft_id", columns="item_id", values="correct").astype(float), []
    for _, own in racing.groupby("question_id", sort=False):
        table = right.loc[own["draft_id"]].to_numpy()
        best, worst = (table[getattr(table.mean(axis=1), end)()] for end in ("argmax", "argmin"))
        if best.mean() == worst.mean() or probability_better(best - worst) < 1 - error:
            open_ids += list(own["draft_id"])
    return racing[racing["draft_id"].isin(open_ids)]


def outcomes(probes: pd.DataFrame, drafts: pd.DataFrame) -> Outcomes:
    """Return for each (student, kind) a table of scores, a row a draft or question and a column a preference question.

    A question's score on an item is the mean over its rationales; nan where a draft's task does not have the item.
    """
    known = probes[["student", "draft_id", "item_id", "correct"]].merge(
        drafts[["draft_id", "question_id"]], on="draft_id", validate="many_to_one"
    )
    known["correct"] = known["correct"].astype(float)
    names = {"rationale": "draft_id", "question": "question_id"}
    return {
        (student, kind): own.pivot_table(index=name, columns="item_id", values="correct")
        for student, own in known.groupby("student")
        for kind, name in names.items()
    }


def p_chosen(found: Outcomes, student: str, kind: str, chosen_id: str, rejected_id: str) -> float:
    """Return the probability that the chosen side of a pair is better; nan when the two were not probed."""
    table = found.get((student, kind))
    if table is None or chosen_id not in table.index or rejected_id not in table.index:
        return float("nan")
    return float(probability_better((table.loc[chosen_id] - table.loc[rejected_id]).to_numpy()))


Proposed = list[tuple[str, str]]  # ids of chosen and rejected
Rule = Callable[[pd.Series, np.random.Generator, Pairs], Proposed]


def best_against_worst(scores: pd.Series, rng: np.random.Generator, settings: Pairs) -> Proposed:
    """Pair the best of a group with the worst; ties are broken at random. Source: ARTE, section 3.3."""
    # A shuffled order makes argmax and argmin break ties at random.
    shuffled = scores.iloc[rng.permutation(len(scores))]
    return [(shuffled.index[np.argmax(shuffled.to_numpy())], shuffled.index[np.argmin(shuffled.to_numpy())])]


def top_against_bottom(scores: pd.Series, rng: np.random.Generator, settings: Pairs) -> Proposed:
    """Pair members of the top quantile with members of the bottom one, each at most once. Source: ARTE, appendix G."""
    ordered = scores.iloc[rng.permutation(len(scores))].sort_values(kind="stable")
    n_end = int(len(ordered) * settings.quantile)
    n_pairs = min(settings.n_question_pairs, n_end)
    bottom = ordered.head(n_end).index[rng.permutation(n_end)[:n_pairs]]
    top = ordered.tail(n_end).index[rng.permutation(n_end)[:n_pairs]]
    return list(zip(top, bottom, strict=True))


def helpful_against_harmful(scores: pd.Series, rng: np.random.Generator, settings: Pairs) -> Proposed:
    """Pair every sibling that helps (above 0) with every one that harms. Source: Montessori-Instruct, section 3."""
    return list(product(scores.index[scores > 0], scores.index[scores < 0]))


def build_pairs(
    rules: Mapping[str, Rule],
    tasks: dict[str, Task],
    questions: pd.DataFrame,
    drafts: pd.DataFrame,
    signals: pd.DataFrame,
    probes: pd.DataFrame | None,
    settings: Pairs,
    seed: int,
) -> pd.DataFrame:
    """Return the preference pairs of every student, as their schema describes them, and counts of what formed none.

    Rationales are grouped by their question; their prompt is the plain one, with the technique's instruction erased.
    Questions are grouped by the prompt that they were written to, and stay in the words they were written in. What a
    rule proposes is left out if the scores do not differ, or by less than settings.min_gap, if the texts are equal, or
    if the probes leave too much doubt (settings.min_probability, ours; 0 keeps all). p_chosen is the probability that
    the chosen side is better, from the probes; nan where there are none.

    Args:
        rules: By kind ("rationale", "question"), in the order wanted.
        signals: One value for every student and draft or question.
        probes: As stored; None where nobody was probed.
    """
    probed: Outcomes = {} if probes is None else outcomes(probes, drafts)
    rows: list[dict] = []
    counted = ("groups", "groups without a pair", *DROPPED)
    counts = dict.fromkeys([f"{kind} {what}" for kind in rules for what in counted], 0)
    for student, own in signals.groupby("student", sort=False):
        values = {kind: part.set_index("draft_id")["value"] for kind, part in own.groupby("item_kind")}
        for task, kind in product(tasks.values(), rules):
            table = GROUPS[kind](task, questions, drafts)
            table["score"] = table["id"].map(values.get(kind, pd.Series(dtype=float)))
            for group, members in table.dropna(subset="score").groupby("group", sort=False):
                members = members.set_index("id")
                rng = stream(seed, *DRAWS[kind](student, task.name, group))
                proposed = rules[kind](members["score"], rng, settings) if len(members) > 1 else []
                made = [_pair(student, kind, task.name, members, probed, *ids) for ids in proposed]
                kept = [pair for pair in made if _is_kept(pair, settings, counts)]
                counts[f"{kind} groups"] += 1
                counts[f"{kind} groups without a pair"] += not kept
                rows += kept
    frame = schemas.build(rows, "pairs")
    frame.attrs["counts"] = {"pairs": len(frame)} | counts
    return frame


DROPPED: dict[str, Callable[[dict, Pairs], bool]] = {
    "pairs of equal scores": lambda pair, settings: pair["score_gap"] <= 0,
    "pairs below min_gap": lambda pair, settings: pair["score_gap"] < settings.min_gap,
    "pairs of equal texts": lambda pair, settings: pair["chosen"] == pair["rejected"],
    # An unknown probability is no reason to drop a pair that the signal tells apart.
    "pairs below min_probability": lambda pair, settings: pair["p_chosen"] < settings.min_probability,
}


def _rationales(task: Task, questions: pd.DataFrame, drafts: pd.DataFrame) -> pd.DataFrame:
    own = drafts[drafts["task"] == task.name]
    prompt = [prompts.naive_prompt(task.description, question, task.prompts) for question in own["question"]]
    named = {"id": own["draft_id"], "group": own["question_id"], "text": own["rationale"]}
    return pd.DataFrame(named).assign(prompt=prompt).reset_index(drop=True)


def _questions(task: Task, questions: pd.DataFrame, drafts: pd.DataFrame) -> pd.DataFrame:
    own = questions[(questions["task"] == task.name) & questions["kept"]]
    named = {"id": own["question_id"], "group": own["prompt_id"], "text": own["reply"], "prompt": own["prompt"]}
    return pd.DataFrame(named).reset_index(drop=True)


GROUPS = {"rationale": _rationales, "question": _questions}
DRAWS = {
    "rationale": lambda student, task, group: ("ties", student, group),
    "question": lambda student, task, group: ("question pairs", student, task),
}


def _is_kept(pair: dict, settings: Pairs, counts: dict) -> bool:
    """Say whether a pair may stay, and count the first reason why not."""
    why = next((why for why, drops in DROPPED.items() if drops(pair, settings)), "")
    if why:
        counts[f"{pair['kind']} {why}"] += 1
    return not why


def _pair(
    student: str, kind: str, task: str, members: pd.DataFrame, probed: Outcomes, chosen_id: str, rejected_id: str
) -> dict:
    chosen, rejected = members.loc[chosen_id], members.loc[rejected_id]
    named = {"student": student, "kind": kind, "task": task, "chosen_id": chosen_id, "rejected_id": rejected_id}
    texts = {"prompt": chosen["prompt"], "chosen": chosen["text"], "rejected": rejected["text"]}
    scores = {"score_chosen": float(chosen["score"]), "score_rejected": float(rejected["score"])}
    scores["score_gap"] = float(chosen["score"] - rejected["score"])
    scores["p_chosen"] = p_chosen(probed, student, kind, chosen_id, rejected_id)
    pair_id = text_id(f"{student}/{kind}/{chosen_id}/{rejected_id}")
    return {"pair_id": pair_id, "flipped": False} | named | texts | scores


def flip_half(pairs: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the same pairs with exactly half of each student's turned round (the odd one out stays): the control."""
    flipped = pairs.copy()
    for student, own in pairs.groupby("student", sort=False):
        turned = stream(seed, "random pairs", student).permutation(own.index.to_numpy())[: len(own) // 2]
        flipped = swap_sides(flipped, turned)
        flipped.loc[turned, "flipped"] = True
    return flipped


def swap_sides(pairs: pd.DataFrame, rows: Iterable) -> pd.DataFrame:
    """Return the pairs with those at some labels of the index turned round; what is known of the sides goes along."""
    rows, turned = list(rows), pairs.copy()
    for one, other in (("chosen", "rejected"), ("chosen_id", "rejected_id"), ("score_chosen", "score_rejected")):
        turned.loc[rows, [one, other]] = pairs.loc[rows, [other, one]].to_numpy()
    turned.loc[rows, "score_gap"] *= -1
    turned.loc[rows, "p_chosen"] = 1 - turned.loc[rows, "p_chosen"]
    return turned
