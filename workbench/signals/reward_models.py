"""Reward models: read from their folders, asked for rewards, and taught the order that a larger one gives pairs.

Source: TS-Align, arXiv:2405.20215 (margin ranking loss, adapters); its text was not to be had, so the numbers are ours.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from workbench.models import loading
from workbench.models.trl import adapter_config, encode, keep_quiet
from workbench.runs.errors import ModelError
from workbench.runs.recipe import Recipe
from workbench.runs.recipe_parts import Tuning

VERSION = 1


def load_reward(ref: str, recipe: Recipe) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a reward model, from safetensors and whole, and its tokenizer.

    Raises:
        ModelError: If it has not exactly one label, lacks some of its weights, or cannot be loaded.
    """
    loading.require_safetensors(loading.resolve(ref))
    kind = AutoModelForSequenceClassification
    loaded = loading.load(ref, recipe.models.dtype, recipe.compute.device, kind=kind)
    config, tokenizer = loaded.model.config, loaded.tokenizer
    if config.num_labels != 1:
        raise ModelError(
            f"Reward model {ref} has {config.num_labels} labels, and a reward is one number; name a "
            "sequence-classification model with num_labels 1."
        )
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id
    return loaded.model, tokenizer


@torch.inference_mode()
def rewards_of(model: PreTrainedModel, rows: Sequence[list[int]]) -> torch.Tensor:
    """Return the reward of each text, given as token ids, shape (n,).

    Raises:
        ModelError: If one is longer than the model reads: its end, the answer, would be lost.
    """
    width, limit = max(map(len, rows)), getattr(model.config, "max_position_embeddings", 0)
    if limit and width > limit:
        raise ModelError(f"A text of {width} tokens is longer than the {limit} that the reward model reads; cut it.")
    return logits_of(model, rows).float()


def logits_of(model: PreTrainedModel, rows: Sequence[list[int]]) -> torch.Tensor:
    """Return the logit of each text, given as token ids and padded to the longest, shape (n,); gradients are kept."""
    pad, width = model.config.pad_token_id, max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0]


def hinge(chosen: torch.Tensor, rejected: torch.Tensor, margin: float) -> torch.Tensor:
    """Return the margin ranking loss of rewards, shape (n,) each: the mean of max(0, margin - (chosen - rejected)).

    Example:
        >>> hinge(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0]), 1.0).item()
        0.5
    """
    return torch.relu(margin - (chosen - rejected)).mean()


def _trainer_class(margin: float) -> type:
    """Return TRL's reward trainer with the hinge; its own loss is that of Bradley and Terry."""
    from trl import RewardTrainer

    class Hinge(RewardTrainer):
        def _prepare_dataset(self, dataset, *_):
            return dataset

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            loss = hinge(*outputs.logits.squeeze(-1).chunk(2), margin)
            return (loss, outputs) if return_outputs else loss

    return Hinge


def _config(recipe: Recipe, settings: Tuning, work: Path, seed: int, n_steps: int):
    from trl import RewardConfig

    return RewardConfig(
        output_dir=str(work / "checkpoints"),
        num_train_epochs=settings.n_epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        seed=seed % 2**31,
        bf16=settings.bf16,
        max_length=None,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=max(1, n_steps * settings.n_epochs // 10),
        report_to="none",
        disable_tqdm=True,
        use_cpu=recipe.compute.device == "cpu" or not torch.cuda.is_available(),
        dataloader_pin_memory=False,
    )


def update_reward(
    recipe: Recipe, ref: str, settings: Tuning, margin: float, pairs: pd.DataFrame, work: Path, seed: int
) -> dict:
    """Teach a reward model the order of pairs and save it whole; its adapter is all that moves, if the recipe has one.

    Args:
        margin: By how much the chosen one is to be ahead, in units of the reward.
        pairs: Columns prompt, chosen, rejected.
        seed: Orders the pairs and draws the adapter.

    Returns:
        curve (step, metric, value), n_tokens, steps.
    """
    from datasets import Dataset

    model, tokenizer = load_reward(ref, recipe)
    sides = {
        f"{side}_ids": [start + end for start, end in encode(tokenizer, list(pairs["prompt"]), list(pairs[side]))]
        for side in ("chosen", "rejected")
    }
    n_tokens, n_steps = sum(len(ids) for side in sides.values() for ids in side), -(-len(pairs) // settings.batch_size)
    adapter = adapter_config(settings.lora, model, "rewards.update", seed % 2**31)
    if adapter:
        adapter.task_type, adapter.modules_to_save = "SEQ_CLS", ["score"]
        adapter.target_modules -= {"score"}
    config = _config(recipe, settings, work, seed, n_steps)
    trainer = _trainer_class(margin)(
        model=model,
        processing_class=tokenizer,
        peft_config=adapter,
        args=config,
        train_dataset=Dataset.from_dict(sides),
    )
    keep_quiet(trainer)
    trainer.train()
    done = trainer.accelerator.unwrap_model(trainer.model)
    (done.merge_and_unload() if adapter else done).save_pretrained(work, safe_serialization=True)
    tokenizer.save_pretrained(work)
    curve = [
        {"step": int(log["step"]), "metric": "loss", "value": float(log["loss"])}
        for log in trainer.state.log_history
        if "loss" in log
    ]
    return {"curve": curve, "n_tokens": n_tokens * settings.n_epochs, "steps": trainer.state.global_step}
