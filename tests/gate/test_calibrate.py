"""Calibration: the guarantee by simulation, what forget data may and may not do, and honest miss rates."""

from __future__ import annotations

import math

import numpy as np
import pytest

from d2unlearn.errors import GateError
from d2unlearn.gate.calibrate import auroc_error, calibrate, raised
from d2unlearn.gate.score import FirstTokens, TrailingWindow, request_scores

PROMPT = {"prompt": FirstTokens(1)}


def rows(values: np.ndarray) -> list[tuple[float, ...]]:
    return [(float(v),) for v in values]


def test_the_threshold_is_the_order_statistic() -> None:
    found = calibrate(rows(np.zeros(5)), rows(np.arange(1.0, 100.0)), candidates=PROMPT, default="prompt")
    assert (found.rank, found.threshold, found.conformal_threshold) == (99, 99.0, 99.0)
    found = calibrate(
        rows(np.zeros(5)), rows(np.arange(1.0, 100.0)), max_false_refusal=0.1, candidates=PROMPT, default="prompt"
    )
    assert (found.rank, found.threshold) == (90, 90.0)
    assert found.calibration_false_refusal.value == pytest.approx(9 / 99)
    assert found.miss_rate is None
    assert found.candidates == ()


@pytest.mark.parametrize("adversarial", [False, True])
def test_the_marginal_guarantee_holds_on_average_whatever_the_forget_data(adversarial: bool) -> None:
    """400 calibrations at 10%: the mean share of fresh requests refused is at most 10%, up to 4 standard errors."""
    rng = np.random.default_rng(0)
    refused = []
    for _ in range(400):
        validation, calibration, fresh = (rng.normal(-20, 4, size=(n, 3)) for n in (40, 60, 400))
        forget = [tuple(r) for r in np.sort(fresh, axis=0)[-50:]] if adversarial else []
        found = calibrate(
            validation.tolist(),
            calibration.tolist(),
            forget,
            max_false_refusal=0.1,
            candidates={"prompt": FirstTokens(1), "first-2": FirstTokens(2), "window": TrailingWindow(2)},
            default="prompt",
        )
        refused.append(float((request_scores(found.score, fresh.tolist()) > found.threshold).mean()))
    error = float(np.std(refused)) / math.sqrt(len(refused))
    assert np.mean(refused) <= 0.1 + 4 * error
    if not adversarial:
        assert np.mean(refused) >= 0.1 - 1 / 61 - 4 * error  # and it is not needlessly strict


def test_the_guarantee_with_confidence_holds_in_nearly_every_calibration() -> None:
    rng = np.random.default_rng(1)
    exceeded = 0
    for _ in range(500):
        found = calibrate(
            rows(np.zeros(3)),
            rows(rng.uniform(size=120)),
            max_false_refusal=0.1,
            confidence=0.9,
            candidates=PROMPT,
            default="prompt",
        )
        exceeded += 1 - found.threshold > 0.1  # of uniform scores exactly that share lies above
    assert exceeded / 500 <= 0.1 + 4 * math.sqrt(0.09 / 500)


def test_the_threshold_is_never_lowered() -> None:
    rng = np.random.default_rng(2)
    for _ in range(300):
        retained = rng.normal(size=rng.integers(1, 40))
        forget = rng.normal(rng.normal(0, 5), rng.uniform(0.01, 5), size=rng.integers(0, 40))
        conformal = float(rng.normal())
        assert raised(conformal, retained, forget) >= conformal


def test_the_raise_takes_the_middle_of_the_widest_gap_with_the_fewest_errors() -> None:
    assert raised(1.0, np.array([0.0, 1.0, 2.0]), np.array([6.0, 7.0])) == 4.0
    assert raised(1.0, np.array([0.0, 1.0]), np.array([-5.0, 6.0])) == 3.5
    assert raised(5.0, np.array([0.0, 1.0]), np.array([3.0, 9.0])) == 7.0  # from the conformal value up
    assert raised(5.0, np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 5.0  # all lie below: nothing to gain
    assert raised(1.0, np.array([0.0]), np.array([])) == 1.0
    # the wider gap (1, 3) has one of three retained above it, (4, 5) one of four forget requests below it
    assert raised(0.0, np.array([0.0, 1.0, 4.0]), np.array([3.0, 5.0, 5.5, 6.0])) == 4.5
    assert raised(0.0, np.array([0.0, 1.0, 4.0, 4.1]), np.array([3.0, 9.0, 9.0, 9.0, 9.0])) == pytest.approx(6.55)


def test_the_choice_is_the_first_candidate_that_is_as_good_as_the_best() -> None:
    rng = np.random.default_rng(3)
    retained = np.stack([rng.normal(0, 1, 200), rng.normal(0, 1, 200)], axis=1)
    forget = np.stack([rng.normal(0.3, 1, 200), rng.normal(9, 1, 200)], axis=1)
    candidates = {"prompt": FirstTokens(1), "first-2": FirstTokens(2), "window": TrailingWindow(2)}
    found = calibrate(retained[:90].tolist(), retained[90:].tolist(), forget.tolist(), candidates=candidates, default="prompt")
    assert found.name == "first-2"  # the prompt is measurably worse, the window no better
    assert [c.name for c in found.candidates] == list(candidates)
    by_name = {c.name: c for c in found.candidates}
    assert by_name["prompt"].auroc < 0.75 < 0.99 < by_name["first-2"].auroc
    assert by_name["prompt"].fpr_at_95_tpr > 0.5
    assert by_name["first-2"].fpr_at_95_tpr == 0.0
    assert by_name["first-2"].missed < 0.2 < 0.9 < by_name["prompt"].missed


def test_of_scores_that_separate_alike_the_one_that_misses_fewer_at_the_stated_rate_is_chosen() -> None:
    """Equal but for a tenth of the forget requests, which the prompt puts just below the highest retained one."""
    retained = np.stack([np.linspace(0, 1, 200), np.linspace(0, 1, 200)], axis=1)
    forget = np.full((40, 2), 9.0)
    forget[:4] = [0.97, 9.0]
    candidates = {"prompt": FirstTokens(1), "first-2": FirstTokens(2)}
    split = retained[::2].tolist(), retained[1::2].tolist()
    found = calibrate(*split, forget.tolist(), candidates=candidates, default="prompt")
    assert [(c.name, c.missed) for c in found.candidates] == [("prompt", 0.1), ("first-2", 0.0)]
    assert found.candidates[0].auroc >= found.candidates[1].auroc - found.candidates[1].auroc_error
    assert found.name == "first-2"
    forget[1:4] = 9.0  # one of 40: within a standard error of none
    assert calibrate(*split, forget.tolist(), candidates=candidates, default="prompt").name == "prompt"


def test_misses_are_counted_by_gates_that_never_saw_the_fold() -> None:
    """One author's rows lie just above the conformal threshold: only a gate that saw them keeps them above its own.

    Seeing all rows, the fewest errors are below that author's; without its rows the threshold moves past them.
    """
    retained = np.linspace(0.0, 1.0, 120)
    forget = np.concatenate([np.full(5, 1.4), np.full(20, 9.0)])
    groups = ["planted"] * 5 + [f"author {i // 5}" for i in range(20)]
    found = calibrate(
        rows(retained[:20]), rows(retained[20:]), rows(forget), groups, candidates=PROMPT, default="prompt", n_folds=5
    )
    assert found.grouped
    assert found.threshold < 1.4
    assert found.miss_rate is not None
    assert found.miss_rate.value == 5 / 25
    assert found.miss_rate.n == 25
    assert found.miss_rate.low < 0.2 < found.miss_rate.high
    apart = calibrate(rows(retained[:20]), rows(retained[20:]), rows(forget), None, candidates=PROMPT, default="prompt")
    assert not apart.grouped
    assert apart.miss_rate is not None
    assert apart.miss_rate.value == 0.0  # taken row by row the author's other rows give it away


@pytest.mark.parametrize("groups", [["one"] * 4, ["a", "b", None, "b"]])
def test_groups_that_cannot_be_held_out_count_as_none(groups: list[str | None]) -> None:
    found = calibrate(
        rows(np.zeros(5)), rows(np.arange(99.0)), rows(np.full(4, 200.0)), groups, candidates=PROMPT, default="prompt"
    )
    assert not found.grouped
    assert found.miss_rate is not None
    assert found.miss_rate.value == 0.0


def test_one_forget_row_is_judged_by_a_gate_without_forget_rows() -> None:
    found = calibrate(rows(np.zeros(5)), rows(np.arange(99.0)), rows(np.array([98.5])), candidates=PROMPT, default="prompt")
    assert found.miss_rate is not None
    assert (found.miss_rate.value, found.miss_rate.n) == (0.0, 1)


@pytest.mark.parametrize(("n", "confidence", "smallest"), [(98, None, "1.02%"), (229, 0.9, "1.01%")])
def test_too_few_prompts_are_an_error_that_names_the_smallest_rate(n: int, confidence: float | None, smallest: str) -> None:
    with pytest.raises(GateError, match=smallest):
        calibrate(rows(np.zeros(5)), rows(np.arange(float(n))), confidence=confidence)
    assert calibrate(rows(np.zeros(5)), rows(np.arange(n + 1.0)), confidence=confidence).rank == n + 1


def test_a_broken_model_and_no_validation_are_errors() -> None:
    good = rows(np.arange(99.0))
    with pytest.raises(GateError, match="retained prompts are not finite"):
        calibrate(rows(np.zeros(5)), [*good, (math.nan,)])
    with pytest.raises(GateError, match="forget prompts are not finite"):
        calibrate(rows(np.zeros(5)), good, [(math.inf,)])
    with pytest.raises(GateError, match="validation"):
        calibrate([], good)


def test_auroc_error_is_hanley_and_mcneil_s_with_a_floor() -> None:
    assert auroc_error(0.8, 50, 40) == pytest.approx(0.0476, abs=2e-3)
    assert auroc_error(1.0, 100, 400) == 0.005
    assert math.isnan(auroc_error(0.5, 0, 3))
