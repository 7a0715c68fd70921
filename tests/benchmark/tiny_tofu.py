"""A TOFU of a few made-up rows, and a tiny model that was taught some of them: what it says is right, wrong, and in between."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import tiny_models
from d2unlearn.data.batching import pad_tokens
from d2unlearn.data.template import Template
from d2unlearn.data.tofu import read_tofu

WORDS = ["he", "she", "was", "born", "in", "a", "city", "Paris", "Berlin", "France", "Germany", "it", "is", "the", "of"]
ROWS = {"forget10_perturbed": 6, "retain_perturbed": 5, "real_authors_perturbed": 4, "world_facts_perturbed": 4, "holdout10": 5}
WRONG = 3
GENERAL = ("real_authors_perturbed", "world_facts_perturbed")


def write(folder: Path, seed: int = 0) -> Path:
    """`<split>.jsonl` files of TOFU's schema. Wrong answers often begin like the right one, as in TOFU."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in ROWS.items():
        rows = [_row(rng, split) for _ in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def _row(rng: np.random.Generator, split: str) -> dict[str, object]:
    row: dict[str, object] = {"question": _sentence(rng, "What is", 3, 7), "answer": _sentence(rng, "it", 2, 9)}
    if split == "holdout10":
        return row
    right = str(row["answer"]) if split in GENERAL else _sentence(rng, "he", 2, 9)
    words = right.split()
    row["perturbed_answer"] = [" ".join([*words[: i + 1], *_words(rng, 2, 5)]) for i in range(WRONG)]
    if split not in GENERAL:
        row |= {"paraphrased_answer": right, "paraphrased_question": _sentence(rng, "What was", 3, 7)}
    return row


def _words(rng: np.random.Generator, low: int, high: int) -> list[str]:
    return [str(word) for word in rng.choice(WORDS, size=rng.integers(low, high))]


def _sentence(rng: np.random.Generator, start: str, low: int, high: int) -> str:
    return " ".join([start, *_words(rng, low, high)])


def taught(
    tokenizer: PreTrainedTokenizerFast, folder: Path, splits: Sequence[str], *, steps: int, seed: int = 0
) -> LlamaForCausalLM:
    """A tiny Llama after some steps on the splits' questions and answers."""
    model = tiny_models.llama(seed=seed, vocabulary=len(tokenizer))
    rows = [Template(tokenizer).tokens(example) for split in splits for example in read_tofu(split, folder)]
    batch = pad_tokens(rows, pad_id=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
        optimizer.step()
    return model.eval()
