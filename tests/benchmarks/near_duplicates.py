"""How long it takes to find near-duplicates among more and more texts, and what the filter leaves of templated tasks.

    python -m tests.benchmarks.near_duplicates FILE.jsonl

FILE.jsonl holds objects with `question`, open texts such as GSM8K's training items. More texts than it holds are made
of three of its sentences each, drawn at random. Seconds are of CPU time.
"""

import json
import re
import sys
import time
from pathlib import Path

from workbench.runs.recipe import project_root
from workbench.runs.seeding import stream
from workbench.tasks.contamination import NearDuplicates

THRESHOLD = 0.7
SIZES = (1_000, 4_000, 16_000)


def sieve(texts: list[str]) -> tuple[int, float]:
    """Return how many texts are dropped, one after the other, and the seconds it took."""
    known, dropped, began = NearDuplicates(THRESHOLD), 0, time.process_time()
    for text in texts:
        near = known.holds(text)
        dropped += near
        if not near:
            known.add(text)
    return dropped, time.process_time() - began


def main() -> None:
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["question"] for line in lines]
    sentences = [part for text in texts for part in re.split(r"(?<=[.?!])\s+", text) if len(part) > 15]
    rng = stream(0, "near duplicates")
    texts += [" ".join(rng.choice(sentences, 3, replace=False)) for _ in range(max(SIZES) - len(texts))]
    for n in SIZES:
        dropped, seconds = sieve(texts[:n])
        print(f"{n:>6} open texts: {dropped} dropped, {seconds:.2f} s, {1e3 * seconds / n:.2f} ms each")
    for path in sorted((project_root() / "data/pocket/tasks").glob("*.json")):
        items = [item["input"] for item in json.loads(path.read_text())["validation"]]
        dropped, _ = sieve(items)
        print(f"{path.stem}: {dropped} of {len(items)} distinct items dropped")


if __name__ == "__main__":
    main()
