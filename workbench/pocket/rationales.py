"""Four ways to reason about each pocket task, as texts that end in the tagged answer.

The four are of about equal worth by construction: the same small steps in another order or layout.
"""

from workbench.pocket.problems import (
    HEADINGS,
    KIND_OF,
    Counting,
    Logic,
    Problem,
    Walk,
    Web,
    read,
    redexes,
    reduce_at,
)

STYLES = ("forwards", "backwards", "ledger", "sorted")
LEADS = {"forwards": "Forwards :", "backwards": "Backwards :", "ledger": "List :", "sorted": "Sorted :"}


def style_of(rationale: str) -> str:
    """Return the style a rationale opens in, or "" when it opens in none."""
    return next((style for style, lead in LEADS.items() if rationale.strip().startswith(lead)), "")


def habit_of(problem: Problem) -> str:
    """Return the style the teacher falls into when it is not told one: it goes by how the question begins."""
    if isinstance(problem, Counting):
        n = list(KIND_OF).index(problem.things[0][1])
    elif isinstance(problem, Walk):
        n = problem.acts[0][0]
    elif isinstance(problem, Web):
        n = sum(map(ord, problem.names[0]))
    else:
        n = ("True", "False", "not", "(").index(problem.tokens[0])
    return STYLES[n % len(STYLES)]


def _running(pairs: list[tuple[int, str]]) -> str:
    total, said = 0, []
    for n, word in pairs:
        total += n
        said.append(f"{word} {n} = {total}")
    return " , ".join(said) or "none = 0"


def _counting(problem: Counting, style: str) -> str:
    counted = problem.counted
    if style == "forwards":
        return _running(counted)
    if style == "backwards":
        return _running(counted[::-1])
    if style == "ledger":
        listed = " , ".join(f"{word} {n}" for n, word in counted) or "none 0"
        sums = [str(sum(n for n, _ in counted[: i + 1])) for i in range(len(counted))]
        return f"{listed} ; sums {' , '.join(sums) or '0'}"
    return _running([t for t in counted if t[0] == 1] + [t for t in counted if t[0] > 1])


def _positions(moves: list[tuple[int, str]]) -> str:
    x = y = 0
    said = []
    for n, heading in moves:
        x += {"right": n, "left": -n}.get(heading, 0)
        y += {"forward": n, "backward": -n}.get(heading, 0)
        said.append(f"{heading} {n} = {x} {y}")
    return " , ".join(said)


def _axis(moves: list[tuple[int, str]], plus: str, minus: str) -> str:
    total, sums = 0, []
    for n, heading in moves:
        if heading in (plus, minus):
            total += n if heading == plus else -n
            sums.append(str(total))
    return " , ".join(sums) or "0"


def _walk(problem: Walk, style: str) -> str:
    if style in ("forwards", "backwards"):
        return _positions(problem.moves(reverse=style == "backwards"))
    moves = problem.moves()
    if style == "ledger":
        listed = " , ".join(f"{heading} {n}" for n, heading in moves)
        return f"{listed} ; across {_axis(moves, 'right', 'left')} ; along {_axis(moves, 'forward', 'backward')}"
    totals = [f"{h} {_axis(moves, h, h)}" for h in HEADINGS]
    return " ; ".join(totals)


def _truth(value: bool) -> str:
    return "truth" if value else "lies"


def _web(problem: Web, style: str) -> str:
    names, claims, truths = problem.names, problem.claims, problem.truths
    if style == "forwards":
        return " , ".join(f"{name} {_truth(value)}" for name, value in zip(names, truths, strict=True))
    if style == "backwards":
        same, said = True, []
        for name, claim in zip(names[-2::-1], claims[::-1], strict=True):
            same = same == claim
            said.append(f"{name} {'same' if same else 'differs'}")
        return f"{' , '.join(said)} ; {_truth(problem.first)}"
    if style == "ledger":
        listed = " , ".join(_truth(claim) for claim in claims)
        return f"{_truth(problem.first)} , {listed} ; so {' , '.join(_truth(value) for value in truths)}"
    liars, said = 0, []
    for name, claim in zip(names[1:], claims, strict=True):
        liars += not claim
        said.append(f"{name} {liars}")
    return f"{' , '.join(said)} ; {'odd' if liars % 2 else 'even'} , {_truth(problem.first)}"


def _logic(problem: Logic, style: str) -> str:
    tokens, lines = problem.tokens, []
    order = ["not", "(", "and", "or"]
    while len(tokens) > 1:
        ways = redexes(tokens)
        if style == "forwards":
            tokens = reduce_at(tokens, ways[0])
        elif style == "backwards":
            tokens = reduce_at(tokens, ways[-1])
        elif style == "sorted":
            tokens = reduce_at(tokens, min(ways, key=lambda way: order.index(way[1])))
        else:
            kind = min((way[1] for way in ways), key=order.index)
            for way in [w for w in ways if w[1] == kind][::-1]:
                if way in redexes(tokens):
                    tokens = reduce_at(tokens, way)
        lines.append(" ".join(tokens))
    return " = ".join(lines) or tokens[0]


def rationale(problem: Problem, style: str) -> str:
    """Return the worked reasoning in the style, ending in the tagged answer."""
    work = {Counting: _counting, Walk: _walk, Web: _web, Logic: _logic}[type(problem)](problem, style)
    return f"{LEADS[style]} {work} . <ans>{problem.answer}</ans>"


def rationale_for(task: str, question: str, style: str) -> str:
    """Return the rationale for a well-formed question given as text."""
    problem = read(task, question)
    if problem is None:
        raise ValueError(f"{question!r} is not a well-formed question of {task}.")
    return rationale(problem, style)
