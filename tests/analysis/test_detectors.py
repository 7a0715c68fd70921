"""Indices of a request: what is read while a model answers, how it is pooled, which way it points, and what leaves it alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors
from torch import nn
from transformers import PreTrainedModel

import tiny_models
from d2unlearn.analysis.costs import detector_costs, generation_seconds, prompt_logits, quantity_cost, timer_of
from d2unlearn.analysis.detectors import ANSWER, BASE_DETECTOR, DETECTORS, PROMPT, QUANTITIES, TOKEN_SCORES, signed_values
from d2unlearn.analysis.distances import Mahalanobis, Neighbours, shrunk_covariance
from d2unlearn.analysis.perturbations import PERTURBATIONS, ModelUnderTest
from d2unlearn.analysis.recorder import LAYER_POSITIONS, Answering, AnswerTraces, read_answers
from d2unlearn.errors import ModelError
from d2unlearn.gate.score import CANDIDATES, request_scores
from d2unlearn.gate.traces import collect_traces
from d2unlearn.layers import layers_of
from d2unlearn.observation import causal_model
from d2unlearn.quantities import Chunk, LogSumExp, Nll
from d2unlearn.rounding import rounded_to_integers
from d2unlearn.stats import Floats
from reference import dense

PROMPTS = [list(row.input_ids) for row in tiny_models.rows(5, 7, low=3, high=7)]
LENGTH = 10
SAME_PROBABILITIES = ("centred-energy", "logit-margin", "max-probability", "entropy", "nll", "perplexity")
"""Families of detectors that a constant added to every logit leaves as they are."""


def how(model: PreTrainedModel, *, ends: tuple[int, ...] = (2,), layers: bool = False, **given: object) -> Answering:
    return Answering(LENGTH, 3, 0, ends, layers=layers_of(model) if layers else None, **given)  # type: ignore[arg-type]


def replayed(model: PreTrainedModel, traces: AnswerTraces, row: int) -> torch.Tensor:
    """The logits that each of a row's tokens was chosen from, by one plain forward over prompt and answer: [T, V]."""
    with torch.no_grad():
        ids = torch.tensor([[*PROMPTS[row], *traces.token_ids[row]]])
        return model(ids).logits[0, len(PROMPTS[row]) - 1 : -1].double()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_models.llama()


@pytest.fixture(scope="module")
def traces(model: PreTrainedModel) -> AnswerTraces:
    return read_answers(model, PROMPTS, QUANTITIES, how(model, layers=True))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "cohere"])
def test_what_is_read_while_answering_is_what_a_plain_forward_gives(family: str) -> None:
    model = tiny_models.FAMILIES[family]()
    traces = read_answers(model, PROMPTS, QUANTITIES, how(model))
    for row in range(len(PROMPTS)):
        logits = replayed(model, traces, row)
        tokens = torch.tensor(traces.token_ids[row])
        assert torch.equal(tokens, logits.argmax(-1))
        for quantity in QUANTITIES:
            expected = (
                quantity.of(Chunk(logits, tokens))
                if quantity not in dense.QUANTITIES
                else dense.QUANTITIES[quantity](logits, tokens, logits)
            )
            np.testing.assert_allclose(traces.values[quantity][row], expected, atol=2e-4)


def test_energies_and_tokens_are_those_that_the_gate_sees(model: PreTrainedModel, traces: AnswerTraces) -> None:
    gate_traces = collect_traces(model, tiny_models.tokenizer(), PROMPTS, max_new_tokens=LENGTH)
    assert [trace.token_ids for trace in gate_traces] == list(traces.token_ids)
    for trace, row in zip(gate_traces, traces.values[LogSumExp()], strict=True):
        np.testing.assert_allclose(trace.energies, -row, atol=1e-4)


def test_hidden_states_are_those_that_the_head_reads(model: PreTrainedModel, traces: AnswerTraces) -> None:
    with torch.no_grad():
        for row, prompt in enumerate(PROMPTS):
            ids = torch.tensor([[*prompt, *traces.token_ids[row]]])
            states = model.model(ids).last_hidden_state[0, len(prompt) - 1 : -1].double().numpy()
            np.testing.assert_allclose(traces.prompt_states[row], states[0], atol=1e-4)
            np.testing.assert_allclose(traces.answer_states[row], states.mean(axis=0), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "granite"])
def test_the_layers_energies_go_through_the_norm_and_the_head(family: str) -> None:
    """Against transformers' own hidden states: the last of them is behind the norm already, so it gives the energy itself."""
    model = tiny_models.FAMILIES[family]()
    traces = read_answers(model, PROMPTS, QUANTITIES, how(model, layers=True))
    norm = layers_of(model).norm
    head = causal_model(model).get_output_embeddings()
    for row in (0, 4):
        ids = torch.tensor([[*PROMPTS[row], *traces.token_ids[row]]])
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states
            start, found = len(PROMPTS[row]) - 1, traces.layers[row]
            assert found.shape == (min(LAYER_POSITIONS, len(traces.token_ids[row])), len(states))
            positions = slice(start, start + len(found))
            np.testing.assert_allclose(found[:, -1], -traces.values[LogSumExp()][row][: len(found)], atol=2e-4)
            if family in ("llama", "gpt2"):
                for layer in range(len(states) - 1):
                    logits = nn.functional.linear(norm(states[layer][0, positions]), head.weight)
                    np.testing.assert_allclose(found[:, layer], -torch.logsumexp(logits, -1), atol=2e-4)


def test_an_answer_ends_with_its_end_token_and_the_others_go_on(model: PreTrainedModel, traces: AnswerTraces) -> None:
    end = traces.token_ids[0][3]
    ended = read_answers(model, PROMPTS, QUANTITIES, how(model, ends=(end,)))
    for before, after, values in zip(traces.token_ids, ended.token_ids, ended.values[Nll()], strict=True):
        length = before.index(end) + 1 if end in before else len(before)
        assert after == before[:length]
        assert len(values) == length


def test_batches_change_nothing(model: PreTrainedModel, traces: AnswerTraces) -> None:
    alone = read_answers(model, PROMPTS, QUANTITIES, Answering(LENGTH, 1, 0, (2,)))
    assert alone.token_ids == traces.token_ids
    for name, detector in DETECTORS.items():
        expected = detector.fit(traces).scores(traces)
        np.testing.assert_allclose(detector.fit(alone).scores(alone), expected, rtol=1e-3, atol=1e-3, err_msg=name)


def test_vocabulary_rows_beyond_the_tokenizer_are_left_out(model: PreTrainedModel, traces: AnswerTraces) -> None:
    seen = max(max(tokens) for tokens in traces.token_ids) + 1
    cut = read_answers(model, PROMPTS, QUANTITIES, how(model, vocab_rows=seen))
    logits = replayed(model, cut, 2)[:, :seen]
    np.testing.assert_allclose(cut.values[LogSumExp()][2], torch.logsumexp(logits, -1), atol=2e-4)
    with pytest.raises(ModelError, match="a token that its tokenizer does not have"):
        read_answers(model, PROMPTS, QUANTITIES, how(model, vocab_rows=seen - 1))


def test_sampled_answers_follow_the_seed_and_their_nll_is_that_of_the_token_drawn(
    model: PreTrainedModel, traces: AnswerTraces
) -> None:
    state = torch.get_rng_state()
    first, again, other = (read_answers(model, PROMPTS, QUANTITIES, how(model, sampled=True, seed=s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.token_ids == again.token_ids != other.token_ids
    tokens = torch.tensor(first.token_ids[0])
    expected = -replayed(model, first, 0).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    np.testing.assert_allclose(first.values[Nll()][0], expected, atol=2e-4)


def test_some_requests_and_two_lots_together(traces: AnswerTraces) -> None:
    some = traces.take([4, 1])
    assert some.token_ids == (traces.token_ids[4], traces.token_ids[1])
    both = some.joined(traces.take([0]))
    assert len(both) == 3
    for detector in (
        DETECTORS["entropy/mean"],
        DETECTORS["neighbours/answer"].fit(traces),
        DETECTORS["energy/max-over-looks"].fit(traces),
    ):
        np.testing.assert_array_equal(detector.scores(both), detector.scores(traces)[[4, 1, 0]])
    assert len(both.layers) == 3


def by_hand() -> AnswerTraces:
    """Two requests of three and of one token over a vocabulary of three, with logits that are simple to take logarithms of."""
    logits = [torch.tensor([[0.0, 0, 0], [math.log(8), 0, 0], [math.log(2), 0, 0]]), torch.tensor([[math.log(6), 0, 0]])]
    tokens = [torch.tensor([0, 0, 0]), torch.tensor([0])]
    values = {
        quantity: tuple(quantity.of(Chunk(z.double(), y)).numpy() for z, y in zip(logits, tokens, strict=True))
        for quantity in QUANTITIES
    }
    states = np.array([[3.0, 4.0], [1.0, 0.0]])
    return AnswerTraces(((0, 0, 0), (0,)), values, states, states)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("energy/prompt", -math.log(3), -math.log(8)),
        ("energy/mean", -math.log(3 * 10 * 4) / 3, -math.log(8)),
        ("energy/highest-2", -math.log(3 * 4) / 2, -math.log(8)),
        ("energy/first-2", -math.log(3 * 10) / 2, -math.log(8)),
        ("energy-t2/prompt", -2 * math.log(3), -2 * math.log(2 + 6**0.5)),
        ("centred-energy/prompt", -math.log(3), -math.log(8) + math.log(6) / 3),
        ("max-logit/prompt", 0.0, math.log(6)),
        ("max-logit/highest-2", math.log(2) / 2, math.log(6)),
        ("logit-margin/mean", math.log(16) / 3, math.log(6)),
        ("max-probability/prompt", 1 / 3, 6 / 8),
        ("max-probability/highest-2", (1 / 3 + 1 / 2) / 2, 6 / 8),
        ("entropy/prompt", math.log(3), -(0.75 * math.log(0.75) + 0.25 * math.log(0.125))),
        ("nll/mean", -math.log(1 / 3 * 0.8 * 0.5) / 3, -math.log(6 / 8)),
        ("nll/min-k-20", math.log(3), -math.log(6 / 8)),
        ("nll/min-k-40", math.log(3), -math.log(6 / 8)),
        ("perplexity", (3 / 0.8 / 0.5) ** (1 / 3), 8 / 6),
    ],
)
def test_detectors_by_hand(name: str, first: float, second: float) -> None:
    assert signed_values(DETECTORS[name], by_hand()) == pytest.approx([first, second])


def test_scores_are_higher_where_the_model_is_less_sure() -> None:
    """A request of flat logits against one of peaked logits: every detector but the distances, which know no logits."""
    flat, peaked = torch.zeros(2, 50).double(), torch.zeros(2, 50).double()
    peaked[:, 3] = 12.0
    tokens = torch.tensor([3, 3])
    values = {q: tuple(q.of(Chunk(z, tokens)).numpy() for z in (flat, peaked)) for q in QUANTITIES}
    traces = AnswerTraces(((3, 3),) * 2, values, np.zeros((2, 2)), np.zeros((2, 2)))
    for name, detector in DETECTORS.items():
        if not name.startswith(("mahalanobis", "neighbours")):
            unsure, sure = detector.fit(traces).scores(traces)
            assert unsure > sure, name


def test_the_gates_scores_are_the_gates_own(traces: AnswerTraces) -> None:
    energies = [(-row).tolist() for row in traces.values[LogSumExp()]]
    for name, score in CANDIDATES.items():
        expected = request_scores(score.fit(energies), energies)
        np.testing.assert_array_equal(DETECTORS[f"energy/{name}"].fit(traces).scores(traces), expected)
    assert BASE_DETECTOR == "energy/highest-2"


def test_every_detector_says_what_it_is() -> None:
    labels = [detector.label for detector in DETECTORS.values()]
    assert len(set(labels)) == len(labels)
    assert {detector.reads for detector in DETECTORS.values()} == {PROMPT, ANSWER}
    assert {name for name, detector in DETECTORS.items() if detector.reads == PROMPT} == {
        n for n in DETECTORS if n.endswith("/prompt")
    }
    fitted = {name for name, detector in DETECTORS.items() if detector.fitted}
    distances = {f"{kind}/{place}" for kind in ("mahalanobis", "neighbours") for place in ("prompt", "answer")}
    assert fitted == distances | {"energy/max-over-looks", "energy/early-or-window"}
    assert {name.partition("/")[0] for name in DETECTORS} >= set(TOKEN_SCORES)


def test_what_is_kept_is_what_was_fitted(traces: AnswerTraces) -> None:
    kept = {name: detector.fit(traces).kept_bytes for name, detector in DETECTORS.items()}
    n, width = traces.prompt_states.shape
    assert kept["mahalanobis/prompt"] == 8 * (width + width * width)
    assert kept["neighbours/answer"] == 8 * n * width
    assert kept["energy/max-over-looks"] == 8 * 2 * 10
    assert {kept[name] for name, detector in DETECTORS.items() if not detector.fitted} == {0}


def test_mahalanobis_is_the_formula_with_ledoit_and_wolf_s_covariance() -> None:
    rng = np.random.default_rng(0)
    retained = rng.normal(size=(30, 8)) @ rng.normal(size=(8, 8)) + 3
    covariance = LedoitWolf().fit(retained).covariance_
    np.testing.assert_allclose(shrunk_covariance(retained), covariance, rtol=1e-10)
    states = rng.normal(size=(5, 8))
    away = states - retained.mean(axis=0)
    expected = [float(row @ np.linalg.inv(covariance) @ row) for row in away]
    np.testing.assert_allclose(Mahalanobis().fit(retained).of(states), expected, rtol=1e-8)


def test_mahalanobis_by_hand_and_with_fewer_examples_than_dimensions() -> None:
    """Four points of a square round the origin have the unit covariance: shrinking changes nothing, the distance is |h|^2."""
    square = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    np.testing.assert_allclose(Mahalanobis().fit(square).of(np.array([[3.0, 4], [0, 0]])), [25, 0])
    few = np.random.default_rng(1).normal(size=(3, 20))
    assert np.isfinite(Mahalanobis().fit(few).of(few)).all()
    np.testing.assert_allclose(shrunk_covariance(np.ones((4, 3))), np.eye(3))


def test_neighbours_are_sklearn_s_and_do_not_ask_how_long_a_state_is() -> None:
    rng = np.random.default_rng(2)
    retained, states = rng.normal(size=(40, 6)), rng.normal(size=(9, 6))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (retained, states)]
    expected = NearestNeighbors(n_neighbors=10).fit(unit[0]).kneighbors(unit[1])[0][:, -1]
    fitted = Neighbours().fit(retained)
    np.testing.assert_allclose(fitted.of(states), expected)
    np.testing.assert_allclose(fitted.of(7 * states), expected)
    few = Neighbours().fit(retained[:3])
    np.testing.assert_allclose(few.of(states), np.linalg.norm(unit[1][:, None] - unit[0][None, :3], axis=2).max(axis=1))


def under(model: PreTrainedModel, name: str, traces: AnswerTraces) -> dict[str, Floats]:
    """Every index's scores under a perturbation, fitted without one."""
    with PERTURBATIONS[name].applied(ModelUnderTest(model, tiny_models.tokenizer(), how(model))) as perturbed:
        answers = read_answers(perturbed.model, PROMPTS, QUANTITIES, perturbed.how)
    return {key: detector.fit(traces).scores(answers) for key, detector in DETECTORS.items()}


@pytest.mark.parametrize("name", ["constant shift", "noisy level"])
def test_a_shift_of_all_logits_moves_energy_and_leaves_what_depends_on_probabilities(
    name: str, model: PreTrainedModel, traces: AnswerTraces
) -> None:
    before, after = under(model, "as calibrated", traces), under(model, name, traces)
    for key in DETECTORS:
        if key.startswith((*SAME_PROBABILITIES, "mahalanobis", "neighbours")):
            np.testing.assert_allclose(after[key], before[key], rtol=1e-3, atol=1e-3, err_msg=key)
        else:
            assert np.abs(after[key] - before[key]).min() > 1e-3, key
    if name == "constant shift":
        for key in ("energy/prompt", "energy/highest-2", "energy-t5/mean"):
            np.testing.assert_allclose(after[key], before[key] - 10, atol=1e-3)
        np.testing.assert_allclose(after["max-logit/mean"], before["max-logit/mean"] - 10, atol=1e-3)


def test_heated_logits_scale_what_is_linear_in_them(model: PreTrainedModel, traces: AnswerTraces) -> None:
    before, after = under(model, "as calibrated", traces), under(model, "temperature", traces)
    for key in ("max-logit/mean", "logit-margin/highest-2"):
        np.testing.assert_allclose(after[key], before[key] / 1.5, atol=1e-3)
    assert (after["nll/mean"] > before["nll/mean"]).all()


def test_nothing_is_left_of_a_disturbance_afterwards(model: PreTrainedModel, traces: AnswerTraces) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for name in PERTURBATIONS:
        under(model, name, traces)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert read_answers(model, PROMPTS, QUANTITIES, how(model)).token_ids == traces.token_ids


def test_weights_are_rounded_to_int8_a_row_at_a_time() -> None:
    weight = torch.tensor([[1.27, -0.634, 0.0], [0.0, 0.0, 0.0], [2.54, 0.011, -2.54]])
    expected = torch.tensor([[1.27, -0.63, 0.0], [0.0, 0.0, 0.0], [2.54, 0.02, -2.54]])
    torch.testing.assert_close(rounded_to_integers(weight, 8), expected)
    random = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    error = (rounded_to_integers(random, 8) - random).abs().amax(dim=1)
    assert (error <= random.abs().amax(dim=1) / 254 + 1e-6).all()
    torch.testing.assert_close(rounded_to_integers(rounded_to_integers(random, 8), 8), rounded_to_integers(random, 8))


def test_int8_leaves_embeddings_and_head_and_rounds_every_layer(model: PreTrainedModel) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with PERTURBATIONS["int8"].applied(ModelUnderTest(model, tiny_models.tokenizer(), how(model))) as perturbed:
        changed = {key for key, value in perturbed.model.state_dict().items() if not torch.equal(value, before[key])}
    linear = {key for key in before if key.endswith("_proj.weight")}
    assert changed == linear
    assert len(linear) == 14


def test_the_other_template_is_the_plain_one_or_one_of_turns(model: PreTrainedModel) -> None:
    for tokenizer in (tiny_models.tokenizer(), tiny_models.tokenizer(chat_template=None)):
        before = tokenizer.chat_template
        with PERTURBATIONS["other template"].applied(ModelUnderTest(model, tokenizer, how(model))) as perturbed:
            after = perturbed.tokenizer.chat_template
            assert (before is None) != (after is None)
            if after is not None:
                asked = perturbed.tokenizer.apply_chat_template(
                    [{"role": "user", "content": "Why?"}], tokenize=False, add_generation_prompt=True
                )
                assert asked == "User: Why?\nAssistant:"
        assert tokenizer.chat_template == before


def test_the_memory_of_a_reading_is_the_copies_of_the_logits_that_it_makes(model: PreTrainedModel) -> None:
    logits = prompt_logits(model, PROMPTS, None)
    expected = torch.stack([model(torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    row = 4 * logits.shape[1]
    held = {name: quantity_cost(reading.quantity, logits, timer_of(logits.device)) for name, reading in TOKEN_SCORES.items()}
    assert held["max-logit"][1] == 4
    assert row <= held["energy"][1] <= row + 64
    assert 2 * row <= held["entropy"][1] <= 3 * row
    assert all(seconds >= 0 for seconds, _ in held.values())


def test_costs_count_the_positions_that_a_detector_reads(model: PreTrainedModel, traces: AnswerTraces) -> None:
    fitted = {name: detector.fit(traces) for name, detector in DETECTORS.items()}
    seconds = generation_seconds(model, PROMPTS, how(model), repeats=1)
    found = {cost.index: cost for cost in detector_costs(fitted, traces, prompt_logits(model, PROMPTS, None), seconds)}
    lengths = np.array([len(tokens) for tokens in traces.token_ids])
    assert found["energy/prompt"].positions == 1
    assert found["energy/first-4"].positions == np.minimum(lengths, 4).mean()
    assert found["entropy/mean"].positions == found["mahalanobis/answer"].positions == lengths.mean()
    for name, cost in found.items():
        assert cost.share == pytest.approx(cost.microseconds / (1e6 * seconds))
        assert cost.kept_bytes == fitted[name].kept_bytes
    assert found["entropy/highest-2"].microseconds > found["max-logit/prompt"].microseconds
