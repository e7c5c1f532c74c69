"""Reward models so small that they are made in a moment: they know nothing, and give everything a number."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification


def write_reward_model(folder: Path, like: Path, seed: int = 0, labels: int = 1) -> Path:
    """Write a random reward model with the tokenizer of another model."""
    tokenizer = AutoTokenizer.from_pretrained(like)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=512,
        num_labels=labels,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight, std=5.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
