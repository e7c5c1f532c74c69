"""What every engine offers, and what all of them share: requests, completions, keys, finished items kept."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from workbench.models.loading import render, render_shared
from workbench.runs.errors import ModelError
from workbench.runs.recipe_parts import Prompts
from workbench.runs.run import fingerprint

if TYPE_CHECKING:
    from workbench.runs.cache import Cache


KIND = "completion"
REFUSED = "refusal"  # recorded, and never given as an answer: the next run asks again
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Decoding:
    """How to write: temperature 0 is greedy, top_p the nucleus that is sampled from; a text ends with a stop string."""

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


@dataclass(frozen=True)
class Request:
    """One completion to write; several samples of one prompt are several requests with streams of their own."""

    prompt: str  # the rendered prompt, prefix included
    stream: str = ""  # name of its random stream; needed when the temperature is above 0
    prefix: str = ""  # how the prompt begins, where other requests begin with the same text; "" to share nothing


@dataclass(frozen=True)
class Completion:
    """What a model wrote: the text, its tokens (the one that ended it included), and whether it ended by itself."""

    text: str
    n_tokens: int
    finished: bool


@dataclass(frozen=True)
class TokenizedRequest:
    """A request made ready: its key in the items, its token ids, and how many of them are a shared prefix."""

    key: str
    request: Request
    ids: list[int]
    n_shared: int = 0


@dataclass(frozen=True)
class Finished:
    """What an engine hands back: a completion, what is stored beside it (a server's name of its model, the date), and
    whether the model refused, which is recorded as no answer."""

    completion: Completion
    notes: dict = field(default_factory=dict)
    refused: bool = False


class Engine(ABC):
    """What the steps know of an engine: what is asked twice is computed once, and what is finished is kept.

    Each engine adds who it is (`identity`), what it computes at once (`_batches`) and how (`_complete`), or else how
    all requests are finished (`_finish`).
    """

    name: str  # as the recipe calls it
    model_name: str  # what people call its model
    tokenizer: PreTrainedTokenizerBase | None
    ends: list[int]  # the tokens that end a text
    limit: int  # most tokens of prompt and completion together; 0 if unknown
    prompts: Prompts = Prompts()  # stop strings and nucleus where the decoding has none of its own

    def render(self, user_text: str) -> str:
        """Return the prompt the model sees for a user's text."""
        return render(self.tokenizer, user_text)

    def render_shared(self, prefix: str, rest: str) -> tuple[str, str]:
        """Render prefix + rest as one user's text; return the prompt and how it begins, up to the end of the prefix."""
        return render_shared(self.tokenizer, prefix, rest)

    def generate(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        seed: int = 0,
        items: "Cache | None" = None,
        progress: Report | None = None,
    ) -> list[Completion]:
        """Return one completion per request, in their order.

        Work is laid out from the full list of requests and each part of it stored in one transaction, so a call that
        was killed goes on from its last part. What items hold stays: an answer once given never changes.

        Args:
            requests: What to write. Requests alike in all that can change the outcome are computed once.
            seed: With each request's stream, what sampling draws from; unused when greedy.
            items: The record of finished items, or None to keep nothing.
            progress: Called after each part with the numbers of requests done and to do, reused ones included.

        Raises:
            ModelError: If a prompt is empty or too long, before anything is computed, or the engine cannot go on.
        """
        own = {"stop": decoding.stop or tuple(self.prompts.stop)}
        if decoding.temperature and decoding.top_p == 1:
            own["top_p"] = self.prompts.top_p
        decoding = replace(decoding, **own)
        keys = [self._key(request, decoding, seed) for request in requests]
        rows = self._rows(dict(zip(keys, requests, strict=True)), decoding)
        kept = items.get_many(KIND, list(rows)) if items else {}
        done = {key: Completion(**{name: old[name] for name in Completion.__match_args__}) for key, old in kept.items()}
        n_done = 0
        for part in self._finish(rows, done, decoding, seed):
            fresh = {key: _stopped(one, decoding.stop) for key, one in part.items() if key not in done}
            for kind, refused in ((KIND, False), (REFUSED, True)):
                stored = {k: asdict(one.completion) | one.notes for k, one in fresh.items() if one.refused == refused}
                if items and stored:
                    items.put_many(kind, stored)
            done |= {key: one.completion for key, one in fresh.items()}
            n_done += len(part)
            if progress:
                progress(n_done, len(rows))
        return [done[key] for key in keys]

    def close(self) -> None:
        """Give back memory, processes and connections; the engine is of no use afterwards."""
        # Whoever still holds the engine must not hold its model.
        vars(self).clear()

    def batch_difference(self, prompts: Sequence[str]) -> float:
        """Return by how much a next token's log-probability differs at most, together against alone, in nats.

        0 where the engine does not tell probabilities.
        """
        return 0.0

    @abstractmethod
    def identity(self) -> list:
        """Return all about the engine and its model that can change a completion."""

    def _rows(self, requests: dict[str, Request], decoding: Decoding) -> dict[str, TokenizedRequest]:
        """Return the requests with their token ids, by key.

        Raises:
            ModelError: If a prompt is empty or leaves no room for its completion, with the numbers.
        """
        rows, n_new, limit = {}, decoding.max_new_tokens, self.limit
        ids_of = prompt_ids(self.tokenizer, [request.prompt for request in requests.values()], self.ends)
        for (key, request), ids in zip(requests.items(), ids_of, strict=True):
            if not ids or (limit and len(ids) + n_new > limit):
                asked = request.stream or f"{request.prompt[:60]!r}..."
                raise ModelError(
                    f"Request {asked} has a prompt of {len(ids)} tokens; with {n_new} new ones {self.model_name} takes "
                    f"1 to {limit - n_new if limit else 'any number'}, so shorten the prompt or lower max_new_tokens."
                )
            rows[key] = TokenizedRequest(key, request, ids)
        return rows

    def _finish(
        self, rows: dict[str, TokenizedRequest], done: dict[str, Completion], decoding: Decoding, seed: int
    ) -> Iterator[dict[str, Finished]]:
        """Yield every key once, in parts that are stored together; one that is done in part is computed whole."""
        for batch in self._batches(list(rows.values())):
            keys = [row.key for row in batch]
            whole = all(key in done for key in keys)
            written = [done[key] for key in keys] if whole else self._complete(batch, decoding, seed)
            yield dict(zip(keys, map(Finished, written), strict=True))

    def _key(self, request: Request, decoding: Decoding, seed: int) -> str:
        """Return the hash of all that can change the completion.

        Left out: batch size, prefix sharing, device and library versions, because they change near-ties at most.
        """
        if decoding.temperature > 0 and not request.stream:
            raise ValueError(f"A request at temperature {decoding.temperature} needs a stream; name what it draws for.")
        drawn = [request.stream, seed] if decoding.temperature > 0 else []
        return fingerprint([*self.identity(), request.prompt, asdict(decoding), drawn])


@dataclass(frozen=True)
class SelfTest:
    """How far an engine agrees with itself on a few prompts: together, together again, and one by one."""

    n: int  # prompts
    n_apart: int  # of them, those whose greedy texts are not all the same
    nats: float  # largest difference of a next token's log-probability, together against alone; 0 where none is told

    def __str__(self) -> str:
        apart = f"{self.n_apart} of {self.n} greedy texts differ between batches"
        return f"{apart}, log-probabilities by {self.nats:.1g} nats"


# Agreement to this is rounding; from the limits on, what a draft is worth depends on what it is computed beside.
NATS_OF_ROUNDING, MOST_NATS, MOST_APART = {"float32": 1e-3, "bfloat16": 0.1}, 0.5, 0.5


def self_test(engine: Engine, prompts: Sequence[str], n_new: int = 24) -> SelfTest:
    """Ask an engine the same prompts twice and one by one, greedily, keeping nothing.

    Raises:
        ModelError: If more than MOST_APART of the texts differ, or a log-probability by more than MOST_NATS.
    """
    requests, decoding = [Request(prompt) for prompt in dict.fromkeys(prompts)], Decoding(n_new)
    told = [[one.text for one in engine.generate(requests, decoding)] for _ in range(2)]
    told.append([one.text for request in requests for one in engine.generate([request], decoding)])
    n_apart = sum(len(set(texts)) > 1 for texts in zip(*told, strict=True))
    found = SelfTest(len(requests), n_apart, engine.batch_difference([request.prompt for request in requests]))
    if n_apart > MOST_APART * len(requests) or found.nats > MOST_NATS:
        raise ModelError(
            f"{engine.model_name} does not agree with itself: {found}, where at most {MOST_APART:.0%} and {MOST_NATS} "
            "are allowed; take models.dtype float32 or another engine, or compute.batch_size 1."
        )
    return found


def stop_in(text: str, stop: tuple[str, ...]) -> int:
    """Return where the first stop string ends in a text, -1 where there is none."""
    return min((text.find(one) + len(one) for one in stop if one in text), default=-1)


def _stopped(one: Finished, stop: tuple[str, ...]) -> Finished:
    """Cut a completion behind the first stop string, which an engine may have written on after."""
    end = stop_in(one.completion.text, stop)
    cut = replace(one.completion, text=one.completion.text[:end], finished=True)
    return one if end < 0 else replace(one, completion=cut)


def end_tokens(tokenizer: PreTrainedTokenizerBase, declared: int | list[int] | None) -> list[int]:
    """Return the tokens that end a text: those the model declares, and the tokenizer's own."""
    ends = declared if isinstance(declared, list) else [declared]
    return sorted({token for token in [*ends, tokenizer.eos_token_id] if token is not None})


def prompt_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], ends: list[int]) -> list[list[int]]:
    """Return the token ids of prompts, special tokens included, without one that closes the text.

    Some tokenizers close a text with the end token, which must not stand between a prompt and its completion.
    """
    n_closing = int(tokenizer("a")["input_ids"][-1] in ends)
    return [ids[: len(ids) - n_closing] for ids in tokenizer(list(texts))["input_ids"]] if texts else []
