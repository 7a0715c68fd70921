"""The paragraph and the lines: each rival is named where the outcomes put it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from d2unlearn.comparison.outcomes import Outcome, Result
from d2unlearn.comparison.table import FORGET_QUALITY, Cell, Row, SplitTable
from d2unlearn.comparison.words import in_words, plain_words, reading, who_wins

NAMES = {"a": ("win", "win"), "b": ("tie", "win"), "c": ("tie", "tie"), "d": ("loss", "tie"), "e": ("win", "loss")}


def outcome(contestant: str, respect: str, result: Result, difference: float = 0.25) -> Outcome:
    kind = "retain" if respect.startswith(("retain", "world")) else "forget"
    theme = "comeback" if respect.startswith("comeback") else f"{kind}.{respect.split('.')[1]}"
    return Outcome(contestant, respect, theme, difference, 0.5 if result == "tie" else 0.01, 300, result)


def row(contestant: str, **numbers: float) -> Row:
    kind = "as_is" if contestant in ("original", "oracle") else "method"
    keys = {"p": FORGET_QUALITY, "utility": "suite.model_utility", "back": "comeback.first.20"}
    cells = {keys[name]: Cell(value, math.nan, math.nan, 1) for name, value in numbers.items()}
    return Row(contestant, kind, (0,), cells)  # type: ignore[arg-type]


def table(outcomes: list[Outcome], rows: list[Row] | None = None, ungated: tuple[str, ...] = ()) -> SplitTable:
    return SplitTable("ten", {"forget": 300}, (), tuple(rows or []), tuple(outcomes), (), (), ungated)


def on_both_sets(metric: str, sets: tuple[str, str]) -> list[Outcome]:
    return [outcome(name, f"{each}.{metric}", result)  # type: ignore[arg-type]
            for name, results in NAMES.items() for each, result in zip(sets, results, strict=True)]  # fmt: skip


@pytest.mark.parametrize(
    ("sets", "metric", "sentence"),
    [
        (
            ("forget", "forget_paraphrased"),
            "extraction_strength",
            "its weights hold less than a, b; more than d; now more, now less than e; not clearly more or less than c",
        ),
        (
            ("retain", "world_facts"),
            "extraction_strength",
            "they keep more than a, b; less than d; now more, now less than e; not clearly more or less than c.",
        ),
        (
            ("retain", "retain_paraphrased"),
            "guarded_refusal_rate",
            "It refuses everything else less often than a, b; more often than d; now more, now less often than e; not clearly "
            "more or less often than c.",
        ),
    ],
)
def test_a_theme_puts_each_rival_where_all_its_sets_together_put_it(sets: tuple[str, str], metric: str, sentence: str) -> None:
    said = plain_words(table(on_both_sets(metric, sets)))
    assert said.startswith("In 10 comparisons with 5 others eua wins 4, ties in 4 and loses 2.")
    assert sentence in said


def test_everybody_is_not_listed_by_name() -> None:
    outcomes = [outcome(name, "comeback.first.20", "loss") for name in "abc"]
    assert "After relearning its weights hold more than all 3 others." in plain_words(table(outcomes))
    assert "After relearning its weights hold more than a." in plain_words(table(outcomes[:1]))
    ties = [outcome(name, "comeback.first.20", "tie") for name in "abc"]
    assert "hold not clearly more or less than any of the 3 others." in plain_words(table(ties))


def test_more_than_a_few_are_counted() -> None:
    outcomes = [outcome(name, "comeback.first.20", "loss" if name in "abcde" else "tie") for name in "abcdefg"]
    said = plain_words(table(outcomes))
    assert "After relearning its weights hold more than 5 of 7; not clearly more or less than f, g." in said


def test_what_comes_back_stands_beside_the_oracle() -> None:
    outcomes = [outcome("npo", "comeback.first.20", "loss")]
    rows = [row("oracle", back=0.002), row("eua", back=0.8071), row("npo", back=0.5)]
    said = plain_words(table(outcomes, rows))
    assert (
        "After 20 steps of relearning a tenth of the forgotten rows its answer probability on the others is 0.807, the" in said
    )
    assert "20 steps" not in plain_words(table(outcomes, rows[1:]))


@pytest.mark.parametrize(
    ("own", "rival", "sentence"),
    [
        (1e-7, 0.3, "tells its answers from the oracle's (p 1.0e-07), not those of npo (p 0.3, model utility 0.600)."),
        (1e-7, 1e-3, "tells its answers from the oracle's (p 1.0e-07), those of every other method as well."),
        (0.2, 1e-3, "does not tell its answers from the oracle's (p 2.0e-01), those of every other method it does."),
        (0.2, 0.3, "does not tell its answers from the oracle's (p 2.0e-01), nor those of npo (p 0.3, model utility 0.600)."),
        (1e-7, math.nan, "tells its answers from the oracle's (p 1.0e-07)."),
    ],
)  # fmt: skip
def test_forget_quality_names_whose_answers_pass_for_the_oracle_s(own: float, rival: float, sentence: str) -> None:
    rows = [row("eua", p=own, utility=0.9), row("npo", p=rival, utility=0.6)]
    assert f"Forget quality {sentence}" in plain_words(table([outcome("npo", "forget.extraction_strength", "win")], rows))


def test_lines_name_whom_it_wins_against_and_by_how_much() -> None:
    outcomes = [
        outcome("npo", "forget.extraction_strength", "win", 0.4),
        outcome("idk", "forget.extraction_strength", "tie"),
        outcome("npo", "forget_paraphrased.guarded_refusal_rate", "loss", 0.125),
    ]
    assert list(in_words(outcomes)) == [
        "- extraction strength on forget: eua wins against npo (-0.400); ties with idk (-0.250).",
        "- refusals of forget paraphrased: eua loses to npo (-0.125).",
    ]


def test_a_win_against_a_model_that_knows_nothing_is_said_to_be_small() -> None:
    outcomes = [outcome("npo", "retain.extraction_strength", "win")]
    rows = [row("eua", utility=0.9), row("npo", utility=0.6), row("ga", utility=0.0)]
    outcomes.append(outcome("ga", "retain.extraction_strength", "loss"))
    said = plain_words(table(outcomes, rows))
    assert (
        "eua wins 1, ties in 0 and loses 1. Hardly anything works any more of ga (model utility below 0.01); without " in said
    )
    assert "without them it wins 1, ties in 0 and loses 0." in said
    assert "Hardly anything" not in plain_words(table(outcomes, rows[:2]))


def test_whose_refusals_are_not_compared_is_said() -> None:
    outcomes = [outcome("npo", "retain.extraction_strength", "win")]
    assert "Refusals are not compared with idk, dpo: these answer" in who_wins(table(outcomes, ungated=("idk", "dpo")))
    assert "Refusals are not" not in who_wins(table(outcomes))


def test_the_reading_speaks_of_what_there_is() -> None:
    outcomes = [outcome("npo", "forget.extraction_strength", "win")]
    bare = reading(table(outcomes, [row("eua"), row("npo")]))
    assert "nothing is known of other trainings" in bare
    assert "oracle's up" not in bare
    both = [replace(each, seeds=(0, 1)) for each in (row("oracle"), row("eua"), row("npo"))]
    full = reading(table(outcomes, both))
    assert "other seeds and of other authors" in full
    assert "count from the oracle's up" in full


def test_without_a_rival_there_is_nothing_to_say() -> None:
    assert plain_words(table([])) == ""
    assert who_wins(table([])) == "eua is not judged, so nothing is compared.\n"
    assert who_wins(table([], [row("eua")])) == "Nothing else is judged, so nothing is compared.\n"
    assert who_wins(table([outcome("npo", "retain.extraction_strength", "tie")])).endswith(
        "eua ties with npo (-0.250).\n\n</details>\n"
    )
