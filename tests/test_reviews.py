import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from types import SimpleNamespace

import pandas as pd
import pytest
from probed_run import as_it_is, recipe_of, store

from workbench.loop.pairs import flip_half
from workbench.loop.reviews import Reviews, apply_reviews, key_of, newer_than_alignment, review_of, reviews_of, standing
from workbench.notebook import session
from workbench.notebook.session import start
from workbench.runs import schemas
from workbench.runs.errors import RunError
from workbench.runs.run import open_run

FORK = multiprocessing.get_context("fork")


def pair(n: int = 1, student: str = "ada", turned: bool = False) -> dict:
    sides = (f"b{n}", f"a{n}") if turned else (f"a{n}", f"b{n}")
    return {
        "pair_id": f"p{n}{student}{turned}",
        "student": student,
        "kind": "rationale",
        "task": "sums",
        "prompt": "P",
        "chosen": f"text {sides[0]}",
        "rejected": f"text {sides[1]}",
        "chosen_id": sides[0],
        "rejected_id": sides[1],
        "score_chosen": 0.75,
        "score_rejected": 0.25,
        "score_gap": 0.5,
        "p_chosen": 0.9,
        "flipped": False,
    }


def pairs(n: int = 4) -> pd.DataFrame:
    return schemas.build([pair(one) for one in range(n)], "pairs")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "reviews.sqlite"


@pytest.fixture
def work(runs):
    """A run that nothing was computed in yet."""
    return open_run("reviewed", recipe_of())


def said(path, n: int = 1, **more) -> tuple[str, str]:
    found = standing(Reviews(path).events()).get(key_of(pair(n, **more)), {})
    return review_of(found, pair(n)["chosen_id"]), found["note"].value if "note" in found else ""


def test_a_review_and_a_note_are_there_at_once_for_whoever_opens_the_file(path):
    reviews = Reviews(path, reviewer="Ann")
    reviews.add(pair(), "review", "flip", blind=True, left="b1")
    reviews.add(pair(), "note", "a <b>note</b>, naïve 🙂")
    assert said(path) == ("flip", "a <b>note</b>, naïve 🙂")
    first = Reviews(path).events()[0]
    assert (first.reviewer, first.blind, first.left, first.pair_id) == ("Ann", True, "b1", "p1adaFalse")


def test_looking_makes_no_file(path):
    assert Reviews(path).events() == [] and Reviews(path).undo() is None and not path.exists()


def test_undo_brings_back_what_was_said_before_and_leaves_what_others_said(path):
    mine, hers = Reviews(path), Reviews(path)
    mine.add(pair(), "review", "keep")
    mine.add(pair(), "review", "flip")
    assert mine.undo().value == "flip" and said(path)[0] == "keep"
    mine.add(pair(), "review", "drop")
    hers.add(pair(), "review", "flip")
    assert mine.undo().value == "drop" and said(path)[0] == "flip"
    assert hers.undo().value == "flip" and said(path)[0] == "keep"
    assert hers.undo() is None and mine.undo().value == "keep" and mine.undo() is None
    assert said(path) == ("", "")
    # Nothing was removed on the way.
    assert len(Reviews(path).events()) == 8


def test_a_review_can_be_taken_back_by_an_empty_one(path):
    reviews = Reviews(path)
    reviews.add(pair(), "review", "drop")
    reviews.add(pair(), "review", "")
    assert said(path) == ("", "") and not standing(reviews.events())


def test_the_same_word_sent_twice_is_one_word(path):
    for _ in range(2):
        Reviews(path).add(pair(), "review", "flip", event_id="from the browser")
    assert len(Reviews(path).events()) == 1


def test_two_people_do_not_overwrite_each_other(path):
    one, other = Reviews(path, reviewer="Ann"), Reviews(path, reviewer="Bob")
    one.add(pair(1), "note", "Ann's")
    other.add(pair(1), "review", "drop")
    one.add(pair(2), "review", "keep")
    assert said(path, 1) == ("drop", "Ann's") and said(path, 2) == ("keep", "")


def test_what_is_stored_cannot_be_changed(path):
    Reviews(path).add(pair(), "review", "keep")
    with sqlite3.connect(path) as connection:
        for change in ("UPDATE reviews SET value = 'drop'", "DELETE FROM reviews"):
            with pytest.raises(sqlite3.IntegrityError, match="only ever added"):
                connection.execute(change)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("review", "delete", "keep, flip, drop"), ("mark", "x", "review, note"), ("note", "x" * 10_001, "10,000")],
)
def test_what_is_no_review_is_refused(path, field, value, words):
    with pytest.raises(RunError, match=words):
        Reviews(path).add(pair(), field, value)
    assert not path.exists()


def test_a_damaged_file_is_said_in_one_sentence(path):
    path.parent.mkdir()
    path.write_bytes(b"no database" * 100)
    with pytest.raises(RunError, match="reviews.sqlite is damaged .*rename it"):
        Reviews(path).events()


def _many(path, name, n):
    reviews = Reviews(path, reviewer=name)
    for one in range(n):
        reviews.add(pair(one, student=name), "review", "flip")


def test_several_processes_write_at_once_and_nothing_is_lost(path):
    writers = [FORK.Process(target=_many, args=(path, f"s{n}", 20)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(standing(Reviews(path).events())) == 60


def _until_killed(path, said):
    reviews = Reviews(path)
    for n in range(100_000):
        reviews.add(pair(n), "review", "flip")
        said.send(n)


def test_a_killed_process_loses_nothing_that_it_said(path):
    hears, says = FORK.Pipe(duplex=False)
    child = FORK.Process(target=_until_killed, args=(path, says))
    child.start()
    heard = [hears.recv() for _ in range(30)]
    os.kill(child.pid, signal.SIGKILL)
    child.join(120)
    while hears.poll():
        heard.append(hears.recv())
    held = standing(Reviews(path).events())
    assert child.exitcode == -signal.SIGKILL
    assert all(key_of(pair(n)) in held for n in heard) and len(held) <= len(heard) + 1


def test_people_overrule_the_signal(work):
    reviews = Reviews.of_run(work)
    for n, review in ((0, "keep"), (1, "flip"), (2, "drop")):
        reviews.add(pair(n), "review", review)
    reviews.add(pair(1), "note", "the other one is right")
    reviews.add(pair(9), "review", "drop")
    used = reviews_of(work, pairs())
    assert used["review"].tolist() == ["keep", "flip", "drop"] and used["note"].tolist()[1] == "the other one is right"
    left = apply_reviews(pairs(), used)
    changed = schemas.check(left["reviewed"], "pairs")
    assert changed["pair_id"].tolist() == ["p0adaFalse", "p1adaFalse", "p3adaFalse"] and left["reviews"].equals(used)
    turned = changed.iloc[1]
    assert (turned["chosen"], turned["chosen_id"], turned["rejected_id"]) == ("text b1", "b1", "a1")
    assert turned["score_gap"] == -0.5 and turned["p_chosen"] == pytest.approx(0.1) and not turned["flipped"]
    by_review = {"pairs kept by review": 1, "pairs flipped by review": 1, "pairs dropped by review": 1}
    assert changed.attrs["counts"] == {"pairs": 3} | by_review
    # The control flips half of what people left.
    assert flip_half(changed, 0)["flipped"].sum() == 1


def test_without_reviews_nothing_changes(work):
    used = reviews_of(work, pairs())
    assert used.empty
    pd.testing.assert_frame_equal(apply_reviews(pairs(), used)["reviewed"], pairs())


def test_a_review_is_of_the_two_drafts_whichever_way_they_are_turned(work):
    reviews = Reviews.of_run(work)
    reviews.add(pair(1), "review", "keep")
    reviews.add(pair(2), "review", "flip")
    reviews.add(pair(3), "review", "drop")
    other = schemas.build([pair(n, turned=True) for n in (1, 2, 3)], "pairs")
    used = reviews_of(work, other)
    assert used["review"].tolist() == ["flip", "keep", "drop"]
    assert apply_reviews(other, used)["reviewed"]["chosen_id"].tolist() == ["a1", "b2"]


def align(work) -> str:
    """Store as finished what the reviews leave of the pairs, and what was aligned to it; return what was said."""
    work.step("reviewed", apply_reviews, pairs(), reviews_of(work, pairs()))
    work.step("teachers", as_it_is, work.read("reviewed"))
    return newer_than_alignment(work)


def test_reviews_newer_than_the_alignment_are_told_until_it_is_made_anew(work, capsys):
    reviews = Reviews.of_run(work, "Ann")
    store(work, pairs=pairs())
    reviews.add(pair(1), "review", "flip")
    assert newer_than_alignment(work) == ""
    assert align(work) == ""
    # Keeps, notes and pairs that are not formed here change nothing.
    reviews.add(pair(0), "review", "keep")
    reviews.add(pair(9), "review", "flip")
    reviews.add(pair(1), "note", "sure")
    assert newer_than_alignment(work) == ""
    reviews.add(pair(2), "review", "drop")
    assert "Of 1 pair people say something else now" in newer_than_alignment(work)
    reviews.add(pair(1), "review", "")
    told = newer_than_alignment(work)
    assert "Of 2 pairs people say" in told and told.endswith("workbench run run:reviewed --name reviewed-reviewed")
    start("reviewed")
    assert "Of 2 pairs people say" in " ".join(capsys.readouterr().out.split())
    assert align(work) == ""


def wait_until(true) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_button_aligns_again_beside_the_run_under_a_name_that_none_has(work, monkeypatch, capsys):
    begun, shown = [], []
    monkeypatch.setattr(session, "is_headless", lambda: False)
    monkeypatch.setattr("IPython.display.display", lambda what, *_, **given: shown.append(what))
    store(work, pairs=pairs())
    align(work)
    session.offer_again(work)
    assert not shown, "nothing is offered where nothing is newer"
    reviews = Reviews.of_run(work, "Ann")
    reviews.add(pair(1), "review", "flip")
    (work.path.parent / "reviewed-reviewed").mkdir()
    session.offer_again(work)
    button, told = shown[-1].children
    assert button.description == "Align again as reviewed-reviewed-again" and not begun
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr(session.subprocess, "run", lambda command, **given: begun.append(command) or done)
    button.click()
    wait_until(lambda: begun)
    assert begun == [[sys.executable, "-m", "workbench", "run", "run:reviewed", "--name", "reviewed-reviewed-again"]]
    assert button.disabled and "workbench watch reviewed-reviewed-again" in told.value


@pytest.mark.parametrize(
    ("dies", "said"),
    [
        ("import sys; sys.exit('a warning\\nworkbench: No <b>room</b>.')", "No &lt;b&gt;room&lt;/b&gt;."),
        ("import os; os._exit(3)", "ended without a word (status 3)"),
    ],
)
def test_a_run_that_the_button_cannot_begin_is_a_card_and_can_be_tried_again(work, monkeypatch, dies, said):
    shown, run = [], subprocess.run
    monkeypatch.setattr(session, "is_headless", lambda: False)
    monkeypatch.setattr("IPython.display.display", lambda what, *_, **given: shown.append(what))
    monkeypatch.setattr(session.subprocess, "run", lambda _, **given: run([sys.executable, "-c", dies], **given))
    store(work, pairs=pairs())
    align(work)
    Reviews.of_run(work, "Ann").add(pair(1), "review", "flip")
    session.offer_again(work)
    button, told = shown[-1].children
    button.click()
    wait_until(lambda: not button.disabled)
    assert 'role="alert"' in told.value and said in told.value and "warning" not in told.value


def test_opening_a_notebook_on_a_run_that_is_not_there_makes_nothing(runs):
    for recipe, name in (("", "nope"), ("arte-demo", "nope"), ("run:nope", "other")):
        with pytest.raises(RunError, match="There is no run 'nope' .*begin it in the first notebook of"):
            start(name, recipe)
    assert not runs.exists()
    assert start("mine", first="arte-demo").recipe.name == "arte-demo" and (runs / "mine" / "recipe.yaml").is_file()


def test_a_keep_or_a_note_computes_no_alignment_anew(work, capsys):
    reviews = Reviews.of_run(work, "Ann")
    reviews.add(pair(1), "review", "flip")
    align(work)
    reviews.add(pair(2), "review", "keep")
    reviews.add(pair(1), "note", "fine")
    capsys.readouterr()
    align(work)
    assert "stored" in capsys.readouterr().out and len(work.read("reviewed", "reviews")) == 2
    assert not list(work.path.glob("teachers.superseded-*")) and list(work.path.glob("reviewed.superseded-*"))


def test_a_review_changed_inside_its_file_is_noticed(path):
    reviews = Reviews(path, reviewer="Ann")
    reviews.add(pair(), "review", "flip", blind=True)
    reviews.add(pair(2), "note", "é")
    reviews.undo()
    assert len(reviews.events()) == 3
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER no_update")
        connection.execute("UPDATE reviews SET value = 'keep' WHERE seq = 1")
    connection.close()
    with pytest.raises(RunError, match=r"Review 1 in .*reviews\.sqlite is not what was written; put back a copy"):
        Reviews(path).events()


def test_reviews_of_an_earlier_workbench_are_read_and_added_to(path):
    Reviews(path).add(pair(), "review", "flip")
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE reviews DROP COLUMN checksum")
    connection.close()
    assert said(path) == ("flip", "")
    Reviews(path).add(pair(2), "review", "drop")
    assert said(path, 2) == ("drop", "") and [event.seq for event in Reviews(path).events()] == [1, 2]
