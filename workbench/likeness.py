"""How alike two questions are: the forms in which disguised copies are equal, and two measures for near-copies.

Both measures look at what tells one item from the others of its task: words that almost every item has say nothing,
and words that no item has (a paraphrase brings them) are not held against a question. Ours; weights as in TF-IDF.
"""

import math
import re
from collections import Counter
from collections.abc import Callable

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Indel

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


def layout(text: str) -> str:
    """Return the text without case and with single blanks, for tasks in which punctuation is the question."""
    return " ".join(text.casefold().split())


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


def renumbered(text: str) -> str:
    """Return the words with every number, in digits or in words, replaced by 0."""
    return " ".join("0" if _is_number(word) else word for word in words(text))


def renamed(text: str) -> str:
    """Return the words with numbers replaced by 0 and capitalised words by the order of their first appearance."""
    seen: dict[str, str] = {}
    found = []
    for word in _WORD.findall(text):
        if len(word) > 1 and word[0].isupper():
            found.append(seen.setdefault(word, f"Name{len(seen)}"))
        else:
            found.append("0" if _is_number(word.casefold()) else word.casefold())
    return " ".join(found)


def _is_number(word: str) -> bool:
    return word.isnumeric() or word in _NUMBERS


class Telling:
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
        having: dict[tuple[str, ...], list[int]] = {}
        for at, own in enumerate(grams):
            for gram in own:
                having.setdefault(gram, []).append(at)
        self._having = {gram: np.array(found) for gram, found in having.items()}
        self._weight = {gram: math.log((len(items) + 1) / (len(found) + 0.5)) for gram, found in having.items()}
        self._total = np.array([sum(self._weight[gram] for gram in own) for own in grams])

    def near(self, text: str, least: int) -> np.ndarray:
        """Return twice the longest common subsequence of telling words over both lengths, shape (n_items,)."""
        coded = self._code(words(sort_options(text)), least)
        if not coded:
            return np.zeros(len(self._coded))
        return process.cdist([coded], self._coded, scorer=Indel.normalized_similarity, dtype=np.float64)[0]

    def ngram(self, text: str, least: int) -> np.ndarray:
        """Return the weight of common n-grams of 1 to 3 words over that of all n-grams of both, shape (n_items,)."""
        known = self._known(_grams(words(sort_options(text))), least)
        if not known:
            return np.zeros(len(self._total))
        found = [self._having[gram] for gram in known]
        weights = [self._weight[gram] for gram in known]
        common = np.bincount(
            np.concatenate(found), np.repeat(weights, [len(items) for items in found]), minlength=len(self._total)
        )
        return common / (self._total + sum(weights) - common)

    def _code(self, item: list[str], least: int) -> str:
        return "".join(self._letters[word] for word in item if least <= self._frequency[word] <= self._common)

    def _known(self, grams: dict[tuple[str, ...], None], least: int) -> list[tuple[str, ...]]:
        return [gram for gram in grams if gram in self._having and len(self._having[gram]) >= least]


def _grams(item: list[str]) -> dict[tuple[str, ...], None]:
    # A dict, not a set: sums over a set would differ in their last digits from one process to the next.
    return {tuple(item[at : at + n]): None for n in (1, 2, 3) for at in range(len(item) - n + 1)}


MEASURES: dict[str, Callable[[Telling, str, int], np.ndarray]] = {"ngram": Telling.ngram, "near": Telling.near}
