"""The verdict of docs/claims.md, on made checks: each of its four words, and what does not decide."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from d2unlearn.schema import Verdict

sys.path.append(str(Path(__file__).resolve().parents[1] / "docs" / "build"))
from claims_page import Check, verdict


def check(*found: Verdict, decides: bool = True) -> Check:
    return Check("something", "", "", found, decides)


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ([check("holds", "holds"), check("holds")], "holds"),
        ([check("holds"), check("does not hold", decides=False)], "holds with limits"),
        ([check("holds", "does not hold")], "holds with limits"),
        ([check("holds"), check("does not hold", "not shown")], "refuted"),
        ([check("holds"), check("not shown")], "not shown"),
        ([check("holds"), check()], "not shown"),
        ([check(), check("does not hold")], "refuted"),
    ],
)
def test_a_claim_is_judged_by_the_checks_that_decide(checks: list[Check], expected: str) -> None:
    assert verdict(checks) == expected
