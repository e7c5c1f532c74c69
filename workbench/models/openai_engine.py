"""Text from any OpenAI-compatible server, through the `openai` client: many requests at once, within a budget.

An OpenAI-compatible server: its address and key, what is sent, and what its faults mean.

Server and key come from the environment (OPENAI_BASE_URL, OPENAI_API_KEY) or the server from the recipe; a key never
from a recipe. What a server sends is believed only as far as it can be checked.

What a server has been paid for a recipe, in tokens and money, and the cap on it; kept with the finished items.
"""

import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from workbench.models.engine import (
    Completion,
    Decoding,
    EngineError,
    Finished,
    Likelihood,
    RecordingEngine,
    Request,
    TokenizedRequest,
    continuation_ids,
    end_tokens,
    prompt_ids,
    refuse_unfit,
)
from workbench.models.loading import fingerprint_model, load_tokenizer, resolve
from workbench.runs.cache import SPENDING
from workbench.runs.run import fingerprint

if TYPE_CHECKING:
    from workbench.runs.cache import Cache


KEY_VARIABLE, URL_VARIABLE = "OPENAI_API_KEY", "OPENAI_BASE_URL"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
FILTERED = "content_filter"


class PassingFault(Exception):
    """Something that may pass: a busy server, a lost connection, an answer that makes no sense.

    Attributes:
        retry_after_s: How long the server asks to be left alone.
        charged: Whether the server may have worked for it, and want to be paid.
    """

    def __init__(self, said: str, retry_after_s: float = 0.0, charged: bool = True) -> None:
        super().__init__(said)
        self.retry_after_s, self.charged = retry_after_s, charged


class Server:
    """One model on a server, looked for when this is made.

    Args:
        base_url: Such as "http://localhost:8000/v1"; "" for OPENAI_BASE_URL.
        served: The model's name there.
        timeout_s: Seconds until a request that hangs is given up.
        n_attempts: How often a request is tried in all.
        longest_wait_s: The longest pause between two tries; a server that asks for more is given it up to 60 s.

    Attributes:
        limit: Most tokens of prompt and completion together, as the server tells; 0 if it does not.
        stopping: Once set, nothing is tried again.

    Raises:
        EngineError: If the server is not there, refuses the key, or does not know the model.
    """

    def __init__(self, base_url: str, served: str, timeout_s: float, n_attempts: int, longest_wait_s: float) -> None:
        self.base_url, self.served = url_of(base_url), served
        self.n_attempts, self.longest_wait_s = n_attempts, longest_wait_s
        self.limit, self.stopping = 0, threading.Event()
        self._openai = _package()
        self._key_text = os.environ.get(KEY_VARIABLE, "")
        if not self._key_text and urlsplit(self.base_url).hostname not in LOOPBACK:
            raise EngineError(
                f"The server {self.base_url} needs a key and {KEY_VARIABLE} is not set; export it in the shell that "
                "starts the workbench, never in a recipe or notebook."
            )
        self.client = self._openai.OpenAI(
            base_url=self.base_url, api_key=self._key_text or "none", timeout=timeout_s, max_retries=0
        )
        self._look()

    def tried(self, once: Callable[[], Any]) -> Any:
        """Return once(), tried again with growing pauses while its fault may pass."""
        from tenacity import (
            RetryCallState,
            Retrying,
            retry_if_exception_type,
            sleep_using_event,
            stop_after_attempt,
            wait_random_exponential,
        )

        grow = wait_random_exponential(multiplier=0.5, max=self.longest_wait_s)

        def pause(state: RetryCallState) -> float:
            return max(grow(state), min(state.outcome.exception().retry_after_s, 60.0))

        stopping = self.stopping
        tries = Retrying(
            retry=retry_if_exception_type(PassingFault),
            wait=pause,
            stop=lambda state: stopping.is_set() or stop_after_attempt(self.n_attempts)(state),
            sleep=sleep_using_event(stopping),
            reraise=True,
        )
        try:
            return tries(once)
        except PassingFault as error:
            raise EngineError(
                f"The server {self.base_url} did not answer in {self.n_attempts} tries (the last: {error}); all "
                "answers so far are kept, so run the same command again when it is well, or lower engines' n_parallel."
            ) from None

    def send(self, asked: dict) -> dict:
        """Return the body of one answer, as JSON.

        Raises:
            PassingFault: If it may go well another time.
            EngineError: If it will not.
        """
        openai = self._openai
        api = self.client.chat.completions if "messages" in asked else self.client.completions
        try:
            raw = api.with_raw_response.create(model=self.served, **asked)
            body = json.loads(raw.http_response.content)
        except ValueError as error:
            raise PassingFault(f"the answer is no JSON, {type(error).__name__}") from None
        except openai.APIStatusError as error:
            if error.code == FILTERED:
                return {"model": self.served, "choices": [{"text": "", "finish_reason": FILTERED}]}
            raise self._fault_of(error) from None
        except openai.APIConnectionError as error:
            raise PassingFault(self._said(error.__cause__ or error)) from None
        if not isinstance(body, dict) or not isinstance(body.get("choices"), list):
            raise PassingFault("the answer is JSON of another form")
        if len(body["choices"]) != 1 or not isinstance(body["choices"][0], dict):
            raise PassingFault(f"{len(body['choices'])} completions where 1 was asked for")
        return body

    def hidden(self, text: str) -> str:
        """Return a server's words without the key, which some repeat."""
        return text.replace(self._key_text, "[key]") if self._key_text else text

    def _look(self) -> None:
        """Ask what the server serves, so that a wrong address, key or name is said before any work.

        Raises:
            EngineError: If it is not there, refuses the key, or does not know the model.
        """
        try:
            known = json.loads(self.client.models.with_raw_response.list().http_response.content)["data"]
            known = {entry["id"]: entry for entry in known}
        except self._openai.APIConnectionError as error:
            raise EngineError(
                f"There is no server at {self.base_url} ({self._said(error.__cause__ or error)}); start it or correct "
                f"engines' base_url or {URL_VARIABLE}."
            ) from None
        except self._openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise self._fault_of(error) from None
            return  # not every server tells, and one that is busy now may be well later
        except (ValueError, KeyError, TypeError):
            return
        if known and self.served not in known:
            raise EngineError(
                f"The server {self.base_url} serves {', '.join(sorted(known)[:5])}, not {self.served!r}; correct the "
                "model, or engines' served."
            )
        length = known.get(self.served, {}).get("max_model_len")
        self.limit = length if isinstance(length, int) else 0

    def _fault_of(self, error) -> Exception:
        """Return what an answer with an error status means."""
        said, status = self._said(error), error.status_code
        if status in (401, 403):
            return EngineError(
                f"The server {self.base_url} refuses the key in {KEY_VARIABLE} ({said}); export a valid one."
            )
        if error.code == "insufficient_quota":
            return EngineError(
                f"The account at {self.base_url} has nothing left ({said}); all answers so far are kept."
            )
        if status in (408, 409, 425, 429) or status >= 500:
            return PassingFault(f"{status}: {said}", _seconds(error.response.headers.get("retry-after", "")), False)
        if status == 404:
            return EngineError(
                f"The server {self.base_url} does not know {self.served!r} or what is asked of it ({said})."
            )
        return EngineError(
            f"The server {self.base_url} refuses a request ({status}: {said}); is the context too long or an option "
            "unknown to it? Lower max_new_tokens or correct the recipe."
        )

    def _said(self, error: BaseException) -> str:
        return self.hidden(" ".join(str(error).split()) or type(error).__name__)[:200]


def url_of(base_url: str) -> str:
    """Return where the server is: as the recipe says, else as the environment does.

    Raises:
        EngineError: If neither says.
    """
    found = (base_url or os.environ.get(URL_VARIABLE, "")).rstrip("/")
    if not found:
        raise EngineError(
            f"The engine openai needs a server: set {URL_VARIABLE} or engines' base_url, such as "
            "http://localhost:8000/v1."
        )
    return found


def _package():
    try:
        import openai
        import tenacity  # noqa: F401
    except ImportError as error:
        raise EngineError(f"The engine openai is not installed ({error}); run: make openai") from error
    return openai


def _seconds(text: str) -> float:
    """Return a Retry-After header's seconds; 0 for a date or nothing."""
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0


class BudgetSpent(EngineError):
    """The cap leaves no room for another request; what was answered is kept."""


@dataclass(frozen=True)
class Budget:
    """A cap, 0 for none, on all that is spent in an account, whatever the run; prices are for a million tokens.

    Args:
        account: Who spends, such as "my-recipe/teacher".
        max_tokens: Tokens read and written together.
        max_money: In the currency of the prices.
        price_in: Of a million tokens read.
        price_out: Of a million tokens written.
    """

    account: str = ""
    max_tokens: int = 0
    max_money: float = 0.0
    price_in: float = 0.0
    price_out: float = 0.0


class Spending:
    """The running total of an account, safe for several threads.

    A request is reserved at the most it can take before it is sent, and settled at what it took; one whose answer never
    came stays at the most. So the cap is never passed, even after a crash.
    """

    def __init__(self, budget: Budget, items: "Cache | None") -> None:
        self.budget, self.items = budget, items
        self._key, self._lock = fingerprint([budget.account]), threading.Lock()
        kept = items.get_many(SPENDING, [self._key]).get(self._key, {}) if items else {}
        self.n_in, self.n_out = kept.get("n_in", 0), kept.get("n_out", 0)

    @property
    def money(self) -> float:
        """What has been spent, in the currency of the prices."""
        return self._cost(self.n_in, self.n_out)

    def reserve(self, n_in: int, n_out: int) -> bool:
        """Count a request at the most it can take, unless that would pass the cap; say whether it may be sent."""
        with self._lock:
            after_in, after_out = self.n_in + n_in, self.n_out + n_out
            budget = self.budget
            if 0 < budget.max_tokens < after_in + after_out or 0 < budget.max_money < self._cost(after_in, after_out):
                return False
            self.n_in, self.n_out = after_in, after_out
            return True

    def settle(self, reserved: tuple[int, int], took: tuple[int, int]) -> None:
        """Put what a request took in the place of what was reserved for it; both are (read, written)."""
        with self._lock:
            self.n_in += took[0] - reserved[0]
            self.n_out += took[1] - reserved[1]

    def save(self) -> None:
        """Store the total, open reservations included."""
        if self.items:
            with self._lock:
                kept = {"account": self.budget.account, "n_in": self.n_in, "n_out": self.n_out}
            self.items.put_many(SPENDING, {self._key: kept})

    def stop(self, n_left: int) -> BudgetSpent:
        """Return the error that ends the work with so many requests unanswered."""
        budget = self.budget
        cap = f"{budget.max_tokens} tokens" if budget.max_tokens else f"{budget.max_money:g} in money"
        said = f" ({self.money:.4g} in money)" if budget.price_in or budget.price_out else ""
        return BudgetSpent(
            f"The budget of {cap} leaves no room for another request: {self.n_in + self.n_out} tokens are spent{said} "
            f"by {budget.account or 'this account'} and {n_left} requests are not answered yet; all answers are kept, "
            "so raise budget_tokens or budget_money in the recipe and run the same command again."
        )

    def _cost(self, n_in: int, n_out: int) -> float:
        return (n_in * self.budget.price_in + n_out * self.budget.price_out) / 1e6


OPENAI_VERSION = 1  # raised by hand when a change here can change what is asked for or how it is read
TEMPLATE_TOKENS = 50  # what a server's chat template may add; only where no tokenizer is at hand, to reserve enough


class OpenAIEngine(RecordingEngine):
    """Completions by a server.

    Promise: none about what the server draws or runs; each answer is stored with the name the server gives its model,
    and the date. Every request is answered once or the call ends with an error, and what was answered is kept.

    Args:
        ref: Folder or hub id of the model, whose tokenizer and chat template render the prompts ("completions"); for
            "chat" the name that the server knows, since the server renders.
        base_url: Where the server is, such as "http://localhost:8000/v1"; "" for OPENAI_BASE_URL.
        served: The model's name on the server; "" for ref.
        endpoint: "completions" or "chat".
        n_parallel: Requests under way at once.
        timeout_s: Seconds until a request that hangs is given up and asked again.
        n_attempts: How often a request is tried in all.
        longest_wait_s: The longest pause between two tries; a server that asks for more is given it up to 60 s.
        budget: The cap on what is spent.
    """

    name = "openai"

    def __init__(
        self,
        ref: str,
        base_url: str = "",
        served: str = "",
        endpoint: Literal["completions", "chat"] = "completions",
        n_parallel: int = 16,
        timeout_s: float = 120.0,
        n_attempts: int = 6,
        longest_wait_s: float = 20.0,
        budget: Budget | None = None,
    ) -> None:
        self.endpoint, self.n_parallel, self.budget = endpoint, n_parallel, budget or Budget()
        self.tokenizer, self.model, self.ends = None, "", []
        if endpoint == "completions":
            folder = resolve(ref)
            self.tokenizer, self.model = load_tokenizer(folder), fingerprint_model(folder)
            self.ends = end_tokens(self.tokenizer, None)
        self.server = Server(base_url, served or str(ref), timeout_s, n_attempts, longest_wait_s)

    def __repr__(self) -> str:
        return f"OpenAIEngine({self.server.served} at {self.server.base_url}, {self.endpoint})"

    def identity(self) -> list:
        """Return engine, code version, server, name of the model there, and what the recipe says it is."""
        return [self.name, OPENAI_VERSION, [self.server.base_url, self.server.served, self.endpoint, self.model]]

    def render(self, user_text: str) -> str:
        """Return the prompt that is sent: for "chat" the user's text itself."""
        return super().render(user_text) if self.tokenizer else user_text

    def render_shared(self, prefix: str, rest: str) -> tuple[str, str]:
        """Render prefix + rest as one user's text; return the prompt and how it begins."""
        return super().render_shared(prefix, rest) if self.tokenizer else (prefix + rest, prefix)

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Return how probable each continuation is after its prompt, from servers that echo a prompt with its tokens.

        Raises:
            EngineError: If this one does not.
        """
        if not self.tokenizer:
            return super().likelihoods(pairs)
        before = prompt_ids(self.tokenizer, [prompt for prompt, _ in pairs], self.ends)
        after = continuation_ids(self.tokenizer, [text for _, text in pairs])
        found = []
        for head, tail in zip(before, after, strict=True):
            asked = {"prompt": head + tail, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
            (choice,) = self.server.tried(lambda asked=asked: self.server.send(asked))["choices"]
            given = (choice.get("logprobs") or {}).get("token_logprobs") or []
            if len(given) < len(head) + len(tail):
                raise EngineError(
                    f"The server {self.server.base_url} does not echo a prompt with its log-probabilities; take "
                    "the engine transformers or vllm for this role."
                )
            found.append(Likelihood(sum(given[len(head) : len(head) + len(tail)]), len(tail)))
        return found

    def generate(self, requests, decoding, seed=0, items=None, progress=None) -> list[Completion]:
        """Return one completion per request, in their order, as RecordingEngine.generate says; within the budget.

        Raises:
            BudgetSpent: If the cap leaves no room for another request; all answers are kept.
        """
        self._spending = Spending(self.budget, items)
        return super().generate(requests, decoding, seed, items, progress)

    def close(self) -> None:
        """Close the connections."""
        self.server.client.close()
        super().close()

    def _rows(self, requests: dict[str, Request], decoding: Decoding) -> dict[str, TokenizedRequest]:
        texts = [request.prompt for request in requests.values()]
        ids_of = prompt_ids(self.tokenizer, texts, self.ends) if self.tokenizer else [[]] * len(texts)
        for request, ids in zip(requests.values(), ids_of, strict=True):
            if self.tokenizer:
                limit = self.server.limit or len(ids) + decoding.max_new_tokens
                refuse_unfit(self.server.served, request, len(ids), decoding.max_new_tokens, limit)
        return {
            key: TokenizedRequest(key, request, ids)
            for (key, request), ids in zip(requests.items(), ids_of, strict=True)
        }

    def _finish(
        self, rows: dict[str, TokenizedRequest], done: dict[str, Completion], decoding: Decoding, seed: int
    ) -> Iterator[dict[str, Finished]]:
        """Yield what is known, then answers as they come; prompts that begin alike go out one after another."""
        if done:
            yield {key: Finished(completion) for key, completion in done.items()}
        left = deque(sorted((row for row in rows.values() if row.key not in done), key=lambda row: row.request.prompt))
        under_way: dict[Future, tuple[TokenizedRequest, tuple[int, int]]] = {}
        fault: EngineError | None = None
        self.server.stopping.clear()
        pool = ThreadPoolExecutor(self.n_parallel, "server")
        try:
            while left or under_way:
                while left and not fault and len(under_way) < self.n_parallel:
                    reserved = self._most(left[0], decoding)
                    if not self._spending.reserve(*reserved):
                        # Those under way may take less than they reserve.
                        fault = None if under_way else self._spending.stop(len(left))
                        break
                    row = left.popleft()
                    under_way[pool.submit(self._answer, row, decoding)] = (row, reserved)
                part = {}
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    row, reserved = under_way.pop(future)
                    try:
                        part[row.key], took = future.result()
                        self._spending.settle(reserved, took)
                    except EngineError as error:
                        # A cap that is reached names the way on; another fault comes first.
                        fault = error
                self._spending.save()
                if part:
                    yield part
                if fault and not under_way:
                    raise fault
        finally:
            self.server.stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _most(self, row: TokenizedRequest, decoding: Decoding) -> tuple[int, int]:
        """Return the most tokens a request can read and write."""
        # No token has less than a byte.
        return len(row.ids) or len(row.request.prompt.encode()) + TEMPLATE_TOKENS, decoding.max_new_tokens

    def _answer(self, row: TokenizedRequest, decoding: Decoding) -> tuple[Finished, tuple[int, int]]:
        """Return what the server answers to one request, and the tokens (read, written) that took."""
        asked = {"max_tokens": decoding.max_new_tokens, "temperature": decoding.temperature, "top_p": decoding.top_p}
        if decoding.stop:
            asked["stop"] = list(decoding.stop)
        if self.endpoint == "chat":
            asked["messages"] = [{"role": "user", "content": row.request.prompt}]
        else:
            asked["prompt"] = row.request.prompt
        most = self._most(row, decoding)

        def once() -> tuple[Finished, tuple[int, int]]:
            try:
                return self._read(self.server.send(asked), most)
            except PassingFault as fault:
                # The try that was lost stays reserved, and the next one needs room of its own.
                if fault.charged and not self._spending.reserve(*most):
                    raise self._spending.stop(1) from None
                raise

        return self.server.tried(once)

    def _read(self, body: dict, most: tuple[int, int]) -> tuple[Finished, tuple[int, int]]:
        """Return the completion in an answer, and the tokens it took; those not told are counted at the most."""
        (choice,) = body["choices"]
        message = choice.get("message") or {}
        reason, refusal = choice.get("finish_reason"), message.get("refusal")
        text = message.get("content") if message else choice.get("text")
        refused = bool(refusal) or reason == FILTERED
        if not refused and (not isinstance(text, str) or not isinstance(reason, str)):
            raise PassingFault("the answer lacks its text or the reason why it ended")
        text = text if isinstance(text, str) else ""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise PassingFault("the answer is not valid Unicode") from None
        used = body.get("usage") or {}
        took = tuple(
            used[name] if isinstance(used.get(name), int) and used[name] >= 0 else n
            for name, n in zip(("prompt_tokens", "completion_tokens"), most, strict=True)
        )
        notes = {"model": str(body.get("model", "")), "date": datetime.now(UTC).isoformat(timespec="seconds")}
        if refused:
            notes["refusal"] = self.server.hidden(str(refusal or reason))
            text = ""
        return Finished(Completion(text, took[1], reason != "length"), notes, refused), took
