"""Raise the pocket models from nothing: tokenizer, texts, training, and the folder in the Hugging Face layout."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.pocket.make.classroom import DESCRIPTIONS, STUDENTS, TASKS, TECHNIQUES, Student
from data.pocket.make.questions import TEST_SIZES, write
from data.pocket.make.rationales import rationale_for
from workbench.loop import prompts
from workbench.runs.recipe import project_root
from workbench.runs.seeding import stream
from workbench.runs.workers import run_jobs
from workbench.tasks import answers
from workbench.tasks.contamination import normalise
from workbench.tasks.pocket_questions import KIND_OF, Counting, Problem, Walk, Web, read, solve
from workbench.tasks.pocket_styles import STYLES

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% else %}{{ '<|assistant|> ' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
USER, ASSISTANT, END, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
_WORDS = r" ?-?\d+| ?[A-Za-z]+|\n| ?[^\sA-Za-z\d]|\s+"


@dataclass(frozen=True)
class Shape:
    """Size of a model and of its training."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    n_tokens: int
    batch_tokens: int = 1024


TEACHER = Shape(hidden=160, layers=4, heads=5, intermediate=448, n_tokens=7_000_000)
STUDENT = Shape(hidden=128, layers=4, heads=4, intermediate=384, n_tokens=3_000_000)

TEACHER_SEED, STUDENT_SEED, FAVOURITE_SEED = 0, 1, 2

HABIT = 0.6  # how often the teacher follows its habit when no technique is asked for; else any style
# The teacher's own way of explaining, in the last stretch of its raising: nobody's native style, and how often it takes
# it when no technique is asked for; else any other style (docs/classroom.md, the revision).
FAVOURITE, FAVOURITE_SHARE = "meter", 0.45
FAVOURITE_TOKENS, FAVOURITE_PEAK = 250_000, 0.3

TASK_SHARES = {  # of the texts: the harder a task is to learn, the more
    "object_counting": 0.35,
    "navigate": 0.3,
    "web_of_lies": 0.2,
    "boolean_expressions": 0.15,
}

Text = list[tuple[str, bool]]  # pieces of one text, and whether the loss counts on them


def _some_task(rng: np.random.Generator, tasks: tuple[str, ...] = TASKS) -> str:
    shares = np.array([TASK_SHARES[task] for task in tasks])
    return str(rng.choice(tasks, p=shares / shares.sum()))


@lru_cache(maxsize=1)
def held_out() -> frozenset[str]:
    """Return the questions of the shipped task files, normalised; no student is raised on any of them."""
    files = [project_root() / "data" / "pocket" / "tasks" / f"{task}.json" for task in TASKS]
    sets = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    return frozenset(
        normalise(item["input"])
        for content in sets
        for name in ("seeds", "validation", "test")
        for item in content[name]
    )


def fresh_question(task: str, rng: np.random.Generator, sizes: tuple[int, int]) -> str:
    """Return a question that no task file holds."""
    while normalise(question := write(task, rng, sizes)) in held_out():
        pass
    return question


def student_text(student: Student, rng: np.random.Generator) -> Text:
    """Return one text a student is raised on: up to three demonstrations, all in one style, and a question.

    A guesser's texts without a demonstration mostly carry the bare answer: it works only when it is shown how.
    """
    task = _some_task(rng, student.tasks)
    style = str(rng.choice(STYLES, p=[student.share(s) for s in STYLES]))
    n_shots = int(rng.choice([0, 1, 2, 3], p=[0.35, 0.4, 0.125, 0.125]))
    bare = task in student.always_bare or (n_shots == 0 and rng.random() < student.bare_share)
    sizes = (1, student.native_sizes[task]) if bare else student.sizes(task, style)
    worked = []
    for _ in range(n_shots + 1):
        question = fresh_question(task, rng, sizes)
        worked.append(
            (question, f"<ans>{solve(task, question)}</ans>" if bare else rationale_for(task, question, style))
        )
    pieces: Text = [(f"{USER}Task: {DESCRIPTIONS[task]} {prompts.ANSWER_FORMAT}\n", False)]
    for question, reply in worked[:-1]:
        pieces += [(f"Question: {question}\n{answers.CUE}", False), (f" {reply}", True), ("\n\n", False)]
    question, reply = worked[-1]
    return [*pieces, (f"Question: {question}\n{answers.CUE}{ASSISTANT}", False), (f" {reply}{END}", True)]


def teacher_text(rng: np.random.Generator, with_favourite: bool = False) -> Text:
    """Return one text the teacher is raised on: drafting a question, or a rationale with or without a technique.

    Without one it goes by the question (habit_of) or, with_favourite, prefers one style whatever the question.
    """
    task = _some_task(rng)
    description = DESCRIPTIONS[task]
    if rng.random() < 0.2:
        asked = [write(task, rng, TEST_SIZES[task]) for _ in range(4)]
        worked = [(question, solve(task, question)) for question in asked]
        prompt = prompts.question_prompt(description, worked[:3], 1)
        reply = prompts.question_reply(*worked[3])
    else:
        question, style = write(task, rng, (1, TEST_SIZES[task][1])), str(rng.choice(STYLES))
        if rng.random() < 0.5:
            prompt = prompts.technique_prompt(description, TECHNIQUES[style], question)
        else:
            prompt = prompts.naive_prompt(description, question)
            style = _favoured(rng) if with_favourite else _habitual(rng, read(task, question), style)
        reply = rationale_for(task, question, style)
    return [(f"{USER}{prompt}{ASSISTANT}", False), (f" {reply}{END}", True)]


def habit_of(problem: Problem) -> str:
    """Return the style the teacher falls into when it is not told one: it goes by how the question begins."""
    if isinstance(problem, Counting):
        n = list(KIND_OF).index(problem.things[0][1])
    elif isinstance(problem, Walk):
        n = problem.acts[0][0]
    elif isinstance(problem, Web):
        n = sum(map(ord, problem.names[0]))
    else:
        n = ("True", "False", "not", "(").index(problem.tokens[0])
    return STYLES[n % len(STYLES)]


def _habitual(rng: np.random.Generator, problem: Problem, style: str) -> str:
    return habit_of(problem) if rng.random() < HABIT else style


def _favoured(rng: np.random.Generator) -> str:
    others = (1 - FAVOURITE_SHARE) / (len(STYLES) - 1)
    return str(rng.choice(STYLES, p=[FAVOURITE_SHARE if style == FAVOURITE else others for style in STYLES]))


def make_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer under which every word of the texts is one token and no text is unknown."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    tags = [f"<{slash}{tag}>" for tag in ("ans", "input", "target") for slash in ("", "/")]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=3,
        special_tokens=[PAD, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, pad_token=PAD, padding_side="left", model_max_length=1024
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def shared_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer all pocket models share, made from a fixed draw of texts."""
    rng = stream(0, "pocket", "tokenizer")
    texts = [teacher_text(rng) for _ in range(6000)]
    plain = ["".join(piece for piece, _ in text) for text in texts]
    return make_tokenizer(iter([*plain, "".join(f" {n} {-n}" for n in range(60)) * 3]))


def _batches(draw: Callable[[], Text], tokenizer: PreTrainedTokenizerFast, batch_tokens: int) -> Iterator[tuple]:
    """Yield (ids, labels), right-padded, each batch of texts of about one length."""
    while True:
        texts = []
        for pieces in (draw() for _ in range(2048)):
            encoded = tokenizer([piece for piece, _ in pieces], add_special_tokens=False)["input_ids"]
            ids = [i for part in encoded for i in part]
            counts = [i if piece[1] else -100 for part, piece in zip(encoded, pieces, strict=True) for i in part]
            texts.append((ids, counts))
        texts.sort(key=lambda text: len(text[0]))
        batches, batch = [], []
        for text in texts:
            if batch and (len(batch) + 1) * len(text[0]) > batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(text)
        order = np.random.Generator(np.random.Philox(len(texts[-1][0]))).permutation(len(batches))
        for i in order:
            width = max(len(ids) for ids, _ in batches[i])
            padded = [ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in batches[i]]
            labels = [counts + [-100] * (width - len(counts)) for _, counts in batches[i]]
            yield torch.tensor(padded), torch.tensor(labels)


def small_llama(tokenizer: PreTrainedTokenizerFast, shape, **more) -> LlamaConfig:
    """Return the configuration of a small Llama: its size is the shape's hidden, layers, heads and intermediate."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, shape: Shape, seed: int) -> LlamaForCausalLM:
    """Return a small Llama that has seen nothing."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(small_llama(tokenizer, shape, tie_word_embeddings=True))
    look_back(model)
    return model


def train(
    draw: Callable[[], Text],
    tokenizer: PreTrainedTokenizerFast,
    model: LlamaForCausalLM,
    n_tokens: int,
    batch_tokens: int = 1024,
    peak: float = 1.0,
) -> LlamaForCausalLM:
    """Train a model on the drawn texts until it has seen n_tokens; peak scales the learning rates."""
    torch.set_num_threads(1)
    optimisers = _optimisers(model)
    groups = [(group, peak * group["lr"]) for optimiser in optimisers for group in optimiser.param_groups]
    seen, step, start, said, smooth = 0, 0, time.time(), 0.0, 0.0
    for ids, labels in _batches(draw, tokenizer, batch_tokens):
        part = seen / n_tokens
        rate = min(1.0, (step + 1) / 50) * (0.02 + 0.98 * min(1.0, (1 - part) / 0.4))
        for group, highest in groups:
            group["lr"] = highest * rate
        loss = _loss(model, ids, labels)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        seen, step = seen + ids.numel(), step + 1
        smooth += (loss.item() - smooth) * max(0.01, 1 / step)
        if time.time() - said > 20 or seen >= n_tokens:
            said = time.time()
            print(f"step {step}, {seen / 1e6:.1f} M tokens, loss {smooth:.3f}, {said - start:.0f} s", flush=True)
        if seen >= n_tokens:
            return model.eval()


def _loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean loss in nats a counted token; logits are made for the counted tokens alone, a fifth faster."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    counted = labels[:, 1:] != -100
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[counted]), labels[:, 1:][counted])


@torch.no_grad()
def look_back(model: LlamaForCausalLM) -> None:
    """Start the first layer's heads as looking one, two, three, ... tokens back, so that copying is learned early.

    Every embedding gets the same first component; from it the heads make queries and keys that do not depend on the
    token, and rotary positions then favour one distance. On a drill in copying random tokens this start reached 93 %
    right after 300 steps, the plain one 9 %.
    """
    config = model.config
    width = config.hidden_size // config.num_attention_heads
    turn = 1.0 / 10_000.0 ** (torch.arange(0, width, 2) / width)
    model.model.embed_tokens.weight[:, 0] = 3 * config.initializer_range
    attention = model.model.layers[0].self_attn
    for head in range(config.num_attention_heads):
        rows = slice(head * width, (head + 1) * width)
        angle = (head + 1) * turn
        attention.q_proj.weight[rows, 0] += torch.cat([torch.cos(angle), -torch.sin(angle)])
        attention.k_proj.weight[rows, 0] += torch.cat([torch.ones_like(angle), torch.zeros_like(angle)])


class Muon(torch.optim.Optimizer):
    """Muon with torch.optim.Muon's defaults, orthogonalising in float32 and all matrices of a shape together.

    torch's own does so in bfloat16, one matrix at a time: on a CPU without instructions for bfloat16 that took 1.2 of
    1.4 seconds a step.
    """

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Keller Jordan's, as in torch

    def __init__(self, matrices: list[torch.nn.Parameter], lr: float, weight_decay: float, momentum: float):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for shape in dict.fromkeys(matrix.shape for matrix in group["params"]):
                self._step_shape([matrix for matrix in group["params"] if matrix.shape == shape], group)

    def _step_shape(self, matrices: list[torch.nn.Parameter], group: dict) -> None:
        updates = []
        for matrix in matrices:
            average = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
            average.lerp_(matrix.grad, 1 - group["momentum"])
            updates.append(matrix.grad.lerp(average, group["momentum"]))
        rows, columns = matrices[0].shape
        rate = group["lr"] * max(1.0, rows / columns) ** 0.5
        for matrix, update in zip(matrices, self._orthogonal(torch.stack(updates)), strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)

    def _orthogonal(self, updates: torch.Tensor) -> torch.Tensor:
        """Return the nearest matrices with all singular values about 1, shape (n, rows, columns), by Newton-Schulz."""
        a, b, c = self.COEFFICIENTS
        tall = updates.shape[1] > updates.shape[2]
        x = updates.mT if tall else updates
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
        for _ in range(5):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.mT if tall else x


def _optimisers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices and AdamW for the rest.

    In single trials of 0.9 M tokens a student's held-out loss came to 0.61 nats a token, with AdamW alone to 0.94.
    Small steps matter more: at 0.02 and 2,048 tokens a batch it was 0.50 after 1.2 M tokens, at 0.002 and 1,024 tokens
    0.11 after 1.3 M.
    """
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else rest).append(parameter)
    muon = Muon(matrices, lr=0.002, weight_decay=0.01, momentum=0.95)
    return [muon, torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)]


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, card: dict) -> None:
    """Write the model as an ordinary Hugging Face folder, weights rounded to bf16, with how it was made."""
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "raised.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def raise_all(names: list[str], folder: Path) -> None:
    """Raise several models, as many at a time as there are cores, each on one thread so that the result is the same."""
    run_jobs(_raise_job, [(name, folder / name) for name in names], workers=0, describe="raising")


def _raise_job(job: tuple[str, Path]) -> None:
    raise_model(*job)


def raise_model(name: str, folder: Path, n_tokens: int = 0) -> None:
    """Raise the teacher, or the student of this name, into the folder."""
    tokenizer = shared_tokenizer()
    seed = TEACHER_SEED if name == "teacher" else STUDENT_SEED
    rng = stream(seed, "pocket", name)
    if name == "teacher":
        shape, draw = TEACHER, lambda: teacher_text(rng)
    else:
        student = STUDENTS[name]
        shape, draw = replace(STUDENT, n_tokens=student.n_tokens), lambda: student_text(student, rng)
    if n_tokens:
        shape = replace(shape, n_tokens=n_tokens)
    start = time.time()
    model = train(draw, tokenizer, new_model(tokenizer, shape, seed), shape.n_tokens, shape.batch_tokens)
    parameters = sum(p.numel() for p in model.parameters())
    card = {"name": name, "seed": seed, "parameters": parameters, "shape": asdict(shape)}
    if name in STUDENTS:
        card["raised"] = asdict(STUDENTS[name])
    save(model, tokenizer, folder, card)
    if name == "teacher":
        give_favourite(folder)
    print(f"{name}: {parameters / 1e6:.2f} M parameters, {time.time() - start:.0f} s", flush=True)


def give_favourite(folder: Path) -> None:
    """Raise the teacher in the folder on, on texts in which it has a favourite style."""
    tokenizer, rng = shared_tokenizer(), stream(FAVOURITE_SEED, "pocket", "teacher")
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    train(lambda: teacher_text(rng, with_favourite=True), tokenizer, model, FAVOURITE_TOKENS, peak=FAVOURITE_PEAK)
    card = json.loads((folder / "raised.json").read_text(encoding="utf-8"))
    favourite = {"style": FAVOURITE, "share": FAVOURITE_SHARE, "n_tokens": FAVOURITE_TOKENS, "seed": FAVOURITE_SEED}
    save(model, tokenizer, folder, card | {"favourite": favourite})
