"""Measure local data influence beside what its relatives do: gradients multiplied, by Bergson and by LESS's formula.

An exact influence steps on a candidate and reads all reference texts anew. Its relatives take one gradient of the
candidate and multiply it with that of the reference set, taken once: cheaper, and right as far as the loss is a
straight line. Printed are milliseconds of CPU for a candidate (one thread, in turns, least of --rounds), the rank
correlation with the exact influence, and how often a candidate with the rationale of its own question stands above one
with another's (0.5 is chance).

Run by hand, with Bergson beside the project's packages (in full it asks for packages that are not used here):
    pip install --no-deps --target /tmp/bergson bergson==2.5.1 jaxtyping wadler-lindig natsort petname simple-parsing \
        docstring-parser ml-dtypes
    PYTHONPATH=.:/tmp/bergson python tests/benchmarks/influence_peers.py

LESS's own code asks for torch 2.1 and a CUDA compiler. Its formula (arXiv:2402.04333: AdamW's direction for the
candidate, the plain gradient for the reference, both projected to 8,192 dimensions, cosine) is ours here, with one
checkpoint and all weights where it has several and LoRA.
"""

import argparse
import importlib.metadata
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from influence_speed import Loop, _texts, _warm_job
from torch import Tensor

from workbench.models.packed_losses import single
from workbench.runs.workers import run_jobs
from workbench.signals.influence import SnapshotStudent, measure
from workbench.signals.warm_up import load_warmed, texts_of
from workbench.tasks.contamination import Guard
from workbench.verdict.intervals import rank_correlation

N_PROJECTED = 8192  # as LESS


class Gradients:
    """A warmed student, and the gradient of a reference set: what every relative starts from."""

    def __init__(self, student: str, warmed: Path, reference: pd.DataFrame):
        state = load_warmed(warmed)
        self.student = SnapshotStudent(student, state, "cpu", state.adamw["learning_rate"])
        texts, self.reference = texts_of(self.student.loaded.tokenizer, reference), reference
        n = sum(len(text.completion) for text in texts)
        self.mean = sum(self.gradient_of(text).clone() * len(text.completion) for text in texts) / n
        # Bergson's own, since it throws gradients away and ours are windows on one vector.
        self.model = Loop(student, warmed, reference, 0.0).model
        torch.manual_seed(0)
        # Count sketch: a random sign and a random place for each weight, which keeps products as a dense one does.
        self.place = torch.randint(N_PROJECTED, self.mean.shape)
        self.sign = torch.randint(2, self.mean.shape).float() * 2 - 1

    def gradient_of(self, text) -> Tensor:
        return self.student.gradient_of(single(text, "cpu"))

    def projected(self, vector: Tensor) -> Tensor:
        short = torch.zeros(N_PROJECTED).index_add_(0, self.place, vector * self.sign)
        return short / short.norm()

    def movements(self, candidates: pd.DataFrame) -> list[Tensor]:
        texts = texts_of(self.student.loaded.tokenizer, candidates)
        return [self.student.adamw_update(self.gradient_of(text)) for text in texts]

    def straight(self, candidates: pd.DataFrame) -> np.ndarray:
        """Return minus the product of AdamW's movement and the reference gradient: influence of a tiny step."""
        return np.array([-(movement @ self.mean).item() for movement in self.movements(candidates)])

    def less(self, candidates: pd.DataFrame) -> np.ndarray:
        """Return LESS's cosine, up to its sum over checkpoints."""
        wanted = self.projected(self.mean)
        return np.array([-(self.projected(movement) @ wanted).item() for movement in self.movements(candidates)])

    def bergson(self, candidates: pd.DataFrame, dim: int = 0) -> np.ndarray:
        """Return Bergson's products of gradients of all linear layers, each projected to dim x dim (0: as it is)."""
        wanted = self._collected(self.reference, dim)
        found = self._collected(candidates, dim)
        return sum((found[name] @ wanted[name].sum(0)).numpy() for name in found)

    def _collected(self, rows: pd.DataFrame, dim: int) -> dict[str, Tensor]:
        from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector
        from datasets import Dataset

        texts = texts_of(self.student.loaded.tokenizer, rows)
        data = Dataset.from_dict(
            {
                "input_ids": [text.prompt + text.completion for text in texts],
                "labels": [[-100] * len(text.prompt) + text.completion for text in texts],
            }
        )
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        batches, model = [order[at : at + 8] for at in range(0, len(order), 8)], self.model
        with tempfile.TemporaryDirectory() as folder:
            config = IndexConfig(run_path=folder, projection_dim=dim, loss_reduction="mean")
            config.partial_run_path.mkdir()
            processor = GradientProcessor(projection_dim=dim or None, projection_seed=0)
            collector = InMemoryCollector(model=model.base_model, data=data, cfg=config, processor=processor)
            CollectorComputer(model, data, collector=collector, batches=batches, cfg=config).run_with_collector_hooks()
        return collector.gradients


def main() -> None:
    """Print a line a way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="*", default=["data/pocket/tally-strong", "data/pocket/story-strong"])
    parser.add_argument("--candidates", type=int, default=120)
    parser.add_argument("--reference", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("bergson", "torch", "transformers")))
    for student in args.students:
        with tempfile.TemporaryDirectory() as folder:
            compare(student, Path(folder), args)


def compare(student: str, folder: Path, args: argparse.Namespace) -> None:
    """Time and compare all ways on one student."""
    run_jobs(_warm_job, [(student, folder / "warmed")], 1, "warming up")
    reference, candidates = _texts(args.reference, "reference"), _texts(args.candidates, "candidate")
    own = np.arange(len(candidates)) // 4 % 2 == 0  # four tasks in turn; see _texts
    turn = iter(range(1000))

    def exact(some: pd.DataFrame) -> np.ndarray:
        os.environ["WORKBENCH_RUNS"] = str(folder / f"runs-{next(turn)}")
        return measure(student, folder / "warmed", some, reference, Guard({}), "", "cpu", 1)["value"].to_numpy()

    made = Gradients(student, folder / "warmed", reference)
    ways = {
        "exact": exact,
        "straight line": made.straight,
        "LESS's formula": made.less,
        "Bergson, whole gradients": made.bergson,
        "Bergson, projected to 16 x 16": lambda some: made.bergson(some, 16),
    }
    seconds, values = {name: [] for name in ways}, {}
    for _ in range(args.rounds):
        for name, way in ways.items():
            began = time.process_time()
            values[name] = way(candidates)
            seconds[name].append((time.process_time() - began) / len(candidates))
    print(f"{student}: {len(candidates)} candidates, {len(reference)} reference texts")
    for name, found in values.items():
        right, wrong = found[own][:, None], found[~own][None]
        above = ((right > wrong) + 0.5 * (right == wrong)).mean()
        same = [rank_correlation(found[at::4], values["exact"][at::4]) for at in range(4)]
        print(
            f"  {name:30s} {1e3 * min(seconds[name]):7.1f} ms  {min(seconds['exact']) / min(seconds[name]):5.1f} times "
            f"as fast  rank correlation {np.mean(same):+.2f} (within task)  own above other {above:.2f}"
        )


if __name__ == "__main__":
    main()
