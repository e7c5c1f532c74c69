"""Text from models by transformers: fixed batches, shared prefixes, named randomness."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import Cache, DynamicLayer

from workbench.models import engine
from workbench.models.engine import Completion, Decoding, Engine, Request, TokenizedRequest, end_tokens, prompt_ids
from workbench.models.loading import LoadedModel, load
from workbench.models.prefix_cache import RoomyLayer, SharedLayer, prefix_attention, supports
from workbench.runs.seeding import stream

# Raised by hand when a change here can change a completion.
ENGINE_VERSION = 1
# Rows that are done leave the batch every so many steps: shorter wastes time on moving the cache, longer on idle rows.
SEGMENT_TOKENS = 16
# A batch shares its prefixes when that leaves at most this part of its prompt tokens to compute.
SHARING_PAYS_BELOW = 0.8


class NamedSampler(LogitsProcessor):
    """Leave one token per row: the one at the row's own uniform number, by inverse CDF in the order of token ids.

    The order of ids, unlike the order of probabilities, does not turn over when rounding swaps two near-equal ones.
    """

    def __init__(self, uniforms: Tensor, temperature: float, top_p: float) -> None:
        self.uniforms, self.temperature, self.top_p, self.step = uniforms, temperature, top_p, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores, shape (rows, vocabulary), that are -inf except at the drawn token."""
        weights = torch.softmax(scores.double() / self.temperature, dim=-1)
        if self.top_p < 1:
            ordered, order = weights.sort(dim=-1, descending=True, stable=True)
            outside = ordered.cumsum(-1) - ordered >= self.top_p
            weights = weights.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), 0)
        heights = weights.cumsum(-1)
        draws = self.uniforms[:, self.step, None] * heights[:, -1:]
        self.step += 1
        drawn = torch.searchsorted(heights, draws, right=True).clamp_(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


class TransformersEngine(Engine):
    """Completions by transformers' generate.

    Promise: on the CPU, order, batch size, prefix sharing and resuming change nothing but near-ties of the arithmetic.

    Args:
        ref: A model folder or hub id, or a model that is loaded already.
        dtype: As models.load takes it; a loaded model keeps its own.
        device: As models.load takes it; a loaded model stays where it is.
        batch_size: Rows computed at once.
        share_prefixes: False computes every prompt whole, to compare with.
    """

    name = "transformers"

    def __init__(
        self,
        ref: str | LoadedModel,
        dtype: str = "float32",
        device: str = "auto",
        batch_size: int = 256,
        share_prefixes: bool = True,
    ) -> None:
        self.loaded = ref if isinstance(ref, LoadedModel) else load(ref, dtype, device)
        self.model, self.tokenizer = self.loaded.model, self.loaded.tokenizer
        self.model_name, self.batch_size = self.loaded.name, batch_size
        self.limit = getattr(self.model.config, "max_position_embeddings", None) or 0
        self.ends = end_tokens(self.tokenizer, self.model.generation_config.eos_token_id)
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else (self.ends or [0])[0]
        # Sliding windows and recurrent states can neither skip padding inside a prompt nor be picked row by row.
        self.n_layers = len(layers := DynamicCache(config=self.model.config).layers)
        self.plain_cache = all(type(layer) is DynamicLayer for layer in layers)
        self.share_prefixes = share_prefixes and self.plain_cache and supports(self.model)

    def __repr__(self) -> str:
        return f"TransformersEngine({self.loaded}, batch_size={self.batch_size})"

    def identity(self) -> list:
        """Return engine, code version, weights and dtype."""
        return [self.name, ENGINE_VERSION, [self.loaded.fingerprint, str(self.model.dtype)]]

    @torch.inference_mode()
    def batch_difference(self, prompts: Sequence[str]) -> float:
        """Return by how much a next token's log-probability differs at most, together against alone, in nats."""
        sequences, told = prompt_ids(self.tokenizer, prompts, self.ends), []
        for batch in [sequences, *([one] for one in sequences)]:
            ids, mask = self._padded(batch)
            places = (mask.cumsum(-1) - 1).clamp_(min=0)
            logits = self.model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False).logits[:, -1]
            told.append(logits.float().log_softmax(-1))
        return float((told[0] - torch.cat(told[1:])).abs().max())

    def _rows(self, requests: dict[str, Request], decoding: Decoding) -> dict[str, TokenizedRequest]:
        """Tokenise and check every request; a prefix counts only where its ids begin the prompt's ids."""
        rows = super()._rows(requests, decoding)
        if not self.share_prefixes:
            return rows
        prefixes = sorted({request.prefix for request in requests.values() if request.prefix})
        heads = dict(zip(prefixes, prompt_ids(self.tokenizer, prefixes, self.ends), strict=True))
        for key, row in rows.items():
            head = heads.get(row.request.prefix, [])
            if len(head) < len(row.ids) and row.ids[: len(head)] == head:
                rows[key] = replace(row, n_shared=len(head))
        return rows

    def _batches(self, rows: list[TokenizedRequest]) -> Iterator[list[TokenizedRequest]]:
        """Cut the rows into batches: those with a common prefix side by side, the rest by length.

        Like lengths together leave little padding, and completions of like length end together.
        """
        heads = [tuple(row.ids[: row.n_shared]) for row in rows]
        counts = Counter(heads)
        alone: list[tuple] = []
        together: list[tuple] = []
        for row, head in zip(rows, heads, strict=True):
            shares = row.n_shared > 0 and counts[head] > 1
            order = (len(head), head) if shares else ()
            (together if shares else alone).append((order, len(row.ids), row.key, row))
        for part in (together, alone):
            # The keys all differ, so that rows are never compared.
            ordered = [row for *_, row in sorted(part)]
            for start in range(0, len(ordered), self.batch_size):
                yield ordered[start : start + self.batch_size]

    @torch.inference_mode()
    def _complete(self, rows: list[TokenizedRequest], decoding: Decoding, seed: int) -> list[Completion]:
        """Write one batch, in segments after each of which the rows that are done leave."""
        ids, mask, cache = self._start(rows, decoding.max_new_tokens)
        uniforms = None
        if decoding.temperature > 0:
            draws = [stream(seed, row.request.stream).random(decoding.max_new_tokens) for row in rows]
            uniforms = torch.from_numpy(np.stack(draws)).to(self.model.device)
        written: list[list[int]] = [[] for _ in rows]
        done: dict[int, Completion] = {}
        live, n_written = list(range(len(rows))), 0
        while live:
            n_left = decoding.max_new_tokens - n_written
            n_new = min(SEGMENT_TOKENS, n_left) if self.plain_cache else n_left
            processors = LogitsProcessorList()
            if uniforms is not None:
                processors.append(NamedSampler(uniforms[live, n_written:], decoding.temperature, decoding.top_p))
            grown = self._extend(ids, mask, cache, n_new, processors)
            tokens = grown[:, ids.shape[1] :]
            n_written += tokens.shape[1]
            for at, new in zip(live, tokens.tolist(), strict=True):
                written[at] += new
                if completion := self._ended(written[at], tokens.shape[1], decoding):
                    done[at] = completion
            staying = [place for place, at in enumerate(live) if at not in done]
            live = [live[place] for place in staying]
            if live:
                ids, mask = grown, torch.cat([mask, mask.new_ones(tokens.shape)], dim=1)
                if len(live) < len(grown):
                    keep = torch.tensor(staying, device=ids.device)
                    ids, mask = ids[keep], mask[keep]
                    cache.batch_select_indices(keep)
        return [done[at] for at in range(len(rows))]

    def _ended(self, tokens: list[int], n_new: int, decoding: Decoding) -> Completion | None:
        """Return the completion if an end token, a stop string or the limit ends it, else None.

        Only the last n_new tokens are searched; those before them ended nothing.
        """
        end = next((at for at in range(len(tokens) - n_new, len(tokens)) if tokens[at] in self.ends), None)
        if end is None and decoding.stop and engine.stop_in(self.tokenizer.decode(tokens), decoding.stop) >= 0:
            end = len(tokens)
        if end is None and len(tokens) < decoding.max_new_tokens:
            return None
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        return Completion(text, len(tokens) if end is None else min(end + 1, len(tokens)), end is not None)

    def _start(self, rows: list[TokenizedRequest], n_new: int) -> tuple[Tensor, Tensor, Cache]:
        """Return the padded prompts, their mask and a cache that holds the prefixes if this batch shares them."""
        heads = sorted({tuple(row.ids[: row.n_shared]) for row in rows})
        n_head, n_tail = max(map(len, heads)), max(len(row.ids) - row.n_shared for row in rows)
        n_whole = max(len(row.ids) for row in rows)
        n_computed = len(heads) * n_head + len(rows) * n_tail
        if () in heads or n_computed > SHARING_PAYS_BELOW * len(rows) * n_whole:
            return *self._padded([row.ids for row in rows]), self._cache(n_whole + n_new)
        cache = self._cache(n_head)
        head_ids, head_mask = self._padded(heads)
        positions = (head_mask.cumsum(-1) - 1).clamp_(min=0)
        # The body without the language-model head: a prefix needs no logits.
        self.model.base_model(
            input_ids=head_ids, attention_mask=head_mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        places = {head: place for place, head in enumerate(heads)}
        of_row = torch.tensor([places[tuple(row.ids[: row.n_shared])] for row in rows], device=head_ids.device)
        cache = Cache(layers=[SharedLayer(layer, of_row, n_tail + n_new) for layer in cache.layers])
        tail_ids, tail_mask = self._padded([row.ids[row.n_shared :] for row in rows])
        # generate counts positions along the mask, so the padding between prefix and rest leaves no gap in them.
        return torch.cat([head_ids[of_row], tail_ids], 1), torch.cat([head_mask[of_row], tail_mask], 1), cache

    def _cache(self, n_tokens: int) -> Cache:
        if not self.plain_cache:
            return DynamicCache(config=self.model.config)
        return Cache(layers=[RoomyLayer(n_tokens) for _ in range(self.n_layers)])

    def _padded(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, sequences))
        ids = [[self.pad] * (width - len(sequence)) + list(sequence) for sequence in sequences]
        mask = [[0] * (width - len(sequence)) + [1] * len(sequence) for sequence in sequences]
        return torch.tensor(ids, device=self.model.device), torch.tensor(mask, device=self.model.device)

    def _extend(self, ids: Tensor, mask: Tensor, cache: Cache, n_new: int, processors: LogitsProcessorList) -> Tensor:
        config = GenerationConfig(
            max_new_tokens=n_new, do_sample=False, eos_token_id=self.ends or None, pad_token_id=self.pad
        )
        shares = isinstance(cache.layers[0], SharedLayer)
        with _only_our_decoding(self.model), prefix_attention(self.model) if shares else nullcontext():
            return self.model.generate(
                ids, attention_mask=mask, past_key_values=cache, generation_config=config, logits_processor=processors
            )


@contextmanager
def _only_our_decoding(model: torch.nn.Module) -> Iterator[None]:
    """Hide the folder's generation settings, which generate would mix in (a repetition penalty, for example)."""
    hidden, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = hidden
