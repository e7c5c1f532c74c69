"""What this machine has, in plain words, and what to do: nothing is changed, nothing is fetched.

Imports of anything but the standard library stand inside the functions: a missing package is a finding, not a crash.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from workbench.runs.errors import RecipeError

ROOT = Path(__file__).resolve().parents[2]
DISK_GB = 10
MEMORY_GB = 4

Finding = tuple[str, bool, str]


def in_words() -> str:
    """Return what was found, a line each, and in the last line what to look at."""
    found = []
    for look in (_machine, _packages, _engines_and_backends, _models):
        try:
            found += look()
        except ImportError as error:
            found.append((look.__name__.strip("_"), False, f"cannot be looked at ({error}); run: make demo"))
    lines = [f"{'ok  ' if fine else 'LOOK'}  {what:<10} {said}" for what, fine, said in found]
    faults = dict.fromkeys(what for what, fine, _ in found if not fine)
    last = f"To look at: {', '.join(faults)}." if faults else "Everything needed for the demo is here."
    return "\n".join([*lines, "", last])


def _machine() -> Iterator[Finding]:
    fine = sys.version_info[:2] == (3, 11)
    advice = "" if fine else "; the workbench is tested with 3.11, make the environment with that"
    yield "python", fine, f"Python {sys.version.split()[0]} at {sys.executable}{advice}"
    import psutil
    import torch

    from workbench.figures.style import BROWSERS
    from workbench.runs.cache import runs_folder

    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield "cores", n >= 2, f"{n} CPU {'core' if n == 1 else 'cores'}; the demo's times are for 2"
    memory = psutil.virtual_memory()
    total, free = memory.total / 1e9, memory.available / 1e9
    needs = f"pocket models need about {MEMORY_GB} GB"
    yield "memory", total >= MEMORY_GB, f"{total:.0f} GB, {free:.0f} GB free; {needs}"
    folder = next(path for path in (runs_folder(), *runs_folder().parents) if path.exists())
    free = shutil.disk_usage(folder).free / 1e9
    if os.access(folder, os.W_OK):
        advice = "" if free >= DISK_GB else f"; {DISK_GB} GB is comfortable, free some"
        yield "disk", free >= DISK_GB, f"{free:.0f} GB free where runs are kept ({runs_folder()}){advice}"
    else:
        advice = "make it writable or set WORKBENCH_RUNS to a folder that is"
        yield "disk", False, f"{folder} cannot be written to; {advice}"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    none = "none that torch can use; pocket models do not need one"
    yield "gpu", True, f"{', '.join(names)}; device: auto uses the first" if names else none
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    yield "browser", True, f"{browser or 'no Chromium or Chrome'}: only pictures (PNG) and the browser tests need one"


def _packages() -> Iterator[Finding]:
    """Compare what is installed with the pins of pyproject.toml; what agrees is said in one line."""
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    others = []
    for name, _, wanted in (pin.partition("==") for pin in pins):
        try:
            # A local label such as +cpu says how it was built, not which version it is.
            version = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            others.append(f"{name} is missing, {wanted} is wanted; make demo installs it")
            continue
        if version != wanted:
            others.append(f"{name} is {version}, tested is {wanted}; make demo installs that")
    yield "packages", True, f"{len(pins) - len(others)} of {len(pins)} are the tested versions"
    yield from (("packages", False, said) for said in others)


def _engines_and_backends() -> Iterator[Finding]:
    from workbench.models.backends import backends_in_words
    from workbench.models.start import MODULES, state_of

    yield from (("engines", *state_of(engine)) for engine in MODULES)
    yield from (("training", True, f"{name}: {said}") for name, said in backends_in_words().items())
    said = "not installed; to install: make lm-eval"
    if importlib.util.find_spec("lm_eval"):
        said = f"{importlib.metadata.version('lm_eval')} is installed"
    yield "benchmarks", True, f"lm-evaluation-harness: {said}"


def _models() -> Iterator[Finding]:
    from workbench.methods import POCKET_RECIPE
    from workbench.runs.recipe import project_root
    from workbench.runs.recipe_file import load_recipe
    from workbench.tasks.task import task_file

    try:
        recipe = load_recipe(POCKET_RECIPE)
    except RecipeError as error:
        yield "models", False, str(error).replace("\n", " ")
        return
    refs = [recipe.models.teacher, *recipe.models.students.values(), *recipe.preference_set.responders]
    wanted = {project_root() / ref / "config.json" for ref in refs}
    wanted |= set(filter(None, (task_file(recipe, task) for task in recipe.tasks.names)))
    missing = [str(path.relative_to(project_root())) for path in sorted(wanted) if not path.is_file()]
    said = f"missing: {', '.join(missing[:3])} (of {len(wanted)}); get them with the clone, or build them: make pocket"
    yield "models", not missing, said if missing else f"the pocket models and tasks of {POCKET_RECIPE} are here"
