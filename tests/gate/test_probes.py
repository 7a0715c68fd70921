"""Neutral probe prompts: nobody's questions are in the artifact, and a changed model is noticed with room to spare."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.data.template import Template
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.probe_texts import N_PROBES, probe_prompts, probe_texts
from d2unlearn.gate.probes import make_probes, prompt_energies
from d2unlearn.models import load_model, load_tokenizer
from d2unlearn.schema import GATE_FILE, Example, Message

from . import tiny

DATA = Path(__file__).parents[1] / "invariant" / "data"
MARGIN = 5
"""How many times the tolerance a change has to move a probe's energy."""


@pytest.fixture(scope="module")
def known() -> tuple[LlamaForCausalLM, Template]:
    """A small model that was trained, in float32."""
    return load_model(DATA / "model"), Template(load_tokenizer(DATA / "model"))  # type: ignore[return-value]


def one_layer_edited(model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.02)


def int8(model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                scale = module.weight.abs().amax(dim=1, keepdim=True) / 127
                module.weight.copy_((module.weight / scale).round() * scale)


def rope_theta(model: LlamaForCausalLM) -> None:
    size = model.config.head_dim
    model.model.rotary_emb.inv_freq.copy_(1.0 / 20000.0 ** (torch.arange(0, size, 2).float() / size))


def layer_fewer(model: LlamaForCausalLM) -> None:
    del model.model.layers[-1]
    model.config.num_hidden_layers -= 1


def another_artifact(model: LlamaForCausalLM) -> None:
    model.load_state_dict(load_model(DATA / "artifact").state_dict())


@pytest.mark.parametrize("change", [one_layer_edited, int8, rope_theta, layer_fewer, another_artifact])
def test_a_change_of_the_model_moves_neutral_prompts_by_several_tolerances(
    known: tuple[LlamaForCausalLM, Template], change: Callable[[LlamaForCausalLM], None]
) -> None:
    model, template = known
    changed = copy.deepcopy(model)
    change(changed)
    for seed in range(2):
        prompts = probe_prompts(template, None, seed)
        probes, tolerance = make_probes(model, prompts, 1.0, None)
        assert tolerance == 0.002
        moved = np.abs(prompt_energies(changed, prompts, 1.0, None) - [probe.energy for probe in probes])
        assert moved.max() > MARGIN * tolerance


def test_the_seed_draws_the_prompts_and_the_context_cuts_them(tokenizer: PreTrainedTokenizerFast) -> None:
    template = Template(tokenizer)
    drawn = {seed: probe_prompts(template, None, seed) for seed in range(4)}
    everything = [template.question_ids(text) for text in probe_texts()]
    assert len(set(probe_texts())) == len(probe_texts()) >= 3 * N_PROBES
    for prompts in drawn.values():
        assert len(prompts) == N_PROBES
        assert all(prompt in everything for prompt in prompts)
    assert drawn[0] == probe_prompts(template, None, 0)
    assert drawn[0] != drawn[1] != drawn[2]
    assert probe_prompts(template, 5, 0) == [prompt[-5:] for prompt in drawn[0]]


def test_nobody_s_question_is_in_the_artifact(
    tmp_path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [
        Example(str(i), (Message("user", f"{text} w59 w58 w59"),), "w1", str(i)) for i, text in enumerate(tiny.questions(1, 30))
    ]
    gate = EnergyGate.calibrate(model, tokenizer, rows, max_false_refusal=0.2, max_new_tokens=2)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    gate.save(tmp_path)
    end = str(tokenizer.convert_tokens_to_ids(["w59", "w58", "w59"]))[1:-1]
    asked = Template(tokenizer)
    assert all(end in str(asked.prompt_ids(row.prompt)) for row in rows)
    for name in ("config.json", GATE_FILE):
        assert end not in str(json.loads((tmp_path / name).read_text()))
    assert [list(probe.token_ids) for probe in gate.probes] == probe_prompts(asked, 2047, 0)
