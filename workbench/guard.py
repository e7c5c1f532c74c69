"""The sets kept apart: a question that is, but for layout, already a seed, validation or test item is not used."""

import re
from collections.abc import Iterable, Mapping

_LAYOUT = re.compile(r"[\W_]+")


def normalise(text: str) -> str:
    """Return the text without case, punctuation and layout; text that has no letter or digit stays as it is."""
    return _LAYOUT.sub(" ", text.casefold()).strip() or text.strip()


class Guard:
    """Named sets of questions, asked whether they hold a given one.

    Brackets matter in some tasks (a boolean expression), so two texts that differ in punctuation alone count as one
    question here: the guard would rather drop one too many.
    """

    def __init__(self, sets: Mapping[str, Iterable[str]]):
        self._exact: dict[str, str] = {}
        self._normalised: dict[str, str] = {}
        for name, questions in sets.items():
            for question in questions:
                self._exact.setdefault(question, name)
                self._normalised.setdefault(normalise(question), name)

    def overlap(self, question: str) -> str:
        """Return why a question may not be used, or "" when it may."""
        if question in self._exact:
            return f"same as a {self._exact[question]} item"
        name = self._normalised.get(normalise(question))
        return f"same as a {name} item but for case, punctuation or blanks" if name else ""
