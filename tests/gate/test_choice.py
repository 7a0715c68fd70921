"""The choice of the score: the widest gap for the spread, over wordings; a combination only where it is clearly better."""

from __future__ import annotations

import math

import numpy as np
import pytest

from d2unlearn.gate.asked import AskedRequest, answered_requests, as_they_are, unanswered_families
from d2unlearn.gate.choice import auroc_error, choose, gaps_between
from d2unlearn.gate.score import FirstTokens, Highest, MaxOf

CANDIDATES = {"prompt": FirstTokens(1), "first-2": FirstTokens(2)}


def test_the_gap_by_hand() -> None:
    """Retained 0 to 100: 99% at or below 99, quartiles 25 and 75. Forgotten 200 to 300: 5% at or below 205, the same spread."""
    retained, forget, even = np.arange(0.0, 101.0), np.arange(200.0, 301.0), np.full(101, 1 / 101)
    one_left = np.concatenate([[1.0], np.zeros(100)])
    weights = np.stack([even, one_left])
    gap = (205 - 99) / (100 / 1.349)
    assert gaps_between(retained, forget, 0.01, (weights, weights)) == pytest.approx([gap, 200 / 1e-6])
    for shift, scale in ((7.0, 1.0), (0.0, 3.0)):
        moved = gaps_between(shift + scale * retained, shift + scale * forget, 0.01, (weights, weights))
        assert moved[0] == pytest.approx(gap)
    assert gaps_between(forget, retained, 0.01, (weights, weights))[0] < 0


def test_of_scores_that_all_tell_every_row_apart_the_one_with_the_widest_gap_is_taken() -> None:
    """AUROC 1 for both, and the first of the list is the worse: a tie is broken by what matters."""
    rng = np.random.default_rng(0)
    retained = np.stack([rng.uniform(-1, 0, 100), rng.uniform(-9, -8, 100)], axis=1)
    forget = np.stack([rng.uniform(0.01, 1, 50), rng.uniform(8, 9, 50)], axis=1)
    choice = choose(as_they_are(retained.tolist()), as_they_are(forget.tolist()), CANDIDATES, "prompt", 0.01)
    assert [candidate.auroc for candidate in choice.candidates] == [1.0, 1.0]
    assert choice.name == "first-2"
    gaps = {candidate.name: candidate.gap or 0.0 for candidate in choice.candidates}
    assert gaps["prompt"] < 0.2 < 5 < gaps["first-2"]
    assert choice.reason.startswith(f"first-2 leaves the widest gap, {gaps['first-2']:.2f} of the scores' spread")
    assert choice.reason.endswith(f"next prompt, {gaps['prompt']:.2f}")


def test_a_wording_in_which_a_score_fails_counts_against_it() -> None:
    """As the rows stand the prompt is best; under a system message it says nothing."""
    plain = [AskedRequest(q, ((q / 100, 5.0 * (q % 2)),)) for q in range(100)]
    wrapped = [AskedRequest(q, ((20.0 + q / 100, 5.0 * (q % 2)),), "wrapped", "system") for q in range(100)]
    forget = [AskedRequest(q, ((20.0 + q / 50, 15.0),)) for q in range(50)]
    assert choose(plain, forget, CANDIDATES, "prompt", 0.01).name == "prompt"
    assert choose([*plain, *wrapped], forget, CANDIDATES, "prompt", 0.01).name == "first-2"


def test_a_combination_is_taken_only_where_it_is_clearly_better() -> None:
    together = {"both": MaxOf((FirstTokens(1), Highest(2)))}
    rng = np.random.default_rng(1)
    retained = as_they_are(rng.normal(0, 1, size=(200, 3)).tolist())
    shown = rng.normal(0, 1, size=(100, 3))
    shown[:50, 0] += 12.0  # half of the forgotten questions show at the prompt alone,
    shown[50:, 1:] += 12.0  # half of them later alone
    singles = {"prompt": FirstTokens(1), "highest-3": Highest(3)}
    forget = as_they_are(shown.tolist())
    assert choose(retained, forget, singles, "prompt", 0.01, combinations=together).name == "both"
    everywhere = as_they_are((rng.normal(0, 1, size=(100, 3)) + 12.0).tolist())
    choice = choose(retained, everywhere, singles, "prompt", 0.01, combinations=together)
    assert choice.name in singles


def test_without_forget_rows_the_default_is_taken_and_said() -> None:
    choice = choose(as_they_are([(0.0,), (1.0,)]), [], CANDIDATES, "first-2", 0.01)
    assert (choice.name, choice.candidates, choice.reason) == ("first-2", (), "first-2: no forget rows to choose by")


def test_energies_that_are_not_finite_in_one_wording_decide_as_the_highest_of_all() -> None:
    retained, forget = as_they_are([(0.0,), (1.0,)]), [AskedRequest(0, ((math.inf,),)), AskedRequest(1, ((5.0,),))]
    assert choose(retained, forget, {"prompt": FirstTokens(1)}, "prompt", 0.01).candidates[0].auroc == 1.0


def test_a_family_in_which_the_model_tells_less_than_half_of_what_it_knows_is_unanswered() -> None:
    plain = [AskedRequest(q, ((0.0,),), told=q < 10) for q in range(12)]  # two that it does not know do not count
    greek = [AskedRequest(q, ((0.0,),), family="greek", told=q in (0, 11)) for q in range(12)]
    polite = [AskedRequest(q, ((0.0,),), family="polite", told=q < 5) for q in range(12)]
    few = [AskedRequest(q, ((0.0,),), family="few", told=False) for q in range(4)]
    untold = [AskedRequest(q, ((0.0,),), family="untold") for q in range(12)]
    assert unanswered_families([*plain, *greek, *polite, *few, *untold]) == {"greek": 0.1}


def test_only_what_the_model_answers_counts_beside_the_rows_as_they_stand() -> None:
    asked = [
        AskedRequest(0, ((0.0,),), family=family, told=told) for family in ("plain", "typos") for told in (True, False, None)
    ]
    assert [(each.family, each.told) for each in answered_requests(asked)] == [
        ("plain", True),
        ("plain", False),
        ("plain", None),
        ("typos", True),
        ("typos", None),
    ]


def test_auroc_error_is_hanley_and_mcneil_s_with_a_floor() -> None:
    assert auroc_error(0.8, 50, 40) == pytest.approx(0.0476, abs=2e-3)
    assert auroc_error(1.0, 100, 400) == 0.005
    assert math.isnan(auroc_error(0.5, 0, 3))
