"""Short training runs of tiny models, and the same run written out naively."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

import tiny_models
from d2unlearn import UnlearnConfig, UnlearnTrainer
from d2unlearn.config import UnlearnSettings
from d2unlearn.methods import METHODS, Method
from d2unlearn.schema import Tokens
from d2unlearn.training.sampling import PairPlan

FORGET = tiny_models.rows(1, 8)
RETAIN = tiny_models.rows(2, 13)
EUA = METHODS["eua"](gamma=0.5)


def config(folder: Path | str, **changes: Any) -> UnlearnConfig:
    """Two epochs of two steps, 4 rows each, on the CPU; nothing is evaluated or saved unless asked for."""
    settings: dict[str, Any] = {
        "learning_rate": 1e-3,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "warmup_epochs": 0.5,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return UnlearnConfig(str(folder), **{**settings, **changes})


def trainer(folder: Path | str, model: nn.Module, *, method: Method = EUA, **changes: Any) -> UnlearnTrainer:
    """A trainer on FORGET and RETAIN. Keywords that `UnlearnTrainer` takes go there, all others to `config`."""
    own = {"forget_dataset", "retain_dataset", "eval_dataset", "processing_class", "peft_config", "callbacks"}
    given = {"forget_dataset": FORGET, "retain_dataset": RETAIN} | {k: v for k, v in changes.items() if k in own}
    return UnlearnTrainer(model, config(folder, **{k: v for k, v in changes.items() if k not in own}), method, **given)


def trained(folder: Path | str, model: nn.Module, **changes: Any) -> dict[str, Tensor]:
    """The weights after training, by name."""
    made = trainer(folder, model, **changes)
    made.train()
    return weights(made.model)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Largest difference of any weight."""
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def moved(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights that differ."""
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def silent(row: Tokens) -> Tokens:
    return Tokens(row.example_id, row.input_ids, (False,) * len(row.input_ids))


def micro_batches(made: UnlearnTrainer) -> list[dict[str, Any]]:
    """The micro-batches of the first optimizer step, as the training loop gets them."""
    loader = made.get_train_dataloader()
    return made.get_batch_samples(iter(loader), made.args.gradient_accumulation_steps, made.args.device)[0]


def step_gradient(made: UnlearnTrainer) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of the first optimizer step."""
    made.model.train()
    loss = sum(made.compute_loss(made.model, batch) for batch in micro_batches(made))
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **changes)


WORDS = ["What", "is", "the", "capital", "of", "France", "Paris", "Berlin", "it", "he", "she", "was", "born", "in", "a", "city"]


def write_rows(path: Path, seed: int, n: int) -> Path:
    rng = np.random.default_rng(seed)
    rows = [{"question": " ".join(rng.choice(WORDS, 6)), "answer": " ".join(rng.choice(WORDS, 5))} for _ in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def unlearn_settings(folder: Path, model: PreTrainedModel | None = None) -> UnlearnSettings:
    """A model with a tokenizer and two files in `folder`, and settings for four epochs of two steps on them.

    The learning rate is large enough for the best checkpoint not to be the first.
    """
    tokenizer = tiny_models.tokenizer()
    model = tiny_models.llama() if model is None else model
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return UnlearnSettings(
        model=str(folder / "model"),
        forget=str(write_rows(folder / "forget.jsonl", 0, 8)),
        retain=str(write_rows(folder / "retain.jsonl", 1, 24)),
        output=str(folder / "artifact"),
        learning_rate=1e-2,
        epochs=4,
        batch_size=4,
        accumulation=1,
    )


def naive_eua(
    model: nn.Module, reference: nn.Module, forget: Sequence[Tokens], retain: Sequence[Tokens], *, ratio: float, gamma: float
) -> Tensor:
    """EUA (T 1, alpha 1) row by row, without batches or padding, from dense logits and a second model in memory."""
    forget_terms, retain_terms, nlls = [], [], []
    for row in forget:
        energy, _, m_out, _ = positions(model, reference, row, ratio)
        forget_terms.append((m_out - energy).relu() ** 2)
    for row in retain:
        energy, m_in, _, nll = positions(model, reference, row, ratio)
        retain_terms.append((energy - m_in).relu() ** 2)
        nlls.append(nll)
    return gamma * (torch.cat(retain_terms).mean() + torch.cat(forget_terms).mean()) + torch.cat(nlls).mean()


def positions(model: nn.Module, reference: nn.Module, row: Tokens, ratio: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(energy, m_in, m_out, NLL) at the positions that predict one row's answer, from dense logits."""
    ids = torch.tensor([row.input_ids])
    at = [t for t in range(len(row.input_ids) - 1) if row.answer_mask[t + 1]]
    logits = model(input_ids=ids).logits[0, at].float()
    with torch.no_grad():
        old = reference(input_ids=ids).logits[0, at].float()
    k = math.floor(ratio * old.shape[1])
    order = old.sort(dim=-1, descending=True).values
    zeros = torch.zeros(len(at), old.shape[1] - k)
    m_in = -torch.cat([order[:, :k], zeros], dim=1).logsumexp(-1)
    m_out = -torch.cat([order[:, -k:], zeros], dim=1).logsumexp(-1)
    targets = ids[0, [t + 1 for t in at]]
    return -logits.logsumexp(-1), m_in, m_out, nn.functional.cross_entropy(logits, targets, reduction="none")


def naively_trained(model: PreTrainedModel, *, rate: float, epochs: int, effective: int, warmup: int) -> dict[str, Tensor]:
    """AdamW with weight decay 0.01 on matrices, a linear warm-up and decay, gradients clipped at norm 1: the recipe by hand."""
    reference = copy.deepcopy(model).eval()
    model.train()
    decayed = [p for name, p in model.named_parameters() if "norm" not in name and "bias" not in name]
    others = [p for name, p in model.named_parameters() if "norm" in name or "bias" in name]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], lr=rate)
    plan = PairPlan(len(FORGET), len(RETAIN), effective_batch=effective, seed=42)
    total = epochs * len(plan) // effective
    for step in range(total):
        pairs = [plan[step * effective + i] for i in range(effective)]
        forget, retain = [FORGET[p.forget] for p in pairs], [RETAIN[p.retain] for p in pairs]
        loss = naive_eua(model, reference, forget, retain, ratio=EUA.ratio, gamma=EUA.gamma)  # type: ignore[attr-defined]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        share = step / warmup if step < warmup else (total - step) / (total - warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        optimizer.step()
    return weights(model)
