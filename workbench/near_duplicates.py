"""Texts that share most of their words, in order: found without comparing each with all that came before."""

import math
from array import array

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Indel

from workbench.likeness import FIRST_LETTER, words

SEEN_TOGETHER = 4  # of a text's rarest words; with more of them fewer texts are compared, but more are looked up


class NearDuplicates:
    """Texts seen so far, asked whether they hold one that is nearly a new one.

    Likeness is ROUGE-L's F, twice the longest common subsequence of words over both lengths. Two texts that are more
    alike than the threshold share so many words that some of the rarest of one cannot be missing in the other: only
    texts that hold those are compared. In open text few do; in texts made from one template nearly all do, and nearly
    all are alike anyway.

    Args:
        threshold: Likeness above which a text counts as a near-duplicate, in (0, 1).
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        # Words become letters, since rapidfuzz compares strings fastest.
        self._letters: dict[str, str] = {}
        self._texts: list[str] = []
        self._having: dict[str, array] = {}

    def add(self, text: str) -> None:
        """Remember a text."""
        own = self._code(text)
        for letter in set(own):
            self._having.setdefault(letter, array("i")).append(len(self._texts))
        self._texts.append(own)

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
        own = self._code(text)
        # F > t and LCS <= the other's length: the other has more than t / (2 - t) of as many words as this one, and
        # they share more than that many. So of this text's words all but that many can be missing, and no more.
        n_shared = math.floor(len(own) * self.threshold / (2 - self.threshold)) + 1
        n_seen = min(SEEN_TOGETHER, n_shared)
        rarest = sorted(own, key=lambda letter: len(self._having.get(letter, ())))[: len(own) - n_shared + n_seen]
        having = [np.frombuffer(self._having[letter], dtype=np.int32) for letter in rarest if letter in self._having]
        if not having:
            return False
        found, n_found = np.unique(np.concatenate(having), return_counts=True)
        near = [self._texts[at] for at in found[n_found >= n_seen]]
        best = process.extractOne(own, near, scorer=Indel.normalized_similarity, score_cutoff=self.threshold)
        return best is not None and best[1] > self.threshold
