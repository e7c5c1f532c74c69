"""Losses of a fixed set of texts, again and again: no padding, common beginnings once, logits where the loss counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

# Longer packs leave the cache of a core, shorter ones repeat more beginnings; 800 to 2,500 took the same time.
PACK_TOKENS = 1500
AGREE_NATS = 1e-4  # per token, between packed texts and the same texts one by one
PACKED = "workbench_packed"


@dataclass(frozen=True)
class Text:
    """Token ids of a prompt, at least one, and of its completion, which is what the loss counts."""

    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class Part:
    """A beginning, and the texts that go on from it, as places in the pack's row."""

    head: slice
    tails: list[slice]


@dataclass(frozen=True)
class Pack:
    """Several texts in one row."""

    ids: Tensor  # shape (1, tokens)
    positions: Tensor  # place of each token in its own text, shape (1, tokens)
    parts: list[Part]  # which tokens see which
    kept: Tensor  # where a counted token is predicted, shape (counted,)
    targets: Tensor  # the counted tokens, shape (counted,)
    owners: Tensor  # number of the text that each counted token belongs to, shape (counted,)


class Texts:
    """A set of texts laid out for a model, whose weights may change between calls.

    Attributes:
        texts: The texts, in the order given.
        packs: How they are computed: packed if the model's attention allows it, else one by one.
    """

    def __init__(self, model: PreTrainedModel, texts: Sequence[Text]):
        self.model, self.texts = model, list(texts)
        self.packs = [single(text, model.device, owner) for owner, text in enumerate(self.texts)]
        if getattr(model, "_supports_attention_backend", False):
            plain, one_by_one = self.losses(), self.packs
            self.packs = pack(self.texts, model.device)
            n_tokens = torch.tensor([len(text.completion) for text in self.texts])
            # Layers that pass anything along the row (recurrent ones, windows) would mix the texts of a pack.
            if not ((self.losses() - plain).abs() <= AGREE_NATS * n_tokens).all():
                self.packs = one_by_one

    @torch.inference_mode()
    def losses(self) -> Tensor:
        """Return each text's loss under the present weights, in nats summed over its completion, shape (texts,)."""
        total = torch.zeros(len(self.texts), dtype=torch.float64)
        for part in self.packs:
            total.index_add_(0, part.owners, token_losses(self.model, part).double().cpu())
        return total


def token_losses(model: PreTrainedModel, row: Pack) -> Tensor:
    """Return the loss of every counted token of a pack, in nats, shape (counted,)."""
    given = {"input_ids": row.ids, "position_ids": row.positions, "use_cache": False, "logits_to_keep": row.kept}
    if not row.parts:
        return cross_entropy(model(**given).logits[0].float(), row.targets, reduction="none")
    before = model.config._attn_implementation
    model.set_attn_implementation(PACKED)
    try:
        return cross_entropy(model(**given, parts=row.parts).logits[0].float(), row.targets, reduction="none")
    finally:
        model.set_attn_implementation(before)


def single(text: Text, device: torch.device, owner: int = 0) -> Pack:
    """Return one text as a row of its own, for any kind of attention."""
    row = _Row()
    row.add(text, [], owner)
    return row.finish(device, plain=True)


def pack(texts: Sequence[Text], device: torch.device) -> list[Pack]:
    """Return the texts in packs of about PACK_TOKENS; texts whose prompts begin alike share that beginning."""
    rows, row = [], _Row()
    for n_head, members in _families(texts):
        head: list[int] | None = None
        for owner in members:
            text = texts[owner]
            if row.ids and len(row.ids) + len(text) > PACK_TOKENS:
                rows.append(row)
                row, head = _Row(), None
            if head is None:
                head = row.begin(text.prompt[:n_head])
            row.add(text, head, owner)
    return [row.finish(device) for row in [*rows, row] if row.ids]


def _families(texts: Sequence[Text]) -> list[tuple[int, list[int]]]:
    """Return (length of the common beginning, texts) such that adding the next text to a family never costs tokens."""
    families: list[tuple[int, list[int]]] = []
    # The token before the completion predicts its first one, so it stays out of what is shared.
    prompts = [text.prompt[:-1] for text in texts]
    for owner in sorted(range(len(texts)), key=lambda at: prompts[at]):
        if families:
            n_head, members = families[-1]
            common = min(n_head, len(commonprefix([prompts[members[0]], prompts[owner]])))
            if common and common * len(members) >= n_head * (len(members) - 1):
                families[-1] = (common, [*members, owner])
                continue
        families.append((len(prompts[owner]), [owner]))
    return families


class _Row:
    """A pack while it is being filled."""

    def __init__(self) -> None:
        self.ids, self.positions, self.parts = [], [], []
        self.kept, self.targets, self.owners = [], [], []

    def begin(self, head: list[int]) -> list[int]:
        self.parts.append(Part(self._append(head, 0), []))
        return head

    def add(self, text: Text, head: list[int], owner: int) -> None:
        tail = [*text.prompt[len(head) :], *text.completion[:-1]]
        place = self._append(tail, len(head))
        if self.parts:
            self.parts[-1].tails.append(place)
        self.kept += range(place.stop - len(text.completion), place.stop)
        self.targets += text.completion
        self.owners += [owner] * len(text.completion)

    def _append(self, ids: list[int], position: int) -> slice:
        place = slice(len(self.ids), len(self.ids) + len(ids))
        self.ids += ids
        self.positions += range(position, position + len(ids))
        return place

    def finish(self, device: torch.device, plain: bool = False) -> Pack:
        row = (torch.tensor([values], device=device) for values in (self.ids, self.positions))
        flat = (torch.tensor(values, device=device) for values in (self.kept, self.targets))
        return Pack(*row, [] if plain else self.parts, *flat, torch.tensor(self.owners))


def _attend(module, query: Tensor, key: Tensor, value: Tensor, mask, *, parts: list[Part], scaling: float, **settings):
    """Attend within each text of a pack alone; tensors have shape (1, heads, tokens, width)."""
    grouped = query.shape[1] != key.shape[1]
    output = torch.empty_like(query)
    for part in parts:
        head, n_head = part.head, part.head.stop - part.head.start
        if n_head:
            output[:, :, head] = scaled_dot_product_attention(
                query[:, :, head], key[:, :, head], value[:, :, head], is_causal=True, scale=scaling, enable_gqa=grouped
            )
        for tail in part.tails:
            seen = [torch.cat([states[:, :, head], states[:, :, tail]], dim=2) for states in (key, value)]
            n = seen[0].shape[2]
            visible = torch.ones(n, n, dtype=torch.bool, device=query.device).tril()[n_head:]
            output[:, :, tail] = scaled_dot_product_attention(
                query[:, :, tail], *seen, attn_mask=visible, scale=scaling, enable_gqa=grouped
            )
    return output.transpose(1, 2), None


AttentionInterface.register(PACKED, _attend)
