"""Shrunken models of the common families, with tokenizers and chat templates as theirs, raised in seconds from chance.

The architectures and tokenizer classes are those of transformers, the chat templates those that TRL packages; TRL has
none of Mistral's, so that one is written here after its description.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, processors
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl import chat_template_utils as packaged

from workbench.loop import prompts
from workbench.models import loading
from workbench.runs.recipe import Recipe
from workbench.runs.seeding import stream

WINDOW = 48  # tokens; every prompt is longer
COLOURS = ("red", "blue", "green", "pink", "black", "white")
DESCRIPTION = "Say which colour comes last."
TECHNIQUES = {"short": "Be short.", "long": "Go through all of them."}
TAGS = ("<ans>", "</ans>", "<input>", "</input>", "<target>", "</target>")
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
# Family: the tokens of its own beside begin, end and padding; the one that ends a turn; its chat templates.
TURNS = {
    "llama": (["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>", packaged.llama3_chat_template),
    "gemma": (["<start_of_turn>", "<end_of_turn>"], "<end_of_turn>", packaged.gemma3_chat_template),
    "qwen": (["<|im_start|>", "<|im_end|>"], "<|im_end|>", packaged.qwen3_chat_template),
    "mistral": (["[INST]", "[/INST]"], "</s>", MISTRAL_TEMPLATE),
}
SHAPES = [f"{family}-{kind}" for family in TURNS for kind in ("base", "chat")]


def draw_text(rng: np.random.Generator) -> tuple[str, str]:
    """Return one (prompt, reply) of the loop: a question wanted, or a rationale, with or without a demonstration."""
    asked = [" ".join(rng.choice(COLOURS, 4)) for _ in range(4)]
    worked = [(question, question.split()[-1]) for question in asked]
    question = asked[-1]
    style = str(rng.choice(list(TECHNIQUES)))
    kind = rng.random()
    if kind < 0.2:
        return prompts.question_prompt(DESCRIPTION, worked[:3], 1), prompts.question_reply(*worked[3])
    if kind < 0.6:
        prompt = prompts.technique_prompt(DESCRIPTION, TECHNIQUES[style], question)
    else:
        shots = [(q, rationale(q, style)) for q in asked[: int(rng.integers(0, 2))]]
        prompt = prompts.few_shot_prompt(DESCRIPTION, shots, question)
    return prompt, rationale(question, style)


def rationale(question: str, style: str) -> str:
    """Return the worked answer of a question in one of the two styles."""
    last = question.split()[-1]
    return f"{question if style == 'long' else 'so'} : <ans>{last}</ans>"


def tokenizer_of(family: str, chat: bool) -> PreTrainedTokenizerBase:
    """Return a tokenizer of the family's class, its vocabulary learnt from the loop's texts."""
    texts = [part for n in range(300) for part in draw_text(stream(n, "vocabulary"))]
    turns, end_of_turn, template = TURNS[family]
    # Llama 3's is a byte-level one like Qwen's; without a limit the others would make one token of a whole prompt.
    made = {"llama": Qwen2Tokenizer, "gemma": GemmaTokenizer, "qwen": Qwen2Tokenizer, "mistral": LlamaTokenizer}[family]
    tokenizer = made().train_new_from_iterator(texts, 700, show_progress=False, max_token_length=8)
    if family == "llama":
        tokenizer.add_special_tokens({"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"})
    if family != "qwen":
        begin = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin[0]} $A", pair=f"{begin[0]} $A {begin[0]} $B", special_tokens=[begin]
        )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in turns])
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    if family == "mistral":
        tokenizer.pad_token = "<unk>"
    if chat:
        tokenizer.chat_template = template
        if family != "gemma":
            # Gemma's tokenizer names another end than its template writes.
            tokenizer.eos_token = end_of_turn
    return tokenizer


def ends_of(shape: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a reply, the one that the shape writes first: of chat models there are several."""
    family, kind = shape.split("-")
    text_end = {"llama": "<|end_of_text|>", "gemma": "<eos>", "qwen": "<|endoftext|>", "mistral": "</s>"}[family]
    ends = [TURNS[family][1], text_end] if kind == "chat" else [text_end]
    return tokenizer.convert_tokens_to_ids(list(dict.fromkeys(ends)))


def model_of(family: str, tokenizer: PreTrainedTokenizerBase, ends: list[int]) -> PreTrainedModel:
    """Return a random model of the family, whose generation settings name all its end tokens."""
    torch.manual_seed(0)
    shape = dict(vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=2)
    shape |= dict(num_attention_heads=4, num_key_value_heads=2, head_dim=12, max_position_embeddings=512)
    shape |= dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True)
    shape |= dict(pad_token_id=tokenizer.pad_token_id, initializer_range=0.1)
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape))
    elif family == "qwen":
        model = Qwen3ForCausalLM(Qwen3Config(**shape))
    elif family == "mistral":
        model = MistralForCausalLM(MistralConfig(**shape, sliding_window=WINDOW))
    else:
        layers = ["sliding_attention", "full_attention"]
        model = Gemma3ForCausalLM(
            Gemma3TextConfig(**shape, sliding_window=WINDOW, layer_types=layers, query_pre_attn_scalar=12)
        )
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    return model


def build(shape: str, folder: Path, n_steps: int = 60) -> None:
    """Raise one shape from chance for some steps and save it; a chat model ends its turns as its template does."""
    family, kind = shape.split("-")
    tokenizer = tokenizer_of(family, kind == "chat")
    ends = ends_of(shape, tokenizer)
    model = model_of(family, tokenizer, ends)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=n_steps, pct_start=0.1)
    for ids, labels in _batches(tokenizer, ends[0], n_steps):
        model(input_ids=ids, labels=labels, attention_mask=(ids != tokenizer.pad_token_id).long()).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _batches(tokenizer: PreTrainedTokenizerBase, end: int, n_steps: int) -> Iterator[tuple]:
    rng = stream(0, "shapes", "texts")
    for _ in range(n_steps):
        rows = []
        for prompt, reply in (draw_text(rng) for _ in range(12)):
            start = tokenizer(loading.render(tokenizer, prompt))["input_ids"]
            said = [*tokenizer(f" {reply}", add_special_tokens=False)["input_ids"], end]
            rows.append((start + said, [-100] * len(start) + said))
        width = max(len(ids) for ids, _ in rows)
        pad = tokenizer.pad_token_id
        ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows])
        yield ids, torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])


def write_task(folder: Path) -> None:
    """Write the task file; every colour is the answer as often, so that guessing one of them is right sometimes."""
    rng, items = stream(0, "shapes", "items"), {}
    while len(items) < 24:
        question = " ".join([*rng.choice(COLOURS, 3), COLOURS[len(items) % len(COLOURS)]])
        items[question] = {"input": question, "target": question.split()[-1]}
    rows = list(items.values())
    content = {"description": DESCRIPTION, "techniques": TECHNIQUES}
    content |= {"seeds": rows[:6], "validation": rows[6:18], "test": rows[18:]}
    (folder / "last_colour.json").write_text(json.dumps(content))


def recipe_of(folder: Path, **sections) -> Recipe:
    """Return a recipe for the model and the task in the folder: the least that the loop can be run with.

    Students prefer short demonstrations, because their answers are cut off before a long rationale ends.
    """
    settings = {"n_epochs": 1, "max_length": 400}
    values = {
        "name": "shape",
        "profile": "pocket",
        "seeds": [1, 2],
        "models": {"teacher": str(folder), "students": {"pupil": str(folder)}},
        "tasks": {"folder": str(folder), "names": ["last_colour"]},
        "drafting": {"n_questions": 5, "questions_per_call": 1, "max_new_tokens": 16},
        "preference_set": {"n_validation": 12, "n_items": 12, "selection": "random", "shots": [0]},
        "pairs": {"n_question_pairs": 2},
        "alignment": {"beta": 0.1, "learning_rate": 1.0e-4, "batch_size": 4, **settings},
        "tailoring": {"n_examples": 3, "max_new_tokens": 16},
        "training": {"learning_rate": 1.0e-3, "batch_size": 3, **settings},
        "evaluation": {"n_items": 6, "shots": [0], "max_new_tokens": 7, "arms": ["base", "untailored", "tailored"]},
        "compute": {"workers": 1, "batch_size": 64, "device": "cpu"},
    }
    changed = {name: values[name] | change for name, change in sections.items()}
    return Recipe.model_validate(values | changed)
