"""A mistake as one card in Lab: what, why and what to change, in the words of a notebook; a log keeps all of it."""

import html
import os
import re
import traceback
from pathlib import Path

from workbench.runs.errors import DataError, ModelError, RecipeError, RunError, redact

HEADS = {
    RecipeError: "What was asked for cannot be",
    RunError: "The run cannot go on like this",
    ModelError: "A model cannot be used like this",
    DataError: "Data are missing, or not as they must be",
    KeyboardInterrupt: "Stopped",
    NameError: "This cell needs one that has not run",
}
HEADLESS, APP, IMPORT = "WORKBENCH_HEADLESS", "VOILA_PREHEAT", "import workbench as wb"
SETUP = "The kernel is new, and {name} is made further up. Run the cells from the first one on, the setup cell with "
SETUP += "import workbench as wb among them (menu Run, Run All Above Selected Cell); what is finished is reused."
STOPPED = "Finished items are kept: run the cell again, and it goes on where it was."
STYLE = "border:1px solid #a84600;border-left-width:6px;border-radius:4px;padding:.5em 1em;margin:.3em 0"
# What a terminal says -> what a notebook says.
PLACE = (
    (r"take another --name or undo", 'in the parameters cell, take another name, run = "…", or undo'),
    (r"workbench run (run:\S+) --name (\S+)", r'run = "\2" and recipe = "\1" in the parameters cell, then all cells.'),
    (r"or run: workbench run", "or, in a terminal: workbench run"),
)


def in_notebook(text: str) -> str:
    """Return a message with what a terminal is told to do in the words of a notebook.

    Example:
        >>> in_notebook("take another --name or undo: seeds 1 -> 2.")
        'in the parameters cell, take another name, run = "…", or undo: seeds 1 -> 2.'
    """
    for terminal, notebook in PLACE:
        text = re.sub(terminal, notebook, text)
    return text


def card(error: BaseException, where: str = "") -> str:
    """Return a mistake as HTML: what went wrong, and folded where; all text in it is escaped."""
    head = next(head for kind, head in HEADS.items() if isinstance(error, kind))
    said = {KeyboardInterrupt: STOPPED, NameError: SETUP.format(name=getattr(error, "name", ""))}
    text = html.escape(said.get(type(error)) or in_notebook(redact(str(error))))
    folded = f'<details><summary>Where</summary><pre style="overflow:auto">{html.escape(redact(where))}</pre></details>'
    return f'<div role="alert" style="{STYLE}"><strong>{head}.</strong> {text}{folded if where else ""}</div>'


def load_ipython_extension(shell) -> None:
    """Show mistakes as cards from now on where somebody is watching; other errors, and all in a log, as Python does."""
    shell.set_custom_exc(tuple(HEADS), _show)


def _show(shell, kind: type, error: BaseException, trace, tb_offset: int | None = None) -> list[str]:
    from IPython.display import display

    # Whoever runs a notebook as a file looks for an error among its outputs: Lab and the app get the card in its place.
    watched, notebook = not os.environ.get(HEADLESS), os.environ.get("JPY_SESSION_NAME", "")
    shown = watched and (notebook or APP in os.environ)
    is_file = bool(notebook) and Path(notebook).is_file()
    # A name is ours to explain where the notebook imports the workbench and has not done so yet.
    is_ours = is_file and "wb" not in shell.user_ns and IMPORT in Path(notebook).read_text(encoding="utf-8")
    if not shown or (isinstance(error, NameError) and not is_ours):
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
        return []
    where = "".join(traceback.format_exception(kind, error, trace))
    display({"text/html": card(error, where), "text/plain": redact(f"{kind.__name__}: {error}")}, raw=True)
    shell._last_traceback = []
    return []
