"""What outlives a stage: files that are whole or absent, the record of finished items, and the ledger of looks."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import BaseModel, ValidationError

from workbench.runs import progress
from workbench.runs.errors import RunError, in_our_words, in_words, redact, visible
from workbench.runs.identity import seal, unseal
from workbench.runs.recipe import canonical_json, home
from workbench.runs.schemas import Ledger, text_id

BUSY_S = 60
ITEMS, LOOKS, LOCK = "items.sqlite", "looks.json", "workbench.lock"
LEFT_S = 60  # a folder younger than this may be one that its process has not locked yet
SPENDING = "spending"  # running totals: kept here too, and no finished items
NUMBERS = {"SQLITE_FULL": errno.ENOSPC, "SQLITE_IOERR_WRITE": errno.ENOSPC, "SQLITE_IOERR_SHMSIZE": errno.ENOSPC}
NUMBERS |= {"SQLITE_IOERR_SHMMAP": errno.ENOMEM, "SQLITE_IOERR": errno.EIO}
KEYS_PER_QUERY = 500  # SQLite limits the parameters of one statement
elsewhere: "Cache | None" = None  # what a job on a cluster is given for the file, which only the run's process opens


def runs_folder() -> Path:
    """Return where runs are kept: WORKBENCH_RUNS, or data/runs of the project or of a person's own folder."""
    path = Path(os.environ.get("WORKBENCH_RUNS") or "data/runs")
    return path if path.is_absolute() else home() / path


@in_our_words()
def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old content or the new, never a part.

    Raises:
        RunError: If it cannot be written; what was there before is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, MemoryError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, MemoryError):
            raise
        raise RunError(in_words(OSError(error.errno, error.strerror or str(error), str(path)))) from error


def write_json(path: Path, values: Mapping) -> None:
    """Write a mapping, sealed; raises as atomic_write."""
    atomic_write(path, f"{seal(values)}\n".encode())


@in_our_words()
def read_json(path: Path, shape: type[BaseModel] | None = None) -> dict:
    """Return what write_json wrote, or another JSON file's mapping; {} when there is no such file.

    Args:
        path: The file. One without a checksum, as an earlier workbench wrote it, is taken as it is.
        shape: What it must look like at least.

    Raises:
        RunError: If it is there and cannot be read, is not what was written, or has another shape.
    """
    try:
        values = unseal(Path(path).read_text(encoding="utf-8"))
        if shape:
            shape.model_validate(values)
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise RunError(_damaged(path, f"{where}: {fault['msg']}")) from None
    except (OSError, ValueError) as error:
        raise RunError(_damaged(path, str(error))) from error
    return values


def _damaged(path: Path, reason: str) -> str:
    return f"{path} is damaged ({visible(reason, 200)}); rename it and run again."


@contextlib.contextmanager
def held(path: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold a lock file while the block lasts; the end of a process, however it comes, frees what it held.

    What this process holds already, or one that it was started by, counts as held.

    Args:
        path: The file; it says who holds it.
        what: What it stands for, for the error.

    Raises:
        RunError: If another process holds it, with its number, its machine and since when.
    """
    with _open_lock(path) as file:
        told = False
        while not _lock(file):
            file.seek(0)
            try:
                holder = unseal(file.read(), required=True)
                who = "process {pid} on {host} since {since}".format_map(holder)
                started_by = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
                is_ours = holder["host"] == socket.gethostname() and holder["pid"] in started_by
            except ValueError:  # it was locked a moment ago, and says nothing yet
                who, is_ours = "another process", False
            if is_ours:
                yield
                return
            if not wait:
                raise RunError(f"{what} is in use by {who}; let that finish (workbench run ... --wait), or end it.")
            if not told:
                print(f"waiting for {who}, which uses {what}", flush=True)
            told = True
            time.sleep(0.5)
        file.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(seal(progress.this_process() | {"since": since}))
        file.flush()
        yield
        file.truncate(0)


def _open_lock(path: Path):
    with in_our_words():
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a+", encoding="utf-8")


def _lock(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder that goes when the block ends; those that killed processes left behind go first."""
    with contextlib.suppress(*progress.BORNE):
        for lock in Path(tempfile.gettempdir()).glob(f"workbench-*/{LOCK}"):
            with contextlib.suppress(*progress.BORNE), open(lock, "a+") as file:
                if time.time() - lock.parent.stat().st_mtime > LEFT_S and _lock(file):
                    shutil.rmtree(lock.parent)
    with in_our_words(), tempfile.TemporaryDirectory(prefix="workbench-") as name, held(Path(name) / LOCK, name):
        yield Path(name)


class Database:
    """One SQLite file, safe for several processes; it opens at first use."""

    IF_DAMAGED = ""  # what renaming a damaged file costs

    def __init__(self, path: Path):
        self.path = Path(path)
        self._connection: sqlite3.Connection | None = None

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @in_our_words()
    def _do(self, work: Callable[[sqlite3.Connection], list | None]):
        """Do some work on the open file, with SQLite's errors said in our words."""
        try:
            if self._connection is None:
                self._connection = self._open()
            return work(self._connection)
        except (OSError, sqlite3.Error) as error:
            self.close()
            code = getattr(error, "sqlite_errorname", "")
            if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
                raise RunError(
                    f"{self.path} is damaged ({error}); rename it and run again: {self.IF_DAMAGED}."
                ) from error
            if code.startswith("SQLITE_BUSY"):
                raise RunError(
                    f"{self.path} was in use by another process for {BUSY_S} s; let that finish, then run again."
                ) from error
            known = (number for name, number in NUMBERS.items() if code.startswith(name))
            number = next(known, getattr(error, "errno", 0) or errno.EACCES)
            raise RunError(in_words(OSError(number, str(error), str(self.path)))) from error

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        try:
            self._prepare(connection)
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Make a file that was just opened ready for use: its tables, how it writes."""
        raise NotImplementedError


class Cache(Database):
    """Finished items of all runs; those whose checksum fails count as missing, with a warning."""

    IF_DAMAGED = "no finished stage is lost, only items of unfinished ones are computed again"

    def get_many(self, kind: str, keys: Iterable[str]) -> dict[str, dict]:
        """Return the stored payloads of those keys that have one."""
        keys, found, damaged = list(keys), {}, 0
        for start in range(0, len(keys), KEYS_PER_QUERY):
            some = keys[start : start + KEYS_PER_QUERY]
            query = f"SELECT key, payload, checksum FROM items WHERE kind = ? AND key IN ({','.join('?' * len(some))})"
            for key, payload, checksum in self._do(lambda c, q=query, s=some: c.execute(q, [kind, *s]).fetchall()):
                if _checksum(kind, key, payload) == checksum:
                    found[key] = json.loads(payload)
                else:
                    damaged += 1
        if kind != SPENDING:
            progress.found(len(found))
        if damaged:
            said = f"{damaged} stored {kind} items of {self.path} are damaged; they are computed again."
            warnings.warn(said, stacklevel=2)
        return found

    def put_many(self, kind: str, payloads: Mapping[str, dict]) -> None:
        """Store payloads in one transaction: after a crash either all of them are there or none."""
        texts = {key: canonical_json(redact(payload)) for key, payload in payloads.items()}
        rows = [(kind, key, text, _checksum(kind, key, text)) for key, text in texts.items()]

        def write(connection: sqlite3.Connection) -> None:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", rows)

        self._do(write)
        if kind != SPENDING:
            progress.made(payloads.values())

    def require_whole(self) -> None:
        """Read every item; RunError if the file is damaged or an item is not what was stored."""

        def count(connection: sqlite3.Connection) -> int:
            rows = connection.execute("SELECT kind, key, payload, checksum FROM items")
            return sum(_checksum(*row[:3]) != row[3] for row in rows)

        if self.path.is_file() and (n := self._do(count)):
            raise RunError(f"{n} items of {self.path} are not what was stored; when asked for they are made again.")

    def _prepare(self, connection: sqlite3.Connection) -> None:
        _use_wal(connection)
        connection.execute(
            "CREATE TABLE IF NOT EXISTS items (kind TEXT, key TEXT, payload TEXT, checksum TEXT, "
            "PRIMARY KEY (kind, key)) WITHOUT ROWID"
        )


def _checksum(kind: str, key: str, payload: str) -> str:
    return text_id(f"{kind}\n{key}\n{payload}")


def _use_wal(connection: sqlite3.Connection) -> None:
    # Turning WAL on ignores SQLite's own waiting when another process turns it on at the same moment.
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def shared_cache() -> Cache:
    """Return the record of finished items that all runs share."""
    return elsewhere or Cache(runs_folder() / ITEMS)


@in_our_words()
def record_test_access(test_set_sha: str, name: str, fingerprint: str) -> int:
    """Record that a test set was opened, in one ledger for all runs; return how often it has been.

    The same fingerprint again (a resumed evaluation) is not another look.
    """
    path = runs_folder() / LOOKS
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name("looks.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ledger = read_json(path, Ledger)
        looks = ledger.setdefault(test_set_sha, {"name": name, "looks": []})["looks"]
        if fingerprint not in (seen["fingerprint"] for seen in looks):
            looks.append({"fingerprint": fingerprint, "date": datetime.now(UTC).isoformat(timespec="seconds")})
            write_json(path, ledger)
    return len(looks)
