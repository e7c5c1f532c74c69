"""The commands that ask how far a run can be trusted: what they are asked with, and what they print."""

import argparse
from collections.abc import Callable

FIRST = "arte-demo"


def count(text: str) -> int:
    """Return a whole number of 1 or more."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return value


def several(text: str) -> int:
    """Return a whole number of 2 or more: an interval needs that many seeds."""
    if (value := count(text)) < 2:
        raise argparse.ArgumentTypeError(f"must be 2 or more for an interval, got {text}")
    return value


def takes_parameters(command: argparse.ArgumentParser) -> None:
    """Let a command change values of the recipe."""
    command.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="change one value of the recipe, for example: -p alignment.beta 0.05 (repeatable)",
    )


def add_commands(commands) -> None:
    """Add calibrate, halves, validity, signals, goodhart and curves to the commands of a parser."""
    plain = {"allow_abbrev": False}
    calibrating = commands.add_parser(
        "calibrate",
        **plain,
        help="simulate how often a recipe's verdict errs",
        description="Simulate whole runs of a recipe and say how often each decision is reached at known differences.",
    )
    calibrating.add_argument(
        "name", nargs="?", default="", metavar="RUN", help="finished run that gives the spread and the recipe"
    )
    calibrating.add_argument("--recipe", default="", help=f"decide as this recipe says (default: RUN's, or {FIRST})")
    calibrating.add_argument("--repeats", type=count, default=2000, metavar="N", help="runs a row (default 2000)")
    takes_parameters(calibrating)
    halving = commands.add_parser(
        "halves",
        **plain,
        help="say how often new preference questions confirm a run's pairs",
        description="Form pairs from one half of a run's preference set and see whether the other half agrees.",
    )
    halving.add_argument("name", metavar="RUN", help="name of the run")
    halving.add_argument("--splits", type=count, default=50, metavar="N", help="random halves (default 50)")
    halving.add_argument(
        "--ask",
        type=count,
        metavar="N",
        help="ask the drafts of N questions a task all validation questions, and compare choosing the preference "
        "questions by item response with choosing them at random",
    )
    _add_trainers(commands, plain)


def _add_trainers(commands, plain: dict) -> None:
    """Add the commands that train students to find out."""
    _add_groups(
        commands.add_parser(
            "validity",
            **plain,
            help="test the probe: train on groups of drafts by preference score",
            description="Train every student on the best, second best, ... rationale of each draft question and print "
            "how well the preference score of a group predicts its gain.",
        ),
        "name of a run with finished probing",
    )
    _add_groups(
        commands.add_parser(
            "signals",
            **plain,
            help="compare one-shot accuracy with local data influence on the drafts of a run",
            description="Measure the local data influence of a run's drafts, train every student on the best, second "
            "best, ... rationale of each question by either signal, and print which of them predicts the gain.",
        ),
        "name of a run of method arte with finished probing",
    )
    following = commands.add_parser(
        "goodhart",
        **plain,
        help="align again and again: does the gain follow the probe score?",
        description="Let every round's aligned teacher draft, be probed and be aligned anew; print probe score and "
        "held-out gain by round, with a warning where the score rises and the gain falls.",
    )
    following.add_argument("name", metavar="RUN", help="name of a run with finished alignment")
    following.add_argument("--rounds", type=count, default=3, metavar="N", help="the last round (default 3)")
    following.add_argument(
        "--seeds", type=several, default=0, metavar="N", help="seeds a round (default: all of the run)"
    )
    following.add_argument(
        "--probed",
        type=count,
        default=8,
        metavar="N",
        help="examples a task, seed and round that are probed (default 8)",
    )
    _takes_students(following)
    learning = commands.add_parser(
        "curves",
        **plain,
        help="learning curves: how many untailored examples is a tailored one worth?",
        description="Train students on more and more of the untailored and the tailored examples of a run; print the "
        "accuracy by size, and how many untailored examples one tailored example is worth.",
    )
    learning.add_argument("name", metavar="RUN", help="name of a run with finished alignment")
    _takes_students(learning)
    learning.add_argument(
        "--sizes",
        type=count,
        nargs="+",
        default=[],
        metavar="N",
        help="examples a task (default: doubling up to all there are)",
    )


def _takes_students(command: argparse.ArgumentParser) -> None:
    command.add_argument("--student", action="append", metavar="NAME", help="only this one (repeatable; default: all)")


def _add_groups(command: argparse.ArgumentParser, which: str) -> None:
    """Add what a command that trains on groups of drafts takes: which run, and how many seeds."""
    command.add_argument("name", metavar="RUN", help=which)
    command.add_argument(
        "--seeds", type=several, default=5, metavar="N", help="training seeds for each group (default 5)"
    )


def probed(name: str):
    """Return a run whose student was asked by one-shot probes.

    Raises:
        StoreError: If it was asked otherwise.
    """
    from workbench.runs.cache import StoreError
    from workbench.runs.run import open_run

    run = open_run(name)
    if run.recipe.method != "arte":
        raise StoreError(
            f"Run {name} is of method {run.recipe.method} and has no one-shot probes, which this command looks at; "
            "name a run of method arte."
        )
    return run


def validity(given: argparse.Namespace) -> str:
    """Return what training on groups of drafts says of the probe."""
    from workbench.runs.run import open_run
    from workbench.verdict.validity import in_words, validate

    return in_words(validate(open_run(given.name), list(range(1, given.seeds + 1))))


def signals(given: argparse.Namespace) -> str:
    """Return how one-shot accuracy and influence agree on a run's drafts, and what each predicts."""
    from workbench.runs.run import open_run
    from workbench.verdict import signal_agreement

    run = open_run(given.name)
    table = signal_agreement.both(run)
    signal_agreement.gains(run, table, list(range(1, given.seeds + 1)))
    return signal_agreement.in_words(run, table)


def goodhart(given: argparse.Namespace) -> str:
    """Return probe score and held-out gain by round of alignment."""
    from workbench.verdict.goodhart import follow, in_words

    run = probed(given.name)
    return in_words(follow(run, given.rounds, given.seeds or len(run.recipe.seeds), given.probed, given.student))


def curves(given: argparse.Namespace) -> str:
    """Return learning curves, and what a tailored example is worth in untailored ones."""
    from workbench.runs.run import open_run
    from workbench.verdict.learning_curves import in_words, measure

    run = open_run(given.name)
    students = given.student or list(run.recipe.models.students)
    return "\n\n".join(in_words(measure(run, student, given.sizes)) for student in students)


def calibrate(given: argparse.Namespace) -> str:
    """Return how often each decision is reached in simulated runs."""
    from workbench.report.plan import world_of
    from workbench.runs.recipe_file import load_recipe
    from workbench.runs.run import open_run
    from workbench.verdict.power import calibrate, design_of, in_words

    of_run = str(open_run(given.name).path / "recipe.yaml") if given.name else FIRST
    design = design_of(load_recipe(given.recipe or of_run, dict(given.parameter)))
    world = world_of(given.name, design)
    return in_words(calibrate(world, design, given.repeats), world, design)


def halves(given: argparse.Namespace) -> str:
    """Return how often other preference questions confirm the pairs of a run."""
    from workbench.verdict import pair_reliability

    run = probed(given.name)
    if given.ask:
        return pair_reliability.selection_in_words(run, given.ask, given.splits)
    probing = run.stage("probing")
    frames = (probing.read("probes"), run.read("drafts"), probing.read("preference_set"))
    return pair_reliability.in_words(*frames, given.splits, run.recipe.pairs.quantile)


COMMANDS: dict[str, Callable[[argparse.Namespace], str]] = {
    "calibrate": calibrate,
    "halves": halves,
    "validity": validity,
    "signals": signals,
    "goodhart": goodhart,
    "curves": curves,
}
