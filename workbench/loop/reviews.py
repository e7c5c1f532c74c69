"""Reviews: what people say of pairs, kept in the run's folder, and what becomes of the pairs then.

Every word is added at once, in a transaction of its own, and nothing is ever changed or removed: undoing adds a row
too. So several people (or one in two windows) can review one run, and a killed kernel loses nothing that was said.
A review is tied to the two drafts, not to the way a rule happened to turn them: the same file, copied into the folder
of another run of the same drafts, says there what it said here.
"""

import sqlite3
import threading
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from workbench.loop.pairs import swap_sides
from workbench.runs import schemas
from workbench.runs.cache import Database
from workbench.runs.errors import RunError
from workbench.runs.identity import CHECKSUM, fingerprint
from workbench.runs.run import OF_RUN, Run
from workbench.runs.schemas import DROP, FLIP, KEEP, REVIEWS

PAST = {KEEP: "kept", FLIP: "flipped", DROP: "dropped"}
OPPOSITE = {KEEP: FLIP, FLIP: KEEP, DROP: DROP, "": ""}
VERSION = 1
FIELDS = ("review", "note")
NOTE_LIMIT = 10_000  # characters; a note is not a place for documents
NAMES = ("pair_id", "student", "kind", "task", "chosen_id", "rejected_id")


class Event(NamedTuple):
    """One thing said of a pair: a review, a note, or that an earlier event (undoes, by its seq) does not hold."""

    seq: int
    event_id: str
    written: str
    session: str
    reviewer: str
    pair_id: str
    student: str
    kind: str
    task: str
    chosen_id: str
    rejected_id: str
    field: str
    value: str
    blind: bool
    left: str  # the id on the left-hand side when it was said, for looking at position bias; "" if nobody saw sides
    undoes: int


Key = tuple[str, str, str, str]  # student, kind, and the ids of the two sides in order
Standing = Mapping[Key, Mapping[str, Event]]


def key_of(pair: Mapping | Event) -> Key:
    """Return what a pair is, whichever way it is turned: student, kind and its two ids in order."""
    one = pair._asdict() if isinstance(pair, Event) else pair
    return (one["student"], one["kind"], *sorted((one["chosen_id"], one["rejected_id"])))


class Reviews(Database):
    """What was said of the pairs of a run, oldest first, in one SQLite file that is only ever added to.

    Args:
        path: The file; it is made with the first review.
        session: Who adds; undo reaches what the same session added.
        reviewer: A name to keep with each review, as the person likes it.
    """

    IF_DAMAGED = "the reviews in it are lost unless SQLite's own .recover command finds them"

    def __init__(self, path: Path, session: str = "", reviewer: str = ""):
        super().__init__(path)
        self.session, self.reviewer = session or uuid.uuid4().hex, reviewer
        self._lock = threading.RLock()

    @classmethod
    def of_run(cls, run: Run, reviewer: str = "") -> "Reviews":
        """Return the reviews of a run."""
        return cls(run.path / "reviews.sqlite", reviewer=reviewer)

    def add(
        self, pair: Mapping, field: str, value: str, event_id: str = "", blind: bool = False, left: str = ""
    ) -> None:
        """Write one review or note; once this returns it survives the process.

        Args:
            pair: A row of pairs, as the signal turned it.
            value: keep, flip or drop, or "" to take a review back; any text for a note.
            event_id: Chosen by the sender; the same one again is the same word, not another.
            blind: Whether the person did not know which side was chosen.

        Raises:
            RunError: If field or value is none of these.
        """
        if field not in FIELDS:
            raise RunError(f"A pair has a review and a note, not {field!r}; give one of {', '.join(FIELDS)}.")
        if field == "review" and value not in ("", *REVIEWS):
            raise RunError(f"A review is {', '.join(REVIEWS)} (or empty to take it back), got {value!r}; use these.")
        if len(value) > NOTE_LIMIT:
            raise RunError(f"A note has at most {NOTE_LIMIT:,} characters, got {len(value):,}; shorten it.")
        names = {name: str(pair[name]) for name in NAMES}
        self._add(names | {"field": field, "value": value, "blind": blind, "left": left}, event_id)

    def undo(self) -> Event | None:
        """Take back the last thing that this session said and that still holds; return it, None when there is none.

        What others said since stays, and what was said before holds again.
        """
        with self._lock:
            own = [event for event in in_force(self.events()) if event.session == self.session]
            if not own:
                return None
            names = {name: getattr(own[-1], name) for name in (*NAMES, "field")}
            self._add(names | {"undoes": own[-1].seq})
            return own[-1]

    def events(self, after: int = 0) -> list[Event]:
        """Return everything that was said, in order; only what came after that number if one is given."""
        if not self.path.is_file():
            return []
        columns = ", ".join(f'"{name}"' for name in (*Event._fields, CHECKSUM))
        query = f"SELECT {columns} FROM reviews WHERE seq > ? ORDER BY seq"
        rows = self._once(lambda c: c.execute(query, [after]).fetchall())
        for seq, *said, checksum in rows:
            # Those of an earlier workbench have none.
            if checksum not in ("", fingerprint(said)):
                raise RunError(
                    f"Review {seq} in {self.path} is not what was written; put back a copy of the file, or rename it "
                    "and review again."
                )
        return [Event(*row[:-1])._replace(blind=bool(row[Event._fields.index("blind")])) for row in rows]

    def _add(self, values: Mapping, event_id: str = "") -> None:
        row = {"blind": False, "left": "", "value": "", "undoes": 0} | dict(values)
        row |= {"event_id": event_id or uuid.uuid4().hex, "session": self.session, "reviewer": self.reviewer}
        row["written"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        row[CHECKSUM] = fingerprint([row[name] if name != "blind" else int(row[name]) for name in Event._fields[1:]])
        names = ", ".join(f'"{name}"' for name in row)
        statement = f"INSERT OR IGNORE INTO reviews ({names}) VALUES ({', '.join('?' * len(row))})"
        self._once(lambda c: c.execute(statement, list(row.values())).close())

    def _once(self, work):
        """Do something with the file and close it: what is held open by nobody can be copied, moved and shared."""
        with self._lock:
            try:
                return self._do(work)
            finally:
                self.close()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        numbers = {"blind": "INTEGER", "undoes": "INTEGER"}
        columns = [f'"{name}" {numbers.get(name, "TEXT")} NOT NULL' for name in Event._fields[2:]]
        connection.execute(
            "CREATE TABLE IF NOT EXISTS reviews (seq INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT NOT NULL UNIQUE, "
            + ", ".join(columns)
            + ")"
        )
        there = {column for _, column, *_ in connection.execute("PRAGMA table_info(reviews)")}
        if CHECKSUM not in there:
            connection.execute(f"ALTER TABLE reviews ADD COLUMN {CHECKSUM} TEXT NOT NULL DEFAULT ''")
        for change in ("UPDATE", "DELETE"):
            connection.execute(
                f"CREATE TRIGGER IF NOT EXISTS no_{change.lower()} BEFORE {change} ON reviews "
                "BEGIN SELECT RAISE(ABORT, 'reviews are only ever added'); END"
            )


def in_force(events: Iterable[Event]) -> list[Event]:
    """Return the events that were not undone, without those that undid."""
    events = list(events)
    gone = {event.undoes for event in events}
    return [event for event in events if not event.undoes and event.seq not in gone]


def standing(events: Iterable[Event]) -> Standing:
    """Return what holds now: for each pair its last review and its last note that were not undone.

    A review or note taken back by an empty value is left out.
    """
    found: dict[Key, dict[str, Event]] = {}
    for event in in_force(events):
        found.setdefault(key_of(event), {})[event.field] = event
    held = {key: {field: e for field, e in said.items() if e.value} for key, said in found.items()}
    return {key: said for key, said in held.items() if said}


def review_of(said: Mapping[str, Event], chosen_id: str) -> str:
    """Return the review that holds for a pair whose chosen side has that id; "" for none.

    A keep of one side is a flip of the pair turned the other way.
    """
    if "review" not in said:
        return ""
    event = said["review"]
    return event.value if event.chosen_id == chosen_id else OPPOSITE[event.value]


def describe(event: Event) -> str:
    """Return in a few words what was said."""
    who = f" by {event.reviewer}" if event.reviewer else ""
    if event.undoes:
        return f"{event.field} undone{who}"
    if event.field == "note":
        return ("note" if event.value else "note taken back") + who
    return (PAST.get(event.value) or "review taken back") + (", blind" if event.blind else "") + who


def reviews_of(run: Run, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return what people said of these pairs, a row a pair reviewed, as the schema "reviews" describes it.

    A review of a pair that the signal does not form here is not among them.
    """
    held, rows = standing(Reviews.of_run(run).events()), []
    for pair in pairs[list(NAMES)].to_dict("records") if held else []:
        said = held.get(key_of(pair), {})
        if review := review_of(said, pair["chosen_id"]):
            note = said["note"].value if "note" in said else ""
            rows.append(pair | {"review": review, "note": note, "reviewer": said["review"].reviewer})
    return schemas.build(rows, "reviews")


def reviews_in_force(run: Run, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the reviews that the teachers of a run were aligned with; what people say now where none are aligned yet.

    So that nothing finished is computed anew because somebody looked at pairs: later reviews are for another run.
    """
    if run.has("teachers") and run.stands("reviewed"):
        return run.read("reviewed", "reviews")
    return reviews_of(run, pairs)


def apply_reviews(pairs: pd.DataFrame, reviews: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the pairs as people left them ("reviewed"), and the reviews.

    A flipped pair is turned round and keeps its id; a dropped one is left out; a kept one stays.
    """
    place_of = dict(zip(pairs["pair_id"], pairs.index, strict=True))
    flipped, dropped = (reviews.loc[reviews["review"] == one, "pair_id"].map(place_of) for one in (FLIP, DROP))
    left = swap_sides(pairs, flipped).drop(index=dropped).reset_index(drop=True)
    left.attrs["counts"] = {"pairs": len(left)}
    left.attrs["counts"] |= {f"pairs {PAST[one]} by review": (reviews["review"] == one).sum() for one in REVIEWS}
    return {"reviewed": left, "reviews": reviews}


def newer_than_alignment(run: Run) -> str:
    """Return in a sentence of how many pairs people say something else than the aligned teachers were made from.

    Keeps and notes change no pair and do not count. "" where there is nothing to say. What comes before the alignment
    is taken over by the run that the sentence names, so the seconds it gives are those of the rest.
    """
    if not run.has("teachers"):
        return ""
    try:
        used, now = run.read("reviewed", "reviews"), reviews_of(run, run.read("pairs"))
    except RunError:
        # What is not up to date is said where it is used.
        return ""
    changing = [
        {(one["pair_id"], one["review"]) for one in reviews.to_dict("records") if one["review"] != KEEP}
        for reviews in (used, now)
    ]
    n = len({pair_id for pair_id, _ in changing[0] ^ changing[1]})
    spent = sum(run.manifest(name)["seconds"] for name in run.made_from("reviewed"))
    if not n:
        return ""
    return (
        f"Of {n} {'pair' if n == 1 else 'pairs'} people say something else now than when the teachers were aligned. "
        f"What is shown was made before and stays. To align again beside it ({spent:.0f} s last time): "
        f"workbench run {OF_RUN}{run.name} --name {name_beside(run)}"
    )


def name_beside(run: Run) -> str:
    """Return a name that no run has yet, for one like this with the reviews of now."""
    name = f"{run.name}-reviewed"
    while (run.path.parent / name).exists():
        name += "-again"
    return name
