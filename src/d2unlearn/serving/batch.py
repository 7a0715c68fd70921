"""One batch of requests through the model: each row ends by itself, and is handed out as soon as the gate has decided on it.

Rows share the forward passes and nothing else: a row's limit, stop texts, stream and refusal are its own. What is streamed
comes as late as in `GuardedModel.stream`: nothing of an answer that the early looks refuse is shown; an answer refused later
ends with a line break and the refusal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from d2unlearn.data.batching import pad_left
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.recorder import EnergyRecorder
from d2unlearn.generation.criteria import Decision, Watch
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.models import end_token_ids, generate_of, pad_token_id
from d2unlearn.runtime import drawing_from

Finish = Literal["stop", "length", "content_filter"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Requests that share one may share a batch, so a `seed` (None: any) is a batch of its own."""

    temperature: float
    top_p: float
    seed: int | None = None


@dataclass(frozen=True)
class Asked:
    """One request: the prompt's ids, the longest answer in tokens, texts that end it, how it is drawn (None: greedily)."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    sampling: Sampling | None = None


@dataclass(frozen=True)
class Piece:
    """A part of an answer that is being streamed."""

    text: str


@dataclass(frozen=True)
class Outcome:
    """A request's end. `text`: the answer without its stop text, or the refusal.

    `n_tokens`: tokens generated, for a refusal until it was decided. `energy`: nats, at the last prompt position. Where
    energies could not be computed or are no numbers, `energy` or `score` is None and the request refused; `score` and
    `threshold` are None, too, where no gate decided.
    """

    text: str
    finish: Finish
    n_prompt: int
    n_tokens: int
    energy: float | None
    score: float | None
    threshold: float | None

    @property
    def refused(self) -> bool:
        return self.finish == "content_filter"


class Reader(Protocol):
    """Who asked. `take` must not raise; once `gone`, the row is ended at the next token."""

    @property
    def streams(self) -> bool: ...

    @property
    def gone(self) -> bool: ...

    def take(self, event: Piece | Outcome) -> None: ...


def generate_rows(guarded: GuardedModel, asked: Sequence[Asked], readers: Sequence[Reader], *, hold_back: int = 0) -> None:
    """Answer requests that are drawn alike (`Asked.sampling`), each to its reader. Left-padded, one generation.

    `hold_back`: streams show a token only when so many more have been chosen.
    """
    model, tokenizer, gate = guarded.model, guarded.tokenizer, guarded.gate
    pad, ends = pad_token_id(tokenizer), end_token_ids(model, tokenizer)
    ids, mask = (t.to(model.device) for t in pad_left([list(each.prompt_ids) for each in asked], pad))
    sampling = asked[0].sampling
    rows = [_Row(each, reader, guarded, ends) for each, reader in zip(asked, readers, strict=True)]
    with (
        EnergyRecorder(
            model, temperature=gate.temperature if gate else 1.0, vocab_rows=gate.vocab_rows if gate else None
        ) as recorder,
        drawing_from(sampling.seed if sampling else None, model.device),
    ):
        watch = Watch(gate, recorder, ends, criteria=StoppingCriteriaList([_Ends(rows)]))
        delivery = _Delivery(rows, watch, gate, hold_back)
        sequences = generate_of(model)(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(each.max_new_tokens for each in asked),
            num_beams=1,
            pad_token_id=pad,
            eos_token_id=ends or None,
            disable_compile=True,  # a hook inside a compiled graph would not be called
            stopping_criteria=StoppingCriteriaList([watch, delivery]),
            **_options(sampling),
        )
    watch.finish(sequences.shape[1] - watch.prompt_length)
    delivery(sequences, None)


def refusal_of(gate: EnergyGate, asked: Asked) -> Outcome:
    """The refusal of a request whose energy could not be computed."""
    return Outcome(gate.refusal(asked.prompt_ids), "content_filter", len(asked.prompt_ids), 0, None, None, gate.threshold)


class _Row:
    """A row on its way: what was shown of it, and whether it is done."""

    def __init__(self, asked: Asked, reader: Reader, guarded: GuardedModel, ends: Sequence[int]) -> None:
        self.asked = asked
        self.reader = reader
        self.done = False
        self._guarded = guarded
        self._ends = ends
        self._shown = ""

    def at_end(self, tokens: list[int]) -> bool:
        """Whether the row ends with the tokens that it has, by anything but an end token."""
        if self.reader.gone or len(tokens) >= self.asked.max_new_tokens:
            return True
        return bool(self.asked.stop) and self._stop_place(self._decoded(tokens)) is not None

    def show(self, tokens: list[int]) -> None:
        """Hand on what further tokens cannot change: no half character, nothing that could be the start of a stop text."""
        text = self._decoded(tokens)
        longest = max(map(len, self.asked.stop), default=1)
        self._hand_on(text[: max(len(text) - longest + 1, 0)].rstrip("\ufffd").strip())

    def finish(self, tokens: list[int], decision: Decision) -> None:
        self.done = True
        text = self._decoded(tokens)
        place = self._stop_place(text)
        text = text[:place].strip()
        finish: Finish = "stop" if place is not None or tokens[-1] in self._ends else "length"
        gate = self._guarded.gate
        if decision.refused and gate is not None:
            text, finish = gate.refusal(self.asked.prompt_ids), "content_filter"
        if self.reader.streams:
            self._hand_on(text if not decision.refused or not self._shown else f"{self._shown}\n{text}")
        measured = (_number(decision.energy), _number(decision.score), decision.threshold)
        self.reader.take(Outcome(text, finish, len(self.asked.prompt_ids), decision.n_tokens, *measured))

    def _hand_on(self, text: str) -> None:
        """Text so far; of one that an odd tokenizer changed at its start the new end."""
        if len(text) > len(self._shown):
            self.reader.take(Piece(text[len(self._shown) :]))
            self._shown = text

    def _decoded(self, tokens: list[int]) -> str:
        return str(self._guarded.tokenizer.decode(tokens, skip_special_tokens=True))

    def _stop_place(self, text: str) -> int | None:
        places = [text.find(stop) for stop in self.asked.stop]
        return min((place for place in places if place >= 0), default=None)


class _Ends(StoppingCriteria):
    """Rows that end by their own limit, by a stop text, or because their reader has gone; asked by the watch."""

    def __init__(self, rows: Sequence[_Row]) -> None:
        self._rows = rows
        self._prompt_length: int | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        if self._prompt_length is None:
            self._prompt_length = input_ids.shape[1] - 1
        answers = input_ids[:, self._prompt_length :].tolist()
        ended = [row.done or row.at_end(answer) for row, answer in zip(self._rows, answers, strict=True)]
        return torch.tensor(ended, device=input_ids.device)


class _Delivery(StoppingCriteria):
    """Stops nothing: hands out what the watch, asked just before, has let pass or decided."""

    def __init__(self, rows: Sequence[_Row], watch: Watch, gate: EnergyGate | None, hold_back: int) -> None:
        self._rows = rows
        self._watch = watch
        self._first = gate.score.held_back if gate else 1
        self._hold_back = hold_back

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        watch = self._watch
        answers = input_ids[:, watch.prompt_length :].tolist()
        going = [i for i, row in enumerate(self._rows) if not row.done]
        decided = [i for i in going if watch.refused[i] or watch.lengths[i] >= 0]
        decisions = watch.decisions() if decided else []
        for i in decided:
            self._rows[i].finish(answers[i][: int(watch.lengths[i])], decisions[i])
        for i in set(going) - set(decided):
            passed = len(answers[i]) - self._hold_back
            if self._rows[i].reader.streams and len(answers[i]) >= self._first and passed > 0:
                self._rows[i].show(answers[i][:passed])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _options(sampling: Sampling | None) -> dict[str, Any]:
    """`generate`'s options for it."""
    if sampling is None:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
