"""An OpenAI-compatible server on loopback that answers as it is told, and fails as it is told."""

import contextlib
import gzip
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = "429 500 hang lost half count none utf8 surrogate json shape no_text no_reason words".split()
FAULTS += "big deep packed error listed model_surrogate".split()
HANG_S = 6.0


class LocalServer:
    """Serve while the context lasts.

    Args:
        answer: The text for a request's body.
        fault: The name of a fault for the n-th completion asked for (from 0) and its prompt, or "".
        key: The key it wants; "" for none.
        served: The models it says it has.
        limit: The max_model_len it tells; 0 for none.

    Attributes:
        prompts: Every prompt asked for, in order, faults included.
        answered: Those that got a whole answer.
    """

    def __init__(
        self,
        answer: Callable[[dict], str],
        fault: Callable[[int, str], str] = lambda n, prompt: "",
        key: str = "",
        served: tuple[str, ...] = ("m",),
        limit: int = 0,
    ) -> None:
        self.answer, self.fault, self.key, self.served, self.limit = answer, fault, key, served, limit
        self.prompts: list[str] = []
        self.answered: list[str] = []
        self.lock, self.ended = threading.Lock(), threading.Event()

    def __enter__(self) -> "LocalServer":
        handler = type("Handler", (_Handler,), {"owner": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.ended.set()
        self.http.shutdown()
        self.http.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: LocalServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        """Say nothing: the tests look at what was asked."""

    def do_GET(self) -> None:
        if self._key_is_right():
            more = {"max_model_len": self.owner.limit} if self.owner.limit else {}
            self._send(200, {"data": [{"id": name, **more} for name in self.owner.served]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._key_is_right():
            return
        owner, chat = self.owner, "messages" in body
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        with owner.lock:
            fault = owner.fault(len(owner.prompts), prompt)
            owner.prompts.append(prompt)
        if fault == "400":
            self._send(400, {"error": {"message": "This model's maximum context length is 8 tokens."}})
        elif fault in ("429", "500"):
            self._send(int(fault), {"error": {"message": "busy"}}, {"Retry-After": "0"})
        elif fault == "hang":
            owner.ended.wait(HANG_S)
            self.close_connection = True
        elif fault.startswith("to "):
            _, status, url = fault.split()
            self._send(int(status), {}, {"Location": f"{url}/completions"})
        elif fault == "error":
            self._send(200, {"error": {"message": "The model is being moved."}})
        elif fault == "lost":
            self.close_connection = True
        else:
            self._answer(body, prompt, chat, fault)

    def _answer(self, body: dict, prompt: str, chat: bool, fault: str) -> None:
        text = self.owner.answer(body)
        text, finished = (text, "stop") if isinstance(text, str) else text
        refused = fault == "refusal"
        words = {"content": None, "refusal": "I will not."} if refused else {"content": text, "refusal": None}
        choice = {"index": 0, "finish_reason": "content_filter" if refused and not chat else finished}
        choice |= {"message": {"role": "assistant", **words}} if chat else {"text": "" if refused else text}
        if fault == "no_text":
            choice.pop("message" if chat else "text")
        if fault == "no_reason":
            choice["finish_reason"] = None
        if fault == "words":
            choice["message"] = "no mapping"
        if fault == "listed":
            choice["message"] = ["no", "mapping"]
        if fault == "surrogate":
            choice["text"] = "\ud800"
        choices = {"count": [choice, choice], "none": []}.get(fault, [choice])
        n_tokens = len(str(prompt).split()), len(text.split()) + 1
        usage = {"prompt_tokens": n_tokens[0], "completion_tokens": n_tokens[1]}
        whole = {"id": "x", "object": "text_completion", "created": 0, "model": "m-2026", "choices": choices}
        data = json.dumps(whole | {"usage": usage}).encode()
        if fault == "model_surrogate":
            data = data.replace(b"m-2026", b"m-\\ud800")
        deep, big = b"[" * 200_000 + b"]" * 200_000, b'{"a": "' + b"a" * 5_000_000 + b'"}'
        data = {"deep": deep, "big": big}.get(fault, data)
        data = {"utf8": data.replace(b'"id": "x"', b'"id": "\xff\xfe"'), "json": data[:-9], "shape": b"[1, 2]"}.get(
            fault, data
        )
        if not fault or refused:
            with self.owner.lock:
                self.owner.answered.append(prompt)
        packed = {"Content-Encoding": "gzip"} if fault == "packed" else {}
        self._send(200, gzip.compress(data) if packed else data, packed, half=fault == "half", drip=fault == "drip")

    def _key_is_right(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.owner.key and given != self.owner.key:
            self._send(401, {"error": {"message": f"Incorrect API key provided: {given}."}})
            return False
        return True

    def _send(
        self, status: int, content: dict | bytes, headers: dict | None = None, half: bool = False, drip: bool = False
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        for byte in data if drip else b"":
            if self.owner.ended.wait(0.1):
                break
            try:
                self.wfile.write(bytes([byte]))
            except OSError:  # the client has had enough
                break
        if drip:
            self.close_connection = True
            return
        with contextlib.suppress(OSError):  # the client has had enough
            self.wfile.write(data[: len(data) // 2] if half else data)
        self.close_connection = self.close_connection or half
