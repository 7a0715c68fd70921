"""The page of an analysis: every detector in tables and pictures, drawn from `analysis.json` alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from d2unlearn.analysis import page_panels as panels
from d2unlearn.analysis import page_tables as tables
from d2unlearn.analysis.page_levels import level_lines
from d2unlearn.analysis.records import Analysis, DetectorSummary, Estimate, ModelTrial, Placement, read_analysis
from d2unlearn.analysis.significance import ROLES, pair_of, refusals_of, rivals, significance, trial_of, wordings
from d2unlearn.report.html import run_sections, template
from d2unlearn.report.notation import fixed, percent, readable, stated
from d2unlearn.runtime import atomic_write, said_if_long
from d2unlearn.schema import Kind

PAGE = "analysis.html"
DRAWN = (
    "energy/prompt",
    "centred-energy/highest-2",
    "max-probability/highest-2",
    "entropy/highest-2",
    "neighbours/answer",
    "nll/mean",
    "max-logit/highest-2",
    "mahalanobis/answer",
)
"""What pictures show beside the base detector: one of each kind, aggregated alike."""
N_LINES = 6
N_PANELS = 7


@dataclass(frozen=True)
class KeyNumber:
    """One number of the head of the page."""

    title: str
    value: str
    detail: str


def write_page(path: Path) -> Path:
    """Draw the analysis at `path` into a page beside it; the page's path."""
    page = path.with_name(PAGE)
    with said_if_long("drawing the page"):
        atomic_write(page, build_page(read_analysis(path)))
    return page


def build_page(analysis: Analysis) -> str:
    """The page as one HTML document that loads nothing."""
    trial, rate = trial_of(analysis), lowest_rate(analysis)
    drawn, hard = drawn_detectors(analysis), hardest(analysis)
    return template("analysis", "page.html.j2").render(
        analysis=analysis,
        rate=stated(rate),
        roles=[(ROLES[trial.role], trial.model) for trial in analysis.models],
        headline=headline(analysis),
        sentences=sentences(analysis),
        tiles=key_numbers(analysis),
        reference=labels(analysis)[analysis.reference],
        legend=[detector.label for detector in drawn[:N_LINES]],
        all_indices=tables.detector_table(analysis, trial, *hard, rate),
        other_wordings=[
            tables.detector_table(analysis, trial, *pair, rate) for pair in wordings(analysis.sets) if pair != hard
        ],
        separations=[tables.separation_table(analysis, trial) for trial in analysis.models],
        decisions=[
            tables.decision_table(analysis, trial, at, placement)
            for trial in analysis.models
            for at in rates(analysis)
            for placement in placements(trial)
        ],
        reference_panels=panels.base_panels(analysis),
        index_panels=panels.detector_panels(analysis, drawn[1:N_PANELS]),
        general=" and ".join(readable(name) for name in panels.general_sets(analysis)),
        rocs=panels.roc_panels(analysis, drawn[:N_LINES]),
        levels=level_lines(analysis),
        layers=panels.layer_panels(analysis),
        no_layers=[trial.no_layers for trial in analysis.models if trial.no_layers],
        answers=panels.question_panels(analysis),
        sizes=panels.size_panels(analysis, drawn[:N_LINES], rate),
        disturbed=tables.perturbation_table(analysis, drawn),
        all_disturbed=tables.perturbation_table(analysis, analysis.indices),
        costs=tables.cost_table(analysis, drawn),
        all_costs=tables.cost_table(analysis, analysis.indices),
        sections=run_sections(
            {"models": {trial.role: trial.model for trial in analysis.models}, "settings": dict(analysis.settings)}
        ),
    )


# -- what the analysis says ----------------------------------------------------------------------------------------------


def rates(analysis: Analysis) -> list[float]:
    """The rates of false refusals that thresholds were tried at, rising."""
    return sorted({refusals.rate for refusals in trial_of(analysis).refusals})


def placements(trial: ModelTrial) -> list[Placement]:
    """Where the trial's thresholds were put."""
    return list(dict.fromkeys(refusals.placement for refusals in trial.refusals))


def lowest_rate(analysis: Analysis) -> float:
    return rates(analysis)[0]


def labels(analysis: Analysis) -> dict[str, str]:
    return {detector.name: detector.label for detector in analysis.indices}


def drawn_detectors(analysis: Analysis) -> list[DetectorSummary]:
    """The base detector, then those of `DRAWN` that were on trial."""
    by_name = {detector.name: detector for detector in analysis.indices}
    return [by_name[name] for name in dict.fromkeys((analysis.reference, *DRAWN)) if name in by_name]


def headline(analysis: Analysis) -> str:
    """How many indices tell forgotten from retained requests better than the base, by AUROC in the hardest wording."""
    found = [significance(separation.ahead) for separation in pair_of(trial_of(analysis), *hardest(analysis)).values()]
    own = "the gate’s score" if analysis.gate_score is not None else labels(analysis)[analysis.reference]
    return (
        f"Of {len(found) - 1} other indices, {found.count('better')} tell forgotten from retained questions clearly better "
        f"than {own}, {found.count('worse')} clearly worse."
    )


def hardest(analysis: Analysis) -> tuple[str, str]:
    """The wording in which the base detector tells the two kinds apart worst."""
    trial = trial_of(analysis)
    return min(wordings(analysis.sets), key=lambda p: pair_of(trial, *p)[analysis.reference].statistics["auroc"].value)


def sentences(analysis: Analysis) -> list[str]:
    """What decides whether the gate should use another index, in words."""
    trial, rate, found = trial_of(analysis), lowest_rate(analysis), []
    for placement in placements(trial):
        better = [rival.detector for rival in rivals(trial, analysis.sets, rate, placement) if rival.clearly_better]
        named = ", ".join(f"“{labels(analysis)[detector]}”" for detector in better) or "none"
        found.append(f"{tables.PLACEMENT_WORDS[placement]}: {named}")
    return [
        f"By AUROC on {tables.pair_title(*hardest(analysis))}, the wording that is hardest for it. At a threshold for "
        f"{stated(rate)} false refusals, clearly better on some set and clearly worse on none are, {'; '.join(found)}.",
        "Clearly: the 95% interval of the difference, on the same bootstrap draws, leaves 0 out. With so many indices a few "
        "differences are clear by chance.",
    ]


def key_numbers(analysis: Analysis) -> list[KeyNumber]:
    """The base detector in four numbers."""
    trial, rate, base = trial_of(analysis), lowest_rate(analysis), analysis.reference
    told = [(pair[0], pair_of(trial, *pair)[base].statistics["auroc"]) for pair in wordings(analysis.sets)]
    refused = refusals_of(trial, rate)[base].refused
    cost = next(cost for cost in analysis.costs if cost.index == base)
    missed, wrong = (
        [(named.name, tables.wrong_share(refused[named.name], kind)) for named in analysis.sets if named.kind == kind]
        for kind in get_args(Kind)
    )
    return [
        _with_others("Told apart (AUROC)", told, fixed),
        _with_others(f"Missed at {stated(rate)}", missed, percent),
        _with_others(f"Refused wrongly at {stated(rate)}", wrong, percent),
        KeyNumber(
            "Costs",
            percent(cost.share),
            f"of the time to generate the answer: {cost.microseconds:,.0f} of {1000 * analysis.generation_ms:,.0f} µs",
        ),
    ]


def _with_others(title: str, measured: Sequence[tuple[str, Estimate]], write: Callable[[float], str]) -> KeyNumber:
    """The first set's number with its interval, then the others'."""
    (_, first), *others = measured
    beside = (f"; {readable(name)} {write(estimate.value)}" for name, estimate in others)
    return KeyNumber(title, write(first.value), f"{write(first.low)} to {write(first.high)}{''.join(beside)}")
