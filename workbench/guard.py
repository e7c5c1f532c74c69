"""The sets kept apart: a question that is, in some disguise, already a seed, validation or test item is not used.

Some levels say "the same question" by definition: exact, normalised, options. The others cannot, because the items of
one task resemble each other anyway: two walks with other numbers are two items, a word problem with other numbers is a
copy. So each of them is calibrated on the guarded sets: how alike are independent items, those of one set? Only what is
more alike than that counts, and a level under which independent items are the same is off for the task.

Near-copies are found by rapidfuzz: it compares a question with thousands of items in about a millisecond, exactly and
the same way every time, where a MinHash index would lose short questions by chance.

Ours; the threshold is a conformal one (items left out one by one), over all calibrated levels together.
tests/benchmarks/guard_recall.py measures what is found and what is wrongly accused, task by task.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import get_args

import numpy as np

from workbench.likeness import MEASURES, Telling, layout, normalise, renamed, renumbered, reordered, sort_options
from workbench.recipe import Level
from workbench.seeding import stream

LEVELS: tuple[str, ...] = get_args(Level)
BY_DEFINITION = ("exact", "normalised", "options")
FALSE_ALARMS = 0.02
OFF = math.inf
LEAST_ALIKE = {"ngram": 0.5, "near": 0.7}  # less is no copy, however little else the items of a task have in common
COLLAPSED = 0.5  # normalising says nothing where it makes most items the same, as where brackets are the question
MAX_REFERENCE = 1000  # so many items are enough to calibrate on; it keeps that linear in the number of items

_BUT_FOR = {
    "exact": "",
    "normalised": " but for case, punctuation or blanks",
    "options": " but for the order of its options",
    "reordered": " but for the order of its words",
    "renumbered": " but for its numbers",
    "renamed": " but for its names and numbers",
    "ngram": " in most of its telling n-grams",
    "near": " in nearly all of its telling words",
}


def reason_of(level: str, name: str) -> str:
    """Return how frames word an overlap with a set under `drop_reason`."""
    article = "an" if name[0] in "aeiou" else "a"
    return f"same as {article} {name} item{_BUT_FOR[level]}"


@dataclass(frozen=True)
class Overlap:
    """What a question was found to copy.

    Attributes:
        level: The first level that found it.
        name: Of the set.
        item: The item's text.
        similarity: By that level's measure, from 0 to 1.
    """

    level: str
    name: str
    item: str
    similarity: float

    @property
    def reason(self) -> str:
        """Why the question may not be used."""
        return reason_of(self.level, self.name)


class Guard:
    """Named sets of questions, asked whether they hold a given one.

    Brackets matter in some tasks (a boolean expression), so two texts that differ in punctuation alone count as one
    question here: the guard would rather drop one too many.

    Args:
        sets: The questions by set; of several sets that hold a question the first is reported.
        levels: Those of LEVELS to use.
        false_alarms: The share of independent questions that the calibrated levels together may take for copies,
            estimated on the sets; with fewer than 2 / false_alarms items they are off.

    Attributes:
        questions: Those it guards.
        calibrated: Whether there were items enough to calibrate on.
        thresholds: By level, the similarity above which it speaks; OFF where it cannot tell a copy from a sibling.
    """

    def __init__(
        self,
        sets: Mapping[str, Iterable[str]],
        levels: Collection[str] = LEVELS,
        false_alarms: float = FALSE_ALARMS,
    ):
        items = [(name, question) for name, questions in sets.items() for question in dict.fromkeys(questions)]
        self._names = np.array([name for name, _ in items], dtype=object)
        self.questions = [question for _, question in items]
        collapsed = len(set(map(normalise, self.questions))) < COLLAPSED * len(set(self.questions))
        plain = layout if collapsed else normalise
        self._forms = {
            "exact": str,
            "normalised": plain,
            "options": lambda text: plain(sort_options(text)),
            "reordered": reordered,
            "renumbered": renumbered,
            "renamed": renamed,
        }
        used = [level for level in LEVELS if level in levels]
        self._index = {level: _index(map(self._forms[level], self.questions)) for level in used if level in self._forms}
        self.thresholds = {level: 0.0 for level in used if level in BY_DEFINITION}
        to_calibrate = [level for level in used if level not in BY_DEFINITION]
        reference = self._reference()
        self.calibrated = len(reference) * false_alarms >= len(MEASURES)
        if self.calibrated and to_calibrate:
            self._telling = Telling(self.questions)
            self.thresholds |= self._calibrate(to_calibrate, reference, false_alarms)
        else:
            self.thresholds |= dict.fromkeys(to_calibrate, OFF)

    def overlap(self, question: str) -> str:
        """Return why a question may not be used, or "" when it may."""
        found = self.find(question)
        return found.reason if found else ""

    def find(self, question: str) -> Overlap | None:
        """Return what a question copies by the first level that says so, the most alike; None when nothing."""
        return next(self.matches(question), None)

    def matches(self, question: str, at_least: Mapping[str, float] = MappingProxyType({})) -> Iterator[Overlap]:
        """Yield everything that a question copies, level by level, the most alike first.

        Args:
            question: What may be a copy.
            at_least: Thresholds by level that count where they are higher than the guard's own.
        """
        for level, own in self.thresholds.items():
            threshold = max(own, at_least.get(level, own))
            if threshold < OFF:
                scores = self._scores(level, question)
                for at in np.argsort(-scores, kind="stable")[: (scores > threshold).sum()]:
                    yield Overlap(level, str(self._names[at]), self.questions[at], float(scores[at]))

    def alone(self, level: str, question: str) -> bool | None:
        """Return whether one level alone takes a question for a copy, None where that level is off."""
        threshold = self.thresholds.get(level, OFF)
        return None if threshold == OFF else bool((self._scores(level, question) > threshold).any())

    def _scores(self, level: str, question: str, least: int = 1) -> np.ndarray:
        """Return how alike a question and each item are, shape (n_items,); least as in Telling."""
        if level in MEASURES:
            return MEASURES[level](self._telling, question, least).round(6)
        scores = np.zeros(len(self.questions))
        scores[self._index[level].get(self._forms[level](question), [])] = 1.0
        return scores

    def _reference(self) -> np.ndarray:
        """Return the items to calibrate on: of those that are the same by definition, in one set, one."""
        same = self._forms["options"]
        distinct = {(name, same(text)): at for at, (name, text) in enumerate(zip(self._names, self.questions))}
        return np.array(sorted(distinct.values()), dtype=int)

    def _calibrate(self, levels: list[str], reference: np.ndarray, false_alarms: float) -> dict[str, float]:
        """Return the lowest thresholds that hardly any item passes, compared with the others of its own set.

        Between the sets there may be the very leaks that are looked for. But a question is compared with all sets, so
        the false alarms seen within them are taken to grow as the number of items does.
        """
        drawn = reference
        if len(drawn) > MAX_REFERENCE:
            drawn = np.sort(stream(0, "guard", "reference").choice(drawn, MAX_REFERENCE, replace=False))
        highest, n_mates = np.zeros((len(drawn), len(levels))), []
        for row, at in enumerate(drawn):
            mates = reference[(self._names[reference] == self._names[at]) & (reference != at)]
            n_mates.append(len(mates) + 1)
            if len(mates):
                highest[row] = [self._scores(level, self.questions[at], least=2)[mates].max() for level in levels]
        grows = len(reference) / np.mean(n_mates)
        ordered = np.sort(highest, axis=0)
        for k in range(int(false_alarms * (len(drawn) + 1)), 0, -1):
            # A new item may be the highest of all by either measure: each of them costs one alarm more than was seen.
            n_alarms = len(MEASURES) + (highest > ordered[-k]).any(axis=1).sum()
            if n_alarms / (len(drawn) + 1) * grows <= false_alarms:
                found = zip(levels, ordered[-k].tolist(), strict=True)
                return {level: max(at, LEAST_ALIKE.get(level, 0.0)) if at < 1.0 else OFF for level, at in found}
        return dict.fromkeys(levels, OFF)


def _index(forms: Iterable[str]) -> dict[str, list[int]]:
    index: dict[str, list[int]] = {}
    for at, form in enumerate(forms):
        index.setdefault(form, []).append(at)
    return index


@lru_cache(maxsize=32)
def guard_for(sets: tuple[tuple[str, tuple[str, ...]], ...], levels: tuple[str, ...], false_alarms: float) -> Guard:
    """Return the guard of these sets, calibrated once in a process."""
    return Guard(dict(sets), levels, false_alarms)


def copies(test: Guard, seen: Mapping[str, Guard]) -> dict[str, Overlap]:
    """Return the test items that sets seen before hold, each with the copy that is there.

    Where the items of the other set are more alike among themselves than those of the test set, that is what a copy
    must exceed: the sets may come from different hands.

    Args:
        test: The guard of the test items alone, so that words which only a copy has are unknown to it.
        seen: The guards of the other sets, each alone, by name.
    """
    found: dict[str, Overlap] = {}
    for name, other in seen.items():
        for question in other.questions:
            for one in test.matches(question, other.thresholds if other.calibrated else {}):
                found.setdefault(one.item, Overlap(one.level, name, question, one.similarity))
    return found
