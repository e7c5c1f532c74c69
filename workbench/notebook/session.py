"""A notebook's session: its parameters checked, its run opened, its metrics written."""

import ast
import difflib
import html
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from workbench import figures
from workbench.loop.reviews import Reviews, name_beside, newer_than_alignment
from workbench.methods import FIRST_RECIPE
from workbench.notebook.display import HEADLESS, is_headless, say
from workbench.notebook.mistakes import card, load_ipython_extension
from workbench.notebook.watch import watching
from workbench.runs.cache import read_json, runs_folder, write_json
from workbench.runs.errors import RecipeError, RunError, spoken
from workbench.runs.recipe import Recipe, home
from workbench.runs.recipe_file import load_recipe
from workbench.runs.recipe_parts import ROLES
from workbench.runs.run import OF_RUN, Run, open_run, take_over

INJECTED = "# Parameters"


def start(
    run: str, recipe: str = "", overrides: str = "", given: Mapping | None = None, first: str = "", needs: tuple = ()
) -> Run:
    """Check a notebook's parameters and open its run, or begin it where the notebook is the first of a method.

    Args:
        run: Name of the run, a folder under data/runs.
        recipe: Name or path, or "run:NAME" as for `begin`; empty means the run's own, or `first` when the run is new.
        overrides: For example "alignment.beta=0.05; seeds=[0, 1, 2]"; values are read as YAML.
        given: The notebook's globals(), to refuse what papermill injected and the notebook does not know.
        first: The recipe of a new run, where none is named; without it the notebook begins none.
        needs: A step that a study needs, and the run that ships of which it is shown where the run lacks that step and
            somebody is watching.

    Raises:
        RecipeError: If a parameter is unknown or of the wrong type, or recipe and overrides make no valid recipe.
        RunError: If the run was begun with another recipe, or there is none and this notebook begins none.

    Example:
        work = wb.start("demo", overrides="alignment.beta=0.05")
    """
    check_parameters(given or {})
    stored = runs_folder() / run / "recipe.yaml"
    if needs and not is_headless():
        try:
            open_run(run).read(needs[0])
        except RunError as error:
            say(f"{error} Until then this is {needs[1]}, a run that comes with the project, as it was studied.")
            return start(needs[1], given=given)
    if first or recipe.startswith(OF_RUN) or stored.is_file():
        own = str(stored) if stored.is_file() else first
        opened = begin(run, recipe or own, parse_overrides(overrides))
    else:
        opened = open_run(run)
    _make_ready()
    opened.watching = watching
    say(f"{opened}.")
    offer_again(opened)
    return opened


def offer_again(work: Run) -> None:
    """Say if reviews are newer than the alignment; where somebody is watching, a button aligns again beside it.

    It begins a run of another name in a process of its own, so that the notebook stays free and nothing is displaced;
    where that fails, a card says why.
    """
    if not (newer := newer_than_alignment(work)):
        return
    say(newer)
    if is_headless():
        return
    from IPython.display import display
    from ipywidgets import HTML, Button, HBox, Layout

    name = name_beside(work)
    button, told = Button(description=f"Align again as {name}", layout=Layout(width="auto", flex="none")), HTML()

    def run_beside() -> None:
        command = [sys.executable, "-m", "workbench", "run", f"{OF_RUN}{work.name}", "--name", name]
        with tempfile.TemporaryFile() as errors:
            apart = {"cwd": home(), "start_new_session": True, "stdout": subprocess.DEVNULL, "stderr": errors}
            if status := subprocess.run(command, **apart).returncode:
                errors.seek(0)
                said = errors.read().decode("utf-8", "replace").rpartition("workbench: ")[2].strip()
                told.value = card(RunError(said or f"Run {name} ended without a word (status {status})."))
                button.disabled = False

    def begin_beside(_) -> None:
        button.disabled = True
        told.value = f"Begun. How far it is: <code>workbench watch {html.escape(name)}</code>. When it is finished, "
        told.value += f'<code>run = "{html.escape(name)}"</code> in the parameters cell shows it.'
        threading.Thread(target=run_beside, daemon=True).start()

    button.on_click(begin_beside)
    display(HBox([button, told]))


def begin(run: str, recipe: str, overrides: Mapping[str, str] = {}) -> Run:
    """Open a run, or begin it.

    Args:
        run: Its name.
        recipe: Name or path, or "run:NAME": then the recipe of that run is taken, and of a new run also the reviews of
            that one and all of its steps that no review goes into.
        overrides: Changes of the recipe; steps that one goes into are computed anew.
    """
    if not recipe.startswith(OF_RUN):
        return open_run(run, load_recipe(recipe, overrides))
    source, is_new = open_run(recipe.removeprefix(OF_RUN)), not (runs_folder() / run / "recipe.yaml").is_file()
    opened = open_run(run, load_recipe(str(source.path / "recipe.yaml"), overrides))
    if is_new:
        said, later = Reviews.of_run(source).path, source.made_from("reviewed")
        if said.is_file():
            shutil.copy2(said, Reviews.of_run(opened).path)
        take_over(opened, source, [step for step in source.steps() if step not in later])
    return opened


def preflight(name: str) -> None:
    """Refuse a run whose tasks, models or engines are not here, before any of its notebooks begins."""
    from workbench.models import backends, start
    from workbench.tasks.task import load_tasks

    recipe = open_run(name).recipe
    load_tasks(recipe)
    for role in ROLES:
        for ref in start.models_of(recipe, role):
            start.model_fingerprint(recipe, role, ref)
    start.check(recipe)
    backends.check(recipe)


def setup(given: Mapping, recipe: str = "", overrides: str = "") -> Recipe:
    """Check the parameters of a notebook that has no run, and return its recipe.

    Args:
        recipe: Name or path; empty means the first one.
        overrides: As for `start`.
    """
    check_parameters(given)
    settings = load_recipe(recipe or FIRST_RECIPE, parse_overrides(overrides))
    _make_ready()
    return settings


def _make_ready() -> None:
    """Bring figures to the page; where somebody is watching, edited code is taken up without a restart."""
    figures.use_renderer()
    if not is_headless():
        from IPython import get_ipython

        get_ipython().extension_manager.load_extension("autoreload")
        get_ipython().run_line_magic("autoreload", "2")


def parse_overrides(text: str) -> dict[str, str]:
    """Return "key=value; key=value" as a mapping.

    Example:
        >>> parse_overrides("alignment.beta=0.05; seeds=[0, 1]")
        {'alignment.beta': '0.05', 'seeds': '[0, 1]'}
    """
    pairs = [part.partition("=") for part in text.split(";") if part.strip()]
    for key, sign, _ in pairs:
        if not sign or not key.strip():
            raise RecipeError(
                f"overrides must read 'key=value; key=value', got {text!r}; write for example 'alignment.beta=0.05'."
            )
    return {key.strip(): value.strip() for key, _, value in pairs}


def check_parameters(given: Mapping) -> None:
    """Refuse injected parameters that the parameters cell does not declare, and values of the wrong type.

    papermill only warns of them. It writes what it injects into a cell of its own, which is read back here. What goes
    wrong from now on, in the cell that is running too, is shown as a card.
    """
    from IPython import get_ipython

    if shell := get_ipython():
        load_ipython_extension(shell)
    declared = given.get("__annotations__", {})
    values = {name: given[name] for name in declared if name in given}
    require("this notebook", declared, dict.fromkeys(_injected(given.get("In", []))) | values)


def require(what: str, declared: Mapping[str, object], values: Mapping) -> None:
    """Refuse values of parameters that are not declared, or that are not of the type declared, all faults at once.

    Args:
        declared: Type by name, as annotations are; what is no type is not looked at.

    Raises:
        RecipeError: Naming each fault, and a parameter that was perhaps meant.
    """
    faults = []
    for name, value in values.items():
        kind = declared.get(name)
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(declared)}."
            faults.append(f"{name} is not a parameter of {what}; {hint}")
        elif isinstance(kind, type) and type(value) is not kind:
            faults.append(f"{name} must be of type {kind.__name__}, got {value!r} ({type(value).__name__}).")
    if faults:
        raise RecipeError(" ".join(faults))


def _injected(cells: Iterable[str]) -> list[str]:
    """Return the names assigned in the cells that papermill injected, and note that nobody is watching."""
    names = []
    for cell in cells:
        if cell.startswith(INJECTED):
            os.environ.setdefault(HEADLESS, "1")
            targets = [node.targets[0] for node in ast.parse(cell).body if isinstance(node, ast.Assign)]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def finish(work: Run | None, notebook: str, metrics: Mapping[str, float | int | str]) -> None:
    """Write what a notebook found into metrics.json of its run, beside what the other notebooks wrote.

    Args:
        work: The run; None for a notebook without one, whose numbers go to the folder start-here.
        notebook: Its name without the ending.
    """
    path = metrics_path(work)
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
    record_status(path, notebook, {"status": "ok", **plain})
    say(f"Written to {path.parent.name}/{path.name}: {', '.join(map(spoken, metrics)) or 'the status'}.")


def metrics_path(work: Run | None) -> Path:
    """Return where a run's metrics are kept."""
    return (work.path if work else runs_folder() / "start-here") / "metrics.json"


def record_status(path: Path, notebook: str, values: Mapping) -> None:
    """Set one notebook's entry of a metrics.json."""
    try:
        there = read_json(path)
    except RunError:
        # Metrics are derived: a damaged file is written anew by the notebooks.
        there = {}
    write_json(path, {**there, notebook: dict(values)})
