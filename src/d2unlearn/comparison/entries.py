"""How a contestant with its parameters becomes settings of `unlearn`, or a model behind a guard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

from d2unlearn.comparison.context import Bench
from d2unlearn.comparison.search import RATE
from d2unlearn.config import UnlearnSettings
from d2unlearn.errors import ConfigError
from d2unlearn.fields import typed
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.guards import GUARDS, Guard, Guarded, Known
from d2unlearn.methods import METHODS
from d2unlearn.models import load_model
from d2unlearn.runtime import torch_dtype
from d2unlearn.training.recipe import automatic_learning_rate
from d2unlearn.training.unlearn import build_method


def load_raw(bench: Bench, folder: str | Path) -> GuardedModel:
    """A model without a gate, in the comparison's dtype."""
    return GuardedModel.from_pretrained(folder, dtype=torch_dtype(bench.comparison.settings.dtype), raw=True)


def defaults(bench: Bench) -> dict[str, float]:
    """The values from which each searched parameter starts. Raises `ConfigError` for parameters that do not exist."""
    fixed = dict(bench.space.fixed)
    made: Any = build_method(bench.run.contestant, fixed) if bench.run.kind == "method" else guard_of(bench, {})
    values = {RATE: 1.0, **asdict(made)}
    unknown = [name for name in bench.space.ranges if not isinstance(values.get(name), (int, float))]
    if unknown:
        raise ConfigError([f"{bench.run.contestant} has no number {name} to search" for name in unknown])
    return {name: float(values[name]) for name in bench.space.ranges}


def base_rate(bench: Bench) -> float:
    """The learning rate that factors are of: as set, else by the size of the model."""
    settings = bench.comparison.settings
    if settings.learning_rate != "auto":
        return float(settings.learning_rate)
    parameters = sum(p.numel() for p in load_model(bench.original).parameters())
    return automatic_learning_rate(parameters, lora=settings.lora)


def unlearn_settings(bench: Bench, parameters: Mapping[str, float], rate: float, output: Path) -> UnlearnSettings:
    """`unlearn` with these parameters. rate: the learning rate of factor 1."""
    settings = bench.comparison.settings
    return UnlearnSettings(
        model=bench.original,
        forget=str(bench.files["forget"]),
        retain=str(bench.files["retain"]),
        output=str(output),
        method=bench.run.contestant,
        method_parameters={**bench.space.fixed, **own(parameters)},
        learning_rate=rate * parameters.get(RATE, 1.0),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        accumulation=settings.accumulation,
        max_length=settings.max_length,
        seed=bench.seed,
        lora=settings.lora,
        lora_rank=settings.lora_rank,
        dtype=settings.dtype,
        bf16=settings.bf16,
        gradient_checkpointing=settings.gradient_checkpointing,
        keep="last",
    )


def own(parameters: Mapping[str, float]) -> dict[str, Any]:
    """The contestant's own parameters, without the learning rate's factor."""
    return {name: value for name, value in parameters.items() if name != RATE}


def guard_of(bench: Bench, parameters: Mapping[str, float]) -> Guard:
    """A guard with these parameters. Raises `ConfigError` for parameters that do not exist."""
    kind = GUARDS[bench.run.contestant]
    given, mistakes = typed({**bench.space.fixed, **own(parameters)}, get_type_hints(kind))
    if mistakes:
        raise ConfigError([f"guard {bench.run.contestant}: {mistake}" for mistake in mistakes])
    return kind(**given)


def ungated() -> tuple[str, ...]:
    """Contestants that answer what they are to forget, in words of refusal or otherwise, and leave nothing to a gate."""
    methods = [name for name, method in METHODS.items() if method().refuses_in_words]
    return (*methods, *(name for name, guard in GUARDS.items() if not guard.refuses))


def behind(bench: Bench, base: GuardedModel, parameters: Mapping[str, float]) -> Guarded:
    """The original behind a guard, fitted on what `unlearn` trains on; its threshold is set by the calibration rows."""
    known = Known(
        bench.questions.forget,
        bench.held_out.train,
        bench.held_out.calibration,
        bench.comparison.settings.max_false_refusal,
        bench.seed,
    )
    return guard_of(bench, parameters).fit(base, known)
