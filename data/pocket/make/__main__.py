"""Rebuild the pocket classroom: `python -m data.pocket.make tasks`, `... models [NAME ...]`; or `... measure` it."""

import argparse
import json
from pathlib import Path

from data.pocket.make.classroom import DESCRIPTIONS, STUDENTS, TASKS, TECHNIQUES
from data.pocket.make.questions import TEST_SIZES, write
from workbench.runs.recipe import project_root
from workbench.runs.recipe_file import load_recipe
from workbench.runs.seeding import stream
from workbench.tasks.contamination import Guard
from workbench.tasks.pocket_questions import solve

ITEMS_SEED = 1
CURVES_OF = ["tally-strong", "no-preference", "newcomer", "beginner"]
N_ITEMS = {"seeds": 3, "validation": 120, "test": 250}


def write_tasks(folder: Path) -> None:
    """Write one task file for each pocket task; no question stands in two sets, not even but for its layout."""
    for task in TASKS:
        sets: dict[str, list] = {}
        for name, n in N_ITEMS.items():
            rng = stream(ITEMS_SEED, "pocket", "items", task, name)
            other = {"other": [item["input"] for items in sets.values() for item in items]}
            guard = Guard(other, levels=("exact", "normalised"))
            kept: dict[str, str] = {}
            while len(kept) < n:
                question = write(task, rng, TEST_SIZES[task])
                if not guard.overlap(question):
                    kept[question] = solve(task, question)
            sets[name] = [{"input": question, "target": target} for question, target in kept.items()]
        content = {"description": DESCRIPTIONS[task], "solver": task, "techniques": TECHNIQUES, **sets}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{task}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _measure(names: list[str], folder: Path, curves: bool) -> None:
    """Print what students do before, with a demonstration and after training, and the gates; keep the table."""
    from data.pocket.make.measure import in_words, measured

    table = measured(load_recipe("arte"), names, folder, curves)
    table.to_csv(folder / ("curves.csv" if curves else "measured.csv"), index=False, float_format="%.4f")
    print(in_words(table))


def main() -> None:
    """Read the command line and rebuild what it names."""
    parser = argparse.ArgumentParser(prog="python -m data.pocket.make", description=__doc__)
    parser.add_argument("what", choices=["tasks", "models", "measure"])
    parser.add_argument("names", nargs="*", help="models to raise or students to measure; none means all of them")
    parser.add_argument("--folder", type=Path, default=project_root() / "data" / "pocket")
    parser.add_argument("--curves", action="store_true", help="measure: other numbers of examples and learning rates")
    arguments = parser.parse_args()
    if arguments.what == "tasks":
        write_tasks(arguments.folder / "tasks")
        return
    if arguments.what == "measure":
        usual = CURVES_OF if arguments.curves else list(STUDENTS)
        _measure(arguments.names or usual, arguments.folder, arguments.curves)
        return
    from data.pocket.make.raising import raise_all
    from data.pocket.make.rewards import SHAPES, raise_rewards

    names = arguments.names or ["teacher", *STUDENTS, *SHAPES]
    if rest := [name for name in names if name not in SHAPES]:
        raise_all(rest, arguments.folder)
    if rewards := [name for name in names if name in SHAPES]:
        raise_rewards(rewards, arguments.folder)


if __name__ == "__main__":
    main()
