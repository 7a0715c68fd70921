"""Everything of the frozen model is computed once, is what a live second model would say, and is stored under a true key."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

import tiny_models
from d2unlearn.data.batching import pad_tokens
from d2unlearn.energy import reference_margins
from d2unlearn.errors import ConfigError
from d2unlearn.methods import METHODS, Method, Needs, batch_loss
from d2unlearn.observation import Observed
from d2unlearn.quantities import BottomLogSumExp, HiddenState, KlFromReference, LogSumExp, Nll, TopLogSumExp
from d2unlearn.schema import Role, Tokens
from d2unlearn.training import frozen
from d2unlearn.training.adapter import with_fresh_adapter
from d2unlearn.training.frozen import cache_key, frozen_values
from d2unlearn.training.sampling import PairPlan

from .runs import EUA, FORGET, RETAIN, micro_batches, silent, step_gradient, trainer

ROWS: dict[Role, list[Tokens]] = {"forget": FORGET, "retain": RETAIN}
TOP, BOTTOM = TopLogSumExp(0.1), BottomLogSumExp(0.1)


def margins_of(model: nn.Module, row: Tokens, *, vocab_rows: int | None = None) -> tuple[Tensor, Tensor]:
    """(m_in, m_out) at the row's answer positions, from the model's own logits for that row alone."""
    batch = pad_tokens([row], pad_id=0)
    at = [t for t in range(len(row.input_ids) - 1) if row.answer_mask[t + 1]]
    with torch.no_grad():
        logits = tiny_models.full_logits(model, batch)[0, at, :vocab_rows]
    return reference_margins(logits, 0.1)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_stored_margins_are_those_of_the_model_s_own_logits_row_by_row(family: str, batch_size: int) -> None:
    model = tiny_models.FAMILIES[family]()
    stored = frozen_values(model, EUA, ROWS, batch_size=batch_size)
    for index, row in enumerate(FORGET):
        found = stored["forget"][index]
        assert list(found) == [BOTTOM]
        torch.testing.assert_close(found[BOTTOM], -margins_of(model, row)[1], rtol=1e-5, atol=1e-5)
    for index, row in enumerate(RETAIN):
        found = stored["retain"][index]
        assert list(found) == [TOP]
        torch.testing.assert_close(found[TOP], -margins_of(model, row)[0], rtol=1e-5, atol=1e-5)


def test_dropout_and_gradients_are_off_and_the_model_is_left_as_it_was() -> None:
    noisy, quiet = tiny_models.gpt2(dropout=0.5).train(), tiny_models.gpt2(dropout=0.0)
    stored, expected = (frozen_values(model, EUA, ROWS) for model in (noisy, quiet))
    for row in range(len(FORGET)):
        assert torch.equal(stored["forget"][row][BOTTOM], expected["forget"][row][BOTTOM])
        assert not stored["forget"][row][BOTTOM].requires_grad
    assert noisy.training
    assert all(p.grad is None for p in noisy.parameters())


def test_a_row_without_an_answer_has_no_values_and_moves_no_other_s() -> None:
    model = tiny_models.llama()
    rows: dict[Role, list[Tokens]] = {"forget": [silent(FORGET[0]), *FORGET[1:]], "retain": RETAIN}
    stored, whole = frozen_values(model, EUA, rows), frozen_values(model, EUA, ROWS)
    assert stored["forget"][0][BOTTOM].shape == (0,)
    for row in range(1, len(FORGET)):
        torch.testing.assert_close(stored["forget"][row][BOTTOM], whole["forget"][row][BOTTOM])


def test_left_out_vocabulary_rows_are_no_part_of_the_margins() -> None:
    model = tiny_models.llama()
    stored = frozen_values(model, EUA, ROWS, vocab_rows=100)
    torch.testing.assert_close(stored["retain"][3][TOP], -margins_of(model, RETAIN[3], vocab_rows=100)[0])


# -- the cache --------------------------------------------------------------------------------------------------------


def never(*_: object, **__: object) -> None:
    raise AssertionError("the model ran again")


def test_a_second_run_reads_what_the_first_stored_and_does_not_run_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models.llama()
    first = frozen_values(model, EUA, ROWS, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".safetensors"
    monkeypatch.setattr(type(model), "forward", never)
    again = frozen_values(model, EUA, ROWS, cache=tmp_path)
    for role, rows in ROWS.items():
        for row in range(len(rows)):
            assert first[role][row].keys() == again[role][row].keys()
            for quantity, values in first[role][row].items():
                assert torch.equal(values, again[role][row][quantity])
    with pytest.raises(AssertionError, match="ran again"):
        frozen_values(model, METHODS["eua"](ratio=0.2), ROWS, cache=tmp_path)


def test_one_float_an_answer_token_and_quantity_is_stored(tmp_path: Path) -> None:
    frozen_values(tiny_models.llama(), EUA, ROWS, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    tokens = sum(row.answer_length for row in [*FORGET, *RETAIN])
    assert 4 * tokens < file.stat().st_size < 4 * tokens + 400


def test_a_pass_that_dies_leaves_nothing_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(tensors: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(frozen, "save_file", die)
    with pytest.raises(KeyboardInterrupt):
        frozen_values(tiny_models.llama(), EUA, ROWS, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def nudged(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        next(model.parameters())[5, 0] += 1e-3
    return model


def with_adapter(model: PreTrainedModel, **changes: Any) -> nn.Module:
    """An adapter of random weights, which says something."""
    torch.manual_seed(7)
    settings: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "down_proj", "v_proj"], "init_lora_weights": False}
    return with_fresh_adapter(model, LoraConfig(**{**settings, **changes}, task_type="CAUSAL_LM"))


def key(
    model: nn.Module | None = None, method: Method = EUA, rows: Mapping[Role, list[Tokens]] = ROWS, vocab: int | None = None
) -> str:
    return cache_key(tiny_models.llama() if model is None else model, method, rows, vocab)


ANOTHER_ROW = Tokens("x", (9, *FORGET[0].input_ids[1:]), FORGET[0].answer_mask)
ANOTHER_MASK = Tokens("x", FORGET[0].input_ids, (*FORGET[0].answer_mask[:-1], False))
CHANGES: dict[str, Callable[[], str]] = {
    "weights": lambda: key(nudged(tiny_models.llama())),
    "configuration": lambda: key(scaled(tiny_models.llama())),
    "ratio": lambda: key(method=METHODS["eua"](ratio=0.2)),
    "temperature": lambda: key(method=METHODS["eua"](temperature=2.0)),
    "token": lambda: key(rows={**ROWS, "forget": [ANOTHER_ROW, *FORGET[1:]]}),
    "mask": lambda: key(rows={**ROWS, "forget": [ANOTHER_MASK, *FORGET[1:]]}),
    "order": lambda: key(rows={**ROWS, "retain": RETAIN[::-1]}),
    "role": lambda: key(rows={"forget": RETAIN, "retain": FORGET}),
    "vocabulary": lambda: key(vocab=100),
    "adapter": lambda: key(with_adapter(tiny_models.llama())),
}


def scaled(model: PreTrainedModel) -> PreTrainedModel:
    """Other logits by configuration alone."""
    model.config.logit_scale = 0.5
    return model


def test_every_input_of_the_values_changes_the_key() -> None:
    keys = {name: make() for name, make in CHANGES.items()} | {"none": key()}
    assert len(set(keys.values())) == len(keys)


def test_what_the_values_do_not_depend_on_keeps_the_key() -> None:
    trained_with = tiny_models.llama()
    trained_with.config.use_cache = False
    trained_with.config.pad_token_id = 3
    renamed = {role: [Tokens("other", row.input_ids, row.answer_mask) for row in rows] for role, rows in ROWS.items()}
    assert key(trained_with) == key(method=METHODS["eua"](gamma=9.0, alpha=0.3)) == key(rows=renamed) == key()


def test_adapters_of_equal_weights_and_another_scale_have_another_key_whatever_order_their_modules_come_in() -> None:
    plain, louder = (with_adapter(tiny_models.llama(), lora_alpha=alpha) for alpha in (8, 16))
    assert key(plain) != key(louder)
    swapped = with_adapter(tiny_models.llama(), lora_alpha=8, target_modules=["down_proj", "v_proj", "q_proj"])
    assert key(plain) == key(swapped)


# -- in training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_step_with_stored_values_is_a_step_with_a_live_reference(tmp_path: Path, family: str) -> None:
    live = tiny_models.FAMILIES[family]()
    made = trainer(tmp_path, tiny_models.FAMILIES[family](), per_device_train_batch_size=8)
    (batch,) = micro_batches(made)
    nudged(made.model).eval()
    expected = batch_loss(EUA, made.model, batch, reference=live)
    assert made.compute_loss(made.model, batch).item() == pytest.approx(expected.item(), rel=1e-6)


def given_with_adapter() -> nn.Module:
    """A model that came with an adapter that says something."""
    return with_adapter(tiny_models.llama())


LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
STARTS: dict[str, tuple[Callable[[], nn.Module], LoraConfig | None]] = {
    "fresh": (tiny_models.llama, LoraConfig(**LORA)),
    "random": (tiny_models.llama, LoraConfig(**LORA, init_lora_weights=False)),
    "pissa": (tiny_models.llama, LoraConfig(**LORA, init_lora_weights="pissa")),
    "came with one": (given_with_adapter, None),
    "came with one, another asked for": (given_with_adapter, LoraConfig(**LORA)),
}


@pytest.mark.parametrize("start", STARTS)
def test_the_reference_is_the_model_as_given_before_any_adapter(tmp_path: Path, start: str) -> None:
    make, peft_config = STARTS[start]
    as_given = make().eval()
    made = trainer(tmp_path, make(), peft_config=copy.deepcopy(peft_config), per_device_train_batch_size=8)
    (batch,) = micro_batches(made)
    plan = PairPlan(8, 13, effective_batch=8, seed=42)
    chosen = {"forget": [FORGET[plan[i].forget] for i in range(8)], "retain": [RETAIN[plan[i].retain] for i in range(8)]}
    for role, quantity, which in (("forget", BOTTOM, 1), ("retain", TOP, 0)):
        expected = -torch.cat([margins_of(as_given, row)[which] for row in chosen[role]])
        torch.testing.assert_close(batch["reference"][role][quantity], expected, rtol=1e-5, atol=1e-5)
    without = [margins_of(tiny_models.llama(), row)[0] for row in chosen["retain"]]
    if "came with one" in start:  # adapters off would be another reference
        assert float((batch["reference"]["retain"][TOP] + torch.cat(without)).abs().max()) > 0.1


@pytest.mark.parametrize("start", ["came with one", "came with one, another asked for"])
def test_training_starts_from_the_model_as_given(tmp_path: Path, start: str) -> None:
    """A second adapter of the same name would take the first one's place."""
    make, peft_config = STARTS[start]
    made = trainer(tmp_path, make(), peft_config=copy.deepcopy(peft_config))
    row = pad_tokens(RETAIN[:4], pad_id=0)
    real = row.attention_mask.bool()
    with torch.no_grad():
        found, expected = (tiny_models.full_logits(each.eval(), row)[real] for each in (made.model, make()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@dataclass(frozen=True)
class KlOnBoth(Method):
    """A method that reads the reference's logits: KL on the retained side, less the forget NLL. Two thirds of what may come."""

    @property
    def needs(self) -> Mapping[Role, Needs]:
        return {
            "forget": Needs(policy=(Nll(), LogSumExp(2.0)), reference=(Nll(),)),
            "retain": Needs(policy=(KlFromReference(),), reference=(HiddenState(),)),
        }

    def loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        forget, retain = batch["forget"], batch["retain"]
        gone = forget.policy[Nll()] - forget.reference[Nll()]
        return retain.mean(retain.policy[KlFromReference()]) - 0.1 * forget.mean(gone)


@pytest.mark.trains
def test_a_method_of_other_quantities_trains_without_a_second_model_in_memory(tmp_path: Path) -> None:
    """KL to the frozen logits comes from stored hidden states and a copy of the head that training does not move."""
    made = trainer(tmp_path, tiny_models.llama(), method=KlOnBoth(), per_device_train_batch_size=8)
    old = tiny_models.llama()
    for _ in range(2):
        (batch,) = micro_batches(made)
        plan = PairPlan(8, 13, effective_batch=8, seed=42)
        kl, gone = [], []
        for i in range(8):
            new, was, _ = logits_of(made.model, old, RETAIN[plan[i].retain])
            kl.append(nn.functional.kl_div(new.log_softmax(-1), was.log_softmax(-1), log_target=True, reduction="none").sum(-1))
            new, was, targets = logits_of(made.model, old, FORGET[plan[i].forget])
            gone.append(nll(new, targets) - nll(was, targets))
        expected = torch.cat(kl).mean() - 0.1 * torch.cat(gone).mean()
        assert made.compute_loss(made.model, batch).item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
        made.train()  # the second time the policy has moved


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def logits_of(model: nn.Module, old: nn.Module, row: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    """(the model's logits, the old one's, targets) at the row's answer positions."""
    at = [t for t in range(len(row.input_ids) - 1) if row.answer_mask[t + 1]]
    ids = torch.tensor([row.input_ids])
    with torch.no_grad():
        return model(input_ids=ids).logits[0, at], old(input_ids=ids).logits[0, at], ids[0, [t + 1 for t in at]]


@dataclass(frozen=True)
class NoHiddenStates(KlOnBoth):
    @property
    def needs(self) -> Mapping[Role, Needs]:
        return {"retain": Needs(policy=(KlFromReference(),))}


def test_a_method_that_forgot_to_ask_for_hidden_states_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ask for its HiddenState"):
        trainer(tmp_path, tiny_models.llama(), method=NoHiddenStates())


@dataclass(frozen=True)
class Ascent(Method):
    """A method that reads one side only and nothing of the reference."""

    @property
    def needs(self) -> Mapping[Role, Needs]:
        return {"forget": Needs(policy=(Nll(),))}

    def loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        return -batch["forget"].mean(batch["forget"].policy[Nll()])


def test_a_method_without_a_reference_runs_no_reference_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "_run", never)
    made = trainer(tmp_path, tiny_models.llama(), method=Ascent(), per_device_train_batch_size=8)
    found, old = step_gradient(made)[0], tiny_models.llama()
    expected = [nll(logits, targets) for logits, _, targets in (logits_of(old, old, row) for row in FORGET)]
    assert found == pytest.approx(-torch.cat(expected).mean().item(), rel=1e-5)
