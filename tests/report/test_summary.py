"""The verdict's numbers, its words in each case, and each rule: where it fires and where it just does not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from d2unlearn.report.concerns import RULES, BeforeAfter, concerns, pooled, retention
from d2unlearn.report.summary import summarize
from d2unlearn.schema import Evaluation, GateSummary, MetricResult

from .synthetic import evaluated, evaluation, example, metric


def before_after(
    *,
    forget: tuple[float, float] = (0.98, 0.004),
    retain: tuple[float, float] = (0.98, 0.97),
    entropy: tuple[float, float] = (0.9, 0.9),
    refused: tuple[float, float] | None = (0.997, 0.004),
    ceiling: float | None = 0.01,
) -> tuple[Evaluation, Evaluation]:
    """A pair with one forget and one retained set; by default everything is as it should be."""
    sides = []
    for side in (0, 1):
        sets = []
        for name, kind, strength, rate in (("asked", "forget", forget, 0), ("other", "retain", retain, 1)):
            metrics = [metric("extraction_strength", strength[side])]
            metrics.append(metric("token_entropy", entropy[side] if kind == "retain" else 0.9))
            if side and refused:
                metrics.append(metric("guarded_refusal_rate", refused[rate], low=refused[rate] - 0.003))
            sets.append(evaluated(name, kind, *metrics))  # type: ignore[arg-type]
        sides.append(evaluation(*sets, ceiling=ceiling if side else None))
    return sides[0], sides[1]


def fired(before: Evaluation, after: Evaluation, gate: GateSummary | None = None) -> list[tuple[str, str]]:
    return [(c.rule, c.level) for c in concerns(BeforeAfter(before, after, gate))]


def test_a_good_run_in_words_and_numbers() -> None:
    found = summarize(BeforeAfter(*before_after(), None))
    assert found.headline == "It worked: the knowledge is gone, requests for it are refused, the rest is kept."
    assert found.sentence == (
        "Forget: extraction strength 0.98 → 0.00; retained knowledge 0.99 of the original; "
        "refusals: 99.7% of forget questions, 0.4% of retained."
    )
    assert (found.state, found.concerns) == ("good", ())
    assert [(t.title, t.value, t.state) for t in found.tiles] == [
        ("Forgotten", "0.98 → 0.00", "good"),
        ("Kept", "99.0%", "good"),
        ("Rightly refused", "99.7%", "good"),
        ("Wrongly refused", "0.4%", "good"),
    ]
    assert found.tiles[3].detail == "of retained questions; ceiling 1%"


@pytest.mark.parametrize(
    ("change", "headline", "rules"),
    [
        ({"forget": (0.98, 0.4)}, "It did not work: forgotten answers still come out of the raw weights.", ["extractable"]),
        (
            {"forget": (0.98, 0.4), "retain": (0.98, 0.5)},
            "It failed: forgotten answers still come out, others were lost.",
            ["extractable", "retain_lost"],
        ),
        ({"retain": (0.98, 0.5)}, "The knowledge is gone, but so is part of what should have stayed.", ["retain_lost"]),
        ({"entropy": (0.9, 0.2)}, "The knowledge is gone, but the model no longer writes properly.", ["entropy_collapsed"]),
        (
            {"refused": (0.997, 0.2)},
            "The knowledge is gone, but too many legitimate questions are refused.",
            ["false_refusals"],
        ),
        ({"refused": (0.3, 0.0)}, "The knowledge is gone, but requests for it are seldom refused.", ["missed"]),
        ({"refused": None}, "The knowledge is gone and the rest is kept; no gate refuses requests for it yet.", ["no_gate"]),
        ({"retain": (0.98, 0.93)}, "It worked, with reservations.", ["retain_lost"]),
        ({"retain": (math.nan, math.nan)}, "The knowledge is gone; whether the rest was kept is not known.", []),
        (
            {"forget": (0.98, math.nan)},
            "It cannot be said whether it worked: no answer of the forget sets was scored.",
            [],
        ),
    ],
)
def test_the_headline_of_each_case(change: dict[str, tuple[float, float] | None], headline: str, rules: list[str]) -> None:
    found = summarize(BeforeAfter(*before_after(**change), None))  # type: ignore[arg-type]
    assert found.headline == headline
    assert [c.rule for c in found.concerns] == rules


def test_tiles_of_several_sets_say_so_and_concerns_of_one_rule_stand_together() -> None:
    first, second = (before_after(retain=pair, refused=(0.997, 0.2)) for pair in ((0.98, 0.97), (0.98, 0.93)))
    before, after = (
        replace(a, sets=(*a.sets, *(replace(s, name=f"{s.name}_reworded") for s in b.sets)))
        for a, b in zip(first, second, strict=True)
    )
    found = summarize(BeforeAfter(before, after, None))
    assert [(box[0].rule, len(box)) for box in found.boxes] == [("false_refusals", 2), ("retain_lost", 1)]
    assert [concern for box in found.boxes for concern in box] == list(found.concerns)
    assert [tile.detail for tile in found.tiles] == [
        "extraction strength of the raw weights, 2 sets together",
        "of the original’s extraction strength, 2 sets together; least on other reworded: 94.9%",
        "of forget questions, 2 sets together; floor 95%",
        "of retained questions, 2 sets together; ceiling 1%",
    ]


def test_nothing_scored_is_said_and_not_shown_as_zero() -> None:
    found = summarize(BeforeAfter(evaluation(), evaluation(), None))
    assert [t.value for t in found.tiles] == ["–"] * 4
    assert [t.state for t in found.tiles] == ["unknown"] * 4
    assert found.sentence == "No number was scored."


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
    assert summarize(BeforeAfter(*before_after(forget=(0.05, 0.0)), None)).state == "good"


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


def test_a_gate_given_but_not_measured_is_unknown_and_not_missing(gate: GateSummary) -> None:
    pair = before_after(refused=None)
    assert fired(*pair, gate) == []
    assert [t.state for t in summarize(BeforeAfter(*pair, gate)).tiles[2:]] == ["unknown", "unknown"]


def test_concerns_stand_worst_first() -> None:
    levels = [level for _, level in fired(*before_after(forget=(0.05, 0.0), retain=(1.0, 0.95), refused=(1.0, 0.5)))]
    assert levels == ["bad", "warn", "note"]


def test_no_rule_fires_on_the_synthetic_good_run(before: Evaluation, after: Evaluation, gate: GateSummary) -> None:
    run = BeforeAfter(before, after, gate)
    assert {name: list(rule(run)) for name, rule in RULES.items()} == {name: [] for name in RULES}
