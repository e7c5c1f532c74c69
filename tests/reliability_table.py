"""What kills, faults and inputs have shown so far, as docs/reliability.md has it: `python tests/reliability_table.py`.

tests/kills.py, tests/faults.py and tests/fuzz.py write down here what they counted, the last time each.
"""

import json
from datetime import date
from pathlib import Path

from local_server import FAULTS

FILE = Path(__file__).with_suffix(".json")


def record(what: str, counts: dict[str, int]) -> None:
    """Write down what a command counted, in place of what it counted before."""
    known = json.loads(FILE.read_text()) if FILE.is_file() else {}
    known[what] = {"date": date.today().isoformat(), "counts": counts}
    FILE.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")


def table() -> str:
    """Return what was written down as a table in Markdown."""
    known = json.loads(FILE.read_text())
    lines = ["| what | how often | came of it |", "| --- | --- | --- |"]
    for what, told in known.items():
        # Each kill is counted a second time by the stage that it fell in.
        counts = {name: n for name, n in told["counts"].items() if name not in TOLD and not name.startswith("in ")}
        if boundaries := sum(n for name, n in counts.items() if name.startswith("after ")):
            counts = {"at boundaries": boundaries} | {k: n for k, n in counts.items() if not k.startswith("after ")}
        kept = {name: n for name, n in told["counts"].items() if name in TOLD or name.startswith("in ")}
        came = ", ".join(f"{name} {n:,}" for name, n in kept.items())
        listed = "; ".join(f"{name} {n:,}" for name, n in counts.items())
        lines.append(
            f"| {what} ({told['date']}) | {sum(counts.values()):,}: {listed} | {came or 'each as it must be'} |"
        )
    lines.append(f"| servers' faults, at every commit | {len(FAULTS)}, of tests/local_server.py | lost 0, doubled 0 |")
    return "\n".join(lines)


TOLD = ("runs", "lost", "doubled", "failed", "left", "finds", "believed, or without a clear error")

if __name__ == "__main__":
    print(table())
