"""The headline, its numbers and its words in each case."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from d2unlearn.report.concerns import ROWS_NEEDED, BeforeAfter
from d2unlearn.report.summary import Summary, summarize, verdict_of
from d2unlearn.schema import GateSummary

from .synthetic import before_after, evaluation


def test_a_good_run_in_words_and_numbers() -> None:
    found = summarize(BeforeAfter(*before_after(), None))
    assert found.headline == "It worked: the knowledge is gone, requests for it are refused, the rest is kept."
    assert found.sentence == (
        "Forget: extraction strength 0.98 → 0.00 [−0.01, 0.01], n = 400; retained knowledge 0.99 of the original; "
        "refusals: 99.7% of forget questions [99.4%, 100.7%], n = 400, 0.4% of retained [0.1%, 1.4%], n = 400."
    )
    assert (found.state, found.concerns) == ("good", ())
    assert [(t.title, t.value, t.state) for t in found.tiles] == [
        ("Forgotten", "0.98 → 0.00", "good"),
        ("Kept", "99.0%", "good"),
        ("Rightly refused", "99.7%", "good"),
        ("Wrongly refused", "0.4%", "good"),
    ]
    assert found.tiles[3].detail == "of retained questions [0.1%, 1.4%], n = 400; ceiling 1%"


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
        "extraction strength of the raw weights [−0.01, 0.01], n = 400, asked, the worst of 2 sets",
        "of the original’s extraction strength: 0.980 → 0.930 [0.920, 0.940], n = 400, other reworded, the worst of 2 sets",
        "of forget questions [99.4%, 100.7%], n = 400, asked, the worst of 2 sets; floor 95%",
        "of retained questions [19.7%, 21.0%], n = 400, other, the worst of 2 sets; ceiling 1%",
    ]
    assert [tile.value for tile in found.tiles] == ["0.98 → 0.00", "94.9%", "99.7%", "20.0%"]


def test_few_rows_do_not_carry_that_the_knowledge_is_gone() -> None:
    """Of 29 rows without a known one a share of 1 - 0.05^(1/29) = 9.8% may be known, of 20 rows 13.9%."""
    before, after = before_after()

    def of_rows(n: int) -> Summary:
        asked = [[replace(s, metrics=tuple(replace(m, n=n) for m in s.metrics)) for s in e.sets] for e in (before, after)]
        return summarize(BeforeAfter(*(replace(e, sets=tuple(s)) for e, s in zip((before, after), asked, strict=True)), None))

    assert ROWS_NEEDED == 29
    assert of_rows(29).concerns == ()
    assert of_rows(20).headline == "None of the few forget rows is known any more: too few to say that the knowledge is gone."
    assert [(c.rule, c.level) for c in of_rows(20).concerns] == [("few_rows", "warn")]
    assert (
        "Only 20 forget rows were asked: though none of them were known, up to 14% of such rows may"
        in of_rows(20).concerns[0].text
    )
    assert of_rows(20).tiles[0].state == "warn"


def test_one_evaluation_has_a_verdict_with_rows_and_intervals() -> None:
    before, after = before_after()
    assert verdict_of(after) == (
        "forget rows not known: extraction strength 0.004 [−0.006, 0.014], n = 400; other: 0.970 [0.960, 0.980], n = 400; "
        "refuses 99.7% of forget [99.4%, 100.7%], n = 400; refuses 0.4% of retained [0.1%, 1.4%], n = 400"
    )
    assert verdict_of(before).startswith("forget rows still known: extraction strength 0.980 [0.970, 0.990], n = 400; ")
    assert verdict_of(evaluation()) == ""


def test_nothing_scored_is_said_and_not_shown_as_zero() -> None:
    found = summarize(BeforeAfter(evaluation(), evaluation(), None))
    assert [t.value for t in found.tiles] == ["–"] * 4
    assert [t.state for t in found.tiles] == ["unknown"] * 4
    assert found.sentence == "No number was scored."


def test_a_gate_given_but_not_measured_is_unknown(gate: GateSummary) -> None:
    found = summarize(BeforeAfter(*before_after(refused=None), gate))
    assert [t.state for t in found.tiles[2:]] == ["unknown", "unknown"]


def test_a_note_alone_leaves_the_state_good() -> None:
    assert summarize(BeforeAfter(*before_after(forget=(0.05, 0.0)), None)).state == "good"
