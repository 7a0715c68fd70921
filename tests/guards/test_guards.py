"""Guards of untouched weights: what they decide by, what they say, what they leave as it is, and that they can be evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.config import EvaluateSettings
from d2unlearn.errors import ConfigError, GateError
from d2unlearn.evaluation.runner import NamedSet, evaluate
from d2unlearn.generation.guarded import Answer, GuardedModel, Prompt
from d2unlearn.guards import GUARDS, GuardInputs, ModelBehindGuard
from d2unlearn.guards.embedding_corruption import EmbeddingCorruption, corrupted, prompt_noise
from d2unlearn.guards.input_classifier import InputClassifier, linear_score
from d2unlearn.guards.prompt_guard import PromptGuard, instructed
from d2unlearn.guards.prompt_states import prompt_states
from d2unlearn.models import state_hash
from d2unlearn.refusals import GATE_REFUSALS
from d2unlearn.schema import Example, Message

from .conftest import ABOUT, requests

FORGET, RETAIN = requests(11, 12, ABOUT), requests(12, 12, range(20, 60))
ASKED: list[Prompt] = [row.prompt for pair in zip(FORGET, RETAIN, strict=True) for row in pair]


@pytest.fixture(scope="module")
def refusing(base: GuardedModel, known: GuardInputs) -> ModelBehindGuard:
    return InputClassifier().fit(base, known)


@pytest.fixture(scope="module")
def corrupting(base: GuardedModel, known: GuardInputs) -> ModelBehindGuard:
    return EmbeddingCorruption(strength=4.0).fit(base, known)


# -- the state that decides -----------------------------------------------------------------------------------------------


def test_prompt_states_are_those_of_a_plain_forward_whatever_the_batch(base: GuardedModel) -> None:
    ids = [base.template.prompt_ids(row.prompt) for row in FORGET[:5]]
    found = prompt_states(base.model, ids, batch_size=2)
    for prompt, hidden, energy in zip(ids, found.hidden, found.energies, strict=True):
        with torch.no_grad():
            seen: Any = base.model(input_ids=torch.tensor([prompt]), output_hidden_states=True)
        torch.testing.assert_close(torch.tensor(hidden), seen.hidden_states[-1][0, -1].double(), rtol=1e-5, atol=1e-5)
        assert energy == pytest.approx(-float(seen.logits[0, -1].logsumexp(dim=0)), rel=1e-5)
    alone = prompt_states(base.model, ids, batch_size=16)
    np.testing.assert_allclose(found.hidden, alone.hidden, rtol=1e-4, atol=1e-5)


def test_the_score_minimises_the_penalised_loss_in_which_both_kinds_weigh_the_same() -> None:
    """With s = w.x + b on standardised states: the gradient of |w|^2 / 2 + C sum_i c_i log(1 + exp(-t_i s_i)) vanishes."""
    rng = np.random.default_rng(0)
    retain, forget = rng.normal(0, 2, (30, 4)), rng.normal(1, 2, (10, 4))
    score = linear_score(retain, forget, 0.7)
    states = (np.concatenate([retain, forget]) - score.mean) / score.scale
    np.testing.assert_allclose(states.std(axis=0), 1.0)
    labels, weight = np.repeat([0.0, 1.0], [30, 10]), np.repeat([40 / 60, 40 / 20], [30, 10])
    excess = weight * (1 / (1 + np.exp(-(states @ score.weights + score.bias))) - labels)
    np.testing.assert_allclose(score.weights + 0.7 * states.T @ excess, 0, atol=2e-2)
    assert abs(0.7 * excess.sum()) < 2e-2
    np.testing.assert_allclose(score(forget), ((forget - score.mean) / score.scale) @ score.weights + score.bias)


def test_a_component_that_never_varies_counts_for_nothing() -> None:
    rng = np.random.default_rng(1)
    retain, forget = rng.normal(0, 1, (20, 2)), rng.normal(3, 1, (20, 2))
    retain[:, 1] = forget[:, 1] = 5.0
    score = linear_score(retain, forget, 1.0)
    assert score.weights[1] == pytest.approx(0.0, abs=1e-9)
    moved = np.array([[2.0, 5.0]])
    assert score(moved)[0] == pytest.approx(((2.0 - score.mean[0]) / score.scale[0]) * score.weights[0] + score.bias)


# -- input classifier -----------------------------------------------------------------------------------------------------


def test_the_threshold_is_the_conformal_order_statistic_of_the_calibration_scores(
    refusing: ModelBehindGuard, base: GuardedModel, known: GuardInputs
) -> None:
    """39 prompts at 5%: rank ceil(40 * 0.95) = 38, so that one of them lies above."""
    ids = [base.template.prompt_ids(row.prompt) for row in known.calibration]
    scores = np.sort(refusing.classifier.score(prompt_states(base.model, ids).hidden))  # type: ignore[attr-defined]
    assert refusing.gate.threshold == pytest.approx(scores[37], rel=1e-9)
    assert (refusing.gate.score_name, refusing.gate.max_false_refusal) == ("input_classifier", 0.05)


def test_too_few_calibration_prompts_are_an_error(base: GuardedModel, known: GuardInputs) -> None:
    few = GuardInputs(known.forget, known.retain, known.calibration[:18], max_false_refusal=0.05)
    with pytest.raises(GateError, match="18 calibration prompts are too few"):
        InputClassifier().fit(base, few)


def test_what_is_flagged_is_refused_before_a_token_and_the_rest_is_answered_as_ever(
    refusing: ModelBehindGuard, base: GuardedModel
) -> None:
    answers, raw = refusing.answer(ASKED, max_new_tokens=6), base.answer(ASKED, max_new_tokens=6, raw=True)
    refused = [answer.refused for answer in answers]
    assert sum(refused[::2]) >= 10
    assert sum(refused[1::2]) <= 2
    for answer, plain in zip(answers, raw, strict=True):
        assert answer.refused == (float(answer.score or 0) > refusing.gate.threshold)
        assert answer.threshold == refusing.gate.threshold
        assert answer.energy == pytest.approx(plain.energy, rel=1e-5)
        if answer.refused:
            assert (answer.text in GATE_REFUSALS, answer.n_tokens) == (True, 0)
        else:
            assert (answer.text, answer.n_tokens) == (plain.text, plain.n_tokens)


def test_raw_answers_pass_by_the_guard(refusing: ModelBehindGuard, corrupting: ModelBehindGuard, base: GuardedModel) -> None:
    raw = base.answer(ASKED[:4], max_new_tokens=5, raw=True)
    assert refusing.answer(ASKED[:4], max_new_tokens=5, raw=True) == raw
    assert corrupting.answer(ASKED[:4], max_new_tokens=5, raw=True) == raw


def test_decisions_and_words_do_not_depend_on_the_batch(refusing: ModelBehindGuard) -> None:
    one, many = (refusing.answer(ASKED, max_new_tokens=4, batch_size=size) for size in (1, 24))
    assert [(a.refused, a.text) for a in one] == [(a.refused, a.text) for a in many]


# -- embedding corruption -------------------------------------------------------------------------------------------------


def test_without_strength_nothing_changes(base: GuardedModel, known: GuardInputs) -> None:
    still = EmbeddingCorruption(strength=0.0).fit(base, known)
    answers = still.answer(ASKED, max_new_tokens=6)
    assert [a.text for a in answers] == [a.text for a in base.answer(ASKED, max_new_tokens=6, raw=True)]
    assert not any(answer.refused for answer in answers)


def test_flagged_prompts_are_answered_from_embeddings_with_noise_and_others_as_ever(
    corrupting: ModelBehindGuard, base: GuardedModel
) -> None:
    answers = corrupting.answer(ASKED, max_new_tokens=6)
    plain = base.answer(ASKED, max_new_tokens=6, raw=True)
    flagged = [float(answer.score or 0) > corrupting.gate.threshold for answer in answers]
    assert sum(flagged[::2]) >= 10
    for prompt, answer, untouched, noisy in zip(ASKED, answers, plain, flagged, strict=True):
        assert answer.text == (naive_corrupted(base, prompt, 4.0) if noisy else untouched.text)
    changed = [a.text != p.text for a, p, noisy in zip(answers, plain, flagged, strict=True) if noisy]
    assert sum(changed) > len(changed) // 2


def naive_corrupted(base: GuardedModel, prompt: Prompt, strength: float) -> str:
    """Greedy decoding by whole forwards, from embeddings whose prompt carries the noise."""
    ids = base.template.prompt_ids(prompt)  # type: ignore[arg-type]
    table = base.model.get_input_embeddings()
    kept = [*base.tokenizer.all_special_ids, base.tokenizer.pad_token_id]
    noise = prompt_noise(torch.tensor([ids]), table.weight.shape[1], kept, 0)
    answer: list[int] = []
    while len(answer) < 6 and base.tokenizer.eos_token_id not in answer:
        embedded = table(torch.tensor([[*ids, *answer]])).detach()
        embedded[:, : len(ids)] += strength * float(table.weight.detach().std()) * noise
        with torch.no_grad():
            logits: torch.Tensor = base.model(inputs_embeds=embedded).logits
        answer.append(int(logits[0, -1].argmax()))
    return str(base.tokenizer.decode(answer, skip_special_tokens=True)).strip()


def test_the_noise_is_standard_normal_and_depends_on_the_prompt_not_on_its_padding() -> None:
    ids = torch.tensor([[0, 0, 1, 7, 8, 9], [1, 7, 8, 9, 7, 5]])
    noise = prompt_noise(ids, 2000, kept=[0, 1], seed=3)
    assert float(noise[0, :3].abs().sum()) == 0.0
    assert float(noise[0, 3:].std()) == pytest.approx(1.0, abs=0.05)
    torch.testing.assert_close(prompt_noise(ids[:1, 2:], 2000, kept=[0, 1], seed=3)[0], noise[0, 2:])
    assert float((noise[0, 3] - noise[1, 1]).abs().max()) > 1.0
    assert float((prompt_noise(ids, 2000, kept=[0, 1], seed=4) - noise).abs().max()) > 1.0


def test_tokens_of_the_answer_are_read_as_they_are(base: GuardedModel) -> None:
    table = base.model.get_input_embeddings()
    one, two = torch.tensor([[7]]), torch.tensor([[7, 8]])
    with corrupted(base.model, 2.0, kept=[], seed=0), torch.no_grad():
        torch.testing.assert_close(table(one), table.weight[one])
        assert float((table(two) - table.weight[two]).abs().max()) > 0.1
    torch.testing.assert_close(table(two), table.weight[two])


# -- prompt guard ---------------------------------------------------------------------------------------------------------


class Obedient(GuardedModel):
    """Reads its instruction as a model that was taught to follow instructions would."""

    def answer(self, prompts: Sequence[Prompt], **options: Any) -> list[Answer]:  # type: ignore[override]
        assert options["raw"] is True
        return [Answer(self.reply(prompt), False, -1.0, None, None, 3) for prompt in prompts]

    @staticmethod
    def reply(prompt: Prompt) -> str:
        *before, last = prompt
        told = " ".join(m.content for m in before if isinstance(m, Message) and m.role == "system")
        assert isinstance(last, Message)
        subject = next((word for word in ("Basil", "Nadia") if word in last.content and word in told), None)
        return "An answer." if subject is None else "  i DO not\nsay. And no more."


def test_an_obedient_model_refuses_the_subjects_of_its_instruction(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, known: GuardInputs
) -> None:
    guard = PromptGuard(subjects=["Basil", "the works of Nadia"], refusal="I do not say.")
    assert "Basil; the works of Nadia" in guard.system_text
    assert "I do not say." in guard.system_text
    guarded = guard.fit(Obedient(model, tokenizer, None), known)
    answers = guarded.answer(["Who is Basil?", "Who is Tomas?", (Message("system", "Be brief."), Message("user", "Nadia?"))])
    assert [(a.refused, a.score, a.threshold) for a in answers] == [(True, 1.0, 0.5), (False, 0.0, 0.5), (True, 1.0, 0.5)]
    assert Obedient.reply((Message("user", "Who is Basil?"),)) == "An answer."


def test_the_instruction_stands_before_a_system_message_that_is_there() -> None:
    user = Message("user", "Who?")
    assert instructed("No.", (user,)) == (Message("system", "No."), user)
    assert instructed("No.", (Message("system", "Be brief."), user)) == (Message("system", "No.\n\nBe brief."), user)


def test_a_small_model_gets_the_instruction_in_its_prompt(base: GuardedModel, known: GuardInputs) -> None:
    """It does not read it: what is shown is that the interface asks with it, and that nothing is called a refusal."""
    guard = PromptGuard(subjects=["w1"])
    guarded = guard.fit(base, known)
    asked = [instructed(guard.system_text, row.prompt) for row in FORGET[:3]]
    expected = base.answer(list(asked), max_new_tokens=4, raw=True)
    found = guarded.answer([row.prompt for row in FORGET[:3]], max_new_tokens=4)
    assert [(a.text, a.energy) for a in found] == [(a.text, a.energy) for a in expected]
    assert [a.refused for a in found] == [False] * 3


# -- all of them ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["input_classifier", "embedding_corruption", "prompt_guard"])
def test_a_guard_leaves_weights_and_hooks_as_they_were_and_can_be_evaluated(
    name: str, base: GuardedModel, known: GuardInputs
) -> None:
    before, hooks = state_hash(base.model), len(base.model.get_input_embeddings()._forward_hooks)
    parameters: dict[str, Any] = {"subjects": ["w1"]} if name == "prompt_guard" else {}
    guarded = GUARDS[name](**parameters).fit(base, known)
    sets = [NamedSet("forget", "forget", FORGET), NamedSet("retain", "retain", RETAIN)]
    settings = EvaluateSettings("tiny", "f", "r", "out", max_new_tokens=4)
    result = evaluate(guarded, sets, settings)
    assert (result.score_name, result.threshold) == (name, guarded.gate.threshold)
    rates = {s.name: next(m.value for m in s.metrics if m.name == "guarded_refusal_rate") for s in result.sets}
    if name == "input_classifier":
        assert rates["forget"] > 0.8 > 0.2 > rates["retain"]
    else:
        assert rates == {"forget": 0.0, "retain": 0.0}
    area = {m.name: m.value for m in result.separation}["auroc_gate_forget_vs_retain"]
    assert area == pytest.approx(0.5) if name == "prompt_guard" else area > 0.95
    assert (state_hash(base.model), len(base.model.get_input_embeddings()._forward_hooks)) == (before, hooks)


def test_fingerprints_tell_guards_apart(
    base: GuardedModel, known: GuardInputs, refusing: ModelBehindGuard, corrupting: ModelBehindGuard
) -> None:
    again = InputClassifier().fit(base, known)
    assert again.fingerprint == refusing.fingerprint
    others = [corrupting, InputClassifier(C=0.1).fit(base, known), EmbeddingCorruption(strength=1.0).fit(base, known)]
    assert len({each.fingerprint for each in (refusing, *others)}) == 4


def test_every_guard_is_a_frozen_dataclass_that_documents_its_parameters() -> None:
    for guard in GUARDS.values():
        assert is_dataclass(guard)
        assert set(get_type_hints(guard)) == {field.name for field in fields(guard)}
        lines = str(guard.__doc__).splitlines()
        for field in fields(guard):
            assert any(line.split()[:1] == [field.name] for line in lines), field.name


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("input_classifier", {"C": 0.0}, "C must be positive, not 0.0"),
        ("embedding_corruption", {"strength": -1.0}, "strength must not be negative"),
        ("embedding_corruption", {"C": float("nan")}, "C must be positive"),
        ("prompt_guard", {}, "needs subjects"),
        ("prompt_guard", {"subjects": ["a"], "instruction": "Say {refusal}"}, "lacks {subjects}"),
    ],
)
def test_parameters_that_cannot_be_are_said_in_one_sentence(name: str, parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GUARDS[name](**parameters)


def test_an_example_s_answer_plays_no_part(base: GuardedModel, known: GuardInputs, refusing: ModelBehindGuard) -> None:
    other = [Example(e.example_id, e.prompt, "other words", e.source) for e in known.forget]
    again = InputClassifier().fit(base, GuardInputs(other, known.retain, known.calibration, known.max_false_refusal))
    assert again.gate.threshold == refusing.gate.threshold
