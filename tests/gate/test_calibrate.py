"""Calibration: the guarantee by simulation, what forget data may and may not do, and honest miss rates."""

from __future__ import annotations

import math

import numpy as np
import pytest

from d2unlearn.errors import GateError
from d2unlearn.gate.asked import AskedRequest, as_they_are
from d2unlearn.gate.calibrate import Calibration, Scored, calibrate, choosing_questions, raised, set_threshold
from d2unlearn.gate.choice import choose
from d2unlearn.gate.guarantees import promise_of
from d2unlearn.gate.score import FirstTokens, Score, TrailingWindow, request_scores
from d2unlearn.gate.simulation import simulated_shares

PROMPT = {"prompt": FirstTokens(1)}


def rows(values: np.ndarray) -> list[AskedRequest]:
    return as_they_are([(float(v),) for v in values])


def calibrated(
    validation: list[AskedRequest],
    calibration: list[AskedRequest],
    forget: list[AskedRequest] | None = None,
    groups: list[str | None] | None = None,
    *,
    max_false_refusal: float = 0.01,
    confidence: float | None = None,
    n_folds: int = 5,
) -> Calibration:
    """By the prompt's energy; all forget rows raise the threshold."""
    choice = choose(validation, [], PROMPT, "prompt", max_false_refusal)
    rates = {"max_false_refusal": max_false_refusal, "confidence": confidence}
    return calibrate(choice, validation, calibration, forget or [], groups, **rates, n_folds=n_folds)


def test_the_threshold_is_the_order_statistic() -> None:
    found = calibrated(rows(np.zeros(5)), rows(np.arange(1.0, 100.0)))
    assert (found.rank, found.threshold, found.conformal_threshold) == (99, 99.0, 99.0)
    found = calibrated(rows(np.zeros(5)), rows(np.arange(1.0, 100.0)), max_false_refusal=0.1)
    assert (found.rank, found.threshold) == (90, 90.0)
    assert found.calibration_false_refusal.value == pytest.approx(9 / 99)
    assert found.miss_rate is None
    assert found.candidates == ()


@pytest.mark.parametrize("adversarial", [False, True])
def test_the_marginal_guarantee_holds_on_average_whatever_the_forget_data(adversarial: bool) -> None:
    """150 calibrations at 10%: the mean share of fresh requests refused is at most 10%, up to 4 standard errors."""
    rng = np.random.default_rng(0)
    refused = []
    candidates: dict[str, Score] = {"prompt": FirstTokens(1), "first-2": FirstTokens(2), "window": TrailingWindow(2)}
    for _ in range(150):
        validation, calibration, fresh = (rng.normal(-20, 4, size=(n, 3)) for n in (40, 60, 400))
        forget = as_they_are(np.sort(fresh, axis=0)[-50:].tolist() if adversarial else [])
        score = choose(as_they_are(validation.tolist()), forget, candidates, "prompt", 0.1).score
        scored = Scored.of(score, as_they_are(calibration.tolist())), Scored.of(score, forget)
        threshold = set_threshold(*scored, 0.1, None).threshold
        refused.append(float((request_scores(score, fresh.tolist()) > threshold).mean()))
    error = float(np.std(refused)) / math.sqrt(len(refused))
    assert np.mean(refused) <= 0.1 + 4 * error
    if not adversarial:
        assert np.mean(refused) >= 0.1 - 1 / 61 - 4 * error  # and it is not needlessly strict


def test_the_guarantee_with_confidence_holds_in_nearly_every_calibration() -> None:
    rng = np.random.default_rng(1)
    exceeded = 0
    for _ in range(300):
        scored = Scored.of(FirstTokens(1), rows(rng.uniform(size=120)))
        threshold = set_threshold(scored, Scored.of(FirstTokens(1), []), 0.1, 0.9).threshold
        exceeded += 1 - threshold > 0.1  # of uniform scores exactly that share lies above
    assert exceeded / 300 <= 0.1 + 4 * math.sqrt(0.09 / 300)


def test_the_threshold_is_never_lowered() -> None:
    rng = np.random.default_rng(2)
    for _ in range(300):
        retained = rng.normal(size=rng.integers(1, 40))
        forget = rng.normal(rng.normal(0, 5), rng.uniform(0.01, 5), size=rng.integers(0, 40))
        conformal = float(rng.normal())
        assert raised(conformal, retained, forget) >= conformal


def test_the_raise_takes_the_middle_of_the_widest_gap_within_a_standard_error_of_the_fewest_errors() -> None:
    assert raised(1.0, np.array([0.0, 1.0, 2.0]), np.array([6.0, 7.0])) == 4.0
    assert raised(1.0, np.array([0.0, 1.0]), np.array([-5.0, 6.0])) == 3.5
    assert raised(5.0, np.array([0.0, 1.0]), np.array([3.0, 9.0])) == 7.0  # from the conformal value up
    assert raised(5.0, np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 5.0  # all lie below: nothing to gain
    assert raised(1.0, np.array([0.0]), np.array([])) == 1.0
    # one forgotten request of a hundred lies close to the retained ones: it alone does not hold the threshold down
    forget = np.concatenate([[0.5], np.linspace(10.0, 11.0, 99)])
    assert raised(0.0, np.zeros(200), forget) == 5.25
    assert raised(0.0, np.zeros(200), np.concatenate([np.full(20, 0.5), forget])) == 0.25  # and twenty do
    # nor does one retained question of two hundred above the conformal value, by itself
    assert raised(0.0, np.concatenate([np.zeros(199), [9.9]]), np.linspace(10.0, 11.0, 100)) == 4.95


def test_a_question_counts_once_in_the_errors_however_often_it_is_asked() -> None:
    """Twenty renderings of one of a hundred forgotten questions are one question's, and the threshold passes them."""
    forget = np.concatenate([np.full(20, 0.5), np.linspace(10.0, 11.0, 99)])
    weights = np.full(200, 1 / 200), np.concatenate([np.full(20, 1 / 2000), np.full(99, 1 / 100)])
    assert raised(0.0, np.zeros(200), forget) == 0.25
    assert raised(0.0, np.zeros(200), forget, weights, (200, 100)) == 5.25


def test_misses_are_counted_by_gates_that_never_saw_the_fold() -> None:
    """One author's rows lie just above the conformal threshold: only a gate that saw them keeps them above its own."""
    retained = np.linspace(0.0, 1.0, 120)
    forget = np.concatenate([np.full(5, 1.4), np.full(20, 9.0)])
    groups = ["planted"] * 5 + [f"author {i // 5}" for i in range(20)]
    found = calibrated(rows(retained[:20]), rows(retained[20:]), rows(forget), groups, n_folds=5)
    assert found.grouped
    assert found.threshold < 1.4
    assert found.miss_rate is not None
    assert found.miss_rate.value == 5 / 25
    assert found.miss_rate.n == 25
    assert found.miss_rate.low < 0.2 < found.miss_rate.high
    apart = calibrated(rows(retained[:20]), rows(retained[20:]), rows(forget), None)
    assert not apart.grouped
    assert apart.miss_rate is not None
    assert apart.miss_rate.value == 0.0  # taken row by row the author's other rows give it away


@pytest.mark.parametrize("groups", [["one"] * 4, ["a", "b", None, "b"]])
def test_groups_that_cannot_be_held_out_count_as_none(groups: list[str | None]) -> None:
    found = calibrated(rows(np.zeros(5)), rows(np.arange(99.0)), rows(np.full(4, 200.0)), groups)
    assert not found.grouped
    assert found.miss_rate is not None
    assert found.miss_rate.value == 0.0


def test_one_forget_row_is_judged_by_a_gate_without_forget_rows() -> None:
    found = calibrated(rows(np.zeros(5)), rows(np.arange(99.0)), rows(np.array([98.5])))
    assert found.miss_rate is not None
    assert (found.miss_rate.value, found.miss_rate.n) == (0.0, 1)


def test_forget_rows_that_chose_the_score_neither_raise_nor_count() -> None:
    """Forty forgotten questions of ten authors: a third of the authors choose, whole."""
    labels = [f"author {i // 4}" for i in range(40)]
    choosing = choosing_questions(40, labels, seed=0)
    assert {labels[q] for q in choosing}.isdisjoint({labels[q] for q in range(40) if q not in choosing})
    assert len(choosing) == 16
    forget = [AskedRequest(q, ((0.5,) if q in choosing else (9.0,),)) for q in range(40)]
    choice = choose(rows(np.zeros(5)), forget, PROMPT, "prompt", 0.01)
    found = calibrate(choice, rows(np.zeros(5)), rows(np.zeros(99)), forget, labels, choosing=choosing)
    assert (found.threshold, found.apart) == (4.5, True)
    assert found.miss_rate is not None
    assert (found.miss_rate.value, found.miss_rate.n) == (0.0, 24)
    assert found.forget_scores == tuple(0.5 if q in choosing else 9.0 for q in range(40))
    assert choosing_questions(2, None, seed=0) == {0, 1}  # too few to be parted


def test_every_group_with_enough_questions_keeps_its_promise_by_its_worst_renderings() -> None:
    """99 questions in two groups, each asked twice in the second, and the worse counts; of 50 nothing is promised.

    Single questions are decided by 98, wrapped ones by 198: a lead of 100, which all scores of single questions have.
    """
    calibration = [
        *[AskedRequest(q, ((float(q),),)) for q in range(99)],
        *[AskedRequest(q, ((float(q + more),),), "wrapped", "system") for q in range(99) for more in (50, 100)],
        *[AskedRequest(100 + q, ((1000.0,),), "near") for q in range(50)],
    ]
    choice = choose(rows(np.zeros(5)), [], PROMPT, "prompt", 0.01)
    found = calibrate(choice, rows(np.zeros(5)), calibration)
    assert (found.conformal_threshold, found.threshold) == (198.0, 198.0)
    assert [(group.group, group.n, group.conformal, group.lead) for group in found.groups] == [
        ("single question", 99, 198.0, 100.0),
        ("wrapped", 99, 198.0, 0.0),
        ("multi-turn", 0, None, 0.0),
        ("near", 50, None, 0.0),
    ]
    assert (found.calibration_scores[0], found.calibration_scores[98]) == (100.0, 198.0)
    assert found.groups[3].said == "no guarantee: 50 of 99 needed"
    groups = ("wrapped", "multi-turn", "near", "unrelated")
    assert [promise_of(group, found.groups) for group in groups] == ["guaranteed", "unseen", "too few", "unseen"]
    assert promise_of("wrapped", ()) == "unstated"
    assert found.groups[3].refused is not None
    assert found.groups[3].refused.value == 1.0
    assert {rates.family: rates.refused.value for rates in found.families if rates.refused} == {
        "plain": pytest.approx(1 / 99),  # the highest, judged by a threshold that its question did not set
        "system": pytest.approx(1 / 198),
        "near": 1.0,
    }
    assert list(found.families[2].warnings(0.01)) == ["near: 100.0% of legitimate requests are refused"]


@pytest.mark.parametrize(("sizes", "calibrations"), [((60, 60, 60, 19), 60)])
def test_the_guarantee_holds_in_each_group_over_many_calibrations(sizes: tuple[int, ...], calibrations: int) -> None:
    """Groups with scores of their own, and forget rows amid them; the full simulation is experiments/gate_simulation.py."""
    shares = simulated_shares(sizes, calibrations, max_false_refusal=0.05)
    errors = shares.std(axis=0) / math.sqrt(calibrations)
    assert (shares.mean(axis=0) <= 0.05 + 3 * errors).all()


@pytest.mark.parametrize(("n", "confidence", "smallest"), [(98, None, "1.02%"), (229, 0.9, "1.01%")])
def test_too_few_prompts_are_an_error_that_names_the_smallest_rate(n: int, confidence: float | None, smallest: str) -> None:
    with pytest.raises(GateError, match=smallest):
        calibrated(rows(np.zeros(5)), rows(np.arange(float(n))), confidence=confidence)
    assert calibrated(rows(np.zeros(5)), rows(np.arange(n + 1.0)), confidence=confidence).rank == n + 1


def test_a_broken_model_and_no_validation_are_errors() -> None:
    good = rows(np.arange(99.0))
    with pytest.raises(GateError, match="retained prompts are not finite"):
        calibrated(rows(np.zeros(5)), [*good, *as_they_are([(math.nan,)])])
    with pytest.raises(GateError, match="forget prompts are not finite"):
        calibrated(rows(np.zeros(5)), good, as_they_are([(math.inf,)]))
    with pytest.raises(GateError, match="validation"):
        calibrated([], good)
