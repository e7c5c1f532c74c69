"""An OpenAI-compatible server: its address and key, what is sent, and what its faults mean.

Server and key come from the environment (OPENAI_BASE_URL, OPENAI_API_KEY) or the server from the recipe; a key never
from a recipe. What a server sends is believed only as far as it can be checked.
"""

import json
import os
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from workbench.generation import EngineError

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
