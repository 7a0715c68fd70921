"""A guarded model as an attack asks it: conversations, and beginnings of answers that the model continues."""

from __future__ import annotations

from collections.abc import Sequence

from d2unlearn.attacks.wordings import Attacked, AttackReply, AttackRequest
from d2unlearn.data.batching import by_length, pad_left
from d2unlearn.data.template import Template
from d2unlearn.errors import DataError
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.models import context_length, pad_token_id
from d2unlearn.schema import Example, Message


def attacked_model(guarded: GuardedModel, *, raw: bool, batch_size: int = 16) -> Attacked:
    """Greedy answers, guarded or raw.

    Not asked, with the reason: what the chat template does not take or silently leaves out, and what leaves too little room in
    the model's context for an answer.
    """

    def answer(asked: Sequence[AttackRequest], max_new_tokens: int) -> list[AttackReply]:
        said = [AttackReply("") for _ in asked]
        prompts: dict[int, list[int]] = {}
        for index, request in enumerate(asked):
            try:
                prompts[index] = _checked_prompt(guarded, request, max_new_tokens)
            except DataError as error:
                said[index] = AttackReply("", reason=str(error))
        whole = [index for index in prompts if not asked[index].beginning]
        begun = [index for index in prompts if asked[index].beginning]
        answers = guarded.answer(
            [asked[index].messages for index in whole], max_new_tokens=max_new_tokens, batch_size=batch_size, raw=raw
        )
        for index, made in zip(whole, answers, strict=True):
            said[index] = AttackReply(made.text, made.refused)
        for places in by_length([len(prompts[index]) for index in begun], batch_size):
            batch = [begun[place] for place in places]
            continued = _continued(guarded, [prompts[index] for index in batch], max_new_tokens, raw)
            for index, reply in zip(batch, continued, strict=True):
                said[index] = reply
        return said

    return answer


def prefilled_ids(template: Template, messages: tuple[Message, ...], beginning: str) -> list[int]:
    """The conversation with its answer begun, as a row with that answer is rendered, without what ends the answer.

    Raises `DataError` where the template does not put answers behind prompts.
    """
    tokenizer = template.tokenizer
    ids = list(template.tokens(Example("beginning", messages, beginning.rstrip(), "an answer's beginning")).input_ids)
    ends = set(tokenizer.all_special_ids)
    while ids and ids[-1] in ends:
        ids.pop()
    if not str(tokenizer.decode(ids)).endswith(beginning.rstrip()[-1:]):
        raise DataError("the chat template writes something behind an answer, so that none can be begun")
    return ids


def _checked_prompt(guarded: GuardedModel, request: AttackRequest, max_new_tokens: int) -> list[int]:
    """The request's ids. Raises `DataError` where it cannot be asked as it stands."""
    template, messages = guarded.template, request.messages
    ids = template.prompt_ids(messages)
    for index, message in enumerate(messages[:-1]):
        if message.content and template.prompt_ids(messages[:index] + messages[index + 1 :]) == ids:
            raise DataError(f"the chat template leaves the {message.role} message out")
    if request.beginning:
        ids = prefilled_ids(template, messages, request.beginning)
    limit = context_length(guarded.model)
    if limit is not None and len(ids) + max_new_tokens > limit:
        raise DataError(f"the request leaves no room for {max_new_tokens} tokens in the model's context of {limit}")
    return ids


def _continued(guarded: GuardedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, raw: bool) -> list[AttackReply]:
    """What the model adds to each prompt. A refusal is known by its words: `generate` puts them in the answer's place."""
    ids, mask = pad_left(prompts, pad_token_id(guarded.tokenizer))
    device = guarded.model.device
    sequences = guarded.generate(
        ids.to(device), mask.to(device), raw=raw, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1
    )
    texts = guarded.tokenizer.batch_decode(sequences[:, ids.shape[1] :], skip_special_tokens=True)
    refusals = () if raw or guarded.gate is None else guarded.gate.refusal_texts
    return [AttackReply(text.strip(), text.strip() in refusals) for text in texts]
