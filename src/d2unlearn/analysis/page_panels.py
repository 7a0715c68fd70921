"""Which numbers of an analysis go into which picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from d2unlearn.analysis.page_figures import (
    DrawnSet,
    Spreads,
    distributions,
    layers_panel,
    roc_panel,
    separation_panel,
    sizes_panel,
    tokens_panel,
)
from d2unlearn.analysis.page_tables import pair_title
from d2unlearn.analysis.records import Analysis, AnsweredQuestion, AnswerEnergies, DetectorSummary, ModelTrial, Spread
from d2unlearn.analysis.roc import BootstrapWeights, Roc, weighted_roc
from d2unlearn.analysis.significance import ROLES, refusals_of, trial_of, wordings
from d2unlearn.report.figures import Panel
from d2unlearn.report.notation import readable
from d2unlearn.schema import Kind
from d2unlearn.stats import Floats


@dataclass(frozen=True)
class QuestionPanel:
    """One question as every model answered it. `told`: (model, its tokens with how high their energy lies, 0 to 1)."""

    kind: Kind
    set_name: str
    choice: str
    question: str
    picture: Panel
    told: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]


def base_panels(analysis: Analysis) -> list[Panel]:
    """The base detector on every model."""
    return _drawn(
        _distributions(analysis, trial, analysis.reference, ROLES[trial.role], f"reference-{trial.role}")
        for trial in analysis.models
    )


def detector_panels(analysis: Analysis, detectors: Sequence[DetectorSummary]) -> list[Panel]:
    """Other detectors on the model on trial."""
    trial = trial_of(analysis)
    return _drawn(_distributions(analysis, trial, d.name, d.label, f"index{number}") for number, d in enumerate(detectors))


def _drawn(panels: Iterable[Panel | None]) -> list[Panel]:
    return [panel for panel in panels if panel is not None]


def _distributions(analysis: Analysis, trial: ModelTrial, detector: str, title: str, key: str) -> Panel | None:
    """Both kinds in the first wording, then in the second, then retained sets of no wording as one."""
    kinds: tuple[Kind, Kind] = ("forget", "retain")
    sets = [
        DrawnSet(kind, drawn, _values(trial, detector, name))
        for pair, drawn in zip(wordings(analysis.sets), ("filled", "dashed"), strict=False)
        for kind, name in zip(kinds, pair, strict=True)
    ]
    general = [_values(trial, detector, name) for name in general_sets(analysis)]
    sets += [DrawnSet("retain", "dotted", np.concatenate(general))] if general else []
    return distributions(title, sets, threshold_of(analysis, trial, detector), key)


def general_sets(analysis: Analysis) -> list[str]:
    """The retained sets that are no wording of a forget set."""
    paired = {retain for _, retain in wordings(analysis.sets)}
    return [named.name for named in analysis.sets if named.kind == "retain" and named.name not in paired]


def threshold_of(analysis: Analysis, trial: ModelTrial, detector: str) -> float:
    """The threshold for the lowest rate, in the detector's own sign."""
    rate = min(refusals.rate for refusals in trial.refusals)
    return _sign(analysis, detector) * refusals_of(trial, rate)[detector].threshold


def roc_panels(analysis: Analysis, detectors: Sequence[DetectorSummary]) -> list[Panel]:
    """The model on trial in every wording, then the others in the first."""
    pairs = wordings(analysis.sets)
    drawn = [(trial_of(analysis), pair) for pair in pairs]
    drawn += [(trial, pairs[0]) for trial in analysis.models if trial.role != "model"]
    n = {named.name: named.n for named in analysis.sets}
    return [
        roc_panel(
            f"{ROLES[trial.role]}: {pair_title(forget, retain)}",
            [_roc(analysis, trial, detector.name, forget, retain) for detector in detectors],
            n[retain],
            f"roc{number}",
        )
        for number, (trial, (forget, retain)) in enumerate(drawn)
    ]


def _roc(analysis: Analysis, trial: ModelTrial, detector: str, forget: str, retain: str) -> Roc:
    """The curve of the requests as they are, without draws."""
    low, high = (_sign(analysis, detector) * _values(trial, detector, name) for name in (retain, forget))
    return weighted_roc(low, high, *(BootstrapWeights.draw(range(len(side)), 0, 0) for side in (low, high)))


def layer_panels(analysis: Analysis) -> list[Panel]:
    """Energies by layer of each model, then how well each layer tells the two kinds apart."""
    read = [trial for trial in analysis.models if trial.layers]
    spread = {trial.role: spreads_of(analysis, trial.layers[-1].spread) for trial in read}
    limits = layer_limits(spread.values())
    panels = [layers_panel(ROLES[role], spreads, limits, f"layers-{role}") for role, spreads in spread.items()]
    for place in range(len(read[0].layers) if read else 0):
        positions = read[0].layers[place].positions
        title = "told apart where the prompt ends" if positions == 1 else f"told apart over the first {positions} tokens"
        aurocs = {trial.role: trial.layers[place].auroc for trial in read}
        panels.append(separation_panel(title, aurocs, f"separation{positions}"))
    return panels


def question_panels(analysis: Analysis) -> list[QuestionPanel]:
    """Questions with all models' answers, tokens tinted on one scale for all of them."""
    energies = [energy for asked in analysis.asked for told in asked.told for energy in told.energies]
    low, high = np.quantile(energies, [0.05, 0.95]) if energies else (0.0, 1.0)
    return [_question_panel(asked, float(low), float(high), f"answer{number}") for number, asked in enumerate(analysis.asked)]


def _question_panel(asked: AnsweredQuestion, low: float, high: float, key: str) -> QuestionPanel:
    told = tuple((ROLES[answer.role], _tinted(answer, low, high)) for answer in asked.told)
    picture = tokens_panel(f"{readable(asked.set_name)}, {asked.choice}", asked.told, key)
    return QuestionPanel(asked.kind, asked.set_name, asked.choice, asked.question, picture, told)


def _tinted(answer: AnswerEnergies, low: float, high: float) -> tuple[tuple[str, float], ...]:
    heights = np.clip((np.asarray(answer.energies) - low) / ((high - low) or 1.0), 0, 1)
    return tuple((token, round(float(height), 2)) for token, height in zip(answer.tokens, heights, strict=True))


def size_panels(analysis: Analysis, detectors: Sequence[DetectorSummary], rate: float) -> list[Panel]:
    """False refusals and misses over the number of calibration requests; none where there were too few to try."""
    curves = [[p for p in analysis.curves if (p.index, p.rate) == (detector.name, rate)] for detector in detectors]
    if not any(curves):
        return []

    wrong = [[(point, point.false_refusals) for point in points] for points in curves]
    missed = [[(point, point.missed) for point in points] for points in curves]
    return [
        sizes_panel("refused wrongly", wrong, rate, "sizes-refused"),
        sizes_panel("missed", missed, None, "sizes-missed"),
    ]


def spreads_of(analysis: Analysis, spread: Mapping[str, Sequence[Spread]]) -> Spreads:
    """Of the sets in each wording."""
    spreads: dict[tuple[Kind, str], Sequence[Spread]] = {}
    for (forget, retain), drawn in zip(wordings(analysis.sets), ("filled", "dashed"), strict=False):
        spreads |= {("retain", drawn): spread[retain], ("forget", drawn): spread[forget]}
    return spreads


def layer_limits(spreads: Iterable[Spreads]) -> tuple[float, float]:
    """What holds the energies after every layer of all models: to be drawn on one scale."""
    after = [s for by_set in spreads for layers in by_set.values() for s in layers[1:]]
    low, high = min((s.low for s in after), default=0.0), max((s.high for s in after), default=1.0)
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def _sign(analysis: Analysis, detector: str) -> float:
    return next(1.0 if summary.forgotten == "higher" else -1.0 for summary in analysis.indices if summary.name == detector)


def _values(trial: ModelTrial, detector: str, name: str) -> Floats:
    return np.asarray(trial.values[detector][name], dtype=np.float64)
