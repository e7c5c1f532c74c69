"""Text from any OpenAI-compatible server, through the `openai` client: many requests at once, within a budget.

Server and key come from the environment (OPENAI_BASE_URL, OPENAI_API_KEY) or the server from the recipe; a key never
from a recipe. The client waits and tries again; what a server sends is believed only as far as it can be checked.
"""

import json
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from workbench.models.engine import Completion, Decoding, Engine, Finished, Request, TokenizedRequest, end_tokens
from workbench.models.loading import fingerprint_model, load_tokenizer, resolve
from workbench.runs.cache import SPENDING
from workbench.runs.errors import ModelError, redact, secret, visible
from workbench.runs.run import fingerprint

if TYPE_CHECKING:
    from workbench.runs.cache import Cache


KEY_VARIABLE, URL_VARIABLE = "OPENAI_API_KEY", "OPENAI_BASE_URL"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
FILTERED = "content_filter"
SPENT = (
    "A server used up max_new_tokens without a word of an answer, which a model does that reasons first: its answer "
    "counts as cut off; raise max_new_tokens in the recipe."
)
MOST_BYTES = 4_000_000  # of an answer; texts here are a thousand times shorter
OPENAI_VERSION = 1  # raised by hand when a change here can change what is asked for or how it is read


def url_of(base_url: str) -> str:
    """Return where the server is: as the recipe says, else as the environment does; a ModelError if neither says."""
    url = (base_url or os.environ.get(URL_VARIABLE, "")).rstrip("/")
    if not url:
        raise ModelError(
            f"The engine openai needs a server: set {URL_VARIABLE} or engines' base_url, such as "
            "http://localhost:8000/v1."
        )
    return url


@dataclass
class Budget:
    """A cap, 0 for none, on the tokens that an account (such as "my-recipe/teacher") reads and writes in all its runs.

    It is checked before each request, when those under way are not counted yet: with max_concurrency requests at once
    it can be passed by what they take.
    """

    account: str = ""
    max_tokens: int = 0
    n_tokens: int = 0

    def load(self, items: "Cache") -> None:
        """Go on from the total that the account has come to."""
        key = fingerprint([self.account])
        kept = items.get_many(SPENDING, [key]).get(key, {})
        # Once kept in two parts, those read and those written.
        self.n_tokens = sum(n for name, n in kept.items() if name != "account")

    def save(self, items: "Cache") -> None:
        """Store the total."""
        items.put_many(SPENDING, {fingerprint([self.account]): {"account": self.account, "n_tokens": self.n_tokens}})

    def spent(self, n_left: int) -> ModelError | None:
        """Return the error that ends the work with so many requests unanswered, once nothing is left to spend."""
        if not self.max_tokens or self.n_tokens < self.max_tokens:
            return None
        return ModelError(
            f"The budget of {self.max_tokens} tokens leaves no room for another request: {self.n_tokens} tokens are "
            f"spent by {self.account} and {n_left} requests are not answered yet; all answers are "
            "kept, so raise budget_tokens in the recipe and run the same command again."
        )


class OpenAIEngine(Engine):
    """Completions by a server, looked for when this is made.

    Promise: none about what the server draws or runs; each answer is stored with the name the server gives its model,
    and the date. Every request is answered once or the call ends with an error, and what was answered is kept.

    Args:
        ref: Folder or hub id of the model, whose tokenizer and chat template render the prompts ("completions"); for
            "chat" the name that the server knows, since the server renders.
        base_url: "" for OPENAI_BASE_URL; this and the others are as a recipe's engines have them.
        budget: The cap on what is spent.

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
        reasoning: bool = False,
        insecure: bool = False,
        budget: Budget | None = None,
    ) -> None:
        self.endpoint, self.max_concurrency, self.budget = endpoint, max_concurrency, budget or Budget()
        self.reasoning, self.timeout_s = reasoning, timeout_s
        # A chat server renders by itself.
        self.tokenizer, self.fingerprint, self.ends = None, "", []
        if endpoint == "completions":
            folder = resolve(ref)
            self.tokenizer, self.fingerprint = load_tokenizer(folder), fingerprint_model(folder)
            self.ends = end_tokens(self.tokenizer, None)
        self.base_url, self.model_name = url_of(base_url), model_name or str(ref)
        self._stopping, self.limit = threading.Event(), 0
        self._connect(self._key_to_send(insecure), max_retries)

    def __repr__(self) -> str:
        return f"OpenAIEngine({self.model_name} at {self.base_url}, {self.endpoint})"

    def identity(self) -> list:
        """Return engine, code version, server, name of the model there, and what the recipe says it is."""
        at = [self.base_url, self.model_name, self.endpoint, self.fingerprint]
        return [self.name, OPENAI_VERSION, at + ["reasoning"] * self.reasoning]

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

    def __del__(self) -> None:
        # An engine that a notebook lets go leaves no connection open.
        if "client" in vars(self):
            self.close()

    def _rows(self, requests: dict[str, Request], decoding: Decoding) -> dict[str, TokenizedRequest]:
        if self.tokenizer is None:
            return {key: TokenizedRequest(key, request, []) for key, request in requests.items()}
        return super()._rows(requests, decoding)

    def _finish(
        self, rows: dict[str, TokenizedRequest], done: dict[str, Completion], decoding: Decoding, seed: int
    ) -> Iterator[dict[str, Finished]]:
        """Yield what is known, then answers as they come; prompts that begin alike go out one after another."""
        if done:
            yield {key: Finished(completion) for key, completion in done.items()}
        left = deque(sorted((row for row in rows.values() if row.key not in done), key=lambda row: row.request.prompt))
        under_way: dict[Future, str] = {}
        fault: ModelError | None = None
        self._stopping.clear()
        pool = ThreadPoolExecutor(self.max_concurrency, "server")
        try:
            while left or under_way:
                while (
                    left
                    and len(under_way) < self.max_concurrency
                    and not (fault := fault or self.budget.spent(len(left)))
                ):
                    row = left.popleft()
                    under_way[pool.submit(self._answer, row, decoding)] = row.key
                part = {}
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    key = under_way.pop(future)
                    try:
                        part[key], n_tokens = future.result()
                        self.budget.n_tokens += n_tokens
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

    def _answer(self, row: TokenizedRequest, decoding: Decoding) -> tuple[Finished, int]:
        """Return what the server answers to one request, and the tokens, read and written, that it took.

        Raises:
            ModelError: If there is none; the client waits and tries again before.
        """
        import openai

        asked: dict = {"max_tokens": decoding.max_new_tokens}
        asked |= {"temperature": decoding.temperature, "top_p": decoding.top_p}
        if self.reasoning:
            asked = {"max_completion_tokens": decoding.max_new_tokens}
        prompt = row.request.prompt
        if self.endpoint == "chat":
            api, asked["messages"] = self.client.chat.completions, [{"role": "user", "content": prompt}]
        else:
            api, asked["prompt"] = self.client.completions, prompt
        try:
            raw = api.with_raw_response.create(model=self.model_name, **asked)
        except openai.APIStatusError as error:
            if error.code == FILTERED:
                return self._read({"choices": [{"text": "", "finish_reason": FILTERED}]})
            raise self._fault_of(error) from None
        except openai.APIConnectionError as error:
            raise self._gave_up(self._words(error.__cause__ or error)) from None
        # No token has less than a byte.
        return self._read(json.loads(raw.http_response.content), len(prompt.encode()), decoding.max_new_tokens)

    def _read(self, body: Any, most_in: int = 0, most_out: int = 0) -> tuple[Finished, int]:
        """Return the completion in an answer, and the tokens it took; those not told are counted at the most.

        Raises:
            ValueError: If it is no answer to what was asked.
        """
        body = redact(body)
        if not isinstance(body, dict):
            raise ValueError("it is JSON of another form")
        if isinstance(choices := body.get("choices"), list) and len(choices) != 1:
            raise ValueError(f"{len(choices)} completions where one was asked for")
        if not isinstance(choices, list) or not isinstance(choices[0], dict):
            told = visible(str(body.get("error") or ""), 200)
            raise ValueError(f"the server says: {told}" if told else "it is JSON of another form")
        message, reason = choices[0].get("message", choices[0]), choices[0].get("finish_reason")
        if not isinstance(message, dict) or not isinstance(reason, str):
            raise ValueError("it lacks its text or the reason why it ended")
        text, refusal = message.get("content", message.get("text")), message.get("refusal")
        if isinstance(text, list):
            text = "".join(str(part["text"]) for part in text if isinstance(part, dict) and part.get("type") == "text")
        if text is None and reason == "length":
            text = ""
            warnings.warn(SPENT, stacklevel=2)
        notes = {"model": str(body.get("model", ""))[:200], "date": datetime.now(UTC).isoformat(timespec="seconds")}
        refused = bool(refusal) or reason == FILTERED
        if refused:
            notes["refusal"], text = str(refusal or reason), ""
        elif not isinstance(text, str):
            raise ValueError("it lacks its text or the reason why it ended")
        json.dumps([text, notes], ensure_ascii=False).encode()  # a lone surrogate cannot be stored: a ValueError
        used = body["usage"] if isinstance(body.get("usage"), dict) else {}
        n_in, n_out = (
            told if isinstance(told := used.get(name), int) and told >= 0 else most
            for name, most in (("prompt_tokens", most_in), ("completion_tokens", most_out))
        )
        return Finished(Completion(text, n_out, reason != "length"), notes, refused), n_in + n_out

    def _key_to_send(self, insecure: bool) -> str:
        """Return the key in the environment, "" if there is none and none is needed.

        Raises:
            ModelError: If it is missing, is no key, or would go over the net for all to read.
        """
        key, address = secret(KEY_VARIABLE), urlsplit(self.base_url)
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ModelError(
                f"The key in {KEY_VARIABLE} has a blank, a control character or a letter that no key has; export it "
                "again as it was given."
            )
        if address.hostname in LOOPBACK:
            return key
        if address.scheme != "https" and not insecure:
            raise ModelError(
                f"The server {self.base_url} would be sent key and prompts in clear; take https, or set insecure: true "
                "for it under engines where the net between is your own."
            )
        if not key:
            raise ModelError(
                f"The server {self.base_url} needs a key and {KEY_VARIABLE} is not set; export it in the shell that "
                "starts the workbench, never in a recipe or notebook."
            )
        return key

    def _connect(self, key: str, max_retries: int) -> None:
        """Ask what the server serves, so that a wrong address, key or name is said before any work."""
        try:
            import openai
        except ImportError as error:
            raise ModelError(f"The engine openai is not installed ({error}); run: make openai") from error
        # The key is for nobody else, so redirects are not followed.
        hooks = {"request": [self._stop], "response": [self._check]}
        self.client = openai.OpenAI(
            base_url=self.base_url,
            api_key=key or "none",
            timeout=self.timeout_s,
            default_headers={"Accept-Encoding": "identity"},
            max_retries=max_retries,
            http_client=openai.DefaultHttpxClient(timeout=self.timeout_s, follow_redirects=False, event_hooks=hooks),
        )
        try:
            listed = self.client.with_options(max_retries=0).models.with_raw_response.list()
            entries = redact(json.loads(listed.http_response.content)["data"])
            known = {str(entry["id"]): dict(entry) for entry in entries}
        except openai.APIConnectionError as error:
            raise ModelError(
                f"There is no server at {self.base_url} ({self._words(error.__cause__ or error)}); start it or correct "
                f"engines' base_url or {URL_VARIABLE}."
            ) from None
        except openai.APIStatusError as error:
            if error.status_code in (401, 403) or error.status_code // 100 == 3:
                raise self._fault_of(error) from None
            return  # not every server tells, and one that is busy now may be well later
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        if known and self.model_name not in known:
            raise ModelError(
                f"The server {self.base_url} serves {visible(', '.join(sorted(known)[:5]), 200)}, not "
                f"{self.model_name!r}; correct the model, or engines' model_name."
            )
        length = known.get(self.model_name, {}).get("max_model_len")
        self.limit = length if isinstance(length, int) else 0

    def _stop(self, request) -> None:
        if self._stopping.is_set():
            raise ModelError("The work was stopped; all answers so far are kept.")
        request.extensions["ends"] = time.monotonic() + self.timeout_s

    def _check(self, response) -> None:
        """Let a completion that cannot be read count as a connection lost, which the client tries again.

        The client's own time limit is for each read, so that a byte a second would hold it for ever.
        """
        import httpx2

        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise httpx2.RemoteProtocolError("an answer that is compressed, which was not asked for")

        class Bounded(httpx2.SyncByteStream):
            def __iter__(self) -> Iterator[bytes]:
                n_bytes = 0
                for part in whole:
                    n_bytes += len(part)
                    if n_bytes > MOST_BYTES:
                        raise httpx2.RemoteProtocolError(f"an answer of more than {MOST_BYTES:,} bytes")
                    if time.monotonic() > response.request.extensions["ends"]:
                        raise httpx2.ReadTimeout("an answer that did not end in time")
                    yield part

            def close(self) -> None:
                whole.close()

        whole, response.stream = response.stream, Bounded()
        if response.is_success and response.request.method == "POST":
            response.read()
            try:
                self._read(response.json())
            except (ValueError, RecursionError) as error:
                raise httpx2.RemoteProtocolError(f"an answer that cannot be used, {error}") from None

    def _gave_up(self, last: str) -> ModelError:
        return ModelError(
            f"The server {self.base_url} did not answer in {self.client.max_retries + 1} tries (the last: {last}); all "
            "answers so far are kept, so run the same command again when it is well, or lower engines' max_concurrency."
        )

    def _fault_of(self, error) -> ModelError:
        words, status, server = self._words(error), error.status_code, f"The server {self.base_url}"
        if status in (401, 403):
            return ModelError(f"{server} refuses the key in {KEY_VARIABLE} ({words}); export a valid one.")
        if status in (408, 409, 429) or status >= 500:
            return self._gave_up(words)
        return ModelError(
            f"{server} refuses a request ({words}); is the context too long, the model or an option unknown to it, or "
            "the address one that it redirects? Lower max_new_tokens or correct the recipe's engines; a model that "
            "wants max_completion_tokens or no temperature needs reasoning: true there."
        )

    def _words(self, error: BaseException) -> str:
        return visible(redact(str(error)) or type(error).__name__, 200)
