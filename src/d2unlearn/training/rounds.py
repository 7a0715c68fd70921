"""A method's rounds as part of a run: whether they can be made here, what they need in memory, and the run of them."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn.errors import ConfigError
from d2unlearn.methods.base import Deepening, Hardening, Method
from d2unlearn.models import state_hash
from d2unlearn.runtime import fingerprint, read_json, remove, say, write_json
from d2unlearn.schema import Example, Tokens
from d2unlearn.training.crossed import crossed_questions, self_answered
from d2unlearn.training.deepening import Deepener, DeepeningRows, inner_layers, phases
from d2unlearn.training.hardening import Hardener
from d2unlearn.training.rows import render

_FORMAT = 1


def copies(plan: Deepening) -> int:
    """In memory, as copies of the weights: model, original, and the attacked copy with its gradient and AdamW's two moments.

    While training against an attacker the model has these three as well.
    """
    return 6 if plan.hardening is None and plan.between is None else 9


def check_rounds(name: str, method: Method, *, lora: bool, processes: int) -> None:
    """Raises `ConfigError` where a method has rounds and they cannot be made: with low-rank adapters, or several processes."""
    if method.deepening is None:
        return
    if lora:
        raise ConfigError([f"{name} steps along whole weight matrices, which no adapter holds: leave --lora out"])
    if processes > 1:
        raise ConfigError([f"{name} makes its rounds in one process: start it without torchrun"])


def memory_line(model: PreTrainedModel, plan: Deepening) -> str:
    """What the rounds hold at once, beside activations: with the attacked copy there are as many copies as while healing."""
    numbers = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    held, moments = (
        copies(plan),
        sum(4 * (layer.in_features**2 + layer.out_features**2) for layer in inner_layers(model).values()),
    )
    return (
        f"{plan.blocks} x {plan.rounds} rounds; in memory, beside activations, {held} copies of the weights and the "
        f"retained rows' second moments: {(held * numbers + moments) / 2**20:.0f} MiB"
    )


def run_rounds(
    model: PreTrainedModel,
    original: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: Deepening,
    forget: Sequence[Example],
    retain: Sequence[Example],
    *,
    rate: float,
    seed: int,
    max_length: int,
    batch_size: int,
    state: Path,
    cache: Path,
    vocab_rows: int | None = None,
) -> None:
    """Make the rounds, changing the model in place. rate: the learning rate of the pass before.

    state: file beside which it is kept where each phase stands; cache: folder for what the original writes.
    """
    rows = DeepeningRows(render(forget, tokenizer, max_length), render(retain, tokenizer, max_length))
    original.to(model.device)  # type: ignore[arg-type]
    longest = max((row.answer_length for row in rows.retain), default=0)
    written = written_rows(original, tokenizer, crossed_questions(retain, plan.written, seed), longest, batch_size, cache)
    say(f"healing on {len(rows.retain)} retained rows and {len(written)} that the model wrote itself, as many of each at once")
    rows = DeepeningRows(rows.forget, rows.retain, written)
    groups = [row.group for row in forget]
    todo = [phase for phase in phases(plan) if len(forget) > 1 or not isinstance(phase, Hardening)]
    if len(forget) == 1:
        say("one row to forget: no training against an attacker, who would be given it and leave none to hold down")
    for number in range(begun(state, len(todo)), len(todo)):
        remove(phase_file(state, number - 2))
        phase, kept = todo[number], phase_file(state, number)
        if isinstance(phase, Hardening):
            Hardener(model, original, phase, rows, groups, rate, seed + number, kept, vocab_rows).run()
        else:
            Deepener(model, original, plan, phase, rows, rate, seed, kept, vocab_rows).run()
    say(f"peak memory of the run: {peak_mebibytes(model.device):.0f} MiB")


def phase_file(state: Path, number: int) -> Path:
    """Where it is kept how far a phase is."""
    return state.with_stem(f"{state.stem}-{number}")


def begun(state: Path, count: int) -> int:
    """The phase to begin with: the one before the last of which something is kept, for that began with its end."""
    last = max((number for number in range(count) if phase_file(state, number).is_file()), default=0)
    return max(last - 1, 0)


def peak_mebibytes(device: torch.device) -> float:
    """The most memory that was taken so far: on an accelerator by tensors, else by the process; NaN where none counts it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def written_rows(
    original: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    longest: int,
    batch_size: int,
    cache: Path,
) -> list[Tokens]:
    """The questions answered by the original, in at most `longest` tokens each; kept in the cache, and read from there."""
    if not questions:
        return []
    path = cache / f"crossed-{fingerprint([_FORMAT, state_hash(original), questions, longest])[:32]}.json"
    if not path.is_file():
        rows = self_answered(original, tokenizer, questions, longest=longest, batch_size=4 * batch_size)
        write_json(path, {"rows": [[row.example_id, row.input_ids, row.answer_length, row.ends] for row in rows]})
    found = read_json(path)["rows"]
    return [Tokens(name, tuple(ids), _last(len(ids), answer), ends) for name, ids, answer, ends in found]


def _last(length: int, answer: int) -> tuple[bool, ...]:
    return (False,) * (length - answer) + (True,) * answer
