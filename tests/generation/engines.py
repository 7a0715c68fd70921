"""Two small engines that treat a processor as vLLM's runners do: rows that come, go and move, prompts in pieces, preemption."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from d2unlearn.gate.rule import GateRule
from d2unlearn.generation.stepwise import Sessions

from .vllm_interfaces import Direction, EnergyGateLogitsProcessor, Update


@dataclass
class Params:
    """A request's sampling parameters, as far as they matter here."""

    max_tokens: int | None = 10
    all_stop_token_ids: set[int] = field(default_factory=set)


@dataclass
class Running:
    """A request under way. `fed`: tokens that the cache holds."""

    prompt: list[int]
    params: Params
    answer: list[int] = field(default_factory=list)
    fed: int = 0
    done: bool = False

    @property
    def tokens(self) -> list[int]:
        return [*self.prompt, *self.answer]

    def choose(self, row: Tensor, ends: set[int]) -> None:
        self.answer.append(int(row.argmax()))
        self.done = self.answer[-1] in ends or len(self.answer) == self.params.max_tokens


def probed(gate: EnergyGateLogitsProcessor) -> EnergyGateLogitsProcessor:
    """As if its probe prompts had been asked."""
    ask_probes(gate._sessions, gate._rule)
    return gate


def ask_probes(sessions: Sessions, rule: GateRule) -> None:
    """Note for every probe the energy that it should have."""
    for probe in rule.probes:
        sessions.probes.note(probe.token_ids, probe.energy)
    assert sessions.probes.n_waiting == 0


def last_logits(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0, -1].float()


def first_runner(
    gate: EnergyGateLogitsProcessor,
    model: PreTrainedModel,
    prompts: list[list[int]],
    ends: set[int],
    *,
    piece: int = 99,
    preempt: int | None = None,
    limit: int | None = 10,
    batch: int = 3,
) -> list[list[int]]:
    """Greedy answers. `piece`: most tokens of a prompt fed at once; `preempt`: every so many steps a row has to leave.

    The row that leaves is fed anew when it comes back, in pieces, too. When a row ends, the last one takes its place.
    """
    requests = [Running(prompt, Params(limit, ends)) for prompt in prompts]
    waiting, rows = list(requests), list[Running]()
    for step in range(10_000):
        removed, added, moved = list[int](), list[Any](), list[Any]()
        for index in [i for i, each in enumerate(rows) if each.done][::-1]:
            _take_out(rows, index, removed, moved)
        if preempt is not None and step % preempt == preempt - 1 and len(rows) > 1:
            waiting.insert(0, rows[0])
            rows[0].fed, rows[0].answer = 0, list(rows[0].answer)
            _take_out(rows, 0, removed, moved)
        if step % 5 == 4 and len(rows) > 1:
            rows[0], rows[1] = rows[1], rows[0]
            moved.append((0, 1, Direction.SWAP))
        changed = bool(removed or moved)
        if changed:
            gate.update_state(Update(len(rows), removed, [], moved))
        while waiting and len(rows) < batch:
            request = waiting.pop(0)
            added.append((len(rows), request.params, request.prompt, request.answer))
            rows.append(request)
        gate.update_state(Update(len(rows), [], added, []) if added else None)
        if not rows:
            return [each.answer for each in requests]
        for each in rows:
            each.fed = min(each.fed + piece, len(each.tokens))
        logits = gate.apply(torch.stack([last_logits(model, each.tokens[: each.fed]) for each in rows]))
        for each, row in zip(rows, logits, strict=True):
            if each.fed == len(each.tokens):  # else the token that is drawn is thrown away
                each.choose(row, ends)
    raise AssertionError("it never ends")


def _take_out(rows: list[Running], index: int, removed: list[int], moved: list[Any]) -> None:
    last = len(rows) - 1
    if index != last:
        rows[index] = rows[last]
        moved.append((last, index, Direction.UNIDIRECTIONAL))
    else:
        removed.append(index)
    rows.pop()


def states(slots: int, width: int = 64) -> SimpleNamespace:
    """What the second runner shares of its requests: tensors keyed by slot."""
    return SimpleNamespace(
        all_token_ids=SimpleNamespace(gpu=torch.zeros(slots, width, dtype=torch.int32)),
        prompt_len=SimpleNamespace(gpu=torch.zeros(slots, dtype=torch.int32)),
        prefill_len=SimpleNamespace(gpu=torch.zeros(slots, dtype=torch.int32)),
    )


def second_runner(
    gate: EnergyGateLogitsProcessor,
    shared: SimpleNamespace,
    model: PreTrainedModel,
    prompts: list[list[int]],
    ends: set[int],
    *,
    piece: int = 99,
    preempt: int | None = None,
    limit: int | None = 10,
) -> list[list[int]]:
    """The same with slots that are used again, and rows in another order at every step."""
    rng = np.random.default_rng(0)
    requests = [Running(prompt, Params(limit, ends)) for prompt in prompts]
    waiting, slots = list(requests), dict[int, Running]()
    n_slots = len(shared.prompt_len.gpu)
    for step in range(10_000):
        slots = {slot: each for slot, each in slots.items() if not each.done}
        if preempt is not None and step % preempt == preempt - 1 and slots:
            slot, each = next(iter(slots.items()))
            each.fed = 0
            waiting.append(slots.pop(slot))
        for slot in range(n_slots):
            if slot not in slots and waiting:
                slots[slot] = each = waiting.pop(0)
                gate.add_request(slot, each.params)
                shared.prompt_len.gpu[slot] = len(each.prompt)
                shared.prefill_len.gpu[slot] = len(each.tokens)
        if not slots:
            return [each.answer for each in requests]
        gate.apply_staged_writes()
        order = rng.permutation(list(slots)).tolist()
        for slot in order:
            each = slots[slot]
            each.fed = min(each.fed + piece, len(each.tokens))
            shared.all_token_ids.gpu[slot, : len(each.tokens)] = torch.tensor(each.tokens, dtype=torch.int32)
        places = [slots[slot].fed - 1 for slot in order]
        context = SimpleNamespace(
            expanded_idx_mapping=torch.tensor(order, dtype=torch.int32),
            pos=torch.tensor(places),
            input_ids=torch.tensor([slots[slot].tokens[place] for slot, place in zip(order, places, strict=True)]),
        )
        logits = torch.stack([last_logits(model, slots[slot].tokens[: slots[slot].fed]) for slot in order])
        logits = gate.apply(logits, context)
        for slot, row in zip(order, logits, strict=True):
            if slots[slot].fed == len(slots[slot].tokens):
                slots[slot].choose(row, ends)
    raise AssertionError("it never ends")
