"""The small classroom's loop, killed at many instants and begun again: nothing lost, nothing doubled, the same end.

`python tests/kills.py 180 20` kills a process that computes the loop as often as the first number says, at boundaries
of everything that is written and at random instants, and a real `workbench run` as often as the second says: the
command, its kernel or one of its workers, from its start on. Instants are counted in seconds of a core, so that they
are as many on a busy machine. What docs/reliability.md has in its table is written down after every run that came to
its end.
"""

import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import psutil
from conftest import PROJECT
from notebook_steps import NOTEBOOKS
from reliability_table import record, table
from small_classroom import STAGES, _arm, build, compute, recipe_of

from workbench.runs.identity import content_of
from workbench.runs.recipe import Recipe
from workbench.runs.run import MANIFEST, open_run, steps_in

# What a process dies after, and its n-th call at most.
BOUNDARIES = {
    "os:fsync": 40,
    "os:replace": 20,
    "workbench.runs.cache:atomic_write": 20,
    "workbench.runs.cache:Cache.put_many": 8,
    "workbench.runs.run:Step.begin": 4,
    "workbench.runs.run:_write": 5,
    "workbench.runs.run:Step.finish": 4,
    "transformers:Trainer.training_step": 8,
    "torch.optim.adam:_single_tensor_adam": 8,  # in the middle of an optimiser step
    "transformers:Trainer._save_checkpoint": 3,
    "transformers:Trainer.save_model": 2,
}
AT_BOUNDARIES = 0.6  # of the kills; the others come so many seconds of a core after the beginning, wherever it is
LONGEST_S = 3.0
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # at random instants; at boundaries the first
MET_S = 15.0  # a boundary that was not met by then is left for a random instant
INTERRUPTED = 130
IMPORTED = [f"workbench.{name}" for name in ("loop.alignment", "loop.tailoring", "signals.one_shot", "loop.budgets")]
IMPORTED += ["workbench.verdict.evaluation", "workbench.notebook.inspector", "transformers.models.llama.modeling_llama"]
IMPORTED += ["trl.trainer.dpo_trainer", "trl.trainer.sft_trainer"]  # trl itself imports them when they are used
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
COMMAND_LONGEST_S, START_S, GONE_S = 40.0, 8.0, 30.0
TRIGGER = """
CREATE TABLE IF NOT EXISTS items (kind TEXT, key TEXT, payload TEXT, checksum TEXT, PRIMARY KEY (kind, key))
WITHOUT ROWID;
CREATE TABLE doubled (kind TEXT, key TEXT);
CREATE TRIGGER twice BEFORE INSERT ON items WHEN EXISTS (SELECT 1 FROM items WHERE kind = NEW.kind AND key = NEW.key)
BEGIN INSERT INTO doubled VALUES (NEW.kind, NEW.key); END;
"""


def compute_all(runs: str, recipe: Recipe, target: str | None, n: int, by: int, after_s: float) -> None:
    """Compute every stage in this process; die after the n-th call of target, by a signal after so many seconds.

    Args:
        runs: The folder of runs.
        recipe: Of the run, which is called "loop".
        target: One of BOUNDARIES, "" for the random instant alone, None to live.
        n: Its call that is the last.
        by: The signal of the random instant.
        after_s: That instant, in seconds of a core.
    """
    os.environ["WORKBENCH_RUNS"] = runs
    began = time.process_time()

    def die_in_time() -> None:
        while time.process_time() - began < after_s:
            time.sleep(0.01)
        os.kill(os.getpid(), by)

    try:
        run = open_run("loop", recipe)
        if target:
            _arm(target, n)
        if target is not None:
            threading.Thread(target=die_in_time, daemon=True).start()
        for stage in STAGES:
            compute(stage, run)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)


def smaller(recipe: Recipe) -> Recipe:
    """Return a recipe that asks less, so that a core does more kills in an hour."""
    values = recipe.model_dump()
    values["preference_set"] |= {"n_items": 4, "shots": [0]}
    values["evaluation"] |= {"n_items": 4, "shots": [0]}
    return type(recipe).model_validate(values)


def forks():
    """Return how to start a process quickly: from one that has imported what is slow to import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kills", *IMPORTED])
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
    unbroken: Path,
    seed: int = 0,
    of_command: bool = False,
    say: Callable = print,
    note: Callable[[dict], None] = lambda counts: None,
) -> dict:
    """Kill runs so often, each where it was begun again after the last kill, and count what that did.

    Args:
        folder: Where the runs go.
        recipe: Of all of them.
        n_kills: How often.
        unbroken: A folder of runs with the run to compare with.
        seed: Names the draws.
        of_command: Whether `workbench run` is killed, not a process that computes the loop.
        say: Called with a line a kill.
        note: Called with the counts whenever a run came to its end.

    Returns:
        Kills by how and by stage; runs; lost (differs from an unbroken run), doubled, failed restarts, processes left.
    """
    context, rng = forks(), random.Random(seed)
    wanted = outcome(unbroken)
    counts = dict.fromkeys(["runs", "lost", "doubled", "failed", "left"], 0)

    def once(runs: Path, n_left: int) -> tuple[str, int | None]:
        at_boundary = bool(n_left) and rng.random() < AT_BOUNDARIES
        target = rng.choice(list(BOUNDARIES)) if at_boundary else "" if n_left else None
        n, by = rng.randint(1, BOUNDARIES.get(target) or 1), signal.SIGTERM if at_boundary else rng.choice(SIGNALS)
        after_s = MET_S if at_boundary else rng.uniform(0.1, 1) * LONGEST_S
        status = in_a_process(context, str(runs), recipe, target, n, by, after_s)
        if target and status == -signal.SIGKILL:
            return f"after {target.rpartition(':')[2]}", None
        return f"at random by {by.name}", status if status not in (-by, INTERRUPTED) else None

    def command(runs: Path, n_left: int) -> tuple[str, int | None]:
        what, by = rng.choice(COMMAND_KILLS) if n_left else ("", signal.SIGKILL)
        return f"{what} by {by.name}", kill_command(runs, folder, what, by, rng, counts)

    path = folder / "loop.yaml"
    path.write_text(recipe.model_copy(update={"compute": recipe.compute.model_copy(update={"workers": 2})}).to_yaml())
    kill, left = command if of_command else once, n_kills
    while left:
        runs = folder / f"runs-{counts['runs'] + 1}"
        begin_counting(runs)
        status = None
        while status is None:
            began, stage = time.monotonic(), stage_of(runs)
            how, status = kill(runs, left)
            if status is None:
                for name in (how, f"in {stage_of(runs)}"):
                    counts[name] = counts.get(name, 0) + 1
                left -= 1
            say(f"{how}: {'killed' if status is None else status}, {time.monotonic() - began:.0f} s, from {stage} on")
        found = outcome(runs)
        lost = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
        counts["runs"] += 1
        counts["failed"] += status != 0
        counts["lost"] += len(lost)
        counts["doubled"] += doubled(runs)
        say(f"otherwise than unbroken: {lost}; {counts}")
        note(counts)
        if not lost and not status:
            shutil.rmtree(runs)
    return counts


def stage_of(runs: Path) -> str:
    """Return the stage that a run is in: the first one whose last step is not finished."""
    ends = {stage: runs / "loop" / steps_in(NOTEBOOKS[stage])[-1] / MANIFEST for stage in STAGES}
    return next((stage for stage, end in ends.items() if not end.is_file()), STAGES[-1])


def kill_command(runs: Path, folder: Path, what: str, by: int, rng: random.Random, counts: dict) -> int | None:
    """Start `workbench run` on the recipe and kill a part of it; None if that ended it, else its exit status.

    The instant is drawn in seconds of a core that all of its processes took together. Those that are alive so many
    seconds later are counted as left, and ended.
    """
    command = [sys.executable, "-m", "workbench", "run", str(folder / "loop.yaml"), "--name", "loop"]
    environment = os.environ | {"WORKBENCH_RUNS": str(runs), "PYTHONPATH": str(PROJECT)}
    with open(runs / "said.txt", "a") as said:
        process = subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdout=said, stderr=said, start_new_session=True
        )
    at = rng.uniform(0.1, START_S if what == "start" else COMMAND_LONGEST_S)
    members: list[psutil.Process] = []
    spent: dict[int, float] = {}
    was_killed = False
    while process.poll() is None:
        members = family(process.pid, members)
        for one in members:
            with suppress(psutil.Error):
                spent[one.pid] = sum(one.cpu_times()[:2])
        victims = {"command": members[:1], "all": members, "start": members}.get(what)
        if victims is None:
            victims = [one for one in members[1:] if role_of(one) == what][:1]
        if what and victims and sum(spent.values()) > at and not was_killed:
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
        n_kills, n_commands, seed = (*map(int, sys.argv[1:]), 0, 0)[:3]
        recipe, whole = smaller(recipe_of(Path(name))), Path(name) / "whole"
        assert in_a_process(forks(), str(whole), recipe, None, 0, 0, 0) == 0
        for what, n in {"kills": n_kills, "kills of workbench run": n_commands}.items():
            if n:
                folder = Path(name) / what.replace(" ", "-")
                folder.mkdir()
                kill_often(folder, recipe, n, whole, seed, what != "kills", note=partial(record, what))
        print(table())
