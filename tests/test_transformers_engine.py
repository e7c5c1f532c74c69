import hashlib
import inspect
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from test_loading import TEMPLATE, WORDS, tiny_folder
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from workbench.models import engine as engine_module
from workbench.models import prefix_cache, transformers_engine
from workbench.models.engine import Completion, Decoding, Request
from workbench.models.loading import load, precision
from workbench.models.transformers_engine import NamedSampler, TransformersEngine
from workbench.runs.cache import Cache
from workbench.runs.errors import ModelError
from workbench.runs.recipe_parts import Prompts

GREEDY = Decoding(max_new_tokens=40)
SAMPLED = Decoding(max_new_tokens=24, temperature=0.9, top_p=0.95)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("models") / "student")


@pytest.fixture(scope="module")
def student(folder):
    return load(folder, device="cpu")


@pytest.fixture
def items(tmp_path):
    return Cache(tmp_path / "items.sqlite")


def probes(n_drafts: int = 5, n_questions: int = 6, seed: int = 0) -> list[Request]:
    rng = random.Random(seed)

    def words(low, high):
        return " ".join(rng.choices(WORDS[6:], k=rng.randint(low, high)))

    questions = [words(2, 9) for _ in range(n_questions)]
    prefixes = [words(12, 30) + " " for _ in range(n_drafts)]
    return [Request(p + q, f"{i}/{j}", p) for i, p in enumerate(prefixes) for j, q in enumerate(questions)]


def engine(student, **settings) -> TransformersEngine:
    return TransformersEngine(student, batch_size=settings.pop("batch_size", 16), **settings)


@torch.inference_mode()
def one_by_one(student, requests, decoding) -> list[Completion]:
    completions = []
    for request in requests:
        ids = torch.tensor([student.tokenizer(request.prompt)["input_ids"]])
        output = student.model.generate(ids, max_new_tokens=decoding.max_new_tokens, do_sample=False)[0, ids.shape[1] :]
        text = student.tokenizer.decode(output, skip_special_tokens=True)
        completions.append(Completion(text, len(output), bool(output[-1] == 2)))
    return completions


def test_greedy_is_what_generate_writes_one_at_a_time(student):
    requests = probes()
    completions = engine(student).generate(requests, GREEDY)
    assert completions == one_by_one(student, requests, GREEDY)
    # Else neither ending by itself nor running into the limit, nor rows leaving early, would have been tested.
    assert {completion.finished for completion in completions} == {True, False}
    assert len({completion.n_tokens for completion in completions}) > 5


def test_sharing_prefixes_changes_no_answer_and_computes_less(student, monkeypatch):
    requests, widths = probes(), []
    started = TransformersEngine._start

    def start(self, rows, n_new):
        ids, mask, cache = started(self, rows, n_new)
        widths.append((ids.shape[1], cache.get_seq_length()))
        return ids, mask, cache

    monkeypatch.setattr(TransformersEngine, "_start", start)
    shared = engine(student).generate(requests, GREEDY)
    assert all(cached > 0 for _, cached in widths)
    widths.clear()
    assert engine(student, share_prefixes=False).generate(requests, GREEDY) == shared
    assert all(cached == 0 for _, cached in widths)
    # Questions of their own share nothing, and so do prefixes too short to pay.
    widths.clear()
    engine(student).generate([replace(r, prefix="") for r in requests], GREEDY)
    engine(student).generate([replace(r, prefix=r.prompt.split()[0] + " ") for r in requests], GREEDY)
    assert all(cached == 0 for _, cached in widths)


def test_a_prefix_whose_tokens_do_not_begin_the_prompt_is_not_shared(student):
    characters = Tokenizer(models.BPE({"<eos>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=characters, eos_token="<eos>")
    merging = engine(replace(student, tokenizer=tokenizer))
    requests = {"1": Request("aaab", prefix="aaa"), "2": Request("aaaa", prefix="aaa"), "3": Request("aa", prefix="aa")}
    assert [row.n_shared for row in merging._rows(requests, GREEDY).values()] == [0, 3, 0]


def test_sampling_depends_on_nothing_but_seed_and_stream(student):
    requests = probes()
    completions = engine(student).generate(requests, SAMPLED, seed=3)
    order = np.random.default_rng(0).permutation(len(requests))
    shuffled = engine(student, batch_size=7).generate([requests[at] for at in order], SAMPLED, seed=3)
    assert [completions[at] for at in order] == shuffled
    assert engine(student, batch_size=1).generate(requests[:4], SAMPLED, seed=3) == completions[:4]
    assert engine(student).generate(requests, SAMPLED, seed=4) != completions
    renamed = [replace(request, stream=request.stream + "'") for request in requests]
    assert engine(student).generate(renamed, SAMPLED, seed=3) != completions


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7)])
def test_sampled_tokens_follow_the_model(tmp_path, temperature, top_p):
    mild = load(tiny_folder(tmp_path / "mild", initializer_range=0.06), device="cpu")
    prompt, n = "w1 w2 w3", 3000
    with torch.inference_mode():
        logits = mild.model(torch.tensor([mild.tokenizer(prompt)["input_ids"]])).logits[0, -1].double()
    p = torch.softmax(logits / temperature, 0).numpy()
    kept = np.zeros(len(p), bool)
    ranked = np.argsort(-p)
    kept[ranked[: int(np.searchsorted(np.cumsum(p[ranked]), top_p)) + 1]] = True
    p = np.where(kept, p, 0) / p[kept].sum()
    requests = [Request(prompt, f"draw {at}") for at in range(n)]
    decoding = Decoding(1, temperature, top_p)
    completions = TransformersEngine(mild, batch_size=1000).generate(requests, decoding, seed=5)
    texts = [completion.text for completion in completions]
    # Special tokens all read as "", so they are counted together.
    expected = {}
    for token, share in enumerate(p):
        text = mild.tokenizer.decode([token], skip_special_tokens=True)
        expected[text] = expected.get(text, 0) + n * share
    assert set(texts) <= {text for text in expected if expected[text] > 0}
    counts = {text: texts.count(text) for text in expected if expected[text] > 0}
    assert stats.chisquare(list(counts.values()), [expected[text] for text in counts]).pvalue > 1e-3


def test_the_sampler_inverts_the_cumulative_distribution():
    scores = torch.log(torch.tensor([[0.5, 0.2, 0.3]])).repeat(5, 1)
    uniforms = torch.tensor([[0.0], [0.49], [0.51], [0.71], [0.999999]], dtype=torch.float64)
    assert NamedSampler(uniforms, 1.0, 1.0)(None, scores).argmax(-1).tolist() == [0, 0, 1, 2, 2]
    # top_p 0.6 keeps 0.5 and 0.3, the fewest that reach it; token 1 falls out of the middle.
    assert NamedSampler(uniforms, 1.0, 0.6)(None, scores).argmax(-1).tolist() == [0, 0, 0, 2, 2]


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED])
def test_a_killed_call_goes_on_with_the_same_result(student, items, tmp_path, monkeypatch, decoding):
    requests, subject, other, calls = probes(), engine(student, batch_size=8), Cache(tmp_path / "other.sqlite"), []
    keys = [subject._key(request, decoding, 1) for request in requests]
    unbroken = subject.generate(requests, decoding, seed=1, items=other)

    def killed(done, total):
        calls.append((done, total))
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        subject.generate(requests, decoding, seed=1, items=items, progress=killed)
    assert calls == [(8, 30), (16, 30)] and len(items.get_many(engine_module.KIND, keys)) == 16
    computed = count_batches(monkeypatch)
    assert subject.generate(requests, decoding, seed=1, items=items) == unbroken
    # The list of 30 is cut 8, 8, 8, 6 again, whatever is done already.
    assert computed == [8, 6]
    assert items.get_many(engine_module.KIND, keys) == other.get_many(engine_module.KIND, keys)
    computed.clear()
    assert subject.generate(requests, decoding, seed=1, items=items) == unbroken and computed == []


def test_what_items_hold_is_never_changed(student, items):
    requests = probes()
    subject = engine(student)
    held = {"text": "as it was", "n_tokens": 3, "finished": True}
    items.put_many(engine_module.KIND, {subject._key(requests[3], GREEDY, 0): held})
    completions = subject.generate(requests, GREEDY, items=items)
    assert completions[3] == Completion(**held)
    assert completions[4:] == subject.generate(requests, GREEDY)[4:]
    assert subject.generate(requests, GREEDY, items=items) == completions


def count_batches(monkeypatch) -> list[int]:
    sizes = []
    complete = TransformersEngine._complete

    def counted(self, rows, *args):
        sizes.append(len(rows))
        return complete(self, rows, *args)

    monkeypatch.setattr(TransformersEngine, "_complete", counted)
    return sizes


def test_a_change_of_anything_that_matters_misses_the_items(folder, items, tmp_path, monkeypatch):
    computed = count_batches(monkeypatch)
    work = tiny_folder(tmp_path / "work")
    tokenizer = (work / "tokenizer.json").read_text() + "\n"
    request, decoding = Request("w1 w2", "a"), replace(SAMPLED, max_new_tokens=8)

    def ask(request=request, decoding=decoding, seed=0, dtype="float32"):
        computed.clear()
        TransformersEngine(work, dtype, "cpu").generate([request], decoding, seed, items)
        return bool(computed)

    assert ask() and not ask()
    changes = {
        "prompt": lambda: ask(request=replace(request, prompt="w1 w3")),
        "stream": lambda: ask(request=replace(request, stream="b")),
        "seed": lambda: ask(seed=1),
        "temperature": lambda: ask(decoding=replace(decoding, temperature=0.8)),
        "top_p": lambda: ask(decoding=replace(decoding, top_p=0.9)),
        "max_new_tokens": lambda: ask(decoding=replace(decoding, max_new_tokens=9)),
        "dtype": lambda: ask(dtype="bfloat16"),
        "version": lambda: monkeypatch.setattr(transformers_engine, "ENGINE_VERSION", -1) or ask(),
        "template": lambda: (work / "chat_template.jinja").write_text(TEMPLATE) and ask(),
        "tokenizer": lambda: (work / "tokenizer.json").write_text(tokenizer) and ask(),
        "weights": lambda: tiny_folder(work, seed=1) and ask(),
    }
    for name, change in changes.items():
        assert change(), f"a change of {name} was answered from the items"
        assert not change(), f"the same {name} again was computed again"
    # Where nothing is drawn, stream and seed make no difference; nor does the prefix ever.
    greedy = replace(decoding, temperature=0.0)
    assert ask(decoding=greedy)
    assert not ask(decoding=greedy, request=replace(request, stream="c", prefix="w1 "), seed=9)


def test_a_loaded_model_keeps_its_own_fingerprint(student, items, monkeypatch):
    computed = count_batches(monkeypatch)
    for subject in (student, replace(student, fingerprint="just trained")):
        TransformersEngine(subject).generate([Request("w1")], GREEDY, items=items)
    assert len(computed) == 2


def test_requests_alike_are_computed_once(student, monkeypatch):
    computed = count_batches(monkeypatch)
    a, b = Request("w1 w2"), Request("w3")
    first, second, third = engine(student).generate([a, b, a], GREEDY)
    assert first == third != second and computed == [2]
    assert engine(student).generate([], GREEDY) == []


def test_settings_in_the_folder_do_not_change_the_decoding(student):
    requests = probes(2, 3)
    expected = engine(student).generate(requests, GREEDY)
    before = student.model.generation_config
    meddling = type(before)(repetition_penalty=3.0, num_beams=2, do_sample=True, temperature=0.1, eos_token_id=[2])
    try:
        student.model.generation_config = meddling
        assert engine(student).generate(requests, GREEDY) == expected
        assert student.model.generation_config is meddling
    finally:
        student.model.generation_config = before


def test_a_model_with_sliding_windows_answers_too(tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    folder = tiny_folder(tmp_path / "sliding")
    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, sliding_window=8)
    config = MistralConfig(**shape, num_key_value_heads=2, vocab_size=len(WORDS), initializer_range=0.4, pad_token_id=0)
    MistralForCausalLM(config).save_pretrained(folder)
    sliding = load(folder, device="cpu")
    requests = probes(2, 4)
    assert engine(sliding).generate(requests, GREEDY) == one_by_one(sliding, requests, GREEDY)


def test_a_prompt_too_long_is_refused_before_any_work(student, items, monkeypatch):
    computed = count_batches(monkeypatch)
    requests = [Request("w1"), Request("w2 " * 57, stream="probe d3/q7")]
    with pytest.raises(
        ModelError, match=r"Request probe d3/q7 has a prompt of 57 tokens; .* takes 1 to 56, so shorten"
    ):
        engine(student).generate(requests, GREEDY, items=items)
    with pytest.raises(ModelError, match=r"Request ''... has a prompt of 0 tokens"):
        engine(student).generate([Request("")], GREEDY)
    assert computed == []


def test_impossible_settings_are_refused(student):
    for wrong in (dict(max_new_tokens=0), dict(temperature=-1), dict(temperature=float("nan")), dict(top_p=0)):
        with pytest.raises(ValueError, match="Decoding needs"):
            Decoding(**(dict(max_new_tokens=1) | wrong))
    with pytest.raises(ValueError, match="needs a stream"):
        engine(student).generate([Request("w1")], SAMPLED)


def test_the_version_is_raised_with_the_code():
    parts = (NamedSampler, TransformersEngine, prefix_cache, engine_module.prompt_ids, engine_module.end_tokens)
    code = "".join(inspect.getsource(part) for part in parts)
    digest = hashlib.sha256(code.encode()).hexdigest()[:16]
    assert (transformers_engine.ENGINE_VERSION, digest) == (1, "5d52829ceac7793e"), (
        "transformers_engine.py or prefix_cache.py changed: raise ENGINE_VERSION if completions can change, "
        "and write the new digest here."
    )


def test_a_stop_string_ends_a_text_as_cutting_it_there_would(student, items):
    requests = probes()
    whole = engine(student).generate(requests, SAMPLED)
    stop = (next(word for word in WORDS[6:] if 5 < sum(f" {word} " in one.text for one in whole) < len(whole)),)
    stopped = engine(student).generate(requests, replace(SAMPLED, stop=stop), 0, items)
    for one, cut in zip(whole, stopped, strict=True):
        before, found, _ = one.text.partition(stop[0])
        assert cut.text == before + found and cut.finished == (bool(found) or one.finished)
        assert cut.n_tokens <= one.n_tokens
    assert sum(cut.n_tokens for cut in stopped) < sum(one.n_tokens for one in whole)
    assert engine(student).generate(requests, replace(SAMPLED, stop=stop), 0, items) == stopped


def test_an_engine_stops_and_samples_as_its_recipe_says_where_the_decoding_does_not(student):
    asked, request = engine(student), probes()[:4]
    asked.prompts = Prompts(stop=[" "], top_p=0.5)
    own = replace(SAMPLED, top_p=0.5, stop=(" ",))
    assert asked.generate(request, replace(SAMPLED, top_p=1.0)) == engine(student).generate(request, own)


def test_the_precision_auto_is_one_of_two_and_stays():
    assert precision("auto") in ("float32", "bfloat16") and precision("auto") == precision("auto")
    assert precision("bfloat16") == "bfloat16"
