"""Win rates as people report them: how often an answer of one beats that of another, a tie counting half.

By right answers (in every comparison of a verdict), or by a judge that is asked in both orders. Beside the raw rate
stands the length-controlled one, which says what it would be at equal lengths.

Source: AlpacaEval's length-controlled win rate, arXiv:2404.04475, without its term for the difficulty of instructions,
which it takes from a table fitted to its own. Intervals are ours: clustered by prompt.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.runs.cache import atomic_write
from workbench.runs.errors import DataError
from workbench.runs.seeding import stream
from workbench.signals.difficulty import Judge
from workbench.verdict.intervals import clustered_mean, percentiles

N_RESAMPLES = 500
RIDGE = 1e-3  # keeps the fit finite where one side wins always; in squared units of the weights, a prompt weighing 1


def win_rate_of(table: np.ndarray, half: float) -> dict[str, float]:
    """Return the win rate of right over wrong answers, from differences of right answers.

    The rate is (1 + mean) / 2, so its interval is that of the mean, over seeds and items, moved and halved.

    Args:
        table: 1.0 where a alone was right, -1.0 where b alone was, else 0.0; shape (n_seeds, n_items).
        half: Half the width of the interval of its mean.

    Example:
        >>> win_rate_of(np.array([[1.0, 0.0, 0.0, -1.0], [1.0, 1.0, 0.0, 0.0]]), 0.2)["win_rate"]
        0.625
    """
    table = np.asarray(table, float)
    rate = (1 + float(table.mean())) / 2
    ends = {"win_low": max(rate - half / 2, 0.0), "win_high": min(rate + half / 2, 1.0)}
    return {"win_rate": rate, **ends, "wins": float((table > 0).mean()), "ties": float((table == 0).mean())}


def judged(asked: pd.DataFrame, judge: Judge) -> pd.Series:
    """Return who a judge prefers: 1 for a, 0 for b, 0.5 for a tie, missing where it gave no judgement.

    Args:
        asked: Columns task, question, gold ("" where unknown), a and b (their answers).
        judge: Scores both, in both orders where it is a model.
    """
    sides = asked.rename(columns={"a": "teacher", "b": "student"})
    scores = judge(sides[["task", "question", "gold", "teacher", "student"]])
    gap = scores["score_teacher"] - scores["score_student"]
    return ((1 + np.sign(gap)) / 2).set_axis(asked.index)


def raw_and_controlled(
    preferences: np.ndarray, lengths: np.ndarray, others: np.ndarray, prompts: np.ndarray
) -> dict[str, float]:
    """Return the raw and the length-controlled win rate of a over b, with 95 % intervals clustered by prompt.

    Args:
        preferences: As judged returns them, shape (n,); missing ones are left out.
        lengths: Of a's answers, in characters or tokens, shape (n,).
        prompts: What each was asked; the answers of several seeds to one prompt belong together.

    Returns:
        win_rate, low, high, controlled, controlled_low, controlled_high, n (judged), not_judged.

    Raises:
        DataError: If nothing was judged.
    """
    values, known = np.asarray(preferences, float), np.isfinite(np.asarray(preferences, float))
    if not known.any():
        raise DataError(f"None of {len(values)} pairs was judged, so there is no win rate; take another judge.")
    values, prompts = values[known], np.asarray(prompts)[known]
    apart = (np.asarray(lengths, float) - np.asarray(others, float))[known]
    rate, low, high = clustered_mean(values, prompts)
    rng, clusters = stream(0, "win rates"), list(pd.Series(range(len(values))).groupby(prompts).indices.values())
    again = []
    for _ in range(N_RESAMPLES):
        at = np.concatenate([clusters[one] for one in rng.integers(len(clusters), size=len(clusters))])
        again.append(length_controlled(values[at], apart[at]))
    ends = dict(zip(("controlled_low", "controlled_high"), percentiles(np.array(again)), strict=True))
    raw = {"win_rate": rate, "low": max(low, 0.0), "high": min(high, 1.0)}
    counts = {"n": len(values), "not_judged": int((~known).sum())}
    return raw | {"controlled": length_controlled(values, apart)} | ends | counts


def length_controlled(preferences: np.ndarray, apart: np.ndarray) -> float:
    """Return the win rate at equal lengths: of logit p = w0 + w1 tanh(apart / its spread), the p at apart = 0.

    Args:
        preferences: 1, 0 or between, shape (n,).
        apart: Length of the one answer minus that of the other, shape (n,).

    Example:
        >>> length_controlled(np.array([1.0, 0.0, 1.0, 0.0]), np.array([9.0, -9.0, 8.0, -8.0]))
        0.5
    """
    spread = float(np.std(apart)) or 1.0
    x = np.stack([np.ones(len(apart)), np.tanh(np.asarray(apart, float) / spread)], axis=1)
    weights, ridge = np.zeros(2), RIDGE * len(apart) * np.eye(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ weights))
        step = np.linalg.solve(x.T @ (x * (p * (1 - p))[:, None]) + ridge, x.T @ (preferences - p) - ridge @ weights)
        weights += step
        if np.abs(step).max() < 1e-8:
            break
    return round(float(1 / (1 + np.exp(-weights[0]))), 9)


def write_alpaca_eval(answers: pd.DataFrame, generator: str, path: Path) -> None:
    """Write answers, columns question and text, as AlpacaEval's `--model_outputs` reads them."""
    rows = [{"instruction": row.question, "output": row.text, "generator": generator} for row in answers.itertuples()]
    atomic_write(path, (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode())


def write_mt_bench(answers: pd.DataFrame, model: str, path: Path) -> None:
    """Write answers as MT-Bench's judge (FastChat) reads them: a line a question, each with one turn.

    Args:
        answers: Columns question_id and text.
        path: The JSONL file, which FastChat looks for under model_answer/ by the model's name.
    """
    rows = [
        {"question_id": row.question_id, "model_id": model, "choices": [{"index": 0, "turns": [row.text]}]}
        for row in answers.itertuples()
    ]
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
