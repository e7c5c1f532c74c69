"""Training with TRL: DPO for a teacher, SFT for a student; each result is a model folder that is whole or absent.

TRL's trainers, given whole batches: dealt out to the processes, and split when memory runs out.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError

from workbench.models import loading
from workbench.models.loading import TuningError
from workbench.runs import progress
from workbench.runs.cache import StoreError, atomic_write, read_json, runs_folder
from workbench.runs.recipe import Alignment, Recipe, Training
from workbench.runs.recipe_parts import Lora
from workbench.runs.run import NEXT

T = TypeVar("T")


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
            progress.steps(_model_of(args), state.global_step, state.max_steps)

        def on_log(self, args, state, control, logs=None, **kwargs):
            progress.steps(_model_of(args), state.global_step, state.max_steps, logs)

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


DONE = "tuned.json"
CHECKPOINTS = "checkpoints"
TORCH_WRITER = ("inline_container", "PytorchStreamWriter")  # in the RuntimeError of a file torch could not write
WHOLE_CHECKPOINT = ("trainer_state.json", "optimizer.pt", "scheduler.pt")


@dataclass(frozen=True)
class Tuned:
    """A trained model's folder, its training curve (step, metric, value), and the tokens and steps it took."""

    folder: Path
    curve: list[dict]
    n_tokens: int
    steps: int


def tuned(folder: Path, key: str, train: Callable[[Path], dict]) -> Tuned:
    """Return what is in the folder if it was trained for this key, else take it from another run, else train into it.

    Args:
        folder: Where the model ends up.
        key: Hash of everything that can change the weights.
        train: Called with a working folder; leaves the model's files there and returns curve, n_tokens, steps. What it
            finds there comes from a run of the same key that was killed.
    """
    record = read_json(folder / DONE)
    if record.get("key") != key:
        if folder.exists():
            shutil.rmtree(folder)
        work = folder.with_name(f"{folder.name}.{key}.unfinished")
        work.mkdir(parents=True, exist_ok=True)
        try:
            if there := _trained_elsewhere(folder, key):
                shutil.copytree(there, work, dirs_exist_ok=True)
                record = read_json(there / DONE)
            else:
                record = {"key": key} | train(work)
                shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)
            atomic_write(work / DONE, json.dumps(record).encode())
            os.replace(work, folder)
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(name in str(error) for name in TORCH_WRITER):
                raise
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise StoreError(
                f"{folder} could not be written ({reason}), nothing earlier is lost; "
                "free some space and run the same command again."
            ) from error
    return Tuned(folder, record["curve"], record["n_tokens"], record["steps"])


def _trained_elsewhere(folder: Path, key: str) -> Path | None:
    """Return the same folder of another run if it holds a model trained for this key."""
    runs = runs_folder()
    if runs not in folder.parents:
        return None
    # A step that replaces another is made beside it.
    _, *inside = (part.removesuffix(NEXT) for part in folder.relative_to(runs).parts)
    found = (path.parent for path in sorted(runs.glob("/".join(["*", *inside, DONE]))) if path.parent != folder)
    return next((path for path in found if read_json(path / DONE).get("key") == key), None)


def model_folder(*names: str | int) -> str:
    """Return what the folder of a trained model is called: by student and arm, and the seed where there are several."""
    return "-".join(map(str, names))


def _last_checkpoint(work: Path) -> str | None:
    """Return the newest checkpoint that was written to its end."""
    found = [path for path in work.glob(f"{CHECKPOINTS}/checkpoint-*") if _is_whole(path)]
    return str(max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]))) if found else None


def _is_whole(checkpoint: Path) -> bool:
    if not all((checkpoint / name).exists() for name in WHOLE_CHECKPOINT):
        return False
    try:
        return bool(read_json(checkpoint / WHOLE_CHECKPOINT[0]))
    except StoreError:
        # The trainer writes its state last, so a kill in the middle of that leaves half a file.
        return False


def _arguments(settings: Alignment | Training, recipe: Recipe, work: Path, seed: int, n_steps: int) -> dict:
    """Return what DPO and SFT have in common."""
    return {
        "output_dir": str(work / CHECKPOINTS),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.scheduler,
        "warmup_steps": settings.warmup_ratio,
        "max_length": settings.max_length,
        "seed": seed % 2**31,
        "data_seed": seed % 2**31,
        "save_strategy": "steps" if settings.save_steps else "no",
        "save_steps": settings.save_steps or 500,
        "logging_steps": max(1, n_steps // 40),
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": settings.batch_size,
        "bf16": settings.bf16 or settings.lora.load_in_4bit,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "use_cpu": recipe.compute.device == "cpu" or not _has_gpu(recipe),
        "dataloader_pin_memory": False,
    }


def _has_gpu(recipe: Recipe) -> bool:
    import torch

    return recipe.compute.device != "cpu" and torch.cuda.is_available()


def _load(recipe: Recipe, ref: str, settings: Alignment | Training) -> loading.LoadedModel:
    """Load what is to be trained: in float32 where bf16 is for the matrix products alone, in four bits for QLoRA."""
    dtype = "float32" if settings.bf16 and not settings.lora.rank else recipe.models.dtype
    if settings.backend == "unsloth":
        from workbench.models.unsloth_backend import load

        return load(ref, dtype, recipe.compute.device, settings)
    return loading.load(ref, dtype, recipe.compute.device, in_4bit=settings.lora.load_in_4bit)


def _train(build, loaded: loading.LoadedModel, recipe: Recipe, settings: Alignment | Training, work: Path, **given):
    """Build a trainer, train from where an earlier try was stopped, save the model, and return the trainer."""
    section = "training" if isinstance(settings, Training) else "alignment"
    # A second GPU is not the trainer's to take: one process trains on one, several are for the launcher.
    given["args"]._n_gpu = min(given["args"].n_gpu, 1)
    adapter = adapter_config(settings.lora, loaded.model, section, given["args"].seed)
    model = loaded.model
    if adapter and settings.backend == "unsloth":
        from workbench.models.unsloth_backend import adapt

        model, adapter = adapt(model, adapter, settings, given["args"].seed), None
    trainer = build(model=model, processing_class=loaded.tokenizer, peft_config=adapter, **given)
    trainer.rows_at_once = settings.micro_batch_size
    keep_quiet(trainer)
    trainer.train(resume_from_checkpoint=_last_checkpoint(work))
    if trainer.accelerator.is_main_process:
        _save(trainer, loaded, work, recipe, settings.lora)
    trainer.accelerator.wait_for_everyone()
    return trainer


def _save(trainer, loaded: loading.LoadedModel, work: Path, recipe: Recipe, lora: Lora) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    loaded.tokenizer.save_pretrained(work)
    if lora.rank and lora.merge and lora.load_in_4bit:
        model = _merged_in_full(model, work, loaded.name, recipe)
    elif lora.rank and lora.merge:
        model = model.merge_and_unload()
    elif lora.rank:
        return _save_adapter(model, work, loaded.name)
    model.to(loading.DTYPES[recipe.models.dtype]).save_pretrained(work, safe_serialization=True)


def _save_adapter(model, work: Path, ref: str) -> None:
    # As the recipe names it: a place on this machine would tie the adapter to it.
    model.peft_config["default"].base_model_name_or_path = ref
    # The embeddings are never adapted; looking whether they were would look for the base on the hub.
    model.save_pretrained(work, safe_serialization=True, save_embedding_layers=False)


def _merged_in_full(model, work: Path, ref: str, recipe: Recipe):
    """Return the model in its own precision with the adapter that was trained beside its four bits."""
    apart = work / CHECKPOINTS / "adapter"
    _save_adapter(model, apart, ref)
    return loading.load_adapted(ref, apart, recipe.models.dtype, recipe.compute.device)


def adapter_config(lora: Lora, model, section: str, seed: int):
    """Return PEFT's configuration of an adapter to train, or None when all weights are trained.

    Raises:
        TuningError: If the model lacks a layer that is to be adapted, naming those it has.
    """
    if not lora.rank:
        return None
    import torch
    from peft import LoraConfig

    output = model.get_output_embeddings()
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not output]
    there = sorted({name.rsplit(".", 1)[-1] for name in linear})
    if unknown := [name for name in lora.targets if name not in there]:
        raise TuningError(
            f"{section}.lora.targets names {unknown[0]!r}, which is no linear layer of the model; it has "
            f"{', '.join(there)}, or name none to adapt all."
        )
    # TRL draws the adapter's first weights before it sets its seed.
    torch.manual_seed(seed)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets or there,
        task_type="CAUSAL_LM",
    )


def tune_dpo(recipe: Recipe, pairs: pd.DataFrame, work: Path, seed: int) -> dict:
    """Align the recipe's teacher to the pairs by DPO and save it.

    The prompt has exactly the tokens that it has in generation. A pair longer than max_length is refused: cut short,
    it would lose its end, the answer.

    The reference is the teacher before the first step: its log-probabilities are computed once and stored, and no
    second copy of it is held; with LoRA the reference is the model without its adapter.

    Source: Rafailov et al. 2023, arXiv:2305.18290, through TRL's DPOTrainer. Deviation: none.
    """
    from datasets import disable_progress_bars
    from trl import DPOConfig

    disable_progress_bars()

    settings = recipe.alignment
    teacher = _load(recipe, recipe.models.teacher, settings)
    tokenizer = teacher.tokenizer
    asked = list(pairs["prompt"])
    sides = [encode(tokenizer, asked, list(pairs[side])) for side in ("chosen", "rejected")]
    rows = [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for (prompt, chosen), (_, rejected) in zip(*sides, strict=True)
    ]
    lengths = [len(prompt) + len(end) for side in sides for prompt, end in side]
    _refuse_too_long(max(lengths, default=0), settings.max_length, "alignment")
    n_steps = -(-len(rows) // settings.batch_size) * settings.n_epochs
    config = DPOConfig(
        beta=settings.beta,
        num_train_epochs=settings.n_epochs,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=settings.micro_batch_size or settings.batch_size,
        **_arguments(settings, recipe, work, seed, n_steps),
    )
    data = _stored(rows, work, config)
    trainer = _train(dpo_trainer(), teacher, recipe, settings, work, args=config, train_dataset=data)
    metrics = ("loss", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")
    steps = trainer.state.global_step
    return {"curve": curve_of(trainer, metrics), "n_tokens": sum(lengths) * settings.n_epochs, "steps": steps}


def _stored(rows: list[dict], work: Path, config):
    """Return the rows as a data set in a folder, beside which TRL keeps the reference's log-probabilities.

    There every process finds them, and so does a training that was killed and begins again.
    """
    from datasets import Dataset, load_from_disk

    folder = work / CHECKPOINTS / "pairs"
    with config.main_process_first():
        if not folder.exists():
            Dataset.from_list(rows).save_to_disk(folder.with_suffix(".unfinished"))
            os.replace(folder.with_suffix(".unfinished"), folder)
    return load_from_disk(folder)


def tune_sft(recipe: Recipe, student: str, rows: pd.DataFrame, n_batches: int, work: Path, seed: int) -> dict:
    """Train a student on prompts and completions, the loss on the completions alone, and save it.

    Args:
        recipe: Its training section says how.
        student: Model folder or id.
        rows: Columns prompt and completion (without its end token).
        n_batches: Batches an epoch; rows are dealt into them so that each has about the same completion tokens.
        work: Folder to save into.
        seed: Orders the rows.
    """
    from datasets import Dataset
    from trl import SFTConfig

    settings = recipe.training
    loaded = _load(recipe, student, settings)
    tokenizer = loaded.tokenizer
    texts = encode(tokenizer, list(rows["prompt"]), list(rows["completion"]))
    data = [{"input_ids": prompt + end, "labels": [-100] * len(prompt) + end} for prompt, end in texts]
    _refuse_too_long(max((len(row["input_ids"]) for row in data), default=0), settings.max_length, "training")
    lengths = [len(end) for _, end in texts]
    rng = np.random.Generator(np.random.Philox(seed))
    batches = [batch for _ in range(settings.n_epochs) for batch in deal(lengths, n_batches, rng)]
    config = SFTConfig(
        max_steps=len(batches),
        dataset_kwargs={"skip_prepare_dataset": True},
        # Unsloth's own loss is for this one; TRL's takes the same values in pieces.
        loss_type="nll" if settings.backend == "unsloth" else None,
        # TRL packs rows without padding only where it is not to cut them; ours were refused if too long.
        padding_free=settings.packing,
        **_arguments(settings, recipe, work, seed, len(batches)) | ({"max_length": None} if settings.packing else {}),
    )
    build = partial(sft_trainer(), batches)
    data = Dataset.from_list(data)
    trainer = _train(build, loaded, recipe, settings, work, args=config, train_dataset=data)
    curve = curve_of(trainer, ("loss", "mean_token_accuracy"))
    return {"curve": curve, "n_tokens": sum(lengths) * settings.n_epochs, "steps": trainer.state.global_step}


def encode(tokenizer, prompts: list[str], completions: list[str]) -> list[tuple[list[int], list[int]]]:
    """Return for each text the ids of its rendered prompt, and those of its completion with the end token."""
    starts = tokenizer([loading.render(tokenizer, prompt) for prompt in prompts])["input_ids"] if prompts else []
    ends = [[*ids, tokenizer.eos_token_id] for ids in _plain_ids(tokenizer, completions)]
    return list(zip(starts, ends, strict=True))


def completion_tokens(tokenizer, completions: list[str]) -> list[int]:
    """Return how many tokens of each completion the loss counts, its end token included."""
    return [len(ids) + 1 for ids in _plain_ids(tokenizer, completions)]


def _plain_ids(tokenizer, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def _refuse_too_long(longest: int, limit: int, section: str) -> None:
    if longest > limit:
        raise TuningError(
            f"{section}.max_length is {limit} tokens, but one example has {longest}; raise it, because a longer "
            "example would lose its end, the answer."
        )
