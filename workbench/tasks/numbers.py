"""Numbers as people and models write them, read exactly: signs, groups, decimal commas, powers, fractions, scales.

The text must be in the plain form of workbench.tasks.answers, in which half of a whole is 1/2 and a square ^{2}.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

MOST_DIGITS = 400  # more than any answer has; Python refuses to turn thousands of them into a number
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.,/])(?P<sign>- ?|(?:minus|negative)\s+)?(?:(?:[A-Z]{1,2})?[$€£¥₹₽₩]\s?)?(?P<inner>-)?"
    r"(?:(?P<grouped>(?!0)\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!,?\d)|\d{1,3}(?: \d{3})+(?:\.\d+)?(?!,?\d)"
    r"|\d{1,2}(?:,\d{2})+,\d{3}(?!,?\d))"
    r"|(?P<comma>\d{1,3}(?:[. ]\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}|0,\d+|\d+,(?:\d{1,2}|\d{4,}))(?!,?\d)"
    r"|(?P<plain>\d+(?:\.\d+)?|\.\d+))"
    r"(?:[eE](?P<e>[+-]?\d{1,9})(?!\w)|\s*[x×*·]\s*10\s*\^\s*\{?(?P<ten>-?\d{1,9})\}?"
    r"|\s*(?:\^|\*\*)\s*\{?(?P<power>-?\d{1,9})\}?)?"
    r"(?:\s*/\s*(?P<under>\d+(?:\.\d+)?)(?![\d/])|\s+(?P<top>\d+)\s*/\s*(?P<bottom>\d+)(?![\d/]))?"
    rf"(?:\s+(?P<scale>{'|'.join(_SCALES)})\b)?",
    re.IGNORECASE,
)
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])\s*\^\s*(?:\{-?\d+\}|-?\d+)")
# Behind a result stands why it is one, with numbers of its own.
_REASON = re.compile(r"\b(?:because|since|as|which|where|given|from|after)\b")
_ASIDE = re.compile(r"\([^()]{0,80}[-+*/×=][^()]{0,80}\)")
_WORDS = dict(
    zip("zero one two three four five six seven eight nine ten eleven twelve".split(), range(13), strict=True)
)
# What makes a number more than a number with its unit: another number, an unknown, a root, a bound, a sum.
_UNREAD = re.compile(r"[\d\\^*+√π×<>≤≥±|]|^\s*[xyzn]\b|-\s*$|^\s*[-/!]")


def numbers_in(text: str) -> Iterator[tuple[Fraction, re.Match]]:
    """Yield every number of a text with its place; not what would divide by nothing or has more than MOST_DIGITS."""
    text = _UNIT_POWER.sub("", text)
    for found in _NUMBER.finditer(text):
        if (value := _value(found)) is not None:
            yield (-value if _is_negative(found) else value), found


def result_in(text: str) -> str:
    """Return the number that a statement gives, in written form: the first behind its last equals sign, before its
    reasons; "" if it gives none."""
    for part in _REASON.split(text):
        for side in [*reversed(re.split("[=共]", _ASIDE.sub("", part))), part]:
            for value, _ in numbers_in(side):
                return written(value)
    word = re.match(r"\W*(\w+)", text)
    return str(_WORDS.get(word[1].lower(), "")) if word else ""


def last_number(text: str) -> str:
    """Return the last number of a text in written form, or ""; one in brackets that reckon if there is no other."""
    for part in (_ASIDE.sub("", text), text):
        if values := [value for value, _ in numbers_in(part)]:
            return written(values[-1])
    return ""


@lru_cache(maxsize=10_000)
def whole_number(text: str) -> tuple[str, str]:
    """Return (the number that a text is, in written form, its decimal sign), or ("", "") if it is more or less.

    A unit may stand around it, and before it what it equals. The decimal sign is "," or "." where the text decides it.
    """
    side = _UNIT_POWER.sub("", text.rpartition("=")[2])
    values = list(numbers_in(side))
    if len(values) != 1:
        return "", ""
    value, found = values[0]
    before, after = side[: found.start()], side[found.end() :]
    if _UNREAD.search(before) or _UNREAD.search(after) or (found["sign"] and not _is_negative(found)):
        return "", ""
    comma = bool(found["comma"])
    dot = "." in (found["grouped"] or found["plain"] or "") or "," in (found["grouped"] or "")
    return written(value), "," if comma else "." if dot else ""


def written(value: Fraction) -> str:
    """Return a number in the one form in which numbers are compared: whole, decimal where exact, else a fraction."""
    if value.denominator == 1:
        return str(value.numerator)
    try:
        decimal = str(float(value))
        return decimal if Fraction(decimal) == value else str(value)
    except (OverflowError, ValueError):
        return str(value)


def _value(found: re.Match) -> Fraction | None:
    if len(found[0]) > 2 * MOST_DIGITS:
        return None
    base = re.sub("[. ]", "", found["comma"] or "").replace(",", ".")
    base = base or re.sub("[, ]", "", found["grouped"] or found["plain"])
    value = Fraction(base)
    if not any(found.group("e", "ten", "power", "under", "top", "scale")):
        return value if len(base) <= MOST_DIGITS else None
    under, bottom = Fraction(found["under"] or 1), int(found["bottom"] or 1)
    power, tens = int(found["power"] or 1), int(found["e"] or found["ten"] or 0)
    if not under or not bottom or (not value and power < 0) or max(abs(power) * len(base), abs(tens)) > MOST_DIGITS:
        return None
    tens += _SCALES[found["scale"].lower()] if found["scale"] else 0
    value = (value**power / under + Fraction(int(found["top"] or 0), bottom)) * Fraction(10) ** tens
    return value if len(written(value)) <= MOST_DIGITS else None


def _is_negative(found: re.Match) -> bool:
    """Say whether a sign belongs to its number: "5 - 3" takes 3 from 5, and "- 3 pens" is an entry of a list."""
    if found["inner"] or not (sign := found["sign"]):
        return bool(found["inner"])
    before = found.string[max(0, found.start() - 4) : found.start()].rstrip(" ")[-1:]
    if before.isdigit() or before and before in ")%}":
        return False
    return sign != "- " or (before != "" and before in "=:(")
