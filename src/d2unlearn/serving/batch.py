"""One batch of requests through the model: each row ends by itself, and is handed out as soon as the gate has decided on it.

Rows share the forward passes and nothing else: a row's limit, stop texts, stream and refusal are its own. What is streamed
comes as late as in `GuardedModel.stream`: nothing of an answer that the early looks refuse is shown; an answer refused later
ends with a line break and the refusal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from d2unlearn.gate import EnergyGate
from d2unlearn.gate.online import Decision, OnlineGate
from d2unlearn.generation.guarded import Answer, GuardedModel
from d2unlearn.models import ONE_ANSWER
from d2unlearn.runtime import drawing_from

Finish = Literal["stop", "length", "content_filter"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Requests that share one may share a batch, so a `seed` (None: any) is a batch of its own."""

    temperature: float
    top_p: float
    seed: int | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """One request: the prompt's ids, the longest answer in tokens, texts that end it, how it is drawn (None: greedily).

    `turns`: prompts that it is judged by beside its own (`GuardedModel.turns_of`). `refusal`: the words that it is refused
    with; None: the gate's own. `lead`: what is added to its score (`GuardedModel.lead_of`).
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    sampling: Sampling | None = None
    turns: tuple[tuple[int, ...], ...] = ()
    refusal: str | None = None
    lead: float = 0.0


@dataclass(frozen=True)
class Piece:
    """A part of an answer that is being streamed."""

    text: str


@dataclass(frozen=True)
class Completion:
    """A request's answer, why nothing more follows (in OpenAI's words), and the tokens of its prompt.

    Where energies could not be computed or are no numbers, the answer's are neither, and the request is refused.
    """

    answer: Answer
    finish: Finish
    n_prompt: int


class Recipient(Protocol):
    """Who asked. `take` must not raise; once `gone`, the row is ended at the next token."""

    @property
    def streams(self) -> bool: ...

    @property
    def gone(self) -> bool: ...

    def take(self, event: Piece | Completion) -> None: ...


def generate_rows(
    guarded: GuardedModel, asked: Sequence[GenerationRequest], recipients: Sequence[Recipient], *, hold_back: int = 0
) -> None:
    """Answer requests that are drawn alike (`GenerationRequest.sampling`), each to its recipient. Left-padded, one generation.

    `hold_back`: streams show a token only when so many more have been chosen.
    """
    rows = [_Row(request, recipient, guarded) for request, recipient in zip(asked, recipients, strict=True)]
    ids, mask = guarded.batch([request.prompt_ids for request in asked])
    sampling = asked[0].sampling
    options = {
        **ONE_ANSWER,
        "max_new_tokens": max(request.max_new_tokens for request in asked),
        "eos_token_id": list(guarded.generator.tokens.ends) or None,
        "stopping_criteria": [partial(_ended, rows, ids.shape[1])],
        "do_sample": sampling is not None,
        **({"temperature": sampling.temperature, "top_p": sampling.top_p} if sampling else {}),
    }
    raw, deliver = guarded.gate is None, partial(_deliver, rows, hold_back)
    with drawing_from(sampling.seed if sampling else None, guarded.model.device):
        guarded.generator.generate(
            guarded.rule,
            ids,
            mask,
            options,
            listener=deliver,
            any_way=raw,
            warn=False,
            turns=[request.turns for request in asked],
            leads=[request.lead for request in asked],
        )


def refusal_of(gate: EnergyGate, asked: GenerationRequest) -> Completion:
    """The refusal of a request whose energy could not be computed."""
    answer = Answer(asked.refusal or gate.refusal(asked.prompt_ids), True, math.nan, math.nan, gate.threshold, 0)
    return Completion(answer, "content_filter", len(asked.prompt_ids))


@dataclass
class _Row:
    """A row on its way: what was shown of it, and whether it is done."""

    asked: GenerationRequest
    recipient: Recipient
    guarded: GuardedModel
    done: bool = False
    shown: str = ""

    def at_end(self, tokens: list[int]) -> bool:
        """Whether the row ends with the tokens that it has, by anything but an end token."""
        if self.recipient.gone or len(tokens) >= self.asked.max_new_tokens:
            return True
        return self._stopped(tokens)

    def show(self, tokens: list[int]) -> None:
        """Hand on what further tokens cannot change: no half character, nothing that could be the start of a stop text."""
        text = self.guarded.text_of(tokens)
        longest = max(map(len, self.asked.stop), default=1)
        self._hand_on(text[: max(len(text) - longest + 1, 0)].rstrip("\ufffd").strip())

    def finish(self, tokens: list[int], decision: Decision) -> None:
        self.done = True
        answer = self.guarded.answer_of(self.asked.prompt_ids, decision, tokens, self.asked.stop, self.asked.refusal)
        if self.recipient.streams:
            self._hand_on(f"{self.shown}\n{answer.text}" if answer.refused and self.shown else answer.text)
        ended = tokens[-1] in self.guarded.generator.tokens.ends or self._stopped(tokens)
        finish: Finish = "content_filter" if answer.refused else "stop" if ended else "length"
        self.recipient.take(Completion(answer, finish, len(self.asked.prompt_ids)))

    def _stopped(self, tokens: list[int]) -> bool:
        return bool(self.asked.stop) and any(stop in self.guarded.text_of(tokens) for stop in self.asked.stop)

    def _hand_on(self, text: str) -> None:
        """Text so far; of one that an odd tokenizer changed at its start the new end."""
        if len(text) > len(self.shown):
            self.recipient.take(Piece(text[len(self.shown) :]))
            self.shown = text


def _ended(rows: Sequence[_Row], prompt_length: int, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
    """A stopping criterion: rows that end by their own limit, by a stop text, or because their recipient has gone."""
    answers = input_ids[:, prompt_length:].tolist()
    ended = [row.done or row.at_end(answer) for row, answer in zip(rows, answers, strict=True)]
    return torch.tensor(ended, device=input_ids.device)


def _deliver(rows: Sequence[_Row], hold_back: int, answers: Tensor, gate: OnlineGate) -> None:
    """Hand out what the gate has let pass or decided. answers: [B, t]."""
    tokens, passed = answers.tolist(), gate.showable(hold_back)
    decisions = gate.decisions() if (gate.lengths >= 0).any() else []
    for index, row in enumerate(rows):
        if row.done:
            continue
        length = int(gate.lengths[index])
        if length >= 0:
            row.finish(tokens[index][:length], decisions[index])
        elif row.recipient.streams and passed:
            row.show(tokens[index][:passed])
