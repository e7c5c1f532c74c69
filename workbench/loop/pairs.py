"""Preference pairs: what the student's scores say the teacher should have written, and what it should not.

Source: ARTE, arXiv:2406.19227, section 3.3 and appendix G. Where the paper contradicts itself (section 4.1 against
appendix G) question pairs are drawn without replacement from the top and bottom quartile, as the appendix says.
By the method montessori (arXiv:2410.14208) siblings are paired by the sign of their influence, all with all.

How sure is it that one draft is better than another, given how a student answered the same questions under both?
"""

from collections.abc import Iterable, Mapping
from itertools import product

import numpy as np
import pandas as pd
from scipy.special import betainc

from workbench.loop import prompts
from workbench.runs import schemas
from workbench.runs.recipe import Recipe
from workbench.runs.schemas import text_id
from workbench.runs.seeding import stream
from workbench.tasks.task import Task, as_written, seed_pairs

DECIDED = 0.9  # the probability that chosen beats rejected from which a pair counts as decided

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


TRAINING_LOSS = "training_loss"  # a signal without a sign


def build_pairs(
    recipe: Recipe,
    tasks: dict[str, Task],
    questions: pd.DataFrame,
    drafts: pd.DataFrame,
    signals: pd.DataFrame,
    probes: pd.DataFrame,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the pairs of every student, and how many groups were there, tied, too close or too undecided to form one.

    p_chosen is the probability that the chosen side is better, from the probes; nan where there are none. With
    pairs.min_probability above 0, pairs below it are dropped (ours; at 0 the paper's rule keeps them all).
    """
    rows: list[dict] = []
    kinds = schemas.ITEM_KINDS
    if recipe.method == "montessori":
        counts = {f"{kind} groups {what}": 0 for kind in kinds for what in ("of siblings", "of one sign")}
        counts |= {"pairs of equal texts": 0}
    else:
        counts = {"rationale groups": 0, "rationale groups all tied": 0, "rationale groups below min_gap": 0}
        counts |= {"question pairs without a gap": 0, "pairs of equal texts": 0, "ties for chosen or rejected": 0}
    counts |= {f"{kind} pairs below min_probability": 0 for kind in kinds}
    probed = outcomes(probes, drafts)
    for student in recipe.models.students:
        own = signals[signals["student"] == student]
        values = own.groupby("item_kind").apply(lambda part: dict(zip(part["draft_id"], part["value"], strict=True)))
        for name, task in tasks.items():
            of_task = drafts[drafts["task"] == name]
            of_task = of_task.assign(score=of_task["draft_id"].map(values["rationale"]))
            asked = questions[(questions["task"] == name) & questions["kept"]]
            asked = asked.assign(score=asked["question_id"].map(values["question"])).dropna(subset="score")
            if recipe.method == "montessori":
                scored = {"question": asked, "rationale": of_task.dropna(subset="score")}
                has_sign = recipe.influence.sign != "relative" and not (own["signal"] == TRAINING_LOSS).any()
                writer = as_written(recipe, {name: task})[name]
                rows += _sibling_pairs(recipe, student, writer, scored, has_sign, counts)
                continue
            rows += _rationale_pairs(recipe, student, task, of_task, counts)
            rows += _question_pairs(recipe, student, task, asked, counts)
    rows = [row for row in rows if _is_decided(row, probed, recipe.pairs.min_probability, counts)]
    return schemas.build(rows, "pairs"), counts


def _is_decided(row: dict, probed: Outcomes, least: float, counts: dict) -> bool:
    """Put the probability that chosen is better into a pair; say whether it is enough, and count it if not."""
    row["p_chosen"] = p_chosen(probed, row["student"], row["kind"], row["chosen_id"], row["rejected_id"])
    # An unknown probability is no reason to drop a pair that the signal tells apart.
    dropped = row["p_chosen"] < least
    counts[f"{row['kind']} pairs below min_probability"] += dropped
    return not dropped


def _rationale_pairs(recipe: Recipe, student: str, task: Task, drafts: pd.DataFrame, counts: dict) -> list[dict]:
    """Pair the best with the worst rationale of each question; the technique's prompt is erased from the pair."""
    rows = []
    drafts = drafts.reset_index(drop=True)
    columns = {name: drafts[name].to_numpy(dtype=object) for name in ("draft_id", "question", "rationale")}
    for question_id, group in drafts.groupby("question_id", sort=False)["score"]:
        counts["rationale groups"] += 1
        # A shuffled order makes argmax and argmin break ties at random.
        order = stream(recipe.seeds[0], "ties", student, question_id).permutation(len(group))
        places, scores = group.index[order], group.to_numpy()[order]
        gap = scores.max() - scores.min()
        if gap == 0 or gap < recipe.pairs.min_gap:
            counts["rationale groups all tied" if gap == 0 else "rationale groups below min_gap"] += 1
            continue
        counts["ties for chosen or rejected"] += (scores == scores.max()).sum() > 1 or (
            scores == scores.min()
        ).sum() > 1
        best, worst = places[np.argmax(scores)], places[np.argmin(scores)]
        prompt = prompts.naive_prompt(task.description, columns["question"][best])
        texts = (columns["rationale"][best], columns["rationale"][worst])
        if texts[0] == texts[1]:
            counts["pairs of equal texts"] += 1
            continue
        ids = (columns["draft_id"][best], columns["draft_id"][worst])
        rows.append(_pair(student, "rationale", task.name, prompt, texts, ids, (scores.max(), scores.min())))
    return rows


def _question_pairs(recipe: Recipe, student: str, task: Task, questions: pd.DataFrame, counts: dict) -> list[dict]:
    """Pair questions of the top quantile with questions of the bottom one, each used at most once."""
    rng = stream(recipe.seeds[0], "question pairs", student, task.name)
    ordered = questions.iloc[rng.permutation(len(questions))].sort_values("score", kind="stable")
    n_end = int(len(ordered) * recipe.pairs.quantile)
    n_pairs = min(recipe.pairs.n_question_pairs, n_end)
    bottom = ordered.head(n_end).iloc[rng.permutation(n_end)[:n_pairs]]
    top = ordered.tail(n_end).iloc[rng.permutation(n_end)[:n_pairs]]
    seeds = seed_pairs(task, recipe.drafting.n_seed_questions)
    prompt = prompts.question_prompt(task.description, seeds, recipe.drafting.questions_per_call)
    rows = []
    for best, worst in zip(top.to_dict("records"), bottom.to_dict("records"), strict=True):
        if best["score"] <= worst["score"] or best["score"] - worst["score"] < recipe.pairs.min_gap:
            counts["question pairs without a gap"] += 1
            continue
        ids, scores = (best["question_id"], worst["question_id"]), (best["score"], worst["score"])
        rows.append(_pair(student, "question", task.name, prompt, (best["reply"], worst["reply"]), ids, scores))
    return rows


def _sibling_pairs(
    recipe: Recipe, student: str, task: Task, scored: dict[str, pd.DataFrame], has_sign: bool, counts: dict
) -> list[dict]:
    """Pair siblings that help with siblings that harm: instructions of one prompt, and responses to one instruction.

    Both are in the words, and to the prompt, that the teacher wrote them in and to. Where there is no sign (by training
    loss, or by recipe), the siblings above their mean are paired with those below it.
    """
    names = {
        "question": ("prompt_id", "question_id", "reply", "prompt"),
        "rationale": ("question_id", "draft_id", "rationale", "question"),
    }
    rows = []
    for kind, (group, one, text, asked) in names.items():
        for _, siblings in scored[kind].groupby(group, sort=False):
            if len(siblings) < 2:
                continue
            counts[f"{kind} groups of siblings"] += 1
            prompt = siblings[asked].iloc[0]
            prompt = prompts.naive_prompt(task.description, prompt) if kind == "rationale" else prompt
            line = 0.0 if has_sign else siblings["score"].mean()
            made = _crossed(siblings, line, recipe.pairs.min_gap, (text, one), counts)
            counts[f"{kind} groups of one sign"] += not made
            rows += [_pair(student, kind, task.name, prompt, *pair) for pair in made]
    return rows


def _crossed(siblings: pd.DataFrame, line: float, min_gap: float, names: tuple[str, str], counts: dict) -> list[tuple]:
    """Return (texts, ids, scores) of every sibling above the line with every one below that it beats by min_gap."""
    above, below = siblings[siblings["score"] > line], siblings[siblings["score"] < line]
    pairs = []
    for best, worst in product(above.to_dict("records"), below.to_dict("records")):
        if best[names[0]] == worst[names[0]]:
            counts["pairs of equal texts"] += 1
        elif best["score"] - worst["score"] >= min_gap:
            pairs.append(tuple((best[name], worst[name]) for name in (*names, "score")))
    return pairs


def _pair(student, kind, task, prompt, texts, ids, scores) -> dict:
    return {
        "pair_id": text_id(f"{student}/{kind}/{ids[0]}/{ids[1]}"),
        "student": student,
        "kind": kind,
        "task": task,
        "prompt": prompt,
        "chosen": texts[0],
        "rejected": texts[1],
        "chosen_id": ids[0],
        "rejected_id": ids[1],
        "score_chosen": float(scores[0]),
        "score_rejected": float(scores[1]),
        "score_gap": float(scores[0] - scores[1]),
        "flipped": False,
    }


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
