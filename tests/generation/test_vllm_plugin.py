"""The gate as a vLLM processor: both runners, prompts in pieces, preemption; what it turns down; whose gate it is."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from d2unlearn.data.batching import pad_left
from d2unlearn.errors import GateError
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.score import FirstTokens, Highest, TrailingWindow
from d2unlearn.generation.vllm_probes import TOKENS, ask, probe_requests
from d2unlearn.schema import GATE_COPY
from gate import tiny

from .conftest import Halves, halves
from .engines import Params, first_runner, last_logits, probed, second_runner, states
from .vllm_interfaces import EnergyGateLogitsProcessor, First, Second, Update

ENDS = {2}
LIMIT = 12
SCORES = {"prompt": FirstTokens(1), "highest": Highest(2), "window": TrailingWindow(3)}


@pytest.fixture(scope="module", params=SCORES)
def split(request: pytest.FixtureRequest, gate: EnergyGate, tokenizer: PreTrainedTokenizerFast) -> Halves:
    return halves(gate, tiny.model(), tokenizer, SCORES[request.param], n=6)


@pytest.fixture(scope="module")
def folder(split: Halves, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("vllm") / "artifact"
    split.guarded.model.save_pretrained(made)
    split.guarded.tokenizer.save_pretrained(made)
    assert split.guarded.gate is not None
    split.guarded.gate.save(made)
    return made


def engine(folder: Path, **changes: Any) -> SimpleNamespace:
    """vLLM's configuration, as far as the processor reads it."""
    told = {"speculative_config": None, "lora_config": None}
    model = {
        "hf_config": AutoConfig.from_pretrained(folder),
        "model": str(folder),
        "dtype": torch.float32,
        "quantization": None,
    }
    told |= {name: value for name, value in changes.items() if name in told}
    model |= {name: value for name, value in changes.items() if name in model}
    return SimpleNamespace(model_config=SimpleNamespace(**model), **told)


def wanted(split: Halves, model: PreTrainedModel) -> list[list[int]]:
    """As the guarded model decides, but what was chosen before a refusal stands."""
    ids, mask = pad_left(split.ids, 0)
    options = {"max_new_tokens": LIMIT, "do_sample": False}
    decisions = split.guarded.generator.generate(split.guarded.rule, ids, mask, options).decisions
    raw = model.generate(ids, attention_mask=mask, max_new_tokens=LIMIT, do_sample=False)[:, ids.shape[1] :].tolist()
    made = []
    for prompt, decision, answer in zip(split.ids, decisions, raw, strict=True):
        if decision.refused:
            n = decision.n_tokens
            text = split.guarded.gate.refusal(prompt)  # type: ignore[union-attr]
            line_break = split.guarded.template.text_ids("\n") if n else []
            made.append([*answer[:n], *line_break, *split.guarded.template.text_ids(text), 2][:LIMIT])
        else:
            end = answer.index(2) + 1 if 2 in answer else LIMIT
            made.append(answer[:end])
    assert [decision.refused for decision in decisions] == split.refused.tolist()
    return made


@pytest.mark.parametrize("piece", [99, 3])
@pytest.mark.parametrize("preempt", [None, 12])
def test_the_first_runner_s_answers_are_those_of_the_guarded_model(
    split: Halves, folder: Path, model: PreTrainedModel, piece: int, preempt: int | None
) -> None:
    gate = probed(EnergyGateLogitsProcessor(engine(folder), torch.device("cpu"), False))
    found = first_runner(gate, model, split.ids, ENDS, piece=piece, preempt=preempt, limit=LIMIT)
    assert found == wanted(split, model)


@pytest.mark.parametrize("piece", [99, 3])
@pytest.mark.parametrize("preempt", [None, 9])
def test_the_second_runner_s_answers_are_those_of_the_guarded_model(
    split: Halves, folder: Path, model: PreTrainedModel, piece: int, preempt: int | None
) -> None:
    shared = states(slots=3)
    gate = probed(EnergyGateLogitsProcessor(engine(folder), shared))
    found = second_runner(gate, shared, model, split.ids, ENDS, piece=piece, preempt=preempt, limit=LIMIT)
    assert found == wanted(split, model)


def test_one_class_is_taken_by_both_runners(folder: Path) -> None:
    """They share one list of processors, and the second does not start when a class of the first alone is on it."""
    assert issubclass(EnergyGateLogitsProcessor, First)
    assert issubclass(EnergyGateLogitsProcessor, Second)
    assert not EnergyGateLogitsProcessor.__abstractmethods__
    gate = probed(EnergyGateLogitsProcessor(engine(folder), torch.device("cpu"), False))
    assert gate.is_argmax_invariant() is False
    assert gate.add_request(0, Params()) is True


def test_a_piece_of_a_prompt_decides_nothing(folder: Path, model: PreTrainedModel, split: Halves) -> None:
    """The first runner asks once a piece, with logits of the middle of the prompt: alone they would refuse or not."""
    gate = probed(EnergyGateLogitsProcessor(engine(folder), torch.device("cpu"), False))
    assert split.guarded.gate is not None
    low, high = torch.zeros(176), torch.full((176,), 50.0)  # energies of -5.2 and -55.2
    prompt, answer = split.ids[0], list[int]()
    gate.update_state(Update(1, [], [(0, Params(LIMIT, ENDS), prompt, answer)], []))
    refusing = gate.apply(low[None].clone())
    assert bool((refusing == -torch.inf).sum() == 175) == (split.guarded.gate.score.lookahead == 1)
    for logits in (high, high, last_logits(model, prompt)):
        found = gate.apply(logits[None].clone())
    assert bool((found == -torch.inf).sum() == 175) == (bool(split.refused[0]) and split.guarded.gate.score.lookahead == 1)


def params(**changes: Any) -> SimpleNamespace:
    usual = {
        "logit_bias": None,
        "min_tokens": 0,
        "repetition_penalty": 1.0,
        "logprobs": None,
        "temperature": 0.7,
        "extra_args": {},
    }
    return SimpleNamespace(**{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"logit_bias": {5: 100.0}}, "logit_bias"),
        ({"allowed_token_ids": [5, 6]}, "allowed_token_ids"),
        ({"bad_words": ["no"]}, "bad_words"),
        ({"structured_outputs": object()}, "structured_outputs"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"thinking_token_budget": 4}, "thinking_token_budget"),
        ({"logprobs": 0}, "logprobs"),
        ({"logprobs": 20}, "beam search"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ],
)
def test_requests_that_change_or_tell_the_logits_are_turned_down(changes: dict[str, Any], name: str) -> None:
    """Biases and bans move energies by nats; and beam search chooses by log-probabilities, which no forced token changes."""
    with pytest.raises(ValueError, match=name):
        EnergyGateLogitsProcessor.validate_params(params(**changes))


def test_a_bias_would_have_moved_the_energy(model: PreTrainedModel, split: Halves) -> None:
    """Why: the same position with a bias, and with only a few tokens allowed."""
    logits = last_logits(model, split.ids[0])
    biased, allowed = logits.clone(), torch.full_like(logits, -torch.inf)
    biased[5] += 20.0
    allowed[[5, 6, 7]] = logits[[5, 6, 7]]
    energies = [-float(torch.logsumexp(each, -1)) for each in (logits, biased, allowed)]
    assert abs(energies[1] - energies[0]) > 1
    assert abs(energies[2] - energies[0]) > 1


def test_usual_requests_are_taken_and_nothing_that_a_client_sends_moves_the_threshold(folder: Path) -> None:
    EnergyGateLogitsProcessor.validate_params(params(extra_args={"d2_gate": {"threshold": 1e9}, "threshold": 1e9}))
    gate = EnergyGateLogitsProcessor(engine(folder), states(1))
    sent = SimpleNamespace(max_tokens=4, all_stop_token_ids=set(), extra_args={"threshold": 1e9, "d2_gate": {"threshold": 1e9}})
    gate.add_request(0, sent)
    assert gate._rule.threshold == json.loads((folder / "config.json").read_text())[GATE_COPY]["threshold"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": torch.bfloat16}, "served in bfloat16: add --dtype float32"),
        ({"quantization": "fp8"}, r"quantisation \(fp8\)"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"lora_config": object()}, "adapters"),
        ({"hf_config": SimpleNamespace()}, "carries no gate"),
    ],
)
def test_what_is_served_has_to_be_what_was_calibrated(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GateError, match=message):
        EnergyGateLogitsProcessor(engine(folder, **changes), torch.device("cpu"), False)


def test_a_threshold_of_another_statistic_or_other_weights_is_an_error(folder: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    setattr(config, GATE_COPY, {**getattr(config, GATE_COPY), "statistic": "mean of all prompt positions"})
    with pytest.raises(GateError, match="another statistic"):
        EnergyGateLogitsProcessor(engine(folder, hf_config=config), torch.device("cpu"), False)
    tiny.model(seed=7).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(GateError, match="other weights"):
        EnergyGateLogitsProcessor(engine(tmp_path), torch.device("cpu"), False)
    with pytest.warns(UserWarning, match="is no folder, so nobody checks"):
        EnergyGateLogitsProcessor(engine(folder, model="someone/model"), torch.device("cpu"), False)


def test_an_end_that_would_be_refused_is_refused_when_it_is_chosen_and_forbidden_otherwise(folder: Path, split: Halves) -> None:
    gate = probed(EnergyGateLogitsProcessor(engine(folder), torch.device("cpu"), False))
    if split.guarded.gate is None or split.guarded.gate.score.lookahead == 1:
        pytest.skip("a score that looks at the prompt alone has decided before an answer can end")
    gate.update_state(Update(2, [], [(row, Params(LIMIT, ENDS), [5 + row], []) for row in range(2)], []))
    row = torch.zeros(176)  # an energy of -5.2: any score of it alone is above the threshold
    ending = row.clone()
    ending[2] = 1.0
    found = gate.apply(torch.stack([row, ending]))
    assert found[0, 2] == -torch.inf
    assert (found[0] == -torch.inf).sum() == 1
    first = split.guarded.template.text_ids(split.guarded.gate.refusal([6]))[0]
    assert int(found[1].argmax()) == first
    assert (found[1] == -torch.inf).sum() == 175


def test_rows_leave_nothing_behind_in_a_slot(folder: Path, model: PreTrainedModel, split: Halves) -> None:
    """Every prompt after every other in one slot: as if it were alone."""
    shared = states(slots=1)
    gate = probed(EnergyGateLogitsProcessor(engine(folder), shared))
    expected = wanted(split, model)
    order = np.random.default_rng(1).permutation(len(split.ids)).tolist()
    found = second_runner(gate, shared, model, [split.ids[i] for i in order], ENDS, limit=LIMIT)
    assert found == [expected[i] for i in order]


@pytest.mark.parametrize("piece", [99, 7])
@pytest.mark.parametrize("runner", [1, 2])
def test_nothing_is_answered_until_the_probe_prompts_were_asked(
    split: Halves, folder: Path, model: PreTrainedModel, piece: int, runner: int
) -> None:
    shared = states(slots=3, width=128)
    gate = EnergyGateLogitsProcessor(engine(folder), *((torch.device("cpu"), False) if runner == 1 else (shared,)))

    def answers(prompts: list[list[int]], limit: int) -> list[list[int]]:
        if runner == 1:
            return first_runner(gate, model, prompts, ENDS, piece=piece, limit=limit)
        return second_runner(gate, shared, model, prompts, ENDS, piece=piece, limit=limit)

    words = split.guarded.template.text_ids
    refusals = [[*words(split.guarded.gate.refusal(ids)), 2][:LIMIT] for ids in split.ids]  # type: ignore[union-attr]
    probes = probe_requests(folder)
    assert answers(split.ids, LIMIT) == refusals
    answers(probes[:3], TOKENS)
    assert answers(split.ids, LIMIT) == refusals
    answers(probes, TOKENS)
    assert gate._sessions.probes.n_waiting == 0
    assert answers(split.ids, LIMIT) == wanted(split, model)


def test_an_engine_with_other_weights_ends_at_the_first_probe(split: Halves, folder: Path) -> None:
    gate = EnergyGateLogitsProcessor(engine(folder), torch.device("cpu"), False)
    with pytest.raises(GateError, match=r"does not run the model that was calibrated: .* of a probe prompt differs by"):
        first_runner(gate, tiny.model(seed=3), probe_requests(folder), ENDS, limit=TOKENS)


def test_an_energy_that_nobody_knows_asks_nothing(folder: Path) -> None:
    probes = EnergyGateLogitsProcessor(engine(folder), torch.device("cpu"), False)._sessions.probes
    (first, *_), n = probe_requests(folder), probes.n_waiting
    probes.note(first, float("nan"))
    assert (probes.is_one(first), probes.n_waiting) == (True, n)


def test_the_probes_are_asked_over_http(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, Any, str | None]] = []

    def urlopen(request: Any, timeout: float) -> io.BytesIO:
        sent.append((request.full_url, request.data and json.loads(request.data), request.get_header("Authorization")))
        return io.BytesIO(json.dumps({"data": [{"id": "served"}]}).encode())

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert ask("http://here", folder) == len(probe_requests(folder)) == 8
    usual = {"model": "served", "max_tokens": 2, "temperature": 0}
    asked = [("http://here/v1/completions", {**usual, "prompt": ids}, "Bearer secret") for ids in probe_requests(folder)]
    models = ("http://here/v1/models", None, "Bearer secret")
    assert sent == [models, *asked, models]
    (folder / "config.json").rename(folder / "kept.json")
    (folder / "config.json").write_text("{}")
    with pytest.raises(GateError, match="carries no gate"):
        probe_requests(folder)
    (folder / "kept.json").rename(folder / "config.json")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("refused")))
    with pytest.raises(GateError, match=r"gave no answer \(refused\)"):
        ask("http://here", folder)
