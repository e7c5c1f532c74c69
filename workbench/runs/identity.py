"""What makes two arguments of a step the same: frames by content, sections by values, models and tasks by their key."""

import functools
import hashlib
import inspect
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel

from workbench.runs.errors import RunError, redact
from workbench.runs.recipe import canonical_json
from workbench.runs.recipe_parts import ROWS_AT_ONCE
from workbench.runs.schemas import text_id

CHECKSUM, RACY_NS = "checksum", 10**9
PACKAGE = __name__.partition(".")[0]


def fingerprint(value) -> str:
    """Return 16 hex digits that differ whenever the value, written as canonical JSON, differs."""
    return text_id(canonical_json(value))


def seal(values: Mapping) -> str:
    """Return a mapping as JSON with a checksum of what is in it, without keys from the environment."""
    plain = json.loads(json.dumps(redact(values)))
    return json.dumps(plain | {CHECKSUM: fingerprint(plain)}, indent=1, ensure_ascii=False)


def unseal(text: str, required: bool = False) -> dict:
    """Return the mapping in JSON text; ValueError if it is none or, where there is a checksum, not what was sealed."""
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    if not isinstance(values, dict):
        raise ValueError(f"it must be a mapping, got {type(values).__name__}")
    told = values.pop(CHECKSUM, None)
    if (told is not None or required) and told != fingerprint(values):
        raise ValueError("it is not what was written, by its checksum")
    return values


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex; one that did not change since is not read again."""
    stat = Path(path).stat()
    # Unlike the time of change, that of the inode cannot be set; two changes may share one tick of it, though.
    if RACY_NS > time.time_ns() - stat.st_ctime_ns:
        return _sha256.__wrapped__(str(path))
    return _sha256(str(path), stat.st_ino, stat.st_ctime_ns, stat.st_mtime_ns, stat.st_size)


def unlike(path: Path, sha256: str) -> str:
    """Return what is wrong with a file that was written with this SHA-256: missing, not what was written, or ""."""
    if not path.is_file():
        return "missing"
    return "" if file_sha256(path) == sha256 else "not what was written"


@functools.lru_cache(maxsize=4096)
def _sha256(path: str, *state: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identify(value, name: str = "argument"):
    """Return a value as plain JSON that is equal whenever the value is the same.

    Raises:
        RunError: If it cannot be told when it is another.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if (key := getattr(value, "key", None)) is not None and not callable(key):
        return {"key": key}
    if isinstance(value, pd.DataFrame):
        return {"frame": content_of(value)}
    if isinstance(value, BaseModel):
        # How many rows are computed at once changes no result.
        return {type(value).__name__: value.model_dump(exclude=set(ROWS_AT_ONCE))}
    if isinstance(value, Mapping):
        return {str(one): identify(value[one], f"{name}[{one!r}]") for one in value}
    if isinstance(value, list | tuple):
        return [identify(one, f"{name}[{place}]") for place, one in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return {function_of(type(value)): identify(parts, name)}
    if callable(value):
        return function_of(value)
    raise RunError(
        f"{name} is {type(value).__name__}, of which a step cannot tell when it is another; give a frame, plain "
        "values, a section of the recipe, or something with a `key`."
    )


def looks_at(*settings: str) -> Callable[[Callable], Callable]:
    """Mark a step that looks at these settings in its models' recipe: they count as its arguments do."""
    return lambda step: vars(step).update(looks_at=settings) or step


def content_of(frame: pd.DataFrame) -> str:
    """Return 16 hex digits of a frame's columns, types and values; its index does not count."""
    hashed = hashlib.sha256(repr([(str(name), str(kind)) for name, kind in frame.dtypes.items()]).encode())
    hashed.update(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
    return hashed.hexdigest()[:16]


def function_of(function: Callable) -> str:
    """Return a function's name and what tells its versions apart: its module's VERSION, or the text of one's own.

    Only its own text counts: a helper of yours that it calls, and that may change, is best given as an argument.
    """
    if isinstance(function, functools.partial):
        more = identify([list(function.args), function.keywords])
        return f"{function_of(function.func)} with {more}"
    module = getattr(function, "__module__", "") or ""
    name = f"{module}.{getattr(function, '__qualname__', repr(function))}"
    if module.partition(".")[0] == PACKAGE:
        return f"{name} {getattr(sys.modules[module], 'VERSION', 1)}"
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        raise RunError(
            f"The text of {name} cannot be read, so a step cannot tell when it changes; define it in a cell or a file."
        ) from None
    if (code := getattr(function, "__code__", None)) and code.co_name == "<lambda>":
        # Several may stand on one line, which is then the text of each.
        text += repr([columns for _, _, *columns in code.co_positions()])
    return f"{name} {text_id(text)}"
