import io

import pandas as pd
import pytest

from workbench.runs import schemas
from workbench.runs.errors import DataError


def draft(**changes) -> dict:
    row = {
        "draft_id": "d1",
        "task": "object_counting",
        "question_id": "q1",
        "question": "How many?",
        "technique": "tally",
        "rationale": "One, two.",
        "answer": "2",
        "gold": "",
        "correct": True,
        "n_tokens": 5,
    }
    return row | changes


def test_text_id_is_the_beginning_of_sha256():
    assert schemas.text_id("abc") == "ba7816bf8f01cfea"
    assert schemas.text_id("é") != schemas.text_id("e")


def test_a_good_frame_passes_unchanged():
    frame = pd.DataFrame([draft(), draft(draft_id="d2")])
    pd.testing.assert_frame_equal(schemas.check(frame, "drafts"), frame)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.drop(columns="gold"), "column 'gold' is missing, add it"),
        (lambda f: f.assign(extra=1), "column 'extra' is not part of it, remove it"),
        (lambda f: f.assign(n_tokens=1.5), "column 'n_tokens' must hold int64, convert it"),
        (lambda f: f.assign(answer=[2, 3]), "column 'answer' must hold text, convert it"),
        (lambda f: f.assign(n_tokens=-1), "column 'n_tokens' holds -1, which fails greater_than_or_equal_to(0)"),
        (lambda f: f.assign(gold=None), "column 'gold' has empty values, fill them"),
        (lambda f: f.assign(draft_id="d1"), "draft_id must be unique"),
    ],
)
def test_each_fault_is_named(change, says):
    frame = change(pd.DataFrame([draft(), draft(draft_id="d2")]))
    with pytest.raises(DataError) as error:
        schemas.check(frame, "drafts")
    assert says in str(error.value) and "\n" not in str(error.value)


def test_all_faults_come_at_once():
    with pytest.raises(DataError) as error:
        schemas.check(pd.DataFrame([draft(n_tokens=0.5, extra=1)]), "drafts")
    assert "n_tokens" in str(error.value) and "extra" in str(error.value)


def test_a_value_that_is_not_a_number_is_refused():
    row = {"stage": "training", "arm": "tailored", "student": "s", "seed": 0, "step": 1, "metric": "loss"}
    with pytest.raises(DataError, match="column 'value' has empty values"):
        schemas.check(pd.DataFrame([row | {"value": float("nan")}]), "curve")


def test_an_unknown_frame_is_refused_with_the_known_ones():
    with pytest.raises(DataError, match="no frame called 'draft'; the frames are questions, exemplars"):
        schemas.check(pd.DataFrame(), "draft")


@pytest.mark.parametrize("name", schemas.SCHEMAS)
def test_empty_frames_are_typed_and_survive_parquet(name):
    frame = schemas.build([], name)
    again = pd.read_parquet(io.BytesIO(frame.to_parquet()))
    assert list(schemas.check(again, name).columns) == list(schemas.SCHEMAS[name].columns)


def test_build_puts_columns_in_the_order_of_the_schema():
    row = dict(reversed(draft().items()))
    needed = [name for name, column in schemas.SCHEMAS["drafts"].columns.items() if column.required]
    assert list(schemas.build([row], "drafts").columns) == needed


def test_no_frame_has_a_column_that_trl_would_consume():
    assert all("margin" not in schema.columns for schema in schemas.SCHEMAS.values())
