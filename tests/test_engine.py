import pytest
from test_loading import tiny_folder

from workbench.models.engine import (
    Completion,
    Decoding,
    Engine,
    Finished,
    Request,
    TokenizedRequest,
    prompt_ids,
)
from workbench.models.loading import load_tokenizer
from workbench.runs.cache import Cache
from workbench.runs.errors import ModelError

GREEDY = Decoding(max_new_tokens=4)


class Echo(Engine):
    """An engine that answers with the prompt in capitals, two at a time, and dies where it is told."""

    name = "echo"

    def __init__(self, dies_at: str = "") -> None:
        self.asked, self.dies_at = [], dies_at

    def identity(self) -> list:
        return [self.name]

    def _rows(self, requests, decoding):
        return {key: TokenizedRequest(key, request, [1]) for key, request in requests.items()}

    def _batches(self, rows):
        return [rows[at : at + 2] for at in range(0, len(rows), 2)]

    def _complete(self, batch, decoding, seed):
        prompts = [row.request.prompt for row in batch]
        if self.dies_at in prompts:
            raise ModelError("died")
        self.asked += prompts
        return [Completion(prompt.upper(), 1, True) for prompt in prompts]


@pytest.fixture
def items(tmp_path):
    return Cache(tmp_path / "items.sqlite")


def test_what_was_finished_before_an_end_is_kept_and_not_asked_again(items):
    requests = [Request(letter) for letter in "abcdef"]
    with pytest.raises(ModelError):
        Echo(dies_at="e").generate(requests, GREEDY, items=items)
    again, seen = Echo(), []
    found = again.generate(requests, GREEDY, items=items, progress=lambda n, of: seen.append((n, of)))
    assert "".join(one.text for one in found) == "ABCDEF" and again.asked == ["e", "f"]
    assert seen == [(2, 6), (4, 6), (6, 6)]


def test_notes_are_stored_beside_a_completion_and_not_given_back(items):
    class Noting(Echo):
        def _finish(self, rows, done, decoding, seed):
            yield {key: Finished(Completion("x", 1, True), {"model": "m"}) for key in rows}

    first = Noting().generate([Request("a")], GREEDY, items=items)
    assert Noting().generate([Request("a")], GREEDY, items=items) == first == [Completion("x", 1, True)]


def test_sampling_without_a_stream_is_refused():
    with pytest.raises(ValueError, match="needs a stream"):
        Echo().generate([Request("a")], Decoding(4, temperature=1.0))


@pytest.mark.parametrize(("n", "fits"), [(0, False), (1, True), (6, True), (7, False)])
def test_a_prompt_must_hold_something_and_leave_room(n, fits, tmp_path):
    engine = Echo()
    engine.tokenizer, engine.ends = load_tokenizer(tiny_folder(tmp_path / "m")), []
    engine.model_name, engine.limit = "m", 10
    requests = {"a": Request(" ".join(["w1"] * n))}
    if fits:
        assert len(Engine._rows(engine, requests, GREEDY)["a"].ids) == n
    else:
        with pytest.raises(ModelError, match="takes 1 to 6"):
            Engine._rows(engine, requests, GREEDY)


def test_a_token_that_closes_a_text_is_not_part_of_a_prompt(tmp_path):
    tokenizer = load_tokenizer(tiny_folder(tmp_path / "m"))
    ids = tokenizer("w1 w2")["input_ids"]
    assert prompt_ids(tokenizer, ["w1 w2"], []) == [ids]
    assert prompt_ids(tokenizer, ["w1 w2"], [tokenizer("a")["input_ids"][-1]]) == [ids[:-1]]
