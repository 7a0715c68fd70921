"""A gate runs on the weights that it was calibrated on and on no others, however those came about."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import GenerationConfig, LlamaForCausalLM

from d2unlearn.errors import GateError
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.decoding import n_sequences
from d2unlearn.gate.gated import GatedGenerator
from d2unlearn.gate.rule import GateRule, RefusalTokens
from d2unlearn.gate.weights import PROBE_EVERY, WeightsCheck

from . import tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, .* are deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning"),
]

OTHERS = "these weights are not those the gate was calibrated on"


@pytest.fixture
def own() -> LlamaForCausalLM:
    """One of its own for each test."""
    return tiny.model()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that were held against a rule's probes, in order."""
    models: list[nn.Module] = []
    check = GateRule.check_probes

    def noted(self: GateRule, model: LlamaForCausalLM) -> None:
        models.append(model)
        check(self, model)

    monkeypatch.setattr(GateRule, "check_probes", noted)
    return models


def one_step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def sgd(model: LlamaForCausalLM) -> None:
    one_step(model, torch.optim.SGD(model.parameters(), lr=0.5))


def adamw(model: LlamaForCausalLM) -> None:
    one_step(model, torch.optim.AdamW(model.parameters(), lr=0.05, fused=True))


def adamw_of_lists(model: LlamaForCausalLM) -> None:
    one_step(model, torch.optim.AdamW(model.parameters(), lr=0.05, foreach=True))


def other_state(model: LlamaForCausalLM) -> None:
    model.load_state_dict(tiny.model(seed=5).state_dict())


def other_state_in_its_place(model: LlamaForCausalLM) -> None:
    model.load_state_dict(tiny.model(seed=5).state_dict(), assign=True)


def other_parameter(model: LlamaForCausalLM) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * 1.05)


def other_data(model: LlamaForCausalLM) -> None:
    """The way of `.to`, and of many who merge weights: the parameter stays, what it holds is another tensor."""
    model.lm_head.weight.data = model.lm_head.weight.data * 1.05


def written_in_place(model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        model.lm_head.weight[3:9].mul_(2)


def a_buffer(model: LlamaForCausalLM) -> None:
    model.model.rotary_emb.inv_freq.mul_(0.3)


def half(model: LlamaForCausalLM) -> None:
    model.half()


def bfloat16(model: LlamaForCausalLM) -> None:
    model.to(torch.bfloat16)  # type: ignore[call-arg]


class Int8(nn.Module):
    """A linear layer whose weights are whole numbers, in the place of the one it is made of."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().max() / 127
        self.register_buffer("whole", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ (self.whole.float() * self.scale).T  # type: ignore[operator]


def int8_layers(model: LlamaForCausalLM) -> None:
    for layer in model.model.layers:
        layer.mlp.down_proj = Int8(layer.mlp.down_proj)
        layer.self_attn.o_proj = Int8(layer.self_attn.o_proj)


def dynamically_quantised(model: LlamaForCausalLM) -> None:
    torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)


@pytest.mark.parametrize(
    "change",
    [
        sgd,
        adamw,
        adamw_of_lists,
        other_state,
        other_state_in_its_place,
        other_parameter,
        other_data,
        written_in_place,
        a_buffer,
        half,
        bfloat16,
        int8_layers,
        dynamically_quantised,
    ],
)
def test_changed_weights_are_refused_at_the_next_answer_and_as_long_as_they_are_others(
    own: LlamaForCausalLM, gate: EnergyGate, change: Callable[[LlamaForCausalLM], None]
) -> None:
    check = WeightsCheck(own)
    check.check(gate.rule, 1)
    before = copy.deepcopy(own.state_dict())
    change(own)
    for _ in range(2):
        with pytest.raises(GateError, match=OTHERS):
            check.check(gate.rule, 1)
    if change in (sgd, adamw, other_state, written_in_place):
        own.load_state_dict(before)
        check.check(gate.rule, 1)


def moved(model: LlamaForCausalLM) -> None:
    """What a move leaves behind where there is one device alone: the same numbers somewhere else."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def reloaded(model: LlamaForCausalLM) -> None:
    model.load_state_dict(tiny.model().state_dict())


def more_exact(model: LlamaForCausalLM) -> None:
    model.to(torch.float64)  # type: ignore[call-arg]


def wrapped(model: LlamaForCausalLM) -> None:
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [moved, reloaded, more_exact, wrapped])
def test_the_same_weights_elsewhere_are_looked_at_again_and_pass(
    own: LlamaForCausalLM, gate: EnergyGate, asked: list[nn.Module], change: Callable[[LlamaForCausalLM], None]
) -> None:
    check = WeightsCheck(own)
    for wanted in (1, 1):
        check.check(gate.rule, 1)
        assert len(asked) == wanted
    change(own)
    for wanted in (2, 2):
        check.check(gate.rule, 1)
        assert len(asked) == wanted


def test_what_changes_no_weights_costs_no_probes(own: LlamaForCausalLM, gate: EnergyGate, asked: list[nn.Module]) -> None:
    check = WeightsCheck(own)
    check.check(gate.rule, 1)
    own.gradient_checkpointing_enable()
    check.check(gate.rule, 1)
    own.gradient_checkpointing_disable()
    own.train().requires_grad_(False).eval()
    own.zero_grad()
    own.generate(torch.tensor([[5, 6, 7]]), attention_mask=torch.ones(1, 3), max_new_tokens=3, do_sample=False)
    check.check(gate.rule, 1)
    assert len(asked) == 1


def adapted(model: LlamaForCausalLM) -> PeftModel:
    """Two adapters: `default`, which changes nothing and is on, and `strong`."""
    made = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))  # type: ignore[arg-type]
    torch.manual_seed(1)
    made.add_adapter("strong", LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    return made.eval()


def strengthened(model: PeftModel) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(0.1) if "lora_B.default" in name else None


@pytest.mark.parametrize(
    ("change", "back"),
    [
        (lambda model: model.set_adapter("strong"), lambda model: model.set_adapter("default")),
        (lambda model: model.merge_adapter(["strong"]), lambda model: model.unmerge_adapter()),
        (lambda model: model.merge_adapter(["strong"], safe_merge=True), lambda model: model.unmerge_adapter()),
        (strengthened, lambda model: model.base_model.disable_adapter_layers()),
    ],
    ids=["switched", "merged", "merged safely", "trained, then off"],
)
def test_an_adapter_that_is_switched_or_merged_makes_other_weights(
    own: LlamaForCausalLM, gate: EnergyGate, change: Callable[[PeftModel], None], back: Callable[[PeftModel], None]
) -> None:
    behind = adapted(own)
    check = WeightsCheck(behind)  # type: ignore[arg-type]
    check.check(gate.rule, 1)
    change(behind)
    with pytest.raises(GateError, match=OTHERS):
        check.check(gate.rule, 1)
    back(behind)
    check.check(gate.rule, 1)


def test_how_strong_an_adapter_is_counts_too(own: LlamaForCausalLM, gate: EnergyGate, asked: list[nn.Module]) -> None:
    behind = adapted(own)
    check = WeightsCheck(behind)  # type: ignore[arg-type]
    check.check(gate.rule, 1)
    for module in behind.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"] *= 3  # nothing times three
    check.check(gate.rule, 1)
    assert len(asked) == 2


def test_what_is_written_past_the_counters_is_found_after_so_many_answers(own: LlamaForCausalLM, gate: EnergyGate) -> None:
    check = WeightsCheck(own)
    check.check(gate.rule, 1)
    own.lm_head.weight.data.mul_(1.05)
    check.check(gate.rule, PROBE_EVERY - 2)
    check.check(gate.rule, 1)
    for _ in range(2):
        with pytest.raises(GateError, match=OTHERS):
            check.check(gate.rule, 1)


def test_weights_that_have_no_counters_are_found_after_so_many_answers_as_well(gate: EnergyGate) -> None:
    with torch.inference_mode():
        model = tiny.model()
    check = WeightsCheck(model)
    check.check(gate.rule, PROBE_EVERY - 1)
    with torch.inference_mode():
        model.lm_head.weight.mul_(1.05)
    check.check(gate.rule, 1)
    with pytest.raises(GateError, match=OTHERS):
        check.check(gate.rule, 1)


def test_another_gate_is_held_against_the_weights_by_itself(
    own: LlamaForCausalLM, gate: EnergyGate, asked: list[nn.Module]
) -> None:
    from dataclasses import replace

    check = WeightsCheck(own)
    check.check(gate.rule, 1)
    check.check(replace(gate.rule, threshold=3.0), 1)
    assert len(asked) == 1
    shifted = tuple(replace(probe, energy=probe.energy + 1) for probe in gate.probes)
    with pytest.raises(GateError, match=OTHERS):
        check.check(replace(gate.rule, probes=shifted), 1)


def test_a_laxer_gate_does_not_vouch_for_a_stricter_one(own: LlamaForCausalLM, gate: EnergyGate) -> None:
    from dataclasses import replace

    written_in_place(own)
    check = WeightsCheck(own)
    check.check(replace(gate.rule, probe_tolerance=1e9), 1)
    with pytest.raises(GateError, match=OTHERS):
        check.check(gate.rule, 1)


def test_weights_written_while_the_probes_are_asked_are_not_trusted(
    own: LlamaForCausalLM, gate: EnergyGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = GateRule.check_probes

    def written_meanwhile(self: GateRule, model: LlamaForCausalLM) -> None:
        ask(self, model)
        written_in_place(model)

    check = WeightsCheck(own)
    with monkeypatch.context() as patch:
        patch.setattr(GateRule, "check_probes", written_meanwhile)
        check.check(gate.rule, 1)
    with pytest.raises(GateError, match=OTHERS):
        check.check(gate.rule, 1)


def test_a_checked_model_can_be_cast_with_swapped_tensors_and_pickled(own: LlamaForCausalLM, gate: EnergyGate) -> None:
    check = WeightsCheck(own)
    check.check(gate.rule, 1)
    again: WeightsCheck = pickle.loads(pickle.dumps(check))
    again.check(gate.rule, 1)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        own.to(torch.float64)  # type: ignore[call-arg]
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert own.lm_head.weight.dtype == torch.float64
    check.check(gate.rule, 1)


def test_the_generator_s_model_is_the_one_that_is_checked(own: LlamaForCausalLM, gate: EnergyGate) -> None:
    generator = GatedGenerator(own, RefusalTokens(((5,),), (6,), (2,), 0))
    with pytest.raises(AttributeError):
        generator.model = tiny.model()  # type: ignore[misc]
    assert generator.model is own


def test_rows_of_embeddings_are_counted_as_answers() -> None:
    config = GenerationConfig(num_return_sequences=2, do_sample=True)
    assert n_sequences(config, {"inputs_embeds": torch.zeros(3, 4, 8)}, None) == 6
    assert n_sequences(config, {}, torch.zeros(5, 4)) == 10
    assert n_sequences(config, {}, None) == 2


def test_looking_at_the_weights_takes_less_than_a_hundredth_of_an_answer(own: LlamaForCausalLM, gate: EnergyGate) -> None:
    """The least of several tries each, on a model of two layers and 20,000 weights."""
    given = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3), "max_new_tokens": 12}

    def least(work: Callable[[], object], repeats: int) -> float:
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
        return min(taken)

    check = WeightsCheck(own)
    check.check(gate.rule, 1)
    looking = least(lambda: check.check(gate.rule, 0), 50)
    assert looking < 0.01 * least(lambda: own.generate(**given, min_new_tokens=12, do_sample=False), 5)
