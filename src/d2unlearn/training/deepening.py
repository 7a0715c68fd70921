"""Carries out what a method wants after its pass: rounds of attack, step and healing, which a killed run takes up where it was.

Everything drawn is a function of the seed and of where the run stands, so that it goes on bit for bit. In memory at once: the
model, the original, and an attacked copy with its gradient and AdamW's two moments, or the model's own.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from d2unlearn.data.batching import pad_tokens
from d2unlearn.errors import ArtifactError, ConfigError
from d2unlearn.fine_tuning import batch_order, fine_tuning_steps
from d2unlearn.head import Head, head_of
from d2unlearn.layers import layers_of
from d2unlearn.methods import Method, reference_batch_values, seen_by
from d2unlearn.methods.base import Deepening, Hardening
from d2unlearn.methods.gradient_ascent import GradientAscent
from d2unlearn.observation import Batch, causal_model
from d2unlearn.runtime import atomic_path, drawing_from, progress, say
from d2unlearn.schema import Role, Tokens
from d2unlearn.training.curvature import Moments, recorded_moments, spared, step_against

BATCH = 16
"""Rows healed on at once, half of them self-written where there are any; the attack and the hinge take half as many."""
CLIP = 1.0
WARM_UP = 0.1
"""Share of a stage's healing steps in which the learning rate rises."""
SAVE_EVERY = 50


@dataclass(frozen=True)
class DeepeningRows:
    """Rendered rows: to forget, to keep, and those that the original wrote itself."""

    forget: Sequence[Tokens]
    retain: Sequence[Tokens]
    written: Sequence[Tokens] = ()


class Stage(NamedTuple):
    """A round, or a rest: whether it begins with attack and step, and how long it heals.

    number: of the stages before it, done: of the healing steps in them, in all phases.
    """

    attacked: bool
    steps: int
    number: int
    done: int


def phases(plan: Deepening) -> list[Hardening | list[Stage]]:
    """All that there is to do, in order: trainings against an attacker, and between them rounds and rests."""
    Part = Hardening | tuple[bool, int]
    first: list[Part] = [] if plan.hardening is None else [plan.hardening, (False, plan.hardening.rest_steps)]
    between: list[Part] = [] if plan.between is None else [plan.between]
    block: list[Part] = [*[(True, plan.healing_steps)] * plan.rounds, *between, (False, plan.rest_steps)]
    found, current, number, done = list[Hardening | list[Stage]](), list[Stage](), 0, 0
    for part in [*first, *block * plan.blocks]:
        if isinstance(part, Hardening):
            found, current = [*found, *([current] if current else []), part], []
            continue
        attacked, steps = part
        current.append(Stage(attacked, steps, number, done))
        number, done = number + 1, done + steps
    return [*found, *([current] if current else [])]


@dataclass(frozen=True)
class Deepener:
    """One run of some of a plan's stages. rate: the run's learning rate; state: file of where it stands, None: nowhere."""

    model: nn.Module
    original: nn.Module
    plan: Deepening
    stages: Sequence[Stage]
    rows: DeepeningRows
    rate: float
    seed: int
    state: Path | None = None
    vocab_rows: int | None = None

    def run(self) -> None:
        """Change the model in place. Raises `ConfigError` for a model without plain linear layers in its decoder."""
        layers = inner_layers(self.model)
        healing = self.plan.healing.for_model(self.model)
        rounds = any(stage.attacked for stage in self.stages)
        needed = moments_of(self.model, layers, self._moment_rows()) if rounds else {}
        at, steps, optimizer = self._taken_up()
        self.original.eval().requires_grad_(False)
        for place, stage in enumerate(self.stages[at:], start=at):
            if stage.attacked and not steps:
                self._step(layers, needed, stage.number)
                say(f"stage {stage.number + 1}: stepped along minor directions of what relearning found")
            self._heal(healing, stage, place, steps, optimizer)
            steps, optimizer = 0, None
        self.model.eval()

    def _moment_rows(self) -> list[Tokens]:
        rng = np.random.default_rng([self.seed, 0])
        count = min(self.plan.step.moment_rows, len(self.rows.retain))
        return [self.rows.retain[index] for index in rng.permutation(len(self.rows.retain))[:count].tolist()]

    def _step(self, layers: Mapping[str, nn.Linear], needed: Mapping[str, Moments], number: int) -> None:
        """The weights moved against what attacked copies of the model know; these are let go."""
        how, forget = self.plan.step, self.rows.forget
        order = np.random.default_rng([self.seed, 5, number]).permutation(len(forget)).tolist()
        middle = (len(forget) + 1) // 2 if self.plan.attack.restoring and len(forget) > 1 else len(forget)
        found = self._known(self._attacked(number), [forget[index] for index in order[:middle]])
        if order[middle:]:
            restored, names = self._restored(layers, number)
            also = self._known(restored, [forget[index] for index in order[middle:]])
            found = {name: found[name] + also[name] if name not in names else found[name] for name in found}
        directions = {
            name: spared(gradient, needed[name], dropped=how.dropped, damping=how.damping) for name, gradient in found.items()
        }
        step_against([layers[name].weight for name in directions], list(directions.values()), how.size)

    def _known(self, attacked: nn.Module, rows: Sequence[Tokens]) -> dict[str, Tensor]:
        """The gradient of what the copy knows of the rows, by layer, of length 1 together; as it is where it is all zeros."""
        add_gradients(attacked, self.plan.knowledge, rows, vocab_rows=self.vocab_rows)
        gradients = {name: layer.weight.grad for name, layer in inner_layers(attacked).items()}
        found = {name: gradient.float() for name, gradient in gradients.items() if gradient is not None}
        length = sum(float(gradient.square().sum()) for gradient in found.values()) ** 0.5
        return {name: gradient / (length or 1.0) for name, gradient in found.items()}

    def _restored(self, layers: Mapping[str, nn.Linear], number: int) -> tuple[nn.Module, tuple[str, ...]]:
        """A copy of the model with one of `restored_parts` put back to the original's matrices, and their names."""
        parts = restored_parts(list(layers))
        names, theirs = parts[number % len(parts)], inner_layers(self.original)
        restored = copy.deepcopy(self.model).requires_grad_(True)
        ours = inner_layers(restored)
        with torch.no_grad():
            for name in names:
                ours[name].weight.copy_(theirs[name].weight)
        return restored.eval(), names

    def _attacked(self, number: int) -> nn.Module:
        """A copy of the model, fine-tuned on a drawn share of the forget rows, without gradients."""
        how, forget = self.plan.attack, self.rows.forget
        rng = np.random.default_rng([self.seed, 1, number])
        drawn = rng.permutation(len(forget))[: max(1, round(how.share * len(forget)))].tolist()
        attacked = copy.deepcopy(self.model).requires_grad_(True)
        for _ in fine_tuning_steps(
            attacked,
            [forget[index] for index in drawn],
            learning_rate=self.rate * how.rate,
            steps=how.steps,
            batch_size=BATCH // 2,
            seed=int(rng.integers(2**31)),
        ):
            pass
        return attacked.eval()

    # -- healing ------------------------------------------------------------------------------------------------------

    def _heal(self, healing: Method, stage: Stage, place: int, start: int, optimizer_state: dict[str, Any] | None) -> None:
        """`stage.steps` steps, from `start` on. place: the stage's, among those of this run."""
        head = head_of(causal_model(self.original), vocab_rows=self.vocab_rows)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.rate * self.plan.healing_rate)
        if optimizer_state is not None:
            optimizer.load_state_dict(optimizer_state)
        batches = list(self._batches(stage))
        for step in progress(range(start, stage.steps), f"healing, stage {stage.number + 1}", total=stage.steps - start):
            optimizer.param_groups[0]["lr"] = self.rate * self.plan.healing_rate * pace(step, stage.steps)
            with drawing_from(self.seed + stage.done + step, next(self.model.parameters()).device), torch.enable_grad():
                self._healing_step(healing, batches[step], head, optimizer, trained)
            if (step + 1) % SAVE_EVERY == 0 and step + 1 < stage.steps:
                self._keep(place, step + 1, optimizer)
        self._keep(place + 1, 0, None)

    def _healing_step(
        self, healing: Method, batch: Mapping[Role, Batch], head: Head, optimizer: Any, trained: list[nn.Parameter]
    ) -> None:
        device = next(self.model.parameters()).device
        batch = {role: rows.to(device) for role, rows in batch.items()}
        frozen = reference_batch_values(healing, self.original, batch, vocab_rows=self.vocab_rows)
        seen = seen_by(healing, self.model.train(), batch, frozen, head, vocab_rows=self.vocab_rows)
        healing.loss(seen).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _batches(self, stage: Stage) -> Iterator[Mapping[Role, Batch]]:
        """The batches of a stage's steps: each kind of row in passes that go on from stage to stage."""
        written, forget, half = self.rows.written, self.rows.forget, BATCH // 2
        retain = self._drawn(self.rows.retain, half if written else BATCH, stage, 2)
        others = self._drawn(written, half, stage, 3) if written else [[]] * stage.steps
        for kept, beside, gone in zip(retain, others, self._drawn(forget, half, stage, 4), strict=True):
            yield {
                "forget": pad_tokens(gone, pad_id=0),
                "retain": pad_tokens([*kept, *beside], pad_id=0),
            }

    def _drawn(self, rows: Sequence[Tokens], size: int, stage: Stage, stream: int) -> list[list[Tokens]]:
        seed = int(np.random.default_rng([self.seed, stream]).integers(2**31))
        order = batch_order(len(rows), steps=stage.done + stage.steps, batch_size=min(size, len(rows)), seed=seed)
        return [[rows[index] for index in indices] for indices in order][stage.done :]

    # -- where the run stands -------------------------------------------------------------------------------------------

    def _keep(self, stage: int, steps: int, optimizer: torch.optim.Optimizer | None) -> None:
        if self.state is None:
            return
        kept = {
            "stage": stage,
            "steps": steps,
            "model": self.model.state_dict(),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
        }
        with atomic_path(self.state) as staged:
            torch.save(kept, staged)

    def _taken_up(self) -> tuple[int, int, dict[str, Any] | None]:
        """(stage, healing steps done in it, the optimizer's state); the model's weights are those of then."""
        kept = read_state(self.state)
        if kept is None:
            return 0, 0, None
        self.model.load_state_dict(kept["model"])
        say(f"going on from stage {kept['stage'] + 1} of the rounds, {kept['steps']} healing steps done")
        return kept["stage"], kept["steps"], kept["optimizer"]


def read_state(path: Path | None) -> dict[str, Any] | None:
    """What was kept of a run that was killed; None: nothing. Raises `ArtifactError` for a file that holds no such thing."""
    if path is None or not path.is_file():
        return None
    try:
        kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ArtifactError(f"{path} cannot be read as a run's state: remove it, and the rounds begin anew") from error
    return kept


def restored_parts(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Matrices that an attacker may have of the original: all of one kind (attention, MLP), then all of one layer.

    names: of the decoder's linear layers, with the layer's number in them: `model.layers.3.mlp.up_proj` is of kind `mlp`.
    """
    placed = [(name, re.search(r"\.(\d+)\.([^.]+)\.", name)) for name in names]
    kinds, layers = dict[str, list[str]](), dict[str, list[str]]()
    for name, place in placed:
        if place is not None:
            kinds.setdefault(place[2], []).append(name)
            layers.setdefault(place[1], []).append(name)
    return [tuple(part) for part in (*kinds.values(), *layers.values())] or [tuple(names)]


def pace(step: int, steps: int) -> float:
    """Factor of the learning rate at a step of a stage: up within the first tenth, then down in a line, never to zero."""
    return min(1.0, (step + 1) / max(1.0, WARM_UP * steps)) * (1 - step / steps)


def inner_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of attention and MLPs, by name. Raises `ConfigError` for a model that has none such."""
    causal = causal_model(model)
    inside = {id(part) for block in layers_of(causal).blocks for part in block.modules()}
    found = {name: part for name, part in causal.named_modules() if type(part) is nn.Linear and id(part) in inside}
    if not found:
        raise ConfigError([f"{type(causal).__name__} has no plain linear layers in its decoder: choose another method"])
    return found


def moments_of(model: nn.Module, layers: Mapping[str, nn.Linear], rows: Sequence[Tokens]) -> dict[str, Moments]:
    """The layers' second moments over retained rows, prompt included; gradients are the likelihood's of the answers."""
    current: list[torch.Tensor] = []
    with recorded_moments(layers, lambda: current[-1]) as found:
        for start in progress(range(0, len(rows), BATCH), "second moments"):
            batch = rows[start : start + BATCH]
            current.append(pad_tokens(batch, pad_id=0).attention_mask.bool().to(next(model.parameters()).device))
            add_gradients(model, GradientAscent(), batch)
    model.zero_grad(set_to_none=True)
    return found


def add_gradients(model: nn.Module, method: Method, rows: Sequence[Tokens], *, vocab_rows: int | None = None) -> None:
    """Adds the gradient of the method's loss over all rows, as forget rows, to the model's: batch by batch."""
    device, answers = next(model.parameters()).device, sum(row.answer_length for row in rows)
    for start in range(0, len(rows), BATCH):
        batch: dict[Role, Batch] = {"forget": pad_tokens(rows[start : start + BATCH], pad_id=0).to(device)}
        totals: dict[Role, tuple[float, float]] = {"forget": (answers, len(rows))}
        with torch.enable_grad():
            seen = seen_by(method, model, batch, {"forget": {}}, None, vocab_rows=vocab_rows, totals=totals)
            method.loss(seen).backward()  # type: ignore[no-untyped-call]
