"""The command line: run, watch, runs, check, summary, plan, rehearse, study, trace, export, restore, doctor.

pydantic, pandas and the rest are imported by the command that needs them, so that --help is instant.
"""

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from workbench.runs.errors import RecipeError, RunError, in_words, redact, visible

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
NAMELESS = {"runs", "plan", "rehearse", "study", "doctor"}  # commands without a run, or with one of their own
SAID = 2_000  # characters of a line of an error
STATUS = "exit status: 0 done, 1 something failed, 2 refused before anything ran"  # unless a command says another
# {first} stands for the first recipe that the project ships, {demo} for its demo.
EXAMPLES = """examples:
  workbench run {demo} --name demo            the whole loop on the models the project ships, in minutes
  workbench run {demo} --name soft -p alignment.beta 0.5 -p seeds "[0, 1]"
  workbench run {demo} --name demo --from 04  do training and evaluation again
  workbench sweep {demo} --name betas -p alignment.beta 0.05,0.1,0.2    which value is best, chosen on validation
  workbench                                      the run worked on last, and what comes next
  workbench watch                                what it is doing now, from another terminal
  workbench plan {first}-paper                      what the paper's own numbers would cost
  workbench rehearse {demo}                  texts of every kind, before the whole is started
  workbench plan {first} --detect 0.05 --run demo   items and seeds for 5 points, at the spread seen in demo
  workbench study                                which studies there are: how far can a run be trusted?
  workbench study signals demo                   which signal tells what training gains?
  workbench trace demo 3fa9c1                    where a training row came from
  workbench export demo                          what the run made, as folders to load or to push to a hub
"""

COMMANDS: dict[str, tuple[Callable, tuple]] = {}


def command(*arguments: tuple) -> Callable:
    """Make a function a command of its name, which the first line of its docstring lists and all of it describes."""

    def add(function: Callable) -> Callable:
        COMMANDS[function.__name__] = function, arguments
        return function

    return add


def argument(*names: str, **settings) -> tuple:
    """Return an argument of a command, as argparse's add_argument takes it."""
    return names, settings


def share(text: str) -> float:
    """Return a number between 0 and 1."""
    if not 0 < (value := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1 (0.05 is five points), got {text}")
    return value


def parameters(what: str) -> tuple:
    """Return the argument -p KEY VALUE."""
    pairs = {"nargs": 2, "action": "append", "default": [], "metavar": ("KEY", "VALUE")}
    return argument("-p", "--parameter", **pairs, help=f"{what} (repeatable)")


RUN = argument("name", metavar="RUN", nargs="?", help="name of the run; the one worked on last, unless given")
RECIPE = (
    argument(
        "recipe",
        metavar="RECIPE",
        help="name in notebooks/recipes, path of a .yaml file, or (run) run:NAME, to go on "
        "from what run NAME has before its reviews",
    ),
    argument("--method", metavar="FILE.py", default="", help="a method of your own, set there as METHOD"),
    parameters("change one value of the recipe, for example: -p alignment.beta 0.05"),
)


@command(
    *RECIPE,
    argument("--name", required=True, help="name of the run; it is kept in data/runs/NAME"),
    argument(
        "--from", dest="first", metavar="NOTEBOOK", default="", help="do this and later ones again: 03, alignment"
    ),
    argument("--to", dest="last", metavar="NOTEBOOK", default="", help="stop after it"),
    argument("--wait", action="store_true", help="until another process has done with a run of this name"),
)
def run(given: argparse.Namespace) -> int | None:
    """Run the notebooks of a recipe and report the verdict.

    Nobody needs to watch. Everything is checked before anything runs. Finished steps are reused. A run that was stopped
    goes on where it was.
    """
    began = time.monotonic()
    from workbench import methods
    from workbench.notebook import headless
    from workbench.notebook.display import print_card
    from workbench.notebook.session import begin
    from workbench.report.card import result_card
    from workbench.runs.run import hold

    with ExitStack() as alone:
        try:
            work = begin(given.name, given.recipe, dict(given.parameter))
            alone.enter_context(hold(given.name, given.wait))
            notebooks = headless.wanted(work, given.first, given.last)
        except (RunError, ValueError) as error:
            return _say(error, REFUSED)
        print(f"run {work.name} of recipe {work.recipe.name} ({work.recipe.profile} models)", flush=True)
        report = headless.run_notebooks(work, given.first, given.last)
    print(f"{time.monotonic() - began:.0f} s in all\n")
    if notebooks[-1] == methods.ALL[work.recipe.method].notebooks[-1]:
        print_card(result_card(work), sys.stdout)
        print()
    print(f"Report: {_shown(report)}")


@command(
    *RECIPE[:2],
    parameters("values of one key, with commas between, for example: -p alignment.beta 0.05,0.1,0.2"),
    argument("--name", required=True, help="of the sweep; its runs are NAME-1, NAME-2, ... and NAME-chosen"),
    argument("--choose-on", choices=["validation", "test"], default="validation", help="items of all settings"),
)
def sweep(given: argparse.Namespace) -> int | None:
    """Run a recipe in several settings and put them side by side.

    All settings are tried on validation items outside the preference set; the best is then tried on the test items,
    which nothing was chosen by. With --choose-on test all are tried on test items and nothing is chosen. A sweep that
    was stopped goes on.
    """
    from workbench.cli import study
    from workbench.cli.sweep import settings_of
    from workbench.cli.sweep import sweep as run_all

    page = run_all(given.name, given.recipe, settings_of(given.parameter), given.choose_on)
    print("\n".join(textwrap.fill(said, 100) for said in study.sentences(page)))
    print(f"\nReport: {_shown(page)}")


def status(given: argparse.Namespace) -> None:
    """Say how far the run worked on last is, and what comes next."""
    from workbench.notebook.watch import look
    from workbench.runs.run import open_run

    work = open_run(given.name)
    now = look(work)
    print(f"Run {work.name} of recipe {work.recipe.name}: {now.said}")
    if now.state == "finished":
        print(f"What it found: workbench summary {work.name}, or {_shown(work.path / 'reports' / 'report.html')}")
        print(f"How far to trust it: workbench study NAME {work.name}; all studies: workbench study")
    print("All runs: workbench runs; all commands: workbench --help")


def latest() -> str:
    """Return the name of the run worked on last."""
    from workbench.runs.cache import runs_folder

    folders = [path.parent for path in runs_folder().glob("*/recipe.yaml")]
    if not folders:
        demo = next(iter(demos()), "RECIPE")
        raise RunError(f"There is no run in {runs_folder()} yet; begin one: workbench run {demo} --name demo")
    # A folder is as old as what was last put into it.
    return max(folders, key=lambda folder: max(path.stat().st_mtime for path in [folder, *folder.glob("*/")])).name


@command(RUN)
def watch(given: argparse.Namespace) -> int | None:
    """Say what a run is doing, on a terminal until it is finished.

    Steps, items, rate, time left, curve, last texts. It reads files only, so it works from another terminal and when
    the run has died; Ctrl-C leaves the run alone.

    exit status: 0 the run is well, 1 it was stopped or its process is gone
    """
    from workbench.notebook.watch import watch

    try:
        return DONE if watch(given.name, sys.stdout) else FAILED
    except KeyboardInterrupt:
        print("Stopped watching; the run was left alone.")


@command()
def runs(given: argparse.Namespace) -> None:
    """List runs, one row each."""
    from workbench.notebook.display import print_table
    from workbench.runs.cache import runs_folder
    from workbench.runs.run import runs_table
    from workbench.verdict.in_words import points

    table = runs_table()
    if table.empty:
        print(f"There are no runs in {runs_folder()} yet; begin one: workbench run RECIPE --name NAME")
        return
    forms = {"difference": points, "low": points, "high": points, "seconds": "{:.0f}".format, "steps": "{:.0f}".format}
    for name, form in forms.items():
        table[name] = table[name].map(form, na_action="ignore")
    print_table(table, sys.stdout)
    print("\ndifference, low, high: of the primary comparison, in points of accuracy")


@command(RUN)
def check(given: argparse.Namespace) -> int:
    """Read all that a run keeps and hold it against what was written.

    Says what is damaged, what to do, and what would be made again; changes nothing.

    exit status: 0 nothing is damaged, 1 something is
    """
    from workbench.cli.check import check
    from workbench.runs.run import open_run

    whole, said = check(open_run(given.name))
    print(said)
    return DONE if whole else FAILED


@command(
    RUN,
    argument("--to", metavar="FOLDER", help="also write tables, verdict and figures (PNG) into this folder"),
)
def summary(given: argparse.Namespace) -> None:
    """Print what a finished run found: its result card."""
    from workbench.notebook.display import print_card
    from workbench.report.card import result_card
    from workbench.report.summary import keep
    from workbench.runs.run import open_run

    work = open_run(given.name)
    print_card(result_card(work), sys.stdout)
    for path in keep(work, Path(given.to)) if given.to else []:
        print(f"written: {_shown(path)}")


@command(
    *RECIPE,
    argument("--detect", type=share, default=0.0, metavar="D", help="difference, as a share (default: the margin)"),
    argument("--run", default="", help="take the spread over seeds and items from this run; show what it took"),
)
def plan(given: argparse.Namespace) -> None:
    """Say what a recipe will cost, without running it."""
    from workbench.report.plan import in_words
    from workbench.runs.recipe_file import load_recipe

    print(in_words(load_recipe(given.recipe, dict(given.parameter)), given.run, given.detect))


@command(*RECIPE)
def rehearse(given: argparse.Namespace) -> int | None:
    """Try a recipe out in a minute or two.

    Its own models write a few texts of each kind, shown in full. Then: what shares are usable, in form, right and cut
    off; what the whole will take on this machine; and whether it is worth starting.
    """
    from workbench.cli.rehearse import in_words
    from workbench.runs.recipe_file import load_recipe

    for line in in_words(load_recipe(given.recipe, dict(given.parameter))):
        print(line, flush=True)


@command(
    argument("name", nargs="?", metavar="NAME", help="name of the study"),
    argument("run", nargs="?", metavar="RUN", help="name of the run"),
    parameters("a parameter of the study, for example: -p seeds 3"),
)
def study(given: argparse.Namespace) -> int | None:
    """Ask how far a run can be trusted.

    A notebook of notebooks/studies is run; its page and its numbers go into the run's folder. Without RUN: what the
    study takes. Without NAME: which studies there are.
    """
    from workbench.cli import study as studies

    try:
        if not given.run:
            print(studies.parameters_in_words(given.name) if given.name else studies.listed())
            return DONE
        values = studies.parameters_of(given.name, given.parameter)
    except ValueError as error:
        return _say(error, REFUSED)
    from workbench.notebook.headless import run_study
    from workbench.runs.run import open_run

    page = run_study(open_run(given.run), given.name, values)
    print("\n".join(textwrap.fill(said, 100) for said in studies.sentences(page)))
    print(f"\nReport: {_shown(page)}")


@command(
    RUN,
    argument("row", metavar="ROW", help="id (or four and more of its first characters) of a row, example, pair, draft"),
)
def trace(given: argparse.Namespace) -> None:
    """Follow a row back to its drafts and probes, or a draft on to its rows."""
    from workbench.report.lineage import lineage
    from workbench.runs.run import open_run

    print(lineage(open_run(given.name), given.row))


@command(
    RUN,
    argument("--to", metavar="FOLDER", help="data/runs/RUN/export unless given; an earlier export is replaced"),
    argument("--students", action="store_true", help="the trained students too"),
)
def export(given: argparse.Namespace) -> None:
    """Write what a finished run made, as folders to load or to push to a hub.

    Nothing is sent anywhere.

      tailored/STUDENT   the tailored set and its controls: Parquet and JSONL, with messages as TRL, Unsloth and
                         LLaMA-Factory read them
      teacher/STUDENT    the teacher aligned to this student
      student/STUDENT    the students trained on the tailored set, one folder a seed (with --students)

    Each has a card that says how it was made, what it showed, what it cost and what did not work.
    """
    from workbench.report.export import export
    from workbench.runs.run import open_run

    for folder in export(open_run(given.name), given.to, given.students):
        print(_shown(folder))


@command(RUN)
def open(given: argparse.Namespace) -> None:
    """Show the report of a finished run, in a browser where there is one.

    The run `sample` comes with the project: five students of recipe arte on real items. It is only looked at.
    """
    import webbrowser

    from workbench.notebook.display import print_card
    from workbench.report.card import result_card
    from workbench.report.page import write_report
    from workbench.runs.run import open_run

    work = open_run(given.name)
    print_card(cards := result_card(work), sys.stdout)
    page = write_report(work, cards)
    print(f"\nReport: {_shown(page)}")
    if sys.stdout.isatty():
        webbrowser.open(page.as_uri())


@command(RUN)
def restore(given: argparse.Namespace) -> None:
    """Bring back the last finished result that was moved aside, and what it was made from.

    What stands in its place is moved aside in turn: a second call undoes the first. Nothing is deleted.
    """
    from workbench.runs.run import open_run
    from workbench.runs.run import restore as bring_back
    from workbench.verdict.evaluation import decide

    work = open_run(given.name)
    print(f"Brought back: {', '.join(bring_back(work))}.")
    if work.stands("predictions"):
        decide(work)


@command()
def doctor(given: argparse.Namespace) -> None:
    """Say what this machine has."""
    from workbench.cli.doctor import in_words

    print(in_words())


def demos() -> list[str]:
    """Return the names of the shipped demos; methods, which know their recipes, take long to import."""
    folder = Path(__file__).resolve().parents[2] / "notebooks" / "recipes"
    return sorted(path.stem for path in folder.glob("*-demo.yaml"))


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; a command returns its exit status, or nothing when all is well."""
    as_written = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    demo = next(iter(demos()), "RECIPE-demo")
    top = argparse.ArgumentParser(
        prog="workbench",
        description="A teacher model learns what its student wants to be taught; see notebooks/00_start_here.ipynb.",
        epilog=EXAMPLES.format(first=demo.removesuffix("-demo"), demo=demo),
        **as_written,
    )
    top.add_argument("--home", metavar="FOLDER", default=".", help="stand there: runs go to its data/runs")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for name, (function, arguments) in COMMANDS.items():
        description = textwrap.dedent(f"    {function.__doc__}")
        listed = description.partition(".")[0]
        told = {"description": description, "epilog": "" if "exit status" in description else STATUS}
        one = commands.add_parser(name, help=listed, allow_abbrev=False, **told, **as_written)
        for names, settings in arguments:
            one.add_argument(*names, **settings)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 done, 1 failed, 2 refused before anything ran."""
    given = parser().parse_args(arguments)

    try:
        os.chdir(given.home)
        if method := getattr(given, "method", ""):
            from workbench import methods

            methods.bring(method)
            os.environ[methods.FROM_FILE] = os.path.abspath(method)  # for the processes that do the work
        if getattr(given, "name", None) is None and given.command not in NAMELESS:
            given.name = latest()
        return (COMMANDS[given.command][0] if given.command else status)(given) or DONE
    except RecipeError as error:
        return _say(error, REFUSED)
    except KeyboardInterrupt:
        return _say("Stopped. Finished items are kept: the same command goes on where it was.", INTERRUPTED)
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        if os.environ.get("WORKBENCH_DEBUG"):
            raise
        return _say(error, FAILED)


def _say(error: Exception | str, status: int) -> int:
    said = "\n".join(visible(line, SAID) for line in redact(f"workbench: {in_words(error)}").splitlines())
    print(said, file=sys.stderr)
    return status


def _shown(path: os.PathLike[str]) -> str:
    """Return a path from the current folder where it lies below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
