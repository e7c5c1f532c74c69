"""TRL's trainers, given whole batches: dealt out to the processes, and split when memory runs out."""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from workbench import heartbeat

T = TypeVar("T")


class TuningError(ValueError):
    """A training set cannot be trained on as the recipe says."""


def deal(lengths: Sequence[int], n_batches: int, rng: np.random.Generator) -> list[list[int]]:
    """Return row numbers dealt at random into batches of about equal total length, none of them empty.

    Example:
        >>> sorted(map(sorted, deal([1, 1, 1, 3], 2, np.random.default_rng(0))))
        [[0, 1, 2], [3]]
    """
    if len(lengths) < n_batches:
        raise TuningError(f"{len(lengths)} rows cannot fill {n_batches} batches; lower training.batch_size.")
    order = sorted(rng.permutation(len(lengths)).tolist(), key=lambda i: -lengths[i])
    batches: list[list[int]] = [[] for _ in range(n_batches)]
    totals = np.zeros(n_batches)
    for i in order:
        lightest = int(totals.argmin())
        batches[lightest].append(i)
        totals[lightest] += lengths[i]
    return [batches[i] for i in rng.permutation(n_batches)]


def with_fewer_rows(compute: Callable[[int], T], n_rows: int, tidy: Callable[[], None] = lambda: None) -> tuple[T, int]:
    """Return compute(n) and n, the most rows at once for which memory suffices: n_rows, its half, and so on.

    Args:
        compute: Called with a number of rows.
        n_rows: Where to begin.
        tidy: Called before each further try; the memory of the last one is given back after it.

    Raises:
        TuningError: If memory does not suffice for a single row.
    """
    while True:
        try:
            return compute(n_rows), n_rows
        except torch.OutOfMemoryError as error:
            reason = str(error).split(". ")[0]
        # Outside the except block, or the traceback would hold what is to be given back.
        if n_rows <= 1:
            raise TuningError(
                f"Memory does not suffice for one example at a time ({reason}); lower max_length, set "
                "gradient_checkpointing or lora, or take a smaller model."
            )
        tidy()
        torch.cuda.empty_cache()
        n_rows = -(-n_rows // 2)
        print(
            f"Memory ran out; going on with {n_rows} rows at a time, the optimiser's batch stays the same.", flush=True
        )


def _as_it_is(tensor):
    return tensor


class _Splitting:
    """What both trainers add to TRL's: a step gets the rows of a whole batch, and computes them in as many parts as
    memory asks for; with several processes, each takes its share of every batch.

    The gradient is that of the whole batch in any case, up to rounding, so that neither memory nor the number of
    processes changes what is learned.

    Attributes:
        rows_at_once: Rows in a part; 0 for all that fall to this process.
    """

    rows_at_once = 0
    _share = 1.0

    def get_train_dataloader(self):
        from accelerate.data_loader import prepare_data_loader

        collate, prepare = self.data_collator, self.accelerator.prepare
        whole = partial(
            prepare_data_loader,
            num_processes=1,
            process_index=0,
            rng_types=["generator"],
            use_seedable_sampler=True,
            data_seed=self.args.data_seed,
        )
        self.data_collator, self.accelerator.prepare = list, whole
        try:
            return self._loader()
        finally:
            self.data_collator, self.accelerator.prepare = collate, prepare

    def _loader(self):
        return super().get_train_dataloader()

    def floating_point_ops(self, inputs) -> int:
        return 0

    def training_step(self, model, rows, num_items_in_batch=None):
        n, place = self.accelerator.num_processes, self.accelerator.process_index
        mine = rows[place::n]
        # A process without a row still takes part in the sum of gradients.
        whole = len(rows) / n if mine else float("inf")
        at_once = min(self.rows_at_once or len(mine), len(mine)) or 1
        compute = partial(self._in_parts, model, mine or rows[:1], self._counted(rows), whole)
        if n > 1:
            # TRL gathers what it logs beside the loss, which needs as many rows everywhere: each process logs its own.
            self.accelerator.gather = self.accelerator.gather_for_metrics = _as_it_is
            return compute(at_once)
        loss, used = with_fewer_rows(compute, at_once, model.zero_grad)
        self.rows_at_once = used if used < at_once else self.rows_at_once
        return loss

    def _in_parts(self, model, rows: list[dict], counted: int | None, whole: float, at_once: int):
        total = 0.0
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            # Of a sum over counted tokens every part is a summand as it is; a mean over pairs weighs its part.
            self._share = float(whole < float("inf")) if counted else len(part) / whole
            last = start + at_once >= len(rows)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                total += super().training_step(model, self.data_collator(part), counted)
        return total

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, False, num_items_in_batch)
        return loss if self._share == 1 else loss * self._share


def dpo_trainer() -> type:
    """Return TRL's DPOTrainer for pairs whose tokens are given.

    TRL encodes prompt and completion as one text, where tokens can merge over the seam ("." and "So" in Llama 3 and
    Qwen); it then leaves the end of the prompt out, and the teacher would be trained on another than it is asked.
    """
    from trl import DPOTrainer

    class EncodedTrainer(_Splitting, DPOTrainer):
        def _prepare_dataset(self, dataset, *_):
            return dataset

        def _precompute_ref_logps(self, dataset, name, batch_size):
            compute = super()._precompute_ref_logps
            return with_fewer_rows(lambda n: compute(dataset, name, n), batch_size)[0]

        def _counted(self, rows):
            return None

    return EncodedTrainer


def sft_trainer() -> type:
    """Return TRL's SFTTrainer with the batches given instead of drawn."""
    from torch.utils.data import DataLoader
    from trl import SFTTrainer

    class BatchedTrainer(_Splitting, SFTTrainer):
        """Equal optimiser steps and equal tokens in every arm need batches of equal tokens, not of equal rows."""

        def __init__(self, batches: list[list[int]], **arguments):
            self.batches = batches
            super().__init__(**arguments)

        def _loader(self):
            return self.accelerator.prepare(
                DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator)
            )

        def _counted(self, rows):
            return sum(label != -100 for row in rows for label in row["labels"][1:])

    return BatchedTrainer


def keep_quiet(trainer) -> None:
    """Replace the callback that prints every log line by signs of life: the curve is kept and drawn instead."""
    from transformers.trainer_callback import PrinterCallback, TrainerCallback

    class Alive(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            heartbeat.steps(_model_of(args), state.global_step, state.max_steps)

        def on_log(self, args, state, control, logs=None, **kwargs):
            heartbeat.steps(_model_of(args), state.global_step, state.max_steps, logs)

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Alive())


def _model_of(arguments) -> str:
    """Return the name of the folder that the model being trained will have."""
    return Path(arguments.output_dir).parent.name.removesuffix(".unfinished").rpartition(".")[0]


def curve_of(trainer, metrics: Sequence[str]) -> list[dict]:
    """Return the points of these metrics that a trainer logged, as step, metric, value."""
    return [
        {"step": int(log["step"]), "metric": name, "value": float(log[name])}
        for log in trainer.state.log_history
        for name in metrics
        if name in log and np.isfinite(float(log[name]))
    ]
