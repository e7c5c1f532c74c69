"""Text from any OpenAI-compatible server, through the `openai` client: many requests at once, within a budget."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from typing import Literal

from workbench.generation import (
    Completion,
    Decoding,
    EngineError,
    Finished,
    Likelihood,
    RecordingEngine,
    Request,
    Row,
    continuation_ids,
    end_tokens,
    prompt_ids,
    refuse_unfit,
)
from workbench.models import fingerprint_model, load_tokenizer, resolve
from workbench.server import FILTERED, PassingFault, Server
from workbench.spending import Budget, Spending

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

    def _rows(self, requests: dict[str, Request], decoding: Decoding) -> dict[str, Row]:
        texts = [request.prompt for request in requests.values()]
        ids_of = prompt_ids(self.tokenizer, texts, self.ends) if self.tokenizer else [[]] * len(texts)
        for request, ids in zip(requests.values(), ids_of, strict=True):
            if self.tokenizer:
                limit = self.server.limit or len(ids) + decoding.max_new_tokens
                refuse_unfit(self.server.served, request, len(ids), decoding.max_new_tokens, limit)
        return {key: Row(key, request, ids) for (key, request), ids in zip(requests.items(), ids_of, strict=True)}

    def _finish(
        self, rows: dict[str, Row], done: dict[str, Completion], decoding: Decoding, seed: int
    ) -> Iterator[dict[str, Finished]]:
        """Yield what is known, then answers as they come; prompts that begin alike go out one after another."""
        if done:
            yield {key: Finished(completion) for key, completion in done.items()}
        left = deque(sorted((row for row in rows.values() if row.key not in done), key=lambda row: row.request.prompt))
        under_way: dict[Future, tuple[Row, tuple[int, int]]] = {}
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

    def _most(self, row: Row, decoding: Decoding) -> tuple[int, int]:
        """Return the most tokens a request can read and write."""
        # No token has less than a byte.
        return len(row.ids) or len(row.request.prompt.encode()) + TEMPLATE_TOKENS, decoding.max_new_tokens

    def _answer(self, row: Row, decoding: Decoding) -> tuple[Finished, tuple[int, int]]:
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
