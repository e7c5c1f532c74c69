import json
import random
import sqlite3
import time
from collections import Counter

import pytest
from local_server import FAULTS, LocalServer
from test_loading import tiny_folder

from workbench.models.engine import KIND, REFUSED, Completion, Decoding, Request
from workbench.models.openai_engine import KEY_VARIABLE, URL_VARIABLE, Budget, OpenAIEngine
from workbench.runs.cache import Cache
from workbench.runs.errors import ModelError

GREEDY = Decoding(max_new_tokens=8)
KEY = "sk-planted-7d41f0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("models") / "student"))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in (KEY_VARIABLE, URL_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def items(tmp_path):
    return Cache(tmp_path / "items.sqlite")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    for name in ("INITIAL_RETRY_DELAY", "MAX_RETRY_DELAY"):
        monkeypatch.setattr(f"openai._base_client.{name}", 0.02)


def told(body: dict) -> str:
    """Return an answer that belongs to this prompt and no other."""
    prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    return f"answer to {prompt}"


def engine(server, ref="m", **settings) -> OpenAIEngine:
    quick = {"endpoint": "chat", "timeout_s": 20, "model_name": "m", "max_concurrency": 8}
    return OpenAIEngine(ref, server.url, **quick | settings)


def asked(n: int) -> list[Request]:
    return [Request(f"question {i}") for i in range(n)]


def kept(items, kind=KIND) -> list[dict]:
    with sqlite3.connect(items.path) as file:
        return [json.loads(row[0]) for row in file.execute("SELECT payload FROM items WHERE kind = ?", [kind])]


def test_answers_come_in_the_order_asked_and_are_kept_with_model_and_date(items):
    with LocalServer(told) as server:
        found = engine(server).generate([*asked(30), *asked(5)], GREEDY, items=items)
        assert [one.text for one in found] == [f"answer to question {i % 30}" for i in range(35)]
        assert len(server.prompts) == 30 and found[0] == Completion("answer to question 0", 5, True)
        assert engine(server).generate(asked(30), GREEDY, items=items) == found[:30] and len(server.prompts) == 30
    assert {row["model"] for row in kept(items)} == {"m-2026"} and all(row["date"][:2] == "20" for row in kept(items))


def test_completions_get_our_rendered_prompt_and_chat_gets_the_users_text(folder):
    bodies = []
    with LocalServer(lambda body: bodies.append(body) or "w1") as server:
        for endpoint in ("completions", "chat"):
            subject = engine(server, folder, endpoint=endpoint)
            subject.generate([Request(subject.render("w1 w2"))], Decoding(4))
    assert bodies[0]["prompt"] and "messages" not in bodies[0]
    assert bodies[1]["messages"] == [{"role": "user", "content": "w1 w2"}]


@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_loses_or_doubles_a_row(fault, items, folder):
    # The first ten tries fail, in a burst.
    with LocalServer(told, lambda n, prompt: fault if n < 10 else "") as server:
        # A busy machine must not look like a server that hangs.
        subject = engine(server, folder, endpoint="completions", timeout_s=3 if fault == "hang" else 20)
        completions = subject.generate(asked(24), GREEDY, items=items)
        assert [one.text for one in completions] == [f"answer to question {i}" for i in range(24)]
        assert Counter(server.answered) == Counter(request.prompt for request in asked(24))
        assert len(server.prompts) == 34
    assert len(kept(items)) == 24


def test_a_storm_of_every_fault_loses_and_doubles_nothing(items, folder):
    rng = random.Random(5)
    with LocalServer(told, lambda n, prompt: rng.choice([*FAULTS, *[""] * 8])) as server:
        subject = engine(server, folder, endpoint="completions", max_concurrency=16, max_retries=39, timeout_s=3)
        found = subject.generate(asked(60), GREEDY, items=items)
    assert [one.text for one in found] == [f"answer to question {i}" for i in range(60)]
    assert len(kept(items)) == 60 and len(server.prompts) > 90


def test_a_server_that_stays_ill_ends_the_call_and_keeps_what_it_answered(items):
    with LocalServer(told, lambda n, prompt: "500" if prompt.endswith("7") else "") as server:
        with pytest.raises(
            ModelError, match=r"did not answer in 3 tries \(the last: Error code: 500 - busy.*all answers so far"
        ):
            engine(server, max_concurrency=1, max_retries=2).generate(asked(20), GREEDY, items=items)
        before = len(kept(items))
        assert 0 < before < 20
        server.fault = lambda n, prompt: ""
        n_asked = len(server.prompts)
        found = engine(server).generate(asked(20), GREEDY, items=items)
        assert [one.text for one in found] == [f"answer to question {i}" for i in range(20)]
        assert len(server.prompts) - n_asked == 20 - before


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_refusal_is_recorded_and_asked_again_next_time(items, folder, endpoint):
    with LocalServer(told, lambda n, prompt: "refusal" if n == 0 else "") as server:
        subject = engine(server, folder, endpoint=endpoint, max_concurrency=1)
        first = subject.generate(asked(3), GREEDY, items=items)
        assert [one.text for one in first] == ["", "answer to question 1", "answer to question 2"]
        assert len(kept(items)) == 2 and [row["refusal"] for row in kept(items, REFUSED)] != [""]
        again = subject.generate(asked(3), GREEDY, items=items)
        assert again[0].text == "answer to question 0" and len(server.prompts) == 4


def test_a_cut_answer_counts_as_not_finished():
    with LocalServer(lambda body: ("too long", "length")) as server:
        assert not engine(server).generate(asked(1), GREEDY)[0].finished


def test_the_budget_stops_cleanly_and_goes_on_when_raised(items):
    # The server counts 2 tokens in and 5 out for each.
    with LocalServer(told) as server:
        budget = Budget("loop/teacher", max_tokens=200)
        with pytest.raises(ModelError, match="200 tokens leaves no room .* run the same command again"):
            engine(server, budget=budget, max_concurrency=2).generate(asked(40), GREEDY, items=items)
        n_answered = len(kept(items))
        assert n_answered == len(server.prompts) and 200 <= n_answered * 7 < 200 + 2 * 7
        # A process of its own knows what was spent before.
        with pytest.raises(ModelError, match=rf"{7 * n_answered} tokens are spent by loop/teacher and"):
            engine(server, budget=budget).generate(asked(40), GREEDY, items=Cache(items.path))
        assert len(server.prompts) == n_answered
        raised = Budget("loop/teacher", max_tokens=2000)
        found = engine(server, budget=raised).generate(asked(40), GREEDY, items=Cache(items.path))
        assert [one.text for one in found] == [f"answer to question {i}" for i in range(40)]
        assert len(server.prompts) == 40
        assert kept(items, "spending") == [{"account": "loop/teacher", "n_tokens": 280}]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nothing_is_sent_elsewhere_than_to_the_server_named(status):
    with LocalServer(told) as other, LocalServer(told, lambda n, prompt: f"to {status} {other.url}") as server:
        with pytest.raises(
            ModelError, match=rf"refuses a request \(Error code: {status}.*redirects\? .*recipe's engines"
        ):
            engine(server).generate(asked(1), GREEDY)
        assert other.prompts == []


def test_nothing_is_sent_or_tried_again_once_the_work_is_interrupted(items):
    with LocalServer(told, lambda n, prompt: "500" if n else "") as server:
        subject = engine(server, max_concurrency=2, max_retries=1000)
        with pytest.raises(KeyboardInterrupt):
            subject.generate(
                asked(9), GREEDY, items=items, progress=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
            )
        time.sleep(0.2)
        n_asked = len(server.prompts)
        time.sleep(0.5)
        assert len(server.prompts) == n_asked and len(kept(items)) == 1
        server.fault = lambda n, prompt: ""
        assert len(subject.generate(asked(9), GREEDY, items=items)) == 9


def test_a_change_of_anything_that_matters_is_asked_anew(items, folder):
    with LocalServer(told, served=("m", "n")) as server, LocalServer(told) as other:
        base = engine(server)
        base.generate(asked(1), GREEDY, items=items)
        for changed in (
            engine(server, model_name="n"),
            engine(server, folder, endpoint="completions"),
            engine(other),
        ):
            n = len(kept(items))
            changed.generate(asked(1), GREEDY, items=items)
            assert len(kept(items)) == n + 1
        n = len(kept(items))
        base.generate([Request("question 0", "a"), Request("question 0", "b")], Decoding(8, 0.5), 1, items)
        assert len(kept(items)) == n + 2


def test_errors_before_any_work(folder, monkeypatch):
    with LocalServer(told, key=KEY, limit=12) as server:
        monkeypatch.setenv(KEY_VARIABLE, "sk-wrong-1234")
        with pytest.raises(ModelError, match="refuses the key in OPENAI_API_KEY") as error:
            engine(server)
        assert "sk-wrong-1234" not in str(error.value) and "[key]" in str(error.value)
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        with pytest.raises(ModelError, match="serves m, not 'x'"):
            engine(server, model_name="x")
        with pytest.raises(ModelError, match="takes 1 to 4"):
            engine(server, folder, endpoint="completions").generate([Request("w1 w2 w3 w4 w5")], GREEDY)
        assert server.prompts == []
        server.fault = lambda n, prompt: "400"
        with pytest.raises(ModelError, match="refuses a request .*maximum context length"):
            engine(server).generate(asked(1), GREEDY)
        gone = server.url
    with pytest.raises(ModelError, match="There is no server at http://127"):
        OpenAIEngine("m", gone, endpoint="chat")
    with pytest.raises(ModelError, match="set OPENAI_BASE_URL or"):
        OpenAIEngine("m", endpoint="chat")
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(ModelError, match="needs a key and OPENAI_API_KEY is not set"):
        OpenAIEngine("m", "https://models.example.org/v1", endpoint="chat")


@pytest.mark.parametrize("fault", ["error", "big", "drip"])
def test_a_fault_that_stays_is_said_in_the_servers_words_or_ours(fault):
    says = {
        "error": "the server says: .*being moved",
        "big": "more than 4,000,000 bytes",
        "drip": "did not end in time",
    }
    with LocalServer(told, lambda n, prompt: fault) as server:
        before = time.monotonic()
        with pytest.raises(ModelError, match=rf"did not answer in 2 tries \(the last: .*{says[fault]}"):
            engine(server, max_retries=1, timeout_s=2 if fault == "drip" else 20).generate(asked(1), GREEDY)
        assert fault != "drip" or time.monotonic() - before < 20, "it would be 30 s and more, were each byte waited for"


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r", " "])
def test_a_key_with_the_line_end_of_its_file_is_sent_without(monkeypatch, line_end):
    monkeypatch.setenv(KEY_VARIABLE, KEY + line_end)
    with LocalServer(told, key=KEY) as server:
        assert engine(server).generate(asked(1), GREEDY)[0].text == "answer to question 0"


@pytest.mark.parametrize("key", ["sk-a b", "sk-a\rb", "sk-\x1b[2J", "sk-é"])
def test_what_is_no_key_is_refused_and_not_said(monkeypatch, key):
    monkeypatch.setenv(KEY_VARIABLE, key)
    with LocalServer(told) as server, pytest.raises(ModelError, match="that no key has; export it again") as error:
        engine(server)
    assert "sk-" not in str(error.value)


def test_a_key_that_the_server_repeats_is_stored_nowhere(items, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with LocalServer(lambda body: f"your key is {KEY}", served=("m", KEY)) as server:
        assert engine(server).generate(asked(1), GREEDY, items=items)[0].text == "your key is [key]"
        with pytest.raises(ModelError, match=r"serves \[key\], m, not 'x'"):
            engine(server, model_name="x")
    items.close()
    assert KEY.encode() not in items.path.read_bytes()


def test_no_key_goes_over_the_net_in_clear(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with pytest.raises(ModelError, match=r"in clear; take https, or set insecure: true") as error:
        OpenAIEngine("m", "http://127.0.0.2:1/v1", endpoint="chat")
    assert KEY not in str(error.value)
    with pytest.raises(ModelError, match="There is no server at"):
        OpenAIEngine("m", "http://127.0.0.2:1/v1", endpoint="chat", insecure=True)


ODD = {
    "numbers for ids": {"data": [{"id": 3}, {"id": "m"}]},
    "no ids": {"data": [3, None]},
    "a list": [1],
}


@pytest.mark.parametrize("listed", ODD.values(), ids=ODD)
def test_a_server_that_lists_its_models_oddly_is_asked_all_the_same(monkeypatch, listed):
    from local_server import _Handler

    monkeypatch.setattr(_Handler, "do_GET", lambda self: self._send(200, json.dumps(listed).encode()))
    with LocalServer(told) as server:
        assert engine(server).generate(asked(1), GREEDY)[0].finished


@pytest.mark.parametrize(
    ("message", "reason", "text", "finished"),
    [
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "stop", "ab", True),
        ({"content": "a", "reasoning_content": "b"}, "stop", "a", True),
        ({"content": ""}, "stop", "", True),
    ],
)
def test_answers_in_other_forms_are_read(message, reason, text, finished):
    with LocalServer(told) as server:
        subject = engine(server)
    body = {"choices": [{"message": message, "finish_reason": reason}], "usage": [3]}
    assert subject._read(body, 5, 8) == (subject._read(body, 5, 8)[0], 13)
    assert subject._read(body)[0].completion == Completion(text, 0, finished)


def test_a_model_that_spends_all_tokens_on_reasoning_has_a_cut_answer_and_says_what_to_do():
    with LocalServer(told) as server:
        subject = engine(server)
    with pytest.warns(UserWarning, match="used up max_new_tokens .* raise max_new_tokens"):
        found = subject._read({"choices": [{"message": {"content": None}, "finish_reason": "length"}]}, 5, 8)
    assert found[0].completion == Completion("", 8, False) and not found[0].refused


def test_a_reasoning_model_is_asked_as_it_wants(items):
    bodies = []
    with LocalServer(lambda body: bodies.append(body) or "w1") as server:
        engine(server).generate(asked(1), GREEDY, items=items)
        engine(server, reasoning=True).generate(asked(1), GREEDY, items=items)
    first, second = bodies
    assert (first["max_tokens"], first["temperature"]) == (8, 0.0)
    assert set(second) == {"messages", "model", "max_completion_tokens"}


def test_each_account_goes_on_where_it_was(items):
    Budget("a", n_tokens=12).save(items)
    Budget("b").save(items)
    again, other = Budget("a"), Budget("b")
    again.load(items)
    other.load(items)
    assert (again.n_tokens, other.n_tokens) == (12, 0)


def test_tokens_that_a_server_does_not_tell_are_counted_at_the_most():
    with LocalServer(told) as server:
        subject = engine(server)
        answer = {"choices": [{"text": "a", "finish_reason": "stop"}]}
        assert subject._read(answer, 11, 8)[1] == 19
        assert subject._read(answer | {"usage": {"prompt_tokens": 2, "completion_tokens": -1}}, 11, 8)[1] == 10
