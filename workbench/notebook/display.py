"""What notebooks show: sentences, tables, figures, and how far a step is."""

import html
import inspect
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pandas as pd

from workbench import figures
from workbench.notebook.mistakes import HEADLESS, in_notebook
from workbench.runs.run import ENDED
from workbench.runs.schemas import with_spoken_names

GOING_ON = "… "  # before a line of progress, which does not stay on the page
REPORT_EVERY_S = 10
CARD_WIDTH = 110  # lines that are longer are hard to read
COLOURS = {"finished": "green", "working": "bold cyan", "stopped": "red", "gone": "red", "not begun": "dim"}
COLOURS |= {"better": "bold green", "worse": "bold red", "undecided": "yellow"}
COLOURS |= {"yes": "bold green", "a little": "green", "not seen": "yellow", "unknown": "dim"}
TABLE_STYLE = (
    "<style>.wb{overflow-x:auto}.wb table{border-collapse:collapse}"
    ".wb td,.wb th{text-align:left!important;vertical-align:top;"
    "padding:.25em .7em;white-space:pre-line;overflow-wrap:break-word;max-width:34em}</style>"
)


def _display(markup: str, plain: str, handle=None):
    from IPython.display import display, update_display

    bundle = {"text/html": markup, "text/plain": plain}
    if handle is None:
        return display(bundle, raw=True, display_id=True)
    update_display(bundle, raw=True, display_id=handle.display_id)
    return handle


def say(sentence: str) -> None:
    """Display a sentence; it may hold text written by a model."""
    sentence = sentence if is_headless() else in_notebook(sentence)
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
    frame = with_spoken_names(pd.DataFrame(what))
    _display(f'{TABLE_STYLE}<div class="wb">{head}{figures.table(frame)}</div>', frame.to_string(index=False))


def print_table(frame: pd.DataFrame, out) -> None:
    """Print a frame: on a terminal as a table that fits it, elsewhere in plain columns."""
    frame = with_spoken_names(frame)
    if not out.isatty():
        print(frame.to_string(index=False, na_rep=""), file=out)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name, values in frame.astype(str).items():
        numbers = values.str.fullmatch(r"[+-]?[\d,.]*").all()
        table.add_column(name, overflow="fold", justify="right" if numbers else "left")
    for row in frame.itertuples(index=False):
        table.add_row(*(Text("" if pd.isna(value) else str(value), COLOURS.get(value, "")) for value in row))
    Console(file=out).print(table)


def print_card(card, out) -> None:
    """Print a result card: on a terminal as wide as that, its students and answers to be told at a glance."""
    if not out.isatty():
        print(card, file=out)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=out)
    text = Text(card.text(min(console.width, CARD_WIDTH)))
    text.highlight_regex(r"(?m)^(\S.*| {2}\d {2}.*)$", "bold")
    for word, colour in COLOURS.items():
        text.highlight_regex(rf"(?m)(?<=  )({word}|{word.upper()})(?=  |$)", colour)
    console.print(text, soft_wrap=True)


def source(function: Callable) -> None:
    """Display the text of a function: what a step does, to be read and, in a cell of your own, changed."""
    module = function.__module__
    where = f"{module.replace('.', '/')}.py" if module.startswith("workbench.") else "your own"
    text, head = inspect.getsource(function), f"<p><code>{html.escape(function.__name__)}, {where}</code></p>"
    _display(f'{head}<pre style="white-space:pre;overflow-x:auto">{html.escape(text)}</pre>', text)


class Progress:
    """How far something is: a bar in Lab, a line at most every 10 s where nobody is watching; one line at the end.

    Args:
        what: What is going on.
        total: How much there is to do; 0 when that is not known.

    `text` is shown below the bar: what was written last, say.
    """

    def __init__(self, what: str, total: int = 0):
        self.what, self.total, self.done, self.text = what, total, 0, ""
        self.began = self.said = time.monotonic()
        self.handle = None if is_headless() else _display("", what)

    def __call__(self, done: float, total: int = 0, line: str = "") -> None:
        """Say that so many are done, the form that engines call; when all are, that is the end."""
        self.done, self.total = done, total or self.total
        now = time.monotonic()
        if self.total and self.done == self.total and not line:
            self.close(f"{ENDED}{self.what}: {self.done:,}, {now - self.began:.0f} s")
        elif now - self.said >= (REPORT_EVERY_S if self.handle is None else 0.5):
            self.said, line = now, line or self.line()
            full = f'value="{min(self.done, self.total)}" max="{self.total}"' if self.total else ""
            text = f"{html.escape(line)}<br><small>{html.escape(self.text)}</small>"
            self._show(line, f"<div><progress {full}></progress> {text}</div>")

    def close(self, line: str = "") -> None:
        """Put one line in the place of the bar; nothing, if none is given."""
        self._show(line, f"<div>{html.escape(line)}</div>" if line else "")

    def _show(self, line: str, markup: str) -> None:
        if self.handle is not None:
            _display(markup, line, self.handle)
        elif line:
            print(line if line.startswith(ENDED) else f"{GOING_ON}{line}", flush=True)

    def line(self) -> str:
        """Return count, rate and time left in words."""
        spent = time.monotonic() - self.began
        if not self.done:
            return f"{self.what}: {spent:.0f} s"
        of = f" of {self.total:,}" if self.total else ""
        said = f"{self.what}: {self.done:,}{of}, {spent:.0f} s"
        if self.done > spent > 1:
            said += f", {self.done / spent:.0f} a second"
        # Before a tenth is done a guess at the end is worth nothing.
        if self.total > self.done > self.total / 10:
            said += f", about {(self.total - self.done) * spent / self.done:.0f} s left"
        return said


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


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep libraries from drawing bars of their own, also those that ask for one, as accelerate's do."""
    from tqdm import tqdm

    own = tqdm.__init__
    tqdm.__init__ = lambda self, *given, **named: own(self, *given, **named | {"disable": True})
    try:
        yield
    finally:
        tqdm.__init__ = own


def is_headless() -> bool:
    """Say whether nobody is watching: run by papermill, or outside a notebook."""
    from IPython import get_ipython

    return bool(os.environ.get(HEADLESS)) or get_ipython() is None
