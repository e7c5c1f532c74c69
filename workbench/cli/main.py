"""The command line: run, watch, runs, summary, plan, study, trace, export, doctor."""

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Sequence

DONE, FAILED, REFUSED = 0, 1, 2
EXAMPLES = """examples:
  workbench run arte-demo --name demo            the whole loop on the models the project ships, in minutes
  workbench run arte-demo --name soft -p alignment.beta 0.5 -p seeds "[0, 1]"
  workbench run arte-demo --name demo --from 04         do training and evaluation again
  workbench watch demo                           what it is doing now, from another terminal
  workbench runs                                 one row a run
  workbench summary demo                         what it found, a row a student
  workbench plan arte-paper                      what the paper's own numbers would cost
  workbench plan arte --measure                  the same for models that are here, after trying them out
  workbench plan arte --detect 0.05 --run demo   items and seeds for 5 points, at the spread seen in demo
  workbench study                                which studies there are: how far can a run be trusted?
  workbench study validity demo                  does what works as a demonstration help in training?
  workbench study goodhart demo -p rounds 2      does the probe go on telling the truth when it is pushed?
  workbench trace demo 3fa9c1                    where a training row came from
  workbench export demo                          what the run made, as folders to load or to push to a hub
"""
RUN_HELP = """Run the notebooks of a recipe without anybody watching.

Everything is checked before anything runs. Finished steps are reused. A run that was stopped goes on where it was."""
EXPORT_HELP = """Write what a finished run made, as folders to load or to push to a hub. Nothing is sent anywhere.

  tailored/STUDENT   the tailored set and its controls: Parquet and JSONL, with messages as TRL, Unsloth and
                     LLaMA-Factory read them
  teacher/STUDENT    the teacher aligned to this student
  student/STUDENT    the students trained on the tailored set, one folder a seed (with --students)

Each has a card that says how it was made, what it showed, what it cost and what did not work."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="workbench",
        description="A teacher model learns what its student wants to be taught; see notebooks/00_start_here.ipynb.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    plain = {"allow_abbrev": False}
    run = commands.add_parser(
        "run",
        **plain,
        help="run a recipe's notebooks and report the verdict",
        description=RUN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit status: 0 the verdict or the last notebook asked for is there, 1 something failed, 2 refused",
    )
    _takes_recipe(run)
    run.add_argument("--name", required=True, help="name of the run; it is kept in data/runs/NAME")
    run.add_argument(
        "--from",
        dest="first",
        metavar="NOTEBOOK",
        default="",
        help="do this one and later ones again: 03, or alignment",
    )
    run.add_argument("--to", dest="last", metavar="NOTEBOOK", default="", help="stop after it")
    _add_watch(commands)
    commands.add_parser("runs", help="list runs, one row each", description="List runs, one row each.")
    plan = commands.add_parser(
        "plan",
        **plain,
        help="say what a recipe will cost",
        description="Say what a recipe will cost, without running it.",
    )
    _takes_recipe(plan)
    plan.add_argument(
        "--detect", type=share, default=0.0, metavar="D", help="difference wanted, as a share (default: the margin)"
    )
    plan.add_argument(
        "--run", default="", metavar="RUN", help="take the spread over seeds and items from this run; show what it took"
    )
    plan.add_argument("--measure", action="store_true", help="first try out the models that are here, a batch each")
    _add_summary(commands)
    _add_study(commands)
    trace = commands.add_parser(
        "trace",
        help="follow a row back to its drafts and probes, or a draft on to its rows",
        description="Follow a row back to its drafts and probes, or a draft on to its rows.",
    )
    trace.add_argument("name", metavar="RUN", help="name of the run")
    trace.add_argument(
        "row", metavar="ROW", help="id (or four and more of its first characters) of a row, example, pair, or draft"
    )
    _add_export(commands)
    commands.add_parser("doctor", help="say what this machine has", description="Say what this machine has.")
    return top


def _add_summary(commands) -> None:
    summary = commands.add_parser(
        "summary",
        allow_abbrev=False,
        help="print what a finished run found, a row a student",
        description="Print what a finished run found, as Markdown tables: a row a student, then ablations and cohort.",
    )
    summary.add_argument("name", metavar="RUN", help="name of the run")
    summary.add_argument("--to", metavar="FOLDER", help="also write table, verdict and figures (PNG) into this folder")


def _add_study(commands) -> None:
    study = commands.add_parser(
        "study",
        allow_abbrev=False,
        help="ask how far a run can be trusted: a notebook of notebooks/studies, without anybody watching",
        description="Run a study on a run; its page and its numbers go into the run's folder. Without RUN: what the "
        "study takes. Without NAME: which studies there are.",
        epilog="exit status: 0 done, 1 something failed, 2 refused before anything ran",
    )
    study.add_argument("name", nargs="?", metavar="NAME", help="name of the study")
    study.add_argument("run", nargs="?", metavar="RUN", help="name of the run")
    _takes_parameters(study, "a parameter of the study, for example: -p seeds 3")


def _add_watch(commands) -> None:
    watch = commands.add_parser(
        "watch",
        allow_abbrev=False,
        help="say what a run is doing, until it is finished",
        description="Say what a run is doing: step, items, rate, time left, last texts, curve. It reads files only, "
        "so it works from another terminal and when the run has died; Ctrl-C leaves the run alone.",
        epilog="exit status: 0 the run is well, 1 it was stopped or its process is gone",
    )
    watch.add_argument("name", metavar="RUN", help="name of the run")
    watch.add_argument("--once", action="store_true", help="say it once; so it is where the output is no terminal")


def _add_export(commands) -> None:
    export = commands.add_parser(
        "export",
        allow_abbrev=False,
        help="write the tailored set and the aligned teacher, with cards",
        description=EXPORT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit status: 0 written, 1 the run is not finished or something failed",
    )
    export.add_argument("name", metavar="RUN", help="name of the run")
    export.add_argument(
        "--to", metavar="FOLDER", help="where to; data/runs/RUN/export unless given. An earlier export is replaced"
    )
    export.add_argument("--students", action="store_true", help="the trained students too")


def _takes_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", metavar="RECIPE", help="name in notebooks/recipes, or path of a .yaml file")
    command.add_argument("--method", metavar="FILE.py", default="", help="a method of your own, set there as METHOD")
    _takes_parameters(command, "change one value of the recipe, for example: -p alignment.beta 0.05")


def _takes_parameters(command: argparse.ArgumentParser, what: str) -> None:
    keys = {"nargs": 2, "action": "append", "default": [], "metavar": ("KEY", "VALUE")}
    command.add_argument("-p", "--parameter", **keys, help=f"{what} (repeatable)")


def share(text: str) -> float:
    """Return a number between 0 and 1."""
    if not 0 < (value := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1 (0.05 is five points), got {text}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 done, 1 failed, 2 refused before anything ran."""
    given = parser().parse_args(arguments)
    commands = {
        "run": _run,
        "watch": _watch,
        "runs": _runs,
        "summary": _summary,
        "plan": _plan,
        "study": _study,
        "trace": _trace,
        "export": _export,
        "doctor": _doctor,
    }
    # pydantic, pandas and the rest are imported by the command that needs them: --help is instant.
    from workbench.runs.recipe import RecipeError

    try:
        if method := getattr(given, "method", ""):
            from workbench import methods

            methods.bring(method)
            os.environ[methods.FROM_FILE] = os.path.abspath(method)  # for the processes that do the work
    except ValueError as error:
        return _say(error, REFUSED)
    try:
        return commands[given.command](given)
    except RecipeError as error:
        return _say(error, REFUSED)
    except KeyboardInterrupt:
        return _say("Stopped. Finished items are kept: the same command goes on where it was.", 130)
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("WORKBENCH_DEBUG"):
            raise
        return _say(error, FAILED)


def _say(error: Exception | str, status: int) -> int:
    print(f"workbench: {error}", file=sys.stderr)
    return status


def _run(given: argparse.Namespace) -> int:
    from workbench.runs.cache import StoreError

    began = time.monotonic()
    from workbench import methods
    from workbench.notebook import headless
    from workbench.report.card import rungs

    try:
        work = headless.prepare(given.recipe, given.name, dict(given.parameter))
        notebooks = headless.wanted(work, given.first, given.last)
    except (StoreError, ValueError) as error:
        return _say(error, REFUSED)
    print(f"run {work.name} of recipe {work.recipe.name} ({work.recipe.profile} models)", flush=True)
    report = headless.run_notebooks(work, given.first, given.last)
    print(f"{time.monotonic() - began:.0f} s in all\n")
    if notebooks[-1] == methods.ALL[work.recipe.method].notebooks[-1]:
        print(textwrap.fill(headless.verdict_in_words(work), 100), end="\n\n")
        print("\n".join(rungs(work)), end="\n\n")
    print(f"Report: {_shown(report)}")
    return DONE


def _watch(given: argparse.Namespace) -> int:
    from workbench.notebook.watch import watch

    try:
        return DONE if watch(given.name, given.once, sys.stdout) else FAILED
    except KeyboardInterrupt:
        print("Stopped watching; the run was left alone.")
        return DONE


def _shown(path: os.PathLike[str]) -> str:
    """Return a path from the current folder where it lies below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _runs(given: argparse.Namespace) -> int:
    from workbench.runs.cache import runs_folder
    from workbench.runs.run import runs_table
    from workbench.verdict.in_words import points

    table = runs_table()
    if table.empty:
        print(f"There are no runs in {runs_folder()} yet; begin one: workbench run RECIPE --name NAME")
    else:
        formats = {"difference": points, "low": points, "high": points, "seconds": "{:.0f}".format}
        print(table.to_string(index=False, na_rep="", formatters=formats))
        print("\ndifference, low, high: of the primary comparison, in points of accuracy")
    return DONE


def _summary(given: argparse.Namespace) -> int:
    from pathlib import Path

    from workbench.report.summary import in_words, keep
    from workbench.runs.run import open_run

    run = open_run(given.name)
    print(in_words(run))
    for path in keep(run, Path(given.to)) if given.to else []:
        print(f"written: {_shown(path)}")
    return DONE


def _study(given: argparse.Namespace) -> int:
    from workbench.cli import studies

    try:
        if not given.name:
            print(studies.listed())
        elif not given.run:
            print(studies.parameters_in_words(given.name))
        else:
            page = studies.run_study(given.name, given.run, given.parameter)
            print("\n".join(textwrap.fill(said, 100) for said in studies.sentences(page)))
            print(f"\nReport: {_shown(page)}")
    except studies.StudyError as error:
        return _say(error, REFUSED)
    return DONE


def _plan(given: argparse.Namespace) -> int:
    from workbench.report.plan import in_words
    from workbench.runs.recipe_file import load_recipe

    recipe = load_recipe(given.recipe, dict(given.parameter))
    measured = {}
    if given.measure:
        from workbench.report.cost_estimate import measure

        measured = measure(recipe)
    print(in_words(recipe, given.run, given.detect, measured))
    return DONE


def _trace(given: argparse.Namespace) -> int:
    from workbench.report.lineage import lineage
    from workbench.runs.run import open_run

    print(lineage(open_run(given.name), given.row))
    return DONE


def _export(given: argparse.Namespace) -> int:
    from workbench.report.export import export
    from workbench.runs.run import open_run

    for folder in export(open_run(given.name), given.to, given.students):
        print(_shown(folder))
    return DONE


def _doctor(given: argparse.Namespace) -> int:
    from workbench.cli.doctor import in_words

    print(in_words())
    return DONE
