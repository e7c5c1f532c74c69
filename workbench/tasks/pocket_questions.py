"""Questions in the format of four BIG-Bench-Hard tasks: read from their text and solved.

Every solver starts from the question's text, so it also grades what a teacher model makes up and the real BBH items.
The formats follow BIG-Bench Hard (Suzgun et al. 2022, arXiv:2210.09261); the items are ours.
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

KINDS = {
    "fruits": "apple banana blackberry grape nectarine orange peach plum raspberry strawberry",
    "vegetables": "cabbage carrot cauliflower garlic onion potato yam broccoli lettuce celery",
    "musical instruments": "accordion clarinet drum flute piano trombone trumpet violin",
    "animals": "bear cat chicken cow dog donkey duck fish frog goat mouse pig rabbit snail snake",
    "objects": "bed car chair couch fridge lamp microwave oven stove table toaster",
}
KIND_OF = {word: kind for kind, words in KINDS.items() for word in words.split()}
_FORMS = {  # singular, plural of what the article or number stands before
    "broccoli": ("head of broccoli", "heads of broccoli"),
    "lettuce": ("lettuce head", "lettuce heads"),
    "celery": ("stalk of celery", "stalks of celery"),
    "mouse": ("mouse", "mice"),
    "fish": ("fish", "fish"),
    "peach": ("peach", "peaches"),
    "couch": ("couch", "couches"),
    "potato": ("potato", "potatoes"),
}
NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5}
HEADINGS = ("forward", "right", "backward", "left")


def forms(word: str) -> tuple[str, str]:
    return _FORMS.get(word, (word, word[:-1] + "ies" if word.endswith("rry") else word + "s"))


_WORD_OF = {form: word for word in KIND_OF for form in forms(word)}


@dataclass(frozen=True)
class Counting:
    """Things as (how many, word), the kind that is asked for, and each thing as the question puts it."""

    things: tuple[tuple[int, str], ...]
    kind: str
    said: tuple[str, ...]

    @property
    def counted(self) -> list[tuple[int, str]]:
        return [(n, word) for n, word in self.things if self.kind in ("objects", KIND_OF[word])]

    @property
    def answer(self) -> str:
        return str(sum(n for n, _ in self.counted))


@dataclass(frozen=True)
class Walk:
    """Moves as (steps, heading as seen at the start); `acts` keeps the turns, as (steps, what was said)."""

    acts: tuple[tuple[int, str], ...]
    facing: bool

    def moves(self) -> list[tuple[int, str]]:
        """Return (steps, heading), as seen at the start."""
        heading, moves = 0, []
        for steps, act in self.acts:
            if steps:
                moves.append((steps, act if self.facing else HEADINGS[heading]))
            else:
                heading = (heading + {"right": 1, "around": 2, "left": 3}[act]) % 4
        return moves

    @property
    def answer(self) -> str:
        x, y = place(self.moves())
        return "Yes" if x == y == 0 else "No"


def place(moves: list[tuple[int, str]]) -> tuple[int, int]:
    """Return where the moves end, as (steps to the right, steps forward)."""
    total = {heading: sum(n for n, h in moves if h == heading) for heading in HEADINGS}
    return total["right"] - total["left"], total["forward"] - total["backward"]


@dataclass(frozen=True)
class Web:
    """Whether the first person tells the truth, and what each next one says of the one before."""

    names: tuple[str, ...]
    first: bool
    claims: tuple[bool, ...]

    @property
    def truths(self) -> list[bool]:
        return list(accumulate(self.claims, operator.eq, initial=self.first))

    @property
    def answer(self) -> str:
        return "Yes" if self.truths[-1] else "No"


@dataclass(frozen=True)
class Logic:
    """A boolean expression as tokens."""

    tokens: tuple[str, ...]

    @property
    def answer(self) -> str:
        """Its value, or what is left where nothing can be reduced, which is no value when it is not well formed."""
        tokens = self.tokens
        while places := redexes(tokens):
            tokens = reduce_at(tokens, places[0])
        return " ".join(tokens)


VALUES = ("True", "False")


def redexes(tokens: tuple[str, ...]) -> list[tuple[int, str]]:
    """Return every place where one reduction is allowed, as (first token, kind), left to right."""
    found = []
    for i, token in enumerate(tokens):
        after = tokens[i + 1 : i + 4]
        if token == "not" and after[:1] and after[0] in VALUES:
            found.append((i, "not"))
        elif token == "(" and len(after) > 1 and after[0] in VALUES and after[1] == ")":
            found.append((i, "("))
        elif token in VALUES and len(after) > 1 and after[0] in ("and", "or") and after[1] in VALUES:
            before = tokens[i - 1] if i else "("
            following = after[2] if len(after) > 2 else ")"
            binds_elsewhere = after[0] == "or" and (before == "or" or following == "and")
            if before not in ("not", "and") and not binds_elsewhere:
                found.append((i, after[0]))
    return found


def reduce_at(tokens: tuple[str, ...], redex: tuple[int, str]) -> tuple[str, ...]:
    """Return the expression after one reduction."""
    i, kind = redex
    if kind == "not":
        return (*tokens[:i], str(tokens[i + 1] == "False"), *tokens[i + 2 :])
    if kind == "(":
        return (*tokens[:i], tokens[i + 1], *tokens[i + 3 :])
    left, right = tokens[i] == "True", tokens[i + 2] == "True"
    return (*tokens[:i], str(left and right if kind == "and" else left or right), *tokens[i + 3 :])


Problem = Counting | Walk | Web | Logic


def _read_counting(text: str) -> Counting | None:
    match = re.fullmatch(r"I have (.+)\. How many ([a-z ]+) do I have\?", text)
    if not match or match[2] not in KINDS:
        return None
    parts = re.split(r", and | and |, ", match[1])
    things = tuple((NUMBERS.get(number), _WORD_OF.get(form)) for number, _, form in (p.partition(" ") for p in parts))
    return None if any(None in thing for thing in things) else Counting(things, match[2], tuple(parts))


def _read_walk(text: str) -> Walk | None:
    match = re.fullmatch(
        r"If you follow these instructions, do you return to the starting point\? (Always face forward\. )?(.+?)"
        r"\s*Options:\s*- Yes\s*- No",
        text,
        re.DOTALL,
    )
    if not match:
        return None
    acts = []
    for said in filter(None, (part.strip() for part in match[2].split("."))):
        step = re.fullmatch(r"Take ([1-9]\d?) steps?( forward| backward| left| right)?", said)
        turn = re.fullmatch(r"Turn (left|right|around)", said)
        if not (step or turn) or (step and bool(step[2]) != bool(match[1])) or (turn and match[1]):
            return None
        acts.append((int(step[1]), (step[2] or "").strip()) if step else (0, turn[1]))
    return Walk(tuple(acts), bool(match[1])) if any(n for n, _ in acts) else None


def _read_web(text: str) -> Web | None:
    match = re.fullmatch(r"Question: (\w+) (tells the truth|lies)\.(.*) Does (\w+) tell the truth\?", text)
    if not match:
        return None
    names, claims = [match[1]], []
    for said in filter(None, (part.strip() for part in match[3].split("."))):
        claim = re.fullmatch(r"(\w+) says (\w+) (tells the truth|lies)", said)
        if not claim or claim[2] != names[-1] or claim[1] in names:
            return None
        names.append(claim[1])
        claims.append(claim[3] != "lies")
    if match[4] != names[-1] or not claims:
        return None
    return Web(tuple(names), match[2] != "lies", tuple(claims))


def _read_logic(text: str) -> Logic | None:
    words = text.split()
    if words[-1:] != ["is"] or len(words) < 2 or not set(words[:-1]) <= {*VALUES, "not", "and", "or", "(", ")"}:
        return None
    logic = Logic(tuple(words[:-1]))
    return logic if logic.answer in VALUES else None


READERS: dict[str, Callable[[str], Problem | None]] = {
    "object_counting": _read_counting,
    "navigate": _read_walk,
    "web_of_lies": _read_web,
    "boolean_expressions": _read_logic,
}


def read(task: str, question: str) -> Problem | None:
    """Return what the question says, or None when it is not a well-formed question of the task."""
    return READERS[task](question.strip())


def solve(task: str, question: str) -> str:
    """Return the right answer, or "" when the question is not well formed."""
    problem = read(task, question)
    return problem.answer if problem else ""
