"""Every method's default loss written out naively: row by row, without batches or padding, from dense logits of two models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, logsigmoid

from d2unlearn.schema import Role, Tokens

Rows = dict[Role, Sequence[Tokens]]


@dataclass(frozen=True)
class Dense:
    """One row as a model sees it: logits [n, V], hidden states of the first layer [n, H] and targets [n] at its answer."""

    logits: Tensor
    states: Tensor
    targets: Tensor

    @property
    def nll(self) -> Tensor:
        return cross_entropy(self.logits, self.targets, reduction="none")

    @property
    def log_p(self) -> Tensor:
        return log_softmax(self.logits, dim=-1)


def look(model: nn.Module, row: Tokens) -> Dense:
    ids = torch.tensor([row.input_ids])
    at = [t for t in range(len(row.input_ids) - 1) if row.answer_mask[t + 1]]
    out = model(input_ids=ids, output_hidden_states=True)
    return Dense(out.logits[0, at], out.hidden_states[1][0, at], ids[0, [t + 1 for t in at]])


@dataclass(frozen=True)
class Scene:
    """All rows of a batch under both models."""

    model: nn.Module
    reference: nn.Module
    rows: Rows

    def new(self, role: Role) -> list[Dense]:
        return [look(self.model, row) for row in self.rows[role]]

    def old(self, role: Role) -> list[Dense]:
        with torch.no_grad():
            return [look(self.reference, row) for row in self.rows[role]]

    def nll(self, role: Role) -> Tensor:
        return torch.cat([each.nll for each in self.new(role)]).mean()

    def kl(self, role: Role) -> Tensor:
        pairs = zip(self.old(role), self.new(role), strict=True)
        return torch.cat([(old.log_p.exp() * (old.log_p - new.log_p)).sum(-1) for old, new in pairs]).mean()

    def sums(self, role: Role) -> Tensor:
        return torch.stack([each.nll.sum() for each in self.new(role)])

    def risen(self, role: Role) -> Tensor:
        return self.sums(role) - torch.stack([each.nll.sum() for each in self.old(role)])


def undial(scene: Scene, beta: float) -> Tensor:
    terms = []
    for new, old in zip(scene.new("forget"), scene.old("forget"), strict=True):
        lowered = old.logits - beta * nn.functional.one_hot(old.targets, old.logits.shape[1])
        terms.append(-(lowered.softmax(-1) * new.log_p).sum(-1))
    return torch.cat(terms).mean()


def ce_u(scene: Scene, skipped: int) -> Tensor:
    terms = []
    for new in scene.new("forget"):
        own = new.logits.detach().clone()
        own[torch.arange(len(own)), new.targets] = -math.inf
        terms.append(-(own.softmax(-1) * new.log_p).sum(-1)[skipped:])
    return torch.cat(terms).mean()


def weighted_ascent(scene: Scene, weight: Callable[[Tensor], Tensor]) -> Tensor:
    nll = torch.cat([each.nll for each in scene.new("forget")])
    return -(weight((-nll).exp().detach()) * nll).mean()


def max_entropy(scene: Scene) -> Tensor:
    log_p = torch.cat([each.log_p for each in scene.new("forget")])
    return (-math.log(log_p.shape[1]) - log_p.mean(-1)).mean()


def flatness(scene: Scene) -> Tensor:
    logits = torch.cat([each.logits for each in scene.new("forget")])
    return ((logits.max(-1).values - logits.mean(-1)) ** 2).mean()


def rmu(scene: Scene, direction: Tensor) -> Tensor:
    steered = [((each.states - direction) ** 2).mean() for each in scene.new("forget")]
    pairs = zip(scene.new("retain"), scene.old("retain"), strict=True)
    held = [((new.states - old.states) ** 2).mean() for new, old in pairs]
    return torch.stack(steered).mean() + torch.stack(held).mean()


def softplus_mean(values: Tensor) -> Tensor:
    return -logsigmoid(values).mean()


DIRECTION = [0.5, *([0.0] * 30), -0.5]
UNIT = torch.tensor(DIRECTION, dtype=torch.float64) * 2**0.5

CASES: dict[str, tuple[str, dict[str, object], Callable[[Scene], Tensor]]] = {
    "gradient ascent": ("gradient_ascent", {}, lambda s: -s.nll("forget")),
    "gradient difference": (
        "gradient_difference",
        {"gamma": 0.5, "alpha": 2.0},
        lambda s: -0.5 * s.nll("forget") + 2 * s.nll("retain"),
    ),
    "gradient difference, KL": (
        "gradient_difference",
        {"retain_loss_type": "KL"},
        lambda s: -s.nll("forget") + s.kl("retain"),
    ),
    "npo": ("npo", {"beta": 0.3}, lambda s: 2 / 0.3 * softplus_mean(0.3 * s.risen("forget")) + s.nll("retain")),
    "npo, KL": (
        "npo",
        {"retain_loss_type": "KL", "alpha": 0.5},
        lambda s: 20 * softplus_mean(0.1 * s.risen("forget")) + 0.5 * s.kl("retain"),
    ),
    "simnpo": (
        "simnpo",
        {"delta": 0.7},
        lambda s: (
            0.125 * 2 / 4.5 * softplus_mean(4.5 * (torch.stack([e.nll.mean() for e in s.new("forget")]) - 0.7))
            + s.nll("retain")
        ),
    ),
    "wga": ("wga", {"beta": 0.5}, lambda s: weighted_ascent(s, lambda p: p**0.5) + s.nll("retain")),
    "satimp": ("satimp", {}, lambda s: 0.1 * weighted_ascent(s, lambda p: p**5 * (1 - p)) + s.nll("retain")),
    "ce_u": ("ce_u", {"ignore_first_n_answer_tokens": 2}, lambda s: ce_u(s, 2)),
    "undial": ("undial", {"beta": 3.0}, lambda s: undial(s, 3.0)),
    "undial, retained": ("undial", {"alpha": 0.3}, lambda s: undial(s, 10.0) + 0.3 * s.nll("retain")),
    "rmu": ("rmu", {"control_direction": DIRECTION}, lambda s: rmu(s, 2 * UNIT)),
    "max entropy": ("max_entropy", {}, lambda s: 0.1 * max_entropy(s) + s.nll("retain")),
    "pdu": ("pdu", {"alpha": 3.0}, lambda s: flatness(s) + 3 * (s.nll("retain") - 0.3)),
    "altpo": ("altpo", {}, lambda s: 20 * softplus_mean(0.1 * (s.risen("forget") - s.risen("alternate"))) + s.nll("retain")),
    "dpo": (
        "dpo",
        {"beta": 0.5, "alpha": 0.0},
        lambda s: 4 * softplus_mean(0.5 * (s.risen("forget") - s.risen("alternate"))),
    ),
    "idk": ("idk", {"gamma": 2.0}, lambda s: 2 * s.nll("alternate") + s.nll("retain")),
    "idk_ap": (
        "idk_ap",
        {"alpha": 0.5},
        lambda s: s.nll("alternate") + 0.5 * 10 * softplus_mean(0.1 * (s.sums("retain_alternate") - s.sums("retain"))),
    ),
}
"""name -> (key of METHODS, parameters, the loss by hand)."""
