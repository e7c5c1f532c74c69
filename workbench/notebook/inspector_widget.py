"""The pair inspector on the page: Python decides, the script draws what it is sent and says which key was pressed.

Nothing of a pair is kept in the widget's synchronised state, so that a saved notebook holds no texts and stays small.
"""

import threading
from pathlib import Path

import anywidget

from workbench.notebook.pair_view import FILTERS, OPEN
from workbench.notebook.what_if import SETTINGS

HERE = Path(__file__).parent
STATE = ("at", *FILTERS, "review", "search", "sort", "descending", "blind")
SETTABLE = frozenset(STATE[1:])
LARGEST_PAGE = 400


class InspectorView(anywidget.AnyWidget):
    """Answers what the page asks of an inspector.

    Args:
        inspector: The state; a change made to it from Python is shown too.
    """

    _esm = HERE / "inspector.js"
    _css = HERE / "inspector.css"

    def __init__(self, inspector):
        super().__init__()
        self.inspector = inspector
        # Lab hands messages to a thread of its own while a cell runs.
        self._lock, self._answering = threading.RLock(), False
        self.on_msg(self._hear)
        inspector.observe(self._tell, list(STATE))

    def _tell(self, _) -> None:
        if not self._answering:
            self.send({"changed": True, **self.state()})

    def _hear(self, _, asked: dict, buffers: list) -> None:
        """Answer a message; whatever goes wrong is an answer too, shown under the widget."""
        with self._lock:
            self._answering = True
            try:
                self.inspector.refresh()
                answer = self.DOES[asked["do"]](self, **asked.get("with", {}))
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            finally:
                self._answering = False
        self.send({"to": asked.get("id"), **answer})

    def state(self) -> dict:
        """Return where the inspector is, and the pair in sight."""
        inspector = self.inspector
        state = {name: getattr(inspector, name) for name in STATE}
        queued = inspector.review == OPEN and inspector.sort == "worth"
        return {
            "state": state | {"queue": queued, "sides": inspector.sides},
            "counts": inspector.counts(),
            "facts": inspector.facts(),
            "pair": inspector.sight(),
        }

    def hello(self) -> dict:
        """Return what a page needs once: names to filter by, and where unsent reviews belong."""
        inspector = self.inspector
        return {
            "filters": {name: inspector.pairs[name].drop_duplicates().tolist() for name in FILTERS},
            "store": str(inspector.reviews.path),
            "can_ask_what_if": inspector.recipe is not None,
            **self.state(),
        }

    def set(self, values: dict) -> dict:
        """Set filters, sorting or blind mode."""
        with self.inspector.hold_trait_notifications():
            for name, value in values.items():
                if name not in SETTABLE:
                    raise ValueError(f"{name!r} cannot be set; these can: {', '.join(sorted(SETTABLE))}.")
                setattr(self.inspector, name, value)
        return self.state()

    def go(self, at: int) -> dict:
        """Move to a place."""
        self.inspector.go(at)
        return self.state()

    def queue(self, on: bool) -> dict:
        """Turn the queue on, or go back to all pairs as they were formed."""
        inspector = self.inspector
        if on:
            inspector.queue()
        else:
            with inspector.hold_trait_notifications():
                inspector.review, inspector.sort, inspector.descending = "", "", False
        return self.state()

    def page(self, start: int, stop: int) -> dict:
        """Return rows of the table."""
        return {"start": start, "rows": self.inspector.page(start, min(stop, start + LARGEST_PAGE))}

    def review(
        self, pair_id: str, event_id: str, value: str = "", side: str = "", sides: str = "", advance: bool = True
    ) -> dict:
        """Write a review of that pair, or that the side shown there is better, and move on."""
        inspector = self.inspector
        here = inspector.pair.get("pair_id") == pair_id
        if side:
            inspector.prefer(side, pair_id, sides, event_id)
        else:
            inspector.say(value, pair_id, event_id)
        if here and advance:
            inspector.next()
        return {"saved": event_id, **self.state()}

    def note(self, pair_id: str, event_id: str, value: str) -> dict:
        """Write a note on that pair."""
        self.inspector.note(value, pair_id, event_id)
        return {"saved": event_id, **self.state()}

    def bulk(self, value: str) -> dict:
        """Write a review of every listed pair that has none."""
        return {"n": self.inspector.say_all(value), **self.state()}

    def undo(self, n: int = 1) -> dict:
        """Take back the last things said here."""
        undone = [self.inspector.undo() for _ in range(n)]
        return {"undone": undone[-1].get("pair_id", ""), **self.state()}

    def what_if(self, values: dict) -> dict:
        """Set the rule and return what would become of the pairs."""
        what_if = self.inspector.what_if
        for name, value in values.items():
            what_if.set_trait(name, value)
        changed = what_if.change().groupby("change", sort=False).head(20)
        columns = ["change", "pair_id", "student", "kind", "task", "score_gap", "p_chosen"]
        rows = [
            {name: None if value != value else value for name, value in row.items()}
            for row in changed[columns].to_dict("records")
        ]
        return {
            "settings": {name: getattr(what_if, name) for name in ("signal", *SETTINGS)},
            "own": {name: getattr(what_if.recipe.pairs, name) for name in SETTINGS} | {"signal": what_if.own_signal},
            "signals": what_if.signals,
            "summary": what_if.summary(),
            "facts": what_if.facts(),
            "rows": rows,
        }

    # What a page may ask for.
    DOES = {method.__name__: method for method in (hello, set, go, queue, page, review, note, bulk, undo, what_if)}
