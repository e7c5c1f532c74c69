"""Text from any OpenAI-compatible server, through the `openai` client: many requests at once, within a budget.

Server and key come from the environment (OPENAI_BASE_URL, OPENAI_API_KEY) or the server from the recipe; a key never
from a recipe. The client waits and tries again; what a server sends is believed only as far as it can be checked.
"""

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from workbench.models.engine import (
    Completion,
    Decoding,
    Engine,
    Finished,
    Request,
    TokenizedRequest,
    end_tokens,
    prompt_ids,
    refuse_unfit,
)
from workbench.models.loading import fingerprint_model, load_tokenizer, resolve
from workbench.runs.cache import SPENDING
from workbench.runs.errors import ModelError
from workbench.runs.run import fingerprint

if TYPE_CHECKING:
    import httpx2

    from workbench.runs.cache import Cache


KEY_VARIABLE, URL_VARIABLE = "OPENAI_API_KEY", "OPENAI_BASE_URL"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
FILTERED = "content_filter"
MOST_BYTES = 32 * 2**20  # of one answer
OPENAI_VERSION = 1  # raised by hand when a change here can change what is asked for or how it is read
TEMPLATE_TOKENS = 50  # what a server's chat template may add; only where no tokenizer is at hand, to reserve enough


def url_of(base_url: str) -> str:
    """Return where the server is: as the recipe says, else as the environment does.

    Raises:
        ModelError: If neither says.
    """
    url = (base_url or os.environ.get(URL_VARIABLE, "")).rstrip("/")
    if not url:
        raise ModelError(
            f"The engine openai needs a server: set {URL_VARIABLE} or engines' base_url, such as "
            "http://localhost:8000/v1."
        )
    return url


def http_client(timeout_s: float, check: Callable[[dict], object], stopping: threading.Event) -> "httpx2.Client":
    """Return the client that all requests go through, with the limits that hold for every answer.

    An answer is whole within timeout_s and MOST_BYTES, and comes from the server that was asked: the key is for nobody
    else, so redirects are not followed.

    Args:
        timeout_s: Seconds until a request that hangs, or that comes in drops, is given up.
        check: Called with the body of every completion; what it cannot read counts as a connection lost, which the
            openai client tries again.
        stopping: Once set, nothing is sent or tried again.
    """
    import httpx2
    import openai

    class LimitedClient(openai.DefaultHttpxClient):
        def send(self, request, **options):
            if stopping.is_set():
                raise ModelError("The work was stopped; all answers so far are kept.")
            ends, body = time.monotonic() + timeout_s, bytearray()
            response = super().send(request, **options | {"stream": True})
            try:
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > MOST_BYTES:
                        raise httpx2.RemoteProtocolError(f"the answer is longer than {MOST_BYTES} bytes")
                    if time.monotonic() > ends:
                        raise httpx2.ReadTimeout(f"the answer took more than {timeout_s:g} s")
                if response.is_success and request.method == "POST":
                    check(json.loads(body))
            except (ValueError, TypeError, AttributeError) as error:
                raise httpx2.RemoteProtocolError(f"an answer that cannot be used, {error}") from None
            finally:
                response.close()
            # As plain content, since it was decoded here.
            headers = {name: value for name, value in response.headers.items() if name != "content-encoding"}
            return httpx2.Response(response.status_code, headers=headers, content=bytes(body), request=request)

        def __del__(self):
            # An engine that a notebook lets go leaves no connection open.
            if not self.is_closed:
                self.close()

    return LimitedClient(timeout=timeout_s, follow_redirects=False)


@dataclass
class Budget:
    """A cap, 0 for none, on all that is spent in an account, whatever the run, and what has been spent so far.

    Requests under way count with the most they can take, others with what they took. So the cap is not passed, even
    after a crash, but for tries that the client made again: a server may charge for an answer that was lost on the way.

    Args:
        account: Who spends, such as "my-recipe/teacher".
        max_tokens: Tokens read and written together.
        max_money: In the currency of the prices.
        price_in: Of a million tokens read.
        price_out: Of a million tokens written.
        n_in: Tokens read.
        n_out: Tokens written.
    """

    account: str = ""
    max_tokens: int = 0
    max_money: float = 0.0
    price_in: float = 0.0
    price_out: float = 0.0
    n_in: int = 0
    n_out: int = 0

    def load(self, items: "Cache") -> None:
        """Go on from the total that the account has come to."""
        key = fingerprint([self.account])
        kept = items.get_many(SPENDING, [key]).get(key, {})
        self.n_in, self.n_out = kept.get("n_in", 0), kept.get("n_out", 0)

    def save(self, items: "Cache") -> None:
        """Store the total."""
        total = {"account": self.account, "n_in": self.n_in, "n_out": self.n_out}
        items.put_many(SPENDING, {fingerprint([self.account]): total})

    def add(self, n_in: int, n_out: int) -> None:
        """Count tokens read and written; negative ones take back what was reserved."""
        self.n_in, self.n_out = self.n_in + n_in, self.n_out + n_out

    def allows(self, n_in: int, n_out: int) -> bool:
        """Say whether so many more tokens stay within the cap."""
        n_in, n_out = self.n_in + n_in, self.n_out + n_out
        within = not self.max_money or self._cost(n_in, n_out) <= self.max_money
        return within and (not self.max_tokens or n_in + n_out <= self.max_tokens)

    def spent(self, n_left: int) -> ModelError:
        """Return the error that ends the work with so many requests unanswered."""
        cap = f"{self.max_tokens} tokens" if self.max_tokens else f"{self.max_money:g} in money"
        cost = self._cost(self.n_in, self.n_out)
        return ModelError(
            f"The budget of {cap} leaves no room for another request: {self.n_in + self.n_out} tokens are spent"
            f"{f' ({cost:.4g} in money)' if cost else ''} by {self.account or 'this account'} and {n_left} requests "
            "are not answered yet; all answers are kept, so raise budget_tokens or budget_money in the recipe and run "
            "the same command again."
        )

    def _cost(self, n_in: int, n_out: int) -> float:
        return (n_in * self.price_in + n_out * self.price_out) / 1e6


class OpenAIEngine(Engine):
    """Completions by a server, looked for when this is made.

    Promise: none about what the server draws or runs; each answer is stored with the name the server gives its model,
    and the date. Every request is answered once or the call ends with an error, and what was answered is kept.

    Args:
        ref: Folder or hub id of the model, whose tokenizer and chat template render the prompts ("completions"); for
            "chat" the name that the server knows, since the server renders.
        base_url: Where the server is, such as "http://localhost:8000/v1"; "" for OPENAI_BASE_URL.
        model_name: The model's name on the server; "" for ref.
        endpoint: "completions" or "chat".
        max_concurrency: Requests under way at once.
        timeout_s: Seconds until a request that hangs is given up and asked again.
        max_retries: How often a request that failed is tried again, with the client's growing pauses.
        budget: The cap on what is spent.

    Attributes:
        limit: Most tokens of prompt and completion together, as the server tells; 0 if it does not.

    Raises:
        ModelError: If the server is not there, refuses the key, or does not know the model.
    """

    name = "openai"

    def __init__(
        self,
        ref: str,
        base_url: str = "",
        model_name: str = "",
        endpoint: Literal["completions", "chat"] = "completions",
        max_concurrency: int = 16,
        timeout_s: float = 120.0,
        max_retries: int = 5,
        budget: Budget | None = None,
    ) -> None:
        self.endpoint, self.max_concurrency, self.budget = endpoint, max_concurrency, budget or Budget()
        self.tokenizer, self.fingerprint, self.ends = None, "", []
        if endpoint == "completions":
            folder = resolve(ref)
            self.tokenizer, self.fingerprint = load_tokenizer(folder), fingerprint_model(folder)
            self.ends = end_tokens(self.tokenizer, None)
        self.base_url, self.model_name = url_of(base_url), model_name or str(ref)
        self._secret, self._stopping, self.limit = os.environ.get(KEY_VARIABLE, ""), threading.Event(), 0
        self._connect(timeout_s, max_retries)

    def __repr__(self) -> str:
        return f"OpenAIEngine({self.model_name} at {self.base_url}, {self.endpoint})"

    def identity(self) -> list:
        """Return engine, code version, server, name of the model there, and what the recipe says it is."""
        return [self.name, OPENAI_VERSION, [self.base_url, self.model_name, self.endpoint, self.fingerprint]]

    def render(self, user_text: str) -> str:
        """Return the prompt that is sent: for "chat" the user's text itself."""
        return super().render(user_text) if self.tokenizer else user_text

    def render_shared(self, prefix: str, rest: str) -> tuple[str, str]:
        """Render prefix + rest as one user's text; return the prompt and how it begins."""
        return super().render_shared(prefix, rest) if self.tokenizer else (prefix + rest, prefix)

    def generate(self, requests, decoding, seed=0, items=None, progress=None) -> list[Completion]:
        """Return one completion per request, in their order, as Engine.generate says; within the budget.

        Raises:
            ModelError: If the cap leaves no room for another request; all answers are kept.
        """
        self._items = items
        if items:
            self.budget.load(items)
        return super().generate(requests, decoding, seed, items, progress)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()
        super().close()

    def _rows(self, requests: dict[str, Request], decoding: Decoding) -> dict[str, TokenizedRequest]:
        if not self.tokenizer:
            return {key: TokenizedRequest(key, request, []) for key, request in requests.items()}
        rows = {}
        ids_of = prompt_ids(self.tokenizer, [request.prompt for request in requests.values()], self.ends)
        for (key, request), ids in zip(requests.items(), ids_of, strict=True):
            limit = self.limit or len(ids) + decoding.max_new_tokens
            refuse_unfit(self.model_name, request, len(ids), decoding.max_new_tokens, limit)
            rows[key] = TokenizedRequest(key, request, ids)
        return rows

    def _finish(
        self, rows: dict[str, TokenizedRequest], done: dict[str, Completion], decoding: Decoding, seed: int
    ) -> Iterator[dict[str, Finished]]:
        """Yield what is known, then answers as they come; prompts that begin alike go out one after another."""
        if done:
            yield {key: Finished(completion) for key, completion in done.items()}
        left = deque(sorted((row for row in rows.values() if row.key not in done), key=lambda row: row.request.prompt))
        under_way: dict[Future, tuple[TokenizedRequest, tuple[int, int]]] = {}
        fault: ModelError | None = None
        self._stopping.clear()
        pool = ThreadPoolExecutor(self.max_concurrency, "server")
        try:
            while left or under_way:
                while left and not fault and len(under_way) < self.max_concurrency:
                    most = self._most(left[0], decoding)
                    if not self.budget.allows(*most):
                        # Those under way may take less than they reserve.
                        fault = None if under_way else self.budget.spent(len(left))
                        break
                    row = left.popleft()
                    self.budget.add(*most)
                    under_way[pool.submit(self._answer, row, decoding, most)] = (row, most)
                part = {}
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    row, most = under_way.pop(future)
                    try:
                        part[row.key], took = future.result()
                        self.budget.add(took[0] - most[0], took[1] - most[1])
                    except ModelError as error:
                        fault = error
                if self._items:
                    self.budget.save(self._items)
                if part:
                    yield part
                if fault and not under_way:
                    raise fault
        finally:
            if under_way:
                self._stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _most(self, row: TokenizedRequest, decoding: Decoding) -> tuple[int, int]:
        """Return the most tokens a request can read and write."""
        # No token has less than a byte.
        return len(row.ids) or len(row.request.prompt.encode()) + TEMPLATE_TOKENS, decoding.max_new_tokens

    def _answer(
        self, row: TokenizedRequest, decoding: Decoding, most: tuple[int, int]
    ) -> tuple[Finished, tuple[int, int]]:
        """Return what the server answers to one request, and the tokens (read, written) that took."""
        asked = {"max_tokens": decoding.max_new_tokens, "temperature": decoding.temperature, "top_p": decoding.top_p}
        if decoding.stop:
            asked["stop"] = list(decoding.stop)
        if self.endpoint == "chat":
            asked["messages"] = [{"role": "user", "content": row.request.prompt}]
        else:
            asked["prompt"] = row.request.prompt
        return self._read(self._ask(**asked), most)

    def _read(self, body: dict, most: tuple[int, int] = (0, 0)) -> tuple[Finished, tuple[int, int]]:
        """Return the completion in an answer, and the tokens it took; those not told are counted at the most.

        Raises:
            ValueError: If it is no answer to what was asked.
        """
        choices = body.get("choices") if isinstance(body, dict) else None
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise ValueError("it is JSON of another form")
        if len(choices) != 1:
            raise ValueError(f"{len(choices)} completions where one was asked for")
        message, reason = choices[0].get("message") or {}, choices[0].get("finish_reason")
        text, refusal = message.get("content") if message else choices[0].get("text"), message.get("refusal")
        notes = {"model": str(body.get("model", "")), "date": datetime.now(UTC).isoformat(timespec="seconds")}
        refused = bool(refusal) or reason == FILTERED
        if refused:
            notes["refusal"], text = self._hidden(str(refusal or reason)), ""
        elif not isinstance(text, str) or not isinstance(reason, str):
            raise ValueError("it lacks its text or the reason why it ended")
        text.encode()  # a lone surrogate cannot be stored, and is a ValueError
        used = body.get("usage") or {}
        told = [used.get(name) for name in ("prompt_tokens", "completion_tokens")]
        took = tuple(n if isinstance(n, int) and n >= 0 else limit for n, limit in zip(told, most, strict=True))
        return Finished(Completion(text, took[1], reason != "length"), notes, refused), took

    def _connect(self, timeout_s: float, max_retries: int) -> None:
        """Ask what the server serves, so that a wrong address, key or name is said before any work."""
        try:
            import openai
        except ImportError as error:
            raise ModelError(f"The engine openai is not installed ({error}); run: make openai") from error
        if not self._secret and urlsplit(self.base_url).hostname not in LOOPBACK:
            raise ModelError(
                f"The server {self.base_url} needs a key and {KEY_VARIABLE} is not set; export it in the shell that "
                "starts the workbench, never in a recipe or notebook."
            )
        self.client = openai.OpenAI(
            base_url=self.base_url,
            api_key=self._secret or "none",
            timeout=timeout_s,
            max_retries=max_retries,
            http_client=http_client(timeout_s, self._read, self._stopping),
        )
        try:
            listed = self.client.with_options(max_retries=0).models.with_raw_response.list()
            known = {entry["id"]: entry for entry in json.loads(listed.http_response.content)["data"]}
        except openai.APIConnectionError as error:
            raise ModelError(
                f"There is no server at {self.base_url} ({self._words(error.__cause__ or error)}); start it or correct "
                f"engines' base_url or {URL_VARIABLE}."
            ) from None
        except openai.APIStatusError as error:
            if error.status_code in (401, 403) or error.status_code // 100 == 3:
                raise self._fault_of(error) from None
            return  # not every server tells, and one that is busy now may be well later
        except (ValueError, KeyError, TypeError):
            return
        if known and self.model_name not in known:
            raise ModelError(
                f"The server {self.base_url} serves {', '.join(sorted(known)[:5])}, not {self.model_name!r}; correct "
                "the model, or engines' model_name."
            )
        length = known.get(self.model_name, {}).get("max_model_len")
        self.limit = length if isinstance(length, int) else 0

    def _ask(self, **asked) -> dict:
        """Return the body of the answer to one completion; the client waits and tries again.

        Raises:
            ModelError: If there is none.
        """
        import openai

        api = self.client.chat.completions if "messages" in asked else self.client.completions
        try:
            raw = api.with_raw_response.create(model=self.model_name, **asked)
        except openai.APIStatusError as error:
            if error.code == FILTERED:
                return {"choices": [{"text": "", "finish_reason": FILTERED}], "model": self.model_name}
            raise self._fault_of(error) from None
        except openai.APIConnectionError as error:
            raise self._gave_up(self._words(error.__cause__ or error)) from None
        return json.loads(raw.http_response.content)

    def _gave_up(self, last: str) -> ModelError:
        return ModelError(
            f"The server {self.base_url} did not answer in {self.client.max_retries + 1} tries (the last: {last}); all "
            "answers so far are kept, so run the same command again when it is well, or lower engines' max_concurrency."
        )

    def _fault_of(self, error) -> ModelError:
        """Return what an answer with an error status means."""
        words, status, server = self._words(error), error.status_code, f"The server {self.base_url}"
        if status in (401, 403):
            return ModelError(f"{server} refuses the key in {KEY_VARIABLE} ({words}); export a valid one.")
        if error.code == "insufficient_quota":
            return ModelError(
                f"The account at {self.base_url} has nothing left ({words}); all answers so far are kept."
            )
        if status in (408, 409, 429) or status >= 500:
            return self._gave_up(words)
        if status // 100 == 3:
            return ModelError(f"{server} sends requests elsewhere ({words}); correct engines' base_url.")
        if status == 404:
            return ModelError(f"{server} does not know {self.model_name!r} or what is asked of it ({words}).")
        return ModelError(
            f"{server} refuses a request ({words}); is the context too long or an option unknown to it? Lower "
            "max_new_tokens or correct the recipe."
        )

    def _hidden(self, text: str) -> str:
        """Return a server's words without the key, which some repeat."""
        return text.replace(self._secret, "[key]") if self._secret else text

    def _words(self, error: BaseException) -> str:
        return self._hidden(" ".join(str(error).split()) or type(error).__name__)[:200]
