"""The frames that stages pass to each other: one schema each, and the ids that tie their rows together."""

import hashlib
from functools import partial

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors
from pydantic import BaseModel, ConfigDict, RootModel

from workbench.runs.errors import DataError, spoken

ITEM_KINDS = ("rationale", "question")
# Columns whose values are names, for people to read; what a model wrote stays as it is, and so does what is typed.
NAMES = {"a", "arm", "b", "contrast", "group", "metric", "part", "signal", "state", "step", "task", "technique"}
REVIEWS = KEEP, FLIP, DROP = "keep", "flip", "drop"


def text_id(text: str) -> str:
    """Return the first 16 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _text(*allowed: str) -> pa.Column:
    return pa.Column(str, pa.Check.isin(allowed) if allowed else None)


def _schema(columns: dict[str, pa.Column], unique: list[str] | None = None) -> pa.DataFrameSchema:
    return pa.DataFrameSchema(columns, strict=True, coerce=False, unique=unique)


def _columns(kind: type | str, names: str, checks: pa.Check | None = None, nullable: bool = False) -> dict:
    return {name: pa.Column(kind, checks, nullable=nullable) for name in names.split()}


_texts, _flags, _numbers = (partial(_columns, kind) for kind in (str, bool, "float64"))
_counts = partial(_columns, "int64", checks=pa.Check.ge(0))
# Whether a text ended by itself, not at its limit of tokens; runs from before it was told lack it.
FINISHED = pa.Column(bool, required=False)
_SEED = {"seed": pa.Column("int64")}
_SIGNAL = {
    "draft_id": _text(),
    "item_kind": _text(*ITEM_KINDS),
    **_texts("signal student student_fp set_fp"),
    **_numbers("value"),
    "stderr": pa.Column("float64", pa.Check.ge(0)),
    **_counts("n tokens"),
}
_PAIR = {
    **_texts("pair_id student"),
    "kind": _text(*ITEM_KINDS),
    **_texts("task prompt chosen rejected chosen_id rejected_id"),
    **_numbers("score_chosen score_rejected score_gap"),
    # A signal without probes leaves it open.
    "p_chosen": pa.Column("float64", pa.Check.in_range(0, 1), nullable=True),
    **_flags("flipped"),
}
_SIGNAL_ID = ["draft_id", "item_kind", "signal", "student"]

SCHEMAS: dict[str, pa.DataFrameSchema] = {
    "questions": _schema(
        {
            **_texts("task question_id question drafted_target reply prompt_id"),
            **_counts("call index"),
            **_flags("kept"),
            **_texts("drop_reason"),
            # Montessori-Instruct asks with other examples each time; elsewhere a task has one prompt.
            "prompt": pa.Column(str, required=False),
        },
    ),
    "exemplars": _schema({**_texts("task item_id question rationale"), **_flags("worked")}),
    "drafts": _schema(
        {
            **_texts("draft_id task question_id question technique rationale answer gold"),
            **_flags("correct"),
            **_counts("n_tokens"),
            "finished": FINISHED,
        },
        unique=["draft_id"],
    ),
    "preference_set": _schema(
        # A random selection has no IRT fit, so nothing to put there.
        {
            **_texts("task item_id question target"),
            **_numbers("discrimination difficulty", nullable=True),
            **_flags("chosen"),
        },
        unique=["task", "item_id"],
    ),
    "probes": _schema(
        {**_texts("student draft_id item_id answer"), **_flags("correct parsed"), **_counts("n_tokens")},
        unique=["student", "draft_id", "item_id"],
    ),
    "reference": _schema(
        {**_texts("student task item_id question target prompt completion")}, unique=["student", "task", "item_id"]
    ),
    # Without a value where a draft could not be scored.
    "signals": _schema(_SIGNAL | _numbers("value", nullable=True), unique=_SIGNAL_ID),
    "influences": _schema(_SIGNAL | _numbers("raw zero_step") | {"how": _text("exact", "judge")}, unique=_SIGNAL_ID),
    "pairs": _schema(_PAIR),
    "reviews": _schema(
        {
            **_texts("pair_id student"),
            "kind": _text(*ITEM_KINDS),
            **_texts("task chosen_id rejected_id"),
            "review": _text(*REVIEWS),
            **_texts("note reviewer"),
        },
    ),
    "examples": _schema(
        {
            **_texts("example_id arm student"),
            **_SEED,
            **_texts("task question_id question rationale answer gold"),
            **_flags("correct"),
            **_texts("style"),
            **_counts("n_tokens"),
            "finished": FINISHED,
            **_flags("kept"),
            **_texts("drop_reason"),
        },
        unique=["example_id"],
    ),
    "rows": _schema(
        {
            **_texts("row_id arm student"),
            **_SEED,
            **_texts("task example_id prompt completion"),
            **_counts("n_tokens"),
        },
        unique=["row_id"],
    ),
    "curve": _schema(
        {**_texts("stage arm student"), **_SEED, **_counts("step"), **_texts("metric"), **_numbers("value")}
    ),
    "predictions": _schema(
        {
            **_texts("student arm"),
            **_SEED,
            **_counts("shots"),
            **_texts("task item_id answer style"),
            **_flags("parsed"),
            # Open answers are judged instead: 1.0 better than the reference, 0.5 as good, 0.0 worse, or missing.
            "correct": FINISHED,
            "judged": pa.Column("float64", pa.Check.in_range(0, 1), nullable=True, required=False),
            "finished": FINISHED,
            "in_form": FINISHED,
        },
        unique=["student", "arm", "seed", "shots", "task", "item_id"],
    ),
}


class Stored(BaseModel):
    """A JSON file that is read back, as far as something depends on it."""

    model_config = ConfigDict(extra="allow", strict=True)


class Manifest(Stored):
    """What is recorded of a step: files by SHA-256, its frames and whatever else lies in its folder."""

    key: str
    inputs: dict
    parents: dict[str, list[str]]
    single: bool
    counts: dict[str, int]
    contents: dict[str, str]
    files: dict[str, str]
    others: dict[str, str] = {}
    versions: dict[str, str]
    seconds: float
    tokens: int


class Trained(Stored):
    """What is recorded of a trained model: its curve and cost, and its files by SHA-256."""

    key: str
    curve: list[dict]
    n_tokens: int
    steps: int
    files: dict[str, str] = {}


class Verdict(Stored):
    """The outcome of a run."""

    decision: str
    student: str
    models: str
    warnings: list[str]
    primary: dict
    comparisons: list[dict]


class Kept(Stored):
    """The recipe that a run was begun with."""

    recipe: dict


class _Looks(Stored):
    name: str
    looks: list[dict[str, str]]


class Ledger(RootModel):
    """How often each test set was opened, by the SHA-256 of its file."""

    root: dict[str, _Looks]


def check(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the frame when it follows the schema of that name.

    Raises:
        DataError: If it does not, naming every column at fault in one sentence.
    """
    if name not in SCHEMAS:
        raise DataError(f"There is no frame called {name!r}; the frames are {', '.join(SCHEMAS)}.")
    try:
        return SCHEMAS[name].validate(frame, lazy=True)
    except SchemaErrors as errors:
        faults = "; ".join(dict.fromkeys(_fault(error) for error in errors.schema_errors))
        raise DataError(f"The frame {name!r} breaks its schema: {faults}.") from None


def build(rows: list[dict], name: str) -> pd.DataFrame:
    """Return checked rows as a frame with the schema's columns in order, typed even when there are no rows."""
    if not rows:
        columns = SCHEMAS[name].columns.items()
        return pd.DataFrame({column: pd.Series(dtype=str(spec.dtype)) for column, spec in columns}).pipe(check, name)
    frame = check(pd.DataFrame(rows), name)
    return frame[[column for column in SCHEMAS[name].columns if column in frame]]


def _fault(error) -> str:
    """Say one pandera error in words: what is wrong, what is allowed."""
    reason = error.reason_code.name
    if reason == "COLUMN_NOT_IN_SCHEMA":
        return f"column {error.failure_cases!r} is not part of it, remove it"
    if reason == "COLUMN_NOT_IN_DATAFRAME":
        return f"column {error.failure_cases!r} is missing, add it"
    if reason == "DUPLICATES":
        return f"{' + '.join(error.schema.unique)} must be unique, but some rows repeat it"
    column = error.schema.name
    if reason == "SERIES_CONTAINS_NULLS":
        return f"column {column!r} has empty values, fill them"
    if reason == "WRONG_DATATYPE":
        wanted = "text" if "string" in str(error.schema.dtype) else str(error.schema.dtype)
        return f"column {column!r} must hold {wanted}, convert it"
    case = error.failure_cases["failure_case"].iloc[0]
    return f"column {column!r} holds {case}, which fails {error.check.error}"


def with_spoken_names(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with its columns, and the arms, tasks and other names in them, as people read them."""
    named = {column: table[column].map(spoken, na_action="ignore") for column in NAMES & set(table.columns)}
    return table.assign(**named).set_axis([spoken(str(column).removeprefix("n_")) for column in table.columns], axis=1)
