"""A run watched from outside: another notebook or a terminal; only files are read, so it outlives the run's kernel."""

import asyncio
import html
import time
from dataclasses import dataclass, field

import pandas as pd

from workbench import figures
from workbench.methods import ALL
from workbench.notebook.display import is_headless, show
from workbench.runs import progress
from workbench.runs.run import NEXT, SUPERSEDED, Run, open_run, steps_in

SILENT_S = 60  # from then on silence is worth a word, though the process is there
BARS = "▁▂▃▄▅▆▇█"
SPARK_POINTS = 40
REFRESH_S = 2.0
COLUMNS = ["step", "state", "items", "rate", "time left", "tokens", "seconds"]


@dataclass(frozen=True)
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
    doing: tuple[str, ...] = ()
    curve: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def in_words(self) -> str:
        """Return all of it as plain text for a terminal, what models wrote without control characters."""
        lines = [f"Run {self.run}: {self.said}", "", self.steps.to_string(index=False)]
        lines += [f"  {visible(what, 110)}" for what in self.doing]
        lines += ["", *self.curve] if self.curve else []
        lines += ["", "Last written:", *(f"  {visible(text, 110)}" for text in self.texts)] if self.texts else []
        return "\n".join(lines)

    def to_html(self) -> str:
        """Return all of it as HTML, what models wrote escaped."""
        doing, texts = (
            "".join(f"<li>{html.escape(line)}</li>" for line in lines) for lines in (self.doing, self.texts)
        )
        curve = f"<pre>{html.escape(chr(10).join(self.curve))}</pre>" if self.curve else ""
        last = f"<p>Last written:</p><ul>{texts}</ul>" if texts else ""
        return (
            f'<div role="status"><p><strong>Run {html.escape(self.run)}:</strong> {html.escape(self.said)}</p>'
            f"{figures.table(self.steps)}<ul>{doing}</ul>{curve}{last}</div>"
        )


def visible(text: str, limit: int) -> str:
    """Return a text on one line without anything that a terminal would act on: control, escape and direction marks.

    Example:
        >>> visible("a\\x1b[31mb\\n\\u202ec", 20)
        'a [31mb c'
    """
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def spark_lines(model: str, points: list[tuple[int, str, float]]) -> list[str]:
    """Return a line for each metric of a model in training: its values by step, in numbers and as small bars.

    Args:
        model: Its name.
        points: Step, metric and value, in the order of the steps.
    """
    lines = []
    for metric in dict.fromkeys(metric for _, metric, _ in points):
        steps, values = zip(*((step, value) for step, of, value in points if of == metric))
        low, high = min(values), max(values)
        shown = values[:: -(-len(values) // SPARK_POINTS)]
        bars = "".join(BARS[int(7 * (value - low) / ((high - low) or 1.0))] for value in shown)
        lines.append(f"{metric}, {model}: {values[0]:.3g} to {values[-1]:.3g} in {steps[-1]} steps  {bars}")
    return lines


def look(run: Run, at: float | None = None) -> Now:
    """Return what a run is doing, from its files.

    Args:
        run: The run; it may be computed by another process, or by one that died.
        at: The time to take as now, in seconds since 1970.
    """
    at = time.time() if at is None else at
    step, signs = _present(run)
    state, said = _state(run, step, signs, at)
    busy = [sign for sign in signs if not sign["main"]] or signs
    named = list(dict.fromkeys([*expected_steps(run), *run.steps(), *([step] if step else [])]))
    rows = [{"state": state, **_so_far(signs, state, at)} if name == step else _finished(run, name) for name in named]
    empty = dict.fromkeys(COLUMNS, "")
    curves = [spark_lines(model, points) for sign in signs for model, points in sign["curve"].items()]
    return Now(
        run.name,
        state,
        said,
        pd.DataFrame([empty | {"step": name} | row for name, row in zip(named, rows)], columns=COLUMNS),
        tuple(_doing(sign) for sign in busy) if state in ("working", "silent") else (),
        tuple(line for lines in curves for line in lines),
        tuple([text for sign in sorted(signs, key=lambda sign: sign["at"]) for text in sign["texts"]][-3:]),
    )


def expected_steps(run: Run) -> list[str]:
    """Return the steps of the run's method, in the order of its notebooks."""
    return [step for notebook in ALL[run.recipe.method].notebooks for step in steps_in(notebook)]


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
        missing = [name for name in expected_steps(run) if not run.has(name)]
        if not missing:
            return "finished", "all steps are finished."
        if not run.steps():
            return "not begun", f"no step has been begun; begin with: {command}"
        return "between steps", f"{run.steps()[-1]} is finished, {missing[0]} has not begun; to go on: {command}"
    main, age = signs[0], max(0.0, at - max(sign["at"] for sign in signs))
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
    return {"state": "finished", "items": items, "tokens": f"{made['tokens']:,}", "seconds": f"{made['seconds']:.0f}"}


def _so_far(signs: list[dict], state: str, at: float) -> dict:
    """Return how far a step is: jobs done, those half done counted as halves, and items recorded."""
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
    return shown


def _doing(sign: dict) -> str:
    step, total = sign["steps"]
    jobs = f", {sign['jobs'][0]} of {sign['jobs'][1]} done" if sign["jobs"][1] else ""
    return f"{sign['what'] or 'starting'}{jobs}{f', step {step} of {total}' if total else ''}"


class RunMonitor:
    """A run to be watched from a notebook while another one, or papermill, computes it.

    Args:
        name: Name of the run.

    Example:
        RunMonitor("demo").show()
    """

    def __init__(self, name: str):
        self.run = open_run(name)
        self.now = look(self.run)

    def __repr__(self) -> str:
        return f"RunMonitor: run {self.now.run}: {self.now.said}"

    def refresh(self) -> Now:
        """Look again."""
        self.now = look(self.run)
        return self.now

    def show(self) -> None:
        """Display a table that is kept up to date where somebody is watching, a plain one elsewhere."""
        if is_headless():
            show(self.now.in_words(), f"Run {self.run.name}")
            return
        from IPython.display import display

        view, keep_looking = self.view()
        display(view)
        # A task of the kernel's own loop: other cells can be run meanwhile, and it ends with the kernel.
        self.watching = asyncio.ensure_future(keep_looking())

    def view(self):
        """Return the table as a widget, and a coroutine that keeps it up to date until Stop is pressed."""
        import ipywidgets

        table = ipywidgets.HTML(self.now.to_html())
        stop = ipywidgets.Button(description="Stop watching", tooltip="Stop looking; the run goes on")
        stop.on_click(lambda _: setattr(stop, "disabled", True))

        async def keep_looking() -> None:
            while not stop.disabled:
                table.value = self.refresh().to_html()
                stop.disabled = stop.disabled or self.now.state == "finished"
                await asyncio.sleep(REFRESH_S)

        return ipywidgets.VBox([table, stop]), keep_looking


def watch(name: str, out) -> bool:
    """Print what a run is doing, again and again where out is a terminal, until it is finished; return if it is well.

    Args:
        name: Name of the run.
        out: Where to, a text stream.
    """
    run = open_run(name)
    terminal = out.isatty()
    while True:
        now = look(run)
        over = not terminal or now.state == "finished"
        # Clear the window and begin at its top.
        start, end = (
            ("\x1b[2J\x1b[H" if terminal else ""),
            ("" if over else "\nCtrl-C stops watching; the run goes on.\n"),
        )
        print(f"{start}{now.in_words()}\n{end}", end="", file=out, flush=True)
        if over:
            return now.state not in ("gone", "stopped")
        time.sleep(REFRESH_S)
