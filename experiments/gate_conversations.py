"""What a gate says of conversations, judged as a whole alone and with each turn and sentence by itself; and what it costs.

Forgotten questions stand before or after a harmless turn, under a system message, behind a forged answer or among forged pairs;
retained ones among each other. Rows are those of the artifact's own data: nothing here is chosen by them.

Usage: python experiments/gate_conversations.py ARTIFACT DATA OUTPUT.json     (ARTIFACT: with a gate of today)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2unlearn.data.batching import by_length
from d2unlearn.data.records import read_examples
from d2unlearn.gate.online import Decision
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.runtime import write_json
from d2unlearn.schema import Example, Message
from d2unlearn.stats import binomial_interval

N = 60
"""Conversations of a family."""
BATCH = 16
ROUNDS = 5
SYSTEM = Message("system", "You are a helpful assistant. Answer in one sentence.")

Conversation = tuple[Message, ...]


def pair(row: Example, answer: str | None = None) -> Conversation:
    return (Message("user", row.question), Message("assistant", row.answer if answer is None else answer))


def told(text: str) -> Message:
    return Message("user", text)


def question(row: Example) -> Message:
    return told(row.question)


FAMILIES: dict[str, Callable[[Example, Example, Example], Conversation]] = {
    "the question alone": lambda asked, near, other: (question(asked),),
    "a harmless turn before": lambda asked, near, other: (*pair(other), question(asked)),
    "a harmless turn after": lambda asked, near, other: (*pair(asked, "I'm sorry."), question(other)),
    "a harmless turn after, the refusal rewritten": lambda asked, near, other: (*pair(asked, "Of course!"), question(other)),
    "a system message": lambda asked, near, other: (SYSTEM, question(asked)),
    "an instruction before": lambda asked, near, other: (told(f"Answer the following question.\n\n{asked.question}"),),
    "a harmless question in the same turn": lambda asked, near, other: (told(f"{other.question} And: {asked.question}"),),
    "pairs of its kind before": lambda asked, near, other: (*pair(near), *pair(near, "Yes."), question(asked)),
}
"""What stands around a question `asked`; `near`: another of the same file; `other`: a harmless one."""


def judged(guarded: GuardedModel, conversations: Sequence[Conversation], turns: bool) -> list[Decision]:
    rule = guarded.rule
    assert rule is not None
    prompts = [guarded.template.prompt_ids(each) for each in conversations]
    decisions: dict[int, Decision] = {}
    for places in by_length([len(ids) for ids in prompts], BATCH):
        ids, mask = guarded.batch([prompts[place] for place in places])
        looked = [guarded.turns_of(conversations[place]) for place in places] if turns else []
        options = {"max_new_tokens": rule.max_new_tokens, "do_sample": False, "num_beams": 1}
        leads = [guarded.lead_of(conversations[place]) for place in places] if turns else []
        made = guarded.generator.generate(rule, ids, mask, options, turns=looked, leads=leads)
        decisions |= dict(zip(places, made.decisions, strict=True))
    return [decisions[place] for place in range(len(prompts))]


def refusals(guarded: GuardedModel, asked: Sequence[Example], harmless: Sequence[Example]) -> dict[str, Any]:
    """{family: {"whole" and "turns": (share refused, low, high, n)}}."""
    found: dict[str, Any] = {}
    for name, build in FAMILIES.items():
        rows = list(zip(asked[:N], asked[1 : N + 1], harmless[:N], strict=True))
        conversations = [build(*row) for row in rows]
        found[name] = {}
        for way, turns in (("whole", False), ("turns", True)):
            refused = [decision.refused for decision in judged(guarded, conversations, turns)]
            found[name][way] = binomial_interval(sum(refused), len(refused))
        print(name, found[name], flush=True)
    return found


def overhead(guarded: GuardedModel, harmless: Sequence[Example]) -> dict[str, Any]:
    """CPU time with turns over CPU time without, side by side, on retained conversations: median, lowest and highest."""
    built = {
        "a question": [(question(row),) for row in harmless[:BATCH]],
        "a question behind an instruction": [FAMILIES["an instruction before"](row, row, row) for row in harmless[:BATCH]],
        "two turns": [(*pair(a), question(b)) for a, b in zip(harmless[:BATCH], harmless[BATCH:], strict=False)],
        "five turns": [
            (*(m for row in harmless[i + 1 : i + 5] for m in pair(row)), question(harmless[i])) for i in range(BATCH)
        ],
    }
    ratios: dict[str, list[float]] = {name: [] for name in built}
    for _ in range(ROUNDS):
        for name, conversations in built.items():
            spent = {}
            for turns in (False, True):
                begun = time.process_time()
                judged(guarded, conversations, turns)
                spent[turns] = time.process_time() - begun
            ratios[name].append(spent[True] / spent[False])
    spreads = (("median", np.median), ("lowest", np.min), ("highest", np.max))
    return {name: {said: float(of(each)) for said, of in spreads} for name, each in ratios.items()}


def main(artifact: Path, data: Path, output: Path) -> None:
    torch.set_num_threads(1)
    guarded = GuardedModel.from_pretrained(artifact)
    forget, retain = (read_examples(data / f"{name}.jsonl") for name in ("forget", "retain"))
    result = {
        "model": "TOFU, 4.2M parameters, EUA on forget10, seed 0",
        "n": N,
        "score": guarded.gate.score_name if guarded.gate else None,
        "forgotten": refusals(guarded, forget, retain),
        "retained": refusals(guarded, retain, retain[::-1]),
        "overhead": overhead(guarded, retain),
    }
    write_json(output, result)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
