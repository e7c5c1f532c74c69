"""Questions in the format of four BIG-Bench-Hard tasks: written at random, read back from text, and solved.

Every solver starts from the question's text, so it also grades what a teacher model makes up and the real BBH items.
The formats follow BIG-Bench Hard (Suzgun et al. 2022, arXiv:2210.09261); the items are ours.
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

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
NAMES = (
    "Alejandro Alexis Amberly Andree Antwan Audrie Bernita Christie Conception Crista Dallas Delbert Delfina Elanor "
    "Fidel Fletcher Gwenn Helene Inga Jamey Jaymie Jerry Jim Ka Kandi Kristian Leda Lorine Maybelle Michael Michaela "
    "Millicent Millie Osvaldo Phoebe Rashida Raymond Ryan Sal Shalonda Shaunda Shenna Sherrie Sima Tamika Teressa "
    "Vernell Vina Willian Yoland"
).split()
HEADINGS = ("forward", "right", "backward", "left")


def _forms(word: str) -> tuple[str, str]:
    return _FORMS.get(word, (word, word[:-1] + "ies" if word.endswith("rry") else word + "s"))


_WORD_OF = {form: word for word in KIND_OF for form in _forms(word)}


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


def _write_counting(rng: np.random.Generator, size: int) -> str:
    kind = str(rng.choice(list(KINDS)))
    others = [k for k in KINDS if k not in (kind, "objects")]
    pool = KINDS[kind].split()
    strangers = KINDS["objects"].split() if kind != "objects" else []
    if kind != "objects" and rng.random() < 0.25:
        strangers = KINDS[str(rng.choice(others))].split()
    n_strangers = int(rng.integers(0, size // 2 + 1)) if strangers and size > 1 else 0
    if kind == "objects" and size > len(pool):
        pool += KINDS["musical instruments"].split()
    n_own = min(size - n_strangers, len(pool))
    words = [*rng.choice(pool, n_own, replace=False), *rng.choice(strangers or pool, n_strangers, replace=False)]
    rng.shuffle(words)
    parts = []
    for word in words:
        n = 1 if rng.random() < 0.7 else int(rng.choice([2, 2, 2, 3, 3, 4, 5]))
        one, many = _forms(str(word))
        article = "an" if one[0] in "aeiou" else "a"
        parts.append(f"{article} {one}" if n == 1 else f"{['two', 'three', 'four', 'five'][n - 2]} {many}")
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + ", and " + parts[-1]
    return f"I have {listed}. How many {kind} do I have?"


def _read_counting(text: str) -> Counting | None:
    match = re.fullmatch(r"I have (.+)\. How many ([a-z ]+) do I have\?", text)
    if not match or match[2] not in KINDS:
        return None
    parts = re.split(r", and | and |, ", match[1])
    things = tuple((NUMBERS.get(number), _WORD_OF.get(form)) for number, _, form in (p.partition(" ") for p in parts))
    return None if any(None in thing for thing in things) else Counting(things, match[2], tuple(parts))


def _draw_acts(rng: np.random.Generator, size: int, facing: bool) -> list[tuple[int, str]]:
    acts = []
    for _ in range(size):
        if not facing and rng.random() < 0.4:
            acts.append((0, str(rng.choice(["right", "left", "around"]))))
        else:
            acts.append((int(rng.integers(1, 11)), str(rng.choice(HEADINGS)) if facing else ""))
    return acts


def _bring_home(rng: np.random.Generator, acts: list[tuple[int, str]], facing: bool) -> list[tuple[int, str]]:
    """Return the same acts with one step count an axis changed so that the walk ends where it began, if it can."""
    counted = [i for i, (n, _) in enumerate(acts) if n]
    for k in rng.permutation(len(counted)):
        moves = Walk(tuple(acts), facing).moves()
        x, y = place(moves)
        n, heading = moves[k]
        change = {"right": -x, "left": x, "forward": -y, "backward": y}[heading]
        if 1 <= n + change <= 10:
            acts = [*acts]
            acts[counted[k]] = (n + change, acts[counted[k]][1])
    return acts


def _draw_walk(rng: np.random.Generator, size: int, facing: bool) -> list[tuple[int, str]]:
    """Half of the walks end where they began; the others have the same words with other step counts."""
    while True:
        acts = _bring_home(rng, _draw_acts(rng, size, facing), facing)
        if any(n for n, _ in acts) and (size == 1 or Walk(tuple(acts), facing).answer == "Yes"):
            break
    home = size > 1 and rng.random() < 0.5
    while not home and Walk(tuple(acts), facing).answer == "Yes":
        acts = [(int(rng.integers(1, 11)) if n else 0, act) for n, act in acts]
    return acts


def _write_walk(rng: np.random.Generator, size: int) -> str:
    facing = size < 3 or bool(rng.random() < 0.5)
    acts = _draw_walk(rng, size, facing)
    said = []
    for n, act in acts:
        steps = f"Take {n} step{'s' if n > 1 else ''}"
        said.append(f"{steps} {act}." if n and act else f"{steps}." if n else f"Turn {act}.")
    head = "If you follow these instructions, do you return to the starting point? "
    return head + ("Always face forward. " if facing else "") + " ".join(said) + "\nOptions:\n- Yes\n- No"


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


def _write_web(rng: np.random.Generator, size: int) -> str:
    names = rng.choice(NAMES, size + 1, replace=False)
    first = "tells the truth" if rng.random() < 0.5 else "lies"
    said = [f"{names[0]} {first}."]
    for one, other in zip(names[1:], names[:-1], strict=True):
        said.append(f"{one} says {other} {'tells the truth' if rng.random() < 0.5 else 'lies'}.")
    return f"Question: {' '.join(said)} Does {names[-1]} tell the truth?"


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


def _write_logic(rng: np.random.Generator, size: int) -> str:
    """Write an expression of `size` operators; brackets come on top."""
    n_nots = int(rng.binomial(size, 0.45))
    parts = [[str(rng.choice(VALUES))] for _ in range(size - n_nots + 1)]
    for _ in range(n_nots):
        parts[int(rng.integers(len(parts)))].insert(0, "not")
    tokens, bracket = [], int(rng.integers(len(parts))) if rng.random() < 0.6 else -1
    width = int(rng.integers(1, 3))
    for i, part in enumerate(parts):
        if i:
            tokens.append(str(rng.choice(["and", "or"])))
        if i == bracket:
            tokens.append("(")
        tokens += part
        if bracket >= 0 and i == min(bracket + width - 1, len(parts) - 1):
            tokens.append(")")
    return " ".join(tokens) + " is"


def _read_logic(text: str) -> Logic | None:
    words = text.split()
    if words[-1:] != ["is"] or len(words) < 2 or not set(words[:-1]) <= {*VALUES, "not", "and", "or", "(", ")"}:
        return None
    logic = Logic(tuple(words[:-1]))
    return logic if logic.answer in VALUES else None


# Who writes and who reads questions of each task, and the sizes of its test items.
FORMATS: dict[str, tuple[Callable[..., str], Callable[[str], Problem | None], tuple[int, int]]] = {
    "object_counting": (_write_counting, _read_counting, (2, 10)),
    "navigate": (_write_walk, _read_walk, (2, 8)),
    "web_of_lies": (_write_web, _read_web, (3, 5)),
    "boolean_expressions": (_write_logic, _read_logic, (3, 6)),
}
TEST_SIZES = {task: sizes for task, (_, _, sizes) in FORMATS.items()}


def write(task: str, rng: np.random.Generator, sizes: tuple[int, int]) -> str:
    """Return one question of the task, its size drawn evenly from `sizes` (both ends included)."""
    return FORMATS[task][0](rng, int(rng.integers(sizes[0], sizes[1] + 1)))


def read(task: str, question: str) -> Problem | None:
    """Return what the question says, or None when it is not a well-formed question of the task."""
    return FORMATS[task][1](question.strip())


def solve(task: str, question: str) -> str:
    """Return the right answer, or "" when the question is not well formed."""
    problem = read(task, question)
    return problem.answer if problem else ""
