"""Texts that copy one another, in disguise too, and the guard that keeps test questions out."""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Indel

from workbench.runs.recipe import Level
from workbench.runs.seeding import stream

TEMPLATE = 0.9  # a word in more than this share of the items belongs to the task, not to an item
FIRST_LETTER = 0xE000  # words become letters from here on, above the surrogates, which are none

_LAYOUT = re.compile(r"[\W_]+")
_WORD = re.compile(r"\w+|[^\w\s.,:;?!'\"]")
_OPTIONS = re.compile(r"\boptions:[ \t]*\n", re.IGNORECASE)
_LABEL = re.compile(r"\s*(?:\(\w\)|\w[).]|[-*])\s")
_NUMBERS = frozenset(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand".split()
)


def normalise(text: str) -> str:
    """Return the text without case, punctuation and layout; text that has no letter or digit stays as it is."""
    return _LAYOUT.sub(" ", text.casefold()).strip() or text.strip()


def words(text: str) -> list[str]:
    """Return words, numbers, brackets and operators, in lower case; the punctuation of sentences is left out."""
    return _WORD.findall(text.casefold())


def sort_options(text: str) -> str:
    """Return the text with its answer options, if it lists any, without their labels and in alphabetical order."""
    stem, *rest = _OPTIONS.split(text, maxsplit=1)
    options = sorted(_LABEL.sub("", line, count=1).strip() for line in "".join(rest).splitlines())
    return "\n".join([stem, *options]) if rest else text


def reordered(text: str) -> str:
    """Return the words in alphabetical order."""
    return " ".join(sorted(words(text)))


def renamed(text: str) -> str:
    """Return the words with every number, in digits or in words, as 0, and capitalised words by order of appearance."""
    names: dict[str, str] = {}
    forms = []
    for word in _WORD.findall(text):
        if len(word) > 1 and word[0].isupper():
            forms.append(names.setdefault(word, f"Name{len(names)}"))
        else:
            forms.append("0" if word.isnumeric() or word.casefold() in _NUMBERS else word.casefold())
    return " ".join(forms)


class TfidfIndex:
    """Items by what tells them apart; measures how alike a question and each of them are.

    Both measures take `least`, the number of items that must have a question's word or n-gram for it to count: 1 for a
    question from elsewhere, 2 for one of the items themselves, whose own words are unknown to the others.
    """

    def __init__(self, texts: list[str]):
        items = [words(sort_options(text)) for text in texts]
        self._frequency = Counter(word for item in items for word in set(item))
        self._common = TEMPLATE * len(items)
        self._letters = {word: chr(FIRST_LETTER + at) for at, word in enumerate(self._frequency)}
        self._coded = [self._code(item, 1) for item in items]
        grams = [_grams(item) for item in items]
        self._having = {gram: np.array(found) for gram, found in _positions(grams).items()}
        self._weight = {gram: math.log((len(items) + 1) / (len(found) + 0.5)) for gram, found in self._having.items()}
        self._total = np.array([sum(self._weight[gram] for gram in own) for own in grams])

    def near(self, text: str, least: int) -> np.ndarray:
        """Return twice the longest common subsequence of telling words over both lengths, shape (n_items,)."""
        coded = self._code(words(sort_options(text)), least)
        if not coded:
            return np.zeros(len(self._coded))
        return process.cdist([coded], self._coded, scorer=Indel.normalized_similarity, dtype=np.float64)[0]

    def ngram(self, text: str, least: int) -> np.ndarray:
        """Return the weight of common n-grams of 1 to 3 words over that of all n-grams of both, shape (n_items,)."""
        grams = _grams(words(sort_options(text)))
        known = [gram for gram in grams if len(self._having.get(gram, ())) >= least]
        common, weights = np.zeros(len(self._total)), [self._weight[gram] for gram in known]
        for gram, weight in zip(known, weights, strict=True):
            common[self._having[gram]] += weight
        return common / (self._total + sum(weights) - common) if known else common

    def _code(self, item: list[str], least: int) -> str:
        return "".join(self._letters[word] for word in item if least <= self._frequency[word] <= self._common)


def _grams(item: list[str]) -> dict[tuple[str, ...], None]:
    # A dict, not a set: sums over a set would differ in their last digits from one process to the next.
    return {tuple(item[at : at + n]): None for n in (1, 2, 3) for at in range(len(item) - n + 1)}


def _positions(groups: Iterable[Iterable[Hashable]]) -> dict[Hashable, list[int]]:
    """Return of each member in which groups it is, by their place."""
    found: dict[Hashable, list[int]] = {}
    for at, group in enumerate(groups):
        for member in group:
            found.setdefault(member, []).append(at)
    return found


MEASURES: dict[str, Callable[[TfidfIndex, str, int], np.ndarray]] = {"ngram": TfidfIndex.ngram, "near": TfidfIndex.near}

LEVELS: tuple[str, ...] = get_args(Level)
# Each calibrated level finds copies that no other does. Of leaks planted in BIG-Bench Hard, without reordered 57 % in
# another order are found instead of 84, without renamed 39 % with other names instead of 57, and of paraphrases 68 %
# without ngram and 64 % without near instead of 79. A level for other numbers alone found none that renamed does not.
BY_DEFINITION = ("exact", "normalised", "options")
OFF = math.inf
LEAST_ALIKE = {"ngram": 0.5, "near": 0.7}  # less is no copy, however little else the items of a task have in common
COLLAPSED = 0.5  # normalising says nothing where it makes most items the same, as where brackets are the question
MAX_REFERENCE = 1000  # so many items are enough to calibrate on; it keeps that linear in the number of items

_BUT_FOR = {
    "exact": "",
    "normalised": " but for case, punctuation or blanks",
    "options": " but for the order of its options",
    "reordered": " but for the order of its words",
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
    """What a question was found to copy: an item of a set by name, and the first level that found it."""

    level: str
    name: str
    item: str

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
        false_positive_rate: The share of independent questions that the calibrated levels together may take for
            copies, estimated on the sets; with fewer than 2 / false_positive_rate items they are off.

    Attributes:
        questions: Those it guards.
        calibrated: Whether there were items enough to calibrate on.
        thresholds: By level, the similarity above which it speaks; OFF where it cannot tell a copy from a sibling.
    """

    def __init__(
        self,
        sets: Mapping[str, Iterable[str]],
        levels: Collection[str] = LEVELS,
        false_positive_rate: float = 0.02,
    ):
        items = [(name, question) for name, questions in sets.items() for question in dict.fromkeys(questions)]
        self._names = np.array([name for name, _ in items], dtype=object)
        self.questions = [question for _, question in items]
        collapsed = len(set(map(normalise, self.questions))) < COLLAPSED * len(set(self.questions))
        plain = (lambda text: " ".join(text.casefold().split())) if collapsed else normalise
        self._forms = {
            "exact": str,
            "normalised": plain,
            "options": lambda text: plain(sort_options(text)),
            "reordered": reordered,
            "renamed": renamed,
        }
        used = [level for level in LEVELS if level in levels]
        forms = {level: self._forms[level] for level in used if level in self._forms}
        self._index = {level: _positions([form(text)] for text in self.questions) for level, form in forms.items()}
        self.thresholds = {level: 0.0 if level in BY_DEFINITION else OFF for level in used}
        to_calibrate = [level for level in used if level not in BY_DEFINITION]
        # Of items that are the same by definition, in one set, one.
        same = {(name, self._forms["options"](text)): at for at, (name, text) in enumerate(items)}
        reference = np.array(sorted(same.values()), dtype=int)
        self.calibrated = len(reference) * false_positive_rate >= len(MEASURES)
        if self.calibrated and to_calibrate:
            self._tfidf = TfidfIndex(self.questions)
            self.thresholds |= self._calibrate(to_calibrate, reference, false_positive_rate)

    def overlap(self, question: str) -> str:
        """Return why a question may not be used, or "" when it may."""
        return found.reason if (found := self.find(question)) else ""

    def find(self, question: str) -> Overlap | None:
        """Return what a question copies by the first level that says so, the most alike; None when nothing."""
        return next(self.matches(question), None)

    def matches(self, question: str, at_least: Mapping[str, float] | None = None) -> Iterator[Overlap]:
        """Yield everything that a question copies, level by level, the most alike first.

        Args:
            at_least: Thresholds by level that count where they are higher than the guard's own.
        """
        for level, own in self.thresholds.items():
            if (threshold := max(own, (at_least or {}).get(level, own))) < OFF:
                scores = self._scores(level, question)
                for at in np.argsort(-scores, kind="stable")[: (scores > threshold).sum()]:
                    yield Overlap(level, str(self._names[at]), self.questions[at])

    def _scores(self, level: str, question: str, least: int = 1) -> np.ndarray:
        """Return how alike a question and each item are, shape (n_items,); least as in TfidfIndex."""
        if level in MEASURES:
            return MEASURES[level](self._tfidf, question, least).round(6)
        scores = np.zeros(len(self.questions))
        scores[self._index[level].get(self._forms[level](question), [])] = 1.0
        return scores

    def _calibrate(self, levels: list[str], reference: np.ndarray, rate: float) -> dict[str, float]:
        """Return the lowest thresholds that hardly any item passes, compared with the others of its own set.

        Between the sets there may be the very leaks that are looked for. But a question is compared with all sets, so
        the false positives seen within them are taken to grow as the number of items does.
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
        for k in range(int(rate * (len(drawn) + 1)), 0, -1):
            # A new item may be the highest of all by either measure: each of them costs one more than was seen.
            n_positives = len(MEASURES) + (highest > ordered[-k]).any(axis=1).sum()
            if n_positives / (len(drawn) + 1) * grows <= rate:
                lowest = zip(levels, ordered[-k].tolist(), strict=True)
                return {level: max(at, LEAST_ALIKE.get(level, 0.0)) if at < 1.0 else OFF for level, at in lowest}
        return dict.fromkeys(levels, OFF)


@lru_cache(maxsize=32)
def guard_for(
    sets: tuple[tuple[str, tuple[str, ...]], ...], levels: tuple[str, ...], false_positive_rate: float
) -> Guard:
    """Return the guard of these sets, calibrated once in a process."""
    return Guard(dict(sets), levels, false_positive_rate)


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
                found.setdefault(one.item, Overlap(one.level, name, question))
    return found


class NearDuplicates:
    """Texts seen so far, asked whether they hold one that is nearly a new one.

    Similarity is ROUGE-L's F, twice the longest common subsequence of words over both lengths.

    Args:
        threshold: Similarity above which a text counts as a near-duplicate, in (0, 1).
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        # Words become letters, since rapidfuzz compares strings fastest.
        self._letters: dict[str, str] = {}
        self._texts: list[str] = []

    def add(self, text: str) -> None:
        """Remember a text."""
        self._texts.append(self._code(text))

    def _code(self, text: str) -> str:
        return "".join(self._letters.setdefault(word, chr(FIRST_LETTER + len(self._letters))) for word in words(text))

    def holds(self, text: str) -> bool:
        """Return whether a text remembered is more alike than the threshold.

        Example:
            >>> known = NearDuplicates(0.7)
            >>> known.add("Name three rivers of France.")
            >>> known.holds("Name four rivers of France."), known.holds("Name a river.")
            (True, False)
        """
        if not (coded := self._code(text)):
            return False
        best = process.extractOne(coded, self._texts, scorer=Indel.normalized_similarity, score_cutoff=self.threshold)
        return best is not None and best[1] > self.threshold
