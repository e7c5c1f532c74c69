"""How long it takes to find near-duplicates among more and more texts, and what the filter leaves of templated tasks.

    python -m tests.benchmarks.near_duplicates FILE.jsonl

FILE.jsonl holds objects with `question`, open texts such as GSM8K's training items.
"""

import json
import sys
import time
from pathlib import Path

from workbench.near_duplicates import NearDuplicates
from workbench.recipe import project_root

THRESHOLD = 0.7


def sieve(texts: list[str]) -> tuple[int, float]:
    """Return how many texts are dropped, one after the other, and the seconds it took."""
    known, dropped, began = NearDuplicates(THRESHOLD), 0, time.perf_counter()
    for text in texts:
        near = known.holds(text)
        dropped += near
        if not near:
            known.add(text)
    return dropped, time.perf_counter() - began


def main() -> None:
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["question"] for line in lines]
    for n in (len(texts) // 4, len(texts) // 2, len(texts)):
        dropped, seconds = sieve(texts[:n])
        print(f"{n:>6} open texts: {dropped} dropped, {seconds:.2f} s, {1e3 * seconds / n:.2f} ms each")
    for path in sorted((project_root() / "data/pocket/tasks").glob("*.json")):
        items = [item["input"] for item in json.loads(path.read_text())["validation"]]
        dropped, _ = sieve(items)
        print(f"{path.stem}: {dropped} of {len(items)} distinct items dropped")


if __name__ == "__main__":
    main()
