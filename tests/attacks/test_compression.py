"""Compression: grids worked by hand, bounds, what changes and what does not, and a planted answer that rounding brings back."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import tiny_models
from d2unlearn.attacks.compression import (
    HalfPrecision,
    Pruning,
    Quantisation,
    changed_decisions,
    compressed,
    linear_weights,
    prompt_energy_reading,
    pruned,
    refusals_without_check,
)
from d2unlearn.attacks.reading import AskedRows, NotShownError, Reading
from d2unlearn.attacks.scoring import probabilities
from d2unlearn.data.template import Template
from d2unlearn.errors import ConfigError, GateError
from d2unlearn.gate import EnergyGate
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.models import state_hash
from d2unlearn.rounding import rounded_to_integers
from d2unlearn.teacher_forcing import score_rows
from gate import tiny
from gate.conftest import at

ROWS = tiny_models.rows(3, 12)
ASKED = AskedRows("forget", tuple(ROWS), tuple(f"g{index // 3}" for index in range(12)))


def test_the_smallest_magnitudes_go_and_no_other() -> None:
    weight = torch.tensor([[0.5, -0.1, 0.3], [-0.2, 0.4, -0.6]])
    assert torch.equal(pruned(weight, 0.5), torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.4, -0.6]]))
    assert torch.equal(pruned(weight, 0.49), torch.tensor([[0.5, 0.0, 0.3], [0.0, 0.4, -0.6]]))
    assert int((pruned(torch.ones(10, 10), 0.37) == 0).sum()) == 37


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2"])
def test_linear_layers_change_and_nothing_else(family: str) -> None:
    model = tiny_models.FAMILIES[family]()
    before = state_hash(model)
    changed = compressed(model, Pruning(0.25))
    assert state_hash(model) == before
    own, theirs = dict(model.named_parameters()), dict(changed.named_parameters())
    moved = {name for name in own if not torch.equal(own[name], theirs[name])}
    words = ("proj", "c_attn", "c_fc")
    assert moved == {name for name in own if name.endswith("weight") and any(word in name for word in words)}
    for name in moved:
        assert int((theirs[name] == 0).sum()) == own[name].numel() // 4
    assert state_hash(compressed(model, None)) == before


def test_groups_run_along_the_inputs_also_where_a_layer_keeps_its_weight_the_other_way_round() -> None:
    model = tiny_models.gpt2()
    layer = model.transformer.h[0].mlp.c_fc
    expected = rounded_to_integers(layer.weight.detach().t(), 4, group_size=8).t()
    changed = compressed(model, Quantisation(4, 8)).transformer.h[0].mlp.c_fc.weight
    assert layer.weight.shape == (32, 128)
    assert torch.equal(changed, expected)


def test_bfloat16_rounds_every_parameter() -> None:
    model = tiny_models.llama()
    changed = compressed(model, HalfPrecision())
    for own, theirs in zip(model.parameters(), changed.parameters(), strict=True):
        assert theirs.dtype == torch.float32
        assert torch.equal(theirs, own.to(torch.bfloat16).float())


def test_a_model_without_linear_layers_is_not_shown() -> None:
    class Headless(nn.Module):
        def get_output_embeddings(self) -> None:
            return None

    with pytest.raises(NotShownError, match="Headless has no linear layers"):
        linear_weights(Headless())


def hidden_by_less_than_half_a_step(original: PreTrainedModel, grid: Quantisation) -> PreTrainedModel:
    """Another model, whose every weight but each group's largest lies 0.4 steps off: on the grid both are the same."""
    made = copy.deepcopy(original)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in linear_weights(made):
            groups = weight.view(len(weight), -1, grid.group_size)
            largest = groups.abs().amax(dim=-1, keepdim=True)
            signs = torch.randint(0, 2, groups.shape, generator=generator) * 2 - 1
            groups += torch.where(groups.abs() < largest, signs * 0.4 * largest / (2 ** (grid.bits - 1) - 1), 0.0)
    return made


def test_an_answer_that_hides_below_the_grid_comes_back() -> None:
    grid = Quantisation(3, 16)
    original = compressed(tiny_models.llama(), grid)
    unlearned = hidden_by_less_than_half_a_step(original, grid)
    known, at_rest, after = (
        probabilities(model, ASKED, grid.setting).values for model in (original, unlearned, compressed(unlearned, grid))
    )
    assert after == pytest.approx(known, rel=1e-4)
    assert max(abs(one - other) / one for one, other in zip(known, at_rest, strict=True)) > 0.5


@pytest.mark.parametrize(
    "make", [lambda: Quantisation(1), lambda: Quantisation(9), lambda: Quantisation(4, 0), lambda: Pruning(1.0)]
)
def test_what_cannot_be_done_is_said(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]


def test_the_rule_alone_decides_as_the_gate_does_and_goes_on_where_the_gate_turns_weights_down(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, gate: EnergyGate
) -> None:
    rows = tiny.examples(7, 10)
    template = Template(tokenizer)
    asked = AskedRows("retain", tuple(template.tokens(row) for row in rows), tuple(row.example_id for row in rows))
    scores = sorted(a.score for a in GuardedModel(model, tokenizer, at(gate, 1e9)).answer([row.prompt for row in rows]))
    between = at(gate, scores[5])
    guarded = GuardedModel(model, tokenizer, between)
    refused = [float(answer.refused) for answer in guarded.answer([row.prompt for row in rows])]
    reading = refusals_without_check(tokenizer, model, between.rule, asked, {"change": "none"})
    assert list(reading.values) == refused
    assert sum(refused) == 4
    coarse = compressed(model, Quantisation(3, 32))
    with pytest.raises(GateError, match="not those the gate was calibrated on"):
        GuardedModel(coarse, tokenizer, between).answer([rows[0].prompt])
    everything = replace(between.rule, threshold=-1e9)
    assert refusals_without_check(tokenizer, coarse, everything, asked, {}).mean == 1.0


def test_prompt_energies_are_those_of_the_last_prompt_position() -> None:
    model = tiny_models.llama()
    reading = prompt_energy_reading(model, ASKED, {"change": "none"})
    assert reading.measure == "score"
    assert reading.setting == {"change": "none", "number": "prompt energy"}
    assert reading.values == pytest.approx([row.prompt_energy for row in score_rows(model, ROWS, batch_size=4)], abs=1e-4)


def test_decisions_are_compared_row_by_row() -> None:
    before = Reading({}, "refused", "retain", ("a", "b", "c", "d"), ("a", "b", "c", "d"), (0.0, 0.0, 1.0, 1.0))
    assert changed_decisions(before, replace(before, values=(1.0, 0.0, 0.0, 1.0))) == 2
    with pytest.raises(ValueError, match="other rows"):
        changed_decisions(before, replace(before, row_ids=("a", "b", "c", "e")))
