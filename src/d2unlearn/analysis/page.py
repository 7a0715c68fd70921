"""The page of an analysis: every index in tables and pictures, drawn from `analysis.json` alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from d2unlearn.analysis import page_panels as panels
from d2unlearn.analysis import page_tables as tables
from d2unlearn.analysis.records import Analysis, Estimate, ModelTrial, Placement, TriedIndex, read_analysis
from d2unlearn.analysis.significance import ROLES, pair_of, refusals_of, rivals, standing, trial_of, wordings
from d2unlearn.report.html import describe, template
from d2unlearn.report.notation import fixed, percent, readable, stated
from d2unlearn.runtime import atomic_write

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
"""What pictures show beside the reference: one of each kind, pooled alike."""
N_LINES = 6
N_PANELS = 7


@dataclass(frozen=True)
class Tile:
    """One number of the head of the page."""

    title: str
    value: str
    detail: str


def write_page(path: Path) -> Path:
    """Draw the analysis at `path` into a page beside it; the page's path."""
    page = path.with_name(PAGE)
    atomic_write(page, build_page(read_analysis(path)))
    return page


def build_page(analysis: Analysis) -> str:
    """The page as one HTML document that loads nothing."""
    trial, rate = trial_of(analysis), lowest_rate(analysis)
    drawn, hard = drawn_indices(analysis), hardest(analysis)
    return template("analysis", "page.html.j2").render(
        analysis=analysis,
        rate=stated(rate),
        roles=[(ROLES[each.role], each.model) for each in analysis.models],
        headline=headline(analysis),
        sentences=sentences(analysis),
        tiles=tiles(analysis),
        reference=labels(analysis)[analysis.reference],
        legend=[index.label for index in drawn[:N_LINES]],
        all_indices=tables.every_index(analysis, trial, *hard, rate),
        other_wordings=[tables.every_index(analysis, trial, *pair, rate) for pair in wordings(analysis.sets) if pair != hard],
        separations=[tables.separations(analysis, each, ROLES[each.role]) for each in analysis.models],
        decisions=[
            tables.decisions(analysis, each, at, placement)
            for each in analysis.models
            for at in rates(analysis)
            for placement in placements(each)
        ],
        reference_panels=panels.reference_panels(analysis),
        index_panels=panels.index_panels(analysis, drawn[1:N_PANELS]),
        general=" and ".join(readable(name) for name in panels.general_sets(analysis)),
        rocs=panels.roc_panels(analysis, drawn[:N_LINES]),
        layers=panels.layer_panels(analysis),
        no_layers=[each.no_layers for each in analysis.models if each.no_layers],
        answers=panels.answers(analysis),
        sizes=panels.size_panels(analysis, drawn[:N_LINES], rate),
        disturbed=tables.disturbances(analysis, drawn),
        all_disturbed=tables.disturbances(analysis, analysis.indices),
        costs=tables.costs(analysis, drawn),
        all_costs=tables.costs(analysis, analysis.indices),
        sections=describe({"models": {e.role: e.model for e in analysis.models}, "settings": dict(analysis.settings)}),
    )


# -- what the analysis says ----------------------------------------------------------------------------------------------


def rates(analysis: Analysis) -> list[float]:
    """The rates of false refusals that thresholds were tried at, rising."""
    return sorted({each.rate for each in trial_of(analysis).refusals})


def placements(trial: ModelTrial) -> list[Placement]:
    """Where the trial's thresholds were put."""
    return list(dict.fromkeys(each.placement for each in trial.refusals))


def lowest_rate(analysis: Analysis) -> float:
    return rates(analysis)[0]


def labels(analysis: Analysis) -> dict[str, str]:
    return {index.name: index.label for index in analysis.indices}


def drawn_indices(analysis: Analysis) -> list[TriedIndex]:
    """The reference, then those of `DRAWN` that were on trial."""
    by_name = {index.name: index for index in analysis.indices}
    names = dict.fromkeys((analysis.reference, *DRAWN))
    return [by_name[name] for name in names if name in by_name]


def headline(analysis: Analysis) -> str:
    """How many indices tell forgotten from retained requests better than the reference, by AUROC in the hardest wording."""
    found = [standing(each.ahead) for each in pair_of(trial_of(analysis), *hardest(analysis)).values()]
    return (
        f"Of {len(found) - 1} other indices, {found.count('ahead')} tell forgotten from retained questions clearly better than "
        f"{own_name(analysis)}, {found.count('behind')} clearly worse."
    )


def own_name(analysis: Analysis) -> str:
    """What the reference is called in a sentence."""
    return "the gate’s score" if analysis.gate_score is not None else labels(analysis)[analysis.reference]


def hardest(analysis: Analysis) -> tuple[str, str]:
    """The wording in which the reference tells the two kinds apart worst."""
    trial = trial_of(analysis)
    return min(wordings(analysis.sets), key=lambda p: pair_of(trial, *p)[analysis.reference].statistics["auroc"].value)


def sentences(analysis: Analysis) -> list[str]:
    """What decides whether the gate should use another index, in words."""
    trial, rate = trial_of(analysis), lowest_rate(analysis)
    forget, retain = hardest(analysis)
    found = "; ".join(
        f"{tables.PLACEMENTS[placement]}: {clearly_better(analysis, rate, placement)}" for placement in placements(trial)
    )
    return [
        f"By AUROC on {readable(forget)} against {readable(retain)}, the wording that is hardest for it. At a threshold for "
        f"{stated(rate)} false refusals, clearly better on some set and clearly worse on none are, {found}.",
        "Clearly: the 95% interval of the difference, on the same bootstrap draws, leaves 0 out. With so many indices a few "
        "differences are clear by chance.",
    ]


def clearly_better(analysis: Analysis, rate: float, placement: Placement) -> str:
    """The indices that decide so, by their labels, or `none`."""
    found = [each.index for each in rivals(trial_of(analysis), analysis.sets, rate, placement) if each.clearly_better]
    return ", ".join(f"“{labels(analysis)[index]}”" for index in found) or "none"


def tiles(analysis: Analysis) -> list[Tile]:
    """The reference index in four numbers."""
    trial, rate, name = trial_of(analysis), lowest_rate(analysis), analysis.reference
    area = {pair: pair_of(trial, *pair)[name].statistics["auroc"] for pair in wordings(analysis.sets)}
    refused = refusals_of(trial, rate)[name].refused
    cost = next(each for each in analysis.costs if each.index == name)
    forget, retain = ([each.name for each in analysis.sets if each.kind == kind] for kind in ("forget", "retain"))
    told = [(pair[0], each) for pair, each in area.items()]
    return [
        _tile("Told apart (AUROC)", told, fixed),
        _tile(f"Missed at {stated(rate)}", [(each, tables.missed(refused[each])) for each in forget], percent),
        _tile(f"Refused wrongly at {stated(rate)}", [(each, refused[each]) for each in retain], percent),
        Tile(
            "Costs",
            percent(cost.share),
            f"of the time to generate the answer: {cost.microseconds:,.0f} of {1000 * analysis.generation_ms:,.0f} µs",
        ),
    ]


def _tile(title: str, measured: Sequence[tuple[str, Estimate]], write: Callable[[float], str]) -> Tile:
    """The first set's number with its interval, then the others'."""
    (_, first), *others = measured
    parts = [f"{write(first.low)} to {write(first.high)}", *(f"{readable(name)} {write(each.value)}" for name, each in others)]
    return Tile(title, write(first.value), "; ".join(parts))
