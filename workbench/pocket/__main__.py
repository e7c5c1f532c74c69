"""Rebuild the pocket classroom: `python -m workbench.pocket tasks`, `... models [NAME ...]`; or `... measure` it."""

import argparse
import json
from pathlib import Path

from workbench.guard import Guard
from workbench.pocket.classroom import DESCRIPTIONS, STUDENTS, TASKS, TECHNIQUES
from workbench.pocket.problems import TEST_SIZES, solve, write
from workbench.recipe import load_recipe, project_root
from workbench.seeding import stream

ITEMS_SEED = 1
MEASURE_SEED = 5  # no run's seed
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


def _measure(names: list[str], folder: Path) -> None:
    """Print technique x student: right answers one-shot and after fine-tuning, on generated demonstrations."""
    from workbench.pocket.measure import measure

    students = ", ".join(f"{name}: {folder / name}" for name in names)
    table = measure(load_recipe("arte", {"models.students": f"{{{students}}}"}), seed=MEASURE_SEED)
    print(
        table.pivot_table(index=["student", "task", "when"], columns="technique", values="accuracy")
        .round(2)
        .to_string()
    )
    table.to_csv(folder / "measured.csv", index=False)


def main() -> None:
    """Read the command line and rebuild what it names."""
    parser = argparse.ArgumentParser(prog="python -m workbench.pocket", description=__doc__)
    parser.add_argument("what", choices=["tasks", "models", "measure"])
    parser.add_argument("names", nargs="*", help="models to raise or students to measure; none means all of them")
    parser.add_argument("--folder", type=Path, default=project_root() / "data" / "pocket")
    arguments = parser.parse_args()
    if arguments.what == "tasks":
        write_tasks(arguments.folder / "tasks")
        return
    if arguments.what == "measure":
        _measure(arguments.names or list(STUDENTS), arguments.folder)
        return
    from workbench.pocket.raising import raise_all

    raise_all(arguments.names or ["teacher", *STUDENTS], arguments.folder)


if __name__ == "__main__":
    main()
