"""A run watched from outside, in a terminal; only files are read, so it outlives the run's kernel."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pandas as pd

from workbench.methods import ALL
from workbench.notebook.display import Progress, print_table, without_bars
from workbench.runs import progress
from workbench.runs.errors import RunError, spoken, visible
from workbench.runs.run import NEXT, SUPERSEDED, Run, open_run, steps_in

SILENT_S = 60  # from then on silence is worth a word, though the process is there
BARS = "▁▂▃▄▅▆▇█"
SPARK_POINTS = 40
REFRESH_S = 2.0
LONGEST = 110  # letters of a text that a model wrote
COLUMNS = ["step", "state", "items", "rate", "time left", "tokens", "seconds"]


@dataclass
class Now:
    """What a run is doing.

    Attributes:
        state: "not begun", "working", "silent", "gone", "stopped", "between steps" or "finished".
        said: That in a sentence, with what to do where something is to be done.
        steps: One row a step; columns as in COLUMNS.
        doing: What each process of the present step is at.
        curve: Training so far of the models in training, a spark line each and for each metric.
        texts: The last texts that were written, oldest first; a model wrote them.
    """

    run: str
    state: str
    said: str
    steps: pd.DataFrame = field(repr=False)
    doing: list[str]
    curve: list[str]
    texts: list[str]

    def write(self, out) -> None:
        """Write all of it, on a terminal with a table that fits it, what models wrote without control characters."""
        print(f"Run {self.run}: {self.said}\n", file=out)
        print_table(self.steps.loc[:, (self.steps != "").any()], out)
        width = min(shutil.get_terminal_size().columns - 2, LONGEST) if out.isatty() else LONGEST
        lines = [f"  {visible(what, width)}" for what in self.doing]
        lines += ["", *self.curve] if self.curve else []
        lines += ["", "Last written:", *(f"  {visible(text, width)}" for text in self.texts)] if self.texts else []
        print("\n".join(lines), file=out)


def spark_lines(model: str, points: list[tuple[int, str, float]]) -> list[str]:
    """Return a line for each metric of a model in training: its values in numbers and as small bars.

    Each point is step, metric and value, in the order of the steps.
    """
    lines = []
    for metric in dict.fromkeys(metric for _, metric, _ in points):
        steps, values = zip(*((step, value) for step, of, value in points if of == metric))
        low, high = min(values), max(values)
        shown = values[:: -(-len(values) // SPARK_POINTS)]
        bars = "".join(BARS[int(7 * (value - low) / ((high - low) or 1.0))] for value in shown)
        lines.append(spoken(f"{metric}, {model}: {values[0]:.3g} to {values[-1]:.3g} in {steps[-1]} steps  {bars}"))
    return lines


def look(run: Run, at: float | None = None) -> Now:
    """Return what a run is doing, from its files.

    Args:
        run: The run; it may be computed by another process, or by one that died.
        at: The time to take as now, in seconds since 1970.
    """
    at = at or time.time()
    step, signs = _present(run)
    state, said = _state(run, step, signs, at)
    named = dict.fromkeys([*expected_steps(run), *run.steps(), *filter(None, [step])])
    empty = dict.fromkeys(COLUMNS, "")
    rows = [
        empty
        | {"step": name}
        | ({"state": state, **_so_far(signs, state, at)[0]} if name == step else _finished(run, name))
        for name in named
    ]
    # What a process that died on a cluster was at is another's by now.
    busy = [sign for sign in signs if not sign["main"] and progress.is_there(sign) is not False] or signs[:1]
    texts = _texts(signs)
    if not texts and run.has("drafts"):
        with suppress(RunError):
            texts = list(run.read("drafts")["rationale"])
    return Now(
        run.name,
        state,
        said,
        pd.DataFrame(rows, columns=COLUMNS),
        [_doing(sign) for sign in busy] if state in ("working", "silent") else [],
        [line for sign in signs for model in sign["curve"].items() for line in spark_lines(*model)],
        texts[-3:],
    )


def _texts(signs: list[dict]) -> list[str]:
    return [text for sign in sorted(signs, key=lambda sign: sign["at"]) for text in sign["texts"]]


@contextmanager
def watching(step: str) -> Iterator[None]:
    """Show in a notebook how far a step is, by what its processes say; libraries draw no bars of their own."""
    signs, over, shown = progress.folder(), threading.Event(), Progress(spoken(step))

    def look_again() -> None:
        while signs and not over.wait(1):
            if given := progress.read(signs.parent):
                so_far, share = _so_far(given, "working", time.time())
                left = f"{so_far['time left']} left" if "time left" in so_far else f"{so_far['seconds']} s"
                shown.text = visible((_texts(given) or [""])[-1], LONGEST)
                line = ", ".join(filter(None, [so_far["items"], so_far["rate"], left]))
                shown(share, int(share > 0), f"{shown.what}: {line}")

    watcher = threading.Thread(target=look_again, daemon=True)
    watcher.start()
    try:
        with without_bars():
            yield
    finally:
        over.set()
        watcher.join()
        shown.close()


def expected_steps(run: Run) -> list[str]:
    """Return the steps that every run of its method makes, in the order of its notebooks."""
    return [step for notebook in ALL[run.recipe.method].notebooks for step in steps_in(notebook, always=True)]


def _present(run: Run) -> tuple[str, list[dict]]:
    """Return the step that gave signs last and did not finish, "" for none, with its signs."""
    alive = {}
    for folder in run.path.rglob(progress.FOLDER):
        name = folder.parent.relative_to(run.path).as_posix()
        if SUPERSEDED not in name and (signs := progress.read(folder.parent)):
            alive[name.removesuffix(NEXT)] = signs
    return max(alive.items(), key=lambda named: max(sign["at"] for sign in named[1]), default=("", []))


def _state(run: Run, step: str, signs: list[dict], at: float) -> tuple[str, str]:
    command = f"workbench run {run.path / 'recipe.yaml'} --name {run.name}"
    if not step:
        missing = [spoken(name) for name in expected_steps(run) if not run.has(name)]
        if not missing:
            return "finished", "all steps are finished."
        if not run.steps():
            return "not begun", f"no step has been begun; begin with: {command}"
        done = f"{spoken(run.steps()[-1])} is finished, {missing[0]} has not begun"
        return "between steps", f"{done}; to go on: {command}"
    main, age, step = signs[0], max(0.0, at - max(sign["at"] for sign in signs)), spoken(step)
    go_on = f"Finished items are kept; to go on: {command}"
    if main["stopped"]:
        return "stopped", f"{step} was stopped ({visible(main['stopped'], 300)}). {go_on}"
    there = progress.is_there(main)
    if there is False:
        lost = f"process {main['pid']}, which computed {step}, is gone"
        return "gone", f"no sign of life for {age:.0f} s: {lost}. {go_on}"
    if age > SILENT_S:
        where = f"process {main['pid']} is still there" if there else f"its machine, {main['host']}, may know more"
        why = "a long batch, or a model being loaded"
        return "silent", f"no sign of life of {step} for {age:.0f} s, though {where}: {why}."
    return "working", f"{step} is being computed; last sign of life {age:.0f} s ago."


def _finished(run: Run, name: str) -> dict:
    """Return the row of a step that is not at work."""
    made = run.manifest(name)
    if not made:
        return {"state": "not begun"}
    items = ", ".join([f"{n:,} {what}" for what, n in made["counts"].items()][:1])
    tokens = f"{made['tokens']:,}" if made["tokens"] else ""
    return {"state": "finished", "items": items, "tokens": tokens, "seconds": f"{made['seconds']:,.0f}"}


def _so_far(signs: list[dict], state: str, at: float) -> tuple[dict, float]:
    """Return how far a step is, as a row and as the share of its jobs; those half done count as halves."""
    main = signs[0]
    items, fresh, tokens = (sum(sign[key] for sign in signs) for key in ("items", "fresh", "tokens"))
    until = at if state == "working" else max(sign["at"] for sign in signs)
    spent = max(until - main["began"], 1e-9)
    n_done, n_jobs = main["jobs"]
    shown = {"seconds": f"{spent:.0f}", "tokens": f"{tokens:,}" if tokens else ""}
    shown["items"] = ", ".join([f"{n_done} of {n_jobs} jobs"] * bool(n_jobs) + [f"{items:,} items"] * bool(items))
    shown["rate"] = f"{fresh / spent:.1f} a second" if fresh else ""
    n_done = min(n_done + sum(step / of for step, of in (sign["steps"] for sign in signs) if step < of), n_jobs)
    if n_done and state == "working":
        shown["time left"] = f"about {(n_jobs - n_done) / n_done * spent:.0f} s"
    return shown, n_done / n_jobs if n_jobs else 0.0


def _doing(sign: dict) -> str:
    step, total = sign["steps"]
    jobs = f", {sign['jobs'][0]} of {sign['jobs'][1]} done" if sign["jobs"][1] else ""
    where = f" on {sign['where']}" if sign.get("where") else ""
    return f"{sign['what'] or 'starting'}{where}{jobs}{f', step {step} of {total}' if total else ''}"


def watch(name: str, out) -> bool:
    """Print what a run is doing, on a terminal again and again until it is finished; return if it is well."""
    run, terminal = open_run(name), out.isatty()
    while True:
        now = look(run)
        over = not terminal or now.state == "finished"
        # Clear the window and begin at its top.
        clear = "\x1b[2J\x1b[H" if terminal else ""
        end = "" if over else "\nCtrl-C stops watching; the run goes on.\n"
        print(clear, end="", file=out)
        now.write(out)
        print(end, end="", file=out, flush=True)
        if over:
            return now.state not in ("gone", "stopped")
        time.sleep(REFRESH_S)
