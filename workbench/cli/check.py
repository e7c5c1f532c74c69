"""The command `check`: all that a run keeps, read and held against what was written."""

from collections.abc import Callable

from workbench.loop.reviews import Reviews
from workbench.models.loading import DONE
from workbench.notebook.watch import expected_steps
from workbench.runs import schemas
from workbench.runs.cache import LOOKS, read_json, runs_folder, shared_cache
from workbench.runs.errors import DataError, RunError, in_our_words
from workbench.runs.identity import unlike
from workbench.runs.run import MANIFEST, Run, Step, is_aside


def check(run: Run) -> tuple[bool, str]:
    """Return whether nothing is damaged, and what was looked at, what is damaged and what would be made again."""
    found = [path.parent.relative_to(run.path) for path in sorted(run.path.rglob(MANIFEST))]
    names = [path.as_posix() for path in found if not is_aside(path)]
    faults = {name: fault for name in names if (fault := _fault(lambda name=name: _read_step(Step(run, name))))}
    for what, read in {
        "the verdict": lambda: run.verdict,
        "the reviews": Reviews.of_run(run).events,
        "the ledger of looks": lambda: read_json(runs_folder() / LOOKS, schemas.Ledger),
        "finished items, which all runs share": shared_cache().require_whole,
    }.items():
        faults |= {what: fault} if (fault := _fault(read)) else {}
    whole = [name for name in names if name not in faults]
    older = [name for name in whole if "others" not in run.manifest(name) and any((run.path / name).rglob(DONE))]
    again = [name for name in dict.fromkeys([*expected_steps(run), *names]) if name not in whole]
    lines = [f"{what}: {fault}" for what, fault in faults.items()]
    lines += [f"whole: {', '.join(whole) or 'no step'}"]
    lines += [f"without checksums of models, from an earlier workbench: {', '.join(older)}"] if older else []
    lines += [f"made anew by the next run: {', '.join(again)}"] if again else []
    return not faults, "\n".join(lines)


def _read_step(step: Step) -> None:
    manifest = step.require()
    for name in manifest["files"]:
        frame = step.frame(name)
        if name in schemas.SCHEMAS:
            schemas.check(frame, name)
    for name, sha256 in manifest.get("others", {}).items():
        if fault := unlike(path := step.path / name, sha256):
            raise RunError(
                f"{path} is {fault}; delete {step.path / MANIFEST} "
                "and run the same command again, which makes anew what is damaged there."
            )


def _fault(read: Callable) -> str:
    try:
        with in_our_words():
            read()
    except (RunError, DataError) as error:
        return str(error)
    return ""
