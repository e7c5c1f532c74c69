"""Say in what two verdicts differ: `python -m tests.benchmarks.same_verdict OLD/verdict.json NEW/verdict.json`.

A change of the house is to change no figure: the same recipe and seeds, before it and after it, give the same verdict.
"""

import json
import sys
from pathlib import Path

NOT_COMPARED = ("run", "test_set", "warnings")  # the name of the run, and how often its test set was opened by then


def differences(old, new, at: str = "") -> list[str]:
    """Return a line for each value that is another, gone or new."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in {**old, **new} if at or key not in NOT_COMPARED]
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{at}.{key}".lstrip("."))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for n, pair in enumerate(zip(old, new, strict=True)) for line in differences(*pair, f"{at}[{n}]")]
    return [] if old == new else [f"{at}: {old!r} -> {new!r}"]


if __name__ == "__main__":
    found = differences(*(json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:3]))
    print("\n".join(found) or "the same to the digit")
    sys.exit(bool(found))
