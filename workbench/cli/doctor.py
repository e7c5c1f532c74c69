"""What this machine has, in plain words: nothing is changed, nothing is fetched.

Imports of anything but the standard library stand inside the functions: a missing package is a finding, not a crash.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DISK_GB = 10
MEMORY_GB = 4

Finding = tuple[str, bool, str]


def examine() -> list[Finding]:
    """Return (what, whether it is as it should be, the finding in a sentence), one for each thing looked at."""
    findings = [_python(), _cores(), _memory()]
    for look in (_disk, _packages, _engines, _backends, _gpu, _models, _browser):
        try:
            findings += look()
        except ImportError as error:
            findings.append((look.__name__.strip("_"), False, f"cannot be looked at ({error}); run: make demo"))
    return findings


def in_words() -> str:
    """Return the findings as text, one line each, and in the last line what to look at."""
    found = examine()
    lines = [f"{'ok  ' if fine else 'LOOK'}  {what:<10} {said}" for what, fine, said in found]
    faults = [what for what, fine, _ in found if not fine]
    last = f"To look at: {', '.join(dict.fromkeys(faults))}." if faults else "Everything needed for the demo is here."
    return "\n".join([*lines, "", last])


def _python() -> Finding:
    fine = sys.version_info[:2] == (3, 11)
    said = f"Python {sys.version.split()[0]} at {sys.executable}"
    return (
        "python",
        fine,
        said if fine else f"{said}; the workbench is tested with 3.11, make the environment with that",
    )


def _cores() -> Finding:
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return "cores", n >= 2, f"{n} CPU {'core' if n == 1 else 'cores'}; the demo's times are for 2"


def _memory() -> Finding:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (ValueError, OSError):
        return "memory", True, f"not known here; the pocket models need about {MEMORY_GB} GB"
    return "memory", total >= MEMORY_GB, f"{total:.0f} GB, {free:.0f} GB free; pocket models need about {MEMORY_GB} GB"


def _disk() -> list[Finding]:
    from workbench.runs.cache import runs_folder

    folder = runs_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e9
    if not os.access(there, os.W_OK):
        said = f"{there} cannot be written to; make it writable or set WORKBENCH_RUNS to a folder that is"
        return [("disk", False, said)]
    said = f"{free:.0f} GB free where runs are kept ({folder})"
    return [("disk", free >= DISK_GB, said if free >= DISK_GB else f"{said}; {DISK_GB} GB is comfortable, free some")]


def _packages() -> list[Finding]:
    """Compare what is installed with the pins of pyproject.toml; what agrees is said in one line."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found, fine = [], 0
    for pin in declared["dependencies"]:
        name, _, wanted = pin.partition("==")
        try:
            # A local label such as +cpu says how it was built, not which version it is.
            version = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found.append(("packages", False, f"{name} is missing, {wanted} is wanted; make demo installs it"))
            continue
        if version == wanted:
            fine += 1
        else:
            found.append(("packages", False, f"{name} is {version}, tested is {wanted}; make demo installs that"))
    return [("packages", True, f"{fine} of {len(declared['dependencies'])} are the tested versions"), *found]


def _engines() -> list[Finding]:
    """Say of each engine whether it works here, and of one that is not installed how to install it."""
    from workbench.models.start import MODULES, state_of

    return [("engines", *state_of(engine)) for engine in MODULES]


def _backends() -> list[Finding]:
    """Say of each training backend whether it works here, and of one that is not installed how to install it."""
    from workbench.models.backends import backends_in_words

    found = [("training", fine, f"{name}: {said}") for name, (fine, said) in backends_in_words().items()]
    version = importlib.metadata.version("lm_eval") if importlib.util.find_spec("lm_eval") else ""
    said = f"lm-evaluation-harness {version} is installed" if version else "not installed; to install: make lm-eval"
    return [*found, ("benchmarks", True, said)]


def _gpu() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return [("gpu", True, f"{', '.join(names)}; device: auto uses the first")]
    return [("gpu", True, "none that torch can use; pocket models do not need one")]


def _models() -> list[Finding]:
    """Look for the model folders and task files that the shipped pocket recipes name."""
    from workbench.methods import POCKET_RECIPES
    from workbench.runs.recipe import RecipeError, project_root
    from workbench.runs.recipe_file import load_recipe
    from workbench.tasks.task import task_file

    root, missing, there = project_root(), [], 0
    for name in POCKET_RECIPES:
        try:
            recipe = load_recipe(name)
        except RecipeError as error:
            return [("models", False, str(error).replace("\n", " "))]
        refs = [recipe.models.teacher, *recipe.models.students.values(), *recipe.preference_set.responders]
        wanted = {root / ref / "config.json" for ref in refs}
        wanted |= set(filter(None, (task_file(recipe, task) for task in recipe.tasks.names)))
        missing += [path for path in sorted(wanted) if not path.is_file()]
        there += len(wanted)
    if not missing:
        return [("models", True, "the pocket models and tasks of " + " and ".join(POCKET_RECIPES) + " are here")]
    names = ", ".join(str(Path(path).relative_to(root)) for path in list(dict.fromkeys(missing))[:3])
    return [("models", False, f"missing: {names} (of {there}); get them with the clone, or build them: make pocket")]


def _browser() -> list[Finding]:
    from workbench.figures.style import BROWSERS

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        return [("browser", True, "no Chromium or Chrome: only pictures (PNG) and the browser tests need one")]
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
        version = done.stdout.strip() or "version not known"
    except (OSError, subprocess.TimeoutExpired):
        version = "does not start"
    return [("browser", True, f"{version} at {path}, for pictures and the browser tests")]
