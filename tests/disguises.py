"""Disguises in which a leaked item may turn up; each returns the disguised text, or the text itself if it has none."""

import random
import re
from collections.abc import Callable

NUMBER_WORDS = "one two three four five six seven eight nine ten".split()
NAMES = "Oskar Wilma Tariq Ingrid Pablo Yuki Nadia Cedric Olga Ravi Selma Bruno Anika Hugo Zora Felix".split()
THINGS = (
    "apple banana orange plum carrot cabbage onion drum flute piano violin trumpet cat dog cow rabbit pig duck bed car "
    "chair lamp oven table book pencil ball box bag shirt egg cookie muffin flower tree"
).split()
NO_NAMES = set(
    "True False Question Options Sentence Input List Yes No Turn Take Always If The A An He She It They We Is In On At "
    "Does How Which What Who Monday Tuesday Wednesday Thursday Friday Saturday Sunday Today Therefore However".split()
)
SAID_OTHERWISE = [
    (
        "If you follow these instructions, do you return to the starting point?",
        "Following these directions, do you end up where you began?",
    ),
    ("Always face forward.", "Keep looking ahead all the time."),
    (r"\bTake (?=\d)", "Walk "),
    (r"\bHow many\b", "What number of"),
    (r"\bhow many\b", "what number of"),
    (r"\bdo I have\b", "are in my possession"),
    (r"\bI have\b", "I own"),
    (r"\btells the truth\b", "is honest"),
    (r"\btell the truth\b", "speak honestly"),
    (r"\blies\b", "is lying"),
    (r"\bsays\b", "claims"),
    ("^Question: ", ""),
    (r"\bis$", "evaluates to"),
    (r"\beach\b", "every"),
    (r"\btotal\b", "sum"),
    (r"\bbuys\b", "purchases"),
    (r"\bgets\b", "receives"),
    (r"\bgives\b", "hands"),
    (r"\bmakes\b", "earns"),
    (r"\bbecause\b", "since"),
    (r"\bwants to\b", "would like to"),
    (r"\bThere are\b", "You can find"),
    (r"\bWhich\b", "Which one"),
    (r"\bSort\b", "Order"),
    (r"\bthe following\b", "these"),
    (r"\bFind\b", "Look for"),
    (r"\bToday is\b", "It is now"),
    (r"\bIf\b", "Suppose"),
]
LABEL = re.compile(r"\(\w\)|-")


def _split(text: str) -> tuple[str, list[str]]:
    stem, mark, rest = text.partition("Options:\n")
    return (stem, rest.split("\n")) if mark else (text, [])


def _join(stem: str, options: list[str]) -> str:
    return "Options:\n".join([stem, "\n".join(options)]) if options else stem


def _shuffled(parts: list[str], rng: random.Random) -> list[str]:
    """Return the parts in another order, where there is one."""
    mixed = parts[:]
    while len(set(parts)) > 1 and mixed == parts:
        rng.shuffle(mixed)
    return mixed


def case(text: str, rng: random.Random) -> str:
    return text.swapcase()


def blanks(text: str, rng: random.Random) -> str:
    return "  " + re.sub(" ", lambda _: rng.choice([" ", "  ", "\n", "\t"]), text) + "\n"


def punctuation(text: str, rng: random.Random) -> str:
    return re.sub(r"[.,:;?!](?!\d)", lambda _: rng.choice([" ;", " -", ""]), text)


def options(text: str, rng: random.Random) -> str:
    """Shuffle the options; the labels stay where they are."""
    stem, lines = _split(text)
    labels = [LABEL.match(line) for line in lines]
    if len(lines) < 2 or not all(labels):
        return text
    answers = _shuffled([line[label.end() :] for line, label in zip(lines, labels, strict=True)], rng)
    return _join(stem, [label[0] + answer for label, answer in zip(labels, answers, strict=True)])


def order(text: str, rng: random.Random) -> str:
    """Shuffle the sentences that ask nothing, or else the parts of a list."""
    stem, lines = _split(text)
    sentences = re.split(r"(?<=[.?!])\s+", stem)
    told = [at for at, sentence in enumerate(sentences) if sentence and not sentence.endswith("?")]
    if len(told) > 1:
        for at, sentence in zip(told, _shuffled([sentences[at] for at in told], rng), strict=True):
            sentences[at] = sentence
        return _join(" ".join(sentences), lines)
    first, *middle = stem.split(", ")
    return _join(", ".join([first, *_shuffled(middle[:-1], rng), *middle[-1:]]), lines)


def numbers(text: str, rng: random.Random) -> str:
    """Replace every number of the question by another one."""

    def another(match: re.Match) -> str:
        if match[0].isdigit():
            value = int(match[0])
            return str(rng.choice([n for n in range(1, max(9, 2 * value) + 1) if n != value]))
        return rng.choice([word for word in NUMBER_WORDS[1:] if word != match[0]])

    stem, lines = _split(text)
    return _join(re.sub(rf"\b(?:\d{{1,4}}|{'|'.join(NUMBER_WORDS)})\b", another, stem), lines)


def names(text: str, rng: random.Random) -> str:
    """Replace every name, and everyday things, by others, the same ones throughout."""
    found = [word for word in re.findall(r"(?<=[a-z,] )[A-Z][a-z]+\b", text) if word not in NO_NAMES]
    new = dict(zip(dict.fromkeys(found), rng.sample(NAMES, len(NAMES)) * 4))
    things = rng.sample(THINGS, len(THINGS))
    for at, thing in enumerate(things):
        new |= {thing: things[at - 1], f"{thing}s": f"{things[at - 1]}s"}
    return re.sub(r"\b[A-Za-z]+\b", lambda match: new.get(match[0], match[0]), text)


def paraphrase(text: str, rng: random.Random) -> str:
    for said, otherwise in SAID_OTHERWISE:
        text = re.sub(said, otherwise, text) if "\\" in said or "^" in said else text.replace(said, otherwise)
    return text


DISGUISES: dict[str, Callable[[str, random.Random], str]] = {
    one.__name__: one for one in (case, blanks, punctuation, options, order, numbers, names, paraphrase)
}


def planted(items: list[str], disguise: str, seed: int = 0) -> list[str]:
    """Return the items in a disguise, without those that it leaves as they are."""
    rng = random.Random(f"{seed}/{disguise}")
    return [leak for item in items if (leak := DISGUISES[disguise](item, rng)) != item]
