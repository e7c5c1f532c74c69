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
from workbench.models.trl import DONE, student_folder, teacher_folder
from workbench.notebook.display import is_headless, show
from workbench.notebook.session import metrics_path
from workbench.report.cost_estimate import n_items
from workbench.report.summary import model_names
from workbench.runs import progress
from workbench.runs.cache import StoreError, read_json
from workbench.runs.run import NOTEBOOKS, Run, Stage, open_run

SILENT_S = 60  # from then on silence is worth a word, though the process is there
BARS = "▁▂▃▄▅▆▇█"
SPARK_POINTS = 40
REFRESH_S = 2.0
COLUMNS = ["stage", "state", "items", "rate", "time left", "tokens", "seconds"]


@dataclass(frozen=True)
class Now:
    """What a run is doing.

    Attributes:
        state: "not begun", "working", "silent", "gone", "stopped", "between stages" or "finished".
        said: That in a sentence, with what to do where something is to be done.
        stages: One row a stage; columns as in COLUMNS.
        doing: What each process of the present stage is at.
        texts: The last texts that were written, oldest first; a model wrote them.
        curve: Training so far, as the schema curve describes it.
    """

    run: str
    state: str
    said: str
    stages: pd.DataFrame = field(repr=False)
    doing: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    curve: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    def in_words(self) -> str:
        """Return all of it as plain text for a terminal, what models wrote without control characters."""
        lines = [f"Run {self.run}: {self.said}", "", self.stages.to_string(index=False)]
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
            f"{figures.table(self.stages)}<ul>{doing}</ul>{last}</div>"
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
    stage, signs = _present(run)
    state, said = _state(run, stage, signs, at)
    busy = [sign for sign in signs if not sign["main"]] or signs
    return Now(
        run.name,
        state,
        said,
        pd.DataFrame([_row(run.stage(name), stage, signs, state, at) for name in NOTEBOOKS], columns=COLUMNS),
        tuple(_doing(sign) for sign in busy) if state in ("working", "silent") else (),
        tuple([text for sign in sorted(signs, key=lambda sign: sign["at"]) for text in sign["texts"]][-3:]),
        _curve(run, stage, signs),
    )


def _present(run: Run) -> tuple[Stage | None, list[dict]]:
    """Return the stage that gave signs last and did not finish, with its signs."""
    found = [(run.stage(name), progress.read(run.path / name)) for name in NOTEBOOKS]
    alive = [(stage, signs) for stage, signs in found if signs]
    return max(alive, key=lambda pair: max(sign["at"] for sign in pair[1]), default=(None, []))


def _state(run: Run, stage: Stage | None, signs: list[dict], at: float) -> tuple[str, str]:
    done = [name for name in NOTEBOOKS if _is_finished(run.path / name)]
    if stage is None:
        if len(done) == len(NOTEBOOKS):
            return "finished", "all stages are finished."
        following = next(name for name in NOTEBOOKS if name not in done)
        if not done:
            return "not begun", f"no stage has been begun; begin with: {_command(run)}"
        return "between stages", f"{done[-1]} is finished, {following} has not begun; to go on: {_command(run)}"
    main, age = signs[0], max(0.0, at - max(sign["at"] for sign in signs))
    if reason := main["stopped"] or _failure(run, stage, main["began"]):
        return "stopped", f"{stage.name} was stopped ({visible(reason, 300)}). {_go_on(run)}"
    there = progress.is_there(main)
    if there is False:
        return "gone", (
            f"no sign of life for {age:.0f} s: process {main['pid']}, which computed {stage.name}, is gone. "
            f"{_go_on(run)}"
        )
    if age > SILENT_S:
        where = f"process {main['pid']} is still there" if there else f"its machine, {main['host']}, may know more"
        why = "a long batch, a model being loaded, or a cell that was stopped"
        return "silent", f"no sign of life of {stage.name} for {age:.0f} s, though {where}: {why}."
    return "working", f"{stage.name} is being computed; last sign of life {age:.0f} s ago."


def _failure(run: Run, stage: Stage, since: float) -> str:
    """Return why the stage's notebook failed, if that was after the stage was begun."""
    path = Path(metrics_path(run))
    try:
        entry = read_json(path).get(NOTEBOOKS[stage.name], {})
        return entry.get("error", "") if entry.get("status") == "failed" and path.stat().st_mtime >= since else ""
    except (StoreError, OSError):
        return ""


def _go_on(run: Run) -> str:
    return f"Finished items are kept; to go on: {_command(run)}"


def _command(run: Run) -> str:
    return f"workbench run {run.path / 'recipe.yaml'} --name {run.name}"


def _is_finished(stage: Path) -> bool:
    return (stage / "manifest.json").is_file()


def _row(stage: Stage, present: Stage | None, signs: list[dict], state: str, at: float) -> dict:
    row = dict.fromkeys(COLUMNS, "") | {"stage": stage.name, "state": "not begun"}
    if present is not None and stage.name == present.name:
        return row | {"state": state} | _progress(stage, signs, state, at)
    if _is_finished(stage.path):
        made = stage.manifest
        counts = [f"{n:,} {what}" for what, n in made["counts"].items()][:1]
        return row | {
            "state": "finished",
            "items": ", ".join(counts),
            "tokens": f"{made['tokens']:,}",
            "seconds": f"{made['seconds']:.0f}",
        }
    return row


def _progress(stage: Stage, signs: list[dict], state: str, at: float) -> dict:
    """Return how far a stage is: items where it records them, else jobs."""
    main, total = signs[0], n_items(stage.run.recipe, stage.name)
    items, fresh, tokens = (sum(sign[key] for sign in signs) for key in ("items", "fresh", "tokens"))
    last = max(sign["at"] for sign in signs)
    spent = max((at if state == "working" else last) - main["began"], 1e-9)
    found = {"seconds": f"{spent:.0f}", "tokens": f"{tokens:,}" if tokens else ""}
    n_done, n_jobs = main["jobs"]
    parts = sum(step / of for step, of in (sign["steps"] for sign in signs) if step < of)
    if total and items:
        found |= {"items": f"{items:,} of about {total:,}", "rate": f"{fresh / spent:.1f} a second"}
        share = (total - items) / fresh if fresh and items < total else None
    else:
        found["items"] = f"{n_done} of {n_jobs} jobs" if n_jobs else ""
        # Models that are half trained count as halves.
        so_far = min(n_done + parts, n_jobs)
        share = (n_jobs - so_far) / so_far if so_far else None
    if share is not None and state == "working":
        found["time left"] = f"about {share * spent:.0f} s"
    return found


def _doing(sign: dict) -> str:
    step, total = sign["steps"]
    jobs = f", {sign['jobs'][0]} of {sign['jobs'][1]} done" if sign["jobs"][1] else ""
    return f"{sign['what'] or 'starting'}{jobs}{f', step {step} of {total}' if total else ''}"


def _curve(run: Run, stage: Stage | None, signs: list[dict]) -> pd.DataFrame:
    """Return the curves of a stage's models, finished ones and those in training; the last stage's when none is on."""
    recipe, rows = run.recipe, []
    name = stage.name if stage else next((n for n in ("training", "alignment") if _is_finished(run.path / n)), "")
    if name == "alignment":
        labels = [(arm, student, recipe.seeds[0]) for student in recipe.models.students for arm in aligned_arms(recipe)]
        folders = [teacher_folder(run.path / name, student, arm) for arm, student, _ in labels]
    elif name == "training":
        labels = [
            (arm, student, seed)
            for student in recipe.models.students
            for arm in recipe.trained_arms(student)
            for seed in recipe.seeds
        ]
        folders = [student_folder(run.path / name, student, arm, seed) for arm, student, seed in labels]
    else:
        return pd.DataFrame()
    live = {model: points for sign in signs for model, points in sign["curve"].items()}
    for (arm, student, seed), folder in zip(labels, folders, strict=True):
        points = _points(folder) or live.get(folder.name, [])
        known = {"stage": name, "arm": arm, "student": student, "seed": seed}
        rows += [known | {"step": step, "metric": metric, "value": value} for step, metric, value in points]
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
