"""Training with TRL: DPO for a teacher, SFT for a student; each result is a model folder that is whole or absent.

TRL's trainers, given whole batches of tokens: dealt out to the processes, and computed in parts where asked.
"""

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError

from workbench.models import loading
from workbench.models.loading import DONE
from workbench.runs import cluster, progress
from workbench.runs.cache import read_json, runs_folder, write_json
from workbench.runs.errors import ModelError, RunError
from workbench.runs.identity import file_sha256
from workbench.runs.recipe import Alignment, Recipe, Training
from workbench.runs.recipe_parts import Lora
from workbench.runs.run import NEXT
from workbench.runs.schemas import Trained
from workbench.runs.workers import run_jobs

CHECKPOINTS = "checkpoints"
SUMS = "checksums.json"  # of a checkpoint, written last
CURVES = {
    "alignment": ("loss", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected"),
    "training": ("loss", "mean_token_accuracy"),
}
SAMPLED = 1024  # of every weight, to tell what share of them a training moved
TORCH_WRITER = ("inline_container", "PytorchStreamWriter")  # in the RuntimeError of a file torch could not write


def deal(lengths: Sequence[int], n_batches: int, rng: np.random.Generator) -> list[list[int]]:
    """Return row numbers dealt at random into batches of about equal total length, none of them empty.

    Example:
        >>> sorted(map(sorted, deal([1, 1, 1, 3], 2, np.random.default_rng(0))))
        [[0, 1, 2], [3]]
    """
    if len(lengths) < n_batches:
        raise ModelError(f"{len(lengths)} rows cannot fill {n_batches} batches; lower training.batch_size.")
    order = sorted(rng.permutation(len(lengths)).tolist(), key=lambda i: -lengths[i])
    batches: list[list[int]] = [[] for _ in range(n_batches)]
    totals = np.zeros(n_batches)
    for i in order:
        lightest = int(totals.argmin())
        batches[lightest].append(i)
        totals[lightest] += lengths[i]
    return [batches[i] for i in rng.permutation(n_batches)]


class _WholeBatches:
    """What both trainers add to TRL's: tokens and batches are given, and a step gets the rows of a whole one.

    Equal steps and equal tokens in every arm need batches of equal tokens, not of equal rows.

    With several processes each takes its share of every batch, and computes it in parts of `rows_at_once`. The gradient
    is that of the whole batch in any case, up to rounding, so that neither changes what is learned.
    """

    batches: list[list[int]]  # row numbers, a list for every optimiser step
    rows_at_once = 0  # in a part; 0 for all that fall to this process
    _share = 1.0

    def _prepare_dataset(self, dataset, *_):
        # TRL encodes prompt and completion as one text, where tokens can merge over the seam ("." and "So" in Llama 3
        # and Qwen), and leaves the end of the prompt out: another prompt than is asked. Ours are encoded.
        return dataset

    def get_train_dataloader(self):
        from accelerate.data_loader import prepare_data_loader
        from torch.utils.data import DataLoader

        loader = DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=list)
        return prepare_data_loader(loader, num_processes=1, process_index=0)

    def training_step(self, model, rows, num_items_in_batch=None):
        n, place = self.accelerator.num_processes, self.accelerator.process_index
        mine = rows[place::n]
        # A process without a row still takes part in the sum of gradients, with a share of nothing.
        computed, whole = (mine, len(rows) / n) if mine else (rows[:1], float("inf"))
        counted = sum(label != -100 for row in rows for label in row.get("labels", ())[1:]) or None
        at_once, total = self.rows_at_once or len(computed), 0.0
        for start in range(0, len(computed), at_once):
            part = computed[start : start + at_once]
            # Of a sum over counted tokens every part is a summand as it is; a mean over pairs weighs its part.
            self._share = float(bool(mine)) if counted else len(part) / whole
            last = start + at_once >= len(computed)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                total += super().training_step(model, self.data_collator(part), counted)
        return total

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, False, num_items_in_batch)
        return loss if self._share == 1 else loss * self._share


def _in_whole_batches(trainer_class: type) -> type:
    return type("WholeBatches", (_WholeBatches, trainer_class), {})


def shuffled(n_rows: int, batch_size: int, n_epochs: int, seed: int) -> list[list[int]]:
    """Return row numbers in batches of equal size (the last of an epoch may be smaller), in a new order each epoch."""
    batches = []
    for epoch in range(n_epochs):
        order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        batches += [order[start : start + batch_size] for start in range(0, n_rows, batch_size)]
    return batches


def keep_quiet(trainer) -> None:
    """Replace the callback that prints every log line by signs of life, and have checkpoints keep checksums."""
    from transformers.trainer_callback import PrinterCallback, TrainerCallback

    # The folder that the model will have.
    folder = Path(trainer.args.output_dir).parent.name.removesuffix(".unfinished").rpartition(".")[0]

    class Alive(TrainerCallback):
        def on_step_end(self, args, state, control, logs=None, **kwargs):
            progress.steps(folder, state.global_step, state.max_steps, logs)

        on_log = on_step_end

        def on_save(self, args, state, control, **kwargs):
            if state.is_world_process_zero:
                checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                write_json(checkpoint / SUMS, _checksums(checkpoint))

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Alive())


@dataclass(frozen=True)
class Tuned:
    """A trained model's folder, its training curve (step, metric, value), and the tokens and steps it took."""

    folder: Path
    curve: list[dict]
    n_tokens: int
    steps: int


@dataclass(frozen=True)
class TuneJob:
    """A model to be trained: what is said of it, whose it is (columns of a frame), place, key and way of `tuned`."""

    said: str
    whose: dict = field(repr=False)
    folder: Path
    key: str = field(repr=False)
    train: Callable[[Path], dict] = field(repr=False)

    def __repr__(self) -> str:
        return self.said


def tune_all(jobs: list[TuneJob], at_once: int, describe: str, counted: str) -> tuple[pd.DataFrame, list[dict]]:
    """Train models, several at once.

    Returns:
        Whose each is, and model, its name in the folder; and the points of all curves: whose, step, metric and value,
        of each last its tokens.
    """
    # A machine of a cluster may not see what is there already.
    there = {job.folder for job in jobs if cluster.carries() and any(_whole(p, job.key) for p in _where(job.folder))}
    missing = [job for job in jobs if job.folder not in there]
    made = dict(zip((job.folder for job in missing), run_jobs(_tune, missing, at_once, describe), strict=True))
    results = [made.get(job.folder) or _tune(job) for job in jobs]
    frame = pd.DataFrame([{**job.whose, "model": job.folder.name} for job in jobs])
    frame.attrs |= {"counts": {counted: len(jobs)}, "tokens": sum(result.n_tokens for result in results)}
    points = [
        {**job.whose, **point}
        for job, result in zip(jobs, results, strict=True)
        for point in [*result.curve, {"step": result.steps, "metric": "tokens", "value": float(result.n_tokens)}]
    ]
    return frame, points


def _tune(job: TuneJob) -> Tuned:
    return tuned(job.folder, job.key, job.train)


def tuned(folder: Path, key: str, train: Callable[[Path], dict]) -> Tuned:
    """Return what is in the folder if it was trained for this key, else take it from another run, else train into it.

    On a machine of a cluster that does not see the folder, it is trained there and sent home.

    Args:
        key: Hash of everything that can change the weights.
        train: Leaves the model's files in the folder it is given and returns curve, n_tokens, steps. What it finds
            there comes from a run of the same key that was killed.
    """
    wanted, folder = folder, cluster.place_of(folder)
    record = _whole(folder, key)
    if not record:
        if folder.exists():
            shutil.rmtree(folder)
        work = folder.with_name(f"{folder.name}.{key}.unfinished")
        work.mkdir(parents=True, exist_ok=True)
        try:
            if there := next((path for path in _where(folder)[1:] if _whole(path, key)), None):
                shutil.copytree(there, work, dirs_exist_ok=True)
                record = read_json(work / DONE)
            else:
                record = {"key": key} | train(work)
                shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)
            # What was copied must be what was written there.
            write_json(work / DONE, record := {"files": _checksums(work)} | record)
            os.replace(work, folder)
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(name in str(error) for name in TORCH_WRITER):
                raise
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise RunError(
                f"{folder} could not be written ({reason}), nothing earlier is lost; "
                "free some space and run the same command again."
            ) from error
    if folder != wanted:
        cluster.send_home(folder, wanted, {**record["files"], DONE: file_sha256(folder / DONE)})
    return Tuned(wanted, record["curve"], record["n_tokens"], record["steps"])


def _whole(folder: Path, key: str) -> dict:
    """Return what is recorded of a model trained for this key; {} if there is none, or it is damaged."""
    try:
        if (record := read_json(folder / DONE, Trained)).get("key") == key:
            loading.require_whole(folder)
            return record
    except (RunError, ModelError) as error:
        warnings.warn(f"{error} It is not used here.", stacklevel=3)
    return {}


def _checksums(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (DONE, SUMS))
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def _where(folder: Path) -> list[Path]:
    """Return a folder, and the same of other runs."""
    runs = runs_folder()
    if runs not in folder.parents:
        return [folder]
    # A step that replaces another is made beside it.
    _, *inside = (part.removesuffix(NEXT) for part in folder.relative_to(runs).parts)
    others = (path.parent for path in sorted(runs.glob("/".join(["*", *inside, DONE]))))
    return [folder, *(path for path in others if path != folder)]


def model_folder(*names: str | int) -> str:
    """Return what the folder of a trained model is called: by student and arm, and the seed where there are several."""
    return "-".join(map(str, names))


def _last_checkpoint(work: Path) -> str | None:
    """Return the newest checkpoint that was written to its end and is what was written."""
    for path in sorted(work.glob(f"{CHECKPOINTS}/checkpoint-*"), key=lambda path: -int(path.name.rsplit("-", 1)[1])):
        # Ours is written after all that the trainer writes.
        with contextlib.suppress(RunError):
            if (sums := read_json(path / SUMS)) and sums.items() <= _checksums(path).items():
                return str(path)
    return None


def _arguments(settings: Alignment | Training, recipe: Recipe, work: Path, seed: int, n_steps: int) -> dict:
    """Return what DPO and SFT have in common."""
    return {
        "output_dir": str(work / CHECKPOINTS),
        "max_steps": n_steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.scheduler,
        # A warm-up begins with a step at rate 0: of one step nothing would be left, of two half.
        "warmup_steps": settings.warmup_ratio if n_steps > 2 else 0,
        "max_length": settings.max_length,
        "seed": seed % 2**31,
        "save_strategy": "steps" if settings.save_steps else "no",
        "save_steps": settings.save_steps or 500,
        "logging_steps": max(1, n_steps // 40),
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": settings.batch_size,
        "bf16": settings.bf16 or settings.lora.load_in_4bit or loading.precision(recipe.models.dtype) == "bfloat16",
        "gradient_checkpointing": settings.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "use_cpu": recipe.compute.device == "cpu" or not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
    }


def _load(recipe: Recipe, ref: str, settings: Alignment | Training) -> loading.LoadedModel:
    """Load what is to be trained, in four bits for QLoRA.

    All weights are trained in float32, whatever the models are used in: in bfloat16 a step of a usual rate is too
    small to move most of them.
    """
    dtype = recipe.models.dtype if settings.lora.rank else "float32"
    if settings.backend == "unsloth":
        from workbench.models.unsloth_backend import load

        return load(ref, dtype, recipe.compute.device, settings)
    return loading.load(ref, dtype, recipe.compute.device, in_4bit=settings.lora.load_in_4bit)


def _train(
    trainer_class: Callable,
    loaded: loading.LoadedModel,
    recipe: Recipe,
    settings: Alignment | Training,
    work: Path,
    batches: list[list[int]],
    config,
    data,
) -> dict:
    """Train on these batches from where an earlier try was stopped, save the model, and return its curve and steps.

    Raises:
        ModelError: If memory does not suffice.
    """
    section = "training" if isinstance(settings, Training) else "alignment"
    # A second GPU is not the trainer's to take: one process trains on one, several are for the launcher.
    config._n_gpu = min(config.n_gpu, 1)
    adapter = adapter_config(settings.lora, loaded.model, section, config.seed)
    model = loaded.model
    if adapter and settings.backend == "unsloth":
        from workbench.models.unsloth_backend import adapt

        model, adapter = adapt(model, adapter, settings, config.seed), None
    try:
        trainer = trainer_class(
            model=model, processing_class=loaded.tokenizer, peft_config=adapter, args=config, train_dataset=data
        )
        trainer.batches, trainer.rows_at_once = batches, settings.micro_batch_size
        if trainer.accelerator.num_processes > 1:
            # TRL gathers what it logs beside the loss, which needs as many rows everywhere: each process logs its own.
            trainer.accelerator.gather = trainer.accelerator.gather_for_metrics = lambda tensor: tensor
        keep_quiet(trainer)
        before = _sampled(trainer.model, recipe)
        ended = trainer.train(resume_from_checkpoint=_last_checkpoint(work))
    except torch.OutOfMemoryError as error:
        rows, reason = settings.micro_batch_size or settings.batch_size, str(error).split(". ")[0]
        advice = f"set {section}.micro_batch_size to {rows // 2} in the recipe, which changes nothing learned"
        if rows == 1:
            advice = f"lower {section}.max_length, set gradient_checkpointing or lora, or take a smaller model"
        raise ModelError(
            f"Memory does not suffice for {section}, examples at once: {rows} ({reason}); {advice}, and run the same "
            "command again."
        ) from error
    moved = {"step": trainer.state.global_step, "metric": "moved", "value": _moved(trainer, before, section, recipe)}
    if trainer.accelerator.is_main_process:
        _save(trainer, loaded, work, recipe, settings.lora)
    trainer.accelerator.wait_for_everyone()
    curve = [
        {"step": int(log["step"]), "metric": name, "value": float(log[name])}
        for log in trainer.state.log_history
        for name in CURVES[section]
        if name in log and np.isfinite(float(log[name]))
    ]
    seconds = ended.metrics["train_runtime"] if ended else 0.0
    return {"curve": [*curve, moved], "steps": trainer.state.global_step, "seconds": seconds}


def _sampled(model, recipe: Recipe) -> torch.Tensor:
    """Return some of every weight that is trained, as it would be stored; an adapter is kept in float32."""
    trained = [p.detach().flatten() for p in model.parameters() if p.requires_grad]
    dtype = loading.DTYPES["float32" if hasattr(model, "peft_config") else loading.precision(recipe.models.dtype)]
    return torch.cat([p[:: -(-len(p) // SAMPLED)].to("cpu", dtype, copy=True) for p in trained if len(p)])


def _moved(trainer, before: torch.Tensor, section: str, recipe: Recipe) -> float:
    """Return the share of weights that the training moved, as they are stored.

    Raises:
        ModelError: If it took steps and moved none: whatever came of it would be its parent under another name.
    """
    moved = float((_sampled(trainer.model, recipe) != before).double().mean())
    if trainer.state.global_step and not moved:
        raise ModelError(
            f"The {section} moved none of the weights, as {recipe.models.dtype} tells them apart, in "
            f"{trainer.state.global_step} steps at {section}.learning_rate {trainer.args.learning_rate:g}; raise that, "
            f"take more steps ({section}.n_epochs up or batch_size down), train by {section}.lora, or set models.dtype "
            "to float32."
        )
    return moved


def _save(trainer, loaded: loading.LoadedModel, work: Path, recipe: Recipe, lora: Lora) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    loaded.tokenizer.save_pretrained(work)
    if lora.rank and (lora.load_in_4bit or not lora.merge):
        adapter = work / CHECKPOINTS / "adapter" if lora.merge else work
        # As the recipe names it: a place on this machine would tie the adapter to it.
        model.peft_config["default"].base_model_name_or_path = loaded.name
        # The embeddings are never adapted; looking whether they were would look for the base on the hub.
        model.save_pretrained(adapter, safe_serialization=True, save_embedding_layers=False)
        if not lora.merge:
            return
        # Trained beside four bits, merged with the weights in their own precision.
        model = loading.load_adapted(loaded.name, adapter, recipe.models.dtype, recipe.compute.device)
    elif lora.rank:
        model = model.merge_and_unload()
    model.to(loading.DTYPES[loading.precision(recipe.models.dtype)]).save_pretrained(work, safe_serialization=True)


def adapter_config(lora: Lora, model, section: str, seed: int):
    """Return PEFT's configuration of an adapter to train, or None when all weights are trained.

    Raises:
        ModelError: If the model lacks a layer that is to be adapted, naming those it has.
    """
    if not lora.rank:
        return None
    from peft import LoraConfig

    output = model.get_output_embeddings()
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not output]
    there = sorted({name.rsplit(".", 1)[-1] for name in linear})
    if unknown := [name for name in lora.targets if name not in there]:
        raise ModelError(
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
    from trl import DPOConfig, DPOTrainer

    disable_progress_bars()
    settings = recipe.alignment
    teacher = _load(recipe, recipe.models.teacher, settings)
    tokenizer = teacher.tokenizer
    chosen, rejected = (encode(tokenizer, list(pairs["prompt"]), list(pairs[side])) for side in ("chosen", "rejected"))
    rows = [
        {"prompt_ids": prompt, "chosen_ids": better, "rejected_ids": worse}
        for (prompt, better), (_, worse) in zip(chosen, rejected, strict=True)
    ]
    lengths = [len(prompt) + len(end) for prompt, end in chosen + rejected]
    _refuse_too_long(max(lengths, default=0), settings.max_length, "alignment")
    batches = shuffled(len(rows), settings.batch_size, settings.n_epochs, seed % 2**31)
    both = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, settings.sft_weight]} if settings.sft_weight else {}
    config = DPOConfig(
        beta=settings.beta,
        **both,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=settings.micro_batch_size or settings.batch_size,
        **_arguments(settings, recipe, work, seed, len(batches)),
    )
    data = _stored(rows, work, config)
    result = _train(_in_whole_batches(DPOTrainer), teacher, recipe, settings, work, batches, config, data)
    return result | {"n_tokens": sum(lengths) * settings.n_epochs}


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
        rows: Columns prompt and completion (without its end token).
        n_batches: Batches an epoch; rows are dealt into them so that each has about the same completion tokens.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

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
        dataset_kwargs={"skip_prepare_dataset": True},
        # Unsloth's own loss is for this one; TRL's takes the same values in pieces.
        loss_type="nll" if settings.backend == "unsloth" else None,
        # TRL packs rows without padding only where it is not to cut them; ours were refused if too long.
        padding_free=settings.packing,
        **_arguments(settings, recipe, work, seed, len(batches)) | ({"max_length": None} if settings.packing else {}),
    )
    whole, data = _in_whole_batches(SFTTrainer), Dataset.from_list(data)
    result = _train(whole, loaded, recipe, settings, work, batches, config, data)
    return result | {"n_tokens": sum(lengths) * settings.n_epochs}


def tune_distilled(recipe: Recipe, student: str, rows: pd.DataFrame, n_batches: int, work: Path, seed: int) -> dict:
    """Train a student by on-policy distillation and save it: it answers, and the teacher weighs each token it wrote.

    The loss is the mean over the student's own tokens of the reverse Kullback-Leibler divergence KL(student | teacher),
    in nats, same prompt, temperature 1: TRL's own settings. It ends after as many steps as other arms take, or after
    the step in which the student has written as many tokens as they are taught.

    Source: Agarwal et al. 2024, arXiv:2306.13649, through TRL's DistillationTrainer. Ours: the limit on tokens.

    Args:
        recipe: Names the teacher, whose tokens must be the student's; its training section says how.
        rows: Columns prompt and n_tokens, what the student may write, a row and epoch, on average.
        n_batches: Batches an epoch, of equally many prompts; prompts left over wait for the next epoch.
    """
    from datasets import Dataset
    from transformers import TrainerCallback

    with warnings.catch_warnings(action="ignore"):  # TRL looks at a vLLM that is not used here
        from trl import DistillationConfig, DistillationTrainer
    loading.require_same_tokens(recipe.models.teacher, student)
    settings, at_once, written = recipe.training, max(1, len(rows) // n_batches), []
    budget = rows["n_tokens"].sum() * settings.n_epochs

    class Spent(TrainerCallback):
        def on_log(self, args, state, control, **kwargs):
            # Of all steps, those before a checkpoint too.
            written[:] = [at_once * log.get("completions/mean_length", 0) for log in state.log_history]
            control.should_training_stop |= bool(sum(written) >= budget)

    # All epochs laid out: TRL would begin to shuffle anew where a training goes on.
    epochs, n = shuffled(len(rows), len(rows), settings.n_epochs, seed % 2**31), n_batches * at_once
    asked = rows["prompt"].iloc[[i for epoch in epochs for i in epoch[:n]]]
    arguments = _arguments(settings, recipe, work, seed, n_batches * settings.n_epochs)
    arguments |= {"logging_steps": 1, "per_device_train_batch_size": at_once, "shuffle_dataset": False}
    arguments["max_completion_length"] = min(arguments.pop("max_length"), recipe.tailoring.max_new_tokens)
    config = DistillationConfig(**arguments)
    loaded = _load(recipe, student, settings)
    judge = loading.load(recipe.models.teacher, recipe.models.dtype, recipe.compute.device).model
    trainer = partial(DistillationTrainer, teacher_model=judge, callbacks=[Spent()])
    data = Dataset.from_dict({"prompt": [loading.render(loaded.tokenizer, prompt) for prompt in asked]})
    result = _train(trainer, loaded, recipe, settings, work, [], config, data)
    return result | {"n_tokens": round(sum(written))}


def encode(tokenizer, prompts: list[str], completions: list[str]) -> list[tuple[list[int], list[int]]]:
    """Return for each text the ids of its rendered prompt, and those of its completion with the end token."""
    starts = tokenizer([loading.render(tokenizer, prompt) for prompt in prompts])["input_ids"] if prompts else []
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"The tokenizer {tokenizer.name_or_path} names no end token, so that nothing trained would learn to stop; "
            "name one as eos_token in its tokenizer_config.json."
        )
    ends = [[*ids, tokenizer.eos_token_id] for ids in _plain_ids(tokenizer, completions)]
    return list(zip(starts, ends, strict=True))


def completion_tokens(tokenizer, completions: list[str]) -> list[int]:
    """Return how many tokens of each completion the loss counts, its end token included."""
    return [len(ids) + 1 for ids in _plain_ids(tokenizer, completions)]


def _plain_ids(tokenizer, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def _refuse_too_long(longest: int, limit: int, section: str) -> None:
    if longest > limit:
        raise ModelError(
            f"{section}.max_length is {limit} tokens, but one example has {longest}; raise it, because a longer "
            "example would lose its end, the answer."
        )
