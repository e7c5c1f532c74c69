"""Jobs on the machines of a Ray cluster: plain tasks, run again elsewhere where a machine is lost.

Finished items stay the driver's: a job asks it for them, and hands it new ones, through a mailbox on the driver's
machine, so that no job opens the file they lie in, a job that is run again finds what it had finished, and nothing is
written once the driver is gone. A machine that does not see the run's folder is sent the models that it has not, and
sends home what it trained, through Ray's object store. Ray is imported when a recipe names a cluster, and not before.
"""

import asyncio
import hashlib
import importlib.metadata
import os
import platform
import secrets
import shutil
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache as once
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from workbench.runs import cache, progress
from workbench.runs.errors import RunError, in_our_words
from workbench.runs.identity import file_sha256, fingerprint, unlike
from workbench.runs.recipe_parts import Compute

MAX_RETRIES = 3  # of a job whose machine or process was lost; one that fails is not run again
LOOK_EVERY_S = 30.0  # whether there is still a machine for the jobs that wait
REPORT_S = 300.0  # a machine that is busy takes a minute to start a process
SEEN = "seen"  # a file beside the signs of life, which tells a job whether its machine sees the run's folder
AT_ONCE = 10_000  # questions that may wait for the driver, one a job
GUARDED = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # By default a process that Ray's client server starts dies at times as it begins (Ray's issue 63202).
    "GRPC_ENABLE_FORK_SUPPORT": "0",
}
LOCAL = {
    # Made for other systems, but it is what has all parts of Ray listen on loopback alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # By default 15, so that jobs on a busy machine come to a halt.
    "RAY_worker_niceness": "0",
    # By default 1 s, so that every step would wait for new processes to import torch.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}

_compute: Compute | None = None  # of the step that is computed
_ran: list[dict] = []  # where its jobs ran
_driver: "_Driver | None" = None
_inside = False  # this process carries out a job
_apart = False  # on a machine that does not see the run's folder
_known: dict[str, Path] = {}  # where this machine has the folders that the job asked for
find: Callable[[str], Path] | None = None  # returns a model's folder by its name
sums_of: Callable[[Path], dict[str, str]] | None = None  # returns the SHA-256 of each file of it that counts


@contextmanager
def carrying(compute: Compute) -> Iterator[list[dict]]:
    """Have the cluster that a recipe names, if any, carry the jobs of a step; yield the list of where each one ran."""
    global _compute, _ran
    before = _compute, _ran
    _compute, _ran = (compute if compute.cluster != "none" else None), []
    try:
        yield _ran
    finally:
        _compute, _ran = before


def carries() -> bool:
    """Say whether a cluster carries the present jobs."""
    return _compute is not None


def inside() -> bool:
    """Say whether this process carries out a job of a cluster: what that starts, it does itself."""
    return _inside


def apart() -> bool:
    """Say whether this process carries out a job on a machine that does not see the run's folder."""
    return _apart


def places() -> int:
    """Return how many jobs the cluster carries at once; 0 where none carries them.

    Raises:
        RunError: If Ray is not installed, the cluster cannot be reached, or none of its machines can take a job.
    """
    return _connected(_compute).places(_compute) if _compute else 0


def run_jobs(call: Callable[..., Any], fn: Callable[..., Any], jobs: list, describe: str) -> list:
    """Return what fn makes of each job, in their order, computed by the cluster.

    call(runs, signs, fn, job, where) computes one of them; the rest as for workers.run_jobs.

    Raises:
        RunError: If a machine differs from this one, a job fails, or it is lost more than MAX_RETRIES times.
    """
    driver = _connected(_compute)
    driver.places(_compute)
    try:
        driver.compare(_compute)
        return driver.carry(_compute, call, fn, jobs, describe)
    except BaseException as error:
        disconnect()  # which ends whatever of the jobs still runs
        if not isinstance(error, driver.ray.exceptions.RayError):
            raise
        reason = " ".join(str(error).split())[-300:]
        raise RunError(
            f"The cluster cannot go on ({reason}); finished items are kept, so mend that and run again."
        ) from error


def disconnect() -> None:
    """Leave the cluster, if this process is in one: its jobs end, and a local one with them."""
    global _driver
    if _driver is not None:
        _driver.ray.shutdown()
        _driver = None


def _connected(compute: Compute) -> "_Driver":
    global _driver
    # Processes that know code as it was before an edit must not meet jobs of the new one.
    code_fingerprint.cache_clear()
    asked = (compute.cluster, code_fingerprint())
    if _driver is not None and (_driver.asked != asked or not _driver.ray.is_initialized()):
        disconnect()
    if _driver is None:
        _driver = _Driver(asked)
    return _driver


class Mailbox:
    """The questions of jobs on their way to the driver, and its answers; it ends with the driver."""

    def __init__(self):
        self.asked, self.waiting, self.number = asyncio.Queue(), {}, 0

    async def ask(self, *question: Any) -> Any:
        """Return the driver's answer to a job's question."""
        self.number += 1
        answer = self.waiting[self.number] = asyncio.get_running_loop().create_future()
        self.asked.put_nowait((self.number, question))
        return await answer

    async def next(self) -> tuple[int, tuple]:
        """Return the oldest question that was not taken yet, with its number."""
        return await self.asked.get()

    async def answer(self, number: int, value: Any) -> None:
        """Give the answer to a question."""
        self.waiting.pop(number).set_result(value)


class _Driver:
    """This process as the driver of jobs: its connection, its mailbox, and the machines that are known to be alike."""

    def __init__(self, asked: tuple[str, str]):
        self.asked, self.alike, self.sent = asked, set(), {}
        self.ray = _started(asked[0])
        here = self.affinity(self.ray.get_runtime_context().get_node_id())
        actor = self.ray.remote(num_cpus=0, max_concurrency=AT_ONCE, scheduling_strategy=here)(Mailbox)
        self.box = actor.remote()
        self.next = self.box.next.remote()

    def affinity(self, node: str):
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node, soft=False)

    def machines(self, compute: Compute) -> dict[str, dict]:
        """Return the machines that can take a job, by their id, with their resources."""
        found = {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}
        return {node: there for node, there in found.items() if _room(there, compute)}

    def places(self, compute: Compute) -> int:
        """Return how many jobs run at once."""
        if n := sum(_room(there, compute) for there in self.machines(compute).values()):
            return n
        wanted = f"{compute.per_job.cpus} CPUs and {compute.per_job.gpus:g} GPUs"
        raise RunError(
            f"No machine of the cluster {compute.cluster} has the {wanted} that compute.per_job asks for one job; "
            "lower that, or add a machine."
        )

    def compare(self, compute: Compute) -> None:
        """Have every machine that is new report what it computes with; see `facts`.

        Raises:
            RunError: If one differs from this one.
        """
        new = {node: there for node, there in self.machines(compute).items() if node not in self.alike}
        ask = self.ray.remote(num_cpus=0, max_retries=MAX_RETRIES)(report)
        asked = {node: ask.options(scheduling_strategy=self.affinity(node)).remote() for node in new}
        kinds = _accelerators(self.ray.cluster_resources())
        for node, ref in asked.items():
            name, there, kind = self.ray.get(ref, timeout=REPORT_S)
            require_alike(name, there)
            if kind != processor() or _accelerators(new[node]) != kinds:
                warnings.warn(f"Machine {name} has another processor ({kind}); last bits may differ.", stacklevel=2)
        self.alike |= set(new)

    def carry(self, compute: Compute, call: Callable, fn: Callable, jobs: list, describe: str) -> list:
        """Return the results of jobs, answering their questions meanwhile; see `run_jobs`."""
        ray, per_job = self.ray, compute.per_job
        task = ray.remote(num_cpus=per_job.cpus, num_gpus=per_job.gpus, max_retries=MAX_RETRIES)(_carry_out)
        signs, seen = progress.folder().absolute(), secrets.token_hex(8)
        progress.put(str(signs), SEEN, seen)
        given = (self.box, facts(), str(cache.runs_folder()), seen, call, signs, fn)
        refs = {task.remote(*given, index, job): index for index, job in enumerate(jobs)}
        results, began = [None] * len(jobs), [[] for _ in jobs]
        while refs:
            ready, _ = ray.wait([self.next, *refs], timeout=LOOK_EVERY_S)
            if not ready:
                self.places(compute)
            elif ready[0] == self.next:
                number, question = ray.get(self.next)
                self.next = self.box.next.remote()
                self.box.answer.remote(number, self.answer(began, *question))
                if question[0] == "begun" and len(began[question[1]]) > MAX_RETRIES + 1:
                    # Where memory runs out Ray itself tries for ever.
                    raise RunError(_lost(describe, jobs[question[1]]))
            else:
                index = refs.pop(ready[0])
                results[index], _ = self.result(ready[0], jobs[index], describe)
                progress.jobs(describe, len(jobs) - len(refs), len(jobs))
        for job, nodes in zip(jobs, began, strict=True):
            _ran.append({"what": describe, "job": repr(job), "machine": nodes[-1], "run again": len(nodes) - 1})
        self.sent = {}
        return results

    def answer(self, began: list[list[str]], what: str, *given: Any) -> Any:
        """Answer a job's question: to have begun or be doing something, to be given items or files, to keep them."""
        if what == "begun":
            index, machine = given
            return began[index].append(machine)
        if what == "files":
            return (there := find(*given)), sums_of(there)
        if what == "file":
            path, sha256 = given
            if sha256 not in self.sent:
                self.sent[sha256] = self.ray.put(Path(path).read_bytes())
            return [self.sent[sha256]]  # in a list it travels as a reference
        if what == "folder":
            folder, sums, sent = given
            # Of a job whose machine is lost by now: it is run again. A client's `get` alone would begin anew every 2 s.
            with suppress(self.ray.exceptions.ObjectLostError):
                put_down(Path(folder), sums, lambda name: self.ray.get(self.ray.wait([sent[name]])[0][0]))
            return None
        if what == "sign":
            return progress.put(*given)
        return getattr(cache.shared_cache(), what)(*given)

    def result(self, ref, job: Any, describe: str) -> Any:
        """Return what a job made; raises as `run_jobs`."""
        try:
            return self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause  # not Ray's own, with all its lines
            raise RunError(f"{describe} failed at job {job!r}: {type(cause).__name__}: {cause}") from cause
        except self.ray.exceptions.RayError as error:
            raise RunError(_lost(describe, job)) from error


def _lost(describe: str, job: Any) -> str:
    return (
        f"The process of {describe} at job {job!r} was lost {MAX_RETRIES + 1} times, often for want of memory; "
        "finished items are kept, so lower compute.batch_size or raise compute.per_job.cpus, and run again."
    )


def _started(cluster: str):
    wanted = GUARDED | (LOCAL | {"RAY_AUTH_TOKEN": secrets.token_hex(32)} if cluster == "local" else {})
    os.environ |= {name: value for name, value in wanted.items() if name not in os.environ}
    try:
        import ray
    except ImportError:
        raise RunError(
            f"compute.cluster is {cluster}, but Ray is not installed; run: make ray, or set it to none."
        ) from None
    read_settings()
    own = {"num_cpus": os.cpu_count(), "include_dashboard": False} if cluster == "local" else {}
    try:
        ray.init(cluster, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        ray.shutdown()  # or this process would take every other cluster for one at an address
        reason = " ".join(str(error).split())[:300]
        raise RunError(
            f"The cluster {cluster} cannot be reached ({reason}); start it with RAY_AUTH_MODE=token "
            "GRPC_ENABLE_FORK_SUPPORT=0 ray start --head, with the token of this user, or set compute.cluster to local."
        ) from error
    return ray


def read_settings() -> None:
    """Have Ray read its settings again: whatever imported it before us, vLLM for one, did so without ours."""
    from ray import _raylet
    from ray._private import ray_constants as read

    _raylet.Config.initialize("")
    read.ENABLE_RAY_CLUSTER = read.env_bool(read.ENABLE_RAY_CLUSTERS_ENV_VAR, read.ENABLE_RAY_CLUSTER)


def _room(resources: Mapping[str, float], compute: Compute) -> int:
    """Return how many jobs a machine with these resources carries at once."""
    wanted = {"CPU": compute.per_job.cpus, "GPU": compute.per_job.gpus}
    return int(min(resources.get(name, 0) // n for name, n in wanted.items() if n))


def _accelerators(resources: Iterable[str]) -> set[str]:
    return {name for name in resources if name.startswith("accelerator_type:")}


class MailedCache(cache.Cache):
    """Finished items as a job on a cluster knows them: the driver reads and keeps them, and counts them."""

    def __init__(self, ask: Callable[..., Any]):
        super().__init__(Path(cache.ITEMS))
        self.ask = ask

    def get_many(self, kind: str, keys: Iterable[str]) -> dict[str, dict]:
        """Return the stored payloads of those keys that have one."""
        return self.ask("get_many", kind, list(keys))

    def put_many(self, kind: str, payloads: Mapping[str, dict]) -> None:
        """Have the driver store payloads in one transaction; they are kept when this returns."""
        self.ask("put_many", kind, dict(payloads))

    def _open(self):
        raise RunError("A job on a cluster cannot open the finished items; this is a fault of the library, report it.")


def _carry_out(
    box: Any, expected: dict, runs: str, seen: str, call: Callable, signs: Path, fn: Callable, index: int, job: Any
) -> Any:
    """Compute one job of a cluster, in a process on one of its machines."""
    import ray

    global _inside, _apart
    # A machine that joined meanwhile was not asked before.
    require_alike(machine(), facts(), expected)
    _inside, _apart = True, not _sees(signs / SEEN, seen)
    _known.clear()
    cache.elsewhere = MailedCache(lambda *question: ray.get(box.ask.remote(*question)))
    begun = box.ask.remote("begun", index, machine())  # not waited for: a question takes its time there and back
    progress.mail = partial(cache.elsewhere.ask, "sign") if _apart else None
    return call(str(own_folder() / "runs") if _apart else runs, signs, fn, job, machine()), ray.get(begun)


def _sees(path: Path, content: str) -> bool:
    with suppress(OSError):
        return path.read_text(encoding="utf-8") == content
    return False


def own_folder() -> Path:
    """Return where a machine that does not see the run's folder keeps what it was sent, and what it trains."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "responsive-teaching-workbench"


def folder_here(name: str) -> Path:
    """Return where a job's machine has the folder that the driver knows by a name: where the driver has it, or a copy.

    Raises:
        RunError: If it cannot be fetched.
    """
    import ray

    if own_folder() in Path(name).parents:
        return Path(name)  # a copy, or what was trained here
    if name not in _known:
        ask = cache.elsewhere.ask
        there, sums = ask("files", name)
        if not there.is_dir() or sums_of(there) != sums:
            path, there = there, own_folder() / "models" / fingerprint(sums)
            with cache.held(there.with_suffix(".lock"), f"the copy of {name}", wait=True):
                if any(unlike(there / file, sha256) for file, sha256 in sums.items()):
                    put_down(there, sums, lambda file: ray.get(ask("file", str(path / file), sums[file])[0]))
        _known[name] = _known[str(there)] = there
    return _known[name]


def place_of(folder: Path) -> Path:
    """Return where a job puts the model that the run is to have in this folder: there, or on its machine until sent."""
    return own_folder() / "trained" / fingerprint(str(folder)) / folder.name if _apart else folder


def send_home(made: Path, folder: Path, sums: Mapping[str, str]) -> None:
    """Have the driver keep what a job made on its own machine; the driver checks the checksums."""
    import ray

    sent = {name: ray.put((made / name).read_bytes()) for name in sums}
    cache.elsewhere.ask("folder", str(folder), dict(sums), sent)
    shutil.rmtree(made, ignore_errors=True)


@in_our_words()
def put_down(folder: Path, sums: Mapping[str, str], read: Callable[[str], bytes]) -> None:
    """Write a folder that came from another machine, whole or not at all.

    Args:
        folder: To be; one that is there and is another goes.
        sums: The SHA-256 of each file, by its place in the folder.
        read: Returns the bytes of a file.

    Raises:
        RunError: If a file is not what was sent, or cannot be written.
    """
    arriving = folder.with_name(f"{folder.name}.arriving")
    for left in [arriving, *folder.parent.glob(f"{escape(folder.name)}.{'[0-9a-f]' * 16}.unfinished")]:
        shutil.rmtree(left, ignore_errors=True)  # by whoever was killed at it
    try:
        for name, sha256 in sums.items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise RunError(
                    f"{name!r} is no file of a model's folder; mend the files of {folder.name}, or leave it."
                )
            data = read(name)
            if hashlib.sha256(data).hexdigest() != sha256:
                raise RunError(f"{name} of {folder} is not what was sent from another machine; run again.")
            cache.atomic_write(arriving / name, data)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(arriving, folder)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)


def machine() -> str:
    """Return what this machine of a cluster is called; several may be one computer, so by more than its name."""
    import ray

    return f"{socket.gethostname()}/{ray.get_runtime_context().get_node_id()[:8]}"


def report() -> tuple[str, dict[str, str], str]:
    """Return what this machine is called, its facts, and its kind of processor."""
    return machine(), facts(), processor()


def facts() -> dict[str, str]:
    """Return what must be the same on all machines, or results would depend on where a job ran."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {"Python": platform.python_version(), **versions, "code": code_fingerprint()}


@once
def code_fingerprint() -> str:
    """Return the fingerprint of the library's code as this process found it."""
    package = Path(__file__).parents[1]
    return fingerprint({str(p.relative_to(package)): file_sha256(p) for p in sorted(package.rglob("*.py"))})


def require_alike(name: str, there: Mapping[str, str], here: Mapping[str, str] | None = None) -> None:
    """Refuse a machine on which something of `facts` is not as it is here.

    Raises:
        RunError: If so, naming the machine and what differs.
    """
    for what, value in (here or facts()).items():
        if there.get(what) != value:
            raise RunError(
                f"Machine {name} of the cluster has {what} {there.get(what)} where this one has {value}; install the "
                "same there, or take it out."
            )


def processor() -> str:
    """Return the kind of processor of this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()} {named[0] if named else platform.processor()}"
