"""Batches in parts, and the means by which a training takes less memory: none changes what is learned."""

from functools import cache

import pandas as pd
import pytest
import torch
from test_backends import folder, recipe_of  # noqa: F401 (a fixture)
from test_trl import LORA, curve, pairs, rows, weights

from workbench.models.trl import tune_dpo, tune_sft
from workbench.runs.errors import ModelError
from workbench.runs.workers import one_thread


def run(folder, work, stage: str, frame: pd.DataFrame | None = None, **means):  # noqa: F811
    """Train the small model by some means; return the losses and the weights."""
    work.mkdir()
    recipe = recipe_of(folder, **{stage: means})
    with one_thread():
        if stage == "alignment":
            result = tune_dpo(recipe, pairs(10) if frame is None else frame, work, seed=1)
        else:
            result = tune_sft(recipe, str(folder), rows(10) if frame is None else frame, 3, work, seed=1)
    return curve(result, "loss"), weights(work)


def differ(one: dict, other: dict) -> float:
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def short_of_memory(monkeypatch, n_rows: int, trainer) -> list[int]:
    """Let memory suffice for so many rows at once, half-way through the gradient; return how many were tried."""
    tried, step = [], trainer.training_step

    def limited(self, model, inputs, *args):
        n = len(inputs["input_ids"]) // (2 if "completion_mask" in inputs else 1)
        tried.append(n)
        loss = step(self, model, inputs, *args)
        if n > n_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss

    monkeypatch.setattr(trainer, "training_step", limited)
    return tried


@pytest.mark.parametrize("stage", ["alignment", "training"])
def test_memory_that_runs_out_is_one_sentence_with_the_next_setting_to_try(stage, folder, tmp_path, monkeypatch):  # noqa: F811
    from trl import DPOTrainer, SFTTrainer

    tried = short_of_memory(monkeypatch, 1, DPOTrainer if stage == "alignment" else SFTTrainer)
    n = recipe_of(folder).alignment.batch_size
    for rows_at_once, halved in ((0, n // 2), (2, 1)):
        said = rf"{stage}, examples at once: {rows_at_once or n} \(CUDA out of memory\); set {stage}\.micro_batch_size "
        with pytest.raises(ModelError, match=f"{said}to {halved} in the recipe,"):
            run(folder, tmp_path / str(rows_at_once), stage, micro_batch_size=rows_at_once)
    run(folder, tmp_path / "fits", stage, micro_batch_size=1)
    assert tried[-1] == 1


def test_memory_that_suffices_for_nothing_is_one_sentence(folder, tmp_path, monkeypatch):  # noqa: F811
    from trl import SFTTrainer

    short_of_memory(monkeypatch, 0, SFTTrainer)
    said = r"does not suffice for training, examples at once: 1 \(CUDA out of memory\); lower training\.max_length, set"
    with pytest.raises(ModelError, match=said):
        run(folder, tmp_path / "none", "training", micro_batch_size=1)


def test_reference_log_probabilities_are_stored_and_not_computed_again(folder, tmp_path, monkeypatch):  # noqa: F811
    from transformers import Trainer
    from trl import DPOTrainer

    calls, compute = [], DPOTrainer.compute_ref_log_probs
    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", lambda *a: calls.append(1) or compute(*a))
    recipe = recipe_of(folder)
    with monkeypatch.context() as killed:
        killed.setattr(Trainer, "train", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tune_dpo(recipe, pairs(10), tmp_path, seed=1)
    n = len(calls)
    tune_dpo(recipe, pairs(10), tmp_path, seed=1)
    assert n == 3 and len(calls) == n


MEANS = {
    "micro batches": {"micro_batch_size": 2},
    "checkpointed": {"gradient_checkpointing": True},
    "checkpointed adapter": {"gradient_checkpointing": True, "lora": LORA},
    "packed": {"packing": True},
}


@pytest.fixture(scope="module")
def plainly(folder, tmp_path_factory):  # noqa: F811
    """Train by no such means, once for each stage and kind of weights."""

    @cache
    def train(stage: str, adapter: bool):
        return run(folder, tmp_path_factory.mktemp(stage) / "work", stage, **({"lora": LORA} if adapter else {}))

    return train


@pytest.mark.parametrize("name", MEANS)
def test_these_means_change_nothing_but_the_last_digits(name, folder, tmp_path, plainly):  # noqa: F811
    for stage in ("training", "alignment") if name != "packed" else ("training",):
        losses, whole = plainly(stage, adapter="adapter" in name)
        other_losses, other = run(folder, tmp_path / f"{stage}-{name}", stage, **MEANS[name])
        assert other_losses == pytest.approx(losses, abs=1e-4) and differ(whole, other) < 1e-4


def test_packed_rows_stand_in_one_row_and_see_only_themselves(folder, tmp_path, monkeypatch):  # noqa: F811
    from trl import SFTTrainer

    shapes, step = [], SFTTrainer.training_step
    monkeypatch.setattr(
        SFTTrainer,
        "training_step",
        lambda self, model, inputs, n: (
            shapes.append((tuple(inputs["input_ids"].shape), int((inputs["position_ids"] == 0).sum())))
            or step(self, model, inputs, n)
        ),
    )
    run(folder, tmp_path / "packed", "training", packing=True)
    assert all(shape[0] == 1 for shape, _ in shapes) and {begins for _, begins in shapes} <= {3, 4}
    tokens = sum(shape[1] for shape, _ in shapes)
    assert tokens % 4 == 0, "four epochs of the same tokens, none of them padding"


def test_bf16_products_leave_the_weights_in_full(folder, tmp_path, plainly):  # noqa: F811
    losses, _ = plainly("training", adapter=False)
    rough, after = run(folder, tmp_path / "bf16", "training", bf16=True)
    assert rough != losses and rough == pytest.approx(losses, rel=0.05)
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
