"""Measure local data influence against the official procedure and against the same loop done well.

The official procedure keeps weights and optimiser state on disk, reloads both for each candidate, and pads every
reference text to one length. The loop done well keeps them in memory and pads to the longest text of a batch of texts
of like length. Both step with torch's AdamW and use all threads; ours uses as many processes with one thread each.

Run by hand:  python tests/benchmarks/influence_speed.py --candidates 200 --official 20
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from data.pocket.make.classroom import DESCRIPTIONS
from data.pocket.make.questions import write
from data.pocket.make.rationales import rationale_for
from workbench.loop import prompts
from workbench.models import loading
from workbench.runs.seeding import stream
from workbench.runs.workers import run_jobs
from workbench.signals.influence import measure
from workbench.signals.warm_up import WarmUp, load_warmed, save_warmed, texts_of, warm_up
from workbench.tasks.contamination import Guard
from workbench.tasks.pocket_styles import STYLES

WARM_UP = WarmUp(n_steps=24, batch_size=8, learning_rate=3e-4)
BATCH = 8


class Loop:
    """One candidate at a time with torch's AdamW; `padded` is the length of every reference text, 0 for its batch's."""

    def __init__(self, student: str, warmed: Path, reference: pd.DataFrame, learning_rate: float, padded: int = 0):
        loaded = loading.load(student, device="cpu")
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.parameters = dict(self.model.named_parameters())
        state = load_warmed(warmed)
        settings = state.adamw
        self.adamw = torch.optim.AdamW(
            self.parameters.values(),
            lr=learning_rate or settings["learning_rate"],
            betas=(settings["beta1"], settings["beta2"]),
            eps=settings["eps"],
            weight_decay=settings["weight_decay"],
        )
        for name, parameter in self.parameters.items():
            parameter.data.copy_(state.tensors["weights"][name])
            moments = {kind: state.tensors[kind][name].clone() for kind in ("exp_avg", "exp_avg_sq")}
            self.adamw.state[parameter] = {"step": torch.tensor(float(state.steps)), **moments}
        rows = [(text.prompt, text.completion) for text in texts_of(self.tokenizer, reference)]
        if not padded:
            rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        self.batches = [self._batch(rows[start : start + BATCH], padded) for start in range(0, len(rows), BATCH)]
        self.kept = [tensor.clone() for tensor in self._tensors()]

    def _tensors(self) -> list[torch.Tensor]:
        states = [self.adamw.state[parameter] for parameter in self.parameters.values()]
        return [parameter.data for parameter in self.parameters.values()] + [
            state[name] for state in states for name in ("step", "exp_avg", "exp_avg_sq")
        ]

    def _batch(self, rows: list[tuple[list[int], list[int]]], padded: int) -> dict[str, torch.Tensor]:
        width = padded or max(len(prompt) + len(completion) for prompt, completion in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for at, (prompt, completion) in enumerate(rows):
            n = len(prompt) + len(completion)
            ids[at, :n], mask[at, :n] = torch.tensor(prompt + completion), 1
            labels[at, len(prompt) : n] = torch.tensor(completion)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    @torch.inference_mode()
    def reference_loss(self) -> float:
        total, n = 0.0, 0
        for batch in self.batches:
            logits = self.model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
            counted = batch["labels"][:, 1:] != -100
            losses = cross_entropy(logits[:, :-1][counted], batch["labels"][:, 1:][counted], reduction="none")
            total, n = total + losses.double().sum().item(), n + len(losses)
        return total / n

    def influence(self, row) -> float:
        """Return the reference loss after a step on a candidate, or at zero gradient for None; then restore."""
        self.adamw.zero_grad(set_to_none=False)
        if row is not None:
            (text,) = texts_of(self.tokenizer, pd.DataFrame([{"prompt": row.prompt, "completion": row.completion}]))
            batch = self._batch([(text.prompt, text.completion)], 0)
            self.model(**batch, use_cache=False).loss.backward()
        else:
            for parameter in self.parameters.values():
                parameter.grad = torch.zeros_like(parameter)
        self.adamw.step()
        loss = self.reference_loss()
        self.restore()
        return loss

    def restore(self) -> None:
        for tensor, kept in zip(self._tensors(), self.kept, strict=True):
            tensor.copy_(kept)

    def values(self, candidates: pd.DataFrame) -> np.ndarray:
        """Return the corrected influence of every candidate."""
        zero = self.influence(None)
        return np.array([zero - self.influence(row) for row in candidates.itertuples()])


class OfficialLoop(Loop):
    """The same, reloading weights and optimiser state from disk after each candidate."""

    def __init__(self, *arguments, folder: Path, padded: int):
        super().__init__(*arguments, padded)
        self.folder = folder
        save_file({name: tensor.data for name, tensor in self.parameters.items()}, folder / "model.safetensors")
        torch.save(self.adamw.state_dict(), folder / "optimizer.pt")

    def restore(self) -> None:
        weights = load_file(self.folder / "model.safetensors")
        for name, parameter in self.parameters.items():
            parameter.data.copy_(weights[name])
        self.adamw.load_state_dict(torch.load(self.folder / "optimizer.pt", weights_only=True))


def main() -> None:
    """Print seconds for each candidate and ratios, then errors and rank agreement over learning rates."""
    args = _arguments()
    torch.set_num_threads(args.workers)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        os.environ["WORKBENCH_RUNS"] = str(folder / "runs")
        run_jobs(_warm_job, [(args.student, folder / "warmed")], 1, "warming up")
        reference, candidates = _texts(args.reference, "reference"), _texts(args.candidates, "candidate")
        print(f"{args.student}: {len(candidates)} candidates, {len(reference)} reference texts, {args.workers} cores")
        if args.rounds:
            _time(args, folder, candidates, reference)
        _errors(args, folder, candidates, reference)


def _warm_job(job: tuple[str, Path]) -> None:
    warm_up(job[0], _texts(96, "warm-up"), WARM_UP, 0, job[1], "cpu")


def _texts(n: int, name: str) -> pd.DataFrame:
    """Return worked questions; of every two candidates one has the rationale of another question."""
    rng, tasks, rows = stream(0, "influence benchmark", name), list(DESCRIPTIONS), []
    for at in range(n):
        task, style = tasks[at % len(tasks)], str(rng.choice(STYLES))
        question, other = write(task, rng, (2, 5)), write(task, rng, (2, 5))
        shown = other if name == "candidate" and at // len(tasks) % 2 else question
        prompt = prompts.naive_prompt(DESCRIPTIONS[task], question)
        row = {"draft_id": f"{name} {at}", "item_kind": "rationale", "question": question, "prompt": prompt}
        rows.append(row | {"completion": " " + rationale_for(task, shown, style)})
    return pd.DataFrame(rows)


def _measured(args, warmed: Path, candidates: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    return measure(args.student, warmed, candidates, reference, Guard({}), "", "cpu", args.workers)


def _time(args, folder: Path, candidates: pd.DataFrame, reference: pd.DataFrame) -> None:
    """Time all ways in turn, round by round, so that whatever else this machine does slows all of them alike."""
    loop = Loop(args.student, folder / "warmed", reference, 0.0)
    official = OfficialLoop(args.student, folder / "warmed", reference, 0.0, folder=folder, padded=args.pad_to)
    ways: dict[str, tuple[Callable, int]] = {
        "official": (official.values, args.official),
        "loop done well": (loop.values, args.candidates),
    }
    warmed = folder / "warmed"
    ways["exact"] = (lambda some: _measured(args, warmed, some, reference), args.candidates)
    _measured(args, warmed, candidates[: args.workers], reference)  # the processes are there before the clock starts
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    clock = time.process_time if args.cpu_time else time.perf_counter
    for _ in range(args.rounds):
        for name, (way, n) in ways.items():
            shutil.rmtree(folder / "runs", ignore_errors=True)
            begin = clock()
            way(candidates[:n])
            seconds[name].append((clock() - begin) / n)
    best = {name: min(found) for name, found in seconds.items()}
    for name, found in seconds.items():
        print(
            f"{name:15s} {1e3 * best[name]:8.1f} ms a candidate (best of {', '.join(f'{1e3 * s:.1f}' for s in found)})"
            f"  {best['official'] / best[name]:7.2f} x official  {best['loop done well'] / best[name]:6.2f} x loop",
            flush=True,
        )


def _errors(args, folder: Path, candidates: pd.DataFrame, reference: pd.DataFrame) -> None:
    """Compare the values of all ways at several learning rates; errors are root mean squares over the spread (SD)."""
    print("learning rate   SD (nats)  loop-exact  official-exact")
    state = load_warmed(folder / "warmed")
    for rate in args.rates:
        warmed = folder / f"warmed at {rate:g}"
        save_warmed(replace(state, adamw=state.adamw | {"learning_rate": rate}), warmed)
        values = _measured(args, warmed, candidates, reference)["value"].to_numpy()
        loop = Loop(args.student, folder / "warmed", reference, rate).values(candidates)
        padded = Loop(args.student, folder / "warmed", reference, rate, args.pad_to).values(candidates[: args.official])

        def off(other, values=values) -> float:
            return float(np.sqrt(np.mean((np.asarray(other) - values[: len(other)]) ** 2)) / values.std())

        print(f"{rate:13.0e}  {values.std():10.2e}  {off(loop):10.1e}  {off(padded):14.1e}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="data/pocket/tally-strong", help="model folder")
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--official", type=int, default=20, help="candidates for the official procedure, which is slow")
    parser.add_argument("--reference", type=int, default=32)
    parser.add_argument("--pad-to", type=int, default=256, help="length of a reference text in the official procedure")
    parser.add_argument("--rounds", type=int, default=3, help="of timing; 0 prints the errors alone")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="cores, for every way")
    parser.add_argument("--cpu-time", action="store_true", help="of one core, for a machine that is busy otherwise")
    parser.add_argument("--rates", type=float, nargs="*", default=[1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3])
    args = parser.parse_args()
    # What other processes use is not on this one's clock.
    args.workers = 1 if args.cpu_time else args.workers
    return args


if __name__ == "__main__":
    main()
