"""A run watched from outside: another notebook or a terminal; only files are read, so it outlives the run's kernel."""

import asyncio
import html
import time
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from traitlets import Any, HasTraits

from workbench import figures
from workbench.loop.arms import aligned_arms
from workbench.methods import ALL
from workbench.models.trl import DONE, model_folder
from workbench.notebook.display import is_headless, show
from workbench.notebook.session import metrics_path
from workbench.report.summary import model_names
from workbench.runs import progress
from workbench.runs.cache import StoreError, read_json
from workbench.runs.run import NEXT, SUPERSEDED, Run, Step, notebook_of, open_run, steps_in

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
        texts: The last texts that were written, oldest first; a model wrote them.
        curve: Training so far, as the schema curve describes it.
    """

    run: str
    state: str
    said: str
    steps: pd.DataFrame = field(repr=False)
    doing: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    curve: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    def in_words(self) -> str:
        """Return all of it as plain text for a terminal, what models wrote without control characters."""
        lines = [f"Run {self.run}: {self.said}", "", self.steps.to_string(index=False)]
        lines += [f"  {visible(what, 110)}" for what in self.doing]
        if len(self.curve):
            lines += ["", *spark_lines(self.curve)]
        if self.texts:
            lines += ["", "Last written:", *(f"  {visible(text, 110)}" for text in self.texts)]
        return "\n".join(lines)

    def to_html(self) -> str:
        """Return all of it but the curve as HTML, what models wrote escaped."""
        doing = "".join(f"<li>{html.escape(what)}</li>" for what in self.doing)
        texts = "".join(f"<li>{html.escape(text)}</li>" for text in self.texts)
        last = f"<p>Last written:</p><ul>{texts}</ul>" if texts else ""
        return (
            f'<div role="status"><p><strong>Run {html.escape(self.run)}:</strong> {html.escape(self.said)}</p>'
            f"{figures.table(self.steps)}<ul>{doing}</ul>{last}</div>"
        )


def visible(text: str, limit: int) -> str:
    """Return a text on one line without anything that a terminal would act on: control, escape and direction marks.

    Example:
        >>> visible("a\\x1b[31mb\\n\\u202ec", 20)
        'a [31mb c'
    """
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def spark_lines(curve: pd.DataFrame) -> list[str]:
    """Return one line for each arm and metric: its mean over runs by step, as small bars and in numbers."""
    lines = []
    for (arm, metric), own in curve.groupby(["arm", "metric"], sort=True):
        by = own.groupby("step")["value"].mean()
        values = by.iloc[:: -(-len(by) // SPARK_POINTS)]
        reach = (values.max() - values.min()) or 1.0
        bars = "".join(BARS[int(7 * (value - values.min()) / reach)] for value in values)
        lines.append(f"{metric}, {arm}: {by.iloc[0]:.3g} to {by.iloc[-1]:.3g} in {by.index[-1]} steps  {bars}")
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
    return Now(
        run.name,
        state,
        said,
        pd.DataFrame([_row(run, name, step, signs, state, at) for name in named], columns=COLUMNS),
        tuple(_doing(sign) for sign in busy) if state in ("working", "silent") else (),
        tuple([text for sign in sorted(signs, key=lambda sign: sign["at"]) for text in sign["texts"]][-3:]),
        _curve(run, step, signs),
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
    expected = expected_steps(run)
    if not step:
        missing = [name for name in expected if not run.has(name)]
        if not missing:
            return "finished", "all steps are finished."
        if not run.steps():
            return "not begun", f"no step has been begun; begin with: {_command(run)}"
        return "between steps", f"{run.steps()[-1]} is finished, {missing[0]} has not begun; to go on: {_command(run)}"
    main, age = signs[0], max(0.0, at - max(sign["at"] for sign in signs))
    if reason := main["stopped"] or _failure(run, step, main["began"]):
        return "stopped", f"{step} was stopped ({visible(reason, 300)}). {_go_on(run)}"
    there = progress.is_there(main)
    if there is False:
        return "gone", (
            f"no sign of life for {age:.0f} s: process {main['pid']}, which computed {step}, is gone. {_go_on(run)}"
        )
    if age > SILENT_S:
        where = f"process {main['pid']} is still there" if there else f"its machine, {main['host']}, may know more"
        why = "a long batch, a model being loaded, or a cell that was stopped"
        return "silent", f"no sign of life of {step} for {age:.0f} s, though {where}: {why}."
    return "working", f"{step} is being computed; last sign of life {age:.0f} s ago."


def _failure(run: Run, step: str, since: float) -> str:
    """Return why the step's notebook failed, if that was after the step was begun."""
    path = Path(metrics_path(run))
    try:
        entry = read_json(path).get(notebook_of(step), {})
        return entry.get("error", "") if entry.get("status") == "failed" and path.stat().st_mtime >= since else ""
    except (StoreError, OSError):
        return ""


def _go_on(run: Run) -> str:
    return f"Finished items are kept; to go on: {_command(run)}"


def _command(run: Run) -> str:
    return f"workbench run {run.path / 'recipe.yaml'} --name {run.name}"


def _row(run: Run, name: str, present: str, signs: list[dict], state: str, at: float) -> dict:
    row = dict.fromkeys(COLUMNS, "") | {"step": name, "state": "not begun"}
    if name == present:
        return row | {"state": state} | _progress(signs, state, at)
    if made := run.manifest(name):
        counts = [f"{n:,} {what}" for what, n in made["counts"].items()][:1]
        done = {"items": ", ".join(counts), "tokens": f"{made['tokens']:,}", "seconds": f"{made['seconds']:.0f}"}
        return row | {"state": "finished"} | done
    return row


def _progress(signs: list[dict], state: str, at: float) -> dict:
    """Return how far a step is: jobs done, those half done counted as halves, and items recorded."""
    main = signs[0]
    items, fresh, tokens = (sum(sign[key] for sign in signs) for key in ("items", "fresh", "tokens"))
    last = max(sign["at"] for sign in signs)
    spent = max((at if state == "working" else last) - main["began"], 1e-9)
    shown = {"seconds": f"{spent:.0f}", "tokens": f"{tokens:,}" if tokens else ""}
    n_done, n_jobs = main["jobs"]
    parts = sum(step / of for step, of in (sign["steps"] for sign in signs) if step < of)
    shown["items"] = ", ".join([f"{n_done} of {n_jobs} jobs"] * bool(n_jobs) + [f"{items:,} items"] * bool(items))
    shown["rate"] = f"{fresh / spent:.1f} a second" if fresh else ""
    so_far = min(n_done + parts, n_jobs)
    if so_far and state == "working":
        shown["time left"] = f"about {(n_jobs - so_far) / so_far * spent:.0f} s"
    return shown


def _doing(sign: dict) -> str:
    step, total = sign["steps"]
    jobs = f", {sign['jobs'][0]} of {sign['jobs'][1]} done" if sign["jobs"][1] else ""
    return f"{sign['what'] or 'starting'}{jobs}{f', step {step} of {total}' if total else ''}"


def _curve(run: Run, step: str, signs: list[dict]) -> pd.DataFrame:
    """Return the curves of a step's models, finished ones and those in training; the last step's when none is on."""
    recipe = run.recipe
    name = step or next((one for one in ("students", "teachers") if run.has(one)), "")
    if name == "teachers":
        stage, keys = "alignment", [(s, arm) for s in recipe.models.students for arm in aligned_arms(recipe)]
    elif name == "students":
        arms = {student: recipe.trained_arms(student) for student in recipe.models.students}
        stage, keys = "training", [(s, arm, seed) for s in arms for arm in arms[s] for seed in recipe.seeds]
    else:
        return pd.DataFrame()
    live = {model: points for sign in signs for model, points in sign["curve"].items()}
    rows = []
    for student, arm, *seed in keys:
        folder = Step(run, name).folder if step else run.path / name
        folder = folder / model_folder(student, arm, *seed)
        known = {"stage": stage, "arm": arm, "student": student, "seed": (seed or recipe.seeds)[0]}
        points = _points(folder) or live.get(folder.name, [])
        rows += [known | {"step": at, "metric": metric, "value": value} for at, metric, value in points]
    return pd.DataFrame(rows)


def _points(folder: Path) -> list[tuple[int, str, float]]:
    try:
        curve = read_json(folder / DONE).get("curve", [])
    except StoreError:
        return []
    return [(p["step"], p["metric"], p["value"]) for p in curve if p["metric"] in progress.METRICS]


class RunMonitor(HasTraits):
    """A run to be watched from a notebook while another one, or papermill, computes it.

    Args:
        name: Name of the run.

    Example:
        RunMonitor("demo").show()
    """

    now = Any(help="what the run is doing, a Now")

    def __init__(self, name: str):
        super().__init__()
        self.run = open_run(name)
        self.refresh()

    def __repr__(self) -> str:
        return f"RunMonitor: run {self.now.run}: {self.now.said}"

    def refresh(self) -> Now:
        """Look again."""
        self.now = look(self.run)
        return self.now

    def figure(self):
        """Return the curve so far as a figure; None while there is none."""
        curve, models = self.now.curve, model_names(self.run)
        if not len(curve):
            return None
        if (curve["stage"] == "alignment").any():
            has_margins = curve["metric"].eq("rewards/margins").any()
            return figures.reward_margins(curve, models) if has_margins else None
        return figures.training_curves(curve, models)

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
        """Return the table and curve as widgets, and a coroutine that keeps them up to date until Stop is pressed."""
        import ipywidgets

        table, curve = ipywidgets.HTML(), ipywidgets.Output()
        stop = ipywidgets.Button(description="Stop watching", tooltip="Stop looking; the run goes on")
        stop.on_click(lambda _: setattr(stop, "disabled", True))
        drawn = []

        def redraw(_=None) -> None:
            table.value = self.now.to_html()
            if len(self.now.curve) != sum(drawn[-1:]):
                drawn.append(len(self.now.curve))
                curve.clear_output(wait=True)
                with curve:
                    if (figure := self.figure()) is not None:
                        figures.show(figure)

        async def keep_looking() -> None:
            while not stop.disabled:
                self.refresh()
                if self.now.state == "finished":
                    stop.disabled = True
                await asyncio.sleep(REFRESH_S)

        self.observe(redraw, ["now"])
        redraw()
        return ipywidgets.VBox([table, curve, stop]), keep_looking


def watch(name: str, once: bool, out) -> bool:
    """Print what a run is doing, again and again where out is a terminal, until it is finished; return if it is well.

    Args:
        name: Name of the run.
        once: Print it once.
        out: Where to, a text stream.
    """
    run = open_run(name)
    while True:
        now = look(run)
        terminal = out.isatty() and not once
        # Clear the window and begin at its top.
        out.write(("\x1b[2J\x1b[H" if terminal else "") + now.in_words() + "\n")
        if terminal and now.state != "finished":
            out.write("\nCtrl-C stops watching; the run goes on.\n")
        out.flush()
        if not terminal or now.state == "finished":
            return now.state not in ("gone", "stopped")
        time.sleep(REFRESH_S)
