"""Words and numbers, table rows, the choice of samples, and the figures' numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from d2unlearn.report import figures, notation
from d2unlearn.report.samples import FALSE_REFUSAL, MISSED, WORST_LEAK, choose_samples
from d2unlearn.report.tables import ScaleMark, WrittenNumber, level_rows, metric_rows, set_table, set_tables, unknown_answers
from d2unlearn.schema import Evaluation, GateSummary, MetricResult

from .synthetic import THRESHOLD, evaluated, evaluation, example, metric


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("auroc", ("auroc", "")),
        ("auroc_paraphrased", ("auroc", "paraphrased")),
        ("auroc (world facts)", ("auroc", "world facts")),
        ("aurocish", ("aurocish", "")),
        ("fpr_at_95_tpr/x", ("fpr_at_95_tpr", "x")),
        ("perplexity", ("perplexity", "")),
    ],
)
def test_a_metric_s_name_and_the_set_it_is_on(name: str, expected: tuple[str, str]) -> None:
    assert notation.split_name(name) == expected


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/models/tofu/full/", "full"),
        ("./artifact", "artifact"),
        ("owner/name", "owner/name"),
        ("a/b/c", "c"),
        ("name", "name"),
    ],
)
def test_a_folder_is_named_by_its_last_part_and_a_model_on_a_hub_in_full(place: str, name: str) -> None:
    assert notation.folder_name(place) == name


def test_labels() -> None:
    assert notation.metric_words("auroc_world_facts").label == "AUROC, world facts"
    assert notation.metric_words("perplexity").label == "perplexity"


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0%"), (0.0004, "<0.1%"), (0.0005, "0.1%"), (0.0123, "1.2%"), (0.9994, "99.9%"), (0.9996, ">99.9%"), (1.0, "100%"),
     (1.012, "101.2%"), (math.nan, "–")],
)  # fmt: skip
def test_percent_never_rounds_to_none_or_all(share: float, text: str) -> None:
    assert notation.percent(share) == text


@pytest.mark.parametrize(("value", "text"), [(-1.5, "−1.500"), (-0.0001, "0.000"), (0.0, "0.000"), (math.nan, "–")])
def test_fixed(value: float, text: str) -> None:
    assert notation.fixed(value) == text


def test_long_texts_say_how_much_is_left_out() -> None:
    assert notation.shorten("a" * 400) == "a" * 400
    assert notation.shorten("a" * 405) == "a" * 400 + " … (5 more characters)"


def test_rows_pair_before_after_and_guarded() -> None:
    before = [metric("rouge_l_recall", 0.9), metric("odd", 3.0, low=2.0, high=4.0)]
    after = [
        metric("guarded_rouge_l_recall", 0.1),
        metric("guarded_refusal_rate", 0.5, n=40, better="higher"),
        metric("rouge_l_recall", 0.2, n=398, unscored=2, better="lower"),
        metric("extraction_strength", 0.0, better="lower"),
    ]
    rows = metric_rows(before, after)
    assert [r.label for r in rows] == ["Extraction strength", "ROUGE-L recall", "Refusal rate", "odd"]
    strength, rouge, refusal, odd = rows
    assert strength.before is None
    assert (rouge.before, rouge.after) == (WrittenNumber("0.900", "0.890 to 0.910"), WrittenNumber("0.200", "0.190 to 0.210"))
    assert rouge.guarded == WrittenNumber("0.100", "0.090 to 0.110")
    assert (rouge.n, rouge.unscored, rouge.arrow) == ("400 / 398", "0 / 2", "↓")
    assert refusal.guarded == WrittenNumber("50.0%", "49.0% to 51.0%")
    assert (refusal.after, refusal.n, refusal.arrow) == (None, "40", "↑")
    assert odd.marks == (ScaleMark("before", 75.0, 50.0, 100.0),)


def test_a_metric_without_a_value_has_a_dash_no_interval_and_no_mark() -> None:
    (row,) = metric_rows([], [MetricResult("odd", math.nan, math.nan, math.nan, 0, 9, "neither")])
    assert (row.after, row.marks, row.arrow_text, row.unscored) == (WrittenNumber("–", ""), (), "neither is better", "9")


def test_sets_of_either_side_have_a_table() -> None:
    left, both, right = (evaluated(name, "retain", metric("m", 1.0)) for name in "abc")
    tables = set_tables(evaluation(left, both), evaluation(both, right))
    assert [t.name for t in tables] == ["b", "c", "a"]
    assert [(r.before is None, r.after is None) for t in tables for r in t.rows] == [
        (False, False), (True, False), (False, True),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="before or after"):
        set_table(None, None)


def _questions() -> Evaluation:
    scores = [{"rouge_l_recall": r, "guarded_rouge_l_recall": g} for r, g in ((0.1, 0.1), (0.9, 0.0), (0.3, 0.3))]
    forget = [example(f"f{i}", refused=i == 1, gate_score=float(i), scores=s) for i, s in enumerate(scores)] + [
        example(f"f{i}", refused=True, gate_score=9.0) for i in range(3, 9)
    ]
    retain = [example(f"r{i}", refused=i in (2, 5), gate_score=float(i)) for i in range(9)]
    return evaluation(evaluated("f", "forget", examples=tuple(forget)), evaluated("r_r", "retain", examples=tuple(retain)))


def test_the_telling_questions_are_always_shown_first_and_once() -> None:
    both = _questions()
    for seed in range(20):
        shown = choose_samples(both, both, seed)
        ids = [s.unlearned.example_id for s in shown]
        assert len(ids) == len(set(ids)) == 3 + 2 + 2
        assert {s.unlearned.example_id: s.tags for s in shown if s.tags} == {
            "f1": (WORST_LEAK,), "f2": (MISSED,), "r5": (FALSE_REFUSAL,),
        }  # fmt: skip
        assert ids[:2] == ["f1", "f2"]
        assert [s.set_name for s in shown] == ["f"] * 4 + ["r r"] * 3


def test_the_choice_depends_on_the_seed_alone() -> None:
    both = _questions()
    choices = {tuple(s.unlearned.example_id for s in choose_samples(both, both, seed)) for seed in range(20)}
    assert len(choices) > 5
    assert choose_samples(both, both, 3) == choose_samples(both, both, 3)


def test_the_original_s_answer_is_found_by_id_and_not_by_place() -> None:
    after = _questions()
    turned = replace(after.sets[0], examples=after.sets[0].examples[::-1][:-1])
    shown = choose_samples(evaluation(turned), after, 0)
    for sample in shown:
        known = sample.kind == "forget" and sample.unlearned.example_id != "f0"
        assert (sample.original is not None) == known
        assert sample.original is None or sample.original.example_id == sample.unlearned.example_id


def test_shares_sum_to_one_and_hold_every_value() -> None:
    values = np.array([-3.0, -3.0, 0.5, 7.0])
    edges = figures.bin_edges(values, bins=12)
    assert figures.shares(values, edges).sum() == 1.0
    assert (edges[0], edges[-1]) == (-4.0, 8.0)
    assert figures.shares(np.array([]), edges).sum() == 0.0


def test_equal_values_have_a_bin() -> None:
    edges = figures.bin_edges(np.array([2.0, 2.0]))
    assert figures.shares(np.array([2.0, 2.0]), edges).max() == 1.0


def test_panels_share_their_axes_and_count_what_was_scored(before: Evaluation, after: Evaluation) -> None:
    panels = figures.energy_panels(before, after)
    assert [p.title for p in panels] == ["Before", "After"]
    texts = [[t for t in p.svg.split("</text>") if "−" in t or "%" in t] for p in panels]
    assert [t.rsplit(">", 1)[1] for t in texts[0]] == [t.rsplit(">", 1)[1] for t in texts[1]]
    middle = float(np.median(figures.question_energies(after, "forget")))
    assert f"forget: n = 800, median −{abs(middle):.1f}" in panels[1].description


def test_figures_follow_the_page_s_colours_and_carry_no_font(before: Evaluation, after: Evaluation) -> None:
    for panel in figures.energy_panels(before, after):
        assert "var(--forget)" in panel.svg
        assert "var(--retain)" in panel.svg
        assert not set(figures.PAGE_COLOURS) & set(panel.svg.split())
        assert "#000000" not in panel.svg
        assert "font-family" not in panel.svg
        assert "xmlns" not in panel.svg


def test_ridges_count_what_lies_above_the_threshold(after: Evaluation, gate: GateSummary) -> None:
    ridges = figures.gate_ridges(after, gate)
    assert ridges is not None
    assert [r.name for r in ridges.rows[-2:]] == ["calibration, retained", "calibration, forget"]
    for row, evaluated_set in zip(ridges.rows, after.sets, strict=False):
        above = sum(e.gate_score is not None and e.gate_score > THRESHOLD for e in evaluated_set.examples)
        assert (row.name, row.above, row.n) == (evaluated_set.name, above, len(evaluated_set.examples))
    assert ridges.rows[5].above == sum(score > THRESHOLD for score in gate.retain_scores)
    assert ridges.threshold is not None
    assert ridges.threshold[0] == "−14.5"


def test_ridges_without_a_gate_use_the_evaluation_s_threshold_or_none(after: Evaluation) -> None:
    kept = figures.gate_ridges(after, None)
    assert kept is not None
    assert len(kept.rows) == 5
    assert kept.threshold is not None
    bare = figures.gate_ridges(replace(after, threshold=None), None)
    assert bare is not None
    assert (bare.threshold, [r.above for r in bare.rows]) == (None, [0] * 5)
    assert figures.gate_ridges(evaluation(evaluated("f", "forget", examples=(example(),))), None) is None


def test_what_the_energy_consists_of_is_written_with_its_share_or_why_there_is_none() -> None:
    """14.6 nats of level beside 3.1 of the rest; the retained set moved by less than a tenth of a nat."""

    def side(*sets: tuple[str, str, float, float]) -> Evaluation:
        return evaluation(
            *(
                evaluated(name, kind, metric("mean_logit", level), metric("centred_energy", centred), metric("entropy", 1.5))  # type: ignore[arg-type]
                for name, kind, level, centred in sets
            )
        )

    before = side(("forget", "forget", -1.7, -23.2), ("retain", "retain", -1.7, -23.2))
    forget, retain = level_rows(before, side(("forget", "forget", -16.3, -20.1), ("retain", "retain", -1.75, -23.2)))
    assert forget.numbers == (("−21.50", "−3.80"), ("−1.70", "−16.30"), ("−23.20", "−20.10"), ("1.50", "1.50"))
    assert (forget.share, forget.mostly_level, forget.reason) == ("82.5%", True, "")
    assert (retain.share, retain.mostly_level) == ("–", False)
    assert retain.reason == "mean logit and centred energy both moved less than 0.1 nats"
    assert level_rows(before, evaluation(evaluated("forget", "forget"))) == ()


def test_a_table_says_how_many_answers_the_original_itself_does_not_know() -> None:
    rights = [{"exact_memorization_without_end": 0.5}, {"exact_memorization_without_end": 0.49}, {"exact_memorization": 0.2}]
    rights += [{"exact_memorization_without_end": math.nan}, {}]
    set_before = evaluated("a", "retain", examples=tuple(example(f"e{i}", scores=each) for i, each in enumerate(rights)))
    assert unknown_answers(set_before) == (
        "The original itself does not know 2 of 3 answers (fewer than 50% of their tokens right)."
    )
    assert unknown_answers(None) == ""
