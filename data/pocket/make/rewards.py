"""Raise the pocket reward models on right against wrong answers that pocket models wrote to questions of the generator.

The teacher begins as a pocket student that works in all four styles and sees many questions; the student begins from
nothing, is a tenth of its size and sees few. No question of a task file is among them, and no evaluation item.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast

from data.pocket.make.classroom import DESCRIPTIONS
from data.pocket.make.questions import TEST_SIZES
from data.pocket.make.raising import fresh_question, save, shared_tokenizer, small_llama
from data.pocket.make.rationales import rationale_for
from workbench.loop import prompts
from workbench.models.engine import Decoding, Request
from workbench.models.transformers_engine import TransformersEngine
from workbench.models.trl import encode
from workbench.runs.recipe import project_root
from workbench.runs.seeding import stream
from workbench.signals.reward_models import logits_of
from workbench.tasks.answers import Answers
from workbench.tasks.pocket_questions import solve
from workbench.tasks.pocket_styles import STYLES

REWARD_SEED, HELD_OUT_SEED = 3, 4
TASKS = ("object_counting", "navigate")
WRITERS = ("no-preference", "tally-weak", "story-strong")
N_BARE, N_WORKED = 1, 3  # samples of each question that a model wrote plainly, and after a demonstration
N_HELD_OUT = 60
MAX_NEW_TOKENS = 120


@dataclass(frozen=True)
class Shape:
    """Size of a reward model and of its training; begun names the pocket model whose body it begins as."""

    begun: str
    n_questions: int
    n_epochs: int
    learning_rate: float
    hidden: int = 48
    layers: int = 2
    heads: int = 3
    intermediate: int = 128
    batch_pairs: int = 16


SHAPES = {
    "reward-teacher": Shape("no-preference", 400, 3, 5e-4),
    "reward-student": Shape("", 60, 4, 1e-3),
}

Pair = tuple[str, str, str]  # what was asked, a right and a wrong answer to it


def preferences(n: int, seed: int, folder: Path) -> list[Pair]:
    """Return pairs of a right and a wrong answer to n questions of each task, sampled at temperature 1."""
    writers = [TransformersEngine(str(folder / name), "float32", "cpu", 128) for name in WRITERS]
    asked: list[list[tuple[Request, str, str, str]]] = [[] for _ in writers]
    for task in TASKS:
        rng = stream(seed, "pocket", "preferences", task)
        for n_question in range(n):
            shown, question = (fresh_question(task, rng, TEST_SIZES[task]) for _ in range(2))
            who, style = n_question % len(writers), str(rng.choice(STYLES))
            plain = prompts.naive_prompt(DESCRIPTIONS[task], question)
            worked = prompts.few_shot_prompt(DESCRIPTIONS[task], [(shown, rationale_for(task, shown, style))], question)
            for sample, prompt in enumerate([plain] * N_BARE + [worked] * N_WORKED):
                request = Request(writers[who].render(prompt), stream=f"{task}/{n_question}/{sample}")
                asked[who].append((request, task, question, plain))
    right: dict[str, dict[str, None]] = {}
    wrong: dict[str, dict[str, None]] = {}
    for writer, own in zip(writers, asked, strict=True):
        written = writer.generate([request for request, *_ in own], Decoding(MAX_NEW_TOKENS, 1.0), seed)
        for (_, task, question, plain), completion in zip(own, written, strict=True):
            same = Answers().same(Answers().read(completion.text), solve(task, question))
            (right if same else wrong).setdefault(plain, {})[completion.text] = None
    pairs = [(plain, good, bad) for plain, goods in right.items() for good in goods for bad in wrong.get(plain, {})]
    order = stream(seed, "pocket", "preferences").permutation(len(pairs))
    return [pairs[place] for place in order]


def begin(shape: Shape, tokenizer: PreTrainedTokenizerFast, folder: Path) -> LlamaForSequenceClassification:
    """Return the reward model before its training: a body that was raised or new, and a new head."""
    torch.manual_seed(REWARD_SEED)
    if shape.begun:
        path = folder / shape.begun
        model = LlamaForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
    else:
        model = LlamaForSequenceClassification(small_llama(tokenizer, shape, num_labels=1))
    # In transformers the head is drawn when the folder is read, which is not the same from version to version.
    torch.nn.init.zeros_(model.score.weight)
    return model


def rewards(
    model: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast, texts: Sequence[tuple[str, str]]
) -> torch.Tensor:
    """Return the reward of each (what was asked, answer)."""
    encoded = encode(tokenizer, [asked for asked, _ in texts], [answer for _, answer in texts])
    return logits_of(model, [start + end for start, end in encoded])


def train(model, tokenizer, pairs: list[Pair], shape: Shape) -> None:
    """Train on the pairs by the logistic loss of Bradley and Terry."""
    torch.set_num_threads(1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=shape.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    rng, start, said = stream(REWARD_SEED, "pocket", "order"), time.time(), 0.0
    n_batches = len(pairs) // shape.batch_pairs
    n_steps, step = shape.n_epochs * n_batches, 0
    for _ in range(shape.n_epochs):
        order = rng.permutation(len(pairs))
        for at in range(n_batches):
            batch = [pairs[place] for place in order[at * shape.batch_pairs : (at + 1) * shape.batch_pairs]]
            optimiser.param_groups[0]["lr"] = shape.learning_rate * min(1.0, (step + 1) / 30, 1.1 - step / n_steps)
            texts = [(asked, right) for asked, right, _ in batch] + [(asked, wrong) for asked, _, wrong in batch]
            right, wrong = rewards(model, tokenizer, texts).chunk(2)
            loss = -torch.nn.functional.logsigmoid(right - wrong).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            step += 1
            if time.time() - said > 20 or step == n_steps:
                said = time.time()
                print(f"step {step} of {n_steps}, loss {loss.item():.3f}, {said - start:.0f} s", flush=True)


@torch.no_grad()
def pair_accuracy(model, tokenizer, pairs: list[Pair]) -> dict[str, float]:
    """Return the share of pairs whose right answer gets more, of each task."""
    shares = {}
    for task in TASKS:
        own = [pair for pair in pairs if DESCRIPTIONS[task] in pair[0]]
        gaps = [
            rewards(model, tokenizer, [(asked, right), (asked, wrong)]).diff().item() < 0 for asked, right, wrong in own
        ]
        shares[task] = round(float(np.mean(gaps)), 3)
    return shares


def raise_rewards(names: Sequence[str], folder: Path) -> None:
    """Raise the reward models of these names into the folder, beside the models that write for them."""
    pocket = project_root() / "data" / "pocket"
    held_out = preferences(N_HELD_OUT, HELD_OUT_SEED, pocket)
    for name in names:
        start, shape, tokenizer = time.time(), SHAPES[name], shared_tokenizer()
        pairs = preferences(shape.n_questions, REWARD_SEED, pocket)
        model = begin(shape, tokenizer, pocket)
        train(model, tokenizer, pairs, shape)
        model.eval().to(torch.bfloat16).to(torch.float32)  # as it will be read
        accuracy = pair_accuracy(model, tokenizer, held_out)
        parameters = sum(p.numel() for p in model.parameters())
        card = {"name": name, "seed": REWARD_SEED, "parameters": parameters, "shape": asdict(shape)}
        card |= {"pairs": len(pairs), "held_out_pairs": len(held_out), "held_out_accuracy": accuracy}
        save(model, tokenizer, folder / name, card)
        print(json.dumps(card), f"{time.time() - start:.0f} s", flush=True)
