import html
import json
import re
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from conftest import PROJECT
from probed_run import STUDENTS, form_pairs, write_run

from workbench.loop.reviews import Reviews
from workbench.notebook import display
from workbench.notebook.inspector import Inspector, inspect
from workbench.report.lineage import lineage
from workbench.runs.errors import RunError
from workbench.runs.run import open_run

BAD = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder of runs with a probed run and its pairs."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WORKBENCH_RUNS", str(folder))
        form_pairs(write_run())
    return folder


@pytest.fixture
def work(stored, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(stored))
    work = open_run("probed")
    (work.path / "reviews.sqlite").unlink(missing_ok=True)
    return work


@pytest.fixture
def inspector(work):
    return inspect(work)


def test_it_needs_no_view_and_no_alignment(inspector, work):
    assert inspector.pair == inspector.pairs.iloc[0].to_dict() and not work.has("teachers")
    assert repr(inspector) == f"Inspector: 0 of {len(inspector.pairs)} pairs reviewed."
    assert "view" not in vars(inspector)


def test_moving_stops_at_the_ends(inspector):
    assert inspector.previous() == inspector.pair and inspector.at == 0
    assert inspector.next() == inspector.pairs.iloc[1].to_dict()
    inspector.go(10_000)
    assert inspector.at == len(inspector.pairs) - 1 and inspector.next() == inspector.pairs.iloc[-1].to_dict()


def test_reviews_are_written_at_once_and_are_there_after_a_restart(inspector, work):
    inspector.flip()
    inspector.note("the rejected one is right")
    first = inspector.pair["pair_id"]
    inspector.next()
    inspector.drop()
    again = inspect(work)
    assert again.said.tolist()[:3] == ["flip", "drop", ""] and again.note_of(first) == "the rejected one is right"
    assert again.sight()["history"] and "flipped" in again.sight()["history"][0]
    assert again.facts() == f"2 of {len(again.pairs)} pairs reviewed (0 kept, 1 flipped, 1 dropped)."


def test_undo_goes_back_to_the_pair(inspector):
    inspector.keep()
    inspector.next()
    inspector.drop()
    inspector.go(5)
    assert inspector.undo() == inspector.pairs.iloc[1].to_dict() and inspector.at == 1
    assert inspector.undo() == inspector.pairs.iloc[0].to_dict() and inspector.said.tolist() == [""] * len(
        inspector.pairs
    )
    assert inspector.undo() == {}


def test_undo_finds_a_pair_that_the_filters_hide(inspector):
    inspector.keep()
    inspector.student = "bo"
    assert inspector.undo()["student"] == "ada" and inspector.student == ""


def test_a_review_can_be_cleared(inspector):
    inspector.drop()
    inspector.clear()
    assert inspector.said[0] == "" and inspector.counts()["drop"] == 0


def test_two_inspectors_on_one_run_see_each_other(inspector, work):
    other = inspect(work, "Bob")
    inspector.keep()
    other.next()
    other.flip()
    for one in (inspector, other):
        one.refresh()
        assert one.said.tolist()[:2] == ["keep", "flip"]


def test_filters_leave_what_fits_and_keep_the_pair_in_sight(inspector):
    inspector.go(len(inspector.pairs) - 1)
    last = inspector.pair
    assert last["student"] == STUDENTS[1]
    inspector.student, inspector.kind = last["student"], last["kind"]
    assert inspector.pair == last
    left = inspector.pairs.iloc[inspector.order]
    assert set(left["student"]) == {"bo"} and set(left["kind"]) == {last["kind"]}
    inspector.student = "nobody"
    assert inspector.pair == {} and inspector.sight() == {} and inspector.counts()["left"] == 0
    with pytest.raises(RunError, match="no such pair"):
        inspector.keep()
    inspector.widen()
    assert len(inspector.order) == len(inspector.pairs)


def test_reviews_and_notes_can_be_filtered_for(inspector):
    inspector.flip()
    inspector.next()
    inspector.note("look again")
    for review, rows in (("flip", [0]), ("noted", [1]), ("keep", [])):
        inspector.review = review
        assert inspector.order.tolist() == rows
    inspector.review = "open"
    assert 0 not in inspector.order and 1 in inspector.order


def test_search_looks_into_prompts_texts_and_ids(inspector):
    pair = inspector.pairs.iloc[3]
    for words in (
        pair["chosen"][5:40].upper(),
        pair["rejected"].strip()[:30],
        pair["prompt"][-60:-30],
        pair["pair_id"],
    ):
        inspector.search = words
        assert 3 in inspector.order, words
    inspector.search = "no text holds .* this"
    assert not len(inspector.order)


@pytest.mark.parametrize("column", ["gap", "p_chosen", "worth", "task", "student"])
def test_sorting_is_by_the_column_both_ways(inspector, column):
    inspector.sort = column
    values = inspector.columns[column].iloc[inspector.order]
    assert values.is_monotonic_increasing
    inspector.descending = True
    assert inspector.columns[column].iloc[inspector.order].is_monotonic_decreasing


def test_unknown_probabilities_are_last_either_way(inspector):
    inspector.columns.loc[2, "p_chosen"] = np.nan
    for inspector.descending in (False, True):
        inspector.sort = ""
        inspector.sort = "p_chosen"
        assert inspector.order[-1] == 2


def test_the_queue_offers_what_is_open_the_most_worth_first(inspector):
    inspector.go(4)
    inspector.keep()
    first = inspector.queue()
    worth = inspector.columns["worth"]
    assert 4 not in inspector.order and len(inspector.order) == len(inspector.pairs) - 1
    assert worth.iloc[inspector.row] == worth.drop(index=4).max() and first == inspector.pair
    assert inspector.columns["wrong"].iloc[inspector.order[: inspector.columns["wrong"].sum()]].all()
    # What is reviewed now stays where it is until the queue is asked for again.
    inspector.flip()
    assert inspector.pair == first
    assert inspector.queue() != first


def test_blind_mode_hides_what_tells_the_sides_apart(inspector):
    inspector.flip()
    inspector.blind = True
    sight = json.dumps(inspector.sight(), default=str)
    pair = inspector.pair
    for hidden in (
        "chosen",
        "rejected",
        "signals",
        "technique",
        "gap",
        "history",
        pair["chosen_id"],
        pair["rejected_id"],
    ):
        assert hidden not in sight
    assert inspector.sight()["review"] == "reviewed" and inspector.facts() == "1 of 14 pairs reviewed."
    (row, *_) = inspector.page(0, 1)
    assert row["gap"] is None and row["p_chosen"] is None and pair["chosen"].strip()[:20] not in row["text"]


def test_sides_are_at_random_in_blind_mode_and_stay_where_they_are(inspector):
    inspector.blind = True
    ids = [f"pair {n}" for n in range(2000)]
    lefts = [inspector.chosen_is_left(one) for one in ids]
    assert 900 < sum(lefts) < 1100 and lefts == [inspector.chosen_is_left(one) for one in ids]
    for _ in range(6):
        texts = ["".join(text for _, text in side["pieces"]) for side in inspector.sight()["sides"]]
        names = (
            ["chosen", "rejected"] if inspector.chosen_is_left(inspector.pair["pair_id"]) else ["rejected", "chosen"]
        )
        assert [text.replace("(hidden)", "Tally") for text in texts] == [
            re.sub("Tally|Story|Meter|Diary", "Tally", inspector.pair[name]) for name in names
        ]
        assert all("(hidden):" in text for text in texts) or inspector.pair["kind"] == "question"
        inspector.next()


def test_a_blind_preference_is_of_the_side_that_was_shown(inspector):
    inspector.blind = True
    for side in ("left", "right", "left", "right"):
        pair, row = inspector.pair, inspector.row
        shown = "".join(text for _, text in inspector.sight()["sides"][side == "right"]["pieces"])
        inspector.prefer(side)
        assert inspector.said[row] == ("keep" if shown.partition(":")[2] in pair["chosen"] else "flip")
        inspector.next()
    events = inspector.reviews.events()
    assert all(event.blind for event in events) and {event.left for event in events} <= {
        *inspector.pairs["chosen_id"],
        *inspector.pairs["rejected_id"],
    }
    agree, taken = inspector.agreement()
    assert taken == 4 and agree == (inspector.said == "keep").sum()
    inspector.blind = False
    assert f"Of 4 blind reviews {agree} side with the student" in inspector.facts()


def test_a_preference_sent_late_is_of_the_sides_as_they_were_seen(inspector, work):
    inspector.blind = True
    seen, pair_id = inspector.sides, inspector.pair["pair_id"]
    was_left = inspector.chosen_is_left(pair_id)
    later = inspect(work)
    later.prefer("left", pair_id, seen)
    assert later.said[0] == ("keep" if was_left else "flip") and later.reviews.events()[-1].blind


def test_the_static_page_is_escaped(inspector, monkeypatch):
    shown = []
    monkeypatch.setattr(display, "_display", lambda markup, plain, handle=None: shown.append(markup))
    inspector.pairs.loc[0, "chosen"] = BAD
    inspector.show()
    page = "".join(shown)
    assert BAD not in page and html.escape("<img src=x") in page and "<script" not in page
    assert inspector.facts() in page


def test_pairs_without_a_recipe_are_inspected_too(inspector, tmp_path):
    bare = Inspector(inspector.pairs, Reviews(tmp_path / "r.sqlite"), inspector.evidence)
    bare.flip()
    assert bare.said[0] == "flip"
    with pytest.raises(RunError, match="wb.inspect"):
        _ = bare.what_if


def test_an_empty_set_of_pairs_is_no_error(inspector, tmp_path):
    none = Inspector(inspector.pairs.head(0), Reviews(tmp_path / "r.sqlite"), inspector.evidence)
    assert none.pair == {} and none.next() == {} and none.queue() == {} and none.sight() == {}
    assert none.table().empty and none.facts() == "0 of 0 pairs reviewed."


def test_headless_it_is_a_sentence_and_a_table(inspector, monkeypatch, capsys):
    shown = []
    monkeypatch.setenv(display.HEADLESS, "1")
    monkeypatch.setattr(display, "_display", lambda markup, plain, handle=None: shown.append((markup, plain)))
    inspector.show()
    assert [len(shown), "view" in vars(inspector)] == [2, False]
    assert inspector.facts() in shown[0][1] and inspector.pair["pair_id"] in shown[1][1]


def test_papermill_replays_the_reviews_that_a_person_made(inspector, work, tmp_path, monkeypatch, capsys):
    """The alignment notebook's first sections, without anybody watching."""
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    inspector.flip()
    inspector.next()
    inspector.drop()
    source = nbformat.read(PROJECT / "notebooks" / "03_teacher_alignment.ipynb", as_version=4)
    end = next(n for n, cell in enumerate(source.cells) if '"teachers"' in cell.source and cell.cell_type == "code")
    source.cells = source.cells[: end + 1]
    nbformat.write(source, tmp_path / "part.ipynb")
    done = papermill.execute_notebook(
        tmp_path / "part.ipynb", tmp_path / "out.ipynb", {"run": "probed"}, cwd=PROJECT, progress_bar=False
    )
    counts = work.counts("reviewed")
    assert counts["pairs flipped by review"] == counts["pairs dropped by review"] == 1
    assert work.read("reviewed", "reviews")["review"].tolist() == ["flip", "drop"]
    left, before = work.read("reviewed"), inspector.pairs.iloc[0]
    assert left["chosen"].iloc[0] == before["rejected"] and len(left) == len(inspector.pairs) - 1
    text = json.dumps(done)
    assert "2 of 14 pairs reviewed" in text and "anywidget" not in text
    used = work.read("teachers", "pairs_used").query("arm == 'tailored'").drop(columns="arm").reset_index(drop=True)
    pd.testing.assert_frame_equal(used, left)
    # The pairs that are shown stay those of the signal.
    pd.testing.assert_frame_equal(inspect(work).pairs, inspector.pairs)
    assert f"pair {before['pair_id']}" in lineage(work, before["pair_id"])
    assert "flipped by review" in lineage(work, before["pair_id"])


def test_looking_at_pairs_brings_no_models_and_no_widget():
    names = "{'torch', 'transformers', 'anywidget'}"
    code = f"import sys, workbench.notebook.inspector; print(sorted({names} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
