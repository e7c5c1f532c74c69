"""Texts that share most of their words, in order: found without comparing each with all that came before."""

import math
from collections import defaultdict

from rapidfuzz.distance import Indel

from workbench.likeness import words


class NearDuplicates:
    """Texts seen so far, asked whether they hold one that is nearly a new one.

    Likeness is ROUGE-L's F, twice the longest common subsequence of words over both lengths. Two texts that are more
    alike than the threshold share so many words that each of the rarest of one cannot be missing in the other: only
    texts that hold one of those are compared. In open text few do, so the work grows about as the number of texts; in
    texts made from one template nearly all do, and nearly all are alike anyway.

    Args:
        threshold: Likeness above which a text counts as a near-duplicate, in (0, 1).
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self._texts: list[list[str]] = []
        self._having: dict[str, list[int]] = defaultdict(list)

    def add(self, text: str) -> None:
        """Remember a text."""
        own = words(text)
        for word in set(own):
            self._having[word].append(len(self._texts))
        self._texts.append(own)

    def holds(self, text: str) -> bool:
        """Return whether a text remembered is more alike than the threshold.

        Example:
            >>> known = NearDuplicates(0.7)
            >>> known.add("Name three rivers of France.")
            >>> known.holds("Name four rivers of France."), known.holds("Name a river.")
            (True, False)
        """
        own = words(text)
        # F > t and LCS <= the other's length: the other has more than t / (2 - t) of as many words as this one, and
        # they share more than that many. So of this text's words all but that many can be missing, and no more.
        n_shared = math.floor(len(own) * self.threshold / (2 - self.threshold)) + 1
        rarest = sorted(own, key=lambda word: len(self._having.get(word, ())))[: max(0, len(own) - n_shared + 1)]
        near = {at for word in set(rarest) for at in self._having.get(word, ())}
        return any(
            Indel.normalized_similarity(own, self._texts[at], score_cutoff=self.threshold) > self.threshold
            for at in near
        )
