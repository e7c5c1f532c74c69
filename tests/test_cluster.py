"""Jobs on a Ray cluster: two machines of one CPU each, which are processes here; one goes, one differs, runs end.

What is not seen here: a second computer, other processors, GPUs.
"""

import ast
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import small_classroom
from conftest import PROJECT
from notebook_steps import compute

from workbench.notebook.watch import look
from workbench.runs import cluster
from workbench.runs.cache import shared_cache
from workbench.runs.errors import RunError
from workbench.runs.identity import content_of
from workbench.runs.recipe import Recipe, recipe_class
from workbench.runs.recipe_parts import Compute
from workbench.runs.run import MANIFEST, open_run
from workbench.runs.workers import Job, run_jobs

PAUSE_S, N_ITEMS = 0.4, 8
BOTH_CPUS = Compute.model_validate({"cluster": "auto", "per_job": {"cpus": 2}})
MODELS = {"models": {"teacher": "data/pocket/teacher", "students": {"tally": "data/pocket/tally-strong"}}}
AS_HERE = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4, **cluster.LOCAL}
AS_HERE["RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S"] = "240"  # by default 30, too few for a machine that is busy


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> str:
    """What the processes of Ray find first: each would take seconds for a grammar of addresses that nobody reads."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "rfc3987_syntax.py").write_text("raise ImportError")
    return os.pathsep.join(map(str, (folder, PROJECT, PROJECT / "tests")))


@pytest.fixture(scope="module")
def machines(quick):
    """Two machines of one CPU each, with a token; RAY_ADDRESS names them."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {**AS_HERE, **cluster.GUARDED, "PYTHONPATH": quick}.items():
            patched.setenv(name, value)
        patched.setitem(sys.modules, "rfc3987_syntax", None)
        from ray.cluster_utils import Cluster

        cluster.read_settings()  # another test of this process may have imported Ray
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # Nobody reads logs or adds machines here.
        quiet = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
        there = Cluster(True, head_node_args=quiet | {"ray_client_server_port": port})
        there.second, there.client = there.add_node(), f"ray://127.0.0.1:{port}"
        patched.setenv("RAY_ADDRESS", there.address)
        yield there
        cluster.disconnect()
        there.shutdown()


@pytest.fixture
def run(runs, recipe, machines):
    """A run whose jobs the two machines carry."""
    return open_run("carried", carried(recipe))


def carried(recipe: Recipe, by: str = "auto") -> Recipe:
    return recipe.model_copy(update={"compute": Compute(device="cpu", batch_size=12, cluster=by)})


def count(n_jobs: int, log: str, pause_s: float) -> pd.DataFrame:
    """A step: jobs of N_ITEMS items each, every item that is computed a line of the log."""
    jobs = [Job(f"part {part}", (part, log, pause_s)) for part in range(n_jobs)]
    return pd.DataFrame([row for rows in run_jobs(count_part, jobs, 0, "counting") for row in rows])


def count_part(part: int, log: str, pause_s: float) -> list[dict]:
    items, rows = shared_cache(), []
    for key in [f"{part}/{item}" for item in range(N_ITEMS)]:
        if not (known := items.get_many("number", [key])):
            time.sleep(pause_s)
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"{key}\n")
            items.put_many("number", known := {key: {"value": 10 * part}})
        rows.append({"key": key, **known[key]})
    return rows


def lines_of(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def wait_until(said, limit_s: float = 240) -> None:
    deadline = time.monotonic() + limit_s
    while not said():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def look_around(n: int) -> tuple:
    """A job: what it is given for the items, where its own jobs are computed, and what it may not do."""
    if n == 99:
        raise ValueError("99 is too many")
    with pytest.raises(RunError, match="cannot open the finished items"):
        shared_cache().require_whole() or shared_cache()._do(lambda connection: None)
    return type(shared_cache()).__name__, set(run_jobs(process_of, [1, 2], 0, "within")) == {os.getpid()}


def process_of(_) -> int:
    return os.getpid()


def look_twice() -> pd.DataFrame:
    return pd.DataFrame(run_jobs(look_around, [1, 2, 3], 0, "looking"))


def fail() -> pd.DataFrame:
    return pd.DataFrame(run_jobs(look_around, [1, 99], 0, "looking"))


def test_ray_is_imported_by_functions_only():
    tree = ast.parse(Path(cluster.__file__).read_text(encoding="utf-8"))
    named = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    assert "asyncio" in named and "ray" not in named


@pytest.mark.parametrize(
    "values, said",
    [
        ({"cluster": "http://head"}, "pattern"),
        ({"cluster": "ray://head"}, "pattern"),
        ({"cluster": "local", "workers": 2}, "take out workers and launcher"),
        ({"cluster": "auto", "launcher": "accelerate"}, "take out workers and launcher"),
        ({"per_job": {"gpus": 1}}, "per_job is for a cluster"),
        ({"cluster": "local", "per_job": {"cpus": 0}}, "greater than or equal to 1"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        Compute.model_validate(values)


def test_a_precision_that_each_machine_chooses_is_refused(recipe_values):
    values = recipe_values | {"compute": {"cluster": "auto"}}
    assert recipe_class(None).model_validate(values).compute.cluster == "auto"
    with pytest.raises(ValueError, match="dtype auto is measured by each machine"):
        recipe_class(None).model_validate(values | {"models": {**values["models"], "dtype": "auto"}})


def test_a_recipe_without_a_cluster_says_nothing_of_one():
    assert not {"cluster", "per_job"} & set(Compute().model_dump())
    assert Compute(cluster="ray://head:10001").model_dump()["cluster"] == "ray://head:10001"


def test_jobs_are_given_items_by_mail_and_start_no_processes(run):
    found = run.step("looks", look_twice)
    assert found.values.tolist() == [["MailedCache", True]] * 3
    ran = run.manifest("looks")["jobs"]
    assert [one["job"] for one in ran] == ["1", "2", "3"] and not any(one["run again"] for one in ran)
    assert {one["machine"].partition("/")[0] for one in ran} == {socket.gethostname()}


@pytest.mark.parametrize("name", ["/tmp/x", "../x", "a/../../x"])
def test_what_is_sent_stays_in_its_folder(tmp_path, name):
    with pytest.raises(RunError, match="is no file of a model's folder"):
        cluster.put_down(tmp_path / "models" / "one", {name: hashlib.sha256(b"").hexdigest()}, lambda name: b"")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_was_changed_on_its_way_is_refused_and_what_was_left_goes(tmp_path):
    for name in ("one.arriving", "one.0123456789abcdef.unfinished", "two.arriving"):
        (tmp_path / name).mkdir()
    with pytest.raises(RunError, match="a of .*one is not what was sent from another machine; run again"):
        cluster.put_down(tmp_path / "one", {"a": hashlib.sha256(b"a").hexdigest()}, lambda name: b"b")
    assert [path.name for path in tmp_path.iterdir()] == ["two.arriving"]


def test_weights_whose_machine_is_lost_on_their_way_are_left_and_the_run_goes_on(tmp_path):
    def lost(ref):
        raise LookupError

    driver = object.__new__(cluster._Driver)
    known = {"exceptions": SimpleNamespace(ObjectLostError=LookupError), "wait": lambda refs: (refs, []), "get": lost}
    driver.ray = SimpleNamespace(**known)
    assert driver.answer([], "folder", str(tmp_path / "model"), {"a": "0"}, {"a": "its reference"}) is None
    assert not list(tmp_path.iterdir())


def test_an_address_where_no_cluster_is_is_refused_and_another_is_reached_after_it(run, runs, recipe, monkeypatch):
    from ray.util.client import worker

    monkeypatch.setattr(worker, "INITIAL_TIMEOUT_SEC", 0.1)
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens there
        address = f"ray://127.0.0.1:{taken.getsockname()[1]}"
        cluster.disconnect()
        with pytest.raises(RunError, match=f"The cluster {address} cannot be reached .*GRPC_ENABLE_FORK_SUPPORT=0 ray"):
            open_run("nowhere", carried(recipe, address)).step("looks", look_twice)
    assert len(run.step("looks", look_twice)) == 3


def test_a_cluster_at_an_address_is_given_the_same_jobs(runs, recipe, machines, tmp_path):
    """By Ray's client, as from a machine outside; the items stay with the run here too."""
    log = tmp_path / "log"
    cluster.disconnect()
    try:
        run = open_run("afar", carried(recipe, machines.client))
        frame = run.step("counts", count, 2, str(log), 0.0)
    finally:
        cluster.disconnect()
    assert frame["value"].tolist() == [0] * N_ITEMS + [10] * N_ITEMS
    ran = {one["job"] for one in run.manifest("counts")["jobs"]}
    assert ran == {"part 0", "part 1"} and len(lines_of(log)) == len(frame)
    with closing(shared_cache()) as items:
        assert len(items.get_many("number", list(frame["key"]))) == len(frame)


def test_frames_are_those_of_one_process(recipe_values, tmp_path, monkeypatch, machines):
    asked = {"drafting": {"n_questions": 6, "max_new_tokens": 96}, **MODELS}
    asked |= {"preference_set": {"n_validation": 8, "n_items": 6, "shots": [0, 1]}}
    asked |= {"evaluation": {"n_items": 4, "max_new_tokens": 96}}
    files = {}
    for name, how in (("alone", {"workers": 1}), ("there", {"cluster": "auto"})):
        # What one has finished must not be the other's.
        monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / name))
        work = open_run("run", recipe_class(None).model_validate({**recipe_values, **asked, "compute": how}))
        for stage in ("drafting", "probing"):
            compute(stage, work)
        files[name] = {path.relative_to(work.path): path.read_bytes() for path in work.path.rglob("*.parquet")}
    assert files["alone"] == files["there"]
    assert {"questions.parquet", "drafts.parquet", "probes.parquet"} < {path.name for path in files["there"]}
    ran = [job for step in work.steps() for job in work.manifest(step).get("jobs", [])]
    assert {"drafting rationales", "probing"} < {job["what"] for job in ran}


def train(recipe: Recipe, *, folder: Path) -> pd.DataFrame:
    """A step: a student trained by a job on a few sums."""
    # Here, for the processes of the other tests import this file too.
    from workbench.models.trl import TuneJob, tune_all, tune_sft

    rows = pd.DataFrame(
        [(f"Question: {n}+1\n", f"<ans>{n + 1}</ans>") for n in range(8)], columns=["prompt", "completion"]
    )
    tune = partial(tune_sft, recipe, recipe.models.students["tally"], rows, 2, seed=1)
    return tune_all(
        [TuneJob("SFT of tally", {"student": "tally"}, folder / "tally", "sums", tune)], 0, "training", "n"
    )[0]


def test_weights_are_those_of_one_process(recipe_values, tmp_path, monkeypatch, machines):
    weights = {}
    for name, how in (("alone", {}), ("there", {"cluster": "auto"})):
        monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / name))
        work = open_run("run", recipe_class(None).model_validate({**recipe_values, **MODELS, "compute": how}))
        work.step("students", train, work.recipe)
        weights[name] = (work.path / "students" / "tally" / "model.safetensors").read_bytes()
    assert weights["alone"] == weights["there"] and work.manifest("students")["jobs"][0]["job"] == "SFT of tally"


def test_an_error_names_its_job(run):
    with pytest.raises(RunError, match="^looking failed at job 99: ValueError: 99 is too many$") as error:
        run.step("failed", fail)
    assert isinstance(error.value.__cause__, ValueError)


def test_a_job_that_no_machine_can_take_is_refused(run):
    wanted = Compute.model_validate({"cluster": "auto", "per_job": {"gpus": 1}})
    said = pytest.raises(RunError, match="No machine of the cluster auto has the 1 CPUs and 1 GPUs")
    with cluster.carrying(wanted), said:
        run_jobs(process_of, [1], 0, "never")


def stand(address: str) -> None:
    """Be a machine of two CPUs until this process is ended."""
    sys.modules["rfc3987_syntax"] = None
    from ray._private import node, parameter

    its = {"num_cpus": 2, "object_store_memory": 150 * 1024**2, "include_log_monitor": False, "node_manager_port": 0}
    ports = {"min_worker_port": 0, "max_worker_port": 0, "dashboard_agent_listen_port": None}
    node.Node(parameter.RayParams(gcs_address=address, **its, **ports), head=False, spawn_reaper=True)
    signal.pause()


HIDING = """
import builtins, io, os
HIDDEN = tuple(os.environ["HIDDEN"].split(os.pathsep))
def hide(owner, name):
    real = getattr(owner, name)
    def hiding(path, *more, **named):
        if isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(HIDDEN):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real(path, *more, **named)
    setattr(owner, name, hiding)
for owner, name in [(builtins, "open"), (io, "open"), *((os, name) for name in "open stat mkdir scandir".split())]:
    hide(owner, name)
"""


@contextmanager
def machine_apart(machines, hidden: list[Path], own: Path):
    """A machine of two CPUs that sees none of these folders: empty ones are mounted over them, or Python hides them."""
    script = "".join(f"mount -t tmpfs none {shlex.quote(str(folder))} && " for folder in hidden) + 'exec "$@"'
    ways = [["unshare", "--mount", *more, "sh", "-c", script, "sh"] for more in ([], ["--map-root-user"])]
    mounted = [way for way in ways if shutil.which("unshare") and not subprocess.run([*way, "true"]).returncode]
    code = [sys.executable, "-c", "import sys, test_cluster; test_cluster.stand(*sys.argv[1:])", machines.address]
    environment = os.environ | {"XDG_CACHE_HOME": str(own)}
    if not mounted:
        # Where nobody may mount anything, as in most containers.
        (own / "first").mkdir(parents=True)
        (own / "first" / "sitecustomize.py").write_text(HIDING)
        environment["HIDDEN"] = os.pathsep.join(map(str, hidden))
        environment["PYTHONPATH"] = os.pathsep.join([str(own / "first"), os.environ["PYTHONPATH"]])
    process = subprocess.Popen([*(mounted or [[]])[0], *code], env=environment)
    try:
        wanted = BOTH_CPUS.model_copy(update={"cluster": machines.client})
        wait_until(lambda: process.poll() is not None or cluster._connected(wanted).machines(wanted))
        assert process.poll() is None
        yield
    finally:
        cluster.disconnect()
        process.terminate()
        process.wait()


def test_a_machine_that_sees_no_file_of_the_run_is_sent_models_and_sends_home_what_it_trained(
    classroom, tmp_path, monkeypatch, machines
):
    """Nothing is common but the code: neither the run's folder nor tasks and models; by influence, with warm states."""
    from test_montessori import STAGES, STATE, small

    arms = {"arms": ["base", "untailored", "tailored"]}
    recipe, whole, own = small(classroom, evaluation=arms), {}, tmp_path / "own"
    for name, how in (("alone", {"workers": 1}), ("there", {"cluster": machines.client, "per_job": {"cpus": 2}})):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / name))
        compute = Compute.model_validate(how | {"device": "cpu", "batch_size": 12})
        work = open_run("run", recipe.model_copy(update={"compute": compute}))
        hidden = [tmp_path / name, classroom, PROJECT / "data" / "pocket"]
        with machine_apart(machines, hidden, own) if name == "there" else nullcontext():
            for stage in STAGES:
                small_classroom.compute(stage, work)
            ran = [job["what"] for step in work.steps() for job in work.manifest(step).get("jobs", [])]
            if name == "there":  # as after a kill before the step was finished: what came home is not trained again
                (work.path / "students" / MANIFEST).unlink()
                small_classroom.compute("training", work)
        files = [path for kind in ("parquet", "safetensors") for path in work.path.rglob(f"*.{kind}")]
        whole[name] = {path.relative_to(work.path): path.read_bytes() for path in files}
    assert whole["alone"] == whole["there"] and len(whole["there"]) > 20
    assert {"measuring influence", "training students", "answering test items"} <= set(ran)
    assert not work.manifest("students").get("jobs")
    fetched = [path.name for path in own.rglob("*.safetensors")]
    assert {STATE, "model.safetensors"} == set(fetched) and not list(own.glob("*/trained/*/*"))


def test_a_machine_with_another_torch_is_refused(run, machines, quick, tmp_path):
    told = tmp_path / "torch-9.9.9.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    other = machines.add_node(env_vars={"PYTHONPATH": os.pathsep.join([str(tmp_path), quick])})
    try:
        said = r"^Machine \S+ of the cluster has torch 9.9.9 where this one has \S+; install the same there, or take it"
        with pytest.raises(RunError, match=said):
            run.step("looks", look_twice)
    finally:
        machines.remove_node(other)


def test_an_interrupt_leaves_nothing_behind(run, tmp_path):
    log = tmp_path / "log"
    # What a shell runs in the background begins with interrupts ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        wait_until(lambda: len(lines_of(log)) > 1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run.step("counts", count, 2, str(log), 4 * PAUSE_S)  # long enough for a machine that is busy
    finally:
        signal.signal(signal.SIGINT, before)
    stopped = lines_of(log)
    time.sleep(6 * PAUSE_S)
    assert lines_of(log) == stopped and len(stopped) < 2 * N_ITEMS


def drive(runs: str, recipe: str, log: str, n_jobs: str) -> None:
    """What a process of its own computes until it is killed."""
    os.environ["WORKBENCH_RUNS"] = runs
    sys.modules["rfc3987_syntax"] = None
    work = open_run("carried", recipe_class(None).model_validate(json.loads(recipe)))
    work.step("counts", count, int(n_jobs), log, PAUSE_S)


def driver(runs: Path, recipe: Recipe, log: Path, n_jobs: int, environment: dict) -> subprocess.Popen:
    # Ray first, as vLLM imports it, before anything has set what it is to do.
    code = "import ray, sys, test_cluster; test_cluster.drive(*sys.argv[1:])"
    given = [str(runs), json.dumps(recipe.model_dump()), str(log), str(n_jobs)]
    return subprocess.Popen([sys.executable, "-c", code, *given], env=environment)


def test_a_run_that_is_killed_leaves_nothing_behind_and_goes_on_where_it_was(run, runs, recipe, tmp_path):
    log = tmp_path / "log"
    process = driver(runs, carried(recipe), log, 2, dict(os.environ))
    wait_until(lambda: {"0/1", "1/1"} <= set(lines_of(log)))
    process.kill()
    process.wait()
    with closing(shared_cache()) as items:
        kept = {key for key in dict.fromkeys(lines_of(log)) if items.get_many("number", [key])}
    time.sleep(6 * PAUSE_S)
    stopped = lines_of(log)
    time.sleep(3 * PAUSE_S)
    assert lines_of(log) == stopped and kept and len(stopped) < 2 * N_ITEMS
    frame = run.step("counts", count, 2, str(log), PAUSE_S)
    computed = Counter(lines_of(log))
    assert len(frame) == len(computed) == 2 * N_ITEMS and {computed[key] for key in kept} == {1}
    assert sum(computed.values()) <= 2 * N_ITEMS + 2  # what each machine was at


def test_a_cluster_of_this_machine_listens_on_loopback_and_ends_with_its_run(runs, recipe, tmp_path, quick):
    log, ours = tmp_path / "log", {**AS_HERE, **cluster.GUARDED, "RAY_ADDRESS": ""}
    plain = {name: value for name, value in os.environ.items() if name not in ours}
    process = driver(runs, carried(recipe, "local"), log, 1, plain | {"PYTHONPATH": quick})
    wait_until(lambda: lines_of(log))
    family = psutil.Process(process.pid).children(recursive=True)
    listening = {
        connection.laddr.ip
        for one in [psutil.Process(process.pid), *family]
        for connection in one.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening and all(address.removeprefix("::ffff:").startswith("127.") for address in listening)
    environment = psutil.Process(process.pid).children()[0].environ()
    assert environment["RAY_AUTH_MODE"] == "token" and len(environment["RAY_AUTH_TOKEN"]) == 64
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    process.kill()
    process.wait()
    # Two idle helpers of Ray notice only a minute or so later.
    family = [one for one in family if one.is_running() and not one.name().endswith("Agent")]
    assert not psutil.wait_procs(family, timeout=60)[1]
    stopped = lines_of(log)
    time.sleep(2 * PAUSE_S)
    assert lines_of(log) == stopped and len(stopped) < N_ITEMS


def test_a_machine_that_goes_changes_nothing_and_is_counted(run, machines, tmp_path):
    """The last test here: one machine is left, with more jobs than CPUs."""
    log, doing = tmp_path / "log", []

    def take_away() -> None:
        wait_until(lambda: {"0/1", "1/1"} <= set(lines_of(log)))
        doing.extend(look(run).doing)
        machines.remove_node(machines.second, allow_graceful=False)

    thread = threading.Thread(target=take_away)
    thread.start()
    frame = run.step("counts", count, 4, str(log), PAUSE_S)
    thread.join()
    wanted = [{"key": f"{part}/{item}", "value": 10 * part} for part in range(4) for item in range(N_ITEMS)]
    assert content_of(frame) == content_of(pd.DataFrame(wanted))
    ran, computed = run.manifest("counts")["jobs"], Counter(lines_of(log))
    assert [one["run again"] for one in ran] in ([1, 0, 0, 0], [0, 1, 0, 0])
    assert len({one["machine"] for one in ran}) == 1
    assert len(computed) == 4 * N_ITEMS and sum(computed.values()) <= 4 * N_ITEMS + 1
    assert sorted(line.partition(" on ")[0] for line in doing) == ["part 0", "part 1"]
    assert len({line.partition(" on ")[2] for line in doing}) == 2
