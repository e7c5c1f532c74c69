"""Measure the guard: how many leaks it finds in each disguise, at each level, and how often it accuses honest items.

Run by hand:  python -m tests.benchmarks.guard_recall [--tasks navigate gsm8k] [--csv FILE]

The guarded set is the test set of a pocket task, or one part of a task of BIG-Bench Hard or of GSM8K (which lie outside
the project, in WORKBENCH_TEST_DATA). Honest items were never seen by the guard: new ones from the generator, or the
other part. Those that are the same as a guarded item by definition (exact, normalised, options) are counted apart.
"""

import argparse
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from data.pocket.make.questions import TEST_SIZES, write
from tests.disguises import DISGUISES, planted
from workbench.runs.recipe import project_root
from workbench.runs.seeding import stream
from workbench.tasks.contamination import BY_DEFINITION, LEVELS, OFF, Guard

N_HONEST, N_PLANTED = 500, 80
GUARDED_SHARE = 0.8


def main() -> None:
    """Print one row for each task and disguise, and the share of honest items that each level accuses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=[], help="parts of names; none means all")
    parser.add_argument("--csv", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    rows = []
    for name, guarded, honest in task_sets():
        if not arguments.tasks or any(part in name for part in arguments.tasks):
            rows += measure(name, guarded, honest)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format=lambda share: f"{share:.2f}", na_rep="off"))
    honest = table[table["what"] == "honest items"]
    by_task = honest[list(LEVELS[len(BY_DEFINITION) :])]
    accused = (honest["calibrated"] * honest["n"]).sum() / honest["n"].sum()
    print(f"\nHonest items accused by a calibrated level: {accused:.2%} of {honest['n'].sum()}")
    print(f"Levels on, of {len(honest)} tasks: {by_task.notna().sum().to_dict()}")
    if arguments.csv:
        table.to_csv(arguments.csv, index=False)


def task_sets() -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (name, guarded items, honest items)."""
    for path in sorted((project_root() / "data" / "pocket" / "tasks").glob("*.json")):
        guarded = [item["input"] for item in json.loads(path.read_text(encoding="utf-8"))["test"]]
        rng = stream(99, "honest", path.stem)
        yield f"pocket {path.stem}", guarded, [write(path.stem, rng, TEST_SIZES[path.stem]) for _ in range(N_HONEST)]
    folder = Path(os.environ.get("WORKBENCH_TEST_DATA") or project_root().parent / "shared" / "data")
    for path in sorted((folder / "bbh").glob("*.json")):
        examples = json.loads(path.read_text(encoding="utf-8"))["examples"]
        yield f"bbh {path.stem}", *_divided([item["input"] for item in examples])
    for path in sorted((folder / "gsm8k").glob("test.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        yield "gsm8k", *_divided([json.loads(line)["question"] for line in lines])


def _divided(questions: list[str]) -> tuple[list[str], list[str]]:
    mixed = random.Random(0).sample(list(dict.fromkeys(questions)), len(set(questions)))
    # The guard needs a hundred items to calibrate on.
    n = max(100, round(GUARDED_SHARE * len(mixed)))
    return mixed[:n], mixed[n:]


def measure(name: str, guarded: list[str], honest: list[str]) -> list[dict]:
    """Return the recall of each level alone and of all together, for each disguise, and the false positives."""
    guard = Guard({"test": guarded})
    known = [level for level in LEVELS if level in BY_DEFINITION]
    asked = {"honest items": honest}
    sample = random.Random(1).sample(guarded, min(N_PLANTED, len(guarded)))
    asked |= {disguise: planted(sample, disguise) for disguise in DISGUISES}
    rows = []
    for what, questions in asked.items():
        if not questions:
            continue
        levels = [{one.level for one in guard.matches(question)} for question in questions]
        found = pd.DataFrame([{level: float(level in by) for level in LEVELS} for by in levels])
        found[[level for level in LEVELS if guard.thresholds[level] == OFF]] = float("nan")
        calibrated = found.drop(columns=known)
        if what == "honest items":
            calibrated = calibrated[~found[known].eq(1).any(axis=1)]
        shares = {level: found[level].mean() for level in LEVELS}
        row = {"task": name, "what": what, "n": len(questions)} | shares
        row["calibrated"] = calibrated.eq(1).any(axis=1).mean() if len(calibrated) else 0.0
        row["any"] = found.eq(1).any(axis=1).mean()
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
