"""Studies, the notebooks that ask how far a run can be trusted: which there are, what they take, what they said."""

import difflib
import html
import json
from collections.abc import Sequence
from pathlib import Path

from workbench.runs.recipe import project_root


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
    lines = [f"-p {key:<10} {entry['default']:<8} {entry['help']}" for key, entry in _declared(name).items()]
    return "\n".join([f"workbench study {name} RUN [-p KEY VALUE]", *lines])


def parameters_of(name: str, given: Sequence[tuple[str, str]]) -> dict[str, object]:
    """Return the parameters of a study, given as texts, as values of its notebook's own types.

    Raises:
        ValueError: If there is no such study; a RecipeError if there is no such parameter or it is no such value.
    """
    from workbench.notebook.session import require

    kinds = {"int": int, "float": float, "bool": bool}
    declared = {key: kinds.get(entry["inferred_type_name"], str) for key, entry in _declared(name).items()}
    values = {key: _read(text, declared.get(key, str)) for key, text in given}
    require(f"study {name}", declared, values)
    return values


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
    """Return what the parameters cell of a study says, but the run, which has an argument of its own."""
    if name not in studies():
        close = difflib.get_close_matches(name, studies(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(studies())}."
        raise ValueError(f"There is no study {name!r}; {hint}")
    import papermill

    return {key: entry for key, entry in papermill.inspect_notebook(str(studies()[name])).items() if key != "run"}


def _read(text: str, kind: type) -> object:
    """Return a text as a value of that type; as it stands where it cannot be read so, to be refused as it stands."""
    try:
        return kind(text) if kind in (int, float) else {"True": True, "False": False}[text] if kind is bool else text
    except (ValueError, KeyError):
        return text
