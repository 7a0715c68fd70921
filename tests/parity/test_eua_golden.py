"""EUA and its dense re-statement against the authors' code: every golden case, parameter by parameter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from d2unlearn.methods import METHODS, batch_loss
from d2unlearn.models import load_model
from d2unlearn.observation import Batch
from d2unlearn.schema import Role
from reference import dense

DATA = Path(__file__).parent / "data"
BATCH = json.loads((DATA / "batch.json").read_text())
CASES = [case for case in json.loads((DATA / "expected.json").read_text())["cases"] if case["method"] == "EUA"]
TOLERANCE = 1e-4
ROLES: tuple[Role, Role] = ("forget", "retain")


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module]:
    return load_model(DATA / "model"), load_model(DATA / "reference")


def settings(case: dict[str, dict[str, float]]) -> dict[str, float]:
    renamed = {"beta1": "ratio", "beta2": "temperature"}
    return {renamed.get(name, name): value for name, value in case["params"].items()}


def tensors() -> dict[Role, Batch]:
    return {role: Batch(**{key: torch.tensor(BATCH[role][key]) for key in Batch.__annotations__}) for role in ROLES}


def gradients(loss: Tensor, model: nn.Module) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(model.parameters()))


def norm(values: tuple[Tensor, ...]) -> float:
    return float(torch.stack([value.double().square().sum() for value in values]).sum().sqrt())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"ratio {case['params']['beta1']}")
def test_ours_and_the_dense_form_are_the_authors(
    case: dict[str, dict[str, float]], models: tuple[nn.Module, nn.Module]
) -> None:
    model, reference = models
    ours = batch_loss(METHODS["eua"](**settings(case)), model, BATCH, reference=reference)
    naive = dense.eua_loss(model, reference, tensors(), **settings(case))
    for loss in (ours, naive):
        assert loss.item() == pytest.approx(case["loss"], rel=TOLERANCE)
        assert norm(gradients(loss, model)) == pytest.approx(case["grad_norm"], rel=TOLERANCE)
    ours = batch_loss(METHODS["eua"](**settings(case)), model, BATCH, reference=reference)
    naive = dense.eua_loss(model, reference, tensors(), **settings(case))
    torch.testing.assert_close(gradients(ours, model), gradients(naive, model), rtol=1e-4, atol=1e-5)


def test_there_are_two_cases_with_other_weights() -> None:
    assert [settings(case) for case in CASES] == [
        {"ratio": 0.1, "temperature": 1.0, "gamma": 0.05, "alpha": 1.0},
        {"ratio": 0.3, "temperature": 1.0, "gamma": 1.0, "alpha": 0.1},
    ]


def test_without_the_zero_fill_it_would_be_another_method(models: tuple[nn.Module, nn.Module]) -> None:
    """The forget hinge of the second case with a margin of the selected logits alone: far from the authors' loss."""
    model, reference = models
    batch = tensors()
    mask = batch["forget"].labels[:, 1:] != -100
    with torch.no_grad():
        old, new = (
            which(batch["forget"].input_ids, attention_mask=batch["forget"].attention_mask).logits[:, :-1][mask]
            for which in (reference, model)
        )
    bare = -dense.selected(old, 0.3, largest=False, zero_fill=False)
    filled = -dense.selected(old, 0.3, largest=False)
    hinges = [(bound - dense.energy(new)).relu().square().mean().item() for bound in (bare, filled)]
    assert abs(hinges[0] - hinges[1]) > 0.2 * hinges[1]
