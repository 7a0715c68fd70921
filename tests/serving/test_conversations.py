"""Conversations over HTTP are decided as in the library: by every turn, whatever a client writes around it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from d2unlearn.gate.guarantees import GroupGuarantee
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.refusals import refusals_from
from d2unlearn.schema import Message
from d2unlearn.serving import app
from d2unlearn.serving.batch import GenerationRequest
from d2unlearn.serving.playground import Playground
from generation.conftest import Halves

from .conftest import Served, serving


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def talks(split: Halves) -> list[list[dict[str, str]]]:
    """Every prompt behind a harmless turn, and before one."""
    harmless = split.prompts[int(np.argmin(split.scores))]
    some = split.prompts[:6]
    before = [[turn("user", harmless), turn("assistant", "w1"), turn("user", prompt)] for prompt in some]
    return before + [[turn("user", prompt), turn("assistant", "w1"), turn("user", harmless)] for prompt in some]


def test_the_same_decision_as_the_library(served: Served, split: Halves, talks: list[list[dict[str, str]]]) -> None:
    seen = set()
    for talk in talks:
        (answer,) = split.guarded.answer([tuple(Message(**message) for message in talk)])
        got = served.send("/v1/chat/completions", {"messages": talk, "show_energy": True}).json["choices"][0]
        assert got["message"]["content"] == answer.text
        assert got["d2"]["refused"] == answer.refused
        assert got["d2"]["score"] == pytest.approx(answer.score, abs=1e-4)
        seen.add(answer.refused)
    assert seen == {True, False}


def test_a_stream_and_the_playground_say_the_same(served: Served, split: Halves, talks: list[list[dict[str, str]]]) -> None:
    """The forgotten question lies a turn back: nothing but the refusal is shown."""
    talk = next(
        talk for talk in talks[6:] if split.guarded.answer([tuple(Message(**message) for message in talk)])[0].n_tokens == 0
    )
    body = served.send("/v1/chat/completions", {"messages": talk, "stream": True}).body.decode()
    (answer,) = split.guarded.answer([tuple(Message(**message) for message in talk)])
    assert answer.refused
    assert body.count('"content": "') == 2  # who speaks, and the refusal whole
    assert f'"content": "{answer.text}"' in body
    ids, *turns = served.service.rendered(tuple(Message(**message) for message in talk))
    shown = Playground(split.guarded, None).compare(GenerationRequest(tuple(ids), 12, turns=tuple(map(tuple, turns))))
    assert (shown["guarded"]["text"], shown["decision"]["refused"]) == (answer.text, True)


def test_more_turns_than_are_looked_at_are_turned_down(split: Halves, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven of 5 tokens each by itself, 29 together; the same turn is read once."""
    monkeypatch.setattr(app, "TURNS_TO_PROMPT", 1)
    with serving(split.guarded, max_prompt_tokens=30) as small:
        many = small.send("/v1/chat/completions", {"messages": [turn("user", f"w{place}") for place in range(7)]})
        assert (many.status, many.error["code"]) == (400, "context_length_exceeded")
        assert "the user's 7 turns and sentences, each read by itself, have 35 tokens" in many.error["message"]
        assert small.send("/v1/chat/completions", {"messages": [turn("user", "w1")] * 7}).status == 200


def test_a_product_s_own_refusals(split: Halves) -> None:
    """By topic: the library, its stream and the server, whole, streamed and with energies hidden, say the same."""
    places = np.argsort(-split.scores)[:3]
    topic = split.prompts[places[0]].split()[0]
    told = refusals_from({"default": "sorry", "topics": [{"words": [topic], "default": "refused"}]})
    guarded = GuardedModel(split.guarded.model, split.guarded.tokenizer, split.guarded.gate, told)
    with serving(guarded, hide_energy=True) as running:
        for place in places:
            prompt = split.prompts[place]
            wanted = "refused" if topic in prompt.split() else "sorry"
            (answer,) = guarded.answer([prompt])
            assert (answer.refused, answer.text) == (True, wanted)
            assert "".join(guarded.stream(prompt)).split("\n")[-1].split() == wanted.split()
            got = running.chat(prompt).json
            assert got["choices"][0]["message"]["content"] == wanted
            assert got["usage"]["completion_tokens"] == len(wanted.split())
            assert wanted in running.chat(prompt, stream=True).body.decode()


def test_another_system_message_is_counted_and_turned_down_where_that_is_wished(split: Halves) -> None:
    assert split.guarded.gate is not None
    gate = replace(split.guarded.gate, system="w9 w8")
    guarded = GuardedModel(split.guarded.model, split.guarded.tokenizer, gate)
    bare = [turn("user", split.prompts[0])]
    own, other = ([turn("system", text), *bare] for text in ("w9 w8", "w7"))
    shown = [
        guarded.answer([tuple(Message(**message) for message in talk)], max_new_tokens=4)[0].text for talk in (bare, other)
    ]
    for strict in (False, True):
        with serving(guarded, strict_system=strict) as running:
            got = [running.send("/v1/chat/completions", {"messages": talk, "max_tokens": 4}) for talk in (bare, own, other)]
            assert [each.status for each in got] == [200, 200, 400 if strict else 200]
            texts = [each.json["choices"][0]["message"]["content"] for each in got if each.status == 200]
            assert texts == ([shown[0]] * 2 if strict else [shown[0], shown[0], shown[1]])
            assert "d2_other_system_total 1.0" in running.send("/metrics").body.decode()
    assert got[2].error["code"] == "system_message"


def test_a_group_that_calibration_saw_nothing_of_is_said_once_and_counted(
    split: Halves, capsys: pytest.CaptureFixture[str]
) -> None:
    assert split.guarded.gate is not None
    groups = (
        GroupGuarantee("single question", 60, 4, -1.0),
        GroupGuarantee("wrapped", 3, 4, None, lead=5.0),
        GroupGuarantee("multi-turn", 0, 4, None),
    )
    gate = replace(split.guarded.gate, calibration=replace(split.guarded.gate.calibration, groups=groups))
    single, answered = [turn("user", "w1 w2")], [turn("user", "w1"), turn("assistant", "w2")]
    talks = [single, [turn("system", "w3"), *single], *[[*answered, *single]] * 2]
    with serving(GuardedModel(split.guarded.model, split.guarded.tokenizer, gate)) as running:
        for talk in talks:
            body = {"messages": talk, "max_tokens": 4, "show_energy": True}
            found = running.send("/v1/chat/completions", body).json["choices"][0]["d2"]
            own = split.guarded.answer([tuple(Message(**message) for message in talk)], max_new_tokens=4)[0]
            assert found["refused"] or found["score"] == pytest.approx(own.score + 5.0 * (talk == talks[1]), abs=1e-4)
            assert found["refused"] == (own.score + 5.0 * (talk == talks[1]) > gate.threshold)
        counted = running.send("/metrics").body.decode()
    said = capsys.readouterr().err
    for group, promise, count in (("single question", "guaranteed", 1), ("wrapped", "too few", 1), ("multi-turn", "unseen", 2)):
        assert f'd2_prompts_by_group_total{{group="{group}",promise="{promise}"}} {count:.1f}' in counted
    assert said.count("the group 'multi-turn' came, and the gate's calibration saw none:") == 1
    assert said.count("the group 'wrapped' came, and the gate's calibration saw too few of them:") == 1
    assert "'single question'" not in said
