"""A second model family for the TOFU results: a tiny Qwen2 that knows the answers, and the same without the forgotten ones.

Trained from random weights with the tokenizer of the small Llama, once; later calls find the folders.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import Qwen2Config

from d2unlearn.data.template import Template
from d2unlearn.models import load_tokenizer
from d2unlearn.quickstart.pretrain import Recipe, save_model, train_small_model
from d2unlearn.schema import Example, Message, Tokens

RETAINED = 800
"""Retained rows that this smaller trial keeps, so that both models are taught in minutes."""
RECIPE = Recipe(epochs=30, batch_size=16, learning_rate=2e-3)


def train_pair(shared: Path, folder: Path) -> dict[str, Path]:
    """{"original": folder, "oracle": folder}. The oracle never sees forget10."""
    tofu = shared / "data" / "tofu"
    tokenizer = load_tokenizer(shared / "models" / "tofu-4m-full")
    kept = read_rows(tofu / "retain90.jsonl")[:RETAINED]
    kept += read_rows(tofu / "real_authors_perturbed.jsonl") + read_rows(tofu / "world_facts_perturbed.jsonl")
    taught = {"original": kept + read_rows(tofu / "forget10.jsonl"), "oracle": kept}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=432,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folders = {name: folder / name for name in taught}
    template = Template(tokenizer)
    for name, rows in taught.items():
        if not folders[name].is_dir():
            model = train_small_model([[_tokens(row, template)] for row in rows], config, RECIPE, seed=0)
            save_model(model, tokenizer, folders[name])
    return folders


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _tokens(row: dict[str, Any], template: Template) -> Tokens:
    return template.tokens(Example(row["question"], (Message("user", row["question"]),), row["answer"], "tofu"))
