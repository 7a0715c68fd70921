"""`generate` of a checkpoint that carries its gate: what `from_pretrained(..., trust_remote_code=True)` puts in its place.

The gate is read from the model's own configuration (`d2_gate`). Continuous batching never calls `generate`, so for models
that carry a gate it is turned down where it begins.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

from transformers import GenerationMixin, PreTrainedModel

from d2unlearn.errors import GateError
from d2unlearn.gate.copied import check_copy
from d2unlearn.gate.gated import GatedGenerator
from d2unlearn.gate.rule import GateRule, check_ids, rule_from_json
from d2unlearn.schema import GATE_COPY

POSITIONS = tuple(signature(GenerationMixin.generate).parameters)[1:]
"""The arguments that `GenerationMixin.generate` takes by their place."""

KEPT_AS = "_d2_gated_generator"
"""Where a model keeps what generates for it."""


def generate(*arguments: Any, model: PreTrainedModel, hold_back: int = 0, **options: Any) -> Any:
    """As `GenerationMixin.generate`, with refused answers replaced by refusals. `hold_back`: see `HeldBackStream`.

    Raises `GateError` for a way of decoding that the gate cannot watch, for weights that are not those it was calibrated on,
    and where the configuration holds no gate.
    """
    options |= dict(zip(POSITIONS, arguments, strict=False))
    given = {name: value for name, value in options.items() if value is not None}
    inputs, input_ids, mask = (given.pop(name, None) for name in ("inputs", "input_ids", "attention_mask"))
    rule, generator = _gated(model)
    return generator.generate(rule, input_ids if inputs is None else inputs, mask, given, hold_back=hold_back).output


def _gated(model: PreTrainedModel) -> tuple[GateRule, GatedGenerator]:
    """A model's rule, and what generates behind it: made once."""
    if KEPT_AS not in vars(model):
        copy = getattr(model.config, GATE_COPY, None)
        if copy is None:
            raise GateError(
                f"config.json holds no {GATE_COPY}, though the checkpoint carries a gate; run `d2unlearn calibrate` again"
            )
        rule, tokens = rule_from_json(copy)
        check_copy(copy, getattr(model.config, "_name_or_path", None) or None)
        check_ids(tokens, model.config.get_text_config().vocab_size)
        vars(model)[KEPT_AS] = rule, GatedGenerator(model, tokens)
    kept: tuple[GateRule, GatedGenerator] = vars(model)[KEPT_AS]
    return kept


def _refuse_continuous_batching(begin: Callable[..., Any]) -> Callable[..., Any]:
    """`begin` for models without a gate; a `GateError` for those with one."""

    @wraps(begin)
    def checked(self: PreTrainedModel, *arguments: Any, **options: Any) -> Any:
        if getattr(self.config, GATE_COPY, None) is not None:
            raise GateError(
                "continuous batching chooses tokens where no gate can look, and this checkpoint carries one: serve it without "
                "continuous batching (`d2unlearn serve` batches requests as they come), or load it without trust_remote_code, "
                "which leaves the gate away"
            )
        return begin(self, *arguments, **options)

    checked.refuses_gates = True  # type: ignore[attr-defined]
    return checked


if not hasattr(GenerationMixin.init_continuous_batching, "refuses_gates"):
    GenerationMixin.init_continuous_batching = _refuse_continuous_batching(  # type: ignore[method-assign]
        GenerationMixin.init_continuous_batching
    )
