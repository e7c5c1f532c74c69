"""Studies, the notebooks that ask how far a run can be trusted: listed, and run without anybody watching."""

import difflib
import html
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from workbench.runs.recipe import project_root


class StudyError(ValueError):
    """There is no such study, or it does not take such a parameter."""


def studies() -> dict[str, Path]:
    """Return the notebook of each study, by name."""
    return {path.stem: path for path in sorted((project_root() / "notebooks" / "studies").glob("*.ipynb"))}


def listed() -> str:
    """Return every study in a line, as the first heading of its notebook says it, and how one is run."""
    heads = {name: json.loads(path.read_text(encoding="utf-8"))["cells"][0] for name, path in studies().items()}
    titles = {name: "".join(head["source"]).partition("\n")[0].lstrip("# ") for name, head in heads.items()}
    lines = [f"{name:<{max(map(len, titles))}}  {title}" for name, title in titles.items()]
    return "\n".join([*lines, "", "One of them: workbench study NAME RUN; what it takes: workbench study NAME"])


def parameters_in_words(name: str) -> str:
    """Return a line for each parameter of a study."""
    entries = {key: entry for key, entry in _declared(name).items() if key != "run"}
    lines = [f"-p {key:<10} {entry['default']:<8} {entry['help']}" for key, entry in entries.items()]
    return "\n".join([f"workbench study {name} RUN [-p KEY VALUE]", *lines])


def run_study(name: str, run: str, given: Sequence[tuple[str, str]]) -> Path:
    """Run a study on a run; its executed notebook and its page are kept in the run's reports.

    Args:
        name: Of the study.
        run: Name of the run.
        given: Parameters of the notebook, each a name and a value as text.

    Returns:
        The page.

    Raises:
        StudyError: If there is no such study, or no such parameter, or a value is of the wrong type.
        StoreError: If there is no such run.
        NotebookFailed: If a cell fails.
    """
    parameters = _checked(name, given)
    from workbench.runs.run import open_run

    work = open_run(run)
    import papermill

    from workbench.notebook.headless import KERNEL, PATIENCE_S, NotebookFailed, _kernel, _shut_down
    from workbench.notebook.session import metrics_path, record_status
    from workbench.report.page import build

    executed = work.path / "reports" / f"{name}.ipynb"
    executed.parent.mkdir(exist_ok=True)
    settings = {"kernel_name": KERNEL, "start_timeout": PATIENCE_S, "iopub_timeout": PATIENCE_S}
    settings |= {"cwd": project_root(), "progress_bar": False, "stdout_file": sys.stdout}
    with TemporaryDirectory(prefix="workbench-") as folder:
        kernel = _kernel(Path(folder))
        try:
            papermill.execute_notebook(studies()[name], executed, {"run": run, **parameters}, km=kernel, **settings)
        except papermill.PapermillExecutionError as error:
            said = " ".join(str(error.evalue).split())
            record_status(metrics_path(work), name, {"status": "failed", "error": said})
            raise NotebookFailed(f"{said} ({error.ename} in notebooks/studies/{name}.ipynb)") from None
        finally:
            _shut_down(kernel)
    title = f"Run {work.name} of recipe {work.recipe.name} ({work.recipe.profile} models)"
    return build([executed], executed.with_suffix(".html"), title)


def sentences(page: Path) -> list[str]:
    """Return what an executed study said, and its figures, in sentences; tables are on its page."""
    import nbformat

    cells = nbformat.read(page.with_suffix(".ipynb"), as_version=4).cells
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    said = [
        data["text/plain"]
        for data in outputs
        if "application/vnd.plotly.v1+json" in data
        or data.get("text/html") == f"<p>{html.escape(data.get('text/plain', ''))}</p>"
    ]
    # The first says which run this is, the last where the numbers are.
    return said[1:-1]


def _declared(name: str) -> dict[str, dict]:
    if name not in studies():
        close = difflib.get_close_matches(name, studies(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(studies())}."
        raise StudyError(f"There is no study {name!r}; {hint}")
    import papermill

    return papermill.inspect_notebook(str(studies()[name]))


def _checked(name: str, given: Sequence[tuple[str, str]]) -> dict[str, object]:
    """Return the parameters as the notebook's own types, or say everything that is wrong with them."""
    declared, parameters, faults = _declared(name), {}, []
    for key, text in given:
        if key == "run" or key not in declared:
            others = [other for other in declared if other != "run"]
            faults.append(f"{key} is not a parameter of study {name}; it has {', '.join(others) or 'none'}.")
            continue
        kind = declared[key]["inferred_type_name"]
        try:
            parameters[key] = {"int": int, "float": float}.get(kind, str)(text)
        except ValueError:
            faults.append(f"{key} must be of type {kind}, got {text!r}: {declared[key]['help']}.")
    if faults:
        raise StudyError(" ".join(faults))
    return parameters
