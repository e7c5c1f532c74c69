"""The same pocket probe on the three engines: parsed answers that agree, and tokens a second; prints one table.

    python tests/benchmarks/engines.py

One-shot probes of one student, greedy, one thread each; `openai` is vLLM's own server on loopback. A first, small part
warms each engine up and is not counted. Wall time is what others leave of the machine; CPU time is the engine's own.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from data.pocket.make.rationales import rationale_for
from workbench.loop import prompts
from workbench.models.engine import Completion, Decoding, Engine, Request
from workbench.models.openai_engine import OpenAIEngine
from workbench.models.transformers_engine import TransformersEngine
from workbench.models.vllm_engine import SETTINGS, VllmEngine
from workbench.tasks import answers as answers_module
from workbench.tasks.pocket_styles import STYLES

ROOT = Path(__file__).resolve().parents[2]
STUDENT = str(ROOT / "data/pocket/tally-strong")
DECODING = Decoding(max_new_tokens=120)
N_WARMING = 16


def probe(n: int) -> list[tuple[str, str]]:
    """Return the first n one-shot probes of the pocket tasks, as (what questions share, the rest), and a mix of all."""
    tasks = [
        json.loads(path.read_text()) | {"name": path.stem} for path in sorted(ROOT.glob("data/pocket/tasks/*.json"))
    ]
    found = []
    for style, which, task in itertools.product(STYLES, range(3), tasks):
        shown = task["seeds"][which]["input"]
        rationale = rationale_for(task["name"], shown, style)
        for item in task["validation"][:40]:
            found.append(prompts.one_shot_prompt(task["description"], shown, rationale, item["input"]))
    return found[:: max(1, len(found) // n)][:n]


def ask(engine: Engine, asked: list[tuple[str, str]]) -> list[Completion]:
    """Return the engine's greedy answers."""
    requests = []
    for prefix, rest in asked:
        prompt, shared = engine.render_shared(prefix, rest)
        requests.append(Request(prompt, prefix=shared))
    return engine.generate(requests, DECODING)


def answers(completions: list[Completion]) -> list[str]:
    """Return the parsed answers, "" where there is none."""
    return [answers_module.parse_answer(completion.text) for completion in completions]


@contextmanager
def served(model: str = STUDENT, port: int = 8765, wait_s: float = 500) -> Iterator[tuple[str, int]]:
    """Run vLLM's OpenAI-compatible server for a model on loopback; yield its address and process id."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--dtype", "float32"]
    command += ["--enforce-eager", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, env=os.environ | SETTINGS | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    try:
        ends = time.monotonic() + wait_s
        while not _is_up(f"http://127.0.0.1:{port}/health"):
            if server.poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"vLLM's server did not start within {wait_s} s (exit status {server.poll()})")
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1", server.pid
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def _is_up(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def cpu_s(pid: int) -> float:
    """Return the CPU seconds a process has used, its threads included (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(name: str, engine: Engine, pid: int, asked: list[tuple[str, str]]) -> dict:
    """Return what one engine answers to the probe, and how fast."""
    ask(engine, asked[:N_WARMING])
    start, used = time.monotonic(), cpu_s(pid)
    completions = ask(engine, asked[N_WARMING:])
    wall, used, n_tokens = time.monotonic() - start, cpu_s(pid) - used, sum(one.n_tokens for one in completions)
    return {"name": name, "answers": answers(completions), "wall": n_tokens / wall, "cpu": n_tokens / max(used, 0.01)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=500, help="probes (default 500)")
    asked = probe(parser.parse_args().n + N_WARMING)
    torch.set_num_threads(1)
    rows = [measure("transformers", TransformersEngine(STUDENT, device="cpu"), os.getpid(), asked)]
    engine = VllmEngine(STUDENT)
    rows.append(measure("vllm", engine, os.getpid(), asked))
    engine.close()
    with served() as (url, pid):
        rows.append(measure("openai", OpenAIEngine(STUDENT, url), pid, asked))
    expected = rows[0]["answers"]
    print("| engine | answers as transformers | tokens/s, wall | tokens/s of its CPU time |\n| --- | --- | --- | --- |")
    for row in rows:
        same = sum(a == b for a, b in zip(expected, row["answers"], strict=True))
        agreement = f"{same} of {len(expected)} ({same / len(expected):.1%})"
        print(f"| `{row['name']}` | {agreement} | {row['wall']:,.0f} | {row['cpu']:,.0f} |")
    for row in rows:
        for (_, rest), a, b in zip(asked[N_WARMING:], expected, row["answers"], strict=True):
            if a != b:
                print(f"{row['name']}: {b!r} where transformers says {a!r}: {rest[-80:]!r}")


if __name__ == "__main__":
    main()
