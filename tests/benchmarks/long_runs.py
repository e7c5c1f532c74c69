"""How the memory of runs bears long ones: a large store, many runs in one process, a restart, what safety costs.

python -m tests.benchmarks.long_runs store 1000000     a store of so many items: opened, read, its memory
python -m tests.benchmarks.long_runs lives 50          so many runs in one process: handles, threads, memory
python -m tests.benchmarks.long_runs restart           going through the steps of the run `sample` again, none computed
python -m tests.benchmarks.long_runs durability 3200   what so many items stored safely cost, a batch and a manifest
python -m tests.benchmarks.long_runs share             what writing and checking safely is of the small classroom's loop

Seconds are of a core where they are called so, else of the clock, which other processes lengthen.
"""

import functools
import io
import json
import os
import sys
import tempfile
import threading
import time
from contextlib import closing, redirect_stdout
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults import in_a_folder, live
from small_classroom import build, recipe_of, run_whole

from workbench.runs import cache, identity
from workbench.runs import run as run_module
from workbench.runs.cache import Cache

PART = 20_000


def store(folder: Path, n: int) -> dict[str, float]:
    """Return the seconds that a store of n items takes to open with its first read, and for 1,000 reads, and MB."""
    payload = {"text": "x" * 120, "n_tokens": 40, "finished": True}
    with closing(Cache(folder / "items.sqlite")) as items:
        for start in range(0, n, PART):
            items.put_many("completion", {f"{at:016x}": payload for at in range(start, min(n, start + PART))})
    before, keys = psutil.Process().memory_info().rss, [f"{at:016x}" for at in range(0, n, max(1, n // 1000))]
    with closing(Cache(folder / "items.sqlite")) as items:
        began = time.perf_counter()
        assert items.get_many("completion", keys[:1])
        opened = time.perf_counter()
        assert len(items.get_many("completion", keys)) == len(keys)
        read = time.perf_counter()
        items.put_many("completion", {"new": payload})
        written = time.perf_counter()
    found = {"open": opened - began, "1,000 reads": read - opened, "a write": written - read}
    used = psutil.Process().memory_info().rss - before
    return found | {"memory, MB": used / 1e6, "file, MB": (folder / "items.sqlite").stat().st_size / 1e6}


def lives(folder: Path, n: int) -> dict[str, list[int]]:
    """Return handles, threads and memory in MB after the first third of n runs in this process, and after all."""
    process, seen = psutil.Process(), []
    for at in range(n):
        with in_a_folder(folder / str(at)):
            live()
        if at in (n // 3, n - 1):
            seen.append((process.num_fds(), threading.active_count(), process.memory_info().rss // 10**6))
    return {
        name: list(values) for name, values in zip(("handles", "threads", "MB"), zip(*seen, strict=True), strict=True)
    }


def restart() -> dict[str, float]:
    """Return the seconds of a core that it takes to open the shipped run, and to go through its steps, frames read."""
    began = time.process_time()
    import workbench as wb

    run = wb.open_run("sample")
    opened = time.process_time()
    with redirect_stdout(io.StringIO()):
        for name in run.steps():
            run.step(name, None)
    return {"open": opened - began, f"{len(run.steps())} steps": time.process_time() - opened}


def share(folder: Path, _: int) -> dict[str, float]:
    """Return what all that makes the small classroom's loop safe takes of it, in seconds of a core and of the clock.

    That is storing and reading finished items, writing files so that none is ever half, and every checksum of a file.
    """
    clocks, spent, inside = (time.process_time, time.perf_counter), [0.0, 0.0], [False]

    def timed(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            if inside[0]:
                return function(*args, **kwargs)
            inside[0], began = True, [clock() for clock in clocks]
            try:
                return function(*args, **kwargs)
            finally:
                inside[0] = False
                spent[:] = [s + clock() - b for s, clock, b in zip(spent, clocks, began, strict=True)]

        return call

    from workbench.models import loading, trl

    safe = [(Cache, "put_many"), (Cache, "get_many"), (cache, "atomic_write"), (cache, "unseal"), (trl, "_checksums")]
    safe += [(run_module, name) for name in ("atomic_write", "file_sha256")]
    safe += [(loading, "file_sha256"), (identity, "file_sha256")]
    build(folder)
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(io.StringIO()):
        for owner, name in safe:
            patched.setattr(owner, name, timed(getattr(owner, name)))
        began = [clock() for clock in clocks]
        run_whole(folder / "runs", recipe_of(folder))
    whole = [clock() - b for clock, b in zip(clocks, began, strict=True)]
    found = {"safe, s of a core": spent[0], "loop, s of a core": whole[0], "share of a core": spent[0] / whole[0]}
    return found | {"safe, s": spent[1], "loop, s": whole[1], "share": spent[1] / whole[1]}


def durability(folder: Path, n: int) -> dict[str, float]:
    """Return what n items stored in batches of 32 cost a batch, and of that what is due to checksums and syncing.

    A batch of 32 is what an engine writes in one transaction; its own time is the batch's generation.
    """
    payload = {"text": "word " * 60, "n_tokens": 60, "finished": True}
    began, cpu = time.perf_counter(), time.process_time()
    with closing(Cache(folder / "items.sqlite")) as items:
        for start in range(0, n, 32):
            items.put_many("completion", {f"{at:016x}": payload for at in range(start, start + 32)})
    stored, stored_cpu = time.perf_counter() - began, time.process_time() - cpu
    began, cpu = time.perf_counter(), time.process_time()
    for at in range(50):
        cache.write_json(folder / "manifest.json", {"key": str(at), "counts": {"rows": at}})
    written, written_cpu = time.perf_counter() - began, time.process_time() - cpu
    found = {"a batch of 32 items, ms": 1e3 * stored / (n / 32), "of a core": 1e3 * stored_cpu / (n / 32)}
    return found | {"a manifest, ms": 1e3 * written / 50, "a manifest, of a core": 1e3 * written_cpu / 50}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        what, n = sys.argv[1], int((sys.argv[2:] or ["0"])[0])
        os.environ.setdefault("WORKBENCH_RUNS", name)
        given = () if what == "restart" else (Path(name), n)
        known = {"store": store, "lives": lives, "restart": restart, "durability": durability, "share": share}
        print(json.dumps(known[what](*given)))
