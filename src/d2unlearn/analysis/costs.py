"""What each detector costs beyond the answer that is generated anyway: processor time, memory while reading, memory kept.

Times are of the work itself, repeated on one batch of real logits and the least taken; they depend on the machine, their ratios
to plain generation less so.
"""

from __future__ import annotations

import time
import tracemalloc
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from d2unlearn.analysis.detectors import PROMPT, Detector, TokenDetector
from d2unlearn.analysis.recorder import Answering, AnswerTraces, answer_batch
from d2unlearn.analysis.records import DetectorCost
from d2unlearn.data.batching import pad_left
from d2unlearn.head import head_of
from d2unlearn.observation import causal_model, last_hidden_states
from d2unlearn.quantities import Chunk, Quantity

REPEATS = 9
Timer = Callable[[], float]


def timer_of(device: torch.device) -> Timer:
    """Seconds: of this process's processors, or of the clock where an accelerator does the work."""
    if device.type == "cpu":
        return time.process_time

    def clock() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return clock


def generation_seconds(model: PreTrainedModel, prompts: Sequence[Sequence[int]], how: Answering, *, repeats: int = 2) -> float:
    """Seconds a request of answering one batch greedily with nothing read: the least of some repetitions."""
    return least_seconds(lambda: answer_batch(model, prompts, how), timer_of(model.device), repeats) / len(prompts)


@torch.inference_mode()
def prompt_logits(model: PreTrainedModel, prompts: Sequence[Sequence[int]], vocab_rows: int | None) -> Tensor:
    """Logits where each prompt ends, [B, V]: something real to read."""
    ids, mask = (t.to(model.device) for t in pad_left(prompts, 0))
    weight, bias = (head := head_of(causal_model(model), vocab_rows=vocab_rows)).rows()
    return head.transform(torch.nn.functional.linear(last_hidden_states(model, ids, mask)[:, -1], weight, bias))


def detector_costs(
    fitted: Mapping[str, Detector], traces: AnswerTraces, logits: Tensor, seconds_to_answer: float
) -> list[DetectorCost]:
    """Every detector's cost a request. traces: of requests already answered; logits: [B, V]; seconds_to_answer: one."""
    timer = timer_of(logits.device)
    quantities = dict.fromkeys(d.token_score.quantity for d in fitted.values() if isinstance(d, TokenDetector))
    by_quantity = {quantity: quantity_cost(quantity, logits, timer) for quantity in quantities}
    return [_cost(name, detector, traces, by_quantity, seconds_to_answer) for name, detector in fitted.items()]


def quantity_cost(quantity: Quantity, logits: Tensor, timer: Timer) -> tuple[float, int]:
    """(seconds, bytes held for a moment) of a quantity at one position of one request. logits: [B, V]."""
    targets = logits.argmax(dim=-1)
    seconds = least_seconds(lambda: quantity.of(Chunk(logits, targets)).tolist(), timer) / len(logits)
    one, target = torch.empty_like(logits[:1]).copy_(logits[:1]), targets[:1].clone()
    with _Allocations(one, target) as allocations:
        quantity.of(Chunk(one, target))
    return seconds, allocations.peak


def least_seconds(work: Callable[[], object], timer: Timer, repeats: int = REPEATS) -> float:
    """The least time that the work took: what else the machine did only adds."""
    taken = []
    for _ in range(repeats):
        started = timer()
        work()
        taken.append(timer() - started)
    return min(taken)


def _cost(
    name: str,
    detector: Detector,
    traces: AnswerTraces,
    by_quantity: Mapping[Quantity, tuple[float, int]],
    seconds_to_answer: float,
) -> DetectorCost:
    lengths = np.array([len(tokens) for tokens in traces.token_ids])
    total = least_seconds(lambda: detector.scores(traces), time.process_time, 3) / len(traces)
    if isinstance(detector, TokenDetector):
        positions = float(np.minimum(lengths, detector.aggregation.positions or lengths).mean())
        seconds, working = by_quantity[detector.token_score.quantity]
        total += seconds * positions
    else:
        positions = 1.0 if detector.reads == PROMPT else float(lengths.mean())
        working = _numpy_peak(lambda: detector.scores(traces.take([0])))
    return DetectorCost(name, 1e6 * total, total / seconds_to_answer, positions, working, detector.kept_bytes)


def _numpy_peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are alive at once while entered, but for those given; `peak` is the most."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive: dict[int, int] = {}
        self._given = {tensor.untyped_storage().data_ptr() for tensor in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in (leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
            address = made.untyped_storage().data_ptr()
            if address not in self._alive and address not in self._given:
                self._alive[address] = made.untyped_storage().nbytes()
                weakref.finalize(made, self._alive.pop, address, None)
        self.peak = max(self.peak, sum(self._alive.values()))
        return out
