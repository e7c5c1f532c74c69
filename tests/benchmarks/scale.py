"""What grows when runs do: a hundredth of a large run, and simulated machines that send what they finish to one run.

    python -m tests.benchmarks.scale size            a hundredth of 10,000 drafts x 256 questions x 8 students
    python -m tests.benchmarks.scale nodes 1 2 4     so many machines of four places each, whose jobs wait, not compute

`size` goes through probing, its signals and its pairs as a run does, but what a model would write is there at once:
what is left is what the run itself costs. Machines of `nodes` are processes of this computer, as in Ray's own tests; a
job waits as long as a GPU would take for a batch, so that as many can run at once as there are places.
"""

import argparse
import itertools
import os
import pickle
import resource
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd

from data.pocket.make.questions import write
from data.pocket.make.rationales import rationale_for
from workbench.loop.pairs import build_pairs
from workbench.methods import ALL
from workbench.models.engine import Completion
from workbench.models.start import students_of
from workbench.models.transformers_engine import TransformersEngine
from workbench.runs import cluster, progress, schemas
from workbench.runs.cache import ITEMS, shared_cache
from workbench.runs.recipe import Recipe
from workbench.runs.recipe_file import load_recipe
from workbench.runs.recipe_parts import Compute
from workbench.runs.run import Run, open_run
from workbench.runs.workers import Job, run_jobs
from workbench.signals import one_shot
from workbench.tasks.pocket_styles import STYLES
from workbench.tasks.task import load_tasks

TASK, N_DRAFTS, N_QUESTIONS = "object_counting", 100, 256
STUDENTS = ("tally-strong", "tally-weak", "story-strong", "diary-strong", "no-preference", "newcomer", "beginner")
TENFOLD = 10
PLACES, BATCH, BATCHES = 4, 128, 8  # jobs of a machine at once, probes of a batch, batches of a job
REPLY = " First there is one, then there are two more, with the last four it makes seven." * 2 + " <ans>7</ans>"


def frames() -> dict[str, pd.DataFrame]:
    """Return questions, drafts and preference questions of one task, so many and unlike."""
    rng, drafts = np.random.default_rng(0), []
    asked = list(dict.fromkeys(write(TASK, rng, (2, 9)) for _ in range(20 * N_QUESTIONS)))
    questions = [
        {"task": TASK, "question_id": f"q{at}", "question": asked[at]} for at in range(N_DRAFTS // len(STYLES))
    ]
    for one, style in itertools.product(questions, STYLES):
        text = rationale_for(TASK, one["question"], style)
        drafts.append(one | {"draft_id": f"{one['question_id']}-{style}", "technique": style, "rationale": text})
    items = asked[len(questions) : len(questions) + N_QUESTIONS]
    items = pd.DataFrame({"task": TASK, "item_id": [f"i{at}" for at in range(len(items))], "question": items})
    known = {"drafted_target": "7", "kept": True, "prompt_id": "p", "reply": "", "call": 0, "index": 0, "prompt": ""}
    return {
        "questions": pd.DataFrame(questions).assign(**known, drop_reason=""),
        "drafts": pd.DataFrame(drafts).assign(answer="7", gold="7", correct=True, n_tokens=40, finished=True),
        "items": items.assign(target="7", discrimination=float("nan"), difficulty=float("nan"), chosen=True),
    }


def recipe_of() -> Recipe:
    """Return the demo's recipe with eight students, computed in this process; the eighth is the teacher itself."""
    recipe = load_recipe("arte-demo")
    folders = {name: f"data/pocket/{name}" for name in (*STUDENTS, "teacher")}
    models = recipe.models.model_copy(update={"students": folders})
    return recipe.model_copy(update={"models": models, "compute": Compute(device="cpu", batch_size=BATCH, workers=1)})


def written(self, rows: list, decoding, seed: int) -> list[Completion]:
    """Return what a model might have written to each, at once; three of five are right, by chance."""
    return [Completion(REPLY if int(row.key, 16) % 5 < 3 else REPLY.replace("7", "8"), 40, True) for row in rows]


def measured(name: str, n: int, work):
    """Do it, print what it took for each of n, and return what it returns."""
    began, clock = time.process_time(), time.perf_counter()
    found = work()
    took = time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{name:28s} {took:7.1f} s of a core  {1e6 * took / n:7.1f} us a probe  {time.perf_counter() - clock:6.1f} s  "
        f"most memory {memory:.2f} GB",
        flush=True,
    )
    return found


def size() -> None:
    """Print what probes, signals and pairs cost, and what lies on disk and goes through memory."""
    recipe, made = recipe_of(), frames()
    tasks, students = load_tasks(recipe), students_of(recipe)
    run = open_run("size", recipe)
    drafts, items = made["drafts"], made["items"]
    n = len(drafts) * len(items) * len(students)
    given = (students, {TASK: tasks[TASK]}, drafts, items, 120)
    print(f"{n:,} probes: {len(drafts)} drafts, {len(items)} questions, {len(students)} students")
    sizes = {"answer": 0, "asked": 0}
    real = one_shot._probe_job

    def sized(*job):
        found = real(*job)
        sizes["asked"] += len(pickle.dumps(job))
        sizes["answer"] += len(pickle.dumps(found))
        return found

    with mock.patch.object(TransformersEngine, "_complete", written), mock.patch.object(one_shot, "_probe_job", sized):
        probes = measured("probing", n, lambda: run.step("probes", one_shot.probe_drafts, *given))
        measured("probing again, after a loss", n, lambda: one_shot.probe_drafts(*given))
    looked_at(run, made, probes, 1)
    looked_at(run, made, probes, TENFOLD)
    held = probes.memory_usage(deep=True).sum()
    files = {"items.sqlite": run.path.parent / ITEMS, "probes.parquet": run.path / "probes" / "probes.parquet"}
    print(f"A probe in the frame: {held / n:.0f} bytes of memory; over both probings a job's")
    print(f"arguments are {sizes['asked'] / n / 2:.1f} and its result {sizes['answer'] / n / 2:.1f} bytes a probe")
    print("; ".join(f"{name} {path.stat().st_size / n:.0f} bytes a probe" for name, path in files.items()))


def looked_at(run: Run, made: dict[str, pd.DataFrame], probes: pd.DataFrame, times: int) -> None:
    """Print what storing, reading, signals and pairs cost of so many times the drafts, with the same probes each."""
    recipe, tasks, students = run.recipe, load_tasks(run.recipe), students_of(run.recipe)
    drafts, questions, n = again(made["drafts"], times), again(made["questions"], times), times * len(probes)
    print(f"{n:,} probes: {len(drafts)} drafts")
    probes = measured("put together and stored", n, lambda: run.step(f"probes-{times}", together, probes, times))
    measured("read", n, lambda: run.read(f"probes-{times}"))
    method = ALL[recipe.method]
    signals = measured("signals", n, lambda: run.step(f"signals-{times}", method.signal, probes, drafts, students))
    given = (dict(method.pair_rules), tasks, questions, drafts, signals, probes, recipe.pairs, recipe.seeds[0])
    measured("pairs", n, lambda: run.step(f"pairs-{times}", build_pairs, *given))


def together(probes: pd.DataFrame, times: int) -> pd.DataFrame:
    """A step: the probes of so many times the drafts, put together of parts as those of jobs are, and checked."""
    return schemas.check(pd.concat([again(probes, times, [at]) for at in range(times)], ignore_index=True), "probes")


def again(frame: pd.DataFrame, times: int, places: list[int] | None = None) -> pd.DataFrame:
    """Return a frame so many times over, each time (or at these places) of other drafts."""
    known = [name for name in ("question_id", "draft_id") if name in frame]
    parts = [frame.assign(**{name: frame[name] + f"-{at}" for name in known}) for at in places or range(times)]
    return pd.concat(parts, ignore_index=True)


def batches(name: str, seconds: float) -> None:
    """Be a job that takes so many seconds for a batch, asks for its items and has them stored."""
    items, payload = shared_cache(), {"text": REPLY, "n_tokens": 40, "finished": True}
    for at in range(BATCHES):
        keys = [f"{name}/{at}/{n}".rjust(64, "0") for n in range(BATCH)]
        items.get_many("scale", keys)
        time.sleep(seconds)
        items.put_many("scale", dict.fromkeys(keys, payload))


def nodes(counts: list[int], per_batch: list[float]) -> None:
    """Print how long jobs of so many machines take against how long they wait, and how busy the run's process was."""
    os.environ |= {**cluster.LOCAL, **cluster.GUARDED, "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    from ray.cluster_utils import Cluster

    quiet = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    for count in counts:
        there = Cluster(True, head_node_args=quiet | {"num_cpus": PLACES})
        for _ in range(count - 1):
            there.add_node(num_cpus=PLACES)
        os.environ["RAY_ADDRESS"] = there.address
        n = count * PLACES
        carried(n, 0.0, "warm")
        for seconds in per_batch:
            began, used = time.perf_counter(), time.process_time()
            carried(2 * n, seconds, f"{count}-{seconds}")
            took, used = time.perf_counter() - began, time.process_time() - used
            wanted, n_items = 2 * BATCHES * seconds, 2 * n * BATCHES * BATCH
            print(
                f"{count} machines, {n} jobs at once, {seconds:g} s a batch: {took:6.1f} s for {wanted:.0f} "
                f"({wanted / took:.2f})  {n_items / took:6.0f} items a second  the run's process: "
                f"{1e3 * used / n_items * BATCH:.1f} ms a batch, busy {used / took:.0%}",
                flush=True,
            )
        cluster.disconnect()
        there.shutdown()


def carried(n_jobs: int, seconds: float, name: str) -> None:
    """Have the cluster carry so many jobs."""
    with cluster.carrying(Compute(cluster="auto")):
        run_jobs(batches, [Job(f"{name}/{at}", (f"{name}/{at}", seconds)) for at in range(n_jobs)], 0, name)


def main() -> None:
    """Measure one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["size", "nodes"])
    parser.add_argument("counts", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--per-batch", type=float, nargs="*", default=[2.0, 1.0, 0.5, 0.0])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WORKBENCH_RUNS"] = folder
        progress.begin(Path(folder) / "scale")
        size() if args.what == "size" else nodes(args.counts, args.per_batch)


if __name__ == "__main__":
    main()
