"""The small classroom's loop, killed at many instants and begun again: nothing lost, nothing doubled, the same end.

`python tests/kills.py 200` kills as often, at boundaries of everything that is written and at random instants, and
prints a row for the table in docs/reliability.md.
"""

import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

from small_classroom import STAGES, _arm, build, compute, recipe_of

from workbench.runs.identity import content_of
from workbench.runs.recipe import Recipe
from workbench.runs.run import open_run

# What a process dies after, or "" for so many seconds after its stages begin, wherever it is then.
BOUNDARIES = (
    "os:fsync",
    "os:replace",
    "workbench.runs.cache:atomic_write",
    "workbench.runs.cache:Cache.put_many",
    "workbench.runs.run:Step.begin",
    "workbench.runs.run:_write",
    "workbench.runs.run:Step.finish",
    "transformers:Trainer.training_step",
    "transformers:Trainer._save_checkpoint",
    "transformers:Trainer.save_model",
    "",
    "",
)
LONGEST_S = 20.0
TRIGGER = """
CREATE TABLE IF NOT EXISTS items (kind TEXT, key TEXT, payload TEXT, checksum TEXT, PRIMARY KEY (kind, key))
WITHOUT ROWID;
CREATE TABLE doubled (kind TEXT, key TEXT);
CREATE TRIGGER twice BEFORE INSERT ON items WHEN EXISTS (SELECT 1 FROM items WHERE kind = NEW.kind AND key = NEW.key)
BEGIN INSERT INTO doubled VALUES (NEW.kind, NEW.key); END;
"""


def compute_all(runs: str, recipe: Recipe, target: str | None, n: float) -> None:
    """Compute every stage in this process; die after the n-th call of target, or after n seconds where that is ""."""
    os.environ["WORKBENCH_RUNS"] = runs
    run = open_run("loop", recipe)
    if target:
        _arm(target, int(n))
    elif target == "":
        dying = threading.Timer(n, os.kill, (os.getpid(), signal.SIGKILL))
        dying.daemon = True
        dying.start()
    for stage in STAGES:
        compute(stage, run)


def forks():
    """Return how to start a process quickly: from one that has imported what is slow to import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kills", "workbench.loop.alignment", "workbench.signals.one_shot", "trl"])
    return context


def in_a_process(context, *arguments) -> int:
    """Return the exit status of compute_all in a process of its own."""
    process = context.Process(target=compute_all, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def outcome(runs: Path) -> dict:
    """Return all that a finished run holds, to be compared: frames by content, weights and verdict by their bytes."""
    found = {}
    for path in sorted((runs / "loop").rglob("*")):
        name = path.relative_to(runs).as_posix()
        if path.suffix == ".parquet":
            import pandas as pd

            found[name] = content_of(pd.read_parquet(path))
        elif path.suffix == ".safetensors" or path.name == "verdict.json":
            found[name] = path.read_bytes()
    return found


def doubled(runs: Path) -> int:
    """Return how many finished items were stored a second time; running totals are no items."""
    with closing(sqlite3.connect(runs / "items.sqlite")) as items:
        return items.execute("SELECT COUNT(*) FROM doubled WHERE kind != 'spending'").fetchone()[0]


def kill_often(folder: Path, recipe: Recipe, n_kills: int, seed: int = 0, say=print) -> dict[str, int]:
    """Kill runs so often, each where it was begun again after the last kill, and count what that did.

    Returns:
        kills, by boundary and at random instants; runs; lost (differs from an unbroken run), doubled, failed restarts.
    """
    context, rng = forks(), random.Random(seed)
    whole = folder / "whole"
    assert in_a_process(context, str(whole), recipe, None, 0) == 0
    wanted, counts = (
        outcome(whole),
        dict.fromkeys(["at boundaries", "at random", "runs", "lost", "doubled", "failed"], 0),
    )
    while counts["at boundaries"] + counts["at random"] < n_kills:
        counts["runs"] += 1
        runs = folder / f"runs-{counts['runs']}"
        runs.mkdir()
        with closing(sqlite3.connect(runs / "items.sqlite")) as items:
            items.executescript(TRIGGER)
        status = -signal.SIGKILL
        while status == -signal.SIGKILL:
            target = rng.choice(BOUNDARIES)
            if counts["at boundaries"] + counts["at random"] >= n_kills:
                target = None
            at = rng.uniform(0.1, LONGEST_S) if target == "" else rng.randint(1, 12)
            began = time.monotonic()
            status = in_a_process(context, str(runs), recipe, target, at)
            counts["at random" if target == "" else "at boundaries"] += status == -signal.SIGKILL
            say(f"{target or 'after seconds'} {at:.3g}: status {status} after {time.monotonic() - began:.0f} s")
        counts["failed"] += status != 0
        found = outcome(runs)
        counts["lost"] += sum(found.get(name) != wanted[name] for name in wanted) + len(set(found) - set(wanted))
        counts["doubled"] += doubled(runs)
    return counts


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        build(Path(name))
        print(kill_often(Path(name), recipe_of(Path(name)), int(sys.argv[1]), int((sys.argv[2:] or ["0"])[0])))
