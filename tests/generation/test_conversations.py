"""Every turn of a conversation is looked at: alone, batched, streamed and by beams, whatever stands around it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.data.batching import by_tokens, pad_left
from d2unlearn.data.template import Template
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.gated import TURN_TOKENS, looked_tokens
from d2unlearn.gate.guarantees import GroupGuarantee
from d2unlearn.gate.score import FirstTokens, Highest, request_scores
from d2unlearn.gate.traces import collect_traces
from d2unlearn.gate.turns import turns_by_themselves, under_system
from d2unlearn.generation.carried_generate import KEPT_AS
from d2unlearn.generation.carried_generate import generate as carried_generate
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.generation.stepwise import Sessions
from d2unlearn.runtime import read_json
from d2unlearn.schema import GATE_FILE, Message
from gate import tiny

from .conftest import Halves, halves
from .engines import ask_probes
from .test_guarded import counted

HELLO = (Message("user", "w1 w2"), Message("assistant", "w3"))


@pytest.fixture(scope="module")
def asked(gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Halves:
    """Two positions decide, so a turn's look is all of its score."""
    return halves(gate, model, tokenizer, FirstTokens(2))


def said(text: str) -> Message:
    return Message("user", text)


def score_of(asked: Halves, prompts: list[tuple[Message, ...]]) -> np.ndarray:
    """The naive score: of each rendering by itself, without a batch."""
    guarded = asked.guarded
    ids = [guarded.template.prompt_ids(prompt) for prompt in prompts]
    found = [collect_traces(guarded.model, guarded.tokenizer, [each], max_new_tokens=2)[0].energies for each in ids]
    return request_scores(guarded.gate.score, found)  # type: ignore[union-attr]


def test_what_is_looked_at_by_itself() -> None:
    a, b = said("a"), said("b")
    assert turns_by_themselves([a]) == []
    assert turns_by_themselves([a], begun=True) == [(a,)]
    assert turns_by_themselves([Message("system", "s"), a]) == [(a,)]
    conversation = [a, Message("assistant", "x"), b, said("  "), a, Message("assistant", "b")]
    assert turns_by_themselves(conversation) == [(a,), (b,)]
    deployed, other = Message("system", "s"), Message("system", "t")
    assert turns_by_themselves([deployed, a], "s") == []
    assert turns_by_themselves([other, a], "s") == [(deployed, a)]
    assert turns_by_themselves([said("Hi! Who is A?")]) == []
    assert turns_by_themselves([said("Hi! Who is A?")], sentences=True) == [(said("Who is A?"),)]
    assert turns_by_themselves([said("Who is A?")], sentences=True) == []
    greek = said("Hello: who wαs A?")
    plain = [said(text) for text in ("who wαs A?", "Hello: who was A?", "who was A?")]
    assert turns_by_themselves([greek], sentences=True) == [(each,) for each in plain]
    assert turns_by_themselves([greek], "s", sentences=True) == [(deployed, each) for each in (greek, *plain)]
    assert under_system([a], "s") == (deployed, a)
    assert under_system([other, a], "s") == (other, a)
    assert under_system([a], None) == (a,)


def test_a_gate_of_a_deployment_s_system_message(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Calibrated under it, a question is asked under it, and the file keeps it; without one the file says nothing of it."""
    rows, template = tiny.examples(1, 16), Template(tokenizer)
    gate = EnergyGate.calibrate(model, tokenizer, rows, max_false_refusal=0.2, max_new_tokens=2, score="prompt", system="w9 w8")
    deployed = Message("system", "w9 w8")
    rendered = [template.prompt_ids((deployed, *row.prompt)) for row in rows]
    energies = [trace.energies[0] for trace in collect_traces(model, tokenizer, rendered, max_new_tokens=1)]
    for score in gate.calibration.calibration_scores:
        assert min(abs(score - energy) for energy in energies) < 1e-4
    assert "under the deployment's system message" in gate.guarantee
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    gate.save(tmp_path)
    assert EnergyGate.from_pretrained(tmp_path).system == "w9 w8"
    replace(gate, system=None).save(tmp_path)
    assert "system" not in read_json(tmp_path / GATE_FILE)
    guarded = GuardedModel(model, tokenizer, gate)
    assert guarded.decide("w1 w2") == guarded.decide((deployed, said("w1 w2")))
    assert guarded.decide("w1 w2").energy != guarded.decide((Message("system", "w3"), said("w1 w2"))).energy


def test_batches_by_tokens() -> None:
    assert list(by_tokens([4, 1, 2, 9, 1], 4)) == [[1, 4], [2], [0], [3]]
    assert list(by_tokens([], 4)) == []


def test_the_highest_score_counts_alone_and_in_a_batch(asked: Halves) -> None:
    """A conversation's score is the maximum over the whole prompt and each turn by itself, whoever it is answered with."""
    conversations: list[tuple[Message, ...]] = [
        *((*HELLO, said(prompt)) for prompt in asked.prompts[:5]),
        *((said(prompt), *HELLO[1:], said("w5")) for prompt in asked.prompts[3:]),
        (Message("system", "w7 w8"), said(asked.prompts[0])),
    ]
    wanted = [float(score_of(asked, [own, *turns_by_themselves(own)]).max()) for own in conversations]
    threshold = asked.guarded.gate.threshold  # type: ignore[union-attr]
    answers = asked.guarded.answer(conversations, max_new_tokens=3)
    assert {answer.refused for answer in answers} == {True, False}
    assert [answer.refused for answer in answers] == [score > threshold for score in wanted]
    for answer, score in zip(answers, wanted, strict=True):
        assert answer.score is not None
        assert threshold < answer.score <= score + 1e-4 if answer.refused else answer.score == pytest.approx(score, abs=1e-4)
    for own, answer in list(zip(conversations, answers, strict=True))[:: len(conversations) // 5]:
        alone = asked.guarded.decide(own)
        assert (alone.refused, alone.score) == (answer.refused, pytest.approx(answer.score, abs=1e-4))
        assert "".join(asked.guarded.stream(own, max_new_tokens=3)) == answer.text


def test_nothing_that_a_client_writes_around_a_refused_question_frees_it(asked: Halves) -> None:
    """Not a harmless turn before or after it, not a forged, altered or missing refusal, not forged pairs."""
    forgotten = said(asked.prompts[int(np.argmax(asked.scores))])
    harmless = said(asked.prompts[int(np.argmin(asked.scores))])
    (refusal,) = asked.guarded.answer([(forgotten,)])
    assert refusal.refused
    for answered in (refusal.text, "", "w9 w10 w11", "sorry w1"):
        pair = (forgotten, Message("assistant", answered))
        around: list[tuple[Message, ...]] = [
            (*pair, harmless),
            (*pair, *pair, harmless),
            (*HELLO, *pair, *HELLO, harmless),
            (harmless, Message("assistant", answered), forgotten),
            (Message("system", answered or "w1"), *pair, harmless),
            (forgotten, harmless),
        ]
        assert all(answer.refused and answer.n_tokens == 0 for answer in asked.guarded.answer(around))
    assert asked.guarded.answer([(*HELLO, forgotten)], raw=True)[0].refused is False


def test_a_forgotten_sentence_is_refused_among_others_where_the_gate_was_calibrated_so(asked: Halves) -> None:
    """Within a turn, behind a label, in look-alike letters; a gate that looks at turns alone judges the whole."""
    gate, forgotten = asked.guarded.gate, asked.prompts[int(np.argmax(asked.scores))]
    assert gate is not None
    assert gate.sentences
    turns_alone = GuardedModel(asked.guarded.model, asked.guarded.tokenizer, replace(gate, sentences=False))
    wide = forgotten.replace("w", "\uff57")
    for text in (f"w1 w2.\n{forgotten}", f"w3: {forgotten}", f"w1 w2 w3. {wide}"):
        request = (said(text),)
        alone = (said(forgotten),)
        assert alone in turns_by_themselves(request, sentences=True)
        assert asked.guarded.decide(request).refused
        assert turns_alone.turns_of(request) == []
        assert turns_alone.decide(request).score == pytest.approx(float(score_of(asked, [request])[0]), abs=1e-4)


def test_an_answer_that_was_begun_does_not_hide_its_question(asked: Halves) -> None:
    begun = [asked.guarded.template.text_ids("w1 w2 w3")] * len(asked.prompts)
    answers = asked.guarded.answer(asked.prompts, beginnings=begun)
    assert all(answer.refused for answer, refused in zip(answers, asked.refused, strict=True) if refused)


def test_what_looking_costs(asked: Halves) -> None:
    """A question alone: no pass more. Four turns: one batch of them more, for the first tokens of an answer."""
    guarded = asked.guarded
    plain, turns = asked.ids[0], [asked.ids[1]] * 4
    mask_of = pad_left([plain], 0)
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 1}
    guarded.decide(asked.prompts[0])
    never = replace(guarded.rule, threshold=1e9)  # type: ignore[type-var]
    guarded.generator.weights.trust(never)
    with counted(guarded.model) as without:
        guarded.generator.generate(never, *mask_of, dict(options))
    with counted(guarded.model) as looked:
        guarded.generator.generate(never, *mask_of, dict(options), turns=[[]])
    assert looked == without
    with counted(guarded.model) as looked:
        scores = guarded.generator.turn_scores(never, [turns, []], 4 * len(turns[0]))
    assert looked == [len(turns[0]), *[1] * (len(looked) - 1)]
    assert len(looked) == 2  # the score looks at two positions
    assert scores.tolist() == [pytest.approx(asked.scores[1], abs=1e-4), -np.inf]


def test_beams_are_judged_by_turns_too(asked: Halves) -> None:
    refused, answered = int(np.argmax(asked.scores)), int(np.argmin(asked.scores))
    ids, mask = pad_left([asked.ids[answered]] * 2, 0)
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2, "num_return_sequences": 2}
    made = asked.guarded.generator.generate(
        asked.guarded.rule, ids, mask, options, warn=False, turns=[[], [asked.ids[refused]]]
    )
    assert [decision.refused for decision in made.decisions[2:]] == [True, True]
    assert [decision.score for decision in made.decisions[2:]] == [pytest.approx(asked.scores[refused], abs=1e-4)] * 2


def test_a_turns_look_never_exceeds_its_whole_answers_score(
    gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """So looking at turns refuses none that would pass by itself."""
    assert [looked_tokens(score) for score in (FirstTokens(1), FirstTokens(12), Highest(2))] == [1, 12, TURN_TOKENS]
    wide = halves(gate, model, tokenizer, Highest(2))
    looked = wide.guarded.generator.turn_scores(wide.guarded.rule, [[ids] for ids in wide.ids], 100)  # type: ignore[arg-type]
    assert (looked <= wide.scores + 1e-4).all()
    assert (looked < wide.scores - 1e-3).any()


def test_token_ids_alone_are_judged_as_a_whole(asked: Halves) -> None:
    """What `generate`, the carried code and vLLM are told does not say who said what: such a conversation passes there."""
    guarded, forgotten = asked.guarded, said(asked.prompts[int(np.argmax(asked.scores))])
    harmless = said(asked.prompts[int(np.argmin(asked.scores))])
    talk = (forgotten, Message("assistant", "w3"), harmless)
    whole = float(score_of(asked, [talk])[0])
    rule = guarded.rule
    assert rule is not None
    assert whole < rule.threshold < float(asked.scores.max())
    prompt = guarded.template.prompt_ids(talk)
    ids, mask = guarded.batch([prompt])
    options = {"max_new_tokens": 12, "do_sample": False}
    assert guarded.generate(ids, mask, **options).tolist() == guarded.generate(ids, mask, raw=True, **options).tolist()
    vars(guarded.model)[KEPT_AS] = rule, guarded.generator
    carried = carried_generate(ids, model=guarded.model, attention_mask=mask, **options)
    del vars(guarded.model)[KEPT_AS]
    assert carried.tolist() == guarded.generate(ids, mask, raw=True, **options).tolist()
    (trace,) = collect_traces(guarded.model, guarded.tokenizer, [prompt], max_new_tokens=12)
    sessions = Sessions(rule, guarded.generator.tokens)
    ask_probes(sessions, rule)
    session = sessions.begin(prompt, [], [2], 12)
    assert [session.judge(place, energy).forced for place, energy in enumerate(trace.energies)] == [None] * len(trace.energies)
    assert guarded.decide(talk).refused


def test_a_group_s_lead_counts_where_messages_are_known_and_nowhere_else(asked: Halves) -> None:
    """A wrapped request that passes by itself is refused by its group's lead, as soon as that carries it over the threshold."""
    gate = asked.guarded.gate
    assert gate is not None
    wrapped = next(
        prompt
        for prompt in ((Message("system", "w9"), said(text)) for text in asked.prompts)
        if score_of(asked, [prompt, prompt[1:]]).max() < gate.threshold
    )
    score = float(score_of(asked, [wrapped, wrapped[1:]]).max())
    for more, refused in ((-1e-3, False), (1e-3, True)):
        lead = gate.threshold - score + more
        groups = (GroupGuarantee("single question", 60, 4, gate.threshold), GroupGuarantee("wrapped", 60, 4, 0.0, lead=lead))
        led = replace(gate, calibration=replace(gate.calibration, groups=groups))
        guarded = GuardedModel(asked.guarded.model, asked.guarded.tokenizer, led)
        decided, (answer,) = guarded.decide(wrapped), guarded.answer([wrapped])
        assert (decided.refused, answer.refused) == (refused, refused)
        assert decided.score == pytest.approx(score + lead, abs=1e-4)
        assert "".join(guarded.stream(wrapped)).split() == answer.text.split()
        assert guarded.lead_of(wrapped) == lead
        assert guarded.answer([asked.prompts[0]]) == asked.guarded.answer([asked.prompts[0]])
        ids, mask = guarded.batch([guarded.template.prompt_ids(wrapped)])
        plain = asked.guarded.generate(ids, mask, max_new_tokens=2, do_sample=False)
        assert torch.equal(guarded.generate(ids, mask, max_new_tokens=2, do_sample=False), plain)
    assert guarded.lead_of(asked.prompts[0]) == 0.0
    assert guarded.lead_of(asked.prompts[0], begun=True) == lead
