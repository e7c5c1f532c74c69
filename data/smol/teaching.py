"""What the teacher of arte-smol is raised on: rule-made questions of two tasks, each worked in four ways.

The ways are meant to be of about equal worth; none is planted in the student, which is the model as it was published.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from data.pocket.make.questions import write
from workbench.loop import prompts
from workbench.runs.recipe_parts import Prompts
from workbench.runs.seeding import stream
from workbench.tasks import pocket_questions

SEED = 20  # of the items and the rows; no run's seed
SIZES = (2, 5)  # things in a question of counting
N_ITEMS = {"seeds": 6, "validation": 60, "test": 120}
DESCRIPTIONS = {"addition": "Add two numbers.", "object_counting": "Count the things of the kind that is asked for."}
TECHNIQUES = {
    "addition": {
        "columns": "Add the ones first, then the tens, and say what is carried.",
        "parts": "Add tens to tens and ones to ones, then both sums.",
        "count_on": "Count on from the first number, first by tens, then by ones.",
        "bare": "Write the sum at once.",
    },
    "object_counting": {
        "running": "Go through the things one by one and note the total after each.",
        "listed": "List how many there are of each thing, then add them up.",
        "sum": "Write all the numbers as one sum.",
        "bare": "Write the number at once.",
    },
}


def addition(rng: np.random.Generator) -> str:
    """Return a question that adds two numbers of two digits."""
    return "What is {} + {}?".format(*rng.integers(11, 90, 2))


def _added(question: str, way: str) -> tuple[str, int]:
    a, b = (int(word.strip("?")) for word in question.split() if word.strip("?").isdigit())
    (tens, ones), (more, rest) = divmod(a, 10), divmod(b, 10)
    carried = (ones + rest) // 10
    carry = f", write {(ones + rest) % 10}, carry 1" if carried else ""
    with_carry = f"{tens} + {more} + 1 = {tens + more + 1}" if carried else f"{tens} + {more} = {tens + more}"
    work = {
        "columns": f"Ones: {ones} + {rest} = {ones + rest}{carry}. Tens: {with_carry}. So {a + b}.",
        "parts": f"{10 * tens} + {10 * more} = {10 * (tens + more)}. {ones} + {rest} = {ones + rest}. "
        f"{10 * (tens + more)} + {ones + rest} = {a + b}.",
        "count_on": f"{a} + {10 * more} = {a + 10 * more}. {a + 10 * more} + {rest} = {a + b}.",
        "bare": f"{a} + {b} = {a + b}.",
    }
    return work[way], a + b


def counting(rng: np.random.Generator) -> str:
    """Return a question in the form of BIG-Bench Hard's object_counting."""
    return write("object_counting", rng, SIZES)


def _counted(question: str, way: str) -> tuple[str, int]:
    problem = pocket_questions.read("object_counting", question)
    totals = np.cumsum([n for n, _ in problem.counted])
    numbers = " + ".join(str(n) for n, _ in problem.counted)
    running = ", ".join(f"{word} {total}" for (_, word), total in zip(problem.counted, totals, strict=True))
    listed = ", ".join(f"{word} {n}" for n, word in problem.counted)
    work = {
        "running": f"Start at 0: {running}.",
        "listed": f"There are {listed}. Together {totals[-1]}.",
        "sum": f"{numbers} = {totals[-1]}.",
        "bare": f"There are {totals[-1]}.",
    }
    return work[way], int(totals[-1])


TASKS: dict[str, tuple[Callable[[np.random.Generator], str], Callable[[str, str], tuple[str, int]]]] = {
    "addition": (addition, _added),
    "object_counting": (counting, _counted),
}


def items(task: str) -> dict[str, list[dict[str, str]]]:
    """Return a task's items by set, no question twice."""
    ask, work = TASKS[task]
    rng, found = stream(SEED, "smol", task), {}
    while len(found) < sum(N_ITEMS.values()):
        question = ask(rng)
        found[question] = str(work(question, "bare")[1])
    rows = iter([{"input": question, "target": target} for question, target in found.items()])
    return {name: [next(rows) for _ in range(n)] for name, n in N_ITEMS.items()}


def write_tasks(folder: Path) -> None:
    """Write the task files; object_counting names the solver that checks what is written of it."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        solver = {"solver": task} if task in pocket_questions.READERS else {}
        content = {"description": DESCRIPTIONS[task], "techniques": TECHNIQUES[task], **solver, **items(task)}
        (folder / f"{task}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def rows(asked: Prompts, n_each: int = 20) -> pd.DataFrame:
    """Return the rows that the teacher is raised on: prompt and completion, none of a question of the tasks' files.

    Of each task n_each rationales by every technique, half as many asked plainly in each way, and n_each new questions.
    """
    made = []
    for task, (ask, work) in TASKS.items():
        rng, description = stream(SEED, "smol", "rows", task), DESCRIPTIONS[task]
        known = {item["input"] for part in items(task).values() for item in part}

        def fresh(rng=rng, ask=ask, known=known) -> str:
            return next(question for question in iter(lambda: ask(rng), "") if question not in known)

        for way, technique in TECHNIQUES[task].items():
            for n in range(n_each + n_each // 2):
                question = fresh()
                worked, answer = work(question, way)
                told = technique if n < n_each else ""
                prompt = prompts.technique_prompt(description, told, question, asked)
                made.append((prompt, f"{worked} {prompts.answer_in_form(str(answer), asked)}"))
        for _ in range(n_each):
            *shown, new = ((question, str(work(question, "bare")[1])) for question in (fresh() for _ in range(4)))
            prompt = prompts.question_prompt(description, shown, 1, asked)
            made.append((prompt, prompts.question_reply(*new).removeprefix(prompts.went_on(prompt, ""))))
    return pd.DataFrame(made, columns=["prompt", "completion"])
