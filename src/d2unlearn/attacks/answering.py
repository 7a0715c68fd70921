"""A guarded model as an attack asks it: conversations, and beginnings of answers that the model continues.

Each way of answering (greedy, sampled, beams) is made once and called with requests. What cannot be asked has its reason: what
the chat template does not take or silently leaves out, and what leaves too little room in the model's context for an answer.

Where a guard of untouched weights stands before the model (`admission`), it decides on the conversation once, whatever the
answer begins with and however often it is drawn; what it lets in is answered raw.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from d2unlearn.attacks.requests import Admission, Attacked, AttackedOften, AttackReply, AttackRequest
from d2unlearn.data.batching import by_length
from d2unlearn.data.template import Template
from d2unlearn.errors import DataError
from d2unlearn.generation.guarded import Answer, GateWarning, GuardedModel
from d2unlearn.models import context_length
from d2unlearn.schema import Example, Message


def attacked_model(guarded: GuardedModel, *, raw: bool, batch_size: int = 32, admission: Admission | None = None) -> Attacked:
    """Greedy answers, guarded or raw."""

    def answer(asked: Sequence[AttackRequest], max_new_tokens: int) -> list[AttackReply]:
        said, begun = _checked(guarded, asked, max_new_tokens, admission)
        answers = guarded.answer(
            [asked[index].messages for index in begun],
            beginnings=list(begun.values()),
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            raw=raw,
        )
        for index, made in zip(begun, answers, strict=True):
            said[index] = _reply(made)
        return said

    return answer


def sampled_model(
    guarded: GuardedModel,
    *,
    raw: bool,
    samples: int,
    temperature: float,
    seed: int,
    batch_size: int = 32,
    admission: Admission | None = None,
) -> AttackedOften:
    """So many answers to each request, drawn at that temperature from all tokens (no top-k, no top-p).

    What a guard shuts out is refused as often; what cannot be asked has its reason once.
    """

    def answer(asked: Sequence[AttackRequest], max_new_tokens: int) -> list[list[AttackReply]]:
        said, begun = _checked(guarded, asked, max_new_tokens, admission)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GateWarning)  # the gate under sampling is what is looked at
            answers = guarded.answer(
                [asked[index].messages for index in begun for _ in range(samples)],
                beginnings=[ids for ids in begun.values() for _ in range(samples)],
                max_new_tokens=max_new_tokens,
                do_sample=True,
                temperature=temperature,
                top_p=1.0,
                top_k=0,
                seed=seed,
                batch_size=batch_size,
                raw=raw,
            )
        replies = [[reply] * (1 if reply.reason else samples) for reply in said]
        for place, index in enumerate(begun):
            replies[index] = [_reply(made) for made in answers[place * samples : (place + 1) * samples]]
        return replies

    return answer


def beam_model(
    guarded: GuardedModel, *, raw: bool, beams: int, batch_size: int = 32, admission: Admission | None = None
) -> AttackedOften:
    """All the answers that a beam search of that width ends with, best first."""
    options: dict[str, Any] = {"do_sample": False, "num_beams": beams, "num_return_sequences": beams}
    rule = None if raw else guarded.rule

    def answer(asked: Sequence[AttackRequest], max_new_tokens: int) -> list[list[AttackReply]]:
        said, begun = _checked(guarded, asked, max_new_tokens, admission)
        replies, indices = [[reply] for reply in said], list(begun)
        prompts = [
            [*guarded.template.prompt_ids(guarded.conversation(asked[index].messages)), *begun[index]] for index in indices
        ]
        for places in by_length([len(ids) for ids in prompts], max(1, batch_size // beams)):
            ids, mask = guarded.batch([prompts[place] for place in places])
            own = [(asked[indices[place]].messages, bool(begun[indices[place]])) for place in places]
            turns = [] if raw else [guarded.turns_of(messages, begun=start) for messages, start in own]
            leads = [guarded.lead_of(messages, begun=start) for messages, start in own]
            limited = {**options, "max_new_tokens": max_new_tokens}
            made = guarded.generator.generate(rule, ids, mask, limited, warn=False, turns=turns, leads=leads)
            found = list(zip(made.decisions, made.traces, strict=True))
            for row, place in enumerate(places):
                replies[indices[place]] = [
                    _reply(guarded.answer_of(prompts[place], decision, trace.token_ids))
                    for decision, trace in found[row * beams : (row + 1) * beams]
                ]
        return replies

    return answer


def beginning_ids(template: Template, messages: tuple[Message, ...], beginning: str) -> list[int]:
    """The ids that stand behind the prompt's for an answer so begun, as a row with that answer is rendered, without its end.

    Raises `DataError` where the template does not put answers behind prompts.
    """
    tokenizer = template.tokenizer
    row = template.tokens(Example("beginning", messages, beginning.rstrip(), "an answer's beginning"))
    ids = [token for token, is_answer in zip(row.input_ids, row.answer_mask, strict=True) if is_answer]
    ends = set(tokenizer.all_special_ids)
    while ids and ids[-1] in ends:
        ids.pop()
    if not str(tokenizer.decode(ids)).endswith(beginning.rstrip()[-1:]):
        raise DataError("the chat template writes something behind an answer, so that none can be begun")
    return ids


def _reply(answer: Answer) -> AttackReply:
    return AttackReply(answer.text, answer.refused)


def _checked(
    guarded: GuardedModel, asked: Sequence[AttackRequest], max_new_tokens: int, admission: Admission | None
) -> tuple[list[AttackReply], dict[int, Sequence[int]]]:
    """A reply to each request, with the reason where it cannot be asked, or a refusal; the beginnings' ids of the others."""
    said = [AttackReply("") for _ in asked]
    begun: dict[int, Sequence[int]] = {}
    for index, request in enumerate(asked):
        try:
            begun[index] = _checked_beginning(guarded, request, max_new_tokens)
        except DataError as error:
            said[index] = AttackReply("", reason=str(error))
    able = list(begun) if admission else []
    refusals = admission([asked[index].messages for index in able]) if admission and able else ()
    for index, refusal in zip(able, refusals, strict=True):
        if refusal:
            said[index] = AttackReply(refusal, refused=True)
            del begun[index]
    return said, begun


def _checked_beginning(guarded: GuardedModel, request: AttackRequest, max_new_tokens: int) -> Sequence[int]:
    """The ids that the answer begins with. Raises `DataError` where the request cannot be asked as it stands."""
    template, messages, beginning = guarded.template, request.messages, request.beginning
    ids = template.prompt_ids(messages)
    for index, message in enumerate(messages[:-1]):
        if message.content and template.prompt_ids(messages[:index] + messages[index + 1 :]) == ids:
            raise DataError(f"the chat template leaves the {message.role} message out")
    if isinstance(beginning, str):
        begun = beginning_ids(template, messages, beginning) if beginning else []
    else:
        begun = list(beginning)
    limit = context_length(guarded.model)
    if limit is not None and len(ids) + len(begun) + max_new_tokens > limit:
        raise DataError(f"the request leaves no room for {max_new_tokens} tokens in the model's context of {limit}")
    return begun
