"""The four things that can be wrong: what was asked for, a run, a model, or data. Each message says what to do.

And how anything is said or stored that came from outside: without keys, and without what a terminal would act on.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, quote_plus

SECRETS = ("OPENAI_API_KEY", "HF_TOKEN")
SHORTEST_SECRET = 8  # "EMPTY", which vLLM's server is given, may stand in any text


class RecipeError(ValueError):
    """What was asked for cannot be: a recipe, a parameter, an option; one line per fault."""


class RunError(RuntimeError):
    """A run, its files, a job or a notebook of it: missing, damaged, in the way, stopped, or not to be written."""


class ModelError(ValueError):
    """A model, its engine or its training: not there, not usable, or at the end of what may be spent."""


class DataError(ValueError):
    """Tasks, frames, predictions or what a figure is drawn from: missing, or not as they must be."""


def secret(name: str) -> str:
    """Return a key from the environment without the blanks and line ends around it."""
    return os.environ.get(name, "").strip()


def redact(value: Any) -> Any:
    """Return a text, or plain values with all texts in them, without the keys in the environment.

    A key is found as it is, as Python or JSON escapes it, and as it stands in an address.
    """
    keys = [key for key in map(secret, SECRETS) if len(key) >= SHORTEST_SECRET]
    if not keys:
        return value
    if isinstance(value, Mapping):
        return {redact(name): redact(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [redact(one) for one in value]
    for key in keys if isinstance(value, str) else ():
        forms = {key, repr(key)[1:-1], repr(key.encode())[2:-1], quote(key, safe=""), quote_plus(key)}
        forms |= {json.dumps(key, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
        for form in sorted(forms, key=len, reverse=True):
            value = value.replace(form, "[key]")
    return value


FIXES = {
    errno.ENOSPC: ("written", "free some space"),
    errno.EROFS: ("written", "make the folder writable or set WORKBENCH_RUNS to one that is"),
    errno.EMFILE: ("opened", "raise the limit on open files (ulimit -n)"),
    errno.EIO: ("read or written", "look at the disk"),
}
FIXES[errno.EACCES] = FIXES[errno.EROFS]
NO_MEMORY = "There is not enough memory, nothing earlier is lost; end other programs, or lower compute.batch_size, "
NO_MEMORY += "compute.workers or the micro_batch_size of the training, and run the same command again."


def in_words(error: BaseException | str) -> str:
    """Return what an error says; where the system refuses a file or memory, in a sentence with what to do."""
    # On a processor torch says it in a RuntimeError.
    if isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM or "can't allocate" in str(error):
        return NO_MEMORY
    if isinstance(error, shutil.Error):  # of a copied folder: what failed is said of each file
        *_, path, reason = error.args[0][0]
        error = next((OSError(n, os.strerror(n), path) for n in FIXES if os.strerror(n) in str(reason)), error)
    if not isinstance(error, OSError) or error.errno not in FIXES:
        return str(error)
    (could, fix), what = FIXES[error.errno], error.filename or "A file"
    said = f"{what} could not be {could} ({error.strerror}), nothing earlier is lost"
    return f"{said}; {fix} and run the same command again."


@contextmanager
def in_our_words() -> Iterator[None]:
    """Raise a RunError where the system refuses a file or memory inside."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        if (said := in_words(error)) == str(error):
            raise
        raise RunError(said) from error


def visible(text: str, limit: int) -> str:
    """Return a text on one line without anything that a terminal would act on: control, escape and direction marks.

    Example:
        >>> visible("a\\x1b[31mb\\n\\u202ec", 20)
        'a [31mb c'
    """
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def spoken(name: Any) -> Any:
    """Return the name of an arm, a task, a step or a column as people read it: random_pairs as random pairs."""
    return name.replace("_", " ") if isinstance(name, str) else name
