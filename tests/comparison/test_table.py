"""Tables from records: intervals by hand, whose numbers a guard has, and what a table never shows."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from d2unlearn.comparison.entries import refuses_in_text
from d2unlearn.comparison.markdown import (
    HOW_COMPARED,
    cell_text,
    compared_text,
    markdown_table,
    number_text,
    outcome_counts,
    outcome_table,
    page_of,
    section_table,
    seeds_text,
)
from d2unlearn.comparison.outcomes import MetricOutcome, difference_of, outcomes_of, relearned_in, result_of
from d2unlearn.comparison.records import RunResult
from d2unlearn.comparison.table import FORGET_QUALITY, SeedMean, SplitTable, TableColumn, p_interval, seed_interval, split_table

from .made_up import in_other_words, run_result, tuning_result

RUNS = [
    run_result("original", 0, [1.0] * 4, [1.0] * 4, suite={"model_utility": 0.6}, returned=0.99),
    run_result("oracle", 0, [0.1, 0.0, 0.1, 0.0], [1.0] * 4, returned=0.002),
    *(
        run_result("eua", seed, [0.0] * 4, [0.9, 1.0, 0.9, 1.0], refused=([1.0, 1, 1, 0], [0.0] * 4), seconds=40.0 + seed,
               bytes=200.0, returned=0.4 + 0.01 * seed, suite={"model_utility": 0.5 + 0.1 * seed})
        for seed in (0, 1)
    ),
    *(
        run_result("npo", seed, [0.3, 0.4, 0.5, 0.6], [1.0] * 4, refused=([0.0] * 4, [0.0] * 4), seconds=20.0, bytes=300.0,
               returned=0.2)
        for seed in (0, 1)
    ),
    run_result("input_classifier", 0, [0.7] * 4, [0.7] * 4, refused=([1.0] * 4, [0.0, 0.0, 0.0, 1.0])),
]  # fmt: skip


@pytest.fixture(scope="module")
def table() -> SplitTable:
    left_out = {"prompt_guard": "needs a model that follows instructions"}
    return split_table("ten", RUNS, [tuning_result("eua", 0.5, 0.9), tuning_result("npo", 0.0, 0.7)], left_out, ["eua", "npo"])


def cell(table: SplitTable, entry: str, key: str) -> SeedMean:
    return next(row for row in table.rows if row.contestant == entry).cells[key]


def outcome(table: SplitTable, entry: str, metric: str) -> MetricOutcome:
    return next(found for found in table.outcomes if (found.contestant, found.respect) == (entry, metric))


def test_the_interval_over_seeds_is_student_s() -> None:
    """Of 1, 2, 4: mean 7/3, deviation sqrt(7/3), t at two degrees of freedom 4.3027."""
    found = seed_interval([1.0, 2.0, math.nan, 4.0])
    half = 4.30265 * math.sqrt(7 / 3) / math.sqrt(3)
    assert (found.value, found.n) == (pytest.approx(7 / 3), 3)
    assert (found.low, found.high) == (pytest.approx(7 / 3 - half, rel=1e-5), pytest.approx(7 / 3 + half, rel=1e-5))
    alone = seed_interval([5.0])
    assert (alone.value, alone.n, math.isnan(alone.low)) == (5.0, 1, True)
    assert math.isnan(seed_interval([]).value)


def test_p_values_are_averaged_as_logarithms_and_never_pass_one() -> None:
    """1e-2 and 1e-6: the mean is 1e-4; the interval, 25 powers of ten each way, ends at 1."""
    found = p_interval([1e-2, 1e-6, math.nan])
    half = 12.7062 * np.std([-2, -6], ddof=1) / math.sqrt(2)
    assert (found.value, found.high, found.n) == (pytest.approx(1e-4), 1.0, 2)
    assert math.log10(found.low) == pytest.approx(-4 - half, rel=1e-4)
    assert p_interval([0.0]).value < 1e-300
    assert math.isnan(p_interval([math.nan]).value)


def test_forget_quality_is_shown_with_both_ends() -> None:
    column = TableColumn(FORGET_QUALITY, "forget quality", "higher")
    assert cell_text(SeedMean(1e-4, 2e-7, 0.05, 2), column) == "1.0e-04 (2.0e-07 to 0.050)"
    runs = [run_result("eua", seed, [0.0] * 4, [1.0] * 4, suite={"forget_quality": p}) for seed, p in ((0, 1e-2), (1, 1e-6))]
    rows = split_table("ten", runs, [], {}).rows
    assert rows[0].cells[FORGET_QUALITY].value == pytest.approx(1e-4)
    assert "geometric mean" in seeds_text(rows)


def test_rows_stand_in_order_with_their_seeds(table: SplitTable) -> None:
    assert [(row.contestant, row.seeds) for row in table.rows] == [
        ("original", (0,)),
        ("oracle", (0,)),
        ("eua", (0, 1)),
        ("npo", (0, 1)),
        ("input_classifier", (0,)),
        ("prompt_guard", ()),
    ]
    assert table.sizes == {"forget": 4, "retain": 4}


def test_numbers_are_means_over_seeds(table: SplitTable) -> None:
    assert cell(table, "eua", "suite.model_utility").value == pytest.approx(0.55)
    half = 12.7062 * np.std([0.5, 0.6], ddof=1) / math.sqrt(2)
    assert cell(table, "eua", "suite.model_utility").high == pytest.approx(0.55 + half, rel=1e-4)
    assert cell(table, "eua", "comeback.first.20").value == pytest.approx(0.405)


def test_cost_is_a_ratio_to_eua_in_processor_time(table: SplitTable) -> None:
    assert cell(table, "eua", "cost.time").value == pytest.approx(1.0)
    assert cell(table, "npo", "cost.seconds").value == 20.0
    assert cell(table, "npo", "cost.time").value == pytest.approx(20 / 40.5)
    assert cell(table, "npo", "cost.memory").value == pytest.approx(1.5)
    assert math.isnan(cell(table, "original", "cost.time").value)


def test_a_ratio_to_nothing_is_no_number() -> None:
    """A small model may take no more memory than the process has held before."""
    runs = [run_result(name, 0, [0.0] * 4, [1.0] * 4, seconds=2.0, bytes=0.0) for name in ("eua", "npo")]
    for row in split_table("ten", runs, [], {}).rows:
        assert row.cells["cost.time"].value == 1.0
        assert math.isnan(row.cells["cost.memory"].value)


def test_a_guard_s_raw_numbers_are_the_original_s_and_its_guarded_ones_its_own(table: SplitTable) -> None:
    raw = cell(table, "input_classifier", "forget.extraction_strength")
    assert (raw.value, raw.n) == (1.0, 1)  # one measurement, however many seeds the guard has
    assert cell(table, "input_classifier", "suite.model_utility").value == 0.6
    assert cell(table, "input_classifier", "comeback.first.20").value == 0.99
    assert cell(table, "input_classifier", "retain.guarded_refusal_rate").value == 0.25
    assert math.isnan(cell(table, "input_classifier", "cost.time").value)


def test_no_number_of_the_validation_questions_is_in_a_row(table: SplitTable) -> None:
    shown = [cell.value for row in table.rows for cell in row.cells.values()]
    assert not [value for value in shown if value in (0.9 - 1e-12, 0.123456, 0.7 + 1e-12)]
    page = page_of([table], objective="stated objective")
    tuning = page.index("### How parameters were chosen")
    assert "0.9000" not in page[:tuning]
    assert re.search(r"\| eua \| 2 \| 0 \| 0\.9000 \| gamma 0\.1 \|", page[tuning:])
    assert re.search(r"\| npo \| 2 \| 1 \| 0\.7000 \| gamma 0\.1 \|", page[tuning:])
    assert "By the stated objective." in page


def test_outcomes_by_hand(table: SplitTable) -> None:
    """EUA knows less than the retain model, which counts as that model's 0.05; NPO knows 0.45 on average."""
    erased = outcome(table, "npo", "forget.extraction_strength")
    assert (erased.difference, erased.n) == (pytest.approx(0.45 - 0.05), 4)
    kept = outcome(table, "npo", "retain.extraction_strength")
    assert (kept.difference, kept.result) == (pytest.approx(0.05), "loss")
    assert outcome(table, "npo", "retain.guarded_refusal_rate").result == "tie"
    back = outcome(table, "npo", "comeback.first.20")
    assert (back.difference, back.n, back.result) == (pytest.approx(-0.205), 2, "loss")
    guard = outcome(table, "input_classifier", "forget.extraction_strength")
    assert (guard.difference, guard.result) == (pytest.approx(0.95), "win")  # its weights know all that the original knows
    assert not [outcome for outcome in table.outcomes if outcome.contestant in ("original", "oracle", "eua")]


def test_p_values_are_adjusted_for_the_entries_of_a_metric() -> None:
    """Two rivals with p 0.02 and 0.04 alone; together 0.04 twice. Two authors: t = mean / half their distance."""
    base = run_result("eua", 0, [0.0] * 4, [0.0] * 4)
    rivals = [run_result(name, 0, [0.0] * 4, [1 - d, 1 - d, 1 + d, 1 + d]) for name, d in (("npo", 0.0314), ("rmu", 0.0629))]
    found = {
        outcome.contestant: outcome
        for outcome in outcomes_of([base, *rivals], ["npo", "rmu"])
        if outcome.respect == "retain.extraction_strength"
    }
    alone = outcomes_of([base, rivals[1]], ["rmu"])
    assert [found[name].p for name in ("npo", "rmu")] == pytest.approx([0.04, 0.04], rel=0.01)
    assert next(outcome.p for outcome in alone if outcome.respect == "retain.extraction_strength") == found["rmu"].p


def test_refusals_are_not_compared_with_who_refuses_in_text() -> None:
    found = outcomes_of(RUNS, ["npo", "input_classifier"], refuses_in_text=["npo"])
    assert {outcome.contestant for outcome in found if outcome.respect.endswith("refusal_rate")} == {"input_classifier"}
    assert "npo" in {outcome.contestant for outcome in found if outcome.respect == "forget.extraction_strength"}
    assert refuses_in_text() == ("idk", "dpo", "idk_ap", "embedding_corruption")


def test_guarded_rouge_counts_from_what_a_model_without_a_guard_tells() -> None:
    """The retain model has no guard: its plain answers hold 0.2 of the truth, EUA's guarded ones 0.1, NPO's 0.6."""
    runs = [
        run_result("oracle", 0, [0.0] * 4, [1.0] * 4, rouge={"rouge_l_recall": 0.2}),
        run_result("eua", 0, [0.0] * 4, [1.0] * 4, rouge={"guarded_rouge_l_recall": 0.1}),
        run_result("npo", 0, [0.0] * 4, [1.0] * 4, rouge={"guarded_rouge_l_recall": 0.6}),
    ]
    found = {outcome.respect: outcome for outcome in outcomes_of(runs, ["npo"]) if "rouge" in outcome.respect}
    assert found["forget.guarded_rouge_l_recall"].difference == pytest.approx(0.4)
    assert found["retain.guarded_rouge_l_recall"].difference == pytest.approx(0.5)
    without = [run_result("oracle", 0, [0.0] * 4, [1.0] * 4), *runs[1:]]
    assert not [outcome for outcome in outcomes_of(without, ["npo"]) if outcome.respect == "forget.guarded_rouge_l_recall"]


def test_a_guard_gives_back_what_the_original_s_weights_do() -> None:
    runs = [
        run_result("original", 0, [1.0] * 4, [1.0] * 4, returned=0.99),
        *(run_result("eua", seed, [0.0] * 4, [1.0] * 4, returned=0.4 + 0.01 * seed) for seed in (0, 1)),
        *(run_result("input_classifier", seed, [0.7] * 4, [0.7] * 4) for seed in (0, 1)),
    ]
    back = next(outcome for outcome in outcomes_of(runs, ["input_classifier"]) if outcome.theme == "comeback")
    assert (back.difference, back.result) == (pytest.approx(0.585), "win")


def runs_at_worst(**changes: float) -> list[RunResult]:
    """Two seeds of eua and of npo, what comes back of either at the worst learning rate."""
    return [
        run_result(
            name, seed, [0.0] * 4, [1.0] * 4, worst={"spread over groups": value + 0.01 * seed, "one row": 0.3}, **changes
        )
        for name, value in {"eua": 0.8, "npo": 0.5}.items()
        for seed in (0, 1)
    ]


def sections_with(table: SplitTable, beginning: str) -> dict[str, list[str]]:
    """The titles that begin so, and the labels of their columns."""
    return {
        section.title: [column.label for column in section.columns]
        for section in table.sections
        if section.title.startswith(beginning)
    }


def test_what_comes_back_is_said_at_the_worst_learning_rate() -> None:
    table = split_table("ten", runs_at_worst(), [], {})
    assert sections_with(table, "After") == {
        "After relearning for 80 steps at the worst learning rate: answer probability on the other rows": [
            *("at rest", "spread over groups", "one row")
        ]
    }
    assert cell(table, "eua", "comeback.spread over groups.80").value == pytest.approx(0.805)
    back = outcome(table, "npo", "comeback.spread over groups.80")
    assert (back.difference, back.result) == (pytest.approx(-0.3), "loss")
    assert outcome_counts([back]) == {"relearned: spread over groups, 80 steps": [0, 0, 1], "all": [0, 0, 1]}


def test_older_results_of_relearning_stand_in_a_section_of_their_own() -> None:
    old = split_table("ten", RUNS, [], {})
    older = "After relearning a tenth: answer probability on the rest"
    assert list(sections_with(old, "After")) == [older]
    assert sections_with(old, "After")[older][1:3] == ["whole authors, 5 steps", "whole authors, 20 steps"]
    both = split_table("ten", [*runs_at_worst(), RUNS[0]], [], {})
    assert [*sections_with(both, "After")][1:] == [older]
    assert relearned_in(RUNS) == "comeback.first.20"
    assert relearned_in([*runs_at_worst(), RUNS[0]]) == "comeback.spread over groups.80"


def runs_reworded() -> list[RunResult]:
    """The original tells all in other words and the retain model a quarter; of two seeds eua tells one question, npo three."""
    given = {"original": [1.0] * 4, "oracle": [1.0, 0.0, 0.0, 0.0]}
    told = {"eua": in_other_words([1.0, 0.0, 0.0, 0.0]), "npo": in_other_words([1.0, 1.0, 0.0, 1.0]), "input_classifier": []}
    return [
        *(run_result(name, 0, [0.0] * 4, [1.0] * 4, reworded=in_other_words(of_all)) for name, of_all in given.items()),
        *(run_result(name, seed, [0.0] * 4, [1.0] * 4, reworded=found) for name, found in told.items() for seed in (0, 1)),
    ]


TOLD = "other_words.49.0a1b2c3d.any"


def test_what_is_told_in_other_words_has_a_column_and_is_compared_question_by_question() -> None:
    table = split_table("ten", runs_reworded(), [], {})
    raw = next(section for section in table.sections if section.title == "Raw weights")
    assert [column.label for column in raw.columns if column.key == TOLD] == ["told in other words, any of 49"]
    shown = {row.contestant: row.cells[TOLD].value for row in table.rows}
    assert shown == {"original": 1.0, "oracle": 0.25, "eua": 0.25, "npo": 0.75, "input_classifier": 1.0}
    assert cell(table, "npo", "other_words.49.0a1b2c3d.typos").value == 0.0
    assert table.sizes == {"forget": 4, "retain": 4, "forget_in_other_words": 4}
    told = outcome(table, "npo", TOLD)
    assert (told.difference, told.n, told.theme) == (pytest.approx(0.5), 4, "forget.any")
    assert outcome(table, "input_classifier", TOLD).difference == pytest.approx(0.75)  # its weights are the original's
    assert list(outcome_counts([told])) == ["told in other words, any of 49", "all"]


def test_older_results_show_a_dash_and_are_not_compared_in_other_words() -> None:
    old = [replace(run, reworded=()) if run.contestant == "npo" else run for run in runs_reworded()]
    table = split_table("ten", old, [], {})
    page = page_of([table], objective="objective")
    heads, *body = [
        line.split(" | ") for line in page.split("### Raw weights")[1].split("###")[0].splitlines() if line.startswith("| ")
    ]
    place = next(index for index, head in enumerate(heads) if head.startswith("told in other words, any of 49"))
    assert {row[0].strip("| ¹"): row[place].strip(" |") for row in body if "---" not in row[0]} == {
        "original": "100.0%", "oracle": "25.0%", "eua": "25.0% ± 0.0%", "npo": "–", "input_classifier": "100.0%"
    }  # fmt: skip
    assert {found.contestant for found in table.outcomes if found.respect == TOLD} == {"input_classifier"}
    assert "at least one of the wordings that judge" in page


def test_no_results_in_other_words_leave_everything_as_it_was(table: SplitTable) -> None:
    assert "other words" not in page_of([table], objective="objective")
    assert not [column for section in table.sections for column in section.columns if "other words" in column.label]


def test_wordings_of_another_table_are_another_column_and_not_compared() -> None:
    of_another = tuple(in_other_words([0.0] * 4, "ffffffff"))
    changed = [replace(run, reworded=of_another) if run.contestant == "npo" else run for run in runs_reworded()]
    table = split_table("ten", changed, [], {})
    assert cell(table, "npo", "other_words.49.ffffffff.any").value == 0.0
    assert TOLD not in next(row for row in table.rows if row.contestant == "npo").cells
    assert not [found for found in table.outcomes if found.contestant == "npo" and found.respect.startswith("other_words")]


def test_questions_of_one_group_stand_for_themselves() -> None:
    """One refusal in four questions, by all trainings alike, is not certain because nothing else varies."""
    refused = {name: [0.0, 0.0, 0.0, float(name == "input_classifier")] for name in ("eua", "input_classifier")}
    runs = [
        run_result(name, seed, [0.0] * 4, [1.0] * 4, refused=([1.0] * 4, wrongly))
        for name, wrongly in refused.items()
        for seed in (0, 1)
    ]
    runs = [
        replace(run, sets=tuple(replace(questions, groups=("all",) * 4) for questions in run.sets)) for run in (*runs, RUNS[0])
    ]
    found = outcomes_of(runs, ["input_classifier"])
    facts = next(outcome for outcome in found if outcome.respect == "retain.guarded_refusal_rate")
    assert facts.p > 0.3
    assert facts.result == "tie"


def test_without_the_proposed_method_there_are_no_outcomes() -> None:
    assert outcomes_of([run for run in RUNS if run.contestant != "eua"], ["npo"]) == []


def test_wins_ties_and_losses_are_counted_metric_by_metric() -> None:
    def outcome(entry: str, metric: str, result: str) -> MetricOutcome:
        return MetricOutcome(entry, metric, "", 0.25, 0.5, 300, result)  # type: ignore[arg-type]

    outcomes = [
        outcome("npo", "forget.extraction_strength", "win"),
        outcome("rmu", "forget.extraction_strength", "win"),
        outcome("npo", "forget_paraphrased.guarded_refusal_rate", "tie"),
        outcome("npo", "comeback.first.20", "loss"),
        outcome("rmu", "comeback.first.20", "tie"),
    ]
    assert outcome_counts(outcomes) == {
        "forget: extraction strength": [2, 0, 0],
        "gate refuses: forget paraphrased": [0, 1, 0],
        "relearned: whole authors, 20 steps": [0, 1, 1],
        "all": [2, 2, 1],
    }
    assert outcome_table(outcomes[:1]).splitlines() == [
        "|  | wins | ties | losses |",
        "| --- | ---: | ---: | ---: |",
        "| forget: extraction strength | 1 | 0 | 0 |",
        "| all | 1 | 0 | 0 |",
    ]


def test_who_is_compared_and_how_is_said_once(table: SplitTable) -> None:
    assert compared_text(table) == "Compared: npo, input_classifier."
    assert compared_text(replace(table, ungated=("idk",))) == "Compared: npo, input_classifier (not in refusals: idk)."
    page = page_of([table, replace(table, split="nine")], objective="objective")
    assert page.count(HOW_COMPARED) == 1
    assert page.count("### eua against the others") == page.count("| gate refuses: forget |") == 2
    assert "### eua against" not in page_of([replace(table, outcomes=())], objective="objective")


def test_seeds_that_disagree_are_no_difference() -> None:
    """Three trainings, 15 authors of four questions each: the same mean, one training against the other two."""
    rng = np.random.default_rng(0)
    groups = [str(index // 4) for index in range(60)]
    steady, shaky = (np.array(shifts)[:, None] + rng.normal(0, 0.05, (3, 60)) for shifts in ([0.1] * 3, [0.4, -0.1, 0.0]))
    base = np.zeros((3, 60))
    assert difference_of(base, steady, groups).p < 1e-3
    assert difference_of(base, shaky, groups).p > 0.3


def test_below_the_retain_model_nothing_is_better() -> None:
    base, rival, retain_model = np.full((1, 6), 0.0), np.full((1, 6), 0.04), np.full(6, 0.05)
    below = difference_of(base, rival, "abcdef", retain_model)
    assert (below.value, below.p) == (0.0, 1.0)
    above = difference_of(base, np.full((1, 6), 0.25), "abcdef", retain_model)
    assert (above.value, above.p) == (pytest.approx(0.2), 0.0)


def test_more_than_the_other_is_nothing_where_it_is_not_more_than_the_retain_model() -> None:
    """The rival's mean is the retain model's and a little: clearly more than nothing, not clearly more than that model's."""
    base, retain_model = np.zeros((1, 8)), np.full(8, 0.3)
    rival = np.array([[0.1, 0.5, 0.2, 0.4, 0.35, 0.3, 0.25, 0.32]])
    found = difference_of(base, rival, "abcdefgh", retain_model)
    assert found.p > 0.5
    assert difference_of(base, rival, "abcdefgh").p < 0.001


@pytest.mark.parametrize(
    ("difference", "p", "better", "result"),
    [
        (0.1, 0.01, "lower", "win"),
        (0.1, 0.01, "higher", "loss"),
        (-0.1, 0.01, "lower", "loss"),
        (-0.1, 0.01, "higher", "win"),
        (0.1, 0.05, "lower", "tie"),
        (0.0, 1.0, "higher", "tie"),
    ],
)
def test_results_are_the_proposed_method_s(difference: float, p: float, better: str, result: str) -> None:
    assert result_of(difference, p, better) == result  # type: ignore[arg-type]


def test_cells_are_written_as_they_are_read() -> None:
    share, plain, seconds = (
        TableColumn("x", "", "lower", True),
        TableColumn("x", "", "lower"),
        TableColumn("cost.seconds", "", "lower"),
    )
    assert cell_text(SeedMean(0.0123, 0.0023, 0.0223, 3), share) == "1.2% ± 1.0%"
    assert cell_text(SeedMean(0.5, math.nan, math.nan, 1), plain) == "0.500"
    assert cell_text(SeedMean(math.nan, math.nan, math.nan, 0), plain) == "–"
    assert cell_text(None, plain) == "–"
    assert [number_text(value, plain) for value in (0.0, 1.7e-9, 0.00051, -0.0001)] == ["0.000", "1.7e-09", "0.001", "-1.0e-04"]
    assert number_text(123.4, seconds) == "123"


def test_columns_that_nobody_fills_are_left_out(table: SplitTable) -> None:
    raw = section_table(table.sections[0], table.rows)
    assert "model utility ↑" in raw
    assert "forget quality" not in raw
    assert raw.splitlines()[-1] == "| prompt_guard ² | – | – | – | – |"
    assert "² prompt_guard: needs a model that follows instructions." in page_of([table], objective="objective")
    assert markdown_table(["", "a"], [["x", "1"]]) == "|  | a |\n| --- | ---: |\n| x | 1 |"
