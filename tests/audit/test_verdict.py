"""The verdict's arithmetic, by hand where a hand can, and each verdict on a made case."""

from __future__ import annotations

import math

import numpy as np
import pytest

from d2unlearn.attacks.reading import Measure, Reading
from d2unlearn.audit.verdict import ClaimMargins, Compared, _counting, judge_attack, judge_claim, row_means, rows_needed
from d2unlearn.errors import ConfigError

MARGINS = ClaimMargins()
GROUPS = 20


def reading(values: list[float], measure: Measure = "answer_probability", groups: int = GROUPS, name: str = "row") -> Reading:
    ids = tuple(f"{name}-{index}" for index in range(len(values)))
    return Reading({}, measure, "forget", ids, tuple(f"group-{index % groups}" for index in range(len(values))), tuple(values))


def compared(
    ours: list[float], theirs: list[float] | float, measure: Measure = "answer_probability", groups: int = GROUPS
) -> Compared:
    """Of all the groups that there are."""
    control = theirs if isinstance(theirs, float) else (reading(theirs, measure, groups),)
    return Compared({}, measure, "forget", (reading(ours, measure, groups),), control, min(groups, len(ours)))


def test_rows_needed_bound_a_share_that_nobody_saw() -> None:
    assert rows_needed(0.01) == 299  # 0.99^299 = 0.0495
    assert rows_needed(0.02) == 149
    assert 0.99**299 <= 0.05 < 0.99**298


def test_a_row_s_mean_is_over_the_repeats_that_asked_it() -> None:
    repeats = [reading([0.2, math.nan, math.nan]), reading([0.4, 0.6, math.nan])]
    assert row_means(repeats) == pytest.approx([0.3, 0.6, math.nan], nan_ok=True)


def test_a_margin_is_a_share() -> None:
    with pytest.raises(ConfigError, match="told, picked"):
        ClaimMargins(told=0.0, picked=1.0)


def test_clean_holds_and_the_excess_is_the_difference_minus_the_margin() -> None:
    attack = judge_attack([compared([0.011] * 400, [0.010] * 400)], MARGINS)
    assert attack.excesses[0].value == pytest.approx(0.001 - 0.02)
    assert attack.excesses[0].high == pytest.approx(0.001 - 0.02)  # nothing varies
    assert judge_claim([attack], all_made=True).verdict == "holds"


def test_a_finding_does_not_hold_and_the_attack_that_found_most_decides() -> None:
    rng = np.random.default_rng(0)
    some, much, none = (list(rng.uniform(0, top, 400)) for top in (0.2, 0.8, 0.001))
    attacks = [judge_attack([compared(values, [0.0] * 400)], MARGINS) for values in (none, some, much)]
    claim = judge_claim(attacks, all_made=True)
    assert (claim.verdict, claim.deciding) == ("does not hold", 2)
    assert claim.of_attacks == ("holds", "does not hold", "does not hold")


def test_undecided_is_not_shown() -> None:
    values = [1.0] * 9 + [0.0] * 391  # 0.0225, about the margin
    claim = judge_claim([judge_attack([compared(values, [0.0] * 400)], MARGINS)], all_made=True)
    assert claim == ("not shown", 0, ("not shown",))


def test_few_rows_or_groups_clear_nothing() -> None:
    twenty = judge_attack([compared([0.0] * 20, [0.0] * 20, "told")], MARGINS)
    assert twenty.reason == "20 rows cannot bound a share by 0.01: 299 are needed"
    assert judge_claim([twenty], all_made=True).verdict == "not shown"
    one_group = Compared({}, "told", "forget", (reading([1.0] * 400, "told", groups=1),), 0.0)
    alone = judge_attack([one_group], MARGINS)
    assert alone.reason == "its rows are of 1 group: at least 5 are needed"
    assert judge_claim([alone], all_made=True) == ("not shown", None, ("not shown",))


def test_the_setting_that_asked_most_says_whether_the_rows_are_enough() -> None:
    few, many = (compared([0.0] * n, [0.0] * n, "told") for n in (20, 400))
    assert judge_attack([few, many], MARGINS).reason == ""
    assert judge_claim([judge_attack([few, many], MARGINS)], all_made=True).verdict == "holds"


def test_few_rows_may_still_show_what_is_there() -> None:
    told = judge_attack([compared([1.0] * 20, [0.0] * 20, "told")], MARGINS)
    assert judge_claim([told], all_made=True).verdict == "does not hold"


def test_an_attack_that_was_not_made_leaves_a_claim_not_shown_unless_another_finds() -> None:
    clean = judge_attack([compared([0.0] * 400, [0.0] * 400)], MARGINS)
    found = judge_attack([compared([0.9] * 400, [0.0] * 400)], MARGINS)
    assert judge_claim([clean], all_made=False).verdict == "not shown"
    assert judge_claim([clean, found], all_made=False).verdict == "does not hold"
    assert judge_claim([], all_made=True).verdict == "not shown"


def test_what_the_attack_teaches_the_ignorant_model_too_is_no_finding() -> None:
    attack = judge_attack([compared([0.4] * 400, [0.4] * 400)], MARGINS)
    assert judge_claim([attack], all_made=True).verdict == "holds"


def test_a_control_of_other_rows_brings_its_own_chance() -> None:
    rng = np.random.default_rng(2)
    ours, theirs = (list(rng.uniform(0, 0.5, 400)) for _ in range(2))
    paired = judge_attack([compared(ours, ours)], MARGINS).excesses[0]
    other = Compared({}, "answer_probability", "forget", (reading(ours),), (reading(theirs, name="never-seen"),), GROUPS)
    unpaired = judge_attack([other], MARGINS).excesses[0]
    assert unpaired.value == pytest.approx(float(np.mean(ours) - np.mean(theirs)) - 0.02)
    assert paired.high - paired.value == 0
    se = math.sqrt(2 * 0.25 / 12 / 400)
    assert unpaired.high - unpaired.value == pytest.approx(1.645 * se, rel=0.3)


def test_a_control_of_few_other_rows_clears_nothing() -> None:
    """One easy fact that was never seen would else clear whatever is below it."""
    for theirs, reason in (
        ([0.9], "its rows are of 1 group: at least 5 are needed"),
        ([0.9] * 20, "20 rows cannot bound a share by 0.02: 149 are needed"),
    ):
        other = (reading(theirs, name="never-seen"),)
        attack = judge_attack([Compared({}, "answer_probability", "forget", (reading([0.4] * 400),), other, GROUPS)], MARGINS)
        assert attack.reason == reason
        assert judge_claim([attack], all_made=True).verdict == "not shown"


def test_what_the_control_was_not_asked_clears_nothing() -> None:
    clean, alone = compared([0.0] * 400, [0.0] * 400), compared([0.9] * 400, [math.nan] * 400)
    attack = judge_attack([clean, alone], MARGINS)
    assert attack.reason == "in some of its settings the artifact was asked and what it is held against was not"
    assert judge_claim([attack], all_made=True).verdict == "not shown"


def test_chance_over_many_settings_finds_nothing() -> None:
    """400 settings of which none differs: the worst of them is no finding, in about 95 of 100 such audits."""
    found = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        settings = [compared(list(0.02 + 0.1 * rng.standard_normal(60)), [0.0] * 60) for _ in range(30)]
        attack = judge_attack(settings, MARGINS, seed=seed, draws=500)
        found += judge_claim([attack], all_made=True).verdict == "does not hold"
    assert found <= 6  # more than 6 of 40 at 5 % each: p < 0.02


def test_rows_that_were_not_asked_are_left_out() -> None:
    values = [0.5, math.nan] * 200
    excess = judge_attack([compared(values, [0.0] * 400)], MARGINS).excesses[0]
    assert (excess.value, excess.n) == (pytest.approx(0.48), 200)
    nothing = judge_attack([compared([math.nan] * 400, [0.0] * 400)], MARGINS)
    assert nothing.reason == "in none of its settings was a row asked"


def test_a_setting_that_could_not_be_asked_decides_nothing_and_one_of_few_groups_hides_no_other_s_finding() -> None:
    unasked = compared([math.nan] * 400, [0.0] * 400)
    clean, found = compared([0.0] * 400, [0.0] * 400), compared([0.9] * 400, [0.0] * 400)
    one_group = Compared({}, "answer_probability", "forget", (reading([0.0] * 400, groups=1),), 0.0, 1)
    beside_unasked = judge_attack([unasked, clean], MARGINS)
    assert (beside_unasked.deciding, beside_unasked.reason) == (1, "")
    assert math.isnan(beside_unasked.excesses[0].value)
    assert beside_unasked.excesses[1:] == judge_attack([clean], MARGINS).excesses
    assert judge_claim([beside_unasked], all_made=True).verdict == "holds"
    assert judge_claim([judge_attack([one_group, clean], MARGINS)], all_made=True).verdict == "not shown"
    beside_few = judge_attack([one_group, unasked, found], MARGINS)
    assert (beside_few.deciding, judge_claim([beside_few], all_made=True).verdict) == (2, "does not hold")


def test_seeds_are_drawn_too() -> None:
    ours = tuple(reading([value] * 400) for value in (0.0, 0.3))
    one = Compared({}, "answer_probability", "forget", ours, (reading([0.0] * 400),))
    excess = judge_attack([one], MARGINS).excesses[0]
    assert excess.value == pytest.approx(0.15 - 0.02)
    assert (excess.low, excess.high) == (pytest.approx(-0.02), pytest.approx(0.28))


# -- few groups -----------------------------------------------------------------------------------------------------------


def told_by_group(shares: list[float], *, of_each: int = 20, all_groups: int | None = None) -> Compared:
    """A setting in which each group tells this share of its rows, and the never-knew model nothing."""
    groups = tuple(f"group-{group}" for group in range(len(shares)) for _ in range(of_each))
    ids = tuple(f"row-{index}" for index in range(len(groups)))
    told = tuple(float(place < round(share * of_each)) for share in shares for place in range(of_each))
    ours = Reading({}, "told", "forget", ids, groups, told)
    return Compared({}, "told", "forget", (ours,), (Reading({}, "told", "forget", ids, groups, (0.0,) * len(ids)),), all_groups)


def test_groups_that_were_not_asked_could_know_all() -> None:
    """300 rows, none told. Of 40 groups of ten 30 are asked: two told ones are missed in 1 of 17 draws, three in 1 of 83."""
    unasked = judge_attack([told_by_group([0.0] * 30, of_each=10, all_groups=40)], MARGINS)
    assert unasked.reason == "30 of 40 groups were asked: where they know all or nothing, 5% of them could, unseen"
    assert judge_claim([unasked], all_made=True).verdict == "not shown"
    every = judge_attack([told_by_group([0.0] * 30, of_each=10, all_groups=30)], MARGINS)
    assert judge_claim([every], all_made=True).verdict == "holds"


def test_requests_that_stand_for_others_count_by_group_where_nothing_tells_how_alike_they_are() -> None:
    """400 requests of 20 documents, none refused: another document may be refused as a whole."""
    alike = judge_attack([told_by_group([0.0] * 20)], MARGINS)
    assert alike.reason == "400 rows of 20 groups count for 20: 299 are needed for 0.01"
    assert judge_claim([alike], all_made=True).verdict == "not shown"
    single = judge_attack([told_by_group([0.0] * 400, of_each=1)], MARGINS)
    assert judge_claim([single], all_made=True).verdict == "holds"


def test_some_findings_tell_how_alike_the_rows_of_a_group_are() -> None:
    """One row in each of 5 groups of 40: as good as independent. Five rows of one group: they count for fewer."""
    spread = told_by_group([0.05] * 5 + [0.0] * 395)
    together = told_by_group([0.25] + [0.0] * 399)
    n = 8000
    rates = [_counting(one.artifact, np.stack([np.array(one.artifact[0].values)])) for one in (spread, together)]
    assert rates[0] == pytest.approx(n)
    # between 0.003 and within 0.00047: r = 0.21, and 8000 / (1 + 19 * 0.21) = 1600
    assert rates[1] == pytest.approx(1600, rel=0.15)


def test_the_interval_of_few_groups_is_student_s_where_that_is_wider() -> None:
    """Six groups, one of which tells a fifth: the standard error is that of six numbers, t with five degrees is 2.015."""
    shares = [0.2, 0.0, 0.0, 0.0, 0.0, 0.0]
    excess = judge_attack([told_by_group(shares, all_groups=6)], MARGINS).excesses[0]
    error = np.std(shares, ddof=1) / math.sqrt(6)
    assert excess.value == pytest.approx(np.mean(shares) - 0.01)
    assert excess.high == pytest.approx(excess.value + 2.0150 * error, abs=1e-4)
    assert excess.low <= excess.value - 2.0150 * error + 1e-4


def test_what_may_be_refused_counts_in_what_few_rows_can_bound() -> None:
    """1 % is promised and 1 % beyond it allowed: 149 requests without a refusal bound a share by 2 %."""
    for n, reason in ((150, ""), (148, "148 rows cannot bound a share by 0.02: 149 are needed")):
        one = Compared({}, "refused", "retain", (reading([0.0] * n, "refused", groups=n),), 0.01)
        assert judge_attack([one], MARGINS).reason == reason
