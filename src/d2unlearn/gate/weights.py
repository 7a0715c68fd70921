"""Whether a model still has the weights that its gate was calibrated on: a threshold means nothing on others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import PreTrainedModel

from d2unlearn.gate.rule import GateRule

PROBE_EVERY = 100
"""Answers after which the probe prompts are asked again, whatever the tensors say."""

ADAPTER_STATE = ("active_adapter", "_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
"""What a model or a layer of PEFT keeps beside its tensors: which adapters are on, merged, and how strong."""

_OPTIMIZER_STEPS = [0]
"""Of all optimizers of this process: fused ones write past the version counters."""


def _count_step(*_: Any) -> None:
    _OPTIMIZER_STEPS[0] += 1


register_optimizer_step_post_hook(_count_step)


class WeightsCheck:
    """Holds a rule against one model, before it is used: by the rule's probe prompts, whenever something may have changed.

    That is the first time; when a module, parameter
    or buffer was replaced, moved, cast or written in place, by what its identity, address and version counter say; after a step
    of any optimizer; when an adapter was switched, scaled or merged; and after `PROBE_EVERY` answers, which finds what is
    written past the counters (through `.data`, by foreign kernels, into tensors made under `inference_mode`).

    Not seen: what is written past the counters and taken back, or used, before the probes are asked again; until then also what
    changes the model's answers without its tensors (a hook, another `forward`, a plain attribute or a value of its
    configuration, training mode, a cache that another model filled); what another thread writes while an answer is made; and
    changes that move the energy of no probe prompt by more than the tolerance.

    Tensors and modules are held until the next check, for the address of one that is gone may be given to another.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._seen: list[Any] = []
        self._held: list[object] = []
        self._asked: tuple[Any, ...] | None = None
        self._n_answers = 0

    def trust(self, rule: GateRule) -> None:
        """Take the weights as they are for those that the rule was calibrated on, on the caller's word."""
        self._trust(rule, _marks(self._model))

    def check(self, rule: GateRule, n_answers: int) -> None:
        """Before so many answers. Raises `GateError` unless the model gives the probe prompts the energies they had."""
        marks = _marks(self._model)
        if self._asked != _asks(rule) or self._n_answers >= PROBE_EVERY or marks != self._seen:
            self._asked = None
            rule.check_probes(self._model)
            self._trust(rule, marks)  # those from before: what is written meanwhile is found the next time
        self._n_answers += n_answers

    def _trust(self, rule: GateRule, marks: list[Any]) -> None:
        self._asked, self._seen, self._n_answers = _asks(rule), marks, 0
        self._held = [held for module in _modules(self._model) for held in (module, *_own_tensors(module))]


def _asks(rule: GateRule) -> tuple[Any, ...]:
    """What a rule's probes ask, and how exactly."""
    return rule.probes, rule.probe_tolerance, rule.temperature, rule.vocab_rows


def _marks(model: nn.Module) -> list[Any]:
    """What changes when a model's weights do, without reading them: see `WeightsCheck`."""
    marks: list[Any] = [_OPTIMIZER_STEPS[0]]
    for module in _modules(model):
        marks.append(id(module))
        if "_active_adapter" in vars(module) or "active_adapter" in vars(module):
            marks.append(repr([getattr(module, name, None) for name in ADAPTER_STATE]))
        for tensor in _own_tensors(module):
            version = None if tensor.is_inference() else tensor._version
            marks.append((id(tensor), _address(tensor), version, tensor.dtype))
    return marks


def _modules(model: nn.Module) -> Iterator[nn.Module]:
    """As `modules`, and faster: that makes all their names."""
    waiting: list[nn.Module | None] = [model]
    seen: set[int] = set()
    while waiting:
        module = waiting.pop()
        if module is not None and id(module) not in seen:
            seen.add(id(module))
            waiting += module._modules.values()
            yield module


def _own_tensors(module: nn.Module) -> list[Tensor]:
    return [tensor for kept in (module._parameters, module._buffers) for tensor in kept.values() if tensor is not None]


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a tensor without a storage of its own, as some quantised ones
        return 0
