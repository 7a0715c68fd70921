"""Training against an attacker who goes on all the while: its lives, a step of both, and a killed run that goes on.

Everything drawn is a function of the seed and the step. In memory at once: the original, and model and attacked copy, each with
its gradient and AdamW's two moments.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from d2unlearn.data.batching import pad_tokens
from d2unlearn.errors import ConfigError
from d2unlearn.fine_tuning import batch_order, fine_tuning_step
from d2unlearn.head import head_of
from d2unlearn.methods import reference_batch_values, seen_by
from d2unlearn.methods.base import Hardening
from d2unlearn.observation import Batch, causal_model, observe
from d2unlearn.quantities import Nll
from d2unlearn.runtime import atomic_path, drawing_from, progress, say
from d2unlearn.schema import Role, Tokens
from d2unlearn.training.deepening import DeepeningRows, pace, read_state
from d2unlearn.training.ngram import ngram_model

_ROWS = 8
"""Of each kind at once; half of the retained ones are self-written where there are any."""
_SAVE_EVERY = 50


class Life(NamedTuple):
    """One attacker's: the steps from `start` to before `end`, AdamW's learning rate as a factor of the run's, and its rows."""

    start: int
    end: int
    rate: float
    given: tuple[int, ...]
    others: tuple[int, ...]


def attacker_lives(plan: Hardening, groups: Sequence[str | None], seed: int) -> list[Life]:
    """The attackers of all steps, one after another. groups: of each forget row, whose indices `given` and `others` are.

    Half of the time whole groups are given, drawn until they hold the share; without groups always drawn rows. Raises
    `ConfigError` for a single row.
    """
    if len(groups) < 2:
        raise ConfigError(["training against an attacker needs two rows to forget: leave hardening_steps at 0"])
    rng, found, at = np.random.default_rng([seed, 6]), list[Life](), 0
    low, high = (math.log(rate) for rate in plan.attack_rates)
    count = min(max(1, round(plan.share * len(groups))), len(groups) - 1)
    while at < plan.steps:
        end = min(at + int(rng.integers(*plan.lives, endpoint=True)), plan.steps)
        rate = math.exp(rng.uniform(low, high))
        whole = bool(rng.integers(2)) and None not in groups
        order = _by_group(groups, rng) if whole else rng.permutation(len(groups)).tolist()
        found.append(Life(at, end, rate, tuple(order[:count]), tuple(order[count:])))
        at = end
    return found


def _by_group(groups: Sequence[str | None], rng: np.random.Generator) -> list[int]:
    """All rows, group by group; groups, and the rows of each, in drawn order."""
    places = {name: place for place, name in enumerate(rng.permutation(sorted({str(group) for group in groups})).tolist())}
    return sorted(rng.permutation(len(groups)).tolist(), key=lambda index: places[str(groups[index])])


def above_cap(nll: Tensor, caps: Tensor) -> Tensor:
    """mean relu(log p - cap)^2, zero for no tokens. nll, caps: [N], nats."""
    return (-nll - caps).relu().square().sum() / max(len(nll), 1)


@dataclass(frozen=True)
class Hardener:
    """One run of the phase. groups: of the forget rows; rate: the run's learning rate; state: its file, None: nowhere."""

    model: nn.Module
    original: nn.Module
    plan: Hardening
    rows: DeepeningRows
    groups: Sequence[str | None]
    rate: float
    seed: int
    state: Path | None = None
    vocab_rows: int | None = None

    def run(self) -> None:
        """Change the model in place."""
        self.original.eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(_trained(self.model))
        at, attacker = self._taken_up(optimizer)
        lives, batches, caps = attacker_lives(self.plan, self.groups, self.seed), self._batches(), self._caps()
        for step in progress(range(at, self.plan.steps), "training against an attacker", total=self.plan.steps - at):
            life = next(life for life in lives if life.start <= step < life.end)
            if attacker is None or life.start == step:
                attacker = self._attacker(life)
            optimizer.param_groups[0]["lr"] = self.rate * self.plan.rate * pace(step, self.plan.steps)
            with drawing_from(self.seed + step, next(self.model.parameters()).device), torch.enable_grad():
                self._step(attacker, optimizer, life, step, batches, caps)
            if (step + 1) % _SAVE_EVERY == 0 or step + 1 == self.plan.steps:
                self._keep(step + 1, optimizer, attacker)
        self.model.eval()

    def _attacker(self, life: Life) -> tuple[nn.Module, torch.optim.Optimizer]:
        copied = copy.deepcopy(self.model)
        return copied, torch.optim.AdamW(_trained(copied), lr=self.rate * life.rate)

    def _step(
        self,
        attacker: tuple[nn.Module, torch.optim.Optimizer],
        optimizer: torch.optim.Optimizer,
        life: Life,
        step: int,
        batches: Mapping[str, list[list[Tokens]]],
        caps: Sequence[Tensor],
    ) -> None:
        """One of the attacker, one of the model by the gradients at both, by which the attacker moves too."""
        attacked, theirs = attacker
        rng = np.random.default_rng([self.seed, 8, step])
        fine_tuning_step(attacked.train(), [self.rows.forget[index] for index in _some(life.given, rng)], theirs)
        self._hold(batches["forget"][step], batches["retain"][step])
        self._cap(attacked, _some(life.others, rng), batches["beside"][step], caps)
        pairs = list(zip(_trained(self.model), _trained(attacked), strict=True))
        for own, copied in pairs:
            own.grad = _sum(own.grad, copied.grad)
        with torch.no_grad():
            away = [copied - own for own, copied in pairs]
            optimizer.step()
            for (own, copied), distance in zip(pairs, away, strict=True):
                copied.copy_(own + distance)
        optimizer.zero_grad(set_to_none=True)
        theirs.zero_grad(set_to_none=True)

    def _hold(self, forget: Sequence[Tokens], retain: Sequence[Tokens]) -> None:
        """The model's own gradient, cut."""
        held, device = self.plan.held.for_model(self.model), next(self.model.parameters()).device
        batch: dict[Role, Batch] = {
            "forget": pad_tokens(forget, pad_id=0).to(device),
            "retain": pad_tokens(retain, pad_id=0).to(device),
        }
        frozen = reference_batch_values(held, self.original, batch, vocab_rows=self.vocab_rows)
        head = head_of(causal_model(self.original), vocab_rows=self.vocab_rows)
        held.loss(seen_by(held, self.model.train(), batch, frozen, head, vocab_rows=self.vocab_rows)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(_trained(self.model), self.plan.clips[0])

    def _cap(self, attacked: nn.Module, forget: Sequence[int], retain: Sequence[Tokens], caps: Sequence[Tensor]) -> None:
        """The gradient at the attacked copy, cut. forget: indices of the rows, as of their caps."""
        device = next(attacked.parameters()).device
        batch: dict[Role, Batch] = {
            "forget": pad_tokens([self.rows.forget[index] for index in forget], pad_id=0).to(device),
            "retain": pad_tokens(retain, pad_id=0).to(device),
        }
        seen = observe(attacked, batch, {"forget": (Nll(),), "retain": (Nll(),)}, vocab_rows=self.vocab_rows)
        allowed = torch.cat([caps[index] for index in forget]).to(device)
        loss = self.plan.weight * above_cap(seen["forget"][Nll()], allowed) + seen["retain"][Nll()].mean()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(_trained(attacked), self.plan.clips[1])

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _batches(self) -> dict[str, list[list[Tokens]]]:
        """Of all steps: forget and retained rows at the model, and retained rows `beside` those at the copy."""
        rows, half = self.rows, _ROWS // 2 if self.rows.written else _ROWS
        kept, beside = self._passes(rows.retain, half, 2), self._passes(rows.retain, half, 3)
        if rows.written:
            kept = [[*a, *b] for a, b in zip(kept, self._passes(rows.written, half, 4), strict=True)]
            beside = [[*a, *b] for a, b in zip(beside, self._passes(rows.written, half, 5), strict=True)]
        return {"forget": self._passes(rows.forget, _ROWS, 1), "retain": kept, "beside": beside}

    def _passes(self, rows: Sequence[Tokens], size: int, stream: int) -> list[list[Tokens]]:
        seed = int(np.random.default_rng([self.seed, 7, stream]).integers(2**31))
        order = batch_order(len(rows), steps=self.plan.steps, batch_size=min(size, len(rows)), seed=seed)
        return [[rows[index] for index in indices] for indices in order]

    def _caps(self) -> list[Tensor]:
        """Of each forget row the caps of its answer tokens."""
        model = ngram_model(self.rows.retain, len(causal_model(self.model).get_output_embeddings().weight))  # type: ignore[operator]
        return [torch.tensor(model.caps(row)) for row in self.rows.forget]

    # -- where the run stands -----------------------------------------------------------------------------------------

    def _keep(self, step: int, optimizer: torch.optim.Optimizer, attacker: tuple[nn.Module, torch.optim.Optimizer]) -> None:
        if self.state is None:
            return
        kept: dict[str, Any] = {"step": step, "model": self.model.state_dict()}
        if step < self.plan.steps:
            kept["optimizer"] = optimizer.state_dict()
            kept["attacked"], kept["theirs"] = attacker[0].state_dict(), attacker[1].state_dict()
        with atomic_path(self.state) as staged:
            torch.save(kept, staged)

    def _taken_up(self, optimizer: torch.optim.Optimizer) -> tuple[int, tuple[nn.Module, torch.optim.Optimizer] | None]:
        """(steps done, the attacker of then); model and optimizer are those of then."""
        kept = read_state(self.state)
        if kept is None:
            return 0, None
        self.model.load_state_dict(kept["model"])
        say(f"{kept['step']} of {self.plan.steps} steps against an attacker are done")
        if "optimizer" not in kept:
            return kept["step"], None
        optimizer.load_state_dict(kept["optimizer"])
        attacked = copy.deepcopy(self.model)
        attacked.load_state_dict(kept["attacked"])
        theirs = torch.optim.AdamW(_trained(attacked))
        theirs.load_state_dict(kept["theirs"])
        return kept["step"], (attacked, theirs)


def _some(indices: Sequence[int], rng: np.random.Generator) -> list[int]:
    """`_ROWS` of them, drawn; all where there are fewer."""
    return [indices[place] for place in rng.choice(len(indices), min(_ROWS, len(indices)), replace=False).tolist()]


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other
