"""Short runs of every method on tiny models: rows, a trainer, a model folder with its data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import tiny_models
from d2unlearn import UnlearnConfig, UnlearnTrainer
from d2unlearn.methods import Method

FORGET = tiny_models.rows(1, 4)
RETAIN = tiny_models.rows(2, 7)
ALTERNATE = tiny_models.rows(3, 4)
RETAIN_ALTERNATE = tiny_models.rows(4, 7)


def trainer(folder: Path | str, model: nn.Module, method: Method, **changes: Any) -> UnlearnTrainer:
    """Two epochs of one step on all four forget rows. Keywords go to the trainer's configuration."""
    settings: dict[str, Any] = {
        "learning_rate": 1e-3,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "warmup_epochs": 0,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    peft_config = changes.pop("peft_config", None)
    return UnlearnTrainer(
        model,
        UnlearnConfig(str(folder), **{**settings, **changes}),
        method,
        FORGET,
        RETAIN,
        peft_config=peft_config,
        alternate_dataset=ALTERNATE if "alternate" in method.needs else None,
        retain_alternate_dataset=RETAIN_ALTERNATE if "retain_alternate" in method.needs else None,
    )


def step_gradient(made: UnlearnTrainer) -> dict[str, torch.Tensor]:
    """The gradient of the first optimizer step, accumulated over its micro-batches."""
    loader = made.get_train_dataloader()
    batches, _ = made.get_batch_samples(iter(loader), made.args.gradient_accumulation_steps, made.args.device)
    for batch in batches:
        made.compute_loss(made.model, batch).backward()
    return {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def fitting(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A tiny model with as many tokens as the tokenizer."""
    model = tiny_models.llama()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    torch.manual_seed(0)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.3)
    nn.init.normal_(model.get_output_embeddings().weight, std=0.3)
    return model


def model_and_data(folder: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str, str]:
    """A saved model, a file of rows to forget and one of rows to keep."""
    fitting(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    kept = ["France", "Germany", "Paris", "Berlin", "it", "he", "she", "a city"]
    rows = {
        "forget": [(f"What is the capital of {name}", f"it is {name} in Berlin") for name in ("he", "she", "it")],
        "retain": [(f"was {name} born in {place}", f"{name} was") for name in kept for place in ("Paris", "Berlin")],
    }
    for name, pairs in rows.items():
        lines = [json.dumps({"question": question, "answer": answer}) for question, answer in pairs]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "model"), str(folder / "forget.jsonl"), str(folder / "retain.jsonl")
