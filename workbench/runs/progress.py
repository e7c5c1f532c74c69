"""Signs of life: what a step is doing now, in a small file for each of its processes, for whoever watches the run.

Nothing depends on them. Each is written at most once a second, whole or not at all; that one cannot be written is
never an error. They lie in the step's folder and go when the step is finished.
"""

import contextlib
import math
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from workbench.runs.identity import seal, unseal

FOLDER = "alive"
EVERY_S = 1.0
N_TEXTS, N_CHARACTERS, N_POINTS = 3, 600, 400
BORNE = (OSError, MemoryError)
METRICS = ("loss", "rewards/margins", "rewards/accuracies")


class _Signs:
    """What one process did for the step so far."""

    def __init__(self, folder: Path, main: bool):
        self.folder, self.written_s = folder, -math.inf
        self.values = {"main": main, **this_process(), "began": time.time(), "what": "", "stopped": ""}
        self.values |= {"jobs": [0, 0], "steps": [0, 0], "items": 0, "fresh": 0, "tokens": 0, "texts": [], "curve": {}}

    def give(self, at_once: bool = False, **changed: Any) -> None:
        self.values |= changed
        if not at_once and time.monotonic() - self.written_s < EVERY_S:
            return
        self.written_s = time.monotonic()
        # Processes of several machines may have one number.
        name = f"{self.values['host']}-{os.getpid()}.json"
        (mail or put)(str(self.folder), name, seal({**self.values, "at": time.time()}))


_signs: _Signs | None = None
mail: Callable[[str, str, str], None] | None = None  # as `put`, where another process has the folder


def put(folder: str, name: str, text: str) -> None:
    """Write a file of signs, such as those of one process."""
    path = Path(folder) / name
    with contextlib.suppress(*BORNE):
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)


def this_process() -> dict:
    """Return what names this process, for is_there."""
    # A process id is given again some day; with its birth it is one process for ever.
    return {"pid": os.getpid(), "born": psutil.Process().create_time(), "host": socket.gethostname()}


@contextlib.contextmanager
def of(step: Path, shown: contextlib.AbstractContextManager) -> Iterator[None]:
    """Give signs of life of the step, or of other work, whose folder is given, and have them shown."""
    global _signs
    begin(step)
    try:
        with shown:
            yield
        end()
    except BaseException as error:
        # The kernel lives on: without this the run would look as if it did too.
        if _signs is not None:
            _signs.give(at_once=True, stopped=f"{type(error).__name__}: {error}"[:N_CHARACTERS])
        _signs = None
        raise


def begin(step: Path) -> None:
    """Say that this process begins to compute the step whose folder is given; earlier signs of it go."""
    global _signs
    forget(step)
    with contextlib.suppress(*BORNE):
        (step / FOLDER).mkdir(parents=True)
    _signs = _Signs(step / FOLDER, main=True)
    _signs.give()


def end() -> None:
    """Say that the step is finished: its signs go."""
    global _signs
    if _signs is not None:
        forget(_signs.folder.parent)
        _signs = None


def forget(step: Path) -> None:
    """Take the signs away that lie in a step's folder."""
    with contextlib.suppress(*BORNE):
        shutil.rmtree(step / FOLDER, ignore_errors=True)


def folder() -> Path | None:
    """Return where the signs of the present step lie, to be passed on to its other processes."""
    return _signs.folder if _signs else None


def call(signs: Path | None, fn: Callable[[Any], Any], job: Any, where: str = "") -> Any:
    """Return fn(job), computed in this process, on the machine `where`, for the step whose signs lie there."""
    global _signs
    if signs is None:
        _signs = None
    elif _signs is None or _signs.folder != signs:
        _signs = _Signs(signs, main=False)
    if _signs is not None:
        name = job[0] if isinstance(job, tuple) else job
        _signs.give(what=str(name)[:N_CHARACTERS], where=where, steps=[0, 0], curve={})
    return fn(job)


def jobs(what: str, done: int, total: int) -> None:
    """Say how many of the present jobs are done."""
    if _signs is not None:
        _signs.give(what=what, jobs=[done, total])


def found(n: int) -> None:
    """Say that so many items were there already."""
    if _signs is not None:
        _signs.give(items=_signs.values["items"] + n)


def made(payloads: Iterable[Mapping]) -> None:
    """Say that these items were computed; their tokens are counted, the last of their texts kept."""
    if _signs is None:
        return
    payloads, before = list(payloads), _signs.values
    texts = [payload["text"][:N_CHARACTERS] for payload in payloads[-N_TEXTS:] if payload.get("text")]
    _signs.give(
        items=before["items"] + len(payloads),
        fresh=before["fresh"] + len(payloads),
        tokens=before["tokens"] + sum(int(payload.get("n_tokens", 0)) for payload in payloads),
        texts=[*before["texts"], *texts][-N_TEXTS:],
    )


def steps(model: str, step: int, total: int, logs: Mapping | None = None) -> None:
    """Say how far the training of a model is, and what it logged there."""
    if _signs is None:
        return
    points = [[step, name, logs[name]] for name in METRICS if logs and isinstance(logs.get(name), int | float)]
    points = [*_signs.values["curve"].get(model, []), *(point for point in points if math.isfinite(point[2]))]
    _signs.give(steps=[step, total], curve={model: points[-N_POINTS:]})


def read(step: Path) -> list[dict]:
    """Return the signs of all processes of a step, the main one first; one that cannot be read is left out."""
    signs = []
    with contextlib.suppress(*BORNE):
        for path in sorted((step / FOLDER).glob("*.json")):
            with contextlib.suppress(*BORNE, ValueError):
                signs.append(unseal(path.read_text(encoding="utf-8"), required=True))
    return sorted(signs, key=lambda sign: not sign["main"])


def is_there(sign: Mapping) -> bool | None:
    """Say whether the process that gave the sign is still there; None when it is of another machine."""
    if sign["host"] != socket.gethostname():
        return None
    try:
        process = psutil.Process(sign["pid"])
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - sign["born"]) < 1
    except psutil.Error:
        return False
