"""What notebooks show: sentences, tables, figures, and how far a step is."""

import html
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pandas as pd

from workbench import figures
from workbench.runs import progress as heartbeat

HEADLESS = "WORKBENCH_HEADLESS"
REPORT_EVERY_S = 10
TABLE_STYLE = (
    "<style>.wb table{border-collapse:collapse}.wb td,.wb th{text-align:left!important;vertical-align:top;"
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


def source(function: Callable) -> None:
    """Display the text of a function: what a step does, to be read and, in a cell of your own, changed."""
    module = function.__module__
    where = f"{module.replace('.', '/')}.py" if module.startswith("workbench.") else "your own"
    show(inspect.getsource(function), f"{function.__name__}, {where}")


class Progress:
    """How far something is: a bar in Lab, a line at most every 10 s where nobody is watching.

    Args:
        what: What is going on.
        total: How much there is to do; 0 when that is not known.
    """

    def __init__(self, what: str, total: int = 0):
        self.what, self.total, self.done = what, total, 0
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
        of = f" of {self.total:,}" if self.total else ""
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
def watching(step: str) -> Iterator[None]:
    """Show how far a step is, by the items that its processes say they recorded."""
    signs, over, shown = heartbeat.folder(), threading.Event(), Progress(step)

    def look() -> None:
        while signs and not over.wait(1):
            shown(sum(sign["items"] for sign in heartbeat.read(signs.parent)))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        shown.close()


def is_headless() -> bool:
    """Say whether nobody is watching: run by papermill, or outside a notebook."""
    from IPython import get_ipython

    return bool(os.environ.get(HEADLESS)) or get_ipython() is None
