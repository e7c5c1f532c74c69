r"""How a task's answers are read from what a model wrote, and compared: tagged, exact, option, number, boolean, regex.

A model that was asked for a tag often writes none: it boxes its answer, puts it behind '####' or says "the answer is".
What is stated most plainly is tried first, of that the last; what cannot be read as the task's kind of answer is passed
over, and where nothing is stated the end of the reply counts. Thoughts, and the next question that a model goes on
with, are no part of it. Targets and answers are brought to one plain form, so that a target given to the letter is
right in every form of FORMATS; `lost_in` names those in which it is not.

Ours, since math-verify 0.9, the library for numbers and formulas, takes no options or truth values in prose, read 56 of
84 replies with numbers that this reads all (tests/test_answers.py; it was made on three quarters of them), 1,296 of
1,300 solutions of GSM8K that this reads all, takes five times as long, and calls 0.30000000000000004 the number 0.3.
Formulas as answers would be a reason to take it.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from workbench.runs.recipe_parts import AnswerType
from workbench.tasks.numbers import last_number, result_in, whole_number

VERSION = 2
CUE = "Answer: Let's think step by step."
# What models are asked to state an answer in, or do so by themselves.
FORMATS = {
    "tag": "<ans>{}</ans>",
    "boxed": "\\boxed{{{}}}",
    "mark": "#### {}",
    "label": "Answer: {}",
    "said": "The answer is {}.",
    "line": "We go through it.\n\n{}",
}
LAST = 21  # of what is stated over and over, the last twenty are looked at
_ANSWER = re.compile(r"<ans>(.*?)</ans>", re.DOTALL)

# One sign for what is written with several: widths, dashes, quotes, blanks; what is not seen is left out.
_SIGNS = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_SIGNS |= dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), "-")
_SIGNS |= dict.fromkeys(map(ord, "\u2018\u2019\u02bc\u2032"), "'") | dict.fromkeys(
    map(ord, "\u201c\u201d\u201e«»"), '"'
)
_SIGNS |= dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u202f\u3000"), " ") | {ord("。"): ". ", ord("\r"): None}
_SIGNS |= dict.fromkeys([0xAD, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070)])
_MARKS = re.compile(r"(?<![\d)])\*\*|\*\*(?!\s*[\d(])|__|`|^#+\s+|</?(?:b|i|em|strong|code|p|br|u)\s*/?>", re.MULTILINE)
_SPECIAL = re.compile(r"[\\*_`#<{\r]")
_LATEX = (
    (re.compile(r"[⁰¹²³⁴-⁹⁺⁻]+"), lambda found: f"^{{{unicodedata.normalize('NFKC', found[0]).translate(_SIGNS)}}}"),
    (re.compile(r"[¼½¾⅓-⅞]"), lambda found: _fraction(found, *unicodedata.normalize("NFKC", found[0]).split("\u2044"))),
    (
        re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))"),
        lambda found: _fraction(found, *(part for part in found.groups() if part is not None)),
    ),
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|operatorname|boxed)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\(?:times|cdot)\b"), "×"),
    (re.compile(r"(?<=\d)(?:\{,\}|\\[,!:;]\s?)(?=\d)"), ","),
    (re.compile(r"\\([$%{}#&_])"), r"\1"),
    (re.compile(r"\\[()\[\],!:; ]|\\(?:left|right|displaystyle)\b"), " "),
)

# A model that was not stopped goes on with a question of its own, whose answer is not the one asked for.
_NEXT_QUESTION = re.compile(
    r"(?:^|\n)[ \t]*(?:#+\s*|\*\*)?(?:Question|Q|Problem|User|Human|Instruction|Task)(?:\s*\d+)?\s*(?:\*\*)?\s*:"
    r"|<\|\w+\|>|</s>"
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_AFTER_MARK = re.compile(r"####[ \t]*(\S.*)")
_SAID = re.compile(
    r"(?:\b(?:answer|respuesta|réponse|antwort|risposta|resposta|ответ)\b|答案|答え|回答|正解|정답|الإجابة|الجواب)[\"']?"
    r"(?:(?:\s+[\w']+){0,3}?\s+(?:is|be|equals|es|est|ist|è|é|هي|هو)\b|\s*[:=]|\s+-(?=\s)|是|为|は|은)[\s:]*"
    r"(?:(?:most\s+)?(?:clearly|obviously|probably|definitely|certainly|likely|simply|therefore|thus|then|indeed)\s+)?",
    re.IGNORECASE,
)
_DENIAL = re.compile(r"^not\b.*?(?:\bbut\s+|$)", re.DOTALL)
_IS_IT = re.compile(
    r"(?<=\s)(?:is|must be)\s+(?:the\s+)?(?:(?:right|correct|final|best)\s+)?(?:answer|option|choice)\b"
    r"|(?<=\s)is\s+(?:correct|right)\b",
    re.IGNORECASE,
)
_ABBREVIATION = r"(?<!\b[A-Z])(?<!\b(?:Dr|St|Mr|Ms|Mt|Jr|Sr|vs))(?<!\b(?:Mrs|Sgt|Gen|Inc|Ltd))"
_SENTENCE_END = re.compile(
    rf"(?:{_ABBREVIATION}\.|[!?])(?=[\"')*]*(?:\s|$))(?!\s(?:Inc|Ltd|Corp)\b)|\n|\"\s*(?:\}}|,\s*\")"
)
_EXPLAINED = re.compile(r"\n[ \t]*(?:Explanation|Reasoning|Reason|Justification|Note)\b")

_LETTER = r"\(?\b([A-Z])\b\)?"
_OPTION = (
    re.compile(
        rf"^\W*(?:(?:option|choice|letter)\s+)?{_LETTER}(?:\s*$|\)|\s*[.:,;\-]|\s+(?:because|since|is|and)\b|[^\x00-\x7f])",
        re.IGNORECASE | re.ASCII,
    ),
    re.compile(r"\(([A-Z])\)"),
    re.compile(rf"\b(?:[Oo]ption|[Cc]hoice)\s+{_LETTER}"),
    re.compile(r"^\W*([B-HJ-Z])\b|\b([B-HJ-Z])\W*$"),
)
_CHOSEN = re.compile(
    r"\b(?:option|choice)\s+(?:is|must be)\s+|\b(?:choose|pick|select|final answer)\s+(?:option\s+)?(?=\W*[A-Z]\b)"
    r"|\b(?:so|thus|hence|therefore|is|it's|be)[,:]?\s+(?=\(?[A-Z]\)?\W*$)|选",
    re.IGNORECASE | re.MULTILINE,
)
_NAMED = re.compile(r"\(([A-Z])\)|\b[Oo]ption\s+([A-Z])\b")
_LINE_OF_OPTION = re.compile(
    r"\W*(?:(?:[Oo]ption|[Cc]hoice|[Ll]etter)\s+)?(?:([A-Z])(?:[).:]\s.*|\s+-\s.*|\W*)|([a-z])[).]\s.*)"
)
_DENIED = re.compile(r"\W*(?:option\s+)?[A-Z]\)?[.:]?\s+(?:is\s+)?(?:wrong|incorrect|not|cannot|isn't|can't)\b", re.I)
_WHOLE_OPTION = re.compile(r"\W*(?:(?:option|choice|letter)\s+)?\(?([A-Z])(?:[).:](?:\s.*)?|\W*)", re.IGNORECASE)
# "No" before a noun ("no doubt") and "true" before a clause ("true that") answer nothing.
_BOOLEAN = re.compile(
    r"(\b(?:not|never)\s+(?:\w+\s+)?|n't\s+(?:\w+\s+)?)?\b(yes|no|true|false)\b(?=\s*(?:[^\w\s]|$|\n))", re.IGNORECASE
)
_BOOLEAN_FIRST = re.compile(
    r"\W*()(yes|no|true|false)\b(?=\s*[^\w\s]|\s+(?:it|he|she|they|this|that|we|I)\b|\s*$)", re.I
)
_TRUTH = {"yes": True, "true": True, "no": False, "false": False}


def parse_answer(reply: str) -> str:
    """Return the last tagged answer, or "" when there is none."""
    found = _ANSWER.findall(reply)
    return found[-1].strip() if found else ""


def plain(text: str) -> str:
    """Return a text without markdown, with its signs and LaTeX in their plain form."""
    if text.isascii() and not _SPECIAL.search(text):
        return text
    text = _MARKS.sub("", unicodedata.normalize("NFC", text).translate(_SIGNS))
    for pattern, put in _LATEX:
        text = pattern.sub(put, text)
    return text


def cleaned(text: str) -> str:
    """Return a stated answer without what only sets it off: markdown, quotes, brackets, the end of a sentence.

    Whatever would leave nothing stays, so that "." and "()" are answers too.
    """
    before = None
    while text != before:
        before = text
        text = " ".join(plain(text).split()) or " ".join(text.split())
        text = text.lstrip("\"' ").rstrip(".!?\"' ") or text
        if inner := re.fullmatch(r"\(([^()]*)\)|\$+([^$].*?)\$+|\*+([^*]+)\*+", text):
            text = "".join(filter(None, inner.groups())).strip() or text
    return text


def normalise_answer(answer: str) -> str:
    """Return the form in which answers are compared as text: "(A)", "a." and "**A**" are one."""
    before = None
    while answer != before:
        before, answer = answer, cleaned(answer.casefold())
    return answer


def grade(answer: str, target: str) -> bool:
    """Return whether the answer is the target; an answer with nothing in it never is."""
    form = normalise_answer(answer)
    return bool(form) and form == normalise_answer(target)


@dataclass(frozen=True)
class Answers:
    r"""How the answers of a task are read.

    Args:
        kind: tagged: the text of the last <ans> tag and nothing else, as in ARTE. exact: any text. option: a letter.
            number: with any unit. boolean: yes and true are one. regex: what the pattern finds. open: the whole reply,
            which is never found right or wrong.
        pattern: For regex; its first group counts if it has one, the last match if there are several.

    Example:
        >>> number = Answers("number")
        >>> number.read("She has **1,250 apples**, so the answer is $\\boxed{1{,}250}$ apples.")
        '1250'
        >>> number.same("1250", "1250.0 apples")
        True
        >>> Answers("exact").lost_in("</ans>")
        'tag'
    """

    kind: AnswerType = "tagged"
    pattern: str = ""

    def read(self, reply: str) -> str:
        """Return the answer that a reply gives, in the form it is compared in, or "" when it gives none."""
        # Without thoughts, closed or not.
        first, *others = reply.split("<think>")
        reply = first.rpartition("</think>")[2] + "".join(part.partition("</think>")[2] for part in others)
        if self.kind == "open":
            return reply.strip()
        reply = next((part for part in _NEXT_QUESTION.split(reply) if part.strip()), "")
        if self.kind == "tagged":
            return parse_answer(reply)
        stated = (found for text in _stated(reply, self.kind) if (found := self._stated_in(text)))
        return next(stated, "") or self._left_in(reply)

    def read_gold(self, target: str) -> str:
        """Return a task's own answer in the form it is compared in, or "" when it is not wholly of this kind."""
        if self.kind == "regex":
            return self._stated_in(target)
        return self._whole(target)

    def same(self, answer: str, target: str) -> bool:
        """Return whether an answer, as read, is the target; one with nothing in it, or an open one, never is."""
        return self.kind != "open" and bool(form := self._whole(answer)) and form == self.read_gold(target)

    def alike(self, one: str, other: str) -> bool:
        """Return whether two answers, both as read, are the same; answers with nothing in them never are."""
        return bool(form := self._whole(one)) and form == self._whole(other)

    def lost_in(self, target: str) -> str:
        """Return the first of FORMATS in which the target, given to the letter, would not be right, or ""."""
        formats = {"tag": FORMATS["tag"]} if self.kind in ("tagged", "regex") else FORMATS
        forms = ((name, form.format(target)) for name, form in formats.items() if self.kind != "open")
        return next((name for name, reply in forms if not self.same(self.read(reply), target)), "")

    def decimal_sign(self, target: str) -> str:
        """Return which sign, "," or ".", must be the decimal sign of a target that is a number; "" for either."""
        return whole_number(plain(target))[1] if self.kind == "number" else ""

    def _whole(self, text: str) -> str:
        """Return the form of a text that is an answer and nothing else, or ""."""
        if self.kind == "open":
            return text.strip()
        if self.kind == "number":
            return whole_number(plain(text))[0]
        if self.kind == "option":
            found = _WHOLE_OPTION.fullmatch(plain(text))
            return found[1].upper() if found else ""
        form = normalise_answer(text)
        if self.kind == "boolean":
            found = _BOOLEAN_FIRST.match(form)
            return _truth(found) if found and len(_BOOLEAN.findall(form)) < 2 else ""
        return form

    def _stated_in(self, text: str) -> str:
        """Return what a statement gives: a text that is, or begins with, an answer."""
        if self.kind == "regex":
            return _by_pattern(self.pattern, text)
        if self.kind == "exact":
            return cleaned(text)
        text = plain(text)
        if self.kind == "number":
            return result_in(text)
        return _first_option(text) if self.kind == "option" else _first_boolean(text)

    def _left_in(self, reply: str) -> str:
        """Return what a reply gives that states nothing: its end counts, before what is said in explanation."""
        if self.kind == "regex":
            return _by_pattern(self.pattern, reply)
        if self.kind == "exact":
            *_, line = [line for line in reply.splitlines() if line.strip()] or [""]
            return cleaned(line)
        reader = {"number": last_number, "option": _last_option, "boolean": _last_boolean}[self.kind]
        text = plain(reply)
        return reader(_EXPLAINED.split(text)[0]) or reader(text)


def _stated(reply: str, kind: str) -> Iterator[str]:
    """Yield what a reply states as its answer, the most plainly stated first, of equals the last first."""
    if tagged := parse_answer(reply):
        yield tagged
    yield from (_inside(reply, found.end()) for found in list(_BOXED.finditer(reply))[:-LAST:-1])
    yield from _AFTER_MARK.findall(reply)[:-LAST:-1]
    text = plain(reply).replace(CUE, "")
    cues = [*_SAID.finditer(text), *(_CHOSEN.finditer(text) if kind == "option" else ())]
    said = {cue.end(): text[cue.end() : _end_of_sentence(text, cue.end())] for cue in cues}
    if kind in ("number", "option"):
        said = {at: _DENIAL.sub("", statement) for at, statement in said.items()}
        for found in _IS_IT.finditer(text):
            said[found.start()] = "".join(text[max(0, found.start() - 60) : found.start()].split()[-1:])
    yield from (said[at] for at in sorted(said)[:-LAST:-1])


def _end_of_sentence(text: str, start: int) -> int:
    found = _SENTENCE_END.search(text, start, start + 1_000)
    return found.start() if found else min(len(text), start + 1_000)


def _inside(text: str, start: int) -> str:
    """Return the text from start to the brace that closes there.

    Where the braces of the line do not match, those of the answer itself do not, which then ends at the line's last.
    """
    before, after = text[:start].rpartition("\n")[2], text[start:].partition("\n")[0]
    if after.endswith("}") and (before + after).count("{") != (before + after).count("}"):
        return after[:-1]
    depth = 1
    for at in range(start, min(len(text), start + 1_000)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[start:at]
    return text[start : start + 1_000]


def _fraction(found: re.Match, over: str, under: str) -> str:
    over, under = (part if re.fullmatch(r"[\w.]+", part) else f"({part})" for part in (over, under))
    mixed = found.start() > 0 and found.string[found.start() - 1].isdigit()
    return f"{' ' * mixed}{over}/{under}"


def _first_option(text: str) -> str:
    found = next((found for pattern in _OPTION if (found := pattern.search(text.strip()))), None)
    return found[found.lastindex].upper() if found else ""


def _last_option(text: str) -> str:
    """Return the option that a reply is, or of the last line, or of the only line that is one, or the last named."""
    if alone := re.fullmatch(r"\W*(?:option\s+|choice\s+|letter\s+)?([A-Z])\W*", text, re.IGNORECASE):
        return alone[1].upper()
    lines = [line for line in text.splitlines() if line.strip() and not _DENIED.match(line)]
    options = [_LINE_OF_OPTION.fullmatch(line) if len(_NAMED.findall(line)) < 2 else None for line in lines]
    there = [found for found in options if found]
    if there and (options[-1] or len(there) == 1):
        return there[-1][there[-1].lastindex].upper()
    found = _NAMED.findall(text)
    return "".join(found[-1]) if found else ""


def _truth(found: re.Match) -> str:
    """Return the truth value that one of the boolean patterns found, turned by a "not" before it."""
    return str(_TRUTH[found[2].lower()] != bool(found[1])).lower()


def _first_boolean(text: str) -> str:
    found = re.match(r"\W*()(yes|no|true|false)\b", text, re.IGNORECASE) or _BOOLEAN.search(text)
    return _truth(found) if found else ""


def _last_boolean(text: str) -> str:
    """Return the last truth value, or the first when a reply begins with it and explains it afterwards."""
    *_, found = (None, *_BOOLEAN.finditer(text))
    found = _BOOLEAN_FIRST.match(text) or found
    return _truth(found) if found else ""


def _by_pattern(pattern: str, text: str) -> str:
    found = list(re.finditer(pattern, text))
    if not found:
        return ""
    last = found[-1]
    return normalise_answer((last[1] if last.re.groups else last[0]) or "")
