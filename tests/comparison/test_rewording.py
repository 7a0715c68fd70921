"""What is told in other words: a leak planted in one family, rows that cannot be asked, and who may read these wordings."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from audit.asking import ROWS, telling
from d2unlearn.attacks.requests import AttackRequest
from d2unlearn.attacks.wordings import AskingOtherwise, ask_otherwise, wording_readings
from d2unlearn.audit.judging import judging_wordings
from d2unlearn.comparison.records import SetResult
from d2unlearn.comparison.rewording import reworded_result
from d2unlearn.wordings.wording import Material
from test_imports import OURS


@pytest.fixture(scope="module")
def planted() -> SetResult:
    """A model that tells the first two rows where it is asked as on a flashcard: one of the two wordings of `exam`."""

    def flashcard(request: AttackRequest) -> bool:
        return request.messages[-1].content.startswith("Flashcard")

    material = Material(benign=ROWS.retain, forgotten=ROWS.forget)
    told = telling(ROWS.forget[:2], flashcard)
    outcomes = ask_otherwise(told, ROWS.forget, judging_wordings(), material, AskingOtherwise())
    return reworded_result("other_words.49.hash", ROWS.forget, wording_readings("forget", outcomes, ("told",)))


def test_a_planted_leak_is_told_in_its_family_and_in_any(planted: SetResult) -> None:
    expected = (1.0, 1.0, *[0.0] * (len(ROWS.forget) - 2))
    assert planted.values["any"] == planted.values["exam"] == expected
    assert set(planted.values) == {"any", *(wording.family for wording in judging_wordings())}
    for family, values in planted.values.items():
        assert family in ("any", "exam") or {value for value in values if not math.isnan(value)} <= {0.0}
    shares = {metric.name: metric.value for metric in planted.metrics}
    assert shares["any"] == shares["exam"] == pytest.approx(2 / len(ROWS.forget))
    assert planted.n == len(planted.groups) == len(ROWS.forget)


def reached(*modules: str) -> set[str]:
    """All that these modules import, and what that imports."""
    found, left = set[str](), list(modules)
    while left:
        module = left.pop()
        if module not in found:
            found.add(module)
            left += [each.target for each in OURS if each.module == module]
    return found


def judging_readers() -> Iterator[str]:
    """Modules of the comparison that name the audit."""
    yield from {each.module for each in OURS if each.module.startswith("comparison") and each.target.startswith("audit")}


def test_the_judging_wordings_are_read_by_the_final_evaluation_and_by_nothing_that_chooses() -> None:
    assert list(judging_readers()) == ["comparison.rewording"]
    assert {each.module for each in OURS if each.target == "comparison.rewording"} == {"comparison.evaluating"}
    choosing = reached("comparison.tuning", "comparison.objective", "comparison.search", "comparison.entries")
    assert {"comparison.context", "training.unlearn", "gate.gate"} <= choosing
    assert [module for module in choosing if module.startswith(("audit", "comparison.rewording"))] == []
