"""A sweep: the runs of one recipe in several settings, one after another, and then the best of them on test items."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from workbench.notebook.headless import run_notebooks, run_study
from workbench.notebook.session import begin
from workbench.runs.errors import RecipeError
from workbench.runs.recipe import parse_yaml
from workbench.runs.run import Run, hold
from workbench.studies import sweeps

MOST = 100


def settings_of(given: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Return every combination of the values given; commas part values, but those inside brackets or braces.

    Raises:
        RecipeError: If no key has several values, one is given twice, or there are more combinations than anybody runs.

    Example:
        >>> settings_of([("alignment.beta", "0.05, 0.1"), ("seeds", "[1, 2]")])
        [{'alignment.beta': '0.05', 'seeds': '[1, 2]'}, {'alignment.beta': '0.1', 'seeds': '[1, 2]'}]
    """
    values = {key: [text] if isinstance(parse_yaml(text), list | dict) else text.split(",") for key, text in given}
    values = {key: [text.strip() for text in texts] for key, texts in values.items()}
    if len(values) < len(given):
        raise RecipeError("A key stands twice among the settings of this sweep; give all its values at once.")
    for key, texts in values.items():
        if "" in texts or len(set(texts)) < len(texts):
            raise RecipeError(f"{key} must be given different values, with commas between, got {', '.join(texts)!r}.")
    settings = [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]
    if not 2 <= len(settings) <= MOST:
        raise RecipeError(
            f"A sweep has 2 to {MOST} settings, got {len(settings)}; give values with commas between, for example: "
            "-p alignment.beta 0.05,0.1,0.2"
        )
    return settings


def sweep(name: str, recipe: str, settings: Sequence[Mapping[str, str]], choose_on: str) -> Path:
    """Run every setting, then the best on test items unless all were; return the page with table and figure.

    Finished runs are kept, so that a sweep that was stopped goes on. What settings share is computed once.
    """
    on = {"evaluation.items": choose_on}
    works = [begin(f"{name}-{n}", recipe, {**setting, **on}) for n, setting in enumerate(settings, 1)]
    for work, setting in zip(works, settings, strict=True):
        _run(work, ", ".join(f"{key} {value}" for key, value in setting.items()))
    if choose_on != "test":
        at = [work.name for work in works].index(sweeps.best(sweeps.results(name)))
        chosen = begin(f"{name}-{sweeps.CHOSEN}", recipe, settings[at])
        _run(chosen, f"the best on {choose_on} items, {works[at].name}")
    return run_study(works[0], "sweep", {"sweep": name})


def _run(work: Run, what: str) -> None:
    print(f"\nrun {work.name}: {what}", flush=True)
    with hold(work.name):
        run_notebooks(work)
