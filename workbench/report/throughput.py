"""What the models of a recipe do on this machine: tried out on one batch of its questions before anything runs."""

import math
import time
from pathlib import Path

import torch

from workbench.loop import prompts
from workbench.models.engine import Completion, Decoding, Engine, Request
from workbench.models.loading import LoadedModel, load, load_tokenizer, render, resolve
from workbench.models.start import Role, choice_of, sharing, start_engine
from workbench.models.transformers_engine import TransformersEngine
from workbench.models.trl import adapter_config
from workbench.report.cost_estimate import Throughput
from workbench.runs.recipe import Recipe, project_root
from workbench.runs.recipe_parts import Lora
from workbench.runs.workers import n_processes, one_thread
from workbench.tasks.task import load_tasks

N_STEPS = 3  # optimiser steps that are timed


def measure_throughput(recipe: Recipe) -> dict[str, Throughput]:
    """Return what one process does with every model of the recipe that is at hand, by folder or id.

    The engine is that of the model's role; a server is not tried out, since that may cost money, and transformers
    stands in for it. vLLM works in one process with all cores, of which each is given its share. A full batch is timed,
    since a smaller one would promise less than a stage reaches. Completions are greedy answers to validation questions;
    demonstrations and questions the teacher writes are of like length.

    Raises:
        ModelError: If a model's folder is there but cannot be loaded.
    """
    models = recipe.models
    roles: dict[str, Role] = {models.judge: "judge"} | dict.fromkeys(models.students.values(), "student")
    roles |= {models.teacher: "teacher"}
    here = [ref for ref in roles if ref and (project_root() / Path(ref).expanduser()).is_dir()]
    return {ref: _tried(recipe, roles[ref], ref) for ref in here}


def _tried(recipe: Recipe, role: Role, ref: str) -> Throughput:
    loaded = None
    if choice_of(recipe, role).engine == "vllm":
        # Gone before the model is loaded to be trained: it takes most of a GPU's memory.
        with sharing():
            written, rates = _written(recipe, role, load_tokenizer(resolve(ref)), start_engine(recipe, role, ref))
        rates = [rate / n_processes(recipe.compute.workers) for rate in rates]
    else:
        with one_thread():
            loaded = load(ref, recipe.models.dtype, recipe.compute.device)
            engine = TransformersEngine(loaded, batch_size=recipe.compute.batch_size)
            written, rates = _written(recipe, role, loaded.tokenizer, engine)
    completion = sum(one.n_tokens for _, one in written) / len(written)
    trained = math.inf
    if role != "judge":
        texts = [request.prompt + one.text for request, one in written][: recipe.training.batch_size]
        lora = recipe.alignment.lora if role == "teacher" else recipe.training.lora
        with one_thread():
            trained = _trained(loaded or load(ref, recipe.models.dtype, recipe.compute.device), texts, lora)
    return Throughput(*rates, trained=trained, completion=completion)


def _written(
    recipe: Recipe, role: Role, tokenizer, engine: Engine
) -> tuple[list[tuple[Request, Completion]], tuple[float, float]]:
    """Return what the engine writes to the questions, and the tokens a second that it generates and reads."""
    requests = [Request(render(tokenizer, prompt)) for prompt in _questions(recipe)]
    longest = recipe.drafting.max_new_tokens if role == "teacher" else recipe.evaluation.max_new_tokens
    n_read = sum(len(tokenizer(request.prompt)["input_ids"]) for request in requests)
    engine.generate(requests[:2], Decoding(2))
    reading, _ = _timed(lambda: engine.generate(requests, Decoding(1)))
    # An engine that remembers prompts reads them faster the second time.
    again, _ = _timed(lambda: engine.generate(requests, Decoding(1)))
    both, written = _timed(lambda: engine.generate(requests, Decoding(longest)))
    n_new = sum(completion.n_tokens for completion in written)
    # Models that stop at once leave too little to be timed by itself.
    more = n_new > 2 * len(requests) and both > again
    new = (n_new - len(requests)) / (both - again) if more else n_new / both
    return list(zip(requests, written, strict=True)), (new, n_read / reading)


def _questions(recipe: Recipe) -> list[str]:
    """Return prompts of the recipe's validation questions, one batch at most, from all tasks alike."""
    columns = [
        [prompts.naive_prompt(task.description, question) for question in task.validation["question"]]
        for task in load_tasks(recipe).values()
    ]
    dealt = [one for row in zip(*columns, strict=False) for one in row]
    return list(dict.fromkeys(dealt))[: recipe.compute.batch_size]


def _trained(loaded: LoadedModel, texts: list[str], lora: Lora) -> float:
    """Return the tokens a second of AdamW steps, on all weights or on an adapter; nothing of it is kept."""
    batch = loaded.tokenizer(texts, return_tensors="pt", padding=True).to(loaded.model.device)
    batch.pop("token_type_ids", None)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    # At a learning rate of 0 the step costs the same and leaves the weights as they are.
    model = loaded.model
    if lora.rank:
        from peft import get_peft_model

        model = get_peft_model(model, adapter_config(lora, model, "training", seed=0))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)

    def step() -> None:
        model(**batch, labels=labels, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    seconds, _ = _timed(lambda: [step() for _ in range(N_STEPS)])
    return N_STEPS * int((labels != -100).sum()) / seconds


def _timed(work):
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result
