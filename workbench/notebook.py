"""What notebooks call: a run opened with its parameters checked, progress, raw examples, sentences, metrics."""

import ast
import difflib
import html
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import pandas as pd

from workbench import figures, heartbeat
from workbench.inference import clustered_mean, wilson
from workbench.pocket.rationales import STYLES
from workbench.recipe import Recipe, canonical_json, load_recipe, project_root
from workbench.reviews import newer_than_alignment
from workbench.store import Run, StoreError, atomic_write, open_run, read_json, runs_folder
from workbench.workload import n_items

HEADLESS = "WORKBENCH_HEADLESS"
INJECTED = "# Parameters"
REPORT_EVERY_S = 10
FIRST_RECIPE = "arte-demo"
AFTER_REVIEWS = ("training", "evaluation")
TABLE_STYLE = (
    "<style>.wb table{border-collapse:collapse}.wb td,.wb th{text-align:left!important;vertical-align:top;"
    "padding:.25em .7em;white-space:pre-line;overflow-wrap:break-word;max-width:34em}</style>"
)


class ParameterError(ValueError):
    """A notebook was given a parameter it does not have, or a value of the wrong kind."""


def start(run: str, recipe: str = "", overrides: str = "", given: Mapping | None = None) -> Run:
    """Check a notebook's parameters and open its run, or begin it.

    Args:
        run: Name of the run, a folder under data/runs.
        recipe: Name or path; empty means the run's own, or arte-demo when the run is new.
        overrides: For example "alignment.beta=0.05; seeds=[0, 1, 2]"; values are read as YAML.
        given: The notebook's globals(), to refuse what papermill injected and the notebook does not know.

    Raises:
        ParameterError: If a parameter is unknown or of the wrong type.
        RecipeError: If recipe and overrides do not make a valid recipe.
        StoreError: If the run was begun with another recipe.

    Example:
        work = wb.start("demo", overrides="alignment.beta=0.05")
    """
    check_parameters(given or {})
    stored = runs_folder() / run / "recipe.yaml"
    if not recipe and stored.is_file():
        recipe = str(stored)
    opened = open_run(run, load_recipe(recipe or FIRST_RECIPE, parse_overrides(overrides)))
    _make_ready()
    say(f"{opened}.")
    return opened


def setup(given: Mapping, recipe: str = "", overrides: str = "") -> Recipe:
    """Check the parameters of a notebook that has no run, and return its recipe.

    Args:
        given: The notebook's globals().
        recipe: Name or path; empty means arte-demo.
        overrides: As for `start`.
    """
    check_parameters(given)
    settings = load_recipe(recipe or FIRST_RECIPE, parse_overrides(overrides))
    _make_ready()
    return settings


def _make_ready() -> None:
    """Bring figures to the page; where somebody is watching, edited code is taken up without a restart."""
    figures.use_renderer()
    if not is_headless():
        from IPython import get_ipython

        get_ipython().run_line_magic("load_ext", "autoreload")
        get_ipython().run_line_magic("autoreload", "2")


def parse_overrides(text: str) -> dict[str, str]:
    """Return "key=value; key=value" as a mapping.

    Example:
        >>> parse_overrides("alignment.beta=0.05; seeds=[0, 1]")
        {'alignment.beta': '0.05', 'seeds': '[0, 1]'}
    """
    pairs = [part.partition("=") for part in text.split(";") if part.strip()]
    for key, sign, _ in pairs:
        if not sign or not key.strip():
            raise ParameterError(
                f"overrides must read 'key=value; key=value', got {text!r}; write for example 'alignment.beta=0.05'."
            )
    return {key.strip(): value.strip() for key, _, value in pairs}


def check_parameters(given: Mapping) -> None:
    """Refuse injected parameters that the parameters cell does not declare, and values of the wrong type.

    papermill only warns of them. It writes what it injects into a cell of its own, which is read back here.

    Args:
        given: The notebook's globals().
    """
    declared = given.get("__annotations__", {})
    faults = []
    for name in _injected(given.get("In", [])):
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(declared)}."
            faults.append(f"{name} is not a parameter of this notebook; {hint}")
    for name, kind in declared.items():
        if isinstance(kind, type) and name in given and type(given[name]) is not kind:
            value = given[name]
            faults.append(f"{name} must be of type {kind.__name__}, got {value!r} ({type(value).__name__}).")
    if faults:
        raise ParameterError(" ".join(faults))


def _injected(cells: Iterable[str]) -> list[str]:
    """Return the names assigned in the cells that papermill injected, and note that nobody is watching."""
    names = []
    for cell in cells:
        if cell.startswith(INJECTED):
            os.environ.setdefault(HEADLESS, "1")
            targets = [node.targets[0] for node in ast.parse(cell).body if isinstance(node, ast.Assign)]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def _display(markup: str, plain: str, handle=None):
    from IPython.display import display, update_display

    bundle = {"text/html": markup, "text/plain": plain}
    if handle is None:
        return display(bundle, raw=True, display_id=True)
    update_display(bundle, raw=True, display_id=handle.display_id)
    return handle


def say(sentence: str) -> None:
    """Display a sentence; it may hold text written by a model."""
    _display(f"<p>{html.escape(sentence)}</p>", sentence)


def show(what, caption: str = "") -> None:
    """Display a figure with its notes, a frame as a table, or a text as it stands; all text in it is escaped.

    Args:
        what: A plotly figure made by wb.figures, a frame, a list of rows (mappings) or a text.
        caption: What a table or text shows; figures bring their own.
    """
    head = f"<p><em>{html.escape(caption)}</em></p>" if caption else ""
    if isinstance(what, str):
        _display(f'{head}<pre style="white-space:pre-wrap">{html.escape(what)}</pre>', what)
        return
    if not isinstance(what, pd.DataFrame | list):
        figures.show(what)
        return
    frame = pd.DataFrame(what)
    _display(f'{TABLE_STYLE}<div class="wb">{head}{figures.table(frame)}</div>', frame.to_string(index=False))


def share_of(right: pd.Series, clusters: pd.Series | None = None) -> str:
    """Return a share in words, with its 95 % interval.

    Args:
        right: Truth values.
        clusters: What the rows share, for example the question; without it rows count as independent.

    Example:
        >>> share_of(pd.Series([True, True, False, True]))
        '75 % (95 % interval 30 to 95 %, n = 4)'
    """
    if len(right) == 0:
        return "none (n = 0)"
    mean, n = float(right.mean()), len(right) if clusters is None else clusters.nunique()
    # A share of 0 or 1 shows no spread between clusters; then each counts as one observation.
    if clusters is None or n < 2 or mean in (0.0, 1.0):
        low, high = wilson(mean, n)
    else:
        mean, low, high = clustered_mean(right.astype(float), clusters)
    return f"{100 * mean:.0f} % (95 % interval {100 * max(low, 0):.0f} to {100 * min(high, 1):.0f} %, n = {len(right)})"


def mean_of(values: pd.Series, clusters: pd.Series | None = None) -> str:
    """Return a mean in words, with its 95 % t interval.

    Args:
        values: Numbers.
        clusters: What the rows share, for example the question; without it rows count as independent.

    Example:
        >>> mean_of(pd.Series([1.0, 2.0, 3.0]))
        '2.00 (95 % interval -0.48 to 4.48, n = 3)'
    """
    own = values.index.to_series() if clusters is None else clusters
    if own.nunique() < 2:
        return f"{values.mean():.2f} (n = {len(values)}, too few for an interval)"
    mean, low, high = clustered_mean(values, own)
    return f"{mean:.2f} (95 % interval {low:.2f} to {high:.2f}, n = {len(values)})"


class Progress:
    """How far something is: a bar in Lab, a line at most every 10 s where nobody is watching.

    Args:
        what: What is going on.
        total: How much there is to do; 0 when that is not known.
        about: True when the total is an estimate.
    """

    def __init__(self, what: str, total: int = 0, about: bool = False):
        self.what, self.total, self.about, self.done = what, total, about, 0
        self.began = self.said = time.monotonic()
        self.handle = None if is_headless() else _display("", what)

    def __call__(self, done: int, total: int = 0) -> None:
        """Say that so many are done; the form that engines call."""
        self.done, self.total = done, total or self.total
        now = time.monotonic()
        if self.handle is not None and now - self.said >= 0.5:
            self.said = now
            _display(self._bar(), self.line(), self.handle)
        elif self.handle is None and now - self.said >= REPORT_EVERY_S:
            self.said = now
            print(self.line(), flush=True)

    def close(self) -> None:
        """Show how it ended; nothing when it took no time."""
        if self.handle is not None and self.said > self.began:
            _display(self._bar(), self.line(), self.handle)

    def line(self) -> str:
        """Return count, rate and time left in words."""
        spent = time.monotonic() - self.began
        if not self.done:
            return f"{self.what}: {spent:.0f} s"
        of = f" of {'about ' if self.about else ''}{self.total:,}" if self.total else ""
        said = f"{self.what}: {self.done:,}{of}, {spent:.0f} s"
        if self.done > spent > 1:
            said += f", {self.done / spent:.0f} a second"
        # Before a tenth is done a guess at the end is worth nothing.
        if self.total > self.done > self.total / 10:
            said += f", about {(self.total - self.done) * spent / self.done:.0f} s left"
        return said

    def _bar(self) -> str:
        full = f'value="{min(self.done, self.total)}" max="{self.total}"' if self.total else ""
        return f"<div><progress {full}></progress> {html.escape(self.line())}</div>"


def progress(items: Iterable, what: str) -> Iterator:
    """Yield the items while showing how far it is.

    Example:
        for draft in wb.progress(drafts, "probing"): ...
    """
    items = list(items)
    shown = Progress(what, len(items))
    for done, item in enumerate(items, 1):
        yield item
        shown(done)
    shown.close()


@contextmanager
def watch(work: Run, stage: str) -> Iterator[None]:
    """Show how far a stage of a run is, by the finished items that it records.

    Example:
        with wb.watch(work, "probing"):
            probed = wb.probe(work)
    """
    if stage in AFTER_REVIEWS and (newer := newer_than_alignment(work)):
        say(newer)
    total, before = n_items(work.recipe, stage), _n_recorded()
    over = threading.Event()
    shown = Progress(stage, total, about=True)

    def look() -> None:
        while not over.wait(1):
            shown(_n_recorded() - before)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    except BaseException as error:
        # The kernel lives on: without this the run would look as if it did too.
        heartbeat.stop(f"{type(error).__name__}: {error}")
        raise
    finally:
        over.set()
        watcher.join()
        shown.close()


def _n_recorded() -> int:
    """Return how many items are recorded; 0 when the file cannot be read now, since this is for show only."""
    path = runs_folder() / "items.sqlite"
    if not path.is_file():
        return 0
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1)
    except sqlite3.Error:
        return 0
    try:
        return connection.execute("SELECT COUNT(*) FROM items").fetchone()[0]
    except sqlite3.Error:
        return 0
    finally:
        connection.close()


def is_headless() -> bool:
    """Say whether nobody is watching: run by papermill, or outside a notebook."""
    if os.environ.get(HEADLESS):
        return True
    try:
        from IPython import get_ipython
    except ImportError:
        return True
    return get_ipython() is None


def finish(work: Run | None, notebook: str, metrics: Mapping[str, float | int | str]) -> None:
    """Write what a notebook found into metrics.json of its run, beside what the other notebooks wrote.

    Args:
        work: The run; None for a notebook without one, whose numbers go to the folder start-here.
        notebook: Its name without the ending.
        metrics: Plain numbers and texts.
    """
    path = metrics_path(work)
    record_status(path, notebook, {"status": "ok", **{name: _plain(value) for name, value in metrics.items()}})
    say(f"Written to {path.parent.name}/{path.name}: {', '.join(metrics) or 'the status'}.")


def metrics_path(work: Run | None) -> "os.PathLike[str]":
    """Return where a run's metrics are kept."""
    return (work.path if work else runs_folder() / "start-here") / "metrics.json"


def record_status(path, notebook: str, values: Mapping) -> None:
    """Set one notebook's entry of a metrics.json."""
    try:
        there = read_json(path)
    except StoreError:
        # Metrics are derived: a damaged file is written anew by the notebooks.
        there = {}
    atomic_write(path, (canonical_json({**there, notebook: dict(values)}) + "\n").encode("utf-8"))


def _plain(value):
    return value.item() if hasattr(value, "item") else value


def run_in_words(work: Run, stage: str) -> str:
    """Return what a finished stage counted, in one line."""
    counts = work.stage(stage).manifest.get("counts", {})
    return ", ".join(f"{n:,} {what}" for what, n in counts.items() if n) or "nothing"


def model_names(work: Run) -> str:
    """Return how figures name the models of a run."""
    if work.recipe.profile == "pocket":
        return "pocket models"
    return f"teacher {work.recipe.models.teacher}"


def planted(work: Run) -> dict[str, str]:
    """Return student -> the style it was raised on: the answer key, for figures alone.

    Students without one, and those whose style no technique of this run's drafts is in, are left out.
    """
    drafted = set(work.stage("drafting").read("drafts")["technique"]) if work.recipe.method == "arte" else set(STYLES)
    cards = {
        name: read_json(project_root() / ref / "raised.json").get("raised", {})
        for name, ref in work.recipe.models.students.items()
    }
    return {name: card["native"] for name, card in cards.items() if card.get("native") in drafted}
