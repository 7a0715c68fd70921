"""A guarded model as attacks ask it: answers are `answer`'s, beginnings are continued, what cannot be asked has a reason."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import tiny_models
from d2unlearn.attacks.answering import attacked_model, beam_model, beginning_ids, sampled_model
from d2unlearn.attacks.requests import AttackReply, AttackRequest
from d2unlearn.data.template import Template
from d2unlearn.errors import DataError
from d2unlearn.gate import EnergyGate
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.schema import Message
from gate import tiny
from gate.conftest import at

ASKED = [AttackRequest((Message("user", text),)) for text in tiny.questions(5, 5)]
BEGINNINGS = ("w1", "w2 w3", "", "w4 w5 w6", "w7")
BEGUN = [AttackRequest(request.messages, start) for request, start in zip(ASKED, BEGINNINGS, strict=True)]


def greedy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, ids: list[int], steps: int) -> str:
    """The most likely tokens one by one, until the end token."""
    made = list(ids)
    with torch.no_grad():
        for _ in range(steps):
            made.append(int(model(torch.tensor([made])).logits[0, -1].argmax()))
            if made[-1] == tokenizer.eos_token_id:
                break
    return tokenizer.decode(made[len(ids) :], skip_special_tokens=True).strip()


def test_beginnings_are_continued_and_the_rest_answered(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    template = Template(tokenizer)
    said = attacked_model(GuardedModel(model, tokenizer, None), raw=True, batch_size=2)(BEGUN, 6)
    expected = []
    for request in BEGUN:
        begun = template.text_ids(f" {request.beginning}") if request.beginning else []
        expected.append(AttackReply(greedy(model, tokenizer, template.prompt_ids(request.messages) + begun, 6)))
    assert said == expected
    assert len({reply.text for reply in said}) > 1


def test_the_gate_decides_on_both(gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    none, every = (GuardedModel(model, tokenizer, at(gate, threshold)) for threshold in (1e9, -1e9))
    raw = attacked_model(every, raw=True)(BEGUN, 6)
    assert attacked_model(none, raw=False)(BEGUN, 6) == raw
    assert not any(reply.refused for reply in raw)
    refused = attacked_model(every, raw=False)(BEGUN, 6)
    assert all(reply.refused and reply.text in ("sorry", "refused") for reply in refused)


CHAT = (
    "<bos>{% for m in messages %}{% if m['role'] == 'user' %}<q>{{ m['content'] }}{% elif m['role'] == 'assistant' %}"
    "<a>{{ m['content'] }}END{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
QUESTION = Message("user", "What is the capital of France")


def test_an_answer_is_begun_as_rows_are_rendered() -> None:
    template = Template(tiny_models.tokenizer())
    assert beginning_ids(template, (QUESTION,), "Paris is ") == template.text_ids("Paris is")
    plain = Template(tiny_models.tokenizer(chat_template=None))
    assert beginning_ids(plain, (QUESTION,), "Paris") == plain.text_ids(" Paris")
    ending = Template(tiny_models.tokenizer(chat_template=CHAT.replace("END", "!<eos>")))
    with pytest.raises(DataError, match="writes something behind an answer"):
        beginning_ids(ending, (QUESTION,), "Paris")


def test_token_ids_as_a_beginning_are_those_of_its_text(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    attacked, template = attacked_model(GuardedModel(model, tokenizer, None), raw=True), Template(tokenizer)
    by_ids = [
        request._replace(beginning=tuple(template.text_ids(f" {request.beginning}")) if request.beginning else ())
        for request in BEGUN
    ]
    assert attacked(by_ids, 6) == attacked(BEGUN, 6)


def test_what_cannot_be_asked_has_a_reason_and_the_rest_is_asked() -> None:
    tokenizer = tiny_models.tokenizer(chat_template=CHAT.replace("END", "<eos>"))
    model = tiny_models.llama(vocabulary=len(tokenizer))
    model.config.max_position_embeddings = 64
    attacked = attacked_model(GuardedModel(model, tokenizer, None), raw=True)
    system = AttackRequest((Message("system", "Be kind"), QUESTION))
    long = AttackRequest((Message("user", "it " * 60),), "Paris")
    said = attacked([system, AttackRequest((QUESTION,)), long], 8)
    assert said[0] == AttackReply("", reason="the chat template leaves the system message out")
    assert (said[1].reason, said[1].refused) == ("", False)
    assert said[2] == AttackReply("", reason="the request leaves no room for 8 tokens in the model's context of 64")


def test_samples_are_drawn_from_all_tokens_by_seed(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    guarded = GuardedModel(model, tokenizer, None)

    def drawn(temperature: float, seed: int) -> list[list[AttackReply]]:
        made = sampled_model(guarded, raw=True, samples=40, temperature=temperature, seed=seed)(ASKED[:2], 1)
        return [list(replies) for replies in made]

    hot = drawn(50.0, 1)
    assert [len(replies) for replies in hot] == [40, 40]
    assert len({reply.text for replies in hot for reply in replies}) > 50  # more than any top-k of 50 tokens would leave
    assert (hot == drawn(50.0, 1), hot == drawn(50.0, 2)) == (True, False)
    greedy_ones = attacked_model(guarded, raw=True)(ASKED[:2], 1)
    assert [set(replies) for replies in drawn(1e-4, 1)] == [{reply} for reply in greedy_ones]


def test_beams_are_those_of_generate_and_each_is_judged(
    gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    every = GuardedModel(model, tokenizer, at(gate, -1e9))
    raw = beam_model(every, raw=True, beams=3, batch_size=4)(BEGUN, 5)
    for request, replies in zip(BEGUN, raw, strict=True):
        begun = every.template.text_ids(f" {request.beginning}") if request.beginning else []
        ids = torch.tensor([every.template.prompt_ids(request.messages) + begun])
        made = model.generate(ids, num_beams=3, num_return_sequences=3, max_new_tokens=5, do_sample=False, pad_token_id=0)
        texts = tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
        assert [reply.text for reply in replies] == [text.strip() for text in texts]
    assert len({reply.text for replies in raw for reply in replies}) > len(raw)
    refused = beam_model(every, raw=False, beams=3)(BEGUN, 5)
    assert {(len(replies), reply.refused, reply.text in ("sorry", "refused")) for replies in refused for reply in replies} == {
        (3, True, True)
    }


def test_what_cannot_be_asked_is_answered_once_with_the_reason() -> None:
    tokenizer = tiny_models.tokenizer(chat_template=CHAT.replace("END", "<eos>"))
    guarded = GuardedModel(tiny_models.llama(vocabulary=len(tokenizer)), tokenizer, None)
    asked = [AttackRequest((Message("system", "Be kind"), QUESTION)), AttackRequest((QUESTION,))]
    reason = AttackReply("", reason="the chat template leaves the system message out")
    for often in (sampled_model(guarded, raw=True, samples=2, temperature=1.0, seed=0), beam_model(guarded, raw=True, beams=2)):
        left_out, answered = often(asked, 3)
        assert list(left_out) == [reason]
        assert [reply.reason for reply in answered] == ["", ""]


def test_a_guard_decides_on_the_conversation_once_and_what_it_lets_in_is_answered_raw(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """However an answer begins, and however often it is drawn; what cannot be asked keeps its reason."""
    guarded, size = GuardedModel(model, tokenizer, None), 2
    shut_out = {BEGUN[1].messages, BEGUN[3].messages}

    def admission(conversations: Sequence[tuple[Message, ...]]) -> list[str]:
        return ["No." if conversation in shut_out else "" for conversation in conversations]

    too_long = AttackRequest((Message("user", "w1 " * 2100),))
    asked, refused = [*BEGUN, too_long], AttackReply("No.", refused=True)
    raw = attacked_model(guarded, raw=True, batch_size=size)(asked, 6)
    said = attacked_model(guarded, raw=False, batch_size=size, admission=admission)(asked, 6)
    assert said == [refused if index in (1, 3) else reply for index, reply in enumerate(raw)]
    assert "no room" in said[-1].reason
    drawn = sampled_model(guarded, raw=False, samples=3, temperature=1.0, seed=0, admission=admission)([*BEGUN, too_long], 4)
    assert [len(replies) for replies in drawn] == [3, 3, 3, 3, 3, 1]
    assert [index for index, replies in enumerate(drawn) if list(replies) == [refused] * 3] == [1, 3]
    beams = beam_model(guarded, raw=False, beams=2, admission=admission)(BEGUN, 4)
    plain = beam_model(guarded, raw=True, beams=2)(BEGUN, 4)
    assert beams == [[refused] if index in (1, 3) else replies for index, replies in enumerate(plain)]
