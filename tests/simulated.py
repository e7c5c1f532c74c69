"""Runs drawn for tests: the answers of two arms, whole runs as predictions, and what the verdict says of these."""

import numpy as np
import pandas as pd

from workbench.verdict.power import ExperimentDesign, Simulated
from workbench.verdict.verdict import BASE_SEED, verdict


def two_arms(
    n_seeds: int,
    n_items: int,
    generator: np.random.Generator,
    effect: float = 0.0,
    seed_sd: float = 0.02,
    item_sd: float = 0.1,
    accuracy: float = 0.4,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the answers (1.0 right, 0.0 wrong) of two arms, each of shape (n_seeds, n_items).

    Items differ in difficulty for both arms alike (by up to 0.25 either way) and by item_sd for each arm alone; each
    seed shifts an arm's accuracy by seed_sd. The accuracy of arm a lies effect above that of arm b.
    """
    difficulty = generator.uniform(-0.25, 0.25, n_items)
    arms = []
    for level in (accuracy + effect, accuracy):
        own = difficulty + item_sd * generator.standard_normal(n_items)
        chances = level + own + seed_sd * generator.standard_normal((n_seeds, 1))
        arms.append((generator.random((n_seeds, n_items)) < chances).astype(float))
    return arms[0], arms[1]


def predictions_of(run: Simulated, design: ExperimentDesign, repeat: int) -> pd.DataFrame:
    """Return one simulated run as predictions, as its schema describes them but for the answers' texts."""
    frames = []
    for (arm, shots), table in run.answers.items():
        seeds = [BASE_SEED] if arm == "base" else range(table.shape[1])
        for seed, row in zip(seeds, table[repeat], strict=True):
            cells = {"student": "s", "arm": arm, "seed": seed, "shots": shots, "task": design.columns}
            items = [f"{n:06}" for n in range(len(row))]
            frames.append(
                pd.DataFrame(cells | {"item_id": items, "answer": "", "style": "", "parsed": True, "correct": row})
            )
    return pd.concat(frames, ignore_index=True)


def verdict_on(run: Simulated, design: ExperimentDesign, repeat: int) -> tuple[list[str], list[str], list[str]]:
    """Pass one simulated run through the verdict itself; return what it decides, in the order of `Decided`."""
    settings = {
        "arms": list(design.arms),
        "shots": list(design.shots),
        "margin": design.margin,
        "alpha": design.alpha,
        "primary": {"a": design.a, "b": design.b, "shots": design.shots[0]},
    }
    result = verdict(predictions_of(run, design, repeat), settings, recipe="", run="", models="", student="s")
    tasks = {row["task"]: row["decision"] for row in result["per_task"]}
    compared = result["comparisons"]
    held = [row["decision_adjusted"] for row in compared[1:]]
    return [row["decision"] for row in compared], held, [tasks[name] for name in design.tasks]
