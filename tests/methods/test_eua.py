"""EUA: hinges by hand, loss and gradients against the paper's two-model form, its edges, and what three steps do."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

import tiny_models
from d2unlearn.data.batching import pad_tokens
from d2unlearn.errors import ConfigError
from d2unlearn.methods import METHODS, batch_loss, reference_batch_values
from d2unlearn.methods.eua import EUA
from d2unlearn.observation import Batch, Observed, observe, observed
from d2unlearn.quantities import BottomLogSumExp, LogSumExp, Nll, Observable, TopLogSumExp
from d2unlearn.schema import Role
from d2unlearn.training.adapter import with_fresh_adapter
from reference import dense

BATCHES: dict[Role, Batch] = {
    "forget": pad_tokens(tiny_models.rows(1, 4), pad_id=0),
    "retain": pad_tokens(tiny_models.rows(2, 4), pad_id=0),
}
SETTINGS = [
    {},
    {"ratio": 0.3, "gamma": 1.0, "alpha": 0.1},
    {"temperature": 2.0, "gamma": 1.0},
    {"temperature": 0.5, "gamma": 0.3, "ratio": 0.05},
    {"alpha": 0.0, "gamma": 1.0},
    {"gamma": 0.0},
]


def moved(model: nn.Module, seed: int = 0, scale: float = 0.2) -> nn.Module:
    """A copy whose every weight is a little elsewhere and whose logits are smaller, so that both hinges are active."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(scale * parameter.std() * torch.randn(parameter.shape, generator=generator).to(parameter))
        changed.get_output_embeddings().weight.mul_(0.5)
    return changed


def in_batch(batches: Mapping[Role, Batch] = BATCHES) -> dict[str, Mapping[str, object]]:
    return {role: vars(batch) for role, batch in batches.items()}


def seen(
    policy: dict[Observable, Sequence[float]],
    reference: dict[Observable, Sequence[float]],
    *,
    total_positions: float | None = None,
) -> Observed:
    """Positions of one row with the values given."""
    n = len(next(iter(policy.values())))
    return Observed(
        policy={q: torch.tensor(v, dtype=torch.float64, requires_grad=True) for q, v in policy.items()},
        reference={q: torch.tensor(v, dtype=torch.float64) for q, v in reference.items()},
        rows=torch.zeros(n, dtype=torch.long),
        n_rows=1,
        total_positions=float(n) if total_positions is None else total_positions,
        total_rows=1.0,
    )


RETAINED: dict[Observable, Sequence[float]] = {LogSumExp(): [4.0, 6.0, 5.0], Nll(): [0.3, 0.6, 0.9]}
"""Energies -4, -6 and -5."""
FORGOTTEN: dict[Observable, Sequence[float]] = {LogSumExp(): [3.0, 7.0]}
"""Energies -3 and -7."""


def by_hand() -> dict[Role, Observed]:
    """Retained bounds m_in of -5 (drifted above it by 1), -5 and -5; forget bounds m_out of -4 and -4 (3 below it)."""
    return {
        "retain": seen(RETAINED, {TopLogSumExp(0.1): [5.0, 5.0, 5.0]}),
        "forget": seen(FORGOTTEN, {BottomLogSumExp(0.1): [4.0, 4.0]}),
    }


def test_the_loss_by_hand() -> None:
    """gamma * (1^2 / 3 + 3^2 / 2) + alpha * 0.6."""
    assert EUA().loss(by_hand()).item() == pytest.approx(0.05 * (1 / 3 + 9 / 2) + 0.6)
    assert EUA(gamma=2.0, alpha=0.5).loss(by_hand()).item() == pytest.approx(2 * (1 / 3 + 9 / 2) + 0.3)


def test_the_gradient_by_hand() -> None:
    """It pushes down the logsumexp of the forget position below its bound, pulls up that of the retained one above its own."""
    batch = by_hand()
    EUA(gamma=1.0, alpha=3.0).loss(batch).backward()
    retain, forget = batch["retain"].policy, batch["forget"].policy
    assert forget[LogSumExp()].grad.tolist() == pytest.approx([0, 2 * 3 / 2])
    assert retain[LogSumExp()].grad.tolist() == pytest.approx([-2 * 1 / 3, 0, 0])
    assert retain[Nll()].grad.tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_what_is_watched_by_hand() -> None:
    watched = EUA().monitor(by_hand())
    assert {name: value.item() for name, value in watched.items()} == {
        "forget_hinge_active": 0.5,
        "retain_hinge_active": pytest.approx(1 / 3),
        "retain_nll": pytest.approx(0.6),
    }


def test_shares_of_an_effective_batch_add_up() -> None:
    """Two retained positions here and one there, one forget position on either side: as all of them at once."""
    parts: list[dict[Role, Observed]] = [
        {
            "retain": seen(
                {q: v[where] for q, v in RETAINED.items()}, {TopLogSumExp(0.1): [5.0] * len(range(3)[where])}, total_positions=3
            ),
            "forget": seen({LogSumExp(): [energy]}, {BottomLogSumExp(0.1): [4.0]}, total_positions=2),
        }
        for where, energy in ((slice(0, 2), 3.0), (slice(2, 3), 7.0))
    ]
    assert sum(EUA().loss(part).item() for part in parts) == pytest.approx(EUA().loss(by_hand()).item())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "gemma2", "granite"])
def test_loss_and_gradients_are_the_papers(family: str, settings: dict[str, float]) -> None:
    reference = tiny_models.FAMILIES[family]().double()
    model = moved(reference)
    found = batch_loss(EUA(**settings), model, in_batch(), reference=reference)
    expected = dense.eua_loss(model, reference, BATCHES, **settings)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    parameters = list(model.parameters())
    found, expected = (torch.autograd.grad(loss, parameters) for loss in (found, expected))
    # transformers' norms round to float32, here and there over another shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "gemma2", "granite"])
def test_both_hinges_and_the_likelihood_have_a_say_in_those_cases(family: str) -> None:
    reference = tiny_models.FAMILIES[family]().double()
    parts = dense.eua_parts(moved(reference), reference, BATCHES, ratio=0.1, temperature=1.0)
    assert min(part.item() for part in parts) > 1e-3


def test_at_the_start_no_retained_position_lies_far_above_its_bound() -> None:
    """m_in lies above or below the reference's own energy by what the zero fill puts in place of the left-out logits."""
    model = tiny_models.llama().double()
    loss = batch_loss(EUA(gamma=1.0, alpha=0.0), model, in_batch(), reference=model)
    parts = dense.eua_parts(model, model, BATCHES, ratio=0.1, temperature=1.0)
    assert loss.item() == pytest.approx((parts.retain_hinge + parts.forget_hinge).item(), rel=1e-9)
    assert parts.retain_hinge.item() < 0.01 * parts.forget_hinge.item()


def test_margins_stored_beforehand_are_margins_on_the_fly() -> None:
    reference = tiny_models.llama()
    model, method = moved(reference), EUA(gamma=1.0)
    stored = {role: {q: v.clone() for q, v in each.items()} for role, each in stored_values(method, reference).items()}
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.zero_()  # nobody looks at it again
    policy = observe(model, BATCHES, {role: needs.policy for role, needs in method.needs.items()})
    loss = method.loss({role: observed(BATCHES[role], policy[role], stored[role]) for role in BATCHES})
    expected = dense.eua_loss(model, tiny_models.llama(), BATCHES, gamma=1.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def stored_values(method: EUA, reference: nn.Module) -> Mapping[Role, Mapping[Observable, Tensor]]:
    found = reference_batch_values(method, reference, BATCHES)
    assert {role: list(values) for role, values in found.items()} == {
        "forget": [BottomLogSumExp(0.1)],
        "retain": [TopLogSumExp(0.1)],
    }
    assert not any(value.requires_grad for values in found.values() for value in values.values())
    return found


# -- edges --------------------------------------------------------------------------------------------------------------


def without_answers(batch: Batch) -> Batch:
    return Batch(batch.input_ids, batch.attention_mask, torch.full_like(batch.labels, -100))


@pytest.mark.parametrize("silent", [["forget"], ["retain"], ["forget", "retain"]], ids=str)
def test_a_side_without_answer_tokens_counts_for_nothing(silent: list[Role]) -> None:
    reference = tiny_models.llama().double()
    model = moved(reference)
    batches = {role: without_answers(b) if role in silent else b for role, b in BATCHES.items()}
    loss = batch_loss(EUA(gamma=1.0), model, in_batch(batches), reference=reference)
    loss.backward()
    parts = dense.eua_parts(model, reference, BATCHES, ratio=0.1, temperature=1.0)
    left = {"retain": parts.retain_hinge + parts.retain_nll, "forget": parts.forget_hinge}
    assert loss.item() == pytest.approx(sum(part.item() for role, part in left.items() if role not in silent), rel=1e-6)
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ratio": 0.0}, "ratio must lie between 0 and 1, not 0.0"),
        ({"ratio": 1.0}, "ratio must lie between 0 and 1, not 1.0"),
        ({"ratio": math.nan}, "ratio must lie between 0 and 1, not nan"),
        ({"temperature": 0.0}, "temperature must be a positive number, not 0.0"),
        ({"gamma": -1.0, "alpha": -2.0, "ratio": 2.0}, "gamma must not be negative.*alpha must not be negative.*not 2.0"),
        ({"gamma": math.nan}, "gamma must not be negative"),
    ],
)
def test_settings_that_cannot_be_are_named_together(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        METHODS["eua"](**settings)


def test_the_published_settings_are_the_default() -> None:
    assert METHODS["eua"]() == EUA(ratio=0.1, temperature=1.0, gamma=0.05, alpha=1.0)


# -- three steps --------------------------------------------------------------------------------------------------------


def three_steps(model: nn.Module, reference: nn.Module, rate: float) -> list[float]:
    """AdamW on the same batch; the loss before each step and after the last."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = batch_loss(EUA(), model, in_batch(), reference=reference)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return [*losses, batch_loss(EUA(), model, in_batch(), reference=reference).item()]


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_three_steps_lower_the_loss_and_move_every_parameter(family: str) -> None:
    reference = tiny_models.FAMILIES[family]()
    model = copy.deepcopy(reference)
    losses = three_steps(model, reference, 2e-3)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]
    still = [
        name for (name, new), old in zip(model.named_parameters(), reference.parameters(), strict=True) if torch.equal(new, old)
    ]
    assert still == []


def test_three_steps_with_an_adapter_move_every_part_of_it_and_nothing_else() -> None:
    reference = tiny_models.llama()
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"])
    torch.manual_seed(0)
    model = with_fresh_adapter(copy.deepcopy(reference), config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = three_steps(model, reference, 2e-2)
    assert losses == sorted(losses, reverse=True)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if ".lora_" in name}


def test_three_steps_raise_the_energy_of_what_is_forgotten_and_lower_that_of_the_rest() -> None:
    reference = tiny_models.llama()
    model = copy.deepcopy(reference)
    three_steps(model, reference, 2e-2)
    wanted: dict[Role, list[Observable]] = {"forget": [LogSumExp()], "retain": [LogSumExp()]}
    with torch.no_grad():
        old, new = (
            {role: -values[LogSumExp()].mean().item() for role, values in observe(which, BATCHES, wanted).items()}
            for which in (reference, model)
        )
    assert new["forget"] > old["forget"] + 0.3
    assert new["retain"] < old["retain"] - 0.3
