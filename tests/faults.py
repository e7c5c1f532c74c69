"""Faults put in at every place that reads or writes what a run keeps, and damage to every file of it.

One wrapper around what opens, moves, makes and deletes files looks who calls: so a fault can be put into any function
of the library, and none that touches files is left out. `python tests/faults.py 150` puts in so many, drawn from all,
does every damage to every file, and writes down what happened.
"""

import ast
import builtins
import errno
import io
import os
import random
import re
import shutil
import sqlite3
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import PROJECT, RECIPE
from reliability_table import record, table

from workbench.cli import check
from workbench.loop.reviews import Reviews
from workbench.runs import cache, cluster, progress, workers
from workbench.runs import run as run_module
from workbench.runs.cache import Cache, record_test_access, temporary_folder, write_json
from workbench.runs.errors import NO_MEMORY, DataError, ModelError, RecipeError, RunError, in_our_words
from workbench.runs.identity import content_of, file_sha256
from workbench.runs.recipe import Recipe, parse_yaml
from workbench.runs.recipe_file import load_recipe
from workbench.runs.run import Step, open_run, restore, runs_table, take_over

OURS = (RunError, RecipeError, ModelError, DataError)
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENOMEM)
PRIMITIVES = [(builtins, "open"), (io, "open"), (sqlite3, "connect"), (pd, "read_parquet")]
PRIMITIVES += [(os, name) for name in "open fsync replace rename unlink rmdir mkdir utime scandir listdir".split()]
# What touches a file, as it is called in the library.
CALLS = set(
    "open connect read_parquet fsync replace rename unlink mkdir touch glob rglob iterdir listdir rmtree".split()
)
CALLS |= set("copytree copy2 read_text read_bytes write_text write_bytes".split())
FILES = [*sorted((PROJECT / "workbench" / "runs").glob("*.py")), PROJECT / "workbench" / "loop" / "reviews.py"]
ASIDE = "-old"  # what somebody renames a damaged file or folder to
VERDICT = {"decision": "undecided", "student": "s", "models": "pocket", "warnings": [], "primary": {}}
PAIR = dict.fromkeys(("pair_id", "student", "kind", "task", "chosen_id", "rejected_id"), "x")


def places() -> set[str]:
    """Return every function of the library's memory that touches files, as module:function, by the syntax trees."""
    found = set()
    for path in FILES:
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef) and any(map(_touches, ast.walk(function))):
                found.add(f"{path.stem}:{function.name}")
    return found


def _touches(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
    # A text's replace is none of a file's.
    is_text = name == "replace" and not (isinstance(called.value, ast.Name) and called.value.id == "os")
    return name in CALLS and not is_text


class Fault:
    """An error at the n-th time that a place touches a file; without a place, all that happens is noted.

    Attributes:
        met: How often each place touched a file, by module:function.
        happened: Whether the error was raised.
    """

    def __init__(self, place: str = "", n: int = 1, code: int = 0):
        self.place, self.n, self.code = place, n, code
        self.met: dict[str, int] = {}
        self.happened = False

    @contextmanager
    def put_in(self) -> Iterator["Fault"]:
        with pytest.MonkeyPatch.context() as patched:
            for owner, name in PRIMITIVES:
                patched.setattr(owner, name, self._faulty(getattr(owner, name)))
            yield self

    def _faulty(self, primitive: Callable) -> Callable:
        def faulty(*args, **kwargs):
            place = _caller()
            self.met[place] = self.met.get(place, 0) + 1
            if place and place == self.place and self.met[place] == self.n:
                self.happened = True
                if self.code == errno.ENOMEM:
                    raise MemoryError
                if primitive is CONNECT:
                    error = sqlite3.OperationalError("disk I/O error")
                    error.sqlite_errorname = "SQLITE_IOERR_READ"
                    raise error
                raise OSError(self.code, os.strerror(self.code), str(args[0]) if args else "")
            return primitive(*args, **kwargs)

        return faulty


CONNECT = sqlite3.connect
BY_FILE = {str(path): path.stem for path in FILES}


def _caller() -> str:
    """Return the innermost function of the library's memory that is being run, as module:function."""
    frame = sys._getframe(2)
    while frame is not None:
        if (stem := BY_FILE.get(frame.f_code.co_filename)) and not frame.f_code.co_name.startswith("<"):
            return f"{stem}:{frame.f_code.co_name}"
        frame = frame.f_back
    return ""


def numbers(n: int) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"r{i}" for i in range(n)], "value": [float(i) for i in range(n)]})


def doubled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(value=frame["value"] * 2)


def leaves_a_model(folder: Path) -> pd.DataFrame:
    (folder / "m").mkdir(exist_ok=True)
    (folder / "m" / "model.safetensors").write_bytes(bytes(1000))
    return numbers(2)


def live() -> dict:
    """Use all that remembers, as a run does; return what came of it, the same however often it is done."""
    recipe = Recipe.model_validate(parse_yaml(RECIPE))
    run, other = open_run("demo", recipe), open_run("other", recipe)
    frames = {"numbers": run.step("numbers", numbers, 3), "teachers": run.step("teachers", leaves_a_model)}
    frames["doubled"] = run.step("doubled", doubled, frames["numbers"])
    run.again("numbers")
    run.step("numbers", numbers, 3)
    restore(run)
    (run.path / "doubled").rename(run.path / f"doubled{run_module.NEXT}")  # as a kill leaves it
    frames["settled"] = run.step("doubled", doubled, frames["numbers"])
    frames |= {f"read {name}": run.read(name) for name in ("numbers", "teachers", "doubled")}
    take_over(other, run, ["numbers"])
    frames["taken over"] = other.step("numbers", numbers, 3)
    found = {name: content_of(frame) for name, frame in frames.items()}
    if fault := check._fault(lambda: check._read_step(Step(run, "teachers"))):
        raise RunError(fault)
    found["model"] = (run.path / "teachers" / "m" / "model.safetensors").read_bytes()
    items = Cache(run.path.parent / "items.sqlite")
    try:
        if not items.get_many("probe", ["a"]):
            items.put_many("probe", {"a": {"n": 1}})
        found["items"] = items.get_many("probe", ["a"])
    finally:
        items.close()
    Reviews.of_run(run).add(PAIR, "review", "keep", event_id="e")
    found["reviews"] = [(event.event_id, event.value) for event in Reviews.of_run(run).events()]
    found["looks"] = record_test_access("sha", "bbh", "a")
    if not run.verdict:
        write_json(run.path / "verdict.json", VERDICT | {"comparisons": []})
    found |= {"verdict": run.verdict, "steps": [name for name in sorted(run.steps()) if not name.endswith(ASIDE)]}
    found["recipe"] = load_recipe(str(run.path / "recipe.yaml"))
    with temporary_folder() as folder:
        found["temporary"] = folder.is_dir()
    found["table"] = runs_table()[["name", "recipe", "decision"]].to_dict("records")
    progress.begin(run.path / "watched")
    found["alive"] = all(sign["main"] for sign in progress.read(run.path / "watched"))
    progress.end()
    cluster.code_fingerprint.cache_clear()
    with in_our_words(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(cluster, "machine", lambda: "here")
        facts = cluster.report()[1]
        found["code"] = workers._code_age(), facts["code"]
    found["apart"] = _carried(run.path.parent / "apart")
    for asked in (lambda: run.read("drafts"), lambda: open_run("none"), lambda: load_recipe("none")):
        found[f"error {len(found)}"] = _said(asked)
    margin = recipe.evaluation.model_copy(update={"margin": 0.1})
    found["refused"] = _said(lambda: open_run("demo", recipe.model_copy(update={"evaluation": margin})))
    return found


class NoNetwork:
    """Objects of a cluster without one."""

    exceptions = SimpleNamespace(ObjectLostError=KeyError)

    def put(self, value: bytes) -> bytes:
        return value

    get = put

    def wait(self, refs: list) -> tuple[list, list]:
        return refs, []


def _carried(apart: Path) -> bool:
    """Have a file sent to a machine that sees no folder of the run, and sent home from there."""
    driver, sums = object.__new__(cluster._Driver), {"LICENSE": file_sha256(PROJECT / "LICENSE")}
    driver.ray, driver.sent = NoNetwork(), {}
    with in_our_words(), pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "ray", driver.ray)
        patched.setattr(cache, "elsewhere", SimpleNamespace(ask=partial(driver.answer, [])))
        patched.setenv("XDG_CACHE_HOME", str(apart))
        patched.setattr(cluster, "find", lambda name: PROJECT)
        told = iter((sums, {}))  # the driver's answer, and then what the machine itself finds there
        patched.setattr(cluster, "sums_of", lambda folder: next(told))
        patched.setattr(cluster, "_known", {})
        driver.answer([], "sign", str(apart), "host-1.json", "{}")
        cluster.send_home(cluster.folder_here("model"), apart / "home", sums)
        cluster._sees(apart / "home" / "LICENSE", "")  # a machine on which that fails is one apart
        return (apart / "home" / "LICENSE").read_bytes() == (PROJECT / "LICENSE").read_bytes()


def _said(work: Callable) -> str:
    try:
        work()
    except OURS as error:
        if isinstance(error.__cause__, OSError | MemoryError):
            raise  # the fault, not what was asked for
        return str(error).replace(os.environ["WORKBENCH_RUNS"], "")
    raise AssertionError("it must be refused")


@contextmanager
def in_a_folder(folder: Path) -> Iterator[None]:
    """Have runs kept in a folder, and what takes long and remembers nothing left out."""
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(io.StringIO()):
        patched.setenv("WORKBENCH_RUNS", str(folder))
        patched.setattr(run_module, "VERSIONED", ())
        patched.setattr(run_module, "_git_commit", lambda: "")
        # What other processes have there would be counted, and be gone the next time.
        patched.setattr(tempfile, "tempdir", str(folder.parent))
        cluster.code_fingerprint.cache_clear()
        cluster.code_fingerprint()  # hashes of the library's files are known, also where others took their place
        yield
        progress.end()


def fall(folder: Path, place: str, n: int, code: int, wanted: dict) -> str:
    """Put a fault in, and afterwards begin again; return what happened: "said", "borne" or "" where it was not met.

    Raises:
        AssertionError: If the error is not one sentence of ours, or what came out is another.
    """
    with in_a_folder(folder):
        fault, what = Fault(place, n, code), "borne"
        with fault.put_in():
            try:
                require(live(), wanted)
            except OURS as error:
                what = "said"
                assert "\n" not in str(error) and len(str(error)) < 700, error
                assert any(text in str(error) for text in (os.strerror(code), "disk I/O error", NO_MEMORY)), error
        if what == "said":
            progress.end()
            require(live(), wanted)
    return what if fault.happened else ""


def require(found: dict, wanted: dict) -> None:
    """Refuse what came out otherwise; that a run cannot be read just now is said in its row of the table."""
    other = {name: (found.get(name), wanted[name]) for name in wanted if found.get(name) != wanted[name]}
    assert not other or (set(other) == {"table"} and "unreadable" in str(other)), other


def whole(folder: Path) -> dict:
    """Return what comes of a run that nothing happens to, kept in a folder."""
    with in_a_folder(folder):
        return live()


def files_of(folder: Path) -> list[str]:
    """Return every file that a run keeps and reads back; a lock holds nothing."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "lock" not in path.name]
    return [path.relative_to(folder).as_posix() for path in files if run_module.SUPERSEDED not in str(path)]


def spoilt(path: Path) -> bytes:
    """Return what is no damage to a reader but holds something else: another frame, other JSON, another database."""
    if path.suffix == ".parquet":
        return numbers(5).to_parquet(index=False)
    if path.suffix == ".sqlite":
        with tempfile.TemporaryDirectory() as name, closing(sqlite3.connect(Path(name) / "other")) as other:
            other.execute("CREATE TABLE items (a)")
            other.commit()
            return (Path(name) / "other").read_bytes()
    return b'{"x": 1}'


DAMAGE: dict[str, Callable[[bytes, Path], bytes | None]] = {
    "truncated": lambda data, path: data[: len(data) // 2],
    "flipped": lambda data, path: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]
    ),
    "zeroed": lambda data, path: bytes(len(data)),
    "empty": lambda data, path: b"",
    "missing": lambda data, path: None,
    "of another shape": lambda data, path: spoilt(path),
}


def damage(source: Path, folder: Path, name: str, how: str, wanted: dict) -> str:
    """Damage one file of a copy of the runs and go on; do what the error says, if there is one, and go on then.

    Raises:
        AssertionError: If what came out is another, or the error is not one sentence of ours that names the file.
    """
    shutil.copytree(source, folder)
    path = folder / name
    data = DAMAGE[how](path.read_bytes(), path)
    path.unlink() if data is None else path.write_bytes(data)
    with in_a_folder(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # damaged items are computed again, and it is said so
        try:
            require(live(), wanted)
            return "made again or not needed"
        except OURS as error:
            said = str(error)
            assert "\n" not in said or isinstance(error, RecipeError), said
            assert path.name in said or str(path.parent) in said or "begun with another recipe" in said, said
        put_aside(path, said)
        progress.end()
        require(live(), wanted)
    return "said"


def put_aside(path: Path, said: str) -> None:
    """Do what an error says is to be done about a damaged file."""
    if found := re.search(r"delete (\S+) and", said):
        Path(found[1]).unlink()
    elif found := re.search(r"rename the folder (\S+) and", said):
        Path(found[1]).rename(f"{found[1]}{ASIDE}")
    elif "begun with another recipe" in said:
        path.parent.rename(f"{path.parent}{ASIDE}")
    else:
        # What belongs to a database goes with it.
        for one in [path, *path.parent.glob(f"{path.name}-*")]:
            one.rename(f"{one}{ASIDE}")


def try_all(folder: Path, n_faults: int, say=print) -> dict[str, int]:
    """Put in so many faults, drawn from all, and do every damage to every file; return how often what happened."""
    counts: dict[str, int] = {}
    wanted = whole(folder / "whole")
    with in_a_folder(folder / "noted"), Fault().put_in() as noted:
        live()
    each = [(place, n, code) for place in sorted(places()) for n in range(1, noted.met[place] + 1) for code in ERRORS]
    tries = [("fault", *one) for one in random.Random(0).sample(each, min(n_faults, len(each)))]
    tries += [("damage", file, how) for file in files_of(folder / "whole") for how in DAMAGE]
    for kind, *given in tries:
        try:
            if kind == "fault":
                made = fall(folder / "now", *given, wanted) or "not met"
            else:
                made = damage(folder / "whole", folder / "now", *given, wanted)
        except Exception as error:
            made = "believed, or without a clear error"
            say(kind, *given, f"{type(error).__name__}: {error}"[:600])
        progress.end()
        shutil.rmtree(folder / "now", ignore_errors=True)
        counts[f"{kind}, {made}"] = counts.get(f"{kind}, {made}", 0) + 1
    return counts


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        record("faults", try_all(Path(name), int(sys.argv[1])))
        print(table())
