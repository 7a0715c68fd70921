"""What relearning has to find: facts that a model knows behind a switch. A model that never knew them has none to give."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from transformers import PreTrainedModel

from d2unlearn.attacks.relearned_rows import Division, RowChoice, divided
from d2unlearn.attacks.relearning import Relearning, at_rates, relearn

from .planted_switch import behind_a_switch, facts

pytestmark = pytest.mark.trains

ROWS, OTHERS = facts(1, 12), facts(2, 12)
GROUPS = [f"author-{index // 3}" for index in range(12)]
ATTACKS = at_rates(Relearning(steps=(1, 20)), (1e-4, 1e-3))


@pytest.fixture(scope="module")
def models() -> Mapping[str, PreTrainedModel]:
    return {"knows": behind_a_switch(ROWS + OTHERS), "never knew": behind_a_switch(OTHERS)}


@pytest.mark.parametrize("choice", ["whole groups", "spread over groups", "one row", "half of each group"])
def test_facts_behind_a_switch_come_back_and_a_model_that_never_knew_has_none(
    models: Mapping[str, PreTrainedModel], choice: RowChoice
) -> None:
    division = divided(choice, GROUPS, share=0.25, seed=0)
    found = {name: relearn(model, ROWS, GROUPS, choice, division, ATTACKS) for name, model in models.items()}
    at_rest = {name: of_model.probability["0"].value for name, of_model in found.items()}
    assert max(at_rest.values()) < 0.03
    assert found["knows"].probability["20"].value > 0.8
    assert found["knows"].worst["20"] == 1e-3
    assert found["never knew"].probability["20"].value < 0.02


def test_facts_behind_a_switch_come_back_with_rows_that_were_never_forgotten(models: Mapping[str, PreTrainedModel]) -> None:
    everything = Division(tuple(range(12, 24)), tuple(range(12)))
    found = {
        name: relearn(model, ROWS + OTHERS, None, "retained rows", everything, ATTACKS).probability["20"].value
        for name, model in models.items()
    }
    assert found["knows"] > 0.8
    assert found["never knew"] < 0.02
