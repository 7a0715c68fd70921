"""Which numbers of an analysis go into which picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from d2unlearn.analysis.page_figures import (
    Sample,
    distributions,
    layers_panel,
    roc_of,
    roc_panel,
    separation_panel,
    sizes_panel,
    tokens_panel,
)
from d2unlearn.analysis.records import (
    Analysis,
    Asked,
    CurvePoint,
    Estimate,
    ModelTrial,
    Spread,
    Told,
    TriedIndex,
)
from d2unlearn.analysis.significance import ROLES, refusals_of, trial_of, wordings
from d2unlearn.report.figures import Panel, Values
from d2unlearn.report.notation import readable
from d2unlearn.schema import Kind


@dataclass(frozen=True)
class Answer:
    """One question as every model answered it. `told`: (model, its tokens with how high their energy lies, 0 to 1)."""

    kind: Kind
    set_name: str
    choice: str
    question: str
    picture: Panel
    told: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]


def reference_panels(analysis: Analysis) -> list[Panel]:
    """The reference index on every model."""
    found = [
        distributions(
            ROLES[trial.role],
            samples(analysis, trial, analysis.reference),
            threshold_of(analysis, trial, analysis.reference),
            f"reference-{trial.role}",
        )
        for trial in analysis.models
    ]
    return [panel for panel in found if panel is not None]


def index_panels(analysis: Analysis, indices: Sequence[TriedIndex]) -> list[Panel]:
    """Other indices on the model on trial."""
    trial = trial_of(analysis)
    found = [
        distributions(
            index.label, samples(analysis, trial, index.name), threshold_of(analysis, trial, index.name), f"index{place}"
        )
        for place, index in enumerate(indices)
    ]
    return [panel for panel in found if panel is not None]


def samples(analysis: Analysis, trial: ModelTrial, index: str) -> list[Sample]:
    """An index's values: both kinds in the first wording, then in the second, then retained sets of no wording as one."""
    drawn: list[Sample] = []
    for pair, way in zip(wordings(analysis.sets), ("filled", "dashed"), strict=False):
        kinds: tuple[Kind, Kind] = ("forget", "retain")
        drawn += [Sample(kind, way, _values(trial, index, name)) for kind, name in zip(kinds, pair, strict=True)]
    general = [_values(trial, index, name) for name in general_sets(analysis)]
    return [*drawn, *([Sample("retain", "dotted", np.concatenate(general))] if general else [])]


def general_sets(analysis: Analysis) -> list[str]:
    """The retained sets that are no wording of a forget set."""
    paired = {retain for _, retain in wordings(analysis.sets)}
    return [each.name for each in analysis.sets if each.kind == "retain" and each.name not in paired]


def threshold_of(analysis: Analysis, trial: ModelTrial, index: str) -> float:
    """The threshold for the lowest rate, in the index's own sign."""
    rate = min(each.rate for each in trial.refusals)
    return _sign(analysis, index) * refusals_of(trial, rate)[index].threshold


def roc_panels(analysis: Analysis, indices: Sequence[TriedIndex]) -> list[Panel]:
    """The model on trial in every wording, then the others in the first."""
    pairs = wordings(analysis.sets)
    drawn = [(trial_of(analysis), pair) for pair in pairs]
    drawn += [(trial, pairs[0]) for trial in analysis.models if trial.role != "model"]
    n = {each.name: each.n for each in analysis.sets}
    return [
        roc_panel(
            f"{ROLES[trial.role]}: {readable(forget)} against {readable(retain)}",
            [roc_of(*_evidence(analysis, trial, index.name, (retain, forget))) for index in indices],
            n[retain],
            f"roc{place}",
        )
        for place, (trial, (forget, retain)) in enumerate(drawn)
    ]


def layer_panels(analysis: Analysis) -> list[Panel]:
    """Energies by layer of each model, then how well each layer tells the two kinds apart."""
    read = [trial for trial in analysis.models if trial.layers]
    spread = {trial.role: spreads_of(analysis, trial.layers[-1].spread) for trial in read}
    limits = layer_limits(spread.values())
    panels = [layers_panel(ROLES[role], each, limits, f"layers-{role}") for role, each in spread.items()]
    for place in range(len(read[0].layers) if read else 0):
        positions = read[0].layers[place].positions
        title = "told apart where the prompt ends" if positions == 1 else f"told apart over the first {positions} tokens"
        aurocs = {trial.role: trial.layers[place].auroc for trial in read}
        panels.append(separation_panel(title, aurocs, f"separation{positions}"))
    return panels


def answers(analysis: Analysis) -> list[Answer]:
    """Questions with all models' answers, tokens tinted on one scale for all of them."""
    energies = [energy for asked in analysis.asked for told in asked.told for energy in told.energies]
    low, high = np.quantile(energies, [0.05, 0.95]) if energies else (0.0, 1.0)
    return [_answer(asked, float(low), float(high), f"answer{place}") for place, asked in enumerate(analysis.asked)]


def size_panels(analysis: Analysis, indices: Sequence[TriedIndex], rate: float) -> list[Panel]:
    """False refusals and misses over the number of calibration requests; none where there were too few to try."""
    by_index = [[each for each in analysis.curves if (each.index, each.rate) == (index.name, rate)] for index in indices]
    if not any(by_index):
        return []

    def of(name: str) -> list[list[tuple[CurvePoint, Estimate]]]:
        return [[(point, getattr(point, name)) for point in points] for points in by_index]

    return [
        sizes_panel("refused wrongly", of("false_refusals"), rate, "sizes-refused"),
        sizes_panel("missed", of("missed"), None, "sizes-missed"),
    ]


def _answer(asked: Asked, low: float, high: float, key: str) -> Answer:
    told = tuple((ROLES[each.role], _tinted(each, low, high)) for each in asked.told)
    picture = tokens_panel(f"{readable(asked.set_name)}, {asked.choice}", asked.told, key)
    return Answer(asked.kind, asked.set_name, asked.choice, asked.question, picture, told)


def _tinted(told: Told, low: float, high: float) -> tuple[tuple[str, float], ...]:
    places = np.clip((np.asarray(told.energies) - low) / ((high - low) or 1.0), 0, 1)
    return tuple((token, round(float(place), 2)) for token, place in zip(told.tokens, places, strict=True))


def spreads_of(analysis: Analysis, spread: Mapping[str, Sequence[Spread]]) -> dict[tuple[Kind, str], Sequence[Spread]]:
    """Of the sets in each wording, by kind and how they are drawn."""
    found: dict[tuple[Kind, str], Sequence[Spread]] = {}
    for (forget, retain), drawn in zip(wordings(analysis.sets), ("filled", "dashed"), strict=False):
        found |= {("retain", drawn): spread[retain], ("forget", drawn): spread[forget]}
    return found


def _trial(analysis: Analysis) -> ModelTrial:
    return next(each for each in analysis.models if each.role == "model")


def _sign(analysis: Analysis, index: str) -> float:
    return next(1.0 if each.forgotten == "higher" else -1.0 for each in analysis.indices if each.name == index)


def layer_limits(spread: Iterable[Mapping[tuple[Kind, str], Sequence[Spread]]]) -> tuple[float, float]:
    """What holds the energies after every layer of all models: to be drawn on one scale."""
    each = [s for of in spread for layers in of.values() for s in layers[1:]]
    low, high = min((s.low for s in each), default=0.0), max((s.high for s in each), default=1.0)
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def _values(trial: ModelTrial, index: str, name: str) -> Values:
    return np.asarray(trial.values[index][name], dtype=np.float64)


def _evidence(analysis: Analysis, trial: ModelTrial, index: str, names: tuple[str, str]) -> tuple[Values, Values]:
    sign = _sign(analysis, index)
    first, second = (sign * _values(trial, index, name) for name in names)
    return first, second
