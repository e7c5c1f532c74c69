import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_loading import WORDS, tiny_folder
from transformers import MistralConfig, MistralForCausalLM

from workbench.models import packed_losses
from workbench.models.loading import load
from workbench.models.packed_losses import Text, Texts, pack, single, token_losses


def some_texts(n: int = 12, seed: int = 0) -> list[Text]:
    rng = random.Random(seed)

    def words(low, high):
        return rng.choices(range(6, len(WORDS)), k=rng.randint(low, high))

    heads = [words(5, 9) for _ in range(3)]
    return [Text(heads[at % 3] + words(1, 6), words(1, 8)) for at in range(n)]


def one_by_one(model, texts: list[Text]) -> torch.Tensor:
    """Return each text's loss by the plain definition, shape (texts,)."""
    losses = []
    for text in texts:
        with torch.inference_mode():
            logits = model(torch.tensor([text.prompt + text.completion])).logits[0].double()
        places = range(len(text.prompt) - 1, len(text) - 1)
        log_p = torch.log_softmax(logits, -1)
        losses.append(-sum(log_p[at, token] for at, token in zip(places, text.completion, strict=True)))
    return torch.stack(losses)


@pytest.fixture(scope="module", params=[4, 2], ids=["all heads", "grouped heads"])
def model(request, tmp_path_factory):
    folder = tiny_folder(tmp_path_factory.mktemp("models") / "student", num_key_value_heads=request.param)
    return load(folder, device="cpu").model


def test_packed_losses_are_those_of_the_texts_one_by_one(model, monkeypatch):
    texts = some_texts()
    for pack_tokens in (30, 10_000):
        monkeypatch.setattr(packed_losses, "PACK_TOKENS", pack_tokens)
        packed = Texts(model, texts)
        assert all(row.parts for row in packed.packs)
        torch.testing.assert_close(packed.losses(), one_by_one(model, texts), rtol=1e-5, atol=1e-5)
    assert model.config._attn_implementation != packed_losses.PACKED


def test_the_order_of_texts_changes_no_loss(model):
    texts = some_texts()
    assert torch.equal(Texts(model, texts[::-1]).losses().flip(0), Texts(model, texts).losses())


def test_losses_follow_the_weights(model):
    texts = Texts(model, some_texts(4))
    before = texts.losses()
    head = model.lm_head.weight
    kept = head.detach().clone()
    with torch.no_grad():
        head.mul_(0.5)
    try:
        torch.testing.assert_close(texts.losses(), one_by_one(model, texts.texts), rtol=1e-5, atol=1e-5)
        assert (texts.losses() - before).abs().min() > 1e-3
    finally:
        head.data = kept


def test_a_single_row_has_the_gradient_of_the_plain_loss(model):
    (text,) = some_texts(1)
    model.zero_grad()
    token_losses(model, single(text, model.device)).mean().backward()
    found = model.lm_head.weight.grad.clone()
    model.zero_grad()
    labels = torch.tensor([[-100] * len(text.prompt) + text.completion])
    model(torch.tensor([text.prompt + text.completion]), labels=labels).loss.backward()
    torch.testing.assert_close(found, model.lm_head.weight.grad, rtol=1e-4, atol=1e-6)


def test_layers_that_see_only_a_window_are_not_packed(tmp_path):
    folder = tiny_folder(tmp_path / "sliding")
    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, sliding_window=4)
    config = MistralConfig(**shape, num_key_value_heads=2, vocab_size=len(WORDS), initializer_range=0.4, pad_token_id=0)
    MistralForCausalLM(config).save_pretrained(folder)
    model, texts = load(folder, device="cpu").model, some_texts()
    plain = Texts(model, texts)
    assert not any(row.parts for row in plain.packs)
    torch.testing.assert_close(plain.losses(), one_by_one(model, texts), rtol=1e-5, atol=1e-5)


ids = st.lists(st.integers(0, 3), min_size=1, max_size=6)


@given(st.lists(st.builds(Text, ids, ids), max_size=8))
def test_a_pack_holds_every_counted_token_once_and_never_more_than_all_tokens(texts):
    packs = pack(texts, torch.device("cpu"))
    counted = sorted((owner, token) for row in packs for owner, token in zip(row.owners.tolist(), row.targets.tolist()))
    assert counted == sorted((owner, token) for owner, text in enumerate(texts) for token in text.completion)
    assert sum(row.ids.numel() for row in packs) <= sum(len(text) - 1 for text in texts)
    for row in packs:
        seen = sorted(place for part in row.parts for where in (part.head, *part.tails) for place in _places(where))
        assert seen == list(range(row.ids.shape[1]))


def _places(where: slice) -> range:
    return range(where.start, where.stop)


def test_common_beginnings_are_computed_once():
    head, device = list(range(10)), torch.device("cpu")
    texts = [Text([*head, 20 + at, 30 + at], [5]) for at in range(6)]
    (row,) = pack(texts, device)
    assert row.ids.shape[1] == 10 + 6 * 2
    # The last token of a prompt predicts the completion, so prompts alike to the end share all but that one.
    (row,) = pack([Text(head, [5]), Text(head, [6, 7])], device)
    assert row.ids.tolist() == [[*head[:9], 9, 9, 6]] and row.positions.tolist() == [[*range(9), 9, 9, 10]]
