"""How many replies, answers and files of people come out right: by this tree and, with --before, by another commit.

The cases are those of the test data (WORKBENCH_TEST_DATA): replies with the mark that a person would give them, files
whose answers are given to the letter in each form, and files that are to be read as written or refused by their row.

    python tests/benchmarks/peoples_files.py --before COMMIT
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
FORMS = ("<ans>{}</ans>", "\\boxed{{{}}}", "#### {}", "Answer: {}", "The answer is {}.")
GOLDS = {"euro.csv": "number", "money.csv": "exact"}
FILES = {
    "bom.json": ["1"],
    "bom.jsonl": ["1", "2"],
    "u2028.jsonl": ["1", "2"],
    "f32.parquet": ["0.1", "2"],
    "semi.csv": ["1,5", "2"],
    "nat.parquet": None,
    "strna.parquet": None,
    "unquoted_commas.csv": None,
}


def measure(folder: Path) -> dict[str, tuple[int, int]]:
    """Return (right, all) of each kind of case, by the library that is imported."""
    from workbench.runs.recipe_parts import TaskSource
    from workbench.tasks.answers import Answers
    from workbench.tasks.sources import items_of

    def targets(name: str, question: str, answer: str, kind: str) -> list[str]:
        source = TaskSource(path=str(folder / name), question=question, answer=answer, answer_type=kind)
        return [row["target"] for row in items_of(source, "mine")[0]]

    found: dict[str, list[bool]] = {}
    for case in map(json.loads, filter(None, (folder / "answers.jsonl").read_text(encoding="utf-8").split("\n"))):
        answers = Answers(case["answer_type"])
        is_right = answers.same(answers.read(case["reply"]), case["gold"]) == case["right"]
        found.setdefault(f"replies, {case['answer_type']}", []).append(is_right)
    for name, kind in GOLDS.items():
        answers, golds = Answers(kind), targets(name, "Question", "Answer", kind)
        told = [[answers.same(answers.read(form.format(gold)), gold) for form in FORMS] for gold in golds]
        # What is right for every answer tells nothing either.
        others = [answers.same(answers.read(FORMS[0].format(gold)), golds[0]) for gold in golds[1:]]
        found[f"answers of {name}, to the letter"] = [all(one) and not all(others) for one in told]
    for name, right in FILES.items():
        columns = ("Question", "Answer") if name.startswith("unquoted") else ("q", "a")
        try:
            is_right = targets(name, *columns, "exact") == right
        except ValueError as error:
            is_right = right is None and " row " in str(error)
        found.setdefault("small files: read as written, or refused by the row", []).append(is_right)
    return {kind: (sum(marks), len(marks)) for kind, marks in found.items()}


def by(library: Path, folder: Path) -> dict[str, list[int]]:
    """Measure with the library that lies in a folder, in a process of its own."""
    command = [sys.executable, __file__, "--json", "--data", str(folder)]
    told = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(library)}, capture_output=True, check=True)
    return json.loads(told.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    data = os.environ.get("WORKBENCH_TEST_DATA") or PROJECT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(data) / "cases")
    parser.add_argument("--before", default="", help="a commit to compare with")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.json:
        print(json.dumps(measure(given.data)))
        return
    now, before = by(PROJECT, given.data), {}
    if given.before:
        with tempfile.TemporaryDirectory() as folder:
            tree = subprocess.run(["git", "archive", given.before, "workbench"], cwd=PROJECT, stdout=-1, check=True)
            subprocess.run(["tar", "-x", "-C", folder], input=tree.stdout, check=True)
            before = by(Path(folder), given.data)
    print("| cases | before | now |\n| --- | --- | --- |")
    for kind, (right, n) in now.items():
        print(f"| {kind} | {f'{before[kind][0]} of {n}' if before else ''} | {right} of {n} |")


if __name__ == "__main__":
    main()
