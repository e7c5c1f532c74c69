"""How a task's answers are read from what a model wrote, and compared: tagged, exact, option, number, boolean, regex.

A model that was asked for a tag often writes none: it boxes its answer, puts it behind '####' or says "the answer is".
What is stated most plainly is tried first, and what cannot be read as the task's kind of answer is passed over.

Ours, since math-verify, the library for numbers and formulas, takes no options, truth values or patterns, and reads
other numbers than meant where prose stands around them: "8 (5 red, 3 green)" is 3 there, "2 1/2 hours" is 1, and a
typographic minus is nothing. Formulas as answers would be a reason to take it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from workbench.runs.recipe_parts import AnswerType

CUE = "Answer: Let's think step by step."
_ANSWER = re.compile(r"<ans>(.*?)</ans>", re.DOTALL)


def parse_answer(reply: str) -> str:
    """Return the last tagged answer, or "" when there is none."""
    found = _ANSWER.findall(reply)
    return found[-1].strip() if found else ""


def normalise_answer(answer: str) -> str:
    """Return the answer without case, outer brackets, final stop and doubled blanks: "(A)", "a." and "A" are one."""
    plain = " ".join(answer.casefold().split()).rstrip(".")
    return plain[1:-1].strip() if re.fullmatch(r"\([^()]*\)", plain) else plain


def grade(answer: str, target: str) -> bool:
    """Return whether the answer is the target; an answer with nothing in it never is."""
    plain = normalise_answer(answer)
    return bool(plain) and plain == normalise_answer(target)


_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_AFTER_MARK = re.compile(r"####[ \t]*(\S.*)")
_SAID = re.compile(r"\banswer(?:\s+(?:is|must be|should be|equals|would be)|\s*[:=])[\s:]*(.*)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<!\b[A-Z])[.!?](?=\s|$)|\n")
# A model that was not stopped goes on with a question of its own, whose answer is not the one asked for.
_NEXT_QUESTION = re.compile(r"\n\s*(?:Question|Q)\s*:")

_LATEX = (
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r" (\1)/(\2)"),
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"\\frac(\d)(\d)"), r" \1/\2"),
    (re.compile(r"(?<=\d)(?:\{,\}|\\[,!:;]\s?)(?=\d)"), ","),
    (re.compile(r"\\[()\[\]]"), " "),
    (re.compile(r"\\([$%{}#&_])"), r"\1"),
    (re.compile(r"\\[,!:; ]"), " "),
)
_SIGNS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2019": "'"})
_MARKDOWN = re.compile(r"\*\*|__|`|^#+\s+", re.MULTILINE)

# A sign counts where nothing stands before it that it could be taken from.
_NUMBER = re.compile(
    r"(?<![\w.,/])(?P<sign>-\s?)?(?:(?<=\d)|[$€£¥]\s?)?(?P<inner>-)?\(?"
    r"(?P<whole>\d{1,3}(?:[, ]\d{3})+(?!\d)|\d+)?(?P<part>\.\d+)?(?P<power>[eE][+-]?\d+)?\)?"
    r"(?:\s*/\s*\(?(?P<under>\d+)\)?|\s+(?P<top>\d+)\s*/\s*(?P<bottom>\d+))?"
)
_OPTION = (
    re.compile(r"\(([A-Z])\)"),
    re.compile(r"^\W*(?:option|choice)?\s*\(?([A-Z])\)?\s*(?:[).:,]|$)", re.IGNORECASE),
    re.compile(r"\b(?:[Oo]ption|[Cc]hoice)\s+\(?([A-Z])\b"),
    re.compile(r"^\W*([B-HJ-Z])\b"),
)
_NAMED = re.compile(r"\(([A-Z])\)|\b[Oo]ption\s+([A-Z])\b")
_LINE_OF_OPTION = re.compile(r"\W*(?:[Oo]ption\s+)?([A-Z])(?:[).:]\s.*|\W*)")
# "No" before a noun ("no doubt") and "true" before a clause ("true that") answer nothing.
_BOOLEAN = re.compile(r"\b(yes|no|true|false)\b(?=\s*(?:[^\w\s]|$|\n))", re.IGNORECASE)
_TRUTH = {"yes": "true", "true": "true", "no": "false", "false": "false"}


@dataclass(frozen=True)
class Answers:
    r"""How the answers of a task are read.

    Args:
        kind: tagged: the text of the last <ans> tag and nothing else, as in ARTE. exact: any text, if it is stated
            plainly. option: a letter. number: with any unit. boolean: yes and true are one. regex: what the pattern
            finds.
        pattern: For regex; its first group counts if it has one, the last match if there are several.

    Example:
        >>> number = Answers("number")
        >>> number.read("She has **1,250 apples**, so the answer is $\\boxed{1{,}250}$ apples.")
        '1250'
        >>> number.same("1250", "1250.0 apples")
        True
    """

    kind: AnswerType = "tagged"
    pattern: str = ""

    def read(self, reply: str) -> str:
        """Return the answer that a reply gives, in the form it is compared in, or "" when it gives none."""
        if self.kind == "tagged":
            return parse_answer(reply)
        own = _NEXT_QUESTION.split(reply)[0]
        if self.kind == "exact":
            return next((found for text in _stated(own) if (found := _exact(text))), "")
        stated = (found for text in _stated(own) if (found := self._by(_FIRST, text)))
        return next(stated, "") or self._by(_LAST, own)

    def read_gold(self, target: str) -> str:
        """Return a task's own answer in the form it is compared in, or "" when it is not of this kind."""
        if self.kind in ("tagged", "exact"):
            return normalise_answer(target)
        return self._by(_FIRST, target)

    def same(self, answer: str, target: str) -> bool:
        """Return whether an answer, as read, is the target; an answer with nothing in it never is."""
        return bool(plain := self._compared(answer)) and plain == self.read_gold(target)

    def alike(self, one: str, other: str) -> bool:
        """Return whether two answers, both as read, are the same; answers with nothing in them never are."""
        return bool(plain := self._compared(one)) and plain == self._compared(other)

    def _compared(self, read: str) -> str:
        if self.kind == "exact":
            read = _exact(read)
        return normalise_answer(read) if self.kind in ("tagged", "exact", "regex") else self._by(_FIRST, read)

    def _by(self, readers: Mapping[str, Callable[[str], str]], text: str) -> str:
        """Read a text that is, or begins with, an answer by _FIRST, a reply that states nothing by _LAST."""
        return _by_pattern(self.pattern, text) if self.kind == "regex" else readers[self.kind](_plain(text))


def _stated(reply: str) -> Iterator[str]:
    """Yield what a reply states as its answer, the most plainly stated first."""
    if tagged := parse_answer(reply):
        yield tagged
    yield from (_inside(reply, found.end()) for found in reversed(list(_BOXED.finditer(reply))))
    yield from reversed(_AFTER_MARK.findall(reply))
    plain = _plain(reply).replace(CUE, "")
    for found in reversed(list(_SAID.finditer(plain))):
        yield _SENTENCE_END.split(found[1].strip(), maxsplit=1)[0]


def _inside(text: str, start: int) -> str:
    """Return the text from start to the brace that closes there."""
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[start:at]
    return text[start:]


def _plain(text: str) -> str:
    """Return a text without markdown and with LaTeX's signs in their plain form."""
    text = _MARKDOWN.sub("", text.translate(_SIGNS))
    for found, put in _LATEX:
        text = found.sub(put, text)
    return text


def _exact(text: str) -> str:
    return " ".join(_plain(text).strip().strip("$\"'").split()).rstrip(".")


def _numbers(text: str) -> list[Fraction]:
    return [value for found in _NUMBER.finditer(text) if (value := _value(found)) is not None]


def _value(found: re.Match) -> Fraction | None:
    whole, part = found["whole"] or "", found["part"] or ""
    if not (whole or part) or len(found["power"] or "") > 4:
        return None
    value = Fraction(re.sub("[, ]", "", whole or "0") + part + (found["power"] or ""))
    under, bottom = int(found["under"] or 1), int(found["bottom"] or 1)
    if not under or not bottom:
        return None
    value = value / under + Fraction(int(found["top"] or 0), bottom)
    return -value if found["sign"] or found["inner"] else value


def _written(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    decimal = Fraction(str(float(value)))
    return str(float(value)) if decimal == value else str(value)


def _first_number(text: str) -> str:
    """Return the first number behind the last equals sign, since a result comes before what it is counted in."""
    found = next((numbers for part in reversed(text.split("=")) if (numbers := _numbers(part))), [])
    return _written(found[0]) if found else ""


def _last_number(text: str) -> str:
    found = _numbers(text)
    return _written(found[-1]) if found else ""


def _first_option(text: str) -> str:
    found = next((found for pattern in _OPTION if (found := pattern.search(text.strip()))), None)
    return found[1].upper() if found else ""


def _last_option(text: str) -> str:
    *_, line = [line for line in text.splitlines() if line.strip()] or [""]
    if (alone := _LINE_OF_OPTION.fullmatch(line)) and len(_NAMED.findall(line)) < 2:
        return alone[1]
    found = _NAMED.findall(text)
    return "".join(found[-1]) if found else ""


def _first_boolean(text: str) -> str:
    found = _BOOLEAN.search(text) or re.match(r"\W*(yes|no|true|false)\b", text, re.IGNORECASE)
    return _TRUTH[found[1].lower()] if found else ""


def _last_boolean(text: str) -> str:
    """Return the last truth value, or the first when a reply begins with it and explains it afterwards."""
    if found := re.match(r"\W*(yes|no|true|false)\b(?=\s*[^\w\s])", text, re.IGNORECASE):
        return _TRUTH[found[1].lower()]
    found = _BOOLEAN.findall(text)
    return _TRUTH[found[-1].lower()] if found else ""


def _by_pattern(pattern: str, text: str) -> str:
    found = list(re.finditer(pattern, text))
    if not found:
        return ""
    last = found[-1]
    return normalise_answer((last[1] if last.re.groups else last[0]) or "")


_FIRST = {"number": _first_number, "option": _first_option, "boolean": _first_boolean}
_LAST = {"number": _last_number, "option": _last_option, "boolean": _last_boolean}
