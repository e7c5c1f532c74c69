"""What there is to see of a pair: its two sides word by word, its signals with intervals, and the answers behind them.

Everything here is plain values, ready for whoever draws it. Text of models is passed on as it is, never as markup.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from rapidfuzz.distance import Indel
from scipy import stats

from workbench.runs import schemas
from workbench.runs.run import Run
from workbench.signals.scores import SIGNAL
from workbench.verdict.intervals import wilson

WORD = re.compile(r"\w+|[^\w\s]")
# Comparing takes one bit for every word of one side and word of the other.
MOST_COMPARED = 2**31
LEFT, UNKNOWN = "left", {"question": "", "target": ""}
FILTERS = ("student", "kind", "task")
OPEN, NOTED = "open", "noted"
SORTS = ("", "worth", "student", "kind", "task", "gap", "p_chosen", "review")


class Evidence(NamedTuple):
    """The frames of a run in which the reasons for its pairs are found, as their schemas describe them."""

    questions: pd.DataFrame
    drafts: pd.DataFrame
    signals: pd.DataFrame
    probes: pd.DataFrame
    preference_set: pd.DataFrame

    @classmethod
    def of_run(cls, run: Run) -> "Evidence":
        """Read what a run has drafted and probed, or raise a RunError that names the notebook and the command."""
        frames = [run.read("questions"), run.read("drafts"), run.read("signals").dropna(subset="value")]
        probes = run.read("probes") if run.has("probes") else schemas.build([], "probes")
        return cls(*frames, probes, run.read("preference_set"))


class Heat(NamedTuple):
    """How the student did on each preference question under each candidate."""

    questions: list[dict]  # item_id, question and target of each column
    names: list[str]  # what each row is: a technique, or which side's questions
    ids: list[str]  # ids of the rows
    # Shape (n_candidates, n_questions), 1 right, 0 wrong, between for means over rationales; nan not asked.
    scores: np.ndarray
    answers: list[list[str]]  # what the student answered, the same shape; "" for means
    # How many questions the two sides of the pair differ on; these come first, the largest for chosen at the left.
    n_decisive: int

    def plain(self) -> dict:
        """Return the same as values that JSON can hold."""
        rows = [[None if np.isnan(score) else round(float(score), 3) for score in row] for row in self.scores]
        return self._asdict() | {"scores": rows}


def columns(pairs: pd.DataFrame, drafts: pd.DataFrame) -> pd.DataFrame:
    """Return what pairs are sorted by: student, kind, task, p_chosen, gap, wrong and worth; a row a pair.

    wrong: chosen has a wrong answer and rejected a right one, as far as answers can be checked. worth: how much a
    person's word is likely to change, the probability that the signal has it the wrong way round (one half where it is
    not known); pairs that are wrong come before all others.
    """
    checked = drafts[drafts["gold"] != ""]
    right = pd.Series(checked["correct"].to_numpy(), index=checked["draft_id"].to_numpy())
    chosen, rejected = (pairs[side].map(right).astype("boolean") for side in ("chosen_id", "rejected_id"))
    wrong = (~chosen & rejected).fillna(False).to_numpy(dtype=bool)
    worth = 1.0 - pairs["p_chosen"].fillna(0.5).to_numpy() + wrong
    return pairs[[*FILTERS, "p_chosen"]].assign(gap=pairs["score_gap"], wrong=wrong, worth=worth)


def word_differences(left: str, right: str) -> tuple[list[tuple[bool, str]], list[tuple[bool, str]]]:
    """Return both texts in pieces, each with whether the other text lacks it.

    Words are compared; blanks and signs are not, and belong to what is around them. The pieces put together are
    the text. Texts of very many words are not compared and come as one piece.

    Example:
        >>> word_differences("two red apples", "two apples")
        ([(False, 'two '), (True, 'red'), (False, ' apples')], [(False, 'two apples')])
    """
    words = WORD.findall(left), WORD.findall(right)
    if len(words[0]) * len(words[1]) > MOST_COMPARED:
        return [(False, left)], [(False, right)]
    differs = [np.array([word[0].isalnum() for word in own], dtype=bool) for own in words]
    for block in Indel.opcodes(*words):
        if block.tag == "equal":
            differs[0][block.src_start : block.src_end] = False
            differs[1][block.dest_start : block.dest_end] = False
    return _pieces(left, differs[0]), _pieces(right, differs[1])


def _pieces(text: str, differs: np.ndarray) -> list[tuple[bool, str]]:
    """Return a text cut where words that the other lacks begin and end."""
    pieces, start, end, inside = [], 0, 0, False
    ends = [(word.start(), word.end(), now) for word, now in zip(WORD.finditer(text), differs.tolist(), strict=True)]
    for first, last, now in [*ends, (len(text), len(text), False)]:
        if now != inside:
            # Blanks before a difference and after it are not part of it.
            cut = first if now else end
            pieces.append((inside, text[start:cut]))
            start, inside = cut, now
        end = last
    pieces.append((False, text[start:]))
    return [piece for piece in pieces if piece[1]]


def interval(signal: Mapping) -> tuple[float, float]:
    """Return the 95 % interval of a signal's value: Wilson's for a rationale's share, else by the standard error."""
    if signal["signal"] == SIGNAL and signal["item_kind"] == "rationale":
        return wilson(signal["value"], signal["n"])
    half = stats.norm.ppf(0.975) * signal["stderr"]
    return float(signal["value"] - half), float(signal["value"] + half)


class Lookup:
    """Finds in the frames of a run, quickly also when they are large, what belongs to one pair."""

    def __init__(self, evidence: Evidence):
        self.evidence = evidence
        # Made here and not at the first pair: with millions of probes it takes seconds, and the page would wait.
        probes = evidence.probes
        self._probes, self._signals = _Positions(probes["draft_id"]), _Positions(evidence.signals["draft_id"])
        self._siblings, self._drafts = (_Positions(evidence.drafts[name]) for name in ("question_id", "draft_id"))
        frames = (evidence.drafts, evidence.signals)
        self._of_drafts, self._of_signals = ({name: frame[name].array for name in frame} for frame in frames)
        self._right = probes["correct"].to_numpy(dtype=float)
        self._student, self._students = pd.factorize(probes["student"])
        self._asked, self._item_ids = pd.factorize(probes["item_id"], sort=True)

    @cached_property
    def _items(self) -> dict[str, dict]:
        items = self.evidence.preference_set.drop_duplicates("item_id").set_index("item_id")
        return items[["question", "target"]].astype(str).to_dict("index")

    def draft(self, draft_id: str) -> dict:
        """Return a draft; {} for an id that is a question's or unknown."""
        places = self._drafts.of([draft_id])
        return _row(self._of_drafts, places[0]) if len(places) else {}

    def side(self, pair: Mapping, side: str) -> dict:
        """Return what is known of the chosen or rejected side of a pair, without its text."""
        one = pair[f"{side}_id"]
        draft = self.draft(one) if pair["kind"] == "rationale" else {}
        signals = []
        for row in (_row(self._of_signals, place) for place in self._signals.of([one])):
            if (row["student"], row["item_kind"]) == (pair["student"], pair["kind"]):
                ends = dict(zip(("low", "high"), interval(row), strict=True))
                signals.append({key: row[key] for key in ("signal", "value", "n")} | ends)
        known = {key: draft.get(key, "") for key in ("technique", "answer", "gold")}
        correct = bool(draft["correct"]) if known["gold"] else None
        return {"id": one, **known, "correct": correct, "signals": signals}

    def heat(self, pair: Mapping) -> Heat | None:
        """Return the answers that the scores of a pair's candidates are made of; None when it was not probed.

        The candidates of a pair of rationales are all rationales of the question; of a pair of questions, the two, each
        with the mean over its rationales.
        """
        groups = self._groups(pair)
        parts = [self._probes.of(own) for own in groups.values()]
        rows, group = np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        own = self._student[rows] == self._students.get_indexer([pair["student"]])[0]
        rows, group = rows[own], group[own]
        if not len(rows):
            return None
        asked, column = np.unique(self._asked[rows], return_inverse=True)
        scores = _means(group, column, self._right[rows], (len(groups), len(asked)))
        difference = np.nan_to_num(scores[0] - scores[1])
        # Decisive questions first, the largest difference for chosen at the left; the rest as they come.
        order = np.lexsort((-difference, difference == 0))
        answers = np.full(scores.shape, "", dtype=object)
        if all(len(own) == 1 for own in groups.values()):
            said = self.evidence.probes["answer"].array
            answers[group, column] = [said[row] for row in rows]
        return Heat(
            [{"item_id": item} | self._items.get(item, UNKNOWN) for item in self._item_ids[asked[order]]],
            [self._name(pair, one) for one in groups],
            list(groups),
            scores[:, order],
            answers[:, order].tolist(),
            int((difference != 0).sum()),
        )

    def _groups(self, pair: Mapping) -> dict[str, list[str]]:
        """Return id of a candidate -> ids of the drafts it stands for, the pair's own two first."""
        sides = [pair["chosen_id"], pair["rejected_id"]]
        if pair["kind"] == "question":
            return {one: self._drafts_of(one) for one in sides}
        question = self.draft(sides[0]).get("question_id", "")
        return {one: [one] for one in dict.fromkeys([*sides, *self._drafts_of(question)])}

    def _drafts_of(self, question_id: str) -> list[str]:
        ids = self._of_drafts["draft_id"]
        return [ids[place] for place in self._siblings.of([question_id])]

    def _name(self, pair: Mapping, one: str) -> str:
        side = {pair["chosen_id"]: "chosen", pair["rejected_id"]: "rejected"}.get(one, "")
        technique = self.draft(one).get("technique", "")
        return " · ".join(filter(None, [technique, side]))


def _means(row: np.ndarray, column: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the mean of the values that belong in each cell of a table; nan where there are none."""
    cell = np.ravel_multi_index((row, column), shape)
    sums, counts = (np.bincount(cell, weights, minlength=shape[0] * shape[1]) for weights in (values, None))
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0).reshape(shape)


def _row(columns: Mapping, place: int) -> dict:
    """Return one row as plain values; of a long frame with texts pandas itself goes through whole columns for that."""
    values = {name: column[place] for name, column in columns.items()}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


class _Positions:
    """Where each value of a long column stands, found by bisection: a dictionary of millions would take seconds."""

    def __init__(self, column: pd.Series):
        codes, names = pd.factorize(column)
        self.order = np.argsort(codes, kind="stable")
        self.starts = np.searchsorted(codes[self.order], np.arange(len(names) + 1))
        self.names = pd.Index(names)
        self.of(self.names[:1])

    def of(self, values) -> np.ndarray:
        found = self.names.get_indexer(list(values))
        parts = [self.order[self.starts[code] : self.starts[code + 1]] for code in found if code >= 0]
        return np.concatenate(parts) if parts else np.array([], dtype=int)
