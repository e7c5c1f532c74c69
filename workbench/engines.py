"""Text from models: fixed batches, shared prefixes, named randomness, finished items kept."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import Cache, DynamicLayer

from workbench.models import LoadedModel, ModelError, load
from workbench.seeding import stream
from workbench.store import fingerprint

if TYPE_CHECKING:
    from workbench.store import Items

KIND = "completion"
# Raised by hand when a change here can change a completion.
ENGINE_VERSION = 1
# Rows that are done leave the batch every so many steps: shorter wastes time on moving the cache, longer on idle rows.
SEGMENT_TOKENS = 16
# A batch shares its prefixes when that leaves at most this part of its prompt tokens to compute.
SHARING_PAYS_BELOW = 0.8


@dataclass(frozen=True)
class Decoding:
    """How to write: temperature 0 is greedy; a stop string ends a completion and is cut off."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise ValueError(
                f"Decoding needs max_new_tokens >= 1, a finite temperature >= 0 and 0 < top_p <= 1, got {self}; "
                "correct these in the recipe."
            )
        if isinstance(self.stop, str) or "" in self.stop:
            raise ValueError(f"stop must be a tuple of non-empty strings, got {self.stop!r}; write ('###',).")


@dataclass(frozen=True)
class Request:
    """One completion to write.

    Args:
        prompt: The rendered prompt, prefix included.
        stream: Name of its random stream; needed when the temperature is above 0.
        prefix: How the prompt begins, where other requests begin with the same text; "" to share nothing.
    """

    prompt: str
    stream: str = ""
    prefix: str = ""


@dataclass(frozen=True)
class Completion:
    """What a model wrote: the text, its tokens (the one that ended it included), and whether it ended by itself."""

    text: str
    n_tokens: int
    finished: bool


@dataclass(frozen=True)
class Row:
    """A request made ready: its key in the items, its token ids, and how many of them are a shared prefix."""

    key: str
    request: Request
    ids: list[int]
    n_shared: int


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


class RoomyLayer(DynamicLayer):
    """A cache layer with room for every token to come.

    DynamicLayer concatenates, which copies the whole cache at every step: most of the time for small models.
    """

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        self.n_tokens, self.room = n_tokens, []

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write new keys and values, shape (rows, heads, tokens, width), behind the old ones; return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.room = [self._empty(states, states.shape[0]) for states in (key_states, value_states)]
        used = self.get_seq_length()
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, used : used + states.shape[2]] = states
        return self._show(used + key_states.shape[2])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        used, old = self.get_seq_length(), self.room
        self.room = [self._empty(room, len(indices)) for room in old]
        for room, rows in zip(self.room, old, strict=True):
            torch.index_select(rows[:, :, :used], 0, indices, out=room[:, :, :used])
        self._show(used)

    def _empty(self, like: Tensor, n_rows: int) -> Tensor:
        return like.new_empty(n_rows, like.shape[1], self.n_tokens, like.shape[3])

    def _show(self, used: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (room[:, :, :used] for room in self.room)
        return self.keys, self.values


class TransformersEngine:
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
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}; correct compute.batch_size in the recipe.")
        self.loaded = ref if isinstance(ref, LoadedModel) else load(ref, dtype, device)
        self.model, self.tokenizer = self.loaded.model, self.loaded.tokenizer
        self.batch_size = batch_size
        declared = self.model.generation_config.eos_token_id
        ends = declared if isinstance(declared, list) else [declared]
        self.ends = sorted({token for token in [*ends, self.tokenizer.eos_token_id] if token is not None})
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else (self.ends or [0])[0]
        # Some tokenizers close a text with the end token, which must not stand between a prompt and its completion.
        self.n_closing = int(self.tokenizer("a")["input_ids"][-1] in self.ends)
        # Sliding windows and recurrent states can neither skip padding inside a prompt nor be picked row by row.
        self.n_layers = len(layers := DynamicCache(config=self.model.config).layers)
        self.plain_cache = all(type(layer) is DynamicLayer for layer in layers)
        self.share_prefixes = share_prefixes and self.plain_cache

    def __repr__(self) -> str:
        return f"TransformersEngine({self.loaded}, batch_size={self.batch_size})"

    def generate(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        seed: int = 0,
        items: "Items | None" = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """Return one completion per request, in their order.

        Batches are laid out from the full list of requests, and each is stored in one transaction, so a call that was
        killed goes on from its last batch and ends with the same completions. A batch that items hold in part is
        computed again whole, but what they hold already stays: an answer once given never changes.

        Args:
            requests: What to write. Requests alike in all that can change the outcome are computed once.
            decoding: How to write.
            seed: With each request's stream, what sampling draws from; unused when greedy.
            items: The record of finished items, or None to keep nothing.
            progress: Called after each batch with the numbers of requests done and to do, reused ones included.

        Raises:
            ModelError: If a prompt is empty or too long for the model; nothing is computed then.
        """
        keys = [self._key(request, decoding, seed) for request in requests]
        rows = self._rows(dict(zip(keys, requests, strict=True)), decoding)
        done = {key: Completion(**kept) for key, kept in items.get_many(KIND, list(rows)).items()} if items else {}
        n_done = 0
        for batch in self._batches(list(rows.values())):
            if not all(row.key in done for row in batch):
                completions = dict(zip([row.key for row in batch], self._complete(batch, decoding, seed), strict=True))
                fresh = {key: completion for key, completion in completions.items() if key not in done}
                if items:
                    items.put_many(KIND, {key: asdict(completion) for key, completion in fresh.items()})
                done |= fresh
            n_done += len(batch)
            if progress:
                progress(n_done, len(rows))
        return [done[key] for key in keys]

    def _key(self, request: Request, decoding: Decoding, seed: int) -> str:
        """Return the hash of all that can change the completion.

        Left out: batch size, prefix sharing, device and library versions, because they change near-ties at most.
        """
        if decoding.temperature > 0 and not request.stream:
            raise ValueError(
                f"A request at temperature {decoding.temperature} needs a stream, got none; name what it draws for."
            )
        drawn = [request.stream, seed] if decoding.temperature > 0 else []
        model = [self.loaded.fingerprint, str(self.model.dtype)]
        return fingerprint([self.name, ENGINE_VERSION, model, request.prompt, asdict(decoding), drawn])

    def _rows(self, requests: dict[str, Request], decoding: Decoding) -> dict[str, Row]:
        """Tokenise and check every request; a prefix counts only where its ids begin the prompt's ids."""
        if not requests:
            return {}
        prefixes = sorted({request.prefix for request in requests.values() if request.prefix})
        heads = dict(zip(prefixes, self._ids(prefixes), strict=True)) if self.share_prefixes and prefixes else {}
        rows = {}
        for (key, request), ids in zip(requests.items(), self._ids([r.prompt for r in requests.values()]), strict=True):
            limit = getattr(self.model.config, "max_position_embeddings", None) or len(ids) + decoding.max_new_tokens
            if not ids or len(ids) + decoding.max_new_tokens > limit:
                name = request.stream or f"{request.prompt[:60]!r}..."
                raise ModelError(
                    f"Request {name} has a prompt of {len(ids)} tokens; with {decoding.max_new_tokens} new ones "
                    f"{self.loaded.name} takes 1 to {limit - decoding.max_new_tokens}, so shorten the prompt or lower "
                    "max_new_tokens."
                )
            head = heads.get(request.prefix, [])
            shared = len(head) if len(head) < len(ids) and ids[: len(head)] == head else 0
            rows[key] = Row(key, request, ids, shared)
        return rows

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [ids[: len(ids) - self.n_closing] for ids in self.tokenizer(texts)["input_ids"]]

    def _batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        """Cut the rows into batches: those with a common prefix side by side, the rest by length.

        Like lengths together leave little padding, and completions of like length end together.
        """
        heads = [tuple(row.ids[: row.n_shared]) for row in rows]
        counts: dict[tuple[int, ...], int] = {}
        for head in heads:
            counts[head] = counts.get(head, 0) + 1
        alone: list[tuple] = []
        together: list[tuple] = []
        for row, head in zip(rows, heads, strict=True):
            shares = row.n_shared > 0 and counts[head] > 1
            order = (len(head), head) if shares else ()
            (together if shares else alone).append((order, len(row.ids), row.key, row))
        for part in (together, alone):
            ordered = [entry[-1] for entry in sorted(part, key=lambda entry: entry[:-1])]
            for start in range(0, len(ordered), self.batch_size):
                yield ordered[start : start + self.batch_size]

    @torch.inference_mode()
    def _complete(self, rows: list[Row], decoding: Decoding, seed: int) -> list[Completion]:
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
            n_new = min(
                SEGMENT_TOKENS if self.plain_cache else decoding.max_new_tokens, decoding.max_new_tokens - n_written
            )
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
        seen = len(tokens) - n_new
        end = next((at for at in range(seen, len(tokens)) if tokens[at] in self.ends), None)
        body = tokens if end is None else tokens[:end]
        text = self._text(body) if decoding.stop or end is not None or len(tokens) >= decoding.max_new_tokens else ""
        if cuts := [text.index(stop) for stop in decoding.stop if stop in text]:
            n_tokens = next(n for n in range(1, len(body) + 1) if any(s in self._text(body[:n]) for s in decoding.stop))
            return Completion(text[: min(cuts)], n_tokens, True)
        if end is not None:
            return Completion(text, end + 1, True)
        return Completion(text, len(tokens), False) if len(tokens) >= decoding.max_new_tokens else None

    def _text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _start(self, rows: list[Row], n_new: int) -> tuple[Tensor, Tensor, Cache]:
        """Return the padded prompts, their mask and a cache that holds the prefixes if this batch shares them."""
        heads = sorted({tuple(row.ids[: row.n_shared]) for row in rows})
        n_head, n_tail = max(map(len, heads)), max(len(row.ids) - row.n_shared for row in rows)
        n_whole = max(len(row.ids) for row in rows)
        n_computed = len(heads) * n_head + len(rows) * n_tail
        if () in heads or n_computed > SHARING_PAYS_BELOW * len(rows) * n_whole:
            return *self._padded([row.ids for row in rows]), self._cache(n_whole + n_new)
        cache = self._cache(n_head + n_tail + n_new)
        head_ids, head_mask = self._padded(heads)
        positions = (head_mask.cumsum(-1) - 1).clamp_(min=0)
        # The body without the language-model head: a prefix needs no logits.
        self.model.base_model(
            input_ids=head_ids, attention_mask=head_mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        places = {head: place for place, head in enumerate(heads)}
        of_row = torch.tensor([places[tuple(row.ids[: row.n_shared])] for row in rows], device=head_ids.device)
        cache.batch_select_indices(of_row)
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
        with _only_our_decoding(self.model):
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
