"""Four ways to keep track while reasoning about a pocket task, as texts that end in the tagged answer.

All four go through the question in its order, in its words, and note where they stand: after or before each step, in
digits or in words. They are meant to be of about equal worth: what differs is the notes alone.
"""

from workbench.tasks.pocket_questions import Counting, Logic, Walk, Web, read, redexes, reduce_at
from workbench.tasks.pocket_styles import LEADS

IN_WORDS = ("story", "diary")
BEFORE = ("meter", "diary")
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def number(n: int, style: str) -> str:
    """Return a number from -99 to 99 in the style's digits or words."""
    if style not in IN_WORDS:
        return str(n)
    if n < 0:
        return f"minus {number(-n, style)}"
    if n < 20:
        return _UNITS[n]
    return _TENS[n // 10 - 2] + (f" {_UNITS[n % 10]}" if n % 10 else "")


def _steps(start: str, steps: list[tuple[str, str]], style: str) -> str:
    """Return the steps, each (what it is, where one stands after it), with the note after or before each step."""
    if style in BEFORE:
        notes = [start, *(note for _, note in steps)]
        return ", ".join(f"{note} {step}" for (step, _), note in zip(steps, notes, strict=False)) + f", {notes[-1]}"
    return ", ".join(f"{step} {note}" for step, note in steps)


def _counting(problem: Counting, style: str) -> str:
    total, steps = 0, []
    for thing, said in zip(problem.things, problem.said, strict=True):
        total += thing[0] if thing in problem.counted else 0
        steps.append((said, number(total, style)))
    return _steps(number(0, style), steps, style)


def _walk(problem: Walk, style: str) -> str:
    x = y = 0
    moves, steps = iter(problem.moves()), []
    for n, act in problem.acts:
        heading = next(moves)[1] if n else ""
        x += {"right": n, "left": -n}.get(heading, 0)
        y += {"forward": n, "backward": -n}.get(heading, 0)
        steps.append((f"{n} {heading}" if n else f"turn {act}", f"{number(x, style)} {number(y, style)}"))
    return _steps(f"{number(0, style)} {number(0, style)}", steps, style)


def _web(problem: Web, style: str) -> str:
    def note(value: bool) -> str:
        return ("truth" if value else "lies") if style in IN_WORDS else str(int(value))

    pairs = zip(problem.names, map(note, problem.truths), strict=True)
    return ", ".join(f"{truth} {name}" if style in BEFORE else f"{name} {truth}" for name, truth in pairs)


def _logic(problem: Logic, style: str) -> str:
    tokens, lines = problem.tokens, []
    while True:
        lines.append(" ".join(tokens))
        if len(tokens) == 1:
            break
        tokens = reduce_at(tokens, redexes(tokens)[0])
    text = " = ".join(lines if style in BEFORE or len(lines) == 1 else lines[1:])
    return text if style in IN_WORDS else text.replace("True", "1").replace("False", "0")


def rationale_for(task: str, question: str, style: str) -> str:
    """Return the worked reasoning for a well-formed question in the style, ending in the tagged answer."""
    problem = read(task, question)
    if problem is None:
        raise ValueError(f"{question!r} is not a well-formed question of {task}.")
    work = {Counting: _counting, Walk: _walk, Web: _web, Logic: _logic}[type(problem)](problem, style)
    return f"{LEADS[style]} {work}. <ans>{problem.answer}</ans>"
