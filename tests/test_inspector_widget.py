import json
import threading

import pytest
from probed_run import form_pairs, write_run

from workbench.notebook.inspector import inspect
from workbench.notebook.inspector_widget import HERE, STATE, InspectorView


@pytest.fixture
def inspector(runs):
    return inspect(form_pairs(write_run()))


@pytest.fixture
def ask(inspector, monkeypatch):
    """Send a message as the page does; return the answer, which has to pass as JSON."""
    sent = []
    monkeypatch.setattr(InspectorView, "send", lambda self, message, buffers=None: sent.append(message))
    view = inspector.view

    def ask(do: str, **given) -> dict:
        before = len(sent)
        view._hear(view, {"id": "7", "do": do, "with": given}, [])
        (answer,) = sent[before:]
        assert answer.pop("to") == "7"
        return json.loads(json.dumps(answer))

    ask.sent = sent
    return ask


def test_the_page_learns_what_it_needs(ask, inspector):
    said = ask("hello")
    assert said["filters"] == {"student": ["ada", "bo"], "kind": ["rationale", "question"], "task": ["object_counting"]}
    assert said["pair"]["pair_id"] == inspector.pair["pair_id"] and said["counts"]["pairs"] == len(inspector.pairs)
    assert said["store"].endswith("reviews.sqlite") and said["can_ask_what_if"]
    assert set(said["state"]) == {*STATE, "queue", "sides"}


def test_no_text_is_in_the_state_that_notebooks_keep(ask, inspector):
    ask("hello")
    kept = json.dumps({name: str(value) for name, value in inspector.view.get_state().items()})
    for pair in inspector.pairs.to_dict("records"):
        assert pair["chosen"][:40] not in kept and pair["prompt"][-40:] not in kept
    assert len(kept) < 100_000


def test_all_listed_pairs_are_reviewed_at_once_and_taken_back_at_once(ask, inspector):
    inspector.flip()
    n = len(inspector.pairs[inspector.pairs["kind"] == "question"])
    assert ask("set", values={"kind": "question"})["counts"]["to_go"] == n > 1
    said = ask("bulk", value="drop")
    assert said["n"] == n and said["counts"]["drop"] == n and said["counts"]["to_go"] == 0
    assert ask("bulk", value="keep")["n"] == 0
    said = ask("undo", n=n)
    assert said["counts"]["drop"] == 0 and said["counts"]["flip"] == 1 and said["counts"]["to_go"] == n


def test_reviews_move_on_and_are_acknowledged(ask, inspector):
    first = inspector.pair["pair_id"]
    said = ask("review", pair_id=first, event_id="e1", side="right")
    assert said["saved"] == "e1" and inspector.said[0] == "flip" and said["state"]["at"] == 1
    # Sent again after the kernel was thought gone: the same word.
    said = ask("review", pair_id=first, event_id="e1", side="right", advance=False)
    assert len(inspector.reviews.events()) == 1 and said["state"]["at"] == 1
    said = ask("note", pair_id=first, event_id="e2", value="why")
    assert inspector.note_of(first) == "why" and said["state"]["at"] == 1
    assert ask("undo")["undone"] == first and ask("undo")["undone"] == first and ask("undo")["undone"] == ""
    assert inspector.said[0] == ""


def test_state_is_set_and_the_queue_is_a_state_too(ask, inspector):
    assert ask("set", values={"student": "bo", "search": "tally"})["counts"]["left"] == len(inspector.order)
    assert ask("queue", on=True)["state"]["queue"] and inspector.sort == "worth" and inspector.student == "bo"
    assert not ask("queue", on=False)["state"]["queue"] and inspector.review == ""
    assert ask("go", at=1)["state"]["at"] == 1 == inspector.at


def test_rows_come_in_pages_of_limited_size(ask, inspector, monkeypatch):
    assert [row["pair_id"] for row in ask("page", start=2, stop=5)["rows"]] == inspector.pairs["pair_id"][2:5].tolist()
    monkeypatch.setattr("workbench.notebook.inspector_widget.LARGEST_PAGE", 3)
    assert len(ask("page", start=0, stop=1_000_000)["rows"]) == 3


def test_what_if_answers_with_numbers_and_the_first_pairs_that_change(ask):
    said = ask("what_if", values={"min_gap": 0.4})
    assert said["settings"]["min_gap"] == 0.4 and said["own"]["min_gap"] == 0.0
    assert (
        said["summary"]["lost"]
        and said["rows"][0]["change"] == "lost"
        and said["facts"].startswith("7 pairs instead of 14")
    )


@pytest.mark.parametrize(
    ("do", "given", "words"),
    [
        ("set", {"values": {"at": 3}}, "cannot be set"),
        ("set", {"values": {"review": "maybe"}}, "review"),
        ("review", {"pair_id": "none", "event_id": "e", "value": "keep"}, "no such pair"),
        ("what_if", {"values": {"quantile": 3.0}}, "quantile"),
        ("explode", {}, "KeyError"),
        ("go", {}, "at"),
    ],
    ids=str,
)
def test_what_goes_wrong_is_an_answer_too(ask, inspector, do, given, words):
    assert words in ask(do, **given)["error"]
    assert not inspector.reviews.events()


def test_what_python_changes_is_told_to_the_page(ask, inspector):
    inspector.at = 3
    assert ask.sent[-1]["changed"] and ask.sent[-1]["state"]["at"] == 3
    before = len(ask.sent)
    ask("go", at=4)
    assert len(ask.sent) == before + 1


def test_messages_from_another_thread_are_answered(ask, inspector):
    worker = threading.Thread(
        target=ask, args=("review",), kwargs={"pair_id": inspector.pair["pair_id"], "event_id": "e", "value": "drop"}
    )
    worker.start()
    worker.join()
    assert inspector.said[0] == "drop"


def test_the_script_never_makes_markup_of_text():
    script = (HERE / "inspector.js").read_text(encoding="utf-8")
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser"):
        assert way not in script
