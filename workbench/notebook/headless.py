"""Notebooks run by papermill: those of a recipe's method in order, or a study; what is wrong is said before."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import nbformat

from workbench.methods import ALL
from workbench.notebook.display import GOING_ON, HEADLESS
from workbench.notebook.session import metrics_path, record_status
from workbench.runs.cache import atomic_write, temporary_folder
from workbench.runs.errors import RunError, redact
from workbench.runs.recipe import home, project_root
from workbench.runs.run import Run, hold, steps_in

KERNEL = "python3"
PATIENCE_S = 600  # on a busy machine a kernel takes its time, to start and to pass on what a finished cell showed
# Processes that a notebook starts look for __spec__, which reset takes away.
EMPTY = "%reset -f\n__spec__ = None"
PREFLIGHT = "from workbench.notebook.session import preflight\npreflight({name!r})"


def wanted(work: Run, first: str = "", last: str = "") -> list[str]:
    """Return the notebooks of the run's method from first to last, each a part of a name that no other has or "".

    Raises:
        RunError: If there is no such notebook, or first comes after last.
    """
    names = list(ALL[work.recipe.method].notebooks)
    places = []
    for option, part, otherwise in (("--from", first, 0), ("--to", last, len(names) - 1)):
        found = [place for place, name in enumerate(names) if part in name] if part else [otherwise]
        if len(found) != 1:
            raise RunError(f"{option} must be a part of one of {', '.join(names)}, got {part!r}; correct it.")
        places += found
    if places[0] > places[1]:
        raise RunError(f"--from {first} comes after --to {last}; the order is {', '.join(names)}.")
    return names[places[0] : places[1] + 1]


def run_notebooks(work: Run, first: str = "", last: str = "") -> Path:
    """Run the notebooks of the run's method from first to last, as for `wanted`; return the report.

    All of them share one Python process, emptied in between: starting one, with its imports and workers, takes as long
    as a small step. Where a first one is named, its steps and all that come after are computed again.

    Raises:
        RunError: If one ends with an error, or a step that comes before is not finished.
    """
    notebooks = wanted(work, first, last)
    if first:
        begin_again(work, notebooks[0])
    with _kernel() as kernel:
        _execute_cell(kernel, PREFLIGHT.format(name=work.name))
        for name in notebooks:
            _execute_cell(kernel, EMPTY)
            _run_notebook(work, name, kernel)
    from workbench.report.page import write_report  # seconds, which a run that goes on would otherwise begin with

    return write_report(work)


def run_study(work: Run, name: str, parameters: Mapping[str, object]) -> Path:
    """Run a notebook of notebooks/studies on a run, in a process of its own; return its page.

    Raises:
        RunError: If it ends with an error.
    """
    with hold(work.name), _kernel() as kernel:
        executed = _run_notebook(work, f"studies/{name}", kernel, parameters)
    from workbench.report.page import notebook_page

    return notebook_page(executed)


def begin_again(work: Run, first: str) -> None:
    """Have the steps of a notebook and of later ones computed again, in force until then; earlier ones are there."""
    names = ALL[work.recipe.method].notebooks
    at = names.index(first)
    for step in (step for name in names[:at] for step in steps_in(name, always=True)):
        work.result(step)
    for step in (step for name in names[at:] for step in steps_in(name)):
        work.again(step)


def _run_notebook(work: Run, name: str, kernel, parameters: Mapping[str, object] | None = None) -> Path:
    """Execute one notebook of the folder notebooks, print a line about it, and return the executed copy."""
    import papermill

    began, executed = time.monotonic(), work.path / "reports" / f"{Path(name).name}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    for library in ("papermill", "traitlets"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="papermill|nbclient|jupyter_client|zmq|nbformat")
    try:
        papermill.execute_notebook(
            project_root() / "notebooks" / f"{name}.ipynb",
            executed,
            parameters={"run": work.name, **(parameters or {})},
            kernel_name=KERNEL,
            start_timeout=PATIENCE_S,
            iopub_timeout=PATIENCE_S,
            km=kernel,
            cwd=home(),
            progress_bar=False,
            stdout_file=_Indented(),
            # Saving after every cell takes longer than many cells.
            request_save_on_cell_execute=False,
            autosave_cell_every=0,
        )
    except papermill.PapermillExecutionError as error:
        said = " ".join(str(error.evalue).split())
        record_status(metrics_path(work), executed.stem, {"status": "failed", "error": said})
        raise RunError(f"{said} ({error.ename} in notebooks/{name}.ipynb)") from None
    finally:
        _clean(executed)
    counts = [f"{n:,} {what}" for step in steps_in(name) for what, n in list(work.counts(step).items())[:1]]
    print(f"{name:<22} {time.monotonic() - began:4.0f} s   {', '.join(counts)}", flush=True)
    return executed


def _clean(path: Path) -> None:
    """Take keys, and of progress all but the last lines, out of an executed notebook, which papermill writes."""
    if not path.is_file():
        return
    notebook = nbformat.reads(redact(path.read_text(encoding="utf-8")), as_version=4)
    for cell in (one for one in notebook.cells if one.cell_type == "code"):
        for output in (one for one in cell.outputs if one.output_type == "stream"):
            lines = output.text.splitlines(keepends=True)
            output.text = "".join(line for line in lines if not line.startswith(GOING_ON))
        cell.outputs = [one for one in cell.outputs if one.output_type != "stream" or one.text.strip()]
    atomic_write(path, nbformat.writes(notebook).encode("utf-8"))


@contextmanager
def _kernel() -> Iterator:
    """Yield a kernel manager of this environment's own Python, started by the first that uses it and ended after."""
    from nbclient import NotebookClient
    from nbclient.util import run_sync

    # In order: without it a kernelspec of the same name in the home folder, of another Python, would come first; nobody
    # is there to click; bars of libraries are drawn by processes whose output no notebook catches.
    own = dict.fromkeys(("JUPYTER_PREFER_ENV_PATH", HEADLESS, "TQDM_DISABLE"), "1")
    # Sockets in a folder of this user's own instead of open ports.
    with patch.dict(os.environ, own), temporary_folder() as folder:
        kernel = NotebookClient(nbformat.v4.new_notebook(), kernel_name=KERNEL).create_kernel_manager()
        kernel.transport, kernel.connection_file = "ipc", str(folder / "kernel.json")
        try:
            yield kernel
        finally:
            if kernel.has_kernel:
                run_sync(kernel.shutdown_kernel)(now=True)


def _execute_cell(kernel, source: str) -> None:
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    patient = {"kernel_name": KERNEL, "startup_timeout": PATIENCE_S, "iopub_timeout": PATIENCE_S}
    try:
        NotebookClient(notebook, km=kernel, resources={"metadata": {"path": str(home())}}, **patient).execute()
    except CellExecutionError as error:
        raise RunError(" ".join(str(error.evalue).split())) from None


class _Indented:
    """Passes on what a notebook prints, indented, without empty lines."""

    def __init__(self):
        self.rest = ""

    def write(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in filter(str.strip, lines):
            print(f"   {line}", flush=True)

    def flush(self) -> None:
        sys.stdout.flush()
