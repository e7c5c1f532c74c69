"""What carrying jobs by Ray on this machine costs beside the pool of processes: python -m tests.benchmarks.ray_overhead

Jobs of one second, which wait or compute, each asking for ten items and storing ten. Pool and Ray take turns, each as
many processes as the machine has cores, both warm; their times are medians, and what counts is the ratio. Starting Ray
and its processes is told apart.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from workbench.runs import cluster, progress
from workbench.runs.cache import shared_cache
from workbench.runs.recipe_parts import Compute
from workbench.runs.workers import Job, run_jobs

SECONDS, N_ITEMS = 1.0, 10


def wait(name: str) -> None:
    """Wait a second, and ask for and store items."""
    time.sleep(SECONDS)
    keep(name)


def work(name: str) -> None:
    """Compute for a second of a core, and ask for and store items."""
    began, n = time.thread_time(), 0
    while time.thread_time() - began < SECONDS:
        n += 1
    keep(name)


def keep(name: str) -> None:
    """Ask for ten items that are not there, and store them, as an engine does with a batch."""
    items, keys = shared_cache(), [f"{name}/{n}" for n in range(N_ITEMS)]
    items.get_many("overhead", keys)
    items.put_many("overhead", {key: {"text": "x" * 1000} for key in keys})


def timed(fn, compute: Compute, n_jobs: int, name: str) -> float:
    """Return how many seconds so many jobs take."""
    began = time.monotonic()
    with cluster.carrying(compute):
        run_jobs(fn, [Job(name, (f"{name}/{n}",)) for n in range(n_jobs)], compute.workers, name)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10 * (os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    pool, ray = Compute(workers=os.cpu_count() or 1), Compute(cluster="local")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WORKBENCH_RUNS"] = folder
        progress.begin(Path(folder) / "overhead")
        for name, compute in (("pool", pool), ("ray", ray)):
            n = 4 * (os.cpu_count() or 1)  # so that each process has one
            print(
                f"{name}, a first call of {n} jobs, processes started: {timed(wait, compute, n, f'{name}-start'):.1f} s"
            )
        for fn in (wait, work):
            taken = {"pool": [], "ray": []}
            for turn in range(args.rounds):
                for name, compute in (("pool", pool), ("ray", ray)):
                    taken[name].append(timed(fn, compute, args.jobs, f"{name}-{fn.__name__}-{turn}"))
            one, other = (statistics.median(taken[name]) for name in ("pool", "ray"))
            rows = ", ".join(f"{name} {' '.join(f'{s:.2f}' for s in seconds)}" for name, seconds in taken.items())
            print(f"{args.jobs} jobs that {fn.__name__}: ray takes {other / one:.3f} of the pool's time ({rows} s)")
        cluster.disconnect()


if __name__ == "__main__":
    main()
