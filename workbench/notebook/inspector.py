"""The pair inspector: look at preference pairs one by one, say what you think of them, and see what that would change.

Its state is in traits and it needs no screen: what a key does in the notebook is a method here. Every review is in the
run's folder before the method returns.
"""

import re
import uuid
from collections import Counter
from collections.abc import Mapping
from functools import cached_property, partialmethod

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from traitlets import Bool, Enum, HasTraits, Int, Unicode, observe

from workbench.loop.reviews import PAST, Event, Key, Reviews, describe, key_of, review_of, standing
from workbench.notebook.display import is_headless, say, show
from workbench.notebook.pair_view import FILTERS, LEFT, NOTED, OPEN, SORTS, Evidence, Lookup, columns, word_differences
from workbench.notebook.what_if import WhatIf
from workbench.runs.errors import RunError
from workbench.runs.recipe import Recipe
from workbench.runs.run import Run
from workbench.runs.schemas import DROP, FLIP, KEEP, REVIEWS
from workbench.runs.seeding import stream
from workbench.tasks.task import Task, load_tasks
from workbench.verdict.intervals import wilson

SHOWN = 10  # pairs in the table that stays when nobody is watching
PREVIEW = 160  # characters of a text in a table


class Inspector(HasTraits):
    """Preference pairs to be looked at and reviewed.

    Args:
        pairs: As the signal formed them, before reviews.
        evidence: The frames behind the pairs.
        recipe: With tasks, for `what_if`; without them there is none.

    Example:
        inspector = wb.inspect(work)
        inspector.flip()
        inspector.note("the rejected one is right")
        inspector.facts()
    """

    at = Int(0, min=0, help="place of the pair in sight among those that the filters leave, from 0")
    student = Unicode(help="only pairs of this student; empty for all")
    kind = Unicode(help="only pairs of this kind; empty for all")
    task = Unicode(help="only pairs of this task; empty for all")
    review = Enum(["", OPEN, NOTED, *REVIEWS], "", help="only pairs with this review, with none (open), or with a note")
    search = Unicode(help="only pairs whose prompt, texts or id hold this")
    sort = Enum(SORTS, "", help="what the pairs are ordered by; empty for as they were formed")
    descending = Bool(False, help="largest first")
    blind = Bool(False, help="hide which side is chosen, and show the sides at random")

    def __init__(
        self,
        pairs: pd.DataFrame,
        reviews: Reviews,
        evidence: Evidence,
        recipe: Recipe | None = None,
        tasks: Mapping[str, Task] | None = None,
    ):
        super().__init__()
        self.pairs, self.reviews, self.evidence = pairs.reset_index(drop=True), reviews, evidence
        self.recipe, self.tasks = recipe, tasks
        self.lookup, self.columns = Lookup(evidence), columns(self.pairs, evidence.drafts)
        self.said = np.full(len(pairs), "", dtype=object)
        self.noted = np.zeros(len(pairs), dtype=bool)
        # By pair, so that a new review does not go through all of them.
        self._told: dict[Key, list[Event]] = {}
        self._held: dict[Key, Mapping[str, Event]] = {}
        self._heard, self._tally, self._place_of = 0, Counter(), pd.Index(self.pairs["pair_id"])
        self._sides = uuid.uuid4().hex
        self.order = np.arange(len(pairs))
        self.refresh()

    def __repr__(self) -> str:
        return f"Inspector: {self.facts()}"

    # Where one is

    @property
    def row(self) -> int | None:
        """The row of the pair in sight; None when the filters leave none."""
        return int(self.order[self.at]) if self.at < len(self.order) else None

    @property
    def pair(self) -> dict:
        """The pair in sight, as the signal formed it; {} when the filters leave none."""
        return {} if self.row is None else self.pairs.iloc[self.row].to_dict()

    def next(self) -> dict:
        """Move to the next pair and return it; the last one stays."""
        return self.go(self.at + 1)

    def previous(self) -> dict:
        """Move to the previous pair and return it; the first one stays."""
        return self.go(self.at - 1)

    def go(self, at: int) -> dict:
        """Move to a place among the pairs that the filters leave, and return that pair."""
        self.at = min(max(at, 0), max(len(self.order) - 1, 0))
        return self.pair

    def find(self, pair_id: str) -> dict:
        """Move to a pair by its id, widening the filters if they hide it; {} when there is none of that id."""
        if (row := self._row(pair_id)) is None:
            return {}
        if row not in self.order:
            self.widen()
        return self.go(self.order.tolist().index(row))

    def widen(self) -> None:
        """Take all filters away."""
        with self.hold_trait_notifications():
            self.student = self.kind = self.task = self.review = self.search = ""

    def queue(self) -> dict:
        """Offer the pairs nobody has reviewed yet, those first where a word would change most; return the first."""
        with self.hold_trait_notifications():
            self.review, self.sort, self.descending = OPEN, "worth", True
        self._put_in_order()
        return self.go(0)

    @observe(*FILTERS, "review", "search", "sort", "descending")
    def _put_in_order(self, _=None) -> None:
        """Filter and sort; the pair in sight stays in sight when it is still among them."""
        before = self.row
        fits = self._fitting()
        rows = np.flatnonzero(fits)
        if self.sort:
            column = self.said.astype(str) if self.sort == "review" else self.columns[self.sort].to_numpy()
            keys = column[rows]
            codes = pd.factorize(keys, sort=True)[0] if keys.dtype == object else keys
            # What is not known comes last either way.
            rows = rows[np.argsort(-codes if self.descending else codes, kind="stable")]
        self.order = rows
        places = np.flatnonzero(rows == before)
        self.at = int(places[0]) if len(places) else 0

    def _fitting(self) -> np.ndarray:
        fits = np.ones(len(self.pairs), dtype=bool)
        for name in FILTERS:
            if wanted := getattr(self, name):
                fits &= (self.pairs[name] == wanted).to_numpy()
        if self.review:
            wanted = "" if self.review == OPEN else self.review
            fits &= self.noted if self.review == NOTED else self.said == wanted
        if words := self.search.strip():
            found = [pc.match_substring(texts, words, ignore_case=True) for texts in self._texts]
            fits &= np.logical_or.reduce([one.to_numpy(zero_copy_only=False) for one in found])
        return fits

    @cached_property
    def _texts(self) -> list[pa.Array | pa.ChunkedArray]:
        names = ("prompt", "chosen", "rejected", "pair_id")
        return [pa.array(self.pairs[name], pa.large_string()) for name in names]

    # What one says

    def prefer(self, side: str, pair_id: str = "", sides: str | None = None, event_id: str = "") -> None:
        """Say that the side shown at the "left" or at the "right" is the better one; `sides` as for chosen_is_left."""
        chosen_left = self.chosen_is_left(pair_id or self.pair.get("pair_id", ""), sides)
        self._write("review", KEEP if (side == LEFT) == chosen_left else FLIP, pair_id, event_id, sides)

    def say(self, review: str, pair_id: str = "", event_id: str = "") -> None:
        """Write a review: keep, flip, drop, or "" to take it back; of the pair in sight unless another is named."""
        self._write("review", review, pair_id, event_id)

    def say_all(self, review: str) -> int:
        """Write a review of all pairs that the filters leave and nobody has reviewed; return how many."""
        rows = self.order[self.said[self.order] == ""]
        for pair in self.pairs.iloc[rows].to_dict("records"):
            self.reviews.add(pair, "review", review)
        self.refresh()
        return len(rows)

    keep, flip, drop = partialmethod(say, KEEP), partialmethod(say, FLIP), partialmethod(say, DROP)
    clear = partialmethod(say, "")

    def note(self, text: str, pair_id: str = "", event_id: str = "") -> None:
        """Write a note, "" to take it back; on the pair in sight unless another is named."""
        self._write("note", text, pair_id, event_id)

    def _write(self, field: str, value: str, pair_id: str, event_id: str, sides: str | None = None) -> None:
        pair = self._by_id(pair_id) if pair_id else self.pair
        if not pair:
            raise RunError("There is no such pair to review; widen the filters, or take another run.")
        left = "chosen_id" if self.chosen_is_left(pair["pair_id"], sides) else "rejected_id"
        blind = self.blind if sides is None else bool(sides)
        self.reviews.add(pair, field, value, event_id, blind, pair[left])
        self.refresh()

    def _by_id(self, pair_id: str) -> dict:
        return {} if (row := self._row(pair_id)) is None else self.pairs.iloc[row].to_dict()

    def _row(self, pair_id: str) -> int | None:
        row = int(self._place_of.get_indexer_for([pair_id])[0])
        return None if row < 0 else row

    def undo(self) -> dict:
        """Take back the last thing said here and move to its pair; {} when there is nothing to undo."""
        event = self.reviews.undo()
        self.refresh()
        return self.find(event.pair_id) if event else {}

    def refresh(self) -> None:
        """Take in what was said since, here and by others. The order stays until a filter or the sorting changes."""
        new = self.reviews.events(after=self._heard)
        for event in new:
            self._heard = event.seq
            self._told.setdefault(key_of(event), []).append(event)
        for key in {key_of(event) for event in new}:
            self._held[key] = said = standing(self._told[key]).get(key, {})
            if (row := self._row_of.get(key)) is not None:
                self._tally[self.said[row]] -= 1
                self.said[row] = review_of(said, self.pairs.at[row, "chosen_id"])
                self._tally[self.said[row]] += 1
                self.noted[row] = "note" in said

    @cached_property
    def _row_of(self) -> dict[tuple, int]:
        names = ("student", "kind", "chosen_id", "rejected_id")
        columns = zip(*(self.pairs[name].tolist() for name in names), strict=True)
        return {(student, kind, *sorted(ids)): row for row, (student, kind, *ids) in enumerate(columns)}

    def history(self, pair_id: str) -> list[Event]:
        """Return everything that was said of a pair, undone or not, oldest first."""
        return list(self._told.get(key_of(self._by_id(pair_id)), []))

    def note_of(self, pair_id: str) -> str:
        """Return the note that stands on a pair; "" for none."""
        said = self._held.get(key_of(self._by_id(pair_id)), {})
        return said["note"].value if "note" in said else ""

    # What one sees

    @property
    def sides(self) -> str:
        """What the sides at random are drawn from; "" where they are not, outside blind mode."""
        return self._sides if self.blind else ""

    def chosen_is_left(self, pair_id: str, sides: str | None = None) -> bool:
        """Say whether chosen is shown at the left: always, but in blind mode for half of the pairs, at random.

        Args:
            sides: What sides were drawn from when the pair was seen; the present `sides` unless given.
        """
        sides = self.sides if sides is None else sides
        return not sides or bool(stream(0, "sides", sides, pair_id).random() < 0.5)

    def sight(self) -> dict:
        """Return what there is to see of the pair in sight, as plain values; in blind mode nothing that tells sides."""
        if not (pair := self.pair):
            return {}
        chosen_left = self.chosen_is_left(pair["pair_id"])
        names = ("chosen", "rejected") if chosen_left else ("rejected", "chosen")
        texts = [self._hidden.sub("(hidden):", pair[name]) if self.blind else pair[name] for name in names]
        # Two questions are not two ways to say one thing.
        same = pair["kind"] == "question"
        pieces = [[(False, text)] for text in texts] if same else word_differences(*texts)
        seen = {name: pair[name] for name in ("pair_id", "student", "kind", "task", "prompt")}
        seen |= self._state(self.row, pair) | {"sides": [{"pieces": side} for side in pieces], "heat": None}
        seen["note"] = self.note_of(pair["pair_id"])
        if self.blind:
            return seen
        for side, name in zip(seen["sides"], names, strict=True):
            side |= {"name": name} | self.lookup.side(pair, name)
        heat, history = self.lookup.heat(pair), self.history(pair["pair_id"])
        seen["history"] = [f"{event.written[:16].replace('T', ' ')} {describe(event)}" for event in history]
        seen["wrong"] = bool(self.columns["wrong"].iloc[self.row])
        return seen | {"heat": heat and heat.plain()}

    @cached_property
    def _hidden(self) -> re.Pattern:
        """What would tell in blind mode which technique a text is of: its name before a colon."""
        names = self.evidence.drafts["technique"].unique()
        return re.compile(rf"\b({'|'.join(map(re.escape, names)) or '(?!)'})\s*:", re.IGNORECASE)

    def _state(self, row: int, pair: Mapping) -> dict:
        """Return the review of a pair and how decided it is; in blind mode only that there is a review."""
        said = self.said[row]
        if self.blind:
            return {"review": "reviewed" if said and said != DROP else said}
        p_chosen = None if np.isnan(pair["p_chosen"]) else pair["p_chosen"]
        return {"review": said, "gap": pair["score_gap"], "p_chosen": p_chosen}

    def page(self, start: int, stop: int) -> list[dict]:
        """Return some of the pairs that the filters leave, in order, each as a short row of a table."""
        rows, found = self.order[max(start, 0) : stop], []
        for row, pair in zip(rows, self.pairs.iloc[rows].to_dict("records"), strict=True):
            text = pair["prompt"][-PREVIEW:] if self.blind else pair["chosen"][:PREVIEW]
            one = {name: pair[name] for name in ("pair_id", *FILTERS)} | {"noted": bool(self.noted[row])}
            one |= {"gap": None, "p_chosen": None} | self._state(row, pair)
            found.append(one | {"text": " ".join(text.split())})
        return found

    def counts(self) -> dict[str, int]:
        """Return how many pairs there are, how many the filters leave, and how many have each review or a note."""
        said = {review: self._tally[review] for review in REVIEWS}
        return {"pairs": len(self.pairs), "left": len(self.order), **said, "noted": int(self.noted.sum())} | {
            "to_go": int((self.said[self.order] == "").sum())
        }

    def agreement(self) -> tuple[int, int]:
        """Return how many of the blind reviews that stand side with the signal, and how many there are, drops aside."""
        held = [said["review"] for said in self._held.values() if "review" in said]
        taken = [event.value for event in held if event.blind and event.value != DROP]
        return taken.count(KEEP), len(taken)

    def facts(self) -> str:
        """Return in a sentence how far the reviews are and, outside blind mode, what they say of the signal."""
        counts = self.counts()
        done = sum(counts[review] for review in REVIEWS)
        said = f"{done:,} of {counts['pairs']:,} pairs reviewed"
        # In blind mode a count that goes up would tell which side was chosen.
        if self.blind or not done:
            return f"{said}."
        said += f" ({', '.join(f'{counts[review]:,} {PAST[review]}' for review in REVIEWS)})."
        agree, taken = self.agreement()
        if taken:
            low, high = wilson(agree / taken, taken)
            said += f" Of {taken} blind reviews {agree} side with the student ({100 * agree / taken:.0f} %, "
            said += f"95 % interval {100 * low:.0f} to {100 * high:.0f} %)."
        return said

    def table(self, n: int = SHOWN) -> pd.DataFrame:
        """Return the first pairs that the filters leave, as a frame to be shown."""
        columns = ["pair_id", *FILTERS, "gap", "p_chosen", "review", "text"]
        return pd.DataFrame(self.page(0, n), columns=columns).rename(
            columns={"gap": "difference", "p_chosen": "probability", "text": "chosen, its beginning"}
        )

    @cached_property
    def what_if(self) -> WhatIf:
        """Other rules and signals to be tried on what is stored."""
        if self.recipe is None or self.tasks is None:
            raise RunError("Pairs without recipe and tasks cannot be formed anew; inspect a run: wb.inspect(work).")
        return WhatIf(self.recipe, self.tasks, self.evidence, self.pairs)

    @cached_property
    def view(self):
        """The widget, of which one is made; needs a notebook with a kernel."""
        from workbench.notebook.inspector_widget import InspectorView

        return InspectorView(self)

    def show(self) -> None:
        """Display the first pairs as a table, which stays on the page, and the widget where somebody is watching."""
        say(self.facts())
        if is_headless():
            show(self.table(), f"The first {min(SHOWN, len(self.order))} pairs of {len(self.order):,}")
            return
        from IPython.display import display

        display(self.view)


def inspect(work: Run, reviewer: str = "") -> Inspector:
    """Return the pair inspector of a run; `show` puts it on the page.

    Args:
        work: A run whose pairs are formed; alignment need not have begun.
        reviewer: A name to keep with each review; none is asked for.
    """
    evidence, reviews = Evidence.of_run(work), Reviews.of_run(work, reviewer)
    return Inspector(work.read("pairs"), reviews, evidence, work.recipe, load_tasks(work.recipe))
