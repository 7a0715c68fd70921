"""Pure losses on numbers small enough to work out by hand, without any model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_models
from d2unlearn.data.batching import pad_tokens
from d2unlearn.errors import ConfigError
from d2unlearn.head import Head, head_values
from d2unlearn.methods import METHODS, batch_loss
from d2unlearn.methods.base import Method
from d2unlearn.observation import Observed
from d2unlearn.quantities import (
    HiddenState,
    KlFromUniform,
    LoweredReferenceCrossEntropy,
    MaxLogit,
    MeanLogit,
    Nll,
    Observable,
    Quantity,
    TargetlessCrossEntropy,
)

NLL = Nll()
LN2, LN3, LN6 = math.log(2), math.log(3), math.log(6)


def seen(
    policy: dict[Observable, Sequence[Any]], reference: dict[Observable, Sequence[Any]] | None = None, *, rows: Sequence[int]
) -> Observed:
    """Positions of two rows with the values given; gradients flow to those of the policy."""
    return Observed(
        policy={q: torch.tensor(v, dtype=torch.float64, requires_grad=True) for q, v in policy.items()},
        reference={q: torch.tensor(v, dtype=torch.float64) for q, v in (reference or {}).items()},
        rows=torch.tensor(rows),
        n_rows=2,
        total_positions=float(len(rows)),
        total_rows=float(len(set(rows))),
    )


def loss_and_gradient(method: Method, batch: dict[Any, Observed], quantity: Observable = NLL, role: str = "forget") -> Any:
    loss = method.loss(batch)
    (gradient,) = torch.autograd.grad(loss, batch[role].policy[quantity])
    return loss.item(), gradient.tolist()


FORGET = seen({Nll(): [1.0, 2.0, 3.0]}, {Nll(): [0.5, 1.5, 3.0]}, rows=[0, 0, 1])
RETAIN = seen({Nll(): [0.5, 1.5]}, rows=[0, 1])
BATCH: dict[Any, Observed] = {"forget": FORGET, "retain": RETAIN}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_gradient_ascent_is_the_negative_mean() -> None:
    loss, gradient = loss_and_gradient(METHODS["gradient_ascent"](), {"forget": FORGET})
    assert loss == pytest.approx(-2)
    assert gradient == pytest.approx([-1 / 3] * 3)


def test_gradient_difference_adds_the_retained_mean() -> None:
    loss, gradient = loss_and_gradient(METHODS["gradient_difference"](gamma=0.5, alpha=3.0), BATCH)
    assert loss == pytest.approx(-0.5 * 2 + 3 * 1)
    assert gradient == pytest.approx([-0.5 / 3] * 3)


def test_npo_is_the_log_sigmoid_of_what_the_rows_have_risen() -> None:
    """Row 0 has risen by 1, row 1 by 0; beta 1."""
    loss, gradient = loss_and_gradient(METHODS["npo"](beta=1.0, alpha=0.0), {"forget": FORGET})
    assert loss == pytest.approx(2 * (softplus(-1) + LN2) / 2)
    assert gradient == pytest.approx([-sigmoid(-1)] * 2 + [-0.5])


def test_npo_becomes_gradient_ascent_on_whole_rows_as_beta_vanishes() -> None:
    _, gradient = loss_and_gradient(METHODS["npo"](beta=1e-6, alpha=0.0), {"forget": FORGET})
    assert gradient == pytest.approx([-0.5] * 3, rel=1e-5)


def test_npo_leaves_a_row_alone_that_is_forgotten() -> None:
    gone = seen({Nll(): [500.0, 1.0]}, {Nll(): [0.0, 1.0]}, rows=[0, 1])
    _, gradient = loss_and_gradient(METHODS["npo"](alpha=0.0), {"forget": gone})
    assert gradient[0] == pytest.approx(0, abs=1e-20)
    assert gradient[1] == pytest.approx(-0.5)


def test_simnpo_takes_the_mean_of_a_row_against_delta() -> None:
    """Row means 1.5 and 3 against 1; beta 2."""
    loss, gradient = loss_and_gradient(METHODS["simnpo"](beta=2.0, delta=1.0, gamma=1.0, alpha=0.0), {"forget": FORGET})
    assert loss == pytest.approx((softplus(-1) + softplus(-4)) / 2)
    assert gradient == pytest.approx([-sigmoid(-1) / 2] * 2 + [-sigmoid(-4)])


@pytest.mark.parametrize(
    ("key", "parameters", "weight"),
    [
        ("wga", {"beta": 1.0}, lambda p: p),
        ("wga", {"beta": 0.0}, lambda p: 1.0),
        ("satimp", {"beta1": 2.0, "beta2": 3.0, "gamma": 1.0}, lambda p: p**2 * (1 - p) ** 3),
    ],
)
def test_weights_of_ascent_are_constants_to_the_gradient(key: str, parameters: dict[str, float], weight: Any) -> None:
    weights = [weight(math.exp(-nll)) for nll in (1.0, 2.0, 3.0)]
    loss, gradient = loss_and_gradient(METHODS[key](**parameters, alpha=0.0), {"forget": FORGET})
    assert loss == pytest.approx(-sum(w * nll for w, nll in zip(weights, (1, 2, 3), strict=True)) / 3)
    assert gradient == pytest.approx([-w / 3 for w in weights])


def test_satimp_leaves_a_certain_token_alone() -> None:
    """p = 1: nothing is left to learn of it (importance 0)."""
    certain = seen({Nll(): [0.0, 1.0]}, rows=[0, 1])
    _, gradient = loss_and_gradient(METHODS["satimp"](alpha=0.0), {"forget": certain})
    assert gradient[0] == 0


def test_dpo_prefers_the_alternate_by_how_both_have_moved() -> None:
    """Answers have risen by 1 and 0, alternates by -1 and 2; beta 1."""
    alternate = seen({Nll(): [1.0, 4.0]}, {Nll(): [2.0, 2.0]}, rows=[0, 1])
    batch = {"forget": FORGET, "alternate": alternate}
    for key in ("dpo", "altpo"):
        method = METHODS[key](beta=1.0, alpha=0.0)
        loss, gradient = loss_and_gradient(method, batch)
        assert loss == pytest.approx(softplus(-2) + softplus(2))
        assert gradient == pytest.approx([-sigmoid(-2)] * 2 + [-sigmoid(2)])
        assert loss_and_gradient(method, batch, role="alternate")[1] == pytest.approx([sigmoid(-2), sigmoid(2)])


def test_idk_is_the_likelihood_of_the_refusals_and_of_the_retained() -> None:
    batch = {"alternate": FORGET, "retain": RETAIN}
    loss, gradient = loss_and_gradient(METHODS["idk"](gamma=2.0, alpha=0.5), batch, role="alternate")
    assert loss == pytest.approx(2 * 2 + 0.5 * 1)
    assert gradient == pytest.approx([2 / 3] * 3)


def test_answer_preservation_wants_the_answer_likelier_than_the_refusal() -> None:
    """Refusals 1 and 3 nats less likely than the answers; beta 1."""
    refusal = seen({Nll(): [1.0, 0.5, 4.5]}, rows=[0, 0, 1])
    batch = {"alternate": FORGET, "retain": RETAIN, "retain_alternate": refusal}
    method = METHODS["idk_ap"](beta=1.0, gamma=0.0, alpha=2.0)
    loss, gradient = loss_and_gradient(method, batch, role="retain")
    assert loss == pytest.approx(softplus(-1) + softplus(-3))
    assert gradient == pytest.approx([sigmoid(-1), sigmoid(-3)])
    assert loss_and_gradient(method, batch, role="retain_alternate")[1] == pytest.approx([-sigmoid(-1)] * 2 + [-sigmoid(-3)])


def test_pdu_squares_the_peak_and_takes_the_bound_off_the_retained_loss() -> None:
    forget = seen({MaxLogit(): [3.0, 5.0], MeanLogit(): [1.0, 1.0]}, rows=[0, 1])
    loss, gradient = loss_and_gradient(
        METHODS["pdu"](gamma=2.0, alpha=3.0, retain_loss_eps=0.25), {"forget": forget, "retain": RETAIN}, MaxLogit()
    )
    assert loss == pytest.approx(2 * (4 + 16) / 2 + 3 * (1 - 0.25))
    assert gradient == pytest.approx([4.0, 8.0])


def test_pdu_reads_the_retained_rows_though_its_dual_variable_be_zero() -> None:
    forget = seen({MaxLogit(): [3.0, 5.0], MeanLogit(): [1.0, 1.0]}, rows=[0, 1])
    method = METHODS["pdu"](alpha=0.0)
    assert set(method.needs) == {"forget", "retain"}
    assert method.loss({"forget": forget, "retain": RETAIN}).item() == pytest.approx(10)
    assert METHODS["npo"](alpha=0.0).needs.keys() == {"forget"}


STATE = HiddenState("layer")
RMU_FORGET = seen({STATE: [[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]}, rows=[0, 0, 1])
RMU_RETAIN = seen({STATE: [[1.0, 1.0], [1.0, 3.0]]}, {STATE: [[1.0, 1.0], [1.0, 1.0]]}, rows=[0, 1])


def rmu(convention: str) -> Method:
    return METHODS["rmu"](module_regex="layer", control_direction=[0.0, 3.0], steering_coeff=2.0, convention=convention)


def test_rmu_is_a_mean_over_rows_of_means_over_positions() -> None:
    """Target (0, 2): squared distances, as means over H, 2.5 and 0 in row 0, 2 in row 1; retained: 0 and 2."""
    loss = rmu("d2unlearn").loss({"forget": RMU_FORGET, "retain": RMU_RETAIN})
    assert loss.item() == pytest.approx(((2.5 + 0) / 2 + 2) / 2 + (0 + 2) / 2)


def test_rmu_as_published_divides_each_row_by_every_length() -> None:
    """Sums 2.5 and 2 over lengths 2 and 1: mean of 2.5/2, 2.5/1, 2/2, 2/1."""
    loss = rmu("open-unlearning").loss({"forget": RMU_FORGET, "retain": RMU_RETAIN})
    assert loss.item() == pytest.approx((1.25 + 2.5 + 1 + 2) / 4 + (0 + 2) / 2)


# -- the quantities that came with these methods ------------------------------------------------------------------------


def value_of(
    quantity: Quantity, logits: Sequence[float], target: int, reference: Sequence[float] | None = None
) -> tuple[float, Tensor]:
    """Through the chunked head, whose weight is the identity, so that hidden states are logits; with the gradient."""
    hidden = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
    one = Head(torch.eye(len(logits), dtype=torch.float64))
    old = None if reference is None else torch.tensor([reference], dtype=torch.float64)
    found = head_values(hidden, one, torch.tensor([target]), [quantity], reference_hidden=old, reference_head=one)[quantity]
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    return found.item(), gradient[0]


def test_kl_from_uniform() -> None:
    """p = 1/6, 2/6, 3/6; the gradient is p - 1/3."""
    value, gradient = value_of(KlFromUniform(), [0.0, LN2, LN3], 0)
    assert value == pytest.approx(LN6 - LN6 / 3 - LN3)
    assert gradient.tolist() == pytest.approx([-1 / 6, 0, 1 / 6], abs=1e-12)
    assert value_of(KlFromUniform(), [7.0, 7.0, 7.0], 0)[0] == pytest.approx(0, abs=1e-12)


def test_cross_entropy_without_the_target() -> None:
    """The others alone are 1/3 and 2/3; the gradient is p - q, q a constant."""
    value, gradient = value_of(TargetlessCrossEntropy(), [0.0, LN2, LN3], 2)
    assert value == pytest.approx(LN6 - 2 / 3 * LN2)
    assert gradient.tolist() == pytest.approx([1 / 6 - 1 / 3, 2 / 6 - 2 / 3, 3 / 6])


def test_cross_entropy_without_the_target_where_the_target_is_all_there_is() -> None:
    value, gradient = value_of(TargetlessCrossEntropy(), [0.0, 0.0, 200.0], 2)
    assert value == pytest.approx(200.0)
    assert gradient.tolist() == pytest.approx([-0.5, -0.5, 1.0])


def test_cross_entropy_with_the_lowered_reference() -> None:
    """A uniform reference with the target halved: 1/5, 2/5, 2/5."""
    value, gradient = value_of(LoweredReferenceCrossEntropy(LN2), [0.0, LN2, LN3], 0, [1.0, 1.0, 1.0])
    assert value == pytest.approx(LN6 - 2 / 5 * LN2 - 2 / 5 * LN3)
    assert gradient.tolist() == pytest.approx([1 / 6 - 1 / 5, 2 / 6 - 2 / 5, 3 / 6 - 2 / 5])


def test_a_label_that_is_none_counts_from_the_end_of_the_vocabulary() -> None:
    """The reference implementation's mistake: -100 lowers token V - 100."""
    logits, reference = [0.01 * i for i in range(120)], [0.02 * i for i in range(120)]
    quantity = LoweredReferenceCrossEntropy(3.0)
    assert value_of(quantity, logits, -100, reference)[0] == value_of(quantity, logits, 20, reference)[0]


# -- parameters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "parameters", "said"),
    [
        ("npo", {"beta": 0.0}, "beta must be positive, not 0.0"),
        ("npo", {"gamma": -1.0, "alpha": -2.0}, "gamma must not be negative, not -1.0; alpha must not be negative, not -2.0"),
        ("npo", {"retain_loss_type": "EMBED_DIFF"}, "retain_loss_type should be NLL or KL, not 'EMBED_DIFF'"),
        ("idk_ap", {"convention": "trl"}, "convention should be d2unlearn or open-unlearning, not 'trl'"),
        ("pdu", {"dual_update_upon": "day"}, "dual_update_upon should be step or epoch, not 'day'"),
        ("rmu", {"control_direction": [0.0, 0.0]}, "control_direction should be finite numbers that are not all zero"),
        ("rmu", {"control_direction": [math.nan]}, "control_direction should be finite numbers that are not all zero"),
        ("altpo", {"alternate_samples": 0}, "alternate_samples must be positive, not 0"),
        ("ce_u", {"ignore_first_n_answer_tokens": -1}, "ignore_first_n_answer_tokens must not be negative, not -1"),
    ],
)
def test_parameters_that_cannot_be_are_named(key: str, parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        METHODS[key](**parameters)
    assert str(error.value) == said


def test_a_role_that_is_missing_is_named() -> None:
    model = tiny_models.llama()
    rows = vars(pad_tokens(tiny_models.rows(1, 2), pad_id=0))
    with pytest.raises(ConfigError, match="IDKAP reads alternate, retain, retain_alternate; the batch lacks retain_alternate"):
        batch_loss(METHODS["idk_ap"](), model, {"alternate": rows, "retain": rows}, reference=model)


def test_every_method_but_this_project_s_has_a_convention_and_the_right_one_is_the_default() -> None:
    assert {key for key in METHODS if not hasattr(METHODS[key](), "convention")} == {"eua", "deep_eua"}
    assert {METHODS[key]().convention for key in METHODS if not key.endswith("eua")} == {"d2unlearn"}
