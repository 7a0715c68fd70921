"""Each rule: where it fires and where it just does not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from d2unlearn.report.concerns import RULES, BeforeAfter, concerns, pooled, retention
from d2unlearn.schema import Evaluation, GateSummary, MetricResult

from .synthetic import before_after, evaluated, evaluation, example, metric


def fired(before: Evaluation, after: Evaluation, gate: GateSummary | None = None) -> list[tuple[str, str]]:
    return [(c.rule, c.level) for c in concerns(BeforeAfter(before, after, gate))]


def test_pooling_weighs_by_n_and_leaves_out_what_was_not_scored() -> None:
    sets = [
        evaluated("a", "retain", metric("m", 1.0, n=300)),
        evaluated("b", "retain", metric("m", 0.2, n=100)),
        evaluated("c", "retain", metric("m", math.nan, n=0)),
        None,
    ]
    assert pooled(sets, "m") == pytest.approx(0.8)
    assert math.isnan(pooled(sets, "other"))


def test_retention_takes_the_metric_that_lost_most_and_skips_what_was_not_known() -> None:
    known = evaluated("a", "retain", metric("extraction_strength", 0.8), metric("answer_probability", 0.9))
    left = evaluated("a", "retain", metric("extraction_strength", 0.6), metric("answer_probability", 0.81))
    unknown = evaluated("b", "retain", metric("extraction_strength", 0.1))
    gone = evaluated("b", "retain", metric("extraction_strength", 0.0))
    assert retention([(known, left), (unknown, gone)]) == ("extraction_strength", pytest.approx(0.75))
    assert math.isnan(retention([(unknown, gone), (None, left)])[1])


def test_retention_is_of_greedy_tokens_without_the_end_token_where_they_were_counted() -> None:
    before = evaluated("a", "retain", metric("exact_memorization_without_end", 0.94), metric("answer_probability", 0.4))
    after = evaluated("a", "retain", metric("exact_memorization_without_end", 0.8), metric("answer_probability", 0.9))
    assert retention([(before, after)]) == ("exact_memorization_without_end", pytest.approx(0.8 / 0.94))


def logits(level: float, centred: float) -> tuple[MetricResult, ...]:
    values = {"mean_logit": level, "centred_energy": centred, "entropy": 2.0}
    return tuple(metric(name, value, better="neither") for name, value in values.items())


@pytest.mark.parametrize(
    ("after", "expected"),
    [((-16.3, -20.1), [("level_moved", "warn")]), ((-2.0, -13.0), []), ((-1.75, -23.2), []), ((-3.7, -20.2), [])],
)
def test_a_level_that_moved_more_than_what_is_said_is_warned_of(
    after: tuple[float, float], expected: list[tuple[str, str]]
) -> None:
    """From a mean logit of -1.7 and a centred energy of -23.2; the third moves by less than a tenth of a nat."""
    sides = [evaluation(evaluated("f", "forget", *logits(*each)), ceiling=0.01) for each in ((-1.7, -23.2), after)]
    assert [found for found in fired(*sides) if found[0] == "level_moved"] == expected


@pytest.mark.parametrize(("kl", "expected"), [(0.105, []), (0.106, [("retain_moved", "warn")])])
def test_another_distribution_at_retained_answers_is_warned_of_from_a_tenth_of_its_probability(
    kl: float, expected: list[tuple[str, str]]
) -> None:
    sides = [evaluation(evaluated("r", "retain", metric("kl_from_original", value)), ceiling=0.01) for value in (0.0, kl)]
    assert [found for found in fired(*sides) if found[0] == "retain_moved"] == expected


@pytest.mark.parametrize(("value", "expected"), [(0.1, []), (0.1001, [("extractable", "bad")]), (math.nan, [])])
def test_extractable_at_its_limit(value: float, expected: list[tuple[str, str]]) -> None:
    assert fired(*before_after(forget=(0.98, value))) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0.97, []), (0.969, [("retain_lost", "warn")]), (0.899, [("retain_lost", "bad")]), (1.2, [])]
)
def test_retain_lost_at_its_limits(value: float, expected: list[tuple[str, str]]) -> None:
    assert fired(*before_after(retain=(1.0, value))) == expected


@pytest.mark.parametrize(("value", "expected"), [(0.45, []), (0.449, [("entropy_collapsed", "bad")])])
def test_entropy_collapse_at_its_limit(value: float, expected: list[tuple[str, str]]) -> None:
    assert fired(*before_after(entropy=(0.9, value))) == expected


def test_repetitive_answers_to_forget_questions_are_a_caution_only() -> None:
    sides = [evaluation(evaluated("f", "forget", metric("token_entropy", value)), ceiling=0.01) for value in (0.9, 0.1)]
    assert ("entropy_collapsed", "warn") in fired(*sides)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(0.01, []), (0.0129, [("false_refusals", "warn")]), (0.0131, [("false_refusals", "bad")])],
)
def test_false_refusals_against_ceiling_and_chance(rate: float, expected: list[tuple[str, str]]) -> None:
    # the interval reaches 0.003 below the rate
    assert fired(*before_after(refused=(1.0, rate))) == expected


def test_without_a_ceiling_no_rate_is_above_it_and_the_gate_s_own_ceiling_counts_first(gate: GateSummary) -> None:
    assert fired(*before_after(refused=(1.0, 0.9), ceiling=None)) == []
    assert fired(*before_after(), replace(gate, max_false_refusal=0.0005)) == [("false_refusals", "bad")]


@pytest.mark.parametrize(("rate", "expected"), [(0.95, []), (0.94, [("missed", "warn")]), (0.49, [("missed", "bad")])])
def test_missed_at_its_limits(rate: float, expected: list[tuple[str, str]]) -> None:
    assert fired(*before_after(refused=(rate, 0.0))) == expected


@pytest.mark.parametrize(("refused", "rouge", "count"), [(False, 0.5, 1), (False, 0.49, 0), (True, 0.9, 0), (None, 0.9, 0)])
def test_a_leak_passed_the_gate_and_is_close_to_the_truth(refused: bool | None, rouge: float, count: int) -> None:
    shown = example(refused=refused, scores={"guarded_rouge_l_recall": rouge})
    one = evaluation(evaluated("f", "forget", metric("guarded_refusal_rate", 1.0), examples=(shown,)))
    found = [c for c in concerns(BeforeAfter(one, one, None)) if c.rule == "leaks"]
    assert [c.text for c in found] == [
        "1 of 1 forget questions pass the gate with an answer close to the true one (ROUGE-L recall of 0.5 or more)."
    ] * count


@pytest.mark.parametrize(("value", "expected"), [(0.95, []), (0.949, [("poor_separation", "warn")]), (math.nan, [])])
def test_poor_separation_reads_every_auroc(value: float, expected: list[tuple[str, str]]) -> None:
    before, after = before_after()
    assert fired(before, replace(after, separation=(metric("auroc_world_facts", value),))) == expected


def test_energy_that_separates_while_answers_come_out_is_pointed_at() -> None:
    before, after = before_after(forget=(0.98, 0.9))
    apart = replace(after, separation=(metric("auroc", 0.999),))
    assert fired(before, apart) == [("extractable", "bad"), ("energy_only", "note")]


def test_a_forget_set_that_was_never_known_proves_little() -> None:
    assert fired(*before_after(forget=(0.05, 0.0))) == [("unknown_before", "note")]


@pytest.mark.parametrize(("left_out", "expected"), [(5, []), (6, [("unscored", "warn")])])
def test_many_unscored_are_counted(left_out: int, expected: list[tuple[str, str]]) -> None:
    before, after = before_after()
    counted = MetricResult("exact_memorization", 0.5, 0.4, 0.6, 100 - left_out, left_out, "neither")
    sets = (replace(after.sets[0], metrics=(*after.sets[0].metrics, counted)), after.sets[1])
    assert fired(before, replace(after, sets=sets)) == expected


def test_other_questions_before_and_after_are_not_comparable() -> None:
    before, after = before_after()
    moved = replace(after.sets[0], examples=(example("x"),))
    assert fired(before, replace(after, sets=(moved, after.sets[1]))) == [("not_comparable", "warn")]
    assert ("not_comparable", "warn") in fired(before, replace(after, sets=after.sets[:1]))


def test_a_gate_given_but_not_measured_is_not_missing(gate: GateSummary) -> None:
    assert fired(*before_after(refused=None), gate) == []


def test_concerns_stand_worst_first() -> None:
    levels = [level for _, level in fired(*before_after(forget=(0.05, 0.0), retain=(1.0, 0.95), refused=(1.0, 0.5)))]
    assert levels == ["bad", "warn", "note"]


def test_no_rule_fires_on_the_synthetic_good_run(before: Evaluation, after: Evaluation, gate: GateSummary) -> None:
    run = BeforeAfter(before, after, gate)
    assert {name: list(rule(run)) for name, rule in RULES.items()} == {name: [] for name in RULES}
