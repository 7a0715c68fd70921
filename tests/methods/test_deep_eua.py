"""Deep EUA's pieces by hand: what the step lowers, what healing minimises, what the method declares."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch

import tiny_models
from d2unlearn.data.batching import pad_tokens
from d2unlearn.errors import ConfigError
from d2unlearn.head import head_of
from d2unlearn.methods import METHODS, Method, reference_batch_values, seen_by
from d2unlearn.methods.deep_eua import DeepEUA, LogOdds, log_odds
from d2unlearn.methods.eua import EUA
from d2unlearn.methods.healing import Healing
from d2unlearn.observation import Batch, Observed
from d2unlearn.quantities import BottomLogSumExp, HiddenState, KlFromReference, LogSumExp, Nll, TopLogSumExp
from d2unlearn.schema import Role


def seen(policy: dict[object, list[object]], reference: dict[object, list[object]], positions: int) -> Observed:
    given = {q: torch.tensor(v, requires_grad=True) for q, v in policy.items()}
    frozen = {q: torch.tensor(v) for q, v in reference.items()}
    return Observed(given, frozen, torch.zeros(positions, dtype=torch.long), 1, positions, 1)  # type: ignore[arg-type]


def test_log_odds_weigh_what_is_known_alike_and_leave_the_unknown_alone() -> None:
    """p = 3/4 and 1/101: log odds log 3 and -log 100, of which the second lies below the floor. d/d nll is -1 / (1 - p)."""
    nll = [math.log(4 / 3), math.log(101)]
    batch: dict[Role, Observed] = {"forget": seen({Nll(): nll}, {}, 2)}
    loss = LogOdds().loss(batch)
    assert loss.item() == pytest.approx((math.log(3) + 3) / 2, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, batch["forget"].policy[Nll()])
    assert gradient.tolist() == pytest.approx([-1 / (1 - 3 / 4) / 2, 0.0])


def test_log_odds_of_a_certain_token_are_a_number() -> None:
    assert log_odds(torch.tensor([0.0])).item() == pytest.approx(-math.log(1e-6), rel=1e-3)


def test_healing_is_the_distance_from_the_original_and_its_bounds() -> None:
    """By hand: KL 0.5, hidden states [3, 4] for [3, 0]: 16 / 9; energies 2 above m_in and 1 below m_out."""
    layer = HiddenState("layers.0")
    energy, top, bottom = LogSumExp(), TopLogSumExp(0.1), BottomLogSumExp(0.1)
    batch: dict[Role, Observed] = {
        "retain": seen(
            {energy: [5.0], Nll(): [9.0], KlFromReference(): [0.5], layer: [[3.0, 4.0]]},
            {top: [7.0], HiddenState(): [[0.0, 0.0]], layer: [[3.0, 0.0]]},
            1,
        ),
        "forget": seen({energy: [6.0]}, {bottom: [5.0]}, 1),
    }
    healing = Healing(hidden=3.0, gamma=0.02, layers=("layers.0",))
    assert healing.loss(batch).item() == pytest.approx(0.5 + 3 * 16 / 9 + 0.02 * (4 + 1), rel=1e-6)


def look(method: Method, model: torch.nn.Module, original: torch.nn.Module) -> Mapping[Role, Observed]:
    batch: dict[Role, Batch] = {
        "forget": pad_tokens(tiny_models.rows(1, 2), pad_id=0),
        "retain": pad_tokens(tiny_models.rows(2, 3), pad_id=0),
    }
    return seen_by(method, model, batch, reference_batch_values(method, original, batch), head_of(original))


def test_the_original_itself_has_nothing_to_heal_but_the_bounds() -> None:
    model = tiny_models.llama()
    healing = Healing(hidden=3.0, gamma=0.5).for_model(model)
    assert healing.layers == tuple(f"model.layers.{i}" for i in range(len(model.model.layers)))
    bounds = EUA(gamma=0.5, alpha=0.0)
    loss = healing.loss(look(healing, model, model)).item()
    assert loss == pytest.approx(bounds.loss(look(bounds, model, model)).item(), rel=1e-5)


def test_over_its_rows_deep_eua_is_eua() -> None:
    model, original = tiny_models.llama(), tiny_models.llama()
    torch.nn.init.normal_(model.model.embed_tokens.weight)
    deep, plain = DeepEUA(gamma=0.3), EUA(gamma=0.3)
    assert deep.needs == plain.needs
    assert deep.loss(look(deep, model, original)).item() == plain.loss(look(plain, model, original)).item()


def test_what_is_declared_is_what_was_set() -> None:
    plan = METHODS["deep_eua"](blocks=2, rounds=5, size=0.07, dropped=8, hidden=2.0, written=0, hardening_again=0).deepening
    assert plan is not None
    assert (plan.blocks, plan.rounds, plan.step.size, plan.step.dropped, plan.written) == (2, 5, 0.07, 8, 0)
    assert plan.hardening is not None
    assert (plan.hardening.steps, plan.between) == (260, None)
    assert plan.healing == Healing(hidden=2.0)
    assert METHODS["deep_eua"](blocks=0, hardening_steps=0).deepening is None
    assert EUA().deepening is None


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"rounds must be positive, not 0; .*size must lie between 0 and 1, not 1\.5"
    ) as raised:
        METHODS["deep_eua"](rounds=0, size=1.5)
    assert "damping" not in str(raised.value)
