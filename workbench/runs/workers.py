"""Independent jobs on several processes, each with one torch thread so that results do not depend on how many."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from workbench.runs import cluster, progress
from workbench.runs.cache import runs_folder
from workbench.runs.errors import RunError, in_our_words

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # as in malloc.h


class Job(NamedTuple):
    """A job by name: what it is called, to whoever watches or when it fails, and the function's arguments."""

    said: str
    given: tuple

    def __repr__(self) -> str:
        return self.said


@in_our_words()
def run_jobs(fn: Callable[..., Any], jobs: list, workers: int, describe: str) -> list:
    """Return [fn(job) for job in jobs], or fn(*job.given) of each Job, computed by several processes or a cluster.

    Args:
        fn: A function of a module, so that a fresh process can import it.
        jobs: What to do; each is sent to a process and named if it fails.
        workers: Number of processes; 0 means one per core, or the recipe's cluster. With 1 all happens in this
            process, and so does one job where no cluster carries it.
        describe: What the jobs are, for whoever watches, such as "training".

    Raises:
        RunError: If a job fails; jobs not yet begun are dropped.
    """
    progress.jobs(describe, 0, len(jobs))
    if cluster.carries() and workers != 1 and jobs:
        return cluster.run_jobs(_call, fn, jobs, describe)
    workers = 1 if cluster.inside() else n_processes(workers)
    if workers == 1 or len(jobs) <= 1:
        return _run_here(fn, jobs, describe)
    results = [None] * len(jobs)
    executor = _executor(workers, _code_age())
    futures = {executor.submit(_call, str(runs_folder()), progress.folder(), fn, job): n for n, job in enumerate(jobs)}
    try:
        for done, future in enumerate(as_completed(futures), 1):
            results[futures[future]] = _outcome(future.result, jobs[futures[future]], describe)
            progress.jobs(describe, done, len(jobs))
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        _executor.cache_clear()
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    return results


def n_processes(workers: int) -> int:
    """Return how many processes `workers` asks for: itself, or one per core for 0."""
    return workers or os.cpu_count() or 1


def n_at_once(workers: int) -> int:
    """Return how many jobs are computed at once where `workers` is given: by the recipe's cluster, if it has one."""
    return cluster.places() or n_processes(workers)


def _call(runs: str, signs: Path | None, fn: Callable[[Any], Any], job: Any, where: str = "") -> Any:
    os.environ["WORKBENCH_RUNS"] = runs  # as it is now, and not when this process was started
    _keep_freed_memory()
    # Where OpenMP is loaded before Python, as vLLM arranges it for processes begun after it, the variable is too late.
    with one_thread():
        return progress.call(signs, partial(_do, fn), job, where)


def _do(fn: Callable[..., Any], job: Any) -> Any:
    return fn(*job.given) if isinstance(job, Job) else fn(job)


@lru_cache(maxsize=1)
def _executor(workers: int, code_age: float) -> ProcessPoolExecutor:
    """Return processes that stay for the next call: they take longer to start than many a stage takes to run.

    By the standard library: on two busy cores joblib's loky took 8.6 s to import and start where this took 1.4.
    """
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _prepare_worker)


def _code_age() -> float:
    """Return when our code last changed: an edit in JupyterLab must not meet processes that know the old one."""
    return max(path.stat().st_mtime for path in Path(__file__).parents[1].rglob("*.py"))


def _run_here(fn: Callable[[Any], Any], jobs: list, describe: str) -> list:
    _keep_freed_memory()
    results, do = [], partial(_do, fn)
    with one_thread():
        for done, job in enumerate(jobs, 1):
            results.append(_outcome(lambda job=job: progress.call(progress.folder(), do, job), job, describe))
            progress.jobs(describe, done, len(jobs))
    return results


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread, as jobs do, for as long as the block lasts."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _outcome(compute: Callable[[], Any], job: Any, describe: str) -> Any:
    try:
        return compute()
    except BrokenProcessPool as error:
        raise RunError(
            f"A process of {describe} died at or near job {job!r}, often for want of memory; finished items are kept, "
            "so lower compute.workers or batch_size and run again."
        ) from error
    except Exception as error:
        raise RunError(f"{describe} failed at job {job!r}: {type(error).__name__}: {error}") from error


def _prepare_worker() -> None:
    # An interrupt reaches every process of a kernel; this one's parent ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    # A killed run must not leave workers that go on writing beside the run that resumes it.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks: given back and faulted in again at every step they slow small models down."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for parameter, n_bytes in ((M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28), (M_MMAP_THRESHOLD, 2**30)):
            mallopt(parameter, n_bytes)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
