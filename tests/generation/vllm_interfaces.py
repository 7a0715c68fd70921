"""vLLM's two processor interfaces, as far as the gate meets them: vLLM's own where it is installed, else written after them.

vLLM pins other versions of torch and transformers than this package, so it is not among the tests' requirements. The
stand-ins follow vLLM 0.32: `vllm.v1.sample.logits_processor` (first runner) and `vllm.v1.worker.gpu.sample.logits_processor`
(second runner). `REAL` says which of both a test met.
"""

from __future__ import annotations

import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from types import ModuleType
from typing import Any

REAL = importlib.util.find_spec("vllm") is not None

if not REAL:

    class MoveDirectionality(Enum):
        UNIDIRECTIONAL = auto()
        SWAP = auto()

    @dataclass(frozen=True)
    class BatchUpdate:
        """`added`: (index, params, prompt ids, the runner's own list of output ids)."""

        batch_size: int
        removed: list[int]
        added: list[tuple[int, Any, list[int] | None, list[int]]]
        moved: list[tuple[int, int, MoveDirectionality]]

    class FirstLogitsProcessor(ABC):
        @classmethod
        def validate_params(cls, sampling_params: Any) -> None:
            return None

        @abstractmethod
        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None: ...

        @abstractmethod
        def apply(self, logits: Any) -> Any: ...

        @abstractmethod
        def is_argmax_invariant(self) -> bool: ...

        @abstractmethod
        def update_state(self, batch_update: Any) -> None: ...

    class SecondLogitsProcessor(ABC):
        def __init__(self, vllm_config: Any, req_states: Any) -> None:
            return None

        @classmethod
        def validate_params(cls, sampling_params: Any) -> None:
            return None

        def add_request(self, req_idx: int, sampling_params: Any) -> bool:
            return True

        def apply_staged_writes(self) -> None:
            return None

        @abstractmethod
        def apply(self, logits: Any, ctx: Any) -> Any: ...

    def process_dict_updates(
        entries: dict[int, Any], update: BatchUpdate | None, new: Callable[[Any, Any, Any], Any | None]
    ) -> bool:
        """New requests take their places, then those that went leave theirs, then the rest move."""
        if update is None:
            return False
        for index, params, prompt, output in update.added:
            state = new(params, prompt, output)
            if state is None:
                entries.pop(index, None)
            else:
                entries[index] = state
        for index in update.removed:
            entries.pop(index, None)
        for source, target, direction in update.moved:
            moving, replaced = entries.pop(source, None), entries.pop(target, None)
            if moving is not None:
                entries[target] = moving
            if replaced is not None and direction == MoveDirectionality.SWAP:
                entries[source] = replaced
        return True

    def _module(name: str, **content: Any) -> None:
        module = ModuleType(name)
        module.__path__ = []
        vars(module).update(content)
        sys.modules[name] = module

    for parent in ("vllm", "vllm.v1", "vllm.v1.sample", "vllm.v1.worker", "vllm.v1.worker.gpu", "vllm.v1.worker.gpu.sample"):
        _module(parent)
    _module(
        "vllm.v1.sample.logits_processor",
        LogitsProcessor=FirstLogitsProcessor,
        BatchUpdate=BatchUpdate,
        MoveDirectionality=MoveDirectionality,
    )
    _module("vllm.v1.sample.logits_processor.builtin", process_dict_updates=process_dict_updates)
    _module("vllm.v1.worker.gpu.sample.logits_processor", LogitsProcessor=SecondLogitsProcessor)

from vllm.v1.sample.logits_processor import BatchUpdate as Update  # noqa: E402
from vllm.v1.sample.logits_processor import LogitsProcessor as First  # noqa: E402
from vllm.v1.sample.logits_processor import MoveDirectionality as Direction  # noqa: E402
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as Second  # noqa: E402

from d2unlearn.generation.vllm_plugin import EnergyGateLogitsProcessor  # noqa: E402

__all__ = ["REAL", "Direction", "EnergyGateLogitsProcessor", "First", "Second", "Update"]
