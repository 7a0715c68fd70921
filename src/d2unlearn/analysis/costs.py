"""What each index costs beyond the answer that is generated anyway: processor time, memory while reading, memory kept.

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

from d2unlearn.analysis.detectors import PROMPT, AnswerIndex, Index
from d2unlearn.analysis.recorder import Answering, Reads
from d2unlearn.analysis.records import Cost
from d2unlearn.data.batching import pad_left
from d2unlearn.head import head_of
from d2unlearn.models import generate_plainly
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


@torch.inference_mode()
def generation_seconds(model: PreTrainedModel, prompts: Sequence[Sequence[int]], how: Answering, *, repeats: int = 2) -> float:
    """Seconds a request of answering one batch greedily with nothing read: the least of some repetitions."""
    ids, mask = (t.to(model.device) for t in pad_left(prompts, how.pad_id))

    def answer() -> None:
        generate_plainly(model, ids, mask, max_new_tokens=how.max_new_tokens, pad_id=how.pad_id, ends=how.ends)

    return least_seconds(answer, timer_of(model.device), repeats) / len(prompts)


@torch.inference_mode()
def prompt_logits(model: PreTrainedModel, prompts: Sequence[Sequence[int]], vocab_rows: int | None) -> Tensor:
    """Logits where each prompt ends, [B, V]: something real to read."""
    ids, mask = (t.to(model.device) for t in pad_left(prompts, 0))
    weight, bias = (head := head_of(causal_model(model), vocab_rows=vocab_rows)).rows()
    return head.transform(torch.nn.functional.linear(last_hidden_states(model, ids, mask)[:, -1], weight, bias))


def costs(fitted: Mapping[str, Index], reads: Reads, logits: Tensor, seconds_to_answer: float) -> list[Cost]:
    """Every index's cost a request. reads: requests already answered; logits: [B, V]; seconds_to_answer: a request, plain."""
    timer = timer_of(logits.device)
    readings = {
        quantity: reading_cost(quantity, logits, timer)
        for quantity in dict.fromkeys(index.reading.quantity for index in fitted.values() if isinstance(index, AnswerIndex))
    }
    return [_cost(name, index, reads, readings, seconds_to_answer) for name, index in fitted.items()]


def reading_cost(quantity: Quantity, logits: Tensor, timer: Timer) -> tuple[float, int]:
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
    name: str, index: Index, reads: Reads, readings: Mapping[Quantity, tuple[float, int]], seconds_to_answer: float
) -> Cost:
    lengths = np.array([len(tokens) for tokens in reads.token_ids])
    pooling = least_seconds(lambda: index.evidence(reads), time.process_time, 3) / len(reads)
    if isinstance(index, AnswerIndex):
        limit = index.pool.positions
        positions = float(np.minimum(lengths, limit).mean() if limit else lengths.mean())
        seconds, working = readings[index.reading.quantity]
        total = seconds * positions + pooling
    else:
        positions = 1.0 if index.reads == PROMPT else float(lengths.mean())
        total, working = pooling, _numpy_peak(lambda: index.evidence(reads.take([0])))
    return Cost(name, 1e6 * total, total / seconds_to_answer, positions, working, index.kept_bytes)


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
            place = made.untyped_storage().data_ptr()
            if place not in self._alive and place not in self._given:
                self._alive[place] = made.untyped_storage().nbytes()
                weakref.finalize(made, self._alive.pop, place, None)
        self.peak = max(self.peak, sum(self._alive.values()))
        return out
