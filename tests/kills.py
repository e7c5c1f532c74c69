"""The small classroom's loop, killed at many instants and begun again: nothing lost, nothing doubled, the same end.

`python tests/kills.py 150 50` kills a process that computes the loop as often as the first number says, at boundaries
of everything that is written and at random instants, and a real `workbench run` as often as the second says: the
command, its kernel or one of its workers, from its start on. It writes down what docs/reliability.md
has in its table.
"""

import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import psutil
from conftest import PROJECT
from reliability_table import record, table
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
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # at random instants; at boundaries the first
INTERRUPTED = 130
# What of `workbench run` is killed how: the command alone, all of its processes, its kernel, one of its workers.
COMMAND_KILLS = (
    ("command", signal.SIGKILL),
    ("command", signal.SIGTERM),
    ("all", signal.SIGKILL),
    ("all", signal.SIGINT),
    ("start", signal.SIGKILL),
    ("kernel", signal.SIGKILL),
    ("worker", signal.SIGKILL),
)
COMMAND_LONGEST_S, START_S, GONE_S = 60.0, 8.0, 10.0
TRIGGER = """
CREATE TABLE IF NOT EXISTS items (kind TEXT, key TEXT, payload TEXT, checksum TEXT, PRIMARY KEY (kind, key))
WITHOUT ROWID;
CREATE TABLE doubled (kind TEXT, key TEXT);
CREATE TRIGGER twice BEFORE INSERT ON items WHEN EXISTS (SELECT 1 FROM items WHERE kind = NEW.kind AND key = NEW.key)
BEGIN INSERT INTO doubled VALUES (NEW.kind, NEW.key); END;
"""


def compute_all(runs: str, recipe: Recipe, target: str | None, n: float, by: int = signal.SIGKILL) -> None:
    """Compute every stage in this process; die after the n-th call of target, or after n seconds where that is ""."""
    os.environ["WORKBENCH_RUNS"] = runs
    try:
        run = open_run("loop", recipe)
        if target:
            _arm(target, int(n))
        elif target == "":
            dying = threading.Timer(n, os.kill, (os.getpid(), by))
            dying.daemon = True
            dying.start()
        for stage in STAGES:
            compute(stage, run)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)


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


def begin_counting(runs: Path) -> None:
    """Make the record of finished items, with a trigger that counts what is stored twice."""
    runs.mkdir()
    with closing(sqlite3.connect(runs / "items.sqlite")) as items:
        items.executescript(TRIGGER)


def kill_often(
    folder: Path,
    recipe: Recipe,
    n_kills: int,
    seed: int = 0,
    n_commands: int = 0,
    say=print,
    unbroken: Path | None = None,
) -> dict:
    """Kill runs so often, each where it was begun again after the last kill, and count what that did.

    Args:
        folder: Where the runs go.
        recipe: Of all of them.
        n_kills: Of a process that computes the loop.
        seed: Names the draws.
        n_commands: Kills of `workbench run`.
        say: Called with a line a kill.
        unbroken: A folder of runs with the run to compare with; None computes it.

    Returns:
        Kills by how; runs; lost (differs from an unbroken run), doubled, failed restarts, processes left alive.
    """
    context, rng = forks(), random.Random(seed)
    if unbroken is None:
        unbroken = folder / "whole"
        assert in_a_process(context, str(unbroken), recipe, None, 0) == 0
    wanted = outcome(unbroken)
    counts = dict.fromkeys(["runs", "lost", "doubled", "failed", "left", "at boundaries"], 0)

    def once(runs: Path, n_left: int) -> tuple[str, int]:
        target = rng.choice(BOUNDARIES) if n_left else None
        by = rng.choice(SIGNALS) if target == "" else signal.SIGKILL
        at = rng.uniform(0.1, LONGEST_S) if target == "" else rng.randint(1, 12)
        status = in_a_process(context, str(runs), recipe, target, at, by)
        how = f"at random by {by.name}" if target == "" else "at boundaries"
        return how, status if status not in (-by, INTERRUPTED) else None

    def command(runs: Path, n_left: int) -> tuple[str, int]:
        what, by = rng.choice(COMMAND_KILLS) if n_left else ("", signal.SIGKILL)
        status = kill_command(runs, folder, what, by, rng, counts)
        return f"{what} of workbench run by {by.name}", status

    path = folder / "loop.yaml"
    path.write_text(recipe.model_copy(update={"compute": recipe.compute.model_copy(update={"workers": 2})}).to_yaml())
    left = {once: n_kills, command: n_commands}
    while any(left.values()):
        counts["runs"] += 1
        runs = folder / f"runs-{counts['runs']}"
        begin_counting(runs)
        kill, status = max(left, key=lambda one: left[one] / max(1, n_kills if one is once else n_commands)), None
        while status is None:
            began = time.monotonic()
            how, status = kill(runs, left[kill])
            if status is None:
                counts[how] = counts.get(how, 0) + 1
                left[kill] -= 1
            say(f"{how}: {'killed' if status is None else status} after {time.monotonic() - began:.0f} s")
        found = outcome(runs)
        lost = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
        counts["failed"] += status != 0
        counts["lost"] += len(lost)
        counts["doubled"] += doubled(runs)
        say(f"otherwise than unbroken: {lost}; {counts}")
    return counts


def kill_command(runs: Path, folder: Path, what: str, by: int, rng: random.Random, counts: dict) -> int | None:
    """Start `workbench run` on the recipe and kill a part of it; None if that ended it, else its exit status.

    Processes of it that are alive so many seconds later are counted as left, and ended.
    """
    command = [sys.executable, "-m", "workbench", "run", str(folder / "loop.yaml"), "--name", "loop"]
    environment = os.environ | {"WORKBENCH_RUNS": str(runs), "PYTHONPATH": str(PROJECT)}
    with open(runs / "said.txt", "a") as said:
        process = subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdout=said, stderr=said, start_new_session=True
        )
    at = time.monotonic() + rng.uniform(0.1, START_S if what == "start" else COMMAND_LONGEST_S)
    members: list[psutil.Process] = []
    was_killed = False
    while process.poll() is None:
        members = family(process.pid, members)
        victims = {"command": members[:1], "all": members, "start": members}.get(what)
        if victims is None:
            victims = [one for one in members[1:] if role_of(one) == what][:1]
        if what and victims and time.monotonic() > at and not was_killed:
            was_killed = True
            for victim in victims:
                with suppress(psutil.Error):
                    victim.send_signal(by)
        time.sleep(0.1)
    _, alive = psutil.wait_procs(members, timeout=GONE_S)
    counts["left"] += len(alive)
    for one in alive:
        one.kill()
    return None if was_killed and process.returncode else process.returncode


def family(pid: int, known: list[psutil.Process]) -> list[psutil.Process]:
    """Return a process and all that come from it, those that are known and whose parents are gone too."""
    with suppress(psutil.Error):
        found = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        known = list(dict.fromkeys([*found, *known]))
    return known


def role_of(process: psutil.Process) -> str:
    """Return "kernel" or "worker" for those of `workbench run`, else ""."""
    with suppress(psutil.Error):
        line = " ".join(process.cmdline())
        return "kernel" if "ipykernel" in line else "worker" if "spawn_main" in line else ""
    return ""


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        build(Path(name))
        given = [int(one) for one in sys.argv[1:]]
        counts = kill_often(Path(name), recipe_of(Path(name)), given[0], *given[2:], n_commands=(given[1:] or [0])[0])
        record("kills", counts)
