"""What the models of a recipe do on this machine: tried out on one batch of its questions before anything runs."""

import time

import torch

from workbench import prompts
from workbench.engines import TransformersEngine
from workbench.generation import Decoding, Request
from workbench.models import LoadedModel, load, render
from workbench.pool import one_thread
from workbench.recipe import Recipe, project_root
from workbench.tasks import load_tasks
from workbench.workload import Rates

N_STEPS = 3  # optimiser steps that are timed


def measure(recipe: Recipe) -> dict[str, Rates]:
    """Return what one process does with every model of the recipe that is at hand, by folder or id.

    A full batch is timed, since a smaller one would promise less than a stage reaches. Completions are greedy answers
    to validation questions; demonstrations and questions the teacher writes are of like length.

    Raises:
        ModelError: If a model's folder is there but cannot be loaded.
    """
    refs = dict.fromkeys([recipe.models.teacher, *recipe.models.students.values()])
    with one_thread():
        return {ref: _tried(recipe, ref) for ref in refs if (project_root() / ref).is_dir()}


def _tried(recipe: Recipe, ref: str) -> Rates:
    loaded = load(ref, recipe.models.dtype, recipe.compute.device)
    engine = TransformersEngine(loaded, batch_size=recipe.compute.batch_size)
    requests = [Request(render(loaded.tokenizer, prompt)) for prompt in _questions(recipe)]
    longest = recipe.drafting.max_new_tokens if ref == recipe.models.teacher else recipe.evaluation.max_new_tokens
    n_read = sum(len(loaded.tokenizer(request.prompt)["input_ids"]) for request in requests)
    engine.generate(requests[:2], Decoding(2))
    reading, _ = _timed(lambda: engine.generate(requests, Decoding(1)))
    both, written = _timed(lambda: engine.generate(requests, Decoding(longest)))
    n_new = sum(completion.n_tokens for completion in written)
    texts = [request.prompt + completion.text for request, completion in zip(requests, written, strict=True)]
    return Rates(
        new=max(n_new - len(requests), 1) / max(both - reading, 1e-9),
        read=n_read / reading,
        trained=_trained(loaded, texts[: recipe.training.batch_size]),
        completion=n_new / len(requests),
    )


def _questions(recipe: Recipe) -> list[str]:
    """Return prompts of the recipe's validation questions, one batch at most, from all tasks alike."""
    columns = [
        [prompts.naive_prompt(task.description, question) for question in task.validation["question"]]
        for task in load_tasks(recipe).values()
    ]
    dealt = [one for row in zip(*columns, strict=False) for one in row]
    return list(dict.fromkeys(dealt))[: recipe.compute.batch_size]


def _trained(loaded: LoadedModel, texts: list[str]) -> float:
    """Return the tokens a second of AdamW steps on all weights; nothing of it is kept."""
    batch = loaded.tokenizer(texts, return_tensors="pt", padding=True).to(loaded.model.device)
    batch.pop("token_type_ids", None)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    # At a learning rate of 0 the step costs the same and leaves the weights as they are.
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=0.0, weight_decay=0.0)

    def step() -> None:
        loaded.model(**batch, labels=labels, use_cache=False).loss.backward()
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
