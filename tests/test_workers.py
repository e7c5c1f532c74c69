import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import PROJECT

from workbench.runs.errors import RunError
from workbench.runs.workers import run_jobs


def square(n: int) -> int:
    # Later jobs finish first, so that order is seen to be kept.
    time.sleep(0.2 / (n + 1))
    if n == 99:
        raise ValueError("99 is too many")
    return n * n


def threads_and_process(_) -> tuple[int, int]:
    import torch

    return torch.get_num_threads(), os.getpid()


def die(n: int) -> None:
    if n == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def write_for_ever(path: str) -> None:
    while True:
        Path(path).write_text(str(time.time()), encoding="utf-8")
        time.sleep(0.05)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers):
    assert run_jobs(square, [0, 1, 2, 3, 4], workers, "squares") == [0, 1, 4, 9, 16]


def test_no_jobs_no_results():
    assert run_jobs(square, [], 0, "squares") == []


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_has_one_thread_and_this_process_keeps_its_own(workers):
    before = torch.get_num_threads()
    found = run_jobs(threads_and_process, [0, 1], workers, "looking")
    assert {threads for threads, _ in found} == {1} and torch.get_num_threads() == before
    assert ({process for _, process in found} == {os.getpid()}) is (workers == 1)


def where_runs_are(_) -> str:
    from workbench.runs.cache import runs_folder

    return str(runs_folder())


def test_jobs_find_runs_where_they_are_now(tmp_path, monkeypatch):
    """Processes stay for the next call, and were started when they may have been elsewhere."""
    for name in ("one", "other"):
        monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / name))
        assert run_jobs(where_runs_are, [0, 1], 2, "looking") == [str(tmp_path / name)] * 2


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_names_its_job(workers):
    with pytest.raises(RunError, match="squares failed at job 99: ValueError: 99 is too many") as error:
        run_jobs(square, [99, 1], workers, "squares")
    assert isinstance(error.value.__cause__, ValueError)


def test_a_process_that_dies_is_reported():
    with pytest.raises(RunError, match="A process of dying died at or near job"):
        run_jobs(die, [0, 1], 2, "dying")


def test_workers_end_when_their_run_is_killed(tmp_path):
    code = "import sys, test_workers; from workbench.runs.workers import run_jobs\n"
    code += "if __name__ == '__main__': run_jobs(test_workers.write_for_ever, sys.argv[1:], 2, 'writing')"
    files = [tmp_path / "a", tmp_path / "b"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])}
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, files)], env=environment)
    deadline = time.monotonic() + 60
    while not all(file.exists() for file in files) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait(timeout=30)
    time.sleep(1)
    stopped = [file.read_text(encoding="utf-8") for file in files]
    time.sleep(1)
    assert [file.read_text(encoding="utf-8") for file in files] == stopped
