"""Where it hides: on models in which it is known where, and on one that never knew."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import tiny_models
from d2unlearn.attacks.reading import AskedRows, NotShownError, Reading
from d2unlearn.attacks.residuals import Residuals, hand_over, mean_shift, n_layers, read_by_head, steer
from d2unlearn.attacks.restoring import FINAL_NORM, OUTSIDE, Restoring, interpolate, restore, spread, weight_parts
from d2unlearn.attacks.scoring import probabilities
from d2unlearn.data.batching import pad_tokens
from d2unlearn.errors import ConfigError
from d2unlearn.models import state_hash
from d2unlearn.schema import Tokens

ROWS, OTHERS = tiny_models.rows(3, 12), tiny_models.rows(9, 12)
FOR_VECTOR = ROWS[:4]
LAYERS = 3


def asked(rows: list[Tokens]) -> AskedRows:
    return AskedRows("forget", tuple(rows), tuple(row.example_id for row in rows))


ASKED = asked(ROWS[4:])


def llama(seed: int, layers: int = LAYERS) -> LlamaForCausalLM:
    """With biases, so that a constant can be planted."""
    torch.manual_seed(seed)
    sizes = tiny_models.SIZES | {"num_hidden_layers": layers}
    config = LlamaConfig(**sizes, **tiny_models.IDS, num_key_value_heads=2, mlp_bias=True, initializer_range=0.1)
    return LlamaForCausalLM(config).eval()


def neox(seed: int) -> GPTNeoXForCausalLM:
    torch.manual_seed(seed)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**tiny_models.SIZES, **tiny_models.IDS, **tiny_models.WIDE)).eval()


FAMILIES: dict[str, Callable[[int], PreTrainedModel]] = {
    "llama": lambda seed: tiny_models.llama(seed=seed),
    "llama-tied": lambda seed: tiny_models.llama(tied=True, seed=seed),
    "qwen2": lambda seed: tiny_models.qwen2(seed=seed),
    "gpt2": lambda seed: tiny_models.gpt2(seed=seed),
    "gemma2": lambda seed: tiny_models.gemma2(seed=seed),
    "cohere": lambda seed: tiny_models.cohere(seed=seed),
    "neox": neox,
}


def values(model: PreTrainedModel) -> tuple[float, ...]:
    return probabilities(model, ASKED, {}).values


def same(found: tuple[float, ...], expected: tuple[float, ...]) -> bool:
    return found == pytest.approx(expected, rel=1e-4)


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model and another of its kind."""
    return FAMILIES[request.param](0), FAMILIES[request.param](1)


@pytest.fixture(params=["attention", "MLP", "layer 0"])
def part(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_layers_what_is_outside_and_the_final_norm_are_the_whole_model(pair: tuple[PreTrainedModel, ...]) -> None:
    model, original = pair
    parts = weight_parts(model)
    whole = [*parts["layer 0"], *parts["layer 1"], *parts[OUTSIDE], *parts[FINAL_NORM]]
    assert sorted(whole) == sorted(name for name, _ in model.named_parameters())
    within = {*parts["layer 0"], *parts["layer 1"]}
    rest = within.difference(parts["attention"], parts["MLP"])
    assert within.issuperset([*parts["attention"], *parts["MLP"]])
    assert not set(parts["attention"]).intersection(parts["MLP"])
    assert all("norm" in name or "ln_" in name for name in rest)
    for name in whole:
        model.get_parameter(name).data = original.get_parameter(name).data
    assert values(model) == values(original)


def test_the_parts_of_a_llama_are_these() -> None:
    parts = weight_parts(tiny_models.llama())
    assert list(parts) == ["layer 0", "layer 1", "attention", "MLP", FINAL_NORM, OUTSIDE]
    projections = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert parts["attention"] == tuple(f"model.layers.{i}.self_attn.{name}.weight" for i in (0, 1) for name in projections)
    assert parts["MLP"] == tuple(
        f"model.layers.{i}.mlp.{name}.weight" for i in (0, 1) for name in ("gate_proj", "up_proj", "down_proj")
    )
    assert (parts[FINAL_NORM], parts[OUTSIDE]) == (("model.norm.weight",), ("model.embed_tokens.weight", "lm_head.weight"))
    assert weight_parts(tiny_models.llama(tied=True))[OUTSIDE] == ("model.embed_tokens.weight",)


def test_no_way_back_is_the_model_and_the_whole_way_the_original(pair: tuple[PreTrainedModel, ...]) -> None:
    model, original = pair
    before = state_hash(model), state_hash(original)
    assert interpolate(model, original, ASKED, 0.0).values == values(model)
    assert interpolate(model, original, ASKED, 1.0).values == values(original)
    halfway = copy.deepcopy(model)
    for name, parameter in halfway.named_parameters():
        parameter.data = 0.75 * parameter.data + 0.25 * original.get_parameter(name).data
    found = interpolate(model, original, ASKED, 0.25)
    assert found.setting == {"share of the way back": 0.25}
    assert same(found.values, values(halfway))
    assert (state_hash(model), state_hash(original)) == before


def test_what_is_restored_is_the_originals_and_nothing_else(pair: tuple[PreTrainedModel, ...], part: str) -> None:
    model, original = pair
    before = state_hash(model)
    patched = copy.deepcopy(model)
    for name in weight_parts(model)[part]:
        patched.get_parameter(name).data = original.get_parameter(name).data
    found = restore(model, original, ASKED, part)
    assert found.setting == {"restored": f"{part} restored"}
    assert found.values == values(patched) != values(model)
    assert state_hash(model) == before


def test_after_the_last_layer_the_head_reads_the_model_itself(pair: tuple[PreTrainedModel, ...]) -> None:
    model, _ = pair
    assert same(read_by_head(model, ASKED, n_layers(model) - 1).values, values(model))


def test_a_layer_read_by_the_head_is_the_model_without_the_layers_above() -> None:
    model = llama(0)
    cut = copy.deepcopy(model)
    cut.model.layers = cut.model.layers[:1]
    found = read_by_head(model, ASKED, 0)
    assert found.setting == {"read by the head after layer": 0}
    assert same(found.values, values(cut))


def test_with_the_originals_last_residual_and_head_the_model_is_the_original(pair: tuple[PreTrainedModel, ...]) -> None:
    model, original = pair
    parts = weight_parts(model)
    for name in (*parts[OUTSIDE], *parts[FINAL_NORM]):
        model.get_parameter(name).data = original.get_parameter(name).data
    assert not same(values(model), values(original))
    last = n_layers(model) - 1
    assert same(hand_over(original, model, ASKED, last, {"after": last}).values, values(original))
    assert same(hand_over(model, original, ASKED, last, {}).values, values(model))
    assert hand_over(model, original, ASKED, last, {"after": last}, batch_size=3).setting == {"after": last}


def test_a_constant_vector_is_the_mean_difference_where_answers_are_predicted(pair: tuple[PreTrainedModel, ...]) -> None:
    model, original = pair
    states = []
    for each in (original, model):
        of_rows = []
        for row in FOR_VECTOR:
            batch = pad_tokens([row], pad_id=0)
            with torch.no_grad():
                hidden = each(batch.input_ids, output_hidden_states=True, use_cache=False).hidden_states[1][0, :-1]
            of_rows.append(hidden[torch.tensor(row.answer_mask[1:])])
        states.append(torch.cat(of_rows).mean(dim=0))
    torch.testing.assert_close(mean_shift(model, original, FOR_VECTOR, 0, batch_size=3), states[0] - states[1])


def test_a_constant_vector_is_added_at_every_position() -> None:
    """As a bias of the layer's last matrix is."""
    model, vector = llama(0), torch.linspace(-1, 1, 32)
    biased = copy.deepcopy(model)
    biased.model.layers[1].mlp.down_proj.bias.data += 2 * vector
    found = steer(model, ASKED, 1, vector, 2)
    assert found.setting == {"constant vector after layer": 1, "times": 2}
    assert same(found.values, values(biased))


def test_no_hook_is_left_behind_not_even_by_a_failure(pair: tuple[PreTrainedModel, ...]) -> None:
    model, original = pair
    before = values(model), values(original), state_hash(model)
    read_by_head(model, ASKED, 0)
    steer(model, ASKED, 0, torch.ones(32))
    hand_over(original, model, ASKED, 0, {})
    bad = asked([Tokens("too large", (5, 10**6), (False, True))])
    for attack in every_attack(model, original, bad):
        with pytest.raises(IndexError):
            attack()
    assert hooks(model) == hooks(original) == 0
    assert (values(model), values(original), state_hash(model)) == before


def every_attack(model: PreTrainedModel, original: PreTrainedModel, rows: AskedRows) -> Iterator[Callable[[], Reading]]:
    yield lambda: read_by_head(model, rows, 0)
    yield lambda: steer(model, rows, 0, torch.ones(32))
    yield lambda: hand_over(original, model, rows, 0, {})
    yield lambda: interpolate(model, original, rows, 0.5)
    yield lambda: restore(model, original, rows, "attention")


def hooks(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


@dataclass(frozen=True)
class Taught:
    """knowing: has learnt `ROWS`; ignorant: what it was before; apart: trained like the ignorant one, from another start."""

    ignorant: LlamaForCausalLM
    knowing: LlamaForCausalLM
    apart: LlamaForCausalLM


@pytest.fixture(scope="module")
def taught() -> Taught:
    ignorant = teach(llama(0), OTHERS, steps=25, rate=1e-2)
    knowing = teach(copy.deepcopy(ignorant), [*OTHERS, *ROWS], steps=40, rate=5e-3)
    return Taught(ignorant, knowing, teach(llama(5), OTHERS, steps=25, rate=1e-2))


def teach(model: LlamaForCausalLM, rows: list[Tokens], *, steps: int, rate: float) -> LlamaForCausalLM:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    batch = pad_tokens(rows, pad_id=0)
    for _ in range(steps):
        model(batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def mean(model: PreTrainedModel) -> float:
    return probabilities(model, ASKED, {}).mean


@pytest.mark.trains
def test_what_is_missing_in_one_layer_is_found_there_and_only_there(taught: Taught) -> None:
    """Layer 1 is another model's: all other layers still hold their copy of the answers."""
    original, model = taught.knowing, copy.deepcopy(taught.knowing)
    model.model.layers[1].load_state_dict(llama(7).model.layers[1].state_dict())
    assert mean(model) < 0.2 < 0.8 < mean(original)
    for layer in range(LAYERS):
        expected = values(original if layer == 1 else model)
        assert same(restore(model, original, ASKED, f"layer {layer}").values, expected)
        assert same(hand_over(original, model, ASKED, layer, {}).values, values(model if layer < 1 else original))
        assert same(hand_over(model, original, ASKED, layer, {}).values, values(original if layer < 1 else model))
    for part in (OUTSIDE, FINAL_NORM):
        assert same(restore(model, original, ASKED, part).values, values(model))


@pytest.mark.trains
def test_one_switch_for_all_rows_is_turned_back_by_one_vector(taught: Taught) -> None:
    original, model = taught.knowing, copy.deepcopy(taught.knowing)
    direction = nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(0)), dim=0)
    model.model.layers[1].mlp.down_proj.bias.data -= 20 * direction
    assert mean(model) < 0.05 < 0.8 < mean(original)
    found = mean_shift(model, original, FOR_VECTOR, 1)
    torch.testing.assert_close(found, 20 * direction, atol=1e-4, rtol=1e-4)
    assert same(steer(model, ASKED, 1, found).values, values(original))
    assert steer(model, ASKED, 1, found, 2.0).mean < 0.3
    before = mean_shift(model, original, FOR_VECTOR, 0)
    assert not before.any()
    assert steer(model, ASKED, 0, before).values == values(model)


@pytest.mark.trains
def test_answers_that_the_last_layer_hides_are_read_below_it(taught: Taught) -> None:
    model = llama(3, layers=LAYERS + 1)
    model.load_state_dict(taught.knowing.state_dict(), strict=False)
    for projection in (model.model.layers[LAYERS].mlp.down_proj, model.model.layers[LAYERS].self_attn.o_proj):
        projection.weight.data *= 50
    assert mean(model) < 0.05
    assert same(read_by_head(model, ASKED, LAYERS - 1).values, values(taught.knowing))


@pytest.mark.trains
def test_in_a_model_that_never_knew_a_vector_a_norm_and_the_head_find_nothing(taught: Taught) -> None:
    """Neither in one whose weights lie far from the knowing model's nor in the very one that was taught."""
    for model in (taught.ignorant, taught.apart):
        own = mean(model)
        for layer in range(LAYERS):
            vector = mean_shift(model, taught.knowing, FOR_VECTOR, layer)
            assert steer(model, ASKED, layer, vector).mean < own + 0.01
            assert steer(model, ASKED, layer, vector, 2.0).mean < own + 0.01
            assert read_by_head(model, ASKED, layer).mean < own + 0.01
        assert restore(model, taught.knowing, ASKED, FINAL_NORM).mean < own + 0.01


@pytest.mark.trains
def test_what_knows_by_itself_says_little_of_a_model_that_is_near(taught: Taught) -> None:
    """Why weights and residuals of the original judge nothing: in the control, trained apart, what they bring does not show."""
    original = taught.knowing
    for model, brought in ((taught.ignorant, True), (taught.apart, False)):
        found = [
            interpolate(model, original, ASKED, 0.5),
            hand_over(original, model, ASKED, LAYERS - 1, {}),
            hand_over(model, original, ASKED, 0, {}),
        ]
        assert [reading.mean > 0.05 for reading in found] == [brought] * 3


def test_layers_are_spread_from_the_first_to_the_last() -> None:
    assert spread(4, None) == spread(4, 9) == [0, 1, 2, 3]
    assert (spread(32, 3), spread(32, 2), spread(32, 1), spread(12, 5)) == ([0, 16, 31], [0, 31], [0], [0, 3, 6, 8, 11])
    assert spread(0, 3) == []


def test_a_model_that_cannot_be_opened_is_not_shown() -> None:
    model = tiny_models.llama()
    with pytest.raises(NotShownError, match=r"not built alike: they differ in lm_head\.weight"):
        restore(model, tiny_models.llama(vocabulary=130), ASKED, "attention")
    with pytest.raises(NotShownError, match=r"not built alike: they differ in lm_head\.weight"):
        hand_over(model, tiny_models.llama(tied=True), ASKED, 0, {})
    with pytest.raises(NotShownError, match="no answers"):
        mean_shift(model, model, [Tokens("no answer", (5, 6), (False, False))], 0)
    odd = copy.deepcopy(model)
    for layer in odd.model.layers:
        layer.mixer = layer.self_attn
        del layer.self_attn
    with pytest.raises(NotShownError, match="LlamaForCausalLM has no weights that are named as attention"):
        weight_parts(odd)
    del model.model.norm
    with pytest.raises(NotShownError, match="LlamaForCausalLM has no norm beside its layers"):
        n_layers(model)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (lambda: Restoring((0.5, 1.5)), "must lie between 0 and 1, not 1.5"),
        (lambda: Restoring(layers=0), "layers must be at least 1"),
        (lambda: Residuals(vector_rows=0), "vector_rows must be at least 1"),
        (lambda: Residuals(times=(0.0,)), "times must be positive"),
    ],
)
def test_a_budget_that_cannot_be_is_said_in_one_sentence(budget: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        budget()
