"""A cache that holds every shared prefix once, and the attention that reads it once for all rows that begin with it.

Reading the cache is most of the time of a step for small models, and for long demonstrations most of the cache is
prefix. The two parts are put under one softmax, so that the result is that of plain attention but for rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

NAME = "prefix_attention"
PLAIN = "sdpa"


class RoomyLayer(DynamicLayer):
    """A cache layer with room for every token to come.

    DynamicLayer concatenates, which copies the whole cache at every step: most of the time for small models.
    """

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        self.n_tokens, self.room, self.n_used = n_tokens, [], 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write new keys and values, shape (rows, heads, tokens, width), behind the old ones; return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.room = [self._empty(states, states.shape[0]) for states in (key_states, value_states)]
        used = self.n_used
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, used : used + states.shape[2]] = states
        return self._show(used + key_states.shape[2])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        old = self.room
        self.room = [self._empty(room, len(indices)) for room in old]
        for room, rows in zip(self.room, old, strict=True):
            torch.index_select(rows[:, :, : self.n_used], 0, indices, out=room[:, :, : self.n_used])
        self._show(self.n_used)

    def _empty(self, like: Tensor, n_rows: int) -> Tensor:
        return like.new_empty(n_rows, like.shape[1], self.n_tokens, like.shape[3])

    def _show(self, used: int) -> tuple[Tensor, Tensor]:
        self.n_used = used
        self.keys, self.values = (room[:, :, :used] for room in self.room)
        return self.keys, self.values


@dataclass
class Prefixes:
    """Keys and values of the prefixes, shape (prefixes, heads, tokens, width), and which prefix each row begins with.

    Rows with one prefix stand side by side, so `spans` says it shorter: (prefix, first row, behind the last row).
    """

    keys: Tensor
    values: Tensor
    of_row: Tensor
    spans: list[tuple[int, int, int]] = field(init=False)

    def __post_init__(self) -> None:
        prefixes, counts = torch.unique_consecutive(self.of_row, return_counts=True)
        ends = counts.cumsum(0).tolist()
        self.spans = list(zip(prefixes.tolist(), [0, *ends[:-1]], ends, strict=True))

    def before(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of the rest with each row's prefix in front, as plain attention takes them."""
        return torch.cat([self.keys[self.of_row], keys], 2), torch.cat([self.values[self.of_row], values], 2)


class SharedLayer(RoomyLayer):
    """The cache layer of rows that share prefixes: a prefix lies here once, behind it each row's own tokens.

    Args:
        layer: Filled with the prefixes, one a row.
        of_row: Which of them each row begins with, shape (rows,), like numbers side by side.
        n_tokens: Room for each row's own tokens.
    """

    def __init__(self, layer: DynamicLayer, of_row: Tensor, n_tokens: int) -> None:
        super().__init__(n_tokens)
        self.prefixes = Prefixes(layer.keys, layer.values, of_row)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write new keys and values; return the rows' own ones, the prefixes with them as an attribute of the keys."""
        keys, values = super().update(key_states, value_states)
        keys.prefixes = self.prefixes
        return keys, values

    def get_seq_length(self) -> int:
        """Return the number of tokens of a row, its prefix included."""
        return self.prefixes.keys.shape[2] + self.n_used

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order."""
        super().batch_select_indices(indices)
        self.prefixes = Prefixes(self.prefixes.keys, self.prefixes.values, self.prefixes.of_row[indices])


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attend to shared prefixes and own tokens, as transformers' AttentionInterface asks for it.

    One query token a row reads each prefix once; several at once, and models that ask for more than scaling, are given
    the plain attention over everything.

    Args:
        query: Shape (rows, heads, tokens, width).
        key: Of the rows' own tokens, shape (rows, key heads, own tokens, width), with its `prefixes`.
        attention_mask: True where to attend, shape (rows, 1, tokens, prefix and own tokens), or None for everywhere.
        dropout: 0 while generating.
        scaling: Of the scores; None for 1 / sqrt(width).

    Returns:
        Shape (rows, tokens, heads, width), and None for the weights.
    """
    prefixes: Prefixes = key.prefixes
    special = [name for name in ("softcap", "s_aux", "position_bias", "sliding_window") if kwargs.get(name) is not None]
    if query.shape[2] > 1 or special or dropout:
        keys, values = prefixes.before(key, value)
        return sdpa_attention_forward(module, query, keys, values, attention_mask, dropout, scaling, **kwargs)
    n_rows, n_heads, _, width = query.shape
    # Heads that share their keys become queries of one head.
    query = query.view(n_rows, key.shape[1], -1, width) * (width**-0.5 if scaling is None else scaling)
    n_prefix = prefixes.keys.shape[2]
    scores = query.new_empty(*query.shape[:3], n_prefix + key.shape[2])
    for prefix, start, end in prefixes.spans:
        scores[start:end, ..., :n_prefix] = _over_rows(query[start:end], prefixes.keys[prefix].transpose(1, 2))
    # Not with out=, which is many times slower into a view.
    scores[..., n_prefix:] = query @ key.transpose(2, 3)
    if attention_mask is not None:
        scores.masked_fill_(~attention_mask, -torch.inf)
    weights = scores.softmax(-1)
    output = weights[..., n_prefix:] @ value
    for prefix, start, end in prefixes.spans:
        output[start:end] += _over_rows(weights[start:end, ..., :n_prefix], prefixes.values[prefix])
    return output.view(n_rows, 1, n_heads, width), None


def _over_rows(rows: Tensor, shared: Tensor) -> Tensor:
    """Multiply each row, shape (rows, heads, queries, n), with one matrix a head, (heads, n, m), in one product."""
    n_rows, n_heads, n_queries, _ = rows.shape
    product = rows.transpose(0, 1).reshape(n_heads, n_rows * n_queries, -1) @ shared
    return product.view(n_heads, n_rows, n_queries, -1).transpose(0, 1)


def supports(model: PreTrainedModel) -> bool:
    """Say whether the model lets its attention be chosen, and would use the plain one."""
    return bool(model._supports_attention_backend) and model.config._attn_implementation == PLAIN


@contextmanager
def prefix_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let the model attend to a cache of SharedLayers for as long as the block lasts."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(PLAIN)
