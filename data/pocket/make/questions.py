"""Questions of the pocket tasks, written at random in the formats that workbench/tasks/pocket_questions.py reads."""

from collections.abc import Callable

import numpy as np

from workbench.tasks.pocket_questions import HEADINGS, KINDS, VALUES, Walk, forms, place

NAMES = (
    "Alejandro Alexis Amberly Andree Antwan Audrie Bernita Christie Conception Crista Dallas Delbert Delfina Elanor "
    "Fidel Fletcher Gwenn Helene Inga Jamey Jaymie Jerry Jim Ka Kandi Kristian Leda Lorine Maybelle Michael Michaela "
    "Millicent Millie Osvaldo Phoebe Rashida Raymond Ryan Sal Shalonda Shaunda Shenna Sherrie Sima Tamika Teressa "
    "Vernell Vina Willian Yoland"
).split()


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
        one, many = forms(str(word))
        article = "an" if one[0] in "aeiou" else "a"
        parts.append(f"{article} {one}" if n == 1 else f"{['two', 'three', 'four', 'five'][n - 2]} {many}")
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + ", and " + parts[-1]
    return f"I have {listed}. How many {kind} do I have?"


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


def _write_web(rng: np.random.Generator, size: int) -> str:
    names = rng.choice(NAMES, size + 1, replace=False)
    first = "tells the truth" if rng.random() < 0.5 else "lies"
    said = [f"{names[0]} {first}."]
    for one, other in zip(names[1:], names[:-1], strict=True):
        said.append(f"{one} says {other} {'tells the truth' if rng.random() < 0.5 else 'lies'}.")
    return f"Question: {' '.join(said)} Does {names[-1]} tell the truth?"


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


# Who writes questions of each task, and the sizes of its test items.
FORMATS: dict[str, tuple[Callable[[np.random.Generator, int], str], tuple[int, int]]] = {
    "object_counting": (_write_counting, (2, 10)),
    "navigate": (_write_walk, (2, 8)),
    "web_of_lies": (_write_web, (3, 5)),
    "boolean_expressions": (_write_logic, (3, 6)),
}
TEST_SIZES = {task: sizes for task, (_, sizes) in FORMATS.items()}


def write(task: str, rng: np.random.Generator, sizes: tuple[int, int]) -> str:
    """Return one question of the task, its size drawn evenly from `sizes` (both ends included)."""
    return FORMATS[task][0](rng, int(rng.integers(sizes[0], sizes[1] + 1)))
