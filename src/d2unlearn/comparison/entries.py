"""How an entry with its parameters becomes settings of `unlearn`, or a model behind a guard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from d2unlearn.comparison.context import RunContext
from d2unlearn.comparison.plan import Comparison
from d2unlearn.comparison.records import EntryKind
from d2unlearn.comparison.search import RATE
from d2unlearn.config import UnlearnSettings
from d2unlearn.errors import ConfigError
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.guards import GUARD_FAMILY, GUARDS, Guard, GuardInputs, ModelBehindGuard, build_guard
from d2unlearn.methods import METHOD_FAMILY, METHODS
from d2unlearn.models import load_model
from d2unlearn.plugins import is_offered
from d2unlearn.runtime import torch_dtype
from d2unlearn.training.recipe import automatic_learning_rate
from d2unlearn.training.run_input import build_method


def load_raw(folder: str | Path, dtype: str) -> GuardedModel:
    """A model without a gate."""
    return GuardedModel.from_pretrained(folder, dtype=torch_dtype(dtype), raw=True)


def defaults(context: RunContext) -> dict[str, float]:
    """The values from which each searched parameter starts. Raises `ConfigError` for parameters that do not exist."""
    fixed = dict(context.space.fixed)
    made: Any = build_method(context.run.entry, fixed) if context.run.kind == "method" else guard_of(context, {})
    values = {RATE: 1.0, **asdict(made)}
    unknown = [name for name in context.space.ranges if not isinstance(values.get(name), (int, float))]
    if unknown:
        raise ConfigError([f"{context.run.entry} has no number {name} to search" for name in unknown])
    return {name: float(values[name]) for name in context.space.ranges}


def base_rate(context: RunContext) -> float:
    """The learning rate that factors are of: as set, else by the size of the model."""
    settings = context.settings
    if settings.learning_rate != "auto":
        return float(settings.learning_rate)
    parameters = sum(p.numel() for p in load_model(context.original).parameters())
    return automatic_learning_rate(parameters, lora=settings.lora)


def unlearn_settings(context: RunContext, parameters: Mapping[str, float], rate: float, output: Path) -> UnlearnSettings:
    """`unlearn` with these parameters. rate: the learning rate of factor 1."""
    settings = context.settings
    return UnlearnSettings(
        model=context.original,
        forget=str(context.files["forget"]),
        retain=str(context.files["retain"]),
        output=str(output),
        method=context.run.entry,
        method_parameters={**context.space.fixed, **_own(parameters)},
        learning_rate=rate * parameters.get(RATE, 1.0),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        accumulation=settings.accumulation,
        max_length=settings.max_length,
        long="cut",
        seed=context.seed,
        lora=settings.lora,
        lora_rank=settings.lora_rank,
        dtype=settings.dtype,
        bf16=settings.bf16,
        gradient_checkpointing=settings.gradient_checkpointing,
        keep="last",
    )


def _own(parameters: Mapping[str, float]) -> dict[str, Any]:
    """The entry's own parameters, without the learning rate's factor."""
    return {name: value for name, value in parameters.items() if name != RATE}


def guard_of(context: RunContext, parameters: Mapping[str, float]) -> Guard:
    """A guard with these parameters. Raises `ConfigError` for parameters that do not exist."""
    return build_guard(context.run.entry, {**context.space.fixed, **_own(parameters)})


def refuses_in_text(comparison: Comparison | None = None) -> tuple[str, ...]:
    """Entries that answer what they are to forget, in words of refusal or otherwise, and leave nothing to a gate.

    comparison: other packages' entries that it names are among those looked at.
    """
    methods = [name for name, method in METHODS.items() if method().refuses_in_words]
    guards = [name for name, guard in GUARDS.items() if not guard.refuses]
    if comparison is not None:
        fixed = {name: dict(space.fixed) for name, space in comparison.spaces.items()}
        further = [name for name in comparison.named("method") if name not in METHODS]
        methods += [name for name in further if build_method(name, fixed[name]).refuses_in_words]
        further = [name for name in comparison.named("guard") if name not in GUARDS]
        guards += [name for name in further if not build_guard(name, fixed[name]).refuses]
    return (*methods, *guards)


def is_offered_entry(kind: EntryKind, name: str) -> bool:
    """Whether another installed package offers a method or guard of this name. Imports nothing of it."""
    return is_offered(METHOD_FAMILY if kind == "method" else GUARD_FAMILY, name)


def behind(context: RunContext, base: GuardedModel, parameters: Mapping[str, float]) -> ModelBehindGuard:
    """The original behind a guard, fitted on what `unlearn` trains on; its threshold is set by the calibration rows."""
    known = GuardInputs(
        context.questions.forget,
        context.held_out.train,
        context.held_out.calibration,
        context.settings.max_false_refusal,
        context.seed,
    )
    return guard_of(context, parameters).fit(base, known)
